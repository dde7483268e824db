package workflows

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/relay"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rollout"
	"github.com/relaypki/relaypki/internal/rotation"
	"github.com/relaypki/relaypki/internal/shell"
	"github.com/relaypki/relaypki/internal/strict"
)

// RotateIntermediateCA replaces the intermediate of a mesh by a new one of the
// same root, with no handshake that fails: every trust store holds the root, so
// a chain of either intermediate is accepted by everybody, in whatever order
// certificates are issued.
//
// It goes through phases: preflight, stage (the new intermediate is made beside
// the one at work), prove (it signs a throwaway certificate, and all handshakes
// are computed with it), canary, server, fleet (roles are moved to it and
// certificates issued anew), converge (nothing is left of the previous one),
// retire (which may then no longer issue, and whose last certificate is waited
// out). With that it is over; if that was asked for, delete key follows.
//
// What it is about to do is in the mesh's record before it does it: started
// again after any crash, or with its history lost, it goes on, and makes no
// second intermediate. Until it is over it goes back the way it came.
func RotateIntermediateCA(ctx workflow.Context, in procedure.Typed[procedure.RotateIntermediateInput], long *longRotation) (procedure.RotateResult, error) {
	ctx, abort := workflow.WithCancel(ctx)
	r := &intermediateRotation{input: in.In, rotating: rotating{in: in.In.MeshInput, mode: procedure.Apply}}
	if in.In.Plan {
		r.mode = procedure.Plan
	}
	r.result = procedure.RotateResult{Mesh: in.In.Mesh, Plan: in.In.Plan}
	progress := procedure.Progress{Procedure: procedure.RotateIntermediateCA, Mesh: in.In.Mesh, Phase: string(rotation.PhasePreflight)}
	if long != nil && workflow.GetInfo(ctx).ContinuedExecutionRunID != "" {
		r.longRotation, r.rotatingState, progress = *long, long.State, long.State.Progress
	}
	var err error
	if r.report, err = newReport(ctx, progress); err != nil {
		return r.result, err
	}
	r.report.attributes, r.report.phased = r.Attributes, true
	r.fleet = newRotationFleet(r.report, abort)
	if err := r.fleet.steer(ctx); err != nil {
		return r.result, err
	}
	if err := r.steer(ctx); err != nil {
		return r.result, err
	}
	if r.signing, err = newSigning(ctx, r.report, r.fleet.standing); err != nil {
		return r.result, err
	}
	if err := invalid(append(in.Problems, in.In.Validate()...)); err != nil {
		return r.result, r.report.finish(ctx, err)
	}
	err = r.run(ctx)
	if errors.Is(err, errLong) {
		next := r.longRotation
		next.State = r.handOver()
		return r.result, workflow.NewContinueAsNewError(ctx, procedure.RotateIntermediateCA, in.In, next)
	}
	r.sum()
	err = r.fleet.outcome(err)
	if err == nil && r.Record.Back != "" && !r.input.Rollback {
		err = failure.Permanent(failure.RolledBack, "taken back as was asked for (%s): every certificate is of %s again", r.Record.Back, r.From.Authority.Name)
	}
	if err != nil && !r.input.Plan && failure.KindOf(err) != failure.RolledBack {
		r.report.Told = warn(ctx, r.report, err, whatFailed(r.report.Progress, err))
	}
	return r.result, r.report.finish(ctx, err)
}

// intermediateRotation is one run of RotateIntermediateCA.
type intermediateRotation struct {
	rotating
	longRotation
	input procedure.RotateIntermediateInput
	// turn cancels what is done forward, to go back; cut says that something was
	// under way then.
	turn workflow.CancelFunc
	cut  bool
	// signing is for a root that is kept outside Vault.
	signing *signing
}

// longRotation is what a rotation that is continued as new goes on from.
type longRotation struct {
	State rotatingState `json:"state"`
	// Record is what the mesh's record says of this rotation.
	Record procedure.Rotation `json:"record"`
	From   vault.CAResult     `json:"from"`
	To     vault.CAResult     `json:"to"`
	Root   vault.CAResult     `json:"root"`
	// Phase is the one that is under way; those before it are over.
	Phase    rotation.Phase `json:"phase"`
	Approved []string       `json:"approved,omitempty"`
	// Turned says that it has begun to go back, Lands until when what was under way
	// then may still happen in Vault; zero if nothing was.
	Turned bool      `json:"turned,omitempty"`
	Lands  time.Time `json:"lands,omitzero"`
	// Keyless says that the key of From is gone: it issues nothing any more.
	Keyless bool `json:"keyless,omitempty"`
	// Deletions are keys that are to be deleted once the rotation is over.
	Deletions []procedure.Deletion `json:"deletions,omitempty"`
}

func (r *intermediateRotation) run(ctx workflow.Context) error {
	if r.Phase != "" { // continued as new: the lock is held
		if err := r.readSpec(ctx); err != nil {
			return err
		}
		return release(ctx, caLock(ctx, r.spec), r.thereOrBack(ctx))
	}
	record, err := r.preflight(ctx)
	if err != nil {
		return err
	}
	if r.input.Plan {
		return r.plan(ctx)
	}
	return locked(ctx, r.step, caLock(ctx, r.spec), theCAs, func(ctx workflow.Context) error {
		if err := r.begin(ctx, record); err != nil {
			return err
		}
		return r.thereOrBack(ctx)
	})
}

// thereOrBack goes through the phases; told to roll back, it ends what it is at
// and goes back.
func (r *intermediateRotation) thereOrBack(ctx workflow.Context) error {
	if r.Record.Back == "" {
		forward, turn := workflow.WithCancel(ctx)
		r.turn = turn
		// Who goes back is in a hurry, and waits for no window.
		r.fleet.opens = r.opens
		err := r.forward(forward)
		r.fleet.opens = nil
		if r.Record.Back == "" || errors.Is(err, errLong) {
			return err
		}
	}
	if err := r.remember(ctx); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return r.backward(ctx)
}

