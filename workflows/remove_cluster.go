package workflows

import (
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/helm"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/strict"
)

// RemoveCluster takes a member out of a mesh: what was made for it in Vault, in
// its cluster and in the management cluster, and nothing else. What does not
// carry our mark is kept, and the result says so.
//
// Vault is closed first, so that the member can have no new certificate while
// the rest goes. It stays in the record until nothing of it is left: whatever
// happens on the way, the same input again finds it there and goes on.
func RemoveCluster(ctx workflow.Context, in procedure.Typed[procedure.RemoveClusterInput]) (procedure.RemoveClusterResult, error) {
	r := &removal{in: in.In, mode: procedure.Apply}
	r.result = procedure.RemoveClusterResult{Mesh: r.in.Mesh, Cluster: r.in.Cluster, Plan: r.in.Plan}
	if r.in.Plan {
		r.mode = procedure.Plan
	}
	var err error
	if r.report, err = newReport(ctx, procedure.Progress{Procedure: procedure.RemoveCluster, Mesh: r.in.Mesh, Cluster: r.in.Cluster, Phase: "preflight"}); err != nil {
		return r.result, err
	}
	if err := invalid(append(in.Problems, r.in.Validate()...)); err != nil {
		return r.result, r.report.finish(ctx, err)
	}
	err = r.run(ctx)
	r.result.Steps = r.report.Steps
	return r.result, r.report.finish(ctx, err)
}

// removal is one run of RemoveCluster.
type removal struct {
	in     procedure.RemoveClusterInput
	mode   procedure.Mode
	report *report
	result procedure.RemoveClusterResult

	// spec is the mesh's with this one member; queue is that of the worker that
	// reaches its cluster.
	spec     mesh.Spec
	workload mesh.Workload
	queue    string
	// departure is what an earlier run has found out.
	departure cluster.Departure
}

func (r *removal) run(ctx workflow.Context) error {
	preflight := r.report.begin(ctx, "preflight")
	member, detail, err := r.preflight(ctx)
	r.report.end(ctx, preflight, procedure.Outcome{Detail: detail}, err)
	if err != nil {
		return err
	}
	if !member {
		r.result.ValidUntil = r.departure.ValidUntil
		r.result.Advice = r.advice()
		return nil
	}
	if r.mode == procedure.Plan {
		return r.remove(ctx)
	}
	lock := clusterLock(ctx, r.spec, r.in.Cluster)
	if err := r.step(ctx, "lock", "Take the lock on cluster "+r.in.Cluster, func(ctx workflow.Context) (out procedure.Removal, err error) {
		out.Outcome, err = call[procedure.Outcome](ctx, locking, kubernetes.AcquireLock, lock)
		return out, err
	}); err != nil {
		return err
	}
	return release(ctx, lock, r.remove(ctx))
}

// preflight finds the member and asks whoever it concerns whether it can be
// removed; nothing has been changed by its end. What is no member, but was one
// a while ago, needs no removing.
func (r *removal) preflight(ctx workflow.Context) (member bool, detail string, err error) {
	queues, err := r.report.describe(ctx, "preflight")
	if err != nil {
		return false, "", err
	}
	record, err := readMesh(ctx, r.in.Mesh, r.in.Management, r.in.Namespace)
	if err != nil {
		return false, "", err
	}
	all := record.Spec.WithDefaults()
	r.departure = record.Leaving[r.in.Cluster]
	if r.workload, member = all.Workload(r.in.Cluster); !member {
		if !r.departure.Left.IsZero() {
			return false, "it was removed " + r.departure.Left.UTC().Format(time.DateTime) + "Z", nil
		}
		return false, "", invalid([]strict.Problem{{Path: "cluster", Message: fmt.Sprintf("%q is no member of mesh %s; its members are %s", r.in.Cluster, all.Mesh, members(all))}})
	}
	r.spec, r.queue = all.Only(r.in.Cluster), queues[r.workload.Context]
	return true, "", r.check(ctx)
}

// members names a mesh's members, as many as fit into a line.
func members(spec mesh.Spec) string {
	const most = 10
	names := make([]string, 0, most)
	for _, w := range spec.Workloads {
		if len(names) == most {
			return fmt.Sprintf("%s and %d more", strings.Join(names, ", "), len(spec.Workloads)-most)
		}
		names = append(names, w.Name)
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func (r *removal) check(ctx workflow.Context) error {
	var problems complaints
	wg := workflow.NewWaitGroup(ctx)
	look := func(who string, run func(workflow.Context) ([]string, error)) {
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			found, err := run(ctx)
			problems.blame(who, found, err)
		})
	}
	clusterLook := func(context, queue string, management bool) {
		look(context, func(ctx workflow.Context) ([]string, error) {
			out, err := call[cluster.CheckRemovalResult](ctx, summarized(on(queue, looking), "Check cluster "+context), kubernetes.CheckClusterRemoval,
				cluster.CheckRemovalInput{Spec: r.spec, Management: management})
			return out.Problems, err
		})
	}
	clusterLook(r.spec.Management.Context, "", true)
	if !r.in.Gone {
		clusterLook(r.workload.Context, r.queue, false)
	}
	look("vault "+r.spec.Vault.Name, func(ctx workflow.Context) ([]string, error) {
		out, err := call[vault.CheckVaultResult](ctx, summarized(looking, "Check Vault"), vaults.CheckVaultRemoval, r.access())
		return out.Problems, err
	})
	wg.Wait(ctx)
	return problems.err(ctx)
}

