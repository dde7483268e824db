package vault_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

func (w *world) removal(cluster string, mode procedure.Mode) vault.RemoveAccessInput {
	return vault.RemoveAccessInput{Spec: w.spec.Only(cluster), Context: cluster, Workload: cluster, Mode: mode}
}

func removed(out procedure.Removal) []string {
	var names []string
	for _, c := range out.Changes {
		if c.Verb == procedure.Delete {
			names = append(names, c.Object)
		}
	}
	return names
}

// there is what of a cluster's access there is in Vault.
func (w *world) there(t *testing.T, cluster string) []string {
	t.Helper()
	name := "relaypki-prod-" + cluster
	var found []string
	for what, path := range map[string]string{"role": "pki_relay/roles/relay-client-" + cluster, "policy": "sys/policies/acl/" + name, "token role": "auth/token/roles/" + name, "config": "auth/" + name + "/config"} {
		if secret, err := w.Root.Logical().Read(path); err == nil && secret != nil {
			found = append(found, what)
		}
	}
	slices.Sort(found)
	return found
}

func TestRemoveClusterAccess(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	// Both methods, one after the other: what the first has left goes too.
	w.spec.Credential.Method = mesh.CredentialToken
	w.mustSetup(t)
	w.spec.Credential.Method = mesh.CredentialJWT
	d := w.mustSetup(t)
	all := []string{"config", "policy", "role", "token role"}
	if got := w.there(t, "cluster2"); !slices.Equal(got, all) {
		t.Fatalf("the setup has left %v", got)
	}
	check, err := w.CheckVaultRemoval(ctx, w.removal("cluster2", procedure.Apply))
	if err != nil || len(check.Problems) > 0 {
		t.Fatalf("preflight: %v, %v", check.Problems, err)
	}
	session := w.mustLogin(t, d, "cluster2")
	csr := request(t, named("cluster2", "cluster2"))
	if _, err := sign(session, "pki_relay/sign/relay-client-cluster2", csr); err != nil {
		t.Fatalf("before the removal the cluster cannot sign: %v", err)
	}

	want := []string{"vault auth mount relaypki-prod-cluster2", "vault token role relaypki-prod-cluster2", "vault role pki_relay/roles/relay-client-cluster2", "vault policy relaypki-prod-cluster2"}
	for _, mode := range []procedure.Mode{procedure.Observe, procedure.Plan} {
		w.proxy.begin(0)
		would, err := w.RemoveClusterAccess(ctx, w.removal("cluster2", mode))
		if err != nil || !slices.Equal(removed(would), want) || len(w.proxy.written()) > 0 {
			t.Errorf("%s: would remove %v, wrote %v, %v", mode, removed(would), w.proxy.written(), err)
		}
		for _, c := range would.Changes {
			if planned := mode == procedure.Plan; planned != (len(c.Commands) == 1 && strings.HasPrefix(c.Commands[0], "vault delete ")) {
				t.Errorf("%s: the commands of %s are %q", mode, c.Object, c.Commands)
			}
		}
	}
	out, err := w.RemoveClusterAccess(ctx, w.removal("cluster2", procedure.Apply))
	if err != nil || !slices.Equal(removed(out), want) || len(out.Kept) > 0 {
		t.Errorf("removed %v, kept %v, %v", removed(out), out.Kept, err)
	}
	if got := w.there(t, "cluster2"); len(got) > 0 {
		t.Errorf("still there: %v", got)
	}
	if _, err := sign(session, "pki_relay/sign/relay-client-cluster2", csr); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("a token from before the removal: %v", err)
	}
	for _, other := range []string{"cluster1", "mgmt"} {
		if got := w.there(t, other); other == "cluster1" && !slices.Equal(got, all) || other == "mgmt" && len(got) != 3 {
			t.Errorf("of %s there is %v", other, got)
		}
	}
	again, err := w.RemoveClusterAccess(ctx, w.removal("cluster2", procedure.Apply))
	if err != nil || len(again.Changes)+len(again.Kept) > 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	w.mustSetup(t) // it can come back
	if got := w.there(t, "cluster2"); !slices.Equal(got, []string{"config", "policy", "role"}) {
		t.Errorf("added again: %v", got)
	}
}

// Wherever the answer to a deletion gets lost, the next try finishes it.
func TestRemoveClusterAccessCutOff(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	for cut := 1; cut <= 3; cut++ {
		w.proxy.begin(0)
		w.mustSetup(t)
		w.proxy.begin(cut)
		if _, err := w.RemoveClusterAccess(ctx, w.removal("cluster1", procedure.Apply)); err == nil || failure.IsPermanent(err) {
			t.Errorf("cut off at deletion %d: %v", cut, err)
		}
		w.proxy.begin(0)
		if _, err := w.RemoveClusterAccess(ctx, w.removal("cluster1", procedure.Apply)); err != nil {
			t.Errorf("after the cut at deletion %d: %v", cut, err)
		}
		if got := w.there(t, "cluster1"); len(got) > 0 {
			t.Errorf("after the cut at deletion %d there is %v", cut, got)
		}
	}
}

