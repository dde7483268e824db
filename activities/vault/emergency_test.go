package vault_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
)

// unbridged runs the activities as an emergency does that replaces the root: nothing of
// the old one is asked.
func (w *world) unbridged(ctx context.Context, generation int, mode procedure.Mode) (lineage, error) {
	var l lineage
	var err error
	if l.root, err = w.GenerateRoot(ctx, w.newRoot(generation, mode)); err != nil {
		return l, err
	}
	l.changes = append(l.changes, l.root.Changes...)
	if l.bridge, err = w.BridgeRoot(ctx, vault.BridgeInput{Spec: w.spec, Generation: generation, NewRoot: l.root, Unbridged: true, Mode: mode}); err != nil {
		return l, err
	}
	l.changes = append(l.changes, l.bridge.Changes...)
	in := w.staging(done{root: l.root}, generation)
	in.Mode = mode
	if in.RootIssuerID == "" {
		in.RootIssuerID = l.root.Authority.Name
	}
	in.AbovePEM = []string{textOrName(l.bridge)}
	l.relay, err = w.stage(ctx, in)
	l.changes = append(l.changes, l.relay.changes...)
	return l, err
}

// A root that takes the place of a compromised one is vouched for by nobody, and the
// compromised one need not be able to sign.
func TestUnbridgedRoot(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.mustSetup(t)
	w.rootPatch(t, "pki/issuer/"+d.root.Authority.IssuerID, map[string]any{"usage": "read-only"})
	w.operating()
	w.followLatest(t, d)

	w.proxy.begin(0)
	planned, err := w.unbridged(ctx, 2, procedure.Plan)
	if err != nil || planned.bridge.Authority.Name != "relay-root-g2" || len(w.proxy.written()) > 0 {
		t.Fatalf("planned %+v, wrote %v, %v", planned.bridge, w.proxy.written(), err)
	}
	w.byHand(t, done{changes: planned.changes})
	l, err := w.unbridged(ctx, 2, procedure.Apply)
	if err != nil || len(l.changes) > 0 {
		t.Fatalf("after the commands there is still to %v (%v)", l.changes, err)
	}

	// Cut off after each write in turn, a generation each.
	w.proxy.begin(0)
	if l, err = w.unbridged(ctx, 3, procedure.Apply); err != nil {
		t.Fatal(err)
	}
	total := len(w.proxy.written())
	if total != 7 {
		t.Fatalf("expected the root, its import with a name, and the intermediate's key, signature, import and settings: %v", w.proxy.written())
	}
	w.unbridgedMade(t, l, 3)
	for n := 1; n <= total; n++ {
		w.proxy.begin(n)
		_, err := w.unbridged(ctx, 3+n, procedure.Apply)
		wantFailure(t, err, failure.Unavailable)
		w.proxy.begin(0)
		if l, err = w.unbridged(ctx, 3+n, procedure.Apply); err != nil {
			t.Fatalf("cut off after write %d, then run again: %v", n, err)
		}
		w.unbridgedMade(t, l, 3+n)
	}
	w.proxy.begin(0)
	for _, mode := range []procedure.Mode{procedure.Apply, procedure.Plan, procedure.Observe} {
		if again, err := w.unbridged(ctx, 3+total, mode); err != nil || len(again.changes) > 0 || again.bridge.Authority != l.bridge.Authority || len(w.proxy.written()) > 0 {
			t.Errorf("%s again: %v, wrote %v, %v", mode, again.changes, w.proxy.written(), err)
		}
	}

	w.moveAll(t, procedure.Apply, l.relay.Authority.IssuerID)
	if _, err := w.ProveIssuer(ctx, vault.ProveIssuerInput{Spec: w.spec, IssuerID: l.relay.Authority.IssuerID, RootPEM: l.root.CertificatePEM, Mode: procedure.Apply}); err != nil {
		t.Error(err)
	}
	for _, id := range []string{d.relay.Authority.IssuerID, w.data(t, "pki_relay/issuer/relay-intermediate-g2")["issuer_id"].(string)} {
		if _, err := w.UseIssuer(ctx, vault.UseIssuerInput{Spec: w.spec, IssuerID: id, Default: l.relay.Authority.IssuerID, Mode: procedure.Apply}); err != nil {
			t.Error(err)
		}
	}
	found := w.survey(t)
	if len(found.Bridges) > 0 || found.Root.Authority != l.root.Authority || !slices.Equal(found.Active.AbovePEM, []string{l.root.CertificatePEM}) {
		t.Errorf("found %+v", found)
	}
	for _, i := range found.Intermediates {
		if retired := i.Generation < 3; i.Signs == retired || i.Default != (i.Authority == l.relay.Authority) {
			t.Errorf("%+v", i)
		}
	}

	in := vault.BridgeInput{Spec: w.spec, Generation: 2, NewRoot: l.root, Unbridged: true, Mode: procedure.Apply}
	_, err = w.BridgeRoot(ctx, in)
	wantFailure(t, err, failure.Conflict, "the name relay-root-g2 is another CA's")
	in.NewRoot.CertificatePEM = d.root.CertificatePEM
	_, err = w.BridgeRoot(ctx, in)
	wantFailure(t, err, failure.Mismatch, "the one that is meant")
}

