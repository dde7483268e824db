package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// Several procedures write a mesh's record, and none may lose what another has
// written.
func TestRecord(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	spec := func(names ...string) mesh.Spec {
		s := mesh.Spec{Mesh: "demo"}
		for _, name := range names {
			s.Workloads = append(s.Workloads, mesh.Workload{Name: name})
		}
		return s.WithDefaults()
	}
	done := record{found: true, complete: true, spec: spec("a", "b")}
	must := func(r record, err error) record {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	want := func(what string, r record, members string, complete bool) {
		t.Helper()
		var names []string
		for _, w := range r.spec.Workloads {
			names = append(names, w.Name)
		}
		if got := strings.Join(names, " "); got != members || r.public().Complete != complete {
			t.Errorf("%s: members %q, complete %v; want %q, %v", what, got, r.public().Complete, members, complete)
		}
	}
	refused := func(what string, err error, kind failure.Kind, says string) {
		t.Helper()
		if failure.KindOf(err) != kind || !strings.Contains(failure.Message(err), says) {
			t.Errorf("%s: %v", what, err)
		}
	}

	want("a new mesh", must(record{}.setUp(spec("a"), false)), "a", false)
	want("a setup that ends well", must(must(record{}.setUp(spec("a"), false)).setUp(spec("a"), true)), "a", true)
	want("the same setup again", must(done.setUp(spec("a", "b"), false)), "a b", true)
	want("a setup with one more", must(done.setUp(spec("a", "b", "c"), false)), "a b c", false)

	joining := must(done.join(mesh.Workload{Name: "c"}))
	want("one joins", joining, "a b c", false)
	want("it has joined", must(joining.joined(mesh.Workload{Name: "c"})), "a b c", true)
	both := must(joining.join(mesh.Workload{Name: "d"}))
	want("two join at once", both, "a b c d", false)
	want("one of the two has joined", must(both.joined(mesh.Workload{Name: "c"})), "a b c d", false)
	want("both have joined", must(must(both.joined(mesh.Workload{Name: "c"})).joined(mesh.Workload{Name: "d"})), "a b c d", true)
	want("one joins a mesh that is not complete", must(must(record{found: true, spec: spec("a")}.join(mesh.Workload{Name: "b"})).joined(mesh.Workload{Name: "b"})), "a b", false)
	if w, _ := must(done.join(mesh.Workload{Name: "b", Agent: mesh.Agent{Reload: mesh.ReloadHot}})).spec.Workload("b"); w.Agent.Reload != mesh.ReloadHot || w.Context != "b" {
		t.Errorf("a member with other settings: %+v", w)
	}
	_, err := done.join(mesh.Workload{Name: "b", Context: "elsewhere"})
	refused("another cluster of a member's name", err, failure.InvalidInput, `"elsewhere" in this input`)
	_, err = joining.join(mesh.Workload{Name: "d", Context: "c"})
	refused("one cluster under two names", err, failure.InvalidInput, `"c" is workloads[2]'s already`)

	// A setup that began before somebody joined ends after.
	ended := must(joining.setUp(spec("a", "b"), true))
	want("a setup ends while one joins", ended, "a b c", false)
	want("and then it has joined", must(ended.joined(mesh.Workload{Name: "c"})), "a b c", true)
	want("a setup heals an addition that was left half-way", must(must(joining.setUp(spec("a", "b", "c"), false)).setUp(spec("a", "b", "c"), true)), "a b c", true)

	leaving := done.leave("b", time.Time{}, now)
	want("one leaves", leaving, "a b", false)
	known := leaving.leave("b", now.Add(time.Hour), now.Add(time.Minute))
	if d := known.leave("b", now, now).leaving["b"]; !d.Since.Equal(now) || !d.ValidUntil.Equal(now.Add(time.Hour)) {
		t.Errorf("what is known of its certificate got lost: %+v", d)
	}
	left := known.left("b", now.Add(time.Hour), now.Add(2*time.Minute))
	want("it has left", left, "a", true)
	if d := left.leaving["b"]; d.Left.IsZero() || !d.ValidUntil.Equal(now.Add(time.Hour)) {
		t.Errorf("that it was a member is not remembered: %+v", left.leaving)
	}
	if later := left.left("a", time.Time{}, now.Add(48*time.Hour)); len(later.leaving) != 1 {
		t.Errorf("it is remembered for ever: %+v", later.leaving)
	}
	again := must(left.join(mesh.Workload{Name: "b"}))
	want("it comes back", again, "a b", false)
	back := must(again.joined(mesh.Workload{Name: "b"}))
	want("it is back", back, "a b", true)
	if len(back.leaving) > 0 {
		t.Errorf("it is still said to have left: %+v", back.leaving)
	}
	_, err = left.setUp(spec("a", "b"), true)
	refused("a setup that ends after one has left", err, failure.Conflict, `"b" was removed`)
	_, err = left.joined(mesh.Workload{Name: "b"})
	refused("an addition that ends after it was removed", err, failure.Conflict, `"b" was removed`)

	canary := done
	canary.spec.Rollout.Canary = []string{"b"}
	if problems := canary.left("b", now, now).spec.Validate(); len(problems) > 0 {
		t.Errorf("the mesh that is left is not valid: %v", problems)
	}
	ca := mesh.CA{CommonName: "another", KeyType: "ec", KeyBits: 256}
	rotated := func(to int) record {
		t.Helper()
		begun := must(done.rotate(RecordRotationInput{Mesh: "demo", Rotation: &procedure.Rotation{From: 1, To: 2, Intermediate: &ca}}))
		if begun.spec.PKI.Intermediate == ca {
			t.Error("the mesh is described by the intermediate that is still to come")
		}
		return must(begun.rotate(RecordRotationInput{Mesh: "demo", Generations: &procedure.Generations{Root: 1, Intermediate: to}}))
	}
	if rotated(2).spec.PKI.Intermediate != ca || rotated(1).spec.PKI.Intermediate != done.spec.PKI.Intermediate {
		t.Error("a rotation that is over, or taken back, is not described by its intermediate")
	}
	root := mesh.CA{CommonName: "another root", KeyType: "ec", KeyBits: 384}
	ofRoot := RecordRotationInput{Mesh: "demo", Rotation: &procedure.Rotation{Procedure: procedure.RotateRootCA, From: 1, To: 2, FromRoot: 1, ToRoot: 2, Root: &root, Intermediate: &ca}}
	rooted := must(done.rotate(ofRoot))
	if rooted.spec.PKI != done.spec.PKI {
		t.Error("the mesh is described by the root that is still to come")
	}
	over := must(rooted.rotate(RecordRotationInput{Mesh: "demo", Generations: &procedure.Generations{Root: 2, Intermediate: 2}}))
	if over.spec.PKI.Root.CA != root || over.spec.PKI.Intermediate != ca || over.cas.Rotation != nil || over.cas.generations() != (procedure.Generations{Root: 2, Intermediate: 2}) {
		t.Errorf("a rotation of the root that is over: %+v, %+v", over.spec.PKI, over.cas)
	}
	if taken := must(rooted.rotate(RecordRotationInput{Mesh: "demo", Generations: &procedure.Generations{Root: 1, Intermediate: 1}})); taken.spec.PKI != done.spec.PKI || taken.cas.Rotation != nil {
		t.Errorf("one that was taken back: %+v", taken.spec.PKI)
	}
	outside := done
	outside.spec.PKI.Root = mesh.Root{Kept: mesh.KeptOffline, CertificatePEM: "R1"}
	outside = must(outside.rotate(RecordRotationInput{Mesh: "demo", Rotation: &procedure.Rotation{Procedure: procedure.RotateRootCA, From: 1, To: 2, FromRoot: 1, ToRoot: 2, Signed: &procedure.SignedRoot{RootPEM: "R2"}}}))
	for pem, want := range map[string]string{"R2": "R2", "": "R1"} { // over, and taken back
		ended := must(outside.rotate(RecordRotationInput{Mesh: "demo", Generations: &procedure.Generations{Root: 2, Intermediate: 2}, RootPEM: pem}))
		if ended.spec.PKI.Root != (mesh.Root{Kept: mesh.KeptOffline, CertificatePEM: want}) {
			t.Errorf("a root outside Vault that ends with %q is recorded as %+v", pem, ended.spec.PKI.Root)
		}
	}
	_, err = rooted.rotate(RecordRotationInput{Mesh: "demo", Rotation: &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, From: 1, To: 2}})
	refused("a rotation of the intermediate in one of the root", err, failure.Conflict, "RotateRootCA")
	asked := must(done.rotate(RecordRotationInput{Mesh: "demo", Deletions: []procedure.Deletion{{Generation: 1}}}))
	during := must(asked.rotate(RecordRotationInput{Mesh: "demo", Rotation: &procedure.Rotation{From: 2, To: 3}}))
	if gone := must(during.rotate(RecordRotationInput{Mesh: "demo", Deletions: []procedure.Deletion{}})); len(during.public().Deletions) != 1 || len(gone.public().Deletions) != 0 {
		t.Errorf("to be deleted is %+v, and then %+v", during.public().Deletions, gone.public().Deletions)
	}
	// None of it changes the record that it came from.
	want("the first", done, "a b", true)
	want("the second", joining, "a b c", false)
}