// remember records that somebody has asked to go back, also where the run is paused
// or being ended: whoever goes on with the rotation is to go that way.
func (r *intermediateRotation) remember(ctx workflow.Context) error {
	ctx, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	r.Record.Converged = time.Time{}
	_, _, err := takeStep(ctx, r.report, r.mode, "record the rollback", "Record that the rotation goes back", func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.recordRotation(ctx, &r.Record, nil)
	})
	return err
}

// steps of the way forward, in their order.
func (r *intermediateRotation) forward(ctx workflow.Context) error {
	for _, p := range []struct {
		phase rotation.Phase
		do    func(workflow.Context) error
	}{
		{rotation.PhaseStage, r.stage},
		{rotation.PhaseProve, r.prove},
		{rotation.PhaseCanary, r.canary},
		{rotation.PhaseServer, r.server},
		{rotation.PhaseFleet, r.everybody},
		{rotation.PhaseConverge, r.converge},
		{rotation.PhaseRetire, r.retire},
		{rotation.PhaseDeleteKey, r.deleteKey},
	} {
		if rotation.OfIntermediate.Before(p.phase, r.Phase) {
			continue // a run before this one has been through it
		}
		if p.phase == rotation.PhaseDeleteKey && !r.input.DeleteOldKey {
			continue
		}
		r.Phase = p.phase
		if err := r.report.phase(ctx, string(p.phase)); err != nil {
			return err
		}
		if err := r.approval(ctx, p.phase); err != nil {
			return err
		}
		if err := p.do(ctx); err != nil {
			return err
		}
	}
	return nil
}

// preflight looks at all that the rotation relies on; nothing has been changed
// by its end.
func (r *intermediateRotation) preflight(ctx workflow.Context) (record cluster.MeshRecord, err error) {
	if r.Queues, err = r.report.describe(ctx, string(rotation.PhasePreflight)); err != nil {
		return record, err
	}
	if record, err = r.read(ctx); err != nil {
		return record, err
	}
	r.Deletions = record.Deletions
	if r.input.DeleteOldKey && !r.input.Rollback && record.Rotation == nil && len(record.Deletions) > 0 {
		r.Phase = rotation.PhaseDeleteKey // all that the rotation has left to do
		return record, nil
	}
	r.report.Clusters = pending(ctx, r.spec)
	r.fleet.follow(r.spec.Rollout)
	r.keepOut(ctx, record.Quarantined)
	if r.input.Rollback && record.Rotation == nil {
		return record, failure.Permanent(failure.InvalidInput, "the mesh %q is in no rotation that could be taken back; nothing was changed. To be rid of the intermediate at work, rotate to a new one: relaypki rotate intermediate %[1]s", r.spec.Mesh)
	}
	if record.Rotation != nil && record.Rotation.Procedure != procedure.RotateIntermediateCA {
		return record, failure.Permanent(failure.Conflict, "the mesh %q is in %s, begun by %s; nothing was changed. Finish that first", r.spec.Mesh, record.Rotation.Procedure, record.Rotation.Workflow)
	}
	if _, err := r.step(ctx, "certificate authorities", "Read the CAs in Vault", func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.survey(ctx, record)
	}); err != nil {
		return record, err
	}
	if _, err := r.step(ctx, "server", "Read what the management server presents and trusts", func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.readServer(ctx, false)
	}); err != nil {
		return record, err
	}
	var agents []rotation.PlanMember
	if _, err := r.step(ctx, "handshakes", "Compute the handshakes of every agent and the server", func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.pairs(ctx, r.names(), true, func(name string, pair relay.CheckPairResult) {
			agents = append(agents, rotation.PlanMember{Name: name, Presents: pair.Presents, Trusts: pair.Trusts})
		})
	}); err != nil {
		return record, err
	}
	r.matrix(agents)
	return record, nil
}

// survey decides between which generations the rotation goes: those of the one
// that has begun, or from the one at work to a new one.
func (r *intermediateRotation) survey(ctx workflow.Context, record cluster.MeshRecord) (procedure.Outcome, error) {
	seen, err := call[vault.SurveyResult](ctx, acting, vaults.Survey, vault.SurveyInput{Spec: r.spec.Only("")})
	if err != nil {
		return procedure.Outcome{}, err
	}
	r.Root = seen.Root
	r.Record = procedure.Rotation{
		Procedure: procedure.RotateIntermediateCA, From: seen.Active.Generation, To: seen.Highest + 1,
		Workflow: holder(ctx), Began: workflow.Now(ctx), Snapshot: r.input.Snapshot,
	}
	byHand := begunByHand(record.Generations.Intermediate, seen.Intermediates)
	if byHand > 0 {
		r.Record.From, r.Record.To = record.Generations.Intermediate, byHand
	}
	if begun := record.Rotation; begun != nil {
		r.Record = *begun
		if r.input.Snapshot != "" {
			r.Record.Snapshot = r.input.Snapshot
		}
	}
	if err := r.choose(record.Rotation != nil); err != nil {
		return procedure.Outcome{}, err
	}
	if r.input.Rollback && r.Record.Back == "" {
		r.Record.Back = r.input.Reason
	}
	r.find(seen)
	if r.From.CertificatePEM == "" {
		return procedure.Outcome{}, failure.Permanent(failure.Preflight, "Vault %q: the intermediate %s, which the rotation goes out from, is not in the mount %s; nothing was changed. relaypki verify %s says what is there",
			r.spec.Vault.Name, vault.IntermediateName(r.Record.From), r.spec.Vault.RelayMount, r.spec.Mesh)
	}
	if seen.FollowsLatest {
		return procedure.Outcome{}, failure.Permanent(failure.Preflight, "Vault %q: in the mount %s default_follows_latest_issuer is true: a new intermediate would be at work at once. Set it to false (vault write %[2]s/config/issuers default_follows_latest_issuer=false), then start again; nothing was changed",
			r.spec.Vault.Name, r.spec.Vault.RelayMount)
	}
	if r.To.CertificatePEM == "" && workflow.Now(ctx).Sub(r.Record.Began) > snapshotGood {
		r.Record.Snapshot = r.input.Snapshot
	}
	if err := r.wayBack(ctx); err != nil {
		return procedure.Outcome{}, err
	}
	if err := r.rootLasts(ctx); err != nil {
		return procedure.Outcome{}, err
	}
	detail := fmt.Sprintf("%s, until %s", r.From.Authority.Name, pki.Date(r.From.Authority.NotAfter))
	switch {
	case record.Rotation != nil:
		detail += fmt.Sprintf("; the rotation to generation %d that began %s goes on", r.Record.To, pki.Date(r.Record.Began))
	case byHand > 0:
		detail += fmt.Sprintf("; the rotation to %s that was begun by hand goes on", vault.IntermediateName(byHand))
	}
	return procedure.Outcome{Detail: detail}, nil
}

