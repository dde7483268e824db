package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/relaypki/relaypki/internal/procedure"
)

// completeWithin is how long a shell waits for what we propose. Without an
// answer by then, or without Temporal, nothing is proposed and nothing said.
const completeWithin = 2 * time.Second

const nothingElse = cobra.ShellCompDirectiveNoFileComp

// propose asks Temporal for proposals.
func (c *cli) propose(cmd *cobra.Command, ask func(context.Context, *server) []string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
	defer cancel()
	proposals := make(chan []string, 1)
	go func() {
		t, err := c.connect(ctx)
		if err != nil {
			proposals <- nil
			return
		}
		defer t.Close()
		proposals <- ask(ctx, t)
	}()
	select {
	case list := <-proposals:
		slices.Sort(list)
		return slices.Compact(list), nothingElse
	case <-ctx.Done():
		return nil, nothingElse
	}
}

// completeMesh proposes the meshes that procedures are known of, as the first
// argument.
func (c *cli) completeMesh(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, nothingElse
	}
	return c.propose(cmd, func(ctx context.Context, t *server) []string {
		list, _ := t.procedures(ctx, "", "") // without an answer, nothing
		return meshesOf(list)
	})
}

// completeMeshOrWorkflow proposes also the ids of the procedures.
func (c *cli) completeMeshOrWorkflow(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, nothingElse
	}
	return c.propose(cmd, func(ctx context.Context, t *server) []string {
		list, _ := t.procedures(ctx, "", "")
		names := meshesOf(list)
		for _, e := range shown(list) {
			names = append(names, e.WorkflowID)
		}
		return names
	})
}

// completeWorkflows proposes the procedures of a mesh that run.
func (c *cli) completeWorkflows(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 || !meshName.MatchString(args[0]) {
		return nil, nothingElse
	}
	return c.propose(cmd, func(ctx context.Context, t *server) []string {
		runs, _ := t.running(ctx, args[0])
		ids := make([]string, len(runs))
		for i, run := range runs {
			ids[i] = run.WorkflowID
		}
		return ids
	})
}

// completeClusters proposes a mesh, and then those of its clusters that the
// running procedures have in one of the states; without states, all clusters
// that its procedures know.
func (c *cli) completeClusters(states ...procedure.State) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return c.completeMesh(cmd, args, typed)
		}
		if !meshName.MatchString(args[0]) {
			return nil, nothingElse
		}
		return c.propose(cmd, func(ctx context.Context, t *server) []string {
			var names []string
			for _, cluster := range t.clusters(ctx, args[0], len(states) > 0) {
				if (len(states) == 0 || slices.Contains(states, cluster.State)) && !slices.Contains(args[1:], cluster.Cluster) {
					names = append(names, cluster.Cluster)
				}
			}
			return names
		})
	}
}

// completeClusterFlag proposes the clusters that the procedures of the named mesh know.
func (c *cli) completeClusterFlag(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) != 1 || !meshName.MatchString(args[0]) {
		return nil, nothingElse
	}
	return c.propose(cmd, func(ctx context.Context, t *server) []string {
		var names []string
		for _, cluster := range t.clusters(ctx, args[0], false) {
			names = append(names, cluster.Cluster)
		}
		return names
	})
}

// clusters are those in the progress of a mesh's procedures: of those that run,
// or else of the latest that has any.
func (t *server) clusters(ctx context.Context, mesh string, running bool) []procedure.ClusterProgress {
	var all []procedure.ClusterProgress
	if running {
		runs, _ := t.running(ctx, mesh)
		for _, run := range runs {
			if p, err := t.progress(ctx, run.WorkflowID); err == nil {
				all = append(all, p.Clusters...)
			}
		}
		return all
	}
	list, _ := t.list(ctx, []string{procedure.SetupMesh}, mesh, "")
	for _, e := range list {
		if p, err := t.progress(ctx, e.WorkflowID); err == nil && len(p.Clusters) > 0 {
			return p.Clusters
		}
	}
	return nil
}

func meshesOf(list []execution) []string {
	var names []string
	for _, e := range list {
		if e.Mesh != "" && !slices.Contains(names, e.Mesh) {
			names = append(names, e.Mesh)
		}
	}
	return names
}

// completeFlags proposes values of the common flags.
func (c *cli) completeFlags(root *cobra.Command) {
	// These fail only if there is no such flag.
	_ = root.RegisterFlagCompletionFunc("output", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return append([]string{"text", "json"}, strings.Fields(cmd.Annotations[outputsAnnotation])...), nothingElse
	})
	for _, flag := range []string{"address", "namespace", "profile", "timeout"} {
		_ = root.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
}

// completeMeshFile proposes files for -f.
func completeMeshFile(cmd *cobra.Command) {
	_ = cmd.MarkFlagFilename("file", "yaml", "yml", "json")
	_ = cmd.RegisterFlagCompletionFunc("task-queue", cobra.NoFileCompletions)
}
