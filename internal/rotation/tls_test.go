package rotation

import (
	"crypto/x509"
	"fmt"
	"testing"

	"github.com/relaypki/relaypki/internal/pki/pkitest"
)

// The modes are what crypto/tls makes of them: every mode of the server with every
// mode of an agent, and with every trust that the agent may have, a bundle or the
// ca.crt of any mode, shakes hands if and only if the one's chain leads to what the
// other trusts, by Mode.LeadsTo and Mode.Anchor. And members in neighbouring modes
// always do, each with the trust of its own mode.
func TestModelAgreesWithTLS(t *testing.T) {
	a := newAuthorities(t)
	leaf := func(ca pkitest.Pair) pkitest.Pair { return ca.Leaf(t, []string{authority}) }
	type issued struct {
		chain []pkitest.Pair
		ca    []*x509.Certificate
	}
	ofRoot := map[Mode]issued{
		Old:     {[]pkitest.Pair{leaf(a.i2), a.i2}, certs(a.r1)},
		Bridged: {[]pkitest.Pair{leaf(a.i3), a.i3, a.bridge}, certs(a.r1)},
		Pivot:   {[]pkitest.Pair{leaf(a.i3), a.i3, a.bridge}, certs(a.bridge)},
		Final:   {[]pkitest.Pair{leaf(a.i3), a.i3}, certs(a.r2)},
		Pinned:  {[]pkitest.Pair{leaf(a.i3), a.i3}, certs(a.i3)},
		// Another intermediate of the new root's, which is the previous one where
		// the root stays.
		Linked: {[]pkitest.Pair{leaf(a.i4), a.i4}, certs(a.r2)},
	}
	if len(ofRoot) != modes {
		t.Fatalf("%d of %d modes are tried", len(ofRoot), modes)
	}
	bundles := map[Roots][]*x509.Certificate{
		OldRoot: certs(a.r1), NewRoot: certs(a.r2), OldRoot | NewRoot: certs(a.r1, a.r2), Itself: certs(a.i3), NewRoot | Itself: certs(a.r2, a.i3),
	}
	neighbours := map[[2]Mode]bool{
		{Old, Bridged}: true, {Bridged, Pivot}: true, {Pivot, Final}: true,
		{Pivot, Pinned}: true, {Final, Pinned}: true, {Linked, Final}: true, {Linked, Pivot}: true,
	}
	made, refused := 0, 0
	for serverMode, server := range ofRoot {
		if of := (Lineage{a.r1.Cert, a.r2.Cert, a.i2.Cert, a.i3.Cert}); serverMode != Linked {
			check(t, certs(server.chain...), server.ca, of, serverMode, "")
		}
		for agentMode, agent := range ofRoot {
			try := func(trusts Roots, trust []*x509.Certificate) bool {
				t.Helper()
				want := serverMode.LeadsTo()&trusts != 0 && agentMode.LeadsTo()&serverMode.Anchor() != 0
				serverErr, agentErr := shakeHands(t, server.chain, server.ca, agent.chain, trust)
				name := fmt.Sprintf("server %s, agent %s that trusts %s", serverMode, agentMode, trusts)
				if got := serverErr == nil && agentErr == nil; got != want {
					t.Errorf("%s: the modes say %v, crypto/tls: server %v, agent %v", name, want, serverErr, agentErr)
				}
				broken := Broken(Side{"server", [][]*x509.Certificate{certs(server.chain...)}, [][]*x509.Certificate{server.ca}},
					[]Side{{"agent", [][]*x509.Certificate{certs(agent.chain...)}, [][]*x509.Certificate{trust}}}, pkitest.Now)
				if (len(broken) == 0) != want {
					t.Errorf("%s: the modes say %v, the certificates %v", name, want, broken)
				}
				if want {
					made++
				} else {
					refused++
				}
				return want
			}
			for trusts, bundle := range bundles {
				try(trusts, bundle)
			}
			for trustMode, of := range ofRoot {
				well := try(trustMode.Anchor(), of.ca)
				near := serverMode == agentMode || neighbours[[2]Mode{serverMode, agentMode}] || neighbours[[2]Mode{agentMode, serverMode}]
				if trustMode == agentMode && well != near {
					t.Errorf("%s and %s, each with its own ca.crt: neighbours %v, handshake %v", serverMode, agentMode, near, well)
				}
			}
		}
	}
	t.Logf("%d handshakes made, %d refused", made, refused)
	if made < 100 || refused < 100 {
		t.Error("that is too few of either")
	}
}
