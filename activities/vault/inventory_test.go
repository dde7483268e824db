package vault_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/inventory"
	"github.com/relaypki/relaypki/internal/procedure"
)

// Every issuer of both mounts is found, also those that are not ours, by the worker
// that may do no more than rotate.
func TestInventoryVault(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	if _, err := w.setup(ctx, procedure.Apply); err != nil {
		t.Fatal(err)
	}
	theirs := w.rootWrite(t, "pki_relay/root/generate/internal", map[string]any{"common_name": "theirs", "key_type": "ec"})
	w.rootWrite(t, "pki_relay/roles/theirs", map[string]any{"issuer_ref": theirs["issuer_id"]})
	w.proxy.begin(-1)
	found, err := w.InventoryVault(ctx, vault.InventoryVaultInput{Spec: w.spec.Only("")})
	if err != nil {
		t.Fatal(err)
	}
	if written := w.proxy.written(); len(written) > 0 {
		t.Errorf("it has written %q", written)
	}
	type seen struct {
		Generation             int
		Subject                string
		HasKey, Signs, Default bool
		Roles                  []string
	}
	got := map[string]seen{}
	for _, i := range found.Items {
		at := slices.IndexFunc(found.Certificates, func(c inventory.Certificate) bool { return c.Fingerprint == i.Certificate })
		if at < 0 {
			t.Fatalf("%s has no certificate", i.Object)
		}
		name := strings.Replace(i.Object, theirs["issuer_id"].(string), "ID", 1)
		got[name] = seen{i.Generation, found.Certificates[at].Subject, i.Vault.HasKey, i.Vault.Signs, i.Vault.Default, i.Vault.Roles}
	}
	root, relay := "CN=Solo.io Root CA,O=solo.io", "CN=gloo-mesh-mgmt-server-ca,O=mesh.solo.io"
	want := map[string]seen{
		"pki/relay-root-g1":               {1, root, true, true, true, nil},
		"pki_relay/relay-root-g1":         {1, root, false, false, false, nil},
		"pki_relay/relay-intermediate-g1": {1, relay, true, true, true, []string{"gloo-mesh-mgmt-server-ca", "relay-client-cluster1", "relay-client-cluster2", "relaypki-probe"}},
		"pki_relay/ID":                    {0, "CN=theirs", true, true, false, []string{"theirs"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("found\n%+v, want\n%+v", got, want)
	}
	if len(found.Certificates) != 3 || len(found.CAsPEM) != 3 || len(found.Unseen) > 0 {
		t.Errorf("%d certificates, %d in PEM, unseen %q", len(found.Certificates), len(found.CAsPEM), found.Unseen)
	}

	elsewhere := w.spec.Only("")
	elsewhere.Vault.RootMount = "pki_gone"
	if found, err = w.InventoryVault(ctx, vault.InventoryVaultInput{Spec: elsewhere}); failure.KindOf(err) != failure.Denied && (err != nil || len(found.Unseen) != 1 || len(found.Items) != 3) {
		t.Errorf("a mount that is not there: %+v, %v", found, err)
	}
}
