// Package activities_test tries the activities that work with one another
// against a running lab, as the lab's least-privilege worker.
package activities_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	sdkactivity "go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/testsuite"
	"go.uber.org/zap"
	"helm.sh/helm/v4/pkg/action"
	helmkube "helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/helm"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

const namespace = "gloo-mesh"

type world struct {
	clients     *site.Clients
	helm        *helm.Activities
	certManager *certmanager.Activities
	cluster     *cluster.Activities
	config      site.Config
}

func lab(t *testing.T) world {
	t.Helper()
	path := os.Getenv("RELAYPKI_TEST_SITE")
	if path == "" {
		t.Skip("needs a lab: set RELAYPKI_TEST_SITE to its .lab/worker/site.yaml")
	}
	config, err := site.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	clients := site.NewClients(config, zap.NewNop())
	return world{clients: clients, helm: &helm.Activities{Clients: clients}, certManager: &certmanager.Activities{Clients: clients}, cluster: &cluster.Activities{Clients: clients}, config: config}
}

// call runs an activity in an environment of its own, so that several can run at once.
func call[R any](w world, activity, in any) (R, error) {
	return listened[R](w, activity, in, nil)
}

// listened is call, and hands on what the activity says that it waits for, as long
// as somebody takes it.
func listened[R any](w world, activity, in any, waits chan<- string) (R, error) {
	var result R
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	env.RegisterActivity(w.helm)
	env.RegisterActivity(w.certManager)
	env.RegisterActivity(w.cluster)
	env.SetOnActivityHeartbeatListener(func(_ *sdkactivity.Info, details converter.EncodedValues) {
		var state string
		if details.Get(&state) == nil {
			select {
			case waits <- state:
			default:
			}
		}
	})
	value, err := env.ExecuteActivity(activity, in)
	if err != nil {
		return result, err
	}
	return result, value.Get(&result)
}

// settled calls again what failed in passing, as Temporal does.
func settled[R any](t *testing.T, w world, activity, in any) (R, error) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; {
		result, err := call[R](w, activity, in)
		if err == nil || failure.IsPermanent(err) {
			return result, err
		}
		if time.Now().After(end) {
			t.Fatalf("not settled within two minutes: %v", err)
		}
	}
}

