package workflows

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/relay"
	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rollout"
	"github.com/relaypki/relaypki/internal/rotation"
)

// EmergencyReissue has nobody accept any more what is compromised. Nothing in the
// relay asks whether a certificate was revoked, and streams that are open stay open:
// what is compromised is contained when nobody's trust leads to it and everybody has
// connected anew.
//
// A leaf's cluster is given another, which leaves the compromised one accepted until
// it ends. To distrust it, or an intermediate, a new intermediate of the same root
// takes the root's place as all that is trusted: it is pinned, until somebody lifts
// that. A root is replaced by a new one, or by the one that stands by.
//
// With availability first it goes from chain to chain under the gates of every
// rotation. With containment first the server accepts the new certificates alone, at
// once, and all agents are issued theirs together.
//
// It ends whatever rotation is under way and goes on from where that was, freezes the
// mesh's schedules, and waits for no approval, window or soak. What it has come to is
// in the mesh's record: started again, it goes on.
func EmergencyReissue(ctx workflow.Context, in procedure.Typed[procedure.EmergencyInput], long *longRotation) (procedure.RotateResult, error) {
	e := &emergencyReissue{want: in.In, rootRotation: rootRotation{
		input: procedure.RotateRootInput{Consumers: true}, // there is no time to ask for whatever else holds a root
		caRotation: caRotation{
			rotating: rotating{in: in.In.MeshInput, hurry: true, inPhases: true}, course: rotation.OfLeaf,
			asked: caInput{plan: in.In.Plan, approval: mesh.ApprovalNone, what: whatIntermediate},
		},
	}}
	e.of, e.served = e, e.serves
	return e.start(ctx, procedure.EmergencyReissue, append(in.Problems, in.In.Validate()...), long, func(ctx workflow.Context, next longRotation) error {
		return workflow.NewContinueAsNewError(ctx, procedure.EmergencyReissue, in.In, next)
	})
}

// emergencyReissue is one run of EmergencyReissue.
type emergencyReissue struct {
	rootRotation
	want procedure.EmergencyInput
}

// forward goes through the phases.
func (e *emergencyReissue) forward(ctx workflow.Context) error {
	e.shape()
	legs := map[rotation.Phase]func(workflow.Context) error{
		rotation.PhaseReissue:  e.reissue,
		rotation.PhaseStage:    e.stage,
		rotation.PhaseLink:     e.link,
		rotation.PhaseStop:     e.stop,
		rotation.PhasePin:      e.pin,
		rotation.PhasePrepare:  e.ready,
		rotation.PhaseTrust:    e.trust,
		rotation.PhaseBridge:   e.to(rotation.Bridged),
		rotation.PhasePivot:    e.to(rotation.Pivot),
		rotation.PhaseCommit:   e.to(rotation.Final),
		rotation.PhaseContract: e.contract,
		rotation.PhaseCut:      e.cut,
		rotation.PhaseLift:     e.lift,
		rotation.PhaseProve:    e.prove,
	}
	var phases []leg
	for phase, more := e.course.Next(rotation.PhasePreflight); more; phase, more = e.course.Next(phase) {
		if do := legs[phase]; do != nil {
			phases = append(phases, leg{phase, do})
		}
	}
	return e.phases(ctx, phases...)
}

// shape is what kind of emergency it is, by what is recorded of it.
func (e *emergencyReissue) shape() {
	of := e.Record.Emergency
	e.result.Emergency, e.report.Emergency = of, of
	e.sameRoot = e.Record.FromRoot == e.Record.ToRoot
	e.cutting = of.First == procedure.ContainmentFirst && !e.want.Lift
	if !e.sameRoot {
		e.asked.what = whatRoot
	}
	switch {
	case e.want.Lift:
		e.course = rotation.OfLift
	case of.Compromised == procedure.CompromisedLeaf && !of.Distrust:
		e.course, e.only = rotation.OfLeaf, of.Clusters
	case e.sameRoot && e.cutting:
		e.course = rotation.OfPinningAtOnce
	case e.sameRoot:
		e.course = rotation.OfPinning
	case e.cutting:
		e.course = rotation.OfNewRootAtOnce
	default:
		e.course = rotation.OfNewRoot
	}
}

