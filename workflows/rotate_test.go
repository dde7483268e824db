package workflows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/testsuite"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/relay"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
)

// scriptedPKI is what a rotation changes, by generations of the intermediate.
type scriptedPKI struct {
	// signs says which intermediates there are, and whether each may issue.
	signs map[int]bool
	// roles and leaves are by the workload's name; the server's is "".
	roles, leaves map[string]int
	deleted       []int
}

func newPKI(workloads ...string) scriptedPKI {
	p := scriptedPKI{signs: map[int]bool{1: true}, roles: map[string]int{"": 1}, leaves: map[string]int{"": 1}}
	for _, name := range workloads {
		p.roles[name], p.leaves[name] = 1, 1
	}
	return p
}

func (p scriptedPKI) String() string {
	return fmt.Sprintf("signs %v roles %v leaves %v", p.signs, p.roles, p.leaves)
}

// everywhere says that all is of one generation, and that no other may issue.
func (p scriptedPKI) everywhere(generation int) error {
	for _, of := range []map[string]int{p.roles, p.leaves} {
		for name, have := range of {
			if have != generation {
				return fmt.Errorf("%q is of generation %d: %s", name, have, p)
			}
		}
	}
	for g, signs := range p.signs {
		if signs != (g == generation) {
			return fmt.Errorf("the intermediate %d may issue: %v", g, signs)
		}
	}
	return nil
}

// ends is when an intermediate does, by default in time enough.
func (o *outside) ends(generation int) time.Time {
	if at, ok := o.endsAt[generation]; ok {
		return at
	}
	return time.Now().AddDate(50, 0, 0)
}

func scriptedIssuer(generation int) string { return fmt.Sprintf("issuer-%d", generation) }

func generationOf(issuer string) int {
	var g int
	_, _ = fmt.Sscanf(issuer, "issuer-%d", &g)
	return g
}

// rotations scripts the activities of the rotations, on o.pki.
func (o *outside) rotations(env *testsuite.TestWorkflowEnvironment) {
	// change guards the script's state, and lets the test interfere.
	change := func(activity, about string, do func()) error {
		noting.Lock()
		defer noting.Unlock()
		if o.calling != nil {
			o.calling(o, activity, about)
		}
		if err := o.fails[strings.TrimSpace(activity+" "+about)]; err != nil {
			return err
		}
		do()
		return nil
	}
	authority := func(generation int) procedure.Authority {
		return procedure.Authority{IssuerID: scriptedIssuer(generation), Name: vault.IntermediateName(generation), NotAfter: o.ends(generation)}
	}
	env.OnActivity(vaults.Survey, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.SurveyInput) (vault.SurveyResult, error) {
		if o.survey != nil {
			return o.survey()
		}
		out := vault.SurveyResult{Root: vault.CAResult{CertificatePEM: "ROOT", Authority: procedure.Authority{IssuerID: "root", Name: "relay-root-g1", NotAfter: o.rootEnds}}, Roles: map[string]string{}}
		err := change("Survey", "", func() {
			for g, signs := range o.pki.signs {
				state := vault.IntermediateState{Authority: authority(g), CertificatePEM: fmt.Sprintf("CA %d", g), Generation: g, HasKey: !slices.Contains(o.pki.deleted, g), Signs: signs}
				out.Intermediates = append(out.Intermediates, state)
				out.Highest = max(out.Highest, g)
				if g == o.pki.roles[""] {
					out.Active = state
				}
			}
			for name, g := range o.pki.roles {
				role := in.Spec.PKI.Role
				if name != "" {
					role = in.Spec.RoleFor(mesh.Workload{Name: name})
				}
				out.Roles[role] = scriptedIssuer(g)
			}
		})
		return out, err
	})
	env.OnActivity(vaults.GenerateIntermediateCSR, mock.Anything, mock.MatchedBy(func(in vault.IntermediateInput) bool { return in.Rotation })).Return(func(_ context.Context, in vault.IntermediateInput) (vault.CSRResult, error) {
		out := vault.CSRResult{CSRPEM: "CSR"}
		if o.csr != "" {
			out.CSRPEM = o.csr
		}
		err := change("GenerateIntermediateCSR", fmt.Sprint(in.Generation), func() { _, out.Present = o.pki.signs[in.Generation] })
		return out, err
	})
	env.OnActivity(vaults.SetSignedIntermediate, mock.Anything, mock.MatchedBy(func(in vault.IntermediateInput) bool { return in.Rotation })).Return(func(_ context.Context, in vault.IntermediateInput) (vault.CAResult, error) {
		if !in.Mode.Writes() {
			return vault.CAResult{}, nil
		}
		var noKey error
		o.asked[in.Generation] = in.CA
		o.rootMounts = append(o.rootMounts, in.RootMount)
		if in.ChainPEM != "" {
			o.imported = in
		}
		err := change("SetSignedIntermediate", fmt.Sprint(in.Generation), func() {
			if slices.Contains(o.pki.deleted, in.Generation) {
				noKey = failure.Permanent(failure.Conflict, "its key is not in this mount")
			}
			if _, there := o.pki.signs[in.Generation]; !there {
				o.pki.signs[in.Generation] = true
			}
		})
		return vault.CAResult{CertificatePEM: fmt.Sprintf("CA %d", in.Generation), Authority: authority(in.Generation)}, errors.Join(err, noKey)
	})
	env.OnActivity(vaults.ProveIssuer, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.ProveIssuerInput) (vault.ProveIssuerResult, error) {
		return vault.ProveIssuerResult{ChainPEM: "CHAIN"}, change("ProveIssuer", in.IssuerID, func() {})
	})
	env.OnActivity(vaults.MoveRole, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.MoveRoleInput) (procedure.Outcome, error) {
		var out procedure.Outcome
		err := change("MoveRole", strings.TrimSpace(in.Workload+" "+in.IssuerID), func() {
			if have, ok := o.pki.roles[in.Workload]; ok && have != generationOf(in.IssuerID) {
				out.Changed(procedure.Update, "role", "")
				if in.Mode.Writes() {
					o.pki.roles[in.Workload] = generationOf(in.IssuerID)
				}
			}
		})
		return out, err
	})
	env.OnActivity(vaults.UseIssuer, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.UseIssuerInput) (out procedure.Outcome, err error) {
		return out, change("UseIssuer", fmt.Sprintf("%s signs:%v", in.IssuerID, in.Signs), func() {
			if in.Mode.Writes() {
				o.pki.signs[generationOf(in.IssuerID)] = in.Signs
			}
		})
	})
	env.OnActivity(vaults.ConfigureTidy, mock.Anything, mock.Anything).Return(procedure.Outcome{}, nil)
	env.OnActivity(vaults.DeleteKey, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.DeleteKeyInput) (out procedure.Outcome, err error) {
		g := generationOf(in.IssuerID)
		if in.Name != vault.IntermediateName(g) || in.CertificatePEM != fmt.Sprintf("CA %d", g) || o.pki.signs[g] || o.record.Rotation != nil {
			return out, failure.Permanent(failure.Conflict, "%+v is to be deleted of %s, in %+v", in, o.pki, o.record.Rotation)
		}
		return out, change("DeleteKey", in.IssuerID, func() {
			o.pki.signs[g] = false
			o.pki.deleted = append(o.pki.deleted, g)
		})
	})
	env.OnActivity(vaults.TakeSnapshot, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.SnapshotInput) (vault.SnapshotResult, error) {
		return vault.SnapshotResult{Path: "/snapshots/" + in.File}, change("TakeSnapshot", in.File, func() {})
	})
	env.OnActivity(certManagers.Reissue, mock.Anything, mock.Anything).Return(func(_ context.Context, in certmanager.ReissueInput) (out certmanager.CertificateResult, err error) {
		name := in.Context
		if in.Server {
			name = ""
		}
		err = change("Reissue", name, func() {
			if !in.Mode.Writes() {
				return
			}
			g := o.pki.roles[name]
			if !o.pki.signs[g] || in.IntermediatePEM != fmt.Sprintf("CA %d", g) {
				err = failure.Permanent(failure.Mismatch, "%q has a role of generation %d, and %s was asked for", name, g, in.IntermediatePEM)
				return
			}
			if name == "" {
				o.serverEnded = false
			}
			delete(o.differs, "chain "+name)
			if o.pki.leaves[name] != g || !in.Since.IsZero() {
				o.pki.leaves[name] = g
				out.Changed(procedure.Update, "certificate", "")
			}
		})
		return out, err
	})
	env.OnActivity(kubernetes.ChangeTrust, mock.Anything, mock.Anything).Return(procedure.Outcome{}, nil)
	env.OnActivity(kubernetes.RestartDeployment, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.RestartInput) (out procedure.Outcome, err error) {
		return out, change("RestartDeployment", in.Context, func() {})
	})
	env.OnActivity(relays.ReadServer, mock.Anything, mock.Anything).Return(func(context.Context, relay.ServerInput) (relay.ServerResult, error) {
		out := o.serverHas
		out.Presents, out.Trusted = "relay-intermediate-g1", []string{"relay-root-g1"}
		return out, change("ReadServer", "", func() { out.Ended = o.serverEnded })
	})
	env.OnActivity(relays.CheckPair, mock.Anything, mock.Anything).Return(func(_ context.Context, in relay.CheckPairInput) (out relay.CheckPairResult, err error) {
		err = change("CheckPair", in.Cluster, func() {
			if o.differs["CheckPair "+in.Cluster] || o.differs["chain "+in.Cluster] && in.Issuing != "CA 1" || in.RootsOnly && o.differs["RootsOnly "+in.Cluster] {
				out.Problems = []string{"the agent does not accept the server"}
			}
			out.Presents, out.Trusts = "relay-intermediate-g1", []string{"relay-root-g1"}
		})
		return out, err
	})
	env.OnActivity(relays.ShakeHands, mock.Anything, mock.Anything).Return(func(_ context.Context, in relay.ShakeHandsInput) (out procedure.Outcome, err error) {
		if shaken := change("ShakeHands", in.Cluster, func() {
			if o.serverEnded {
				err = failure.Permanent(failure.Unhealthy, "the server's certificate has expired")
			}
		}); shaken != nil {
			return out, shaken
		}
		return out, err
	})
	env.OnActivity(kubernetes.RecordRotation, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.RecordRotationInput) (out cluster.RecordMemberResult, err error) {
		err = change("RecordRotation", "", func() {
			o.record.Rotation = in.Rotation
			if in.Generations != nil {
				o.record.Generations = *in.Generations
			}
			if in.Deletions != nil {
				o.record.Deletions = in.Deletions
			}
			if in.Quarantined != nil {
				o.record.Quarantined = in.Quarantined
			}
			out.Record = o.record
		})
		return out, err
	})
}

