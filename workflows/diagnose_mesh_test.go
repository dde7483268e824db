package workflows

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/relay"
	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// patient is a mesh that is diagnosed: what its looks find, in turn, by cluster. The
// last is found from then on.
type patient struct {
	*outside
	finds map[string][][]check.Finding
	// silent are clusters whose look ends with an error.
	silent map[string]error
	// asked is what a procedure that mends says of itself.
	asked temporalactivities.AskResult
}

// well is one check that passes.
func well(cluster string) []check.Finding {
	return []check.Finding{{Check: "handshake", Cluster: cluster, Status: check.Pass}}
}

func newPatient() *patient {
	p := &patient{outside: rotated(), finds: map[string][][]check.Finding{}, silent: map[string]error{}}
	turn := map[string]int{}
	p.looked = func(cluster string) ([]check.Finding, error) {
		noting.Lock()
		defer noting.Unlock()
		if err := p.silent[cluster]; err != nil {
			return nil, err
		}
		turns := p.finds[cluster]
		if len(turns) == 0 {
			return well(cluster), nil
		}
		nth := min(turn[cluster], len(turns)-1)
		turn[cluster]++
		return append(slices.Clone(turns[nth]), well(cluster)...), nil
	}
	return p
}

func found(name, cluster string, status check.Status, mend ...check.Mend) check.Finding {
	f := check.Finding{Check: name, Cluster: cluster, Status: status, Message: name + " is wrong", Remedy: "put it right", Evidence: []string{"as seen"}}
	if len(mend) > 0 {
		f.Mend = &mend[0]
	}
	return f
}

func (p *patient) run(t *testing.T, input string, people ...func(*testsuite.TestWorkflowEnvironment)) *testsuite.TestWorkflowEnvironment {
	t.Helper()
	env := newRun(t, p.outside)
	for _, act := range people {
		act(env)
	}
	env.OnActivity(temporals.AskProcedure, mock.Anything, mock.Anything).Return(func(context.Context, temporalactivities.AskInput) (temporalactivities.AskResult, error) {
		return p.asked, nil
	})
	env.ExecuteWorkflow(procedure.DiagnoseMesh, json.RawMessage(input))
	return env
}

func (p *patient) diagnose(t *testing.T, input string, people ...func(*testsuite.TestWorkflowEnvironment)) procedure.DiagnoseResult {
	t.Helper()
	var result procedure.DiagnoseResult
	if err := p.run(t, input, people...).GetWorkflowResult(&result); err != nil {
		t.Fatal(err)
	}
	return result
}

// inShort are findings in short.
func inShort(findings []check.Finding) string {
	var names []string
	for _, f := range findings {
		names = append(names, fmt.Sprintf("%s %s/%s", f.Status, f.Cluster, f.Check))
	}
	return strings.Join(names, ", ")
}

var (
	setUp    = check.Mend{Do: check.SetUp}
	reissue  = check.Mend{Do: check.Reissue}
	restart  = check.Mend{Do: check.Restart}
	reissue2 = check.Mend{Do: check.Reissue, Cluster: "cluster2"}
	restart1 = check.Mend{Do: check.Restart, Cluster: "cluster1"}
)

func TestDiagnosisOfAHealthyMesh(t *testing.T) {
	p := newPatient()
	result := p.diagnose(t, `{"mesh":"demo"}`)
	if result.Checks != 3 || result.Findings == nil || len(result.Findings) > 0 || len(result.Offered) > 0 {
		t.Errorf("%+v", result)
	}
	if writes := p.writes(); len(writes) > 0 {
		t.Errorf("it called %q", writes)
	}
}

