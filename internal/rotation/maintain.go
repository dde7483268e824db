package rotation

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Server is the name of the management server's leaf; no cluster has it.
const Server = "management server"

// Life is a certificate's.
type Life struct {
	// Name is the CA's, or the member's whose leaf it is.
	Name                string
	NotBefore, NotAfter time.Time
	// Renewal is when it is renewed without us; zero for a CA.
	Renewal time.Time
	// LatestStart is when its rotation has to begin at the latest; zero if that
	// is not known.
	LatestStart time.Time
}

// left is the share of its life that is to come, in percent.
func (l Life) left(now time.Time) int {
	_, left := Due(0, l.NotBefore, l.NotAfter, now)
	return left
}

// due says that no more than that share of it is left.
func (l Life) due(percent int, now time.Time) bool {
	due, _ := Due(percent, l.NotBefore, l.NotAfter, now)
	return due
}

// at is when a share of its life is left.
func (l Life) at(percent int) time.Time {
	return l.NotAfter.Add(-l.NotAfter.Sub(l.NotBefore) / 100 * time.Duration(percent))
}

// late says that the latest date is over, or will be before a rotation may begin.
func (l Life) late(now, begins time.Time) bool {
	return !l.LatestStart.IsZero() && (now.After(l.LatestStart) || begins.After(l.LatestStart))
}

// Policy is at what share of their life certificates are due, in percent; 0 is
// never.
type Policy struct{ Leaf, Intermediate, Root int }

// State is what there is to decide on.
type State struct {
	Now time.Time
	// Leaves are those that could be asked for, the server's first; Unread are the
	// members whose could not.
	Leaves             []Life
	Unread             []string
	Intermediate, Root Life
	// IntermediateTTL is what the next intermediate is to live, or has to at least,
	// if people decide how long.
	IntermediateTTL time.Duration
	// Busy is the workflow that holds the lock on the mesh's CAs, Waits that it
	// waits for a person.
	Busy  string
	Waits bool
	// Begun is which rotation of a CA has begun and is not over, by the record.
	Begun string
	// Finish is what ends that, in a sentence; Held says that it is no work to be gone
	// on with: an emergency is over, and has left the mesh pinned.
	Finish string
	Held   bool
	// Opens is when the next window opens: not after Now if one is open, or if
	// there are none; zero if none ever does.
	Opens time.Time
}

// Decision is what is to be done about one kind of certificate, and why.
type Decision struct {
	Kind Kind `json:"kind"`
	Due  bool `json:"due"`
	// Start says that a rotation is to be started now.
	Start bool `json:"start"`
	// Members are those whose leaves are due.
	Members []string `json:"members,omitempty"`
	Why     string   `json:"why"`
	// NotAfter is when the CA ends, or the first of the leaves.
	NotAfter time.Time `json:"notAfter,omitzero"`
	// LatestStart is when a rotation has to begin at the latest, Late that this
	// can no longer be met.
	LatestStart time.Time `json:"latestStart,omitzero"`
	Late        bool      `json:"late,omitempty"`
	// Warning is what people have to be told. It does not change from one look to
	// the next as long as what it says does not.
	Warning string `json:"warning,omitempty"`
	// Daily says that people are told of it each day, however long a life there is left.
	Daily bool `json:"daily,omitempty"`
	// About is what the warning is about, one by one, if it is about several things:
	// that it is about one less is no news.
	About []string `json:"about,omitempty"`
}

// Decide says of each kind of certificate whether it is due and whether to start
// its rotation now. At most one rotation is at work at a time, leaves first, since
// they end first; a root's is not begun without people.
func Decide(s State, p Policy) []Decision {
	leaves := decideLeaves(s, p.Leaf)
	return []Decision{leaves, decideIntermediate(s, p.Intermediate, leaves.Start), decideRoot(s, p.Root)}
}

