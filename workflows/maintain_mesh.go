package workflows

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rotation"
)

// MaintainMesh compares what is left of the lives of a mesh's certificates with
// the policy of its spec, starts the rotations that are due, and does not wait
// for them. Its result says of each kind of certificate why, or why not. People
// are told what needs one of them when it is found, and again from time to time:
// the last run's result says what they know.
func MaintainMesh(ctx workflow.Context, in procedure.Typed[procedure.MeshInput]) (procedure.MaintainResult, error) {
	m := &maintenance{in: in.In, result: procedure.MaintainResult{Mesh: in.In.Mesh}}
	var err error
	if m.report, err = newReport(ctx, procedure.Progress{Procedure: procedure.MaintainMesh, Mesh: in.In.Mesh, Phase: "certificates"}); err != nil {
		return m.result, err
	}
	if err := invalid(inputProblems(ctx, in.In, in.Problems)); err != nil {
		return m.result, m.report.finish(ctx, err)
	}
	if err := m.run(ctx); err != nil {
		m.report.Told = tell(ctx, m.report, err, whatFailed(m.report.Progress, err))
		return m.result, m.report.finish(ctx, err)
	}
	return m.result, m.report.finish(ctx, nil)
}

// maintenance is one run of MaintainMesh.
type maintenance struct {
	in     procedure.MeshInput
	report *report
	result procedure.MaintainResult

	spec   mesh.Spec
	record cluster.MeshRecord
	queues map[string]string
	state  rotation.State
}

func (m *maintenance) run(ctx workflow.Context) error {
	var err error
	if m.queues, err = m.report.describe(ctx, "certificates"); err != nil {
		return err
	}
	if m.record, err = readMesh(ctx, m.in.Mesh, m.in.Management, m.in.Namespace); err != nil {
		return err
	}
	m.spec = m.record.Spec.WithDefaults()
	m.state = stateOf(m.spec, m.record.Rotation, workflow.Now(ctx))
	for _, look := range []func(workflow.Context) error{m.leaves, m.authorities, m.atWork, m.dates} {
		if err := look(ctx); err != nil {
			return err
		}
	}
	recordLives(ctx, m.spec.Mesh, m.spec.Management.Context, m.state)
	due := m.spec.Rotation.Due
	m.result.Decisions = rotation.Decide(m.state, rotation.Policy{Leaf: *due.Leaf, Intermediate: *due.Intermediate, Root: *due.Root})
	if err := m.report.phase(ctx, "rotations"); err != nil {
		return err
	}
	for _, d := range m.result.Decisions {
		if err := m.carryOut(ctx, d); err != nil {
			return err
		}
	}
	m.tell(ctx)
	return nil
}

// stateOf is what a record says of the state that there is to decide on.
func stateOf(spec mesh.Spec, of *procedure.Rotation, now time.Time) rotation.State {
	state := rotation.State{Now: now, IntermediateTTL: spec.PKI.Intermediate.TTL.Duration, Begun: begun(of)}
	if of != nil {
		state.Finish, state.Held = finish(spec.Mesh, of), of.Emergency != nil && of.Emergency.Pinned
	}
	if spec.PKI.Root.Offline() {
		state.IntermediateTTL = minLife(spec) // what is asked for beyond that is a wish
	}
	return state
}

// leaves asks every cluster for the life of its leaf, some at a time. What
// cannot be asked is somebody else's to report: the verification says why.
func (m *maintenance) leaves(ctx workflow.Context) error {
	type asked struct {
		name, queue string
		in          certmanager.CertificateName
		life        certmanager.CertificateLife
		err         error
	}
	all := []*asked{{name: rotation.Server, in: certmanager.CertificateName{
		Context: m.spec.Management.Context, Namespace: m.spec.Management.Namespace, Name: m.spec.Certificates.Server.Name}}}
	for _, w := range m.spec.Workloads {
		if moving, _ := m.record.Moving(w.Name); moving == "" { // what comes or goes has none yet, or no longer
			all = append(all, &asked{name: w.Name, queue: m.queues[w.Context], in: certmanager.CertificateName{
				Context: w.Context, Namespace: w.Namespace, Name: m.spec.Certificates.Client.Name}})
		}
	}
	step := m.report.begin(ctx, "leaves")
	places := workflow.NewSemaphore(ctx, clustersAtOnce)
	wg := workflow.NewWaitGroup(ctx)
	for _, a := range all {
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			if a.err = places.Acquire(ctx, 1); a.err != nil {
				return
			}
			defer places.Release(1)
			a.life, a.err = call[certmanager.CertificateLife](ctx, summarized(on(a.queue, looking), "Read the life of the certificate of "+a.name), certManagers.ReadCertificateLife, a.in)
		})
	}
	wg.Wait(ctx)
	for _, a := range all {
		if a.err != nil {
			m.state.Unread = append(m.state.Unread, a.name)
			continue
		}
		m.state.Leaves = append(m.state.Leaves, rotation.Life{Name: a.name, NotBefore: a.life.NotBefore, NotAfter: a.life.NotAfter, Renewal: a.life.Renewal})
	}
	m.report.end(ctx, step, procedure.Outcome{Detail: fmt.Sprintf("%d of %d read", len(m.state.Leaves), len(all))}, ctx.Err())
	return ctx.Err()
}

