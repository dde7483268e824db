package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"

	"github.com/relaypki/relaypki/internal/secret"
)

// heartbeatEvery is how often a running activity says that its worker lives.
const heartbeatEvery = time.Second

// heartbeats keeps every activity's heartbeat going while it runs, so that a
// killed worker is noticed within the heartbeat timeout and not only when the
// activity's own time is over. What an activity itself has said last, for
// people to read, is said again.
type heartbeats struct {
	interceptor.WorkerInterceptorBase
	every time.Duration
}

func (h *heartbeats) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	return &heartbeatsInbound{ActivityInboundInterceptorBase: interceptor.ActivityInboundInterceptorBase{Next: next}, every: h.every}
}

type heartbeatsInbound struct {
	interceptor.ActivityInboundInterceptorBase
	every time.Duration
	pulse *pulse
}

func (i *heartbeatsInbound) Init(outbound interceptor.ActivityOutboundInterceptor) error {
	i.pulse = &pulse{ActivityOutboundInterceptorBase: interceptor.ActivityOutboundInterceptorBase{Next: outbound}}
	return i.Next.Init(i.pulse)
}

func (i *heartbeatsInbound) ExecuteActivity(ctx context.Context, in *interceptor.ExecuteActivityInput) (any, error) {
	if activity.GetInfo(ctx).HeartbeatTimeout == 0 {
		return i.Next.ExecuteActivity(ctx, in)
	}
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { i.pulse.keep(ctx, i.every, ended) })
	defer wg.Wait()
	defer close(ended)
	return i.Next.ExecuteActivity(ctx, in)
}

// pulse records heartbeats and remembers the last details.
type pulse struct {
	interceptor.ActivityOutboundInterceptorBase
	mu      sync.Mutex
	details []any
}

// RecordHeartbeat gives the SDK a context that is never canceled: it keeps that of
// one heartbeat for those that it holds back, and with a canceled one it would send
// none any more.
func (p *pulse) RecordHeartbeat(ctx context.Context, details ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.details = withoutSecrets(details)
	p.Next.RecordHeartbeat(context.WithoutCancel(ctx), p.details...)
}

// withoutSecrets goes over the texts among the details: what is waited for, in
// the words of whoever is waited for.
func withoutSecrets(details []any) []any {
	clean := make([]any, len(details))
	for i, detail := range details {
		switch d := detail.(type) {
		case string:
			clean[i] = secret.Withhold(d)
		case []string:
			texts := make([]string, len(d))
			for j := range d {
				texts[j] = secret.Withhold(d[j])
			}
			clean[i] = texts
		default:
			clean[i] = d
		}
	}
	return clean
}

// keep goes on after a cancellation: the workflow waits for what was canceled
// to end, and takes silence for a dead worker. After the deadline nobody does.
func (p *pulse) keep(ctx context.Context, every time.Duration, ended <-chan struct{}) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return
			}
			p.mu.Lock()
			p.Next.RecordHeartbeat(context.WithoutCancel(ctx), p.details...)
			p.mu.Unlock()
		}
	}
}
