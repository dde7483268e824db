package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/shell"
)

func (c *cli) adoptCommand() *cobra.Command {
	var file, taskQueue string
	var plan, yes bool
	cmd := &cobra.Command{
		Use:   "adopt -f mesh.yaml",
		Short: "Take over what was set up by hand with the guide's commands",
		Long: `Take over the CAs, Issuers, Certificates, Secrets and Helm releases that somebody
has made by hand under the guide's names: they are shown and compared with the
file, and when you say so they are named, described and labelled as the mesh's.
Nothing else is changed: no certificate is issued, no trust changed.

A setup goes on from there; its plan says what it would change. CAs stay as they
are, also where the file asks for others, until they are rotated.`,
		Example: `  # Show what would be taken over, and in what it differs:
  relaypki adopt -f mesh.yaml --plan
  relaypki adopt -f mesh.yaml`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, problems, err := readInput(file, cmd.InOrStdin())
			if err != nil {
				return badInput(c.again("adopt -f mesh.yaml"), "%w", err)
			}
			if len(problems) > 0 {
				return c.reject(file, problems)
			}
			again := c.again("adopt", shell.Join("-f", file))
			look, err := asPlan(in.json)
			if err != nil {
				return badInput("", "%w", err)
			}
			// With -o json there is one document: the plan's, or the adoption's.
			if plan || in.plan || !c.quiet() {
				if err := c.launch(cmd.Context(), launch{
					procedure: procedure.AdoptMesh, id: "plan-adopt-" + in.spec.Mesh, taskQueue: taskQueue, input: look,
					summary: fmt.Sprintf("What of mesh %s was made by hand; changes nothing", in.spec.Mesh), again: again + " --plan",
				}); err != nil || plan || in.plan {
					return err
				}
			}
			if err := c.confirm(cmd, yes, danger{
				question:    fmt.Sprintf("Take this over as mesh %s?", in.spec.Mesh),
				consequence: "It is named, described and labelled as relaypki's, which from then on changes it by its setups. Certificates and trust stay as they are.",
			}); err != nil {
				return err
			}
			if err := c.launch(cmd.Context(), launch{
				procedure: procedure.AdoptMesh, id: "adopt-" + in.spec.Mesh, taskQueue: taskQueue, input: in.json,
				summary: fmt.Sprintf("Take over what was made by hand of mesh %s", in.spec.Mesh), again: again,
			}); err != nil {
				return err
			}
			c.say("Next: %s", c.again("setup", shell.Join("-f", file), "--plan"))
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the mesh, YAML or JSON; - for standard input")
	cmd.Flags().StringVar(&taskQueue, "task-queue", procedure.TaskQueue, "task queue of the worker")
	planFlag(cmd, &plan)
	yesFlag(cmd, &yes)
	completeMeshFile(cmd)
	_ = cmd.MarkFlagRequired("file") // fails only if there is no such flag
	return cmd
}
