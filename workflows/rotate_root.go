package workflows

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rollout"
	"github.com/relaypki/relaypki/internal/rotation"
	"github.com/relaypki/relaypki/internal/strict"
)

// RotateRootCA replaces the root of a mesh, and the intermediate below it, with no
// handshake that fails. The server trusts what cert-manager has stored for it,
// one root and not two; so the mesh is steered from chain to chain, each of which
// is accepted together with the one before it (package rotation).
//
// It goes through phases: preflight, prepare (new root, bridge and new
// intermediate are made), trust (agents trust both roots), bridge, pivot, commit
// (everybody is issued the next chain), contract (agents trust the new root
// alone), retire (the previous CAs may no longer issue). With that it is over; if
// that was asked for, delete keys follows.
//
// Before Vault gives another chain, and before an anchor is taken from anybody,
// the gates are asked, with what is seen by then. Which chain Vault gives is read
// from Vault, each time: none that was written down is ever applied again.
func RotateRootCA(ctx workflow.Context, in procedure.Typed[procedure.RotateRootInput], long *longRotation) (procedure.RotateResult, error) {
	approval := in.In.Approval
	if approval == "" {
		approval = mesh.ApprovalEachPhase
	}
	r := &rootRotation{input: in.In, caRotation: caRotation{
		rotating: rotating{in: in.In.MeshInput, inPhases: true}, course: rotation.OfRoot,
		asked: caInput{plan: in.In.Plan, rollback: in.In.Rollback, approval: approval, deleteOld: in.In.DeleteOldKeys, what: whatRoot},
	}}
	r.of = r
	return r.start(ctx, procedure.RotateRootCA, append(in.Problems, in.In.Validate()...), long, func(ctx workflow.Context, next longRotation) error {
		return workflow.NewContinueAsNewError(ctx, procedure.RotateRootCA, in.In, next)
	})
}

// rootRotation is one run of RotateRootCA.
type rootRotation struct {
	caRotation
	input procedure.RotateRootInput
	// moved says that what was planned so far moves the roles.
	moved bool
	// Of an emergency. sameRoot: the intermediate alone is replaced, and may be pinned:
	// what it replaces is linked, and both roots are one. cutting: what is given next is
	// given whatever that breaks. served is told of what the server has come to serve.
	sameRoot, cutting bool
	served            func(ctx workflow.Context, mode rotation.Mode) error
}

// previous is the mode of what is replaced.
func (r *rootRotation) previous() rotation.Mode {
	if r.sameRoot {
		return rotation.Linked
	}
	return rotation.Old
}

// first is the chain that the new intermediate is made with.
func (r *rootRotation) first() rotation.Mode {
	if r.sameRoot || r.cutting {
		return rotation.Final
	}
	return rotation.Bridged
}

// forward goes through the phases. What was done before this run is done again
// where that changes nothing; a phase whose chain Vault gave before is over.
func (r *rootRotation) forward(ctx workflow.Context) error {
	return r.phases(ctx,
		leg{rotation.PhasePrepare, r.prepare},
		leg{rotation.PhaseTrust, r.trust},
		leg{rotation.PhaseBridge, r.to(rotation.Bridged)},
		leg{rotation.PhasePivot, r.to(rotation.Pivot)},
		leg{rotation.PhaseCommit, r.to(rotation.Final)},
		leg{rotation.PhaseContract, r.contract},
		leg{rotation.PhaseRetire, r.retire},
		leg{rotation.PhaseDeleteKeys, r.deleteKeys},
	)
}

// over: a phase whose chain is given, or left behind, has been approved.
func (r *rootRotation) over(phase rotation.Phase) bool {
	switch phase {
	case rotation.PhasePrepare:
		return r.Record.Mode != ""
	case rotation.PhaseTrust:
		return r.At >= rotation.Bridged
	case rotation.PhaseBridge:
		return r.At >= rotation.Bridged
	case rotation.PhasePivot:
		return r.At >= rotation.Pivot
	case rotation.PhaseCommit:
		return r.At >= rotation.Final
	case rotation.PhaseContract:
		return r.Record.Dropped != ""
	case rotation.PhaseRetire:
		return !r.Record.Converged.IsZero()
	}
	return false
}

// preflight looks at all that the rotation relies on; nothing has been changed
// by its end.
func (r *rootRotation) preflight(ctx workflow.Context) (record cluster.MeshRecord, err error) {
	if record, err = r.look(ctx); err != nil || r.Phase == r.course.Last() {
		return record, err
	}
	if _, err := r.step(ctx, "certificate authorities", "Read the CAs in Vault", func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.survey(ctx, record)
	}); err != nil {
		return record, err
	}
	r.parks = record.Rotation != nil
	pairs, err := r.observe(ctx)
	if err != nil {
		return record, err
	}
	r.matrix(pairs)
	return record, nil
}

