package workflows

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/testsuite"

	"github.com/relaypki/relaypki/activities/notify"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/secret/secrettest"
)

// offlineMesh is the mesh of the tests with a root that is kept outside Vault.
func offlineMesh(root pkitest.Pair) mesh.Spec {
	s := spec
	s.PKI.Root = mesh.Root{Kept: mesh.KeptOffline, CertificatePEM: string(pki.EncodeChain(root.Cert))}
	return s
}

func submission(certificates ...*x509.Certificate) string {
	return submissionOf(string(pki.EncodeChain(certificates...)))
}

func submissionOf(pem string) string {
	data, _ := json.Marshal(procedure.SubmitSignedInput{PEM: pem}) // a struct of one text
	return string(data)
}

var relaySubject = pkix.Name{CommonName: "gloo-mesh-mgmt-server-ca", Organization: []string{"mesh.solo.io"}}

// listening notes what people are told.
func listening(env *testsuite.TestWorkflowEnvironment) *[]string {
	var told []string
	env.RegisterActivity(notifiers)
	env.OnActivity(notifiers.Notify, mock.Anything, mock.Anything).Return(func(_ context.Context, in notify.Input) (notify.Result, error) {
		told = append(told, in.Text)
		return notify.Result{Told: []string{"ops"}}, nil
	})
	return &told
}

// A setup with a root outside Vault publishes the CSR, waits for days, refuses
// what is wrong with all that is wrong with it, and goes on with the right one.
func TestSetupWithAnOfflineRoot(t *testing.T) {
	old := pkitest.Valid(-9999*time.Hour, 99999*time.Hour)
	root, other := pkitest.Root(t, "Example Root", old), pkitest.Root(t, "Example Root", old)
	csr, csrPEM := pkitest.CSR(t, pkitest.Key(t), relaySubject)
	foreign, _ := pkitest.CSR(t, pkitest.Key(t), relaySubject)
	good, second := root.SignCSR(t, csr), root.SignCSR(t, csr)
	o := &outside{differs: map[string]bool{"GenerateIntermediateCSR": true}, csr: csrPEM}
	env := newRun(t, o)
	env.SetStartTime(pkitest.Now.Add(-72 * time.Hour))
	told := listening(env)

	wrong, right, twice, late := &answers{}, &answers{}, &answers{}, &answers{}
	var asked procedure.Signing
	var waits procedure.Progress
	// Three days on: pkitest.Now, at which the answers are valid.
	env.RegisterDelayedCallback(func() {
		waits = query(t, env)
		answer, err := env.QueryWorkflow(procedure.CSRQuery)
		if err == nil {
			err = answer.Get(&asked)
		}
		if err != nil {
			t.Errorf("the query: %v", err)
		}
		for _, in := range []string{
			submission(root.SignCSR(t, foreign, pkitest.Valid(-2*time.Hour, -time.Hour))),
			submission(other.SignCSR(t, csr)),
			submissionOf(secrettest.Key),
			submissionOf(""), `{"pm":"x"}`,
		} {
			wrong.send(t, env, procedure.SubmitSignedUpdate, in)
		}
		right.send(t, env, procedure.SubmitSignedUpdate, submission(good))
		twice.send(t, env, procedure.SubmitSignedUpdate, submission(good, root.Cert))
		late.send(t, env, procedure.SubmitSignedUpdate, submission(second))
	}, 72*time.Hour)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: offlineMesh(root)}, nil)
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}

	for _, want := range []string{"relaypki csr demo > demo.csr", "relaypki submit demo signed.pem", "CN=Example Root"} {
		if !strings.Contains(waits.Awaiting, want) || !waits.Person {
			t.Errorf("it does not wait for a person with %q: %+v", want, waits.Awaiting)
		}
	}
	if len(*told) != 1 || !strings.Contains((*told)[0], "SetupMesh of mesh demo: waits for the intermediate to be signed by the root CN=Example Root") {
		t.Errorf("people were told %q", *told)
	}
	if asked.CSRPEM != csrPEM || asked.Subject != "CN=gloo-mesh-mgmt-server-ca,O=mesh.solo.io" || asked.Root.Serial != pki.Serial(root.Cert) || asked.TTL.Hours() != 43800 || asked.MinLife.Hours() != 24*8 {
		t.Errorf("what is published: %+v", asked)
	}
	for i, want := range [][]string{{"another key", "it expired"}, {"was signed by the key"}, {"there is a private key in it"}, {"pem: is missing"}, {"unknown field", "pem: is missing"}} {
		if i >= len(wrong.refusals) {
			t.Fatalf("%d of 5 wrong answers were refused: %q", len(wrong.refusals), wrong.refusals)
		}
		for _, text := range want {
			if !strings.Contains(wrong.refusals[i], text) {
				t.Errorf("refusal %d does not say %q: %s", i, text, wrong.refusals[i])
			}
		}
	}
	if len(right.standings) != 1 || !strings.Contains(right.standings[0].Note, pki.Serial(good)) || right.standings[0].Awaiting != "" {
		t.Errorf("the right answer: %+v, %q", right.standings, right.refusals)
	}
	if len(twice.standings) != 1 {
		t.Errorf("the same once more: %q", twice.refusals)
	}
	if len(late.refusals) != 1 || !strings.Contains(late.refusals[0], "another certificate was accepted already") {
		t.Errorf("another one afterwards: %+v %q", late.standings, late.refusals)
	}
	if answer, err := env.QueryWorkflow(procedure.CSRQuery); err == nil || !strings.Contains(err.Error(), "nothing to be signed any more: "+pki.Name(good)) {
		t.Errorf("when it is signed, a CSR is still published: %v, %v", answer, err)
	}
	if o.imported.ChainPEM != string(pki.EncodeChain(good, root.Cert)) || o.imported.RootMount != "" || o.imported.RootPEM != string(pki.EncodeChain(root.Cert)) {
		t.Errorf("what was imported: %+v", o.imported)
	}
	for _, never := range []string{"GenerateRoot", "SignIntermediate"} {
		if o.count(never) > 0 {
			t.Errorf("%s was called: %q", never, o.calls)
		}
	}
	if n := o.count("EnablePKI"); n != 1 {
		t.Errorf("%d mounts were made, want the relay's alone", n)
	}
	if p := query(t, env); p.Person || p.Awaiting != "" {
		t.Errorf("at the end it still waits: %+v", p)
	}
}