// The gravest come first, and of those as grave the management cluster's; those that
// pass are counted. A mend is offered once, in the order in which they are made.
func TestDiagnosisSorts(t *testing.T) {
	p := newPatient()
	p.finds["cluster2"] = [][]check.Finding{{
		found("agent-trust", "cluster2", check.Warn, check.Mend{Do: check.Restart, Cluster: "cluster2"}), found("certificate-lifetime", "cluster2", check.Fail, reissue)}}
	p.finds["cluster1"] = [][]check.Finding{{found("stand-in", "cluster1", check.Note), found("agent-trust", "cluster1", check.Fail, setUp), found("pod-ready", "cluster1", check.Warn, restart)}}
	p.finds["mgmt"] = [][]check.Finding{{found("vault-role", "mgmt", check.Warn, check.Mend{Do: check.SetUp, Cluster: "mgmt"}), found("issuer-ready", "mgmt", check.Fail)}}
	result := p.diagnose(t, `{"mesh":"demo"}`)
	if want := "fail mgmt/issuer-ready, fail cluster1/agent-trust, fail cluster2/certificate-lifetime, warn mgmt/vault-role, warn cluster1/pod-ready, warn cluster2/agent-trust, note cluster1/stand-in"; inShort(result.Findings) != want {
		t.Errorf("found %s\nwant  %s", inShort(result.Findings), want)
	}
	if result.Checks != 10 {
		t.Errorf("%d checks, want 10", result.Checks)
	}
	want := []check.Mend{setUp, reissue2, restart1, {Do: check.Restart, Cluster: "cluster2"}}
	if !slices.Equal(result.Offered, want) {
		t.Errorf("offers %v, want %v", result.Offered, want)
	}
	if role := result.Findings[3]; role.Mend == nil || *role.Mend != setUp {
		t.Errorf("the mend is not as it can be asked for: %v", role.Mend)
	}
	if writes := p.writes(); len(writes) > 0 {
		t.Errorf("a diagnosis alone called %q", writes)
	}
}

// A cluster that does not answer is named within its time, the others are found.
func TestDiagnosisOfAClusterThatDoesNotAnswer(t *testing.T) {
	p := newPatient()
	p.silent["cluster1"] = temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_START_TO_CLOSE, nil)
	p.finds["cluster2"] = [][]check.Finding{{found("pod-ready", "cluster2", check.Fail)}}
	env := newRun(t, p.outside)
	var within []time.Duration
	env.SetOnActivityStartedListener(func(info *activity.Info, _ context.Context, _ converter.EncodedValues) {
		if strings.HasPrefix(info.ActivityType.Name, "Verify") {
			noting.Lock()
			defer noting.Unlock()
			within = append(within, info.StartToCloseTimeout, info.ScheduleToCloseTimeout)
		}
	})
	env.ExecuteWorkflow(procedure.DiagnoseMesh, json.RawMessage(`{"mesh":"demo","timeout":"7s"}`))
	var result procedure.DiagnoseResult
	if err := env.GetWorkflowResult(&result); err != nil {
		t.Fatal(err)
	}
	if want := "fail cluster1/cluster-reachable, fail cluster2/pod-ready"; inShort(result.Findings) != want {
		t.Fatalf("found %s, want %s", inShort(result.Findings), want)
	}
	if f := result.Findings[0]; !strings.Contains(f.Message, "did not answer within 7s") || len(f.Evidence) == 0 || f.Remedy == "" {
		t.Errorf("%+v", f)
	}
	if len(within) < 6 || slices.ContainsFunc(within, func(d time.Duration) bool { return d != 7*time.Second }) {
		t.Errorf("the looks may take %v, want 7s", within)
	}
}

// What the worker may not look at is said to be that.
func TestDiagnosisIsDenied(t *testing.T) {
	p := newPatient()
	p.silent["cluster2"] = failure.Permanent(failure.Denied, "cluster2: secrets is forbidden")
	result := p.diagnose(t, `{"mesh":"demo"}`)
	if len(result.Findings) != 1 || !result.Findings[0].Denied || !strings.Contains(result.Findings[0].Message, "forbidden") {
		t.Errorf("%+v", result.Findings)
	}
}

func TestDiagnosisLooksAtSome(t *testing.T) {
	p := newPatient()
	p.finds["cluster1"] = [][]check.Finding{{found("pod-ready", "cluster1", check.Fail)}}
	if result := p.diagnose(t, `{"mesh":"demo","clusters":["cluster2"]}`); result.Checks != 2 || len(result.Findings) > 0 {
		t.Errorf("%+v", result)
	}
}

