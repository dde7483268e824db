package vault_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

func (w *world) refresh(mint bool, keys ...*tokenIssuer) (vault.RefreshCredentialResult, error) {
	in := vault.RefreshCredentialInput{Spec: w.spec.Only("cluster1"), Context: "cluster1", Workload: "cluster1", Mint: mint}
	for _, k := range keys {
		in.Issuer, in.KeysPEM = k.issuer, append(in.KeysPEM, k.publicPEM)
	}
	return w.RefreshCredential(context.Background(), in)
}

// A cluster's keys have changed: they are pinned with the identity refresh
// alone, and a token that is signed with the new key gets in.
func TestRefreshPinnedKeys(t *testing.T) {
	w := newWorld(t)
	w.mustSetup(t)
	old := w.tokensOf("cluster1")
	if out, err := w.refresh(false, old); err != nil || len(out.Changes) > 0 || out.Lost != "" {
		t.Errorf("with the same keys: %+v, %v", out, err)
	}
	w.proxy.begin(0)
	if out, err := w.refresh(false, old); err != nil || len(out.Changes) > 0 || len(w.proxy.written()) > 0 {
		t.Errorf("with the same keys %q was written: %v", w.proxy.written(), err)
	}
	fresh := w.tokensOf("other").claiming(old.issuer)
	out, err := w.refresh(false, fresh, old) // both, as while a cluster changes over
	if err != nil || out.State() != procedure.Changed || !strings.Contains(out.Changes[0].Detail, "1 pinned, 2 now") {
		t.Fatalf("with another key: %+v, %v", out, err)
	}
	if out, err = w.refresh(false, fresh); err != nil || out.State() != procedure.Changed {
		t.Fatalf("without the old key: %+v, %v", out, err)
	}
	for _, c := range []struct {
		by   *tokenIssuer
		okay bool
	}{{fresh, true}, {old, false}} {
		_, err := w.Root.Logical().Write("auth/relaypki-prod-cluster1/login", map[string]any{"role": mesh.IssuerServiceAccount, "jwt": c.by.token(issuerSubject, issuerAudience)})
		if (err == nil) != c.okay {
			t.Errorf("a login that should be let in (%t): %v", c.okay, err)
		}
	}

	// The mount is gone: it is not made here.
	if err := w.Root.Sys().DisableAuth("relaypki-prod-cluster1"); err != nil {
		t.Fatal(err)
	}
	if out, err := w.refresh(false, fresh); err != nil || !strings.Contains(out.Lost, "auth/relaypki-prod-cluster1/config") {
		t.Errorf("without the mount: %+v, %v", out, err)
	}
	_, err = w.refresh(true, fresh)
	wantFailure(t, err, failure.Preflight, "auth/relaypki-prod-cluster1/config", "Set the mesh up again")
}

// A setup has had Vault discover the keys: a refresh that still has the old
// record does not undo that.
func TestRefreshLeavesDiscoveryAlone(t *testing.T) {
	w := newWorld(t)
	w.spec.Credential.Keys = mesh.KeysDiscovery
	for i := range w.site.Clusters {
		w.tokensOf(w.site.Clusters[i].Name).publish(t, &w.site.Clusters[i])
	}
	w.Clients.Config = w.site
	d := w.mustSetup(t)
	w.spec.Credential.Keys = mesh.KeysPinned
	w.proxy.begin(0)
	if out, err := w.refresh(false, w.tokensOf("cluster2")); err != nil || len(out.Changes) > 0 || len(w.proxy.written()) > 0 {
		t.Errorf("%+v, %v; written %q", out, err, w.proxy.written())
	}
	w.mustLogin(t, d, "cluster1")
}

func TestRefreshToken(t *testing.T) {
	w, secrets := newTokenWorld(t)
	lost := func(words string) {
		t.Helper()
		before := w.clusterTokens(t)
		out, err := w.refresh(false)
		if err != nil || !strings.Contains(out.Lost, words) || len(out.Changes) > 0 || w.clusterTokens(t) != before {
			t.Errorf("want lost, %q: %+v, %v, %d tokens", words, out, err, w.clusterTokens(t))
		}
		if out, err = w.refresh(true); err != nil || len(out.Changes) != 1 || !strings.Contains(out.Detail, "minted anew") || !strings.Contains(out.Detail, words) || w.clusterTokens(t) != before+1 {
			t.Errorf("minting: %+v, %v, %d tokens", out, err, w.clusterTokens(t))
		}
	}
	lost("Secret gloo-mesh/vault-token is missing")

	// Nothing to renew, then half of the period is over: Vault's own numbers say so.
	token := secrets.token()
	if out, err := w.refresh(false); err != nil || len(out.Changes) > 0 || secrets.token() != token {
		t.Errorf("a fresh token: %+v, %v", out, err)
	}
	short := w.spec.Credential.TokenPeriod
	w.spec.Credential.TokenPeriod = mesh.Hours(7 * 24)
	w.mustSetup(t) // so that what is left is under a half
	out, err := w.refresh(false)
	if err != nil || out.State() != procedure.Changed || secrets.token() != token {
		t.Fatalf("under half of its period left: %+v, %v", out, err)
	}
	self, err := w.Root.Auth().Token().Lookup(token)
	if err != nil {
		t.Fatal(err)
	}
	if ttl, err := self.TokenTTL(); err != nil || ttl <= short.Duration || (ttl-w.spec.Credential.TokenPeriod.Duration).Abs() > time.Minute {
		t.Errorf("renewed, it has %s left: %v", ttl, err)
	}

	if err := w.Root.Auth().Token().RevokeTree(token); err != nil {
		t.Fatal(err)
	}
	lost("expired or was revoked")

	// A token that lives and is not the cluster's own is not replaced by night.
	other, err := w.Root.Auth().Token().Create(&vaultapi.TokenCreateRequest{Policies: []string{"default"}})
	if err != nil {
		t.Fatal(err)
	}
	secrets.set(false, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Labels: kube.Labels("prod")}, Data: map[string][]byte{"token": []byte(other.Auth.ClientToken)}})
	for _, mint := range []bool{false, true} {
		out, err := w.refresh(mint)
		wantFailure(t, err, failure.Conflict, "vault-token", "other policies")
		if data, _ := json.Marshal(out); strings.Contains(string(data), other.Auth.ClientToken) || secrets.token() != other.Auth.ClientToken {
			t.Error("it was replaced, or is in the result")
		}
	}
}
