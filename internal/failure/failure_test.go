package failure_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

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

// An activity that nobody took, and one that hung, in a run of their own.
func TestSilenceSaysWhatWasAwaited(t *testing.T) {
	for want, heartbeat := range map[string]string{
		"Hang gave no answer in its time. Is a worker running":              "",
		"Hang did not end in its time; it last waited for: the certificate": "the certificate",
	} {
		var suite testsuite.WorkflowTestSuite
		env := suite.NewTestWorkflowEnvironment()
		env.RegisterActivityWithOptions(func(ctx context.Context) error { return nil }, activity.RegisterOptions{Name: "Hang"})
		details := []any{}
		if heartbeat != "" {
			details = append(details, heartbeat)
		}
		env.OnActivity("Hang", mock.Anything).Return(temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE, nil, details...))
		env.ExecuteWorkflow(func(ctx workflow.Context) (string, error) {
			ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{ScheduleToCloseTimeout: time.Minute, RetryPolicy: &temporal.RetryPolicy{MaximumAttempts: 1}})
			return failure.Message(workflow.ExecuteActivity(ctx, "Hang").Get(ctx, nil)), nil
		})
		var got string
		if err := env.GetWorkflowResult(&got); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
