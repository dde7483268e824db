package workflows

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/helm"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rollout"
	"github.com/relaypki/relaypki/internal/strict"
)

// SetupMesh sets up the relay certificates of a mesh from its description: the
// CAs in Vault, cert-manager with its Issuers and Certificates in every
// cluster, the agents' trust, the management server and the agents, and the
// proof that the relay works. It can be started again at any time: what is as
// described is left alone.
//
// A workload cluster that fails is parked, and people steer the run by updates
// (see fleet). Nobody types long: it is what a run hands to its continuation
// when its history has grown long, and by which a diagnosis says that the spec is
// the recorded one.
func SetupMesh(ctx workflow.Context, in procedure.SetupInput, long *longSetup) (procedure.SetupResult, error) {
	spec := in.Spec.WithDefaults()
	ctx, abort := workflow.WithCancel(ctx)
	r := &setup{input: in, spec: spec, result: procedure.SetupResult{Mesh: spec.Mesh, Plan: in.Plan}}
	progress := procedure.Progress{Procedure: procedure.SetupMesh, Mesh: spec.Mesh, Phase: "preflight", Clusters: pending(ctx, spec)}
	if long != nil && workflow.GetInfo(ctx).ContinuedExecutionRunID != "" {
		r.longSetup, r.resumed, progress = *long, true, long.Progress
	} else if long != nil {
		r.Recorded = long.Recorded
	}
	var err error
	if r.report, err = newReport(ctx, progress); err != nil {
		return r.result, err
	}
	r.report.attributes = r.Attributes
	r.fleet = newFleet(r.report, spec.Rollout, abort)
	if err := r.fleet.steer(ctx); err != nil {
		return r.result, err
	}
	if r.signing, err = newSigning(ctx, r.report, r.fleet.standing); err != nil {
		return r.result, err
	}
	if err := invalid(append(in.Problems, spec.Validate()...)); err != nil {
		return r.result, r.report.finish(ctx, err)
	}
	err = r.run(ctx)
	if errors.Is(err, errLong) {
		return r.result, workflow.NewContinueAsNewError(ctx, procedure.SetupMesh, r.input, r.handOver())
	}
	r.result.Steps, r.result.Clusters = r.report.Steps, r.Results
	if err != nil || !in.Plan { // what a plan could not see is in its report
		err = r.fleet.outcome(err)
	}
	return r.result, r.report.finish(ctx, err)
}

// setup is one run of SetupMesh.
type setup struct {
	longSetup
	// resumed: an earlier run of this setup came as far as the workload clusters.
	resumed bool
	input   procedure.SetupInput
	spec    mesh.Spec
	report  *report
	fleet   *fleet
	// signing is for a root that is kept outside Vault.
	signing *signing
	mode    procedure.Mode
	result  procedure.SetupResult
}

// longSetup is what a setup that is continued as new goes on from.
type longSetup struct {
	// Recorded says that nobody has asked for this spec: it was read from the mesh's
	// record, to make again what is missing, and counts as long as it is recorded.
	Recorded   bool               `json:"recorded,omitempty"`
	Progress   procedure.Progress `json:"progress"`
	Attributes bool               `json:"attributes"`
	// Queues are the task queues of clusters in private networks, by context.
	Queues map[string]string `json:"queues,omitempty"`
	// Generations are those that the mesh's CAs are of by now.
	Generations procedure.Generations `json:"generations"`
	Root        vault.CAResult        `json:"root"`
	Relay       vault.CAResult        `json:"relay"`
	// Standby is the root that stands by, if one is to.
	Standby vault.CAResult            `json:"standby,omitzero"`
	Address string                    `json:"address"`
	Server  procedure.Leaf            `json:"server"`
	Changed bool                      `json:"changed"`
	Results []procedure.ClusterResult `json:"results,omitempty"`
}

func (r *setup) handOver() longSetup {
	next := r.longSetup
	next.Progress, next.Attributes = r.report.Progress, r.report.attributes
	next.Server, next.Changed = r.result.Server, r.result.Changed
	return next
}

