package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/shell"
	"github.com/relaypki/relaypki/internal/strict"
)

func (c *cli) addClusterCommand() *cobra.Command {
	var w mesh.Workload
	var file, taskQueue string
	var detach, plan bool
	cmd := &cobra.Command{
		Use:   "add-cluster {MESH | -f mesh.yaml} NAME",
		Short: "Make a cluster a member of a mesh that is set up",
		Long: `Make a cluster a member of a mesh that is set up: cert-manager, its login to
Vault, its certificate, the agents' trust, its registration and its agent, and the
proof that it works. No other member is touched, and other procedures of the mesh
may be at work meanwhile. The same command again goes on after a failure, or
brings a member's settings up to date.

Put the cluster into the mesh's file too: a setup with a file that lacks a member
is refused. With -f its settings, and where the mesh's membership is stored, are
those of the file.`,
		Example: `  relaypki add-cluster demo cluster3
  # The registered name is not the cluster's name in the worker's site file:
  relaypki add-cluster demo eu-7 --context prod-eu-7 --reload hot
  # The file has it already:
  relaypki add-cluster -f mesh.yaml cluster3`,
		Args: cobra.RangeArgs(1, 2), ValidArgsFunction: c.completeMesh,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, name, err := c.memberOf(cmd, args, file)
			if err != nil {
				return err
			}
			in := procedure.AddClusterInput{Mesh: m.Mesh, Management: m.Management.Context, Namespace: m.Management.Namespace, Workload: w, Plan: plan}
			if known, ok := m.Workload(name); ok {
				if changed := changedFlags(cmd, "context", "reload", "trust"); len(changed) > 0 {
					return badInput(c.again("add-cluster", name, "-f", file), "%s says what %s is like; give the file or %s, not both", file, name, changed[0])
				}
				in.Workload = known
			}
			in.Workload.Name = name
			return c.launchMember(cmd, in.Validate(), in, launch{
				procedure: procedure.AddCluster, id: planID("add-"+in.Mesh+"-"+name, plan), taskQueue: taskQueue, detach: detach,
				summary: fmt.Sprintf("Add cluster %s to mesh %s", name, in.Mesh), again: c.onceMore(cmd, args, "context", "reload", "trust"),
			})
		},
	}
	cmd.Flags().StringVar(&w.Context, "context", "", "the cluster's name in the worker's site file (default: NAME)")
	cmd.Flags().StringVar(&w.Agent.Reload, "reload", "", "how the agent takes a changed Secret: hot or restart (default: restart)")
	cmd.Flags().StringVar(&w.Agent.Trust, "trust", "", "what the agent trusts: rootSecret or own (default: rootSecret)")
	cmd.Flags().StringVar(&taskQueue, "task-queue", procedure.TaskQueue, "task queue of the worker")
	cmd.Flags().BoolVar(&detach, "detach", false, "start it and return")
	planFlag(cmd, &plan)
	cmd.Flags().StringVarP(&file, "file", "f", "", "the mesh's file, in place of its name")
	completeMeshFile(cmd)
	for flag, values := range map[string][]string{"reload": {mesh.ReloadHot, mesh.ReloadRestart}, "trust": {mesh.TrustRootSecret, mesh.TrustOwn}} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // fails only if there is no such flag
	}
	return cmd
}

func (c *cli) removeClusterCommand() *cobra.Command {
	var file, taskQueue string
	var gone, detach, plan, yes bool
	cmd := &cobra.Command{
		Use:   "remove-cluster {MESH | -f mesh.yaml} NAME",
		Short: "Take a cluster out of a mesh, and what was made for it",
		Long: `Take a cluster out of a mesh: its access to Vault first, then what was made in the
cluster and its registration. What relaypki has not made is kept, and listed; so
are namespaces and CustomResourceDefinitions, which others may use. At the end it
says until when the certificate that is out there stays valid. The same command
again goes on after a failure.

Take the cluster out of the mesh's file too, or the next setup adds it again.`,
		Example: `  relaypki remove-cluster demo cluster3 --plan
  relaypki remove-cluster demo cluster3
  # The cluster no longer exists:
  relaypki remove-cluster demo cluster3 --gone`,
		Args: cobra.RangeArgs(1, 2), ValidArgsFunction: c.completeClusters(),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, name, err := c.memberOf(cmd, args, file)
			if err != nil {
				return err
			}
			in := procedure.RemoveClusterInput{Mesh: m.Mesh, Management: m.Management.Context, Namespace: m.Management.Namespace, Cluster: name, Gone: gone, Plan: plan}
			problems := in.Validate()
			if len(problems) == 0 && !plan {
				consequence := "Its agent and its certificate are taken out of it, and it can have no new certificate. Other clusters are not touched."
				if gone {
					consequence = "It is not looked at, because it was said to be gone: if it is there after all, its agent stays and works until its certificate ends."
				}
				if err := c.confirm(cmd, yes, danger{question: fmt.Sprintf("Remove the cluster %s from mesh %s?", name, in.Mesh), consequence: consequence, name: name}); err != nil {
					return err
				}
			}
			return c.launchMember(cmd, problems, in, launch{
				procedure: procedure.RemoveCluster, id: planID("remove-"+in.Mesh+"-"+name, plan), taskQueue: taskQueue, detach: detach,
				summary: fmt.Sprintf("Remove cluster %s from mesh %s", name, in.Mesh), again: c.onceMore(cmd, args, "gone", "yes"),
			})
		},
	}
	cmd.Flags().BoolVar(&gone, "gone", false, "the cluster no longer exists or cannot be reached: clean Vault and the management cluster alone")
	cmd.Flags().StringVar(&taskQueue, "task-queue", procedure.TaskQueue, "task queue of the worker")
	cmd.Flags().BoolVar(&detach, "detach", false, "start it and return")
	planFlag(cmd, &plan)
	cmd.Flags().StringVarP(&file, "file", "f", "", "the mesh's file, in place of its name")
	completeMeshFile(cmd)
	yesFlag(cmd, &yes)
	return cmd
}

