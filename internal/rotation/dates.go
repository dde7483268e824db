package rotation

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
)

// Kind is what is rotated.
type Kind string

// Kinds of rotations.
const (
	KindLeaf         Kind = "leaf"
	KindIntermediate Kind = "intermediate"
	KindRoot         Kind = "root"
)

// Pace is how a rotation goes over a mesh.
type Pace struct {
	// Clusters are the workload clusters; Canaries of them go first.
	Clusters, Canaries int
	// WaveSize is 0 for one wave; Parallelism is how many clusters are worked on
	// at once, one if it is 0.
	WaveSize, Parallelism int
	// PerCluster is how long one takes.
	PerCluster time.Duration
	// Soak is how long the canaries are left to themselves.
	Soak time.Duration
	// Signing is how long people have to get a new CA signed, if its root is kept
	// where no program of ours reaches it.
	Signing time.Duration
	// Windows, in Zone, are when work on a cluster may begin.
	Windows []mesh.Window
	Zone    *time.Location
}

// rootPasses are how often everybody is worked on before nothing depends on the
// old root any more: the new one is trusted, bridge, pivot, commit. What is left
// is to drop the old one, which may have ended by then.
const rootPasses = 4

// LatestStart is when a rotation of what ends at notAfter has to begin at the
// latest, with leaves that are issued for that long, and in words why.
//
// An intermediate issues nothing that outlives it (leaf_not_after_behavior=err),
// so the last renewal that it serves is one leaf's life before its end: by then
// all have to be off it. So it is with a root, for the intermediate under it
// ends with it at the latest. A leaf is of use until it ends.
//
// What people take to approve comes on top; what they take to carry a CSR to a
// root that is kept elsewhere does not, for it is never at once. Work goes on in the windows alone,
// soaking outside them too. The zero time is for work that the windows do not
// let be done.
func LatestStart(kind Kind, notAfter time.Time, leaf time.Duration, pace Pace) (time.Time, string) {
	by, passes := notAfter, 1
	reason := fmt.Sprintf("it ends at %s", pki.Date(notAfter))
	if kind != KindLeaf {
		by = notAfter.Add(-leaf)
		reason += fmt.Sprintf(" and certificates that live for %s cannot be issued under it after %s", mesh.Duration{Duration: leaf}, pki.Date(by))
	}
	if kind == KindRoot {
		passes = rootPasses
	}
	rest, canary := pace.work()
	start := by
	for range passes {
		start = pace.before(start, rest).Add(-pace.soak())
		start = pace.before(start, canary)
	}
	reason += fmt.Sprintf("; to go over the server and %s takes %s", clusters(pace.Clusters), mesh.Duration{Duration: canary + pace.soak() + rest})
	if kind != KindLeaf && pace.Signing > 0 && !start.IsZero() {
		start = start.Add(-pace.Signing)
		reason += fmt.Sprintf("; to have the new one signed may take %s", mesh.Duration{Duration: pace.Signing})
	}
	if passes > 1 {
		reason += fmt.Sprintf(", and that is done %d times", passes)
	}
	if len(pace.Windows) > 0 {
		reason += ", in the maintenance windows alone"
	}
	return start, reason
}

// WayBack says why a mesh cannot go back to an intermediate that ends at notAfter,
// or nil: what it would issue by the time that everybody is back has to end before
// it does.
func WayBack(notAfter time.Time, leaf time.Duration, pace Pace, now time.Time) error {
	latest, reason := LatestStart(KindIntermediate, notAfter, leaf, pace)
	if !now.After(latest) {
		return nil
	}
	return errors.New(reason)
}

// RootLasts says why a rotation of a root that begins now would not be over before
// that root ends, and what can be done about it, or nil. The bridge ends with the
// old root: whatever presents it has to be replaced by then.
func RootLasts(notAfter time.Time, leaf time.Duration, pace Pace, now time.Time) error {
	latest, reason := LatestStart(KindRoot, notAfter, leaf, pace)
	const instead = "make it shorter: more rotation.windows, a shorter rotation.soak, a larger rollout.waveSize and rollout.parallelism, certificates that live for less. " +
		"If none of that is enough, the root can only be replaced with handshakes that fail meanwhile"
	switch {
	case latest.IsZero():
		return fmt.Errorf("a rotation of the root would not be over before it ends: there is no such time in the maintenance windows (%s); %s", reason, instead)
	case now.After(latest):
		return fmt.Errorf("a rotation of the root that begins now would not be over before it ends, it had to begin by %s: %s; %s", pki.Date(latest), reason, instead)
	}
	return nil
}

func clusters(n int) string {
	if n == 1 {
		return "1 cluster"
	}
	return fmt.Sprintf("%d clusters", n)
}

// soak is none where there is no canary to wait for.
func (p Pace) soak() time.Duration {
	if p.canaries() == 0 {
		return 0
	}
	return p.Soak
}

func (p Pace) canaries() int { return min(p.Canaries, p.Clusters) }

