package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// sight is what an operator sees of a command: the last of what it prints, and
// its exit code.
type sight struct {
	text string
	code int
}

// row is one case of the report: a group's, with what was done to the world, and
// what is seen then and once that is put right.
type row struct {
	group, name, made string
	seen              sight
	healed            string
}

// changing is what differs from run to run and from machine to machine.
var changing = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`127\.0\.0\.1:\d+->127\.0\.0\.1:\d+`), "ADDRESS"},
	{regexp.MustCompile(`127\.\d+\.\d+\.\d+:\d+`), "ADDRESS"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(Z| UTC)`), "TIME"},
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "ID"},
	{regexp.MustCompile(`\b(not ready after|no answer for|none for|within) [0-9hms.]+[hms]\b`), "$1 SOME TIME"},
	{regexp.MustCompile(`(relay-(client|server)-tls)-\d+`), "$1-N"},
	{regexp.MustCompile(`typed-by-hand-\d+`), "typed-by-hand-N"},
	{regexp.MustCompile(`-[a-z0-9]{6,10}-[a-z0-9]{5}\b`), "-HASH"},
}

// settled is a text without what changes from run to run.
func (x *weather) settled(text string) string {
	text = strings.ReplaceAll(text, x.dir+"/", "")
	text = strings.ReplaceAll(text, x.dir, ".")
	text = strings.ReplaceAll(text, x.w.dir, "LAB")
	for _, c := range changing {
		text = c.what.ReplaceAllString(text, c.by)
	}
	return strings.TrimSpace(text)
}

const reportFile = "docs/weather.md"

const reportHead = `# What the operator sees in bad weather

Every row was made for real on the lab (Temporal, Vault, API servers, cert-manager) by ` + "`make weather`" + `, which writes this file from
what the real command printed; ` + "`make test`" + ` makes every row again and fails if it says anything else. Addresses, times and ids are
replaced by words. Where nothing else is said, the command is ` + "`relaypki setup -f mesh.yaml`" + `, and once the cause is put right the same
command again was seen to finish, with one of everything and nothing lost.
`

// markdown is the report.
func (x *weather) markdown() string {
	var b strings.Builder
	b.WriteString(reportHead)
	group := ""
	for _, r := range x.rows {
		if r.group != group {
			group = r.group
			fmt.Fprintf(&b, "\n## %s\n\n| case | what the operator sees | afterwards |\n|---|---|---|\n", group)
		}
		fmt.Fprintln(&b, x.line(r))
	}
	return b.String()
}

func (x *weather) line(r row) string {
	name := "**" + cellOf(r.name) + "**"
	if r.made != "" {
		name += "<br>" + cellOf(r.made)
	}
	seen := cellOf(x.settled(r.seen.text))
	if r.seen.code >= 0 {
		seen += fmt.Sprintf("<br>(exit code %d)", r.seen.code)
	}
	return fmt.Sprintf("| %s | %s | %s |", name, seen, cellOf(x.settled(r.healed)))
}

// cellOf makes a text fit into a markdown table.
func cellOf(text string) string {
	return strings.NewReplacer("|", `\|`, "*", `\*`, "<", "&lt;", ">", "&gt;", "\n", "<br>").Replace(text)
}

// report writes the report, with -record, or compares it with what is written.
func (x *weather) report(t *testing.T) {
	t.Helper()
	path := filepath.Join(repository, reportFile)
	now := x.markdown()
	if *record {
		if err := os.WriteFile(path, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	written, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; make weather writes it", err)
	}
	was, is := strings.Split(string(written), "\n"), strings.Split(now, "\n")
	for _, line := range is {
		if !slices.Contains(was, line) {
			t.Errorf("%s does not say (make weather writes it anew):\n%s", reportFile, line)
		}
	}
	for _, line := range was {
		if !slices.Contains(is, line) {
			t.Errorf("%s says what was not seen now:\n%s", reportFile, line)
		}
	}
}