// rotated is a mesh of two clusters whose rotations ask nobody and wait for
// nothing.
func rotated() *outside {
	record := complete()
	record.Generations = procedure.Generations{Root: 1, Intermediate: 1}
	record.Spec.Rotation.Approval, record.Spec.Rotation.Snapshot = mesh.ApprovalNone, mesh.SnapshotNone
	return &outside{record: record, pki: newPKI("cluster1", "cluster2"), fails: map[string]error{}, asked: map[int]mesh.CA{}, rootEnds: time.Now().AddDate(100, 0, 0)}
}

func rotate(t *testing.T, o *outside, input string) (procedure.RotateResult, error) {
	t.Helper()
	env := newRun(t, o)
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(input))
	var result procedure.RotateResult
	if err := env.GetWorkflowError(); err != nil {
		return result, err
	}
	if err := env.GetWorkflowResult(&result); err != nil {
		t.Fatal(err)
	}
	return result, nil
}

func TestRotateIntermediate(t *testing.T) {
	o := rotated()
	result, err := rotate(t, o, `{"mesh":"demo"}`)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.pki.everywhere(2); err != nil {
		t.Error(err)
	}
	if o.record.Rotation != nil || o.record.Generations.Intermediate != 2 {
		t.Errorf("recorded is %+v, %+v", o.record.Rotation, o.record.Generations)
	}
	if !result.Changed || result.From.Name != "relay-intermediate-g1" || result.To.Name != "relay-intermediate-g2" || len(result.Clusters) != 2 || result.RolledBack != "" {
		t.Errorf("result %+v", result)
	}
	// Recorded before anything is made; proven before any role is moved; the
	// canary, the server, the others; nothing taken from the previous one before
	// all roles were read.
	if missing := inOrder(o.calls, "Survey", "ReadServer", "CheckPair", "AcquireLock mgmtrelaypki-demo-ca", "RecordRotation", "GenerateIntermediateCSR", "SetSignedIntermediate", "ProveIssuer", "CheckPair",
		"AcquireLock mgmtrelaypki-demo-cluster-cluster1", "MoveRole", "CheckPair", "Reissue cluster1", "RestartDeployment cluster1", "ShakeHands", "ReleaseLock mgmtrelaypki-demo-cluster-cluster1",
		"ShakeHands", "MoveRole", "Reissue mgmt", "ReadServer", "AcquireLock mgmtrelaypki-demo-cluster-cluster2", "Reissue cluster2", "Survey", "VerifyManagement",
		"UseIssuer", "ConfigureTidy", "RecordRotation", "ReleaseLock mgmtrelaypki-demo-ca"); missing != "" {
		t.Errorf("no %q in its place in %q", missing, o.calls)
	}
	if o.count("DeleteKey") > 0 {
		t.Error("a key was deleted that nobody asked to delete")
	}

	// And once more, from there.
	if _, err := rotate(t, o, `{"mesh":"demo"}`); err != nil {
		t.Fatal(err)
	}
	if err := o.pki.everywhere(3); err != nil {
		t.Error(err)
	}
}

