package vault_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
)

// offlineSetup is a mesh that is set up under a root whose key the test has.
func offlineSetup(t *testing.T) (*world, pkitest.Pair, vault.CAResult) {
	t.Helper()
	w, root := offlineWorld(t)
	w.enableRelay(t)
	in := w.intermediate(procedure.Apply)
	in.ChainPEM = string(pki.EncodeChain(root.SignCSR(t, w.csr(t), lives(-time.Hour, 9000*time.Hour)), root.Cert))
	relay, err := w.SetSignedIntermediate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ConfigureRoles(t.Context(), vault.ConfigureRolesInput{Spec: w.spec, IssuerID: relay.Authority.IssuerID, Mode: procedure.Apply}); err != nil {
		t.Fatal(err)
	}
	w.operating()
	return w, root, relay
}

// outside is a root's rotation with a root outside Vault, of one generation.
type outside struct {
	w          *world
	generation int
	r1, r2     pkitest.Pair
	bridge     *x509.Certificate
}

func (o outside) input(mode procedure.Mode) vault.IntermediateInput {
	in := o.w.intermediate(mode)
	in.Generation, in.Rotation, in.RootPEM = o.generation, true, ""
	return in
}

// csr makes the intermediate's key, before there is a root.
func (o outside) csr(t *testing.T) *x509.CertificateRequest {
	t.Helper()
	made, err := o.w.GenerateIntermediateCSR(t.Context(), o.input(procedure.Apply))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.ParseCSR([]byte(made.CSRPEM))
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// imports brings in what people have signed, as a rotation does.
func (o outside) imports(ctx context.Context, mode procedure.Mode, intermediate *x509.Certificate) (bridge, relay vault.CAResult, err error) {
	text := func(list ...*x509.Certificate) string { return string(pki.EncodeChain(list...)) }
	old := vault.CAResult{CertificatePEM: text(o.r1.Cert), Authority: procedure.Authority{Name: "relay-root-g1"}}
	if bridge, err = o.w.BridgeRoot(ctx, vault.BridgeInput{Spec: o.w.spec, Generation: o.generation, OldRoot: old, NewRoot: vault.CAResult{CertificatePEM: text(o.r2.Cert)}, BridgePEM: text(o.bridge), Mode: mode}); err != nil {
		return bridge, relay, err
	}
	in := o.input(mode)
	in.RootPEM, in.ChainPEM, in.AbovePEM = text(o.r2.Cert), text(intermediate, o.r2.Cert), []string{text(o.bridge), text(o.r1.Cert)}
	relay, err = o.w.SetSignedIntermediate(ctx, in)
	return bridge, relay, err
}

// A new root outside Vault: the key comes before the root, all is imported without
// keys, every chain can be given, and whoever asks sees all roots by their generations.
func TestRootRotationOutside(t *testing.T) {
	ctx := context.Background()
	w, r1, was := offlineSetup(t)
	for name, id := range map[string]string{"relay-root-g1": "carried-by-hand"} { // whoever imported it may have called it anything
		if _, err := w.Root.Logical().JSONMergePatch(ctx, "pki_relay/issuer/"+name, map[string]any{"issuer_name": id}); err != nil {
			t.Fatal(err)
		}
	}
	o := outside{w: w, generation: 2, r1: r1, r2: pkitest.Root(t, "Example Root G2", lives(-time.Hour, 20*365*24*time.Hour))}
	o.bridge = r1.Cross(t, o.r2, lives(-time.Hour, 10*365*24*time.Hour)).Cert
	csr := o.csr(t)
	if again := o.csr(t); string(again.RawSubjectPublicKeyInfo) != string(csr.RawSubjectPublicKeyInfo) {
		t.Fatal("a second run makes a second key")
	}
	signed := o.r2.SignCSR(t, csr, lives(-time.Hour, 9000*time.Hour))

	// A bridge that is none leaves nothing behind.
	wrong := o
	wrong.bridge = o.r2.Cross(t, o.r2, lives(-time.Hour, 9000*time.Hour)).Cert
	w.proxy.begin(0)
	_, _, err := wrong.imports(ctx, procedure.Apply, signed)
	wantFailure(t, err, failure.Mismatch, "as its issuer")
	foreign := o
	foreign.r1 = pkitest.Root(t, "Example Root", lives(-time.Hour, 20*365*24*time.Hour))
	foreign.bridge = foreign.r1.Cross(t, o.r2, lives(-time.Hour, 9000*time.Hour)).Cert
	_, _, err = foreign.imports(ctx, procedure.Apply, signed)
	wantFailure(t, err, failure.Preflight, "is not in the mount pki_relay")
	if written := w.proxy.written(); len(written) > 0 {
		t.Errorf("refused, it wrote %v", written)
	}

	// Cut off after each write, the next run goes on.
	for n := 0; ; n++ {
		w.proxy.begin(1)
		_, _, err := o.imports(ctx, procedure.Apply, signed)
		if w.proxy.begin(0); err == nil {
			if n != 7 {
				t.Errorf("it took %d writes, expected the old root's name, two imports with a name each, and the intermediate's import and settings", n)
			}
			break
		}
		wantFailure(t, err, failure.Unavailable)
	}
	bridge, relay, err := o.imports(ctx, procedure.Apply, signed)
	if err != nil || len(bridge.Changes)+len(relay.Changes) > 0 || len(w.proxy.written()) > 0 {
		t.Fatalf("again: %v, %v, %v", bridge.Changes, relay.Changes, err)
	}
	if relay.Authority.Name != "relay-intermediate-g2" || relay.Authority.Serial != pki.Serial(signed) || bridge.Authority.Name != "relay-bridge-g2" {
		t.Errorf("made are %+v and %+v", relay.Authority, bridge.Authority)
	}
	for name, want := range map[string]*x509.Certificate{"relay-root-g1": r1.Cert, "relay-root-g2": o.r2.Cert, "relay-bridge-g2": o.bridge} {
		if have := w.data(t, "pki_relay/issuer/"+name); have["key_id"] != "" || !certificate(t, have["certificate"].(string)).Equal(want) {
			t.Errorf("%s is %v", name, have)
		}
	}
	if _, all := w.count(t, "pki_relay/issuers", "issuer_name", ""); all != 5 {
		t.Errorf("there are %d issuers, expected two roots, two intermediates and the bridge", all)
	}
	if config := w.data(t, "pki_relay/config/issuers"); config["default"] != was.Authority.IssuerID {
		t.Errorf("the default has become %v", config)
	}

	// Through the chains.
	for _, role := range []string{w.spec.PKI.Role, w.spec.ProbeRole()} {
		w.rootWrite(t, "pki_relay/roles/"+role, map[string]any{})
	}
	if _, err := w.MoveRole(ctx, vault.MoveRoleInput{Spec: w.spec, IssuerID: relay.Authority.IssuerID, Mode: procedure.Apply}); err != nil {
		t.Fatal(err)
	}
	text := func(c *x509.Certificate) string { return string(pki.EncodeChain(c)) }
	for n, above := range [][]*x509.Certificate{{o.bridge, r1.Cert}, {o.bridge}, {o.r2.Cert}} {
		in := vault.SetChainInput{Spec: w.spec, IssuerID: relay.Authority.IssuerID, Mode: procedure.Apply}
		for _, c := range above {
			in.AbovePEM = append(in.AbovePEM, text(c))
		}
		if _, err := w.SetChain(ctx, in); err != nil {
			t.Fatalf("chain %d: %v", n, err)
		}
		seen, err := w.Survey(ctx, vault.SurveyInput{Spec: w.spec})
		if err != nil || !slices.Equal(seen.Active.AbovePEM, in.AbovePEM) || seen.Root.Authority.Serial != pki.Serial(o.r2.Cert) || seen.Root.Authority.IssuerID != "" {
			t.Errorf("chain %d: %+v, %v", n, seen.Root, err)
		}
		if len(seen.Roots) != 2 || seen.Roots[0].Generation != 1 || seen.Roots[1].CertificatePEM != text(o.r2.Cert) || seen.Roots[1].HasKey || seen.Roots[1].Signs || seen.Roots[1].Authority.IssuerID != "" || seen.HighestRoot != 2 || len(seen.Bridges) != 1 {
			t.Errorf("chain %d: roots %+v, highest %d, %d bridges", n, seen.Roots, seen.HighestRoot, len(seen.Bridges))
		}
	}

	// A setup after that, with the new root, finds all as it should be.
	w.settingUp()
	w.spec.PKI.Root.CertificatePEM = text(o.r2.Cert)
	after := w.intermediate(procedure.Apply)
	after.Generation = 2
	w.proxy.begin(0)
	if out, err := w.SetSignedIntermediate(ctx, after); err != nil || out.Authority != relay.Authority {
		t.Errorf("a setup finds %+v, %v", out.Authority, err)
	}
}

// The commands of a plan, with people's files in their places, leave a rotation
// nothing to do.
func TestRootRotationOutsideByHand(t *testing.T) {
	ctx := context.Background()
	w, r1, _ := offlineSetup(t)
	o := outside{w: w, generation: 2, r1: r1, r2: pkitest.Root(t, "Example Root G2", lives(-time.Hour, 20*365*24*time.Hour))}
	o.bridge = r1.Cross(t, o.r2, lives(-time.Hour, 10*365*24*time.Hour)).Cert
	dir := t.TempDir()
	key, err := x509.MarshalECPrivateKey(o.r2.Key)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"root.pem": string(pki.EncodeChain(o.r2.Cert)), "root.key": pemText("EC PRIVATE KEY", key), "bridge.pem": string(pki.EncodeChain(o.bridge)),
		"ca.cnf": "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	csr, err := w.GenerateIntermediateCSR(ctx, o.input(procedure.Plan))
	if err != nil {
		t.Fatal(err)
	}
	old := vault.CAResult{CertificatePEM: string(pki.EncodeChain(r1.Cert)), Authority: procedure.Authority{Name: "relay-root-g1"}}
	bridge, err := w.BridgeRoot(ctx, vault.BridgeInput{Spec: w.spec, Generation: 2, OldRoot: old, Mode: procedure.Plan})
	if err != nil {
		t.Fatal(err)
	}
	in := o.input(procedure.Plan)
	in.AbovePEM = []string{bridge.Authority.Name, old.CertificatePEM}
	relay, err := w.SetSignedIntermediate(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	changes := append(csr.Changes, procedure.Change{Commands: []string{
		fmt.Sprintf(`certificate="$(openssl x509 -req -in <(echo "$csr") -CA %[1]s/root.pem -CAkey %[1]s/root.key -CAcreateserial -days 900 -extfile %[1]s/ca.cnf)"`, dir),
		fmt.Sprintf(`root="$(cat %s/root.pem)"`, dir), fmt.Sprintf(`bridge="$(cat %s/bridge.pem)"`, dir)}})
	w.byHand(t, done{changes: append(append(changes, bridge.Changes...), relay.Changes...)})

	made, err := w.GenerateIntermediateCSR(ctx, o.input(procedure.Apply))
	if err != nil || !made.Present {
		t.Fatalf("the intermediate is not there: %+v, %v", made, err)
	}
	issuer := certificate(t, w.data(t, "pki_relay/issuer/relay-intermediate-g2")["certificate"].(string))
	b, r, err := o.imports(ctx, procedure.Apply, issuer)
	if err != nil || len(b.Changes)+len(r.Changes) > 0 {
		t.Errorf("a rotation after the commands has still to %v, %v: %v", b.Changes, r.Changes, err)
	}
}
