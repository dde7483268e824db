package check_test

import (
	"crypto/x509"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/secret/secrettest"
)

// owed checks what a diagnosis owes of whatever does not pass: evidence, and commands
// that a shell takes.
func owed(t *testing.T, findings []check.Finding) {
	t.Helper()
	for _, f := range findings {
		what := fmt.Sprintf("%s of %s: %s", f.Status, f.Check, f.Message)
		if f.Status == check.Pass {
			if f.Evidence != nil || f.Commands != nil || f.Mend != nil {
				t.Errorf("%s: it passes, and has %v, %v, %v", what, f.Evidence, f.Commands, f.Mend)
			}
			continue
		}
		if f.Remedy == "" {
			t.Errorf("%s: no remedy", what)
		}
		if len(f.Evidence) == 0 {
			t.Errorf("%s: no evidence", what)
		}
		for _, line := range f.Evidence {
			if strings.TrimSpace(line) == "" || strings.Contains(line, "\n") {
				t.Errorf("%s: evidence %q", what, line)
			}
		}
		if len(f.Commands) == 0 {
			t.Errorf("%s: no command", what)
		}
		script := strings.Join(f.Commands, "\n")
		parse := exec.Command("bash", "-n")
		parse.Stdin = strings.NewReader(script)
		if out, err := parse.CombinedOutput(); err != nil {
			t.Errorf("%s: %v, %s\n%s", what, err, out, script)
		}
		for _, command := range f.Commands {
			if strings.Contains(command, "kubectl ") && !strings.Contains(command, "--context kube-") {
				t.Errorf("%s: %q is for whatever cluster is the current one", what, command)
			}
		}
		if m := f.Mend; m != nil && (m.Do == check.SetUp) != (m.Cluster == "") {
			t.Errorf("%s: mend %+v", what, *m)
		}
	}
}

func TestAHealthyMeshHasNoFinding(t *testing.T) {
	w := healthy(t)
	for _, f := range append(w.Management.Diagnose(w.now), w.Workload.Diagnose(w.now)...) {
		if f.Status != check.Pass {
			t.Errorf("%s of %s, %s: %s", f.Status, f.Check, f.Object, f.Message)
		}
	}
}

// TestVerificationIsAsBefore: nothing that is of a diagnosis alone is in a verification.
func TestVerificationIsAsBefore(t *testing.T) {
	w := healthy(t)
	w.Vault.Roles[0].Gap = check.Gap{Reason: check.Denied, Detail: "permission denied"}
	w.Replicas[0].Metrics.StandIn = true
	w.Workload.Looks.Webhook.State, w.VaultClock.Behind = "it lets all pass", time.Hour
	for _, f := range append(w.Management.Findings(w.now), w.Workload.Findings(w.now)...) {
		if f.Evidence != nil || f.Commands != nil || f.Mend != nil || f.Denied || f.Status == check.Note {
			t.Errorf("%+v", f)
		}
		if slices.Contains([]string{check.Webhook, check.ClockSkew, check.TTLNesting}, f.Check) {
			t.Errorf("a verification has made %s", f.Check)
		}
	}
}

// found is a finding of a diagnosis that must be there: its words are in the message
// or the remedy, evidence and command each in one line of theirs.
type found struct {
	check, status            string
	words, evidence, command string
	mend                     check.Mend
	denied                   bool
}

func (want found) in(findings []check.Finding) bool {
	line := func(lines []string, part string) bool {
		return part == "" || slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, part) })
	}
	return slices.ContainsFunc(findings, func(f check.Finding) bool {
		var mend check.Mend
		if f.Mend != nil {
			mend = *f.Mend
		}
		return f.Check == want.check && string(f.Status) == want.status && strings.Contains(f.Message+" -> "+f.Remedy, want.words) &&
			line(f.Evidence, want.evidence) && line(f.Commands, want.command) && mend == want.mend && f.Denied == want.denied
	})
}

var (
	setUp    = check.Mend{Do: check.SetUp}
	denied   = check.Gap{Reason: check.Denied, Detail: "permission denied"}
	notFound = check.Gap{Reason: check.NotFound, Detail: "not found"}
)

func of(do check.Doing, cluster string) check.Mend { return check.Mend{Do: do, Cluster: cluster} }

