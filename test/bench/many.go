package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// manyRun is a run whose activities only wait.
type manyRun struct {
	histories
	clusters int
	total    time.Duration
	peak     int64
}

// many runs the real SetupMesh on a real Temporal server for more clusters than
// a machine can hold, by a worker whose activities only wait (test/bench/waiter).
func (b *bench) many(ctx context.Context, n int) (*manyRun, error) {
	if err := b.cleanTemporal(ctx); err != nil { // a mesh that stands has schedules
		return nil, err
	}
	w, err := b.startWorker(ctx, filepath.Join(b.repo, "bin", "bench-waiter"), b.places[0])
	if err != nil {
		return nil, err
	}
	defer w.stop()
	s := mesh.Spec{Mesh: "many"}
	for i := range n {
		s.Workloads = append(s.Workloads, mesh.Workload{Name: fmt.Sprintf("cluster%d", i+1)})
	}
	say("SetupMesh %d clusters, with activities that only wait", n)
	began := time.Now()
	run, err := b.temporal.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID: fmt.Sprintf("bench-many-%d", began.UnixNano()), TaskQueue: procedure.TaskQueue,
	}, procedure.SetupMesh, procedure.SetupInput{Spec: s})
	if err != nil {
		return nil, err
	}
	first := run.GetRunID() // which becomes the last one's
	if err := run.Get(ctx, nil); err != nil {
		return nil, fmt.Errorf("SetupMesh of %d clusters: %w", n, err)
	}
	m := &manyRun{clusters: n, total: time.Since(began)}
	say("SetupMesh %d clusters: %s", n, m.total.Round(time.Second))
	if m.peak, err = w.peak(); err != nil {
		return nil, err
	}
	m.histories, err = b.read(ctx, run.GetID(), first)
	return m, err
}

func (m *manyRun) table(b *strings.Builder) {
	fmt.Fprintf(b, `
The real workflows on the real Temporal server, with activities that only wait:

| clusters | took | runs of the parent | longest history of one | events of the parent per cluster | events of a cluster (%s) | actions per cluster | failed workflow tasks | worker's peak memory |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|
| %d | %s | %d | %d | %.1f | %d | %.0f | %d | %d MiB |
`, aimChild, len(m.children), seconds(m.total), m.parentRuns, m.longestRun, float64(m.parentEvents)/float64(m.clusters), m.mostEvents(),
		float64(m.actions)/float64(m.clusters), m.failedTasks, m.peak>>20)
}
