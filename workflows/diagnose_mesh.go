package workflows

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/relay"
	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/strict"
)

// DiagnoseMesh finds what is wrong with a mesh: it looks at the management cluster and
// at every workload cluster, all at once, whatever else is at work on them. It has done
// its work whatever it has found, so that findings do not make it fail; that the mesh is
// not known does.
//
// It changes nothing unless it is told what to mend. Of that it makes what its own look
// offers, a setup before all else, and looks again after each kind of mend: what a setup
// has mended by the way is not issued anew. What is older than the Secrets that a mend
// has written, and reads them at its start alone, is then restarted without being asked for.
func DiagnoseMesh(ctx workflow.Context, in procedure.DiagnoseInput) (procedure.DiagnoseResult, error) {
	d := &diagnosis{in: in, result: procedure.DiagnoseResult{Mesh: in.Mesh}}
	var err error
	if d.report, err = newReport(ctx, procedure.Progress{Procedure: procedure.DiagnoseMesh, Mesh: in.Mesh, Phase: phaseDiagnosis}); err != nil {
		return d.result, err
	}
	var problems []strict.Problem
	if typed(ctx) {
		problems = in.Problems
	}
	if err := invalid(append(problems, in.Validate()...)); err != nil {
		return d.result, d.report.finish(ctx, err)
	}
	err = d.run(ctx)
	return d.result, d.report.finish(ctx, err)
}

// Phases of a diagnosis.
const (
	phaseDiagnosis = "diagnosis"
	phaseMending   = "mending"
)

// diagnosis is one run of DiagnoseMesh.
type diagnosis struct {
	in     procedure.DiagnoseInput
	report *report
	result procedure.DiagnoseResult

	record cluster.MeshRecord
	queues map[string]string
	// spec has the workloads that are looked at, and moving says of which others it is
	// left out that somebody is just adding or removing them.
	spec   mesh.Spec
	moving []check.Finding
	// found is what the last look has found.
	found []check.Finding
	// waits is the procedure that has begun a mend and waits for a person.
	waits string
}

func (d *diagnosis) run(ctx workflow.Context) error {
	var err error
	if d.queues, err = d.report.describe(ctx, phaseDiagnosis); err != nil {
		return err
	}
	if d.record, err = readMesh(ctx, d.in.Mesh, d.in.Management, d.in.Namespace); err != nil {
		return err
	}
	if err := d.aim(); err != nil {
		return err
	}
	found, err := d.look(ctx, mesh.Duration{})
	if err != nil {
		return err
	}
	before := found
	// A restart is tried once more: cert-manager may have written a Secret only after the
	// first, of its own accord (one that has just come back issues what it finds amiss).
	for _, do := range append(slices.Clone(procedure.Doings), check.Restart) {
		mends := d.chosen(do, before, found)
		if len(mends) == 0 {
			continue
		}
		if d.waits != "" { // with the locks that these would take
			for _, m := range mends {
				d.result.Mended = append(d.result.Mended, procedure.Mended{Mend: m, Error: "not begun, since workflow " + d.waits + " waits for a person. Diagnose again when it has ended"})
			}
			continue
		}
		if err := d.report.phase(ctx, phaseMending); err != nil {
			return err
		}
		settle := mesh.Duration{}
		for _, made := range d.mend(ctx, do, mends) {
			d.result.Mended = append(d.result.Mended, made)
			if made.Error == "" {
				settle = connectWithin
			}
		}
		if err := d.report.phase(ctx, phaseDiagnosis); err != nil {
			return err
		}
		if found, err = d.look(ctx, settle); err != nil {
			return err
		}
	}
	d.conclude(before, found)
	return nil
}

// connectWithin is how long agents get to connect after a mend before what is not as
// it should be is found again. What mended has waited for its own objects already.
var connectWithin = mesh.Minutes(1)

// aim decides which clusters are looked at, and refuses what is asked of others.
func (d *diagnosis) aim() error {
	spec := d.record.Spec.WithDefaults()
	problems := strangers(spec, d.in.Clusters)
	for i, m := range d.in.Mend {
		at := fmt.Sprintf("mend[%d].cluster", i)
		_, member := spec.Workload(m.Cluster)
		switch {
		case m.Do == check.SetUp || m.Cluster == spec.Management.Context:
		case !member:
			problems = append(problems, problem(at, "%q is neither a member of mesh %s nor its management cluster, %s; its members are %s", m.Cluster, spec.Mesh, spec.Management.Context, members(spec)))
		case len(d.in.Clusters) > 0 && !slices.Contains(d.in.Clusters, m.Cluster):
			problems = append(problems, problem(at, "%q is not among the clusters to look at", m.Cluster))
		}
	}
	if err := invalid(problems); err != nil {
		return err
	}
	var err error
	if d.spec, err = only(spec, d.in.Clusters); err != nil {
		return err
	}
	if len(d.in.Clusters) == 0 {
		d.spec, d.moving = settledMembers(d.spec, d.record)
	}
	return nil
}