// The new intermediate may be another than the one at work; a run that goes on
// makes the one that was begun.
func TestRotateToAnotherKindOfIntermediate(t *testing.T) {
	o := rotated()
	wanted := o.record.Spec.WithDefaults().PKI.Intermediate
	wanted.KeyType, wanted.KeyBits, wanted.TTL = "ec", 256, mesh.Hours(8760)
	o.fails["ProveIssuer issuer-2"] = failure.Permanent(failure.Unavailable, "the run is lost here")
	const other = `{"mesh":"demo","intermediate":{"keyType":"ec","ttl":"8760h"}}`
	for range 2 {
		if _, err := rotate(t, o, other); failure.KindOf(err) != failure.Unavailable {
			t.Fatalf("it is not lost: %v", err)
		}
	}
	_, err := rotate(t, o, `{"mesh":"demo","intermediate":{"keyType":"ec","keyBits":384}}`)
	if failure.KindOf(err) != failure.InvalidInput || !strings.Contains(failure.Message(err), "relaypki rollback demo") {
		t.Errorf("a third kind in the midst of it: %v", err)
	}
	delete(o.fails, "ProveIssuer issuer-2")
	if _, err := rotate(t, o, `{"mesh":"demo"}`); err != nil {
		t.Fatal(err)
	}
	// The one at work is whatever it is, also if the mesh is described otherwise.
	if o.asked[1] != (mesh.CA{}) || o.asked[2] != wanted {
		t.Errorf("asked for %+v, want nothing and then %+v", o.asked, wanted)
	}

	o = rotated()
	o.rootEnds = time.Now().AddDate(2, 0, 0)
	_, err = rotate(t, o, `{"mesh":"demo"}`)
	if failure.KindOf(err) != failure.Preflight || !strings.Contains(failure.Message(err), "relaypki rotate intermediate demo --ttl") || o.record.Rotation != nil {
		t.Errorf("an intermediate that would outlive its root: %v, %+v", err, o.record.Rotation)
	}
	if _, err := rotate(t, o, other); err != nil {
		t.Errorf("one that does not: %v", err)
	}
	_, err = rotate(t, o, `{"mesh":"demo","intermediate":{"keyType":"ed25519","ttl":"1m"}}`)
	if message := failure.Message(err); failure.KindOf(err) != failure.InvalidInput || !strings.Contains(message, "pki.intermediate.keyType") || !strings.Contains(message, "pki.intermediate.ttl") {
		t.Errorf("one that cannot be: %v", err)
	}
}

// Whatever had been done by a run whose history is lost, another one finishes
// it, with the intermediate that there is.
func TestRotateIntermediateGoesOn(t *testing.T) {
	for lost := 1; ; lost++ {
		o := rotated()
		writes := 0
		o.calling = func(o *outside, activity, _ string) {
			switch activity {
			case "DeleteKey", "RecordRotation", "SetSignedIntermediate", "MoveRole", "Reissue", "UseIssuer", "RestartDeployment":
				if writes++; writes >= lost {
					if activity == "DeleteKey" { // of the issuer at least, not of the key
						delete(o.pki.signs, 1)
					}
					o.fails[activity] = failure.Permanent(failure.Unavailable, "the history is lost here")
					for _, about := range []string{"", "1", "2", "cluster1", "cluster2", "issuer-2", "cluster1 issuer-2", "cluster2 issuer-2", "issuer-1", "issuer-1 signs:false"} {
						o.fails[strings.TrimSpace(activity+" "+about)] = o.fails[activity]
					}
				}
			}
		}
		run := func() error {
			env := newRun(t, o)
			whenAsked(t, env, "delete key", procedure.ApproveUpdate, `{"phase":"delete key"}`)
			env.RegisterDelayedCallback(env.CancelWorkflow, 40*24*time.Hour) // parked for good
			env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo","deleteOldKey":true}`))
			return env.GetWorkflowError()
		}
		if run() == nil {
			if lost < 10 {
				t.Fatalf("only %d writes were seen", lost)
			}
			return // through without a loss: every point was tried
		}
		before := o.pki.String()
		o.calling, o.fails = nil, map[string]error{}
		if err := run(); err != nil {
			t.Fatalf("lost at write %d (%s): %v", lost, before, err)
		}
		if err := o.pki.everywhere(2); err != nil {
			t.Errorf("lost at write %d (%s): %v", lost, before, err)
		}
		if !slices.Contains(o.pki.deleted, 1) || o.record.Rotation != nil || len(o.record.Deletions) > 0 || o.record.Generations.Intermediate != 2 {
			t.Errorf("lost at write %d (%s): deleted %v, recorded %+v", lost, before, o.pki.deleted, o.record)
		}
	}
}

// A rotation that is taken back in any phase ends where it began, and the next
// one is of a generation of its own.
func TestRotateIntermediateRollsBack(t *testing.T) {
	for _, phase := range []string{"stage", "canary", "server", "fleet", "retire", "finish"} {
		t.Run(phase, func(t *testing.T) {
			o := rotated()
			o.record.Spec.Rotation.Approval = mesh.ApprovalEachPhase
			env := newRun(t, o)
			answered := map[string]bool{}
			everyMinute(env, func() {
				p := query(t, env)
				asked, _, _ := strings.Cut(p.Awaiting, ":")
				waitsOut := strings.Contains(p.Awaiting, "approve demo finish")
				switch {
				case answered[asked]:
				case waitsOut && phase == "finish" || asked == fmt.Sprintf("approval of %q", phase):
					answered[asked] = true
					update(t, env, procedure.RollbackUpdate, `{"reason":"we have changed our mind"}`)
				case waitsOut:
				case strings.HasPrefix(asked, "approval of "):
					answered[asked] = true
					update(t, env, procedure.ApproveUpdate, fmt.Sprintf(`{"phase":%q}`, strings.Trim(strings.TrimPrefix(asked, "approval of "), `"`)))
				}
			})
			env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo"}`))
			err := env.GetWorkflowError()
			if failure.KindOf(err) != failure.RolledBack || !strings.Contains(failure.Message(err), "we have changed our mind") {
				t.Fatalf("it ended with %v", err)
			}
			if err := o.pki.everywhere(1); err != nil {
				t.Error(err)
			}
			if o.record.Rotation != nil || o.record.Generations.Intermediate != 1 || len(o.pki.deleted) > 0 {
				t.Errorf("recorded is %+v, %+v; deleted %v", o.record.Rotation, o.record.Generations, o.pki.deleted)
			}
			next := 2
			if _, staged := o.pki.signs[2]; staged {
				next = 3
			}
			o.record.Spec.Rotation.Approval = mesh.ApprovalNone
			if _, err := rotate(t, o, `{"mesh":"demo"}`); err != nil {
				t.Fatal(err)
			}
			if err := o.pki.everywhere(next); err != nil {
				t.Error(err)
			}
		})
	}
}