// unbridgedMade: the root is in both mounts, its key in one, and nobody has signed it.
func (w *world) unbridgedMade(t *testing.T, l lineage, generation int) {
	t.Helper()
	r2 := certificate(t, l.root.CertificatePEM)
	if n := w.signedFor(t, r2); n != 1 {
		t.Errorf("generation %d: %d certificates for the new root's key, expected its own", generation, n)
	}
	imported := w.data(t, "pki_relay/issuer/"+vault.RootName(generation))
	if !certificate(t, imported["certificate"].(string)).Equal(r2) || imported["key_id"] != "" || l.bridge.Authority.IssuerID != imported["issuer_id"] || l.bridge.CertificatePEM != l.root.CertificatePEM {
		t.Errorf("generation %d: in the relay mount it is %v, and the answer %+v", generation, imported, l.bridge.Authority)
	}
	for _, name := range []string{vault.RootName(generation), vault.BridgeName(generation)} {
		want := 1
		if name == vault.BridgeName(generation) {
			want = 0
		}
		if named, _ := w.count(t, "pki_relay/issuers", "issuer_name", name); named != want {
			t.Errorf("%d in the relay mount are named %s, expected %d", named, name, want)
		}
	}
	if i := certificate(t, l.relay.CertificatePEM); pki.SignedBy(i, r2) != nil {
		t.Errorf("generation %d: the intermediate is by %s", generation, i.Issuer)
	}
}

