package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	vaultapi "github.com/hashicorp/vault/api"
	"go.temporal.io/sdk/client"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// weather is a lab on which bad weather is made, and what was seen of it.
type weather struct {
	w      *world
	dir    string // where the operator works
	worker *worker
	group  string
	rows   []row
	queues int
}

const (
	goodMesh = "{mesh: demo, workloads: [{name: cluster1}, {name: cluster2}]}"
	// hastyMesh parks a cluster soon, so that no case takes longer than it must.
	hastyMesh = "{mesh: demo, workloads: [{name: cluster1}, {name: cluster2}], rollout: {retryFor: 12s}}"
	mended    = "the same command again goes on"
)

// TestWeather makes bad input and bad weather for real, on one lab: first what is
// found before anything is touched, then what happens in the midst of a setup,
// then what happens to a mesh that is set up. Every run is also the proof that
// the case before it has healed: its problems are all that it names. At the end
// there is one of everything. What the operator sees is in docs/weather.md.
func TestWeather(t *testing.T) {
	w := labWorld(t, "cluster1", "cluster2")
	x := &weather{w: w, dir: t.TempDir(), worker: w.startWorker(t, filepath.Join(repository, "bin", "relaypki-worker"))}
	x.file(t, "mesh.yaml", goodMesh)

	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seen so far:\n%s", x.markdown())
		}
	})
	began := time.Now()
	for _, part := range []struct {
		group string
		make  func(*testing.T)
	}{
		{"Bad input", x.badInput},
		{"The worker's own configuration", x.configuration},
		{"Vault", x.vault},
		{"Clusters, before anything is touched", x.clusters},
		{"In the midst of a first setup", x.firstSetup},
		{"A mesh that is set up", x.meshThatIsSetUp},
	} {
		x.group = part.group
		started := time.Now()
		part.make(t)
		t.Logf("%s: %s", part.group, time.Since(started).Round(time.Second))
		if t.Failed() {
			t.FailNow() // what follows builds on it
		}
	}
	t.Logf("all cases took %s", time.Since(began).Round(time.Second))

	w.oneOfEach(t)
	w.noSecrets(t)
	x.report(t)
}

