package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/internal/procedure"
	sitefile "github.com/relaypki/relaypki/internal/site"
)

// plan takes the plan of a setup, and fails the test if taking it has written
// anything anywhere. It returns what would be changed, by cluster; "" is Vault
// and the management cluster.
func (w *world) plan(t *testing.T, input string) map[string][]procedure.Change {
	t.Helper()
	logs := map[string]int64{"vault": size(t, w.auditLog("vault"))}
	for _, c := range w.all() {
		logs[c] = size(t, w.auditLog(c))
	}
	out, errOut, code := w.relaypki(t, "setup", "-f", input, "--plan", "-o", "json")
	if code != 0 {
		t.Fatalf("relaypki setup --plan: exit code %d\n%s\n%s", code, out, errOut)
	}
	for _, c := range w.all() {
		requests := auditLines(t, after(t, w.auditLog(c), logs[c]))
		if written := workerWrites(requests); len(written) > 0 || len(requests) == 0 {
			t.Errorf("of %d requests to %s the plan wrote %s", len(requests), c, strings.Join(written, ", "))
		}
	}
	requests := auditLines(t, after(t, w.auditLog("vault"), logs["vault"]))
	if written := vaultWrites(requests); len(written) > 0 || len(requests) == 0 {
		t.Errorf("of %d requests to Vault the plan wrote %s", len(requests), strings.Join(written, ", "))
	}
	var document struct {
		Result struct {
			Plan     bool
			Steps    []procedure.Step
			Clusters []struct {
				Cluster string
				Steps   []procedure.Step
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &document); err != nil || !document.Result.Plan || len(document.Result.Clusters) != len(w.clusters) {
		t.Fatalf("the command printed no plan of %d clusters: %v\n%s", len(w.clusters), err, out)
	}
	changes := map[string][]procedure.Change{}
	note := func(cluster string, steps []procedure.Step) {
		if len(steps) < 8 {
			t.Errorf("the plan of %q has %d steps only", cluster, len(steps))
		}
		for _, s := range steps {
			changes[cluster] = append(changes[cluster], s.Changes...)
		}
	}
	note("", document.Result.Steps)
	for _, c := range document.Result.Clusters {
		note(c.Cluster, c.Steps)
	}
	return changes
}

func objectsOf(changes []procedure.Change) []string {
	var out []string
	for _, c := range changes {
		out = append(out, string(c.Verb)+" "+c.Object)
	}
	slices.Sort(out)
	return out
}

// The plan of a mesh that is not there, run as a shell script by an operator
// without relaypki, makes that mesh: a setup afterwards has next to nothing to
// do, and the mesh is healthy.
func TestPlanByHand(t *testing.T) {
	w := labWorld(t, "cluster1")
	helm := w.helm(t)
	w.startWorker(t, filepath.Join(repository, "bin", "relaypki-worker"))
	input := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(input, []byte("mesh: byhand\nworkloads: [{name: cluster1}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	planned := w.plan(t, input)
	for cluster, want := range map[string][]string{
		"":         {"create vault mount pki", "create vault issuer pki/relay-root-g1", "create vault issuer pki_relay/relay-intermediate-g1", "create Issuer gloo-mesh/vault-issuer", "create Certificate gloo-mesh/relay-server-tls", "create Helm release cert-manager/cert-manager", "create Helm release gloo-mesh/gloo-platform", "create schedule relaypki-verify-byhand"},
		"cluster1": {"create vault role pki_relay/roles/relay-client-cluster1", "create Certificate gloo-mesh/relay-client-tls", "create Secret gloo-mesh/relay-root-tls-secret", "create Secret gloo-mesh/relay-identity-token-secret", "create KubernetesCluster gloo-mesh/cluster1"},
	} {
		for _, object := range want {
			if !slices.Contains(objectsOf(planned[cluster]), object) {
				t.Errorf("the plan of %q lacks %q: %q", cluster, object, objectsOf(planned[cluster]))
			}
		}
	}
	script, errOut, code := w.relaypki(t, "setup", "-f", input, "--plan", "-o", "commands")
	if code != 0 {
		t.Fatalf("relaypki setup --plan -o commands: exit code %d\n%s", code, errOut)
	}
	w.runByHand(t, helm, script)

	result := w.setup(t, input)
	if result.Verification == nil || !result.Verification.Healthy {
		t.Errorf("the mesh is not healthy: %+v", result.Verification)
	}
	// What the script could not do: schedules, and that the mesh is complete.
	for _, s := range result.Steps {
		if s.State != procedure.UpToDate && !strings.Contains(s.Name, "schedule") && s.Name != "record the mesh" {
			t.Errorf("after the script the step %q was %s: %s", s.Name, s.State, s.Detail)
		}
	}
	for _, c := range result.Clusters {
		if c.Changed {
			answer, err := w.temporal(t).QueryWorkflow(t.Context(), c.Workflow, "", procedure.ProgressQuery)
			if err != nil {
				t.Fatal(err)
			}
			var p procedure.Progress
			if err := answer.Get(&p); err != nil {
				t.Fatal(err)
			}
			t.Errorf("after the script the setup changed something in %s: %+v", c.Cluster, p.Steps)
		}
	}
	for cluster, changes := range w.plan(t, input) {
		if len(changes) > 0 {
			t.Errorf("a plan of what is as it should be would change %q in %q", objectsOf(changes), cluster)
		}
	}

	// Exactly what somebody changes by hand is named.
	w.sh(t, `kubectl --context cluster1 -n gloo-mesh patch issuer vault-issuer --type=merge -p '{"spec":{"vault":{"path":"pki_relay/sign/elsewhere"}}}'
vault patch pki_relay/roles/relay-client-cluster1 allow_any_name=true
kubectl --context cluster1 -n gloo-mesh delete secret relay-root-tls-secret`)
	drift := w.plan(t, input)
	want := []string{"create Secret gloo-mesh/relay-root-tls-secret", "update Issuer gloo-mesh/vault-issuer", "update vault role pki_relay/roles/relay-client-cluster1"}
	if got := objectsOf(drift["cluster1"]); !slices.Equal(got, want) || len(drift[""]) > 0 {
		t.Errorf("after a drift the plan is %q and %q, want %q", objectsOf(drift[""]), got, want)
	}
	script, _, _ = w.relaypki(t, "setup", "-f", input, "--plan", "-o", "commands")
	w.runByHand(t, helm, script)
	if again := w.setup(t, input); again.Changed {
		t.Errorf("after the second script a setup changed something: %+v", again.Steps)
	}
	w.noSecrets(t)
}

// runByHand runs a plan's script with the operator's environment, and with the
// site file's chart values, which a plan does not show.
func (w *world) runByHand(t *testing.T, helm, script string) {
	t.Helper()
	w.chartValues(t, func(cluster, chart string, values []byte) {
		path := filepath.Join(t.TempDir(), "values.yaml")
		if err := os.WriteFile(path, values, 0o600); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(script, "\n")
		for i, line := range lines {
			if strings.HasPrefix(line, "helm upgrade --install "+chart+" ") && strings.Contains(line, "--kube-context "+cluster+" ") {
				lines[i] = strings.Replace(line, " -f -", " -f "+path+" -f -", 1)
			}
		}
		script = strings.Join(lines, "\n")
	})
	path := filepath.Join(t.TempDir(), "plan.sh")
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for name, value := range w.env {
		env[name] = value
	}
	env["PATH"] = helm + ":" + w.env["PATH"]
	if out, err := run(env, "bash", path); err != nil {
		t.Fatalf("%v\n%s\n--- the script:\n%s", err, out, script)
	}
}

// helm is a directory with Helm's command in it.
func (w *world) helm(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := run(nil, "go", "-C", filepath.Join(repository, "test", "helm"), "build", "-o", filepath.Join(dir, "helm"), "helm.sh/helm/v4/cmd/helm"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// chartValues calls for each of the site file's chart values, as YAML.
func (w *world) chartValues(t *testing.T, each func(cluster, chart string, values []byte)) {
	t.Helper()
	site, err := sitefile.Load(filepath.Join(w.dir, "worker", "site.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range site.Clusters {
		for chart, values := range c.ChartValues {
			data, err := yaml.Marshal(values)
			if err != nil {
				t.Fatal(err)
			}
			each(c.Name, chart, data)
		}
	}
}
