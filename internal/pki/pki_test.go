package pki_test

import (
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
)

func certs(pairs ...pkitest.Pair) []*x509.Certificate {
	var out []*x509.Certificate
	for _, p := range pairs {
		out = append(out, p.Cert)
	}
	return out
}

// want is a part of the error's text; empty for none.
func expect(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("got error %v, want none", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("got error %v, want one with %q", err, want)
	}
}

func TestParseChain(t *testing.T) {
	root := pkitest.Root(t, "R1")
	leaf := root.Leaf(t, []string{"cluster1"})
	both := pki.EncodeChain(leaf.Cert, root.Cert)
	key, err := x509.MarshalPKCS8PrivateKey(leaf.Key)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Cert.Raw[:40]})
	for _, test := range []struct {
		name  string
		text  []byte
		count int
		err   string
	}{
		{"two", both, 2, ""},
		{"space around", append(append([]byte("\n\n"), both...), "\n  \n"...), 2, ""},
		{"nothing", nil, 0, "no certificate"},
		{"no PEM", []byte("hello"), 0, "not PEM"},
		{"cut off", both[:len(both)-30], 0, "not PEM after 1"},
		{"a key among them", append(append([]byte{}, both...), keyPEM...), 0, `"PRIVATE KEY"`},
		{"not a certificate", broken, 0, "certificate 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			chain, err := pki.ParseChain(test.text)
			expect(t, err, test.err)
			if len(chain) != test.count {
				t.Errorf("got %d certificates, want %d", len(chain), test.count)
			}
			if err != nil && strings.Contains(err.Error(), strings.TrimSpace(string(keyPEM[30:60]))) {
				t.Error("the error quotes the text")
			}
		})
	}
}

func TestSelfSigned(t *testing.T) {
	r1, r2 := pkitest.Root(t, "R1"), pkitest.Root(t, "R2")
	impostor := pkitest.Root(t, "R2")
	for _, test := range []struct {
		name string
		c    *x509.Certificate
		want bool
	}{
		{"root", r1.Cert, true},
		{"intermediate", r1.Intermediate(t, "I1").Cert, false},
		{"bridge", r1.Cross(t, r2).Cert, false},
		{"same name, other key", impostor.Cross(t, r2).Cert, false},
	} {
		if got := pki.SelfSigned(test.c); got != test.want {
			t.Errorf("%s: got %v", test.name, got)
		}
	}
}

func TestLinear(t *testing.T) {
	r1, r2 := pkitest.Root(t, "R1"), pkitest.Root(t, "R2")
	i1, i3 := r1.Intermediate(t, "I"), r2.Intermediate(t, "I")
	r2x := r1.Cross(t, r2)
	leaf, leaf3 := i1.Leaf(t, []string{"cluster1"}), i3.Leaf(t, []string{"cluster1"})
	for _, test := range []struct {
		name  string
		chain []*x509.Certificate
		err   string
	}{
		{"leaf alone", certs(leaf), ""},
		{"to the root", certs(leaf, i1, r1), ""},
		{"bridged", certs(leaf3, i3, r2x, r1), ""},
		{"pivot", certs(leaf3, i3, r2x), ""},
		{"final", certs(leaf3, i3, r2), ""},
		{"Vault's documented cross-sign recipe", certs(leaf3, i3, r2, r2x, r1), "self-signed and not the last"},
		{"twice", certs(leaf, i1, i1), "twice"},
		{"one missing", certs(leaf, r1), `names "CN=I" as its issuer`},
		{"wrong order", certs(leaf, r1, i1), "as its issuer"},
		{"the other intermediate of that name", certs(leaf, i3), "was signed by the key"},
		{"empty", nil, "empty"},
	} {
		t.Run(test.name, func(t *testing.T) {
			expect(t, pki.Linear(test.chain), test.err)
		})
	}
}

