package workflows

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/notify"
	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rotation"
)

// lives scripts what a look at a mesh finds, and notes what was started and told.
type lives struct {
	record cluster.MeshRecord
	now    time.Time
	// leaves are what is left of each leaf's day, by context; a day if not given.
	leaves map[string]time.Duration
	unread map[string]error
	// intermediate is what is left of its 1000 days.
	intermediate time.Duration
	busy         string
	asked        temporalactivities.AskResult
	// running are workflows that run already.
	running []string
	last    *procedure.MaintainResult
	vault   error

	// before is how the schedule's last run has failed, unheard why nobody can be told.
	before, unheard error

	started []temporalactivities.StartInput
	told    []string
}

const aDay = 24 * time.Hour

func newLives() *lives {
	s := mesh.Spec{Mesh: "demo", Workloads: []mesh.Workload{{Name: "a", Context: "ctx-a"}, {Name: "b", Context: "ctx-b"}}}
	return &lives{
		record:       cluster.MeshRecord{Found: true, Complete: true, Spec: s.WithDefaults().Normal()},
		now:          time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), // a Sunday
		intermediate: 500 * aDay,
	}
}

func (l *lives) run(t *testing.T) *testsuite.TestWorkflowEnvironment {
	t.Helper()
	o := &outside{record: l.record}
	env := newRun(t, o)
	env.SetStartTime(l.now)
	if l.last != nil {
		env.SetLastCompletionResult(*l.last)
	}
	if l.before != nil {
		env.SetLastError(l.before)
	}
	env.OnActivity(certManagers.ReadCertificateLife, mock.Anything, mock.Anything).Return(func(_ context.Context, in certmanager.CertificateName) (certmanager.CertificateLife, error) {
		left, given := l.leaves[in.Context]
		if !given {
			left = 20 * time.Hour
		}
		end := l.now.Add(left)
		return certmanager.CertificateLife{NotBefore: end.Add(-aDay), NotAfter: end, Renewal: end.Add(-30 * time.Minute)}, l.unread[in.Context]
	})
	o.survey = func() (vault.SurveyResult, error) {
		end := l.now.Add(l.intermediate)
		return vault.SurveyResult{
			Root:   vault.CAResult{Authority: procedure.Authority{Name: "relay-root-g1", NotBefore: l.now.Add(-1000 * aDay), NotAfter: l.now.Add(6000 * aDay)}},
			Active: vault.IntermediateState{Authority: procedure.Authority{Name: "relay-intermediate-g1", NotAfter: end}, NotBefore: end.Add(-1000 * aDay)},
		}, l.vault
	}
	env.OnActivity(kubernetes.LockHolder, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.LockInput) (string, error) {
		if in.Lease != "relaypki-demo-ca" {
			t.Errorf("asked for the holder of %s", in.Lease)
		}
		return l.busy, nil
	})
	env.OnActivity(temporals.AskProcedure, mock.Anything, mock.Anything).Return(func(context.Context, temporalactivities.AskInput) (temporalactivities.AskResult, error) {
		return l.asked, nil
	})
	env.OnActivity(temporals.StartProcedure, mock.Anything, mock.Anything).Return(func(_ context.Context, in temporalactivities.StartInput) (temporalactivities.StartResult, error) {
		l.started = append(l.started, in)
		return temporalactivities.StartResult{Workflow: in.Workflow, Run: "run", Running: slices.Contains(l.running, in.Workflow)}, nil
	})
	env.RegisterActivity(notifiers)
	env.OnActivity(notifiers.Notify, mock.Anything, mock.Anything).Return(func(_ context.Context, in notify.Input) (notify.Result, error) {
		l.told = append(l.told, in.Text)
		return notify.Result{Told: []string{"ops"}}, l.unheard
	})
	if err := env.SetTypedSearchAttributesOnStart(temporal.NewSearchAttributes(scheduledBy.ValueSet("relaypki-maintain-demo"))); err != nil {
		t.Fatal(err)
	}
	env.ExecuteWorkflow(procedure.MaintainMesh, json.RawMessage(`{"mesh":"demo"}`))
	return env
}

