package workflows

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/testsuite"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/secret/secrettest"
)

// newOutsideWorld is the mesh of newRootWorld with a root that is kept outside Vault;
// its people have the keys of all roots.
func newOutsideWorld(t *testing.T) *rootWorld {
	t.Helper()
	w := newRootWorld(t)
	w.outside, w.keys = true, map[int]*ecdsa.PrivateKey{}
	w.roots[1].signs, w.roots[1].key = false, false
	w.o.record.Spec.PKI.Root = mesh.Root{Kept: mesh.KeptOffline, CertificatePEM: textOf(w.roots[1].Pair)}
	return w
}

// csr is that of an intermediate, always of the same key.
func (w *rootWorld) csr(generation int) string {
	if w.keys[generation] == nil {
		w.keys[generation] = pkitest.Key(w.t)
	}
	_, text := pkitest.CSR(w.t, w.keys[generation], relaySubject)
	return text
}

// imported brings what people have signed into Vault.
func (w *rootWorld) imported(in vault.BridgeInput) (out vault.CAResult, err error) {
	return out, w.act(fmt.Sprintf("bridge %d", in.Generation), func() error {
		root, err := certificateOf(in.NewRoot.CertificatePEM)
		if err != nil {
			return err
		}
		bridge, err := certificateOf(in.BridgePEM)
		if err != nil {
			return err
		}
		old, err := certificateOf(in.OldRoot.CertificatePEM)
		if err != nil {
			return err
		}
		if err := pki.CheckBridge(bridge, old, root); err != nil {
			return failure.Permanent(failure.Mismatch, "%v", err)
		}
		if in.OldRoot.Authority.Name == "" || in.OldRoot.Authority.IssuerID != "" {
			w.t.Errorf("the old root is %+v", in.OldRoot.Authority)
		}
		if have := w.roots[in.Generation]; have != nil && !have.Cert.Equal(root) {
			return failure.Permanent(failure.Conflict, "the name is another root's")
		}
		w.roots[in.Generation] = &worldCA{Pair: pkitest.Pair{Cert: root}}
		out.CertificatePEM = in.BridgePEM
		if _, there := w.byText(in.BridgePEM); !there {
			w.bridges = append(w.bridges, pkitest.Pair{Cert: bridge})
		}
		return nil
	})
}

// signedOutside is the intermediate that people have signed.
func (w *rootWorld) signedOutside(in vault.IntermediateInput) pkitest.Pair {
	c, err := certificateOf(in.ChainPEM)
	if err != nil || in.RootMount != "" || in.RootIssuerID != "" {
		w.t.Errorf("what was signed outside comes as %+v: %v", in, err)
	}
	return pkitest.Pair{Cert: c, Key: w.keys[in.Generation]}
}

// keeper is whoever keeps the roots.
type keeper struct {
	w *rootWorld
	// root is the one at work, next the one that was made last.
	root, next pkitest.Pair
	// answers are those that were given, by the CSR's key; asked counts the questions.
	answers map[string]string
	asked   int
	wait    procedure.Progress
	signing procedure.Signing
}

func newKeeper(w *rootWorld) *keeper {
	return &keeper{w: w, root: w.roots[1].Pair, answers: map[string]string{}}
}

// answers what the run waits for: all that is to be signed.
func (k *keeper) answer(p procedure.Progress) (name, input string) {
	if !p.Signing {
		return approving(p)
	}
	value, err := k.w.env.QueryWorkflow(procedure.CSRQuery)
	if err == nil {
		err = value.Get(&k.signing)
	}
	if err != nil {
		k.w.t.Error(err)
		return "", ""
	}
	k.asked, k.wait = k.asked+1, p
	csr, err := pki.ParseCSR([]byte(k.signing.CSRPEM))
	if err != nil {
		k.w.t.Error(err)
		return "", ""
	}
	key := k.signing.Key
	if k.answers[key] == "" {
		k.next = pkitest.Root(k.w.t, fmt.Sprintf("%s, the one after", k.root.Cert.Subject.CommonName))
		k.answers[key] = submission(k.root.Cross(k.w.t, k.next).Cert, k.next.Cert, k.next.SignCSR(k.w.t, csr))
	}
	return procedure.SubmitSignedUpdate, k.answers[key]
}

