package vault

import (
	"context"
	"os"
	"strings"
	"time"

	authentication "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// TokenReviewInput names one cluster, for method kubernetes.
type TokenReviewInput struct {
	Spec    mesh.Spec `json:"spec"`
	Context string    `json:"context"`
	// Anew writes the reviewer's token also if the one in Vault works.
	Anew bool           `json:"anew,omitempty"`
	Mode procedure.Mode `json:"mode"`
}

// reviewerTokenAgain is when a Secret is looked at again into which the cluster
// writes the reviewer's token.
const reviewerTokenAgain = time.Second

// ConfigureTokenReview tells the cluster's kubernetes auth mount where to have
// tokens reviewed, and as whom: the ServiceAccount relaypki-reviewer, whose token
// goes from its Secret to Vault in this one activity. Without one of its own Vault
// would ask with the very token to be reviewed, which the API server refuses for
// its audience.
//
// The token is one that the cluster keeps in a Secret, not one of a TokenRequest:
// it may do nothing but have tokens reviewed, and one that ends would have to be
// renewed by whoever may then also say which server Vault asks.
//
// Vault gives no token back, so whether the right one is there is seen of a login.
func (a *Activities) ConfigureTokenReview(ctx context.Context, in TokenReviewInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	s, err := a.sessionFor(ctx, in.Mode, in.Spec.Vault.Name, site.Onboard)
	if err != nil {
		return out, err
	}
	cluster, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	desired, err := reviewServer(cluster)
	if err != nil {
		return out, err
	}
	path := "auth/" + in.Spec.AuthMount(in.Context) + "/config"
	object := "vault auth config " + path
	var have map[string]any
	found, err := s.read(ctx, path, &have)
	if err != nil {
		return out, err
	}
	differing := []string{"nothing is configured"}
	if found {
		differing = differences(desired, have)
	}
	if found && len(differing) == 0 {
		refused, err := a.tryLogin(ctx, in, cluster)
		switch {
		case err != nil, refused == "" && !in.Anew:
			return out, err
		case refused == "":
			differing = []string{"the reviewer's token, as was asked for"}
		default:
			differing = []string{"it refuses the cluster's Issuer (" + refused + ")"}
		}
	}
	verb := procedure.Update
	if !found {
		verb = procedure.Create
	}
	out.Changed(verb, object, strings.Join(differing, "; "))
	if !in.Mode.Writes() {
		token := kube.Kubectl(cluster, "-n", in.Spec.Namespace, "get", "secret", mesh.ReviewerName, "-o", "jsonpath={.data.token}")
		desired["token_reviewer_jwt"] = "$token"
		out.By(in.Mode, assign("token", token+" | base64 -d"), s.data("write", path, desired, "token"))
		return out, nil
	}
	token, err := reviewerToken(ctx, cluster, in.Spec.Namespace)
	if err != nil {
		return out, err
	}
	desired["token_reviewer_jwt"] = token
	if err := s.write(ctx, path, desired, nil); err != nil {
		return out, err
	}
	// It takes effect at once; if it does not let in, neither will it later.
	refused, err := a.tryLogin(ctx, in, cluster)
	if err == nil && refused != "" {
		err = failure.Transient(failure.Mismatch, "Vault %q: auth/%s still refuses a token of cluster %s (%s). See that Vault reaches the API server at %s; if that is not its address as seen from Vault, give addressForVault in the site file",
			s.vault, in.Spec.AuthMount(in.Context), in.Context, refused, desired["kubernetes_host"])
	}
	return out, err
}

// reviewServer is the API server as Vault reaches it.
func reviewServer(cluster *site.Cluster) (map[string]any, error) {
	host := cluster.Config.AddressForVault
	if host == "" {
		host = cluster.REST.Host
	}
	ca := cluster.REST.CAData
	if len(ca) == 0 && cluster.REST.CAFile != "" {
		var err error
		if ca, err = os.ReadFile(cluster.REST.CAFile); err != nil {
			return nil, failure.Permanent(failure.Preflight, "cluster %q: the CA file of its API server: %v", cluster.Name, err)
		}
	}
	return map[string]any{
		"kubernetes_host": host, "kubernetes_ca_cert": strings.TrimSpace(string(ca)),
		// Vault may run in some cluster: that one's token and CA are not meant.
		"disable_local_ca_jwt": true,
	}, nil
}

func reviewerToken(ctx context.Context, cluster *site.Cluster, namespace string) (string, error) {
	object := kube.Name("Secret", namespace, mesh.ReviewerName)
	secret, err := cluster.Kube.CoreV1().Secrets(namespace).Get(ctx, mesh.ReviewerName, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return "", kube.Error(ctx, cluster, "read "+object, err)
	}
	if err != nil || len(secret.Data[corev1.ServiceAccountTokenKey]) == 0 {
		return "", failure.Waiting(reviewerTokenAgain, "cluster %q: %s has no token yet; the cluster's controllers write it", cluster.Name, object)
	}
	return string(secret.Data[corev1.ServiceAccountTokenKey]), nil
}

// tryLogin logs in as the cluster's Issuer does, and says why that was refused.
// What it logs in for is not used, and ends within minutes.
func (a *Activities) tryLogin(ctx context.Context, in TokenReviewInput, cluster *site.Cluster) (refused string, err error) {
	seconds := int64(10 * time.Minute / time.Second)
	request, err := cluster.Kube.CoreV1().ServiceAccounts(in.Spec.Namespace).CreateToken(ctx, mesh.IssuerServiceAccount, &authentication.TokenRequest{
		Spec: authentication.TokenRequestSpec{Audiences: []string{issuerAudience(in.Spec)}, ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if apierrors.IsNotFound(err) {
		return "there is no ServiceAccount " + mesh.IssuerServiceAccount, nil
	}
	if err != nil {
		return "", kube.Error(ctx, cluster, "make a token of "+kube.Name("ServiceAccount", in.Spec.Namespace, mesh.IssuerServiceAccount), err)
	}
	client, err := a.Clients.VaultWithToken(ctx, in.Spec.Vault.Name, "")
	if err != nil {
		return "", err
	}
	path := "auth/" + in.Spec.AuthMount(in.Context) + "/login"
	_, err = client.Logical().WriteWithContext(ctx, path, map[string]any{"role": mesh.IssuerServiceAccount, "jwt": request.Status.Token})
	switch err := site.VaultError(err, in.Spec.Vault.Name, site.Onboard, "log in at "+path); {
	case err == nil:
		return "", nil
	case failure.IsPermanent(err), strings.Contains(failure.Message(err), "(500"):
		// 500: Vault does not reach the API server that it is told to ask.
		return "it does not let in", nil
	default:
		return "", err
	}
}

// issuerAudience is whom the tokens of the cluster's Issuer are for.
func issuerAudience(spec mesh.Spec) string {
	return "vault://" + spec.Namespace + "/" + mesh.IssuerName
}

// ensureReviewRole lets in exactly one ServiceAccount with a token for exactly
// this Issuer (method kubernetes).
func (s session) ensureReviewRole(ctx context.Context, in ClusterAccessInput, out *procedure.Outcome) error {
	path := loginRole(in.Spec, in.Context)
	return s.ensure(ctx, in.Mode, out, "vault auth role "+path, path, loggingIn(in, map[string]any{
		"bound_service_account_names":      []string{mesh.IssuerServiceAccount},
		"bound_service_account_namespaces": []string{in.Spec.Namespace},
		"audience":                         issuerAudience(in.Spec),
		"alias_name_source":                "serviceaccount_uid",
	}))
}