func (l *lives) maintain(t *testing.T) procedure.MaintainResult {
	t.Helper()
	var result procedure.MaintainResult
	if err := l.run(t).GetWorkflowResult(&result); err != nil {
		t.Fatal(err)
	}
	return result
}

func TestMaintainOfWhatIsNotDue(t *testing.T) {
	l := newLives()
	result := l.maintain(t)
	if len(l.started)+len(l.told) > 0 || len(result.Started) > 0 {
		t.Errorf("started %v, told %q", l.started, l.told)
	}
	if len(result.Decisions) != 3 {
		t.Fatalf("decisions %+v", result.Decisions)
	}
	for _, d := range result.Decisions {
		if d.Due || d.Why == "" {
			t.Errorf("%+v", d)
		}
	}
}

// What is due is started under an id of the mesh's and not waited for, with an
// input that the procedure takes.
func TestMaintainStartsWhatIsDue(t *testing.T) {
	l := newLives()
	l.intermediate = 300 * aDay
	result := l.maintain(t)
	if len(l.started) != 1 || l.started[0].Procedure != procedure.RotateIntermediateCA || l.started[0].Workflow != "rotate-intermediate-demo" || l.started[0].By != "default-test-workflow-id" {
		t.Fatalf("started %+v", l.started)
	}
	var in procedure.Typed[procedure.RotateIntermediateInput]
	if err := json.Unmarshal(asJSON(t, l.started[0].Input), &in); err != nil || len(in.Problems) > 0 || len(in.In.Validate()) > 0 || in.In.Mesh != "demo" || in.In.Management != "mgmt" {
		t.Errorf("its input %v: %+v, %v", l.started[0].Input, in, err)
	}
	if !slices.Equal(result.Started, []string{"rotate-intermediate-demo"}) {
		t.Errorf("result %+v", result)
	}
	l.running = result.Started
	if result = l.maintain(t); len(result.Started) > 0 || !slices.Equal(result.Running, l.running) {
		t.Errorf("with one that runs: %+v", result)
	}
}

func TestMaintainLeaves(t *testing.T) {
	leaf := func(l *lives) procedure.RotateLeafInput {
		t.Helper()
		l.maintain(t)
		if len(l.started) != 1 || l.started[0].Procedure != procedure.RotateLeafCertificates || l.started[0].Workflow != "rotate-leaf-demo" {
			t.Fatalf("started %+v", l.started)
		}
		var in procedure.Typed[procedure.RotateLeafInput]
		if err := json.Unmarshal(asJSON(t, l.started[0].Input), &in); err != nil || len(in.Problems) > 0 {
			t.Fatal(in.Problems, err)
		}
		if len(l.told) != 1 || !strings.Contains(l.told[0], "MaintainMesh of mesh demo: certificates end soon") {
			t.Errorf("told %q", l.told)
		}
		return in.In
	}
	l := newLives()
	l.leaves = map[string]time.Duration{"ctx-b": 10 * time.Minute}
	l.unread = map[string]error{"ctx-a": failure.Permanent(failure.Unavailable, "no route")}
	if in := leaf(l); !slices.Equal(in.Clusters, []string{"b"}) {
		t.Errorf("rotates %q", in.Clusters)
	}
	l = newLives()
	l.leaves = map[string]time.Duration{"mgmt": -time.Hour, "ctx-b": 10 * time.Minute}
	if in := leaf(l); len(in.Clusters) != 0 {
		t.Errorf("for the server's, rotates %q alone", in.Clusters)
	}
}

// One rotation of a CA at a time: whoever holds the lock, or what the record says
// has begun, is in the way, and that is said.
func TestMaintainBesideOthers(t *testing.T) {
	l := newLives()
	l.intermediate, l.busy = 300*aDay, "setup-demo"
	result := l.maintain(t)
	if d := decision(result, rotation.KindIntermediate); len(l.started) > 0 || !strings.Contains(d.Why, "setup-demo is at work") {
		t.Errorf("started %v: %s", l.started, d.Why)
	}
	l = newLives()
	l.intermediate = 300 * aDay
	l.record.Rotation = &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, From: 1, To: 2, Began: l.now.Add(-time.Hour)}
	result = l.maintain(t)
	if d := decision(result, rotation.KindIntermediate); len(l.started) > 0 || !strings.Contains(d.Why, "from generation 1 to 2 has begun on 2026-03-01 11:00 UTC and nobody is at work") {
		t.Errorf("started %v: %s", l.started, d.Why)
	}
	if len(l.told) != 1 || !strings.Contains(l.told[0], "nobody is at work on it") {
		t.Errorf("told %q", l.told)
	}
}

