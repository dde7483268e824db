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

// caRotation is what the rotations of an intermediate and of a root have in common:
// the record, the phases, the way there and the way back, and how people steer it.
type caRotation struct {
	rotating
	longRotation
	asked  caInput
	course rotation.Course
	// turn cancels what is done forward, to go back; cut says that something was
	// under way then.
	turn workflow.CancelFunc
	cut  bool
	// signing is for a root that is kept outside Vault.
	signing *signing
	// of is the rotation of what it is.
	of caProcedure
}

// caInput is what the inputs of the rotations of CAs have in common.
type caInput struct {
	plan, rollback, deleteOld bool
	approval                  string
	// what is what is rotated, as the command says it.
	what string
}

// What is rotated, as the command says it.
const (
	whatIntermediate = "intermediate"
	whatRoot         = "root"
)

// caProcedure is what the rotations of CAs do each in its own way.
type caProcedure interface {
	preflight(ctx workflow.Context) (cluster.MeshRecord, error)
	forward(ctx workflow.Context) error
	backward(ctx workflow.Context) error
	// noWayBack says why the mesh cannot go back to the previous CAs.
	noWayBack(ctx workflow.Context) error
	// over says that a phase was gone through by a run before this one, and needs no
	// approval again.
	over(phase rotation.Phase) bool
}

// start runs a rotation of a CA, or goes on with one that was continued as new.
func (r *caRotation) start(ctx workflow.Context, name string, problems []strict.Problem, long *longRotation, again func(workflow.Context, longRotation) error) (procedure.RotateResult, error) {
	ctx, abort := workflow.WithCancel(ctx)
	r.mode = procedure.Apply
	if r.asked.plan {
		r.mode = procedure.Plan
	}
	r.result = procedure.RotateResult{Mesh: r.in.Mesh, Plan: r.asked.plan}
	progress := procedure.Progress{Procedure: name, Mesh: r.in.Mesh, Phase: string(rotation.PhasePreflight)}
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
	if err := invalid(problems); err != nil {
		return r.result, r.report.finish(ctx, err)
	}
	err = r.run(ctx)
	if errors.Is(err, errLong) {
		next := r.longRotation
		next.State = r.handOver()
		return r.result, again(ctx, next)
	}
	r.sum()
	err = r.fleet.outcome(err)
	if err == nil && r.Record.Back != "" && !r.asked.rollback {
		err = failure.Permanent(failure.RolledBack, "taken back as was asked for (%s): every certificate is of %s again", r.Record.Back, r.From.Authority.Name)
	}
	if err != nil && !r.asked.plan && failure.KindOf(err) != failure.RolledBack {
		r.report.Told = warn(ctx, r.report, err, whatFailed(r.report.Progress, err))
	}
	return r.result, r.report.finish(ctx, err)
}

func (r *caRotation) run(ctx workflow.Context) error {
	if r.Phase != "" { // continued as new: the lock is held
		if err := r.readSpec(ctx); err != nil {
			return err
		}
		r.parks = true
		return release(ctx, caLock(ctx, r.spec), r.thereOrBack(ctx))
	}
	record, err := r.of.preflight(ctx)
	if err != nil {
		return err
	}
	if r.asked.plan {
		return r.plan(workflow.WithValue(ctx, inTurnKey{}, true))
	}
	return locked(ctx, r.step, caLock(ctx, r.spec), theCAs, func(ctx workflow.Context) error {
		if err := r.begin(ctx, record); err != nil {
			return err
		}
		r.parks = true
		return r.thereOrBack(ctx)
	})
}