// authorities asks Vault for the root and the intermediate at work.
func (m *maintenance) authorities(ctx workflow.Context) error {
	return m.look(ctx, "CAs", "Read the CAs and who signs with them", func(ctx workflow.Context) (string, error) {
		found, err := call[vault.SurveyResult](ctx, looking, vaults.Survey, vault.SurveyInput{Spec: m.spec.Only("")})
		root, active := found.Root.Authority, found.Active.Authority
		m.state.Root = rotation.Life{Name: root.Name, NotBefore: root.NotBefore, NotAfter: root.NotAfter}
		m.state.Intermediate = rotation.Life{Name: active.Name, NotBefore: found.Active.NotBefore, NotAfter: active.NotAfter}
		return active.Name + " under " + root.Name, err
	})
}

// atWork asks who has the lock on the mesh's CAs, and whether that one waits for
// a person.
func (m *maintenance) atWork(ctx workflow.Context) error {
	return m.look(ctx, "at work", "Ask who is at work on the mesh's CAs", func(ctx workflow.Context) (string, error) {
		busy, err := call[string](ctx, looking, kubernetes.LockHolder, cluster.LockInput{
			Context: m.spec.Management.Context, Namespace: m.spec.Management.Namespace, Lease: m.spec.CALease()})
		m.state.Busy = busy
		if err != nil || busy == "" {
			return "nobody", err
		}
		asked, err := call[temporalactivities.AskResult](ctx, looking, temporals.AskProcedure, temporalactivities.AskInput{Workflow: busy})
		if m.state.Waits = asked.Person; asked.Person {
			m.result.Waiting = &procedure.Waiting{Workflow: busy, For: asked.Awaiting, Since: m.state.Now}
		}
		return busy, err
	})
}

// begun says which rotation of a CA a record has; empty if none.
func begun(r *procedure.Rotation) string {
	if r == nil {
		return ""
	}
	if of := r.Emergency; of != nil && of.Pinned {
		return fmt.Sprintf("the mesh is pinned to intermediate generation %d by the emergency of incident %s, since %s", r.To, of.Incident, pki.Date(of.Distrusted))
	} else if of != nil {
		return fmt.Sprintf("%s of incident %s (%s) has begun on %s", r.Procedure, of.Incident, of.Compromised, pki.Date(r.Began))
	}
	way := "has begun"
	if r.Back != "" {
		way = "is being taken back, begun"
	}
	return fmt.Sprintf("%s from generation %d to %d %s on %s", r.Procedure, r.From, r.To, way, pki.Date(r.Began))
}

// finish is what ends the rotation that a record has.
func finish(mesh string, r *procedure.Rotation) string {
	switch of := r.Emergency; {
	case of != nil && of.Pinned:
		return fmt.Sprintf("Until somebody lifts that, the next intermediate would be refused: relaypki emergency lift %s --reason WHY --incident ID", mesh)
	case of != nil:
		return "Start it again with the same input"
	}
	return "Start it again, or take it back"
}

// dates computes by when rotations have to begin, and when they may.
func (m *maintenance) dates(workflow.Context) error {
	pace, err := fullPace(m.spec)
	if err != nil {
		return err
	}
	leaf := m.spec.Certificates.LongestLife()
	ca, root := &m.state.Intermediate, &m.state.Root
	from, _ := rotation.LatestStart(rotation.KindIntermediate, ca.NotAfter, leaf, pace)
	ca.LatestStart = from.UTC()
	from, _ = rotation.LatestStart(rotation.KindRoot, root.NotAfter, leaf, pace)
	root.LatestStart = from.UTC()
	m.state.Opens = opens(pace, m.state.Now)
	return nil
}

// opens is when work may begin; zero if it never may.
func opens(pace rotation.Pace, now time.Time) time.Time {
	open, next := rotation.NextOpen(pace.Windows, pace.Zone, now)
	if open {
		return now
	}
	return next
}

// fullPace is how a rotation of a CA goes over a mesh, with its waits.
func fullPace(spec mesh.Spec) (rotation.Pace, error) {
	zone, err := time.LoadLocation(spec.Rotation.TimeZone)
	if err != nil {
		return rotation.Pace{}, failure.Permanent(failure.InvalidInput, "rotation.timeZone: %v", err)
	}
	pace := pace(spec)
	pace.Soak, pace.Windows, pace.Zone = spec.Rotation.Soak.Duration, spec.Rotation.Windows, zone
	if spec.PKI.Root.Offline() {
		pace.Signing = signedAhead
	}
	return pace, nil
}

// pace is how long work on the whole mesh takes, without its waits.
func pace(spec mesh.Spec) rotation.Pace {
	how := spec.Rollout
	return rotation.Pace{
		Clusters: len(spec.Workloads), Canaries: len(canaries(spec)), WaveSize: how.WaveSize, Parallelism: how.Parallelism,
		// What a cluster takes at the most: then it is parked, and the others go on.
		PerCluster: how.RetryFor.Duration,
	}
}

