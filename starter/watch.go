package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"golang.org/x/sync/errgroup"

	"github.com/relaypki/relaypki/internal/procedure"
)

const (
	// lookEvery is the time between two looks at a procedure.
	lookEvery = 500 * time.Millisecond
	// looksAtOnce bounds the queries that are under way for the clusters of a
	// procedure: each is work for the worker.
	looksAtOnce = 4
	// patience is how long Temporal may be away before the watch gives up: longer
	// than a restart or a failover of it takes, which loses nothing.
	patience = 5 * time.Minute
)

func (c *cli) watchCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "watch [WORKFLOW | MESH]",
		Short: "Follow a procedure to its end",
		Long: `Follow a procedure, by default the latest, and show its result. Ctrl-C stops the
watching alone: the procedure goes on. A procedure that waits for a person is
followed on.`,
		Example: `  relaypki watch
  relaypki watch demo
  relaypki watch setup-demo`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeMeshOrWorkflow,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			t, err := c.connect(ctx)
			if err != nil {
				return err
			}
			defer t.Close()
			what := ""
			if len(args) == 1 {
				what = args[0]
			}
			id, err := c.find(ctx, t, what)
			if err != nil {
				return t.failed(err, "find the procedure")
			}
			f := c.follower(t, id)
			f.stays = true
			return f.follow(ctx)
		},
	}
}

// find is the workflow that a person means: its id, or the latest procedure of
// a mesh, or the latest of all (see likeliest).
func (c *cli) find(ctx context.Context, t *server, what string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*callTime)
	defer cancel()
	if what != "" {
		_, err := t.DescribeWorkflowExecution(ctx, what, "")
		if err == nil {
			return what, nil
		}
		if !isNotFound(err) {
			return "", err
		}
	}
	var procedures []execution
	if what == "" || meshName.MatchString(what) {
		var err error
		if procedures, err = t.procedures(ctx, what, ""); err != nil {
			return "", err
		}
	}
	if p, ok := likeliest(procedures); ok {
		return p.WorkflowID, nil
	}
	if what == "" {
		return "", badInput(c.again("setup -f mesh.yaml"), "there is no procedure in namespace %s", t.namespace)
	}
	return "", badInput(c.again("status"), "there is no workflow %q, nor a procedure of a mesh of that name, in namespace %s", what, t.namespace)
}

// likeliest is the run that somebody wants to watch: the latest, but one that
// runs before one that has ended, and one that a person started before the
// routine, which a schedule may have started this minute.
func likeliest(runs []execution) (execution, bool) {
	best, found := execution{}, false
	rank := func(e execution) int {
		r := 0
		if e.Ended != nil {
			r += 2
		}
		if slices.Contains(routine, e.Procedure) {
			r++
		}
		return r
	}
	for _, e := range runs {
		if !e.child && (!found || rank(e) < rank(best)) {
			best, found = e, true
		}
	}
	return best, found
}

// follower shows one procedure until it ends.
type follower struct {
	cli       *cli
	server    *server
	id, runID string
	again     string
	// stays: it goes on while the procedure waits for a person.
	stays bool
	// conclude prints how it ended; its error carries the exit code.
	conclude  func(ending, *follower) error
	display   display
	taskQueue string
	view      view
	// lastAnswer is when Temporal last answered anything.
	lastAnswer time.Time
}

func (c *cli) follower(t *server, id string) *follower {
	f := &follower{cli: c, server: t, id: id, conclude: c.conclude, lastAnswer: time.Now()}
	f.view.Workflow = id
	f.display = newDisplay(c)
	return f
}

// follow returns nil when the procedure has ended well.
func (f *follower) follow(ctx context.Context) error {
	if err := f.describe(ctx); err != nil {
		if ctx.Err() != nil {
			return f.interrupted()
		}
		return f.server.failed(err, "describe "+f.id)
	}
	type closed struct {
		ending ending
		err    error
	}
	done := make(chan closed, 1)
	go func() {
		e, err := f.server.await(ctx, f.id, f.runID)
		done <- closed{e, err}
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		f.look(ctx)
		f.display.show(f.view)
		if f.view.Progress.Person && !f.view.Progress.Ended && !f.stays {
			f.display.end()
			return f.cli.waiting(f)
		}
		if time.Since(f.lastAnswer) > patience {
			f.display.end()
			return f.server.unreachable(f.cli.again("watch", f.id), fmt.Errorf("no answer for %s; the procedure is not affected", patience))
		}
		select {
		case c := <-done:
			if ctx.Err() != nil {
				return f.interrupted()
			}
			if c.err != nil {
				return f.server.failed(c.err, "follow "+f.id)
			}
			f.look(ctx)
			f.view.Notice = ""
			f.display.show(f.view)
			f.display.end()
			return f.conclude(c.ending.of(f.view.Type), f)
		case <-ctx.Done():
			return f.interrupted()
		case <-tick.C:
		}
	}
}

