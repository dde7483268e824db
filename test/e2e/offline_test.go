package e2e

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.temporal.io/api/serviceerror"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
)

// lives is a lifetime by the clock.
func lives(from, until time.Duration) pkitest.Option {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(until) }
}

const year = 365 * 24 * time.Hour

// files is where people keep what they carry between a root and Vault.
type files struct{ dir string }

func (f files) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (f files) certificates(t *testing.T, name string, list ...*x509.Certificate) string {
	t.Helper()
	return f.write(t, name, string(pki.EncodeChain(list...)))
}

// The root is kept outside Vault; its key is the test's. A setup publishes the
// CSR and waits, through the loss of its worker and of its history; wrong answers
// are refused one by one, each for what is wrong with it; with the right one the
// mesh is set up, works, and takes another member. Then its intermediate is
// rotated, in the same way, and at last the root itself.
func TestOfflineRoot(t *testing.T) {
	w := labWorld(t, "cluster1", "cluster2")
	worker, hook := w.startTellingWorker(t)
	f := files{t.TempDir()}
	write := func(name, text string) string { t.Helper(); return f.write(t, name, text) }
	certificates := func(name string, list ...*x509.Certificate) string {
		t.Helper()
		return f.certificates(t, name, list...)
	}
	key := func(p pkitest.Pair) string {
		der, err := x509.MarshalPKCS8PrivateKey(p.Key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	mesh := func(root string, others ...string) string {
		workloads := []any{map[string]any{"name": "cluster1"}}
		for _, name := range others {
			workloads = append(workloads, map[string]any{"name": name})
		}
		leaf := map[string]any{"keyAlgorithm": "ECDSA"} // handshakes cost the machine less
		document, err := json.Marshal(map[string]any{"mesh": "offline", "workloads": workloads,
			"pki":          map[string]any{"root": map[string]any{"kept": "offline", "certificatePEM": root}},
			"certificates": map[string]any{"server": leaf, "client": leaf},
			"gloo":         map[string]any{"agentValues": map[string]any{"standin": map[string]any{"agent": map[string]any{"reload": "restartOnly", "handshakeRate": handshakeRate, "tallyEvery": "1s"}}}},
			"rotation":     map[string]any{"approval": "none", "snapshot": "none", "soak": "1s"}})
		if err != nil {
			t.Fatal(err)
		}
		return write("mesh.json", string(document))
	}
	root := pkitest.Root(t, "Example Root", lives(-year, 20*year))
	twin := pkitest.Root(t, "Example Root", lives(-year, 20*year))

	// A root that cannot be one is refused before anything is started.
	narrow := pkitest.Root(t, "Example Root", lives(-year, 20*year), func(c *x509.Certificate) { c.MaxPathLenZero = true })
	for _, test := range []struct{ root, want string }{
		{string(pki.EncodeChain(narrow.Cert)), "has path length 0: it allows no intermediate"},
		{string(pki.EncodeChain(root.Intermediate(t, "I", lives(-year, 19*year)).Cert)), "is not self-signed"},
		{string(pki.EncodeChain(root.Cert)) + key(root), "holds a private key"},
	} {
		if _, errOut := w.command(t, exitBadInput, "setup", "-f", mesh(test.root)); !strings.Contains(errOut, test.want) {
			t.Errorf("a wrong root: lacks %q:\n%s", test.want, errOut)
		}
	}

	file := mesh(string(pki.EncodeChain(root.Cert)))
	if out, _ := w.command(t, 0, "setup", "-f", file, "--plan"); !strings.Contains(out, "the CSR is published, and the run waits for a person") {
		t.Errorf("the plan does not say what a person will have to do:\n%s", out)
	}
	_, errOut := w.command(t, exitWaiting, "setup", "-f", file)
	for _, want := range []string{"signed by the root CN=Example Root, which is kept outside Vault", "Next: relaypki csr offline > offline.csr\n", "relaypki submit offline signed.pem\n"} {
		if !strings.Contains(errOut, want) {
			t.Errorf("lacks %q:\n%s", want, errOut)
		}
	}
	if out, _ := w.command(t, 0, "status", "offline"); !strings.Contains(out, "waits for you") || !strings.Contains(out, "relaypki submit offline signed.pem") {
		t.Errorf("status does not show what waits:\n%s", out)
	}
	csr := w.publishedCSR(t)

	foreign, _ := pkitest.CSR(t, pkitest.Key(t), csr.Subject)
	renamed := pkix.Name{CommonName: "somebody-else"}
	good := root.SignCSR(t, csr, lives(-time.Hour, 3*year))
	for _, test := range []struct{ name, file, want string }{
		{"another key", certificates("key.pem", root.SignCSR(t, foreign, lives(-time.Hour, 3*year))), "it is for another key"},
		{"another subject", certificates("subject.pem", root.SignCSR(t, csr, lives(-time.Hour, 3*year), func(c *x509.Certificate) { c.RawSubject, c.Subject = nil, renamed })), `its subject is "CN=somebody-else"`},
		{"no CA", certificates("leaf.pem", root.SignCSR(t, csr, lives(-time.Hour, 3*year), func(c *x509.Certificate) { c.IsCA, c.MaxPathLenZero = false, false })), "it is no CA certificate"},
		{"may not sign", certificates("usage.pem", root.SignCSR(t, csr, lives(-time.Hour, 3*year), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })), "keyCertSign"},
		{"expired", certificates("expired.pem", root.SignCSR(t, csr, lives(-2*time.Hour, -time.Hour))), "it expired at"},
		{"not valid yet", certificates("early.pem", root.SignCSR(t, csr, lives(time.Hour, 3*year))), "it is valid from"},
		{"too short", certificates("short.pem", root.SignCSR(t, csr, lives(-time.Hour, 7*24*time.Hour))), "too short, it has to be until"},
		{"longer than its root", certificates("long.pem", root.SignCSR(t, csr, lives(-time.Hour, 21*year))), "longer than its issuer"},
		{"another root of that name", certificates("twin.pem", twin.SignCSR(t, csr, lives(-time.Hour, 3*year))), "was signed by the key"},
		{"self-signed", certificates("self.pem", twin.Cert), "it is self-signed"},
		{"the root in its place", certificates("root.pem", root.Cert), "it is the root itself"},
		{"wrong order", certificates("order.pem", root.Cert, good), "the root comes first"},
		{"another root behind it", certificates("behind.pem", good, twin.Cert), "is not the root of this mesh"},
		{"a private key in it", write("secret.pem", string(pki.EncodeChain(good))+key(root)), "there is a private key in"},
		{"no certificate", write("text.pem", "signed, yours sincerely"), "cannot be handed in"},
		{"a CSR", write("csr.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw}))), "not a CERTIFICATE"},
	} {
		if _, errOut := w.command(t, exitBadInput, "submit", "offline", test.file); !strings.Contains(errOut, test.want) {
			t.Errorf("%s: lacks %q:\n%s", test.name, test.want, errOut)
		}
	}
	// All that is wrong comes at once, and to whoever uses Temporal's own command.
	handIn := func(pem string) string {
		t.Helper()
		input, err := json.Marshal(procedure.SubmitSignedInput{PEM: pem})
		if err != nil {
			t.Fatal(err)
		}
		return w.sh(t, fmt.Sprintf("temporal workflow update execute -w setup-offline --name submitSigned --input-file %s 2>&1 || true", write("update.json", string(input))))
	}
	out := handIn(string(pki.EncodeChain(twin.SignCSR(t, foreign, lives(-2*time.Hour, -time.Hour)))))
	for _, want := range []string{"it is for another key", "it expired at", "was signed by the key"} {
		if !strings.Contains(out, want) {
			t.Errorf("temporal workflow update lacks %q:\n%s", want, out)
		}
	}
	if out := handIn(string(pki.EncodeChain(good)) + key(root)); !strings.Contains(out, "there is a private key in it") {
		t.Errorf("temporal workflow update with a private key says:\n%s", out)
	}
	if out := w.sh(t, "temporal workflow query -w setup-offline --type csr"); !strings.Contains(out, "BEGIN CERTIFICATE REQUEST") {
		t.Errorf("temporal workflow query shows no CSR:\n%s", out)
	}

	// The worker dies, and then the run with its history: what was asked for stays
	// asked for, and the answer to the first CSR is an answer.
	worker.kill()
	worker.start()
	if again := w.publishedCSR(t); string(again.Raw) != string(csr.Raw) {
		t.Error("after the worker's death another CSR is published")
	}
	w.loseRun(t, "setup-offline")
	w.command(t, exitWaiting, "setup", "-f", file)
	if again := w.publishedCSR(t); string(again.RawSubjectPublicKeyInfo) != string(csr.RawSubjectPublicKeyInfo) {
		t.Error("the second run made a second key")
	}
	standing := w.standing(t, "submit", "offline", certificates("signed.pem", good))
	if !strings.Contains(standing.Note, pki.Serial(good)) || !strings.Contains(standing.Note, "43800h was asked for") || standing.Awaiting != "" {
		t.Errorf("the right answer: %+v", standing)
	}
	result := w.setup(t, file)
	if result.Root.Serial != pki.Serial(root.Cert) || result.Relay.Serial != pki.Serial(good) || result.Verification == nil || !result.Verification.Healthy {
		t.Errorf("the setup ended with %+v", result)
	}
	w.command(t, 0, "verify", "offline")

	// Again nothing is asked of anybody; another member joins under that root.
	if again := w.setup(t, file); again.Changed {
		t.Errorf("the second setup changed something: %+v", again.Steps)
	}
	w.command(t, exitBadInput, "submit", "offline", certificates("signed.pem", good)) // nothing runs
	w.command(t, 0, "add-cluster", "offline", "cluster2")
	for _, c := range w.clusters {
		trust, err := w.cluster(t, c).kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), "relay-root-tls-secret", metav1.GetOptions{})
		if err != nil || strings.TrimSpace(string(trust.Data["ca.crt"])) != strings.TrimSpace(string(pki.EncodeChain(root.Cert))) {
			t.Errorf("%s does not trust the root: %v", c, err)
		}
	}
	o := offlineRotation{w: w, worker: worker, hook: hook, files: f, root: root, twin: twin, next: pkitest.Root(t, "Example Root G2", lives(-time.Hour, 20*year)), first: csr}
	o.run(t)

	// The file has the old root still, which nobody trusts any more.
	out, errOut, code := w.relaypki(t, "setup", "-f", mesh(string(pki.EncodeChain(root.Cert)), "cluster2"))
	if text := out + errOut; code == 0 || !strings.Contains(text, "pki.root.certificatePEM") || !strings.Contains(text, `the mesh is under "Example Root G2"`) {
		t.Errorf("a setup with the old root: exit code %d, lacks what is wrong:\n%s", code, text)
	}
	if again := w.setup(t, mesh(string(pki.EncodeChain(o.next.Cert)), "cluster2")); again.Changed || again.Root.Serial != pki.Serial(o.next.Cert) {
		t.Errorf("a setup with the new root changed something: %+v", again.Steps)
	}
	if mount, err := w.vault(t).Logical().Read("sys/mounts/pki"); err == nil && mount != nil {
		t.Error("there is a root mount in Vault")
	}
	w.noSecrets(t)
}

// offlineRotation rotates the intermediate of the mesh "offline", and its root.
type offlineRotation struct {
	files
	w          *world
	worker     *worker
	hook       *webhook
	root, twin pkitest.Pair
	// next is the root that it goes to at last.
	next pkitest.Pair
	// first is the CSR of the intermediate that the setup has made.
	first *x509.CertificateRequest
}

// run has it taken back while it waits for the signature, then done, through the
// loss of the worker and of the history, and then once more by the schedule, which
// finds the new one due; agents shake hands all the while.
func (o offlineRotation) run(t *testing.T) {
	w, id := o.w, procedure.ID(procedure.RotateIntermediateCA, "offline")
	trust, watched := w.trust(t), w.watchHandshakes(t)

	// What people will have to do, they are told before.
	if out, _ := w.command(t, 0, "rotate", "intermediate", "offline", "--plan"); !strings.Contains(out, "relay-intermediate-g2") ||
		!strings.Contains(out, "signed outside Vault by CN=Example Root: the CSR is published, and the run waits for a person to hand it in") {
		t.Errorf("the plan does not say what a person will have to do:\n%s", out)
	}
	if out, _ := w.command(t, 0, "rotate", "intermediate", "offline", "--plan", "-o", "commands"); !strings.Contains(out, "# Have the root CN=Example Root sign it, as a CA, into relay-intermediate.pem") {
		t.Errorf("the plan's commands do not say what a person will have to do:\n%s", out)
	}

	// And when it waits for them, by all that they may look at.
	o.waits(t)
	second := w.publishedCSR(t)
	if string(second.RawSubjectPublicKeyInfo) == string(o.first.RawSubjectPublicKeyInfo) {
		t.Error("the new intermediate has the key of the one at work")
	}
	none(t, w.notRotated(t, generations{active: 1, unsigned: []int{2}}, trust))
	if looked := w.maintained(t); looked.Waiting == nil || looked.Waiting.Workflow != id || !strings.Contains(looked.Waiting.For, "relaypki submit offline signed.pem") || len(looked.Started) > 0 {
		t.Errorf("the schedule's look: %+v", looked)
	}
	w.command(t, 0, "verify", "offline")

	// Taken back, it wants no signature any more.
	w.command(t, 0, "rollback", "offline", "--reason", "the root's keeper is away")
	if err := w.temporal(t).GetWorkflow(t.Context(), id, "").Get(t.Context(), nil); failure.KindOf(err) != failure.RolledBack {
		t.Fatalf("taken back, it ended with %v", err)
	}
	w.command(t, exitBadInput, "submit", "offline", o.signed(t, second))
	w.command(t, exitBadInput, "csr", "offline")
	none(t, w.notRotated(t, generations{active: 1, unsigned: []int{2}}, trust))

	// The next one makes a key of its own.
	o.waits(t)
	third := w.publishedCSR(t)
	for _, test := range []struct{ name, file, want string }{
		{"the answer to the setup's CSR", o.signed(t, o.first), "it is for another key"},
		{"the answer to the CSR of the one taken back", o.signed(t, second), "it is for another key"},
		{"the intermediate at work", o.certificates(t, "old.pem", w.issuer(t, "relay-intermediate-g1").certificate), "it is for another key"},
		{"another root of that name", o.certificates(t, "twin.pem", o.twin.SignCSR(t, third, lives(-time.Hour, 3*year))), "was signed by the key"},
		{"too short", o.certificates(t, "short.pem", o.root.SignCSR(t, third, lives(-time.Hour, 7*24*time.Hour))), "too short, it has to be until"},
		{"the root in its place", o.certificates(t, "root.pem", o.root.Cert), "it is the root itself"},
	} {
		if _, errOut := w.command(t, exitBadInput, "submit", "offline", test.file); !strings.Contains(errOut, test.want) {
			t.Errorf("%s: lacks %q:\n%s", test.name, test.want, errOut)
		}
	}

	// The worker dies, and then the run with its history: the key stays, and with it
	// what was signed for the CSR of the run that is lost.
	o.worker.kill()
	o.worker.start()
	if again := w.publishedCSR(t); string(again.Raw) != string(third.Raw) {
		t.Error("after the worker's death another CSR is published")
	}
	w.loseRun(t, id)
	o.waits(t)
	if again := w.publishedCSR(t); string(again.RawSubjectPublicKeyInfo) != string(third.RawSubjectPublicKeyInfo) {
		t.Error("the second run made a second key")
	}
	none(t, w.notRotated(t, generations{active: 1, unsigned: []int{2, 3}}, trust))

	// What comes back is from a root that gives a year and two months, and has taken
	// its time.
	o.finishes(t, o.certificates(t, "signed.pem", o.root.SignCSR(t, third, lives(-year, 60*24*time.Hour))), 3)
	none(t, w.notRotated(t, generations{active: 3, retired: []int{1}, unsigned: []int{2}}, trust))

	// So the next one is due already: the schedule begins it, and it is not at rest
	// before people have heard of it.
	before := len(o.hook.told())
	if looked := w.maintained(t); !slices.Equal(looked.Started, []string{id}) {
		t.Fatalf("of what is due the schedule started %q: %+v", looked.Started, looked.Decisions)
	}
	eventually(t, time.Minute, func() error {
		told := o.hook.told()[before:]
		for _, text := range told {
			if strings.Contains(text, "RotateIntermediateCA of mesh offline: waits for the intermediate to be signed by the root CN=Example Root") && strings.Contains(text, "relaypki submit offline signed.pem") {
				return nil
			}
		}
		return fmt.Errorf("people were not told that a signature is awaited, but %q", told)
	})
	o.waits(t)
	if looked := w.maintained(t); len(looked.Started) > 0 || looked.Waiting == nil || looked.Waiting.Workflow != id {
		t.Errorf("the schedule's next look: %+v", looked)
	}
	o.finishes(t, o.signed(t, w.publishedCSR(t)), 4)
	none(t, w.notRotated(t, generations{active: 4, retired: []int{1, 3}, unsigned: []int{2}}, trust))
	w.command(t, 0, "verify", "offline")
	o.newRoot(t, 5)
	none(t, watched.ended(t).problems(0))

	// A leaf that is compromised takes no signature of anybody's; a CA would.
	was := w.revisions(t)
	w.command(t, 0, "emergency", "leaf", "offline", "cluster1", "--reason", "a laptop was stolen", "--incident", "INC-1", "--yes")
	if is := w.revisions(t); is["cluster1"] <= was["cluster1"] || is[management] <= was[management] || is["cluster2"] != was["cluster2"] {
		t.Errorf("issued anew from %v to %v", was, is)
	}
	if _, errOut := w.command(t, exitFailed, "emergency", "intermediate", "offline", "--first", "containment", "--reason", "its key was seen", "--incident", "INC-2", "--yes"); !strings.Contains(errOut, "relaypki rotate intermediate offline") {
		t.Errorf("the emergency of a CA says:\n%s", errOut)
	}
	w.command(t, 0, "verify", "offline")
}

// newRoot rotates the root itself to an intermediate of that generation: people are
// asked once for all that is to be signed, and what they have done outlasts the worker
// and the history of the run that asked.
func (o offlineRotation) newRoot(t *testing.T, generation int) {
	w, id := o.w, procedure.ID(procedure.RotateRootCA, "offline")
	if out, _ := w.command(t, 0, "rotate", "root", "offline", "--plan", "-o", "commands"); !strings.Contains(out, "# Outside Vault: make a new root of another key and name than CN=Example Root") {
		t.Errorf("the plan's commands do not say what people will have to do:\n%s", out)
	}
	begins := func() *x509.CertificateRequest {
		t.Helper()
		_, errOut := w.command(t, exitWaiting, "rotate", "root", "offline", "--approval", "none", "--consumers-ok")
		for _, want := range []string{"a new root, which is kept outside Vault, to be made", "relaypki csr offline > offline.csr\n", "relaypki submit offline signed.pem\n"} {
			if !strings.Contains(errOut, want) {
				t.Errorf("relaypki rotate root lacks %q:\n%s", want, errOut)
			}
		}
		return w.publishedCSR(t)
	}
	csr := begins()
	bridge, signed := o.root.Cross(t, o.next, lives(-time.Hour, 10*year)).Cert, o.next.SignCSR(t, csr, lives(-time.Hour, 3*year))
	for _, test := range []struct{ name, file, want string }{
		{"the intermediate alone", o.certificates(t, "alone.pem", signed), "there is no bridge in it"},
		{"an intermediate of the old root", o.signed(t, csr), "there is no new root in it"},
		{"a bridge of the new root itself", o.certificates(t, "bridge.pem", signed, o.next.Cert, o.next.Cross(t, o.next, lives(-time.Hour, 10*year)).Cert), "as its issuer"},
		{"the old root's name", o.certificates(t, "name.pem", o.twin.SignCSR(t, csr, lives(-time.Hour, 3*year)), o.twin.Cert, o.root.Cross(t, o.twin, lives(-time.Hour, 10*year)).Cert), "has the common name of the root at work"},
	} {
		if _, errOut := w.command(t, exitBadInput, "submit", "offline", test.file); !strings.Contains(errOut, test.want) {
			t.Errorf("%s: lacks %q:\n%s", test.name, test.want, errOut)
		}
	}
	o.worker.kill()
	o.worker.start()
	w.loseRun(t, id)
	if again := begins(); string(again.RawSubjectPublicKeyInfo) != string(csr.RawSubjectPublicKeyInfo) {
		t.Error("the second run made a second key")
	}
	if standing := w.standing(t, "submit", "offline", o.certificates(t, "signed.pem", bridge, signed, o.next.Cert)); strings.Count(standing.Note, "valid until") != 3 || standing.Awaiting != "" {
		t.Errorf("the right answer: %+v", standing)
	}

	// And once more it is killed, on its way.
	eventually(t, time.Minute, func() error {
		if i := w.issuer(t, fmt.Sprintf("relay-intermediate-g%d", generation)); i == nil {
			return fmt.Errorf("the intermediate is not imported yet")
		}
		return nil
	})
	o.worker.kill()
	o.worker.start()
	eventually(t, 5*time.Minute, func() error {
		_, errOut, code := w.relaypki(t, "approve", "offline", "finish")
		if code != 0 {
			return errors.New(errOut) // not at its last phase yet
		}
		return nil
	})
	result := outcome[procedure.RotateResult](t, w.temporal(t), id)
	if result.To.Serial != pki.Serial(o.next.Cert) || result.RootPEM != string(pki.EncodeChain(o.next.Cert)) || result.Verification == nil || !result.Verification.Healthy {
		t.Errorf("it ended with %+v", result)
	}
	for _, cluster := range w.all() {
		_, name := leafOf(cluster)
		secrets := w.cluster(t, cluster).kube.CoreV1().Secrets("gloo-mesh")
		secret, err := secrets.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		trusted := [][]byte{secret.Data["ca.crt"]}
		if cluster != management {
			trust, err := secrets.Get(t.Context(), "relay-root-tls-secret", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			trusted = append(trusted, trust.Data["ca.crt"])
		}
		for _, text := range trusted {
			if anchors, err := pki.ParseChain(text); err != nil || len(anchors) != 1 || !anchors[0].Equal(o.next.Cert) {
				t.Errorf("%s trusts something else than the new root: %v, %v", cluster, anchors, err)
			}
		}
		if chain, err := pki.ParseChain(secret.Data["tls.crt"]); err != nil || len(chain) != 2 || !chain[1].Equal(signed) {
			t.Errorf("%s: tls.crt is not a leaf and its intermediate: %v, %v", cluster, chain, err)
		}
	}
	w.command(t, 0, "verify", "offline")
}

// signed is a file with the root's answer to a CSR.
func (o offlineRotation) signed(t *testing.T, csr *x509.CertificateRequest) string {
	t.Helper()
	return o.certificates(t, "signed.pem", o.root.SignCSR(t, csr, lives(-time.Hour, 3*year)))
}

// waits begins the rotation, or has the command find it at work, and makes sure
// that it waits for a signature and says so, and what to type next.
func (o offlineRotation) waits(t *testing.T) {
	t.Helper()
	w := o.w
	_, errOut := w.command(t, exitWaiting, "rotate", "intermediate", "offline")
	for _, want := range []string{"signed by the root CN=Example Root, which is kept outside Vault", "Next: relaypki csr offline > offline.csr\n", "relaypki submit offline signed.pem\n"} {
		if !strings.Contains(errOut, want) {
			t.Errorf("relaypki rotate intermediate lacks %q:\n%s", want, errOut)
		}
	}
	status, _ := w.command(t, 0, "status", "offline")
	watch := w.sh(t, "timeout --signal=INT 5 "+filepath.Join(repository, "bin", "relaypki")+" watch offline 2>&1 || true") // it goes on for as long as the run
	for _, shown := range []struct{ command, out, waits string }{{"status", status, "rotate-intermediate-offline waits for you"}, {"watch", watch, "waiting for you: the intermediate to be signed"}} {
		for _, want := range []string{shown.waits, "relaypki csr offline > offline.csr", "relaypki submit offline signed.pem"} {
			if !strings.Contains(shown.out, want) {
				t.Errorf("relaypki %s lacks %q:\n%s", shown.command, want, shown.out)
			}
		}
	}
}

// finishes hands in what was signed, and waits until the rotation has ended well,
// with everybody's certificate of that generation.
func (o offlineRotation) finishes(t *testing.T, file string, generation int) {
	t.Helper()
	w, id := o.w, procedure.ID(procedure.RotateIntermediateCA, "offline")
	if standing := w.standing(t, "submit", "offline", file); !strings.Contains(standing.Note, "accepted") || standing.Awaiting != "" {
		t.Errorf("the right answer: %+v", standing)
	}
	eventually(t, 5*time.Minute, func() error {
		_, errOut, code := w.relaypki(t, "approve", "offline", "finish")
		if code != 0 {
			return errors.New(errOut) // not at its last phase yet
		}
		return nil
	})
	result := outcome[procedure.RotateResult](t, w.temporal(t), id)
	if result.To.Name != fmt.Sprintf("relay-intermediate-g%d", generation) || result.Verification == nil || !result.Verification.Healthy {
		t.Errorf("it ended with %+v", result)
	}
	intermediate := w.issuer(t, result.To.Name).certificate
	for _, cluster := range w.all() {
		_, name := leafOf(cluster)
		secret, err := w.cluster(t, cluster).kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if chain, err := pki.ParseChain(secret.Data["tls.crt"]); err != nil || len(chain) != 2 || !chain[1].Equal(intermediate) {
			t.Errorf("%s: tls.crt is not a leaf and its intermediate: %v, %v", cluster, chain, err)
		}
	}
}

// loseRun has Temporal forget a run, in the midst of it.
func (w *world) loseRun(t *testing.T, id string) {
	t.Helper()
	w.sh(t, fmt.Sprintf("temporal workflow terminate -w %[1]s && temporal workflow delete -w %[1]s", id))
	eventually(t, time.Minute, func() error {
		_, err := w.temporal(t).DescribeWorkflowExecution(t.Context(), id, "")
		var missing *serviceerror.NotFound
		if errors.As(err, &missing) {
			return nil
		}
		return fmt.Errorf("the history is still there: %v", err)
	})
}

// maintained has the schedule look for what is due, and returns what came of it.
func (w *world) maintained(t *testing.T) procedure.MaintainResult {
	t.Helper()
	c, looks := w.temporal(t), map[string]bool{}
	list := func(do func(id string, ended bool)) {
		for _, x := range executions(t, c) {
			if x.Type.Name == procedure.MaintainMesh {
				do(x.Execution.WorkflowId, x.CloseTime != nil)
			}
		}
	}
	list(func(id string, _ bool) { looks[id] = true })
	w.command(t, 0, "schedule", "trigger", "offline", "maintain")
	last := ""
	eventually(t, time.Minute, func() error {
		list(func(id string, ended bool) {
			if !looks[id] && ended {
				last = id
			}
		})
		if last == "" {
			return fmt.Errorf("the look that was asked for has not ended")
		}
		return nil
	})
	return outcome[procedure.MaintainResult](t, c, last)
}

// publishedCSR is what the command prints, and nothing else with it.
func (w *world) publishedCSR(t *testing.T) *x509.CertificateRequest {
	t.Helper()
	out, _ := w.command(t, 0, "csr", "offline")
	csr, err := pki.ParseCSR([]byte(out))
	if err != nil {
		t.Fatalf("relaypki csr: %v\n%s", err, out)
	}
	var signing procedure.Signing
	document, _ := w.command(t, 0, "csr", "offline", "-o", "json")
	if err := json.Unmarshal([]byte(document), &signing); err != nil || signing.CSRPEM != out || signing.Key != pki.KeyFingerprint(csr.RawSubjectPublicKeyInfo) || signing.Root.Subject != "CN=Example Root" {
		t.Errorf("relaypki csr -o json: %+v, %v", signing, err)
	}
	return csr
}
