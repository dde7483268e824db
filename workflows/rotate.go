package workflows

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/relay"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rollout"
	"github.com/relaypki/relaypki/internal/rotation"
)

// rotating is what the rotations of leaves and of CAs have in common: the mesh as
// it is recorded, and how one member after the other gets a certificate.
type rotating struct {
	rotatingState
	in   procedure.MeshInput
	spec mesh.Spec
	// parks: in a rotation that has begun, a member whose handshakes would fail waits
	// for people, who may leave it out.
	parks bool
	// joining are members that are just being added.
	joining []string
	mode    procedure.Mode
	report  *report
	fleet   *fleet
	result  procedure.RotateResult
	// hurry: it is an emergency, in which nothing waits for caution's sake.
	hurry bool
	// cutOff: what members have, and those that join meanwhile, the others accept no
	// more, until they are issued something again.
	cutOff bool
	// only are the clusters that this is for; all, if there are none.
	only []string
	// inPhases says that each cluster has a turn in more than one phase.
	inPhases bool
}

// rotatingState is what a rotation that is continued as new goes on from.
type rotatingState struct {
	Progress   procedure.Progress `json:"progress"`
	Attributes bool               `json:"attributes"`
	// Queues are the task queues of clusters in private networks, by context.
	Queues map[string]string `json:"queues,omitempty"`
	// Target is what certificates are issued by.
	Target target `json:"target"`
	// Server is what the management server presents and trusts.
	Server  relay.ServerResult        `json:"server"`
	Results []procedure.ClusterResult `json:"results,omitempty"`
	Changed bool                      `json:"changed"`
	// Lineage and Trust are of a rotation of the root: its CAs, and what agents are
	// to trust.
	Lineage *relay.Lineage `json:"lineage,omitempty"`
	Trust   trustChange    `json:"trust,omitzero"`
	// Away are members that come back from quarantine, or may: what they have is of no
	// mode that the others accept, until they are issued something again. AwayTrust is
	// what they are to trust then, if nobody's trust is changed else.
	Away      map[string]bool `json:"away,omitempty"`
	AwayTrust trustChange     `json:"awayTrust,omitzero"`
	// Out are clusters in quarantine that the run is not for, with the reasons.
	Out map[string]string `json:"out,omitempty"`
}

// target is what a member's certificate is to be issued by.
type target struct {
	// IssuerID is the intermediate's, to which roles are moved; in a plan its name,
	// if it is still to be made; empty if roles stay.
	IssuerID        string `json:"issuerId,omitempty"`
	Generation      int    `json:"generation,omitempty"`
	RootPEM         string `json:"rootPEM"`
	IntermediatePEM string `json:"intermediatePEM"`
	// BridgePEM is what is above the intermediate in a chain, in a rotation of the
	// root; RootPEM is then what becomes ca.crt, and InFlightCAs is that and what
	// may become it.
	BridgePEM   string   `json:"bridgePEM,omitempty"`
	InFlightCAs []string `json:"inFlightCAs,omitempty"`
	// InFlight is a chain as the intermediate gives it.
	InFlight []string `json:"inFlight,omitempty"`
	// Issuing is as in relay.CheckPairInput, for clusters that somebody has named. Where
	// all are issued anew, the server is, between one cluster and the next, and restarted
	// if need be: whoever it would refuse then is not cut off before its turn.
	Issuing string `json:"issuing,omitempty"`
	// Since is when a rotation of leaves began.
	Since time.Time `json:"since,omitzero"`
}

// handOver is the state for the run that this one is continued as.
func (r *rotating) handOver() rotatingState {
	next := r.rotatingState
	next.Progress, next.Attributes = r.report.Progress, r.report.attributes
	return next
}

// newRotationFleet is the fleet of a rotation, which has not read yet how the mesh
// goes over its clusters.
func newRotationFleet(r *report, abort workflow.CancelFunc) *fleet {
	how := mesh.Spec{}.WithDefaults().Rollout
	how.Parallelism = 0 // the mesh's, once it is read
	f := newFleet(r, how, abort)
	f.rest = fmt.Sprintf("Their roles sign with the intermediate at work, so that they get a certificate of it when they renew; to have that done at once: relaypki rotate leaf %s CLUSTER", r.Mesh)
	return f
}

// readSpec reads who is in the mesh now.
func (r *rotating) readSpec(ctx workflow.Context) error {
	_, err := r.read(ctx)
	if err == nil {
		r.fleet.follow(r.spec.Rollout)
	}
	return err
}

