package workflows

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/helm"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// byHand scripts what somebody has set up by hand: each thing is there to be
// taken over until it is. Runs one after the other find what the last has left.
type byHand struct {
	outside
	taken []string
	// canceled is what the run is canceled in: the thing and the mode.
	canceled string
}

// madeByHand are the things to take over in the mesh of the tests, in their order.
var madeByHand = []string{"CAs",
	"objects mgmt", "gloo-platform-crds mgmt", "gloo-platform mgmt",
	"objects cluster1", "gloo-platform-crds cluster1", "gloo-platform cluster1",
	"objects cluster2", "gloo-platform-crds cluster2", "gloo-platform cluster2"}

func (h *byHand) run(t *testing.T, input string) *testsuite.TestWorkflowEnvironment {
	t.Helper()
	h.calls = nil
	env := newRun(t, &h.outside)
	adopt := func(thing string, mode procedure.Mode) (procedure.Outcome, error) {
		var out procedure.Outcome
		if err := h.fails[thing+" "+string(mode)]; err != nil {
			return out, err
		}
		if slices.Contains(h.taken, thing) {
			return out, nil
		}
		out.Changed(procedure.Update, thing, "")
		if mode == procedure.Apply {
			h.taken = append(h.taken, thing)
		}
		if h.canceled == thing+" "+string(mode) {
			env.CancelWorkflow() // last: a canceled run of these tests does not wait for us
		}
		return out, nil
	}
	env.OnActivity(vaults.AdoptAuthorities, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.AdoptAuthoritiesInput) (procedure.Outcome, error) {
		return adopt("CAs", in.Mode)
	})
	env.OnActivity(kubernetes.AdoptObjects, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.AdoptObjectsInput) (procedure.Outcome, error) {
		return adopt("objects "+in.Context, in.Mode)
	})
	env.OnActivity(charts.AdoptRelease, mock.Anything, mock.Anything).Return(func(_ context.Context, in helm.ChartInput) (procedure.Outcome, error) {
		return adopt(in.Release+" "+in.Context, in.Mode)
	})
	env.ExecuteWorkflow(procedure.AdoptMesh, json.RawMessage(input))
	return env
}

const adoptDemo = `{"mesh":"demo","workloads":[{"name":"cluster1"},{"name":"cluster2"}]}`

func planned(steps []procedure.Step) []string {
	var out []string
	for _, s := range steps {
		for _, c := range s.Changes {
			out = append(out, c.Object)
		}
	}
	return out
}

func TestAdoptionOnlyShows(t *testing.T) {
	h := &byHand{}
	env := h.run(t, strings.Replace(adoptDemo, "{", `{"plan":true,`, 1))
	var result procedure.AdoptResult
	if err := env.GetWorkflowResult(&result); err != nil || !result.Plan || !result.Changed {
		t.Errorf("result %+v, %v", result, err)
	}
	if shown := planned(result.Steps); !slices.Equal(shown, madeByHand) {
		t.Errorf("shown is %q, want %q", shown, madeByHand)
	}
	if len(h.taken) > 0 || len(h.writes()) > 0 {
		t.Errorf("a plan took over %q by %q", h.taken, h.writes())
	}
}

func TestAdoptionTakesOver(t *testing.T) {
	h := &byHand{}
	env := h.run(t, adoptDemo)
	var result procedure.AdoptResult
	if err := env.GetWorkflowResult(&result); err != nil || result.Plan || !result.Changed {
		t.Errorf("result %+v, %v", result, err)
	}
	if !slices.Equal(h.taken, madeByHand) {
		t.Errorf("taken over is %q, want %q", h.taken, madeByHand)
	}
	// Everything is looked at before the lock is taken, and written under the lock.
	if missing := inOrder(h.calls, "AdoptAuthorities  plan", "AdoptObjects mgmt plan", "AdoptObjects cluster2 plan", "AdoptRelease cluster2 plan",
		"AcquireLock mgmtrelaypki-demo-ca", "AdoptAuthorities  apply", "AdoptObjects mgmt apply", "AdoptRelease cluster2 apply", "ReleaseLock mgmtrelaypki-demo-ca"); missing != "" {
		t.Errorf("no %q in its place in %q", missing, h.calls)
	}
	if writes := h.writes(); !strings.HasPrefix(writes[0], "AcquireLock") {
		t.Errorf("something was taken over before the lock: %q", writes)
	}
	// What was only looked at is no step of the adoption.
	var names []string
	for _, s := range result.Steps {
		names = append(names, s.Name)
	}
	if want := []string{"lock", "Vault", "cluster mgmt", "cluster cluster1", "cluster cluster2"}; !slices.Equal(names, want) {
		t.Errorf("steps %q, want %q", names, want)
	}
	if err := h.run(t, adoptDemo).GetWorkflowResult(&result); err != nil || result.Changed || len(h.taken) != len(madeByHand) {
		t.Errorf("again: result %+v, %v, taken over %q", result, err, h.taken)
	}
}

