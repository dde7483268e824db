package workflows

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/testsuite"

	"github.com/relaypki/relaypki/activities/cluster"
	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rotation"
)

// emergency runs an EmergencyReissue in the world, with the given input but for the
// mesh and why.
func (w *rootWorld) emergency(input string, people ...func(*testsuite.TestWorkflowEnvironment)) (procedure.RotateResult, error) {
	w.t.Helper()
	incident := `"incident":"INC-7",`
	if strings.Contains(input, `"incident"`) {
		incident = ""
	}
	was := w.procedure
	w.procedure = procedure.EmergencyReissue
	defer func() { w.procedure = was }()
	return w.start(`{"mesh":"demo","reason":"a laptop was stolen",`+incident+input+`}`, people...)
}

// frozen is what was done to schedules and rotations under way.
func (w *rootWorld) frozen(env *testsuite.TestWorkflowEnvironment) {
	env.OnActivity(temporals.FreezeSchedules, mock.Anything, mock.Anything).Return(func(_ context.Context, in temporalactivities.FreezeInput) (out procedure.Outcome, err error) {
		if in.Mode.Writes() {
			err = w.act(fmt.Sprintf("freeze %v", !in.Thaw), func() error { out.Changed(procedure.Update, "schedule", ""); return nil })
		}
		return out, err
	})
	env.OnActivity(temporals.TakeOver, mock.Anything, mock.Anything).Return(func(_ context.Context, in temporalactivities.TakeOverInput) (out temporalactivities.TakeOverResult, err error) {
		if in.Mode.Writes() {
			err = w.act("take over", func() error { return nil })
		}
		out.Ended = w.underway
		return out, err
	})
}

const (
	intermediateGone = `"compromised":"intermediate","first":`
	rootGone         = `"compromised":"root","first":`
	available        = `"availability"`
	contained        = `"containment"`
)

// pinned says that everybody has what that intermediate issues, and trusts nothing
// else, and that nothing else may issue.
func (w *rootWorld) pinned(intermediate int, but ...string) {
	w.t.Helper()
	ca := w.intermediates[intermediate]
	for name, have := range w.stored {
		if slices.Contains(but, name) {
			continue
		}
		if have.by != intermediate || w.loaded[name].by != intermediate || w.roles[name] != intermediate || !w.anchor(have).Equal(ca.Cert) {
			w.t.Errorf("%q has a certificate of generation %d, and a role of %d, with %s as ca.crt", name, have.by, w.roles[name], pki.Name(w.anchor(have)))
		}
		if name == "" {
			continue
		}
		for _, trust := range w.anchors(name) {
			if len(trust) != 1 || !trust[0].Equal(ca.Cert) {
				w.t.Errorf("%q trusts %d anchors, %s the first", name, len(trust), pki.Name(trust[0]))
			}
		}
	}
	for g, ca := range w.intermediates {
		if ca.signs != (g == intermediate) {
			w.t.Errorf("the intermediate %d may issue: %v", g, ca.signs)
		}
	}
	r := w.o.record.Rotation
	if r == nil || r.Procedure != procedure.EmergencyReissue || r.Mode != rotation.Pinned.String() || r.Emergency == nil || !r.Emergency.Pinned {
		w.t.Errorf("recorded is %+v", r)
	}
}

// timed says that what is asked of an emergency's times has come, in that order.
func timed(t *testing.T, of *procedure.Emergency, times ...time.Time) {
	t.Helper()
	if of == nil {
		t.Fatal("the result says nothing of the emergency")
	}
	last := of.Began
	for i, at := range times {
		if at.Before(last) || at.IsZero() {
			t.Errorf("time %d of %+v is not in its place", i, of)
		}
		last = at
	}
}

