package workflows

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/helm"
	"github.com/relaypki/relaypki/activities/relay"
	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/strict"
)

// Activities are called by method value, which carries their name; nothing is
// behind these.
var (
	vaults       *vault.Activities
	kubernetes   *cluster.Activities
	certManagers *certmanager.Activities
	charts       *helm.Activities
	relays       *relay.Activities
	temporals    *temporalactivities.Activities
)

// call executes an activity and waits for its answer; when canceled, for its
// end, so that no lock is given back while something is still being written.
func call[Out any](ctx workflow.Context, options workflow.ActivityOptions, activity any, in any) (Out, error) {
	var out Out
	if options.Summary == "" {
		options.Summary, _ = ctx.Value(summaryKey{}).(string)
	}
	if longest, ok := ctx.Value(retryForKey{}).(time.Duration); ok && longest > 0 {
		options.ScheduleToCloseTimeout = longest
		options.StartToCloseTimeout = min(options.StartToCloseTimeout, longest)
	}
	options.WaitForCancellation = true
	var args []any
	if in != nil {
		args = []any{in}
	}
	var err error
	if looks, _ := ctx.Value(looksKey{}).(bool); looks && options.TaskQueue == "" {
		// What only looks is done on the spot, by the worker that has the workflow
		// task: a mesh of hundreds is looked over in seconds, with one event a look.
		err = workflow.ExecuteLocalActivity(workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{
			StartToCloseTimeout: options.StartToCloseTimeout, ScheduleToCloseTimeout: options.ScheduleToCloseTimeout,
			RetryPolicy: options.RetryPolicy, Summary: options.Summary,
		}), activity, args...).Get(ctx, &out)
	} else {
		err = workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, options), activity, args...).Get(ctx, &out)
	}
	if err != nil && ctx.Err() != nil {
		// However it ended, it was canceled: a worker that was not heard of
		// meanwhile does not make a failure of it.
		err = ctx.Err()
	}
	return out, err
}

// summaryKey carries a step's summary to the activities that it calls, looksKey
// that they only look, retryForKey how long they may take in all; inTurnKey that
// nothing is done side by side.
type (
	summaryKey  struct{}
	looksKey    struct{}
	retryForKey struct{}
	inTurnKey   struct{}
)

func summarized(o workflow.ActivityOptions, summary string) workflow.ActivityOptions {
	o.Summary = summary
	return o
}

// stepper runs one step of a procedure and reports it.
type stepper func(ctx workflow.Context, name, summary string, run func(workflow.Context) (procedure.Outcome, error)) (procedure.Outcome, error)

func takeStep(ctx workflow.Context, r *report, mode procedure.Mode, name, summary string,
	run func(workflow.Context) (procedure.Outcome, error)) (outcome procedure.Outcome, changed bool, err error) {
	step := r.begin(ctx, name)
	ctx = workflow.WithValue(workflow.WithValue(ctx, summaryKey{}, summary), looksKey{}, mode != procedure.Apply)
	if mode == procedure.Plan {
		ctx = workflow.WithValue(ctx, retryForKey{}, planning)
	}
	outcome, err = run(ctx)
	r.end(ctx, step, outcome, err)
	if mode == procedure.Plan {
		r.Steps[step].Changes = outcome.Changes
	}
	changed = len(outcome.Changes) > 0
	if err == nil && changed && mode == procedure.Observe {
		return outcome, false, errWouldChange
	}
	return outcome, changed, err
}

// beside runs something beside what follows; its end is in the future. In a
// plan it runs before: the plan's commands are run one after the other.
func beside(ctx workflow.Context, run func(workflow.Context) error) workflow.Future {
	future, settle := workflow.NewFuture(ctx)
	if inTurn, _ := ctx.Value(inTurnKey{}).(bool); inTurn {
		settle.SetError(run(ctx))
		return future
	}
	workflow.Go(ctx, func(ctx workflow.Context) { settle.SetError(run(ctx)) })
	return future
}