// A root outside Vault is rotated: people are asked once for all three certificates,
// wrong ones are refused with all that is wrong, and with the right ones it goes its way.
func TestRotateRootOutside(t *testing.T) {
	w := newOutsideWorld(t)
	k := newKeeper(w)
	r1 := w.o.record.Spec.PKI.Root.CertificatePEM
	var told *[]string
	brief := pkitest.Root(t, "relay-root G2", pkitest.Valid(-time.Hour, 2*365*24*time.Hour)) // of a shorter life than an intermediate is asked for
	wrong, twice, late := &answers{}, &answers{}, &answers{}
	result, err := w.start(unattended, func(env *testsuite.TestWorkflowEnvironment) {
		told = listening(env)
		env.RegisterDelayedCallback(func() { // three days on
			name, right := k.answer(query(t, env))
			csr, _ := pki.ParseCSR([]byte(k.signing.CSRPEM))
			for _, in := range []string{
				submission(k.next.SignCSR(t, csr)),
				submission(brief.SignCSR(t, csr, pkitest.Valid(-time.Hour, 3000*time.Hour+365*24*time.Hour)), brief.Cert, k.root.Cross(t, brief).Cert),
				submission(k.next.SignCSR(t, csr, pkitest.Valid(-2*time.Hour, -time.Hour)), k.next.Cert, k.next.Cross(t, k.next).Cert, k.root.Cert),
				submissionOf(secrettest.Key), submissionOf(""),
			} {
				wrong.send(t, env, name, in)
			}
			update(t, env, name, right)
			twice.send(t, env, name, right)
			late.send(t, env, name, submission(k.root.Cross(t, k.next).Cert, k.next.Cert, k.next.SignCSR(t, csr)))
		}, 72*time.Hour)
	})
	if err != nil {
		t.Fatal(err)
	}
	w.everywhere(2, 2)
	for i, want := range [][]string{{"there is no new root in it", "there is no bridge in it"}, {"the new root: the mesh cannot have it: pki.intermediate.ttl"}, {"the intermediate: it expired", "the bridge: ", "the root at work"}, {"there is a private key in it"}, {"is missing"}} {
		if i >= len(wrong.refusals) {
			t.Fatalf("%d of 5 wrong answers were refused: %q", len(wrong.refusals), wrong.refusals)
		}
		for _, text := range want {
			if !strings.Contains(wrong.refusals[i], text) {
				t.Errorf("refusal %d does not say %q: %s", i, text, wrong.refusals[i])
			}
		}
	}
	if len(twice.standings) != 1 || len(late.refusals) != 1 || !strings.Contains(late.refusals[0], "another certificate was accepted already") {
		t.Errorf("the same once more: %q; another: %+v, %q", twice.refusals, late.standings, late.refusals)
	}
	for _, want := range []string{"a new root, which is kept outside Vault, to be made", "relaypki csr demo > demo.csr", "relaypki submit demo signed.pem"} {
		if !k.wait.Person || !strings.Contains(k.wait.Awaiting, want) || !strings.Contains(strings.Join(*told, "\n"), want) {
			t.Errorf("it does not wait for a person with %q, but %q; people were told %q", want, k.wait.Awaiting, *told)
		}
	}
	if s := k.signing; !s.NewRoot || s.Root.Serial != pki.Serial(k.root.Cert) || !strings.Contains(s.Advice, "bridge") || s.MinLife.Hours() != 24*8 {
		t.Errorf("what is published: %+v", s)
	}
	w.order("Survey", "record >", "intermediate 1", "CSR", "record >", "bridge 2", "intermediate 2", "record bridged>", "trust cluster1 +2",
		"role 2 cluster1", "reissue cluster1", "give pivot", "give final", "trust cluster1 -1", "use intermediate 1 false", "record the end")
	if w.count("root ")+w.count("use root") > 0 {
		t.Errorf("a root was to be made or changed in Vault: %q", w.events)
	}
	r2 := textOf(k.next)
	if w.o.record.Spec.PKI.Root.CertificatePEM != r2 || result.RootPEM != r2 || r2 == r1 || w.o.record.Spec.PKI.Root.Kept != mesh.KeptOffline {
		t.Error("the record, or the result, has another root than the new one")
	}
	if end := (*told)[len(*told)-1]; !strings.Contains(end, "pki.root.certificatePEM of the mesh's file has to be the new root's") || !strings.Contains(end, pki.Serial(k.next.Cert)) {
		t.Errorf("at the end people were told %q", end)
	}

	// And once more, from there.
	k.root = k.next
	if _, err := w.start(`{"mesh":"demo"}`, w.attended(k.answer)); err != nil {
		t.Fatal(err)
	}
	w.everywhere(3, 3)
	if w.o.record.Spec.PKI.Root.CertificatePEM != textOf(k.next) {
		t.Error("the record has another root than the newest")
	}
}