func (r *removal) access() vault.RemoveAccessInput {
	return vault.RemoveAccessInput{Spec: r.spec, Context: r.workload.Context, Workload: r.in.Cluster, Mode: r.mode}
}

func (r *removal) remove(ctx workflow.Context) error {
	for _, phase := range []struct {
		name string
		run  func(workflow.Context) error
	}{
		{"vault", r.closeVault},
		{"workload cluster", r.workloadCluster},
		{"management cluster", r.managementCluster},
	} {
		if err := r.report.phase(ctx, phase.name); err != nil {
			return err
		}
		if err := phase.run(ctx); err != nil {
			return err
		}
	}
	r.result.Advice = r.advice()
	return nil
}

// closeVault takes the member's access away, and then finds out until when what
// was issued before stays valid: now that no other can follow.
func (r *removal) closeVault(ctx workflow.Context) error {
	if err := r.step(ctx, "record the departure", "Record that the member is being removed", func(ctx workflow.Context) (procedure.Removal, error) {
		return r.record(ctx, false)
	}); err != nil {
		return err
	}
	if r.spec.Credential.Method == mesh.CredentialToken && !r.in.Gone && r.queue == "" {
		if err := r.step(ctx, "token", "Revoke the cluster's Vault token", func(ctx workflow.Context) (procedure.Removal, error) {
			return call[procedure.Removal](ctx, acting, vaults.RevokeClusterToken, r.access())
		}); err != nil {
			return err
		}
	}
	open := false
	if err := r.step(ctx, "access to Vault", "Take away the cluster's login, policy and role in Vault", func(ctx workflow.Context) (procedure.Removal, error) {
		out, err := call[procedure.Removal](ctx, acting, vaults.RemoveClusterAccess, r.access())
		open = len(out.Changes) > 0
		return out, err
	}); err != nil {
		return err
	}
	return r.step(ctx, "last certificate", "Find out until when the certificate that is out there stays valid", func(ctx workflow.Context) (procedure.Removal, error) {
		var expiry time.Time
		if !r.in.Gone {
			found, err := call[certmanager.Expiry](ctx, on(r.queue, acting), certManagers.ReadExpiry, certmanager.RemovalInput{Spec: r.spec})
			if err != nil {
				return procedure.Removal{}, err
			}
			expiry = found.NotAfter
		} else if open || r.departure.ValidUntil.IsZero() {
			// Not known, but bounded: the last one was issued before this moment.
			expiry = workflow.Now(ctx).UTC().Truncate(time.Second).Add(r.spec.Certificates.Client.Duration.Duration)
		}
		if r.result.ValidUntil = r.departure.ValidUntil; expiry.After(r.result.ValidUntil) {
			r.result.ValidUntil = expiry
		}
		out, err := procedure.Removal{}, error(nil)
		if r.mode == procedure.Apply { // in a plan it is said once that this is recorded
			out, err = r.record(ctx, false)
		}
		out.Detail = "none is known"
		if !r.result.ValidUntil.IsZero() {
			out.Detail = "valid until " + r.result.ValidUntil.Format(time.RFC3339)
		}
		return out, err
	})
}

// record notes the departure: first that it has begun, at last that it is over.
func (r *removal) record(ctx workflow.Context, left bool) (procedure.Removal, error) {
	out, err := call[cluster.RecordMemberResult](ctx, acting, kubernetes.RecordDeparture, cluster.RecordDepartureInput{
		Mesh: r.spec.Mesh, Management: r.spec.Management.Context, Namespace: r.spec.Management.Namespace,
		Cluster: r.in.Cluster, ValidUntil: r.result.ValidUntil, Left: left, Mode: r.mode,
	})
	return procedure.Removal{Outcome: out.Outcome}, err
}

