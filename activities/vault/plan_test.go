package vault_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// plan looks, and fails the test if looking has written anything.
func (w *world) plan(t *testing.T) done {
	t.Helper()
	w.proxy.begin(0)
	d, err := w.setup(context.Background(), procedure.Plan)
	if err != nil {
		t.Fatal(err)
	}
	if written := w.proxy.written(); len(written) > 0 {
		t.Errorf("planning wrote %v", written)
	}
	return d
}

// byHand runs the commands of a plan in a shell, as an operator would who is
// root in Vault.
func (w *world) byHand(t *testing.T, d done) {
	t.Helper()
	var script strings.Builder
	script.WriteString("set -euo pipefail\n")
	for _, c := range d.changes {
		if len(c.Commands) == 0 {
			t.Errorf("the plan does not say how to %s %s", c.Verb, c.Object)
		}
		for _, command := range c.Commands {
			script.WriteString(command + "\n")
		}
	}
	bin := t.TempDir()
	if err := os.Symlink(w.Program, filepath.Join(bin, "vault")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-c", script.String())
	cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + bin,
		"VAULT_ADDR=" + w.Address, "VAULT_CACERT=" + w.CAFile, "VAULT_TOKEN=" + w.Root.Token()}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n--- the script:\n%s", err, out, script.String())
	}
}

// The commands of a plan, run by hand, leave a setup nothing to do: of a Vault
// that has nothing, and of one that somebody has changed.
func TestPlannedByHand(t *testing.T) {
	for _, method := range []string{mesh.CredentialJWT, mesh.CredentialToken, mesh.CredentialAppRole} {
		t.Run(method, func(t *testing.T) {
			w := newWorld(t)
			w.spec.Credential.Method = method
			w.byHand(t, w.plan(t))
			d := w.mustSetup(t)
			if len(d.changes) > 0 {
				t.Fatalf("a setup after the commands has still to %v", d.changes)
			}
			if len(w.plan(t).changes) > 0 {
				t.Error("a plan of what is as it should be has changes")
			}
			w.widen(t)
			drift := w.plan(t)
			if want := []string{"update vault issuer pki_relay/" + d.relay.Authority.IssuerID, "update vault policy relaypki-prod-cluster2",
				"update vault role pki_relay/roles/relay-client-cluster1"}; !slices.Equal(sorted(drift.changed()), want) {
				t.Errorf("the plan after a drift: %v, want %v", drift.changed(), want)
			}
			w.byHand(t, drift)
			if d := w.mustSetup(t); len(d.changes) > 0 {
				t.Errorf("a setup after the commands has still to %v", d.changes)
			}
		})
	}
}

// widen changes by hand what a setup has made.
func (w *world) widen(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	if _, err := w.Root.Logical().JSONMergePatch(ctx, "pki_relay/issuer/relay-intermediate-g1", map[string]any{"leaf_not_after_behavior": "truncate"}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Root.Logical().JSONMergePatch(ctx, "pki_relay/roles/relay-client-cluster1", map[string]any{"allow_any_name": true}); err != nil {
		t.Fatal(err)
	}
	if err := w.Root.Sys().PutPolicy("relaypki-prod-cluster2", "# relaypki: mesh prod, cluster cluster2. It's \"all\" $HOME `x`\npath \"*\" { capabilities = [\"sudo\"] }"); err != nil {
		t.Fatal(err)
	}
}

// A key that an interrupted run has left is used by the commands, too.
func TestPlanGoesOnFromAKey(t *testing.T) {
	w := newWorld(t)
	for path, data := range map[string]map[string]any{
		"pki/keys/generate/internal":       {"key_name": "relay-root-g1", "key_type": "ec"},
		"pki_relay/keys/generate/internal": {"key_name": "relay-intermediate-g1", "key_type": "ec"},
	} {
		mount, _, _ := strings.Cut(path, "/")
		in := vault.EnablePKIInput{Mesh: w.spec.Mesh, Vault: w.spec.Vault.Name, Mount: mount, MaxLeaseTTL: w.spec.PKI.Root.TTL, Mode: procedure.Apply}
		if _, err := w.EnablePKI(context.Background(), in); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Root.Logical().Write(path, data); err != nil {
			t.Fatal(err)
		}
	}
	w.byHand(t, w.plan(t))
	if d := w.mustSetup(t); len(d.changes) > 0 {
		t.Errorf("a setup after the commands has still to %v", d.changes)
	}
	for _, mount := range []string{"pki", "pki_relay"} {
		keys, err := w.Root.Logical().List(mount + "/keys")
		if err != nil || len(keys.Data["keys"].([]any)) != 1 {
			t.Errorf("%s has the keys %v (%v), want one", mount, keys, err)
		}
	}
}

func sorted(list []string) []string {
	slices.Sort(list)
	return list
}