// wait returns when all have ended, with the first error in the given order.
func wait(ctx workflow.Context, all ...workflow.Future) error {
	var first error
	for _, one := range all {
		if err := one.Get(ctx, nil); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// holder names this run as the holder of a lock.
func holder(ctx workflow.Context) string {
	info := workflow.GetInfo(ctx)
	return strings.Join([]string{info.Namespace, info.WorkflowExecution.ID, info.FirstRunID}, "/")
}

// caLock is the lock on a mesh's CAs, clusterLock that on one workload cluster.

func caLock(ctx workflow.Context, spec mesh.Spec) cluster.LockInput {
	return lockFor(ctx, spec, spec.CALease())
}

func clusterLock(ctx workflow.Context, spec mesh.Spec, workload string) cluster.LockInput {
	return lockFor(ctx, spec, spec.ClusterLease(workload))
}

func lockFor(ctx workflow.Context, spec mesh.Spec, lease string) cluster.LockInput {
	return cluster.LockInput{Context: spec.Management.Context, Namespace: spec.Management.Namespace, Lease: lease, Holder: holder(ctx)}
}

// locked makes a change with a lock, which is that on what is named.
func locked(ctx workflow.Context, step stepper, lock cluster.LockInput, on string, change func(workflow.Context) error) error {
	if _, err := step(ctx, "lock", "Take the lock on "+on, func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, locking, kubernetes.AcquireLock, lock)
	}); err != nil {
		return err
	}
	return release(ctx, lock, change(ctx))
}

// theCAs is what caLock is on, in words.
const theCAs = "the mesh's CAs"

// release gives the lock back, also when the run was cancelled. A failure to
// do so matters only if nothing worse has happened: the lock of a run that has
// ended is taken over anyway.
func release(ctx workflow.Context, lock cluster.LockInput, err error) error {
	if errors.Is(err, errLong) {
		return err // the run that goes on from here has the same holder
	}
	free, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	if _, releaseErr := call[struct{}](free, summarized(locking, "Give back the lock "+lock.Lease), kubernetes.ReleaseLock, lock); err == nil {
		err = releaseErr
	}
	return err
}

// childID is the workflow id of a child of this run.
func childID(ctx workflow.Context, name string) string {
	return workflow.GetInfo(ctx).WorkflowExecution.ID + "/" + name
}

// invalid turns problems of an input into the one error that reports them all.
func invalid(problems []strict.Problem) error {
	if len(problems) == 0 {
		return nil
	}
	lines := make([]string, len(problems))
	for i, p := range problems {
		lines[i] = "- " + p.String()
	}
	return failure.PermanentWithDetails(failure.InvalidInput, "the input is not usable, nothing was touched:\n"+strings.Join(lines, "\n"), problems)
}

// verify proves in a child workflow that the relay works: of the given clusters,
// of all if there are none.
func verify(ctx workflow.Context, step stepper, spec mesh.Spec, clusters []string, settle mesh.Duration) (*procedure.VerifyResult, error) {
	var verified procedure.VerifyResult
	_, err := step(ctx, "verification", "Prove that the relay works", func(ctx workflow.Context) (procedure.Outcome, error) {
		err := workflow.ExecuteChildWorkflow(workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
			WorkflowID:          childID(ctx, "verify"),
			StaticSummary:       "Verify mesh " + spec.Mesh,
			WaitForCancellation: true,
		}), VerifyMesh, procedure.VerifyInput{
			Mesh: spec.Mesh, Management: spec.Management.Context, Namespace: spec.Management.Namespace, Clusters: clusters, Settle: settle,
		}).Get(ctx, &verified)
		return procedure.Outcome{Detail: fmt.Sprintf("%d checks", verified.Checks)}, err
	})
	return &verified, err
}

