package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rotation"
)

// What is wrong with a command is said before Temporal is asked for anything.
func TestRotateRootRefuses(t *testing.T) {
	t.Setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
	for _, test := range []struct{ words, says string }{
		{"rotate root Demo", "is not the name of a mesh"},
		{"rotate root demo --approval sometimes", `approval: "sometimes" is none of none, afterCanary, eachPhase`},
		{"rotate root demo --ttl soon", "root.ttl"},
		{"rotate root demo --intermediate-ttl soon", "intermediate.ttl"},
		{"rotate root demo --delete-old-keys", "--yes"},
		{"rollback demo --reason x --of leaf", `"leaf" is neither "root" nor "intermediate"`},
		{"rollback demo --of root", "it takes a reason"},
	} {
		var out, errOut bytes.Buffer
		if code := run(context.Background(), strings.Fields(test.words), &out, &errOut); code != exitBadInput || !strings.Contains(errOut.String(), test.says) {
			t.Errorf("%s: exit code %d, %s; want %q", test.words, code, errOut.String(), test.says)
		}
	}
}

// A rotation that runs goes before one that was begun later, and a plan, a part
// or another procedure is none.
func TestLastRotation(t *testing.T) {
	ended := noon.Add(time.Minute)
	root := execution{WorkflowID: "rotate-root-demo", Procedure: procedure.RotateRootCA}
	intermediate := execution{WorkflowID: "rotate-intermediate-demo", Procedure: procedure.RotateIntermediateCA}
	over := func(e execution) execution { e.Ended = &ended; return e }
	plan, part, setup := root, root, execution{WorkflowID: "setup-demo", Procedure: procedure.SetupMesh}
	plan.WorkflowID, part.child = "plan-rotate-root-demo", true
	for _, test := range []struct {
		name string
		runs []execution // the latest first
		want execution
	}{
		{"none", nil, execution{}},
		{"none that counts", []execution{plan, part, setup}, execution{}},
		{"the root's runs", []execution{setup, root, over(intermediate)}, root},
		{"the root's runs, and one of the intermediate was refused", []execution{over(intermediate), root}, root},
		{"the intermediate's runs", []execution{intermediate, over(root)}, intermediate},
		{"none runs, the root was last", []execution{plan, over(root), over(intermediate)}, over(root)},
		{"none runs, the intermediate was last", []execution{over(intermediate), over(root)}, over(intermediate)},
	} {
		got, found := lastRotation(test.runs)
		if got.WorkflowID != test.want.WorkflowID || got.Ended != test.want.Ended || found != (test.want.WorkflowID != "") {
			t.Errorf("%s: got %+v, %v; want %+v", test.name, got, found, test.want)
		}
	}
}

// A rollback whose run is gone is started as what was rotated.
func TestRollbackOf(t *testing.T) {
	for of, want := range map[string][2]string{
		"root":         {"RotateRootCA", "rotate-root-demo"},
		"intermediate": {"RotateIntermediateCA", "rotate-intermediate-demo"},
		"":             {"RotateIntermediateCA", "rotate-intermediate-demo"},
	} {
		l, in := rollbackOf(of, procedure.MeshInput{Mesh: "demo"}, "why")
		data, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		if l.procedure != want[0] || l.id != want[1] || string(data) != `{"mesh":"demo","rollback":true,"reason":"why"}` {
			t.Errorf("%q: %s as %s with %s", of, l.procedure, l.id, data)
		}
	}
}

