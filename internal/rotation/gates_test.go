package rotation

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var soak = flag.Bool("soak", false, "walk what takes many minutes and gigabytes too")

// What is walked whole, every interleaving of all that the model has:
//
//   - exactly, the server and one agent, of either kind;
//   - in the lean model, the server and one, two and three agents of all kinds
//     together, in a rotation of the root and in one of an intermediate that ends
//     in pinned; and with all modes of both in one, such as pinned out of pivot,
//     the server and one agent of either kind, and two of their own trust.
//
// That what is found there is true rests on four things, each of them tested. The
// lean model comes wherever the exact one comes: leanCovers, at each of its steps;
// what happens to one member by itself is no matter of how many there are, and the
// gates see the same. Agents in the same state are interchangeable, and a step that
// a fleet allows, the server and each agent alone allow: gatesAreAboutPairs, in
// every world of two agents, and by chance for larger ones. From the latter follows
// the rest, for any number of agents: whatever can happen to one among others can
// happen to it alone, and a handshake is between the server and one. And the walk
// finds what is wrong: TestEveryConditionIsNecessary, TestWrongProcedures and
// TestWrongAmongAgents.

func TestNoHandshakeFailsExactly(t *testing.T) {
	for name, m := range map[string]model{"a root": ofRoot(), "an intermediate": ofIntermediate()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			exact := newWalker(m)
			safe(t, exact, leanCovers(t, exact))
		})
	}
}

func TestNoHandshakeFails(t *testing.T) {
	pastBridged := ofIntermediate()
	pastBridged.chains = []Mode{Pivot, Final, Pinned}
	ownTrust := []bool{true}
	for _, walk := range []struct {
		name   string
		model  model
		agents int
		kinds  []bool
		soak   bool
	}{
		{"a root", ofRoot(), 2, bothKinds, false},
		{"a root", ofRoot(), 3, bothKinds, false},
		{"an intermediate", ofIntermediate(), 2, bothKinds, false},
		{"an intermediate", ofIntermediate(), 3, bothKinds, false},
		{"a root, or pinned", ofRoot().withAll(), 1, bothKinds, false},
		{"a root, or pinned", ofRoot().withAll(), 2, ownTrust, false},
		{"a root, or pinned", ofRoot().withAll(), 3, ownTrust, true},
		{"an intermediate in the midst of a root", ofIntermediate().withAll(), 1, bothKinds, false},
		{"an intermediate in the midst of a root", ofIntermediate().withAll(), 2, ownTrust, false},
		{"an intermediate in the midst of a root, past bridged", pastBridged, 2, bothKinds, true},
	} {
		t.Run(fmt.Sprintf("%s, %d of %d kinds", walk.name, walk.agents, len(walk.kinds)), func(t *testing.T) {
			if walk.soak && !*soak {
				t.Skip("it takes a minute and a gigabyte: go test ./internal/rotation -args -soak")
			}
			if raced && walk.agents == 3 {
				t.Skip("without -race: there is no race to find, and it takes minutes")
			}
			t.Parallel()
			m := walk.model
			m.lean, m.agents, m.kinds = true, walk.agents, walk.kinds
			w := newWalker(m)
			if m.agents == 2 && len(m.kinds) == 2 && !walk.soak {
				safe(t, w, gatesAreAboutPairs(t, w))
			} else {
				safe(t, w)
			}
		})
	}
}

// gatesAreAboutPairs fails the test where a fleet allows a step that the server and
// one of its agents alone do not, or does not allow in another order.
func gatesAreAboutPairs(t *testing.T, w *walker) func(at world, nexts []next) {
	return func(at world, _ []next) {
		f := w.look(at)
		other := f
		other.Agents = slices.Clone(f.Agents)
		slices.Reverse(other.Agents)
		for kind := UseNew; kind <= Rejoin; kind++ {
			for _, name := range w.names {
				step := Step{kind, name}
				may := len(w.gates.Waits(f, step)) == 0
				if may != (len(w.gates.Waits(other, step)) == 0) {
					t.Fatalf("%s: it matters in which order the agents are: %+v", step, f)
				}
				if may {
					allowedByPairs(t, w.gates, f, step)
				}
			}
		}
	}
}

