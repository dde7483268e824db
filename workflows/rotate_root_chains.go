package workflows

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/relay"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rollout"
	"github.com/relaypki/relaypki/internal/rotation"
)

// How the mesh of a root's rotation is brought from chain to chain, and what is
// known of it.

// trustChange says which anchors go into an agent's trust and which out of it.
type trustChange struct {
	AddPEM  []string `json:"addPEM,omitempty"`
	DropPEM []string `json:"dropPEM,omitempty"`
	// AddPrintedBy is in a plan the command that prints an anchor which is still to
	// be made.
	AddPrintedBy string `json:"addPrintedBy,omitempty"`
	// Only leaves the certificates as they are.
	Only bool `json:"only,omitempty"`
}

func (t trustChange) nothing() bool { return len(t.AddPEM)+len(t.DropPEM) == 0 && t.AddPrintedBy == "" }

// adding puts a root into agents' trust.
func adding(root vault.CAResult) trustChange {
	if root.CertificatePEM == "" { // in a plan
		return trustChange{AddPrintedBy: root.PrintedBy}
	}
	return trustChange{AddPEM: []string{root.CertificatePEM}}
}

// give has Vault give the new intermediate's next chain, if it does not yet, under
// its gate. From then on any member may be issued it, whenever it renews.
func (r *rootRotation) give(ctx workflow.Context, mode rotation.Mode) error {
	if r.Record.Mode == mode.String() && r.mode.Writes() && (r.Record.Next == "" || !r.cutting) {
		return nil
	}
	kind := map[rotation.Mode]rotation.StepKind{rotation.Bridged: rotation.ToBridged, rotation.Pivot: rotation.ToPivot, rotation.Final: rotation.ToFinal, rotation.Pinned: rotation.ToPinned}[mode]
	if !r.cutting {
		if err := r.gate(ctx, kind); err != nil {
			return err
		}
		if err := r.foresee(ctx, mode); err != nil {
			return err
		}
	}
	if err := r.landed(ctx); err != nil {
		return err
	}
	if r.mode.Writes() {
		seen, err := r.surveyed(ctx)
		if err != nil {
			return err
		}
		if err := r.inTime(seen); err != nil {
			return err
		}
		r.Record.Next = mode.String()
		r.reach(mode)
		if err := r.note(ctx, "record the chain", "Record that members are about to be issued what is "+mode.String()); err != nil {
			return err
		}
	}
	if mode == r.first() && !r.mode.Writes() { // it was made with that chain
		return nil
	}
	// Until it is known that it was done at the first try, one that was cut off may
	// still happen.
	r.Lands = workflow.Now(ctx).Add(landing)
	if _, err := r.step(ctx, "chain "+mode.String(), "Have Vault give the chain "+mode.String()+" from now on", func(ctx workflow.Context) (procedure.Outcome, error) {
		out, err := call[vault.SetChainResult](ctx, acting, vaults.SetChain, vault.SetChainInput{
			Spec: r.spec.Only(""), IssuerID: r.issuer(r.To), AbovePEM: r.above(mode), Mode: r.mode,
		})
		r.Lands = workflow.Now(ctx).Add(landing)
		if err == nil && out.Tries == 1 {
			r.Lands = time.Time{}
		}
		if long := r.loading(true); !r.mode.Writes() && long > 0 && len(out.Changes) > 0 {
			change := &out.Changes[len(out.Changes)-1]
			change.Detail += ", once everybody has loaded what was stored before"
			change.Commands = append([]string{fmt.Sprintf("sleep %d # until those have loaded what was stored who read their changed Secrets by themselves", int(long.Seconds()))}, change.Commands...)
		}
		return out.Outcome, err
	}); err != nil || !r.mode.Writes() {
		return err
	}
	r.Record.Mode, r.Record.Next = mode.String(), ""
	return r.note(ctx, "record the chain", "Record that members are issued what is "+mode.String())
}

