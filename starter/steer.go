package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"github.com/relaypki/relaypki/internal/procedure"
)

// order is what one of the steering commands sends.
type order struct {
	mesh, update string
	// verb is the command's name, for what is said of it.
	verb string
	// in is one of procedure's inputs of updates.
	in any
	// ask is put to the person before it is sent; nil if it is not dangerous.
	ask func(execution) danger
}

// steeringCommand is a command that sends an order to the running procedure of
// a mesh. The first argument is the mesh; read makes the order of the others.
func (c *cli) steeringCommand(cmd *cobra.Command, read func(mesh string, rest []string) (order, error)) *cobra.Command {
	var workflow string
	var yes bool
	c.workflowFlag(cmd, &workflow)
	if cmd.Name() == "abort" {
		yesFlag(cmd, &yes)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !meshName.MatchString(args[0]) {
			return badInput(c.again("status"), "%q is not the name of a mesh", args[0])
		}
		o, err := read(args[0], args[1:])
		if err != nil {
			return err
		}
		o.verb = cmd.Name()
		ctx := cmd.Context()
		t, err := c.connect(ctx)
		if err != nil {
			return err
		}
		defer t.Close()
		run, err := c.steered(ctx, t, o.mesh, workflow)
		if err != nil {
			return t.failed(err, "find the procedure")
		}
		if o.ask != nil {
			if err := c.confirm(cmd, yes, o.ask(run)); err != nil {
				return err
			}
		}
		return c.steer(ctx, t, run, o)
	}
	return cmd
}

// workflowFlag says which procedure of a mesh is meant.
func (c *cli) workflowFlag(cmd *cobra.Command, workflow *string) {
	cmd.Flags().StringVar(workflow, "workflow", "", "the procedure's workflow id, where a mesh has several that run")
	_ = cmd.RegisterFlagCompletionFunc("workflow", c.completeWorkflows) // fails only if there is no such flag
}

func (c *cli) retryCommand() *cobra.Command {
	return c.steeringCommand(&cobra.Command{
		Use:   "retry MESH [CLUSTER...]",
		Short: "Try clusters again that are parked",
		Long: `Try clusters again that a running procedure has parked or skipped; without
names, all that are parked. Put right first what they failed of: "relaypki watch"
shows it.`,
		Example: `  # All clusters that are parked:
  relaypki retry demo
  # These two:
  relaypki retry demo cluster2 cluster7`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: c.completeClusters(procedure.Parked, procedure.Skipped),
	}, func(mesh string, clusters []string) (order, error) {
		return order{mesh: mesh, update: procedure.RetryUpdate, in: procedure.RetryInput{Clusters: clusters}}, nil
	})
}

func (c *cli) skipCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "skip MESH CLUSTER... --reason WHY",
		Short: "Leave clusters out and go on with the others",
		Long: `Leave clusters out that a running procedure has parked, or not begun. It goes on
without them and then ends as failed, with them and the reason in its report.
The same procedure, started again later, does them.`,
		Example: `  relaypki skip demo cluster2 --reason "in repair until Monday"`,
		Args:    cobra.MinimumNArgs(2), ValidArgsFunction: c.completeClusters(procedure.Parked, procedure.Pending),
	}
	reasonFlag(cmd, &reason)
	return c.steeringCommand(cmd, func(mesh string, clusters []string) (order, error) {
		return order{mesh: mesh, update: procedure.SkipUpdate, in: procedure.SkipInput{Clusters: clusters, Reason: reason}}, c.needReason(reason)
	})
}

func (c *cli) pauseCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "pause MESH --reason WHY",
		Short: "Begin nothing new until resume",
		Long: `Have a running procedure begin nothing new until "relaypki resume". What is being
worked on is finished.`,
		Example: `  relaypki pause demo --reason "change freeze until 6:00"`,
		Args:    cobra.ExactArgs(1), ValidArgsFunction: c.completeMesh,
	}
	reasonFlag(cmd, &reason)
	return c.steeringCommand(cmd, func(mesh string, _ []string) (order, error) {
		return order{mesh: mesh, update: procedure.PauseUpdate, in: procedure.PauseInput{Reason: reason}}, c.needReason(reason)
	})
}

