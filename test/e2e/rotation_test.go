package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// An intermediate is replaced by one with another kind of key while all agents
// shake hands and certificates are renewed at random: nobody is refused, no request
// fails, and what is left is the new one, with nobody's trust touched. A setup
// afterwards has nothing to do, but for a file that still asks for the previous one.
// The commands of a plan do the same by hand; half-way or at their end, the
// procedure goes on from there.
func TestRotateIntermediate(t *testing.T) {
	points := seed(t)
	const quick = "rotation: {approval: none, snapshot: none, soak: 5s, maintain: 0s}\n"
	w, _ := rotationWorld(t, quick)
	w.command(t, 0, "rotate", "leaf", "demo")
	trust := w.trust(t)
	watched, failing, renewals := w.watchHandshakes(t), w.watchRequests(t), w.renewAtRandom(t, points)

	began, c := time.Now(), w.temporal(t)
	w.command(t, 0, "rotate", "intermediate", "demo", "--key-type", "ec", "--detach")
	eventually(t, 5*time.Minute, func() error {
		if problems := w.notRotated(t, generations{active: 2, retired: []int{1}}, trust); len(problems) > 0 {
			return errors.New(strings.Join(problems, "\n"))
		}
		return nil
	})
	t.Logf("rotated in %s", time.Since(began).Round(time.Second))
	// The last certificate of the old intermediate is waited out, but for a person
	// who says that it need not be.
	w.command(t, 0, "approve", "demo", "finish")
	result := outcome[procedure.RotateResult](t, c, procedure.ID(procedure.RotateIntermediateCA, "demo"))
	if !result.Changed || !strings.HasSuffix(result.To.Name, "-g2") || result.Verification == nil || !result.Verification.Healthy {
		t.Errorf("%+v", result)
	}

	sameHistories(t, c, ofRotation)

	renewals.await(t, 5)
	renewals.ended(t) // a script also restarts those that were renewed before it
	w.rotateByHand(t, nil)
	w.finished(t, "relay-intermediate-g3")
	none(t, w.notRotated(t, generations{active: 3, retired: []int{1, 2}}, trust))
	w.rotateByHand(t, func(script string) string {
		half, _, found := strings.Cut(script, "# ---- server\n")
		if !found {
			t.Fatalf("the script has no part for the server:\n%s", script)
		}
		return half
	})
	w.finished(t, "relay-intermediate-g4")
	none(t, w.notRotated(t, generations{active: 4, retired: []int{1, 2, 3}}, trust))

	if failed, _ := failing.renewalsFailed(); len(failed) > 0 {
		t.Errorf("failed: %v", failed)
	}
	none(t, watched.ended(t).problems(0))
	if key, ok := w.issuer(t, "relay-intermediate-g4").certificate.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Error("the new intermediate is not of the key that was asked for")
	}
	file := func(extra string) string {
		path := filepath.Join(t.TempDir(), "mesh.yaml")
		if err := os.WriteFile(path, []byte(rotationSpec(quick+extra)), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if again := w.setup(t, file("pki: {intermediate: {keyType: ec}}\n")); again.Changed {
		t.Errorf("a setup with that key changes something: %+v", again.Steps)
	}
	if _, errOut := w.command(t, exitFailed, "setup", "-f", file("")); !strings.Contains(errOut, "key is ec 256, asked for was rsa 2048") || !strings.Contains(errOut, "relaypki rotate intermediate MESH") {
		t.Errorf("a setup with the previous key says:\n%s", errOut)
	}
	w.noSecrets(t)
}

// rotateByHand runs the commands of a plan, or what cut leaves of them, and none of
// our procedures. Where an agent is to be restarted it is.
func (w *world) rotateByHand(t *testing.T, cut func(script string) string) {
	t.Helper()
	script, _ := w.command(t, 0, "rotate", "intermediate", "demo", "--plan", "-o", "commands")
	if cut != nil {
		script = cut(script)
	} else if restarts := strings.Count(script, "rollout restart"); restarts != 2 {
		t.Errorf("the script has %d restarts, and two agents read their Secrets at their start alone:\n%s", restarts, script)
	}
	w.runByHand(t, "", script)
}

// finished has a rotation that was begun by hand finished and recorded, which makes
// no other intermediate than that one.
func (w *world) finished(t *testing.T, to string) {
	t.Helper()
	if out, _ := w.command(t, 0, "rotate", "intermediate", "demo", "--plan"); !strings.Contains(out, "the rotation to "+to+" that was begun by hand goes on") {
		t.Errorf("the plan after it says:\n%s", out)
	}
	r := w.rotatingIntermediate(t)
	r.begin(t)
	if result := r.finish(t); result.To.Name != to {
		t.Errorf("it went to %s, not to %s", result.To.Name, to)
	}
}

// asking are the phases before which a rotation of the intermediate asks with
// approval eachPhase; finish ends its last wait.
var asking = []string{"stage", "canary", "server", "fleet", "retire", "finish"}

// rotating is a rotation of a CA that waits before each phase.
type rotating struct {
	w *world
	c client.Client
	// begins are the command that begins it or has it go on, id is its workflow's,
	// asking are the phases before which it asks.
	begins []string
	id     string
	asking []string
}

// rotatingIntermediate is one of the intermediate.
func (w *world) rotatingIntermediate(t *testing.T) rotating {
	t.Helper()
	return rotating{w, w.temporal(t), []string{"rotate", "intermediate", "demo", "--approval", "eachPhase", "--detach"},
		procedure.ID(procedure.RotateIntermediateCA, "demo"), asking}
}

// begin begins it, or has it go on.
func (r rotating) begin(t *testing.T) {
	t.Helper()
	r.w.command(t, 0, r.begins...)
}

// until approves phase after phase, up to the one that is named: the rotation
// then waits to begin it.
func (r rotating) until(t *testing.T, phase string) {
	t.Helper()
	for _, p := range r.asking {
		approved := false
		eventually(t, 3*time.Minute, func() error {
			got := queried(t, r.c, r.id)
			approved = slices.ContainsFunc(got.Approvals, func(a procedure.ApproveInput) bool { return a.Phase == p }) ||
				slices.Index(r.asking, got.Asked) > slices.Index(r.asking, p) // over by an earlier run
			if approved || p == got.Asked || p == "finish" && strings.Contains(got.Awaiting, "approve demo finish") {
				return nil
			}
			return fmt.Errorf("it does not wait for %s: it is at %q, waits for %q, problem %q, clusters %+v", p, got.Phase, got.Awaiting, got.Problem, got.Clusters)
		})
		if p == phase {
			return
		}
		if !approved {
			r.w.command(t, 0, "approve", "demo", p)
		}
	}
}

// finish approves all that is left, and waits for the end.
func (r rotating) finish(t *testing.T) procedure.RotateResult {
	t.Helper()
	r.until(t, "finish")
	r.w.command(t, 0, "approve", "demo", "finish")
	return outcome[procedure.RotateResult](t, r.c, r.id)
}

// back takes it back, and waits until it is.
func (r rotating) back(t *testing.T, phase string) {
	t.Helper()
	r.w.command(t, 0, "rollback", "demo", "--reason", "a test of going back")
	if err := r.c.GetWorkflow(t.Context(), r.id, "").Get(t.Context(), nil); failure.KindOf(err) != failure.RolledBack {
		t.Fatalf("taken back before %s, it ended with %v", phase, err)
	}
}

func queried(t *testing.T, c client.Client, id string) (p procedure.Progress) {
	t.Helper()
	value, err := c.QueryWorkflow(t.Context(), id, "", procedure.ProgressQuery)
	if err == nil {
		err = value.Get(&p)
	}
	if err != nil {
		t.Logf("%s: %v", id, err) // a worker that is just starting
	}
	return p
}

// Leaves are issued anew; a rotation is taken back from every phase, and the next
// one succeeds; the histories are lost in a third of the phases, with -soak in
// every one, and the same command finishes it with one new intermediate. All the
// while agents shake hands and certificates are renewed at random, and nobody is
// refused.
func TestRotationsThereAndBack(t *testing.T) {
	points := seed(t)
	takesTurns(t)
	w, wk := rotationWorld(t, "rotation: {snapshot: none, soak: 1s, maintain: 0s}\n")
	trust := w.trust(t)
	watched, failing, renewals := w.watchHandshakes(t), w.watchRequests(t), w.renewAtRandom(t, points)
	r := w.rotatingIntermediate(t)

	before := map[string]string{}
	for _, cluster := range w.all() {
		before[cluster] = w.leaf(t, cluster).SerialNumber.String()
	}
	w.command(t, 0, "rotate", "leaf", "demo")
	for _, cluster := range w.all() {
		if w.leaf(t, cluster).SerialNumber.String() == before[cluster] {
			t.Errorf("%s has the certificate that it had", cluster)
		}
	}
	none(t, w.notRotated(t, generations{active: 1}, trust))

	at := generations{active: 1}
	next := 2
	for _, phase := range asking {
		t.Logf("rollback before %s", phase)
		r.begin(t)
		r.until(t, phase)
		r.back(t, phase)
		if phase != "stage" { // by when there is a new one
			at.retired = append(at.retired, next)
			next++
		}
		none(t, w.notRotated(t, at, trust))
	}

	for i, phase := range asking {
		if !*everywhere && uint64(i)%3 != points%3 {
			continue // a third of the phases; make soak tries all
		}
		t.Logf("history lost before %s", phase)
		r.begin(t)
		r.until(t, phase)
		w.loseHistories(t, wk)
		r.c = w.temporal(t)
		r.begin(t)
		if result := r.finish(t); !strings.HasSuffix(result.To.Name, fmt.Sprintf("-g%d", next)) {
			t.Errorf("it went to %s, not to generation %d", result.To.Name, next)
		}
		at.retired, at.active = append(at.retired, at.active), next
		next++
		none(t, w.notRotated(t, at, trust))
	}

	renewals.await(t, 5)
	renewals.ended(t)
	if failed, _ := failing.renewalsFailed(); len(failed) > 0 {
		t.Errorf("failed: %v", failed)
	}
	none(t, watched.ended(t).problems(0))
	w.noSecrets(t)
}

// A rotation whose worker is killed at the boundaries of its activities, and from
// which Vault, an API server and Temporal are taken away in turn: the same result,
// one new intermediate. A sample of it, or with -soak every boundary, and each of
// the three away in every phase.
func TestRotationInBadWeather(t *testing.T) {
	points := seed(t)
	takesTurns(t)
	w, wk := rotationWorld(t, "rotation: {snapshot: none, soak: 1s, maintain: 0s}\n")
	trust := w.trust(t)
	watched, failing, renewals := w.watchHandshakes(t), w.watchRequests(t), w.renewAtRandom(t, points)
	wk.kill()

	s := w.newSoak(t, points, "")
	s.begin(t, procedure.ID(procedure.RotateIntermediateCA, "demo"))
	s.start(t, procedure.RotateIntermediateCA, `{"mesh":"demo","approval":"none"}`)
	go w.approveFinish(t, s.c, s.id)
	s.run(t, nil)
	s.covered(t, 40, 20)
	at := generations{active: 2, retired: []int{1}}
	none(t, w.notRotated(t, at, trust))

	wk.start()
	r := w.rotatingIntermediate(t)
	var outages []outage
	away := []func() outage{
		func() outage { return w.vaultAway(t, 20*time.Second) },
		func() outage { return w.clusterAway(t, kinds[points%uint64(len(kinds))].cluster, 20*time.Second) },
		func() outage { return w.temporalAway(t, 20*time.Second) },
	}
	r.begin(t)
	for i, phase := range asking {
		r.until(t, phase)
		w.command(t, 0, "approve", "demo", phase)
		for j, stop := range away {
			// One of each, in every other phase.
			if *everywhere || i == 2*j+int(points%2) {
				outages = append(outages, stop())
			}
		}
	}
	result := outcome[procedure.RotateResult](t, r.c, r.id)
	if !strings.HasSuffix(result.To.Name, "-g3") {
		t.Errorf("%+v", result.To)
	}
	none(t, w.notRotated(t, generations{active: 3, retired: []int{1, 2}}, trust))

	renewals.ended(t)
	if failed, _ := failing.renewalsFailed(outages...); len(failed) > 0 {
		t.Errorf("failed: %v", failed)
	}
	none(t, watched.ended(t).problems(0))
	w.noSecrets(t)
}

// approveFinish ends the last wait of the rotation as soon as it is there.
func (w *world) approveFinish(t *testing.T, c client.Client, id string) {
	for t.Context().Err() == nil {
		handle, err := c.UpdateWorkflow(t.Context(), client.UpdateWorkflowOptions{
			WorkflowID: id, UpdateName: procedure.ApproveUpdate, Args: []any{procedure.ApproveInput{Phase: "finish"}}, WaitForStage: client.WorkflowUpdateStageCompleted,
		})
		if err == nil && handle.Get(t.Context(), nil) == nil {
			return
		}
		select {
		case <-t.Context().Done():
		case <-time.After(time.Second): // until it is at the phase that may be ended
		}
	}
}
