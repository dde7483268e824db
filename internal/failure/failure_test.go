package failure_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.temporal.io/sdk/temporal"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/secret/secrettest"
)

// Whatever way an error is made, its text has no secret.
func TestErrorsHoldNoSecret(t *testing.T) {
	for name, err := range map[string]error{
		"permanent":    failure.Permanent(failure.Conflict, "Pod says %s", secrettest.VaultToken),
		"with details": failure.PermanentWithDetails(failure.Unhealthy, "Pod says "+secrettest.JWT, nil),
		"transient":    failure.Transient(failure.Unavailable, "Pod says %s", secrettest.Key),
		"waiting":      failure.Waiting(0, "Pod says %s", secrettest.OldToken),
		"not sorted":   failure.Top(errors.New("Pod says " + secrettest.JWT)),
		"wrapped":      failure.Top(fmt.Errorf("Pod says %s: %w", secrettest.JWT, failure.Permanent(failure.Denied, "no"))),
	} {
		for _, secret := range []string{secrettest.VaultToken, secrettest.OldToken, secrettest.JWT, secrettest.KeyBody} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if !strings.Contains(err.Error(), "Pod says (withheld)") {
			t.Errorf("%s lost its text: %v", name, err)
		}
	}
}

func TestTop(t *testing.T) {
	if err := failure.Top(context.Canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancellation became %v", err)
	}
	inner := failure.Permanent(failure.Denied, "no")
	err := failure.Top(fmt.Errorf("outer: %w", inner))
	app, ok := err.(*temporal.ApplicationError) //nolint:errorlint // the top is what counts
	if !ok || !app.NonRetryable() || failure.KindOf(err) != failure.Denied || !strings.Contains(err.Error(), "outer: no") {
		t.Errorf("a wrapped permanent error became %#v", err)
	}
	if !failure.IsPermanent(err) || failure.IsPermanent(failure.Transient(failure.Unavailable, "x")) || failure.IsPermanent(errors.New("x")) {
		t.Error("IsPermanent does not tell them apart")
	}
}
