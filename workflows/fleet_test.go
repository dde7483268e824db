package workflows

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// answers are what came of updates: the standing, or why one was refused.
type answers struct {
	sent      int
	standings []procedure.Standing
	refusals  []string
}

// send sends an update as a person types it. The answer is there when the run
// has had its turn.
func (a *answers) send(t *testing.T, env *testsuite.TestWorkflowEnvironment, name, input string) {
	t.Helper()
	a.sent++
	id := fmt.Sprintf("%s %s %d %p", name, input, a.sent, a) // a repeated id is one update
	env.UpdateWorkflow(name, id, &testsuite.TestUpdateCallback{
		OnAccept: func() {},
		OnReject: func(err error) { a.refusals = append(a.refusals, err.Error()) },
		OnComplete: func(answer any, err error) {
			if err != nil {
				t.Errorf("update %s failed: %v", name, err)
				return
			}
			a.standings = append(a.standings, answer.(procedure.Standing))
		},
	}, json.RawMessage(input))
}

// later sends an update when the run has come to a rest.
func later(t *testing.T, env *testsuite.TestWorkflowEnvironment, name, input string) *answers {
	t.Helper()
	a := &answers{}
	env.RegisterDelayedCallback(func() { a.send(t, env, name, input) }, time.Hour)
	return a
}

func query(t *testing.T, env *testsuite.TestWorkflowEnvironment) procedure.Progress {
	t.Helper()
	answer, err := env.QueryWorkflow(procedure.ProgressQuery)
	var p procedure.Progress
	if err == nil {
		err = answer.Get(&p)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func states(p procedure.Progress) map[string]procedure.State {
	out := map[string]procedure.State{}
	for _, c := range p.Clusters {
		out[c.Cluster] = c.State
	}
	return out
}

// One cluster is away from the start, and back when somebody says retry.
func TestParkedClusterIsRetried(t *testing.T) {
	o := &outside{fails: map[string]error{"CheckClusters cluster2": failure.Permanent(failure.Unavailable, "cluster2 does not answer")}}
	env := newRun(t, o)
	env.RegisterDelayedCallback(func() {
		p := query(t, env)
		if want := (map[string]procedure.State{"cluster1": procedure.UpToDate, "cluster2": procedure.Parked}); !reflect.DeepEqual(states(p), want) {
			t.Errorf("while cluster2 is away: %v, want %v", states(p), want)
		}
		if !p.Person || !strings.Contains(p.Awaiting, "relaypki retry demo") || !strings.Contains(p.Awaiting, "cluster2") {
			t.Errorf("it awaits %q, a person: %v", p.Awaiting, p.Person)
		}
	}, time.Hour)
	retried := later(t, env, procedure.RetryUpdate, `{}`)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: spec}, nil)
	var result procedure.SetupResult
	if err := env.GetWorkflowResult(&result); err != nil {
		t.Fatal(err)
	}
	if len(retried.standings) != 1 || retried.standings[0].Count[procedure.Pending] != 1 || retried.standings[0].Awaiting != "" {
		t.Errorf("retry answered %+v", retried)
	}
	if len(result.Clusters) != 2 || !o.record.Complete {
		t.Errorf("%d clusters in the result, complete: %v", len(result.Clusters), o.record.Complete)
	}
}

// A cluster that fails in the middle is parked, the others finish.
func TestFailingClusterIsParkedOthersFinish(t *testing.T) {
	o := &outside{fails: map[string]error{"InstallChart cluster1": failure.Permanent(failure.Conflict, "a foreign release")}}
	env := newRun(t, o)
	env.RegisterDelayedCallback(func() { delete(o.fails, "InstallChart cluster1") }, time.Hour)
	later(t, env, procedure.RetryUpdate, `{"clusters":["cluster1"]}`)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: spec}, nil)
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	if n := o.count("InstallChart cluster1"); n < 2 {
		t.Errorf("cluster1 was tried %d times", n)
	}
	if n := o.count("InstallChart cluster2"); n != 3 {
		t.Errorf("cluster2's charts were looked at %d times, want 3: %q", n, o.calls)
	}
}

// What is skipped is in the failure that ends the run, everything else is done
// and proved, and the mesh is not recorded as complete.
func TestSkippedClusterEndsTheRunIncomplete(t *testing.T) {
	o := &outside{fails: map[string]error{"CheckClusters cluster2": failure.Permanent(failure.Unavailable, "cluster2 does not answer")}}
	env := newRun(t, o)
	later(t, env, procedure.SkipUpdate, `{"clusters":["cluster2"],"reason":"sent back to its maker"}`)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: spec}, nil)
	err := env.GetWorkflowError()
	if failure.KindOf(err) != failure.Incomplete || !strings.Contains(failure.Message(err), "cluster2 skipped: sent back to its maker") {
		t.Errorf("the run ended with %v", err)
	}
	if o.record.Complete || o.count("VerifyCluster") != 1 {
		t.Errorf("complete: %v, %d clusters verified", o.record.Complete, o.count("VerifyCluster"))
	}
}

func TestAbort(t *testing.T) {
	o := &outside{fails: map[string]error{"CheckClusters cluster2": failure.Permanent(failure.Unavailable, "cluster2 does not answer")}}
	env := newRun(t, o)
	later(t, env, procedure.AbortUpdate, `{"reason":"wrong day"}`)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: spec}, nil)
	err := env.GetWorkflowError()
	if failure.KindOf(err) != failure.Aborted || !strings.Contains(failure.Message(err), "wrong day") || !strings.Contains(failure.Message(err), "cluster2 parked") {
		t.Errorf("the run ended with %v", err)
	}
	if locks, releases := o.count("AcquireLock"), o.count("ReleaseLock"); locks == 0 || locks != releases {
		t.Errorf("%d locks were taken, %d given back", locks, releases)
	}
}

