package workflows

import (
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/notify"
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

// tell tells people that a run which a schedule has started is about to fail:
// nobody watches those. That it could not be told is a step of the report and
// changes nothing about the failure.
func tell(ctx workflow.Context, r *report, err error) {
	if !scheduled(ctx) || temporal.IsCanceledError(err) {
		return
	}
	send(ctx, r, "Tell people of the failure", alert(r.Progress, workflow.GetInfo(ctx).WorkflowExecution.ID, err))
}

// notice tells people something that they have to know of a run, whoever has
// started it: that it waits for one of them, or how a long one has ended. The
// text goes on from "<procedure> of mesh <mesh>: ". It never fails the run, and
// takes no longer than notifying allows.
func notice(ctx workflow.Context, r *report, text string) {
	if ctx.Err() != nil {
		return // whoever ended the run knows
	}
	next := "relaypki watch " + workflow.GetInfo(ctx).WorkflowExecution.ID
	send(ctx, r, "Tell people", fmt.Sprintf("relaypki: %s of mesh %s: %s\nNext: %s", r.Procedure, r.Mesh, readable(text), next))
}

// send sends a message and notes as a step of the report who was told.
func send(ctx workflow.Context, r *report, summary, text string) {
	step := r.begin(ctx, "notify")
	told, err := call[notify.Result](ctx, summarized(notifying, summary), notifiers.Notify, notify.Input{Text: text})
	outcome := procedure.Outcome{Detail: "told " + strings.Join(told.Told, ", ")}
	if len(told.Told) == 0 {
		outcome.Detail = "nobody to tell: the worker's site file has no notify"
	}
	r.end(ctx, step, outcome, err)
	if err != nil {
		workflow.GetLogger(ctx).Error("people could not be told", "problem", failure.Message(err))
	}
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
