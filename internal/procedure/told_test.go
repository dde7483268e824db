package procedure

import (
	"slices"
	"testing"
	"time"
)

func TestNews(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration, of ...string) *Told { return &Told{Of: of, At: now.Add(-d)} }
	for name, c := range map[string]struct {
		last  *Told
		found []string
		news  bool
		knows *Told
	}{
		"nothing is known":      {nil, []string{"a"}, true, ago(0, "a")},
		"the same":              {ago(time.Hour, "a", "b"), []string{"a", "b"}, false, ago(time.Hour, "a", "b")},
		"one less":              {ago(time.Hour, "a", "b"), []string{"b"}, false, ago(time.Hour, "a", "b")},
		"one more":              {ago(time.Hour, "b"), []string{"a", "b"}, true, ago(0, "a", "b")},
		"another":               {ago(time.Hour, "a"), []string{"b"}, true, ago(0, "a", "b")},
		"the same, not yet due": {ago(23*time.Hour, "a"), []string{"a"}, false, ago(23*time.Hour, "a")},
		"the same, a day later": {ago(24*time.Hour, "a", "b"), []string{"a"}, true, ago(0, "a")},
	} {
		news, knows := News(c.last, c.found, now)
		if news != c.news || !slices.Equal(knows.Of, c.knows.Of) || !knows.At.Equal(c.knows.At) {
			t.Errorf("%s: %t, %+v; want %t, %+v", name, news, knows, c.news, c.knows)
		}
	}
}