func TestPauseHoldsWhatIsNotBegun(t *testing.T) {
	o := &outside{}
	env := newRun(t, o)
	var said answers
	env.RegisterDelayedCallback(func() { said.send(t, env, procedure.PauseUpdate, `{"reason":"change freeze"}`) }, 0)
	env.RegisterDelayedCallback(func() {
		p := query(t, env)
		if p.Paused != "change freeze" || !p.Person || !strings.Contains(p.Awaiting, "relaypki resume demo") || o.count("InstallChart") > 0 {
			t.Errorf("paused: %+v, calls %q", p, o.calls)
		}
		said.send(t, env, procedure.ResumeUpdate, `{}`)
	}, time.Hour)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: spec}, nil)
	if err := env.GetWorkflowError(); err != nil || len(said.standings) != 2 {
		t.Fatalf("%v, answers %+v", err, said)
	}
	if said.standings[1].Awaiting != "" {
		t.Errorf("resume answers that it awaits %q", said.standings[1].Awaiting)
	}
}

func TestUpdatesAreRefusedWithWhatToDo(t *testing.T) {
	o := &outside{fails: map[string]error{"CheckClusters cluster2": failure.Permanent(failure.Unavailable, "away")}}
	env := newRun(t, o)
	cases := []struct{ update, input, says string }{
		{procedure.RetryUpdate, `{"clusters":["cluster9"]}`, `"cluster9" is no cluster of this procedure (parked: cluster2)`},
		{procedure.RetryUpdate, `{"cluster":"cluster2"}`, `did you mean "clusters"`},
		{procedure.SkipUpdate, `{"clusters":["cluster2"]}`, "reason: is missing"},
		{procedure.SkipUpdate, `{"reason":"x"}`, "clusters: is empty"},
		{procedure.SkipUpdate, `{"clusters":["cluster1"],"reason":"x"}`, `"cluster1" is done`},
		{procedure.PauseUpdate, `{}`, "reason: is missing"},
		{procedure.SetParallelismUpdate, `{"parallelism":0}`, "0 is not between 1 and 100"},
		{procedure.AbortUpdate, `{}`, "reason: is missing"},
	}
	var refused []*answers
	for _, c := range cases {
		refused = append(refused, later(t, env, c.update, c.input))
	}
	// To repeat what has been said, or to retry what is done, does no harm.
	var twice answers
	env.RegisterDelayedCallback(func() {
		for range 2 {
			twice.send(t, env, procedure.RetryUpdate, `{"clusters":["cluster1","cluster2"]}`)
		}
	}, 2*time.Hour)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: spec}, nil)
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		if got := strings.Join(refused[i].refusals, ""); !strings.Contains(got, c.says) || len(refused[i].standings) > 0 {
			t.Errorf("%s %s: %q, want %q", c.update, c.input, got, c.says)
		}
	}
	if len(twice.standings)+len(twice.refusals) != 2 || len(twice.refusals) > 0 {
		t.Errorf("retry twice: %+v", twice)
	}
	if n := o.count("ApplyCertificate cluster1"); n != 1 {
		t.Errorf("cluster1 was done %d times", n)
	}
}

// A fleet that is too long for one history is continued as new between two
// clusters, with what is done, parked and said.
func TestLongFleetIsContinuedAsNew(t *testing.T) {
	long := spec
	long.Workloads = append(slices.Clone(spec.Workloads), mesh.Workload{Name: "cluster3"}, mesh.Workload{Name: "cluster4"})
	long.Rollout.Parallelism = 1
	o := &outside{fails: map[string]error{"InstallChart cluster1": failure.Permanent(failure.Conflict, "a foreign release")}}
	env := newRun(t, o)
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
	if o.count("ReleaseLock mgmtrelaypki-demo-ca") != 0 {
		t.Error("the lock was given back in between")
	}
	var in procedure.SetupInput
	var state longSetup
	if err := converter.GetDefaultDataConverter().FromPayloads(again.Input, &in, &state); err != nil {
		t.Fatal(err)
	}

	rest := &outside{record: o.record}
	env = newRun(t, rest)
	env.SetContinuedExecutionRunID("the first run")
	later(t, env, procedure.RetryUpdate, `{}`)
	env.ExecuteWorkflow(SetupMesh, in, &state)
	var result procedure.SetupResult
	if err := env.GetWorkflowResult(&result); err != nil {
		t.Fatal(err)
	}
	if len(result.Clusters) != 4 || rest.count("ApplyCertificate cluster2") != 0 || rest.count("EnablePKI") != 0 || rest.count("ApplyCertificate cluster1") != 1 {
		t.Errorf("%d clusters in the result; the continued run called %q", len(result.Clusters), rest.calls)
	}
	if rest.count("ReleaseLock mgmtrelaypki-demo-ca") != 1 || !rest.record.Complete {
		t.Errorf("the lock was not given back, or the mesh not recorded: %q", rest.calls)
	}
}

func TestTableForManyClusters(t *testing.T) {
	var clusters []procedure.ClusterProgress
	for i := range 200 {
		state := procedure.UpToDate
		if i == 150 {
			state = procedure.Parked
		}
		clusters = append(clusters, procedure.ClusterProgress{Cluster: fmt.Sprintf("c%d", i), State: state})
	}
	shown, hidden := urgent(clusters, 10)
	if len(shown) != 10 || shown[0].Cluster != "c150" || hidden != "190 more up to date" {
		t.Errorf("shown first %s, %d in all, hidden %q", shown[0].Cluster, len(shown), hidden)
	}
	if shown, hidden := urgent(clusters[:10], 10); len(shown) != 10 || hidden != "" {
		t.Errorf("%d shown, hidden %q", len(shown), hidden)
	}
}
