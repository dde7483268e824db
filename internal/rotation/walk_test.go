package rotation

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// id stands for a truth of the walk's model; nobody's is 0.
type id uint32

// world is all there is: the new intermediate's chain, the server and the agents.
type world struct {
	mode   Mode
	server id
	agents [most]id
}

// most is how many agents a world has room for, mostWalked how many one has that
// is packed.
const (
	most       = 6
	mostWalked = 3
)

// packed is a world in which agents have no names: if two change places, it is the
// same. So no more is walked than one of all the orders; that the gates do not
// mind the order is tested: gatesAreAboutPairs.
type packed uint64

const modeBits = 3

func (w *walker) packed(at world) packed {
	w.sort(&at, nil)
	return w.inOrder(at)
}

// sort puts the agents in order, and names along with them.
func (w *walker) sort(at *world, names []string) {
	a := at.agents[:w.agents]
	for i := 1; i < len(a); i++ {
		for j := i; j > 0 && a[j] > a[j-1]; j-- {
			a[j], a[j-1] = a[j-1], a[j]
			if names != nil {
				names[j+1], names[j] = names[j], names[j+1]
			}
		}
	}
}

func (w *walker) inOrder(at world) packed {
	p := packed(at.server)
	for _, a := range at.agents[:w.agents] {
		p = p<<w.idBits | packed(a)
	}
	return p<<modeBits | packed(at.mode)
}

func (w *walker) world(p packed) world {
	at := world{mode: Mode(p & (1<<modeBits - 1))}
	p >>= modeBits
	for i := w.agents - 1; i >= 0; i-- {
		at.agents[i] = id(p & (1<<w.idBits - 1))
		p >>= w.idBits
	}
	at.server = id(p)
	return at
}

// walker goes through the worlds of a model. What may become of a member, and
// what the gates say to what they see, is worked out once.
type walker struct {
	model
	truths []truth
	ids    map[truth]id
	of     []*member // by id
	names  []string
	idBits int

	views  worlds
	judged []judgement // by view

	// What has been tried: to which modes the new intermediate's chain went from
	// each, and in which ones an agent joined and came back.
	went             [modes]Modes
	joined, returned Modes
	// served are the modes in which the server was.
	served Modes
}

// member is what is known of all that are in one truth.
type member struct {
	truth
	view              id // of one who is like it to the gates
	seen              Member
	presents, accepts Modes
	in                [modes]*outlook
}

// outlook is what may become of a member while the new intermediate's chain is of
// a mode, and once it is.
type outlook struct {
	natural     []idChange
	ours        []idStep
	becomes     id
	quarantined id
	// returns are as whom a quarantined one may come back, each with how it asks,
	// where the model knows no more of it.
	returns []idReturn
}

type idChange struct {
	what string
	to   id
}

type idStep struct {
	kind StepKind
	to   id
}

type idReturn struct{ asks, to id }

// judgement is of all steps that were asked for, each a bit.
type judgement struct{ asked, allowed uint64 }

func newWalker(m model) *walker {
	w := &walker{model: m, ids: map[truth]id{}, names: []string{"the server"}, idBits: (64 - modeBits) / (1 + m.agents)}
	for i := range m.agents {
		w.names = append(w.names, fmt.Sprintf("agent %d", i+1))
	}
	w.id(nobody)
	return w
}

func (w *walker) id(t truth) id {
	i, ok := w.ids[t]
	if !ok {
		i = id(len(w.truths))
		if i >= 1<<w.idBits && w.agents <= mostWalked {
			panic("there are more truths than an id has room for")
		}
		w.ids[t] = i
		w.truths = append(w.truths, t)
		w.of = append(w.of, &member{truth: t, seen: w.seen(t), presents: w.model.presents(t), accepts: w.model.accepts(t)})
		alike := t
		alike.newIssuer = false
		if !w.lean {
			alike.flying, alike.sinceFlying = noMode, 0
		}
		w.of[i].view = w.id(alike)
	}
	return i
}

func (w *walker) outlook(i id, mode Mode) *outlook {
	m := w.of[i]
	if m.in[mode] == nil {
		o := &outlook{becomes: i}
		for _, c := range w.nature(m.truth, mode) {
			o.natural = append(o.natural, idChange{c.what, w.id(c.to)})
		}
		for kind, to := range w.ours(m.truth, mode) {
			o.ours = append(o.ours, idStep{kind, w.id(to)})
		}
		slices.SortFunc(o.ours, func(a, b idStep) int { return int(a.kind) - int(b.kind) })
		if m.newIssuer {
			o.becomes = w.id(w.signed(m.truth, mode))
		}
		switch {
		case m.out:
		case !m.quarantined:
			o.quarantined = w.id(w.quarantine(m.truth))
		case w.lean && m.newIssuer:
			for _, t := range w.leanReturns(mode) {
				to := w.id(t)
				t.quarantined = true
				o.returns = append(o.returns, idReturn{w.id(t), to})
			}
		}
		m.in[mode] = o
	}
	return m.in[mode]
}