// errWouldChange ends a look around: something is not as described.
var errWouldChange = failure.Permanent(wouldChange, "something is not as described")

const wouldChange failure.Kind = "WouldChange"

func (r *setup) run(ctx workflow.Context) error {
	if r.resumed {
		r.mode = procedure.Apply
		r.result.Root, r.result.Relay, r.result.Server, r.result.Changed = r.Root.Authority, r.Relay.Authority, r.Server, r.Changed
		return release(ctx, caLock(ctx, r.spec), r.finish(ctx))
	}
	if err := r.preflight(ctx); err != nil {
		return err
	}
	record, err := r.readRecord(ctx)
	if err != nil {
		return err
	}
	if r.input.Plan {
		return r.plan(ctx)
	}
	// With the defaults of today: an older release recorded fewer fields.
	if record.Complete && reflect.DeepEqual(record.Spec.WithDefaults().Normal(), r.spec.Normal()) && len(r.fleet.in(procedure.Parked)) == 0 {
		// This very setup has been done. Look around without the lock first: if
		// all is as described, nothing at all is written.
		err := r.apply(ctx, procedure.Observe)
		if err == nil {
			r.mode = procedure.Apply // what follows may write: the schedule
			return r.prove(ctx, mesh.Duration{})
		}
		if failure.KindOf(err) != wouldChange {
			return err
		}
		r.report.Steps, r.report.Clusters = r.report.Steps[:1], pending(ctx, r.spec)
	}
	return r.locked(ctx, func(ctx workflow.Context) error {
		// Again, with the lock: another run may have added a member meanwhile.
		if _, err := r.readRecord(ctx); err != nil {
			return err
		}
		if err := r.apply(ctx, procedure.Apply); err != nil {
			return err
		}
		return r.finish(ctx)
	})
}

// plan looks at everything and says what a setup would do.
func (r *setup) plan(ctx workflow.Context) error {
	r.mode = procedure.Plan
	ctx = workflow.WithValue(ctx, inTurnKey{}, true)
	if err := r.namespace(ctx); err != nil {
		return err
	}
	if err := r.apply(ctx, procedure.Plan); err != nil {
		return err
	}
	return ensureSchedules(ctx, r.spec, r.mode, r.step)
}

// finish is what comes after the management cluster, in a run that may be
// continued as new in the midst of it.
func (r *setup) finish(ctx workflow.Context) error {
	if err := r.workloadClusters(ctx); err != nil {
		return err
	}
	if err := r.prove(ctx, settleWithin); err != nil {
		return err
	}
	if len(r.fleet.in(procedure.Skipped)) > 0 {
		return nil // and so the mesh is not complete
	}
	_, err := r.step(ctx, "record the mesh", "Record that the mesh is complete", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, acting, kubernetes.RecordMesh, cluster.RecordMeshInput{Spec: r.spec, Complete: true, Mode: procedure.Apply})
	})
	return err
}

// preflight asks everything outside whether it is fit for the setup. A workload
// cluster that does not answer is parked from the start; the others need not
// wait for it.
func (r *setup) preflight(ctx workflow.Context) error {
	step := r.report.begin(ctx, "preflight")
	outcome, err := r.checkEverything(ctx)
	r.report.end(ctx, step, outcome, err)
	return err
}

func (r *setup) checkEverything(ctx workflow.Context) (procedure.Outcome, error) {
	var err error
	if r.Queues, err = r.report.describe(ctx, "preflight"); err != nil {
		return procedure.Outcome{}, err
	}
	return checkEverything(ctx, r.spec, false, r.Queues, func(cluster, why string) { r.fleet.park(ctx, cluster, why) })
}

