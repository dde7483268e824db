package workflows

import (
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/helm"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// AdoptMesh takes over what somebody has set up by hand with the guide's
// commands: the CAs in Vault, and the Issuers, Certificates, Secrets and Helm
// releases of our names in every cluster. It names, describes and labels, and
// changes nothing else: no certificate is issued, no trust changed, no Pod
// restarted. SetupMesh goes on from there, and its plan says what it would
// change. With plan it only shows what would be taken over, and compares.
func AdoptMesh(ctx workflow.Context, in procedure.SetupInput) (procedure.AdoptResult, error) {
	spec := in.Spec.WithDefaults()
	a := &adoption{spec: spec, mode: procedure.Apply, result: procedure.AdoptResult{Mesh: spec.Mesh, Plan: in.Plan}}
	if in.Plan {
		a.mode = procedure.Plan
	}
	var err error
	if a.report, err = newReport(ctx, procedure.Progress{Procedure: procedure.AdoptMesh, Mesh: spec.Mesh, Phase: "preflight"}); err != nil {
		return a.result, err
	}
	if err := invalid(append(in.Problems, spec.Validate()...)); err != nil {
		return a.result, a.report.finish(ctx, err)
	}
	err = a.run(ctx)
	a.result.Steps = a.report.Steps
	return a.result, a.report.finish(ctx, err)
}

// adoption is one run of AdoptMesh.
type adoption struct {
	spec   mesh.Spec
	mode   procedure.Mode
	report *report
	result procedure.AdoptResult
	// inTheWay is what a look has found that cannot be taken over.
	inTheWay complaints
}

func (a *adoption) run(ctx workflow.Context) error {
	queues, err := a.report.describe(ctx, "preflight")
	if err != nil {
		return err
	}
	// Everything is looked at before anything is taken over: what cannot be
	// leaves the rest untouched, and all of it is said at once.
	told := a.mode
	a.mode = procedure.Plan
	if err := a.adopt(ctx, queues); err != nil {
		return err
	}
	if err := a.inTheWay.err(ctx); err != nil || told == procedure.Plan {
		return err
	}
	a.mode, a.result.Changed, a.report.Steps = told, false, nil
	lock := caLock(ctx, a.spec)
	if err := a.step(ctx, "lock", "Take the lock on the mesh's CAs", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, locking, kubernetes.AcquireLock, lock)
	}); err != nil {
		return err
	}
	return release(ctx, lock, a.adopt(ctx, queues))
}

func (a *adoption) adopt(ctx workflow.Context, queues map[string]string) error {
	if err := a.report.phase(ctx, "certificate authorities"); err != nil {
		return err
	}
	if err := a.step(ctx, "Vault", "Take over the CAs in Vault", func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, acting, vaults.AdoptAuthorities, vault.AdoptAuthoritiesInput{Spec: a.spec.Only(""), Mode: a.mode})
	}); err != nil {
		return err
	}
	if err := a.report.phase(ctx, "clusters"); err != nil {
		return err
	}
	if err := a.cluster(ctx, a.spec.Only(""), a.spec.Management.Context, ""); err != nil {
		return err
	}
	for _, w := range a.spec.Workloads {
		if err := a.cluster(ctx, a.spec.Only(w.Name), w.Context, queues[w.Context]); err != nil {
			return err
		}
	}
	return nil
}

// cluster takes over what is in one cluster.
func (a *adoption) cluster(ctx workflow.Context, spec mesh.Spec, context, queue string) error {
	return a.step(ctx, "cluster "+context, "Take over what is in cluster "+context, func(ctx workflow.Context) (procedure.Outcome, error) {
		total, err := call[procedure.Outcome](ctx, on(queue, acting), kubernetes.AdoptObjects, cluster.AdoptObjectsInput{Spec: spec, Context: context, Mode: a.mode})
		if err != nil || !*spec.Gloo.Install {
			return total, err
		}
		for _, chart := range []string{"gloo-platform-crds", "gloo-platform"} {
			out, err := call[procedure.Outcome](ctx, on(queue, acting), charts.AdoptRelease, helm.ChartInput{
				Mesh: spec.Mesh, Context: context, Release: chart, Namespace: spec.Namespace, Chart: chart, Mode: a.mode,
			})
			total.Add(out)
			if err != nil {
				return total, err
			}
		}
		return total, nil
	})
}

// step takes one step. A look goes on to the next after what is in the way.
func (a *adoption) step(ctx workflow.Context, name, summary string, run func(workflow.Context) (procedure.Outcome, error)) error {
	_, changed, err := takeStep(ctx, a.report, a.mode, name, summary, run)
	a.result.Changed = a.result.Changed || changed
	if err != nil && a.mode == procedure.Plan && ctx.Err() == nil {
		a.inTheWay.blame(name, nil, err)
		return nil
	}
	return err
}