// decideLeaves starts a rotation of the leaves that nobody has renewed. It waits
// for no window: what it is for is about to end.
func decideLeaves(s State, percent int) Decision {
	d := Decision{Kind: KindLeaf}
	var overdue []string
	for _, l := range s.Leaves {
		if d.NotAfter.IsZero() || l.NotAfter.Before(d.NotAfter) {
			d.NotAfter, d.LatestStart = l.NotAfter, l.LatestStart
		}
		if l.due(percent, s.Now) {
			d.Members = append(d.Members, l.Name)
		}
		if !l.Renewal.IsZero() && s.Now.After(l.Renewal.Add(l.NotAfter.Sub(l.Renewal)/2)) {
			overdue = append(overdue, fmt.Sprintf("%s (until %s)", l.Name, day(l.NotAfter)))
		}
		d.Late = d.Late || l.late(s.Now, s.Now)
	}
	d.Due = len(d.Members) > 0
	switch {
	case d.Due && s.Busy != "":
		d.Why = fmt.Sprintf("the certificates of %s are due, and not begun: %s is at work on the mesh's certificates", some(d.Members), s.Busy)
	case d.Due && s.Held:
		d.Why = fmt.Sprintf("the certificates of %s are due, and not begun: %s. cert-manager goes on renewing them", some(d.Members), s.Begun)
	case d.Due && s.Begun != "": // of which people are told with the intermediate
		d.Why = fmt.Sprintf("the certificates of %s are due, and not begun: %s and nobody is at work on it; its end brings everybody a new one", some(d.Members), s.Begun)
	case d.Due && s.outlived(d.Members):
		d.Why = fmt.Sprintf("the certificates of %s are due, and not begun: the intermediate %s ends on %s, before new ones would, and issues none; it has to be rotated", some(d.Members), s.Intermediate.Name, day(s.Intermediate.NotAfter))
	case d.Due:
		d.Start = true
		d.Why = fmt.Sprintf("the certificates of %s have no more than %d%% of their life left and were not renewed", some(d.Members), percent)
	case percent == 0:
		d.Why = "never by itself (rotation.due.leaf is 0); cert-manager renews them"
	case len(s.Leaves) == 0:
		d.Why = "no certificate could be asked for"
	default:
		d.Why = fmt.Sprintf("all have more than %d%% of their life left, the first ends %s", percent, day(d.NotAfter))
	}
	if len(s.Unread) > 0 {
		d.Why += "; not asked for: " + some(s.Unread)
	}
	if len(overdue) > 0 {
		d.Warning = "certificates end soon that cert-manager has not renewed: " + some(overdue)
		d.About = overdue
	}
	return d
}

// outlived says that the intermediate would end before certificates of those
// members that are issued now: Vault then refuses to issue them.
func (s State) outlived(members []string) bool {
	return slices.ContainsFunc(s.Leaves, func(l Life) bool {
		return slices.Contains(members, l.Name) && s.Intermediate.NotAfter.Before(s.Now.Add(l.NotAfter.Sub(l.NotBefore)))
	})
}

func decideIntermediate(s State, percent int, leaves bool) Decision {
	ca := s.Intermediate
	d := Decision{Kind: KindIntermediate, NotAfter: ca.NotAfter, LatestStart: ca.LatestStart}
	share := fmt.Sprintf("%s has %d%% of its life left, until %s", ca.Name, ca.left(s.Now), day(ca.NotAfter))
	passed := !ca.LatestStart.IsZero() && !s.Now.Before(ca.LatestStart)
	d.Due = ca.due(percent, s.Now) || percent > 0 && passed
	open := !s.Opens.IsZero() && !s.Opens.After(s.Now)
	d.Late = ca.late(s.Now, s.Opens) && (d.Due || percent == 0)
	switch {
	case s.Begun != "" && s.Busy != "":
		d.Why = fmt.Sprintf("%s: %s is at work on it", s.Begun, s.Busy)
		d.Late = d.Late && s.Waits // else it goes on, and has begun
		if d.Late {
			d.Why += ", and waits for a person"
			d.Warning = fmt.Sprintf("the intermediate %s ends on %s, and its rotation, which had to go on by %s to be over in time, waits for a person: %s",
				ca.Name, day(ca.NotAfter), day(ca.LatestStart), s.Busy)
		}
		return d
	case s.Held:
		d.Why = s.Begun + "; no CA is rotated before that is over"
		d.Warning, d.Daily = s.Begun+". "+s.Finish, true
		return d
	case s.Begun != "":
		d.Why = s.Begun + " and nobody is at work on it; no other is begun before that one is over"
		d.Warning = s.Begun + " and nobody is at work on it. " + s.Finish
		return d
	case percent == 0:
		d.Why = share + "; it is never rotated by itself (rotation.due.intermediate is 0)"
	case !d.Due:
		d.Why = fmt.Sprintf("%s; due at %d%%, on %s", share, percent, day(ca.at(percent)))
	case s.Root.NotAfter.Before(s.Now.Add(s.IntermediateTTL)):
		d.Why = fmt.Sprintf("%s; due, and not begun: the root %s ends on %s, before a new intermediate would", share, s.Root.Name, day(s.Root.NotAfter))
		d.Warning = fmt.Sprintf("the intermediate %s is due, and cannot be rotated: the root %s ends on %s, before a new intermediate would. Shorten pki.intermediate.ttl, or rotate the root first (relaypki rotate root MESH --plan)",
			ca.Name, s.Root.Name, day(s.Root.NotAfter))
	case s.Busy != "":
		d.Why = fmt.Sprintf("%s; due, and not begun: %s is at work on the mesh's CAs", share, s.Busy)
	case leaves:
		d.Why = share + "; due, and not begun: the rotation of leaves goes first"
	case s.Opens.IsZero():
		d.Why = share + "; due, and not begun: no window ever opens"
		d.Warning = fmt.Sprintf("the intermediate %s is due, and no window of rotation.windows ever opens", ca.Name)
	case !open:
		d.Why = fmt.Sprintf("%s; due, and begun when the next window opens, on %s", share, day(s.Opens))
	default:
		d.Start = true
		d.Why = share + "; due"
		if !ca.due(percent, s.Now) {
			d.Why += ": its latest date has come"
		}
	}
	switch {
	case d.Warning != "":
	case d.Late:
		d.Warning = fmt.Sprintf("the rotation of the intermediate %s had to begin by %s to be over in time: it ends on %s", ca.Name, day(ca.LatestStart), day(ca.NotAfter))
	case percent > 0 && !d.Due && !ca.LatestStart.IsZero() && ca.LatestStart.Before(ca.at(percent)):
		d.Warning = fmt.Sprintf("the intermediate %s is due on %s by rotation.due, and its rotation has to begin by %s: raise rotation.due.intermediate", ca.Name, day(ca.at(percent)), day(ca.LatestStart))
	}
	return d
}

