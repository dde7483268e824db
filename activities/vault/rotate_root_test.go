package vault_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
)

// lineage is what a rotation of the root has made in Vault: the root, the bridge to
// it, and the intermediate below it.
type lineage struct {
	root, bridge vault.CAResult
	relay        staged
	changes      []procedure.Change
}

func (w *world) newRoot(generation int, mode procedure.Mode) vault.GenerateRootInput {
	return vault.GenerateRootInput{Vault: "default", Mount: "pki", Generation: generation, CA: w.spec.PKI.Root.CA, Mode: mode, Rotation: true}
}

// prepare runs the activities as the first phase of a rotation does. In a plan, what
// is still to be made goes by its name.
func (w *world) prepare(ctx context.Context, d done, generation int, mode procedure.Mode) (lineage, error) {
	var l lineage
	var err error
	if l.root, err = w.GenerateRoot(ctx, w.newRoot(generation, mode)); err != nil {
		return l, err
	}
	l.changes = append(l.changes, l.root.Changes...)
	if l.bridge, err = w.BridgeRoot(ctx, vault.BridgeInput{Spec: w.spec, Generation: generation, OldRoot: d.root, NewRoot: l.root, Mode: mode}); err != nil {
		return l, err
	}
	l.changes = append(l.changes, l.bridge.Changes...)
	in := w.staging(d, generation)
	in.Mode, in.RootIssuerID, in.RootPEM = mode, l.root.Authority.IssuerID, l.root.CertificatePEM
	if in.RootIssuerID == "" {
		in.RootIssuerID = l.root.Authority.Name
	}
	in.AbovePEM = []string{textOrName(l.bridge), d.root.CertificatePEM}
	l.relay, err = w.stage(ctx, in)
	l.changes = append(l.changes, l.relay.changes...)
	return l, err
}

func textOrName(ca vault.CAResult) string {
	if ca.CertificatePEM == "" {
		return ca.Authority.Name
	}
	return ca.CertificatePEM
}

