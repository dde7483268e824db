package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/internal/inventory"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/strict"
)

// Values of -o beside text and json, and the annotation of a command that has some.
const (
	outputWide = "wide"
	outputYAML = "yaml"
	outputCSV  = "csv"
	outputHTML = "html"

	outputsAnnotation = "outputs"
)

// inventoryView is how an inventory is shown.
type inventoryView struct {
	sort    string
	filters []string
	// html is the file for the report; empty for none.
	html string
}

func (c *cli) inventoryCommand() *cobra.Command {
	var file, taskQueue string
	var detach bool
	in := procedure.InventoryInput{}
	var timeout time.Duration
	view := &c.inventory
	cmd := &cobra.Command{
		Use:   "inventory [MESH [CLUSTER...]]",
		Short: "List all certificates of a mesh, and until when; changes nothing",
		Long: `Find every certificate, CA and trust store of a mesh in Vault and in the clusters,
what the management server serves of it, and what else holds a certificate of one
of the mesh's CAs; say when each layer has to begin to be rotated at the latest, and
what differs from what was asked for, with what to do about it. With names, only
these workload clusters are looked at, beside the management cluster.

With -f, what was found is compared with that file in the place of the mesh's record.
What a setup would do about it, exactly: relaypki setup -f FILE --plan.

--filter takes KEY=VALUE, with * in the value for anything; the same key several times
is either of the values. Keys and what to sort by are those of the columns: ` + strings.Join(filterKeys(), ", ") + `;
sorted by a key with "-" before it, the last comes first.

-o wide has every entry and column, csv, json and yaml are for programs, html is the
report that --html writes: one file, with the chain drawn and a timeline.

Exit code 1 if something could not be looked at; it is named.`,
		Example: `  relaypki inventory demo
  relaypki inventory demo --sort left --filter kind=client-leaf --filter cluster='eu-*'
  # For a browser, also to be sent to somebody:
  relaypki inventory demo --html demo.html
  # What differs from the file, and what would be done about it:
  relaypki inventory -f mesh.yaml
  # What ends within a week, for a script:
  relaypki inventory demo -o json | jq '.result.items[] | select(.leftSeconds < 604800)'`,
		ValidArgsFunction: c.completeClusters(),
		Annotations:       map[string]string{outputsAnnotation: strings.Join([]string{outputWide, outputYAML, outputCSV, outputHTML}, " ")},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.inventoryInput(cmd, args, file, timeout, &in); err != nil {
				return err
			}
			data, err := json.Marshal(in)
			if err != nil {
				return err
			}
			return c.launch(cmd.Context(), launch{
				procedure: procedure.Inventory, id: "inventory-" + in.Mesh + "-" + time.Now().UTC().Format("20060102T150405.000Z"), taskQueue: taskQueue,
				input: data, detach: detach, summary: "Inventory of mesh " + in.Mesh, again: c.sameWith(),
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&file, "file", "f", "", "the mesh's file, to compare with what was found")
	flags.StringVar(&view.sort, "sort", "kind", "the key to sort by")
	flags.StringArrayVar(&view.filters, "filter", nil, "show these entries alone: KEY=VALUE (may be given several times)")
	flags.StringVar(&view.html, "html", "", "write the report to this file as well")
	flags.BoolVar(&in.Consumers, "consumers", true, "look through all Secrets and ConfigMaps that the worker may list")
	flags.DurationVar(&timeout, "cluster-timeout", procedure.InventoryTimeout, "how long each cluster has to answer")
	flags.StringVar(&taskQueue, "task-queue", procedure.TaskQueue, "task queue of the worker")
	flags.BoolVar(&detach, "detach", false, "start it and return")
	completeMeshFile(cmd)
	_ = cmd.MarkFlagFilename("html", "html")
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(filterKeys(), nothingElse))
	_ = cmd.RegisterFlagCompletionFunc("filter", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var all []string
		for _, key := range filterKeys() {
			all = append(all, key+"=")
		}
		return all, nothingElse | cobra.ShellCompDirectiveNoSpace
	})
	_ = cmd.RegisterFlagCompletionFunc("cluster-timeout", cobra.NoFileCompletions) // all fail only if there is no such flag
	return cmd
}

