package podhost

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// A crashed container comes back after minBackoff, doubled up to
	// maxBackoff; kubelets take 10 s to 5 min. One that ran for steady starts
	// over.
	minBackoff = time.Second
	maxBackoff = 10 * time.Second
	steady     = 30 * time.Second

	readyPeriod = 100 * time.Millisecond
	// unreadyAfter so many failed probes in a row a container is not ready any more.
	unreadyAfter = 10

	// stopGrace bounds how long processes may take when the lab itself stops.
	stopGrace = 5 * time.Second
)

// hosted is a Pod with a process.
type hosted struct {
	h       *host
	pod     *corev1.Pod // as first seen
	program program
	dir     string

	endOnce sync.Once
	killNow sync.Once
	ending  chan struct{} // closed when the Pod is being deleted
	kill    chan struct{} // closed when its time is over
	grace   time.Duration

	// reporting is held while a status is written, so that a later one is not
	// overtaken by an earlier.
	reporting sync.Mutex

	mu     sync.Mutex
	local  map[int32]int
	ready  bool
	status containerStatus
}

func newHosted(h *host, pod *corev1.Pod, p program) *hosted {
	return &hosted{
		h: h, pod: pod, program: p,
		dir:    filepath.Join(h.StateDir, pod.Namespace+"-"+pod.Name),
		ending: make(chan struct{}),
		kill:   make(chan struct{}),
		status: containerStatus{podIP: podIP(pod.UID), since: metav1.Now()},
	}
}

// end begins the Pod's deletion; the process has grace to end by itself.
func (p *hosted) end(grace time.Duration) {
	p.endOnce.Do(func() {
		p.grace = grace
		close(p.ending)
	})
	if grace == 0 {
		p.killNow.Do(func() { close(p.kill) })
	}
}

// run keeps the Pod's process until the Pod is deleted or ctx ends.
func (p *hosted) run(ctx context.Context) {
	log := p.h.Log.With(zap.String("pod", p.pod.Namespace+"/"+p.pod.Name))
	defer os.RemoveAll(p.dir)
	for _, s := range p.pod.Status.ContainerStatuses {
		if s.Name == p.program.container { // left from an earlier run of the lab
			p.status.restarts = s.RestartCount + 1
		}
	}
	backoff := minBackoff
	for {
		started := time.Now()
		exit, err := p.once(ctx)
		select {
		case <-p.ending:
			p.remove(ctx, log)
			return
		case <-ctx.Done():
			return
		default:
		}
		if time.Since(started) > steady {
			backoff = minBackoff
		}
		if err != nil {
			log.Warn("container does not start", zap.Error(err))
			p.report(ctx, func(s *containerStatus) {
				s.waiting("CreateContainerError", err.Error())
			})
		} else {
			log.Info("container ended", zap.Int32("exitCode", exit.ExitCode))
			p.h.events.Eventf(p.pod, corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s", p.program.container, p.pod.Name)
			p.report(ctx, func(s *containerStatus) {
				s.last = exit
				s.waiting("CrashLoopBackOff", fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", backoff, p.program.container, p.pod.Name, p.pod.Namespace, p.pod.UID))
			})
		}
		select {
		case <-p.ending:
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		if err == nil {
			p.status.restarts++
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// once runs the process from start to end. An error means that it did not start.
func (p *hosted) once(ctx context.Context) (*corev1.ContainerStateTerminated, error) {
	select { // deleted, or the lab ended, while waiting for this start
	case <-p.ending:
		return nil, nil
	case <-ctx.Done():
		return nil, nil
	default:
	}
	local, err := freePorts(p.program.ports)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, err
	}
	credentials, stopRenewing := context.WithCancel(ctx)
	defer stopRenewing()
	kubeconfig, err := p.h.credentials(credentials, p.pod, p.dir)
	if err != nil {
		return nil, err
	}
	r := runtime{
		Config: p.h.Config, container: p.program.containerOf(p.pod), namespace: p.pod.Namespace,
		kubeconfig: kubeconfig, dir: p.dir, terminationLog: filepath.Join(p.dir, "termination-log"), local: local,
	}
	os.Remove(r.terminationLog)
	logs, err := openLog(p.h.logFile(p.pod.Namespace, p.pod.Name))
	if err != nil {
		return nil, err
	}
	defer logs.Close()
	if err := p.h.expose(ctx, p.pod, p.program.container, local); err != nil {
		return nil, err
	}

	if p.program.prepare != nil {
		if err := p.program.prepare(r); err != nil {
			return nil, err
		}
	}
	command := p.program.command(r)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), environment(p.pod, r.container)...)
	cmd.Stdout, cmd.Stderr = logs, logs
	cmd.SysProcAttr = processAttributes()
	cmd.WaitDelay = time.Second // a grandchild that keeps the log open holds nothing up
	started := metav1.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.local = local
	p.mu.Unlock()
	p.h.touch()
	p.report(ctx, func(s *containerStatus) { s.running(started) })

	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }() // how it ended is in ProcessState
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		p.watchReadiness(ctx, exited, "http://"+r.address(p.program.ready)+p.program.path)
	}()
	p.waitProcess(ctx, cmd, exited)
	<-watched
	p.mu.Lock()
	p.local = nil
	p.mu.Unlock()
	p.setReady(false)
	return p.terminated(cmd, started, r.terminationLog, logs), nil
}

// waitProcess returns when the process has ended, and ends it when the Pod is
// deleted or the lab stops.
func (p *hosted) waitProcess(ctx context.Context, cmd *exec.Cmd, exited <-chan struct{}) {
	grace := stopGrace
	select {
	case <-exited:
		return
	case <-p.ending:
		grace = p.grace
	case <-ctx.Done():
	}
	p.setReady(false)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-exited:
		return
	case <-p.kill:
	case <-time.After(grace):
	}
	_ = cmd.Process.Kill()
	<-exited
}

