package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/shell"
	"github.com/relaypki/relaypki/internal/strict"
)

// severity is how grave a finding is, in the words of "vault pki health-check".
type severity string

const (
	critical      severity = "critical"
	denied        severity = "denied" // nothing was seen: the worker lacks the right to look
	warning       severity = "warning"
	informational severity = "informational"
)

// severities are all of them, the gravest first: the order in which one of them gives
// the exit code.
var severities = []severity{critical, denied, warning, informational}

func severityOf(f check.Finding) severity {
	switch {
	case f.Denied:
		return denied
	case f.Status == check.Fail:
		return critical
	case f.Status == check.Warn:
		return warning
	}
	return informational
}

// exit is the exit code of a severity.
func (s severity) exit() int {
	return map[severity]int{critical: exitUnhealthy, denied: exitDenied, warning: exitWarnings, informational: exitNotes}[s]
}

// word is the severity in a table, and label how it looks.
func (s severity) word() string {
	if s == denied {
		return "not seen"
	}
	return string(s)
}

func (s severity) label() span {
	return span{s.word(), map[severity]style{critical: red, denied: yellow, warning: yellow, informational: cyan}[s]}
}

func (c *cli) diagnoseCommand() *cobra.Command {
	var file, taskQueue, within, failOn string
	var clusters []string
	var detach, fix, yes bool
	cmd := &cobra.Command{
		Use:   "diagnose [MESH | -f mesh.yaml]",
		Short: "Find out what is wrong with a mesh, and mend what can be",
		Long: `Look at the management cluster and every workload cluster, all at once, and say what is
wrong: on which cluster and object, by what it is seen (a condition, an event, a line of
a log, a field of a certificate), and what to do about it, as commands. It changes
nothing, works while something else is at work on the mesh, and names a cluster that
does not answer without waiting for it any longer than --cluster-timeout.

With --fix it shows what relaypki can mend of it, and asks; then that is made by the
usual procedures, which hold the usual locks, and the mesh is looked at again:
  setup    SetupMesh with the mesh's recorded spec: what is missing or differs is made again
  reissue  RotateLeafCertificates: a new certificate, and what uses it takes it up
  restart  the agent, or the management server, if it is older than its Secrets

Findings are critical, warnings or informational, as in "vault pki health-check". The exit
code is that of the gravest; after --fix, of what is left:
  0  nothing is wrong
  4  critical
  6  the worker was not let look at something, and nothing is critical
  7  warnings
  8  informational
With --fail-on warning, what is informational is 0 too; with --fail-on critical, warnings
are as well. That something was not looked at is never 0. 1, 2, 3 and 130 are as with
every command.`,
		Example: `  relaypki diagnose demo
  # Of these clusters alone, besides the management cluster:
  relaypki diagnose demo --cluster cluster1 --cluster cluster2
  # Show what can be mended, ask, and mend it:
  relaypki diagnose demo --fix
  # For a script: the commands that put right what is critical:
  relaypki diagnose demo -o json --fail-on critical | jq -r '.result.findings[] | select(.severity == "critical") | .commands[]?'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeMesh,
		RunE: func(cmd *cobra.Command, args []string) error {
			of, err := c.meshOf(cmd, args, file)
			if err != nil {
				return err
			}
			d := &diagnosing{cli: c, cmd: cmd, mesh: of.Mesh, file: file, clusters: clusters, within: within, failOn: severity(failOn), taskQueue: taskQueue, detach: detach, yes: yes}
			d.start = d.launch
			if !slices.Contains(failOns, d.failOn) {
				return badInput(d.again(), "--fail-on %s is unknown; it is critical, warning or informational", failOn)
			}
			if fix && detach {
				return badInput(d.again("--fix"), "--fix shows what it would do and asks; it cannot be detached")
			}
			in := procedure.DiagnoseInput{Mesh: of.Mesh, Management: of.Management, Namespace: of.Namespace, Clusters: clusters}
			var problems []strict.Problem
			if within != "" {
				if in.Timeout, err = mesh.ParseDuration(within); err != nil {
					problems = append(problems, strict.Problem{Path: "timeout", Message: err.Error()})
				}
			}
			if problems = append(problems, in.Validate()...); len(problems) > 0 {
				return c.rejectCommand(cmd, problems)
			}
			if fix {
				return d.fix(in)
			}
			return d.start(in, d.conclude)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the mesh's file, in place of its name")
	cmd.Flags().StringArrayVar(&clusters, "cluster", nil, "look at this workload cluster alone, and the management cluster; may be given more than once")
	cmd.Flags().StringVar(&within, "cluster-timeout", "", "how long one cluster is looked at before it is said not to answer (default 20s)")
	cmd.Flags().StringVar(&failOn, "fail-on", string(informational), "what gives an exit code other than 0: critical, warning or informational, and all that is graver")
	cmd.Flags().BoolVar(&fix, "fix", false, "show what relaypki can mend, ask, and mend it")
	cmd.Flags().StringVar(&taskQueue, "task-queue", procedure.TaskQueue, "task queue of the worker")
	cmd.Flags().BoolVar(&detach, "detach", false, "start it and return")
	yesFlag(cmd, &yes)
	completeMeshFile(cmd)
	// These fail only if there is no such flag.
	_ = cmd.RegisterFlagCompletionFunc("cluster", c.completeClusterFlag)
	_ = cmd.RegisterFlagCompletionFunc("cluster-timeout", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("fail-on", cobra.FixedCompletions([]string{string(critical), string(warning), string(informational)}, nothingElse))
	return cmd
}

// failOns are the values of --fail-on.
var failOns = []severity{critical, warning, informational}

// diagnosing is one call of the command; of a diagnosis that is only watched it has
// the mesh alone.
type diagnosing struct {
	cli               *cli
	cmd               *cobra.Command
	mesh, file        string
	clusters          []string
	within, taskQueue string
	failOn            severity
	detach, yes       bool
	// asked are the mends that were chosen.
	asked []check.Mend
	// start has a diagnosis made, and its end told.
	start func(procedure.DiagnoseInput, func(ending, *follower) error) error
}

// again is the same command once more, with other flags.
func (d *diagnosing) again(flags ...string) string {
	words := []string{"diagnose"}
	if d.file != "" {
		words = append(words, shell.Join("-f", d.file))
	} else {
		words = append(words, d.mesh)
	}
	for _, cluster := range d.clusters {
		words = append(words, shell.Join("--cluster", cluster))
	}
	if d.within != "" {
		words = append(words, shell.Join("--cluster-timeout", d.within))
	}
	return d.cli.again(append(words, flags...)...)
}

func (d *diagnosing) launch(in procedure.DiagnoseInput, conclude func(ending, *follower) error) error {
	data, err := json.Marshal(in)
	if err != nil {
		return err
	}
	summary := "Diagnose mesh " + d.mesh
	if len(in.Mend) > 0 {
		summary += ", and mend it"
	}
	return d.cli.launch(d.cmd.Context(), launch{
		procedure: procedure.DiagnoseMesh, id: "diagnose-" + d.mesh + "-" + time.Now().UTC().Format("20060102T150405.000Z"), taskQueue: d.taskQueue,
		input: data, detach: d.detach, summary: summary, again: d.again(), conclude: conclude,
	})
}

// fix diagnoses, shows what can be mended, asks, and has it mended. With -o json there
// is one document: that of the mending, or of the diagnosis if there is nothing to mend.
func (d *diagnosing) fix(in procedure.DiagnoseInput) error {
	nothing := false // is there to mend, and the end was told
	var first procedure.DiagnoseResult
	if err := d.start(in, func(e ending, f *follower) error {
		var ok bool
		if first, ok = diagnosisResult(e); !ok || len(first.Offered) == 0 {
			nothing = true
			return d.conclude(e, f)
		}
		if !d.cli.json() {
			d.cli.paper().diagnosis(d.cli.out, first, d)
		}
		return nil
	}); err != nil || nothing {
		return err
	}
	if out := d.cli.out; !d.cli.json() || !d.yes {
		if d.cli.json() {
			out = d.cli.err
		}
		paperOn(out).mends(out, first)
	}
	if err := d.cli.confirm(d.cmd, d.yes, danger{
		question:    fmt.Sprintf("Mend mesh %s?", d.mesh),
		consequence: "That is made by relaypki's usual procedures, and nothing else is changed. What relaypki cannot mend stays as it is.",
	}); err != nil {
		return err
	}
	in.Mend, d.asked = first.Offered, first.Offered
	return d.start(in, d.conclude)
}

// diagnosisResult is what a diagnosis has found; false if it could not look, or is
// none.
func diagnosisResult(e ending) (procedure.DiagnoseResult, bool) {
	var r procedure.DiagnoseResult
	return r, e.Procedure == procedure.DiagnoseMesh && e.Failure == nil && json.Unmarshal(e.Result, &r) == nil && r.Mesh != ""
}

// conclude prints what was mended and what is found. Its error has the exit code of
// the gravest.
func (d *diagnosing) conclude(e ending, f *follower) error {
	r, ok := diagnosisResult(e)
	if !ok {
		return d.cli.conclude(e, f)
	}
	if d.cli.json() {
		if err := d.cli.printJSON(documentOf(e, r)); err != nil {
			return err
		}
	} else {
		p := d.cli.paper()
		p.mended(d.cli.out, r, d.asked)
		p.diagnosis(d.cli.out, r, d)
	}
	next := "do what the findings say, then: " + d.again()
	if len(r.Offered) > 0 && len(r.Mended) == 0 {
		next = d.again("--fix")
	}
	for _, s := range severities {
		if slices.Contains(severitiesOf(r.Findings), s) && d.counts(s) {
			return &exitError{code: s.exit(), err: fmt.Errorf("mesh %s: %s", r.Mesh, tally(r)), next: next}
		}
	}
	if len(r.Findings) > 0 {
		d.cli.say("Next: %s", next)
	}
	return nil
}

// counts says that a finding of that severity gives an exit code of its own.
func (d *diagnosing) counts(s severity) bool {
	return s == denied || slices.Index(failOns, s) <= slices.Index(failOns, d.failOn)
}

func severitiesOf(findings []check.Finding) []severity {
	all := make([]severity, len(findings))
	for i, f := range findings {
		all[i] = severityOf(f)
	}
	return all
}

// tally counts the findings by severity, in words.
func tally(r procedure.DiagnoseResult) string {
	count := map[severity]int{}
	for _, s := range severitiesOf(r.Findings) {
		count[s]++
	}
	var words []string
	for _, s := range severities {
		if count[s] > 0 {
			words = append(words, fmt.Sprintf("%d %s", count[s], s.word()))
		}
	}
	if r.More > 0 {
		words = append(words, fmt.Sprintf("%d more", r.More))
	}
	return strings.Join(words, ", ")
}

// weighed is a finding with its severity.
type weighed struct {
	Severity severity `json:"severity"`
	check.Finding
}

func weigh(findings []check.Finding) []weighed {
	out := make([]weighed, len(findings))
	for i, f := range findings {
		out[i] = weighed{severityOf(f), f}
	}
	return out
}

// documentOf is the ending with each finding's severity, and that of the gravest.
func documentOf(e ending, r procedure.DiagnoseResult) any {
	type result struct {
		procedure.DiagnoseResult
		Severity severity  `json:"severity,omitempty"`
		Findings []weighed `json:"findings"`
		Before   []weighed `json:"before,omitempty"`
	}
	out := result{DiagnoseResult: r, Findings: weigh(r.Findings), Before: weigh(r.Before)}
	for _, s := range severities {
		if out.Severity == "" && slices.Contains(severitiesOf(r.Findings), s) {
			out.Severity = s
		}
	}
	return struct {
		ending
		Result result `json:"result"`
	}{e, out}
}

// diagnosis prints the findings, the gravest first, and how many there are of each
// cluster.
func (p paper) diagnosis(w io.Writer, r procedure.DiagnoseResult, d *diagnosing) {
	if r.StandIn {
		defer p.print(w, 0, span{"The management server is the lab's stand-in, not Gloo Mesh.", dim})
	}
	if len(r.Findings) == 0 {
		p.print(w, 0, span{fmt.Sprintf("Mesh %s: nothing is wrong: %d checks.", r.Mesh, r.Checks), green})
		return
	}
	for _, f := range r.Findings {
		p.finding(w, f, d)
	}
	columns := slices.DeleteFunc(slices.Clone(severities), func(s severity) bool {
		return s == denied && !slices.Contains(severitiesOf(r.Findings), denied)
	})
	rows := [][]span{{{"CLUSTER", dim}}}
	for _, s := range columns {
		rows[0] = append(rows[0], span{strings.ToUpper(s.word()), dim})
	}
	for _, cluster := range clustersOf(r.Findings) {
		row := []span{{tidy(cluster), bold}}
		for _, s := range columns {
			n := 0
			for _, f := range r.Findings {
				if f.Cluster == cluster && severityOf(f) == s {
					n++
				}
			}
			cell := span{"-", dim}
			if n > 0 {
				cell = span{fmt.Sprint(n), s.label().style}
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	p.table(w, 0, rows)
	fmt.Fprintln(w)
	p.print(w, 0, span{fmt.Sprintf("%d of %d checks pass.", r.Checks-len(r.Findings)-r.More, r.Checks), plain})
	if r.More > 0 {
		p.print(w, 0, span{fmt.Sprintf("There are %d findings more, which are no graver; --cluster has those of one cluster.", r.More), yellow})
	}
}

// clustersOf are the clusters that findings are of, in the order of the findings.
func clustersOf(findings []check.Finding) []string {
	var names []string
	for _, f := range findings {
		if !slices.Contains(names, f.Cluster) {
			names = append(names, f.Cluster)
		}
	}
	return names
}

// finding prints one: what is wrong and where, by what it is seen, and what to do.
func (p paper) finding(w io.Writer, f check.Finding, d *diagnosing) {
	head := []span{severityOf(f).label(), {"  " + tidy(f.Cluster), bold}, {"  " + tidy(f.Check), plain}}
	if f.Object != "" {
		head = append(head, span{"  " + tidy(f.Object), plain})
	}
	p.print(w, 0, head...)
	p.print(w, 2, span{tidy(f.Message), plain})
	for _, line := range f.Evidence {
		p.print(w, 4, span{tidy(line), dim})
	}
	if f.Remedy != "" {
		p.print(w, 2, span{"do: " + tidy(f.Remedy), yellow})
	}
	for _, command := range f.Commands {
		// Not wrapped: it is there to be copied.
		for line := range strings.SplitSeq(command, "\n") {
			fmt.Fprintln(w, "    "+printable(line))
		}
	}
	if m, ok := procedure.Offered(f); ok {
		p.print(w, 2, span{"relaypki can mend this: " + does(m), green}, span{" (" + d.again("--fix") + ")", dim})
	}
	fmt.Fprintln(w)
}

// printable is a line as it is, without what would steer a terminal.
func printable(line string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, line)
}

// does says what a mend does.
func does(m check.Mend) string {
	switch m.Do {
	case check.SetUp:
		return "set the mesh up again as it is recorded"
	case check.Reissue:
		return "issue the certificate of " + m.Cluster + " anew"
	}
	return "restart the relay in " + m.Cluster
}

// mends shows what would be mended, in order, and which findings each is for.
func (p paper) mends(w io.Writer, r procedure.DiagnoseResult) {
	p.print(w, 0, span{"relaypki would mend, in this order:", bold})
	rows := [][]span{{{"MEND", dim}, {"DOES", dim}, {"FOR", dim}}}
	for _, do := range procedure.Doings {
		var clusters, reasons []string
		offered := false
		for _, m := range r.Offered {
			if m.Do != do {
				continue
			}
			offered = true
			clusters = append(clusters, m.Cluster)
			for _, f := range r.Findings {
				if of, ok := procedure.Offered(f); ok && of == m {
					reasons = append(reasons, tidy(f.Cluster+" "+f.Check))
				}
			}
		}
		if offered {
			slices.Sort(reasons)
			rows = append(rows, []span{{string(do), bold}, {changesOf(do, clusters, r.Mesh), plain}, {strings.Join(slices.Compact(reasons), ", "), dim}})
		}
	}
	p.table(w, 2, rows)
	fmt.Fprintln(w)
}

// changesOf says what mends of one kind change.
func changesOf(do check.Doing, clusters []string, mesh string) string {
	names := tidy(strings.Join(clusters, ", "))
	switch do {
	case check.SetUp:
		return fmt.Sprintf("%s: what is missing or differs from the mesh's recorded spec is made again, in Vault and every cluster, and what reads that at its start alone is restarted; relaypki setup -f mesh.yaml --plan shows it in full", procedure.ID(procedure.SetupMesh, mesh))
	case check.Reissue:
		return fmt.Sprintf("%s: new certificates for %s; if the management server's is among them, for all; what reads them at its start alone is restarted", procedure.ID(procedure.RotateLeafCertificates, mesh), names)
	}
	return fmt.Sprintf("what is older than its Secrets in %s is restarted; its connections break off for as long as that takes", names)
}

// mended says what became of each mend that was asked for.
func (p paper) mended(w io.Writer, r procedure.DiagnoseResult, asked []check.Mend) {
	if len(r.Mended)+len(asked) == 0 {
		return
	}
	rows := [][]span{{{"MEND", dim}, {"CLUSTER", dim}, {"STATE", dim}, {"DETAIL", dim}}}
	row := func(m check.Mend, state span, detail string) {
		cluster := m.Cluster
		if cluster == "" {
			cluster = "all"
		}
		rows = append(rows, []span{{string(m.Do), bold}, {tidy(cluster), plain}, state, {tidy(detail), plain}})
	}
	for _, m := range r.Mended {
		if m.Error != "" {
			row(m.Mend, span{"failed", red}, m.Error)
		} else {
			row(m.Mend, span{"done", green}, m.Detail)
		}
		asked = slices.DeleteFunc(slices.Clone(asked), func(a check.Mend) bool { return a == m.Mend })
	}
	for _, m := range asked {
		row(m, span{"not made", dim}, "it was not needed any more")
	}
	p.table(w, 0, rows)
	fmt.Fprintln(w)
	if len(r.Mended) > 0 && len(r.Findings) > 0 {
		p.print(w, 0, span{fmt.Sprintf("Before there were %d findings. What is found now:", len(r.Before)), bold})
		fmt.Fprintln(w)
	}
}
