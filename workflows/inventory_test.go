package workflows

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/inventory"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
)

// stockroom answers an inventory of a mesh: Vault and the clusters.
type stockroom struct {
	o      *outside
	record cluster.MeshRecord
	// vaultFails, unreachable and fails say what does not answer; the latter by cluster.
	vaultFails  error
	unreachable map[string]string
	fails       map[string]error
	// takes is how long a cluster takes to answer.
	takes time.Duration
	busy  string
	// metrics are those of the run.
	metrics client.MetricsHandler

	mu    sync.Mutex
	asked []cluster.InventoryClusterInput
	root  pkitest.Pair
	relay pkitest.Pair
}

func (s *stockroom) take(t *testing.T, input string) (*testsuite.TestWorkflowEnvironment, procedure.InventoryResult, error) {
	t.Helper()
	if s.root.Cert == nil {
		s.root = pkitest.Root(t, "Solo.io Root CA")
		s.relay = s.root.Intermediate(t, "gloo-mesh-mgmt-server-ca")
	}
	s.o = &outside{record: s.record, metrics: s.metrics}
	env := newRun(t, s.o)
	env.SetStartTime(pkitest.Now)
	env.OnActivity(kubernetes.LockHolder, mock.Anything, mock.Anything).Return(s.busy, nil)
	env.OnActivity(vaults.InventoryVault, mock.Anything, mock.Anything).Return(func(context.Context, vault.InventoryVaultInput) (vault.InventoryVaultResult, error) {
		if s.vaultFails != nil {
			return vault.InventoryVaultResult{}, s.vaultFails
		}
		out := vault.InventoryVaultResult{Look: inventory.Knowing(s.root.Cert, s.relay.Cert), CAsPEM: []string{string(pki.EncodeChain(s.root.Cert))}}
		out.Add(inventory.Item{Object: "pki/relay-root-g1", Generation: 1, Vault: &inventory.Issuer{Mount: "pki", ID: "r", Name: "relay-root-g1"}}, s.root.Cert)
		out.Add(inventory.Item{Object: "pki_relay/relay-intermediate-g1", Generation: 1, Vault: &inventory.Issuer{Mount: "pki_relay", ID: "i", Name: "relay-intermediate-g1", Roles: []string{"gloo-mesh-mgmt-server-ca"}}}, s.relay.Cert)
		return out, nil
	})
	env.OnActivity(kubernetes.InventoryCluster, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.InventoryClusterInput) (inventory.Look, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.asked = append(s.asked, in)
		if err := s.fails[in.Cluster]; err != nil {
			return inventory.Look{}, err
		}
		l := inventory.Knowing(s.root.Cert, s.relay.Cert)
		if l.Unreachable = s.unreachable[in.Cluster]; l.Unreachable != "" {
			return l, nil
		}
		kind, name := inventory.ClientLeaf, in.Cluster
		if name == "" {
			kind, name = inventory.ServerLeaf, in.Spec.Management.Context
		}
		l.Add(inventory.Item{Kind: kind, Cluster: name, Object: "Secret gloo-mesh/leaf", Key: "tls.crt"}, s.relay.Leaf(t, []string{name}).Cert)
		l.Add(inventory.Item{Kind: inventory.TrustStore, Cluster: name, Object: "Secret gloo-mesh/trust", Key: "ca.crt"}, s.root.Cert)
		return l, nil
	}).After(s.takes)
	env.ExecuteWorkflow(procedure.Inventory, json.RawMessage(input))
	var result procedure.InventoryResult
	if err := env.GetWorkflowError(); err != nil {
		return env, result, err
	}
	if err := env.GetWorkflowResult(&result); err != nil {
		t.Fatal(err)
	}
	for _, c := range s.o.writes() {
		t.Errorf("an inventory has called %s", c)
	}
	return env, result, nil
}

func TestInventory(t *testing.T) {
	s := &stockroom{record: complete()}
	_, v, err := s.take(t, `{"mesh":"demo","consumers":true}`)
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Items) != 2+2*3 || len(v.Certificates) != 2+3 || len(v.Unreachable) > 0 || v.Clusters != 3 || v.Mesh != "demo" || !v.At.Equal(pkitest.Now) {
		t.Errorf("%d items, %d certificates, unreachable %+v, of %d clusters of %s at %s", len(v.Items), len(v.Certificates), v.Unreachable, v.Clusters, v.Mesh, v.At)
	}
	layers := map[inventory.Kind]int{}
	for _, f := range v.Forecast {
		layers[f.Layer]++
	}
	if layers[inventory.Root] != 1 || layers[inventory.Intermediate] != 1 || layers[inventory.ServerLeaf] != 1 || layers[inventory.ClientLeaf] != 2 {
		t.Errorf("forecast of %v", layers)
	}
	for _, in := range s.asked {
		if !in.Consumers || len(in.CAsPEM) != 1 || in.Timeout.Duration != procedure.InventoryTimeout || !slices.Contains(in.Known, "Secret gloo-mesh/relay-client-tls-secret") {
			t.Errorf("asked for %+v", in)
		}
		if (in.Cluster == "") != (len(in.Spec.Workloads) == 0) {
			t.Errorf("%q was given the workloads %v", in.Cluster, in.Spec.Workloads)
		}
	}
}

