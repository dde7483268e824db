package main

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/procedure"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func running() view {
	return view{
		Workflow: "setup-demo", Type: "SetupMesh", Started: noon.Add(-65 * time.Second), Now: noon,
		Progress: procedure.Progress{
			Procedure: "SetupMesh", Mesh: "demo", Phase: "clusters",
			Steps: []procedure.Step{
				{Name: "preflight", State: procedure.UpToDate, Detail: "3 clusters"},
				{Name: "root", State: procedure.Created, Detail: "until 2048"},
				{Name: "server", State: procedure.Running},
			},
			Clusters: []procedure.ClusterProgress{
				{Cluster: "cluster1", State: procedure.Running, Workflow: "setup-demo/cluster1"},
				{Cluster: "cluster2", State: procedure.Pending, Workflow: "setup-demo/cluster2"},
			},
		},
		Children: map[string]procedure.Progress{
			"setup-demo/cluster1": {Steps: []procedure.Step{{Name: "namespace", State: procedure.Created}, {Name: "issuer", State: procedure.Running, Detail: "not ready yet"}}},
		},
	}
}

func TestDraw(t *testing.T) {
	waiting := view{Workflow: "setup-demo", Type: "SetupMesh", Started: noon, Now: noon.Add(3 * time.Second), Notice: "waiting for a worker on task queue relaypki"}
	ended := running()
	ended.Progress.Ended, ended.Progress.Problem, ended.Progress.Phase = true, "cluster1: denied", "clusters"
	ended.Progress.Steps, ended.Progress.Clusters = nil, []procedure.ClusterProgress{{Cluster: "cluster1", State: procedure.Failed, Detail: "denied\x1b[2J\nby Vault"}}
	together := running()
	together.Children = map[string]procedure.Progress{"setup-demo/cluster1": {Steps: []procedure.Step{
		{Name: "lock", State: procedure.UpToDate, Detail: "lock taken"}, {Name: "cert-manager", State: procedure.Running},
		{Name: "credential", State: procedure.Running}, {Name: "registration", State: procedure.Created, Detail: "registered"},
	}}}
	tests := []struct {
		name  string
		paper paper
		view  view
		want  string
	}{
		{"wide", paper{width: 80, height: 24}, running(), `
▸ SetupMesh demo  clusters  1m05s

  ✓ preflight  up to date  3 clusters
  ✓ root       created     until 2048
  ▸ server     running

    CLUSTER   STATE       STEP    DETAIL
  ▸ cluster1  running     issuer  not ready yet
  · cluster2  pending`},
		{"narrow", paper{width: 32, height: 24}, running(), `
▸ SetupMesh demo  clusters  1m0…

  ✓ preflight  up to date  3 cl…
  ✓ root       created     unti…
  ▸ server     running

    CLUSTER   STATE       STEP …
  ▸ cluster1  running     issue…
  · cluster2  pending          …`},
		{"low: what is done gives way", paper{width: 80, height: 9}, running(), `
▸ SetupMesh demo  clusters  1m05s

  ▸ server  running

    CLUSTER   STATE       STEP    DETAIL
  ▸ cluster1  running     issuer  not ready yet
  · cluster2  pending`},
		{"low, and a cluster with steps that are taken at once", paper{width: 80, height: 9}, together, `
▸ SetupMesh demo  clusters  1m05s

  ▸ server  running

    CLUSTER   STATE       STEP          DETAIL
  ▸ cluster1  running     cert-manager
  · cluster2  pending`},
		{"plain characters", paper{width: 80, height: 24, ascii: true}, waiting, `
. SetupMesh  3s
  waiting for a worker on task queue relaypki`},
		{"failed, with a text that would steer the terminal", paper{width: 80, height: 24}, ended, `
✗ SetupMesh demo  clusters  1m05s

    CLUSTER   STATE       DETAIL
  ✗ cluster1  failed      denied[2J …`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := "\n" + strings.Join(test.paper.draw(test.view), "\n")
			if got != test.want {
				t.Errorf("got:%s\n\nwant:%s", got, test.want)
			}
			for _, line := range strings.Split(got, "\n") {
				if len([]rune(line)) > test.paper.width {
					t.Errorf("wider than %d: %q", test.paper.width, line)
				}
			}
		})
	}
}

