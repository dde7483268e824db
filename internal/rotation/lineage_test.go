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

func TestPresentedModes(t *testing.T) {
	a, impostor := newAuthorities(t), newAuthorities(t)
	of := Lineage{a.r1.Cert, a.r2.Cert, a.i2.Cert, a.i3.Cert}
	replaced := Lineage{a.r2.Cert, a.r2.Cert, a.i3.Cert, a.i4.Cert}
	leaf := func(ca pkitest.Pair) pkitest.Pair { return ca.Leaf(t, []string{"cluster1"}) }
	for _, test := range []struct {
		name  string
		chain []*x509.Certificate
		of    Lineage
		want  Modes
	}{
		{"of I2", certs(leaf(a.i2), a.i2), of, In(Old)},
		{"with its root", certs(leaf(a.i2), a.i2, a.r1), of, In(Old)},
		{"of I2, before there is any other", certs(leaf(a.i2), a.i2), Lineage{OldRoot: a.r1.Cert, OldIntermediate: a.i2.Cert}, In(Old)},
		{"over the bridge", certs(leaf(a.i3), a.i3, a.bridge), of, In(Bridged, Pivot)},
		{"over the bridge, with the old root", certs(leaf(a.i3), a.i3, a.bridge, a.r1), of, In(Bridged, Pivot)},
		{"of I3", certs(leaf(a.i3), a.i3), of, In(Final, Pinned)},
		{"the root stays: of the previous one", certs(leaf(a.i3), a.i3), replaced, In(Linked)},
		{"the root stays: of the new one", certs(leaf(a.i4), a.i4), replaced, In(Final, Pinned)},
		{"over a bridge from another root", certs(leaf(a.i3), a.i3, impostor.r1.Cross(t, a.r2)), of, AnyMode},
		{"another's of the same names", certs(leaf(impostor.i3), impostor.i3), of, AnyMode},
		{"a leaf alone", certs(leaf(a.i2)), of, AnyMode},
		{"nothing", nil, of, AnyMode},
		{"nothing known of it", certs(leaf(a.i2), a.i2), Lineage{}, AnyMode},
	} {
		if got := PresentedModes(test.chain, test.of); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

func TestHeld(t *testing.T) {
	a, impostor := newAuthorities(t), newAuthorities(t)
	of := Lineage{a.r1.Cert, a.r2.Cert, a.i2.Cert, a.i3.Cert}
	for _, test := range []struct {
		name  string
		trust []*x509.Certificate
		of    Lineage
		want  Roots
	}{
		{"nothing", nil, of, 0},
		{"the old root", certs(a.r1), of, OldRoot},
		{"the bridge counts as the new root", certs(a.bridge), of, NewRoot},
		{"both, and another", certs(impostor.r1, a.r1, a.r2), of, OldRoot | NewRoot},
		{"the new intermediate", certs(a.i3), of, Itself},
		{"the previous intermediate is no anchor of it", certs(a.i2), of, 0},
		{"others of the same names", certs(impostor.r1, impostor.r2, impostor.i3), of, 0},
		{"there is no new root yet", certs(a.r1, a.r2), Lineage{OldRoot: a.r1.Cert}, OldRoot},
	} {
		if got := Held(test.trust, test.of); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

func TestNamedStores(t *testing.T) {
	a := newAuthorities(t)
	i3 := a.r2.Intermediate(t, "relay of a name of its own")
	of := Lineage{a.r1.Cert, a.r2.Cert, a.i2.Cert, i3.Cert}
	oneName := Lineage{a.r1.Cert, pkitest.Root(t, "relay-root-g1").Cert, a.i2.Cert, a.i3.Cert}
	for _, test := range []struct {
		name  string
		named []pkitest.Pair
		of    Lineage
		want  Stores
	}{
		{"none", nil, of, AnyStore},
		{"the old root", []pkitest.Pair{a.r1}, of, Trusting(OldRoot)},
		{"the new root", []pkitest.Pair{a.r2}, of, Trusting(NewRoot)},
		{"the bridge", []pkitest.Pair{a.bridge}, of, Trusting(NewRoot)},
		{"both roots", []pkitest.Pair{a.r2, a.r1}, of, Trusting(OldRoot | NewRoot)},
		{"the new intermediate", []pkitest.Pair{i3}, of, Trusting(Itself)},
		{"one that is not known", []pkitest.Pair{pkitest.Root(t, "another")}, of, AnyStore},
		{"one that is not known, beside a root", []pkitest.Pair{a.r1, pkitest.Root(t, "another")}, of, AnyStore},
		{"an intermediate of the previous one's name", []pkitest.Pair{a.i3}, Lineage{a.r1.Cert, a.r2.Cert, a.i2.Cert, a.i3.Cert}, AnyStore},
		{"roots of one name", []pkitest.Pair{a.r1}, oneName, Trusting(OldRoot, NewRoot, OldRoot|NewRoot)},
		{"there is no new root yet", []pkitest.Pair{a.r1}, Lineage{OldRoot: a.r1.Cert}, Trusting(OldRoot)},
	} {
		var subjects [][]byte
		for _, c := range certs(test.named...) {
			subjects = append(subjects, c.RawSubject)
		}
		if got := NamedStores(subjects, test.of); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}
