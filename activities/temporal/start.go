package temporal

import (
	"context"
	"errors"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"

	"github.com/relaypki/relaypki/internal/procedure"
)

// StartInput describes a procedure to start.
type StartInput struct {
	Procedure string `json:"procedure"`
	Workflow  string `json:"workflow"`
	Summary   string `json:"summary"`
	// Input is what the procedure takes, one JSON object.
	Input any `json:"input"`
}

// StartResult is the run, and whether it was there before.
type StartResult struct {
	Workflow string `json:"workflow"`
	Run      string `json:"run"`
	Running  bool   `json:"running,omitempty"`
}

// StartProcedure starts a procedure on the worker's task queue and does not wait
// for it. One with that workflow id that runs already is left to it; one that
// has ended may be followed by another.
func (*Activities) StartProcedure(ctx context.Context, in StartInput) (StartResult, error) {
	run, err := activity.GetClient(ctx).ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID: in.Workflow, TaskQueue: activity.GetInfo(ctx).TaskQueue, StaticSummary: in.Summary,
		WorkflowIDReusePolicy:                    enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		WorkflowIDConflictPolicy:                 enumspb.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
		WorkflowExecutionErrorWhenAlreadyStarted: true,
	}, in.Procedure, in.Input)
	var started *serviceerror.WorkflowExecutionAlreadyStarted
	switch {
	case errors.As(err, &started):
		return StartResult{Workflow: in.Workflow, Run: started.RunId, Running: true}, nil
	case err != nil:
		return StartResult{}, temporalError(err, "start "+in.Procedure+" as "+in.Workflow)
	}
	return StartResult{Workflow: in.Workflow, Run: run.GetRunID()}, nil
}

// AskInput names a procedure that runs.
type AskInput struct {
	Workflow string `json:"workflow"`
}

// AskResult is what a procedure waits for; empty if it is at work, or does not
// say.
type AskResult struct {
	Awaiting string `json:"awaiting,omitempty"`
	// Person says that it waits for a person.
	Person bool `json:"person,omitempty"`
}

// askWithin bounds the wait for a procedure's own answer.
const askWithin = 5 * time.Second

// AskProcedure asks a procedure what it waits for. One that does not answer soon,
// or is no procedure of ours, is no error: it is only not known.
func (*Activities) AskProcedure(ctx context.Context, in AskInput) (AskResult, error) {
	ask, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	answer, err := activity.GetClient(ctx).QueryWorkflow(ask, in.Workflow, "", procedure.ProgressQuery)
	var p procedure.Progress
	if err == nil {
		err = answer.Get(&p)
	}
	if err != nil {
		activity.GetLogger(ctx).Warn("a procedure does not say what it waits for", "workflow", in.Workflow, "error", err)
		return AskResult{}, ctx.Err()
	}
	return AskResult{Awaiting: p.Awaiting, Person: p.Person}, nil
}
