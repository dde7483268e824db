package site

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// starts is an API server as a transport sees it: the codes of its answers, the last of
// which it goes on with; 0 is none.
type starts struct {
	t                *testing.T
	answers, readyz  []int
	asked, probed    int
	first, different string
}

func (s *starts) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Header.Get("Authorization") != "Bearer secret" {
		s.t.Errorf("%s was asked without the credential", req.URL)
	}
	next := func(codes []int, n *int) (*http.Response, error) {
		code := codes[min(*n, len(codes)-1)]
		*n++
		if code == 0 {
			return nil, errors.New("connection refused")
		}
		said := ""
		switch code {
		case 403:
			said = `{"kind":"Status","message":"secrets is forbidden: User \"system:serviceaccount:a:b\" cannot create resource"}`
		case denied:
			code, said = 403, `admission webhook "x" denied the request`
		}
		return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader(said)), Request: req}, nil
	}
	if req.URL.String() == "https://server/prefix/readyz" {
		return next(s.readyz, &s.probed)
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		s.t.Error(err)
	}
	if s.asked == 0 {
		s.first = string(body)
	} else if string(body) != s.first {
		s.different = string(body)
	}
	return next(s.answers, &s.asked)
}

// denied is the 403 of an admission webhook.
const denied = -1

// What an API server refuses because it has only just started is asked once more when
// it is ready; what it refuses when it is ready stays refused.
func TestAnAPIServerThatStarts(t *testing.T) {
	const within = 4 * readyEvery
	for _, test := range []struct {
		name            string
		answers, readyz []int
		deadline        time.Duration
		// of each request in turn: the code, or 0 for an error that may pass.
		want []int
	}{
		{"it knows by the time that it is ready", []int{403, 201}, []int{500, 500, 200}, 0, []int{201}},
		{"it was ready a moment later", []int{403, 201}, []int{200}, 0, []int{201}},
		{"it refuses to say whether it is ready until it knows", []int{403, 201}, []int{403, 403, 200}, 0, []int{201}},
		{"it refuses", []int{403}, []int{200}, 0, []int{403}},
		{"it is not ready in time", []int{403}, []int{500}, 0, []int{0}},
		{"the request has no time", []int{403}, []int{500}, patienceLeft + readyEvery, []int{0}},
		{"it lets nobody ask", []int{403}, []int{403}, 0, []int{0, 403}},
		{"it lets nobody ask, and the requests have no time", []int{403}, []int{403}, patienceLeft + readyEvery, []int{0, 0, 0}},
		{"it was away", []int{0, 403, 201}, []int{403, 200}, 0, []int{0, 201}},
		{"a webhook refuses", []int{denied, 201}, []int{500}, 0, []int{403}},
		{"it grants", []int{201}, []int{500}, 0, []int{201}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ready, err := url.Parse("https://server/prefix/readyz")
			if err != nil {
				t.Fatal(err)
			}
			server := &starts{t: t, answers: test.answers, readyz: test.readyz}
			transport := &startingTransport{next: server, ready: ready, within: within}
			for i, want := range test.want {
				ctx := t.Context()
				if test.deadline > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.deadline)
					defer cancel()
				}
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://server/prefix/api/v1/namespaces/n/secrets", strings.NewReader("a body"))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer secret")
				got := 0
				if response, err := transport.RoundTrip(req); err == nil {
					got = response.StatusCode
					body, err := io.ReadAll(response.Body)
					if err != nil || got == 403 && len(body) == 0 {
						t.Errorf("what it says is lost: %q, %v", body, err)
					}
					response.Body.Close()
				}
				if got != want {
					t.Errorf("request %d: %d, want %d", i, got, want)
				}
			}
			if server.first != "a body" || server.different != "" {
				t.Errorf("it was sent %q, and %q", server.first, server.different)
			}
		})
	}
}

func TestReadyOf(t *testing.T) {
	for server, want := range map[string]string{
		"https://server:6443": "https://server:6443/readyz", "https://server/": "https://server/readyz", "https://server/clusters/c-1": "https://server/clusters/c-1/readyz",
	} {
		at, err := url.Parse(server)
		if err != nil {
			t.Fatal(err)
		}
		if got := readyOf(at).String(); got != want {
			t.Errorf("%s: %s, want %s", server, got, want)
		}
	}
}
