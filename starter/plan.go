package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rotation"
)

// planFlag is the flag of a command that can show what it would do.
func planFlag(cmd *cobra.Command, plan *bool) {
	cmd.Flags().BoolVar(plan, planName, false, "change nothing: show what would be created, changed and deleted (-o commands: as vault and kubectl commands)")
}

const planName = "plan"

// outputCommands is the value of -o that prints a plan as a shell script.
const outputCommands = "commands"

// planning says that a command was called with --plan.
func planning(cmd *cobra.Command) bool {
	flag := cmd.Flags().Lookup(planName)
	return flag != nil && flag.Value.String() == "true"
}

// asPlan is the input of a procedure with plan set.
func asPlan(input json.RawMessage) (json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(input, &fields); err != nil {
		return nil, err
	}
	fields["plan"] = json.RawMessage("true")
	return json.Marshal(fields)
}

// plan is what a procedure would change: in Vault and the management cluster,
// and in each workload cluster.
type plan struct {
	mesh  string
	parts []planPart
	// kept is what a removal would leave where it is.
	kept []procedure.Kept
	// matrix is, of a rotation, who presents and trusts what in each phase.
	matrix []procedure.PhaseView
	// consumers are what else holds a root that the rotation takes out of trust.
	consumers []string
}

type planPart struct {
	name string
	// cluster is the workload cluster that it is of, if it is of one alone, and phase
	// the one of a rotation in which that has a turn in several.
	cluster, phase string
	steps          []procedure.Step
	// problem is why a cluster could not be looked at.
	problem string
}

// planOf is the plan that a run has ended with; false if it was none. The steps
// of the clusters are asked of their own procedures, as far as they have not
// been seen.
func (f *follower) planOf(e ending) (plan, bool) {
	var result struct {
		Mesh  string
		Plan  bool
		Steps []procedure.Step
		Kept  []procedure.Kept
	}
	if e.Failure != nil || json.Unmarshal(e.Result, &result) != nil || !result.Plan {
		return plan{}, false
	}
	where := "Vault and the management cluster"
	if e.Procedure == procedure.RemoveCluster {
		where = "Vault and both clusters"
	}
	p := plan{mesh: result.Mesh, kept: result.Kept, parts: []planPart{{name: where, steps: result.Steps}}}
	if rotated, ok := rotationResult(e); ok {
		p.matrix, p.consumers = rotated.Matrix, rotated.Consumers
		p.parts = f.phased(rotated, courseOf(e.Procedure, rotated.Emergency, phasesOf(rotated.Steps, rotated.Clusters)...))
		return p, true
	}
	for _, cluster := range f.view.Progress.Clusters {
		p.parts = append(p.parts, f.clusterPart(cluster))
	}
	return p, true
}

// courses are the phases of the rotations. One of leaves has some of those of an
// intermediate.
var courses = map[string]rotation.Course{
	procedure.RotateLeafCertificates: rotation.OfIntermediate,
	procedure.RotateIntermediateCA:   rotation.OfIntermediate,
	procedure.RotateRootCA:           rotation.OfRoot,
}

// emergencies are the courses of an emergency, those with containment first at the end.
var emergencies = []rotation.Course{rotation.OfLeaf, rotation.OfPinning, rotation.OfNewRoot, rotation.OfLift, rotation.OfPinningAtOnce, rotation.OfNewRootAtOnce}

// courseOf is the course of a rotation. Which of its courses an emergency takes depends
// on what the mesh was in, and is seen by the phases that are named.
func courseOf(name string, e *procedure.Emergency, named ...rotation.Phase) rotation.Course {
	if name != procedure.EmergencyReissue {
		return courses[name]
	}
	likely := slices.Clone(emergencies)
	if e != nil && e.First == procedure.ContainmentFirst {
		slices.Reverse(likely)
	}
	for _, course := range likely {
		if !slices.ContainsFunc(named, func(p rotation.Phase) bool { return p != "" && course.Does(p) == "" }) {
			return course
		}
	}
	return nil
}

// phasesOf are those that steps and clusters' turns are of.
func phasesOf(steps []procedure.Step, turns []procedure.ClusterResult) []rotation.Phase {
	var phases []rotation.Phase
	for _, step := range steps {
		phases = append(phases, rotation.Phase(step.Phase))
	}
	for _, turn := range turns {
		phases = append(phases, rotation.Phase(turn.Phase))
	}
	return phases
}