func (c *cli) resumeCommand() *cobra.Command {
	return c.steeringCommand(&cobra.Command{
		Use:     "resume MESH",
		Short:   "Go on after a pause",
		Long:    `Have a paused procedure go on where it was.`,
		Example: `  relaypki resume demo`,
		Args:    cobra.ExactArgs(1), ValidArgsFunction: c.completeMesh,
	}, func(mesh string, _ []string) (order, error) {
		return order{mesh: mesh, update: procedure.ResumeUpdate, in: procedure.ResumeInput{}}, nil
	})
}

func (c *cli) setParallelismCommand() *cobra.Command {
	return c.steeringCommand(&cobra.Command{
		Use:   "set-parallelism MESH N",
		Short: "Say how many clusters are worked on at once",
		Long: `Say on how many clusters a running procedure works at once from now on. With a
smaller number than are at work, these are finished first.`,
		Example: `  relaypki set-parallelism demo 25`,
		Args:    cobra.ExactArgs(2), ValidArgsFunction: c.completeMesh,
	}, func(mesh string, rest []string) (order, error) {
		n, err := strconv.Atoi(rest[0])
		if err != nil || n < 1 {
			return order{}, badInput(c.again("set-parallelism", mesh, "10"), "%q is not a number of clusters", rest[0])
		}
		return order{mesh: mesh, update: procedure.SetParallelismUpdate, in: procedure.ParallelismInput{Parallelism: n}}, nil
	})
}

func (c *cli) abortCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "abort MESH --reason WHY",
		Short: "End a running procedure; what is done stays",
		Long: `End a running procedure: what is being worked on is cancelled and waited for, the
locks are given back, what is done stays. The procedure ends as failed with the
reason. Started again, it goes on with the rest.`,
		Example: `  relaypki abort demo --reason "wrong Vault"
  # From a script, where nobody can be asked:
  relaypki abort demo --reason "wrong Vault" --yes`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: c.completeMesh,
	}
	reasonFlag(cmd, &reason)
	return c.steeringCommand(cmd, func(mesh string, _ []string) (order, error) {
		return order{
			mesh: mesh, update: procedure.AbortUpdate, in: procedure.AbortInput{Reason: reason},
			ask: func(run execution) danger { return abortOf(mesh, run) },
		}, c.needReason(reason)
	})
}

func abortOf(mesh string, run execution) danger {
	d := danger{
		question:    fmt.Sprintf("Abort %s of mesh %s (workflow %s)?", run.Procedure, mesh, run.WorkflowID),
		consequence: "What is being worked on is cancelled; what is done stays; started again, it goes on with the rest.",
	}
	if run.Procedure == procedure.EmergencyReissue {
		d.consequence += " Until then, agents that are cut off stay cut off, and the mesh's schedules paused."
	}
	return d
}

func reasonFlag(cmd *cobra.Command, reason *string) {
	cmd.Flags().StringVar(reason, "reason", "", "why, for whoever looks at this later")
}

func (c *cli) needReason(reason string) error {
	if strings.TrimSpace(reason) == "" {
		return badInput(c.sameWith("--reason", "WHY"), "it takes a reason, for whoever looks at this later")
	}
	return nil
}

// routine are the procedures that nobody steers: they look, or do in a minute what
// a schedule has them do.
var routine = []string{procedure.VerifyMesh, procedure.DiagnoseMesh, procedure.Inventory, procedure.RefreshCredentials, procedure.MaintainMesh, procedure.ApplySchedules}

// steered is the running procedure of a mesh that a person means: that of the
// given id, or else the only one.
func (c *cli) steered(ctx context.Context, t *server, mesh, workflow string) (execution, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*callTime)
	defer cancel()
	look := c.again("status", mesh)
	if workflow != "" {
		run, err := t.execution(ctx, workflow)
		switch {
		case isNotFound(err):
			return run, badInput(look, "there is no workflow %q in namespace %s", workflow, t.namespace)
		case err != nil:
			return run, err
		case run.Mesh != mesh:
			return run, badInput(look, "workflow %s is of mesh %q, not of %s", workflow, run.Mesh, mesh)
		case run.Ended != nil:
			return run, badInput(look, "workflow %s is not running: it is %s", workflow, run.State)
		}
		return run, nil
	}
	runs, err := t.running(ctx, mesh)
	if err != nil {
		return execution{}, err
	}
	switch len(runs) {
	case 0:
		return execution{}, badInput(look, "no procedure of mesh %s is running", mesh)
	case 1:
		return runs[0], nil
	}
	lines := make([]string, len(runs))
	for i, run := range runs {
		lines[i] = fmt.Sprintf("  %s (%s, for %s)", run.WorkflowID, run.Procedure, elapsed(time.Since(run.Started)))
	}
	return execution{}, badInput(c.sameWith("--workflow", runs[0].WorkflowID), "mesh %s has %d procedures that run; say which:\n%s", mesh, len(runs), strings.Join(lines, "\n"))
}

