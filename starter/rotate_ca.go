package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/strict"
)

func (c *cli) rotateIntermediateCommand() *cobra.Command {
	var in procedure.RotateIntermediateInput
	var taskQueue, ttl string
	var detach, plan, yes bool
	cmd := &cobra.Command{
		Use:   "intermediate MESH",
		Short: "Replace the intermediate CA, with no handshake that fails",
		Long: `Replace the intermediate CA of a mesh by a new one of the same root. No trust
changes, so no handshake fails: the new intermediate is made and proven, then the
canary, the management server and all other clusters get certificates of it, one
after the other or in waves, and the previous one is retired.

It asks before it goes beyond the canary, or as rotation.approval says: "relaypki
approve" lets it go on, "relaypki rollback" takes it back from wherever it is. The
same command again goes on after a failure, or after the run was lost.

With --delete-old-key the previous intermediate's key is deleted once the rotation
is over, when you have approved it. To leave it then, abort the run: the rotation
is over either way. As long as such a key is still to be deleted, the command with
--delete-old-key asks for that again and begins no rotation; without, it begins one.

The new intermediate is like the previous one but for what --ttl, --key-type and
--key-bits say; the mesh's record says so too once the rotation is over, and the
mesh's file should.

With --plan nothing is changed: it shows phase by phase who presents and who trusts
what, and refuses a rotation that would cut anybody off.`,
		Example: `  relaypki rotate intermediate demo --plan
  relaypki rotate intermediate demo --snapshot "vault-2026-11-26.snap, in the safe"
  # With another key, for five years:
  relaypki rotate intermediate demo --key-type ec --ttl 43800h
  # Without a question, except for the deletion of a key:
  relaypki rotate intermediate demo --approval none
  # As commands, for the night when Temporal is down:
  relaypki rotate intermediate demo --plan -o commands > rotate.sh`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: c.completeMesh,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !meshName.MatchString(args[0]) {
				return badInput(c.again("status"), "%q is not the name of a mesh", args[0])
			}
			in.Mesh, in.Plan = args[0], plan
			problems := append(in.Validate(), setTTL(&in.Intermediate, ttl, "intermediate.ttl")...)
			if len(problems) == 0 && in.DeleteOldKey && !plan {
				if err := c.confirm(cmd, yes, danger{
					question:    fmt.Sprintf("Have the key of mesh %s's previous intermediate deleted at the end?", in.Mesh),
					consequence: "It is asked for once more then. Without its key that intermediate can never be at work again.",
				}); err != nil {
					return err
				}
			}
			return c.launchMember(cmd, problems, in, launch{
				procedure: procedure.RotateIntermediateCA, id: planID(procedure.ID(procedure.RotateIntermediateCA, in.Mesh), plan), taskQueue: taskQueue, detach: detach,
				summary: "Rotate the intermediate CA of mesh " + in.Mesh, again: c.onceMore(cmd, args, "approval", "snapshot", "ttl", "key-type", "key-bits", "delete-old-key", "yes"),
			})
		},
	}
	cmd.Flags().StringVar(&in.Approval, "approval", "", "none, afterCanary or eachPhase (default: rotation.approval of the mesh)")
	cmd.Flags().StringVar(&in.Snapshot, "snapshot", "", "your word that Vault can be restored to now: where the snapshot is")
	cmd.Flags().StringVar(&ttl, "ttl", "", "how long the new intermediate lives (default: as the previous one)")
	cmd.Flags().StringVar(&in.Intermediate.KeyType, "key-type", "", "its key: rsa or ec (default: as the previous one)")
	cmd.Flags().IntVar(&in.Intermediate.KeyBits, "key-bits", 0, "its key's size (default: the usual one of its type)")
	cmd.Flags().BoolVar(&in.DeleteOldKey, "delete-old-key", false, "have the previous intermediate's key deleted once the rotation is over, which then has to be approved")
	yesFlag(cmd, &yes)
	rotateFlags(cmd, &taskQueue, &detach, &plan)
	_ = cmd.RegisterFlagCompletionFunc("approval", cobra.FixedCompletions([]string{mesh.ApprovalNone, mesh.ApprovalAfterCanary, mesh.ApprovalEachPhase}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("key-type", cobra.FixedCompletions([]string{"rsa", "ec"}, cobra.ShellCompDirectiveNoFileComp))
	for _, name := range []string{"snapshot", "ttl", "key-bits"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions) // all fail only if there is no such flag
	}
	return cmd
}