// look reads the mesh's record, and refuses what it is in the way of. Its phase is
// the last one if keys that an earlier rotation has left are all that is to be
// done.
func (r *caRotation) look(ctx workflow.Context) (record cluster.MeshRecord, err error) {
	if r.Queues, err = r.report.describe(ctx, string(rotation.PhasePreflight)); err != nil {
		return record, err
	}
	if record, err = r.read(ctx); err != nil {
		return record, err
	}
	r.Deletions = record.Deletions
	if r.asked.deleteOld && !r.asked.rollback && record.Rotation == nil && len(record.Deletions) > 0 {
		r.Phase = r.course.Last()
		return record, nil
	}
	r.report.Clusters = pending(ctx, r.spec)
	r.fleet.follow(r.spec.Rollout)
	r.keepOut(ctx, record.Quarantined)
	if r.asked.rollback && record.Rotation == nil {
		return record, failure.Permanent(failure.InvalidInput, "the mesh %q is in no rotation that could be taken back; nothing was changed. To be rid of the %[2]s at work, rotate to a new one: relaypki rotate %[2]s %[1]s", r.spec.Mesh, r.asked.what)
	}
	if begun := record.Rotation; begun != nil && begun.Procedure != r.report.Procedure {
		return record, failure.Permanent(failure.Conflict, "the mesh %q is in %s, begun by %s; nothing was changed. %s", r.spec.Mesh, begun.Procedure, begun.Workflow, first(r.spec.Mesh, begun))
	}
	return record, nil
}

// first is what has to be done before anything else about a mesh's CAs.
func first(mesh string, begun *procedure.Rotation) string {
	if of := begun.Emergency; of != nil && of.Pinned {
		return fmt.Sprintf("Incident %s has left it pinned; lift that first: relaypki emergency lift %s --reason WHY --incident ID", of.Incident, mesh)
	}
	if begun.Emergency != nil {
		return "Finish that first: start it again with the same input"
	}
	return fmt.Sprintf("Finish that first: start it again, or take it back (relaypki rollback %s --reason WHY)", mesh)
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
	// Of a rotation of the root: Root is then the previous one.
	NewRoot vault.CAResult `json:"newRoot,omitzero"`
	Bridge  vault.CAResult `json:"bridge,omitzero"`
	// At is what members are issued by now; Reached are those that have that and
	// nothing else, stored and loaded.
	At      rotation.Mode   `json:"at,omitempty"`
	Reached map[string]bool `json:"reached,omitempty"`
	// RootKeyless says that the key of Root is gone. RolesLand is until when a role
	// that was moved forward may still be.
	RootKeyless bool      `json:"rootKeyless,omitempty"`
	RolesLand   time.Time `json:"rolesLand,omitzero"`
	// Passed is the part in which everybody has a turn, while it is under way.
	Passed string `json:"passed,omitempty"`
}

// plan says what each phase would do; what it finds in the way is in the matrix.
func (r *caRotation) plan(ctx workflow.Context) error {
	for _, p := range r.result.Matrix {
		if len(p.Broken) > 0 {
			return failure.Permanent(failure.Preflight, "this rotation would cut agents off, and is refused; nothing was changed:\n- in phase %s: %s", p.Phase, strings.Join(p.Broken, "\n- "))
		}
	}
	return r.of.forward(ctx)
}

