package rotation

import (
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/relaypki/relaypki/internal/pki"
)

// ChainOf is what is above the intermediate in what Vault returns in a mode, from
// below: its manual_chain without itself. In Old and Linked that intermediate is
// the previous one.
func ChainOf(mode Mode, bridge *x509.Certificate, of Lineage) []*x509.Certificate {
	return [modes][]*x509.Certificate{
		Old:     {of.OldRoot},
		Bridged: {bridge, of.OldRoot},
		Pivot:   {bridge},
		Final:   {of.NewRoot},
		Pinned:  nil,
		Linked:  {of.NewRoot},
	}[mode]
}

// ModeOfChain is the inverse of ChainOf for the new intermediate: the mode of what
// it issues with these certificates above it, from below. They are recognised as
// ModeOf does it. It is an error if they are of no mode: each has to be signed by
// the next one, and the intermediate by the first.
func ModeOfChain(above []*x509.Certificate, of Lineage) (Mode, error) {
	if of.NewIntermediate == nil {
		return 0, errors.New("there is no new intermediate")
	}
	if err := pki.Linear(append([]*x509.Certificate{of.NewIntermediate}, above...)); err != nil {
		return 0, err
	}
	// The first is signed like one with the new root's key, for that signed the
	// intermediate; which of the two it is tells who signed it.
	switch {
	case len(above) == 0:
		return Pinned, nil
	case !isKey(above[0], of.NewRoot):
		return 0, fmt.Errorf("%s is above the new intermediate, and not the new root's key", pki.Name(above[0]))
	case len(above) == 1 && pki.SelfSigned(above[0]):
		return Final, nil
	case of.OldRoot == nil:
		return 0, fmt.Errorf("%s is a bridge, and no old root is known that it may lead to", pki.Name(above[0]))
	}
	if err := pki.SignedBy(above[0], of.OldRoot); err != nil {
		return 0, fmt.Errorf("the bridge does not lead to the old root: %w", err)
	}
	switch {
	case len(above) == 1:
		return Pivot, nil
	case len(above) == 2 && isKey(above[1], of.OldRoot) && pki.SelfSigned(above[1]):
		return Bridged, nil
	}
	return 0, fmt.Errorf("the new intermediate's chain goes up to %s, and is of no mode of this rotation", pki.Name(above[len(above)-1]))
}