// readRecord reads what is stored of this mesh and refuses a spec that lacks a
// recorded member: leaving it out of the input does not remove it.
func (r *setup) readRecord(ctx workflow.Context) (cluster.MeshRecord, error) {
	record, err := call[cluster.MeshRecord](ctx, summarized(looking, "Read the mesh's record"), kubernetes.ReadMesh,
		cluster.ReadMeshInput{Mesh: r.spec.Mesh, Management: r.spec.Management.Context, Namespace: r.spec.Management.Namespace})
	r.Generations = procedure.Generations{Root: max(record.Generations.Root, 1), Intermediate: max(record.Generations.Intermediate, 1)}
	if err != nil || !record.Found {
		return record, err
	}
	if begun := record.Rotation; begun != nil {
		return record, failure.Permanent(failure.Conflict, "the mesh %q is in %s, begun by %s; nothing was changed. %s; clusters can be added and removed meanwhile",
			r.spec.Mesh, begun.Procedure, begun.Workflow, first(r.spec.Mesh, begun))
	}
	if r.Recorded {
		if err := stillRecorded(record, r.spec); err != nil {
			return record, err
		}
	}
	var gone []strict.Problem
	recorded := record.Spec.WithDefaults()
	for _, member := range recorded.Workloads {
		switch now, ok := r.spec.Workload(member.Name); {
		case ok && now.Context != member.Context:
			gone = append(gone, strict.Problem{Path: "workloads", Message: fmt.Sprintf("%q is the cluster %q in the mesh and %q in this input; the first would keep its credential for that name, so give the other a name of its own", member.Name, member.Context, now.Context)})
		case ok && now.Namespace != member.Namespace:
			gone = append(gone, strict.Problem{Path: "workloads", Message: fmt.Sprintf("%q is in namespace %q of its cluster in the mesh and in %q in this input; what is in the first would stay and go on renewing, so put it back", member.Name, member.Namespace, now.Namespace)})
		case !ok:
			gone = append(gone, strict.Problem{Path: "workloads", Message: fmt.Sprintf("%q is a member of the mesh but not in this input; leaving it out does not remove it: put it back, or remove it first (relaypki remove-cluster %s %s)", member.Name, r.spec.Mesh, member.Name)})
		}
	}
	if record.Complete || record.Generations.Root > 1 {
		gone = append(gone, anotherRoot(recorded, r.spec)...)
	}
	return record, invalid(gone)
}

// stillRecorded is an error if a spec that was read from the record is not what is
// recorded any more, or has a member that is being removed: in a spec that somebody
// asks for, that would be to have it back.
func stillRecorded(record cluster.MeshRecord, spec mesh.Spec) error {
	if !reflect.DeepEqual(record.Spec.WithDefaults().Normal(), spec.Normal()) {
		return failure.Permanent(failure.Conflict, "what is recorded of the mesh %q has changed since it was read; nothing was changed. Diagnose again (relaypki diagnose %[1]s)", spec.Mesh)
	}
	for _, w := range spec.Workloads {
		if d, leaving := record.Leaving[w.Name]; leaving && d.Left.IsZero() {
			return failure.Permanent(failure.Conflict, "the cluster %q is being removed from the mesh %q, since %s, and a setup of all members would bring it back; nothing was changed. Let the removal end (relaypki remove-cluster %[2]s %[1]s), or, to have the cluster back, run the setup with the mesh's file (relaypki setup -f mesh.yaml)",
				w.Name, spec.Mesh, pki.Date(d.Since))
		}
	}
	return nil
}

// anotherRoot is the problem with a root outside Vault that is not the one which the
// mesh is under: that of before a rotation, or one that nobody trusts yet, as one in
// Vault would be.
func anotherRoot(recorded, asked mesh.Spec) []strict.Problem {
	switch {
	case !recorded.PKI.Root.Offline():
		return nil
	case !asked.PKI.Root.Offline():
		return []strict.Problem{problem("pki.root.kept", "it is not %s, and the root of the mesh is kept outside Vault, as its record says: another would be made in Vault, which nobody trusts; nothing was changed. Put pki.root.kept and pki.root.certificatePEM back into the input", mesh.KeptOffline)}
	}
	at, err := recorded.PKI.Root.Certificate()
	if err != nil {
		return nil // the mesh's verification says so
	}
	given, err := asked.PKI.Root.Certificate()
	if err != nil || given.Equal(at) {
		return nil // the preflight says what is wrong with it
	}
	return []strict.Problem{problem("pki.root.certificatePEM", "it is %s, and the mesh is under %s, as its record says; nothing was changed. If the root was rotated, put the new one's certificate into the input (relaypki rotate root has said which); to go over to another root: relaypki rotate root %s",
		pki.Name(given), pki.Name(at), asked.Mesh)}
}

