package pki

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"time"
)

// MayBridge says why a root cannot, from now on, vouch for another root's key by a
// bridge of that life, with an intermediate and its leaves below the bridge; or nil.
func MayBridge(root *x509.Certificate, life time.Duration, now time.Time) error {
	if err := maySign(root); err != nil {
		return err
	}
	switch {
	case limited(root) && root.MaxPathLen < 2:
		return fmt.Errorf("%s has path length %d, and a bridge with an intermediate below it needs 2", Name(root), root.MaxPathLen)
	case now.Before(root.NotBefore):
		return fmt.Errorf("%s is valid from %s on", Name(root), Date(root.NotBefore))
	case now.After(root.NotAfter):
		return fmt.Errorf("%s has ended, %s", Name(root), Date(root.NotAfter))
	case now.Add(life).After(root.NotAfter):
		return fmt.Errorf("%s ends %s, and a bridge, which ends with it, has to last for %s", Name(root), Date(root.NotAfter), life)
	}
	return nil
}

// CheckBridge says in what a certificate is not the bridge over which what the new
// root has signed leads to the old one, or nil. A chain is built by name and key
// identifier, so that both have to be the new root's, byte for byte.
func CheckBridge(bridge, old, root *x509.Certificate) error {
	for _, problem := range append(standsFor(bridge, root), bridgesFrom(bridge, old)...) {
		return problem
	}
	return nil
}

// standsFor says all in which a bridge is not the new root with another signature.
func standsFor(bridge, root *x509.Certificate) []error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if !SameKey(bridge, root) {
		bad("%s is for another key than the new root %s", Name(bridge), Name(root))
	}
	if !bytes.Equal(bridge.RawSubject, root.RawSubject) {
		bad("%s has the subject %q, and the new root %q, or the same in other bytes", Name(bridge), bridge.Subject, root.Subject)
	}
	if !bytes.Equal(bridge.SubjectKeyId, root.SubjectKeyId) {
		bad("%s has the key identifier %s, and the new root %s", Name(bridge), Hex(bridge.SubjectKeyId), Hex(root.SubjectKeyId))
	}
	return problems
}

// bridgesFrom says all that keeps a bridge from vouching, by the old root, for an
// intermediate and whatever that issues.
func bridgesFrom(bridge, old *x509.Certificate) []error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if !bridge.IsCA || !bridge.BasicConstraintsValid {
		bad("%s is no CA certificate", Name(bridge))
	} else if limited(bridge) && bridge.MaxPathLen < 1 {
		bad("%s allows no intermediate below it (path length 0)", Name(bridge))
	}
	if bridge.KeyUsage != 0 && bridge.KeyUsage&x509.KeyUsageCertSign == 0 {
		bad("%s may not sign certificates: its key usage lacks it", Name(bridge))
	}
	if !anyUse(bridge) || constrained(bridge) {
		bad("%s is limited to some names or uses", Name(bridge))
	}
	if err := SignedBy(bridge, old); err != nil {
		problems = append(problems, err)
	}
	if err := Nested([]*x509.Certificate{bridge, old}); err != nil {
		problems = append(problems, err)
	}
	return problems
}

// limited says that there is a path length.
func limited(c *x509.Certificate) bool {
	return c.MaxPathLen > 0 || c.MaxPathLen == 0 && c.MaxPathLenZero
}
