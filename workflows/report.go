package workflows

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

var (
	attributeMesh    = temporal.NewSearchAttributeKeyKeyword(procedure.AttributeMesh)
	attributeCluster = temporal.NewSearchAttributeKeyKeyword(procedure.AttributeCluster)
	attributePhase   = temporal.NewSearchAttributeKeyKeyword(procedure.AttributePhase)
)

// report is what a run says of itself while it runs: the answer to the
// progress query, the current details in the UI, the search attributes.
type report struct {
	procedure.Progress
	// attributes says that the search attributes are registered. Setting one
	// that is not makes the workflow task fail for ever, so whoever sets this
	// has it from an activity's result.
	attributes bool
	// phased: steps say of which phase they are.
	phased bool
	// held is what only a person can end, whatever else is said meanwhile.
	held string
}

func newReport(ctx workflow.Context, p procedure.Progress) (*report, error) {
	r := &report{Progress: p}
	err := workflow.SetQueryHandlerWithOptions(ctx, procedure.ProgressQuery,
		func() (procedure.Progress, error) { return r.Progress, nil },
		workflow.QueryHandlerOptions{Description: "How far this procedure is: phase, steps, clusters, what it waits for."})
	r.show(ctx)
	return r, err
}

// show puts the progress into the UI.
func (r *report) show(ctx workflow.Context) {
	workflow.SetCurrentDetails(ctx, markdown(r.Progress))
}

// phase begins a phase.
func (r *report) phase(ctx workflow.Context, name string) error {
	r.Phase = name
	r.show(ctx)
	if !r.attributes {
		return nil
	}
	updates := []temporal.SearchAttributeUpdate{attributeMesh.ValueSet(r.Mesh), attributePhase.ValueSet(name)}
	if r.Cluster != "" {
		updates = append(updates, attributeCluster.ValueSet(r.Cluster))
	}
	return workflow.UpsertTypedSearchAttributes(ctx, updates...)
}

// await says what the procedure waits for, or that it no longer does.
func (r *report) await(ctx workflow.Context, what string) {
	r.Awaiting = what
	r.show(ctx)
}

// hold says that the procedure waits for a person, until it is called with "".
func (r *report) hold(ctx workflow.Context, what string) {
	r.held, r.Person = what, what != ""
	r.await(ctx, what)
}

// begin adds a step that runs from now on and returns its index.
func (r *report) begin(ctx workflow.Context, name string) int {
	step := procedure.Step{Name: name, State: procedure.Running, Started: workflow.Now(ctx)}
	if r.phased {
		step.Phase = r.Phase
	}
	r.Steps = append(r.Steps, step)
	r.show(ctx)
	return len(r.Steps) - 1
}

// end closes a step with what became of it.
func (r *report) end(ctx workflow.Context, step int, outcome procedure.Outcome, err error) {
	s := &r.Steps[step]
	s.Ended = workflow.Now(ctx)
	s.State, s.Detail = outcome.State(), outcome.Detail
	if err != nil {
		s.State, s.Detail = procedure.Failed, failure.Message(err)
	}
	r.show(ctx)
}

// busy says that a step or a cluster is under way.
func (r *report) busy() bool {
	return slices.ContainsFunc(r.Steps, func(s procedure.Step) bool { return s.State == procedure.Running }) ||
		slices.ContainsFunc(r.Clusters, func(c procedure.ClusterProgress) bool { return c.State == procedure.Running })
}

// cluster notes a cluster's state in the parent's table.
func (r *report) cluster(ctx workflow.Context, name string, state procedure.State, detail string) {
	c := r.of(name)
	c.State, c.Detail = state, detail
	c.Told = c.Told && state == procedure.Parked
	r.show(ctx)
}

// of is the cluster's row in the parent's table, or, if it has none, one that nobody
// sees.
func (r *report) of(name string) *procedure.ClusterProgress {
	for i := range r.Clusters {
		if r.Clusters[i].Cluster == name {
			return &r.Clusters[i]
		}
	}
	return &procedure.ClusterProgress{}
}

