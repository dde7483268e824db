package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kubefake "k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// rollouts is a cluster with one Deployment, whose controller is the test.
type rollouts struct {
	t       *testing.T
	cluster *site.Cluster
	secrets *metadatafake.FakeMetadataClient
	pods    int
}

var secretResource = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}

// newRollouts has one Pod, and Secrets that are older.
func newRollouts(t *testing.T) *rollouts {
	t.Helper()
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	w := &rollouts{t: t, cluster: &site.Cluster{Name: "cluster1", Kube: kubefake.NewClientset()}, secrets: metadatafake.NewSimpleMetadataClient(scheme)}
	one := int32(1)
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "gloo-mesh-agent", Namespace: "gloo-mesh", Generation: 1},
		Spec:       appsv1.DeploymentSpec{Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "agent"}}},
	}
	if _, err := w.cluster.Kube.AppsV1().Deployments("gloo-mesh").Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"client", "root"} {
		secret := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "gloo-mesh"}}
		if _, err := w.secrets.Resource(secretResource).Namespace("gloo-mesh").(metadatafake.MetadataClient).CreateFake(secret, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.write(name, time.Now().Add(-time.Hour))
	}
	w.finish(time.Now().Add(-time.Minute))
	return w
}

// write has somebody write to a Secret.
func (w *rollouts) write(name string, at time.Time) {
	w.t.Helper()
	when := metav1.NewTime(at.Truncate(time.Second))
	secret := &metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: "gloo-mesh", CreationTimestamp: metav1.NewTime(at.Add(-time.Hour)),
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "cert-manager", Time: &when}, {Manager: "before", Time: &metav1.Time{Time: at.Add(-time.Minute)}}, {Manager: "none"}},
		},
	}
	if _, err := w.secrets.Resource(secretResource).Namespace("gloo-mesh").(metadatafake.MetadataClient).UpdateFake(secret, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *rollouts) deployment(change func(*appsv1.Deployment)) *appsv1.Deployment {
	w.t.Helper()
	deployments := w.cluster.Kube.AppsV1().Deployments("gloo-mesh")
	d, err := deployments.Get(w.t.Context(), "gloo-mesh-agent", metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	if change != nil {
		change(d)
		if _, err := deployments.Update(w.t.Context(), d, metav1.UpdateOptions{}); err != nil {
			w.t.Fatal(err)
		}
	}
	return d
}

// begin is as the controller begins a rollout: the new Pod is not there yet.
func (w *rollouts) begin() {
	w.deployment(func(d *appsv1.Deployment) {
		d.Generation++
		d.Status.ObservedGeneration, d.Status.UpdatedReplicas = d.Generation, 0
	})
}

// finish is as it ends it, with one Pod that was created at that time.
func (w *rollouts) finish(created time.Time) {
	w.t.Helper()
	pods := w.cluster.Kube.CoreV1().Pods("gloo-mesh")
	if w.pods > 0 {
		if err := pods.Delete(w.t.Context(), fmt.Sprintf("agent-%d", w.pods), metav1.DeleteOptions{}); err != nil {
			w.t.Fatal(err)
		}
	}
	w.pods++
	w.pod(fmt.Sprintf("agent-%d", w.pods), created, nil)
	w.deployment(func(d *appsv1.Deployment) {
		d.Status = appsv1.DeploymentStatus{
			ObservedGeneration: d.Generation, Replicas: 1, UpdatedReplicas: 1, AvailableReplicas: 1,
			Conditions: []appsv1.DeploymentCondition{{Type: appsv1.DeploymentAvailable, Status: corev1.ConditionTrue}},
		}
	})
}

func (w *rollouts) pod(name string, created time.Time, change func(*corev1.Pod)) {
	w.t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: name, Namespace: "gloo-mesh", Labels: map[string]string{"app": "agent"}, CreationTimestamp: metav1.NewTime(created.Truncate(time.Second)),
	}}
	if change != nil {
		change(pod)
	}
	if _, err := w.cluster.Kube.CoreV1().Pods("gloo-mesh").Create(w.t.Context(), pod, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// restart is a try, as a worker that has just started makes it.
func (w *rollouts) restart() *restart {
	in := RestartInput{Context: "cluster1", Namespace: "gloo-mesh", Deployment: "gloo-mesh-agent", Secrets: []string{"root", "client"}, Mode: procedure.Apply}
	return &restart{in: in, c: w.cluster, secrets: w.secrets, name: kube.Name("Deployment", in.Namespace, in.Deployment)}
}

// patiently is a try that has looked at the Secrets a second ago.
func (w *rollouts) patiently() *restart {
	w.t.Helper()
	r := w.restart()
	w.waits(r, "in the next second")
	r.seen = r.seen.Add(-kube.Resolution)
	return r
}

func (w *rollouts) waits(r *restart, words string) {
	w.t.Helper()
	done, state, err := r.look(w.t.Context())
	if done || err != nil || !strings.Contains(state, words) {
		w.t.Fatalf("%v %q %v, want one that waits with %q", done, state, err, words)
	}
}

func (w *rollouts) ends(r *restart, changes int) {
	w.t.Helper()
	done, state, err := r.look(w.t.Context())
	if !done || err != nil || len(r.out.Changes) != changes {
		w.t.Fatalf("%v %q %v %+v, want %d changes", done, state, err, r.out, changes)
	}
}

func (w *rollouts) restarted() string {
	return w.deployment(nil).Spec.Template.Annotations[restartedAt]
}

func TestRestart(t *testing.T) {
	w := newRollouts(t)
	w.ends(w.restart(), 0)
	if w.restarted() != "" {
		t.Error("restarted although its Pod is younger")
	}

	w.write("client", time.Now().Add(-30*time.Second))
	r := w.patiently()
	w.waits(r, "is being restarted")
	if w.restarted() == "" {
		t.Fatal("not restarted")
	}
	w.begin()
	w.waits(r, "0 of 1 new Pods")
	w.finish(time.Now())
	w.ends(r, 1)
	w.ends(w.restart(), 0)
}

// TestRestartKilled: a worker dies after it has restarted the Deployment. The next
// one, whose clock may be behind, waits for that restart.
func TestRestartKilled(t *testing.T) {
	w := newRollouts(t)
	w.write("root", time.Now().Add(time.Minute)) // by the API server's clock
	w.waits(w.patiently(), "is being restarted")
	first := w.restarted()
	w.begin()
	r := w.restart()
	w.waits(r, "0 of 1 new Pods")
	w.finish(time.Now().Add(2 * time.Minute))
	w.ends(r, 0)
	if w.restarted() != first {
		t.Error("restarted twice")
	}
}

// TestRestartByOthers: a rollout that is not of a restart since the write gives no
// new Pods, and would never end if the Pods fail for what is in the old Secret.
func TestRestartByOthers(t *testing.T) {
	w := newRollouts(t)
	w.write("root", time.Now().Add(-30*time.Second))
	w.begin()
	w.waits(w.patiently(), "is being restarted")

	w = newRollouts(t)
	w.write("root", time.Now().Add(-30*time.Second))
	w.deployment(func(d *appsv1.Deployment) {
		d.Spec.Template.Annotations = map[string]string{restartedAt: time.Now().UTC().Format(time.RFC3339)}
	})
	w.begin()
	r := w.restart()
	w.waits(r, "0 of 1 new Pods")
	w.finish(time.Now())
	w.ends(r, 0)
}

// TestRestartSameSecond: times are in whole seconds, so a Pod of the second of the
// write may be from before it.
func TestRestartSameSecond(t *testing.T) {
	w := newRollouts(t)
	at := time.Now().Add(-30 * time.Second).Truncate(time.Second)
	w.finish(at)
	w.write("root", at)
	r := w.patiently()
	w.waits(r, "is being restarted")
	w.finish(at) // by an API server whose clock is behind
	if _, _, err := r.look(t.Context()); err == nil || failure.IsPermanent(err) || !strings.Contains(err.Error(), "clocks") {
		t.Error(err)
	}
	w.finish(at.Add(time.Second))
	w.ends(w.restart(), 0)
}

// TestRestartWrittenMeanwhile: cert-manager renews during the restart.
func TestRestartWrittenMeanwhile(t *testing.T) {
	w := newRollouts(t)
	w.write("client", time.Now().Add(-30*time.Second))
	r := w.patiently()
	w.waits(r, "is being restarted")
	w.finish(time.Now().Add(-20 * time.Second))
	w.write("client", time.Now())
	w.waits(r, "in the next second")
	r.seen = r.seen.Add(-kube.Resolution)
	w.waits(r, "is being restarted")
	w.finish(time.Now().Add(time.Second))
	w.ends(r, 2)
}

func TestRestartOldPods(t *testing.T) {
	w := newRollouts(t)
	old := time.Now().Add(-2 * time.Hour)
	w.pod("evicted", old, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
	w.ends(w.restart(), 0)
	w.pod("ending", old, func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Now()} })
	w.waits(w.restart(), "Pod ending is from before the last write to Secret gloo-mesh/root and is still to end")
	if w.restarted() != "" {
		t.Error("restarted for a Pod that ends anyway")
	}
}

