package rotation

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
)

var rootNames = PlanNames{OldRoot: root, NewRoot: "relay-root-g2", Bridge: "relay-bridge-g2", OldIntermediate: g1, NewIntermediate: g2}

// bundled has a bundle, own the ca.crt of its own certificate.
func bundled(name string, trusts ...string) PlanMember {
	return PlanMember{Name: name, Presents: g1, Chain: In(Old), Trusts: trusts}
}

func own(name string) PlanMember {
	return PlanMember{Name: name, Presents: g1, Chain: In(Old), Trusts: []string{root}, OwnTrust: true}
}

func TestRootPlan(t *testing.T) {
	plan := RootPlan(own("server"), []PlanMember{bundled("cluster1", root), own("cluster2"), bundled("cluster3", root)}, rootNames)
	const r2, bridge, viaBridge = "relay-root-g2", "relay-bridge-g2", g2 + ", relay-bridge-g2"
	const both = root + " and " + r2
	phase := func(p Phase, presents, owns, bundles string) PlanPhase {
		if owns == bundles {
			return PlanPhase{Phase: p, Members: []PlanRow{{"server", presents, owns}, {"cluster1, cluster2, cluster3", presents, owns}}}
		}
		return PlanPhase{Phase: p, Members: []PlanRow{{"server", presents, owns}, {"cluster1, cluster3", presents, bundles}, {"cluster2", presents, owns}}}
	}
	want := []PlanPhase{
		phase(PhasePreflight, g1, root, root),
		phase(PhasePrepare, g1, root, root),
		phase(PhaseTrust, g1, root, both),
		phase(PhaseBridge, viaBridge, root, both),
		phase(PhasePivot, viaBridge, bridge, both),
		phase(PhaseCommit, g2, r2, both),
		phase(PhaseContract, g2, r2, r2),
		phase(PhaseRetire, g2, r2, r2),
	}
	if !reflect.DeepEqual(plan, want) {
		t.Errorf("got\n%+v\nwant\n%+v", plan, want)
	}
}

// A step that is left out is found, by a plan of agents of either kind.
func TestRootPlanThatLeavesOut(t *testing.T) {
	agents := map[string]PlanMember{"a bundle": bundled("cluster1", root), "own trust": own("cluster1")}
	for _, test := range []struct {
		out    Phase
		breaks map[string]Phase // the first phase that does; empty for none
		says   string
	}{
		{PhaseBridge, map[string]Phase{"a bundle": PhasePivot, "own trust": PhasePivot}, "a certificate of " + g1 + " from cluster1 does not verify at server: the trust there is relay-bridge-g2"},
		{PhasePivot, map[string]Phase{"a bundle": PhaseCommit, "own trust": PhaseCommit}, "a certificate of " + g2 + " from cluster1 does not verify at server: the trust there is " + root},
		{PhaseTrust, map[string]Phase{"a bundle": PhaseCommit, "own trust": ""}, "a certificate of " + g2 + " from server does not verify at cluster1: the trust there is " + root},
		{PhaseCommit, map[string]Phase{"a bundle": "", "own trust": ""}, ""}, // that never ends, and cuts nobody off
		{PhaseContract, map[string]Phase{"a bundle": "", "own trust": ""}, ""},
	} {
		for kind, agent := range agents {
			steps := slices.DeleteFunc(slices.Clone(rootSteps), func(s rootStep) bool { return s.phase == test.out })
			var first Phase
			for _, p := range rootPlan(steps, own("server"), []PlanMember{agent}, rootNames) {
				if first == "" && len(p.Broken) > 0 {
					first = p.Phase
					if !slices.Contains(p.Broken, test.says) {
						t.Errorf("without %s, with %s: got %q, want %q", test.out, kind, p.Broken, test.says)
					}
				}
			}
			if first != test.breaks[kind] {
				t.Errorf("without %s, with %s: %q breaks, want %q", test.out, kind, first, test.breaks[kind])
			}
		}
	}
}