func TestMaintainInWindows(t *testing.T) {
	l := newLives()
	l.intermediate = 300 * aDay
	l.record.Spec.Rotation.Windows = []mesh.Window{{Days: []string{"Sun"}, From: "13:30", To: "15:00"}}
	l.record.Spec.Rotation.TimeZone = "Europe/Berlin" // an hour ahead: 12:30 to 14:00
	if d := decision(l.maintain(t), rotation.KindIntermediate); len(l.started) > 0 || !strings.Contains(d.Why, "2026-03-01 12:30Z") {
		t.Errorf("started %v: %s", l.started, d.Why)
	}
	l.now = l.now.Add(time.Hour)
	if l.maintain(t); len(l.started) != 1 {
		t.Errorf("in the window, started %v", l.started)
	}
}

// hourly has the schedule look so many times, and answers after which looks people
// were told anything.
func (l *lives) hourly(t *testing.T, looks int, before func(look int)) (told []int) {
	t.Helper()
	for i := range looks {
		if before != nil {
			before(i)
		}
		n := len(l.told)
		result := l.maintain(t)
		if len(l.told) > n {
			told = append(told, i)
		}
		l.last, l.now = &result, l.now.Add(time.Hour)
		l.intermediate -= time.Hour
	}
	return told
}

// People are told at once of what is new, and of what stays as it is again when it
// has become more urgent, not more than daily.
func TestMaintainTellsOnce(t *testing.T) {
	l := newLives()
	l.intermediate = 5 * aDay
	l.record.Rotation = &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, From: 1, To: 2, Began: l.now.Add(-time.Hour)}
	// After half of what was left each time, and after a day when that is less.
	if told := l.hourly(t, 24*5, nil); !slices.Equal(told, []int{0, 60, 90, 114}) {
		t.Fatalf("of a rotation that nobody is at work on, of an intermediate that ends in five days, told after %v hours", told)
	}
	for _, text := range l.told {
		if !strings.Contains(text, "nobody is at work on it") {
			t.Errorf("told %q", text)
		}
	}
	l.leaves = map[string]time.Duration{"ctx-b": 10 * time.Minute}
	n := len(l.told)
	if l.maintain(t); len(l.told) != n+1 || !strings.Contains(l.told[n], "b (until") || strings.Contains(l.told[n], "intermediate") {
		t.Errorf("of what is new, told %q", l.told[n:])
	}
}

// Of what an emergency has left pinned people are told each day, however long the
// certificates have to live, and nothing is begun by itself; so of one that is not over.
func TestMaintainOfAPinnedMesh(t *testing.T) {
	l := newLives()
	l.intermediate = 300 * aDay // due
	l.record.Rotation = &procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 1, To: 2, FromRoot: 1, ToRoot: 1, Mode: "pinned", Began: l.now.Add(-2 * time.Hour),
		Emergency: &procedure.Emergency{Compromised: procedure.CompromisedIntermediate, Incident: "INC-7", Pinned: true, Distrusted: l.now.Add(-time.Hour)}}
	if told := l.hourly(t, 24*3, nil); !slices.Equal(told, []int{0, 24, 48}) {
		t.Errorf("told after %v hours", told)
	}
	for _, text := range l.told {
		for _, want := range []string{"pinned to intermediate generation 2 by the emergency of incident INC-7, since 2026-03-01 11:00 UTC", "relaypki emergency lift demo"} {
			if !strings.Contains(text, want) {
				t.Errorf("told %q, without %q", text, want)
			}
		}
	}
	l.leaves = map[string]time.Duration{"ctx-b": 10 * time.Minute} // due
	result := l.maintain(t)
	if len(l.started) > 0 || !strings.Contains(decision(result, rotation.KindLeaf).Why, "not begun: the mesh is pinned") {
		t.Errorf("started %+v, %+v", l.started, result.Decisions)
	}

	l.record.Rotation.Emergency.Pinned = false
	l.told, l.leaves = nil, nil
	if result = l.maintain(t); len(l.started) > 0 || len(l.told) != 1 || !strings.Contains(l.told[0], "EmergencyReissue of incident INC-7 (intermediate) has begun on 2026-03-01 10:00 UTC and nobody is at work on it. Start it again with the same input") {
		t.Errorf("started %+v, told %q", l.started, l.told)
	}
	l.busy = "emergency-demo"
	l.told = nil
	if l.maintain(t); len(l.started)+len(l.told) > 0 {
		t.Errorf("while it is at work, started %+v, told %q", l.started, l.told)
	}
}

