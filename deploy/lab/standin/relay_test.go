package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
)

const ns = "gloo-mesh"

// ca is a self-signed root.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T, name string) ca {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return ca{cert: sign(t, template, template, key, key), key: key}
}

func (c ca) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
}

// secret is what cert-manager would write: a leaf of the root, and the root.
func (c ca) secret(t *testing.T, name, dnsName string, notAfter time.Time) *corev1.Secret {
	t.Helper()
	key := newKey(t)
	leaf := sign(t, &x509.Certificate{
		SerialNumber: serial(t), DNSNames: []string{dnsName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, c.cert, key, c.key)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns},
		Data: map[string][]byte{
			"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}),
			"tls.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
			"ca.crt":  c.pem(),
		},
	}
}

func (c ca) server(t *testing.T) *corev1.Secret {
	return c.secret(t, "relay-server-tls-secret", "*.gloo-mesh", time.Now().Add(time.Hour))
}

func (c ca) client(t *testing.T, cluster string) *corev1.Secret {
	return c.secret(t, "relay-client-tls-secret", cluster, time.Now().Add(time.Hour))
}

func rootSecret(roots ...ca) *corev1.Secret {
	var bundle []byte
	for _, r := range roots {
		bundle = append(bundle, r.pem()...)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "relay-root-tls-secret", Namespace: ns},
		Data:       map[string][]byte{"ca.crt": bundle},
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t *testing.T) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func sign(t *testing.T, template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// member is a running server or agent with the API server it reads from.
type member struct {
	api     *fake.Clientset
	dynamic *dynamicfake.FakeDynamicClient
	logs    *observer.ObservedLogs
	cancel  func() // begins its end, which stop waits for
	stop    func()
	ended   <-chan error
	ready   *atomic.Bool

	address string // server
	server  *serverMetrics
	agent   *agentMetrics
}

func (m *member) write(t *testing.T, s *corev1.Secret) {
	t.Helper()
	if _, err := m.api.CoreV1().Secrets(ns).Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (m *member) logged(part string) bool {
	for _, e := range m.logs.All() {
		if strings.Contains(e.Message, part) {
			return true
		}
		for _, f := range e.Context {
			if err, ok := f.Interface.(error); ok && strings.Contains(err.Error(), part) {
				return true
			}
		}
	}
	return false
}

func startServer(t *testing.T, reload string, registered []string, objects ...runtime.Object) *member {
	t.Helper()
	m := newMember(objects)
	var clusters []runtime.Object
	for _, name := range registered {
		clusters = append(clusters, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "admin.gloo.solo.io/v2", "kind": "KubernetesCluster",
			"metadata": map[string]any{"name": name, "namespace": ns},
		}})
	}
	m.dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{kubernetesClusters: "KubernetesClusterList"}, clusters...)
	m.server = newServerMetrics(prometheus.NewRegistry())
	listening := make(chan net.Addr, 1)
	s := &server{
		listen: "127.0.0.1:0", namespace: ns, tlsSecret: "relay-server-tls-secret", reload: reload,
		log: m.logger(), metrics: m.server, ready: m.ready, listening: func(a net.Addr) { listening <- a },
	}
	m.run(t, func(ctx context.Context) error { return s.run(ctx, m.api, m.dynamic) })
	select {
	case a := <-listening:
		m.address = a.String()
	case err := <-m.ended:
		t.Fatal("server ended: ", err)
	}
	return m
}

func startAgent(t *testing.T, cluster, address string, set func(*agent), objects ...runtime.Object) *member {
	t.Helper()
	m := newMember(objects)
	m.agent = newAgentMetrics(prometheus.NewRegistry())
	a := &agent{
		namespace: ns, cluster: cluster, serverAddress: address, authority: "gloo-mesh-mgmt-server.gloo-mesh",
		clientSecret: "relay-client-tls-secret", rootSecret: "relay-root-tls-secret",
		reload: reloadHot, trust: trustRootSecret, rate: 50,
		log: m.logger(), metrics: m.agent, ready: m.ready,
	}
	if set != nil {
		set(a)
	}
	m.run(t, func(ctx context.Context) error { return a.run(ctx, m.api) })
	return m
}

func newMember(objects []runtime.Object) *member {
	return &member{api: fake.NewClientset(objects...), ready: &atomic.Bool{}}
}

