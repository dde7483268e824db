package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	workflowpb "go.temporal.io/api/workflow/v1"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// ill is what a diagnosis finds: one thing of each severity.
func ill() procedure.DiagnoseResult {
	trust := check.Finding{Check: "agent-trust", Cluster: "cluster1", Object: "Secret gloo-mesh/relay-root-tls-secret", Status: check.Fail,
		Message: "the agent's trust is missing, so that it accepts no management server", Remedy: "have the setup write it again",
		Evidence: []string{"Secret gloo-mesh/relay-root-tls-secret: not found", "Pod gloo-mesh-agent-7c6f, last state: secrets \"relay-root-tls-secret\" not found"},
		Commands: []string{"relaypki setup -f mesh.yaml", `kubectl --context cluster1 --namespace gloo-mesh get secret relay-root-tls-secret --output jsonpath='{.data}'  # two spaces`},
		Mend:     &check.Mend{Do: check.SetUp}}
	return procedure.DiagnoseResult{Mesh: "demo", Checks: 40,
		Findings: []check.Finding{trust,
			{Check: "certificate-lifetime", Cluster: "cluster2", Status: check.Warn, Message: "it is overdue", Remedy: "have it issued anew", Mend: &check.Mend{Do: check.Reissue}},
			{Check: "webhook", Cluster: "mgmt", Status: check.Warn, Message: "webhooks are forbidden", Denied: true},
			{Check: "stand-in", Cluster: "mgmt", Status: check.Note, Message: "the server is the lab's stand-in"}},
		Offered: []check.Mend{{Do: check.SetUp}, {Do: check.Reissue, Cluster: "cluster2"}},
	}
}

// below is what is found without what is graver than a severity.
func below(s severity) procedure.DiagnoseResult {
	r := ill()
	for i, f := range r.Findings {
		if severityOf(f) == s {
			r.Findings, r.Offered = r.Findings[i:], nil
			return r
		}
	}
	r.Findings, r.Offered = nil, nil
	return r
}

// concluded is what a command says at the end of a diagnosis.
func concluded(t *testing.T, r procedure.DiagnoseResult, output string, failOn severity, asked ...check.Mend) (out, said string, code int) {
	t.Helper()
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var printed bytes.Buffer
	c := &cli{out: &printed, err: &printed, name: "relaypki", output: output}
	f := &follower{cli: c}
	err = (&diagnosing{cli: c, mesh: "demo", failOn: failOn, asked: asked}).conclude(ending{WorkflowID: "diagnose-demo-x", Status: "completed", Result: data}.of(procedure.DiagnoseMesh), f)
	var exit *exitError
	if errors.As(err, &exit) {
		return printed.String(), exit.Error() + "\nNext: " + exit.next, exit.code
	}
	return printed.String(), "", 0
}

// The exit code is that of the gravest finding, if that counts.
func TestExitCodesOfADiagnosis(t *testing.T) {
	reordered := below(denied)
	reordered.Findings[0], reordered.Findings[1] = reordered.Findings[1], reordered.Findings[0]
	warned := below(warning)
	warned.Findings = []check.Finding{warned.Findings[0], ill().Findings[3]}
	for _, test := range []struct {
		name   string
		found  procedure.DiagnoseResult
		failOn severity
		code   int
		says   string
	}{
		{"all kinds", ill(), informational, exitUnhealthy, "mesh demo: 1 critical, 1 not seen, 1 warning, 1 informational\nNext: relaypki diagnose demo --fix"},
		{"all kinds, critical counts", ill(), critical, exitUnhealthy, "1 critical"},
		{"not seen, whatever the order", reordered, informational, exitDenied, "do what the findings say, then: relaypki diagnose demo"},
		{"not seen counts always", below(denied), critical, exitDenied, "1 not seen"},
		{"warnings", warned, informational, exitWarnings, "1 warning, 1 informational"},
		{"warnings count", warned, warning, exitWarnings, "1 warning"},
		{"warnings do not count", warned, critical, 0, ""},
		{"informational", below(informational), informational, exitNotes, "1 informational"},
		{"informational does not count", below(informational), warning, 0, ""},
		{"nothing", below("none"), informational, 0, ""},
	} {
		out, said, code := concluded(t, test.found, "text", test.failOn)
		if code != test.code || !strings.Contains(said, test.says) {
			t.Errorf("%s: exit code %d, want %d; says %q, want %q", test.name, code, test.code, said, test.says)
		}
		if code != 0 {
			endsWithACommand(t, said)
		} else if len(test.found.Findings) > 0 {
			endsWithACommand(t, out)
		}
	}
	if exitDenied != 6 || exitWarnings != 7 || exitNotes != 8 {
		t.Error("the documented exit codes are others")
	}
}

