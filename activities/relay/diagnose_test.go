package relay_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"slices"
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

// judgedOtherwise is what "vault pki health-check" finds on every mount as the setup
// makes it, and what is no finding for a relay; internal/check/pki.go says why.
var judgedOtherwise = []string{"audit_visibility", "allow_if_modified_since", "enable_acme_issuance", "enable_auto_tidy", "tidy_last_run", "hardware_backed_root"}

// TestBesideHealthCheck: what "vault pki health-check" finds on the same mounts, a
// diagnosis has looked at too, and finds it if it matters here.
func TestBesideHealthCheck(t *testing.T) {
	w := newWorld(t)
	theirs := func(mount string) map[string][]string {
		t.Helper()
		command := exec.Command(w.vault.Program, "pki", "health-check", "-format=json", mount)
		command.Env = append(os.Environ(), "VAULT_ADDR="+w.vault.Address, "VAULT_CACERT="+w.vault.CAFile, "VAULT_TOKEN="+w.vault.Root.Token())
		out, err := command.Output() // its exit code is the worst status
		var checks map[string][]struct {
			Status  string `json:"status"`
			Message string `json:"message"`
		}
		if parse := json.Unmarshal(out, &checks); parse != nil {
			t.Fatalf("%v, %v\n%s", err, parse, out)
		}
		found := map[string][]string{}
		for name, results := range checks {
			for _, r := range results {
				if r.Status == "informational" || r.Status == "warning" || r.Status == "critical" {
					found[name] = append(found[name], r.Status+": "+r.Message)
				}
			}
		}
		return found
	}
	compare := func(broken bool) {
		t.Helper()
		ours := w.diagnoseManagement(t)
		for _, mount := range []string{"pki", "pki_relay"} {
			for name, results := range theirs(mount) {
				own := "pki-" + strings.ReplaceAll(name, "_", "-")
				made, finds := false, false
				for _, f := range ours {
					if f.Check == own {
						made, finds = true, finds || f.Status != check.Pass
					}
				}
				switch {
				case !made:
					t.Errorf("%s of %s is not looked at: %s", name, mount, results)
				case !finds && !slices.Contains(judgedOtherwise, name):
					t.Errorf("%s of %s is not found: %s", name, mount, results)
				case !broken && !slices.Contains(judgedOtherwise, name):
					t.Errorf("as set up, %s of %s: %s", name, mount, results)
				}
			}
		}
	}
	compare(false)

	write := func(path string, data map[string]any) {
		t.Helper()
		if _, err := w.vault.Root.Logical().WriteWithContext(t.Context(), path, data); err != nil {
			t.Fatal(err)
		}
	}
	write("pki/roles/web", map[string]any{"allow_any_name": true, "allow_glob_domains": true, "allow_wildcard_certificates": true, "allowed_domains": "*.example.com", "no_store": false})
	write("pki/issue/web", map[string]any{"common_name": "a.example.com", "ttl": "1h"})
	write("pki_relay/roles/web", map[string]any{"allowed_domains": "example.com", "no_store": false})
	write("pki_relay/config/auto-tidy", map[string]any{"enabled": true, "interval_duration": "200h", "tidy_cert_store": true})
	broken := 0
	for _, mount := range []string{"pki", "pki_relay"} {
		for name := range theirs(mount) {
			if !slices.Contains(judgedOtherwise, name) {
				broken++
			}
		}
	}
	if broken < 4 {
		t.Errorf("vault pki health-check finds %d of what was broken", broken)
	}
	compare(true)
}
