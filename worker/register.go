package main

import (
	"context"
	"time"

	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/helm"
	"github.com/relaypki/relaypki/activities/notify"
	"github.com/relaypki/relaypki/activities/relay"
	"github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/site"
	"github.com/relaypki/relaypki/workflows"
)

const (
	// concurrentActivities bounds what one worker does at once. Most activities
	// wait for an API server, but each chart that Helm renders takes tens of
	// megabytes, and a worker should fit in a Pod of 1 GiB.
	concurrentActivities = 40
	// concurrentWorkflowTasks is plenty for tasks of milliseconds.
	concurrentWorkflowTasks = 20
	// heartbeatThrottle bounds how old the details are that people read, and
	// how late an activity hears that it is cancelled. The SDK's own
	// 0.8 of the heartbeat timeout is too long for both.
	heartbeatThrottle = 2 * time.Second
	// deadlockTime is how long a workflow task may go without yielding. The
	// SDK's second is shorter than a stall on two busy cores.
	deadlockTime = 5 * time.Second
	// drainTime is what running activities get after SIGTERM; a Kubernetes Pod
	// is killed after 30 s by default.
	drainTime = 20 * time.Second
)

func (s settings) workerOptions(fatal chan<- error) worker.Options {
	options := worker.Options{
		MaxConcurrentActivityExecutionSize:      concurrentActivities,
		MaxConcurrentLocalActivityExecutionSize: concurrentActivities,
		MaxConcurrentWorkflowTaskExecutionSize:  concurrentWorkflowTasks,
		MaxHeartbeatThrottleInterval:            heartbeatThrottle,
		DefaultHeartbeatThrottleInterval:        heartbeatThrottle,
		DeadlockDetectionTimeout:                deadlockTime,
		WorkerStopTimeout:                       drainTime,
		DisableRegistrationAliasing:             true,
		Interceptors:                            []interceptor.WorkerInterceptor{&topErrors{}, &heartbeats{every: heartbeatEvery}},
		OnFatalError:                            func(err error) { fatal <- err },
	}
	if s.deployment != "" {
		options.DeploymentOptions = worker.DeploymentOptions{
			UseVersioning: true,
			Version:       worker.WorkerDeploymentVersion{DeploymentName: s.deployment, BuildID: s.buildID},
			// Procedures can last for weeks: they move on to the new build,
			// and changes of running code go through GetVersion.
			DefaultVersioningBehavior: workflow.VersioningBehaviorAutoUpgrade,
		}
	}
	return options
}

// register names everything that this worker runs.
func register(w worker.Registry, clients *site.Clients) {
	workflows.Register(w)
	w.RegisterActivity(&vault.Activities{Clients: clients})
	w.RegisterActivity(&cluster.Activities{Clients: clients})
	w.RegisterActivity(&certmanager.Activities{Clients: clients})
	w.RegisterActivity(&helm.Activities{Clients: clients})
	w.RegisterActivity(&relay.Activities{Clients: clients})
	w.RegisterActivity(&notify.Activities{Webhooks: clients.Config.Notify})
	w.RegisterActivity(&temporal.Activities{TaskQueues: clients.Config.TaskQueues()})
}

// topErrors makes every activity's error an ApplicationError at top level,
// where the SDK looks for whether to retry.
type topErrors struct {
	interceptor.WorkerInterceptorBase
}

func (*topErrors) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	return &topErrorsInbound{interceptor.ActivityInboundInterceptorBase{Next: next}}
}

type topErrorsInbound struct {
	interceptor.ActivityInboundInterceptorBase
}

func (i *topErrorsInbound) ExecuteActivity(ctx context.Context, in *interceptor.ExecuteActivityInput) (any, error) {
	result, err := i.Next.ExecuteActivity(ctx, in)
	return result, failure.Top(err)
}