func (c *cli) rotateLeafCommand() *cobra.Command {
	var taskQueue string
	var detach, plan bool
	cmd := &cobra.Command{
		Use:   "leaf MESH [CLUSTER...]",
		Short: "Have certificates issued anew by the intermediate at work",
		Long: `Have the certificates of a mesh issued anew by the intermediate at work: the
canary's, the management server's, then all others; with names, those of these
workload clusters alone. Agents that read their Secrets at their start alone are
restarted, and each is proven by a fresh handshake. No trust changes.`,
		Example: `  relaypki rotate leaf demo
  # Of these alone:
  relaypki rotate leaf demo cluster2 cluster7`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: c.completeClusters(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !meshName.MatchString(args[0]) {
				return badInput(c.again("status"), "%q is not the name of a mesh", args[0])
			}
			in := procedure.RotateLeafInput{MeshInput: procedure.MeshInput{Mesh: args[0]}, Clusters: args[1:], Plan: plan}
			return c.launchMember(cmd, in.Validate(), in, launch{
				procedure: procedure.RotateLeafCertificates, id: planID(procedure.ID(procedure.RotateLeafCertificates, in.Mesh), plan), taskQueue: taskQueue, detach: detach,
				summary: "Rotate the certificates of mesh " + in.Mesh, again: c.onceMore(cmd, args),
			})
		},
	}
	rotateFlags(cmd, &taskQueue, &detach, &plan)
	return cmd
}

func rotateFlags(cmd *cobra.Command, taskQueue *string, detach, plan *bool) {
	cmd.Flags().StringVar(taskQueue, "task-queue", procedure.TaskQueue, "task queue of the worker")
	cmd.Flags().BoolVar(detach, "detach", false, "start it and return")
	planFlag(cmd, plan)
	_ = cmd.RegisterFlagCompletionFunc("task-queue", cobra.NoFileCompletions) // fails only if there is no such flag
}

func (c *cli) approveCommand() *cobra.Command {
	var in procedure.ApproveInput
	cmd := &cobra.Command{
		Use:   "approve MESH PHASE",
		Short: "Let a rotation go on with the phase that it waits for",
		Long: `Let a rotation begin the phase that it waits to begin: "relaypki watch" shows which,
and what it will do. Who approves is what you say; Temporal knows no more of it.`,
		Example: `  relaypki approve demo server
  relaypki approve demo pivot --by alice
  relaypki approve demo retire --by alice --note "change 4711"`,
		Args: cobra.ExactArgs(2), ValidArgsFunction: c.completeMesh,
	}
	cmd.Flags().StringVar(&in.By, "by", "", "who approves")
	cmd.Flags().StringVar(&in.Note, "note", "", "for whoever looks at this later")
	return c.steeringCommand(cmd, func(mesh string, rest []string) (order, error) {
		in.Phase = rest[0]
		return order{mesh: mesh, update: procedure.ApproveUpdate, in: in}, nil
	})
}

func (c *cli) quarantineCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "quarantine MESH CLUSTER... --reason WHY",
		Short: "Have a rotation go on without clusters that do not answer",
		Long: `Have a rotation go on without clusters that it has parked, or not begun. Vault signs
for them with the new intermediate all the same, so that they get a certificate of
it when their cert-manager renews. The rotation ends as failed, with them in its
report, and the mesh's record has them until "relaypki rotate leaf" has done them.`,
		Example: `  relaypki quarantine demo cluster2 --reason "in repair until Monday"`,
		Args:    cobra.MinimumNArgs(2), ValidArgsFunction: c.completeClusters(procedure.Parked, procedure.Pending),
	}
	reasonFlag(cmd, &reason)
	return c.steeringCommand(cmd, func(mesh string, clusters []string) (order, error) {
		return order{mesh: mesh, update: procedure.QuarantineUpdate, in: procedure.SkipInput{Clusters: clusters, Reason: reason}}, c.needReason(reason)
	})
}

