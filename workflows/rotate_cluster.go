package workflows

import (
	"fmt"
	"strings"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/relay"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// RotateClusterInput is what a rotation gives to the child that works on one
// workload cluster. It is decoded tolerantly: histories outlive releases.
type RotateClusterInput struct {
	// Spec has this one workload.
	Spec    mesh.Spec `json:"spec"`
	Cluster string    `json:"cluster"`
	// TaskQueue is that of the worker that reaches the cluster; empty for the
	// workflow's own.
	TaskQueue  string         `json:"taskQueue,omitempty"`
	Mode       procedure.Mode `json:"mode"`
	Attributes bool           `json:"attributes"`
	Target     target         `json:"target"`
	// Server is what the management server presents and trusts.
	Server relay.ServerResult `json:"server"`
	// Lineage and Trust are of a rotation of the root.
	Lineage *relay.Lineage `json:"lineage,omitempty"`
	Trust   trustChange    `json:"trust,omitzero"`
	// Returns says that the cluster comes back from quarantine: its handshakes may
	// fail until this is done.
	Returns bool `json:"returns,omitempty"`
}

// RotateCluster has one cluster's certificate issued anew and its agent use it:
// the handshakes are computed, the role is moved, cert-manager issues, an agent
// that does not read its Secrets by itself is restarted, a fresh handshake is
// made, and the handshakes are computed again.
func RotateCluster(ctx workflow.Context, in RotateClusterInput) (procedure.ClusterResult, error) {
	in.Spec = in.Spec.WithDefaults()
	c := &clusterRotation{RotateClusterInput: in, result: procedure.ClusterResult{Cluster: in.Cluster, Workflow: workflow.GetInfo(ctx).WorkflowExecution.ID}}
	var err error
	if c.report, err = newReport(ctx, procedure.Progress{Procedure: procedure.RotateCluster, Mesh: in.Spec.Mesh, Cluster: in.Cluster}); err != nil {
		return c.result, err
	}
	if workflow.GetInfo(ctx).ParentWorkflowExecution == nil {
		return c.result, c.report.finish(ctx, failure.Permanent(failure.InvalidInput, "%s is a part of the rotations and cannot be started alone; start %s with the mesh and this cluster",
			procedure.RotateCluster, procedure.RotateLeafCertificates))
	}
	c.report.attributes = in.Attributes
	err = c.run(ctx)
	return c.result, c.report.finish(ctx, err)
}

type clusterRotation struct {
	RotateClusterInput
	workload mesh.Workload
	report   *report
	result   procedure.ClusterResult
}

func (c *clusterRotation) run(ctx workflow.Context) error {
	var ok bool
	if c.workload, ok = c.Spec.Workload(c.Cluster); !ok {
		return failure.Permanent(failure.InvalidInput, "cluster %q is not in the spec that came with it", c.Cluster)
	}
	if err := c.report.phase(ctx, "workload cluster"); err != nil {
		return err
	}
	if !c.Mode.Writes() {
		return c.rotate(workflow.WithValue(ctx, inTurnKey{}, true))
	}
	return locked(ctx, c.step, clusterLock(ctx, c.Spec, c.Cluster), "cluster "+c.Cluster, c.rotate)
}

func (c *clusterRotation) rotate(ctx workflow.Context) error {
	if c.Target.IssuerID != "" && !c.trustAlone() {
		// First, and also where the cluster does not answer: its cert-manager may
		// renew by itself at any time, and is then given what everybody accepts.
		if _, err := c.step(ctx, "role", "Have the cluster's role sign with the intermediate "+vault.IntermediateName(c.Target.Generation), func(ctx workflow.Context) (procedure.Outcome, error) {
			return call[procedure.Outcome](ctx, acting, vaults.MoveRole, c.Target.role(c.Spec, c.Cluster, c.Mode))
		}); err != nil {
			return err
		}
	}
	// To trust more harms nobody; to trust less comes when it is known that what is
	// left is enough.
	more, less := trustChange{AddPEM: c.Trust.AddPEM}, trustChange{DropPEM: c.Trust.DropPEM}
	if !c.Mode.Writes() { // what is there does not become more in between
		more, less = c.Trust, trustChange{}
	}
	added, err := c.trust(ctx, more)
	if err != nil {
		return err
	}
	if c.Mode.Writes() && !c.Returns {
		if err := c.handshakes(ctx, "handshakes before", c.Target.Issuing); err != nil {
			return err
		}
	}
	dropped, err := c.trust(ctx, less)
	if err != nil {
		return err
	}
	anew, err := c.certificate(ctx)
	if err != nil {
		return err
	}
	rewritten := (added || dropped) && c.workload.Agent.Trust != mesh.TrustOwn || anew
	if c.workload.Agent.Reload == mesh.ReloadRestart {
		if _, err := c.step(ctx, "agent", "Restart the agent, which reads its Secrets at its start alone", func(ctx workflow.Context) (procedure.Outcome, error) {
			return call[procedure.Outcome](ctx, on(c.TaskQueue, waiting), kubernetes.RestartDeployment, cluster.RestartInput{
				Context: c.workload.Context, Namespace: c.Spec.Namespace, Deployment: mesh.AgentDeployment,
				Secrets: c.secrets(), Rewritten: rewritten && !c.Mode.Writes(), Mode: c.Mode,
			})
		}); err != nil {
			return err
		}
	}
	if !c.Mode.Writes() {
		return nil
	}
	if _, err := c.step(ctx, "fresh handshake", "Make a fresh handshake in the agent's place", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, on(c.TaskQueue, acting), relays.ShakeHands, relay.ShakeHandsInput{Spec: c.Spec, Cluster: c.Cluster})
	}); err != nil {
		return err
	}
	return c.handshakes(ctx, "handshakes after", "")
}