func TestRootPlanThatCuts(t *testing.T) {
	foreign := own("server")
	foreign.Trusts = []string{"other"}
	strange := bundled("cluster1", root)
	pinned := own("cluster1")
	pinned.Trusts = []string{g1}
	strange.Presents, strange.Chain = "other", 0
	for _, test := range []struct {
		name   string
		server PlanMember
		agent  PlanMember
		first  Phase // that is broken; empty for none
		says   string
	}{
		{"the old root is not in a bundle", own("server"), bundled("cluster1", "other"), PhasePreflight, "from server does not verify at cluster1: the trust there is other"},
		{"an empty bundle", own("server"), bundled("cluster1"), PhasePreflight, "the trust there is nothing"},
		{"the new root alone in a bundle", own("server"), bundled("cluster1", "relay-root-g2"), PhasePreflight, "the trust there is relay-root-g2"},
		{"the old intermediate in a bundle, which the new root joins", own("server"), bundled("cluster1", g1), "", ""},
		{"the old intermediate as own trust", own("server"), pinned, PhaseBridge, "the trust there is " + g1 + " itself and not the root " + root},
		{"the server trusts something else", foreign, bundled("cluster1", root), PhasePreflight, "from cluster1 does not verify at server: the trust there is other"},
		{"an agent's certificate is of another CA", own("server"), strange, PhasePreflight, "a certificate of other from cluster1 does not verify at server"},
		{"a bundle with more in it", own("server"), bundled("cluster1", "other", root), "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var first PlanPhase
			for _, p := range RootPlan(test.server, []PlanMember{test.agent}, rootNames) {
				if len(p.Broken) > 0 && first.Phase == "" {
					first = p
				}
			}
			if first.Phase != test.first || !strings.Contains(strings.Join(first.Broken, "\n"), test.says) {
				t.Errorf("%q is broken: %q; want %q with %q", first.Phase, first.Broken, test.first, test.says)
			}
		})
	}
}

// One that is resumed goes on from where each member is.
func TestRootPlanResumed(t *testing.T) {
	const viaBridge = g2 + ", relay-bridge-g2"
	server := PlanMember{Name: "server", Presents: g2, Chain: In(Pivot), Trusts: []string{"relay-bridge-g2"}}
	agents := []PlanMember{
		{Name: "cluster1", Presents: g2, Chain: In(Bridged), Trusts: []string{root, "relay-root-g2"}},
		{Name: "cluster2", Presents: g2, Chain: In(Pivot), Trusts: []string{"relay-bridge-g2"}, OwnTrust: true},
	}
	for _, p := range RootPlan(server, agents, rootNames) {
		if len(p.Broken) > 0 {
			t.Errorf("%s: %q", p.Phase, p.Broken)
		}
		presents := viaBridge
		if !OfRoot.Before(p.Phase, PhaseCommit) {
			presents = g2
		}
		for _, m := range p.Members {
			if m.Presents != presents {
				t.Errorf("%s: %s presents %s, want %s", p.Phase, m.Member, m.Presents, presents)
			}
		}
	}
	// It is two modes behind the server: only old and bridged shake hands.
	agents[0].Chain, agents[0].Presents = In(Old), g1
	plan := RootPlan(server, agents, rootNames)
	if len(plan[0].Broken) != 1 || !strings.Contains(plan[0].Broken[0], "from cluster1 does not verify at server") {
		t.Errorf("got %q", plan[0].Broken)
	}
}

// For each mode, what a plan says that a chain verifies under is what the model
// says, and so for ca.crt.
func TestPlanNamesAreTheModel(t *testing.T) {
	names := map[Roots]string{OldRoot: root, NewRoot: "relay-root-g2", Itself: g2}
	for mode := range Mode(modes) {
		for anchor, name := range names {
			if got, want := slices.Contains(rootNames.chain(mode).leads, name), mode.LeadsTo()&anchor != 0; got != want {
				t.Errorf("%s leads to %s: %v, want %v", mode, name, got, want)
			}
		}
		if want := names[mode.Anchor()]; mode != Pivot && !slices.Equal(rootNames.anchor(mode), []string{want}) {
			t.Errorf("%s: ca.crt is %s, want %s", mode, rootNames.anchor(mode), want)
		}
	}
	if got := rootNames.anchor(Pivot); !slices.Equal(got, []string{"relay-bridge-g2"}) {
		t.Errorf("pivot: ca.crt is %s", got)
	}
}

func TestRootLasts(t *testing.T) {
	const leaf = 24 * time.Hour
	pace := Pace{Clusters: 3, Parallelism: 10, PerCluster: time.Minute}
	never := pace
	never.Windows = []mesh.Window{{Days: []string{"Someday"}, From: "22:00", To: "00:00"}}
	for _, test := range []struct {
		name     string
		now, end string
		pace     Pace
		want     string
	}{
		// Two minutes for the server and the others, four times over, and a leaf's life.
		{"just in time", "2026-07-30 23:52", "2026-08-01 00:00", pace, ""},
		{"a minute late", "2026-07-30 23:53", "2026-08-01 00:00", pace, "had to begin by 2026-07-30 23:52 UTC"},
		{"it has ended", "2026-08-02 00:00", "2026-08-01 00:00", pace, "a larger rollout.waveSize"},
		{"windows that never open", "2026-07-30 23:53", "2040-08-01 00:00", never, "no such time in the maintenance windows"},
		{"years are left", "2026-07-30 23:53", "2040-08-01 00:00", pace, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := RootLasts(utc(t, test.end), leaf, test.pace, utc(t, test.now))
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