// running are the procedures of a mesh that run and can be steered, the latest
// first.
func (t *server) running(ctx context.Context, mesh string) ([]execution, error) {
	runs, err := t.procedures(ctx, mesh, "CloseTime IS NULL")
	runs = slices.DeleteFunc(runs, func(e execution) bool {
		return e.child || e.Ended != nil || slices.Contains(routine, e.Procedure) || strings.HasPrefix(e.WorkflowID, "plan-")
	})
	return runs, err
}

// steer sends the order and prints where the procedure stands then.
func (c *cli) steer(ctx context.Context, t *server, run execution, o order) error {
	standing, err := c.send(ctx, t, run, o)
	var refused *temporal.ApplicationError
	switch {
	case ctx.Err() != nil && err != nil:
		return &exitError{code: exitInterrupted, next: c.again("watch", run.WorkflowID),
			err: fmt.Errorf("no longer waiting for the answer of workflow %s; it may still take the %s", run.WorkflowID, o.verb)}
	case isNotFound(err): // it ended between our look and the update
		return badInput(c.again("status", o.mesh), "workflow %s is no longer running", run.WorkflowID)
	case errors.As(err, &refused) && refused.Type() == endedFirst:
		c.say("Workflow %s took the %s and ended before it could answer.\nNext: %s", run.WorkflowID, o.verb, c.again("watch", run.WorkflowID))
		if c.json() {
			return c.printJSON(ending{WorkflowID: run.WorkflowID, RunID: run.RunID, Procedure: run.Procedure, Status: "ended"})
		}
		return nil
	case errors.As(err, &refused) && strings.HasPrefix(refused.Message(), "unknown update"):
		return badInput(c.again("watch", run.WorkflowID), "%s (workflow %s) takes no %s", run.Procedure, run.WorkflowID, o.verb)
	case errors.As(err, &refused):
		return badInput(c.again("watch", run.WorkflowID), "workflow %s refuses the %s: %s", run.WorkflowID, o.verb, tidy(refused.Message()))
	case err != nil:
		return t.failed(err, o.verb+" "+run.WorkflowID)
	}
	if c.json() {
		return c.printJSON(struct {
			WorkflowID string `json:"workflowId"`
			procedure.Standing
		}{run.WorkflowID, standing})
	}
	c.printStanding(c.out, run.WorkflowID, standing)
	return nil
}

// endedFirst is the type of Temporal's failure of an update whose workflow
// ended, by itself, in the same breath.
const endedFirst = "AcceptedUpdateCompletedWorkflow"

// noticeAfter is how long an answer may take before we say what is waited for.
const noticeAfter = 2 * time.Second

// send waits for the procedure's answer, through a worker or a Temporal that is
// away. Every try has the same update id, so that it is taken once.
func (c *cli) send(ctx context.Context, t *server, run execution, o order) (procedure.Standing, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		standing procedure.Standing
		err      error
	}
	answered := make(chan answer, 1)
	go func() {
		id := "relaypki-" + rand.Text()
		for {
			var a answer
			handle, err := t.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
				UpdateID: id, WorkflowID: run.WorkflowID, FirstExecutionRunID: run.first,
				UpdateName: o.update, Args: []any{o.in}, WaitForStage: client.WorkflowUpdateStageCompleted,
			})
			if err == nil {
				err = handle.Get(ctx, &a.standing)
			}
			var late *client.WorkflowUpdateServiceTimeoutOrCanceledError
			if err == nil || ctx.Err() != nil || !transient(err) && !errors.As(err, &late) {
				a.err = err
				answered <- a
				return
			}
			select {
			case <-ctx.Done():
				answered <- answer{err: ctx.Err()}
				return
			case <-time.After(lookEvery):
			}
		}
	}()
	f := c.follower(t, run.WorkflowID)
	f.taskQueue = run.taskQueue
	tick := time.NewTicker(noticeAfter)
	defer tick.Stop()
	said := ""
	for {
		select {
		case a := <-answered:
			return a.standing, a.err
		case <-tick.C:
			if why := f.excuse(ctx, nil); why != said && ctx.Err() == nil {
				paperOn(c.err).print(c.err, 0, span{"relaypki: " + tidy(why) + "; Ctrl-C stops the waiting", plain})
				said = why
			}
			if time.Since(f.lastAnswer) > patience {
				return procedure.Standing{}, t.unreachable(c.sameWith(), fmt.Errorf("no answer for %s; whether the %s was taken is not known, and to send it again does no harm", patience, o.verb))
			}
		}
	}
}

