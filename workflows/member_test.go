package workflows

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/testsuite"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/helm"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// expires is when the certificate of a member that is removed ends.
var expires = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// authority is a CA as it is found, unless it is said to be missing.
func (o *outside) authority(activity string) vault.CAResult {
	if o.differs[activity] {
		return vault.CAResult{}
	}
	return vault.CAResult{CertificatePEM: "PEM", Authority: procedure.Authority{IssuerID: "id", Name: activity}}
}

// ofMember is what a call of an activity on a member says besides.
func ofMember(activity string, decode func(into any) error) string {
	switch activity {
	case "RecordMember":
		var in cluster.RecordMemberInput
		_ = decode(&in)
		return fmt.Sprintf(" %s joined:%v", in.Workload.Name, in.Joined)
	case "RecordDeparture":
		var in cluster.RecordDepartureInput
		_ = decode(&in)
		return fmt.Sprintf(" %s left:%v", in.Cluster, in.Left)
	case "CheckClusterRemoval":
		var in cluster.CheckRemovalInput
		_ = decode(&in)
		if in.Management {
			return " " + in.Spec.Management.Context
		}
		return " " + in.Spec.Workloads[0].Context
	case "UninstallChart":
		var in helm.UninstallInput
		_ = decode(&in)
		return " " + in.Release
	}
	return ""
}

// members scripts what adding and removing members needs.
func (o *outside) members(env *testsuite.TestWorkflowEnvironment, outcome func(name, where string, mode procedure.Mode) (procedure.Outcome, error)) {
	removed := func(name, where string, mode procedure.Mode) (procedure.Removal, error) {
		_, err := outcome(name, where, mode)
		var out procedure.Removal
		out.Changed(procedure.Delete, name, "")
		return out, err
	}
	env.OnActivity(kubernetes.RecordMember, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.RecordMemberInput) (cluster.RecordMemberResult, error) {
		spec := o.record.Spec.With(in.Workload)
		if in.Mode == procedure.Apply {
			o.record.Spec, o.record.Joining = spec, []string{in.Workload.Name}
			if in.Joined {
				o.record.Joining = nil
			}
		}
		out := cluster.RecordMemberResult{Record: o.record}
		out.Record.Spec = spec
		out.Changed(procedure.Update, "record", "")
		return out, nil
	})
	env.OnActivity(kubernetes.RecordDeparture, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.RecordDepartureInput) (cluster.RecordMemberResult, error) {
		if in.Mode == procedure.Apply {
			d := o.record.Leaving[in.Cluster]
			d.ValidUntil = in.ValidUntil
			o.record.Leaving = map[string]cluster.Departure{in.Cluster: d}
		}
		return cluster.RecordMemberResult{Record: o.record}, nil
	})
	env.OnActivity(kubernetes.CheckClusterRemoval, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.CheckRemovalInput) (cluster.CheckRemovalResult, error) {
		where := in.Spec.Workloads[0].Context
		if in.Management {
			where = in.Spec.Management.Context
		}
		if err := o.fails["CheckClusterRemoval "+where]; err != nil {
			return cluster.CheckRemovalResult{Problems: []string{failure.Message(err)}}, nil
		}
		return cluster.CheckRemovalResult{}, nil
	})
	env.OnActivity(vaults.CheckVaultRemoval, mock.Anything, mock.Anything).Return(vault.CheckVaultResult{}, nil)
	env.OnActivity(vaults.RevokeClusterToken, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.RemoveAccessInput) (procedure.Removal, error) {
		return removed("RevokeClusterToken", in.Workload, in.Mode)
	})
	env.OnActivity(vaults.RemoveClusterAccess, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.RemoveAccessInput) (procedure.Removal, error) {
		return removed("RemoveClusterAccess", in.Workload, in.Mode)
	})
	env.OnActivity(certManagers.ReadExpiry, mock.Anything, mock.Anything).Return(certmanager.Expiry{NotAfter: expires}, nil)
	env.OnActivity(charts.UninstallChart, mock.Anything, mock.Anything).Return(func(_ context.Context, in helm.UninstallInput) (procedure.Removal, error) {
		return removed("UninstallChart", in.Release, in.Mode)
	})
	env.OnActivity(certManagers.RemoveCertificate, mock.Anything, mock.Anything).Return(func(_ context.Context, in certmanager.RemovalInput) (procedure.Removal, error) {
		return removed("RemoveCertificate", in.Spec.Workloads[0].Name, in.Mode)
	})
	env.OnActivity(certManagers.RemoveIssuer, mock.Anything, mock.Anything).Return(func(_ context.Context, in certmanager.RemovalInput) (procedure.Removal, error) {
		return removed("RemoveIssuer", in.Spec.Workloads[0].Name, in.Mode)
	})
	env.OnActivity(kubernetes.RemoveTrust, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.RemovalInput) (procedure.Removal, error) {
		return removed("RemoveTrust", in.Spec.Workloads[0].Name, in.Mode)
	})
	env.OnActivity(certManagers.FindCertManagerUsers, mock.Anything, mock.Anything).Return(func(context.Context, certmanager.RemovalInput) (certmanager.Users, error) {
		if o.differs["FindCertManagerUsers"] {
			return certmanager.Users{Count: 7, Examples: []string{"Issuer theirs/ca"}}, nil
		}
		return certmanager.Users{}, nil
	})
	env.OnActivity(kubernetes.RemoveRegistration, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.RegisterClusterInput) (procedure.Removal, error) {
		return removed("RemoveRegistration", in.Cluster, in.Mode)
	})
}