// locked runs the change with the lock on the mesh's CAs. The namespace comes
// before the lock because the lock lives in it.
func (r *setup) locked(ctx workflow.Context, change func(workflow.Context) error) error {
	r.mode = procedure.Apply
	if err := r.namespace(ctx); err != nil {
		return err
	}
	return locked(ctx, r.step, caLock(ctx, r.spec), theCAs, change)
}

func (r *setup) namespace(ctx workflow.Context) error {
	_, err := r.step(ctx, "namespace", "Create the namespace in the management cluster", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, acting, kubernetes.EnsureNamespace,
			cluster.NamespaceInput{Context: r.spec.Management.Context, Namespace: r.spec.Management.Namespace, Mode: r.mode})
	})
	return err
}

// apply does, or looks at, all that comes before the workload clusters; a look
// goes on with those, each as far as it can be seen.
func (r *setup) apply(ctx workflow.Context, mode procedure.Mode) error {
	r.mode = mode
	if err := r.report.phase(ctx, "certificate authorities"); err != nil {
		return err
	}
	if err := r.certificateAuthorities(ctx); err != nil {
		return err
	}
	if err := r.report.phase(ctx, "management cluster"); err != nil {
		return err
	}
	if err := r.managementCluster(ctx); err != nil || mode == procedure.Apply {
		return err
	}
	return r.lookAround(ctx)
}

// certificateAuthorities makes the root and the intermediate in Vault, while
// cert-manager, which needs neither, is installed in the management cluster.
func (r *setup) certificateAuthorities(ctx workflow.Context) error {
	if r.mode != procedure.Observe {
		if _, err := r.step(ctx, "record the mesh", "Record the mesh's membership", func(ctx workflow.Context) (procedure.Outcome, error) {
			return call[procedure.Outcome](ctx, acting, kubernetes.RecordMesh, cluster.RecordMeshInput{Spec: r.spec, Mode: r.mode})
		}); err != nil {
			return err
		}
	}
	certManager := beside(ctx, r.certManager)
	return wait(ctx, beside(ctx, func(ctx workflow.Context) error {
		if err := r.vault(ctx); err != nil {
			return err
		}
		return r.vaultPKI(ctx)
	}), certManager)
}

func (r *setup) certManager(ctx workflow.Context) error {
	_, err := r.step(ctx, "cert-manager", "Install cert-manager in the management cluster", func(ctx workflow.Context) (procedure.Outcome, error) {
		return certManagerIn(ctx, r.spec.Only(""), r.spec.Management.Context, "", r.mode)
	})
	return err
}

// vault installs Vault, where that is ours to do. A standalone one is of no use
// before an operator has initialised and unsealed it: its unseal keys and root
// token never pass through here, so the run waits, for days if need be.
func (r *setup) vault(ctx workflow.Context) error {
	if r.spec.Vault.Install == mesh.VaultExisting {
		return nil
	}
	installed, err := r.step(ctx, "install Vault", "Install Vault in the management cluster", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, waiting, charts.InstallChart, helm.ChartInput{
			Mesh: r.spec.Mesh, Context: r.spec.Management.Context, Release: "vault", Namespace: "vault", Chart: "vault", Values: vaultValues(r.spec.Vault), Mode: r.mode,
		})
	})
	if err != nil {
		return err
	}
	if r.mode == procedure.Plan {
		return r.planVault(ctx, len(installed.Changes) > 0)
	}
	r.report.await(ctx, fmt.Sprintf("Vault %q to be initialised and unsealed, and to let this worker in. Initialise it (kubectl -n vault exec vault-0 -- vault operator init), unseal it, "+
		"write the policies and logins of deploy/vault; this run then goes on by itself", r.spec.Vault.Name))
	defer r.report.await(ctx, "")
	_, err = r.step(ctx, "Vault", "Wait for Vault to be ready for use", func(ctx workflow.Context) (procedure.Outcome, error) {
		ctx = workflow.WithValue(ctx, retryForKey{}, time.Duration(0)) // for as long as it takes a person
		out, err := call[vault.CheckVaultResult](ctx, parked, vaults.AwaitVault, vault.CheckVaultInput{Spec: r.spec.Only("")})
		return procedure.Outcome{Detail: out.Version + " at " + out.Address}, err
	})
	return err
}

