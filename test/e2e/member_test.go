package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"go.temporal.io/sdk/client"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/procedure"
)

// A mesh that clusters come to and go from: two are added in the same second,
// one is removed and added again with the worker killed in the midst of each,
// one leaves things of others' behind, one is gone. Nobody else is touched, and
// what is left of a member that was removed is nothing.
func TestMembersComeAndGo(t *testing.T) {
	random := rand.New(rand.NewPCG(seed(t), 2))
	w := labWorld(t, "cluster1", "cluster2", "cluster3")
	worker := w.newWorker(t)
	c := w.temporal(t)
	mesh := func(workloads string) string {
		path := filepath.Join(t.TempDir(), "mesh.yaml")
		if err := os.WriteFile(path, []byte("{mesh: demo, workloads: ["+workloads+"]}"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one := mesh("{name: cluster1}")
	if result := w.setup(t, one); !result.Verification.Healthy {
		t.Fatalf("the mesh is not healthy: %+v", result.Verification.Findings)
	}
	empty := w.stored(t, "cluster3")

	// Two at once, one of them asked for twice.
	seen := w.watching(t, "cluster1")
	var group sync.WaitGroup
	for _, name := range []string{"cluster2", "cluster3", "cluster3"} {
		group.Add(1)
		go func() {
			defer group.Done()
			if out, errOut, code := w.relaypki(t, "add-cluster", "demo", name, "-o", "json"); code != 0 {
				t.Errorf("relaypki add-cluster demo %s: exit code %d\n%s\n%s", name, code, out, errOut)
			} else if result := resultOf[procedure.AddClusterResult](t, out); !result.Changed || !result.Verification.Healthy || result.Setup.Cluster != name {
				t.Errorf("added %s: %+v", name, result)
			}
		}()
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
	runs := 0
	for _, x := range executions(t, c) {
		if x.Execution.WorkflowId == "add-demo-cluster3" {
			runs++
		}
	}
	if runs != 1 {
		t.Errorf("cluster3, asked for twice, was added by %d runs", runs)
	}
	seen.onlyFor(t, "cluster2", "cluster3")
	w.oneOfEach(t)

	// The file of before is refused, that of now finds nothing to do.
	if _, errOut, code := w.relaypki(t, "setup", "-f", one); code != 1 || !strings.Contains(errOut, "relaypki remove-cluster demo cluster3") {
		t.Errorf("a setup without the new members: exit code %d\n%s", code, errOut)
	}
	if result := w.setup(t, mesh("{name: cluster1}, {name: cluster2}, {name: cluster3}")); result.Changed {
		t.Errorf("a setup with the new members changed something: %+v", result)
	}
	again, errOut, code := w.relaypki(t, "add-cluster", "demo", "cluster3", "-o", "json")
	if code != 0 || resultOf[procedure.AddClusterResult](t, again).Setup.Changed {
		t.Errorf("cluster3 again: exit code %d\n%s\n%s", code, again, errOut)
	}

	// A plan says what would go and writes nothing; without a person nobody is removed.
	before, configuration := w.objects(t, "cluster3"), w.vaultConfiguration(t)
	if out, errOut, code := w.relaypki(t, "remove-cluster", "demo", "cluster3", "--plan", "-o", "json"); code != 0 ||
		!strings.Contains(out, "vault policy relaypki-demo-cluster3") || !strings.Contains(out, "Secret gloo-mesh/relay-root-tls-secret") {
		t.Errorf("the plan of a removal: exit code %d\n%s\n%s", code, out, errOut)
	}
	if _, errOut, code := w.relaypki(t, "remove-cluster", "demo", "cluster3"); code != 2 || !strings.Contains(errOut, "--yes") {
		t.Errorf("a removal that nobody can be asked about: exit code %d\n%s", code, errOut)
	}
	if d := append(differences(before, w.objects(t, "cluster3")), differences(configuration, w.vaultConfiguration(t))...); len(d) > 0 {
		t.Errorf("a plan changed %s", strings.Join(d, ", "))
	}

	// Removed, with the worker killed somewhere in the midst of it: nothing of
	// ours is left, and whoever looks on is untouched.
	seen = w.watching(t, "cluster1", "cluster2")
	healthy := []string{"cluster1", "cluster2"}
	w.killedIn(t, worker, c, 2+random.IntN(12), random, "remove-cluster", "demo", "cluster3", "--yes")
	removed := outcome[procedure.RemoveClusterResult](t, c, "remove-demo-cluster3")
	if left := time.Until(removed.ValidUntil); left < 22*time.Hour || left > 25*time.Hour || !strings.Contains(removed.Advice, removed.ValidUntil.UTC().Format(time.RFC3339)) {
		t.Errorf("the certificate of a day is said to be valid until %s: %s", removed.ValidUntil, removed.Advice)
	}
	if d := differences(empty, w.stored(t, "cluster3")); len(d) > 0 {
		t.Errorf("cluster3 is not as it was before it was added: %s", strings.Join(d, ", "))
	}
	for path := range w.vaultConfiguration(t) {
		if strings.Contains(path, "cluster3") {
			t.Errorf("left in Vault: %s", path)
		}
	}
	seen.onlyFor(t, "cluster3")
	w.healthy(t, healthy...)
	if out, errOut, code := w.relaypki(t, "remove-cluster", "demo", "cluster3", "--yes"); code != 0 || !strings.Contains(out, "Certificate valid until "+removed.ValidUntil.UTC().Format(time.RFC3339)) {
		t.Errorf("removed again: exit code %d\n%s\n%s", code, out, errOut)
	}

	// And it comes back, with the worker killed in the midst of that.
	seen = w.watching(t, "cluster1", "cluster2")
	w.killedIn(t, worker, c, 6+random.IntN(14), random, "add-cluster", "demo", "cluster3")
	if result := outcome[procedure.AddClusterResult](t, c, "add-demo-cluster3"); !result.Verification.Healthy {
		t.Errorf("added again: %+v", result)
	}
	seen.onlyFor(t, "cluster3")
	w.oneOfEach(t)
	w.healthy(t, "cluster1", "cluster2", "cluster3")

	w.keepsWhatIsOthers(t)

	// Said to be gone: nobody asks it anything.
	log := size(t, w.auditLog("cluster2"))
	if out, errOut, code := w.relaypki(t, "remove-cluster", "demo", "cluster2", "--gone", "--yes"); code != 0 || !strings.Contains(out, "Certificate valid until") {
		t.Errorf("removed as gone: exit code %d\n%s\n%s", code, out, errOut)
	}
	for _, r := range auditLines(t, after(t, w.auditLog("cluster2"), log)) {
		if user, _ := r["user"].(map[string]any); user["username"] == "system:serviceaccount:relaypki:relaypki-worker" {
			t.Errorf("the cluster that is gone was asked: %v %v", r["verb"], r["requestURI"])
		}
	}
	for path := range w.vaultConfiguration(t) {
		if strings.Contains(path, "cluster2") {
			t.Errorf("left in Vault: %s", path)
		}
	}
	// It was there after all.
	if out, errOut, code := w.relaypki(t, "add-cluster", "demo", "cluster2"); code != 0 {
		t.Errorf("added again: exit code %d\n%s\n%s", code, out, errOut)
	}
	w.noSecrets(t)
}

// keepsWhatIsOthers removes cluster3 with things of others' in it, beside ours
// and under our names, and adds it again.
func (w *world) keepsWhatIsOthers(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	k := w.cluster(t, "cluster3")
	self := cmapi.IssuerSpec{IssuerConfig: cmapi.IssuerConfig{SelfSigned: &cmapi.SelfSignedIssuer{}}}
	if _, err := k.cm.CertmanagerV1().Issuers("gloo-mesh").Create(ctx, &cmapi.Issuer{ObjectMeta: metav1.ObjectMeta{Name: "theirs"}, Spec: self}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.cm.CertmanagerV1().Certificates("gloo-mesh").Create(ctx, &cmapi.Certificate{ObjectMeta: metav1.ObjectMeta{Name: "theirs"},
		Spec: cmapi.CertificateSpec{SecretName: "theirs", DNSNames: []string{"theirs.example"}, IssuerRef: cmmeta.IssuerReference{Name: "theirs", Kind: "Issuer"}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		_, err := k.kube.CoreV1().Secrets("gloo-mesh").Get(ctx, "theirs", metav1.GetOptions{})
		return err
	})
	// Somebody has taken the trust Secret over.
	trust, err := k.kube.CoreV1().Secrets("gloo-mesh").Get(ctx, "relay-root-tls-secret", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	delete(trust.Labels, "app.kubernetes.io/managed-by")
	if _, err := k.kube.CoreV1().Secrets("gloo-mesh").Update(ctx, trust, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	out, errOut, code := w.relaypki(t, "remove-cluster", "demo", "cluster3", "--yes", "-o", "json")
	if code != 0 {
		t.Fatalf("relaypki remove-cluster: exit code %d\n%s\n%s", code, out, errOut)
	}
	kept := fmt.Sprint(resultOf[procedure.RemoveClusterResult](t, out).Kept)
	for _, want := range []string{"cert-manager", "gloo-mesh/theirs", "Secret gloo-mesh/relay-root-tls-secret", "Namespaces gloo-mesh, cert-manager"} {
		if !strings.Contains(kept, want) {
			t.Errorf("that %s was kept is not said: %s", want, kept)
		}
	}
	there := w.objects(t, "cluster3")
	for _, want := range []string{"issuers gloo-mesh/theirs", "certificates gloo-mesh/theirs", "secrets gloo-mesh/theirs", "secrets gloo-mesh/relay-root-tls-secret", "deployments cert-manager/cert-manager"} {
		if _, ok := there[want]; !ok {
			t.Errorf("%s is gone", want)
		}
	}
	for _, want := range []string{"issuers gloo-mesh/vault-issuer", "certificates gloo-mesh/relay-client-tls", "secrets gloo-mesh/relay-client-tls-secret", "deployments gloo-mesh/gloo-mesh-agent"} {
		if _, ok := there[want]; ok {
			t.Errorf("%s is still there", want)
		}
	}
	if err := k.kube.CoreV1().Secrets("gloo-mesh").Delete(ctx, "relay-root-tls-secret", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := k.cm.CertmanagerV1().Certificates("gloo-mesh").Delete(ctx, "theirs", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := k.cm.CertmanagerV1().Issuers("gloo-mesh").Delete(ctx, "theirs", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// killedIn runs a command, kills the worker after the given number of
// activities, starts it again, and waits for the command's good end.
func (w *world) killedIn(t *testing.T, worker *worker, c client.Client, point int, random *rand.Rand, args ...string) {
	t.Helper()
	id := strings.TrimSuffix(args[0], "-cluster") + "-" + args[1] + "-" + args[2]
	before, _ := progress(t, c, id)
	if _, errOut, code := w.relaypki(t, append(slices.Clone(args), "--detach")...); code != 0 {
		t.Fatalf("relaypki %v --detach: exit code %d\n%s", args, code, errOut)
	}
	eventually(t, 5*time.Minute, func() error {
		done, _ := progress(t, c, id)
		if done < before+point {
			return fmt.Errorf("%d activities are done, waiting for %d", done-before, point)
		}
		return nil
	})
	at := time.Duration(random.IntN(300)) * time.Millisecond
	time.Sleep(at) // the random point inside what runs now; nothing is awaited
	worker.kill()
	t.Logf("%s: killed %s after activity %d", strings.Join(args, " "), at, point)
	worker.start()
	if err := c.GetWorkflow(t.Context(), id, "").Get(t.Context(), nil); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
}

// outcome is the result of the latest run of a workflow.
func outcome[Result any](t *testing.T, c client.Client, id string) Result {
	t.Helper()
	var result Result
	if err := c.GetWorkflow(t.Context(), id, "").Get(t.Context(), &result); err != nil {
		t.Fatal(err)
	}
	return result
}

// healthy fails the test unless a verification finds the mesh with exactly
// these members, and healthy.
func (w *world) healthy(t *testing.T, clusters ...string) {
	t.Helper()
	out, errOut, code := w.relaypki(t, "verify", "demo", "-o", "json")
	if code != 0 {
		t.Fatalf("relaypki verify: exit code %d\n%s\n%s", code, out, errOut)
	}
	shook := map[string]bool{}
	for _, f := range resultOf[procedure.VerifyResult](t, out).Findings {
		if f.Check == "handshake" {
			shook[f.Cluster] = true
		}
		if f.Check == "registrations" && f.Status != "pass" {
			t.Errorf("registrations: %s", f.Message)
		}
	}
	if len(shook) != len(clusters) {
		t.Errorf("handshakes were tried with %v, want %v", shook, clusters)
	}
}

// bystanders are clusters that nothing is to happen in, and logs from now on.
type bystanders struct {
	w        *world
	clusters []string
	objects  map[string]map[string]string
	logs     map[string]int64
}

func (w *world) watching(t *testing.T, clusters ...string) bystanders {
	t.Helper()
	b := bystanders{w: w, clusters: clusters, objects: map[string]map[string]string{}, logs: map[string]int64{}}
	for _, c := range clusters {
		b.objects[c] = w.objects(t, c)
	}
	for _, log := range append([]string{"vault", management}, clusters...) {
		b.logs[log] = size(t, w.auditLog(log))
	}
	return b
}

// onlyFor fails the test if the worker has written anything but what is the
// given members': nothing in the clusters that look on, in the management
// cluster the record, the members' registrations and locks, in Vault what bears
// their names.
func (b bystanders) onlyFor(t *testing.T, members ...string) {
	t.Helper()
	for _, c := range b.clusters {
		if d := differences(b.objects[c], b.w.objects(t, c)); len(d) > 0 {
			t.Errorf("in %s: %s", c, strings.Join(d, ", "))
		}
		if written := workerWrites(auditLines(t, after(t, b.w.auditLog(c), b.logs[c]))); len(written) > 0 {
			t.Errorf("in %s the worker wrote: %s", c, strings.Join(written, ", "))
		}
	}
	any := "(" + strings.Join(members, "|") + ")"
	management := regexp.MustCompile(`/namespaces/gloo-mesh/(configmaps/relaypki-mesh-demo|leases(/relaypki-demo-cluster-` + any + `)?|kubernetesclusters/` + any + `)(\?.*)?$`)
	seen := 0
	for _, line := range workerWrites(auditLines(t, after(t, b.w.auditLog("mgmt"), b.logs["mgmt"]))) {
		if seen++; !management.MatchString(line) {
			t.Errorf("in the management cluster the worker wrote: %s", line)
		}
	}
	vault := regexp.MustCompile(`(relaypki-demo-|relay-client-)` + any + `(/|$)`)
	for _, line := range vaultWrites(auditLines(t, after(t, b.w.auditLog("vault"), b.logs["vault"]))) {
		if seen++; !vault.MatchString(line) {
			t.Errorf("in Vault the worker wrote: %s", line)
		}
	}
	if seen < 4 {
		t.Errorf("the audit logs have %d writes only: they prove nothing", seen)
	}
}

// stored are the names of what is stored in a cluster, but for kinds that others
// write all the time, and for what a removal is to leave: namespaces, and
// CustomResourceDefinitions, of which the API server makes APIServices.
func (w *world) stored(t *testing.T, name string) map[string]bool {
	t.Helper()
	skipped := []string{"namespaces ", "customresourcedefinitions ", "apiservices "}
	out := map[string]bool{}
	for object := range w.objects(t, name) {
		if !slices.ContainsFunc(skipped, func(prefix string) bool { return strings.HasPrefix(object, prefix) }) {
			out[object] = true
		}
	}
	return out
}
