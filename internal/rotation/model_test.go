package rotation

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// The model: a server and an agent in every state that they can come into, when
// cert-manager renews whenever it likes, what it has asked for is written
// whenever it is written, processes reload late or restart at any moment, and
// our steps are taken as soon as the gates allow them, forward or back. It is
// walked whole; a state in which some handshake fails is a hole in the gates.

// noMode is the mode of a certificate that is not there.
const noMode = Mode(modes)

// truth is how it really is with a member.
type truth struct {
	// flying is what Vault has signed and nobody has stored yet.
	flying Mode
	// since are the modes that Vault has been in since the stored one was signed,
	// sinceFlying the same of the one in flight.
	since, sinceFlying Modes
	stored, chain      Mode
	anchor             Roots // loaded: of ca.crt or the bundle
	bundle             Roots // stored; none with a trust of its own
	newIssuer          bool
	out                bool // not a member yet
	quarantined        bool
}

// world is all there is. It is comparable: it is what has been seen or not.
type world struct {
	mode   Mode
	server truth
	agent  truth
}

// model is the rules. Everybody reloads its chain and its trust, each by itself,
// late or never, and may restart: who reloads both at once, its chain alone or
// nothing does a part of that.
type model struct {
	gates Gates
	// ownTrust says that the agent trusts the ca.crt of its own certificate, as
	// the server does, and not a bundle.
	ownTrust bool
	// mistakes is what the gates take a member for, if they are wrong on purpose.
	mistakes func(m *Member)
	// again: a resumed procedure sets a mode that it remembers.
	again bool
	// pins has an intermediate replaced under the one root and pinned, and undone:
	// from linked to any mode of the new one. Else it is a rotation of the root,
	// from old to final, and nothing is pinned: the two begin and end in what the
	// other has too, final, and are walked apart because together they are too
	// many states.
	pins bool
}

// steps are what is done.
func (m model) steps() []StepKind {
	if m.pins {
		return []StepKind{ToFinal, ToPinned, AddNew, AddItself, DropNew, DropItself}
	}
	return []StepKind{ToBridged, ToPivot, ToFinal, AddNew, AddOld, DropNew, DropOld}
}

// previous is what the previous intermediate issues.
func (m model) previous() Mode {
	if m.pins {
		return Linked
	}
	return Old
}

type next struct {
	what string
	to   world
}

// starts are the beginnings: the new intermediate staged as it should be, or in
// another mode, while nobody uses it; and agents there, or to join later.
func (m model) starts() []world {
	previous := m.previous()
	before := truth{flying: noMode, since: In(previous), stored: previous, chain: previous, anchor: previous.Anchor()}
	there := before
	if !m.ownTrust {
		there.bundle = previous.Anchor()
	}
	staged := []Mode{Bridged, Pivot, Final}
	if m.pins {
		staged = []Mode{Final, Pinned}
	}
	var starts []world
	for _, mode := range staged {
		starts = append(starts, world{mode, before, there}, world{mode, before, truth{out: true}})
	}
	return starts
}

// issues is what Vault signs for a member now.
func (m model) issues(w world, t truth) Mode {
	if t.newIssuer {
		return w.mode
	}
	return m.previous()
}

// trust is what the member trusts after a restart.
func (t truth) trust(ownTrust bool) Roots {
	if ownTrust {
		return t.stored.Anchor()
	}
	return t.bundle
}

func only(m Mode) Modes {
	if m == noMode {
		return 0
	}
	return In(m)
}

// seen is the member as our gates see it. What is loaded is the truth: nobody
// can know more, and who knows less waits for more.
func (m model) seen(name string, ownTrust bool, t truth) Member {
	seen := Member{
		Name: name, OwnTrust: ownTrust, Quarantined: t.quarantined,
		Chain: Copies[Modes]{InFlight: t.since, Stored: only(t.stored), Loaded: only(t.chain)},
	}
	loaded := Stores(0)
	if t.chain != noMode {
		loaded = Trusting(t.anchor)
	}
	if ownTrust {
		seen.LoadedAnchor = loaded
	} else {
		seen.Bundle = Copies[Stores]{Stored: Trusting(t.bundle), Loaded: loaded}
	}
	if m.mistakes != nil {
		m.mistakes(&seen)
	}
	return seen
}

