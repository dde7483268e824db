package workflows

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
)

var here = failure.Permanent(failure.Denied, "here it ends")

// What a rotation that was taken back has put away may issue again, where an
// emergency takes it over.
func TestEmergencyTakesOverWhatWasPutAway(t *testing.T) {
	for _, first := range []string{available, contained} {
		t.Run(first, func(t *testing.T) {
			w := newRootWorld(t)
			w.fails["give pivot"] = here
			if _, err := w.start(unattended); err == nil {
				t.Fatal("the rotation did not end there")
			}
			w.fails = map[string]error{"record the end": here}
			if _, err := w.start(rollBack); err == nil {
				t.Fatal("the way back did not end there")
			}
			w.fails = map[string]error{}
			if _, err := w.emergency(rootGone + first); err != nil {
				t.Fatal(err)
			}
			w.broken = nil
			w.everywhere(2, 2)
		})
	}
}

// A chain that an ended run was about to have given may still be given while an
// emergency that has taken over waits for that; it goes on from it.
func TestEmergencyAfterALateChain(t *testing.T) {
	for _, first := range []string{available, contained} {
		t.Run(first, func(t *testing.T) {
			w := newRootWorld(t)
			w.fails["give pivot"] = here
			if _, err := w.start(unattended); err == nil {
				t.Fatal("the rotation did not end there")
			}
			w.fails, w.underway = map[string]error{}, []string{"rotate-root-demo"}
			late := false
			w.happens = func(e string) { // after it was looked at, what was cut off lands
				if e == "lock" || strings.HasPrefix(e, "root 2") && !late {
					late = true
					w.intermediates[2].above = w.intermediates[2].above[:1]
				}
			}
			_, err := w.emergency(rootGone + first)
			w.happens = nil
			if !late {
				t.Fatal("nothing landed")
			}
			if err != nil {
				t.Errorf("the first run: %v", err)
				if _, err := w.emergency(rootGone + first); err != nil {
					t.Fatalf("and once more: %v", err)
				}
			}
			w.broken = nil
			w.everywhere(2, 2)
		})
	}
}

// Who ends an emergency but not its pause of the schedules ends that when it is
// started again, and begins no other.
func TestEmergencyThatDoesNotThaw(t *testing.T) {
	for _, kind := range []string{rootGone + contained, rootGone + available, `"compromised":"leaf","clusters":["cluster2"]`} {
		t.Run(kind, func(t *testing.T) {
			w := newRootWorld(t)
			w.fails["freeze false"] = here
			if _, err := w.emergency(kind); err == nil {
				t.Fatal("it did not end there")
			}
			w.fails, w.events = map[string]error{}, nil
			if _, err := w.emergency(kind); err != nil {
				t.Fatal(err)
			}
			if w.count("reissue") > 2 && strings.Contains(kind, "root") && w.roots[3] != nil || w.count("freeze false") != 1 {
				t.Errorf("%q", w.events)
			}
			w.broken = nil
			if strings.Contains(kind, "root") {
				w.everywhere(2, 2)
			}
		})
	}
}

// Where no intermediate can be made any more, the root can be replaced.
func TestEmergencyThatCannotBeginIsLeftForAnother(t *testing.T) {
	w := newRootWorld(t)
	w.fails["intermediate 2"] = here
	if _, err := w.emergency(intermediateGone + available); err == nil {
		t.Fatal("it did not end there")
	}
	w.fails = map[string]error{}
	if _, err := w.emergency(rootGone + contained); err != nil {
		t.Fatal(err)
	}
}

// Emergencies that each break off leave nobody an anchor that was compromised.
func TestEmergenciesThatBreakOffLeaveNoAnchor(t *testing.T) {
	w := newRootWorld(t)
	if _, err := w.emergency(intermediateGone + contained + `,"incident":"INC-1"`); err != nil {
		t.Fatal(err)
	}
	w.fails["trust cluster3 +i3"] = here
	w.fails["restart mgmt"] = here // the server, before any agent
	if _, err := w.emergency(intermediateGone + contained + `,"incident":"INC-2"`); err == nil {
		t.Fatal("it did not end there")
	}
	w.fails = map[string]error{}
	result, err := w.emergency(intermediateGone + contained + `,"incident":"INC-3"`)
	if err != nil {
		t.Fatal(err)
	}
	if result.Emergency.Distrusted.IsZero() {
		t.Error("not distrusted")
	}
	w.pinned(4)
}