// memberOf reads which mesh and which cluster are meant: MESH NAME, or NAME with
// the mesh's file, which says also where its membership is stored.
func (c *cli) memberOf(cmd *cobra.Command, args []string, file string) (mesh.Spec, string, error) {
	help := "relaypki " + cmd.Name() + " --help"
	switch {
	case file != "" && len(args) == 1:
		in, problems, err := readInput(file, cmd.InOrStdin())
		if err != nil {
			return mesh.Spec{}, "", badInput(help, "%w", err)
		}
		if len(problems) > 0 {
			return mesh.Spec{}, "", c.reject(file, problems)
		}
		return in.spec, args[0], nil
	case file != "":
		return mesh.Spec{}, "", badInput(c.again(cmd.Name(), args[1], "-f", file), "give the mesh's name or its file, not both")
	case len(args) == 1:
		return mesh.Spec{}, "", badInput(help, "which cluster, and of which mesh? Give both names")
	case !meshName.MatchString(args[0]):
		return mesh.Spec{}, "", badInput(c.again("status"), "%q is not the name of a mesh", args[0])
	}
	return mesh.Spec{Mesh: args[0]}, args[1], nil
}

// onceMore is the same command line once more, with those of the flags that were
// given.
func (c *cli) onceMore(cmd *cobra.Command, args []string, flags ...string) string {
	words := strings.Fields(cmd.CommandPath())[1:] // without this program's name
	return c.again(append(append(words, args...), changedFlags(cmd, append(flags, "file", "plan")...)...)...)
}

// planID keeps the workflow of a plan apart from that which carries it out.
func planID(id string, plan bool) string {
	if plan {
		return "plan-" + id
	}
	return id
}

// changedFlags are those of the named flags that were given, to be given again.
func changedFlags(cmd *cobra.Command, names ...string) []string {
	var args []string
	for _, name := range names {
		flag := cmd.Flags().Lookup(name)
		switch {
		case flag == nil || !flag.Changed:
		case flag.Value.Type() == "bool":
			args = append(args, "--"+name)
		default:
			args = append(args, shell.Join("--"+name, flag.Value.String()))
		}
	}
	return args
}

// rejectCommand reports a command whose words make an unusable input.
func (c *cli) rejectCommand(cmd *cobra.Command, problems []strict.Problem) error {
	err := c.reject("the command", problems)
	var exit *exitError
	if errors.As(err, &exit) {
		exit.next = cmd.CommandPath() + " --help"
	}
	return err
}

// launchMember starts a procedure on one member, unless its input is unusable.
func (c *cli) launchMember(cmd *cobra.Command, problems []strict.Problem, in any, l launch) error {
	if len(problems) > 0 {
		return c.rejectCommand(cmd, problems)
	}
	var err error
	if l.input, err = json.Marshal(in); err != nil {
		return err
	}
	return c.launch(cmd.Context(), l)
}

// added says how an addition ended well.
func (p paper) added(w io.Writer, r procedure.AddClusterResult, c *cli) {
	if r.Verification != nil {
		p.exceptions(w, r.Verification.Findings)
	}
	word := "is a member of mesh " + r.Mesh
	if !r.Changed {
		word += "; it was up to date, nothing was changed"
	}
	fmt.Fprintf(w, "Cluster %s %s.\n", r.Cluster, word)
	if !r.Setup.Leaf.NotAfter.IsZero() {
		fmt.Fprintf(w, "Its certificate is valid until %s and is renewed before.\n", r.Setup.Leaf.NotAfter.UTC().Format("2006-01-02 15:04Z"))
	}
	p.print(w, 0, span{fmt.Sprintf("Put it into the mesh's file too: a setup with a file that lacks %s is refused.", r.Cluster), plain})
	fmt.Fprintf(w, "Next: %s\n", c.again("verify", r.Mesh))
}

// removed says what a removal left behind, and above all until when the
// certificate that is out there stays valid.
func (p paper) removed(w io.Writer, r procedure.RemoveClusterResult, c *cli) {
	p.kept(w, r.Kept)
	word := "is no longer a member of mesh " + r.Mesh
	if !r.Changed {
		word += "; it was removed before, nothing was changed"
	}
	fmt.Fprintf(w, "Cluster %s %s.\n", r.Cluster, word)
	if !r.ValidUntil.IsZero() {
		p.print(w, 0, span{"Certificate valid until " + r.ValidUntil.UTC().Format(time.RFC3339), bold})
	}
	p.print(w, 0, span{tidy(r.Advice), plain})
	fmt.Fprintf(w, "Next: %s\n", c.again("verify", r.Mesh))
}

func (p paper) kept(w io.Writer, kept []procedure.Kept) {
	if len(kept) == 0 {
		return
	}
	rows := [][]span{{{"KEPT", dim}, {"WHY", dim}}}
	for _, k := range kept {
		rows = append(rows, []span{{tidy(k.Object), plain}, {tidy(k.Why), plain}})
	}
	p.table(w, 0, rows)
	fmt.Fprintln(w)
}
