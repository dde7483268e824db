package cluster

import (
	"context"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// Keys of the membership ConfigMap.
const (
	keySpec     = "mesh.json"
	keyComplete = "complete"
	// keyJoining has the names of members that are being added, with blanks.
	keyJoining = "joining"
	// keyLeaving has the members that are being removed, and those that were
	// and whose certificate may still be valid.
	keyLeaving = "leaving.json"
	// keyCAs has the generations of the CAs and the rotation that is under way.
	keyCAs = "cas.json"
)

func recordName(meshName string) string { return "relaypki-mesh-" + meshName }

// Departure is a member's that is being removed, or was.
type Departure struct {
	Since time.Time `json:"since"`
	// ValidUntil is until when its certificate stays valid; zero if that is not
	// known yet, or if it never had one.
	ValidUntil time.Time `json:"validUntil,omitzero"`
	// Left is when nothing of it was left; zero as long as it is a member.
	Left time.Time `json:"left,omitzero"`
}

// record is what the ConfigMap says. Several procedures write it, each its own
// part of it: no write may lose what another has written.
type record struct {
	found    bool
	version  string // of the ConfigMap
	text     string // of the spec, as it is stored
	spec     mesh.Spec
	complete bool
	joining  []string
	leaving  map[string]Departure
	cas      cas
}

// cas is what a record says of a mesh's CAs.
type cas struct {
	procedure.Generations
	// Rotation is the one that is under way, Deletions are what earlier ones have left
	// to be deleted, Quarantined are members that somebody has left out of one, by
	// name, with the reason.
	Rotation    *procedure.Rotation  `json:"rotation,omitempty"`
	Deletions   []procedure.Deletion `json:"deletions,omitempty"`
	Quarantined map[string]string    `json:"quarantined,omitempty"`
}

// settled says that nobody is being added or removed.
func (r record) settled() bool {
	for _, d := range r.leaving {
		if d.Left.IsZero() {
			return false
		}
	}
	return len(r.joining) == 0
}

func (r record) public() MeshRecord {
	return MeshRecord{Found: r.found, Spec: r.spec, Complete: r.complete && r.settled(), Joining: r.joining, Leaving: r.leaving,
		Generations: r.cas.generations(), Rotation: r.cas.Rotation, Deletions: r.cas.Deletions, Quarantined: r.cas.Quarantined}
}

// generations are 1 where nothing has ever been rotated.
func (c cas) generations() procedure.Generations {
	return procedure.Generations{Root: max(c.Root, 1), Intermediate: max(c.Intermediate, 1)}
}

// rotate takes in how far a rotation is: nil once it has ended, by which the
// generations are given. Another's is not written over.
func (r record) rotate(in RecordRotationInput) (record, error) {
	was := r.cas.Rotation
	// An emergency takes over whatever is under way.
	if in.Rotation != nil && in.Rotation.Emergency == nil && was != nil && (was.Procedure != in.Rotation.Procedure || was.To != in.Rotation.To) {
		return r, failure.Permanent(failure.Conflict, "the mesh %q is in %s to generation %d, begun by %s; finish that first: start %s again, or take it back: relaypki rollback %[1]s",
			in.Mesh, was.Procedure, was.To, was.Workflow, was.Procedure)
	}
	r.cas.Rotation = in.Rotation
	if in.Generations != nil {
		if was != nil && was.Intermediate != nil && was.To == in.Generations.Intermediate {
			r.spec.PKI.Intermediate = *was.Intermediate
		}
		if was != nil && was.Root != nil && was.ToRoot == in.Generations.Root {
			r.spec.PKI.Root.CA = *was.Root
		}
		r.cas.Generations = *in.Generations
	}
	if in.RootPEM != "" {
		r.spec.PKI.Root.CertificatePEM = in.RootPEM
	}
	if in.Deletions != nil {
		r.cas.Deletions = in.Deletions
	}
	if in.Quarantined != nil {
		r.cas.Quarantined = in.Quarantined
	}
	return r, nil
}

// setUp takes in the spec of a setup, at its start or at its good end. Members
// that the spec does not have are another run's, which has added them
// meanwhile: they stay. One that the record no longer has when the setup ends
// was removed meanwhile, and is not brought back.
func (r record) setUp(spec mesh.Spec, complete bool) (record, error) {
	names := map[string]bool{}
	for _, w := range spec.Workloads {
		names[w.Name] = true
		if _, ok := r.spec.Workload(w.Name); complete && r.found && !ok {
			return r, failure.Permanent(failure.Conflict, "the cluster %q was removed from the mesh %q while this ran; take it out of the input and run this again, or, to have it back, just run it again", w.Name, spec.Mesh)
		}
	}
	was := r
	spec.Workloads = slices.Clone(spec.Workloads)
	for _, w := range r.spec.Workloads {
		if !names[w.Name] {
			spec.Workloads = append(spec.Workloads, w)
		}
	}
	r.spec = spec
	// A setup of what was set up already leaves it so until it has found out more.
	r.complete = complete || was.complete && was.settled() && same(was.spec, spec)
	// Whatever had begun to add or to remove a member of the spec, this is what is
	// done with it now.
	r.joining = slices.DeleteFunc(slices.Clone(r.joining), func(name string) bool { return names[name] })
	r.leaving = without(r.leaving, func(name string) bool { return names[name] })
	return r, nil
}

// join takes in a new member, or one that is brought up to date.
func (r record) join(w mesh.Workload) (record, error) {
	spec := r.spec.With(w)
	if problems := append(r.spec.MoveProblems(w), spec.Validate()...); len(problems) > 0 {
		lines := make([]string, len(problems))
		for i, p := range problems {
			lines[i] = p.String()
		}
		return r, failure.Permanent(failure.InvalidInput, "the mesh %q cannot have this cluster: %s", spec.Mesh, strings.Join(lines, "; "))
	}
	r.spec = spec
	if !slices.Contains(r.joining, w.Name) {
		r.joining = append(slices.Clone(r.joining), w.Name)
	}
	return r, nil
}

// joined notes that a member is set up and was seen to work.
func (r record) joined(w mesh.Workload) (record, error) {
	if _, ok := r.spec.Workload(w.Name); !ok {
		return r, failure.Permanent(failure.Conflict, "the cluster %q was removed from the mesh %q while this ran; to have it back, run this again", w.Name, r.spec.Mesh)
	}
	r.joining = slices.DeleteFunc(slices.Clone(r.joining), func(name string) bool { return name == w.Name })
	r.leaving = without(r.leaving, func(name string) bool { return name == w.Name })
	return r, nil
}

// leave notes that a member is being removed and, as far as that is known by
// now, until when its certificate stays valid. The latest time counts.
func (r record) leave(name string, validUntil, now time.Time) record {
	d := r.leaving[name]
	if d.Since.IsZero() || !d.Left.IsZero() {
		d = Departure{Since: now}
	}
	if validUntil.After(d.ValidUntil) {
		d.ValidUntil = validUntil
	}
	r.leaving = without(r.leaving, func(string) bool { return false })
	r.leaving[name] = d
	return r
}

// left takes out a member of which nothing is left. That it was one is
// remembered for as long as its certificate is valid.
func (r record) left(name string, validUntil, now time.Time) record {
	r = r.leave(name, validUntil, now)
	d := r.leaving[name]
	d.Left = now
	r.leaving[name] = d
	all := r.leaving
	r.leaving = without(all, func(name string) bool {
		d := all[name]
		return !d.Left.IsZero() && d.ValidUntil.Before(now) && d.Left.Before(now.Add(-rememberFor))
	})
	r.spec.Workloads = slices.DeleteFunc(slices.Clone(r.spec.Workloads), func(w mesh.Workload) bool { return w.Name == name })
	r.cas.Quarantined = maps.Clone(r.cas.Quarantined)
	delete(r.cas.Quarantined, name)
	r.spec.Rollout.Canary = slices.DeleteFunc(slices.Clone(r.spec.Rollout.Canary), func(canary string) bool { return canary == name })
	r.joining = slices.DeleteFunc(slices.Clone(r.joining), func(joining string) bool { return joining == name })
	return r
}

// rememberFor is how long a removed member is remembered at least: whoever
// starts its removal again is told that it is done, and not that there is none.
const rememberFor = 24 * time.Hour

// same compares two specs, of which one may be an older release's, with fewer
// fields.
func same(a, b mesh.Spec) bool {
	return reflect.DeepEqual(a.WithDefaults().Normal(), b.WithDefaults().Normal())
}

func without(leaving map[string]Departure, drop func(string) bool) map[string]Departure {
	out := map[string]Departure{}
	for name, d := range leaving {
		if !drop(name) {
			out[name] = d
		}
	}
	return out
}

// RecordMesh stores the accepted spec, at the start and at the good end of a
// setup, guarded by the ConfigMap's resourceVersion.
func (a *Activities) RecordMesh(ctx context.Context, in RecordMeshInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	_, err := a.updateRecord(ctx, in.Spec.Mesh, in.Spec.Management.Context, in.Spec.Management.Namespace, in.Mode, &out, func(r record) (record, error) {
		return r.setUp(in.Spec, in.Complete)
	})
	return out, err
}

// RecordMember records a member before its first certificate is issued and,
// once it is set up and was seen to work, that it is. Two that are recorded at
// once both are.
func (a *Activities) RecordMember(ctx context.Context, in RecordMemberInput) (RecordMemberResult, error) {
	var result RecordMemberResult
	r, err := a.updateRecord(ctx, in.Mesh, in.Management, in.Namespace, in.Mode, &result.Outcome, func(r record) (record, error) {
		switch {
		case !r.found:
			return r, noSuchMesh(in.Mesh)
		case in.Joined:
			return r.joined(in.Workload)
		default:
			return r.join(in.Workload)
		}
	})
	result.Record = r.public()
	return result, err
}

// RecordDeparture records that a member is being removed and, once nothing of
// it is left, takes it out.
func (a *Activities) RecordDeparture(ctx context.Context, in RecordDepartureInput) (RecordMemberResult, error) {
	var result RecordMemberResult
	r, err := a.updateRecord(ctx, in.Mesh, in.Management, in.Namespace, in.Mode, &result.Outcome, func(r record) (record, error) {
		now := time.Now().UTC().Truncate(time.Second)
		_, member := r.spec.Workload(in.Cluster)
		switch {
		case !r.found:
			return r, noSuchMesh(in.Mesh)
		case !member:
			return r, nil // another run has finished it
		case in.Left:
			return r.left(in.Cluster, in.ValidUntil, now), nil
		default:
			return r.leave(in.Cluster, in.ValidUntil, now), nil
		}
	})
	result.Record = r.public()
	return result, err
}

// RecordRotation records what a rotation is about to do before it does it, how
// far it is, and what it has come to.
func (a *Activities) RecordRotation(ctx context.Context, in RecordRotationInput) (RecordMemberResult, error) {
	var result RecordMemberResult
	r, err := a.updateRecord(ctx, in.Mesh, in.Management, in.Namespace, in.Mode, &result.Outcome, func(r record) (record, error) {
		if !r.found {
			return r, noSuchMesh(in.Mesh)
		}
		return r.rotate(in)
	})
	result.Record = r.public()
	return result, err
}

func noSuchMesh(name string) error {
	return failure.Permanent(failure.InvalidInput, "there is no mesh %q in the management cluster; relaypki status lists the meshes", name)
}

// updateRecord reads the record, changes it and stores it, unless somebody else
// has done so in between: then all of it is to be tried again.
func (a *Activities) updateRecord(ctx context.Context, meshName, management, namespace string, mode procedure.Mode, out *procedure.Outcome,
	change func(record) (record, error)) (record, error) {
	c, namespace, err := a.recordPlace(management, namespace)
	if err != nil {
		return record{}, err
	}
	have, err := readRecord(ctx, c, namespace, meshName)
	if err != nil {
		return have, err
	}
	want, err := change(have)
	if err != nil {
		return have, err
	}
	if !have.found || !same(have.spec, want.spec) {
		text, err := json.MarshalIndent(want.spec, "", "  ")
		if err != nil {
			return have, failure.Permanent(failure.InvalidInput, "the spec cannot be written as JSON: %v", err)
		}
		want.text = string(text)
	}
	data := map[string]string{keySpec: want.text, keyComplete: strconv.FormatBool(want.complete)}
	if len(want.joining) > 0 {
		data[keyJoining] = strings.Join(want.joining, " ")
	}
	if len(want.leaving) > 0 {
		text, err := json.MarshalIndent(want.leaving, "", "  ")
		if err != nil {
			return have, failure.Permanent(failure.InvalidInput, "the record cannot be written as JSON: %v", err)
		}
		data[keyLeaving] = string(text)
	}
	if !reflect.DeepEqual(want.cas, cas{}) {
		text, err := json.MarshalIndent(want.cas, "", "  ")
		if err != nil {
			return have, failure.Permanent(failure.InvalidInput, "the record cannot be written as JSON: %v", err)
		}
		data[keyCAs] = string(text)
	}
	object, err := kube.Unstructured(&corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: recordName(meshName), Namespace: namespace, Labels: kube.Labels(meshName), ResourceVersion: have.version},
		Data:       data,
	})
	if err != nil {
		return have, err
	}
	_, err = kube.Apply(ctx, c, object, mode, out)
	return want, err
}