// Who is just coming or going is left out, and in its place among the findings.
func TestDiagnosisLeavesOutWhoComesAndGoes(t *testing.T) {
	p := newPatient()
	p.record.Joining = []string{"cluster2"}
	p.finds["mgmt"] = [][]check.Finding{{found("vault-role", "mgmt", check.Warn)}}
	p.finds["cluster1"] = [][]check.Finding{{found("pod-ready", "cluster1", check.Warn)}}
	p.finds["cluster2"] = [][]check.Finding{{found("handshake", "cluster2", check.Fail)}}
	result := p.diagnose(t, `{"mesh":"demo"}`)
	if want := "warn mgmt/vault-role, warn cluster1/pod-ready, warn cluster2/membership"; inShort(result.Findings) != want {
		t.Errorf("found %s, want %s", inShort(result.Findings), want)
	}
}

// Mends are made in their order, each kind with a look after it, and what a setup has
// mended by the way is not issued anew. Before is from before all of them.
func TestMendsInOrder(t *testing.T) {
	p := newPatient()
	p.finds["mgmt"] = [][]check.Finding{{found("vault-role", "mgmt", check.Fail, setUp)}, {}}
	p.finds["cluster1"] = [][]check.Finding{{found("agent-trust", "cluster1", check.Warn, restart), found("certificate-lifetime", "cluster1", check.Fail, reissue)},
		{found("agent-trust", "cluster1", check.Warn, restart)}, {found("agent-trust", "cluster1", check.Warn, restart)}, {}}
	p.finds["cluster2"] = [][]check.Finding{{found("certificate-lifetime", "cluster2", check.Fail, reissue)}, {found("certificate-lifetime", "cluster2", check.Fail, reissue)}, {}}
	result := p.diagnose(t, `{"mesh":"demo","mend":[{"do":"restart","cluster":"cluster1"},{"do":"reissue","cluster":"cluster1"},{"do":"reissue","cluster":"cluster2"},{"do":"setup"}]}`)
	var made []check.Mend
	for _, m := range result.Mended {
		made = append(made, m.Mend)
		if m.Error != "" || m.Detail == "" && m.Do != check.Restart { // the scripted restart says nothing
			t.Errorf("%+v", m)
		}
	}
	if want := []check.Mend{setUp, reissue2, restart1}; !slices.Equal(made, want) {
		t.Errorf("made %v, want %v", made, want)
	}
	if missing := inOrder(p.calls, "VerifyManagement", "EnableClusterAccess", "VerifyManagement", "AcquireLock mgmtrelaypki-demo-cluster-cluster2", "Reissue cluster2", "VerifyManagement",
		"AcquireLock mgmtrelaypki-demo-cluster-cluster1", "RestartDeployment cluster1 apply", "ReleaseLock mgmtrelaypki-demo-cluster-cluster1", "VerifyManagement"); missing != "" {
		t.Errorf("no %q in its place in %q", missing, p.calls)
	}
	if p.count("Reissue cluster1") > 0 {
		t.Error("cluster1's certificate was issued anew, though that was not offered any more")
	}
	if len(result.Findings) > 0 || len(result.Before) != 4 || len(result.Offered) > 0 {
		t.Errorf("after: %s; before: %s; offered: %v", inShort(result.Findings), inShort(result.Before), result.Offered)
	}
}

// What is not chosen is not made, nor what is chosen and not offered.
func TestOnlyWhatIsChosenAndOfferedIsMended(t *testing.T) {
	p := newPatient()
	p.finds["cluster1"] = [][]check.Finding{{found("agent-trust", "cluster1", check.Fail, setUp)}}
	result := p.diagnose(t, `{"mesh":"demo","mend":[{"do":"restart","cluster":"cluster1"},{"do":"reissue","cluster":"mgmt"}]}`)
	if len(result.Mended) > 0 || len(result.Before) > 0 || len(p.writes()) > 0 {
		t.Errorf("%+v after %q", result, p.calls)
	}
	if want := []check.Mend{setUp}; !slices.Equal(result.Offered, want) || p.count("VerifyManagement") != 1 {
		t.Errorf("offers %v, want %v, after %q", result.Offered, want, p.calls)
	}
}