// file writes a file into the operator's directory.
func (x *weather) file(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(x.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// command is the command as an operator runs it, not started yet.
func (x *weather) command(args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	cmd = exec.Command(filepath.Join(repository, "bin", "relaypki"), args...)
	cmd.Dir = x.dir
	cmd.Env = os.Environ()
	for k, v := range x.w.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return cmd, stdout, stderr
}

// relaypki runs the command and sees how it ends: with an error, or with what
// became of the mesh.
func (x *weather) relaypki(args ...string) sight {
	cmd, stdout, stderr := x.command(args...)
	_ = cmd.Run() // the exit code says it
	return ending(cmd, stdout, stderr)
}

func ending(cmd *exec.Cmd, stdout, stderr *bytes.Buffer) sight {
	s := sight{code: cmd.ProcessState.ExitCode()}
	for _, line := range strings.Split(stdout.String(), "\n") {
		if s.code == 0 && strings.HasPrefix(line, "Mesh ") || s.code == 5 && strings.HasPrefix(line, "  ") && strings.Contains(line, " parked: ") {
			s.text += line + "\n"
		}
	}
	s.text = strings.Trim(s.text+stderr.String(), "\n")
	return s
}

func (x *weather) setup(args ...string) sight {
	return x.relaypki(append([]string{"setup", "-f", "mesh.yaml"}, args...)...)
}

// expect checks a sight: its exit code, so many problems in a list, and words
// that say what happened, where, and what to do.
func expect(t *testing.T, name string, s sight, code, problems int, words ...string) {
	t.Helper()
	if s.code != code {
		t.Errorf("%s: exit code %d, want %d:\n%s", name, s.code, code, s.text)
	}
	if n := strings.Count(s.text, "\n- "); n != problems {
		t.Errorf("%s: %d problems, want %d:\n%s", name, n, problems, s.text)
	}
	for _, word := range words {
		if !strings.Contains(s.text, word) {
			t.Errorf("%s: it does not say %q:\n%s", name, word, s.text)
		}
	}
}

// add puts a case into the report.
func (x *weather) add(name, made string, s sight, healed string) {
	x.rows = append(x.rows, row{group: x.group, name: name, made: made, seen: s, healed: healed})
}

// badInput goes through the command, and through the workflow as the UI starts it.
func (x *weather) badInput(t *testing.T) {
	c := x.w.temporal(t)
	long := strings.Repeat("a", 64)
	for _, bad := range []struct {
		name, input string
		words       []string
	}{
		{"an underscore in a name", "{mesh: demo, workloads: [{name: my_cluster}]}",
			[]string{`workloads[0].name: "my_cluster" has an underscore`, `write "my-cluster"`, "kubectl config rename-context"}},
		{"an empty name", `{mesh: "", workloads: [{name: ""}]}`, []string{"mesh: is missing", "workloads[0].name: is missing"}},
		{"no clusters", "{mesh: demo, workloads: []}", []string{"workloads: is empty; name at least one"}},
		{"a name that is there twice", "{mesh: demo, workloads: [{name: cluster1}, {name: cluster1}]}", []string{`workloads[1].name: "cluster1" is workloads[0] already`}},
		{"a name that is too long", "{mesh: demo, workloads: [{name: " + long + "}]}", []string{"is 64 characters long; at most 63 fit"}},
		{"a mistyped field", "{mesh: demo, workloads: [{name: cluster1}], rolout: {paralelism: 3}}", []string{`rolout: unknown field; did you mean "rollout"?`}},
		{"mistyped fields further in", "{mesh: demo, workloads: [{name: cluster1, contxt: x}], rollout: {paralelism: 3}}",
			[]string{`workloads[0].contxt: unknown field; did you mean "context"?`, `rollout.paralelism: unknown field; did you mean "parallelism"?`}},
		{"a field that is like no other", "{mesh: demo, workloads: [{name: cluster1}], verify: {telephone: 1}}", []string{"verify.telephone: unknown field; known here: every"}},
		{"a value of another type", "{mesh: demo, workloads: cluster1, rollout: {parallelism: many}}",
			[]string{`workloads: must be a list, not the text "cluster1"`, `rollout.parallelism: must be a whole number, not the text "many"`}},
		{"bad durations", "{mesh: demo, workloads: [{name: cluster1}], pki: {root: {ttl: 10 years}}, verify: {every: 15}, rollout: {retryFor: -5m}, certificates: {client: {duration: 2h, renewBefore: 3h}}}",
			[]string{`pki.root.ttl: "10 years" is not a duration; write it like "30m", "72h" or "30d"`, "verify.every: 15 is not a duration", "rollout.retryFor: -5m is not between",
				"certificates.client.renewBefore: 3h is not shorter than the duration, 2h"}},
	} {
		x.file(t, "bad.yaml", bad.input)
		seen := x.relaypki("setup", "-f", "bad.yaml")
		expect(t, bad.name, seen, 2, 0, append(bad.words, "nothing was started", "Next: correct bad.yaml")...)

		asJSON, err := yaml.YAMLToJSON([]byte(bad.input))
		if err != nil {
			t.Fatal(err)
		}
		run := x.w.start(t, c, procedure.SetupMesh, string(asJSON))
		err = run.Get(t.Context(), nil)
		for _, line := range strings.Split(seen.text, "\n") {
			if problem, ok := strings.CutPrefix(line, "  "); ok && (err == nil || !strings.Contains(err.Error(), problem)) {
				t.Errorf("%s: the command says %q, a workflow started in the UI does not: %v", bad.name, problem, err)
			}
		}
		if n := x.w.activities(t, c, run.GetID(), run.GetRunID()); n > 0 {
			t.Errorf("%s: %d activities ran before the input was refused", bad.name, n)
		}
		x.add(bad.name, "`"+strings.ReplaceAll(bad.input, long, "aaaa...")+"`", sight{strings.ReplaceAll(seen.text, long, "aaaa..."), seen.code},
			"started in the UI, it fails with the same problems before any activity runs")
	}
}

// elsewhere runs something with a worker of another site file, on a task queue
// of its own.
func (x *weather) elsewhere(t *testing.T, change func(*site.Config), run func(queue string)) {
	t.Helper()
	config, err := site.Load(filepath.Join(x.w.dir, "worker", "site.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	x.queues++
	config.TaskQueue = fmt.Sprintf("weather-%d", x.queues)
	config.Clusters = slices.Clone(config.Clusters)
	config.Vaults = slices.Clone(config.Vaults)
	config.Charts = slices.Clone(config.Charts)
	change(&config)
	wk := x.w.startWorkerAt(t, filepath.Join(repository, "bin", "relaypki-worker"), config)
	defer wk.kill()
	run(config.TaskQueue)
}

// configuration is what the worker's site file and kubeconfig may lack. Each is
// another worker; mended means run by the good one.
func (x *weather) configuration(t *testing.T) {
	x.elsewhere(t, func(c *site.Config) {
		for i := range c.Clusters {
			if c.Clusters[i].Name == "cluster2" {
				c.Clusters[i].Context = "cluster-two"
			}
		}
	}, func(queue string) {
		seen := x.setup("--task-queue", queue)
		expect(t, "context", seen, 1, 1, `cluster "cluster2"`, `context "cluster-two" does not exist`, "Correct the worker's kubeconfig", "nothing was changed", "relaypki setup -f mesh.yaml")
		x.add("a context that is not in the kubeconfig", "the site file says `context: cluster-two` of cluster2", seen, mended)
	})
	x.file(t, "other.yaml", "{mesh: demo, workloads: [{name: cluster1}, {name: cluster9}]}")
	seen := x.relaypki("setup", "-f", "other.yaml")
	expect(t, "cluster", seen, 1, 1, `cluster "cluster9" is not in this worker's site file; it has cluster1, cluster2, mgmt`)
	x.add("a cluster that is not in the site file", "", seen, mended)

	for _, credential := range []struct {
		name string
		user *api.AuthInfo
	}{
		{"token", &api.AuthInfo{Token: x.expiredToken(t)}},
		{"client certificate", x.expiredCertificate(t)},
	} {
		path := filepath.Join(x.dir, "kubeconfig")
		config := x.w.workerKubeconfig(t)
		config.AuthInfos[config.Contexts[management].AuthInfo] = credential.user
		if err := clientcmd.WriteToFile(*config, path); err != nil {
			t.Fatal(err)
		}
		x.elsewhere(t, func(c *site.Config) { c.Kubeconfig = path }, func(queue string) {
			seen := x.setup("--task-queue", queue)
			expect(t, credential.name, seen, 1, 1, "mgmt: ", "does not accept the worker's credential", "its "+credential.name+" expired at ", "Renew it in the worker's kubeconfig")
			x.add("an expired "+credential.name+" in the kubeconfig", "of the management cluster", seen, "renewed in the file, it is used at once: the worker need not be restarted")
			if credential.name == "token" {
				// Renewed in place, under the running worker; Vault is what is wrong now.
				if err := clientcmd.WriteToFile(*x.w.workerKubeconfig(t), path); err != nil {
					t.Fatal(err)
				}
				x.sealed(t, "--task-queue", queue)
			}
		})
	}
	x.elsewhere(t, func(c *site.Config) {
		c.Charts[slices.IndexFunc(c.Charts, named("gloo-platform"))].Path = filepath.Join(x.dir, "charts", "gloo")
	}, func(queue string) {
		seen := x.setup("--task-queue", queue)
		expect(t, "chart", seen, 1, 3, `chart "gloo-platform"`, "no such file or directory", "correct its path in the worker's site file")
		x.add("a chart that is not where the site file says", "", seen, mended)
	})
}

func named(name string) func(site.ChartConfig) bool {
	return func(c site.ChartConfig) bool { return c.Name == name }
}

// vault is how Vault may be in the way; the preflight finds it.
func (x *weather) vault(t *testing.T) {
	root := x.w.vault(t)
	seen := x.sealed(t)
	x.add("Vault is sealed", "`vault operator seal`", seen, mended)

	x.lab(t, "stop", "vault")
	seen = x.setup()
	expect(t, "down", seen, 1, 1, `vault default: Vault "default"`, "not reachable", "connection refused")
	x.add("Vault is down", "its process is stopped", seen, mended)
	x.lab(t, "start", "vault")
	x.vaultAnswers(t, root)

	policy := x.policy(t, root, "relaypki-onboard")
	x.putPolicy(t, root, strings.Replace(policy, "pki_relay/intermediate/set-signed", "elsewhere/set-signed", 1))
	seen = x.setup()
	expect(t, "403", seen, 1, 1, `identity "onboard" may not update pki_relay/intermediate/set-signed`, "deploy/vault/policies/onboard.hcl")
	x.add("Vault denies (403)", "the policy of the identity *onboard* lacks a path", seen, mended)
	x.putPolicy(t, root, policy)

	secretID := filepath.Join(x.dir, "secret-id")
	x.file(t, "secret-id", "00000000-0000-0000-0000-000000000000")
	x.elsewhere(t, func(c *site.Config) {
		logins := map[site.Identity]site.Login{}
		for identity, login := range c.Vaults[0].Identities {
			if identity == site.Operate {
				login.SecretIDFile = secretID
			}
			logins[identity] = login
		}
		c.Vaults[0].Identities = logins
	}, func(queue string) {
		seen := x.setup("--task-queue", queue)
		expect(t, "login", seen, 1, 1, `login of identity "operate" by approle refused`, "Check the role, the mount and the credential files")
		x.add("Vault refuses a login", "the secret id of the identity *operate* is not its own", seen, mended)
	})

	x.write(t, root, "sys/quotas/config", map[string]any{"enable_rate_limit_response_headers": true})
	x.write(t, root, "sys/quotas/rate-limit/weather", map[string]any{"path": "auth/token", "rate": 1, "interval": "1h"})
	_ = x.setup() // may use up the one that the hour allows
	seen = x.setup()
	expect(t, "429", seen, 1, 1, `Vault "default"`, "too many requests (429)", "vault list sys/quotas/rate-limit")
	x.add("Vault is asked too often (429), for an hour to come", "a rate limit quota of 1 request an hour, *Retry-After* says so", seen, mended)
	x.write(t, root, "sys/quotas/rate-limit/weather", map[string]any{"path": "", "rate": 5, "interval": "1s"})

	other := httptest.NewTLSServer(http.NotFoundHandler())
	defer other.Close()
	x.file(t, "other-ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate().Raw})))
	x.elsewhere(t, func(c *site.Config) { c.Vaults[0].CAFile = filepath.Join(x.dir, "other-ca.crt") }, func(queue string) {
		seen := x.setup("--task-queue", queue)
		expect(t, "CA", seen, 1, 1, "TLS: ", "certificate signed by unknown authority", "Check caFile and address of this Vault in the site file")
		x.add("another CA than Vault's", "the site file's `caFile` is another one", seen, mended)
	})

	x.must(t, root.Sys().Mount("pki", &vaultapi.MountInput{Type: "kv"}))
	waited := x.workerLog(t)
	seen = x.setup()
	expect(t, "mount", seen, 1, 1, "the mount pki is there and is of type \"kv\", not pki", "Name another mount in the input")
	x.add("a mount of another type at our path", "`vault secrets enable -path=pki kv`", seen, mended)
	if log := x.workerLog(t)[len(waited):]; !strings.Contains(log, "Vault is asked too often (429); waiting") {
		t.Errorf("the quota of 5 requests a second was never met")
	}
	x.add("Vault is asked too often (429), for a moment", "a quota of 5 requests a second, during the row above", sight{"nothing: the worker waits as long as *Retry-After* says, sends the request again, and notes that in its log", -1}, "")
	_, err := root.Logical().Delete("sys/quotas/rate-limit/weather")
	x.must(t, err)
	x.must(t, root.Sys().Unmount("pki"))

	x.must(t, root.Sys().Mount("pki", &vaultapi.MountInput{Type: "pki", Config: vaultapi.MountConfigInput{MaxLeaseTTL: "200000h"}}))
	x.write(t, root, "pki/root/generate/internal", map[string]any{"common_name": "Somebody Else", "ttl": "1000h", "issuer_name": "theirs", "key_type": "ec"})
	seen = x.setup()
	expect(t, "root", seen, 1, 1, "the mount pki has a CA that is not ours", "theirs", "Somebody Else")
	x.add("a foreign root in our mount", "`vault write pki/root/generate/internal ...`", seen, mended)
	x.must(t, root.Sys().Unmount("pki"))

	x.must(t, root.Sys().Mount("pki_relay", &vaultapi.MountInput{Type: "pki"}))
	x.write(t, root, "pki_relay/roles/gloo-mesh-mgmt-server-ca", map[string]any{"allowed_domains": []string{"theirs.example.com"}, "allow_subdomains": true})
	seen = x.setup()
	expect(t, "role", seen, 1, 1, "the role pki_relay/roles/gloo-mesh-mgmt-server-ca is there, made by somebody else", `allowed_domains is ["theirs.example.com"]`, "vault delete pki_relay/roles/gloo-mesh-mgmt-server-ca", "pki.role")
	x.add("a foreign role of our name", "`vault write pki_relay/roles/gloo-mesh-mgmt-server-ca allowed_domains=theirs.example.com ...`", seen, mended)
	x.must(t, root.Sys().Unmount("pki_relay"))
}

// sealed runs a setup while Vault is sealed.
func (x *weather) sealed(t *testing.T, args ...string) sight {
	t.Helper()
	root := x.w.vault(t)
	x.must(t, root.Sys().Seal())
	seen := x.setup(args...)
	expect(t, "sealed", seen, 1, 1, `vault default: Vault "default" at https://`, "is sealed", "`vault operator unseal` there", "nothing was changed")
	x.w.unseal(t)
	x.vaultAnswers(t, root)
	return seen
}

func (x *weather) vaultAnswers(t *testing.T, root *vaultapi.Client) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		_, err := root.Logical().Read("sys/auth")
		return err
	})
}

// clusters is what the preflight finds in clusters, and that it has not changed
// anything anywhere so far.
func (x *weather) clusters(t *testing.T) {
	kube := x.w.cluster(t, management).kube
	roles := kube.RbacV1().Roles("gloo-mesh")
	role, err := roles.Get(t.Context(), "relaypki-worker", metav1.GetOptions{})
	x.must(t, err)
	lesser := role.DeepCopy()
	lesser.Rules = slices.DeleteFunc(lesser.Rules, func(r rbacv1.PolicyRule) bool { return slices.Contains(r.Resources, "leases") })
	_, err = roles.Update(t.Context(), lesser, metav1.UpdateOptions{})
	x.must(t, err)
	seen := x.setup()
	expect(t, "RBAC", seen, 1, 4, `cluster "mgmt": the worker may not create leases.coordination.k8s.io in namespace gloo-mesh`, "may not delete leases", "apply the manifest of deploy/rbac there")
	x.add("RBAC is missing", "the rule for Leases is taken out of the worker's Role", seen, "after `kubectl apply -f deploy/rbac/management.yaml`, "+mended)
	x.w.sh(t, "kubectl --context mgmt apply --server-side --force-conflicts -f deploy/rbac/management.yaml")

	x.file(t, "never.yaml", "{mesh: demo, workloads: [{name: cluster1}, {name: cluster2}], certManager: {install: never}}")
	seen = x.relaypki("setup", "-f", "never.yaml")
	expect(t, "absent", seen, 1, 3, `cluster "cluster1": there is no cert-manager and certManager.install is "never"`, `install it, or set "auto"`)
	x.add("cert-manager is absent", "and `certManager: {install: never}`", seen, "with `auto` it is installed")

	x.w.sh(t, "kubectl --context cluster1 -n cert-manager create deployment cert-manager --image quay.io/jetstack/cert-manager-controller:v1.11.5")
	seen = x.setup()
	expect(t, "too old", seen, 1, 1, `cluster "cluster1": cert-manager v1.11.5 is too old`, "upgrade it")
	x.add("cert-manager is too old", "a Deployment of v1.11.5 is there", seen, mended)
	x.w.sh(t, "kubectl --context cluster1 -n cert-manager delete deployment cert-manager --wait")

	x.lab(t, "stop", "mgmt-apiserver")
	seen = x.setup()
	expect(t, "down", seen, 1, 1, `cluster "mgmt": cannot ask its version: its API server does not answer`, "connection refused", "check the context's address")
	x.add("the management cluster is down", "its API server is stopped", seen, mended)
	x.lab(t, "start", "mgmt-apiserver")
	x.labIsUp(t)

	for _, c := range x.w.all() {
		if written := workerWrites(auditLines(t, after(t, x.w.auditLog(c), 0))); len(written) > 0 {
			t.Errorf("so far nothing was to be touched, and the worker wrote in %s: %s", c, strings.Join(written, ", "))
		}
	}
	for _, r := range auditLines(t, after(t, x.w.auditLog("vault"), 0)) {
		auth, _ := r["auth"].(map[string]any)
		if written := vaultWrites([]map[string]any{r}); auth["display_name"] == "approle" && len(written) > 0 {
			t.Errorf("so far nothing was to be touched, and the worker wrote in Vault: %s", written[0])
		}
	}
}

// firstSetup is what happens in the midst of a first setup.
func (x *weather) firstSetup(t *testing.T) {
	index := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{apiVersion: v1, entries: {cert-manager: [{apiVersion: v2, name: cert-manager, version: v1.0.0, urls: [cert-manager-v1.0.0.tgz]}]}}`)
	}))
	defer index.Close()
	x.elsewhere(t, func(c *site.Config) {
		c.Charts[slices.IndexFunc(c.Charts, named("cert-manager"))] = site.ChartConfig{Name: "cert-manager", Repo: index.URL, Chart: "cert-manager", Version: "v1.99.0"}
	}, func(queue string) {
		seen := x.setup("--task-queue", queue)
		expect(t, "chart", seen, 1, 0, `chart "cert-manager": there is no cert-manager of http://`, "in version v1.99.0", "the worker's site file")
		x.add("a chart that is not in its repository", "the site file asks a Helm repository for v1.99.0, which has v1.0.0", seen, mended+"; the CAs that were made are used")
	})

	// Two people in the same second, and then a kill inside Helm's install.
	c := x.w.temporal(t)
	pending, err := x.w.cluster(t, management).kube.CoreV1().Secrets("cert-manager").Watch(t.Context(), metav1.ListOptions{LabelSelector: "owner=helm,status=pending-install"})
	x.must(t, err)
	defer pending.Stop()
	asJSON, err := yaml.YAMLToJSON([]byte(goodMesh))
	x.must(t, err)
	one, two := x.w.start(t, c, procedure.SetupMesh, string(asJSON)), x.w.start(t, c, procedure.SetupMesh, string(asJSON))
	select {
	case <-pending.ResultChan():
		x.worker.kill()
	case <-time.After(2 * time.Minute):
		t.Fatal("no Helm release is pending after two minutes")
	}
	left, err := x.w.cluster(t, management).kube.CoreV1().Secrets("cert-manager").List(t.Context(), metav1.ListOptions{LabelSelector: "owner=helm,status=pending-install"})
	x.must(t, err)
	if len(left.Items) != 1 {
		t.Fatalf("the worker was killed inside an install, and %d releases are pending", len(left.Items))
	}
	x.worker.start()
	said := ""
	eventually(t, time.Minute, func() error {
		for _, id := range []string{one.GetID(), two.GetID()} {
			if said = lastFailure(t, c, id, "pending-install"); said != "" {
				return nil
			}
		}
		return fmt.Errorf("no activity says that the release is pending")
	})
	results := map[bool][]sight{}
	for _, run := range []client.WorkflowRun{one, two} {
		seen := x.relaypki("watch", run.GetID())
		results[seen.code == 0] = append(results[seen.code == 0], seen)
	}
	if len(results[true]) != 1 || len(results[false]) != 1 {
		t.Fatalf("of two people one is to succeed: %+v", results)
	}
	loser := results[false][0]
	expect(t, "two people", loser, 1, 0, "is held by workflow", "which is running. Wait for it, or end it, and run this again")
	x.add("two people start the same in the same second", "SetupMesh twice in the UI; this is the second of them, with `relaypki watch`", loser, "the first run is not disturbed")
	x.add("a Helm release left pending by a kill", "the worker is killed with SIGKILL inside Helm's install of cert-manager; this is the activity's last failure in the UI", sight{said, -1},
		"the same run goes on by itself: "+results[true][0].text)
}

