package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nexus-rpc/sdk-go/nexus"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// wrapping fails as an activity does that adds words to a permanent error.
type wrapping struct{ calls int }

func (w *wrapping) Fail(context.Context) error {
	w.calls++
	if w.calls > 1 {
		return nil
	}
	return fmt.Errorf("cluster1: %w", failure.Permanent(failure.Denied, "no right to write"))
}

func retrying(ctx workflow.Context) error {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: time.Minute,
		RetryPolicy:         &temporal.RetryPolicy{InitialInterval: time.Millisecond, MaximumAttempts: 3},
	})
	return workflow.ExecuteActivity(ctx, "Fail").Get(ctx, nil)
}

func TestWrappedPermanentErrorStaysPermanent(t *testing.T) {
	tests := []struct {
		name    string
		options worker.Options
		calls   int
	}{
		{"with this worker's options", settings{}.workerOptions(nil), 1},
		{"with the SDK's, which retries it", worker.Options{}, 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var suite testsuite.WorkflowTestSuite
			env := suite.NewTestWorkflowEnvironment()
			env.SetWorkerOptions(test.options)
			env.RegisterWorkflow(retrying)
			activities := &wrapping{}
			env.RegisterActivity(activities)
			env.ExecuteWorkflow(retrying)
			if activities.calls != test.calls {
				t.Errorf("the activity ran %d times, want %d", activities.calls, test.calls)
			}
			err := env.GetWorkflowError()
			if test.calls > 1 {
				if err != nil {
					t.Errorf("the second attempt should have ended well: %v", err)
				}
				return
			}
			if kind := failure.KindOf(err); kind != failure.Denied {
				t.Errorf("kind = %q, want %q (error: %v)", kind, failure.Denied, err)
			}
			if text := failure.Message(err); !strings.Contains(text, "cluster1") || !strings.Contains(text, "no right to write") {
				t.Errorf("message %q has lost words", text)
			}
		})
	}
}

// registry notes the names that are registered.
type registry struct {
	workflows, activities map[string]bool
}

func (r *registry) RegisterWorkflow(any) { panic("workflows are registered by name") }
func (r *registry) RegisterWorkflowWithOptions(_ any, o workflow.RegisterOptions) {
	r.workflows[o.Name] = true
}
func (r *registry) RegisterDynamicWorkflow(any, workflow.DynamicRegisterOptions) {}
func (r *registry) RegisterActivity(a any) {
	for m := range reflect.TypeOf(a).Methods() {
		if r.activities[m.Name] {
			panic("two activities are named " + m.Name)
		}
		r.activities[m.Name] = true
	}
}
func (r *registry) RegisterActivityWithOptions(any, activity.RegisterOptions)    {}
func (r *registry) RegisterDynamicActivity(any, activity.DynamicRegisterOptions) {}
func (r *registry) RegisterNexusService(*nexus.Service)                          {}

func TestEverythingIsRegistered(t *testing.T) {
	r := &registry{workflows: map[string]bool{}, activities: map[string]bool{}}
	register(r, &site.Clients{})
	for _, name := range []string{procedure.SetupMesh, procedure.SetupCluster, procedure.VerifyMesh} {
		if !r.workflows[name] {
			t.Errorf("workflow %s is not registered", name)
		}
	}
	for _, name := range []string{"EnablePKI", "EnsureNamespace", "ApplyIssuer", "InstallChart", "VerifyCluster", "DescribeTemporal"} {
		if !r.activities[name] {
			t.Errorf("activity %s is not registered", name)
		}
	}
}

func TestSettings(t *testing.T) {
	site := filepath.Join(t.TempDir(), "site.yaml")
	if err := os.WriteFile(site, []byte("clusters: [{name: mgmt}]\nvaults: []\ncharts: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TEMPORAL_CONFIG_FILE", filepath.Join(t.TempDir(), "none.toml"))
	tests := []struct {
		name string
		env  map[string]string
		want string // part of the error; empty for none
	}{
		{"complete", map[string]string{"RELAYPKI_SITE": site}, ""},
		{"no site", nil, "RELAYPKI_SITE"},
		{"site not there", map[string]string{"RELAYPKI_SITE": site + "x"}, "no such file"},
		{"half of versioning", map[string]string{"RELAYPKI_SITE": site, "TEMPORAL_DEPLOYMENT_NAME": "relaypki"}, "TEMPORAL_WORKER_BUILD_ID"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, err := loadSettings(func(name string) (string, bool) { v, ok := test.env[name]; return v, ok })
			switch {
			case test.want == "" && err != nil:
				t.Fatal(err)
			case test.want == "" && s.site.TaskQueue != procedure.TaskQueue:
				t.Errorf("task queue = %q", s.site.TaskQueue)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error = %v, want one about %s", err, test.want)
			}
		})
	}
}

