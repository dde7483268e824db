package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"golang.org/x/sync/errgroup"

	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// scheduleNames are what people call a mesh's schedules, with the ids.
var scheduleNames = []struct {
	name string
	id   func(mesh string) string
}{
	{"verify", temporalactivities.VerifyScheduleID},
	{"refresh", temporalactivities.RefreshScheduleID},
	{"maintain", temporalactivities.MaintainScheduleID},
}

// lastRuns is how many of a schedule's last runs are shown.
const lastRuns = 3

// meshSchedule is one schedule of a mesh.
type meshSchedule struct {
	Name      string        `json:"name"`
	ID        string        `json:"id"`
	Procedure string        `json:"procedure"`
	Every     mesh.Duration `json:"every"`
	// Windows says that it runs also as each window opens, in TimeZone.
	Windows  bool       `json:"windows,omitempty"`
	TimeZone string     `json:"timeZone,omitempty"`
	Paused   bool       `json:"paused"`
	Note     string     `json:"note,omitempty"`
	Next     *time.Time `json:"next,omitempty"`
	// Last are its last runs, the latest first.
	Last []scheduledRun `json:"last"`
}

// scheduledRun is a run that a schedule has started.
type scheduledRun struct {
	WorkflowID string    `json:"workflowId"`
	At         time.Time `json:"at"`
	// State is empty for one that Temporal no longer has.
	State string `json:"state,omitempty"`
}

func (c *cli) scheduleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "schedule",
		Short: "What is done of a mesh again and again",
		Long: `What is done of a mesh again and again, as Schedules in Temporal: verify (VerifyMesh),
refresh (RefreshCredentials, where a credential expires) and maintain (MaintainMesh,
which starts the rotations that are due). How often, the mesh's file says, and a
setup makes them. None runs twice at once, and what Temporal was down for is made up
for within 10 minutes, or left to the next run. A run that fails tells the webhooks
of the worker's site file.`,
		Example: `  relaypki schedule list demo
  relaypki schedule pause demo --reason "change freeze"`,
	}
	cmd.AddCommand(c.scheduleApplyCommand(), c.scheduleListCommand(), c.schedulePauseCommand(), c.scheduleResumeCommand(),
		c.scheduleTriggerCommand(), c.scheduleDeleteCommand())
	return cmd
}

func (c *cli) scheduleApplyCommand() *cobra.Command {
	var taskQueue string
	cmd := &cobra.Command{
		Use:   "apply MESH",
		Short: "Make the schedules what the mesh's record says",
		Long: `Make the schedules what the recorded description of the mesh says, as every setup
does at its end: to have back one that was deleted, or those of a newer release. A
schedule that is paused stays paused. Another interval is a change of the mesh's file,
and takes a setup.`,
		Example: `  relaypki schedule apply demo`,
		Args:    cobra.ExactArgs(1), ValidArgsFunction: c.completeMesh,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if !meshName.MatchString(name) {
				return badInput(c.again("status"), "%q is not the name of a mesh", name)
			}
			input, err := json.Marshal(procedure.MeshInput{Mesh: name})
			if err != nil {
				return err
			}
			return c.launch(cmd.Context(), launch{
				procedure: procedure.ApplySchedules, id: procedure.ID(procedure.ApplySchedules, name), taskQueue: taskQueue, input: input,
				summary: "Make the schedules of mesh " + name + " what its record says", again: c.again("schedule apply", name),
			})
		},
	}
	cmd.Flags().StringVar(&taskQueue, "task-queue", procedure.TaskQueue, "task queue of the worker")
	_ = cmd.RegisterFlagCompletionFunc("task-queue", cobra.NoFileCompletions) // fails only if there is no such flag
	return cmd
}

