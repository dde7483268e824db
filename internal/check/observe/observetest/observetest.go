// Package observetest has what a test of package observe, or of what is built on
// it, needs of the world: a management server's TLS, and an API server's
// port-forward.
package observetest

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// PortForward forwards the ports of a Pod as an API server does that speaks SPDY
// alone, or refuses WebSockets for lack of permission: to the addresses given by
// port.
func PortForward(targets map[string]string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	})
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

// Relay is a management server as far as TLS goes: after a handshake that it
// accepts it speaks first, as HTTP/2 servers do.
func Relay(t testing.TB, config *tls.Config) (address string) {
	t.Helper()
	config.NextProtos = []string{"h2"}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer raw.Close()
				conn := tls.Server(raw, config)
				if conn.Handshake() == nil {
					_, _ = conn.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}) // an empty SETTINGS frame
				}
				// What the client sends after that is read, so that the close
				// does not turn into a reset that discards an alert.
				_ = raw.(*net.TCPConn).CloseWrite()
				_ = raw.SetReadDeadline(time.Now().Add(5 * time.Second))
				for buffer := make([]byte, 512); ; {
					if _, err := raw.Read(buffer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return listener.Addr().String()
}
