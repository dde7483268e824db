// Package supervise keeps the lab's parts running: processes, loops of our own
// and tasks, each started when what it needs is ready, and restarted with
// back-off when it ends by itself.
package supervise

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// Part is one thing to keep running. Exactly one of Command, Run and Task is set.
type Part struct {
	Name string
	// After names the parts that have to be ready before this one starts. At
	// the end they are stopped after it.
	After []string
	// Key stands for everything that the part is made of: with another Key,
	// Apply restarts it.
	Key string
	// Listen are the addresses that have to be free before it starts.
	Listen []string
	// Command is a program and its arguments.
	Command []string
	// Env is added to the environment, Dir is the working directory.
	Env []string
	Dir string
	// Run serves until its context ends.
	Run func(context.Context) error
	// Task runs once.
	Task func(context.Context) error
	// Ready is asked until it returns nil. It may do what it takes, and has to
	// be repeatable.
	Ready func(context.Context) error
	// Grace is how long Command has after SIGTERM; 15 seconds if it is 0.
	Grace time.Duration
	// Log is the file for the output of Command.
	Log string
	// Background parts are not waited for by whoever starts the lab.
	Background bool
}

// State of a part.
type State string

const (
	Waiting  State = "waiting"  // for the parts it needs
	Starting State = "starting" // it runs, and is not usable yet
	Ready    State = "ready"
	Failed   State = "failed" // it ended by itself, and is started again soon
	Stopped  State = "stopped"
)

// Status is what is known of a part.
type Status struct {
	Name  string    `json:"name"`
	State State     `json:"state"`
	Since time.Time `json:"since"`
	PID   int       `json:"pid,omitempty"`
	// Message: what a starting part is waited for, or why a failed one ended,
	// with the last lines of its log.
	Message string `json:"message,omitempty"`
	// Failures in a row, Restarts in all, and the message of the last one.
	Failures    int    `json:"failures,omitempty"`
	Restarts    int    `json:"restarts,omitempty"`
	LastFailure string `json:"lastFailure,omitempty"`
	Log         string `json:"log,omitempty"`
	Background  bool   `json:"background,omitempty"`
}

// Supervisor runs parts.
type Supervisor struct {
	log *zap.Logger
	// applying keeps one caller at a time from changing the set of parts.
	applying sync.Mutex

	mu      sync.Mutex
	parts   []*runner // in the order given
	changed chan struct{}
}

type runner struct {
	part   Part
	status Status
	cancel context.CancelFunc // nil: not running
	done   chan struct{}
}

// New makes a supervisor without parts.
func New(log *zap.Logger) *Supervisor {
	return &Supervisor{log: log, changed: make(chan struct{})}
}

// Apply makes the given parts the ones that run: it starts new ones, restarts
// those whose Key is another and those that failed, and stops those that are
// not among them.
func (s *Supervisor) Apply(parts []Part) {
	s.applying.Lock()
	defer s.applying.Unlock()
	wanted := map[string]bool{}
	for _, p := range parts {
		wanted[p.Name] = true
	}
	for _, r := range s.runners() {
		if !wanted[r.part.Name] {
			s.stop(r)
			s.forget(r)
		}
	}
	for _, p := range parts {
		r := s.find(p.Name)
		if r != nil && r.part.Key == p.Key && r.cancel != nil && s.state(r) != Failed {
			continue
		}
		if r == nil {
			r = &runner{part: p, status: Status{Name: p.Name, Log: p.Log, Background: p.Background}}
			s.mu.Lock()
			s.parts = append(s.parts, r)
			s.mu.Unlock()
		} else {
			s.stop(r)
			s.mu.Lock()
			r.part = p
			s.mu.Unlock()
		}
		s.start(r)
	}
}

// Status of all parts, in the order given to Apply.
func (s *Supervisor) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Status, len(s.parts))
	for i, r := range s.parts {
		all[i] = r.status
	}
	return all
}

// Stop stops one part until Start or Apply.
func (s *Supervisor) Stop(name string) error {
	return s.one(name, s.stop)
}

// Start starts a stopped part.
func (s *Supervisor) Start(name string) error {
	return s.one(name, s.start)
}