func TestNothingIsWrong(t *testing.T) {
	if out, _, _ := concluded(t, below("none"), "text", informational); out != "Mesh demo: nothing is wrong: 40 checks.\n" {
		t.Errorf("it says %q", out)
	}
}

// A finding is told with all that belongs to it; a command is not broken into lines.
func TestFindingsOfADiagnosis(t *testing.T) {
	var out bytes.Buffer
	d := &diagnosing{cli: &cli{name: "relaypki"}, mesh: "demo"}
	paper{width: 80}.diagnosis(&out, ill(), d)
	want := `critical  cluster1  agent-trust  Secret gloo-mesh/relay-root-tls-secret
  the agent's trust is missing, so that it accepts no management server
    Secret gloo-mesh/relay-root-tls-secret: not found
    Pod gloo-mesh-agent-7c6f, last state: secrets "relay-root-tls-secret" not
      found
  do: have the setup write it again
    relaypki setup -f mesh.yaml
    kubectl --context cluster1 --namespace gloo-mesh get secret relay-root-tls-secret --output jsonpath='{.data}'  # two spaces
  relaypki can mend this: set the mesh up again as it is recorded (relaypki
    diagnose demo --fix)

warning  cluster2  certificate-lifetime
  it is overdue
  do: have it issued anew
  relaypki can mend this: issue the certificate of cluster2 anew (relaypki
    diagnose demo --fix)

not seen  mgmt  webhook
  webhooks are forbidden

informational  mgmt  stand-in
  the server is the lab's stand-in

CLUSTER   CRITICAL  NOT SEEN  WARNING  INFORMATIONAL
cluster1  1         -         -        -
cluster2  -         -         1        -
mgmt      -         1         -        1

36 of 40 checks pass.
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// However narrow, nothing is lost, and nothing but commands is wider.
	for _, width := range []int{narrowestTerminal, 40, 80} {
		var out bytes.Buffer
		p := paper{width: width, ascii: true}
		p.diagnosis(&out, ill(), d)
		p.mends(&out, ill())
		mended := ill()
		mended.Mended = []procedure.Mended{{Mend: check.Mend{Do: check.SetUp}, Error: "it is held by rotate-root-demo"}}
		p.mended(&out, mended, mended.Offered)
		var lines []string
		for line := range strings.Lines(out.String()) {
			if !strings.HasPrefix(line, "    relaypki setup -f") && !strings.HasPrefix(line, "    kubectl") {
				lines = append(lines, line)
			}
		}
		fits(t, p, strings.Join(lines, ""))
		for _, part := range []string{"so that it accepts no management server", "last state: secrets \"relay-root-tls-secret\" not found", "--output jsonpath='{.data}'  # two spaces", "it is held by rotate-root-demo"} {
			if !strings.Contains(letters(out.String()), letters(part)) {
				t.Errorf("%d columns: lacks %q:\n%s", width, part, out.String())
			}
		}
	}
}

// What others have written steers no terminal.
func TestFindingsSteerNoTerminal(t *testing.T) {
	r := ill()
	f := &r.Findings[0]
	f.Message, f.Object, f.Evidence, f.Commands = "a\x1b[2Jb", "c\x1b]0;d", []string{"e\x07f"}, []string{"echo\x1b[1m x"}
	var out bytes.Buffer
	paper{width: 80}.diagnosis(&out, r, &diagnosing{cli: &cli{name: "relaypki"}, mesh: "demo"})
	if strings.ContainsAny(out.String(), "\x1b\x07") {
		t.Errorf("%q", out.String())
	}
}

// The plan has each kind of mend once, with what it is for.
func TestPlanOfMends(t *testing.T) {
	r := ill()
	r.Findings = append(r.Findings, check.Finding{Check: "certificate-lifetime", Cluster: "cluster1", Status: check.Fail, Mend: &check.Mend{Do: check.Reissue, Cluster: "cluster1"}},
		check.Finding{Check: "vault-role", Cluster: "mgmt", Status: check.Fail, Mend: &check.Mend{Do: check.SetUp, Cluster: "mgmt"}})
	r.Offered = []check.Mend{{Do: check.SetUp}, {Do: check.Reissue, Cluster: "cluster1"}, {Do: check.Reissue, Cluster: "cluster2"}, {Do: check.Restart, Cluster: "cluster2"}}
	var out bytes.Buffer
	paper{width: 10000}.mends(&out, r)
	lines := strings.Split(out.String(), "\n")
	if len(lines) < 5 {
		t.Fatal(out.String())
	}
	for i, want := range [][]string{{"setup", "setup-demo", "cluster1 agent-trust, mgmt vault-role", "relaypki setup -f mesh.yaml --plan"}, {"reissue", "rotate-leaf-demo", "for cluster1, cluster2;", "cluster1 certificate-lifetime, cluster2 certificate-lifetime"}, {"restart", "in cluster2"}} {
		for _, part := range want {
			if !strings.Contains(lines[2+i], part) {
				t.Errorf("line %d lacks %q:\n%s", 2+i, part, out.String())
			}
		}
	}
}

// What was mended is told with what became of it, and what was not needed any more.
func TestMended(t *testing.T) {
	r := below(informational)
	r.Before = ill().Findings
	r.Mended = []procedure.Mended{{Mend: check.Mend{Do: check.SetUp}, Detail: "made again or changed: cluster1"}, {Mend: check.Mend{Do: check.Restart, Cluster: "cluster1"}, Error: "it is held by rotate-root-demo"}}
	out, _, code := concluded(t, r, "text", informational, check.Mend{Do: check.SetUp}, check.Mend{Do: check.Reissue, Cluster: "cluster2"}, check.Mend{Do: check.Restart, Cluster: "cluster1"})
	want := `MEND     CLUSTER   STATE     DETAIL
setup    all       done      made again or changed: cluster1
restart  cluster1  failed    it is held by rotate-root-demo
reissue  cluster2  not made  it was not needed any more

Before there were 4 findings. What is found now:
`
	if !strings.HasPrefix(out, want) || code != exitNotes {
		t.Errorf("exit code %d; got\n%s\nwant\n%s", code, out, want)
	}
}

func TestDiagnosisAsJSON(t *testing.T) {
	out, _, code := concluded(t, ill(), "json", informational)
	var document struct {
		Status string
		Result struct {
			Mesh, Severity string
			Findings       []struct{ Severity, Status, Cluster, Check string }
			Offered        []check.Mend
		}
	}
	if err := json.Unmarshal([]byte(out), &document); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	var got []string
	for _, f := range document.Result.Findings {
		got = append(got, f.Severity+" "+f.Status+" "+f.Cluster+" "+f.Check)
	}
	want := "critical fail cluster1 agent-trust, warning warn cluster2 certificate-lifetime, denied warn mgmt webhook, informational note mgmt stand-in"
	if strings.Join(got, ", ") != want || document.Result.Severity != "critical" || len(document.Result.Offered) != 2 || document.Status != "completed" || code != exitUnhealthy {
		t.Errorf("%s, exit code %d:\n%s", strings.Join(got, ", "), code, out)
	}
	if out, _, _ = concluded(t, below("none"), "json", informational); !strings.Contains(out, `"findings": []`) || strings.Contains(out, "severity") {
		t.Errorf("nothing is wrong:\n%s", out)
	}
}

// fixed runs "diagnose demo --fix" at a terminal at which somebody types; without one if
// nothing is typed. It answers with which mends diagnoses were started.
func fixed(t *testing.T, typed, output string, yes bool, before, after procedure.DiagnoseResult) (started [][]check.Mend, out, said string, code int) {
	t.Helper()
	var printed, asked bytes.Buffer
	args := []string{"diagnose", "demo", "--fix"}
	c := &cli{out: &printed, err: &asked, args: args, name: "relaypki", output: output}
	root := c.rootCommand()
	cmd := &cobra.Command{Use: "mend", RunE: func(cmd *cobra.Command, _ []string) error {
		d := &diagnosing{cli: c, cmd: cmd, mesh: "demo", failOn: informational, yes: yes}
		d.start = func(in procedure.DiagnoseInput, conclude func(ending, *follower) error) error {
			r := before
			if len(started) > 0 {
				r = after
			}
			started = append(started, in.Mend)
			data, err := json.Marshal(r)
			if err != nil {
				return err
			}
			return conclude(ending{WorkflowID: "diagnose-demo-x", Status: "completed", Result: data}.of(procedure.DiagnoseMesh), &follower{cli: c})
		}
		c.output = output // cobra has set it to its default
		return d.fix(procedure.DiagnoseInput{Mesh: "demo"})
	}}
	root.AddCommand(cmd)
	root.SetIn(strings.NewReader(""))
	if typed != "" {
		person, terminal := pseudoTerminal(t)
		if _, err := person.WriteString(typed); err != nil {
			t.Fatal(err)
		}
		root.SetIn(terminal)
	}
	c.args = []string{"mend"}
	root.PersistentPreRun = func(*cobra.Command, []string) { c.args = args }
	root.PersistentPreRunE = nil
	code = c.execute(t.Context(), root)
	return started, printed.String(), asked.String(), code
}

// What can be mended is shown, asked about, and then mended; without a yes nothing is.
func TestFix(t *testing.T) {
	mended := below("none")
	mended.Mended = []procedure.Mended{{Mend: check.Mend{Do: check.SetUp}, Detail: "made again or changed: cluster1"}, {Mend: check.Mend{Do: check.Reissue, Cluster: "cluster2"}, Detail: "certificate until tomorrow"}}
	mended.Before = ill().Findings
	unmendable := below(denied)
	for _, test := range []struct {
		name, typed, output string
		yes                 bool
		before              procedure.DiagnoseResult
		runs, code          int
		out, said           []string
	}{
		{"yes", "y\n", "text", false, ill(), 2, 0, []string{"critical  cluster1  agent-trust", "relaypki would mend, in this order:", "made again or changed: cluster1", "nothing is wrong"}, []string{"Mend mesh demo? [y/N]"}},
		{"no", "n\n", "text", false, ill(), 1, exitBadInput, []string{"relaypki would mend, in this order:"}, []string{"nothing was done"}},
		{"nobody there", "", "text", false, ill(), 1, exitBadInput, []string{"relaypki would mend, in this order:"}, []string{"Next: relaypki diagnose demo --fix --yes"}},
		{"--yes", "", "text", true, ill(), 2, 0, []string{"relaypki would mend, in this order:", "nothing is wrong"}, nil},
		{"one document", "", "json", true, ill(), 2, 0, []string{`"mended": [`}, nil},
		{"one document, asked for", "y\n", "json", false, ill(), 2, 0, []string{`"mended": [`}, []string{"relaypki would mend, in this order:", "Mend mesh demo?"}},
		{"nothing to mend", "", "text", false, unmendable, 1, exitDenied, []string{"not seen  mgmt"}, []string{"do what the findings say"}},
		{"nothing wrong", "", "json", false, below("none"), 1, 0, []string{`"findings": []`}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			started, out, said, code := fixed(t, test.typed, test.output, test.yes, test.before, mended)
			if len(started) != test.runs || code != test.code {
				t.Errorf("%d diagnoses, exit code %d; want %d, %d\n%s%s", len(started), code, test.runs, test.code, out, said)
			}
			for n, mends := range started {
				if want := n * len(test.before.Offered); len(mends) != want {
					t.Errorf("diagnosis %d was started with %v, want %d mends", n, mends, want)
				}
			}
			for _, want := range test.out {
				if !strings.Contains(out, want) {
					t.Errorf("it lacks %q:\n%s", want, out)
				}
			}
			for _, want := range test.said {
				if !strings.Contains(said, want) {
					t.Errorf("standard error lacks %q:\n%s", want, said)
				}
			}
			if test.output == "json" && !json.Valid([]byte(out)) {
				t.Errorf("it is not one document:\n%s", out)
			}
		})
	}
}

// A diagnosis that could not look has no findings: it failed.
func TestDiagnosisThatCouldNotLook(t *testing.T) {
	end, _ := endingOf(closed(t, failure.Permanent(failure.InvalidInput, "there is no mesh")))
	var out bytes.Buffer
	c := &cli{out: &out, err: &out, name: "relaypki", output: "text"}
	err := (&diagnosing{cli: c, mesh: "demo", failOn: critical}).conclude(end.of(procedure.DiagnoseMesh), &follower{cli: c, again: "relaypki diagnose demo"})
	var exit *exitError
	if !errors.As(err, &exit) || exit.code != exitFailed || !strings.Contains(exit.Error(), "there is no mesh") {
		t.Errorf("%v", err)
	}
}

// What is wrong with a command is said before Temporal is asked for anything.
func TestDiagnoseRefuses(t *testing.T) {
	t.Setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
	for _, test := range []struct{ words, says string }{
		{"diagnose", "which mesh"},
		{"diagnose Demo", "is not the name of a mesh"},
		{"diagnose demo --fail-on everything", "it is critical, warning or informational"},
		{"diagnose demo --cluster-timeout soon", "timeout: "},
		{"diagnose demo --cluster-timeout 1h", "timeout: 1h is not between 1s and 5m"},
		{"diagnose demo --fix --detach", "cannot be detached"},
		{"diagnose demo -f mesh.yaml", "not both"},
	} {
		var out, errOut bytes.Buffer
		if code := run(context.Background(), strings.Fields(test.words), &out, &errOut); code != exitBadInput || !strings.Contains(errOut.String(), test.says) {
			t.Errorf("%s: exit code %d, %s; want %q", test.words, code, errOut.String(), test.says)
		}
		endsWithACommand(t, errOut.String())
	}
}

// A procedure that a diagnosis has started to mend something is one that people
// steer, and not a part of it.
func TestParts(t *testing.T) {
	parent := &commonpb.WorkflowExecution{WorkflowId: "diagnose-demo-20260301T120000.123Z"}
	for _, test := range []struct {
		id, name string
		parent   *commonpb.WorkflowExecution
		part     bool
	}{
		{"setup-demo", procedure.SetupMesh, parent, false},
		{"rotate-leaf-demo", procedure.RotateLeafCertificates, parent, false},
		{"setup-demo", procedure.SetupMesh, nil, false},
		{"setup-demo/cluster1", procedure.SetupCluster, parent, true},
		{"setup-demo/verify", procedure.VerifyMesh, parent, true},
		{"typed-by-hand/verify", procedure.VerifyMesh, parent, true},
	} {
		e := executionOf(&workflowpb.WorkflowExecutionInfo{
			Execution: &commonpb.WorkflowExecution{WorkflowId: test.id}, Type: &commonpb.WorkflowType{Name: test.name},
			ParentExecution: test.parent, Status: enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING,
		})
		if e.child != test.part {
			t.Errorf("%s of %v: part %v, want %v", test.id, test.parent, e.child, test.part)
		}
	}
}

// The help has every exit code that a diagnosis can end with.
func TestExitCodesAreDocumented(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var help bytes.Buffer
	run(context.Background(), []string{"--help"}, &help, &help)
	for _, code := range []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "130"} {
		if !strings.Contains(string(readme), "\n| "+code+" | ") {
			t.Errorf("the README does not have %s", code)
		}
		if !strings.Contains(help.String(), "\n  "+pad("", 3-len(code))+code+"  ") {
			t.Errorf("the help does not have %s", code)
		}
	}
}