// standbyWithin is for the one thing that the clusters' looks wait for: a Vault that
// does not answer is found by the look at the management cluster.
var standbyWithin = budget(5*time.Second, 10*time.Second)

// look looks at every cluster. What was found is sorted, the gravest first.
func (d *diagnosis) look(ctx workflow.Context, settle mesh.Duration) ([]check.Finding, error) {
	d.report.Clusters = pendingChecks(d.spec)
	within := d.in.Within()
	found := looks{
		report: d.report, spec: d.spec, others: others(d.record.Spec, d.spec), pin: d.record.Rotation.Pin(),
		standbyPEM: standby(ctx, standbyWithin, d.spec, d.record), queues: d.queues,
		each: budget(within, within), summary: "Diagnose cluster ", settle: settle, diagnose: true, unseen: d.unseen,
	}.findings(ctx)
	check.Together(found)
	found = append(slices.Clone(d.moving), found...)
	for i := range found {
		if m, ok := procedure.Offered(found[i]); ok {
			found[i].Mend = &m
		}
	}
	all := d.record.Spec.WithDefaults() // it knows also who is moving
	sort.SliceStable(found, func(i, j int) bool {
		a, b := found[i], found[j]
		if gravity(a.Status) != gravity(b.Status) {
			return gravity(a.Status) > gravity(b.Status)
		}
		return rank(all, a.Cluster) < rank(all, b.Cluster)
	})
	d.found = found
	return found, ctx.Err()
}

// unseen is the finding of a cluster that was not looked at to the end.
func (d *diagnosis) unseen(name string, err error) check.Finding {
	f := check.Finding{Check: check.ClusterReachable, Cluster: name, Status: check.Fail, Message: failure.Message(err), Evidence: []string{failure.Message(err)},
		Remedy: "see that the cluster's API server answers the worker, whose log says more, and diagnose again; where it is only slow, give it longer (--cluster-timeout)", Denied: failure.KindOf(err) == failure.Denied}
	if temporal.IsTimeoutError(err) {
		f.Message = fmt.Sprintf("it did not answer within %s, so that nothing is known of it", d.in.Within())
	}
	return f
}

func gravity(s check.Status) int {
	return slices.Index([]check.Status{check.Pass, check.Note, check.Warn, check.Fail}, s)
}

// offers are the mends of all findings, each once: in the order in which they are made,
// and each kind in that of the clusters.
func offers(spec mesh.Spec, found []check.Finding) []check.Mend {
	var all []check.Mend
	for _, f := range found {
		if m, ok := procedure.Offered(f); ok && !slices.Contains(all, m) {
			all = append(all, m)
		}
	}
	sort.SliceStable(all, func(i, j int) bool {
		a, b := all[i], all[j]
		if a.Do != b.Do {
			return slices.Index(procedure.Doings, a.Do) < slices.Index(procedure.Doings, b.Do)
		}
		return rank(spec, a.Cluster) < rank(spec, b.Cluster)
	})
	return all
}

// chosen are the mends of that kind that are offered by now, and are asked for or
// follow from what was made. One that has failed is not made again.
func (d *diagnosis) chosen(do check.Doing, before, found []check.Finding) []check.Mend {
	declined := slices.DeleteFunc(offers(d.spec, before), func(m check.Mend) bool { return slices.Contains(d.in.Mend, m) })
	return slices.DeleteFunc(offers(d.spec, found), func(m check.Mend) bool {
		wanted := slices.Contains(d.in.Mend, m) || d.follows(m) && !slices.Contains(declined, m)
		return m.Do != do || !wanted || d.failed(m)
	})
}

// follows says that a mend is a restart after a setup, or after the cluster's
// certificate was issued anew.
func (d *diagnosis) follows(m check.Mend) bool {
	return m.Do == check.Restart && slices.ContainsFunc(d.result.Mended, func(made procedure.Mended) bool {
		return (made.Error == "" || made.Made) && (made.Do == check.SetUp || made.Do == check.Reissue && (made.Cluster == m.Cluster || d.ofManagement(made.Mend)))
	})
}

func (d *diagnosis) failed(m check.Mend) bool {
	return slices.ContainsFunc(d.result.Mended, func(made procedure.Mended) bool { return made.Mend == m && made.Error != "" })
}

