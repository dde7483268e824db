package vault_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// Everything under the policies that we ship, with the guide's own key types.
func TestSetup(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.spec.PKI.Root.KeyType, w.spec.PKI.Root.KeyBits = "rsa", 2048
	w.spec.PKI.Intermediate.KeyType, w.spec.PKI.Intermediate.KeyBits = "rsa", 2048

	w.proxy.begin(0)
	before, err := w.setup(ctx, procedure.Observe)
	if err != nil {
		t.Fatalf("observing an empty Vault: %v", err)
	}
	if written := w.proxy.written(); len(written) > 0 {
		t.Errorf("observing wrote %v", written)
	}
	d := w.mustSetup(t)
	for _, object := range []string{
		"vault mount pki", "vault mount pki_relay", "vault issuer pki/relay-root-g1", "vault issuer pki_relay/relay-intermediate-g1",
		"vault role pki_relay/roles/gloo-mesh-mgmt-server-ca", "vault role pki_relay/roles/relaypki-probe", "vault role pki_relay/roles/relay-client-cluster1",
		"vault policy relaypki-prod-mgmt", "vault policy relaypki-prod-cluster1", "vault auth mount relaypki-prod-cluster1",
		"vault auth role auth/relaypki-prod-cluster1/role/relaypki-issuer",
	} {
		for name, changes := range map[string][]string{"observe": before.changed(), "apply": d.changed()} {
			if !slices.Contains(changes, "create "+object) {
				t.Errorf("%s does not say that it creates %s: %v", name, object, changes)
			}
		}
	}

	root, relay := certificate(t, d.root.CertificatePEM), certificate(t, d.relay.CertificatePEM)
	if life := root.NotAfter.Sub(root.NotBefore); life < 187600*time.Hour || life > 187601*time.Hour {
		t.Errorf("a root asked for 187600h lives %s", life)
	}
	if life := relay.NotAfter.Sub(relay.NotBefore); life < 43800*time.Hour || life > 43801*time.Hour {
		t.Errorf("an intermediate asked for 43800h lives %s", life)
	}
	if root.Subject.String() != "CN=Solo.io Root CA,O=solo.io" || relay.Subject.String() != "CN=gloo-mesh-mgmt-server-ca,O=mesh.solo.io" {
		t.Errorf("subjects are %q and %q", root.Subject, relay.Subject)
	}
	if err := relay.CheckSignatureFrom(root); err != nil {
		t.Error(err)
	}
	issuer, err := w.Root.Logical().Read("pki_relay/issuer/relay-intermediate-g1")
	if err != nil || issuer == nil {
		t.Fatalf("issuer relay-intermediate-g1: %v", err)
	}
	imported, err := w.Root.Logical().Read("pki_relay/issuer/relay-root-g1")
	if err != nil || imported == nil {
		t.Fatalf("the root in the relay mount: %v", err)
	}
	chain := fmt.Sprint([]any{issuer.Data["issuer_id"], imported.Data["issuer_id"]})
	if issuer.Data["leaf_not_after_behavior"] != "err" || fmt.Sprint(issuer.Data["manual_chain"]) != chain || imported.Data["key_id"] != "" {
		t.Errorf("leaf_not_after_behavior %v, manual_chain %v (expected %s), key of the imported root %q",
			issuer.Data["leaf_not_after_behavior"], issuer.Data["manual_chain"], chain, imported.Data["key_id"])
	}
	for mount, id := range map[string]string{"pki": d.root.Authority.IssuerID, "pki_relay": d.relay.Authority.IssuerID} {
		config, err := w.Root.Logical().Read(mount + "/config/issuers")
		if err != nil || config.Data["default"] != id || config.Data["default_follows_latest_issuer"] != false {
			t.Errorf("%s/config/issuers: %v (%v)", mount, config, err)
		}
	}
	access := d.access["cluster1"]
	if access.AuthPath != "/v1/auth/relaypki-prod-cluster1" || access.AuthRole != "relaypki-issuer" || access.SignPath != "pki_relay/sign/relay-client-cluster1" ||
		access.Server != w.Address || !strings.Contains(access.CABundlePEM, "BEGIN CERTIFICATE") {
		t.Errorf("access of cluster1: %+v", access)
	}

	w.proxy.begin(0)
	again := w.mustSetup(t)
	if len(again.changes) > 0 || len(w.proxy.written()) > 0 {
		t.Errorf("a second run changed %v and wrote %v", again.changed(), w.proxy.written())
	}
	if again.root.Authority != d.root.Authority || again.relay.Authority != d.relay.Authority {
		t.Error("a second run found other CAs")
	}
	w.oneOfEach(t, "after two runs")
}

