package vault_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
	"github.com/relaypki/relaypki/internal/vaulttest"
)

// world is a real Vault with the worker's three identities under the policies
// that we ship, seen through a proxy that counts writes and can cut one off
// after it went through.
type world struct {
	*vaulttest.Server
	proxy *proxy
	vault.Activities
	site site.Config
	spec mesh.Spec
	keys map[string]*tokenIssuer
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return worldUnder(t, vaulttest.Start(t), func(policy string) string { return policy })
}

func worldOf(t *testing.T, server *vaulttest.Server) *world {
	t.Helper()
	return worldUnder(t, server, func(policy string) string { return policy })
}

// worldUnder is worldOf with the shipped policies changed.
func worldUnder(t *testing.T, server *vaulttest.Server, change func(policy string) string) *world {
	t.Helper()
	proxy, caFile := newProxy(t, server)
	logins := map[site.Identity]site.Login{}
	for _, identity := range []site.Identity{site.Onboard, site.Operate, site.Refresh} {
		policy, err := os.ReadFile(filepath.Join("..", "..", "deploy", "vault", "policies", string(identity)+".hcl"))
		if err != nil {
			t.Fatal(err)
		}
		roleID, secretID := server.AppRole(t, "relaypki-"+string(identity), change(string(policy)), nil)
		logins[identity] = site.Login{Method: "approle", Mount: "approle", RoleIDFile: roleID, SecretIDFile: secretID}
	}
	w := &world{Server: server, proxy: proxy, spec: spec(), keys: map[string]*tokenIssuer{}}
	w.site = site.Config{Clusters: []site.ClusterConfig{{Name: "mgmt"}, {Name: "cluster1"}, {Name: "cluster2"}}, Vaults: []site.VaultConfig{{Name: "default", Address: proxy.url, ClusterAddress: server.Address, CAFile: caFile, Identities: logins}}}
	w.Activities = vault.Activities{Clients: site.NewClients(w.site, zap.NewNop())}
	return w
}

// spec is the guide's mesh, with elliptic keys in the CAs to save the time that
// RSA takes.
func spec() mesh.Spec {
	s := mesh.Spec{Mesh: "prod", Workloads: []mesh.Workload{{Name: "cluster1"}, {Name: "cluster2"}}}
	s.PKI.Root.KeyType, s.PKI.Intermediate.KeyType = "ec", "ec"
	return s.WithDefaults()
}

// done is what a run of all the steps of a setup has given.
type done struct {
	root, relay vault.CAResult
	standby     vault.CAResult
	access      map[string]vault.ClusterAccessResult
	changes     []procedure.Change
}

func (d done) changed() []string {
	var out []string
	for _, c := range d.changes {
		out = append(out, string(c.Verb)+" "+c.Object)
	}
	return out
}

// setup runs the activities as SetupMesh does.
func (w *world) setup(ctx context.Context, mode procedure.Mode) (done, error) {
	d := done{access: map[string]vault.ClusterAccessResult{}}
	note := func(out procedure.Outcome) { d.changes = append(d.changes, out.Changes...) }
	s := w.spec
	for mount, ttl := range map[string]mesh.Duration{s.Vault.RootMount: s.PKI.Root.TTL, s.Vault.RelayMount: s.PKI.Intermediate.TTL} {
		out, err := w.EnablePKI(ctx, vault.EnablePKIInput{Mesh: s.Mesh, Vault: s.Vault.Name, Mount: mount, MaxLeaseTTL: ttl, Mode: mode})
		if err != nil {
			return d, err
		}
		note(out)
	}
	var err error
	if d.root, err = w.GenerateRoot(ctx, vault.GenerateRootInput{Vault: s.Vault.Name, Mount: s.Vault.RootMount, Generation: 1, CA: s.PKI.Root.CA, Mode: mode}); err != nil {
		return d, err
	}
	note(d.root.Outcome)
	in := vault.IntermediateInput{Vault: s.Vault.Name, RootMount: s.Vault.RootMount, RelayMount: s.Vault.RelayMount,
		RootIssuerID: d.root.Authority.IssuerID, RootPEM: d.root.CertificatePEM, Generation: 1, CA: s.PKI.Intermediate, Mode: mode}
	csr, err := w.GenerateIntermediateCSR(ctx, in)
	if err != nil {
		return d, err
	}
	note(csr.Outcome)
	if !csr.Present {
		in.CSRPEM = csr.CSRPEM
		signed, err := w.SignIntermediate(ctx, in)
		if err != nil {
			return d, err
		}
		note(signed.Outcome)
		in.ChainPEM = signed.ChainPEM
	}
	if d.relay, err = w.SetSignedIntermediate(ctx, in); err != nil {
		return d, err
	}
	note(d.relay.Outcome)
	out, err := w.ConfigureRoles(ctx, vault.ConfigureRolesInput{Spec: s, IssuerID: d.relay.Authority.IssuerID, Mode: mode})
	if err != nil {
		return d, err
	}
	note(out)
	if s.PKI.StandbyRoot {
		if d.standby, err = w.StandbyRoot(ctx, vault.StandbyRootInput{Spec: s, Generation: 1, Mode: mode}); err != nil {
			return d, err
		}
		note(d.standby.Outcome)
	}
	for _, c := range []struct{ context, workload string }{{"mgmt", ""}, {"cluster1", "cluster1"}, {"cluster2", "cluster2"}} {
		in := vault.ClusterAccessInput{Spec: s, Context: c.context, Workload: c.workload, IssuerID: d.relay.Authority.IssuerID, Mode: mode}
		if s.Credential.Method == mesh.CredentialJWT {
			in.Issuer, in.KeysPEM = w.tokensOf(c.context).issuer, []string{w.tokensOf(c.context).publicPEM}
		}
		access, err := w.EnableClusterAccess(ctx, in)
		if err != nil {
			return d, err
		}
		note(access.Outcome)
		d.access[c.context] = access
	}
	return d, nil
}

