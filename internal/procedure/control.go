package procedure

import (
	"encoding/json"

	"github.com/relaypki/relaypki/internal/strict"
)

// Updates by which a person steers a running procedure. Each takes one JSON
// object (the Typed inputs below), is idempotent, and answers with a Standing.
const (
	// RetryUpdate has parked clusters tried again.
	RetryUpdate = "retry"
	// SkipUpdate leaves parked clusters out, for a reason. The procedure then
	// ends as failed, with them in its report.
	SkipUpdate = "skip"
	// PauseUpdate begins nothing new until ResumeUpdate; what runs is finished.
	PauseUpdate  = "pause"
	ResumeUpdate = "resume"
	// SetParallelismUpdate says how many clusters are worked on at once.
	SetParallelismUpdate = "setParallelism"
	// AbortUpdate ends the procedure: what runs is cancelled and waited for,
	// what is done stays.
	AbortUpdate = "abort"
)

// RetryInput names parked clusters; none means all of them.
type RetryInput struct {
	Clusters []string `json:"clusters,omitempty"`
}

// SkipInput names parked clusters and says why they are left out.
type SkipInput struct {
	Clusters []string `json:"clusters"`
	Reason   string   `json:"reason"`
}

// PauseInput says why, for whoever finds the procedure paused.
type PauseInput struct {
	Reason string `json:"reason"`
}

// ResumeInput has no fields.
type ResumeInput struct{}

// ParallelismInput is how many clusters to work on at once from now on.
type ParallelismInput struct {
	Parallelism int `json:"parallelism"`
}

// AbortInput says why; the procedure's failure repeats it.
type AbortInput struct {
	Reason string `json:"reason"`
}

// Standing is where a procedure stands after an update, in few words however
// many clusters there are.
type Standing struct {
	Procedure string `json:"procedure"`
	Mesh      string `json:"mesh"`
	Phase     string `json:"phase"`
	// Awaiting is as in Progress.
	Awaiting string `json:"awaiting,omitempty"`
	// Paused is the reason of a pause; empty if there is none.
	Paused string `json:"paused,omitempty"`
	// Note is what there is to say of what the update did; often nothing.
	Note        string `json:"note,omitempty"`
	Aborting    bool   `json:"aborting,omitempty"`
	Parallelism int    `json:"parallelism"`
	// Count is the number of clusters in each state.
	Count map[State]int `json:"count"`
	// Parked are the clusters that wait for a person, with what they failed of.
	Parked []ClusterProgress `json:"parked,omitempty"`
}

// Typed is an input that a person types: decoded strictly, with what is wrong
// kept in Problems for validation to report (see SetupInput).
type Typed[T any] struct {
	In       T
	Problems []strict.Problem
}

// UnmarshalJSON never fails; see SetupInput.
func (t *Typed[T]) UnmarshalJSON(data []byte) error {
	t.Problems = strict.Decode(data, &t.In)
	return nil
}

// MarshalJSON writes the input alone.
func (t Typed[T]) MarshalJSON() ([]byte, error) { return json.Marshal(t.In) }