func (m model) fleet(w world) Fleet {
	f := Fleet{Mode: w.mode, Previous: m.previous(), Server: m.seen("server", true, w.server)}
	if !w.agent.out {
		f.Agents = []Member{m.seen("agent", m.ownTrust, w.agent)}
	}
	return f
}

// broken says which handshake fails, or nothing.
func (w world) broken() string {
	s, a := w.server, w.agent
	switch {
	case a.out, a.quarantined, a.chain == noMode:
	case s.chain.LeadsTo()&a.anchor == 0:
		return fmt.Sprintf("the agent, which trusts %s, refuses the server's %s chain", a.anchor, s.chain)
	case a.chain.LeadsTo()&s.anchor == 0:
		return fmt.Sprintf("the server, which trusts %s, refuses the agent's %s chain", s.anchor, a.chain)
	}
	return ""
}

// after are all states that may come next.
func (m model) after(w world) []next {
	out := m.nature(w, "server", true, (*world).theServer)
	if !w.agent.out {
		out = append(out, m.nature(w, "agent", m.ownTrust, (*world).theAgent)...)
	}
	return append(out, m.ours(w, m.fleet(w))...)
}

func (w *world) theServer() *truth { return &w.server }
func (w *world) theAgent() *truth  { return &w.agent }

// nature is what happens by itself.
func (m model) nature(w world, who string, ownTrust bool, of func(*world) *truth) []next {
	var out []next
	happens := func(what string, change func(t *truth)) {
		to := w
		change(of(&to))
		if to != w {
			out = append(out, next{who + " " + what, to})
		}
	}
	t := *of(&w)
	if t.flying == noMode {
		mode := m.issues(w, t)
		happens("is issued a certificate, "+mode.String(), func(t *truth) { t.flying, t.sinceFlying = mode, In(mode) })
	} else {
		happens("has it written into its Secret: "+t.flying.String(), func(t *truth) {
			t.stored, t.since, t.flying, t.sinceFlying = t.flying, t.sinceFlying, noMode, 0
		})
	}
	if t.stored == noMode {
		return out // no process without a certificate
	}
	happens("restarts", func(t *truth) { t.chain, t.anchor = t.stored, t.trust(ownTrust) })
	if t.chain == noMode {
		return out
	}
	happens("reloads its chain", func(t *truth) { t.chain = t.stored })
	happens("reloads its trust", func(t *truth) { t.anchor = t.trust(ownTrust) })
	return out
}

// ours are the steps that the gates allow in a fleet of which this is a part.
func (m model) ours(w world, f Fleet) []next {
	var out []next
	take := func(step Step, change func(w *world)) {
		if len(m.gates.Waits(f, step)) > 0 {
			return
		}
		to := w
		change(&to)
		if to != w {
			out = append(out, next{step.String(), to})
		}
	}
	to := map[StepKind]Mode{ToBridged: Bridged, ToPivot: Pivot, ToFinal: Final, ToPinned: Pinned}
	for _, kind := range m.steps() {
		if mode, ok := to[kind]; ok {
			take(Step{Kind: kind}, func(w *world) { w.become(mode) })
		}
	}
	role := func(who string, of func(*world) *truth) {
		take(Step{UseNew, who}, func(w *world) { of(w).use(true, w.mode) })
		take(Step{UseOld, who}, func(w *world) { of(w).use(false, m.previous()) })
	}
	role("server", (*world).theServer)
	if w.agent.out {
		// In the inventory before its first certificate.
		to := w
		to.agent = truth{flying: noMode, stored: noMode, chain: noMode, newIssuer: f.JoinsNew()}
		to.agent.since = In(m.issues(w, to.agent))
		if !m.ownTrust {
			to.agent.bundle = f.JoinsTrusting()
		}
		return append(out, next{"agent joins", to})
	}
	role("agent", (*world).theAgent)
	for _, kind := range m.steps() {
		switch anchor := kind.anchor(); {
		case anchor == 0, m.ownTrust:
		case kind == AddNew, kind == AddOld, kind == AddItself:
			take(Step{kind, "agent"}, func(w *world) { w.agent.bundle |= anchor })
		default:
			take(Step{kind, "agent"}, func(w *world) { w.agent.bundle &^= anchor })
		}
	}
	if w.agent.quarantined {
		take(Step{Rejoin, "agent"}, func(w *world) { w.agent.quarantined = false })
	} else {
		to := w
		to.agent.quarantined = true
		out = append(out, next{"agent is quarantined", to})
	}
	if m.again {
		to := w
		to.become(Bridged)
		out = append(out, next{"a procedure that goes on after a crash sets the mode that it remembers: bridged", to})
	}
	return out
}

