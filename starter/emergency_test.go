package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	commonpb "go.temporal.io/api/common/v1"
	historypb "go.temporal.io/api/history/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/mocks"
	"google.golang.org/grpc"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rotation"
)

// frontend is a Temporal that has some runs, and notes what is started.
type frontend struct {
	workflowservice.UnimplementedWorkflowServiceServer
	runs    []*workflowpb.WorkflowExecutionInfo
	started chan *workflowservice.StartWorkflowExecutionRequest
}

// ListWorkflowExecutions has the runs of the types that are asked for.
func (f *frontend) ListWorkflowExecutions(_ context.Context, r *workflowservice.ListWorkflowExecutionsRequest) (*workflowservice.ListWorkflowExecutionsResponse, error) {
	found := slices.DeleteFunc(slices.Clone(f.runs), func(run *workflowpb.WorkflowExecutionInfo) bool {
		return !strings.Contains(r.GetQuery(), "'"+run.GetType().GetName()+"'")
	})
	return &workflowservice.ListWorkflowExecutionsResponse{Executions: found}, nil
}

func (*frontend) GetSystemInfo(context.Context, *workflowservice.GetSystemInfoRequest) (*workflowservice.GetSystemInfoResponse, error) {
	return &workflowservice.GetSystemInfoResponse{}, nil
}

func (f *frontend) StartWorkflowExecution(_ context.Context, r *workflowservice.StartWorkflowExecutionRequest) (*workflowservice.StartWorkflowExecutionResponse, error) {
	f.started <- r
	return &workflowservice.StartWorkflowExecutionResponse{RunId: "run"}, nil
}

// starts is a Temporal with these runs that is found by the environment, and what is
// started on it.
func starts(t *testing.T, runs ...*workflowpb.WorkflowExecutionInfo) <-chan *workflowservice.StartWorkflowExecutionRequest {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &frontend{runs: runs, started: make(chan *workflowservice.StartWorkflowExecutionRequest, 1)}
	s := grpc.NewServer()
	workflowservice.RegisterWorkflowServiceServer(s, f)
	go func() { _ = s.Serve(listener) }() // until Stop
	t.Cleanup(s.Stop)
	t.Setenv("TEMPORAL_ADDRESS", listener.Addr().String())
	return f.started
}

// What a command says is what the procedure is asked for, under the mesh's one id.
func TestEmergencyStarts(t *testing.T) {
	const why = ` --reason leaked --incident INC-7`
	for words, want := range map[string]struct{ id, input string }{
		"emergency leaf demo cluster2 cluster3 --yes" + why: {"emergency-demo", `"compromised":"leaf","clusters":["cluster2","cluster3"]`},
		"emergency leaf demo cluster2 --distrust --first containment --yes" + why: {"emergency-demo",
			`"compromised":"leaf","clusters":["cluster2"],"distrust":true,"first":"containment"`},
		"emergency intermediate demo --first availability --yes" + why: {"emergency-demo", `"compromised":"intermediate","first":"availability"`},
		"emergency root demo --first containment --yes" + why:          {"emergency-demo", `"compromised":"root","first":"containment"`},
		"emergency lift demo --yes" + why:                              {"emergency-demo", `"lift":true,"compromised":""`},
		"emergency lift demo --exposed-ok --yes" + why:                 {"emergency-demo", `"lift":true,"compromised":"","exposed":true`},
		// Nothing is asked for a plan: it changes nothing.
		"emergency root demo --first containment --plan" + why: {"plan-emergency-demo", `"compromised":"root","first":"containment","plan":true`},
	} {
		started := starts(t)
		var out, errOut bytes.Buffer
		if code := run(t.Context(), append(strings.Fields(words), "--detach"), &out, &errOut); code != 0 {
			t.Errorf("%s: exit code %d: %s", words, code, errOut.String())
			continue
		}
		r := <-started
		input := r.GetInput().GetPayloads()[0].GetData()
		if r.GetWorkflowId() != want.id || r.GetWorkflowType().GetName() != "EmergencyReissue" ||
			!sameJSON(input, []byte(`{"mesh":"demo","reason":"leaked","incident":"INC-7",`+want.input+`}`)) {
			t.Errorf("%s: %s as %s with %s", words, r.GetWorkflowType().GetName(), r.GetWorkflowId(), input)
		}
		if !strings.Contains(out.String(), "Next: relaypki watch "+want.id) {
			t.Errorf("%s: it says\n%s", words, out.String())
		}
	}
}

