package workflows

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/inventory"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// Inventory finds every certificate, CA and trust store of a mesh, in Vault and in the
// clusters, and says when each layer has to be rotated and what differs from what was
// asked for. It changes nothing, takes no lock, and is of use in the middle of a
// rotation as well. What does not answer is named in the result.
func Inventory(ctx workflow.Context, in procedure.InventoryInput) (procedure.InventoryResult, error) {
	s := &stocktaking{in: in}
	var err error
	if s.report, err = newReport(ctx, procedure.Progress{Procedure: procedure.Inventory, Mesh: in.Mesh, Phase: "inventory"}); err != nil {
		return procedure.InventoryResult{}, err
	}
	problems := in.Validate()
	if !typed(ctx) {
		in.Problems = nil // a schedule's stored input may be of another release
		problems = in.Validate()
	}
	if err := invalid(problems); err != nil {
		return procedure.InventoryResult{}, s.report.finish(ctx, err)
	}
	result, err := s.run(ctx)
	return result, s.report.finish(ctx, err)
}

// stocktaking is one run of Inventory.
type stocktaking struct {
	in     procedure.InventoryInput
	report *report

	record cluster.MeshRecord
	facts  inventory.Facts
	queues map[string]string
	casPEM []string
}

func (s *stocktaking) run(ctx workflow.Context) (procedure.InventoryResult, error) {
	var none procedure.InventoryResult
	var err error
	if s.queues, err = s.report.describe(ctx, "inventory"); err != nil {
		return none, err
	}
	if s.record, err = readMesh(ctx, s.in.Mesh, s.in.Management, s.in.Namespace); err != nil {
		return none, err
	}
	spec := s.record.Spec.WithDefaults()
	looked, err := only(spec, s.in.Clusters)
	if err != nil {
		return none, err
	}
	if err := s.asked(spec, workflow.Now(ctx)); err != nil {
		return none, err
	}
	// Who is at work is only said: that nobody could be asked changes nothing.
	s.facts.State.Busy, _ = call[string](ctx, summarized(s.within(), "Ask who is at work on the mesh's CAs"), kubernetes.LockHolder, cluster.LockInput{
		Context: spec.Management.Context, Namespace: spec.Management.Namespace, Lease: spec.CALease()})
	s.report.Clusters = pendingChecks(looked)
	// Vault first: by the CAs' signatures the clusters are looked at.
	s.vault(ctx, spec)
	s.clusters(ctx, spec, looked)
	if ctx.Err() != nil {
		return none, ctx.Err()
	}
	result := procedure.InventoryResult{Inventory: inventory.Take(s.facts)}
	recordFound(ctx, result.Inventory)
	return result, fits(result)
}

// asked notes what the record, and the input, say of what there is to be.
func (s *stocktaking) asked(spec mesh.Spec, now time.Time) error {
	pace, err := fullPace(spec)
	if err != nil {
		return err
	}
	f := &s.facts
	*f = inventory.Facts{Mesh: spec.Mesh, Spec: spec, Want: spec, Record: recordOf(s.record), State: stateOf(spec, s.record.Rotation, now), Pace: pace}
	f.State.Opens = opens(pace, now)
	if s.in.Spec != nil {
		f.Want, f.File = s.in.Spec.WithDefaults(), s.in.File
		if f.File == "" {
			f.File = "mesh.yaml"
		}
	}
	if name := f.Want.PKI.Root.CommonName; name != "" {
		f.RootNames = []string{vault.RootCommonName(name, f.Record.Root)}
	}
	name := f.Want.PKI.Intermediate.CommonName
	f.IntermediateNames = []string{name, vault.IntermediateCommonName(name, f.Record.Intermediate)}
	for _, w := range spec.Workloads {
		if moving, _ := s.record.Moving(w.Name); moving != "" {
			f.Moving = append(f.Moving, w.Name)
		}
	}
	return nil
}

// recordOf is what a record says of the CAs.
func recordOf(record cluster.MeshRecord) inventory.Record {
	// One that was written before there were generations says 0.
	r := inventory.Record{Root: max(record.Generations.Root, 1), Intermediate: max(record.Generations.Intermediate, 1)}
	if of := record.Rotation; of != nil {
		r.ToRoot, r.ToIntermediate = of.ToRoot, of.To
		if of.ToRoot == of.FromRoot {
			r.ToRoot = 0 // the root stays
		}
		r.Emergency = of.Emergency != nil
		r.Pinned = r.Emergency && of.Emergency.Pinned
	}
	return r
}

// vault reads the CAs.
func (s *stocktaking) vault(ctx workflow.Context, spec mesh.Spec) {
	step := s.report.begin(ctx, "CAs")
	found, err := call[vault.InventoryVaultResult](ctx, summarized(s.within(), "List the CAs in Vault"), vaults.InventoryVault, vault.InventoryVaultInput{Spec: spec.Only("")})
	if err != nil {
		s.unseen("Vault "+spec.Vault.Name, failure.Message(err), false)
	}
	s.facts.Vault, s.casPEM = found.Look, found.CAsPEM
	for _, what := range found.Unseen {
		s.unseen("Vault "+spec.Vault.Name, what, true)
	}
	s.report.end(ctx, step, procedure.Outcome{Detail: fmt.Sprintf("%d certificates of CAs", len(found.Certificates))}, err)
}