// The management server's certificate is not issued alone.
func TestReissueOfTheServer(t *testing.T) {
	p := newPatient()
	p.finds["mgmt"] = [][]check.Finding{{found("certificate-lifetime", "mgmt", check.Fail, reissue)}, {}}
	p.finds["cluster2"] = [][]check.Finding{{found("certificate-lifetime", "cluster2", check.Fail, reissue)}, {}}
	result := p.diagnose(t, `{"mesh":"demo","mend":[{"do":"reissue","cluster":"mgmt"},{"do":"reissue","cluster":"cluster2"}]}`)
	if len(result.Mended) != 2 || result.Mended[0].Error+result.Mended[1].Error != "" {
		t.Errorf("%+v", result.Mended)
	}
	for _, call := range []string{"Reissue mgmt apply", "Reissue cluster1 apply", "Reissue cluster2 apply"} {
		if p.count(call) != 1 {
			t.Errorf("%s: %d times in %q", call, p.count(call), p.calls)
		}
	}
}

// The server is restarted before the agents, with the lock on the mesh's CAs.
func TestRestartOfTheServer(t *testing.T) {
	p := newPatient()
	for _, name := range []string{"mgmt", "cluster1", "cluster2"} {
		p.finds[name] = [][]check.Finding{{found("stale", name, check.Fail, restart)}, {}}
	}
	restarted := map[string]cluster.RestartInput{}
	env := newRun(t, p.outside)
	env.SetOnActivityStartedListener(func(info *activity.Info, _ context.Context, args converter.EncodedValues) {
		noting.Lock()
		defer noting.Unlock()
		var lock cluster.LockInput
		var in cluster.RestartInput
		switch info.ActivityType.Name {
		case "AcquireLock":
			_ = args.Get(&lock)
			p.calls = append(p.calls, "AcquireLock "+lock.Lease)
		case "RestartDeployment":
			_ = args.Get(&in)
			p.calls = append(p.calls, "RestartDeployment "+in.Context)
			restarted[in.Context] = in
		}
	})
	env.ExecuteWorkflow(procedure.DiagnoseMesh, json.RawMessage(`{"mesh":"demo","mend":[{"do":"restart","cluster":"cluster1"},{"do":"restart","cluster":"cluster2"},{"do":"restart","cluster":"mgmt"}]}`))
	var result procedure.DiagnoseResult
	if err := env.GetWorkflowResult(&result); err != nil || len(result.Mended) != 3 {
		t.Fatalf("%+v, %v", result, err)
	}
	if missing := inOrder(p.calls, "AcquireLock relaypki-demo-ca", "RestartDeployment mgmt", "AcquireLock relaypki-demo-cluster-cluster", "RestartDeployment cluster"); missing != "" {
		t.Errorf("no %q in its place in %q", missing, p.calls)
	}
	if in := restarted["mgmt"]; in.Deployment != "gloo-mesh-mgmt-server" || !slices.Equal(in.Secrets, []string{"relay-server-tls-secret"}) || in.Namespace != "gloo-mesh" {
		t.Errorf("restarted %+v", in)
	}
	if in := restarted["cluster2"]; in.Deployment != "gloo-mesh-agent" || !slices.Equal(in.Secrets, []string{"relay-client-tls-secret", "relay-root-tls-secret"}) {
		t.Errorf("restarted %+v", in)
	}
}

