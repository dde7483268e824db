package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/relaypki/relaypki/deploy/lab/internal/supervise"
	"github.com/relaypki/relaypki/deploy/lab/internal/world"
)

func (l *lab) superviseCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "supervise",
		Short:  "Run the lab's parts in the foreground (what `lab up` starts)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := l.world()
			if err != nil {
				return err
			}
			return serve(cmd.Context(), w)
		},
	}
}

// daemon is the lab's supervisor process.
type daemon struct {
	w          *world.World // only its Dir: the rest is read at each order
	log        *zap.Logger
	supervisor *supervise.Supervisor

	mu     sync.Mutex // one order at a time
	worker string     // the worker's program, kept from order to order
}

// serve runs the supervisor until ctx ends, then stops every part.
func serve(ctx context.Context, w *world.World) error {
	// The parts shall not see what the caller's shell has for other systems.
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		if name == "KUBECONFIG" || strings.HasPrefix(name, "VAULT_") || strings.HasPrefix(name, "TEMPORAL_") || strings.HasPrefix(name, "ETCD_") {
			os.Unsetenv(name)
		}
	}
	unlock, ok, err := world.TryLock(w.Path("lab.lock"))
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("a supervisor of %s is already running", w.Dir)
	}
	defer unlock()
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.ISO8601TimeEncoder
	encoder.EncodeDuration = zapcore.StringDurationEncoder
	log := zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(encoder), zapcore.Lock(os.Stderr), zap.InfoLevel))
	d := &daemon{w: w, log: log, supervisor: supervise.New(log)}

	socket := socketPath(w.Dir)
	_ = os.Remove(socket) // of one that was killed: the lock is ours
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return err
	}
	me, err := identify(os.Getpid())
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	data, err := json.Marshal(record{process: me, Program: digest(program)})
	if err != nil {
		return err
	}
	if err := world.WriteFile(w.Path("lab.pid"), data, 0o644); err != nil {
		return err
	}
	server := &http.Server{Handler: d.handler()}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	log.Info("supervisor started", zap.Int("pid", me.PID))
	select {
	case err = <-served:
		log.Error("control socket", zap.Error(err))
	case <-ctx.Done():
		log.Info("stopping all parts")
	}
	d.supervisor.Close()
	_ = server.Close()
	log.Info("supervisor ended")
	return errors.Join(os.Remove(w.Path("lab.pid")), err)
}

func (d *daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(out http.ResponseWriter, _ *http.Request) {
		answer(out, d.supervisor.Status(), nil)
	})
	mux.HandleFunc("POST /apply", func(out http.ResponseWriter, in *http.Request) {
		var o order
		if err := json.NewDecoder(in.Body).Decode(&o); err != nil {
			answer(out, nil, err)
			return
		}
		answer(out, nil, d.apply(o))
	})
	mux.HandleFunc("POST /parts/{name}/{action}", func(out http.ResponseWriter, in *http.Request) {
		name := in.PathValue("name")
		d.log.Info("asked to", zap.String("action", in.PathValue("action")), zap.String("part", name))
		switch in.PathValue("action") {
		case "stop":
			answer(out, nil, d.supervisor.Stop(name))
		case "start":
			answer(out, nil, d.supervisor.Start(name))
		case "kill":
			answer(out, nil, d.supervisor.Kill(name, syscall.SIGKILL))
		default:
			http.NotFound(out, in)
		}
	})
	return mux
}

func answer(out http.ResponseWriter, value any, err error) {
	if err != nil {
		http.Error(out, err.Error(), http.StatusBadRequest)
		return
	}
	out.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(out).Encode(value)
}

// apply makes the parts those of the order and of what lab.json says now.
func (d *daemon) apply(o order) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	w, err := world.Open(d.w.Dir)
	if err != nil {
		return err
	}
	if o.Worker == "" {
		o.Worker = d.worker
	}
	d.worker = o.Worker
	parts, err := partsOf(w, o, d.log)
	if err != nil {
		return err
	}
	d.supervisor.Apply(parts)
	return nil
}

// socketPath is the control socket of a state directory. The kernel allows 107
// bytes: a longer path has a short name for it elsewhere.
func socketPath(dir string) string {
	if path := filepath.Join(dir, "lab.sock"); len(path) <= 107 {
		return path
	}
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(os.TempDir(), fmt.Sprintf("relaypki-lab-%x.sock", sum[:8]))
}

// process is a process and not another that got its number later.
type process struct {
	PID int `json:"pid"`
	// Start is when it started, in clock ticks since boot; Boot names the boot.
	Start string `json:"start"`
	Boot  string `json:"boot"`
}

// identify reads what tells a process from all others.
func identify(pid int) (process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	// The second field is the name in brackets, which may contain anything;
	// the start time is the 20th after it.
	after := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
	fields := strings.Fields(after)
	if len(fields) < 20 {
		return process{}, fmt.Errorf("/proc/%d/stat: too short", pid)
	}
	if fields[0] == "Z" {
		return process{}, fmt.Errorf("process %d has ended", pid)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return process{}, err
	}
	return process{PID: pid, Start: fields[19], Boot: strings.TrimSpace(string(boot))}, nil
}

// record is what the supervisor writes about itself.
type record struct {
	process
	// Program is the digest of the file that it runs.
	Program string `json:"program"`
}

// running is the supervisor of a state directory; ok is false if there is none.
func running(w *world.World) (r record, ok bool) {
	data, err := os.ReadFile(w.Path("lab.pid"))
	if err != nil || json.Unmarshal(data, &r) != nil {
		return record{}, false
	}
	now, err := identify(r.PID)
	return r, err == nil && now == r.process
}

// controller speaks to the supervisor.
type controller struct{ http *http.Client }

func control(w *world.World) controller {
	var dialer net.Dialer
	return controller{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socketPath(w.Dir))
		},
		DisableKeepAlives: true,
	}}}
}

func (c controller) status(ctx context.Context) (all []supervise.Status, err error) {
	return all, c.call(ctx, http.MethodGet, "/status", nil, &all)
}

func (c controller) apply(ctx context.Context, o order) error {
	return c.call(ctx, http.MethodPost, "/apply", o, nil)
}

func (c controller) part(ctx context.Context, name, action string) error {
	return c.call(ctx, http.MethodPost, "/parts/"+name+"/"+action, nil, nil)
}

func (c controller) call(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, strings.NewReader(string(body)))
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return fmt.Errorf("the lab's supervisor does not answer: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		var message [4096]byte
		n, _ := response.Body.Read(message[:])
		return errors.New(strings.TrimSpace(string(message[:n])))
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(out)
}

// waitGone waits until a process has ended.
func waitGone(ctx context.Context, p process) error {
	for {
		if now, err := identify(p.PID); err != nil || now != p {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("process %d has not ended: %w", p.PID, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
