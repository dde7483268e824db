package workflows

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/testsuite"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/relay"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
)

// setsUp scripts what a setup does beside what a rotation of the root does.
func (w *rootWorld) setsUp(env *testsuite.TestWorkflowEnvironment) {
	env.OnActivity(vaults.StandbyRoot, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.StandbyRootInput) (out vault.CAResult, err error) {
		seen := w.survey(in.Spec)
		standby, found := vault.StandingBy(seen.Roots, in.Generation)
		if !found {
			g := max(seen.HighestRoot, in.Generation) + 1
			out.Changed(procedure.Create, "root", "")
			if !in.Mode.Writes() {
				out.PrintedBy = fmt.Sprintf("print root %d", g)
				return out, nil
			}
			err = w.act(fmt.Sprintf("standby %d", g), func() error {
				w.roots[g] = &worldCA{Pair: pkitest.Root(w.t, fmt.Sprintf("relay-root G%d", g)), signs: true, key: true}
				return nil
			})
			standby = rootState(g, w.roots[g].Pair)
		}
		out.Authority, out.CertificatePEM = standby.Authority, standby.CertificatePEM
		return out, err
	})
	env.OnActivity(kubernetes.CopyRootSecret, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.CopyRootSecretInput) (out procedure.Outcome, err error) {
		trust, err := pki.ParseChain([]byte(in.RootPEM))
		if err != nil {
			return out, failure.Permanent(failure.InvalidInput, "%v", err)
		}
		if in.AddPrintedBy != "" {
			out.Changed(procedure.Update, "trust", in.AddPrintedBy)
		}
		w.mu.Lock()
		same := slices.EqualFunc(w.trust[in.Context], trust, (*x509.Certificate).Equal)
		w.mu.Unlock()
		if same {
			return out, nil
		}
		out.Changed(procedure.Update, "trust", "")
		if !in.Mode.Writes() {
			return out, nil
		}
		return out, w.act("copy trust "+in.Context, func() error { w.trust[in.Context] = trust; return nil })
	})
	env.OnActivity(kubernetes.RecordMesh, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.RecordMeshInput) (procedure.Outcome, error) {
		noting.Lock()
		defer noting.Unlock()
		if in.Mode.Writes() {
			w.o.record.Spec, w.o.record.Complete = in.Spec, in.Complete
		}
		return procedure.Outcome{}, nil
	})
	env.OnActivity(relays.VerifyCluster, mock.Anything, mock.MatchedBy(func(in relay.VerifyClusterInput) bool { return in.Spec.PKI.StandbyRoot })).Return(func(_ context.Context, in relay.VerifyClusterInput) (relay.VerifyClusterResult, error) {
		f := check.Finding{Check: check.StandbyRoot, Cluster: in.Cluster, Status: check.Warn, Message: "there is none"}
		w.mu.Lock()
		defer w.mu.Unlock()
		for g, ca := range w.roots {
			if in.StandbyPEM == textOf(ca.Pair) {
				f.Message = fmt.Sprintf("root %d", g)
			}
		}
		return relay.VerifyClusterResult{Findings: []check.Finding{f}}, nil
	})
}

// setUp runs a setup of the mesh as it is recorded, but for whether a root is to
// stand by.
func (w *rootWorld) setUp(standby bool) procedure.SetupResult {
	w.t.Helper()
	in := procedure.SetupInput{Spec: w.o.record.Spec}
	in.Spec.PKI.StandbyRoot = standby
	env := newRun(w.t, w.o)
	env.ExecuteWorkflow(SetupMesh, in, nil)
	if err := env.GetWorkflowError(); err != nil {
		w.t.Fatal(err)
	}
	var result procedure.SetupResult
	if err := env.GetWorkflowResult(&result); err != nil {
		w.t.Fatal(err)
	}
	return result
}

// trusts: every agent's trust has these roots, in this order, and has loaded them if
// it reads it.
func (w *rootWorld) trusts(when string, names []string, generations ...int) {
	w.t.Helper()
	var want []*x509.Certificate
	for _, g := range generations {
		want = append(want, w.roots[g].Cert)
	}
	for _, name := range names {
		if !slices.EqualFunc(w.trust[name], want, (*x509.Certificate).Equal) {
			w.t.Errorf("%s: in the trust of %s are %d roots, %s the last", when, name, len(w.trust[name]), pki.Name(w.trust[name][len(w.trust[name])-1]))
		}
		if !w.own[name] && !slices.EqualFunc(w.loadedTrust[name], want, (*x509.Certificate).Equal) {
			w.t.Errorf("%s: %s has loaded %d roots", when, name, len(w.loadedTrust[name]))
		}
	}
}