// What is loaded may be better than what is stored. A restart into Secrets that the
// other side refuses is not made, unless there is no connection to lose.
func TestNobodyIsRestartedIntoWhatIsRefused(t *testing.T) {
	idle := found(check.AgentsConnected, "cluster1", check.Fail)
	for name, c := range map[string]struct {
		of, broken string
		clusters   string
		with       []check.Finding
		want       string
	}{
		"an agent":                 {"cluster1", "cluster1", "", nil, "cluster1: the agent does not accept the server"},
		"another agent":            {"cluster1", "cluster2", "", nil, ""},
		"the server, for an agent": {"mgmt", "cluster2", "", nil, "cluster2: the agent does not accept the server"},
		"the server, for one that is not looked at":  {"mgmt", "cluster2", `"clusters":["cluster1"],`, nil, "cluster2: the agent does not accept the server"},
		"the server, whose agent still shakes hands": {"mgmt", "cluster1", "", []check.Finding{idle}, "cluster1: the agent does not accept the server"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPatient()
			p.finds[c.of] = [][]check.Finding{append([]check.Finding{found("stale", c.of, check.Warn, restart)}, c.with...), c.with}
			p.differs = map[string]bool{"CheckPair " + c.broken: true}
			result := p.diagnose(t, fmt.Sprintf(`{"mesh":"demo",%s"mend":[{"do":"restart","cluster":%q}]}`, c.clusters, c.of))
			if len(result.Mended) != 1 || !strings.Contains(result.Mended[0].Error, c.want) || (result.Mended[0].Error == "") != (c.want == "") {
				t.Errorf("mended %+v, want an error with %q", result.Mended, c.want)
			}
			if (p.count("RestartDeployment") > 0) != (c.want == "") {
				t.Errorf("it called %q", p.calls)
			}
		})
	}

	// The agent of cluster1 is not connected, and no handshake in its place succeeds.
	p := newPatient()
	p.looked = func(cluster string) ([]check.Finding, error) {
		if cluster == "cluster1" {
			return []check.Finding{found(check.Handshake, cluster, check.Fail)}, nil
		}
		noting.Lock()
		defer noting.Unlock()
		if p.count("RestartDeployment mgmt") > 0 {
			return []check.Finding{idle}, nil
		}
		return []check.Finding{idle, found("stale", "mgmt", check.Warn, check.Mend{Do: check.Restart, Cluster: "mgmt"})}, nil
	}
	p.differs = map[string]bool{"CheckPair cluster1": true}
	if result := p.diagnose(t, `{"mesh":"demo","mend":[{"do":"restart","cluster":"mgmt"}]}`); len(result.Mended) != 1 || result.Mended[0].Error != "" || p.count("RestartDeployment mgmt") != 1 {
		t.Errorf("%+v after %q", result.Mended, p.calls)
	}
}

// What counts for a server is what is stored: it is restarted to be rid of what it has
// loaded.
func TestTheServerIsJudgedByWhatItWillLoad(t *testing.T) {
	p := newPatient()
	p.finds["mgmt"] = [][]check.Finding{{found("stale", "mgmt", check.Warn, restart)}}
	p.finds["cluster1"] = [][]check.Finding{{found("stale", "cluster1", check.Warn, restart)}}
	env := newRun(t, p.outside)
	server := map[string]relay.ServerResult{}
	env.OnActivity(temporals.AskProcedure, mock.Anything, mock.Anything).Return(temporalactivities.AskResult{}, nil)
	env.SetOnActivityStartedListener(func(info *activity.Info, _ context.Context, args converter.EncodedValues) {
		var in relay.CheckPairInput
		if info.ActivityType.Name == "CheckPair" && args.Get(&in) == nil {
			noting.Lock()
			defer noting.Unlock()
			server[fmt.Sprintf("%s %d", in.Cluster, len(server))] = in.Server
		}
	})
	p.serverHas = relay.ServerResult{Chains: []string{"stored", "loaded"}, Trusts: []string{"stored", "loaded"}, AcceptableCAs: []string{"CN=loaded"}}
	env.ExecuteWorkflow(procedure.DiagnoseMesh, json.RawMessage(`{"mesh":"demo","mend":[{"do":"restart","cluster":"mgmt"},{"do":"restart","cluster":"cluster1"}]}`))
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cluster1 0", "cluster2 1"} {
		if s := server[name]; !slices.Equal(s.Chains, []string{"stored"}) || !slices.Equal(s.Trusts, []string{"stored"}) || len(s.AcceptableCAs) > 0 {
			t.Errorf("the server's restart, %s: %+v", name, s)
		}
	}
	if s := server["cluster1 2"]; len(s.Chains) != 2 || len(s.Trusts) != 2 || len(s.AcceptableCAs) != 1 {
		t.Errorf("the agent's restart: %+v", s)
	}
}

// A mend that fails leaves the others to be made, and says who is in the way.
func TestAMendThatFails(t *testing.T) {
	p := newPatient()
	p.finds["mgmt"] = [][]check.Finding{{found("vault-role", "mgmt", check.Fail, setUp)}}
	p.finds["cluster1"] = [][]check.Finding{{found("stale", "cluster1", check.Fail, restart)}, {found("stale", "cluster1", check.Fail, restart)}, {}}
	p.differs = map[string]bool{"ApplyCertificate": true}
	p.fails["AcquireLock relaypki-demo-ca"] = failure.Permanent(failure.Locked, "it is held by workflow rotate-root-demo, which is running")
	result := p.diagnose(t, `{"mesh":"demo","mend":[{"do":"setup"},{"do":"restart","cluster":"cluster1"}]}`)
	if len(result.Mended) != 2 {
		t.Fatalf("%+v", result.Mended)
	}
	if m := result.Mended[0]; m.Mend != setUp || !strings.Contains(m.Error, "rotate-root-demo") || m.Detail != "" {
		t.Errorf("%+v", m)
	}
	if m := result.Mended[1]; m.Mend != restart1 || m.Error != "" {
		t.Errorf("%+v", m)
	}
	if want := "fail mgmt/vault-role"; inShort(result.Findings) != want || !slices.Equal(result.Offered, []check.Mend{setUp}) {
		t.Errorf("still found: %s; offered: %v", inShort(result.Findings), result.Offered)
	}
}