// TestDiagnosis breaks one thing, and looks at what is found of it besides what else
// may follow from it.
func TestDiagnosis(t *testing.T) {
	other := pkitest.Root(t, "another root")
	for _, test := range []struct {
		name string
		harm func(t *testing.T, w *world)
		want []found
	}{
		// The checks of a verification, with what a diagnosis adds.
		{"API server down", func(_ *testing.T, w *world) { w.Workload.Unreachable = "connection refused" },
			[]found{{check: check.ClusterReachable, status: "fail", evidence: "GET /version: connection refused", command: "kubectl --context kube-1 get --raw"}}},
		{"Vault sealed", func(_ *testing.T, w *world) { w.Vault.Sealed = true },
			[]found{{check: check.VaultAvailable, status: "fail", evidence: "initialized true, sealed true", command: "vault operator unseal -address=https://vault:8200"}}},
		{"role gone", func(_ *testing.T, w *world) { w.Vault.Roles[2].Gap = notFound },
			[]found{{check: check.VaultRole, status: "fail", evidence: "pki_relay/roles/relay-client-cluster1: not found", command: "relaypki setup", mend: setUp}}},
		{"role denied", func(_ *testing.T, w *world) { w.Vault.Roles[2].Gap = denied },
			[]found{{check: check.VaultRole, status: "fail", evidence: "permission denied", command: "vault read pki_relay/roles/relay-client-cluster1", denied: true}}},
		{"role for any name", func(_ *testing.T, w *world) { w.Vault.Roles[2].AllowAnyName = true },
			[]found{{check: check.VaultRole, status: "fail", evidence: "allow_any_name true", command: "vault read pki_relay/roles/relay-client-cluster1", mend: setUp}}},
		{"mount gone", func(_ *testing.T, w *world) { w.Vault.Root = check.SeenMount{Path: "pki", Gap: notFound} },
			[]found{{check: check.VaultRoot, status: "fail", evidence: "mount pki: not found", command: "snapshot restore"}}},
		{"default of the root mount is another", func(_ *testing.T, w *world) {
			w.Vault.Root.Default = relayID
			w.Vault.Root.Issuers = append(w.Vault.Root.Issuers, check.SeenVaultIssuer{ID: relayID, Name: "x", Certificate: w.relay.Cert})
		}, []found{{check: check.VaultRoot, status: "fail", evidence: "gloo-mesh-mgmt-server-ca", command: "vault write pki/config/issuers default=" + rootID}}},
		{"certificate refused", func(_ *testing.T, w *world) {
			c := &w.Workload.Certificate
			c.Ready = check.Condition{Status: "False", Reason: "DoesNotExist", Message: "no Secret"}
			c.Failures, c.LastFailure = 3, w.now.Add(-time.Hour)
			w.Workload.Looks.Requests = []check.SeenRequest{
				{Name: "relay-client-tls-1", Approved: check.Condition{Status: "True"}, Ready: check.Condition{Status: "False", Reason: "Failed", Message: "not allowed by this role"}}}
		}, []found{
			{check: check.CertificateReady, status: "fail", evidence: "CertificateRequest gloo-mesh/relay-client-tls-1, condition Ready: False, Failed: not allowed by this role", command: "cmctl --context kube-1 renew -n gloo-mesh relay-client-tls", mend: of(check.Reissue, "cluster1")},
			// Four hours after the third failure, an hour ago.
			{check: check.CertificateReady, status: "fail", evidence: "3 failed issuances, the last at 2026-07-01T11:00:00Z; cert-manager asks again at 2026-07-01T15:00:00Z", mend: of(check.Reissue, "cluster1")},
			{check: check.CertificateReady, status: "fail", evidence: "Issuer gloo-mesh/vault-issuer, condition Ready: True", mend: of(check.Reissue, "cluster1")},
		}},
		{"certificate gone", func(_ *testing.T, w *world) { w.Management.Certificate = check.SeenCertificate{Gap: notFound} },
			[]found{{check: check.CertificateReady, status: "fail", evidence: "Certificate gloo-mesh/relay-server-tls: not found", command: "setup", mend: setUp}}},
		{"Secret gone", func(_ *testing.T, w *world) { w.Workload.Secret = check.SeenSecret{Gap: notFound} },
			[]found{{check: check.CertificateSecret, status: "fail", evidence: "Secret gloo-mesh/relay-client-tls-secret: not found", command: "cmctl", mend: of(check.Reissue, "cluster1")}}},
		{"Secret misnamed", func(_ *testing.T, w *world) {
			w.Workload.Secret, w.Workload.Certificate.SecretName = check.SeenSecret{Gap: notFound}, "relay-client-secret"
		}, []found{{check: check.CertificateSecret, status: "fail", evidence: `spec.secretName: "relay-client-secret"`, command: "setup", mend: setUp}}},
		{"ca.crt is the intermediate", func(_ *testing.T, w *world) { w.Workload.Secret.CA[0] = w.relay.Cert },
			[]found{{check: check.CertificateRoot, status: "fail", evidence: `ca.crt[0]: subject "CN=gloo-mesh-mgmt-server-ca"`, command: "openssl", mend: of(check.Reissue, "cluster1")}}},
		{"not yet valid", func(_ *testing.T, w *world) { w.now = pkitest.Now.Add(-2 * time.Hour) },
			[]found{{check: check.CertificateLifetime, status: "fail", evidence: "the worker's clock: 2026-07-01T10:00:00Z", command: "date -u"}}},
		{"expired", func(_ *testing.T, w *world) { w.now = pkitest.Now.Add(24 * time.Hour) },
			[]found{{check: check.CertificateLifetime, status: "fail", evidence: "valid from 2026-07-01T11:00:00Z to 2026-07-02T11:00:00Z", command: "cmctl", mend: of(check.Reissue, "mgmt")}}},
		{"trust gone", func(_ *testing.T, w *world) { w.RootSecret = check.SeenSecret{Gap: notFound} },
			[]found{{check: check.AgentTrust, status: "fail", evidence: "Secret gloo-mesh/relay-root-tls-secret: not found", command: "setup", mend: setUp}}},
		{"trust of another root", func(_ *testing.T, w *world) { w.RootSecret.CA = []*x509.Certificate{other.Cert} },
			[]found{{check: check.AgentTrust, status: "fail", evidence: "another root", mend: setUp}}},
		{"trust to be read by none", func(_ *testing.T, w *world) { w.RootSecret = check.SeenSecret{Gap: denied} },
			[]found{{check: check.AgentTrust, status: "fail", evidence: "permission denied", denied: true}}},
		{"Secret that could not be read", func(_ *testing.T, w *world) {
			w.Workload.Secret = check.SeenSecret{Gap: check.Gap{Reason: check.Unreachable, Detail: "timed out"}}
		}, []found{{check: check.CertificateSecret, status: "fail", evidence: "unreachable: timed out"}}},
		{"cert-manager scaled away", func(_ *testing.T, w *world) {
			w.Management.CertManager[1].Desired, w.Management.CertManager[1].Available = 0, 0
		}, []found{{check: check.CertManager, status: "fail", evidence: "spec.replicas 0", command: "kubectl --context kube-mgmt -n cert-manager scale deployment/cert-manager-webhook --replicas=1"}}},
		{"a Pod's log and events", func(_ *testing.T, w *world) {
			w.Agent.Pods[0] = check.SeenPod{Name: "agent-0", State: "waiting, CrashLoopBackOff", Log: "starting\nsecrets \"relay-root-tls-secret\" not found\nbye"}
			w.Workload.Looks.Events = []check.SeenEvent{
				{Object: "Pod gloo-mesh/another", Reason: "BackOff", Message: "of another", Last: w.now},
				{Object: "Pod gloo-mesh/agent-0", Reason: "FailedMount", Message: "timed out", Count: 5, Last: w.now},
			}
		}, []found{
			{check: check.PodReady, status: "fail", evidence: `Pod gloo-mesh/agent-0, log: secrets "relay-root-tls-secret" not found`, command: "kubectl --context kube-1 -n gloo-mesh logs agent-0 --previous", mend: setUp},
			{check: check.PodReady, status: "fail", evidence: "event of Pod gloo-mesh/agent-0, FailedMount, 5 times", mend: setUp},
		}},
		{"server serves what was before", func(t *testing.T, w *world) {
			w.Management.Secret.Chain[0] = w.relay.Leaf(t, w.spec.Certificates.Server.DNSNames).Cert
		}, []found{{check: check.ServedCertificate, status: "fail", evidence: "Pod gloo-mesh/server-0, port 9900, presents[0]", command: "rollout restart deployment/gloo-mesh-mgmt-server", mend: of(check.Restart, "mgmt")}}},
		{"server serves what was before, and what is stored is no better", func(t *testing.T, w *world) {
			w.Management.Secret.Chain[0] = w.relay.Leaf(t, []string{"another"}).Cert
		}, []found{{check: check.ServedCertificate, status: "fail", command: "rollout restart"}}},
		{"gauges of a cluster", func(_ *testing.T, w *world) { w.Replicas[0].Metrics.Pull["cluster1"] = 0 },
			[]found{{check: check.AgentsConnected, status: "fail", evidence: `relay_pull_clients_connected{cluster="cluster1"} 0`, command: "kubectl --context kube-1 -n gloo-mesh rollout restart deployment/gloo-mesh-agent", mend: of(check.Restart, "cluster1")}}},
		{"not registered", func(_ *testing.T, w *world) { w.Workload.RegisteredGap = notFound },
			[]found{{check: check.RegisteredName, status: "fail", evidence: "KubernetesCluster gloo-mesh/cluster1: not found", command: "kubectl --context kube-mgmt", mend: setUp}}},
		{"the server trusts another root", func(_ *testing.T, w *world) {
			w.Handshakes[0].Error = "remote error: tls: unknown certificate authority"
		}, []found{{check: check.Handshake, status: "fail", evidence: "Pod gloo-mesh/server-0, port 9900: remote error", command: "logs deployment/gloo-mesh-mgmt-server", mend: of(check.Restart, "mgmt")}}},
		{"private network", func(_ *testing.T, w *world) {
			w.Private, w.Handshakes = "the worker does not know the management cluster", nil
		},
			[]found{{check: check.Handshake, status: "note", evidence: "does not know", denied: true}, {check: check.RegisteredName, status: "note", denied: true}}},
		{"secrets are withheld", func(_ *testing.T, w *world) {
			w.Workload.Issuer.Ready = check.Condition{Status: "False", Reason: "VaultError", Message: "bad token " + secrettest.VaultToken}
		}, []found{{check: check.IssuerReady, status: "fail", evidence: "bad token (withheld)", mend: setUp}}},

		// What is of a diagnosis alone.
		{"identity token gone", func(_ *testing.T, w *world) { w.Workload.Looks.Identity = check.SeenIdentity{Gap: notFound} },
			[]found{{check: check.IdentityToken, status: "fail", words: "relay-identity-token-secret is missing", evidence: "not found", command: "kubectl --context kube-1 -n gloo-mesh describe secret", mend: setUp}}},
		{"identity token without its key", func(_ *testing.T, w *world) { w.Management.Looks.Identity.HasKey = false },
			[]found{{check: check.IdentityToken, status: "fail", words: `no key "token"`, mend: setUp}}},
		{"identity token of another", func(_ *testing.T, w *world) { w.Workload.Looks.Identity.Same = false },
			[]found{{check: check.IdentityToken, status: "fail", words: "not that of the management cluster", mend: setUp}}},
		{"identity token that people bring", func(_ *testing.T, w *world) {
			w.Management.Spec.Gloo.IdentityToken.Mode, w.Management.Looks.Identity = mesh.TokenExisting, check.SeenIdentity{Gap: notFound}
		}, []found{{check: check.IdentityToken, status: "fail", words: "create it", command: "create secret generic relay-identity-token-secret --from-file=token=/dev/stdin"}}},
		{"identity token may not be read", func(_ *testing.T, w *world) { w.Workload.Looks.Identity = check.SeenIdentity{Gap: denied} },
			[]found{{check: check.IdentityToken, status: "note", words: "not looked at", evidence: "permission denied", denied: true}}},
		{"webhook away", func(_ *testing.T, w *world) {
			w.Workload.Looks.Webhook.Gap = check.Gap{Reason: check.Unreachable, Detail: "failed calling webhook"}
		}, []found{{check: check.Webhook, status: "fail", words: "does not answer", evidence: "failed calling webhook", command: "rollout restart deployment/cert-manager-webhook"}}},
		{"webhook that lets all pass", func(_ *testing.T, w *world) {
			w.Management.Looks.Webhook.State = "cert-manager's webhook lets pass what it should refuse"
		}, []found{{check: check.Webhook, status: "fail", words: "lets pass", command: "kubectl --context kube-mgmt get validatingwebhookconfiguration"}}},
		{"clock of the API server", func(_ *testing.T, w *world) { w.Workload.Looks.Clock.Behind = 31 * time.Second },
			[]found{{check: check.ClockSkew, status: "warn", words: "31s behind", evidence: "HTTP header Date", command: "date -u"}}},
		{"clock of Vault", func(_ *testing.T, w *world) { w.VaultClock.Behind = -5 * time.Minute },
			[]found{{check: check.ClockSkew, status: "warn", words: "5m0s ahead of", command: `CURL_CA_BUNDLE="$VAULT_CACERT" curl -sSI https://vault:8200/v1/sys/health`}}},
		{"Helm's Secret", func(_ *testing.T, w *world) { w.RootSecret.Helm = "gloo-agent" },
			[]found{{check: check.HelmOwned, status: "warn", words: "release gloo-agent", evidence: "Secret gloo-mesh/relay-root-tls-secret", command: "annotate secret relay-root-tls-secret helm.sh/resource-policy=keep"}}},
		{"Helm's identity token", func(_ *testing.T, w *world) { w.Management.Looks.Identity.Helm = "gloo" },
			[]found{{check: check.HelmOwned, status: "warn", words: "release gloo", evidence: "relay-identity-token-secret"}}},
		{"renewed without end", func(_ *testing.T, w *world) { w.Workload.Certificate.RenewBefore = 24 * time.Hour },
			[]found{{check: check.RenewWindow, status: "fail", words: "without end", evidence: "renewBefore 24h", mend: setUp}}},
		{"renewBefore close to duration", func(_ *testing.T, w *world) { w.Workload.Certificate.RenewBefore = 22 * time.Hour },
			[]found{{check: check.RenewWindow, status: "warn", words: "close to duration", mend: setUp}}},
		{"renewed late", func(_ *testing.T, w *world) {
			w.Management.Certificate.RenewBefore = 29 * time.Minute
			w.Management.Spec.Certificates.Server.RenewBefore = mesh.Minutes(29)
		}, []found{{check: check.RenewWindow, status: "warn", words: "no second try"}}},
		{"cut short so that it is renewed without end", func(t *testing.T, w *world) {
			w.Workload.Secret.Chain[0] = w.relay.Leaf(t, []string{"cluster1"}, pkitest.Usages(x509.ExtKeyUsageClientAuth), pkitest.Valid(-time.Minute, 29*time.Minute)).Cert
		}, []found{{check: check.RenewWindow, status: "fail", words: "without end", mend: check.Mend{}},
			{check: check.TTLNesting, status: "warn", words: "Vault has cut it short", evidence: "spec.duration: 24h", command: "vault read pki_relay/roles/relay-client-cluster1", mend: of(check.Reissue, "cluster1")}}},
		{"role that cuts short", func(_ *testing.T, w *world) { w.Vault.Roles[2].MaxTTL = 3600 },
			[]found{{check: check.TTLNesting, status: "fail", words: "longer than 1h", evidence: "max_ttl: 3600", mend: setUp}}},
		{"relay mount that cuts short", func(_ *testing.T, w *world) { w.PKI[0].MaxLease = time.Hour },
			[]found{{check: check.TTLNesting, status: "fail", evidence: "sys/mounts/pki_relay/tune, max_lease_ttl: 3600", command: "vault secrets tune -max-lease-ttl=86400s pki_relay", mend: setUp}}},
		{"root mount that cuts short", func(_ *testing.T, w *world) { w.PKI[1].MaxLease = 768 * time.Hour },
			[]found{{check: check.TTLNesting, status: "warn", evidence: "sys/mounts/pki/tune", mend: setUp}}},
		{"intermediate that outlives its root", func(t *testing.T, w *world) {
			w.Vault.Relay.Issuers[0].Certificate = w.root.Intermediate(t, "I1", func(c *x509.Certificate) { c.NotAfter = w.root.Cert.NotAfter.Add(time.Hour) }).Cert
		}, []found{{check: check.TTLNesting, status: "fail", words: "after its root", command: "relaypki rotate root prod"}}},
		{"intermediate that ends within a rollout", func(t *testing.T, w *world) {
			w.Vault.Relay.Issuers[0].Certificate = w.root.Intermediate(t, "I1", pkitest.Valid(-time.Hour, 24*time.Hour+10*time.Minute)).Cert
		}, []found{{check: check.TTLNesting, status: "warn", words: "over all clusters", command: "relaypki rotate intermediate prod"}}},
		{"root token", func(_ *testing.T, w *world) {
			w.Workload.Looks.Stored = check.SeenStored{There: true, Known: true, Policies: []string{"root"}}
		}, []found{{check: check.RootToken, status: "fail", words: "everything in Vault", evidence: "policies root", command: "kubectl --context kube-1 -n gloo-mesh delete secret vault-token"}}},
		{"root token where tokens are used", func(_ *testing.T, w *world) {
			w.Workload.Spec.Credential.Method = mesh.CredentialToken
			w.Workload.Looks.Stored = check.SeenStored{There: true, Known: true, Policies: []string{"root"}}
		}, []found{{check: check.RootToken, status: "fail", command: "relaypki setup", mend: setUp}}},
		{"token of more than this cluster", func(_ *testing.T, w *world) {
			w.Workload.Looks.Stored = check.SeenStored{There: true, Known: true, Policies: []string{"relaypki-prod-cluster1", "admin"}}
		}, []found{{check: check.RootToken, status: "warn", words: "policies admin"}}},
		{"token that Vault cannot be asked about", func(_ *testing.T, w *world) { w.Workload.Looks.Stored = check.SeenStored{There: true, Gap: denied} },
			[]found{{check: check.RootToken, status: "note", denied: true}}},
		{"chain that is not one line", func(_ *testing.T, w *world) {
			w.Vault.Relay.Issuers[0].Chain = []*x509.Certificate{w.relay.Cert, other.Cert, w.root.Cert}
		}, []found{{check: check.VaultChain, status: "fail", words: "not one line", evidence: "ca_chain[1]", command: "vault patch pki_relay/issuer/" + relayID + " manual_chain=" + relayID + "," + rootID}}},
		{"chain that ends at the intermediate", func(_ *testing.T, w *world) { w.Vault.Relay.Issuers[0].Chain = []*x509.Certificate{w.relay.Cert} },
			[]found{{check: check.VaultChain, status: "fail", words: "becomes the intermediate", command: "manual_chain="}}},
		{"chain that Vault chooses", func(_ *testing.T, w *world) { w.Vault.Relay.Issuers[0].Manual = false },
			[]found{{check: check.VaultChain, status: "warn", words: "chooses the chain anew", mend: setUp}}},
		{"agent told of another address", func(_ *testing.T, w *world) { w.Relay.Address = "10.0.0.1:9900" },
			[]found{{check: check.AgentAddressWrong, status: "fail", words: "it is at 10.0.0.1:9900", evidence: "34.145.181.6:9900", command: "get service gloo-mesh-mgmt-server", mend: setUp}}},
		{"agent of others", func(_ *testing.T, w *world) {
			no := false
			w.Relay.Address, w.Workload.Spec.Gloo.Install = "10.0.0.1:9900", &no
		}, []found{{check: check.AgentAddressWrong, status: "warn", words: "proxy"}}},
		{"agent as old as its certificate", func(_ *testing.T, w *world) { w.Agent.Pods[0].Created = w.Workload.Secret.Written }, nil},
		{"agent older than its certificate", func(_ *testing.T, w *world) { w.Agent.Pods[0].Created = w.Workload.Secret.Written.Add(-time.Second) },
			[]found{{check: check.StaleAgent, status: "warn", words: "cannot be seen", evidence: "Pod gloo-mesh/agent-0, created 2026-07-01T11:09:59Z", command: "kubectl --context kube-1 -n gloo-mesh rollout restart deployment/gloo-mesh-agent", mend: of(check.Restart, "cluster1")}}},
		{"agent older than its trust", func(_ *testing.T, w *world) { w.RootSecret.Written = w.now },
			[]found{{check: check.StaleTrust, status: "warn", words: "the trust from before", mend: of(check.Restart, "cluster1")}}},
		{"agent older than a trust that does not fit", func(_ *testing.T, w *world) {
			w.RootSecret.Written, w.Handshakes[0].Error = w.now, "tls: failed to verify certificate: x509: certificate signed by unknown authority"
		}, []found{{check: check.StaleTrust, status: "warn", words: "mend first what handshake names", command: "rollout restart"}, {check: check.Handshake, status: "fail", mend: setUp}}},
		{"a server's chain that is cut off", func(_ *testing.T, w *world) { w.Management.Secret.Chain = w.Management.Secret.Chain[:1] },
			[]found{{check: check.CertificateChain, status: "fail", command: "cmctl --context kube-mgmt renew -n gloo-mesh relay-server-tls"}}},
		{"a chain that is cut off, of which a client sends nothing", func(_ *testing.T, w *world) {
			w.Workload.Secret.Chain = w.Workload.Secret.Chain[:1]
			w.Handshakes[0].Error = "remote error: tls: certificate required"
		}, []found{{check: check.CertificateChain, status: "fail", mend: of(check.Reissue, "cluster1")}, {check: check.Handshake, status: "fail", mend: of(check.Reissue, "cluster1")}}},
		{"gauges that lie", func(_ *testing.T, w *world) {
			w.Handshakes[0].Error = "remote error: tls: unknown certificate authority"
			w.Gauges = check.Metrics{Pull: map[string]float64{"cluster1": 1}, Push: map[string]float64{"cluster1": 1}}
		}, []found{{check: check.GaugesLie, status: "fail", words: "its open streams survive, and at the next reconnect the cluster is cut off", evidence: `relay_pull_clients_connected{cluster="cluster1"} 1`, mend: of(check.Restart, "mgmt")}}},

		// As vault pki health-check has them.
		{"root near its end", func(t *testing.T, w *world) {
			w.Vault.Root.Issuers[0].Certificate = pkitest.Root(t, "R", pkitest.Valid(-100000*time.Hour, 364*24*time.Hour)).Cert
		}, []found{{check: check.PKICAValidity, status: "warn", words: "of its life is left", command: "relaypki rotate root prod"}}},
		{"intermediate to be planned for", func(t *testing.T, w *world) {
			w.Vault.Relay.Issuers[0].Certificate = w.root.Intermediate(t, "I1", pkitest.Valid(-40000*time.Hour, 179*24*time.Hour)).Cert
		}, []found{{check: check.PKICAValidity, status: "note", command: "relaypki rotate intermediate prod"}}},
		// Of a life that is short by choice a share counts.
		{"intermediate of 100 days, half of it over", func(t *testing.T, w *world) {
			w.Vault.Relay.Issuers[0].Certificate = w.root.Intermediate(t, "I1", pkitest.Valid(-50*24*time.Hour, 50*24*time.Hour)).Cert
		}, []found{{check: check.PKICAValidity, status: "pass", words: "valid until 2026-08-20"}, {check: check.PKICAValidity, status: "pass", words: "valid until 2046"}}},
		{"CRL ended", func(_ *testing.T, w *world) { w.PKI[1].CRLs[0].Next = w.now.Add(-time.Second) },
			[]found{
				{check: check.PKICRLValidity, status: "note", evidence: "pki/issuer/" + rootID + "/crl", command: "vault write pki/config/crl auto_rebuild=true expiry=72h auto_rebuild_grace_period=24h"},
				{check: check.PKICRLValidity, status: "note", command: "vault read pki/crl/rotate"},
			}},
		{"leaf of the root", func(_ *testing.T, w *world) { w.PKI[1].RootLeaf = "0a:0b" },
			[]found{{check: check.PKIRootIssuedLeaves, status: "warn", evidence: "pki/cert/0a:0b", command: "vault read pki/cert/0a:0b"}}},
		{"role of others for localhost", func(_ *testing.T, w *world) {
			w.PKI[0].Roles = []check.SeenRole{{Name: "web", AllowLocalhost: true, NoStore: true, AllowedDomains: []string{"example.com"}}}
		}, []found{{check: check.PKIRoleLocalhost, status: "warn", evidence: "example.com", command: "vault patch pki_relay/roles/web allow_localhost=false"}}},
		{"role for wildcards by pattern", func(_ *testing.T, w *world) {
			w.PKI[1].Roles = []check.SeenRole{{Name: "web", AllowGlobDomains: true, AllowWildcards: true, NoStore: true, AllowedDomains: []string{"*.example.com"}}}
		}, []found{{check: check.PKIRoleGlobWildcards, status: "warn", command: "vault patch pki/roles/web allow_glob_domains=false"}}},
		{"role that stores", func(_ *testing.T, w *world) { w.Vault.Roles[2].NoStore = false },
			[]found{{check: check.PKIRoleNoStore, status: "warn", evidence: "no_store false", mend: setUp}}},
		{"role that stores where CRLs are rebuilt", func(_ *testing.T, w *world) { w.Vault.Roles[2].NoStore, w.PKI[0].AutoRebuild = false, true },
			[]found{{check: check.PKIRoleNoStore, status: "note", mend: setUp}}},
		{"private keys in the audit log", func(_ *testing.T, w *world) { w.PKI[0].PlainResponse = []string{"certificate", "private_key"} },
			[]found{{check: check.PKIAuditVisibility, status: "warn", evidence: "audit_non_hmac_response_keys: private_key", command: "-audit-non-hmac-response-keys=certificate pki_relay"}}},
		{"auto-tidy off with much stored", func(_ *testing.T, w *world) { w.PKI[0].Certs = 1001 },
			[]found{{check: check.PKIAutoTidy, status: "note", words: "1001 certificates", command: "vault write pki_relay/config/auto-tidy enabled=true"}}},
		{"auto-tidy too seldom", func(_ *testing.T, w *world) { w.PKI[0].AutoTidy, w.PKI[0].TidyEvery = true, 48*time.Hour },
			[]found{{check: check.PKIAutoTidy, status: "warn", evidence: "interval_duration 48h"}}},
		{"auto-tidy too slow", func(_ *testing.T, w *world) {
			w.PKI[0].AutoTidy, w.PKI[0].TidyEvery, w.PKI[0].TidyStop = true, 12*time.Hour, 200*time.Millisecond
		}, []found{{check: check.PKIAutoTidy, status: "warn", evidence: "pause_duration 200ms"}}},
		{"tidy long ago", func(_ *testing.T, w *world) {
			w.PKI[0].AutoTidy, w.PKI[0].TidyEvery, w.PKI[0].Tidied = true, 12*time.Hour, w.now.Add(-49*time.Hour)
		}, []found{{check: check.PKITidyLastRun, status: "warn", evidence: "time_finished: 2026-06-29T11:00:00Z", command: "vault write pki_relay/tidy"}}},
		{"tidy status may not be read", func(_ *testing.T, w *world) {
			w.PKI[0].AutoTidy, w.PKI[0].TidyEvery, w.PKI[0].TidyStatusGap = true, 12*time.Hour, denied
		}, []found{{check: check.PKITidyLastRun, status: "note", denied: true}}},
		{"many certificates", func(_ *testing.T, w *world) { w.PKI[0].Certs, w.PKI[0].AutoTidy = 50_000, true },
			[]found{{check: check.PKITooManyCerts, status: "warn", evidence: "pki_relay/certs: 50000 keys"}}},
		{"too many certificates", func(_ *testing.T, w *world) { w.PKI[0].Certs, w.PKI[0].AutoTidy = 250_000, true },
			[]found{{check: check.PKITooManyCerts, status: "fail"}}},
		{"ACME", func(_ *testing.T, w *world) {
			w.PKI[0].ACME, w.PKI[0].ACMEPolicy, w.PKI[0].ResponseHeaders = true, "sign-verbatim", []string{"link"}
		}, []found{{check: check.PKIACMEIssuance, status: "warn", evidence: `"sign-verbatim"`, command: "vault write pki_relay/config/acme enabled=false"},
			{check: check.PKIACMEHeaders, status: "note", words: "Replay-Nonce, Location"}}},
		{"a policy from before diagnoses", func(_ *testing.T, w *world) {
			w.PKI[0].TuneGap, w.PKI[0].CertsGap, w.PKI[0].ACMEGap, w.PKI[1].RolesGap = denied, denied, denied, denied
		}, []found{{check: check.TTLNesting, status: "note", denied: true}, {check: check.PKIAuditVisibility, status: "note", denied: true},
			{check: check.PKITooManyCerts, status: "note", denied: true}, {check: check.PKIACMEIssuance, status: "note", denied: true}, {check: check.PKIRoleNoStore, status: "note", denied: true}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := healthy(t)
			test.harm(t, w)
			findings := append(w.Management.Diagnose(w.now), w.Workload.Diagnose(w.now)...)
			owed(t, findings)
			for _, want := range test.want {
				if want.in(findings) {
					continue
				}
				t.Errorf("not found: %+v; but", want)
				for _, f := range findings {
					if f.Check == want.check {
						t.Errorf("%s, %s, denied %t: %s -> %s\nevidence %q\ncommands %q\nmend %+v", f.Object, f.Status, f.Denied, f.Message, f.Remedy, f.Evidence, f.Commands, f.Mend)
					}
				}
			}
		})
	}
}

