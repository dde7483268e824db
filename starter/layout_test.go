package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// fits fails the test for lines that are wider than the paper, and for control
// characters where there should be none.
func fits(t *testing.T, p paper, text string) {
	t.Helper()
	for _, line := range strings.Split(text, "\n") {
		if len([]rune(line)) > p.width {
			t.Errorf("wider than %d: %q", p.width, line)
		}
		for _, r := range line {
			if r < ' ' || p.ascii && r > '~' {
				t.Errorf("%q in %q", r, line)
			}
		}
	}
}

// letters is a text without what layout changes.
func letters(text string) string { return strings.Join(strings.Fields(text), "") }

func TestWrap(t *testing.T) {
	tests := []struct {
		name, text, want string
		width            int
	}{
		{"fits", "a short text", "  a short text", 20},
		{"exactly", "a short text", "  a short text", 14},
		{"at spaces", "a text that is longer than a line", "  a text that\n    is longer\n    than a line", 15},
		{"at a dash in a long word", "production-europe-west", "  production-\n    europe-west", 16},
		{"anywhere", "aaaaaaaaaaaaaaaa", "  aaaaaa\n    aaaa\n    aaaa\n    aa", 8},
		{"nothing", "", "", 8},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := strings.Join((paper{width: test.width}).wrap(2, 4, span{test.text, plain}), "\n"); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
	// Escapes take no room, and no line leaves a colour on.
	got := paper{width: 6, colour: true}.wrap(0, 0, span{"ab cd", red}, span{" ef gh", plain})
	if want := []string{"\x1b[31mab cd\x1b[0m", "ef gh"}; strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got %q, want %q", got, want)
	}
	// However narrow, it ends.
	(paper{width: 1}).wrap(5, 9, span{"some text", plain})
}

func TestTable(t *testing.T) {
	rows := [][]span{
		{{"WORKFLOW", dim}, {"STATE", dim}, {"TOOK", dim}},
		{{"setup-demo", plain}, {"waits for you", yellow}, {"3m00s", plain}},
		{{"add-demo-cluster-in-europe-west-1", plain}, {"running", cyan}, {"2s", plain}},
	}
	tests := []struct {
		name  string
		width int
		want  string
	}{
		{"wide", 80, `
  WORKFLOW                           STATE          TOOK
  setup-demo                         waits for you  3m00s
  add-demo-cluster-in-europe-west-1  running        2s
`},
		{"narrower: a cell is wrapped", 50, `
  WORKFLOW                    STATE          TOOK
  setup-demo                  waits for you  3m00s
  add-demo-cluster-in-        running        2s
  europe-west-1
`},
		{"narrow: a list", 30, `
  WORKFLOW  setup-demo
  STATE     waits for you
  TOOK      3m00s

  WORKFLOW  add-demo-cluster-
            in-europe-west-1
  STATE     running
  TOOK      2s

`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			p := paper{width: test.width}
			p.table(&out, 2, rows)
			if got := "\n" + out.String(); got != test.want {
				t.Errorf("got:%s\nwant:%s", got, test.want)
			}
			fits(t, p, out.String())
		})
	}
}

func TestFindingsFit(t *testing.T) {
	findings := []check.Finding{
		{Check: "fresh-handshake", Cluster: "cluster-in-europe-west-1", Status: check.Fail, Message: "the server says: remote error: tls: bad certificate", Remedy: "set the mesh up again, so that the agent's trust is that of the server's certificate"},
		{Check: "certificate-ready", Cluster: "mgmt", Status: check.Pass, Message: "until tomorrow"},
	}
	text := func(width int) string {
		var out bytes.Buffer
		p := paper{width: width, ascii: true}
		p.findings(&out, findings)
		fits(t, p, out.String())
		return out.String()
	}
	wide := text(10000)
	for _, width := range []int{80, 60, 40, 25} {
		if got := text(width); letters(got) != letters(wide) {
			t.Errorf("at %d columns something is lost:\n%s", width, got)
		}
	}
}

// What a procedure waits for ends with what to type, so it is not cut.
func TestNoticeIsWrapped(t *testing.T) {
	v := running()
	v.Progress.Person = true
	v.Progress.Awaiting = "cluster2 parked. Put it right, then: relaypki retry demo; or leave it out: relaypki skip demo cluster2 --reason ..."
	v.Progress.Clusters[1].State, v.Progress.Clusters[1].Detail = procedure.Parked, "the API server cannot be reached"
	for _, width := range []int{80, 40} {
		p := paper{width: width, height: 24, ascii: true}
		text := strings.Join(p.draw(v), "\n")
		fits(t, p, text)
		if !strings.Contains(letters(text), letters("waiting for you: "+v.Progress.Awaiting+"cluster2: the API server cannot be reached")) {
			t.Errorf("at %d columns it is cut:\n%s", width, text)
		}
		if !strings.Contains(text, "! cluster2") {
			t.Errorf("the parked cluster is not marked:\n%s", text)
		}
	}
}

func TestParkedComesFirst(t *testing.T) {
	v := running()
	v.Progress.Clusters = nil
	for range 30 {
		v.Progress.Clusters = append(v.Progress.Clusters, procedure.ClusterProgress{Cluster: "done", State: procedure.Done})
	}
	v.Progress.Clusters = append(v.Progress.Clusters, procedure.ClusterProgress{Cluster: "late", State: procedure.Parked})
	if text := strings.Join((paper{width: 80, height: 20}).draw(v), "\n"); !strings.Contains(text, "late") {
		t.Errorf("the parked cluster is not shown:\n%s", text)
	}
}