// phased are the parts of a rotation's plan, in the order in which they are done:
// each phase that has its turn in the clusters has steps of its own there.
func (f *follower) phased(r procedure.RotateResult, course rotation.Course) []planPart {
	var parts []planPart
	first := true // of the phases in which the clusters have their turn
	for phase, more := rotation.PhasePreflight, true; more; phase, more = course.Next(phase) {
		part := planPart{name: string(phase)}
		for _, step := range r.Steps {
			if step.Phase == string(phase) {
				part.steps = append(part.steps, step)
			}
		}
		// That there is nothing to do says little where the clusters have their turn.
		if len(part.steps) > 0 && (len(part.changes()) > 0 || !slices.Contains(overClusters, phase)) {
			parts = append(parts, part)
		}
		for _, cluster := range f.view.Progress.Clusters {
			canary := slices.Contains(r.Canary, cluster.Cluster)
			switch {
			case canary && phase == rotation.PhaseCanary, !canary && phase == rotation.PhaseFleet:
				parts = append(parts, f.clusterPart(cluster))
			case slices.Contains(overClusters, phase):
				if part := f.phasePart(r, cluster, phase, first); len(part.steps) > 0 || part.problem != "" {
					parts = append(parts, part)
				}
			}
		}
		first = first && !slices.Contains(overClusters, phase)
	}
	return parts
}

// overClusters are the phases of the rotation of a root, and of an emergency, that have
// work in each cluster.
var overClusters = []rotation.Phase{rotation.PhaseTrust, rotation.PhaseBridge, rotation.PhasePivot, rotation.PhaseCommit, rotation.PhaseContract,
	rotation.PhaseReissue, rotation.PhaseLink, rotation.PhasePin, rotation.PhaseCut, rotation.PhaseLift}

// phasePart is what would be done in one cluster in one phase, which a procedure of
// its own has planned. Why that cannot be seen is said once.
func (f *follower) phasePart(r procedure.RotateResult, cluster procedure.ClusterProgress, phase rotation.Phase, first bool) planPart {
	part := planPart{name: cluster.Cluster + ", " + string(phase), cluster: cluster.Cluster, phase: string(phase)}
	if unseen(cluster) {
		if first {
			part.problem = cluster.Detail
		}
		return part
	}
	for _, planned := range r.Clusters {
		if planned.Cluster == cluster.Cluster && planned.Phase == string(phase) {
			cluster.Workflow = planned.Workflow
			of := f.clusterPart(cluster)
			part.steps, part.problem = of.steps, of.problem
		}
	}
	return part
}

// unseen says that a plan could not look at the cluster, or was not to.
func unseen(cluster procedure.ClusterProgress) bool {
	return cluster.State == procedure.Failed || cluster.State == procedure.Parked || cluster.State == procedure.Skipped
}

// clusterPart is what would be done in one cluster.
func (f *follower) clusterPart(cluster procedure.ClusterProgress) planPart {
	part := planPart{name: cluster.Cluster, cluster: cluster.Cluster}
	switch child, seen := f.view.Children[cluster.Workflow]; {
	case unseen(cluster):
		part.problem = cluster.Detail
	case seen && child.Ended:
		part.steps = child.Steps
	default:
		ctx, cancel := context.WithTimeout(context.Background(), callTime)
		child, err := f.server.progress(ctx, cluster.Workflow)
		cancel()
		if part.steps = child.Steps; err != nil {
			part.problem = fmt.Sprintf("its plan cannot be read: %v", err)
		}
	}
	return part
}

// concludePlan prints a plan. The command that makes the plan anew is the one
// that carries it out, with one flag more.
func (c *cli) concludePlan(e ending, p plan, planAgain string) error {
	again := strings.TrimSuffix(planAgain, " --"+planName)
	switch c.output {
	case outputCommands:
		p.script(c.out, time.Now(), again)
	case "json":
		if err := c.printJSON(p.document(e)); err != nil {
			return err
		}
	default:
		if len(p.matrix) > 0 {
			c.paper().matrix(c.out, p.matrix)
		}
		c.paper().plan(c.out, p)
		c.paper().kept(c.out, p.kept)
		if len(p.consumers) > 0 {
			c.paper().print(c.out, 0, span{"What else holds the old root, to be looked after before contract:", yellow})
			for _, consumer := range p.consumers {
				c.paper().print(c.out, 2, span{tidy(consumer), plain})
			}
		}
		if again != "" {
			fmt.Fprintf(c.out, "Next: %s\n      %s -o commands\n", again, planAgain)
		}
	}
	clusters, missing := map[string]bool{}, 0
	for _, part := range p.parts {
		if part.cluster != "" {
			clusters[part.cluster] = true
		}
		if part.problem != "" {
			missing++
		}
	}
	if missing > 0 {
		return &exitError{code: exitFailed, err: fmt.Errorf("%d of %d clusters could not be looked at", missing, len(clusters)), next: strings.TrimSpace("put it right, then: " + planAgain)}
	}
	return nil
}

// document is the ending with the steps of every cluster.
func (p plan) document(e ending) any {
	clusters := []map[string]any{}
	for _, part := range p.parts {
		if part.cluster == "" {
			continue
		}
		entry := map[string]any{"cluster": part.cluster, "steps": part.steps}
		if part.phase != "" {
			entry["phase"] = part.phase
		}
		if part.problem != "" {
			entry["problem"] = part.problem
		}
		clusters = append(clusters, entry)
	}
	var result map[string]any
	if json.Unmarshal(e.Result, &result) != nil {
		return e
	}
	result["clusters"] = clusters
	return struct {
		ending
		Result map[string]any `json:"result"`
	}{e, result}
}