func (m *member) logger() *zap.Logger {
	core, logs := observer.New(zapcore.InfoLevel)
	m.logs = logs
	return zap.New(core)
}

func (m *member) run(t *testing.T, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- run(ctx)
	}()
	m.ended, m.cancel = ended, cancel
	m.stop = func() { cancel(); <-done }
	t.Cleanup(m.stop)
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func value(v *prometheus.CounterVec, labels ...string) float64 {
	return testutil.ToFloat64(v.WithLabelValues(labels...))
}

func (m *member) streams(cluster string) (pull, push float64) {
	return testutil.ToFloat64(m.server.pull.WithLabelValues(cluster)), testutil.ToFloat64(m.server.push.WithLabelValues(cluster))
}

// progress waits until the agent has made n more handshakes, and returns how
// many of these failed.
func (m *member) progress(t *testing.T, cluster string, n float64) (failed float64) {
	t.Helper()
	total, failures := value(m.agent.handshakes, cluster), value(m.agent.failures, cluster)
	eventually(t, "more handshakes of "+cluster, func() bool { return value(m.agent.handshakes, cluster) >= total+n })
	return value(m.agent.failures, cluster) - failures
}

func TestStreamsAreGauged(t *testing.T) {
	root := newCA(t, "R1")
	s := startServer(t, reloadWithCA, []string{"cluster1", "cluster2"}, root.server(t))
	a := startAgent(t, "cluster1", s.address, nil, root.client(t, "cluster1"), rootSecret(root))
	eventually(t, "both streams of cluster1 are open", func() bool {
		pull, push := s.streams("cluster1")
		return pull == 1 && push == 1
	})
	if failed := a.progress(t, "cluster1", 5); failed != 0 {
		t.Errorf("%v handshakes failed", failed)
	}
	eventually(t, "the server counts them too", func() bool { return value(s.server.handshakes, "cluster1") >= 5 })
	a.stop()
	eventually(t, "both streams of cluster1 are closed", func() bool {
		pull, push := s.streams("cluster1")
		return pull == 0 && push == 0
	})
	// A registered cluster that has never connected and one that left are 0, not absent.
	if n := testutil.CollectAndCount(s.server.pull); n != 2 {
		t.Errorf("relay_pull_clients_connected has %d series, want 2", n)
	}
	if n := testutil.CollectAndCount(s.server.failures); n != 0 {
		t.Errorf("an agent's own end was counted as a failed handshake")
	}
}

func TestUnregisteredIsRefused(t *testing.T) {
	root := newCA(t, "R1")
	s := startServer(t, reloadWithCA, []string{"cluster1"}, root.server(t))
	stranger := startAgent(t, "cluster9", s.address, nil, root.client(t, "cluster9"), rootSecret(root))
	eventually(t, "refusal of cluster9", func() bool { return stranger.logged(`cluster "cluster9" is not registered`) })

	renamed := startAgent(t, "cluster1", s.address, nil, root.client(t, "one"), rootSecret(root))
	eventually(t, "refusal of another name than the certificate's", func() bool {
		return renamed.logged(`the client certificate is for [one], not for cluster "cluster1"`)
	})

	agent := startAgent(t, "cluster1", s.address, nil, root.client(t, "cluster1"), rootSecret(root))
	connected := func(want float64) func() bool {
		return func() bool { pull, push := s.streams("cluster1"); return pull == want && push == want }
	}
	eventually(t, "cluster1 connects", connected(1))
	if err := s.dynamic.Resource(kubernetesClusters).Namespace(ns).Delete(t.Context(), "cluster1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "cluster1 is put out", connected(0))
	eventually(t, "cluster1 is refused", func() bool { return agent.logged(`cluster "cluster1" is not registered`) })
}

// served is what a client without a certificate sees: the server's leaf and the
// names of the CAs it accepts.
func served(t *testing.T, address string) (leaf *x509.Certificate, acceptable [][]byte) {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"h2"},
		GetClientCertificate: func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			acceptable = r.AcceptableCAs
			return &tls.Certificate{}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0], acceptable
}

