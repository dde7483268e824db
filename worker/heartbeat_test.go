package main

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/internal/secret/secrettest"
)

// listener hears every heartbeat before the SDK holds some of them back.
type listener struct {
	interceptor.WorkerInterceptorBase
	heard chan string
}

func (l *listener) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	return &listenerInbound{interceptor.ActivityInboundInterceptorBase{Next: next}, l.heard}
}

type listenerInbound struct {
	interceptor.ActivityInboundInterceptorBase
	heard chan string
}

func (i *listenerInbound) Init(outbound interceptor.ActivityOutboundInterceptor) error {
	return i.Next.Init(&listenerOutbound{interceptor.ActivityOutboundInterceptorBase{Next: outbound}, i.heard})
}

type listenerOutbound struct {
	interceptor.ActivityOutboundInterceptorBase
	heard chan string
}

func (o *listenerOutbound) RecordHeartbeat(ctx context.Context, details ...any) {
	select {
	case o.heard <- fmt.Sprint(details...):
	case <-ctx.Done():
	}
}

// An activity that says something once and then works in silence is heard all
// the while, with what it has said last.
func TestHeartbeatsGoOn(t *testing.T) {
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestWorkflowEnvironment() // unlike the one for activities, it sets a heartbeat timeout
	env.SetTestTimeout(30 * time.Second)
	heard := make(chan string, 1000)
	env.SetWorkerOptions(worker.Options{Interceptors: []interceptor.WorkerInterceptor{&listener{heard: heard}, &heartbeats{every: 5 * time.Millisecond}}})
	var first []string
	work := func(ctx context.Context) error {
		activity.RecordHeartbeat(ctx, "half done")
		for len(first) < 3 {
			select {
			case said := <-heard:
				if said != "" || len(first) > 0 { // before the first word there is none to repeat
					first = append(first, said)
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	env.RegisterActivityWithOptions(work, activity.RegisterOptions{Name: "Work"})
	env.ExecuteWorkflow(func(ctx workflow.Context) error {
		return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
			StartToCloseTimeout: 20 * time.Second, HeartbeatTimeout: 20 * time.Second,
		}), "Work").Get(ctx, nil)
	})
	if err := env.GetWorkflowError(); err != nil {
		t.Error(err)
	}
	if want := []string{"half done", "half done", "half done"}; !reflect.DeepEqual(first, want) {
		t.Errorf("heard %q first, want %q", first, want)
	}
}

// kept is an SDK that keeps a heartbeat's context for later ones.
type kept struct {
	interceptor.ActivityOutboundInterceptorBase
	ctx context.Context
}

func (k *kept) RecordHeartbeat(ctx context.Context, _ ...any) { k.ctx = ctx }

// What is held back can be sent also once the activity is canceled.
func TestHeartbeatsAreNotCanceled(t *testing.T) {
	sdk := &kept{}
	p := &pulse{ActivityOutboundInterceptorBase: interceptor.ActivityOutboundInterceptorBase{Next: sdk}}
	ctx, cancel := context.WithCancel(t.Context())
	p.RecordHeartbeat(ctx, "at work")
	cancel()
	if sdk.ctx == nil || sdk.ctx.Err() != nil {
		t.Error("the SDK cannot send what it has held back")
	}
}

// A canceled activity that is still at work is heard until it ends, without the
// secrets of whoever it quotes.
func TestHeartbeatsGoOnAfterCancellation(t *testing.T) {
	heard := make(chan string)
	p := &pulse{ActivityOutboundInterceptorBase: interceptor.ActivityOutboundInterceptorBase{Next: &listenerOutbound{heard: heard}}}
	p.details = withoutSecrets([]any{"Pod says " + secrettest.VaultToken, []string{secrettest.JWT}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ended, gone := make(chan struct{}), make(chan struct{})
	go func() { defer close(gone); p.keep(ctx, time.Millisecond, ended) }()
	for range 2 {
		if got, want := <-heard, "Pod says (withheld)[(withheld)]"; got != want {
			t.Errorf("heard %q, want %q", got, want)
		}
	}
	close(ended)
	for {
		select {
		case <-heard: // one that was on its way
			continue
		case <-gone:
		}
		return
	}
}