// mend makes mends of one kind. One that fails is no error: what comes after is made
// all the same, and is refused by itself where it cannot be.
func (d *diagnosis) mend(ctx workflow.Context, do check.Doing, mends []check.Mend) []procedure.Mended {
	switch do {
	case check.SetUp:
		detail, err := d.setUp(ctx)
		return []procedure.Mended{mended(mends[0], detail, err)}
	case check.Reissue:
		return d.reissue(ctx, mends)
	}
	return d.restarts(ctx, mends)
}

func mended(m check.Mend, detail string, err error) procedure.Mended {
	if err != nil {
		return procedure.Mended{Mend: m, Error: why(err), Made: failure.KindOf(err) == failure.Unhealthy}
	}
	return procedure.Mended{Mend: m, Detail: detail}
}

// why is why a mend did not come to its end. What a verification has found is found
// again by the look that follows.
func why(err error) string {
	text := failure.Message(err)
	if failure.KindOf(err) == failure.Unhealthy {
		text, _, _ = strings.Cut(text, "\n")
		text = "it was made, and the verification at its end has failed: " + strings.TrimSuffix(text, ":")
	}
	return text
}

// setUp sets the mesh up again as it is recorded.
func (d *diagnosis) setUp(ctx workflow.Context) (string, error) {
	if err := d.rootThere(ctx); err != nil {
		return "", err
	}
	var out procedure.SetupResult
	if err := d.child(ctx, procedure.SetupMesh, &out, procedure.SetupInput{Spec: d.record.Spec}, longSetup{Recorded: true}); err != nil {
		return "", err
	}
	var changed []string
	for _, s := range out.Steps {
		if s.State == procedure.Created || s.State == procedure.Changed {
			changed = append(changed, s.Name)
		}
	}
	for _, c := range out.Clusters {
		if c.Changed {
			changed = append(changed, c.Cluster)
		}
	}
	if len(changed) == 0 {
		return "all was as it is to be made", nil
	}
	return "made again or changed: " + strings.Join(changed, ", "), nil
}

// rootThere is an error if the root that everybody trusts is not in Vault any more: it
// was lost, or Vault has gone back to before the root was rotated. A setup would make
// another under its name, which nobody trusts, and have everybody be issued that.
func (d *diagnosis) rootThere(ctx workflow.Context) error {
	spec := d.record.Spec.WithDefaults()
	if spec.PKI.Root.Offline() {
		return nil
	}
	generation := max(d.record.Generations.Root, 1)
	root, err := call[vault.CAResult](ctx, summarized(looking, "Look for the root"), vaults.GenerateRoot, vault.GenerateRootInput{
		Vault: spec.Vault.Name, Mount: spec.Vault.RootMount, Generation: generation, CA: spec.PKI.Root.CA, Mode: procedure.Observe,
	})
	if err != nil || root.CertificatePEM != "" {
		return err
	}
	return failure.Permanent(failure.Preflight, "Vault %q: the root %s is not in the mount %s, and a setup would make another, which nobody trusts; nothing was changed. Restore the state of Vault that has it (vault operator raft snapshot restore SNAPSHOT); if there is none, run the setup (relaypki setup -f mesh.yaml), which interrupts the mesh",
		spec.Vault.Name, vault.RootName(generation), spec.Vault.RootMount)
}

// reissue has certificates issued anew: of the named clusters, or, since the management
// server's does not come alone, of all.
func (d *diagnosis) reissue(ctx workflow.Context, mends []check.Mend) []procedure.Mended {
	in := procedure.RotateLeafInput{MeshInput: procedure.MeshInput{Mesh: d.spec.Mesh, Management: d.spec.Management.Context, Namespace: d.spec.Management.Namespace}}
	if !slices.ContainsFunc(mends, d.ofManagement) {
		for _, m := range mends {
			in.Clusters = append(in.Clusters, m.Cluster)
		}
	}
	var out procedure.RotateResult
	err := d.child(ctx, procedure.RotateLeafCertificates, &out, in)
	made := make([]procedure.Mended, len(mends))
	for i, m := range mends {
		leaf := out.Server
		for _, c := range out.Clusters {
			if c.Cluster == m.Cluster && !d.ofManagement(m) {
				leaf = c.Leaf
			}
		}
		made[i] = mended(m, expiry(leaf), err)
	}
	return made
}

func (d *diagnosis) ofManagement(m check.Mend) bool { return m.Cluster == d.spec.Management.Context }

// How soon a procedure that mends is asked whether it waits for a person, and how
// long it is until it is asked again at most.
const (
	firstAsked   = 5 * time.Second
	longestUntil = time.Minute
)

