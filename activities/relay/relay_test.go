package relay_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.temporal.io/sdk/testsuite"
	"go.uber.org/zap"

	"github.com/relaypki/relaypki/activities/relay"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
	"github.com/relaypki/relaypki/internal/vaulttest"
)

// world is a real Vault, set up by the setup's own activities and looked at
// with the identities and policies that we ship, and clusters in which there is
// nothing but an API server and its token keys.
type world struct {
	vault   *vaulttest.Server
	clients *site.Clients
	spec    mesh.Spec
	relayID string
	env     *testsuite.TestActivityEnvironment
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{vault: vaulttest.Start(t)}
	w.spec = mesh.Spec{Mesh: "prod", Workloads: []mesh.Workload{{Name: "cluster1"}, {Name: "cluster2", Context: "down"}}}
	w.spec.PKI.Root.KeyType, w.spec.PKI.Intermediate.KeyType = "ec", "ec"
	w.spec = w.spec.WithDefaults()

	logins := map[site.Identity]site.Login{}
	for _, identity := range []site.Identity{site.Onboard, site.Operate, site.Refresh} {
		policy, err := os.ReadFile(filepath.Join("..", "..", "deploy", "vault", "policies", string(identity)+".hcl"))
		if err != nil {
			t.Fatal(err)
		}
		roleID, secretID := w.vault.AppRole(t, "relaypki-"+string(identity), string(policy), nil)
		logins[identity] = site.Login{Method: "approle", Mount: "approle", RoleIDFile: roleID, SecretIDFile: secretID}
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	w.clients = site.NewClients(site.Config{
		Kubeconfig: kubeconfig(t, apiServer(t, &key.PublicKey)),
		Clusters:   []site.ClusterConfig{{Name: "mgmt", Context: "up"}, {Name: "cluster1", Context: "up"}, {Name: "down", Context: "down"}},
		Vaults:     []site.VaultConfig{{Name: "default", Address: w.vault.Address, ClusterAddress: w.vault.Address, CAFile: w.vault.CAFile, Identities: logins}},
	}, zap.NewNop())
	w.setup(t, &key.PublicKey)

	var suite testsuite.WorkflowTestSuite
	w.env = suite.NewTestActivityEnvironment()
	w.env.RegisterActivity(&relay.Activities{Clients: w.clients})
	return w
}

// apiServer is a cluster without any object.
func apiServer(t *testing.T, key *rsa.PublicKey) string {
	t.Helper()
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key, KeyID: "k1", Algorithm: "RS256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/version":
			fmt.Fprint(w, `{"gitVersion":"v1.37.2"}`)
		case "/openid/v1/jwks":
			_, _ = w.Write(keys)
		case "/apis/apps/v1/deployments":
			fmt.Fprint(w, `{"kind":"DeploymentList","apiVersion":"apps/v1","items":[]}`)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,"message":"not found"}`)
		}
	}))
	t.Cleanup(api.Close)
	return api.URL
}

func kubeconfig(t *testing.T, up string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- {name: up, cluster: {server: %q}}
- {name: down, cluster: {server: "http://127.0.0.1:1"}}
contexts:
- {name: up, context: {cluster: up}}
- {name: down, context: {cluster: down}}
`, up)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func (w *world) setup(t *testing.T, key *rsa.PublicKey) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, s, a := t.Context(), w.spec, vault.Activities{Clients: w.clients}
	for mount, ttl := range map[string]mesh.Duration{s.Vault.RootMount: s.PKI.Root.TTL, s.Vault.RelayMount: s.PKI.Intermediate.TTL} {
		_, err := a.EnablePKI(ctx, vault.EnablePKIInput{Vault: s.Vault.Name, Mount: mount, MaxLeaseTTL: ttl, Mode: procedure.Apply})
		must(err)
	}
	root, err := a.GenerateRoot(ctx, vault.GenerateRootInput{Vault: s.Vault.Name, Mount: s.Vault.RootMount, Generation: 1, CA: s.PKI.Root.CA, Mode: procedure.Apply})
	must(err)
	in := vault.IntermediateInput{Vault: s.Vault.Name, RootMount: s.Vault.RootMount, RelayMount: s.Vault.RelayMount,
		RootIssuerID: root.Authority.IssuerID, RootPEM: root.CertificatePEM, Generation: 1, CA: s.PKI.Intermediate, Mode: procedure.Apply}
	csr, err := a.GenerateIntermediateCSR(ctx, in)
	must(err)
	in.CSRPEM = csr.CSRPEM
	signed, err := a.SignIntermediate(ctx, in)
	must(err)
	in.ChainPEM = signed.ChainPEM
	intermediate, err := a.SetSignedIntermediate(ctx, in)
	must(err)
	w.relayID = intermediate.Authority.IssuerID
	_, err = a.ConfigureRoles(ctx, vault.ConfigureRolesInput{Spec: s, IssuerID: w.relayID, Mode: procedure.Apply})
	must(err)
	der, err := x509.MarshalPKIXPublicKey(key)
	must(err)
	pinned := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	for _, c := range []struct{ context, workload string }{{"mgmt", ""}, {"cluster1", "cluster1"}, {"down", "cluster2"}} {
		_, err = a.EnableClusterAccess(ctx, vault.ClusterAccessInput{Spec: s, Context: c.context, Workload: c.workload, IssuerID: w.relayID,
			Issuer: "https://" + c.context + ".example:6443", KeysPEM: []string{pinned}, Mode: procedure.Apply})
		must(err)
	}
}