// thereOrBack goes through the phases; told to roll back, it ends what it is at
// and goes back.
func (r *caRotation) thereOrBack(ctx workflow.Context) error {
	if r.Record.Back == "" {
		forward, turn := workflow.WithCancel(ctx)
		r.turn = turn
		// Who goes back is in a hurry, and waits for no window.
		r.fleet.opens = r.opens
		err := r.of.forward(forward)
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
	return r.of.backward(ctx)
}

// leg is a phase of the way forward, and what is done in it.
type leg struct {
	phase rotation.Phase
	do    func(workflow.Context) error
}

// phases goes through the given phases, in their order, from the one on that a run
// before this one has come to. The last, in which keys are deleted, is for those
// who asked for that.
func (r *caRotation) phases(ctx workflow.Context, legs ...leg) error {
	for _, p := range legs {
		if r.course.Before(p.phase, r.Phase) || p.phase == r.course.Last() && !r.asked.deleteOld {
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

// wayBack has a rotation go forward that was to be taken back and cannot be any
// more; to ask for it anew is refused.
func (r *caRotation) wayBack(ctx workflow.Context) error {
	if r.Record.Back == "" {
		return nil
	}
	err := r.of.noWayBack(ctx)
	if err == nil || r.asked.rollback {
		return err
	}
	r.Record.Back = ""
	return nil
}

// remember records that somebody has asked to go back, also where the run is paused
// or being ended: whoever goes on with the rotation is to go that way.
func (r *caRotation) remember(ctx workflow.Context) error {
	ctx, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	r.Record.Converged = time.Time{}
	_, _, err := takeStep(ctx, r.report, r.mode, "record the rollback", "Record that the rotation goes back", func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.recordRotation(ctx, &r.Record, nil)
	})
	return err
}

// snapshotGood is for how long a snapshot of Vault is one of before a rotation that
// has changed nothing yet.
const snapshotGood = 24 * time.Hour

// begin records what is about to be done.
func (r *caRotation) begin(ctx workflow.Context, before cluster.MeshRecord) error {
	// Again, with the lock: another run may have been at it meanwhile.
	record, err := r.read(ctx)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(record.Rotation, before.Rotation) || record.Generations != before.Generations {
		return failure.Permanent(failure.Conflict, "another rotation of the mesh %q has begun, turned or ended while this one looked around; nothing was changed by this one. Start it again", r.spec.Mesh)
	}
	r.Deletions = record.Deletions
	if r.Phase == r.course.Last() {
		return nil // none begins
	}
	r.newcomers(ctx)
	return r.note(ctx, "record the rotation", "Record the rotation that begins")
}

// note records how far the rotation is.
func (r *caRotation) note(ctx workflow.Context, name, summary string) error {
	_, err := r.step(ctx, name, summary, func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.recordRotation(ctx, &r.Record, nil)
	})
	return err
}

func (r *caRotation) recordRotation(ctx workflow.Context, now *procedure.Rotation, generations *procedure.Generations) (procedure.Outcome, error) {
	out, err := call[cluster.RecordMemberResult](ctx, acting, kubernetes.RecordRotation, cluster.RecordRotationInput{
		Mesh: r.spec.Mesh, Management: r.spec.Management.Context, Namespace: r.spec.Management.Namespace,
		Rotation: now, Generations: generations, RootPEM: r.result.RootPEM, Deletions: r.Deletions, Quarantined: r.quarantined(), Mode: r.mode,
	})
	return out.Outcome, err
}

// snapshot makes sure that Vault can be restored to what it is before the first
// change of a CA.
func (r *caRotation) snapshot(ctx workflow.Context) error {
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

func (r *caRotation) soak(ctx workflow.Context, names []string) error {
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

// settle has everybody gone over again whose role does not sign with the target,
// and moves the roles of those who were left out: their cert-managers renew by
// themselves, and are then given what everybody accepts.
func (r *caRotation) settle(ctx workflow.Context) error {
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
			if r.fleet.status[name] == rollout.Skipped {
				continue // its role is moved once more, and it stays left out
			}
			r.fleet.status[name] = rollout.Waiting
			r.report.cluster(ctx, name, procedure.Pending, "its role has come back to the previous intermediate")
		}
	}
}

// lagging are the members whose roles do not sign with the target. A role that is
// no member's is somebody else's: to take the intermediate away from it would
// stop its renewals.
func (r *caRotation) lagging(ctx workflow.Context) ([]string, error) {
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
		case !known && r.hurry: // it is out of use with the intermediate that it signs with
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

// windUp has Vault tidy up, records that nothing is left of what was replaced, and
// waits until the last certificate of that has ended.
func (r *caRotation) windUp(ctx workflow.Context, replaced string) error {
	if _, err := r.step(ctx, "CRL and tidy", "Have Vault renew its CRLs and tidy away what has expired", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, acting, vaults.ConfigureTidy, vault.TidyInput{Spec: r.spec.Only(""), Mode: r.mode})
	}); err != nil {
		return err
	}
	if r.mode.Writes() && r.Record.Converged.IsZero() {
		r.Record.Converged = workflow.Now(ctx)
		if err := r.note(ctx, "record the rotation", "Record that nothing is left of the previous "+replaced); err != nil {
			return err
		}
	}
	return r.waitOut(ctx)
}

// waitOut waits for the end of the longest leaf. Whoever knows that no other
// certificate of the previous intermediate matters may end it.
func (r *caRotation) waitOut(ctx workflow.Context) error {
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

// use says whether an intermediate may issue, and which is the mount's default.
func (r *caRotation) use(ctx workflow.Context, ca vault.CAResult, signs bool, standard vault.CAResult) error {
	return r.useCA(ctx, "intermediate", ca, signs, standard)
}

func (r *caRotation) useCA(ctx workflow.Context, kind string, ca vault.CAResult, signs bool, standard vault.CAResult) error {
	name := "use of " + ca.Authority.Name
	if standard.Authority.IssuerID == "" { // in a plan
		standard.Authority.IssuerID = standard.Authority.Name
	}
	_, err := r.step(ctx, name, "Say what the "+kind+" "+ca.Authority.Name+" may be used for", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, acting, vaults.UseIssuer, vault.UseIssuerInput{
			Spec: r.spec.Only(""), Root: kind == "root", IssuerID: ca.Authority.IssuerID, Signs: signs, Default: standard.Authority.IssuerID, Anyway: r.hurry, Mode: r.mode,
		})
	})
	return err
}