// inventoryInput puts together what is sent. All that is wrong is said at once.
func (c *cli) inventoryInput(cmd *cobra.Command, args []string, file string, timeout time.Duration, in *procedure.InventoryInput) error {
	problems := c.inventory.problems()
	in.Timeout = mesh.Duration{Duration: timeout}
	if len(args) > 0 {
		in.Mesh, in.Clusters = args[0], args[1:]
		if !meshName.MatchString(in.Mesh) {
			return badInput(c.again("status"), "%q is not the name of a mesh", in.Mesh)
		}
	}
	if file != "" {
		read, wrong, err := readInput(file, cmd.InOrStdin())
		if err != nil {
			return badInput(c.again("inventory -f mesh.yaml"), "%w", err)
		}
		if len(wrong) > 0 {
			return c.reject(file, wrong)
		}
		in.Spec, in.File = &read.spec, filepath.Base(file)
		in.Management, in.Namespace = read.spec.Management.Context, read.spec.Management.Namespace
		if in.Mesh == "" {
			in.Mesh = read.spec.Mesh
		}
	}
	if in.Mesh == "" {
		return badInput(c.again("status"), "which mesh? Give its name, or its file with -f")
	}
	if problems = append(problems, in.Validate()...); len(problems) == 0 {
		return nil
	}
	lines := make([]string, len(problems))
	for i, p := range problems {
		lines[i] = "  " + p.String()
	}
	return badInput(c.again("inventory --help"), "nothing was started:\n%s", strings.Join(lines, "\n"))
}

// row is an item with its certificate, as a program reads it.
type row struct {
	Kind    inventory.Kind `json:"kind"`
	Cluster string         `json:"cluster,omitempty"`
	Object  string         `json:"object"`
	Key     string         `json:"key,omitempty"`
	Subject string         `json:"subject"`
	// Names are DNS names.
	Names          []string           `json:"names,omitempty"`
	Serial         string             `json:"serial"`
	SubjectKeyID   string             `json:"subjectKeyId,omitempty"`
	Issuer         string             `json:"issuer,omitempty"`
	AuthorityKeyID string             `json:"authorityKeyId,omitempty"`
	Generation     int                `json:"generation,omitempty"`
	Standing       inventory.Standing `json:"standing"`
	NotBefore      time.Time          `json:"notBefore"`
	NotAfter       time.Time          `json:"notAfter"`
	// LeftSeconds is what is left of its life as the inventory was taken.
	LeftSeconds int64             `json:"leftSeconds"`
	Served      inventory.Served  `json:"served,omitempty"`
	KeyType     string            `json:"keyType"`
	Fingerprint string            `json:"fingerprint"`
	Vault       *inventory.Issuer `json:"vault,omitempty"`
	Note        string            `json:"note,omitempty"`
	Forged      bool              `json:"forged,omitempty"`
}

func rowsOf(v inventory.Inventory) []row {
	of := map[string]inventory.Certificate{}
	for _, c := range v.Certificates {
		of[c.Fingerprint] = c
	}
	rows := make([]row, len(v.Items))
	for n, i := range v.Items {
		c := of[i.Certificate]
		rows[n] = row{Kind: i.Kind, Cluster: i.Cluster, Object: i.Object, Key: i.Key, Subject: c.Subject, Names: c.DNSNames, Serial: c.Serial, SubjectKeyID: c.SubjectKeyID,
			Issuer: c.IssuedBy, AuthorityKeyID: c.AuthorityKeyID, Generation: c.Generation, Standing: c.Standing, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
			LeftSeconds: int64(c.NotAfter.Sub(v.At).Seconds()), Served: i.Served, KeyType: c.Key, Fingerprint: c.Fingerprint, Vault: i.Vault, Note: i.Note, Forged: c.Forged}
	}
	return rows
}

