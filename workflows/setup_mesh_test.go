package workflows

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/helm"
	"github.com/relaypki/relaypki/activities/relay"
	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// The order in which a setup calls what, and what it makes of the answers, is
// tested here with scripted answers. That the activities do what they say is
// tested on the real servers, in their own packages and end to end.

var spec = mesh.Spec{Mesh: "demo", Workloads: []mesh.Workload{{Name: "cluster1"}, {Name: "cluster2"}}}

// outside scripts the world outside: everything is as described, until a test
// says otherwise.
type outside struct {
	record cluster.MeshRecord
	// differs names activities that find something to change.
	differs map[string]bool
	// drifted is one activity in one cluster that does.
	drifted string
	// fails has what an activity fails with in a context.
	fails map[string]error
	// locked happens as the lock on the CAs is taken.
	locked func(*outside)
	// asked are the intermediates that were asked for in a rotation, and endsAt is
	// when they end, by generation; rootEnds is when the root does.
	asked    map[int]mesh.CA
	endsAt   map[int]time.Time
	rootEnds time.Time
	// serverEnded: the management server's certificate has.
	serverEnded bool
	// csr is what GenerateIntermediateCSR answers, imported what
	// SetSignedIntermediate was given.
	csr      string
	imported vault.IntermediateInput
	// rootMounts are those that SetSignedIntermediate was given.
	rootMounts []string
	// pki is what is in Vault and in the clusters, of a mesh that is rotated.
	pki scriptedPKI
	// roots is that of a mesh whose root is rotated.
	roots *rootWorld
	// survey answers in its place what CAs there are.
	survey func() (vault.SurveyResult, error)
	// serverHas is what the management server has stored and loaded.
	serverHas relay.ServerResult
	// looked answers the looks of a diagnosis, at a workload or the management cluster.
	looked func(cluster string) ([]check.Finding, error)
	// metrics gets the run's metrics.
	metrics client.MetricsHandler
	// calling happens before an activity answers, by its name and what it is about.
	calling func(o *outside, activity, about string)
	calls   []string
}

// noting guards calls: activities begin side by side.
var noting sync.Mutex