// The next incident goes out from the root that an emergency had come to.
func TestEmergencyOfANewRootInTurn(t *testing.T) {
	for _, at := range []string{"restart mgmt", "root 2", "give final", "unbridged 2"} {
		t.Run(at, func(t *testing.T) {
			w := newRootWorld(t)
			w.fails[at] = here
			if _, err := w.emergency(rootGone + contained + `,"incident":"INC-1"`); err == nil {
				t.Skip("the emergency did not end there")
			}
			w.fails = map[string]error{}
			if _, err := w.emergency(rootGone + contained + `,"incident":"INC-2"`); err != nil {
				t.Fatal(err)
			}
			w.broken = nil
			for name := range w.stored {
				if name != "" {
					for _, trust := range w.anchors(name) {
						for _, a := range trust {
							if a.Equal(w.roots[1].Cert) {
								t.Errorf("%s trusts %s", name, pki.Name(a))
							}
						}
					}
				}
			}
		})
	}
}

// A leaf's emergency that goes on is of the same clusters.
func TestEmergencyOfALeafGoesOn(t *testing.T) {
	w := newRootWorld(t)
	w.fails["restart mgmt"] = here
	if _, err := w.emergency(`"compromised":"leaf","clusters":["cluster2"]`); err == nil {
		t.Fatal("it did not end there")
	}
	w.fails, w.events = map[string]error{}, nil
	_, err := w.emergency(`"compromised":"leaf","clusters":["cluster3"]`)
	if err == nil && w.count("reissue cluster3") == 0 {
		t.Errorf("it says that all is well, and left out cluster3: %q", w.events)
	}
}

// One that was in quarantine, and is named, is issued anew.
func TestEmergencyOfALeafInQuarantine(t *testing.T) {
	w := newRootWorld(t)
	w.o.record.Quarantined = map[string]string{"cluster2": "in repair"}
	result, err := w.emergency(`"compromised":"leaf","clusters":["cluster2"]`)
	t.Log(err)
	if w.count("reissue cluster2") == 0 {
		t.Errorf("%+v, %q", result.Emergency, w.events)
	}
}

// While it stays pinned, one that was left out can come back.
func TestQuarantinedMemberOfAPinnedMesh(t *testing.T) {
	for _, kind := range []string{intermediateGone + contained, intermediateGone + available} {
		w := newRootWorld(t)
		w.o.record.Quarantined = map[string]string{"cluster3": "in repair"}
		w.ignored["cluster3"] = true
		_, err := w.emergency(kind)
		if failure.KindOf(err) != failure.Incomplete {
			t.Fatal(err)
		}
		if strings.Contains(err.Error(), "relaypki rotate leaf") {
			t.Errorf("it names a command that is refused: %v", err)
		}
		w.pinned(2, "cluster3")
		w.events = nil
		if _, err := w.emergency(kind); err != nil {
			t.Fatal(err)
		}
		w.pinned(2)
		if len(w.o.record.Quarantined) > 0 || w.count("give") > 0 {
			t.Errorf("%v, %q", w.o.record.Quarantined, w.events)
		}
		if kind == intermediateGone+available {
			w.unbroken()
		}
	}
}

// A leaf's emergency takes nobody else out of quarantine.
func TestEmergencyOfALeafLeavesOthersOut(t *testing.T) {
	w := newRootWorld(t)
	w.o.record.Quarantined = map[string]string{"cluster3": "in repair"}
	if _, err := w.emergency(`"compromised":"leaf","clusters":["cluster2"]`); err != nil {
		t.Fatal(err)
	}
	if w.o.record.Quarantined["cluster3"] != "in repair" {
		t.Errorf("%v", w.o.record.Quarantined)
	}
}

// One whose cluster is removed meanwhile is gone on with, and ended.
func TestEmergencyOfALeafWhoseClusterIsRemoved(t *testing.T) {
	w := newRootWorld(t)
	w.fails["restart mgmt"] = here
	if _, err := w.emergency(`"compromised":"leaf","clusters":["cluster2"]`); err == nil {
		t.Fatal("it did not end there")
	}
	w.fails = map[string]error{}
	w.o.record.Spec.Workloads = slices.DeleteFunc(slices.Clone(w.o.record.Spec.Workloads), func(c mesh.Workload) bool { return c.Name == "cluster2" })
	if _, err := w.emergency(`"compromised":"leaf","clusters":["cluster2"]`); err != nil {
		t.Fatal(err)
	}
	if w.o.record.Rotation != nil {
		t.Errorf("%+v", w.o.record.Rotation)
	}
}

