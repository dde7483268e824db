package temporal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	sdk "go.temporal.io/sdk/temporal"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

const (
	// catchupWindow is how late a run may still start after Temporal was down.
	// An older one would do nothing that the next does not.
	catchupWindow = 10 * time.Minute
	// scheduleJitter keeps the runs of many meshes, all due on the hour, from
	// starting in the same second.
	scheduleJitter = time.Minute
)

// VerifyScheduleID is the id of the schedule that verifies a mesh.
func VerifyScheduleID(mesh string) string { return "relaypki-verify-" + mesh }

// RefreshScheduleID is the id of the schedule that keeps a mesh's credentials current.
func RefreshScheduleID(mesh string) string { return "relaypki-refresh-" + mesh }

// MaintainScheduleID is the id of the schedule that looks whether a rotation is due.
func MaintainScheduleID(mesh string) string { return "relaypki-maintain-" + mesh }

// EnsureScheduleInput describes what is done for one mesh again and again.
type EnsureScheduleInput struct {
	// Procedure is VerifyMesh, RefreshCredentials or MaintainMesh.
	Procedure string `json:"procedure"`
	Mesh      string `json:"mesh"`
	// Management and Namespace say where the mesh's membership is stored.
	Management string `json:"management"`
	Namespace  string `json:"namespace"`
	// Every is the interval; zero for no schedule.
	Every mesh.Duration `json:"every"`
	// Windows are maintenance windows, at whose opening it is done too: what may
	// begin only in one then begins at once. TimeZone is theirs; an interval has
	// none.
	Windows  []mesh.Window  `json:"windows,omitempty"`
	TimeZone string         `json:"timeZone,omitempty"`
	Mode     procedure.Mode `json:"mode"`
}

// EnsureSchedule makes the Temporal Schedule of a procedure of a mesh what the
// input says: created, updated where it differs, or deleted. One that an
// operator has paused stays paused.
func (*Activities) EnsureSchedule(ctx context.Context, in EnsureScheduleInput) (procedure.Outcome, error) {
	info, c := activity.GetInfo(ctx), activity.GetClient(ctx)
	lacking, err := missingAttributes(ctx, c, info.Namespace)
	if err != nil && !mayNot(err) {
		return procedure.Outcome{}, temporalError(err, "list the search attributes")
	}
	wanted, err := schedule(in, info.TaskQueue, err == nil && len(lacking) == 0)
	if err != nil {
		return procedure.Outcome{}, err
	}
	handle := c.ScheduleClient().GetHandle(ctx, wanted.ID)
	have, err := handle.Describe(ctx)
	var absent *serviceerror.NotFound
	if errors.As(err, &absent) {
		have, err = nil, nil
	}
	if err != nil {
		return procedure.Outcome{}, temporalError(err, "describe the schedule "+wanted.ID)
	}

	object := "schedule " + wanted.ID
	outcome := procedure.Outcome{Detail: "every " + in.Every.String()}
	if len(in.Windows) > 0 {
		outcome.Detail += ", and as a window opens"
	}
	switch {
	case in.Every.Duration == 0 && have == nil:
		return procedure.Outcome{Detail: "none needed"}, nil
	case in.Every.Duration == 0:
		outcome.Detail = "none needed"
		outcome.Changed(procedure.Delete, object, "")
		if in.Mode == procedure.Apply {
			err = handle.Delete(ctx)
		}
	case have == nil:
		outcome.Changed(procedure.Create, object, "")
		if in.Mode == procedure.Apply {
			_, err = c.ScheduleClient().Create(ctx, wanted)
		}
	default:
		differs := differences(wanted, have.Schedule)
		if len(differs) == 0 {
			return outcome, nil
		}
		outcome.Changed(procedure.Update, object, strings.Join(differs, ", "))
		if in.Mode == procedure.Apply {
			err = handle.Update(ctx, client.ScheduleUpdateOptions{DoUpdate: func(now client.ScheduleUpdateInput) (*client.ScheduleUpdate, error) {
				return updated(wanted, now.Description.Schedule), nil
			}})
		}
	}
	if errors.Is(err, sdk.ErrScheduleAlreadyRunning) { // somebody made it in between: look again
		return procedure.Outcome{}, failure.Transient(failure.Unavailable, "schedule %s appeared just now", wanted.ID)
	}
	if err != nil {
		return procedure.Outcome{}, temporalError(err, "write the schedule "+wanted.ID)
	}
	return outcome, nil
}