func (c *cli) scheduleListCommand() *cobra.Command {
	return c.schedulesCommand(&cobra.Command{
		Use:   "list MESH",
		Short: "List the schedules with their last runs and the next",
		Long:  `List the schedules of a mesh: how often, the next run, the last ones, and who paused it why.`,
		Example: `  relaypki schedule list demo
  # Those that are paused, for a script:
  relaypki schedule list demo -o json | jq -r '.schedules[] | select(.paused) | .name'`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: c.completeMesh,
	}, nil)
}

func (c *cli) schedulePauseCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "pause MESH [NAME] --reason WHY",
		Short: "Have a schedule, or all of a mesh, start nothing",
		Long: `Have a schedule start nothing until "relaypki schedule resume"; without a name, all of
the mesh. What runs goes on. With refresh paused, credentials that expire are not
renewed: a paused schedule is not for long.`,
		Example: `  relaypki schedule pause demo maintain --reason "change freeze until Monday"
  relaypki schedule pause demo --reason "incident 12"`,
		Args: cobra.RangeArgs(1, 2), ValidArgsFunction: c.completeSchedule,
	}
	reasonFlag(cmd, &reason)
	return c.schedulesCommand(cmd, &scheduleDeed{
		check: func() error { return c.needReason(reason) },
		do: func(ctx context.Context, handle client.ScheduleHandle) error {
			return handle.Pause(ctx, client.SchedulePauseOptions{Note: reason})
		},
	})
}

func (c *cli) scheduleResumeCommand() *cobra.Command {
	return c.schedulesCommand(&cobra.Command{
		Use:   "resume MESH [NAME]",
		Short: "Have a paused schedule run again",
		Long:  `Have a paused schedule start its runs again, from the next that is due; without a name, all of the mesh.`,
		Example: `  relaypki schedule resume demo maintain
  relaypki schedule resume demo`,
		Args: cobra.RangeArgs(1, 2), ValidArgsFunction: c.completeSchedule,
	}, &scheduleDeed{do: func(ctx context.Context, handle client.ScheduleHandle) error {
		return handle.Unpause(ctx, client.ScheduleUnpauseOptions{Note: "resumed"})
	}})
}

func (c *cli) scheduleTriggerCommand() *cobra.Command {
	return c.schedulesCommand(&cobra.Command{
		Use:   "trigger MESH NAME",
		Short: "Have a schedule run now",
		Long: `Have a schedule run now, also if it is paused. While a run of it is at work, the new
one waits until that has ended.`,
		Example: `  relaypki schedule trigger demo maintain`,
		Args:    cobra.ExactArgs(2), ValidArgsFunction: c.completeSchedule,
	}, &scheduleDeed{do: func(ctx context.Context, handle client.ScheduleHandle) error {
		return handle.Trigger(ctx, client.ScheduleTriggerOptions{Overlap: enumspb.SCHEDULE_OVERLAP_POLICY_BUFFER_ONE})
	}})
}

func (c *cli) scheduleDeleteCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "delete MESH [NAME]",
		Short: "Delete a schedule, or all of a mesh",
		Long: `Delete a schedule; without a name, all of the mesh. What runs goes on. The next setup
of the mesh, and "relaypki schedule apply", make it again: to be rid of it, set its
interval to 0s in the mesh's file.`,
		Example: `  relaypki schedule delete demo verify
  # From a script, where nobody can be asked:
  relaypki schedule delete demo --yes`,
		Args: cobra.RangeArgs(1, 2), ValidArgsFunction: c.completeSchedule,
	}
	yesFlag(cmd, &yes)
	return c.schedulesCommand(cmd, &scheduleDeed{
		ask: func(cmd *cobra.Command, mesh string, names []string) error {
			return c.confirm(cmd, yes, danger{
				question:    fmt.Sprintf("Delete the schedules %s of mesh %s?", strings.Join(names, ", "), mesh),
				consequence: "Nothing is started by them any more. The next setup of the mesh makes them again.",
			})
		},
		do: func(ctx context.Context, handle client.ScheduleHandle) error { return handle.Delete(ctx) },
	})
}

