package check_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
)

// A mesh in the midst of a rotation of its root is in order in every mode, and what
// is wrong in it is found all the same.
func TestInRotation(t *testing.T) {
	const newID = "33333333-3333-3333-3333-333333333333"
	for _, c := range []struct {
		name    string
		change  func(w *world, next, i3, bridge pkitest.Pair)
		mode    string
		bundle  string
		want    []expectation // of the workload
		wantOf  []expectation // of the management cluster
		retired bool
	}{
		{name: "bridged", mode: "bridged", bundle: "both"},
		{name: "bridged, with the new root alone", mode: "bridged", bundle: "new"},
		{name: "pivot", mode: "pivot", bundle: "both"},
		{name: "final", mode: "final", bundle: "both"},
		{name: "contracted", mode: "final", bundle: "new"},
		{name: "retired", mode: "final", bundle: "new", retired: true},
		{name: "the trust lacks the new root", mode: "final", bundle: "old", want: []expectation{{"agent-trust", "fail", "not the root"}}},
		{name: "the trust holds a bridge", mode: "pivot", bundle: "bridge", want: []expectation{{"agent-trust", "fail", "no self-signed root"}}},
		{name: "ca.crt is the new intermediate", mode: "pivot", bundle: "both",
			change: func(w *world, _, i3, _ pkitest.Pair) { w.Workload.Secret.CA = []*x509.Certificate{i3.Cert} },
			want:   []expectation{{"certificate-root", "fail", "no self-signed root"}, {"agent-trust", "warn", ""}}},
		{name: "ca.crt is a bridge, and none in the chain", mode: "pivot", bundle: "both",
			change: func(w *world, _, _, _ pkitest.Pair) { w.Workload.Secret.Chain = w.Workload.Secret.Chain[:2] },
			want:   []expectation{{"certificate-root", "fail", "no self-signed root"}, {"certificate-chain", "fail", "longer than its issuer"}, {"agent-trust", "warn", ""}}},
		{name: "no bridge in Vault", mode: "bridged", bundle: "both",
			change: func(w *world, _, _, _ pkitest.Pair) { w.Vault.Relay.Issuers = w.Vault.Relay.Issuers[:4] },
			wantOf: []expectation{{"vault-intermediate", "fail", "another root"}}},
		{name: "a bridge that ends before the leaf", mode: "bridged", bundle: "both",
			change: func(w *world, next, _, _ pkitest.Pair) {
				w.Workload.Secret.Chain[2] = w.root.Cross(t, next, pkitest.Valid(-time.Hour, 2*time.Hour)).Cert
			},
			want: []expectation{{"certificate-chain", "fail", "longer than its issuer"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := healthy(t)
			next := pkitest.Root(t, "Solo.io Root CA G2")
			// The intermediate outlives the bridge, which ends with the old root.
			i3 := next.Intermediate(t, "gloo-mesh-mgmt-server-ca", pkitest.Valid(-time.Hour, 10*365*24*time.Hour))
			bridge := w.root.Cross(t, next)
			server := i3.Leaf(t, w.Management.Spec.Certificates.Server.DNSNames).Cert
			client := i3.Leaf(t, []string{"cluster1"}, pkitest.Usages(x509.ExtKeyUsageClientAuth)).Cert
			above, ca := []*x509.Certificate{i3.Cert, bridge.Cert}, w.root.Cert
			switch c.mode {
			case "pivot":
				ca = bridge.Cert
			case "final":
				above, ca = above[:1], next.Cert
			}
			stored := func(leaf *x509.Certificate) check.SeenSecret {
				return check.SeenSecret{Chain: append([]*x509.Certificate{leaf}, above...), CA: []*x509.Certificate{ca}}
			}
			w.Management.Secret, w.Workload.Secret = stored(server), stored(client)
			w.Replicas[0].Loaded.Chain, w.Replicas[0].Loaded.AcceptableCAs = w.Management.Secret.Chain, [][]byte{ca.RawSubject}
			w.Workload.RootSecret.CA = map[string][]*x509.Certificate{
				"old": {w.root.Cert}, "both": {w.root.Cert, next.Cert}, "new": {next.Cert}, "bridge": {bridge.Cert},
			}[c.bundle]
			w.Vault.Relay.Default = newID
			w.Vault.Relay.Issuers = append([]check.SeenVaultIssuer{{ID: newID, Name: "relay-intermediate-g2", HasKey: true, LeafNotAfterBehavior: "err", Certificate: i3.Cert}}, w.Vault.Relay.Issuers...)
			w.Vault.Relay.Issuers = append(w.Vault.Relay.Issuers, check.SeenVaultIssuer{Name: "relay-root-g2", Certificate: next.Cert}, check.SeenVaultIssuer{Name: "relay-bridge-g2", Certificate: bridge.Cert})
			for i := range w.Vault.Roles {
				w.Vault.Roles[i].IssuerRef = newID
			}
			if c.retired {
				w.Vault.Root.Issuers[0].Name, w.Vault.Root.Issuers[0].Certificate = "relay-root-g2", next.Cert
			}
			if c.change != nil {
				c.change(w, next, i3, bridge)
			}
			judge(t, w.Management.Findings(w.now), c.wantOf)
			judge(t, w.Workload.Findings(w.now), c.want)
		})
	}
}