// All that is wrong with a command is said at once, before Temporal is asked for
// anything, and it ends with a command.
func TestEmergencyRefuses(t *testing.T) {
	t.Setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
	const why = " --reason leaked --incident INC-7"
	for _, test := range []struct {
		words string
		says  []string
	}{
		{"emergency root Demo --first soon", []string{"4 problems; nothing was started", "reason: is missing", "incident: is missing", `first: "soon" is none of availability`, `mesh: "Demo" is not the name of a mesh`,
			"Next: relaypki emergency root --help"}},
		{"emergency leaf demo", []string{"3 problems", "reason: ", "incident: ", "clusters: is missing", "Next: relaypki emergency leaf --help"}},
		{"emergency leaf demo cluster2 --first containment" + why, []string{"1 problem", "first: is to be chosen where trust changes"}},
		{"emergency leaf demo cluster2 --distrust" + why, []string{`first: "" is none of availability`}},
		{"emergency intermediate demo" + why, []string{`first: "" is none of availability`}},
		{"emergency intermediate demo cluster2 --first containment" + why, []string{"Next: relaypki emergency intermediate --help"}},
		{"emergency intermediate demo --first containment --distrust" + why, []string{"unknown flag: --distrust"}},
		{"emergency lift demo --exposed-ok", []string{"2 problems", "reason: ", "incident: "}},
		{"emergency root demo --first availability -o commands" + why, []string{"--plan"}},
		// Where nobody can be asked, nothing is done.
		{"emergency leaf demo cluster2" + why, []string{"Replace the certificates of cluster2 in mesh demo, and the management server's?", "nothing was done", "--yes"}},
		{"emergency root demo --first containment" + why, []string{"Replace the root and the intermediate of mesh demo?", "nothing was done"}},
		{"emergency lift demo" + why, []string{"Have everybody in mesh demo trust the root again?", "nothing was done"}},
	} {
		var out, errOut bytes.Buffer
		if code := run(t.Context(), strings.Fields(test.words), &out, &errOut); code != exitBadInput {
			t.Errorf("%s: exit code %d", test.words, code)
		}
		for _, want := range test.says {
			if !strings.Contains(errOut.String(), want) {
				t.Errorf("%s: lacks %q:\n%s", test.words, want, errOut.String())
			}
		}
		endsWithACommand(t, errOut.String())
	}
}

// Before it is done, a person is told what it cuts; what cannot be taken back takes the
// mesh's name.
func TestEmergencyDangers(t *testing.T) {
	of := func(in procedure.EmergencyInput) procedure.EmergencyInput {
		in.Mesh = "demo"
		return in
	}
	const all, name, pinned, accepted = "EVERY agent of the mesh is cut off at once", "It cannot be taken back.", "until you lift it", "accepted until"
	for _, test := range []struct {
		of            procedure.EmergencyInput
		name          string
		says, silence []string
	}{
		{procedure.EmergencyInput{Compromised: "leaf", Clusters: []string{"a"}}, "", []string{"every agent's connection is cut", "The old certificates are accepted until they end"}, []string{all, name, pinned}},
		{procedure.EmergencyInput{Compromised: "leaf", Clusters: []string{"a"}, Distrust: true, First: "availability"}, "demo", []string{"No handshake fails", accepted, name, pinned}, []string{all}},
		{procedure.EmergencyInput{Compromised: "intermediate", First: "availability"}, "demo", []string{"restarted", "No handshake fails", accepted, name, pinned}, []string{all}},
		{procedure.EmergencyInput{Compromised: "intermediate", First: "containment"}, "demo", []string{all, "one that does not answer stays cut off", name, pinned}, []string{"No handshake fails", accepted}},
		{procedure.EmergencyInput{Compromised: "root", First: "availability"}, "demo", []string{"No handshake fails", accepted, name}, []string{all, pinned}},
		{procedure.EmergencyInput{Compromised: "root", First: "containment"}, "demo", []string{all, name}, []string{"No handshake fails", pinned}},
		{procedure.EmergencyInput{Lift: true}, "", []string{"No handshake fails"}, []string{all, name, "accepted again"}},
		{procedure.EmergencyInput{Lift: true, Exposed: true}, "", []string{"No handshake fails", "accepted again"}, []string{all, name}},
	} {
		d := dangerOf(of(test.of))
		if d.name != test.name || !strings.HasSuffix(d.question, "?") || !strings.Contains(d.question, "demo") {
			t.Errorf("%+v: %+v", test.of, d)
		}
		for _, want := range test.says {
			if !strings.Contains(d.consequence, want) {
				t.Errorf("%+v: lacks %q: %s", test.of, want, d.consequence)
			}
		}
		for _, not := range test.silence {
			if strings.Contains(d.consequence, not) {
				t.Errorf("%+v: says %q: %s", test.of, not, d.consequence)
			}
		}
	}
}

