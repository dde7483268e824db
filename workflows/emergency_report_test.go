package workflows

import (
	"errors"
	"testing"

	"go.temporal.io/sdk/temporal"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// One that fails on its way says in its report what it is for, and what has come.
func TestEmergencyThatFailsIsReported(t *testing.T) {
	w := newRootWorld(t)
	w.fails["give pinned"] = failure.Permanent(failure.Denied, "here it ends")
	_, err := w.emergency(intermediateGone + available)
	var app *temporal.ApplicationError
	var report procedure.Progress
	if !errors.As(err, &app) || app.Details(&report) != nil {
		t.Fatalf("it ends with %v", err)
	}
	if of := report.Emergency; of == nil || of.Incident != "INC-7" || of.IssuingStopped.IsZero() || !of.ServerDistrusts.IsZero() || of.Pinned {
		t.Errorf("it reports %+v", of)
	}
}
