package site

import (
	"net/http"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const nothing = -1
	for text, want := range map[string]time.Duration{
		"":                              nothing,
		"3":                             3 * time.Second,
		"0":                             0,
		"-1":                            nothing,
		"soon":                          nothing,
		"Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second,
		"Fri, 02 Jan 2026 03:04:00 GMT": 0,
	} {
		header := http.Header{}
		if text != "" {
			header.Set("Retry-After", text)
		}
		got, said := retryAfter(header, now)
		if !said {
			got = nothing
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