// scheduleDeed is what a command does to schedules.
type scheduleDeed struct {
	// check says what is wrong with the flags, ask puts the question; either may be
	// nil.
	check func() error
	ask   func(cmd *cobra.Command, mesh string, names []string) error
	do    func(context.Context, client.ScheduleHandle) error
}

// schedulesCommand is a command that does something to the schedules of a mesh,
// all that there are or the one that is named, and shows them then.
func (c *cli) schedulesCommand(cmd *cobra.Command, deed *scheduleDeed) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := args[0]
		if !meshName.MatchString(name) {
			return badInput(c.again("status"), "%q is not the name of a mesh", name)
		}
		wanted := args[1:]
		if len(wanted) > 0 && !slices.Contains(namesOfSchedules(), wanted[0]) {
			return badInput(c.again("schedule list", name), "%q is no schedule; it is one of %s", wanted[0], strings.Join(namesOfSchedules(), ", "))
		}
		if deed != nil && deed.check != nil {
			if err := deed.check(); err != nil {
				return err
			}
		}
		t, err := c.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer t.Close()
		if deed != nil {
			if err := c.toSchedules(cmd, t, name, wanted, deed); err != nil {
				return err
			}
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*callTime)
		defer cancel()
		list, err := t.meshSchedules(ctx, name)
		if err != nil {
			return t.failed(err, "list the schedules")
		}
		if c.json() {
			return c.printJSON(map[string]any{"mesh": name, "schedules": list})
		}
		c.printSchedules(name, list)
		return nil
	}
	return cmd
}

// toSchedules does the deed to each schedule that is meant.
func (c *cli) toSchedules(cmd *cobra.Command, t *server, name string, wanted []string, deed *scheduleDeed) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*callTime)
	defer cancel()
	there, err := t.meshSchedules(ctx, name)
	if err != nil {
		return t.failed(err, "list the schedules")
	}
	meant := slices.DeleteFunc(there, func(s meshSchedule) bool { return len(wanted) > 0 && s.Name != wanted[0] })
	if len(meant) == 0 {
		what := "no schedules"
		if len(wanted) > 0 {
			what = "no schedule " + wanted[0]
		}
		return badInput(c.again("schedule apply", name), "mesh %s has %s in namespace %s", name, what, t.namespace)
	}
	if deed.ask != nil {
		names := make([]string, len(meant))
		for i, s := range meant {
			names[i] = s.Name
		}
		if err := deed.ask(cmd, name, names); err != nil {
			return err
		}
	}
	// A person may have taken a while to answer.
	ctx, cancel = context.WithTimeout(cmd.Context(), 2*callTime)
	defer cancel()
	for _, s := range meant {
		if err := deed.do(ctx, t.ScheduleClient().GetHandle(ctx, s.ID)); err != nil && !isNotFound(err) {
			return t.failed(err, cmd.Name()+" the schedule "+s.ID)
		}
	}
	return nil
}

func namesOfSchedules() []string {
	names := make([]string, len(scheduleNames))
	for i, s := range scheduleNames {
		names[i] = s.name
	}
	return names
}

// meshSchedules are the schedules that a mesh has.
func (t *server) meshSchedules(ctx context.Context, name string) ([]meshSchedule, error) {
	list := []meshSchedule{}
	for _, s := range scheduleNames {
		d, err := t.ScheduleClient().GetHandle(ctx, s.id(name)).Describe(ctx)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		one := scheduleOf(s.name, s.id(name), d)
		t.statesOf(ctx, one.Last)
		list = append(list, one)
	}
	return list, nil
}

