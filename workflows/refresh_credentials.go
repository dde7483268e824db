package workflows

import (
	"fmt"
	"slices"
	"strings"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/strict"
)

// RefreshCredentials keeps current what expires of the clusters' credentials
// for Vault: keys pinned in auth mounts, tokens, secret ids. What is current is left alone,
// and a credential is made anew only if it is lost. One cluster's failure hides
// no other's; any makes the run end as failed.
func RefreshCredentials(ctx workflow.Context, in procedure.RefreshInput) (procedure.RefreshResult, error) {
	r := &refresh{in: in, result: procedure.RefreshResult{Mesh: in.Mesh}}
	var err error
	if r.report, err = newReport(ctx, procedure.Progress{Procedure: procedure.RefreshCredentials, Mesh: in.Mesh, Phase: "credentials"}); err != nil {
		return r.result, err
	}
	// Strict for what people type; a schedule's stored input may be of another release.
	var problems []strict.Problem
	if typed(ctx) {
		problems = in.Problems
	}
	if in.Mesh == "" {
		problems = append(problems, strict.Problem{Path: "mesh", Message: "is missing"})
	}
	if err := invalid(problems); err != nil {
		return r.result, r.report.finish(ctx, err)
	}
	if err := r.run(ctx); err != nil {
		r.report.Told = tell(ctx, r.report, err, whatFailed(r.report.Progress, err))
		return r.result, r.report.finish(ctx, err)
	}
	if err := r.failures(); err != nil {
		r.result.Told = tell(ctx, r.report, err, whatFailed(r.report.Progress, err))
		err = r.failures()            // with that
		_ = r.report.finish(ctx, err) // whose details would be the progress
		return r.result, err
	}
	return r.result, r.report.finish(ctx, nil)
}

type refresh struct {
	in     procedure.RefreshInput
	report *report
	result procedure.RefreshResult

	// renewal is the run that makes all credentials anew, if it is one; see
	// RotateIssuerCredentials.
	renewal string

	spec     mesh.Spec
	clusters []refreshed
}

// refreshed is one cluster and what became of it.
type refreshed struct {
	// name is the registered name, or the management cluster's context.
	name, context, queue string
	// workload is empty for the management cluster.
	workload string

	outcome procedure.Outcome
	// skipped is why it was left alone.
	skipped string
	err     error
}

func (c refreshed) state() procedure.State {
	switch {
	case c.err != nil:
		return procedure.Failed
	case c.skipped != "":
		return procedure.Skipped
	}
	return c.outcome.State()
}

func (c refreshed) detail() string {
	switch {
	case c.err != nil:
		return failure.Message(c.err)
	case c.skipped != "":
		return c.skipped
	case len(c.outcome.Changes) == 0:
		return c.outcome.Detail
	}
	details := []string{}
	for _, change := range c.outcome.Changes {
		details = append(details, change.Object+": "+change.Detail)
	}
	return c.outcome.Detail + " (" + strings.Join(details, "; ") + ")"
}

func (r *refresh) run(ctx workflow.Context) error {
	if err := r.find(ctx); err != nil {
		return err
	}
	r.report.Clusters = pendingChecks(r.spec)
	r.all(ctx)
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := r.left(ctx); err != nil {
		return err
	}
	r.sum()
	return nil
}

// find reads which clusters the mesh has.
func (r *refresh) find(ctx workflow.Context) error {
	queues, err := r.report.describe(ctx, "credentials")
	if err != nil {
		return err
	}
	record, err := r.readMesh(ctx)
	if err != nil {
		return err
	}
	if !record.Found {
		return failure.Permanent(failure.InvalidInput, "there is no mesh %q in the management cluster; set it up first: relaypki setup -f mesh.yaml", r.in.Mesh)
	}
	r.spec = record.Spec.WithDefaults()
	r.result.Method = r.spec.Credential.Method
	r.clusters = []refreshed{{name: r.spec.Management.Context, context: r.spec.Management.Context}}
	for _, w := range r.spec.Workloads {
		// What is just coming or going has a credential not yet, or no longer.
		moving, _ := record.Moving(w.Name)
		r.clusters = append(r.clusters, refreshed{name: w.Name, context: w.Context, workload: w.Name, queue: queues[w.Context], skipped: moving})
	}
	return nil
}

