package workflows

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"
)

// Every activity heartbeats (the worker does it for all of them), so a killed
// worker is noticed within this time and its activity starts again elsewhere.
const heartbeatTimeout = 8 * time.Second

// retrying tries again soon, since a second run of any activity is cheap, and
// not too often, since a Vault or API server that is down should come up in peace.
var retrying = &temporal.RetryPolicy{
	InitialInterval:    time.Second,
	BackoffCoefficient: 2,
	MaximumInterval:    15 * time.Second,
}

// Time budgets. What is counted is time (ScheduleToClose), not attempts: an
// operator knows how long an outage may last, not how many tries fit into it.
var (
	// looking is for what only reads, before anything has changed: an operator
	// waits for the answer, and a server that is down should be said to be down.
	looking = budget(20*time.Second, 40*time.Second)
	// verifying is for looks that go through many Pods and servers, some of them
	// hanging: that is when the findings matter most.
	verifying = budget(3*time.Minute, 5*time.Minute)
	// acting is for a few calls to Vault or an API server, through a restart of
	// either. An attempt outlasts Vault's own limit for a request (90 s,
	// default_max_request_duration), so no attempt meets an earlier one's write.
	acting = budget(2*time.Minute, 10*time.Minute)
	// waiting is for what takes others time: charts, Deployments, certificates,
	// load balancers. One attempt may use it all.
	waiting = budget(15*time.Minute, 20*time.Minute)
	// parked is for what a person has to do first.
	parked = budget(30*24*time.Hour, 30*24*time.Hour)
	// locking fails at once when somebody else is at work; it only rides out an
	// API server's restart.
	locking = budget(20*time.Second, 2*time.Minute)
)

// planning is how long a plan goes on asking one thing: a person waits for it.
const planning = time.Minute

// budget allows an activity so much time for one attempt, and for all of them.
func budget(attempt, total time.Duration) workflow.ActivityOptions {
	return workflow.ActivityOptions{
		StartToCloseTimeout:    attempt,
		ScheduleToCloseTimeout: total,
		HeartbeatTimeout:       heartbeatTimeout,
		RetryPolicy:            retrying,
	}
}

// clustersAtOnce bounds how many clusters are looked at together, which is to be
// over in seconds also where they are far away. What is worked on together, the
// rollout says.
const clustersAtOnce = 25

// on returns the options with the task queue of the worker that reaches the
// cluster; empty for the queue of this workflow.
func on(queue string, o workflow.ActivityOptions) workflow.ActivityOptions {
	o.TaskQueue = queue
	return o
}
