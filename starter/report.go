package main

import (
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/inventory"
)

// The report is one file without anything from elsewhere and without scripts, so that
// it can be sent, kept and printed. Whatever was found in certificates and objects is
// escaped by html/template.
//
//go:embed report.html.tmpl
var reportText string

var reportTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"when": when, "left": left, "until": func(v inventory.Inventory, t time.Time) string { return left(t.Sub(v.At)) },
	"plural": plural, "somewhere": somewhere,
}).Parse(reportText))

// plural counts something.
func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// report is what the template draws.
type report struct {
	inventory.Inventory
	Leaves, CAs int
	// Next is what somebody has to begin first.
	Next     *inventory.Forecast
	Chain    chart
	Timeline timeline
	// Soonest are the forecasts of CAs, and of leaves the late and the next.
	Soonest []inventory.Forecast
	Places  []placeRows
	Shown   int
}

// placeRows are the rows of Vault, or of a cluster.
type placeRows struct {
	Name string
	Rows []reportRow
	Open bool
	// Worst is the worst class of a row.
	Worst string
	Says  string
}

type reportRow struct {
	row
	Left, Class, Of, Remark string
}

// Classes of what is drawn, by how it is.
const (
	good = "good"
	soon = "soon"
	bad  = "bad"
)

// classOf is by what is left of a life: the last tenth is soon.
func classOf(notBefore, notAfter, now time.Time) string {
	switch rest := notAfter.Sub(now); {
	case rest <= 0:
		return bad
	case rest <= notAfter.Sub(notBefore)/10:
		return soon
	}
	return good
}

// writeReport writes the report of an inventory; the rows are those of its table.
func writeReport(w io.Writer, v inventory.Inventory, rows []row) error {
	r := report{Inventory: v, Chain: chainOf(v), Timeline: timelineOf(v), Shown: len(rows)}
	for _, c := range v.Certificates {
		if c.CA {
			r.CAs++
		} else {
			r.Leaves++
		}
	}
	seen := map[inventory.Kind]bool{}
	for n, f := range v.Forecast {
		if f.Cluster == "" || f.Late || !seen[f.Layer] {
			r.Soonest = append(r.Soonest, f)
		}
		seen[f.Layer] = true
		// cert-manager does its part by itself, and what is under way has begun.
		if f.By != inventory.ByCertManager && f.By != inventory.ByRotation && !f.LatestStart.IsZero() && (r.Next == nil || f.LatestStart.Before(r.Next.LatestStart)) {
			r.Next = &v.Forecast[n]
		}
	}
	for _, one := range rows {
		at := slices.IndexFunc(r.Places, func(p placeRows) bool { return p.Name == one.place() })
		if at < 0 {
			at, r.Places = len(r.Places), append(r.Places, placeRows{Name: one.place(), Worst: good})
		}
		class := classOf(one.NotBefore, one.NotAfter, v.At)
		if one.Forged || one.Served == inventory.Differs {
			class = bad
		}
		p := &r.Places[at]
		p.Rows = append(p.Rows, reportRow{one, left(one.NotAfter.Sub(v.At)), class, one.ofWhich().text, one.remark()})
		if class == bad || class == soon && p.Worst == good {
			p.Worst = class
		}
	}
	slices.SortStableFunc(r.Places, func(a, b placeRows) int {
		if (a.Name == inVault) != (b.Name == inVault) {
			return map[bool]int{true: -1, false: 1}[a.Name == inVault]
		}
		return strings.Compare(a.Name, b.Name)
	})
	for n := range r.Places {
		p := &r.Places[n]
		p.Open = p.Name == inVault || len(r.Places) <= 4
		p.Says = plural(len(p.Rows), "certificate")
		for _, one := range p.Rows {
			if one.Kind == inventory.ServerLeaf || one.Kind == inventory.ClientLeaf {
				p.Says += ", leaf " + one.Of + ", " + one.Left + " left"
				break
			}
		}
	}
	return reportTemplate.Execute(w, r)
}

// chart is the chain, drawn from the roots on the left to the leaves on the right.
type chart struct {
	Width, Height int
	Boxes         []box
	Groups        []group
	Lines         []string
	Bridges       []string
}

