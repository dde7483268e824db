package e2e

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/procedure"
)

// The vendor's guide, as far as it can be followed without giving its clusters
// root: Vault in the management cluster in dev mode, one role and one name for
// all, a token in a Secret. The same with a Vault that an operator initialises
// and unseals.
func TestGuidesWay(t *testing.T) {
	for _, test := range []struct{ install, values string }{
		{"dev", "{}"},
		// Volume claims of a simulated cluster never bind.
		{"standalone", "{server: {dataStorage: {enabled: false}}}"},
	} {
		t.Run(test.install, func(t *testing.T) {
			w := labWorld(t, "cluster1")
			w.startWorker(t, filepath.Join(repository, "bin", "relaypki-worker"))
			input := filepath.Join(t.TempDir(), "mesh.yaml")
			if err := os.WriteFile(input, fmt.Appendf(nil, `mesh: guide
workloads: [{name: cluster1}]
vault: {name: incluster, install: %s, values: %s}
pki: {isolation: shared}
credential: {method: token}
gloo: {identityToken: {mode: none}}
verify: {every: 0s}
`, test.install, test.values), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, errOut, code := w.relaypki(t, "setup", "-f", input, "--detach"); code != 0 {
				t.Fatalf("relaypki setup --detach: exit code %d\n%s%s", code, out, errOut)
			}
			root := w.installedVault(t)
			if test.install == "standalone" {
				w.awaitsOperator(t, "setup-guide", "is not initialised")
				initialise(t, root)
			} else {
				root.SetToken("root") // the chart's default in dev mode
			}
			w.awaitsOperator(t, "setup-guide", "Correct the site file or put the file there")
			w.admitWorker(t, root)

			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			var result procedure.SetupResult
			if err := w.temporal(t).GetWorkflow(ctx, "setup-guide", "").Get(ctx, &result); err != nil {
				t.Fatal(err)
			}
			if result.Verification == nil || !result.Verification.Healthy {
				t.Errorf("the mesh is not healthy: %+v", result.Verification)
			}
			w.asInTheGuide(t, root)
			if again := w.setup(t, input); again.Changed {
				t.Errorf("the same setup again changed something: %+v", again.Steps)
			}
			w.noSecrets(t)
		})
	}
}

// awaitsOperator waits until a run says that it waits for somebody to prepare
// Vault, and the activity that waits says what is still in the way.
func (w *world) awaitsOperator(t *testing.T, id, inTheWay string) {
	t.Helper()
	c := w.temporal(t)
	eventually(t, 3*time.Minute, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		answer, err := c.QueryWorkflow(ctx, id, "", procedure.ProgressQuery)
		if err != nil {
			return err
		}
		var p procedure.Progress
		if err := answer.Get(&p); err != nil {
			return err
		}
		if p.Ended {
			t.Fatalf("the run ended before an operator did anything: %s", p.Problem)
		}
		for _, words := range []string{`Vault "incluster" to be initialised and unsealed`, "vault operator init", "deploy/vault"} {
			if !strings.Contains(p.Awaiting, words) {
				return fmt.Errorf("in phase %q it awaits %q, not %q", p.Phase, p.Awaiting, words)
			}
		}
		described, err := c.DescribeWorkflowExecution(ctx, id, "")
		if err != nil {
			return err
		}
		said := ""
		for _, a := range described.PendingActivities {
			if a.ActivityType.Name == "AwaitVault" {
				said += textOf(a.HeartbeatDetails)
			}
		}
		if !strings.Contains(said, inTheWay) {
			return fmt.Errorf("AwaitVault says %q, not %q", said, inTheWay)
		}
		return nil
	})
}

// installedVault is a client, without a token, of the Vault in the management
// cluster, at the address of its Service.
func (w *world) installedVault(t *testing.T) *vaultapi.Client {
	t.Helper()
	kube := w.cluster(t, management).kube
	config := vaultapi.DefaultConfig()
	eventually(t, 3*time.Minute, func() error {
		service, err := kube.CoreV1().Services("vault").Get(t.Context(), "vault", metav1.GetOptions{})
		if err != nil {
			return err
		}
		ingress := service.Status.LoadBalancer.Ingress
		if len(ingress) == 0 {
			return fmt.Errorf("Service vault/vault has no address")
		}
		config.Address = "http://" + ingress[0].IP + ":8200"
		client, err := vaultapi.NewClient(config)
		if err == nil {
			_, err = client.Sys().HealthWithContext(t.Context())
		}
		return err
	})
	client, err := vaultapi.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	client.ClearToken()
	return client
}

// initialise does what an operator does with a new Vault, and keeps the keys.
func initialise(t *testing.T, v *vaultapi.Client) {
	t.Helper()
	health, err := v.Sys().Health()
	if err != nil {
		t.Fatal(err)
	}
	if health.Initialized || !health.Sealed {
		t.Fatalf("a new Vault is initialised %v, sealed %v", health.Initialized, health.Sealed)
	}
	keys, err := v.Sys().Init(&vaultapi.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		t.Fatal(err)
	}
	if status, err := v.Sys().Unseal(keys.Keys[0]); err != nil || status.Sealed {
		t.Fatalf("unsealing: %v, %+v", err, status)
	}
	v.SetToken(keys.RootToken)
}

