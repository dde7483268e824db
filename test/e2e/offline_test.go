package e2e

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
)

// lives is a lifetime by the clock.
func lives(from, until time.Duration) pkitest.Option {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(until) }
}

const year = 365 * 24 * time.Hour

// The root is kept outside Vault; its key is the test's. A setup publishes the
// CSR and waits, through the loss of its worker and of its history; wrong answers
// are refused one by one, each for what is wrong with it; with the right one the
// mesh is set up, works, and takes another member.
func TestOfflineRoot(t *testing.T) {
	w := labWorld(t, "cluster1", "cluster2")
	worker := w.startWorker(t, filepath.Join(repository, "bin", "relaypki-worker"))
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certificates := func(name string, list ...*x509.Certificate) string {
		return write(name, string(pki.EncodeChain(list...)))
	}
	key := func(p pkitest.Pair) string {
		der, err := x509.MarshalPKCS8PrivateKey(p.Key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	mesh := func(root string) string {
		document, err := json.Marshal(map[string]any{"mesh": "offline", "workloads": []any{map[string]any{"name": "cluster1"}},
			"pki": map[string]any{"root": map[string]any{"kept": "offline", "certificatePEM": root}}})
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
	w.sh(t, "temporal workflow terminate -w setup-offline && temporal workflow delete -w setup-offline")
	eventually(t, time.Minute, func() error {
		_, err := w.temporal(t).DescribeWorkflowExecution(t.Context(), "setup-offline", "")
		if err == nil {
			return fmt.Errorf("the history is still there")
		}
		return nil
	})
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
	if mount, err := w.vault(t).Logical().Read("sys/mounts/pki"); err == nil && mount != nil {
		t.Error("there is a root mount in Vault")
	}
	w.noSecrets(t)
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
