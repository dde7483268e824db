package e2e

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"

	"github.com/relaypki/relaypki/internal/procedure"
)

var everywhere = flag.Bool("soak", false, "kill the worker at every boundary of a run, not at a sample of them")

// sampled is of how many boundaries one is in the sample.
const sampled = 24

// runSeed is what all that is random in a run of the tests comes from:
// RELAYPKI_SEED, to see that run again, or the time.
var runSeed = sync.OnceValues(func() (uint64, error) {
	text := os.Getenv("RELAYPKI_SEED")
	if text == "" {
		return uint64(time.Now().UnixNano()), nil
	}
	s, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("RELAYPKI_SEED: %w", err)
	}
	return s, nil
})

// drawn is a number that the run's seed gives to what has that name, and to nothing
// else.
func drawn(seed uint64, name string) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", seed, name))
	return binary.BigEndian.Uint64(sum[:])
}

// seed is what a test's random points come from. With the run's seed, which it logs, a
// test has the same points again, alone or with all others.
func seed(t *testing.T) uint64 {
	t.Helper()
	s, err := runSeed()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the same points and turns again: RELAYPKI_SEED=%d", s)
	return drawn(s, t.Name())
}

// turns are tests that are alike, and for which one run has not the time: by lot it takes
// those of one row, which all cost about the same. With -soak, or to record histories, it
// takes all.
var turns = [3][]string{
	{"TestRootRotationInBadWeather", "TestEmergencyTakesOver", "TestRotationHarness"},
	{"TestRotationInBadWeather", "TestRootRotationWithANewMember", "TestRootRotationHarness"},
	{"TestRootRotationsThereAndBack", "TestRootRotationWaitsForAMember", "TestRotationsThereAndBack", "TestEmergencyReissue"},
}

// turnOf is the row of that run.
func turnOf(seed uint64) uint64 { return drawn(seed, "turns") % uint64(len(turns)) }

// takesTurns skips the test if it is not its turn.
func takesTurns(t *testing.T) {
	t.Helper()
	s, err := runSeed()
	if err != nil {
		t.Fatal(err)
	}
	own := slices.IndexFunc(turns[:], func(row []string) bool { return slices.Contains(row, t.Name()) })
	if own < 0 {
		t.Fatalf("%s has no turn", t.Name())
	}
	if *everywhere || *record || turnOf(s) == uint64(own) {
		return
	}
	with := uint64(1)
	for turnOf(with) != uint64(own) {
		with++
	}
	t.Skipf("not its turn with RELAYPKI_SEED=%d, which takes %s; run it with RELAYPKI_SEED=%d, or all with make soak", s, strings.Join(turns[turnOf(s)], ", "), with)
}

// A worker killed with SIGKILL at the boundaries of one procedure in turn, before
// and after each activity and each write: the run completes, and nothing is there
// twice, or is left of what was taken away. A sample of a setup's boundaries, or
// with -soak all of them, and those of a removal and an addition.
func TestKilledWorker(t *testing.T) {
	w := labWorld(t, "cluster1", "cluster2")
	s := w.newSoak(t, seed(t), "")
	s.setup(t, example)
	s.covered(t, 50, 60)
	w.oneOfEach(t)
	w.noSecrets(t)
	if len(s.killedAt(t)) == 0 {
		t.Error("the worker was never killed: nothing was tried")
	}
	if !*everywhere {
		t.Log("a sample of a setup; make soak kills at every boundary, and in RemoveCluster and AddCluster too")
		return
	}

	s.begin(t, "remove-cluster2")
	s.start(t, procedure.RemoveCluster, `{"mesh":"demo","cluster":"cluster2"}`)
	s.run(t, nil)
	s.covered(t, 10, 15)
	without := *w
	without.clusters = []string{"cluster1"}
	without.oneOfEach(t)
	w.noneOf(t, "cluster2")

	s.begin(t, "add-cluster2")
	s.start(t, procedure.AddCluster, `{"mesh":"demo","workload":{"name":"cluster2"}}`)
	s.run(t, nil)
	s.covered(t, 20, 30)
	w.oneOfEach(t)
	w.noSecrets(t)
}