func newRun(t *testing.T, o *outside) *testsuite.TestWorkflowEnvironment {
	t.Helper()
	if o.pki.signs == nil {
		o.pki = newPKI("cluster1", "cluster2")
	}
	var suite testsuite.WorkflowTestSuite
	if o.metrics != nil {
		suite.SetMetricsHandler(o.metrics)
	}
	env := suite.NewTestWorkflowEnvironment()
	Register(env)
	// Wall-clock limits that a busy machine would break; nothing is learnt from them.
	env.SetWorkerOptions(worker.Options{DeadlockDetectionTimeout: time.Minute})
	env.SetTestTimeout(time.Minute)
	for _, a := range []any{vaults, kubernetes, certManagers, charts, relays, temporals} {
		env.RegisterActivity(a)
	}
	if o.roots != nil {
		o.roots.script(env) // the first to answer
	}
	o.rotations(env) // before a setup's: it answers only what is asked for a rotation
	outcome := func(name, where string, mode procedure.Mode) (procedure.Outcome, error) {
		var out procedure.Outcome
		if o.differs[name] || o.drifted == name+" "+where {
			out.Changed(procedure.Update, name, "")
		}
		return out, o.fails[name+" "+where]
	}
	note := func(info *activity.Info, decode func(into any) error) {
		var in struct {
			Mode    procedure.Mode
			Context string
			Lease   string
		}
		_ = decode(&in)
		call := strings.TrimSpace(fmt.Sprintf("%s %s%s %s", info.ActivityType.Name, in.Context, in.Lease, in.Mode)) + ofMember(info.ActivityType.Name, decode)
		noting.Lock()
		defer noting.Unlock()
		o.calls = append(o.calls, call)
	}
	env.SetOnActivityStartedListener(func(info *activity.Info, _ context.Context, args converter.EncodedValues) {
		note(info, func(into any) error { return args.Get(into) })
	})
	env.SetOnLocalActivityStartedListener(func(info *activity.Info, _ context.Context, args []any) {
		note(info, func(into any) error {
			data, err := json.Marshal(args[0])
			if err != nil {
				return err
			}
			return json.Unmarshal(data, into)
		})
	})
	env.OnActivity(temporals.DescribeTemporal, mock.Anything).Return(temporalactivities.Facts{}, nil)
	env.OnActivity(temporals.EnsureSchedule, mock.Anything, mock.Anything).Return(func(context.Context, temporalactivities.EnsureScheduleInput) (procedure.Outcome, error) {
		return outcome("EnsureSchedule", "", "")
	})
	env.OnActivity(kubernetes.CheckClusters, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.CheckClustersInput) (cluster.CheckClustersResult, error) {
		var out cluster.CheckClustersResult
		look := func(context, workload string) {
			one := cluster.CheckClusterResult{Context: context, Workload: workload, Version: "v1.37.2"}
			switch err := o.fails["CheckClusters "+context]; {
			case failure.KindOf(err) == failure.Unavailable:
				one.Unreachable = failure.Message(err)
			case err != nil:
				one.Problems = []string{failure.Message(err)}
			}
			out.Clusters = append(out.Clusters, one)
		}
		if in.Management {
			look(in.Spec.Management.Context, "")
		}
		for _, w := range in.Spec.Workloads {
			look(w.Context, w.Name)
		}
		return out, nil
	})
	env.OnActivity(kubernetes.ReadMesh, mock.Anything, mock.Anything).Return(func(context.Context, cluster.ReadMeshInput) (cluster.MeshRecord, error) {
		noting.Lock()
		defer noting.Unlock()
		return o.record, nil
	})
	env.OnActivity(kubernetes.AcquireLock, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.LockInput) (procedure.Outcome, error) {
		if o.locked != nil {
			o.locked(o)
			o.locked = nil
		}
		return outcome("AcquireLock", in.Lease, "")
	})
	env.OnActivity(kubernetes.ReleaseLock, mock.Anything, mock.Anything).Return(nil)
	env.OnActivity(kubernetes.RecordMesh, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.RecordMeshInput) (procedure.Outcome, error) {
		o.record = cluster.MeshRecord{Found: true, Complete: in.Complete, Spec: in.Spec}
		return procedure.Outcome{}, nil
	})
	env.OnActivity(kubernetes.EnsureNamespace, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.NamespaceInput) (procedure.Outcome, error) {
		return outcome("EnsureNamespace", in.Context, in.Mode)
	})
	env.OnActivity(kubernetes.ReadServiceAccountKeys, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.ServiceAccountKeysInput) (cluster.ServiceAccountKeys, error) {
		return cluster.ServiceAccountKeys{Issuer: "https://" + in.Context, KeysPEM: []string{"key of " + in.Context}}, o.fails["ReadServiceAccountKeys "+in.Context]
	})
	env.OnActivity(kubernetes.CopyRootSecret, mock.Anything, mock.Anything).Return(procedure.Outcome{}, nil)
	env.OnActivity(kubernetes.CopyIdentityToken, mock.Anything, mock.Anything).Return(procedure.Outcome{}, nil)
	env.OnActivity(kubernetes.RegisterCluster, mock.Anything, mock.Anything).Return(procedure.Outcome{}, nil)
	env.OnActivity(kubernetes.AwaitRelayAddress, mock.Anything, mock.Anything).Return(cluster.RelayAddressResult{Address: "127.0.0.1:9900"}, nil)
	env.OnActivity(vaults.CheckVault, mock.Anything, mock.Anything).Return(vault.CheckVaultResult{Version: "1.21.1"}, nil)
	env.OnActivity(vaults.EnablePKI, mock.Anything, mock.Anything).Return(procedure.Outcome{}, nil)
	env.OnActivity(vaults.GenerateRoot, mock.Anything, mock.Anything).Return(func(context.Context, vault.GenerateRootInput) (vault.CAResult, error) {
		return o.authority("GenerateRoot"), nil
	})
	env.OnActivity(vaults.GenerateIntermediateCSR, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.IntermediateInput) (vault.CSRResult, error) {
		out, err := outcome("GenerateIntermediateCSR", "", in.Mode)
		return vault.CSRResult{Outcome: out, Present: !o.differs["GenerateIntermediateCSR"], CSRPEM: o.csr}, err
	})
	env.OnActivity(vaults.SignIntermediate, mock.Anything, mock.Anything).Return(vault.SignedResult{}, nil)
	env.OnActivity(vaults.SetSignedIntermediate, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.IntermediateInput) (vault.CAResult, error) {
		o.imported, o.rootMounts = in, append(o.rootMounts, in.RootMount)
		return o.authority("SetSignedIntermediate"), nil
	})
	env.OnActivity(vaults.ConfigureRoles, mock.Anything, mock.Anything).Return(procedure.Outcome{}, nil)
	env.OnActivity(vaults.EnableClusterAccess, mock.Anything, mock.Anything).Return(vault.ClusterAccessResult{}, nil)
	env.OnActivity(certManagers.AwaitCertManager, mock.Anything, mock.Anything).Return(procedure.Outcome{}, nil)
	env.OnActivity(certManagers.ApplyIssuerCredential, mock.Anything, mock.Anything).Return(procedure.Outcome{}, nil)
	env.OnActivity(certManagers.ApplyIssuer, mock.Anything, mock.Anything).Return(procedure.Outcome{}, nil)
	env.OnActivity(certManagers.ApplyCertificate, mock.Anything, mock.Anything).Return(func(_ context.Context, in certmanager.CertificateInput) (certmanager.CertificateResult, error) {
		out, err := outcome("ApplyCertificate", in.Context, in.Mode)
		return certmanager.CertificateResult{Outcome: out}, err
	})
	env.OnActivity(charts.InstallChart, mock.Anything, mock.Anything).Return(func(_ context.Context, in helm.ChartInput) (procedure.Outcome, error) {
		return outcome("InstallChart", in.Context, in.Mode)
	})
	o.members(env, outcome)
	env.OnActivity(relays.VerifyManagement, mock.Anything, mock.Anything).Return(func(_ context.Context, in relay.VerifyManagementInput) (relay.VerifyManagementResult, error) {
		if in.Diagnose {
			found, err := o.looked(in.Spec.Management.Context)
			return relay.VerifyManagementResult{Findings: found}, err
		}
		return relay.VerifyManagementResult{Findings: []check.Finding{{Check: "gauges", Cluster: "mgmt", Status: check.Pass}}}, nil
	})
	env.OnActivity(relays.VerifyCluster, mock.Anything, mock.Anything).Return(func(_ context.Context, in relay.VerifyClusterInput) (relay.VerifyClusterResult, error) {
		if in.Diagnose {
			found, err := o.looked(in.Cluster)
			return relay.VerifyClusterResult{Findings: found}, err
		}
		f := check.Finding{Check: "handshake", Cluster: in.Cluster, Status: check.Pass}
		if o.differs["VerifyCluster"] {
			f.Status, f.Message = check.Fail, "remote error: tls: bad certificate"
		}
		return relay.VerifyClusterResult{Findings: []check.Finding{f}}, nil
	})
	return env
}

