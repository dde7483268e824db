package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/relaypki/relaypki/internal/procedure"
)

// rotateCommand has one command for each thing that can be made anew.
func (c *cli) rotateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Make certificates, CAs or credentials anew",
		Long: `Make something of a mesh anew before it ends, or because it has become known. What
is due by the mesh's policy is begun by itself (see "relaypki schedule").`,
		Example: `  relaypki rotate intermediate demo --plan
  relaypki rotate root demo --plan
  relaypki rotate leaf demo
  relaypki rotate credentials demo`,
	}
	cmd.AddCommand(c.rotateIntermediateCommand(), c.rotateRootCommand(), c.rotateLeafCommand(), c.rotateCredentialsCommand())
	return cmd
}

func (c *cli) rotateCredentialsCommand() *cobra.Command {
	var taskQueue string
	var detach bool
	cmd := &cobra.Command{
		Use:   "credentials MESH [CLUSTER...]",
		Short: "Make anew what the clusters log in to Vault with",
		Long: `Make anew what the clusters' cert-managers log in to Vault with, whatever is left of
its life: keys are read and pinned again, tokens, secret ids and reviewers' tokens are
replaced. The old one ends once cert-manager has logged in with the new. One cluster
comes after the other, the canary first and the management cluster last; with names,
these workload clusters alone. No certificate is issued anew.

A cluster that fails is parked, with its old credential at work: put right what it
says, then retry, skip or abort.`,
		Example: `  relaypki rotate credentials demo
  # Of these alone:
  relaypki rotate credentials demo cluster2 cluster7`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: c.completeClusters(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !meshName.MatchString(args[0]) {
				return badInput(c.again("status"), "%q is not the name of a mesh", args[0])
			}
			input, err := json.Marshal(procedure.RotateCredentialsInput{MeshInput: procedure.MeshInput{Mesh: args[0]}, Clusters: args[1:]})
			if err != nil {
				return err
			}
			return c.launch(cmd.Context(), launch{
				procedure: procedure.RotateIssuerCredentials, id: procedure.ID(procedure.RotateIssuerCredentials, args[0]), taskQueue: taskQueue,
				input: input, detach: detach, summary: "Make the credentials of mesh " + args[0] + " anew", again: c.onceMore(cmd, args),
			})
		},
	}
	cmd.Flags().StringVar(&taskQueue, "task-queue", procedure.TaskQueue, "task queue of the worker")
	cmd.Flags().BoolVar(&detach, "detach", false, "start it and return")
	_ = cmd.RegisterFlagCompletionFunc("task-queue", cobra.NoFileCompletions) // fails only if there is no such flag
	return cmd
}

// renewed says how a rotation of the credentials ended well.
func (p paper) renewed(w io.Writer, r procedure.RefreshResult, c *cli) {
	p.print(w, 0, span{fmt.Sprintf("Credentials of mesh %s (%s): %d made anew, %d as they were.", r.Mesh, r.Method, r.Count[procedure.Changed]+r.Count[procedure.Created], r.Count[procedure.UpToDate]), plain})
	for _, cluster := range r.Clusters {
		if cluster.State == procedure.Skipped {
			p.print(w, 2, span{tidy(cluster.Cluster) + " was left alone: " + tidy(cluster.Detail), yellow})
		}
	}
	fmt.Fprintf(w, "Next: %s\n", c.again("verify", r.Mesh))
}