func (w *world) mustSetup(t *testing.T) done {
	t.Helper()
	d, err := w.setup(context.Background(), procedure.Apply)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// forget makes Vault as new, the worker's identities aside.
func (w *world) forget(t *testing.T) {
	t.Helper()
	sys := w.Root.Sys()
	auths, err := sys.ListAuth()
	if err != nil {
		t.Fatal(err)
	}
	for path := range auths {
		if strings.HasPrefix(path, "relaypki-") {
			if err := sys.DisableAuth(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, mount := range []string{"pki", "pki_relay"} {
		if err := sys.Unmount(mount); err != nil {
			t.Fatal(err)
		}
	}
	policies, err := sys.ListPolicies()
	if err != nil {
		t.Fatal(err)
	}
	for _, policy := range policies {
		if strings.HasPrefix(policy, "relaypki-prod-") {
			if err := sys.DeletePolicy(policy); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func certificate(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatal("no certificate in PEM form")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// wantFailure checks kind, retryability and words of an error.
func wantFailure(t *testing.T, err error, kind failure.Kind, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; expected %s", kind)
	}
	if got := failure.KindOf(err); got != kind {
		t.Errorf("kind is %q, expected %q: %v", got, kind, err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not say %q: %v", word, err)
		}
	}
}

// proxy stands between the worker and Vault.
type proxy struct {
	url string

	mu     sync.Mutex
	writes []string
	// cut is the number of the write whose answer is lost; 0 for none.
	cut int
}

func newProxy(t *testing.T, server *vaulttest.Server) (*proxy, string) {
	t.Helper()
	target, err := url.Parse(server.Address)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(server.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	p := &proxy{}
	forward := httputil.NewSingleHostReverseProxy(target)
	forward.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	forward.ModifyResponse = func(r *http.Response) error {
		if p.lost(r) {
			panic(http.ErrAbortHandler)
		}
		return nil
	}
	listener := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Whole before it is passed on: a server of HTTP/1 closes the request's
		// body when the answer begins, and if Vault answers before the transport
		// has seen the body's end, it takes that for a broken request and drops
		// the answer.
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(listener.Close)
	p.url = listener.URL
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: listener.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return p, caFile
}

// lost counts a write, and is true if its answer is not to arrive. Logins and
// questions change nothing that outlives the worker.
func (p *proxy) lost(r *http.Response) bool {
	path := strings.TrimPrefix(r.Request.URL.Path, "/v1/")
	read := slices.Contains([]string{http.MethodGet, http.MethodHead, "LIST"}, r.Request.Method)
	if read || strings.HasSuffix(path, "/login") || path == "sys/capabilities-self" || path == "auth/token/renew-self" {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writes = append(p.writes, r.Request.Method+" "+path)
	return p.cut == len(p.writes)
}

// begin counts anew, and cuts off the write of that number.
func (p *proxy) begin(cut int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writes, p.cut = nil, cut
}

func (p *proxy) written() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.writes)
}

// use makes the worker know that Vault alone.
func (w *world) use(config site.VaultConfig) {
	w.Activities = vault.Activities{Clients: site.NewClients(site.Config{Vaults: []site.VaultConfig{config}}, zap.NewNop())}
}
