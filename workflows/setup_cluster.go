package workflows

import (
	"slices"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// ClusterInput is what SetupMesh gives to the child that sets up one workload
// cluster. It is decoded tolerantly: histories outlive releases.
type ClusterInput struct {
	// Spec has this one workload.
	Spec    mesh.Spec `json:"spec"`
	Cluster string    `json:"cluster"`
	// TaskQueue is that of the worker that reaches the cluster; empty for the
	// workflow's own.
	TaskQueue  string         `json:"taskQueue,omitempty"`
	Mode       procedure.Mode `json:"mode"`
	Attributes bool           `json:"attributes"`

	IssuerID        string `json:"issuerId"`
	RootPEM         string `json:"rootPEM"`
	IntermediatePEM string `json:"intermediatePEM"`
	// BridgePEM is what is above the intermediate in the chain, in a rotation of the
	// root, and RootPEM what becomes ca.crt: the intermediate itself where that is
	// pinned. TrustPEM is what the agent is to trust, if that is not RootPEM alone: in a
	// rotation, or where a root stands by.
	BridgePEM string `json:"bridgePEM,omitempty"`
	TrustPEM  string `json:"trustPEM,omitempty"`
	// StandbyPrintedBy is in a plan the command that prints the root that stands by
	// once it is there, if it is still to be made.
	StandbyPrintedBy string `json:"standbyPrintedBy,omitempty"`
	RelayAddress     string `json:"relayAddress"`
}

// trusting is the TrustPEM of who trusts the root that stands by, too; empty if none
// does.
func trusting(root, standby vault.CAResult) string {
	if root.CertificatePEM == "" || standby.CertificatePEM == "" { // in a plan
		return ""
	}
	return root.CertificatePEM + standby.CertificatePEM
}

// SetupCluster sets up one workload cluster: cert-manager, its credential for
// Vault, its certificate, its trust, its registration and its agent.
func SetupCluster(ctx workflow.Context, in ClusterInput) (procedure.ClusterResult, error) {
	in.Spec = in.Spec.WithDefaults() // a parent of an earlier release knows fewer fields
	c := &clusterSetup{ClusterInput: in, result: procedure.ClusterResult{Cluster: in.Cluster, Workflow: workflow.GetInfo(ctx).WorkflowExecution.ID}}
	var err error
	if c.report, err = newReport(ctx, procedure.Progress{Procedure: procedure.SetupCluster, Mesh: in.Spec.Mesh, Cluster: in.Cluster}); err != nil {
		return c.result, err
	}
	if workflow.GetInfo(ctx).ParentWorkflowExecution == nil {
		// Its input names CAs and an address that SetupMesh has read and checked.
		return c.result, c.report.finish(ctx, failure.Permanent(failure.InvalidInput, "%s is a part of %s and cannot be started alone; start %s with the mesh, which leaves the other clusters as they are",
			procedure.SetupCluster, procedure.SetupMesh, procedure.SetupMesh))
	}
	c.report.attributes = in.Attributes
	err = c.run(ctx)
	return c.result, c.report.finish(ctx, err)
}

type clusterSetup struct {
	ClusterInput
	workload mesh.Workload
	report   *report
	result   procedure.ClusterResult
	// trust is what was done about the agent's trust.
	trust procedure.Outcome
}

func (c *clusterSetup) run(ctx workflow.Context) error {
	var ok bool
	if c.workload, ok = c.Spec.Workload(c.Cluster); !ok {
		return failure.Permanent(failure.InvalidInput, "cluster %q is not in the spec that came with it", c.Cluster)
	}
	if err := c.report.phase(ctx, "workload cluster"); err != nil {
		return err
	}
	if !c.Mode.Writes() {
		ctx = workflow.WithValue(ctx, inTurnKey{}, c.Mode == procedure.Plan)
		return c.apply(ctx)
	}
	return locked(ctx, c.step, clusterLock(ctx, c.Spec, c.Cluster), "cluster "+c.Cluster, c.apply)
}

// apply does side by side what does not need one another; the agent comes last,
// when all that it reads is there.
func (c *clusterSetup) apply(ctx workflow.Context) error {
	if _, err := c.step(ctx, "namespace", "Create the namespace", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, on(c.TaskQueue, acting), kubernetes.EnsureNamespace,
			cluster.NamespaceInput{Context: c.workload.Context, Namespace: c.Spec.Namespace, Mode: c.Mode})
	}); err != nil {
		return err
	}
	certManager := beside(ctx, c.certManager)
	err := wait(ctx, certManager,
		beside(ctx, func(ctx workflow.Context) error { return c.certificate(ctx, certManager) }),
		beside(ctx, c.agentTrust),
		beside(ctx, c.identityToken),
		beside(ctx, c.registration))
	if err != nil || !*c.Spec.Gloo.Install {
		return err
	}
	agent, err := c.step(ctx, "agent", "Install the Gloo agent", func(ctx workflow.Context) (procedure.Outcome, error) {
		return glooIn(ctx, c.Spec, c.workload.Context, c.TaskQueue, agentValues(c.Spec, c.workload, c.RelayAddress), c.Mode)
	})
	if err != nil || !c.loadsTrust(agent) {
		return err
	}
	_, err = c.step(ctx, "agent restart", "Restart the agent if it has not loaded its trust", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, on(c.TaskQueue, waiting), kubernetes.RestartDeployment, cluster.RestartInput{
			Context: c.workload.Context, Namespace: c.Spec.Namespace, Deployment: mesh.AgentDeployment,
			Secrets: []string{mesh.RootSecretName}, Rewritten: len(c.trust.Changes) > 0 && !c.Mode.Writes(), Mode: c.Mode,
		})
	})
	return err
}

