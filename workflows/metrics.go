package workflows

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/internal/inventory"
	"github.com/relaypki/relaypki/internal/rotation"
)

// Gauges on the worker's /metrics, in seconds since 1970. They have what the last
// Inventory or MaintainMesh has seen that this worker has carried out.
const (
	gaugeNotAfter    = "relaypki_certificate_not_after_seconds"
	gaugeLatestStart = "relaypki_rotation_latest_start_seconds"
)

// recordFound puts what an inventory has found into the gauges.
func recordFound(ctx workflow.Context, v inventory.Inventory) {
	for _, f := range v.Forecast {
		gauge(ctx, gaugeNotAfter, v.Mesh, f.Cluster, string(f.Layer), string(f.Standing), f.NotAfter)
		if f.Cluster == "" {
			gauge(ctx, gaugeLatestStart, v.Mesh, "", string(f.Layer), string(f.Standing), f.LatestStart)
		}
	}
}

// recordLives puts what a look for what is due has seen into the gauges.
func recordLives(ctx workflow.Context, mesh, management string, state rotation.State) {
	for _, l := range state.Leaves {
		cluster, kind := l.Name, inventory.ClientLeaf
		if l.Name == rotation.Server {
			cluster, kind = management, inventory.ServerLeaf
		}
		gauge(ctx, gaugeNotAfter, mesh, cluster, string(kind), string(inventory.AtWork), l.NotAfter)
	}
	for _, ca := range []struct {
		kind inventory.Kind
		life rotation.Life
	}{{inventory.Root, state.Root}, {inventory.Intermediate, state.Intermediate}} {
		gauge(ctx, gaugeNotAfter, mesh, "", string(ca.kind), string(inventory.AtWork), ca.life.NotAfter)
		gauge(ctx, gaugeLatestStart, mesh, "", string(ca.kind), string(inventory.AtWork), ca.life.LatestStart)
	}
}

// gauge sets one to a time; what has none keeps what it had. A replay sets nothing.
func gauge(ctx workflow.Context, name, mesh, cluster, kind, standing string, at time.Time) {
	if at.IsZero() {
		return
	}
	workflow.GetMetricsHandler(ctx).WithTags(map[string]string{"mesh": mesh, "cluster": cluster, "kind": kind, "standing": standing}).
		Gauge(name).Update(float64(at.Unix()))
}