func scheduleOf(name, id string, d *client.ScheduleDescription) meshSchedule {
	s := meshSchedule{Name: name, ID: id, Paused: d.Schedule.State.Paused, Note: d.Schedule.State.Note, Last: []scheduledRun{}}
	if action, ok := d.Schedule.Action.(*client.ScheduleWorkflowAction); ok {
		s.Procedure, _ = action.Workflow.(string)
	}
	for _, interval := range d.Schedule.Spec.Intervals {
		s.Every.Duration = interval.Every
	}
	if s.Windows = len(d.Schedule.Spec.Calendars) > 0; s.Windows {
		s.TimeZone = d.Schedule.Spec.TimeZoneName
	}
	if len(d.Info.NextActionTimes) > 0 && !s.Paused {
		s.Next = &d.Info.NextActionTimes[0]
	}
	for _, action := range slices.Backward(d.Info.RecentActions) {
		if action.StartWorkflowResult == nil || len(s.Last) == lastRuns {
			continue
		}
		s.Last = append(s.Last, scheduledRun{WorkflowID: action.StartWorkflowResult.WorkflowID, At: action.ActualTime})
	}
	return s
}

// statesOf asks how the runs of a schedule have ended.
func (t *server) statesOf(ctx context.Context, runs []scheduledRun) {
	var group errgroup.Group
	for i := range runs {
		group.Go(func() error {
			if e, err := t.execution(ctx, runs[i].WorkflowID); err == nil {
				runs[i].State = e.State
			}
			return nil
		})
	}
	_ = group.Wait() // nothing in it returns an error
}

func (c *cli) printSchedules(name string, list []meshSchedule) {
	if len(list) == 0 {
		c.say("Mesh %s has no schedules.\nNext: %s", name, c.again("schedule apply", name))
		return
	}
	now := time.Now()
	rows := [][]span{{{"SCHEDULE", dim}, {"PROCEDURE", dim}, {"EVERY", dim}, {"NEXT", dim}, {"LAST RUN", dim}}}
	for _, s := range list {
		rows = append(rows, []span{{s.Name, plain}, {tidy(s.Procedure), plain}, {s.every(), plain}, s.next(now), s.last(now)})
	}
	p := c.paper()
	p.table(c.out, 0, rows)
	for _, s := range list {
		if s.Paused {
			p.print(c.out, 0, span{s.Name + " is paused: " + tidy(s.Note), yellow})
		}
	}
}

// scheduled says what became of the schedules of a mesh.
func (p paper) scheduled(w io.Writer, r procedure.SchedulesResult, c *cli) {
	rows := [][]span{{{"SCHEDULE", dim}, {"STATE", dim}, {"DETAIL", dim}}}
	for _, s := range r.Steps {
		rows = append(rows, []span{{tidy(s.Name), plain}, {string(s.State), p.symbol(s.State).style}, {tidy(s.Detail), plain}})
	}
	p.table(w, 0, rows)
	fmt.Fprintf(w, "Next: %s\n", c.again("schedule list", r.Mesh))
}

func (s meshSchedule) every() string {
	if s.Windows {
		return fmt.Sprintf("%s, and as a window opens (%s)", s.Every, tidy(s.TimeZone))
	}
	return s.Every.String()
}

func (s meshSchedule) next(now time.Time) span {
	switch {
	case s.Paused:
		return span{"paused", yellow}
	case s.Next == nil:
		return span{"never", yellow}
	default:
		return span{"in " + elapsed(s.Next.Sub(now)), plain}
	}
}

func (s meshSchedule) last(now time.Time) span {
	if len(s.Last) == 0 {
		return span{"none yet", dim}
	}
	run := s.Last[0]
	look := plain
	switch run.State {
	case "completed":
		look = green
	case "", "running":
	default:
		look = red
	}
	state := run.State
	if state == "" {
		state = "no longer known"
	}
	return span{fmt.Sprintf("%s, %s ago", state, elapsed(now.Sub(run.At))), look}
}

// completeSchedule proposes a mesh, and then the names of schedules.
func (c *cli) completeSchedule(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return c.completeMesh(cmd, args, typed)
	case 1:
		return namesOfSchedules(), nothingElse
	default:
		return nil, nothingElse
	}
}
