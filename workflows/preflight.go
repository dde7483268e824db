package workflows

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/cluster"
	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// describe asks Temporal and the site file what there is, and begins the first
// phase: the report uses the search attributes from then on, if there are
// any. It answers the task queues of clusters in private networks, by context.
func (r *report) describe(ctx workflow.Context, phase string) (map[string]string, error) {
	facts, err := call[temporalactivities.Facts](ctx, summarized(looking, "Ask Temporal and the site file what there is"), temporals.DescribeTemporal, nil)
	if err != nil {
		return nil, err
	}
	r.attributes = facts.SearchAttributes
	return facts.TaskQueues, r.phase(ctx, phase)
}

// complaints are what is in the way, each with who says so.
type complaints []string

func (c *complaints) blame(who string, found []string, err error) {
	if err != nil {
		found = append(found, failure.Message(err))
	}
	for _, p := range found {
		*c = append(*c, who+": "+p)
	}
}

// err reports all of them in one error.
func (c complaints) err(ctx workflow.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(c) == 0 {
		return nil
	}
	sort.Strings(c)
	return failure.Permanent(failure.Preflight, "nothing was changed; put this right and start again:\n- %s", strings.Join(slices.Compact(c), "\n- "))
}

// checkEverything asks the management cluster, the workload clusters of the
// spec and Vault whether they are fit for a setup, all at once, and reports
// every problem; nothing has been changed by then. A workload cluster that does
// not answer is told to away; if that is nil, it is a problem like the others.
// joining is as in vault.CheckVaultInput.
func checkEverything(ctx workflow.Context, spec mesh.Spec, joining bool, queues map[string]string, away func(cluster, why string)) (procedure.Outcome, error) {
	var problems complaints
	wg := workflow.NewWaitGroup(ctx)
	var versions []string
	gone := 0
	check := func(in cluster.CheckClustersInput, queue, who string) {
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			out, err := call[cluster.CheckClustersResult](ctx, summarized(on(queue, looking), "Check "+who), kubernetes.CheckClusters, in)
			if err != nil {
				problems.blame(who, nil, err)
			}
			for _, one := range out.Clusters {
				switch {
				case one.Unreachable != "" && one.Workload != "" && away != nil:
					gone++
					away(one.Workload, one.Unreachable)
					continue
				case one.Unreachable != "":
					one.Problems = append(one.Problems, one.Unreachable)
				default:
					versions = append(versions, one.Version)
				}
				problems.blame(one.Context, one.Problems, nil)
			}
		})
	}
	check(cluster.CheckClustersInput{Spec: spec.Only(""), Management: true}, "", "cluster "+spec.Management.Context)
	for _, b := range batches(spec, queues) {
		only := spec
		only.Workloads = b.workloads
		check(cluster.CheckClustersInput{Spec: only}, b.queue, someOf(b.workloads))
	}
	for _, w := range spec.Workloads {
		problems.blame(w.Context, spec.PrivateProblems(queues[w.Context]), nil)
	}
	problems.blame("pki.root", offlineRootProblems(ctx, spec), nil)
	vaultVersion := "to be installed"
	if spec.Vault.Install == mesh.VaultExisting {
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			out, err := call[vault.CheckVaultResult](ctx, summarized(looking, "Check Vault"), vaults.CheckVault, vault.CheckVaultInput{Spec: spec.Only(""), Joining: joining})
			vaultVersion = out.Version
			problems.blame("vault "+spec.Vault.Name, out.Problems, err)
		})
	}
	wg.Wait(ctx)
	if err := problems.err(ctx); err != nil {
		return procedure.Outcome{}, err
	}
	who := fmt.Sprintf("%d clusters", len(versions))
	if gone > 0 {
		who = fmt.Sprintf("%d of %d clusters answer", len(versions), len(versions)+gone)
	}
	return procedure.Outcome{Detail: fmt.Sprintf("%s, Kubernetes %s, Vault %s", who, versionRange(versions), vaultVersion)}, nil
}

// batch is some workloads that one worker looks at in one activity.
type batch struct {
	queue     string
	workloads []mesh.Workload
}

// batchSize bounds what one activity looks at: it is to be over in seconds.
const batchSize = 25

// batches are all workloads, in the spec's order, by the worker that reaches them.
func batches(spec mesh.Spec, queues map[string]string) []batch {
	var out []batch
	open := map[string]int{} // by queue, the batch that has room
	for _, w := range spec.Workloads {
		queue := queues[w.Context]
		at, ok := open[queue]
		if !ok || len(out[at].workloads) == batchSize {
			at = len(out)
			out, open[queue] = append(out, batch{queue: queue}), at
		}
		out[at].workloads = append(out[at].workloads, w)
	}
	return out
}

// someOf names a few clusters.
func someOf(workloads []mesh.Workload) string {
	if len(workloads) == 1 {
		return "cluster " + workloads[0].Context
	}
	return fmt.Sprintf("%d clusters, %s to %s", len(workloads), workloads[0].Context, workloads[len(workloads)-1].Context)
}

// versionRange is the one version of all clusters, or the lowest and highest.
func versionRange(versions []string) string {
	lowest, highest := slices.Min(versions), slices.Max(versions)
	if lowest == highest {
		return lowest
	}
	return lowest + " to " + highest
}
