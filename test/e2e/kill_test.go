package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"

	"github.com/relaypki/relaypki/internal/procedure"
)

// kills is how often the worker is killed in one run.
const kills = 10

// seed is what the random points come from: RELAYPKI_SEED, to see a run again.
func seed(t *testing.T) uint64 {
	s := uint64(time.Now().UnixNano())
	if text := os.Getenv("RELAYPKI_SEED"); text != "" {
		var err error
		if s, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("RELAYPKI_SEED: %v", err)
		}
	}
	t.Logf("the same points again: RELAYPKI_SEED=%d", s)
	return s
}

// A worker killed with SIGKILL at ten random points of one run: the run
// completes, and nothing is there twice.
func TestKilledWorker(t *testing.T) {
	random := rand.New(rand.NewPCG(seed(t), 0))
	w := labWorld(t, "cluster1", "cluster2")
	worker := w.newWorker(t)
	c := w.temporal(t)
	if _, errOut, code := w.relaypki(t, "setup", "-f", example, "--detach"); code != 0 {
		t.Fatalf("relaypki setup --detach: exit code %d\n%s", code, errOut)
	}

	// A run has about this many activities; the points are spread over them.
	const activities = 55
	points := make([]int, kills)
	for i := range points {
		points[i] = 1 + random.IntN(activities)
	}
	slices.Sort(points)
	for i, point := range points {
		at := time.Duration(random.IntN(600)) * time.Millisecond
		eventually(t, 5*time.Minute, func() error {
			done, ended := progress(t, c, "setup-demo")
			if ended {
				t.Fatalf("the run ended after %d activities, before kill %d of %d", done, i+1, kills)
			}
			if done < point {
				return fmt.Errorf("%d activities are done, waiting for %d", done, point)
			}
			return nil
		})
		time.Sleep(at) // the random point inside what runs now; nothing is awaited
		worker.kill()
		t.Logf("kill %d of %d: %s after activity %d", i+1, kills, at, point)
		worker.start()
	}
	var result procedure.SetupResult
	if err := c.GetWorkflow(t.Context(), "setup-demo", "").Get(t.Context(), &result); err != nil {
		t.Fatal(err)
	}
	if !result.Verification.Healthy {
		t.Errorf("the mesh is not healthy: %+v", result.Verification.Findings)
	}
	w.oneOfEach(t)
	w.noSecrets(t)
}

// progress counts the activities that a run and its children have completed,
// and says whether it has ended.
func progress(t *testing.T, c client.Client, id string) (int, bool) {
	t.Helper()
	done, ended := 0, false
	for _, x := range executions(t, c) {
		h := history(t, c, x.Execution.WorkflowId, x.Execution.RunId)
		done += count(h, enumspb.EVENT_TYPE_ACTIVITY_TASK_COMPLETED)
		if x.Execution.WorkflowId == id && x.Status != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING {
			ended = true
		}
	}
	return done, ended
}