func (r *refresh) readMesh(ctx workflow.Context) (cluster.MeshRecord, error) {
	return call[cluster.MeshRecord](ctx, summarized(acting, "Read the mesh's record"), kubernetes.ReadMesh,
		cluster.ReadMeshInput{Mesh: r.in.Mesh, Management: r.in.Management, Namespace: r.in.Namespace})
}

// all goes through the clusters, some at a time.
func (r *refresh) all(ctx workflow.Context) {
	places := workflow.NewSemaphore(ctx, int64(r.spec.Rollout.Parallelism))
	wg := workflow.NewWaitGroup(ctx)
	for i := range r.clusters {
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			c := &r.clusters[i]
			if c.skipped != "" {
				r.report.cluster(ctx, c.name, c.state(), c.detail())
				return
			}
			if c.err = places.Acquire(ctx, 1); c.err != nil {
				return
			}
			defer places.Release(1)
			r.report.cluster(ctx, c.name, procedure.Running, "")
			r.one(ctx, c)
			r.report.cluster(ctx, c.name, c.state(), c.detail())
		})
	}
	wg.Wait(ctx)
}

// one keeps one cluster's credential current, or makes it anew.
func (r *refresh) one(ctx workflow.Context, c *refreshed) {
	in := vault.RefreshCredentialInput{Spec: r.spec.Only(c.workload), Context: c.context, Workload: c.workload, Renewal: r.renewal, Mint: r.renewal != ""}
	if r.spec.Credential.Method == mesh.CredentialJWT && r.spec.Credential.Keys == mesh.KeysPinned {
		keys, err := call[cluster.ServiceAccountKeys](ctx, summarized(on(c.queue, acting), "Read the keys of cluster "+c.name), kubernetes.ReadServiceAccountKeys,
			cluster.ServiceAccountKeysInput{Context: c.context})
		if err != nil {
			c.err = err
			return
		}
		in.Issuer, in.KeysPEM = keys.Issuer, keys.KeysPEM
	}
	do := func(summary string) (out vault.RefreshCredentialResult) {
		out, c.err = call[vault.RefreshCredentialResult](ctx, summarized(acting, summary+c.name), vaults.RefreshCredential, in)
		c.outcome = out.Outcome
		return out
	}
	summary := "Refresh the credential of cluster "
	if r.renewal != "" {
		summary = "Make the credential anew of cluster "
	}
	out := do(summary)
	if c.err != nil {
		return
	}
	if out.Lost == "" {
		r.takeUp(ctx, c, out)
		return
	}
	by := r.atWork(ctx, c)
	if c.err != nil {
		return
	}
	if by != "" {
		c.skipped = fmt.Sprintf("%s; %s is at work on the cluster, so it is left alone until the next run", out.Lost, by)
		return
	}
	in.Mint = true
	if out = do("Make the lost credential anew of cluster "); c.err == nil {
		r.takeUp(ctx, c, out)
	}
}

// takeUp has the cluster's Issuer use a new secret id or token, and ends the old
// one once it does. A run that was killed in between has left two.
func (r *refresh) takeUp(ctx workflow.Context, c *refreshed, out vault.RefreshCredentialResult) {
	spec := r.spec.Only(c.workload)
	if out.SecretKey == "" && out.Superseded > 0 {
		if r.prove(ctx, c); c.err == nil {
			var retired procedure.Outcome
			retired, c.err = call[procedure.Outcome](ctx, summarized(acting, "Revoke the old token of cluster "+c.name), vaults.RetireClusterToken,
				vault.RetireClusterTokenInput{Spec: spec, Context: c.context})
			c.outcome.Add(retired)
		}
		return
	}
	if len(out.Changes) == 0 && out.Superseded == 0 || out.SecretKey == "" {
		return
	}
	used, err := call[procedure.Outcome](ctx, summarized(waiting, "Have the Issuer use the new secret id of cluster "+c.name), certManagers.UseSecretID,
		certmanager.UseSecretIDInput{Mesh: spec.Mesh, Context: c.context, Namespace: spec.Namespace, Key: out.SecretKey})
	c.outcome.Add(used)
	if err == nil {
		var retired procedure.Outcome
		retired, err = call[procedure.Outcome](ctx, summarized(acting, "Destroy the old secret id of cluster "+c.name), vaults.RetireSecretIDs,
			vault.RetireSecretIDsInput{Spec: spec, Context: c.context, Key: out.SecretKey})
		c.outcome.Add(retired)
	}
	c.err = err
}

