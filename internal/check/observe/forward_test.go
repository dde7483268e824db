package observe

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/site"
)

// apiServer forwards ports of the Pod gloo-mesh/server-0 as an API server does
// that speaks SPDY alone, or refuses WebSockets for lack of permission: to the
// addresses given by port.
func apiServer(t *testing.T, targets map[string]string) *site.Cluster {
	t.Helper()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/namespaces/gloo-mesh/pods/server-0/portforward" {
			http.NotFound(w, r)
			return
		}
		if r.Method == http.MethodGet {
			http.Error(w, "no WebSockets here", http.StatusForbidden)
			return
		}
		if _, err := httpstream.Handshake(r, w, []string{portforward.PortForwardProtocolV1Name}); err != nil {
			return
		}
		var mu sync.Mutex
		var problems httpstream.Stream
		forwarded := make(chan struct{})
		conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(stream httpstream.Stream, _ <-chan struct{}) error {
			mu.Lock()
			defer mu.Unlock()
			if stream.Headers().Get(corev1.StreamType) == corev1.StreamTypeError {
				problems = stream
				return nil
			}
			go func(problems httpstream.Stream) {
				defer close(forwarded)
				forward(stream, problems, targets[stream.Headers().Get(corev1.PortHeader)])
			}(problems)
			return nil
		})
		if conn == nil {
			return
		}
		select {
		case <-forwarded:
		case <-conn.CloseChan():
		}
		<-conn.CloseChan()
	}))
	t.Cleanup(api.Close)
	return &site.Cluster{Name: "mgmt", REST: &rest.Config{Host: api.URL}}
}

func forward(data, problems httpstream.Stream, target string) {
	defer problems.Close()
	defer data.Close()
	to, err := net.Dial("tcp", target)
	if err != nil {
		fmt.Fprintf(problems, "failed to forward: %v", err)
		return
	}
	defer to.Close()
	go func() {
		_, _ = io.Copy(to, data)
		_ = to.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(data, to)
}

func TestDialPod(t *testing.T) {
	own, other := newPKI(t, "R1"), newPKI(t, "another root")
	relay := server(t, &tls.Config{
		Certificates: []tls.Certificate{own.server.TLS(own.relay)},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: pki.Pool([]*x509.Certificate{own.root.Cert}),
	})
	gauges := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "# TYPE relay_pull_clients_connected gauge\nrelay_pull_clients_connected{cluster=\"cluster1\"} 1\n")
	}))
	t.Cleanup(gauges.Close)
	cluster := apiServer(t, map[string]string{"9900": relay, "9091": strings.TrimPrefix(gauges.URL, "http://"), "1": "127.0.0.1:1"})

	dialed := func(port int) net.Conn {
		conn, err := dialPod(t.Context(), cluster, "gloo-mesh", "server-0", port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	trust := pki.Pool([]*x509.Certificate{own.root.Cert})
	if _, err := handshake(t.Context(), dialed(relayPort), authority, own.client.TLS(own.relay), trust); err != nil {
		t.Errorf("handshake: %v", err)
	}
	if _, err := handshake(t.Context(), dialed(relayPort), authority, other.client.TLS(other.relay), trust); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("the server's verdict on a client of another root: %v", err)
	}
	if seen, err := loaded(t.Context(), dialed(relayPort), authority); err != nil || len(seen.AcceptableCAs) != 1 {
		t.Errorf("loaded: %v, %d CAs", err, len(seen.AcceptableCAs))
	}
	if seen, err := metrics(t.Context(), dialed(metricsPort)); err != nil || seen.Pull["cluster1"] != 1 {
		t.Errorf("metrics: %v, %v", err, seen.Pull)
	}
	if _, err := handshake(t.Context(), dialed(1), authority, own.client.TLS(own.relay), trust); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a port that nobody listens on: %v", err)
	}
	if conn, err := dialPod(t.Context(), cluster, "gloo-mesh", "gone", relayPort); err == nil {
		conn.Close()
		t.Error("a Pod that is not there was reached")
	}
}
