// Command waiter is a worker with the real workflows and activities that only
// wait: what a fleet costs Temporal and the worker, without the fleet.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/contrib/envconfig"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/workflows"
)

// As long as an API server or Vault takes to answer a few calls.
const (
	shortest = 50 * time.Millisecond
	longest  = 150 * time.Millisecond
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "waiter:", err)
		os.Exit(1)
	}
}

func run() error {
	options, err := envconfig.LoadClientOptions(envconfig.LoadClientOptionsRequest{})
	if err != nil {
		return err
	}
	options.Logger = log.NewStructuredLogger(slog.New(slog.DiscardHandler))
	c, err := client.Dial(options)
	if err != nil {
		return err
	}
	defer c.Close()
	// As the real worker: what is measured here is its memory too.
	w := worker.New(c, procedure.TaskQueue, worker.Options{
		MaxConcurrentActivityExecutionSize:     40,
		MaxConcurrentWorkflowTaskExecutionSize: 20,
		DisableRegistrationAliasing:            true,
	})
	workflows.Register(w)
	var r records
	w.RegisterActivityWithOptions(r.record, activity.RegisterOptions{Name: "RecordMesh"})
	w.RegisterActivityWithOptions(r.read, activity.RegisterOptions{Name: "ReadMesh"})
	w.RegisterActivityWithOptions(check, activity.RegisterOptions{Name: "CheckClusters"})
	w.RegisterDynamicActivity(wait, activity.DynamicRegisterOptions{})
	if err := w.Start(); err != nil {
		return err
	}
	defer w.Stop()
	// Ready, for whoever waits for it as for the real worker.
	return http.ListenAndServe(os.Getenv("RELAYPKI_LISTEN"), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
}

// wait is every activity: it takes a while and answers nothing, which decodes to
// the empty result of each.
func wait(ctx context.Context, _ converter.EncodedValues) (struct{}, error) {
	select {
	case <-ctx.Done():
		return struct{}{}, ctx.Err()
	case <-time.After(shortest + rand.N(longest-shortest)):
		return struct{}{}, nil
	}
}

// check has the preflight find clusters that answer.
func check(ctx context.Context, in cluster.CheckClustersInput) (cluster.CheckClustersResult, error) {
	_, err := wait(ctx, nil)
	out := cluster.CheckClustersResult{Clusters: []cluster.CheckClusterResult{{Context: in.Spec.Management.Context, Version: "v1.37.2"}}}
	for _, w := range in.Spec.Workloads {
		out.Clusters = append(out.Clusters, cluster.CheckClusterResult{Context: w.Context, Workload: w.Name, Version: "v1.37.2"})
	}
	return out, err
}

// records remember the membership, which later activities ask for.
type records struct {
	mu   sync.Mutex
	last cluster.MeshRecord
}

func (r *records) record(_ context.Context, in cluster.RecordMeshInput) (procedure.Outcome, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = cluster.MeshRecord{Found: true, Complete: in.Complete, Spec: in.Spec}
	return procedure.Outcome{}, nil
}

func (r *records) read(context.Context, cluster.ReadMeshInput) (cluster.MeshRecord, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last, nil
}
