package pki

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Where the root is kept outside Vault, people make the next one too. What they
// carry back is three certificates at once, because each depends on the others:
// made one by one, a mistake in the first would be found with the last.

// NewRoot is what people bring back when a root that is kept outside Vault is
// replaced.
type NewRoot struct {
	// Intermediate is for the CSR, signed by Root.
	Intermediate *x509.Certificate
	// Root is the new root, self-signed.
	Root *x509.Certificate
	// Bridge is the new root's name and key, signed by the root at work.
	Bridge *x509.Certificate
}

// Chain is the certificates in the order of the fields.
func (n NewRoot) Chain() []*x509.Certificate {
	return []*x509.Certificate{n.Intermediate, n.Root, n.Bridge}
}

// NewRootWant is what a new root, its bridge and its intermediate have to be,
// beside fitting each other and the CSR.
type NewRootWant struct {
	// Old is the root at work, which every member trusts.
	Old *x509.Certificate
	// At is the time of judgement.
	At time.Time
	// MinLife is what each must have left to live.
	MinLife time.Duration
}

// CheckNewRoot finds out which certificate is which, whatever their order, and says
// all that is wrong with them. With no problem none of the three is nil, and every
// chain that the intermediate issues verifies under the new root and, over the
// bridge, under the old one.
func CheckNewRoot(csr *x509.CertificateRequest, certificates []*x509.Certificate, want NewRootWant) (NewRoot, []error) {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	found := sortOut(csr, certificates, want.Old, bad)
	about := func(what string, found []error) {
		for _, err := range found {
			bad("%s: %w", what, err)
		}
	}
	if c := found.Root; c == nil {
		bad("there is no new root in it: one that is self-signed, with a key and a name that are not those of the root at work, %s", Name(want.Old))
	} else {
		about("the new root", append(CheckRoot(c), succeeds(c, csr, want)...))
	}
	if c := found.Bridge; c == nil {
		bad("there is no bridge in it: the new root's subject and key, signed by the root at work, %s", Name(want.Old))
	} else {
		about("the bridge", append(bridgesFrom(c, want.Old), lifeProblems(c, want.At, want.MinLife)...))
		if len(c.UnhandledCriticalExtensions) > 0 {
			bad("the bridge: it has critical extensions that TLS in Go does not know (%s)", oids(c.UnhandledCriticalExtensions))
		}
		if found.Root != nil {
			about("the bridge", standsFor(c, found.Root))
		}
	}
	if c := found.Intermediate; c == nil {
		bad("there is no certificate for the CSR's key, %s, in it: have the CSR signed by the new root", KeyFingerprint(csr.RawSubjectPublicKeyInfo))
	} else {
		about("the intermediate", append(answers(csr, c), lifeProblems(c, want.At, want.MinLife)...))
		if found.Root != nil {
			about("the intermediate", ofRoot(c, found.Root))
		}
	}
	return found, problems
}

// sortOut finds out which certificate is meant to be which, as far as that can be
// told of wrong ones, and says what else is there that should not be.
func sortOut(csr *x509.CertificateRequest, certificates []*x509.Certificate, old *x509.Certificate, bad func(string, ...any)) NewRoot {
	var found NewRoot
	var rest []*x509.Certificate
	for i, c := range certificates {
		switch {
		case slices.ContainsFunc(certificates[:i], c.Equal):
			bad("%s is in it twice", Name(c))
		case c.Equal(old):
			bad("the root at work, %s, is in it: the new root is another, and the old one is not asked for; leave it out", Name(c))
		case found.Intermediate == nil && sameKey(csr.PublicKey, c.PublicKey):
			found.Intermediate = c
		case found.Root == nil && SelfSigned(c):
			found.Root = c
		default:
			rest = append(rest, c)
		}
	}
	// take moves the first that is like that out of the rest.
	take := func(into **x509.Certificate, like func(*x509.Certificate) bool) {
		if i := slices.IndexFunc(rest, like); i >= 0 && *into == nil {
			*into = rest[i]
			rest = slices.Delete(rest, i, i+1)
		}
	}
	take(&found.Bridge, func(c *x509.Certificate) bool { return found.Root != nil && SameKey(c, found.Root) })
	take(&found.Bridge, func(c *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, old.RawSubject) })
	take(&found.Intermediate, func(*x509.Certificate) bool { return true })
	take(&found.Bridge, func(*x509.Certificate) bool { return true })
	for _, c := range rest {
		bad("%s is one too many: hand in the intermediate, the new root and the bridge, and nothing else", Name(c))
	}
	return found
}

// succeeds says in what a root cannot follow the one at work.
func succeeds(root *x509.Certificate, csr *x509.CertificateRequest, want NewRootWant) []error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if SameKey(root, want.Old) {
		bad("it has the key of the root at work, %s: a new root has a new key", Name(want.Old))
	}
	// A server says whom it trusts by names alone.
	switch name := root.Subject.CommonName; name {
	case "":
		bad("it has no common name, by which it is told from the root at work")
	case want.Old.Subject.CommonName:
		bad("it has the common name of the root at work, %q: whom a server trusts is seen by names alone, so it needs another", name)
	case csr.Subject.CommonName:
		bad("it has the common name of the intermediate, %q: it needs another", name)
	}
	if limited(root) && root.MaxPathLen == 1 {
		bad("it has path length 1, so that it could not vouch for the root after it; it needs none, or 2")
	}
	if len(root.SubjectKeyId) == 0 {
		bad("it has no subject key identifier, by which certificates are told whose they are: have it made with subjectKeyIdentifier=hash")
	}
	if constrained(root) {
		bad("it has name constraints, and clusters whose names are not known yet will need certificates under it")
	}
	return append(problems, lifeProblems(root, want.At, want.MinLife)...)
}
