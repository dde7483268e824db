package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

func TestExitCodes(t *testing.T) {
	wrong := filepath.Join(t.TempDir(), "wrong.yaml")
	if err := os.WriteFile(wrong, []byte("mesh: a_b\nworkload: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TEMPORAL_CONFIG_FILE", filepath.Join(t.TempDir(), "none.toml"))
	tests := []struct {
		name string
		args []string
		code int
		// want are parts of what is said on standard error.
		want []string
	}{
		{"help", []string{"--help"}, 0, nil},
		{"unknown command", []string{"setupp"}, exitBadInput, []string{"setupp", "relaypki --help"}},
		{"no file", []string{"setup"}, exitBadInput, []string{"file", "relaypki setup --help"}},
		{"file not there", []string{"setup", "-f", wrong + "x"}, exitBadInput, []string{"no such file"}},
		{"all problems at once", []string{"setup", "-f", wrong}, exitBadInput, []string{`did you mean "workloads"`, "underscore", "at least one workload", "Next: correct " + wrong}},
		{"verify what", []string{"verify"}, exitBadInput, []string{"which mesh"}},
		{"verify a strange name", []string{"verify", "x' OR 'a'='a"}, exitBadInput, []string{"not the name of a mesh"}},
		{"add what", []string{"add-cluster", "demo"}, exitBadInput, []string{"which cluster", "relaypki add-cluster --help"}},
		{"add a strange name", []string{"add-cluster", "demo", "my_cluster", "--reload", "never"}, exitBadInput,
			[]string{"workload.name", "has an underscore", "workload.agent.reload", "nothing was started"}},
		{"remove without a person", []string{"remove-cluster", "demo", "cluster2"}, exitBadInput, []string{"Remove the cluster cluster2 from mesh demo?", "nothing was done"}},
		{"remove a strange name", []string{"remove-cluster", "demo", "my_cluster", "--yes"}, exitBadInput, []string{"cluster: ", "has an underscore"}},
		{"rotate what", []string{"rotate", "credentials"}, exitBadInput, []string{"relaypki rotate credentials --help"}},
		{"rotate of a strange name", []string{"rotate", "credentials", "a_b"}, exitBadInput, []string{"not the name of a mesh"}},
		{"schedule of a strange name", []string{"schedule", "list", "a_b"}, exitBadInput, []string{"not the name of a mesh"}},
		{"apply of a strange name", []string{"schedule", "apply", "a_b"}, exitBadInput, []string{"not the name of a mesh"}},
		{"no such schedule", []string{"schedule", "trigger", "demo", "hourly"}, exitBadInput, []string{`"hourly" is no schedule`, "verify, refresh, maintain"}},
		{"pause without a reason", []string{"schedule", "pause", "demo", "verify"}, exitBadInput, []string{"it takes a reason"}},
		{"schedules without Temporal", []string{"schedule", "list", "demo", "--address", "127.0.0.1:1"}, exitUnreachable, []string{"127.0.0.1:1"}},
		{"output", []string{"status", "-o", "yaml"}, exitBadInput, []string{"text or json"}},
		{"no such profile", []string{"status", "--profile", "none"}, exitBadInput, []string{"none", "TEMPORAL_CONFIG_FILE"}},
		{"unreachable", []string{"status", "--address", "127.0.0.1:1"}, exitUnreachable, []string{"127.0.0.1:1", "TEMPORAL_ADDRESS"}},
		{"nothing is started without Temporal", []string{"setup", "-f", example, "--address", "127.0.0.1:1"}, exitUnreachable, []string{"127.0.0.1:1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			if code := run(context.Background(), test.args, &out, &errOut); code != test.code {
				t.Errorf("exit code %d, want %d\n%s", code, test.code, errOut.String())
			}
			for _, want := range test.want {
				if !strings.Contains(errOut.String(), want) {
					t.Errorf("standard error lacks %q:\n%s", want, errOut.String())
				}
			}
			if test.code != 0 {
				endsWithACommand(t, errOut.String())
			}
		})
	}
}