// noneOf fails the test if something of ours is left in a cluster that was
// removed.
func (w *world) noneOf(t *testing.T, cluster string) {
	t.Helper()
	c := w.cluster(t, cluster)
	for kind := range ours(cluster) {
		if left := w.objectsIn(t, c, kind); len(left) > 0 {
			t.Errorf("%s left in %s: %q", kind, cluster, left)
		}
	}
	for _, release := range helmReleases(t, c) {
		if release != "cert-manager" {
			t.Errorf("Helm release %s is left in %s", release, cluster)
		}
	}
}

// The same at the only step that makes what cannot be found again: tokens. One
// that was minted and not written is nobody's, so that each kill in between
// costs one, which ends with its period; nothing else does.
func TestKilledWorkerMintsTokens(t *testing.T) {
	w := labWorld(t, "cluster1")
	input := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(input, []byte("mesh: demo\nworkloads: [{name: cluster1}]\ncredential: {method: token}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := w.newSoak(t, 0, "IssueClusterToken")
	s.setup(t, input)
	s.covered(t, 2, 0)
	for _, c := range w.all() {
		name := "relaypki-demo-" + c
		between := map[int]bool{} // the processes that were killed with a token in hand
		for _, b := range s.killedAt(t) {
			minted := b.Side == "after" && strings.HasSuffix(b.Effect, "/auth/token/create/"+name)
			unwritten := b.Side == "before" && b.Server == c && strings.HasSuffix(b.Effect, "/secrets/vault-token")
			if minted || unwritten {
				between[b.Process] = true
			}
		}
		if got, want := w.tokens(t, "token-"+name), 1+len(between); got != want {
			t.Errorf("%d tokens of %s, want %d: one that is used, and one for each kill between mint and write", got, c, want)
		}
	}
	w.noSecrets(t)
}

// tokens counts the tokens of that display name in Vault.
func (w *world) tokens(t *testing.T, name string) int {
	t.Helper()
	v := w.vault(t)
	n := 0
	for _, accessor := range list(t, v, "auth/token/accessors") {
		secret, err := v.Auth().Token().LookupAccessor(accessor)
		if err != nil {
			continue // ended since
		}
		if secret.Data["display_name"] == name {
			n++
		}
	}
	return n
}

// setup runs a setup to its good end.
func (s *soak) setup(t *testing.T, input string) {
	t.Helper()
	s.begin(t, "setup-demo")
	if _, errOut, code := s.w.relaypki(t, "setup", "-f", input, "--detach"); code != 0 {
		t.Fatalf("relaypki setup --detach: exit code %d\n%s", code, errOut)
	}
	var result procedure.SetupResult
	s.run(t, &result)
	if result.Verification == nil || !result.Verification.Healthy {
		t.Errorf("the mesh is not healthy: %+v", result.Verification)
	}
}

// start starts a procedure with the text of its input.
func (s *soak) start(t *testing.T, name, input string) {
	t.Helper()
	if _, err := s.c.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{ID: s.id, TaskQueue: procedure.TaskQueue}, name, json.RawMessage(input)); err != nil {
		t.Fatal(err)
	}
}

// soak is a run whose worker is killed again and again.
type soak struct {
	w  *world
	c  client.Client
	id string // of the run's workflow
	// only is of which activities the boundaries are; empty for all.
	only string
	dir  string // of the boundaries at which the worker was killed
	// every is whether all boundaries are due.
	every   bool
	program string
	env     []string
	worker  *worker
	since   map[string]int64 // the audit logs' sizes at the beginning
}

// boundary is a point at which the worker was killed, as it says itself
// (worker/soak.go).
type boundary struct {
	Workflow, Activity, ID, Server, Effect, Side string
	Process                                      int
}

func (b boundary) String() string {
	text := b.Side
	if b.Effect != "" {
		text += " " + b.Effect
	}
	if b.Server != "" {
		text += " in " + b.Server
	}
	if b.Activity != "" {
		text += fmt.Sprintf(" %s (%s, %s)", b.Activity, b.Workflow, b.ID)
	}
	return text
}

// newSoak builds the worker that kills itself: at every boundary if activities
// are named, else at those that the seed gives.
func (w *world) newSoak(t *testing.T, points uint64, only string) *soak {
	t.Helper()
	s := &soak{w: w, c: w.temporal(t), only: only, dir: t.TempDir(), every: *everywhere || only != ""}
	oneIn, build := sampled, []string{"build", "-tags", "soak"}
	if s.every {
		oneIn = 1
	} else {
		build = append(build, "-race")
	}
	s.program = filepath.Join(t.TempDir(), "relaypki-worker")
	if out, err := run(nil, "go", append(build, "-o", s.program, "./worker")...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.env = []string{"RELAYPKI_SOAK_DIR=" + s.dir, "RELAYPKI_SOAK_ONLY=" + only,
		fmt.Sprintf("RELAYPKI_SEED=%d", points), fmt.Sprintf("RELAYPKI_SOAK_ONE_IN=%d", oneIn)}
	return s
}

// begin starts the worker for the run of that workflow.
func (s *soak) begin(t *testing.T, id string) {
	t.Helper()
	s.id, s.since = id, map[string]int64{}
	for _, part := range append(s.w.all(), "vault") {
		s.since[part] = size(t, s.w.auditLog(part))
	}
	s.worker = s.w.startWorker(t, s.program, append(slices.Clone(s.env), "RELAYPKI_SOAK_RUN="+id)...)
	t.Cleanup(s.worker.noRaces)
}

// patience is how long a worker may live without being killed or done: the
// longest that Helm is waited for, and then some.
const patience = 8 * time.Minute

// run starts the worker anew each time it has died, until the run has ended.
func (s *soak) run(t *testing.T, result any) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- s.c.GetWorkflow(t.Context(), s.id, "").Get(t.Context(), result) }()
	began, kills := time.Now(), 0
	for {
		exited := make(chan error, 1)
		go func(cmd *exec.Cmd) { exited <- cmd.Wait() }(s.worker.cmd)
		select {
		case err := <-ended:
			_ = s.worker.cmd.Process.Kill()
			<-exited
			if err != nil {
				t.Fatalf("after %d kills the run ended with: %v", kills, err)
			}
			t.Logf("%s completed after %d kills, in %s", s.id, kills, time.Since(began).Round(time.Second))
			return
		case err := <-exited:
			if status, ok := s.worker.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
				t.Fatalf("the worker ended by itself: %v; see %s", err, s.worker.log.Name())
			}
			kills++
			for _, b := range s.killedAt(t) {
				if b.Process == s.worker.cmd.Process.Pid {
					t.Logf("%6s kill %d: %s", time.Since(began).Round(time.Second), kills, b)
				}
			}
			s.worker.start()
		case <-time.After(patience):
			t.Fatalf("after %d kills: no end and no kill for %s; see %s", kills, patience, s.worker.log.Name())
		}
	}
}

