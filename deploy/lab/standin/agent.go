package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
)

// When the agent takes up changed Secrets, and what it checks the server against.
const (
	reloadHot         = "hot"
	reloadRestartOnly = "restartOnly"
	trustRootSecret   = "rootSecret" // relay-root-tls-secret, as the guide says
	trustOwn          = "own"        // the ca.crt next to its own certificate
)

const (
	handshakeTimeout = 5 * time.Second
	maxBackoff       = time.Second
)

// agent takes the place of gloo-mesh-agent.
type agent struct {
	namespace      string
	cluster        string
	serverAddress  string
	authority      string
	clientSecret   string
	rootSecret     string
	tokenSecret    string
	tokenKey       string
	tokenNamespace string
	reload         string
	trust          string
	rate           float64
	tallyEvery     time.Duration

	log     *zap.Logger
	metrics *agentMetrics
	ready   *atomic.Bool

	client atomic.Pointer[corev1.Secret] // as loaded
	root   atomic.Pointer[corev1.Secret] // as loaded; unused with trustOwn
	loaded atomic.Pointer[tls.Config]

	counted struct{ handshakes, failures, dialFailures, interrupted atomic.Int64 }
}

func (a *agent) register(fs *flag.FlagSet) {
	fs.StringVar(&a.cluster, "cluster", "", "name that this cluster is registered under")
	fs.StringVar(&a.serverAddress, "server-address", "", "host:port of the relay server")
	fs.StringVar(&a.authority, "authority", "gloo-mesh-mgmt-server.gloo-mesh", "name that the server's certificate must have")
	fs.StringVar(&a.clientSecret, "client-tls-secret", "relay-client-tls-secret", "Secret with tls.crt, tls.key and ca.crt")
	fs.StringVar(&a.rootSecret, "root-tls-secret", "relay-root-tls-secret", "Secret with the ca.crt that the server is checked against")
	fs.StringVar(&a.tokenSecret, "token-secret", "", "Secret with the identity token; empty means none is used")
	fs.StringVar(&a.tokenKey, "token-key", "token", "key of the identity token")
	fs.StringVar(&a.tokenNamespace, "token-namespace", "", "namespace of the identity token; empty means the agent's own")
	fs.StringVar(&a.reload, "reload", reloadHot, "when changed Secrets are taken up: "+reloadHot+" or "+reloadRestartOnly)
	fs.StringVar(&a.trust, "trust", trustRootSecret, "what the server is checked against: "+trustRootSecret+" or "+trustOwn)
	fs.Float64Var(&a.rate, "handshake-rate", 2, "fresh full handshakes per second; 0 means none")
	fs.DurationVar(&a.tallyEvery, "tally-every", 0, "how often the handshakes counted so far are logged; 0 means at the end alone")
}

type agentMetrics struct {
	handshakes, failures, dialFailures, interrupted *prometheus.CounterVec
}

func newAgentMetrics(r *prometheus.Registry) *agentMetrics {
	counter := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"cluster"})
		r.MustRegister(c)
		return c
	}
	return &agentMetrics{
		handshakes:   counter("relaypki_handshakes_total", "Fresh full TLS handshakes that reached a verdict, accepted or refused."),
		failures:     counter("relaypki_handshake_failures_total", "Fresh full TLS handshakes that either side refused."),
		dialFailures: counter("relaypki_dial_failures_total", "Handshakes that were not tried because there was no TCP connection, for instance while the server restarts."),
		interrupted:  counter("relaypki_handshakes_interrupted_total", "Handshakes without a verdict because the connection broke, for instance because the server was stopped."),
	}
}

func (a *agent) run(ctx context.Context, k kubernetes.Interface) error {
	if err := a.validate(); err != nil {
		return err
	}
	if err := a.readSecrets(ctx, k); err != nil {
		return err
	}
	a.ready.Store(true)
	for _, c := range []*prometheus.CounterVec{a.metrics.handshakes, a.metrics.failures, a.metrics.dialFailures, a.metrics.interrupted} {
		c.WithLabelValues(a.cluster).Add(0)
	}

	probed := make(chan struct{})
	go func() {
		defer close(probed)
		a.probe(ctx)
	}()
	a.connect(ctx)
	<-probed
	a.log.Info("received a signal to stop, shutting down")
	return nil
}