// clusters looks at all clusters, some at a time. Each has its time to answer, and not
// more for every other one that does not.
func (s *stocktaking) clusters(ctx workflow.Context, spec, looked mesh.Spec) {
	step := s.report.begin(ctx, "clusters")
	looks := make([]inventory.Look, 1+len(looked.Workloads))
	errs := make([]error, len(looks))
	places := workflow.NewSemaphore(ctx, clustersAtOnce)
	wg := workflow.NewWaitGroup(ctx)
	searched := map[string]bool{}
	look := func(n int, name, context string, in cluster.InventoryClusterInput) {
		in.CAsPEM, in.Timeout = s.casPEM, s.timeout()
		// Members that share an API server share what else is in it.
		if in.Consumers = s.in.Consumers && !searched[context]; in.Consumers {
			searched[context], in.Known = true, knownIn(spec, context)
		}
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			if errs[n] = places.Acquire(ctx, 1); errs[n] != nil {
				return
			}
			defer places.Release(1)
			s.report.cluster(ctx, name, procedure.Running, "")
			looks[n], errs[n] = call[inventory.Look](ctx, summarized(on(s.queues[context], s.within()), "List the certificates in "+name), kubernetes.InventoryCluster, in)
			state, detail := procedure.Done, fmt.Sprintf("%d certificates", len(looks[n].Certificates))
			if why := unreached(looks[n], errs[n]); why != "" {
				state, detail = procedure.Failed, why
			}
			s.report.cluster(ctx, name, state, detail)
		})
	}
	names := []string{spec.Management.Context}
	look(0, names[0], names[0], cluster.InventoryClusterInput{Spec: looked.Only("")})
	for n, w := range looked.Workloads {
		names = append(names, w.Name)
		look(n+1, w.Name, w.Context, cluster.InventoryClusterInput{Spec: looked.Only(w.Name), Cluster: w.Name})
	}
	wg.Wait(ctx)
	answered := 0
	for n, l := range looks {
		if why := unreached(l, errs[n]); why != "" {
			s.unseen(names[n], why, false)
			continue
		}
		answered++
		s.facts.Clusters = append(s.facts.Clusters, l)
		for _, what := range l.Unseen {
			s.unseen(names[n], what, true)
		}
	}
	s.report.end(ctx, step, procedure.Outcome{Detail: fmt.Sprintf("%d of %d have answered", answered, len(looks))}, ctx.Err())
}

// unreached is why a cluster could not be looked at; empty if it could.
func unreached(l inventory.Look, err error) string {
	if err != nil {
		return failure.Message(err)
	}
	return l.Unreachable
}

func (s *stocktaking) unseen(name, reason string, part bool) {
	s.facts.Unreachable = append(s.facts.Unreachable, inventory.Unlooked{Name: name, Reason: reason, Part: part})
}

func (s *stocktaking) timeout() mesh.Duration {
	if s.in.Timeout.Duration == 0 {
		return mesh.Duration{Duration: procedure.InventoryTimeout}
	}
	return s.in.Timeout
}

// besideLook is what an activity may take beyond the time that its look has: to be begun
// by a worker that has others at hand, or to be begun by another since that one died.
const besideLook = 5 * time.Second

// within are the options of a look that is to be over in the time that it has.
func (s *stocktaking) within() workflow.ActivityOptions {
	attempt := s.timeout().Duration + besideLook
	return budget(attempt, attempt+besideLook)
}

// knownIn are the objects in a cluster that are the mesh's own.
func knownIn(spec mesh.Spec, context string) []string {
	var namespaces, known []string
	if spec.Management.Context == context {
		namespaces = append(namespaces, spec.Management.Namespace)
	}
	for _, w := range spec.Workloads {
		if w.Context == context && !slices.Contains(namespaces, w.Namespace) {
			namespaces = append(namespaces, w.Namespace)
		}
	}
	for _, namespace := range namespaces {
		known = append(known, meshObjects(spec, namespace)...)
	}
	return known
}

// meshObjects are the objects of a mesh in a namespace that have certificates of its
// CAs.
func meshObjects(spec mesh.Spec, namespace string) []string {
	var known []string
	for _, name := range []string{spec.Certificates.Server.SecretName, spec.Certificates.Client.SecretName, mesh.RootSecretName} {
		known = append(known, "Secret "+namespace+"/"+name)
	}
	return append(known, "ConfigMap "+namespace+"/relaypki-mesh-"+spec.Mesh)
}

// mostBytes is how long a result may be: Temporal takes 2 MB, and the workflow's end
// carries it.
const mostBytes = 1900 << 10

// fits says that a result is too long for Temporal, or nil.
func fits(result procedure.InventoryResult) error {
	data, err := json.Marshal(result)
	if err != nil {
		return failure.Permanent(failure.InvalidInput, "the inventory cannot be written as JSON: %v", err)
	}
	if len(data) <= mostBytes {
		return nil
	}
	return failure.Permanent(failure.InvalidInput, "the inventory of %d clusters is too long for one result of Temporal (%d kB): name some of them at a time: relaypki inventory %s CLUSTER...", result.Clusters, len(data)>>10, result.Mesh)
}