// Gloo that is somebody else's stays theirs.
func TestAdoptionWithoutGloo(t *testing.T) {
	h := &byHand{}
	if err := h.run(t, strings.Replace(adoptDemo, "{", `{"gloo":{"install":false},`, 1)).GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"CAs", "objects mgmt", "objects cluster1", "objects cluster2"}; !slices.Equal(h.taken, want) {
		t.Errorf("taken over is %q, want %q", h.taken, want)
	}
}

func TestAdoptionFailures(t *testing.T) {
	conflicts := map[string]error{
		"CAs plan":                    failure.Permanent(failure.Conflict, "it has expired"),
		"objects mgmt plan":           failure.Permanent(failure.Conflict, "Issuer belongs to the mesh theirs"),
		"gloo-platform cluster2 plan": failure.Permanent(failure.Denied, "may not list secrets"),
	}
	everything := []string{"nothing was changed", "Vault: it has expired", "cluster mgmt: Issuer belongs to the mesh theirs", "cluster cluster2: may not list secrets"}
	for name, c := range map[string]struct {
		input string
		fails map[string]error
		kind  failure.Kind
		says  []string
		never []string
		// taken is how much was taken over, in the order of madeByHand.
		taken int
	}{
		"bad input": {`{"mesh":"demo","workloads":[{"name":"my_cluster"}],"dryrun":true}`, nil, failure.InvalidInput,
			[]string{"dryrun: unknown field", "has an underscore", "nothing was touched"}, []string{"DescribeTemporal"}, 0},
		"conflicts":             {adoptDemo, conflicts, failure.Preflight, everything, []string{"AcquireLock", "AdoptAuthorities  apply"}, 0},
		"conflicts, only shown": {strings.Replace(adoptDemo, "{", `{"plan":true,`, 1), conflicts, failure.Preflight, everything, []string{"AcquireLock"}, 0},
		"locked": {adoptDemo, map[string]error{"AcquireLock relaypki-demo-ca": failure.Permanent(failure.Locked, "held by setup-demo")}, failure.Locked,
			[]string{"held by setup-demo"}, []string{"AdoptAuthorities  apply", "ReleaseLock"}, 0},
		"in the midst": {adoptDemo, map[string]error{"gloo-platform cluster1 apply": failure.Permanent(failure.Denied, "may not update secrets")}, failure.Denied,
			[]string{"may not update secrets"}, []string{"AdoptObjects cluster2 apply"}, 6},
	} {
		t.Run(name, func(t *testing.T) {
			h := &byHand{outside: outside{fails: c.fails}}
			h.failed(t, h.run(t, c.input).GetWorkflowError(), c.kind, c.says, c.never)
			if locks, releases := h.count("AcquireLock"), h.count("ReleaseLock"); c.kind != failure.Locked && locks != releases {
				t.Errorf("%d locks were taken, %d given back", locks, releases)
			}
			if !slices.Equal(h.taken, madeByHand[:c.taken]) {
				t.Errorf("taken over is %q, want %q", h.taken, madeByHand[:c.taken])
			}
			// The second run, with that put right, takes over the rest, and nothing twice.
			h.fails = nil
			var result procedure.AdoptResult
			if err := h.run(t, adoptDemo).GetWorkflowResult(&result); err != nil || !result.Changed || !slices.Equal(h.taken, madeByHand) {
				t.Errorf("again: result %+v, %v, taken over %q", result, err, h.taken)
			}
		})
	}
}

// Canceled while something is taken over, the run takes over nothing more and
// gives the lock back; canceled while it looks, it has touched nothing.
func TestAdoptionCanceled(t *testing.T) {
	for in, c := range map[string]struct {
		taken int
		last  string
	}{"objects cluster1 plan": {0, "AdoptObjects cluster1 plan"}, "objects cluster1 apply": {5, "ReleaseLock mgmtrelaypki-demo-ca"}} {
		h := &byHand{canceled: in}
		env := h.run(t, adoptDemo)
		err := env.GetWorkflowError()
		var canceled *temporal.CanceledError
		if !errors.As(err, &canceled) {
			t.Errorf("canceled in %s it ended with %v", in, err)
		}
		if !slices.Equal(h.taken, madeByHand[:c.taken]) {
			t.Errorf("canceled in %s: taken over is %q, want %q", in, h.taken, madeByHand[:c.taken])
		}
		if last := h.calls[len(h.calls)-1]; last != c.last {
			t.Errorf("canceled in %s: the last call is %q, want %q", in, last, c.last)
		}
		if steps := query(t, env).Steps; steps[len(steps)-1].Name != "cluster cluster1" {
			t.Errorf("canceled in %s: the steps are %+v", in, steps)
		}
	}
}