// strangers are the problems with clusters that were named and are no members.
func strangers(spec mesh.Spec, clusters []string) []strict.Problem {
	var problems []strict.Problem
	for i, name := range clusters {
		if _, ok := spec.Workload(name); !ok {
			problems = append(problems, problem(fmt.Sprintf("clusters[%d]", i), "%q is no member of mesh %s; its members are %s", name, spec.Mesh, members(spec)))
		}
	}
	return problems
}

// certManagerIn installs cert-manager, or accepts the one that is there, and
// waits until it answers.
func certManagerIn(ctx workflow.Context, spec mesh.Spec, context, queue string, mode procedure.Mode) (procedure.Outcome, error) {
	// The chart's own start-up check is a hook that needs rights of its own;
	// AwaitCertManager asks the same questions.
	values := mesh.Overlay(map[string]any{
		"crds":            map[string]any{"enabled": true},
		"startupapicheck": map[string]any{"enabled": false},
	}, spec.CertManager.Values)
	installed, err := call[procedure.Outcome](ctx, on(queue, waiting), charts.InstallChart, helm.ChartInput{
		Mesh: spec.Mesh, Context: context, Release: "cert-manager", Namespace: "cert-manager", Chart: "cert-manager",
		Version: spec.CertManager.Version, Values: values,
		AcceptDeployment: "cert-manager", Never: spec.CertManager.Install == mesh.InstallNever, Mode: mode,
	})
	if err != nil || (mode != procedure.Apply && len(installed.Changes) > 0) {
		return installed, err
	}
	ready, err := call[procedure.Outcome](ctx, on(queue, waiting), certManagers.AwaitCertManager,
		certmanager.AwaitInput{Context: context, Namespace: spec.Namespace, Mode: mode})
	installed.Detail = ready.Detail
	return installed, err
}

