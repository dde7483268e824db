package rotation

import (
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/relaypki/relaypki/internal/mesh"
)

func utc(t testing.TB, text string) time.Time {
	t.Helper()
	at, err := time.Parse("2006-01-02 15:04", text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func TestNextOpen(t *testing.T) {
	daily := func(from, to string) []mesh.Window { return []mesh.Window{{From: from, To: to}} }
	on := func(from, to string, days ...string) mesh.Window { return mesh.Window{Days: days, From: from, To: to} }
	// In 2026 Berlin puts its clocks forward on Sunday, 29 March, from 02:00 to
	// 03:00, and back on Sunday, 25 October, from 03:00 to 02:00; both at 01:00 UTC.
	for _, test := range []struct {
		name    string
		windows []mesh.Window
		zone    string
		now     string // UTC, as next
		open    bool
		next    string // if it is not open
	}{
		{"no windows", nil, "UTC", "2026-07-01 12:00", true, ""},
		{"before", daily("22:00", "23:30"), "UTC", "2026-07-01 21:59", false, "2026-07-01 22:00"},
		{"as it opens", daily("22:00", "23:30"), "UTC", "2026-07-01 22:00", true, ""},
		{"its last minute", daily("22:00", "23:30"), "UTC", "2026-07-01 23:29", true, ""},
		{"as it closes", daily("22:00", "23:30"), "UTC", "2026-07-01 23:30", false, "2026-07-02 22:00"},
		{"over midnight, before it", daily("22:00", "02:00"), "UTC", "2026-07-01 23:59", true, ""},
		{"over midnight, after it", daily("22:00", "02:00"), "UTC", "2026-07-02 01:59", true, ""},
		{"over midnight, closed", daily("22:00", "02:00"), "UTC", "2026-07-02 02:00", false, "2026-07-02 22:00"},
		{"until midnight", daily("22:00", "00:00"), "UTC", "2026-07-01 23:59", true, ""},
		{"midnight", daily("22:00", "00:00"), "UTC", "2026-07-02 00:00", false, "2026-07-02 22:00"},
		{"a Wednesday's, in the night to Thursday", []mesh.Window{on("22:00", "02:00", "Wed")}, "UTC", "2026-07-02 01:00", true, ""},
		{"a Thursday's, in the night to Thursday", []mesh.Window{on("22:00", "02:00", "Thu")}, "UTC", "2026-07-02 01:00", false, "2026-07-02 22:00"},
		{"days away", []mesh.Window{on("22:00", "02:00", "Tue", "Mon")}, "UTC", "2026-07-02 01:00", false, "2026-07-06 22:00"},
		{"in the week after", []mesh.Window{on("08:00", "09:00", "Thu")}, "UTC", "2026-07-02 09:00", false, "2026-07-09 08:00"},
		{"the nearer of two", []mesh.Window{on("08:00", "09:00", "Sun"), on("03:00", "04:00", "Sat")}, "UTC", "2026-07-02 09:00", false, "2026-07-04 03:00"},
		{"one begins as another ends", []mesh.Window{on("20:00", "22:00"), on("22:00", "23:00")}, "UTC", "2026-07-01 22:00", true, ""},
		{"one in another", []mesh.Window{on("20:00", "23:00"), on("21:00", "22:00")}, "UTC", "2026-07-01 22:30", true, ""},
		{"the day is that of the zone", []mesh.Window{on("00:30", "02:00", "Thu")}, "Europe/Berlin", "2026-07-01 23:00", true, ""},
		{"summer time", daily("22:00", "23:00"), "Europe/Berlin", "2026-07-01 20:30", true, ""},
		{"winter time", daily("22:00", "23:00"), "Europe/Berlin", "2026-12-01 20:30", false, "2026-12-01 21:00"},

		{"forward: over the change, before it", daily("01:00", "04:00"), "Europe/Berlin", "2026-03-29 00:30", true, ""},
		{"forward: over the change, after it", daily("01:00", "04:00"), "Europe/Berlin", "2026-03-29 01:59", true, ""},
		{"forward: closes an hour sooner", daily("01:00", "04:00"), "Europe/Berlin", "2026-03-29 02:00", false, "2026-03-29 23:00"},
		{"forward: opens in the hour that is not", daily("02:30", "04:00"), "Europe/Berlin", "2026-03-29 00:59", false, "2026-03-29 01:00"},
		{"forward: closes in the hour that is not", daily("01:00", "02:30"), "Europe/Berlin", "2026-03-29 00:59", true, ""},
		{"forward: closed after that", daily("01:00", "02:30"), "Europe/Berlin", "2026-03-29 01:00", false, "2026-03-29 23:00"},
		{"forward: is all in the hour that is not", daily("02:10", "02:50"), "Europe/Berlin", "2026-03-28 02:00", false, "2026-03-30 00:10"},
		{"forward: weekly, all in the hour that is not", []mesh.Window{on("02:10", "02:50", "Sun")}, "Europe/Berlin", "2026-03-22 02:00", false, "2026-04-05 00:10"},
		{"forward: from the evening before", daily("22:00", "03:00"), "Europe/Berlin", "2026-03-29 00:59", true, ""},
		{"forward: closes as clocks change", daily("22:00", "03:00"), "Europe/Berlin", "2026-03-29 01:00", false, "2026-03-29 20:00"},

		{"back: opens in the first of the two hours", daily("02:30", "04:00"), "Europe/Berlin", "2026-10-25 00:29", false, "2026-10-25 00:30"},
		{"back: stays open in the second", daily("02:30", "04:00"), "Europe/Berlin", "2026-10-25 01:10", true, ""},
		{"back: closes an hour later", daily("02:30", "04:00"), "Europe/Berlin", "2026-10-25 02:59", true, ""},
		{"back: closed", daily("02:30", "04:00"), "Europe/Berlin", "2026-10-25 03:00", false, "2026-10-26 01:30"},
		{"back: closes in the first of the two hours", daily("01:00", "02:30"), "Europe/Berlin", "2026-10-25 00:30", false, "2026-10-26 00:00"},
		{"back: does not open again in the second", daily("02:10", "02:50"), "Europe/Berlin", "2026-10-25 01:20", false, "2026-10-26 01:10"},

		// Clocks in Beirut go from 00:00 to 01:00: a day without a midnight.
		{"forward at midnight", daily("00:00", "02:00"), "Asia/Beirut", "2026-03-28 21:59", false, "2026-03-28 22:00"},
	} {
		t.Run(test.name, func(t *testing.T) {
			now := utc(t, test.now)
			want := now
			if !test.open {
				want = utc(t, test.next)
			}
			open, next := NextOpen(test.windows, zone(t, test.zone), now)
			if open != test.open || !next.Equal(want) {
				t.Errorf("got %v, %s; want %v, %s", open, next.UTC(), test.open, want)
			}
		})
	}
}

func TestLatestStart(t *testing.T) {
	const leaf = 24 * time.Hour
	slow := Pace{Clusters: 48, Canaries: 2, WaveSize: 15, Parallelism: 10, PerCluster: 10 * time.Minute, Soak: time.Hour}
	nights := slow
	nights.Windows, nights.Zone = []mesh.Window{{From: "22:00", To: "00:00"}}, time.UTC
	never := slow
	never.Windows = []mesh.Window{{Days: []string{"Someday"}, From: "22:00", To: "00:00"}}
	signed, signedNever := slow, never
	signed.Signing, signedNever.Signing = 7*24*time.Hour, 7*24*time.Hour
	for _, test := range []struct {
		name string
		kind Kind
		pace Pace
		want string // UTC; empty for never
		says []string
	}{
		// The canaries 10 m, 1 h of soak; the server 10 m; waves of 15, 15, 15, 1
		// in 2, 2, 2, 1 rounds, 70 m.
		{"leaf", KindLeaf, slow, "2026-07-31 21:30", []string{"ends at 2026-08-01 00:00 UTC", "48 clusters takes 150m"}},
		{"intermediate", KindIntermediate, slow, "2026-07-30 21:30", []string{"live for 24h cannot be issued under it after 2026-07-31 00:00 UTC"}},
		{"root", KindRoot, slow, "2026-07-30 14:00", []string{"done 4 times"}},
		// 80 m by midnight of the 30th, 1 h of soak before that, and the canaries'
		// 10 m, which have to be in the night before as that ends at 21:40.
		{"in windows", KindIntermediate, nights, "2026-07-29 23:50", []string{"in the maintenance windows alone"}},
		{"all in one wave, no canary and so no soak", KindIntermediate, Pace{Clusters: 3, Parallelism: 10, PerCluster: time.Minute, Soak: time.Hour},
			"2026-07-30 23:58", []string{"3 clusters takes 2m"}},
		{"no clusters but the canary", KindIntermediate, Pace{Clusters: 1, Canaries: 1, PerCluster: time.Minute, Soak: time.Hour},
			"2026-07-30 22:58", []string{"1 cluster takes"}},
		{"a mesh of no clusters yet", KindIntermediate, Pace{PerCluster: time.Minute}, "2026-07-30 23:59", nil},
		{"windows that never open", KindIntermediate, never, "", nil},
		{"signed by people", KindIntermediate, signed, "2026-07-23 21:30", []string{"to have the new one signed may take 168h"}},
		{"a root signed by people", KindRoot, signed, "2026-07-23 14:00", []string{"may take 168h", "done 4 times"}},
		{"leaves are not signed by people", KindLeaf, signed, "2026-07-31 21:30", nil},
		{"signed by people, windows that never open", KindIntermediate, signedNever, "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, why := LatestStart(test.kind, utc(t, "2026-08-01 00:00"), leaf, test.pace)
			want := time.Time{}
			if test.want != "" {
				want = utc(t, test.want)
			}
			if !got.Equal(want) {
				t.Errorf("got %s, want %s: %s", got.UTC(), want, why)
			}
			for _, says := range test.says {
				if !strings.Contains(why, says) {
					t.Errorf("%q does not say %q", why, says)
				}
			}
		})
	}
}

// Work that takes several nights is put into as many.
func TestLatestStartOverManyNights(t *testing.T) {
	pace := Pace{Clusters: 59, Parallelism: 1, PerCluster: 10 * time.Minute, Windows: []mesh.Window{{From: "23:00", To: "01:00"}}, Zone: time.UTC}
	// 600 minutes, in nights of 120: the last ends on 1 August at 01:00, the fifth
	// before begins on 27 July.
	got, why := LatestStart(KindLeaf, utc(t, "2026-08-01 12:00"), 0, pace)
	if want := utc(t, "2026-07-27 23:00"); !got.Equal(want) {
		t.Errorf("got %s, want %s: %s", got.UTC(), want, why)
	}
	// And where the search goes over more than it looks at in one go.
	pace.Windows[0].Days = []string{"Sat"}
	got, why = LatestStart(KindLeaf, utc(t, "2026-08-02 12:00"), 0, pace)
	if want := utc(t, "2026-07-04 23:00"); !got.Equal(want) {
		t.Errorf("weekly: got %s, want %s: %s", got.UTC(), want, why)
	}
}

func TestDue(t *testing.T) {
	from := utc(t, "2026-01-01 00:00")
	until := from.Add(100 * 24 * time.Hour)
	day := func(n float64) time.Time { return from.Add(time.Duration(n * 24 * float64(time.Hour))) }
	for _, test := range []struct {
		name    string
		percent int
		until   time.Time
		now     time.Time
		due     bool
		left    int
	}{
		{"new", 33, until, day(0), false, 100},
		{"not quite", 33, until, day(66.9), false, 34},
		{"just", 33, until, day(67), true, 33},
		{"its last minute", 33, until, day(99.999), true, 1},
		{"ended", 1, until, day(101), true, 0},
		{"never", 0, until, day(101), false, 0},
		{"not valid yet", 33, until, day(-1), false, 100},
		{"a root of 20 years", 33, from.Add(187600 * time.Hour), from.Add(187600 * time.Hour / 2), false, 50},
		{"no life at all", 33, from, day(0), true, 0},
	} {
		due, left := Due(test.percent, from, test.until, test.now)
		if due != test.due || left != test.left {
			t.Errorf("%s: got %v with %d%% left, want %v with %d%%", test.name, due, left, test.due, test.left)
		}
	}
}