// Until when the compromised certificate is accepted does not move with the new one.
func TestAcceptedUntilOfAnEmergencyThatGoesOn(t *testing.T) {
	w := newRootWorld(t)
	old := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	w.until = map[string]time.Time{"cluster2": old}
	w.fails["restart mgmt"] = here
	if _, err := w.emergency(`"compromised":"leaf","clusters":["cluster2"]`); err == nil {
		t.Fatal("it did not end there")
	}
	w.until["cluster2"] = old.Add(24 * time.Hour)
	first := w.o.record.Rotation.Emergency.AcceptedUntil
	w.fails = map[string]error{}
	looked := w.count("CheckPair cluster2")
	result, err := w.emergency(`"compromised":"leaf","clusters":["cluster2"]`)
	if err != nil {
		t.Fatal(err)
	}
	if !first.Equal(old) || !result.Emergency.AcceptedUntil.Equal(first) {
		t.Errorf("%s, then %s (%d looks)", first, result.Emergency.AcceptedUntil, looked)
	}
}

// Of one that cannot be read it is the latest that there may be.
func TestAcceptedUntilOfWhoIsNotRead(t *testing.T) {
	w := newRootWorld(t)
	w.o.record.Quarantined = map[string]string{"cluster2": "in repair"}
	result, err := w.emergency(`"compromised":"leaf","clusters":["cluster2"]`)
	if err != nil {
		t.Fatal(err)
	}
	of := result.Emergency
	if life := w.o.record.Spec.WithDefaults().Certificates.LongestLife(); !of.AcceptedUntil.Equal(of.Began.Add(life)) {
		t.Errorf("%+v", of)
	}
}

// Continued as new anywhere, it comes to the same end.
func TestEmergencyIsContinuedAsNew(t *testing.T) {
	withoutRaceDetector(t)
	for _, kind := range []string{intermediateGone + available, intermediateGone + contained, rootGone + available, rootGone + contained, `"lift":true,"exposed":true`} {
		t.Run(kind, func(t *testing.T) {
			for n := 1; n < 60; n += 7 {
				w := newRootWorld(t)
				w.o.record.Spec.Rollout.Parallelism = 1
				if strings.Contains(kind, "lift") {
					if _, err := w.emergency(intermediateGone + contained); err != nil {
						t.Fatal(err)
					}
					w.broken = nil
				}
				at, long := 0, false
				w.happens = func(e string) {
					if strings.HasPrefix(e, "reissue") || strings.HasPrefix(e, "role") || strings.HasPrefix(e, "trust") {
						if at++; at == n {
							long = true
							w.env.SetContinueAsNewSuggested(true)
						}
					}
				}
				w.events = nil
				_, err := w.emergency(kind)
				if !long {
					break
				}
				runs := 1
				for ; runs < 20; runs++ {
					var again *workflow.ContinueAsNewError
					if !errors.As(err, &again) {
						break
					}
					var in procedure.EmergencyInput
					var long longRotation
					if err := converter.GetDefaultDataConverter().FromPayloads(again.Input, &in, &long); err != nil {
						t.Fatal(err)
					}
					w.events = append(w.events, "continued")
					w.procedure = procedure.EmergencyReissue
					_, err = w.startLong(in, &long)
					w.procedure = ""
				}
				if err != nil {
					t.Fatalf("at %d, %d runs: %v", n, runs, err)
				}
				if strings.HasSuffix(kind, contained) {
					w.broken = nil
				}
				switch {
				case strings.Contains(kind, "lift"):
					w.everywhere(2, 1)
				case strings.HasPrefix(kind, rootGone):
					w.everywhere(2, 2)
				default:
					w.pinned(2)
					w.unbroken()
				}
				if t.Failed() {
					t.Fatalf("at %d, %d runs, %q", n, runs, w.events)
				}
			}
		})
	}
}