// loadsTrust says that it is to be seen whether the agent is older than its trust,
// which it reads at its start alone: a root that stands by is of use where it is
// loaded. In a look ahead, one that is still to be installed starts after that, and
// without its trust none has started.
func (c *clusterSetup) loadsTrust(agent procedure.Outcome) bool {
	reads := c.workload.Agent.Reload == mesh.ReloadRestart && c.workload.Agent.Trust != mesh.TrustOwn
	return c.Spec.PKI.StandbyRoot && reads && (c.Mode.Writes() || !creates(agent) && !creates(c.trust))
}

// creates says that something is not there yet.
func creates(outcome procedure.Outcome) bool {
	return slices.ContainsFunc(outcome.Changes, func(c procedure.Change) bool { return c.Verb == procedure.Create })
}

func (c *clusterSetup) certManager(ctx workflow.Context) error {
	_, err := c.step(ctx, "cert-manager", "Install cert-manager", func(ctx workflow.Context) (procedure.Outcome, error) {
		return certManagerIn(ctx, c.Spec, c.workload.Context, c.TaskQueue, c.Mode)
	})
	return err
}

func (c *clusterSetup) certificate(ctx workflow.Context, certManager workflow.Future) error {
	var err error
	c.result.Leaf, err = issuing{
		spec: c.Spec, context: c.workload.Context, queue: c.TaskQueue, workload: c.Cluster,
		certificate: c.Spec.ClientCertificate(c.workload), certManager: certManager,
		issuerID: c.IssuerID, rootPEM: c.RootPEM, intermediatePEM: c.IntermediatePEM, bridgePEM: c.BridgePEM, mode: c.Mode,
	}.run(ctx, c.step)
	return err
}

func (c *clusterSetup) agentTrust(ctx workflow.Context) error {
	trust := c.RootPEM
	if c.TrustPEM != "" {
		trust = c.TrustPEM
	}
	var err error
	c.trust, err = c.step(ctx, "agent trust", "Copy the root certificate into relay-root-tls-secret", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, on(c.TaskQueue, acting), kubernetes.CopyRootSecret, cluster.CopyRootSecretInput{
			Mesh: c.Spec.Mesh, Context: c.workload.Context, Namespace: c.Spec.Namespace, RootPEM: trust,
			ClientSecret: c.Spec.Certificates.Client.SecretName, AddPrintedBy: c.StandbyPrintedBy, Mode: c.Mode,
		})
	})
	return err
}

func (c *clusterSetup) identityToken(ctx workflow.Context) error {
	if c.Spec.Gloo.IdentityToken.Mode == mesh.TokenNone {
		return nil
	}
	_, err := c.step(ctx, "identity token", "Copy the relay identity token", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, acting, kubernetes.CopyIdentityToken,
			cluster.IdentityTokenInput{Spec: c.Spec, Context: c.workload.Context, Mode: c.Mode})
	})
	return err
}

func (c *clusterSetup) registration(ctx workflow.Context) error {
	_, err := c.step(ctx, "registration", "Register the cluster with the management server", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, acting, kubernetes.RegisterCluster,
			cluster.RegisterClusterInput{Spec: c.Spec, Cluster: c.Cluster, Mode: c.Mode})
	})
	return err
}

func (c *clusterSetup) step(ctx workflow.Context, name, summary string, run func(workflow.Context) (procedure.Outcome, error)) (procedure.Outcome, error) {
	ctx = workflow.WithValue(ctx, retryForKey{}, c.Spec.Rollout.RetryFor.Duration)
	outcome, changed, err := takeStep(ctx, c.report, c.Mode, name, summary, run)
	c.result.Changed = c.result.Changed || changed
	return outcome, err
}
