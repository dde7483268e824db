package workflows

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rollout"
)

// RotateLeafCertificates has the members' certificates issued anew by the
// intermediate at work: the canary's, the management server's, then all others,
// or those of the clusters that are named. Nobody's trust changes, so that every
// order is safe; what was issued since the rotation began is left alone.
func RotateLeafCertificates(ctx workflow.Context, in procedure.Typed[procedure.RotateLeafInput], long *rotatingState) (procedure.RotateResult, error) {
	ctx, abort := workflow.WithCancel(ctx)
	r := &leafRotation{input: in.In, rotating: rotating{in: in.In.MeshInput, mode: procedure.Apply}}
	if in.In.Plan {
		r.mode = procedure.Plan
	}
	r.result = procedure.RotateResult{Mesh: in.In.Mesh, Plan: in.In.Plan}
	progress := procedure.Progress{Procedure: procedure.RotateLeafCertificates, Mesh: in.In.Mesh, Phase: "preflight"}
	if long != nil && workflow.GetInfo(ctx).ContinuedExecutionRunID != "" {
		r.rotatingState, progress, r.resumed = *long, long.Progress, true
	}
	var err error
	if r.report, err = newReport(ctx, progress); err != nil {
		return r.result, err
	}
	r.report.attributes, r.report.phased = r.Attributes, true
	r.fleet = newRotationFleet(r.report, abort)
	if err := r.fleet.steer(ctx); err != nil {
		return r.result, err
	}
	if err := invalid(append(in.Problems, in.In.Validate()...)); err != nil {
		return r.result, r.report.finish(ctx, err)
	}
	err = r.run(ctx)
	if errors.Is(err, errLong) {
		return r.result, workflow.NewContinueAsNewError(ctx, procedure.RotateLeafCertificates, in.In, r.handOver())
	}
	r.result.Steps, r.result.Clusters, r.result.Changed = r.report.Steps, r.Results, r.Changed
	r.result.Canary = canaries(r.spec)
	err = r.fleet.outcome(err)
	if err != nil {
		r.report.Told = tell(ctx, r.report, err, whatFailed(r.report.Progress, err))
	}
	return r.result, r.report.finish(ctx, err)
}

// leafRotation is one run of RotateLeafCertificates.
type leafRotation struct {
	rotating
	input   procedure.RotateLeafInput
	resumed bool
	// generations are those that the mesh's CAs are of, as its record says.
	generations procedure.Generations
}

func (r *leafRotation) run(ctx workflow.Context) error {
	if r.resumed {
		if err := r.readSpec(ctx); err != nil {
			return err
		}
		return release(ctx, caLock(ctx, r.spec), r.clustersAndProof(ctx))
	}
	if err := r.preflight(ctx); err != nil {
		return err
	}
	if !r.mode.Writes() {
		return r.rotate(workflow.WithValue(ctx, inTurnKey{}, true))
	}
	return locked(ctx, r.step, caLock(ctx, r.spec), theCAs, func(ctx workflow.Context) error {
		if err := r.begin(ctx); err != nil {
			return err
		}
		return r.rotate(ctx)
	})
}

// preflight looks at all that the rotation relies on; nothing has been changed
// by its end.
func (r *leafRotation) preflight(ctx workflow.Context) error {
	var err error
	if r.Queues, err = r.report.describe(ctx, "preflight"); err != nil {
		return err
	}
	record, err := r.read(ctx)
	if err != nil {
		return err
	}
	if err := invalid(strangers(r.spec, r.input.Clusters)); err != nil {
		return err
	}
	if err := r.mayBegin(record); err != nil {
		return err
	}
	r.report.Clusters = slices.DeleteFunc(pending(ctx, r.spec), func(c procedure.ClusterProgress) bool {
		return len(r.input.Clusters) > 0 && !slices.Contains(r.input.Clusters, c.Cluster)
	})
	r.fleet.follow(r.spec.Rollout)
	if len(r.input.Clusters) == 0 {
		r.keepOut(ctx, record.Quarantined)
	}
	r.Away = map[string]bool{}
	for _, name := range workflow.DeterministicKeys(record.Quarantined) {
		r.Away[name] = true
	}
	r.Target.Since = workflow.Now(ctx)
	if err := r.aim(ctx); err != nil {
		return err
	}
	if len(r.input.Clusters) > 0 {
		r.Target.Issuing = r.Target.IntermediatePEM
	}
	if _, err := r.step(ctx, "server", "Read what the management server presents and trusts", func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.readServer(ctx, false)
	}); err != nil {
		return err
	}
	_, err = r.step(ctx, "handshakes", "Compute the handshakes of every agent and the server", func(ctx workflow.Context) (procedure.Outcome, error) {
		return r.pairs(ctx, slices.DeleteFunc(slices.Clone(r.members()), func(name string) bool { return r.Away[name] }), false, nil)
	})
	return err
}

// mayBegin is an error while a CA is being rotated.
func (r *leafRotation) mayBegin(record cluster.MeshRecord) error {
	r.generations = record.Generations
	if record.Rotation == nil {
		return nil
	}
	return failure.Permanent(failure.Conflict, "the mesh %q is in %s, begun by %s, which issues every certificate anew; nothing was changed. %s", r.spec.Mesh, record.Rotation.Procedure, record.Rotation.Workflow, first(r.spec.Mesh, record.Rotation))
}

