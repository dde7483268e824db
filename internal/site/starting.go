package site

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	// startsWithin is how long an API server may take from its first answer until it
	// knows who may do what.
	startsWithin = 15 * time.Second
	// readyEvery is how often it is asked meanwhile.
	readyEvery = 200 * time.Millisecond
)

var errStarting = errors.New("it is starting, and does not know yet who may do what")

// startingTransport sends a request once more that an API server has refused (403)
// while it was starting. Until it has read its roles it knows of nobody's rights, and
// refuses what it will grant a second later; its readiness waits for that
// (Kubernetes, "API health endpoints": informer-sync). What it refuses when it is
// ready, it refuses. It has not done what it refused, so even a write may be repeated.
type startingTransport struct {
	next http.RoundTripper
	// ready is the address of /readyz, within for how long that is waited for.
	ready  *url.URL
	within time.Duration

	mu sync.Mutex
	// refused is since when /readyz is refused, too: of a server that starts, or of one
	// from which somebody has taken the role system:public-info-viewer, for good.
	refused time.Time
}

func (t *startingTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	again, err := repeatable(req)
	if err != nil {
		return nil, err
	}
	response, err := t.next.RoundTrip(again())
	if err != nil {
		t.answered(http.StatusOK) // what it refuses next, it may because it starts
		return nil, err
	}
	if response.StatusCode != http.StatusForbidden || !forRights(response) {
		return response, nil
	}
	switch ready, final := t.isReady(req); {
	case final:
		return response, nil
	case !ready:
		response.Body.Close()
		return nil, errStarting
	}
	response.Body.Close()
	return t.next.RoundTrip(again())
}

// readyOf is the address of /readyz of the API server at that address.
func readyOf(server *url.URL) *url.URL {
	ready := *server
	ready.Path = strings.TrimSuffix(server.Path, "/") + "/readyz"
	return &ready
}

// forRights says that a request was refused for want of a right. A webhook that refuses
// it has been asked by a server that knows the rights.
func forRights(response *http.Response) bool {
	const mostRead = 64 << 10
	body := response.Body
	begins, err := io.ReadAll(io.LimitReader(body, mostRead))
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(begins), body), body}
	return err == nil && bytes.Contains(begins, []byte("forbidden: User "))
}

// isReady waits until the server is ready. It is final that it does not let that be
// asked.
func (t *startingTransport) isReady(req *http.Request) (ready, final bool) {
	end := time.Now().Add(t.within)
	if deadline, bounded := req.Context().Deadline(); bounded && deadline.Add(-patienceLeft).Before(end) {
		end = deadline.Add(-patienceLeft)
	}
	for {
		probe := req.Clone(req.Context()) // with its credential
		probe.Method, probe.URL, probe.Host, probe.Body, probe.GetBody, probe.ContentLength = http.MethodGet, t.ready, "", nil, nil, 0
		if response, err := t.next.RoundTrip(probe); err == nil {
			response.Body.Close()
			switch {
			case t.answered(response.StatusCode) >= t.within:
				return false, true
			case response.StatusCode == http.StatusOK:
				return true, false
			}
		}
		if time.Now().Add(readyEvery).After(end) {
			return false, false
		}
		select {
		case <-req.Context().Done():
			return false, false
		case <-time.After(readyEvery):
		}
	}
}

// answered takes note of an answer of /readyz, and says for how long that is refused.
func (t *startingTransport) answered(status int) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case status != http.StatusForbidden:
		t.refused = time.Time{}
		return 0
	case t.refused.IsZero():
		t.refused = time.Now()
	}
	return time.Since(t.refused)
}
