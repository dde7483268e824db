package workflows

import (
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/internal/procedure"
)

// ApplySchedules makes the Temporal Schedules of a mesh what its recorded spec
// says, as a setup does at its end: for whoever has deleted one, or has set up
// the mesh with an earlier release. One that is paused stays paused.
func ApplySchedules(ctx workflow.Context, in procedure.Typed[procedure.MeshInput]) (procedure.SchedulesResult, error) {
	result := procedure.SchedulesResult{Mesh: in.In.Mesh}
	r, err := newReport(ctx, procedure.Progress{Procedure: procedure.ApplySchedules, Mesh: in.In.Mesh, Phase: "schedules"})
	if err != nil {
		return result, err
	}
	if err := invalid(inputProblems(ctx, in.In, in.Problems)); err != nil {
		return result, r.finish(ctx, err)
	}
	err = func() error {
		if _, err := r.describe(ctx, "schedules"); err != nil {
			return err
		}
		record, err := readMesh(ctx, in.In.Mesh, in.In.Management, in.In.Namespace)
		if err != nil {
			return err
		}
		return ensureSchedules(ctx, record.Spec.WithDefaults(), procedure.Apply, func(ctx workflow.Context, name, summary string, run func(workflow.Context) (procedure.Outcome, error)) (procedure.Outcome, error) {
			outcome, changed, err := takeStep(ctx, r, procedure.Apply, name, summary, run)
			result.Changed = result.Changed || changed
			return outcome, err
		})
	}()
	result.Steps = r.Steps
	return result, r.finish(ctx, err)
}