func TestEmergencyOfAnIntermediate(t *testing.T) {
	w := newRootWorld(t)
	result, err := w.emergency(intermediateGone + available)
	if err != nil {
		t.Fatal(err)
	}
	w.pinned(2)
	w.unbroken()
	of := result.Emergency
	timed(t, of, of.IssuingStopped, of.ServerDistrusts, of.Distrusted, of.Reconnected)
	w.order("freeze true", "take over", "record >", "intermediate 2", "record final>", "prove 2", "role 2 cluster1", "trust cluster1 +i2", "reissue cluster1", "restart cluster1", "shake cluster1",
		"role 2", "reissue", "restart mgmt", "reissue cluster3", "use intermediate 1 false", "record final>pinned", "give pinned", "record pinned>",
		"trust cluster1 -1 -i1", "reissue cluster1", "reissue", "restart mgmt", "reissue cluster3", "record pinned>", "freeze false")
	if w.o.record.Generations.Intermediate != 1 || w.count("root") > 0 || w.count("bridge") > 0 {
		t.Errorf("generations %+v, %q", w.o.record.Generations, w.events)
	}

	// Once more, nothing is left to do; another rotation is refused until it is lifted.
	w.events = nil
	if _, err := w.emergency(intermediateGone + available); err != nil {
		t.Fatal(err)
	}
	if w.count("give") > 0 || w.count("intermediate 3") > 0 {
		t.Errorf("%q", w.events)
	}
	w.pinned(2)
	if _, err := w.start(unattended); failure.KindOf(err) != failure.Conflict || !strings.Contains(err.Error(), "relaypki emergency lift demo") {
		t.Errorf("a rotation of a pinned mesh: %v", err)
	}

	// To lift it is to accept again what the compromised one signs.
	if _, err := w.emergency(`"lift":true`); failure.KindOf(err) != failure.Preflight || !strings.Contains(err.Error(), "relay-intermediate-g1") {
		t.Errorf("lifted without a word: %v", err)
	}
	if _, err := w.emergency(`"lift":true,"exposed":true`); err != nil {
		t.Fatal(err)
	}
	w.everywhere(2, 1)
}

func TestEmergencyOfAnIntermediateAtOnce(t *testing.T) {
	w := newRootWorld(t)
	result, err := w.emergency(intermediateGone + contained)
	if err != nil {
		t.Fatal(err)
	}
	w.pinned(2)
	of := result.Emergency
	timed(t, of, of.IssuingStopped, of.ServerDistrusts, of.Distrusted, of.Reconnected)
	// Nothing else comes before the server.
	w.order("freeze true", "intermediate 2", "record final>pinned", "give pinned", "role 2", "role 2 cluster1", "use intermediate 1 false", "reissue", "restart mgmt", "ReadServer", "record pinned>", "reissue cluster1", "freeze false")
	if at := slices.Index(w.events, "reissue cluster1"); at < slices.Index(w.events, "restart mgmt") {
		t.Errorf("an agent comes before the server: %q", w.events)
	}
	// Every agent was cut off, and comes back.
	if len(w.broken) == 0 {
		t.Error("nobody was cut off, so the server was not first")
	}
	for _, name := range w.members() {
		if problems := w.problems(name); len(problems) > 0 {
			t.Errorf("%s: %v", name, problems)
		}
	}
}

func TestEmergencyOfARoot(t *testing.T) {
	w := newRootWorld(t)
	result, err := w.emergency(rootGone + available)
	if err != nil {
		t.Fatal(err)
	}
	w.everywhere(2, 2)
	of := result.Emergency
	timed(t, of, of.IssuingStopped, of.ServerDistrusts, of.Distrusted, of.Reconnected)
	w.order("freeze true", "root 2", "bridge 2", "intermediate 2", "trust cluster1 +2", "reissue cluster1", "use root 1 false", "use intermediate 1 false", "give pivot", "give final", "trust cluster1 -1", "freeze false", "record the end")
	if result.From.Name != "relay-root-g1" || result.To.Name != "relay-root-g2" {
		t.Errorf("%+v", result)
	}
}

func TestEmergencyOfARootAtOnce(t *testing.T) {
	w := newRootWorld(t)
	result, err := w.emergency(rootGone + contained)
	if err != nil {
		t.Fatal(err)
	}
	broken := w.broken
	w.broken = nil
	w.everywhere(2, 2)
	of := result.Emergency
	timed(t, of, of.IssuingStopped, of.ServerDistrusts, of.Distrusted, of.Reconnected)
	w.order("freeze true", "root 2", "unbridged 2", "intermediate 2", "role 2", "use root 1 false", "use intermediate 1 false", "reissue", "restart mgmt", "trust cluster1 +2", "trust cluster1 -1 -i1", "reissue cluster1", "shake cluster1", "freeze false", "record the end")
	if len(broken) == 0 || w.count("bridge") > 0 {
		t.Errorf("%d cut off, %q", len(broken), w.events)
	}
}