func (a *agent) validate() error {
	var problems []error
	if a.cluster == "" {
		problems = append(problems, errors.New("--cluster is empty"))
	}
	if a.serverAddress == "" {
		problems = append(problems, errors.New("--server-address is empty"))
	}
	if a.tallyEvery < 0 {
		problems = append(problems, fmt.Errorf("--tally-every is %s, less than nothing", a.tallyEvery))
	}
	if a.reload != reloadHot && a.reload != reloadRestartOnly {
		problems = append(problems, fmt.Errorf("--reload is %q, known are %s and %s", a.reload, reloadHot, reloadRestartOnly))
	}
	if a.trust != trustRootSecret && a.trust != trustOwn {
		problems = append(problems, fmt.Errorf("--trust is %q, known are %s and %s", a.trust, trustRootSecret, trustOwn))
	}
	return errors.Join(problems...)
}

// readSecrets loads everything the agent needs, or fails as the real one does.
func (a *agent) readSecrets(ctx context.Context, k kubernetes.Interface) error {
	if a.tokenSecret != "" {
		namespace := a.tokenNamespace
		if namespace == "" {
			namespace = a.namespace
		}
		token, err := watchSecret(ctx, k, namespace, a.tokenSecret, nil)
		if err == nil && len(token.Data[a.tokenKey]) == 0 {
			err = fmt.Errorf("no key %q", a.tokenKey)
		}
		if err != nil {
			return fatal{fmt.Sprintf("could not find forwarding server token: no token secret found: Secret %q %v", a.tokenSecret, err)}
		}
	}
	sources := []struct {
		name string
		into *atomic.Pointer[corev1.Secret]
	}{{a.clientSecret, &a.client}}
	if a.trust == trustRootSecret {
		sources = append(sources, struct {
			name string
			into *atomic.Pointer[corev1.Secret]
		}{a.rootSecret, &a.root})
	}
	for _, source := range sources {
		var changed func(*corev1.Secret)
		if a.reload == reloadHot {
			changed = func(s *corev1.Secret) {
				source.into.Store(s)
				if a.client.Load() == nil || a.trust == trustRootSecret && a.root.Load() == nil {
					return // still starting
				}
				if err := a.load(); err != nil {
					a.log.Error("changed Secret not taken up, what is loaded stays", zap.Error(err))
				}
			}
		}
		secret, err := watchSecret(ctx, k, a.namespace, source.name, changed)
		if err != nil {
			return fatal{fmt.Sprintf("secrets %q %v", source.name, err)}
		}
		source.into.Store(secret)
	}
	if err := a.load(); err != nil {
		return fatal{err.Error()}
	}
	return nil
}

// load makes the Secrets at hand what new handshakes use. Open streams stay.
func (a *agent) load() error {
	client, trusted := a.client.Load(), a.root.Load()
	if a.trust == trustOwn {
		trusted = client
	}
	pair, err := keyPair(client)
	if err != nil {
		return err
	}
	anchors, err := trustAnchors(trusted)
	if err != nil {
		return err
	}
	a.loaded.Store(&tls.Config{
		MinVersion: tls.VersionTLS12,
		// Not GetClientCertificate: the real agent sends no certificate to a
		// server whose acceptable CA names do not fit, and so does this one.
		Certificates:           []tls.Certificate{*pair},
		RootCAs:                anchors,
		ServerName:             a.authority,
		NextProtos:             []string{"h2"},
		SessionTicketsDisabled: true,
	})
	a.log.Info("loaded Secrets", zap.String("cluster", a.cluster), zap.String("trust", trusted.Name), zap.Strings("anchors", serials(trusted.Data["ca.crt"])),
		zap.String("serial", fmt.Sprintf("%x", pair.Leaf.SerialNumber)), zap.Time("notAfter", pair.Leaf.NotAfter))
	return nil
}

