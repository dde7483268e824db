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
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/relaypki/relaypki/internal/shell"
)

// Exit codes.
const (
	exitFailed      = 1   // the procedure failed
	exitBadInput    = 2   // the command or its input is wrong; nothing was started
	exitUnreachable = 3   // Temporal cannot be reached
	exitUnhealthy   = 4   // the verification found something failing, or a diagnosis something critical
	exitWaiting     = 5   // the procedure runs, and waits for a person
	exitDenied      = 6   // a diagnosis was not let look at something
	exitWarnings    = 7   // a diagnosis found warnings
	exitNotes       = 8   // a diagnosis found something worth knowing
	exitInterrupted = 130 // Ctrl-C; the procedure goes on
)

// exitError ends the command with a code and the next thing to type.
type exitError struct {
	code int
	err  error
	// next is a command, or what to do in words; may be empty.
	next string
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
	// inventory is how an inventory is to be shown.
	inventory inventoryView
	// name is how to call this program again with the same common flags.
	name string
}

func (c *cli) json() bool { return c.output == "json" }

// quiet says that standard output is for a document or script alone.
func (c *cli) quiet() bool {
	return c.json() || slices.Contains([]string{outputCommands, outputYAML, outputCSV, outputHTML}, c.output)
}

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
	var exit *exitError
	if err != nil && !errors.As(err, &exit) { // cobra's own: flags and arguments
		err = &exitError{code: exitBadInput, err: err, next: cmd.CommandPath() + " --help"}
	}
	return c.end(err)
}

// end prints an error with the next thing to type, and is the exit code.
func (c *cli) end(err error) int {
	if err == nil {
		return 0
	}
	exit := &exitError{code: exitFailed, err: err}
	errors.As(err, &exit)
	for _, line := range strings.Split("relaypki: "+exit.Error(), "\n") {
		indent := len(line) - len(strings.TrimLeft(line, " "))
		paperOn(c.err).print(c.err, indent, span{tidy(line), plain})
	}
	if exit.next != "" {
		p, next := paperOn(c.err), "Next: "+exit.next
		// A command is not broken into lines: it is there to be copied.
		if words, command, ok := strings.Cut(next, ", then: "); ok && len([]rune(next)) > p.width {
			p.print(c.err, 0, span{words + ", then:", plain})
			next = strings.TrimPrefix(nextLine, "\n") + command
		}
		fmt.Fprintln(c.err, next)
	}
	return exit.code
}

const usage = `relaypki sets up and looks after the relay certificates of a service mesh.

It starts procedures in Temporal, where a relaypki-worker carries them out, and
shows how they go. A procedure goes on when this command, the worker or the
machine stops. Temporal is found as the temporal command finds it: flags, then
TEMPORAL_* variables, then the profile file.

Exit codes:
    0  success
    1  the procedure failed
    2  bad input, a refusal, or a question not answered with yes: nothing was done
    3  Temporal cannot be reached
    4  the verification found something failing, or a diagnosis something critical
    5  the procedure runs, and waits for you: retry, skip, resume, submit or abort
    6  a diagnosis was not let look at something, and found nothing critical
    7  a diagnosis found warnings, and nothing graver
    8  a diagnosis found something worth knowing, and nothing graver
  130  interrupted, or --timeout is over: the procedure goes on

Without a terminal, output is plain lines; NO_COLOR is honoured.`

func (c *cli) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "relaypki",
		Short: "Relay certificates of a multi-cluster mesh, as durable procedures",
		Long:  usage,
		Example: `  relaypki setup -f mesh.yaml
  relaypki status
  # Completion in this shell; "relaypki completion --help" has the others:
  source <(relaypki completion bash)`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return c.prepare(cmd) },
	}
	flags := root.PersistentFlags()
	flags.StringVar(&c.address, "address", "", "Temporal's host:port (TEMPORAL_ADDRESS, else 127.0.0.1:7233)")
	flags.StringVar(&c.namespace, "namespace", "", "Temporal namespace (TEMPORAL_NAMESPACE, else default)")
	flags.StringVar(&c.profile, "profile", "", "profile of Temporal's configuration file (TEMPORAL_PROFILE)")
	flags.StringVarP(&c.output, "output", "o", "text", "text, or json: one JSON document at the end and nothing else; or, for a plan, commands: a shell script")
	flags.DurationVar(&c.timeout, "timeout", 0, "stop waiting after this long, as by Ctrl-C (0: never)")
	c.completeFlags(root)
	cobra.EnableCommandSorting = false // they stand in the order in which they are needed
	root.AddGroup(&cobra.Group{ID: "procedures", Title: "Procedures:"}, &cobra.Group{ID: "steering", Title: "Steering what runs:"},
		&cobra.Group{ID: "looking", Title: "Looking:"})
	for _, group := range []struct {
		id       string
		commands []*cobra.Command
	}{
		{"procedures", []*cobra.Command{c.setupCommand(), c.addClusterCommand(), c.removeClusterCommand(), c.adoptCommand(), c.rotateCommand(), c.emergencyCommand(), c.verifyCommand(), c.diagnoseCommand(), c.inventoryCommand(), c.scheduleCommand()}},
		{"steering", []*cobra.Command{c.approveCommand(), c.rollbackCommand(), c.retryCommand(), c.skipCommand(), c.quarantineCommand(), c.pauseCommand(), c.resumeCommand(), c.setParallelismCommand(), c.abortCommand(), c.csrCommand(), c.submitCommand()}},
		{"looking", []*cobra.Command{c.statusCommand(), c.watchCommand(), c.schemaCommand()}},
	} {
		for _, command := range group.commands {
			command.GroupID = group.id
			root.AddCommand(command)
		}
	}
	root.InitDefaultCompletionCmd()
	for _, command := range root.Commands() {
		if command.Name() != "completion" {
			continue
		}
		command.Example = "  source <(relaypki completion bash)"
		for _, shell := range command.Commands() {
			shell.Example = completionExamples[shell.Name()]
		}
	}
	return root
}

// completionExamples load the completion in every new shell.
var completionExamples = map[string]string{
	"bash":       "  relaypki completion bash > ~/.local/share/bash-completion/completions/relaypki",
	"zsh":        `  relaypki completion zsh > "${fpath[1]}/_relaypki"`,
	"fish":       "  relaypki completion fish > ~/.config/fish/completions/relaypki.fish",
	"powershell": "  relaypki completion powershell | Out-String | Invoke-Expression",
}

// prepare checks the common flags and notes them for the commands that we
// suggest.
func (c *cli) prepare(cmd *cobra.Command) error {
	switch more := strings.Fields(cmd.Annotations[outputsAnnotation]); {
	case c.output == "text", c.output == "json", slices.Contains(more, c.output):
	case len(more) > 0:
		return fmt.Errorf("-o %s is unknown; it is text, json or %s", c.output, strings.Join(more, ", "))
	case c.output == outputCommands:
		if !planning(cmd) {
			return fmt.Errorf("-o %s is for plans: give --plan too, where the command has it", c.output)
		}
	default:
		return fmt.Errorf("-o %s is unknown; it is text or json, or commands for a plan", c.output)
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		switch f.Name {
		case "address", "namespace", "profile":
			c.name += " " + shell.Join("--"+f.Name, f.Value.String())
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