// What does not answer is named, and everything else is there.
func TestInventoryOfWhatDoesNotAnswer(t *testing.T) {
	for name, test := range map[string]struct {
		room  *stockroom
		input string
		items int
		want  []string // of the unreachable: names with reasons
	}{
		"one cluster": {&stockroom{unreachable: map[string]string{"cluster2": "no route to host"}}, `{"mesh":"demo"}`, 2 + 2*2, []string{"cluster2: no route to host"}},
		"a cluster that is not in the site file": {&stockroom{fails: map[string]error{"cluster1": failure.Permanent(failure.InvalidInput, "there is no cluster %q", "cluster1")}}, `{"mesh":"demo"}`,
			2 + 2*2, []string{`cluster1: there is no cluster "cluster1"`}},
		"Vault":          {&stockroom{vaultFails: failure.Permanent(failure.Denied, "Vault is sealed")}, `{"mesh":"demo"}`, 2 * 3, []string{"Vault default: Vault is sealed"}},
		"not asked for":  {&stockroom{unreachable: map[string]string{"cluster2": "no route to host"}}, `{"mesh":"demo","clusters":["cluster1"]}`, 2 + 2*2, nil},
		"all but a part": {&stockroom{unreachable: map[string]string{"": "gone", "cluster1": "gone", "cluster2": "gone"}}, `{"mesh":"demo"}`, 2, []string{"mgmt: gone", "cluster1: gone", "cluster2: gone"}},
	} {
		test.room.record = complete()
		_, v, err := test.room.take(t, test.input)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []string
		for _, u := range v.Unreachable {
			got = append(got, u.Name+": "+u.Reason)
		}
		if !slices.Equal(got, test.want) || len(v.Items) != test.items {
			t.Errorf("%s: %d items, unreachable %q, want %d, %q", name, len(v.Items), got, test.items, test.want)
		}
	}
}

// A cluster whose worker is gone is said so once its time is over, and the others are
// not waited for longer.
func TestInventoryWithoutAWorker(t *testing.T) {
	s := &stockroom{record: complete(), fails: map[string]error{"cluster2": temporal.NewApplicationError("not yet", "x")}}
	env, v, err := s.take(t, `{"mesh":"demo","timeout":"2s"}`)
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Unreachable) != 1 || v.Unreachable[0].Name != "cluster2" {
		t.Errorf("unreachable %+v", v.Unreachable)
	}
	if took := env.Now().Sub(pkitest.Now); took > 2*time.Second+2*besideLook+time.Second {
		t.Errorf("it took %s", took)
	}
}

