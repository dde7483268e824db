package main

import (
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/procedure"
)

// What is not measured, or has not come, is said to be so, and is no zero.
func TestRootTables(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	have := tables{roots: []rooted{
		{
			clusters: 10,
			took:     map[string]time.Duration{byRoot: 20 * time.Second, byRootMoves: 5 * time.Second, procedure.ContainmentFirst: 9 * time.Second},
			work:     map[string]time.Duration{byRoot: 41 * time.Second, byRootMoves: 7 * time.Second, procedure.ContainmentFirst: 12 * time.Second},
			emergencies: map[string]procedure.Emergency{procedure.ContainmentFirst: {
				Began: began, IssuingStopped: began.Add(time.Second), ServerDistrusts: began.Add(2 * time.Second), Reconnected: began.Add(8 * time.Second)}},
			histories: map[string]weight{byRoot: {runs: 2, longest: 500, events: 700, bytes: 3 << 19, allEvents: 900, allBytes: 2 << 20}},
		},
		{clusters: 50, took: map[string]time.Duration{byRoot: time.Minute}, work: map[string]time.Duration{byRoot: time.Second}},
	}}
	var long, short strings.Builder
	have.replacedRoots(&long)
	have.rootsInShort(&short)
	for _, c := range []struct{ text, want string }{
		{long.String(), "\n| 10 | 5.0 s | 20.0 s | 0.2 | - | 9.0 s | 7 s, 41 s, -, 12 s |\n"},
		{long.String(), "\n| 50 | - | 60.0 s | - | - | - | -, 1 s, -, - |\n"},
		{long.String(), "\n| 10 | rotate root | - | - | - | - | 2 | 500 | 700 | 1.5 MiB | 900 events, 2.0 MiB |\n"},
		{short.String(), "\n| 10 | 20.0 s | -, - | 2.0 s, 8.0 s | 700, 1.5 MiB |\n"},
		{short.String(), "\n| 50 | 60.0 s | -, - | -, - | - |\n"},
	} {
		if !strings.Contains(c.text, c.want) {
			t.Errorf("no %q in:\n%s", c.want, c.text)
		}
	}
}