func TestRestartCannot(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*rollouts, *RestartInput)
		words  string
	}{
		{"no Deployment", func(_ *rollouts, in *RestartInput) { in.Deployment = "another" }, "gloo.install"},
		{"no Secret", func(_ *rollouts, in *RestartInput) { in.Secrets = []string{"another"} }, "Secret gloo-mesh/another is missing"},
		{"paused", func(w *rollouts, _ *RestartInput) {
			w.write("root", time.Now())
			w.deployment(func(d *appsv1.Deployment) { d.Spec.Paused = true })
		}, "rollout resume"},
	} {
		w := newRollouts(t)
		r := w.restart()
		c.change(w, &r.in)
		if _, _, err := r.look(t.Context()); failure.KindOf(err) != failure.Preflight || !failure.IsPermanent(err) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestRestartPlan(t *testing.T) {
	w := newRollouts(t)
	plan := func() procedure.Outcome {
		r := w.restart()
		r.in.Mode = procedure.Plan
		out, err := r.would(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := plan(); len(out.Changes) > 0 {
		t.Errorf("its Pod is younger: %+v", out)
	}
	w.write("client", time.Now())
	out := plan()
	if len(out.Changes) != 1 || len(out.Changes[0].Commands) != 2 || out.Changes[0].Commands[0] != "kubectl --context cluster1 -n gloo-mesh rollout restart deployment/gloo-mesh-agent" {
		t.Errorf("%+v", out)
	}
	if w.restarted() != "" {
		t.Error("a plan has restarted it")
	}
}

// TestRestartPermission: who sets up is told that a rotation may not restart what
// it will have to.
func TestRestartPermission(t *testing.T) {
	for _, c := range []struct {
		server, agent string // how they reload
		management    bool
		want          string
	}{
		{mesh.ReloadHot, mesh.ReloadRestart, false, mesh.AgentDeployment},
		{mesh.ReloadRestart, mesh.ReloadHot, false, ""},
		{mesh.ReloadHot, mesh.ReloadRestart, true, ""},
		{mesh.ReloadRestart, mesh.ReloadHot, true, mesh.ServerDeployment},
	} {
		no := false
		spec := mesh.Spec{Mesh: "prod", Management: mesh.Management{Reload: c.server}, Workloads: []mesh.Workload{{Name: "cluster1", Agent: mesh.Agent{Reload: c.agent}}}}
		spec.Gloo.Install = &no
		in := checkInput{spec: spec.WithDefaults(), management: c.management, workload: "cluster1"}
		if c.management {
			in.spec, in.workload = in.spec.Only(""), ""
		}
		asked := ""
		for _, p := range permissions(in, false) {
			if p.resource == "deployments" && strings.Contains(p.verbs, "patch") {
				asked += strings.Join(p.names, " ")
			}
		}
		if asked != c.want {
			t.Errorf("server %s, agent %s, management %v: patch %q", c.server, c.agent, c.management, asked)
		}
	}
}