// column is one that can be sorted and filtered by, and that -o wide and csv have.
type column struct {
	key string
	of  func(row) string
	// less orders by it; nil orders by its text.
	less func(a, b row) int
}

var columns = []column{
	{"kind", func(r row) string { return string(r.Kind) }, func(a, b row) int {
		return slices.Index(inventory.Kinds, a.Kind) - slices.Index(inventory.Kinds, b.Kind)
	}},
	{"cluster", func(r row) string { return r.place() }, nil},
	{"object", func(r row) string { return r.Object }, nil},
	{"key", func(r row) string { return r.Key }, nil},
	{"subject", func(r row) string { return r.Subject }, nil},
	{"names", func(r row) string { return strings.Join(r.Names, " ") }, nil},
	{"generation", func(r row) string { return number(r.Generation) }, func(a, b row) int { return a.Generation - b.Generation }},
	{"standing", func(r row) string { return string(r.Standing) }, nil},
	{"issuer", func(r row) string { return r.Issuer }, nil},
	{"served", func(r row) string { return string(r.Served) }, nil},
	{"left", func(r row) string { return left(time.Duration(r.LeftSeconds) * time.Second) }, func(a, b row) int { return a.NotAfter.Compare(b.NotAfter) }},
	{"notBefore", func(r row) string { return r.NotBefore.UTC().Format(time.RFC3339) }, nil},
	{"notAfter", func(r row) string { return r.NotAfter.UTC().Format(time.RFC3339) }, nil},
	{"keyType", func(r row) string { return r.KeyType }, nil},
	{"serial", func(r row) string { return r.Serial }, nil},
	{"subjectKeyId", func(r row) string { return r.SubjectKeyID }, nil},
	{"authorityKeyId", func(r row) string { return r.AuthorityKeyID }, nil},
	{"roles", func(r row) string { return r.roles() }, nil},
	{"note", func(r row) string { return r.remark() }, nil},
	{"fingerprint", func(r row) string { return r.Fingerprint }, nil},
}

func filterKeys() []string {
	keys := make([]string, len(columns))
	for n, c := range columns {
		keys[n] = c.key
	}
	return keys
}

func columnOf(key string) (column, bool) {
	at := slices.IndexFunc(columns, func(c column) bool { return c.key == key })
	if at < 0 {
		return column{}, false
	}
	return columns[at], true
}

// inVault is the place of what is in no cluster.
const inVault = "Vault"

func (r row) place() string {
	if r.Cluster == "" {
		return inVault
	}
	return r.Cluster
}

func (r row) roles() string {
	if r.Vault == nil {
		return ""
	}
	return strings.Join(r.Vault.Roles, " ")
}

