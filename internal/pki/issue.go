package pki

import (
	"crypto/x509"
	"fmt"
	"time"
)

// MayIssue says why a root cannot, from now on, vouch for an intermediate of
// that life and for the leaves below it, or nil.
func MayIssue(root *x509.Certificate, life time.Duration, now time.Time) error {
	if err := maySign(root); err != nil {
		return err
	}
	switch {
	case root.MaxPathLen == 0 && root.MaxPathLenZero:
		return fmt.Errorf("%s allows no CA below it (path length 0)", Name(root))
	case now.Before(root.NotBefore):
		return fmt.Errorf("%s is valid from %s on", Name(root), Date(root.NotBefore))
	case now.Add(life).After(root.NotAfter):
		return fmt.Errorf("%s ends %s, before an intermediate that is made now for %s", Name(root), Date(root.NotAfter), life)
	}
	return nil
}

// maySign says why a certificate may sign no other, or nil.
func maySign(c *x509.Certificate) error {
	switch {
	case !c.IsCA || !c.BasicConstraintsValid:
		return fmt.Errorf("%s is no CA certificate", Name(c))
	// One without any key usage may be used for everything (RFC 5280, 4.2.1.3).
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%s may not sign certificates: its key usage lacks it", Name(c))
	}
	return nil
}
