package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

const meshName = "bench"

// spec is the mesh of a measurement. Gloo and cert-manager are left to others
// unless install says so; the identity token is no part of the guide's commands.
// Its rotations wait for nobody, and its agents, as the stand-in's do, read
// changed Secrets by themselves.
func (b *bench) spec(all []workload, install bool) mesh.Spec {
	s := mesh.Spec{
		Mesh:        meshName,
		CertManager: mesh.CertManager{Install: mesh.InstallNever},
		Rollout:     mesh.Rollout{Parallelism: b.parallelism},
		Gloo:        mesh.Gloo{Install: &install, IdentityToken: mesh.IdentityToken{Mode: mesh.TokenNone}},
		Rotation:    mesh.Rotation{Approval: mesh.ApprovalNone, Snapshot: mesh.SnapshotNone, Soak: &mesh.Duration{}},
	}
	if install {
		s.CertManager.Install = mesh.InstallAuto
	} else {
		s.Gloo.RelayAddress = "127.0.0.1:9900"
	}
	for _, w := range all {
		s.Workloads = append(s.Workloads, mesh.Workload{Name: w.name, Namespace: w.name, Agent: mesh.Agent{Reload: mesh.ReloadHot}})
	}
	return s
}

// workerProcess is a real worker.
type workerProcess struct {
	cmd *exec.Cmd
}

// startWorker starts a worker program with the lab's environment and a place's
// site file, and returns when it polls.
func (b *bench) startWorker(ctx context.Context, program string, p *place) (*workerProcess, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	listen := listener.Addr().String()
	listener.Close()
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(),
		"TEMPORAL_ADDRESS="+b.env["TEMPORAL_ADDRESS"], "TEMPORAL_NAMESPACE="+b.env["TEMPORAL_NAMESPACE"],
		"RELAYPKI_SITE="+p.siteFile, "RELAYPKI_LISTEN="+listen, "RELAYPKI_LOG_LEVEL=warn")
	cmd.Stdout, cmd.Stderr = b.log, b.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	w := &workerProcess{cmd: cmd}
	for began := time.Now(); ; {
		if answer, err := http.Get("http://" + listen + "/readyz"); err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return w, nil
			}
		}
		if time.Since(began) > 30*time.Second || ctx.Err() != nil {
			_ = w.stop()
			return nil, fmt.Errorf("%s does not poll; see %s", filepath.Base(program), b.log.Name())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// peak is the most memory that the process has held, in bytes.
func (w *workerProcess) peak() (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", w.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("the process does not say how much memory it has held")
}

// stop ends the process. What it was doing is over, so there is nothing to wait for.
func (w *workerProcess) stop() error {
	_ = w.cmd.Process.Kill()
	var exit *exec.ExitError
	if err := w.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}

// ours is one SetupMesh.
type ours struct {
	histories
	// total is until its end; the work that is compared ends with the last cluster.
	total time.Duration
	peak  int64
}

// setup runs SetupMesh on a fresh worker. Unless whole, it is cancelled as soon
// as everything is written and the verification begins: without Gloo there is
// nothing to verify.
func (b *bench) setup(ctx context.Context, p *place, s mesh.Spec, whole bool) (ours, error) {
	var o ours
	w, err := b.startWorker(ctx, filepath.Join(b.repo, "bin", "relaypki-worker"), p)
	if err != nil {
		return o, err
	}
	defer w.stop()
	began := time.Now()
	run, err := b.start(ctx, procedure.SetupMesh, procedure.SetupInput{Spec: s})
	if err != nil {
		return o, err
	}
	first := run.GetRunID() // which becomes the last one's, if it continues as new
	if !whole {
		if err := b.follow(ctx, run, "its verification", verifies); err != nil {
			return o, err
		}
		if err := b.temporal.CancelWorkflow(ctx, run.GetID(), ""); err != nil {
			return o, err
		}
	}
	err = run.Get(ctx, nil)
	o.total = time.Since(began)
	if whole && err != nil {
		return o, fmt.Errorf("SetupMesh: %w", err)
	}
	if o.peak, err = w.peak(); err != nil {
		return o, err
	}
	o.histories, err = b.read(ctx, run.GetID(), first)
	return o, err
}

func (b *bench) start(ctx context.Context, workflow string, input any) (client.WorkflowRun, error) {
	return b.temporal.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID: fmt.Sprintf("bench-%d", time.Now().UnixNano()), TaskQueue: procedure.TaskQueue,
	}, workflow, input)
}

// script runs one of the scripts with the guide's commands.
func (b *bench) script(ctx context.Context, p *place, name string, all []workload) (time.Duration, error) {
	var args []string
	for _, w := range all {
		args = append(args, w.name+"="+w.context)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(b.repo, "test", "bench", name), args...)
	cmd.Env = os.Environ()
	for name, value := range b.env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Env = append(cmd.Env, "KUBECONFIG="+p.kubeconfig, "VAULT_ADDR="+p.vault, "PATH="+b.path("bin")+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = b.log, b.log
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%s: %w; see %s", name, err, b.log.Name())
	}
	return time.Since(began), nil
}
