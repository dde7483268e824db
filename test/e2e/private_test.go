package e2e

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// A cluster in a private network: its own worker has its credential and that of
// nothing else, the other worker has all but that, and the mesh is set up by
// the two of them. The load balancer has a name here instead of an address.
func TestPrivateCluster(t *testing.T) {
	w := labWorldWith(t, []string{"--lb-hostname", management}, "cluster1", "cluster2")
	shared, err := site.Load(filepath.Join(w.dir, "worker", "site.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	private := shared
	private.TaskQueue, private.Management, private.Vaults = "private", "", nil
	private.Kubeconfig = w.kubeconfigOf(t, "cluster2")
	for _, c := range shared.Clusters {
		if c.Name == "cluster2" {
			private.Clusters = []site.ClusterConfig{c}
		}
	}
	shared.Kubeconfig = w.kubeconfigOf(t, management, "cluster1")
	shared.Clusters = slices.Clone(shared.Clusters)
	for i := range shared.Clusters {
		if shared.Clusters[i].Name == "cluster2" {
			shared.Clusters[i].TaskQueue = "private"
		}
	}
	program := filepath.Join(repository, "bin", "relaypki-worker")
	w.startWorkerAt(t, program, shared)
	w.startWorkerAt(t, program, private)

	input := filepath.Join(t.TempDir(), "mesh.yaml")
	write := func(text string) {
		if err := os.WriteFile(input, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("{mesh: demo, workloads: [{name: cluster1}, {name: cluster2}], credential: {method: token}}")
	_, errOut, code := w.relaypki(t, "setup", "-f", input)
	for _, want := range []string{`cluster2: is served by the worker of task queue "private", which cannot mint its token`, "which does not reach the identity token", "nothing was changed"} {
		if code != 1 || !strings.Contains(errOut, want) {
			t.Errorf("exit code %d, and the failure does not say %q:\n%s", code, want, errOut)
		}
	}

	write("{mesh: demo, workloads: [{name: cluster1}, {name: cluster2}], gloo: {identityToken: {mode: none}}}")
	result := w.setup(t, input)
	if !result.Verification.Healthy {
		t.Errorf("the mesh is not healthy: %+v", result.Verification.Findings)
	}
	at := slices.IndexFunc(result.Steps, func(s procedure.Step) bool { return s.Name == "relay address" })
	if host, _, err := net.SplitHostPort(result.Steps[at].Detail); err != nil || net.ParseIP(host) != nil {
		t.Errorf("the agents' server address is %q, not a name", result.Steps[at].Detail)
	}
	status := map[string]check.Status{}
	for _, f := range result.Verification.Findings {
		if f.Check == check.Handshake || f.Check == check.AgentsConnected {
			status[f.Cluster+" "+f.Check] = f.Status
		}
	}
	// Its handshake cannot be tried from either side; the gauges can be read.
	for what, want := range map[string]check.Status{"cluster1 handshake": check.Pass, "cluster2 handshake": check.Warn, "cluster2 agents-connected": check.Pass} {
		if status[what] != want {
			t.Errorf("%s is %q, want %q", what, status[what], want)
		}
	}
	if again := w.setup(t, input); again.Changed {
		t.Errorf("the same setup again changed something: %+v", again)
	}
	w.noSecrets(t)
}

// kubeconfigOf is the worker's kubeconfig with these contexts and no credential
// of another.
func (w *world) kubeconfigOf(t *testing.T, contexts ...string) string {
	t.Helper()
	config, err := clientcmd.LoadFromFile(filepath.Join(w.dir, "worker", "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range config.Contexts {
		if !slices.Contains(contexts, name) {
			delete(config.Contexts, name)
			delete(config.Clusters, c.Cluster)
			delete(config.AuthInfos, c.AuthInfo)
		}
	}
	if len(config.Contexts) != len(contexts) || len(config.AuthInfos) != len(contexts) {
		t.Fatalf("the lab's kubeconfig has not one user for each of %v", contexts)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// startWorkerAt starts a worker with a site file of its own.
func (w *world) startWorkerAt(t *testing.T, program string, config site.Config) *worker {
	t.Helper()
	text, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "site.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return w.startWorker(t, program, "RELAYPKI_SITE="+path, "RELAYPKI_LISTEN=127.0.0.1:0")
}