// What a mend leaves to be restarted is restarted with it, unless it was offered from the
// start and not wanted; once more where it is still older, but not where that failed.
func TestARestartFollows(t *testing.T) {
	stale := func(cluster string) check.Finding { return found("stale-agent", cluster, check.Warn, restart) }
	role, expired := found("vault-role", "mgmt", check.Fail, setUp), func(cluster string) check.Finding {
		return found("certificate-lifetime", cluster, check.Fail, reissue)
	}
	for name, c := range map[string]struct {
		finds map[string][][]check.Finding
		mend  string
		fails string
		want  []string
	}{
		"from a setup": {map[string][][]check.Finding{"mgmt": {{role}, {}}, "cluster1": {{}, {stale("cluster1")}, {}}},
			`[{"do":"setup"}]`, "", []string{"setup ", "restart cluster1"}},
		"from a new certificate": {map[string][][]check.Finding{"cluster1": {{}, {stale("cluster1")}}, "cluster2": {{expired("cluster2")}, {stale("cluster2")}, {}}},
			`[{"do":"reissue","cluster":"cluster2"}]`, "", []string{"reissue cluster2", "restart cluster2"}},
		"from the server's, with which all get one": {map[string][][]check.Finding{"mgmt": {{expired("mgmt")}, {}}, "cluster1": {{}, {stale("cluster1")}, {}}},
			`[{"do":"reissue","cluster":"mgmt"}]`, "", []string{"reissue mgmt", "restart cluster1"}},
		"not wanted": {map[string][][]check.Finding{"mgmt": {{role}, {}}, "cluster1": {{stale("cluster1")}}},
			`[{"do":"setup"}]`, "", []string{"setup "}},
		"from a setup that was made and left something": {map[string][][]check.Finding{"mgmt": {{role}, {}}, "cluster1": {{}, {stale("cluster1")}, {}}},
			`[{"do":"setup"}]`, "VerifyCluster", []string{"setup !", "restart cluster1"}},
		"of a setup that failed": {map[string][][]check.Finding{"mgmt": {{role}}, "cluster1": {{}, {stale("cluster1")}}},
			`[{"do":"setup"}]`, "AcquireLock relaypki-demo-ca", []string{"setup !"}},
		"of nothing": {map[string][][]check.Finding{"cluster1": {{stale("cluster1")}, {stale("cluster1")}}},
			`[]`, "", nil},
		"written after it": {map[string][][]check.Finding{"cluster1": {{stale("cluster1")}, {stale("cluster1")}, {stale("cluster1")}}},
			`[{"do":"restart","cluster":"cluster1"}]`, "", []string{"restart cluster1", "restart cluster1"}},
		"failed": {map[string][][]check.Finding{"cluster1": {{stale("cluster1")}}},
			`[{"do":"restart","cluster":"cluster1"}]`, "RestartDeployment cluster1", []string{"restart cluster1!"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPatient()
			p.finds = c.finds
			if c.fails != "" {
				p.differs = map[string]bool{"ApplyCertificate": true, c.fails: true}
				p.fails[c.fails] = failure.Permanent(failure.Denied, "forbidden")
			}
			var made []string
			for _, m := range p.diagnose(t, `{"mesh":"demo","mend":`+c.mend+`}`).Mended {
				one := string(m.Do) + " " + m.Cluster
				if m.Error != "" {
					one += "!"
				}
				made = append(made, one)
			}
			if !slices.Equal(made, c.want) {
				t.Errorf("made %q, want %q", made, c.want)
			}
		})
	}
}