// Kill sends a signal to the process of a part, behind the supervisor's back as
// it were: a part that dies of it is restarted.
func (s *Supervisor) Kill(name string, signal syscall.Signal) error {
	r := s.find(name)
	if r == nil {
		return s.unknown(name)
	}
	s.mu.Lock()
	pid := r.status.PID
	s.mu.Unlock()
	if pid == 0 {
		return fmt.Errorf("part %s has no process now", name)
	}
	return syscall.Kill(pid, signal)
}

// Close stops all parts, each after those that need it.
func (s *Supervisor) Close() {
	s.applying.Lock()
	defer s.applying.Unlock()
	left := map[string]*runner{}
	for _, r := range s.runners() {
		left[r.part.Name] = r
	}
	for len(left) > 0 {
		needed := map[string]bool{}
		for _, r := range left {
			for _, name := range r.part.After {
				needed[name] = true
			}
		}
		var wave sync.WaitGroup
		before := len(left)
		for name, r := range left {
			if !needed[name] {
				delete(left, name)
				wave.Go(func() { s.stop(r) })
			}
		}
		wave.Wait()
		if len(left) == before { // a circle: stop them all
			for name, r := range left {
				delete(left, name)
				s.stop(r)
			}
		}
	}
}

func (s *Supervisor) one(name string, do func(*runner)) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	r := s.find(name)
	if r == nil {
		return s.unknown(name)
	}
	do(r)
	return nil
}

func (s *Supervisor) unknown(name string) error {
	names := ""
	for _, r := range s.runners() {
		names += " " + r.part.Name
	}
	return fmt.Errorf("no part is called %q; there are:%s", name, names)
}

func (s *Supervisor) find(name string) *runner {
	for _, r := range s.runners() {
		if r.part.Name == name {
			return r
		}
	}
	return nil
}

func (s *Supervisor) runners() []*runner {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*runner(nil), s.parts...)
}

func (s *Supervisor) state(r *runner) State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.status.State
}

func (s *Supervisor) forget(gone *runner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, r := range s.parts {
		if r == gone {
			s.parts = append(s.parts[:i], s.parts[i+1:]...)
			return
		}
	}
}

func (s *Supervisor) start(r *runner) {
	if r.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel, r.done = cancel, make(chan struct{})
	s.set(r, func(st *Status) {
		*st = Status{Name: st.Name, Log: r.part.Log, Background: r.part.Background, State: Waiting}
	})
	go func() {
		defer close(r.done)
		s.keep(ctx, r)
	}()
}

func (s *Supervisor) stop(r *runner) {
	if r.cancel == nil {
		return
	}
	r.cancel()
	<-r.done
	r.cancel = nil
	s.set(r, func(st *Status) { *st = Status{Name: st.Name, Log: st.Log, Background: st.Background, State: Stopped} })
	s.log.Info("stopped", zap.String("part", r.part.Name))
}