// inOrder says which of the calls, by prefix, is missing after those before it.
func inOrder(calls []string, prefixes ...string) string {
	for _, prefix := range prefixes {
		at := slices.IndexFunc(calls, func(c string) bool { return strings.HasPrefix(c, prefix) })
		if at < 0 {
			return prefix
		}
		calls = calls[at+1:]
	}
	return ""
}

func TestAddClusterTouchesNoOther(t *testing.T) {
	o := &outside{record: complete(), differs: map[string]bool{"ApplyCertificate": true}}
	env := newRun(t, o)
	env.ExecuteWorkflow(procedure.AddCluster, json.RawMessage(`{"mesh":"demo","workload":{"name":"cluster3","agent":{"reload":"hot"}}}`))
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	for _, c := range o.calls {
		if strings.Contains(c, "cluster1") || strings.Contains(c, "cluster2") || strings.Contains(c, "-ca") {
			t.Errorf("another member, or the CAs' lock, is concerned: %s", c)
		}
	}
	for _, never := range []string{"EnablePKI", "SignIntermediate", "ConfigureRoles", "GenerateRoot apply", "RecordMesh", "EnsureVerifySchedule", "ApplyCertificate mgmt", "InstallChart mgmt"} {
		if o.count(never) > 0 {
			t.Errorf("%s was called: %q", never, o.calls)
		}
	}
	if missing := inOrder(o.calls, "CheckClusters", "Survey", "RecordMember  apply cluster3 joined:false", "Survey", "AcquireLock mgmtrelaypki-demo-cluster-cluster3",
		"EnableClusterAccess cluster3 apply", "ApplyCertificate cluster3 apply", "InstallChart cluster3 apply", "ReleaseLock", "VerifyManagement", "RecordMember  apply cluster3 joined:true"); missing != "" {
		t.Errorf("no %q in its place in %q", missing, o.calls)
	}
	var result procedure.AddClusterResult
	if err := env.GetWorkflowResult(&result); err != nil || !result.Changed || !result.Verification.Healthy || result.Setup.Cluster != "cluster3" {
		t.Errorf("result %+v, %v", result, err)
	}
	if checked := o.count("VerifyCluster"); checked != 1 {
		t.Errorf("%d clusters were verified", checked)
	}
	if w, ok := o.record.Spec.Workload("cluster3"); !ok || w.Agent.Reload != mesh.ReloadHot || len(o.record.Spec.Workloads) != 3 {
		t.Errorf("recorded is %+v", o.record.Spec.Workloads)
	}
}

func TestPlansOfMembersWriteNothing(t *testing.T) {
	for name, input := range map[string]string{
		procedure.AddCluster:    `{"mesh":"demo","workload":{"name":"cluster3"},"plan":true}`,
		procedure.RemoveCluster: `{"mesh":"demo","cluster":"cluster2","plan":true}`,
	} {
		o := &outside{record: complete(), differs: map[string]bool{"ApplyCertificate": true, "EnableClusterAccess": true}}
		env := newRun(t, o)
		env.ExecuteWorkflow(name, json.RawMessage(input))
		if err := env.GetWorkflowError(); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if writes := slices.DeleteFunc(o.calls, func(c string) bool { return !strings.Contains(c, " apply") && !strings.HasPrefix(c, "AcquireLock") }); len(writes) > 0 {
			t.Errorf("%s: a plan called %q", name, writes)
		}
		var result struct {
			Changed, Plan bool
			Steps         []procedure.Step
		}
		if err := env.GetWorkflowResult(&result); err != nil || !result.Changed || !result.Plan {
			t.Errorf("%s: result %+v, %v", name, result, err)
		}
		if !slices.ContainsFunc(result.Steps, func(s procedure.Step) bool { return len(s.Changes) > 0 }) {
			t.Errorf("%s: no step says what it would change: %+v", name, result.Steps)
		}
	}
}