func TestDrawManyClusters(t *testing.T) {
	v := running()
	v.Progress.Clusters = nil
	for i := range 200 {
		state := procedure.Done
		if i == 150 {
			state = procedure.Failed
		}
		v.Progress.Clusters = append(v.Progress.Clusters, procedure.ClusterProgress{Cluster: fmt.Sprintf("c%d", i), State: state})
	}
	p := paper{width: 80, height: 20}
	lines := p.draw(v)
	if len(lines) >= p.height {
		t.Errorf("%d lines do not fit into %d", len(lines), p.height)
	}
	text := strings.Join(lines, "\n")
	if !strings.Contains(text, "c150") {
		t.Errorf("the one that failed is not shown:\n%s", text)
	}
	if !strings.Contains(text, "more") {
		t.Errorf("nothing says that there are more:\n%s", text)
	}
}

func TestColour(t *testing.T) {
	got := paper{width: 10, colour: true}.line(span{"ab", red}, span{"cd", plain})
	if want := "\x1b[31mab\x1b[0mcd"; got != want {
		t.Errorf("line = %q, want %q", got, want)
	}
	// Escapes take no room.
	if got := (paper{width: 3, colour: true}).line(span{"abcd", green}); got != "\x1b[32mab…\x1b[0m" {
		t.Errorf("cut line = %q", got)
	}
}

func TestChanges(t *testing.T) {
	first := changes(view{}, running())
	want := []string{
		"12:00:00Z  -             -                   phase       clusters",
		"12:00:00Z  -             preflight           up to date  3 clusters",
		"12:00:00Z  -             root                created     until 2048",
		"12:00:00Z  -             server              running",
		"12:00:00Z  cluster1      namespace           created",
		"12:00:00Z  cluster1      issuer              running     not ready yet",
		"12:00:00Z  cluster1      -                   running",
	}
	if !reflect.DeepEqual(first, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(first, "\n"), strings.Join(want, "\n"))
	}
	later := running()
	later.Now = noon.Add(time.Minute)
	if again := changes(running(), later); len(again) != 0 {
		t.Errorf("nothing has changed but %q is said", again)
	}
	later.Progress.Steps[2].State = procedure.Created
	later.Notice = "waiting for a worker"
	want = []string{
		"12:01:00Z  -             -                   waiting     waiting for a worker",
		"12:01:00Z  -             server              created",
	}
	if got := changes(running(), later); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestElapsed(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 42 * time.Second: "42s", 61 * time.Second: "1m01s", 90 * time.Minute: "1h30m", 73 * time.Hour: "3d",
	} {
		if got := elapsed(d); got != want {
			t.Errorf("elapsed(%s) = %s, want %s", d, got, want)
		}
	}
}

func TestASCIIOnly(t *testing.T) {
	tests := []struct {
		env  map[string]string
		want bool
	}{
		{nil, false},
		{map[string]string{"LANG": "en_US.UTF-8"}, false},
		{map[string]string{"LANG": "C"}, true},
		{map[string]string{"LANG": "C", "LC_ALL": "C.utf8"}, false},
	}
	for _, test := range tests {
		if got := asciiOnly(func(name string) string { return test.env[name] }); got != test.want {
			t.Errorf("asciiOnly(%v) = %v", test.env, got)
		}
	}
}

// Of a rotation, what is over and went well takes a line for each phase.
func TestFolded(t *testing.T) {
	step := func(phase, name string, state procedure.State) procedure.Step {
		return procedure.Step{Phase: phase, Name: name, State: state}
	}
	got := folded([]procedure.Step{
		step("preflight", "server", procedure.UpToDate), step("preflight", "lock", procedure.UpToDate),
		step("prepare", "new root", procedure.Created), step("prepare", "bridge", procedure.Created), step("prepare", "prove", procedure.UpToDate),
		step("trust", "note", procedure.Changed),
		step("bridge", "roles", procedure.Failed), step("bridge", "roles", procedure.Done),
		step("pivot", "chain pivot", procedure.Changed), step("pivot", "server", procedure.Running),
	}, "pivot")
	var lines []string
	for _, s := range got {
		lines = append(lines, strings.TrimSpace(fmt.Sprint(s.Name, " ", s.State, " ", s.Detail)))
	}
	want := []string{
		"preflight done steps: 2, of which changed something: 0", "prepare done steps: 3, of which changed something: 2", "trust done steps: 1, of which changed something: 1",
		"roles failed", "roles done", "chain pivot changed", "server running",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("%q", lines)
	}
	// A setup's steps are of no phase.
	if alone := folded([]procedure.Step{step("", "root CA", procedure.Created)}, "verification"); len(alone) != 1 || alone[0].Name != "root CA" {
		t.Errorf("%+v", alone)
	}
}