// On a terminal, nothing is started before the person has typed the mesh's name.
func TestEmergencyAsks(t *testing.T) {
	for typed, code := range map[string]int{"demo\n": 0, "y\n": exitBadInput} {
		started := starts(t)
		person, terminal := pseudoTerminal(t)
		if _, err := person.WriteString(typed); err != nil {
			t.Fatal(err)
		}
		var out, errOut bytes.Buffer
		c := &cli{out: &out, err: &errOut, name: "relaypki", args: strings.Fields("emergency root demo --first containment --reason leaked --incident INC-7 --detach")}
		root := c.rootCommand()
		root.SetIn(terminal)
		if got := c.execute(t.Context(), root); got != code || !strings.Contains(errOut.String(), "Type demo to go on:") {
			t.Errorf("%q: exit code %d:\n%s", typed, got, errOut.String())
		}
		if (len(started) == 1) != (code == 0) {
			t.Errorf("%q: %d runs were started", typed, len(started))
		}
	}
}

// contained is an emergency of an intermediate that has come to its end.
func contained() procedure.Emergency {
	return procedure.Emergency{
		Compromised: "intermediate", First: "containment", Reason: "key in a public repository", Incident: "INC-7", Began: noon,
		IssuingStopped: noon.Add(2 * time.Second), ServerDistrusts: noon.Add(9 * time.Second), Distrusted: noon.Add(70 * time.Second), Reconnected: noon.Add(75 * time.Second), Pinned: true,
	}
}

