package rotation

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/relaypki/relaypki/internal/pki"
)

// Lineage is the CAs of a rotation. They are recognised by their keys: names
// repeat across generations, and whoever makes a certificate chooses its name
// and its key identifier. Where an intermediate is replaced and the root stays,
// OldRoot and NewRoot are that one. What is not there yet is nil. The bridge has
// no place of its own: it is any with the new root's key that the old root signed.
type Lineage struct {
	OldRoot, NewRoot                 *x509.Certificate
	OldIntermediate, NewIntermediate *x509.Certificate
}

// ModeOf says in which mode what a member has was issued: the chain that it
// presents, leaf first, and the ca.crt beside it. A self-signed end of the chain
// is passed over, as cert-manager does. It is an error if it is none of this
// lineage, or leads nowhere: each certificate has to be signed by the next one
// and the last by ca.crt, if it is not that itself. Dates are not judged.
func ModeOf(chain, ca []*x509.Certificate, of Lineage) (Mode, error) {
	if n := len(chain); n > 1 && pki.SelfSigned(chain[n-1]) {
		chain = chain[:n-1]
	}
	switch {
	case len(chain) == 0:
		return 0, errors.New("there is no certificate")
	case len(chain) == 1:
		return 0, fmt.Errorf("%s is alone: the intermediate that signed it is not in its chain", pki.Name(chain[0]))
	case len(ca) != 1:
		return 0, fmt.Errorf("ca.crt has %d certificates, and is of one mode only if it has one", len(ca))
	}
	if err := pki.Linear(chain); err != nil {
		return 0, err
	}
	anchor, top := ca[0], chain[len(chain)-1]
	if !anchor.Equal(top) {
		// The bridge that is presented and the anchor may be two of one key.
		if err := pki.SignedBy(top, anchor); err != nil && !isKey(anchor, top) {
			return 0, fmt.Errorf("the chain does not lead to ca.crt: %w", err)
		}
	}
	intermediate, above := chain[1], chain[2:]
	root := pki.SelfSigned(anchor)
	switch {
	case isKey(intermediate, of.OldIntermediate):
		switch {
		case len(above) > 0:
			return 0, fmt.Errorf("%s is above the previous intermediate, where nothing is but its root", pki.Name(above[0]))
		case isKey(anchor, of.OldIntermediate):
			return 0, fmt.Errorf("the previous intermediate %s is pinned; unpin it before it is rotated", pki.Name(anchor))
		case root && isKey(anchor, of.NewRoot):
			return Linked, nil
		case root && isKey(anchor, of.OldRoot):
			return Old, nil
		}
	case isKey(intermediate, of.NewIntermediate):
		switch {
		case len(above) == 0 && isKey(anchor, of.NewIntermediate):
			return Pinned, nil
		case len(above) == 0 && root && isKey(anchor, of.NewRoot):
			return Final, nil
		case len(above) == 1 && isKey(above[0], of.NewRoot):
			if of.OldRoot == nil {
				return 0, fmt.Errorf("%s is a bridge, and no old root is known that it may lead to", pki.Name(above[0]))
			}
			if err := pki.SignedBy(above[0], of.OldRoot); err != nil {
				return 0, fmt.Errorf("the bridge does not lead to the old root: %w", err)
			}
			switch {
			case root && isKey(anchor, of.OldRoot):
				return Bridged, nil
			case !root && isKey(anchor, of.NewRoot):
				return Pivot, nil
			}
		}
	default:
		return 0, fmt.Errorf("%s was issued by %s with the key %s, which is neither the previous nor the new intermediate",
			pki.Name(chain[0]), pki.Name(intermediate), pki.Hex(intermediate.SubjectKeyId))
	}
	return 0, fmt.Errorf("the chain of %s, with %s as ca.crt, is of no mode of this rotation", pki.Name(chain[0]), pki.Name(anchor))
}

// PresentedModes are the modes that a chain, leaf first, may be of, where the ca.crt
// beside it is not known: bridged and pivot present the same, and so do final and
// pinned. What is no chain of this lineage may be of any mode.
func PresentedModes(chain []*x509.Certificate, of Lineage) Modes {
	if n := len(chain); n > 1 && pki.SelfSigned(chain[n-1]) {
		chain = chain[:n-1]
	}
	anchors := []*x509.Certificate{of.OldRoot, of.NewRoot}
	if len(chain) > 0 {
		anchors = append(anchors, chain[len(chain)-1]) // as at pivot, and pinned
	}
	var found Modes
	for _, anchor := range anchors {
		if anchor == nil {
			continue
		}
		if mode, err := ModeOf(chain, []*x509.Certificate{anchor}, of); err == nil {
			found |= In(mode)
		}
	}
	if found == 0 {
		return AnyMode
	}
	return found
}

// Held are the anchors of the lineage that a trust store holds; others do not count.
func Held(trust []*x509.Certificate, of Lineage) Roots {
	var held Roots
	for _, c := range trust {
		for root, anchor := range of.anchors() {
			if isKey(c, anchor) {
				held |= root
			}
		}
	}
	return held
}

// NamedStores are the trust stores that a server may have which names these CAs, as
// raw subjects, when it asks for a client certificate. One that names none, or one
// that is none of the lineage's, may have any; so may one that names an intermediate
// whose name the previous one has too.
func NamedStores(subjects [][]byte, of Lineage) Stores {
	if len(subjects) == 0 {
		return AnyStore
	}
	stores := Trusting(0)
	for _, subject := range subjects {
		var named Roots
		for root, anchor := range of.anchors() {
			if anchor != nil && bytes.Equal(anchor.RawSubject, subject) {
				named |= root
			}
		}
		if previous := of.OldIntermediate; named == 0 || named&Itself != 0 && previous != nil && bytes.Equal(previous.RawSubject, subject) {
			return AnyStore
		}
		stores = stores.holding(named)
	}
	return stores
}

// Bridges says whether a certificate is a bridge from the new root to the old one.
func (l Lineage) Bridges(c *x509.Certificate) bool {
	return isKey(c, l.NewRoot) && !pki.SelfSigned(c) && l.OldRoot != nil && pki.SignedBy(c, l.OldRoot) == nil
}

// Named are the roots of that name, as it is written in messages.
func (l Lineage) Named(subject string) []*x509.Certificate {
	var roots []*x509.Certificate
	for _, root := range []*x509.Certificate{l.OldRoot, l.NewRoot} {
		if root != nil && root.Subject.String() == subject {
			roots = append(roots, root)
		}
	}
	return roots
}

// anchors are those of a rotation, of which any may be nil.
func (l Lineage) anchors() map[Roots]*x509.Certificate {
	return map[Roots]*x509.Certificate{OldRoot: l.OldRoot, NewRoot: l.NewRoot, Itself: l.NewIntermediate}
}

// isKey says that both are there and for one key.
func isKey(a, b *x509.Certificate) bool { return a != nil && b != nil && pki.SameKey(a, b) }
