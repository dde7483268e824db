package rotation

import (
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const oneDay = 24 * time.Hour

// healthy is a mesh of which nothing is due: an intermediate with half of its
// 1000 days to come, a root with 90% of its 10000, leaves with half a day.
func healthy() State {
	leaf := func(name string) Life {
		return Life{Name: name, NotBefore: noon.Add(-12 * time.Hour), NotAfter: noon.Add(12 * time.Hour), Renewal: noon.Add(11 * time.Hour)}
	}
	return State{
		Now: noon, Opens: noon, IntermediateTTL: 1000 * oneDay,
		Leaves:       []Life{leaf(Server), leaf("a"), leaf("b")},
		Intermediate: Life{Name: "I1", NotBefore: noon.Add(-500 * oneDay), NotAfter: noon.Add(500 * oneDay), LatestStart: noon.Add(490 * oneDay)},
		Root:         Life{Name: "R1", NotBefore: noon.Add(-1000 * oneDay), NotAfter: noon.Add(9000 * oneDay), LatestStart: noon.Add(8990 * oneDay)},
	}
}

var usual = Policy{Leaf: 1, Intermediate: 33, Root: 33}

// endsIn moves a CA's end, and the latest start with it.
func (l *Life) endsIn(d time.Duration) {
	l.NotAfter, l.LatestStart = noon.Add(d), noon.Add(d-10*oneDay)
}

// dying is an intermediate with less to live than a leaf, and one of those that is
// about to end.
func dying(s *State) {
	s.Intermediate.endsIn(23 * time.Hour)
	s.Leaves[1].NotBefore, s.Leaves[1].NotAfter, s.Leaves[1].LatestStart = noon.Add(-23*time.Hour-55*time.Minute), noon.Add(5*time.Minute), noon.Add(-time.Minute)
}

func TestDecide(t *testing.T) {
	tests := []struct {
		name   string
		change func(*State, *Policy)
		kind   Kind
		// due, start and late are those of the decision on that kind.
		due, start, late bool
		// why and warning are words of each; no warning if it is empty.
		why, warning string
	}{
		{name: "nothing due", kind: KindIntermediate, why: "I1 has 50% of its life left, until 2027-07-14 12:00Z; due at 33%"},
		{name: "intermediate due", kind: KindIntermediate, due: true, start: true, why: "I1 has 33% of its life left",
			change: func(s *State, _ *Policy) { s.Intermediate.endsIn(240 * oneDay) }},
		{name: "intermediate not quite due", kind: KindIntermediate, why: "34% of its life left",
			change: func(s *State, _ *Policy) { s.Intermediate.endsIn(247 * oneDay) }},
		{name: "never by itself", kind: KindIntermediate, why: "rotation.due.intermediate is 0",
			change: func(s *State, p *Policy) { s.Intermediate.endsIn(100 * oneDay); p.Intermediate = 0 }},
		{name: "never by itself, and too late", kind: KindIntermediate, late: true, why: "rotation.due.intermediate is 0", warning: "the rotation of the intermediate I1 had to begin by",
			change: func(s *State, p *Policy) { s.Intermediate.endsIn(5 * oneDay); p.Intermediate = 0 }},
		{name: "leaves that the intermediate cannot issue any more", kind: KindLeaf, due: true, late: true, why: "the intermediate I1 ends on 2026-03-02 11:00Z, before new ones would",
			change: func(s *State, _ *Policy) { dying(s) }},
		{name: "and so it goes first", kind: KindIntermediate, due: true, start: true, late: true, why: "of its life left, until 2026-03-02 11:00Z; due", warning: "had to begin by",
			change: func(s *State, _ *Policy) { dying(s) }},
		{name: "somebody is at work", kind: KindIntermediate, due: true, why: "setup-demo is at work on the mesh's CAs",
			change: func(s *State, _ *Policy) { s.Intermediate.endsIn(200 * oneDay); s.Busy = "setup-demo" }},
		{name: "a rotation is at work", kind: KindIntermediate, due: true, why: "rotate-intermediate-demo is at work on it",
			change: func(s *State, _ *Policy) {
				s.Intermediate.endsIn(5 * oneDay)
				s.Busy, s.Begun = "rotate-intermediate-demo", "RotateIntermediateCA from 1 to 2 has begun"
			}},
		{name: "a rotation waits for a person", kind: KindIntermediate, due: true, why: "rotate-intermediate-demo is at work on it",
			change: func(s *State, _ *Policy) {
				s.Intermediate.endsIn(200 * oneDay)
				s.Busy, s.Begun, s.Waits = "rotate-intermediate-demo", "RotateIntermediateCA from 1 to 2 has begun", true
			}},
		{name: "a rotation waits for a person for too long", kind: KindIntermediate, due: true, late: true, why: "is at work on it, and waits for a person",
			warning: "the intermediate I1 ends on 2026-03-06 12:00Z, and its rotation, which had to go on by 2026-02-24 12:00Z to be over in time, waits for a person: rotate-intermediate-demo",
			change: func(s *State, _ *Policy) {
				s.Intermediate.endsIn(5 * oneDay)
				s.Busy, s.Begun, s.Waits = "rotate-intermediate-demo", "RotateIntermediateCA from 1 to 2 has begun", true
			}},
		{name: "a rotation nobody is at work on", kind: KindIntermediate, due: true, why: "no other is begun before that one is over", warning: "RotateIntermediateCA from 1 to 2 has begun and nobody is at work on it",
			change: func(s *State, _ *Policy) {
				s.Intermediate.endsIn(200 * oneDay)
				s.Begun, s.Finish = "RotateIntermediateCA from 1 to 2 has begun", "Start it again, or take it back"
			}},
		{name: "outside the windows", kind: KindIntermediate, due: true, why: "begun when the next window opens, on 2026-03-03 12:00Z",
			change: func(s *State, _ *Policy) {
				s.Intermediate.endsIn(200 * oneDay)
				s.Opens = noon.Add(2 * oneDay)
			}},
		{name: "the next window is too late", kind: KindIntermediate, due: true, late: true, why: "when the next window opens", warning: "had to begin by 2026-03-02 12:00Z",
			change: func(s *State, _ *Policy) {
				s.Intermediate.endsIn(11 * oneDay)
				s.Opens = noon.Add(2 * oneDay)
			}},
		{name: "no window", kind: KindIntermediate, due: true, why: "no window ever opens", warning: "no window of rotation.windows ever opens",
			change: func(s *State, _ *Policy) {
				s.Intermediate.endsIn(200 * oneDay)
				s.Opens = time.Time{}
			}},
		{name: "the latest date is over", kind: KindIntermediate, due: true, start: true, late: true, why: "; due", warning: "had to begin by 2026-02-24 12:00Z to be over in time: it ends on 2026-03-06 12:00Z",
			change: func(s *State, _ *Policy) { s.Intermediate.endsIn(5 * oneDay) }},
		{name: "the latest date comes before the share", kind: KindIntermediate, due: true, start: true, why: "its latest date has come",
			change: func(s *State, _ *Policy) { s.Intermediate.LatestStart = noon }},
		{name: "the latest date will come before the share", kind: KindIntermediate, why: "due at 33%", warning: "raise rotation.due.intermediate",
			change: func(s *State, _ *Policy) { s.Intermediate.LatestStart = noon.Add(oneDay) }},
		{name: "under a root that ends sooner", kind: KindIntermediate, due: true, why: "the root R1 ends on", warning: "rotate the root first",
			change: func(s *State, _ *Policy) { s.Intermediate.endsIn(200 * oneDay); s.Root.endsIn(900 * oneDay) }},
		{name: "leaves go first", kind: KindIntermediate, due: true, why: "the rotation of leaves goes first",
			change: func(s *State, _ *Policy) { s.Intermediate.endsIn(200 * oneDay); s.Leaves[1].NotAfter = noon }},

		{name: "root not due", kind: KindRoot, why: "R1 has 90% of its life left, until"},
		{name: "root due", kind: KindRoot, due: true, why: "people are told, it is not begun by itself", warning: "the root R1 is due, it ends on 2034-05-18 12:00Z. Its rotation is not begun by itself, and has to begin by 2034-05-08 12:00Z",
			change: func(s *State, _ *Policy) { s.Root.NotBefore = noon.Add(-9000 * oneDay); s.Root.endsIn(3000 * oneDay) }},
		{name: "root too late", kind: KindRoot, due: true, late: true, why: "people are told", warning: "the rotation of the root R1 had to begin by",
			change: func(s *State, _ *Policy) { s.Root.endsIn(5 * oneDay) }},
		{name: "root never told", kind: KindRoot, why: "rotation.due.root is 0",
			change: func(s *State, p *Policy) { s.Root.endsIn(100 * oneDay); p.Root = 0 }},

		{name: "leaves are renewed", kind: KindLeaf, why: "the first ends 2026-03-02 00:00Z"},
		{name: "a leaf was not renewed", kind: KindLeaf, due: true, start: true, why: "the certificates of b have no more than 1%", warning: "b (until 2026-03-01 12:10Z)",
			change: func(s *State, _ *Policy) {
				s.Leaves[2].NotAfter, s.Leaves[2].Renewal = noon.Add(10*time.Minute), noon.Add(-20*time.Minute)
				s.Leaves[2].NotBefore = noon.Add(-24 * time.Hour)
			}},
		{name: "a leaf has ended", kind: KindLeaf, due: true, start: true, why: "the certificates of management server have", warning: "management server (until 2026-02-28 12:00Z)",
			change: func(s *State, _ *Policy) {
				s.Leaves[0].NotAfter, s.Leaves[0].Renewal = noon.Add(-oneDay), noon.Add(-oneDay-time.Hour)
			}},
		{name: "a leaf is late to be renewed", kind: KindLeaf, why: "more than 1%", warning: "a (until 2026-03-01 13:00Z)",
			change: func(s *State, _ *Policy) {
				s.Leaves[1].NotAfter, s.Leaves[1].Renewal = noon.Add(time.Hour), noon.Add(-2*time.Hour)
			}},
		{name: "a leaf that is just being renewed", kind: KindLeaf, why: "more than 1%",
			change: func(s *State, _ *Policy) { s.Leaves[1].Renewal = noon.Add(-time.Minute) }},
		{name: "leaves while somebody is at work", kind: KindLeaf, due: true, why: "rotate-intermediate-demo is at work",
			change: func(s *State, _ *Policy) { s.Leaves[1].NotAfter = noon; s.Busy = "rotate-intermediate-demo" }},
		{name: "leaves in a rotation nobody is at work on", kind: KindLeaf, due: true, why: "the certificates of a are due, and not begun: RotateIntermediateCA from 1 to 2 has begun and nobody is at work on it",
			change: func(s *State, _ *Policy) {
				s.Leaves[1].NotAfter = noon
				s.Begun, s.Finish = "RotateIntermediateCA from 1 to 2 has begun", "Start it again, or take it back"
			}},
		{name: "of which people are told", kind: KindIntermediate, why: "nobody is at work on it", warning: "Start it again, or take it back",
			change: func(s *State, _ *Policy) {
				s.Leaves[1].NotAfter = noon
				s.Begun, s.Finish = "RotateIntermediateCA from 1 to 2 has begun", "Start it again, or take it back"
			}},
		{name: "leaves of a pinned mesh", kind: KindLeaf, due: true, why: "not begun: the mesh is pinned. cert-manager goes on renewing them",
			change: func(s *State, _ *Policy) {
				s.Leaves[1].NotAfter = noon
				s.Begun, s.Held = "the mesh is pinned", true
			}},
		{name: "a pinned mesh", kind: KindIntermediate, due: true, why: "the mesh is pinned; no CA is rotated before", warning: "the mesh is pinned. Lift it",
			change: func(s *State, _ *Policy) {
				s.Intermediate.endsIn(200 * oneDay)
				s.Begun, s.Finish, s.Held = "the mesh is pinned", "Lift it", true
			}},
		{name: "a pinned mesh that is being lifted", kind: KindIntermediate, due: true, why: "emergency-demo is at work on it",
			change: func(s *State, _ *Policy) {
				s.Intermediate.endsIn(200 * oneDay)
				s.Busy, s.Begun, s.Finish, s.Held = "emergency-demo", "the mesh is pinned", "Lift it", true
			}},
		{name: "leaves outside the windows", kind: KindLeaf, due: true, start: true, why: "not renewed",
			change: func(s *State, _ *Policy) { s.Leaves[1].NotAfter = noon; s.Opens = noon.Add(oneDay) }},
		{name: "leaves never by us", kind: KindLeaf, why: "rotation.due.leaf is 0",
			change: func(s *State, p *Policy) { s.Leaves[1].NotAfter = noon; p.Leaf = 0 }},
		{name: "one could not be asked", kind: KindLeaf, why: "not asked for: c",
			change: func(s *State, _ *Policy) { s.Unread = []string{"c"} }},
		{name: "none could be asked", kind: KindLeaf, why: "no certificate could be asked for",
			change: func(s *State, _ *Policy) { s.Leaves, s.Unread = nil, []string{Server, "a"} }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, p := healthy(), usual
			if test.change != nil {
				test.change(&s, &p)
			}
			all := Decide(s, p)
			i := slices.IndexFunc(all, func(d Decision) bool { return d.Kind == test.kind })
			d := all[i]
			if d.Due != test.due || d.Start != test.start || d.Late != test.late {
				t.Errorf("due %t, start %t, late %t; want %t, %t, %t: %s", d.Due, d.Start, d.Late, test.due, test.start, test.late, d.Why)
			}
			if !strings.Contains(d.Why, test.why) || d.Why == "" {
				t.Errorf("why %q, want %q in it", d.Why, test.why)
			}
			if (d.Warning == "") != (test.warning == "") || !strings.Contains(d.Warning, test.warning) {
				t.Errorf("warning %q, want %q", d.Warning, test.warning)
			}
		})
	}
}

