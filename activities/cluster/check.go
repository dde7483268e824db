package cluster

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	authorization "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/component-helpers/auth/rbac/validation"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/site"
)

// minimalKubernetes is the first version in which all that is used here is
// stable: server-side apply, and tokens for a ServiceAccount by name.
var minimalKubernetes = version.MajorMinor(1, 27)

// reachWithin is how long an API server may take to say its version.
const reachWithin = 10 * time.Second

// CheckClusters looks at every cluster's reachability, version and, by
// SelfSubjectAccessReview, every permission that the setup will use there. One
// that does not answer is no error: its answer says so.
func (a *Activities) CheckClusters(ctx context.Context, in CheckClustersInput) (CheckClustersResult, error) {
	var asked []checkInput
	if in.Management {
		asked = append(asked, checkInput{spec: in.Spec.Only(""), context: in.Spec.Management.Context, management: true})
	}
	for _, w := range in.Spec.Workloads {
		asked = append(asked, checkInput{spec: in.Spec.Only(w.Name), context: w.Context, workload: w.Name})
	}
	out := CheckClustersResult{Clusters: make([]CheckClusterResult, len(asked))}
	var group errgroup.Group
	for i, one := range asked {
		group.Go(func() error {
			var err error
			out.Clusters[i], err = a.checkWithPatience(ctx, one)
			return err
		})
	}
	return out, group.Wait()
}

// checkInput is one cluster to check.
type checkInput struct {
	spec       mesh.Spec
	context    string
	workload   string // its registered name; empty for the management cluster
	management bool
}

