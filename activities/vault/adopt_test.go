package vault_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// guide makes the CAs with the commands of the vendor's guide, to the letter:
// mounts that are not tuned, so that both CAs die after 32 days, and an
// intermediate without its organization.
const guide = `
vault secrets enable pki
vault write -format=json pki/root/generate/internal common_name="Solo.io Root CA" organization="solo.io" ttl=187600h
vault secrets enable -path pki_relay pki
CSR=$(vault write -field=csr pki_relay/intermediate/generate/internal common_name="gloo-mesh-mgmt-server-ca" organization="mesh.solo.io" ttl=43800h)
CERT=$(vault write -field=certificate pki/root/sign-intermediate csr="$CSR" format=pem_bundle ttl=43800h)
vault write -format=json pki_relay/intermediate/set-signed certificate="$CERT"
vault write pki_relay/roles/gloo-mesh-mgmt-server-ca allow_any_name=true max_ttl="720h"
`

func (w *world) shell(t *testing.T, script string) {
	t.Helper()
	bin := t.TempDir()
	if err := os.Symlink(w.Program, bin+"/vault"); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
	cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + bin,
		"VAULT_ADDR=" + w.Address, "VAULT_CACERT=" + w.CAFile, "VAULT_TOKEN=" + w.Root.Token()}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func (w *world) adopt(mode procedure.Mode) (procedure.Outcome, error) {
	return w.AdoptAuthorities(context.Background(), vault.AdoptAuthoritiesInput{Spec: w.spec, Mode: mode})
}

// issued are the CA certificates in both mounts, however they are named.
func (w *world) issued(t *testing.T) string {
	t.Helper()
	var all []string
	for _, mount := range []string{"pki", "pki_relay"} {
		secret, err := w.Root.Logical().Read(mount + "/issuer/default")
		if err != nil || secret == nil {
			t.Fatal(err)
		}
		all = append(all, secret.Data["certificate"].(string), secret.Data["issuer_id"].(string))
	}
	return strings.Join(all, "\n")
}

// What the guide's commands have made is shown, taken over when told, and from
// then on is the CA of a setup that finds it as it is.
func TestAdoptOfTheGuide(t *testing.T) {
	for name, take := range map[string]func(*testing.T, *world, procedure.Outcome){
		"told": func(t *testing.T, w *world, _ procedure.Outcome) {
			if _, err := w.adopt(procedure.Apply); err != nil {
				t.Fatal(err)
			}
		},
		"by the commands": func(t *testing.T, w *world, planned procedure.Outcome) {
			w.byHand(t, done{changes: planned.Changes})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.shell(t, guide)
			before := w.issued(t)
			_, err := w.setup(context.Background(), procedure.Apply)
			wantFailure(t, err, failure.Conflict, "relaypki adopt")

			w.proxy.begin(0)
			planned, err := w.adopt(procedure.Plan)
			if err != nil || len(w.proxy.written()) > 0 {
				t.Fatalf("looking wrote %v, and ended with %v", w.proxy.written(), err)
			}
			said := ""
			for _, c := range planned.Changes {
				said += c.Object + " " + c.Detail + "\n"
			}
			for _, words := range []string{"named relay-root-g1", "named relay-intermediate-g1", "key is rsa 2048, asked for was ec 256", `organization is none, asked for was "mesh.solo.io"`, "lifetime is 768h"} {
				if !strings.Contains(said, words) {
					t.Errorf("the comparison does not say %q:\n%s", words, said)
				}
			}
			take(t, w, planned)
			if again, err := w.adopt(procedure.Apply); err != nil || len(again.Changes) > 0 {
				t.Errorf("the second time: %v, %v", again.Changes, err)
			}
			d := w.mustSetup(t)
			for _, c := range d.changed() {
				if strings.HasPrefix(c, "create vault issuer") || strings.HasPrefix(c, "create vault key") || strings.HasPrefix(c, "create vault mount") {
					t.Errorf("a setup after the adoption would %s", c)
				}
			}
			if w.issued(t) != before {
				t.Error("a CA is not what it was")
			}
			if last := w.mustSetup(t); len(last.changes) > 0 {
				t.Errorf("still changing: %v", last.changed())
			}
		})
	}
}

func TestNotAdoptable(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		name, prepare string
		words         []string
	}{
		{"no key", `vault secrets enable pki; vault secrets enable -path=other pki
			vault write pki/issuers/import/cert pem_bundle="$(vault write -field=certificate other/root/generate/internal common_name=x)"; vault secrets disable other
			vault secrets enable -path=pki_relay pki`, []string{"mount pki", "no key of the mount's CAs is in this Vault"}},
		{"no root", `vault secrets enable pki; vault secrets enable -path=pki_relay pki; vault write pki_relay/root/generate/internal common_name=x`, []string{"mount pki_relay", "vault.rootMount"}},
		{"not of this root", `vault secrets enable pki; vault secrets enable -path=pki_relay pki
			vault write pki/root/generate/internal common_name=y; vault write pki_relay/root/generate/internal common_name=x`, []string{"mount pki_relay", "cannot be taken over"}},
		{"another mesh's", `vault secrets enable -description="relaypki: mesh other" pki; vault secrets enable -path=pki_relay pki`, []string{"another mesh's"}},
		{"another type", `vault secrets enable -path=pki kv; vault secrets enable -path=pki_relay pki`, []string{"not pki"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.shell(t, test.prepare)
			w.proxy.begin(0)
			_, err := w.adopt(procedure.Apply)
			wantFailure(t, err, failure.Conflict, test.words...)
			if written := w.proxy.written(); len(written) > 0 {
				t.Errorf("it wrote %v", written)
			}
			w.forget(t)
		})
	}
}

// Where there is nothing, there is nothing to take over; a setup makes it.
func TestNothingToAdopt(t *testing.T) {
	w := newWorld(t)
	if out, err := w.adopt(procedure.Apply); err != nil || len(out.Changes) > 0 {
		t.Errorf("%v, %v", out.Changes, err)
	}
	w.mustSetup(t)
	if out, err := w.adopt(procedure.Apply); err != nil || len(out.Changes) > 0 {
		t.Errorf("of what a setup has made: %v, %v", out.Changes, err)
	}
}
