package temporal

import (
	"context"
	"errors"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	sdk "go.temporal.io/sdk/temporal"

	"github.com/relaypki/relaypki/internal/procedure"
)

// StartInput describes a procedure to start.
type StartInput struct {
	Procedure string `json:"procedure"`
	Workflow  string `json:"workflow"`
	Summary   string `json:"summary"`
	// By is the workflow on whose behalf it is started: no person looks at the run.
	By string `json:"by"`
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
// has ended may be followed by another, whose memo has what people were told of
// its failure: one that fails again and again is not told each time.
func (*Activities) StartProcedure(ctx context.Context, in StartInput) (StartResult, error) {
	c := activity.GetClient(ctx)
	memo := map[string]any{procedure.MemoStartedBy: in.By}
	if told := toldOfLast(ctx, c, in.Workflow); told != nil {
		memo[procedure.MemoTold] = told
	}
	run, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID: in.Workflow, TaskQueue: activity.GetInfo(ctx).TaskQueue, StaticSummary: in.Summary, Memo: memo,
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

// toldOfLast is what people were told of the failure of the last run with that
// workflow id; nil if it has not failed, or if that cannot be read: then people
// are told once too often.
func toldOfLast(ctx context.Context, c client.Client, id string) *procedure.Told {
	last, err := c.DescribeWorkflowExecution(ctx, id, "")
	var absent *serviceerror.NotFound
	switch {
	case errors.As(err, &absent):
		return nil
	case err != nil:
		activity.GetLogger(ctx).Warn("it is not known how the last run has ended", "workflow", id, "error", err)
		return nil
	case last.GetWorkflowExecutionInfo().GetStatus() != enumspb.WORKFLOW_EXECUTION_STATUS_FAILED:
		return nil
	}
	return ToldOf(c.GetWorkflow(ctx, id, last.GetWorkflowExecutionInfo().GetExecution().GetRunId()).Get(ctx, nil))
}

// ToldOf is what people were told of a failure, by the details of the error that a
// run has ended with; nil if they were told nothing.
func ToldOf(err error) *procedure.Told {
	var app *sdk.ApplicationError
	var report struct {
		Told *procedure.Told `json:"told"`
	}
	if !errors.As(err, &app) || !app.HasDetails() || app.Details(&report) != nil {
		return nil
	}
	return report.Told
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
