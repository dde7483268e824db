package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

var kubernetesClusters = schema.GroupVersionResource{Group: "admin.gloo.solo.io", Version: "v2", Resource: "kubernetesclusters"}

// Ways in which the server takes up a changed Secret, besides the agent's
// restartOnly. The real one is not known to do any of them, so the lab can be told
// each.
const (
	reloadWithCA      = "withCA"      // key pair and ca.crt
	reloadKeyPairOnly = "keyPairOnly" // ca.crt stays what it was at start
)

// server takes the place of gloo-mesh-mgmt-server.
type server struct {
	listen    string
	namespace string
	tlsSecret string
	reload    string

	log     *zap.Logger
	metrics *serverMetrics
	ready   *atomic.Bool
	// listening gets the address once the server accepts connections; nil outside tests.
	listening func(net.Addr)

	loaded atomic.Pointer[tls.Config]

	mu         sync.Mutex
	registered map[string]bool
	open       map[string]map[chan struct{}]bool // by cluster: what ends each open stream
}

func (s *server) register(fs *flag.FlagSet) {
	fs.StringVar(&s.listen, "listen", ":9900", "address of the gRPC server")
	fs.StringVar(&s.tlsSecret, "tls-secret", "relay-server-tls-secret", "Secret with tls.crt, tls.key and ca.crt")
	fs.StringVar(&s.reload, "reload", reloadWithCA, "what is taken up when the Secret changes: "+reloadWithCA+", "+reloadKeyPairOnly+" or "+reloadRestartOnly)
}

type serverMetrics struct {
	pull, push *prometheus.GaugeVec
	handshakes *prometheus.CounterVec
	failures   *prometheus.CounterVec
}

func newServerMetrics(r *prometheus.Registry) *serverMetrics {
	m := &serverMetrics{
		pull: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "relay_pull_clients_connected",
			Help: "Current number of connected Relay pull clients (Relay Agents).",
		}, []string{"cluster"}),
		push: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "relay_push_clients_connected",
			Help: "Current number of connected Relay push clients (Relay Agents).",
		}, []string{"cluster"}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relaypki_handshakes_total",
			Help: "TLS handshakes that reached a verdict, accepted or refused, by the cluster named in the client certificate (empty: none was shown).",
		}, []string{"cluster"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relaypki_handshake_failures_total",
			Help: "TLS handshakes that either side refused. A connection that merely broke is not counted.",
		}, []string{"cluster", "reason"}),
	}
	r.MustRegister(m.pull, m.push, m.handshakes, m.failures)
	return m
}

func (m *serverMetrics) connected(stream string) *prometheus.GaugeVec {
	if stream == "Pull" {
		return m.pull
	}
	return m.push
}