func TestRemoveClusterInOrder(t *testing.T) {
	record := complete()
	record.Spec.Credential.Method = mesh.CredentialToken
	o := &outside{record: record}
	env := newRun(t, o)
	env.ExecuteWorkflow(procedure.RemoveCluster, json.RawMessage(`{"mesh":"demo","cluster":"cluster2"}`))
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	// Recorded before anything goes; Vault closed before its last certificate is
	// looked for; users of certificates before certificates; cert-manager after
	// what it looks after; out of the record when nothing is left.
	if missing := inOrder(o.calls, "AcquireLock mgmtrelaypki-demo-cluster-cluster2", "RecordDeparture  apply cluster2 left:false", "RevokeClusterToken", "RemoveClusterAccess", "ReadExpiry",
		"RecordDeparture  apply cluster2 left:false", "UninstallChart cluster2 apply gloo-platform", "UninstallChart cluster2 apply gloo-platform-crds", "RemoveCertificate", "RemoveIssuer", "RemoveTrust",
		"FindCertManagerUsers", "UninstallChart cluster2 apply cert-manager", "RemoveRegistration", "RecordDeparture  apply cluster2 left:true", "ReleaseLock"); missing != "" {
		t.Errorf("no %q in its place in %q", missing, o.calls)
	}
	for _, c := range o.calls {
		if strings.Contains(c, "cluster1") || strings.Contains(c, "-ca") {
			t.Errorf("another member, or the CAs' lock, is concerned: %s", c)
		}
	}
	var result procedure.RemoveClusterResult
	if err := env.GetWorkflowResult(&result); err != nil || !result.ValidUntil.Equal(expires) || !strings.Contains(result.Advice, "2030-01-02T03:04:05Z") || !result.Changed {
		t.Errorf("result %+v, %v", result, err)
	}
}

// A cluster that is gone is not asked anything: what is known is bounded by
// when Vault was closed.
func TestRemoveClusterThatIsGone(t *testing.T) {
	o := &outside{record: complete(), fails: map[string]error{"CheckClusterRemoval cluster2": failure.Permanent(failure.Unavailable, "no route")}}
	env := newRun(t, o)
	began := env.Now()
	env.ExecuteWorkflow(procedure.RemoveCluster, json.RawMessage(`{"mesh":"demo","cluster":"cluster2","gone":true}`))
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	for _, never := range []string{"CheckClusterRemoval cluster2", "UninstallChart", "RemoveCertificate", "RemoveIssuer", "RemoveTrust", "ReadExpiry", "FindCertManagerUsers"} {
		if o.count(never) > 0 {
			t.Errorf("%s was called: %q", never, o.calls)
		}
	}
	if missing := inOrder(o.calls, "RemoveClusterAccess", "RemoveRegistration", "RecordDeparture  apply cluster2 left:true"); missing != "" {
		t.Errorf("no %q in its place in %q", missing, o.calls)
	}
	var result procedure.RemoveClusterResult
	if err := env.GetWorkflowResult(&result); err != nil || len(result.Kept) != 1 {
		t.Errorf("result %+v, %v", result, err)
	}
	if life := result.ValidUntil.Sub(began); life < 24*time.Hour-time.Minute || life > 24*time.Hour+time.Minute {
		t.Errorf("valid for %s more, want the certificates' 24h", life)
	}
}

func TestRemovalKeepsWhatOthersUse(t *testing.T) {
	o := &outside{record: complete(), differs: map[string]bool{"FindCertManagerUsers": true}}
	env := newRun(t, o)
	env.ExecuteWorkflow(procedure.RemoveCluster, json.RawMessage(`{"mesh":"demo","cluster":"cluster2"}`))
	var result procedure.RemoveClusterResult
	if err := env.GetWorkflowResult(&result); err != nil {
		t.Fatal(err)
	}
	if o.count("UninstallChart cluster2 apply cert-manager") > 0 {
		t.Errorf("cert-manager was uninstalled: %q", o.calls)
	}
	if !slices.ContainsFunc(result.Kept, func(k procedure.Kept) bool {
		return k.Object == "cert-manager" && strings.Contains(k.Why, "Issuer theirs/ca")
	}) {
		t.Errorf("kept: %+v", result.Kept)
	}
}