// A root that stands by, from the setup that makes it to the rotation that uses it
// up, and to the setup after that, which makes the next.
func TestStandbyRoot(t *testing.T) {
	w := newRootWorld(t)
	all := []string{"cluster1", "cluster2", "cluster3"}
	if first := w.setUp(true); !first.Changed || w.count("standby") != 1 {
		t.Errorf("changed: %v; %q", first.Changed, w.events)
	}
	w.trusts("set up", all, 1, 2)
	w.order("standby 2", "copy trust cluster1", "restart cluster1")
	if w.count("restart cluster2") > 0 {
		t.Error("an agent was restarted that reads another trust")
	}
	if !w.o.record.Spec.PKI.StandbyRoot || !w.o.record.Complete {
		t.Errorf("recorded is %+v", w.o.record.Spec.PKI)
	}

	w.events = nil
	again := w.setUp(true)
	if again.Changed || w.count("standby")+w.count("copy trust") > 0 || len(w.events) == 0 {
		t.Errorf("again, it changed: %v; %q", again.Changed, w.events)
	}
	for _, name := range all {
		if !slices.ContainsFunc(again.Verification.Findings, func(f check.Finding) bool { return f.Cluster == name && f.Message == "root 2" }) {
			t.Errorf("whether %s trusts it was not verified: %+v", name, again.Verification.Findings)
		}
	}

	// In an emergency, who trusts what is that one's to say.
	w.o.record.Rotation = &procedure.Rotation{Procedure: procedure.EmergencyReissue}
	if pinned := w.verify(); slices.ContainsFunc(pinned, func(f check.Finding) bool { return f.Message == "root 2" }) {
		t.Errorf("in an emergency agents are asked for %+v", pinned)
	}
	w.o.record.Rotation = nil

	// The rotation goes to it, and finds it trusted.
	standby := w.roots[2].Cert
	w.events = nil
	if _, err := w.start(unattended); err != nil {
		t.Fatal(err)
	}
	w.everywhere(2, 2)
	if len(w.roots) != 2 || !w.roots[2].Cert.Equal(standby) {
		t.Errorf("the rotation has made another root: there are %d", len(w.roots))
	}
	w.events = nil
	verified := w.verify()
	if !slices.ContainsFunc(verified, func(f check.Finding) bool { return f.Message == "there is none" }) {
		t.Errorf("it is used up, and agents are asked for %+v", verified)
	}

	w.events = nil
	if next := w.setUp(true); !next.Changed || w.count("standby") != 1 {
		t.Errorf("the next: changed %v; %q", next.Changed, w.events)
	}
	w.order("standby 3", "copy trust cluster1", "restart cluster1")
	w.trusts("the next", all, 2, 3)

	// Who joins trusts it too.
	env := newRun(t, w.o)
	env.ExecuteWorkflow(procedure.AddCluster, json.RawMessage(`{"mesh":"demo","workload":{"name":"cluster4"}}`))
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	w.trusts("joined", []string{"cluster4"}, 2, 3)

	// Not asked for any more, it stays in Vault, and leaves the agents' trust.
	w.events = nil
	w.setUp(false)
	for _, name := range append(all, "cluster4") {
		if len(w.trust[name]) != 1 || !w.trust[name][0].Equal(w.roots[2].Cert) {
			t.Errorf("%s trusts %d roots", name, len(w.trust[name]))
		}
	}
	if ca := w.roots[3]; ca == nil || !ca.signs || !ca.key {
		t.Error("it is gone from Vault")
	}
	w.unbroken()
}

func (w *rootWorld) verify() []check.Finding {
	w.t.Helper()
	env := newRun(w.t, w.o)
	env.ExecuteWorkflow(VerifyMesh, procedure.VerifyInput{Mesh: "demo"})
	if err := env.GetWorkflowError(); err != nil {
		w.t.Fatal(err)
	}
	var result procedure.VerifyResult
	if err := env.GetWorkflowResult(&result); err != nil {
		w.t.Fatal(err)
	}
	return result.Findings
}

// A rotation that is taken back puts the root away that stood by; the next setup
// makes another, under another name.
func TestStandbyRootPutAway(t *testing.T) {
	w := newRootWorld(t)
	w.setUp(true)
	rolled := false
	w.happens = func(event string) {
		if event == "give pivot" && !rolled {
			rolled = true
			w.env.UpdateWorkflow(procedure.RollbackUpdate, "back", &testsuite.TestUpdateCallback{
				OnReject: func(err error) { t.Error(err) }, OnAccept: func() {}, OnComplete: func(any, error) {},
			}, json.RawMessage(`{"reason":"changed our mind"}`))
		}
	}
	if _, err := w.start(unattended); failure.KindOf(err) != failure.RolledBack {
		t.Fatal(err)
	}
	w.happens = nil
	w.everywhere(1, 1)
	w.setUp(true)
	w.order("standby 2", "use root 2 false", "standby 3")
	w.trusts("after the rollback", []string{"cluster1", "cluster2", "cluster3"}, 1, 3)
	w.unbroken()
}

