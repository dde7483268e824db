package pki

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"
)

// A root may be kept where no program of ours reaches it. People carry a CSR to
// it and a certificate back, and the ways in which that goes wrong are known.

// SignedWant is what an intermediate's certificate from elsewhere has to be,
// beside being for the CSR.
type SignedWant struct {
	// Root is the one that every member trusts, or will.
	Root *x509.Certificate
	// At is the time of judgement.
	At time.Time
	// MinLife is what it must have left to live.
	MinLife time.Duration
}

// ParseSigned reads the certificates that somebody hands in. A private key among
// them is named for what it is, so that whoever sent it knows; nothing of the
// text is quoted.
func ParseSigned(text []byte) ([]*x509.Certificate, error) {
	if HasPrivateKey(text) {
		return nil, errors.New("there is a private key in it, which must not leave the place where it is kept; take it out and hand in the certificate alone. Nothing of it was kept; whether it is still a secret is for you to judge")
	}
	return ParseChain(text)
}

// HasPrivateKey says whether there is a private key in a PEM text, whole or in
// part, of any kind.
func HasPrivateKey(text []byte) bool { return bytes.Contains(text, []byte("PRIVATE KEY")) }

// ParseCSR reads a certificate request in PEM and proves that whoever made it
// has the key.
func ParseCSR(text []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("it is not a CERTIFICATE REQUEST in PEM form")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	return csr, csr.CheckSignature()
}

// CheckSigned says all that is wrong with an intermediate that was signed
// elsewhere: the certificate alone, or followed by its root. None means that
// every chain it issues verifies under the root, now and for as long as it lives.
func CheckSigned(csr *x509.CertificateRequest, chain []*x509.Certificate, want SignedWant) []error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	c := order(chain, want.Root, bad)
	if c == nil {
		return problems
	}
	problems = append(problems, answers(csr, c)...)
	problems = append(problems, lifeProblems(c, want.At, want.MinLife)...)
	problems = append(problems, ofRoot(c, want.Root)...)
	if want.Root.MaxPathLen == 0 {
		bad("the root %s has path length 0: it allows no intermediate at all", Name(want.Root))
	}
	return problems
}

// answers says in what an intermediate's certificate is not what its CSR asks for,
// or not an intermediate that is of use to a mesh.
func answers(csr *x509.CertificateRequest, c *x509.Certificate) []error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if !sameKey(csr.PublicKey, c.PublicKey) {
		bad("it is for another key, %s, than the CSR, %s: have the CSR itself signed", KeyFingerprint(c.RawSubjectPublicKeyInfo), KeyFingerprint(csr.RawSubjectPublicKeyInfo))
	}
	if !sameName(c.RawSubject, csr.RawSubject) {
		bad("its subject is %q, the CSR's %q: have it signed with the CSR's subject as it is", c.Subject, csr.Subject)
	}
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		bad("it is no CA certificate: its basic constraints have to say CA:TRUE")
	case c.KeyUsage&x509.KeyUsageCertSign == 0:
		bad("its key usage does not let it sign certificates: it has to have keyCertSign (and cRLSign)")
	}
	if !anyUse(c) {
		bad("its extended key usage leaves out server or client authentication, which the relay's certificates need: have it signed without one")
	}
	if constrained(c) {
		bad("it has name constraints, and clusters whose names are not known yet will need certificates from it: have it signed without")
	}
	if len(c.UnhandledCriticalExtensions) > 0 {
		bad("it has critical extensions that TLS in Go does not know (%s): every handshake would fail", oids(c.UnhandledCriticalExtensions))
	}
	if len(c.SubjectKeyId) == 0 {
		bad("it has no subject key identifier, by which certificates are told whose they are: have it signed with subjectKeyIdentifier=hash")
	}
	return problems
}

// ofRoot says why an intermediate is not the root's.
func ofRoot(c, root *x509.Certificate) []error {
	var problems []error
	if err := Nested([]*x509.Certificate{c, root}); err != nil {
		problems = append(problems, err)
	}
	if err := SignedBy(c, root); SelfSigned(c) {
		problems = append(problems, fmt.Errorf("it is self-signed: the root %s has not signed it", Name(root)))
	} else if err != nil {
		problems = append(problems, err)
	}
	return problems
}