// remark is the note, with what there is to say of a CA's key and of a certificate that
// lies.
func (r row) remark() string {
	var all []string
	if r.Forged {
		all = append(all, "NOT SIGNED by the CA whose key it names")
	}
	if i := r.Vault; i != nil {
		switch {
		case i.Signs:
			all = append(all, "may sign")
		case i.HasKey:
			all = append(all, "has its key, and may not sign")
		default:
			all = append(all, "without its key")
		}
		if i.Default {
			all = append(all, "default")
		}
	}
	if r.Note != "" {
		all = append(all, r.Note)
	}
	return strings.Join(all, "; ")
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// left is what is left of a life, in a few characters.
func left(d time.Duration) string {
	const year = 365 * 24 * time.Hour
	switch {
	case d <= 0:
		return "ended"
	case d >= 2*year:
		return fmt.Sprintf("%.1fy", float64(d)/float64(year))
	}
	return elapsed(d)
}

// problems are those of sorting and filtering.
func (v inventoryView) problems() []strict.Problem {
	var problems []strict.Problem
	bad := func(path, format string, args ...any) {
		problems = append(problems, strict.Problem{Path: path, Message: fmt.Sprintf(format, args...)})
	}
	if _, ok := columnOf(strings.TrimPrefix(v.sort, "-")); !ok && v.sort != "" {
		bad("--sort", "%q is none of %s", v.sort, strings.Join(filterKeys(), ", "))
	}
	for _, filter := range v.filters {
		key, value, ok := strings.Cut(filter, "=")
		_, known := columnOf(key)
		switch {
		case !ok:
			bad("--filter "+filter, "has to be KEY=VALUE")
		case !known:
			bad("--filter "+filter, "%q is none of %s", key, strings.Join(filterKeys(), ", "))
		case key == "kind" && !strings.Contains(value, "*") && !slices.Contains(inventory.Kinds, inventory.Kind(value)):
			bad("--filter "+filter, "%q is none of %v", value, inventory.Kinds)
		default:
			if _, err := path.Match(value, ""); err != nil {
				bad("--filter "+filter, "%q is no pattern", value)
			}
		}
	}
	return problems
}

// of are the rows that are to be shown, in their order.
func (v inventoryView) of(rows []row) []row {
	wanted := map[string][]string{}
	for _, filter := range v.filters {
		key, value, _ := strings.Cut(filter, "=")
		wanted[key] = append(wanted[key], value)
	}
	rows = slices.DeleteFunc(slices.Clone(rows), func(r row) bool {
		for key, values := range wanted {
			c, _ := columnOf(key)
			if !slices.ContainsFunc(values, func(value string) bool { return matches(value, c.of(r)) }) {
				return true
			}
		}
		return false
	})
	key, last := strings.CutPrefix(v.sort, "-")
	if c, ok := columnOf(key); ok {
		slices.SortStableFunc(rows, func(a, b row) int {
			order := 0
			if c.less != nil {
				order = c.less(a, b)
			} else {
				order = strings.Compare(c.of(a), c.of(b))
			}
			if last {
				return -order
			}
			return order
		})
	}
	return rows
}

// matches takes a text for a pattern in which * is anything, slashes too, and capitals
// do not count.
func matches(pattern, text string) bool {
	plain := strings.NewReplacer("/", "\x00")
	ok, err := path.Match(plain.Replace(strings.ToLower(pattern)), plain.Replace(strings.ToLower(text)))
	return err == nil && ok
}

// inventoryDocument is what a program reads.
type inventoryDocument struct {
	Mesh        string               `json:"mesh"`
	At          time.Time            `json:"at"`
	Rotation    string               `json:"rotation,omitempty"`
	Clusters    int                  `json:"clusters"`
	Items       []row                `json:"items"`
	Forecast    []inventory.Forecast `json:"forecast"`
	Drift       []inventory.Drift    `json:"drift"`
	Unreachable []inventory.Unlooked `json:"unreachable"`
	// Unsearched is what was not looked through for consumers.
	Unsearched    []inventory.Unsearched `json:"unsearched,omitempty"`
	MoreConsumers int                    `json:"moreConsumers,omitempty"`
}

// concludeInventory prints an inventory.
func (c *cli) concludeInventory(e ending) error {
	var v inventory.Inventory
	if err := json.Unmarshal(e.Result, &v); err != nil {
		return &exitError{code: exitFailed, err: fmt.Errorf("%s: its result cannot be read: %w", e.WorkflowID, err), next: c.again("inventory --help")}
	}
	if err := c.printInventory(e, v); err != nil {
		return &exitError{code: exitFailed, err: err, next: c.again("inventory", v.Mesh)}
	}
	if len(v.Unreachable) > 0 {
		return &exitError{code: exitFailed, err: fmt.Errorf("not all of mesh %s could be looked at: %s", v.Mesh, unlooked(v.Unreachable)), next: "put that right, then: " + c.again("inventory", v.Mesh)}
	}
	return nil
}

func unlooked(all []inventory.Unlooked) string {
	var names []string
	for _, u := range all {
		if !slices.Contains(names, u.Name) {
			names = append(names, u.Name)
		}
	}
	return strings.Join(names, ", ")
}

func (c *cli) printInventory(e ending, v inventory.Inventory) error {
	rows := c.inventory.of(rowsOf(v))
	if c.inventory.html != "" {
		file, err := os.Create(c.inventory.html)
		if err != nil {
			return fmt.Errorf("the report cannot be written: %w", err)
		}
		err = writeReport(file, v, rows)
		if closed := file.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return fmt.Errorf("write the report %s: %w", c.inventory.html, err)
		}
		c.say("The report is in %s.", c.inventory.html)
	}
	switch c.output {
	case "json", outputYAML:
		document := inventoryDocument{v.Mesh, v.At, v.Rotation, v.Clusters, rows, v.Forecast, v.Drift, v.Unreachable, v.Unsearched, v.MoreConsumers}
		var err error
		if e.Result, err = json.Marshal(document); err != nil {
			return err
		}
		if c.json() {
			return c.printJSON(e)
		}
		text, err := yaml.Marshal(e)
		if err != nil {
			return err
		}
		_, err = c.out.Write(text)
		return err
	case outputCSV:
		return writeCSV(c.out, rows)
	case outputHTML:
		return writeReport(c.out, v, rows)
	}
	c.paper().inventory(c.out, v, rows, c.output == outputWide, len(c.inventory.filters) > 0)
	return nil
}