func (m *maintenance) look(ctx workflow.Context, name, summary string, run func(workflow.Context) (string, error)) error {
	step := m.report.begin(ctx, name)
	detail, err := run(workflow.WithValue(ctx, summaryKey{}, summary))
	m.report.end(ctx, step, procedure.Outcome{Detail: detail}, err)
	return err
}

// carryOut starts the rotation that was decided on, and reports the decision.
func (m *maintenance) carryOut(ctx workflow.Context, d rotation.Decision) error {
	step := m.report.begin(ctx, string(d.Kind))
	outcome := procedure.Outcome{Detail: d.Why}
	if !d.Start {
		m.report.end(ctx, step, outcome, nil)
		return nil
	}
	name, input := m.rotation(d)
	started, err := call[temporalactivities.StartResult](ctx, summarized(acting, "Start "+name), temporals.StartProcedure, temporalactivities.StartInput{
		Procedure: name, Workflow: procedure.ID(name, m.spec.Mesh), Input: input, By: workflow.GetInfo(ctx).WorkflowExecution.ID, Summary: fmt.Sprintf("%s of mesh %s: %s", name, m.spec.Mesh, brief(d.Why))})
	switch {
	case err != nil:
	case started.Running:
		m.result.Running = append(m.result.Running, started.Workflow)
		outcome.Detail += "; " + started.Workflow + " is at work already"
	default:
		m.result.Started = append(m.result.Started, started.Workflow)
		outcome.Changed(procedure.Create, "workflow "+started.Workflow, "")
		outcome.Detail += "; started " + started.Workflow
	}
	m.report.end(ctx, step, outcome, err)
	return err
}

// rotation is the procedure that a decision starts, and its input.
func (m *maintenance) rotation(d rotation.Decision) (name string, input any) {
	of := procedure.MeshInput{Mesh: m.spec.Mesh, Management: m.spec.Management.Context, Namespace: m.spec.Management.Namespace}
	if d.Kind == rotation.KindIntermediate {
		return procedure.RotateIntermediateCA, procedure.RotateIntermediateInput{MeshInput: of}
	}
	leaf := procedure.RotateLeafInput{MeshInput: of}
	if !slices.Contains(d.Members, rotation.Server) { // the server's comes with everybody's
		leaf.Clusters = d.Members
	}
	return procedure.RotateLeafCertificates, leaf
}

// tell tells people what they do not know yet, and reminds them of what stays as
// it is.
func (m *maintenance) tell(ctx workflow.Context) {
	var last procedure.MaintainResult
	if workflow.HasLastCompletionResult(ctx) {
		if err := workflow.GetLastCompletionResult(ctx, &last); err != nil {
			workflow.GetLogger(ctx).Warn("the last look cannot be read; people are told all of it again", "error", err)
		}
	}
	now := m.state.Now
	var news []string
	var told []procedure.Told
	for _, d := range m.result.Decisions {
		if d.Warning == "" {
			continue
		}
		of := d.About
		if len(of) == 0 {
			of = []string{d.Warning}
		}
		isNew := slices.ContainsFunc(of, func(one string) bool {
			at, known := warned(last.Warned, one)
			return !known || !now.Before(d.Remind(at))
		})
		if isNew {
			news = append(news, d.Warning)
		}
		for _, one := range of {
			at, _ := warned(last.Warned, one)
			if isNew {
				at = now
			}
			told = append(told, procedure.Told{Of: []string{one}, At: at})
		}
	}
	waiting := m.result.Waiting
	if waiting != nil {
		if before := last.Waiting; before != nil && before.Workflow == waiting.Workflow && before.For == waiting.For {
			*waiting = *before
		}
		// When it began to wait, it has told people itself.
		if now.Sub(waiting.Since) >= procedure.TellAgain && now.Sub(waiting.Reminded) >= procedure.TellAgain {
			news = append(news, fmt.Sprintf("%s waits for a person, since %s at least: %s", waiting.Workflow, waiting.Since.UTC().Format("2006-01-02 15:04Z"), waiting.For))
		} else {
			waiting = nil
		}
	}
	if len(news) > 0 && !notice(ctx, m.report, strings.Join(news, "\n")) {
		m.result.Warned = last.Warned // the next look tells them
		return
	}
	if waiting != nil {
		waiting.Reminded = now
	}
	// What comes and goes is not news each time that it comes.
	for _, before := range last.Warned {
		if now.Sub(before.At) < procedure.TellAgain && !slices.ContainsFunc(told, func(t procedure.Told) bool { return slices.Equal(t.Of, before.Of) }) {
			told = append(told, before)
		}
	}
	m.result.Warned = told
}

// warned is when people were last told of a warning, if they were.
func warned(told []procedure.Told, warning string) (time.Time, bool) {
	i := slices.IndexFunc(told, func(t procedure.Told) bool { return slices.Contains(t.Of, warning) })
	if i < 0 {
		return time.Time{}, false
	}
	return told[i].At, true
}