// changes are those of all steps.
func (part planPart) changes() []procedure.Change {
	var all []procedure.Change
	for _, s := range part.steps {
		all = append(all, s.Changes...)
	}
	return all
}

// count is how much would be done, in words; empty for nothing.
func count(changes []procedure.Change) string {
	of := map[procedure.Verb]int{}
	for _, c := range changes {
		of[c.Verb]++
	}
	var words []string
	for _, verb := range []procedure.Verb{procedure.Create, procedure.Update, procedure.Delete} {
		if of[verb] > 0 {
			words = append(words, fmt.Sprintf("%d to %s", of[verb], verb))
		}
	}
	return strings.Join(words, ", ")
}

var verbStyles = map[procedure.Verb]style{procedure.Create: green, procedure.Update: yellow, procedure.Delete: red}

// notReady begins the detail of a step that found something which is as
// described and does not work.
const notReady = "not ready: "

func (p paper) plan(w io.Writer, pl plan) {
	var all []procedure.Change
	var same []string
	for _, part := range pl.parts {
		changes := part.changes()
		all = append(all, changes...)
		left := 0
		var notes []string
		for _, s := range part.steps {
			if len(s.Changes) == 0 {
				left++
			}
			if strings.HasPrefix(s.Detail, notReady) {
				notes = append(notes, s.Name+": "+s.Detail)
			}
		}
		if len(changes) == 0 && part.problem == "" && len(notes) == 0 {
			same = append(same, part.name)
			continue
		}
		title := count(changes)
		switch {
		case part.problem != "":
			title = "could not be looked at"
		case title == "":
			title = "nothing to change"
		default:
			title += fmt.Sprintf("; %d of %d steps find all as described", left, len(part.steps))
		}
		p.print(w, 0, span{tidy(part.name), bold}, span{": " + title, plain})
		if len(changes) > 0 {
			rows := [][]span{{{"WOULD", dim}, {"WHAT", dim}, {"DETAIL", dim}}}
			for _, c := range changes {
				rows = append(rows, []span{{string(c.Verb), verbStyles[c.Verb]}, {tidy(c.Object), plain}, {tidy(c.Detail), dim}})
			}
			p.table(w, 2, rows)
		}
		for _, note := range append(notes, part.problem) {
			if note != "" {
				p.print(w, 2, span{tidy(note), yellow})
			}
		}
		fmt.Fprintln(w)
	}
	if len(same) > 0 {
		p.print(w, 0, span{"Nothing to change: " + strings.Join(same, ", ") + ".", plain})
	}
	total := count(all)
	if total == "" {
		total = "nothing would be changed"
	}
	p.print(w, 0, span{fmt.Sprintf("Plan of mesh %s: %s. Nothing was changed.", pl.mesh, total), bold})
}

// script is the plan as a shell script, cluster by cluster in the order in which
// the changes build on one another.
func (p plan) script(w io.Writer, at time.Time, again string) {
	remark := func(format string, args ...any) { fmt.Fprintln(w, "# "+tidy(fmt.Sprintf(format, args...))) }
	fmt.Fprintln(w, "#!/usr/bin/env bash")
	remark("Plan of mesh %s at %s: what would be changed, as commands for a shell.", p.mesh, at.UTC().Format(time.RFC3339))
	remark("Needs vault (VAULT_ADDR, and a token that may do all of this), kubectl, and helm for charts;")
	remark("contexts are those of the worker's kubeconfig. Run it once, soon: it is of that moment.")
	if again != "" {
		remark("Afterwards, or if it stops: %s, which finds what is done.", again)
	}
	if len(p.consumers) > 0 {
		remark("What else holds the old root, to be looked after before the parts of contract are run:")
		for _, consumer := range p.consumers {
			remark("- %s", consumer)
		}
	}
	fmt.Fprintln(w, "set -euo pipefail")
	for _, part := range p.parts {
		fmt.Fprintln(w)
		remark("---- %s", part.name)
		if part.problem != "" {
			remark("could not be looked at: %s", part.problem)
			continue
		}
		if len(part.changes()) == 0 {
			remark("nothing to change")
		}
		for _, step := range part.steps {
			for _, change := range step.Changes {
				fmt.Fprintln(w)
				what := fmt.Sprintf("%s: %s %s", step.Name, change.Verb, change.Object)
				if change.Detail != "" {
					what += " (" + change.Detail + ")"
				}
				remark("%s", what)
				if len(change.Commands) == 0 {
					remark("relaypki does this itself")
				}
				for _, command := range change.Commands {
					fmt.Fprintln(w, command)
				}
			}
		}
	}
}