// watchReadiness asks the process whether it is ready, until it has ended or
// is about to.
func (p *hosted) watchReadiness(ctx context.Context, exited <-chan struct{}, url string) {
	client := &http.Client{Timeout: time.Second}
	ticker := time.NewTicker(readyPeriod)
	defer ticker.Stop()
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-exited:
			return
		case <-p.ending:
			return
		case <-ticker.C:
		}
		ready := false
		if response, err := client.Get(url); err == nil {
			response.Body.Close()
			ready = response.StatusCode == http.StatusOK
		}
		if ready {
			failures = 0
		} else if failures++; failures < unreadyAfter {
			continue
		}
		if p.setReady(ready) {
			p.report(ctx, func(s *containerStatus) { s.setReady(ready) })
			ticker.Reset(map[bool]time.Duration{false: readyPeriod, true: 5 * readyPeriod}[ready])
		}
	}
}

func (p *hosted) setReady(ready bool) (changed bool) {
	p.mu.Lock()
	changed = p.ready != ready
	p.ready = ready
	p.mu.Unlock()
	if changed {
		p.h.touch()
	}
	return changed
}

// terminated describes the end of a process as a kubelet does with
// terminationMessagePolicy FallbackToLogsOnError.
func (p *hosted) terminated(cmd *exec.Cmd, started metav1.Time, terminationLog string, logs *logWriter) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{Reason: "Error", StartedAt: started, FinishedAt: metav1.Now()}
	code := cmd.ProcessState.ExitCode()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		t.Signal = int32(status.Signal())
		code = 128 + int(status.Signal())
	}
	t.ExitCode = int32(code)
	if code == 0 {
		t.Reason = "Completed"
	}
	message, err := os.ReadFile(terminationLog)
	if err != nil || len(bytes.TrimSpace(message)) == 0 {
		if code != 0 {
			t.Message = logs.tail()
		}
		return t
	}
	t.Message = string(message)
	return t
}