// What was removed a while ago needs no removing, and its certificate's end is
// still told.
func TestRemovedAgain(t *testing.T) {
	record := complete()
	record.Leaving = map[string]cluster.Departure{"cluster3": {Left: expires.Add(-time.Hour), ValidUntil: expires}}
	o := &outside{record: record}
	env := newRun(t, o)
	env.ExecuteWorkflow(procedure.RemoveCluster, json.RawMessage(`{"mesh":"demo","cluster":"cluster3"}`))
	var result procedure.RemoveClusterResult
	if err := env.GetWorkflowResult(&result); err != nil || result.Changed || !result.ValidUntil.Equal(expires) || !strings.Contains(result.Advice, "2030-01-02T03:04:05Z") {
		t.Errorf("result %+v, %v", result, err)
	}
	if len(o.writes()) > 0 {
		t.Errorf("something was written: %q", o.writes())
	}
}

func TestMemberFailures(t *testing.T) {
	for name, c := range map[string]struct {
		procedure, input string
		outside          outside
		kind             failure.Kind
		says             []string
		never            []string
	}{
		"add: bad input": {procedure.AddCluster, `{"mesh":"demo","workload":{"name":"my_cluster","agnet":{}},"dryrun":true}`, outside{}, failure.InvalidInput,
			[]string{"dryrun: unknown field", `workload.agnet: unknown field; did you mean "agent"?`, "workload.name: \"my_cluster\" has an underscore"}, []string{"DescribeTemporal"}},
		"add: no mesh": {procedure.AddCluster, `{"mesh":"demo","workload":{"name":"cluster3"}}`, outside{}, failure.InvalidInput,
			[]string{`there is no mesh "demo"`, "relaypki setup -f"}, []string{"CheckClusters", "RecordMember"}},
		"add: another cluster of that name": {procedure.AddCluster, `{"mesh":"demo","workload":{"name":"cluster2","context":"elsewhere"}}`, outside{record: complete()}, failure.InvalidInput,
			[]string{`"cluster2" is the cluster "cluster2" in the mesh and "elsewhere" in this input`}, []string{"CheckClusters", "RecordMember"}},
		"add: that cluster under another name": {procedure.AddCluster, `{"mesh":"demo","workload":{"name":"cluster3","context":"cluster2"}}`, outside{record: complete()}, failure.InvalidInput,
			[]string{`"cluster2" is workloads[1]'s already`}, []string{"CheckClusters", "RecordMember"}},
		"add: the management cluster": {procedure.AddCluster, `{"mesh":"demo","workload":{"name":"mgmt"}}`, outside{record: complete()}, failure.InvalidInput,
			[]string{"is the management cluster"}, []string{"RecordMember"}},
		"add: preflight": {procedure.AddCluster, `{"mesh":"demo","workload":{"name":"cluster3"}}`,
			outside{record: complete(), fails: map[string]error{"CheckClusters cluster3": failure.Permanent(failure.Denied, "no patch on secrets")}}, failure.Preflight,
			[]string{"cluster3: no patch on secrets", "nothing was changed"}, []string{"RecordMember", "AcquireLock"}},
		"add: no CAs yet": {procedure.AddCluster, `{"mesh":"demo","workload":{"name":"cluster3"}}`, outside{record: complete(), fails: map[string]error{"Survey": failure.Permanent(failure.Preflight, "there is no role")}}, failure.Preflight,
			[]string{"there is no role"}, []string{"RecordMember", "AcquireLock"}},
		"add: the intermediate may not issue": {procedure.AddCluster, `{"mesh":"demo","workload":{"name":"cluster3"}}`, outside{record: complete(), pki: scriptedPKI{signs: map[int]bool{1: false}, roles: map[string]int{"": 1}}}, failure.Preflight,
			[]string{"relay-intermediate-g1", "may not issue"}, []string{"RecordMember", "AcquireLock"}},
		"add: locked": {procedure.AddCluster, `{"mesh":"demo","workload":{"name":"cluster3"}}`,
			outside{record: complete(), fails: map[string]error{"AcquireLock relaypki-demo-cluster-cluster3": failure.Permanent(failure.Locked, "held by remove-demo-cluster3")}}, failure.Locked,
			[]string{"held by remove-demo-cluster3"}, []string{"EnableClusterAccess"}},
		"add: does not work": {procedure.AddCluster, `{"mesh":"demo","workload":{"name":"cluster3"}}`, outside{record: complete(), differs: map[string]bool{"VerifyCluster": true}}, failure.Unhealthy,
			[]string{"cluster3, handshake: remote error: tls: bad certificate"}, []string{"RecordMember  apply cluster3 joined:true"}},
		"remove: bad input": {procedure.RemoveCluster, `{"mesh":"demo","cluster":"","gnoe":true}`, outside{}, failure.InvalidInput,
			[]string{`gnoe: unknown field; did you mean "gone"?`, "cluster: is missing"}, []string{"DescribeTemporal"}},
		"remove: no member": {procedure.RemoveCluster, `{"mesh":"demo","cluster":"cluster33"}`, outside{record: complete()}, failure.InvalidInput,
			[]string{`"cluster33" is no member of mesh demo; its members are cluster1, cluster2`}, []string{"AcquireLock", "RecordDeparture"}},
		"remove: no mesh": {procedure.RemoveCluster, `{"mesh":"demo","cluster":"cluster2"}`, outside{}, failure.InvalidInput, []string{`there is no mesh "demo"`}, []string{"RecordDeparture"}},
		"remove: rights are missing": {procedure.RemoveCluster, `{"mesh":"demo","cluster":"cluster2"}`,
			outside{record: complete(), fails: map[string]error{"CheckClusterRemoval cluster2": failure.Permanent(failure.Denied, "may not delete secrets vault-token")}}, failure.Preflight,
			[]string{"may not delete secrets vault-token", "nothing was changed"}, []string{"AcquireLock", "RecordDeparture"}},
		"remove: locked": {procedure.RemoveCluster, `{"mesh":"demo","cluster":"cluster2"}`,
			outside{record: complete(), fails: map[string]error{"AcquireLock relaypki-demo-cluster-cluster2": failure.Permanent(failure.Locked, "held by setup-demo")}}, failure.Locked,
			[]string{"held by setup-demo"}, []string{"RecordDeparture"}},
		"remove: half-way it stays a member": {procedure.RemoveCluster, `{"mesh":"demo","cluster":"cluster2"}`,
			outside{record: complete(), fails: map[string]error{"RemoveIssuer cluster2": failure.Permanent(failure.Denied, "forbidden")}}, failure.Denied,
			[]string{"forbidden"}, []string{"RecordDeparture  apply cluster2 left:true", "RemoveRegistration"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := c.outside
			env := newRun(t, &o)
			env.ExecuteWorkflow(c.procedure, json.RawMessage(c.input))
			o.failed(t, env.GetWorkflowError(), c.kind, c.says, c.never)
			if locks, releases := o.count("AcquireLock"), o.count("ReleaseLock"); c.kind != failure.Locked && locks != releases {
				t.Errorf("%d locks were taken, %d given back", locks, releases)
			}
		})
	}
}