func (w *world) mustPrepare(t *testing.T, d done, generation int) lineage {
	t.Helper()
	l, err := w.prepare(context.Background(), d, generation, procedure.Apply)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// prepared: one root, one bridge and one intermediate of that generation, as they
// have to be, and nothing at work has changed.
func (w *world) prepared(t *testing.T, when string, d done, generation int) {
	t.Helper()
	name := func(prefix string) string { return fmt.Sprintf("%s%d", prefix, generation) }
	root, bridge, relay := name("relay-root-g"), name("relay-bridge-g"), name("relay-intermediate-g")
	for _, there := range []struct{ path, field, name string }{
		{"pki/keys", "key_name", root}, {"pki/issuers", "issuer_name", root}, {"pki_relay/keys", "key_name", relay},
		{"pki_relay/issuers", "issuer_name", root}, {"pki_relay/issuers", "issuer_name", bridge}, {"pki_relay/issuers", "issuer_name", relay},
	} {
		if named, _ := w.count(t, there.path, there.field, there.name); named != 1 {
			t.Errorf("%s: %d at %s are named %s", when, named, there.path, there.name)
		}
	}
	for path, want := range map[string]int{"pki/keys": generation, "pki/issuers": generation, "pki_relay/keys": generation, "pki_relay/issuers": 2 + 3*(generation-1)} {
		if _, all := w.count(t, path, "issuer_name", ""); all != want {
			t.Errorf("%s: %d at %s, expected %d", when, all, path, want)
		}
	}
	r1, r2 := certificate(t, d.root.CertificatePEM), certificate(t, w.data(t, "pki/issuer/"+root)["certificate"].(string))
	x := w.data(t, "pki_relay/issuer/"+bridge)
	i3 := w.data(t, "pki_relay/issuer/"+relay)
	if n := w.signedFor(t, r2); n != 2 {
		t.Errorf("%s: %d certificates for the new root's key, expected its own and the bridge", when, n)
	}
	if n := w.signedFor(t, certificate(t, i3["certificate"].(string))); n != 1 {
		t.Errorf("%s: %d certificates for the intermediate's key", when, n)
	}
	if imported := w.data(t, "pki_relay/issuer/"+root); !certificate(t, imported["certificate"].(string)).Equal(r2) || imported["key_id"] != "" || x["key_id"] != "" {
		t.Errorf("%s: in the relay mount the new root is %v, the bridge %v", when, imported, x)
	}
	c := certificate(t, x["certificate"].(string))
	if !bytes.Equal(c.RawSubject, r2.RawSubject) || !pki.SameKey(c, r2) || pki.SignedBy(c, r1) != nil || !c.IsCA || !c.NotAfter.Equal(r1.NotAfter) {
		t.Errorf("%s: the bridge is %q by %q until %s, and the old root until %s", when, c.Subject, c.Issuer, c.NotAfter, r1.NotAfter)
	}
	if err := pki.SignedBy(certificate(t, i3["certificate"].(string)), r2); err != nil {
		t.Errorf("%s: %v", when, err)
	}
	chain := fmt.Sprint([]any{i3["issuer_id"], x["issuer_id"], w.data(t, "pki_relay/issuer/relay-root-g1")["issuer_id"]})
	if fmt.Sprint(i3["manual_chain"]) != chain || i3["leaf_not_after_behavior"] != "err" {
		t.Errorf("%s: manual_chain %v, expected %s; leaf_not_after_behavior %v", when, i3["manual_chain"], chain, i3["leaf_not_after_behavior"])
	}
	for mount, id := range map[string]string{"pki": d.root.Authority.IssuerID, "pki_relay": d.relay.Authority.IssuerID} {
		if config := w.data(t, mount+"/config/issuers"); config["default"] != id || config["default_follows_latest_issuer"] != false {
			t.Errorf("%s: %s/config/issuers is %v", when, mount, config)
		}
	}
}

// followLatest has both mounts make the default of whatever comes next.
func (w *world) followLatest(t *testing.T, d done) {
	t.Helper()
	for mount, id := range map[string]string{"pki": d.root.Authority.IssuerID, "pki_relay": d.relay.Authority.IssuerID} {
		w.rootWrite(t, mount+"/config/issuers", map[string]any{"default": id, "default_follows_latest_issuer": true})
	}
}

// A rotation from one kind of key to the other, through all modes and back, and on
// to the end.
func TestRootRotation(t *testing.T) {
	keys := map[string]mesh.CA{"rsa": {KeyType: "rsa", KeyBits: 2048}, "ec": {KeyType: "ec", KeyBits: 256}}
	for _, test := range []struct{ from, to string }{{"rsa", "ec"}, {"ec", "rsa"}} {
		t.Run(test.from+" to "+test.to, func(t *testing.T) {
			ctx := context.Background()
			w := newWorld(t)
			w.spec.PKI.Root.CA = w.spec.PKI.Root.CA.With(keys[test.from])
			d := w.mustSetup(t)
			w.operating()
			w.followLatest(t, d)
			w.spec.PKI.Root.CA = w.spec.PKI.Root.CA.With(keys[test.to])
			l := w.mustPrepare(t, d, 2)
			w.prepared(t, "prepared", d, 2)
			r1, r2 := certificate(t, d.root.CertificatePEM), certificate(t, l.root.CertificatePEM)
			if r2.Subject.String() != "CN=Solo.io Root CA G2,O=solo.io" || strings.EqualFold(r2.PublicKeyAlgorithm.String(), r1.PublicKeyAlgorithm.String()) {
				t.Errorf("the new root is %q with a key of %s", r2.Subject, r2.PublicKeyAlgorithm)
			}
			if id := w.data(t, "pki_relay/issuer/relay-bridge-g2")["issuer_id"]; l.bridge.Authority.IssuerID != id || l.bridge.Authority.Name != "relay-bridge-g2" {
				t.Errorf("the bridge is %+v, in the relay mount it is %v", l.bridge.Authority, id)
			}
			if len(l.bridge.Changes) != 4 || l.bridge.Changes[1].Object != "vault config pki_relay/config/issuers" {
				t.Errorf("the default is not held before what is imported: %v", l.bridge.Changes)
			}
			w.proxy.begin(0)
			for _, mode := range []procedure.Mode{procedure.Apply, procedure.Plan, procedure.Observe} {
				if again, err := w.prepare(ctx, d, 2, mode); err != nil || len(again.changes) > 0 || again.bridge.Authority != l.bridge.Authority {
					t.Errorf("%s again: %v, %v", mode, again.changes, err)
				}
			}
			if written := w.proxy.written(); len(written) > 0 {
				t.Errorf("again: wrote %v", written)
			}

			w.throughModes(t, d, l)
			w.rootRetired(t, d, l)
		})
	}
}

// throughModes steers the chain there, back, and there again, and lets nothing
// that is run again undo it.
func (w *world) throughModes(t *testing.T, d done, l lineage) {
	t.Helper()
	ctx := context.Background()
	w.moveAll(t, procedure.Apply, l.relay.Authority.IssuerID)
	bridged := []string{l.bridge.CertificatePEM, d.root.CertificatePEM}
	pivot, final, pinned := bridged[:1], []string{l.root.CertificatePEM}, []string{}
	for n, mode := range []struct {
		above       []string
		root        string
		withABridge bool
	}{{bridged, d.root.CertificatePEM, true}, {pivot, l.bridge.CertificatePEM, true}, {final, l.root.CertificatePEM, false},
		{pinned, l.relay.CertificatePEM, false}, {final, l.root.CertificatePEM, false}, {pivot, l.bridge.CertificatePEM, true}, {bridged, d.root.CertificatePEM, true},
		{pivot, l.bridge.CertificatePEM, true}, {final, l.root.CertificatePEM, false}} {
		in := vault.SetChainInput{Spec: w.spec, IssuerID: l.relay.Authority.IssuerID, AbovePEM: mode.above, Mode: procedure.Apply}
		before := w.data(t, "pki_relay/issuer/"+in.IssuerID)
		out, err := w.SetChain(ctx, in)
		if err != nil || len(out.Changes) != min(n, 1) {
			t.Fatalf("mode %d: %v, %v", n, out.Changes, err)
		}
		w.proxy.begin(0)
		if out, err := w.SetChain(ctx, in); err != nil || len(out.Changes) > 0 {
			t.Errorf("mode %d again: %v, %v", n, out.Changes, err)
		}
		// A rotation that goes on from the beginning.
		if again, err := w.prepare(ctx, d, 2, procedure.Apply); err != nil || len(again.changes) > 0 {
			t.Errorf("mode %d, prepared again: %v, %v", n, again.changes, err)
		}
		if written := w.proxy.written(); len(written) > 0 {
			t.Errorf("mode %d: again, it wrote %v", n, written)
		}
		now := w.data(t, "pki_relay/issuer/"+in.IssuerID)
		for _, field := range []string{"issuer_name", "usage", "leaf_not_after_behavior"} {
			if now[field] != before[field] {
				t.Errorf("mode %d: %s was %v and is %v", n, field, before[field], now[field])
			}
		}
		prove := vault.ProveIssuerInput{Spec: w.spec, IssuerID: in.IssuerID, RootPEM: mode.root, Mode: procedure.Apply}
		if mode.withABridge {
			prove.BridgePEM = l.bridge.CertificatePEM
		}
		if _, err := w.ProveIssuer(ctx, prove); err != nil {
			t.Errorf("mode %d: %v", n, err)
		}
		found := w.survey(t)
		if found.Active.AbovePEM == nil || !slices.Equal(found.Active.AbovePEM, mode.above) || found.Root.Authority != l.root.Authority {
			t.Errorf("mode %d: above is %d, and the root %+v", n, len(found.Active.AbovePEM), found.Root.Authority)
		}
		if len(found.Roots) != 2 || found.Roots[0].Authority != d.root.Authority || !found.Roots[0].Default || found.Roots[1].Authority != l.root.Authority ||
			!found.Roots[1].Signs || found.Roots[1].Default || found.HighestRoot != 2 || len(found.Bridges) != 1 || found.Bridges[0].Authority != l.bridge.Authority {
			t.Errorf("mode %d: roots %+v, highest %d, bridges %+v", n, found.Roots, found.HighestRoot, found.Bridges)
		}
	}
}

// rootRetired takes the old root out of use, and into use again, and out, and
// deletes its key; what is set up again then is the new one.
func (w *world) rootRetired(t *testing.T, d done, l lineage) {
	t.Helper()
	ctx := context.Background()
	r1, r2 := d.root.Authority.IssuerID, l.root.Authority.IssuerID
	use := func(signs bool, newDefault string) {
		t.Helper()
		in := vault.UseIssuerInput{Spec: w.spec, Root: true, IssuerID: r1, Signs: signs, Default: newDefault, Mode: procedure.Apply}
		if out, err := w.UseIssuer(ctx, in); err != nil || len(out.Changes) != 2 {
			t.Fatalf("%v, %v", out.Changes, err)
		}
		w.proxy.begin(0)
		if out, err := w.UseIssuer(ctx, in); err != nil || len(out.Changes) > 0 || len(w.proxy.written()) > 0 {
			t.Errorf("again: %v, %v", out.Changes, err)
		}
		if now := w.data(t, "pki/config/issuers")["default"]; now != newDefault {
			t.Errorf("the default is %v, expected %s", now, newDefault)
		}
		if old := w.survey(t).Roots[0]; old.Signs != signs || !old.HasKey || old.Default != signs {
			t.Errorf("the old root is %+v", old)
		}
	}
	del := vault.DeleteKeyInput{Spec: w.spec, Root: true, IssuerID: r1, Name: "relay-root-g1", CertificatePEM: d.root.CertificatePEM, Mode: procedure.Apply}
	_, err := w.DeleteKey(ctx, del)
	wantFailure(t, err, failure.Conflict, "mount pki:", "it may still issue", "it is the mount's default")
	use(false, r2)
	if usage := w.data(t, "pki/issuer/"+r1)["usage"]; usage != "crl-signing,ocsp-signing,read-only" {
		t.Errorf("usage %v", usage)
	}
	// A rotation that goes on has nothing to sign any more.
	if again, err := w.prepare(ctx, d, 2, procedure.Apply); err != nil || len(again.changes) > 0 {
		t.Errorf("prepared again: %v, %v", again.changes, err)
	}
	use(true, r1)
	use(false, r2)
	relay := w.data(t, "pki_relay/issuer/relay-root-g1")["issuer_id"]
	wrong := del
	wrong.Name = "relay-intermediate-g1"
	_, err = w.DeleteKey(ctx, wrong)
	wantFailure(t, err, failure.InvalidInput, "relay-root-g<generation>")
	out, err := w.DeleteKey(ctx, del)
	if err != nil || len(out.Changes) != 1 || out.Changes[0].Object != "vault key pki/relay-root-g1" {
		t.Fatalf("%v, %v", out.Changes, err)
	}
	w.proxy.begin(0)
	if out, err := w.DeleteKey(ctx, del); err != nil || len(out.Changes) > 0 || len(w.proxy.written()) > 0 {
		t.Errorf("deleted again: %v, %v", out.Changes, err)
	}
	if left := w.data(t, "pki/issuer/relay-root-g1"); left["key_id"] != "" || !certificate(t, left["certificate"].(string)).Equal(certificate(t, d.root.CertificatePEM)) {
		t.Errorf("what is left is %v", left)
	}
	if named, all := w.count(t, "pki/keys", "key_name", "relay-root-g1"); named != 0 || all != 1 {
		t.Errorf("%d keys of that name, %d in all", named, all)
	}
	if now := w.data(t, "pki_relay/issuer/relay-root-g1")["issuer_id"]; now != relay || w.data(t, "pki/config/issuers")["default"] != r2 {
		t.Errorf("in the relay mount it was %v and is %v; the default is %v", relay, now, w.data(t, "pki/config/issuers"))
	}
	found := w.survey(t)
	if found.Root.Authority != l.root.Authority || found.Roots[0].HasKey || !found.Roots[1].Default || found.HighestRoot != 2 {
		t.Errorf("found %+v, %+v", found.Root.Authority, found.Roots)
	}

	w.settingUp()
	if check, err := w.CheckVault(ctx, vault.CheckVaultInput{Spec: w.spec}); err != nil || len(check.Problems) > 0 {
		t.Errorf("a setup after that: %v, %v", check.Problems, err)
	}
	setup := w.newRoot(2, procedure.Apply)
	setup.Rotation = false
	w.proxy.begin(0)
	if again, err := w.GenerateRoot(ctx, setup); err != nil || len(again.Changes) > 0 || again.Authority != l.root.Authority || len(w.proxy.written()) > 0 {
		t.Errorf("a setup finds %+v, %v", again, err)
	}
	in := w.staging(done{root: l.root}, 2)
	in.Rotation = false
	if again, err := w.SetSignedIntermediate(ctx, in); err != nil || again.Authority != l.relay.Authority || len(again.Changes) > 0 {
		t.Errorf("a setup finds %+v, %v", again, err)
	}
	if chain := w.survey(t).Active.AbovePEM; !slices.Equal(chain, []string{l.root.CertificatePEM}) {
		t.Error("a setup changes the chain")
	}
}

// Cut off after each write in turn, a generation each.
func TestRootRotationInterrupted(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.mustSetup(t)
	w.operating()
	w.proxy.begin(0)
	w.mustPrepare(t, d, 2)
	total := len(w.proxy.written())
	if total != 11 {
		t.Fatalf("expected the root, CSR and signature of the bridge, two imports with a name each, and the intermediate's key, signature, import and settings: %v", w.proxy.written())
	}
	for n := 1; n <= total; n++ {
		generation := 2 + n
		w.proxy.begin(n)
		_, err := w.prepare(ctx, d, generation, procedure.Apply)
		wantFailure(t, err, failure.Unavailable)
		cut := fmt.Sprintf("cut off after write %d, %v", n, w.proxy.written())
		w.proxy.begin(0)
		if _, err := w.prepare(ctx, d, generation, procedure.Plan); err != nil {
			t.Errorf("%s, then planned: %v", cut, err)
		}
		if written := w.proxy.written(); len(written) > 0 {
			t.Errorf("%s: planning wrote %v", cut, written)
		}
		if _, err := w.prepare(ctx, d, generation, procedure.Apply); err != nil {
			t.Fatalf("%s, then run again: %v", cut, err)
		}
		w.prepared(t, cut, d, generation)
	}
	// A key that Vault has made and no root yet.
	w.rootWrite(t, "pki/keys/generate/internal", map[string]any{"key_name": fmt.Sprintf("relay-root-g%d", total+3), "key_type": "ec"})
	w.mustPrepare(t, d, total+3)
	w.prepared(t, "with a key", d, total+3)
}

// What speaks against another root, or against a bridge to it, is said before there
// is a key, and before anything is signed.
func TestRootRotationRefused(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.mustSetup(t)
	w.operating()
	w.rootWrite(t, "pki/root/generate/internal", map[string]any{"common_name": "Other G2", "key_type": "ec", "issuer_name": "relay-root-gone"})
	for _, test := range []struct {
		name   string
		change func(*vault.GenerateRootInput)
		kind   failure.Kind
		words  []string
	}{
		{"a name that is taken", func(in *vault.GenerateRootInput) { in.CA.CommonName = "Other" }, failure.Preflight, []string{"relay-root-gone", "has the new root's common name already"}},
		{"a long name", func(in *vault.GenerateRootInput) { in.CA.CommonName = strings.Repeat("x", 62) }, failure.Preflight, []string{"65 characters", "at most 64"}},
		{"the mount cuts", func(in *vault.GenerateRootInput) { in.CA.TTL = mesh.Hours(200000) }, failure.Mismatch, []string{"tune"}},
	} {
		for _, mode := range []procedure.Mode{procedure.Apply, procedure.Plan} {
			in := w.newRoot(2, mode)
			test.change(&in)
			_, err := w.GenerateRoot(ctx, in)
			wantFailure(t, err, test.kind, test.words...)
			if named, _ := w.count(t, "pki/keys", "key_name", "relay-root-g2"); named != 0 {
				t.Errorf("%s: a key was made all the same", test.name)
			}
		}
	}

	l := w.mustPrepare(t, d, 2)
	// root makes another one by hand, and imports it where R1 is.
	root := func(data map[string]any) vault.CAResult {
		t.Helper()
		data["key_type"] = "ec"
		made := w.rootWrite(t, "pki/root/generate/internal", data)
		w.rootWrite(t, "pki_relay/issuers/import/cert", map[string]any{"pem_bundle": made["certificate"]})
		return vault.CAResult{CertificatePEM: made["certificate"].(string), Authority: procedure.Authority{IssuerID: made["issuer_id"].(string)}}
	}
	third := root(map[string]any{"common_name": "Third", "ttl": "1000h"})
	idle := root(map[string]any{"common_name": "Idle", "ttl": "1000h"})
	w.rootPatch(t, "pki/issuer/"+idle.Authority.IssuerID, map[string]any{"usage": "read-only"})
	for _, test := range []struct {
		name   string
		change func(*vault.BridgeInput)
		kind   failure.Kind
		words  []string
	}{
		{"path length 1", func(in *vault.BridgeInput) {
			in.OldRoot = root(map[string]any{"common_name": "One", "ttl": "1000h", "max_path_length": 1})
		}, failure.Preflight, []string{"path length 1", "into every trust by hand", "EmergencyReissue"}},
		{"path length 0", func(in *vault.BridgeInput) {
			in.OldRoot = root(map[string]any{"common_name": "None", "ttl": "1000h", "max_path_length": 0})
		}, failure.Preflight, []string{"path length 0"}},
		{"near its end", func(in *vault.BridgeInput) {
			in.OldRoot = root(map[string]any{"common_name": "Short", "ttl": "191h"}) // a week and a day, but for an hour
		}, failure.Preflight, []string{"has to last for 192h"}},
		{"out of use", func(in *vault.BridgeInput) { in.OldRoot = idle }, failure.Preflight, []string{"its usage does not let it issue"}},
		{"more of a subject", func(in *vault.BridgeInput) {
			in.NewRoot = root(map[string]any{"common_name": "Fourth", "ttl": "1000h", "country": "CH"})
		}, failure.Mismatch, []string{"cannot be bridged to", "CN=Fourth"}},
		{"another root than the one meant", func(in *vault.BridgeInput) { in.NewRoot.CertificatePEM = d.root.CertificatePEM }, failure.Mismatch, []string{"the one that is meant"}},
		{"no new root", func(in *vault.BridgeInput) { in.NewRoot = vault.CAResult{} }, failure.Preflight, []string{"has no issuer"}},
		{"an old root that is not in the relay mount", func(in *vault.BridgeInput) {
			in.OldRoot = root(map[string]any{"common_name": "Elsewhere", "ttl": "1000h"})
			for _, id := range w.issuersWith(t, "pki_relay", in.OldRoot.CertificatePEM) {
				if _, err := w.Root.Logical().Delete("pki_relay/issuer/" + id); err != nil {
					t.Fatal(err)
				}
			}
		}, failure.Preflight, []string{"is not in the mount pki_relay"}},
		{"a name that is taken", func(in *vault.BridgeInput) { in.Generation = 2 }, failure.Conflict, []string{"the name relay-root-g2 is another CA's"}},
		{"a root that is kept elsewhere", func(in *vault.BridgeInput) { in.Spec.PKI.Root.Kept = mesh.KeptOffline }, failure.InvalidInput, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := vault.BridgeInput{Spec: w.spec, Generation: 9, OldRoot: d.root, NewRoot: third, Mode: procedure.Apply}
			test.change(&in)
			w.proxy.begin(0)
			_, err := w.BridgeRoot(ctx, in)
			wantFailure(t, err, test.kind, test.words...)
			for _, path := range w.proxy.written() {
				if strings.Contains(path, "import") || strings.HasSuffix(path, "sign-intermediate") && in.Generation != 2 {
					t.Errorf("it wrote %s all the same", path)
				}
			}
			if test.kind == failure.Preflight && in.OldRoot.Authority != d.root.Authority {
				// So does a look ahead, when there is no new root yet.
				in.NewRoot, in.Mode = vault.CAResult{Authority: procedure.Authority{Name: "relay-root-g9"}}, procedure.Observe
				_, err := w.BridgeRoot(ctx, in)
				wantFailure(t, err, test.kind, test.words...)
			}
		})
	}
	w.stillOne(t, l)

	chain := vault.SetChainInput{Spec: w.spec, IssuerID: l.relay.Authority.IssuerID, Mode: procedure.Apply}
	for _, test := range []struct {
		name  string
		above []string
		kind  failure.Kind
		words string
	}{
		{"in another order", []string{d.root.CertificatePEM, l.bridge.CertificatePEM}, failure.Conflict, "names"},
		{"without the bridge", []string{d.root.CertificatePEM}, failure.Conflict, "names"},
		{"on beyond the root", []string{l.root.CertificatePEM, l.bridge.CertificatePEM}, failure.Conflict, "self-signed and not the last"},
		{"of what is not there", []string{w.data(t, "pki/issuer/relay-root-gone")["certificate"].(string)}, failure.Preflight, "is not in the mount pki_relay"},
		{"of a name", []string{"relay-root-g2"}, failure.InvalidInput, "cannot be read"},
	} {
		w.proxy.begin(0)
		chain.AbovePEM = test.above
		_, err := w.SetChain(ctx, chain)
		wantFailure(t, err, test.kind, test.words)
		in := w.staging(d, 3)
		in.RootIssuerID, in.RootPEM, in.AbovePEM = l.root.Authority.IssuerID, l.root.CertificatePEM, test.above
		if _, err := w.SetSignedIntermediate(ctx, in); err == nil {
			t.Errorf("%s: an intermediate gets such a chain", test.name)
		}
		if written := w.proxy.written(); len(written) > 0 {
			t.Errorf("%s: wrote %v", test.name, written)
		}
	}
	chain.IssuerID = "00000000-0000-0000-0000-000000000000"
	_, err := w.SetChain(ctx, chain)
	wantFailure(t, err, failure.Preflight, "has no issuer")
}