// When the deletion of a key is asked for the rotation is over: whoever does not
// want it aborts, and whoever asks for it again gets no other rotation.
func TestDeletionOfAKeyThatIsAskedFor(t *testing.T) {
	o := rotated()
	const input = `{"mesh":"demo","deleteOldKey":true}`
	env := newRun(t, o)
	whenAsked(t, env, "delete key", procedure.AbortUpdate, `{"reason":"let us keep it"}`)
	asked := ""
	var refused error
	everyHour(env, func() {
		if p := query(t, env); p.Asked == "delete key" && asked == "" {
			asked = p.Awaiting
			env.UpdateWorkflow(procedure.RollbackUpdate, "back", &testsuite.TestUpdateCallback{
				OnReject: func(err error) { refused = err }, OnAccept: func() {}, OnComplete: func(any, error) {},
			}, json.RawMessage(`{"reason":"we have changed our mind"}`))
		}
	})
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(input))
	if err := env.GetWorkflowError(); failure.KindOf(err) != failure.Aborted {
		t.Fatalf("it ended with %v", err)
	}
	for _, says := range []string{"relay-intermediate-g1", "relaypki approve demo 'delete key'", "leave the key where it is: relaypki abort demo"} {
		if !strings.Contains(asked, says) {
			t.Errorf("no %q in %q", says, asked)
		}
	}
	if strings.Contains(asked, "rollback") || refused == nil || !strings.Contains(refused.Error(), "the rotation is over") {
		t.Errorf("a rollback: offered in %q, refused with %v", asked, refused)
	}
	want := []procedure.Deletion{{Generation: 1, IssuerID: "issuer-1", CertificatePEM: "CA 1"}}
	if o.record.Rotation != nil || o.record.Generations.Intermediate != 2 || len(o.pki.deleted) > 0 || !slices.Equal(o.record.Deletions, want) {
		t.Errorf("after the abort: recorded %+v, deleted %v", o.record, o.pki.deleted)
	}
	if _, err := rotate(t, o, `{"mesh":"demo","rollback":true,"reason":"late"}`); failure.KindOf(err) != failure.InvalidInput {
		t.Errorf("a rollback of what is over: %v", err)
	}

	// Without the flag a rotation begins, and forgets no key; with it none does.
	if _, err := rotate(t, o, `{"mesh":"demo"}`); err != nil {
		t.Fatal(err)
	}
	if err := o.pki.everywhere(3); err != nil || !slices.Equal(o.record.Deletions, want) || len(o.pki.deleted) > 0 {
		t.Errorf("%v; recorded %+v, deleted %v", err, o.record, o.pki.deleted)
	}
	if planned, err := rotate(t, o, `{"mesh":"demo","deleteOldKey":true,"plan":true}`); err != nil || planned.Changed || len(planned.Steps) != 1 || len(o.record.Deletions) != 1 {
		t.Errorf("a plan: %+v, %v", planned.Steps, err)
	}
	o.calls, o.pki.deleted, o.record.Quarantined = nil, nil, map[string]string{"cluster2": "in repair"}
	env = newRun(t, o)
	whenAsked(t, env, "delete key", procedure.ApproveUpdate, `{"phase":"delete key"}`)
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(input))
	var result procedure.RotateResult
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	} else if err := env.GetWorkflowResult(&result); err != nil {
		t.Fatal(err)
	}
	if err := o.pki.everywhere(3); err != nil || !slices.Equal(o.pki.deleted, []int{1}) || len(o.record.Deletions) > 0 || !slices.Equal(result.Deleted, []string{"relay-intermediate-g1"}) || len(o.record.Quarantined) != 1 {
		t.Errorf("%v; deleted %v and %v, recorded %+v", err, o.pki.deleted, result.Deleted, o.record)
	}
	if o.count("MoveRole")+o.count("Reissue")+o.count("GenerateIntermediateCSR") > 0 {
		t.Errorf("another rotation: %q", o.calls)
	}
}

// Somebody has deleted the previous intermediate's key by hand: the rotation goes
// forward, and nobody takes it back, whatever is recorded.
func TestRotationWhosePreviousKeyIsGone(t *testing.T) {
	for _, back := range []string{"", "asked once"} {
		o := rotated()
		o.pki.signs[1], o.pki.signs[2] = false, true
		o.pki.deleted = []int{1}
		for name := range o.pki.roles {
			o.pki.roles[name], o.pki.leaves[name] = 2, 2
		}
		o.record.Rotation = &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, From: 1, To: 2, Back: back}
		before := *o.record.Rotation
		_, err := rotate(t, o, `{"mesh":"demo","rollback":true,"reason":"late"}`)
		if failure.KindOf(err) != failure.Preflight || !strings.Contains(failure.Message(err), "its key is not in Vault any more") || *o.record.Rotation != before {
			t.Errorf("a rollback: %v, recorded %+v", err, o.record.Rotation)
		}
		env := newRun(t, o)
		var refused error
		env.RegisterDelayedCallback(func() {
			env.UpdateWorkflow(procedure.RollbackUpdate, "back", &testsuite.TestUpdateCallback{
				OnReject: func(err error) { refused = err }, OnAccept: func() {}, OnComplete: func(any, error) {},
			}, json.RawMessage(`{"reason":"late"}`))
		}, time.Hour) // while the last certificate is waited out
		env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo"}`))
		if err := env.GetWorkflowError(); err != nil || o.record.Rotation != nil || o.record.Generations.Intermediate != 2 {
			t.Errorf("back %q: %v, recorded %+v", back, err, o.record)
		}
		if refused == nil || !strings.Contains(refused.Error(), "its key is not in Vault any more") {
			t.Errorf("back %q: a rollback in the midst of it: %v", back, refused)
		}
	}
}

// What a rollback cuts off may still happen in Vault, after all was looked at: it
// is looked at again when it no longer can.
func TestRollBackOutlastsWhatItCutsOff(t *testing.T) {
	for call, lands := range map[string]func(scriptedPKI){
		"UseIssuer issuer-1 signs:false": func(p scriptedPKI) { p.signs[1] = false },
		"MoveRole cluster2 issuer-2":     func(p scriptedPKI) { p.roles["cluster2"] = 2 },
		"MoveRole issuer-2":              func(p scriptedPKI) { p.roles[""] = 2 },
	} {
		t.Run(call, func(t *testing.T) {
			o := rotated()
			env := newRun(t, o)
			var late func()
			o.calling = func(o *outside, activity, about string) {
				if activity+" "+about != call || late != nil {
					return
				}
				o.fails[call] = failure.Transient(failure.Unavailable, "the connection was cut")
				late = sync.OnceFunc(func() {
					noting.Lock()
					defer noting.Unlock()
					lands(o.pki)
				})
				env.RegisterDelayedCallback(func() { update(t, env, procedure.RollbackUpdate, `{"reason":"it is not liked"}`) }, 0)
				env.RegisterDelayedCallback(late, 89*time.Second)
			}
			env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo"}`))
			if err := env.GetWorkflowError(); failure.KindOf(err) != failure.RolledBack {
				t.Fatalf("it ended with %v", err)
			}
			late() // at the latest
			if err := o.pki.everywhere(1); err != nil {
				t.Error(err)
			}
		})
	}
}