// rollbackCommand tells the running rotation to go back or, if its run is gone,
// starts one that does.
func (c *cli) rollbackCommand() *cobra.Command {
	var reason, of, taskQueue string
	var detach bool
	cmd := &cobra.Command{
		Use:   "rollback MESH --reason WHY",
		Short: "Take a rotation of the root or the intermediate back",
		Long: `Take a rotation of the root or the intermediate back, from whatever phase it is in
until it is over: every certificate is of the previous CA again, and no handshake
fails on the way. What was made for the rotation stays in Vault and may not issue.
An emergency is not taken back: what was compromised would be trusted again.

If its run is gone, another one is started that takes it back: of what was rotated
last, as far as Temporal knows. With --of you say it yourself. Where the mesh's record
says otherwise, that run changes nothing and says so.`,
		Example: `  relaypki rollback demo --reason "wrong key type"
  # Its run is gone, and all that Temporal knew of it:
  relaypki rollback demo --of root --reason "wrong key type"`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: c.completeMesh,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !meshName.MatchString(args[0]) {
				return badInput(c.again("status"), "%q is not the name of a mesh", args[0])
			}
			if err := c.needReason(reason); err != nil {
				return err
			}
			if of != "" && rotationOf[of] == "" {
				return badInput(c.sameWith("--of", ofRoot), "%q is neither %q nor %q", of, ofRoot, ofIntermediate)
			}
			ctx := cmd.Context()
			t, err := c.connect(ctx)
			if err != nil {
				return err
			}
			defer t.Close()
			runs, err := t.procedures(ctx, args[0], "")
			if err != nil {
				return t.failed(err, "find the rotation")
			}
			last, known := lastRotation(runs)
			if known && last.Procedure == procedure.EmergencyReissue && (last.Ended == nil || of == "") {
				return c.notTakenBack(last)
			}
			if known && last.Ended == nil {
				if of != "" && rotationOf[of] != last.Procedure {
					return badInput(c.again("watch", last.WorkflowID), "it is %s that runs (workflow %s)", last.Procedure, last.WorkflowID)
				}
				return c.steer(ctx, t, last, order{mesh: args[0], update: procedure.RollbackUpdate, verb: "rollback", in: procedure.RollbackInput{Reason: reason}})
			}
			if of == "" && known && last.Procedure == procedure.RotateRootCA {
				of = ofRoot
			}
			l, in := rollbackOf(of, procedure.MeshInput{Mesh: args[0]}, reason)
			l.taskQueue, l.detach, l.again = taskQueue, detach, c.sameWith()
			return c.launchMember(cmd, nil, in, l)
		},
	}
	reasonFlag(cmd, &reason)
	cmd.Flags().StringVar(&of, "of", "", "what was rotated, if the run is gone: root or intermediate (default: what was rotated last)")
	cmd.Flags().StringVar(&taskQueue, "task-queue", procedure.TaskQueue, "task queue of the worker, if a run has to be started")
	cmd.Flags().BoolVar(&detach, "detach", false, "start it and return")
	// These fail only if there is no such flag.
	_ = cmd.RegisterFlagCompletionFunc("of", cobra.FixedCompletions([]string{ofRoot, ofIntermediate}, nothingElse))
	_ = cmd.RegisterFlagCompletionFunc("task-queue", cobra.NoFileCompletions)
	return cmd
}

// Values of rollback's --of.
const (
	ofRoot         = "root"
	ofIntermediate = "intermediate"
)

// rotationOf is the procedure that each of them means.
var rotationOf = map[string]string{ofRoot: procedure.RotateRootCA, ofIntermediate: procedure.RotateIntermediateCA}

// lastRotation is the rotation of a CA, or the emergency, that runs, or else the one
// that was begun last; false if there is none among the runs, the latest of which is the first.
func lastRotation(runs []execution) (execution, bool) {
	var last execution
	found := false
	for _, run := range runs {
		if run.child || strings.HasPrefix(run.WorkflowID, planID("", true)) ||
			!slices.Contains([]string{procedure.RotateRootCA, procedure.RotateIntermediateCA, procedure.EmergencyReissue}, run.Procedure) {
			continue
		}
		if run.Ended == nil {
			return run, true
		}
		if !found {
			last, found = run, true
		}
	}
	return last, found
}

// rollbackOf is the start of a run that takes a rotation back whose own is gone:
// of an intermediate, if it is not said to be of the root.
func rollbackOf(of string, mesh procedure.MeshInput, reason string) (launch, any) {
	if of == ofRoot {
		return launch{procedure: procedure.RotateRootCA, id: procedure.ID(procedure.RotateRootCA, mesh.Mesh), summary: "Take back the rotation of the root CA of mesh " + mesh.Mesh},
			procedure.RotateRootInput{MeshInput: mesh, Rollback: true, Reason: reason}
	}
	return launch{procedure: procedure.RotateIntermediateCA, id: procedure.ID(procedure.RotateIntermediateCA, mesh.Mesh), summary: "Take back the rotation of the intermediate CA of mesh " + mesh.Mesh},
		procedure.RotateIntermediateInput{MeshInput: mesh, Rollback: true, Reason: reason}
}