// child runs a procedure under its usual id, so that whoever else starts it finds this
// one, and waits for it until it ends or waits for a person: it then goes on without
// us, and is steered as if a person had started it.
func (d *diagnosis) child(ctx workflow.Context, name string, out any, in ...any) error {
	step := d.report.begin(ctx, name)
	err := d.awaitChild(ctx, name, out, in)
	d.report.end(ctx, step, procedure.Outcome{Detail: "ended"}, err)
	return err
}

func (d *diagnosis) awaitChild(ctx workflow.Context, name string, out any, in []any) error {
	id := procedure.ID(name, d.spec.Mesh)
	ended := workflow.ExecuteChildWorkflow(workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID:          id,
		StaticSummary:       fmt.Sprintf("%s of mesh %s, to mend what a diagnosis has found", name, d.spec.Mesh),
		WaitForCancellation: true,
		ParentClosePolicy:   enumspb.PARENT_CLOSE_POLICY_ABANDON,
	}), name, in...)
	d.report.await(ctx, fmt.Sprintf("workflow %s (relaypki watch %s)", id, id))
	defer d.report.await(ctx, "")
	for pause := firstAsked; ; pause = min(2*pause, longestUntil) {
		if over, err := workflow.AwaitWithTimeout(ctx, pause, ended.IsReady); over || err != nil {
			break
		}
		// One that does not say what it waits for is waited for.
		asked, _ := call[temporalactivities.AskResult](ctx, summarized(looking, "Ask "+id+" what it waits for"), temporals.AskProcedure, temporalactivities.AskInput{Workflow: id})
		if asked.Person && !ended.IsReady() {
			d.waits = id
			return failure.Permanent(failure.NotReady, "workflow %s has begun it, and waits for a person (relaypki watch %s); it then goes on by itself: %s", id, id, asked.Awaiting)
		}
	}
	err := ended.Get(ctx, out)
	if temporal.IsWorkflowExecutionAlreadyStartedError(err) {
		return failure.Permanent(failure.Locked, "workflow %s runs already. Wait for it (relaypki watch %s), and diagnose again", id, id)
	}
	return err
}

// restarts restarts what has not loaded its Secrets: the management server first, then
// as many agents at a time as the spec's rollout says.
func (d *diagnosis) restarts(ctx workflow.Context, mends []check.Mend) []procedure.Mended {
	made := make([]procedure.Mended, len(mends))
	places := workflow.NewSemaphore(ctx, int64(d.spec.Rollout.Parallelism))
	wg := workflow.NewWaitGroup(ctx)
	for i, m := range mends {
		if d.ofManagement(m) {
			made[i] = d.restart(ctx, m)
			continue
		}
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			if err := places.Acquire(ctx, 1); err != nil {
				made[i] = mended(m, "", err)
				return
			}
			defer places.Release(1)
			made[i] = d.restart(ctx, m)
		})
	}
	wg.Wait(ctx)
	return made
}

// restart restarts one cluster's agent, or the management server, if it is older than
// its Secrets, while nobody else is at work on it.
func (d *diagnosis) restart(ctx workflow.Context, m check.Mend) procedure.Mended {
	in := cluster.RestartInput{Mode: procedure.Apply}
	lock, held, queue := caLock(ctx, d.spec), theCAs, ""
	if w, ok := d.spec.Workload(m.Cluster); ok && !d.ofManagement(m) {
		in.Context, in.Namespace, in.Deployment = w.Context, w.Namespace, mesh.AgentDeployment
		in.Secrets = []string{d.spec.Certificates.Client.SecretName}
		if w.Agent.Trust != mesh.TrustOwn {
			in.Secrets = append(in.Secrets, mesh.RootSecretName)
		}
		lock, held, queue = clusterLock(ctx, d.spec, w.Name), "cluster "+w.Name, d.queues[w.Context]
	} else {
		in.Context, in.Namespace, in.Deployment = d.spec.Management.Context, d.spec.Management.Namespace, mesh.ServerDeployment
		in.Secrets = []string{d.spec.Certificates.Server.SecretName}
	}
	var out procedure.Outcome
	err := locked(ctx, d.step, lock, held, func(ctx workflow.Context) error {
		err := d.comesBack(ctx, m)
		if err != nil {
			return err
		}
		out, err = d.step(ctx, "restart "+m.Cluster, "Restart "+in.Deployment+" in "+in.Context, func(ctx workflow.Context) (procedure.Outcome, error) {
			return call[procedure.Outcome](ctx, on(queue, waiting), kubernetes.RestartDeployment, in)
		})
		return err
	})
	detail := out.Detail
	if len(out.Changes) > 0 {
		detail = "restarted; " + detail
	}
	return mended(m, detail, err)
}

