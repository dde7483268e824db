package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/client"

	"github.com/relaypki/relaypki/internal/procedure"
)

// histories are what Temporal has recorded of one run of SetupMesh.
type histories struct {
	// compared is from the start until the last cluster was done; preflight the
	// part before anything was changed; verification what came after.
	compared, preflight, verification time.Duration
	// parentEvents are until the verification began. Those of all its runs, if
	// it continued as new.
	parentEvents int
	parentRuns   int
	longestRun   int
	// actions are what Temporal Cloud would bill, without heartbeats: starts,
	// attempts of activities, timers, upserts, updates.
	actions     int
	children    []childHistory
	failedTasks int // workflow tasks
	retried     int // attempts of activities beyond the first
}

// childHistory is one cluster's.
type childHistory struct {
	id     string
	events int
	took   time.Duration
	// spent divides what it took by what was waited for.
	spent map[waitingFor]time.Duration
}

type waitingFor string

const (
	certManagers waitingFor = "cert-manager"
	vaults       waitingFor = "Vault"
	apiServers   waitingFor = "API servers"
	charts       waitingFor = "Helm"
	temporals    waitingFor = "Temporal and the worker"
)

// waitedFor says whom an activity mostly waits for.
func waitedFor(activity string) waitingFor {
	switch activity {
	case "AwaitCertManager", "ApplyIssuer", "ApplyCertificate":
		return certManagers
	case "CheckVault", "EnablePKI", "GenerateRoot", "GenerateIntermediateCSR", "SignIntermediate", "SetSignedIntermediate",
		"ConfigureRoles", "EnableClusterAccess", "IssueClusterToken":
		return vaults
	case "InstallChart":
		return charts
	}
	return apiServers
}

func (b *bench) history(ctx context.Context, id, run string) ([]*historypb.HistoryEvent, error) {
	var events []*historypb.HistoryEvent
	for it := b.temporal.GetWorkflowHistory(ctx, id, run, false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT); it.HasNext(); {
		event, err := it.Next()
		if err != nil {
			return nil, fmt.Errorf("history of %s: %w", id, err)
		}
		events = append(events, event)
	}
	return events, nil
}

// follow follows a run's history, and that of those it continues as, until the
// event that is looked for.
func (b *bench) follow(ctx context.Context, run client.WorkflowRun, what string, is func(*historypb.HistoryEvent) bool) error {
	for id := run.GetRunID(); id != ""; {
		next := ""
		for it := b.temporal.GetWorkflowHistory(ctx, run.GetID(), id, true, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT); it.HasNext(); {
			event, err := it.Next()
			if err != nil {
				return err
			}
			if is(event) {
				return nil
			}
			next = event.GetWorkflowExecutionContinuedAsNewEventAttributes().GetNewExecutionRunId()
		}
		id = next
	}
	err := run.Get(ctx, nil)
	return fmt.Errorf("%s ended before %s: %w", run.GetID(), what, err)
}

func verifies(event *historypb.HistoryEvent) bool {
	return event.GetStartChildWorkflowExecutionInitiatedEventAttributes().GetWorkflowType().GetName() == procedure.VerifyMesh
}

// read reads a run of SetupMesh, those that it continued as, and its children.
func (b *bench) read(ctx context.Context, id, run string) (histories, error) {
	var h histories
	began := time.Time{}
	var children []*commonpb.WorkflowExecution
	for verified := false; run != ""; {
		events, err := b.history(ctx, id, run)
		if err != nil {
			return h, err
		}
		if began.IsZero() {
			began = events[0].GetEventTime().AsTime()
		}
		run = ""
		h.parentRuns++
		h.longestRun = max(h.longestRun, len(events))
		h.count(events)
		for _, event := range events {
			if !verified {
				h.parentEvents++
			}
			at := event.GetEventTime().AsTime()
			switch started := event.GetChildWorkflowExecutionStartedEventAttributes(); {
			case verifies(event):
				verified, h.compared = true, at.Sub(began)
			case started.GetWorkflowType().GetName() == procedure.SetupCluster:
				children = append(children, started.GetWorkflowExecution())
			case event.GetChildWorkflowExecutionCompletedEventAttributes().GetWorkflowType().GetName() == procedure.VerifyMesh:
				h.verification = at.Sub(began) - h.compared
			case event.GetActivityTaskScheduledEventAttributes().GetActivityType().GetName() == "ReadMesh" && h.preflight == 0:
				h.preflight = at.Sub(began)
			case event.GetWorkflowExecutionContinuedAsNewEventAttributes() != nil:
				run = event.GetWorkflowExecutionContinuedAsNewEventAttributes().GetNewExecutionRunId()
			}
		}
	}
	for _, child := range children {
		events, err := b.history(ctx, child.GetWorkflowId(), child.GetRunId())
		if err != nil {
			return h, err
		}
		h.count(events)
		h.children = append(h.children, divide(child.GetWorkflowId(), events))
	}
	return h, nil
}