// next is a world that may come, and what happens, in words with a place for the
// name of to whom.
type next struct {
	to   world
	what string
	who  int
}

// after are all worlds that may come next.
func (w *walker) after(at world, out []next) []next {
	out = out[:0]
	judge := w.judge(at)
	for i, a := range at.agents[:w.agents] {
		to := at
		o := w.outlook(a, at.mode)
		for _, c := range o.natural {
			to.agents[i] = c.to
			out = append(out, next{to, c.what, i + 1})
		}
		for _, s := range o.ours {
			if judge.may(s.kind, i+1) {
				to.agents[i] = s.to
				out = append(out, next{to, stepWords[s.kind], i + 1})
				if s.kind == Rejoin {
					w.returned |= In(at.mode)
				}
			}
		}
		switch {
		case w.of[a].out:
			newIssuer, bundle := judge.sees.JoinsNew(), judge.sees.JoinsTrusting()
			for _, ownTrust := range w.kinds {
				to.agents[i] = w.id(w.joins(ownTrust, newIssuer, bundle, at.mode))
				out = append(out, next{to, "%s joins", i + 1})
			}
			w.joined |= In(at.mode)
		case !w.of[a].quarantined:
			to.agents[i] = o.quarantined
			out = append(out, next{to, "%s is quarantined", i + 1})
		}
		for _, r := range o.returns {
			asks := at
			asks.agents[i], to.agents[i] = r.asks, r.to
			if w.judge(asks).may(Rejoin, i+1) {
				out = append(out, next{to, stepWords[Rejoin], i + 1})
				w.returned |= In(at.mode)
			}
		}
	}
	to := at
	o := w.outlook(at.server, at.mode)
	for _, c := range o.natural {
		to.server = c.to
		out = append(out, next{to, c.what, 0})
	}
	for _, s := range o.ours {
		if judge.may(s.kind, 0) {
			to.server = s.to
			out = append(out, next{to, stepWords[s.kind], 0})
		}
	}
	for _, mode := range w.chains {
		if mode != at.mode && judge.may(toward(mode), 0) {
			out = append(out, next{w.moved(at, mode), stepWords[toward(mode)], 0})
			w.went[at.mode] |= In(mode)
		}
	}
	if w.again {
		out = append(out, next{w.moved(at, Bridged), "a procedure that goes on after a crash sets the mode that it remembers: bridged", 0})
	}
	return out
}

// stepWords are the steps in words that have a place for the name.
var stepWords = func() (words [Rejoin + 1]string) {
	for kind := range words {
		words[kind] = Step{StepKind(kind), "%s"}.String()
	}
	return words
}()

// moved is a world in which the new intermediate's chain is changed.
func (w *walker) moved(at world, mode Mode) world {
	at.mode = mode
	at.server = w.outlook(at.server, mode).becomes
	for i, a := range at.agents[:w.agents] {
		at.agents[i] = w.outlook(a, mode).becomes
	}
	return at
}

// judge answers for the gates in a world. They are asked once for all worlds that
// are alike to them.
type judge struct {
	*walker
	sees Fleet
	view int
}

func (w *walker) judge(at world) judge {
	sees := w.look(at)
	if w.lean || w.agents > mostWalked {
		return judge{w, sees, -1}
	}
	at.server = w.of[at.server].view
	for i, a := range at.agents[:w.agents] {
		at.agents[i] = w.of[a].view
	}
	view, added := w.views.add(w.inOrder(at))
	if added {
		w.judged = append(w.judged, judgement{})
	}
	return judge{w, sees, view}
}

func (j judge) may(kind StepKind, who int) bool {
	ask := func() bool { return len(j.gates.Waits(j.sees, Step{kind, j.names[who]})) == 0 }
	if j.view < 0 {
		return ask()
	}
	judged, bit := &j.judged[j.view], uint64(1)<<(who*int(Rejoin+1)+int(kind))
	if judged.asked&bit == 0 {
		judged.asked |= bit
		if ask() {
			judged.allowed |= bit
		}
	}
	return judged.allowed&bit != 0
}

// look is the fleet that the gates see.
func (w *walker) look(at world) Fleet {
	f := Fleet{Mode: at.mode, Previous: w.previous, Server: w.named(at.server, 0), Agents: make([]Member, 0, w.agents)}
	for i, a := range at.agents[:w.agents] {
		if !w.of[a].out {
			f.Agents = append(f.Agents, w.named(a, i+1))
		}
	}
	return f
}

func (w *walker) named(i id, who int) Member {
	m := w.of[i].seen
	m.Name = w.names[who]
	if w.mistakes != nil {
		w.mistakes(who == 0, &m)
	}
	return m
}