// writeCSV writes a row a line. What a spreadsheet would take for a formula, it is not
// to: whoever asks for a certificate chooses its names.
func writeCSV(w io.Writer, rows []row) error {
	out := csv.NewWriter(w)
	records := [][]string{append(filterKeys(), "leftSeconds")}
	for _, r := range rows {
		var record []string
		for _, c := range columns {
			text := c.of(r)
			if text != "" && strings.ContainsRune("=+-@\t\r", rune(text[0])) {
				text = "'" + text
			}
			record = append(record, text)
		}
		records = append(records, append(record, strconv.FormatInt(r.LeftSeconds, 10)))
	}
	return out.WriteAll(records)
}

// inventory draws an inventory on a terminal. Unless all is wanted, what is only a
// copy is left out: the chain above a leaf, and a trust that nobody uses.
func (p paper) inventory(w io.Writer, v inventory.Inventory, rows []row, wide, filtered bool) {
	shown := rows
	if !wide && !filtered {
		shown = slices.DeleteFunc(slices.Clone(rows), func(r row) bool {
			ca := r.Kind == inventory.Root || r.Kind == inventory.Bridge || r.Kind == inventory.Intermediate
			return ca && r.Vault == nil || r.Note == inventory.Unused || r.Vault != nil && r.Kind == inventory.Root && !r.Vault.HasKey && slices.ContainsFunc(rows, func(other row) bool {
				return other.Vault != nil && other.Vault.HasKey && other.Fingerprint == r.Fingerprint
			})
		})
	}
	if !wide && !filtered {
		shown = together(shown)
	}
	p.whole = true
	if v.Rotation != "" {
		p.print(w, 0, span{"Under way: " + tidy(v.Rotation), yellow})
		fmt.Fprintln(w)
	}
	p.table(w, 0, p.inventoryRows(v, shown, wide))
	if len(shown) < len(rows) {
		p.print(w, 0, span{fmt.Sprintf("%d entries in %d lines; -o wide has each of them, and all columns", len(rows), len(shown)), dim})
	}
	if v.MoreConsumers > 0 {
		p.print(w, 0, span{fmt.Sprintf("%d more objects hold certificates of the mesh's CAs than are listed", v.MoreConsumers), yellow})
	}
	fmt.Fprintln(w)
	p.forecast(w, v)
	p.drift(w, v)
	for _, u := range v.Unsearched {
		p.print(w, 0, span{fmt.Sprintf("Not looked through for consumers in %s: %s", somewhere(u.Clusters), tidy(u.What)), dim})
	}
	for _, u := range v.Unreachable {
		what := "could not be looked at: "
		if u.Part {
			what = "was not looked at wholly: "
		}
		p.print(w, 0, span{tidy(u.Name) + " ", bold}, span{what + tidy(u.Reason), yellow})
	}
}