// An agent that is not connected is restarted, unless there is none to restart.
func TestTogether(t *testing.T) {
	idle := func(cluster string) check.Finding {
		return check.Finding{Check: check.AgentsConnected, Cluster: cluster, Status: check.Fail, Mend: &check.Mend{Do: check.Restart, Cluster: cluster}}
	}
	agent := func(cluster string, status check.Status) check.Finding {
		f := check.Finding{Check: check.RelayAgent, Cluster: cluster, Status: status, Message: "1 of 1 replicas are available"}
		if status == check.Fail {
			f.Message = "0 of 1 replicas are available"
		}
		return f
	}
	for _, test := range []struct {
		name  string
		found []check.Finding
		mends int
	}{
		{"an agent that runs", []check.Finding{idle("cluster1"), agent("cluster1", check.Pass)}, 1},
		{"an agent that does not", []check.Finding{agent("cluster1", check.Fail), idle("cluster1")}, 0},
		{"one of two", []check.Finding{idle("cluster1"), {Check: check.RelayAgent, Cluster: "cluster1", Status: check.Fail, Message: "1 of 2 replicas are available"}}, 1},
		{"another cluster's agent does not", []check.Finding{idle("cluster1"), agent("cluster2", check.Fail), agent("cluster1", check.Pass)}, 1},
		{"a cluster that was not seen", []check.Finding{idle("cluster1")}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			check.Together(test.found)
			mends := 0
			for _, f := range test.found {
				if f.Mend != nil {
					mends++
				}
			}
			if mends != test.mends {
				t.Errorf("%d mends are offered, want %d: %+v", mends, test.mends, test.found)
			}
		})
	}
}
