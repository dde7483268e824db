package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/relaypki/relaypki/internal/shell"
)

// danger is what a person is asked about before it is done.
type danger struct {
	// question names the thing and ends with a question mark.
	question string
	// consequence says what will be and what stays.
	consequence string
	// name has to be typed for what cannot be taken back; where it is empty, a y
	// is enough.
	name string
}

// yesFlag is the flag of a command that asks before it acts.
func yesFlag(cmd *cobra.Command, yes *bool) {
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do not ask")
}

// confirm returns nil if the thing is to be done: --yes was given, or the
// person at the terminal has said so. Where nobody can be asked, nothing is
// done. It asks on standard error, so that -o json stays one document.
func (c *cli) confirm(cmd *cobra.Command, yes bool, d danger) error {
	if yes {
		return nil
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return badInput(c.sameWith("--yes"), "%s There is no terminal to ask on; nothing was done", d.question)
	}
	paperOn(c.err).print(c.err, 0, span{d.consequence, plain})
	prompt := d.question + " [y/N]"
	if d.name != "" {
		prompt = d.question + " Type " + d.name + " to go on:"
	}
	fmt.Fprint(c.err, strings.Join(paperOn(c.err).wrap(0, 2, span{prompt, plain}), "\n"), " ")
	answer := make(chan string, 1)
	go func() {
		line, err := bufio.NewReader(in).ReadString('\n')
		if err == io.EOF {
			fmt.Fprintln(c.err)
		}
		answer <- strings.TrimSpace(line)
	}()
	select {
	case <-cmd.Context().Done():
		fmt.Fprintln(c.err)
		return &exitError{code: exitInterrupted, err: fmt.Errorf("nothing was done"), next: c.sameWith("--yes")}
	case said := <-answer:
		if agrees(said, d.name) {
			return nil
		}
		if d.name != "" && said != "" {
			return badInput(c.sameWith(), "%q is not %s; nothing was done", tidy(said), d.name)
		}
		return badInput("", "nothing was done")
	}
}

// agrees reads an answer: the name, or a yes where no name is asked for.
func agrees(said, name string) bool {
	if name != "" {
		return said == name
	}
	return strings.EqualFold(said, "y") || strings.EqualFold(said, "yes")
}

// sameWith is the command line that this program was called with, and a flag
// more.
func (c *cli) sameWith(flags ...string) string {
	args := slices.Clone(c.args)
	end := len(args)
	if i := slices.Index(args, "--"); i >= 0 {
		end = i
	}
	return shell.Join(append([]string{"relaypki"}, slices.Insert(args, end, flags...)...)...)
}
