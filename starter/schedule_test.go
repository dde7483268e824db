package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// description is a schedule as Temporal describes it: its runs from older to newer.
func description(paused bool, runs ...string) *client.ScheduleDescription {
	d := &client.ScheduleDescription{
		Schedule: client.Schedule{
			Action: &client.ScheduleWorkflowAction{Workflow: procedure.MaintainMesh},
			Spec:   &client.ScheduleSpec{Intervals: []client.ScheduleIntervalSpec{{Every: time.Hour}}},
			State:  &client.ScheduleState{Paused: paused},
		},
		Info: client.ScheduleInfo{NextActionTimes: []time.Time{noon.Add(time.Minute), noon.Add(time.Hour)}},
	}
	for i, id := range runs {
		d.Info.RecentActions = append(d.Info.RecentActions, client.ScheduleActionResult{
			ActualTime: noon.Add(time.Duration(i) * time.Hour), StartWorkflowResult: &client.ScheduleWorkflowExecution{WorkflowID: id}})
	}
	return d
}

func TestScheduleOf(t *testing.T) {
	d := description(false, "r1", "r2", "r3", "r4")
	d.Schedule.Spec.Calendars, d.Schedule.Spec.TimeZoneName = []client.ScheduleCalendarSpec{{}}, "Europe/Berlin"
	s := scheduleOf("maintain", "relaypki-maintain-demo", d)
	if s.Procedure != procedure.MaintainMesh || s.Every != mesh.Hours(1) || !s.Windows || s.TimeZone != "Europe/Berlin" || s.Next == nil || !s.Next.Equal(noon.Add(time.Minute)) {
		t.Errorf("%+v", s)
	}
	ids := []string{}
	for _, run := range s.Last {
		ids = append(ids, run.WorkflowID)
	}
	if got := strings.Join(ids, " "); got != "r4 r3 r2" {
		t.Errorf("last runs %s, want the latest three, the latest first", got)
	}
	if s := scheduleOf("maintain", "x", description(true)); s.Next != nil || s.Last == nil {
		t.Errorf("paused, and never run: %+v", s)
	}
}

func TestPrintSchedules(t *testing.T) {
	next := time.Now().Add(90 * time.Second)
	ago := time.Now().Add(-2 * time.Minute)
	list := []meshSchedule{
		{Name: "verify", Procedure: procedure.VerifyMesh, Every: mesh.Minutes(15), Next: &next, Last: []scheduledRun{{WorkflowID: "v", At: ago, State: "failed"}}},
		{Name: "refresh", Procedure: procedure.RefreshCredentials, Every: mesh.Hours(1), Paused: true, Note: "incident 12", Last: []scheduledRun{}},
		{Name: "maintain", Procedure: procedure.MaintainMesh, Every: mesh.Hours(1), Windows: true, TimeZone: "Europe/Berlin", Last: []scheduledRun{{At: ago}}},
	}
	var out bytes.Buffer
	c := &cli{out: &out, err: &out, name: "relaypki", output: "text"}
	c.printSchedules("demo", list)
	for _, want := range []string{"SCHEDULE", "verify", "VerifyMesh", "15m", "in 1m", "failed, 2m00s ago", "paused", "none yet", "refresh is paused: incident 12",
		"1h, and as a window opens (Europe/Berlin)", "never", "no longer known, 2m00s ago"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("lacks %q:\n%s", want, out.String())
		}
	}
	for _, width := range []int{40, 80} {
		var lines bytes.Buffer
		paper{width: width, height: 100}.table(&lines, 0, [][]span{{{"SCHEDULE", dim}, {"EVERY", dim}}, {{"maintain", plain}, {list[2].every(), plain}}})
		for _, line := range strings.Split(lines.String(), "\n") {
			if len([]rune(line)) > width {
				t.Errorf("wider than %d: %q", width, line)
			}
		}
	}
	out.Reset()
	c.printSchedules("demo", nil)
	endsWithACommand(t, out.String())
}

func TestConclusionsOfCredentialsAndSchedules(t *testing.T) {
	conclude := func(name string, result any) string {
		t.Helper()
		data, err := json.Marshal(result)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		c := &cli{out: &out, err: &out, name: "relaypki", output: "text"}
		if err := c.conclude(ending{WorkflowID: "x", Procedure: name, Status: "completed", Result: data}, &follower{cli: c}); err != nil {
			t.Fatal(err)
		}
		endsWithACommand(t, out.String())
		return out.String()
	}
	said := conclude(procedure.RotateIssuerCredentials, procedure.RefreshResult{Mesh: "demo", Method: "jwt", Count: map[procedure.State]int{procedure.Changed: 2, procedure.UpToDate: 1, procedure.Skipped: 1},
		Clusters: []procedure.ClusterProgress{{Cluster: "b", State: procedure.Skipped, Detail: "it is being added"}}})
	for _, want := range []string{"demo (jwt): 2 made anew, 1 as they were", "b was left alone: it is being added", "relaypki verify demo"} {
		if !strings.Contains(said, want) {
			t.Errorf("lacks %q:\n%s", want, said)
		}
	}
	said = conclude(procedure.ApplySchedules, procedure.SchedulesResult{Mesh: "demo", Steps: []procedure.Step{{Name: "refresh schedule", State: procedure.Created, Detail: "every 1h"}}})
	for _, want := range []string{"refresh schedule", "created", "every 1h", "relaypki schedule list demo"} {
		if !strings.Contains(said, want) {
			t.Errorf("lacks %q:\n%s", want, said)
		}
	}
}