// A rotation of the root, too, goes on from a chain that landed late.
func TestRotationAfterALateChain(t *testing.T) {
	w := newRootWorld(t)
	w.fails["give pivot"] = here
	if _, err := w.start(unattended); err == nil {
		t.Fatal("it did not end there")
	}
	w.fails = map[string]error{}
	late := false
	w.happens = func(e string) {
		if e == "shake cluster3" && !late {
			late = true
			w.intermediates[2].above = w.intermediates[2].above[:1]
		}
	}
	_, err := w.start(unattended)
	w.happens = nil
	if !late {
		t.Fatal("nothing landed")
	}
	if err != nil {
		t.Logf("the first run: %v", err)
		if _, err := w.start(unattended); err != nil {
			t.Fatalf("and once more: %v", err)
		}
	}
	w.everywhere(2, 2)
}

// A chain that a way back was about to have given does not undo the emergency's.
func TestALateChainOfAWayBack(t *testing.T) {
	w := newRootWorld(t)
	w.fails["consumers mgmt"] = here
	if _, err := w.start(unattended); err == nil {
		t.Fatal("it did not end there")
	}
	w.fails = map[string]error{"give pivot": here}
	if _, err := w.start(rollBack); err == nil || w.o.record.Rotation.Next != "pivot" {
		t.Fatalf("the way back did not end there: %v", err)
	}
	w.fails = map[string]error{}
	late := false
	bridge := w.bridges[0]
	var began time.Time
	w.happens = func(e string) {
		// Within the time that it may take.
		if e == "use root 1 false" && !late && w.env.Now().Sub(began) < landing {
			late = true
			w.intermediates[2].above = []pkitest.Pair{bridge}
		}
	}
	_, err := w.emergency(rootGone+contained, func(env *testsuite.TestWorkflowEnvironment) { began = env.Now() })
	w.happens = nil
	if err != nil {
		t.Errorf("the first run: %v", err)
		_, err = w.emergency(rootGone + contained)
	}
	if err != nil {
		t.Fatalf("and once more: %v", err)
	}
	w.broken = nil
	w.everywhere(2, 2)
	if above := w.intermediates[2].above; len(above) != 1 || !above[0].Cert.Equal(w.roots[2].Cert) {
		t.Error("Vault gives another chain by the end")
	}
}

// To leave a mesh as it is by a lift that breaks off anywhere is not for ever.
func TestLiftGoesOn(t *testing.T) {
	for n, more := 1, true; more; n += 3 {
		w := newRootWorld(t)
		if _, err := w.emergency(intermediateGone + contained); err != nil {
			t.Fatal(err)
		}
		w.broken = nil
		at, event := 0, ""
		w.happens = func(e string) {
			if at++; at == n {
				event = e
				w.fails = map[string]error{e: here}
			}
		}
		_, err := w.emergency(`"lift":true,"exposed":true`, w.attended(func(p procedure.Progress) (string, string) {
			if p.Person {
				return procedure.AbortUpdate, `{"reason":"gone"}`
			}
			return "", ""
		}))
		if more = event != ""; !more {
			break
		}
		w.happens, w.fails = nil, map[string]error{}
		if over := w.o.record.Rotation == nil; err == nil || over {
			t.Logf("%q did not end it (%v), over %v", event, err, over)
		} else if _, err := w.emergency(`"lift":true,"exposed":true`); err != nil {
			t.Fatalf("after %q (%d): %v", event, n, err)
		}
		w.everywhere(2, 1)
		if t.Failed() {
			t.Fatalf("after %q (%d), %q", event, n, w.events)
		}
	}
}

// An intermediate's rotation is taken over from where some are of the one and some of
// the other, also where it was being taken back.
func TestEmergencyTakesOverAnIntermediates(t *testing.T) {
	for _, first := range []string{available, contained} {
		for _, back := range []bool{false, true} {
			w := newRootWorld(t)
			w.intermediates[2] = &worldCA{Pair: w.roots[1].Intermediate(t, "relay-intermediate"), signs: !back, key: true, above: []pkitest.Pair{w.roots[1].Pair}}
			begun := &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, From: 1, To: 2, Workflow: "default/rotate-intermediate-demo/1"}
			if back {
				begun.Back = "changed our mind"
			} else {
				for _, name := range []string{"cluster1", ""} {
					w.roles[name] = 2
					w.renew(name)
				}
				w.reload("cluster1")
			}
			w.o.record.Rotation = begun
			if _, err := w.emergency(intermediateGone + first); err != nil {
				t.Errorf("%s, back %v: %v", first, back, err)
				continue
			}
			w.pinned(2)
			if first == available {
				w.unbroken()
			}
		}
	}
}