// The run of a rotation is gone: another one takes it back.
func TestRollBackOfALostRun(t *testing.T) {
	o := rotated()
	o.pki.signs[2] = true
	o.pki.roles["cluster1"], o.pki.leaves["cluster1"] = 2, 2
	o.record.Rotation = &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, From: 1, To: 2}
	result, err := rotate(t, o, `{"mesh":"demo","rollback":true,"reason":"too late"}`)
	if err != nil || result.RolledBack != "too late" {
		t.Fatalf("%+v, %v", result, err)
	}
	if err := o.pki.everywhere(1); err != nil {
		t.Error(err)
	}
	if _, err := rotate(t, o, `{"mesh":"demo","rollback":true,"reason":"once more"}`); failure.KindOf(err) != failure.InvalidInput {
		t.Errorf("a rollback of nothing: %v", err)
	}
}

// Work begins in a maintenance window: not before, not while somebody has paused the
// run, and clusters that wait for it can be left out. Who goes back, and who has
// leaves issued anew because they are about to end, waits for none.
func TestWindows(t *testing.T) {
	tuesday := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	windowed := func() *outside {
		o := rotated()
		o.record.Spec.Rotation.Windows = []mesh.Window{{Days: []string{"Tue"}, From: "14:00", To: "18:00"}}
		o.record.Spec.Rotation.TimeZone = "UTC"
		return o
	}
	worked := func(o *outside) int {
		return o.count("MoveRole") + o.count("Reissue cluster1") + o.count("Reissue mgmt")
	}

	o := windowed()
	env := newRun(t, o)
	env.SetStartTime(tuesday)
	env.RegisterDelayedCallback(func() {
		if p := query(t, env); !strings.Contains(p.Awaiting, "window that opens at 2026-11-24 14:00") || worked(o) > 0 {
			t.Errorf("before the window it waits for %q, and %d were worked on", p.Awaiting, worked(o))
		}
		update(t, env, procedure.PauseUpdate, `{"reason":"freeze"}`)
		update(t, env, procedure.QuarantineUpdate, `{"clusters":["cluster2"],"reason":"in repair"}`)
	}, 30*time.Minute)
	env.RegisterDelayedCallback(func() {
		if worked(o) > 0 {
			t.Errorf("paused, the window open: %d were worked on", worked(o))
		}
		update(t, env, procedure.ResumeUpdate, `{}`)
	}, 3*time.Hour)
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo"}`))
	if err := env.GetWorkflowError(); failure.KindOf(err) != failure.Incomplete || o.pki.leaves["cluster1"] != 2 || o.pki.leaves["cluster2"] != 1 {
		t.Errorf("it ended with %v: %s", err, o.pki)
	}

	o = windowed()
	o.pki.signs[2] = true
	o.pki.roles[""], o.pki.leaves[""] = 2, 2
	o.record.Rotation = &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, From: 1, To: 2}
	env = newRun(t, o)
	env.SetStartTime(tuesday)
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo","rollback":true,"reason":"bad"}`))
	if took := env.Now().Sub(tuesday); env.GetWorkflowError() != nil || took > time.Hour {
		t.Errorf("a rollback took %s, and ended with %v", took, env.GetWorkflowError())
	}

	o = windowed()
	env = newRun(t, o)
	env.SetStartTime(tuesday)
	env.ExecuteWorkflow(procedure.RotateLeafCertificates, json.RawMessage(`{"mesh":"demo"}`))
	if took := env.Now().Sub(tuesday); env.GetWorkflowError() != nil || took > time.Hour {
		t.Errorf("a rotation of leaves took %s, and ended with %v", took, env.GetWorkflowError())
	}
}

// A previous intermediate that would end before the next leaves do is no way back,
// and a rotation that was to go that way goes forward.
func TestNoWayBack(t *testing.T) {
	begun := func() *outside {
		o := rotated()
		o.endsAt = map[int]time.Time{1: time.Now().Add(24*time.Hour + 20*time.Minute)}
		o.pki.signs[2] = true
		o.record.Rotation = &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, From: 1, To: 2}
		return o
	}
	o := begun()
	_, err := rotate(t, o, `{"mesh":"demo","rollback":true,"reason":"bad"}`)
	if failure.KindOf(err) != failure.Preflight || !strings.Contains(failure.Message(err), "It only goes forward") || o.record.Rotation.Back != "" {
		t.Errorf("%v, recorded %+v", err, o.record.Rotation)
	}

	o = begun()
	o.record.Rotation.Back = "it was still possible then"
	if _, err := rotate(t, o, `{"mesh":"demo"}`); err != nil {
		t.Fatal(err)
	}
	if err := o.pki.everywhere(2); err != nil {
		t.Error(err)
	}

	o = begun()
	o.record.Spec.Rotation.Approval = mesh.ApprovalEachPhase
	env := newRun(t, o)
	var refused string
	env.RegisterDelayedCallback(func() {
		env.UpdateWorkflow(procedure.RollbackUpdate, "back", &testsuite.TestUpdateCallback{
			OnReject: func(err error) { refused = err.Error() }, OnAccept: func() {}, OnComplete: func(any, error) {},
		}, json.RawMessage(`{"reason":"bad"}`))
	}, time.Minute)
	env.RegisterDelayedCallback(env.CancelWorkflow, time.Hour)
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo"}`))
	if !strings.Contains(refused, "cannot be issued under it") {
		t.Errorf("a rollback is answered with %q", refused)
	}
}

// That a rotation is to go back is not forgotten by a run that is ended before it
// could; and an abort takes neither word.
func TestRollbackIsRemembered(t *testing.T) {
	o := rotated()
	o.record.Spec.Rotation.Approval = mesh.ApprovalEachPhase
	env := newRun(t, o)
	sent := false
	everyMinute(env, func() {
		p := query(t, env)
		switch {
		case p.Asked == "server" && !sent:
			sent = true
			update(t, env, procedure.PauseUpdate, `{"reason":"freeze"}`)
			update(t, env, procedure.RollbackUpdate, `{"reason":"bad"}`)
		case sent:
			update(t, env, procedure.AbortUpdate, `{"reason":"enough"}`)
		case p.Asked != "":
			update(t, env, procedure.ApproveUpdate, fmt.Sprintf(`{"phase":%q}`, p.Asked))
		}
	})
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo"}`))
	if err := env.GetWorkflowError(); failure.KindOf(err) != failure.Aborted || o.record.Rotation == nil || o.record.Rotation.Back != "bad" {
		t.Fatalf("%v, recorded %+v", err, o.record.Rotation)
	}
	if result, err := rotate(t, o, `{"mesh":"demo"}`); failure.KindOf(err) != failure.RolledBack || o.pki.everywhere(1) != nil {
		t.Errorf("the next run: %+v, %v, %s", result, err, o.pki)
	}
}