// trust changes what the agent trusts, in a rotation of the root.
func (c *clusterRotation) trust(ctx workflow.Context, change trustChange) (changed bool, err error) {
	if change.nothing() {
		return false, nil
	}
	out, err := c.step(ctx, "agent's trust", "Change the anchors that the agent trusts", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, on(c.TaskQueue, acting), kubernetes.ChangeTrust, cluster.ChangeTrustInput{
			Mesh: c.Spec.Mesh, Context: c.workload.Context, Namespace: c.Spec.Namespace, AddPEM: change.AddPEM, DropPEM: change.DropPEM,
			AddPrintedBy: change.AddPrintedBy, Optional: c.workload.Agent.Trust == mesh.TrustOwn, Mode: c.Mode,
		})
	})
	return len(out.Changes) > 0, err
}

// certificate has the certificate issued anew.
func (c *clusterRotation) certificate(ctx workflow.Context) (changed bool, err error) {
	if c.trustAlone() {
		return false, nil
	}
	out, err := c.step(ctx, "certificate", "Have the certificate issued anew", func(ctx workflow.Context) (procedure.Outcome, error) {
		issued, err := call[certmanager.CertificateResult](ctx, on(c.TaskQueue, waiting), certManagers.Reissue, certmanager.ReissueInput{
			Mesh: c.Spec.Mesh, Context: c.workload.Context, Namespace: c.Spec.Namespace, Certificate: c.Spec.ClientCertificate(c.workload),
			Shared:  c.Spec.PKI.Isolation == mesh.IsolationShared,
			RootPEM: c.Target.RootPEM, IntermediatePEM: c.Target.IntermediatePEM, BridgePEM: c.Target.BridgePEM, Since: c.Target.Since, Mode: c.Mode,
		})
		c.result.Leaf = issued.Leaf
		return issued.Outcome, err
	})
	return len(out.Changes) > 0, err
}

// trustAlone says that the certificate stays. That of who comes back does not: it may
// be one that nobody accepts any more.
func (c *clusterRotation) trustAlone() bool { return c.Trust.Only && !c.Returns }

// secrets are those that the agent has to have loaded.
func (c *clusterRotation) secrets() []string {
	secrets := []string{c.Spec.Certificates.Client.SecretName}
	if !c.Trust.nothing() && c.workload.Agent.Trust != mesh.TrustOwn {
		secrets = append(secrets, mesh.RootSecretName)
	}
	return secrets
}

// handshakes computes whether agent and server accept each other, whatever
// either has stored, loaded or in flight; issuing is as in relay.CheckPairInput.
func (c *clusterRotation) handshakes(ctx workflow.Context, name, issuing string) error {
	_, err := c.step(ctx, name, "Compute the handshakes of the agent and the server", func(ctx workflow.Context) (procedure.Outcome, error) {
		pair, err := call[relay.CheckPairResult](ctx, on(c.TaskQueue, acting), relays.CheckPair,
			relay.CheckPairInput{Spec: c.Spec, Cluster: c.Cluster, Server: c.Server, InFlight: c.Target.InFlight, InFlightCAs: c.Target.InFlightCAs, Issuing: issuing, Lineage: c.Lineage})
		if err == nil && len(pair.Problems) > 0 {
			err = failure.Permanent(failure.Mismatch, "handshakes between this cluster's agent and the server would fail: %s. Nothing more is changed here; take the rotation back (relaypki rollback %s --reason WHY) or put this right and retry",
				strings.Join(pair.Problems, "; "), c.Spec.Mesh)
		}
		if c.result.Leaf.Serial == "" { // of a certificate that stays
			c.result.Leaf = pair.Leaf
		}
		pair.Detail = fmt.Sprintf("presents %s, trusts %s", pair.Presents, strings.Join(pair.Trusts, ", "))
		return pair.Outcome, err
	})
	return err
}

func (c *clusterRotation) step(ctx workflow.Context, name, summary string, run func(workflow.Context) (procedure.Outcome, error)) (procedure.Outcome, error) {
	ctx = workflow.WithValue(ctx, retryForKey{}, c.Spec.Rollout.RetryFor.Duration)
	outcome, changed, err := takeStep(ctx, c.report, c.Mode, name, summary, run)
	c.result.Changed = c.result.Changed || changed
	return outcome, err
}