func (s *server) run(ctx context.Context, k kubernetes.Interface, d dynamic.Interface) error {
	if s.reload != reloadWithCA && s.reload != reloadKeyPairOnly && s.reload != reloadRestartOnly {
		return fmt.Errorf("--reload is %q, known are %s, %s and %s", s.reload, reloadWithCA, reloadKeyPairOnly, reloadRestartOnly)
	}
	// Informers end after the streams do, so that a stopping server still knows who is registered.
	watching, stopWatching := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWatching()

	var changed func(*corev1.Secret)
	if s.reload != reloadRestartOnly {
		changed = func(secret *corev1.Secret) {
			if err := s.load(secret); err != nil {
				s.log.Error("TLS secret not taken up, the loaded one stays", zap.Error(err))
			}
		}
	}
	secret, err := watchSecret(watching, k, s.namespace, s.tlsSecret, changed)
	if err != nil {
		return fatal{fmt.Sprintf("3 errors occurred:\n"+
			"\t* no tls secret found for grpc server: Secret %[1]q %[2]v\n"+
			"\t* could not find forwarding server token: no token secret found: %[3]v\n"+
			"\t* no tls secret found for grpc server: Secret %[1]q %[2]v\n", s.tlsSecret, err, errNotSynced)}
	}
	if err := s.load(secret); err != nil {
		return fatal{err.Error()}
	}
	s.registered = map[string]bool{}
	s.open = map[string]map[chan struct{}]bool{}
	if err := s.watchRegistrations(watching, d); err != nil {
		return err
	}

	listener, err := net.Listen("tcp", s.listen)
	if err != nil {
		return fmt.Errorf("grpc server: %w", err)
	}
	g := grpc.NewServer(
		grpc.Creds(&judge{TransportCredentials: credentials.NewTLS(s.tlsConfig()), log: s.log, metrics: s.metrics}),
		// Whoever connects and says nothing holds the server's end up for as long.
		grpc.ConnectionTimeout(5*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	g.RegisterService(serviceDesc(s.hold), s)
	s.log.Info("relay server listening", zap.Stringer("address", listener.Addr()), zap.String("reload", s.reload))
	s.ready.Store(true)
	if s.listening != nil {
		s.listening(listener.Addr())
	}

	go func() {
		<-ctx.Done()
		s.log.Info("shutting down")
		s.ready.Store(false)
		s.end("")
		forced := time.AfterFunc(2*time.Second, g.Stop)
		defer forced.Stop()
		g.GracefulStop()
	}()
	if err := g.Serve(listener); err != nil {
		return fmt.Errorf("grpc server: %w", err)
	}
	return nil
}

// load makes a changed Secret what new handshakes use. Open streams stay.
func (s *server) load(secret *corev1.Secret) error {
	pair, err := keyPair(secret)
	if err != nil {
		return err
	}
	trust, err := trustAnchors(secret)
	if err != nil {
		return err
	}
	if old := s.loaded.Load(); old != nil && s.reload == reloadKeyPairOnly {
		trust = old.ClientCAs
	}
	s.loaded.Store(&tls.Config{
		MinVersion:             tls.VersionTLS12,
		Certificates:           []tls.Certificate{*pair},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              trust,
		NextProtos:             []string{"h2"},
		SessionTicketsDisabled: true,
	})
	s.log.Info("loaded TLS secret", zap.String("secret", secret.Name),
		zap.String("serial", fmt.Sprintf("%x", pair.Leaf.SerialNumber)), zap.Time("notAfter", pair.Leaf.NotAfter))
	return nil
}

func (s *server) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             []string{"h2"},
		SessionTicketsDisabled: true,
		GetConfigForClient:     func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.loaded.Load(), nil },
	}
}

// watchRegistrations keeps the set of registered clusters. Where the resource
// does not exist (yet) nobody is registered.
func (s *server) watchRegistrations(ctx context.Context, d dynamic.Interface) error {
	factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(d, 0, s.namespace, nil)
	informer := factory.ForResource(kubernetesClusters).Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			name := obj.(metav1.Object).GetName()
			s.mu.Lock()
			s.registered[name] = true
			s.mu.Unlock()
			for _, stream := range streams {
				s.metrics.connected(stream).WithLabelValues(name).Add(0)
			}
			s.log.Info("cluster registered", zap.String("cluster", name))
		},
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			name := obj.(metav1.Object).GetName()
			s.mu.Lock()
			delete(s.registered, name)
			s.mu.Unlock()
			s.end(name)
			s.log.Info("cluster no longer registered", zap.String("cluster", name))
		},
	})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	return nil
}

// hold keeps one stream of one agent open until either side ends it.
func (s *server) hold(name string, stream grpc.ServerStream) error {
	cluster, ended, err := s.admit(stream.Context())
	if err != nil {
		s.log.Error("agent refused", zap.String("stream", name), zap.Error(err))
		return err
	}
	defer s.leave(cluster, ended)
	connected := s.metrics.connected(name).WithLabelValues(cluster)
	connected.Inc()
	defer connected.Dec()
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	s.log.Info("agent connected", zap.String("cluster", cluster), zap.String("stream", name))
	received := make(chan error, 1)
	go func() { received <- receive(stream) }()
	select {
	case <-ended:
		s.log.Info("ending agent's stream", zap.String("cluster", cluster), zap.String("stream", name))
		return status.Error(codes.Unavailable, "the server ends this stream")
	case err := <-received:
		s.log.Info("agent disconnected", zap.String("cluster", cluster), zap.String("stream", name), zap.NamedError("cause", err))
		return nil
	}
}

