package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/internal/procedure"
)

// The example input is what make demo sets up.
const example = "deploy/examples/mesh.yaml"

func TestDemo(t *testing.T) {
	w := demoWorld(t)
	t.Logf("make demo took %s, with the lab's servers built", demo.took.Round(time.Second))
	w.oneOfEach(t)
	if !strings.Contains(demo.output, w.env["RELAYPKI_UI"]) || w.env["RELAYPKI_UI"] == "" {
		t.Errorf("make demo does not print the UI's address %q:\n%s", w.env["RELAYPKI_UI"], demo.output)
	}
}

// A second make demo is quick because nothing is left to do.
func TestDemoAgain(t *testing.T) {
	w := demoWorld(t)
	start := time.Now()
	out, err := w.make("demo")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the second make demo took %s", time.Since(start).Round(time.Second))
	if !strings.Contains(out, "Mesh demo was up to date: nothing was changed.") {
		t.Errorf("the second make demo does not say that nothing was changed:\n%s", out)
	}
}

// The same input again finds every step up to date and writes nothing: not one
// object in any cluster, not one setting in Vault. Two witnesses: what is
// stored before and after, and the audit logs of every server.
func TestRerunChangesNothing(t *testing.T) {
	w := demoWorld(t)
	objects, logs := map[string]map[string]string{}, map[string]int64{}
	for _, c := range w.all() {
		objects[c] = w.objects(t, c)
		logs[c] = size(t, w.auditLog(c))
	}
	configuration := w.vaultConfiguration(t)
	logs["vault"] = size(t, w.auditLog("vault"))

	result := w.setup(t, example)

	if result.Changed {
		t.Errorf("the second run says that it changed something: %+v", result)
	}
	all := result.Steps
	for _, c := range result.Clusters {
		all = append(all, steps(t, w.temporal(t), c)...)
	}
	if len(all) < 20 {
		t.Errorf("the second run reports %d steps only", len(all))
	}
	for _, s := range all {
		if s.State != procedure.UpToDate {
			t.Errorf("step %q is %q, not up to date", s.Name, s.State)
		}
	}
	for _, c := range w.all() {
		if d := differences(objects[c], w.objects(t, c)); len(d) > 0 {
			t.Errorf("in %s: %s", c, strings.Join(d, ", "))
		}
		requests := auditLines(t, after(t, w.auditLog(c), logs[c]))
		if written := workerWrites(requests); len(written) > 0 {
			t.Errorf("the audit log of %s has writes of the worker: %s", c, strings.Join(written, ", "))
		}
		if len(requests) == 0 {
			t.Errorf("the audit log of %s is empty: it proves nothing", c)
		}
	}
	// Vault was asked with the tests' own token in between; those are reads.
	if d := differences(configuration, w.vaultConfiguration(t)); len(d) > 0 {
		t.Errorf("in Vault: %s", strings.Join(d, ", "))
	}
	if written := vaultWrites(auditLines(t, after(t, w.auditLog("vault"), logs["vault"]))); len(written) > 0 {
		t.Errorf("Vault's audit log has writes: %s", strings.Join(written, ", "))
	}
}

// The witnesses can see what they look for: the first run is in the same logs.
func TestAuditLogsSeeWrites(t *testing.T) {
	w := demoWorld(t)
	for _, c := range w.all() {
		written := workerWrites(auditLines(t, after(t, w.auditLog(c), 0)))
		for _, want := range []string{"certificates", "issuers", "secrets", "serviceaccounts"} {
			if !strings.Contains(strings.Join(written, " "), "/"+want) {
				t.Errorf("the audit log of %s does not show that the worker wrote %s", c, want)
			}
		}
	}
	written := strings.Join(vaultWrites(auditLines(t, after(t, w.auditLog("vault"), 0))), " ")
	for _, want := range []string{"sys/mounts/pki", "pki_relay/roles/", "sys/policies/acl/", "pki_relay/intermediate/set-signed"} {
		if !strings.Contains(written, want) {
			t.Errorf("Vault's audit log does not show a write to %s", want)
		}
	}
}

