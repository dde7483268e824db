package workflows

import (
	"fmt"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
)

// AddCluster makes a cluster a member of a mesh that is set up, and touches no
// other member: it takes the lock on this one cluster alone (SetupCluster does),
// so that it works while another procedure is at work on the mesh, or is parked.
// The CAs are read and never made. It can be started again at any time, also
// after it failed half-way or with other settings of a member.
//
// The member is recorded before its first certificate is issued: whoever asks
// who is in the mesh hears of it, and so does a removal.
func AddCluster(ctx workflow.Context, in procedure.Typed[procedure.AddClusterInput]) (procedure.AddClusterResult, error) {
	a := &addition{in: in.In, mode: procedure.Apply}
	a.result = procedure.AddClusterResult{Mesh: a.in.Mesh, Cluster: a.in.Workload.Name, Plan: a.in.Plan}
	if a.in.Plan {
		a.mode = procedure.Plan
	}
	var err error
	if a.report, err = newReport(ctx, procedure.Progress{
		Procedure: procedure.AddCluster, Mesh: a.in.Mesh, Cluster: a.in.Workload.Name, Phase: "preflight",
		Clusters: pending(ctx, mesh.Spec{Workloads: []mesh.Workload{a.in.Workload}}),
	}); err != nil {
		return a.result, err
	}
	if err := invalid(append(in.Problems, a.in.Validate()...)); err != nil {
		return a.result, a.report.finish(ctx, err)
	}
	err = a.run(ctx)
	a.result.Steps = a.report.Steps
	return a.result, a.report.finish(ctx, err)
}

// addition is one run of AddCluster.
type addition struct {
	in     procedure.AddClusterInput
	mode   procedure.Mode
	report *report
	result procedure.AddClusterResult

	// spec is the mesh's, with the new member; queues are as in preflight.
	spec   mesh.Spec
	queues map[string]string

	root, relay vault.CAResult
	// rotation is the one that the mesh is in; in one of the root, or an emergency,
	// bridgePEM is above the intermediate in the chain that Vault gives. trustPEM is
	// what the agent is to trust then, or where a root stands by, for its new member too.
	rotation            *procedure.Rotation
	bridgePEM, trustPEM string
	// generation is that of the root at work.
	generation int
	address    string
}

func (a *addition) run(ctx workflow.Context) error {
	preflight := a.report.begin(ctx, "preflight")
	outcome, err := a.preflight(ctx)
	a.report.end(ctx, preflight, outcome, err)
	if err != nil {
		return err
	}
	if err := a.report.phase(ctx, "membership"); err != nil {
		return err
	}
	if _, err := a.step(ctx, "record the member", "Record the new member", func(ctx workflow.Context) (procedure.Outcome, error) {
		return a.record(ctx, false)
	}); err != nil {
		return err
	}
	// After it is recorded: a rotation that moves the members from one intermediate
	// to the next then knows of this one, whichever is read here.
	if _, err := a.step(ctx, "certificate authorities", "Read the CAs in Vault", a.authorities); err != nil {
		return err
	}
	if _, err := a.step(ctx, "relay address", "Read the management server's address", func(ctx workflow.Context) (procedure.Outcome, error) {
		out, err := call[cluster.RelayAddressResult](ctx, waiting, kubernetes.AwaitRelayAddress, cluster.RelayAddressInput{Spec: a.spec.Only("")})
		a.address = out.Address
		return procedure.Outcome{Detail: out.Address}, err
	}); err != nil {
		return err
	}
	if err := a.setUp(ctx); err != nil || a.mode != procedure.Apply {
		return err
	}
	if err := a.prove(ctx); err != nil {
		return err
	}
	_, err = a.step(ctx, "record the member", "Record that the member is set up", func(ctx workflow.Context) (procedure.Outcome, error) {
		return a.record(ctx, true)
	})
	return err
}

