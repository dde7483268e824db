package observe

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/check/observe/observetest"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
)

const authority = "gloo-mesh-mgmt-server.gloo-mesh"

// lasting makes certificates valid now, by the real clock that crypto/tls uses.
func lasting(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
}

func ended(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
}

type relayPKI struct{ root, relay, server, client pkitest.Pair }

func newPKI(t *testing.T, rootName string) relayPKI {
	root := pkitest.Root(t, rootName, lasting)
	relay := root.Intermediate(t, "relay CA", lasting)
	return relayPKI{root, relay, relay.Leaf(t, []string{"*.gloo-mesh"}, lasting), relay.Leaf(t, []string{"cluster1"}, lasting)}
}

func connect(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestHandshake(t *testing.T) {
	own, other, sameName := newPKI(t, "R1"), newPKI(t, "another root"), newPKI(t, "R1")
	expired := own.relay.Leaf(t, []string{"cluster1"}, ended)
	serverExpired := own.relay.Leaf(t, []string{"*.gloo-mesh"}, ended)
	otherName := own.relay.Leaf(t, []string{"gloo-mesh-mgmt-server-ca"}, lasting)
	for _, test := range []struct {
		name string
		// server shows and trusts, client shows and trusts
		shows           tls.Certificate
		trusts          *x509.Certificate
		client          tls.Certificate
		clientTrusts    *x509.Certificate
		meaning, before string // what it means in TLS 1.3, and in 1.2 where that differs
	}{
		{name: "in order", shows: own.server.TLS(own.relay), trusts: own.root.Cert, client: own.client.TLS(own.relay), clientTrusts: own.root.Cert},
		{name: "the server names other CAs, so nothing is sent", shows: own.server.TLS(own.relay), trusts: other.root.Cert, client: own.client.TLS(own.relay), clientTrusts: own.root.Cert,
			meaning: "no client certificate was sent", before: "without saying why"},
		{name: "the server trusts another root of the same name", shows: own.server.TLS(own.relay), trusts: sameName.root.Cert, client: own.client.TLS(own.relay), clientTrusts: own.root.Cert,
			meaning: "does not trust this cluster's chain"},
		{name: "client expired", shows: own.server.TLS(own.relay), trusts: own.root.Cert, client: expired.TLS(own.relay), clientTrusts: own.root.Cert,
			meaning: "holds this cluster's certificate for expired"},
		{name: "the agent's trust has another root", shows: own.server.TLS(own.relay), trusts: own.root.Cert, client: own.client.TLS(own.relay), clientTrusts: other.root.Cert,
			meaning: "trust does not hold the root"},
		{name: "server expired", shows: serverExpired.TLS(own.relay), trusts: own.root.Cert, client: own.client.TLS(own.relay), clientTrusts: own.root.Cert,
			meaning: "server's certificate has expired"},
		{name: "server's name", shows: otherName.TLS(own.relay), trusts: own.root.Cert, client: own.client.TLS(own.relay), clientTrusts: own.root.Cert,
			meaning: "name that agents expect"},
	} {
		for version, label := range map[uint16]string{tls.VersionTLS13: "1.3", tls.VersionTLS12: "1.2"} {
			t.Run(test.name+", TLS "+label, func(t *testing.T) {
				address := observetest.Relay(t, &tls.Config{
					MaxVersion: version, Certificates: []tls.Certificate{test.shows},
					ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pki.Pool([]*x509.Certificate{test.trusts}),
				})
				resumed, err := handshake(t.Context(), connect(t, address), authority, test.client, pki.Pool([]*x509.Certificate{test.clientTrusts}))
				if resumed {
					t.Error("the session was resumed")
				}
				want := test.meaning
				if version == tls.VersionTLS12 && test.before != "" {
					want = test.before
				}
				if want == "" {
					if err != nil {
						t.Error(err)
					}
					return
				}
				if err == nil {
					t.Fatalf("the handshake was accepted, want %q", want)
				}
				s, known := check.Explain(check.AtHandshake, err.Error())
				if !known || !strings.Contains(s.Meaning, want) {
					t.Errorf("%v means %q, want %q", err, s.Meaning, want)
				}
			})
		}
	}
}

// TestHandshakeIsNeverResumed: the server offers tickets, and the second
// handshake is full again.
func TestHandshakeIsNeverResumed(t *testing.T) {
	own := newPKI(t, "R1")
	full := 0
	address := observetest.Relay(t, &tls.Config{
		Certificates: []tls.Certificate{own.server.TLS(own.relay)},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: pki.Pool([]*x509.Certificate{own.root.Cert}),
		VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error { full++; return nil }, // not called for a resumed session
	})
	for range 3 {
		resumed, err := handshake(t.Context(), connect(t, address), authority, own.client.TLS(own.relay), pki.Pool([]*x509.Certificate{own.root.Cert}))
		if err != nil || resumed {
			t.Fatalf("resumed %v, error %v", resumed, err)
		}
	}
	if full != 3 {
		t.Errorf("%d of 3 handshakes were full", full)
	}
}

// TestHandshakeEnds: a server that never answers does not hold up the look.
func TestHandshakeEnds(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	own := newPKI(t, "R1")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := handshake(ctx, connect(t, listener.Addr().String()), authority, own.client.TLS(own.relay), nil); err == nil {
		t.Error("a handshake without an answer succeeded")
	}
}

func TestLoaded(t *testing.T) {
	own, other := newPKI(t, "R1"), newPKI(t, "R2")
	for version, label := range map[uint16]string{tls.VersionTLS13: "1.3", tls.VersionTLS12: "1.2"} {
		t.Run("TLS "+label, func(t *testing.T) {
			address := observetest.Relay(t, &tls.Config{
				MaxVersion: version, Certificates: []tls.Certificate{own.server.TLS(own.relay)},
				ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pki.Pool([]*x509.Certificate{own.root.Cert, other.root.Cert}),
			})
			seen, err := loaded(t.Context(), connect(t, address), authority)
			if err != nil {
				t.Fatal(err)
			}
			if len(seen.Chain) != 2 || !seen.Chain[0].Equal(own.server.Cert) || !seen.Chain[1].Equal(own.relay.Cert) {
				t.Errorf("chain of %d certificates is not the server's", len(seen.Chain))
			}
			if !seen.AsksForCertificate || len(seen.AcceptableCAs) != 2 ||
				!bytes.Equal(seen.AcceptableCAs[0], own.root.Cert.RawSubject) || !bytes.Equal(seen.AcceptableCAs[1], other.root.Cert.RawSubject) {
				t.Errorf("asks %v for %d CAs", seen.AsksForCertificate, len(seen.AcceptableCAs))
			}
		})
	}
	t.Run("no client certificate asked for", func(t *testing.T) {
		seen, err := loaded(t.Context(), connect(t, observetest.Relay(t, &tls.Config{Certificates: []tls.Certificate{own.server.TLS(own.relay)}})), authority)
		if err != nil || seen.AsksForCertificate || len(seen.Chain) != 2 {
			t.Errorf("%v, asks %v, chain of %d", err, seen.AsksForCertificate, len(seen.Chain))
		}
	})
	t.Run("not TLS", func(t *testing.T) {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = theirs.Read(make([]byte, 1<<16))
			_, _ = theirs.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			theirs.Close()
		}()
		if _, err := loaded(t.Context(), ours, authority); err == nil {
			t.Error("a server without TLS showed a chain")
		}
	})
}
