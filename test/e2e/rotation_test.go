package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/procedure"
)

// An intermediate is replaced while all agents shake hands and certificates are
// renewed at random: nobody is refused, no request fails, and what is left is the
// new one, with nobody's trust touched.
func TestRotateIntermediate(t *testing.T) {
	points := seed(t)
	w, _ := rotationWorld(t, "rotation: {approval: none, snapshot: none, soak: 5s, maintain: 0s}\n")
	trust := w.trust(t)
	watched, failing, renewals := w.watchHandshakes(t), w.watchRequests(t), w.renewAtRandom(t, points)

	began, c := time.Now(), w.temporal(t)
	w.command(t, 0, "rotate", "intermediate", "demo", "--detach")
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

	renewals.await(t, 5)
	renewals.ended(t)
	if failed, _ := failing.renewalsFailed(); len(failed) > 0 {
		t.Errorf("failed: %v", failed)
	}
	none(t, watched.ended(t).problems(0))
	none(t, w.notRotated(t, generations{active: 2, retired: []int{1}}, trust))
	w.noSecrets(t)
}
