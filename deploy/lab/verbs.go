package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/relaypki/relaypki/deploy/lab/internal/programs"
	"github.com/relaypki/relaypki/deploy/lab/internal/supervise"
	"github.com/relaypki/relaypki/deploy/lab/internal/world"
)

func (l *lab) downCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Stop the lab; its state stays",
		Long: `Stop the lab; its state stays for the next "lab up".

Only the supervisor recorded in the state directory is signalled, after checking
that the process is that one; it stops the parts it started.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := l.world()
			if err != nil {
				return err
			}
			return down(cmd.Context(), w)
		},
	}
}

// down stops the lab's supervisor, which stops everything else.
func down(ctx context.Context, w *world.World) error {
	supervisor, ok := running(w)
	if !ok {
		fmt.Printf("no lab is running in %s\n", w.Dir)
		return nil
	}
	began := time.Now()
	if err := syscall.Kill(supervisor.PID, syscall.SIGTERM); err != nil {
		return fmt.Errorf("supervisor (process %d): %w", supervisor.PID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	if err := waitGone(ctx, supervisor.process); err != nil {
		return fmt.Errorf("%w; see %s", err, w.Log("lab"))
	}
	fmt.Printf("lab stopped after %s; its state is kept in %s\n", elapsed(time.Since(began)), w.Dir)
	return nil
}

func (l *lab) statusCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show every part; exit code 1 unless all are ready",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := l.world()
			if err != nil {
				return err
			}
			if _, ok := running(w); !ok {
				return fmt.Errorf("no lab is running in %s", w.Dir)
			}
			all, err := control(w).status(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				out := json.NewEncoder(os.Stdout)
				out.SetIndent("", "  ")
				if err := out.Encode(all); err != nil {
					return err
				}
			} else {
				table(all)
			}
			if n := len(unready(all)); n > 0 {
				return fmt.Errorf("%d of %d parts not ready", n, len(all))
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json, or empty for a table")
	return cmd
}

func table(all []supervise.Status) {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "PART\tSTATE\tFOR\tPID\tRESTARTS\t")
	var reasons []string
	for _, p := range all {
		pid := ""
		if p.PID != 0 {
			pid = fmt.Sprint(p.PID)
		}
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%d\t\n", p.Name, p.State, elapsed(time.Since(p.Since)), pid, p.Restarts)
		switch {
		case p.Message != "":
			reasons = append(reasons, p.Name+": "+p.Message)
		case p.LastFailure != "":
			reasons = append(reasons, p.Name+" failed before: "+p.LastFailure)
		}
	}
	_ = out.Flush()
	for _, reason := range reasons {
		fmt.Println("\n" + reason)
	}
}

func (l *lab) partCommand(action, short string) *cobra.Command {
	return &cobra.Command{
		Use:   action + " PART...",
		Short: short,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			w, err := l.world()
			if err != nil {
				return err
			}
			if _, ok := running(w); !ok {
				return fmt.Errorf("no lab is running in %s", w.Dir)
			}
			for _, name := range names {
				if err := control(w).part(cmd.Context(), name, action); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (l *lab) stopCommand() *cobra.Command {
	return l.partCommand("stop", "Stop parts until `lab start` or `lab up`")
}

func (l *lab) startCommand() *cobra.Command {
	return l.partCommand("start", "Start parts that were stopped")
}

func (l *lab) killCommand() *cobra.Command {
	return l.partCommand("kill", "Kill the processes of parts (SIGKILL); the supervisor restarts them")
}

func (l *lab) envCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "env",
		Short:   "Print the shell variables of the lab",
		Example: `  eval "$(lab env)"`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			w, err := l.world()
			if err != nil {
				return err
			}
			data, err := os.ReadFile(w.Path("env"))
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s is not there: `lab up` writes it", w.Path("env"))
			}
			if err != nil {
				return err
			}
			_, err = os.Stdout.Write(data)
			return err
		},
	}
}

func (l *lab) cleanCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "clean",
		Short: "Stop the lab and forget its state; what was built stays in the cache",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := l.world()
			if err != nil {
				return err
			}
			if _, ok := running(w); ok {
				if err := down(cmd.Context(), w); err != nil {
					return err
				}
			}
			if _, err := os.Stat(w.Path("lab.json")); errors.Is(err, fs.ErrNotExist) {
				fmt.Printf("no lab is in %s\n", w.Dir)
				return nil
			}
			shop, err := openCache()
			if err != nil {
				return err
			}
			if err := w.Release(portRegistry(shop)); err != nil {
				return err
			}
			if err := os.RemoveAll(w.Dir); err != nil {
				return err
			}
			fmt.Printf("forgot the lab in %s\n", w.Dir)
			return nil
		},
	}
}

func openCache() (*programs.Shop, error) {
	repo, err := repository()
	if err != nil {
		return nil, err
	}
	return programs.Open(repo)
}

func (l *lab) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Say what is there, what would be built and what that costs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := l.world()
			if err != nil {
				return err
			}
			return doctor(cmd.Context(), w)
		},
	}
}

// doctor prints findings; it fails if the lab could not come up here.
func doctor(ctx context.Context, w *world.World) error {
	shop, err := openCache()
	if err != nil {
		return err
	}
	var problems []string
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(out, "go\t%s\n", shop.GoVersion)
	fmt.Fprintf(out, "git\t%s\n", firstLine("git", "--version"))
	fmt.Fprintf(out, "openssl\t%s\n", firstLine("openssl", "version"))
	fmt.Fprintf(out, "cache\t%s\n", shop.Cache)
	state := "not running"
	if p, ok := running(w); ok {
		state = fmt.Sprintf("running, supervisor is process %d", p.PID)
	}
	fmt.Fprintf(out, "state\t%s (%s)\n", w.Dir, state)

	needed := map[string]bool{}
	fmt.Fprintln(out, "\nTOOL\tFROM\t\t")
	for _, tool := range programs.Tools {
		f, err := shop.Look(ctx, tool)
		switch {
		case err != nil:
			problems = append(problems, err.Error())
			continue
		case f.Path == "":
			needed[tool.Program] = true
			fmt.Fprintf(out, "%s\tto be built: %s\t%s\n", tool.Name, tool.Program, f.Refused)
		case f.Source == "PATH":
			fmt.Fprintf(out, "%s\tPATH: %s\t%s\n", tool.Name, f.Path, f.Version)
		case f.Source == "variable":
			fmt.Fprintf(out, "%s\tvariable: %s\t\n", tool.Name, f.Path)
		default:
			fmt.Fprintf(out, "%s\tcache\t%s\n", tool.Name, f.Refused)
		}
	}
	seconds, later, mb := 0, 0, 0
	for _, p := range programs.Table {
		if !needed[p.Name] {
			continue
		}
		mb += p.MB
		if p.Later {
			later += p.Seconds
		} else {
			seconds += p.Seconds
		}
	}
	if mb == 0 {
		fmt.Fprintln(out, "\nbuild\tnothing to do")
	} else {
		fmt.Fprintf(out, "\nbuild\tabout %d min on 2 cores before the lab is up, %d min in the background after, less if Go's build cache has some of it\n", (seconds+59)/60, (later+59)/60)
		fmt.Fprintf(out, "\t%d MB of programs, and cold some 6 GB of Go module and build cache; 3 GB of memory to link\n", mb)
	}
	disk, memory := freeDisk(shop.Cache), available()
	fmt.Fprintf(out, "disk\t%.1f GB free for the cache\n", disk)
	clusters := max(len(w.Workloads), 2) + 1
	// 400 MiB a control plane with its Pods, 180 Vault, 190 Temporal, the worker.
	want := (float64(clusters)*450 + 600) / 1024
	fmt.Fprintf(out, "memory\t%.1f GB available; the lab with %d clusters takes about %.1f\n", memory, clusters, want)
	if err := out.Flush(); err != nil {
		return err
	}
	if mb > 0 && disk < 8 {
		problems = append(problems, fmt.Sprintf("%.1f GB of disk are too few to build: 8 are needed; RELAYPKI_LAB_CACHE, GOCACHE and GOMODCACHE choose other places", disk))
	}
	if _, up := running(w); !up && memory < want {
		problems = append(problems, fmt.Sprintf("%.1f GB of memory are too few", memory))
	}
	if len(problems) > 0 {
		return errors.New(strings.Join(problems, "\n"))
	}
	return nil
}
