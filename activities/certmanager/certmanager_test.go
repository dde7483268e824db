package certmanager

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
)

func TestIssuerReady(t *testing.T) {
	for _, c := range []struct {
		name       string
		generation int64
		conditions []cmapi.IssuerCondition
		want       bool
		says       string
	}{
		{"no status", 1, nil, false, "no status yet"},
		{"ready", 1, []cmapi.IssuerCondition{{Type: "Ready", Status: cmmeta.ConditionTrue, ObservedGeneration: 1}}, true, ""},
		{"ready, but of an older generation", 2, []cmapi.IssuerCondition{{Type: "Ready", Status: cmmeta.ConditionTrue, ObservedGeneration: 1}}, false, "was changed"},
		{"not ready", 1, []cmapi.IssuerCondition{{Type: "Ready", Status: cmmeta.ConditionFalse, ObservedGeneration: 1, Reason: "VaultError", Message: "Code: 403.\n Errors:\n\n* permission denied"}}, false, "VaultError: Code: 403. Errors: * permission denied"},
	} {
		issuer := &cmapi.Issuer{ObjectMeta: metav1.ObjectMeta{Name: "vault-issuer", Namespace: "gloo-mesh", Generation: c.generation}, Status: cmapi.IssuerStatus{Conditions: c.conditions}}
		got, says := issuerReady(issuer)
		if got != c.want || !strings.Contains(says, c.says) {
			t.Errorf("%s: %v %q", c.name, got, says)
		}
	}
}

func cond(kind cmapi.CertificateConditionType, status cmmeta.ConditionStatus, generation int64, reason, message string) cmapi.CertificateCondition {
	return cmapi.CertificateCondition{Type: kind, Status: status, ObservedGeneration: generation, Reason: reason, Message: message}
}

func TestCertificateReady(t *testing.T) {
	for _, c := range []struct {
		name       string
		generation int64
		conditions []cmapi.CertificateCondition
		want       bool
		says       string
	}{
		{"no status", 1, nil, false, "no status"},
		{"ready", 2, []cmapi.CertificateCondition{cond("Ready", "True", 2, "Ready", "")}, true, ""},
		{"ready for an older generation", 3, []cmapi.CertificateCondition{cond("Ready", "True", 2, "Ready", "")}, false, "was changed"},
		{"ready, and being issued again", 2, []cmapi.CertificateCondition{cond("Ready", "True", 2, "Ready", ""), cond("Issuing", "True", 2, "Renewing", "soon")}, false, "Renewing: soon"},
		{"failed", 2, []cmapi.CertificateCondition{cond("Ready", "False", 2, "DoesNotExist", "no Secret"), cond("Issuing", "False", 2, "Failed", "Vault said no")}, false, "Failed: Vault said no"},
		{"never issued", 2, []cmapi.CertificateCondition{cond("Ready", "False", 2, "DoesNotExist", "no Secret")}, false, "DoesNotExist: no Secret"},
	} {
		cert := &cmapi.Certificate{ObjectMeta: metav1.ObjectMeta{Generation: c.generation}, Status: cmapi.CertificateStatus{Conditions: c.conditions}}
		got, says := certificateReady(cert)
		if got != c.want || !strings.Contains(says, c.says) {
			t.Errorf("%s: %v %q", c.name, got, says)
		}
	}
}