// oneOfEach: a root, an intermediate and a key for each, and nothing beside.
func (w *world) oneOfEach(t *testing.T, when string) {
	t.Helper()
	for path, want := range map[string]int{
		"pki/issuers": 1, "pki/keys": 1,
		"pki_relay/issuers": 2, // the intermediate and the root above it
		"pki_relay/keys":    1,
		"pki/certs":         2, // what was signed: the root itself and the intermediate
		"pki_relay/roles":   4,
	} {
		list, err := w.Root.Logical().List(path)
		if err != nil || list == nil {
			t.Errorf("%s: %s: %v", when, path, err)
			continue
		}
		if keys := list.Data["keys"].([]any); len(keys) != want {
			t.Errorf("%s: %d at %s, expected %d", when, len(keys), path, want)
		}
	}
}

// The worker is cut off after each write in turn: a retry of the same call, and
// then a new run, go on from what is there.
func TestInterrupted(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.proxy.begin(0)
	w.mustSetup(t)
	total := len(w.proxy.written())
	if total < 15 {
		t.Fatalf("a setup has %d writes only: %v", total, w.proxy.written())
	}
	for n := 1; n <= total; n++ {
		w.forget(t)
		w.proxy.begin(n)
		_, err := w.setup(ctx, procedure.Apply)
		writes := w.proxy.written()
		if len(writes) < n {
			t.Fatalf("write %d did not come: %v; the setup ended with: %v", n, writes, err)
		}
		cut := fmt.Sprintf("cut off after write %d, %s", n, writes[n-1])
		if err == nil {
			t.Fatalf("%s: no error", cut)
		}
		wantFailure(t, err, failure.Unavailable)
		if _, err := w.setup(ctx, procedure.Apply); err != nil {
			t.Fatalf("%s, then run again: %v", cut, err)
		}
		w.oneOfEach(t, cut)
		w.proxy.begin(0)
		if again := w.mustSetup(t); len(again.changes) > 0 || len(w.proxy.written()) > 0 {
			t.Errorf("%s, healed, and a third run still changed %v", cut, again.changed())
		}
	}
}

// A mount made by hand has Vault's own limit of 768 h, by which it would cut a
// root short without an error.
func TestShortMount(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	if err := w.Root.Sys().Mount("pki", &vaultapi.MountInput{Type: "pki"}); err != nil {
		t.Fatal(err)
	}
	in := vault.GenerateRootInput{Vault: "default", Mount: "pki", Generation: 1, CA: w.spec.PKI.Root.CA, Mode: procedure.Apply}
	_, err := w.GenerateRoot(ctx, in)
	wantFailure(t, err, failure.Mismatch, "187600h", "tune")
	if list, err := w.Root.Logical().List("pki/issuers"); err != nil || list != nil {
		t.Errorf("a root that would be too short was made all the same: %v (%v)", list, err)
	}

	out, err := w.EnablePKI(ctx, vault.EnablePKIInput{Mesh: "prod", Vault: "default", Mount: "pki", MaxLeaseTTL: mesh.Hours(187600), Mode: procedure.Apply})
	if err != nil || out.State() != procedure.Changed {
		t.Fatalf("the mount is not tuned up: %v (%v)", out, err)
	}
	if mounts, err := w.Root.Sys().ListMounts(); err != nil || mounts["pki/"].Description != "relaypki: mesh prod" {
		t.Errorf("a mount made by hand is not marked: %+v (%v)", mounts["pki/"], err)
	}
	out, err = w.EnablePKI(ctx, vault.EnablePKIInput{Mesh: "prod", Vault: "default", Mount: "pki", MaxLeaseTTL: mesh.Hours(100), Mode: procedure.Apply})
	if err != nil || len(out.Changes) > 0 {
		t.Errorf("the mount is tuned down: %v (%v)", out, err)
	}
	if _, err := w.GenerateRoot(ctx, in); err != nil {
		t.Fatal(err)
	}

	in.CA.TTL = mesh.Hours(1000)
	_, err = w.GenerateRoot(ctx, in)
	wantFailure(t, err, failure.Mismatch, "lifetime", "1000h")
}