// Wherever the run is lost, the next one finishes the rotation with what there is, and
// nobody is asked again for what was accepted.
func TestRotateRootOutsideGoesOn(t *testing.T) {
	withoutRaceDetector(t)
	for _, event := range []string{"bridge 2", "intermediate 2", "record bridged>", "trust cluster2 +2", "give pivot", "give final", "trust cluster3 -1", "use intermediate 1 false", "record the end"} {
		t.Run(event, func(t *testing.T) {
			w := newOutsideWorld(t)
			k := newKeeper(w)
			w.fails[event] = failure.Permanent(failure.Unavailable, "the run is lost here")
			_, err := w.start(unattended, w.attended(k.answer), func(env *testsuite.TestWorkflowEnvironment) {
				env.RegisterDelayedCallback(env.CancelWorkflow, 100*time.Hour)
			})
			if err == nil || k.asked == 0 {
				t.Fatalf("it is not lost: %v", err)
			}
			delete(w.fails, event)
			asked := k.asked
			if _, err := w.start(unattended, w.attended(k.answer)); err != nil {
				t.Fatal(err)
			}
			w.everywhere(2, 2)
			if k.asked > asked {
				t.Error("it was asked for what had been accepted")
			}
			if w.o.record.Spec.PKI.Root.CertificatePEM != textOf(k.next) {
				t.Error("the record has another root than the new one")
			}
		})
	}
}

// Lost while it waits, the next run asks for the same key, and takes what was signed
// for the CSR of the one before.
func TestRotateRootOutsideLostWhileItWaits(t *testing.T) {
	w := newOutsideWorld(t)
	k := newKeeper(w)
	if _, err := w.start(unattended, func(env *testsuite.TestWorkflowEnvironment) {
		env.RegisterDelayedCallback(func() { k.answer(query(t, env)) }, 24*time.Hour) // it is being signed
		env.RegisterDelayedCallback(env.CancelWorkflow, 48*time.Hour)
	}); err == nil || w.o.record.Rotation == nil || w.o.record.Rotation.Signed != nil || len(k.answers) != 1 {
		t.Fatalf("%v, recorded %+v", err, w.o.record.Rotation)
	}
	if _, err := w.start(unattended, w.attended(k.answer)); err != nil {
		t.Fatal(err)
	}
	w.everywhere(2, 2)
	if len(k.answers) != 1 {
		t.Error("the second run made a second key")
	}
}