// Lifted, the mesh is one like any other: for the next incident, and for a rotation.
func TestEmergencyAfterALift(t *testing.T) {
	w := newRootWorld(t)
	for n := range 2 {
		if _, err := w.emergency(intermediateGone + available); err != nil {
			t.Fatal(err)
		}
		w.pinned(2 + n)
		if _, err := w.emergency(`"lift":true,"exposed":true`); err != nil {
			t.Fatal(err)
		}
		w.everywhere(2+n, 1)
	}
	if _, err := w.start(unattended); err != nil {
		t.Fatal(err)
	}
	w.everywhere(4, 2)
	if _, err := w.emergency(rootGone + available); err != nil {
		t.Fatal(err)
	}
	w.everywhere(5, 3)
}

// A plan does not say that the mesh is pinned.
func TestPlanOfAnEmergency(t *testing.T) {
	for _, kind := range []string{intermediateGone + available, intermediateGone + contained, rootGone + available, rootGone + contained, `"compromised":"leaf","clusters":["cluster2"]`} {
		w := newRootWorld(t)
		result, err := w.emergency(kind + `,"plan":true`)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if of := result.Emergency; of == nil || of.Pinned || !of.Distrusted.IsZero() || !of.Reconnected.IsZero() || !of.IssuingStopped.IsZero() {
			t.Errorf("%s: %+v", kind, of)
		}
	}
}

// One for all that signs is moved like the others.
func TestEmergencyWithOneRole(t *testing.T) {
	for _, kind := range []string{intermediateGone + available, intermediateGone + contained} {
		w := newRootWorld(t)
		w.o.record.Spec.PKI.Isolation = mesh.IsolationShared
		if _, err := w.emergency(kind); err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		w.pinned(2)
	}
}

// Half lifted, it is pinned again by the next incident, and by the same.
func TestEmergencyInALift(t *testing.T) {
	for _, next := range []string{contained + `,"incident":"INC-8"`, contained, available} {
		for _, at := range []string{"give final", "restart mgmt", "record the end"} {
			w := newRootWorld(t)
			if _, err := w.emergency(intermediateGone + available); err != nil {
				t.Fatal(err)
			}
			w.fails[at] = here
			if _, err := w.emergency(`"lift":true,"exposed":true`); err == nil {
				t.Fatal("it did not end there")
			}
			w.fails = map[string]error{}
			if _, err := w.emergency(intermediateGone + next); err != nil {
				t.Errorf("%s at %s: %v", next, at, err)
				continue
			}
			pinned := 2
			if strings.Contains(next, "INC-8") {
				pinned = 3
			}
			w.pinned(pinned)
			if next == available {
				w.unbroken()
			}
		}
	}
}

// What the run that was ended had cut off comes last, and undoes nothing.
func TestLateWritesOfARunThatWasEnded(t *testing.T) {
	for _, first := range []string{available, contained} {
		w := newRootWorld(t)
		w.fails["give pivot"] = here
		if _, err := w.start(unattended); err == nil {
			t.Fatal("the rotation did not end there")
		}
		w.fails, w.underway = map[string]error{}, []string{"rotate-root-demo"}
		var began time.Time
		late := false
		w.happens = func(e string) {
			of := w.o.record.Rotation
			stopped := of != nil && of.Emergency != nil && !of.Emergency.ServerDistrusts.IsZero()
			if stopped && e == "shake cluster3" || late && strings.HasPrefix(e, "record") && w.env.Now().Sub(began) < landing {
				late = true
				w.roles["cluster1"], w.intermediates[1].signs, w.roots[1].signs = 1, true, true
			}
		}
		_, err := w.emergency(rootGone+first, func(env *testsuite.TestWorkflowEnvironment) { began = env.Now() })
		w.happens = nil
		if err != nil || !late {
			t.Errorf("%s: %v, late %v", first, err, late)
			continue
		}
		w.broken = nil
		w.everywhere(2, 2)
	}
}
