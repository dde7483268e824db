package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/procedure"
)

// A verification sees what somebody broke and names the remedy; the same setup
// again puts it right and touches nothing else.
func TestVerifySeesAndSetupHeals(t *testing.T) {
	w := demoWorld(t)
	c := w.cluster(t, "cluster1")
	if err := c.kube.CoreV1().Secrets("gloo-mesh").Delete(context.Background(), "relay-root-tls-secret", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	out, errOut, code := w.relaypki(t, "verify", "demo", "-o", "json")
	if code != 4 {
		t.Errorf("relaypki verify: exit code %d, want 4 (not healthy)\n%s%s", code, out, errOut)
	}
	found := resultOf[procedure.VerifyResult](t, out)
	seen := false
	for _, f := range found.Findings {
		if f.Status == check.Fail {
			if f.Cluster != "cluster1" {
				t.Errorf("%s fails in %s too: %s", f.Check, f.Cluster, f.Message)
			}
			seen = seen || f.Check == "agent-trust" && strings.Contains(f.Message, "relay-root-tls-secret") && f.Remedy != ""
		}
	}
	if !seen || found.Healthy {
		t.Errorf("the missing relay-root-tls-secret is not among the findings: %+v", found.Findings)
	}

	if err := c.kube.AppsV1().Deployments("gloo-mesh").Delete(context.Background(), "gloo-mesh-agent", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	before := w.objects(t, "cluster2")
	result := w.setup(t, example)
	for _, cluster := range result.Clusters {
		for _, s := range steps(t, w.temporal(t), cluster) {
			want := procedure.UpToDate
			if healed, ok := map[string]procedure.State{"agent trust": procedure.Created, "agent": procedure.Changed}[s.Name]; ok && cluster.Cluster == "cluster1" {
				want = healed
			}
			if s.State != want {
				t.Errorf("%s, step %q: %s, want %s", cluster.Cluster, s.Name, s.State, want)
			}
		}
	}
	if d := differences(before, w.objects(t, "cluster2")); len(d) > 0 {
		t.Errorf("healing cluster1 changed cluster2: %s", strings.Join(d, ", "))
	}
	if !result.Changed || !result.Verification.Healthy {
		t.Errorf("the setup did not heal the mesh: %+v", result.Verification)
	}
}

// The schedule that a setup makes runs the verification.
func TestScheduledVerification(t *testing.T) {
	w := demoWorld(t)
	c := w.temporal(t)
	schedule := c.ScheduleClient().GetHandle(t.Context(), temporalactivities.VerifyScheduleID("demo"))
	if err := schedule.Trigger(t.Context(), client.ScheduleTriggerOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		page, err := c.ListWorkflow(t.Context(), &workflowservice.ListWorkflowExecutionsRequest{Query: `TemporalScheduledById IS NOT NULL AND RelayMesh = "demo"`})
		if err != nil {
			return err
		}
		for _, x := range page.Executions {
			if x.Status == enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED && x.Type.Name == procedure.VerifyMesh {
				return nil
			}
		}
		return fmt.Errorf("no scheduled verification has completed among %d", len(page.Executions))
	})
}
