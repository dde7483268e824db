package rotation

import (
	"bytes"
	"crypto/x509"
	"errors"
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
	// Chain and Trust are the combination that does.
	Chain, Trust []*x509.Certificate
	Problem      error
}

// Broken are the handshakes between the server and an agent that would fail, in
// any combination of what either may present and trust. It computes what
// crypto/tls does; names and usages are not judged, as they do not change when
// a CA is rotated, and a throwaway certificate that shows what Vault would
// return has neither.
func Broken(server Side, agents []Side, at time.Time) []Pair {
	var broken []Pair
	for _, agent := range agents {
		broken = append(broken, refused(server, agent, at, false)...)
		broken = append(broken, refused(agent, server, at, true)...)
	}
	return broken
}

// refused are the combinations in which the verifier does not accept what is
// presented to it, or, asked for its certificate as a client, the presenter has
// none that fits.
func refused(presenter, verifier Side, at time.Time, client bool) []Pair {
	var broken []Pair
	for _, trust := range verifier.Trusts {
		for _, chain := range presenter.Chains {
			err := pki.Peer{Trust: trust, Usage: x509.ExtKeyUsageAny, At: at}.Verify(chain)
			if err == nil && client && !offered(chain, trust) {
				err = errNotOffered
			}
			if err != nil {
				broken = append(broken, Pair{Presenter: presenter.Name, Verifier: verifier.Name, Chain: chain, Trust: trust, Problem: err})
			}
		}
	}
	return broken
}

var errNotOffered = errors.New("none of its issuers is named by the server, so the client sends no certificate")

// offered says that a client whose chain this is sends it: the server names the
// CAs that it accepts, and Go looks for one among the chain's issuers
// (crypto/tls, CertificateRequestInfo.SupportsCertificate).
func offered(chain, trust []*x509.Certificate) bool {
	for _, c := range chain {
		for _, anchor := range trust {
			if bytes.Equal(c.RawIssuer, anchor.RawSubject) {
				return true
			}
		}
	}
	return false
}
