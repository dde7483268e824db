package rotation

import "fmt"

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
	{PhaseDeleteKey, "the previous intermediate's key is deleted, for good"},
}

func index(p Phase) int {
	for i := range phases {
		if phases[i].phase == p {
			return i
		}
	}
	return -1
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
func MayRollBack(p Phase) error {
	if p == PhaseDeleteKey {
		return fmt.Errorf("the previous intermediate's key is being deleted: from there it only goes forward")
	}
	return nil
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