// The end says how long it took until each milestone, which has not come, what stays
// pinned and how to lift it, and until when what was compromised is accepted.
func TestEmergencyEnds(t *testing.T) {
	authority := func(name string, days int) procedure.Authority {
		return procedure.Authority{Name: name, NotAfter: noon.AddDate(0, 0, days)}
	}
	done := procedure.RotateResult{Mesh: "demo", Changed: true, From: authority("relay-intermediate-g1", 30), To: authority("relay-intermediate-g2", 300)}
	for _, test := range []struct {
		name          string
		of            func(*procedure.Emergency)
		failed        error // with the emergency in its report
		says, silence []string
	}{
		{"pinned", func(e *procedure.Emergency) { e.TookOver = "rotate-intermediate-demo" }, nil, []string{
			"Incident INC-7: key in a public repository (intermediate compromised, containment first)\n", "It took over rotate-intermediate-demo.",
			"\nbegan 2026-03-01 12:00:00Z\nissuing stopped 2s 2026-03-01 12:00:02Z\nserver distrusts 9s 2026-03-01 12:00:09Z\n" +
				"distrusted everywhere 1m10s 2026-03-01 12:01:10Z\nreconnected 1m15s 2026-03-01 12:01:15Z\n",
			"It stays pinned: relay-intermediate-g2 is all that is trusted", "What relay-intermediate-g1 signs would be accepted again until 2026-03-31 12:00Z",
			"Next: relaypki verify demo\nrelaypki emergency lift demo --reason WHY --incident ID\n",
		}, []string{"has not come", "Accepted until"}},
		{"a leaf that is accepted until it ends", func(e *procedure.Emergency) {
			*e = procedure.Emergency{Compromised: "leaf", Clusters: []string{"cluster2"}, Reason: "image published", Incident: "INC-8", Began: noon, Reconnected: noon.Add(5 * time.Second), AcceptedUntil: noon.Add(23 * time.Hour)}
		}, nil, []string{"(leaf of cluster2 compromised)", "\nreconnected 5s 2026-03-01 12:00:05Z\n", "Accepted until 2026-03-02 11:00:00Z is what was compromised"},
			[]string{"issuing stopped", "distrusts", "pinned", "has not come", "emergency lift"}},
		{"a leaf that is refused", func(e *procedure.Emergency) {
			e.Compromised, e.Clusters, e.Distrust, e.IssuingStopped = "leaf", []string{"cluster2"}, true, time.Time{}
		}, nil, []string{"server distrusts", "stays pinned"}, []string{"issuing stopped", "has not come"}},
		{"the root", func(e *procedure.Emergency) { e.Compromised, e.Pinned = "root", false }, nil,
			[]string{"Mesh demo: every certificate is of relay-intermediate-g2, until", "nobody accepts what relay-intermediate-g1 signs"}, []string{"pinned", "emergency lift"}},
		{"the root's rotation was on its way", func(e *procedure.Emergency) { e.Pinned = false }, nil, []string{"nobody accepts what relay-intermediate-g1 signs"}, []string{"pinned", "emergency lift"}},
		{"lifted", func(e *procedure.Emergency) { e.Pinned = false }, nil,
			[]string{"Incident INC-9: over (what was pinned is lifted)", "Mesh demo: the root is trusted again, and nothing is pinned."}, []string{"stays pinned", "MEASURED", "emergency lift"}},
		{"left somebody out", func(e *procedure.Emergency) { e.Distrusted, e.Reconnected = time.Time{}, time.Time{} }, failure.Permanent(failure.Incomplete, "1 cluster was left out"), []string{
			"server distrusts 9s", "\ndistrusted everywhere has not come\nreconnected has not come\n", "It stays pinned: the new intermediate is all",
		}, []string{"Next:"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			e, end, err := contained(), ending{Status: "completed"}, error(nil)
			test.of(&e)
			if test.failed == nil {
				r := done
				r.Emergency = &e
				end.Result, err = json.Marshal(r)
			} else {
				end, _ = endingOf(closed(t, failure.PermanentWithDetails(failure.KindOf(test.failed), failure.Message(test.failed), procedure.Progress{Procedure: procedure.EmergencyReissue, Mesh: "demo", Emergency: &e})))
			}
			if err != nil {
				t.Fatal(err)
			}
			end.WorkflowID = "emergency-demo"
			var out bytes.Buffer
			c := &cli{out: &out, err: &out, name: "relaypki", output: "text"}
			f := &follower{cli: c, again: "relaypki emergency intermediate demo --first containment --reason x --incident y"}
			f.view.Progress.Mesh = "demo"
			if test.name == "lifted" {
				f.view.Asked = &procedure.EmergencyInput{Lift: true, Reason: "over", Incident: "INC-9"}
			}
			if err := c.conclude(end.of(procedure.EmergencyReissue), f); (err == nil) != (test.failed == nil) {
				t.Errorf("it ends with %v", err)
			}
			var said strings.Builder // with the columns of tables one space apart
			for line := range strings.Lines(out.String()) {
				said.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
			}
			for _, want := range test.says {
				if !strings.Contains(said.String(), want) {
					t.Errorf("lacks %q:\n%s", want, out.String())
				}
			}
			for _, not := range test.silence {
				if strings.Contains(out.String(), not) {
					t.Errorf("says %q:\n%s", not, out.String())
				}
			}
		})
	}
}