func TestServerReload(t *testing.T) {
	old, next := newCA(t, "R1"), newCA(t, "R2")
	for reload, trusted := range map[string]ca{reloadWithCA: next, reloadKeyPairOnly: old} {
		t.Run(reload, func(t *testing.T) {
			s := startServer(t, reload, []string{"cluster1"}, old.server(t))
			secret := next.server(t)
			pair, err := keyPair(secret)
			if err != nil {
				t.Fatal(err)
			}
			s.write(t, secret)
			var acceptable [][]byte
			eventually(t, "the new leaf is served", func() bool {
				var leaf *x509.Certificate
				leaf, acceptable = served(t, s.address)
				return leaf.Equal(pair.Leaf)
			})
			if len(acceptable) != 1 || !bytes.Equal(acceptable[0], trusted.cert.RawSubject) {
				t.Errorf("the server accepts %q, want the name of %s alone", acceptable, trusted.cert.Subject)
			}
			// The names are what it really trusts: an agent of that root is served.
			trustBoth := rootSecret(old, next)
			a := startAgent(t, "cluster1", s.address, nil, trusted.client(t, "cluster1"), trustBoth)
			eventually(t, "connection", func() bool { pull, push := s.streams("cluster1"); return pull == 1 && push == 1 })
			if failed := a.progress(t, "cluster1", 3); failed != 0 {
				t.Errorf("%v handshakes failed", failed)
			}
		})
	}
}

// A server that is told to reload by a restart alone presents and accepts what it
// read at its start, when another has long taken up the same change.
func TestServerReloadsAtRestart(t *testing.T) {
	old, next := newCA(t, "R1"), newCA(t, "R2")
	s, other := startServer(t, reloadRestartOnly, nil, old.server(t)), startServer(t, reloadWithCA, nil, old.server(t))
	before, _ := served(t, s.address)
	secret := next.server(t)
	s.write(t, secret)
	other.write(t, secret)
	eventually(t, "the new leaf is served by the other", func() bool { leaf, _ := served(t, other.address); return leaf.CheckSignatureFrom(next.cert) == nil })
	if leaf, acceptable := served(t, s.address); !leaf.Equal(before) || len(acceptable) != 1 || !bytes.Equal(acceptable[0], old.cert.RawSubject) {
		t.Errorf("it presents a certificate of %s and accepts %q", leaf.Issuer, acceptable)
	}
}

