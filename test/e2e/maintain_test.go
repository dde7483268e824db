package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"

	"github.com/relaypki/relaypki/internal/procedure"
)

// An intermediate of a short life is due by the mesh's policy: the schedule's
// MaintainMesh rotates it with nobody's help, and people are told. As long as the
// rotation fails of the same, however often it is started, they are told so once.
func TestIntermediateIsRotatedWhenItIsDue(t *testing.T) {
	w := labWorld(t, "cluster1")
	_, hook := w.startTellingWorker(t)
	input := filepath.Join(t.TempDir(), "mesh.yaml")
	// Of 4 h, 98 % are left after 4 minutes; Vault dates what it issues back by half
	// a minute.
	text := `mesh: demo
workloads: [{name: cluster1, agent: {reload: hot}}]
verify: {every: 0s}
pki: {intermediate: {ttl: 4h}, maxLeafTTL: 1h}
certificates: {server: {duration: 1h, renewBefore: 5m}, client: {duration: 1h, renewBefore: 5m}}
rotation: {approval: none, snapshot: none, soak: 0s, maintain: 1m, due: {intermediate: 99}}
`
	if err := os.WriteFile(input, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if result := w.setup(t, input); !result.Verification.Healthy {
		t.Fatalf("the mesh is not healthy: %+v", result.Verification.Findings)
	}
	trust, c, id := w.trust(t), w.temporal(t), procedure.ID(procedure.RotateIntermediateCA, "demo")
	w.followsLatest(t, true)
	failedRun := func(unlike string) (run string) {
		t.Helper()
		eventually(t, 8*time.Minute, func() error {
			d, err := c.DescribeWorkflowExecution(t.Context(), id, "")
			var missing *serviceerror.NotFound
			if errors.As(err, &missing) {
				return errors.New("nothing has been started yet")
			}
			if err != nil {
				return err
			}
			run = d.GetWorkflowExecutionInfo().GetExecution().GetRunId()
			if status := d.GetWorkflowExecutionInfo().GetStatus(); run == unlike || status != enumspb.WORKFLOW_EXECUTION_STATUS_FAILED {
				return fmt.Errorf("the rotation's run %s is %s", run, status)
			}
			return nil
		})
		return run
	}
	first := failedRun("")
	w.maintain(t)
	failedRun(first)
	const failed = "RotateIntermediateCA of mesh demo failed: "
	if told := strings.Join(hook.told(), "\n"); strings.Count(told, failed) != 1 || !strings.Contains(told, "default_follows_latest_issuer is true") {
		t.Errorf("of a rotation that has failed twice of the same, people were told:\n%s", told)
	}
	w.followsLatest(t, false)
	w.maintain(t)
	eventually(t, 5*time.Minute, func() error {
		if problems := w.notRotated(t, generations{active: 2, retired: []int{1}}, trust); len(problems) > 0 {
			return fmt.Errorf("%s", strings.Join(problems, "\n"))
		}
		return nil
	})
	eventually(t, time.Minute, func() error {
		out, errOut, code := w.relaypki(t, "approve", "demo", "finish")
		if code != 0 {
			return fmt.Errorf("%s%s", out, errOut)
		}
		return nil
	})
	if result := outcome[procedure.RotateResult](t, c, id); !strings.HasSuffix(result.To.Name, "-g2") {
		t.Errorf("%+v", result)
	}
	told := strings.Join(hook.told(), "\n")
	for _, want := range []string{"RotateIntermediateCA of mesh demo", "rotate-intermediate-demo", "done: every certificate is of relay-intermediate-g2"} {
		if !strings.Contains(told, want) {
			t.Errorf("people were not told %q, but:\n%s", want, told)
		}
	}
	w.noSecrets(t)
}

// maintain has the schedule look now.
func (w *world) maintain(t *testing.T) {
	t.Helper()
	if out, errOut, code := w.relaypki(t, "schedule", "trigger", "demo", "maintain"); code != 0 {
		t.Fatalf("%s%s", out, errOut)
	}
}

// followsLatest says whether a new intermediate would be at work at once, of which
// no rotation is begun.
func (w *world) followsLatest(t *testing.T, follows bool) {
	t.Helper()
	const path = "pki_relay/config/issuers"
	if _, err := w.vault(t).Logical().Write(path, map[string]any{"default": w.read(t, path)["default"], "default_follows_latest_issuer": follows}); err != nil {
		t.Fatal(err)
	}
}