// While it runs, the picture and the journal say what it is for and what has come.
func TestEmergencyIsShown(t *testing.T) {
	e := contained()
	e.Distrusted, e.Reconnected = time.Time{}, time.Time{}
	v := running()
	v.Type, v.Progress = procedure.EmergencyReissue, procedure.Progress{Procedure: procedure.EmergencyReissue, Mesh: "demo", Phase: "pin", Emergency: &e}
	want := `
▸ EmergencyReissue demo  pin  1m05s  the new intermediate becomes all that is trusted, and open streams are cut
  incident INC-7: key in a public repository
  intermediate compromised, containment first; issuing stopped after 2s; server distrusts after 9s`
	if got := "\n" + strings.Join(paper{width: 120, height: 24}.draw(v), "\n"); got != want {
		t.Errorf("got:%s\n\nwant:%s", got, want)
	}
	// What was asked for is known before the procedure tells anything.
	silent := v
	asked := procedure.EmergencyInput{Compromised: e.Compromised, First: e.First, Reason: e.Reason, Incident: e.Incident}
	silent.Progress, silent.Asked = procedure.Progress{}, &asked
	lines := []string{"12:00:00Z  -             -                   incident    INC-7: key in a public repository (intermediate compromised, containment first)"}
	if got := changes(view{}, silent); !slices.Equal(got, lines) {
		t.Errorf("at first it says %q", got)
	}
	lines = []string{
		"12:00:00Z  -             -                   measured    issuing stopped after 2s",
		"12:00:00Z  -             -                   measured    server distrusts after 9s",
		"12:00:00Z  -             -                   phase       pin",
	}
	if got := changes(silent, v); !slices.Equal(got, lines) {
		t.Errorf("then it says %q", got)
	}
	if got := changes(v, v); len(got) > 0 {
		t.Errorf("nothing has changed but %q is said", got)
	}
	// Of a lift, why it is done; what the emergency came to was said at its end.
	v.Asked = &procedure.EmergencyInput{Lift: true, Reason: "it has ended", Incident: "INC-8"}
	v.Progress.Phase = "lift"
	want = `
▸ EmergencyReissue demo  lift  1m05s  everybody trusts the root again, and not the intermediate alone
  incident INC-8: it has ended
  what was pinned is lifted`
	if got := "\n" + strings.Join(paper{width: 120, height: 24}.draw(v), "\n"); got != want {
		t.Errorf("got:%s\n\nwant:%s", got, want)
	}
}

// That there was nobody to tell is no step to be shown; who was told is, and that
// somebody could not be.
func TestStepsThatTellNobody(t *testing.T) {
	notify := func(state procedure.State, detail string) procedure.Step {
		return procedure.Step{Name: procedure.NotifyStep, Phase: "pin", State: state, Detail: detail}
	}
	before, v := running(), running()
	before.Progress.Steps = []procedure.Step{notify(procedure.Running, "")}
	v.Progress.Phase = "other"
	v.Progress.Steps = []procedure.Step{notify(procedure.UpToDate, procedure.NobodyToTell), notify(procedure.UpToDate, "told ops"), notify(procedure.Failed, "no answer"), {Name: "root", State: procedure.Created}}
	said, picture := strings.Join(changes(before, v), "\n"), strings.Join(paper{width: 80, height: 24}.draw(v), "\n")
	for _, want := range []string{"told ops", "no answer", "root"} {
		if !strings.Contains(said, want) || !strings.Contains(picture, want) {
			t.Errorf("%q is not shown:\n%s\n%s", want, said, picture)
		}
	}
	if strings.Contains(said, "nobody") || strings.Contains(picture, "nobody") {
		t.Errorf("it is shown that nobody was told:\n%s\n%s", said, picture)
	}
	if got := changes(view{}, before); strings.Contains(strings.Join(got, "\n"), "notify") {
		t.Errorf("it is said before it is known whether there is anybody: %q", got)
	}
	// A phase counts the steps that are shown.
	v.Progress.Steps = v.Progress.Steps[:2]
	if picture := strings.Join(paper{width: 80, height: 24}.draw(v), "\n"); !strings.Contains(picture, "steps: 1, of which changed something: 0") {
		t.Errorf("the phase is counted as\n%s", picture)
	}
}

