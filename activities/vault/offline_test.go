package vault_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/vaulttest"
)

// offlineWorld is a world whose root's key the test has, and whose identities
// may not so much as look at the root mount.
func offlineWorld(t *testing.T) (*world, pkitest.Pair) {
	t.Helper()
	rules := regexp.MustCompile(`(?m)^path "(sys/mounts/)?pki(/[^"]*)?" \{\n(  .*\n)+\}\n`)
	w := worldUnder(t, vaulttest.Start(t), func(policy string) string { return rules.ReplaceAllString(policy, "") })
	root := pkitest.Root(t, "Example Root", lives(-time.Hour, 20*365*24*time.Hour))
	w.spec.PKI.Root = mesh.Root{Kept: mesh.KeptOffline, CertificatePEM: string(pki.EncodeChain(root.Cert))}
	return w, root
}

// lives is a lifetime by the clock, which is Vault's.
func lives(from, until time.Duration) pkitest.Option {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(until) }
}

// intermediate is what the activities are given by a procedure.
func (w *world) intermediate(mode procedure.Mode) vault.IntermediateInput {
	return vault.IntermediateInput{Vault: "default", RelayMount: "pki_relay", RootPEM: w.spec.PKI.Root.CertificatePEM, Generation: 1, CA: w.spec.PKI.Intermediate, Mode: mode}
}

func (w *world) enableRelay(t *testing.T) {
	t.Helper()
	if _, err := w.EnablePKI(t.Context(), vault.EnablePKIInput{Mesh: w.spec.Mesh, Vault: "default", Mount: "pki_relay", MaxLeaseTTL: w.spec.PKI.Intermediate.TTL, Mode: procedure.Apply}); err != nil {
		t.Fatal(err)
	}
}