// What is there and is not ours is named, and left alone.
func TestConflicts(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	s := w.spec
	rootInput := vault.GenerateRootInput{Vault: "default", Mount: "pki", Generation: 1, CA: s.PKI.Root.CA, Mode: procedure.Apply}
	write := func(path string, data map[string]any) {
		t.Helper()
		if _, err := w.Root.Logical().Write(path, data); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	mount := func(path, kind string) {
		t.Helper()
		if err := w.Root.Sys().Mount(path, &vaultapi.MountInput{Type: kind, Config: vaultapi.MountConfigInput{MaxLeaseTTL: "200000h"}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name    string
		prepare func()
		act     func() error
		words   []string
	}{
		{"a mount of another type", func() { mount("pki", "kv") }, func() error {
			_, err := w.EnablePKI(ctx, vault.EnablePKIInput{Vault: "default", Mount: "pki", MaxLeaseTTL: s.PKI.Root.TTL, Mode: procedure.Apply})
			return err
		}, []string{"pki", `type "kv"`}},
		{"another mesh's mount", func() {
			_, err := w.EnablePKI(ctx, vault.EnablePKIInput{Mesh: "other", Vault: "default", Mount: "pki", MaxLeaseTTL: s.PKI.Root.TTL, Mode: procedure.Apply})
			if err != nil {
				t.Fatal(err)
			}
		}, func() error {
			_, err := w.EnablePKI(ctx, vault.EnablePKIInput{Mesh: s.Mesh, Vault: "default", Mount: "pki", MaxLeaseTTL: s.PKI.Root.TTL, Mode: procedure.Apply})
			return err
		}, []string{"the mount pki is another mesh's", "relaypki: mesh other"}},
		{"a foreign root", func() {
			mount("pki", "pki")
			write("pki/root/generate/internal", map[string]any{"common_name": "Somebody Else", "ttl": "1000h", "issuer_name": "theirs", "key_type": "ec"})
		}, func() error { _, err := w.GenerateRoot(ctx, rootInput); return err }, []string{"theirs", "Somebody Else", "relaypki adopt"}},
		{"our name on another CA", func() {
			mount("pki", "pki")
			write("pki/root/generate/internal", map[string]any{"common_name": "Somebody Else", "ttl": "187600h", "issuer_name": "relay-root-g1", "key_type": "ec"})
		}, func() error { _, err := w.GenerateRoot(ctx, rootInput); return err }, []string{"relay-root-g1", "Somebody Else", "common name", "organization"}},
		{"our name on a CA with another key", func() {
			mount("pki", "pki")
			write("pki/root/generate/internal", map[string]any{"common_name": "Solo.io Root CA", "organization": "solo.io", "ttl": "187600h", "issuer_name": "relay-root-g1", "key_type": "rsa"})
		}, func() error { _, err := w.GenerateRoot(ctx, rootInput); return err }, []string{"rsa 2048", "ec 256"}},
		{"our name on a CA without its key", func() {
			mount("pki", "pki")
			mount("other", "pki")
			made, err := w.Root.Logical().Write("other/root/generate/internal", map[string]any{"common_name": "Solo.io Root CA", "organization": "solo.io", "ttl": "187600h", "key_type": "ec"})
			if err != nil {
				t.Fatal(err)
			}
			imported, err := w.Root.Logical().Write("pki/issuers/import/cert", map[string]any{"pem_bundle": made.Data["certificate"]})
			if err != nil {
				t.Fatal(err)
			}
			id := imported.Data["imported_issuers"].([]any)[0].(string)
			write("pki/issuer/"+id, map[string]any{"issuer_name": "relay-root-g1"})
		}, func() error { _, err := w.GenerateRoot(ctx, rootInput); return err }, []string{"its key is not in this mount"}},
		{"another mesh's policy", func() {
			write("sys/policies/acl/relaypki-prod-cluster1", map[string]any{"policy": "# relaypki: mesh a, cluster b. \n"})
		}, func() error {
			_, err := w.EnableClusterAccess(ctx, w.accessInput("cluster1"))
			return err
		}, []string{"relaypki-prod-cluster1"}},
		{"another auth mount", func() {
			if err := w.Root.Sys().EnableAuthWithOptions("relaypki-prod-cluster1", &vaultapi.EnableAuthOptions{Type: "userpass"}); err != nil {
				t.Fatal(err)
			}
		}, func() error {
			_, err := w.EnableClusterAccess(ctx, w.accessInput("cluster1"))
			return err
		}, []string{"relaypki-prod-cluster1", "userpass"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.forget(t)
			test.prepare()
			wantFailure(t, test.act(), failure.Conflict, test.words...)
		})
	}
}

func (w *world) accessInput(cluster string) vault.ClusterAccessInput {
	tokens := w.tokensOf(cluster)
	return vault.ClusterAccessInput{Spec: w.spec, Context: cluster, Workload: cluster, IssuerID: "00000000-0000-0000-0000-000000000000",
		Issuer: tokens.issuer, KeysPEM: []string{tokens.publicPEM}, Mode: procedure.Apply}
}

// What somebody has opened is closed again, and said.
func TestDrift(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.mustSetup(t)
	for path, data := range map[string]map[string]any{
		"pki_relay/roles/relay-client-cluster1":            {"allow_any_name": true},
		"auth/relaypki-prod-cluster1/role/relaypki-issuer": {"role_type": "jwt", "bound_subject": "system:serviceaccount:gloo-mesh:default"},
		"pki_relay/issuer/" + d.relay.Authority.IssuerID:   {"leaf_not_after_behavior": "truncate"},
		"sys/policies/acl/relaypki-prod-cluster2":          {"policy": "# relaypki: mesh prod, cluster cluster2. \npath \"*\" { capabilities = [\"sudo\"] }"},
		"auth/relaypki-prod-cluster2/config":               {"bound_issuer": "https://elsewhere", "jwt_validation_pubkeys": w.tokensOf("mgmt").publicPEM},
		"pki_relay/config/issuers":                         {"default": d.relay.Authority.IssuerID, "default_follows_latest_issuer": true},
	} {
		write := w.Root.Logical().Write
		if strings.HasPrefix(path, "pki_relay/issuer/") || strings.HasPrefix(path, "pki_relay/roles/") {
			write = func(path string, data map[string]any) (*vaultapi.Secret, error) {
				return w.Root.Logical().JSONMergePatch(ctx, path, data)
			}
		}
		if _, err := write(path, data); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	again := w.mustSetup(t)
	said := fmt.Sprint(again.changes)
	for _, words := range []string{
		"allow_any_name is true, should be false", "bound_subject", `leaf_not_after_behavior to "err"`, "policy relaypki-prod-cluster2",
		"keys have changed", `bound_issuer is "https://elsewhere"`, "default_follows_latest_issuer is true",
	} {
		if !strings.Contains(said, words) {
			t.Errorf("the changes do not say %q: %s", words, said)
		}
	}
	w.proxy.begin(0)
	if last := w.mustSetup(t); len(last.changes) > 0 || len(w.proxy.written()) > 0 {
		t.Errorf("still changing: %v", last.changed())
	}
	if _, err := sign(w.mustLogin(t, again, "cluster2"), again.access["cluster2"].SignPath, request(t, named("cluster2", "cluster2"))); err != nil {
		t.Errorf("after setting right, cluster2 cannot sign: %v", err)
	}
}