// become moves the new intermediate's chain: for everybody who signs with it
// there may now be the one more in flight.
func (w *world) become(mode Mode) {
	w.mode = mode
	for _, t := range []*truth{&w.server, &w.agent} {
		if t.newIssuer {
			t.issuing(mode)
		}
	}
}

func (t *truth) use(newIssuer bool, mode Mode) {
	if t.newIssuer != newIssuer {
		t.newIssuer = newIssuer
		t.issuing(mode)
	}
}

func (t *truth) issuing(mode Mode) {
	t.since |= In(mode)
	if t.flying != noMode {
		t.sinceFlying |= In(mode)
	}
}

// mostStates keeps a model that has grown too large from taking all memory.
const mostStates = 5_000_000

// walk goes through every state. It answers how many there are, and the way to
// the nearest one in which a handshake fails, if there is one.
func (m model) walk(t *testing.T) (states int, trace []string, reached Modes) {
	t.Helper()
	type came struct {
		from int32
		by   string
	}
	seen := map[world]bool{}
	var queue []world
	var ways []came
	for _, w := range m.starts() {
		seen[w] = true
		queue, ways = append(queue, w), append(ways, came{-1, fmt.Sprintf("the new intermediate is staged, %s", w.mode)})
	}
	for at := 0; at < len(queue); at++ {
		w := queue[at]
		if at == mostStates {
			t.Fatalf("more than %d states", mostStates)
		}
		reached |= only(w.server.chain)
		if why := w.broken(); why != "" {
			trace = []string{why}
			for i := int32(at); i >= 0; i = ways[i].from {
				trace = append(trace, ways[i].by)
			}
			slices.Reverse(trace)
			return len(queue), trace, reached
		}
		for _, n := range m.after(w) {
			if !seen[n.to] {
				seen[n.to] = true
				queue, ways = append(queue, n.to), append(ways, came{int32(at), n.what})
			}
		}
	}
	return len(queue), nil, reached
}

var trusts = map[string]bool{"an agent that trusts its own ca.crt": true, "an agent that trusts a bundle": false}

// No handshake fails, and everybody comes through all modes. That it is so for
// one agent makes it so for any number: see TestGatesAreAboutPairs.
func TestNoHandshakeFails(t *testing.T) {
	for name, ownTrust := range trusts {
		for _, pins := range []bool{false, true} {
			m, all := model{gates: Standard, ownTrust: ownTrust, pins: pins}, In(Old, Bridged, Pivot, Final)
			if pins {
				name, all = name+", pinned", In(Linked, Final, Pinned)
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				states, trace, reached := m.walk(t)
				if trace != nil {
					t.Fatalf("a handshake fails:\n  %s", strings.Join(trace, "\n  "))
				}
				if reached != all {
					t.Errorf("the server was %s and nothing else: the gates let nobody through", reached)
				}
				t.Logf("%d states", states)
			})
		}
	}
}

// many is a server and agents, which the walk over all states has one of.
type many struct {
	mode   Mode
	server truth
	agents []truth
}