// An intermediate that was made in an emergency, and is pinned, stays as it is, whoever
// comes by: the rotation that has made it, a setup, a look.
func TestPinnedIntermediate(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.mustSetup(t)
	w.operating()
	second := w.mustStage(t, w.staging(d, 2)) // a rotation that came no further

	in := w.staging(d, 3)
	in.CA.CommonName = vault.IntermediateCommonName(in.CA.CommonName, 3)
	in.AbovePEM = []string{d.root.CertificatePEM}
	pinned := w.mustStage(t, in)
	c := certificate(t, pinned.CertificatePEM)
	if c.Subject.CommonName != w.spec.PKI.Intermediate.CommonName+" G3" {
		t.Errorf("it is %q", c.Subject)
	}
	id := pinned.Authority.IssuerID
	pin := vault.SetChainInput{Spec: w.spec, IssuerID: id, AbovePEM: []string{}, Mode: procedure.Apply}
	if out, err := w.SetChain(ctx, pin); err != nil || len(out.Changes) != 1 {
		t.Fatalf("%v, %v", out.Changes, err)
	}
	w.moveAll(t, procedure.Apply, id)
	if _, err := w.ProveIssuer(ctx, vault.ProveIssuerInput{Spec: w.spec, IssuerID: id, RootPEM: pinned.CertificatePEM, Mode: procedure.Apply}); err != nil {
		t.Error(err)
	}
	for _, other := range []string{d.relay.Authority.IssuerID, second.Authority.IssuerID} {
		use := vault.UseIssuerInput{Spec: w.spec, IssuerID: other, Default: id, Mode: procedure.Apply}
		if out, err := w.UseIssuer(ctx, use); err != nil || len(out.Changes) == 0 {
			t.Errorf("%v, %v", out.Changes, err)
		}
		if usage := w.data(t, "pki_relay/issuer/"+other)["usage"].(string); strings.Contains(usage, "issuing") {
			t.Errorf("one that is replaced is used for %s", usage)
		}
	}
	looked := func(when string) {
		t.Helper()
		found := w.survey(t)
		// As it comes out of an activity.
		data, err := json.Marshal(found)
		if err == nil {
			found = vault.SurveyResult{}
			err = json.Unmarshal(data, &found)
		}
		if err != nil || found.Active.Authority != pinned.Authority || found.Active.AbovePEM == nil || len(found.Active.AbovePEM) > 0 || !found.Active.Default || found.Root.Authority != d.root.Authority || found.Highest != 3 {
			t.Errorf("%s: active %+v, root %+v, highest %d, %v", when, found.Active, found.Root.Authority, found.Highest, err)
		}
	}
	looked("pinned")

	w.proxy.begin(0)
	if again, err := w.stage(ctx, in); err != nil || len(again.changes) > 0 || again.Authority != pinned.Authority {
		t.Errorf("made again: %v, %v", again.changes, err)
	}
	w.settingUp()
	if check, err := w.CheckVault(ctx, vault.CheckVaultInput{Spec: w.spec}); err != nil || len(check.Problems) > 0 {
		t.Errorf("a setup: %v, %v", check.Problems, err)
	}
	setup := w.staging(d, 3)
	setup.Rotation = false
	if csr, err := w.GenerateIntermediateCSR(ctx, setup); err != nil || !csr.Present {
		t.Errorf("a setup makes a CSR: %+v, %v", csr, err)
	}
	if again, err := w.SetSignedIntermediate(ctx, setup); err != nil || again.Authority != pinned.Authority || len(again.Changes) > 0 {
		t.Errorf("a setup finds %+v, %v", again, err)
	}
	if roles, err := w.ConfigureRoles(ctx, vault.ConfigureRolesInput{Spec: w.spec, IssuerID: id, Mode: procedure.Apply}); err != nil || len(roles.Changes) > 0 {
		t.Errorf("a setup changes the roles: %v, %v", roles.Changes, err)
	}
	if written := w.proxy.written(); len(written) > 0 {
		t.Errorf("wrote %v", written)
	}
	looked("set up again")

	setup.CA.CommonName = "Another"
	_, err := w.SetSignedIntermediate(ctx, setup)
	wantFailure(t, err, failure.Conflict, `"Another"`)
	// Its name is of its generation alone.
	w.rootPatch(t, "pki_relay/issuer/"+second.Authority.IssuerID, map[string]any{"issuer_name": "gone"})
	w.rootPatch(t, "pki_relay/issuer/"+id, map[string]any{"issuer_name": "relay-intermediate-g2"})
	setup = w.staging(d, 2)
	setup.Rotation = false
	_, err = w.SetSignedIntermediate(ctx, setup)
	wantFailure(t, err, failure.Conflict, "common name")
}

func TestIntermediateCommonName(t *testing.T) {
	for _, test := range []struct {
		asked      string
		generation int
		want       string
	}{
		{"Relay CA", 1, "Relay CA"},
		{"Relay CA", 2, "Relay CA G2"},
		{"", 2, ""},
		{strings.Repeat("x", 64), 12, strings.Repeat("x", 60) + " G12"},
		{strings.Repeat("x", 60) + "é", 2, strings.Repeat("x", 60) + " G2"},
		{strings.Repeat("x", 59) + "é", 2, strings.Repeat("x", 59) + "é G2"},
	} {
		if got := vault.IntermediateCommonName(test.asked, test.generation); got != test.want || len(got) > 64 {
			t.Errorf("%q, generation %d: %q, want %q", test.asked, test.generation, got, test.want)
		}
	}
}