// finish closes the report and turns a failure into the error that ends the
// run: the kind of the first cause, its text, and the whole report as details.
func (r *report) finish(ctx workflow.Context, err error) error {
	r.Ended = true
	if err == nil {
		r.Phase = "done"
		r.show(ctx)
		return nil
	}
	r.Problem = failure.Message(err)
	r.show(ctx)
	if temporal.IsCanceledError(err) {
		return err
	}
	kind := failure.KindOf(err)
	if kind == "" {
		kind = failure.Unavailable
	}
	return failure.PermanentWithDetails(kind, r.Problem, r.Progress)
}

// markdown is the progress for the UI's current details: first what is
// awaited, then the clusters, then the steps.
func markdown(p procedure.Progress) string {
	var b strings.Builder
	switch {
	case p.Problem != "":
		b.WriteString(fmt.Sprintf("**Failed:** %s\n\n", verbatim(p.Problem)))
	case p.Awaiting != "":
		b.WriteString(fmt.Sprintf("**Waiting:** %s\n\n", verbatim(p.Awaiting)))
	case p.Ended:
		b.WriteString(fmt.Sprintf("**Done.** Mesh `%s`\n\n", p.Mesh))
	default:
		b.WriteString(fmt.Sprintf("**%s** of mesh `%s`: %s\n\n", p.Procedure, p.Mesh, p.Phase))
	}
	if len(p.Clusters) > 0 {
		shown, hidden := urgent(p.Clusters, mostRows)
		b.WriteString("| cluster | state | detail |\n|---|---|---|\n")
		for _, c := range shown {
			b.WriteString(fmt.Sprintf("| %s | %s | %s |\n", c.Cluster, sign(c.State), cell(c.Detail)))
		}
		b.WriteString("\n")
		if hidden != "" {
			b.WriteString("and " + hidden + "\n\n")
		}
	}
	if len(p.Steps) > 0 {
		b.WriteString("| step | state | detail |\n|---|---|---|\n")
		for _, s := range p.Steps {
			b.WriteString(fmt.Sprintf("| %s | %s | %s |\n", s.Name, sign(s.State), cell(s.Detail)))
		}
	}
	return b.String()
}

// mostRows is how many clusters the table in the UI shows.
const mostRows = 60

// urgent are the clusters to show if there is room for so many: all, or those
// that somebody may want to look at, with a count of the others.
func urgent(clusters []procedure.ClusterProgress, room int) (shown []procedure.ClusterProgress, hidden string) {
	if len(clusters) <= room {
		return clusters, ""
	}
	order := []procedure.State{procedure.Parked, procedure.Failed, procedure.Running, procedure.Skipped, procedure.Pending, procedure.Done, procedure.UpToDate}
	var counts []string
	for _, state := range order {
		left := 0
		for _, c := range clusters {
			switch {
			case c.State != state:
			case len(shown) < room:
				shown = append(shown, c)
			default:
				left++
			}
		}
		if left > 0 {
			counts = append(counts, fmt.Sprintf("%d more %s", left, state))
		}
	}
	return shown, strings.Join(counts, ", ")
}

// sign is a state in a cell of its own, which is too narrow to be broken in two.
func sign(s procedure.State) string {
	return strings.ReplaceAll(symbol(s)+" "+string(s), " ", "\u00a0")
}

func symbol(s procedure.State) string {
	switch s {
	case procedure.Pending:
		return "·"
	case procedure.Running:
		return "▶"
	case procedure.Failed:
		return "✗"
	case procedure.Parked:
		return "‖"
	case procedure.Skipped:
		return "–"
	default:
		return "✓"
	}
}

// cell makes a text fit into a markdown table.
func cell(text string) string {
	return strings.NewReplacer("\n", " ", "|", "\\|").Replace(verbatim(text))
}

// command is a command in a text, up to where its sentence goes on, or what is
// marked as code already.
var command = regexp.MustCompile(`\x60[^\x60\n]*\x60|` +
	`\b(?:relaypki (?:setup|adopt|add-cluster|remove-cluster|rotate|approve|rollback|quarantine|retry|skip|resume|abort|verify|diagnose|watch|csr|submit)|kubectl|temporal operator)` +
	`(?: [^\s;:,()\x60]*[^\s;:,().\x60])+`)

// verbatim marks the commands in a text as code: in the UI's prose a "--" turns
// into a dash, and what is copied from there would not run.
func verbatim(text string) string {
	return command.ReplaceAllStringFunc(text, func(found string) string { return "`" + strings.Trim(found, "`") + "`" })
}
