package procedure

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/rotation"
	"github.com/relaypki/relaypki/internal/strict"
)

// EmergencyReissue replaces what is compromised, and has nobody accept it any more.
const EmergencyReissue = "EmergencyReissue"

// What may be compromised.
const (
	CompromisedLeaf         = "leaf"
	CompromisedIntermediate = "intermediate"
	CompromisedRoot         = "root"
)

// What comes first. Nothing in the relay asks whether a certificate was revoked: it
// is out of use when nobody's trust leads to it any more.
const (
	// AvailabilityFirst goes from chain to chain as a rotation does: no handshake
	// fails, and what is compromised is accepted until the end.
	AvailabilityFirst = "availability"
	// ContainmentFirst has the management server accept the new certificates alone,
	// at once: who is not issued anew yet is cut off until it is.
	ContainmentFirst = "containment"
)

// EmergencyInput is what EmergencyReissue takes.
type EmergencyInput struct {
	MeshInput
	// Compromised is "leaf", "intermediate" or "root": the key of which is known, or
	// may be, to others.
	Compromised string `json:"compromised"`
	// Clusters are those whose leaves are compromised; of a leaf alone.
	Clusters []string `json:"clusters,omitempty"`
	// Distrust has the leaf's intermediate replaced and the new one pinned, so that
	// nobody accepts the compromised leaf any more; else it is accepted until it ends.
	Distrust bool `json:"distrust,omitempty"`
	// First is "availability" or "containment". For whom nobody's trust changes, a
	// leaf without Distrust, there is nothing to choose.
	First string `json:"first,omitempty"`
	// Reason and Incident say why, for whoever looks at it later; Incident is the id in
	// the operator's own records.
	Reason   string `json:"reason"`
	Incident string `json:"incident"`
	// Lift ends what an emergency has left pinned: everybody trusts the root again,
	// and with it, until it has ended, what the replaced intermediate signs.
	Lift bool `json:"lift,omitempty"`
	// Exposed is, with Lift, the operator's word for that.
	Exposed bool `json:"exposed,omitempty"`
	// Plan changes nothing: it looks, and says what would be done.
	Plan bool `json:"plan,omitempty"`
}

// Pins says whether a new intermediate takes the root's place as the trust anchor.
func (in EmergencyInput) Pins() bool {
	return in.Compromised == CompromisedIntermediate || in.Compromised == CompromisedLeaf && in.Distrust
}

// Validate returns every problem of the input.
func (in EmergencyInput) Validate() []strict.Problem {
	problems := in.MeshInput.Validate()
	bad := func(path, format string, args ...any) {
		problems = append(problems, strict.Problem{Path: path, Message: fmt.Sprintf(format, args...)})
	}
	for _, needed := range []struct{ path, value, why string }{
		{"reason", in.Reason, "say what has happened, for whoever looks at it later"},
		{"incident", in.Incident, "give the incident's id in your own records"},
	} {
		if strings.TrimSpace(needed.value) == "" {
			bad(needed.path, "is missing; %s", needed.why)
		}
	}
	if in.Lift {
		if in.Compromised != "" || in.First != "" || in.Distrust || len(in.Clusters) > 0 {
			bad("lift", "ends what an emergency has left pinned, and takes no compromised, first, distrust or clusters")
		}
		return problems
	}
	if in.Exposed {
		bad("exposed", "is for lift alone")
	}
	if !slices.Contains([]string{CompromisedLeaf, CompromisedIntermediate, CompromisedRoot}, in.Compromised) {
		bad("compromised", "%q is none of leaf, intermediate, root", in.Compromised)
		return problems
	}
	switch leaf := in.Compromised == CompromisedLeaf; {
	case leaf && len(in.Clusters) == 0:
		bad("clusters", "is missing; name the clusters whose leaves are compromised")
	case !leaf && len(in.Clusters) > 0:
		bad("clusters", "is for a leaf: of another CA, every certificate is issued anew")
	case !leaf && in.Distrust:
		bad("distrust", "is for a leaf: a CA is always distrusted")
	}
	switch chooses := in.Pins() || in.Compromised == CompromisedRoot; {
	case chooses && in.First != AvailabilityFirst && in.First != ContainmentFirst:
		bad("first", "%q is none of %s (no handshake fails; what is compromised is accepted until the end), %s (the server refuses it at once, and with it every agent that is not issued anew yet)", in.First, AvailabilityFirst, ContainmentFirst)
	case !chooses && in.First != "":
		bad("first", "is to be chosen where trust changes: nobody's does for a leaf without distrust")
	}
	return problems
}

// Pin says what a mesh that is in a rotation, or in none, may trust beside its root.
func (r *Rotation) Pin() check.Pin {
	switch {
	case r == nil || r.Emergency == nil || r.FromRoot != r.ToRoot || r.From == r.To:
		return check.Unpinned
	case r.Emergency.Pinned && r.Mode == rotation.Pinned.String() && r.Next == "":
		return check.Pinned
	}
	return check.Pinning // or being lifted
}

// Emergency is what is known of an emergency, in the mesh's record and in the result.
// Times are zero until they have come.
type Emergency struct {
	Compromised string   `json:"compromised"`
	Clusters    []string `json:"clusters,omitempty"`
	Distrust    bool     `json:"distrust,omitempty"`
	First       string   `json:"first,omitempty"`
	Reason      string   `json:"reason"`
	Incident    string   `json:"incident"`
	// Began is when its first run did.
	Began time.Time `json:"began"`
	// TookOver is the run that was ended for it; empty for none.
	TookOver string `json:"tookOver,omitempty"`
	// IssuingStopped is when Vault no longer issued by what is compromised. Of a leaf
	// there is none.
	IssuingStopped time.Time `json:"issuingStopped,omitzero"`
	// ServerDistrusts is when the management server no longer accepted what is
	// compromised, Distrusted when nobody did that is not left out.
	ServerDistrusts time.Time `json:"serverDistrusts,omitzero"`
	Distrusted      time.Time `json:"distrusted,omitzero"`
	// Reconnected is when every member that is not left out had shaken hands with what
	// is new, after all open streams were cut.
	Reconnected time.Time `json:"reconnected,omitzero"`
	// AcceptedUntil is until when what is compromised is accepted by itself, of a leaf
	// that nobody's trust was changed for.
	AcceptedUntil time.Time `json:"acceptedUntil,omitzero"`
	// Pinned says that the new intermediate is all that is trusted; lifted later.
	Pinned bool `json:"pinned,omitempty"`
}
