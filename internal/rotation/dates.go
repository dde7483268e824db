package rotation

import (
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
)

// Kind is what is rotated.
type Kind string

const (
	KindLeaf         Kind = "leaf"
	KindIntermediate Kind = "intermediate"
	KindRoot         Kind = "root"
)

// Pace is how a rotation goes over a mesh.
type Pace struct {
	// Clusters are the workload clusters; Canaries of them go first.
	Clusters, Canaries int
	// WaveSize is 0 for one wave; Parallelism is how many are worked on at once.
	WaveSize, Parallelism int
	// PerCluster is how long one takes.
	PerCluster time.Duration
	// Soak is how long is waited after the canaries.
	Soak time.Duration
	// Windows, in Zone, are when work on a cluster may begin.
	Windows []mesh.Window
	Zone    *time.Location
}

// LatestStart is by when a rotation has to begin, and why: what ends at
// notAfter, the leaves that are issued live for that long. What people take to
// approve comes on top.
func LatestStart(kind Kind, notAfter time.Time, leaf time.Duration, pace Pace) (time.Time, string) {
	return notAfter.Add(-leaf), ""
}

// NextOpen says whether a maintenance window is open, and when the next one
// opens: now, if one is open or there are no windows at all.
func NextOpen(windows []mesh.Window, zone *time.Location, now time.Time) (open bool, next time.Time) {
	return true, now
}

// Due says whether a certificate is to be rotated: no more than that percentage
// of its life is left. Never for 0 percent. It also says how much is left,
// rounded up, so that what is not due yet does not look as if it were.
func Due(percent int, notBefore, notAfter, now time.Time) (due bool, left int) {
	return false, 100
}