// box is a CA.
type box struct {
	X, Y, W, H           int
	Title, Sub, End, Tip string
	Class                string
	Dashed               bool
}

// group is what a CA has issued, but for other CAs.
type group struct {
	X, Y, W, H int
	Title      string
	Chips      []chip
}

// chip is a leaf.
type chip struct {
	X, Y, W, H        int
	Label, Tip, Class string
	Dotted            bool
}

const (
	boxWidth, boxHeight   = 214, 66
	columnGap, rowGap     = 54, 16
	groupWidth            = 372
	chipHeight, groupHead = 22, 26
	// namedChips is how many leaves are drawn with their names; more are squares.
	namedChips = 16
	squareSide = 15
)

// chainOf lays the lineage out.
func chainOf(v inventory.Inventory) chart {
	d := drawing{v: v, at: map[*inventory.Node]box{}, certificates: map[string]inventory.Certificate{}}
	for _, c := range v.Certificates {
		d.certificates[c.Fingerprint] = c
	}
	y := 8
	tops := v.Lineage()
	for _, n := range tops {
		y += d.node(n, 8, y) + rowGap
	}
	d.chart.Height = y
	for n, at := range d.at {
		if to, ok := d.at[n.To]; ok {
			x1, y1, x2, y2 := at.X, at.Y+at.H-12, to.X+to.W, to.Y+14
			d.chart.Bridges = append(d.chart.Bridges, fmt.Sprintf("M%d %dC%d %d %d %d %d %d", x1, y1, x1-columnGap, y1+10, x2+columnGap, y2-10, x2, y2))
		}
	}
	slices.Sort(d.chart.Bridges)
	for _, b := range d.chart.Boxes {
		d.chart.Width = max(d.chart.Width, b.X+b.W+8)
	}
	for _, g := range d.chart.Groups {
		d.chart.Width = max(d.chart.Width, g.X+g.W+8)
	}
	return d.chart
}

type drawing struct {
	v            inventory.Inventory
	chart        chart
	at           map[*inventory.Node]box
	certificates map[string]inventory.Certificate
}

// node draws a CA with all that is below it and returns how high that is.
func (d *drawing) node(n *inventory.Node, x, y int) int {
	b := box{X: x, Y: y, W: boxWidth, H: boxHeight, Title: cutTo(n.Name, 27), Class: "unknown", Dashed: n.Kind == inventory.Bridge}
	if c := n.Certificate; c.Fingerprint != "" {
		b.Class = strings.ReplaceAll(string(c.Standing), " ", "-")
		b.Sub = string(n.Kind)
		if c.Standing != inventory.Unknown {
			b.Sub += fmt.Sprintf(", g%d %s", c.Generation, c.Standing)
		}
		b.End = "until " + c.NotAfter.UTC().Format("2006-01-02") + ", " + left(c.NotAfter.Sub(d.v.At)) + " left"
		b.Tip = fmt.Sprintf("%s\nserial %s\nkey id %s\nissued by %s (%s)\n%s", c.Subject, c.Serial, c.SubjectKeyID, cmp.Or(c.IssuedBy, "a CA that was not found"), c.AuthorityKeyID, c.Key)
		if n.Unrooted {
			b.Sub += ", issuer not found"
		}
		if classOf(c.NotBefore, c.NotAfter, d.v.At) == bad {
			b.Class += " ended"
		}
	} else {
		b.Sub = "of what has issued these, nothing was found"
	}
	if n.To != nil {
		b.Sub = "bridge to " + n.To.Name
	}
	d.chart.Boxes = append(d.chart.Boxes, b)
	d.at[n] = b
	next, height := x+boxWidth+columnGap, 0
	join := func(toY int) {
		x1, y1 := x+boxWidth, y+boxHeight/2
		d.chart.Lines = append(d.chart.Lines, fmt.Sprintf("M%d %dC%d %d %d %d %d %d", x1, y1, x1+columnGap/2, y1, next-columnGap/2, toY, next, toY))
	}
	if h := d.leaves(n, next, y); h > 0 {
		join(y + boxHeight/2)
		height = h + rowGap
	}
	below := slices.Clone(n.Below)
	slices.SortStableFunc(below, func(a, b *inventory.Node) int { // a bridge is next to the root that it leads to
		return cmp.Compare(map[bool]int{true: 1}[a.Kind == inventory.Bridge], map[bool]int{true: 1}[b.Kind == inventory.Bridge])
	})
	for _, one := range below {
		join(y + height + boxHeight/2)
		height += d.node(one, next, y+height) + rowGap
	}
	return max(boxHeight, height-rowGap)
}

