// Package failure has the few kinds of error that leave an activity. In the
// Temporal SDK the outermost error decides whether a call is retried: wrapping
// a non-retryable error with fmt.Errorf makes it retryable. So every error
// here is an ApplicationError, and activities return it at top level.
package failure

import (
	"errors"
	"fmt"
	"time"

	"go.temporal.io/sdk/temporal"

	"github.com/relaypki/relaypki/internal/secret"
)

// Kind is the type of an ApplicationError, the word an operator sees in the UI
// and that scripts may test.
type Kind string

const (
	// InvalidInput: what was asked cannot be done for anybody; every problem is listed.
	InvalidInput Kind = "InvalidInput"
	// Preflight: something outside is not as the procedure needs it.
	Preflight Kind = "Preflight"
	// Conflict: something of that name is there and is not ours, or differs in
	// a way that we must not change.
	Conflict Kind = "Conflict"
	// Denied: Vault or an API server refused for lack of permission.
	Denied Kind = "Denied"
	// Mismatch: what was issued is not what was asked for.
	Mismatch Kind = "Mismatch"
	// Locked: another procedure holds the lock.
	Locked Kind = "Locked"
	// Unavailable: a server could not be reached or could not answer now; tried again.
	Unavailable Kind = "Unavailable"
	// NotReady: what is waited for has not come yet; tried again, and no fault.
	NotReady Kind = "NotReady"
	// Unhealthy: a verification found something failing.
	Unhealthy Kind = "Unhealthy"
	// Incomplete: all that was worked on is done, and something was left out by a person.
	Incomplete Kind = "Incomplete"
	// Aborted: a person ended the run.
	Aborted Kind = "Aborted"
	// RolledBack: a person had a rotation taken back, and it was.
	RolledBack Kind = "RolledBack"
)

// Permanent is an error that trying again does not cure: somebody must act.
func Permanent(kind Kind, format string, args ...any) error {
	return temporal.NewNonRetryableApplicationError(secret.Withhold(fmt.Sprintf(format, args...)), string(kind), nil)
}

// PermanentWithDetails is Permanent with details (a report) for the reader of
// the failure.
func PermanentWithDetails(kind Kind, message string, details any) error {
	return temporal.NewNonRetryableApplicationError(secret.Withhold(message), string(kind), nil, details)
}

// Transient is an error that may be gone at the next try.
func Transient(kind Kind, format string, args ...any) error {
	return temporal.NewApplicationErrorWithOptions(secret.Withhold(fmt.Sprintf(format, args...)), string(kind), temporal.ApplicationErrorOptions{})
}

// TransientAfter is Transient where the other side says when to try again.
func TransientAfter(again time.Duration, kind Kind, format string, args ...any) error {
	return temporal.NewApplicationErrorWithOptions(secret.Withhold(fmt.Sprintf(format, args...)), string(kind), temporal.ApplicationErrorOptions{NextRetryDelay: again})
}

// Waiting says that something is not there yet: benign, and to be asked again
// after the given time.
func Waiting(again time.Duration, format string, args ...any) error {
	return temporal.NewApplicationErrorWithOptions(secret.Withhold(fmt.Sprintf(format, args...)), string(NotReady), temporal.ApplicationErrorOptions{
		NextRetryDelay: again,
		Category:       temporal.ApplicationErrorCategoryBenign,
	})
}

// KindOf is the kind of the ApplicationError in err's chain, or "".
func KindOf(err error) Kind {
	var app *temporal.ApplicationError
	if errors.As(err, &app) {
		return Kind(app.Type())
	}
	return ""
}

// IsPermanent says whether trying again is known not to cure the error.
func IsPermanent(err error) bool {
	var app *temporal.ApplicationError
	return errors.As(err, &app) && app.NonRetryable()
}

// Message is the text of the innermost ApplicationError in err: what the
// activity said, without Temporal's wrapping.
func Message(err error) string {
	var app *temporal.ApplicationError
	if !errors.As(err, &app) {
		return silence(err)
	}
	var inner *temporal.ApplicationError
	for cause := app.Unwrap(); errors.As(cause, &inner); cause = inner.Unwrap() {
		app = inner
	}
	return app.Message()
}

// silence is what there is to say of an activity that gave no answer in its
// time: what it last said that it waits for, or that no worker has taken it.
func silence(err error) string {
	var timeout *temporal.TimeoutError
	var failed *temporal.ActivityError
	if !errors.As(err, &timeout) || !errors.As(err, &failed) {
		return err.Error()
	}
	name := failed.ActivityType().GetName()
	var last string
	if timeout.HasLastHeartbeatDetails() && timeout.LastHeartbeatDetails(&last) == nil && last != "" {
		return fmt.Sprintf("%s did not end in its time; it last waited for: %s", name, last)
	}
	return fmt.Sprintf("%s gave no answer in its time. Is a worker running on its task queue, and does it reach what it works on? Its log says more", name)
}

// Top makes sure that an activity's error is an ApplicationError at top level:
// one wrapped somewhere inside is lifted out, keeping its kind, whether it is
// retryable, its category and the whole text, without secrets. Any other error
// stays as it is, unless it holds one.
func Top(err error) error {
	if err == nil {
		return nil
	}
	text := secret.Withhold(err.Error())
	var app *temporal.ApplicationError
	switch {
	case !errors.As(err, &app):
		if text == err.Error() {
			return err
		}
		return Transient("", "%s", text)
	case error(app) == err:
		return err
	}
	return temporal.NewApplicationErrorWithOptions(text, app.Type(), temporal.ApplicationErrorOptions{
		NonRetryable:   app.NonRetryable(),
		NextRetryDelay: app.NextRetryDelay(),
		Category:       app.Category(),
	})
}
