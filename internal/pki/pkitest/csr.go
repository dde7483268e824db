package pkitest

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// CSR makes a certificate request, and its PEM.
func CSR(t testing.TB, key *ecdsa.PrivateKey, subject pkix.Name) (*x509.CertificateRequest, string) {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// SignCSR is what whoever keeps this root answers to a CSR: an intermediate for
// 5 years, as it should be, changed by the options.
func (p Pair) SignCSR(t testing.TB, csr *x509.CertificateRequest, options ...Option) *x509.Certificate {
	t.Helper()
	serial = new(big.Int).Add(serial, big.NewInt(1))
	id := sha1.Sum(csr.RawSubjectPublicKeyInfo)
	template := &x509.Certificate{
		SerialNumber: serial, RawSubject: csr.RawSubject, SubjectKeyId: id[:],
		NotBefore: Now.Add(-time.Hour), NotAfter: Now.Add(5 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: 0, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	for _, o := range options {
		o(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, p.Cert, csr.PublicKey, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