// schedule is the schedule that the input describes.
func schedule(in EnsureScheduleInput, taskQueue string, attributes bool) (client.ScheduleOptions, error) {
	id := ""
	action := &client.ScheduleWorkflowAction{Workflow: in.Procedure, TaskQueue: taskQueue}
	switch in.Procedure { // Temporal appends the time to the workflow's id
	case procedure.VerifyMesh:
		id, action.ID = VerifyScheduleID(in.Mesh), "verify-"+in.Mesh
		action.Args = []any{procedure.VerifyInput{Mesh: in.Mesh, Management: in.Management, Namespace: in.Namespace}}
		action.StaticSummary = fmt.Sprintf("Verify mesh %s, every %s", in.Mesh, in.Every)
	case procedure.RefreshCredentials:
		id, action.ID = RefreshScheduleID(in.Mesh), "refresh-"+in.Mesh
		action.Args = []any{procedure.RefreshInput{Mesh: in.Mesh, Management: in.Management, Namespace: in.Namespace}}
		action.StaticSummary = fmt.Sprintf("Refresh the credentials of mesh %s, every %s", in.Mesh, in.Every)
	case procedure.MaintainMesh:
		id, action.ID = MaintainScheduleID(in.Mesh), "maintain-"+in.Mesh
		action.Args = []any{procedure.MeshInput{Mesh: in.Mesh, Management: in.Management, Namespace: in.Namespace}}
		action.StaticSummary = fmt.Sprintf("Look whether a rotation of mesh %s is due, every %s", in.Mesh, in.Every)
	default:
		return client.ScheduleOptions{}, failure.Permanent(failure.InvalidInput, "procedure %q has no schedule", in.Procedure)
	}
	if attributes {
		action.TypedSearchAttributes = sdk.NewSearchAttributes(sdk.NewSearchAttributeKeyKeyword(procedure.AttributeMesh).ValueSet(in.Mesh))
	}
	spec := client.ScheduleSpec{Intervals: []client.ScheduleIntervalSpec{{Every: in.Every.Duration}}, Jitter: min(scheduleJitter, in.Every.Duration/10)}
	for _, w := range in.Windows {
		opening, err := opening(w)
		if err != nil {
			return client.ScheduleOptions{}, err
		}
		spec.Calendars, spec.TimeZoneName = append(spec.Calendars, opening), in.TimeZone
	}
	return client.ScheduleOptions{
		ID:                    id,
		Spec:                  spec,
		Action:                action,
		Overlap:               enumspb.SCHEDULE_OVERLAP_POLICY_SKIP,
		CatchupWindow:         catchupWindow,
		TypedSearchAttributes: action.TypedSearchAttributes,
	}, nil
}

// weekdays are those of a window, as calendars of schedules count them.
var weekdays = map[string]int{"Sun": 0, "Mon": 1, "Tue": 2, "Wed": 3, "Thu": 4, "Fri": 5, "Sat": 6}

// opening is when a window opens, written out as the server gives it back.
func opening(w mesh.Window) (client.ScheduleCalendarSpec, error) {
	from, err := time.Parse("15:04", w.From)
	if err != nil {
		return client.ScheduleCalendarSpec{}, failure.Permanent(failure.InvalidInput, "rotation.windows: %q is no time of day", w.From)
	}
	at := func(n int) []client.ScheduleRange { return []client.ScheduleRange{{Start: n, End: n, Step: 1}} }
	calendar := client.ScheduleCalendarSpec{
		Second: at(0), Minute: at(from.Minute()), Hour: at(from.Hour()),
		DayOfMonth: []client.ScheduleRange{{Start: 1, End: 31, Step: 1}}, Month: []client.ScheduleRange{{Start: 1, End: 12, Step: 1}},
		DayOfWeek: []client.ScheduleRange{{Start: 0, End: 6, Step: 1}},
	}
	for i, day := range w.Days {
		if i == 0 {
			calendar.DayOfWeek = nil
		}
		calendar.DayOfWeek = append(calendar.DayOfWeek, at(weekdays[day])...)
	}
	return calendar, nil
}