func (w *world) management(t *testing.T, settle time.Duration) []check.Finding {
	t.Helper()
	return w.verifyManagement(t, relay.VerifyManagementInput{Spec: w.spec, Settle: mesh.Duration{Duration: settle}})
}

func (w *world) verifyManagement(t *testing.T, in relay.VerifyManagementInput) []check.Finding {
	t.Helper()
	var a *relay.Activities
	value, err := w.env.ExecuteActivity(a.VerifyManagement, in)
	if err != nil {
		t.Fatal(err)
	}
	var out relay.VerifyManagementResult
	if err := value.Get(&out); err != nil {
		t.Fatal(err)
	}
	return out.Findings
}

func (w *world) cluster(t *testing.T, name string) []check.Finding {
	t.Helper()
	return w.verifyCluster(t, relay.VerifyClusterInput{Spec: w.spec, Cluster: name})
}

func (w *world) verifyCluster(t *testing.T, in relay.VerifyClusterInput) []check.Finding {
	t.Helper()
	var a *relay.Activities
	value, err := w.env.ExecuteActivity(a.VerifyCluster, in)
	if err != nil {
		t.Fatal(err)
	}
	var out relay.VerifyClusterResult
	if err := value.Get(&out); err != nil {
		t.Fatal(err)
	}
	return out.Findings
}

// expect wants one finding of that check, of that status, with these words.
func expect(t *testing.T, findings []check.Finding, name string, status check.Status, words string) {
	t.Helper()
	if !slices.ContainsFunc(findings, func(f check.Finding) bool {
		return f.Check == name && f.Status == status && strings.Contains(f.Message+" "+f.Remedy, words)
	}) {
		t.Errorf("no %s of %s with %q", status, name, words)
		for _, f := range findings {
			if f.Check == name {
				t.Logf("%s: %s -> %s", f.Status, f.Message, f.Remedy)
			}
		}
	}
}

var ofVault = []string{check.VaultAvailable, check.VaultRoot, check.VaultIntermediate, check.VaultRole, check.PinnedKeys}

func TestVaultAsSetUp(t *testing.T) {
	w := newWorld(t)
	seen := w.management(t, 0)
	for _, name := range ofVault {
		expect(t, seen, name, check.Pass, "")
	}
	for _, f := range seen {
		if slices.Contains(ofVault, f.Check) && f.Status != check.Pass {
			t.Errorf("%s of %s: %s", f.Status, f.Check, f.Message)
		}
	}
	// The guide's first known failures, in a cluster in which nothing is.
	expect(t, seen, check.CertificateSecret, check.Fail, "relay-server-tls-secret is missing")
	expect(t, seen, check.CertManager, check.Fail, "is missing")
	expect(t, seen, check.AgentsConnected, check.Fail, "no Pod of the management server")

	seen = w.cluster(t, "cluster1")
	expect(t, seen, check.PinnedKeys, check.Pass, "1 keys")
	expect(t, seen, check.AgentTrust, check.Fail, "relay-root-tls-secret is missing")
	expect(t, seen, check.Handshake, check.Fail, "no readable client certificate")

	// A cluster that does not answer is a finding of its own and no error, so
	// that the verification goes on with the others.
	seen = w.cluster(t, "cluster2")
	expect(t, seen, check.ClusterReachable, check.Fail, "connection refused")
	if len(seen) != 1 {
		t.Errorf("%d findings on a cluster that was not seen", len(seen))
	}
}