// over: nobody is asked.
func (e *emergencyReissue) over(rotation.Phase) bool { return false }

// noWayBack: the way back leads to what is compromised.
func (e *emergencyReissue) noWayBack(workflow.Context) error {
	return failure.Permanent(failure.InvalidInput, "an emergency is not taken back: that would have everybody accept again what is compromised. What it has left pinned is lifted by: relaypki emergency lift %s --reason WHY --incident ID", e.in.Mesh)
}

func (e *emergencyReissue) backward(ctx workflow.Context) error { return e.noWayBack(ctx) }

// preflight looks at what the mesh is in and, if the emergency can be dealt with from
// there, ends whoever is at work on its CAs. That, and the schedules that are paused,
// is all that has been changed by its end.
func (e *emergencyReissue) preflight(ctx workflow.Context) (record cluster.MeshRecord, err error) {
	if e.Queues, err = e.report.describe(ctx, string(rotation.PhasePreflight)); err != nil {
		return record, err
	}
	if record, err = e.survey(ctx); err != nil {
		return record, err
	}
	// First: what a schedule begins meanwhile would have to be ended, too.
	frozen, err := e.freeze(ctx, false)
	if err != nil {
		return record, err
	}
	if record, err = e.takeOver(ctx, record); err != nil {
		if frozen { // nothing else was changed
			_, _ = e.freeze(ctx, true)
		}
		return record, err
	}
	e.newcomers(ctx)
	e.fleet.follow(e.spec.Rollout)
	e.leaveOut(ctx, record)
	e.parks = true
	return record, nil
}

// leaveOut leaves out who was before, but for a cluster that is named, and for those
// that an emergency which is over has left out: started again, it has them come back.
func (e *emergencyReissue) leaveOut(ctx workflow.Context, record cluster.MeshRecord) {
	pinned := e.Record.Emergency.Pinned && !e.want.Lift
	if e.sameRoot && e.Record.From != e.Record.To {
		e.fleet.rest = "Their agents still trust what is compromised. Once they answer, start it again with the same input: that has them come back"
	}
	if len(e.only) == 0 && !pinned {
		e.keepOut(ctx, record.Quarantined)
		return
	}
	e.Away = map[string]bool{}
	for _, name := range workflow.DeterministicKeys(record.Quarantined) {
		e.Away[name] = true
		if len(e.only) > 0 && !slices.Contains(e.only, name) {
			if e.Out == nil {
				e.Out = map[string]string{}
			}
			e.Out[name] = record.Quarantined[name]
		}
	}
	e.AwayTrust = trustChange{AddPEM: []string{e.Root.CertificatePEM}}
}

// survey reads the mesh's record and its CAs, and decides from where to where the
// emergency goes.
func (e *emergencyReissue) survey(ctx workflow.Context) (record cluster.MeshRecord, err error) {
	if record, err = e.read(ctx); err != nil {
		return record, err
	}
	named := e.want.Clusters
	if begun := record.Rotation; begun != nil && begun.Emergency != nil { // one may have left the mesh since
		named = without(named, begun.Emergency.Clusters)
	}
	if err := invalid(strangers(e.spec, named)); err != nil {
		return record, err
	}
	if e.spec.PKI.Root.Offline() && (e.want.Pins() || e.want.Compromised == procedure.CompromisedRoot) {
		return record, failure.Permanent(failure.InvalidInput, "the root of the mesh %q is kept outside Vault (pki.root.kept: %s), and this makes CAs with roots that are in Vault; nothing was changed. relaypki rotate intermediate %[1]s replaces the intermediate, and relaypki rotate root %[1]s the root, by what is signed outside; with --approval none, and what has to be signed at hand, in minutes. A leaf alone is replaced here: relaypki emergency leaf %[1]s CLUSTER... without --distrust", e.spec.Mesh, mesh.KeptOffline)
	}
	_, err = e.step(ctx, "certificate authorities", "Read the CAs in Vault", func(ctx workflow.Context) (procedure.Outcome, error) {
		seen, err := e.surveyed(ctx)
		if err != nil {
			return procedure.Outcome{}, err
		}
		if e.Record, err = opening(e.want, record, seen, holder(ctx), workflow.Now(ctx)); err != nil {
			return procedure.Outcome{}, err
		}
		e.shape()
		return e.findAll(ctx, seen)
	})
	return record, err
}

