package main

import (
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestRotationTable(t *testing.T) {
	var b strings.Builder
	tables{rotated: []rotated{
		{
			place:    &place{},
			clusters: 10,
			took:     map[string]time.Duration{byRenewals: 12 * time.Second, byLeafRotation: 5 * time.Second, byMoves: 15 * time.Second, byIntermediate: 10 * time.Second},
			work:     map[string]time.Duration{byRenewals: 21 * time.Second, byLeafRotation: 22 * time.Second, byMoves: 23 * time.Second, byIntermediate: 24 * time.Second},
		},
		{place: &place{latency: time.Second}, clusters: 50, took: map[string]time.Duration{byRenewals: 60500 * time.Millisecond, byLeafRotation: 121 * time.Second}},
	}}.rotation(&b)
	_, table, _ := strings.Cut(b.String(), "\n| ")
	lines := strings.Split(table, "\n")
	if len(lines) != 5 || lines[4] != "" {
		t.Fatalf("%d lines:\n%s", len(lines), table)
	}
	for i, want := range []string{
		"| 10 | next door | 12.0 s | 5.0 s | 2.4 | 15.0 s | 10.0 s | 1.5 | 21 s, 22 s, 23 s, 24 s |",
		"| 50 | far away | 60.5 s | 121.0 s | 0.5 | 0.0 s | 0.0 s | 0.0 | 0 s, 0 s, 0 s, 0 s |",
	} {
		if got := lines[i+2]; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if head, rule := strings.Count(lines[0], "|"), strings.Count(lines[1], "|"); head+1 != rule || rule != strings.Count(lines[2], "|") {
		t.Errorf("%d columns in the head and %d under it:\n%s", head, rule, table)
	}
}

func TestIssuedAnew(t *testing.T) {
	certificate := func(revision int, ready, issuing cmmeta.ConditionStatus) *cmapi.Certificate {
		c := &cmapi.Certificate{}
		if revision > 0 {
			c.Status.Revision = &revision
		}
		for kind, status := range map[cmapi.CertificateConditionType]cmmeta.ConditionStatus{cmapi.CertificateConditionReady: ready, cmapi.CertificateConditionIssuing: issuing} {
			if status != "" {
				c.Status.Conditions = append(c.Status.Conditions, cmapi.CertificateCondition{Type: kind, Status: status})
			}
		}
		return c
	}
	const yes, no = cmmeta.ConditionTrue, cmmeta.ConditionFalse
	for name, c := range map[string]struct {
		before, now *cmapi.Certificate
		want        bool
	}{
		"triggered": {certificate(3, yes, ""), certificate(3, yes, yes), false},
		"failed, and Ready of the certificate before": {certificate(3, yes, ""), certificate(3, yes, no), false},
		"stored, and not done":                        {certificate(3, yes, ""), certificate(4, yes, yes), false},
		"not Ready":                                   {certificate(3, yes, ""), certificate(4, no, ""), false},
		"not said to be Ready":                        {certificate(3, yes, ""), certificate(4, "", ""), false},
		"done":                                        {certificate(3, yes, ""), certificate(4, yes, ""), true},
		"the first":                                   {certificate(0, no, ""), certificate(1, yes, no), true},
	} {
		if got := issuedAnew(c.before, c.now); got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}

func TestWaitsOut(t *testing.T) {
	timer := func(d time.Duration) *historypb.HistoryEvent {
		return &historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_TIMER_STARTED, Attributes: &historypb.HistoryEvent_TimerStartedEventAttributes{
			TimerStartedEventAttributes: &historypb.TimerStartedEventAttributes{StartToFireTimeout: durationpb.New(d)}}}
	}
	for _, c := range []struct {
		event *historypb.HistoryEvent
		want  bool
	}{
		{timer(24 * time.Hour), true},
		{timer(15 * time.Minute), false}, // a retry's
		{&historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED}, false},
	} {
		if got := waitsOut(c.event); got != c.want {
			t.Errorf("%v: %t", c.event, got)
		}
	}
}