// set changes a status and wakes those who wait for one.
func (s *Supervisor) set(r *runner, change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := r.status.State
	change(&r.status)
	if r.status.State != before {
		r.status.Since = time.Now()
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

const (
	firstPause = 500 * time.Millisecond
	lastPause  = 15 * time.Second
	// steady is how long a part has to run for its failures to be forgotten.
	steady = 30 * time.Second
	// grace is how long a process has after SIGTERM, if its part does not say.
	grace = 15 * time.Second
)

// keep runs a part until ctx ends.
func (s *Supervisor) keep(ctx context.Context, r *runner) {
	pause := firstPause
	for {
		if !s.waitFor(ctx, r) {
			return
		}
		began := time.Now()
		err := s.once(ctx, r)
		if ctx.Err() != nil {
			return
		}
		if err == nil { // a task is done
			s.set(r, func(st *Status) { st.State, st.Message, st.Failures, st.PID = Ready, "", 0, 0 })
			<-ctx.Done()
			return
		}
		if time.Since(began) > steady {
			pause = firstPause
			s.set(r, func(st *Status) { st.Failures = 0 })
		}
		message := err.Error()
		if r.part.Command != nil {
			message += "; last lines of " + r.part.Log + ":\n" + Tail(r.part.Log, 12)
		}
		s.set(r, func(st *Status) {
			st.State, st.PID, st.Message = Failed, 0, message
			st.LastFailure = time.Now().Format(time.TimeOnly) + " " + message
			st.Failures++
			st.Restarts++
		})
		s.log.Error("part failed", zap.String("part", r.part.Name), zap.String("why", message), zap.Duration("restartIn", pause))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// waitFor waits until what the part needs is ready; false if ctx ended.
func (s *Supervisor) waitFor(ctx context.Context, r *runner) bool {
	for {
		s.mu.Lock()
		changed := s.changed
		missing := ""
		for _, name := range r.part.After {
			ready := false
			for _, other := range s.parts {
				ready = ready || other.part.Name == name && other.status.State == Ready
			}
			if !ready {
				missing = name
				break
			}
		}
		s.mu.Unlock()
		if missing == "" {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
}

// once runs a part until it ends. Nil is the end of a task; everything else
// that is meant to stay ends with an error.
func (s *Supervisor) once(ctx context.Context, r *runner) error {
	p := r.part
	for _, addr := range p.Listen {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("%s cannot listen on %s: %w: another program is there; stop it, or forget this lab and its ports with `lab clean`", p.Name, addr, err)
		}
		l.Close()
	}
	s.set(r, func(st *Status) { st.State, st.Message = Starting, "" })
	if p.Task != nil {
		return p.Task(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	if p.Command != nil {
		cmd, err := start(p)
		if err != nil {
			return err
		}
		s.set(r, func(st *Status) { st.PID = cmd.Process.Pid })
		s.log.Info("started", zap.String("part", p.Name), zap.Int("pid", cmd.Process.Pid))
		stopped := make(chan struct{})
		defer func() { <-stopped }()
		go func() {
			defer close(stopped)
			err := cmd.Wait()
			if err == nil {
				err = errors.New("exit status 0")
			}
			ended <- fmt.Errorf("%s ended by itself: %w", p.Name, err)
		}()
		go terminate(ctx, cmd, cmp.Or(p.Grace, grace), stopped)
	} else {
		stopped := make(chan struct{})
		defer func() { <-stopped }()
		go func() {
			defer close(stopped)
			err := p.Run(ctx)
			if err == nil {
				err = errors.New("without an error")
			}
			ended <- fmt.Errorf("%s ended by itself: %w", p.Name, err)
		}()
		s.log.Info("started", zap.String("part", p.Name))
	}
	defer cancel() // before the wait for the end above
	began := time.Now()
	for ready := p.Ready == nil; !ready; {
		attempt, done := context.WithTimeout(ctx, 20*time.Second)
		err := p.Ready(attempt)
		done()
		if err == nil {
			break
		}
		s.set(r, func(st *Status) { st.Message = err.Error() })
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	s.set(r, func(st *Status) { st.State, st.Message = Ready, "" })
	s.log.Info("ready", zap.String("part", p.Name), zap.Duration("after", time.Since(began)))
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// startMark begins the line in a log before what the next process says.
const startMark = "---"

func start(p Part) (*exec.Cmd, error) {
	if err := os.MkdirAll(filepath.Dir(p.Log), 0o755); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	fmt.Fprintf(log, "%s %s starts %s\n", startMark, time.Now().UTC().Format(time.RFC3339), p.Name)
	cmd := exec.Command(p.Command[0], p.Command[1:]...)
	cmd.Dir = p.Dir
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	// Its own group: a Ctrl-C at the terminal is not for it. The death of the
	// supervisor is.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.Name, err)
	}
	return cmd, nil
}

// terminate ends the process when ctx ends, by force if it takes longer than grace.
func terminate(ctx context.Context, cmd *exec.Cmd, grace time.Duration, stopped <-chan struct{}) {
	select {
	case <-stopped:
		return
	case <-ctx.Done():
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-stopped:
	case <-time.After(grace):
		_ = cmd.Process.Kill()
	}
}

// Tail is the last lines of a log, at most back to the start of the process
// that wrote them; "" if there is none.
func Tail(path string, lines int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 16 << 10
	if info, err := f.Stat(); err == nil && info.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return ""
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return ""
	}
	all := bytes.Split(bytes.TrimRight(data, "\n"), []byte("\n"))
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	for i := len(all) - 1; i > 0; i-- {
		if bytes.HasPrefix(all[i], []byte(startMark+" ")) {
			all = all[i:]
			break
		}
	}
	return string(bytes.Join(all, []byte("\n")))
}
