package temporal

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/mocks"
	"go.temporal.io/sdk/testsuite"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// inActivity calls f as an activity is called.
func inActivity[T any](t *testing.T, f func(context.Context) (T, error)) (T, error) {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	env.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: "act"})
	var result T
	answer, err := env.ExecuteActivity("act")
	if err == nil {
		err = answer.Get(&result)
	}
	return result, err
}

// paused is a schedule of a mesh as far as it matters here: nil for one that there is not.
type paused struct {
	paused bool
	note   string
}

func TestFreezeSchedules(t *testing.T) {
	ours := "relaypki: paused for incident INC-7: the root's key has leaked"
	for name, test := range map[string]struct {
		thaw bool
		mode procedure.Mode
		have map[string]paused
		// want are the notes of what is paused, or goes on, by schedule.
		pause, unpause map[string]string
		changed        int
	}{
		"all of the mesh": {mode: procedure.Apply, have: map[string]paused{"verify": {}, "refresh": {note: "resumed"}, "maintain": {}},
			pause: map[string]string{"verify": ours, "refresh": ours, "maintain": ours}, changed: 3},
		"an operator's pause stays theirs": {mode: procedure.Apply, have: map[string]paused{"verify": {true, "change freeze"}, "maintain": {}},
			pause: map[string]string{"maintain": ours}, changed: 1},
		"frozen already": {mode: procedure.Apply, have: map[string]paused{"verify": {true, ours}, "refresh": {true, ours}, "maintain": {true, ours}}},
		"none there":     {mode: procedure.Apply},
		"a look ahead":   {mode: procedure.Observe, have: map[string]paused{"verify": {}}, changed: 1},
		"thaw": {thaw: true, mode: procedure.Apply, have: map[string]paused{"verify": {true, "change freeze"}, "refresh": {true, "relaypki: paused for incident INC-6: one before"}, "maintain": {true, ours}},
			unpause: map[string]string{"refresh": "resumed after incident INC-7", "maintain": "resumed after incident INC-7"}, changed: 2},
		"thawed already":        {thaw: true, mode: procedure.Apply, have: map[string]paused{"verify": {}, "maintain": {false, ours}}},
		"a look ahead at thaw":  {thaw: true, mode: procedure.Plan, have: map[string]paused{"maintain": {true, ours}}, changed: 1},
		"thaw where there none": {thaw: true, mode: procedure.Apply},
	} {
		t.Run(name, func(t *testing.T) {
			schedules := &mocks.ScheduleClient{}
			pause, unpause := map[string]string{}, map[string]string{}
			for _, id := range []string{"verify", "refresh", "maintain"} {
				handle := &mocks.ScheduleHandle{}
				schedules.On("GetHandle", mock.Anything, "relaypki-"+id+"-demo").Return(handle)
				if have, ok := test.have[id]; ok {
					handle.On("Describe", mock.Anything).Return(&client.ScheduleDescription{Schedule: client.Schedule{State: &client.ScheduleState{Paused: have.paused, Note: have.note}}}, nil)
				} else {
					handle.On("Describe", mock.Anything).Return(nil, serviceerror.NewNotFound("none"))
				}
				handle.On("Pause", mock.Anything, mock.Anything).Return(nil).Run(func(args mock.Arguments) { pause[id] = args.Get(1).(client.SchedulePauseOptions).Note })
				handle.On("Unpause", mock.Anything, mock.Anything).Return(nil).Run(func(args mock.Arguments) { unpause[id] = args.Get(1).(client.ScheduleUnpauseOptions).Note })
			}
			out, err := freeze(t.Context(), schedules, FreezeInput{Mesh: "demo", Incident: "INC-7", Reason: "the root's key has leaked", Thaw: test.thaw, Mode: test.mode})
			if err != nil {
				t.Fatal(err)
			}
			same := func(got, want map[string]string) bool {
				return len(got) == 0 && len(want) == 0 || reflect.DeepEqual(got, want)
			}
			if !same(pause, test.pause) || !same(unpause, test.unpause) || len(out.Changes) != test.changed {
				t.Errorf("paused %q, went on %q, changes %v; want %q, %q, %d", pause, unpause, out.Changes, test.pause, test.unpause, test.changed)
			}
		})
	}
}

func TestFreezeSchedulesSaysWhatFailed(t *testing.T) {
	schedules, handle := &mocks.ScheduleClient{}, &mocks.ScheduleHandle{}
	schedules.On("GetHandle", mock.Anything, mock.Anything).Return(handle)
	handle.On("Describe", mock.Anything).Return(&client.ScheduleDescription{Schedule: client.Schedule{State: &client.ScheduleState{}}}, nil)
	handle.On("Pause", mock.Anything, mock.Anything).Return(serviceerror.NewPermissionDenied("no", ""))
	_, err := freeze(t.Context(), schedules, FreezeInput{Mesh: "demo", Incident: "INC-7", Reason: "why", Mode: procedure.Apply})
	if failure.KindOf(err) != failure.Denied || !strings.Contains(err.Error(), "relaypki-verify-demo") {
		t.Errorf("%v", err)
	}
}

