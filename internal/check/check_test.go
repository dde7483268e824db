package check_test

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/secret/secrettest"
)

const (
	rootID  = "11111111-1111-1111-1111-111111111111"
	relayID = "22222222-2222-2222-2222-222222222222"
)

// world is a mesh that is in order, for tests to break in one place.
type world struct {
	root, relay, server, client pkitest.Pair
	spec                        mesh.Spec
	now                         time.Time
	check.Management
	check.Workload
}

func healthy(t *testing.T) *world {
	t.Helper()
	w := &world{now: pkitest.Now, spec: mesh.Spec{Mesh: "prod", Workloads: []mesh.Workload{{Name: "cluster1"}}}.WithDefaults()}
	w.root = pkitest.Root(t, "Solo.io Root CA")
	w.relay = w.root.Intermediate(t, "gloo-mesh-mgmt-server-ca")
	w.server = w.relay.Leaf(t, w.spec.Certificates.Server.DNSNames)
	w.client = w.relay.Leaf(t, []string{"cluster1"}, pkitest.Usages(x509.ExtKeyUsageClientAuth))

	ready := check.Condition{Status: "True", Reason: "Ready", Message: "as it should be", Generation: 1}
	deployment := func(namespace, name, pod string) check.SeenDeployment {
		d := check.SeenDeployment{Namespace: namespace, Name: name, Desired: 1, Available: 1}
		if pod != "" {
			d.Pods = []check.SeenPod{{Name: pod, Ready: true, State: "running"}}
		}
		return d
	}
	certManager := func() []check.SeenDeployment {
		return []check.SeenDeployment{
			deployment("cert-manager", "cert-manager", ""), deployment("cert-manager", "cert-manager-webhook", ""), deployment("cert-manager", "cert-manager-cainjector", ""),
		}
	}
	secret := func(leaf pkitest.Pair) check.SeenSecret {
		return check.SeenSecret{Chain: []*x509.Certificate{leaf.Cert, w.relay.Cert}, CA: []*x509.Certificate{w.root.Cert}}
	}
	keys := func(context string) check.SeenKeys {
		return check.SeenKeys{Mount: w.spec.AuthMount(context), Vault: []string{"k1"}, Cluster: []string{"k1"}}
	}
	w.Management = check.Management{
		Spec: w.spec,
		Vault: check.SeenVault{
			Name: "default", Address: "https://vault:8200", Initialized: true,
			Root: check.SeenMount{Path: "pki", Default: rootID, Issuers: []check.SeenVaultIssuer{
				{ID: rootID, Name: "relay-root-g1", HasKey: true, LeafNotAfterBehavior: "err", Certificate: w.root.Cert}}},
			Relay: check.SeenMount{Path: "pki_relay", Default: relayID, Issuers: []check.SeenVaultIssuer{
				{ID: relayID, Name: "relay-intermediate-g1", HasKey: true, LeafNotAfterBehavior: "err", Certificate: w.relay.Cert},
				{ID: rootID, Certificate: w.root.Cert}}},
			Roles: []check.SeenRole{
				{Name: "gloo-mesh-mgmt-server-ca", IssuerRef: relayID, AllowBareDomains: true, AllowWildcards: true, ServerFlag: true, ClientFlag: true,
					AllowedDomains: w.spec.Certificates.Server.DNSNames},
				{Name: "relaypki-probe", IssuerRef: relayID, AllowBareDomains: true, AllowedDomains: []string{"relaypki-probe.invalid"}},
				{Name: "relay-client-cluster1", Cluster: "cluster1", IssuerRef: relayID, AllowBareDomains: true, ClientFlag: true, AllowedDomains: []string{"cluster1"}},
			},
		},
		CertManager: certManager(),
		Issuer:      check.SeenIssuer{Path: "pki_relay/sign/gloo-mesh-mgmt-server-ca", Generation: 1, Ready: ready},
		Certificate: check.SeenCertificate{Generation: 1, Ready: ready},
		Secret:      secret(w.server),
		Keys:        keys("mgmt"),
		Server:      deployment("gloo-mesh", "gloo-mesh-mgmt-server", "server-0"),
		Replicas: []check.SeenReplica{{
			Pod:     "server-0",
			Loaded:  check.Loaded{Chain: []*x509.Certificate{w.server.Cert, w.relay.Cert}, AsksForCertificate: true, AcceptableCAs: [][]byte{w.root.Cert.RawSubject}},
			Metrics: check.Metrics{Pull: map[string]float64{"cluster1": 1}, Push: map[string]float64{"cluster1": 1}},
		}},
		Registered: []string{"cluster1"},
	}
	w.Workload = check.Workload{
		Spec: w.spec, Cluster: w.spec.Workloads[0],
		CertManager:  certManager(),
		Issuer:       check.SeenIssuer{Path: "pki_relay/sign/relay-client-cluster1", Generation: 1, Ready: ready},
		Certificate:  check.SeenCertificate{Generation: 1, Ready: ready},
		Secret:       secret(w.client),
		RootSecret:   check.SeenSecret{CA: []*x509.Certificate{w.root.Cert}},
		Keys:         keys("cluster1"),
		Agent:        deployment("gloo-mesh", "gloo-mesh-agent", "agent-0"),
		AgentAddress: "34.145.181.6:9900",
		Handshakes:   []check.SeenHandshake{{Pod: "server-0", Reached: true}},
	}
	w.looks()
	return w
}