// findAll takes the CAs from what there is in Vault, and which chain it gives.
func (e *emergencyReissue) findAll(ctx workflow.Context, seen vault.SurveyResult) (procedure.Outcome, error) {
	if err := e.find(seen); err != nil {
		return procedure.Outcome{}, err
	}
	out := procedure.Outcome{Detail: fmt.Sprintf("%s, until %s; %s, until %s", e.Root.Authority.Name, pki.Date(e.Root.Authority.NotAfter), e.From.Authority.Name, pki.Date(e.From.Authority.NotAfter))}
	if e.Record.From == e.Record.To { // no CA is replaced
		return out, nil
	}
	pending := e.Record.Next != ""
	if err := e.inTime(seen); err != nil {
		return out, err
	}
	if pending { // another run was about to have Vault give it
		e.Lands = workflow.Now(ctx).Add(landing)
	}
	if e.sameRoot || e.cutting {
		return out, nil
	}
	return out, e.fit(ctx)
}

// opening is what is recorded of an emergency that begins, or goes on, in a mesh that
// is in whatever rotation its record says. A new intermediate or root that is being
// rotated to is taken for good; what it takes the place of is compromised.
func opening(want procedure.EmergencyInput, record cluster.MeshRecord, seen vault.SurveyResult, holder string, now time.Time) (procedure.Rotation, error) {
	begun, name := record.Rotation, want.Mesh
	refused := func(format string, args ...any) (procedure.Rotation, error) {
		return procedure.Rotation{}, failure.Permanent(failure.Conflict, format+". Nothing was changed", args...)
	}
	r := procedure.Rotation{
		Procedure: procedure.EmergencyReissue, Workflow: holder, Began: now, Snapshot: "none: an emergency",
		From: record.Generations.Intermediate, FromRoot: record.Generations.Root,
		Emergency: &procedure.Emergency{
			Compromised: want.Compromised, Clusters: want.Clusters, Distrust: want.Distrust, First: want.First,
			Reason: want.Reason, Incident: want.Incident, Began: now,
		},
	}
	var pinned, resumes bool
	if begun != nil && begun.Emergency != nil {
		is := begun.Emergency
		pinned = is.Pinned
		resumes = is.Incident == want.Incident && is.Compromised == want.Compromised && is.Distrust == want.Distrust &&
			(want.Compromised != procedure.CompromisedLeaf || is.Distrust || len(without(want.Clusters, is.Clusters)) == 0)
	}
	atOnce := want.First == procedure.ContainmentFirst
	switch {
	case want.Lift && !pinned:
		return refused("the mesh %q is not pinned by an emergency, so there is nothing to lift", name)
	case want.Lift, resumes:
		r = *begun
		is := *begun.Emergency
		if !want.Lift && is.First != procedure.ContainmentFirst { // who is cut off already is in the way of every gate
			is.First = want.First
		}
		r.Emergency = &is
		return r, mayLift(want, r, seen, now)
	case begun == nil:
	case begun.Emergency != nil && begun.From == begun.To: // no CA was replaced
		if !want.Pins() && want.Compromised == procedure.CompromisedLeaf { // none is forgotten
			all := append(slices.Clone(begun.Emergency.Clusters), want.Clusters...)
			slices.Sort(all)
			r.Emergency.Clusters = slices.Compact(all)
		}
	case !want.Pins() && want.Compromised == procedure.CompromisedLeaf:
		if record.Spec.PKI.Root.Offline() {
			return refused("the mesh %q is in %s, begun by %s, and a leaf alone is not replaced meanwhile. %s; then start this again", name, begun.Procedure, begun.Workflow, first(name, begun))
		}
		orders := procedure.AvailabilityFirst + "|" + procedure.ContainmentFirst
		if begun.Emergency != nil {
			orders = procedure.ContainmentFirst // the next case
		}
		return refused("the mesh %q is in %s, begun by %s. A leaf that is compromised meanwhile is distrusted with what issued it: relaypki emergency leaf %[1]s %[4]s --distrust --first %[5]s --reason WHY --incident ID", name, begun.Procedure, begun.Workflow, strings.Join(want.Clusters, " "), orders)
	case begun.Emergency != nil:
		if !atOnce {
			return refused("the mesh %q is in the emergency of incident %s, from which another CA is put in its place with containment first alone (--first containment): nobody trusts a root that could vouch for both", name, begun.Emergency.Incident)
		}
		r.From, r.FromRoot = begun.From, begun.FromRoot
		if made := func(i vault.IntermediateState) bool { return i.Generation == begun.To }; slices.ContainsFunc(seen.Intermediates, made) {
			r.From, r.FromRoot = begun.To, begun.ToRoot
		}
	case begun.Procedure == procedure.RotateRootCA:
		// Its end distrusts the previous root, and with it all that is below.
		of := r.Emergency
		r = *begun
		r.Procedure, r.Emergency, r.Back, r.Leg, r.Converged = procedure.EmergencyReissue, of, "", "", time.Time{}
		if r.Dropped == procedure.DroppedNew {
			r.Dropped = ""
		}
		return r, nil
	case want.Compromised == procedure.CompromisedRoot:
		if !atOnce {
			return refused("the mesh %q is in %s, begun by %s, and its root can then be replaced with containment first alone (--first containment); or finish that first: relaypki rotate intermediate %[1]s --approval none", name, begun.Procedure, begun.Workflow)
		}
	default: // an intermediate's: its new one is pinned
		r.From, r.To, r.ToRoot, r.Intermediate = begun.From, begun.To, r.FromRoot, begun.Intermediate
		return r, nil
	}
	highest := max(r.From, seen.Highest)
	if begun != nil { // what was about to be made may have been since
		highest = max(highest, begun.To)
	}
	switch {
	case want.Compromised == procedure.CompromisedRoot:
		r.ToRoot, r.To = successors(seen, r.FromRoot, highest, false)
	case want.Pins():
		r.To, r.ToRoot = highest+1, r.FromRoot
	default:
		r.To, r.ToRoot = r.From, r.FromRoot
	}
	return r, nil
}