// A warning that is there at one look and not at the next is no news each time, nor
// is one that is about a cluster less.
func TestMaintainDoesNotFlutter(t *testing.T) {
	l := newLives()
	l.busy = "setup-demo"
	ends := l.now.Add(10 * time.Minute)
	unread := map[string]error{"ctx-b": failure.Permanent(failure.Unavailable, "no route")}
	told := l.hourly(t, 12, func(look int) {
		left := ends.Sub(l.now)
		l.leaves, l.unread = map[string]time.Duration{"ctx-a": left, "ctx-b": left}, nil
		switch look % 3 {
		case 1:
			l.unread = unread
		case 2:
			l.leaves = nil
		}
	})
	if !slices.Equal(told, []int{0}) || !strings.Contains(l.told[0], "a (until") || !strings.Contains(l.told[0], "b (until") {
		t.Errorf("told at the looks %v: %q", told, l.told)
	}
}

// What nobody could be told is told at the next look.
func TestMaintainTellsWhatWasNotHeard(t *testing.T) {
	l := newLives()
	l.intermediate, l.busy = -time.Hour, "setup-demo"
	told := l.hourly(t, 4, func(look int) {
		l.unheard = nil
		if look < 2 {
			l.unheard = failure.Permanent(failure.Unavailable, "the webhook is away")
		}
	})
	if !slices.Equal(told, []int{0, 1, 2}) {
		t.Errorf("tried at the looks %v, want the first two in vain and the third", told)
	}
}

// A procedure that waits for a person is one to remind people of, each day.
func TestMaintainReminds(t *testing.T) {
	l := newLives()
	began := l.now
	l.busy, l.asked = "rotate-intermediate-demo", temporalactivities.AskResult{Awaiting: "approval of server", Person: true}
	var at []time.Duration
	for range 60 {
		before := len(l.told)
		result := l.maintain(t)
		if len(l.told) > before {
			at = append(at, l.now.Sub(began).Round(time.Hour))
			if !strings.Contains(l.told[before], "rotate-intermediate-demo waits for a person, since 2026-03-01 12:00Z at least: approval of server") {
				t.Errorf("told %q", l.told[before])
			}
		}
		l.last, l.now = &result, l.now.Add(time.Hour)
	}
	if want := []time.Duration{24 * time.Hour, 48 * time.Hour}; !slices.Equal(at, want) {
		t.Errorf("reminded after %v, want %v", at, want)
	}
	l.asked = temporalactivities.AskResult{Awaiting: "load balancer"}
	if result := l.maintain(t); result.Waiting != nil {
		t.Errorf("what waits for no person: %+v", result.Waiting)
	}
}