// Which way an emergency goes is seen by its phases, and said by what was chosen where
// they are not there yet.
func TestCourseOfAnEmergency(t *testing.T) {
	at := func(first string) *procedure.Emergency { return &procedure.Emergency{First: first} }
	for _, test := range []struct {
		e     *procedure.Emergency
		named string
		want  rotation.Course
	}{
		{at(""), "preflight reissue", rotation.OfLeaf},
		{at("availability"), "preflight stage", rotation.OfPinning},
		{at("containment"), "preflight stage", rotation.OfPinningAtOnce},
		{at("availability"), "preflight prepare", rotation.OfNewRoot},
		{at("containment"), "preflight prepare", rotation.OfNewRootAtOnce},
		{at("availability"), "preflight stage link stop pin prove", rotation.OfPinning},
		{at("containment"), "preflight stage cut", rotation.OfPinningAtOnce},
		{nil, "preflight prepare cut", rotation.OfNewRootAtOnce},
		{at("containment"), "preflight lift", rotation.OfLift},
		{at("containment"), "done", nil},
	} {
		var named []rotation.Phase
		for name := range strings.FieldsSeq(test.named) {
			named = append(named, rotation.Phase(name))
		}
		if got := courseOf(procedure.EmergencyReissue, test.e, named...); fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("%+v, %s: %v, want %v", test.e, test.named, got, test.want)
		}
	}
}

// An emergency's plan is shown phase by phase, in each cluster too.
func TestPlanOfAnEmergency(t *testing.T) {
	step := func(name, phase string) procedure.Step {
		return procedure.Step{Name: name, Phase: phase, Changes: []procedure.Change{{Verb: procedure.Update, Object: name}}}
	}
	turn := func(phase string) procedure.ClusterResult {
		return procedure.ClusterResult{Cluster: "cluster1", Phase: phase, Workflow: phase}
	}
	for _, test := range []struct {
		name  string
		turns []procedure.ClusterResult
		steps []procedure.Step
		want  []string
	}{
		{"an intermediate", []procedure.ClusterResult{turn("pin"), turn("link")}, []procedure.Step{step("new", "stage"), step("chain", "link"), step("use", "stop"), step("pinned", "pin")},
			[]string{"stage: new", "link: chain", "cluster1, link: by link", "cluster2, link: no route", "stop: use", "pin: pinned", "cluster1, pin: by pin"}},
		{"a root, at once", []procedure.ClusterResult{turn("cut")}, []procedure.Step{step("new", "prepare"), step("chain", "cut")},
			[]string{"prepare: new", "cut: chain", "cluster1, cut: by cut", "cluster2, cut: no route"}},
		{"a leaf", []procedure.ClusterResult{turn("reissue")}, []procedure.Step{step("server", "reissue")},
			[]string{"reissue: server", "cluster1, reissue: by reissue", "cluster2, reissue: no route"}},
		{"a lift", []procedure.ClusterResult{turn("lift")}, []procedure.Step{step("chain", "lift")}, []string{"lift: chain", "cluster1, lift: by lift", "cluster2, lift: no route"}},
	} {
		f := &follower{cli: &cli{}}
		f.view.Progress.Clusters = []procedure.ClusterProgress{{Cluster: "cluster1", Workflow: "link"}, {Cluster: "cluster2", State: procedure.Failed, Detail: "no route"}}
		f.view.Children = map[string]procedure.Progress{}
		for _, turn := range test.turns {
			f.view.Children[turn.Phase] = procedure.Progress{Ended: true, Steps: []procedure.Step{step("by "+turn.Phase, "")}}
		}
		result, err := json.Marshal(procedure.RotateResult{Mesh: "demo", Plan: true, Clusters: test.turns, Steps: test.steps})
		if err != nil {
			t.Fatal(err)
		}
		p, ok := f.planOf(ending{Procedure: procedure.EmergencyReissue, Result: result})
		if !ok {
			t.Fatalf("%s: it is no plan", test.name)
		}
		var got []string
		for _, part := range p.parts {
			line := part.name + ":"
			for _, s := range part.steps {
				line += " " + s.Name
			}
			if part.problem != "" {
				line += " " + part.problem
			}
			got = append(got, line)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got\n%s\nwant\n%s", test.name, strings.Join(got, "\n"), strings.Join(test.want, "\n"))
		}
	}
}

