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

// describe asks Temporal and the site file what there is, and begins the
// preflight: the report uses the search attributes from then on, if there are
// any. It answers the task queues of clusters in private networks, by context.
func (r *report) describe(ctx workflow.Context) (map[string]string, error) {
	facts, err := call[temporalactivities.Facts](ctx, summarized(looking, "Ask Temporal and the site file what there is"), temporals.DescribeTemporal, nil)
	if err != nil {
		return nil, err
	}
	r.attributes = facts.SearchAttributes
	return facts.TaskQueues, r.phase(ctx, "preflight")
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
	return failure.Permanent(failure.Preflight, "nothing was changed; put this right and start again:\n- %s", strings.Join(c, "\n- "))
}

// checkEverything asks the management cluster, the workload clusters of the
// spec and Vault whether they are fit for a setup, all at once, and reports
// every problem; nothing has been changed by then.
func checkEverything(ctx workflow.Context, spec mesh.Spec, queues map[string]string) (procedure.Outcome, error) {
	var problems complaints
	wg := workflow.NewWaitGroup(ctx)
	var versions []string
	check := func(spec mesh.Spec, context, queue string, management bool) {
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			out, err := call[cluster.CheckClusterResult](ctx, summarized(on(queue, looking), "Check cluster "+context), kubernetes.CheckCluster,
				cluster.CheckClusterInput{Spec: spec, Context: context, Management: management})
			versions = append(versions, out.Version)
			problems.blame(context, out.Problems, err)
		})
	}
	check(spec.Only(""), spec.Management.Context, "", true)
	for _, w := range spec.Workloads {
		check(spec.Only(w.Name), w.Context, queues[w.Context], false)
		problems.blame(w.Context, spec.PrivateProblems(queues[w.Context]), nil)
	}
	vaultVersion := "to be installed"
	if spec.Vault.Install == mesh.VaultExisting {
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			out, err := call[vault.CheckVaultResult](ctx, summarized(looking, "Check Vault"), vaults.CheckVault, vault.CheckVaultInput{Spec: spec.Only("")})
			vaultVersion = out.Version
			problems.blame("vault "+spec.Vault.Name, out.Problems, err)
		})
	}
	wg.Wait(ctx)
	if err := problems.err(ctx); err != nil {
		return procedure.Outcome{}, err
	}
	return procedure.Outcome{Detail: fmt.Sprintf("%d clusters, Kubernetes %s, Vault %s", len(versions), versionRange(versions), vaultVersion)}, nil
}

// versionRange is the one version of all clusters, or the lowest and highest.
func versionRange(versions []string) string {
	lowest, highest := slices.Min(versions), slices.Max(versions)
	if lowest == highest {
		return lowest
	}
	return lowest + " to " + highest
}
