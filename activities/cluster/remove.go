package cluster

import (
	"context"
	"fmt"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// CheckClusterRemoval looks at reachability and, by SelfSubjectAccessReview, at every
// permission that taking a workload out will use in this cluster.
func (a *Activities) CheckClusterRemoval(ctx context.Context, in CheckRemovalInput) (CheckRemovalResult, error) {
	var result CheckRemovalResult
	bad := func(format string, args ...any) {
		result.Problems = append(result.Problems, fmt.Sprintf(format, args...))
	}
	c, err := a.Clients.Cluster(in.context())
	if err != nil {
		bad("%s", failure.Message(err))
		return result, nil
	}
	asked, cancel := context.WithTimeout(ctx, reachWithin)
	defer cancel()
	missing, err := deniedTo(asked, c, removalPermissions(in))
	switch {
	case ctx.Err() != nil:
		return result, ctx.Err()
	case err != nil && !in.Management:
		bad("%s. If the cluster no longer exists, say so: then only Vault and the management cluster are cleaned (relaypki remove-cluster %s %s --gone)",
			failure.Message(err), in.Spec.Mesh, in.Spec.Workloads[0].Name)
	case err != nil:
		bad("%s", failure.Message(err))
	}
	for _, m := range missing {
		bad("the worker may not %s, which a removal needs; apply the manifest of deploy/rbac there", m)
	}
	return result, nil
}

func (in CheckRemovalInput) context() string {
	if in.Management {
		return in.Spec.Management.Context
	}
	return in.Spec.Workloads[0].Context
}

// removalPermissions are those that taking out a workload uses in a cluster.
func removalPermissions(in CheckRemovalInput) []permission {
	const (
		rbac = "rbac.authorization.k8s.io"
		cm   = "cert-manager.io"
	)
	s := in.Spec
	ns := s.Namespace
	if in.Management {
		ns = s.Management.Namespace
		return []permission{
			{verbs: "get patch", resource: "configmaps", namespace: ns, names: []string{recordName(s.Mesh)}},
			{verbs: "get create update delete", group: "coordination.k8s.io", resource: "leases", namespace: ns},
			{verbs: "get delete", group: "admin.gloo.solo.io", resource: "kubernetesclusters", namespace: ns},
		}
	}
	secrets := []string{mesh.RootSecretName, mesh.CABundleSecretName, mesh.TokenSecretName, mesh.AppRoleSecretName, mesh.ReviewerName, s.Certificates.Client.SecretName}
	if s.Gloo.IdentityToken.Mode != mesh.TokenNone {
		secrets = append(secrets, s.Gloo.IdentityToken.SecretName)
	}
	all := []permission{
		{verbs: "get delete", resource: "secrets", namespace: ns, names: secrets},
		{verbs: "get delete", resource: "serviceaccounts", namespace: ns, names: []string{mesh.IssuerServiceAccount}},
		{verbs: "get delete", group: rbac, resource: "roles", namespace: ns, names: []string{mesh.IssuerServiceAccount}},
		{verbs: "get delete", group: rbac, resource: "rolebindings", namespace: ns, names: []string{mesh.IssuerServiceAccount}},
		{verbs: "get delete", group: cm, resource: "issuers", namespace: ns, names: []string{mesh.IssuerName}},
		{verbs: "get delete", group: cm, resource: "certificates", namespace: ns, names: []string{s.Certificates.Client.Name}},
		{verbs: "list", group: cm, resource: "certificaterequests", namespace: ns},
		{verbs: "list", resource: "pods", namespace: ns},
	}
	if s.Gloo.Install == nil || *s.Gloo.Install {
		all = append(all, uninstalling(ns)...)
	}
	if s.CertManager.Install != mesh.InstallNever {
		all = append(all, uninstalling(kube.CertManagerNamespace)...)
		all = append(all,
			permission{verbs: "list", group: cm, resource: "issuers"},
			permission{verbs: "list", group: cm, resource: "clusterissuers"},
			permission{verbs: "list", group: cm, resource: "certificates"},
			permission{verbs: "list", resource: "pods", namespace: kube.CertManagerNamespace},
			permission{verbs: "get delete", group: rbac, resource: "clusterroles", names: []string{"cert-manager-controller-issuers"}},
			permission{verbs: "get delete", group: rbac, resource: "clusterrolebindings", names: []string{"cert-manager-controller-issuers"}},
			permission{verbs: "get delete", group: "admissionregistration.k8s.io", resource: "validatingwebhookconfigurations", names: []string{"cert-manager-webhook"}},
		)
	}
	return all
}

// uninstalling are the permissions that taking out any chart of a namespace needs.
func uninstalling(namespace string) []permission {
	return []permission{
		{verbs: "get list update delete", resource: "secrets", namespace: namespace}, // Helm's releases
		{verbs: "get delete", resource: "serviceaccounts", namespace: namespace},
		{verbs: "get delete", resource: "services", namespace: namespace},
		{verbs: "get delete", resource: "configmaps", namespace: namespace},
		{verbs: "get delete", group: "apps", resource: "deployments", namespace: namespace},
	}
}

// RemoveRegistration deletes the KubernetesCluster in the management cluster. A
// registration that somebody else has made is left.
func (a *Activities) RemoveRegistration(ctx context.Context, in RegisterClusterInput) (procedure.Removal, error) {
	var out procedure.Removal
	c, err := a.Clients.Cluster(in.Spec.Management.Context)
	if err != nil {
		return out, err
	}
	err = kube.Delete(ctx, c, "KubernetesCluster", in.Spec.Management.Namespace, in.Cluster, in.Spec.Mesh, in.Mode, &out)
	return out, err
}

// RemoveTrust deletes the agent's trust and the copy of the identity token.
func (a *Activities) RemoveTrust(ctx context.Context, in RemovalInput) (procedure.Removal, error) {
	var out procedure.Removal
	if len(in.Spec.Workloads) != 1 {
		return out, failure.Permanent(failure.InvalidInput, "the spec to remove a workload of has %d of them", len(in.Spec.Workloads))
	}
	w := in.Spec.Workloads[0]
	c, err := a.Clients.Cluster(w.Context)
	if err != nil {
		return out, err
	}
	for _, name := range []string{mesh.RootSecretName, in.Spec.Gloo.IdentityToken.SecretName} {
		if err := kube.Delete(ctx, c, "Secret", w.Namespace, name, in.Spec.Mesh, in.Mode, &out); err != nil {
			return out, err
		}
	}
	return out, nil
}
