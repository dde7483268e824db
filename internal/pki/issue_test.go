package pki_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
)

func TestMayIssue(t *testing.T) {
	const life = 100 * time.Hour
	for _, test := range []struct {
		name   string
		change pkitest.Option
		err    string
	}{
		{"a root", func(*x509.Certificate) {}, ""},
		{"path length 1", func(c *x509.Certificate) { c.MaxPathLen = 1 }, ""},
		{"path length 0", func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }, "path length 0"},
		{"no CA", func(c *x509.Certificate) { c.IsCA = false }, "no CA certificate"},
		{"no key usage", func(c *x509.Certificate) { c.KeyUsage = 0 }, ""},
		{"another key usage", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }, "may not sign certificates"},
		{"long enough", pkitest.Valid(-life, life), ""},
		{"a second too short", pkitest.Valid(-life, life-time.Second), "ends 2026-07-05 15:59 UTC, before an intermediate that is made now for 100h"},
		{"expired", pkitest.Valid(-2*life, -life), "ends"},
		{"not yet", pkitest.Valid(time.Hour, 10*life), "valid from"},
	} {
		t.Run(test.name, func(t *testing.T) {
			expect(t, pki.MayIssue(pkitest.Root(t, "R1", test.change).Cert, life, pkitest.Now), test.err)
		})
	}
}