// prove has cert-manager log in with the credential that there is now.
func (r *refresh) prove(ctx workflow.Context, c *refreshed) {
	_, c.err = call[procedure.Outcome](ctx, summarized(on(c.queue, waiting), "Have cert-manager log in with the credential of cluster "+c.name), certManagers.ProveLogin,
		certmanager.LoginInput{Context: c.context, Namespace: r.spec.Only(c.workload).Namespace})
}

// atWork is the workflow that works on a workload cluster. A credential that is
// gone may be on its way out with the cluster, and must then not be made anew.
// The management cluster never leaves; its lock is that of the whole mesh, which
// a setup may hold for days while it waits for a person.
func (r *refresh) atWork(ctx workflow.Context, c *refreshed) (by string) {
	if c.workload == "" {
		return ""
	}
	by, c.err = call[string](ctx, summarized(acting, "Ask who is at work on cluster "+c.name), kubernetes.LockHolder,
		cluster.LockInput{Context: r.spec.Management.Context, Namespace: r.spec.Management.Namespace, Lease: r.spec.ClusterLease(c.workload)})
	return by
}

// left looks again at the record if anything failed: a cluster that has left the
// mesh meanwhile has no credential any more.
func (r *refresh) left(ctx workflow.Context) error {
	if !slices.ContainsFunc(r.clusters, func(c refreshed) bool { return c.err != nil && c.workload != "" }) {
		return nil
	}
	record, err := r.readMesh(ctx)
	if err != nil {
		return err
	}
	for i := range r.clusters {
		c := &r.clusters[i]
		if _, member := record.Spec.Workload(c.workload); c.err != nil && c.workload != "" && record.Found && !member {
			c.err, c.skipped = nil, "it has left the mesh meanwhile"
			r.report.cluster(ctx, c.name, c.state(), c.detail())
		}
	}
	return nil
}

// mostClusters is how many clusters a result names. Details of failures are kept
// in Temporal's histories, and nobody reads further.
const mostClusters = 50

// sum makes the result of what became of the clusters.
func (r *refresh) sum() {
	r.result.Count = map[procedure.State]int{}
	for _, c := range r.clusters {
		r.result.Count[c.state()]++
		r.result.Changed = r.result.Changed || len(c.outcome.Changes) > 0
	}
	for _, state := range []procedure.State{procedure.Failed, procedure.Created, procedure.Changed, procedure.Skipped} {
		for _, c := range r.clusters {
			if c.state() == state && len(r.result.Clusters) < mostClusters {
				r.result.Clusters = append(r.result.Clusters, procedure.ClusterProgress{Cluster: c.name, State: state, Detail: brief(c.detail())})
			}
		}
	}
}

// failures is the error of a run in which anything failed: the first cause's
// kind, the first causes, and the result as details.
func (r *refresh) failures() error {
	failed := r.result.Count[procedure.Failed]
	if failed == 0 {
		return nil
	}
	var kind failure.Kind
	var lines []string
	for _, c := range r.clusters {
		if c.err == nil {
			continue
		}
		if temporal.IsCanceledError(c.err) {
			return c.err
		}
		if kind == "" {
			kind = failure.KindOf(c.err)
		}
		if len(lines) < mostLines {
			lines = append(lines, c.name+": "+brief(failure.Message(c.err)))
		}
	}
	if more := failed - len(lines); more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	if kind == "" {
		kind = failure.Unavailable
	}
	return failure.PermanentWithDetails(kind, fmt.Sprintf("the credentials of %d of %d clusters could not be refreshed; they work until they end. Put this right and refresh again:\n- %s",
		failed, len(r.clusters), strings.Join(lines, "\n- ")), r.result)
}
