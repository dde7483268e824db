package workflows

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/relay"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rotation"
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
	r := &intermediateRotation{input: in.In, caRotation: caRotation{
		rotating: rotating{in: in.In.MeshInput}, course: rotation.OfIntermediate,
		asked: caInput{plan: in.In.Plan, rollback: in.In.Rollback, approval: in.In.Approval, deleteOld: in.In.DeleteOldKey, what: whatIntermediate},
	}}
	r.of = r
	return r.start(ctx, procedure.RotateIntermediateCA, append(in.Problems, in.In.Validate()...), long, func(ctx workflow.Context, next longRotation) error {
		return workflow.NewContinueAsNewError(ctx, procedure.RotateIntermediateCA, in.In, next)
	})
}

// intermediateRotation is one run of RotateIntermediateCA.
type intermediateRotation struct {
	caRotation
	input procedure.RotateIntermediateInput
}

// forward goes through the phases.
func (r *intermediateRotation) forward(ctx workflow.Context) error {
	return r.phases(ctx,
		leg{rotation.PhaseStage, r.stage},
		leg{rotation.PhaseProve, r.prove},
		leg{rotation.PhaseCanary, r.canary},
		leg{rotation.PhaseServer, r.server},
		leg{rotation.PhaseFleet, r.everybody},
		leg{rotation.PhaseConverge, r.converge},
		leg{rotation.PhaseRetire, r.retire},
		leg{rotation.PhaseDeleteKey, r.deleteKeys},
	)
}

// over: what is done is passed over quickly, and asked for again.
func (r *intermediateRotation) over(rotation.Phase) bool { return false }

// preflight looks at all that the rotation relies on; nothing has been changed
// by its end.
func (r *intermediateRotation) preflight(ctx workflow.Context) (record cluster.MeshRecord, err error) {
	if record, err = r.look(ctx); err != nil || r.Phase == r.course.Last() {
		return record, err
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

// retire takes the previous intermediate's right to issue, and waits until the
// last certificate that it has issued has ended. With that the rotation is over.
func (r *intermediateRotation) retire(ctx workflow.Context) error {
	if err := r.use(ctx, r.From, false, r.To); err != nil {
		return err
	}
	if err := r.windUp(ctx, "intermediate"); err != nil {
		return err
	}
	return r.end(ctx)
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
	if err := r.close(ctx, r.Record.To, 0, "Record that the rotation is over"); err != nil {
		return err
	}
	notice(ctx, r.report, fmt.Sprintf("done: every certificate is of %s, until %s", r.To.Authority.Name, pki.Date(r.To.Authority.NotAfter)))
	return nil
}

// backward takes the rotation back: the previous intermediate may issue again,
// roles are moved back to it, and who has a certificate of the new one gets one
// of the previous. Both are accepted by everybody, so the order is free. What was
// staged stays, and may not issue: deleting is never part of going back.
func (r *intermediateRotation) backward(ctx workflow.Context) error {
	if err := r.turned(ctx); err != nil {
		return err
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
	if err := r.close(ctx, r.Record.From, 0, "Record that the rotation was taken back"); err != nil {
		return err
	}
	notice(ctx, r.report, fmt.Sprintf("taken back (%s): every certificate is of %s again", r.Record.Back, r.From.Authority.Name))
	return nil
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