// work is how long the canaries take, and the server and everybody else after
// them. A wave begins when all of the one before are done.
func (p Pace) work() (rest, canary time.Duration) {
	atOnce := max(p.Parallelism, 1)
	rounds := func(clusters int) int { return (clusters + atOnce - 1) / atOnce }
	left := p.Clusters - p.canaries()
	wave := p.WaveSize
	if wave <= 0 {
		wave = max(left, 1)
	}
	others := left/wave*rounds(wave) + rounds(left%wave)
	return time.Duration(1+others) * p.PerCluster, time.Duration(rounds(p.canaries())) * p.PerCluster
}

// before is when work has to begin that is to be done at the given time, if it
// goes on only while a window is open.
func (p Pace) before(end time.Time, work time.Duration) time.Time {
	if len(p.Windows) == 0 {
		return end.Add(-work)
	}
	// Over the days backward; there is no use in a date further away than a CA
	// lives, and windows that are never open would be sought for ever.
	for day := end; work > 0 && end.Sub(day) < 100*365*24*time.Hour; day = day.AddDate(0, 0, -lookAround) {
		open := openings(p.Windows, p.Zone, day.AddDate(0, 0, -lookAround), day)
		for _, span := range slices.Backward(open) {
			// The list has windows of days before and after: each part once.
			from, to := later(span.from, day.AddDate(0, 0, -lookAround)), earlier(span.to, day)
			if !from.Before(to) {
				continue
			}
			if length := to.Sub(from); length < work {
				work -= length
				continue
			}
			return to.Add(-work)
		}
	}
	if work > 0 {
		return time.Time{}
	}
	return end
}

// lookAround is in how many days every window has been open: each is weekly, or
// daily, but one may be missing where clocks are put forward.
const lookAround = 15

// span is a time in which a window is open, the end not included.
type span struct{ from, to time.Time }

// NextOpen says whether a maintenance window is open, and when work may begin
// next: now, if one is open or there are none at all.
func NextOpen(windows []mesh.Window, zone *time.Location, now time.Time) (open bool, next time.Time) {
	if len(windows) == 0 {
		return true, now
	}
	for _, s := range openings(windows, zone, now, now.AddDate(0, 0, lookAround)) {
		switch {
		case !s.to.After(now):
		case s.from.After(now):
			return false, s.from
		default:
			return true, now
		}
	}
	return false, time.Time{}
}

// openings are the spans of all windows that reach into the time, in their order
// and put together where they meet.
func openings(windows []mesh.Window, zone *time.Location, from, to time.Time) []span {
	if zone == nil {
		zone = time.UTC
	}
	var all []span
	// One that is open at the beginning may have opened the day before.
	for day := from.In(zone).AddDate(0, 0, -2); !day.After(to.AddDate(0, 0, 2)); day = day.AddDate(0, 0, 1) {
		for _, w := range windows {
			if len(w.Days) > 0 && !slices.Contains(w.Days, day.Weekday().String()[:3]) {
				continue
			}
			ends := day
			if w.To <= w.From {
				ends = day.AddDate(0, 0, 1)
			}
			s := span{at(day, w.From), at(ends, w.To)}
			if s.from.Before(s.to) && s.from.Before(to) && s.to.After(from) {
				all = append(all, s)
			}
		}
	}
	slices.SortFunc(all, func(a, b span) int { return a.from.Compare(b.from) })
	var merged []span
	for _, s := range all {
		if last := len(merged) - 1; last >= 0 && !s.from.After(merged[last].to) {
			merged[last].to = later(merged[last].to, s.to)
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

// at is the first moment of the day at which the clock shows the time, written
// "22:00". Where clocks are put forward over it, it is the moment at which they
// are; where they are put back, it comes twice.
func at(day time.Time, clock string) time.Time {
	hours, minutes, _ := strings.Cut(clock, ":")
	year, month, date := day.Date()
	shown := time.Date(year, month, date, number(hours), number(minutes), 0, 0, time.UTC)
	var found time.Time
	offsets := [2]int{}
	for i, around := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
		_, offsets[i] = shown.Add(around).In(day.Location()).Zone()
		t := shown.Add(-time.Duration(offsets[i]) * time.Second).In(day.Location())
		if t.Hour() == shown.Hour() && t.Minute() == shown.Minute() && t.Day() == shown.Day() && (found.IsZero() || t.Before(found)) {
			found = t
		}
	}
	if found.IsZero() {
		// Taken by the offset before, it is just after the change.
		found, _ = shown.Add(-time.Duration(offsets[0]) * time.Second).In(day.Location()).ZoneBounds()
	}
	return found
}

// number reads two digits, which the mesh's validation has seen.
func number(text string) int {
	n := 0
	for _, digit := range text {
		n = n*10 + int(digit-'0')
	}
	return n
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Due says whether a certificate is to be rotated: no more than that percentage
// of its life is left; never for 0 percent. What is left is rounded up, so that
// what is not due yet does not look as if it were.
func Due(percent int, notBefore, notAfter, now time.Time) (due bool, left int) {
	// In seconds: a hundred times a root's life in nanoseconds is too much for 64 bits.
	life, rest := int64(notAfter.Sub(notBefore)/time.Second), int64(notAfter.Sub(now)/time.Second)
	if life > 0 && rest > 0 {
		left = int(min((rest*100+life-1)/life, 100))
	}
	return percent > 0 && left <= percent, left
}