// writes are the calls that may change something.
func (o *outside) writes() []string {
	var out []string
	for _, c := range o.calls {
		if strings.HasSuffix(c, string(procedure.Apply)) || strings.HasPrefix(c, "AcquireLock") {
			out = append(out, c)
		}
	}
	return out
}

func complete() cluster.MeshRecord {
	return cluster.MeshRecord{Found: true, Complete: true, Spec: spec.WithDefaults().Normal()}
}

func TestSetupOfWhatIsThereWritesNothing(t *testing.T) {
	o := &outside{record: complete()}
	env := newRun(t, o)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: spec}, nil)
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	writes := slices.DeleteFunc(o.writes(), func(c string) bool { return strings.HasPrefix(c, "EnsureSchedule") })
	if len(writes) > 0 {
		t.Errorf("a setup of what is there called %q", writes)
	}
	var result procedure.SetupResult
	if err := env.GetWorkflowResult(&result); err != nil || result.Changed || !result.Verification.Healthy {
		t.Errorf("result %+v, %v", result, err)
	}
}

func TestSetupAppliesWhatHasDrifted(t *testing.T) {
	o := &outside{record: complete(), differs: map[string]bool{"ApplyCertificate": true}}
	env := newRun(t, o)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: spec}, nil)
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	writes := o.writes()
	for _, want := range []string{"AcquireLock gloo-mesh", "ApplyCertificate mgmt apply", "ApplyCertificate cluster2 apply"} {
		if !slices.ContainsFunc(writes, func(c string) bool {
			return strings.HasPrefix(c, want) || strings.Contains(want, "AcquireLock") && strings.HasPrefix(c, "AcquireLock")
		}) {
			t.Errorf("no call %q in %q", want, writes)
		}
	}
	if first := slices.IndexFunc(writes, func(c string) bool { return strings.HasPrefix(c, "ApplyCertificate") }); first < slices.IndexFunc(writes, func(c string) bool { return strings.HasPrefix(c, "AcquireLock") }) {
		t.Errorf("something was applied before the lock was taken: %q", writes)
	}
}

