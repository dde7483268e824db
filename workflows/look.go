package workflows

import (
	"fmt"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/relay"
	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// looks are a look at the management cluster and one at each workload of a spec, as
// a verification and a diagnosis have them made.
type looks struct {
	report *report
	spec   mesh.Spec
	// others, pin and standbyPEM are as in the activities' inputs.
	others     []string
	pin        check.Pin
	standbyPEM string
	// queues are the task queues of clusters in private networks, by context.
	queues map[string]string
	// each is what one look may take without settle, which is how long it waits for
	// what is about to be as it should be; summary begins its line in the UI.
	each    workflow.ActivityOptions
	summary string
	settle  mesh.Duration
	// diagnose has more looked at.
	diagnose bool
	// unseen is the finding of a cluster that could not be looked at.
	unseen func(cluster string, err error) check.Finding
}

// findings has every cluster looked at, some at a time: what was found is in the
// order in which the looks ended.
func (l looks) findings(ctx workflow.Context) []check.Finding {
	var all []check.Finding
	places := workflow.NewSemaphore(ctx, clustersAtOnce)
	wg := workflow.NewWaitGroup(ctx)
	look := func(name, queue string, run func(workflow.Context, workflow.ActivityOptions) ([]check.Finding, error)) {
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			if places.Acquire(ctx, 1) != nil {
				return
			}
			defer places.Release(1)
			l.report.cluster(ctx, name, procedure.Running, "")
			options := summarized(on(queue, l.each), l.summary+name)
			options.StartToCloseTimeout += l.settle.Duration
			options.ScheduleToCloseTimeout += l.settle.Duration
			found, err := run(ctx, options)
			if err != nil {
				found = append(found, l.unseen(name, err))
			}
			all = append(all, found...)
			l.report.cluster(ctx, name, state(found), summary(found))
		})
	}
	look(l.spec.Management.Context, "", func(ctx workflow.Context, o workflow.ActivityOptions) ([]check.Finding, error) {
		out, err := call[relay.VerifyManagementResult](ctx, o, relays.VerifyManagement,
			relay.VerifyManagementInput{Spec: l.spec, Others: l.others, Pin: l.pin, Settle: l.settle, Diagnose: l.diagnose})
		return out.Findings, err
	})
	for _, w := range l.spec.Workloads {
		look(w.Name, l.queues[w.Context], func(ctx workflow.Context, o workflow.ActivityOptions) ([]check.Finding, error) {
			out, err := call[relay.VerifyClusterResult](ctx, o, relays.VerifyCluster,
				relay.VerifyClusterInput{Spec: l.spec.Only(w.Name), Cluster: w.Name, Pin: l.pin, StandbyPEM: l.standbyPEM, Settle: l.settle, Diagnose: l.diagnose})
			return out.Findings, err
		})
	}
	wg.Wait(ctx)
	return all
}

func pendingChecks(spec mesh.Spec) []procedure.ClusterProgress {
	clusters := []procedure.ClusterProgress{{Cluster: spec.Management.Context, State: procedure.Pending}}
	for _, w := range spec.Workloads {
		clusters = append(clusters, procedure.ClusterProgress{Cluster: w.Name, State: procedure.Pending})
	}
	return clusters
}

// rank orders findings as the spec orders clusters, the management cluster first.
func rank(spec mesh.Spec, name string) int {
	for i, w := range spec.Workloads {
		if w.Name == name {
			return i + 1
		}
	}
	return 0
}

func state(findings []check.Finding) procedure.State {
	if check.Healthy(findings) {
		return procedure.Done
	}
	return procedure.Failed
}

func summary(findings []check.Finding) string {
	count := map[check.Status]int{}
	for _, f := range findings {
		count[f.Status]++
	}
	text := fmt.Sprintf("%d pass, %d warn, %d fail", count[check.Pass], count[check.Warn], count[check.Fail])
	if notes := count[check.Note]; notes > 0 {
		text += fmt.Sprintf(", %d to note", notes)
	}
	return text
}