// looks adds what a diagnosis sees of a mesh that is in order.
func (w *world) looks() {
	written, started := w.now.Add(-50*time.Minute), w.now.Add(-40*time.Minute)
	live := func(c *check.SeenCertificate, asked mesh.Certificate) {
		c.SecretName, c.Duration, c.RenewBefore = asked.SecretName, asked.Duration.Duration, asked.RenewBefore.Duration
	}
	live(&w.Management.Certificate, w.spec.Certificates.Server)
	live(&w.Workload.Certificate, w.spec.Certificates.Client)
	for _, s := range []*check.SeenSecret{&w.Management.Secret, &w.Workload.Secret, &w.RootSecret} {
		s.Written = written
	}
	w.Server.Pods[0].Created, w.Agent.Pods[0].Created = started, started
	looks := check.Looks{
		Contexts: map[string]string{"mgmt": "kube-mgmt", "cluster1": "kube-1"},
		Clock:    check.SeenClock{Known: true, Behind: time.Second},
		Identity: check.SeenIdentity{HasKey: true, Same: true},
		Stored:   check.SeenStored{Gap: check.Gap{Reason: check.NotFound}},
	}
	w.Management.Looks, w.Workload.Looks = looks, looks
	w.VaultClock = check.SeenClock{Known: true, Behind: -2 * time.Second}
	w.Relay = check.SeenAddress{Address: w.AgentAddress}

	intermediate := &w.Vault.Relay.Issuers[0]
	intermediate.Chain, intermediate.Manual = []*x509.Certificate{w.relay.Cert, w.root.Cert}, true
	for i := range w.Vault.Roles {
		w.Vault.Roles[i].MaxTTL, w.Vault.Roles[i].NoStore = int64(w.spec.PKI.MaxLeafTTL.Seconds()), true
	}
	w.PKI = []check.SeenPKI{
		{Path: "pki_relay", MaxLease: w.spec.PKI.Intermediate.TTL.Duration},
		{Path: "pki", Root: true, MaxLease: w.spec.PKI.Root.TTL.Duration, Certs: 2, CRLs: []check.SeenCRL{{Issuer: rootID, This: w.now.Add(-time.Hour), Next: w.now.Add(71 * time.Hour)}}},
	}
}

// expectation is what must be found: the checks that do not pass, each with
// words of its message. Every other finding must pass.
type expectation struct{ check, status, words string }

func judge(t *testing.T, findings []check.Finding, want []expectation) {
	t.Helper()
	for _, f := range findings {
		if f.Status != check.Pass && f.Remedy == "" {
			t.Errorf("%s has no remedy", f.Check)
		}
		if f.Cluster == "" || f.Message == "" {
			t.Errorf("incomplete finding %+v", f)
		}
		expected := slices.ContainsFunc(want, func(e expectation) bool { return e.check == f.Check })
		if f.Status != check.Pass && !expected {
			t.Errorf("unexpected %s of %s: %s", f.Status, f.Check, f.Message)
		}
	}
	for _, e := range want {
		if !slices.ContainsFunc(findings, func(f check.Finding) bool {
			return f.Check == e.check && string(f.Status) == e.status && strings.Contains(f.Message+" -> "+f.Remedy, e.words)
		}) {
			var got []string
			for _, f := range findings {
				if f.Check == e.check {
					got = append(got, fmt.Sprintf("%s: %s -> %s", f.Status, f.Message, f.Remedy))
				}
			}
			t.Errorf("no %s of %s with %q; got\n%s", e.status, e.check, e.words, strings.Join(got, "\n"))
		}
	}
}

// offline has the root kept outside Vault: there is no root mount to look at.
func (w *world) offline(root pkitest.Pair) {
	w.Vault.Root = check.SeenMount{}
	w.Management.Spec.PKI.Root = mesh.Root{Kept: mesh.KeptOffline, CertificatePEM: string(pki.EncodeChain(root.Cert))}
}

