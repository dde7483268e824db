package vault_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
	"github.com/relaypki/relaypki/internal/vaulttest"
)

// operating leaves the worker the identity operate alone.
func (w *world) operating() {
	config := w.site.Vaults[0]
	config.Identities = map[site.Identity]site.Login{site.Operate: config.Identities[site.Operate]}
	w.use(config)
}

// settingUp gives it all three again.
func (w *world) settingUp() {
	w.Activities = vault.Activities{Clients: site.NewClients(w.site, zap.NewNop())}
}

func (w *world) survey(t *testing.T) vault.SurveyResult {
	t.Helper()
	found, err := w.Survey(context.Background(), vault.SurveyInput{Spec: w.spec})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// staged is the intermediate of a generation, made beside the one at work.
type staged struct {
	vault.CAResult
	changes []procedure.Change
}

// stage runs the activities as a rotation does.
func (w *world) stage(ctx context.Context, in vault.IntermediateInput) (staged, error) {
	var out staged
	csr, err := w.GenerateIntermediateCSR(ctx, in)
	if err != nil {
		return out, err
	}
	out.changes = append(out.changes, csr.Changes...)
	if !csr.Present {
		in.CSRPEM = csr.CSRPEM
		signed, err := w.SignIntermediate(ctx, in)
		if err != nil {
			return out, err
		}
		out.changes = append(out.changes, signed.Changes...)
		in.ChainPEM = signed.ChainPEM
	}
	out.CAResult, err = w.SetSignedIntermediate(ctx, in)
	out.changes = append(out.changes, out.Changes...)
	return out, err
}

func (w *world) staging(d done, generation int) vault.IntermediateInput {
	return vault.IntermediateInput{Vault: w.spec.Vault.Name, RootMount: "pki", RelayMount: "pki_relay", RootIssuerID: d.root.Authority.IssuerID,
		RootPEM: d.root.CertificatePEM, Generation: generation, CA: w.spec.PKI.Intermediate, Mode: procedure.Apply, Rotation: true}
}

func (w *world) mustStage(t *testing.T, in vault.IntermediateInput) staged {
	t.Helper()
	out, err := w.stage(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// moveAll points every role at an issuer.
func (w *world) moveAll(t *testing.T, mode procedure.Mode, id string) []procedure.Change {
	t.Helper()
	var changes []procedure.Change
	for _, workload := range []string{"", "cluster1", "cluster2"} {
		out, err := w.MoveRole(context.Background(), vault.MoveRoleInput{Spec: w.spec, Workload: workload, IssuerID: id, Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		changes = append(changes, out.Changes...)
	}
	return changes
}

func (w *world) data(t *testing.T, path string) map[string]any {
	t.Helper()
	secret, err := w.Root.Logical().Read(path)
	if err != nil || secret == nil {
		t.Fatalf("%s: %v, %v", path, secret, err)
	}
	return secret.Data
}

func (w *world) rootPatch(t *testing.T, path string, data map[string]any) {
	t.Helper()
	if _, err := w.Root.Logical().JSONMergePatch(context.Background(), path, data); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func (w *world) rootWrite(t *testing.T, path string, data map[string]any) map[string]any {
	t.Helper()
	secret, err := w.Root.Logical().Write(path, data)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if secret == nil {
		return nil
	}
	return secret.Data
}

// count is how many issuers or keys of that name there are, and how many in all.
func (w *world) count(t *testing.T, path, field, name string) (named, all int) {
	t.Helper()
	secret, err := w.Root.Logical().List(path)
	if err != nil || secret == nil {
		t.Fatalf("%s: %v", path, err)
	}
	for _, info := range secret.Data["key_info"].(map[string]any) {
		all++
		if info.(map[string]any)[field] == name {
			named++
		}
	}
	return named, all
}

// signedFor is how many certificates the root has signed for that key.
func (w *world) signedFor(t *testing.T, c *x509.Certificate) int {
	t.Helper()
	list, err := w.Root.Logical().List("pki/certs")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, serial := range list.Data["keys"].([]any) {
		if pki.SameKey(c, certificate(t, w.data(t, "pki/cert/"+serial.(string))["certificate"].(string))) {
			n++
		}
	}
	return n
}

// once: one key, one issuer and one certificate of that generation, and the
// mount's default still the first.
func (w *world) once(t *testing.T, when string, d done, generation int) {
	t.Helper()
	name := fmt.Sprintf("relay-intermediate-g%d", generation)
	if named, all := w.count(t, "pki_relay/keys", "key_name", name); named != 1 || all != generation {
		t.Errorf("%s: %d keys are named %s, of %d in all", when, named, name, all)
	}
	if named, all := w.count(t, "pki_relay/issuers", "issuer_name", name); named != 1 || all != generation+1 {
		t.Errorf("%s: %d issuers are named %s, of %d in all", when, named, name, all)
	}
	issuer := w.data(t, "pki_relay/issuer/"+name)
	if n := w.signedFor(t, certificate(t, issuer["certificate"].(string))); n != 1 {
		t.Errorf("%s: the root has signed %d certificates for the key of %s", when, n, name)
	}
	chain := fmt.Sprint([]any{issuer["issuer_id"], w.data(t, "pki_relay/issuer/relay-root-g1")["issuer_id"]})
	if fmt.Sprint(issuer["manual_chain"]) != chain || issuer["leaf_not_after_behavior"] != "err" {
		t.Errorf("%s: manual_chain %v (expected %s), leaf_not_after_behavior %v", when, issuer["manual_chain"], chain, issuer["leaf_not_after_behavior"])
	}
	if config := w.data(t, "pki_relay/config/issuers"); config["default"] != d.relay.Authority.IssuerID || config["default_follows_latest_issuer"] != false {
		t.Errorf("%s: the default is %v", when, config)
	}
	for _, role := range []string{"gloo-mesh-mgmt-server-ca", "relaypki-probe", "relay-client-cluster1"} {
		if ref := w.data(t, "pki_relay/roles/"+role)["issuer_ref"]; ref != d.relay.Authority.IssuerID {
			t.Errorf("%s: the role %s signs with %v", when, role, ref)
		}
	}
}

func TestStaging(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.mustSetup(t)
	w.operating()
	second := w.mustStage(t, w.staging(d, 2))
	w.once(t, "staged", d, 2)
	if second.Authority.Name != "relay-intermediate-g2" || second.Authority.SubjectKeyID == d.relay.Authority.SubjectKeyID || second.Authority.SubjectKeyID == "" {
		t.Errorf("the new one is %+v", second.Authority)
	}
	if err := pki.SignedBy(certificate(t, second.CertificatePEM), certificate(t, d.root.CertificatePEM)); err != nil {
		t.Error(err)
	}
	w.proxy.begin(0)
	again := w.mustStage(t, w.staging(d, 2))
	if len(again.changes) > 0 || len(w.proxy.written()) > 0 || again.Authority != second.Authority {
		t.Errorf("again: %v, wrote %v, %+v", again.changes, w.proxy.written(), again.Authority)
	}

	// Cut off after each write in turn, a generation each.
	w.proxy.begin(0)
	w.mustStage(t, w.staging(d, 3))
	total := len(w.proxy.written())
	if total != 4 {
		t.Fatalf("expected key, signature, import and settings: %v", w.proxy.written())
	}
	for n := 1; n <= total; n++ {
		in := w.staging(d, 3+n)
		w.proxy.begin(n)
		_, err := w.stage(ctx, in)
		wantFailure(t, err, failure.Unavailable)
		cut := fmt.Sprintf("cut off after write %d, %v", n, w.proxy.written())
		w.proxy.begin(0)
		if _, err := w.stage(ctx, in); err != nil {
			t.Fatalf("%s, then run again: %v", cut, err)
		}
		w.once(t, cut, d, in.Generation)
	}

	// A mount whose default follows would use the new one at once.
	w.rootWrite(t, "pki_relay/config/issuers", map[string]any{"default": d.relay.Authority.IssuerID, "default_follows_latest_issuer": true})
	if !w.survey(t).FollowsLatest {
		t.Error("the survey does not say that the default follows")
	}
	w.mustStage(t, w.staging(d, total+4))
	w.once(t, "with a default that followed", d, total+4)
}

// What a root cannot vouch for is refused before a key is made.
func TestStagingRefused(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.mustSetup(t)
	root := w.data(t, "pki_relay/issuer/relay-root-g1")
	other := w.rootWrite(t, "pki/root/generate/internal", map[string]any{"common_name": "Other", "key_type": "ec", "ttl": "187000h", "issuer_name": "relay-root-g2", "key_name": "relay-root-g2"})
	w.operating()
	for _, test := range []struct {
		name   string
		change func(*vault.IntermediateInput)
		kind   failure.Kind
		words  []string
	}{
		{"a root that ends before", func(in *vault.IntermediateInput) { in.CA.TTL = mesh.Hours(187601) }, failure.Preflight, []string{"ends", "Rotate the root first", "--ttl"}},
		{"a root of another key", func(in *vault.IntermediateInput) { in.RootIssuerID = other["issuer_id"].(string) }, failure.Mismatch, []string{"Other", "members trust"}},
		{"a root that nobody trusts", func(in *vault.IntermediateInput) {
			in.RootIssuerID, in.RootPEM = other["issuer_id"].(string), other["certificate"].(string)
		}, failure.Preflight, []string{"is not in the mount pki_relay"}},
		{"no root", func(in *vault.IntermediateInput) { in.RootPEM = "" }, failure.InvalidInput, nil},
		{"the mount cuts", func(in *vault.IntermediateInput) {
			w.rootWrite(t, "sys/mounts/pki/tune", map[string]any{"max_lease_ttl": "1000h"})
		}, failure.Mismatch, []string{"tune"}},
		{"no root in the relay mount", func(*vault.IntermediateInput) {
			w.rootWrite(t, "sys/mounts/pki/tune", map[string]any{"max_lease_ttl": "187600h"})
			if _, err := w.Root.Logical().Delete("pki_relay/issuer/" + root["issuer_id"].(string)); err != nil {
				t.Fatal(err)
			}
		}, failure.Preflight, []string{"is not in the mount pki_relay"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := w.staging(d, 2)
			test.change(&in)
			_, err := w.stage(ctx, in)
			wantFailure(t, err, test.kind, test.words...)
			if named, all := w.count(t, "pki_relay/keys", "key_name", "relay-intermediate-g2"); named != 0 || all != 1 {
				t.Errorf("a key was made all the same: %d, %d", named, all)
			}
		})
	}
}

func TestSurvey(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.operating()
	_, err := w.Survey(ctx, vault.SurveyInput{Spec: w.spec})
	wantFailure(t, err, failure.Preflight, "the mount pki_relay is not there", "relaypki setup")
	w.settingUp()
	d := w.mustSetup(t)
	w.operating()
	first := d.relay.Authority.IssuerID
	found := w.survey(t)
	if found.Root.Authority != d.root.Authority || found.Root.CertificatePEM != d.root.CertificatePEM {
		t.Errorf("the root is %+v", found.Root)
	}
	relay := certificate(t, d.relay.CertificatePEM)
	want := vault.IntermediateState{Authority: d.relay.Authority, CertificatePEM: d.relay.CertificatePEM, Generation: 1, NotBefore: relay.NotBefore.UTC(), HasKey: true, Signs: true, Default: true,
		AbovePEM: []string{d.root.CertificatePEM}}
	roots := []vault.RootState{{Authority: d.root.Authority, CertificatePEM: d.root.CertificatePEM, Generation: 1, HasKey: true, Signs: true, Default: true}}
	if !reflect.DeepEqual(found.Roots, roots) || found.HighestRoot != 1 || len(found.Bridges) > 0 {
		t.Errorf("roots %+v, highest %d, bridges %v", found.Roots, found.HighestRoot, found.Bridges)
	}
	if !reflect.DeepEqual(found.Active, want) || !reflect.DeepEqual(found.Intermediates, []vault.IntermediateState{want}) || found.Highest != 1 || found.FollowsLatest {
		t.Errorf("found %+v", found)
	}
	roles := map[string]string{"gloo-mesh-mgmt-server-ca": first, "relaypki-probe": first, "relay-client-cluster1": first, "relay-client-cluster2": first}
	if !maps.Equal(found.Roles, roles) {
		t.Errorf("roles %v, expected %v", found.Roles, roles)
	}

	second := w.mustStage(t, w.staging(d, 2)).Authority.IssuerID
	w.rootWrite(t, "pki_relay/keys/generate/internal", map[string]any{"key_name": "relay-intermediate-g5", "key_type": "ec"})
	// Whatever the root is called, and however a role names its issuer.
	w.rootPatch(t, "pki_relay/issuer/relay-root-g1", map[string]any{"issuer_name": "company-root"})
	w.rootPatch(t, "pki_relay/roles/gloo-mesh-mgmt-server-ca", map[string]any{"issuer_ref": "relay-intermediate-g2"})
	w.rootPatch(t, "pki_relay/roles/relay-client-cluster1", map[string]any{"issuer_ref": "default"})
	found = w.survey(t)
	if found.Active.Authority.IssuerID != second || found.Active.Generation != 2 || found.Active.Default || found.Highest != 5 ||
		len(found.Intermediates) != 2 || !reflect.DeepEqual(found.Intermediates[0], want) || found.Root.Authority != d.root.Authority {
		t.Errorf("found %+v", found)
	}
	roles["gloo-mesh-mgmt-server-ca"] = second
	if !maps.Equal(found.Roles, roles) {
		t.Errorf("roles %v, expected %v", found.Roles, roles)
	}

	// A root that is kept elsewhere.
	if err := w.Root.Sys().Unmount("pki"); err != nil {
		t.Fatal(err)
	}
	found = w.survey(t)
	if len(found.Roots) > 0 || found.Root.Authority.IssuerID != "" || found.Root.CertificatePEM != d.root.CertificatePEM || found.Root.Authority.SubjectKeyID != d.root.Authority.SubjectKeyID {
		t.Errorf("the root outside Vault is %+v", found.Root)
	}
	for _, test := range []struct {
		spoil func()
		words string
	}{
		{func() {
			if _, err := w.Root.Logical().Delete("pki_relay/issuer/company-root"); err != nil {
				t.Fatal(err)
			}
		}, "the root that signed"},
		{func() { w.rootPatch(t, "pki_relay/issuer/"+second, map[string]any{"issuer_name": "theirs"}) }, `signs with the issuer "relay-intermediate-g2", which is not there`},
		{func() {
			w.rootPatch(t, "pki_relay/roles/gloo-mesh-mgmt-server-ca", map[string]any{"issuer_ref": "theirs"})
		}, "relaypki adopt"},
		{func() {
			if _, err := w.Root.Logical().Delete("pki_relay/roles/gloo-mesh-mgmt-server-ca"); err != nil {
				t.Fatal(err)
			}
		}, "there is no role pki_relay/roles/gloo-mesh-mgmt-server-ca"},
	} {
		test.spoil()
		_, err := w.Survey(ctx, vault.SurveyInput{Spec: w.spec})
		wantFailure(t, err, failure.Preflight, test.words)
	}
}

// Of CAs that somebody else has made and we have taken over.
func TestSurveyOfAdopted(t *testing.T) {
	w := newWorld(t)
	w.shell(t, guide)
	if _, err := w.adopt(procedure.Apply); err != nil {
		t.Fatal(err)
	}
	d := w.mustSetup(t)
	w.operating()
	found := w.survey(t)
	if found.Active.Generation != 1 || !found.Active.Signs || found.Highest != 1 || found.Root.Authority != d.root.Authority {
		t.Errorf("found %+v", found)
	}
	// The guide's root lives for 32 days.
	_, err := w.stage(context.Background(), w.staging(d, 2))
	wantFailure(t, err, failure.Preflight, "Rotate the root first")
	in := w.staging(d, 2)
	in.CA.TTL = mesh.Hours(100)
	w.mustStage(t, in)
	if found := w.survey(t); found.Highest != 2 || len(found.Intermediates) != 2 {
		t.Errorf("found %+v", found)
	}
}

func TestProveIssuer(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.mustSetup(t)
	other := w.rootWrite(t, "pki/root/generate/internal", map[string]any{"common_name": "Other", "key_type": "ec", "ttl": "187000h", "issuer_name": "relay-root-g2", "key_name": "relay-root-g2"})
	w.operating()
	second := w.mustStage(t, w.staging(d, 2))
	root := w.data(t, "pki_relay/issuer/relay-root-g1")["issuer_id"].(string)
	in := vault.ProveIssuerInput{Spec: w.spec, IssuerID: second.Authority.IssuerID, RootPEM: d.root.CertificatePEM, Mode: procedure.Apply}

	proof, err := w.ProveIssuer(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := pki.ParseChain([]byte(proof.ChainPEM))
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 2 || !chain[1].Equal(certificate(t, second.CertificatePEM)) || !certificate(t, proof.CAPEM).Equal(certificate(t, d.root.CertificatePEM)) {
		t.Errorf("proven is a chain of %d under %s", len(chain), proof.CAPEM)
	}
	if stored, err := w.Root.Logical().List("pki_relay/certs"); err != nil || stored != nil && strings.Contains(fmt.Sprint(stored.Data), pki.Serial(chain[0])) {
		t.Errorf("Vault keeps the throwaway certificate: %v, %v", stored, err)
	}
	w.proxy.begin(0)
	planned := in
	planned.Mode = procedure.Plan
	if out, err := w.ProveIssuer(ctx, planned); err != nil || len(out.Changes) > 0 || len(w.proxy.written()) > 0 {
		t.Errorf("a plan: %v, %v, wrote %v", out, err, w.proxy.written())
	}

	path := "pki_relay/issuer/" + second.Authority.IssuerID
	imported := w.rootWrite(t, "pki_relay/issuers/import/cert", map[string]any{"pem_bundle": other["certificate"]})
	foreign := imported["imported_issuers"].([]any)[0].(string)
	for _, test := range []struct {
		name  string
		chain []string
		words []string
	}{
		{"chosen by Vault", []string{}, []string{"it has no manual_chain"}},
		{"itself alone", []string{"self"}, []string{"ca.crt would be", "gloo-mesh-mgmt-server-ca"}},
		{"two lines", []string{"self", root, foreign}, []string{"cert-manager would refuse", "malformed or broken"}},
		{"the root twice", []string{"self", root, root}, []string{"is in the chain twice"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.rootPatch(t, path, map[string]any{"manual_chain": test.chain})
			_, err := w.ProveIssuer(ctx, in)
			wantFailure(t, err, failure.Mismatch, append(test.words, "relay-intermediate-g2")...)
		})
	}
	w.rootPatch(t, path, map[string]any{"manual_chain": []string{"self", root}})
	misled := in
	misled.RootPEM = other["certificate"].(string)
	_, err = w.ProveIssuer(ctx, misled)
	wantFailure(t, err, failure.Mismatch, "ca.crt would be", "Other")
	misled.RootPEM, misled.IssuerID = in.RootPEM, "00000000-0000-0000-0000-000000000000"
	_, err = w.ProveIssuer(ctx, misled)
	wantFailure(t, err, failure.Preflight, "has no issuer")
	if _, err := w.ProveIssuer(ctx, in); err != nil {
		t.Errorf("put right again: %v", err)
	}
}

// A bridge beside the new root makes Vault's own choice of the chain a matter of
// chance, and a chain in the wrong order is right for cert-manager alone.
func TestProveIssuerOrder(t *testing.T) {
	w := newWorld(t)
	d := w.mustSetup(t)
	w.shell(t, `
R1=`+d.root.Authority.IssuerID+`
vault write pki/root/rotate/internal issuer_name=relay-root-g2 key_name=relay-root-g2 common_name=R2 key_type=ec ttl=100000h >/dev/null
CSR=$(vault write -field=csr pki/intermediate/cross-sign common_name=R2 key_ref=relay-root-g2)
vault write -field=certificate pki/issuer/$R1/sign-intermediate csr="$CSR" use_csr_values=true format=pem ttl=90000h > $HOME/r2x.pem
vault read -field=certificate pki/issuer/relay-root-g2 > $HOME/r2.pem
X=$(vault write -field=imported_issuers pki_relay/issuers/import/cert pem_bundle=@$HOME/r2x.pem | tr -d '[]')
R=$(vault write -field=imported_issuers pki_relay/issuers/import/cert pem_bundle=@$HOME/r2.pem | tr -d '[]')
vault patch pki_relay/issuer/$X issuer_name=bridge >/dev/null
vault patch pki_relay/issuer/$R issuer_name=relay-root-g2 >/dev/null
`)
	second := w.data(t, "pki/issuer/relay-root-g2")
	in := w.staging(d, 2)
	in.RootIssuerID, in.RootPEM = second["issuer_id"].(string), second["certificate"].(string)
	w.operating()
	staged := w.mustStage(t, in)
	prove := vault.ProveIssuerInput{Spec: w.spec, IssuerID: staged.Authority.IssuerID, RootPEM: in.RootPEM, Mode: procedure.Apply}
	if _, err := w.ProveIssuer(context.Background(), prove); err != nil {
		t.Fatal(err)
	}
	path := "pki_relay/issuer/" + staged.Authority.IssuerID
	bridge := w.data(t, "pki_relay/issuer/bridge")["certificate"].(string)
	for _, test := range []struct {
		chain              []string
		rootPEM, bridgePEM string
		words              string
	}{
		// The modes of a rotation of the root.
		{[]string{"self", "bridge", "relay-root-g1"}, d.root.CertificatePEM, bridge, ""},
		{[]string{"self", "bridge"}, bridge, bridge, ""},
		{[]string{"self", "relay-root-g2"}, in.RootPEM, "", ""},
		{[]string{"self"}, staged.CertificatePEM, "", ""},
		// Each taken for another one.
		{[]string{"self", "bridge", "relay-root-g1"}, d.root.CertificatePEM, "", "tls.crt would have"},
		{[]string{"self", "bridge", "relay-root-g1"}, in.RootPEM, bridge, "ca.crt would be"},
		{[]string{"self", "bridge", "relay-root-g1"}, bridge, bridge, "ca.crt would be"},
		{[]string{"self", "bridge"}, d.root.CertificatePEM, bridge, "ca.crt would be"},
		{[]string{"self", "bridge"}, bridge, "", "tls.crt would have"},
		{[]string{"self", "relay-root-g2"}, in.RootPEM, bridge, "tls.crt would have"},
		{[]string{"self", "relay-root-g2"}, bridge, bridge, "ca.crt would be"},
		{[]string{"self"}, in.RootPEM, "", "ca.crt would be"},
		// And what is none.
		{[]string{"self", "relay-root-g1", "bridge"}, d.root.CertificatePEM, bridge, "names"},
		{[]string{"self", "relay-root-g2", "bridge", "relay-root-g1"}, in.RootPEM, bridge, "would break relay"},
		{[]string{}, in.RootPEM, bridge, "no manual_chain"},
	} {
		w.rootPatch(t, path, map[string]any{"manual_chain": test.chain})
		prove.RootPEM, prove.BridgePEM = test.rootPEM, test.bridgePEM
		_, err := w.ProveIssuer(context.Background(), prove)
		if test.words == "" {
			if err != nil {
				t.Errorf("%v: %v", test.chain, err)
			}
			continue
		}
		wantFailure(t, err, failure.Mismatch, test.words)
	}

	// Without a chain that says so, signatures say whose root is whose.
	w.rootPatch(t, "pki_relay/issuer/relay-intermediate-g1", map[string]any{"manual_chain": []string{}})
	for id, rootPEM := range map[string]string{d.relay.Authority.IssuerID: d.root.CertificatePEM, staged.Authority.IssuerID: in.RootPEM} {
		w.rootPatch(t, "pki_relay/roles/gloo-mesh-mgmt-server-ca", map[string]any{"issuer_ref": id})
		if found := w.survey(t); !certificate(t, found.Root.CertificatePEM).Equal(certificate(t, rootPEM)) {
			t.Errorf("the root of %s is %s", found.Active.Authority.Name, found.Root.Authority.Subject)
		}
	}
}

func TestMoveRole(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.mustSetup(t)
	w.operating()
	second := w.mustStage(t, w.staging(d, 2))
	id := second.Authority.IssuerID
	paths := []string{"pki_relay/roles/gloo-mesh-mgmt-server-ca", "pki_relay/roles/relaypki-probe", "pki_relay/roles/relay-client-cluster1", "pki_relay/roles/relay-client-cluster2"}
	var before []map[string]any
	for _, path := range paths {
		before = append(before, w.data(t, path))
	}
	w.proxy.begin(0)
	if planned := w.moveAll(t, procedure.Plan, id); len(planned) != len(paths) || len(w.proxy.written()) > 0 {
		t.Errorf("a plan moves %v and wrote %v", planned, w.proxy.written())
	}
	if moved := w.moveAll(t, procedure.Apply, id); len(moved) != len(paths) || len(w.proxy.written()) != len(paths) {
		t.Errorf("moved %v, wrote %v", moved, w.proxy.written())
	}
	for i, path := range paths {
		now := w.data(t, path)
		if now["issuer_ref"] != id {
			t.Errorf("%s signs with %v", path, now["issuer_ref"])
		}
		now["issuer_ref"] = before[i]["issuer_ref"]
		if !reflect.DeepEqual(now, before[i]) {
			t.Errorf("%s was %v and is now %v", path, before[i], now)
		}
	}
	w.proxy.begin(0)
	if again := w.moveAll(t, procedure.Apply, id); len(again) > 0 || len(w.proxy.written()) > 0 {
		t.Errorf("again: %v, wrote %v", again, w.proxy.written())
	}
	chain, err := sign(w.mustLogin(t, d, "cluster1"), d.access["cluster1"].SignPath, request(t, named("cluster1", "cluster1")))
	if err != nil || !bytes.Equal(chain[0].AuthorityKeyId, certificate(t, second.CertificatePEM).SubjectKeyId) {
		t.Errorf("cluster1's next certificate is of another issuer (%v)", err)
	}

	move := func(change func(*vault.MoveRoleInput)) (procedure.Outcome, error) {
		in := vault.MoveRoleInput{Spec: w.spec, Workload: "cluster1", IssuerID: id, Mode: procedure.Apply}
		change(&in)
		return w.MoveRole(ctx, in)
	}
	out, err := move(func(in *vault.MoveRoleInput) { in.Workload = "cluster9" })
	if err != nil || out.State() != procedure.UpToDate || !strings.Contains(out.Detail, "no role yet") {
		t.Errorf("of a cluster that is being added: %v, %v", out, err)
	}
	out, err = move(func(in *vault.MoveRoleInput) {
		in.Spec.PKI.Isolation, in.IssuerID = mesh.IsolationShared, d.relay.Authority.IssuerID
	})
	if err != nil || out.State() != procedure.UpToDate {
		t.Errorf("with isolation shared: %v, %v", out, err)
	}
	w.rootPatch(t, "pki_relay/issuer/"+d.relay.Authority.IssuerID, map[string]any{"usage": "read-only,crl-signing"})
	for name, test := range map[string]struct {
		id, words string
		kind      failure.Kind
	}{
		"one out of use": {d.relay.Authority.IssuerID, "its usage does not let it issue", failure.Conflict},
		"the root":       {w.data(t, "pki_relay/issuer/relay-root-g1")["issuer_id"].(string), "its key is not in this mount", failure.Conflict},
		"none":           {"00000000-0000-0000-0000-000000000000", "has no issuer", failure.Preflight},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := move(func(in *vault.MoveRoleInput) { in.IssuerID = test.id })
			wantFailure(t, err, test.kind, test.words)
		})
	}

	// Nor does whoever has looked before the rotation point a role back at it.
	w.settingUp()
	_, err = w.ConfigureRoles(ctx, vault.ConfigureRolesInput{Spec: w.spec, IssuerID: d.relay.Authority.IssuerID, Mode: procedure.Apply})
	wantFailure(t, err, failure.Conflict, "a rotation has replaced it", "relaypki rotate intermediate MESH", "start the procedure again")
	in := w.accessInput("cluster1")
	in.IssuerID = d.relay.Authority.IssuerID
	_, err = w.EnableClusterAccess(ctx, in)
	wantFailure(t, err, failure.Conflict, "relay-client-cluster1", "a rotation has replaced it")
	if found := w.survey(t); found.Active.Generation != 2 || found.Roles["relay-client-cluster1"] != id {
		t.Errorf("found %+v", found)
	}
}

func TestUseIssuer(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.mustSetup(t)
	w.operating()
	second := w.mustStage(t, w.staging(d, 2)).Authority.IssuerID
	first := d.relay.Authority.IssuerID
	use := func(signs bool, newDefault string, mode procedure.Mode) (procedure.Outcome, error) {
		return w.UseIssuer(ctx, vault.UseIssuerInput{Spec: w.spec, IssuerID: first, Signs: signs, Default: newDefault, Mode: mode})
	}
	w.moveAll(t, procedure.Apply, second)
	for _, ref := range []string{first, "relay-intermediate-g1", "default"} {
		w.rootPatch(t, "pki_relay/roles/relay-client-cluster2", map[string]any{"issuer_ref": ref})
		for _, mode := range []procedure.Mode{procedure.Observe, procedure.Apply} {
			_, err := use(false, "", mode)
			wantFailure(t, err, failure.Conflict, "relay-client-cluster2")
		}
	}
	if usage := w.data(t, "pki_relay/issuer/"+first)["usage"]; !strings.Contains(usage.(string), "issuing-certificates") {
		t.Errorf("it was taken out of use all the same: %v", usage)
	}
	// That the last role signs with the default does not matter once that is another.
	out, err := use(false, second, procedure.Apply)
	if err != nil || len(out.Changes) != 2 {
		t.Fatalf("%v, %v", out.Changes, err)
	}
	if config := w.data(t, "pki_relay/config/issuers"); config["default"] != second || config["default_follows_latest_issuer"] != false {
		t.Errorf("the default is %v", config)
	}
	if usage := w.data(t, "pki_relay/issuer/"+first)["usage"]; usage != "crl-signing,ocsp-signing,read-only" {
		t.Errorf("usage %v", usage)
	}
	w.proxy.begin(0)
	if out, err := use(false, second, procedure.Apply); err != nil || len(out.Changes) > 0 || len(w.proxy.written()) > 0 {
		t.Errorf("again: %v, %v", out.Changes, err)
	}
	found := w.survey(t)
	if old := found.Intermediates[0]; old.Signs || !old.HasKey || old.Default {
		t.Errorf("the old one is %+v", old)
	}
	prove := vault.ProveIssuerInput{Spec: w.spec, IssuerID: first, RootPEM: d.root.CertificatePEM, Mode: procedure.Apply}
	if _, err := w.ProveIssuer(ctx, prove); err == nil {
		t.Error("it still issues")
	}
	_, err = w.UseIssuer(ctx, vault.UseIssuerInput{Spec: w.spec, IssuerID: second, Signs: true, Default: first, Mode: procedure.Apply})
	wantFailure(t, err, failure.Conflict, "does not become the default")
	// The way back: it can issue before it is the default.
	if out, err := use(true, first, procedure.Apply); err != nil || len(out.Changes) != 2 || w.data(t, "pki_relay/config/issuers")["default"] != first {
		t.Errorf("back: %v, %v", out.Changes, err)
	}
	if _, err := w.ProveIssuer(ctx, prove); err != nil {
		t.Errorf("it does not issue again: %v", err)
	}
}

func TestDeleteKey(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.mustSetup(t)
	w.operating()
	second := w.mustStage(t, w.staging(d, 2)).Authority.IssuerID
	input := func(ca vault.CAResult, generation int) vault.DeleteKeyInput {
		return vault.DeleteKeyInput{Spec: w.spec, IssuerID: ca.Authority.IssuerID, Name: fmt.Sprintf("relay-intermediate-g%d", generation), CertificatePEM: ca.CertificatePEM, Mode: procedure.Apply}
	}
	old := input(d.relay, 1)
	w.proxy.begin(0)
	_, err := w.DeleteKey(ctx, old)
	wantFailure(t, err, failure.Conflict, "it may still issue", "roles sign with it", "it is the mount's default")
	_, err = w.DeleteKey(ctx, vault.DeleteKeyInput{Spec: w.spec, IssuerID: old.IssuerID, Mode: procedure.Apply})
	wantFailure(t, err, failure.InvalidInput)
	if written := w.proxy.written(); len(written) > 0 {
		t.Fatalf("it wrote %v", written)
	}
	retire := func(id string) {
		t.Helper()
		if _, err := w.UseIssuer(ctx, vault.UseIssuerInput{Spec: w.spec, IssuerID: id, Default: second, Mode: procedure.Apply}); err != nil {
			t.Fatal(err)
		}
	}
	gone := func(when string, in vault.DeleteKeyInput) {
		t.Helper()
		w.proxy.begin(0)
		if out, err := w.DeleteKey(ctx, in); err != nil || len(out.Changes) > 0 || len(w.proxy.written()) > 0 {
			t.Errorf("%s, and again: %v, %v, wrote %v", when, out.Changes, err, w.proxy.written())
		}
		if named, _ := w.count(t, "pki_relay/keys", "key_name", in.Name); named != 0 {
			t.Errorf("%s: the key is still there", when)
		}
		issuer := w.data(t, "pki_relay/issuer/"+in.Name)
		if issuer["certificate"] != strings.TrimSpace(in.CertificatePEM) && issuer["certificate"] != in.CertificatePEM || issuer["key_id"] != "" || issuer["usage"] != "read-only" {
			t.Errorf("%s: what is left is %v", when, issuer)
		}
		if found := w.survey(t); found.Active.Generation != 2 || !found.Active.Signs || found.FollowsLatest || !found.Active.Default {
			t.Errorf("%s: found %+v", when, found)
		}
	}
	w.moveAll(t, procedure.Apply, second)
	retire(old.IssuerID)
	w.proxy.begin(0)
	out, err := w.DeleteKey(ctx, old)
	if err != nil || len(out.Changes) != 1 || out.Changes[0].Verb != procedure.Delete {
		t.Fatalf("%v, %v", out.Changes, err)
	}
	total := len(w.proxy.written())
	gone("deleted", old)
	w.settingUp()
	// What a setup finds is the one at work.
	if check, err := w.CheckVault(ctx, vault.CheckVaultInput{Spec: w.spec}); err != nil || len(check.Problems) > 0 {
		t.Errorf("a setup after that: %v, %v", check.Problems, err)
	}
	if _, err := sign(w.mustLogin(t, d, "cluster1"), d.access["cluster1"].SignPath, request(t, named("cluster1", "cluster1"))); err != nil {
		t.Errorf("cluster1 cannot sign any more: %v", err)
	}
	w.operating()
	keyless := vault.UseIssuerInput{Spec: w.spec, IssuerID: w.data(t, "pki_relay/issuer/relay-intermediate-g1")["issuer_id"].(string), Signs: true, Mode: procedure.Apply}
	if _, err := w.UseIssuer(ctx, keyless); failure.KindOf(err) != failure.Conflict {
		t.Errorf("one without its key is to issue again: %v", err)
	}
	// A rotation that goes on after its key was deleted by hand.
	keyless.Signs, keyless.Default = false, second
	if out, err := w.UseIssuer(ctx, keyless); err != nil || len(out.Changes) > 0 {
		t.Errorf("one without its key is taken out of use: %v, %v", out.Changes, err)
	}

	for n := 1; n <= total; n++ {
		ca := w.mustStage(t, w.staging(d, 2+n))
		in := input(ca.CAResult, 2+n)
		retire(in.IssuerID)
		w.proxy.begin(n)
		_, err := w.DeleteKey(ctx, in)
		wantFailure(t, err, failure.Unavailable)
		cut := fmt.Sprintf("cut off after %v", w.proxy.written())
		w.proxy.begin(0)
		if _, err := w.DeleteKey(ctx, in); err != nil {
			t.Fatalf("%s, then run again: %v", cut, err)
		}
		gone(cut, in)
	}
}

func TestConfigureTidy(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.mustSetup(t)
	w.operating()
	in := vault.TidyInput{Spec: w.spec, Mode: procedure.Apply}
	out, err := w.ConfigureTidy(ctx, in)
	if err != nil || len(out.Changes) != 4 {
		t.Fatalf("%v, %v", out.Changes, err)
	}
	w.proxy.begin(0)
	if out, err := w.ConfigureTidy(ctx, in); err != nil || len(out.Changes) > 0 || len(w.proxy.written()) > 0 {
		t.Errorf("again: %v, %v", out.Changes, err)
	}
	for _, mount := range []string{"pki", "pki_relay"} {
		crl, tidy := w.data(t, mount+"/config/crl"), w.data(t, mount+"/config/auto-tidy")
		if crl["auto_rebuild"] != true || crl["expiry"] != "72h" || crl["auto_rebuild_grace_period"] != "24h" {
			t.Errorf("%s: CRLs %v", mount, crl)
		}
		if tidy["enabled"] != true || tidy["tidy_expired_issuers"] != false || tidy["tidy_cert_store"] != true || tidy["safety_buffer"] != json.Number("2592000") {
			t.Errorf("%s: tidying %v", mount, tidy)
		}
	}
}

func TestTakeSnapshot(t *testing.T) {
	ctx := context.Background()
	w := worldOf(t, vaulttest.StartRaft(t))
	config := w.site.Vaults[0]
	take := func(file string, mode procedure.Mode) (vault.SnapshotResult, error) {
		return w.TakeSnapshot(ctx, vault.SnapshotInput{Vault: "default", File: file, Mode: mode})
	}
	_, err := take("a.snap", procedure.Apply)
	wantFailure(t, err, failure.Preflight, "snapshotDir", "rotation.snapshot: word")
	config.SnapshotDir = filepath.Join(t.TempDir(), "missing")
	w.use(config)
	_, err = take("a.snap", procedure.Apply)
	wantFailure(t, err, failure.Preflight, "cannot be written", "snapshotDir")
	config.SnapshotDir = t.TempDir()
	w.use(config)
	for _, file := range []string{"", "../a", "x/a", ".a", "/a", ".."} {
		_, err := take(file, procedure.Apply)
		wantFailure(t, err, failure.InvalidInput)
	}
	if planned, err := take("a.snap", procedure.Plan); err != nil || len(planned.Changes) != 1 || !strings.Contains(fmt.Sprint(planned.Changes[0].Commands), "vault operator raft snapshot save "+config.SnapshotDir+"/a.snap") {
		t.Errorf("a plan: %+v, %v", planned, err)
	}
	// What a killed worker has left.
	if err := os.WriteFile(filepath.Join(config.SnapshotDir, ".a.snap.123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	taken, err := take("a.snap", procedure.Apply)
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(config.SnapshotDir)
	if err != nil || len(files) != 1 || taken.Path != filepath.Join(config.SnapshotDir, "a.snap") {
		t.Fatalf("%q and %v (%v)", taken.Path, files, err)
	}
	info, err := files[0].Info()
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() < 1000 {
		t.Errorf("the snapshot is %v, %d bytes (%v)", info.Mode(), info.Size(), err)
	}
	again, err := take("a.snap", procedure.Apply)
	now, statErr := os.Stat(taken.Path)
	if err != nil || len(again.Changes) > 0 || statErr != nil || !now.ModTime().Equal(info.ModTime()) {
		t.Errorf("again: %+v, %v, %v", again, err, statErr)
	}

	// It is one that Vault takes back.
	w.shell(t, "vault secrets enable -path=later kv; vault operator raft snapshot restore "+taken.Path)
	deadline := time.Now().Add(30 * time.Second)
	for {
		mounts, err := w.Root.Sys().ListMounts()
		if err == nil && mounts["later/"] == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the snapshot was not restored: %v, %v", mounts, err)
		}
		time.Sleep(50 * time.Millisecond)
	}

	memory := newWorld(t)
	config = memory.site.Vaults[0]
	config.SnapshotDir = t.TempDir()
	memory.use(config)
	_, err = memory.TakeSnapshot(ctx, vault.SnapshotInput{Vault: "default", File: "a.snap", Mode: procedure.Apply})
	wantFailure(t, err, failure.Preflight, "integrated storage", "rotation.snapshot: word")
	if files, err := os.ReadDir(config.SnapshotDir); err != nil || len(files) > 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

// The commands of a plan, run by hand one after the other, leave a rotation
// nothing to do.
func TestRotatedByHand(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	d := w.mustSetup(t)
	w.operating()
	w.rootWrite(t, "pki_relay/config/issuers", map[string]any{"default": d.relay.Authority.IssuerID, "default_follows_latest_issuer": true})
	first := d.relay.Authority.IssuerID
	rotate := func(mode procedure.Mode) []procedure.Change {
		t.Helper()
		in := w.staging(d, 2)
		in.Mode = mode
		second := w.mustStage(t, in)
		id := second.Authority.IssuerID
		if id == "" {
			id = second.Authority.Name
		}
		changes := append(second.changes, w.moveAll(t, mode, id)...)
		used, err := w.UseIssuer(ctx, vault.UseIssuerInput{Spec: w.spec, IssuerID: first, Default: id, Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		tidied, err := w.ConfigureTidy(ctx, vault.TidyInput{Spec: w.spec, Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		return slices.Concat(changes, used.Changes, tidied.Changes)
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
	if found := w.survey(t); found.Active.Generation != 2 || found.Intermediates[0].Signs || !found.Active.Default {
		t.Errorf("found %+v", found)
	}

	in := vault.DeleteKeyInput{Spec: w.spec, IssuerID: first, Name: "relay-intermediate-g1", CertificatePEM: d.relay.CertificatePEM, Mode: procedure.Plan}
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
