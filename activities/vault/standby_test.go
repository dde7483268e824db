package vault_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

func (w *world) standby(t *testing.T, generation int, mode procedure.Mode) vault.CAResult {
	t.Helper()
	out, err := w.StandbyRoot(context.Background(), vault.StandbyRootInput{Spec: w.spec, Generation: generation, Mode: mode})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// standsBy: that root is found, by whoever looks, and nothing is written for it.
func (w *world) standsBy(t *testing.T, when string, atWork int, want vault.CAResult) {
	t.Helper()
	w.proxy.begin(0)
	for _, mode := range []procedure.Mode{procedure.Apply, procedure.Plan, procedure.Observe} {
		if again := w.standby(t, atWork, mode); len(again.Changes) > 0 || again.Authority != want.Authority || again.CertificatePEM != want.CertificatePEM {
			t.Errorf("%s, %s again: %+v, %v", when, mode, again.Authority, again.Changes)
		}
	}
	if written := w.proxy.written(); len(written) > 0 {
		t.Errorf("%s: again, it wrote %v", when, written)
	}
	if found, ok := vault.StandingBy(w.survey(t).Roots, atWork); !ok || found.Authority != want.Authority {
		t.Errorf("%s: a survey finds %+v, %v", when, found, ok)
	}
}

// From its making to the rotation that takes it up, and on to the next one.
func TestStandbyRoot(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.mustSetup(t)
	w.operating()
	w.rootWrite(t, "pki/config/issuers", map[string]any{"default": d.root.Authority.IssuerID, "default_follows_latest_issuer": true})
	if found, ok := vault.StandingBy(w.survey(t).Roots, 1); ok {
		t.Fatalf("none was made, and %+v stands by", found)
	}
	w.proxy.begin(0)
	planned := w.standby(t, 1, procedure.Plan)
	if written := w.proxy.written(); len(written) > 0 || planned.PrintedBy == "" || planned.Authority.Name != "relay-root-g2" {
		t.Errorf("planned: wrote %v, %+v, printed by %q", written, planned.Authority, planned.PrintedBy)
	}
	if n := len(planned.Changes); n != 2 || planned.Changes[n-1].Object != "vault issuer pki/relay-root-g2" {
		t.Errorf("planned: %v", planned.Changes)
	}
	second := w.standby(t, 1, procedure.Apply)
	if c := certificate(t, second.CertificatePEM); c.Subject.String() != "CN=Solo.io Root CA G2,O=solo.io" {
		t.Errorf("it is %q", c.Subject)
	}
	if config := w.data(t, "pki/config/issuers"); config["default"] != d.root.Authority.IssuerID || config["default_follows_latest_issuer"] != false {
		t.Errorf("the root at work is no longer the default: %v", config)
	}
	w.standsBy(t, "made", 1, second)
	w.settingUp()
	if again, err := w.setup(ctx, procedure.Apply); err != nil || len(again.changes) > 0 {
		t.Errorf("a setup changes %v, %v", again.changes, err)
	}
	w.operating()

	// A rotation goes to it, and makes no other root.
	l := w.mustPrepare(t, d, 2)
	w.prepared(t, "prepared", d, 2)
	if l.root.Authority != second.Authority || slices.ContainsFunc(l.changes, func(c procedure.Change) bool { return c.Object == "vault issuer pki/relay-root-g2" }) {
		t.Errorf("the rotation goes to %+v and has changed %v", l.root.Authority, l.changes)
	}
	w.standsBy(t, "in a rotation", 1, second)
	use := func(id string, signs bool, newDefault string) {
		t.Helper()
		if _, err := w.UseIssuer(ctx, vault.UseIssuerInput{Spec: w.spec, Root: true, IssuerID: id, Signs: signs, Default: newDefault, Mode: procedure.Apply}); err != nil {
			t.Fatal(err)
		}
	}
	// The rotation is over.
	use(d.root.Authority.IssuerID, false, second.Authority.IssuerID)
	if found, ok := vault.StandingBy(w.survey(t).Roots, 2); ok {
		t.Errorf("it is used up, and %+v stands by", found)
	}
	third := w.standby(t, 2, procedure.Apply)
	if third.Authority.Name != "relay-root-g3" {
		t.Errorf("the next one is %+v", third.Authority)
	}
	w.standsBy(t, "the next", 2, third)

	// What a rotation was taken back from is not gone to again, and its name is taken.
	use(third.Authority.IssuerID, false, second.Authority.IssuerID)
	fourth := w.standby(t, 2, procedure.Apply)
	if fourth.Authority.Name != "relay-root-g4" {
		t.Errorf("after the third was put away it is %+v", fourth.Authority)
	}
	w.standsBy(t, "after the third", 2, fourth)
}

// Whoever is cut off finds what was made; a mount that would cut its life makes none.
func TestStandbyRootInterrupted(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.mustSetup(t)
	in := vault.StandbyRootInput{Spec: w.spec, Generation: 1, Mode: procedure.Apply}
	short := fmt.Sprintf("%ds", int64(w.spec.PKI.Root.TTL.Seconds())-1)
	tune := func(longest string) {
		t.Helper()
		w.rootWrite(t, "sys/mounts/pki/tune", map[string]any{"max_lease_ttl": longest})
	}
	tune(short)
	_, err := w.StandbyRoot(ctx, in)
	wantFailure(t, err, failure.Mismatch, "tune")
	if named, _ := w.count(t, "pki/keys", "key_name", "relay-root-g2"); named != 0 {
		t.Error("a key was made all the same")
	}
	tune(w.spec.PKI.Root.TTL.String())

	w.proxy.begin(1)
	_, err = w.StandbyRoot(ctx, in)
	wantFailure(t, err, failure.Unavailable)
	w.proxy.begin(0)
	second := w.standby(t, 1, procedure.Apply)
	if written := w.proxy.written(); len(written) > 0 || second.Authority.Name != "relay-root-g2" {
		t.Errorf("run again, it wrote %v: %+v", written, second.Authority)
	}
	for _, path := range []string{"pki/keys", "pki/issuers"} {
		if _, all := w.count(t, path, "issuer_name", ""); all != 2 {
			t.Errorf("%d at %s, expected the root at work and the one that stands by", all, path)
		}
	}
	// The name of a root whose issuer is gone is not given again.
	if _, err := w.Root.Logical().Delete("pki/issuer/relay-root-g2"); err != nil {
		t.Fatal(err)
	}
	if third := w.standby(t, 1, procedure.Apply); third.Authority.Name != "relay-root-g3" {
		t.Errorf("with a key of that name it is %+v", third.Authority)
	}
}

// The commands of a plan, in a Vault that has nothing, and in one that is set up.
func TestStandbyRootPlannedByHand(t *testing.T) {
	w := newWorld(t)
	w.spec.PKI.StandbyRoot = true
	w.byHand(t, w.plan(t))
	if d := w.mustSetup(t); len(d.changes) > 0 || d.standby.Authority.Name != "relay-root-g2" {
		t.Errorf("a setup after the commands has still to %v; %+v stands by", d.changes, d.standby.Authority)
	}
	w.forget(t)
	w.spec.PKI.StandbyRoot = false
	w.mustSetup(t)
	w.spec.PKI.StandbyRoot = true
	d := w.plan(t)
	if want := []string{"create vault issuer pki/relay-root-g2"}; !slices.Equal(d.changed(), want) {
		t.Errorf("the plan: %v, want %v", d.changed(), want)
	}
	w.byHand(t, d)
	if d := w.mustSetup(t); len(d.changes) > 0 {
		t.Errorf("a setup after the commands has still to %v", d.changes)
	}
}