// Nobody has asked for the setup of a mend: whom somebody is taking out of the mesh, or
// has taken out since the diagnosis has read the record, it does not bring back.
func TestAMendBringsNobodyBack(t *testing.T) {
	for name, c := range map[string]struct {
		before, since func(*patient)
		says          string
	}{
		"a removal that has broken off": {func(p *patient) { p.record.Leaving = map[string]cluster.Departure{"cluster2": {Since: time.Now()}} }, func(*patient) {}, `"cluster2" is being removed`},
		"one that has ended since": {func(*patient) {}, func(p *patient) {
			p.record.Spec.Workloads = p.record.Spec.Workloads[:1]
			p.record.Leaving = map[string]cluster.Departure{"cluster2": {Since: time.Now(), Left: time.Now()}}
		}, "has changed since it was read"},
		"one that ends as the setup takes its lock": {func(p *patient) {
			p.differs = map[string]bool{"ApplyCertificate": true}
			p.locked = func(o *outside) { o.record.Spec.Workloads = o.record.Spec.Workloads[:1] }
		}, func(*patient) {}, "has changed since it was read"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPatient()
			c.before(p)
			p.finds["cluster1"] = [][]check.Finding{{found("agent-trust", "cluster1", check.Fail, setUp)}}
			looked := p.looked
			p.looked = func(cluster string) ([]check.Finding, error) {
				found, err := looked(cluster)
				noting.Lock()
				defer noting.Unlock()
				c.since(p)
				return found, err
			}
			result := p.diagnose(t, `{"mesh":"demo","mend":[{"do":"setup"}]}`)
			if len(result.Mended) != 1 || !strings.Contains(result.Mended[0].Error, c.says) {
				t.Errorf("mended %+v, want an error with %q", result.Mended, c.says)
			}
			if p.count("RecordMesh")+p.count("EnableClusterAccess cluster2 apply") > 0 {
				t.Errorf("it was set up: %q", p.calls)
			}
		})
	}
}

// A Vault that has lost its CAs, or was restored to before a rotation of the root, gets
// no other root from a mend.
func TestAMendMakesNoRoot(t *testing.T) {
	p := newPatient()
	p.finds["mgmt"] = [][]check.Finding{{found("vault-role", "mgmt", check.Fail, setUp)}}
	p.differs = map[string]bool{"GenerateRoot": true}
	p.record.Generations.Root = 2
	result := p.diagnose(t, `{"mesh":"demo","mend":[{"do":"setup"}]}`)
	if len(result.Mended) != 1 || !strings.Contains(result.Mended[0].Error, "the root relay-root-g2 is not in the mount pki") {
		t.Errorf("mended %+v", result.Mended)
	}
	if p.count("GenerateRoot apply") > 0 || len(p.writes()) > 0 {
		t.Errorf("it called %q", p.writes())
	}
}

// A procedure that waits for a person is left to that one, and goes on without the
// diagnosis.
func TestAMendThatWaitsForAPerson(t *testing.T) {
	p := newPatient()
	p.finds["cluster1"] = [][]check.Finding{{found("agent-trust", "cluster1", check.Fail, setUp)}}
	p.finds["cluster2"] = [][]check.Finding{{found("certificate-root", "cluster2", check.Fail, check.Mend{Do: check.Reissue, Cluster: "cluster2"})}}
	p.differs = map[string]bool{"ApplyCertificate": true}
	p.fails["ApplyCertificate cluster1"] = failure.Permanent(failure.Denied, "forbidden")
	aborted := false
	p.asked = temporalactivities.AskResult{Person: true, Awaiting: "1 cluster is parked: relaypki retry demo"}
	result := p.diagnose(t, `{"mesh":"demo","mend":[{"do":"setup"},{"do":"reissue","cluster":"cluster2"}]}`, func(env *testsuite.TestWorkflowEnvironment) {
		// The environment ends with the last workflow: the setup is still there an hour later.
		env.RegisterDelayedCallback(func() {
			if err := env.UpdateWorkflowByID("setup-demo", procedure.AbortUpdate, "abort", &testsuite.TestUpdateCallback{
				OnAccept: func() {}, OnReject: func(err error) { t.Error(err) }, OnComplete: func(any, error) { aborted = true },
			}, procedure.AbortInput{Reason: "enough"}); err != nil {
				t.Error(err)
			}
		}, time.Hour)
	})
	if !aborted {
		t.Error("the setup had ended with the diagnosis")
	}
	if len(result.Mended) != 2 || !strings.Contains(result.Mended[0].Error, "setup-demo") || !strings.Contains(result.Mended[0].Error, "relaypki retry demo") {
		t.Fatalf("%+v", result.Mended)
	}
	if !strings.Contains(result.Mended[1].Error, "not begun, since workflow setup-demo waits") {
		t.Errorf("after a setup that waits: %+v", result.Mended[1])
	}
	if want := "fail cluster1/agent-trust, fail cluster2/certificate-root"; inShort(result.Findings) != want {
		t.Errorf("still found: %s, want %s", inShort(result.Findings), want)
	}
}