// planVault asks, once, whether the Vault is fit to be looked at. One that is
// still to be installed holds nothing.
func (r *setup) planVault(ctx workflow.Context, missing bool) error {
	if missing {
		return nil
	}
	_, err := r.step(ctx, "Vault", "Ask whether Vault is ready for use", func(ctx workflow.Context) (procedure.Outcome, error) {
		out, err := call[vault.CheckVaultResult](ctx, looking, vaults.CheckVault, vault.CheckVaultInput{Spec: r.spec.Only("")})
		if err == nil && len(out.Problems) > 0 {
			err = failure.Permanent(failure.Preflight, "what is in it cannot be seen:\n- %s", strings.Join(out.Problems, "\n- "))
		}
		return procedure.Outcome{Detail: out.Version + " at " + out.Address}, err
	})
	return err
}

func (r *setup) vaultPKI(ctx workflow.Context) error {
	v := r.spec.Vault
	type pkiMount struct {
		mount string
		ttl   mesh.Duration
	}
	mounts := []pkiMount{{v.RootMount, r.spec.PKI.Root.TTL}, {v.RelayMount, r.spec.PKI.Intermediate.TTL}}
	if r.spec.PKI.Root.Offline() {
		mounts = mounts[1:]
	}
	for _, m := range mounts {
		if _, err := r.step(ctx, "PKI mount "+m.mount, "Enable and tune the PKI mount "+m.mount, func(ctx workflow.Context) (procedure.Outcome, error) {
			return call[procedure.Outcome](ctx, acting, vaults.EnablePKI, vault.EnablePKIInput{Mesh: r.spec.Mesh, Vault: v.Name, Mount: m.mount, MaxLeaseTTL: m.ttl, Mode: r.mode})
		}); err != nil {
			return err
		}
	}
	if _, err := r.step(ctx, "root CA", "Find or generate the root CA", func(ctx workflow.Context) (procedure.Outcome, error) {
		var err error
		if r.spec.PKI.Root.Offline() {
			r.Root, err = offlineRoot(r.spec)
			return r.Root.Outcome, err
		}
		r.Root, err = call[vault.CAResult](ctx, acting, vaults.GenerateRoot,
			vault.GenerateRootInput{Vault: v.Name, Mount: v.RootMount, Generation: r.Generations.Root, CA: r.spec.PKI.Root.CA, Mode: r.mode})
		return r.Root.Outcome, err
	}); err != nil {
		return err
	}
	r.result.Root = r.Root.Authority
	if _, err := r.step(ctx, "intermediate CA", "Find or make the intermediate CA", r.intermediate); err != nil {
		return err
	}
	r.result.Relay = r.Relay.Authority
	if _, err := r.step(ctx, "roles", "Write the roles of the relay mount", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, acting, vaults.ConfigureRoles,
			vault.ConfigureRolesInput{Spec: r.spec.Only(""), IssuerID: r.Relay.Authority.IssuerID, Mode: r.mode})
	}); err != nil || !r.spec.PKI.StandbyRoot {
		return err
	}
	_, err := r.step(ctx, "standby root", "Find or make the root that stands by", func(ctx workflow.Context) (procedure.Outcome, error) {
		var err error
		r.Standby, err = call[vault.CAResult](ctx, acting, vaults.StandbyRoot, vault.StandbyRootInput{Spec: r.spec.Only(""), Generation: r.Generations.Root, Mode: r.mode})
		return r.Standby.Outcome, err
	})
	return err
}