// issue has everybody have what Vault gives in a mode, and nothing else: stored,
// loaded, and in flight.
func (r *rootRotation) issue(ctx workflow.Context, mode rotation.Mode, trust trustChange) error {
	if err := r.aim(ctx, mode); err != nil {
		return err
	}
	r.At = mode
	if r.pass("chain "+mode.String(), trust) {
		r.Reached = nil
		r.fleet.again(ctx)
	}
	if r.Reached == nil {
		r.Reached = map[string]bool{}
	}
	if !r.mode.Writes() {
		if r.moved { // by what was planned before
			r.Target.IssuerID = ""
		}
		r.moved = true
	}
	if r.spec.PKI.Isolation == mesh.IsolationShared {
		// One role signs for everybody.
		if err := r.moveRole(ctx, ""); err != nil {
			return err
		}
	}
	r.fleet.passing = r.Record.Back != "" && mode == rotation.Pivot // who does not answer is in nobody's way yet
	defer func() { r.fleet.passing = false }()
	if !r.Server.Ended && !r.cutting {
		if err := r.canary(ctx); err != nil {
			return err
		}
	}
	if err := r.server(ctx); err != nil {
		return err
	}
	if r.served != nil && r.mode.Writes() {
		if err := r.served(ctx, mode); err != nil {
			return err
		}
	}
	if err := r.clusters(ctx, r.names()); err != nil {
		return err
	}
	if r.mode.Writes() {
		if err := r.settle(ctx); err != nil {
			return err
		}
	}
	if err := r.load(ctx); err != nil || !r.mode.Writes() {
		return err
	}
	r.Passed = ""
	if r.Reached == nil { // nobody had been, where the run before was continued as new
		r.Reached = map[string]bool{}
	}
	r.Reached[serverReached] = true
	for _, name := range r.names() {
		if r.fleet.status[name] == rollout.Done {
			r.Reached[name] = true
			delete(r.Away, name)
		}
	}
	return nil
}

// canary has the canary issued, and left to itself for a while. One that does not
// answer tells nothing, and is in the way of no chain but the next; unless the spec
// names who goes first, another cluster does.
func (r *rootRotation) canary(ctx workflow.Context) error {
	passing := r.fleet.passing
	names := canaries(r.spec)
	for others := r.names(); len(names) > 0; others = others[1:] {
		waits := slices.ContainsFunc(names, func(name string) bool { return r.fleet.status[name] != rollout.Done })
		r.fleet.passing = passing || len(r.spec.Rollout.Canary) == 0
		err := r.clusters(ctx, names)
		r.fleet.passing = passing
		if err != nil {
			return err
		}
		if len(others) > 1 && r.fleet.status[names[0]] == rollout.Parked && r.fleet.unreached[names[0]] {
			names = others[1:2]
			continue
		}
		if err := r.clusters(ctx, names); err != nil { // for people, if something is wrong with it
			return err
		}
		// Who goes back is in a hurry.
		if r.mode.Writes() && waits && r.Record.Back == "" {
			return r.soak(ctx, names)
		}
		return nil
	}
	return nil
}

// change has every agent's trust changed, and loaded. With passing, who does not
// answer is not waited for.
func (r *rootRotation) change(ctx workflow.Context, name string, trust trustChange, passing bool) error {
	if r.pass(name, trust) {
		r.fleet.again(ctx)
	}
	if r.Target.RootPEM == "" { // nothing was aimed at yet
		if err := r.aim(ctx, r.At); err != nil {
			return err
		}
	}
	for {
		if r.mode.Writes() {
			if err := r.readSpec(ctx); err != nil {
				return err
			}
			r.leavers(ctx)
			r.newcomers(ctx)
		}
		r.fleet.passing = passing
		err := r.clusters(ctx, r.names())
		r.fleet.passing = false
		if err != nil {
			return err
		}
		if err := r.load(ctx); err != nil || !r.mode.Writes() {
			return err
		}
		if err := r.readSpec(ctx); err != nil {
			return err
		}
		if !slices.ContainsFunc(r.names(), r.isNew) {
			r.Passed = ""
			return nil
		}
	}
}

// isNew says that the cluster has joined since the members were last gone over.
func (r *rootRotation) isNew(name string) bool {
	return !slices.ContainsFunc(r.report.Clusters, func(c procedure.ClusterProgress) bool { return c.Cluster == name })
}

