package workflows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/notify"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// going is what a cluster's work comes to, each time that it is tried: how long it
// takes, and what it fails of.
type going struct {
	takes time.Duration
	fails string
}

// goOver has a fleet of the rotations gone over, and answers what people were told
// at which minute.
func goOver(t *testing.T, how mesh.Rollout, names []string, work map[string][]going, steer func(*testsuite.TestWorkflowEnvironment)) (told []string) {
	t.Helper()
	env := newRun(t, &outside{})
	started := env.Now()
	env.RegisterActivity(notifiers)
	env.OnActivity(notifiers.Notify, mock.Anything, mock.Anything).Return(func(_ context.Context, in notify.Input) (notify.Result, error) {
		told = append(told, fmt.Sprintf("%d: %s", int(env.Now().Sub(started).Minutes()), in.Text))
		return notify.Result{Told: []string{"ops"}}, nil
	})
	spec := mesh.Spec{Mesh: "demo", Rollout: how}.WithDefaults()
	env.RegisterWorkflowWithOptions(func(ctx workflow.Context) error {
		ctx, abort := workflow.WithCancel(ctx)
		p := procedure.Progress{Procedure: procedure.RotateLeafCertificates, Mesh: "demo"}
		for _, name := range names {
			p.Clusters = append(p.Clusters, procedure.ClusterProgress{Cluster: name, State: procedure.Pending})
		}
		r, err := newReport(ctx, p)
		if err != nil {
			return err
		}
		f := newFleet(r, spec.Rollout, abort)
		if err := f.steer(ctx); err != nil {
			return err
		}
		tried := map[string]int{}
		return f.outcome(f.run(ctx, func(ctx workflow.Context, cluster string) (procedure.State, string, error) {
			var now going
			if i := tried[cluster]; i < len(work[cluster]) {
				now = work[cluster][i]
			}
			tried[cluster]++
			if err := workflow.Sleep(ctx, now.takes); err != nil {
				return procedure.Failed, "", err
			}
			if now.fails != "" {
				return procedure.Failed, "", failure.Permanent(failure.Unavailable, "%s", now.fails)
			}
			return procedure.Done, "", nil
		}))
	}, workflow.RegisterOptions{Name: "goOver"})
	if steer != nil {
		steer(env)
	}
	env.RegisterDelayedCallback(env.CancelWorkflow, 999*time.Minute)
	env.ExecuteWorkflow("goOver")
	if !env.IsWorkflowCompleted() {
		t.Fatal("the run has not ended")
	}
	return told
}

func parkedMessage(minute int, count string, clusters []string, names string) string {
	text := fmt.Sprintf("%d: relaypki: RotateLeafCertificates of mesh demo: %s clusters parked:", minute, count)
	for _, c := range clusters {
		text += "\n- " + c
	}
	return text + fmt.Sprintf("\nNext: relaypki retry demo %[1]s\n      relaypki quarantine demo %[1]s --reason WHY\n      relaypki abort demo --reason WHY\n      relaypki watch default-test-workflow-id", names)
}

