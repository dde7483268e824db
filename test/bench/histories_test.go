package main

import (
	"maps"
	"testing"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestDivide(t *testing.T) {
	began := time.Now()
	var events []*historypb.HistoryEvent
	at := func(second int, event *historypb.HistoryEvent) int64 {
		event.EventId = int64(len(events) + 1)
		event.EventTime = timestamppb.New(began.Add(time.Duration(second) * time.Second))
		events = append(events, event)
		return event.EventId
	}
	scheduled := func(second int, name string) int64 {
		return at(second, &historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED, Attributes: &historypb.HistoryEvent_ActivityTaskScheduledEventAttributes{
			ActivityTaskScheduledEventAttributes: &historypb.ActivityTaskScheduledEventAttributes{ActivityType: &commonpb.ActivityType{Name: name}}}})
	}
	started := func(second int, id int64, attempt int32) {
		at(second, &historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_STARTED, Attributes: &historypb.HistoryEvent_ActivityTaskStartedEventAttributes{
			ActivityTaskStartedEventAttributes: &historypb.ActivityTaskStartedEventAttributes{ScheduledEventId: id, Attempt: attempt}}})
	}
	completed := func(second int, id int64) {
		at(second, &historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_COMPLETED, Attributes: &historypb.HistoryEvent_ActivityTaskCompletedEventAttributes{
			ActivityTaskCompletedEventAttributes: &historypb.ActivityTaskCompletedEventAttributes{ScheduledEventId: id}}})
	}
	at(0, &historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED})
	secret := scheduled(1, "CopyRootSecret")
	access := scheduled(1, "EnableClusterAccess")
	started(2, secret, 1) // 2 s of Temporal
	started(3, access, 3) // 1 s of the API server
	completed(6, secret)  // 3 s of Vault, which both wait for
	completed(7, access)  // 1 s of Vault
	issued := scheduled(8, "ApplyCertificate")
	started(8, issued, 1) // 1 s of Temporal
	completed(18, issued) // 10 s of cert-manager
	at(18, &historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_WORKFLOW_TASK_FAILED})
	at(20, &historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED}) // 2 s of Temporal

	got := divide("c1", events)
	want := map[waitingFor]time.Duration{temporals: 5 * time.Second, apiServers: time.Second, vaults: 4 * time.Second, certManagers: 10 * time.Second}
	maps.DeleteFunc(got.spent, func(_ waitingFor, d time.Duration) bool { return d == 0 })
	if !maps.Equal(got.spent, want) || got.took != 20*time.Second || got.events != len(events) {
		t.Errorf("%+v, want %v", got, want)
	}
	var h histories
	h.count(events)
	// One start of the workflow, five attempts.
	if h.actions != 6 || h.retried != 2 || h.failedTasks != 1 {
		t.Errorf("%d actions, %d retries, %d failed tasks", h.actions, h.retried, h.failedTasks)
	}
}