// A role that all share and that somebody writes back is said, and not written again
// and again.
func TestSharedRoleComesBack(t *testing.T) {
	o := rotated()
	o.record.Spec.PKI.Isolation = mesh.IsolationShared
	delete(o.pki.roles, "cluster1")
	delete(o.pki.roles, "cluster2")
	o.calling = func(o *outside, activity, about string) {
		switch {
		case activity == "ShakeHands" && about == "cluster2":
			o.pki.roles[""] = 1 // somebody else's tool
		case activity == "Reissue" && about != "":
			o.pki.roles[about] = 2 // the script reads roles by name
		case activity == "Survey":
			delete(o.pki.roles, "cluster1")
			delete(o.pki.roles, "cluster2")
		}
	}
	_, err := rotate(t, o, `{"mesh":"demo"}`)
	if failure.KindOf(err) != failure.Conflict || !strings.Contains(failure.Message(err), "somebody has written it meanwhile") || o.count("Reissue cluster2") != 1 {
		t.Errorf("%v after %d issuances", err, o.count("Reissue cluster2"))
	}
}

// Between the canary and the others, who is dead is left out.
func TestQuarantineBeforeTheFleet(t *testing.T) {
	o := rotated()
	o.record.Spec.Rotation.Approval = mesh.ApprovalAfterCanary
	env := newRun(t, o)
	env.RegisterDelayedCallback(func() {
		update(t, env, procedure.QuarantineUpdate, `{"clusters":["cluster2"],"reason":"dead"}`)
		update(t, env, procedure.ApproveUpdate, `{"phase":"server"}`)
	}, time.Hour)
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo"}`))
	if err := env.GetWorkflowError(); failure.KindOf(err) != failure.Incomplete || o.record.Quarantined["cluster2"] != "dead" || o.pki.leaves["cluster2"] != 1 {
		t.Errorf("%v, recorded %v, %s", err, o.record.Quarantined, o.pki)
	}
}

// Somebody has run a plan's commands, all of them or some: the rotation goes on
// with the intermediate that they made.
func TestRotationBegunByHand(t *testing.T) {
	o := rotated()
	o.pki.signs[2] = true
	o.pki.roles["cluster1"], o.pki.leaves["cluster1"] = 2, 2
	if _, err := rotate(t, o, `{"mesh":"demo"}`); err != nil {
		t.Fatal(err)
	}
	if err := o.pki.everywhere(2); err != nil {
		t.Error(err)
	}
	for name := range o.pki.roles {
		o.pki.roles[name], o.pki.leaves[name] = 3, 3
	}
	o.pki.signs[2], o.pki.signs[3] = false, true
	result, err := rotate(t, o, `{"mesh":"demo"}`)
	if err != nil || result.From.Name != "relay-intermediate-g2" || result.To.Name != "relay-intermediate-g3" || o.record.Generations.Intermediate != 3 {
		t.Errorf("one that was finished by hand: from %q to %q, recorded %+v, %v", result.From.Name, result.To.Name, o.record.Generations, err)
	}
	if err := o.pki.everywhere(3); err != nil {
		t.Error(err)
	}
}

// What a cluster is parked for may be the rotation itself: taken back, it is tried
// again with the intermediate that it had.
func TestRollBackWithAParkedCluster(t *testing.T) {
	o := rotated()
	o.record.Spec.Rollout.Canary = []string{"cluster1"}
	o.calling = func(o *outside, activity, about string) {
		if activity == "Reissue" && about == "cluster2" {
			delete(o.fails, "Reissue cluster2")
			if o.pki.roles["cluster2"] == 2 {
				o.fails["Reissue cluster2"] = failure.Permanent(failure.Denied, "an approver does not like the new one")
			}
		}
	}
	env := newRun(t, o)
	sent := false
	everyMinute(env, func() {
		if p := query(t, env); p.Person && !sent {
			sent = true
			update(t, env, procedure.RollbackUpdate, `{"reason":"it is not liked"}`)
		}
	})
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo"}`))
	if err := env.GetWorkflowError(); failure.KindOf(err) != failure.RolledBack {
		t.Fatalf("it ended with %v", err)
	}
	if err := o.pki.everywhere(1); err != nil {
		t.Error(err)
	}
}

// leaves has a cluster leave the mesh: it is no member, and answers to nothing.
func (o *outside) leaves(name string) {
	o.record.Spec.Workloads = slices.DeleteFunc(slices.Clone(o.record.Spec.Workloads), func(w mesh.Workload) bool { return w.Name == name })
	delete(o.pki.roles, name)
	delete(o.pki.leaves, name)
	for _, activity := range []string{"CheckPair", "Reissue", "ShakeHands"} {
		o.fails[activity+" "+name] = failure.Permanent(failure.Unavailable, "it is no more")
	}
}

// Who joins in the midst of a rotation has a certificate of the new intermediate
// by its end; who leaves is no hindrance.
func TestMembersComeAndGoInARotation(t *testing.T) {
	o := rotated()
	once := false
	o.calling = func(o *outside, activity, about string) {
		if activity == "Reissue" && about == "" && !once {
			once = true
			o.record.Spec = o.record.Spec.With(mesh.Workload{Name: "cluster3"})
			o.pki.roles["cluster3"], o.pki.leaves["cluster3"] = 1, 1
			o.leaves("cluster2")
		}
	}
	if _, err := rotate(t, o, `{"mesh":"demo"}`); err != nil {
		t.Fatal(err)
	}
	if err := o.pki.everywhere(2); err != nil {
		t.Error(err)
	}
}

// A cluster that does not answer has its role moved all the same, and is left out
// only by name.
func TestQuarantineInARotation(t *testing.T) {
	o := rotated()
	o.fails["Reissue cluster2"] = failure.Permanent(failure.Unavailable, "no route to host")
	env := newRun(t, o)
	everyMinute(env, func() {
		if p := query(t, env); p.Person && strings.Contains(p.Awaiting, "relaypki quarantine demo cluster2") {
			update(t, env, procedure.QuarantineUpdate, `{"clusters":["cluster2"],"reason":"in repair"}`)
		}
	})
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo"}`))
	if err := env.GetWorkflowError(); failure.KindOf(err) != failure.Incomplete || !strings.Contains(failure.Message(err), "relaypki rotate leaf demo") {
		t.Fatalf("it ended with %v", err)
	}
	if o.pki.roles["cluster2"] != 2 || o.pki.leaves["cluster2"] != 1 || o.pki.signs[1] {
		t.Errorf("%s", o.pki)
	}
	if !maps.Equal(o.record.Quarantined, map[string]string{"cluster2": "in repair"}) || o.record.Rotation != nil {
		t.Errorf("recorded is %+v, %+v", o.record.Quarantined, o.record.Rotation)
	}

	// Later it answers again.
	o.fails, o.calls = map[string]error{}, nil
	env = newRun(t, o)
	env.ExecuteWorkflow(procedure.RotateLeafCertificates, json.RawMessage(`{"mesh":"demo","clusters":["cluster2"]}`))
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	if len(o.record.Quarantined) > 0 || o.pki.leaves["cluster2"] != 2 || o.count("Reissue cluster1") > 0 || o.count("Reissue mgmt") > 0 || o.count("MoveRole") > 0 {
		t.Errorf("%v, %s, %q", o.record.Quarantined, o.pki, o.calls)
	}
}