func decideRoot(s State, percent int) Decision {
	ca := s.Root
	d := Decision{Kind: KindRoot, NotAfter: ca.NotAfter, LatestStart: ca.LatestStart}
	d.Why = fmt.Sprintf("%s has %d%% of its life left, until %s", ca.Name, ca.left(s.Now), day(ca.NotAfter))
	passed := !ca.LatestStart.IsZero() && !s.Now.Before(ca.LatestStart)
	d.Due = ca.due(percent, s.Now) || percent > 0 && passed
	d.Late = ca.late(s.Now, s.Now) && (d.Due || percent == 0)
	by := ""
	if !ca.LatestStart.IsZero() {
		by = ", and has to begin by " + day(ca.LatestStart)
	}
	switch {
	case d.Late:
		d.Warning = fmt.Sprintf("the rotation of the root %s had to begin by %s to be over in time: it ends on %s", ca.Name, day(ca.LatestStart), day(ca.NotAfter))
	case d.Due:
		d.Warning = fmt.Sprintf("the root %s is due, it ends on %s. Its rotation is not begun by itself%s", ca.Name, day(ca.NotAfter), by)
	}
	if d.Warning != "" {
		d.Warning += ". What it would do: relaypki rotate root MESH --plan"
	}
	switch {
	case d.Due:
		d.Why += "; due: people are told, it is not begun by itself"
	case percent == 0:
		d.Why += "; nobody is told before (rotation.due.root is 0)"
	default:
		d.Why += fmt.Sprintf("; due at %d%%, on %s", percent, day(ca.at(percent)))
	}
	return d
}

// A warning that nothing is done about comes again between a day and a month
// later.
const (
	soonest = 24 * time.Hour
	latest  = 30 * 24 * time.Hour
)

// Remind is when people who were told of the decision's warning are told again.
func (d Decision) Remind(told time.Time) time.Time {
	if d.Daily {
		return told.Add(soonest)
	}
	return Remind(told, d.NotAfter)
}

// Remind is when people who were told of a warning are told again if it still
// holds: when half of the time until the certificate's end is over, so that the
// first word of a root that lives for years is not the last, and is not said daily
// either.
func Remind(told, notAfter time.Time) time.Time {
	return told.Add(min(max(notAfter.Sub(told)/2, soonest), latest))
}

// day is a time in words that stay the same for as long as it does.
func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04Z") }

// fewest is how many members are named before the others are counted.
const fewest = 10

func some(names []string) string {
	if more := len(names) - fewest; more > 0 {
		names = append(slices.Clone(names[:fewest]), fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}