// runs is a Temporal with these runs, by workflow id. How one takes its abort update
// is its own matter.
type runs struct {
	mocks.Client
	all        map[string]*fakeRun
	asked      []client.UpdateWorkflowOptions
	terminated []string
}

type fakeRun struct {
	procedure string
	status    enumspb.WorkflowExecutionStatus
	firstRun  string
	closed    time.Time
	// update is the answer to the abort update, looks how often the run is seen open
	// after it.
	update error
	looks  int
	ending bool
}

const (
	running   = enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING
	completed = enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED
)

func (s *runs) DescribeWorkflowExecution(_ context.Context, id, _ string) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	r := s.all[id]
	if r == nil {
		return nil, serviceerror.NewNotFound("none")
	}
	if r.ending {
		if r.looks--; r.looks < 0 {
			r.status = enumspb.WORKFLOW_EXECUTION_STATUS_FAILED
		}
	}
	return &workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: &workflowpb.WorkflowExecutionInfo{
		Status: r.status, Execution: &commonpb.WorkflowExecution{WorkflowId: id, RunId: "run-of-" + id}, FirstRunId: r.firstRun,
		Type: &commonpb.WorkflowType{Name: r.procedure}, CloseTime: timestamppb.New(r.closed),
	}}, nil
}

func (s *runs) UpdateWorkflow(_ context.Context, o client.UpdateWorkflowOptions) (client.WorkflowUpdateHandle, error) {
	s.asked = append(s.asked, o)
	r := s.all[o.WorkflowID]
	if r.update != nil {
		return nil, r.update
	}
	r.ending = true
	handle := &mocks.WorkflowUpdateHandle{}
	handle.On("Get", mock.Anything, nil).Return(nil)
	return handle, nil
}

func (s *runs) TerminateWorkflow(_ context.Context, id, run, reason string, _ ...any) error {
	s.terminated = append(s.terminated, id+" "+run+" "+reason)
	s.all[id].ending = true
	return nil
}