// glooIn installs the two Gloo charts with the given values of the second; in a
// plan these may have helm.LaterAddress.
func glooIn(ctx workflow.Context, spec mesh.Spec, context, queue string, values map[string]any, mode procedure.Mode) (procedure.Outcome, error) {
	var total procedure.Outcome
	var management mesh.Management
	if mode == procedure.Plan {
		management = spec.Management
	}
	for _, chart := range []struct {
		name, crd string
		values    map[string]any
	}{{"gloo-platform-crds", "kubernetesclusters.admin.gloo.solo.io", nil}, {"gloo-platform", "", values}} {
		out, err := call[procedure.Outcome](ctx, on(queue, waiting), charts.InstallChart, helm.ChartInput{
			Mesh: spec.Mesh, Context: context, Release: chart.name, Namespace: spec.Namespace, Chart: chart.name,
			Version: spec.Gloo.Version, Values: chart.values, AcceptCRD: chart.crd, Mode: mode,
			Management: management.Context, ManagementNamespace: management.Namespace,
		})
		total.Add(out)
		total.Detail = out.Detail
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// vaultValues are the guide's Helm values of Vault.
func vaultValues(v mesh.Vault) map[string]any {
	return mesh.Overlay(map[string]any{
		"injector": map[string]any{"enabled": false},
		"server": map[string]any{
			"dev":     map[string]any{"enabled": v.Install == mesh.VaultDev},
			"service": map[string]any{"type": "LoadBalancer"},
		},
	}, v.Values)
}

// serverValues are the guide's Helm values of the management server.
func serverValues(spec mesh.Spec) map[string]any {
	return mesh.Overlay(map[string]any{
		"glooMgmtServer": map[string]any{
			"enabled": true,
			"relay": map[string]any{
				"disableCa": true, "disableCaCertGeneration": true, "disableTokenGeneration": true,
				"tlsSecret": map[string]any{"name": spec.Certificates.Server.SecretName},
			},
		},
	}, spec.Gloo.ServerValues)
}

// agentValues are the guide's Helm values of one agent.
func agentValues(spec mesh.Spec, w mesh.Workload, address string) map[string]any {
	if address == "" { // in a plan, before there is a management server
		address = helm.LaterAddress
	}
	relay := map[string]any{
		"serverAddress":   address,
		"authority":       spec.Gloo.Authority,
		"clientTlsSecret": map[string]any{"name": spec.Certificates.Client.SecretName},
	}
	if token := spec.Gloo.IdentityToken; token.Mode != mesh.TokenNone {
		relay["tokenSecret"] = map[string]any{"name": token.SecretName, "key": token.Key, "namespace": spec.Namespace}
	}
	return mesh.Overlay(map[string]any{
		"common":    map[string]any{"cluster": w.Name},
		"glooAgent": map[string]any{"enabled": true, "relay": relay},
	}, spec.Gloo.AgentValues, w.AgentValues)
}

// makeIntermediate makes an intermediate in three steps, each of which finds what
// an interrupted one has left. The second is people's if the root is kept outside
// Vault.
func makeIntermediate(ctx workflow.Context, s *signing, spec mesh.Spec, in vault.IntermediateInput) (vault.CAResult, procedure.Outcome, error) {
	var ca vault.CAResult
	var total procedure.Outcome
	csr, err := call[vault.CSRResult](ctx, acting, vaults.GenerateIntermediateCSR, in)
	if err != nil {
		return ca, total, err
	}
	total.Add(csr.Outcome)
	if !csr.Present {
		if in.Mode == procedure.Observe {
			return ca, total, errWouldChange
		}
		in.CSRPEM = csr.CSRPEM
		signed, err := s.sign(ctx, spec, in)
		if err != nil {
			return ca, total, err
		}
		total.Add(signed.Outcome)
		in.ChainPEM = signed.ChainPEM
	}
	if ca, err = call[vault.CAResult](ctx, acting, vaults.SetSignedIntermediate, in); err != nil {
		return ca, total, err
	}
	total.Add(ca.Outcome)
	total.Detail = ca.Detail
	return ca, total, nil
}

// issuing gives one cluster its credential for Vault, its Issuer and its
// certificate.
type issuing struct {
	spec mesh.Spec
	// context is the cluster; workload its registered name and queue its
	// worker's, both empty for the management cluster.
	context, queue, workload string
	certificate              mesh.Certificate
	// certManager ends when cert-manager is there; nil if it is there already.
	certManager workflow.Future
	issuerID    string
	// rootPEM is what becomes ca.crt; bridgePEM is empty but in a rotation of the root.
	rootPEM, bridgePEM, intermediatePEM string
	mode                                procedure.Mode
}

func (i issuing) run(ctx workflow.Context, step stepper) (procedure.Leaf, error) {
	var access vault.ClusterAccessResult
	var secretKey string
	if _, err := step(ctx, "credential", "Let cert-manager in "+i.context+" log in to Vault", func(ctx workflow.Context) (procedure.Outcome, error) {
		var outcome procedure.Outcome
		var err error
		access, secretKey, outcome, err = i.credential(ctx)
		return outcome, err
	}); err != nil {
		return procedure.Leaf{}, err
	}
	in := i.issuer(access)
	in.SecretKey = secretKey
	if _, err := step(ctx, "issuer", "Apply the Issuer in "+i.context, func(ctx workflow.Context) (procedure.Outcome, error) {
		return call[procedure.Outcome](ctx, on(i.queue, waiting), certManagers.ApplyIssuer, in)
	}); err != nil {
		return procedure.Leaf{}, err
	}
	var issued certmanager.CertificateResult
	_, err := step(ctx, "certificate", "Apply the Certificate in "+i.context, func(ctx workflow.Context) (procedure.Outcome, error) {
		var err error
		issued, err = call[certmanager.CertificateResult](ctx, on(i.queue, waiting), certManagers.ApplyCertificate, certmanager.CertificateInput{
			Mesh: i.spec.Mesh, Context: i.context, Namespace: i.spec.Namespace, Certificate: i.certificate, Server: i.workload == "", Shared: i.spec.PKI.Isolation == mesh.IsolationShared,
			RootPEM: i.rootPEM, BridgePEM: i.bridgePEM, IntermediatePEM: i.intermediatePEM, Mode: i.mode,
		})
		return issued.Outcome, err
	})
	return issued.Leaf, err
}

// credential sets up both ends of the login: Vault's and the cluster's. The key
// is where the secret id is (method appRole).
func (i issuing) credential(ctx workflow.Context) (access vault.ClusterAccessResult, secretKey string, total procedure.Outcome, err error) {
	in := vault.ClusterAccessInput{Spec: i.spec, Context: i.context, Workload: i.workload, IssuerID: i.issuerID, Mode: i.mode}
	if i.spec.Credential.Method == mesh.CredentialJWT {
		keys, err := call[cluster.ServiceAccountKeys](ctx, on(i.queue, acting), kubernetes.ReadServiceAccountKeys, cluster.ServiceAccountKeysInput{Context: i.context})
		if err != nil {
			return access, secretKey, total, err
		}
		in.Issuer, in.KeysPEM = keys.Issuer, keys.KeysPEM
	}
	access, err = call[vault.ClusterAccessResult](ctx, acting, vaults.EnableClusterAccess, in)
	if err != nil {
		return access, secretKey, total, err
	}
	total.Add(access.Outcome)
	if i.spec.Credential.Method == mesh.CredentialToken {
		token, err := call[procedure.Outcome](ctx, acting, vaults.IssueClusterToken,
			vault.IssueClusterTokenInput{Spec: i.spec, Context: i.context, Workload: i.workload, Mode: i.mode})
		if err != nil {
			return access, secretKey, total, err
		}
		total.Add(token)
	}
	if i.spec.Credential.Method == mesh.CredentialAppRole {
		issued, err := call[vault.SecretIDResult](ctx, acting, vaults.IssueSecretID, vault.SecretIDInput{Spec: i.spec, Context: i.context, Mode: i.mode})
		if err != nil {
			return access, secretKey, total, err
		}
		total.Add(issued.Outcome)
		secretKey = issued.Key
	}
	if i.certManager != nil {
		if err := i.certManager.Get(ctx, nil); err != nil {
			return access, secretKey, total, err
		}
	}
	applied, err := call[procedure.Outcome](ctx, on(i.queue, acting), certManagers.ApplyIssuerCredential, i.issuer(access))
	total.Add(applied)
	if err == nil && i.spec.Credential.Method == mesh.CredentialKubernetes {
		var review procedure.Outcome
		review, err = call[procedure.Outcome](ctx, acting, vaults.ConfigureTokenReview, vault.TokenReviewInput{Spec: i.spec, Context: i.context, Mode: i.mode})
		total.Add(review)
	}
	total.Detail = fmt.Sprintf("%s, signs by %s", i.spec.Credential.Method, access.SignPath)
	return access, secretKey, total, err
}

func (i issuing) issuer(access vault.ClusterAccessResult) certmanager.IssuerInput {
	return certmanager.IssuerInput{
		Mesh: i.spec.Mesh, Context: i.context, Namespace: i.spec.Namespace, Method: i.spec.Credential.Method,
		AuthPath: access.AuthPath, AuthRole: access.AuthRole, SignPath: access.SignPath,
		Server: access.Server, VaultNamespace: access.Namespace, CABundlePEM: access.CABundlePEM, Mode: i.mode,
	}
}

// inputProblems are those of an input that names a mesh. It is strict for what
// people type; what a schedule or a parent has stored may be of another release.
func inputProblems(ctx workflow.Context, in procedure.MeshInput, found []strict.Problem) []strict.Problem {
	if !typed(ctx) {
		return in.Validate()
	}
	return append(found, in.Validate()...)
}