// without are the names but for some.
func without(names, some []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(some, name) })
}

// mayLift: to lift is to have everybody trust the root again, and so whatever it has
// signed.
func mayLift(want procedure.EmergencyInput, of procedure.Rotation, seen vault.SurveyResult, now time.Time) error {
	if !want.Lift || want.Exposed {
		return nil
	}
	for _, i := range seen.Intermediates {
		if i.Generation == of.From && i.Authority.NotAfter.After(now) {
			return failure.Permanent(failure.Preflight, "the intermediate %s, which incident %s is of, is valid until %s: once everybody trusts the root again, whatever is signed with its key is accepted until then. Nothing was changed. Lift it after that; or have the root replaced: relaypki emergency root %s --first containment; or give your word that it may be so: --exposed-ok",
				i.Authority.Name, of.Emergency.Incident, pki.Date(i.Authority.NotAfter), want.Mesh)
		}
	}
	return nil
}

// takeOver ends whoever is at work on the mesh's CAs, and looks once more at what that
// has left.
func (e *emergencyReissue) takeOver(ctx workflow.Context, record cluster.MeshRecord) (cluster.MeshRecord, error) {
	var holders, ended []string
	if record.Rotation != nil && record.Rotation.Workflow != "" {
		holders = append(holders, record.Rotation.Workflow)
	}
	if _, err := e.step(ctx, "rotation under way", "End whatever rotation is at work on the mesh's CAs", func(ctx workflow.Context) (procedure.Outcome, error) {
		out, err := call[temporalactivities.TakeOverResult](ctx, waiting, temporals.TakeOver, temporalactivities.TakeOverInput{
			Mesh: e.spec.Mesh, Reason: fmt.Sprintf("incident %s: %s", e.want.Incident, e.want.Reason), Holders: holders, Mode: e.mode,
		})
		ended = out.Ended
		return out.Outcome, err
	}); err != nil || len(ended) == 0 {
		return record, err
	}
	var err error
	if e.mode.Writes() {
		e.RolesLand = workflow.Now(ctx).Add(landing)
		record, err = e.survey(ctx)
	}
	if err == nil {
		e.Record.Emergency.TookOver = strings.Join(ended, ", ")
	}
	return record, err
}