// wander goes a way by chance, all that may happen being as likely, and answers
// which handshake fails on it, if one does.
func (m model) wander(random *rand.Rand, agents, steps int) (trace []string, reached Modes) {
	starts := m.starts()
	w := many{agents: make([]truth, agents)}
	for i := range w.agents {
		start := starts[random.IntN(len(starts))]
		w.mode, w.server, w.agents[i] = start.mode, start.server, start.agent
	}
	for range steps {
		i := random.IntN(agents)
		pair := world{w.mode, w.server, w.agents[i]}
		// The gates look at all of them; the one that it is about has the name.
		f := Fleet{Mode: w.mode, Previous: m.previous(), Server: m.seen("server", true, w.server)}
		for j, a := range w.agents {
			name := "agent"
			if j != i {
				name = fmt.Sprintf("agent %d", j+1)
			}
			if !a.out {
				f.Agents = append(f.Agents, m.seen(name, m.ownTrust, a))
			}
		}
		may := m.nature(pair, "server", true, (*world).theServer)
		if !pair.agent.out {
			may = append(may, m.nature(pair, "agent", m.ownTrust, (*world).theAgent)...)
		}
		may = append(may, m.ours(pair, f)...)
		if len(may) == 0 {
			continue
		}
		does := may[random.IntN(len(may))]
		trace = append(trace, fmt.Sprintf("%s (%d)", does.what, i+1))
		if does.to.mode != w.mode {
			for j := range w.agents {
				if j != i && w.agents[j].newIssuer {
					w.agents[j].issuing(does.to.mode)
				}
			}
		}
		w.mode, w.server, w.agents[i] = does.to.mode, does.to.server, does.to.agent
		reached |= only(w.server.chain)
		for j, a := range w.agents {
			if why := (world{w.mode, w.server, a}).broken(); why != "" {
				return append(trace, fmt.Sprintf("%s (%d)", why, j+1)), reached
			}
		}
	}
	return nil, reached
}

// Three agents, in everything that may happen to one, by chance and not whole.
// That a mistake is found this way is seen too.
func TestNoHandshakeFailsAmongMany(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const ways, agents, steps = 500, 3, 120
	for name, ownTrust := range trusts {
		for _, pins := range []bool{false, true} {
			random := rand.New(rand.NewPCG(seed, 0))
			var reached Modes
			for range ways {
				trace, modes := model{gates: Standard, ownTrust: ownTrust, pins: pins}.wander(random, agents, steps)
				if trace != nil {
					t.Fatalf("%s: a handshake fails:\n  %s", name, strings.Join(trace, "\n  "))
				}
				reached |= modes
			}
			t.Logf("%s, pinned %v: the server was %s", name, pins, reached)
			found := false
			for range ways {
				if trace, _ := (model{gates: Gates{}, ownTrust: ownTrust, pins: pins}).wander(random, agents, steps); trace != nil {
					found = true
					break
				}
			}
			if !found {
				t.Errorf("%s, pinned %v: without any gate no handshake fails", name, pins)
			}
		}
	}
}

// Without any one of its conditions, a gate lets a handshake fail.
func TestEveryConditionIsNecessary(t *testing.T) {
	for kind, conditions := range Standard {
		for i := range conditions {
			if kind == ToBridged && i == 1 || kind == ToPinned && i == 0 {
				continue // between modes that no walk has both of: TestApart
			}
			gates := maps.Clone(Standard)
			gates[kind] = slices.Delete(slices.Clone(conditions), i, i+1)
			t.Run(fmt.Sprintf("%s/%d", Step{kind, "a member"}, i+1), func(t *testing.T) {
				seenToFail(t, model{gates: gates})
			})
		}
	}
}

// Neither walk has pinned or linked together with bridged: those conditions are
// tried in one state each, in which nothing else is in the way.
func TestApart(t *testing.T) {
	in := func(name string, mode Mode) Member {
		held := In(mode)
		return Member{Name: name, OwnTrust: true, Chain: Copies[Modes]{held, held, held}, LoadedAnchor: Trusting(mode.Anchor())}
	}
	for _, test := range []struct {
		name         string
		fleet        Fleet
		step         StepKind
		chain, trust Mode
	}{
		{"bridged to pinned", Fleet{Mode: Bridged, Server: in("server", Bridged), Agents: []Member{in("agent", Bridged)}}, ToPinned, Pinned, Bridged},
		{"linked to bridged", Fleet{Mode: Pivot, Previous: Linked, Server: in("server", Pivot), Agents: []Member{in("agent", Linked)}}, ToBridged, Linked, Bridged},
	} {
		if test.chain.LeadsTo()&test.trust.Anchor() != 0 {
			t.Errorf("%s: the handshake succeeds", test.name)
		}
		if len(Standard.Waits(test.fleet, Step{Kind: test.step})) == 0 {
			t.Errorf("%s: is let through", test.name)
		}
	}
}

