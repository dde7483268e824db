package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"go.temporal.io/sdk/temporal"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A run that is canceled, wherever it is, ends only when nothing of it is at
// work any more: it holds no lock, and no chart is half installed. The same
// input again finishes what it has begun.
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
	if result := w.setup(t, example); !result.Verification.Healthy {
		t.Errorf("the mesh is not healthy: %+v", result.Verification.Findings)
	}
	w.oneOfEach(t)
}