// freeze pauses the mesh's schedules, so that nothing else begins meanwhile; thaw has
// those go on. It says whether there was anything to do.
func (e *emergencyReissue) freeze(ctx workflow.Context, thaw bool) (bool, error) {
	name, summary := "freeze the schedules", "Pause the mesh's schedules"
	if thaw {
		name, summary = "thaw the schedules", "Have the mesh's schedules go on"
	}
	out, err := e.step(ctx, name, summary, func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, acting, temporals.FreezeSchedules, temporalactivities.FreezeInput{
			Mesh: e.spec.Mesh, Incident: e.want.Incident, Reason: e.want.Reason, Thaw: thaw, Mode: e.mode,
		})
	})
	return len(out.Changes) > 0, err
}

// reissue has the named clusters and the server issued anew by the intermediate at
// work. The server is restarted with that, which cuts every stream that is open.
func (e *emergencyReissue) reissue(ctx workflow.Context) error {
	of := e.Record.Emergency
	e.Target = target{RootPEM: e.Root.CertificatePEM, IntermediatePEM: e.From.CertificatePEM, Issuing: e.From.CertificatePEM, Since: of.Began}
	if _, err := e.step(ctx, "server", "Read what the management server presents and trusts", func(ctx workflow.Context) (procedure.Outcome, error) {
		return e.readServer(ctx, false)
	}); err != nil {
		return err
	}
	// What they have once this is known may be what they were issued since.
	if of.AcceptedUntil.IsZero() {
		if err := e.acceptedUntil(ctx); err != nil {
			return err
		}
	}
	if e.mode.Writes() {
		if err := e.note(ctx, "record the emergency", "Record until when the compromised certificates are accepted"); err != nil {
			return err
		}
	}
	if err := e.clusters(ctx, of.Clusters); err != nil {
		return err
	}
	if err := e.server(ctx); err != nil || !e.mode.Writes() {
		return err
	}
	if err := e.verify(ctx); err != nil {
		return err
	}
	of.Reconnected = workflow.Now(ctx)
	anew := slices.DeleteFunc(slices.Clone(of.Clusters), func(name string) bool { return e.fleet.status[name] != rollout.Done })
	return e.finish(ctx, fmt.Sprintf("issued anew are the certificates of: %s; the compromised ones are accepted until %s", strings.Join(anew, ", "), pki.Date(of.AcceptedUntil)))
}

// acceptedUntil reads until when the compromised certificates are accepted. Of one that
// cannot be read it is the latest that there may be.
func (e *emergencyReissue) acceptedUntil(ctx workflow.Context) error {
	of, read := e.Record.Emergency, 0
	_, err := e.step(ctx, "compromised certificates", "Read until when they are accepted", func(ctx workflow.Context) (procedure.Outcome, error) {
		return e.pairs(ctx, without(of.Clusters, workflow.DeterministicKeys(e.Away)), false, func(_ string, pair relay.CheckPairResult) {
			read++
			if pair.Leaf.NotAfter.After(of.AcceptedUntil) {
				of.AcceptedUntil = pair.Leaf.NotAfter
			}
		})
	})
	if latest := of.Began.Add(e.spec.Certificates.LongestLife()); read < len(of.Clusters) && latest.After(of.AcceptedUntil) {
		of.AcceptedUntil = latest
	}
	return err
}