// snapshotGood is for how long a snapshot of Vault is one of before a rotation that
// has changed nothing yet.
const snapshotGood = 24 * time.Hour

// wayBack has a rotation go forward that was to be taken back and cannot be any
// more; to ask for it anew is refused.
func (r *intermediateRotation) wayBack(ctx workflow.Context) error {
	if r.Record.Back == "" {
		return nil
	}
	err := r.noWayBack(ctx)
	if err == nil || r.input.Rollback {
		return err
	}
	r.Record.Back = ""
	return nil
}

// noWayBack says why the previous intermediate cannot serve the mesh once more.
// It issues nothing without its key, and refuses to issue what would outlive it,
// so each renewal would fail.
func (r *intermediateRotation) noWayBack(ctx workflow.Context) error {
	err := rotation.WayBack(r.From.Authority.NotAfter, r.spec.Certificates.LongestLife(), pace(r.spec), workflow.Now(ctx))
	if r.Keyless {
		err = errors.New("its key is not in Vault any more")
	}
	if err == nil {
		return nil
	}
	return failure.Permanent(failure.Preflight, "the rotation is not taken back to %s: %v. It only goes forward: relaypki rotate intermediate %s", r.From.Authority.Name, err, r.spec.Mesh)
}

// begunByHand is the generation of an intermediate that no rotation of ours has
// left as it is, later than the recorded one and free to issue: whoever ran a
// plan's commands, all of them or some, has made it. It is 0 if there is none; one
// that a rotation was taken back from may not issue.
func begunByHand(recorded int, all []vault.IntermediateState) int {
	latest := 0
	for _, i := range all {
		if i.Generation > max(recorded, latest) && i.HasKey && i.Signs {
			latest = i.Generation
		}
	}
	return latest
}

// choose decides what the new intermediate is like. For a rotation that has begun
// it is decided.
func (r *intermediateRotation) choose(begun bool) error {
	if r.input.Intermediate == (mesh.CA{}) {
		return nil
	}
	asked := r.spec.PKI.Intermediate.With(r.input.Intermediate)
	if begun {
		if asked != r.next().PKI.Intermediate {
			return invalid([]strict.Problem{problem("intermediate", "the rotation that has begun makes another intermediate than this; leave it out, or take the rotation back first: relaypki rollback %s --reason WHY", r.spec.Mesh)})
		}
		return nil
	}
	if asked != r.spec.PKI.Intermediate {
		r.Record.Intermediate = &asked
	}
	return invalid(r.next().Validate())
}

// next is the mesh as it is described once the rotation is over.
func (r *intermediateRotation) next() mesh.Spec {
	spec := r.spec
	if r.Record.Intermediate != nil {
		spec.PKI.Intermediate = *r.Record.Intermediate
	}
	return spec
}

// rootLasts is an error if the root ends before an intermediate that is made now
// would. How long one lives that is signed outside Vault is for whoever signs it,
// down to what is of any use.
func (r *intermediateRotation) rootLasts(ctx workflow.Context) error {
	if r.To.CertificatePEM != "" || r.Record.Back != "" {
		return nil
	}
	if r.spec.PKI.Root.Offline() {
		root, err := r.spec.PKI.Root.Certificate()
		if err != nil {
			return failure.Permanent(failure.InvalidInput, "pki.root.certificatePEM cannot be read: %v", err)
		}
		return lasts(ctx, r.next(), root)
	}
	life := r.next().PKI.Intermediate.TTL
	if !r.Root.Authority.NotAfter.Before(workflow.Now(ctx).Add(life.Duration)) {
		return nil
	}
	return failure.Permanent(failure.Preflight, "Vault %q: the root %s ends %s, before an intermediate that is made now for %s; nothing was changed. Rotate the root first, or ask for a shorter life: relaypki rotate intermediate %s --ttl DURATION",
		r.spec.Vault.Name, r.Root.Authority.Name, pki.Date(r.Root.Authority.NotAfter), life, r.spec.Mesh)
}

// find takes the two intermediates of the rotation from what there is in Vault.
func (r *intermediateRotation) find(seen vault.SurveyResult) {
	for _, i := range seen.Intermediates {
		ca := vault.CAResult{Authority: i.Authority, CertificatePEM: i.CertificatePEM}
		switch i.Generation {
		case r.Record.From:
			r.From, r.Keyless = ca, !i.HasKey
		case r.Record.To:
			r.To = ca
		}
	}
}