// read reads the record; membership is what it is now.
func (r *rotating) read(ctx workflow.Context) (cluster.MeshRecord, error) {
	record, err := readMesh(ctx, r.in.Mesh, r.in.Management, r.in.Namespace)
	if err == nil {
		r.spec, r.joining = record.Spec.WithDefaults(), record.Joining
		if r.hurry {
			r.spec = hurried(r.spec)
		}
	}
	return record, err
}

// canaries are the clusters that go first: those of the spec's rollout, else the
// first cluster.
func canaries(spec mesh.Spec) []string {
	if len(spec.Rollout.Canary) > 0 || len(spec.Workloads) < 2 {
		return spec.Rollout.Canary
	}
	return []string{spec.Workloads[0].Name}
}

// readServer reads what the management server presents and trusts; with loaded
// it waits until every replica has loaded what is in the Secret.
func (r *rotating) readServer(ctx workflow.Context, loaded bool) (procedure.Outcome, error) {
	var err error
	r.Server, err = call[relay.ServerResult](ctx, waiting, relays.ReadServer, relay.ServerInput{Spec: r.spec.Only(""), Loaded: loaded, Lineage: r.Lineage})
	r.result.Server = r.Server.Leaf
	return r.Server.Outcome, err
}

// pairs computes for each of the clusters whether its agent and the server shake
// hands, now and with what Vault may issue. A cluster that cannot be looked at, or
// whose Secrets are not there or not as they should be, is parked, unless it has
// left the mesh since the membership was read: people may have taken days to let
// the rotation go on. A handshake that would fail is an error, and nothing was
// changed; once a rotation has begun, that cluster is parked. rootsOnly is as in relay.CheckPairInput.
func (r *rotating) pairs(ctx workflow.Context, names []string, rootsOnly bool, seen func(name string, pair relay.CheckPairResult)) (procedure.Outcome, error) {
	places := workflow.NewSemaphore(ctx, clustersAtOnce)
	wg := workflow.NewWaitGroup(ctx)
	var broken complaints
	looked := 0
	for _, w := range r.spec.Workloads {
		if r.fleet.status[w.Name] == rollout.Skipped || !slices.Contains(names, w.Name) {
			continue
		}
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			if places.Acquire(ctx, 1) != nil {
				return
			}
			defer places.Release(1)
			pair, err := call[relay.CheckPairResult](ctx, summarized(on(r.Queues[w.Context], looking), "Compute the handshakes of cluster "+w.Name), relays.CheckPair,
				relay.CheckPairInput{Spec: r.spec.Only(w.Name), Cluster: w.Name, Server: r.Server, InFlight: r.Target.InFlight, InFlightCAs: r.Target.InFlightCAs, Issuing: r.Target.Issuing, Lineage: r.Lineage, RootsOnly: rootsOnly})
			if err != nil {
				if ctx.Err() == nil && !r.left(ctx, w.Name) {
					r.unseen(ctx, w.Name, err)
				}
				return
			}
			if r.parks && len(pair.Problems) > 0 {
				r.fleet.park(ctx, w.Name, "handshakes between its agent and the server would fail: "+strings.Join(pair.Problems, "; "))
				return
			}
			looked++
			broken.blame(w.Name, pair.Problems, nil)
			if seen != nil {
				seen(w.Name, pair)
			}
		})
	}
	wg.Wait(ctx)
	return procedure.Outcome{Detail: fmt.Sprintf("%d of %d agents and the server accept each other", looked, len(names))}, broken.err(ctx)
}

// unseen parks a cluster that could not be looked at. A plan says so, and goes on
// to what would be done in the others.
func (r *rotating) unseen(ctx workflow.Context, name string, err error) {
	if r.mode.Writes() {
		r.fleet.failed(ctx, name, err)
		return
	}
	r.fleet.status[name] = rollout.Done
	r.report.cluster(ctx, name, procedure.Failed, failure.Message(err))
}

// clusters has the given clusters' certificates issued, in the order of the
// rollout, each in a child workflow of its own.
func (r *rotating) clusters(ctx workflow.Context, names []string) error {
	if !r.mode.Writes() {
		return r.lookAt(ctx, names)
	}
	return r.fleet.runSome(ctx, names, func(ctx workflow.Context, name string) (procedure.State, string, error) {
		out, err := r.cluster(ctx, name)
		if err != nil {
			if r.left(ctx, name) {
				return procedure.UpToDate, "it has left the mesh meanwhile", nil
			}
			return procedure.Failed, "", err
		}
		r.Results = append(slices.DeleteFunc(r.Results, func(c procedure.ClusterResult) bool { return c.Cluster == name }), out)
		r.Changed = r.Changed || out.Changed
		return settled(out), expiry(out.Leaf), nil
	})
}