func TestRotationsRefuse(t *testing.T) {
	for name, c := range map[string]struct {
		input   string
		prepare func(*outside)
		kind    failure.Kind
		says    string
	}{
		"no mesh":                {`{}`, func(*outside) {}, failure.InvalidInput, "mesh: is missing"},
		"a mistyped field":       {`{"mesh":"demo","aproval":"none"}`, func(*outside) {}, failure.InvalidInput, "approval"},
		"an unknown approval":    {`{"mesh":"demo","approval":"maybe"}`, func(*outside) {}, failure.InvalidInput, "afterCanary"},
		"a rollback without why": {`{"mesh":"demo","rollback":true}`, func(*outside) {}, failure.InvalidInput, "reason"},
		"another rotation": {`{"mesh":"demo"}`, func(o *outside) {
			o.record.Rotation = &procedure.Rotation{Procedure: "RotateRootCA", From: 1, To: 2, Workflow: "default/rotate-root/1"}
		}, failure.Conflict, "default/rotate-root/1"},
		"locked": {`{"mesh":"demo"}`, func(o *outside) {
			o.fails["AcquireLock relaypki-demo-ca"] = failure.Permanent(failure.Locked, "held by rotate-leaf-demo")
		}, failure.Locked, "rotate-leaf-demo"},
		"a handshake that would fail": {`{"mesh":"demo"}`, func(o *outside) { o.differs = map[string]bool{"CheckPair cluster2": true} }, failure.Preflight, "cluster2: the agent does not accept the server"},
	} {
		t.Run(name, func(t *testing.T) {
			o := rotated()
			c.prepare(o)
			_, err := rotate(t, o, c.input)
			if failure.KindOf(err) != c.kind || !strings.Contains(failure.Message(err), c.says) {
				t.Errorf("%v", err)
			}
			if o.count("RecordRotation")+o.count("MoveRole")+o.count("SetSignedIntermediate") > 0 {
				t.Errorf("something was changed: %q", o.calls)
			}
		})
	}
}

// A server whose certificate has ended is served first: in no cluster could a
// fresh handshake be made before.
func TestRotationsRescueTheServer(t *testing.T) {
	for _, name := range []string{procedure.RotateLeafCertificates, procedure.RotateIntermediateCA} {
		o := rotated()
		o.serverEnded = true
		env := newRun(t, o)
		env.ExecuteWorkflow(name, json.RawMessage(`{"mesh":"demo"}`))
		if err := env.GetWorkflowError(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if missing := inOrder(o.calls, "Reissue mgmt", "Reissue cluster1", "ShakeHands"); missing != "" {
			t.Errorf("%s: no %q in its place in %q", name, missing, o.calls)
		}
	}
}

// A rotation of leaves is for the clusters that it names, and moves nobody to
// another intermediate: neither the others nor trust in an intermediate hinder it.
func TestRotateLeafLooksAtItsOwn(t *testing.T) {
	o := rotated()
	o.differs = map[string]bool{"CheckPair cluster2": true, "RootsOnly cluster1": true}
	env := newRun(t, o)
	env.ExecuteWorkflow(procedure.RotateLeafCertificates, json.RawMessage(`{"mesh":"demo","clusters":["cluster1"]}`))
	if err := env.GetWorkflowError(); err != nil {
		t.Error(err)
	}
	if o.count("Reissue cluster1") != 1 {
		t.Errorf("%q", o.calls)
	}
}

// What has become of a chain in its Secret is no reason not to issue it anew, for
// somebody who has named the cluster. With the others it is: the server, which would
// refuse it, may be restarted before its turn.
func TestRotateLeafOfAChainThatIsCutOff(t *testing.T) {
	for name, c := range map[string]struct {
		input string
		kind  failure.Kind
		count int
	}{
		"named":    {`{"mesh":"demo","clusters":["cluster1"]}`, "", 1},
		"with all": {`{"mesh":"demo"}`, failure.Preflight, 0},
	} {
		t.Run(name, func(t *testing.T) {
			o := rotated()
			o.differs = map[string]bool{"chain cluster1": true}
			env := newRun(t, o)
			env.ExecuteWorkflow(procedure.RotateLeafCertificates, json.RawMessage(c.input))
			if err := env.GetWorkflowError(); failure.KindOf(err) != c.kind {
				t.Errorf("it ended with %v", err)
			}
			if o.count("Reissue cluster1") != c.count {
				t.Errorf("%q", o.calls)
			}
		})
	}
}

// A CA was rotated between the look of a rotation of leaves and its lock.
func TestRotateLeafLooksAgainWithTheLock(t *testing.T) {
	o := rotated()
	o.locked = func(o *outside) {
		o.record.Rotation = &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, From: 1, To: 2, Workflow: "default/rotate-intermediate/1"}
	}
	env := newRun(t, o)
	env.ExecuteWorkflow(procedure.RotateLeafCertificates, json.RawMessage(`{"mesh":"demo"}`))
	if err := env.GetWorkflowError(); failure.KindOf(err) != failure.Conflict || !strings.Contains(failure.Message(err), "default/rotate-intermediate/1") {
		t.Errorf("one that broke off: %v", err)
	}
	if o.count("Reissue") > 0 {
		t.Errorf("something was issued: %q", o.calls)
	}

	o = rotated()
	o.locked = func(o *outside) {
		o.pki.signs = map[int]bool{1: false, 2: true}
		for name := range o.pki.roles {
			o.pki.roles[name] = 2
		}
	}
	env = newRun(t, o)
	env.ExecuteWorkflow(procedure.RotateLeafCertificates, json.RawMessage(`{"mesh":"demo"}`))
	if err := env.GetWorkflowError(); err != nil {
		t.Errorf("one that is over: %v", err)
	}
	if err := o.pki.everywhere(2); err != nil {
		t.Error(err)
	}
}

