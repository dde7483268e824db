package main

import (
	"context"
	"errors"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.uber.org/zap"
)

const (
	// firstWait and longestWait bound the time between two attempts to reach
	// Temporal: a worker that starts together with its server should not come
	// late, and a line every few seconds tells what it is waiting for.
	firstWait   = time.Second
	longestWait = 5 * time.Second
	// attemptTime bounds one attempt.
	attemptTime = 5 * time.Second
)

// connect returns a client once Temporal answers and has the namespace. It
// waits for that as long as it takes; the error is that of the context.
func connect(ctx context.Context, options client.Options, log *zap.Logger) (client.Client, error) {
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		c, err := attempt(ctx, options)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		log.Warn("waiting for Temporal at "+options.HostPort, zap.String("reason", reason(err, options)), zap.Duration("nextTry", wait))
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

func attempt(ctx context.Context, options client.Options) (client.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	c, err := client.DialContext(ctx, options)
	if err != nil {
		return nil, err
	}
	namespace := options.Namespace
	if namespace == "" {
		namespace = client.DefaultNamespace
	}
	if _, err := c.WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: namespace}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// reason is an attempt's error with the cure where it is a known one.
func reason(err error, options client.Options) string {
	var noNamespace *serviceerror.NamespaceNotFound
	var denied *serviceerror.PermissionDenied
	switch {
	case errors.As(err, &noNamespace):
		return "there is no namespace " + noNamespace.Namespace + "; create it or set TEMPORAL_NAMESPACE"
	case errors.As(err, &denied):
		return err.Error() + "; check TEMPORAL_API_KEY or the client certificate"
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer; check TEMPORAL_ADDRESS, and TEMPORAL_TLS if it speaks TLS"
	default:
		return err.Error()
	}
}