func TestWaiting(t *testing.T) {
	f := &follower{id: "setup-demo", runID: "r"}
	f.view.Type = procedure.SetupMesh
	f.view.Progress = procedure.Progress{Procedure: procedure.SetupMesh, Mesh: "demo", Person: true, Awaiting: "cluster2 parked",
		Clusters: []procedure.ClusterProgress{{Cluster: "cluster1", State: procedure.Done}, {Cluster: "cluster2", State: procedure.Parked, Detail: "connection refused"}}}
	var out bytes.Buffer
	c := &cli{out: &out, err: &out, name: "relaypki", output: "text"}
	f.cli = c
	if code := c.end(c.waiting(f)); code != exitWaiting {
		t.Errorf("exit code %d", code)
	}
	want := `  cluster2 parked: connection refused
relaypki: workflow setup-demo waits for you: 1 cluster is parked
Next: relaypki retry demo cluster2
      relaypki skip demo cluster2 --reason WHY
      relaypki abort demo --reason WHY
      relaypki watch setup-demo
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	c.output = "json"
	if err := c.waiting(f); err == nil {
		t.Error("no exit code")
	}
	var document ending
	if err := json.Unmarshal(out.Bytes(), &document); err != nil || document.Status != "waiting" || document.Progress == nil || len(document.Progress.Clusters) != 2 {
		t.Errorf("document %+v, %v", document, err)
	}
}

// A run that left clusters out says which, why, and how to have them done.
func TestLeftOut(t *testing.T) {
	report := procedure.Progress{Procedure: procedure.SetupMesh, Mesh: "demo", Clusters: []procedure.ClusterProgress{
		{Cluster: "cluster1", State: procedure.Done}, {Cluster: "cluster2", State: procedure.Skipped, Detail: "in repair"}, {Cluster: "cluster3", State: procedure.Pending},
	}}
	for kind, want := range map[failure.Kind][]string{
		failure.Incomplete: {"NOT DONE  STATE    WHY\ncluster2  skipped  in repair\n\n", "setup-demo failed: 1 of 3 clusters were left out. Start again\n", "relaypki setup -f mesh.yaml"},
		failure.Aborted:    {"cluster2  skipped       in repair\n", "cluster3  not finished\n", "relaypki setup -f mesh.yaml"},
	} {
		e, ok := endingOf(closed(t, failure.PermanentWithDetails(kind, "1 of 3 clusters were left out. Start again:\n- cluster2 skipped: in repair", report)))
		if !ok {
			t.Fatal("no ending")
		}
		e.WorkflowID = "setup-demo"
		var out bytes.Buffer
		c := &cli{out: &out, err: &out, name: "relaypki", output: "text"}
		f := &follower{cli: c, again: "relaypki setup -f mesh.yaml"}
		if code := c.end(c.conclude(e.of(procedure.SetupMesh), f)); code != exitFailed {
			t.Errorf("%s: exit code %d", kind, code)
		}
		for _, part := range want {
			if !strings.Contains(out.String(), part) {
				t.Errorf("%s: lacks %q:\n%s", kind, part, out.String())
			}
		}
	}
}

func TestStatusFits(t *testing.T) {
	ended := noon.Add(time.Minute)
	status := meshStatus{Mesh: "demo", Procedures: []execution{
		{WorkflowID: "setup-demo", Procedure: procedure.SetupMesh, State: "running", Started: noon, Person: true, Parked: []procedure.ClusterProgress{{Cluster: "cluster2", State: procedure.Parked, Detail: "the API server cannot be reached"}}},
		{WorkflowID: "setup-demo", Procedure: procedure.SetupMesh, State: "running", Started: noon, Silent: true, taskQueue: "relaypki"},
		{WorkflowID: "add-demo-cluster-in-europe-west-1", Procedure: procedure.AddCluster, State: "completed", Started: noon, Ended: &ended},
	}}
	var out bytes.Buffer
	(&cli{out: &out, name: "relaypki"}).printStatus(status)
	for _, want := range []string{
		"  SetupMesh   setup-demo                         waits for you       2026-03-01 12:00:00Z  ",
		"  AddCluster  add-demo-cluster-in-europe-west-1  completed           2026-03-01 12:00:00Z  1m00s\n",
		"  running, no answer  ", "\n  setup-demo does not tell how far it is: is there a worker on task queue relaypki?\n",
		"  setup-demo waits for you:\n    cluster2 parked: the API server cannot be reached\n    relaypki retry demo cluster2\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("lacks %q:\n%s", want, out.String())
		}
	}
}

// On a narrow terminal what to do is wrapped, and the command has a line of
// its own.
func TestNextFits(t *testing.T) {
	person, terminal := pseudoTerminal(t)
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: 40, Row: 24}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TERM", "xterm")
	c := &cli{err: terminal}
	c.end(&exitError{code: exitFailed, err: errors.New("setup-demo failed: Vault is sealed and nothing goes on"), next: "put it right (what is done already is left alone), then: relaypki setup -f a-mesh-file-with-a-name-that-is-longer-than-a-line.yaml"})
	if _, err := terminal.WriteString("\x04"); err != nil {
		t.Fatal(err)
	}
	said, err := bufio.NewReader(person).ReadString(4)
	want := `relaypki: setup-demo failed: Vault is
  sealed and nothing goes on
Next: put it right (what is done already
  is left alone), then:
      relaypki setup -f a-mesh-file-with-a-name-that-is-longer-than-a-line.yaml
`
	if got := strings.ReplaceAll(strings.TrimSuffix(said, "\x04"), "\r\n", "\n"); err != nil || got != want {
		t.Errorf("got\n%s\nwant\n%s(%v)", got, want, err)
	}
}