// csr is the intermediate's CSR.
func (w *world) csr(t *testing.T) *x509.CertificateRequest {
	t.Helper()
	made, err := w.GenerateIntermediateCSR(t.Context(), w.intermediate(procedure.Apply))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.ParseCSR([]byte(made.CSRPEM))
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// With a root outside Vault the intermediate is what that root has signed, for
// as long as it likes, and the root mount is neither made nor asked for.
func TestOfflineRoot(t *testing.T) {
	w, root := offlineWorld(t)
	check, err := w.CheckVault(t.Context(), vault.CheckVaultInput{Spec: w.spec})
	if err != nil || len(check.Problems) > 0 {
		t.Fatalf("the preflight wants more than is needed: %v, %q", err, check.Problems)
	}
	w.enableRelay(t)
	first := w.csr(t)
	// The run and its history are lost: the next one asks for the same key.
	second := w.csr(t)
	if string(first.RawSubjectPublicKeyInfo) != string(second.RawSubjectPublicKeyInfo) {
		t.Fatal("a second run makes a second key")
	}
	for _, csr := range []*x509.CertificateRequest{first, second} {
		if problems := pki.CheckSigned(csr, []*x509.Certificate{root.SignCSR(t, first, lives(-time.Hour, 9000*time.Hour))}, pki.SignedWant{Root: root.Cert, At: time.Now(), MinLife: time.Hour}); len(problems) > 0 {
			t.Errorf("an answer to the first CSR is refused: %v", problems)
		}
	}
	signed := root.SignCSR(t, first, lives(-time.Hour, 9000*time.Hour)) // 43800h was asked for
	in := w.intermediate(procedure.Apply)
	in.ChainPEM = string(pki.EncodeChain(signed, root.Cert))
	relay, err := w.SetSignedIntermediate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if relay.Authority.Serial != pki.Serial(signed) || relay.Authority.Name != "relay-intermediate-g1" {
		t.Errorf("the intermediate is %+v", relay.Authority)
	}

	// Again, and to look: nothing changes, and nothing is to be signed.
	w.proxy.begin(0)
	for _, mode := range []procedure.Mode{procedure.Apply, procedure.Observe, procedure.Plan} {
		csr, err := w.GenerateIntermediateCSR(t.Context(), w.intermediate(mode))
		if err != nil || !csr.Present {
			t.Errorf("%s: the intermediate is not seen: %+v, %v", mode, csr, err)
		}
		again, err := w.SetSignedIntermediate(t.Context(), w.intermediate(mode))
		if err != nil || len(again.Changes) > 0 || again.Authority != relay.Authority {
			t.Errorf("%s: %+v, %v", mode, again, err)
		}
	}
	if written := w.proxy.written(); len(written) > 0 {
		t.Errorf("it wrote %v", written)
	}
	// What it issues carries the chain up to the root.
	if _, err := w.ConfigureRoles(t.Context(), vault.ConfigureRolesInput{Spec: w.spec, IssuerID: relay.Authority.IssuerID, Mode: procedure.Apply}); err != nil {
		t.Fatal(err)
	}
	issued, err := w.Root.Logical().Write("pki_relay/issue/"+w.spec.PKI.Role, map[string]any{"common_name": w.spec.Certificates.Server.CommonName, "ttl": "1h"})
	if err != nil {
		t.Fatal(err)
	}
	var chain []*x509.Certificate
	for _, text := range append([]any{issued.Data["certificate"]}, issued.Data["ca_chain"].([]any)...) {
		chain = append(chain, certificate(t, text.(string)))
	}
	if err := pki.Linear(chain); err != nil || len(chain) != 3 || !chain[2].Equal(root.Cert) {
		t.Errorf("a chain of %d: %v", len(chain), err)
	}
	if mount, _ := w.Root.Logical().Read("sys/mounts/pki"); mount != nil {
		t.Error("a root mount was made")
	}

	// Whoever asks for the mesh's CAs hears of the root, and that no Vault has its key.
	seen, err := w.Survey(t.Context(), vault.SurveyInput{Spec: w.spec})
	if err != nil || seen.Root.Authority.Serial != pki.Serial(root.Cert) || seen.Root.Authority.IssuerID != "" || seen.Active.Authority.Serial != pki.Serial(signed) {
		t.Errorf("the survey: %+v, %v", seen, err)
	}
	if _, err := w.ConfigureTidy(t.Context(), vault.TidyInput{Spec: w.spec, Mode: procedure.Apply}); err != nil {
		t.Error(err)
	}
	// A rotation fixes the chain of what is at work, however long the root lets it live.
	fixed := w.intermediate(procedure.Apply)
	fixed.Rotation = true
	if out, err := w.SetSignedIntermediate(t.Context(), fixed); err != nil || len(out.Changes) > 0 {
		t.Errorf("the intermediate at work: %+v, %v", out.Changes, err)
	}
	// The next generation is signed in the same way, also by a root that cannot sign
	// for as long as was asked for any more.
	next := w.intermediate(procedure.Apply)
	next.Generation, next.Rotation = 2, true
	next.CA.TTL = mesh.Duration{Duration: 21 * 365 * 24 * time.Hour}
	made, err := w.GenerateIntermediateCSR(t.Context(), next)
	if err != nil {
		t.Fatal(err)
	}
	third, err := pki.ParseCSR([]byte(made.CSRPEM))
	if err != nil {
		t.Fatal(err)
	}
	successor := root.SignCSR(t, third, lives(-time.Hour, 9000*time.Hour))
	next.ChainPEM = string(pki.EncodeChain(successor, root.Cert))
	if rotated, err := w.SetSignedIntermediate(t.Context(), next); err != nil || rotated.Authority.Name != "relay-intermediate-g2" || rotated.Authority.Serial != pki.Serial(successor) {
		t.Errorf("the next generation: %+v, %v", rotated, err)
	}

	// Another root of that name in the input is not the one that has signed.
	other := pkitest.Root(t, "Example Root", lives(-time.Hour, 20*365*24*time.Hour))
	wrong := w.intermediate(procedure.Observe)
	wrong.RootPEM = string(pki.EncodeChain(other.Cert))
	_, err = w.SetSignedIntermediate(t.Context(), wrong)
	wantFailure(t, err, failure.Mismatch, "was signed by the key")
}

// A certificate for another key does not become the intermediate, whoever hands
// it to the activity.
func TestOfflineRootImportsNoOtherKey(t *testing.T) {
	w, root := offlineWorld(t)
	w.enableRelay(t)
	csr := w.csr(t)
	foreign, _ := pkitest.CSR(t, pkitest.Key(t), csr.Subject)
	in := w.intermediate(procedure.Apply)
	in.ChainPEM = string(pki.EncodeChain(root.SignCSR(t, foreign, lives(-time.Hour, 9000*time.Hour)), root.Cert))
	if _, err := w.SetSignedIntermediate(t.Context(), in); err == nil {
		t.Error("it was imported")
	}
}

// The commands of a plan, with openssl in the place of whoever keeps the root,
// leave a setup nothing to do.
func TestOfflineRootByHand(t *testing.T) {
	w, root := offlineWorld(t)
	w.enableRelay(t)
	csr, err := w.GenerateIntermediateCSR(t.Context(), w.intermediate(procedure.Plan))
	if err != nil {
		t.Fatal(err)
	}
	set, err := w.SetSignedIntermediate(t.Context(), w.intermediate(procedure.Plan))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	key, err := x509.MarshalECPrivateKey(root.Key)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"root.pem": w.spec.PKI.Root.CertificatePEM, "root.key": pemText("EC PRIVATE KEY", key),
		"ca.cnf": "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	changes := append(csr.Changes, procedure.Change{Commands: []string{
		`certificate="$(openssl x509 -req -in <(echo "$csr") -CA ` + dir + `/root.pem -CAkey ` + dir + `/root.key -CAcreateserial -days 900 -extfile ` + dir + `/ca.cnf)"`}})
	w.byHand(t, done{changes: append(changes, set.Changes...)})
	again, err := w.SetSignedIntermediate(t.Context(), w.intermediate(procedure.Apply))
	if err != nil || len(again.Changes) > 0 {
		t.Errorf("a setup after the commands has still to %v, %v", again.Changes, err)
	}
}

