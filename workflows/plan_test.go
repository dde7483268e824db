package workflows

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// A plan goes on after what would change, to the end of every cluster, and
// calls nothing that may write.
func TestPlanLooksAtEverythingAndWritesNothing(t *testing.T) {
	o := &outside{
		differs: map[string]bool{"EnsureNamespace": true, "GenerateIntermediateCSR": true, "InstallChart": true, "ApplyCertificate": true, "EnsureSchedule": true},
		fails: map[string]error{
			"CheckClusters cluster2":    failure.Transient(failure.Unavailable, "no route"),
			"ApplyCertificate cluster1": failure.Permanent(failure.Conflict, "a foreign Certificate"),
		},
	}
	env := newRun(t, o)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: spec, Plan: true}, nil)
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	for _, c := range o.calls {
		if strings.HasSuffix(c, string(procedure.Apply)) || strings.HasSuffix(c, string(procedure.Observe)) || strings.Contains(c, "Lock") || strings.HasPrefix(c, "Verify") || strings.HasPrefix(c, "AwaitVault") {
			t.Errorf("a plan called %q", c)
		}
	}
	for _, want := range []string{"RecordMesh  plan", "SetSignedIntermediate  plan", "InstallChart mgmt plan", "AwaitRelayAddress  plan", "EnsureSchedule  plan", "EnsureNamespace cluster1 plan"} {
		if !slices.Contains(o.calls, want) {
			t.Errorf("a plan did not call %q: %q", want, o.calls)
		}
	}
	var result procedure.SetupResult
	if err := env.GetWorkflowResult(&result); err != nil || !result.Plan || !result.Changed {
		t.Fatalf("result %+v, %v", result, err)
	}
	planned := ""
	for _, s := range result.Steps {
		for _, c := range s.Changes {
			planned += fmt.Sprintf("%s: %s; ", s.Name, c.Object)
		}
	}
	for _, want := range []string{"namespace: EnsureNamespace", "intermediate CA: GenerateIntermediateCSR", "management server: InstallChart", "schedule: EnsureSchedule"} {
		if !strings.Contains(planned, want) {
			t.Errorf("the plan lacks %q: %s", want, planned)
		}
	}
	answer, err := env.QueryWorkflow(procedure.ProgressQuery)
	var p procedure.Progress
	if err == nil {
		err = answer.Get(&p)
	}
	if err != nil || p.Clusters[0].State != procedure.Failed || p.Clusters[0].Detail != "a foreign Certificate" || p.Clusters[1].State != procedure.Parked {
		t.Errorf("the clusters are %+v, %v", p.Clusters, err)
	}
}
