package temporal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// FreezeInput names the schedules of a mesh.
type FreezeInput struct {
	Mesh string `json:"mesh"`
	// Incident and Reason become the note of a schedule that is paused.
	Incident string `json:"incident"`
	Reason   string `json:"reason"`
	// Thaw has those go on again that were paused for an incident.
	Thaw bool           `json:"thaw,omitempty"`
	Mode procedure.Mode `json:"mode"`
}

// frozenMark is what the note of a schedule begins with that was paused here. An
// operator's pause has a note of its own.
const frozenMark = "relaypki: paused for incident "

// FreezeSchedules pauses all schedules of a mesh, or has those go on that it has
// paused: one that an operator has paused stays as it is. The mesh's other schedules,
// or none, are no error.
func (*Activities) FreezeSchedules(ctx context.Context, in FreezeInput) (procedure.Outcome, error) {
	return freeze(ctx, activity.GetClient(ctx).ScheduleClient(), in)
}

func freeze(ctx context.Context, schedules client.ScheduleClient, in FreezeInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	for _, id := range []string{VerifyScheduleID(in.Mesh), RefreshScheduleID(in.Mesh), MaintainScheduleID(in.Mesh)} {
		handle := schedules.GetHandle(ctx, id)
		have, err := handle.Describe(ctx)
		var absent *serviceerror.NotFound
		if errors.As(err, &absent) {
			continue
		}
		if err != nil {
			return out, temporalError(err, "describe the schedule "+id)
		}
		paused, note := have.Schedule.State.Paused, have.Schedule.State.Note
		switch {
		case in.Thaw && paused && strings.HasPrefix(note, frozenMark):
			out.Changed(procedure.Update, "schedule "+id, "goes on again")
			if in.Mode.Writes() {
				err = handle.Unpause(ctx, client.ScheduleUnpauseOptions{Note: "resumed after incident " + in.Incident})
			}
		case !in.Thaw && !paused:
			note = frozenMark + in.Incident + ": " + in.Reason
			out.Changed(procedure.Update, "schedule "+id, note)
			if in.Mode.Writes() {
				err = handle.Pause(ctx, client.SchedulePauseOptions{Note: note})
			}
		}
		if err != nil {
			return out, temporalError(err, "change the schedule "+id)
		}
	}
	return out, nil
}

// TakeOverInput names the mesh whose CAs somebody may be at work on.
type TakeOverInput struct {
	Mesh   string `json:"mesh"`
	Reason string `json:"reason"`
	// Holders are, beside the ids that procedure.ID gives, workflows that are known to
	// be at work on the mesh's CAs: what the record and the lock say, as a lock's holder
	// is written (<temporal namespace>/<workflow id>/<first run id>), or the workflow
	// id alone.
	Holders []string       `json:"holders,omitempty"`
	Mode    procedure.Mode `json:"mode"`
}

// TakeOverResult says who was ended.
type TakeOverResult struct {
	procedure.Outcome
	Ended []string `json:"ended,omitempty"`
}

// takenOver are the procedures that an emergency ends, if they are at work.
var takenOver = []string{procedure.RotateLeafCertificates, procedure.RotateIntermediateCA, procedure.RotateRootCA}

// TakeOver ends whatever rotation (of leaves, intermediate, root) is at work on the
// mesh's CAs by its abort update, and waits (heartbeating) until it has ended: what it
// has done stays, and it has given back its locks. One that does not answer its update
// within a minute is terminated. A holder that is at work and is no rotation is a
// permanent Locked error, before anything is ended. In a look ahead nothing is ended,
// and Ended is who would be.
func (*Activities) TakeOver(ctx context.Context, in TakeOverInput) (TakeOverResult, error) {
	return takeover{Client: activity.GetClient(ctx), info: activity.GetInfo(ctx), reason: in.Reason, within: answerWithin, every: lookEvery}.all(ctx, in)
}

const (
	// answerWithin is how long a run has to take its abort update.
	answerWithin = time.Minute
	// lookEvery is how often a run is looked at that is to end.
	lookEvery = time.Second
)

// takeover is one call of TakeOver.
type takeover struct {
	client.Client
	info          activity.Info
	reason        string
	within, every time.Duration
}

func (t takeover) all(ctx context.Context, in TakeOverInput) (TakeOverResult, error) {
	var result TakeOverResult
	runs, err := t.atWork(ctx, in)
	if err != nil {
		return result, err
	}
	for _, r := range runs {
		result.Changed(procedure.Delete, "run "+r.id, "ended, what it has done stays: "+in.Reason)
		if in.Mode.Writes() && r.open {
			if err := t.end(ctx, r); err != nil {
				return result, err
			}
		}
		result.Ended = append(result.Ended, r.id)
	}
	return result, nil
}