// stage makes the new intermediate, with a name of its own, by which it can be seen
// in the server's trust. Nothing uses it yet.
func (e *emergencyReissue) stage(ctx workflow.Context) error {
	if err := e.unputAway(ctx); err != nil {
		return err
	}
	spec := e.next()
	spec.PKI.Intermediate.CommonName = vault.IntermediateCommonName(spec.PKI.Intermediate.CommonName, e.Record.To)
	if _, err := e.step(ctx, "new intermediate", "Make the intermediate "+vault.IntermediateName(e.Record.To), func(ctx workflow.Context) (procedure.Outcome, error) {
		var outcome procedure.Outcome
		var err error
		e.To, outcome, err = makeIntermediate(ctx, e.signing, spec, vault.IntermediateInput{
			Vault: spec.Vault.Name, RootMount: spec.RootMount(), RelayMount: spec.Vault.RelayMount,
			RootIssuerID: e.Root.Authority.IssuerID, RootPEM: e.Root.CertificatePEM,
			Generation: e.Record.To, CA: spec.PKI.Intermediate, Mode: e.mode, Rotation: true, AbovePEM: []string{e.Root.CertificatePEM},
		})
		return outcome, err
	}); err != nil || !e.mode.Writes() {
		return err
	}
	return e.made(ctx, "Record that the new intermediate is there")
}

// ready is prepare, where what there is already may issue.
func (e *emergencyReissue) ready(ctx workflow.Context) error {
	if err := e.unputAway(ctx); err != nil {
		return err
	}
	return e.prepare(ctx)
}

// unputAway has the new CAs issue again that a rotation had put away, which was taken
// over on its way back.
func (e *emergencyReissue) unputAway(ctx workflow.Context) error {
	seen, err := e.surveyed(ctx)
	if err != nil {
		return err
	}
	for _, root := range seen.Roots {
		if !e.sameRoot && root.Generation == e.Record.ToRoot && !root.Signs {
			if err := e.useCA(ctx, whatRoot, vault.CAResult{Authority: root.Authority}, true, vault.CAResult{}); err != nil {
				return err
			}
		}
	}
	for _, i := range seen.Intermediates {
		if i.Generation == e.Record.To && !i.Signs {
			if err := e.use(ctx, vault.CAResult{Authority: i.Authority}, true, vault.CAResult{}); err != nil {
				return err
			}
		}
	}
	return nil
}

// link has everybody issued by the new intermediate, and agents trust it beside the
// root.
func (e *emergencyReissue) link(ctx workflow.Context) error {
	if e.Record.Mode == rotation.Pinned.String() { // a run before this has come further
		return nil
	}
	if err := e.give(ctx, rotation.Final); err != nil {
		return err
	}
	return e.issue(ctx, rotation.Final, adding(e.To))
}

// stop takes the right to issue from all CAs but the new ones.
func (e *emergencyReissue) stop(ctx workflow.Context) error {
	seen, err := e.surveyed(ctx)
	if err != nil {
		return err
	}
	if !e.sameRoot {
		if err := e.useCA(ctx, whatRoot, e.Root, false, e.NewRoot); err != nil {
			return err
		}
	}
	for _, i := range seen.Intermediates {
		if i.Generation == e.Record.To || i.Generation != e.Record.From && !i.Signs {
			continue
		}
		if err := e.use(ctx, vault.CAResult{Authority: i.Authority, CertificatePEM: i.CertificatePEM}, false, e.To); err != nil {
			return err
		}
	}
	return e.mark(ctx, &e.Record.Emergency.IssuingStopped, "Record that what is compromised may no longer issue")
}

// pin has the new intermediate be all that is trusted.
func (e *emergencyReissue) pin(ctx workflow.Context) error {
	if err := e.gate(ctx, rotation.DropNew); err != nil {
		return err
	}
	e.Record.Lacked = true
	if err := e.give(ctx, rotation.Pinned); err != nil {
		return err
	}
	only, err := e.onlyNew(ctx)
	if err != nil {
		return err
	}
	if err := e.issue(ctx, rotation.Pinned, only); err != nil {
		return err
	}
	return e.distrusted(ctx)
}

