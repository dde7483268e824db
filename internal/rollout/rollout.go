// Package rollout decides which clusters of a fleet are worked on next: the
// canaries, then wave after wave, so many at once, as long as the failure
// budget lasts. It is pure; whoever carries it out tells it how far each
// cluster is and asks again after every change.
package rollout

import (
	"fmt"
	"slices"
	"strings"
)

// Strategy is how a fleet is gone over (mesh.Rollout has the meaning of each field).
type Strategy struct {
	Canary        []string
	WaveSize      int
	Parallelism   int
	FailureBudget int
}

// Status is how far one cluster is.
type Status int

const (
	Waiting Status = iota
	Running
	Done
	// Parked has failed, and waits for a person to have it tried again or skipped.
	Parked
	// Skipped was left out by a person.
	Skipped
)

// over says that nothing more happens with the cluster by itself.
func (s Status) over() bool { return s == Done || s == Skipped }

// Decision is what to do now.
type Decision struct {
	// Begin are the clusters to begin now.
	Begin []string
	// Over says that every cluster is done or skipped.
	Over bool
	// Held is why clusters that wait are not begun, for a reason that only a
	// person removes; empty if there is none, or nothing waits.
	Held string
}

// Waves are the clusters in the order in which they are gone over: the canaries
// first, then the others as the fleet lists them.
func (s Strategy) Waves(fleet []string) [][]string {
	var canaries, others []string
	for _, cluster := range fleet {
		if slices.Contains(s.Canary, cluster) {
			canaries = append(canaries, cluster)
		} else {
			others = append(others, cluster)
		}
	}
	var waves [][]string
	if len(canaries) > 0 {
		waves = append(waves, canaries)
	}
	size := s.WaveSize
	if size <= 0 {
		size = max(len(others), 1)
	}
	for wave := range slices.Chunk(others, size) {
		waves = append(waves, wave)
	}
	return waves
}

// Next decides what to begin, given how far each cluster is; one without an
// entry is waiting.
func (s Strategy) Next(fleet []string, status map[string]Status) Decision {
	var running int
	var parked []string
	over := true
	for _, cluster := range fleet {
		switch status[cluster] {
		case Running:
			running++
		case Parked:
			parked = append(parked, cluster)
		}
		over = over && status[cluster].over()
	}
	decision := Decision{Over: over}
	for _, wave := range s.Waves(fleet) {
		canary := slices.Contains(s.Canary, wave[0])
		waiting, settled := s.look(wave, canary, status)
		if len(waiting) > 0 {
			if len(parked) > s.FailureBudget {
				decision.Held = fmt.Sprintf("%d parked (%s), more than the failure budget of %d allows", len(parked), strings.Join(parked, ", "), s.FailureBudget)
				return decision
			}
			decision.Begin = waiting[:min(len(waiting), max(s.Parallelism-running, 0))]
			return decision
		}
		if !settled {
			if canary && running == 0 && s.beyond(wave, fleet, status) {
				decision.Held = "the canary is parked (" + strings.Join(parked, ", ") + ")"
			}
			return decision
		}
	}
	return decision
}

// WaveOver says that a cluster's wave has had its turn: none of it is at work,
// and none waits, or only such as are not begun now (stopped). A cluster that is
// not in the fleet is in no wave that could go on.
func (s Strategy) WaveOver(fleet []string, status map[string]Status, cluster string, stopped bool) bool {
	for _, wave := range s.Waves(fleet) {
		if slices.Contains(wave, cluster) {
			return !slices.ContainsFunc(wave, func(of string) bool {
				return status[of] == Running || status[of] == Waiting && !stopped
			})
		}
	}
	return true
}

// look answers which clusters of a wave wait, and whether the next wave may
// begin: a parked canary holds the rest, another parked cluster does not.
func (s Strategy) look(wave []string, canary bool, status map[string]Status) (waiting []string, settled bool) {
	settled = true
	for _, cluster := range wave {
		switch at := status[cluster]; {
		case at == Waiting:
			waiting = append(waiting, cluster)
			settled = false
		case at == Running, at == Parked && canary:
			settled = false
		}
	}
	return waiting, settled
}

// beyond says that clusters outside the wave are still waiting.
func (s Strategy) beyond(wave, fleet []string, status map[string]Status) bool {
	return slices.ContainsFunc(fleet, func(cluster string) bool {
		return status[cluster] == Waiting && !slices.Contains(wave, cluster)
	})
}
