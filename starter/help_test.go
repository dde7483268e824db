package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// commands are all commands that somebody can run, by their paths.
func commands(root *cobra.Command) []*cobra.Command {
	var all []*cobra.Command
	for _, cmd := range root.Commands() {
		if cmd.Name() != "help" && !cmd.Hidden {
			all = append(append(all, cmd), commands(cmd)...)
		}
	}
	return all
}

// Every command has examples, and every example is one that the command takes:
// known flags, the right number of arguments.
func TestExamples(t *testing.T) {
	root := (&cli{}).rootCommand()
	for _, cmd := range append(commands(root), root) {
		t.Run(cmd.CommandPath(), func(t *testing.T) {
			used := false
			for _, line := range strings.Split(cmd.Example, "\n") {
				line = strings.TrimSpace(line)
				if line == "" || strings.HasPrefix(line, "#") {
					continue
				}
				words := wordsOf(t, line)
				if err := takes(words); err != nil {
					t.Errorf("%s: %v", line, err)
				}
				used = used || strings.HasPrefix("relaypki "+strings.Join(words, " "), cmd.CommandPath())
			}
			if !used {
				t.Errorf("no example uses it:\n%s", cmd.Example)
			}
		})
	}
}

// wordsOf reads an example as a shell does, up to a pipe or redirection.
func wordsOf(t *testing.T, line string) []string {
	t.Helper()
	line = strings.TrimSuffix(strings.TrimPrefix(line, "source <("), ")")
	for _, end := range []string{" | ", " > "} {
		line, _, _ = strings.Cut(line, end)
	}
	out, err := exec.Command("bash", "-c", `relaypki() { printf '%s\0' "$@"; }; `+line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	words := strings.Split(string(out), "\x00")
	return words[:len(words)-1]
}

// takes parses the words as the command would, without running it.
func takes(words []string) error {
	cmd, rest, err := (&cli{}).rootCommand().Find(words)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		return err
	}
	return cmd.ValidateRequiredFlags()
}

// The test above can fail.
func TestStaleExamplesAreFound(t *testing.T) {
	for _, stale := range []string{"retyr demo", "retry", "retry demo --force", "pause demo now", "setup mesh.yaml"} {
		if err := takes(strings.Fields(stale)); err == nil {
			t.Errorf("%q is taken", stale)
		}
	}
}

// The README's table and the help name the same commands and exit codes.
func TestHelp(t *testing.T) {
	var out bytes.Buffer
	if code := run(context.Background(), []string{"--help"}, &out, &out); code != 0 {
		t.Fatal(code)
	}
	for _, want := range []string{"Steering what runs:", "set-parallelism", "completion", "5  the procedure runs, and waits for you", "NO_COLOR"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("lacks %q:\n%s", want, out.String())
		}
	}
}

// Whatever is proposed to a shell, Temporal being away is silent, and quick.
func TestCompletionWithoutTemporal(t *testing.T) {
	t.Setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
	for _, words := range []string{"status ", "watch ", "verify ", "diagnose ", "diagnose demo --cluster ", "inventory ", "inventory demo ", "retry ", "retry demo ", "skip demo cluster1 ", "pause demo --workflow ", "abort ", "rotate credentials ", "emergency root ", "emergency leaf demo ", "emergency root demo --reason ", "schedule list ", "schedule pause "} {
		var out, errOut bytes.Buffer
		args := append([]string{"__complete"}, strings.Split(words, " ")...)
		code := run(context.Background(), args, &out, &errOut)
		if code != 0 || out.String() != ":4\n" {
			t.Errorf("%q: exit code %d, proposed %q", words, code, out.String())
		}
	}
	for words, want := range map[string]string{
		"emergency root demo --first ": "availability\tno handshake fails; what is compromised is accepted until the end\ncontainment\tit is refused at once, and with it every agent until it is issued anew\n:4\n",
		"diagnose demo --fail-on ":     "critical\nwarning\ninformational\n:4\n",
		"inventory demo -o ":           "text\njson\nwide\nyaml\ncsv\nhtml\n:4\n",
		"status -o ":                   "text\njson\n:4\n", "ret": "retry\tTry clusters again that are parked\n:4\n", "setup -f ": "yaml\nyml\njson\n:8\n", "schedule pause demo ": "verify\nrefresh\nmaintain\n:4\n",
	} {
		var out, errOut bytes.Buffer
		run(context.Background(), append([]string{"__complete"}, strings.Split(words, " ")...), &out, &errOut)
		if out.String() != want {
			t.Errorf("%q: proposed %q, want %q", words, out.String(), want)
		}
	}
}

// Every command that the README names within a text is one that there is, with these
// flags.
func TestReadmeNamesCommands(t *testing.T) {
	data, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(relaypki [^`\n]+)`").FindAllStringSubmatch(string(data), -1)
	if len(named) < 50 {
		t.Fatalf("only %d were found", len(named))
	}
	for _, match := range named {
		if err := isCommand(strings.Fields(match[1])[1:]); err != nil {
			t.Errorf("%s: %v", match[1], err)
		}
	}
	for _, stale := range []string{"rotate roots demo", "emergency", "emergency root demo --frist containment", "lift demo"} {
		if isCommand(strings.Fields(stale)) == nil {
			t.Errorf("%q is taken", stale)
		}
	}
}

// isCommand says why the words are not those of a command, whatever its arguments are.
func isCommand(words []string) error {
	if alternatives := slices.IndexFunc(words, func(word string) bool { return strings.Contains(word, "|") }); alternatives >= 0 {
		words[alternatives], _, _ = strings.Cut(words[alternatives], "|")
	}
	cmd, rest, err := (&cli{}).rootCommand().Find(words)
	if err != nil {
		return err
	}
	if !cmd.Runnable() {
		return fmt.Errorf("%s has commands of its own, and %q is none of them", cmd.CommandPath(), rest)
	}
	err = cmd.ParseFlags(rest)
	if errors.Is(err, pflag.ErrHelp) {
		return nil
	}
	return err
}