// remove takes the Pod's object away once its process has ended.
func (p *hosted) remove(ctx context.Context, log *zap.Logger) {
	for {
		err := p.h.k.CoreV1().Pods(p.pod.Namespace).Delete(ctx, p.pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: new(int64),
			Preconditions:      &metav1.Preconditions{UID: &p.pod.UID},
		})
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			log.Info("pod ended")
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// restate writes the Pod's status again where somebody else has written that it is
// not ready, as the node's controller does of a node that it has not heard of for a
// while. A kubelet does so too.
func (p *hosted) restate(ctx context.Context, seen *corev1.Pod) {
	p.mu.Lock()
	denied := p.status.deniedBy(seen)
	p.mu.Unlock()
	if denied && ctx.Err() == nil {
		p.h.wg.Go(func() { p.report(ctx, func(*containerStatus) {}) })
	}
}

// report changes what is known of the container and writes the Pod's status,
// trying again while the API server does not answer.
func (p *hosted) report(ctx context.Context, change func(*containerStatus)) {
	p.reporting.Lock()
	defer p.reporting.Unlock()
	p.mu.Lock()
	change(&p.status)
	status := p.status.pod(p.pod, p.program.container)
	p.mu.Unlock()
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.pod.UID},
		"status":   status,
	})
	if err != nil {
		p.h.Log.Error("pod status", zap.Error(err))
		return
	}
	for ctx.Err() == nil {
		_, err := p.h.k.CoreV1().Pods(p.pod.Namespace).Patch(ctx, p.pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return
		}
		p.h.Log.Warn("pod status not written yet", zap.String("pod", p.pod.Name), zap.Error(err))
		select {
		case <-ctx.Done():
		case <-p.ending:
			return
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// backend is the address that stands for a port of the Pod while it is ready,
// or with notReady while it is there.
func (p *hosted) backend(port int32, notReady bool) (address string, ok bool) {
	select {
	case <-p.ending:
		return "", false
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	local, ok := p.local[port]
	if !ok || !p.ready && !notReady {
		return "", false
	}
	return fmt.Sprintf("127.0.0.1:%d", local), true
}

// environment is the container's, as far as it is written out in the Pod, with
// $(NAME) of earlier variables filled in as kubelets do.
func environment(pod *corev1.Pod, c corev1.Container) []string {
	var env []string
	for _, e := range c.Env {
		value := e.Value
		if e.ValueFrom != nil {
			if e.ValueFrom.FieldRef == nil {
				continue
			}
			switch e.ValueFrom.FieldRef.FieldPath {
			case "metadata.namespace":
				value = pod.Namespace
			case "metadata.name":
				value = pod.Name
			case "status.podIP":
				value = podIP(pod.UID)
			case "status.hostIP":
				value = "127.0.0.1"
			default:
				continue
			}
		}
		for _, before := range env {
			name, is, _ := strings.Cut(before, "=")
			value = strings.ReplaceAll(value, "$("+name+")", is)
		}
		env = append(env, e.Name+"="+value)
	}
	return env
}

// logWriter writes lines in the format of the container runtime interface,
// which kwok expects, and remembers the last ones.
type logWriter struct {
	file    *os.File
	partial []byte
	last    []string
}

// tailLines is how much of the log explains why a container ended.
const tailLines = 10

// openLog begins a new log; what was there becomes the previous container's.
func openLog(path string) (*logWriter, error) {
	if err := os.Rename(path, previousLog(path)); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &logWriter{file: f}, nil
}

func previousLog(path string) string { return strings.TrimSuffix(path, ".log") + ".previous.log" }

func (w *logWriter) Write(data []byte) (int, error) {
	w.partial = append(w.partial, data...)
	for {
		line, rest, found := bytes.Cut(w.partial, []byte("\n"))
		if !found {
			return len(data), nil
		}
		w.last = append(w.last, string(line))
		if len(w.last) > tailLines {
			w.last = w.last[1:]
		}
		if _, err := fmt.Fprintf(w.file, "%s stderr F %s\n", time.Now().UTC().Format(time.RFC3339Nano), line); err != nil {
			return 0, err
		}
		w.partial = append([]byte(nil), rest...)
	}
}

// tail is what a kubelet would take from the log: its end, at most 2 KiB.
func (w *logWriter) tail() string {
	text := strings.Join(w.last, "\n")
	if most := 2048; len(text) > most {
		text = text[len(text)-most:]
	}
	return text
}

func (w *logWriter) Close() error { return w.file.Close() }
