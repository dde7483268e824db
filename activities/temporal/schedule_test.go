package temporal

import (
	"reflect"
	"testing"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// described is a schedule as the server gives it back: arguments as payloads.
func described(t *testing.T, o client.ScheduleOptions) client.Schedule {
	t.Helper()
	action := *o.Action.(*client.ScheduleWorkflowAction)
	payload, err := converter.GetDefaultDataConverter().ToPayload(action.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	action.Args = []any{payload}
	spec := o.Spec
	return client.Schedule{
		Action: &action, Spec: &spec, State: &client.ScheduleState{},
		Policy: &client.SchedulePolicies{Overlap: o.Overlap, CatchupWindow: o.CatchupWindow},
	}
}

func scheduled(t *testing.T, in EnsureScheduleInput, attributes bool) client.ScheduleOptions {
	t.Helper()
	o, err := schedule(in, "relaypki", attributes)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestDifferences(t *testing.T) {
	in := EnsureScheduleInput{Procedure: procedure.VerifyMesh, Mesh: "demo", Management: "mgmt", Namespace: "gloo-mesh", Every: mesh.Hours(1)}
	wanted := scheduled(t, in, true)
	tests := []struct {
		name   string
		change func(*client.Schedule, *client.ScheduleWorkflowAction)
		want   []string
	}{
		{"same", func(*client.Schedule, *client.ScheduleWorkflowAction) {}, nil},
		{"paused by an operator", func(s *client.Schedule, _ *client.ScheduleWorkflowAction) { s.State.Paused = true }, nil},
		{"another interval", func(s *client.Schedule, _ *client.ScheduleWorkflowAction) { s.Spec.Intervals[0].Every = time.Minute }, []string{"interval"}},
		{"a calendar besides", func(s *client.Schedule, _ *client.ScheduleWorkflowAction) {
			s.Spec.Calendars = []client.ScheduleCalendarSpec{{}}
		}, []string{"windows"}},
		{"times left out", func(s *client.Schedule, _ *client.ScheduleWorkflowAction) {
			s.Spec.Skip = []client.ScheduleCalendarSpec{{}}
		}, []string{"other times"}},
		{"another task queue", func(_ *client.Schedule, a *client.ScheduleWorkflowAction) { a.TaskQueue = "elsewhere" }, []string{"task queue"}},
		{"another input", func(_ *client.Schedule, a *client.ScheduleWorkflowAction) {
			a.Args = []any{&commonpb.Payload{Data: []byte(`{"mesh":"other"}`)}}
		}, []string{"input"}},
		{"another procedure", func(s *client.Schedule, a *client.ScheduleWorkflowAction) {
			other := in
			other.Procedure = procedure.RefreshCredentials
			*a = *scheduled(t, other, true).Action.(*client.ScheduleWorkflowAction)
			s.Action = described(t, scheduled(t, other, true)).Action
		}, []string{"workflow", "workflow id", "summary"}},
		{"no search attribute", func(_ *client.Schedule, a *client.ScheduleWorkflowAction) {
			a.TypedSearchAttributes = scheduled(t, in, false).TypedSearchAttributes
		}, []string{"search attribute"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			have := described(t, scheduled(t, in, true))
			test.change(&have, have.Action.(*client.ScheduleWorkflowAction))
			if got := differences(wanted, have); !reflect.DeepEqual(got, test.want) {
				t.Errorf("differences = %q, want %q", got, test.want)
			}
		})
	}
}

// A schedule with windows is one also as the server writes them: each range in
// its shortest form.
func TestWindowsOfASchedule(t *testing.T) {
	in := EnsureScheduleInput{Procedure: procedure.MaintainMesh, Mesh: "demo", Management: "mgmt", Namespace: "gloo-mesh", Every: mesh.Hours(1), TimeZone: "Europe/Berlin",
		Windows: []mesh.Window{{Days: []string{"Sat", "Sun"}, From: "22:30", To: "04:00"}, {From: "12:00", To: "13:00"}}}
	wanted := scheduled(t, in, true)
	if id := wanted.ID; id != "relaypki-maintain-demo" {
		t.Errorf("id %q", id)
	}
	at := func(n ...int) (ranges []client.ScheduleRange) {
		for _, n := range n {
			ranges = append(ranges, client.ScheduleRange{Start: n})
		}
		return ranges
	}
	short := []client.ScheduleCalendarSpec{
		{Second: at(0), Minute: at(30), Hour: at(22), DayOfMonth: []client.ScheduleRange{{Start: 1, End: 31}}, Month: []client.ScheduleRange{{Start: 1, End: 12}}, DayOfWeek: at(0, 6)},
		{Second: at(0), Minute: at(0), Hour: at(12), DayOfMonth: []client.ScheduleRange{{Start: 1, End: 31}}, Month: []client.ScheduleRange{{Start: 1, End: 12}}, DayOfWeek: []client.ScheduleRange{{Start: 0, End: 6}}},
	}
	have := described(t, wanted)
	have.Spec.Calendars = short
	if differs := differences(wanted, have); len(differs) > 0 {
		t.Errorf("as the server writes it, differs in %q", differs)
	}
	have.Spec.Calendars[0].DayOfWeek = at(6)
	have.Spec.TimeZoneName = "UTC"
	if differs := differences(wanted, have); !reflect.DeepEqual(differs, []string{"windows", "time zone"}) {
		t.Errorf("differences = %q", differs)
	}
	in.Windows, in.TimeZone = nil, "Europe/Berlin"
	if without := scheduled(t, in, true); without.Spec.TimeZoneName != "" || len(without.Spec.Calendars) > 0 {
		t.Errorf("an interval has no time zone: %+v", without.Spec)
	}
	if wanted.Overlap != enumspb.SCHEDULE_OVERLAP_POLICY_SKIP || wanted.CatchupWindow != 10*time.Minute || wanted.Spec.Jitter != time.Minute {
		t.Errorf("overlap %v, catch-up window %v, jitter %v", wanted.Overlap, wanted.CatchupWindow, wanted.Spec.Jitter)
	}
}

func TestUpdatedKeepsThePause(t *testing.T) {
	wanted := scheduled(t, EnsureScheduleInput{Procedure: procedure.RefreshCredentials, Mesh: "demo", Every: mesh.Hours(1)}, false)
	have := described(t, wanted)
	have.State = &client.ScheduleState{Paused: true, Note: "incident 12"}
	if got := updated(wanted, have).Schedule.State; !got.Paused || got.Note != "incident 12" {
		t.Errorf("state after an update = %+v, want it still paused", got)
	}
}

func TestMissing(t *testing.T) {
	keyword := enumspb.INDEXED_VALUE_TYPE_KEYWORD
	all := map[string]enumspb.IndexedValueType{
		procedure.AttributeMesh: keyword, procedure.AttributeCluster: keyword, procedure.AttributePhase: keyword, "Other": keyword,
	}
	if got := missing(all); len(got) != 0 {
		t.Errorf("with all registered, missing = %v", got)
	}
	all[procedure.AttributePhase] = enumspb.INDEXED_VALUE_TYPE_TEXT // of no use to us
	if got := missing(all); len(got) != 1 || got[procedure.AttributePhase] != keyword {
		t.Errorf("with one of another type, missing = %v, want %s alone", got, procedure.AttributePhase)
	}
}
