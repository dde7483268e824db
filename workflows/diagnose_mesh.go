package workflows

import (
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/internal/procedure"
)

// DiagnoseMesh finds what is wrong with a mesh.
func DiagnoseMesh(ctx workflow.Context, in procedure.DiagnoseInput) (procedure.DiagnoseResult, error) {
	return procedure.DiagnoseResult{Mesh: in.Mesh}, nil
}