// order finds the intermediate in what was handed in, and says what else is
// there that should not be. It is nil if there is nothing to judge.
func order(chain []*x509.Certificate, root *x509.Certificate, bad func(string, ...any)) *x509.Certificate {
	switch {
	case len(chain) == 0:
		bad("there is no certificate in it")
		return nil
	case len(chain) == 1 && chain[0].Equal(root):
		bad("it is the root itself, %s: hand in the intermediate that it has signed", Name(root))
		return nil
	case len(chain) > 2:
		bad("there are %d certificates in it: hand in the intermediate alone, or the intermediate and then its root", len(chain))
	case len(chain) == 2 && chain[0].Equal(root):
		bad("the root comes first: the intermediate has to, and then its root")
		return chain[1]
	case len(chain) == 2 && !chain[1].Equal(root):
		bad("the second certificate, %s, is not the root of this mesh, %s: hand in the intermediate alone, or the intermediate and then its root", Name(chain[1]), Name(root))
	}
	return chain[0]
}

// lifeProblems says why a certificate is of no use at a time, and for as long as
// it has to be from then on.
func lifeProblems(c *x509.Certificate, at time.Time, least time.Duration) []error {
	var problems []error
	left := c.NotAfter.Sub(at)
	switch {
	case at.Before(c.NotBefore):
		problems = append(problems, fmt.Errorf("it is valid from %s on, and now it is %s: compare the clock of the machine that signed it, or wait", Date(c.NotBefore), Date(at)))
	case left <= 0:
		problems = append(problems, fmt.Errorf("it expired at %s", Date(c.NotAfter)))
	}
	if left > 0 && left < least {
		problems = append(problems, fmt.Errorf("it is valid until %s: too short, it has to be until %s at least", Date(c.NotAfter), Date(at.Add(least))))
	}
	return problems
}

// CheckRoot says all that keeps a certificate from being the root of a mesh,
// whatever the time.
func CheckRoot(c *x509.Certificate) []error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if !SelfSigned(c) {
		bad("%s is not self-signed, so it is no root", Name(c))
	}
	if !c.BasicConstraintsValid || !c.IsCA {
		bad("%s is no CA certificate", Name(c))
	} else if c.MaxPathLen == 0 {
		bad("%s has path length 0: it allows no intermediate", Name(c))
	}
	// Many an old root has no key usage at all, which allows everything.
	if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
		bad("the key usage of %s does not let it sign certificates", Name(c))
	}
	if !anyUse(c) {
		bad("the extended key usage of %s leaves out server or client authentication", Name(c))
	}
	if len(c.UnhandledCriticalExtensions) > 0 {
		bad("%s has critical extensions that TLS in Go does not know (%s)", Name(c), oids(c.UnhandledCriticalExtensions))
	}
	return problems
}

// KeyFingerprint names a public key: the SHA-256 of its SubjectPublicKeyInfo.
func KeyFingerprint(spki []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(spki)) }

// sameKey compares keys, not their encodings.
func sameKey(a, b any) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// sameName compares two names part by part. How a part is encoded (as a
// PrintableString or in UTF-8) does not count: some CAs write it anew, and what
// is issued later names its issuer as the certificate has it.
func sameName(a, b []byte) bool {
	var x, y pkix.RDNSequence
	if rest, err := asn1.Unmarshal(a, &x); err != nil || len(rest) > 0 {
		return false
	}
	if rest, err := asn1.Unmarshal(b, &y); err != nil || len(rest) > 0 {
		return false
	}
	return slices.EqualFunc(x, y, func(x, y pkix.RelativeDistinguishedNameSET) bool {
		return slices.EqualFunc(x, y, func(x, y pkix.AttributeTypeAndValue) bool {
			return x.Type.Equal(y.Type) && reflect.DeepEqual(x.Value, y.Value)
		})
	})
}

// anyUse: what a CA's extended key usage leaves out, nothing under it may be
// used for.
func anyUse(c *x509.Certificate) bool {
	if len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0 || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return true
	}
	return slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
}

func constrained(c *x509.Certificate) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(nameConstraints) })
}

var nameConstraints = asn1.ObjectIdentifier{2, 5, 29, 30} // RFC 5280, 4.2.1.10

func oids(list []asn1.ObjectIdentifier) string {
	var text bytes.Buffer
	for i, id := range list {
		if i > 0 {
			text.WriteString(", ")
		}
		text.WriteString(id.String())
	}
	return text.String()
}
