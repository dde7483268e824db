package workflows

import (
	"slices"
	"strings"
	"testing"

	"go.temporal.io/sdk/testsuite"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

func (c *credentials) rotate(t *testing.T, input string) *testsuite.TestWorkflowEnvironment {
	t.Helper()
	return c.runOf(t, procedure.RotateIssuerCredentials, false, input)
}

// Every method replaces what it has, cluster by cluster, proves it, and only then
// ends the old one; the canary is first, the management cluster last.
func TestRotateCredentials(t *testing.T) {
	each := func(steps ...string) []string {
		var all []string
		for _, context := range []string{"ctx-b", "ctx-a", "ctx-c", "mgmt"} {
			for _, step := range steps {
				all = append(all, strings.ReplaceAll(step, "X", context))
			}
		}
		return all
	}
	for method, want := range map[string][]string{
		mesh.CredentialJWT:        each("renew X", "prove X"),
		mesh.CredentialToken:      each("renew X", "prove X", "revoke X"),
		mesh.CredentialAppRole:    each("renew X", "use X secretId-2", "retire X secretId-2"),
		mesh.CredentialKubernetes: each("reviewer X", "review X true apply", "prove X"),
	} {
		c := &credentials{record: recorded3(method)}
		c.record.Spec.Rollout.Canary = []string{"b"}
		var result procedure.RefreshResult
		if err := c.rotate(t, refreshDemo).GetWorkflowResult(&result); err != nil {
			t.Errorf("%s: %v", method, err)
			continue
		}
		if c.locks != 0 {
			t.Errorf("%s: %d locks were not given back", method, c.locks)
		}
		if !slices.Equal(c.taken, want) {
			t.Errorf("%s: did %q,\nwant %q", method, c.taken, want)
		}
		if method != mesh.CredentialKubernetes && (!result.Changed || result.Count[procedure.Changed] != 4 || len(c.renewals) != 1) {
			t.Errorf("%s: %+v, renewals %v", method, result, c.renewals)
		}
	}
}

// What is nowhere stored is not made anew, but is proven.
func TestRotateDiscoveredKeys(t *testing.T) {
	c := &credentials{record: recorded3(mesh.CredentialJWT)}
	c.record.Spec.Credential.Keys = mesh.KeysDiscovery
	var result procedure.RefreshResult
	if err := c.rotate(t, refreshDemo).GetWorkflowResult(&result); err != nil || result.Changed || result.Count[procedure.UpToDate] != 4 {
		t.Errorf("%+v, %v", result, err)
	}
	if want := []string{"prove ctx-a", "prove ctx-b", "prove ctx-c", "prove mgmt"}; !slices.Equal(c.taken, want) {
		t.Errorf("did %q, want %q", c.taken, want)
	}
}

// A canary that is not let in by its new token keeps the old one, is parked, and
// holds all others.
func TestRotateCredentialsParks(t *testing.T) {
	c := &credentials{record: recorded3(mesh.CredentialToken), unproven: map[string]error{"ctx-a": failure.Permanent(failure.NotReady, "Issuer is not Ready: Code: 403")}}
	c.record.Spec.Rollout.Canary = []string{"a"}
	c.updates = func(env *testsuite.TestWorkflowEnvironment) {
		later(t, env, procedure.AbortUpdate, `{"reason":"enough"}`)
	}
	err := c.rotate(t, refreshDemo).GetWorkflowError()
	if failure.KindOf(err) != failure.Aborted || !strings.Contains(failure.Message(err), "a parked: Issuer is not Ready: Code: 403") {
		t.Errorf("the run ended with %v", err)
	}
	if want := []string{"renew ctx-a", "prove ctx-a"}; !slices.Equal(c.taken, want) {
		t.Errorf("did %q, want %q", c.taken, want)
	}
}

// A cluster that is being removed is not given a credential.
func TestRotateCredentialsOfALockedCluster(t *testing.T) {
	c := &credentials{record: recorded3(mesh.CredentialToken), locked: map[string]bool{"relaypki-demo-cluster-b": true}}
	c.updates = func(env *testsuite.TestWorkflowEnvironment) {
		later(t, env, procedure.SkipUpdate, `{"clusters":["b"],"reason":"on its way out"}`)
	}
	env := c.rotate(t, refreshDemo)
	if err := env.GetWorkflowError(); failure.KindOf(err) != failure.Incomplete || !strings.Contains(failure.Message(err), "b skipped: on its way out") {
		t.Errorf("the run ended with %v", err)
	}
	if slices.Contains(c.taken, "renew ctx-b") || !slices.Contains(c.taken, "revoke ctx-c") || !slices.Contains(c.taken, "revoke mgmt") {
		t.Errorf("did %q", c.taken)
	}
}

func TestRotateCredentialsOfSome(t *testing.T) {
	c := &credentials{record: recorded3(mesh.CredentialToken)}
	if err := c.rotate(t, `{"mesh":"demo","clusters":["c"]}`).GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"renew ctx-c", "prove ctx-c", "revoke ctx-c"}; !slices.Equal(c.taken, want) {
		t.Errorf("did %q, want %q", c.taken, want)
	}
	for input, words := range map[string]string{
		`{"mesh":"demo","clusters":["c","x"]}`: `clusters[1]: "x" is no member`,
		`{"mesh":"demo","cluster":["c"]}`:      `did you mean "clusters"?`,
		`{}`:                                   "mesh: is missing",
	} {
		c.taken = nil
		if err := c.rotate(t, input).GetWorkflowError(); failure.KindOf(err) != failure.InvalidInput || !strings.Contains(err.Error(), words) || len(c.taken) > 0 {
			t.Errorf("%s: %v, did %q", input, err, c.taken)
		}
	}
}

// A token that a run has replaced and not revoked is revoked by the next refresh.
func TestRefreshRevokesWhatWasLeft(t *testing.T) {
	c := &credentials{record: recorded3(mesh.CredentialToken), superseded: map[string]int{"ctx-b": 1}}
	if err := c.run(t, true, refreshDemo).GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"prove ctx-b", "revoke ctx-b"}; !slices.Equal(c.taken, want) {
		t.Errorf("did %q, want %q", c.taken, want)
	}
}