// somewhere names a few clusters, or counts them.
func somewhere(clusters []string) string {
	if len(clusters) > fewTogether {
		return plural(len(clusters), "cluster")
	}
	return strings.Join(clusters, ", ")
}

// fewTogether is how many clusters with the same in their trust are listed one by one.
const fewTogether = 3

// together has what many clusters trust alike in one row.
func together(rows []row) []row {
	alike := func(a, b row) bool {
		return a.Kind == inventory.TrustStore && b.Kind == a.Kind && a.Fingerprint == b.Fingerprint && a.Object == b.Object && a.Key == b.Key && a.Served == b.Served
	}
	var out []row
	for n, r := range rows {
		same := 0
		for _, other := range rows {
			if alike(r, other) {
				same++
			}
		}
		if same > fewTogether {
			if slices.ContainsFunc(rows[:n], func(other row) bool { return alike(r, other) }) {
				continue
			}
			r.Cluster = plural(same, "cluster")
		}
		out = append(out, r)
	}
	return out
}

// roomy is how wide a terminal has to be for the columns that one can do without.
const roomy = 120

func (p paper) inventoryRows(v inventory.Inventory, rows []row, wide bool) [][]span {
	heading := func(names ...string) []span {
		var cells []span
		for _, name := range names {
			cells = append(cells, span{name, dim})
		}
		return cells
	}
	names := []string{"KIND", "CLUSTER", "CERTIFICATE", "OF", "LEFT", "SERVED"}
	if wide {
		names = []string{"KIND", "CLUSTER", "OBJECT", "SUBJECT", "NAMES", "OF", "ISSUED BY", "LEFT", "NOT AFTER", "KEY", "SERIAL", "SERVED", "NOTE"}
	} else if p.width >= roomy {
		names = []string{"KIND", "CLUSTER", "CERTIFICATE", "OF", "ISSUED BY", "LEFT", "NOT AFTER", "SERVED"}
	}
	out := [][]span{heading(names...)}
	for _, r := range rows {
		cells := map[string]span{
			"KIND": {string(r.Kind), plain}, "CLUSTER": {tidy(r.place()), bold}, "CERTIFICATE": {tidy(r.called()), plain}, "OF": r.ofWhich(), "LEFT": p.life(v, r),
			"SERVED": servedAs(r.Served), "ISSUED BY": {tidy(r.Issuer), plain}, "NOT AFTER": {r.NotAfter.UTC().Format("2006-01-02 15:04Z"), plain},
			"OBJECT": {tidy(strings.TrimSpace(r.Object + " " + r.Key)), plain}, "SUBJECT": {tidy(r.Subject), plain}, "NAMES": {tidy(strings.Join(r.Names, " ")), plain},
			"KEY": {r.KeyType, plain}, "SERIAL": {r.Serial, plain}, "NOTE": {tidy(r.remark()), plain},
		}
		var line []span
		for _, name := range names {
			line = append(line, cells[name])
		}
		out = append(out, line)
	}
	return out
}

// called is what a certificate is called in a line: its place in Vault, the object
// that a consumer is, else its subject.
func (r row) called() string {
	switch {
	case r.Vault != nil, r.Kind == inventory.Consumer:
		return r.Object
	case r.Key == "served":
		return "served by " + r.Object
	case r.Kind == inventory.TrustStore:
		return commonName(r.Subject) + " in " + r.Object[strings.LastIndex(r.Object, "/")+1:]
	}
	return commonName(r.Subject)
}

