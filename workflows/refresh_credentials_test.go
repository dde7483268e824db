package workflows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/notify"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// credentials scripts Vault's side of a refresh and notes what was done.
type credentials struct {
	record cluster.MeshRecord
	// lost, renewed and fails are by context; holders by workload.
	lost, holders map[string]string
	renewed       map[string]bool
	// superseded secret ids, and Issuers that do not become Ready, by context.
	superseded map[string]int
	unready    map[string]error
	fails      map[string]error
	unreadable map[string]error
	// unheard is why nobody can be told.
	unheard error
	// gone is the record once a refresh has begun.
	gone *cluster.MeshRecord

	// unproven are Issuers that are not let in by what they have now, by context.
	unproven map[string]error
	// locked are leases that somebody else holds; updates are sent to the run.
	locked  map[string]bool
	updates func(*testsuite.TestWorkflowEnvironment)

	mu       sync.Mutex
	minted   []string
	told     []string
	taken    []string
	renewals map[string]bool
	// locks counts those taken, less those given back.
	locks int
}

func (c *credentials) run(t *testing.T, scheduled bool, input string) *testsuite.TestWorkflowEnvironment {
	t.Helper()
	return c.runOf(t, procedure.RefreshCredentials, scheduled, input)
}

func (c *credentials) runOf(t *testing.T, name string, scheduled bool, input string) *testsuite.TestWorkflowEnvironment {
	t.Helper()
	o := &outside{record: c.record, fails: map[string]error{}}
	for context, err := range c.unreadable {
		o.fails["ReadServiceAccountKeys "+context] = err
	}
	env := newRun(t, o)
	for lease := range c.locked {
		o.fails["AcquireLock "+lease] = failure.Permanent(failure.Locked, "%s is held by remove-demo-b", lease)
	}
	if c.updates != nil {
		c.updates(env)
	}
	env.OnActivity(kubernetes.LockHolder, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.LockInput) (string, error) {
		return c.holders[in.Lease], nil
	})
	env.OnActivity(vaults.RefreshCredential, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.RefreshCredentialInput) (vault.RefreshCredentialResult, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.gone != nil {
			o.record = *c.gone
		}
		var out vault.RefreshCredentialResult
		if in.Spec.Credential.Method == mesh.CredentialJWT && !slices.Equal(in.KeysPEM, []string{"key of " + in.Context}) {
			return out, fmt.Errorf("cluster %s was given the keys %q", in.Context, in.KeysPEM)
		}
		if in.Renewal != "" {
			if c.renewals == nil {
				c.renewals = map[string]bool{}
			}
			c.renewals[in.Renewal] = true
			c.taken = append(c.taken, "renew "+in.Context)
			switch in.Spec.Credential.Method {
			case mesh.CredentialAppRole:
				out.SecretKey, out.Superseded = "secretId-2", 1
			case mesh.CredentialToken:
				out.Superseded = 1
			}
			out.Changed(procedure.Update, "credential", "as was asked for")
			return out, c.fails[in.Context]
		}
		if in.Mint {
			c.minted = append(c.minted, in.Context)
			out.Changed(procedure.Update, "Secret", c.lost[in.Context])
			return out, nil
		}
		out.Lost = c.lost[in.Context]
		if in.Spec.Credential.Method == mesh.CredentialAppRole && out.Lost == "" {
			out.SecretKey, out.Superseded = "secretId-2", c.superseded[in.Context]
		}
		if in.Spec.Credential.Method == mesh.CredentialToken && out.Lost == "" {
			out.Superseded = c.superseded[in.Context]
		}
		if c.renewed[in.Context] {
			out.Changed(procedure.Update, "keys", "rotated")
		}
		return out, c.fails[in.Context]
	})
	env.OnActivity(certManagers.UseSecretID, mock.Anything, mock.Anything).Return(func(_ context.Context, in certmanager.UseSecretIDInput) (procedure.Outcome, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.taken = append(c.taken, "use "+in.Context+" "+in.Key)
		return procedure.Outcome{}, c.unready[in.Context]
	})
	env.OnActivity(vaults.RetireSecretIDs, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.RetireSecretIDsInput) (procedure.Outcome, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.taken = append(c.taken, "retire "+in.Context+" "+in.Key)
		return procedure.Outcome{}, nil
	})
	note := func(what string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.taken = append(c.taken, what)
	}
	env.OnActivity(certManagers.ProveLogin, mock.Anything, mock.Anything).Return(func(_ context.Context, in certmanager.LoginInput) (procedure.Outcome, error) {
		note("prove " + in.Context)
		return procedure.Outcome{}, c.unproven[in.Context]
	})
	env.OnActivity(vaults.RetireClusterToken, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.RetireClusterTokenInput) (procedure.Outcome, error) {
		note("revoke " + in.Context)
		return procedure.Outcome{}, nil
	})
	env.OnActivity(certManagers.RenewReviewer, mock.Anything, mock.Anything).Return(func(_ context.Context, in certmanager.RenewReviewerInput) (procedure.Outcome, error) {
		note("reviewer " + in.Context)
		return procedure.Outcome{}, nil
	})
	env.OnActivity(vaults.ConfigureTokenReview, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.TokenReviewInput) (procedure.Outcome, error) {
		note(fmt.Sprintf("review %s %t %s", in.Context, in.Anew, in.Mode))
		return procedure.Outcome{}, nil
	})
	env.RegisterActivity(notifiers)
	env.OnActivity(notifiers.Notify, mock.Anything, mock.Anything).Return(func(_ context.Context, in notify.Input) (notify.Result, error) {
		c.told = append(c.told, in.Text)
		return notify.Result{Told: []string{"ops"}}, c.unheard
	})
	if scheduled {
		if err := env.SetTypedSearchAttributesOnStart(temporal.NewSearchAttributes(scheduledBy.ValueSet("relaypki-refresh-demo"))); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		for _, call := range o.calls {
			switch {
			case strings.HasPrefix(call, "AcquireLock"):
				c.locks++
			case strings.HasPrefix(call, "ReleaseLock"):
				c.locks--
			}
		}
	}()
	env.ExecuteWorkflow(name, json.RawMessage(input))
	return env
}

