package observe

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/relaypki/relaypki/internal/check/observe/observetest"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/site"
)

// apiServer forwards ports of the Pod gloo-mesh/server-0 to the addresses given.
func apiServer(t *testing.T, targets map[string]string) *site.Cluster {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/api/v1/namespaces/gloo-mesh/pods/server-0/portforward", observetest.PortForward(targets))
	api := httptest.NewServer(mux)
	t.Cleanup(api.Close)
	return &site.Cluster{Name: "mgmt", REST: &rest.Config{Host: api.URL}}
}

func TestDialPod(t *testing.T) {
	own, other := newPKI(t, "R1"), newPKI(t, "another root")
	relay := observetest.Relay(t, &tls.Config{
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