// What the setup's own verification finds is found again, and not said twice.
func TestAMendWhoseVerificationFails(t *testing.T) {
	p := newPatient()
	p.finds["cluster1"] = [][]check.Finding{{found("handshake", "cluster1", check.Fail, setUp)}}
	p.differs = map[string]bool{"VerifyCluster": true}
	result := p.diagnose(t, `{"mesh":"demo","mend":[{"do":"setup"}]}`)
	if want := "it was made, and the verification at its end has failed: 2 of 3 checks fail"; len(result.Mended) != 1 || result.Mended[0].Error != want {
		t.Errorf("%+v, want %q", result.Mended, want)
	}
}

func TestDiagnosisRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		input  string
		record func(*patient)
		kind   failure.Kind
		says   []string
		never  []string
	}{
		"all that is wrong with the input": {`{"timeout":"1h","clustres":[],"mend":[{"do":"fix"},{"do":"setup","cluster":"cluster1"},{"do":"restart"},{"do":"restart","culster":"x"}]}`, nil, failure.InvalidInput,
			[]string{"mesh: is missing", "timeout: 1h is not between 1s and 5m", `clustres: unknown field`, `mend[0].do: "fix" is none of setup, reissue, restart`, "mend[1].cluster: a setup is of the whole mesh", "mend[2].cluster: is missing", "mend[3].culster: unknown field"},
			[]string{"DescribeTemporal", "ReadMesh", "Verify"}},
		"who is no member": {`{"mesh":"demo","clusters":["cluster1","cluster7"],"mend":[{"do":"restart","cluster":"cluster8"},{"do":"restart","cluster":"cluster2"},{"do":"restart","cluster":"mgmt"}]}`, nil, failure.InvalidInput,
			[]string{`clusters[1]: "cluster7" is no member`, `mend[0].cluster: "cluster8" is neither a member`, `mend[1].cluster: "cluster2" is not among the clusters to look at`}, []string{"Verify"}},
		"no such mesh": {`{"mesh":"demo"}`, func(p *patient) { p.record = cluster.MeshRecord{} }, failure.InvalidInput, []string{`there is no mesh "demo"`, "relaypki setup"}, []string{"Verify"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPatient()
			if c.record != nil {
				c.record(p)
			}
			p.failed(t, p.run(t, c.input).GetWorkflowError(), c.kind, c.says, c.never)
		})
	}
}

// A result has its limit: what is least grave is left out, and counted; before that,
// what belongs to it.
func TestFindingsFit(t *testing.T) {
	long := strings.Repeat("x", 1000)
	var all []check.Finding
	for i := range 2000 {
		f := found("pod-ready", fmt.Sprintf("cluster%d", i), check.Fail)
		f.Message, f.Evidence, f.Commands = "", []string{long}, []string{"kubectl get pods"}
		if i >= 1000 {
			f.Status, f.Message = check.Note, long
		}
		all = append(all, f)
	}
	kept, more := fitting(append(all, well("cluster1")...))
	if len(kept)+more != 2000 || more == 0 || more > 1000 {
		t.Fatalf("%d are kept, %d more", len(kept), more)
	}
	if len(kept[0].Evidence) == 0 || len(kept[999].Evidence) > 0 || kept[999].Cluster != "cluster999" {
		t.Errorf("the first has evidence %d, the thousandth is %+v", len(kept[0].Evidence), kept[999])
	}
	if size := len(asJSON(t, kept)); size > 700<<10 || size < 400<<10 {
		t.Errorf("they take %d bytes", size)
	}
}