// Members that somebody is just adding or removing are not checked, and it is said.
func TestVerificationLeavesOutWhoComesAndGoes(t *testing.T) {
	record := complete()
	record.Joining = []string{"cluster1"}
	record.Leaving = map[string]cluster.Departure{"cluster2": {Since: expires}}
	o := &outside{record: record}
	env := newRun(t, o)
	env.ExecuteWorkflow(procedure.VerifyMesh, json.RawMessage(`{"mesh":"demo"}`))
	var result procedure.VerifyResult
	if err := env.GetWorkflowResult(&result); err != nil || !result.Healthy || o.count("VerifyCluster") > 0 {
		t.Errorf("result %+v, %v, calls %q", result, err, o.calls)
	}
	for _, want := range []string{"relaypki add-cluster demo cluster1", "relaypki remove-cluster demo cluster2"} {
		found := false
		for _, f := range result.Findings {
			found = found || strings.Contains(f.Remedy, want)
		}
		if !found {
			t.Errorf("no finding says %q: %+v", want, result.Findings)
		}
	}
}

// Whoever looks is told that the mesh is pinned: there a root in its place is a mistake.
func TestVerificationOfWhatIsPinned(t *testing.T) {
	record := complete()
	record.Rotation = &procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 1, To: 2, FromRoot: 1, ToRoot: 1, Mode: "pinned", Emergency: &procedure.Emergency{Pinned: true}}
	env := newRun(t, &outside{record: record})
	var guard sync.Mutex
	seen := map[string]int{}
	env.SetOnActivityStartedListener(func(info *activity.Info, _ context.Context, args converter.EncodedValues) {
		var in struct{ Pin check.Pin }
		if strings.HasPrefix(info.ActivityType.Name, "Verify") && args.Get(&in) == nil {
			guard.Lock()
			defer guard.Unlock()
			seen[info.ActivityType.Name+" "+string(in.Pin)]++
		}
	})
	env.ExecuteWorkflow(procedure.VerifyMesh, json.RawMessage(`{"mesh":"demo"}`))
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	if want := map[string]int{"VerifyManagement pinned": 1, "VerifyCluster pinned": 2}; !maps.Equal(seen, want) {
		t.Errorf("%v, want %v", seen, want)
	}
}
