package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/mocks"
	"go.temporal.io/sdk/temporal"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/relaypki/relaypki/internal/procedure"
)

// listed is a run as Temporal lists it.
func listed(t *testing.T, id, name, mesh string, running bool) *workflowpb.WorkflowExecutionInfo {
	t.Helper()
	info := &workflowpb.WorkflowExecutionInfo{
		Execution: &commonpb.WorkflowExecution{WorkflowId: id, RunId: "run-of-" + id}, Type: &commonpb.WorkflowType{Name: name},
		StartTime: timestamppb.New(noon), Status: enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING, TaskQueue: "relaypki",
	}
	if !running {
		info.Status, info.CloseTime = enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED, timestamppb.New(noon.Add(time.Minute))
	}
	if mesh != "" {
		payload, err := converter.GetDefaultDataConverter().ToPayload(mesh)
		if err != nil {
			t.Fatal(err)
		}
		info.SearchAttributes = &commonpb.SearchAttributes{IndexedFields: map[string]*commonpb.Payload{procedure.AttributeMesh: payload}}
	}
	return info
}

// listing is a Temporal that has these runs, whatever it is asked for.
func listing(runs ...*workflowpb.WorkflowExecutionInfo) (*server, *mocks.Client) {
	m := &mocks.Client{}
	for _, types := range [][]string{changing, routine} {
		var of []*workflowpb.WorkflowExecutionInfo
		for _, run := range runs {
			for _, name := range types {
				if run.GetType().GetName() == name {
					of = append(of, run)
				}
			}
		}
		m.On("ListWorkflow", mock.Anything, mock.MatchedBy(func(r *workflowservice.ListWorkflowExecutionsRequest) bool {
			return strings.Contains(r.GetQuery(), "'"+types[0]+"'")
		})).Return(&workflowservice.ListWorkflowExecutionsResponse{Executions: of}, nil)
	}
	return &server{Client: m, address: "127.0.0.1:7233", namespace: "default"}, m
}

func TestSteered(t *testing.T) {
	setup := listed(t, "setup-demo", procedure.SetupMesh, "demo", true)
	add := listed(t, "add-demo-c9", procedure.AddCluster, "demo", true)
	verify := listed(t, "verify-demo-20260301T120000.123Z", procedure.VerifyMesh, "demo", true)
	tests := []struct {
		name, want string
		runs       []*workflowpb.WorkflowExecutionInfo
		refusal    []string
	}{
		{"the only one", "setup-demo", []*workflowpb.WorkflowExecutionInfo{setup, verify}, nil},
		{"none", "", []*workflowpb.WorkflowExecutionInfo{verify, listed(t, "add-demo-c1", procedure.AddCluster, "demo", false)},
			[]string{"no procedure of mesh demo is running", "relaypki status demo"}},
		{"two", "", []*workflowpb.WorkflowExecutionInfo{add, setup},
			[]string{"say which:\n  add-demo-c9 (AddCluster", "\n  setup-demo (SetupMesh", "relaypki retry demo --workflow add-demo-c9"}},
		{"of a mesh whose name goes on", "", []*workflowpb.WorkflowExecutionInfo{listed(t, "add-demo-2-c1", procedure.AddCluster, "demo-2", true)},
			[]string{"no procedure of mesh demo is running"}},
		{"a plan", "", []*workflowpb.WorkflowExecutionInfo{listed(t, "plan-setup-demo", procedure.SetupMesh, "demo", true)},
			[]string{"no procedure of mesh demo is running"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			temporal, _ := listing(test.runs...)
			c := &cli{name: "relaypki", args: []string{"retry", "demo"}}
			run, err := c.steered(t.Context(), temporal, "demo", "")
			if run.WorkflowID != test.want || (err == nil) != (test.refusal == nil) {
				t.Fatalf("steered %q, %v; want %q", run.WorkflowID, err, test.want)
			}
			var exit *exitError
			if errors.As(err, &exit) {
				if exit.code != exitBadInput {
					t.Errorf("exit code %d", exit.code)
				}
				for _, want := range test.refusal {
					if said := exit.Error() + "\nNext: " + exit.next; !strings.Contains(said, want) {
						t.Errorf("lacks %q:\n%s", want, said)
					}
				}
			}
		})
	}
}