// Whatever there is, no more than one rotation is begun at once, none of a root,
// and none beside one that has begun.
func TestDecideStartsOneAtATime(t *testing.T) {
	choices := func(n int) []bool { return []bool{n&1 > 0, n&2 > 0, n&4 > 0, n&8 > 0, n&16 > 0} }
	started := 0
	for n := range 32 {
		s, c := healthy(), choices(n)
		if c[0] {
			s.Leaves[0].NotAfter = noon
		}
		if c[1] {
			s.Intermediate.endsIn(100 * oneDay)
		}
		if c[2] {
			s.Root.endsIn(2000 * oneDay)
		}
		if c[3] {
			s.Busy = "setup-demo"
		}
		if c[4] {
			s.Begun = "RotateIntermediateCA has begun"
		}
		var start []Kind
		for _, d := range Decide(s, usual) {
			if d.Start {
				start = append(start, d.Kind)
			}
		}
		started += len(start)
		if len(start) > 1 || slices.Contains(start, KindRoot) || len(start) > 0 && (c[3] || c[4]) {
			t.Errorf("%v starts %v", c, start)
		}
	}
	if started == 0 {
		t.Error("nothing was ever started")
	}
}

// A warning that people have had does not come again an hour later.
func TestWarningsStayTheSame(t *testing.T) {
	at := func(now time.Time) (warnings []string) {
		s := healthy()
		s.Now, s.Opens = now, now
		s.Intermediate.endsIn(5 * oneDay)
		s.Root.NotBefore = noon.Add(-9000 * oneDay)
		s.Root.endsIn(2000 * oneDay)
		s.Leaves[1].NotAfter, s.Leaves[1].Renewal = noon.Add(5*time.Hour), noon.Add(-10*time.Hour)
		for _, d := range Decide(s, usual) {
			warnings = append(warnings, d.Warning)
		}
		return warnings
	}
	now, later := at(noon), at(noon.Add(time.Hour))
	if !slices.Equal(now, later) || slices.Contains(now, "") {
		t.Errorf("%q, an hour later %q", now, later)
	}
}

func TestRemind(t *testing.T) {
	for name, c := range map[string]struct{ left, want time.Duration }{
		"years are left":   {3000 * oneDay, 30 * oneDay},
		"weeks are left":   {20 * oneDay, 10 * oneDay},
		"a day is left":    {oneDay, oneDay},
		"it has ended":     {-5 * oneDay, oneDay},
		"not more than so": {60 * oneDay, 30 * oneDay},
		"not less than so": {2 * oneDay, oneDay},
		"between the two":  {4 * oneDay, 2 * oneDay},
	} {
		if got := Remind(noon, noon.Add(c.left)).Sub(noon); got != c.want {
			t.Errorf("%s: again after %s, want %s", name, got, c.want)
		}
	}
}