// commonName is the CN of a subject as it is written in messages; all of it if there is
// none.
func commonName(subject string) string {
	for part := range strings.SplitSeq(subject, ",") {
		if name, ok := strings.CutPrefix(part, "CN="); ok {
			return name
		}
	}
	return subject
}

// ofWhich is the generation with how that one stands.
func (r row) ofWhich() span {
	text := string(r.Standing)
	if r.Generation > 0 {
		text = fmt.Sprintf("g%d %s", r.Generation, r.Standing)
	}
	look := map[inventory.Standing]style{inventory.AtWork: green, inventory.Next: cyan, inventory.StandingBy: cyan, inventory.Unknown: yellow}
	if r.Forged {
		return span{"not signed by it", red}
	}
	return span{text, look[r.Standing]}
}

func servedAs(s inventory.Served) span {
	return span{string(s), map[inventory.Served]style{inventory.Same: green, inventory.Differs: red, inventory.NotSeen: dim}[s]}
}

// life is what is left, red for what has ended and yellow for what is in its last tenth.
func (p paper) life(v inventory.Inventory, r row) span {
	d, look := r.NotAfter.Sub(v.At), plain
	if d <= r.NotAfter.Sub(r.NotBefore)/10 {
		look = yellow
	}
	if d <= 0 {
		look = red
	}
	return span{left(d), look}
}

// forecast says when what has to begin. Of leaves it has those that are late, and the
// next.
func (p paper) forecast(w io.Writer, v inventory.Inventory) {
	if len(v.Forecast) == 0 {
		return
	}
	ends := when
	if p.width < roomy {
		ends = func(t time.Time) string { return t.UTC().Format("2006-01-02") }
	}
	rows := [][]span{{{"LATEST START", dim}, {"LAYER", dim}, {"OF", dim}, {"ENDS", dim}, {"BY", dim}}}
	seen := map[inventory.Kind]int{}
	var why []inventory.Forecast
	for _, f := range v.Forecast {
		if f.Cluster != "" {
			if seen[f.Layer]++; seen[f.Layer] > 1 && !f.Late {
				continue
			}
		}
		start := span{"never", red}
		if !f.LatestStart.IsZero() {
			start = span{when(f.LatestStart), plain}
		}
		switch {
		case f.Late:
			start.style = red
		case f.Due:
			start.style = yellow
		}
		name := f.Name
		if f.Cluster != "" {
			name = f.Cluster
		}
		rows = append(rows, []span{start, {string(f.Layer), plain}, {tidy(name), bold}, {ends(f.NotAfter), plain}, {f.By, plain}})
		if f.Late || f.Due {
			why = append(why, f)
		}
	}
	p.table(w, 0, rows)
	for _, layer := range []inventory.Kind{inventory.ServerLeaf, inventory.ClientLeaf} {
		if seen[layer] > 1 {
			p.print(w, 0, span{fmt.Sprintf("%d of %s in all; those that are late and the next are shown", seen[layer], layer), dim})
		}
	}
	for _, f := range why {
		p.print(w, 0, span{tidy(f.Name+" "+f.Cluster) + ": ", bold}, span{tidy(f.Why), yellow})
		if f.Do != "" {
			p.print(w, 2, span{"do: " + f.Do, yellow})
		}
	}
	fmt.Fprintln(w)
}

func when(t time.Time) string { return t.UTC().Format("2006-01-02 15:04Z") }

func (p paper) drift(w io.Writer, v inventory.Inventory) {
	if len(v.Drift) == 0 {
		fmt.Fprintln(w, "Nothing differs from what was asked for.")
		return
	}
	p.print(w, 0, span{"Differs from what was asked for:", bold})
	for _, d := range v.Drift {
		p.print(w, 2, span{strings.TrimLeft(tidy(d.Cluster)+" ", " "), bold}, span{tidy(d.Object) + ": " + tidy(d.What), plain})
		p.print(w, 4, span{"do: " + tidy(d.Do), yellow})
	}
}
