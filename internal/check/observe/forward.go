package observe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/relaypki/relaypki/internal/site"
)

// dialPod opens a connection to a Pod's port through the API server, as
// `kubectl port-forward` does but without a local listener that others on this
// machine could connect to. It needs `create pods/portforward`.
func dialPod(ctx context.Context, cluster *site.Cluster, namespace, pod string, port int) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	dialer, err := forwardDialer(cluster, namespace, pod)
	if err != nil {
		return nil, err
	}
	// The dialer takes no context: who gives up waiting leaves a goroutine that
	// closes what it may still get.
	type dialed struct {
		conn net.Conn
		err  error
	}
	got := make(chan dialed, 1)
	go func() {
		conn, err := openStreams(dialer, port)
		got <- dialed{conn, err}
	}()
	select {
	case d := <-got:
		return d.conn, d.err
	case <-ctx.Done():
		go func() {
			if d := <-got; d.conn != nil {
				d.conn.Close()
			}
		}()
		return nil, fmt.Errorf("port-forward to %s: %w", pod, ctx.Err())
	}
}

// forwardDialer prefers WebSockets and falls back to SPDY where the API server
// or a proxy before it does not speak them.
func forwardDialer(cluster *site.Cluster, namespace, pod string) (httpstream.Dialer, error) {
	config := rest.CopyConfig(cluster.REST)
	config.APIPath, config.GroupVersion, config.NegotiatedSerializer = "/api", &corev1.SchemeGroupVersion, scheme.Codecs.WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, err
	}
	url := client.Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	webSocket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, config)
	if err != nil {
		return nil, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	old := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	return portforward.NewFallbackDialerForStreaming(webSocket, old, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}), nil
}

func openStreams(dialer httpstream.Dialer, port int) (_ net.Conn, err error) {
	session, protocol, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			session.Close()
		}
	}()
	if protocol != portforward.PortForwardProtocolV1Name {
		return nil, fmt.Errorf("the API server speaks %q, not %q", protocol, portforward.PortForwardProtocolV1Name)
	}
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(port))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	problems, err := session.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	if err := problems.Close(); err != nil { // our half; nothing is written to it
		return nil, err
	}
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := session.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	return newPodConn(session, data, problems), nil
}

// podConn is a stream of a port-forward as a net.Conn. A pipe between gives it
// deadlines, which streams have not.
type podConn struct {
	net.Conn // our end of the pipe
	session  io.Closer
	problem  atomic.Pointer[string] // what the node said of the port
}

func newPodConn(session io.Closer, data io.ReadWriteCloser, problems io.Reader) *podConn {
	ours, theirs := net.Pipe()
	c := &podConn{Conn: ours, session: session}
	said := make(chan struct{})
	go func() {
		defer close(said)
		if text, err := io.ReadAll(io.LimitReader(problems, 1<<10)); err == nil && len(text) > 0 {
			problem := strings.TrimSpace(string(text))
			c.problem.Store(&problem)
		}
	}()
	go func() {
		// From the Pod. An end without data is often a port that nobody listens
		// on, and the other stream says so.
		_, _ = io.Copy(theirs, data)
		select {
		case <-said:
		case <-time.After(time.Second):
		}
		theirs.Close()
	}()
	go func() {
		_, _ = io.Copy(data, theirs)
		data.Close()
		// A Pod that no longer listens must not block us before we have read
		// what it said last.
		_, _ = io.Copy(io.Discard, theirs)
	}()
	return c
}

// Read and Write tell the end of a stream from a forward that failed.
func (c *podConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.explained(err)
}

func (c *podConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.explained(err)
}

func (c *podConn) explained(err error) error {
	if problem := c.problem.Load(); problem != nil && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe)) {
		return errors.New(*problem)
	}
	return err
}

// Close ends the stream and the connection to the API server.
func (c *podConn) Close() error {
	c.Conn.Close()
	return c.session.Close()
}
