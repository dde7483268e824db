package shell

import (
	"os/exec"
	"testing"
)

// awkward has everything that a shell gives a meaning.
const awkward = "it's $HOME `id` $(id) \\ \\n \"quoted\" * ; & | # !x \t end"

func bash(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("bash", "-euo", "pipefail", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, script)
	}
	return string(out)
}

// What comes out of a real shell is what was put in.
func TestShell(t *testing.T) {
	for _, word := range []string{"", "plain", "a b", awkward, "two\nlines", "-n", "'"} {
		if got := bash(t, Join("printf", "%s", word)); got != word {
			t.Errorf("%q comes out as %q", word, got)
		}
	}
	for _, text := range []string{awkward + "\n", "a\nEOF\nEOF_\nb\n", "EOF\n"} {
		if got := bash(t, Input("cat", text)); got != text {
			t.Errorf("%q comes out as %q", text, got)
		}
		if got := bash(t, "X=1; "+Expanded("cat", text, "NAME")); got != text {
			t.Errorf("expanded, %q comes out as %q", text, got)
		}
	}
	if got := bash(t, Input("cat", "no end")); got != "no end\n" {
		t.Errorf("a text without an end of line comes out as %q", got)
	}
	if got := bash(t, "ID='a \\\"$b'\n"+Expanded("cat", awkward+" $ID $IDENTITY\n", "ID")); got != awkward+" a \\\"$b $IDENTITY\n" {
		t.Errorf("expanded: %q", got)
	}
}