// Clusters are looked at side by side.
func TestInventoryTakesAllAtOnce(t *testing.T) {
	record := complete()
	record.Spec.Workloads = nil
	for n := range 50 {
		record.Spec.Workloads = append(record.Spec.Workloads, mesh.Workload{Name: fmt.Sprintf("c%d", n), Context: fmt.Sprintf("shared%d", n%2)})
	}
	record.Spec = record.Spec.WithDefaults()
	s := &stockroom{record: record, takes: time.Second}
	env, v, err := s.take(t, `{"mesh":"demo","consumers":true}`)
	if err != nil {
		t.Fatal(err)
	}
	if took := env.Now().Sub(pkitest.Now); took > 4*time.Second {
		t.Errorf("51 clusters of a second each took %s", took)
	}
	searched := 0
	for _, in := range s.asked {
		if in.Consumers {
			searched++
		}
	}
	if searched != 3 {
		t.Errorf("%d clusters were searched for consumers, want each of the three API servers once", searched)
	}
	if len(v.Items) != 2+2*51 {
		t.Errorf("%d items", len(v.Items))
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", len(data))
}

// In the middle of a rotation, and of an emergency, the record says what is next.
func TestInventoryInARotation(t *testing.T) {
	for name, test := range map[string]struct {
		rotation procedure.Rotation
		want     inventory.Record
	}{
		"of the intermediate":   {procedure.Rotation{From: 1, To: 2}, inventory.Record{Root: 1, Intermediate: 1, ToIntermediate: 2}},
		"of the root":           {procedure.Rotation{From: 1, To: 2, FromRoot: 1, ToRoot: 2}, inventory.Record{Root: 1, Intermediate: 1, ToIntermediate: 2, ToRoot: 2}},
		"an emergency":          {procedure.Rotation{From: 1, To: 2, FromRoot: 1, ToRoot: 1, Emergency: &procedure.Emergency{}}, inventory.Record{Root: 1, Intermediate: 1, ToIntermediate: 2, Emergency: true}},
		"what it leaves pinned": {procedure.Rotation{From: 1, To: 2, FromRoot: 1, ToRoot: 1, Emergency: &procedure.Emergency{Pinned: true}}, inventory.Record{Root: 1, Intermediate: 1, ToIntermediate: 2, Emergency: true, Pinned: true}},
	} {
		record := complete()
		record.Rotation = &test.rotation
		if got := recordOf(record); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
		s := &stockroom{record: record, busy: "rotate-demo"}
		_, v, err := s.take(t, `{"mesh":"demo"}`)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if v.Rotation == "" || len(v.Items) != 8 {
			t.Errorf("%s: rotation %q, %d items", name, v.Rotation, len(v.Items))
		}
		if !test.want.Emergency && !slices.ContainsFunc(v.Forecast, func(f inventory.Forecast) bool { return strings.Contains(f.Why, "rotate-demo is at work on it") }) {
			t.Errorf("%s: nothing says who is at work: %+v", name, v.Forecast)
		}
	}
}

func TestInventoryComparesWithAFile(t *testing.T) {
	s := &stockroom{record: complete()}
	_, v, err := s.take(t, `{"mesh":"demo","file":"prod.yaml","spec":{"mesh":"demo","workloads":[{"name":"cluster1"},{"name":"cluster2"}],"rollout":{"parallelism":3}}}`)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(v.Drift, func(d inventory.Drift) bool {
		return d.Object == "prod.yaml" && strings.HasPrefix(d.What, "rollout.parallelism is 3, and 10 ") && d.Do == "relaypki setup -f prod.yaml --plan"
	}) {
		t.Errorf("drift %+v", v.Drift)
	}
}

func TestInventoryRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		input  string
		record cluster.MeshRecord
		says   []string
	}{
		"a typo":       {`{"mesh":"demo","consumer":true}`, complete(), []string{"consumer: unknown field", "consumers"}},
		"all at once":  {`{"timeout":"1h","spec":{"mesh":"x_y","workloads":[]}}`, complete(), []string{"mesh: is missing", "timeout: 1h", "spec.mesh", "spec.workloads"}},
		"another mesh": {`{"mesh":"demo","spec":{"mesh":"prod","workloads":[{"name":"a"}]}}`, complete(), []string{`spec.mesh: "prod" is another mesh`}},
		"no mesh":      {`{"mesh":"demo"}`, cluster.MeshRecord{}, []string{"there is no mesh"}},
		"no member":    {`{"mesh":"demo","clusters":["x"]}`, complete(), []string{`"x" is no member`}},
	} {
		s := &stockroom{record: test.record}
		_, _, err := s.take(t, test.input)
		if failure.KindOf(err) != failure.InvalidInput {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range test.says {
			if !strings.Contains(failure.Message(err), want) {
				t.Errorf("%s: does not say %q: %s", name, want, failure.Message(err))
			}
		}
		if len(s.asked) > 0 {
			t.Errorf("%s: clusters were looked at", name)
		}
	}
}

// gauges are what a run has set, by name and labels.
type gauges struct {
	client.MetricsHandler
	mu   *sync.Mutex
	tags map[string]string
	set  map[string]float64
}

func newGauges() gauges {
	return gauges{MetricsHandler: client.MetricsNopHandler, mu: &sync.Mutex{}, tags: map[string]string{}, set: map[string]float64{}}
}

func (g gauges) WithTags(tags map[string]string) client.MetricsHandler {
	all := maps.Clone(g.tags)
	maps.Copy(all, tags)
	g.tags = all
	return g
}

func (g gauges) Gauge(name string) client.MetricsGauge {
	return gaugeOf(func(value float64) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.set[fmt.Sprintf("%s %s|%s|%s|%s", name, g.tags["mesh"], g.tags["cluster"], g.tags["kind"], g.tags["standing"])] = value
	})
}

type gaugeOf func(float64)

func (g gaugeOf) Update(value float64) { g(value) }

// The worker's metrics have what the last look has seen.
func TestInventoryGauges(t *testing.T) {
	g := newGauges()
	s := &stockroom{record: complete(), metrics: g}
	if _, _, err := s.take(t, `{"mesh":"demo"}`); err != nil {
		t.Fatal(err)
	}
	leaf := float64(pkitest.Now.Add(23 * time.Hour).Unix())
	for name, want := range map[string]float64{
		"relaypki_certificate_not_after_seconds demo|cluster2|client-leaf|at work": leaf,
		"relaypki_certificate_not_after_seconds demo|mgmt|server-leaf|at work":     leaf,
		"relaypki_certificate_not_after_seconds demo||root|at work":                float64(s.root.Cert.NotAfter.Unix()),
		"relaypki_certificate_not_after_seconds demo||intermediate|at work":        float64(s.relay.Cert.NotAfter.Unix()),
		"relaypki_rotation_latest_start_seconds demo||intermediate|at work":        float64(s.relay.Cert.NotAfter.Add(-24*time.Hour - 55*time.Minute).Unix()),
		"relaypki_rotation_latest_start_seconds demo||root|at work":                float64(s.root.Cert.NotAfter.Add(-24*time.Hour - 4*55*time.Minute).Unix()),
	} {
		if got := g.set[name]; got != want {
			t.Errorf("%s: %f, want %f", name, got, want)
		}
	}
}
