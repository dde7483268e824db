package workflows

import (
	"errors"
	"slices"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// RotateIssuerCredentials makes the clusters' credentials for Vault anew,
// whatever is left of their lives: keys are read and pinned again, tokens, secret
// ids and reviewers' tokens are replaced. The old one ends once cert-manager has
// logged in with the new. The workload clusters come one after the other, as the
// spec's rollout says, the canary first; the management cluster comes last, when
// it has been seen to work everywhere else. A cluster that fails is parked, with
// its old credential at work, and people steer the run by updates (see fleet).
//
// Nobody types long: it is what a run hands to its continuation when its history
// has grown long.
func RotateIssuerCredentials(ctx workflow.Context, in procedure.Typed[procedure.RotateCredentialsInput], long *procedure.Progress) (procedure.RefreshResult, error) {
	ctx, abort := workflow.WithCancel(ctx)
	r := &credentialRotation{chosen: in.In.Clusters, refresh: refresh{
		in:      procedure.RefreshInput{Mesh: in.In.Mesh, Management: in.In.Management, Namespace: in.In.Namespace},
		result:  procedure.RefreshResult{Mesh: in.In.Mesh},
		renewal: holder(ctx), // of whatever run this is continued as, too
	}}
	// One at a time, until somebody says otherwise (setParallelism).
	progress := procedure.Progress{Procedure: procedure.RotateIssuerCredentials, Mesh: in.In.Mesh, Phase: "credentials", Parallelism: 1}
	if long != nil && workflow.GetInfo(ctx).ContinuedExecutionRunID != "" {
		r.resumed, progress = true, *long
	}
	var err error
	if r.report, err = newReport(ctx, progress); err != nil {
		return r.result, err
	}
	if err := invalid(inputProblems(ctx, in.In.MeshInput, in.Problems)); err != nil {
		return r.result, r.report.finish(ctx, err)
	}
	err = r.run(ctx, abort)
	if errors.Is(err, errLong) {
		return r.result, workflow.NewContinueAsNewError(ctx, procedure.RotateIssuerCredentials, in.In, r.report.Progress)
	}
	r.sum()
	return r.result, r.report.finish(ctx, err)
}

// credentialRotation is one run of RotateIssuerCredentials.
type credentialRotation struct {
	refresh
	// chosen are the clusters that were asked for; none for all.
	chosen []string
	// resumed: an earlier run of this rotation has begun with them.
	resumed bool
	// last: the management cluster has had its turn.
	last  bool
	fleet *fleet
}

func (r *credentialRotation) run(ctx workflow.Context, abort workflow.CancelFunc) error {
	if err := r.find(ctx); err != nil {
		return err
	}
	if err := r.choose(); err != nil {
		return err
	}
	for _, c := range r.clusters {
		if !r.resumed && c.workload != "" && c.skipped == "" {
			r.report.Clusters = append(r.report.Clusters, procedure.ClusterProgress{Cluster: c.name, State: procedure.Pending})
		}
	}
	r.fleet = newFleet(r.report, r.spec.Rollout, abort)
	if err := r.fleet.steer(ctx); err != nil {
		return err
	}
	err := r.rotate(ctx)
	if errors.Is(err, errLong) {
		return err
	}
	return r.fleet.outcome(err)
}

// choose leaves those clusters that were asked for.
func (r *credentialRotation) choose() error {
	if len(r.chosen) > 0 {
		r.clusters = slices.DeleteFunc(r.clusters, func(c refreshed) bool { return !slices.Contains(r.chosen, c.workload) })
	}
	return invalid(strangers(r.spec, r.chosen))
}

func (r *credentialRotation) rotate(ctx workflow.Context) error {
	ctx = workflow.WithValue(ctx, retryForKey{}, r.spec.Rollout.RetryFor.Duration)
	if err := r.fleet.run(ctx, func(ctx workflow.Context, name string) (procedure.State, string, error) {
		i := slices.IndexFunc(r.clusters, func(c refreshed) bool { return c.workload == name })
		if i < 0 {
			return procedure.UpToDate, "it has left the mesh meanwhile", nil
		}
		c := &r.clusters[i]
		c.outcome = procedure.Outcome{}
		err := r.locked(ctx, name, func() error {
			r.anew(ctx, c)
			return c.err
		})
		if len(c.outcome.Changes) == 0 {
			return procedure.UpToDate, c.detail(), err
		}
		return procedure.Done, c.detail(), err
	}); err != nil {
		return err
	}
	for i := range r.clusters {
		c := &r.clusters[i]
		if c.workload != "" {
			continue
		}
		if err := r.fleet.gate(ctx); err != nil {
			return err
		}
		r.last = true
		step := r.report.begin(ctx, "management cluster")
		r.anew(ctx, c)
		r.report.end(ctx, step, c.outcome, c.err)
		if c.err != nil {
			return c.err
		}
	}
	return nil
}

// sum makes the result of the report, which has also what earlier runs have done.
func (r *credentialRotation) sum() {
	r.result.Method, r.result.Count = r.spec.Credential.Method, map[procedure.State]int{}
	all := slices.Clone(r.report.Clusters)
	for _, c := range r.clusters {
		switch {
		case c.workload == "" && r.last:
			all = append(all, procedure.ClusterProgress{Cluster: c.name, State: c.state(), Detail: c.detail()})
		case c.skipped != "":
			all = append(all, procedure.ClusterProgress{Cluster: c.name, State: procedure.Skipped, Detail: c.skipped})
		}
	}
	for _, c := range all {
		if c.State == procedure.Done {
			c.State = procedure.Changed
		}
		r.result.Count[c.State]++
		r.result.Changed = r.result.Changed || c.State == procedure.Changed
		if c.State != procedure.UpToDate && len(r.result.Clusters) < mostClusters {
			c.Detail = brief(c.Detail)
			r.result.Clusters = append(r.result.Clusters, c)
		}
	}
}

// locked does something with the lock on a workload cluster: a removal that is at
// work there must not be given a credential anew that it has just taken away.
func (r *credentialRotation) locked(ctx workflow.Context, workload string, do func() error) error {
	lock := clusterLock(ctx, r.spec, workload)
	if _, err := call[procedure.Outcome](ctx, summarized(locking, "Take the lock on cluster "+workload), kubernetes.AcquireLock, lock); err != nil {
		return err
	}
	return release(ctx, lock, do())
}

// anew makes one cluster's credential anew, and proves that it is let in by it.
func (r *credentialRotation) anew(ctx workflow.Context, c *refreshed) {
	c.err = nil
	credential := r.spec.Credential
	switch {
	case credential.Method == mesh.CredentialKubernetes:
		r.reviewer(ctx, c)
	case credential.Method == mesh.CredentialJWT && credential.Keys == mesh.KeysDiscovery:
		c.outcome.Detail = "nothing of it is stored: Vault finds the cluster's keys by itself"
	default:
		r.one(ctx, c)
	}
	if c.err == nil && credential.Method == mesh.CredentialJWT || c.err == nil && credential.Method == mesh.CredentialKubernetes {
		r.prove(ctx, c) // of the others, taking up the new one is the proof
	}
}

// reviewer makes the token anew that Vault has the cluster's tokens reviewed with.
func (r *credentialRotation) reviewer(ctx workflow.Context, c *refreshed) {
	spec := r.spec.Only(c.workload)
	made, err := call[procedure.Outcome](ctx, summarized(acting, "Make the reviewer's token anew in cluster "+c.name), certManagers.RenewReviewer,
		certmanager.RenewReviewerInput{Mesh: spec.Mesh, Context: c.context, Namespace: spec.Namespace})
	c.outcome.Add(made)
	if err == nil {
		made, err = call[procedure.Outcome](ctx, summarized(acting, "Give Vault the reviewer's token of cluster "+c.name), vaults.ConfigureTokenReview,
			vault.TokenReviewInput{Spec: spec, Context: c.context, Anew: true, Mode: procedure.Apply})
		c.outcome.Add(made)
	}
	c.outcome.Detail, c.err = "reviewer's token made anew", err
}