// In a look around one cluster fails and another has drifted: the second is put
// right all the same.
func TestOneClustersFailureHidesNoDrift(t *testing.T) {
	o := &outside{record: complete(), drifted: "InstallChart cluster2",
		fails: map[string]error{"InstallChart cluster1": failure.Permanent(failure.Conflict, `cluster "cluster1": a foreign release`)}}
	env := newRun(t, o)
	later(t, env, procedure.AbortUpdate, `{"reason":"enough"}`)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: spec}, nil)
	if err := env.GetWorkflowError(); err == nil || !strings.Contains(failure.Message(err), "cluster1 parked: a foreign release") {
		t.Errorf("the run ended with %v", err)
	}
	if !slices.Contains(o.calls, "InstallChart cluster2 apply") {
		t.Errorf("cluster2 was not put right: %q", o.calls)
	}
}

// Only the schedule is gone: it is made again, and the run ends well.
func TestSetupRestoresTheSchedule(t *testing.T) {
	o := &outside{record: complete(), differs: map[string]bool{"EnsureSchedule": true}}
	env := newRun(t, o)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: spec}, nil)
	var result procedure.SetupResult
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	if err := env.GetWorkflowResult(&result); err != nil || !result.Changed {
		t.Errorf("result %+v, %v", result, err)
	}
}

func TestSetupOfNewMeshLocksFirst(t *testing.T) {
	o := &outside{differs: map[string]bool{"GenerateIntermediateCSR": true}}
	env := newRun(t, o)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: spec}, nil)
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(o.calls, func(c string) bool { return strings.HasSuffix(c, string(procedure.Observe)) }) {
		t.Error("a mesh that was never set up is looked around in")
	}
	if !slices.ContainsFunc(o.calls, func(c string) bool { return strings.HasPrefix(c, "SignIntermediate") }) {
		t.Error("the intermediate was not signed")
	}
	var result procedure.SetupResult
	if err := env.GetWorkflowResult(&result); err != nil || !result.Changed || len(result.Clusters) != 2 {
		t.Errorf("result %+v, %v", result, err)
	}
}

func TestFailures(t *testing.T) {
	for name, c := range map[string]struct {
		input   string
		outside outside
		kind    failure.Kind
		says    []string
		// calls that must not have happened, by prefix
		never []string
	}{
		"bad input": {
			input: `{"mesh":"demo","workloads":[{"name":"my_cluster"}],"dryrun":true}`,
			kind:  failure.InvalidInput,
			says:  []string{"dryrun: unknown field", "has an underscore", "nothing was touched"},
			never: []string{"DescribeTemporal", "CheckClusters"},
		},
		"preflight reports everything": {
			outside: outside{fails: map[string]error{
				"CheckClusters mgmt":     failure.Permanent(failure.Denied, "no create on leases"),
				"CheckClusters cluster2": failure.Permanent(failure.Denied, "no create on secrets")}},
			kind:  failure.Preflight,
			says:  []string{"mgmt: no create on leases", "cluster2: no create on secrets", "nothing was changed"},
			never: []string{"AcquireLock", "EnsureNamespace", "EnablePKI"},
		},
		"a member left out": {
			input:   `{"mesh":"demo","workloads":[{"name":"cluster1"}]}`,
			outside: outside{record: complete()},
			kind:    failure.InvalidInput,
			says:    []string{`"cluster2" is a member of the mesh but not in this input`},
			never:   []string{"AcquireLock", "EnablePKI"},
		},
		"a member in another cluster": {
			input:   `{"mesh":"demo","workloads":[{"name":"cluster1"},{"name":"cluster2","context":"elsewhere"}]}`,
			outside: outside{record: complete()},
			kind:    failure.InvalidInput,
			says:    []string{`"cluster2" is the cluster "cluster2" in the mesh and "elsewhere" in this input`},
			never:   []string{"AcquireLock", "EnablePKI"},
		},
		"a member that another run adds before this one has the lock": {
			input: `{"mesh":"demo","workloads":[{"name":"cluster1"}]}`,
			outside: outside{locked: func(o *outside) {
				o.record = complete()
			}},
			kind:  failure.InvalidInput,
			says:  []string{`"cluster2" is a member of the mesh but not in this input`},
			never: []string{"RecordMesh", "EnablePKI"},
		},
		"locked": {
			outside: outside{fails: map[string]error{"AcquireLock relaypki-demo-ca": failure.Permanent(failure.Locked, "held by default/rotate/1")}},
			kind:    failure.Locked,
			says:    []string{"held by default/rotate/1"},
			never:   []string{"EnablePKI", "ReleaseLock"},
		},
		"not healthy": {
			outside: outside{differs: map[string]bool{"VerifyCluster": true}},
			kind:    failure.Unhealthy,
			says:    []string{"2 of 3 checks fail", "cluster1, handshake: remote error: tls: bad certificate"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := c.outside
			env := newRun(t, &o)
			if c.input == "" {
				c.input = `{"mesh":"demo","workloads":[{"name":"cluster1"},{"name":"cluster2"}]}`
			}
			env.ExecuteWorkflow(procedure.SetupMesh, json.RawMessage(c.input))
			o.failed(t, env.GetWorkflowError(), c.kind, c.says, c.never)
			locks, releases := o.count("AcquireLock"), o.count("ReleaseLock")
			if c.kind != failure.Locked && locks != releases {
				t.Errorf("%d locks were taken, %d given back", locks, releases)
			}
		})
	}
}

