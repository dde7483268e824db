package site

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"
)

const (
	// firstPatience is waited where Vault turns a request away and does not say
	// for how long; it doubles.
	firstPatience = time.Second
	// patienceInAll is how long one request waits, so that a limit which a busy
	// Vault sets costs time and nothing else. A longer one is the activity's to
	// wait for, where it can be seen.
	patienceInAll = 30 * time.Second
	// patienceLeft is kept of a deadline, so that an answer, be it that one, comes
	// before it.
	patienceLeft = 2 * time.Second
)

// limitedTransport sends a request again that Vault has turned away because it
// is asked too often (429: a quota), after the time that Vault asks for. Vault
// has not looked at such a request, so even a write may be repeated.
type limitedTransport struct {
	next http.RoundTripper
	log  *zap.Logger
}

func (t limitedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	again, err := repeatable(req)
	if err != nil {
		return nil, err
	}
	var waited time.Duration
	for pause := firstPatience; ; pause *= 2 {
		response, err := t.next.RoundTrip(again())
		if err != nil || response.StatusCode != http.StatusTooManyRequests {
			return response, err
		}
		response.Body.Close()
		// Vault says for how long only where sys/quotas/config tells it to.
		wait, said := retryAfter(response.Header, time.Now())
		if !said {
			wait = pause
		}
		deadline, bounded := req.Context().Deadline()
		if waited+wait > patienceInAll || bounded && time.Until(deadline)-patienceLeft < wait {
			return nil, tooManyRequests{after: wait, said: said}
		}
		t.log.Warn("Vault is asked too often (429); waiting", zap.Duration("for", wait))
		waited += wait
		select {
		case <-req.Context().Done():
			return nil, req.Context().Err()
		case <-time.After(wait):
		}
	}
}

// retryAfter is what the header of that name says, in seconds or as a date (RFC
// 9110, section 10.2.3); false if it says nothing.
func retryAfter(header http.Header, now time.Time) (time.Duration, bool) {
	text := header.Get("Retry-After")
	if seconds, err := strconv.Atoi(text); err == nil && seconds >= 0 {
		return time.Duration(seconds) * time.Second, true
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(at.Sub(now), 0), true
	}
	return 0, false
}

// tooManyRequests is a 429 that asks for more patience than a request has.
type tooManyRequests struct {
	after time.Duration
	said  bool // by Vault
}

func (e tooManyRequests) Error() string {
	if !e.said {
		return "too many requests (429)"
	}
	return fmt.Sprintf("too many requests (429), and none for %s", e.after)
}
