package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// comparison is one number of clusters in one place.
type comparison struct {
	place    *place
	clusters int
	script   time.Duration
	floor    time.Duration
	ours     ours
	// work is the processor time of everything on the machine, by way.
	work map[string]time.Duration
}

// The three ways.
const byScript, byFloor, bySetup = "script", "floor", "SetupMesh"

// compare measures the three ways for every number of clusters, next door and
// far away. A first setup, with Helm and verification, brings cert-manager and
// the samples for the floor.
func (b *bench) compare(ctx context.Context, numbers []int, latency time.Duration) ([]comparison, error) {
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	var all []comparison
	for _, far := range []time.Duration{0, latency} {
		p, err := b.place(far)
		if err != nil {
			return nil, err
		}
		for _, n := range numbers {
			c := comparison{place: p, clusters: n, work: map[string]time.Duration{}}
			for _, way := range []struct {
				name string
				run  func() (time.Duration, error)
			}{
				{byScript, func() (took time.Duration, err error) {
					c.script, err = b.script(ctx, p, "guide.sh", workloads(n))
					return c.script, err
				}},
				{byFloor, func() (took time.Duration, err error) {
					c.floor, err = b.floor(ctx, p, n)
					return c.floor, err
				}},
				{bySetup, func() (took time.Duration, err error) {
					c.ours, err = b.setup(ctx, p, b.spec(workloads(n), false), false)
					return c.ours.compared, err
				}},
			} {
				before, err := processorTime()
				if err != nil {
					return nil, err
				}
				took, err := way.run()
				if err != nil {
					return nil, fmt.Errorf("%s, %d clusters, %s: %w", way.name, n, p, err)
				}
				after, err := processorTime()
				if err != nil {
					return nil, err
				}
				c.work[way.name] = after - before
				say("%-9s %3d clusters, %s: %s, %s of processor time", way.name, n, p, took.Round(time.Millisecond), c.work[way.name].Round(time.Second))
				if err := b.clean(ctx); err != nil {
					return nil, err
				}
			}
			all = append(all, c)
		}
	}
	return all, nil
}

// prepare has the real procedure install cert-manager everywhere, keeps what it
// left for the samples, and cleans the rest.
func (b *bench) prepare(ctx context.Context) error {
	if b.templates != nil {
		return nil
	}
	near := b.places[0]
	if err := b.clean(ctx); err != nil {
		return err
	}
	first, err := b.setup(ctx, near, b.spec(samples(), true), true)
	if err != nil {
		return fmt.Errorf("the first setup: %w", err)
	}
	say("a first setup, with cert-manager, Gloo's stand-in and the verification: %s", first.total.Round(time.Millisecond))
	b.templates = map[string]template{}
	if b.templates[management], err = b.capture(ctx, management, management, "gloo-mesh", false); err != nil {
		return err
	}
	for _, w := range samples() {
		if b.templates[w.context], err = b.capture(ctx, w.name, w.context, w.name, true); err != nil {
			return err
		}
	}
	return b.clean(ctx)
}

// rerun is what a mesh of so many clusters takes with Helm and verification,
// and when all of it is up to date.
type rerun struct {
	clusters int
	place    *place
	gloo     bool
	first    ours // only with Gloo: with Helm and verification
	again    ours
}

// reruns sets a mesh up and runs the same input again: as a whole, from near and
// from far away, and with Gloo left to others. The mesh stays for the rotations.
func (b *bench) reruns(ctx context.Context, n int, latency time.Duration) ([]rerun, error) {
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	near, err := b.place(0)
	if err != nil {
		return nil, err
	}
	far, err := b.place(latency)
	if err != nil {
		return nil, err
	}
	whole, certificates := b.spec(workloads(n), true), b.spec(workloads(n), false)
	first, err := b.setup(ctx, near, whole, true)
	if err != nil {
		return nil, err
	}
	say("SetupMesh %3d clusters with Helm and verification: %s", n, first.total.Round(time.Millisecond))
	var all []rerun
	for _, r := range []rerun{
		{clusters: n, place: near, gloo: true, first: first},
		{clusters: n, place: near},
		{clusters: n, place: far, gloo: true},
	} {
		s := certificates
		if r.gloo {
			s = whole
		}
		// Twice: the first time, the input may be new, or Vault elsewhere.
		for range 2 {
			if r.again, err = b.setup(ctx, r.place, s, true); err != nil {
				return nil, err
			}
			say("again     %3d clusters, %s, Gloo %t: %s", n, r.place, r.gloo, r.again.total.Round(time.Millisecond))
		}
		all = append(all, r)
	}
	b.stands = n
	return all, nil
}

// processorTime is what the machine's processors have worked since it started:
// where they are busy throughout, that is what a measurement has measured.
func processorTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	var user, nice, system, idle, iowait, irq, softirq int64
	if _, err := fmt.Sscanf(string(text), "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &iowait, &irq, &softirq); err != nil {
		return 0, fmt.Errorf("/proc/stat: %w", err)
	}
	// In hundredths of a second, whatever the kernel's own tick (proc(5), USER_HZ).
	return time.Duration(user+nice+system+irq+softirq) * 10 * time.Millisecond, nil
}