// survey decides between which CAs the rotation goes: those of the one that has
// begun, also by hand, or from those at work to new ones.
func (r *rootRotation) survey(ctx workflow.Context, record cluster.MeshRecord) (procedure.Outcome, error) {
	seen, err := r.surveyed(ctx)
	if err != nil {
		return procedure.Outcome{}, err
	}
	begun := record.Rotation
	if begun != nil {
		r.Record = *begun
		if r.input.Root != (mesh.CA{}) || r.input.Intermediate != (mesh.CA{}) {
			return procedure.Outcome{}, invalid([]strict.Problem{problem("root", "what the new CAs are like was decided when the rotation began; leave it out, or take the rotation back first: relaypki rollback %s --reason WHY", r.spec.Mesh)})
		}
		if r.input.Snapshot != "" {
			r.Record.Snapshot = r.input.Snapshot
		}
	} else {
		r.Record = procedure.Rotation{
			Procedure: procedure.RotateRootCA, From: record.Generations.Intermediate, FromRoot: record.Generations.Root,
			Workflow: holder(ctx), Began: workflow.Now(ctx), Snapshot: r.input.Snapshot,
		}
		if r.spec.PKI.Root.Offline() && r.input.Root != (mesh.CA{}) {
			return procedure.Outcome{}, invalid([]strict.Problem{problem("root", "the root is kept outside Vault (pki.root.kept: %s): what the new one is like is up to whoever makes it; leave it out", mesh.KeptOffline)})
		}
		r.Record.ToRoot, r.Record.To = successors(seen, r.Record.FromRoot, r.Record.From, r.spec.PKI.Root.Offline())
		if slices.ContainsFunc(seen.Intermediates, func(i vault.IntermediateState) bool { return i.Generation == r.Record.To }) {
			r.Record.Furthest, r.Record.Lacked = rotation.Final, true // what was done by hand, nobody has written down
		}
		if r.input.Root != (mesh.CA{}) {
			root := r.spec.PKI.Root.CA.With(r.input.Root)
			r.Record.Root = &root
		}
		if r.input.Intermediate != (mesh.CA{}) {
			intermediate := r.spec.PKI.Intermediate.With(r.input.Intermediate)
			r.Record.Intermediate = &intermediate
		}
		if err := invalid(r.next().Validate()); err != nil {
			return procedure.Outcome{}, err
		}
	}
	if r.input.Rollback && r.Record.Back == "" {
		r.Record.Back = r.input.Reason
	}
	if err := r.find(seen); err != nil {
		return procedure.Outcome{}, err
	}
	if err := r.wayBack(ctx); err != nil {
		return procedure.Outcome{}, err
	}
	pending := r.Record.Next != ""
	if err := r.inTime(seen); err != nil {
		return procedure.Outcome{}, err
	}
	if pending { // another run was about to have Vault give it
		r.Lands = workflow.Now(ctx).Add(landing)
	}
	if err := r.fit(ctx); err != nil {
		return procedure.Outcome{}, err
	}
	detail := fmt.Sprintf("%s, until %s; %s, until %s", r.Root.Authority.Name, pki.Date(r.Root.Authority.NotAfter), r.From.Authority.Name, pki.Date(r.From.Authority.NotAfter))
	switch {
	case begun != nil:
		detail += fmt.Sprintf("; the rotation to root %d that began %s goes on, members are issued what is %s", r.Record.ToRoot, pki.Date(r.Record.Began), r.At)
	case r.To.CertificatePEM != "":
		detail += fmt.Sprintf("; the rotation to %s that was begun by hand goes on, members are issued what is %s", r.NewRoot.Authority.Name, r.At)
	case r.NewRoot.CertificatePEM != "":
		detail += fmt.Sprintf("; %s stands by", r.NewRoot.Authority.Name)
	}
	return procedure.Outcome{Detail: detail}, nil
}

func (r *rootRotation) surveyed(ctx workflow.Context) (vault.SurveyResult, error) {
	seen, err := call[vault.SurveyResult](ctx, acting, vaults.Survey, vault.SurveyInput{Spec: r.spec.Only("")})
	if err == nil && seen.FollowsLatest {
		err = failure.Permanent(failure.Preflight, "Vault %q: in the mount %s default_follows_latest_issuer is true: what is imported would be at work at once. Set it to false (vault write %[2]s/config/issuers default_follows_latest_issuer=false), then start again; nothing was changed",
			r.spec.Vault.Name, r.spec.Vault.RelayMount)
	}
	return seen, err
}