func (s *soak) killedAt(t *testing.T) []boundary {
	t.Helper()
	files, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []boundary
	for _, file := range files {
		data, err := os.ReadFile(filepath.Join(s.dir, file.Name()))
		if err != nil {
			t.Fatal(err)
		}
		var b boundary
		if err := json.Unmarshal(data, &b); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		all = append(all, b)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].String() < all[j].String() })
	return all
}

// covered fails the test if a boundary of the run is not among those at which
// the worker was killed. The witnesses are others than the worker: the run's
// histories say which activities there were, the servers' audit logs what was
// written.
func (s *soak) covered(t *testing.T, leastActivities, leastWrites int) {
	t.Helper()
	if !s.every {
		return
	}
	killed := map[string]bool{} // what, without the details that a witness does not know
	for _, b := range s.killedAt(t) {
		what := b.Workflow + " " + b.Activity + " " + b.ID
		if b.Effect != "" {
			what = effect(b)
		}
		killed[what+" "+b.Side] = true
	}
	want := map[string]bool{}
	for _, x := range executions(t, s.c) {
		id := x.Execution.WorkflowId
		if id != s.id && !strings.HasPrefix(id, s.id+"/") {
			continue
		}
		h := history(t, s.c, id, x.Execution.RunId)
		for _, e := range h.Events {
			if a := e.GetActivityTaskScheduledEventAttributes(); a != nil && (s.only == "" || s.only == a.ActivityType.Name) {
				want[id+" "+a.ActivityType.Name+" "+a.ActivityId] = true
			}
		}
		if failed := count(h, enumspb.EVENT_TYPE_WORKFLOW_TASK_FAILED); failed > 0 {
			t.Errorf("workflow %s has %d failed workflow tasks", id, failed)
		}
	}
	activities := len(want)
	for _, c := range s.w.all() {
		if s.only != "" {
			break // the logs do not know of activities
		}
		for _, r := range auditLines(t, after(t, s.w.auditLog(c), s.since[c])) {
			if written := workerWrites([]map[string]any{r}); len(written) > 0 && landed(r) {
				if what := clusterEffect(t, c, r); what != "" {
					want[what] = true
				}
			}
		}
	}
	for _, r := range auditLines(t, after(t, s.w.auditLog("vault"), s.since["vault"])) {
		if what := vaultEffect(r); what != "" && s.only == "" {
			want["vault default "+what] = true
		}
	}
	var missing []string
	for what := range want {
		for _, side := range []string{"before", "after"} {
			if !killed[what+" "+side] {
				missing = append(missing, side+" "+what)
			}
		}
	}
	t.Logf("%d activities in the histories, %d kinds of writes in the audit logs", activities, len(want)-activities)
	if activities < leastActivities || len(want)-activities < leastWrites {
		t.Error("that is too little: the witnesses do not see what they should")
	}
	slices.Sort(missing)
	for _, what := range missing {
		t.Errorf("the worker was not killed %s", what)
	}
}