func TestInBackOff(t *testing.T) {
	failed := metav1.Now()
	for _, c := range []struct {
		name       string
		failure    *metav1.Time
		conditions []cmapi.CertificateCondition
		want       bool
	}{
		{"never failed", nil, nil, false},
		{"failed and waiting", &failed, []cmapi.CertificateCondition{cond("Ready", "False", 1, "", ""), cond("Issuing", "False", 1, "Failed", "")}, true},
		{"failed and under way again", &failed, []cmapi.CertificateCondition{cond("Ready", "False", 1, "", ""), cond("Issuing", "True", 1, "", "")}, false},
		{"a renewal failed and the old one is good", &failed, []cmapi.CertificateCondition{cond("Ready", "True", 1, "", ""), cond("Issuing", "False", 1, "Failed", "")}, false},
	} {
		cert := &cmapi.Certificate{Status: cmapi.CertificateStatus{LastFailureTime: c.failure, Conditions: c.conditions}}
		if got := inBackOff(cert); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestHopeless(t *testing.T) {
	ready := func(reason, message string) *cmapi.CertificateRequest {
		return &cmapi.CertificateRequest{Status: cmapi.CertificateRequestStatus{Conditions: []cmapi.CertificateRequestCondition{
			{Type: cmapi.CertificateRequestConditionReady, Status: cmmeta.ConditionFalse, Reason: reason, Message: message},
		}}}
	}
	denied := &cmapi.CertificateRequest{Status: cmapi.CertificateRequestStatus{Conditions: []cmapi.CertificateRequestCondition{
		{Type: cmapi.CertificateRequestConditionDenied, Status: cmmeta.ConditionTrue, Reason: "policy", Message: "no"},
	}}}
	for _, c := range []struct {
		name    string
		request *cmapi.CertificateRequest
		want    failure.Kind
	}{
		{"no request yet", nil, ""},
		{"pending", ready(cmapi.CertificateRequestReasonPending, "Failed to initialise vault client for signing: Code: 403"), ""},
		{"name not allowed", ready(cmapi.CertificateRequestReasonFailed, "Vault failed to sign certificate: Code: 400. Errors: * subject alternate name cluster2 not allowed by this role"), failure.Denied},
		{"may not sign", ready(cmapi.CertificateRequestReasonFailed, "Vault failed to sign certificate: Code: 403. Errors: * permission denied"), failure.Denied},
		{"Vault sealed in between", ready(cmapi.CertificateRequestReasonFailed, "Vault failed to sign certificate: Code: 503. Errors: * Vault is sealed"), ""},
		{"chain not linear", ready(cmapi.CertificateRequestReasonFailed, "failed to parse certificate chain from vault"), failure.Mismatch},
		{"denied by an approver", denied, failure.Denied},
	} {
		if got, remedy := hopeless(&cmapi.Certificate{}, c.request, 0); got != c.want || (remedy == "") != (c.want == "") {
			t.Errorf("%s: %q %q", c.name, got, remedy)
		}
	}
}

// authority is a CA made for a test.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  string
}

var serials = int64(1)

func sign(t *testing.T, template *x509.Certificate, public any, by *authority, key crypto.Signer) (*x509.Certificate, string) {
	t.Helper()
	serials++
	template.SerialNumber = big.NewInt(serials)
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func ca(t *testing.T, name string, by *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	a.cert, a.pem = sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, key.Public(), by, key)
	return a
}

// cross has another CA sign this one's name and key.
func cross(t *testing.T, a, by *authority) string {
	t.Helper()
	_, text := sign(t, &x509.Certificate{
		Subject: a.cert.Subject, NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter, SubjectKeyId: a.cert.SubjectKeyId,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, a.key.Public(), by, nil)
	return text
}

func TestCompareIssued(t *testing.T) {
	root, otherRoot := ca(t, "root", nil), ca(t, "root", nil)
	// A bridge, and what is below it once it is there: intermediate is under root.
	old := ca(t, "old root", nil)
	bridge, otherBridge := cross(t, root, old), cross(t, root, old)
	bridged := func(in *CertificateInput) { in.RootPEM, in.BridgePEM = old.pem, bridge }
	pivot := func(in *CertificateInput) { in.RootPEM, in.BridgePEM = bridge, bridge }
	intermediate := ca(t, "intermediate", root)
	pinned := func(in *CertificateInput) { in.RootPEM = intermediate.pem }
	otherIntermediate := ca(t, "intermediate", otherRoot)
	_, otherID := sign(t, &x509.Certificate{
		Subject: intermediate.cert.Subject, NotBefore: intermediate.cert.NotBefore, NotAfter: intermediate.cert.NotAfter, SubjectKeyId: []byte("another"),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, intermediate.key.Public(), root, nil)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	small, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	asked := CertificateInput{
		RootPEM: root.pem, IntermediatePEM: intermediate.pem, Server: true,
		Certificate: mesh.Certificate{CommonName: "server", DNSNames: []string{"a.example", "*.gloo-mesh"}, Duration: mesh.Hours(24), KeyAlgorithm: "RSA", KeySize: 2048},
	}
	issue := func(by *authority, public any, change func(*x509.Certificate)) string {
		template := &x509.Certificate{
			Subject: pkix.Name{CommonName: "server"}, DNSNames: []string{"*.gloo-mesh", "a.example"},
			NotBefore: time.Now().Add(-30 * time.Second), NotAfter: time.Now().Add(24 * time.Hour),
			KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if change != nil {
			change(template)
		}
		_, text := sign(t, template, public, by, nil)
		return text
	}
	for _, c := range []struct {
		name  string
		chain string
		ca    string
		in    func(*CertificateInput)
		want  string // part of the one problem; empty for none
	}{
		{name: "as asked", chain: issue(intermediate, key.Public(), nil) + intermediate.pem, ca: root.pem},
		{name: "a client without server auth", chain: issue(intermediate, key.Public(), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }) + intermediate.pem, ca: root.pem, in: func(in *CertificateInput) { in.Server = false }},
		{name: "a client that is a server too", chain: issue(intermediate, key.Public(), nil) + intermediate.pem, ca: root.pem, in: func(in *CertificateInput) { in.Server = false }, want: "more usages than client auth"},
		{name: "the guide's client", chain: issue(intermediate, key.Public(), nil) + intermediate.pem, ca: root.pem, in: func(in *CertificateInput) { in.Server, in.Shared = false, true }},
		{name: "truncated life", chain: issue(intermediate, key.Public(), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(20 * time.Hour) }) + intermediate.pem, ca: root.pem, want: "it lives 20h"},
		{name: "another name", chain: issue(intermediate, key.Public(), func(c *x509.Certificate) { c.DNSNames = []string{"a.example"} }) + intermediate.pem, ca: root.pem, want: "DNS names are a.example"},
		{name: "another common name", chain: issue(intermediate, key.Public(), func(c *x509.Certificate) { c.Subject.CommonName = "x" }) + intermediate.pem, ca: root.pem, want: "common name"},
		{name: "another key", chain: issue(intermediate, small.Public(), nil) + intermediate.pem, ca: root.pem, want: "the key is ECDSA 256"},
		{name: "no server auth", chain: issue(intermediate, key.Public(), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }) + intermediate.pem, ca: root.pem, want: "server auth"},
		{name: "no client auth", chain: issue(intermediate, key.Public(), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }) + intermediate.pem, ca: root.pem, want: "client auth"},
		{name: "no key encipherment", chain: issue(intermediate, key.Public(), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }) + intermediate.pem, ca: root.pem, want: "key encipherment"},
		{name: "ca.crt is the intermediate", chain: issue(intermediate, key.Public(), nil) + intermediate.pem, ca: intermediate.pem, want: "ca.crt is \"intermediate\" (serial"},
		{name: "ca.crt is a root of the same name", chain: issue(intermediate, key.Public(), nil) + intermediate.pem, ca: otherRoot.pem, want: "not \"root\" (serial"},
		{name: "signed by another intermediate of that name", chain: issue(otherIntermediate, key.Public(), nil) + otherIntermediate.pem, ca: root.pem, want: "not by the intermediate"},
		{name: "signed by that key under another key id", chain: issue(intermediate, key.Public(), nil) + intermediate.pem, ca: root.pem, in: func(in *CertificateInput) { in.IntermediatePEM = otherID }, want: "authority key id"},
		{name: "intermediate missing in the chain", chain: issue(intermediate, key.Public(), nil), ca: root.pem, want: "does not lead to ca.crt"},
		{name: "as asked, with the root as Vault returns it", chain: issue(intermediate, key.Public(), nil) + intermediate.pem + root.pem, ca: root.pem},
		{name: "bridged", chain: issue(intermediate, key.Public(), nil) + intermediate.pem + bridge, ca: old.pem, in: bridged},
		{name: "bridged, with the old root as Vault returns it", chain: issue(intermediate, key.Public(), nil) + intermediate.pem + bridge + old.pem, ca: old.pem, in: bridged},
		{name: "pivot", chain: issue(intermediate, key.Public(), nil) + intermediate.pem + bridge, ca: bridge, in: pivot},
		{name: "still bridged at pivot", chain: issue(intermediate, key.Public(), nil) + intermediate.pem + bridge, ca: old.pem, in: pivot, want: "ca.crt is \"old root\""},
		{name: "final already at pivot", chain: issue(intermediate, key.Public(), nil) + intermediate.pem, ca: root.pem, in: pivot, want: "ca.crt is \"root\""},
		{name: "pivot still in bridged", chain: issue(intermediate, key.Public(), nil) + intermediate.pem + bridge, ca: bridge, in: bridged, want: "ca.crt is \"root\""},
		{name: "pivot still in final", chain: issue(intermediate, key.Public(), nil) + intermediate.pem + bridge, ca: bridge, want: "ca.crt is \"root\""},
		{name: "final, and the bridge in its chain", chain: issue(intermediate, key.Public(), nil) + intermediate.pem + bridge, ca: root.pem, want: "the bridge is still in its chain"},
		{name: "pivot without the bridge", chain: issue(intermediate, key.Public(), nil) + intermediate.pem, ca: bridge, in: pivot, want: "the bridge \"root\" (serial"},
		{name: "bridged over another bridge of that key", chain: issue(intermediate, key.Public(), nil) + intermediate.pem + otherBridge, ca: old.pem, in: bridged, want: "where the bridge"},
		{name: "bridged without the intermediate", chain: issue(intermediate, key.Public(), nil) + bridge, ca: old.pem, in: bridged, want: "does not lead to ca.crt"},
		{name: "a bridge that cannot be read", chain: issue(intermediate, key.Public(), nil) + intermediate.pem, ca: root.pem, in: func(in *CertificateInput) { in.BridgePEM = "x" }, want: "the bridge to compare with cannot be read"},
		{name: "pinned", chain: issue(intermediate, key.Public(), nil) + intermediate.pem, ca: intermediate.pem, in: pinned},
		{name: "final still, where it is pinned", chain: issue(intermediate, key.Public(), nil) + intermediate.pem, ca: root.pem, in: pinned, want: "ca.crt is \"root\""},
		{name: "pinned, and the bridge in its chain", chain: issue(intermediate, key.Public(), nil) + intermediate.pem + bridge, ca: intermediate.pem, in: pinned, want: "the bridge is still in its chain"},
		{name: "nothing", chain: "", ca: root.pem, want: "cannot be read"},
	} {
		in := asked
		if c.in != nil {
			c.in(&in)
		}
		leaf, problems := compareIssued(in, []byte(c.chain), []byte(c.ca))
		switch {
		case c.want == "" && (len(problems) > 0 || leaf.Serial == ""):
			t.Errorf("%s: %v %+v", c.name, problems, leaf)
		case c.want != "" && (len(problems) != 1 || !strings.Contains(problems[0], c.want)):
			t.Errorf("%s: %q, want one with %q", c.name, problems, c.want)
		}
	}
}