// successors are the generations of the next root and of the intermediate below
// it: such as are there already and may issue, made by hand or standing by, or new
// ones. What a rotation was taken back from may not issue. A root that is kept outside
// Vault is one to go to if an intermediate of it may issue.
func successors(seen vault.SurveyResult, fromRoot, from int, outside bool) (root, intermediate int) {
	root, intermediate = max(seen.HighestRoot, fromRoot)+1, max(seen.Highest, from)+1
	if outside {
		for _, i := range seen.Intermediates {
			for _, next := range seen.Roots {
				if next.Generation > fromRoot && i.Generation > from && i.HasKey && i.Signs && signedBy(i.CertificatePEM, next.CertificatePEM) {
					return next.Generation, i.Generation
				}
			}
		}
		return root, intermediate
	}
	next, there := vault.StandingBy(seen.Roots, fromRoot)
	if !there {
		return root, intermediate
	}
	for _, i := range seen.Intermediates {
		if i.Generation > from && i.HasKey && i.Signs && signedBy(i.CertificatePEM, next.CertificatePEM) {
			return next.Generation, i.Generation
		}
	}
	return next.Generation, intermediate
}

// find takes the CAs of the rotation from what there is in Vault, and how far it
// has come there.
func (r *rootRotation) find(seen vault.SurveyResult) error {
	missing := func(what string) error {
		return failure.Permanent(failure.Preflight, "Vault %q: %s, which the rotation goes out from, is not there; nothing more is changed. relaypki verify %s says what is", r.spec.Vault.Name, what, r.spec.Mesh)
	}
	for _, i := range seen.Intermediates {
		ca := vault.CAResult{Authority: i.Authority, CertificatePEM: i.CertificatePEM}
		switch i.Generation {
		case r.Record.From:
			r.From, r.Keyless = ca, !i.HasKey
		case r.Record.To:
			r.To = ca
		}
	}
	r.RootKeyless = false
	for _, root := range seen.Roots {
		ca := vault.CAResult{Authority: root.Authority, CertificatePEM: root.CertificatePEM}
		switch root.Generation {
		case r.Record.FromRoot:
			r.Root, r.RootKeyless = ca, !root.HasKey
		case r.Record.ToRoot:
			r.NewRoot = ca
		}
	}
	if r.spec.PKI.Root.Offline() {
		if err := r.findOutside(); err != nil {
			return err
		}
	}
	if r.sameRoot {
		r.NewRoot = r.Root
	}
	switch {
	case r.From.CertificatePEM == "":
		return missing("the intermediate " + vault.IntermediateName(r.Record.From))
	case r.Root.CertificatePEM == "":
		return missing("the root " + vault.RootName(r.Record.FromRoot))
	case !signedBy(r.From.CertificatePEM, r.Root.CertificatePEM):
		return failure.Permanent(failure.Preflight, "Vault %q: %s is not of the root %s; nothing more is changed. relaypki verify %s says what is there",
			r.spec.Vault.Name, r.From.Authority.Name, r.Root.Authority.Name, r.spec.Mesh)
	case r.RootKeyless && r.To.CertificatePEM == "" && !r.sameRoot && !r.cutting && !r.spec.PKI.Root.Offline():
		return failure.Permanent(failure.Preflight, "Vault %q: the key of the root %s is not in the mount %s, and without it there is no bridge to a new root; nothing was changed. Put the key back, or have the mesh issued anew under another root without a bridge, which interrupts it",
			r.spec.Vault.Name, r.Root.Authority.Name, r.spec.RootMount())
	}
	for _, b := range seen.Bridges {
		if r.NewRoot.CertificatePEM != "" && sameKey(b.CertificatePEM, r.NewRoot.CertificatePEM) && signedBy(b.CertificatePEM, r.Root.CertificatePEM) {
			r.Bridge = b
			if b.Authority.Name == vault.BridgeName(r.Record.ToRoot) {
				break // people may have signed several
			}
		}
	}
	return nil
}

// findOutside takes the root that is kept outside Vault from the mesh's record: that
// one everybody trusts, whatever it is called in Vault. No key of a root is there.
func (r *rootRotation) findOutside() error {
	var err error
	r.Root, err = offlineRoot(r.spec)
	r.Root.Authority.Name, r.RootKeyless = vault.RootName(r.Record.FromRoot), true
	return err
}

