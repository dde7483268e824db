package workflows

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rollout"
	"github.com/relaypki/relaypki/internal/strict"
)

// fleet is the workload clusters of a run: how far each is, and what people
// have said to the run since. Package rollout decides what is begun next.
type fleet struct {
	report   *report
	strategy rollout.Strategy
	status   map[string]rollout.Status
	running  int
	// turn are the clusters whose turn it is; all of them if it is nil.
	turn []string
	// leaveOut is the update that leaves clusters out, rest what is to be done for
	// them afterwards.
	leaveOut, rest string
	// opens is from when on work on a member may begin: now, for the zero time. It
	// is nil where that is always so.
	opens func(workflow.Context) (time.Time, error)
	// passing: clusters that are parked, and those that wait for them, are left to a
	// later turn.
	passing bool
	// closed: the clusters have had their turn.
	closed bool
	// aborted is why somebody aborted the run; abort cancels it.
	aborted string
	abort   workflow.CancelFunc
	// news counts what has happened, to wake the run.
	news int
	// parked is when clusters were parked by this run, telling how many messages
	// are on their way.
	parked  map[string]time.Time
	telling int
	// unreached are parked clusters that did not answer: nothing is known of them.
	unreached map[string]bool
}

// newFleet is the fleet of the report's clusters. What it is told by updates is
// in the report: that is what a person sees, and what a continued run starts from.
func newFleet(r *report, how mesh.Rollout, abort workflow.CancelFunc) *fleet {
	f := &fleet{report: r, abort: abort, status: map[string]rollout.Status{}, parked: map[string]time.Time{}, unreached: map[string]bool{}, leaveOut: procedure.LeaveOut(r.Procedure),
		rest: "What is done stays; start again with the same input for the rest"}
	f.follow(how)
	for _, c := range r.Clusters {
		switch c.State {
		case procedure.Parked:
			f.status[c.Cluster] = rollout.Parked
		case procedure.Skipped:
			f.status[c.Cluster] = rollout.Skipped
		case procedure.Done, procedure.UpToDate:
			f.status[c.Cluster] = rollout.Done
		}
	}
	return f
}

// follow goes over the clusters as the mesh's spec says from now on.
func (f *fleet) follow(how mesh.Rollout) {
	f.strategy = rollout.Strategy{Canary: how.Canary, WaveSize: how.WaveSize, Parallelism: how.Parallelism, FailureBudget: *how.FailureBudget}
	if f.report.Parallelism == 0 {
		f.report.Parallelism = how.Parallelism
	}
}

// again has the clusters that have had their turn gone over once more, also those
// that are parked: what they failed of may be what is taken back. Those that a plan
// could not look at it leaves at that: half of what is to be done there would be
// worse than nothing.
func (f *fleet) again(ctx workflow.Context) {
	for _, c := range f.report.Clusters {
		if at := f.status[c.Cluster]; at == rollout.Done && c.State != procedure.Failed || at == rollout.Parked {
			f.status[c.Cluster] = rollout.Waiting
			f.report.cluster(ctx, c.Cluster, procedure.Pending, "")
		}
	}
}

// names are the clusters whose turn it is, in the spec's order.
func (f *fleet) names() []string {
	if f.turn != nil {
		return f.turn
	}
	names := make([]string, len(f.report.Clusters))
	for i, c := range f.report.Clusters {
		names[i] = c.Cluster
	}
	return names
}

// errLong ends a rollout between two clusters: the history has grown long, and
// the run is to be continued as new.
var errLong = errors.New("the history has grown long")

// work is what is done for one cluster: its end, and a few words on it.
type work func(ctx workflow.Context, cluster string) (procedure.State, string, error)

// run has the work done for every cluster, as the strategy says. A cluster that
// fails is parked and the others go on; then the run waits for people to have
// it tried again or skipped. It returns when every cluster is done or skipped,
// when the run is canceled and nothing is at work any more, or with errLong.
func (f *fleet) run(ctx workflow.Context, do work) error { return f.runSome(ctx, nil, do) }