// connect holds both streams until ctx ends, starting over when they end.
func (a *agent) connect(ctx context.Context) {
	backoff := maxBackoff / 8
	for ctx.Err() == nil {
		connected, err := a.session(ctx)
		if ctx.Err() != nil {
			return
		}
		a.logDisconnect(err)
		if connected {
			backoff = maxBackoff / 8
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// session is one connection with both streams. It returns when either ends.
func (a *agent) session(ctx context.Context) (connected bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+a.serverAddress,
		grpc.WithTransportCredentials(credentials.NewTLS(a.loaded.Load())),
		grpc.WithAuthority(a.authority),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
	)
	if err != nil {
		return false, err
	}
	defer conn.Close()

	outgoing := metadata.AppendToOutgoingContext(ctx, clusterHeader, a.cluster)
	ended := make(chan error, len(streams))
	for _, name := range streams {
		stream, err := conn.NewStream(outgoing, clientStreamDesc(name), method(name))
		if err != nil {
			return false, err
		}
		header, err := stream.Header()
		if err != nil {
			return false, err
		}
		if header == nil { // ended before it began: the status says why
			return false, receive(stream)
		}
		go func() { ended <- receive(stream) }()
	}
	a.log.Info("connected to relay server", zap.String("cluster", a.cluster), zap.String("address", a.serverAddress))
	return true, <-ended
}

// logDisconnect reports why there is no connection, in the words that the
// guide shows for the two kinds it knows.
func (a *agent) logDisconnect(err error) {
	s := status.Convert(err)
	text := s.Message()
	switch {
	case s.Code() == codes.Unavailable && strings.Contains(text, "authentication handshake failed"):
		a.log.Info(fmt.Sprintf("[core]pickfirstBalancer: UpdateSubConnState: %p, {TRANSIENT_FAILURE %s}", a, text),
			zap.String("system", "grpc"), zap.Bool("grpc_log", true))
	case s.Code() == codes.Unavailable && strings.Contains(text, "Error while dialing"):
		a.log.Warn(fmt.Sprintf("failed to connect to {%s %s <nil> <nil>}. Err: %s", a.serverAddress, a.authority, text),
			zap.String("system", "grpc"), zap.Bool("grpc_log", true))
	default:
		a.log.Error("relay stream ended", zap.String("cluster", a.cluster), zap.Error(err))
	}
}

// probe makes fresh full handshakes at the configured rate until ctx ends. Those
// that are under way then are waited for, so that the log has every verdict:
// the counters end with the process, and whoever reads them may come too late.
func (a *agent) probe(ctx context.Context) {
	if a.rate <= 0 {
		return
	}
	ticker := time.NewTicker(time.Duration(float64(time.Second) / a.rate))
	defer ticker.Stop()
	var tally <-chan time.Time
	if a.tallyEvery > 0 {
		tallies := time.NewTicker(a.tallyEvery)
		defer tallies.Stop()
		tally = tallies.C
	}
	a.logTally(false)
	defer a.logTally(true)
	// A server that does not answer must not pile up connections without end.
	inFlight := make(chan struct{}, 64)
	var group sync.WaitGroup
	defer group.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tally:
			a.logTally(false)
			continue
		case <-ticker.C:
		}
		select {
		case inFlight <- struct{}{}:
		default:
			continue
		}
		group.Go(func() {
			defer func() { <-inFlight }()
			a.count(handshake(context.WithoutCancel(ctx), a.serverAddress, a.loaded.Load()))
		})
	}
}

func (a *agent) count(err error) {
	var dial *dialError
	switch {
	case err == nil:
		a.counted.handshakes.Add(1)
		a.metrics.handshakes.WithLabelValues(a.cluster).Inc()
	case errors.As(err, &dial):
		a.counted.dialFailures.Add(1)
		a.metrics.dialFailures.WithLabelValues(a.cluster).Inc()
	case broken(err):
		a.counted.interrupted.Add(1)
		a.metrics.interrupted.WithLabelValues(a.cluster).Inc()
		a.log.Warn("handshake interrupted", zap.String("cluster", a.cluster), zap.Error(err))
	default:
		a.counted.handshakes.Add(1)
		a.counted.failures.Add(1)
		a.metrics.handshakes.WithLabelValues(a.cluster).Inc()
		a.metrics.failures.WithLabelValues(a.cluster).Inc()
		a.log.Error("handshake failed", zap.String("cluster", a.cluster), zap.Error(err))
	}
}

// logTally logs what this process has counted so far.
func (a *agent) logTally(ended bool) {
	a.log.Info("handshakes counted", zap.String("cluster", a.cluster),
		zap.Int64("handshakes", a.counted.handshakes.Load()), zap.Int64("failures", a.counted.failures.Load()),
		zap.Int64("dialFailures", a.counted.dialFailures.Load()), zap.Int64("interrupted", a.counted.interrupted.Load()),
		zap.Bool("ended", ended))
}

type dialError struct{ error }

// handshake makes one TLS connection of its own and waits for the server's
// verdict. In TLS 1.3 the client's handshake returns before the server has
// judged the client certificate, so that only a byte of the server's (its
// HTTP/2 SETTINGS) proves acceptance.
func handshake(ctx context.Context, address string, config *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return &dialError{err}
	}
	defer raw.Close()
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}
