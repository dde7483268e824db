// Command lab runs a real world on one machine, without containers: Temporal
// with its UI, Vault, and one Kubernetes control plane per cluster with
// cert-manager and the relay stand-in, all on loopback addresses. It is what
// the demo and the end-to-end tests use, and what a newcomer tries first.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/relaypki/relaypki/deploy/lab/internal/programs"
	"github.com/relaypki/relaypki/deploy/lab/internal/world"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// lab is what every verb starts from.
type lab struct {
	dir string // the --dir flag
}

func command() *cobra.Command {
	var l lab
	root := &cobra.Command{
		Use:           "lab",
		Short:         "A real mesh world on this machine: Temporal, Vault, Kubernetes control planes, cert-manager",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if runtime.GOOS != "linux" {
				return fmt.Errorf("the lab runs on Linux only (this is %s): its servers live on 127.0.0.0/8 and die with their supervisor, which other systems do not offer; use a Linux machine or VM", runtime.GOOS)
			}
			return nil
		},
	}
	root.PersistentFlags().StringVar(&l.dir, "dir", "", "state directory (default: .lab in the repository)")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(l.upCommand(), l.buildCommand(), l.downCommand(), l.statusCommand(), l.stopCommand(), l.startCommand(),
		l.killCommand(), l.envCommand(), l.cleanCommand(), l.doctorCommand(), l.superviseCommand())
	return root
}

// world opens the lab's memory.
func (l *lab) world() (*world.World, error) {
	dir := l.dir
	if dir == "" {
		repo, err := repository()
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(repo, ".lab")
	}
	return world.Open(dir)
}

const module = "module github.com/relaypki/relaypki"

// repository is the root of the source tree that the working directory is in.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if first, _, _ := strings.Cut(string(data), "\n"); err == nil && strings.TrimSpace(first) == module {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("run this inside the relaypki repository: the lab builds its servers from there")
		}
		dir = filepath.Dir(dir)
	}
}

// portRegistry remembers the ports of all labs of this user.
func portRegistry(s *programs.Shop) string { return filepath.Join(s.Cache, "ports.json") }