// failed checks how a run failed: of which kind, with which words, and without
// which calls, by prefix.
func (o *outside) failed(t *testing.T, err error, kind failure.Kind, says, never []string) {
	t.Helper()
	if err == nil {
		t.Fatal("the run ended well")
	}
	if got := failure.KindOf(err); got != kind {
		t.Errorf("it failed as %q, want %q: %v", got, kind, err)
	}
	for _, want := range says {
		if !strings.Contains(failure.Message(err), want) {
			t.Errorf("the failure does not say %q: %s", want, failure.Message(err))
		}
	}
	for _, call := range never {
		if o.count(call) > 0 {
			t.Errorf("%s was called: %q", call, o.calls)
		}
	}
}

func (o *outside) count(prefix string) int {
	n := 0
	for _, c := range o.calls {
		if strings.HasPrefix(c, prefix) {
			n++
		}
	}
	return n
}

func TestMarkdownSaysFirstWhatMatters(t *testing.T) {
	p := procedure.Progress{Procedure: procedure.SetupMesh, Mesh: "demo", Phase: "workload clusters",
		Clusters: []procedure.ClusterProgress{{Cluster: "cluster1", State: procedure.Failed, Detail: "have relaypki take it | over:\nrelaypki adopt -f mesh.yaml. Or not"}}}
	for what, c := range map[string]struct {
		change func(*procedure.Progress)
		first  string
	}{
		"at work": {func(*procedure.Progress) {}, "**SetupMesh** of mesh `demo`: workload clusters"},
		"waiting": {func(p *procedure.Progress) { p.Awaiting = "an operator" }, "**Waiting:** an operator"},
		"waiting for a command": {func(p *procedure.Progress) {
			p.Awaiting = "Put it right, then: relaypki retry demo; or unseal it (kubectl -n vault exec vault-0 -- vault status), or: relaypki skip demo c --reason WHY. `relaypki abort --yes` ends it"
		}, "**Waiting:** Put it right, then: `relaypki retry demo`; or unseal it (`kubectl -n vault exec vault-0 -- vault status`), or: `relaypki skip demo c --reason WHY`. `relaypki abort --yes` ends it"},
		"failed": {func(p *procedure.Progress) { p.Problem = "no rights" }, "**Failed:** no rights"},
		"done":   {func(p *procedure.Progress) { p.Ended = true }, "**Done.** Mesh `demo`"},
	} {
		q := p
		c.change(&q)
		text := markdown(q)
		if first, _, _ := strings.Cut(text, "\n"); first != c.first {
			t.Errorf("%s: the first line is %q, want %q", what, first, c.first)
		}
		if !strings.Contains(text, "| cluster1 | ✗\u00a0failed | have relaypki take it \\| over: `relaypki adopt -f mesh.yaml`. Or not |") {
			t.Errorf("%s: the cluster's row is broken:\n%s", what, text)
		}
	}
}