func (r *setup) intermediate(ctx workflow.Context) (procedure.Outcome, error) {
	in := vault.IntermediateInput{
		Vault: r.spec.Vault.Name, RootMount: r.spec.RootMount(), RelayMount: r.spec.Vault.RelayMount,
		RootIssuerID: r.Root.Authority.IssuerID, RootPEM: r.Root.CertificatePEM,
		Generation: r.Generations.Intermediate, CA: r.spec.PKI.Intermediate, Mode: r.mode,
	}
	var outcome procedure.Outcome
	var err error
	r.Relay, outcome, err = makeIntermediate(ctx, r.signing, r.spec, in)
	return outcome, err
}

// managementCluster gives the management server its certificate and installs it.
func (r *setup) managementCluster(ctx workflow.Context) error {
	issuing := issuing{
		spec: r.spec.Only(""), context: r.spec.Management.Context,
		certificate: r.spec.Certificates.Server,
		issuerID:    r.Relay.Authority.IssuerID, rootPEM: r.Root.CertificatePEM, intermediatePEM: r.Relay.CertificatePEM, mode: r.mode,
	}
	leaf, err := issuing.run(ctx, r.step)
	if err != nil {
		return err
	}
	r.result.Server = leaf
	if _, err := r.step(ctx, "identity token", "Make or find the relay identity token", func(ctx workflow.Context) (procedure.Outcome, error) {
		if r.spec.Gloo.IdentityToken.Mode == mesh.TokenNone {
			return procedure.Outcome{Detail: "not used"}, nil
		}
		return call[procedure.Outcome](ctx, acting, kubernetes.CopyIdentityToken,
			cluster.IdentityTokenInput{Spec: r.spec.Only(""), Context: r.spec.Management.Context, Mode: r.mode})
	}); err != nil {
		return err
	}
	if _, err := r.step(ctx, "management server", "Install the Gloo management server", func(ctx workflow.Context) (procedure.Outcome, error) {
		if !*r.spec.Gloo.Install {
			return procedure.Outcome{Detail: "left to others"}, nil
		}
		return glooIn(ctx, r.spec.Only(""), r.spec.Management.Context, "", serverValues(r.spec), r.mode)
	}); err != nil {
		return err
	}
	_, err = r.step(ctx, "relay address", "Wait for the management server's address", func(ctx workflow.Context) (procedure.Outcome, error) {
		out, err := call[cluster.RelayAddressResult](ctx, waiting, kubernetes.AwaitRelayAddress, cluster.RelayAddressInput{Spec: r.spec.Only(""), Mode: r.mode})
		r.Address = out.Address
		if r.Address == "" {
			out.Address = "there is none yet"
		}
		return procedure.Outcome{Detail: out.Address}, err
	})
	return err
}

// workloadClusters sets up every workload in a child workflow of its own, as
// the spec's rollout says. One that fails is parked, and the others go on.
func (r *setup) workloadClusters(ctx workflow.Context) error {
	if err := r.report.phase(ctx, "workload clusters"); err != nil {
		return err
	}
	return r.fleet.run(ctx, func(ctx workflow.Context, name string) (procedure.State, string, error) {
		out, err := r.workloadCluster(ctx, name)
		if err != nil {
			return procedure.Failed, "", err
		}
		r.Results = append(r.Results, out)
		r.result.Changed = r.result.Changed || out.Changed
		return settled(out), expiry(out.Leaf), nil
	})
}