// What is pinned may be compromised in turn, and so may its root.
func TestEmergencyAfterEmergency(t *testing.T) {
	w := newRootWorld(t)
	for n, kind := range []string{intermediateGone + available, intermediateGone + contained, rootGone + contained} {
		if _, err := w.emergency(kind + fmt.Sprintf(`,"incident":"INC-%d"`, n)); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		w.broken = nil
		if n < 2 {
			w.pinned(2 + n)
		}
	}
	w.everywhere(4, 2)
}

// A leaf's old certificate stays accepted; it is said until when.
func TestEmergencyOfALeaf(t *testing.T) {
	w := newRootWorld(t)
	result, err := w.emergency(`"compromised":"leaf","clusters":["cluster2"]`)
	if err != nil {
		t.Fatal(err)
	}
	of := result.Emergency
	timed(t, of, of.Reconnected)
	if !of.IssuingStopped.IsZero() || !of.Distrusted.IsZero() || of.Pinned {
		t.Errorf("%+v", of)
	}
	w.order("freeze true", "take over", "reissue cluster2", "restart cluster2", "reissue", "restart mgmt", "freeze false", "record the end")
	if w.count("reissue cluster1") > 0 || w.count("give") > 0 {
		t.Errorf("%q", w.events)
	}
	w.everywhere(1, 1)
	if len(result.Clusters) != 1 {
		t.Errorf("%+v", result.Clusters)
	}
}

// A rotation of the root that waits is taken over, from wherever it has come to.
func TestEmergencyTakesOver(t *testing.T) {
	for _, first := range []string{available, contained} {
		for _, phase := range []string{"record bridged>", "give pivot", "give final", "consumers mgmt"} {
			t.Run(first+" at "+phase, func(t *testing.T) {
				w := newRootWorld(t)
				w.fails[phase] = failure.Permanent(failure.Denied, "here it ends")
				if _, err := w.start(unattended); err == nil {
					t.Fatal("the rotation did not end there")
				}
				w.fails, w.underway = map[string]error{}, []string{"rotate-root-demo"}
				result, err := w.emergency(intermediateGone + first)
				if err != nil {
					t.Fatal(err)
				}
				if first == contained {
					w.broken = nil
				}
				w.everywhere(2, 2)
				if of := result.Emergency; of.TookOver != "rotate-root-demo" || of.Reconnected.IsZero() || of.Compromised != procedure.CompromisedIntermediate {
					t.Errorf("%+v", of)
				}
				if w.count("root 3") > 0 {
					t.Errorf("%q", w.events)
				}
			})
		}
	}
}

// Where somebody is at work whom an emergency does not end, it is refused, and nothing
// is left paused.
func TestEmergencyThatIsRefused(t *testing.T) {
	w := newRootWorld(t)
	w.fails["take over"] = failure.Permanent(failure.Locked, "a setup is at work")
	if _, err := w.emergency(intermediateGone + contained); failure.KindOf(err) != failure.Locked {
		t.Fatal(err)
	}
	w.order("freeze true", "take over", "freeze false")
	if w.o.record.Rotation != nil || w.count("record") > 0 {
		t.Errorf("%q", w.events)
	}
}

// One that does not answer is waited for, and is in nobody's way.
func TestEmergencyWithoutAMember(t *testing.T) {
	w := newRootWorld(t)
	w.fails["trust cluster3 +i2"] = failure.Permanent(failure.Unavailable, "it does not answer")
	var before []string
	result, err := w.emergency(intermediateGone+contained, w.attended(func(p procedure.Progress) (string, string) {
		if !p.Person || !strings.Contains(p.Awaiting, "relaypki quarantine demo cluster3") {
			return "", ""
		}
		if before == nil {
			before = slices.Clone(w.events)
		}
		return procedure.QuarantineUpdate, `{"clusters":["cluster3"],"reason":"in repair"}`
	}))
	if failure.KindOf(err) != failure.Incomplete {
		t.Fatalf("%v, %+v", err, result)
	}
	w.pinned(2, "cluster3")
	if !slices.Contains(before, "shake cluster1") || !slices.Contains(before, "shake cluster2") {
		t.Errorf("the others waited for it: %q", before)
	}
	if w.roles["cluster3"] != 2 {
		t.Error("its role was left behind")
	}
}

