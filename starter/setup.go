package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/cobra"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"

	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/shell"
)

// launch says what to start and how to go on from it.
type launch struct {
	procedure, id, taskQueue, summary, details string
	input                                      json.RawMessage
	detach                                     bool
	// again is the command that starts the same thing once more.
	again string
	// conclude prints how it ended, if that is not done as for every procedure.
	conclude func(ending, *follower) error
}

func (c *cli) setupCommand() *cobra.Command {
	var file, taskQueue string
	var detach, plan bool
	cmd := &cobra.Command{
		Use:   "setup -f mesh.yaml",
		Short: "Set up a mesh, or bring it to what the file says",
		Long: `Set up the relay certificates of a mesh, from nothing to a proof that every
agent can connect. What is there already is compared and left alone, so the
same command again is safe at any time: it is also how to go on after a failure.

The file is checked here first, all of it; then workflow setup-<mesh> is started
with its content as you wrote it. If that runs already, it is shown instead.

A cluster that fails is parked and the others go on. When only parked clusters
are left the command ends with exit code 5 and says what to type; the procedure
goes on waiting.

With --plan nothing is changed: workflow plan-setup-<mesh> looks at Vault and
every cluster and says what a setup would create, change and leave alone.`,
		Example: `  relaypki setup -f mesh.yaml
  # What would it change? And the same as commands, to read or to run by hand:
  relaypki setup -f mesh.yaml --plan
  relaypki setup -f mesh.yaml --plan -o commands > plan.sh
  # Start it and come back later:
  relaypki setup -f mesh.yaml --detach
  # From a script:
  relaypki setup -f mesh.yaml -o json --timeout 1h | jq .status`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, problems, err := readInput(file, cmd.InOrStdin())
			if err != nil {
				return badInput(c.again("setup -f mesh.yaml"), "%w", err)
			}
			if len(problems) > 0 {
				return c.reject(file, problems)
			}
			names := make([]string, len(in.spec.Workloads))
			for i, w := range in.spec.Workloads {
				names[i] = w.Name
			}
			if plan || in.plan {
				if in.json, err = asPlan(in.json); err != nil {
					return badInput(c.sameWith(), "%w", err)
				}
				return c.launch(cmd.Context(), launch{
					procedure: procedure.SetupMesh, id: "plan-setup-" + in.spec.Mesh, taskQueue: taskQueue, input: in.json, detach: detach,
					summary: fmt.Sprintf("Plan: what a setup of mesh %s would change; changes nothing", in.spec.Mesh),
					again:   c.again("setup", shell.Join("-f", file), "--plan"),
				})
			}
			return c.launch(cmd.Context(), launch{
				procedure: procedure.SetupMesh, id: "setup-" + in.spec.Mesh, taskQueue: taskQueue, input: in.json, detach: detach,
				summary: fmt.Sprintf("Set up mesh %s: management %s, %d workload clusters", in.spec.Mesh, in.spec.Management.Context, len(names)),
				details: fmt.Sprintf("Mesh `%s`, management cluster `%s`, workload clusters: %s", in.spec.Mesh, in.spec.Management.Context, strings.Join(names, ", ")),
				again:   c.again("setup -f", file),
			})
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the mesh, YAML or JSON; - for standard input")
	cmd.Flags().StringVar(&taskQueue, "task-queue", procedure.TaskQueue, "task queue of the worker")
	cmd.Flags().BoolVar(&detach, "detach", false, "start it and return")
	planFlag(cmd, &plan)
	completeMeshFile(cmd)
	_ = cmd.MarkFlagRequired("file") // fails only if there is no such flag
	return cmd
}

func (c *cli) verifyCommand() *cobra.Command {
	var file, taskQueue string
	var detach bool
	cmd := &cobra.Command{
		Use:   "verify [MESH | -f mesh.yaml]",
		Short: "Prove that the relay of a mesh works; changes nothing",
		Long: `Look at a mesh that has been set up: certificates, issuers, trust, what the
server has loaded, the connected streams, and a fresh full handshake with each
cluster's own certificate. It changes nothing. Exit code 4 if something fails.`,
		Example: `  relaypki verify demo
  # What fails, for a script:
  relaypki verify demo -o json | jq '.result.findings[] | select(.status == "fail")'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeMesh,
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := c.meshOf(cmd, args, file)
			if err != nil {
				return err
			}
			data, err := json.Marshal(procedure.VerifyInput{Mesh: in.Mesh, Management: in.Management, Namespace: in.Namespace})
			if err != nil {
				return err
			}
			return c.launch(cmd.Context(), launch{
				procedure: procedure.VerifyMesh, id: "verify-" + in.Mesh + "-" + time.Now().UTC().Format("20060102T150405.000Z"), taskQueue: taskQueue,
				input: data, detach: detach, summary: "Verify mesh " + in.Mesh, again: c.again("verify", in.Mesh),
			})
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the mesh's file, in place of its name")
	cmd.Flags().StringVar(&taskQueue, "task-queue", procedure.TaskQueue, "task queue of the worker")
	cmd.Flags().BoolVar(&detach, "detach", false, "start it and return")
	completeMeshFile(cmd)
	return cmd
}

// meshOf reads which mesh a command is for: its name, or its file, which says also
// where its membership is stored.
func (c *cli) meshOf(cmd *cobra.Command, args []string, file string) (procedure.MeshInput, error) {
	switch {
	case file != "" && len(args) > 0:
		return procedure.MeshInput{}, badInput(c.again(cmd.Name(), args[0]), "give the mesh's name or its file, not both")
	case file != "":
		in, problems, err := readInput(file, cmd.InOrStdin())
		if err != nil {
			return procedure.MeshInput{}, badInput(c.again(cmd.Name(), "-f mesh.yaml"), "%w", err)
		}
		if len(problems) > 0 {
			return procedure.MeshInput{}, c.reject(file, problems)
		}
		return procedure.MeshInput{Mesh: in.spec.Mesh, Management: in.spec.Management.Context, Namespace: in.spec.Management.Namespace}, nil
	case len(args) == 0:
		return procedure.MeshInput{}, badInput(c.again("status"), "which mesh? Give its name, or its file with -f")
	case !meshName.MatchString(args[0]):
		return procedure.MeshInput{}, badInput(c.again("status"), "%q is not the name of a mesh", args[0])
	default:
		return procedure.MeshInput{Mesh: args[0]}, nil
	}
}

// launch starts a procedure, or finds the one of that id that runs, and
// follows it to its end.
func (c *cli) launch(ctx context.Context, l launch) error {
	t, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer t.Close()
	f := c.follower(t, l.id)
	f.again = l.again
	if l.conclude != nil {
		f.conclude = l.conclude
	}
	runID, running, err := t.start(ctx, l)
	if err != nil {
		return t.failed(err, "start "+l.id)
	}
	f.runID = runID
	switch {
	case !running:
		c.say("Started %s as workflow %s.", l.procedure, l.id)
	case t.sameInput(ctx, l, runID):
		c.say("Workflow %s runs already, with this very input; showing that run.", l.id)
	default:
		fmt.Fprintf(c.err, "relaypki: warning: workflow %s runs already, with ANOTHER input than this one; showing that run. When it has ended, start yours: %s\n", l.id, l.again)
	}
	if !l.detach {
		return f.follow(ctx)
	}
	if c.json() {
		return c.printJSON(ending{WorkflowID: l.id, RunID: runID, Procedure: l.procedure, Status: "running"})
	}
	c.say("Next: %s", c.again("watch", l.id))
	return nil
}

// start returns the run, and whether it was running before.
func (t *server) start(ctx context.Context, l launch) (runID string, running bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	run, err := t.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID: l.id, TaskQueue: l.taskQueue, StaticSummary: l.summary, StaticDetails: l.details,
		// A run that failed may be started again under its id.
		WorkflowIDReusePolicy:                    enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		WorkflowIDConflictPolicy:                 enumspb.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
		WorkflowExecutionErrorWhenAlreadyStarted: true,
	}, l.procedure, l.input)
	var started *serviceerror.WorkflowExecutionAlreadyStarted
	if errors.As(err, &started) {
		return started.RunId, true, nil
	}
	if err != nil {
		return "", false, err
	}
	return run.GetRunID(), false, nil
}

// sameInput compares what we would have sent with what that run was given.
func (t *server) sameInput(ctx context.Context, l launch, runID string) bool {
	input, err := t.input(ctx, l.id, runID)
	return err == nil && sameJSON(input, l.input)
}

// input is what a run was given, as JSON. What a continued run has besides is
// its own affair.
func (t *server) input(ctx context.Context, id, runID string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	events := t.GetWorkflowHistory(ctx, id, runID, false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	if !events.HasNext() {
		return nil, fmt.Errorf("workflow %s has no history", id)
	}
	first, err := events.Next()
	if err != nil {
		return nil, err
	}
	payloads := first.GetWorkflowExecutionStartedEventAttributes().GetInput().GetPayloads()
	if len(payloads) == 0 {
		return nil, fmt.Errorf("workflow %s has no input", id)
	}
	return payloads[0].GetData(), nil
}

// sameJSON compares meaning, not spelling.
func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// say prints a line for people.
func (c *cli) say(format string, args ...any) {
	if !c.quiet() {
		fmt.Fprintf(c.out, format+"\n", args...)
	}
}
