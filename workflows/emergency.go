package workflows

import (
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// EmergencyReissue is not there yet.
func EmergencyReissue(ctx workflow.Context, in procedure.Typed[procedure.EmergencyInput], long *longRotation) (procedure.RotateResult, error) {
	return procedure.RotateResult{}, failure.Permanent(failure.InvalidInput, "not there yet")
}
