package site

import (
	"net/http"
	"net/url"
	"time"
)

const (
	// startsWithin is how long a refused request waits for an API server to be ready.
	startsWithin = 15 * time.Second
	// readyEvery is how often it is asked meanwhile.
	readyEvery = 200 * time.Millisecond
)

// startingTransport sends a request once more that an API server has refused (403)
// while it was starting. Until it has read its roles it knows of nobody's rights, and
// refuses what it will grant a second later; its readiness waits for that
// (Kubernetes, "API health endpoints": informer-sync). What it refuses when it is
// ready, it refuses. It has not done what it refused, so even a write may be repeated.
type startingTransport struct {
	next http.RoundTripper
	// ready is the address of /readyz, whose answer is the server's own word.
	ready *url.URL
}

func (t startingTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	again, err := repeatable(req)
	if err != nil {
		return nil, err
	}
	response, err := t.next.RoundTrip(again())
	if err != nil || response.StatusCode != http.StatusForbidden || !t.isReady(req) {
		return response, err
	}
	response.Body.Close()
	return t.next.RoundTrip(again())
}

// isReady waits until the server says that it is ready; false, that it was not in
// time. One that does not let that be asked (somebody has taken the role
// system:public-info-viewer away) passes for ready.
func (t startingTransport) isReady(req *http.Request) bool {
	end := time.Now().Add(startsWithin)
	if deadline, bounded := req.Context().Deadline(); bounded && deadline.Add(-patienceLeft).Before(end) {
		end = deadline.Add(-patienceLeft)
	}
	for {
		probe := req.Clone(req.Context()) // with its credential
		probe.Method, probe.URL, probe.Host, probe.Body, probe.GetBody, probe.ContentLength = http.MethodGet, t.ready, "", nil, nil, 0
		response, err := t.next.RoundTrip(probe)
		if err == nil {
			response.Body.Close()
			if response.StatusCode < http.StatusInternalServerError {
				return true
			}
		}
		if time.Now().Add(readyEvery).After(end) {
			return false
		}
		select {
		case <-req.Context().Done():
			return false
		case <-time.After(readyEvery):
		}
	}
}