// Of a root, what would be done is shown phase by phase, in each cluster too.
func TestPlanOfTheRoot(t *testing.T) {
	step := func(name, phase string) procedure.Step {
		return procedure.Step{Name: name, Phase: phase, Changes: []procedure.Change{{Verb: procedure.Update, Object: name}}}
	}
	f := &follower{cli: &cli{}}
	f.view.Progress.Clusters = []procedure.ClusterProgress{{Cluster: "cluster1", Workflow: "one/contract"}, {Cluster: "cluster2", Workflow: "two/trust", State: procedure.Failed, Detail: "no route"}}
	f.view.Children = map[string]procedure.Progress{}
	// In one of the phases that go over the clusters it has no turn.
	var turns []procedure.ClusterResult
	for phase, name := range map[string]string{"trust": "trust", "bridge": "certificate", "pivot": "certificate again", "contract": "trust again"} {
		f.view.Children["one/"+phase] = procedure.Progress{Ended: true, Steps: []procedure.Step{step(name, "")}}
		turns = append(turns, procedure.ClusterResult{Cluster: "cluster1", Phase: phase, Workflow: "one/" + phase})
	}
	result, err := json.Marshal(procedure.RotateResult{Mesh: "demo", Plan: true, Clusters: turns, Consumers: []string{"cluster1: ConfigMap shop/ca (ca.pem) holds it"},
		Steps: []procedure.Step{step("root", "prepare"), step("chain", "pivot"), step("chain again", "commit"), step("retire", "retire")}})
	if err != nil {
		t.Fatal(err)
	}
	p, ok := f.planOf(ending{Procedure: procedure.RotateRootCA, Result: result})
	if !ok {
		t.Fatal("it is no plan")
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
	want := []string{"prepare: root", "cluster1, trust: trust", "cluster2, trust: no route", "cluster1, bridge: certificate", "pivot: chain", "cluster1, pivot: certificate again",
		"commit: chain again", "cluster1, contract: trust again", "retire: retire"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What else holds the old root is said in a plan's script, before anything is done.
func TestPlanOfTheRootNamesConsumers(t *testing.T) {
	var out bytes.Buffer
	plan{mesh: "demo", consumers: []string{"cluster1: ConfigMap shop/ca (ca.pem) holds it"}}.script(&out, noon, "relaypki rotate root demo")
	head, _, found := strings.Cut(out.String(), "set -euo pipefail\n")
	if !found || !strings.Contains(head, "# What else holds the old root, to be looked after before the parts of contract are run:\n# - cluster1: ConfigMap shop/ca (ca.pem) holds it\n") {
		t.Errorf("it says\n%s", out.String())
	}
}

// The names of CAs are whole in a terminal of 80 columns.
func TestMatrixOfTheRoot(t *testing.T) {
	n := rotation.PlanNames{OldRoot: "relay-root-g1", NewRoot: "relay-root-g2", Bridge: "relay-bridge-g2", OldIntermediate: "relay-intermediate-g1", NewIntermediate: "relay-intermediate-g2"}
	server := rotation.PlanMember{Name: "server", Presents: n.OldIntermediate, Trusts: []string{n.OldRoot}, Chain: rotation.In(rotation.Old)}
	var agents []rotation.PlanMember
	for i, own := range []bool{false, true, false, true} {
		agent := server
		agent.Name, agent.OwnTrust = fmt.Sprintf("cluster%d", i+1), own
		agents = append(agents, agent)
	}
	var views []procedure.PhaseView
	for _, phase := range rotation.RootPlan(server, agents, n) {
		views = append(views, procedure.PhaseView{PlanPhase: phase})
	}
	var out bytes.Buffer
	paper{width: 80, height: 24}.matrix(&out, views)
	if got := strings.Count(out.String(), "\n           cluster2,  "); got == 0 {
		t.Errorf("the members have no rows:\n%s", out.String())
	}
	for _, word := range strings.Fields(out.String()) {
		word = strings.TrimSuffix(word, ",")
		if strings.Contains(word, "-") && !slices.Contains([]string{n.OldRoot, n.NewRoot, n.Bridge, n.OldIntermediate, n.NewIntermediate}, word) {
			t.Errorf("%q is cut:\n%s", word, out.String())
		}
	}
	for line := range strings.Lines(out.String()) {
		if len(strings.TrimRight(line, "\n")) > 80 {
			t.Errorf("%q is wider than the terminal", line)
		}
	}
}

// The picture says what the phase does; that of another procedure has no course.
func TestPhaseInThePicture(t *testing.T) {
	for _, test := range []struct{ name, phase, want string }{
		{"RotateRootCA", "pivot", "▸ RotateRootCA demo  pivot  1m05s  ca.crt becomes the bridge, so that the server trusts the new root's key"},
		{"RotateIntermediateCA", "canary", "▸ RotateIntermediateCA demo  canary  1m05s  the canary's certificate is issued by it"},
		{"RotateRootCA", "canary", "▸ RotateRootCA demo  canary  1m05s"},
		{"SetupMesh", "preflight", "▸ SetupMesh demo  preflight  1m05s"},
	} {
		v := running()
		v.Type, v.Progress.Procedure, v.Progress.Phase = test.name, test.name, test.phase
		if got := (paper{width: 200, height: 24}).header(v); got != test.want {
			t.Errorf("got  %q\nwant %q", got, test.want)
		}
	}
}

// Every rotation leaves clusters out by quarantine, and has phases.
func TestRotationsAreKnown(t *testing.T) {
	for name, course := range courses {
		if procedure.LeaveOut(name) != procedure.QuarantineUpdate || course.Does(rotation.PhasePreflight) == "" || procedure.ID(name, "demo") == "demo" {
			t.Errorf("%s is not wholly known", name)
		}
		if _, ok := rotationResult(ending{Procedure: name, Result: json.RawMessage(`{"mesh":"demo"}`)}); !ok {
			t.Errorf("the end of %s is not known", name)
		}
		if !strings.Contains(fmt.Sprint(changing), name) {
			t.Errorf("%s is not listed", name)
		}
	}
}