// lastFailure is that of a pending activity, if it has the word.
func lastFailure(t *testing.T, c client.Client, id, word string) string {
	t.Helper()
	d, err := c.DescribeWorkflowExecution(t.Context(), id, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range d.GetPendingActivities() {
		if message := a.GetLastFailure().GetMessage(); strings.Contains(message, word) {
			return message
		}
	}
	return ""
}

// meshThatIsSetUp is what happens to a mesh later.
func (x *weather) meshThatIsSetUp(t *testing.T) {
	x.file(t, "mesh.yaml", hastyMesh)
	x.twoPeople(t)
	x.loadBalancer(t)
	x.parked(t)
	x.temporalAway(t)
}

// loadBalancer is the management server's, which gets its address from the lab's
// balancer as the annotation says.
func (x *weather) loadBalancer(t *testing.T) {
	const service = "kubectl --context mgmt -n gloo-mesh annotate --overwrite service gloo-mesh-mgmt-server relaypki-lab/load-balancer"
	ingress := func(want string) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			s, err := x.w.cluster(t, management).kube.CoreV1().Services("gloo-mesh").Get(t.Context(), "gloo-mesh-mgmt-server", metav1.GetOptions{})
			if got := fmt.Sprint(s.Status.LoadBalancer.Ingress); err != nil || !strings.Contains(got, want) || want == "" && len(s.Status.LoadBalancer.Ingress) > 0 {
				return fmt.Errorf("the Service has %s (%v), want %q", got, err, want)
			}
			return nil
		})
	}
	x.w.sh(t, service+"=pending")
	ingress("")
	seen := x.setup()
	expect(t, "no address", seen, 1, 0, `cluster "mgmt": Service gloo-mesh/gloo-mesh-mgmt-server has no address yet`, "gloo.relayAddress")
	x.add("no load-balancer address in time", "with `rollout: {retryFor: 12s}`", seen, mended)
	for _, kind := range []struct{ name, value, ingress, address string }{
		{"the load balancer has a host name, no IP", "hostname", "localhost", "localhost:9900"},
		{"the load balancer has an IPv6 address", "ipv6", "::1", "[::1]:9900"},
	} {
		x.w.sh(t, service+"="+kind.value)
		ingress(kind.ingress)
		cmd, stdout, stderr := x.command("setup", "-f", "mesh.yaml")
		x.must(t, ignoreExit(cmd.Run()))
		seen := ending(cmd, stdout, stderr)
		expect(t, kind.name, seen, 0, 0, "Mesh demo is set up.")
		if args := x.w.sh(t, "kubectl --context cluster1 -n gloo-mesh get deployment gloo-mesh-agent -o yaml"); !strings.Contains(args, kind.address) {
			t.Errorf("%s: the agent was not given %s:\n%s", kind.name, kind.address, args)
		}
		x.add(kind.name, "", sight{lineWith(stdout.String(), "relay address") + "\n" + seen.text, seen.code}, "the agents are connected there, and verified")
	}
	x.w.sh(t, strings.TrimSuffix(service, "relaypki-lab/load-balancer")+"relaypki-lab/load-balancer-")
	ingress("127.")
	x.must(t, x.quiet(t))
}

