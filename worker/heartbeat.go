package main

import (
	"context"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"
)

// heartbeatEvery is how often a running activity says that its worker lives.
const heartbeatEvery = 2 * time.Second

// heartbeats keeps every activity's heartbeat going while it runs, so that a
// killed worker is noticed within the heartbeat timeout and not only when the
// activity's own time is over. What an activity itself has said last, to
// resume from, is said again.
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

func (p *pulse) RecordHeartbeat(ctx context.Context, details ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.details = details
	p.Next.RecordHeartbeat(ctx, details...)
}

func (p *pulse) keep(ctx context.Context, every time.Duration, ended <-chan struct{}) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
			p.mu.Lock()
			p.Next.RecordHeartbeat(ctx, p.details...)
			p.mu.Unlock()
		}
	}
}
