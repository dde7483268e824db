package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/relaypki/relaypki/deploy/lab/internal/programs"
	"github.com/relaypki/relaypki/deploy/lab/internal/supervise"
	"github.com/relaypki/relaypki/deploy/lab/internal/world"
)

// upFlags are what a person may choose; unset ones leave an existing lab as it is.
type upFlags struct {
	clusters   string
	worker     string
	cli        bool
	lbDelay    time.Duration
	lbHostname string
	wait       time.Duration
}

func (l *lab) upCommand() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Build what is missing, start the lab, wait until all of it is usable",
		Long: `Build what is missing, start the lab, wait until all of it is usable.

The management cluster is always there and is called mgmt. With the lab already
up this changes nothing, or adds the clusters that are new. State survives
"lab down"; "lab clean" forgets it.

A program on PATH in a fitting version is used instead of building it, and so is
one named by a variable: RELAYPKI_LAB_VAULT, RELAYPKI_LAB_KUBE_APISERVER, ...`,
		Example: `  lab up --clusters "cluster1 cluster2"
  lab up --worker bin/relaypki-worker
  . .lab/env && kubectl get nodes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return l.up(cmd, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.clusters, "clusters", "", `workload clusters, names separated by spaces (default for a new lab: "cluster1 cluster2")`)
	flags.StringVar(&f.worker, "worker", "", "run this program under the supervisor, with the environment in .lab/worker/env")
	flags.BoolVar(&f.cli, "cli", true, "build the temporal CLI in the background once all is up")
	flags.DurationVar(&f.lbDelay, "lb-delay", 2*time.Second, "time until a LoadBalancer Service gets its address")
	flags.StringVar(&f.lbHostname, "lb-hostname", "", "clusters whose LoadBalancer Services get a host name instead of an IP")
	flags.DurationVar(&f.wait, "wait", 3*time.Minute, "how long to wait for the parts, once everything is built")
	return cmd
}

func (l *lab) up(cmd *cobra.Command, f upFlags) error {
	ctx := cmd.Context()
	began := time.Now()
	repo, err := repository()
	if err != nil {
		return err
	}
	shop, err := programs.Open(repo)
	if err != nil {
		return err
	}
	w, err := l.world()
	if err != nil {
		return err
	}
	unlock, err := world.Lock(w.Path("up.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if w, err = l.remember(cmd, f, shop); err != nil {
		return err
	}
	show := newScreen(os.Stdout)
	o, err := prepare(ctx, w, shop, show, f.cli)
	if err != nil {
		return err
	}
	if f.worker != "" {
		if o.Worker, err = filepath.Abs(f.worker); err != nil {
			return err
		}
		if _, err := exec.LookPath(o.Worker); err != nil {
			return fmt.Errorf("worker: %w", err)
		}
	}
	if err := ensureSupervisor(ctx, w, show); err != nil {
		return err
	}
	if err := control(w).apply(ctx, o); err != nil {
		return err
	}
	if err := await(ctx, w, show, f.wait); err != nil {
		return err
	}
	show.line("lab is up after %s: %s", elapsed(time.Since(began)), w.Dir)
	return addresses(w, o)
}

// remember takes what the flags say into the lab's memory.
func (l *lab) remember(cmd *cobra.Command, f upFlags, shop *programs.Shop) (*world.World, error) {
	w, err := l.world()
	if err != nil {
		return nil, err
	}
	names := strings.Fields(f.clusters)
	if !cmd.Flags().Changed("clusters") && len(w.Workloads) == 0 {
		names = []string{"cluster1", "cluster2"}
	}
	if err := w.Add(names); err != nil {
		return nil, err
	}
	if cmd.Flags().Changed("lb-delay") {
		w.LBDelay = f.lbDelay
	}
	if cmd.Flags().Changed("lb-hostname") {
		w.LBHostname = strings.Fields(f.lbHostname)
		for _, name := range w.LBHostname {
			if !slices.Contains(w.Clusters(), name) {
				return nil, fmt.Errorf("--lb-hostname: no cluster is called %q", name)
			}
		}
	}
	if err := w.Assign(portRegistry(shop)); err != nil {
		return nil, err
	}
	return w, w.Save()
}

// prepare finds or builds every program, and puts the charts in place.
func prepare(ctx context.Context, w *world.World, shop *programs.Shop, show *screen, cli bool) (order, error) {
	o := order{Repo: shop.Repo, Tools: map[string][]string{}}
	found, later, err := obtain(ctx, shop, show)
	if err != nil {
		return o, err
	}
	if cli {
		o.Later = later
	}
	for _, f := range found {
		if f.Path == "" {
			continue
		}
		o.Tools[f.Tool.Name] = f.Command()
		if slices.Contains(forPeople, f.Tool.Name) {
			if err := link(w, f.Tool.Name, f.Path); err != nil {
				return o, err
			}
		}
	}
	return o, copyCharts(ctx, w, shop)
}

// obtain finds every tool, builds the programs that are missing, and names
// those that can be built later; a tool that comes later has no path yet.
func obtain(ctx context.Context, shop *programs.Shop, show *screen) (found []programs.Found, later []string, err error) {
	missing := map[string][]string{} // program to the tools it is needed for
	for _, tool := range programs.Tools {
		f, err := shop.Look(ctx, tool)
		if err != nil {
			return nil, nil, err
		}
		if f.Path == "" {
			missing[tool.Program] = append(missing[tool.Program], tool.Name)
		}
		found = append(found, f)
	}
	for _, program := range programs.Table {
		if missing[program.Name] == nil {
			continue
		}
		if program.Later {
			later = append(later, program.Name)
			continue
		}
		doing, end := show.step(fmt.Sprintf("build %s (for %s; not in the cache; cold about %d min)", program.Name,
			strings.Join(missing[program.Name], ", "), minutes(program)))
		path, err := shop.Build(ctx, program, doing)
		end(err)
		if err != nil {
			return nil, nil, err
		}
		for i := range found {
			if found[i].Tool.Program == program.Name && found[i].Path == "" {
				found[i].Path = path
			}
		}
	}
	return found, later, nil
}

// forPeople are the tools in the lab's bin directory. lab-kube is kubectl when
// called by that name.
var forPeople = []string{"kubectl", "vault", "temporal"}

// ensureSupervisor starts the supervisor unless it runs.
func ensureSupervisor(ctx context.Context, w *world.World, show *screen) error {
	supervisor, ok := running(w)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if !ok {
		if err := startSupervisor(w, self); err != nil {
			return err
		}
	} else if digest(self) != supervisor.Program {
		show.line("  note: the lab runs under another build of this command; `lab down` and `lab up` change over")
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		_, err := control(w).status(ctx)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w; last lines of %s:\n%s", err, w.Log("lab"), supervise.Tail(w.Log("lab"), 12))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// startSupervisor starts this very program again, in a session of its own, so
// that it outlives the terminal.
func startSupervisor(w *world.World, self string) error {
	if err := os.MkdirAll(w.Path("logs"), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(w.Log("lab"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, "supervise", "--dir", w.Dir)
	cmd.Dir = w.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the supervisor: %w", err)
	}
	return cmd.Process.Release()
}

// A part that failed this often in a row will not come up by itself.
const enoughFailures = 3

// await waits until every part is ready.
func await(ctx context.Context, w *world.World, show *screen, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	b := newBoard(show)
	for {
		all, err := control(w).status(ctx)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("%w; last lines of %s:\n%s", err, w.Log("lab"), supervise.Tail(w.Log("lab"), 12))
		}
		if err == nil {
			b.show(all)
			missing := unready(all)
			if len(missing) == 0 {
				show.clear()
				return nil
			}
			for _, p := range missing {
				if p.Failures >= enoughFailures {
					return fmt.Errorf("%s does not come up (tried %d times): %s\nThe rest of the lab keeps running: `lab status`, `lab down`", p.Name, p.Failures, p.Message)
				}
			}
		}
		select {
		case <-ctx.Done():
			lines := []string{"the lab is not usable yet: " + context.Cause(ctx).Error()}
			for _, p := range unready(all) {
				lines = append(lines, fmt.Sprintf("%s is %s: %s", p.Name, p.State, p.Message))
			}
			return errors.New(strings.Join(lines, "\n  "))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// unready are the parts that are to be waited for.
func unready(all []supervise.Status) []supervise.Status {
	return slices.DeleteFunc(slices.Clone(all), func(p supervise.Status) bool {
		return p.Background || p.State == supervise.Ready
	})
}

// addresses prints where everything is.
func addresses(w *world.World, o order) error {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(out, "\n  Temporal UI\thttp://%s\n", w.Addr("temporal-ui"))
	fmt.Fprintf(out, "  Temporal\t%s\tnamespace %s\n", w.Addr("temporal"), temporalNamespace)
	fmt.Fprintf(out, "  Vault\t%s\n", w.URL("vault"))
	for _, cluster := range w.Clusters() {
		fmt.Fprintf(out, "  %s\t%s\tload balancers on %s\n", cluster, w.URL(cluster+"-apiserver"), w.Addresses[cluster])
	}
	env := w.Path("env")
	if here, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(here, env); err == nil && !strings.HasPrefix(rel, "..") {
			env = rel
		}
	}
	fmt.Fprintf(out, "\n  . %s\tmakes kubectl, vault and temporal of this shell speak to the lab\n", env)
	for _, name := range o.Later {
		program, _ := programs.Find(name)
		fmt.Fprintf(out, "  %s\tis being built in the background (cold about %d min), for you to use\n", name, minutes(program))
	}
	return out.Flush()
}

// minutes is what a cold build takes on two cores, rounded up.
func minutes(p programs.Program) int { return (p.Seconds + 59) / 60 }