func TestVersioningIsOptIn(t *testing.T) {
	if o := (settings{}).workerOptions(nil); o.DeploymentOptions.UseVersioning {
		t.Error("versioning is on without being asked for; such a worker runs nothing until it is made current")
	}
	o := settings{deployment: "relaypki", buildID: "v2"}.workerOptions(nil).DeploymentOptions
	if !o.UseVersioning || o.Version.DeploymentName != "relaypki" || o.Version.BuildID != "v2" {
		t.Errorf("deployment options = %+v", o)
	}
}

func TestLogger(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	var logger log.Logger = temporalLogger{zap.New(core, zap.AddCaller())}
	log.With(logger, "WorkflowID", "setup-demo").Warn("slow", "Error", errors.New("timeout"), "odd")
	entry := logs.All()[0]
	fields := entry.ContextMap()
	if fields["WorkflowID"] != "setup-demo" || fields["Error"] != "timeout" || fields["extra"] != "odd" {
		t.Errorf("fields = %v", fields)
	}
	if file := filepath.Base(entry.Caller.File); file != "worker_test.go" {
		t.Errorf("caller = %s, want this file", file)
	}
	log.Skip(logger, 1).Info("skipped")
	if file := filepath.Base(logs.All()[1].Caller.File); file == "worker_test.go" || file == "log.go" {
		t.Errorf("with one caller skipped, caller = %s", file)
	}
}

func TestReadiness(t *testing.T) {
	metrics, page, err := newMetrics(zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	metrics.WithTags(map[string]string{"task_queue": "relaypki"}).Counter("temporal_long_request").Inc(3)

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if _, err := serveHTTP(address, &status{}, page, zap.NewNop()); err == nil || !strings.Contains(err.Error(), "RELAYPKI_LISTEN") {
		t.Errorf("with the port taken, error = %v, want one that names RELAYPKI_LISTEN", err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	stop, err := serveHTTP(address, &status{}, page, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 503, "/metrics": 200} {
		response, err := http.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s before Temporal is connected: %d, want %d", path, response.StatusCode, want)
		}
	}
	recorder := httptest.NewRecorder()
	page.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if want := `temporal_long_request_total{task_queue="relaypki"} 3`; !strings.Contains(recorder.Body.String(), want) {
		t.Errorf("/metrics lacks %s", want)
	}
}

func TestConnectWaitsUntilTold(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	ctx, cancel := context.WithCancel(context.Background())
	// The first line that says it waits is the sign to stop it.
	logger := zap.New(core, zap.Hooks(func(zapcore.Entry) error { cancel(); return nil }))
	_, err := connect(ctx, client.Options{HostPort: "127.0.0.1:1"}, logger)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want that of the context", err)
	}
	if lines := logs.FilterMessageSnippet("waiting for Temporal at 127.0.0.1:1").Len(); lines != 1 {
		t.Errorf("%d lines say what is waited for, want 1", lines)
	}
}

// What a procedure says of certificates is on the page under its own name and labels.
func TestGaugesAreServed(t *testing.T) {
	handler, page, err := newMetrics(zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	handler.WithTags(map[string]string{"mesh": "demo", "cluster": "cluster1", "kind": "client-leaf", "standing": "at work"}).Gauge("relaypki_certificate_not_after_seconds").Update(1.8e9)
	answer := httptest.NewRecorder()
	page.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	const want = `relaypki_certificate_not_after_seconds{cluster="cluster1",kind="client-leaf",mesh="demo",standing="at work"} 1.8e+09`
	if !strings.Contains(answer.Body.String(), want) {
		t.Errorf("the page lacks %s", want)
	}
}