func recorded3(method string) cluster.MeshRecord {
	s := mesh.Spec{Mesh: "demo", Workloads: []mesh.Workload{{Name: "a", Context: "ctx-a"}, {Name: "b", Context: "ctx-b"}, {Name: "c", Context: "ctx-c"}}}
	s.Credential.Method = method
	return cluster.MeshRecord{Found: true, Complete: true, Spec: s.WithDefaults().Normal()}
}

const refreshDemo = `{"mesh":"demo"}`

func refreshStates(result procedure.RefreshResult) map[string]procedure.State {
	out := map[string]procedure.State{}
	for _, c := range result.Clusters {
		out[c.Cluster] = c.State
	}
	return out
}

func TestRefreshLeavesAloneWhatIsCurrent(t *testing.T) {
	c := &credentials{record: recorded3(mesh.CredentialJWT)}
	env := c.run(t, true, refreshDemo)
	var result procedure.RefreshResult
	if err := env.GetWorkflowResult(&result); err != nil || result.Changed || len(result.Clusters) > 0 || result.Count[procedure.UpToDate] != 4 {
		t.Errorf("%+v, %v", result, err)
	}
	if len(c.minted)+len(c.told) > 0 {
		t.Errorf("minted %q, told %q", c.minted, c.told)
	}
}

// One cluster cannot be read and another not be written: the others are
// refreshed, the run fails, and people are told once.
func TestRefreshFailures(t *testing.T) {
	for _, scheduled := range []bool{true, false} {
		c := &credentials{
			record:     recorded3(mesh.CredentialJWT),
			renewed:    map[string]bool{"ctx-c": true},
			unreadable: map[string]error{"ctx-a": failure.Permanent(failure.Denied, "may not get /openid/v1/jwks")},
			fails:      map[string]error{"ctx-b": failure.Permanent(failure.Denied, "may not update auth/relaypki-demo-ctx-b/config")},
		}
		env := c.run(t, scheduled, refreshDemo)
		err := env.GetWorkflowError()
		if failure.KindOf(err) != failure.Denied {
			t.Fatalf("the run ended with %v", err)
		}
		want := []string{"2 of 4 clusters", "a: may not get /openid/v1/jwks", "b: may not update auth/relaypki-demo-ctx-b/config"}
		for _, words := range want {
			if !strings.Contains(failure.Message(err), words) {
				t.Errorf("the failure does not say %q: %v", words, err)
			}
		}
		var app *temporal.ApplicationError
		var result procedure.RefreshResult
		if !errors.As(err, &app) || app.Details(&result) != nil || refreshStates(result)["a"] != procedure.Failed || refreshStates(result)["c"] != procedure.Changed || !result.Changed {
			t.Errorf("details %+v", result)
		}
		if !scheduled {
			if len(c.told) > 0 {
				t.Errorf("a person's own run told others: %q", c.told)
			}
			continue
		}
		if len(c.told) != 1 {
			t.Fatalf("told %q", c.told)
		}
		for _, words := range append(want, "RefreshCredentials of mesh demo failed", "Next: relaypki ") {
			if !strings.Contains(c.told[0], words) {
				t.Errorf("the message does not say %q: %s", words, c.told[0])
			}
		}
	}
}

