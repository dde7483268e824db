// Package workflows has the procedures. Each file is one procedure, to be read
// top down; the mechanics they share are in steps.go and report.go. All of it
// is deterministic: what depends on the world outside is asked of activities.
package workflows

import (
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/internal/procedure"
)

// Register registers every procedure under its name.
func Register(r worker.WorkflowRegistry) {
	r.RegisterWorkflowWithOptions(SetupMesh, workflow.RegisterOptions{Name: procedure.SetupMesh})
	r.RegisterWorkflowWithOptions(AdoptMesh, workflow.RegisterOptions{Name: procedure.AdoptMesh})
	r.RegisterWorkflowWithOptions(SetupCluster, workflow.RegisterOptions{Name: procedure.SetupCluster})
	r.RegisterWorkflowWithOptions(RefreshCredentials, workflow.RegisterOptions{Name: procedure.RefreshCredentials})
	r.RegisterWorkflowWithOptions(AddCluster, workflow.RegisterOptions{Name: procedure.AddCluster})
	r.RegisterWorkflowWithOptions(RemoveCluster, workflow.RegisterOptions{Name: procedure.RemoveCluster})
	r.RegisterWorkflowWithOptions(RotateLeafCertificates, workflow.RegisterOptions{Name: procedure.RotateLeafCertificates})
	r.RegisterWorkflowWithOptions(RotateIntermediateCA, workflow.RegisterOptions{Name: procedure.RotateIntermediateCA})
	r.RegisterWorkflowWithOptions(RotateRootCA, workflow.RegisterOptions{Name: procedure.RotateRootCA})
	r.RegisterWorkflowWithOptions(EmergencyReissue, workflow.RegisterOptions{Name: procedure.EmergencyReissue})
	r.RegisterWorkflowWithOptions(RotateCluster, workflow.RegisterOptions{Name: procedure.RotateCluster})
	r.RegisterWorkflowWithOptions(RotateIssuerCredentials, workflow.RegisterOptions{Name: procedure.RotateIssuerCredentials})
	r.RegisterWorkflowWithOptions(MaintainMesh, workflow.RegisterOptions{Name: procedure.MaintainMesh})
	r.RegisterWorkflowWithOptions(ApplySchedules, workflow.RegisterOptions{Name: procedure.ApplySchedules})
	r.RegisterWorkflowWithOptions(VerifyMesh, workflow.RegisterOptions{Name: procedure.VerifyMesh})
	r.RegisterWorkflowWithOptions(Inventory, workflow.RegisterOptions{Name: procedure.Inventory})
	r.RegisterWorkflowWithOptions(DiagnoseMesh, workflow.RegisterOptions{Name: procedure.DiagnoseMesh})
}