// What is said to the run meanwhile does not make it forget what it waits for;
// aborted, it ends.
func TestWaitingForASignatureIsSteered(t *testing.T) {
	root := pkitest.Root(t, "Example Root")
	_, csrPEM := pkitest.CSR(t, pkitest.Key(t), relaySubject)
	o := &outside{differs: map[string]bool{"GenerateIntermediateCSR": true}, csr: csrPEM}
	env := newRun(t, o)
	env.SetStartTime(pkitest.Now)
	listening(env)
	steered := &answers{}
	for i, u := range []struct{ name, input string }{
		{procedure.PauseUpdate, `{"reason":"freeze"}`}, {procedure.ResumeUpdate, `{}`}, {procedure.RetryUpdate, `{}`},
	} {
		env.RegisterDelayedCallback(func() { steered.send(t, env, u.name, u.input) }, time.Duration(i+1)*time.Hour)
	}
	var p procedure.Progress
	env.RegisterDelayedCallback(func() {
		p = query(t, env)
		steered.send(t, env, procedure.AbortUpdate, `{"reason":"enough"}`)
	}, 5*time.Hour)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: offlineMesh(root)}, nil)
	o.failed(t, env.GetWorkflowError(), failure.Aborted, []string{"enough"}, []string{"SetSignedIntermediate"})
	if !p.Person || !strings.Contains(p.Awaiting, "relaypki submit demo") || len(steered.standings) != 4 {
		t.Errorf("after pause, resume and retry it waits for %q (a person: %v); %+v %q", p.Awaiting, p.Person, steered.standings, steered.refusals)
	}
	if o.count("ReleaseLock") != 1 {
		t.Error("the lock was not given back")
	}
}

// With the intermediate in place nothing is asked of anybody.
func TestSetupWithAnOfflineRootAgain(t *testing.T) {
	root := pkitest.Root(t, "Example Root")
	record := complete()
	record.Spec.PKI.Root = offlineMesh(root).PKI.Root
	o := &outside{record: record}
	env := newRun(t, o)
	env.SetStartTime(pkitest.Now)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: offlineMesh(root)}, nil)
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	writes := slices.DeleteFunc(o.writes(), func(c string) bool { return strings.HasPrefix(c, "EnsureSchedule") })
	if len(writes) > 0 || o.imported.ChainPEM != "" {
		t.Errorf("a setup of what is there called %q, imported %q", writes, o.imported.ChainPEM)
	}
}