func TestNested(t *testing.T) {
	root := pkitest.Root(t, "R1")
	short := root.Intermediate(t, "I1", pkitest.Valid(-time.Hour, 10*time.Hour))
	long := root.Intermediate(t, "I1", pkitest.Valid(-time.Hour, 30*365*24*time.Hour))
	expect(t, pki.Nested(certs(root.Leaf(t, []string{"a"}), root)), "")
	expect(t, pki.Nested(certs(short.Leaf(t, []string{"a"}), short, root)), "longer than its issuer")
	expect(t, pki.Nested(certs(long.Leaf(t, []string{"a"}), long, root)), "longer than its issuer")
}

func TestVerify(t *testing.T) {
	r1, r2 := pkitest.Root(t, "R1"), pkitest.Root(t, "R2")
	i1 := r1.Intermediate(t, "I1")
	i3, r2x := r2.Intermediate(t, "I3"), r1.Cross(t, r2)
	server := i1.Leaf(t, []string{"*.gloo-mesh"})
	clientOnly := i1.Leaf(t, []string{"cluster1"}, pkitest.Usages(x509.ExtKeyUsageClientAuth))
	bridged := i3.Leaf(t, []string{"*.gloo-mesh"})
	for _, test := range []struct {
		name  string
		chain []*x509.Certificate
		trust []*x509.Certificate
		dns   string
		usage x509.ExtKeyUsage
		at    time.Duration
		err   string
	}{
		{"good", certs(server, i1), certs(r1), "gloo-mesh-mgmt-server.gloo-mesh", x509.ExtKeyUsageServerAuth, 0, ""},
		{"as a client", certs(clientOnly, i1), certs(r1), "", x509.ExtKeyUsageClientAuth, 0, ""},
		{"client's as a server", certs(clientOnly, i1), certs(r1), "", x509.ExtKeyUsageServerAuth, 0, "incompatible key usage"},
		{"other trust", certs(server, i1), certs(r2), "", x509.ExtKeyUsageServerAuth, 0, "unknown authority"},
		{"without its intermediate", certs(server), certs(r1), "", x509.ExtKeyUsageServerAuth, 0, "unknown authority"},
		{"name", certs(server, i1), certs(r1), "mgmt.other", x509.ExtKeyUsageServerAuth, 0, "not mgmt.other"},
		{"expired", certs(server, i1), certs(r1), "", x509.ExtKeyUsageServerAuth, 24 * time.Hour, "is after"},
		{"not yet", certs(server, i1), certs(r1), "", x509.ExtKeyUsageServerAuth, -2 * time.Hour, "is before"},
		{"bridged under the old root", certs(bridged, i3, r2x), certs(r1), "", x509.ExtKeyUsageServerAuth, 0, ""},
		{"bridged under the new root", certs(bridged, i3, r2x), certs(r2), "", x509.ExtKeyUsageServerAuth, 0, ""},
		{"final under the old root", certs(bridged, i3), certs(r1), "", x509.ExtKeyUsageServerAuth, 0, "unknown authority"},
		{"pivot's ca.crt as the anchor", certs(bridged, i3), certs(r2x), "", x509.ExtKeyUsageServerAuth, 0, ""},
		{"empty", nil, certs(r1), "", x509.ExtKeyUsageServerAuth, 0, "empty"},
	} {
		t.Run(test.name, func(t *testing.T) {
			expect(t, pki.Peer{Trust: test.trust, Name: test.dns, Usage: test.usage, At: pkitest.Now.Add(test.at)}.Verify(test.chain), test.err)
		})
	}
}

func TestSameKey(t *testing.T) {
	r1, r2 := pkitest.Root(t, "R1"), pkitest.Root(t, "R2")
	if !pki.SameKey(r2.Cert, r1.Cross(t, r2).Cert) {
		t.Error("a bridge has the key of the root that it stands for")
	}
	if pki.SameKey(r1.Cert, r2.Cert) {
		t.Error("two roots have two keys")
	}
}

func TestHex(t *testing.T) {
	if got := pki.Hex([]byte{0x00, 0x0a, 0xff}); got != "00:0a:ff" {
		t.Error(got)
	}
}