// workloadCluster takes out what the setup made in the cluster, in the opposite
// order: first who uses the certificates, then the certificates, then what they
// were issued with, and cert-manager last, which is needed to the end.
func (r *removal) workloadCluster(ctx workflow.Context) error {
	if r.in.Gone {
		r.result.Kept = append(r.result.Kept, procedure.Kept{Object: "everything in the cluster " + r.workload.Context, Why: "it was said to be gone, so nobody looked there"})
		return nil
	}
	in := cluster.RemovalInput{Spec: r.spec, Mode: r.mode}
	issued := certmanager.RemovalInput(in)
	if *r.spec.Gloo.Install {
		for _, release := range []string{"gloo-platform", "gloo-platform-crds"} {
			if err := r.uninstall(ctx, release, r.workload.Namespace, nil); err != nil {
				return err
			}
		}
	}
	for _, s := range []struct {
		name, summary string
		activity, in  any
	}{
		{"certificate", "Delete the Certificate and its Secret", certManagers.RemoveCertificate, issued},
		{"issuer", "Delete the Issuer and its credential", certManagers.RemoveIssuer, issued},
		{"agent trust", "Delete the agent's trust", kubernetes.RemoveTrust, in},
	} {
		if err := r.step(ctx, s.name, s.summary, func(ctx workflow.Context) (procedure.Removal, error) {
			return call[procedure.Removal](ctx, on(r.queue, acting), s.activity, s.in)
		}); err != nil {
			return err
		}
	}
	if err := r.certManager(ctx, issued); err != nil {
		return err
	}
	namespaces := "Namespace " + r.workload.Namespace
	if r.spec.CertManager.Install != mesh.InstallNever {
		namespaces = "Namespaces " + r.workload.Namespace + ", " + kube.CertManagerNamespace
	}
	r.result.Kept = append(r.result.Kept, procedure.Kept{Object: namespaces, Why: "others may have put something into them"})
	return nil
}

// certManager goes only if it is ours and nobody else uses it.
func (r *removal) certManager(ctx workflow.Context, in certmanager.RemovalInput) error {
	if r.spec.CertManager.Install == mesh.InstallNever {
		return nil
	}
	var users certmanager.Users
	if err := r.step(ctx, "users of cert-manager", "Look who else uses cert-manager in the cluster", func(ctx workflow.Context) (out procedure.Removal, err error) {
		users, err = call[certmanager.Users](ctx, on(r.queue, acting), certManagers.FindCertManagerUsers, in)
		out.Detail = fmt.Sprintf("%d objects that are not this mesh's", users.Count)
		if users.Count > 0 {
			out.Keep("cert-manager", fmt.Sprintf("others use it: %d Issuers, ClusterIssuers and Certificates, among them %s", users.Count, strings.Join(users.Examples, ", ")))
		}
		return out, err
	}); err != nil || users.Count > 0 {
		return err
	}
	return r.uninstall(ctx, "cert-manager", kube.CertManagerNamespace, map[string]string{"cert-manager-webhook-ca": "cert-manager-webhook"})
}

func (r *removal) uninstall(ctx workflow.Context, release, namespace string, secrets map[string]string) error {
	return r.step(ctx, release, "Uninstall the Helm release "+release, func(ctx workflow.Context) (procedure.Removal, error) {
		return call[procedure.Removal](ctx, on(r.queue, waiting), charts.UninstallChart, helm.UninstallInput{
			Mesh: r.spec.Mesh, Context: r.workload.Context, Release: release, Namespace: namespace, Secrets: secrets, Mode: r.mode,
		})
	})
}

// managementCluster takes out the registration and, last of all, the member.
func (r *removal) managementCluster(ctx workflow.Context) error {
	if err := r.step(ctx, "registration", "Delete the cluster's registration", func(ctx workflow.Context) (procedure.Removal, error) {
		return call[procedure.Removal](ctx, acting, kubernetes.RemoveRegistration, cluster.RegisterClusterInput{Spec: r.spec, Cluster: r.in.Cluster, Mode: r.mode})
	}); err != nil {
		return err
	}
	return r.step(ctx, "record the departure", "Record that nothing of the member is left", func(ctx workflow.Context) (procedure.Removal, error) {
		return r.record(ctx, true)
	})
}

// advice says what the last certificate means.
func (r *removal) advice() string {
	again := fmt.Sprintf("Take %s out of the mesh's file too, or the next setup adds it again.", r.in.Cluster)
	if r.result.ValidUntil.IsZero() {
		return "No certificate of it is known to have been issued. " + again
	}
	return fmt.Sprintf("Its last certificate stays valid until %s: nothing in the relay asks whether a certificate was revoked, so whoever has its key can connect as %s until then. "+
		"Only a rotation of the intermediate ends that sooner. %s", r.result.ValidUntil.UTC().Format(time.RFC3339), r.in.Cluster, again)
}

// step runs one step, reports it, and notes what it changed and what it left.
func (r *removal) step(ctx workflow.Context, name, summary string, run func(workflow.Context) (procedure.Removal, error)) error {
	_, changed, err := takeStep(ctx, r.report, r.mode, name, summary, func(ctx workflow.Context) (procedure.Outcome, error) {
		out, err := run(ctx)
		r.result.Kept = append(r.result.Kept, out.Kept...)
		if len(out.Kept) > 0 && out.Detail == "" {
			out.Detail = fmt.Sprintf("%d kept", len(out.Kept))
		}
		return out.Outcome, err
	})
	r.result.Changed = r.result.Changed || changed
	return err
}
