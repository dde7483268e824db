package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// tables are everything that was measured.
type tables struct {
	compared []comparison
	reruns   []rerun
	looked   []looked
	rotated  []rotated
	roots    []rooted
	many     *manyRun
}

// Aims, to be read beside the figures.
const (
	aimFloor      = "at most 1.3"
	aimNear       = "at least 2.5"
	aimFar        = "at least 8"
	aimChild      = "under 100"
	aimParent     = "under 12"
	aimRerun      = "under 15 s"
	aimLook       = "50 within 15 s"
	noMeasurement = "-"
)

func (t tables) markdown(latency time.Duration) map[string]string {
	texts := map[string]string{}
	part := func(name string, measured bool, write func(*strings.Builder)) {
		if measured {
			var b strings.Builder
			write(&b)
			texts[name] = b.String()
		}
	}
	part("compare", len(t.compared) > 0, func(b *strings.Builder) { t.comparison(b, latency) })
	part("rerun", len(t.reruns) > 0, t.again)
	part("look", len(t.looked) > 0, t.look)
	part("rotate", len(t.rotated) > 0, t.rotation)
	part("root", len(t.roots) > 0, t.replacedRoots)
	part("many", t.many != nil, func(b *strings.Builder) { t.many.table(b) })
	return texts
}

func (t tables) comparison(b *strings.Builder, latency time.Duration) {
	fmt.Fprintf(b, `
CAs, issuers, certificates and trust of a mesh: the guide's commands one after the other; SetupMesh, preflight
included; and the floor, the objects that SetupMesh leaves written all at once and waited for. The clusters are
namespaces of two API servers, with one cert-manager each. Far away is a round trip of %s to every API server and
to Vault. Everything runs on this one machine, Temporal too; the processors' work is that of all of it.

| clusters | | script | SetupMesh | floor | SetupMesh / floor (%s) | script / SetupMesh (%s; far away %s) | processors' work: script, SetupMesh, floor |
|---:|---|---:|---:|---:|---:|---:|---|
`, latency, aimFloor, aimNear, aimFar)
	for _, c := range t.compared {
		fmt.Fprintf(b, "| %d | %s | %s | %s | %s | %.2f | %.1f | %.0f s, %.0f s, %.0f s |\n", c.clusters, c.place.in(), seconds(c.script), seconds(c.ours.compared), seconds(c.floor),
			ratio(c.ours.compared, c.floor), ratio(c.script, c.ours.compared), c.work[byScript].Seconds(), c.work[bySetup].Seconds(), c.work[byFloor].Seconds())
	}
	fmt.Fprintf(b, `
What SetupMesh waited for (one cluster's workflow on average, of the time it was open), and what it cost. Actions are as
Temporal Cloud counts them, without heartbeats.

| clusters | | preflight | a cluster | cert-manager | Vault | API servers | Temporal and the worker | events of a cluster (%s) | events of the parent | per further cluster (%s) | actions per cluster | worker's peak memory |
|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
`, aimChild, aimParent)
	for i, c := range t.compared {
		h := c.ours.histories
		took := h.meanly(func(c childHistory) time.Duration { return c.took })
		share := func(who ...waitingFor) string {
			var sum time.Duration
			for _, w := range who {
				sum += h.meanly(func(c childHistory) time.Duration { return c.spent[w] })
			}
			return fmt.Sprintf("%.0f %%", 100*ratio(sum, took))
		}
		growth := noMeasurement
		if i > 0 && t.compared[i-1].place == c.place && t.compared[i-1].clusters < c.clusters {
			before := t.compared[i-1]
			growth = fmt.Sprintf("%.1f", float64(h.parentEvents-before.ours.parentEvents)/float64(c.clusters-before.clusters))
		}
		fmt.Fprintf(b, "| %d | %s | %s | %s | %s | %s | %s | %s | %d | %d | %s | %.0f | %d MiB |\n", c.clusters, c.place.in(), seconds(h.preflight), seconds(took),
			share(certManagers), share(vaults), share(apiServers, charts), share(temporals), h.mostEvents(), h.parentEvents, growth,
			float64(h.actions)/float64(c.clusters), c.ours.peak>>20)
	}
}

func (t tables) again(b *strings.Builder) {
	first := t.reruns[0]
	helm := first.first.meanly(func(c childHistory) time.Duration { return c.spent[charts] })
	fmt.Fprintf(b, `
With the Helm charts of agents and server, and the verification: %d clusters take %s, of it %s until everything is
installed (Helm %s of each cluster's time) and %s for the verification, with a fresh handshake for every cluster.
The same input again, all up to date:

| clusters | | Helm charts | all up to date (%s) | verification in it | worker's peak memory |
|---:|---|---|---:|---:|---:|
`, first.clusters, seconds(first.first.total), seconds(first.first.compared), seconds(helm), seconds(first.first.verification), aimRerun)
	for _, r := range t.reruns {
		gloo := "left to others"
		if r.gloo {
			gloo = "ours"
		}
		fmt.Fprintf(b, "| %d | %s | %s | %s | %s | %d MiB |\n", r.clusters, r.place.in(), gloo, seconds(r.again.total), seconds(r.again.verification), r.again.peak>>20)
	}
}

func (p *place) in() string {
	if p.latency == 0 {
		return "next door"
	}
	return "far away"
}

func ratio(a, b time.Duration) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// machine names what was measured on.
func machine() string {
	field := func(path, name string) string {
		f, err := os.Open(path)
		if err != nil {
			return ""
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
				return strings.TrimSpace(value)
			}
		}
		return ""
	}
	memory := "unknown memory"
	var kb int64
	if _, err := fmt.Sscanf(field("/proc/meminfo", "MemTotal"), "%d kB", &kb); err == nil {
		memory = fmt.Sprintf("%d GiB", (kb+1<<19)>>20)
	}
	return fmt.Sprintf("%d cores (%s), %s, %s", runtime.NumCPU(), field("/proc/cpuinfo", "model name"), memory, runtime.Version())
}
