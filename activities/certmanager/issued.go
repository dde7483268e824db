package certmanager

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cert-manager/cert-manager/pkg/util/pki"

	ourpki "github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
)

// compareIssued compares the issued chain with what was asked for and returns
// the leaf and every difference.
func compareIssued(in CertificateInput, chainPEM, caPEM []byte) (procedure.Leaf, []string) {
	var problems []string
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }

	chain, err := pki.DecodeX509CertificateChainBytes(chainPEM)
	if err != nil {
		bad("the issued chain cannot be read: %v", err)
		return procedure.Leaf{}, problems
	}
	leaf := chain[0]
	result := procedure.Leaf{
		Serial:         serial(leaf),
		DNSNames:       leaf.DNSNames,
		AuthorityKeyID: colons(leaf.AuthorityKeyId),
		NotAfter:       leaf.NotAfter,
	}
	cert := in.Certificate
	if !slices.Equal(sorted(leaf.DNSNames), sorted(cert.DNSNames)) {
		bad("DNS names are %s, asked for were %s", strings.Join(sorted(leaf.DNSNames), ", "), strings.Join(sorted(cert.DNSNames), ", "))
	}
	if len(leaf.IPAddresses)+len(leaf.URIs)+len(leaf.EmailAddresses) > 0 {
		bad("it has names of other kinds than DNS, which nobody asked for")
	}
	if leaf.Subject.CommonName != cert.CommonName {
		bad("the common name is %q, asked for was %q", leaf.Subject.CommonName, cert.CommonName)
	}
	if algorithm, size := keyOf(leaf); algorithm != cert.KeyAlgorithm || size != cert.KeySize {
		bad("the key is %s %d, asked for was %s %d", algorithm, size, cert.KeyAlgorithm, cert.KeySize)
	}
	if asked := cert.Duration.Duration; !ourpki.LivesFor(leaf.NotBefore, leaf.NotAfter, asked) {
		bad("it lives %s, asked for was %s", leaf.NotAfter.Sub(leaf.NotBefore).Round(time.Second), asked)
	}
	if want := x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment; leaf.KeyUsage&want != want {
		bad("it lacks the usages digital signature and key encipherment")
	}
	if in.Server && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		bad("it lacks the usage server auth")
	}
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		bad("it lacks the usage client auth")
	}
	if !in.Server && !in.Shared && slices.ContainsFunc(leaf.ExtKeyUsage, func(u x509.ExtKeyUsage) bool { return u != x509.ExtKeyUsageClientAuth }) {
		bad("it has more usages than client auth, so it could be shown as another's server")
	}
	if leaf.IsCA {
		bad("it is a CA certificate")
	}
	return result, append(problems, signerProblems(in, chain, caPEM)...)
}

// signerProblems compares who has signed, and ca.crt, with who should have.
func signerProblems(in CertificateInput, chain []*x509.Certificate, caPEM []byte) []string {
	intermediate, err := pki.DecodeX509CertificateBytes([]byte(in.IntermediatePEM))
	if err != nil {
		return []string{"the intermediate to compare with cannot be read"}
	}
	root, err := pki.DecodeX509CertificateBytes([]byte(in.RootPEM))
	if err != nil {
		return []string{"the root to compare with cannot be read"}
	}
	var bridge *x509.Certificate
	if in.BridgePEM != "" {
		if bridge, err = pki.DecodeX509CertificateBytes([]byte(in.BridgePEM)); err != nil {
			return []string{"the bridge to compare with cannot be read"}
		}
	}
	var problems []string
	leaf := chain[0]
	if err := leaf.CheckSignatureFrom(intermediate); err != nil {
		problems = append(problems, fmt.Sprintf("it is signed by %q (key %s), not by the intermediate %q (key %s)",
			leaf.Issuer.CommonName, colons(leaf.AuthorityKeyId), intermediate.Subject.CommonName, colons(intermediate.SubjectKeyId)))
	} else if !bytes.Equal(leaf.AuthorityKeyId, intermediate.SubjectKeyId) {
		problems = append(problems, fmt.Sprintf("its authority key id is %s, not the intermediate's %s", colons(leaf.AuthorityKeyId), colons(intermediate.SubjectKeyId)))
	}
	cas, err := pki.DecodeX509CertificateSetBytes(caPEM)
	switch {
	case err != nil:
		problems = append(problems, "ca.crt is empty or cannot be read")
	case len(cas) != 1 || !cas[0].Equal(root):
		problems = append(problems, fmt.Sprintf("ca.crt is %s, not %s: the chain that Vault returns is not the one up to it", named(cas), named([]*x509.Certificate{root})))
	}
	if len(problems) > 0 {
		return problems
	}
	if problem := aboveProblem(chain, intermediate, bridge); problem != "" {
		return []string{problem}
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	// At a moment of its own life: a leaf about to expire is cert-manager's business.
	at := leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		problems = append(problems, fmt.Sprintf("its chain does not lead to ca.crt: %v", err))
	}
	return problems
}

// aboveProblem says what is wrong with what is above the leaf in its chain: it is to
// be the intermediate, and above that the bridge, or nothing; empty if nothing is
// wrong. A root at the end is passed over, as cert-manager does. The intermediate may
// be another certificate of that key.
func aboveProblem(chain []*x509.Certificate, intermediate, bridge *x509.Certificate) string {
	if end := chain[len(chain)-1]; end.CheckSignatureFrom(end) == nil {
		chain = chain[:len(chain)-1]
	}
	if len(chain) < 2 || !bytes.Equal(chain[1].RawSubjectPublicKeyInfo, intermediate.RawSubjectPublicKeyInfo) {
		return fmt.Sprintf("the intermediate %s is not above it in its chain, so that it does not lead to ca.crt", named([]*x509.Certificate{intermediate}))
	}
	above := chain[2:]
	switch {
	case bridge == nil && len(above) > 0:
		return fmt.Sprintf("%s is above the intermediate in its chain, where nothing is to be: the bridge is still in its chain", named(above))
	case bridge != nil && len(above) == 0:
		return fmt.Sprintf("the bridge %s is not in its chain", named([]*x509.Certificate{bridge}))
	case bridge != nil && (len(above) != 1 || !above[0].Equal(bridge)):
		return fmt.Sprintf("%s is above the intermediate in its chain, where the bridge %s alone is to be", named(above), named([]*x509.Certificate{bridge}))
	}
	return ""
}

// named are certificates in a message. A bridge has the name of its root, so the
// serial is part of it.
func named(certificates []*x509.Certificate) string {
	all := make([]string, len(certificates))
	for i, c := range certificates {
		all[i] = fmt.Sprintf("%q (serial %s)", c.Subject.CommonName, serial(c))
	}
	return strings.Join(all, ", ")
}

// keyOf is the key's algorithm and size in cert-manager's words.
func keyOf(cert *x509.Certificate) (string, int) {
	switch key := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		return "RSA", key.N.BitLen()
	case *ecdsa.PublicKey:
		return "ECDSA", key.Curve.Params().BitSize
	default:
		return cert.PublicKeyAlgorithm.String(), 0
	}
}

func serial(cert *x509.Certificate) string { return colons(cert.SerialNumber.Bytes()) }

// colons is the way Vault and openssl write serials and key ids.
func colons(b []byte) string {
	parts := make([]string, len(b))
	for i := range b {
		parts[i] = hex.EncodeToString(b[i : i+1])
	}
	return strings.Join(parts, ":")
}