// inTime reads which chain Vault gives, and stops if it is another than the one
// that was given last: then Vault was restored to what it was before, or somebody
// else steers it.
func (r *rootRotation) inTime(seen vault.SurveyResult) error {
	chain, given, err := r.chainInVault(seen)
	if err != nil {
		return err
	}
	now := chain.String()
	if !given {
		now = ""
	}
	if known := r.Record.Mode != "" || r.Record.Next != ""; known && now != r.Record.Mode && (r.Record.Next == "" || now != r.Record.Next) {
		was := r.Record.Mode
		if was == "" {
			was = r.Record.Next
		}
		if now == "" {
			now = "none of this rotation"
		}
		return failure.Permanent(failure.Conflict, "Vault %q gives another chain than it did: it was %s, and is %s. It has gone back in time (a snapshot was restored), or somebody else steers it. Members hold what was issued meanwhile; nothing more is changed. Restore the later state of Vault; or, if what it gives now is what is wanted, compare with relaypki verify %s, and take the rotation out of the mesh's record",
			r.spec.Vault.Name, was, now, r.spec.Mesh)
	}
	r.At = r.previous()
	if !given {
		return nil
	}
	used := false
	for _, role := range workflow.DeterministicKeys(seen.Roles) {
		used = used || seen.Roles[role] == r.To.Authority.IssuerID
	}
	switch {
	case chain == rotation.Pinned && !r.sameRoot:
		return failure.Permanent(failure.Conflict, "Vault %q: the intermediate %s is pinned (its manual_chain is itself alone), which is no chain of this rotation. Nothing more is changed. See who has set it (vault read %s/issuer/%[2]s)",
			r.spec.Vault.Name, r.To.Authority.Name, r.spec.Vault.RelayMount)
	case r.Record.Mode == "" && r.Record.Next == "" && !used && chain != r.first():
		return nil // made by hand, and nobody has been issued it: it is given another chain first
	case used || chain != r.first():
		r.At = chain
	}
	r.Record.Mode = now
	if r.Record.Next == now { // else it may still be given
		r.Record.Next = ""
	}
	r.reach(chain)
	return nil
}

// chainInVault is the mode of the chain that the new intermediate has in Vault, if
// there is one with a chain.
func (r *rootRotation) chainInVault(seen vault.SurveyResult) (mode rotation.Mode, given bool, err error) {
	for _, i := range seen.Intermediates {
		if i.Generation != r.Record.To || i.AbovePEM == nil {
			continue
		}
		var above []*x509.Certificate
		for _, text := range i.AbovePEM {
			c, err := certificateOf(text)
			if err != nil {
				return 0, false, err
			}
			above = append(above, c)
		}
		lineage, err := r.lineagePEM().Certificates()
		if err != nil {
			return 0, false, err
		}
		if mode, err = rotation.ModeOfChain(above, lineage); err != nil {
			return 0, false, failure.Permanent(failure.Conflict, "Vault %q: the manual_chain of %s is none that this rotation gives it: %v. Nothing was changed. See who has set it (vault read %s/issuer/%[2]s)",
				r.spec.Vault.Name, i.Authority.Name, err, r.spec.Vault.RelayMount)
		}
		return mode, true, nil
	}
	return 0, false, nil
}

// reach remembers how far the mesh has ever come: whatever was given may be held.
func (r *rootRotation) reach(mode rotation.Mode) {
	if mode > r.Record.Furthest {
		r.Record.Furthest = mode
	}
}

// fit says why a rotation that begins now would not come to its end.
func (r *rootRotation) fit(ctx workflow.Context) error {
	if r.Record.Back != "" || r.Record.Mode != "" {
		return nil
	}
	now := workflow.Now(ctx)
	root, err := certificateOf(r.Root.CertificatePEM)
	if err != nil {
		return err
	}
	if err := pki.MayBridge(root, 0, now); err != nil && r.Bridge.CertificatePEM == "" {
		return failure.Permanent(failure.Preflight, "the root cannot be rotated over a bridge; nothing was changed: %v", err)
	}
	pace := pace(r.spec)
	if r.spec.PKI.Root.Offline() && r.Record.Signed == nil && r.To.CertificatePEM == "" {
		pace.Signing = signedAhead
	}
	if err := rotation.RootLasts(root.NotAfter, r.spec.Certificates.LongestLife(), pace, now); err != nil {
		return failure.Permanent(failure.Preflight, "the root %s does not live long enough to be rotated over a bridge; nothing was changed: %v", r.Root.Authority.Name, err)
	}
	next := r.next().PKI
	if r.NewRoot.CertificatePEM == "" && !next.Root.Offline() && next.Root.TTL.Duration < next.Intermediate.TTL.Duration {
		return failure.Permanent(failure.InvalidInput, "the new root would live %s, and the intermediate below it %s; nothing was changed. Ask for a longer root or a shorter intermediate", next.Root.TTL, next.Intermediate.TTL)
	}
	return nil
}