func TestPlanWithAnOfflineRoot(t *testing.T) {
	root := pkitest.Root(t, "Example Root")
	o := &outside{differs: map[string]bool{"GenerateIntermediateCSR": true}}
	env := newRun(t, o)
	env.SetStartTime(pkitest.Now)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: offlineMesh(root), Plan: true}, nil)
	var result procedure.SetupResult
	if err := env.GetWorkflowResult(&result); err != nil {
		t.Fatal(err)
	}
	for _, s := range result.Steps {
		for _, c := range s.Changes {
			if s.Name == "intermediate CA" && strings.Contains(c.Detail, "the CSR is published, and the run waits for a person") && strings.Contains(strings.Join(c.Commands, "\n"), "relay-intermediate.csr") {
				return
			}
		}
	}
	t.Errorf("the plan does not say that a CSR is published and waited for: %+v", result.Steps)
}

// rotatedUnder is a mesh under a root that is kept outside Vault, and the CSR of its
// next intermediate.
func rotatedUnder(t *testing.T, root pkitest.Pair) (*outside, *x509.CertificateRequest) {
	t.Helper()
	csr, csrPEM := pkitest.CSR(t, pkitest.Key(t), relaySubject)
	o := rotated()
	o.record.Spec.PKI.Root, o.csr = offlineMesh(root).PKI.Root, csrPEM
	return o, csr
}

// A rotation under a root outside Vault waits in the same way.
func TestRotationWithAnOfflineRoot(t *testing.T) {
	root := pkitest.Root(t, "Example Root")
	o, csr := rotatedUnder(t, root)
	good := root.SignCSR(t, csr)
	env := newRun(t, o)
	env.SetStartTime(pkitest.Now)
	told := listening(env)
	var waits procedure.Progress
	wrong, right := &answers{}, &answers{}
	env.RegisterDelayedCallback(func() {
		waits = query(t, env)
		wrong.send(t, env, procedure.SubmitSignedUpdate, submission(root.Cert))
		right.send(t, env, procedure.SubmitSignedUpdate, submission(good))
	}, 72*time.Hour)
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo"}`))
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	if !waits.Person || !waits.Signing || !strings.Contains(waits.Awaiting, "relaypki submit demo signed.pem") || !strings.Contains(fmt.Sprint(*told), "waits for the intermediate to be signed") {
		t.Errorf("it does not wait for a person: %+v; people were told %q", waits, *told)
	}
	if len(wrong.refusals) != 1 || len(right.standings) != 1 {
		t.Errorf("refused were %q and %q", wrong.refusals, right.refusals)
	}
	if o.count("SignIntermediate") > 0 || o.imported.ChainPEM != string(pki.EncodeChain(good, root.Cert)) || len(strings.Join(o.rootMounts, "")) > 0 || o.imported.Generation != 2 {
		t.Errorf("what was imported: %+v", o.imported)
	}
	if err := o.pki.everywhere(2); err != nil {
		t.Error(err)
	}
}

// Taken back while it waits for the signature, a rotation has nothing to be signed
// any more: an answer that comes all the same is refused, and not taken in vain.
func TestRollBackWhileASignatureIsAwaited(t *testing.T) {
	root := pkitest.Root(t, "Example Root")
	o, csr := rotatedUnder(t, root)
	env := newRun(t, o)
	env.SetStartTime(pkitest.Now)
	listening(env)
	late := &answers{}
	o.calling = func(o *outside, activity, _ string) {
		if activity == "UseIssuer" && len(late.refusals)+len(late.standings) == 0 { // on its way back
			late.send(t, env, procedure.SubmitSignedUpdate, submission(root.SignCSR(t, csr)))
		}
	}
	env.RegisterDelayedCallback(func() {
		update(t, env, procedure.RollbackUpdate, `{"reason":"the root's keeper is away"}`)
	}, 72*time.Hour)
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo"}`))
	if err := env.GetWorkflowError(); failure.KindOf(err) != failure.RolledBack {
		t.Fatalf("it ended with %v", err)
	}
	if len(late.refusals) != 1 || !strings.Contains(late.refusals[0], `nothing to be signed: the run is at "rollback"`) {
		t.Errorf("an answer on the way back: %+v, refused %q", late.standings, late.refusals)
	}
	if answer, err := env.QueryWorkflow(procedure.CSRQuery); err == nil || !strings.Contains(err.Error(), "nothing to be signed") {
		t.Errorf("a CSR is still published: %v, %v", answer, err)
	}
	if o.imported.ChainPEM != "" || o.record.Rotation != nil {
		t.Errorf("imported %+v, recorded %+v", o.imported, o.record.Rotation)
	}
	if err := o.pki.everywhere(1); err != nil {
		t.Error(err)
	}
}

