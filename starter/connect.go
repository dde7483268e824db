package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/contrib/envconfig"
	"go.temporal.io/sdk/log"
)

// callTime bounds one call to Temporal.
const callTime = 5 * time.Second

// server is a connection to Temporal and where it goes.
type server struct {
	client.Client
	cli                *cli
	address, namespace string
}

func (c *cli) connect(ctx context.Context) (*server, error) {
	options, err := envconfig.LoadClientOptions(envconfig.LoadClientOptionsRequest{ConfigFileProfile: c.profile})
	if err != nil {
		return nil, badInput("correct the variable or the profile file (TEMPORAL_CONFIG_FILE), then: "+c.sameWith(), "connection to Temporal (TEMPORAL_* variables and profile): %w", err)
	}
	if c.address != "" {
		options.HostPort = c.address
	}
	if c.namespace != "" {
		options.Namespace = c.namespace
	}
	if options.HostPort == "" {
		options.HostPort = client.DefaultHostPort
	}
	if options.Namespace == "" {
		options.Namespace = client.DefaultNamespace
	}
	options.Logger = log.NewStructuredLogger(slog.New(slog.DiscardHandler))
	dial, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	connected, err := client.DialContext(dial, options)
	t := &server{Client: connected, cli: c, address: options.HostPort, namespace: options.Namespace}
	switch {
	case ctx.Err() != nil:
		return nil, &exitError{code: exitInterrupted, err: fmt.Errorf("interrupted before Temporal at %s answered; nothing was done", t.address), next: c.sameWith()}
	case err != nil:
		return nil, t.unreachable(c.sameWith(), err)
	}
	return t, nil
}

// unreachable is the error of a Temporal that does not answer; next is what to
// type when it does.
func (t *server) unreachable(next string, err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.New("no answer")
	}
	return &exitError{
		code: exitUnreachable,
		err:  fmt.Errorf("cannot reach Temporal at %s: %w", t.address, err),
		next: "check that it runs there (else --address or TEMPORAL_ADDRESS; TEMPORAL_TLS if it speaks TLS), then: " + next,
	}
}

// failed turns the error of a call to Temporal into the one that ends the command.
func (t *server) failed(err error, doing string) error {
	var noNamespace *serviceerror.NamespaceNotFound
	var denied *serviceerror.PermissionDenied
	var canceled *serviceerror.Canceled
	var exit *exitError
	switch {
	case errors.As(err, &exit):
		return err
	case errors.As(err, &canceled) || errors.Is(err, context.Canceled):
		return &exitError{code: exitInterrupted, err: fmt.Errorf("interrupted: %s", doing), next: t.cli.again("status")}
	case errors.As(err, &denied):
		return &exitError{code: exitUnreachable, err: fmt.Errorf("Temporal at %s refuses to %s in namespace %s: %w", t.address, doing, t.namespace, err),
			next: "set TEMPORAL_API_KEY, or TEMPORAL_TLS_CLIENT_CERT_PATH and TEMPORAL_TLS_CLIENT_KEY_PATH, or give a --profile that has them, then: " + t.cli.sameWith()}
	case errors.As(err, &noNamespace):
		return &exitError{code: exitUnreachable, err: fmt.Errorf("Temporal at %s has no namespace %q", t.address, t.namespace),
			next: t.cli.sameWith("--namespace", "NAME")}
	case transient(err):
		return t.unreachable(t.cli.sameWith(), err)
	default:
		return &exitError{code: exitFailed, err: fmt.Errorf("%s: %w", doing, err), next: t.cli.again("status")}
	}
}

// transient is true for what may be gone at the next call.
func transient(err error) bool {
	var unavailable *serviceerror.Unavailable
	var deadline *serviceerror.DeadlineExceeded
	return errors.As(err, &unavailable) || errors.As(err, &deadline) || errors.Is(err, context.DeadlineExceeded)
}

func isNotFound(err error) bool {
	var notFound *serviceerror.NotFound
	return errors.As(err, &notFound)
}
