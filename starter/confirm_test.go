package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// pseudoTerminal is a terminal of a test's own: what is written to its first
// end is typed at the second.
func pseudoTerminal(t *testing.T) (person, terminal *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return person, terminal
}

// dangerous runs a command that asks before it acts, and says what came of it.
func dangerous(ctx context.Context, in *os.File, name string, args ...string) (done bool, code int, said string) {
	var errOut bytes.Buffer
	c := &cli{out: &bytes.Buffer{}, err: &errOut, args: args, name: "relaypki"}
	root := c.rootCommand()
	var yes bool
	cmd := &cobra.Command{Use: "demolish", RunE: func(cmd *cobra.Command, _ []string) error {
		err := c.confirm(cmd, yes, danger{question: "Demolish mesh demo?", consequence: "All of it goes.", name: name})
		done = err == nil
		return err
	}}
	yesFlag(cmd, &yes)
	cmd.Flags().String("reason", "", "")
	root.AddCommand(cmd)
	if in != nil {
		root.SetIn(in)
	} else {
		root.SetIn(strings.NewReader("y\n"))
	}
	code = c.execute(ctx, root)
	return done, code, errOut.String()
}

func TestConfirm(t *testing.T) {
	tests := []struct {
		name, asked, typed string
		done               bool
		code               int
		want               string
	}{
		{"yes", "", "y\n", true, 0, "Demolish mesh demo? [y/N]"},
		{"no", "", "n\n", false, exitBadInput, "nothing was done"},
		{"only return", "", "\n", false, exitBadInput, "nothing was done"},
		{"end of input", "", "\x04", false, exitBadInput, "nothing was done"},
		{"the name", "demo", "demo\n", true, 0, "Type demo to go on:"},
		{"another name", "demo", "demo2\n", false, exitBadInput, `"demo2" is not demo; nothing was done`},
		{"a yes in place of the name", "demo", "y\n", false, exitBadInput, "nothing was done"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			person, terminal := pseudoTerminal(t)
			if _, err := person.WriteString(test.typed); err != nil {
				t.Fatal(err)
			}
			done, code, said := dangerous(t.Context(), terminal, test.asked, "demolish")
			if done != test.done || code != test.code || !strings.Contains(said, test.want) {
				t.Errorf("done %v, exit code %d, want %v and %d with %q:\n%s", done, code, test.done, test.code, test.want, said)
			}
		})
	}
}

func TestConfirmWithoutTerminal(t *testing.T) {
	done, code, said := dangerous(t.Context(), nil, "", "demolish", "--reason", "it's old")
	if want := `Next: relaypki demolish --reason 'it'\''s old' --yes`; done || code != exitBadInput || !strings.Contains(said, want) {
		t.Errorf("done %v, exit code %d, want a refusal with %q:\n%s", done, code, want, said)
	}
	if done, code, said := dangerous(t.Context(), nil, "demo", "demolish", "--yes"); !done || code != 0 {
		t.Errorf("--yes: done %v, exit code %d\n%s", done, code, said)
	}
}

func TestConfirmInterrupted(t *testing.T) {
	_, terminal := pseudoTerminal(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if done, code, said := dangerous(ctx, terminal, "", "demolish"); done || code != exitInterrupted {
		t.Errorf("done %v, exit code %d\n%s", done, code, said)
	}
}
