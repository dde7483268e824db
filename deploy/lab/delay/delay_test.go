package delay

import (
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"
)

const roundTrip = 40 * time.Millisecond

// proxied is a server with one behaviour for each connection, behind a proxy.
func proxied(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c) }()
		}
	}()
	p, err := Listen(l.Addr().String(), roundTrip)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p.Addr()
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func ping(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	began := time.Now()
	if err := exchange(c); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

func exchange(c net.Conn) error {
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// The shortest of several is what the proxy adds; a busy machine only makes
// single ones longer.
func TestRoundTrip(t *testing.T) {
	addr := proxied(t, echo)
	var first, later []time.Duration
	for range 5 {
		c := dial(t, addr)
		first, later = append(first, ping(t, c)), append(later, ping(t, c), ping(t, c))
	}
	for what, m := range map[string]struct{ measured, want time.Duration }{
		"a new connection's first answer": {slices.Min(first), 2 * roundTrip}, // one more for the handshake
		"an answer on an open connection": {slices.Min(later), roundTrip},
	} {
		if m.measured < m.want || m.measured > m.want+roundTrip/4 {
			t.Errorf("%s takes %s, want %s", what, m.measured, m.want)
		}
	}
}

// A transfer is long under way and not long in coming: the delay is paid once,
// not once for each piece, and nothing is lost or exchanged.
func TestThroughput(t *testing.T) {
	data := make([]byte, 64<<20)
	var key [32]byte
	_, _ = rand.NewChaCha8(key).Read(data)
	addr := proxied(t, func(c net.Conn) {
		h := sha256.New()
		_, _ = io.Copy(h, c) // until the client closes its half
		_, _ = c.Write(h.Sum(nil))
	})
	c := dial(t, addr)
	began := time.Now()
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	if want := sha256.Sum256(data); !slices.Equal(answer, want[:]) {
		t.Errorf("something else arrived: %x", answer)
	}
	if took < 2*roundTrip {
		t.Errorf("%s: the answer came too early", took)
	}
	// Paid for each of the thousand pieces it would be 20 s.
	if took > 5*time.Second {
		t.Errorf("%d MiB take %s", len(data)>>20, took)
	}
}

// Many connections do not wait for each other.
func TestSideBySide(t *testing.T) {
	addr := proxied(t, echo)
	done := make(chan error, 50)
	began := time.Now()
	for range cap(done) {
		c := dial(t, addr)
		go func() { done <- exchange(c) }()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(began); took > 10*roundTrip {
		t.Errorf("%d connections side by side take %s", cap(done), took)
	}
}

// A server that is gone, and a proxy that ends, close the client's connection.
func TestEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().String()
	l.Close()
	p, err := Listen(gone, roundTrip)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, p.Addr()).Read(make([]byte, 1)); err == nil {
		t.Error("an answer came from nowhere")
	}
	p.Close()

	p, err = Listen(proxied(t, echo), roundTrip)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, p.Addr())
	ping(t, c)
	p.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlives the proxy")
	}
}