// Whatever it fails at, started again it goes on and comes to the same end, with one
// new CA of each kind.
func TestEmergencyGoesOn(t *testing.T) {
	withoutRaceDetector(t)
	for _, kind := range []string{intermediateGone + available, intermediateGone + contained, rootGone + available, rootGone + contained} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			root := strings.HasPrefix(kind, rootGone)
			for n, more := 1, true; more; n += 11 {
				w := newRootWorld(t)
				at, event := 0, ""
				w.happens = func(e string) {
					if at++; at == n {
						event = e
						w.fails = map[string]error{e: failure.Permanent(failure.Denied, "here it ends")}
					}
				}
				_, err := w.emergency(kind, w.attended(func(p procedure.Progress) (string, string) {
					if p.Person { // parked: this run ends, too
						return procedure.AbortUpdate, `{"reason":"gone"}`
					}
					return "", ""
				}))
				if more = event != ""; !more {
					break
				}
				w.happens, w.fails = nil, map[string]error{}
				if over := w.o.record.Rotation == nil && w.count("record the end") > 0; err == nil || over {
					t.Logf("%q did not end it (%v)", event, err)
				} else if _, err := w.emergency(kind); err != nil {
					t.Fatalf("after %q (%d): %v", event, n, err)
				}
				if strings.HasSuffix(kind, available) {
					w.unbroken()
				}
				w.broken = nil
				if root {
					w.everywhere(2, 2)
				} else {
					w.pinned(2)
				}
				if t.Failed() {
					t.Fatalf("after %q (%d), %q", event, n, w.events)
				}
			}
		})
	}
}