// next is the mesh as it is described once the rotation is over.
func (r *rootRotation) next() mesh.Spec {
	spec := r.spec
	if r.Record.Root != nil {
		spec.PKI.Root.CA = *r.Record.Root
	}
	if r.Record.Intermediate != nil {
		spec.PKI.Intermediate = *r.Record.Intermediate
	}
	return spec
}

// prepare makes the new root, the bridge and the new intermediate, whose chain
// leads to both roots from its first moment. Nothing uses them yet.
func (r *rootRotation) prepare(ctx workflow.Context) error {
	if r.To.CertificatePEM == "" {
		if err := r.snapshot(ctx); err != nil {
			return err
		}
	}
	if !r.cutting { // nobody is issued it any more then
		if _, err := r.step(ctx, "chain of "+r.From.Authority.Name, "Fix the chain of the intermediate at work", func(ctx workflow.Context) (procedure.Outcome, error) {
			ca, err := call[vault.CAResult](ctx, acting, vaults.SetSignedIntermediate, vault.IntermediateInput{
				Vault: r.spec.Vault.Name, RootMount: r.spec.RootMount(), RelayMount: r.spec.Vault.RelayMount,
				RootIssuerID: r.Root.Authority.IssuerID, RootPEM: r.Root.CertificatePEM, Generation: r.Record.From, Mode: r.mode, Rotation: true,
			})
			return ca.Outcome, err
		}); err != nil {
			return err
		}
	}
	makes := r.inVault
	if r.spec.PKI.Root.Offline() {
		makes = r.outside
	}
	if err := makes(ctx); err != nil || !r.mode.Writes() {
		return err
	}
	if err := r.made(ctx, "Record that the new CAs are there"); err != nil || r.cutting {
		return err
	}
	return r.aim(ctx, r.At)
}

// inVault makes the new CAs with a root that is in Vault.
func (r *rootRotation) inVault(ctx workflow.Context) error {
	if _, err := r.step(ctx, "new root", "Make the root "+vault.RootName(r.Record.ToRoot), func(ctx workflow.Context) (procedure.Outcome, error) {
		var err error
		r.NewRoot, err = call[vault.CAResult](ctx, acting, vaults.GenerateRoot, vault.GenerateRootInput{
			Vault: r.spec.Vault.Name, Mount: r.spec.RootMount(), Generation: r.Record.ToRoot, CA: r.next().PKI.Root.CA, Mode: r.mode, Rotation: true,
		})
		return r.NewRoot.Outcome, err
	}); err != nil {
		return err
	}
	name, summary := "bridge", "Have the old root sign the new one's key, and bring both into the relay mount"
	if r.cutting {
		name, summary = "new root below", "Bring the new root into the relay mount"
	}
	if _, err := r.step(ctx, name, summary, func(ctx workflow.Context) (procedure.Outcome, error) {
		bridge, err := call[vault.CAResult](ctx, acting, vaults.BridgeRoot, vault.BridgeInput{
			Spec: r.next().Only(""), Generation: r.Record.ToRoot, OldRoot: r.Root, NewRoot: r.NewRoot, Unbridged: r.cutting, Mode: r.mode,
		})
		if !r.cutting {
			r.Bridge = bridge
		}
		return bridge.Outcome, err
	}); err != nil {
		return err
	}
	_, err := r.step(ctx, "new intermediate", "Make the intermediate "+vault.IntermediateName(r.Record.To), func(ctx workflow.Context) (procedure.Outcome, error) {
		var outcome procedure.Outcome
		var err error
		r.To, outcome, err = makeIntermediate(ctx, r.signing, r.next(), vault.IntermediateInput{
			Vault: r.spec.Vault.Name, RootMount: r.spec.RootMount(), RelayMount: r.spec.Vault.RelayMount,
			RootIssuerID: named(r.NewRoot.Authority.IssuerID, vault.RootName(r.Record.ToRoot)), RootPEM: r.NewRoot.CertificatePEM,
			Generation: r.Record.To, CA: r.next().PKI.Intermediate, Mode: r.mode, Rotation: true,
			AbovePEM: r.above(r.first()),
		})
		return outcome, err
	})
	return err
}

// made reads which chain the CAs that were made give, and records that they are there.
func (r *rootRotation) made(ctx workflow.Context, summary string) error {
	seen, err := r.surveyed(ctx)
	if err != nil {
		return err
	}
	if err := r.inTime(seen); err != nil {
		return err
	}
	return r.note(ctx, "record the CAs", summary)
}

