package cluster

import (
	"context"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// RestartInput names a Deployment that reads the Secrets at its start alone.
type RestartInput struct {
	Context    string         `json:"context"`
	Namespace  string         `json:"namespace"`
	Deployment string         `json:"deployment"`
	Secrets    []string       `json:"secrets"`
	Mode       procedure.Mode `json:"mode"`
}

// RestartDeployment restarts a Deployment, as "kubectl rollout restart" does,
// unless all its Pods were created after the last write to each of the Secrets,
// and waits until they are. When a container started says nothing: in an old Pod
// it may still be given the old Secret.
func (a *Activities) RestartDeployment(ctx context.Context, in RestartInput) (procedure.Outcome, error) {
	return procedure.Outcome{}, failure.Permanent(failure.InvalidInput, "stub")
}