// begin records what is about to be done.
func (r *intermediateRotation) begin(ctx workflow.Context, before cluster.MeshRecord) error {
	// Again, with the lock: another run may have been at it meanwhile.
	record, err := r.read(ctx)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(record.Rotation, before.Rotation) || record.Generations != before.Generations {
		return failure.Permanent(failure.Conflict, "another rotation of the mesh %q has begun, turned or ended while this one looked around; nothing was changed by this one. Start it again", r.spec.Mesh)
	}
	r.Deletions = record.Deletions
	if r.Phase == rotation.PhaseDeleteKey {
		return nil // none begins
	}
	r.newcomers(ctx)
	return r.note(ctx, "record the rotation", "Record the rotation that begins")
}

// note records how far the rotation is.
func (r *intermediateRotation) note(ctx workflow.Context, name, summary string) error {
	_, err := r.step(ctx, name, summary, func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.recordRotation(ctx, &r.Record, nil)
	})
	return err
}

func (r *intermediateRotation) recordRotation(ctx workflow.Context, now *procedure.Rotation, generations *procedure.Generations) (procedure.Outcome, error) {
	out, err := call[cluster.RecordMemberResult](ctx, acting, kubernetes.RecordRotation, cluster.RecordRotationInput{
		Mesh: r.spec.Mesh, Management: r.spec.Management.Context, Namespace: r.spec.Management.Namespace,
		Rotation: now, Generations: generations, Deletions: r.Deletions, Quarantined: r.quarantined(), Mode: r.mode,
	})
	return out.Outcome, err
}

// stage makes the new intermediate beside the one at work. Nothing uses it yet.
func (r *intermediateRotation) stage(ctx workflow.Context) error {
	if r.To.CertificatePEM == "" {
		if err := r.snapshot(ctx); err != nil {
			return err
		}
	}
	if err := r.fixChain(ctx); err != nil {
		return err
	}
	_, err := r.step(ctx, "new intermediate", "Make the intermediate "+vault.IntermediateName(r.Record.To), r.makeIntermediate)
	return err
}

// fixChain gives the previous intermediate the chain that it has explicitly: one
// that Vault chooses by itself may change with whatever is imported.
func (r *intermediateRotation) fixChain(ctx workflow.Context) error {
	if r.Keyless { // by hand, the rotation has come further than this
		return nil
	}
	_, err := r.step(ctx, "chain of "+r.From.Authority.Name, "Fix the chain of the intermediate at work", func(ctx workflow.Context) (procedure.Outcome, error) {
		ca, err := call[vault.CAResult](ctx, acting, vaults.SetSignedIntermediate, r.intermediate(r.Record.From))
		return ca.Outcome, err
	})
	return err
}

func (r *intermediateRotation) makeIntermediate(ctx workflow.Context) (procedure.Outcome, error) {
	var outcome procedure.Outcome
	var err error
	r.To, outcome, err = makeIntermediate(ctx, r.signing, r.next(), r.intermediate(r.Record.To))
	return outcome, err
}

func (r *intermediateRotation) intermediate(generation int) vault.IntermediateInput {
	var ca mesh.CA // the one at work is as it is
	if generation == r.Record.To {
		ca = r.next().PKI.Intermediate
	}
	return vault.IntermediateInput{
		Vault: r.spec.Vault.Name, RootMount: r.spec.RootMount(), RelayMount: r.spec.Vault.RelayMount,
		RootIssuerID: r.Root.Authority.IssuerID, RootPEM: r.Root.CertificatePEM,
		Generation: generation, CA: ca, Mode: r.mode, Rotation: true,
	}
}

// snapshot makes sure that Vault can be restored to what it is before the first
// change of a CA.
func (r *intermediateRotation) snapshot(ctx workflow.Context) error {
	how := r.spec.Rotation.Snapshot
	if how == mesh.SnapshotNone || r.Record.Snapshot != "" || !r.mode.Writes() {
		return nil
	}
	if how == mesh.SnapshotTake {
		if _, err := r.step(ctx, "snapshot of Vault", "Take a snapshot of Vault", func(ctx workflow.Context) (procedure.Outcome, error) {
			out, err := call[vault.SnapshotResult](ctx, acting, vaults.TakeSnapshot, vault.SnapshotInput{
				Vault: r.spec.Vault.Name, File: fmt.Sprintf("%s-before-%s-%s.snap", r.spec.Mesh, vault.IntermediateName(r.Record.To), workflow.Now(ctx).UTC().Format("20060102T150405Z")), Mode: r.mode,
			})
			r.Record.Snapshot = out.Path
			return out.Outcome, err
		}); err != nil {
			return err
		}
	} else if err := r.awaitApproval(ctx, phaseSnapshot, "somebody's word that there is a snapshot of Vault from now (vault operator raft snapshot save FILE), before the first change of a CA"); err != nil {
		return err
	} else {
		r.Record.Snapshot = "by the word of whoever approved"
	}
	return r.note(ctx, "record the snapshot", "Record that there is a snapshot of Vault")
}

// prove has the new intermediate sign a throwaway certificate, and computes all
// handshakes with what it gives.
func (r *intermediateRotation) prove(ctx workflow.Context) error {
	return r.aim(ctx, r.To, r.Record.To)
}

