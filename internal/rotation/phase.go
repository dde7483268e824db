package rotation

import (
	"errors"
	"fmt"

	"github.com/relaypki/relaypki/internal/mesh"
)

// Phase is a part of a rotation of a CA.
type Phase string

// The phases of the rotations of CAs. Those that both have are the same in both.
const (
	PhasePreflight Phase = "preflight"
	PhaseRetire    Phase = "retire"

	// Of an intermediate.
	PhaseStage     Phase = "stage"
	PhaseProve     Phase = "prove"
	PhaseCanary    Phase = "canary"
	PhaseServer    Phase = "server"
	PhaseFleet     Phase = "fleet"
	PhaseConverge  Phase = "converge"
	PhaseDeleteKey Phase = "delete key"

	// Of a root.
	PhasePrepare    Phase = "prepare"
	PhaseTrust      Phase = "trust"
	PhaseBridge     Phase = "bridge"
	PhasePivot      Phase = "pivot"
	PhaseCommit     Phase = "commit"
	PhaseContract   Phase = "contract"
	PhaseDeleteKeys Phase = "delete keys"

	// Of an emergency, beside those.
	PhaseReissue Phase = "reissue"
	PhaseLink    Phase = "link"
	PhaseStop    Phase = "stop"
	PhasePin     Phase = "pin"
	PhaseCut     Phase = "cut"
	PhaseLift    Phase = "lift"
	PhaseOver    Phase = "over"
)

// Course is the phases of one procedure, in their order. The last one begins when
// the rotation is over.
type Course []leg

// leg is a phase of a course.
type leg struct {
	phase Phase
	does  string
	asks  caution
}

// caution is under which of the spec's rotation.approval a phase begins only when
// a person has approved it.
type caution uint8

const (
	never      caution = iota
	eachPhase          // under "eachPhase"
	cautiously         // under that and "afterCanary"
	always
)

// OfIntermediate is the course of a rotation of the intermediate.
var OfIntermediate = Course{
	{PhasePreflight, "all is looked at, nothing is changed", never},
	{PhaseStage, "the new intermediate is made beside the one at work; nothing uses it", eachPhase},
	{PhaseProve, "it signs a throwaway certificate, and all handshakes are computed", never},
	{PhaseCanary, "the canary's certificate is issued by it", eachPhase},
	{PhaseServer, "the management server's certificate is issued by it", cautiously},
	{PhaseFleet, "all other certificates are issued by it", eachPhase},
	{PhaseConverge, "nothing is left of the previous intermediate, as is proven", never},
	{PhaseRetire, "the previous intermediate may no longer issue, and its last certificate is waited out", eachPhase},
	{PhaseDeleteKey, "the rotation is over; the previous intermediate's key is deleted, for good", always},
}

// OfRoot is the course of a rotation of the root. "afterCanary" asks before what
// has everybody trust something else: the server, and then the agents.
var OfRoot = Course{
	{PhasePreflight, "all is looked at, nothing is changed", never},
	{PhasePrepare, "the new root, a bridge to it and a new intermediate are made beside those at work; nothing uses them", eachPhase},
	{PhaseTrust, "the new root is put into every agent's trust, beside the old one", eachPhase},
	{PhaseBridge, "every certificate is issued by the new intermediate, with a chain that leads to both roots", eachPhase},
	{PhasePivot, "ca.crt becomes the bridge, so that the server trusts the new root's key", cautiously},
	{PhaseCommit, "ca.crt becomes the new root, and the bridge is in no chain any more", eachPhase},
	{PhaseContract, "the old root is taken out of every agent's trust", cautiously},
	{PhaseRetire, "the previous root and intermediate may no longer issue, and their last certificate is waited out", eachPhase},
	{PhaseDeleteKeys, "the rotation is over; the previous root's and intermediate's keys are deleted, for good", always},
}

