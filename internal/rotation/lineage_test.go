package rotation

import (
	"crypto/x509"
	"slices"
	"strings"
	"testing"

	certmanager "github.com/cert-manager/cert-manager/pkg/util/pki"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
)

// stored is what cert-manager makes of an answer of Vault.
func stored(t *testing.T, answer ...pkitest.Pair) (chain, ca []*x509.Certificate) {
	t.Helper()
	bundle, err := certmanager.ParseSingleCertificateChain(certs(answer...))
	if err != nil {
		t.Fatal(err)
	}
	for text, into := range map[string]*[]*x509.Certificate{string(bundle.ChainPEM): &chain, string(bundle.CAPEM): &ca} {
		if *into, err = pki.ParseChain([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	return chain, ca
}

func TestModeOf(t *testing.T) {
	a, impostor := newAuthorities(t), newAuthorities(t)
	of := Lineage{a.r1.Cert, a.r2.Cert, a.i2.Cert, a.i3.Cert}
	replaced := Lineage{a.r2.Cert, a.r2.Cert, a.i3.Cert, a.i4.Cert}
	leaf := func(ca pkitest.Pair) pkitest.Pair { return ca.Leaf(t, []string{"cluster1"}) }
	// One that has the name and says that it has the key of I3.
	forged := impostor.r2.Intermediate(t, "relay", func(c *x509.Certificate) { c.SubjectKeyId = a.i3.Cert.SubjectKeyId })
	for _, test := range []struct {
		name   string
		answer []pkitest.Pair // of Vault: leaf and manual_chain
		of     Lineage
		want   Mode
		err    string
	}{
		{"old", []pkitest.Pair{leaf(a.i2), a.i2, a.r1}, of, Old, ""},
		{"bridged", []pkitest.Pair{leaf(a.i3), a.i3, a.bridge, a.r1}, of, Bridged, ""},
		{"pivot", []pkitest.Pair{leaf(a.i3), a.i3, a.bridge}, of, Pivot, ""},
		{"final", []pkitest.Pair{leaf(a.i3), a.i3, a.r2}, of, Final, ""},
		{"pinned", []pkitest.Pair{leaf(a.i3), a.i3}, of, Pinned, ""},
		{"the root stays: linked", []pkitest.Pair{leaf(a.i3), a.i3, a.r2}, replaced, Linked, ""},
		{"the root stays: final", []pkitest.Pair{leaf(a.i4), a.i4, a.r2}, replaced, Final, ""},
		{"the root stays: pinned", []pkitest.Pair{leaf(a.i4), a.i4}, replaced, Pinned, ""},

		{"the previous one is pinned", []pkitest.Pair{leaf(a.i2), a.i2}, of, 0, "unpin it"},
		{"another intermediate of the name", []pkitest.Pair{leaf(a.i4), a.i4, a.r2}, of, 0, "neither the previous nor the new intermediate"},
		{"all of it another's, of the same names", []pkitest.Pair{leaf(impostor.i3), impostor.i3, impostor.r2}, of, 0, "neither the previous nor"},
		{"a forged key identifier", []pkitest.Pair{leaf(forged), forged, impostor.r2}, of, 0, "neither the previous nor"},
		{"I3 under another root of the name", func() []pkitest.Pair {
			other := pkitest.Pair{Cert: impostor.r2.Cross(t, a.i3).Cert, Key: a.i3.Key}
			return []pkitest.Pair{leaf(other), other, impostor.r2}
		}(), of, 0, "is of no mode"},
		{"a bridge from another root of the name", []pkitest.Pair{leaf(a.i3), a.i3, impostor.r1.Cross(t, a.r2), impostor.r1}, of, 0, "the bridge does not lead to the old root"},
		{"that bridge at pivot", []pkitest.Pair{leaf(a.i3), a.i3, impostor.r1.Cross(t, a.r2)}, of, 0, "the bridge does not lead to the old root"},
		{"nothing known of it", []pkitest.Pair{leaf(a.i3), a.i3, a.r2}, Lineage{}, 0, "neither the previous nor"},
	} {
		t.Run(test.name, func(t *testing.T) {
			chain, ca := stored(t, test.answer...)
			check(t, chain, ca, test.of, test.want, test.err)
			if end := test.answer[len(test.answer)-1].Cert; pki.SelfSigned(end) {
				check(t, append(slices.Clone(chain), end), ca, test.of, test.want, test.err) // as Vault answers
			}
		})
	}
	old := certs(leaf(a.i2), a.i2)
	for _, test := range []struct {
		name      string
		chain, ca []*x509.Certificate
		err       string
	}{
		{"nothing", nil, certs(a.r1), "no certificate"},
		{"a leaf alone", certs(leaf(a.i2)), certs(a.i2), "alone"},
		{"a bundle", old, certs(a.r1, a.r2), "has 2 certificates"},
		{"no ca.crt", old, nil, "has 0 certificates"},
		{"ca.crt of another mode", old, certs(a.r2), "does not lead to ca.crt"},
		{"ca.crt of another root of the name", old, certs(impostor.r1), "does not lead to ca.crt"},
		{"in another order", certs(a.i2, leaf(a.i2)), certs(a.r1), "as its issuer"},
	} {
		t.Run(test.name, func(t *testing.T) { check(t, test.chain, test.ca, of, 0, test.err) })
	}
}

func check(t *testing.T, chain, ca []*x509.Certificate, of Lineage, want Mode, refusal string) {
	t.Helper()
	got, err := ModeOf(chain, ca, of)
	switch {
	case refusal == "" && (err != nil || got != want):
		t.Errorf("got %s, %v; want %s", got, err, want)
	case refusal != "" && (err == nil || !strings.Contains(err.Error(), refusal)):
		t.Errorf("got %s, %v; want an error with %q", got, err, refusal)
	}
}