// aim makes the intermediate the target of what follows, and proves that every
// handshake would succeed with it.
func (r *intermediateRotation) aim(ctx workflow.Context, ca vault.CAResult, generation int) error {
	r.Target = target{IssuerID: ca.Authority.IssuerID, Generation: generation, RootPEM: r.Root.CertificatePEM, IntermediatePEM: ca.CertificatePEM}
	if r.Target.IssuerID == "" { // in a plan
		r.Target.IssuerID = vault.IntermediateName(generation)
	}
	if _, err := r.step(ctx, "throwaway signature", "Have the intermediate sign a throwaway certificate", func(ctx workflow.Context) (procedure.Outcome, error) {
		out, err := call[vault.ProveIssuerResult](ctx, acting, vaults.ProveIssuer, vault.ProveIssuerInput{
			Spec: r.spec.Only(""), IssuerID: r.Target.IssuerID, RootPEM: r.Root.CertificatePEM, Mode: r.mode,
		})
		if out.ChainPEM != "" {
			r.Target.InFlight = []string{out.ChainPEM}
		}
		return out.Outcome, err
	}); err != nil || !r.mode.Writes() {
		return err
	}
	if _, err := r.step(ctx, "server", "Read what the management server presents and trusts", func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.readServer(ctx, false)
	}); err != nil {
		return err
	}
	_, err := r.step(ctx, "handshakes", "Compute the handshakes of every agent and the server, with the intermediate "+ca.Authority.Name, func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.pairs(ctx, r.names(), true, nil)
	})
	return err
}

// canary works on the canary clusters alone, and looks at them again when they
// have been left to themselves for a while.
func (r *intermediateRotation) canary(ctx workflow.Context) error {
	if r.spec.PKI.Isolation == mesh.IsolationShared {
		// One role signs for everybody; from here on it may be the new intermediate
		// for anybody who renews.
		if err := r.moveRole(ctx, ""); err != nil {
			return err
		}
	}
	names := canaries(r.spec)
	if len(names) == 0 || r.Server.Ended { // no canary could shake hands with such a server: it goes first
		return nil
	}
	if err := r.clusters(ctx, names); err != nil || !r.mode.Writes() {
		return err
	}
	return r.soak(ctx, names)
}

func (r *intermediateRotation) soak(ctx workflow.Context, names []string) error {
	long := r.spec.Rotation.Soak.Duration
	if long == 0 {
		return nil
	}
	until := workflow.Now(ctx).Add(long)
	r.fleet.await(ctx, fmt.Sprintf("the canary (%s) to be left to itself until %s", strings.Join(names, ", "), pki.Date(until)), false)
	err := workflow.Sleep(ctx, long)
	r.fleet.await(ctx, "", false)
	if err != nil {
		return err
	}
	_, err = r.step(ctx, "canary after its soak", "Make fresh handshakes in the place of the canary", func(ctx workflow.Context) (procedure.Outcome, error) {
		for _, name := range names {
			if r.fleet.status[name] != rollout.Done {
				continue
			}
			w, _ := r.spec.Workload(name)
			if _, err := call[procedure.Outcome](ctx, on(r.Queues[w.Context], acting), relays.ShakeHands, relay.ShakeHandsInput{Spec: r.spec.Only(name), Cluster: name}); err != nil && !r.left(ctx, name) {
				return procedure.Outcome{}, err
			}
		}
		return procedure.Outcome{Detail: "accepted: " + strings.Join(names, ", ")}, nil
	})
	return err
}

// everybody works on all other clusters.
func (r *intermediateRotation) everybody(ctx workflow.Context) error {
	return r.clusters(ctx, r.names())
}

// converge goes on until no role and no member is left of the previous
// intermediate: who has joined meanwhile is a member, who has left is none.
func (r *intermediateRotation) converge(ctx workflow.Context) error {
	if !r.mode.Writes() {
		return nil
	}
	if err := r.settle(ctx); err != nil {
		return err
	}
	return r.verify(ctx)
}

// settle has everybody gone over again whose role does not sign with the target,
// and moves the roles of those who were left out: their cert-managers renew by
// themselves, and are then given what everybody accepts.
func (r *intermediateRotation) settle(ctx workflow.Context) error {
	for {
		if err := r.readSpec(ctx); err != nil {
			return err
		}
		r.leavers(ctx)
		r.newcomers(ctx)
		if err := r.clusters(ctx, r.names()); err != nil {
			return err
		}
		for _, c := range r.fleet.in(procedure.Skipped) {
			if _, member := r.spec.Workload(c.Cluster); !member {
				continue
			}
			if err := r.moveRole(ctx, c.Cluster); err != nil {
				return err
			}
		}
		var lagging []string
		if _, err := r.step(ctx, "roles", "Read which intermediate the roles sign with", func(ctx workflow.Context) (procedure.Outcome, error) {
			var err error
			lagging, err = r.lagging(ctx)
			return procedure.Outcome{Detail: fmt.Sprintf("%d left to move", len(lagging))}, err
		}); err != nil || len(lagging) == 0 {
			return err
		}
		for _, name := range lagging {
			r.fleet.status[name] = rollout.Waiting
			r.report.cluster(ctx, name, procedure.Pending, "its role has come back to the previous intermediate")
		}
	}
}

// lagging are the members whose roles do not sign with the target. A role that is
// no member's is somebody else's: to take the intermediate away from it would
// stop its renewals.
func (r *intermediateRotation) lagging(ctx workflow.Context) ([]string, error) {
	seen, err := call[vault.SurveyResult](ctx, acting, vaults.Survey, vault.SurveyInput{Spec: r.spec.Only("")})
	if err != nil {
		return nil, err
	}
	record, err := readMesh(ctx, r.in.Mesh, r.in.Management, r.in.Namespace)
	if err != nil {
		return nil, err
	}
	ours := map[string]string{r.spec.PKI.Role: "", r.spec.ProbeRole(): ""}
	for _, w := range record.Spec.WithDefaults().Workloads {
		if role := r.spec.RoleFor(w); role != r.spec.PKI.Role { // one that all share is the server's
			ours[role] = w.Name
		}
	}
	var lagging, foreign []string
	for _, role := range workflow.DeterministicKeys(seen.Roles) {
		name, known := ours[role]
		switch {
		case seen.Roles[role] == r.Target.IssuerID:
		case !known:
			foreign = append(foreign, role)
		case name == "":
			return nil, failure.Permanent(failure.Conflict, "Vault %q: the role %s signs with another intermediate again; somebody has written it meanwhile. Start the rotation again", r.spec.Vault.Name, role)
		default:
			lagging = append(lagging, name)
		}
	}
	if len(foreign) > 0 {
		return nil, failure.Permanent(failure.Conflict, "Vault %q: roles of %s that are no member's of the mesh %s sign with the previous intermediate: %s. Move each (vault patch %[2]s/roles/ROLE issuer_ref=%[5]s) or delete it, then start the rotation again",
			r.spec.Vault.Name, r.spec.Vault.RelayMount, r.spec.Mesh, strings.Join(foreign, ", "), r.Target.IssuerID)
	}
	return lagging, nil
}