// trust puts the new root into every agent's trust. Who does not answer is waited
// for before it matters, which is after everybody has a chain that leads to both
// roots.
func (r *rootRotation) trust(ctx workflow.Context) error {
	add := adding(r.NewRoot)
	add.Only = true
	return r.change(ctx, "trust", add, true)
}

// to is the phase in which everybody is issued the chain of that mode.
func (r *rootRotation) to(mode rotation.Mode) func(workflow.Context) error {
	return func(ctx workflow.Context) error {
		if r.At > mode { // given before, and left behind
			return nil
		}
		if err := r.give(ctx, mode); err != nil {
			return err
		}
		if !r.mode.Writes() { // what was planned before puts the new root everywhere
			return r.issue(ctx, mode, trustChange{})
		}
		return r.issue(ctx, mode, r.both())
	}
}

// contract takes the old root out of every agent's trust, once somebody has given
// the word for whatever else holds it.
func (r *rootRotation) contract(ctx workflow.Context) error {
	if err := r.consumers(ctx); err != nil {
		return err
	}
	if err := r.gate(ctx, rotation.DropOld); err != nil {
		return err
	}
	return r.drop(ctx, procedure.DroppedOld, r.NewRoot, r.Root)
}

// drop takes an anchor out of every agent's trust, and leaves the other.
func (r *rootRotation) drop(ctx workflow.Context, which string, keep, gone vault.CAResult) error {
	if r.mode.Writes() && r.Record.Dropped != which {
		r.Record.Dropped, r.Record.Lacked = which, r.Record.Lacked || which == procedure.DroppedOld
		if err := r.note(ctx, "record the rotation", "Record that a root is taken out of agents' trust"); err != nil {
			return err
		}
	}
	change := adding(keep)
	change.DropPEM, change.Only = []string{gone.CertificatePEM}, true
	return r.change(ctx, "without "+gone.Authority.Name, change, false)
}

// consumers lists what else holds the old root. What that breaks when the root is
// gone, only its owners know.
func (r *rootRotation) consumers(ctx workflow.Context) error {
	var found []string
	unseen := map[string][]string{} // by what was not looked at, in which clusters
	if _, err := r.step(ctx, "other holders of the old root", "Look for whatever else holds the old root", func(ctx workflow.Context) (procedure.Outcome, error) {
		looked := 0
		for _, w := range append([]mesh.Workload{{Name: r.spec.Management.Context, Context: r.spec.Management.Context}}, r.spec.Workloads...) {
			if r.fleet.status[w.Name] == rollout.Skipped {
				continue
			}
			out, err := call[cluster.FindConsumersResult](ctx, on(r.Queues[w.Context], looking), kubernetes.FindConsumers, cluster.FindConsumersInput{
				Context: w.Context, RootPEM: r.Root.CertificatePEM, Known: r.known(),
			})
			if err != nil {
				if ctx.Err() != nil {
					return procedure.Outcome{}, ctx.Err()
				}
				out.Unseen = append(out.Unseen, failure.Message(err))
			}
			looked += out.Looked
			for _, c := range out.Consumers {
				found = append(found, fmt.Sprintf("%s: %s (%s) holds %s", w.Name, c.Object, strings.Join(c.Keys, ", "), c.Holds))
			}
			if out.More > 0 {
				found = append(found, fmt.Sprintf("%s: %d more", w.Name, out.More))
			}
			for _, u := range out.Unseen {
				unseen[u] = append(unseen[u], w.Name)
			}
		}
		return procedure.Outcome{Detail: fmt.Sprintf("%d of %d Secrets and ConfigMaps", len(found), looked)}, nil
	}); err != nil {
		return err
	}
	r.result.Consumers = found
	for _, what := range workflow.DeterministicKeys(unseen) {
		r.result.Consumers = append(r.result.Consumers, fmt.Sprintf("not looked at in %s: %s", strings.Join(unseen[what], ", "), what))
	}
	if len(r.result.Consumers) == 0 || r.input.Consumers || r.Record.Dropped == procedure.DroppedOld || !r.mode.Writes() {
		return nil
	}
	return r.awaitApproval(ctx, phaseConsumers, "somebody's word for what may still rely on the old root, which is about to be taken out of agents' trust:\n- "+strings.Join(r.result.Consumers, "\n- ")+"\n")
}

// phaseConsumers is only ever approved.
const phaseConsumers = "consumers"

