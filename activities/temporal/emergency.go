package temporal

import (
	"context"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// FreezeInput names the schedules of a mesh.
type FreezeInput struct {
	Mesh string `json:"mesh"`
	// Incident and Reason become the note of a schedule that is paused.
	Incident string `json:"incident"`
	Reason   string `json:"reason"`
	// Thaw has those go on again that were paused for an incident.
	Thaw bool           `json:"thaw,omitempty"`
	Mode procedure.Mode `json:"mode"`
}

// FreezeSchedules pauses all schedules of a mesh, or has those go on that it has
// paused: one that an operator has paused stays as it is. The mesh's other schedules,
// or none, are no error.
func (*Activities) FreezeSchedules(context.Context, FreezeInput) (procedure.Outcome, error) {
	return procedure.Outcome{}, failure.Permanent(failure.InvalidInput, "not there yet")
}

// TakeOverInput names the mesh whose CAs somebody may be at work on.
type TakeOverInput struct {
	Mesh   string `json:"mesh"`
	Reason string `json:"reason"`
	// Holders are, beside the ids that procedure.ID gives, workflows that are known to
	// be at work on the mesh's CAs: what the record and the lock say, as a lock's holder
	// is written (<temporal namespace>/<workflow id>/<first run id>).
	Holders []string       `json:"holders,omitempty"`
	Mode    procedure.Mode `json:"mode"`
}

// TakeOverResult says who was ended.
type TakeOverResult struct {
	procedure.Outcome
	Ended []string `json:"ended,omitempty"`
}

// TakeOver ends whatever rotation (of leaves, intermediate, root) is at work on the
// mesh's CAs by its abort update, and waits (heartbeating) until it has ended: what it
// has done stays, and it has given back its locks. One that does not answer its update
// within a minute is terminated. In a look ahead nothing is ended, and Ended is who
// would be.
func (*Activities) TakeOver(context.Context, TakeOverInput) (TakeOverResult, error) {
	return TakeOverResult{}, failure.Permanent(failure.InvalidInput, "not there yet")
}