// retire takes the previous intermediate's right to issue, and waits until the
// last certificate that it has issued has ended. With that the rotation is over.
func (r *intermediateRotation) retire(ctx workflow.Context) error {
	if err := r.use(ctx, r.From, false, r.To); err != nil {
		return err
	}
	if _, err := r.step(ctx, "CRL and tidy", "Have Vault renew its CRLs and tidy away what has expired", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, acting, vaults.ConfigureTidy, vault.TidyInput{Spec: r.spec.Only(""), Mode: r.mode})
	}); err != nil {
		return err
	}
	if r.mode.Writes() && r.Record.Converged.IsZero() {
		r.Record.Converged = workflow.Now(ctx)
		if err := r.note(ctx, "record the rotation", "Record that nothing is left of the previous intermediate"); err != nil {
			return err
		}
	}
	if err := r.waitOut(ctx); err != nil {
		return err
	}
	return r.end(ctx)
}

// waitOut waits for the end of the longest leaf. Whoever knows that no other
// certificate of the previous intermediate matters may end it.
func (r *intermediateRotation) waitOut(ctx workflow.Context) error {
	if !r.mode.Writes() {
		return nil
	}
	until := r.Record.Converged.Add(r.spec.Certificates.LongestLife())
	r.result.RetiredUntil = until
	wait := until.Sub(workflow.Now(ctx))
	if wait <= 0 || slices.Contains(r.Approved, phaseFinish) {
		return nil
	}
	r.fleet.await(ctx, fmt.Sprintf("the last certificate of %s to end, at %s. Every member has one of %s. To end the rotation now: relaypki approve %s %s",
		r.From.Authority.Name, pki.Date(until), r.To.Authority.Name, r.spec.Mesh, phaseFinish), false)
	_, err := workflow.AwaitWithTimeout(ctx, wait, func() bool { return slices.Contains(r.Approved, phaseFinish) })
	r.fleet.await(ctx, "", false)
	return err
}

func (r *intermediateRotation) use(ctx workflow.Context, ca vault.CAResult, signs bool, standard vault.CAResult) error {
	name := "use of " + ca.Authority.Name
	if standard.Authority.IssuerID == "" { // in a plan
		standard.Authority.IssuerID = standard.Authority.Name
	}
	_, err := r.step(ctx, name, "Say what the intermediate "+ca.Authority.Name+" may be used for", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, acting, vaults.UseIssuer, vault.UseIssuerInput{
			Spec: r.spec.Only(""), IssuerID: ca.Authority.IssuerID, Signs: signs, Default: standard.Authority.IssuerID, Mode: r.mode,
		})
	})
	return err
}

// deleteKey deletes the previous intermediate's key, for good, and what earlier
// rotations have left to be deleted. Each stays in the record until that is done,
// so that another run can finish it.
func (r *intermediateRotation) deleteKey(ctx workflow.Context) error {
	for len(r.Deletions) > 0 {
		d := r.Deletions[0]
		name := vault.IntermediateName(d.Generation)
		if _, err := r.step(ctx, "key of "+name, "Delete the key of the intermediate "+name, func(ctx workflow.Context) (procedure.Outcome, error) {
			return call[procedure.Outcome](ctx, acting, vaults.DeleteKey, vault.DeleteKeyInput{
				Spec: r.spec.Only(""), IssuerID: d.IssuerID, Name: name, CertificatePEM: d.CertificatePEM, Mode: r.mode,
			})
		}); err != nil {
			return err
		}
		r.Deletions = r.Deletions[1:]
		if !r.mode.Writes() {
			continue
		}
		r.result.Deleted = append(r.result.Deleted, name)
		if _, err := r.step(ctx, "record the mesh", "Record that the key is deleted", func(ctx workflow.Context) (procedure.Outcome, error) {
			out, err := call[cluster.RecordMemberResult](ctx, acting, kubernetes.RecordRotation, cluster.RecordRotationInput{
				Mesh: r.spec.Mesh, Management: r.spec.Management.Context, Namespace: r.spec.Management.Namespace, Deletions: r.Deletions, Mode: r.mode,
			})
			return out.Outcome, err
		}); err != nil {
			return err
		}
	}
	return nil
}

// doomed are the intermediates whose keys are to be deleted, in words.
func (r *intermediateRotation) doomed() string {
	names := make([]string, len(r.Deletions))
	for i, d := range r.Deletions {
		names[i] = vault.IntermediateName(d.Generation)
	}
	return strings.Join(names, ", ")
}

// end records that the mesh is of the new generation and, if that was asked for,
// that the previous one's key is to be deleted. From here on it is not taken back:
// the record would then be of a rotation that is over.
func (r *intermediateRotation) end(ctx workflow.Context) error {
	r.Phase = rotation.PhaseDeleteKey
	if r.input.DeleteOldKey {
		r.Deletions = append(r.Deletions, procedure.Deletion{Generation: r.Record.From, IssuerID: r.From.Authority.IssuerID, CertificatePEM: r.From.CertificatePEM})
	}
	if !r.mode.Writes() {
		return nil
	}
	if err := r.close(ctx, r.Record.To, "Record that the rotation is over"); err != nil {
		return err
	}
	notice(ctx, r.report, fmt.Sprintf("done: every certificate is of %s, until %s", r.To.Authority.Name, pki.Date(r.To.Authority.NotAfter)))
	return nil
}

