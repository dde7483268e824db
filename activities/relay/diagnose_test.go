package relay_test

import (
	"strings"
	"testing"

	"github.com/relaypki/relaypki/activities/relay"
	"github.com/relaypki/relaypki/internal/check"
)

func (w *world) diagnoseManagement(t *testing.T) []check.Finding {
	t.Helper()
	return w.verifyManagement(t, relay.VerifyManagementInput{Spec: w.spec, Diagnose: true})
}

func ofVaultAlone(f check.Finding) bool {
	return strings.HasPrefix(f.Check, "vault-") || strings.HasPrefix(f.Check, "pki-") || f.Check == check.ClockSkew || f.Check == check.TTLNesting
}

// A real Vault as the setup makes it, looked at with the policies that we ship, has no
// finding, and nothing is kept from being looked at.
func TestDiagnosisOfVaultAsSetUp(t *testing.T) {
	w := newWorld(t)
	made := map[string]bool{}
	for _, f := range w.diagnoseManagement(t) {
		if !ofVaultAlone(f) {
			continue
		}
		made[f.Check] = true
		if f.Status != check.Pass || f.Denied {
			t.Errorf("%s of %s, %s: %s; %q", f.Status, f.Check, f.Object, f.Message, f.Evidence)
		}
	}
	for _, name := range []string{
		check.VaultChain, check.ClockSkew, check.TTLNesting, check.PKICAValidity, check.PKICRLValidity, check.PKIHardwareBackedRoot, check.PKIRootIssuedLeaves, check.PKIRoleLocalhost,
		check.PKIRoleGlobWildcards, check.PKIRoleNoStore, check.PKIAuditVisibility, check.PKIIfModifiedSince, check.PKIAutoTidy, check.PKITidyLastRun, check.PKITooManyCerts, check.PKIACMEIssuance, check.PKIACMEHeaders,
	} {
		if !made[name] {
			t.Errorf("%s was not made", name)
		}
	}
}

// Each of these is broken for real.
func TestDiagnosisOfVaultBroken(t *testing.T) {
	w := newWorld(t)
	write := func(path string, data map[string]any) {
		t.Helper()
		if _, err := w.vault.Root.Logical().WriteWithContext(t.Context(), path, data); err != nil {
			t.Fatal(err)
		}
	}
	patch := func(path string, data map[string]any) {
		t.Helper()
		if _, err := w.vault.Root.Logical().JSONMergePatch(t.Context(), path, data); err != nil {
			t.Fatal(err)
		}
	}
	write("pki/roles/web", map[string]any{"allow_any_name": true, "allow_glob_domains": true, "allow_wildcard_certificates": true, "allowed_domains": "*.example.com", "no_store": false})
	write("pki/issue/web", map[string]any{"common_name": "a.example.com", "ttl": "1h"})
	write("sys/mounts/pki_relay/tune", map[string]any{"audit_non_hmac_response_keys": []string{"private_key"}, "max_lease_ttl": "1h"})
	write("pki_relay/config/auto-tidy", map[string]any{"enabled": true, "interval_duration": "96h", "tidy_cert_store": true, "pause_duration": "1s"})
	write("pki_relay/config/cluster", map[string]any{"path": w.vault.Address + "/v1/pki_relay"})
	write("pki_relay/config/acme", map[string]any{"enabled": true})
	patch("pki_relay/roles/relay-client-cluster1", map[string]any{"max_ttl": "2h", "no_store": false})
	patch("pki_relay/issuer/"+w.relayID, map[string]any{"manual_chain": []string{w.relayID}})
	seen := w.diagnoseManagement(t)
	for _, want := range []struct {
		name   string
		status check.Status
		words  string
	}{
		{check.PKIRootIssuedLeaves, check.Warn, "no CA"},
		{check.PKIRoleLocalhost, check.Warn, "localhost"},
		{check.PKIRoleGlobWildcards, check.Warn, "by pattern"},
		{check.PKIRoleNoStore, check.Warn, "stores all"},
		{check.PKIAuditVisibility, check.Warn, "private keys"},
		{check.PKIAutoTidy, check.Warn, "too seldom"},
		{check.PKIACMEIssuance, check.Warn, "ACME is on"},
		{check.PKIACMEHeaders, check.Note, "Replay-Nonce"},
		{check.TTLNesting, check.Fail, "nothing that lives longer than 1h"},
		{check.TTLNesting, check.Fail, "nothing that lives longer than 2h"},
		{check.VaultChain, check.Fail, "ends at itself"},
	} {
		expect(t, seen, want.name, want.status, want.words)
	}
}

// A cluster that does not answer is one finding, and one in which nothing is has many:
// all with evidence and commands.
func TestDiagnosisOfClusters(t *testing.T) {
	w := newWorld(t)
	seen := w.verifyCluster(t, relay.VerifyClusterInput{Spec: w.spec, Cluster: "cluster2", Diagnose: true})
	if len(seen) != 1 || seen[0].Check != check.ClusterReachable || !strings.Contains(strings.Join(seen[0].Evidence, " "), "connection refused") ||
		!strings.Contains(strings.Join(seen[0].Commands, " "), "kubectl --context down ") {
		t.Errorf("%+v", seen)
	}

	seen = append(w.verifyCluster(t, relay.VerifyClusterInput{Spec: w.spec, Cluster: "cluster1", Diagnose: true}), w.diagnoseManagement(t)...)
	expect(t, seen, check.IdentityToken, check.Fail, "relay-identity-token-secret is missing")
	expect(t, seen, check.ClockSkew, check.Pass, "the worker")
	expect(t, seen, check.RootToken, check.Pass, "no token of Vault's")
	expect(t, seen, check.HelmOwned, check.Pass, "")
	for _, f := range seen {
		if f.Status != check.Pass && (len(f.Evidence) == 0 || len(f.Commands) == 0 || f.Remedy == "") {
			t.Errorf("%s of %s: evidence %q, commands %q", f.Status, f.Check, f.Evidence, f.Commands)
		}
		for _, command := range f.Commands {
			if strings.Contains(command, "kubectl ") && !strings.Contains(command, "--context up ") {
				t.Errorf("%s: %s", f.Check, command)
			}
		}
	}
}