// lineWith is the last line that has the words, without what comes before them.
func lineWith(text, words string) string {
	found := ""
	for _, line := range strings.Split(text, "\n") {
		if at := strings.Index(line, words); at >= 0 {
			found = line[at:]
		}
	}
	return found
}

// parked are the cases of single clusters: each is parked with its reason, the
// other is not held up, and relaypki retry finishes the run.
func (x *weather) parked(t *testing.T) {
	root := x.w.vault(t)
	v2 := x.w.cluster(t, "cluster2")
	const webhook = "kubectl --context cluster1 patch validatingwebhookconfiguration cert-manager-webhook --type=json -p "
	url := x.w.sh(t, "kubectl --context cluster1 get validatingwebhookconfiguration cert-manager-webhook -o jsonpath='{.webhooks[0].clientConfig.url}'")
	toURL := func(url string) {
		x.w.sh(t, webhook+fmt.Sprintf(`'[{"op":"replace","path":"/webhooks/0/clientConfig/url","value":%q}]'`, url))
	}
	issuer, err := root.Logical().Read("pki_relay/issuer/relay-intermediate-g1")
	x.must(t, err)
	usage := func(usage any) {
		_, err := root.Logical().JSONMergePatch(t.Context(), "pki_relay/issuer/relay-intermediate-g1", map[string]any{"usage": usage})
		x.must(t, err)
	}
	forget := func(c clients) {
		x.must(t, c.cm.CertmanagerV1().Certificates("gloo-mesh").Delete(t.Context(), "relay-client-tls", metav1.DeleteOptions{}))
		x.must(t, c.kube.CoreV1().Secrets("gloo-mesh").Delete(t.Context(), "relay-client-tls-secret", metav1.DeleteOptions{}))
	}
	const label = " app.kubernetes.io/managed-by"
	const foreignSecret = "kubectl --context cluster1 -n gloo-mesh label secret relay-root-tls-secret" + label
	const foreignCertificate = "kubectl --context cluster1 -n gloo-mesh label certificate relay-client-tls" + label

	toURL("https://127.0.0.1:1/validate")
	usage("read-only,crl-signing")
	forget(v2)
	// Long enough at work for the other procedure to come upon its lock.
	x.file(t, "mesh.yaml", strings.Replace(hastyMesh, "12s", "20s", 1))
	setup, out, errOut := x.command("setup", "-f", "mesh.yaml")
	x.must(t, setup.Start())
	x.otherProcedure(t)
	x.must(t, ignoreExit(setup.Wait()))
	x.file(t, "mesh.yaml", hastyMesh)
	seen := ending(setup, out, errOut)
	x.addParked(t, seen, "cluster1", "cert-manager's webhook does not answer", "its ValidatingWebhookConfiguration leads nowhere", `failed calling webhook "webhook.cert-manager.io"`, "connection refused")
	x.addParked(t, seen, "cluster2", "a certificate that never becomes Ready", "in Vault, the intermediate may no longer sign (`usage=read-only,crl-signing`)",
		"Certificate gloo-mesh/relay-client-tls is", "issuing-certificates")
	toURL(url)
	usage(issuer.Data["usage"])
	x.retry(t)

	x.w.sh(t, foreignCertificate+"-")
	forget(v2)
	x.w.sh(t, "kubectl --context cluster2 -n gloo-mesh create secret generic relay-client-tls-secret --from-literal=theirs=precious")
	seen = x.setup()
	x.addParked(t, seen, "cluster1", "a foreign Certificate of our name", "", "Certificate gloo-mesh/relay-client-tls is there and is not relaypki's", "left as it is", "Delete or rename it and run this again, or have relaypki take it over: relaypki adopt -f mesh.yaml")
	x.addParked(t, seen, "cluster2", "a foreign Secret where the certificate is to be stored", "", "Secret gloo-mesh/relay-client-tls-secret is there and was not issued for", "left as it is", "Delete or rename it, or")
	theirs, err := v2.kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), "relay-client-tls-secret", metav1.GetOptions{})
	if err != nil || string(theirs.Data["theirs"]) != "precious" || len(theirs.Data) != 1 {
		t.Errorf("the foreign Secret was not left as it is: %v, %v", theirs, err)
	}
	x.w.sh(t, foreignCertificate+"=relaypki")
	x.w.sh(t, "kubectl --context cluster2 -n gloo-mesh delete secret relay-client-tls-secret")
	x.retry(t)

	x.w.sh(t, foreignSecret+"-")
	x.addParked(t, x.setup(), "cluster1", "a foreign Secret of our name", "", "Secret gloo-mesh/relay-root-tls-secret is there and is not relaypki's", "left as it is")
	x.w.sh(t, foreignSecret+"=relaypki")
	x.retry(t)

	x.lab(t, "stop", "cluster2-apiserver")
	forget(x.w.cluster(t, "cluster1"))
	x.addParked(t, x.setup(), "cluster2", "a workload cluster is down", "its API server is stopped", "its API server does not answer", "connection refused")
	if ready := x.w.sh(t, "kubectl --context cluster1 -n gloo-mesh get certificate relay-client-tls -o jsonpath='{.status.conditions[?(@.type==\"Ready\")].status}'"); ready != "True" {
		t.Errorf("the other cluster was not finished meanwhile: its certificate, which was gone, is Ready %q", ready)
	}
	x.lab(t, "start", "cluster2-apiserver")
	x.labIsUp(t)
	x.retry(t)
}