// lookAround has every workload looked at, some at a time. Whether one has
// drifted or cannot be looked at, the answer is the same: it is to be worked on.
func (r *setup) lookAround(ctx workflow.Context) error {
	if err := r.report.phase(ctx, "workload clusters"); err != nil {
		return err
	}
	places := workflow.NewSemaphore(ctx, clustersAtOnce)
	wg := workflow.NewWaitGroup(ctx)
	results := make([]procedure.ClusterResult, len(r.spec.Workloads))
	differs := false
	for i, w := range r.spec.Workloads {
		if r.fleet.status[w.Name] == rollout.Parked {
			continue // it cannot be reached, as the preflight has found
		}
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			if places.Acquire(ctx, 1) != nil {
				return
			}
			defer places.Release(1)
			r.report.cluster(ctx, w.Name, procedure.Running, "")
			out, err := r.workloadCluster(ctx, w.Name)
			if err != nil {
				differs = true
				r.report.cluster(ctx, w.Name, procedure.Failed, failure.Message(err))
				return
			}
			results[i] = out
			r.result.Changed = r.result.Changed || out.Changed
			r.report.cluster(ctx, w.Name, settled(out), expiry(out.Leaf))
		})
	}
	wg.Wait(ctx)
	if err := ctx.Err(); err != nil {
		return err
	}
	r.Results = results
	if differs && r.mode == procedure.Observe {
		r.Results = nil
		return errWouldChange
	}
	return nil
}

func (r *setup) workloadCluster(ctx workflow.Context, name string) (procedure.ClusterResult, error) {
	w, _ := r.spec.Workload(name)
	var out procedure.ClusterResult
	err := workflow.ExecuteChildWorkflow(workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID:          childID(ctx, name),
		StaticSummary:       "Set up cluster " + name,
		WaitForCancellation: true,
	}), SetupCluster, ClusterInput{
		Spec: r.spec.Only(name), Cluster: name, TaskQueue: r.Queues[w.Context], Mode: r.mode, Attributes: r.report.attributes,
		IssuerID: r.Relay.Authority.IssuerID, RootPEM: r.Root.CertificatePEM, IntermediatePEM: r.Relay.CertificatePEM,
		TrustPEM: trusting(r.Root, r.Standby), StandbyPrintedBy: r.Standby.PrintedBy,
		RelayAddress: r.Address,
	}).Get(ctx, &out)
	return out, err
}

// settled is the state of a cluster that is as it should be.
func settled(out procedure.ClusterResult) procedure.State {
	if out.Changed {
		return procedure.Done
	}
	return procedure.UpToDate
}

// settleWithin is how long agents that have just been installed get to connect.
var settleWithin = mesh.Minutes(3)

// prove verifies the whole mesh, and has it verified from now on.
func (r *setup) prove(ctx workflow.Context, settle mesh.Duration) error {
	if err := r.report.phase(ctx, "verification"); err != nil {
		return err
	}
	var err error
	if r.result.Verification, err = verify(ctx, r.step, r.spec, r.fleet.kept(r.spec), settle); err != nil {
		return err
	}
	return ensureSchedules(ctx, r.spec, r.mode, r.step)
}

// step runs one step, reports it, and notes whether it changed something. In a
// look around a step that would change something ends it.
func (r *setup) step(ctx workflow.Context, name, summary string, run func(workflow.Context) (procedure.Outcome, error)) (procedure.Outcome, error) {
	if err := r.fleet.gate(ctx); err != nil {
		return procedure.Outcome{}, err
	}
	ctx = workflow.WithValue(ctx, retryForKey{}, r.spec.Rollout.RetryFor.Duration)
	outcome, changed, err := takeStep(ctx, r.report, r.mode, name, summary, run)
	r.result.Changed = r.result.Changed || changed
	return outcome, err
}

func pending(ctx workflow.Context, spec mesh.Spec) []procedure.ClusterProgress {
	var clusters []procedure.ClusterProgress
	for _, w := range spec.Workloads {
		clusters = append(clusters, procedure.ClusterProgress{Cluster: w.Name, State: procedure.Pending, Workflow: childID(ctx, w.Name)})
	}
	return clusters
}

func expiry(leaf procedure.Leaf) string {
	return "certificate until " + pki.Date(leaf.NotAfter)
}