func TestVaultDrift(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	write := func(path string, data map[string]any) {
		t.Helper()
		if _, err := w.vault.Root.Logical().WriteWithContext(ctx, path, data); err != nil {
			t.Fatal(err)
		}
	}
	patch := func(path string, data map[string]any) {
		t.Helper()
		if _, err := w.vault.Root.Logical().JSONMergePatch(ctx, path, data); err != nil {
			t.Fatal(err)
		}
	}

	patch("pki_relay/issuer/"+w.relayID, map[string]any{"leaf_not_after_behavior": "truncate"})
	expect(t, w.management(t, 0), check.VaultIntermediate, check.Fail, "ever shorter certificates")
	patch("pki_relay/issuer/"+w.relayID, map[string]any{"leaf_not_after_behavior": "err"})
	expect(t, w.management(t, 0), check.VaultIntermediate, check.Pass, "")

	patch("pki_relay/roles/relay-client-cluster1", map[string]any{"allow_any_name": true})
	expect(t, w.management(t, 0), check.VaultRole, check.Fail, "allows any name")
	patch("pki_relay/roles/relay-client-cluster1", map[string]any{"allow_any_name": false, "issuer_ref": "default"})
	expect(t, w.management(t, 0), check.VaultRole, check.Fail, "not by id")

	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&other.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	write("auth/"+w.spec.AuthMount("cluster1")+"/config", map[string]any{
		"bound_issuer":           "https://cluster1.example:6443",
		"jwt_validation_pubkeys": []string{string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))},
	})
	expect(t, w.cluster(t, "cluster1"), check.PinnedKeys, check.Fail, "1 of the cluster's 1 token keys are not pinned")

	if err := w.vault.Root.Sys().UnmountWithContext(ctx, "pki"); err != nil {
		t.Fatal(err)
	}
	expect(t, w.management(t, 0), check.VaultRoot, check.Fail, "mount pki is missing")

	if err := w.vault.Root.Sys().SealWithContext(ctx); err != nil {
		t.Fatal(err)
	}
	expect(t, w.management(t, 0), check.VaultAvailable, check.Fail, "vault operator unseal")
}

// TestSettleEnds: what does not settle becomes a finding once the patience is
// over.
func TestSettleEnds(t *testing.T) {
	w := newWorld(t)
	began := time.Now()
	seen := w.management(t, 1500*time.Millisecond)
	if waited := time.Since(began); waited < 1500*time.Millisecond {
		t.Errorf("looked once only, after %s", waited)
	}
	expect(t, seen, check.AgentsConnected, check.Fail, "")
}

func TestUnknownNames(t *testing.T) {
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	env.RegisterActivity(&relay.Activities{Clients: site.NewClients(site.Config{}, zap.NewNop())})
	var a *relay.Activities
	spec := mesh.Spec{Mesh: "prod", Workloads: []mesh.Workload{{Name: "cluster1"}}}
	_, management := env.ExecuteActivity(a.VerifyManagement, relay.VerifyManagementInput{Spec: spec})
	_, cluster := env.ExecuteActivity(a.VerifyCluster, relay.VerifyClusterInput{Spec: spec, Cluster: "cluster1"})
	_, other := env.ExecuteActivity(a.VerifyCluster, relay.VerifyClusterInput{Spec: spec, Cluster: "cluster9"})
	for _, err := range []error{management, cluster, other} {
		if failure.KindOf(err) != failure.InvalidInput {
			t.Errorf("%v", err)
		}
	}
}
