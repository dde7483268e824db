package kube

import (
	"context"
	"errors"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"github.com/relaypki/relaypki/internal/failure"
)

const (
	// lookEvery is how often an awaited state is looked at: fast at first and after
	// every change, for what comes in a moment, then as often as a person would notice.
	lookEvery    = 100 * time.Millisecond
	lookEverLess = time.Second
	// lookWithin keeps one look that hangs from missing a heartbeat.
	lookWithin = 5 * time.Second
	// waitForKind is when a missing kind is asked for again.
	waitForKind = 3 * time.Second
)

// Await looks again and again until done, and heartbeats what is awaited. It
// ends shortly before the activity's deadline, so that the last state seen
// leaves in an error of kind NotReady, rather than be lost in a time-out of
// the server's. A look's permanent error ends it at once, as does a Final one; others pass.
func Await(ctx context.Context, look func(context.Context) (done bool, state string, err error)) error {
	started := time.Now()
	end := ctx
	if deadline, ok := ctx.Deadline(); ok {
		margin := min(2*time.Second, time.Until(deadline)/10)
		bounded, cancel := context.WithDeadline(ctx, deadline.Add(-margin))
		defer cancel()
		end = bounded
	}
	last := "nothing seen yet"
	every := lookEvery
	for {
		lookCtx, cancel := context.WithTimeout(end, lookWithin)
		done, state, err := look(lookCtx)
		cancel()
		if err == nil && done {
			return nil
		}
		if err != nil {
			var ending final
			if errors.As(err, &ending) {
				return ending.error
			}
			var app *temporal.ApplicationError
			if errors.As(err, &app) && app.NonRetryable() {
				return failure.Top(err)
			}
			state = failure.Message(err)
		}
		if state != last {
			every = lookEvery
		}
		if end.Err() == nil || last == "nothing seen yet" {
			last = state
		}
		activity.RecordHeartbeat(ctx, last)
		select {
		case <-end.Done():
			if ctx.Err() == context.Canceled { //nolint:errorlint // the context's own value
				return ctx.Err()
			}
			return failure.Waiting(lookEverLess, "not ready after %s: %s", time.Since(started).Round(time.Second), last)
		case <-time.After(every):
		}
		every = min(every*3/2, lookEverLess)
	}
}

// Final marks a look's error that ends the wait although trying the whole
// activity again may help.
func Final(err error) error { return final{err} }

type final struct{ error }

// Heartbeating heartbeats once a second until the returned function is called.
func Heartbeating(ctx context.Context, what string) (stop func()) {
	ended := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			activity.RecordHeartbeat(ctx, what)
			select {
			case <-ended:
				return
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	}()
	return func() { close(ended); <-stopped }
}
