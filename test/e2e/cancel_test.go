package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/procedure"
)

// A run that is canceled, wherever it is, ends only when nothing of it is at
// work any more: it holds no lock, and no chart is half installed. The same
// input again finishes what it has begun, also after a run that was terminated
// and whose history is gone.
func TestCanceledSetup(t *testing.T) {
	random := rand.New(rand.NewPCG(seed(t), 1))
	w := labWorld(t, "cluster1", "cluster2")
	w.newWorker(t)
	c := w.temporal(t)
	// Among the CAs, in the charts of the clusters, and near the end.
	for _, phase := range []struct{ from, to int }{{8, 18}, {20, 32}, {34, 48}} {
		before, _ := progress(t, c, "setup-demo")
		point := phase.from + random.IntN(phase.to-phase.from)
		if _, errOut, code := w.relaypki(t, "setup", "-f", example, "--detach"); code != 0 {
			t.Fatalf("relaypki setup --detach: exit code %d\n%s", code, errOut)
		}
		eventually(t, 5*time.Minute, func() error {
			if done, _ := progress(t, c, "setup-demo"); done < before+point {
				return fmt.Errorf("%d activities are done, waiting for %d", done-before, point)
			}
			return nil
		})
		if err := c.CancelWorkflow(t.Context(), "setup-demo", ""); err != nil {
			t.Fatal(err)
		}
		err := c.GetWorkflow(t.Context(), "setup-demo", "").Get(t.Context(), nil)
		var canceled *temporal.CanceledError
		if !errors.As(err, &canceled) {
			t.Fatalf("a run canceled after activity %d ended with: %v", point, err)
		}
		leases, err := w.cluster(t, management).kube.CoordinationV1().Leases("gloo-mesh").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, lease := range leases.Items {
			t.Errorf("canceled after activity %d: the lock %s is still held", point, lease.Name)
		}
		for _, cluster := range w.all() {
			pending, err := w.cluster(t, cluster).kube.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{
				LabelSelector: "owner=helm,status in (pending-install,pending-upgrade,pending-rollback,uninstalling)"})
			if err != nil {
				t.Fatal(err)
			}
			for _, release := range pending.Items {
				t.Errorf("canceled after activity %d: %s in %s was left %s", point, release.Name, cluster, release.Labels["status"])
			}
		}
	}
	w.loseHistory(t, c)
	result := w.setup(t, example)
	takenOver := 0
	for _, taken := range append([][]procedure.Step{result.Steps}, steps(t, c, result.Clusters[0]), steps(t, c, result.Clusters[1])) {
		for _, s := range taken {
			if s.Name == "lock" && strings.Contains(s.Detail, "taken over from workflow setup-demo") {
				takenOver++
			}
		}
	}
	if takenOver == 0 {
		t.Errorf("no lock of the run that was lost was taken over: %+v", result)
	}
	if !result.Verification.Healthy {
		t.Errorf("the mesh is not healthy: %+v", result.Verification.Findings)
	}
	w.oneOfEach(t)
	w.noSecrets(t)
}

// loseHistory has a run terminated in the midst of it, and its history deleted.
func (w *world) loseHistory(t *testing.T, c client.Client) {
	t.Helper()
	before, _ := progress(t, c, "setup-demo")
	if _, errOut, code := w.relaypki(t, "setup", "-f", example, "--detach"); code != 0 {
		t.Fatalf("relaypki setup --detach: exit code %d\n%s", code, errOut)
	}
	eventually(t, 5*time.Minute, func() error {
		if done, _ := progress(t, c, "setup-demo"); done < before+15 {
			return fmt.Errorf("%d activities are done, waiting for 15", done-before)
		}
		return nil
	})
	if err := c.TerminateWorkflow(t.Context(), "setup-demo", "", "lost by a test"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WorkflowService().DeleteWorkflowExecution(t.Context(), &workflowservice.DeleteWorkflowExecutionRequest{
		Namespace: w.env["TEMPORAL_NAMESPACE"], WorkflowExecution: &commonpb.WorkflowExecution{WorkflowId: "setup-demo"},
	}); err != nil {
		t.Fatal(err)
	}
}