func must[R any](t *testing.T, w world, activity, in any) R {
	t.Helper()
	result, err := call[R](w, activity, in)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func certManagerChart(context string) helm.ChartInput {
	return helm.ChartInput{
		Context: context, Release: "cert-manager", Namespace: "cert-manager", Chart: "cert-manager",
		Values:           map[string]any{"crds": map[string]any{"enabled": true}, "startupapicheck": map[string]any{"enabled": false}},
		AcceptDeployment: "cert-manager", Mode: procedure.Apply,
	}
}

func TestLabHelm(t *testing.T) {
	w := lab(t)
	// Both clusters at once, in one process.
	var group sync.WaitGroup
	for _, context := range []string{"mgmt", "cluster1"} {
		group.Add(1)
		go func() {
			defer group.Done()
			if _, err := call[procedure.Outcome](w, w.helm.InstallChart, certManagerChart(context)); err != nil {
				t.Errorf("%s: %v", context, err)
			}
		}()
	}
	group.Wait()
	if t.Failed() {
		return
	}
	last := func() *release.Release { return lastRelease(t, w, "cluster1", "cert-manager", "cert-manager") }
	first := last()
	if again := must[procedure.Outcome](t, w, w.helm.InstallChart, certManagerChart("cluster1")); len(again.Changes) > 0 || last().Version != first.Version {
		t.Errorf("the same again: %+v, revision %d", again, last().Version)
	}
	changed := certManagerChart("cluster1")
	changed.Values = map[string]any{"crds": map[string]any{"enabled": true}, "startupapicheck": map[string]any{"enabled": false}, "global": map[string]any{"commonLabels": map[string]any{"tried": time.Now().Format("t150405")}}}
	observed := changed
	observed.Mode = procedure.Observe
	if would := must[procedure.Outcome](t, w, w.helm.InstallChart, observed); len(would.Changes) != 1 || last().Version != first.Version {
		t.Errorf("observed: %+v, revision %d", would, last().Version)
	}
	if out := must[procedure.Outcome](t, w, w.helm.InstallChart, changed); len(out.Changes) != 1 || out.Changes[0].Verb != procedure.Update || last().Version != first.Version+1 {
		t.Errorf("with another value: %+v, revision %d", out, last().Version)
	}

	// A worker was killed in the middle of an upgrade, a moment or a minute ago.
	cfg := configuration(t, w, "cluster1", "cert-manager")
	left := last()
	left.Info.Status = common.StatusPendingUpgrade
	for _, ago := range []time.Duration{0, time.Minute} {
		left.Info.LastDeployed = time.Now().Add(-ago)
		if err := cfg.Releases.Update(left); err != nil {
			t.Fatal(err)
		}
		out, err := call[procedure.Outcome](w, w.helm.InstallChart, changed)
		if ago == 0 && failure.KindOf(err) != failure.NotReady {
			t.Errorf("an upgrade that may still be at work: %+v, %v", out, err)
		}
		if ago > 0 && (err != nil || len(out.Changes) != 1 || last().Info.Status != common.StatusDeployed) {
			t.Errorf("after a killed upgrade: %+v, %v, %s", out, err, last().Info.Status)
		}
	}

	// Somebody upgrades by hand, with another value: our labels are inherited.
	byHand := action.NewUpgrade(cfg)
	byHand.Namespace, byHand.ReuseValues, byHand.ServerSideApply, byHand.WaitStrategy = "cert-manager", true, "true", helmkube.HookOnlyStrategy
	if _, err := byHand.Run("cert-manager", last().Chart, map[string]any{"webhook": map[string]any{"timeoutSeconds": 7}}); err != nil {
		t.Fatal(err)
	}
	if out := must[procedure.Outcome](t, w, w.helm.InstallChart, changed); len(out.Changes) != 1 || last().Config["webhook"].(map[string]any)["timeoutSeconds"] != nil {
		t.Errorf("after an upgrade by hand: %+v, %v", out, last().Config)
	}

	for _, context := range []string{"mgmt", "cluster1"} {
		if out := must[procedure.Outcome](t, w, w.certManager.AwaitCertManager, certmanager.AwaitInput{Context: context, Namespace: namespace}); out.Detail == "" {
			t.Errorf("%s: %+v", context, out)
		}
	}

	never := certManagerChart("cluster1")
	never.Release, never.AcceptDeployment, never.Never = "other", "no-such-deployment", true
	if _, err := call[procedure.Outcome](w, w.helm.InstallChart, never); failure.KindOf(err) != failure.Preflight {
		t.Errorf("never installed: %v", err)
	}
	accepted := certManagerChart("cluster1")
	accepted.Release = "other"
	if out := must[procedure.Outcome](t, w, w.helm.InstallChart, accepted); len(out.Changes) > 0 || !strings.Contains(out.Detail, "somebody else") {
		t.Errorf("what is there under another release: %+v", out)
	}
	for _, context := range []string{"mgmt", "cluster1"} {
		crds := helm.ChartInput{Context: context, Release: "gloo-platform-crds", Namespace: namespace, Chart: "gloo-platform-crds", Mode: procedure.Apply}
		must[procedure.Outcome](t, w, w.helm.InstallChart, crds)
		if again := must[procedure.Outcome](t, w, w.helm.InstallChart, crds); len(again.Changes) > 0 {
			t.Errorf("%s again: %+v", context, again)
		}
		// Another of the mesh's clusters is another namespace of this API server.
		beside := crds
		beside.Namespace, beside.AcceptCRD = "cert-manager", "kubernetesclusters.admin.gloo.solo.io"
		if out := must[procedure.Outcome](t, w, w.helm.InstallChart, beside); len(out.Changes) > 0 || !strings.Contains(out.Detail, namespace+"/gloo-platform-crds") {
			t.Errorf("%s from another namespace: %+v", context, out)
		}
	}
}

func configuration(t *testing.T, w world, context, namespace string) *action.Configuration {
	t.Helper()
	c, err := w.clients.Cluster(context)
	if err != nil {
		t.Fatal(err)
	}
	flags := genericclioptions.NewConfigFlags(true)
	flags.KubeConfig, flags.Context, flags.Namespace = &w.config.Kubeconfig, &c.Config.Context, &namespace
	cfg := action.NewConfiguration()
	if err := cfg.Init(flags, namespace, "secret"); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func lastRelease(t *testing.T, w world, context, namespace, name string) *release.Release {
	t.Helper()
	last, err := configuration(t, w, context, namespace).Releases.Last(name)
	if err != nil {
		t.Fatal(err)
	}
	return last.(*release.Release)
}

// signer stands in for Vault here, where only cert-manager's side is tried: it
// signs for one name, as the isolated role does.
type signer struct {
	t                  *testing.T
	root, intermediate *x509.Certificate
	rootPEM, midPEM    string
	key, rootKey       *ecdsa.PrivateKey

	mu      sync.Mutex
	allowed string   // the one name
	chain   []string // issuing chain in the answer
	// hold, if set, is how long an answer that is signed already takes to arrive;
	// signed has one for each that is held.
	hold, signed chan struct{}
}

func newSigner(t *testing.T, allowed string) (*signer, *httptest.Server) {
	t.Helper()
	s := &signer{t: t, allowed: allowed, signed: make(chan struct{}, 10)}
	s.root, s.rootPEM, s.rootKey = s.ca("root", nil, nil)
	s.next("intermediate")
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, server
}

func (s *signer) ca(name string, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, string, *ecdsa.PrivateKey) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), key
}

