package rotation

import (
	"crypto/x509"
	"time"

	"github.com/relaypki/relaypki/internal/pki"
)

// Side is one end of a handshake with everything that it may present and trust.
type Side struct {
	Name string
	// Chains are what it may present, leaf first, without the root.
	Chains [][]*x509.Certificate
	// Trusts are the trust stores that it may have.
	Trusts [][]*x509.Certificate
}

// Pair is a handshake that would fail, and why.
type Pair struct {
	Presenter, Verifier string
	// Chain and Trust are the leaf and the anchors of the combination.
	Chain, Trust []*x509.Certificate
	Problem      error
}

// Broken are the handshakes between the server and an agent that would fail, in
// any combination of what either may present and trust. It computes what
// crypto/tls does; names and usages are not judged, as they do not change when
// a CA is rotated.
func Broken(server Side, agents []Side, at time.Time) []Pair {
	var broken []Pair
	for _, agent := range agents {
		for _, way := range []struct{ presenter, verifier Side }{{server, agent}, {agent, server}} {
			for _, chain := range way.presenter.Chains {
				for _, trust := range way.verifier.Trusts {
					if problem := verify(chain, trust, at); problem != nil {
						broken = append(broken, Pair{Presenter: way.presenter.Name, Verifier: way.verifier.Name, Chain: chain, Trust: trust, Problem: problem})
					}
				}
			}
		}
	}
	return broken
}

func verify(chain, trust []*x509.Certificate, at time.Time) error {
	return pki.Peer{Trust: trust, Usage: x509.ExtKeyUsageAny, At: at}.Verify(chain)
}