// From what a mesh is in, an emergency goes out with the CAs that its record names.
func TestOpening(t *testing.T) {
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	now := began.Add(time.Hour)
	seen := vault.SurveyResult{Highest: 3, HighestRoot: 2, Intermediates: []vault.IntermediateState{
		{Authority: procedure.Authority{Name: "relay-intermediate-g3", NotAfter: now.Add(time.Hour)}, Generation: 3, HasKey: true, Signs: true},
	}}
	made := seen // what the emergency makes that has begun
	made.Highest, made.Intermediates = 4, append(slices.Clone(seen.Intermediates), vault.IntermediateState{Generation: 4, HasKey: true, Signs: true})
	standing := seen
	standing.Roots = []vault.RootState{{Generation: 4, HasKey: true, Signs: true}}
	root := &procedure.Rotation{Procedure: procedure.RotateRootCA, From: 3, To: 4, FromRoot: 2, ToRoot: 3, Mode: "pivot", Furthest: rotation.Final, Back: "changed our mind", Leg: procedure.LegDrop, Dropped: procedure.DroppedNew, Began: began, Workflow: "w"}
	intermediate := &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, From: 3, To: 4, Began: began, Back: "changed our mind", Workflow: "w"}
	pinned := &procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 3, To: 4, FromRoot: 2, ToRoot: 2, Mode: "pinned", Began: began,
		Emergency: &procedure.Emergency{Compromised: "intermediate", First: "availability", Incident: "INC-1", Began: began, Pinned: true}}
	busy := &procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 3, To: 4, FromRoot: 2, ToRoot: 2, Mode: "final", Began: began,
		Emergency: &procedure.Emergency{Compromised: "intermediate", First: "availability", Incident: "INC-1", Began: began}}
	cut := &procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 3, To: 4, FromRoot: 2, ToRoot: 2, Mode: "pinned", Began: began,
		Emergency: &procedure.Emergency{Compromised: "intermediate", First: "containment", Incident: "INC-1", Began: began}}
	renewed := &procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 3, To: 4, FromRoot: 2, ToRoot: 3, Mode: "final", Began: began,
		Emergency: &procedure.Emergency{Compromised: "root", First: "containment", Incident: "INC-1", Began: began}}
	ofLeaf := &procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 3, To: 3, FromRoot: 2, ToRoot: 2, Began: began,
		Emergency: &procedure.Emergency{Compromised: "leaf", Clusters: []string{"b"}, Incident: "INC-1", Began: began}}
	special := &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, From: 3, To: 4, Began: began, Workflow: "w", Intermediate: &mesh.CA{CommonName: "special"}}
	leaf := procedure.EmergencyInput{Compromised: "leaf", Clusters: []string{"a"}, Incident: "INC-2"}
	distrust := procedure.EmergencyInput{Compromised: "leaf", Clusters: []string{"a"}, Distrust: true, First: "availability", Incident: "INC-2"}
	of := func(what, first, incident string) procedure.EmergencyInput {
		return procedure.EmergencyInput{Compromised: what, First: first, Incident: incident}
	}
	for name, test := range map[string]struct {
		want  procedure.EmergencyInput
		begun *procedure.Rotation
		seen  *vault.SurveyResult
		// cas are From, To, FromRoot, ToRoot; refused is part of why it is refused.
		cas     [4]int
		refused string
		is      func(procedure.Rotation) bool
	}{
		"a leaf":                                                 {want: leaf, cas: [4]int{3, 3, 2, 2}},
		"a leaf that is distrusted":                              {want: distrust, cas: [4]int{3, 4, 2, 2}},
		"an intermediate":                                        {want: of("intermediate", "availability", "INC-2"), cas: [4]int{3, 4, 2, 2}},
		"a root":                                                 {want: of("root", "containment", "INC-2"), cas: [4]int{3, 4, 2, 3}},
		"a root, and one stands by":                              {want: of("root", "availability", "INC-2"), seen: &standing, cas: [4]int{3, 4, 2, 4}},
		"a leaf while the root is rotated":                       {want: leaf, begun: root, refused: "relaypki emergency leaf demo a --distrust --first availability|containment "},
		"a leaf in another emergency":                            {want: leaf, begun: busy, refused: "relaypki emergency leaf demo a --distrust --first containment "},
		"an intermediate while the root is":                      {want: of("intermediate", "availability", "INC-2"), begun: root, cas: [4]int{3, 4, 2, 3}, is: forward},
		"a root while it is rotated":                             {want: of("root", "containment", "INC-2"), begun: root, cas: [4]int{3, 4, 2, 3}, is: forward},
		"a leaf that is distrusted while it is":                  {want: distrust, begun: root, cas: [4]int{3, 4, 2, 3}, is: forward},
		"an intermediate that is rotated":                        {want: of("intermediate", "containment", "INC-2"), begun: intermediate, cas: [4]int{3, 4, 2, 2}},
		"a root while an intermediate is":                        {want: of("root", "containment", "INC-2"), begun: intermediate, cas: [4]int{3, 5, 2, 3}},
		"the same without a cut":                                 {want: of("root", "availability", "INC-2"), begun: intermediate, refused: "--first containment"},
		"the incident goes on":                                   {want: of("intermediate", "availability", "INC-1"), begun: busy, cas: [4]int{3, 4, 2, 2}, is: func(r procedure.Rotation) bool { return r.Emergency.Began.Equal(began) && r.Mode == "final" }},
		"in another order":                                       {want: of("intermediate", "containment", "INC-1"), begun: busy, cas: [4]int{3, 4, 2, 2}, is: func(r procedure.Rotation) bool { return r.Emergency.First == "containment" }},
		"in the other order, too late":                           {want: of("intermediate", "availability", "INC-1"), begun: cut, cas: [4]int{3, 4, 2, 2}, is: func(r procedure.Rotation) bool { return r.Emergency.First == "containment" }},
		"the next incident":                                      {want: of("intermediate", "containment", "INC-2"), begun: pinned, seen: &made, cas: [4]int{4, 5, 2, 2}},
		"the next incident, and nothing was made":                {want: of("intermediate", "containment", "INC-2"), begun: busy, cas: [4]int{3, 5, 2, 2}},
		"the next incident of a new root":                        {want: of("root", "containment", "INC-2"), begun: renewed, seen: &made, cas: [4]int{4, 5, 3, 4}},
		"more of a leaf's":                                       {want: of("intermediate", "availability", "INC-1"), begun: ofLeaf, cas: [4]int{3, 4, 2, 2}},
		"another leaf":                                           {want: leaf, begun: ofLeaf, cas: [4]int{3, 3, 2, 2}, is: func(r procedure.Rotation) bool { return slices.Equal(r.Emergency.Clusters, []string{"a", "b"}) }},
		"an intermediate that is rotated to one of its own kind": {want: of("intermediate", "availability", "INC-2"), begun: special, cas: [4]int{3, 4, 2, 2}, is: func(r procedure.Rotation) bool { return r.Intermediate == special.Intermediate }},
		"the next incident without a cut":                        {want: of("intermediate", "availability", "INC-2"), begun: pinned, refused: "INC-1"},
		"a root that vouches for what is pinned":                 {want: of("root", "containment", "INC-1"), begun: pinned, seen: &made, cas: [4]int{4, 5, 2, 3}},
		"to lift what is not pinned":                             {want: procedure.EmergencyInput{Lift: true, Incident: "INC-2"}, begun: busy, refused: "nothing to lift"},
		"to lift in no emergency":                                {want: procedure.EmergencyInput{Lift: true, Incident: "INC-2"}, refused: "nothing to lift"},
		"to lift what is exposed":                                {want: procedure.EmergencyInput{Lift: true, Incident: "INC-2"}, begun: pinned, refused: "relay-intermediate-g3"},
		"to lift it all the same":                                {want: procedure.EmergencyInput{Lift: true, Exposed: true, Incident: "INC-2"}, begun: pinned, cas: [4]int{3, 4, 2, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			if test.seen == nil {
				test.seen = &seen
			}
			test.want.Mesh, test.want.Reason = "demo", "why"
			record := cluster.MeshRecord{Generations: procedure.Generations{Root: 2, Intermediate: 3}, Rotation: test.begun}
			got, err := opening(test.want, record, *test.seen, "holder", now)
			if test.refused != "" {
				if err == nil || !strings.Contains(err.Error(), test.refused) || !strings.Contains(strings.ToLower(err.Error()), "nothing was changed") {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if cas := [4]int{got.From, got.To, got.FromRoot, got.ToRoot}; cas != test.cas {
				t.Errorf("from and to %v, want %v", cas, test.cas)
			}
			if got.Procedure != procedure.EmergencyReissue || got.Emergency == nil || got.Back != "" {
				t.Errorf("%+v", got)
			}
			if !test.want.Lift && (got.Emergency.Incident != test.want.Incident || got.Emergency.First != test.want.First && test.is == nil) {
				t.Errorf("%+v", got.Emergency)
			}
			if test.is != nil && !test.is(got) {
				t.Errorf("%+v, %+v", got, got.Emergency)
			}
			if pinned.Emergency.First != "availability" || busy.Emergency.First != "availability" {
				t.Error("the record was written into")
			}
		})
	}
}

// forward says that a rotation of the root which was being taken back goes forward,
// from the chain that Vault gives.
func forward(r procedure.Rotation) bool {
	return r.Leg == "" && r.Dropped == "" && r.Mode == "pivot" && r.Furthest == rotation.Final
}

// Who has begun with availability and sees an attacker ends that run, and goes on with
// containment from there.
func TestEmergencyIsContainedAfterAll(t *testing.T) {
	for kind, events := range map[string][]string{
		intermediateGone: {"intermediate 2", "reissue cluster1", "use intermediate 1 false", "give pinned", "restart mgmt"},
		rootGone:         {"root 2", "bridge 2", "trust cluster1 +2", "reissue cluster3", "give pivot", "give final", "trust cluster1 -1"},
	} {
		for _, event := range events {
			t.Run(kind+event, func(t *testing.T) {
				w := newRootWorld(t)
				w.fails[event] = failure.Permanent(failure.Denied, "here it ends")
				if _, err := w.emergency(kind+available, w.attended(func(p procedure.Progress) (string, string) {
					if p.Person {
						return procedure.AbortUpdate, `{"reason":"somebody was seen"}`
					}
					return "", ""
				})); err == nil {
					t.Fatal("it did not end there")
				}
				w.unbroken()
				w.fails = map[string]error{}
				result, err := w.emergency(kind + contained)
				if err != nil {
					t.Fatal(err)
				}
				w.broken = nil
				if kind == rootGone {
					w.everywhere(2, 2)
				} else {
					w.pinned(2)
				}
				if result.Emergency.First != procedure.ContainmentFirst || result.Emergency.Reconnected.IsZero() {
					t.Errorf("%+v", result.Emergency)
				}
			})
		}
	}
}