// cut gives the last chain at once. Who is not issued anew yet is refused by the
// server from the moment that it has loaded its own.
func (e *emergencyReissue) cut(ctx workflow.Context) error {
	mode := rotation.Final
	if e.sameRoot {
		mode = rotation.Pinned
	}
	// What they have is of no mode that the others accept, until they are issued anew.
	e.cutOff = true
	if e.Passed == "" || e.Away == nil {
		e.Away = map[string]bool{}
	}
	if e.Passed == "" {
		for _, name := range e.names() {
			e.Away[name] = true
		}
	}
	e.Record.Lacked = true
	if !e.sameRoot {
		e.Record.Dropped = procedure.DroppedOld
	}
	if err := e.give(ctx, mode); err != nil {
		return err
	}
	if err := e.aim(ctx, mode); err != nil {
		return err
	}
	if err := e.moveRoles(ctx); err != nil {
		return err
	}
	if err := e.stop(ctx); err != nil {
		return err
	}
	only, err := e.onlyNew(ctx)
	if err != nil {
		return err
	}
	if err := e.issue(ctx, mode, only); err != nil {
		return err
	}
	return e.distrusted(ctx)
}

// moveRoles has every role sign with what is new: whoever renews from now on is given
// that, and nobody needs what is compromised.
func (e *emergencyReissue) moveRoles(ctx workflow.Context) error {
	_, err := e.step(ctx, "roles", "Have every role sign with the intermediate "+vault.IntermediateName(e.Record.To), func(ctx workflow.Context) (procedure.Outcome, error) {
		var all procedure.Outcome
		for _, name := range append([]string{""}, e.names()...) {
			out, err := call[procedure.Outcome](ctx, acting, vaults.MoveRole, e.Target.role(e.spec.Only(name), name, e.mode))
			if err != nil {
				return all, err
			}
			all.Add(out)
		}
		return all, nil
	})
	e.moved = true
	return err
}

// onlyNew is the trust in what is new, and in nothing else that there is in Vault, but
// for a root that stands by: emergencies that broke off may have left anchors behind.
func (e *emergencyReissue) onlyNew(ctx workflow.Context) (trustChange, error) {
	seen, err := e.surveyed(ctx)
	if err != nil {
		return trustChange{}, err
	}
	keep := e.NewRoot
	if e.sameRoot {
		keep = e.To
	}
	change := adding(keep)
	for _, root := range seen.Roots {
		if root.CertificatePEM != keep.CertificatePEM && !root.StandsBy(e.Record.ToRoot) {
			change.DropPEM = append(change.DropPEM, root.CertificatePEM)
		}
	}
	for _, i := range seen.Intermediates {
		if i.Generation != e.Record.To {
			change.DropPEM = append(change.DropPEM, i.CertificatePEM)
		}
	}
	return change, nil
}

// serves notes when the server has come to trust what is new alone.
func (e *emergencyReissue) serves(ctx workflow.Context, mode rotation.Mode) error {
	if e.want.Lift || mode.Anchor() == rotation.OldRoot || e.sameRoot && mode != rotation.Pinned {
		return nil
	}
	return e.mark(ctx, &e.Record.Emergency.ServerDistrusts, "Record that the server no longer accepts what is compromised")
}

// distrusted notes that nobody accepts any more what is compromised.
func (e *emergencyReissue) distrusted(ctx workflow.Context) error {
	if !e.mode.Writes() {
		return nil
	}
	e.Record.Emergency.Pinned = e.sameRoot
	return e.mark(ctx, &e.Record.Emergency.Distrusted, "Record that nobody accepts any more what is compromised")
}

// mark records when something has come, the first time.
func (e *emergencyReissue) mark(ctx workflow.Context, at *time.Time, summary string) error {
	if !e.mode.Writes() || !at.IsZero() {
		return nil
	}
	*at = workflow.Now(ctx)
	return e.note(ctx, "record the emergency", summary)
}