// known are the objects of a cluster that the rotation itself takes care of.
func (r *rootRotation) known() []string {
	var known []string
	for _, namespace := range []string{r.spec.Namespace, r.spec.Management.Namespace} {
		known = append(known, meshObjects(r.spec, namespace)...)
	}
	return known
}

// retire proves that nothing is left of the old root, takes the previous CAs' right
// to issue, and waits until the last certificate that they have issued has ended.
// With that the rotation is over.
func (r *rootRotation) retire(ctx workflow.Context) error {
	if r.mode.Writes() {
		if err := r.verify(ctx); err != nil {
			return err
		}
	}
	if err := r.use(ctx, r.From, false, r.To); err != nil {
		return err
	}
	if !r.spec.PKI.Root.Offline() { // else its key is where no Vault can keep it from signing
		if err := r.useCA(ctx, whatRoot, r.Root, false, r.NewRoot); err != nil {
			return err
		}
	}
	if err := r.windUp(ctx, "CAs"); err != nil {
		return err
	}
	return r.end(ctx)
}

// end records that the mesh is of the new generations and, if that was asked for,
// that the previous CAs' keys are to be deleted. From here on it is not taken back.
func (r *rootRotation) end(ctx workflow.Context) error {
	r.Phase = r.course.Last()
	if r.input.DeleteOldKeys {
		r.Deletions = append(r.Deletions,
			procedure.Deletion{Generation: r.Record.From, IssuerID: r.From.Authority.IssuerID, CertificatePEM: r.From.CertificatePEM})
		if !r.spec.PKI.Root.Offline() {
			r.Deletions = append(r.Deletions,
				procedure.Deletion{Root: true, Generation: r.Record.FromRoot, IssuerID: r.Root.Authority.IssuerID, CertificatePEM: r.Root.CertificatePEM})
		}
	}
	if !r.mode.Writes() {
		return nil
	}
	r.result.Quarantined = r.quarantined()
	if r.spec.PKI.Root.Offline() {
		r.result.RootPEM = r.NewRoot.CertificatePEM
	}
	if err := r.close(ctx, r.Record.To, r.Record.ToRoot, "Record that the rotation is over"); err != nil {
		return err
	}
	text := fmt.Sprintf("done: every certificate is of %s under %s, until %s", r.To.Authority.Name, r.NewRoot.Authority.Name, pki.Date(r.NewRoot.Authority.NotAfter))
	if r.result.RootPEM != "" {
		text += fmt.Sprintf(". From now on pki.root.certificatePEM of the mesh's file has to be the new root's, %s, serial %s: a setup with the old one is refused", r.NewRoot.Authority.Subject, r.NewRoot.Authority.Serial)
	}
	for _, c := range r.fleet.in(procedure.Skipped) {
		text += fmt.Sprintf("\n- left out: %s (%s)", c.Cluster, c.Detail)
	}
	notice(ctx, r.report, text)
	return nil
}

// backward takes the rotation back through the same chains, each under its gate.
// What was made stays, and may not issue: deleting is never part of going back.
func (r *rootRotation) backward(ctx workflow.Context) error {
	if !r.Turned {
		r.RolesLand = workflow.Now(ctx).Add(landing)
	}
	if err := r.turned(ctx); err != nil {
		return err
	}
	if err := r.landed(ctx); err != nil {
		return err
	}
	seen, err := r.surveyed(ctx)
	if err != nil {
		return err
	}
	if err := r.find(seen); err != nil {
		return err
	}
	if err := r.inTime(seen); err != nil {
		return err
	}
	r.Record.Next = ""  // what has not been given by now is not any more
	if !r.RootKeyless { // what is below it serves the mesh without it
		if err := r.useCA(ctx, whatRoot, r.Root, true, r.Root); err != nil {
			return err
		}
	}
	if err := r.use(ctx, r.From, true, r.From); err != nil {
		return err
	}
	if r.Record.Mode != "" {
		if err := r.unwind(ctx); err != nil {
			return err
		}
	}
	if err := r.verify(ctx); err != nil {
		return err
	}
	if err := r.putAway(ctx); err != nil {
		return err
	}
	if err := r.close(ctx, r.Record.From, r.Record.FromRoot, "Record that the rotation was taken back"); err != nil {
		return err
	}
	notice(ctx, r.report, fmt.Sprintf("taken back (%s): every certificate is of %s under %s again", r.Record.Back, r.From.Authority.Name, r.Root.Authority.Name))
	return nil
}