func TestAgentReload(t *testing.T) {
	old, next := newCA(t, "R1"), newCA(t, "R2")
	for _, test := range []struct {
		reload, trust string
		follows       bool
	}{
		{reloadHot, trustRootSecret, true},
		{reloadHot, trustOwn, true},
		{reloadRestartOnly, trustRootSecret, false},
		{reloadRestartOnly, trustOwn, false},
	} {
		t.Run(test.reload+"/"+test.trust, func(t *testing.T) {
			s := startServer(t, reloadWithCA, []string{"cluster1"}, old.server(t))
			root := rootSecret(old)
			if test.trust == trustOwn {
				root = rootSecret(newCA(t, "never looked at"))
			}
			a := startAgent(t, "cluster1", s.address, func(a *agent) { a.reload, a.trust = test.reload, test.trust },
				old.client(t, "cluster1"), root)
			eventually(t, "connection", func() bool { pull, _ := s.streams("cluster1"); return pull == 1 })
			if failed := a.progress(t, "cluster1", 3); failed != 0 {
				t.Fatalf("%v handshakes failed before anything changed", failed)
			}
			// All at once to another root: what is loaded decides.
			secret := next.server(t)
			s.write(t, secret)
			a.write(t, next.client(t, "cluster1"))
			if test.trust == trustRootSecret {
				a.write(t, rootSecret(next))
			}
			pair, err := keyPair(secret)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the new leaf is served", func() bool { leaf, _ := served(t, s.address); return leaf.Equal(pair.Leaf) })
			if test.follows {
				eventually(t, "handshakes without failure", func() bool { return a.progress(t, "cluster1", 3) == 0 })
			} else {
				eventually(t, "every handshake fails", func() bool { return a.progress(t, "cluster1", 3) >= 3 })
			}
			// Streams that are open are none the wiser.
			if pull, push := s.streams("cluster1"); pull != 1 || push != 1 {
				t.Errorf("open streams: pull %v, push %v, want 1 and 1", pull, push)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	ours, theirs := newCA(t, "R1"), newCA(t, "R2")
	expired := time.Now().Add(-time.Minute)
	for name, test := range map[string]struct {
		server                  *corev1.Secret
		client                  *corev1.Secret
		trust                   *corev1.Secret
		serverSays, agentSays   string
		countedUnder, forReason string
	}{
		"client's chain not trusted": {
			server: ours.server(t), client: theirs.client(t, "cluster1"), trust: rootSecret(ours),
			serverSays: "tls: client didn't provide a certificate", agentSays: "remote error: tls: certificate required",
			countedUnder: "", forReason: "no_client_certificate",
		},
		"server not trusted": {
			server: ours.server(t), client: ours.client(t, "cluster1"), trust: rootSecret(theirs),
			serverSays: "remote error: tls: bad certificate", agentSays: "x509: certificate signed by unknown authority",
			countedUnder: "", forReason: "refused_by_client",
		},
		"client certificate expired": {
			server: ours.server(t), client: ours.secret(t, "relay-client-tls-secret", "cluster1", expired), trust: rootSecret(ours),
			serverSays: "x509: certificate has expired or is not yet valid", agentSays: "remote error: tls: expired certificate",
			countedUnder: "cluster1", forReason: "expired",
		},
		"server certificate expired": {
			server: ours.secret(t, "relay-server-tls-secret", "*.gloo-mesh", expired), client: ours.client(t, "cluster1"), trust: rootSecret(ours),
			serverSays: "remote error: tls: bad certificate", agentSays: `{TRANSIENT_FAILURE connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time`,
			countedUnder: "", forReason: "refused_by_client",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, reloadWithCA, []string{"cluster1"}, test.server)
			a := startAgent(t, "cluster1", s.address, nil, test.client, test.trust)
			if failed := a.progress(t, "cluster1", 3); failed < 3 {
				t.Errorf("%v of at least 3 handshakes failed", failed)
			}
			eventually(t, "server says "+test.serverSays, func() bool { return s.logged(test.serverSays) })
			eventually(t, "agent says "+test.agentSays, func() bool { return a.logged(test.agentSays) })
			eventually(t, "server counts "+test.forReason, func() bool {
				return value(s.server.failures, test.countedUnder, test.forReason) > 0
			})
			if n := value(a.agent.interrupted, "cluster1"); n != 0 {
				t.Errorf("%v refusals reached the agent as broken connections", n)
			}
		})
	}
}

func TestMissingSecrets(t *testing.T) {
	root := newCA(t, "R1")
	client := root.client(t, "cluster1")
	fails := func(t *testing.T, m *member, want string) {
		t.Helper()
		err := <-m.ended
		if _, ok := errors.AsType[fatal](err); !ok || err.Error() != want {
			t.Errorf("ended with %v\nwant %s", err, want)
		}
		if m.ready.Load() {
			t.Error("was ready")
		}
	}
	t.Run("server", func(t *testing.T) {
		m := newMember(nil)
		s := &server{listen: "127.0.0.1:0", namespace: ns, tlsSecret: "relay-server-tls-secret", reload: reloadWithCA,
			log: m.logger(), metrics: newServerMetrics(prometheus.NewRegistry()), ready: m.ready}
		m.run(t, func(ctx context.Context) error { return s.run(ctx, m.api, nil) })
		fails(t, m, "3 errors occurred:\n"+
			"\t* no tls secret found for grpc server: Secret \"relay-server-tls-secret\" not found\n"+
			"\t* could not find forwarding server token: no token secret found: Timeout: failed waiting for *v1.Secret Informer to sync\n"+
			"\t* no tls secret found for grpc server: Secret \"relay-server-tls-secret\" not found\n")
	})
	t.Run("agent's trust", func(t *testing.T) {
		fails(t, startAgent(t, "cluster1", "127.0.0.1:1", nil, client), `secrets "relay-root-tls-secret" not found`)
	})
	t.Run("agent's certificate", func(t *testing.T) {
		fails(t, startAgent(t, "cluster1", "127.0.0.1:1", nil, rootSecret(root)), `secrets "relay-client-tls-secret" not found`)
	})
	t.Run("agent's trust is not needed with its own", func(t *testing.T) {
		a := startAgent(t, "cluster1", "127.0.0.1:1", func(a *agent) { a.trust = trustOwn }, client)
		eventually(t, "ready", a.ready.Load)
		eventually(t, "a server that is not there is no failed handshake", func() bool { return value(a.agent.dialFailures, "cluster1") > 0 })
		if n := value(a.agent.failures, "cluster1"); n != 0 {
			t.Errorf("%v failed handshakes", n)
		}
	})
	t.Run("identity token", func(t *testing.T) {
		fails(t, startAgent(t, "cluster1", "127.0.0.1:1", func(a *agent) { a.tokenSecret = "relay-identity-token-secret" }, client, rootSecret(root)),
			`could not find forwarding server token: no token secret found: Secret "relay-identity-token-secret" not found`)
	})
}

func TestMalformedAddress(t *testing.T) {
	root := newCA(t, "R1")
	a := startAgent(t, "cluster1", "34.145.18106:9900:9900", nil, root.client(t, "cluster1"), rootSecret(root))
	eventually(t, "too many colons in address", func() bool {
		return a.logged("failed to connect to {34.145.18106:9900:9900 gloo-mesh-mgmt-server.gloo-mesh <nil> <nil>}. Err: connection error") &&
			a.logged("too many colons in address")
	})
}

// A server that stops ends its streams and does not wait for agents to leave.
func TestServerStops(t *testing.T) {
	root := newCA(t, "R1")
	s := startServer(t, reloadWithCA, []string{"cluster1"}, root.server(t))
	a := startAgent(t, "cluster1", s.address, nil, root.client(t, "cluster1"), rootSecret(root))
	// The agent's word, not the server's: a server that stops between the two
	// streams is told of as a connection that is draining.
	eventually(t, "connection", func() bool { return a.logged("connected to relay server") })
	s.stop()
	if err := <-s.ended; err != nil {
		t.Errorf("server ended with %v", err)
	}
	eventually(t, "agent notices", func() bool { return a.logged("the server ends this stream") })
	a.stop()
	if n := value(a.agent.failures, "cluster1"); n != 0 {
		t.Errorf("the server's stop was counted as %v failed handshakes", n)
	}
}

// tally is the last line in which the agent says what it has counted.
func (m *member) tally(t *testing.T) map[string]any {
	t.Helper()
	lines := m.logs.FilterMessage("handshakes counted").All()
	if len(lines) == 0 {
		t.Fatal("the agent has not logged what it counted")
	}
	return lines[len(lines)-1].ContextMap()
}

// A handshake that is under way when the agent is stopped is judged before it
// ends, and the agent's last line has it: no restart makes a refusal unseen.
func TestNoVerdictIsLost(t *testing.T) {
	root, other := newCA(t, "R1"), newCA(t, "R2")
	pair, err := keyPair(other.server(t))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted, answer := make(chan struct{}, 1000), make(chan struct{})
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- struct{}{}
			go func() {
				defer raw.Close()
				<-answer
				_ = tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{*pair}}).Handshake()
			}()
		}
	}()
	a := startAgent(t, "cluster1", l.Addr().String(), func(a *agent) { a.tallyEvery = 10 * time.Millisecond }, root.client(t, "cluster1"), rootSecret(root))
	<-accepted // the streams' connection, or a handshake
	<-accepted // so one of these at least is a handshake
	eventually(t, "a tally while it runs", func() bool { return a.logs.FilterMessage("handshakes counted").Len() > 1 })
	if last := a.tally(t); last["ended"] != false || last["failures"] != int64(0) {
		t.Errorf("before anything is judged the agent says %v", last)
	}
	stopped := make(chan struct{})
	a.cancel()
	go func() { defer close(stopped); a.stop() }()
	close(answer)
	<-stopped
	failures := int64(value(a.agent.failures, "cluster1"))
	if failures == 0 {
		t.Error("what was refused after the agent was told to stop is not counted")
	}
	if last := a.tally(t); last["ended"] != true || last["failures"] != failures || last["handshakes"] != failures {
		t.Errorf("at its end the agent says %v, counted are %d refusals", last, failures)
	}
	if n := a.logs.FilterMessage("handshake failed").Len(); int64(n) != failures {
		t.Errorf("%d refusals are logged, %d counted", n, failures)
	}
}
