package vault_test

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	vaultapi "github.com/hashicorp/vault/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

func (w *world) issueSecretID(mode procedure.Mode) (vault.SecretIDResult, error) {
	return w.IssueSecretID(context.Background(), vault.SecretIDInput{Spec: w.spec.Only("cluster1"), Context: "cluster1", Mode: mode})
}

// data is the Secret as cert-manager sees it.
func (s *secretServer) data() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	if s.secret != nil {
		for key, value := range s.secret.Data {
			out[key] = string(value)
		}
	}
	return out
}

const secretIDs = "auth/relaypki-prod-cluster1/role/relaypki-issuer/secret-id"

// secretIDsInVault counts them.
func (w *world) secretIDsInVault(t *testing.T) int {
	t.Helper()
	list, err := w.Root.Logical().List(secretIDs)
	if err != nil {
		t.Fatal(err)
	}
	if list == nil {
		return 0
	}
	return len(list.Data["keys"].([]any))
}

// loginAs logs in as cert-manager does.
func (w *world) loginAs(d done, secretID string) (*vaultapi.Client, error) {
	access := d.access["cluster1"]
	secret, err := w.Root.Logical().Write("auth/"+access.AuthPath+"/login", map[string]any{"role_id": access.AuthRole, "secret_id": secretID})
	if err != nil {
		return nil, err
	}
	return w.Client(secret.Auth.ClientToken)
}

func TestAppRole(t *testing.T) {
	w, secrets := newSecretWorld(t, mesh.CredentialAppRole, mesh.AppRoleSecretName)
	d := w.mustSetup(t)
	if len(d.changes) > 0 {
		t.Errorf("a second setup has still to %v", d.changed())
	}
	for _, mode := range []procedure.Mode{procedure.Observe, procedure.Plan} {
		if out, err := w.issueSecretID(mode); err != nil || out.State() != procedure.Created || len(secrets.data()) > 0 || w.secretIDsInVault(t) > 0 {
			t.Fatalf("%s: %+v, %v", mode, out, err)
		}
	}
	first, err := w.issueSecretID(procedure.Apply)
	if err != nil || first.State() != procedure.Created || first.Key != "secretId-1" || w.secretIDsInVault(t) != 1 {
		t.Fatalf("%+v, %v", first, err)
	}
	old := secrets.data()["secretId-1"]
	if text, _ := json.Marshal(first); strings.Contains(string(text), old) {
		t.Error("the secret id is in the result")
	}
	client, err := w.loginAs(d, old)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sign(client, "pki_relay/sign/relay-client-cluster1", request(t, named("cluster1", "cluster1"))); err != nil {
		t.Errorf("the login cannot sign: %v", err)
	}
	if _, err := sign(client, "pki_relay/sign/relay-client-cluster2", request(t, named("cluster2", "cluster2"))); err == nil {
		t.Error("cluster1's login signs for cluster2")
	}
	if self, err := client.Auth().Token().LookupSelf(); err == nil {
		t.Errorf("the login may more than sign: %v", self.Data["policies"])
	}
	found, err := w.Root.Logical().Write(secretIDs+"/lookup", map[string]any{"secret_id": old})
	if err != nil || found.Data["secret_id_ttl"] != json.Number("259200") {
		t.Errorf("the secret id lives %v (%v)", found.Data["secret_id_ttl"], err)
	}
	if again, err := w.issueSecretID(procedure.Apply); err != nil || len(again.Changes) > 0 || again.Key != "secretId-1" {
		t.Errorf("a second run: %+v, %v", again, err)
	}

	// Half of its life is over: the next one is beside it, and both let in.
	w.spec.Credential.TokenPeriod = mesh.Hours(7 * 24)
	w.mustSetup(t)
	refreshed, err := w.refresh(false)
	if err != nil || refreshed.State() != procedure.Changed || refreshed.SecretKey != "secretId-2" || refreshed.Superseded != 1 {
		t.Fatalf("a refresh: %+v, %v", refreshed, err)
	}
	data := secrets.data()
	for key, id := range data {
		if _, err := w.loginAs(d, id); err != nil || len(data) != 2 {
			t.Errorf("%s of %d: %v", key, len(data), err)
		}
	}
	// A run that was killed here finds that there is one to be taken up.
	if again, err := w.refresh(false); err != nil || len(again.Changes) > 0 || again.SecretKey != "secretId-2" || again.Superseded != 1 {
		t.Errorf("a refresh after one that was killed: %+v, %v", again, err)
	}
	retire := func(key string) (procedure.Outcome, error) {
		return w.RetireSecretIDs(context.Background(), vault.RetireSecretIDsInput{Spec: w.spec.Only("cluster1"), Context: "cluster1", Key: key})
	}
	_, err = retire("secretId-1")
	wantFailure(t, err, failure.Conflict, "newer secret id")
	for range 2 {
		if _, err := retire("secretId-2"); err != nil {
			t.Fatal(err)
		}
		if got := slices.Collect(maps.Keys(secrets.data())); !slices.Equal(got, []string{"secretId-2"}) || w.secretIDsInVault(t) != 1 {
			t.Errorf("after retiring: %q, %d in Vault", got, w.secretIDsInVault(t))
		}
	}
	if _, err := w.loginAs(d, old); err == nil {
		t.Error("the old secret id still lets in")
	}
	if _, err := w.loginAs(d, secrets.data()["secretId-2"]); err != nil {
		t.Errorf("the new one does not: %v", err)
	}

	// It is lost: said, and made anew only when told.
	if _, err := w.Root.Logical().Write(secretIDs+"/destroy", map[string]any{"secret_id": secrets.data()["secretId-2"]}); err != nil {
		t.Fatal(err)
	}
	lost, err := w.refresh(false)
	if err != nil || !strings.Contains(lost.Lost, "expired or was destroyed") || len(lost.Changes) > 0 || w.secretIDsInVault(t) != 0 {
		t.Errorf("lost: %+v, %v", lost, err)
	}
	if anew, err := w.refresh(true); err != nil || anew.SecretKey != "secretId-3" || !strings.Contains(anew.Detail, "minted anew") || w.secretIDsInVault(t) != 1 {
		t.Errorf("anew: %+v, %v", anew, err)
	}
	if _, err := retire("secretId-3"); err != nil || len(secrets.data()) != 1 {
		t.Errorf("a dead one beside it: %v, %d left", err, len(secrets.data()))
	}
}