// What is not ours is kept, and it is said why.
func TestRemovalKeepsWhatIsNotOurs(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.mustSetup(t)
	for path, data := range map[string]map[string]any{
		"sys/policies/acl/relaypki-prod-cluster1":  {"policy": `path "secret/*" { capabilities = ["read"] }`},
		"auth/token/roles/relaypki-prod-cluster1":  {"allowed_policies": "theirs"},
		"pki_relay/roles/relay-client-cluster1":    {"allowed_domains": "theirs.example", "allow_subdomains": true},
		"sys/auth/relaypki-prod-cluster1/tune":     {"description": "somebody's"},
		"pki_relay/roles/gloo-mesh-mgmt-server-ca": {"allowed_domains": "cluster1", "allow_bare_domains": true},
	} {
		if _, err := w.Root.Logical().Write(path, data); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	w.proxy.begin(0)
	out, err := w.RemoveClusterAccess(ctx, w.removal("cluster1", procedure.Apply))
	if err != nil || len(out.Changes) > 0 || len(out.Kept) != 4 || len(w.proxy.written()) > 0 {
		t.Errorf("removed %v, kept %+v, wrote %v, %v", removed(out), out.Kept, w.proxy.written(), err)
	}
	// With the shared role there is no other to delete.
	w.spec.PKI.Isolation = mesh.IsolationShared
	if _, err := w.RemoveClusterAccess(ctx, w.removal("cluster2", procedure.Apply)); err != nil {
		t.Error(err)
	}
	if secret, err := w.Root.Logical().Read("pki_relay/roles/gloo-mesh-mgmt-server-ca"); err != nil || secret == nil {
		t.Errorf("the shared role: %v, %v", secret, err)
	}
	if got := w.there(t, "cluster2"); len(got) > 0 {
		t.Errorf("of cluster2 there is %v", got)
	}
}

// A Vault whose onboard policy is of an earlier release gets the rules named
// that it lacks, before anything is touched.
func TestCheckVaultRemovalNamesWhatIsMissing(t *testing.T) {
	w := newWorld(t)
	w.mustSetup(t)
	policy, err := w.Root.Sys().GetPolicy("relaypki-onboard")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Root.Sys().PutPolicy("relaypki-onboard", strings.ReplaceAll(policy, `, "delete"`, "")); err != nil {
		t.Fatal(err)
	}
	result, err := w.CheckVaultRemoval(context.Background(), w.removal("cluster1", procedure.Apply))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"may not delete pki_relay/roles/relay-client-cluster1", "may not delete sys/policies/acl/relaypki-prod-cluster1", "may not delete sys/auth/relaypki-prod-cluster1", "may not delete auth/token/roles/relaypki-prod-cluster1", "deploy/vault/policies/onboard.hcl"} {
		if !strings.Contains(strings.Join(result.Problems, "\n"), want) {
			t.Errorf("no problem says %q: %q", want, result.Problems)
		}
	}
	if err := w.Root.Sys().Seal(); err != nil {
		t.Fatal(err)
	}
	result, err = w.CheckVaultRemoval(context.Background(), w.removal("cluster1", procedure.Apply))
	if err != nil || len(result.Problems) != 1 || !strings.Contains(result.Problems[0], "sealed") {
		t.Errorf("sealed: %q, %v", result.Problems, err)
	}
}

// A token in the vault-token Secret is revoked if it was minted for the
// cluster, and left to its owner otherwise.
func TestRevokeClusterToken(t *testing.T) {
	ctx := context.Background()
	w, secrets := newTokenWorld(t)
	revoke := func(mode procedure.Mode) procedure.Removal {
		t.Helper()
		out, err := w.RevokeClusterToken(ctx, w.removal("cluster1", mode))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := revoke(procedure.Apply); len(out.Changes)+len(out.Kept) > 0 {
		t.Errorf("without a Secret: %+v", out)
	}
	if _, err := w.issueToken(procedure.Apply); err != nil {
		t.Fatal(err)
	}
	if out := revoke(procedure.Plan); len(out.Changes) != 1 || w.clusterTokens(t) != 1 {
		t.Errorf("planned: %+v, %d tokens", out, w.clusterTokens(t))
	}
	if out := revoke(procedure.Apply); len(out.Changes) != 1 || w.clusterTokens(t) != 0 {
		t.Errorf("revoked: %+v, %d tokens are left", out, w.clusterTokens(t))
	}
	if out := revoke(procedure.Apply); len(out.Changes)+len(out.Kept) > 0 {
		t.Errorf("again: %+v", out)
	}
	root := &corev1.Secret{Data: map[string][]byte{mesh.TokenSecretKey: []byte(w.Root.Token())}}
	root.Labels = kube.Labels("prod")
	secrets.set(false, root)
	if out := revoke(procedure.Apply); len(out.Changes) > 0 || len(out.Kept) != 1 {
		t.Errorf("the root token in our Secret: %+v", out)
	}
	if _, err := w.Root.Auth().Token().LookupSelf(); err != nil {
		t.Errorf("the root token was revoked: %v", err)
	}
}
