package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
)

func newSupervisor(t *testing.T) *Supervisor {
	s := New(zaptest.NewLogger(t))
	t.Cleanup(s.Close)
	return s
}

// until waits for a part to be as asked.
func until(t *testing.T, s *Supervisor, name string, is func(Status) bool) Status {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		var last Status
		for _, st := range s.Status() {
			if st.Name == name {
				if last = st; is(st) {
					return st
				}
			}
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("part %s stays %+v", name, last)
		}
	}
}

func in(state State) func(Status) bool { return func(st Status) bool { return st.State == state } }

func sleeper(t *testing.T, name string, after ...string) Part {
	return Part{Name: name, After: after, Command: []string{"sleep", "600"}, Log: filepath.Join(t.TempDir(), name+".log")}
}

func TestPartsStartInOrderAndStopInReverse(t *testing.T) {
	s := newSupervisor(t)
	var mu sync.Mutex
	var events []string
	note := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, fmt.Sprintf(format, args...))
	}
	part := func(name string, after ...string) Part {
		started := make(chan struct{})
		return Part{Name: name, After: after, Run: func(ctx context.Context) error {
			note("start %s", name)
			close(started)
			<-ctx.Done()
			note("stop %s", name)
			return nil
		}, Ready: func(ctx context.Context) error {
			select {
			case <-started:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
	}
	s.Apply([]Part{part("top", "middle"), part("middle", "bottom"), part("bottom")})
	until(t, s, "top", in(Ready))
	s.Close()
	want := []string{"start bottom", "start middle", "start top", "stop top", "stop middle", "stop bottom"}
	if !slices.Equal(events, want) {
		t.Errorf("events %v, want %v", events, want)
	}
}

func TestAKilledProcessIsRestarted(t *testing.T) {
	s := newSupervisor(t)
	s.Apply([]Part{sleeper(t, "victim")})
	first := until(t, s, "victim", in(Ready))
	if err := s.Kill("victim", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	failed := until(t, s, "victim", in(Failed))
	if !strings.Contains(failed.Message, "signal: killed") {
		t.Errorf("message %q does not say why it ended", failed.Message)
	}
	again := until(t, s, "victim", in(Ready))
	if again.PID == first.PID || again.PID == 0 || again.Restarts != 1 {
		t.Errorf("after the kill: %+v, before: %+v", again, first)
	}
}

func TestAPartThatEndsIsNamedWithItsLastLines(t *testing.T) {
	s := newSupervisor(t)
	s.Apply([]Part{{Name: "broken", Command: []string{"sh", "-c", "echo the disk is on fire; exit 3"},
		Log: filepath.Join(t.TempDir(), "broken.log"), Ready: func(context.Context) error { return errors.New("no answer") }}})
	st := until(t, s, "broken", func(st Status) bool { return st.Failures >= 2 })
	for _, want := range []string{"broken", "exit status 3", "the disk is on fire"} {
		if !strings.Contains(st.Message, want) {
			t.Errorf("message %q lacks %q", st.Message, want)
		}
	}
}

func TestStopLastsUntilStart(t *testing.T) {
	s := newSupervisor(t)
	parts := []Part{sleeper(t, "one")}
	s.Apply(parts)
	st := until(t, s, "one", in(Ready))
	if err := s.Stop("one"); err != nil {
		t.Fatal(err)
	}
	until(t, s, "one", in(Stopped))
	if err := syscall.Kill(st.PID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there: %v", st.PID, err)
	}
	if err := s.Start("one"); err != nil {
		t.Fatal(err)
	}
	until(t, s, "one", in(Ready))
	if err := s.Stop("other"); err == nil || !strings.Contains(err.Error(), "one") {
		t.Errorf("stopping an unknown part: error %v, want one that names those there are", err)
	}
}

func TestAPartThatDoesNotEndIsKilledAfterItsGrace(t *testing.T) {
	s := newSupervisor(t)
	deaf := Part{Name: "deaf", Command: []string{"bash", "-c", `trap "" TERM; echo ignored; while :; do sleep 0.1; done`},
		Grace: 100 * time.Millisecond, Log: filepath.Join(t.TempDir(), "deaf.log")}
	deaf.Ready = func(context.Context) error {
		if !strings.Contains(Tail(deaf.Log, 1), "ignored") {
			return errors.New("it hears still")
		}
		return nil
	}
	s.Apply([]Part{deaf})
	st := until(t, s, "deaf", in(Ready))
	began := time.Now()
	if err := s.Stop("deaf"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < deaf.Grace || took > grace/2 {
		t.Errorf("it was stopped after %s, given %s", took, deaf.Grace)
	}
	if err := syscall.Kill(st.PID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there: %v", st.PID, err)
	}
}

func TestApplyRestartsOnlyWhatChanged(t *testing.T) {
	s := newSupervisor(t)
	same, changed, gone := sleeper(t, "same"), sleeper(t, "changed"), sleeper(t, "gone")
	s.Apply([]Part{same, changed, gone})
	pid := func(name string) int { return until(t, s, name, in(Ready)).PID }
	samePID, changedPID, gonePID := pid("same"), pid("changed"), pid("gone")
	changed.Key = "other"
	s.Apply([]Part{same, changed})
	if pid("same") != samePID {
		t.Error("an unchanged part was restarted")
	}
	if pid("changed") == changedPID {
		t.Error("a changed part was not restarted")
	}
	if err := syscall.Kill(gonePID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("a part that is no longer wanted still runs: %v", err)
	}
}

func TestATakenPortIsSaid(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := newSupervisor(t)
	p := sleeper(t, "late")
	p.Listen = []string{l.Addr().String()}
	s.Apply([]Part{p})
	st := until(t, s, "late", in(Failed))
	if !strings.Contains(st.Message, l.Addr().String()) || st.PID != 0 {
		t.Errorf("status %+v, want the address named and no process", st)
	}
}

func TestATaskIsRepeatedUntilItWorks(t *testing.T) {
	s := newSupervisor(t)
	tries := 0
	s.Apply([]Part{{Name: "task", Task: func(context.Context) error {
		if tries++; tries < 2 {
			return errors.New("not yet")
		}
		return nil
	}}})
	until(t, s, "task", in(Ready))
	if tries != 2 {
		t.Errorf("%d tries, want 2", tries)
	}
}

func TestTailShowsTheLastProcessOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "part.log")
	for _, c := range []struct{ content, want string }{
		{"", ""},
		{"a\nb\nc\n", "b\nc"},
		{"old\n--- now starts part\nnew\n", "--- now starts part\nnew"},
	} {
		if err := os.WriteFile(path, []byte(c.content), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := Tail(path, 2); got != c.want {
			t.Errorf("tail of %q is %q, want %q", c.content, got, c.want)
		}
	}
	if got := Tail(path+".none", 2); got != "" {
		t.Errorf("tail of no file is %q", got)
	}
}
