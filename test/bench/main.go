// Command bench measures how long a setup takes and what it costs, on a lab of
// its own, and prints a table. `make bench` runs it; nothing asserts its figures,
// which depend on the machine.
//
// For every number of clusters, next door and far away, three ways to the same
// end are measured in one run on the same servers, cleaned in between: a script
// of the guide's own commands, the floor (the objects that a setup leaves,
// written all at once and waited for), and SetupMesh by the real worker. Then looks
// at what stands, and rotations, by hand and as workflows; those of the root, with
// emergencies.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type options struct {
	lab         string
	out         string
	clusters    []int
	latency     time.Duration
	parts       []string
	many        int
	parallelism int
}

// parts of the measurement, in order.
var parts = []string{"compare", "rerun", "look", "rotate", "root", "many"}

func main() {
	var o options
	clusters := flag.String("clusters", "2,10,50", "numbers of workload clusters to compare and to rotate")
	only := flag.String("only", strings.Join(parts, ","), "parts to measure")
	flag.StringVar(&o.lab, "lab", "", "state directory of a lab to keep between runs (default: one that is forgotten in the end)")
	flag.StringVar(&o.out, "out", "", "markdown file that has a place for the tables")
	flag.DurationVar(&o.latency, "latency", 50*time.Millisecond, "round trip to servers that are far away")
	flag.IntVar(&o.parallelism, "parallelism", 0, "rollout.parallelism of the meshes (default: the input's)")
	flag.IntVar(&o.many, "many", 1000, "clusters of the run whose activities only wait")
	flag.Parse()
	for _, text := range strings.Split(*clusters, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			fmt.Fprintf(os.Stderr, "bench: -clusters: %q is no number of clusters\n", text)
			os.Exit(2)
		}
		o.clusters = append(o.clusters, n)
	}
	o.parts = strings.Split(*only, ",")
	for _, part := range o.parts {
		if !slices.Contains(parts, part) {
			fmt.Fprintf(os.Stderr, "bench: -only: there is no part %q; there are %s\n", part, strings.Join(parts, ", "))
			os.Exit(2)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func measure(ctx context.Context, o options) (err error) {
	repo, err := os.Getwd()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(repo, "bin", "relaypki-worker")); err != nil {
		return fmt.Errorf("%w; `make bench` builds it", err)
	}
	b := &bench{repo: repo, dir: o.lab, parallelism: o.parallelism}
	if b.dir == "" {
		if b.dir, err = os.MkdirTemp("", "relaypki-bench-"); err != nil {
			return err
		}
		defer func() {
			if cleanErr := b.forget(); err == nil {
				err = cleanErr
			}
		}()
	}
	if err := b.up(ctx); err != nil {
		return err
	}
	defer b.close()
	var t tables
	if slices.Contains(o.parts, "compare") {
		if t.compared, err = b.compare(ctx, o.clusters, o.latency); err != nil {
			return err
		}
	}
	if slices.Contains(o.parts, "rerun") {
		if t.reruns, err = b.reruns(ctx, slices.Max(o.clusters), o.latency); err != nil {
			return err
		}
	}
	if slices.Contains(o.parts, "look") {
		if t.looked, err = b.looks(ctx, o.clusters); err != nil {
			return err
		}
	}
	if slices.Contains(o.parts, "rotate") {
		if t.rotated, err = b.rotations(ctx, o.clusters, o.latency); err != nil {
			return err
		}
	}
	var failed error
	if slices.Contains(o.parts, "root") {
		failed = b.roots(ctx, o.clusters, func(have []rooted) error {
			t.roots = have
			return t.write(o) // whatever becomes of the others
		})
	}
	if slices.Contains(o.parts, "many") && ctx.Err() == nil {
		if t.many, err = b.many(ctx, o.many); err != nil {
			return err
		}
	}
	fmt.Print("\n" + measuredOn() + joined(t.markdown(o.latency)))
	return errors.Join(failed, t.write(o))
}

// write puts what was measured so far into the file that has a place for it.
func (t tables) write(o options) error {
	if o.out == "" {
		return nil
	}
	data, err := os.ReadFile(o.out)
	if err != nil {
		return err
	}
	text, err := put(string(data), t.markdown(o.latency))
	if err == nil && len(t.roots) > 0 {
		var short strings.Builder
		t.rootsInShort(&short)
		text, err = between(text, beginRootLine, endRootLine, func(string) string { return short.String() })
	}
	if err != nil {
		return fmt.Errorf("%s: %w", o.out, err)
	}
	return os.WriteFile(o.out, []byte(text), 0o644)
}

// The figures are between these lines of a file.
const beginLine, endLine = "<!-- bench: begin -->", "<!-- bench: end -->"

// What is in short of the root is between these.
const beginRootLine, endRootLine = "<!-- bench, the root in short: begin -->", "<!-- bench, the root in short: end -->"

// partLine begins the figures of one part.
func partLine(part string) string { return "<!-- bench: " + part + " -->\n" }

// put puts the figures of parts into the place of those that a text has of them,
// and leaves it those of the others.
func put(text string, texts map[string]string) (string, error) {
	return between(text, beginLine, endLine, func(have string) string {
		all := maps.Clone(texts)
		for _, part := range parts {
			_, figures, found := strings.Cut(have, partLine(part))
			if _, measured := texts[part]; measured || !found {
				continue
			}
			for _, next := range parts {
				figures, _, _ = strings.Cut(figures, partLine(next))
			}
			all[part] = figures
		}
		return measuredOn() + joined(all)
	})
}

// between changes what a text has between two lines.
func between(text, begin, end string, change func(have string) string) (string, error) {
	before, rest, begins := strings.Cut(text, begin+"\n")
	have, after, ends := strings.Cut(rest, end)
	if !begins || !ends {
		return "", fmt.Errorf("there are no lines %s and %s, between which the figures go", begin, end)
	}
	return before + begin + "\n" + change(have) + end + after, nil
}

// joined is the figures of all parts, in their order.
func joined(texts map[string]string) string {
	var b strings.Builder
	for _, part := range parts {
		if text, ok := texts[part]; ok {
			b.WriteString(partLine(part) + text)
		}
	}
	return b.String()
}

func measuredOn() string { return fmt.Sprintf("Measured on %s by `make bench`.\n", machine()) }

// say tells how far the measurement is; the tables alone go to standard output.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