// begin looks again, with the lock: a CA may have been rotated meanwhile, to the
// end or to where that run broke off.
func (r *leafRotation) begin(ctx workflow.Context) error {
	record, err := r.read(ctx)
	if err != nil {
		return err
	}
	if err := r.mayBegin(record); err != nil {
		return err
	}
	if len(r.input.Clusters) == 0 {
		r.newcomers(ctx)
	}
	return r.aim(ctx)
}

func (r *leafRotation) aim(ctx workflow.Context) error {
	_, err := r.step(ctx, "certificate authorities", "Read the CAs in Vault", r.survey)
	return err
}

// survey makes the intermediate at work the target; no role is moved.
func (r *leafRotation) survey(ctx workflow.Context) (procedure.Outcome, error) {
	seen, err := call[vault.SurveyResult](ctx, acting, vaults.Survey, vault.SurveyInput{Spec: r.spec.Only("")})
	if err != nil {
		return procedure.Outcome{}, err
	}
	if err := r.underTheRoot(seen); err != nil {
		return procedure.Outcome{}, err
	}
	r.Target.RootPEM, r.Target.IntermediatePEM = seen.Root.CertificatePEM, seen.Active.CertificatePEM
	// The root may have been rotated while somebody was in quarantine.
	r.AwayTrust = trustChange{AddPEM: []string{seen.Root.CertificatePEM}}
	for _, root := range seen.Roots {
		if !root.Signs && root.CertificatePEM != seen.Root.CertificatePEM {
			r.AwayTrust.DropPEM = append(r.AwayTrust.DropPEM, root.CertificatePEM)
		}
	}
	r.result.To = seen.Active.Authority
	return procedure.Outcome{Detail: fmt.Sprintf("%s, until %s", seen.Active.Authority.Name, pki.Date(seen.Active.Authority.NotAfter))}, nil
}

// underTheRoot is an error if what Vault would issue is under an earlier root than the
// mesh is: Vault was restored to what it was before the root was rotated, and nobody
// trusts the earlier root any more. Of a root that is kept outside Vault the record has
// the certificate, and in Vault its name may not have been given yet.
func (r *leafRotation) underTheRoot(seen vault.SurveyResult) error {
	generation := 0 // not known
	for _, root := range seen.Roots {
		if root.CertificatePEM == seen.Root.CertificatePEM {
			generation = root.Generation
		}
	}
	earlier := generation > 0 && generation < r.generations.Root
	if r.spec.PKI.Root.Offline() && generation == 0 {
		above, err := certificateOf(seen.Root.CertificatePEM)
		if err != nil {
			return err
		}
		at, err := r.spec.PKI.Root.Certificate()
		if err != nil {
			return unreadableRoot(err)
		}
		earlier = !above.Equal(at)
	}
	if !earlier {
		return nil
	}
	return failure.Permanent(failure.Conflict, "Vault %q: certificates would be issued under another root, %s, than that of the mesh, which is %s, as its record says. Vault has gone back in time (a snapshot was restored), or somebody has put back the roles. Nothing was changed: nobody trusts that root any more. Restore the later state of Vault",
		r.spec.Vault.Name, named(seen.Root.Authority.Name, seen.Root.Authority.Subject), vault.RootName(r.generations.Root))
}

func (r *leafRotation) rotate(ctx workflow.Context) error {
	if err := r.report.phase(ctx, "canary"); err != nil {
		return err
	}
	// No canary could shake hands with a server whose certificate has ended.
	if first := slices.DeleteFunc(canaries(r.spec), func(name string) bool { return !slices.Contains(r.members(), name) }); len(first) > 0 && !r.Server.Ended {
		if err := r.clusters(ctx, first); err != nil {
			return err
		}
	}
	if len(r.input.Clusters) == 0 {
		if err := r.report.phase(ctx, "server"); err != nil {
			return err
		}
		if err := r.server(ctx); err != nil {
			return err
		}
	}
	return r.clustersAndProof(ctx)
}

func (r *leafRotation) clustersAndProof(ctx workflow.Context) error {
	if err := r.report.phase(ctx, "fleet"); err != nil {
		return err
	}
	if err := r.clusters(ctx, r.members()); err != nil || !r.mode.Writes() {
		return err
	}
	if err := r.report.phase(ctx, "verification"); err != nil {
		return err
	}
	if err := r.verify(ctx); err != nil {
		return err
	}
	return r.release(ctx)
}

// release notes that clusters which were in quarantine no longer are: they have a
// certificate of the intermediate at work.
func (r *leafRotation) release(ctx workflow.Context) error {
	record, err := r.read(ctx)
	if err != nil {
		return err
	}
	still := maps.Clone(record.Quarantined)
	for _, c := range r.report.Clusters {
		if r.fleet.status[c.Cluster] == rollout.Done {
			delete(still, c.Cluster)
		}
	}
	if len(still) == len(record.Quarantined) {
		return nil
	}
	_, err = r.step(ctx, "record the mesh", "Record who is no longer in quarantine", func(ctx workflow.Context) (procedure.Outcome, error) {
		out, err := call[cluster.RecordMemberResult](ctx, acting, kubernetes.RecordRotation, cluster.RecordRotationInput{
			Mesh: r.spec.Mesh, Management: r.spec.Management.Context, Namespace: r.spec.Management.Namespace, Quarantined: still, Mode: r.mode,
		})
		return out.Outcome, err
	})
	return err
}

// members are the clusters that this rotation is for.
func (r *leafRotation) members() []string {
	if len(r.input.Clusters) > 0 {
		return r.input.Clusters
	}
	return r.names()
}
