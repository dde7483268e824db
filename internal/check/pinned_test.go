package check_test

import (
	"crypto/x509"
	"testing"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
)

// A mesh that an emergency has pinned is in order, and so is one on its way there or
// back; anywhere else an intermediate in a root's place is a mistake, and where it is
// pinned a root is.
func TestPinned(t *testing.T) {
	const newID = "33333333-3333-3333-3333-333333333333"
	for _, c := range []struct {
		name string
		pin  check.Pin
		// rooted has ca.crt be the root, of everybody; old has the workload's
		// certificate be of the previous intermediate still.
		rooted, old bool
		bundle      string
		change      func(w *world, previous *x509.Certificate)
		want        []expectation // of the workload
		wantOf      []expectation // of the management cluster
	}{
		{name: "pinned", pin: check.Pinned, bundle: "itself"},
		{name: "pinned, a root in a ca.crt", pin: check.Pinned, bundle: "itself",
			change: func(w *world, _ *x509.Certificate) { w.Workload.Secret.CA = []*x509.Certificate{w.root.Cert} },
			want:   []expectation{{"certificate-root", "fail", "pinned the intermediate"}, {"agent-trust", "warn", "no root to compare with"}}},
		{name: "pinned, a root in the server's ca.crt", pin: check.Pinned, bundle: "itself",
			change: func(w *world, _ *x509.Certificate) { w.Management.Secret.CA = []*x509.Certificate{w.root.Cert} },
			wantOf: []expectation{{"certificate-root", "fail", "pinned the intermediate"}, {"acceptable-cas", "warn", "no root to compare with"}}},
		{name: "pinned, a root that stands by beside it", pin: check.Pinned, bundle: "standby"},
		{name: "pinned, the root beside it in the trust", pin: check.Pinned, bundle: "both",
			want: []expectation{{"agent-trust", "fail", `holds "Solo.io Root CA"`}}},
		{name: "pinned, the root alone in the trust", pin: check.Pinned, bundle: "root",
			want: []expectation{{"agent-trust", "fail", `holds "Solo.io Root CA"`}}},
		{name: "pinned, the previous intermediate in the trust", pin: check.Pinned, bundle: "previous",
			want: []expectation{{"agent-trust", "fail", "pinned the intermediate"}}},
		{name: "pinned, and the server trusts the root still", pin: check.Pinned, bundle: "itself",
			change: func(w *world, _ *x509.Certificate) {
				w.Replicas[0].Loaded.AcceptableCAs = [][]byte{w.root.Cert.RawSubject}
			},
			wantOf: []expectation{{"acceptable-cas", "fail", "an older one"}}},
		{name: "pinned to another than what it was issued by", pin: check.Pinned, bundle: "itself",
			change: func(w *world, previous *x509.Certificate) {
				w.Workload.Secret.CA = []*x509.Certificate{previous}
			},
			want: []expectation{{"certificate-root", "fail", "pinned the intermediate"}, {"certificate-chain", "fail", "under its own ca.crt"}, {"agent-trust", "warn", ""}}},
		{name: "pinned by nobody", bundle: "itself",
			want:   []expectation{{"certificate-root", "fail", "no self-signed root"}, {"agent-trust", "fail", "no self-signed root"}},
			wantOf: []expectation{{"certificate-root", "fail", "no self-signed root"}, {"acceptable-cas", "warn", ""}}},
		{name: "in the trust by nobody", rooted: true, bundle: "both",
			want: []expectation{{"agent-trust", "fail", "no self-signed root"}}},
		{name: "linked, and not issued anew yet", pin: check.Pinning, rooted: true, old: true, bundle: "both"},
		{name: "linked", pin: check.Pinning, rooted: true, bundle: "both"},
		{name: "linked, with the intermediate alone in the trust", pin: check.Pinning, rooted: true, bundle: "itself"},
		{name: "being pinned", pin: check.Pinning, bundle: "itself"},
		{name: "being lifted", pin: check.Pinning, bundle: "root"},
		{name: "being pinned, with what is replaced in the trust", pin: check.Pinning, bundle: "previous",
			want: []expectation{{"agent-trust", "fail", "not the root"}}},
		{name: "not issued anew yet, with the new intermediate alone in the trust", pin: check.Pinning, rooted: true, old: true, bundle: "itself",
			want: []expectation{{"agent-trust", "fail", "not the root"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := healthy(t)
			w.Management.Pin, w.Workload.Pin = c.pin, c.pin
			i2 := w.root.Intermediate(t, "gloo-mesh-mgmt-server-ca G2")
			ca := i2.Cert
			if c.rooted {
				ca = w.root.Cert
			}
			stored := func(leaf *x509.Certificate) check.SeenSecret {
				return check.SeenSecret{Chain: []*x509.Certificate{leaf, i2.Cert}, CA: []*x509.Certificate{ca}}
			}
			w.Management.Secret = stored(i2.Leaf(t, w.Management.Spec.Certificates.Server.DNSNames).Cert)
			if !c.old {
				w.Workload.Secret = stored(i2.Leaf(t, []string{"cluster1"}, pkitest.Usages(x509.ExtKeyUsageClientAuth)).Cert)
			}
			w.Replicas[0].Loaded.Chain, w.Replicas[0].Loaded.AcceptableCAs = w.Management.Secret.Chain, [][]byte{ca.RawSubject}
			w.Workload.RootSecret.CA = map[string][]*x509.Certificate{
				"itself": {i2.Cert}, "both": {w.root.Cert, i2.Cert}, "root": {w.root.Cert}, "previous": {w.relay.Cert}, "standby": {i2.Cert, pkitest.Root(t, "Solo.io Root CA G2").Cert},
			}[c.bundle]
			w.Vault.Relay.Default = newID
			w.Vault.Relay.Issuers = append(w.Vault.Relay.Issuers, check.SeenVaultIssuer{ID: newID, Name: "relay-intermediate-g2", HasKey: true, LeafNotAfterBehavior: "err", Certificate: i2.Cert})
			for i := range w.Vault.Roles {
				w.Vault.Roles[i].IssuerRef = newID
			}
			if c.change != nil {
				c.change(w, w.relay.Cert)
			}
			judge(t, w.Management.Findings(w.now), c.wantOf)
			judge(t, w.Workload.Findings(w.now), c.want)
		})
	}
}