func TestTakeOver(t *testing.T) {
	const self = "default-test-workflow-id" // as the test's Temporal names the run
	for name, test := range map[string]struct {
		all     map[string]*fakeRun
		holders []string
		mode    procedure.Mode
		ended   []string
		locked  string
	}{
		"nobody": {mode: procedure.Apply},
		"one of each": {mode: procedure.Apply, all: map[string]*fakeRun{
			"rotate-leaf-demo":         {procedure: procedure.RotateLeafCertificates, status: running},
			"rotate-intermediate-demo": {procedure: procedure.RotateIntermediateCA, status: running, looks: 2},
			"rotate-root-demo":         {procedure: procedure.RotateRootCA, status: enumspb.WORKFLOW_EXECUTION_STATUS_PAUSED},
			"rotate-root-demo2":        {procedure: procedure.RotateRootCA, status: running},
		}, ended: []string{"rotate-leaf-demo", "rotate-intermediate-demo", "rotate-root-demo"}},
		"one that has ended": {mode: procedure.Apply, all: map[string]*fakeRun{"rotate-root-demo": {procedure: procedure.RotateRootCA, status: completed}},
			holders: []string{"default-test-namespace/rotate-root-demo/first"}},
		"a holder of another name": {mode: procedure.Apply, all: map[string]*fakeRun{"by/hand": {procedure: procedure.RotateRootCA, status: running, firstRun: "first"}},
			holders: []string{"default-test-namespace/by/hand/first"}, ended: []string{"by/hand"}},
		"a holder by its id alone": {mode: procedure.Apply, all: map[string]*fakeRun{"mine": {procedure: procedure.RotateLeafCertificates, status: running, firstRun: "first"}},
			holders: []string{"mine", "mine"}, ended: []string{"mine"}},
		"the holder's id is another run's by now": {mode: procedure.Apply, all: map[string]*fakeRun{"mine": {procedure: procedure.RotateRootCA, status: running, firstRun: "second"}},
			holders: []string{"default-test-namespace/mine/first"}},
		"a holder in another namespace": {mode: procedure.Apply, all: map[string]*fakeRun{"mine": {procedure: procedure.RotateRootCA, status: running}},
			holders: []string{"elsewhere/mine/first"}},
		"this run itself": {mode: procedure.Apply, all: map[string]*fakeRun{self: {procedure: procedure.EmergencyReissue, status: running}},
			holders: []string{"default-test-namespace/" + self + "/first"}},
		"a setup": {mode: procedure.Apply, all: map[string]*fakeRun{
			"rotate-leaf-demo": {procedure: procedure.RotateLeafCertificates, status: running},
			"setup-demo":       {procedure: procedure.SetupMesh, status: running},
		}, holders: []string{"default-test-namespace/setup-demo/first"}, locked: `"setup-demo"`},
		"a setup that has ended": {mode: procedure.Apply, all: map[string]*fakeRun{"setup-demo": {procedure: procedure.SetupMesh, status: completed}},
			holders: []string{"default-test-namespace/setup-demo/first"}},
		"somebody else's run of our id": {mode: procedure.Observe, all: map[string]*fakeRun{"rotate-root-demo": {procedure: "Backup", status: running}}, locked: "Backup"},
		"a look ahead": {mode: procedure.Observe, all: map[string]*fakeRun{"rotate-root-demo": {procedure: procedure.RotateRootCA, status: running}},
			ended: []string{"rotate-root-demo"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &runs{all: test.all}
			result, err := inActivity(t, func(ctx context.Context) (TakeOverResult, error) {
				in := TakeOverInput{Mesh: "demo", Reason: "incident INC-7", Holders: test.holders, Mode: test.mode}
				return takeover{Client: s, info: activity.GetInfo(ctx), reason: in.Reason, within: time.Hour, every: time.Millisecond}.all(ctx, in)
			})
			if test.locked != "" {
				if failure.KindOf(err) != failure.Locked || !failure.IsPermanent(err) || !strings.Contains(err.Error(), test.locked) || len(s.asked) > 0 {
					t.Errorf("%v; asked %v", err, s.asked)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(result.Ended, test.ended) || len(result.Changes) != len(test.ended) || len(s.terminated) > 0 {
				t.Errorf("ended %q, changes %v, terminated %q; want %q", result.Ended, result.Changes, s.terminated, test.ended)
			}
			if !test.mode.Writes() {
				if len(s.asked) > 0 {
					t.Errorf("asked %+v in a look ahead", s.asked)
				}
				return
			}
			for n, o := range s.asked {
				if o.WorkflowID != test.ended[n] || o.UpdateName != procedure.AbortUpdate || !reflect.DeepEqual(o.Args, []any{procedure.AbortInput{Reason: "incident INC-7"}}) || o.FirstExecutionRunID != s.all[o.WorkflowID].firstRun {
					t.Errorf("asked %+v", o)
				}
			}
			for _, id := range test.ended {
				if s.all[id].status == running {
					t.Errorf("%s is at work still", id)
				}
			}
		})
	}
}

// A try that was cut off has ended some: the next one says so as well.
func TestTakeOverAgain(t *testing.T) {
	asked := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := &runs{all: map[string]*fakeRun{
		"rotate-leaf-demo": {procedure: procedure.RotateLeafCertificates, status: completed, closed: asked.Add(-time.Second)},
		"rotate-root-demo": {procedure: procedure.RotateRootCA, status: completed, closed: asked.Add(time.Second)},
	}}
	for attempt, want := range []int{1: 0, 2: 1} {
		if attempt == 0 {
			continue
		}
		found, err := takeover{Client: s, info: activity.Info{Attempt: int32(attempt), ScheduledTime: asked}}.atWork(t.Context(), TakeOverInput{Mesh: "demo"})
		if err != nil || len(found) != want || want > 0 && found[0].id != "rotate-root-demo" {
			t.Errorf("attempt %d: %+v, %v", attempt, found, err)
		}
	}
}

// What is not answered in time, or refused all that time, ends the hard way; what has
// ended by itself meanwhile does not.
func TestTakeOverOfWhatDoesNotAnswer(t *testing.T) {
	refused := errors.New("unknown update abort")
	for name, test := range map[string]struct {
		run    fakeRun
		within time.Duration
		err    failure.Kind
		kill   bool
	}{
		"no answer":                {run: fakeRun{status: running, update: refused}, within: 20 * time.Millisecond, kill: true},
		"ended by itself":          {run: fakeRun{status: running, update: refused, ending: true, looks: 3}, within: time.Hour},
		"another chain of runs":    {run: fakeRun{status: running, update: refused, firstRun: "second"}, within: time.Hour},
		"we may not abort it":      {run: fakeRun{status: running, update: serviceerror.NewPermissionDenied("no", "")}, within: time.Hour, err: failure.Denied},
		"answered, and takes time": {run: fakeRun{status: running, looks: 50}, within: 20 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			s := &runs{all: map[string]*fakeRun{"rotate-root-demo": &test.run}}
			if test.run.firstRun == "" {
				test.run.firstRun = "first"
			}
			_, err := inActivity(t, func(ctx context.Context) (struct{}, error) {
				return struct{}{}, takeover{Client: s, reason: "why", within: test.within, every: time.Millisecond}.end(ctx, execution{id: "rotate-root-demo", firstRun: "first"})
			})
			if failure.KindOf(err) != test.err || (err == nil) != (test.err == "") {
				t.Errorf("%v", err)
			}
			var want []string
			if test.kill {
				want = []string{"rotate-root-demo run-of-rotate-root-demo why"}
			}
			if !slices.Equal(s.terminated, want) {
				t.Errorf("terminated %q, want %q", s.terminated, want)
			}
		})
	}
}