// leaves draws what a CA has issued and returns how high that is; 0 if it is nothing.
func (d *drawing) leaves(n *inventory.Node, x, y int) int {
	if len(n.Leaves) == 0 {
		return 0
	}
	g := group{X: x, Y: y, W: groupWidth}
	count := map[inventory.Kind]int{}
	leaves := slices.Clone(n.Leaves)
	slices.SortStableFunc(leaves, func(a, b inventory.Item) int {
		return cmp.Or(slices.Index(inventory.Kinds, a.Kind)-slices.Index(inventory.Kinds, b.Kind), strings.Compare(a.Cluster, b.Cluster))
	})
	var first time.Time
	named := len(leaves) <= namedChips
	for k, i := range leaves {
		c := d.certificates[i.Certificate]
		count[i.Kind]++
		if first.IsZero() || c.NotAfter.Before(first) {
			first = c.NotAfter
		}
		one := chip{Label: i.Cluster, Class: classOf(c.NotBefore, c.NotAfter, d.v.At), Dotted: i.Kind == inventory.Consumer,
			Tip: fmt.Sprintf("%s: %s %s\n%s\nserial %s\nuntil %s, %s left", i.Cluster, i.Object, i.Key, c.Subject, c.Serial, when(c.NotAfter), left(c.NotAfter.Sub(d.v.At)))}
		if i.Kind == inventory.ServerLeaf {
			one.Label += ", the server"
		} else if i.Kind == inventory.Consumer {
			one.Label += ": " + i.Object[strings.LastIndexAny(i.Object, "/ ")+1:]
		}
		if i.Served == inventory.Differs || c.Forged {
			one.Class = bad
		}
		if named {
			const w = (groupWidth - 30) / 2
			one.X, one.Y, one.W, one.H = x+10+k%2*(w+10), y+groupHead+k/2*(chipHeight+6), w, chipHeight
			one.Label = cutTo(one.Label, 24)
			g.H = one.Y + one.H + 10 - y
		} else {
			const across = (groupWidth - 20 + 4) / (squareSide + 4)
			one.X, one.Y, one.W, one.H, one.Label = x+10+k%across*(squareSide+4), y+groupHead+k/across*(squareSide+4), squareSide, squareSide, ""
			g.H = one.Y + one.H + 10 - y
		}
		g.Chips = append(g.Chips, one)
	}
	var parts []string
	for _, kind := range []struct {
		of  inventory.Kind
		one string
	}{{inventory.ServerLeaf, "server"}, {inventory.ClientLeaf, "agent"}, {inventory.Consumer, "consumer"}} {
		if count[kind.of] > 0 {
			parts = append(parts, plural(count[kind.of], kind.one))
		}
	}
	g.Title = strings.Join(parts, ", ") + "; the first ends in " + left(first.Sub(d.v.At))
	if first.Before(d.v.At) {
		g.Title = strings.Join(parts, ", ") + "; the first has ended"
	}
	g.H = max(g.H, boxHeight)
	d.chart.Groups = append(d.chart.Groups, g)
	return g.H
}

func cutTo(text string, n int) string {
	if runes := []rune(text); len(runes) > n {
		return string(runes[:n-1]) + "…"
	}
	return text
}

// timeline is when what ends and has to begin to be rotated, from now on. Leaves live
// for a day and a root for decades, so the scale is logarithmic.
type timeline struct {
	Width, Height int
	Left, Right   int
	Ticks         []tick
	Bars          []bar
}

