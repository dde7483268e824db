package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// display shows a procedure that is being followed.
type display interface {
	show(view)
	// end leaves the cursor on a line of its own.
	end()
}

// newDisplay is a picture redrawn in place on a terminal, a line for every
// change elsewhere, and nothing at all for -o json.
func newDisplay(c *cli) display {
	if c.quiet() {
		return silent{}
	}
	if file, ok := terminal(c.out); ok {
		return &screen{file: file, paper: paperFor(file)}
	}
	return &journal{out: c.out}
}

// terminal is the terminal behind a writer, if there is one that can be drawn on.
func terminal(w io.Writer) (*os.File, bool) {
	file, ok := w.(*os.File)
	return file, ok && term.IsTerminal(int(file.Fd())) && os.Getenv("TERM") != "dumb"
}

// narrowestTerminal is the least width that anything is laid out for.
const narrowestTerminal = 20

// paperFor is how to draw on a terminal: its size, and colour unless NO_COLOR
// is set (no-color.org).
func paperFor(file *os.File) paper {
	p := paper{width: 80, height: 24, colour: os.Getenv("NO_COLOR") == "", ascii: asciiOnly(os.Getenv)}
	if width, height, err := term.GetSize(int(file.Fd())); err == nil && width > 0 && height > 0 {
		p.width, p.height = max(width, narrowestTerminal), height
	}
	return p
}

// asciiOnly looks at the locale in the order that POSIX gives its variables.
func asciiOnly(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if locale := strings.ToLower(getenv(name)); locale != "" {
			return !strings.Contains(locale, "utf-8") && !strings.Contains(locale, "utf8")
		}
	}
	return false
}

type silent struct{}

func (silent) show(view) {}
func (silent) end()      {}

// screen redraws a block of lines in place.
type screen struct {
	file  *os.File
	paper paper
	drawn []string
}

func (s *screen) show(v view) {
	resized := paperFor(s.file)
	lines := resized.draw(v)
	var b strings.Builder
	if len(s.drawn) > 0 && resized == s.paper {
		fmt.Fprintf(&b, "\x1b[%dA", len(s.drawn))
	}
	b.WriteString("\r\x1b[J")
	for _, line := range lines {
		b.WriteString(line + "\n")
	}
	fmt.Fprint(s.file, b.String())
	s.drawn, s.paper = lines, resized
}

func (s *screen) end() { fmt.Fprintln(s.file) }

// journal writes a line for every change.
type journal struct {
	out    io.Writer
	before view
}

func (j *journal) show(v view) {
	for _, line := range changes(j.before, v) {
		fmt.Fprintln(j.out, line)
	}
	j.before = v
}

func (j *journal) end() { fmt.Fprintln(j.out) }