func (w *world) auditLog(part string) string {
	if part == "vault" {
		return filepath.Join(w.dir, "logs", "vault-audit.log")
	}
	return filepath.Join(w.dir, "logs", "audit-"+part+".log")
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func after(t *testing.T, path string, offset int64) []byte {
	t.Helper()
	return contents(t, path)[offset:]
}

// workerWrites are the requests of the worker that can have persisted
// something: not reviews, port-forwards and dry runs.
func workerWrites(requests []map[string]any) []string {
	var out []string
	for _, r := range requests {
		user, _ := r["user"].(map[string]any)
		verb, uri := fmt.Sprint(r["verb"]), fmt.Sprint(r["requestURI"])
		switch {
		case user["username"] != "system:serviceaccount:relaypki:relaypki-worker",
			verb == "get", verb == "list", verb == "watch",
			strings.Contains(uri, "dryRun=All"),
			strings.Contains(uri, "/selfsubject"),
			strings.Contains(uri, "/portforward"):
		default:
			out = append(out, verb+" "+uri)
		}
	}
	return out
}

// vaultWrites are the requests that can have changed Vault's configuration:
// not logins, looking up one's own token or capabilities, nor the issuing that
// cert-manager does by itself.
func vaultWrites(requests []map[string]any) []string {
	var out []string
	for _, r := range requests {
		request, _ := r["request"].(map[string]any)
		operation, path := fmt.Sprint(request["operation"]), fmt.Sprint(request["path"])
		switch {
		case r["type"] != "request", operation == "read", operation == "list",
			strings.HasPrefix(path, "auth/") && strings.HasSuffix(path, "/login"),
			strings.HasPrefix(path, "auth/token/lookup"), strings.HasPrefix(path, "auth/token/renew"),
			path == "sys/capabilities-self",
			strings.HasPrefix(path, "pki_relay/sign/"):
		default:
			out = append(out, operation+" "+path)
		}
	}
	return out
}

// What a person types is checked whole before anything is touched, also when
// it does not come through the command: this is the JSON of the UI's form.
func TestBadInputFromTheUI(t *testing.T) {
	w := demoWorld(t)
	c := w.temporal(t)
	run := w.start(t, c, procedure.SetupMesh, `{"mesh":"demo","workloads":[{"name":"my_cluster"},{"name":"a"},{"name":"a"}],"dryrun":true}`)
	err := run.Get(t.Context(), nil)
	for _, want := range []string{"dryrun: unknown field", `workloads[0].name: "my_cluster" has an underscore`, `workloads[2].name: "a" is workloads[1] already`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the failure does not say %q: %v", want, err)
		}
	}
	if activities := w.activities(t, c, run.GetID(), run.GetRunID()); activities > 0 {
		t.Errorf("%d activities ran before the input was refused", activities)
	}
}

// A part of a procedure is no way around its checks.
func TestSetupClusterAloneIsRefused(t *testing.T) {
	w := demoWorld(t)
	c := w.temporal(t)
	run := w.start(t, c, procedure.SetupCluster, `{"spec":{"mesh":"demo","workloads":[{"name":"cluster1"}]},"cluster":"cluster1","mode":"apply","rootPEM":"mine"}`)
	err := run.Get(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "cannot be started alone") || w.activities(t, c, run.GetID(), run.GetRunID()) > 0 {
		t.Errorf("SetupCluster alone: %v", err)
	}
}

// Another mesh over the same namespaces and mounts is refused before anything
// is touched: the locks of the two would not know of each other.
func TestSecondMeshIsRefused(t *testing.T) {
	w := demoWorld(t)
	logs := size(t, w.auditLog(management))
	run := w.start(t, w.temporal(t), procedure.SetupMesh, `{"mesh":"other","workloads":[{"name":"cluster1"}]}`)
	err := run.Get(t.Context(), nil)
	for _, want := range []string{
		`namespace gloo-mesh is the mesh "demo"'s already`, "the mount pki is another mesh's", "the mount pki_relay is another mesh's", "nothing was changed",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the failure does not say %q: %v", want, err)
		}
	}
	if written := workerWrites(auditLines(t, after(t, w.auditLog(management), logs))); len(written) > 0 {
		t.Errorf("the refused run wrote %s", strings.Join(written, ", "))
	}
}

// The same JSON that the command sends works when pasted.
func TestGoodInputFromTheUI(t *testing.T) {
	w := demoWorld(t)
	c := w.temporal(t)
	input, err := os.ReadFile(filepath.Join(repository, example))
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := yaml.YAMLToJSON(input)
	if err != nil {
		t.Fatal(err)
	}
	run := w.start(t, c, procedure.SetupMesh, string(asJSON))
	var result procedure.SetupResult
	if err := run.Get(t.Context(), &result); err != nil {
		t.Fatal(err)
	}
	if result.Changed || result.Verification == nil || !result.Verification.Healthy {
		data, _ := json.MarshalIndent(result, "", "  ")
		t.Errorf("the pasted input did not find the mesh as it is:\n%s", data)
	}
}