// opens is when the next maintenance window opens; the zero time if one is open,
// or if the mesh has none.
func (r *rotating) opens(ctx workflow.Context) (time.Time, error) {
	var next time.Time
	if len(r.spec.Rotation.Windows) == 0 {
		return next, nil
	}
	// Not in the workflow's own code: time zones change with the worker's release.
	err := workflow.SideEffect(ctx, func(ctx workflow.Context) any {
		zone, err := time.LoadLocation(r.spec.Rotation.TimeZone)
		if err != nil {
			zone = time.UTC // refused when the spec was recorded
		}
		open, opens := rotation.NextOpen(r.spec.Rotation.Windows, zone, workflow.Now(ctx))
		if open {
			return time.Time{}
		}
		return opens
	}).Get(&next)
	return next, err
}

// lookAt has the clusters looked at for a plan. One that cannot be is no reason
// not to say what would be done in the others.
func (r *rotating) lookAt(ctx workflow.Context, names []string) error {
	for _, name := range names {
		if at := r.fleet.status[name]; at != rollout.Waiting {
			continue
		}
		r.fleet.status[name] = rollout.Done
		r.report.cluster(ctx, name, procedure.Running, "")
		out, err := r.cluster(ctx, name)
		if err != nil {
			r.unseen(ctx, name, err)
			continue
		}
		r.Results = append(r.Results, out)
		r.Changed = r.Changed || out.Changed
		r.report.cluster(ctx, name, settled(out), "")
	}
	return ctx.Err()
}

// left says that the cluster is no longer a member.
func (r *rotating) left(ctx workflow.Context, name string) bool {
	if ctx.Err() != nil {
		return false
	}
	record, err := readMesh(ctx, r.in.Mesh, r.in.Management, r.in.Namespace)
	if err != nil {
		return false
	}
	_, member := record.Spec.Workload(name)
	return !member
}

func (r *rotating) cluster(ctx workflow.Context, name string) (procedure.ClusterResult, error) {
	w, _ := r.spec.Workload(name)
	trust := r.Trust
	if r.Away[name] && trust.nothing() {
		trust = r.AwayTrust
	}
	var out procedure.ClusterResult
	id, phase := childID(ctx, name), ""
	if r.inPhases && !r.mode.Writes() { // each is asked what it has planned once all have
		phase = r.report.Phase
		id += "/" + phase
		r.report.of(name).Workflow = id
	}
	err := workflow.ExecuteChildWorkflow(workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID:          id,
		StaticSummary:       "Rotate the certificate of cluster " + name,
		WaitForCancellation: true,
	}), RotateCluster, RotateClusterInput{
		Spec: r.spec.Only(name), Cluster: name, TaskQueue: r.Queues[w.Context], Mode: r.mode, Attributes: r.report.attributes,
		Target: r.Target, Server: r.Server, Lineage: r.Lineage, Trust: trust, Returns: r.Away[name],
	}).Get(ctx, &out)
	out.Phase = phase
	return out, err
}

// server has the management server's certificate issued, and every replica serve
// it.
func (r *rotating) server(ctx workflow.Context) error {
	if r.mode.Writes() {
		if err := r.fleet.admit(ctx); err != nil {
			return err
		}
	}
	if err := r.moveRole(ctx, ""); err != nil {
		return err
	}
	rewritten := false
	if _, err := r.step(ctx, "server certificate", "Issue the management server's certificate anew", func(ctx workflow.Context) (procedure.Outcome, error) {
		issued, err := call[certmanager.CertificateResult](ctx, waiting, certManagers.Reissue, certmanager.ReissueInput{
			Mesh: r.spec.Mesh, Context: r.spec.Management.Context, Namespace: r.spec.Management.Namespace, Certificate: r.spec.Certificates.Server,
			Server: true, Shared: r.spec.PKI.Isolation == mesh.IsolationShared,
			RootPEM: r.Target.RootPEM, IntermediatePEM: r.Target.IntermediatePEM, BridgePEM: r.Target.BridgePEM, Since: r.Target.Since, Mode: r.mode,
		})
		rewritten = len(issued.Changes) > 0
		return issued.Outcome, err
	}); err != nil {
		return err
	}
	if r.spec.Management.Reload == mesh.ReloadRestart {
		if _, err := r.step(ctx, "restart the server", "Restart the management server", func(ctx workflow.Context) (procedure.Outcome, error) {
			return call[procedure.Outcome](ctx, waiting, kubernetes.RestartDeployment, cluster.RestartInput{
				Context: r.spec.Management.Context, Namespace: r.spec.Management.Namespace, Deployment: mesh.ServerDeployment,
				Secrets: []string{r.spec.Certificates.Server.SecretName}, Rewritten: rewritten && !r.mode.Writes(), Mode: r.mode,
			})
		}); err != nil {
			return err
		}
	}
	if !r.mode.Writes() {
		return nil
	}
	_, err := r.step(ctx, "what the server serves", "Wait until every replica serves the new certificate", func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.readServer(ctx, true)
	})
	return err
}

