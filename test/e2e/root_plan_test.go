package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/procedure"
)

// The commands of a plan replace the root by hand, with kubectl and vault alone, and
// end where the procedure would, while all agents shake hands and certificates are
// renewed at random: nobody is refused. The procedure goes on from there, and from
// where they were cut off, and makes no other root, bridge or intermediate.
func TestRotateRootByHand(t *testing.T) {
	points := seed(t)
	reload := reloadOf(points)
	w, _ := rotationWorld(t, rootSpec(reload))
	looking := w.watchRoot(t, points, reload)

	to, whole := 2, points/64%2 == 0
	if *everywhere || whole { // one or the other; make soak tries both
		w.rotateRootByHand(t, reload, nil)
		// Those that read their Secrets by themselves may still be at it.
		eventually(t, time.Minute, func() error {
			if problems := w.rootNotRotatedByHand(t, to, reload); len(problems) > 0 {
				return errors.New(strings.Join(problems, "\n"))
			}
			return nil
		})
		w.rootFinished(t, to, reload)
		to++
	}
	if *everywhere || !whole {
		w.rotateRootByHand(t, reload, func(script string) string {
			begun, _, found := strings.Cut(script, "# ---- commit\n")
			if !found {
				t.Fatalf("the script has no part for the commit:\n%s", script)
			}
			return begun
		})
		if problems := w.rootNotRotated(t, rotatedTo(to)); len(problems) == 0 {
			t.Error("it is done after the pivot")
		}
		w.rootFinished(t, to, reload)
	}
	looking.ended(t)
}

// rotateRootByHand runs the commands of a plan, or what cut leaves of them, and none
// of our procedures.
func (w *world) rotateRootByHand(t *testing.T, serverReload string, cut func(script string) string) {
	t.Helper()
	script, _ := w.command(t, 0, "rotate", "root", "demo", "--plan", "-o", "commands")
	// Of the agents that read their Secrets at their start alone, both are restarted
	// with each of three chains, and the one with a bundle when that grows and when it
	// shrinks. Who was renewed at random meanwhile is restarted once more.
	restarts := 2*3 + 2
	if serverReload != "withCA" {
		restarts += 3
	}
	if got := strings.Count(script, "rollout restart"); got < restarts {
		t.Errorf("the script has %d restarts, not %d:\n%s", got, restarts, script)
	}
	for what, want := range map[string]int{"ManuallyTriggered": 3 * len(w.all()), "\nsleep ": 2, "relaypki does this itself": 0} {
		if got := strings.Count(script, what); got != want {
			t.Errorf("the script has %q %d times, not %d:\n%s", what, got, want, script)
		}
	}
	if cut != nil {
		script = cut(script)
	}
	w.runByHand(t, "", script)
}

// rootNotRotatedByHand is rootNotRotated while certificates are renewed at random: a
// server that loads its Secret at its start alone serves the certificate before.
func (w *world) rootNotRotatedByHand(t *testing.T, to int, serverReload string) []string {
	t.Helper()
	return slices.DeleteFunc(w.rootNotRotated(t, rotatedTo(to)), func(problem string) bool {
		return serverReload == "restartOnly" && strings.HasPrefix(problem, management+": what is served has serial")
	})
}

// rootFinished has a rotation that was begun by hand finished and recorded. It makes
// no other root than that one.
func (w *world) rootFinished(t *testing.T, to int, serverReload string) {
	t.Helper()
	script, _ := w.command(t, 0, "rotate", "root", "demo", "--plan", "-o", "commands")
	if strings.Contains(script, "vault write pki/root/") || strings.Contains(script, "sign-intermediate") {
		t.Errorf("a plan after it would make another CA:\n%s", script)
	}
	w.command(t, 0, "rotate", "root", "demo", "--approval", "none", "--consumers-ok", "--detach")
	c, id := w.temporal(t), procedure.ID(procedure.RotateRootCA, "demo")
	eventually(t, 3*time.Minute, func() error {
		got := queried(t, c, id)
		if !strings.Contains(got.Awaiting, "approve demo finish") {
			return fmt.Errorf("it does not wait for its end: it is at %q, waits for %q, problem %q, clusters %+v", got.Phase, got.Awaiting, got.Problem, got.Clusters)
		}
		return nil
	})
	w.command(t, 0, "approve", "demo", "finish")
	if result := outcome[procedure.RotateResult](t, c, id); result.To.Name != fmt.Sprintf("relay-root-g%d", to) || result.Verification == nil || !result.Verification.Healthy {
		t.Errorf("it went to %+v", result)
	}
	none(t, w.rootNotRotatedByHand(t, to, serverReload))
}
