package rotation

import (
	"crypto/x509"
	"strings"
	"testing"

	"github.com/relaypki/relaypki/internal/pki/pkitest"
)

// ChainOf is what Vault's manual_chain is in each mode; what an issuance with it
// returns is of that mode.
func TestChainOf(t *testing.T) {
	a := newAuthorities(t)
	of := Lineage{a.r1.Cert, a.r2.Cert, a.i2.Cert, a.i3.Cert}
	for _, test := range []struct {
		mode  Mode
		of    Lineage
		below pkitest.Pair
		want  []pkitest.Pair
	}{
		{Old, of, a.i2, []pkitest.Pair{a.r1}},
		{Bridged, of, a.i3, []pkitest.Pair{a.bridge, a.r1}},
		{Pivot, of, a.i3, []pkitest.Pair{a.bridge}},
		{Final, of, a.i3, []pkitest.Pair{a.r2}},
		{Pinned, of, a.i3, nil},
		{Linked, Lineage{a.r2.Cert, a.r2.Cert, a.i3.Cert, a.i4.Cert}, a.i3, []pkitest.Pair{a.r2}},
	} {
		t.Run(test.mode.String(), func(t *testing.T) {
			got := ChainOf(test.mode, a.bridge.Cert, test.of)
			if !equal(got, certs(test.want...)) {
				t.Errorf("got %v", got)
			}
			answer := append([]pkitest.Pair{test.below.Leaf(t, []string{"cluster1"}), test.below}, test.want...)
			chain, ca := stored(t, answer...)
			check(t, chain, ca, test.of, test.mode, "")
			if test.below == a.i3 && test.of == of {
				if mode, err := ModeOfChain(got, of); err != nil || mode != test.mode {
					t.Errorf("back again: %s, %v", mode, err)
				}
			}
		})
	}
}

func equal(a, b []*x509.Certificate) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !a[i].Equal(b[i]) {
			return false
		}
	}
	return true
}

func TestModeOfChain(t *testing.T) {
	a, impostor := newAuthorities(t), newAuthorities(t)
	of := Lineage{a.r1.Cert, a.r2.Cert, a.i2.Cert, a.i3.Cert}
	foreign := impostor.r1.Cross(t, a.r2) // from another root of the name
	for _, test := range []struct {
		name  string
		above []pkitest.Pair
		of    Lineage
		want  Mode
		err   string
	}{
		{"another bridge of the same two keys", []pkitest.Pair{a.r1.Cross(t, a.r2), a.r1}, of, Bridged, ""},
		{"a root that is replaced by itself", []pkitest.Pair{a.r2}, Lineage{a.r2.Cert, a.r2.Cert, a.i4.Cert, a.i3.Cert}, Final, ""},

		{"the old root alone", []pkitest.Pair{a.r1}, of, 0, "as its issuer"},
		{"another root of the name", []pkitest.Pair{impostor.r2}, of, 0, "was signed by the key"},
		{"Vault's documented chain", []pkitest.Pair{a.r2, a.bridge, a.r1}, of, 0, "is self-signed and not the last"},
		{"the other way round", []pkitest.Pair{a.bridge, a.r2}, of, 0, "as its issuer"},
		{"a foreign bridge", []pkitest.Pair{foreign}, of, 0, "the bridge does not lead to the old root"},
		{"a foreign bridge and its root", []pkitest.Pair{foreign, impostor.r1}, of, 0, "the bridge does not lead to the old root"},
		{"the old root as somebody signed it", []pkitest.Pair{a.bridge, impostor.r1.Cross(t, a.r1)}, of, 0, "is of no mode"},
		{"the bridge twice", []pkitest.Pair{a.bridge, a.bridge}, of, 0, "twice"},
		{"another root's, as if it were the new one", []pkitest.Pair{a.r2}, Lineage{OldRoot: a.r1.Cert, NewRoot: impostor.r2.Cert, NewIntermediate: a.i3.Cert}, 0, "not the new root's key"},
		{"no old root is known", []pkitest.Pair{a.bridge}, Lineage{NewRoot: a.r2.Cert, NewIntermediate: a.i3.Cert}, 0, "no old root is known"},
		{"no new root is known", []pkitest.Pair{a.r2}, Lineage{OldRoot: a.r1.Cert, NewIntermediate: a.i3.Cert}, 0, "not the new root's key"},
		{"no new intermediate is known", []pkitest.Pair{a.r2}, Lineage{OldRoot: a.r1.Cert, NewRoot: a.r2.Cert}, 0, "no new intermediate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ModeOfChain(certs(test.above...), test.of)
			if test.err == "" && (err != nil || got != test.want) || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("got %s, %v; want %s, %q", got, err, test.want, test.err)
			}
		})
	}
}
