package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

func (c *cli) rotateRootCommand() *cobra.Command {
	var in procedure.RotateRootInput
	var taskQueue, ttl, intermediateTTL string
	var detach, plan, yes bool
	cmd := &cobra.Command{
		Use:   "root MESH",
		Short: "Replace the root CA, with no handshake that fails",
		Long: `Replace the root CA of a live mesh, and the intermediate with it. What every member
presents and trusts goes from the old root to the new one in steps that never cut
anybody off: the new root is put into the agents' trust, every certificate is issued
with a chain that leads to both roots (over a bridge: the new root's key, signed by
the old root), the server comes to trust the new root's key, the bridge goes, and the
old root is taken out of the agents' trust. Before each step it is proven that nobody
still has, or may still get, what the step would cut off.

It asks before each phase, or as --approval says: "relaypki approve" lets it go on,
"relaypki rollback" takes it back from wherever it is until it is over. The same
command again goes on after a failure, or after the run was lost.

The new CAs are like the previous ones but for what the flags say; the mesh's record
says so too once the rotation is over, and the mesh's file should.

Before the old root is dropped, the Secrets and ConfigMaps that hold it and are not
the mesh's own are listed, and the rotation waits. With --consumers-ok it does not.

Where the root is kept outside Vault (pki.root.kept: offline), it waits in its first
phase until people have made the new root and signed the bridge and the intermediate:
"relaypki csr" says how, "relaypki submit" hands in all three certificates. At the end
the mesh's file has to be given the new root's certificate (pki.root.certificatePEM).

With --delete-old-keys the previous root's and intermediate's keys are deleted once
the rotation is over, when you have approved it.

With --plan nothing is changed: it shows phase by phase who presents and who trusts
what, and refuses a rotation that would cut anybody off.`,
		Example: `  relaypki rotate root demo --plan
  relaypki rotate root demo --snapshot "vault-2026-11-26.snap, in the safe"
  # From RSA to EC, for ten years:
  relaypki rotate root demo --key-type ec --ttl 87600h --intermediate-key-type ec
  # Asked before the server and the agents trust something else, and not before the rest:
  relaypki rotate root demo --approval afterCanary
  # As commands, for a review:
  relaypki rotate root demo --plan -o commands > rotate.sh`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: c.completeMesh,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !meshName.MatchString(args[0]) {
				return badInput(c.again("status"), "%q is not the name of a mesh", args[0])
			}
			in.Mesh, in.Plan = args[0], plan
			problems := append(in.Validate(), setTTL(&in.Root, ttl, "root.ttl")...)
			problems = append(problems, setTTL(&in.Intermediate, intermediateTTL, "intermediate.ttl")...)
			if len(problems) == 0 && in.DeleteOldKeys && !plan {
				if err := c.confirm(cmd, yes, danger{
					question:    fmt.Sprintf("Have the keys of mesh %s's previous root and intermediate deleted at the end?", in.Mesh),
					consequence: "It is asked for once more then. Without their keys those CAs can never be at work again.",
				}); err != nil {
					return err
				}
			}
			return c.launchMember(cmd, problems, in, launch{
				procedure: procedure.RotateRootCA, id: planID(procedure.ID(procedure.RotateRootCA, in.Mesh), plan), taskQueue: taskQueue, detach: detach,
				summary: "Rotate the root CA of mesh " + in.Mesh,
				again: c.onceMore(cmd, args, "approval", "snapshot", "common-name", "ttl", "key-type", "key-bits", "intermediate-ttl", "intermediate-key-type", "intermediate-key-bits",
					"consumers-ok", "delete-old-keys", "yes"),
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&in.Approval, "approval", "", `none, afterCanary or eachPhase (default "eachPhase", whatever rotation.approval says)`)
	flags.StringVar(&in.Snapshot, "snapshot", "", "your word that Vault can be restored to now: where the snapshot is")
	flags.StringVar(&ttl, "ttl", "", "how long the new root lives (default: as the previous one)")
	flags.StringVar(&in.Root.CommonName, "common-name", "", "its common name, to which the generation is added (default: as the first root's)")
	flags.StringVar(&in.Root.KeyType, "key-type", "", "its key: rsa or ec (default: as the previous one)")
	flags.IntVar(&in.Root.KeyBits, "key-bits", 0, "its key's size (default: the usual one of its type)")
	flags.StringVar(&intermediateTTL, "intermediate-ttl", "", "how long the new intermediate lives (default: as the previous one)")
	flags.StringVar(&in.Intermediate.KeyType, "intermediate-key-type", "", "its key: rsa or ec (default: as the previous one)")
	flags.IntVar(&in.Intermediate.KeyBits, "intermediate-key-bits", 0, "its key's size (default: the usual one of its type)")
	flags.BoolVar(&in.Consumers, "consumers-ok", false, "your word that whatever else holds the old root may lose it")
	flags.BoolVar(&in.DeleteOldKeys, "delete-old-keys", false, "have the previous root's and intermediate's keys deleted once the rotation is over, which then has to be approved")
	yesFlag(cmd, &yes)
	rotateFlags(cmd, &taskQueue, &detach, &plan)
	// These fail only if there is no such flag.
	_ = cmd.RegisterFlagCompletionFunc("approval", cobra.FixedCompletions([]string{mesh.ApprovalNone, mesh.ApprovalAfterCanary, mesh.ApprovalEachPhase}, nothingElse))
	for _, name := range []string{"key-type", "intermediate-key-type"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions([]string{"rsa", "ec"}, nothingElse))
	}
	for _, name := range []string{"snapshot", "ttl", "key-bits", "intermediate-ttl", "intermediate-key-bits"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return cmd
}