// Taken back, from the wait and from later phases, the mesh and its record are of the
// old root, and the next rotation asks for another.
func TestRotateRootOutsideTakenBack(t *testing.T) {
	withoutRaceDetector(t)
	for _, event := range []string{"the wait", "bridge 2", "give pivot", "give final", "trust cluster3 -1"} {
		t.Run(event, func(t *testing.T) {
			w := newOutsideWorld(t)
			k := newKeeper(w)
			r1 := w.o.record.Spec.PKI.Root.CertificatePEM
			w.fails[event] = failure.Permanent(failure.Unavailable, "as far as this")
			people := w.attended(k.answer)
			if event == "the wait" {
				people = func(env *testsuite.TestWorkflowEnvironment) {
					env.RegisterDelayedCallback(func() { update(t, env, procedure.RollbackUpdate, `{"reason":"the root's keeper is away"}`) }, 24*time.Hour)
				}
			}
			_, err := w.start(unattended, people, func(env *testsuite.TestWorkflowEnvironment) {
				env.RegisterDelayedCallback(env.CancelWorkflow, 100*time.Hour)
			})
			if event == "the wait" {
				if failure.KindOf(err) != failure.RolledBack {
					t.Fatalf("it ended with %v", err)
				}
			} else if delete(w.fails, event); err == nil {
				t.Fatal("it came to its end")
			} else if _, err := w.start(rollBack); err != nil {
				t.Fatal(err)
			}
			w.everywhere(1, 1)
			if w.count("use root") > 0 || w.o.record.Spec.PKI.Root.CertificatePEM != r1 {
				t.Errorf("a root was changed in Vault, or the record: %q", w.events)
			}
			if _, err := w.start(unattended, w.attended(k.answer)); err != nil {
				t.Fatal(err)
			}
			to := 3
			if event == "the wait" || event == "bridge 2" { // nothing of the first is there
				to = 2
			}
			w.everywhere(to, to)
			if w.o.record.Spec.PKI.Root.CertificatePEM != textOf(k.next) {
				t.Error("the record has another root than the new one")
			}
		})
	}
}

// What cannot come to a good end is refused before anybody is asked for anything.
func TestRotateRootOutsideRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		input   string
		options []pkitest.Option
		kind    failure.Kind
		says    string
	}{
		"a path length that forbids the bridge": {unattended, []pkitest.Option{func(c *x509.Certificate) { c.MaxPathLen = 1 }}, failure.Preflight, "path length 1"},
		"too little life left": {unattended, []pkitest.Option{func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().AddDate(-10, 0, 0), time.Now().AddDate(0, 0, 8)
		}}, failure.Preflight, "does not live long enough"},
		"what the new root is to be like": {`{"mesh":"demo","approval":"none","root":{"keyType":"ec"}}`, nil, failure.InvalidInput, "up to whoever makes it"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newOutsideWorld(t)
			r := pkitest.Root(t, "relay-root", c.options...)
			w.roots[1].Pair = r
			w.intermediates[1] = &worldCA{Pair: r.Intermediate(t, "relay-intermediate"), signs: true, key: true, above: []pkitest.Pair{r}}
			for _, name := range append(w.members(), "") {
				w.renew(name)
				if name != "" {
					w.trust[name] = []*x509.Certificate{r.Cert}
				}
				w.reload(name)
			}
			w.o.record.Spec.PKI.Root.CertificatePEM = textOf(r)
			_, err := w.start(c.input)
			if failure.KindOf(err) != c.kind || !strings.Contains(failure.Message(err), c.says) {
				t.Errorf("it ended with %v", err)
			}
			if w.o.count("AcquireLock") > 0 || w.o.record.Rotation != nil {
				t.Errorf("something was changed: %q", w.o.calls)
			}
		})
	}
}

// An emergency replaces leaves under such a root, and no CA: it has nobody to sign one.
func TestEmergencyUnderARootOutside(t *testing.T) {
	w := newOutsideWorld(t)
	for _, input := range []string{intermediateGone + contained, `"compromised":"root","first":"containment"`, `"compromised":"leaf","clusters":["cluster2"],"distrust":true,"first":"containment"`} {
		if _, err := w.emergency(input); failure.KindOf(err) != failure.InvalidInput || !strings.Contains(failure.Message(err), "relaypki rotate intermediate demo") || !strings.Contains(failure.Message(err), "relaypki emergency leaf demo CLUSTER... without --distrust") {
			t.Errorf("%s: it ended with %v", input, err)
		}
		if w.o.record.Rotation != nil || len(w.events) > 0 {
			t.Errorf("%s: something was changed: %q", input, w.events)
		}
	}
	if _, err := w.emergency(`"compromised":"leaf","clusters":["cluster2"]`); err != nil {
		t.Fatal(err)
	}
	w.order("freeze true", "take over", "reissue cluster2", "restart cluster2", "reissue", "restart mgmt", "freeze false", "record the end")
	w.everywhere(1, 1)

	// Nor is a leaf's dealt with by another CA while one is rotated.
	w.o.record.Rotation = &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, Workflow: "rotate-intermediate-demo", From: 1, To: 2, FromRoot: 1, ToRoot: 1}
	if _, err := w.emergency(`"compromised":"leaf","clusters":["cluster2"]`); failure.KindOf(err) != failure.Conflict || !strings.Contains(failure.Message(err), "relaypki rollback demo") || strings.Contains(failure.Message(err), "--distrust") {
		t.Errorf("while an intermediate is rotated it ended with %v", err)
	}
}

