package rotation

import (
	"errors"
	"fmt"
)

// Phase is a part of a rotation of the intermediate.
type Phase string

// The phases, in their order.
const (
	PhasePreflight Phase = "preflight"
	PhaseStage     Phase = "stage"
	PhaseProve     Phase = "prove"
	PhaseCanary    Phase = "canary"
	PhaseServer    Phase = "server"
	PhaseFleet     Phase = "fleet"
	PhaseConverge  Phase = "converge"
	PhaseRetire    Phase = "retire"
	PhaseDeleteKey Phase = "delete key"
)

var phases = []struct {
	phase Phase
	does  string
}{
	{PhasePreflight, "all is looked at, nothing is changed"},
	{PhaseStage, "the new intermediate is made beside the one at work; nothing uses it"},
	{PhaseProve, "it signs a throwaway certificate, and all handshakes are computed"},
	{PhaseCanary, "the canary's certificate is issued by it"},
	{PhaseServer, "the management server's certificate is issued by it"},
	{PhaseFleet, "all other certificates are issued by it"},
	{PhaseConverge, "nothing is left of the previous intermediate, as is proven"},
	{PhaseRetire, "the previous intermediate may no longer issue, and its last certificate is waited out"},
	{PhaseDeleteKey, "the rotation is over; the previous intermediate's key is deleted, for good"},
}

func index(p Phase) int {
	for i := range phases {
		if phases[i].phase == p {
			return i
		}
	}
	return -1
}

// Next is the phase after this one; there is none after the last, nor after
// what is no phase.
func Next(p Phase) (Phase, bool) {
	if i := index(p); i >= 0 && i+1 < len(phases) {
		return phases[i+1].phase, true
	}
	return "", false
}

// Before says that one phase comes before another.
func Before(a, b Phase) bool { return index(a) < index(b) }

// Does says in a few words what a phase does.
func Does(p Phase) string {
	if i := index(p); i >= 0 {
		return phases[i].does
	}
	return ""
}

// MayRollBack says why a rotation that is in a phase cannot be taken back, or nil.
// Both intermediates lead to the one root, so the way back is open, in any order,
// for as long as the previous one can be made to sign again.
func MayRollBack(p Phase) error {
	switch {
	case index(p) < 0:
		return fmt.Errorf("%q is no phase of a rotation", p)
	case p == PhaseDeleteKey:
		return errors.New("the rotation is over: from there it only goes forward")
	}
	return nil
}

// MayGo says why a rotation cannot go from one phase to another, or nil. It goes
// to the next and, taken back, to preflight, from which it may begin again. One
// that is resumed begins at preflight too and passes what is done.
func MayGo(from, to Phase) error {
	switch next, more := Next(from); {
	case index(from) < 0:
		return fmt.Errorf("%q is no phase of a rotation", from)
	case index(to) < 0:
		return fmt.Errorf("%q is no phase of a rotation", to)
	case more && to == next, from == to:
		return nil
	case to == PhasePreflight:
		return MayRollBack(from)
	case Before(to, from):
		return fmt.Errorf("from %s it does not go back to %s: it is taken back as a whole, down to %s", from, to, PhasePreflight)
	default:
		return fmt.Errorf("from %s it goes on to %s, not to %s: what is between would not be done or proven", from, next, to)
	}
}

// Asks says whether the phase begins only when a person has approved it.
func Asks(approval string, p Phase) bool {
	switch p {
	case PhaseDeleteKey:
		return true
	case PhaseServer:
		return approval != "none"
	case PhaseStage, PhaseCanary, PhaseFleet, PhaseRetire:
		return approval == "eachPhase"
	}
	return false
}