// pass says whether another part of the rotation begins, in which everybody has
// a turn again; a run that is continued as new goes on with the one it was at.
func (r *rootRotation) pass(name string, trust trustChange) bool {
	r.Trust = trust
	if r.Passed == name {
		return false
	}
	r.Passed = name
	return true
}

// load waits as long as those agents take who read their changed Secrets by
// themselves. That an agent has loaded something cannot be seen.
func (r *rootRotation) load(ctx workflow.Context) error {
	long := r.loading(false)
	if long == 0 || !r.mode.Writes() {
		return nil
	}
	until := workflow.Now(ctx).Add(long)
	r.fleet.await(ctx, "agents that read their Secrets by themselves to have loaded them, until "+pki.Date(until), false)
	err := workflow.Sleep(ctx, long)
	r.fleet.await(ctx, "", false)
	return err
}

// loading is how long those agents take who read their changed Secrets by
// themselves, or the server too; 0 if there are none. What the server has loaded can
// be seen, but not by the commands of a plan.
func (r *rootRotation) loading(server bool) time.Duration {
	hot := server && r.spec.Management.Reload == mesh.ReloadHot || slices.ContainsFunc(r.spec.Workloads, func(w mesh.Workload) bool {
		return w.Agent.Reload == mesh.ReloadHot && r.fleet.status[w.Name] != rollout.Skipped
	})
	if !hot {
		return 0
	}
	return r.spec.Rotation.ReloadWithin.Duration
}

// aim makes what Vault gives in a mode the target of what follows, and proves by a
// throwaway signature that it gives that.
func (r *rootRotation) aim(ctx workflow.Context, mode rotation.Mode) error {
	ca, generation := r.To, r.Record.To
	if mode == r.previous() {
		ca, generation = r.From, r.Record.From
	}
	r.Target = target{IssuerID: r.issuer(ca), Generation: generation, RootPEM: r.anchor(mode), IntermediatePEM: ca.CertificatePEM, BridgePEM: r.presented(mode)}
	r.Lineage = r.lineagePEM()
	if _, err := r.step(ctx, "throwaway signature", "Have the intermediate sign a throwaway certificate", func(ctx workflow.Context) (procedure.Outcome, error) {
		out, err := call[vault.ProveIssuerResult](ctx, acting, vaults.ProveIssuer, vault.ProveIssuerInput{
			Spec: r.spec.Only(""), IssuerID: r.Target.IssuerID, RootPEM: r.Target.RootPEM, BridgePEM: r.Target.BridgePEM, Mode: r.mode,
		})
		if out.ChainPEM != "" {
			r.Target.InFlight, r.Target.InFlightCAs = []string{out.ChainPEM}, []string{r.Target.RootPEM}
		}
		return out.Outcome, err
	}); err != nil || !r.mode.Writes() || r.cutting {
		return err
	}
	return r.handshakes(ctx, "in what is "+mode.String())
}

// foresee computes every handshake with what Vault gives now and what it is about
// to give, whoever is issued which.
func (r *rootRotation) foresee(ctx workflow.Context, mode rotation.Mode) error {
	if !r.mode.Writes() || len(r.Target.InFlight) == 0 {
		return nil
	}
	leaf := firstPEM(r.Target.InFlight[0])
	was := r.Target
	r.Target.InFlight = append(slices.Clone(was.InFlight), leaf+r.To.CertificatePEM+r.presented(mode))
	r.Target.InFlightCAs = append(slices.Clone(was.InFlightCAs), r.anchor(mode))
	err := r.handshakes(ctx, "before what is "+mode.String())
	r.Target = was
	return err
}

func (r *rootRotation) handshakes(ctx workflow.Context, when string) error {
	if _, err := r.step(ctx, "server", "Read what the management server presents and trusts", func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.readServer(ctx, false)
	}); err != nil {
		return err
	}
	_, err := r.step(ctx, "handshakes", "Compute the handshakes of every agent and the server, "+when, func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.pairs(ctx, r.inTouch(), false, nil)
	})
	return err
}