// An emergency is listed, steered, and leaves clusters out, as a rotation does.
func TestEmergencyIsKnown(t *testing.T) {
	if !slices.Contains(changing, procedure.EmergencyReissue) || procedure.LeaveOut(procedure.EmergencyReissue) != procedure.QuarantineUpdate || meshOfID("emergency-a-b") != "a-b" {
		t.Error("it is not wholly known")
	}
	temporal, _ := listing(listed(t, "emergency-demo", procedure.EmergencyReissue, "demo", true))
	run, err := (&cli{name: "relaypki"}).steered(t.Context(), temporal, "demo", "")
	if err != nil || run.WorkflowID != "emergency-demo" {
		t.Errorf("steered %q, %v", run.WorkflowID, err)
	}
	// Who ends it is told what that leaves.
	const left = "agents that are cut off stay cut off"
	if d := abortOf("demo", run); !strings.Contains(d.consequence, left) {
		t.Errorf("%+v", d)
	}
	if d := abortOf("demo", execution{Procedure: procedure.SetupMesh}); strings.Contains(d.consequence, left) {
		t.Errorf("%+v", d)
	}
}

// An emergency is not taken back, and nothing that was rotated before it is taken for
// what is meant.
func TestEmergencyIsNotTakenBack(t *testing.T) {
	ended := noon.Add(time.Minute)
	emergency := execution{WorkflowID: "emergency-demo", Procedure: procedure.EmergencyReissue, Mesh: "demo"}
	root := execution{WorkflowID: "rotate-root-demo", Procedure: procedure.RotateRootCA, Ended: &ended}
	over, plan := emergency, emergency
	over.Ended, plan.WorkflowID = &ended, "plan-emergency-demo"
	c := &cli{name: "relaypki"}
	for _, test := range []struct {
		runs []execution // the latest first
		want execution
		next string
	}{
		{[]execution{emergency, root}, emergency, "relaypki watch emergency-demo"},
		{[]execution{over, root}, over, "relaypki emergency lift demo --reason WHY --incident ID"},
		{[]execution{plan, root}, root, ""},
		{[]execution{root, over}, root, ""},
	} {
		last, found := lastRotation(test.runs)
		if !found || last.WorkflowID != test.want.WorkflowID {
			t.Errorf("of %+v: %+v", test.runs, last)
		}
		if test.next == "" {
			continue
		}
		exit, ok := c.notTakenBack(last).(*exitError) //nolint:errorlint // its own
		if !ok || exit.code != exitBadInput || !strings.HasPrefix(exit.next, test.next) || !strings.Contains(exit.Error(), "is not taken back") {
			t.Errorf("%+v", exit)
		}
		endsWithACommand(t, exit.next)
	}
}

// Where the emergency is over, what was rotated before it is taken back only by name.
func TestRollbackAfterAnEmergency(t *testing.T) {
	emergency := func(running bool) *workflowpb.WorkflowExecutionInfo {
		return listed(t, "emergency-demo", procedure.EmergencyReissue, "demo", running)
	}
	for _, test := range []struct {
		words   string
		running bool
		starts  string
	}{
		{"rollback demo --reason x", true, ""},
		{"rollback demo --reason x --of root", true, ""},
		{"rollback demo --reason x", false, ""},
		{"rollback demo --reason x --of root", false, "rotate-root-demo"},
	} {
		started := starts(t, emergency(test.running))
		var out, errOut bytes.Buffer
		code := run(t.Context(), append(strings.Fields(test.words), "--detach"), &out, &errOut)
		if test.starts == "" {
			if code != exitBadInput || !strings.Contains(errOut.String(), "is not taken back") || len(started) > 0 {
				t.Errorf("%s, running %v: exit code %d, %d started:\n%s", test.words, test.running, code, len(started), errOut.String())
			}
			continue
		}
		if code != 0 {
			t.Fatalf("%s: exit code %d:\n%s", test.words, code, errOut.String())
		}
		if r := <-started; r.GetWorkflowId() != test.starts {
			t.Errorf("%s: started %s", test.words, r.GetWorkflowId())
		}
	}
}