// A root that is kept elsewhere does not sign at once: an intermediate under it is
// due earlier, and people are told while its rotation waits for them and time runs
// out.
func TestMaintainUnderAnOfflineRoot(t *testing.T) {
	left := 5 * aDay
	l := newLives()
	l.intermediate = left
	l.record.Spec.Rotation.Due.Intermediate = new(0)
	inVault := decision(l.maintain(t), rotation.KindIntermediate)
	l.record.Spec.PKI.Root = offlineMesh(pkitest.Root(t, "Example Root")).PKI.Root
	result := l.maintain(t)
	d := decision(result, rotation.KindIntermediate)
	if sooner := inVault.LatestStart.Sub(d.LatestStart); sooner != 7*aDay || inVault.Late || !d.Late {
		t.Errorf("it has to begin %s sooner; late in Vault: %v, elsewhere: %v", sooner, inVault.Late, d.Late)
	}

	// How long the next one lives is for people to decide: that the root ends before
	// what was asked for would is in no one's way.
	for _, kept := range []mesh.Root{{}, l.record.Spec.PKI.Root} {
		l = newLives()
		l.intermediate = 300 * aDay
		l.record.Spec.PKI.Intermediate.TTL, l.record.Spec.PKI.Root = mesh.Duration{Duration: 6001 * aDay}, kept
		d := decision(l.maintain(t), rotation.KindIntermediate)
		if d.Start != kept.Offline() || len(l.told) > 0 == d.Start {
			t.Errorf("under a root that is offline: %v, starts %v: %s; told %q", kept.Offline(), d.Start, d.Why, l.told)
		}
	}

	l = newLives()
	l.intermediate = left
	l.record.Spec.PKI.Root = offlineMesh(pkitest.Root(t, "Example Root")).PKI.Root
	l.record.Rotation = &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, From: 1, To: 2, Began: l.now.Add(-20 * aDay)}
	l.busy, l.asked = "rotate-intermediate-demo", temporalactivities.AskResult{Awaiting: "the intermediate to be signed", Person: true}
	result = l.maintain(t)
	if len(l.started) > 0 || result.Waiting == nil || len(l.told) != 1 || !strings.Contains(l.told[0], "waits for a person: rotate-intermediate-demo") || !strings.Contains(l.told[0], "relay-intermediate-g1 ends on 2026-03-06") {
		t.Errorf("started %v, waits %+v, told %q", l.started, result.Waiting, l.told)
	}
	l.asked = temporalactivities.AskResult{Awaiting: "load balancer"}
	if result = l.maintain(t); len(result.Warned) > 0 {
		t.Errorf("of one that goes on by itself people are told %q", result.Warned)
	}
}

// Without the CAs nothing can be decided: the run fails, and people are told.
func TestMaintainWithoutVault(t *testing.T) {
	l := newLives()
	l.vault = failure.Permanent(failure.Denied, "Vault refused")
	if err := l.run(t).GetWorkflowError(); failure.KindOf(err) != failure.Denied || len(l.told) != 1 || !strings.Contains(l.told[0], "MaintainMesh of mesh demo failed: Vault refused") {
		t.Errorf("%v, told %q", err, l.told)
	}
}

func decision(r procedure.MaintainResult, kind rotation.Kind) rotation.Decision {
	return r.Decisions[slices.IndexFunc(r.Decisions, func(d rotation.Decision) bool { return d.Kind == kind })]
}

func TestApplySchedules(t *testing.T) {
	l := newLives()
	l.record.Spec.Rotation.Windows = []mesh.Window{{From: "22:00", To: "04:00"}}
	l.record.Spec.Rotation.TimeZone = "Europe/Berlin"
	env := newRun(t, &outside{record: l.record})
	var seen []temporalactivities.EnsureScheduleInput
	env.SetOnActivityStartedListener(func(info *activity.Info, _ context.Context, args converter.EncodedValues) {
		var in temporalactivities.EnsureScheduleInput
		if info.ActivityType.Name == "EnsureSchedule" && args.Get(&in) == nil {
			seen = append(seen, in)
		}
	})
	env.ExecuteWorkflow(procedure.ApplySchedules, json.RawMessage(`{"mesh":"demo"}`))
	var result procedure.SchedulesResult
	if err := env.GetWorkflowResult(&result); err != nil || len(result.Steps) != 3 {
		t.Fatalf("%+v, %v", result, err)
	}
	names := make([]string, len(seen))
	for i, in := range seen {
		names[i] = in.Procedure
		if in.Mode != procedure.Apply || in.Mesh != "demo" || in.Every.Duration == 0 {
			t.Errorf("%+v", in)
		}
	}
	if want := []string{procedure.VerifyMesh, procedure.RefreshCredentials, procedure.MaintainMesh}; !slices.Equal(names, want) {
		t.Fatalf("schedules of %q, want %q", names, want)
	}
	if last := seen[len(seen)-1]; len(last.Windows) != 1 || last.TimeZone != "Europe/Berlin" {
		t.Errorf("%+v", last)
	}
}

func asJSON(t *testing.T, value any) []byte {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