// otherProcedure starts AddCluster on a cluster that a setup is at work on.
func (x *weather) otherProcedure(t *testing.T) {
	t.Helper()
	leases := x.w.cluster(t, management).kube.CoordinationV1().Leases("gloo-mesh")
	eventually(t, time.Minute, func() error {
		_, err := leases.Get(t.Context(), "relaypki-demo-cluster-cluster1", metav1.GetOptions{})
		return err
	})
	c := x.w.temporal(t)
	run := x.w.start(t, c, procedure.RemoveCluster, `{"mesh":"demo","cluster":"cluster1"}`)
	seen := x.relaypki("watch", run.GetID())
	const name = "two people start different procedures in the same second"
	expect(t, name, seen, 1, 0, "Lease gloo-mesh/relaypki-demo-cluster-cluster1 is held by workflow \"setup-demo/cluster1\"", "which is running. Wait for it, or end it, and run this again")
	x.add(name, "`relaypki setup`, and RemoveCluster of a cluster that it is at work on; this is the second", seen, "the setup is not disturbed")
}

// addParked adds what is said of one parked cluster.
func (x *weather) addParked(t *testing.T, seen sight, cluster, name, made string, words ...string) {
	t.Helper()
	expect(t, name, seen, 5, 0, "workflow setup-demo waits for you", "relaypki retry demo", "relaypki skip demo")
	lines := strings.Split(seen.text, "\n")
	lines = slices.DeleteFunc(lines, func(line string) bool {
		return strings.Contains(line, " parked: ") && !strings.HasPrefix(line, "  "+cluster+" parked")
	})
	own := sight{strings.Join(lines, "\n"), seen.code}
	expect(t, name, own, 5, 0, append(words, cluster+" parked: ")...)
	healed := "`relaypki retry demo` finishes the run"
	if strings.Count(seen.text, " parked: ") == 1 {
		healed = "the other cluster is finished all the same; " + healed
	}
	x.add(name, made, own, healed)
}