// admitWorker writes the worker's policies and gives it a token for each, as
// deploy/vault says.
func (w *world) admitWorker(t *testing.T, v *vaultapi.Client) {
	t.Helper()
	directory := filepath.Join(w.dir, "worker", "incluster")
	if err := os.MkdirAll(directory, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, identity := range []string{"onboard", "operate", "refresh"} {
		rules, err := os.ReadFile(filepath.Join(repository, "deploy", "vault", "policies", identity+".hcl"))
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Sys().PutPolicy("relaypki-"+identity, string(rules)); err != nil {
			t.Fatal(err)
		}
		token, err := v.Auth().Token().CreateOrphan(&vaultapi.TokenCreateRequest{
			Policies: []string{"relaypki-" + identity}, NoDefaultPolicy: true, Period: "24h",
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(directory, identity+".token"), []byte(token.Auth.ClientToken), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// asInTheGuide fails the test unless everything has the guide's names, and
// the clusters' tokens, unlike the guide's, may only sign.
func (w *world) asInTheGuide(t *testing.T, root *vaultapi.Client) {
	t.Helper()
	issuers, err := root.Logical().Read("pki/issuer/default")
	if err != nil || issuers == nil {
		t.Fatalf("the root: %v", err)
	}
	ca := certificate(t, []byte(issuers.Data["certificate"].(string)))
	if life := ca.NotAfter.Sub(ca.NotBefore).Round(time.Hour); life != 187600*time.Hour {
		t.Errorf("the root lives %s, want 187600h", life)
	}
	for name, secretName := range map[string]string{management: "relay-server-tls-secret", "cluster1": "relay-client-tls-secret"} {
		kube := w.cluster(t, name).kube
		secret, err := kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), secretName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if cn := certificate(t, secret.Data["tls.crt"]).Subject.CommonName; cn != "gloo-mesh-mgmt-server-ca" {
			t.Errorf("%s: the common name in %s is %q, not the guide's", name, secretName, cn)
		}
		if !certificate(t, secret.Data["ca.crt"]).Equal(ca) {
			t.Errorf("%s: ca.crt in %s is not the root", name, secretName)
		}
		holder, err := kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), "vault-token", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		mayOnlySign(t, root, name, string(holder.Data["token"]))
	}
}

func mayOnlySign(t *testing.T, root *vaultapi.Client, cluster, token string) {
	t.Helper()
	v, err := root.Clone()
	if err != nil {
		t.Fatal(err)
	}
	v.SetToken(token)
	self, err := v.Auth().Token().LookupSelf()
	if err != nil {
		t.Fatalf("%s: the token in vault-token: %v", cluster, err)
	}
	policies, err := self.TokenPolicies()
	if want := []string{"relaypki-guide-" + cluster}; err != nil || !slices.Equal(policies, want) {
		t.Errorf("%s: the token has policies %q, want %q (%v)", cluster, policies, want, err)
	}
	// The period is in the role that the token was made by; a renewal gives it.
	role, err := root.Logical().Read(fmt.Sprintf("auth/token/roles/%s", self.Data["role"]))
	if err != nil || role == nil {
		t.Fatalf("%s: the token's role %v: %v", cluster, self.Data["role"], err)
	}
	const period = 72 * 60 * 60
	renewed, err := v.Auth().Token().RenewSelf(0)
	if err != nil {
		t.Fatalf("%s: the token does not renew itself: %v", cluster, err)
	}
	if self.Data["orphan"] != true || fmt.Sprint(role.Data["token_period"]) != fmt.Sprint(period) || renewed.Auth.LeaseDuration != period {
		t.Errorf("%s: the token is orphan %v, its role has period %v, renewed it lives %d s; want true and %d s",
			cluster, self.Data["orphan"], role.Data["token_period"], renewed.Auth.LeaseDuration, period)
	}
	for path, want := range map[string][]string{
		"pki_relay/sign/gloo-mesh-mgmt-server-ca":  {"update"},
		"pki_relay/issue/gloo-mesh-mgmt-server-ca": {"deny"},
		"pki/root/sign-intermediate":               {"deny"},
		"auth/token/create":                        {"deny"},
	} {
		if got, err := root.Sys().Capabilities(token, path); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: the token may %q at %s, want %q (%v)", cluster, got, path, want, err)
		}
	}
	if mounts, err := v.Sys().ListMounts(); err == nil {
		t.Errorf("%s: the token reads sys/mounts: %d of them", cluster, len(mounts))
	}
}

// certificate is the first one in PEM data.
func certificate(t *testing.T, data []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatal("there is no certificate")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