// openings are calendars that can be compared: the ranges of a schedule may be
// written in more than one way.
func openings(calendars []client.ScheduleCalendarSpec) [][][]int {
	all := [][][]int{}
	for _, c := range calendars {
		one := [][]int{}
		for _, ranges := range [][]client.ScheduleRange{c.Second, c.Minute, c.Hour, c.DayOfMonth, c.Month, c.Year, c.DayOfWeek} {
			var values []int
			for _, r := range ranges {
				for n := r.Start; n <= max(r.End, r.Start); n += max(r.Step, 1) {
					values = append(values, n)
				}
			}
			one = append(one, slices.Sorted(slices.Values(values)))
		}
		all = append(all, one)
	}
	return all
}

// differences names what of a schedule is not as wanted.
func differences(wanted client.ScheduleOptions, have client.Schedule) []string {
	var differs []string
	compare := func(what string, want, got any) {
		if !reflect.DeepEqual(want, got) {
			differs = append(differs, what)
		}
	}
	compare("interval", wanted.Spec.Intervals, have.Spec.Intervals)
	compare("jitter", wanted.Spec.Jitter, have.Spec.Jitter)
	compare("windows", openings(wanted.Spec.Calendars), openings(have.Spec.Calendars))
	compare("time zone", wanted.Spec.TimeZoneName, have.Spec.TimeZoneName)
	compare("other times", 0, len(have.Spec.Skip))
	compare("overlap", wanted.Overlap, have.Policy.Overlap)
	compare("catch-up window", wanted.CatchupWindow, have.Policy.CatchupWindow)
	want := wanted.Action.(*client.ScheduleWorkflowAction)
	got, ok := have.Action.(*client.ScheduleWorkflowAction)
	if !ok {
		return append(differs, "action")
	}
	compare("workflow", want.Workflow, got.Workflow)
	compare("workflow id", want.ID, got.ID)
	compare("task queue", want.TaskQueue, got.TaskQueue)
	compare("summary", want.StaticSummary, got.StaticSummary)
	compare("input", plain(want.Args[0]), stored(got.Args))
	key := sdk.NewSearchAttributeKeyKeyword(procedure.AttributeMesh)
	wantMesh, _ := want.TypedSearchAttributes.GetKeyword(key)
	gotMesh, _ := got.TypedSearchAttributes.GetKeyword(key)
	compare("search attribute", wantMesh, gotMesh)
	return differs
}

// updated is the schedule with what we own replaced. Whether it is paused, and
// the note of who did that, is the operator's.
func updated(wanted client.ScheduleOptions, have client.Schedule) *client.ScheduleUpdate {
	return &client.ScheduleUpdate{
		Schedule: &client.Schedule{
			Action: wanted.Action,
			Spec:   &wanted.Spec,
			Policy: &client.SchedulePolicies{Overlap: wanted.Overlap, CatchupWindow: wanted.CatchupWindow},
			State:  have.State,
		},
		TypedSearchAttributes: &wanted.TypedSearchAttributes,
	}
}

// plain is a value as JSON has it.
func plain(value any) any {
	data, err := json.Marshal(value)
	if err != nil {
		return nil
	}
	return decoded(data)
}

// stored is the single argument of a schedule's action, as JSON has it.
func stored(args []any) any {
	if len(args) != 1 {
		return nil
	}
	payload, ok := args[0].(*commonpb.Payload)
	if !ok {
		return nil
	}
	return decoded(payload.GetData())
}

func decoded(data []byte) any {
	var value any
	if err := json.Unmarshal(data, &value); err != nil {
		return nil
	}
	return value
}