// gate waits until a step is safe for everybody who counts. Who is in its way is
// gone over again; people are asked if that does not help.
func (r *rootRotation) gate(ctx workflow.Context, kind rotation.StepKind) error {
	if !r.mode.Writes() {
		return nil
	}
	var reasons []rotation.Reason
	for range gateTries {
		if err := r.readSpec(ctx); err != nil {
			return err
		}
		r.leavers(ctx)
		r.newcomers(ctx)
		if r.Target.RootPEM == "" { // nothing was aimed at by this run
			if err := r.aim(ctx, r.At); err != nil {
				return err
			}
		}
		pairs, err := r.observe(ctx)
		if err != nil {
			return err
		}
		lagging, err := r.lagging(ctx)
		if err != nil {
			return err
		}
		for _, name := range lagging { // somebody has moved its role since
			delete(r.Reached, name)
		}
		reasons = waits(r.fleetOf(pairs), kind)
		held := len(r.fleet.in(procedure.Parked)) > 0 || len(lagging) > 0
		// Back from final to pivot, nobody is in the way.
		if len(reasons) == 0 && (!held || kind == rotation.ToPivot && r.Record.Back != "") {
			return nil
		}
		for _, reason := range reasons {
			if _, member := r.spec.Workload(reason.Member); member && r.fleet.status[reason.Member] == rollout.Done {
				r.fleet.status[reason.Member] = rollout.Waiting
				r.report.cluster(ctx, reason.Member, procedure.Pending, reason.String())
			}
		}
		if err := r.issue(ctx, r.At, r.both()); err != nil {
			return err
		}
	}
	lines := make([]string, len(reasons))
	for i, reason := range reasons {
		lines[i] = reason.String()
	}
	return failure.Permanent(failure.Conflict, "%s is not safe, and it has not become so:\n- %s\nNothing more is changed. See who changes it meanwhile, then start the rotation again, or take it back: relaypki rollback %s --reason WHY",
		rotation.Step{Kind: kind, Member: "any member"}, strings.Join(lines, "\n- "), r.spec.Mesh)
}

// both are the roots of which nobody's trust is short as long as the rotation is
// between them. Whose trust has dropped one does not get it back on the way forward.
func (r *rootRotation) both() trustChange {
	if r.sameRoot { // its root alone may be compromised no less than what is below it
		return trustChange{AddPEM: []string{r.To.CertificatePEM}}
	}
	if r.Record.Back == "" {
		return trustChange{AddPEM: []string{r.NewRoot.CertificatePEM}}
	}
	return trustChange{AddPEM: []string{r.Root.CertificatePEM, r.NewRoot.CertificatePEM}}
}

// gateTries are how often members are gone over again before a gate is given up.
const gateTries = 3

// waits are the gate's reasons; of a step on members one by one, those for any.
func waits(f rotation.Fleet, kind rotation.StepKind) []rotation.Reason {
	switch kind {
	case rotation.ToBridged, rotation.ToPivot, rotation.ToFinal, rotation.ToPinned:
		return rotation.Standard.Waits(f, rotation.Step{Kind: kind})
	}
	var all []rotation.Reason
	for _, m := range append([]rotation.Member{f.Server}, f.Agents...) {
		if m.Quarantined {
			continue
		}
		for _, reason := range rotation.Standard.Waits(f, rotation.Step{Kind: kind, Member: m.Name}) {
			if !slices.Contains(all, reason) {
				all = append(all, reason)
			}
		}
	}
	return all
}

// observe reads what everybody has stored, and what the server has loaded.
func (r *rootRotation) observe(ctx workflow.Context) (map[string]relay.CheckPairResult, error) {
	r.Lineage = r.lineagePEM()
	if _, err := r.step(ctx, "server", "Read what the management server presents and trusts", func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.readServer(ctx, false)
	}); err != nil {
		return nil, err
	}
	if problem := r.Server.StoredProblem; problem != "" {
		return nil, failure.Permanent(failure.Conflict, "what the management server has is of none of the CAs of this rotation: %s. Have it issued anew by the intermediate at work (relaypki rotate leaf %s), then start again", problem, r.spec.Mesh)
	}
	pairs := map[string]relay.CheckPairResult{}
	_, err := r.step(ctx, "handshakes", "Compute the handshakes of every agent and the server", func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.pairs(ctx, r.inTouch(), false, func(name string, pair relay.CheckPairResult) { pairs[name] = pair })
	})
	for mode := range rotation.Pinned + 1 {
		for _, name := range r.names() {
			if pairs[name].Stored == rotation.In(mode) || r.Server.Stored == rotation.In(mode) {
				r.reach(mode)
			}
		}
	}
	return pairs, err
}