// endsWithACommand fails the test for an error that does not end with what to
// type, as this very command takes it.
func endsWithACommand(t *testing.T, said string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(said), "\n")
	last := lines[len(lines)-1]
	at := strings.LastIndex(last, "relaypki ")
	if at < 0 {
		t.Errorf("it does not end with a command:\n%s", said)
		return
	}
	if err := takes(wordsOf(t, last[at:])); err != nil && !errors.Is(err, pflag.ErrHelp) {
		t.Errorf("it ends with a command that is refused (%v):\n%s", err, said)
	}
}

func TestProblemsAsJSON(t *testing.T) {
	file := filepath.Join(t.TempDir(), "wrong.yaml")
	if err := os.WriteFile(file, []byte("mesh: demo\nworkloads: [{name: a, agnet: {}}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	run(context.Background(), []string{"setup", "-f", file, "-o", "json"}, &out, &errOut)
	var document struct {
		Status   string
		Problems []struct{ Path, Message string }
	}
	if err := json.Unmarshal(out.Bytes(), &document); err != nil {
		t.Fatalf("%v:\n%s", err, out.String())
	}
	if document.Status != "invalid" || len(document.Problems) != 1 || document.Problems[0].Path != "workloads[0].agnet" {
		t.Errorf("document = %+v", document)
	}
}

func TestCommonFlagsAreInSuggestions(t *testing.T) {
	var out, errOut bytes.Buffer
	run(context.Background(), []string{"verify", "--namespace", "mesh-ops"}, &out, &errOut)
	if want := "relaypki --namespace mesh-ops status"; !strings.Contains(errOut.String(), want) {
		t.Errorf("standard error lacks %q:\n%s", want, errOut.String())
	}
}

// closed is how a workflow that returns that error ends, by the SDK's own
// conversion of errors.
func closed(t *testing.T, err error) error {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestWorkflowEnvironment()
	env.ExecuteWorkflow(func(workflow.Context) error { return err })
	return env.GetWorkflowError()
}

func TestEndings(t *testing.T) {
	findings := procedure.VerifyResult{Mesh: "demo", Findings: []check.Finding{
		{Check: "handshake", Cluster: "cluster1", Status: check.Fail, Message: "bad certificate", Remedy: "set up again"},
		{Check: "certificate-ready", Cluster: "mgmt", Status: check.Pass, Message: "until tomorrow"},
	}}
	healthy, err := json.Marshal(procedure.VerifyResult{Mesh: "demo", Healthy: true, Findings: findings.Findings[1:]})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name      string
		procedure string
		err       error
		result    json.RawMessage
		status    string
		code      int
		want      []string // in the output or the error
	}{
		{"healthy", procedure.VerifyMesh, nil, healthy, "completed", 0, []string{"pass  certificate-ready  until tomorrow"}},
		{"unhealthy", procedure.VerifyMesh, closed(t, failure.PermanentWithDetails(failure.Unhealthy, "1 of 2 checks fail", findings)), nil, "failed", exitUnhealthy,
			[]string{"fail  handshake          bad certificate", "do: set up again", "1 of 2 checks fail"}},
		{"verification that could not look", procedure.VerifyMesh, closed(t, failure.Permanent(failure.InvalidInput, "there is no mesh")), nil, "failed", exitFailed,
			[]string{"there is no mesh", "correct the input"}},
		{"failed setup", procedure.SetupMesh, closed(t, failure.Permanent(failure.Denied, "Vault refused")), nil, "failed", exitFailed,
			[]string{"Vault refused", "relaypki setup -f FILE"}},
		{"locked", procedure.SetupMesh, closed(t, failure.Permanent(failure.Locked, "held by rotate-demo")), nil, "failed", exitFailed,
			[]string{"held by rotate-demo", "relaypki status demo"}},
		{"cancelled", procedure.SetupMesh, closed(t, temporal.NewCanceledError()), nil, "cancelled", exitFailed, []string{"somebody cancelled it"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			end, ok := endingOf(test.err)
			if !ok || end.Status != test.status {
				t.Fatalf("endingOf(%v) = %+v, %v", test.err, end, ok)
			}
			if end.Result = test.result; end.Failure == nil && end.Result == nil {
				t.Fatal("neither result nor failure")
			}
			end.WorkflowID = "the-run"
			var out bytes.Buffer
			c := &cli{out: &out, err: &out, name: "relaypki", output: "text"}
			f := &follower{cli: c}
			f.view.Progress.Mesh = "demo"
			err := c.conclude(end.of(test.procedure), f)
			code, said := 0, out.String()
			var exit *exitError
			if errors.As(err, &exit) {
				code, said = exit.code, said+exit.Error()+exit.next
			}
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if code != 0 {
				endsWithACommand(t, exit.next)
			}
			for _, want := range test.want {
				if !strings.Contains(said, want) {
					t.Errorf("lacks %q:\n%s", want, said)
				}
			}
		})
	}
	if _, ok := endingOf(errors.New("connection lost")); ok {
		t.Error("a call that failed is no ending of the procedure")
	}
}

func TestMeshOfID(t *testing.T) {
	for id, want := range map[string]string{
		"setup-demo":                          "demo",
		"setup-demo/cluster1":                 "demo",
		"verify-demo-20260301T120000.123Z":    "demo",
		"verify-demo-2-20260301T120000.123Z":  "demo-2",
		"verify-demo-2026-03-01T12:00:00Z":    "demo",
		"diagnose-demo-20260301T120000.123Z":  "demo",
		"adopt-demo":                          "demo",
		"refresh-demo-2-2026-03-01T12:00:00Z": "demo-2",
		"add-a-b-c":                           "", // of a, or of a-b
		"remove-demo-cluster1":                "",
		"plan-setup-demo":                     "",
		"tuesday":                             "",
		"rotate-credentials-demo":             "demo",
		"rotate-intermediate-a-b":             "a-b",
		"rotate-root-demo":                    "demo",
		"rotate-leaf-demo/cluster1":           "demo",
		"schedules-demo":                      "demo",
		"maintain-demo-2026-03-01T12:00:00Z":  "demo",
	} {
		if got := meshOfID(id); got != want {
			t.Errorf("meshOfID(%q) = %q, want %q", id, got, want)
		}
	}
}

func TestStatusLines(t *testing.T) {
	next := noon.Add(12 * time.Minute)
	tests := []struct{ got, want string }{
		{(*verdict)(nil).line(noon), "none yet"},
		{(&verdict{At: noon.Add(-time.Minute), Healthy: true, Checks: 7}).line(noon), "healthy, 7 checks, 1m00s ago"},
		{(&verdict{At: noon, Checks: 7, Failing: []string{"cluster1: handshake"}}).line(noon), "NOT healthy, 1 of 7 checks fail, 0s ago (cluster1: handshake)"},
		{(*nextSchedule)(nil).line(noon), "not scheduled"},
		{(&nextSchedule{ID: "s", Next: &next}).line(noon), "in 12m00s (schedule s)"},
		{(&nextSchedule{ID: "s", Paused: true, Next: &next}).line(noon), "paused (schedule s)"},
	}
	for _, test := range tests {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
}

func TestSameJSON(t *testing.T) {
	if !sameJSON([]byte(`{"a":1,"b":[2]}`), []byte("{ \"b\": [2], \"a\": 1 }")) {
		t.Error("the same in another spelling is taken for different")
	}
	if sameJSON([]byte(`{"a":1}`), []byte(`{"a":2}`)) || sameJSON([]byte(`x`), []byte(`x`)) {
		t.Error("different inputs are taken for the same")
	}
}

func TestJSONIsSentAsWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mesh.json")
	text := `{"workloads":[{"name":"cluster1"}],"mesh":"demo"}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	in, problems, err := readInput(file, nil)
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	if string(in.json) != text {
		t.Errorf("sent %s, want what was written: %s", in.json, text)
	}
}

// What is suggested to be typed again runs as it is: with the words of a
// subcommand, and quoted where that is needed.
func TestOnceMore(t *testing.T) {
	c := &cli{name: "relaypki"}
	cmd, args, err := c.rootCommand().Find([]string{"rotate", "intermediate", "demo"})
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Flags().Set("snapshot", "vault.snap, in the safe"); err != nil {
		t.Fatal(err)
	}
	again := c.onceMore(cmd, args, "approval", "snapshot")
	if want := `relaypki rotate intermediate demo --snapshot 'vault.snap, in the safe'`; again != want {
		t.Errorf("%s, want %s", again, want)
	}
}