// What a plan says of a root that is still to be made.
func TestStandbyRootPlanned(t *testing.T) {
	w := newRootWorld(t)
	in := procedure.SetupInput{Spec: w.o.record.Spec, Plan: true}
	in.Spec.PKI.StandbyRoot = true
	env := newRun(t, w.o)
	env.ExecuteWorkflow(SetupMesh, in, nil)
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	var result procedure.SetupResult
	if err := env.GetWorkflowResult(&result); err != nil || !result.Changed || len(w.roots) != 1 || w.count("copy trust")+w.count("restart") > 0 {
		t.Errorf("%v; changed %v; %q", err, result.Changed, w.events)
	}
	for _, name := range []string{"cluster1", "cluster2", "cluster3"} {
		i := slices.IndexFunc(result.Clusters, func(c procedure.ClusterResult) bool { return c.Cluster == name })
		if i < 0 || !result.Clusters[i].Changed {
			t.Errorf("nothing is planned for %s: %+v", name, result.Clusters)
		}
		w.trusts("planned", []string{name}, 1)
	}
}

// A new member trusts the root that stands by wherever nobody is moved between roots.
func TestJoinWithAStandbyRoot(t *testing.T) {
	c := newRootCAs(t)
	both := textOf(c.r1) + textOf(c.r2)
	for name, w := range map[string]struct {
		asked    bool
		rotation *procedure.Rotation
		signs    bool
		trust    string
	}{
		"it stands by":               {true, nil, true, both},
		"nobody asks for it":         {false, nil, true, ""},
		"it was put away":            {true, nil, false, ""},
		"another intermediate comes": {true, &procedure.Rotation{Procedure: procedure.RotateIntermediateCA}, true, both},
		"another root comes":         {true, &procedure.Rotation{Procedure: procedure.RotateRootCA, FromRoot: 1, ToRoot: 2, Dropped: procedure.DroppedOld}, true, textOf(c.r2)},
		"a leaf is compromised":      {true, &procedure.Rotation{Procedure: procedure.EmergencyReissue}, true, both},
	} {
		s := c.seen(nil)
		s.Roots = []vault.RootState{rootState(1, c.r1), rootState(2, c.r2)}
		s.Roots[1].Signs = w.signs
		a := &addition{rotation: w.rotation, root: s.Root, generation: 1}
		a.spec.PKI.StandbyRoot = w.asked
		if err := a.inRotation(s); err != nil {
			t.Fatal(err)
		}
		if a.withStandby(s); a.trustPEM != w.trust {
			t.Errorf("%s: its trust has %d certificates, or others than it is to have", name, strings.Count(a.trustPEM, "BEGIN"))
		}
	}
}

// Whose trust is to be loaded, and in a plan of whom that is said.
func TestLoadsTrust(t *testing.T) {
	var created, updated procedure.Outcome
	created.Changed(procedure.Create, "x", "")
	updated.Changed(procedure.Update, "x", "")
	for name, c := range map[string]struct {
		agent        mesh.Agent
		mode         procedure.Mode
		trust, chart procedure.Outcome
		none, want   bool
	}{
		"it is as it was":                      {mode: procedure.Apply, want: true},
		"its trust is written":                 {mode: procedure.Apply, trust: updated, want: true},
		"it is installed":                      {mode: procedure.Apply, trust: created, chart: created, want: true},
		"nothing stands by":                    {mode: procedure.Apply, trust: updated, none: true},
		"it reads its Secrets by itself":       {mode: procedure.Apply, trust: updated, agent: mesh.Agent{Reload: mesh.ReloadHot}},
		"it reads another trust":               {mode: procedure.Apply, trust: updated, agent: mesh.Agent{Trust: mesh.TrustOwn}},
		"planned, and all is there":            {mode: procedure.Plan, want: true},
		"planned, and its trust is written":    {mode: procedure.Plan, trust: updated, want: true},
		"planned, and its chart is upgraded":   {mode: procedure.Plan, trust: updated, chart: updated, want: true},
		"planned, and it is installed":         {mode: procedure.Plan, trust: updated, chart: created},
		"planned, and there is no trust yet":   {mode: procedure.Plan, trust: created},
		"looked at, and all is as it is to be": {mode: procedure.Observe, want: true},
	} {
		of := mesh.Spec{Mesh: "demo", Workloads: []mesh.Workload{{Name: "cluster1", Agent: c.agent}}}.WithDefaults()
		of.PKI.StandbyRoot = !c.none
		setup := &clusterSetup{ClusterInput: ClusterInput{Spec: of, Mode: c.mode}, workload: of.Workloads[0], trust: c.trust}
		if got := setup.loadsTrust(c.chart); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
