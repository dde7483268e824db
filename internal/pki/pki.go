// Package pki reasons about X.509 certificates: what a chain is, whether it
// verifies, who signed whom and how lifetimes nest. It is pure: no clock, no
// network, no keys.
package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ParseChain reads the certificates of a PEM text in their order. Anything
// else in it is an error, and so is a text without a certificate. Errors never
// quote the text, which may be where a private key was put by mistake.
func ParseChain(text []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return nil, fmt.Errorf("there is something that is not PEM after %d certificates", len(chain))
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %d is a %q, not a CERTIFICATE", len(chain)+1, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(chain)+1, err)
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return chain, nil
}

// EncodeChain is the PEM text of certificates, in their order.
func EncodeChain(chain ...*x509.Certificate) []byte {
	var text bytes.Buffer
	for _, c := range chain {
		text.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return text.Bytes()
}

// Hex is the form in which Vault and openssl print serials and key identifiers:
// lower-case pairs with colons.
func Hex(id []byte) string {
	pairs := make([]string, len(id))
	for i, b := range id {
		pairs[i] = hex.EncodeToString([]byte{b})
	}
	return strings.Join(pairs, ":")
}

// Serial is a certificate's serial number as Vault prints it.
func Serial(c *x509.Certificate) string { return Hex(c.SerialNumber.Bytes()) }

// SelfSigned is true when the certificate's own key signed it. Equal subject
// and issuer alone do not make it so: a bridge carries the name of the root
// that it stands for.
func SelfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) &&
		c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// SignedBy says why parent is not the signer of child, or nil. Lineage is by
// name, key identifiers where both have them, and the signature: names alone
// repeat across generations.
func SignedBy(child, parent *x509.Certificate) error {
	switch {
	case !bytes.Equal(child.RawIssuer, parent.RawSubject):
		return fmt.Errorf("%s names %q as its issuer, not %q", Name(child), child.Issuer, parent.Subject)
	case len(child.AuthorityKeyId) > 0 && len(parent.SubjectKeyId) > 0 && !bytes.Equal(child.AuthorityKeyId, parent.SubjectKeyId):
		return fmt.Errorf("%s was signed by the key %s, and %s has the key %s",
			Name(child), Hex(child.AuthorityKeyId), Name(parent), Hex(parent.SubjectKeyId))
	}
	if err := child.CheckSignatureFrom(parent); err != nil {
		return fmt.Errorf("%s is not signed by %s: %w", Name(child), Name(parent), err)
	}
	return nil
}

// SameKey is true when both certificates are for one public key.
func SameKey(a, b *x509.Certificate) bool {
	return bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo)
}

// Linear says why a chain, leaf first, is not one line in which each
// certificate is signed by the next, or nil. Clients differ in what else they
// forgive, cert-manager forgives little, and then at random.
func Linear(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("the chain is empty")
	}
	seen := map[string]bool{}
	for i, c := range chain {
		if seen[string(c.Raw)] {
			return fmt.Errorf("%s is in the chain twice", Name(c))
		}
		seen[string(c.Raw)] = true
		if i == 0 {
			continue
		}
		// A self-signed certificate ends a line, and a bridge that stands for it
		// is no signer of it, although name, key and signature fit.
		if SelfSigned(chain[i-1]) {
			return fmt.Errorf("%s is self-signed and not the last of the chain", Name(chain[i-1]))
		}
		if err := SignedBy(chain[i-1], c); err != nil {
			return err
		}
	}
	return nil
}

// Nested says which certificate of a chain, leaf first, outlives the next one
// or nil. A relying party stops accepting a leaf when the
// first certificate above it ends.
func Nested(chain []*x509.Certificate) error {
	for i := 1; i < len(chain); i++ {
		child, parent := chain[i-1], chain[i]
		if child.NotAfter.After(parent.NotAfter) {
			return fmt.Errorf("%s is valid until %s, longer than its issuer %s (until %s)",
				Name(child), Date(child.NotAfter), Name(parent), Date(parent.NotAfter))
		}
	}
	return nil
}

// Peer says whom a chain has to convince and of what.
type Peer struct {
	// Trust are the anchors.
	Trust []*x509.Certificate
	// Name is the DNS name the leaf must have; empty for any.
	Name string
	// Usage is x509.ExtKeyUsageServerAuth or x509.ExtKeyUsageClientAuth.
	Usage x509.ExtKeyUsage
	// At is the time of the handshake.
	At time.Time
}

// Verify says why the peer would refuse the chain, leaf first, or nil. It is
// what crypto/tls does in a handshake, so the answer holds for programs in Go.
func (p Peer) Verify(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("the chain is empty")
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         Pool(p.Trust),
		Intermediates: Pool(chain[1:]),
		DNSName:       p.Name,
		KeyUsages:     []x509.ExtKeyUsage{p.Usage},
		CurrentTime:   p.At,
	})
	return err
}

// Pool makes a pool of certificates.
func Pool(certificates []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certificates {
		pool.AddCert(c)
	}
	return pool
}

// Name is what to call a certificate in a message: its subject, or its first
// DNS name, with its serial.
func Name(c *x509.Certificate) string {
	name := c.Subject.CommonName
	if name == "" && len(c.DNSNames) > 0 {
		name = c.DNSNames[0]
	}
	return fmt.Sprintf("%q (serial %s)", name, Serial(c))
}

// Date is how times of certificates are written in messages.
func Date(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }
