package main

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"
	"unicode"

	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rotation"
)

// view is what is known of a procedure at one moment.
type view struct {
	Workflow, Type string
	Started, Now   time.Time
	// Ended is set for a procedure that had ended when it was first seen.
	Ended    time.Time
	Progress procedure.Progress
	// Children are the clusters' own procedures, by workflow id.
	Children map[string]procedure.Progress
	// Asked is an emergency's input, which is known also where the procedure does not
	// tell its progress.
	Asked *procedure.EmergencyInput
	// Notice says why there is no news, if there is none.
	Notice string
}

// emergency is what the procedure is for, if it is one. What an emergency has come to
// that is lifted was said at its own end.
func (v view) emergency() *procedure.Emergency {
	if v.Progress.Emergency != nil && (v.Asked == nil || !v.Asked.Lift) {
		return v.Progress.Emergency
	}
	return emergencyFor(v.Asked)
}

// style is how a piece of a line looks, for terminals that have colours.
type style int

const (
	plain style = iota
	bold
	dim
	green
	yellow
	red
	cyan
)

var codes = map[style]string{bold: "1", dim: "2", green: "32", yellow: "33", red: "31", cyan: "36"}

// span is a piece of a line.
type span struct {
	text  string
	style style
}

// paper is what is drawn on.
type paper struct {
	width, height int
	colour, ascii bool
	// whole is for tables with names in them that are not to be cut at a hyphen, as
	// long as another column can be narrowed.
	whole bool
}

// symbol says in one character how far something is.
func (p paper) symbol(s procedure.State) span {
	at := func(unicode, ascii string, style style) span {
		if p.ascii {
			return span{ascii, style}
		}
		return span{unicode, style}
	}
	switch s {
	case procedure.Pending, "":
		return at("·", ".", dim)
	case procedure.Running:
		return at("▸", ">", cyan)
	case procedure.Failed:
		return at("✗", "x", red)
	case procedure.Parked:
		return at("‖", "!", yellow)
	case procedure.Skipped:
		return at("-", "-", yellow)
	default:
		return at("✓", "*", green)
	}
}

func (p paper) line(spans ...span) string {
	left := p.width
	var b strings.Builder
	for i, s := range spans {
		text := []rune(s.text)
		cut := len(text) > left || (len(text) == left && i < len(spans)-1)
		if cut {
			text = append(text[:max(left-1, 0)], []rune(p.ellipsis())...)
		}
		left -= len(text)
		if code := codes[s.style]; p.colour && code != "" {
			b.WriteString("\x1b[" + code + "m" + string(text) + "\x1b[0m")
		} else {
			b.WriteString(string(text))
		}
		if cut {
			break
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// cut shortens a text to a width.
func (p paper) cut(text string, width int) string {
	if runes := []rune(text); len(runes) > width {
		return string(runes[:max(width-1, 0)]) + p.ellipsis()
	}
	return text
}

func (p paper) ellipsis() string {
	if p.ascii {
		return "~"
	}
	return "…"
}

// draw is the picture of a procedure, as many lines as fit.
func (p paper) draw(v view) []string {
	lines := []string{p.header(v)}
	if e := v.emergency(); e != nil {
		lines = append(lines, p.line(span{"  incident ", red}, span{tidy(e.Incident), bold}, span{": " + tidy(e.Reason), plain}),
			p.line(span{"  " + strings.Join(append([]string{occasion(*e)}, reached(*e)...), "; "), dim}))
	}
	if notice := v.notice(); notice != "" {
		// Not cut: it may end with what to type.
		notices := p.wrap(2, 2, span{notice, yellow})
		if v.Progress.Person {
			for _, cluster := range parkedOf(v.Progress) {
				notices = append(notices, p.wrap(4, 6, span{tidy(cluster.Cluster) + ": " + tidy(cluster.Detail), plain})...)
			}
		}
		lines = append(lines, notices[:min(len(notices), max(p.height/2, 1))]...)
	}
	steps, clusters := p.steps(folded(telling(v.Progress.Steps), v.Progress.Phase)), p.clusters(v)
	room := p.height - 1 - len(lines) // the last line is the cursor's
	if len(steps)+len(clusters)+2 > room {
		steps = p.steps(unfinished(v.Progress.Steps))
	}
	if len(steps) > 0 {
		lines = append(append(lines, ""), steps...)
	}
	if len(clusters) > 0 {
		lines = append(lines, "")
		room = max(p.height-1-len(lines), 3)
		if len(clusters) > room {
			hidden := len(clusters) - room + 1
			clusters = append(clusters[:room-1], p.line(span{fmt.Sprintf("  and %d more", hidden), dim}))
		}
		lines = append(lines, clusters...)
	}
	return lines
}

func (v view) notice() string {
	if v.Notice != "" {
		return v.Notice
	}
	awaiting := tidy(v.Progress.Awaiting)
	switch {
	case v.Progress.Ended || awaiting == "":
		return ""
	case v.Progress.Person:
		return "waiting for you: " + awaiting
	default:
		return "waiting: " + awaiting
	}
}

func (p paper) header(v view) string {
	what := v.Type
	if v.Progress.Mesh != "" {
		what += " " + v.Progress.Mesh
	}
	if v.Progress.Cluster != "" {
		what += " " + v.Progress.Cluster
	}
	state := procedure.Running
	switch {
	case v.Progress.Problem != "":
		state = procedure.Failed
	case v.Progress.Ended:
		state = procedure.Done
	case v.Progress.Person:
		state = procedure.Parked
	case v.Progress.Procedure == "":
		state = procedure.Pending
	}
	spans := []span{p.symbol(state), {" " + tidy(what), bold}}
	if v.Progress.Phase != "" {
		spans = append(spans, span{"  " + tidy(v.Progress.Phase), plain})
	}
	end := v.Now
	if !v.Ended.IsZero() {
		end = v.Ended
	}
	spans = append(spans, span{"  " + elapsed(end.Sub(v.Started)), dim})
	now := rotation.Phase(v.Progress.Phase)
	if does := courseOf(v.Type, v.emergency(), append(phasesOf(v.Progress.Steps, nil), now)...).Does(now); does != "" && !v.Progress.Ended {
		spans = append(spans, span{"  " + does, dim})
	}
	return p.line(spans...)
}

// telling are the steps that say something: people who are not there were not told.
func telling(steps []procedure.Step) []procedure.Step {
	return slices.DeleteFunc(slices.Clone(steps), tellsNobody)
}

func tellsNobody(s procedure.Step) bool {
	return s.Name == procedure.NotifyStep && s.Detail == procedure.NobodyToTell
}

// folded has each phase that is over, and in which nothing went wrong, as one step:
// a rotation has as many as a screen has lines, in all.
func folded(steps []procedure.Step, now string) []procedure.Step {
	var out []procedure.Step
	for len(steps) > 0 {
		phase, n := steps[0].Phase, 1
		for n < len(steps) && steps[n].Phase == phase {
			n++
		}
		part := steps[:n]
		steps = steps[n:]
		if phase == "" || phase == now || len(unfinished(part)) > 0 {
			out = append(out, part...)
			continue
		}
		changed := 0
		for _, s := range part {
			if s.State == procedure.Changed || s.State == procedure.Created {
				changed++
			}
		}
		out = append(out, procedure.Step{Name: phase, State: procedure.Done, Detail: fmt.Sprintf("steps: %d, of which changed something: %d", n, changed)})
	}
	return out
}

func (p paper) steps(steps []procedure.Step) []string {
	width := 0
	for _, s := range steps {
		width = max(width, len([]rune(s.Name)))
	}
	width = min(width, p.share())
	lines := make([]string, len(steps))
	for i, s := range steps {
		symbol := p.symbol(s.State)
		lines[i] = p.line(span{"  ", plain}, symbol, span{" " + pad(p.cut(tidy(s.Name), width), width), plain},
			span{"  " + pad(string(s.State), stateWidth), symbol.style}, span{"  " + p.brief(s.Detail), dim})
	}
	return lines
}

// share is how much of a line a name may take, so that something is left for
// what there is to say of it.
func (p paper) share() int { return max(p.width/3, 8) }

// stateWidth fits every state.
const stateWidth = len(procedure.UpToDate)

// unfinished are the steps that somebody who has little room wants to see.
func unfinished(steps []procedure.Step) []procedure.Step {
	var left []procedure.Step
	for _, s := range steps {
		if s.State == procedure.Running || s.State == procedure.Failed {
			left = append(left, s)
		}
	}
	return left
}

// clusterRow is a cluster with the step that it is at.
type clusterRow struct {
	procedure.ClusterProgress
	step string
}

func (v view) clusterRows() []clusterRow {
	rows := make([]clusterRow, 0, len(v.Progress.Clusters))
	for _, c := range v.Progress.Clusters {
		row := clusterRow{ClusterProgress: c}
		if child, ok := v.Children[c.Workflow]; ok && len(child.Steps) > 0 {
			at := child.Steps[len(child.Steps)-1]
			// Of several at once, the oldest that is not done: the others wait for it.
			if left := unfinished(child.Steps); len(left) > 0 {
				at = left[0]
			}
			if c.State == procedure.Running || c.State == procedure.Failed {
				row.step = at.Name
			}
			if row.Detail == "" {
				row.Detail = at.Detail
			}
			if child.Awaiting != "" {
				row.Detail = child.Awaiting
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func (p paper) clusters(v view) []string {
	rows := v.clusterRows()
	if len(rows) == 0 {
		return nil
	}
	// With more clusters than lines, those that need a look come first.
	if len(rows)+len(v.Progress.Steps)+4 > p.height {
		sort.SliceStable(rows, func(i, j int) bool { return urgency(rows[i].State) < urgency(rows[j].State) })
	}
	name, step := len("CLUSTER"), 0
	for _, r := range rows {
		name, step = max(name, len([]rune(r.Cluster))), max(step, len([]rune(r.step)))
	}
	name, step = min(name, p.share()), min(step, p.share())
	// The column of steps is there only when some cluster is at one.
	at := func(string) string { return "" }
	if step > 0 {
		step = max(step, len("STEP"))
		at = func(text string) string { return "  " + pad(p.cut(text, step), step) }
	}
	lines := []string{p.line(span{"    " + pad("CLUSTER", name) + "  " + pad("STATE", stateWidth) + at("STEP") + "  DETAIL", dim})}
	for _, r := range rows {
		symbol := p.symbol(r.State)
		lines = append(lines, p.line(span{"  ", plain}, symbol, span{" " + pad(p.cut(tidy(r.Cluster), name), name), plain},
			span{"  " + pad(string(r.State), stateWidth), symbol.style}, span{at(tidy(r.step)), plain}, span{"  " + p.brief(r.Detail), dim}))
	}
	return lines
}

func urgency(s procedure.State) int {
	switch s {
	case procedure.Failed, procedure.Parked:
		return 0
	case procedure.Running:
		return 1
	case procedure.Skipped:
		return 2
	case procedure.Pending:
		return 3
	default:
		return 4
	}
}

// changes are the lines that say what is new in a view, for logs and pipes.
func changes(before, now view) []string {
	var lines []string
	stamp := now.Now.UTC().Format("15:04:05Z")
	say := func(cluster, step, state, detail string) {
		line := fmt.Sprintf("%s  %-12s  %-18s  %-10s  %s", stamp, tidy(cluster), tidy(step), state, paper{}.brief(detail))
		lines = append(lines, strings.TrimRight(line, " "))
	}
	if notice := now.notice(); notice != "" && notice != before.notice() {
		say("-", "-", "waiting", notice)
	}
	if e := now.emergency(); e != nil {
		var known []string
		if was := before.emergency(); was == nil {
			say("-", "-", "incident", e.Incident+": "+e.Reason+" ("+occasion(*e)+")")
		} else {
			known = reached(*was)
		}
		for _, milestone := range reached(*e) {
			if !slices.Contains(known, milestone) {
				say("-", "-", "measured", milestone)
			}
		}
	}
	if now.Progress.Phase != before.Progress.Phase {
		say("-", "-", "phase", now.Progress.Phase)
	}
	steps := func(cluster string, before, now []procedure.Step) {
		for i, s := range now {
			if i < len(before) && before[i].Name == s.Name && before[i].State == s.State && before[i].Detail == s.Detail {
				continue
			}
			// Whether there is anybody to tell is known when that is over.
			if tellsNobody(s) || s.Name == procedure.NotifyStep && s.State == procedure.Running {
				continue
			}
			say(cluster, s.Name, string(s.State), s.Detail)
		}
	}
	own := now.Progress.Cluster
	if own == "" {
		own = "-"
	}
	steps(own, before.Progress.Steps, now.Progress.Steps)
	was := map[string]procedure.ClusterProgress{}
	for _, c := range before.Progress.Clusters {
		was[c.Cluster] = c
	}
	for _, c := range now.Progress.Clusters {
		steps(c.Cluster, before.Children[c.Workflow].Steps, now.Children[c.Workflow].Steps)
		if old := was[c.Cluster]; c.State != procedure.Pending && (old.State != c.State || old.Detail != c.Detail) {
			say(c.Cluster, "-", string(c.State), c.Detail)
		}
	}
	return lines
}

// brief is the first line of a text; the whole is shown when all has ended.
func (p paper) brief(text string) string {
	first, _, more := strings.Cut(strings.TrimSpace(text), "\n")
	if more {
		first += " " + p.ellipsis()
	}
	return tidy(first)
}

// tidy makes one line of a text that came from elsewhere, and takes out what
// would steer a terminal.
func tidy(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
}

func pad(text string, width int) string {
	return text + strings.Repeat(" ", max(0, width-len([]rune(text))))
}

// elapsed is a length of time in a few characters.
func elapsed(d time.Duration) string {
	d = max(d, 0).Round(time.Second)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd", int(d.Hours())/24)
	}
}