// effect is a boundary's write as an audit log has it, and where. It does not
// tell whether Helm or we delete, nor the states of a release; and of the objects
// of a chart, one of a kind in any cluster is as good as another.
func effect(b boundary) string {
	method, what, _ := strings.Cut(strings.TrimPrefix(b.Effect, "helm "), " ")
	helm := strings.HasPrefix(b.Effect, "helm ")
	switch {
	case strings.HasPrefix(b.Server, "vault "):
		return b.Server + " " + strings.TrimPrefix(what, "/v1/")
	case method == "DELETE" && strings.HasPrefix(what, "release "):
		return "DELETE secrets"
	case method == "DELETE" && helm:
		return "DELETE " + what
	case method == "DELETE":
		return "DELETE " + path.Base(path.Dir(what))
	case !helm:
		return b.Server + " " + method + " " + what
	case strings.HasPrefix(what, "release "):
		return b.Server + " " + method + " helm release"
	}
	kind, _, _ := strings.Cut(what, " of ")
	return method + " helm " + kind
}

// clusterEffect is the same of a line of a cluster's audit log.
func clusterEffect(t *testing.T, cluster string, r map[string]any) string {
	t.Helper()
	method, ok := map[string]string{"create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}[fmt.Sprint(r["verb"])]
	at, err := url.Parse(fmt.Sprint(r["requestURI"]))
	if err != nil || !ok {
		t.Fatalf("audit log: %v %v: %v", r["verb"], r["requestURI"], err)
	}
	object, _ := r["objectRef"].(map[string]any)
	kind, name := fmt.Sprint(object["resource"]), fmt.Sprint(object["name"])
	switch {
	case object["subresource"] == "token", strings.HasSuffix(kind, "reviews"):
		return "" // a login
	case method == "DELETE":
		return "DELETE " + kind
	case kind == "secrets" && strings.HasPrefix(name, "sh.helm.release.v1."):
		return cluster + " " + method + " helm release"
	case at.Query().Get("fieldManager") == "helm":
		return method + " helm " + kind
	}
	return cluster + " " + method + " " + at.Path
}

// landed says that the server has done what it was asked for.
func landed(r map[string]any) bool {
	status, _ := r["responseStatus"].(map[string]any)
	code, _ := status["code"].(float64)
	return code >= 200 && code < 300
}

// vaultEffect is the path of a write of the worker's that Vault has done.
func vaultEffect(r map[string]any) string {
	request, _ := r["request"].(map[string]any)
	auth, _ := r["auth"].(map[string]any)
	policies := fmt.Sprint(auth["policies"])
	ours := slices.ContainsFunc([]string{"onboard", "operate", "refresh"}, func(identity string) bool {
		return strings.Contains(policies, "relaypki-"+identity)
	})
	if r["type"] != "response" || r["error"] != nil || !ours {
		return ""
	}
	asked := map[string]any{"type": "request", "request": request}
	if len(vaultWrites([]map[string]any{asked})) == 0 {
		return ""
	}
	return fmt.Sprint(request["path"])
}

// progress counts the activities that a run and its children have completed,
// and says whether it has ended.
func progress(t *testing.T, c client.Client, id string) (int, bool) {
	t.Helper()
	done, ended := 0, false
	for _, x := range executions(t, c) {
		h := history(t, c, x.Execution.WorkflowId, x.Execution.RunId)
		done += count(h, enumspb.EVENT_TYPE_ACTIVITY_TASK_COMPLETED)
		if x.Execution.WorkflowId == id && x.Status != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING {
			ended = true
		}
	}
	return done, ended
}