// stillOne: what was refused has changed nothing of the rotation that is there.
func (w *world) stillOne(t *testing.T, l lineage) {
	t.Helper()
	found := w.survey(t)
	if len(found.Bridges) != 1 || found.Bridges[0].Authority != l.bridge.Authority || len(found.Roots) != 2 {
		t.Errorf("bridges %+v, roots %+v", found.Bridges, found.Roots)
	}
}

// issuersWith are the ids of the issuers that have exactly this certificate.
func (w *world) issuersWith(t *testing.T, mount, text string) []string {
	t.Helper()
	list, err := w.Root.Logical().List(mount + "/issuers")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, id := range list.Data["keys"].([]any) {
		if certificate(t, w.data(t, mount+"/issuer/"+id.(string))["certificate"].(string)).Equal(certificate(t, text)) {
			out = append(out, id.(string))
		}
	}
	return out
}

// The commands of a plan, run by hand one after the other, leave a rotation of the
// root nothing to do.
func TestRootRotatedByHand(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.mustSetup(t)
	w.operating()
	w.followLatest(t, d)
	r1 := d.root.Authority.IssuerID
	rotate := func(mode procedure.Mode) []procedure.Change {
		t.Helper()
		l, err := w.prepare(ctx, d, 2, mode)
		if err != nil {
			t.Fatal(err)
		}
		idOrName := func(a procedure.Authority) string {
			if a.IssuerID != "" {
				return a.IssuerID
			}
			return a.Name
		}
		relay := idOrName(l.relay.Authority)
		changes := append(l.changes, w.moveAll(t, mode, relay)...)
		for _, above := range [][]string{{textOrName(l.bridge)}, {textOrName(l.root)}} {
			if mode == procedure.Apply && above[0] == l.bridge.CertificatePEM {
				continue // that was on the way
			}
			out, err := w.SetChain(ctx, vault.SetChainInput{Spec: w.spec, IssuerID: relay, AbovePEM: above, Mode: mode})
			if err != nil {
				t.Fatal(err)
			}
			changes = append(changes, out.Changes...)
		}
		used, err := w.UseIssuer(ctx, vault.UseIssuerInput{Spec: w.spec, Root: true, IssuerID: r1, Default: idOrName(l.root.Authority), Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		return append(changes, used.Changes...)
	}
	w.proxy.begin(0)
	planned := rotate(procedure.Plan)
	if written := w.proxy.written(); len(written) > 0 {
		t.Errorf("planning wrote %v", written)
	}
	w.byHand(t, done{changes: planned})
	if left := rotate(procedure.Apply); len(left) > 0 {
		t.Errorf("after the commands there is still to %v", left)
	}
	found := w.survey(t)
	if len(found.Roots) != 2 || found.Root.Authority != found.Roots[1].Authority || found.Roots[0].Signs || !found.Roots[1].Default || len(found.Bridges) != 1 {
		t.Errorf("found %+v", found)
	}

	in := vault.DeleteKeyInput{Spec: w.spec, Root: true, IssuerID: r1, Name: "relay-root-g1", CertificatePEM: d.root.CertificatePEM, Mode: procedure.Plan}
	deletion, err := w.DeleteKey(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	w.byHand(t, done{changes: deletion.Changes})
	in.Mode = procedure.Apply
	if out, err := w.DeleteKey(ctx, in); err != nil || len(out.Changes) > 0 {
		t.Errorf("after the commands there is still to %v (%v)", out.Changes, err)
	}
}