// comesBack is an error if a restart would load what is then refused: an agent, or a
// server that agents are connected to, may hold something better than what is stored.
// It is computed, since no handshake shows what has not been loaded yet. Who is not
// connected has nothing to lose, and who cannot be looked at does not hold up the
// server.
func (d *diagnosis) comesBack(ctx workflow.Context, m check.Mend) error {
	var connected []mesh.Workload
	members, _ := settledMembers(d.record.Spec.WithDefaults(), d.record) // also those that are not looked at
	for _, w := range members.Workloads {
		if (d.ofManagement(m) || w.Name == m.Cluster) && d.mayBeConnected(w.Name) {
			connected = append(connected, w)
		}
	}
	if len(connected) == 0 {
		return nil
	}
	server, err := call[relay.ServerResult](ctx, summarized(looking, "Read what the management server presents and trusts"), relays.ReadServer, relay.ServerInput{Spec: d.spec.Only("")})
	if err != nil {
		return err
	}
	if d.ofManagement(m) { // it will have loaded what is stored, which comes first
		server.Chains, server.Trusts, server.AcceptableCAs = server.Chains[:min(1, len(server.Chains))], server.Trusts[:min(1, len(server.Trusts))], nil
	}
	var refused complaints
	for _, w := range connected {
		pair, err := call[relay.CheckPairResult](ctx, summarized(on(d.queues[w.Context], looking), "Compute the handshakes of cluster "+w.Name), relays.CheckPair,
			relay.CheckPairInput{Spec: members.Only(w.Name), Cluster: w.Name, Server: server})
		if err != nil && (!d.ofManagement(m) || ctx.Err() != nil) {
			return err
		}
		refused.blame(w.Name, pair.Problems, nil)
	}
	if len(refused) == 0 {
		return nil
	}
	return failure.Permanent(failure.Preflight, "it is not restarted, since with what is stored now connections would be refused that are open: %s. Mend first what is stored, then diagnose again", strings.Join(refused, "; "))
}

// mayBeConnected: only an agent that the server does not count as connected, and in
// whose place no handshake succeeded, is known not to be.
func (d *diagnosis) mayBeConnected(name string) bool {
	counted, shaken := true, false
	for _, f := range d.found {
		switch {
		case f.Cluster != name:
		case f.Check == check.AgentsConnected && f.Status == check.Fail:
			counted = false
		case f.Check == check.Handshake && f.Status == check.Pass:
			shaken = true
		}
	}
	return counted || shaken
}

func (d *diagnosis) step(ctx workflow.Context, name, summary string, run func(workflow.Context) (procedure.Outcome, error)) (procedure.Outcome, error) {
	ctx = workflow.WithValue(ctx, retryForKey{}, d.spec.Rollout.RetryFor.Duration)
	outcome, _, err := takeStep(ctx, d.report, procedure.Apply, name, summary, run)
	return outcome, err
}

// conclude makes the result of what was found before any mend, and at last.
func (d *diagnosis) conclude(before, found []check.Finding) {
	d.result.Checks = len(found)
	d.result.StandIn = slices.ContainsFunc(found, func(f check.Finding) bool { return f.Check == check.StandIn })
	d.result.Offered = offers(d.spec, found)
	d.result.Findings, d.result.More = fitting(found)
	if len(d.result.Mended) > 0 {
		d.result.Before, _ = fitting(before)
	}
}

// mostText is of how many bytes of text findings keep all that belongs to them, and
// half of how many there may be: Temporal takes a result of 2 MB.
const mostText = 300 << 10

// fitting are the findings that do not pass, as many as there is room for, and how
// many there are besides. Those at the end go without evidence and commands first.
func fitting(sorted []check.Finding) (findings []check.Finding, more int) {
	findings = []check.Finding{}
	size := 0
	for _, f := range sorted {
		if f.Status == check.Pass {
			continue
		}
		if size+length(f) > mostText {
			f.Evidence, f.Commands = nil, nil
		}
		if size+length(f) > 2*mostText {
			more++
			continue
		}
		size += length(f)
		findings = append(findings, f)
	}
	return findings, more
}

// length is about how many bytes a finding takes in a result.
func length(f check.Finding) int {
	const names = 200 // of the fields, and what is short
	n := names + len(f.Object) + len(f.Message) + len(f.Remedy)
	for _, line := range slices.Concat(f.Evidence, f.Commands) {
		n += len(line) + len(`"",`)
	}
	return n
}