func TestSteeredByWorkflow(t *testing.T) {
	tests := []struct {
		name    string
		run     *workflowpb.WorkflowExecutionInfo
		err     error
		refusal string
	}{
		{"running", listed(t, "mine", procedure.SetupMesh, "demo", true), nil, ""},
		{"ended", listed(t, "mine", procedure.SetupMesh, "demo", false), nil, "not running: it is completed"},
		{"of another mesh", listed(t, "mine", procedure.SetupMesh, "prod", true), nil, `of mesh "prod", not of demo`},
		{"not there", nil, serviceerror.NewNotFound("no"), `no workflow "mine"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			temporal, m := listing()
			m.On("DescribeWorkflowExecution", mock.Anything, "mine", "").Return(&workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: test.run}, test.err)
			_, err := (&cli{name: "relaypki"}).steered(t.Context(), temporal, "demo", "mine")
			if (err == nil) != (test.refusal == "") || err != nil && !strings.Contains(err.Error(), test.refusal) {
				t.Errorf("got %v, want %q", err, test.refusal)
			}
		})
	}
}

// answer is a handle of an update that has been answered.
func answer(standing procedure.Standing, err error) client.WorkflowUpdateHandle {
	h := &mocks.WorkflowUpdateHandle{}
	h.On("Get", mock.Anything, mock.Anything).Run(func(args mock.Arguments) {
		*args.Get(1).(*procedure.Standing) = standing
	}).Return(err)
	return h
}

var parkedStanding = procedure.Standing{
	Procedure: "SetupMesh", Mesh: "demo", Phase: "workload clusters", Parallelism: 10, Paused: "freeze",
	Count:  map[procedure.State]int{procedure.Done: 48, procedure.Parked: 1, procedure.Running: 1},
	Parked: []procedure.ClusterProgress{{Cluster: "cluster2", State: procedure.Parked, Detail: "the API server\ncannot be reached"}},
}

func TestSteer(t *testing.T) {
	rejected := temporal.NewApplicationError(`clusters[0]: "cluster9" is no cluster of this procedure (parked: cluster2)`, "")
	tests := []struct {
		name   string
		handle client.WorkflowUpdateHandle
		err    error
		code   int
		want   []string // on either output
	}{
		{"answered", answer(parkedStanding, nil), nil, 0, []string{
			"SetupMesh demo: workload clusters, 10 clusters at once", "clusters: 48 done, 1 running, 1 parked", "paused: freeze",
			"cluster2 parked: the API server cannot be reached",
			"Next: relaypki resume demo\n      relaypki retry demo cluster2\n      relaypki skip demo cluster2 --reason WHY\n      relaypki abort demo --reason WHY\n      relaypki watch setup-demo"}},
		{"refused", answer(procedure.Standing{}, rejected), nil, exitBadInput, []string{
			`workflow setup-demo refuses the retry: clusters[0]: "cluster9" is no cluster`, "relaypki watch setup-demo"}},
		{"refused at once", nil, rejected, exitBadInput, []string{"refuses the retry"}},
		{"unknown there", nil, temporal.NewApplicationError("unknown update retry. KnownUpdates=[]", ""), exitBadInput, []string{"SetupMesh (workflow setup-demo) takes no retry"}},
		{"ended meanwhile", nil, serviceerror.NewNotFound("workflow execution already completed"), exitBadInput, []string{"no longer running", "relaypki status demo"}},
		{"ended before the answer", answer(procedure.Standing{}, temporal.NewApplicationError("Workflow Update failed", endedFirst)), nil, 0,
			[]string{"ended before it could answer", "relaypki watch setup-demo"}},
		{"Temporal refuses", nil, serviceerror.NewPermissionDenied("no", ""), exitUnreachable, []string{"TEMPORAL_API_KEY"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := &mocks.Client{}
			m.On("UpdateWorkflow", mock.Anything, mock.Anything).Return(test.handle, test.err)
			var out bytes.Buffer
			c := &cli{out: &out, err: &out, name: "relaypki", output: "text", args: []string{"retry", "demo"}}
			code := c.end(c.steer(t.Context(), &server{Client: m, cli: c}, execution{WorkflowID: "setup-demo", Procedure: procedure.SetupMesh}, order{mesh: "demo", update: procedure.RetryUpdate, verb: "retry", in: procedure.RetryInput{}}))
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			for _, want := range test.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("lacks %q:\n%s", want, out.String())
				}
			}
			endsWithACommand(t, out.String())
		})
	}
}

// A try whose answer was lost is made again as the same update, so that the
// procedure takes it once.
func TestSteerThroughAnOutage(t *testing.T) {
	m := &mocks.Client{}
	var ids []string
	options := mock.MatchedBy(func(o client.UpdateWorkflowOptions) bool {
		ids = append(ids, o.UpdateID)
		return o.WaitForStage == client.WorkflowUpdateStageCompleted && o.UpdateName == procedure.PauseUpdate && o.FirstExecutionRunID == "first"
	})
	m.On("UpdateWorkflow", mock.Anything, options).Return(nil, serviceerror.NewUnavailable("gone")).Once()
	m.On("UpdateWorkflow", mock.Anything, options).Return(answer(parkedStanding, nil), nil).Once()
	var out bytes.Buffer
	c := &cli{out: &out, err: &out, name: "relaypki", output: "json"}
	err := c.steer(t.Context(), &server{Client: m}, execution{WorkflowID: "setup-demo", first: "first"}, order{mesh: "demo", update: procedure.PauseUpdate, in: procedure.PauseInput{Reason: "freeze"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(ids) < 2 || ids[0] == "" || ids[0] != ids[len(ids)-1] {
		t.Errorf("update ids %q are not one", ids)
	}
	var document struct {
		WorkflowID, Mesh, Paused string
		Parked                   []procedure.ClusterProgress
	}
	if err := json.Unmarshal(out.Bytes(), &document); err != nil || document.WorkflowID != "setup-demo" || document.Paused != "freeze" || len(document.Parked) != 1 {
		t.Errorf("document %+v, %v:\n%s", document, err, out.String())
	}
}

// Without a worker the command says so and waits; Ctrl-C ends the waiting.
func TestSteerWithoutAWorker(t *testing.T) {
	m := &mocks.Client{}
	m.On("UpdateWorkflow", mock.Anything, mock.Anything).Return(nil, context.Canceled).Run(func(args mock.Arguments) { <-args.Get(0).(context.Context).Done() })
	m.On("DescribeTaskQueue", mock.Anything, "relaypki", enumspb.TASK_QUEUE_TYPE_WORKFLOW).Return(&workflowservice.DescribeTaskQueueResponse{}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), noticeAfter+noticeAfter/2)
	defer cancel()
	var out bytes.Buffer
	c := &cli{out: &out, err: &out, name: "relaypki", output: "text"}
	code := c.end(c.steer(ctx, &server{Client: m}, execution{WorkflowID: "setup-demo", taskQueue: "relaypki"}, order{mesh: "demo", update: procedure.RetryUpdate, verb: "retry", in: procedure.RetryInput{}}))
	if code != exitInterrupted {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"waiting for a worker on task queue relaypki (none is there; start relaypki-worker); Ctrl-C stops the waiting", "it may still take the retry", "relaypki watch setup-demo"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("lacks %q:\n%s", want, out.String())
		}
	}
}

func TestSteeringInput(t *testing.T) {
	t.Setenv("TEMPORAL_ADDRESS", "127.0.0.1:1") // nothing below gets so far
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"skip", "demo", "cluster2"}, "Next: relaypki skip demo cluster2 --reason WHY"},
		{[]string{"pause", "demo", "--reason", " "}, "it takes a reason"},
		{[]string{"abort", "demo"}, "Next: relaypki abort demo --reason WHY"},
		{[]string{"set-parallelism", "demo", "many"}, `"many" is not a number`},
		{[]string{"set-parallelism", "demo", "0"}, `Next: relaypki set-parallelism demo 10`},
		{[]string{"retry", "x' OR 'a'='a"}, "not the name of a mesh"},
		{[]string{"skip", "demo"}, "Next: relaypki skip --help"},
	}
	for _, test := range tests {
		var out, errOut bytes.Buffer
		if code := run(t.Context(), test.args, &out, &errOut); code != exitBadInput || !strings.Contains(errOut.String(), test.want) {
			t.Errorf("%v: exit code %d, want %d with %q:\n%s", test.args, code, exitBadInput, test.want, errOut.String())
		}
		endsWithACommand(t, errOut.String())
	}
}

func TestRemedies(t *testing.T) {
	c := &cli{name: "relaypki"}
	if got := c.remedies(procedure.SetupMesh, "demo", "", nil); len(got) != 0 {
		t.Errorf("nothing is to be done, but: %q", got)
	}
	many := make([]procedure.ClusterProgress, procedure.ManyParked)
	if got := c.remedies(procedure.SetupMesh, "demo", "", many); got[0] != "relaypki retry demo" || got[1] != "relaypki skip demo CLUSTER... --reason WHY" {
		t.Errorf("with many clusters: %q", got)
	}
}

// What neither a search attribute nor an id tells is in the input.
func TestMeshOfInput(t *testing.T) {
	temporal, m := listing(listed(t, "add-a-b-c", procedure.AddCluster, "", false), listed(t, "tuesday", procedure.SetupMesh, "", false), listed(t, "setup-x", procedure.SetupMesh, "", false))
	for id, input := range map[string]string{"add-a-b-c": `{"mesh":"a-b","name":"c"}`, "tuesday": `{"mesh":"a"}`} {
		events := &mocks.HistoryEventIterator{}
		events.On("HasNext").Return(true)
		events.On("Next").Return(&historypb.HistoryEvent{Attributes: &historypb.HistoryEvent_WorkflowExecutionStartedEventAttributes{
			WorkflowExecutionStartedEventAttributes: &historypb.WorkflowExecutionStartedEventAttributes{
				Input: &commonpb.Payloads{Payloads: []*commonpb.Payload{{Data: []byte(input)}}},
			}}}, nil)
		m.On("GetWorkflowHistory", mock.Anything, id, mock.Anything, mock.Anything, mock.Anything).Return(events)
	}
	all, err := temporal.procedures(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if want := map[string]string{"add-a-b-c": "a-b", "tuesday": "a", "setup-x": "x"}[e.WorkflowID]; e.Mesh != want {
			t.Errorf("%s is of mesh %q, want %q", e.WorkflowID, e.Mesh, want)
		}
	}
	of, err := temporal.procedures(t.Context(), "a", "")
	if err != nil || len(of) != 1 || of[0].WorkflowID != "tuesday" {
		t.Errorf("of mesh a: %+v, %v", of, err)
	}
}

// The routine does not push out of the list what a person is to look at.
func TestRoutineIsShort(t *testing.T) {
	ended := noon
	var all []execution
	for range 10 {
		all = append(all, execution{Procedure: procedure.VerifyMesh, Ended: &ended})
	}
	all = append(all, execution{Procedure: procedure.SetupMesh, Ended: &ended}, execution{Procedure: procedure.VerifyMesh}, execution{Procedure: procedure.VerifyMesh, child: true})
	if list := shown(all); len(list) != routineShown+2 {
		t.Errorf("%d are shown: %+v", len(list), list)
	}
}

func TestLikeliest(t *testing.T) {
	ended := noon
	verify := execution{WorkflowID: "verify", Procedure: procedure.VerifyMesh}
	setup := execution{WorkflowID: "setup", Procedure: procedure.SetupMesh}
	child := execution{WorkflowID: "setup/verify", Procedure: procedure.VerifyMesh, child: true}
	past := func(e execution) execution { e.Ended = &ended; return e }
	older := execution{WorkflowID: "older", Procedure: procedure.SetupMesh, Ended: &ended}
	for _, test := range []struct {
		runs []execution // the latest first
		want string
	}{
		{[]execution{verify, setup}, "setup"},
		{[]execution{child, past(verify), setup}, "setup"},
		{[]execution{verify, past(setup)}, "verify"},
		{[]execution{past(verify), past(setup), older}, "setup"},
		{[]execution{past(verify)}, "verify"},
		{[]execution{child}, ""},
	} {
		if got, _ := likeliest(test.runs); got.WorkflowID != test.want {
			t.Errorf("of %+v: %q, want %q", test.runs, got.WorkflowID, test.want)
		}
	}
}
