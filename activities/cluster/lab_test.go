package cluster

import (
	"context"
	"os"
	"strings"
	"testing"

	"go.temporal.io/sdk/testsuite"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// lab returns activities on a running lab, whose site file
// RELAYPKI_TEST_SITE names; they act as the lab's least-privilege worker.
func lab(t *testing.T) (*Activities, *testsuite.TestActivityEnvironment, mesh.Spec) {
	t.Helper()
	path := os.Getenv("RELAYPKI_TEST_SITE")
	if path == "" {
		t.Skip("needs a lab: set RELAYPKI_TEST_SITE to its .lab/worker/site.yaml")
	}
	config, err := site.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	a := &Activities{Clients: site.NewClients(config, zap.NewNop())}
	spec := mesh.Spec{Mesh: "labtest", Workloads: []mesh.Workload{{Name: "cluster1"}}}.WithDefaults()
	return a, environment(a), spec
}

// environment is one for one activity at a time.
func environment(a *Activities) *testsuite.TestActivityEnvironment {
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	env.RegisterActivity(a)
	return env
}

func call[R any](t *testing.T, env *testsuite.TestActivityEnvironment, activity, in any) (R, error) {
	t.Helper()
	var result R
	value, err := env.ExecuteActivity(activity, in)
	if err != nil {
		return result, err
	}
	if value.HasValue() {
		if err := value.Get(&result); err != nil {
			t.Fatal(err)
		}
	}
	return result, nil
}

func must[R any](t *testing.T, env *testsuite.TestActivityEnvironment, activity, in any) R {
	t.Helper()
	result, err := call[R](t, env, activity, in)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestLabCheckClusters(t *testing.T) {
	a, env, spec := lab(t)
	result := must[CheckClustersResult](t, env, a.CheckClusters, CheckClustersInput{Spec: spec, Management: true})
	if len(result.Clusters) != 1+len(spec.Workloads) {
		t.Fatalf("%d answers: %+v", len(result.Clusters), result)
	}
	for _, one := range result.Clusters {
		if len(one.Problems) > 0 || one.Unreachable != "" || !strings.HasPrefix(one.Version, "v1.") {
			t.Errorf("%s: %s, %s, %d problems:\n%s", one.Context, one.Version, one.Unreachable, len(one.Problems), strings.Join(one.Problems, "\n"))
		}
	}
	elsewhere := spec.Only("cluster1")
	elsewhere.Workloads[0].Namespace = "default"
	result = must[CheckClustersResult](t, env, a.CheckClusters, CheckClustersInput{Spec: elsewhere})
	if all := strings.Join(result.Clusters[0].Problems, "\n"); !strings.Contains(all, "patch secrets relay-root-tls-secret in namespace default") {
		t.Errorf("in a namespace without rights:\n%s", all)
	}
	nowhere := spec.Only("cluster1")
	nowhere.Workloads[0].Context = "nowhere"
	result = must[CheckClustersResult](t, env, a.CheckClusters, CheckClustersInput{Spec: nowhere})
	if one := result.Clusters[0]; len(one.Problems) != 1 || !strings.Contains(one.Problems[0], "nowhere") {
		t.Errorf("unknown cluster: %+v", one)
	}
}

// A cluster whose rights are of an earlier release gets each missing one named.
func TestLabCheckRemoval(t *testing.T) {
	a, env, spec := lab(t)
	for _, in := range []CheckRemovalInput{{Spec: spec.Only("cluster1")}, {Spec: spec.Only("cluster1"), Management: true}} {
		if result := must[CheckRemovalResult](t, env, a.CheckClusterRemoval, in); len(result.Problems) > 0 {
			t.Errorf("management %v: %q", in.Management, result.Problems)
		}
	}
	elsewhere := spec
	elsewhere.Workloads[0].Namespace, elsewhere.Management.Namespace = "default", "default"
	for management, want := range map[bool]string{false: "delete secrets relay-root-tls-secret in namespace default", true: "delete kubernetesclusters.admin.gloo.solo.io in namespace default"} {
		result := must[CheckRemovalResult](t, env, a.CheckClusterRemoval, CheckRemovalInput{Spec: elsewhere.Only("cluster1"), Management: management})
		if all := strings.Join(result.Problems, "\n"); !strings.Contains(all, want) || !strings.Contains(all, "deploy/rbac") {
			t.Errorf("in a namespace without rights, management %v:\n%s", management, all)
		}
	}
	nowhere := spec
	nowhere.Workloads[0].Context = "nowhere"
	if result := must[CheckRemovalResult](t, env, a.CheckClusterRemoval, CheckRemovalInput{Spec: nowhere.Only("cluster1")}); len(result.Problems) != 1 {
		t.Errorf("unknown cluster: %q", result.Problems)
	}
}

func TestLabLock(t *testing.T) {
	a, env, spec := lab(t)
	in := LockInput{Context: "mgmt", Namespace: spec.Namespace, Lease: "relaypki-labtest-ca", Holder: "default/one/run1"}
	other := in
	other.Holder = "default/two/run2"
	t.Cleanup(func() {
		for _, l := range []LockInput{in, other} {
			if err := a.ReleaseLock(context.Background(), l); err != nil {
				t.Error(err)
			}
		}
	})
	running := true
	a.running = func(_ context.Context, h holder) (bool, error) {
		if h.workflow != "one" {
			t.Errorf("asked about %v", h)
		}
		return running, nil
	}
	must[procedure.Outcome](t, env, a.AcquireLock, in)
	if again := must[procedure.Outcome](t, env, a.AcquireLock, in); again.Detail != "lock held" {
		t.Errorf("our own lock, again: %+v", again)
	}
	if _, err := call[procedure.Outcome](t, env, a.AcquireLock, other); failure.KindOf(err) != failure.Locked || !strings.Contains(failure.Message(err), `"one"`) {
		t.Errorf("a running holder's lock: %v", err)
	}
	if _, err := call[any](t, env, a.ReleaseLock, other); err != nil {
		t.Error(err)
	}
	if again := must[procedure.Outcome](t, env, a.AcquireLock, in); again.Detail != "lock held" {
		t.Errorf("somebody else's release took the lock from us: %+v", again)
	}
	running = false
	if taken := must[procedure.Outcome](t, env, a.AcquireLock, other); !strings.Contains(taken.Detail, "taken over from workflow one") {
		t.Errorf("the lock of a run that has ended: %+v", taken)
	}
}

func TestLabMembership(t *testing.T) {
	a, env, spec := lab(t)
	if none := must[MeshRecord](t, env, a.ReadMesh, ReadMeshInput{Mesh: "never-made"}); none.Found {
		t.Error("a mesh that was never made is found")
	}
	if seen := must[procedure.Outcome](t, env, a.RecordMesh, RecordMeshInput{Spec: spec, Complete: true, Mode: procedure.Apply}); len(seen.Changes) > 1 {
		t.Errorf("%+v", seen)
	}
	version := objectVersion(t, a, "mgmt", "ConfigMap", spec.Namespace, recordName("labtest"))
	for _, complete := range []bool{false, true} {
		if again := must[procedure.Outcome](t, env, a.RecordMesh, RecordMeshInput{Spec: spec, Complete: complete, Mode: procedure.Apply}); len(again.Changes) > 0 {
			t.Errorf("the same again, complete %v: %+v", complete, again)
		}
	}
	if now := objectVersion(t, a, "mgmt", "ConfigMap", spec.Namespace, recordName("labtest")); now != version {
		t.Errorf("the same again was written: resourceVersion %s, then %s", version, now)
	}
	record := must[MeshRecord](t, env, a.ReadMesh, ReadMeshInput{Mesh: "labtest"})
	if !record.Found || !record.Complete || record.Spec.Workloads[0].Name != "cluster1" || record.Spec.Certificates.Client.Duration != mesh.Hours(24) {
		t.Errorf("%+v", record)
	}
	more := spec
	more.Workloads = append(more.Workloads, mesh.Workload{Name: "cluster2"})
	would := must[procedure.Outcome](t, env, a.RecordMesh, RecordMeshInput{Spec: more, Mode: procedure.Observe})
	if len(would.Changes) != 1 || would.Changes[0].Verb != procedure.Update {
		t.Errorf("observed: %+v", would)
	}
	if now := objectVersion(t, a, "mgmt", "ConfigMap", spec.Namespace, recordName("labtest")); now != version {
		t.Error("observing has written")
	}
}

func objectVersion(t *testing.T, a *Activities, cluster, kind, namespace, name string) string {
	t.Helper()
	c, err := a.Clients.Cluster(cluster)
	if err != nil {
		t.Fatal(err)
	}
	live, err := kube.Get(context.Background(), c, kind, namespace, name)
	if err != nil || live == nil {
		t.Fatalf("%s: %v %v", name, live, err)
	}
	return live.GetResourceVersion()
}

func TestLabKeys(t *testing.T) {
	a, env, _ := lab(t)
	keys := must[ServiceAccountKeys](t, env, a.ReadServiceAccountKeys, ServiceAccountKeysInput{Context: "cluster1"})
	if !strings.HasPrefix(keys.Issuer, "https://") || len(keys.KeysPEM) == 0 {
		t.Errorf("%+v", keys)
	}
}

func TestLabTrust(t *testing.T) {
	a, env, spec := lab(t)
	c, err := a.Clients.Cluster("cluster1")
	if err != nil {
		t.Fatal(err)
	}
	// The lab's own CA is as good a root as any here.
	root := string(c.REST.CAData)
	in := CopyRootSecretInput{Mesh: spec.Mesh, Context: "cluster1", Namespace: spec.Namespace, RootPEM: root, Mode: procedure.Apply}
	must[procedure.Outcome](t, env, a.CopyRootSecret, in)
	version := objectVersion(t, a, "cluster1", "Secret", spec.Namespace, mesh.RootSecretName)
	if again := must[procedure.Outcome](t, env, a.CopyRootSecret, in); len(again.Changes) > 0 {
		t.Errorf("again: %+v", again)
	}
	if now := objectVersion(t, a, "cluster1", "Secret", spec.Namespace, mesh.RootSecretName); now != version {
		t.Error("the same again was written")
	}
	observed := in
	observed.Mode, observed.RootPEM = procedure.Observe, root+root
	if would := must[procedure.Outcome](t, env, a.CopyRootSecret, observed); len(would.Changes) != 1 || would.Changes[0].Detail != "data.ca.crt" {
		t.Errorf("%+v", would)
	}
	missing := in
	missing.Mode, missing.Namespace = procedure.Observe, "not-there"
	if would, err := call[procedure.Outcome](t, env, a.CopyRootSecret, missing); err == nil && len(would.Changes) != 1 || err != nil && failure.KindOf(err) != failure.Denied {
		t.Errorf("in a namespace that is not there: %+v %v", would, err)
	}

	// Somebody else's object of that name is left alone.
	secrets := c.Kube.CoreV1().Secrets(spec.Namespace)
	relabel := func(value string) {
		patch := []byte(`{"metadata":{"labels":{"app.kubernetes.io/managed-by":"` + value + `"}}}`)
		if _, err := secrets.Patch(context.Background(), mesh.RootSecretName, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	relabel("somebody")
	_, err = call[procedure.Outcome](t, env, a.CopyRootSecret, in)
	relabel(kube.ManagedBy)
	if failure.KindOf(err) != failure.Conflict || !strings.Contains(failure.Message(err), mesh.RootSecretName) {
		t.Errorf("somebody else's Secret: %v", err)
	}

	second := in
	second.Mesh = "second"
	if _, err := call[procedure.Outcome](t, env, a.CopyRootSecret, second); failure.KindOf(err) != failure.Conflict || !strings.Contains(failure.Message(err), `belongs to the mesh "labtest"`) {
		t.Errorf("another mesh's Secret: %v", err)
	}

	token := IdentityTokenInput{Spec: spec, Context: "mgmt", Mode: procedure.Apply}
	must[procedure.Outcome](t, env, a.CopyIdentityToken, token)
	token.Context = "cluster1"
	must[procedure.Outcome](t, env, a.CopyIdentityToken, token)
	for _, context := range []string{"mgmt", "cluster1"} {
		token.Context = context
		if again := must[procedure.Outcome](t, env, a.CopyIdentityToken, token); len(again.Changes) > 0 {
			t.Errorf("%s again: %+v", context, again)
		}
	}
	management, err := a.Clients.Cluster("mgmt")
	if err != nil {
		t.Fatal(err)
	}
	made, err := readToken(context.Background(), management, spec.Management.Namespace, spec.Gloo.IdentityToken)
	if err != nil || len(made) != 64 {
		t.Errorf("%d characters, %v", len(made), err)
	}
	copied, err := readToken(context.Background(), c, spec.Namespace, spec.Gloo.IdentityToken)
	if err != nil || string(copied) != string(made) {
		t.Error("the copy differs")
	}
}

func TestLabNamespace(t *testing.T) {
	a, env, spec := lab(t)
	if out := must[procedure.Outcome](t, env, a.EnsureNamespace, NamespaceInput{Context: "cluster1", Namespace: spec.Namespace, Mode: procedure.Apply}); len(out.Changes) > 0 {
		t.Errorf("%+v", out)
	}
	if _, err := call[procedure.Outcome](t, env, a.EnsureNamespace, NamespaceInput{Context: "cluster1", Namespace: "not-allowed", Mode: procedure.Apply}); failure.KindOf(err) != failure.Denied {
		t.Errorf("a namespace beyond the worker's rights: %v", err)
	}
}

func TestLabRegister(t *testing.T) {
	a, env, spec := lab(t)
	in := RegisterClusterInput{Spec: spec, Cluster: "cluster1", Mode: procedure.Observe}
	c, err := a.Clients.Cluster("mgmt")
	if err != nil {
		t.Fatal(err)
	}
	_, missing := kube.Resource(c, "KubernetesCluster", spec.Namespace).List(context.Background(), metav1.ListOptions{})
	must[procedure.Outcome](t, env, a.RegisterCluster, in)
	in.Mode = procedure.Apply
	_, err = call[procedure.Outcome](t, env, a.RegisterCluster, in)
	if kube.KindMissing(missing) {
		if failure.KindOf(err) != failure.NotReady {
			t.Errorf("without the CustomResourceDefinition: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if again := must[procedure.Outcome](t, env, a.RegisterCluster, in); len(again.Changes) > 0 {
		t.Errorf("again: %+v", again)
	}
}
