package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/site"
)

// Error is an API server's error as it leaves an activity. doing says what was
// tried: "create Secret gloo-mesh/relay-root-tls-secret". Errors that have a
// kind already, and the end of the activity itself, are returned as they are.
func Error(ctx context.Context, c *site.Cluster, doing string, err error) error {
	var app *temporal.ApplicationError
	if err == nil || errors.As(err, &app) {
		return failure.Top(err)
	}
	if ctx.Err() == context.Canceled { //nolint:errorlint // the context's own value
		return ctx.Err()
	}
	where := fmt.Sprintf("cluster %q: cannot %s", c.Name, doing)
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return failure.Transient(failure.Unavailable, "%s: its API server does not answer: %s", where, network(err))
	}
	said := said(status.Status())
	switch {
	case KindMissing(err):
		return failure.Waiting(waitForKind, "%s: the API server does not know that kind yet; its CustomResourceDefinition is not installed", where)
	case apierrors.IsForbidden(err) && strings.Contains(said, "denied the request"):
		return failure.Permanent(failure.Denied, "%s: an admission webhook of that cluster refuses it: %s", where, said)
	case apierrors.IsForbidden(err):
		return failure.Permanent(failure.Denied, "%s: %s. Apply the manifest of deploy/rbac to that cluster, or grant what is missing, and run this again", where, said)
	case apierrors.IsUnauthorized(err):
		// Credentials are renewed under a running worker, so this may pass.
		why := c.Expired(time.Now())
		if why != "" {
			why = ": " + why
		}
		return failure.Transient(failure.Denied, "%s: the API server does not accept the worker's credential%s. Renew it in the worker's kubeconfig, which is read again by itself", where, why)
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsRequestEntityTooLargeError(err), apierrors.IsMethodNotSupported(err):
		return failure.Permanent(failure.InvalidInput, "%s: %s", where, said)
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return failure.Transient(failure.Conflict, "%s: it was changed by somebody else at the same time: %s", where, said)
	case apierrors.IsNotFound(err):
		return failure.Transient(failure.NotReady, "%s: %s", where, said)
	default: // time-outs, overload, an admission webhook that cannot be called
		return failure.Transient(failure.Unavailable, "%s: %s", where, said)
	}
}

// said is the API server's own text. Of Secrets it is the reason alone: a
// validation quotes what it refuses.
func said(status metav1.Status) string {
	text := status.Message
	if status.Details != nil && status.Details.Kind == "secrets" && status.Reason != metav1.StatusReasonForbidden {
		fields := make([]string, 0, len(status.Details.Causes))
		for _, cause := range status.Details.Causes {
			fields = append(fields, cause.Field)
		}
		text = strings.TrimSpace(string(status.Reason) + " " + strings.Join(fields, ", "))
	}
	if len(text) > longest {
		text = text[:longest] + "..."
	}
	return text
}

// longest is as much of an API server's text as an error has room for.
const longest = 600

// network is a transport error without the URL, which names no more than doing does.
func network(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Error()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "timed out"
	}
	text := err.Error()
	if len(text) > longest {
		text = text[:longest] + "..."
	}
	return text
}