// A plan says what people do, and changes nothing.
func TestPlanOfARotationOfARootOutside(t *testing.T) {
	w := newOutsideWorld(t)
	result, err := w.start(`{"mesh":"demo","plan":true}`)
	if err != nil {
		t.Fatal(err)
	}
	if len(w.o.writes()) > 0 || len(w.roots) != 1 {
		t.Errorf("a plan has changed something: %q", w.o.writes())
	}
	data, _ := json.Marshal(result.Steps)
	for _, want := range []string{"the run waits for a person to hand in all three", "make a new root of another key and name than CN=relay-root", "relay-bridge.pem"} {
		if !strings.Contains(string(data), want) {
			t.Errorf("the plan does not say %q: %s", want, data)
		}
	}
}

// A setup with the root of before a rotation, or with one that nobody trusts yet, is
// refused before anything is touched; the right one in other words is not.
func TestSetupWithAnotherOfflineRoot(t *testing.T) {
	r1, r2 := pkitest.Root(t, "Example Root"), pkitest.Root(t, "Example Root G2")
	for name, c := range map[string]struct {
		recorded, given string
		complete        bool
		generation      int
		refused         bool
	}{
		"the old one, after a rotation":                    {textOf(r2), textOf(r1), true, 2, true},
		"the old one, after a rotation, in a mesh to mend": {textOf(r2), textOf(r1), false, 2, true},
		"a new one, before a rotation":                     {textOf(r1), textOf(r2), true, 1, true},
		"the same in other words":                          {textOf(r1), "\n" + textOf(r1) + "\n", true, 1, false},
		"another, before the mesh is set up":               {textOf(r1), textOf(r2), false, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			record := complete()
			record.Spec.PKI.Root = mesh.Root{Kept: mesh.KeptOffline, CertificatePEM: c.recorded}
			record.Complete, record.Generations = c.complete, procedure.Generations{Root: c.generation, Intermediate: c.generation}
			o := &outside{record: record}
			env := newRun(t, o)
			asked := spec
			asked.PKI.Root = mesh.Root{Kept: mesh.KeptOffline, CertificatePEM: c.given}
			env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: asked}, nil)
			err := env.GetWorkflowError()
			if !c.refused {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if message := failure.Message(err); failure.KindOf(err) != failure.InvalidInput || !strings.Contains(message, "pki.root.certificatePEM") || !strings.Contains(message, "relaypki rotate root demo") {
				t.Errorf("it ended with %v", err)
			}
			if len(o.writes()) > 0 {
				t.Errorf("something was touched: %q", o.writes())
			}
		})
	}
}

// A setup whose input has lost that the root is kept outside Vault makes none in Vault.
func TestSetupThatHasLostItsOfflineRoot(t *testing.T) {
	record := complete()
	record.Spec.PKI.Root = mesh.Root{Kept: mesh.KeptOffline, CertificatePEM: textOf(pkitest.Root(t, "Example Root"))}
	record.Generations = procedure.Generations{Root: 1, Intermediate: 1}
	o := &outside{record: record}
	env := newRun(t, o)
	env.ExecuteWorkflow(SetupMesh, procedure.SetupInput{Spec: spec}, nil)
	if err := env.GetWorkflowError(); failure.KindOf(err) != failure.InvalidInput || !strings.Contains(failure.Message(err), "pki.root.kept: it is not offline") {
		t.Errorf("it ended with %v", err)
	}
	if len(o.writes()) > 0 {
		t.Errorf("something was touched: %q", o.writes())
	}
}