// preflight asks only those that the new member concerns; nothing has been
// changed by its end.
func (a *addition) preflight(ctx workflow.Context) (procedure.Outcome, error) {
	var err error
	if a.queues, err = a.report.describe(ctx, "preflight"); err != nil {
		return procedure.Outcome{}, err
	}
	record, err := readMesh(ctx, a.in.Mesh, a.in.Management, a.in.Namespace)
	if err != nil {
		return procedure.Outcome{}, err
	}
	a.spec, a.rotation, a.generation = record.Spec.With(a.in.Workload), record.Rotation, max(record.Generations.Root, 1)
	if err := invalid(append(record.Spec.MoveProblems(a.in.Workload), a.spec.Validate()...)); err != nil {
		return procedure.Outcome{}, err
	}
	outcome, err := checkEverything(ctx, a.spec.Only(a.in.Workload.Name), true, a.queues, nil)
	if err != nil {
		return outcome, err
	}
	_, err = a.authorities(ctx)
	return outcome, err
}

// readMesh reads a mesh's record, which has to be there.
func readMesh(ctx workflow.Context, name, management, namespace string) (cluster.MeshRecord, error) {
	record, err := call[cluster.MeshRecord](ctx, summarized(looking, "Read the mesh's record"), kubernetes.ReadMesh,
		cluster.ReadMeshInput{Mesh: name, Management: management, Namespace: namespace})
	if err == nil && !record.Found {
		err = failure.Permanent(failure.InvalidInput, "there is no mesh %q in the management cluster. relaypki status lists the meshes; set it up first: relaypki setup -f mesh.yaml", name)
	}
	return record, err
}

// authorities reads the CAs that the mesh has now: those that the management
// server's certificates are issued by.
func (a *addition) authorities(ctx workflow.Context) (procedure.Outcome, error) {
	seen, err := call[vault.SurveyResult](ctx, summarized(looking, "Read the CAs in Vault"), vaults.Survey, vault.SurveyInput{Spec: a.spec.Only("")})
	if err != nil {
		return procedure.Outcome{}, err
	}
	if !seen.Active.HasKey || !seen.Active.Signs {
		return procedure.Outcome{}, failure.Permanent(failure.Preflight, "nothing was changed; the intermediate %s of the mesh %q may not issue: a rotation of it was not finished, or somebody has changed it. relaypki verify %[2]s says what is there",
			seen.Active.Authority.Name, a.spec.Mesh)
	}
	a.root, a.relay = seen.Root, vault.CAResult{Authority: seen.Active.Authority, CertificatePEM: seen.Active.CertificatePEM}
	if err := a.inRotation(seen); err != nil {
		return procedure.Outcome{}, err
	}
	a.withStandby(seen)
	return procedure.Outcome{Detail: fmt.Sprintf("%s, %s", a.root.Authority.Name, a.relay.Authority.Name)}, nil
}

// inRotation has the new member begin with what the mesh is in, where its root is
// being rotated or an emergency replaces a CA: the chain that Vault gives, and in its
// trust whatever anybody may present meanwhile.
func (a *addition) inRotation(seen vault.SurveyResult) error {
	a.bridgePEM, a.trustPEM = "", "" // what was read before may be over
	now := a.rotation
	if now == nil || now.Procedure != procedure.RotateRootCA && now.Procedure != procedure.EmergencyReissue {
		return nil
	}
	if above := seen.Active.AbovePEM; len(above) > 0 {
		// cert-manager has the end of what Vault gives become ca.crt, and does not
		// present it if it is self-signed.
		a.root.CertificatePEM = above[len(above)-1]
		first, err := certificateOf(above[0])
		if err != nil {
			return err
		}
		if !pki.SelfSigned(first) {
			a.bridgePEM = above[0]
		}
	} else if above != nil { // pinned: that end is the intermediate itself
		a.root.CertificatePEM = seen.Active.CertificatePEM
	}
	if now.Procedure == procedure.EmergencyReissue && now.FromRoot == now.ToRoot {
		a.trustPEM = pinning(seen, now)
		return nil
	}
	for _, root := range seen.Roots {
		if root.Generation == now.ToRoot && now.Dropped != procedure.DroppedNew || root.Generation == now.FromRoot && now.Dropped != procedure.DroppedOld {
			a.trustPEM += root.CertificatePEM
		}
	}
	return nil
}

// withStandby has the new member trust the root that stands by, as the others do. In
// a rotation of the root it is between which roots that goes that counts.
func (a *addition) withStandby(seen vault.SurveyResult) {
	replaces := a.rotation != nil && a.rotation.From != a.rotation.To // an emergency of a leaf does not
	if !a.spec.PKI.StandbyRoot || replaces && a.rotation.Procedure != procedure.RotateIntermediateCA {
		return
	}
	if standby, found := vault.StandingBy(seen.Roots, a.generation); found {
		a.trustPEM = trusting(a.root, vault.CAResult{CertificatePEM: standby.CertificatePEM})
	}
}