// prove looks at every member, and ends the emergency: in the record, unless the mesh
// is left pinned, and for the schedules.
func (e *emergencyReissue) prove(ctx workflow.Context) error {
	if !e.mode.Writes() {
		_, err := e.freeze(ctx, true)
		return err
	}
	of := e.Record.Emergency
	if !e.sameRoot {
		if err := e.distrusted(ctx); err != nil {
			return err
		}
	}
	if err := e.verify(ctx); err != nil {
		return err
	}
	if of.Reconnected.IsZero() {
		of.Reconnected = workflow.Now(ctx)
	}
	if err := e.standsFast(ctx); err != nil {
		return err
	}
	e.result.Quarantined = e.quarantined()
	switch {
	case e.want.Lift:
		of.Pinned = false
		return e.finish(ctx, fmt.Sprintf("lifted: everybody trusts %s again", e.Root.Authority.Name))
	case !e.sameRoot:
		return e.finish(ctx, fmt.Sprintf("every certificate is of %s under %s, and nobody trusts %s", e.To.Authority.Name, e.NewRoot.Authority.Name, e.Root.Authority.Name))
	}
	if err := e.note(ctx, "record the emergency", "Record that everybody has connected anew"); err != nil {
		return err
	}
	if _, err := e.freeze(ctx, true); err != nil {
		return err
	}
	notice(ctx, e.report, fmt.Sprintf("every certificate is of %s, which is all that is trusted until somebody lifts that: relaypki emergency lift %s --reason WHY --incident %s", e.To.Authority.Name, e.spec.Mesh, of.Incident))
	return nil
}

// standsFast makes sure that nothing which a run that was ended had cut off, a role
// that it moved or a CA that it let issue again, has come after what was done here.
func (e *emergencyReissue) standsFast(ctx workflow.Context) error {
	if e.want.Lift || e.RolesLand.IsZero() {
		return nil
	}
	e.fleet.await(ctx, "what the run that was ended had cut off in Vault to have happened or not, until "+pki.Date(e.RolesLand), false)
	err := workflow.Sleep(ctx, e.RolesLand.Sub(workflow.Now(ctx)))
	e.fleet.await(ctx, "", false)
	if err != nil {
		return err
	}
	if err := e.moveRoles(ctx); err != nil {
		return err
	}
	return e.stop(ctx)
}

// finish thaws the schedules, and records that the emergency is over.
func (e *emergencyReissue) finish(ctx workflow.Context, text string) error {
	root := e.Record.ToRoot
	if e.sameRoot {
		root = 0
	}
	// First: once the record says that it is over, nobody would thaw them any more.
	if _, err := e.freeze(ctx, true); err != nil {
		return err
	}
	if err := e.close(ctx, e.Record.To, root, "Record that the emergency is over"); err != nil {
		return err
	}
	notice(ctx, e.report, "done: "+text)
	return nil
}

// lift has everybody trust the root again.
func (e *emergencyReissue) lift(ctx workflow.Context) error {
	if err := e.give(ctx, rotation.Final); err != nil {
		return err
	}
	return e.issue(ctx, rotation.Final, trustChange{AddPEM: []string{e.Root.CertificatePEM}, DropPEM: []string{e.To.CertificatePEM}})
}

// hurried is the mesh as an emergency goes over it: all at once, with no window, soak
// or snapshot. Everybody is restarted, also who reads changed Secrets by itself: that
// is the quicker way to know what is loaded, and it cuts the streams that are open.
func hurried(s mesh.Spec) mesh.Spec {
	s.Workloads = slices.Clone(s.Workloads)
	for i := range s.Workloads {
		s.Workloads[i].Agent.Reload = mesh.ReloadRestart
	}
	s.Management.Reload = mesh.ReloadRestart
	s.Rotation.Soak, s.Rotation.Windows, s.Rotation.Snapshot = &mesh.Duration{}, nil, mesh.SnapshotNone
	everybody := len(s.Workloads)
	s.Rollout.Canary, s.Rollout.WaveSize, s.Rollout.Parallelism, s.Rollout.FailureBudget = nil, 0, max(everybody, 1), &everybody
	s.Rollout.RetryFor.Duration = min(s.Rollout.RetryFor.Duration, 2*time.Minute)
	return s
}