// admit decides who the agent is: the DNS SAN of its certificate, which must be
// registered and the name that the agent itself goes by.
func (s *server) admit(ctx context.Context) (cluster string, ended chan struct{}, err error) {
	p, _ := peer.FromContext(ctx)
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return "", nil, status.Error(codes.Unauthenticated, "no client certificate")
	}
	leaf := info.State.PeerCertificates[0]
	s.mu.Lock()
	defer s.mu.Unlock()
	cluster = leafCluster(leaf)
	if claimed := metadata.ValueFromIncomingContext(ctx, clusterHeader); len(claimed) > 0 && claimed[0] != "" {
		if !slices.Contains(leaf.DNSNames, claimed[0]) {
			return "", nil, status.Errorf(codes.PermissionDenied, "the client certificate is for %v, not for cluster %q", leaf.DNSNames, claimed[0])
		}
		cluster = claimed[0]
	}
	if !s.registered[cluster] {
		return "", nil, status.Errorf(codes.PermissionDenied, "cluster %q is not registered: there is no such KubernetesCluster", cluster)
	}
	ended = make(chan struct{})
	if s.open[cluster] == nil {
		s.open[cluster] = map[chan struct{}]bool{}
	}
	s.open[cluster][ended] = true
	return cluster, ended, nil
}

func (s *server) leave(cluster string, ended chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open[cluster], ended)
}

// end closes the streams of a cluster, or of all for the empty name.
func (s *server) end(cluster string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, open := range s.open {
		if cluster != "" && cluster != name {
			continue
		}
		for ended := range open {
			close(ended)
			delete(open, ended)
		}
	}
}

// leafCluster is the cluster that a client certificate stands for.
func leafCluster(leaf *x509.Certificate) string {
	if len(leaf.DNSNames) == 0 {
		return ""
	}
	return leaf.DNSNames[0]
}

// judge counts and logs the server's handshakes.
type judge struct {
	credentials.TransportCredentials
	log     *zap.Logger
	metrics *serverMetrics
}

func (j *judge) Clone() credentials.TransportCredentials {
	return &judge{j.TransportCredentials.Clone(), j.log, j.metrics}
}

func (j *judge) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	lingering := &lingeringConn{Conn: raw}
	conn, info, err := j.TransportCredentials.ServerHandshake(lingering)
	if err == nil {
		lingering.accepted = true
		if t, ok := info.(credentials.TLSInfo); ok && len(t.State.PeerCertificates) > 0 {
			j.metrics.handshakes.WithLabelValues(leafCluster(t.State.PeerCertificates[0])).Inc()
		}
		return conn, info, nil
	}
	if broken(err) {
		return nil, nil, err
	}
	cluster := ""
	if refused, ok := errors.AsType[*tls.CertificateVerificationError](err); ok && len(refused.UnverifiedCertificates) > 0 {
		cluster = leafCluster(refused.UnverifiedCertificates[0])
	}
	j.metrics.handshakes.WithLabelValues(cluster).Inc()
	j.metrics.failures.WithLabelValues(cluster, reason(err)).Inc()
	j.log.Warn(fmt.Sprintf(`[core][Server #1]grpc: Server.Serve failed to create ServerTransport: connection error: desc = "ServerHandshake(%q) failed: %v"`, raw.RemoteAddr(), err),
		zap.String("system", "grpc"), zap.Bool("grpc_log", true), zap.String("cluster", cluster))
	return nil, nil, err
}

// lingeringConn makes sure that a refused client gets to read the alert: bytes
// of its that are still unread when the connection is closed would turn the
// close into a reset, which discards the alert.
type lingeringConn struct {
	net.Conn
	accepted bool
}

func (c *lingeringConn) Close() error {
	if t, ok := c.Conn.(*net.TCPConn); ok && !c.accepted {
		t.CloseWrite()
		t.SetReadDeadline(time.Now().Add(time.Second))
		io.Copy(io.Discard, t)
	}
	return c.Conn.Close()
}

// broken tells a connection that went away from one that was refused.
func broken(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.As(err, &timeout) && timeout.Timeout()
}

// reason is a short name of why a handshake was refused.
func reason(err error) string {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "expired"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "unknown_authority"
	}
	text := err.Error()
	switch {
	case strings.Contains(text, "didn't provide a certificate"):
		return "no_client_certificate"
	case strings.HasPrefix(text, "remote error: "):
		return "refused_by_client"
	case strings.Contains(text, "first record does not look like a TLS handshake"):
		return "not_tls"
	}
	return "other"
}