// next signs with another intermediate from now on.
func (s *signer) next(name string) {
	cert, text, key := s.ca(name, s.root, s.rootKey)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.intermediate, s.midPEM, s.key = cert, text, key
	s.chain = []string{s.midPEM, s.rootPEM}
}

// holding has answers wait, once they are signed, until it is called again.
func (s *signer) holding(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if yes {
		s.hold = make(chan struct{})
	} else {
		close(s.hold)
		s.hold = nil
	}
}

func (s *signer) allow(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allowed = name
}

func (s *signer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(code int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		if err := json.NewEncoder(w).Encode(body); err != nil {
			s.t.Error(err)
		}
	}
	switch {
	case strings.HasSuffix(r.URL.Path, "/sys/health"):
		answer(200, map[string]any{"initialized": true, "sealed": false})
	case strings.HasSuffix(r.URL.Path, "/login"):
		answer(200, map[string]any{"auth": map[string]any{"client_token": "t", "renewable": false, "lease_duration": 600}})
	case strings.Contains(r.URL.Path, "/sign/"):
		var in struct {
			CSR string `json:"csr"`
			TTL string `json:"ttl"`
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			answer(400, map[string]any{"errors": []string{err.Error()}})
			return
		}
		block, _ := pem.Decode([]byte(in.CSR))
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			answer(400, map[string]any{"errors": []string{err.Error()}})
			return
		}
		s.mu.Lock()
		allowed, chain, intermediate, key, hold := s.allowed, s.chain, s.intermediate, s.key, s.hold
		s.mu.Unlock()
		for _, name := range csr.DNSNames {
			if name != allowed {
				answer(400, map[string]any{"errors": []string{"subject alternate name " + name + " not allowed by this role"}})
				return
			}
		}
		ttl, err := time.ParseDuration(in.TTL)
		if err != nil {
			answer(400, map[string]any{"errors": []string{err.Error()}})
			return
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: csr.Subject, DNSNames: csr.DNSNames,
			NotBefore: time.Now().Add(-30 * time.Second), NotAfter: time.Now().Add(ttl),
			KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}, intermediate, csr.PublicKey, key)
		if err != nil {
			answer(500, map[string]any{"errors": []string{err.Error()}})
			return
		}
		if hold != nil {
			s.signed <- struct{}{}
			<-hold
		}
		answer(200, map[string]any{"data": map[string]any{
			"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
			"issuing_ca":  chain[0], "ca_chain": chain,
		}})
	default:
		answer(404, map[string]any{"errors": []string{}})
	}
}