// execution is the latest run of a workflow id; firstRun is that of the chain of runs
// that it belongs to, which an old server does not say.
type execution struct {
	id, procedure string
	run, firstRun string
	open          bool
	closed        time.Time
}

// atWork are the runs to be ended. A try that was cut off has ended some of them:
// those count as well.
func (t takeover) atWork(ctx context.Context, in TakeOverInput) ([]execution, error) {
	firstRuns := map[string]string{}
	var ids []string
	for _, name := range takenOver {
		ids = append(ids, procedure.ID(name, in.Mesh))
	}
	for _, holder := range in.Holders {
		id, firstRun := holder, ""
		if first, last := strings.Index(holder, "/"), strings.LastIndex(holder, "/"); first < last {
			if holder[:first] != t.info.Namespace {
				continue // out of reach; its lock says that it is held
			}
			id, firstRun = holder[first+1:last], holder[last+1:]
		}
		// This very run holds the lock when it is tried again.
		if id != t.info.WorkflowExecution.ID && !slices.Contains(ids, id) {
			ids, firstRuns[id] = append(ids, id), firstRun
		}
	}
	var runs []execution
	for _, id := range ids {
		r, err := t.latest(ctx, id)
		if err != nil {
			return nil, err
		}
		ended := t.info.Attempt > 1 && r.closed.After(t.info.ScheduledTime)
		if !r.of(firstRuns[id]) || !r.open && !ended {
			continue
		}
		if slices.Contains(takenOver, r.procedure) {
			runs = append(runs, r)
		} else if r.open {
			return nil, failure.Permanent(failure.Locked, "workflow %q is at work on the CAs of mesh %q, and it is %s, which an emergency does not end: what it has half done nobody would finish. Nothing was ended. Wait for it, or end it, and start again",
				id, in.Mesh, r.procedure)
		}
	}
	return runs, nil
}

// latest is the latest run of a workflow id; one that is not open if there is none.
func (t takeover) latest(ctx context.Context, id string) (execution, error) {
	answer, err := t.DescribeWorkflowExecution(ctx, id, "")
	var absent *serviceerror.NotFound
	if errors.As(err, &absent) {
		return execution{id: id}, nil
	}
	if err != nil {
		return execution{}, temporalError(err, "describe the workflow "+id)
	}
	info := answer.GetWorkflowExecutionInfo()
	r := execution{id: id, procedure: info.GetType().GetName(), run: info.GetExecution().GetRunId(), firstRun: info.GetFirstRunId()}
	switch info.GetStatus() {
	case enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING, enumspb.WORKFLOW_EXECUTION_STATUS_PAUSED:
		r.open = true
	default:
		r.closed = info.GetCloseTime().AsTime()
	}
	return r, nil
}

// of says whether a run belongs to the chain that begins with that run, as far as that
// is known.
func (r execution) of(firstRun string) bool {
	return firstRun == "" || r.firstRun == "" || r.firstRun == firstRun
}

// end asks a run to end, terminates it if it does not answer, and waits until it has
// ended. The same request has the same id: one that was sent twice is one.
func (t takeover) end(ctx context.Context, r execution) error {
	asked, answered := time.Now(), false
	for {
		activity.RecordHeartbeat(ctx, fmt.Sprintf("the run %s to end", r.id))
		var problem error
		if !answered {
			problem = t.ask(ctx, r, asked.Add(t.within))
			answered = problem == nil
		}
		if mayNot(problem) {
			return temporalError(problem, "abort the workflow "+r.id)
		}
		now, err := t.latest(ctx, r.id)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && failure.IsPermanent(err):
			return err
		case err == nil && (!now.open || !now.of(r.firstRun)):
			return nil
		case err == nil && !answered && time.Since(asked) >= t.within:
			activity.GetLogger(ctx).Warn("a run that is to be taken over is terminated: it does not answer", "workflow", r.id, "error", problem)
			if err := t.TerminateWorkflow(ctx, r.id, now.run, t.reason); mayNot(err) {
				return temporalError(err, "terminate the workflow "+r.id)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(t.every):
		}
	}
}

// ask sends a run its abort update and waits for the answer, until then.
func (t takeover) ask(ctx context.Context, r execution, until time.Time) error {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	update, err := t.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		UpdateID: "take-over-" + t.info.WorkflowExecution.RunID, WorkflowID: r.id, FirstExecutionRunID: r.firstRun,
		UpdateName: procedure.AbortUpdate, Args: []any{procedure.AbortInput{Reason: t.reason}}, WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err != nil {
		return err
	}
	return update.Get(ctx, nil)
}