// rotated says how a rotation ended well.
func (p paper) rotated(w io.Writer, r procedure.RotateResult, c *cli) {
	if r.Verification != nil {
		p.exceptions(w, r.Verification.Findings)
	}
	p.leaves(w, r)
	switch {
	case r.RolledBack != "":
		fmt.Fprintf(w, "The rotation of mesh %s was taken back (%s): every certificate is of %s again.\n", r.Mesh, tidy(r.RolledBack), r.From.Name)
	case r.From.Name != "":
		fmt.Fprintf(w, "Mesh %s: every certificate is of %s, until %s. %s may not issue any more.\n", r.Mesh, r.To.Name, r.To.NotAfter.UTC().Format("2006-01-02 15:04Z"), r.From.Name)
	case len(r.Deleted) > 0: // all that an earlier rotation had left to do
	case r.Changed:
		fmt.Fprintf(w, "Mesh %s: the certificates are issued anew.\n", r.Mesh)
	default:
		fmt.Fprintf(w, "Mesh %s: nothing was to be done.\n", r.Mesh)
	}
	if r.RootPEM != "" {
		fmt.Fprintf(w, "Put the new root's certificate (%s, serial %s) into pki.root.certificatePEM of the mesh's file: a setup with the old one is refused.\n", tidy(r.To.Subject), r.To.Serial)
	}
	if len(r.Deleted) > 0 {
		fmt.Fprintf(w, "Mesh %s: deleted for good is the key of %s.\n", r.Mesh, strings.Join(r.Deleted, ", "))
	}
	fmt.Fprintf(w, "Next: %s\n", c.again("verify", r.Mesh))
}

func (p paper) leaves(w io.Writer, r procedure.RotateResult) {
	rows := [][]span{{{"CERTIFICATE", dim}, {"SERIAL", dim}, {"NOT AFTER", dim}}}
	row := func(name, serial string, notAfter time.Time) {
		if serial != "" {
			rows = append(rows, []span{{tidy(name), plain}, {serial, plain}, {notAfter.UTC().Format("2006-01-02 15:04Z"), plain}})
		}
	}
	row("server", r.Server.Serial, r.Server.NotAfter)
	for _, cluster := range r.Clusters {
		row("agent "+cluster.Cluster, cluster.Leaf.Serial, cluster.Leaf.NotAfter)
	}
	if len(rows) > 1 {
		p.table(w, 0, rows)
		fmt.Fprintln(w)
	}
}

// matrix says phase by phase who presents and who trusts what.
func (p paper) matrix(w io.Writer, phases []procedure.PhaseView) {
	rows := [][]span{{{"PHASE", dim}, {"MEMBER", dim}, {"PRESENTS", dim}, {"TRUSTS", dim}, {"ALL PAIRS", dim}}}
	for _, phase := range phases {
		for i, m := range phase.Members {
			name, holds := "", span{}
			if i == 0 {
				name, holds = string(phase.Phase), span{"hold", green}
				if len(phase.Broken) > 0 {
					holds = span{"BREAK", red}
				}
			}
			rows = append(rows, []span{{name, bold}, {tidy(m.Member), plain}, {tidy(m.Presents), plain}, {tidy(m.Trusts), plain}, holds})
		}
	}
	p.whole = true
	p.table(w, 0, rows)
	fmt.Fprintln(w)
}

// rotationResult is what a rotation has ended with; false for another procedure.
func rotationResult(e ending) (procedure.RotateResult, bool) {
	var r procedure.RotateResult
	_, of := courses[e.Procedure]
	return r, (of || e.Procedure == procedure.EmergencyReissue) && json.Unmarshal(e.Result, &r) == nil && r.Mesh != ""
}

// setTTL gives a CA that is to be made the life that a flag says, if it says one.
func setTTL(ca *mesh.CA, text, path string) []strict.Problem {
	if text == "" {
		return nil
	}
	var err error
	if ca.TTL, err = mesh.ParseDuration(text); err != nil {
		return []strict.Problem{{Path: path, Message: err.Error()}}
	}
	return nil
}