// That nobody can be told does not hide what failed.
func TestUnheardFailure(t *testing.T) {
	c := &credentials{record: recorded3(mesh.CredentialToken), unheard: failure.Permanent(failure.Preflight, `webhook "ops": it answers 404`),
		fails: map[string]error{"mgmt": failure.Permanent(failure.Conflict, "another's token")}}
	env := c.run(t, true, refreshDemo)
	if err := env.GetWorkflowError(); failure.KindOf(err) != failure.Conflict || !strings.Contains(err.Error(), "mgmt: another's token") {
		t.Errorf("the run ended with %v", err)
	}
	var progress procedure.Progress
	value, err := env.QueryWorkflow(procedure.ProgressQuery)
	if err == nil {
		err = value.Get(&progress)
	}
	if err != nil || len(progress.Steps) != 1 || progress.Steps[0].State != procedure.Failed || !strings.Contains(progress.Steps[0].Detail, "it answers 404") {
		t.Errorf("steps %+v, %v", progress.Steps, err)
	}
}

// A lost credential is made anew, unless somebody is at work on the cluster; the
// mesh's own lock does not count for the management cluster.
func TestRefreshMakesAnewWhatIsLost(t *testing.T) {
	c := &credentials{record: recorded3(mesh.CredentialToken),
		lost:    map[string]string{"ctx-a": "its token has expired", "ctx-b": "its Secret is missing", "mgmt": "its token was revoked"},
		holders: map[string]string{"relaypki-demo-cluster-b": "remove-demo-b", "relaypki-demo-ca": "setup-demo"},
	}
	env := c.run(t, true, refreshDemo)
	var result procedure.RefreshResult
	if err := env.GetWorkflowResult(&result); err != nil {
		t.Fatal(err)
	}
	slices.Sort(c.minted)
	if !slices.Equal(c.minted, []string{"ctx-a", "mgmt"}) {
		t.Errorf("minted for %q", c.minted)
	}
	got := refreshStates(result)
	if got["a"] != procedure.Changed || got["mgmt"] != procedure.Changed || got["b"] != procedure.Skipped || len(got) != 3 {
		t.Errorf("%+v", result)
	}
	for _, cl := range result.Clusters {
		if cl.Cluster == "b" && (!strings.Contains(cl.Detail, "remove-demo-b") || !strings.Contains(cl.Detail, "its Secret is missing")) {
			t.Errorf("it is not said why b was left alone: %q", cl.Detail)
		}
	}
}

// A new secret id, or one that a killed run has left unused, is taken up, and
// the old one destroyed only when the Issuer works with the new.
func TestRefreshTakesUpSecretIDs(t *testing.T) {
	c := &credentials{record: recorded3(mesh.CredentialAppRole), renewed: map[string]bool{"ctx-a": true, "ctx-b": true}, superseded: map[string]int{"ctx-c": 1},
		unready: map[string]error{"ctx-b": failure.Permanent(failure.NotReady, "Issuer is not Ready: Code: 400")}}
	err := c.run(t, false, refreshDemo).GetWorkflowError()
	if failure.KindOf(err) != failure.NotReady || !strings.Contains(err.Error(), "1 of 4") || !strings.Contains(err.Error(), "b: Issuer is not Ready") {
		t.Errorf("the run ended with %v", err)
	}
	slices.Sort(c.taken)
	if want := []string{"retire ctx-a secretId-2", "retire ctx-c secretId-2", "use ctx-a secretId-2", "use ctx-b secretId-2", "use ctx-c secretId-2"}; !slices.Equal(c.taken, want) {
		t.Errorf("taken up %q, want %q", c.taken, want)
	}
}