// People are told of the clusters that a wave has parked, in one message, when the
// wave is over, and not again while they wait.
func TestParkedClustersAreToldByWave(t *testing.T) {
	budget := 10
	minutes := func(takes int, fails string) []going { return []going{{time.Duration(takes) * time.Minute, fails}} }
	for name, c := range map[string]struct {
		how  mesh.Rollout
		work map[string][]going
		want []string
	}{
		"nobody is parked": {mesh.Rollout{WaveSize: 2}, map[string][]going{"a": minutes(5, "")}, nil},
		"two in one wave, and one in the next": {mesh.Rollout{WaveSize: 3, FailureBudget: &budget},
			map[string][]going{"a": minutes(1, "no route"), "b": minutes(9, ""), "c": minutes(5, "no\nvote"), "d": minutes(10, "late"), "e": minutes(20, "")},
			[]string{parkedMessage(9, "2 of 5", []string{"a: no route", "c: no vote"}, "a c"), parkedMessage(29, "1 of 5", []string{"d: late"}, "d")}},
		"the canary": {mesh.Rollout{Canary: []string{"b"}},
			map[string][]going{"b": minutes(3, "no route")},
			[]string{parkedMessage(3, "1 of 5", []string{"b: no route"}, "b")}},
		"more than the budget: the wave goes no further": {mesh.Rollout{Parallelism: 2},
			map[string][]going{"a": minutes(1, "no route"), "b": minutes(7, "")},
			[]string{parkedMessage(7, "1 of 5", []string{"a: no route"}, "a")}},
		"a wave that takes long": {mesh.Rollout{},
			map[string][]going{"a": minutes(2, "no route"), "b": minutes(30, "no route"), "c": minutes(300, ""), "d": minutes(100, "late")},
			[]string{parkedMessage(62, "2 of 5", []string{"a: no route", "b: no route"}, "a b"), parkedMessage(160, "1 of 5", []string{"d: late"}, "d")}},
	} {
		t.Run(name, func(t *testing.T) {
			if told := goOver(t, c.how, []string{"a", "b", "c", "d", "e"}, c.work, nil); !slices.Equal(told, c.want) {
				t.Errorf("told\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// A cluster that is parked again when somebody has retried it is told again; one
// that is done then is not.
func TestParkedAgainIsToldAgain(t *testing.T) {
	work := map[string][]going{"a": {{time.Minute, "no route"}, {time.Minute, "still no route"}}, "b": {{time.Minute, "no route"}}}
	told := goOver(t, mesh.Rollout{}, []string{"a", "b"}, work, func(env *testsuite.TestWorkflowEnvironment) {
		env.RegisterDelayedCallback(func() { update(t, env, procedure.RetryUpdate, `{}`) }, 10*time.Minute)
	})
	want := []string{parkedMessage(1, "2 of 2", []string{"a: no route", "b: no route"}, "a b"), parkedMessage(11, "1 of 2", []string{"a: still no route"}, "a")}
	if !slices.Equal(told, want) {
		t.Errorf("told\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
	}
}

// However many there are, the message can be read.
func TestManyParkedClusters(t *testing.T) {
	var names []string
	work := map[string][]going{}
	for i := range 100 {
		names = append(names, fmt.Sprintf("c%d", i))
		work[names[i]] = []going{{0, "no route " + strings.Repeat("x", 1000)}}
	}
	budget := 100
	told := goOver(t, mesh.Rollout{FailureBudget: &budget}, names, work, nil)
	if len(told) != 1 || !strings.Contains(told[0], "100 of 100 clusters parked") || !strings.Contains(told[0], "and 80 lines more") ||
		!strings.Contains(told[0], "Next: relaypki retry demo\n      relaypki quarantine demo CLUSTER... --reason WHY\n") || len(told[0]) > 20000 {
		t.Errorf("%d messages: %.30000s", len(told), told)
	}
}

// The run that a long one is continued as does not tell again what was told, and
// tells what was not.
func TestToldIsHandedOver(t *testing.T) {
	long := spec
	long.Workloads = append(slices.Clone(spec.Workloads), mesh.Workload{Name: "cluster3"}, mesh.Workload{Name: "cluster4"})
	long.Rollout.Parallelism, long.Rollout.WaveSize = 1, 1
	budget := 4
	long.Rollout.FailureBudget = &budget
	o := &outside{fails: map[string]error{"InstallChart cluster1": failure.Permanent(failure.Conflict, "a foreign release"), "InstallChart cluster2": failure.Permanent(failure.Conflict, "another foreign release")}}
	env := newRun(t, o)
	told := listening(env)
	env.SetOnChildWorkflowCompletedListener(func(info *workflow.Info, _ converter.EncodedValue, _ error) {
		if strings.HasSuffix(info.WorkflowExecution.ID, "/cluster2") {
			env.SetContinueAsNewSuggested(true)
		}
	})
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: long}, nil)
	var again *workflow.ContinueAsNewError
	if err := env.GetWorkflowError(); !errors.As(err, &again) {
		t.Fatalf("the run ended with %v", err)
	}
	rest := &outside{record: o.record, fails: o.fails}
	env = newRun(t, rest)
	env.SetContinuedExecutionRunID("the first run")
	all := listening(env)
	later(t, env, procedure.SkipUpdate, `{"clusters":["cluster1","cluster2"],"reason":"later"}`)
	var in procedure.SetupInput
	var state longSetup
	if err := converter.GetDefaultDataConverter().FromPayloads(again.Input, &in, &state); err != nil {
		t.Fatal(err)
	}
	env.ExecuteWorkflow(SetupMesh, in, &state)
	*all = append(*told, *all...)
	var about []string
	for _, text := range *all {
		if !strings.Contains(text, "relaypki skip demo") {
			t.Errorf("told %q", text)
		}
		about = append(about, text[strings.Index(text, "- "):strings.Index(text, ": a")])
	}
	if len(about) != 2 || !strings.Contains((*all)[0], "- cluster1") || !strings.Contains((*all)[1], "- cluster2") {
		t.Errorf("told of %q: %q", about, *all)
	}
}

// unwatchedRun runs a rotation as MaintainMesh has started it, with what people
// were told before.
func unwatchedRun(t *testing.T, o *outside, name, input string, before *procedure.Told, steer func(*testsuite.TestWorkflowEnvironment)) (told []string, err error) {
	t.Helper()
	env := newRun(t, o)
	texts := listening(env)
	memo := map[string]any{procedure.MemoStartedBy: "maintain-demo"}
	if before != nil {
		memo[procedure.MemoTold] = before
	}
	if err := env.SetMemoOnStart(memo); err != nil {
		t.Fatal(err)
	}
	if steer != nil {
		steer(env)
	}
	env.ExecuteWorkflow(name, json.RawMessage(input))
	return *texts, env.GetWorkflowError()
}

// What MaintainMesh has started and what then fails is told once, by the run
// itself; whoever ends it knows.
func TestFailureOfAStartedRotationIsTold(t *testing.T) {
	for _, name := range []string{procedure.RotateLeafCertificates, procedure.RotateIntermediateCA} {
		t.Run(name, func(t *testing.T) {
			broken := func() *outside {
				o := rotated()
				o.fails["ReadServer"] = failure.Permanent(failure.Unavailable, "no replica answers")
				return o
			}
			told, err := unwatchedRun(t, broken(), name, `{"mesh":"demo"}`, nil, nil)
			if failure.KindOf(err) != failure.Unavailable {
				t.Fatalf("it ended with %v", err)
			}
			if want := []string{"relaypki: " + name + " of mesh demo failed: no replica answers\nNext: relaypki watch default-test-workflow-id"}; !slices.Equal(told, want) {
				t.Errorf("told %q, want %q", told, want)
			}

			// An hour later it is started again, and fails of the same, or of something else.
			known := toldIn(err)
			if known == nil {
				t.Fatal("the error does not say what people were told")
			}
			if told, err = unwatchedRun(t, broken(), name, `{"mesh":"demo"}`, known, nil); len(told) > 0 || !reflect.DeepEqual(toldIn(err), known) {
				t.Errorf("of the same failure, told %q, and they know %+v", told, toldIn(err))
			}
			other := rotated()
			other.fails["Survey"] = failure.Permanent(failure.Denied, "no right")
			if told, _ = unwatchedRun(t, other, name, `{"mesh":"demo"}`, known, nil); len(told) != 1 {
				t.Errorf("of another failure, told %q", told)
			}
			known.At = known.At.Add(-25 * time.Hour)
			if told, _ = unwatchedRun(t, broken(), name, `{"mesh":"demo"}`, known, nil); len(told) != 1 {
				t.Errorf("a day later, told %q", told)
			}

			parked := rotated()
			parked.fails["Reissue cluster1"] = failure.Permanent(failure.Unavailable, "no route")
			told, err = unwatchedRun(t, parked, name, `{"mesh":"demo"}`, nil, func(env *testsuite.TestWorkflowEnvironment) {
				env.RegisterDelayedCallback(func() { update(t, env, procedure.AbortUpdate, `{"reason":"not today"}`) }, time.Hour)
			})
			if failure.KindOf(err) != failure.Aborted || len(told) != 1 || !strings.Contains(told[0], "1 of 2 clusters parked:\n- cluster1: no route") {
				t.Errorf("aborted while a cluster was parked, it ended with %v, told %q", err, told)
			}
		})
	}
}

// A person's own rotation of leaves tells nobody that it fails: who has typed it
// sees that.
func TestAPersonsOwnRotationOfLeaves(t *testing.T) {
	o := rotated()
	o.fails["ReadServer"] = failure.Permanent(failure.Unavailable, "no replica answers")
	env := newRun(t, o)
	told := listening(env)
	env.ExecuteWorkflow(procedure.RotateLeafCertificates, json.RawMessage(`{"mesh":"demo"}`))
	if err := env.GetWorkflowError(); failure.KindOf(err) != failure.Unavailable || len(*told) > 0 {
		t.Errorf("%v, told %q", err, *told)
	}
}

// A rotation that a person takes back has not failed; one that cannot be taken back
// has.
func TestRollBackIsNoFailure(t *testing.T) {
	back := func(env *testsuite.TestWorkflowEnvironment) {
		env.RegisterDelayedCallback(func() { update(t, env, procedure.RollbackUpdate, `{"reason":"not today"}`) }, time.Hour)
	}
	waiting := func() *outside {
		o := rotated()
		o.record.Spec.Rotation.Approval = mesh.ApprovalEachPhase
		return o
	}
	told, err := unwatchedRun(t, waiting(), procedure.RotateIntermediateCA, `{"mesh":"demo"}`, nil, back)
	if failure.KindOf(err) != failure.RolledBack || len(told) != 2 || !strings.Contains(told[0], `waits for approval of "stage"`) || !strings.Contains(told[1], "taken back (not today)") {
		t.Errorf("it ended with %v, told %q", err, told)
	}
	o := waiting()
	o.calling = func(o *outside, activity, about string) {
		if activity == "UseIssuer" {
			o.fails["UseIssuer "+about] = failure.Permanent(failure.Denied, "no right")
		}
	}
	told, err = unwatchedRun(t, o, procedure.RotateIntermediateCA, `{"mesh":"demo"}`, nil, back)
	if failure.KindOf(err) != failure.Denied || len(told) != 2 || !strings.Contains(told[1], "failed: no right") {
		t.Errorf("it ended with %v, told %q", err, told)
	}
}

// Each phase that waits for approval says so once, also where the run is continued
// as new while it goes on.
func TestApprovalIsAskedForOnce(t *testing.T) {
	o := rotated()
	o.record.Spec.Rotation.Approval = mesh.ApprovalEachPhase
	env := newRun(t, o)
	told := listening(env)
	approving := func() {
		everyMinute(env, func() {
			if p := query(t, env); p.Asked != "" {
				if p.Asked == "fleet" {
					env.SetContinueAsNewSuggested(true)
				}
				update(t, env, procedure.ApproveUpdate, fmt.Sprintf(`{"phase":%q}`, p.Asked))
			}
		})
	}
	approving()
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo"}`))
	var again *workflow.ContinueAsNewError
	if err := env.GetWorkflowError(); !errors.As(err, &again) {
		t.Fatalf("the run ended with %v", err)
	}
	var in procedure.RotateIntermediateInput
	var state longRotation
	if err := converter.GetDefaultDataConverter().FromPayloads(again.Input, &in, &state); err != nil {
		t.Fatal(err)
	}
	all := slices.Clone(*told)
	env = newRun(t, o)
	env.SetContinuedExecutionRunID("the first run")
	told = listening(env)
	approving()
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, in, &state)
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	all = append(all, *told...)
	want := []string{`waits for approval of "stage"`, `waits for approval of "canary"`, `waits for approval of "server"`, `waits for approval of "fleet"`, `waits for approval of "retire"`, "done: every certificate"}
	if len(all) != len(want) {
		t.Fatalf("told %q", all)
	}
	for i, text := range all {
		if !strings.Contains(text, want[i]) {
			t.Errorf("told %q, want %q", text, want[i])
		}
	}
}

// A schedule's runs that fail of the same tell it once a day, of something new at
// once, and of the same when it was well in between.
func TestFailuresOfASchedule(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	record := complete()
	verify := func(before error, differs bool) ([]string, error) {
		env := newRun(t, &outside{record: record, differs: map[string]bool{"VerifyCluster": differs}})
		env.SetStartTime(now)
		told := listening(env)
		if before != nil {
			env.SetLastError(before)
		}
		if err := env.SetTypedSearchAttributesOnStart(temporal.NewSearchAttributes(scheduledBy.ValueSet("relaypki-verify-demo"))); err != nil {
			t.Fatal(err)
		}
		env.ExecuteWorkflow(VerifyMesh, procedure.VerifyInput{Mesh: "demo"})
		return *told, ended(env)
	}
	var at []int
	var before error
	for hour := range 60 {
		switch hour {
		case 5:
			record.Spec = record.Spec.With(mesh.Workload{Name: "cluster3"}) // which fails too
		case 6:
			record = complete()
		case 7:
			record.Spec = record.Spec.With(mesh.Workload{Name: "cluster3"}) // and comes and goes
		}
		var told []string
		told, before = verify(before, hour != 40)
		for range told {
			at = append(at, hour)
		}
		now = now.Add(time.Hour)
	}
	if want := []int{0, 5, 29, 41}; !slices.Equal(at, want) {
		t.Errorf("of a mesh that is unhealthy, told after %v hours, want %v", at, want)
	}
}

func TestFailuresOfMaintainMesh(t *testing.T) {
	l := newLives()
	var at []int
	for hour := range 30 {
		l.vault = failure.Permanent(failure.Denied, "Vault refused at %s", l.now)
		if hour == 3 {
			l.vault = failure.Permanent(failure.Unavailable, "Vault is away")
		}
		n := len(l.told)
		l.before = ended(l.run(t))
		if len(l.told) > n {
			at = append(at, hour)
		}
		l.now = l.now.Add(time.Hour)
	}
	if want := []int{0, 3, 27}; !slices.Equal(at, want) {
		t.Errorf("told after %v hours, want %v", at, want)
	}
}

// ended is the error that a run has failed with, as the schedule's next run is
// given it; nil if it has not.
func ended(env *testsuite.TestWorkflowEnvironment) error {
	var app *temporal.ApplicationError
	if errors.As(env.GetWorkflowError(), &app) {
		return app
	}
	return nil
}

// toldIn is what an error says that people were told.
func toldIn(err error) *procedure.Told {
	var app *temporal.ApplicationError
	var report procedure.Progress
	if !errors.As(err, &app) || app.Details(&report) != nil {
		return nil
	}
	return report.Told
}
