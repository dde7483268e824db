package vault_test

import (
	"context"
	"testing"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// renew makes the cluster's credential anew, for that run.
func (w *world) renew(run string) (vault.RefreshCredentialResult, error) {
	return w.RefreshCredential(context.Background(), vault.RefreshCredentialInput{
		Spec: w.spec.Only("cluster1"), Context: "cluster1", Workload: "cluster1", Mint: true, Renewal: run})
}

// lives says whether Vault knows the token.
func (w *world) lives(token string) bool {
	_, err := w.Root.Auth().Token().Lookup(token)
	return err == nil
}

// A token that has all of its life to come is replaced, once for each run, and
// lives until it is retired.
func TestRenewToken(t *testing.T) {
	w, secrets := newTokenWorld(t)
	if _, err := w.issueToken(procedure.Apply); err != nil {
		t.Fatal(err)
	}
	retire := func() procedure.Outcome {
		t.Helper()
		out, err := w.RetireClusterToken(context.Background(), vault.RetireClusterTokenInput{Spec: w.spec.Only("cluster1"), Context: "cluster1"})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := retire(); len(out.Changes) > 0 {
		t.Errorf("with nothing replaced: %+v", out)
	}
	first := secrets.token()
	out, err := w.renew("run1")
	second := secrets.token()
	if err != nil || out.State() != procedure.Changed || out.Superseded != 1 || second == first || !w.lives(first) || !w.lives(second) {
		t.Fatalf("%+v, %v; another token: %t, the old one lives: %t", out, err, second != first, w.lives(first))
	}
	if out, err := w.renew("run1"); err != nil || len(out.Changes) > 0 || out.Superseded != 1 || secrets.token() != second {
		t.Errorf("a try that is repeated: %+v, %v", out, err)
	}
	// The run is gone: the next refresh says that one is left over.
	if out, err := w.refresh(false); err != nil || out.Superseded != 1 || secrets.token() != second {
		t.Errorf("a refresh after it: %+v, %v", out, err)
	}
	if out := retire(); len(out.Changes) != 1 || w.lives(first) || !w.lives(second) || secrets.token() != second {
		t.Errorf("retired: %+v; the old one lives: %t, the new one: %t", out, w.lives(first), w.lives(second))
	}
	if out, err := w.refresh(false); err != nil || out.Superseded != 0 || len(out.Changes) > 0 {
		t.Errorf("a refresh at the end: %+v, %v", out, err)
	}
	// Two runs, of which the first never came to retire: no token is left behind.
	for _, run := range []string{"run2", "run3"} {
		if _, err := w.renew(run); err != nil {
			t.Fatal(err)
		}
	}
	third := secrets.token()
	if n := w.clusterTokens(t); n != 2 || w.lives(second) {
		t.Errorf("%d tokens of the cluster, want the last and the one before; the second lives: %t", n, w.lives(second))
	}
	if retire(); w.clusterTokens(t) != 1 || !w.lives(third) {
		t.Errorf("%d tokens of the cluster", w.clusterTokens(t))
	}
}

// A secret id is replaced, once for each run, whatever is left of its life.
func TestRenewSecretID(t *testing.T) {
	w, secrets := newSecretWorld(t, mesh.CredentialAppRole, mesh.AppRoleSecretName)
	issued, err := w.issueSecretID(procedure.Apply)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		out, err := w.renew("run1")
		if err != nil || out.SecretKey == issued.Key || out.Superseded != 1 || len(secrets.data()) != 2 || w.secretIDsInVault(t) != 2 {
			t.Fatalf("%+v, %v; keys %d", out, err, len(secrets.data()))
		}
	}
	if out, err := w.renew("run2"); err != nil || out.Superseded != 2 || w.secretIDsInVault(t) != 3 {
		t.Errorf("another run: %+v, %v", out, err)
	}
}