// What is done wrong, by hand or by a tool, is seen to fail.
func TestWrongProcedures(t *testing.T) {
	with := func(kind StepKind, conditions ...condition) Gates {
		gates := maps.Clone(Standard)
		gates[kind] = conditions
		return gates
	}
	for name, m := range map[string]model{
		"the bridge is skipped": {gates: with(UseNew)},
		"committed with an agent of its own trust still bridged": {gates: with(ToFinal, func(f Fleet, _ Step) []Reason {
			return trusting([]Member{f.Server}, NewRoot)
		})},
		"contracted on what is stored alone": {gates: with(DropOld, func(f Fleet, step Step) []Reason {
			f.Server.Chain.InFlight, f.Server.Chain.Loaded = 0, 0
			return serverVerifies(f, step)
		})},
		"final straight to bridged": {gates: with(ToBridged)},
		"pivot before all roles have moved": {gates: with(ToPivot, func(f Fleet, _ Step) []Reason {
			f.Agents = slices.Clone(f.Agents)
			for i := range f.Agents {
				f.Agents[i].Chain.InFlight = 0
			}
			return notOld(f, Step{})
		})},
		"a mode remembered and set again": {gates: Standard, again: true},
		// A container that has started again in an old Pod may still mount the old Secret.
		"loaded told by when the container started": {gates: Standard, mistakes: func(m *Member) {
			if m.Name != "server" {
				m.Chain.Loaded, m.Bundle.Loaded, m.LoadedAnchor = m.Chain.Stored, m.Bundle.Stored, m.Chain.Stored.anchors()
			}
		}},
		// A request of the acceptable CAs says more than the chain does.
		"the server's trust told by its chain": {gates: Standard, mistakes: func(m *Member) {
			if m.Name == "server" {
				m.LoadedAnchor = m.Chain.Loaded.anchors()
			}
		}},
	} {
		t.Run(name, func(t *testing.T) { seenToFail(t, m) })
	}
}

// seenToFail fails the test if no handshake fails, with neither kind of agent.
func seenToFail(t *testing.T, m model) {
	t.Helper()
	for name, ownTrust := range trusts {
		for _, m.pins = range []bool{true, false} { // the smaller first
			m.ownTrust = ownTrust
			states, trace, _ := m.walk(t)
			if trace == nil {
				continue
			}
			t.Logf("%s, pinned %v, after %d states:\n  %s", name, m.pins, states, strings.Join(trace, "\n  "))
			return
		}
	}
	t.Error("no handshake fails")
}

// What is true of the server and one agent is true of any number of them: a step
// that a fleet allows, each agent alone with the server allows too, so that
// whatever can happen to it among others can happen to it alone; and a handshake
// is between the server and one agent.
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
				if len(Standard.Waits(f, step)) > 0 {
					continue
				}
				allowed++
				for _, agent := range f.Agents {
					if agent.Name != member.Name && member.Name != f.Server.Name {
						continue // it sees nothing of the step
					}
					pair := Fleet{Mode: f.Mode, Server: f.Server, Agents: []Member{agent}}
					if reasons := Standard.Waits(pair, step); len(reasons) > 0 {
						t.Fatalf("%s: the fleet allows it, the pair with %s does not: %v\n%+v", step, agent.Name, reasons, f)
					}
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
		less := Fleet{Mode: f.Mode, Server: f.Server, Agents: slices.Clone(f.Agents)}
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
			m.LoadedAnchor = m.Chain.Loaded.anchors()
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