// The status says which emergency the mesh is in, or has been left by.
func TestLastEmergency(t *testing.T) {
	ended := noon.Add(time.Minute)
	over := func(id, state string) execution {
		return execution{WorkflowID: id, RunID: "run", Procedure: procedure.EmergencyReissue, Mesh: "demo", State: state, Ended: &ended}
	}
	pinned, told := contained(), contained()
	told.Incident, told.Pinned = "INC-8", false
	at := execution{WorkflowID: "at work", Procedure: procedure.EmergencyReissue, emergency: &told}
	planned := over("plan-emergency-demo", "completed")
	refused := procedure.Emergency{Compromised: "root", Incident: "INC-9", Began: noon}
	m := &mocks.Client{}
	for id, end := range map[string]struct {
		e      procedure.Emergency
		failed bool
	}{"pinned": {pinned, false}, "refused": {refused, true}, "failed": {told, true}, "lifted": {told, false}} {
		handle := &mocks.WorkflowRun{}
		if end.failed {
			handle.On("Get", mock.Anything, mock.Anything).Return(closed(t, failure.PermanentWithDetails(failure.Preflight, "no", procedure.Progress{Emergency: &end.e})))
		} else {
			result, err := json.Marshal(procedure.RotateResult{Mesh: "demo", Emergency: &end.e})
			if err != nil {
				t.Fatal(err)
			}
			handle.On("Get", mock.Anything, mock.Anything).Run(func(args mock.Arguments) { *args.Get(1).(*json.RawMessage) = result }).Return(nil)
		}
		m.On("GetWorkflow", mock.Anything, id, mock.Anything).Return(client.WorkflowRun(handle))
	}
	for _, id := range []string{"pinned", "refused", "failed", "lifted", "at work", "silent"} {
		input := `{"mesh":"demo","compromised":"root","first":"containment","reason":"forged","incident":"INC-5"}`
		if id == "lifted" {
			input = `{"mesh":"demo","lift":true,"reason":"it has ended","incident":"INC-6"}`
		}
		events := &mocks.HistoryEventIterator{}
		events.On("HasNext").Return(true)
		events.On("Next").Return(&historypb.HistoryEvent{Attributes: &historypb.HistoryEvent_WorkflowExecutionStartedEventAttributes{
			WorkflowExecutionStartedEventAttributes: &historypb.WorkflowExecutionStartedEventAttributes{Input: &commonpb.Payloads{Payloads: []*commonpb.Payload{{Data: []byte(input)}}}}}}, nil)
		m.On("GetWorkflowHistory", mock.Anything, id, mock.Anything, mock.Anything, mock.Anything).Return(events)
	}
	temporal := &server{Client: m}
	for _, test := range []struct {
		name string
		runs []execution // the latest first
		id   string
		says []string
	}{
		{"none", []execution{planned, {Procedure: procedure.SetupMesh}}, "", nil},
		{"it runs", []execution{at, over("pinned", "completed")}, "at work", []string{"EMERGENCY: INC-8: key in a public repository (intermediate compromised, containment first; workflow at work)\n", "issuing stopped after 2s"}},
		{"it runs, and there is no worker", []execution{{WorkflowID: "silent", Procedure: procedure.EmergencyReissue}}, "silent", []string{"EMERGENCY: INC-5: forged (root compromised, containment first; workflow silent)\n"}},
		{"it was lifted", []execution{over("lifted", "completed"), over("pinned", "completed")}, "lifted", []string{"Last emergency: INC-6: it has ended (what was pinned is lifted; workflow lifted)\n"}},
		{"it stays pinned", []execution{over("pinned", "completed")}, "pinned", []string{"EMERGENCY: INC-7", "stays pinned", "\n    relaypki emergency lift demo --reason WHY --incident ID\n"}},
		{"another was refused meanwhile", []execution{over("refused", "failed"), over("pinned", "completed")}, "pinned", nil},
		{"it was refused", []execution{over("refused", "failed")}, "refused", []string{"Last emergency: INC-9"}},
		{"it failed on the way", []execution{over("failed", "failed"), over("pinned", "completed")}, "failed", []string{"Last emergency: INC-8"}},
	} {
		got := temporal.lastEmergency(t.Context(), test.runs)
		if id := func() string {
			if got == nil {
				return ""
			}
			return got.WorkflowID
		}(); id != test.id {
			t.Errorf("%s: %q, want %q", test.name, id, test.id)
			continue
		}
		var out bytes.Buffer
		c := &cli{out: &out, name: "relaypki", output: "text"}
		c.printEmergency(c.paper(), meshStatus{Mesh: "demo", Emergency: got})
		for _, want := range test.says {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: lacks %q:\n%s", test.name, want, out.String())
			}
		}
		if got == nil && out.Len() > 0 {
			t.Errorf("%s: it says\n%s", test.name, out.String())
		}
	}
}