// Vault was restored to before the root was rotated: what it would issue nobody accepts.
func TestRotateLeafUnderAnEarlierRoot(t *testing.T) {
	o := rotated()
	o.record.Generations = procedure.Generations{Root: 2, Intermediate: 2}
	o.survey = func() (vault.SurveyResult, error) {
		root := vault.CAResult{CertificatePEM: "ROOT", Authority: procedure.Authority{IssuerID: "root", Name: "relay-root-g1"}}
		return vault.SurveyResult{Root: root, Roots: []vault.RootState{{Authority: root.Authority, CertificatePEM: "ROOT", Generation: 1}},
			Active: vault.IntermediateState{CertificatePEM: "CA 1", Generation: 1}}, nil
	}
	env := newRun(t, o)
	env.ExecuteWorkflow(procedure.RotateLeafCertificates, json.RawMessage(`{"mesh":"demo"}`))
	if err := env.GetWorkflowError(); failure.KindOf(err) != failure.Conflict || !strings.Contains(failure.Message(err), "relay-root-g1, than that of the mesh, which is relay-root-g2") {
		t.Errorf("it ended with %v", err)
	}
	if o.count("Reissue") > 0 {
		t.Errorf("something was issued: %q", o.calls)
	}

	r1, r2 := pkitest.Root(t, "R1"), pkitest.Root(t, "R2")
	r := &leafRotation{generations: procedure.Generations{Root: 2}}
	r.spec.PKI.Root.Kept, r.spec.PKI.Root.CertificatePEM = mesh.KeptOffline, textOf(r2)
	for _, c := range []struct {
		above pkitest.Pair
		named int
		want  bool
	}{{r1, 0, false}, {r1, 1, false}, {r2, 0, true}, {r2, 2, true}} {
		text := textOf(c.above)
		seen := vault.SurveyResult{Root: vault.CAResult{CertificatePEM: text}}
		if c.named > 0 {
			seen.Roots = []vault.RootState{{CertificatePEM: text, Generation: c.named}}
		}
		if err := r.underTheRoot(seen); err == nil != c.want {
			t.Errorf("%s, named %d: %v", c.above.Cert.Subject, c.named, err)
		}
	}
}

// A member whose Secrets are not there, as one that joins, is parked in whatever
// direction the rotation goes, and a plan says so.
func TestRotationsWithAMemberWithoutSecrets(t *testing.T) {
	missing := failure.Transient(failure.NotReady, "Secret gloo-mesh/relay-client-tls-secret is missing")
	for _, back := range []bool{false, true} {
		o := rotated()
		o.fails["CheckPair cluster2"] = missing
		input, want := `{"mesh":"demo"}`, 2
		if back {
			o.pki.signs[2] = true
			o.pki.roles["cluster1"], o.pki.leaves["cluster1"] = 2, 2
			o.record.Rotation = &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, From: 1, To: 2}
			input, want = `{"mesh":"demo","rollback":true,"reason":"too late"}`, 1
		}
		env := newRun(t, o)
		parked := false
		everyMinute(env, func() {
			if p := query(t, env); p.Person && !parked && strings.Contains(p.Awaiting, "cluster2 parked") {
				parked = true
				noting.Lock()
				delete(o.fails, "CheckPair cluster2")
				noting.Unlock()
				update(t, env, procedure.RetryUpdate, `{}`)
			}
		})
		env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(input))
		if err := env.GetWorkflowError(); err != nil || !parked {
			t.Errorf("back %t, parked %t: %v", back, parked, err)
		}
		if err := o.pki.everywhere(want); err != nil {
			t.Error(err)
		}
	}

	o := rotated()
	o.fails["CheckPair cluster2"] = missing
	env := newRun(t, o)
	env.ExecuteWorkflow(procedure.RotateIntermediateCA, json.RawMessage(`{"mesh":"demo","plan":true}`))
	if err := env.GetWorkflowError(); err != nil {
		t.Errorf("a plan: %v", err)
	}
	if c := query(t, env).Clusters; len(c) != 2 || c[0].State == procedure.Failed || c[1].State != procedure.Failed || !strings.Contains(c[1].Detail, "is missing") {
		t.Errorf("a plan says %+v", c)
	}
}

func TestPlanOfARotationWritesNothing(t *testing.T) {
	o := rotated()
	result, err := rotate(t, o, `{"mesh":"demo","plan":true}`)
	if err != nil {
		t.Fatal(err)
	}
	if writes := o.writes(); len(writes) > 0 {
		t.Errorf("a plan called %q", writes)
	}
	if err := o.pki.everywhere(1); err != nil {
		t.Error(err)
	}
	if len(result.Matrix) == 0 || !result.Plan {
		t.Errorf("%+v", result)
	}
}

func TestSnapshotBeforeTheFirstChange(t *testing.T) {
	o := rotated()
	o.record.Spec.Rotation.Snapshot = mesh.SnapshotTake
	if _, err := rotate(t, o, `{"mesh":"demo"}`); err != nil {
		t.Fatal(err)
	}
	if missing := inOrder(o.calls, "TakeSnapshot", "RecordRotation", "GenerateIntermediateCSR"); missing != "" {
		t.Errorf("no %q in its place in %q", missing, o.calls)
	}

	o = rotated()
	o.record.Spec.Rotation.Snapshot = mesh.SnapshotWord
	if _, err := rotate(t, o, `{"mesh":"demo","snapshot":"s3 bucket, 14:00"}`); err != nil {
		t.Fatal(err)
	}
	if o.count("TakeSnapshot") > 0 {
		t.Error("a snapshot was taken all the same")
	}
}

// everyMinute calls something again and again while the workflow runs.
func everyMinute(env *testsuite.TestWorkflowEnvironment, do func()) {
	for i := range 300 {
		env.RegisterDelayedCallback(do, time.Duration(i+1)*time.Minute)
	}
}

// everyHour calls something again and again for as long as a leaf lives at most.
func everyHour(env *testsuite.TestWorkflowEnvironment, do func()) {
	for i := range 31 * 24 {
		env.RegisterDelayedCallback(do, time.Duration(i+1)*time.Hour)
	}
}

// whenAsked sends an update when the run asks for the approval of a phase, which
// may be after the longest leaf.
func whenAsked(t *testing.T, env *testsuite.TestWorkflowEnvironment, phase, name, input string) {
	t.Helper()
	for day := range 39 {
		env.RegisterDelayedCallback(func() {
			if query(t, env).Asked == phase {
				update(t, env, name, input)
			}
		}, time.Duration(day+1)*24*time.Hour+time.Minute)
	}
}

// update sends an update that has to be accepted.
func update(t *testing.T, env *testsuite.TestWorkflowEnvironment, name, input string) {
	t.Helper()
	env.UpdateWorkflow(name, name+input, &testsuite.TestUpdateCallback{
		OnReject:   func(err error) { t.Errorf("%s %s was refused: %v", name, input, err) },
		OnAccept:   func() {},
		OnComplete: func(any, error) {},
	}, json.RawMessage(input))
}
