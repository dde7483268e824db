package procedure

import (
	"slices"
	"time"
)

// Told is what people were told last of something that is found again and again.
type Told struct {
	// Of are the things that are as they should not be.
	Of []string  `json:"of"`
	At time.Time `json:"at"`
}

// TellAgain is how long people are not told again of what they know.
const TellAgain = 24 * time.Hour

// News decides whether people are told of what is found now, given what they were
// told last, if they were: of anything new, and once a day of what has not been put
// right. It answers also what they have been told then.
func News(last *Told, found []string, now time.Time) (bool, *Told) {
	switch {
	case last == nil || now.Sub(last.At) >= TellAgain:
		return true, &Told{Of: found, At: now}
	case slices.ContainsFunc(found, func(one string) bool { return !slices.Contains(last.Of, one) }):
		// What comes and goes is not news each time that it comes.
		all := slices.Concat(last.Of, found)
		slices.Sort(all)
		return true, &Told{Of: slices.Compact(all), At: now}
	}
	return false, last
}

// NotifyStep is a step that tells people something, and NobodyToTell its detail where
// there is nobody to tell.
const (
	NotifyStep   = "notify"
	NobodyToTell = "nobody to tell: the worker's site file has no notify"
)

// A run that another procedure has started, and that nobody looks at, has in its
// memo which one, and what people were told of the failure of the run before it.
const (
	MemoStartedBy = "startedBy"
	MemoTold      = "told"
)