// runSome is run for the given clusters alone; for all if it is nil. The others'
// turn may be still to come.
func (f *fleet) runSome(ctx workflow.Context, turn []string, do work) error {
	f.turn, f.closed = turn, false
	for ctx.Err() == nil {
		f.strategy.Parallelism = f.report.Parallelism
		next := f.strategy.Next(f.names(), f.status)
		if next.Over {
			f.closed = f.everybody()
			f.await(ctx, "", false)
			return f.heard(ctx)
		}
		if f.passing && f.running == 0 && len(next.Begin) == 0 {
			f.tellParked(ctx, true)
			return f.heard(ctx)
		}
		long := workflow.GetInfo(ctx).GetContinueAsNewSuggested()
		if long && f.running == 0 {
			if err := f.heard(ctx); err != nil {
				return err
			}
			return errLong
		}
		var opens time.Time
		if f.report.Paused == "" && !long && len(next.Begin) > 0 {
			var err error
			if opens, err = f.untilOpen(ctx); err != nil {
				return err
			}
			for _, cluster := range next.Begin {
				if opens.IsZero() {
					f.begin(ctx, cluster, do)
				}
			}
		}
		f.awaitPeople(ctx, next)
		f.awaitWindow(ctx, opens)
		until := opens
		if within, untold := f.tellParked(ctx, next.Held != "" || f.report.Paused != "" || long || !opens.IsZero()); untold {
			if at := workflow.Now(ctx).Add(within); until.IsZero() || at.Before(until) {
				until = at
			}
		}
		f.awaitNews(ctx, until)
	}
	// Children end by themselves once canceled; no lock is given back before.
	settle, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	if err := workflow.Await(settle, func() bool { return f.running == 0 }); err != nil {
		return err
	}
	return ctx.Err()
}

// everybody says that no cluster of the run is still to have its turn.
func (f *fleet) everybody() bool {
	return !slices.ContainsFunc(f.report.Clusters, func(c procedure.ClusterProgress) bool { return f.status[c.Cluster] == rollout.Waiting })
}

func (f *fleet) untilOpen(ctx workflow.Context) (time.Time, error) {
	if f.opens == nil {
		return time.Time{}, nil
	}
	return f.opens(ctx)
}

// awaitWindow says that the run waits for a window, if it waits for nobody.
func (f *fleet) awaitWindow(ctx workflow.Context, opens time.Time) {
	if !opens.IsZero() && f.report.Awaiting == "" {
		f.await(ctx, "the maintenance window that opens at "+pki.Date(opens), false)
	}
}

// awaitNews waits until something has happened, or until that time if there is one.
// It ends early only if it is canceled.
func (f *fleet) awaitNews(ctx workflow.Context, until time.Time) {
	seen := f.news
	news := func() bool { return f.news != seen }
	if until.IsZero() {
		_ = workflow.Await(ctx, news)
		return
	}
	_, _ = workflow.AwaitWithTimeout(ctx, until.Sub(workflow.Now(ctx)), news)
}