// allowedByPairs fails the test if the server and one agent, which sees something
// of the step, do not allow it.
func allowedByPairs(t *testing.T, gates Gates, f Fleet, step Step) {
	t.Helper()
	for i, agent := range f.Agents {
		if agent.Name != step.Member && f.Server.Name != step.Member {
			continue // it sees nothing of the step
		}
		pair := f
		pair.Agents = f.Agents[i : i+1]
		if reasons := gates.Waits(pair, step); len(reasons) > 0 {
			t.Fatalf("%s: the fleet allows it, the pair with %s does not: %v\n%+v", step, agent.Name, reasons, f)
		}
	}
}

// leanCovers fails the test where a step of the exact model is not taken by the
// lean one too, in one step or two or because it sees nothing of it, and where a
// member shakes hands in the lean model that does not in the exact one.
func leanCovers(t *testing.T, exact *walker) func(at world, nexts []next) {
	m := exact.model
	m.lean = true
	lean := newWalker(m)
	var leaner []id // by the exact one's
	like := func(at world) world {
		for len(leaner) < len(exact.truths) {
			e := exact.of[len(leaner)]
			leaner = append(leaner, lean.id(leaned(e.truth)))
			l := lean.of[leaner[len(leaner)-1]]
			if !e.quarantined && (e.presents&^l.presents != 0 || l.accepts&^e.accepts != 0) {
				t.Fatalf("handshakes with\n%+v\nfail that do not with\n%+v", e.truth, l.truth)
			}
		}
		at.server = leaner[at.server]
		for i, a := range at.agents {
			at.agents[i] = leaner[a]
		}
		return at
	}
	type edge struct{ from, to packed }
	seen := map[edge]bool{}
	takes := func(from, to packed) bool {
		for _, n := range lean.after(lean.world(from), nil) {
			if lean.packed(n.to) == to {
				return true
			}
		}
		return false
	}
	return func(at world, nexts []next) {
		from := like(at)
		for _, n := range nexts {
			to := like(n.to)
			if to == from {
				continue
			}
			e := edge{lean.packed(from), lean.packed(to)}
			if seen[e] {
				continue
			}
			seen[e] = true
			if takes(e.from, e.to) || slices.ContainsFunc(lean.after(lean.world(e.from), nil), func(n next) bool { return takes(lean.packed(n.to), e.to) }) {
				continue
			}
			t.Fatalf("%s: the lean model does not come from\n%+v %+v\nto\n%+v %+v", phrase(n.what, exact.names[n.who]),
				lean.truths[from.server], lean.truths[from.agents[0]], lean.truths[to.server], lean.truths[to.agents[0]])
		}
	}
}

// safe fails the test if a handshake fails, or if not all that there is to try
// was tried: an agent that joins and one that comes back in every mode, and every
// way between neighbours, there and back.
func safe(t *testing.T, w *walker, each ...func(at world, nexts []next)) {
	t.Helper()
	states, trace := w.walk(t, each...)
	if trace != nil {
		t.Fatalf("a handshake fails:\n  %s", strings.Join(trace, "\n  "))
	}
	all := In(w.chains...)
	if w.served != all|In(w.previous) || w.joined != all || w.returned != all {
		t.Errorf("the server was %s, agents joined in %s and came back in %s, and not in all of %s and %s: the gates let nobody through",
			w.served, w.joined, w.returned, w.previous, all)
	}
	for _, ways := range [][2]Mode{{Bridged, Pivot}, {Pivot, Final}, {Pivot, Pinned}, {Final, Pinned}} {
		a, b := ways[0], ways[1]
		if all.Has(a) && all.Has(b) && !(w.went[a].Has(b) && w.went[b].Has(a)) {
			t.Errorf("it went from %s to %s and from %s to %s, not between %s and %s both ways", a, w.went[a], b, w.went[b], a, b)
		}
	}
	for _, mode := range w.chains {
		t.Logf("from %s it went to %s", mode, w.went[mode])
	}
	t.Logf("%d states, of members %d", states, len(w.truths))
}

// Six agents, in everything that may happen to one, by chance and not whole. That
// a mistake is found this way is seen too.
func TestNoHandshakeFailsAmongMany(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const ways, steps = 150, 250
	for name, m := range map[string]model{"a root": ofRoot(), "an intermediate": ofIntermediate(), "all": ofRoot().withAll()} {
		random := rand.New(rand.NewPCG(seed, 0))
		m.agents = most
		w := newWalker(m)
		for range ways {
			if trace := w.wander(random, steps); trace != nil {
				t.Fatalf("%s: a handshake fails:\n  %s", name, strings.Join(trace, "\n  "))
			}
		}
		if way := In(m.previous, m.chains[0]); w.served&way != way {
			t.Errorf("%s: the server was %s and nothing else: nothing was tried", name, w.served)
		}
		m.gates = Gates{}
		w = newWalker(m)
		found := false
		for range ways {
			found = found || w.wander(random, steps) != nil
		}
		if !found {
			t.Errorf("%s: without any gate no handshake fails", name)
		}
	}
}

