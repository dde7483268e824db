// Package pkitest makes CAs and certificates for tests.
package pkitest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"
)

// Now is the time at which tests judge; certificates are valid around it.
var Now = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// Pair is a certificate with its key.
type Pair struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
}

// Option changes a certificate before it is signed.
type Option func(*x509.Certificate)

// Valid sets the lifetime relative to Now.
func Valid(from, until time.Duration) Option {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = Now.Add(from), Now.Add(until) }
}

// Usages sets the extended usages.
func Usages(usages ...x509.ExtKeyUsage) Option {
	return func(c *x509.Certificate) { c.ExtKeyUsage = usages }
}

var serial = big.NewInt(0x1000)

func sign(t testing.TB, template *x509.Certificate, key *ecdsa.PrivateKey, signer *Pair, options []Option) Pair {
	t.Helper()
	serial = new(big.Int).Add(serial, big.NewInt(1))
	template.SerialNumber = serial
	for _, o := range options {
		o(template)
	}
	parent, parentKey := template, key
	if signer != nil {
		parent, parentKey = signer.Cert, signer.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return Pair{c, key}
}

// Key makes a key.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func caTemplate(t testing.TB, name string, key *ecdsa.PrivateKey, life time.Duration) *x509.Certificate {
	t.Helper()
	public, err := key.PublicKey.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	id := sha1.Sum(public.Bytes())
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, SubjectKeyId: id[:],
		NotBefore: Now.Add(-24 * time.Hour), NotAfter: Now.Add(life),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// Root makes a self-signed root that lives for 20 years.
func Root(t testing.TB, name string, options ...Option) Pair {
	t.Helper()
	key := Key(t)
	return sign(t, caTemplate(t, name, key, 20*365*24*time.Hour), key, nil, options)
}

// Intermediate makes a CA under this one that lives for 5 years.
func (p Pair) Intermediate(t testing.TB, name string, options ...Option) Pair {
	t.Helper()
	key := Key(t)
	return sign(t, caTemplate(t, name, key, 5*365*24*time.Hour), key, &p, options)
}

// Cross signs another CA's subject and key with this one: a bridge.
func (p Pair) Cross(t testing.TB, other Pair, options ...Option) Pair {
	t.Helper()
	return sign(t, caTemplate(t, other.Cert.Subject.CommonName, other.Key, 5*365*24*time.Hour), other.Key, &p, options)
}

// Leaf makes a certificate for server and client use with these DNS names that
// began an hour ago and lives for 23 more.
func (p Pair) Leaf(t testing.TB, names []string, options ...Option) Pair {
	t.Helper()
	return sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: Now.Add(-time.Hour), NotAfter: Now.Add(23 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, Key(t), &p, options)
}

// TLS is the pair with the certificates above it, as crypto/tls takes it.
func (p Pair) TLS(above ...Pair) tls.Certificate {
	out := tls.Certificate{Certificate: [][]byte{p.Cert.Raw}, PrivateKey: p.Key, Leaf: p.Cert}
	for _, a := range above {
		out.Certificate = append(out.Certificate, a.Cert.Raw)
	}
	return out
}

// Resigned is the self-signed certificate of this key under another name.
func (p Pair) Resigned(t testing.TB, name string, options ...Option) *x509.Certificate {
	t.Helper()
	return sign(t, caTemplate(t, name, p.Key, 20*365*24*time.Hour), p.Key, nil, options).Cert
}