type tick struct {
	X     int
	Label string
}

// bar is a life from now on.
type bar struct {
	Y, X, W int
	// Latest is where the time begins in which it is too late to begin.
	LateX, LateW int
	// Start is where the mark of the latest start is.
	Start            int
	Label, Sub, Tip  string
	Class, StartText string
	// Dots are the ends of leaves.
	Dots []int
}

const (
	timelineWidth, timelineLeft, timelineRight = 980, 250, 24
	barPitch, barTop                           = 40, 34
)

// scale is where a time from now is: nothing before now is further left than now.
func scale(d, longest time.Duration) int {
	const unit = float64(10 * time.Minute)
	at := math.Log1p(max(float64(d), 0)/unit) / math.Log1p(float64(longest)/unit)
	return timelineLeft + int(min(at, 1)*(timelineWidth-timelineLeft-timelineRight))
}

func timelineOf(v inventory.Inventory) timeline {
	longest := 24 * time.Hour
	for _, f := range v.Forecast {
		longest = max(longest, f.NotAfter.Sub(v.At))
	}
	t := timeline{Width: timelineWidth, Left: timelineLeft, Right: timelineWidth - timelineRight}
	const day = 24 * time.Hour
	for _, mark := range []struct {
		at    time.Duration
		label string
	}{{0, "now"}, {time.Hour, "1 h"}, {6 * time.Hour, "6 h"}, {day, "1 d"}, {7 * day, "1 wk"}, {30 * day, "1 mo"}, {182 * day, "6 mo"}, {730 * day, "2 y"}, {10 * 365 * day, "10 y"}, {30 * 365 * day, "30 y"}} {
		if mark.at <= longest {
			t.Ticks = append(t.Ticks, tick{scale(mark.at, longest), mark.label})
		}
	}
	y := barTop
	groups := map[inventory.Kind][]inventory.Forecast{}
	for _, f := range v.Forecast {
		if f.Cluster != "" {
			groups[f.Layer] = append(groups[f.Layer], f)
			continue
		}
		t.Bars = append(t.Bars, t.bar(v, y, longest, f))
		y += barPitch
	}
	for _, layer := range []inventory.Kind{inventory.ServerLeaf, inventory.ClientLeaf} {
		all := groups[layer]
		if len(all) == 0 {
			continue
		}
		// The one that has to begin first stands for all; a dot is the end of each.
		b := t.bar(v, y, longest, all[0])
		b.Label = map[inventory.Kind]string{inventory.ServerLeaf: "the server's leaf", inventory.ClientLeaf: "leaf of " + all[0].Cluster}[layer]
		if len(all) > 1 {
			b.Label = plural(len(all), "agent") + "' leaves"
			b.Sub = "first: " + all[0].Cluster + ", " + b.Sub
		}
		for _, f := range all {
			b.Dots = append(b.Dots, scale(f.NotAfter.Sub(v.At), longest))
			if f.Late {
				b.Class = bad
			}
		}
		slices.Sort(b.Dots)
		b.Dots = slices.Compact(b.Dots)
		t.Bars = append(t.Bars, b)
		y += barPitch
	}
	t.Height = y + 8
	return t
}

func (t timeline) bar(v inventory.Inventory, y int, longest time.Duration, f inventory.Forecast) bar {
	end := scale(f.NotAfter.Sub(v.At), longest)
	b := bar{Y: y, X: timelineLeft, W: max(end-timelineLeft, 2), Label: cutTo(f.Name, 30), Class: classOf(f.NotBefore, f.NotAfter, v.At),
		Sub: "ends " + when(f.NotAfter), Tip: f.Why}
	switch {
	case f.Late:
		b.Class = bad
	case f.Due:
		b.Class = soon
	}
	b.Start = timelineLeft
	b.StartText = "cannot be done in the maintenance windows"
	if !f.LatestStart.IsZero() {
		b.Start = scale(f.LatestStart.Sub(v.At), longest)
		b.StartText = "begin by " + when(f.LatestStart)
	}
	b.LateX, b.LateW = b.Start, max(end-b.Start, 2)
	return b
}