// checkWithPatience rides out the blink of an API server.
func (a *Activities) checkWithPatience(ctx context.Context, in checkInput) (CheckClusterResult, error) {
	end := time.Now().Add(reachWithin)
	for {
		result, err := a.checkCluster(ctx, in)
		if ctx.Err() == nil && err != nil && !failure.IsPermanent(err) {
			result.Unreachable, err = failure.Message(err), nil
		}
		if err != nil || result.Unreachable == "" || time.Now().After(end) {
			return result, err
		}
		select {
		case <-ctx.Done():
			return result, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func (a *Activities) checkCluster(ctx context.Context, in checkInput) (CheckClusterResult, error) {
	result := CheckClusterResult{Context: in.context, Workload: in.workload}
	bad := func(format string, args ...any) {
		result.Problems = append(result.Problems, fmt.Sprintf("cluster %q: ", in.context)+fmt.Sprintf(format, args...))
	}
	c, err := a.Clients.Cluster(in.context)
	if err != nil {
		result.Problems = append(result.Problems, failure.Message(err))
		return result, nil
	}
	if err := reach(ctx, c, &result); err != nil || result.Unreachable != "" || len(result.Problems) > 0 {
		return result, err
	}
	if live, err := kube.Get(ctx, c, "Namespace", "", in.spec.Namespace); err == nil && live != nil && live.GetDeletionTimestamp() != nil {
		bad("namespace %s is being deleted; wait until it is gone", in.spec.Namespace)
	}
	if issuer, err := kube.Get(ctx, c, "Issuer", in.spec.Namespace, mesh.IssuerName); err == nil && issuer != nil {
		if owner := kube.OtherMesh(issuer.GetLabels(), in.spec.Mesh); owner != "" {
			bad("namespace %s is the mesh %q's already, and two meshes cannot share one; give this mesh another namespace", in.spec.Namespace, owner)
		}
	}
	if token := in.spec.Gloo.IdentityToken; in.management && token.Mode == mesh.TokenExisting {
		if value, err := readToken(ctx, c, in.spec.Namespace, token); err == nil && len(value) == 0 {
			bad("%s with key %q is missing, which gloo.identityToken names; create it, or set gloo.identityToken.mode to %q or %q",
				kube.Name("Secret", in.spec.Namespace, token.SecretName), token.Key, mesh.TokenGenerate, mesh.TokenNone)
		}
	}
	found, err := kube.FindCertManager(ctx, c)
	switch {
	case failure.KindOf(err) == failure.Denied: // the reviews below say so too
	case err != nil:
		return result, err
	case found[0] != nil:
		if result.CertManager = kube.Version(found[0]); result.CertManager == "" {
			result.CertManager = "unknown version"
		}
		if kube.TooOld(result.CertManager) {
			bad("cert-manager %s is too old: Issuers log in with a ServiceAccount from %s on; upgrade it", result.CertManager, kube.MinimalCertManager)
		}
	case in.spec.CertManager.Install == mesh.InstallNever:
		bad("there is no cert-manager and certManager.install is %q; install it, or set %q", mesh.InstallNever, mesh.InstallAuto)
	}
	result.Problems = append(result.Problems, a.notConfigured(in, result.CertManager == "")...)
	missing, err := deniedTo(ctx, c, permissions(in, result.CertManager == ""))
	if err != nil {
		return result, err
	}
	for _, m := range missing {
		bad("the worker may not %s; apply the manifest of deploy/rbac there", m)
	}
	return result, nil
}

// notConfigured is what the worker's site file lacks for what it is to install.
func (a *Activities) notConfigured(in checkInput, withoutCertManager bool) []string {
	var problems []string
	need := func(err error) {
		if err != nil {
			problems = append(problems, failure.Message(err))
		}
	}
	chart := func(name string) {
		source, err := a.Clients.Config.Chart(name)
		need(err)
		if err == nil && source.Path != "" {
			// One from a repository is looked for when it is needed.
			if _, err := os.Stat(source.Path); err != nil {
				problems = append(problems, fmt.Sprintf("chart %q: %v; correct its path in the worker's site file", name, err))
			}
		}
	}
	if withoutCertManager && in.spec.CertManager.Install != mesh.InstallNever {
		chart("cert-manager")
	}
	if in.spec.Gloo.Install == nil || *in.spec.Gloo.Install {
		chart("gloo-platform-crds")
		chart("gloo-platform")
	}
	if in.management && in.spec.Vault.Install != mesh.VaultExisting {
		chart("vault")
		config, err := a.Clients.Config.Vault(in.spec.Vault.Name)
		need(err)
		for _, identity := range []site.Identity{site.Onboard, site.Operate, site.Refresh} {
			if _, ok := config.Identities[identity]; err == nil && !ok {
				problems = append(problems, fmt.Sprintf("Vault %q: the worker's site file has no login for the identity %q; add it before Vault is installed", config.Name, identity))
			}
		}
	}
	return problems
}

// reach asks for the version. That there is no answer, and what is wrong with
// the one that came, is in the result.
func reach(ctx context.Context, c *site.Cluster, result *CheckClusterResult) error {
	reachCtx, cancel := context.WithTimeout(ctx, reachWithin)
	defer cancel()
	type answer struct {
		version string
		err     error
	}
	// The discovery client takes no context.
	answered := make(chan answer, 1)
	go func() {
		info, err := c.Kube.Discovery().ServerVersion()
		if err != nil {
			answered <- answer{err: err}
			return
		}
		answered <- answer{version: info.GitVersion}
	}()
	select {
	case <-reachCtx.Done():
		if ctx.Err() != nil {
			return ctx.Err()
		}
		result.Unreachable = fmt.Sprintf("cluster %q: the API server does not answer within %s; check the context's address and the network from the worker", c.Name, reachWithin)
	case got := <-answered:
		if got.err != nil {
			err := kube.Error(ctx, c, "ask its version", got.err)
			if failure.KindOf(err) == failure.Unavailable {
				result.Unreachable = failure.Message(err) + "; check the context's address and the network from the worker"
			} else {
				result.Problems = append(result.Problems, failure.Message(err))
			}
			return nil
		}
		result.Version = got.version
		if v, err := version.ParseGeneric(got.version); err == nil && !v.AtLeast(minimalKubernetes) {
			result.Problems = append(result.Problems, fmt.Sprintf("cluster %q: runs Kubernetes %s; at least %s is needed", c.Name, got.version, minimalKubernetes))
		}
	}
	return nil
}

// permission is a set of verbs on one resource, by name where names is not empty.
type permission struct {
	verbs     string
	group     string
	resource  string
	namespace string
	names     []string
	path      string // of a non-resource permission
}

// permissions are those that a setup uses in a cluster, with what Helm needs
// where charts are ours to install.
func permissions(in checkInput, withoutCertManager bool) []permission {
	const (
		rbac = "rbac.authorization.k8s.io"
		cm   = "cert-manager.io"
	)
	s := in.spec
	ns := s.Namespace
	certificate := s.Certificates.Client
	if in.management {
		certificate = s.Certificates.Server
	}
	all := []permission{
		{verbs: "get", resource: "namespaces", names: []string{ns}},
		{verbs: "get", path: "/openid/v1/jwks"},
		{verbs: "get", path: "/.well-known/openid-configuration"},
		{verbs: "get create patch", group: cm, resource: "issuers", namespace: ns, names: []string{mesh.IssuerName}},
		{verbs: "get create patch", group: cm, resource: "certificates", namespace: ns, names: []string{certificate.Name}},
		{verbs: "update", group: cm, resource: "certificates/status", namespace: ns, names: []string{certificate.Name}},
		{verbs: "list", group: cm, resource: "certificaterequests", namespace: ns},
		{verbs: "get", resource: "secrets", namespace: ns, names: []string{certificate.SecretName}},
		{verbs: "get create patch", resource: "secrets", namespace: ns, names: []string{mesh.CABundleSecretName}},
		{verbs: "get list", group: "apps", resource: "deployments", namespace: ns},
		{verbs: "get list", resource: "pods", namespace: ns},
		{verbs: "create", resource: "pods/portforward", namespace: ns},
	}
	switch s.Credential.Method {
	case mesh.CredentialToken:
		all = append(all, permission{verbs: "get create patch", resource: "secrets", namespace: ns, names: []string{mesh.TokenSecretName}})
	case mesh.CredentialAppRole:
		all = append(all, permission{verbs: "get create patch", resource: "secrets", namespace: ns, names: []string{mesh.AppRoleSecretName}})
	default:
		all = append(all,
			permission{verbs: "get create patch", resource: "serviceaccounts", namespace: ns, names: []string{mesh.IssuerServiceAccount}},
			permission{verbs: "get create patch", group: rbac, resource: "roles", namespace: ns, names: []string{mesh.IssuerServiceAccount}},
			permission{verbs: "get create patch", group: rbac, resource: "rolebindings", namespace: ns, names: []string{mesh.IssuerServiceAccount}},
			permission{verbs: "create", resource: "serviceaccounts/token", namespace: ns, names: []string{mesh.IssuerServiceAccount}},
		)
	}
	if s.Credential.Method == mesh.CredentialKubernetes {
		all = append(all,
			permission{verbs: "get create patch", resource: "serviceaccounts", namespace: ns, names: []string{mesh.ReviewerName}},
			permission{verbs: "get create patch", resource: "secrets", namespace: ns, names: []string{mesh.ReviewerName}},
			permission{verbs: "get create patch", group: rbac, resource: "clusterrolebindings", names: []string{s.ReviewerBinding()}},
			permission{verbs: "bind", group: rbac, resource: "clusterroles", names: []string{"system:auth-delegator"}},
		)
	}
	if in.management {
		all = append(all,
			permission{verbs: "get create patch", resource: "configmaps", namespace: ns, names: []string{recordName(s.Mesh)}},
			permission{verbs: "get create update delete", group: "coordination.k8s.io", resource: "leases", namespace: ns},
			permission{verbs: "get list", resource: "services", namespace: ns},
			permission{verbs: "get list create patch", group: "admin.gloo.solo.io", resource: "kubernetesclusters", namespace: ns},
		)
	} else {
		all = append(all, permission{verbs: "get create patch", resource: "secrets", namespace: ns, names: []string{mesh.RootSecretName}})
	}
	for _, deployment := range restarted(in) {
		all = append(all, permission{verbs: "patch", group: "apps", resource: "deployments", namespace: ns, names: []string{deployment}})
	}
	if s.Gloo.IdentityToken.Mode != mesh.TokenNone {
		all = append(all, permission{verbs: "get create patch", resource: "secrets", namespace: ns, names: []string{s.Gloo.IdentityToken.SecretName}})
	}
	if withoutCertManager && s.CertManager.Install != mesh.InstallNever {
		all = append(all, charts(kube.CertManagerNamespace)...)
		all = append(all,
			permission{verbs: "escalate bind", group: rbac, resource: "clusterroles", names: []string{"cert-manager-controller-issuers"}},
			permission{verbs: "create patch", group: rbac, resource: "clusterrolebindings", names: []string{"cert-manager-controller-issuers"}},
			permission{verbs: "escalate bind", group: rbac, resource: "roles", namespace: "kube-system", names: []string{"cert-manager:leaderelection"}},
			permission{verbs: "create patch", group: "admissionregistration.k8s.io", resource: "validatingwebhookconfigurations", names: []string{"cert-manager-webhook"}},
		)
	}
	if in.management && s.Vault.Install != mesh.VaultExisting {
		const vault = "vault"
		all = append(all,
			permission{verbs: "get list create update", resource: "secrets", namespace: vault}, // Helm's releases
			permission{verbs: "get create patch", resource: "namespaces", names: []string{vault}},
			permission{verbs: "get create patch", resource: "serviceaccounts", namespace: vault},
			permission{verbs: "get create patch", resource: "services", namespace: vault},
			permission{verbs: "get create patch", resource: "configmaps", namespace: vault},
			permission{verbs: "get create patch", group: "apps", resource: "statefulsets", namespace: vault},
			permission{verbs: "get create patch", group: rbac, resource: "clusterrolebindings", names: []string{"vault-server-binding"}},
			permission{verbs: "bind", group: rbac, resource: "clusterroles", names: []string{"system:auth-delegator"}},
		)
	}
	if s.Gloo.Install == nil || *s.Gloo.Install {
		all = append(all, charts(ns)...)
	}
	return all
}

// restarted are the Deployments that a rotation restarts.
func restarted(in checkInput) []string {
	if in.management {
		if in.spec.Management.Reload == mesh.ReloadRestart {
			return []string{mesh.ServerDeployment}
		}
		return nil
	}
	if w, ok := in.spec.Workload(in.workload); ok && w.Agent.Reload == mesh.ReloadRestart {
		return []string{mesh.AgentDeployment}
	}
	return nil
}

// charts are the permissions that any chart in a namespace needs.
func charts(namespace string) []permission {
	return []permission{
		{verbs: "get list create update", resource: "secrets", namespace: namespace}, // Helm's releases
		{verbs: "get create patch", resource: "serviceaccounts", namespace: namespace},
		{verbs: "get create patch", resource: "services", namespace: namespace},
		{verbs: "get create patch", resource: "configmaps", namespace: namespace},
		{verbs: "get create patch", group: "apps", resource: "deployments", namespace: namespace},
		{verbs: "get create patch", group: "apiextensions.k8s.io", resource: "customresourcedefinitions"},
	}
}

// deniedTo says which permissions are not given, in the words "patch secrets
// relay-root-tls-secret in namespace gloo-mesh". A namespace's are asked for in
// one question, where its answer is the whole truth; what it does not give, and
// all that is of no namespace, is asked for one by one.
func deniedTo(ctx context.Context, c *site.Cluster, asked []permission) ([]string, error) {
	rules := map[string][]rbacv1.PolicyRule{}
	reviews := map[string]authorization.SelfSubjectAccessReviewSpec{}
	for _, p := range asked {
		given, known := rules[p.namespace]
		if !known && p.namespace != corev1.NamespaceAll {
			var err error
			if given, err = rulesIn(ctx, c, p.namespace); err != nil {
				return nil, err
			}
			rules[p.namespace] = given
		}
		for _, verb := range strings.Fields(p.verbs) {
			names := p.names
			if len(names) == 0 {
				names = []string{""}
			}
			for _, name := range names {
				text, spec := p.review(verb, name)
				if covered, _ := validation.Covers(given, []rbacv1.PolicyRule{p.rule(verb, name)}); !covered {
					reviews[text] = spec
				}
			}
		}
	}
	texts := slices.Sorted(maps.Keys(reviews))
	allowed := make([]bool, len(texts))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(10)
	for i, text := range texts {
		group.Go(func() error {
			answer, err := c.Kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx,
				&authorization.SelfSubjectAccessReview{Spec: reviews[text]}, metav1.CreateOptions{})
			if err != nil {
				return kube.Error(ctx, c, "ask for the worker's permissions", err)
			}
			allowed[i] = answer.Status.Allowed
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var missing []string
	for i, text := range texts {
		if !allowed[i] {
			missing = append(missing, text)
		}
	}
	return missing, nil
}

// rulesIn are the rules that give the worker its permissions in a namespace;
// none where it may not ask for them, or the API server has an authorizer that
// cannot list them all, such as a cloud's webhook.
func rulesIn(ctx context.Context, c *site.Cluster, namespace string) ([]rbacv1.PolicyRule, error) {
	review, err := c.Kube.AuthorizationV1().SelfSubjectRulesReviews().Create(ctx,
		&authorization.SelfSubjectRulesReview{Spec: authorization.SelfSubjectRulesReviewSpec{Namespace: namespace}}, metav1.CreateOptions{})
	if apierrors.IsForbidden(err) {
		return nil, nil
	}
	if err != nil {
		return nil, kube.Error(ctx, c, "ask for the worker's permissions", err)
	}
	if review.Status.Incomplete {
		return nil, nil
	}
	var rules []rbacv1.PolicyRule
	for _, r := range review.Status.ResourceRules {
		rules = append(rules, rbacv1.PolicyRule{Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames})
	}
	return rules, nil
}

// rule is the rule that gives no more than this.
func (p permission) rule(verb, name string) rbacv1.PolicyRule {
	if p.path != "" {
		return rbacv1.PolicyRule{Verbs: []string{verb}, NonResourceURLs: []string{p.path}}
	}
	rule := rbacv1.PolicyRule{Verbs: []string{verb}, APIGroups: []string{p.group}, Resources: []string{p.resource}}
	if name != "" {
		rule.ResourceNames = []string{name}
	}
	return rule
}

func (p permission) review(verb, name string) (string, authorization.SelfSubjectAccessReviewSpec) {
	if p.path != "" {
		return verb + " " + p.path, authorization.SelfSubjectAccessReviewSpec{
			NonResourceAttributes: &authorization.NonResourceAttributes{Verb: verb, Path: p.path},
		}
	}
	resource, subresource, _ := strings.Cut(p.resource, "/")
	text := verb + " " + p.resource
	if p.group != "" && p.group != "apps" {
		text += "." + p.group
	}
	if name != "" {
		text += " " + name
	}
	if p.namespace != corev1.NamespaceAll {
		text += " in namespace " + p.namespace
	}
	return text, authorization.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorization.ResourceAttributes{
		Verb: verb, Group: p.group, Resource: resource, Subresource: subresource, Namespace: p.namespace, Name: name,
	}}
}
