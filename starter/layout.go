package main

import (
	"fmt"
	"io"
	"strings"
)

// What is printed once is laid out in the paper's width without losing
// anything: texts are wrapped, and a table that is too wide becomes a list.

// print writes a text, wrapped, with further lines a little further in.
func (p paper) print(w io.Writer, indent int, spans ...span) {
	for _, line := range p.wrap(indent, indent+2, spans...) {
		fmt.Fprintln(w, line)
	}
}

// letter is a character with its style.
type letter struct {
	rune
	style
}

// wrap breaks a text into lines that fit: the first begins at column first, the
// others at column rest.
func (p paper) wrap(first, rest int, spans ...span) []string {
	var text []letter
	for _, s := range spans {
		for _, r := range s.text {
			text = append(text, letter{r, s.style})
		}
	}
	var lines []string
	for indent := first; len(text) > 0 || len(lines) == 0; indent = rest {
		// However narrow, every line takes something.
		line, left := breakAt(text, max(p.width-indent, 1))
		pieces := []span{{strings.Repeat(" ", indent), plain}}
		for _, l := range line {
			if last := &pieces[len(pieces)-1]; last.style == l.style {
				last.text += string(l.rune)
			} else {
				pieces = append(pieces, span{string(l.rune), l.style})
			}
		}
		lines = append(lines, p.line(pieces...))
		text = left
	}
	return lines
}

// breakAt splits a text into what fits into a width and the rest: at a space,
// else after a dash or slash in a long word, else anywhere.
func breakAt(text []letter, width int) (line, rest []letter) {
	if len(text) <= width {
		return text, nil
	}
	for i := width; i > 0; i-- {
		if text[i].rune == ' ' {
			rest = text[i:]
			for len(rest) > 0 && rest[0].rune == ' ' {
				rest = rest[1:]
			}
			return text[:i], rest
		}
	}
	for i := width; i > width/2; i-- {
		if text[i-1].rune == '-' || text[i-1].rune == '/' {
			return text[:i], text[i:]
		}
	}
	return text[:width], text[width:]
}

const (
	// gap is between two columns.
	gap = 2
	// narrowest is how far a column is narrowed before a table becomes a list.
	narrowest = 10
)

// table writes rows under the first of them, which has the columns' names. The
// widest columns are narrowed until all fit, their cells wrapped; where that
// would leave too little of them, every row becomes a block of lines.
func (p paper) table(w io.Writer, indent int, rows [][]span) {
	widths, words := make([]int, len(rows[0])), make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell.text)))
			for word := range strings.FieldsSeq(cell.text) {
				if p.whole {
					words[i] = max(words[i], len([]rune(word)))
				}
			}
		}
	}
	if !narrow(widths, words, p.width-indent-gap*(len(widths)-1)) {
		p.list(w, indent, rows)
		return
	}
	for _, row := range rows {
		cells := make([][]string, len(row))
		height := 0
		for i, cell := range row {
			cells[i] = paper{width: widths[i], ascii: p.ascii}.wrap(0, 0, span{cell.text, plain})
			height = max(height, len(cells[i]))
		}
		for n := range height {
			pieces := []span{{strings.Repeat(" ", indent), plain}}
			for i, cell := range row {
				text := ""
				if n < len(cells[i]) {
					text = cells[i][n]
				}
				if i < len(row)-1 {
					text = pad(text, widths[i]+gap)
				}
				pieces = append(pieces, span{text, cell.style})
			}
			fmt.Fprintln(w, p.line(pieces...))
		}
	}
}

// narrow takes from the widest columns until they fit, and makes them narrower than
// these words only if that is not enough; false if one would have to be narrower than
// narrowest.
func narrow(widths, words []int, room int) bool {
	for {
		total, widest := 0, -1
		for i, width := range widths {
			total += width
			if width > max(words[i], narrowest) && (widest < 0 || width > widths[widest]) {
				widest = i
			}
		}
		if total <= room {
			return true
		}
		if widest < 0 {
			widest = 0
			for i, width := range widths {
				if width > widths[widest] {
					widest = i
				}
			}
		}
		if widths[widest] <= narrowest {
			return false
		}
		widths[widest]--
	}
}

// list writes every row as lines of name and value.
func (p paper) list(w io.Writer, indent int, rows [][]span) {
	names := 0
	for _, cell := range rows[0] {
		names = max(names, len([]rune(cell.text)))
	}
	for n, row := range rows[1:] {
		if n > 0 {
			fmt.Fprintln(w)
		}
		for i, cell := range row {
			if cell.text == "" {
				continue
			}
			at := indent + names + gap
			lines := p.wrap(at, at, cell)
			// Those spaces are plain: the name takes their place.
			name := p.line(span{strings.Repeat(" ", indent), plain}, span{rows[0][i].text, dim})
			lines[0] = name + lines[0][indent+len([]rune(rows[0][i].text)):]
			for _, line := range lines {
				fmt.Fprintln(w, line)
			}
		}
	}
	fmt.Fprintln(w)
}