// The courses of an emergency. None of them asks anybody: whoever starts it has said
// what comes first.
var (
	// OfLeaf is that of a leaf for which nobody's trust changes.
	OfLeaf = emergency(
		leg{PhaseReissue, "the compromised certificates are issued anew, with new keys, and open streams are cut", never},
	)
	// OfPinning is that of an intermediate with availability first.
	OfPinning = emergency(
		staged,
		leg{PhaseLink, "every certificate is issued by it, and every agent trusts it beside the root", never},
		stopped,
		leg{PhasePin, "the new intermediate becomes all that is trusted, and open streams are cut", never},
		looked,
	)
	// OfPinningAtOnce is that of an intermediate with containment first.
	OfPinningAtOnce = emergency(
		staged,
		leg{PhaseCut, "the server, and then all agents together, accept what the new intermediate has issued, and nothing else; what is compromised may no longer issue", never},
		looked,
	)
	// OfNewRoot is that of a root with availability first.
	OfNewRoot = emergency(
		OfRoot[1], OfRoot[2], OfRoot[3],
		stopped,
		OfRoot[4], OfRoot[5], OfRoot[6],
		looked,
	)
	// OfNewRootAtOnce is that of a root with containment first.
	OfNewRootAtOnce = emergency(
		leg{PhasePrepare, "the new root and a new intermediate are made beside those at work; nothing uses them", never},
		leg{PhaseCut, "the server, and then all agents together, trust the new root alone; what is compromised may no longer issue", never},
		looked,
	)
	// OfLift ends what an emergency has left pinned.
	OfLift = emergency(
		leg{PhaseLift, "everybody trusts the root again, and not the intermediate alone", never},
		looked,
	)
)

// Phases that several of them have.
var (
	staged  = leg{PhaseStage, "a new intermediate is made beside the one at work; nothing uses it", never}
	stopped = leg{PhaseStop, "what is compromised may no longer issue", never}
	looked  = leg{PhaseProve, "every member is looked at", never}
)

// emergency is a course that looks first, and asks nobody.
func emergency(legs ...leg) Course {
	c := Course{OfRoot[0]}
	for _, l := range legs {
		l.asks = never
		c = append(c, l)
	}
	return append(c, leg{PhaseOver, "the emergency is over", never})
}

func (c Course) index(p Phase) int {
	for i := range c {
		if c[i].phase == p {
			return i
		}
	}
	return -1
}

// Next is the phase after this one; there is none after the last, nor after
// what is no phase.
func (c Course) Next(p Phase) (Phase, bool) {
	if i := c.index(p); i >= 0 && i+1 < len(c) {
		return c[i+1].phase, true
	}
	return "", false
}

// Last is the phase that begins when the rotation is over.
func (c Course) Last() Phase { return c[len(c)-1].phase }

// Before says that one phase comes before another.
func (c Course) Before(a, b Phase) bool { return c.index(a) < c.index(b) }

// Does says in a few words what a phase does.
func (c Course) Does(p Phase) string {
	if i := c.index(p); i >= 0 {
		return c[i].does
	}
	return ""
}

// MayRollBack says why a rotation that is in a phase cannot be taken back, or nil.
// The way back is open for as long as the previous CAs can be made to sign again,
// so until the rotation is over. Both intermediates of one root go back in any
// order; of two roots, in the order of the gates.
func (c Course) MayRollBack(p Phase) error {
	switch c.index(p) {
	case -1:
		return c.unknown(p)
	case len(c) - 1:
		return errors.New("the rotation is over: from there it only goes forward")
	}
	return nil
}

// MayGo says why a rotation cannot go from one phase to another, or nil. It goes
// to the next and, taken back, to preflight, from which it may begin again. One
// that is resumed begins at preflight too and passes what is done.
func (c Course) MayGo(from, to Phase) error {
	switch next, more := c.Next(from); {
	case c.index(from) < 0:
		return c.unknown(from)
	case c.index(to) < 0:
		return c.unknown(to)
	case more && to == next, from == to:
		return nil
	case to == PhasePreflight:
		return c.MayRollBack(from)
	case c.Before(to, from):
		return fmt.Errorf("from %s it does not go back to %s: it is taken back as a whole, down to %s", from, to, PhasePreflight)
	default:
		return fmt.Errorf("from %s it goes on to %s, not to %s: what is between would not be done or proven", from, next, to)
	}
}

func (c Course) unknown(p Phase) error {
	return fmt.Errorf("%q is no phase of this rotation", p)
}

// Asks says whether the phase begins only when a person has approved it.
func (c Course) Asks(approval string, p Phase) bool {
	i := c.index(p)
	if i < 0 {
		return false
	}
	switch c[i].asks {
	case always:
		return true
	case cautiously:
		return approval != mesh.ApprovalNone
	case eachPhase:
		return approval == mesh.ApprovalEachPhase
	}
	return false
}
