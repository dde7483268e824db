// Package delay puts servers of the lab far away: a proxy on loopback that lets
// every byte arrive later, as it would over a long line, and takes away none of
// the throughput.
package delay

import (
	"errors"
	"net"
	"sync"
	"time"
)

// Proxy passes TCP connections on to one address.
type Proxy struct {
	target    string
	roundTrip time.Duration
	listener  net.Listener
	wg        sync.WaitGroup

	mu    sync.Mutex
	open  map[net.Conn]bool
	ended bool
}

// Listen begins to pass on connections from a free port of 127.0.0.1 to the
// target. What is sent through them, in either direction, takes half a round
// trip.
func Listen(target string, roundTrip time.Duration) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{target: target, roundTrip: roundTrip, listener: listener, open: map[net.Conn]bool{}}
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is host:port of the proxy.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Close ends the proxy and every connection through it.
func (p *Proxy) Close() error {
	err := p.listener.Close()
	p.mu.Lock()
	p.ended = true
	for conn := range p.open {
		conn.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return err
}

func (p *Proxy) accept() {
	for {
		near, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		p.wg.Go(func() { p.pass(near) })
	}
}

// hold notes a connection for Close, and says whether there is any point.
func (p *Proxy) hold(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		conn.Close()
		return false
	}
	p.open[conn] = true
	return true
}

func (p *Proxy) drop(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, conn)
	conn.Close()
}

func (p *Proxy) pass(near net.Conn) {
	if !p.hold(near) {
		return
	}
	defer p.drop(near)
	far, err := net.Dial("tcp", p.target)
	if err != nil {
		return // the client sees its connection closed
	}
	if !p.hold(far) {
		return
	}
	defer p.drop(far)
	var wg sync.WaitGroup
	// The kernel has completed the client's handshake at once. Over a long line
	// it takes a round trip before the first byte can leave.
	wg.Go(func() { late(far, near, p.roundTrip/2, time.Now().Add(p.roundTrip)) })
	wg.Go(func() { late(near, far, p.roundTrip/2, time.Time{}) })
	wg.Wait()
}

// piece is what was read at one time, and when it arrives.
type piece struct {
	data    []byte
	arrives time.Time
}

// Pieces on their way: enough for a gigabyte a second over 100 ms. Only what is
// under way takes memory.
const (
	pieceSize = 64 << 10
	underWay  = 1600
)

// late copies until the end of from; every byte arrives a delay after it was
// read, the first not before begin.
func late(to, from net.Conn, delay time.Duration, begin time.Time) {
	line := make(chan piece, underWay)
	go func() {
		defer close(line)
		for {
			buffer := make([]byte, pieceSize)
			n, err := from.Read(buffer)
			sent := time.Now()
			if sent.Before(begin) {
				sent = begin
			}
			if n > 0 {
				line <- piece{append([]byte(nil), buffer[:n]...), sent.Add(delay)}
			}
			if err != nil {
				line <- piece{arrives: sent.Add(delay)}
				return
			}
		}
	}()
	for p := range line {
		time.Sleep(time.Until(p.arrives))
		if p.data == nil {
			break
		}
		if _, err := to.Write(p.data); err != nil {
			from.Close() // ends the reader
			break
		}
	}
	if c, ok := to.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
	for range line { // so that the reader can end
		continue
	}
}