func TestManagement(t *testing.T) {
	other := pkitest.Root(t, "another root")
	for _, test := range []struct {
		name string
		harm func(t *testing.T, w *world)
		want []expectation
	}{
		{"in order", func(*testing.T, *world) {}, nil},
		{"API server down", func(_ *testing.T, w *world) { w.Management.Unreachable = "connection refused" },
			[]expectation{{check.ClusterReachable, "fail", "connection refused"}}},

		{"Vault unreachable", func(_ *testing.T, w *world) {
			w.Vault.Gap = check.Gap{Reason: check.Unreachable, Detail: "not reachable: i/o timeout"}
		}, []expectation{{check.VaultAvailable, "fail", "i/o timeout"}}},
		{"Vault sealed", func(_ *testing.T, w *world) { w.Vault.Sealed = true }, []expectation{{check.VaultAvailable, "fail", "vault operator unseal"}}},
		{"Vault not initialised", func(_ *testing.T, w *world) { w.Vault.Initialized = false }, []expectation{{check.VaultAvailable, "fail", "vault operator init"}}},
		{"Vault refuses the worker", func(_ *testing.T, w *world) { w.Vault.LoginError = "denied" }, []expectation{{check.VaultAvailable, "fail", "operate"}}},
		{"root kept outside Vault", func(_ *testing.T, w *world) { w.offline(w.root) }, nil},
		{"root kept outside Vault, of another name", func(_ *testing.T, w *world) { w.offline(other) },
			[]expectation{{check.VaultIntermediate, "fail", "names"}}},
		{"root kept outside Vault near its end", func(t *testing.T, w *world) {
			w.offline(pkitest.Pair{Cert: pkitest.Root(t, "R", pkitest.Valid(-time.Hour, 9*24*time.Hour)).Cert})
		}, []expectation{{check.VaultRoot, "warn", "expires in 216h"}, {check.VaultIntermediate, "fail", "names"}}},
		{"root kept outside Vault, unreadable", func(_ *testing.T, w *world) {
			w.offline(w.root)
			w.Management.Spec.PKI.Root.CertificatePEM = "gone"
		}, []expectation{{check.VaultRoot, "fail", "correct pki.root.certificatePEM"}}},
		{"root mount missing", func(_ *testing.T, w *world) {
			w.Vault.Root = check.SeenMount{Path: "pki", Gap: check.Gap{Reason: check.NotFound}}
		},
			[]expectation{{check.VaultRoot, "fail", "missing"}}},
		{"no default issuer", func(_ *testing.T, w *world) { w.Vault.Root.Default = "" }, []expectation{{check.VaultRoot, "fail", "no default issuer"}}},
		{"default of the root mount is no root", func(_ *testing.T, w *world) { w.Vault.Root.Issuers[0].Certificate = w.relay.Cert },
			[]expectation{{check.VaultRoot, "fail", "not self-signed"}}},
		{"intermediate may truncate", func(_ *testing.T, w *world) { w.Vault.Relay.Issuers[0].LeafNotAfterBehavior = "truncate" },
			[]expectation{{check.VaultIntermediate, "fail", "vault patch pki_relay/issuer/" + relayID}}},
		{"intermediate without a key", func(_ *testing.T, w *world) { w.Vault.Relay.Issuers[0].HasKey = false },
			[]expectation{{check.VaultIntermediate, "fail", "no key"}}},
		{"intermediate of another root", func(t *testing.T, w *world) { w.Vault.Root.Issuers[0].Certificate = other.Cert },
			[]expectation{{check.VaultIntermediate, "fail", "names"}}},
		{"intermediate near its end", func(t *testing.T, w *world) {
			w.Vault.Relay.Issuers[0].Certificate = w.root.Intermediate(t, "I1", pkitest.Valid(-time.Hour, 9*24*time.Hour)).Cert
		}, []expectation{{check.VaultIntermediate, "warn", "expires in 216h"}}},
		{"intermediate expired", func(t *testing.T, w *world) {
			w.Vault.Relay.Issuers[0].Certificate = w.root.Intermediate(t, "I1", pkitest.Valid(-2*time.Hour, -time.Hour)).Cert
		}, []expectation{{check.VaultIntermediate, "fail", "expired at"}}},
		{"role by name", func(_ *testing.T, w *world) { w.Vault.Roles[0].IssuerRef = "default" }, []expectation{{check.VaultRole, "fail", "not by id"}}},
		{"role of a deleted issuer", func(_ *testing.T, w *world) {
			w.Vault.Roles[2].IssuerRef = "33333333-3333-3333-3333-333333333333"
		}, []expectation{{check.VaultIntermediate, "fail", "not in mount"}, {check.VaultRole, "warn", "2 issuers"}}},
		{"role too wide", func(_ *testing.T, w *world) { w.Vault.Roles[2].AllowedDomains = []string{"cluster1", "cluster2"} },
			[]expectation{{check.VaultRole, "fail", "allows other names too: cluster2"}}},
		{"server's role for any name", func(_ *testing.T, w *world) { w.Vault.Roles[0].AllowAnyName = true },
			[]expectation{{check.VaultRole, "fail", "gloo-mesh-mgmt-server-ca allows any name"}}},
		{"the guide's role for any name", func(_ *testing.T, w *world) {
			w.Management.Spec.PKI.Isolation, w.Vault.Roles[0].AllowAnyName = mesh.IsolationShared, true
		}, nil},
		{"probe role that clients could use", func(_ *testing.T, w *world) { w.Vault.Roles[1].ClientFlag = true },
			[]expectation{{check.VaultRole, "fail", "relaypki-probe allows client certificates"}}},
		{"client role with a usage more", func(_ *testing.T, w *world) { w.Vault.Roles[2].ExtKeyUsage = []string{"ServerAuth"} },
			[]expectation{{check.VaultRole, "fail", "adds extended key usages"}}},
		{"client role that refuses its own name", func(_ *testing.T, w *world) { w.Vault.Roles[2].AllowBareDomains = false },
			[]expectation{{check.VaultRole, "fail", "next renewal will be refused"}}},
		{"issuer that signs elsewhere", func(_ *testing.T, w *world) { w.Management.Issuer.Path = "pki_relay/sign/other" },
			[]expectation{{check.IssuerReady, "fail", "it signs at \"pki_relay/sign/other\""}}},
		{"role missing", func(_ *testing.T, w *world) { w.Vault.Roles[2].Gap = check.Gap{Reason: check.NotFound} },
			[]expectation{{check.VaultRole, "fail", "role relay-client-cluster1 is missing"}}},

		{"cert-manager missing", func(_ *testing.T, w *world) { w.Management.CertManager[1].Gap = check.Gap{Reason: check.NotFound} },
			[]expectation{{check.CertManager, "fail", "cert-manager-webhook is missing"}}},
		{"cert-manager unavailable", func(_ *testing.T, w *world) { w.Management.CertManager[0].Available = 0 },
			[]expectation{{check.CertManager, "fail", "0 of 1"}}},
		{"issuer not ready", func(_ *testing.T, w *world) {
			w.Management.Issuer.Ready = check.Condition{Status: "False", Reason: "VaultError", Message: "Vault is sealed"}
		}, []expectation{{check.IssuerReady, "fail", "VaultError: Vault is sealed"}}},
		{"issuer unread by cert-manager", func(_ *testing.T, w *world) { w.Management.Issuer.Ready = check.Condition{} },
			[]expectation{{check.IssuerReady, "fail", "no condition yet"}}},
		{"certificate not ready", func(_ *testing.T, w *world) {
			w.Management.Certificate.Ready = check.Condition{Status: "False", Reason: "DoesNotExist", Message: "no Secret"}
			w.Management.Certificate.Request = "Failed: signing refused"
		}, []expectation{{check.CertificateReady, "fail", "its request: Failed: signing refused"}}},
		{"renewal refused", func(_ *testing.T, w *world) { w.Management.Certificate.Request = "Pending: Vault is sealed" },
			[]expectation{{check.CertificateReady, "warn", "renewal has not succeeded yet"}}},

		{"server Secret missing", func(_ *testing.T, w *world) {
			w.Management.Secret = check.SeenSecret{Gap: check.Gap{Reason: check.NotFound}}
		},
			[]expectation{{check.CertificateSecret, "fail", "relay-server-tls-secret is missing"}, {check.AcceptableCAs, "warn", "no root"}}},
		{"server Secret may not be read", func(_ *testing.T, w *world) {
			w.Management.Secret = check.SeenSecret{Gap: check.Gap{Reason: check.Denied, Detail: "forbidden"}}
		}, []expectation{{check.CertificateSecret, "fail", "deploy/rbac"}, {check.AcceptableCAs, "warn", "no root"}}},
		{"server certificate expired", func(_ *testing.T, w *world) { w.now = pkitest.Now.Add(24 * time.Hour) },
			[]expectation{{check.CertificateLifetime, "fail", "expired at"}, {check.ServedCertificate, "fail", "expired"}}},
		{"server certificate not yet valid", func(_ *testing.T, w *world) { w.now = pkitest.Now.Add(-2 * time.Hour) },
			[]expectation{{check.CertificateLifetime, "fail", "clocks"}, {check.ServedCertificate, "fail", "not yet valid"}}},
		{"server certificate overdue", func(_ *testing.T, w *world) { w.now = pkitest.Now.Add(22*time.Hour + 45*time.Minute) },
			[]expectation{{check.CertificateLifetime, "warn", "expires in 15m"}}},
		{"server certificate for another name", func(t *testing.T, w *world) {
			leaf := w.relay.Leaf(t, []string{"gloo-mesh-mgmt-server-ca"})
			w.Management.Secret.Chain[0], w.Replicas[0].Loaded.Chain[0] = leaf.Cert, leaf.Cert
		}, []expectation{{check.CertificateNames, "fail", `agents expect "gloo-mesh-mgmt-server.gloo-mesh"`}, {check.ServedCertificate, "fail", "agents refuse"}}},
		{"ca.crt is the intermediate", func(_ *testing.T, w *world) { w.Management.Secret.CA[0] = w.relay.Cert },
			[]expectation{{check.CertificateRoot, "fail", "no self-signed root"}, {check.AcceptableCAs, "warn", "no root"}}},
		{"chain without the intermediate", func(_ *testing.T, w *world) { w.Management.Secret.Chain = w.Management.Secret.Chain[:1] },
			[]expectation{{check.CertificateChain, "fail", "does not verify"}}},
		{"leaf outlives the intermediate", func(t *testing.T, w *world) {
			short := w.root.Intermediate(t, "I1", pkitest.Valid(-2*time.Hour, 12*time.Hour))
			leaf := short.Leaf(t, w.spec.Certificates.Server.DNSNames)
			chain := []*x509.Certificate{leaf.Cert, short.Cert}
			w.Management.Secret.Chain, w.Replicas[0].Loaded.Chain = chain, chain
		}, []expectation{{check.CertificateChain, "fail", "longer than its issuer"}}},
		{"keys changed", func(_ *testing.T, w *world) { w.Management.Keys.Cluster = []string{"k1", "k2"} },
			[]expectation{{check.PinnedKeys, "fail", "1 of the cluster's 2"}}},
		{"a key left behind", func(_ *testing.T, w *world) { w.Management.Keys.Vault = []string{"k1", "k0"} },
			[]expectation{{check.PinnedKeys, "warn", "no longer publishes"}}},
		{"keys may not be read", func(_ *testing.T, w *world) { w.Management.Keys.VaultGap = check.Gap{Reason: check.Denied} },
			[]expectation{{check.PinnedKeys, "warn", "refresh.hcl"}}},

		{"server not deployed", func(_ *testing.T, w *world) {
			w.Server = check.SeenDeployment{Namespace: "gloo-mesh", Name: "gloo-mesh-mgmt-server", Gap: check.Gap{Reason: check.NotFound}}
			w.Replicas = nil
		}, []expectation{{check.RelayServer, "fail", "missing"}, {check.AgentsConnected, "fail", "no Pod"}}},
		{"server crashes for want of its Secret", func(_ *testing.T, w *world) {
			w.Server.Available = 0
			w.Server.Pods[0] = check.SeenPod{Name: "server-0", State: "waiting, CrashLoopBackOff",
				LastState: `terminated with exit code 1, Error, 3 errors occurred: * no tls secret found for grpc server: Secret "relay-server-tls-secret" not found`}
			w.Replicas[0] = check.SeenReplica{Pod: "server-0", LoadedError: "the Pod is not ready", MetricsError: "the Pod is not ready"}
		}, []expectation{
			{check.RelayServer, "fail", "0 of 1"}, {check.PodReady, "fail", "missing or misnamed"}, {check.PodReady, "fail", "last state: terminated"},
			{check.ServedCertificate, "fail", "not ready"}, {check.AgentsConnected, "fail", "not ready"}}},
		{"server has not loaded the Secret", func(t *testing.T, w *world) {
			w.Replicas[0].Loaded.Chain[0] = w.relay.Leaf(t, w.spec.Certificates.Server.DNSNames).Cert
		}, []expectation{{check.ServedCertificate, "fail", "rollout restart"}}},
		{"server loads at its start alone, and its certificate was renewed", func(t *testing.T, w *world) {
			w.Management.Spec.Management.Reload = mesh.ReloadRestart
			w.Management.Secret.Chain[0] = w.relay.Leaf(t, w.spec.Certificates.Server.DNSNames).Cert
		}, []expectation{{check.ServedCertificate, "warn", "until then"}}},
		{"server loads at its start alone, and another CA has issued since", func(t *testing.T, w *world) {
			w.Management.Spec.Management.Reload = mesh.ReloadRestart
			w.Replicas[0].Loaded.Chain = []*x509.Certificate{w.relay.Leaf(t, w.spec.Certificates.Server.DNSNames).Cert, other.Cert}
		}, []expectation{{check.ServedCertificate, "fail", "rollout restart"}}},
		{"server trusts an old root", func(_ *testing.T, w *world) { w.Replicas[0].Loaded.AcceptableCAs = [][]byte{other.Cert.RawSubject} },
			[]expectation{{check.AcceptableCAs, "fail", "rollout restart"}}},
		{"server asks for no certificate", func(_ *testing.T, w *world) {
			w.Replicas[0].Loaded.AsksForCertificate, w.Replicas[0].Loaded.AcceptableCAs = false, nil
		}, []expectation{{check.AcceptableCAs, "fail", "anybody may connect"}}},
		{"agent not connected", func(_ *testing.T, w *world) { w.Replicas[0].Metrics.Push["cluster1"] = 0 },
			[]expectation{{check.AgentsConnected, "fail", "1 pull and 0 push"}}},
		{"two agents of one name", func(_ *testing.T, w *world) { w.Replicas[0].Metrics.Pull["cluster1"] = 2 },
			[]expectation{{check.AgentsConnected, "warn", "more than one"}}},
		{"port-forward denied", func(_ *testing.T, w *world) {
			w.Replicas[0].MetricsError, w.Replicas[0].Metrics = "pods \"server-0\" is forbidden", check.Metrics{}
		}, []expectation{{check.AgentsConnected, "fail", "pods/portforward"}}},
		{"not registered", func(_ *testing.T, w *world) { w.Registered = nil }, []expectation{{check.Registrations, "fail", "cluster1"}}},
		{"registered under another name", func(_ *testing.T, w *world) { w.Registered = []string{"cluster1", "cluster_1"} },
			[]expectation{{check.Registrations, "warn", "cluster_1"}}},
		{"registered, and a member that is not looked at", func(_ *testing.T, w *world) {
			w.Registered, w.Others = []string{"cluster1", "cluster9"}, []string{"cluster9"}
		}, nil},
		{"no registrations in this cluster", func(_ *testing.T, w *world) { w.Management.RegisteredGap = check.Gap{Reason: check.NotFound} },
			[]expectation{{check.Registrations, "fail", "gloo-platform-crds"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := healthy(t)
			test.harm(t, w)
			judge(t, w.Management.Findings(w.now), test.want)
			owed(t, w.Management.Diagnose(w.now))
		})
	}
}

// What is said of a root that stands by, in Vault and in an agent's trust. Nothing of
// it fails: all works without it.
func TestStandbyRoot(t *testing.T) {
	second, third := pkitest.Root(t, "Solo.io Root CA G2"), pkitest.Root(t, "Solo.io Root CA G3")
	short := pkitest.Root(t, "Solo.io Root CA G2", pkitest.Valid(-time.Hour, 43000*time.Hour))
	by := func(name string, hasKey, signs bool, root pkitest.Pair) check.SeenVaultIssuer {
		return check.SeenVaultIssuer{ID: name, Name: name, HasKey: hasKey, Signs: signs, Certificate: root.Cert}
	}
	for name, test := range map[string]struct {
		asked   bool
		issuers []check.SeenVaultIssuer
		harm    func(*world)
		want    []expectation
	}{
		"nobody asks for it":                  {},
		"nobody asks for it, and it is there": {issuers: []check.SeenVaultIssuer{by("relay-root-g2", true, true, second)}},
		"it stands by":                        {asked: true, issuers: []check.SeenVaultIssuer{by("relay-root-g2", true, true, second)}, want: []expectation{{check.StandbyRoot, "pass", "relay-root-g2 stands by"}}},
		"the first of two": {asked: true, issuers: []check.SeenVaultIssuer{by("relay-root-g10", true, true, third), by("relay-root-g9", true, true, second)},
			want: []expectation{{check.StandbyRoot, "pass", "relay-root-g9 stands by"}}},
		"there is none":         {asked: true, want: []expectation{{check.StandbyRoot, "warn", "relaypki setup -f mesh.yaml"}}},
		"its key is not there":  {asked: true, issuers: []check.SeenVaultIssuer{by("relay-root-g2", false, true, second)}, want: []expectation{{check.StandbyRoot, "warn", "there is none after relay-root-g1"}}},
		"it was put away":       {asked: true, issuers: []check.SeenVaultIssuer{by("relay-root-g2", true, false, second)}, want: []expectation{{check.StandbyRoot, "warn", "there is none after relay-root-g1"}}},
		"another's":             {asked: true, issuers: []check.SeenVaultIssuer{by("theirs", true, true, second), by("relay-root-g02", true, true, third)}, want: []expectation{{check.StandbyRoot, "warn", "there is none"}}},
		"it is short of a life": {asked: true, issuers: []check.SeenVaultIssuer{by("relay-root-g2", true, true, short)}, want: []expectation{{check.StandbyRoot, "warn", "vault patch pki/issuer/relay-root-g2 usage="}}},
		"it was used up": {asked: true, issuers: []check.SeenVaultIssuer{by("relay-root-g0", true, true, second)}, harm: func(w *world) {
			w.Vault.Root.Issuers[0].Name = "relay-root-g2"
		}, want: []expectation{{check.StandbyRoot, "warn", "none after relay-root-g2"}}},
		"there is no root at work": {asked: true, issuers: []check.SeenVaultIssuer{by("relay-root-g2", true, true, second)}, harm: func(w *world) {
			w.Vault.Root.Default = ""
		}, want: []expectation{{check.VaultRoot, "fail", "no default issuer"}}},
	} {
		t.Run(name, func(t *testing.T) {
			w := healthy(t)
			w.Management.Spec.PKI.StandbyRoot = test.asked
			w.Vault.Root.Issuers = append(w.Vault.Root.Issuers, test.issuers...)
			if test.harm != nil {
				test.harm(w)
			}
			found := w.Management.Findings(w.now)
			judge(t, found, test.want)
			owed(t, w.Management.Diagnose(w.now))
			if said := slices.ContainsFunc(found, func(f check.Finding) bool { return f.Check == check.StandbyRoot }); said && !test.asked {
				t.Error("nobody has asked for it, and something is said of it")
			}
		})
	}

	for name, test := range map[string]struct {
		harm func(*world)
		want []expectation
	}{
		"the agent trusts it": {func(w *world) { w.RootSecret.CA = append(w.RootSecret.CA, second.Cert) }, []expectation{{check.StandbyRoot, "pass", "Solo.io Root CA G2"}}},
		"first":               {func(w *world) { w.RootSecret.CA = []*x509.Certificate{second.Cert, w.root.Cert} }, []expectation{{check.StandbyRoot, "pass", "Solo.io Root CA G2"}}},
		"the agent does not":  {func(*world) {}, []expectation{{check.StandbyRoot, "warn", "relaypki setup -f mesh.yaml"}}},
		"it trusts an earlier one": {func(w *world) { w.RootSecret.CA = append(w.RootSecret.CA, third.Cert) },
			[]expectation{{check.StandbyRoot, "warn", "does not hold"}}},
		"it trusts that alone": {func(w *world) { w.RootSecret.CA = []*x509.Certificate{second.Cert} },
			[]expectation{{check.StandbyRoot, "pass", "Solo.io Root CA G2"}, {check.AgentTrust, "fail", "not the root"}}},
		"its trust cannot be read": {func(w *world) { w.RootSecret.CA, w.RootSecret.CAError = nil, "not PEM" }, []expectation{{check.AgentTrust, "fail", "not PEM"}}},
		"it reads its own Secret, and the other is missing": {func(w *world) {
			w.RootSecret, w.Workload.Cluster.Agent.Trust = check.SeenSecret{Gap: check.Gap{Reason: check.NotFound}}, mesh.TrustOwn
		}, []expectation{{check.AgentTrust, "warn", "missing"}}},
		"there is none, and another root in its trust": {func(w *world) { w.Standby, w.RootSecret.CA = nil, append(w.RootSecret.CA, third.Cert) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := healthy(t)
			w.Standby = second.Cert
			test.harm(w)
			judge(t, w.Workload.Findings(w.now), test.want)
			owed(t, w.Workload.Diagnose(w.now))
		})
	}
}

// TestReplicasAreSummed: an agent is connected to one replica, not to each.
func TestReplicasAreSummed(t *testing.T) {
	w := healthy(t)
	second := w.Replicas[0]
	second.Pod, second.Metrics = "server-1", check.Metrics{Pull: map[string]float64{"cluster1": 0}}
	w.Replicas = append(w.Replicas, second)
	judge(t, w.Management.Findings(w.now), nil)
}

func TestStandInIsNamed(t *testing.T) {
	w := healthy(t)
	judge(t, w.Management.Findings(w.now), nil)
	if named(w.Management.Findings(w.now)) {
		t.Error("a server without the metric was called a stand-in")
	}
	w.Replicas[0].Metrics.StandIn = true
	if !named(w.Management.Findings(w.now)) {
		t.Error("the stand-in was not named")
	}
}

func named(findings []check.Finding) bool {
	return slices.ContainsFunc(findings, func(f check.Finding) bool {
		return f.Check == check.StandIn && f.Status == check.Warn && strings.Contains(f.Message, "not Gloo Mesh")
	})
}

func TestSettled(t *testing.T) {
	w := healthy(t)
	connections := check.Management{Spec: w.spec, Server: w.Server, Replicas: w.Replicas}
	if !connections.Settled() {
		t.Error("a connected mesh has not settled")
	}
	connections.Replicas[0].Metrics.Pull["cluster1"] = 0
	if connections.Settled() {
		t.Error("a mesh without its agent has settled")
	}
	if (check.Management{Spec: w.spec, Server: w.Server}).Settled() {
		t.Error("a mesh without replicas has settled")
	}
}

// What waiting may put right is told from what it cannot.
func TestTransient(t *testing.T) {
	for _, test := range []struct {
		name string
		harm func(t *testing.T, w *world)
		want bool
	}{
		{"in order", func(*testing.T, *world) {}, false},
		{"API server down", func(_ *testing.T, w *world) { w.Management.Unreachable = "connection refused" }, true},
		{"renewed a moment ago", func(t *testing.T, w *world) {
			w.Management.Secret.Chain[0] = w.relay.Leaf(t, w.spec.Certificates.Server.DNSNames).Cert
		}, true},
		{"ca.crt changed a moment ago", func(t *testing.T, w *world) {
			w.Replicas[0].Loaded.AcceptableCAs = [][]byte{pkitest.Root(t, "another root").Cert.RawSubject}
		}, true},
		{"not registered", func(_ *testing.T, w *world) { w.Registered = nil }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := healthy(t)
			test.harm(t, w)
			if got := check.Transient(w.Management.Findings(w.now)); got != test.want {
				t.Errorf("transient: %t, want %t", got, test.want)
			}
		})
	}
}

