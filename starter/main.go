// Command relaypki starts procedures and shows how they go. It talks to
// Temporal alone: what works on Vault and the clusters is relaypki-worker.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit codes.
const (
	exitFailed      = 1   // the procedure failed
	exitBadInput    = 2   // the command or its input is wrong; nothing was started
	exitUnreachable = 3   // Temporal cannot be reached
	exitUnhealthy   = 4   // the verification found something failing
	exitInterrupted = 130 // Ctrl-C; the procedure goes on
)

// exitError ends the command with a code and the next thing to type.
type exitError struct {
	code int
	err  error
	// next is a command, or what to do in words; may be empty.
	next string
	// shown: the error has been printed already, as part of the result.
	shown bool
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// cli is what all commands share.
type cli struct {
	out, err io.Writer
	// Common flags.
	address, namespace, profile, output string
	timeout                             time.Duration
	// args are the words that this program was called with, without its name.
	args []string
	// name is how to call this program again with the same common flags.
	name string
}

func (c *cli) json() bool { return c.output == "json" }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	c := &cli{out: out, err: errOut, args: args, name: "relaypki"}
	return c.execute(ctx, c.rootCommand())
}

func (c *cli) execute(ctx context.Context, root *cobra.Command) int {
	root.SetArgs(c.args)
	root.SetOut(c.out)
	root.SetErr(c.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var exit *exitError
	if !errors.As(err, &exit) { // cobra's own: flags and arguments
		exit = &exitError{code: exitBadInput, err: err, next: cmd.CommandPath() + " --help"}
	}
	if !exit.shown {
		fmt.Fprintln(c.err, "relaypki:", exit.err)
	}
	if exit.next != "" {
		fmt.Fprintln(c.err, "Next:", exit.next)
	}
	return exit.code
}

const usage = `relaypki sets up and looks after the relay certificates of a service mesh.

It starts procedures in Temporal, where a relaypki-worker carries them out, and
shows how they go. A procedure goes on when this command, the worker or the
machine stops. Temporal is found as the temporal command finds it: flags, then
TEMPORAL_* variables, then the profile file.

Exit codes: 0 success, 1 the procedure failed, 2 bad input (nothing was
started), 3 Temporal unreachable, 4 unhealthy, 130 interrupted (the procedure
goes on).`

func (c *cli) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:               "relaypki",
		Short:             "Relay certificates of a multi-cluster mesh, as durable procedures",
		Long:              usage,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return c.prepare(cmd) },
	}
	flags := root.PersistentFlags()
	flags.StringVar(&c.address, "address", "", "Temporal's host:port (TEMPORAL_ADDRESS, else 127.0.0.1:7233)")
	flags.StringVar(&c.namespace, "namespace", "", "Temporal namespace (TEMPORAL_NAMESPACE, else default)")
	flags.StringVar(&c.profile, "profile", "", "profile of Temporal's configuration file (TEMPORAL_PROFILE)")
	flags.StringVarP(&c.output, "output", "o", "text", "text, or json: one JSON document at the end and nothing else")
	flags.DurationVar(&c.timeout, "timeout", 0, "stop waiting after this long, as by Ctrl-C (0: never)")
	root.AddCommand(c.setupCommand(), c.verifyCommand(), c.statusCommand(), c.watchCommand(), c.schemaCommand())
	return root
}

// prepare checks the common flags and notes them for the commands that we
// suggest.
func (c *cli) prepare(cmd *cobra.Command) error {
	if c.output != "text" && c.output != "json" {
		return fmt.Errorf("-o %s is unknown; it is text or json", c.output)
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		switch f.Name {
		case "address", "namespace", "profile":
			c.name += " " + command("--"+f.Name, f.Value.String())
		}
	})
	if c.timeout > 0 {
		ctx, cancel := context.WithTimeout(cmd.Context(), c.timeout)
		cmd.SetContext(ctx)
		cobra.OnFinalize(cancel)
	}
	return nil
}

// again is a command line of this program with the same common flags.
func (c *cli) again(args ...string) string { return c.name + " " + strings.Join(args, " ") }

func badInput(next, format string, args ...any) error {
	return &exitError{code: exitBadInput, err: fmt.Errorf(format, args...), next: next}
}
