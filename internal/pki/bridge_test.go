package pki_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
)

func TestMayBridge(t *testing.T) {
	const life = 100 * time.Hour
	for _, test := range []struct {
		name   string
		change pkitest.Option
		err    string
	}{
		{"a root", func(*x509.Certificate) {}, ""},
		{"path length 2", func(c *x509.Certificate) { c.MaxPathLen = 2 }, ""},
		{"path length 1", func(c *x509.Certificate) { c.MaxPathLen = 1 }, "path length 1"},
		{"path length 0", func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }, "path length 0"},
		{"no CA", func(c *x509.Certificate) { c.IsCA = false }, "no CA certificate"},
		{"no key usage", func(c *x509.Certificate) { c.KeyUsage = 0 }, ""},
		{"another key usage", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }, "may not sign certificates"},
		{"long enough", pkitest.Valid(-life, life), ""},
		{"a second too short", pkitest.Valid(-life, life-time.Second), "ends 2026-07-05 15:59 UTC"},
		{"expired", pkitest.Valid(-2*life, -life), "has ended"},
		{"not yet", pkitest.Valid(time.Hour, 10*life), "valid from"},
	} {
		t.Run(test.name, func(t *testing.T) {
			expect(t, pki.MayBridge(pkitest.Root(t, "R1", test.change).Cert, life, pkitest.Now), test.err)
		})
	}
}

func TestCheckBridge(t *testing.T) {
	r1, r2 := pkitest.Root(t, "R1"), pkitest.Root(t, "R2")
	named := pkitest.Pair{Cert: pkitest.Root(t, "R3").Cert, Key: r2.Key}
	for _, test := range []struct {
		name   string
		bridge *x509.Certificate
		err    string
	}{
		{"a bridge", r1.Cross(t, r2).Cert, ""},
		{"path length 1", r1.Cross(t, r2, func(c *x509.Certificate) { c.MaxPathLen = 1 }).Cert, ""},
		{"path length 0", r1.Cross(t, r2, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }).Cert, "path length 0"},
		{"no CA", r1.Cross(t, r2, func(c *x509.Certificate) { c.IsCA = false }).Cert, "no CA certificate"},
		{"another key", r1.Cross(t, pkitest.Root(t, "R2")).Cert, "for another key"},
		{"another name", r1.Cross(t, named).Cert, "has the subject"},
		{"another key identifier", r1.Cross(t, r2, func(c *x509.Certificate) { c.SubjectKeyId = []byte{1} }).Cert, "has the key identifier 01"},
		{"another key usage", r1.Cross(t, r2, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }).Cert, "may not sign certificates"},
		{"for servers alone", r1.Cross(t, r2, pkitest.Usages(x509.ExtKeyUsageServerAuth)).Cert, "is limited"},
		{"for some names", r1.Cross(t, r2, func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"a.example"} }).Cert, "is limited"},
		{"of another root", pkitest.Root(t, "R1").Cross(t, r2).Cert, "was signed by the key"},
		{"the root itself", r2.Cert, "as its issuer"},
		{"longer than the old root", r1.Cross(t, r2, pkitest.Valid(0, 21*365*24*time.Hour)).Cert, "longer than its issuer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			expect(t, pki.CheckBridge(test.bridge, r1.Cert, r2.Cert), test.err)
		})
	}
}