// What was minted for a Secret that could not be written is destroyed, be it
// that the worker may not, or that somebody else has written it meanwhile.
func TestAppRoleLeavesNoneBehind(t *testing.T) {
	w, secrets := newSecretWorld(t, mesh.CredentialAppRole, mesh.AppRoleSecretName)
	secrets.set(true, nil)
	_, err := w.issueSecretID(procedure.Apply)
	wantFailure(t, err, failure.Denied)
	if n := w.secretIDsInVault(t); n != 0 {
		t.Errorf("%d secret ids are left", n)
	}
	secrets.set(false, &corev1.Secret{Data: map[string][]byte{"mine": []byte("x")}})
	_, err = w.issueSecretID(procedure.Apply)
	wantFailure(t, err, failure.Conflict, "relaypki-approle", "not ours")
	if n := w.secretIDsInVault(t); n != 0 || len(secrets.data()) != 1 {
		t.Errorf("%d secret ids are left, the Secret has %d keys", n, len(secrets.data()))
	}
	ours := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Labels: kube.Labels("prod"), ResourceVersion: "7"}, Data: map[string][]byte{"secretId-1": []byte("dead"), "secretId-x": nil}}
	secrets.set(false, ours)
	secrets.between = func() { ours.ResourceVersion = "8" }
	if _, err = w.issueSecretID(procedure.Apply); err == nil || failure.IsPermanent(err) || w.secretIDsInVault(t) != 0 {
		t.Errorf("the Secret was written meanwhile: %v, %d secret ids are left", err, w.secretIDsInVault(t))
	}
}

// A change of method replaces the mesh's auth mounts and no others, in a plan
// and in fact.
func TestChangeOfMethod(t *testing.T) {
	w := newWorld(t)
	w.mustSetup(t)
	for _, method := range []string{mesh.CredentialAppRole, mesh.CredentialJWT} {
		w.spec.Credential.Method = method
		w.byHand(t, w.plan(t))
		if d := w.mustSetup(t); len(d.changes) > 0 {
			t.Fatalf("%s: a setup after the plan's commands has still to %v", method, d.changed())
		}
		w.spec.Credential.Method = map[string]string{mesh.CredentialAppRole: mesh.CredentialJWT, mesh.CredentialJWT: mesh.CredentialAppRole}[method]
		if d := w.mustSetup(t); !slices.Contains(d.changed(), "update vault auth mount relaypki-prod-cluster1") {
			t.Errorf("to %s: %v", w.spec.Credential.Method, d.changed())
		}
		if d := w.mustSetup(t); len(d.changes) > 0 {
			t.Errorf("to %s, again: %v", w.spec.Credential.Method, d.changed())
		}
		w.spec.Credential.Method = method
		w.mustSetup(t)
	}
	if err := w.Root.Sys().DisableAuth("relaypki-prod-cluster1"); err != nil {
		t.Fatal(err)
	}
	if err := w.Root.Sys().EnableAuthWithOptions("relaypki-prod-cluster1", &vaultapi.EnableAuthOptions{Type: "approle", Description: "somebody else's"}); err != nil {
		t.Fatal(err)
	}
	_, err := w.setup(context.Background(), procedure.Apply)
	wantFailure(t, err, failure.Conflict, `description "somebody else's"`)
	auths, err := w.Root.Sys().ListAuth()
	if err != nil || auths["relaypki-prod-cluster1/"].Description != "somebody else's" {
		t.Errorf("somebody else's mount was touched: %v", err)
	}
}
