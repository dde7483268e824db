package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/shell"
	"github.com/relaypki/relaypki/internal/site"
)

// EnsureNamespace creates the namespace where it is missing.
func (a *Activities) EnsureNamespace(ctx context.Context, in NamespaceInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	err = kube.EnsureNamespace(ctx, c, in.Namespace, in.Mode, &out)
	return out, err
}

// CopyRootSecret writes the agents' trust, Secret relay-root-tls-secret key ca.crt.
func (a *Activities) CopyRootSecret(ctx context.Context, in CopyRootSecretInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	if in.Mode == procedure.Plan && (in.RootPEM == "" || in.AddPrintedBy != "") {
		return a.planRootSecret(ctx, c, in)
	}
	if problem := certificatesOnly(in.RootPEM); problem != "" {
		return out, failure.Permanent(failure.InvalidInput, "the root to copy to cluster %q %s", in.Context, problem)
	}
	err = applySecret(ctx, c, in.Namespace, mesh.RootSecretName, in.Mesh, map[string][]byte{rootKey: []byte(in.RootPEM)}, in.Mode, &out)
	return out, err
}

// planRootSecret is for roots that are still to be made: the one at work comes with
// the cluster's own certificate.
func (a *Activities) planRootSecret(ctx context.Context, c *site.Cluster, in CopyRootSecretInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	live, err := kube.Get(ctx, c, "Secret", in.Namespace, mesh.RootSecretName)
	if err != nil {
		return out, err
	}
	verb := procedure.Create
	if live != nil {
		verb = procedure.Update
	}
	detail := "the root, once it is there"
	if in.AddPrintedBy != "" {
		detail = "with the root that stands by, once it is there"
	}
	out.Changed(verb, kube.Name("Secret", in.Namespace, mesh.RootSecretName), detail)
	out.By(in.Mode, rootCommands(c, in)...)
	return out, nil
}

// rootCommands make the trust by hand once the roots are there that are still to be
// made.
func rootCommands(c *site.Cluster, in CopyRootSecretInput) []string {
	encoded := kube.Kubectl(c, "-n", in.Namespace, "get", "secret", in.ClientSecret, "-o", `jsonpath={.data.ca\.crt}`)
	if in.AddPrintedBy != "" {
		root := encoded + " | base64 -d"
		if in.RootPEM != "" {
			root = "printf %s " + shell.Quote(in.RootPEM)
		}
		encoded = withPrinted(root, in.AddPrintedBy)
	}
	return kube.SecretCommands(c, in.Mesh, in.Namespace, mesh.RootSecretName, rootKey, encoded)
}

// withPrinted is a command that prints, in base64, what one command prints and after
// it the certificate that another does. It is written as the setup writes it: each
// certificate ends with its line.
func withPrinted(first, printedBy string) string {
	printed := `printf '%s\n' "$(` + printedBy + `)"`
	if first != "" {
		printed = "{ " + first + "; " + printed + "; }"
	}
	return printed + ` | base64 | tr -d '\n'`
}

// rootKey is the key of the agents' trust.
const rootKey = "ca.crt"

// certificatesOnly says what is wrong with a PEM text that is to hold
// certificates and nothing else; a private key must never be copied along.
func certificatesOnly(text string) string {
	found := 0
	for rest := []byte(text); ; found++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return "holds a " + block.Type + " beside certificates"
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "holds a certificate that cannot be read"
		}
	}
	if found == 0 {
		return "holds no certificate"
	}
	return ""
}

func applySecret(ctx context.Context, c *site.Cluster, namespace, name, meshName string, data map[string][]byte, mode procedure.Mode, out *procedure.Outcome) error {
	want, err := kube.Unstructured(&corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: kube.Labels(meshName)},
		Type:       corev1.SecretTypeOpaque,
		Data:       data,
	})
	if err != nil {
		return err
	}
	_, err = kube.Apply(ctx, c, want, mode, out)
	return err
}

// CopyIdentityToken makes the identity token in the management cluster, or
// copies it from there to the given cluster, inside this one activity.
func (a *Activities) CopyIdentityToken(ctx context.Context, in IdentityTokenInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	s, token := in.Spec, in.Spec.Gloo.IdentityToken
	if token.Mode == mesh.TokenNone {
		out.Detail = "not used"
		return out, nil
	}
	management, err := a.Clients.Cluster(s.Management.Context)
	if err != nil {
		return out, err
	}
	value, err := readToken(ctx, management, s.Management.Namespace, token)
	if err != nil {
		return out, err
	}
	if in.Context == s.Management.Context {
		switch {
		case len(value) > 0:
			return out, nil
		case token.Mode == mesh.TokenExisting:
			return out, failure.Permanent(failure.Preflight, "cluster %q: %s with key %q is missing, which gloo.identityToken names. Create it, or set gloo.identityToken.mode to %q or %q",
				management.Name, kube.Name("Secret", s.Management.Namespace, token.SecretName), token.Key, mesh.TokenGenerate, mesh.TokenNone)
		}
		if !in.Mode.Writes() {
			out.Changed(procedure.Create, kube.Name("Secret", s.Management.Namespace, token.SecretName), "a random token")
			out.By(in.Mode, kube.SecretCommands(management, s.Mesh, s.Management.Namespace, token.SecretName, token.Key, kube.Encoded("openssl rand -hex 32"))...)
			return out, nil
		}
		if value, err = newToken(); err != nil {
			return out, err
		}
		err = applySecret(ctx, management, s.Management.Namespace, token.SecretName, s.Mesh, map[string][]byte{token.Key: value}, in.Mode, &out)
		return out, err
	}
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	have, err := readToken(ctx, c, s.Namespace, token)
	if err != nil {
		return out, err
	}
	if len(value) > 0 && bytes.Equal(have, value) {
		return out, nil // whoever has put it there
	}
	copied := kube.SecretCommands(c, s.Mesh, s.Namespace, token.SecretName, token.Key,
		kube.Kubectl(management, "-n", s.Management.Namespace, "get", "secret", token.SecretName, "-o", "jsonpath={.data."+strings.ReplaceAll(token.Key, ".", `\.`)+"}"))
	if len(value) == 0 {
		if !in.Mode.Writes() {
			out.Changed(procedure.Create, kube.Name("Secret", s.Namespace, token.SecretName), "once there is one in the management cluster")
			out.By(in.Mode, copied...)
			return out, nil
		}
		return out, failure.Waiting(2*time.Second, "cluster %q: %s with key %q, the identity token to copy, is not there yet",
			management.Name, kube.Name("Secret", s.Management.Namespace, token.SecretName), token.Key)
	}
	if err := applySecret(ctx, c, s.Namespace, token.SecretName, s.Mesh, map[string][]byte{token.Key: value}, in.Mode, &out); err != nil {
		return out, err
	}
	if len(out.Changes) > 0 {
		out.By(in.Mode, copied...)
	}
	return out, nil
}

func readToken(ctx context.Context, c *site.Cluster, namespace string, token mesh.IdentityToken) ([]byte, error) {
	live, err := kube.Get(ctx, c, "Secret", namespace, token.SecretName)
	if err != nil || live == nil {
		return nil, err
	}
	var secret corev1.Secret
	if err := kube.Into(live, &secret); err != nil {
		return nil, err
	}
	return secret.Data[token.Key], nil
}

// newToken is 32 random bytes in hex.
func newToken() ([]byte, error) {
	random := make([]byte, 32)
	if _, err := rand.Read(random); err != nil {
		return nil, failure.Transient(failure.Unavailable, "no random bytes: %v", err)
	}
	return []byte(hex.EncodeToString(random)), nil
}