// close records that the mesh is in no rotation any more, and of which generation
// its intermediate is.
func (r *intermediateRotation) close(ctx workflow.Context, generation int, summary string) error {
	record, err := r.read(ctx)
	if err != nil {
		return err
	}
	generations := record.Generations
	generations.Intermediate = generation
	_, err = r.step(ctx, "record the mesh", summary, func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.recordRotation(ctx, nil, &generations)
	})
	return err
}

// backward takes the rotation back: the previous intermediate may issue again,
// roles are moved back to it, and who has a certificate of the new one gets one
// of the previous. Both are accepted by everybody, so the order is free. What was
// staged stays, and may not issue: deleting is never part of going back.
func (r *intermediateRotation) backward(ctx workflow.Context) error {
	if err := r.report.phase(ctx, "rollback"); err != nil {
		return err
	}
	r.result.RolledBack = r.Record.Back
	if !r.Turned {
		r.Turned = true
		if r.cut || r.turn == nil { // what another run was at, nobody knows
			r.Lands = workflow.Now(ctx).Add(landing)
		}
		r.fleet.again(ctx)
	}
	if err := r.giveBack(ctx); err != nil {
		return err
	}
	// Whoever waits for a new certificate has one by now. What was cut off may have
	// come after it was looked at, so that all is looked at once more.
	if !r.Lands.IsZero() {
		if err := r.fence(ctx); err != nil {
			return err
		}
		if err := r.giveBack(ctx); err != nil {
			return err
		}
	}
	if err := r.verify(ctx); err != nil {
		return err
	}
	if err := r.putAway(ctx); err != nil {
		return err
	}
	if err := r.close(ctx, r.Record.From, "Record that the rotation was taken back"); err != nil {
		return err
	}
	notice(ctx, r.report, fmt.Sprintf("taken back (%s): every certificate is of %s again", r.Record.Back, r.From.Authority.Name))
	return nil
}

// landing is for how long a request that was cut off may still change something
// in Vault: it lets none take longer than 90 s (default_max_request_duration).
const landing = 100 * time.Second

// fence waits until nothing of the way forward can happen in Vault any more.
func (r *intermediateRotation) fence(ctx workflow.Context) error {
	r.fleet.await(ctx, "what was cut off in Vault to have happened or not, until "+pki.Date(r.Lands), false)
	err := workflow.Sleep(ctx, r.Lands.Sub(workflow.Now(ctx)))
	r.fleet.await(ctx, "", false)
	return err
}

// giveBack has the previous intermediate issue again, and everybody have a
// certificate of it.
func (r *intermediateRotation) giveBack(ctx workflow.Context) error {
	if err := r.use(ctx, r.From, true, r.From); err != nil {
		return err
	}
	if err := r.aim(ctx, r.From, r.Record.From); err != nil {
		return err
	}
	if err := r.server(ctx); err != nil {
		return err
	}
	return r.settle(ctx)
}

// putAway takes the right to issue from the intermediate that was staged, if it
// was.
func (r *intermediateRotation) putAway(ctx workflow.Context) error {
	if r.To.Authority.IssuerID == "" {
		seen, err := call[vault.SurveyResult](ctx, summarized(acting, "Read the CAs in Vault"), vaults.Survey, vault.SurveyInput{Spec: r.spec.Only("")})
		if err != nil {
			return err
		}
		r.find(seen)
	}
	if r.To.Authority.IssuerID == "" {
		return nil
	}
	return r.use(ctx, r.To, false, r.From)
}

// plan says what each phase would do; what it finds in the way is in the matrix.
func (r *intermediateRotation) plan(ctx workflow.Context) error {
	ctx = workflow.WithValue(ctx, inTurnKey{}, true)
	for _, p := range r.result.Matrix {
		if len(p.Broken) > 0 {
			return failure.Permanent(failure.Preflight, "this rotation would cut agents off, and is refused; nothing was changed:\n- in phase %s: %s", p.Phase, strings.Join(p.Broken, "\n- "))
		}
	}
	return r.forward(ctx)
}

// matrix is who presents and who trusts what in each phase.
func (r *intermediateRotation) matrix(agents []rotation.PlanMember) {
	root, from := pemName(r.Root.CertificatePEM), pemName(r.From.CertificatePEM)
	// In the members' certificates CAs have their subjects' names, which may be the
	// same in every generation; people tell them apart by the issuers' names.
	named := func(m rotation.PlanMember) rotation.PlanMember {
		if m.Presents == from {
			m.Presents = r.From.Authority.Name
		}
		m.Trusts = slices.Clone(m.Trusts)
		for i, ca := range m.Trusts {
			if ca == root {
				m.Trusts[i] = r.Root.Authority.Name
			}
		}
		return m
	}
	server := named(rotation.PlanMember{Name: "server", Presents: r.Server.Presents, Trusts: r.Server.Trusted})
	slices.SortFunc(agents, func(a, b rotation.PlanMember) int { return strings.Compare(a.Name, b.Name) })
	for i := range agents {
		agents[i] = named(agents[i])
	}
	for _, p := range rotation.IntermediatePlan(server, agents, canaries(r.spec), r.Root.Authority.Name, r.From.Authority.Name, vault.IntermediateName(r.Record.To)) {
		r.result.Matrix = append(r.result.Matrix, procedure.PhaseView{PlanPhase: p, Does: rotation.OfIntermediate.Does(p.Phase)})
	}
}

// pemName is the common name in a certificate that Vault has given.
func pemName(text string) string {
	chain, err := pki.ParseChain([]byte(text))
	if err != nil {
		return ""
	}
	return chain[0].Subject.CommonName
}