// inTouch are the members whose handshakes have to succeed: all but those who are
// still joining, and those who come back from quarantine, until they have been
// issued something again.
func (r *rootRotation) inTouch() []string {
	for _, name := range r.names() {
		if r.fleet.status[name] == rollout.Skipped {
			if r.Away == nil {
				r.Away = map[string]bool{}
			}
			r.Away[name] = true
		}
	}
	return slices.DeleteFunc(r.names(), func(name string) bool {
		return slices.Contains(r.joining, name) || r.Away[name] && r.fleet.status[name] != rollout.Done
	})
}

// fleetOf is the mesh as the gates see it. What cannot be seen, because a process
// has loaded it or Vault has signed it a while ago, is whatever it may be by how
// far the mesh has ever come; for who has been gone over since Vault gives its
// present chain, it is that.
func (r *rootRotation) fleetOf(pairs map[string]relay.CheckPairResult) rotation.Fleet {
	ever := r.ever()
	f := rotation.Fleet{Previous: r.previous(), Mode: r.first()}
	for mode := range r.Record.Furthest + 1 {
		if r.Record.Mode == mode.String() {
			f.Mode = mode
		}
	}
	f.Server = rotation.Member{Name: r.spec.Management.Context, OwnTrust: true,
		Chain:        rotation.Copies[rotation.Modes]{InFlight: ever, Stored: r.Server.Stored, Loaded: r.Server.Loaded},
		LoadedAnchor: r.Server.LoadedAnchor}
	if r.Reached[serverReached] && r.Server.Stored == rotation.In(r.At) && r.Server.Loaded.Has(r.At) {
		f.Server.Chain = rotation.Copies[rotation.Modes]{InFlight: rotation.In(r.At), Stored: r.Server.Stored, Loaded: rotation.In(r.At)}
		if r.sameRoot { // intermediates may have one name; it was restarted since
			f.Server.LoadedAnchor = rotation.Trusting(r.At.Anchor())
		}
	}
	for _, w := range r.spec.Workloads {
		pair, seen := pairs[w.Name]
		m := rotation.Member{Name: w.Name, OwnTrust: w.Agent.Trust == mesh.TrustOwn, Quarantined: r.fleet.status[w.Name] == rollout.Skipped,
			Chain:        rotation.Copies[rotation.Modes]{InFlight: ever, Stored: ever, Loaded: ever},
			Bundle:       rotation.Copies[rotation.Stores]{Stored: rotation.AnyStore, Loaded: r.bundles()},
			LoadedAnchor: ever.Anchors()}
		if seen {
			m.Chain.Stored, m.Bundle.Stored = pair.Stored, pair.Bundle
		}
		if seen && r.Reached[w.Name] && pair.Stored == rotation.In(r.At) {
			m.Chain = rotation.Copies[rotation.Modes]{InFlight: pair.Stored, Stored: pair.Stored, Loaded: pair.Stored}
			m.LoadedAnchor = rotation.Trusting(r.At.Anchor())
			m.Bundle.Loaded = pair.Bundle // with the certificate, the trust was loaded
		}
		f.Agents = append(f.Agents, m)
	}
	return f
}

// serverReached is the server among those that are Reached.
const serverReached = ""

// bundles are those that an agent may have loaded of which it is not known.
func (r *rootRotation) bundles() rotation.Stores {
	stores := rotation.Trusting(rotation.OldRoot, rotation.OldRoot|rotation.NewRoot)
	if r.sameRoot {
		stores = rotation.Trusting(rotation.NewRoot, rotation.NewRoot|rotation.Itself)
		if r.Record.Lacked {
			stores |= rotation.Trusting(rotation.Itself)
		}
		return stores
	}
	if r.Record.Lacked {
		stores |= rotation.Trusting(rotation.NewRoot)
	}
	return stores
}

