package workflows

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/notify"
	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

var notifiers *notify.Activities

// notifying is for others' web servers: through a short outage, and not so long
// that the next scheduled run is held up by it.
var notifying = budget(time.Minute, 5*time.Minute)

// mostLines is how many causes a message or an error lists, longestLine how long
// one may be.
const (
	mostLines   = 20
	longestLine = 500
)

// unwatched says that nobody looks at the run: no person has started it, but a
// schedule, or MaintainMesh, which notes it in the memo.
func unwatched(ctx workflow.Context) bool {
	_, started := workflow.GetInfo(ctx).Memo.GetFields()[procedure.MemoStartedBy]
	return started || scheduled(ctx)
}

// tell tells people that a run is about to fail at which nobody looks. What
// failed are the things that they are told of once a day and no more, however
// often the run is made again. It answers what they know then; the run has to end
// with an error that has it in its details, where the next one finds it.
func tell(ctx workflow.Context, r *report, err error, failed []string) *procedure.Told {
	if !unwatched(ctx) {
		return nil
	}
	return warn(ctx, r, err, failed)
}

// warn is tell, whoever has started the run.
func warn(ctx workflow.Context, r *report, err error, failed []string) *procedure.Told {
	if ctx.Err() != nil || temporal.IsCanceledError(err) {
		return nil // whoever ended the run knows
	}
	last := toldBefore(ctx)
	news, told := procedure.News(last, failed, workflow.Now(ctx))
	if news && !send(ctx, r, "Tell people of the failure", alert(r.Progress, workflow.GetInfo(ctx).WorkflowExecution.ID, err)) {
		return last
	}
	return told
}

// toldBefore is what people were told of the failure of the run before this one;
// nil if that did not fail, or is not known.
func toldBefore(ctx workflow.Context) *procedure.Told {
	if told := temporalactivities.ToldOf(workflow.GetLastError(ctx)); told != nil {
		return told
	}
	var told *procedure.Told
	if payload, ok := workflow.GetInfo(ctx).Memo.GetFields()[procedure.MemoTold]; ok {
		_ = converter.GetDefaultDataConverter().FromPayload(payload, &told) // else they are told once too often
	}
	return told
}

// whatFailed are the steps and the clusters at which a run fails, and why in a
// word: texts of errors have times in them, and are others each time.
func whatFailed(p procedure.Progress, err error) []string {
	failed := []string{"failure " + string(failure.KindOf(err))}
	for _, s := range p.Steps {
		if s.State == procedure.Failed {
			failed = append(failed, "step "+s.Name)
		}
	}
	for _, c := range p.Clusters {
		if c.State == procedure.Failed || c.State == procedure.Parked {
			failed = append(failed, "cluster "+c.Cluster)
		}
	}
	slices.Sort(failed)
	return slices.Compact(failed)
}

// notice tells people something that they have to know of a run, whoever has
// started it: that it waits for one of them, or how a long one has ended. The
// text goes on from "<procedure> of mesh <mesh>: ", and the commands come before
// that which shows the run. It never fails the run, and takes no longer than
// notifying allows. It answers whether people were told.
func notice(ctx workflow.Context, r *report, text string, commands ...string) bool {
	if ctx.Err() != nil {
		return false // whoever ended the run knows
	}
	next := strings.Join(append(commands, "relaypki watch "+workflow.GetInfo(ctx).WorkflowExecution.ID), nextLine)
	return send(ctx, r, "Tell people", fmt.Sprintf("relaypki: %s of mesh %s: %s\nNext: %s", r.Procedure, r.Mesh, readable(text), next))
}

// nextLine begins a further command after "Next: ", as the relaypki command has it.
const nextLine = "\n      "

// send sends a message and notes as a step of the report who was told. That
// nobody could be told is in the report and changes nothing else.
func send(ctx workflow.Context, r *report, summary, text string) bool {
	step := r.begin(ctx, procedure.NotifyStep)
	told, err := call[notify.Result](ctx, summarized(notifying, summary), notifiers.Notify, notify.Input{Text: text})
	outcome := procedure.Outcome{Detail: "told " + strings.Join(told.Told, ", ")}
	if len(told.Told) == 0 {
		outcome.Detail = procedure.NobodyToTell
	}
	r.end(ctx, step, outcome, err)
	if err != nil {
		workflow.GetLogger(ctx).Error("people could not be told", "problem", failure.Message(err))
	}
	return err == nil
}

// alert is the message: what failed, of which mesh, and what to type next.
func alert(p procedure.Progress, workflowID string, err error) string {
	next := "relaypki watch " + workflowID
	if p.Procedure == procedure.VerifyMesh {
		next = "relaypki verify " + p.Mesh
	}
	return fmt.Sprintf("relaypki: %s of mesh %s failed: %s\nNext: %s", p.Procedure, p.Mesh, readable(failure.Message(err)), next)
}

// readable is a text of no more lines, and no longer ones, than people read.
func readable(text string) string {
	lines := strings.Split(text, "\n")
	if more := len(lines) - 1 - mostLines; more > 0 {
		lines = append(lines[:1+mostLines], fmt.Sprintf("... and %d lines more", more))
	}
	for i := range lines {
		lines[i] = brief(lines[i])
	}
	return strings.Join(lines, "\n")
}

// brief is a text of no more than a line's length.
func brief(text string) string {
	if runes := []rune(text); len(runes) > longestLine {
		return string(runes[:longestLine]) + "..."
	}
	return text
}