// counted are the states in the order in which their counts are said.
var counted = []procedure.State{procedure.Done, procedure.Created, procedure.Changed, procedure.UpToDate, procedure.Running,
	procedure.Pending, procedure.Parked, procedure.Skipped, procedure.Failed}

func (c *cli) printStanding(w io.Writer, workflow string, s procedure.Standing) {
	p := c.paper()
	where := []string{s.Phase}
	if s.Aborting {
		where = append(where, "aborting")
	}
	if s.Parallelism > 0 {
		where = append(where, fmt.Sprintf("%d clusters at once", s.Parallelism))
	}
	p.print(w, 0, span{fmt.Sprintf("%s %s", s.Procedure, s.Mesh), bold}, span{": " + strings.Join(where, ", "), plain})
	var counts []string
	for _, state := range counted {
		if n := s.Count[state]; n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", n, state))
		}
	}
	if len(counts) > 0 {
		p.print(w, 2, span{"clusters: " + strings.Join(counts, ", "), plain})
	}
	if s.Note != "" {
		p.print(w, 2, span{tidy(s.Note), plain})
	}
	if s.Paused != "" {
		p.print(w, 2, span{"paused: " + tidy(s.Paused), yellow})
	}
	p.parked(w, 2, s.Parked)
	next := []string{c.again("watch", workflow)}
	if !s.Aborting {
		next = append(c.remedies(s.Procedure, s.Mesh, s.Paused, s.Parked), next...)
	}
	c.say("Next: %s", strings.Join(next, nextLine))
}

// nextLine begins a further command after "Next: ".
const nextLine = "\n      "

// remedies are the commands that have a procedure go on which waits for a
// person; see procedure.Remedies.
func (c *cli) remedies(name, mesh, paused string, parked []procedure.ClusterProgress) []string {
	var commands []string
	for _, args := range procedure.Remedies(name, mesh, paused, parked) {
		commands = append(commands, c.again(args...))
	}
	return commands
}

// parkedOf are the clusters of a procedure that wait for a person.
func parkedOf(p procedure.Progress) []procedure.ClusterProgress {
	var parked []procedure.ClusterProgress
	for _, cluster := range p.Clusters {
		if cluster.State == procedure.Parked {
			parked = append(parked, cluster)
		}
	}
	return parked
}

// parked says what each parked cluster failed of.
func (p paper) parked(w io.Writer, indent int, clusters []procedure.ClusterProgress) {
	for _, cluster := range clusters {
		p.print(w, indent, span{tidy(cluster.Cluster), bold}, span{" " + string(cluster.State) + ": ", yellow}, span{tidy(cluster.Detail), plain})
	}
}

// execution describes one run by its workflow id.
func (t *server) execution(ctx context.Context, id string) (execution, error) {
	d, err := t.DescribeWorkflowExecution(ctx, id, "")
	if err != nil {
		return execution{}, err
	}
	runs := []execution{executionOf(d.GetWorkflowExecutionInfo())}
	t.attribute(ctx, runs)
	return runs[0], nil
}

// meshOfInput is the mesh in the input that a run was given.
func (t *server) meshOfInput(ctx context.Context, e execution) string {
	input, err := t.input(ctx, e.WorkflowID, e.RunID)
	var in struct{ Mesh string }
	if err != nil || json.Unmarshal(input, &in) != nil || !meshName.MatchString(in.Mesh) {
		return ""
	}
	return in.Mesh
}