// pinning is what agents trust while an emergency puts a new intermediate in the
// root's place: that alone, once Vault gives it so, and the root too before. It is
// empty where no CA is replaced.
func pinning(seen vault.SurveyResult, now *procedure.Rotation) string {
	if now.From == now.To {
		return ""
	}
	if above := seen.Active.AbovePEM; above != nil && len(above) == 0 {
		return seen.Active.CertificatePEM
	}
	trust := seen.Root.CertificatePEM
	for _, i := range seen.Intermediates {
		if i.Generation == now.To {
			trust += i.CertificatePEM
		}
	}
	return trust
}

// record notes that the member is joining, or that it has joined. Others may
// have changed the mesh meanwhile: what is recorded counts.
func (a *addition) record(ctx workflow.Context, joined bool) (procedure.Outcome, error) {
	out, err := call[cluster.RecordMemberResult](ctx, acting, kubernetes.RecordMember, cluster.RecordMemberInput{
		Mesh: a.spec.Mesh, Management: a.spec.Management.Context, Namespace: a.spec.Management.Namespace,
		Workload: a.in.Workload, Joined: joined, Mode: a.mode,
	})
	if err == nil {
		a.spec, a.rotation, a.generation = out.Record.Spec.WithDefaults(), out.Record.Rotation, max(out.Record.Generations.Root, 1)
	}
	return out.Outcome, err
}

func (a *addition) setUp(ctx workflow.Context) error {
	if err := a.report.phase(ctx, "workload cluster"); err != nil {
		return err
	}
	name := a.in.Workload.Name
	w, _ := a.spec.Workload(name)
	a.report.cluster(ctx, name, procedure.Running, "")
	err := workflow.ExecuteChildWorkflow(workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID:          childID(ctx, name),
		StaticSummary:       "Set up cluster " + name,
		WaitForCancellation: true,
	}), SetupCluster, ClusterInput{
		Spec: a.spec.Only(name), Cluster: name, TaskQueue: a.queues[w.Context], Mode: a.mode, Attributes: a.report.attributes,
		IssuerID: a.relay.Authority.IssuerID, RootPEM: a.root.CertificatePEM, IntermediatePEM: a.relay.CertificatePEM, BridgePEM: a.bridgePEM, TrustPEM: a.trustPEM,
		RelayAddress: a.address,
	}).Get(ctx, &a.result.Setup)
	if err != nil {
		a.report.cluster(ctx, name, procedure.Failed, failure.Message(err))
		return err
	}
	a.result.Changed = a.result.Changed || a.result.Setup.Changed
	detail := expiry(a.result.Setup.Leaf)
	if a.mode == procedure.Plan {
		detail = ""
	}
	a.report.cluster(ctx, name, settled(a.result.Setup), detail)
	return nil
}

// prove verifies the new member and the management cluster, and no other.
func (a *addition) prove(ctx workflow.Context) error {
	if err := a.report.phase(ctx, "verification"); err != nil {
		return err
	}
	_, err := a.step(ctx, "verification", "Prove that the new member works", func(ctx workflow.Context) (procedure.Outcome, error) {
		var verified procedure.VerifyResult
		err := workflow.ExecuteChildWorkflow(workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
			WorkflowID:          childID(ctx, "verify"),
			StaticSummary:       "Verify cluster " + a.in.Workload.Name,
			WaitForCancellation: true,
		}), VerifyMesh, procedure.VerifyInput{
			Mesh: a.spec.Mesh, Management: a.spec.Management.Context, Namespace: a.spec.Management.Namespace,
			Clusters: []string{a.in.Workload.Name}, Settle: settleWithin,
		}).Get(ctx, &verified)
		a.result.Verification = &verified
		return procedure.Outcome{Detail: fmt.Sprintf("%d checks", verified.Checks)}, err
	})
	return err
}

func (a *addition) step(ctx workflow.Context, name, summary string, run func(workflow.Context) (procedure.Outcome, error)) (procedure.Outcome, error) {
	outcome, changed, err := takeStep(ctx, a.report, a.mode, name, summary, run)
	a.result.Changed = a.result.Changed || changed
	return outcome, err
}
