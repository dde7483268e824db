package workflows

import (
	"go.temporal.io/sdk/workflow"

	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// ensureSchedules has the mesh verified, its credentials kept current, and its
// certificates' lives looked at, from now on; what has become needless is no longer done.
func ensureSchedules(ctx workflow.Context, spec mesh.Spec, mode procedure.Mode, step stepper) error {
	for _, s := range []struct {
		step, summary, procedure string
		every                    mesh.Duration
		windows                  []mesh.Window
	}{
		{"schedule", "Verify on a schedule", procedure.VerifyMesh, *spec.Verify.Every, nil},
		{"refresh schedule", "Keep the credentials current on a schedule", procedure.RefreshCredentials, spec.RefreshEvery(), nil},
		{"maintenance schedule", "Look on a schedule whether a rotation is due", procedure.MaintainMesh, *spec.Rotation.Maintain, spec.Rotation.Windows},
	} {
		if _, err := step(ctx, s.step, s.summary, func(ctx workflow.Context) (procedure.Outcome, error) {
			return call[procedure.Outcome](ctx, acting, temporals.EnsureSchedule, temporalactivities.EnsureScheduleInput{
				Procedure: s.procedure, Mesh: spec.Mesh, Management: spec.Management.Context, Namespace: spec.Management.Namespace,
				Every: s.every, Windows: s.windows, TimeZone: spec.Rotation.TimeZone, Mode: mode,
			})
		}); err != nil {
			return err
		}
	}
	return nil
}