// A cluster that leaves the mesh while the refresh is under way is no failure.
func TestRefreshOfAClusterThatLeaves(t *testing.T) {
	without := recorded3(mesh.CredentialJWT)
	without.Spec.Workloads = without.Spec.Workloads[:2]
	c := &credentials{record: recorded3(mesh.CredentialJWT), gone: &without,
		fails: map[string]error{"ctx-c": failure.Permanent(failure.Preflight, "no such mount")}}
	env := c.run(t, true, refreshDemo)
	var result procedure.RefreshResult
	if err := env.GetWorkflowResult(&result); err != nil || refreshStates(result)["c"] != procedure.Skipped {
		t.Errorf("%+v, %v", result, err)
	}
	c.gone = nil
	if err := c.run(t, true, refreshDemo).GetWorkflowError(); failure.KindOf(err) != failure.Preflight {
		t.Errorf("a member's failure: %v", err)
	}
}

// What a person mistypes is refused; what a schedule has stored is not.
func TestRefreshInput(t *testing.T) {
	const mistyped = `{"mesh":"demo","namespce":"x"}`
	c := &credentials{record: recorded3(mesh.CredentialJWT)}
	if err := c.run(t, false, mistyped).GetWorkflowError(); failure.KindOf(err) != failure.InvalidInput || !strings.Contains(err.Error(), `did you mean "namespace"?`) {
		t.Errorf("typed: %v", err)
	}
	if err := c.run(t, true, mistyped).GetWorkflowError(); err != nil {
		t.Errorf("of a schedule: %v", err)
	}
	if err := c.run(t, false, `{}`).GetWorkflowError(); failure.KindOf(err) != failure.InvalidInput {
		t.Errorf("no mesh: %v", err)
	}
	c = &credentials{}
	if err := c.run(t, true, refreshDemo).GetWorkflowError(); failure.KindOf(err) != failure.InvalidInput || len(c.told) != 1 {
		t.Errorf("no such mesh: %v, told %q", err, c.told)
	}
}

// However many clusters fail, the failure stays readable.
func TestRefreshOfManyFailures(t *testing.T) {
	record := recorded3(mesh.CredentialToken)
	fails := map[string]error{}
	for i := range 300 {
		name := fmt.Sprintf("w%d", i)
		record.Spec.Workloads = append(record.Spec.Workloads, mesh.Workload{Name: name})
		fails[name] = failure.Permanent(failure.Denied, "%s", strings.Repeat("why ", 1000))
	}
	c := &credentials{record: record, fails: fails}
	err := c.run(t, true, refreshDemo).GetWorkflowError()
	if len(failure.Message(err)) > 15000 || !strings.Contains(failure.Message(err), "and 280 more") || len(c.told) != 1 {
		t.Errorf("%d characters: %.300s", len(failure.Message(err)), failure.Message(err))
	}
	var app *temporal.ApplicationError
	var result procedure.RefreshResult
	if !errors.As(err, &app) || app.Details(&result) != nil || len(result.Clusters) != mostClusters || result.Count[procedure.Failed] != 300 {
		t.Errorf("%d clusters in the details, count %v", len(result.Clusters), result.Count)
	}
}

// A scheduled verification that finds something failing tells people too.
func TestVerificationTells(t *testing.T) {
	for _, scheduled := range []bool{true, false} {
		o := &outside{record: complete(), differs: map[string]bool{"VerifyCluster": true}}
		env := newRun(t, o)
		env.RegisterActivity(notifiers)
		var told []string
		env.OnActivity(notifiers.Notify, mock.Anything, mock.Anything).Return(func(_ context.Context, in notify.Input) (notify.Result, error) {
			told = append(told, in.Text)
			return notify.Result{}, nil
		})
		if scheduled {
			if err := env.SetTypedSearchAttributesOnStart(temporal.NewSearchAttributes(scheduledBy.ValueSet("relaypki-verify-demo"))); err != nil {
				t.Fatal(err)
			}
		}
		env.ExecuteWorkflow(VerifyMesh, procedure.VerifyInput{Mesh: "demo"})
		err := env.GetWorkflowError()
		var app *temporal.ApplicationError
		var result procedure.VerifyResult
		if failure.KindOf(err) != failure.Unhealthy || !errors.As(err, &app) || app.Details(&result) != nil || check.Healthy(result.Findings) {
			t.Errorf("the run ended with %v, details %+v", err, result)
		}
		switch {
		case !scheduled && len(told) > 0:
			t.Errorf("a person's own run told others: %q", told)
		case scheduled && (len(told) != 1 || !strings.Contains(told[0], "2 of 3 checks fail") || !strings.HasSuffix(told[0], "Next: relaypki verify demo")):
			t.Errorf("told %q", told)
		}
	}
}