// moveRole has the role of a workload, or of the management server, sign with the
// target, if roles are moved at all.
func (r *rotating) moveRole(ctx workflow.Context, workload string) error {
	if r.Target.IssuerID == "" {
		return nil
	}
	name := "server's role"
	if workload != "" {
		name = "role of " + workload
	}
	_, err := r.step(ctx, name, "Have Vault's role sign with the intermediate "+vault.IntermediateName(r.Target.Generation), func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, acting, vaults.MoveRole, r.Target.role(r.spec.Only(workload), workload, r.mode))
	})
	return err
}

func (t target) role(spec mesh.Spec, workload string, mode procedure.Mode) vault.MoveRoleInput {
	return vault.MoveRoleInput{Spec: spec, Workload: workload, IssuerID: t.IssuerID, Mode: mode}
}

// verify verifies the whole mesh but what was left out.
func (r *rotating) verify(ctx workflow.Context) (err error) {
	r.result.Verification, err = verify(ctx, r.step, r.spec, r.fleet.kept(r.spec), r.spec.Rollout.RetryFor)
	return err
}

// newcomers takes in members that have joined meanwhile.
func (r *rotating) newcomers(ctx workflow.Context) {
	for _, c := range pending(ctx, r.spec) {
		if len(r.only) > 0 && !slices.Contains(r.only, c.Cluster) {
			continue
		}
		if !slices.ContainsFunc(r.report.Clusters, func(have procedure.ClusterProgress) bool { return have.Cluster == c.Cluster }) {
			r.report.Clusters = append(r.report.Clusters, c)
			if r.cutOff {
				r.Away[c.Cluster] = true
			}
		}
	}
	r.report.show(ctx)
}

// leavers closes the rows of clusters that have left the mesh.
func (r *rotating) leavers(ctx workflow.Context) {
	for _, c := range r.report.Clusters {
		if _, member := r.spec.Workload(c.Cluster); !member {
			r.fleet.status[c.Cluster] = rollout.Done
			r.report.cluster(ctx, c.Cluster, procedure.UpToDate, "it has left the mesh")
		}
	}
}

// quarantined are the clusters that somebody has left out, with the reasons.
func (r *rotating) quarantined() map[string]string {
	out := maps.Clone(r.Out)
	if out == nil {
		out = map[string]string{}
	}
	for _, c := range r.fleet.in(procedure.Skipped) {
		out[c.Cluster] = c.Detail
	}
	return out
}

// keepOut leaves out what earlier rotations were told to leave out.
func (r *rotating) keepOut(ctx workflow.Context, quarantined map[string]string) {
	for _, c := range slices.Clone(r.report.Clusters) {
		if reason, ok := quarantined[c.Cluster]; ok && r.fleet.status[c.Cluster] == rollout.Waiting {
			r.fleet.status[c.Cluster] = rollout.Skipped
			r.report.cluster(ctx, c.Cluster, procedure.Skipped, reason)
		}
	}
}

// names are the members' names.
func (r *rotating) names() []string {
	names := make([]string, len(r.spec.Workloads))
	for i, w := range r.spec.Workloads {
		names[i] = w.Name
	}
	return names
}

// step runs one step and reports it.
func (r *rotating) step(ctx workflow.Context, name, summary string, run func(workflow.Context) (procedure.Outcome, error)) (procedure.Outcome, error) {
	if err := r.fleet.gate(ctx); err != nil {
		return procedure.Outcome{}, err
	}
	ctx = workflow.WithValue(ctx, retryForKey{}, r.spec.Rollout.RetryFor.Duration)
	outcome, changed, err := takeStep(ctx, r.report, r.mode, name, summary, run)
	r.Changed = r.Changed || changed
	return outcome, err
}
