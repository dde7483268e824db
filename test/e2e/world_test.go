// Package e2e tests the whole on real servers: a lab is brought up, the real
// worker and the real command are run, and what came of it is read back with
// other credentials than the worker's, by other means than ours.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	cmclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned"
	vaultapi "github.com/hashicorp/vault/api"
	"go.temporal.io/sdk/client"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/relaypki/relaypki/internal/procedure"
)

const management = "mgmt"

// repository is the root of the source tree.
var repository = func() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}()

// world is a lab of the tests'.
type world struct {
	dir      string
	clusters []string          // the workload clusters
	env      map[string]string // of an operator, from .lab/env
}

// worlds are stopped when all tests have run.
var worlds struct {
	sync.Mutex
	started []*world
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, w := range worlds.started {
		if _, err := w.lab("clean"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// demo is the world that `make demo` has made, shared by the tests that only
// look at it or run things again. What make demo printed is in output.
var demo struct {
	once   sync.Once
	world  *world
	output string
	took   time.Duration
	err    error
}

func demoWorld(t *testing.T) *world {
	t.Helper()
	demo.once.Do(func() {
		w := newWorld("cluster1", "cluster2")
		start := time.Now()
		demo.output, demo.err = w.make("demo")
		demo.took = time.Since(start)
		demo.world = w
		if demo.err == nil {
			demo.err = w.readEnv()
		}
	})
	if demo.err != nil {
		t.Fatalf("make demo: %v", demo.err)
	}
	return demo.world
}

// built has built the programs, once for all tests.
var built = sync.OnceValues(func() (string, error) { return run(nil, "make", "-C", repository, "bin") })

// newWorld is a world that is not up yet.
func newWorld(clusters ...string) *world {
	dir, err := os.MkdirTemp("", "relaypki-e2e-")
	if err != nil {
		panic(err)
	}
	w := &world{dir: dir, clusters: clusters}
	worlds.Lock()
	defer worlds.Unlock()
	worlds.started = append(worlds.started, w)
	return w
}

// labWorld is a world with a lab alone: no worker, no mesh.
func labWorld(t *testing.T, clusters ...string) *world {
	t.Helper()
	return labWorldWith(t, nil, clusters...)
}

// labWorldWith is labWorld with options of `lab up`.
func labWorldWith(t *testing.T, options []string, clusters ...string) *world {
	t.Helper()
	w := newWorld(clusters...)
	if out, err := built(); err != nil {
		t.Fatalf("make bin: %v\n%s", err, out)
	}
	// Memory and cores are for the next test's.
	t.Cleanup(func() {
		if out, err := w.lab("clean"); err != nil {
			t.Errorf("lab clean: %v\n%s", err, out)
		}
	})
	if out, err := w.lab(append([]string{"up", "--clusters", strings.Join(clusters, " ")}, options...)...); err != nil {
		t.Fatalf("lab up: %v\n%s", err, out)
	}
	if err := w.readEnv(); err != nil {
		t.Fatal(err)
	}
	return w
}

// make runs a target of the Makefile against this world.
func (w *world) make(target string) (string, error) {
	return run(nil, "make", "-C", repository, target, "LAB="+w.dir, "CLUSTERS="+strings.Join(w.clusters, " "))
}

func (w *world) lab(args ...string) (string, error) {
	return run(nil, filepath.Join(repository, "bin", "lab"), append(args, "--dir", w.dir)...)
}

// readEnv reads .lab/env as a shell does.
func (w *world) readEnv() error {
	out, err := exec.Command("bash", "-c", `source "$1" && env -0`, "bash", filepath.Join(w.dir, "env")).Output()
	if err != nil {
		return fmt.Errorf("reading %s/env: %w", w.dir, err)
	}
	w.env = map[string]string{}
	for _, line := range strings.Split(string(out), "\x00") {
		if name, value, ok := strings.Cut(line, "="); ok {
			w.env[name] = value
		}
	}
	return nil
}

// run runs a program to its end and returns all that it printed.
func run(env map[string]string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = repository
	cmd.Env = os.Environ()
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out.String())
	}
	return out.String(), nil
}

// sh runs a line in a shell with the operator's environment, and fails the
// test if the line does.
func (w *world) sh(t *testing.T, line string) string {
	t.Helper()
	out, err := run(w.env, "bash", "-euo", "pipefail", "-c", line)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// relaypki runs the command and returns what it printed on standard output,
// and its exit code.
func (w *world) relaypki(t *testing.T, args ...string) (string, string, int) {
	t.Helper()
	cmd := exec.Command(filepath.Join(repository, "bin", "relaypki"), args...)
	cmd.Dir = repository
	cmd.Env = os.Environ()
	for k, v := range w.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// setup runs SetupMesh to its good end and returns its result.
func (w *world) setup(t *testing.T, file string) procedure.SetupResult {
	t.Helper()
	out, errOut, code := w.relaypki(t, "setup", "-f", file, "-o", "json")
	if code != 0 {
		t.Fatalf("relaypki setup: exit code %d\n%s\n%s", code, out, errOut)
	}
	return resultOf[procedure.SetupResult](t, out)
}

// resultOf is the result in what the command prints with -o json.
func resultOf[Result any](t *testing.T, out string) Result {
	t.Helper()
	var printed struct{ Result *Result }
	if err := json.Unmarshal([]byte(out), &printed); err != nil || printed.Result == nil {
		t.Fatalf("the command printed no result: %v\n%s", err, out)
	}
	return *printed.Result
}

// steps are those of one cluster's setup.
func steps(t *testing.T, c client.Client, of procedure.ClusterResult) []procedure.Step {
	t.Helper()
	var p procedure.Progress
	answer, err := c.QueryWorkflow(t.Context(), of.Workflow, "", procedure.ProgressQuery)
	if err == nil {
		err = answer.Get(&p)
	}
	if err != nil || len(p.Steps) == 0 {
		t.Fatalf("the steps of %q: %v, %d of them", of.Workflow, err, len(p.Steps))
	}
	return p.Steps
}

func (w *world) all() []string { return append([]string{management}, w.clusters...) }

// clients are an administrator's, not the worker's.
type clients struct {
	rest    *rest.Config
	kube    kubernetes.Interface
	dynamic dynamic.Interface
	cm      cmclient.Interface
}

func (w *world) cluster(t *testing.T, context string) clients {
	t.Helper()
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: w.env["KUBECONFIG"]},
		&clientcmd.ConfigOverrides{CurrentContext: context}).ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 200, 400
	return clients{
		rest:    config,
		kube:    kubernetes.NewForConfigOrDie(config),
		dynamic: dynamic.NewForConfigOrDie(config),
		cm:      cmclient.NewForConfigOrDie(config),
	}
}

func (w *world) vault(t *testing.T) *vaultapi.Client {
	t.Helper()
	config := vaultapi.DefaultConfig()
	config.Address = w.env["VAULT_ADDR"]
	if err := config.ConfigureTLS(&vaultapi.TLSConfig{CACert: w.env["VAULT_CACERT"]}); err != nil {
		t.Fatal(err)
	}
	c, err := vaultapi.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	c.SetToken(w.env["VAULT_TOKEN"])
	return c
}

func (w *world) temporal(t *testing.T) client.Client {
	t.Helper()
	c, err := client.Dial(client.Options{HostPort: w.env["TEMPORAL_ADDRESS"], Namespace: w.env["TEMPORAL_NAMESPACE"], Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// quiet is a logger for clients whose errors the tests see anyway.
type quiet struct{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}

// worker is a worker process of a test's own, to be killed.
type worker struct {
	t    *testing.T
	w    *world
	path string
	env  []string // over that of the lab's worker
	log  *os.File
	cmd  *exec.Cmd
}

// newWorker builds the worker with the race detector and starts it.
func (w *world) newWorker(t *testing.T) *worker {
	t.Helper()
	path := filepath.Join(t.TempDir(), "relaypki-worker")
	if out, err := run(nil, "go", "build", "-race", "-o", path, "./worker"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wk := w.startWorker(t, path)
	t.Cleanup(func() { wk.kill(); wk.noRaces() })
	return wk
}

// startWorker starts a worker program that is built already, with variables
// over those of the lab's worker.
func (w *world) startWorker(t *testing.T, path string, env ...string) *worker {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(w.dir, "logs", "worker.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	wk := &worker{t: t, w: w, path: path, env: env, log: log}
	wk.start()
	t.Cleanup(func() { wk.kill(); log.Close() })
	return wk
}

func (wk *worker) start() {
	wk.t.Helper()
	args := append([]string{"-c", `source "$1" && shift && exec env "$@"`, "bash", filepath.Join(wk.w.dir, "worker", "env")}, wk.env...)
	wk.cmd = exec.Command("bash", append(args, wk.path)...)
	wk.cmd.Stdout, wk.cmd.Stderr = wk.log, wk.log
	wk.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := wk.cmd.Start(); err != nil {
		wk.t.Fatal(err)
	}
}

// kill is SIGKILL: no good-bye to anybody.
func (wk *worker) kill() {
	_ = wk.cmd.Process.Kill()
	_ = wk.cmd.Wait()
}

// noRaces fails the test if the race detector has said something.
func (wk *worker) noRaces() {
	wk.t.Helper()
	data, err := os.ReadFile(wk.log.Name())
	if err != nil {
		wk.t.Fatal(err)
	}
	if i := bytes.Index(data, []byte("WARNING: DATA RACE")); i >= 0 {
		wk.t.Errorf("the race detector found:\n%s", data[i:min(i+4000, len(data))])
	}
}

// eventually asks until the condition holds, and says what it still lacked
// when the time is over.
func eventually(t *testing.T, within time.Duration, condition func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not within %s: %v", within, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