// What somebody has set up by hand under a root outside Vault is taken over.
func TestAdoptUnderAnOfflineRoot(t *testing.T) {
	w, root := offlineWorld(t)
	if err := w.Root.Sys().Mount("pki_relay", mountInput); err != nil {
		t.Fatal(err)
	}
	made, err := w.Root.Logical().Write("pki_relay/intermediate/generate/internal", map[string]any{"common_name": "by hand"})
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.ParseCSR([]byte(made.Data["csr"].(string)))
	if err != nil {
		t.Fatal(err)
	}
	signed := root.SignCSR(t, csr, lives(-time.Hour, 9000*time.Hour))
	if _, err := w.Root.Logical().Write("pki_relay/intermediate/set-signed", map[string]any{"certificate": string(pki.EncodeChain(signed, root.Cert))}); err != nil {
		t.Fatal(err)
	}

	right := w.spec.PKI.Root
	other := pkitest.Root(t, "Example Root", lives(-time.Hour, 20*365*24*time.Hour))
	w.spec.PKI.Root.CertificatePEM = string(pki.EncodeChain(other.Cert))
	_, err = w.adopt(procedure.Apply)
	wantFailure(t, err, failure.Conflict, "cannot be taken over", "was signed by the key")

	w.spec.PKI.Root = right
	if _, err := w.adopt(procedure.Apply); err != nil {
		t.Fatal(err)
	}
	relay, err := w.SetSignedIntermediate(context.Background(), w.intermediate(procedure.Apply))
	if err != nil || relay.Authority.Serial != pki.Serial(signed) {
		t.Errorf("after the adoption the intermediate is %+v, %v", relay.Authority, err)
	}
	for _, c := range relay.Changes {
		if strings.HasPrefix(c.Object, "vault key") {
			t.Errorf("a setup after the adoption would %s %s", c.Verb, c.Object)
		}
	}
}

var mountInput = &vaultapi.MountInput{Type: "pki", Config: vaultapi.MountConfigInput{MaxLeaseTTL: "43800h"}}

func pemText(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