// broken says which handshake fails, or nothing.
func (w *walker) broken(at world, names []string) string {
	s := w.of[at.server]
	for i, a := range at.agents[:w.agents] {
		a := w.of[a]
		if s.presents&^a.accepts|a.presents&^s.accepts == 0 {
			continue
		}
		if why := w.model.broken(s.truth, a.truth); why != "" {
			return fmt.Sprintf(why, names[i+1])
		}
	}
	return ""
}

// starts are the beginnings: the new intermediate staged as it should be, or in
// another mode, while nobody uses it; each agent of any kind, or to join later.
func (w *walker) starts() []world {
	var out []world
	for _, mode := range w.chains {
		out = append(out, world{mode: mode, server: w.id(w.before(true))})
	}
	for i := range w.agents {
		for _, start := range out {
			for _, ownTrust := range w.kinds {
				start.agents[i] = w.id(w.before(ownTrust))
				out = append(out, start)
			}
		}
	}
	return out
}

// mostStates keeps a model that has grown too large from taking all memory.
const mostStates = 5_000_000

// walk goes through every world, and lets each see what it likes of where it is and
// what may come next. It answers how many there are, and the way to the nearest one
// in which a handshake fails, if there is one.
func (w *walker) walk(t testing.TB, each ...func(at world, nexts []next)) (states int, trace []string) {
	t.Helper()
	var reached worlds
	var from []int32
	for _, start := range w.starts() {
		if _, added := reached.add(w.packed(start)); added {
			from = append(from, -1)
		}
	}
	var nexts []next
	for n := 0; n < len(from); n++ {
		at := w.world(reached.all[n])
		if n == mostStates {
			t.Fatalf("more than %d states", mostStates)
		}
		w.served |= w.of[at.server].presents
		if w.broken(at, w.names) != "" {
			return len(from), w.trace(reached.all, from, n)
		}
		nexts = w.after(at, nexts)
		for _, see := range each {
			see(at, nexts)
		}
		for i := range nexts {
			if _, added := reached.add(w.packed(nexts[i].to)); added {
				from = append(from, int32(n))
			}
		}
	}
	return len(from), nil
}

// trace is how it came to a world. The agents of a packed one have no names; on
// the way to it they keep theirs.
func (w *walker) trace(reached []packed, from []int32, last int) []string {
	var way []packed
	for n := int32(last); n >= 0; n = from[n] {
		way = append(way, reached[n])
	}
	slices.Reverse(way)
	names := slices.Clone(w.names)
	trace := []string{"the new intermediate is staged, " + w.world(way[0]).mode.String()}
	for i, p := range way[1:] {
		all := w.after(w.world(way[i]), nil)
		came := all[slices.IndexFunc(all, func(n next) bool { return w.packed(n.to) == p })]
		trace = append(trace, phrase(came.what, names[came.who]))
		w.sort(&came.to, names)
	}
	return append(trace, w.broken(w.world(reached[last]), names))
}

// phrase puts the name into words that have a place for one.
func phrase(what, name string) string {
	if !strings.Contains(what, "%s") {
		return what
	}
	return fmt.Sprintf(what, name)
}

// wander goes a way by chance, all that may happen being as likely, and answers
// which handshake fails on it, if one does.
func (w *walker) wander(random *rand.Rand, steps int) (trace []string) {
	starts := w.starts()
	at := starts[random.IntN(len(starts))]
	var nexts []next
	for range steps {
		nexts = w.after(at, nexts)
		n := nexts[random.IntN(len(nexts))]
		trace = append(trace, phrase(n.what, w.names[n.who]))
		at = n.to
		w.served |= w.of[at.server].presents
		if why := w.broken(at, w.names); why != "" {
			return append(trace, why)
		}
	}
	return nil
}

// worlds numbers packed worlds in the order in which they come.
type worlds struct {
	all   []packed
	slots []slot
}

// slot is a world and its number; 0 is no world, for there is a server.
type slot struct {
	packed
	n int32
}

// add is the number of a world, and whether it is new.
//
//go:norace
func (x *worlds) add(p packed) (n int, added bool) {
	if 4*len(x.all) >= 3*len(x.slots) {
		x.slots = make([]slot, max(1<<10, 2*len(x.slots)))
		for n, p := range x.all {
			*x.slot(p) = slot{p, int32(n)}
		}
	}
	s := x.slot(p)
	if s.packed == p {
		return int(s.n), false
	}
	*s = slot{p, int32(len(x.all))}
	x.all = append(x.all, p)
	return int(s.n), true
}

// slot is where the world is, or where there is room for it. One goroutine has it,
// and most of the time is spent here: the race detector would make it many times
// that for nothing.
//
//go:norace
func (x *worlds) slot(p packed) *slot {
	// The upper bits of the product come from all of the world.
	at := uint64(p) * 0x9e3779b97f4a7c15 >> (bits.LeadingZeros64(uint64(len(x.slots))) + 1)
	for ; ; at++ {
		if s := &x.slots[at&uint64(len(x.slots)-1)]; s.packed == p || s.packed == 0 {
			return s
		}
	}
}
