package rotation

import (
	"bytes"
	"crypto/x509"
	"errors"
	"time"

	"github.com/relaypki/relaypki/internal/pki"
)

// Side is one end of a handshake with everything that it may present and trust:
// stored, loaded or in flight. A side of which nothing of the one or the other
// is known shakes hands with nobody.
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
	// Chain and Trust are the combination that does; empty if there is none.
	Chain, Trust []*x509.Certificate
	Problem      error
}

// What keeps a handshake from being judged at all, or is told to no verifier.
var (
	errNoChain    = errors.New("it is not known to present any certificate")
	errNoTrust    = errors.New("it is not known to trust anything")
	errNotOffered = errors.New("none of the chain's issuers is among the CAs that the server accepts, so the client sends no certificate")
)

// Broken are the handshakes between the server and an agent that would fail, in
// any combination of what either may present and trust. It computes what
// crypto/tls does, but for names and usages: they do not change when a CA is
// rotated, and a throwaway certificate that shows what Vault would return has
// neither. Nor does it mind that a leaf has ended: nobody accepts that one any
// more, whatever is done, and to be given another is what its owner needs.
func Broken(server Side, agents []Side, at time.Time) []Pair {
	var broken []Pair
	for _, agent := range agents {
		broken = append(broken, refused(server, agent, at, asServer)...)
		broken = append(broken, refused(agent, server, at, asClient)...)
	}
	return broken
}

// asServer and asClient are in what part a side presents its certificate. What
// a server has it sends; a client chooses.
const (
	asServer = iota
	asClient
)

// refused are the combinations in which the presenter fails to convince the
// verifier.
func refused(presenter, verifier Side, at time.Time, part int) []Pair {
	pair := Pair{Presenter: presenter.Name, Verifier: verifier.Name}
	switch {
	case len(presenter.Chains) == 0:
		pair.Problem = errNoChain
		return []Pair{pair}
	case len(verifier.Trusts) == 0:
		pair.Problem = errNoTrust
		return []Pair{pair}
	}
	var broken []Pair
	for _, pair.Trust = range verifier.Trusts {
		for _, pair.Chain = range presenter.Chains {
			if part == asClient && !offered(pair.Chain, pair.Trust) {
				pair.Problem = errNotOffered
			} else {
				pair.Problem = pki.Peer{Trust: pair.Trust, Usage: x509.ExtKeyUsageAny, At: inLife(pair.Chain[0], at)}.Verify(pair.Chain)
			}
			if pair.Problem != nil {
				broken = append(broken, pair)
			}
		}
	}
	return broken
}

// inLife is the time itself, or the end of a leaf that has ended by then. What
// is above an ended leaf is judged as of its end too: it may be what a rotation
// replaces, and what is issued from now on is judged by what is in flight.
func inLife(leaf *x509.Certificate, at time.Time) time.Time {
	if leaf.NotAfter.Before(at) {
		return leaf.NotAfter
	}
	return at
}

// offered says that a client with this chain sends it. The server names the
// CAs that it accepts, and a client in Go looks for one of them among the
// issuers of its chain (crypto/tls, CertificateRequestInfo.SupportsCertificate);
// a server that names none is sent anything. A client that brings its own
// choice, with tls.Config.GetClientCertificate, sends what the server refuses.
func offered(chain, trust []*x509.Certificate) bool {
	for _, c := range chain {
		for _, anchor := range trust {
			if bytes.Equal(c.RawIssuer, anchor.RawSubject) {
				return true
			}
		}
	}
	return len(trust) == 0
}