func (f *follower) interrupted() error {
	f.display.end()
	return &exitError{code: exitInterrupted, err: fmt.Errorf("no longer watching; workflow %s goes on", f.id), next: f.cli.again("watch", f.id)}
}

// describe learns what does not change: type, start, task queue.
func (f *follower) describe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	d, err := f.server.DescribeWorkflowExecution(ctx, f.id, f.runID)
	if err != nil {
		return err
	}
	info := d.GetWorkflowExecutionInfo()
	f.runID = info.GetExecution().GetRunId()
	f.view.Type = info.GetType().GetName()
	f.view.Started = info.GetStartTime().AsTime()
	f.taskQueue = info.GetTaskQueue()
	if end := info.GetCloseTime(); end != nil {
		f.view.Ended = end.AsTime()
	}
	if f.view.Type == procedure.EmergencyReissue && f.view.Asked == nil {
		f.view.Asked = f.server.emergencyAsked(ctx, f.id, f.runID)
	}
	return nil
}

// look asks the procedure, and its clusters that are at work, how far they are.
func (f *follower) look(ctx context.Context) {
	f.view.Now = time.Now()
	p, err := f.server.progress(ctx, f.id)
	if err != nil {
		if ctx.Err() == nil {
			f.view.Notice = f.excuse(ctx, err)
		}
		return
	}
	f.lastAnswer, f.view.Notice, f.view.Progress = time.Now(), "", p
	children := make([]*procedure.Progress, len(p.Clusters))
	var group errgroup.Group
	group.SetLimit(looksAtOnce)
	for i, cluster := range p.Clusters {
		if cluster.Workflow == "" || cluster.State == procedure.Pending {
			continue
		}
		if known := f.view.Children[cluster.Workflow]; known.Ended {
			continue
		}
		group.Go(func() error {
			// One that cannot be asked is shown with what its parent knows.
			if child, err := f.server.progress(ctx, cluster.Workflow); err == nil {
				children[i] = &child
			}
			return nil
		})
	}
	_ = group.Wait() // nothing in it returns an error
	next := map[string]procedure.Progress{}
	for i, cluster := range p.Clusters {
		if children[i] != nil {
			next[cluster.Workflow] = *children[i]
		} else if known, ok := f.view.Children[cluster.Workflow]; ok && cluster.State != procedure.Pending {
			next[cluster.Workflow] = known
		}
	}
	f.view.Children = next
}

// excuse says in words why a procedure does not tell its progress.
func (f *follower) excuse(ctx context.Context, err error) string {
	var failed *serviceerror.QueryFailed
	if errors.As(err, &failed) {
		f.lastAnswer = time.Now()
		return "it does not tell its progress: " + failed.Error()
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	queue, err := f.server.DescribeTaskQueue(ctx, f.taskQueue, enumspb.TASK_QUEUE_TYPE_WORKFLOW)
	if err != nil {
		return "Temporal does not answer; trying again"
	}
	f.lastAnswer = time.Now()
	for _, poller := range queue.GetPollers() {
		// A poll lasts a minute at most.
		if time.Since(poller.GetLastAccessTime().AsTime()) < 70*time.Second {
			return "waiting for the worker on task queue " + f.taskQueue
		}
	}
	return "waiting for a worker on task queue " + f.taskQueue + " (none is there; start relaypki-worker)"
}

func (t *server) progress(ctx context.Context, id string) (procedure.Progress, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var p procedure.Progress
	answer, err := t.QueryWorkflowWithOptions(ctx, &client.QueryWorkflowWithOptionsRequest{WorkflowID: id, QueryType: procedure.ProgressQuery})
	if err != nil {
		return p, err
	}
	return p, answer.QueryResult.Get(&p)
}

// await returns when the procedure has ended, however it did. Its error is one
// of Temporal, not of the procedure.
func (t *server) await(ctx context.Context, id, runID string) (ending, error) {
	for {
		var result json.RawMessage
		err := t.GetWorkflow(ctx, id, runID).Get(ctx, &result)
		if end, ok := endingOf(err); ok {
			end.WorkflowID, end.RunID, end.Result = id, runID, result
			return end, nil
		}
		if ctx.Err() != nil || !transient(err) {
			return ending{}, err
		}
		select {
		case <-ctx.Done():
			return ending{}, ctx.Err()
		case <-time.After(lookEvery):
		}
	}
}