// ReadMesh reads a mesh's record. A missing one is no error: Found is false.
func (a *Activities) ReadMesh(ctx context.Context, in ReadMeshInput) (MeshRecord, error) {
	c, namespace, err := a.recordPlace(in.Management, in.Namespace)
	if err != nil {
		return MeshRecord{}, err
	}
	r, err := readRecord(ctx, c, namespace, in.Mesh)
	return r.public(), err
}

// recordPlace is where a mesh's record is, by default the site's management
// cluster and the guide's namespace.
func (a *Activities) recordPlace(management, namespace string) (*site.Cluster, string, error) {
	usual := mesh.Spec{}.WithDefaults()
	for _, name := range []string{a.Clients.Config.Management, usual.Management.Context} {
		if management == "" {
			management = name
		}
	}
	if namespace == "" {
		namespace = usual.Namespace
	}
	c, err := a.Clients.Cluster(management)
	return c, namespace, err
}

func readRecord(ctx context.Context, c *site.Cluster, namespace, meshName string) (record, error) {
	live, err := kube.Get(ctx, c, "ConfigMap", namespace, recordName(meshName))
	if err != nil || live == nil {
		return record{}, err
	}
	var have corev1.ConfigMap
	if err := kube.Into(live, &have); err != nil {
		return record{}, err
	}
	r := record{version: live.GetResourceVersion()}
	unreadable := func(key string, err error) error {
		return failure.Permanent(failure.Conflict, "cluster %q: %s has no readable %s: %v. Restore it from a copy, or delete it and run SetupMesh again with the whole mesh's spec",
			c.Name, kube.Name("ConfigMap", namespace, recordName(meshName)), key, err)
	}
	// Tolerant: a newer version of relaypki may have written fields that this
	// one does not know.
	r.text = have.Data[keySpec]
	if err := json.Unmarshal([]byte(r.text), &r.spec); err != nil {
		return r, unreadable(keySpec, err)
	}
	if text := have.Data[keyLeaving]; text != "" {
		if err := json.Unmarshal([]byte(text), &r.leaving); err != nil {
			return r, unreadable(keyLeaving, err)
		}
	}
	if text := have.Data[keyCAs]; text != "" {
		if err := json.Unmarshal([]byte(text), &r.cas); err != nil {
			return r, unreadable(keyCAs, err)
		}
	}
	r.found = true
	r.complete = have.Data[keyComplete] == "true"
	r.joining = strings.Fields(have.Data[keyJoining])
	return r, nil
}