func TestWorkload(t *testing.T) {
	other := pkitest.Root(t, "another root")
	for _, test := range []struct {
		name string
		harm func(t *testing.T, w *world)
		want []expectation
	}{
		{"in order", func(*testing.T, *world) {}, nil},
		{"API server down", func(_ *testing.T, w *world) { w.Workload.Unreachable = "connection refused" },
			[]expectation{{check.ClusterReachable, "fail", "may go on renewing"}}},
		{"issuer refused by Vault", func(_ *testing.T, w *world) {
			w.Workload.Issuer.Ready = check.Condition{Status: "False", Reason: "VaultError", Message: "permission denied"}
		}, []expectation{{check.IssuerReady, "fail", "permission denied"}}},
		{"client Secret missing", func(_ *testing.T, w *world) {
			w.Workload.Secret = check.SeenSecret{Gap: check.Gap{Reason: check.NotFound}}
			w.Workload.Handshakes, w.HandshakesError = nil, "there is no readable client certificate"
		}, []expectation{
			{check.CertificateSecret, "fail", "relay-client-tls-secret is missing"}, {check.AgentTrust, "warn", "no root"}, {check.Handshake, "fail", "no readable client certificate"}}},
		{"client Secret without ca.crt", func(_ *testing.T, w *world) {
			w.Workload.Secret.CA, w.Workload.Secret.CAError = nil, "no certificate in it"
		},
			[]expectation{{check.CertificateSecret, "fail", "no readable ca.crt"}, {check.AgentTrust, "warn", "no root"}}},
		{"name is not the registered one", func(t *testing.T, w *world) {
			w.Workload.Secret.Chain[0] = w.relay.Leaf(t, []string{"cluster-one"}).Cert
		}, []expectation{{check.CertificateNames, "fail", `"cluster1"`}, {check.RegisteredName, "fail", "cluster-one"}}},
		{"token about to end", func(_ *testing.T, w *world) {
			w.Workload.Token = check.SeenToken{Secret: "Secret gloo-mesh/vault-token", Left: 20 * time.Hour, Period: 72 * time.Hour}
		}, []expectation{{check.ClusterToken, "warn", "ends in 20h"}}},
		{"token not renewed", func(_ *testing.T, w *world) {
			w.Workload.Token = check.SeenToken{Secret: "Secret gloo-mesh/vault-token", Left: 10 * time.Hour, Period: 72 * time.Hour}
		}, []expectation{{check.ClusterToken, "fail", "ends in 10h"}}},
		{"token to be renewed now", func(_ *testing.T, w *world) {
			w.Workload.Token = check.SeenToken{Secret: "Secret gloo-mesh/vault-token", Left: 35 * time.Hour, Period: 72 * time.Hour}
		}, []expectation{{check.ClusterToken, "pass", "35h left"}}},
		{"secret id ended", func(_ *testing.T, w *world) {
			w.Workload.Token = check.SeenToken{Secret: "Secret gloo-mesh/relaypki-approle", SecretID: true, Refused: "it has expired or was destroyed"}
		}, []expectation{{check.ClusterSecretID, "fail", "does not accept its secret id"}}},
		{"secret id about to end", func(_ *testing.T, w *world) {
			w.Workload.Token = check.SeenToken{Secret: "Secret gloo-mesh/relaypki-approle", SecretID: true, Left: 20 * time.Hour, Period: 72 * time.Hour}
		}, []expectation{{check.ClusterSecretID, "warn", "its secret id ends in 20h"}}},
		{"token renewed", func(_ *testing.T, w *world) {
			w.Workload.Token = check.SeenToken{Secret: "Secret gloo-mesh/vault-token", Left: 70 * time.Hour, Period: 72 * time.Hour}
		}, []expectation{{check.ClusterToken, "pass", "70h left"}}},
		{"token ended", func(_ *testing.T, w *world) {
			w.Workload.Token = check.SeenToken{Secret: "Secret gloo-mesh/vault-token", Refused: "it has expired or was revoked"}
		}, []expectation{{check.ClusterToken, "fail", "nothing is renewed any more"}}},
		{"token missing", func(_ *testing.T, w *world) {
			w.Workload.Token = check.SeenToken{Secret: "Secret gloo-mesh/vault-token", Gap: check.Gap{Reason: check.NotFound}}
		}, []expectation{{check.ClusterToken, "fail", "is missing"}}},
		{"worker in a private network", func(_ *testing.T, w *world) {
			w.Private, w.Handshakes = "the worker does not know the management cluster", nil
		}, []expectation{{check.RegisteredName, "warn", "not compared"}, {check.Handshake, "warn", "not tried"}}},
		{"what a Pod says is searched", func(_ *testing.T, w *world) {
			w.Handshakes[0].Error = "bad token " + secrettest.VaultToken
		}, []expectation{{check.Handshake, "fail", "bad token (withheld)"}}},
		{"not registered", func(_ *testing.T, w *world) { w.Workload.RegisteredGap = check.Gap{Reason: check.NotFound} },
			[]expectation{{check.RegisteredName, "fail", "KubernetesCluster gloo-mesh/cluster1 is missing"}}},
		{"client certificate expired", func(_ *testing.T, w *world) {
			w.now = pkitest.Now.Add(24 * time.Hour)
			w.Handshakes[0].Error = "remote error: tls: expired certificate"
		}, []expectation{{check.CertificateLifetime, "fail", "expired at"}, {check.Handshake, "fail", "cmctl renew"}}},
		{"client certificate not yet valid", func(_ *testing.T, w *world) { w.now = pkitest.Now.Add(-2 * time.Hour) },
			[]expectation{{check.CertificateLifetime, "fail", "is not valid before"}}},
		{"server's certificate for clients", func(t *testing.T, w *world) {
			w.Workload.Secret.Chain[0] = w.relay.Leaf(t, []string{"cluster1"}, pkitest.Usages(x509.ExtKeyUsageServerAuth)).Cert
		}, []expectation{{check.CertificateChain, "fail", "incompatible key usage"}}},
		{"agent trust missing", func(_ *testing.T, w *world) { w.RootSecret = check.SeenSecret{Gap: check.Gap{Reason: check.NotFound}} },
			[]expectation{{check.AgentTrust, "fail", "CopyRootSecret"}}},
		{"agent trust missing where it is not used", func(_ *testing.T, w *world) {
			w.RootSecret = check.SeenSecret{Gap: check.Gap{Reason: check.NotFound}}
			w.Workload.Cluster.Agent.Trust = mesh.TrustOwn
		}, []expectation{{check.AgentTrust, "warn", "missing"}}},
		{"agent trusts another root", func(_ *testing.T, w *world) { w.RootSecret.CA = []*x509.Certificate{other.Cert} },
			[]expectation{{check.AgentTrust, "fail", "another root"}}},
		{"agent trust unreadable", func(_ *testing.T, w *world) { w.RootSecret = check.SeenSecret{CAError: "no certificate in it"} },
			[]expectation{{check.AgentTrust, "fail", "no readable ca.crt"}}},
		{"agent crashes for want of its trust", func(_ *testing.T, w *world) {
			w.Agent.Available = 0
			w.Agent.Pods[0] = check.SeenPod{Name: "agent-0", State: "waiting, CrashLoopBackOff",
				LastState: `terminated with exit code 1, Error, secrets "relay-root-tls-secret" not found`}
		}, []expectation{{check.RelayAgent, "fail", "0 of 1"}, {check.PodReady, "fail", "CopyRootSecret"}}},
		{"agent's own words", func(_ *testing.T, w *world) {
			w.Agent.Pods[0] = check.SeenPod{Name: "agent-0", State: "running", Log: `failed to connect to {34.145.18106:9900:9900 gloo-mesh-mgmt-server.gloo-mesh <nil> <nil>}. Err: connection error: desc = "transport: Error while dialing dial tcp: address too many colons in address"`}
		}, []expectation{{check.PodReady, "fail", "malformed"}}},
		{"agent not scheduled", func(_ *testing.T, w *world) { w.Agent.Pods[0] = check.SeenPod{Name: "agent-0"} },
			[]expectation{{check.PodReady, "fail", "no container state yet"}}},
		{"address with two ports", func(_ *testing.T, w *world) { w.AgentAddress = "34.145.18.106:9900:9900" },
			[]expectation{{check.AgentAddress, "fail", "too many colons in address"}}},
		{"server not reached", func(_ *testing.T, w *world) {
			w.Handshakes[0] = check.SeenHandshake{Pod: "server-0", Error: "pods is forbidden"}
		}, []expectation{{check.Handshake, "fail", "pods/portforward"}}},
		{"resumed", func(_ *testing.T, w *world) { w.Handshakes[0].Resumed = true }, []expectation{{check.Handshake, "fail", "resumed"}}},
		{"one replica of two refuses", func(_ *testing.T, w *world) {
			w.Handshakes = append(w.Handshakes, check.SeenHandshake{Pod: "server-1", Reached: true, Error: "remote error: tls: unknown certificate authority"})
		}, []expectation{{check.Handshake, "fail", "does not trust this cluster's chain"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := healthy(t)
			test.harm(t, w)
			judge(t, w.Workload.Findings(w.now), test.want)
			owed(t, w.Workload.Diagnose(w.now))
		})
	}
}

func TestExplain(t *testing.T) {
	for _, test := range []struct {
		where check.Where
		text  string
		want  string // part of the meaning; empty: not known
	}{
		// Measured: what a server says of a client that sends no certificate,
		// and of one that does not trust it.
		{check.InServer, "tls: client didn't provide a certificate", "acceptable CAs do not include"},
		{check.InServer, "remote error: tls: bad certificate", "does not trust this server"},
		// The same alert at the other end means the other thing.
		{check.AtHandshake, "remote error: tls: bad certificate", "refused this cluster's certificate"},
		{check.AtHandshake, "remote error: tls: certificate required", "no client certificate was sent"},
		{check.AtHandshake, "tls: failed to verify certificate: x509: certificate signed by unknown authority", "trust does not hold"},
		{check.AtHandshake, "tls: failed to verify certificate: x509: certificate is valid for a, not b", "name that agents expect"},
		{check.AtHandshake, "x509: certificate has expired or is not yet valid: current time 2022-04-15T18:18:10Z is before 2022-04-16T14:28:30Z", "not yet valid"},
		// The guide's.
		{check.InAgent, `{TRANSIENT_FAILURE connection error: desc = "transport: authentication handshake failed: x509: certificate has expired or is not yet valid: current time 2022-04-15T18:18:10Z is after 2022-04-15T14:28:30Z"}`, "server's certificate has expired"},
		{check.InAgent, `{"level":"fatal","ts":1640102555.6522746,"msg":"secrets \"relay-root-tls-secret\" not found","version":"1.3.0-beta6"}`, "relay-root-tls-secret, is missing"},
		{check.InAgent, `secrets "relay-root-tls-secret" not found`, "relay-root-tls-secret, is missing"},
		{check.InAgent, `dial tcp: address too many colons in address`, "malformed"},
		{check.InServer, `could not find forwarding server token: no token secret found: Timeout: failed waiting for *v1.Secret Informer to sync`, "identity token"},
		{check.AtHandshake, "something else", ""},
	} {
		s, ok := check.Explain(test.where, test.text)
		if ok != (test.want != "") || !strings.Contains(s.Meaning, test.want) {
			t.Errorf("%s: %q means %q, want %q", test.where, test.text, s.Meaning, test.want)
		}
		if ok && s.Remedy == "" {
			t.Errorf("%q has no remedy", test.text)
		}
	}
}