// Without any one of its conditions, a gate lets a handshake fail.
func TestEveryConditionIsNecessary(t *testing.T) {
	for kind, conditions := range Standard {
		for i := range conditions {
			models := []model{ofIntermediate(), ofRoot()}
			if kind == ToBridged && i == 1 || kind == ToPinned && i == 0 {
				// Linked and pinned meet bridged in no other.
				models = []model{ofIntermediate().withAll()}
				models[0].kinds = []bool{true}
			}
			gates := with(kind, slices.Delete(slices.Clone(conditions), i, i+1)...)
			t.Run(fmt.Sprintf("%s/%d", Step{kind, "a member"}, i+1), func(t *testing.T) {
				seenToFail(t, models, func(m *model) { m.gates = gates })
			})
		}
	}
}

// with are the gates with other conditions for one step.
func with(kind StepKind, conditions ...condition) Gates {
	gates := maps.Clone(Standard)
	gates[kind] = conditions
	return gates
}

// What is done wrong, by hand or by a tool, is seen to fail.
func TestWrongProcedures(t *testing.T) {
	gates := func(kind StepKind, conditions ...condition) func(m *model) {
		return func(m *model) { m.gates = with(kind, conditions...) }
	}
	for name, wrong := range map[string]func(m *model){
		"the bridge is skipped": gates(UseNew),
		"committed with an agent of its own trust still bridged": gates(ToFinal, func(f Fleet, _ Step) []Reason {
			return trusting([]Member{f.Server}, NewRoot)
		}),
		"contracted on what is stored alone": gates(DropOld, func(f Fleet, step Step) []Reason {
			f.Server.Chain.InFlight, f.Server.Chain.Loaded = 0, 0
			return serverVerifies(f, step)
		}),
		"final straight to bridged": gates(ToBridged),
		"pivot before all roles have moved": gates(ToPivot, func(f Fleet, _ Step) []Reason {
			f.Agents = slices.Clone(f.Agents)
			for i := range f.Agents {
				f.Agents[i].Chain.InFlight = 0
			}
			return notOld(f, Step{})
		}),
		"a mode remembered and set again":                 func(m *model) { m.again = true },
		"a new intermediate pinned, and not linked first": gates(UseNew, bridgedOrLate),
		// A container that has started again in an old Pod may still mount the old Secret.
		"loaded told by when the container started": func(m *model) {
			m.mistakes = func(server bool, m *Member) {
				if !server {
					m.Chain.Loaded, m.Bundle.Loaded, m.LoadedAnchor = m.Chain.Stored, m.Bundle.Stored, m.Chain.Stored.Anchors()
				}
			}
		},
		// A request of the acceptable CAs says more than the chain does.
		"the server's trust told by its chain": func(m *model) {
			m.mistakes = func(server bool, m *Member) {
				if server {
					m.LoadedAnchor = m.Chain.Loaded.Anchors()
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) { seenToFail(t, []model{ofIntermediate(), ofRoot()}, wrong) })
	}
}

// seenToFail fails the test if with what is wrong no handshake fails, in any of
// the models.
func seenToFail(t *testing.T, models []model, wrong func(m *model)) {
	t.Helper()
	for _, m := range models {
		wrong(&m)
		states, trace := newWalker(m).walk(t)
		if trace != nil {
			t.Logf("%s and %s, after %d states:\n  %s", m.previous, In(m.chains...), states, strings.Join(trace, "\n  "))
			return
		}
	}
	t.Error("no handshake fails")
}

// What is wrong only where there are more agents is found by the walks with more,
// and by none with fewer.
func TestWrongAmongAgents(t *testing.T) {
	first := func(n int) func(condition) condition {
		return func(c condition) condition {
			return func(f Fleet, step Step) []Reason {
				f.Agents = f.Agents[:min(n, len(f.Agents))]
				return c(f, step)
			}
		}
	}
	one := func(c condition) condition {
		return func(f Fleet, step Step) (reasons []Reason) {
			all := f.Agents
			for i := range all {
				f.Agents = all[i : i+1]
				if reasons = c(f, step); reasons == nil {
					return nil
				}
			}
			return c(f, step)
		}
	}
	for _, wrong := range []struct {
		name string
		by   func(condition) condition
		// among is how many agents it takes.
		among int
	}{
		{"the first agent alone is looked at", first(1), 2},
		{"one agent that is ready is enough", one, 2},
		{"the first two agents alone are looked at", first(2), 3},
	} {
		for kind, m := range map[StepKind]model{ToBridged: ofRoot(), ToPivot: ofRoot(), ToFinal: ofRoot(), UseOld: ofRoot(), ToPinned: ofIntermediate()} {
			t.Run(fmt.Sprintf("%s/%s", wrong.name, Step{kind, "a member"}), func(t *testing.T) {
				var conditions []condition
				for _, c := range Standard[kind] {
					conditions = append(conditions, wrong.by(c))
				}
				m.gates, m.lean, m.kinds, m.agents = with(kind, conditions...), true, []bool{true}, wrong.among-1
				if _, trace := newWalker(m).walk(t); trace != nil {
					t.Errorf("it is found with fewer than %d agents:\n  %s", wrong.among, strings.Join(trace, "\n  "))
				}
				m.agents = wrong.among
				states, trace := newWalker(m).walk(t)
				if trace == nil {
					t.Fatal("no handshake fails")
				}
				t.Logf("after %d states:\n  %s", states, strings.Join(trace, "\n  "))
			})
		}
	}
}

// What gatesAreAboutPairs is for two agents, by chance for more.
func TestGatesAreAboutPairs(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	allowed := 0
	for range 20000 {
		f := randomFleet(random)
		for kind := UseNew; kind <= Rejoin; kind++ {
			for _, member := range append([]Member{f.Server}, f.Agents...) {
				step := Step{kind, member.Name}
				if len(Standard.Waits(f, step)) == 0 {
					allowed++
					allowedByPairs(t, Standard, f, step)
				}
			}
		}
	}
	if allowed < 1000 {
		t.Errorf("%d steps were allowed: nothing was tried", allowed)
	}
}

// Who knows less waits for more: no step becomes allowed by taking something for
// possible that is not so.
func TestLessKnownWaitsForMore(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 20000 {
		f := randomFleet(random)
		less := Fleet{Mode: f.Mode, Previous: f.Previous, Server: f.Server, Agents: slices.Clone(f.Agents)}
		for i := range less.Agents {
			a := &less.Agents[i]
			switch random.IntN(4) {
			case 0:
				a.Chain.Loaded = AnyMode
			case 1:
				a.Chain.InFlight |= randomModes(random)
			case 2:
				a.Bundle.Loaded, a.LoadedAnchor = AnyStore, AnyStore
			}
		}
		for kind := UseNew; kind <= Rejoin; kind++ {
			for _, member := range append([]Member{f.Server}, f.Agents...) {
				step := Step{kind, member.Name}
				if len(Standard.Waits(less, step)) < len(Standard.Waits(f, step)) {
					t.Fatalf("%s waits for less: %v\n%+v\nthan %v\n%+v", step, Standard.Waits(less, step), less, Standard.Waits(f, step), f)
				}
			}
		}
	}
}

// randomModes is one mode, mostly.
func randomModes(random *rand.Rand) Modes {
	set := In(Mode(random.IntN(int(Final) + 1)))
	if random.IntN(4) == 0 {
		set |= In(Mode(random.IntN(int(Final) + 1)))
	}
	return set
}

func randomFleet(random *rand.Rand) Fleet {
	store := func() Stores { return Trusting(Roots(1 + random.IntN(3))) }
	// Modes near one another, as they are in a rotation.
	low := Mode(random.IntN(int(Final)))
	modes := func() Modes { return In(low + Mode(random.IntN(2))) }
	member := func(name string, ownTrust bool) Member {
		m := Member{Name: name, OwnTrust: ownTrust, Chain: Copies[Modes]{modes(), modes(), modes()}}
		if random.IntN(8) == 0 {
			m.Chain.Loaded = randomModes(random)
		}
		if ownTrust {
			m.LoadedAnchor = m.Chain.Loaded.Anchors()
		} else {
			m.Bundle = Copies[Stores]{Stored: store(), Loaded: store()}
		}
		return m
	}
	f := Fleet{Mode: Bridged + Mode(random.IntN(3)), Server: member("server", true)}
	for i := range 1 + random.IntN(5) {
		a := member(fmt.Sprintf("agent%d", i+1), random.IntN(2) == 0)
		a.Quarantined = random.IntN(5) == 0
		f.Agents = append(f.Agents, a)
	}
	return f
}