// admit waits until work may begin that is no cluster's: nobody has paused the run,
// and a window is open.
func (f *fleet) admit(ctx workflow.Context) error {
	for {
		if err := f.gate(ctx); err != nil {
			return err
		}
		opens, err := f.untilOpen(ctx)
		if err != nil || opens.IsZero() {
			return err
		}
		f.awaitWindow(ctx, opens)
		f.awaitNews(ctx, opens)
		f.await(ctx, "", false)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (f *fleet) begin(ctx workflow.Context, cluster string, do work) {
	f.status[cluster] = rollout.Running
	f.running++
	f.report.cluster(ctx, cluster, procedure.Running, "")
	workflow.Go(ctx, func(ctx workflow.Context) {
		state, detail, err := do(ctx, cluster)
		f.running--
		f.news++
		switch {
		case err == nil:
			f.status[cluster] = rollout.Done
			f.report.cluster(ctx, cluster, state, detail)
		case temporal.IsCanceledError(err):
			f.status[cluster] = rollout.Waiting
			f.report.cluster(ctx, cluster, procedure.Failed, "canceled")
		default:
			f.failed(ctx, cluster, err)
		}
	})
}

// failed parks a cluster that something failed in.
func (f *fleet) failed(ctx workflow.Context, cluster string, err error) {
	f.park(ctx, cluster, failure.Message(err))
	f.unreached[cluster] = failure.KindOf(err) == failure.Unavailable
}

// park notes that a cluster waits for a person, and why. It is always said
// beside the cluster's name, so the reason need not begin with it.
func (f *fleet) park(ctx workflow.Context, cluster, problem string) {
	if f.status[cluster] != rollout.Parked {
		f.status[cluster], f.parked[cluster] = rollout.Parked, workflow.Now(ctx)
	}
	delete(f.unreached, cluster)
	f.report.cluster(ctx, cluster, procedure.Parked, strings.TrimPrefix(problem, fmt.Sprintf("cluster %q: ", cluster)))
}

// untoldFor is how long people are not told of a cluster that is parked while
// its wave goes on.
const untoldFor = time.Hour

// tellParked tells people of the clusters that wait for them, once for each time
// that one is parked: of all of a wave in one message, when the wave is over or
// goes no further (stopped), or when the first has been parked for a while. If
// some are left that they are not told of yet, it answers when to look again.
func (f *fleet) tellParked(ctx workflow.Context, stopped bool) (within time.Duration, untold bool) {
	var all, due []procedure.ClusterProgress
	first := workflow.Now(ctx)
	for _, c := range f.in(procedure.Parked) {
		if c.Told {
			continue
		}
		all = append(all, c)
		if at := f.parked[c.Cluster]; at.Before(first) { // the zero time of one that an earlier run has parked
			first = at
		}
		if f.strategy.WaveOver(f.names(), f.status, c.Cluster, stopped) {
			due = append(due, c)
		}
	}
	within = untoldFor - workflow.Now(ctx).Sub(first)
	if within <= 0 {
		due = all
	}
	if len(due) > 0 {
		f.tellOf(ctx, due)
	}
	return within, len(due) < len(all)
}

// tellOf tells people of parked clusters, beside what the run does.
func (f *fleet) tellOf(ctx workflow.Context, parked []procedure.ClusterProgress) {
	for i, c := range f.report.Clusters {
		if slices.ContainsFunc(parked, func(p procedure.ClusterProgress) bool { return p.Cluster == c.Cluster }) {
			f.report.Clusters[i].Told = true
		}
	}
	text := fmt.Sprintf("%d of %d clusters parked:", len(parked), len(f.report.Clusters))
	for _, c := range parked {
		text += fmt.Sprintf("\n- %s: %s", c.Cluster, strings.ReplaceAll(c.Detail, "\n", " "))
	}
	var commands []string
	for _, args := range procedure.Remedies(f.report.Procedure, f.report.Mesh, f.report.Paused, parked) {
		commands = append(commands, "relaypki "+strings.Join(args, " "))
	}
	f.telling++
	workflow.Go(ctx, func(ctx workflow.Context) {
		notice(ctx, f.report, text, commands...)
		f.telling--
	})
}

// heard waits until no message is on its way any more: it would be lost with the
// run's end.
func (f *fleet) heard(ctx workflow.Context) error {
	return workflow.Await(ctx, func() bool { return f.telling == 0 })
}

// in are the clusters in that state.
func (f *fleet) in(state procedure.State) []procedure.ClusterProgress {
	return slices.DeleteFunc(slices.Clone(f.report.Clusters), func(c procedure.ClusterProgress) bool { return c.State != state })
}

// kept are the members of the mesh that nobody has left out; nil for all of them.
func (f *fleet) kept(spec mesh.Spec) []string {
	var kept []string
	for _, c := range f.report.Clusters {
		if _, member := spec.Workload(c.Cluster); member && c.State != procedure.Skipped {
			kept = append(kept, c.Cluster)
		}
	}
	if len(kept) == len(spec.Workloads) {
		return nil
	}
	return kept
}

func namesOf(clusters []procedure.ClusterProgress) []string {
	names := make([]string, len(clusters))
	for i, c := range clusters {
		names[i] = c.Cluster
	}
	return names
}

// await says what the run waits for, and whether for a person.
func (f *fleet) await(ctx workflow.Context, what string, person bool) {
	if what == "" && f.report.held != "" {
		what, person = f.report.held, true
	}
	f.report.Person = person
	f.report.await(ctx, what)
}

// awaitPeople says what only a person can have go on, and with which command.
func (f *fleet) awaitPeople(ctx workflow.Context, next rollout.Decision) {
	name := f.report.Mesh
	idle := f.running == 0
	parked := namesOf(f.in(procedure.Parked))
	switch {
	case f.report.Paused != "":
		f.await(ctx, fmt.Sprintf("paused (%s), %d clusters at work. Go on: relaypki resume %s", f.report.Paused, f.running, name), idle)
	case len(parked) == 0 || !idle && next.Held == "":
		f.await(ctx, "", false)
	default:
		why := strings.Join(parked, ", ") + " parked"
		if next.Held != "" {
			why = "no other cluster is begun: " + next.Held
		}
		f.await(ctx, fmt.Sprintf("%s. Put it right, then: relaypki retry %[2]s; or leave it out: relaypki %[4]s %[2]s %[3]s --reason WHY; or end the run: relaypki abort %[2]s --reason WHY",
			why, name, strings.Join(parked, " "), f.leaveOut), idle)
	}
}

// gate holds a run that is paused between two steps.
func (f *fleet) gate(ctx workflow.Context) error {
	if f.report.Paused == "" {
		return nil
	}
	f.await(ctx, fmt.Sprintf("paused (%s). Go on: relaypki resume %s", f.report.Paused, f.report.Mesh), true)
	err := workflow.Await(ctx, func() bool { return f.report.Paused == "" })
	f.await(ctx, "", false)
	return err
}

// outcome is the error of a run that ended with err, seen from the whole: who
// aborted it, or what was left out although all else went well.
func (f *fleet) outcome(err error) error {
	var left []string
	for _, c := range f.report.Clusters {
		if c.State == procedure.Skipped || c.State == procedure.Parked {
			left = append(left, fmt.Sprintf("%s %s: %s", c.Cluster, c.State, c.Detail))
		}
	}
	also := ""
	if len(left) > 0 {
		also = ":\n- " + strings.Join(left, "\n- ")
	}
	switch {
	case f.aborted != "":
		return failure.Permanent(failure.Aborted, "aborted by request (%s). What is done stays; start again with the same input for the rest%s", f.aborted, also)
	case err == nil && len(left) > 0:
		return failure.Permanent(failure.Incomplete, "%d of %d clusters were left out. %s%s", len(left), len(f.report.Clusters), f.rest, also)
	}
	return err
}

// wake has the run look again what is next. What it waited for a person for, a
// person has just said: the answer must not ask for it once more.
func (f *fleet) wake(ctx workflow.Context) {
	if f.report.Person && f.report.Paused == "" {
		f.await(ctx, "", false)
	}
	f.news++
}

// standing is the answer to every update.
func (f *fleet) standing() (procedure.Standing, error) {
	s := procedure.Standing{
		Procedure: f.report.Procedure, Mesh: f.report.Mesh, Phase: f.report.Phase, Awaiting: f.report.Awaiting,
		Paused: f.report.Paused, Aborting: f.aborted != "", Parallelism: f.report.Parallelism,
		Count: map[procedure.State]int{}, Parked: f.in(procedure.Parked),
	}
	for _, c := range f.report.Clusters {
		s.Count[c.State]++
	}
	return s, nil
}

// steer takes the updates by which people steer the run.
func (f *fleet) steer(ctx workflow.Context) error {
	for _, u := range []struct {
		name, description  string
		handler, validator any
	}{
		{procedure.RetryUpdate, `Try parked or skipped clusters again. {"clusters":["cluster2"]}, or {} for all that are parked.`, f.retry, f.mayRetry},
		{f.leaveOut, `Leave clusters out that are parked or not begun; the run then ends as failed, with them in its report. {"clusters":["cluster2"],"reason":"..."}`, f.skip, f.maySkip},
		{procedure.PauseUpdate, `Begin nothing new; what runs is finished. {"reason":"..."}`, f.pause, f.mayPause},
		{procedure.ResumeUpdate, `Go on after a pause. {}`, f.resume, f.mayResume},
		{procedure.SetParallelismUpdate, fmt.Sprintf(`Work on so many clusters at once, 1 to %d. {"parallelism":20}`, mesh.MaxParallelism), f.setParallelism, f.maySetParallelism},
		{procedure.AbortUpdate, `End the run: what is at work is canceled and waited for, what is done stays. {"reason":"..."}`, f.abortRun, f.mayAbort},
	} {
		if err := workflow.SetUpdateHandlerWithOptions(ctx, u.name, u.handler, workflow.UpdateHandlerOptions{Validator: u.validator, Description: u.description}); err != nil {
			return err
		}
	}
	return nil
}

// refuse is a validator's answer: every problem of what was typed.
func refuse(problems []strict.Problem) error {
	if len(problems) == 0 {
		return nil
	}
	texts := make([]string, len(problems))
	for i, p := range problems {
		texts[i] = p.String()
	}
	return errors.New(strings.Join(texts, "; "))
}

func problem(path, format string, args ...any) strict.Problem {
	return strict.Problem{Path: path, Message: fmt.Sprintf(format, args...)}
}

// unusable are the problems with named clusters: unknown ones, and any of which
// not says why it is not for that.
func (f *fleet) unusable(names []string, not func(procedure.ClusterProgress) string) []strict.Problem {
	var problems []strict.Problem
	if f.closed {
		return []strict.Problem{problem("", "the clusters have had their turn, the run is at %q; when it has ended, start it again", f.report.Phase)}
	}
	for i, name := range names {
		at := fmt.Sprintf("clusters[%d]", i)
		index := slices.IndexFunc(f.report.Clusters, func(c procedure.ClusterProgress) bool { return c.Cluster == name })
		if index < 0 {
			parked := strings.Join(namesOf(f.in(procedure.Parked)), ", ")
			if parked == "" {
				parked = "none"
			}
			problems = append(problems, problem(at, "%q is no cluster of this procedure (parked: %s)", name, parked))
		} else if why := not(f.report.Clusters[index]); why != "" {
			problems = append(problems, problem(at, "%q %s", name, why))
		}
	}
	return problems
}

func (f *fleet) mayRetry(in procedure.Typed[procedure.RetryInput]) error {
	return refuse(append(in.Problems, f.unusable(in.In.Clusters, func(procedure.ClusterProgress) string { return "" })...))
}

// retry leaves alone what is not parked or skipped: a call that is repeated
// finds it at work, or done.
func (f *fleet) retry(ctx workflow.Context, in procedure.Typed[procedure.RetryInput]) (procedure.Standing, error) {
	names := in.In.Clusters
	if len(names) == 0 {
		names = namesOf(f.in(procedure.Parked))
	}
	for _, name := range names {
		if at := f.status[name]; at == rollout.Parked || at == rollout.Skipped {
			f.status[name] = rollout.Waiting
			f.report.cluster(ctx, name, procedure.Pending, "to be tried again")
		}
	}
	f.wake(ctx)
	return f.standing()
}

func (f *fleet) maySkip(in procedure.Typed[procedure.SkipInput]) error {
	problems := in.Problems
	if len(in.In.Clusters) == 0 {
		problems = append(problems, problem("clusters", "is empty; name those to leave out"))
	}
	problems = append(problems, missingReason(in.In.Reason)...)
	return refuse(append(problems, f.unusable(in.In.Clusters, func(c procedure.ClusterProgress) string {
		switch f.status[c.Cluster] {
		case rollout.Running:
			return "is being worked on; wait until it is done or parked, or abort the run"
		case rollout.Done:
			return "is done"
		}
		return ""
	})...))
}

func missingReason(reason string) []strict.Problem {
	if strings.TrimSpace(reason) == "" {
		return []strict.Problem{problem("reason", "is missing; say why, for whoever looks at this run later")}
	}
	return nil
}

func (f *fleet) skip(ctx workflow.Context, in procedure.Typed[procedure.SkipInput]) (procedure.Standing, error) {
	for _, name := range in.In.Clusters {
		f.status[name] = rollout.Skipped
		f.report.cluster(ctx, name, procedure.Skipped, in.In.Reason)
	}
	f.wake(ctx)
	return f.standing()
}

func (f *fleet) mayPause(in procedure.Typed[procedure.PauseInput]) error {
	return refuse(append(in.Problems, missingReason(in.In.Reason)...))
}

func (f *fleet) pause(ctx workflow.Context, in procedure.Typed[procedure.PauseInput]) (procedure.Standing, error) {
	f.report.Paused = in.In.Reason
	f.report.show(ctx)
	f.news++
	return f.standing()
}

func (f *fleet) mayResume(in procedure.Typed[procedure.ResumeInput]) error {
	return refuse(in.Problems)
}

func (f *fleet) resume(ctx workflow.Context, _ procedure.Typed[procedure.ResumeInput]) (procedure.Standing, error) {
	f.report.Paused = ""
	f.report.show(ctx)
	f.wake(ctx)
	return f.standing()
}

func (f *fleet) maySetParallelism(in procedure.Typed[procedure.ParallelismInput]) error {
	problems := in.Problems
	if n := in.In.Parallelism; n < 1 || n > mesh.MaxParallelism {
		problems = append(problems, problem("parallelism", "%d is not between 1 and %d", n, mesh.MaxParallelism))
	}
	return refuse(problems)
}

func (f *fleet) setParallelism(ctx workflow.Context, in procedure.Typed[procedure.ParallelismInput]) (procedure.Standing, error) {
	f.report.Parallelism = in.In.Parallelism
	f.report.show(ctx)
	f.news++
	return f.standing()
}

func (f *fleet) mayAbort(in procedure.Typed[procedure.AbortInput]) error {
	return refuse(append(in.Problems, missingReason(in.In.Reason)...))
}

func (f *fleet) abortRun(_ workflow.Context, in procedure.Typed[procedure.AbortInput]) (procedure.Standing, error) {
	if f.aborted == "" {
		f.aborted = in.In.Reason
		f.abort()
	}
	return f.standing()
}
