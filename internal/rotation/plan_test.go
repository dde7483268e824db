package rotation

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const g1, g2, root = "relay-intermediate-g1", "relay-intermediate-g2", "relay-root-g1"

func planned(trusts ...string) func(name string) PlanMember {
	return func(name string) PlanMember { return PlanMember{Name: name, Presents: g1, Trusts: trusts} }
}

func phasesOf(plan []PlanPhase) []Phase {
	var out []Phase
	for _, p := range plan {
		out = append(out, p.Phase)
	}
	return out
}

func TestIntermediatePlan(t *testing.T) {
	well := planned(root)
	plan := IntermediatePlan(well("server"), []PlanMember{well("cluster1"), planned(root, "relay-root-g2")("cluster2"), well("cluster3")}, []string{"cluster3"}, root, g1, g2)
	const both = root + " and relay-root-g2"
	now := []PlanRow{{"server", g1, root}, {"cluster1, cluster3", g1, root}, {"cluster2", g1, both}}
	all := []PlanRow{{"server", g2, root}, {"cluster1, cluster3", g2, root}, {"cluster2", g2, both}}
	want := []PlanPhase{
		{Phase: PhasePreflight, Members: now},
		{Phase: PhaseStage, Members: now},
		{Phase: PhaseCanary, Members: []PlanRow{{"server", g1, root}, {"cluster1", g1, root}, {"cluster2", g1, both}, {"cluster3", g2, root}}},
		{Phase: PhaseServer, Members: []PlanRow{{"server", g2, root}, {"cluster1", g1, root}, {"cluster2", g1, both}, {"cluster3", g2, root}}},
		{Phase: PhaseFleet, Members: all},
		{Phase: PhaseRetire, Members: all},
	}
	if !reflect.DeepEqual(plan, want) {
		t.Errorf("got\n%+v\nwant\n%+v", plan, want)
	}
}

// Who trusts the intermediate and not its root is cut off as soon as the other
// side may present the new one.
func TestIntermediatePlanThatCuts(t *testing.T) {
	well, pinned := planned(root), planned(g1)
	for _, test := range []struct {
		name   string
		server PlanMember
		agents []PlanMember
		canary []string
		want   map[Phase][]string
	}{
		{"an agent trusts the intermediate", well("server"), []PlanMember{well("cluster1"), pinned("cluster2")}, []string{"cluster1"}, map[Phase][]string{
			PhaseServer: {"a certificate of " + g2 + " from server does not verify at cluster2: the trust there is " + g1 + " itself and not the root " + root},
		}},
		{"the server does", pinned("server"), []PlanMember{well("cluster1"), well("cluster2"), well("cluster3")}, []string{"cluster1"}, map[Phase][]string{
			PhaseCanary: {"a certificate of " + g2 + " from cluster1 does not verify at server: the trust there is " + g1 + " itself and not the root " + root},
			PhaseFleet:  {"a certificate of " + g2 + " from cluster1, cluster2, cluster3 does not verify at server"},
		}},
		{"an agent trusts another root", well("server"), []PlanMember{planned("relay-root-g2")("cluster1")}, nil, map[Phase][]string{
			PhasePreflight: {"a certificate of " + g1 + " from server does not verify at cluster1: the trust there is relay-root-g2"},
		}},
		{"an agent trusts nothing", well("server"), []PlanMember{planned()("cluster1")}, nil, map[Phase][]string{
			PhasePreflight: {"a certificate of " + g1 + " from server does not verify at cluster1: the trust there is nothing"},
		}},
		{"nobody is cut off", well("server"), []PlanMember{well("cluster1"), planned(g1, root)("cluster2")}, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			plan := IntermediatePlan(test.server, test.agents, test.canary, root, g1, g2)
			var began bool
			for _, p := range plan {
				want, changes := test.want[p.Phase]
				began = began || changes
				switch {
				case !began && len(p.Broken) > 0, len(test.want) == 0 && len(p.Broken) > 0:
					t.Errorf("%s is broken: %q", p.Phase, p.Broken)
				case began && len(p.Broken) == 0:
					t.Errorf("%s is whole again", p.Phase)
				case changes && !slices.EqualFunc(p.Broken, want, strings.HasPrefix):
					t.Errorf("%s: got %q, want %q", p.Phase, p.Broken, want)
				}
			}
		})
	}
}

// Many agents are counted, not named, and a rotation that is resumed begins
// where it is.
func TestIntermediatePlanOfMany(t *testing.T) {
	var agents []PlanMember
	for i := range 48 {
		agents = append(agents, planned(g1)(fmt.Sprintf("cluster%d", i+1)))
	}
	agents = append(agents, PlanMember{Name: "done", Presents: g2, Trusts: []string{root}})
	plan := IntermediatePlan(planned(root)("server"), agents, []string{"done"}, root, g1, g2)
	if want := (PlanRow{"48 clusters (cluster1 to cluster48)", g1, g1}); plan[0].Members[1] != want {
		t.Errorf("got %+v", plan[0].Members)
	}
	if len(plan[2].Members) != 3 || plan[2].Members[2] != (PlanRow{"done", g2, root}) {
		t.Errorf("got %+v", plan[2].Members)
	}
	at := slices.Index(phasesOf(plan), PhaseServer)
	if want := "from server does not verify at 48 clusters (cluster1 to cluster48): the trust"; len(plan[at].Broken) != 1 || !strings.Contains(plan[at].Broken[0], want) {
		t.Errorf("got %q", plan[at].Broken)
	}
	if len(IntermediatePlan(planned(root)("server"), nil, nil, root, g1, g2)) != len(plan) {
		t.Error("a mesh without agents has other phases")
	}
}