// deleteKeys deletes the previous CAs' keys, for good, and what earlier rotations
// have left to be deleted. Each stays in the record until that is done,
// so that another run can finish it.
func (r *caRotation) deleteKeys(ctx workflow.Context) error {
	for len(r.Deletions) > 0 {
		d := r.Deletions[0]
		name, kind := doomed(d)
		if _, err := r.step(ctx, "key of "+name, "Delete the key of the "+kind+" "+name, func(ctx workflow.Context) (procedure.Outcome, error) {
			return call[procedure.Outcome](ctx, acting, vaults.DeleteKey, vault.DeleteKeyInput{
				Spec: r.spec.Only(""), Root: d.Root, IssuerID: d.IssuerID, Name: name, CertificatePEM: d.CertificatePEM, Mode: r.mode,
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

// doomed is the CA whose key is to be deleted: its name, and what it is.
func doomed(d procedure.Deletion) (name, kind string) {
	if d.Root {
		return vault.RootName(d.Generation), "root"
	}
	return vault.IntermediateName(d.Generation), "intermediate"
}

// doomed are the CAs whose keys are to be deleted, in words.
func (r *caRotation) doomed() string {
	names := make([]string, len(r.Deletions))
	for i, d := range r.Deletions {
		names[i], _ = doomed(d)
	}
	return strings.Join(names, ", ")
}

// close records that the mesh is in no rotation any more, and of which generation
// its intermediate and its root are; 0 for a root that it leaves alone.
func (r *caRotation) close(ctx workflow.Context, intermediate, root int, summary string) error {
	record, err := r.read(ctx)
	if err != nil {
		return err
	}
	generations := record.Generations
	generations.Intermediate = intermediate
	if root > 0 {
		generations.Root = root
	}
	_, err = r.step(ctx, "record the mesh", summary, func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.recordRotation(ctx, nil, &generations)
	})
	return err
}

// turned begins the way back.
func (r *caRotation) turned(ctx workflow.Context) error {
	if err := r.report.phase(ctx, "rollback"); err != nil {
		return err
	}
	r.result.RolledBack = r.Record.Back
	if r.Turned {
		return nil
	}
	r.Turned = true
	if r.cut || r.turn == nil { // what another run was at, nobody knows
		r.Lands = workflow.Now(ctx).Add(landing)
	}
	r.fleet.again(ctx)
	return nil
}

// landing is for how long a request that was cut off may still change something
// in Vault: it lets none take longer than 90 s (default_max_request_duration).
const landing = 100 * time.Second

// fence waits until nothing of the way forward can happen in Vault any more.
func (r *caRotation) fence(ctx workflow.Context) error {
	r.fleet.await(ctx, "what was cut off in Vault to have happened or not, until "+pki.Date(r.Lands), false)
	err := workflow.Sleep(ctx, r.Lands.Sub(workflow.Now(ctx)))
	r.fleet.await(ctx, "", false)
	return err
}

// Phases that are only ever approved.
const (
	phaseSnapshot = "snapshot"
	phaseFinish   = "finish"
)

// approval waits until somebody lets the phase begin, if the spec or the input
// asks for it.
func (r *caRotation) approval(ctx workflow.Context, phase rotation.Phase) error {
	how := r.spec.Rotation.Approval
	if r.asked.approval != "" {
		how = r.asked.approval
	}
	if !r.mode.Writes() || !r.course.Asks(how, phase) || r.of.over(phase) {
		return nil
	}
	what := fmt.Sprintf("approval of %q: %s", phase, r.course.Does(phase))
	if phase == r.course.Last() {
		what += fmt.Sprintf(" (%s)", r.doomed())
	}
	return r.awaitApproval(ctx, string(phase), what)
}

func (r *caRotation) awaitApproval(ctx workflow.Context, phase, what string) error {
	if slices.Contains(r.Approved, phase) {
		return nil
	}
	r.report.Asked = phase
	or := "take the rotation back: relaypki rollback"
	if r.Phase == r.course.Last() {
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
func (r *caRotation) steer(ctx workflow.Context) error {
	if err := workflow.SetUpdateHandlerWithOptions(ctx, procedure.ApproveUpdate, r.approve, workflow.UpdateHandlerOptions{
		Validator: r.mayApprove, Description: `Let the phase begin that the rotation waits for. {"phase":"server","by":"...","note":"..."}`,
	}); err != nil {
		return err
	}
	return workflow.SetUpdateHandlerWithOptions(ctx, procedure.RollbackUpdate, r.rollback, workflow.UpdateHandlerOptions{
		Validator: r.mayRollBack, Description: `Take the rotation back, from whatever phase it is in. {"reason":"..."}`,
	})
}

func (r *caRotation) mayApprove(in procedure.Typed[procedure.ApproveInput]) error {
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
func (r *caRotation) awaited() string {
	switch {
	case r.report.Asked != "":
		return fmt.Sprintf(": that is %q", r.report.Asked)
	case r.Phase == rotation.PhaseRetire:
		return fmt.Sprintf(": that is %q", phaseFinish)
	}
	return fmt.Sprintf("; it is at %q and waits for no approval", r.report.Phase)
}

func (r *caRotation) approve(_ workflow.Context, in procedure.Typed[procedure.ApproveInput]) (procedure.Standing, error) {
	if !slices.Contains(r.Approved, in.In.Phase) {
		r.Approved = append(r.Approved, in.In.Phase)
		r.report.Approvals = append(r.report.Approvals, in.In)
	}
	return r.fleet.standing()
}

func (r *caRotation) mayRollBack(ctx workflow.Context, in procedure.Typed[procedure.RollbackInput]) error {
	problems := append(in.Problems, missingReason(in.In.Reason)...)
	if r.fleet.aborted != "" {
		problems = append(problems, problem("", "the run is being aborted (%s); start it again, to take the rotation back", r.fleet.aborted))
	}
	if r.Record.Back == "" {
		if r.turn == nil {
			problems = append(problems, problem("", "nothing has been changed yet; to end the run: relaypki abort %s --reason WHY", r.in.Mesh))
		} else if err := r.course.MayRollBack(r.Phase); err != nil {
			problems = append(problems, problem("", "%v. To be rid of the intermediate at work, rotate to a new one: relaypki rotate %s %s", err, r.asked.what, r.in.Mesh))
		} else if err := r.of.noWayBack(ctx); err != nil {
			problems = append(problems, problem("", "%s", failure.Message(err)))
		}
	}
	return refuse(problems)
}

func (r *caRotation) rollback(_ workflow.Context, in procedure.Typed[procedure.RollbackInput]) (procedure.Standing, error) {
	if r.Record.Back == "" {
		r.Record.Back = in.In.Reason
		r.cut = r.report.busy()
		r.turn()
	}
	return r.fleet.standing()
}

func (r *caRotation) sum() {
	r.result.Steps, r.result.Clusters, r.result.Changed = r.report.Steps, r.Results, r.Changed
	r.result.From, r.result.To = r.From.Authority, r.To.Authority
	if r.asked.what == whatRoot {
		r.result.From, r.result.To = r.Root.Authority, r.NewRoot.Authority
	}
	r.result.Canary = canaries(r.spec)
}
