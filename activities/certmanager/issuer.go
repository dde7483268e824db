package certmanager

import (
	"context"
	"fmt"
	"strings"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// caBundleKey is the key in the Secret with the CA of Vault's TLS certificate.
const caBundleKey = "ca.crt"

// ApplyIssuerCredential applies the ServiceAccount with the Role and
// RoleBinding that let cert-manager make its tokens (methods jwt and
// kubernetes), the ServiceAccount that Vault has them reviewed with
// (kubernetes), and the Secret with the CA of Vault's TLS certificate.
func (a *Activities) ApplyIssuerCredential(ctx context.Context, in IssuerInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	// What is in one row is applied one after the other.
	var rows [][]runtime.Object
	if in.CABundlePEM != "" {
		rows = append(rows, []runtime.Object{&corev1.Secret{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
			ObjectMeta: ours(in.Mesh, in.Namespace, mesh.CABundleSecretName),
			Type:       corev1.SecretTypeOpaque,
			Data:       map[string][]byte{caBundleKey: []byte(in.CABundlePEM)},
		}})
	}
	if in.Method == mesh.CredentialKubernetes {
		rows = append(rows, reviewer(in))
	}
	if in.Method == mesh.CredentialJWT || in.Method == mesh.CredentialKubernetes {
		account, err := certManagerAccount(ctx, c)
		if err != nil {
			return out, err
		}
		rows = append(rows, []runtime.Object{&corev1.ServiceAccount{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
			ObjectMeta: ours(in.Mesh, in.Namespace, mesh.IssuerServiceAccount),
		}}, []runtime.Object{
			// The API server lets nobody bind to a Role that is not there.
			&rbacv1.Role{
				TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "Role"},
				ObjectMeta: ours(in.Mesh, in.Namespace, mesh.IssuerServiceAccount),
				Rules: []rbacv1.PolicyRule{{
					APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"},
					ResourceNames: []string{mesh.IssuerServiceAccount}, Verbs: []string{"create"},
				}},
			},
			&rbacv1.RoleBinding{
				TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "RoleBinding"},
				ObjectMeta: ours(in.Mesh, in.Namespace, mesh.IssuerServiceAccount),
				RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: mesh.IssuerServiceAccount},
				Subjects:   []rbacv1.Subject{account},
			},
		})
	}
	// Rows side by side: they do not need one another, and the cluster may be far away.
	outcomes := make([]procedure.Outcome, len(rows))
	var group errgroup.Group
	for i, row := range rows {
		group.Go(func() error {
			for _, object := range row {
				want, err := kube.Unstructured(object)
				if err != nil {
					return err
				}
				if _, err := kube.Apply(ctx, c, want, in.Mode, &outcomes[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err = group.Wait()
	for _, one := range outcomes {
		out.Add(one)
	}
	return out, err
}

// reviewer is the ServiceAccount that Vault has tokens reviewed with, the right
// to that, and the Secret into which the cluster writes its token: last, since a
// cluster takes away one whose ServiceAccount is not there.
func reviewer(in IssuerInput) []runtime.Object {
	token := ours(in.Mesh, in.Namespace, mesh.ReviewerName)
	token.Annotations = map[string]string{corev1.ServiceAccountNameKey: mesh.ReviewerName}
	binding := ours(in.Mesh, "", mesh.Spec{Namespace: in.Namespace}.ReviewerBinding())
	return []runtime.Object{
		&corev1.ServiceAccount{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
			ObjectMeta: ours(in.Mesh, in.Namespace, mesh.ReviewerName),
		},
		&rbacv1.ClusterRoleBinding{
			TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "ClusterRoleBinding"},
			ObjectMeta: binding,
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:auth-delegator"},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: in.Namespace, Name: mesh.ReviewerName}},
		},
		&corev1.Secret{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
			ObjectMeta: token,
			Type:       corev1.SecretTypeServiceAccountToken,
		},
	}
}

func ours(mesh, namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: kube.Labels(mesh)}
}

// certManagerAccount is the ServiceAccount that cert-manager's controller runs
// as; its chart's usual one as long as there is no cert-manager.
func certManagerAccount(ctx context.Context, c *site.Cluster) (rbacv1.Subject, error) {
	subject := rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: kube.CertManagerNamespace, Name: kube.CertManagerName(0)}
	found, err := kube.FindCertManager(ctx, c)
	if err != nil {
		return subject, err
	}
	if controller := found[0]; controller != nil {
		subject.Namespace = controller.Namespace
		if name := controller.Spec.Template.Spec.ServiceAccountName; name != "" {
			subject.Name = name
		}
	}
	return subject, nil
}

// issuerFor is the Issuer that the input describes.
func issuerFor(in IssuerInput) (*cmapi.Issuer, error) {
	vault := &cmapi.VaultIssuer{Server: in.Server, Path: in.SignPath, Namespace: in.VaultNamespace}
	if in.CABundlePEM != "" {
		vault.CABundleSecretRef = &cmmeta.SecretKeySelector{LocalObjectReference: cmmeta.LocalObjectReference{Name: mesh.CABundleSecretName}, Key: caBundleKey}
	}
	switch in.Method {
	case mesh.CredentialJWT, mesh.CredentialKubernetes:
		// The token's audiences are vault://<namespace>/<issuer>, which Vault's
		// role is bound to, and the server's address, by cert-manager's default.
		vault.Auth.Kubernetes = &cmapi.VaultKubernetesAuth{
			Path: in.AuthPath, Role: in.AuthRole,
			ServiceAccountRef: &cmapi.ServiceAccountRef{Name: mesh.IssuerServiceAccount},
		}
	case mesh.CredentialAppRole:
		vault.Auth.AppRole = &cmapi.VaultAppRole{
			Path: in.AuthPath, RoleId: in.AuthRole,
			SecretRef: cmmeta.SecretKeySelector{LocalObjectReference: cmmeta.LocalObjectReference{Name: mesh.AppRoleSecretName}, Key: in.SecretKey},
		}
	case mesh.CredentialToken:
		vault.Auth.TokenSecretRef = &cmmeta.SecretKeySelector{LocalObjectReference: cmmeta.LocalObjectReference{Name: mesh.TokenSecretName}, Key: mesh.TokenSecretKey}
	default:
		return nil, failure.Permanent(failure.InvalidInput, "credential method %q is unknown; known: %s, %s, %s, %s", in.Method, mesh.CredentialJWT, mesh.CredentialToken, mesh.CredentialAppRole, mesh.CredentialKubernetes)
	}
	return &cmapi.Issuer{
		TypeMeta:   metav1.TypeMeta{APIVersion: cmapi.SchemeGroupVersion.String(), Kind: cmapi.IssuerKind},
		ObjectMeta: ours(in.Mesh, in.Namespace, mesh.IssuerName),
		Spec:       cmapi.IssuerSpec{IssuerConfig: cmapi.IssuerConfig{Vault: vault}},
	}, nil
}

// ApplyIssuer applies the Issuer and waits (heartbeating) until it is Ready.
func (a *Activities) ApplyIssuer(ctx context.Context, in IssuerInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	issuer, err := issuerFor(in)
	if err != nil {
		return out, err
	}
	err = applyIssuer(ctx, c, issuer, in.Mode, &out)
	return out, err
}

// applyIssuer applies the Issuer and waits until it is Ready.
func applyIssuer(ctx context.Context, c *site.Cluster, issuer *cmapi.Issuer, mode procedure.Mode, out *procedure.Outcome) error {
	want, err := kube.Unstructured(issuer)
	if err != nil {
		return err
	}
	// The Go type writes an empty secretRef, which its schema takes for a name.
	if kubernetes := issuer.Spec.Vault.Auth.Kubernetes; kubernetes != nil {
		auth := want.Object["spec"].(map[string]any)["vault"].(map[string]any)["auth"].(map[string]any)["kubernetes"].(map[string]any)
		delete(auth, "secretRef")
	}
	if _, err := kube.Apply(ctx, c, want, mode, out); err != nil {
		return err
	}
	if !mode.Writes() && len(out.Changes) > 0 {
		awaitReady(c, out, mode, "issuer", issuer.Namespace, issuer.Name)
		return nil
	}
	return await(ctx, mode, out, func(ctx context.Context) (bool, string, error) {
		live, err := c.CertManager.CertmanagerV1().Issuers(issuer.Namespace).Get(ctx, issuer.Name, metav1.GetOptions{})
		if err != nil {
			return false, "", kube.Error(ctx, c, "read "+kube.Name("Issuer", issuer.Namespace, issuer.Name), err)
		}
		ready, state := issuerReady(live)
		return ready, fmt.Sprintf("cluster %q: %s", c.Name, state), nil
	})
}

// UseSecretID has the Issuer log in with the secret id under another key of its
// Secret, and waits (heartbeating) until it is Ready: cert-manager has then
// logged in with that one.
func (a *Activities) UseSecretID(ctx context.Context, in UseSecretIDInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	name := kube.Name("Issuer", in.Namespace, mesh.IssuerName)
	live, err := c.CertManager.CertmanagerV1().Issuers(in.Namespace).Get(ctx, mesh.IssuerName, metav1.GetOptions{})
	if err != nil {
		return out, kube.Error(ctx, c, "read "+name, err)
	}
	if live.Spec.Vault == nil || live.Spec.Vault.Auth.AppRole == nil || live.Spec.Vault.Auth.AppRole.SecretRef.Name != mesh.AppRoleSecretName {
		return out, failure.Permanent(failure.Conflict, "cluster %q: %s does not log in by a secret id of %s. Set the mesh up again, which puts it right", c.Name, name, mesh.AppRoleSecretName)
	}
	issuer := &cmapi.Issuer{
		TypeMeta:   metav1.TypeMeta{APIVersion: cmapi.SchemeGroupVersion.String(), Kind: cmapi.IssuerKind},
		ObjectMeta: ours(in.Mesh, in.Namespace, mesh.IssuerName),
		Spec:       live.Spec,
	}
	issuer.Spec.Vault.Auth.AppRole.SecretRef.Key = in.Key
	err = applyIssuer(ctx, c, issuer, procedure.Apply, &out)
	return out, err
}

// awaitReady adds to the commands of a plan that they wait until cert-manager
// has done its part.
func awaitReady(c *site.Cluster, out *procedure.Outcome, mode procedure.Mode, kind, namespace, name string) {
	last := out.Changes[len(out.Changes)-1]
	out.By(mode, append(last.Commands, kube.Kubectl(c, "-n", namespace, "wait", "--for=condition=Ready", "--timeout=5m", kind+"/"+name))...)
}

// issuerReady reads the Ready condition of the Issuer's present generation.
func issuerReady(issuer *cmapi.Issuer) (bool, string) {
	name := kube.Name("Issuer", issuer.Namespace, issuer.Name)
	for _, cond := range issuer.Status.Conditions {
		if cond.Type != cmapi.IssuerConditionReady {
			continue
		}
		if cond.ObservedGeneration < issuer.Generation {
			return false, name + " was changed and cert-manager has not looked at it since"
		}
		if cond.Status == cmmeta.ConditionTrue {
			return true, ""
		}
		return false, fmt.Sprintf("%s is not Ready: %s: %s", name, cond.Reason, oneLine(cond.Message))
	}
	return false, name + " has no status yet; is cert-manager running?"
}

// oneLine makes one line of cert-manager's and Vault's messages.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