func (h *histories) count(events []*historypb.HistoryEvent) {
	for _, event := range events {
		switch event.GetEventType() {
		case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED, enumspb.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED,
			enumspb.EVENT_TYPE_TIMER_STARTED, enumspb.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES,
			enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED, enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
			h.actions++
		case enumspb.EVENT_TYPE_ACTIVITY_TASK_STARTED:
			attempt := int(event.GetActivityTaskStartedEventAttributes().GetAttempt())
			h.actions += attempt
			h.retried += attempt - 1
		case enumspb.EVENT_TYPE_WORKFLOW_TASK_FAILED, enumspb.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT:
			h.failedTasks++
		}
	}
}

// divide goes along a child's time and gives every moment to one of those that
// were waited for in it: cert-manager before Vault before Helm before the API
// servers, when activities run side by side, and Temporal and the worker where
// none ran.
func divide(id string, events []*historypb.HistoryEvent) childHistory {
	c := childHistory{id: id, events: len(events), spent: map[waitingFor]time.Duration{}}
	names := map[int64]string{}
	for _, event := range events {
		if a := event.GetActivityTaskScheduledEventAttributes(); a != nil {
			names[event.GetEventId()] = a.GetActivityType().GetName()
		}
	}
	running := map[waitingFor]int{}
	// The start of an activity is recorded with its end, under the time at which
	// it was.
	events = slices.SortedStableFunc(slices.Values(events), func(a, b *historypb.HistoryEvent) int {
		return a.GetEventTime().AsTime().Compare(b.GetEventTime().AsTime())
	})
	began := events[0].GetEventTime().AsTime()
	last := began
	for _, event := range events {
		at := event.GetEventTime().AsTime()
		for _, who := range []waitingFor{certManagers, vaults, charts, apiServers, temporals} {
			if running[who] > 0 || who == temporals {
				c.spent[who] += at.Sub(last)
				break
			}
		}
		last = at
		if a := event.GetActivityTaskStartedEventAttributes(); a != nil {
			running[waitedFor(names[a.GetScheduledEventId()])]++
		}
		if scheduled := endedActivity(event); scheduled != 0 {
			running[waitedFor(names[scheduled])]--
		}
	}
	c.took = last.Sub(began)
	return c
}

// endedActivity is the event that scheduled the activity that ends here.
func endedActivity(event *historypb.HistoryEvent) int64 {
	switch {
	case event.GetActivityTaskCompletedEventAttributes() != nil:
		return event.GetActivityTaskCompletedEventAttributes().GetScheduledEventId()
	case event.GetActivityTaskFailedEventAttributes() != nil:
		return event.GetActivityTaskFailedEventAttributes().GetScheduledEventId()
	case event.GetActivityTaskTimedOutEventAttributes() != nil:
		return event.GetActivityTaskTimedOutEventAttributes().GetScheduledEventId()
	case event.GetActivityTaskCanceledEventAttributes() != nil:
		return event.GetActivityTaskCanceledEventAttributes().GetScheduledEventId()
	}
	return 0
}

// mostEvents and meanly are of the children.
func (h histories) mostEvents() int {
	most := 0
	for _, c := range h.children {
		most = max(most, c.events)
	}
	return most
}

func (h histories) meanly(of func(childHistory) time.Duration) time.Duration {
	if len(h.children) == 0 {
		return 0
	}
	var sum time.Duration
	for _, c := range h.children {
		sum += of(c)
	}
	return sum / time.Duration(len(h.children))
}