// unwind goes back chain by chain, then has the previous intermediate sign again,
// and last takes the new root out of agents' trust. How far it has come is in the
// record where Vault does not tell.
func (r *rootRotation) unwind(ctx workflow.Context) error {
	if r.Record.Leg == "" {
		if err := r.toBridged(ctx); err != nil {
			return err
		}
		if err := r.gate(ctx, rotation.UseOld); err != nil {
			return err
		}
		if err := r.begins(ctx, procedure.LegOld); err != nil {
			return err
		}
	}
	if r.Record.Leg == procedure.LegOld {
		// A role that was moved forward before may still be by a request that was cut off.
		if err := workflow.Sleep(ctx, r.RolesLand.Sub(workflow.Now(ctx))); err != nil {
			return err
		}
		if err := r.issue(ctx, rotation.Old, trustChange{AddPEM: []string{r.Root.CertificatePEM}}); err != nil {
			return err
		}
		if err := r.gate(ctx, rotation.DropNew); err != nil {
			return err
		}
		if err := r.begins(ctx, procedure.LegDrop); err != nil {
			return err
		}
	}
	return r.drop(ctx, procedure.DroppedNew, r.Root, r.NewRoot)
}

// begins records that a leg of the way back begins.
func (r *rootRotation) begins(ctx workflow.Context, leg string) error {
	r.Record.Leg = leg
	return r.note(ctx, "record the rotation", "Record how far the rotation has gone back")
}

// toBridged has agents trust both roots, and everybody have a chain that leads to
// both.
func (r *rootRotation) toBridged(ctx workflow.Context) error {
	if r.Record.Dropped == procedure.DroppedOld {
		both := r.both()
		both.Only = true
		if err := r.change(ctx, "both roots", both, true); err != nil {
			return err
		}
		r.Record.Dropped = ""
		if err := r.note(ctx, "record the rotation", "Record that agents are given both roots again"); err != nil {
			return err
		}
	}
	for _, mode := range []rotation.Mode{rotation.Pivot, rotation.Bridged} {
		if r.At < mode || r.At == mode && r.Record.Furthest == mode {
			continue
		}
		if err := r.give(ctx, mode); err != nil {
			return err
		}
		if err := r.issue(ctx, mode, r.both()); err != nil {
			return err
		}
	}
	return nil
}

// putAway takes the right to issue from the CAs that were made.
func (r *rootRotation) putAway(ctx workflow.Context) error {
	if r.To.Authority.IssuerID != "" {
		if err := r.use(ctx, r.To, false, r.From); err != nil {
			return err
		}
	}
	if r.NewRoot.Authority.IssuerID == "" { // it was not made, or is kept outside Vault
		return nil
	}
	return r.useCA(ctx, whatRoot, r.NewRoot, false, r.Root)
}

// noWayBack says why the previous CAs cannot serve the mesh once more.
func (r *rootRotation) noWayBack(ctx workflow.Context) error {
	ends := r.From.Authority.NotAfter
	if root := r.Root.Authority.NotAfter; root.Before(ends) {
		ends = root
	}
	err := rotation.WayBack(ends, r.spec.Certificates.LongestLife(), pace(r.spec), workflow.Now(ctx))
	if r.Keyless {
		err = fmt.Errorf("the key of %s is not in Vault any more", r.From.Authority.Name)
	}
	if err == nil {
		return nil
	}
	return failure.Permanent(failure.Preflight, "the rotation is not taken back to %s: %v. It only goes forward: relaypki rotate root %s", r.From.Authority.Name, err, r.spec.Mesh)
}

// landed waits until what was cut off in Vault has happened or not.
func (r *rootRotation) landed(ctx workflow.Context) error {
	if r.Lands.IsZero() || !r.mode.Writes() {
		return nil
	}
	err := r.fence(ctx)
	r.Lands = time.Time{}
	return err
}

// certificateOf is the certificate in a PEM text that Vault has given.
func certificateOf(text string) (*x509.Certificate, error) {
	chain, err := pki.ParseChain([]byte(text))
	if err != nil {
		return nil, failure.Permanent(failure.Mismatch, "a CA certificate that Vault has given cannot be read: %v", err)
	}
	return chain[0], nil
}

// firstPEM is the first certificate of a chain.
func firstPEM(text string) string {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return ""
	}
	return string(pem.EncodeToMemory(block))
}

func signedBy(below, above string) bool {
	c, err := certificateOf(below)
	if err != nil {
		return false
	}
	by, err := certificateOf(above)
	return err == nil && pki.SignedBy(c, by) == nil
}

func sameKey(a, b string) bool {
	first, err := certificateOf(a)
	if err != nil {
		return false
	}
	second, err := certificateOf(b)
	return err == nil && pki.SameKey(first, second)
}