func (r *intermediateRotation) sum() {
	r.result.Steps, r.result.Clusters, r.result.Changed = r.report.Steps, r.Results, r.Changed
	r.result.From, r.result.To = r.From.Authority, r.To.Authority
	r.result.Canary = canaries(r.spec)
}

// Phases that are only ever approved.
const (
	phaseSnapshot = "snapshot"
	phaseFinish   = "finish"
)

// approval waits until somebody lets the phase begin, if the spec or the input
// asks for it.
func (r *intermediateRotation) approval(ctx workflow.Context, phase rotation.Phase) error {
	how := r.spec.Rotation.Approval
	if r.input.Approval != "" {
		how = r.input.Approval
	}
	if !r.mode.Writes() || !rotation.OfIntermediate.Asks(how, phase) {
		return nil
	}
	what := fmt.Sprintf("approval of %q: %s", phase, rotation.OfIntermediate.Does(phase))
	if phase == rotation.PhaseDeleteKey {
		what += fmt.Sprintf(" (%s)", r.doomed())
	}
	return r.awaitApproval(ctx, string(phase), what)
}

func (r *intermediateRotation) awaitApproval(ctx workflow.Context, phase, what string) error {
	if slices.Contains(r.Approved, phase) {
		return nil
	}
	r.report.Asked = phase
	or := "take the rotation back: relaypki rollback"
	if r.Phase == rotation.PhaseDeleteKey {
		or = "leave the key where it is: relaypki abort"
	}
	text := fmt.Sprintf("%s. Let it begin: relaypki approve %s %s; or %s %[2]s --reason WHY", what, r.spec.Mesh, shell.Join(phase), or)
	r.fleet.await(ctx, text, true)
	notice(ctx, r.report, "waits for "+text)
	err := workflow.Await(ctx, func() bool { return slices.Contains(r.Approved, phase) })
	r.report.Asked = ""
	r.fleet.await(ctx, "", false)
	return err
}

// steer takes the updates by which people steer a rotation of a CA, beside those
// of every fleet.
func (r *intermediateRotation) steer(ctx workflow.Context) error {
	if err := workflow.SetUpdateHandlerWithOptions(ctx, procedure.ApproveUpdate, r.approve, workflow.UpdateHandlerOptions{
		Validator: r.mayApprove, Description: `Let the phase begin that the rotation waits for. {"phase":"server","by":"...","note":"..."}`,
	}); err != nil {
		return err
	}
	return workflow.SetUpdateHandlerWithOptions(ctx, procedure.RollbackUpdate, r.rollback, workflow.UpdateHandlerOptions{
		Validator: r.mayRollBack, Description: `Take the rotation back, from whatever phase it is in. {"reason":"..."}`,
	})
}

func (r *intermediateRotation) mayApprove(in procedure.Typed[procedure.ApproveInput]) error {
	problems := in.Problems
	switch phase := in.In.Phase; {
	case phase == "":
		problems = append(problems, problem("phase", "is missing; name the phase that is to begin%s", r.awaited()))
	case slices.Contains(r.Approved, phase):
	case r.fleet.aborted != "":
		problems = append(problems, problem("phase", "the run is being aborted (%s), there is nothing to approve", r.fleet.aborted))
	case r.Record.Back != "":
		problems = append(problems, problem("phase", "the rotation is being taken back (%s), there is nothing to approve", r.Record.Back))
	case phase != r.report.Asked && (phase != phaseFinish || r.Phase != rotation.PhaseRetire):
		problems = append(problems, problem("phase", "%q is not what the rotation waits for%s", phase, r.awaited()))
	}
	return refuse(problems)
}

// awaited is what may be approved now, for an error.
func (r *intermediateRotation) awaited() string {
	switch {
	case r.report.Asked != "":
		return fmt.Sprintf(": that is %q", r.report.Asked)
	case r.Phase == rotation.PhaseRetire:
		return fmt.Sprintf(": that is %q", phaseFinish)
	}
	return fmt.Sprintf("; it is at %q and waits for no approval", r.report.Phase)
}

func (r *intermediateRotation) approve(_ workflow.Context, in procedure.Typed[procedure.ApproveInput]) (procedure.Standing, error) {
	if !slices.Contains(r.Approved, in.In.Phase) {
		r.Approved = append(r.Approved, in.In.Phase)
		r.report.Approvals = append(r.report.Approvals, in.In)
	}
	return r.fleet.standing()
}

func (r *intermediateRotation) mayRollBack(ctx workflow.Context, in procedure.Typed[procedure.RollbackInput]) error {
	problems := append(in.Problems, missingReason(in.In.Reason)...)
	if r.fleet.aborted != "" {
		problems = append(problems, problem("", "the run is being aborted (%s); start it again, to take the rotation back", r.fleet.aborted))
	}
	if r.Record.Back == "" {
		if r.turn == nil {
			problems = append(problems, problem("", "nothing has been changed yet; to end the run: relaypki abort %s --reason WHY", r.in.Mesh))
		} else if err := rotation.OfIntermediate.MayRollBack(r.Phase); err != nil {
			problems = append(problems, problem("", "%v. To be rid of the intermediate at work, rotate to a new one: relaypki rotate intermediate %s", err, r.in.Mesh))
		} else if err := r.noWayBack(ctx); err != nil {
			problems = append(problems, problem("", "%s", failure.Message(err)))
		}
	}
	return refuse(problems)
}

func (r *intermediateRotation) rollback(_ workflow.Context, in procedure.Typed[procedure.RollbackInput]) (procedure.Standing, error) {
	if r.Record.Back == "" {
		r.Record.Back = in.In.Reason
		r.cut = r.report.busy()
		r.turn()
	}
	return r.fleet.standing()
}
