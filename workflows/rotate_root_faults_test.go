package workflows

import (
	"slices"
	"testing"
	"time"

	"go.temporal.io/sdk/testsuite"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rotation"
)

// longAt has the run's history grow long as an event happens, once.
func (w *rootWorld) longAt(event string, nth int) {
	seen := 0
	w.happens = func(e string) {
		if e == event {
			if seen++; seen == nth {
				w.env.SetContinueAsNewSuggested(true)
			}
		}
	}
}

// A run that was about to have Vault give a chain, and is lost: the next one waits
// until what was cut off can happen no more.
func TestTheNextRunWaitsForWhatWasCutOff(t *testing.T) {
	w := newRootWorld(t)
	w.fails["give pivot"] = failure.Permanent(failure.Unavailable, "the run is lost here")
	if _, err := w.start(unattended); err == nil || w.o.record.Rotation.Next != "pivot" {
		t.Fatalf("%v, recorded %+v", err, w.o.record.Rotation)
	}
	w.fails = map[string]error{}
	var began time.Time
	if _, err := w.start(unattended, func(env *testsuite.TestWorkflowEnvironment) { began = env.Now() }); err != nil {
		t.Fatal(err)
	}
	if after := w.given["pivot"].Sub(began); after < landing {
		t.Errorf("it was given after %s", after)
	}
	w.everywhere(2, 2)
}

// Continued as new in the midst of a part in which everybody has a turn, it goes on
// with that, and nobody has another turn.
func TestRotateRootIsContinuedAsNew(t *testing.T) {
	for name, c := range map[string]struct {
		event string
		nth   int
		once  []string // what is not done again after that
	}{
		"trust":    {"shake cluster1", 1, nil},
		"bridged":  {"role 2 cluster1", 1, []string{"reissue cluster1"}},
		"pivot":    {"reissue cluster1", 2, nil},
		"final":    {"reissue cluster1", 3, nil},
		"contract": {"trust cluster1 -1", 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newRootWorld(t)
			w.o.record.Spec.Rollout.Parallelism = 1
			w.longAt(c.event, c.nth)
			_, err := w.start(unattended)
			_, runs, err := w.goesOn(err)
			if err != nil || runs < 2 {
				t.Fatalf("%d runs: %v", runs, err)
			}
			w.everywhere(2, 2)
			after := w.events[slices.Index(w.events, "continued"):]
			for _, event := range append(c.once, "root 2", "intermediate 2", "record >") {
				if n := count(after, event); n > map[bool]int{true: 2, false: 0}[slices.Contains(c.once, event)] {
					t.Errorf("%q happens %d times after", event, n)
				}
			}
		})
	}
}

func count(events []string, event string) int {
	return len(slices.DeleteFunc(slices.Clone(events), func(e string) bool { return e != event }))
}

// Continued as new while roles go back to the previous intermediate, none goes
// forward again: in a large mesh it would never come to an end.
func TestARollBackThatIsContinuedAsNewGoesOn(t *testing.T) {
	for event, again := range map[string]string{"role 1 cluster1": "role 2 cluster1", "trust cluster1 -2": "trust cluster1 +1"} {
		t.Run(event, func(t *testing.T) {
			w := newRootWorld(t)
			w.o.record.Spec.Rollout.Parallelism = 1
			w.fails["give final"] = failure.Permanent(failure.Unavailable, "as far as this")
			if _, err := w.start(unattended); err == nil {
				t.Fatal("it went on")
			}
			w.fails = map[string]error{}
			w.longAt(event, 1)
			_, err := w.start(rollBack)
			_, runs, err := w.goesOn(err)
			if err != nil || runs < 2 {
				t.Fatalf("%d runs: %v", runs, err)
			}
			w.everywhere(1, 1)
			if n := count(w.events[slices.Index(w.events, "continued"):], again); n > 0 {
				t.Errorf("%q happens %d times more", again, n)
			}
		})
	}
}

// Somebody has made the CAs by hand and given the new intermediate the chain that it
// is to have at last. Nobody is issued it yet, so it can be given another.
func TestAFinalChainMadeByHand(t *testing.T) {
	w := newRootWorld(t)
	w.roots[2] = &worldCA{Pair: pkitest.Root(t, "relay-root G2"), signs: true, key: true}
	w.intermediates[2] = &worldCA{Pair: w.roots[2].Intermediate(t, "relay-intermediate"), signs: true, key: true, above: []pkitest.Pair{w.roots[2].Pair}}
	if _, err := w.start(unattended); err != nil {
		t.Error(err)
	}
	w.everywhere(2, 2)
}

// A chain that ends with the intermediate is no chain of a rotation, whoever has set
// it: no phase may be passed over for it.
func TestAPinnedIntermediateMadeByHand(t *testing.T) {
	c := newRootCAs(t)
	r := c.found(t, procedure.Rotation{})
	if err := r.inTime(c.seen(c.chains()[rotation.Pinned])); failure.KindOf(err) != failure.Conflict {
		t.Errorf("%v, and it is at %s", err, r.At)
	}
}

// While a member joins, the rotation may go from chain to chain, or end: what counts
// is what was read last.
func TestJoinReadsAgain(t *testing.T) {
	c := newRootCAs(t)
	now := &procedure.Rotation{Procedure: procedure.RotateRootCA, From: 1, To: 2, FromRoot: 1, ToRoot: 2}
	for name, ended := range map[string]bool{"at the next chain": false, "over": true} {
		s := c.seen(nil)
		s.Active = intermediateState(2, c.i2)
		s.Active.AbovePEM = c.chains()[rotation.Pivot]
		a := &addition{rotation: now, root: s.Root}
		if err := a.inRotation(s); err != nil || a.bridgePEM != textOf(c.bridge) {
			t.Fatalf("%v", err)
		}
		trust := textOf(c.r1) + textOf(c.r2)
		if ended {
			a.rotation, trust = nil, ""
		}
		s.Active.AbovePEM = c.chains()[rotation.Final]
		if err := a.inRotation(s); err != nil || a.bridgePEM != "" || a.trustPEM != trust {
			t.Errorf("%s: %v; the bridge is kept: %v, the trust is right: %v", name, err, a.bridgePEM != "", a.trustPEM == trust)
		}
	}
}

// Who joins when the new root is already taken from agents' trust again does not
// bring it back.
func TestJoinARotationThatIsTakenBack(t *testing.T) {
	c := newRootCAs(t)
	s := c.seen(c.chains()[rotation.Bridged])
	a := &addition{rotation: &procedure.Rotation{Procedure: procedure.RotateRootCA, From: 1, To: 2, FromRoot: 1, ToRoot: 2, Mode: "bridged", Back: "why", Dropped: procedure.DroppedNew}, root: s.Root}
	if err := a.inRotation(s); err != nil || a.trustPEM != textOf(c.r1) {
		t.Errorf("%v; it trusts the new root: %v", err, a.trustPEM != textOf(c.r1))
	}
}

// What cannot be taken back any more is refused when a run begins, as it is of one
// that is under way.
func TestNoWayBackAtTheStart(t *testing.T) {
	w := newRootWorld(t)
	w.fails["give final"] = failure.Permanent(failure.Unavailable, "as far as this")
	_, _ = w.start(unattended)
	w.fails = map[string]error{}
	w.intermediates[1].key = false
	_, err := w.start(rollBack)
	if failure.KindOf(err) != failure.Preflight || w.o.record.Rotation == nil || w.o.record.Rotation.Back != "" {
		t.Errorf("%v, recorded %+v", err, w.o.record.Rotation)
	}
}