// retry has what is parked tried again, and sees the run to its good end.
func (x *weather) retry(t *testing.T) {
	t.Helper()
	if seen := x.relaypki("retry", "demo"); seen.code != 0 {
		t.Fatalf("relaypki retry: exit code %d: %s", seen.code, seen.text)
	}
	seen := x.relaypki("watch", "setup-demo")
	expect(t, "after retry", seen, 0, 0, "Mesh demo ")
}

// twoPeople run the command in the same second, with the same input and then
// with different ones.
func (x *weather) twoPeople(t *testing.T) {
	x.file(t, "mine.yaml", "{mesh: demo, workloads: [{name: cluster1}, {name: cluster2}], rollout: {retryFor: 12s}, verify: {every: 30m}}")
	for _, files := range [][2]string{{"mesh.yaml", "mesh.yaml"}, {"mesh.yaml", "mine.yaml"}} {
		first, out1, err1 := x.command("setup", "-f", files[0])
		second, out2, err2 := x.command("setup", "-f", files[1])
		x.must(t, first.Start())
		x.must(t, second.Start())
		_, _ = first.Wait(), second.Wait()
		joined := ""
		for _, out := range []*bytes.Buffer{out1, err1, out2, err2} {
			for _, line := range strings.Split(out.String(), "\n") {
				if strings.Contains(line, "runs already") {
					joined = line
				}
			}
		}
		same := files[0] == files[1]
		want, name := "with this very input; showing that run", "two people run the same command in the same second"
		if !same {
			want, name = "with ANOTHER input than this one", "two people run the command with different input in the same second"
			joined = strings.ReplaceAll(strings.ReplaceAll(joined, "mine.yaml", "yours.yaml"), "mesh.yaml", "yours.yaml")
		}
		if first.ProcessState.ExitCode() != 0 || second.ProcessState.ExitCode() != 0 || !strings.Contains(joined, want) {
			t.Errorf("%s: exit codes %d and %d, and the second does not say %q:\n%s%s%s%s", name, first.ProcessState.ExitCode(), second.ProcessState.ExitCode(), want, out1, err1, out2, err2)
		}
		x.add(name, "this is the second of them", sight{joined, 0}, "both see the one run to its end")
	}
	x.must(t, x.quiet(t))
}