// A cluster that leaves the mesh in the days in which a signature is awaited does
// not hold the rotation up, be it the canary (the first) or another.
func TestMemberLeavesWhileASignatureIsAwaited(t *testing.T) {
	for _, name := range []string{"cluster1", "cluster2"} {
		t.Run(name, func(t *testing.T) {
			root := pkitest.Root(t, "Example Root")
			o, csr := rotatedUnder(t, root)
			env := newRun(t, o)
			env.SetStartTime(pkitest.Now)
			listening(env)
			env.RegisterDelayedCallback(func() {
				o.leaves(name)
				update(t, env, procedure.SubmitSignedUpdate, submission(root.SignCSR(t, csr)))
			}, 72*time.Hour)
			env.RegisterDelayedCallback(func() {
				if p := query(t, env); p.Person {
					t.Errorf("it waits for a person: %s", p.Awaiting)
					env.CancelWorkflow()
				}
			}, 80*time.Hour)
			env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo"}`))
			if err := env.GetWorkflowError(); err != nil {
				t.Fatal(err)
			}
			if err := o.pki.everywhere(2); err != nil {
				t.Error(err)
			}
		})
	}
}

// A root that cannot vouch for anything is refused before anything is touched.
func TestUnfitOfflineRoot(t *testing.T) {
	for name, c := range map[string]struct {
		valid pkitest.Option
		kind  failure.Kind
		says  string
		never []string
	}{
		"expired":       {pkitest.Valid(-99999*time.Hour, -time.Hour), failure.Preflight, "expired at", []string{"AcquireLock", "EnablePKI"}},
		"not valid yet": {pkitest.Valid(time.Hour, 99999*time.Hour), failure.Preflight, "is valid from", []string{"AcquireLock", "EnablePKI"}},
		// Long enough for what is there, not for a new intermediate.
		"ends soon": {pkitest.Valid(-99999*time.Hour, 48*time.Hour), failure.Preflight, "the mesh needs another root", []string{"SetSignedIntermediate"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := pkitest.Root(t, "Example Root", c.valid)
			_, csrPEM := pkitest.CSR(t, pkitest.Key(t), relaySubject)
			o := &outside{differs: map[string]bool{"GenerateIntermediateCSR": true}, csr: csrPEM}
			env := newRun(t, o)
			env.SetStartTime(pkitest.Now)
			env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: offlineMesh(root)}, nil)
			o.failed(t, env.GetWorkflowError(), c.kind, []string{c.says}, c.never)
		})
	}
}

// A rotation under a root that ends too soon for any intermediate is refused
// before there is anything of it; one under a root that ends before the life that
// was asked for is not.
func TestRotationUnderAnOfflineRootThatEnds(t *testing.T) {
	for left, refused := range map[time.Duration]bool{8*24*time.Hour - time.Minute: true, 9 * 24 * time.Hour: false} {
		root := pkitest.Root(t, "Example Root", pkitest.Valid(-99999*time.Hour, left))
		o, csr := rotatedUnder(t, root)
		env := newRun(t, o)
		env.SetStartTime(pkitest.Now)
		listening(env)
		env.RegisterDelayedCallback(func() {
			update(t, env, procedure.SubmitSignedUpdate, submission(root.SignCSR(t, csr, pkitest.Valid(-time.Hour, left))))
		}, time.Hour)
		env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo"}`))
		if !refused {
			if err := env.GetWorkflowError(); err != nil {
				t.Errorf("a root of %s: %v", left, err)
			}
			continue
		}
		o.failed(t, env.GetWorkflowError(), failure.Preflight, []string{"the mesh needs another root"}, []string{"GenerateIntermediateCSR", "SetSignedIntermediate"})
		if o.record.Rotation != nil {
			t.Errorf("recorded is %+v", o.record.Rotation)
		}
	}
}

// Nothing is waited for, so nothing is taken.
func TestNothingToSign(t *testing.T) {
	o := &outside{record: complete(), fails: map[string]error{"CheckClusters cluster1": failure.Transient(failure.Unavailable, "no route")}}
	env := newRun(t, o)
	env.SetStartTime(pkitest.Now)
	root := pkitest.Root(t, "Example Root")
	taken := later(t, env, procedure.SubmitSignedUpdate, submission(root.Cert))
	env.RegisterDelayedCallback(func() {
		if _, err := env.QueryWorkflow(procedure.CSRQuery); err == nil || !strings.Contains(err.Error(), "nothing to be signed") {
			t.Errorf("the query answers %v", err)
		}
	}, 2*time.Hour)
	env.RegisterDelayedCallback(func() { (&answers{}).send(t, env, procedure.AbortUpdate, `{"reason":"enough"}`) }, 3*time.Hour)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: spec}, nil)
	if len(taken.refusals) != 1 || !strings.Contains(taken.refusals[0], "nothing to be signed: the run is at") {
		t.Errorf("%+v %q", taken.standings, taken.refusals)
	}
}