// certified is cluster1 with an Issuer that the signer stands behind, and a
// certificate to ask for, of a name of its own, so that an earlier try's is not in
// the way.
func certified(t *testing.T, w world) (*signer, *site.Cluster, certmanager.CertificateInput) {
	t.Helper()
	must[procedure.Outcome](t, w, w.helm.InstallChart, certManagerChart("cluster1"))
	must[procedure.Outcome](t, w, w.certManager.AwaitCertManager, certmanager.AwaitInput{Context: "cluster1", Namespace: namespace})
	c, err := w.clients.Cluster("cluster1")
	if err != nil {
		t.Fatal(err)
	}
	vault, server := newSigner(t, "cluster1")
	issuer := certmanager.IssuerInput{
		Mesh: "labtest", Context: "cluster1", Namespace: namespace, Method: mesh.CredentialJWT,
		AuthPath: "/v1/auth/relaypki-labtest-cluster1", AuthRole: "cluster1", SignPath: "pki_relay/sign/relay-client-cluster1",
		Server: server.URL, CABundlePEM: string(c.REST.CAData), Mode: procedure.Apply,
	}
	must[procedure.Outcome](t, w, w.certManager.ApplyIssuerCredential, issuer)
	must[procedure.Outcome](t, w, w.certManager.ApplyIssuer, issuer)
	for name, activity := range map[string]any{"credential": w.certManager.ApplyIssuerCredential, "issuer": w.certManager.ApplyIssuer} {
		if again := must[procedure.Outcome](t, w, activity, issuer); len(again.Changes) > 0 {
			t.Errorf("%s again: %+v", name, again)
		}
	}

	spec := mesh.Spec{Mesh: "labtest", Workloads: []mesh.Workload{{Name: "cluster1"}}}.WithDefaults()
	certificate := spec.ClientCertificate(spec.Workloads[0])
	certificate.Name = "labtest-" + time.Now().Format("150405.000")
	certificate.SecretName = certificate.Name // one Secret, one Certificate: cert-manager insists
	return vault, c, certmanager.CertificateInput{
		Mesh: "labtest", Context: "cluster1", Namespace: namespace, Certificate: certificate,
		RootPEM: vault.rootPEM, IntermediatePEM: vault.midPEM, Mode: procedure.Apply,
	}
}

func TestLabCertificate(t *testing.T) {
	w := lab(t)
	vault, c, in := certified(t, w)
	certificate := in.Certificate
	foreign := in
	foreign.Certificate.Name, foreign.Certificate.SecretName = certificate.Name+"-foreign", certificate.Name+"-foreign"
	foreign.Certificate.DNSNames = []string{"cluster2"}
	for range 2 { // the second finds cert-manager in its back-off, and triggers
		began := time.Now()
		_, err := settled[certmanager.CertificateResult](t, w, w.certManager.ApplyCertificate, foreign)
		if failure.KindOf(err) != failure.Denied || !strings.Contains(failure.Message(err), "cluster2 not allowed by this role") {
			t.Errorf("another cluster's name, after %s: %v", time.Since(began), err)
		}
	}

	// The cause is gone: what had failed before is no answer any more.
	vault.allow("cluster2")
	cured, err := settled[certmanager.CertificateResult](t, w, w.certManager.ApplyCertificate, foreign)
	if err != nil || cured.Leaf.Serial == "" || !slices.Equal(cured.Leaf.DNSNames, []string{"cluster2"}) {
		t.Errorf("once the role allows it: %+v, %v", cured, err)
	}
	vault.allow("cluster1")

	result := must[certmanager.CertificateResult](t, w, w.certManager.ApplyCertificate, in)
	if len(result.Changes) != 1 || result.Leaf.Serial == "" {
		t.Errorf("%+v", result)
	}
	live, err := c.CertManager.CertmanagerV1().Certificates(namespace).Get(context.Background(), certificate.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	again := must[certmanager.CertificateResult](t, w, w.certManager.ApplyCertificate, in)
	if len(again.Changes) > 0 || again.Leaf.Serial != result.Leaf.Serial {
		t.Errorf("again: %+v", again)
	}
	if now, err := c.CertManager.CertmanagerV1().Certificates(namespace).Get(context.Background(), certificate.Name, metav1.GetOptions{}); err != nil || now.ResourceVersion != live.ResourceVersion {
		t.Errorf("the same again was written: %v", err)
	}

	// The Vault that was given the intermediate alone, without the root.
	vault.mu.Lock()
	vault.chain = []string{vault.midPEM}
	vault.mu.Unlock()
	short := in
	short.Certificate.Name, short.Certificate.SecretName = certificate.Name+"-short", certificate.Name+"-short"
	if _, err := call[certmanager.CertificateResult](w, w.certManager.ApplyCertificate, short); failure.KindOf(err) != failure.Mismatch || !strings.Contains(failure.Message(err), "ca.crt") {
		t.Errorf("ca.crt is the intermediate: %v", err)
	}
}