// quiet brings the mesh to what mesh.yaml says.
func (x *weather) quiet(t *testing.T) error {
	t.Helper()
	if seen := x.setup(); seen.code != 0 {
		return fmt.Errorf("exit code %d: %s", seen.code, seen.text)
	}
	return nil
}

// temporalAway stops Temporal for a minute while a run has work to do.
func (x *weather) temporalAway(t *testing.T) {
	x.w.sh(t, "kubectl --context cluster1 -n gloo-mesh delete deployment gloo-mesh-agent --wait")
	cmd, stdout, stderr := x.command("setup", "-f", "mesh.yaml")
	x.must(t, cmd.Start())
	c := x.w.temporal(t)
	eventually(t, time.Minute, func() error {
		answer, err := c.QueryWorkflow(t.Context(), "setup-demo", "", procedure.ProgressQuery)
		if err != nil {
			return err
		}
		var p procedure.Progress
		if err := answer.Get(&p); err != nil || len(p.Steps) < 2 || p.Ended {
			return fmt.Errorf("the run has not begun: %+v, %v", p, err)
		}
		return nil
	})
	x.lab(t, "stop", "temporal")
	<-time.After(time.Minute) // this is the weather, and nothing that is awaited
	x.lab(t, "start", "temporal")
	x.must(t, ignoreExit(cmd.Wait()))
	seen := ending(cmd, stdout, stderr)
	expect(t, "Temporal away", seen, 0, 0, "Mesh demo is set up.")
	notice := lineWith(stdout.String(), "Temporal does not answer; trying again")
	if notice == "" {
		t.Errorf("the command did not say that Temporal is away:\n%s", stdout)
	}
	x.add("Temporal is away for a minute", "its process is stopped in the midst of a run, and started again", sight{notice + "\n" + seen.text, seen.code}, "the same run went on, and so did the command and the worker")
}

