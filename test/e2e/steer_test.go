package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/procedure"
)

// exit codes of the command, from its help.
const (
	exitFailed      = 1
	exitBadInput    = 2
	exitUnreachable = 3
	exitWaiting     = 5
	exitDenied      = 6
	exitWarnings    = 7
	exitNotes       = 8
)

// One cluster is down: the others finish, it is parked with the reason, and
// people steer the run with the command until it is back, or leave it out, or
// end the run. Another run does the rest.
func TestSteering(t *testing.T) {
	w := labWorld(t, "cluster1", "cluster2")
	w.startWorker(t, filepath.Join(repository, "bin", "relaypki-worker"))
	example, err := os.ReadFile(filepath.Join(repository, example))
	if err != nil {
		t.Fatal(err)
	}
	// The example, with clusters that are given up soon; but not before a chart
	// is installed on a busy machine.
	file := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(file, append(example, "\nrollout: {retryFor: 1m}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}

	w.stopCluster(t, "cluster2")
	out, errOut := w.command(t, exitWaiting, "setup", "-f", file)
	if !strings.Contains(out, "cluster2 parked: ") || !strings.Contains(out, "connection refused") {
		t.Errorf("the reason is not said:\n%s", out)
	}
	for _, next := range []string{"Next: relaypki retry demo cluster2\n", "relaypki skip demo cluster2 --reason WHY\n", "relaypki abort demo --reason WHY\n"} {
		if !strings.Contains(errOut, next) {
			t.Errorf("lacks %q:\n%s", next, errOut)
		}
	}
	if strings.ContainsRune(out+errOut, '\x1b') {
		t.Errorf("control characters where there is no terminal:\n%q", out+errOut)
	}
	w.hasCertificate(t, "cluster1")

	// The setup that waits is found by the same command, and shown by status.
	if _, errOut := w.command(t, exitWaiting, "setup", "-f", file, "-o", "json"); !strings.Contains(errOut, "relaypki retry demo cluster2") {
		t.Errorf("the same command again says:\n%s", errOut)
	}
	if out, _ := w.command(t, 0, "status", "demo"); !strings.Contains(out, "waits for you") || !strings.Contains(out, "relaypki retry demo cluster2") {
		t.Errorf("status does not show what waits:\n%s", out)
	}

	// Every update answers with where the run stands.
	steps := []struct {
		args []string
		want func(procedure.Standing) bool
	}{
		{[]string{"pause", "demo", "--reason", "change freeze"}, func(s procedure.Standing) bool { return s.Paused == "change freeze" }},
		{[]string{"set-parallelism", "demo", "7"}, func(s procedure.Standing) bool { return s.Parallelism == 7 && s.Paused != "" }},
		{[]string{"resume", "demo"}, func(s procedure.Standing) bool { return s.Parallelism == 7 && s.Paused == "" }},
	}
	for _, step := range steps {
		// Twice: to say it again does no harm.
		for range 2 {
			standing := w.standing(t, step.args...)
			if standing.Mesh != "demo" || standing.Count[procedure.Parked] != 1 || !step.want(standing) {
				t.Errorf("relaypki %s: %+v", strings.Join(step.args, " "), standing)
			}
		}
	}
	for _, refused := range []struct{ args, want string }{
		{"retry demo cluster9", "no cluster of this procedure (parked: cluster2)"},
		{"set-parallelism demo 100000", "100000"},
		{"retry demo --workflow setup-other", "no workflow"},
		{"resume other", "no procedure of mesh other is running"},
	} {
		if _, errOut := w.command(t, exitBadInput, strings.Fields(refused.args)...); !strings.Contains(errOut, refused.want) {
			t.Errorf("relaypki %s: lacks %q:\n%s", refused.args, refused.want, errOut)
		}
	}
	if proposed, _ := w.command(t, 0, "__complete", "retry", "demo", ""); proposed != "cluster2\n:4\n" {
		t.Errorf("completion proposes %q", proposed)
	}

	// Still down: parked again, for the watcher to see.
	w.standing(t, "retry", "demo", "cluster2")
	eventually(t, 4*time.Minute, func() error {
		out, _ := w.command(t, 0, "status", "demo", "-o", "json")
		var status struct {
			Meshes []struct {
				Procedures []struct {
					Person bool
					Parked []procedure.ClusterProgress
				}
			}
		}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			t.Fatal(err)
		}
		if latest := status.Meshes[0].Procedures[0]; !latest.Person || len(latest.Parked) != 1 {
			return fmt.Errorf("not parked again: %+v", latest)
		}
		return nil
	})

	// Back: one command finishes it.
	w.startCluster(t, "cluster2")
	w.standing(t, "retry", "demo")
	out, _ = w.command(t, 0, "watch", "demo", "-o", "json", "--timeout", "8m")
	if result := resultOf[procedure.SetupResult](t, out); len(result.Clusters) != 2 || !result.Verification.Healthy {
		t.Errorf("the run that was retried ended with %+v", result)
	}
	w.hasCertificate(t, "cluster2")

	// Left out, the run fails and says so; what is done is done.
	w.stopCluster(t, "cluster2")
	w.command(t, exitWaiting, "setup", "-f", file)
	w.standing(t, "skip", "demo", "cluster2", "--reason", "in repair")
	out, errOut = w.command(t, exitFailed, "watch", "demo", "--timeout", "8m")
	if !slices.Contains(strings.Split(out, "\n"), "cluster2  skipped  in repair") || !strings.Contains(errOut, "Next: relaypki setup -f") {
		t.Errorf("what was left out is not said:\n%s\n%s", out, errOut)
	}

	// Aborted, only when it is meant.
	w.command(t, exitWaiting, "setup", "-f", file)
	if _, errOut := w.command(t, exitBadInput, "abort", "demo", "--reason", "wrong day"); !strings.Contains(errOut, "Next: relaypki abort demo --reason 'wrong day' --yes") {
		t.Errorf("abort without a terminal says:\n%s", errOut)
	}
	if standing := w.standing(t, "abort", "demo", "--reason", "wrong day", "--yes"); !standing.Aborting {
		t.Errorf("abort answers %+v", standing)
	}
	if _, errOut := w.command(t, exitFailed, "watch", "setup-demo", "--timeout", "8m"); !strings.Contains(errOut, "wrong day") {
		t.Errorf("the reason of the abort is not said:\n%s", errOut)
	}
	leases, err := w.cluster(t, management).kube.CoordinationV1().Leases("gloo-mesh").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(leases.Items) != 0 {
		t.Errorf("the aborted run has kept its locks: %+v, %v", leases, err)
	}

	// With all clusters there, the same input does the rest.
	w.startCluster(t, "cluster2")
	if result := w.setup(t, file); !result.Verification.Healthy {
		t.Errorf("the mesh is not healthy: %+v", result.Verification.Findings)
	}
}

// command runs the command and fails the test if it ends with another code.
func (w *world) command(t *testing.T, want int, args ...string) (out, errOut string) {
	t.Helper()
	out, errOut, code := w.relaypki(t, args...)
	if code != want {
		t.Fatalf("relaypki %s: exit code %d, want %d\n%s\n%s", strings.Join(args, " "), code, want, out, errOut)
	}
	return out, errOut
}

// standing is what an update answers.
func (w *world) standing(t *testing.T, args ...string) procedure.Standing {
	t.Helper()
	out, _ := w.command(t, 0, append(args, "-o", "json")...)
	var standing procedure.Standing
	if err := json.Unmarshal([]byte(out), &standing); err != nil {
		t.Fatalf("relaypki %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return standing
}

// stopCluster takes a cluster's API server away.
func (w *world) stopCluster(t *testing.T, cluster string) {
	t.Helper()
	if _, err := w.lab("stop", cluster+"-apiserver"); err != nil {
		t.Fatal(err)
	}
}

// startCluster brings it back, and waits until it is at work: its controllers
// and whoever runs its Pods look for the API server again in their own time. So a
// namespace gets its ServiceAccount, and a Pod in it runs.
func (w *world) startCluster(t *testing.T, cluster string) {
	t.Helper()
	if _, err := w.lab("start", cluster+"-apiserver"); err != nil {
		t.Fatal(err)
	}
	c := w.cluster(t, cluster).kube.CoreV1()
	name := fmt.Sprintf("back-%d", time.Now().Unix())
	eventually(t, time.Minute, func() error {
		_, err := c.Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		return err
	})
	eventually(t, 3*time.Minute, func() error {
		_, err := c.ServiceAccounts(name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "probe"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "probe", Image: "probe"}}}}
	if _, err := c.Pods(name).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Minute, func() error {
		probe, err := c.Pods(name).Get(t.Context(), "probe", metav1.GetOptions{})
		if err == nil && probe.Status.Phase != corev1.PodRunning {
			err = fmt.Errorf("the Pod is %s", probe.Status.Phase)
		}
		return err
	})
	if err := c.Namespaces().Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// hasCertificate fails the test if a cluster's client certificate is not ready.
func (w *world) hasCertificate(t *testing.T, cluster string) {
	t.Helper()
	certificate, err := w.cluster(t, cluster).cm.CertmanagerV1().Certificates("gloo-mesh").Get(t.Context(), "relay-client-tls", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, condition := range certificate.Status.Conditions {
		if condition.Type == "Ready" && condition.Status == "True" {
			return
		}
	}
	t.Errorf("the certificate of %s is not ready: %+v", cluster, certificate.Status.Conditions)
}