// ever are the modes that Vault has ever given, that of what is replaced included.
func (r *rootRotation) ever() rotation.Modes {
	modes := rotation.In(r.previous())
	for m := r.first(); m <= r.Record.Furthest; m++ {
		modes |= rotation.In(m)
	}
	return modes
}

// What Vault gives in each mode: the chain above the intermediate, what of it is
// presented, and what becomes ca.crt. In a plan, what is still to be made is in the
// chain by its name, and else missing.

func (r *rootRotation) above(mode rotation.Mode) []string {
	bridge := named(r.Bridge.CertificatePEM, vault.BridgeName(r.Record.ToRoot))
	return map[rotation.Mode][]string{
		rotation.Bridged: {bridge, r.Root.CertificatePEM},
		rotation.Pivot:   {bridge},
		rotation.Final:   {named(r.NewRoot.CertificatePEM, vault.RootName(r.Record.ToRoot))},
	}[mode]
}

func (r *rootRotation) presented(mode rotation.Mode) string {
	if mode == rotation.Bridged || mode == rotation.Pivot {
		return r.Bridge.CertificatePEM
	}
	return ""
}

func (r *rootRotation) anchor(mode rotation.Mode) string {
	return map[rotation.Mode]string{
		rotation.Linked: r.Root.CertificatePEM, rotation.Pinned: r.To.CertificatePEM,
		rotation.Old: r.Root.CertificatePEM, rotation.Bridged: r.Root.CertificatePEM, rotation.Pivot: r.Bridge.CertificatePEM, rotation.Final: r.NewRoot.CertificatePEM,
	}[mode]
}

// issuer is an intermediate's id, or in a plan its name.
func (r *rootRotation) issuer(ca vault.CAResult) string {
	return named(ca.Authority.IssuerID, vault.IntermediateName(r.Record.To))
}

// named is what is known of a CA, or the name of one that is still to be made.
func named(known, name string) string {
	if known == "" {
		return name
	}
	return known
}

func (r *rootRotation) lineagePEM() *relay.Lineage {
	if r.sameRoot { // a root that is both would be told apart nowhere
		return &relay.Lineage{NewRootPEM: r.Root.CertificatePEM, OldIntermediatePEM: r.From.CertificatePEM, NewIntermediatePEM: r.To.CertificatePEM}
	}
	return &relay.Lineage{OldRootPEM: r.Root.CertificatePEM, NewRootPEM: r.NewRoot.CertificatePEM, OldIntermediatePEM: r.From.CertificatePEM, NewIntermediatePEM: r.To.CertificatePEM}
}

// matrix is who presents and who trusts what in each phase.
func (r *rootRotation) matrix(pairs map[string]relay.CheckPairResult) {
	names := rotation.PlanNames{
		OldRoot: r.Root.Authority.Name, OldIntermediate: r.From.Authority.Name,
		NewRoot: vault.RootName(r.Record.ToRoot), NewIntermediate: vault.IntermediateName(r.Record.To), Bridge: vault.BridgeName(r.Record.ToRoot),
	}
	server := rotation.PlanMember{Name: "server", Presents: r.Server.Presents, Trusts: r.Server.Trusted, Chain: r.Server.Stored, OwnTrust: true}
	var agents []rotation.PlanMember
	for _, w := range r.spec.Workloads {
		if pair, seen := pairs[w.Name]; seen {
			agents = append(agents, rotation.PlanMember{Name: w.Name, Presents: pair.Presents, Trusts: pair.Trusts, Chain: pair.Stored, OwnTrust: w.Agent.Trust == mesh.TrustOwn})
		}
	}
	called := map[string]string{pemName(r.Root.CertificatePEM): names.OldRoot, pemName(r.NewRoot.CertificatePEM): names.NewRoot}
	for _, m := range append([]rotation.PlanMember{server}, agents...) {
		for i, ca := range m.Trusts { // by the issuers' names
			if name := called[ca]; name != "" {
				m.Trusts[i] = name
			}
		}
	}
	for _, p := range rotation.RootPlan(server, agents, names) {
		r.result.Matrix = append(r.result.Matrix, procedure.PhaseView{PlanPhase: p, Does: r.course.Does(p.Phase)})
	}
}