func ignoreExit(err error) error {
	if _, ok := err.(*exec.ExitError); ok {
		return nil
	}
	return err
}

func (x *weather) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (x *weather) lab(t *testing.T, args ...string) {
	t.Helper()
	_, err := x.w.lab(args...)
	x.must(t, err)
}

// labIsUp waits until every part of the lab is ready.
func (x *weather) labIsUp(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		out, err := x.w.lab("status")
		if err != nil {
			return fmt.Errorf("%v\n%s", err, out)
		}
		return nil
	})
}

func (x *weather) write(t *testing.T, root *vaultapi.Client, path string, data map[string]any) {
	t.Helper()
	_, err := root.Logical().Write(path, data)
	x.must(t, err)
}

func (x *weather) policy(t *testing.T, root *vaultapi.Client, name string) string {
	t.Helper()
	text, err := root.Sys().GetPolicy(name)
	x.must(t, err)
	return text
}

func (x *weather) putPolicy(t *testing.T, root *vaultapi.Client, text string) {
	t.Helper()
	x.must(t, root.Sys().PutPolicy("relaypki-onboard", text))
}

func (x *weather) workerLog(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(x.w.dir, "logs", "worker.log"))
	x.must(t, err)
	return string(data)
}

// workerKubeconfig is the worker's kubeconfig in the lab.
func (w *world) workerKubeconfig(t *testing.T) *api.Config {
	t.Helper()
	config, err := clientcmd.LoadFromFile(filepath.Join(w.dir, "worker", "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// pem reads a PEM file of the management cluster's control plane.
func (x *weather) pem(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(x.w.dir, "clusters", management, "pki", name))
	x.must(t, err)
	block, _ := pem.Decode(data)
	return block.Bytes
}

func (x *weather) key(t *testing.T, name string) *ecdsa.PrivateKey {
	t.Helper()
	key, err := x509.ParseECPrivateKey(x.pem(t, name))
	x.must(t, err)
	return key
}

// expiredToken is a token of the worker's ServiceAccount that the management
// cluster has signed and that expired an hour ago.
func (x *weather) expiredToken(t *testing.T) string {
	t.Helper()
	kube := x.w.cluster(t, management).kube
	account, err := kube.CoreV1().ServiceAccounts("relaypki").Get(t.Context(), "relaypki-worker", metav1.GetOptions{})
	x.must(t, err)
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"iss": "https://kubernetes.default.svc." + management, "aud": []string{"https://kubernetes.default.svc." + management}, "sub": "system:serviceaccount:relaypki:relaypki-worker",
		"iat": now.Add(-2 * time.Hour).Unix(), "nbf": now.Add(-2 * time.Hour).Unix(), "exp": now.Add(-time.Hour).Unix(),
		"kubernetes.io": map[string]any{"namespace": "relaypki", "serviceaccount": map[string]any{"name": "relaypki-worker", "uid": account.UID}},
	})
	x.must(t, err)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: x.key(t, "serviceaccounts.key")}, nil)
	x.must(t, err)
	signed, err := signer.Sign(claims)
	x.must(t, err)
	token, err := signed.CompactSerialize()
	x.must(t, err)
	return token
}

// expiredCertificate is a client certificate of the management cluster's CA that
// expired an hour ago.
func (x *weather) expiredCertificate(t *testing.T) *api.AuthInfo {
	t.Helper()
	ca, err := x509.ParseCertificate(x.pem(t, "ca.crt"))
	x.must(t, err)
	key := x.key(t, "admin.key")
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "relaypki-worker"},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca, &key.PublicKey, x.key(t, "ca.key"))
	x.must(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	x.must(t, err)
	return &api.AuthInfo{
		ClientCertificateData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		ClientKeyData:         pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
	}
}
