package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/term"

	"github.com/relaypki/relaypki/deploy/lab/internal/supervise"
)

// screen shows progress: lines that are redrawn on a terminal, plain lines
// otherwise.
type screen struct {
	out   io.Writer
	tty   bool
	width int
	// drawn is how many lines the last drawing has.
	drawn int
}

func newScreen(out *os.File) *screen {
	s := &screen{out: out, tty: term.IsTerminal(int(out.Fd())), width: 100}
	if s.tty {
		if width, _, err := term.GetSize(int(out.Fd())); err == nil && width > 20 {
			s.width = width
		}
	}
	return s
}

// line prints a line that stays, above what is redrawn.
func (s *screen) line(format string, args ...any) {
	s.clear()
	fmt.Fprintf(s.out, format+"\n", args...)
}

// draw replaces what was drawn before. Only for a terminal.
func (s *screen) draw(lines []string) {
	s.clear()
	for _, line := range lines {
		if runes := []rune(line); len(runes) >= s.width {
			line = string(runes[:s.width-2]) + "…"
		}
		fmt.Fprintln(s.out, line)
	}
	s.drawn = len(lines)
}

func (s *screen) clear() {
	if s.drawn > 0 {
		fmt.Fprintf(s.out, "\x1b[%dA\x1b[J", s.drawn)
		s.drawn = 0
	}
}

// elapsed is a duration for people.
func elapsed(d time.Duration) string {
	if d < 100*time.Second {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
}

// step shows one long step; the returned functions tell what it does now, and
// how it ended. On a terminal the time runs, elsewhere a line comes now and then.
func (s *screen) step(title string) (doing func(string), end func(error)) {
	began := time.Now()
	every := 30 * time.Second
	if s.tty {
		every = 200 * time.Millisecond
	} else {
		s.line("  %s %s", marks[supervise.Starting], title)
	}
	var now atomic.Value
	now.Store("")
	done, shown := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(shown)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			if s.tty {
				s.draw([]string{fmt.Sprintf("  %s %s  %s  %s", marks[supervise.Starting], title, elapsed(time.Since(began)), now.Load())})
			} else {
				s.line("    %s  %s", elapsed(time.Since(began)), now.Load())
			}
		}
	}()
	return func(what string) { now.Store(what) }, func(err error) {
		close(done)
		<-shown
		mark := marks[supervise.Ready]
		if err != nil {
			mark = marks[supervise.Failed]
		}
		s.line("  %s %s  %s", mark, title, elapsed(time.Since(began)))
	}
}

// board shows how the parts come up.
type board struct {
	screen *screen
	began  time.Time
	said   map[string]supervise.State
	last   time.Time
}

func newBoard(s *screen) *board {
	return &board{screen: s, began: time.Now(), said: map[string]supervise.State{}, last: time.Now()}
}

func (b *board) show(all []supervise.Status) {
	if b.screen.tty {
		var lines []string
		for _, p := range all {
			if !p.Background {
				lines = append(lines, row(p, b.began))
			}
		}
		b.screen.draw(lines)
		return
	}
	var missing []string
	for _, p := range all {
		if p.Background {
			continue
		}
		if p.State != b.said[p.Name] && (p.State == supervise.Ready && p.Since.After(b.began) || p.State == supervise.Failed) {
			b.screen.line("%s", row(p, b.began))
			b.last = time.Now()
		}
		b.said[p.Name] = p.State
		if p.State != supervise.Ready {
			missing = append(missing, p.Name)
		}
	}
	if len(missing) > 0 && time.Since(b.last) > 10*time.Second {
		b.last = time.Now()
		b.screen.line("    %s  still to come: %s", elapsed(time.Since(b.began)), strings.Join(missing, ", "))
	}
}

var marks = map[supervise.State]string{
	supervise.Ready: "✓", supervise.Failed: "✗", supervise.Starting: "…", supervise.Waiting: "·", supervise.Stopped: "-",
}

func row(p supervise.Status, began time.Time) string {
	took := ""
	if p.Since.After(began) {
		took = elapsed(p.Since.Sub(began))
		if p.State == supervise.Starting {
			took = elapsed(time.Since(began))
		}
	}
	message, _, _ := strings.Cut(p.Message, "\n")
	return strings.TrimRight(fmt.Sprintf("  %s %-30s %-8s %7s  %s", marks[p.State], p.Name, p.State, took, message), " ")
}
