package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/csv"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/internal/inventory"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rotation"
)

// midRotation is the inventory of a mesh in the middle of a rotation of its root: the
// first cluster, the canary, has the new chain, the others have not, and one does not
// answer. Somebody else uses the mesh's CA, and calls itself what they like.
func midRotation(t testing.TB, clusters int, consumer string) inventory.Inventory {
	t.Helper()
	r1 := pkitest.Root(t, "Solo.io Root CA", pkitest.Valid(-(187600-17520)*time.Hour, 17520*time.Hour))
	r2 := pkitest.Root(t, "Solo.io Root CA G2", pkitest.Valid(-time.Hour, 187600*time.Hour))
	bridge := r1.Cross(t, r2, pkitest.Valid(-time.Hour, 2*365*24*time.Hour))
	i1 := r1.Intermediate(t, "gloo-mesh-mgmt-server-ca", pkitest.Valid(-(43800-8760)*time.Hour, 8760*time.Hour))
	i2 := r2.Intermediate(t, "gloo-mesh-mgmt-server-ca", pkitest.Valid(-time.Hour, 43800*time.Hour))
	vault := inventory.Knowing(r1.Cert, r2.Cert, i1.Cert, i2.Cert)
	ca := func(mount, name string, generation int, key bool, p pkitest.Pair, roles ...string) {
		vault.Add(inventory.Item{Object: mount + "/" + name, Generation: generation,
			Vault: &inventory.Issuer{Mount: mount, ID: mount + name, Name: name, HasKey: key, Signs: key, Default: generation == 1 && key, Roles: roles}}, p.Cert)
	}
	spec := mesh.Spec{Mesh: "demo"}
	var names, old []string
	for n := range clusters {
		name := fmt.Sprintf("cluster%d", n+1)
		names, spec.Workloads = append(names, name), append(spec.Workloads, mesh.Workload{Name: name})
		if n > 0 {
			old = append(old, "relay-client-"+name)
		}
	}
	spec.PKI.Root.KeyType, spec.PKI.Intermediate.KeyType = "ec", "ec"
	spec.Certificates.Server.KeyAlgorithm, spec.Certificates.Client.KeyAlgorithm = "ECDSA", "ECDSA"
	spec = spec.WithDefaults()
	ca("pki", "relay-root-g1", 1, true, r1)
	ca("pki", "relay-root-g2", 2, true, r2)
	ca("pki_relay", "relay-root-g1", 1, false, r1)
	ca("pki_relay", "relay-root-g2", 2, false, r2)
	ca("pki_relay", "relay-bridge-g2", 2, false, bridge)
	ca("pki_relay", "relay-intermediate-g1", 1, true, i1, old...)
	ca("pki_relay", "relay-intermediate-g2", 2, true, i2, spec.PKI.Role, "relay-client-cluster1")
	leaf := func(of pkitest.Pair, n int, names ...string) pkitest.Pair {
		return of.Leaf(t, names, pkitest.Valid(time.Duration(-n)*41*time.Minute, 24*time.Hour-time.Duration(n)*41*time.Minute))
	}
	store := func(l *inventory.Look, cluster, secret string, kind inventory.Kind, served inventory.Served, chain []pkitest.Pair, trust ...pkitest.Pair) {
		for n, p := range chain {
			item := inventory.Item{Cluster: cluster, Object: "Secret gloo-mesh/" + secret, Key: "tls.crt"}
			if n == 0 {
				item.Kind, item.Served, item.Renewal = kind, served, p.Cert.NotAfter.Add(-30*time.Minute)
			}
			l.Add(item, p.Cert)
		}
		for _, p := range trust {
			l.Add(inventory.Item{Kind: inventory.TrustStore, Cluster: cluster, Object: "Secret gloo-mesh/" + secret, Key: "ca.crt", Served: served}, p.Cert)
		}
	}
	known := []*x509.Certificate{r1.Cert, r2.Cert, bridge.Cert, i1.Cert, i2.Cert}
	server := inventory.Knowing(known...)
	store(&server, "mgmt", "relay-server-tls-secret", inventory.ServerLeaf, inventory.Same, []pkitest.Pair{leaf(i2, 1, spec.Certificates.Server.DNSNames...), i2, bridge}, r1)
	looks := []inventory.Look{server}
	facts := inventory.Facts{Mesh: "demo", Spec: spec, Want: spec, Record: inventory.Record{Root: 1, Intermediate: 1, ToRoot: 2, ToIntermediate: 2},
		State: rotation.State{Now: pkitest.Now, IntermediateTTL: spec.PKI.Intermediate.TTL.Duration, Opens: pkitest.Now, Begun: "RotateRootCA from generation 1 to 2 has begun on 2026-07-01 11:00 UTC"},
		Pace:  rotation.Pace{Clusters: clusters, Canaries: 1, Parallelism: 10, PerCluster: 15 * time.Minute, Soak: 10 * time.Minute}, Vault: vault}
	for n, name := range names {
		if n == 4 {
			facts.Unreachable = append(facts.Unreachable, inventory.Unlooked{Name: name, Reason: "Get \"https://10.0.0.7:6443/version\": dial tcp 10.0.0.7:6443: i/o timeout"})
			continue
		}
		l := inventory.Knowing(known...)
		chain := []pkitest.Pair{leaf(i1, n%30, name), i1}
		if n == 0 {
			chain = []pkitest.Pair{leaf(i2, 0, name), i2, bridge}
		}
		store(&l, name, "relay-client-tls-secret", inventory.ClientLeaf, inventory.NotSeen, chain)
		store(&l, name, "relay-root-tls-secret", inventory.TrustStore, inventory.NotSeen, nil, r1, r2)
		if n == 1 {
			l.Add(inventory.Item{Kind: inventory.Consumer, Cluster: name, Object: "Secret telemetry/otel-tls", Key: "tls.crt"}, i1.Leaf(t, []string{consumer}).Cert)
			l.Missing = append(l.Missing, inventory.Missing{Cluster: name, Object: "Certificate gloo-mesh/relay-client-tls", Why: "is missing: nobody renews what is in the Secret"})
		}
		looks = append(looks, l)
	}
	facts.Clusters = looks
	return inventory.Take(facts)
}

// taken is how an inventory is printed.
func taken(t *testing.T, v inventory.Inventory, output string, view inventoryView) (string, error) {
	t.Helper()
	data, err := json.Marshal(procedure.InventoryResult{Inventory: v})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	c := &cli{out: &out, err: io.Discard, name: "relaypki", output: output, inventory: view}
	err = c.conclude(ending{WorkflowID: "inventory-demo-1", Status: "completed", Result: data, Procedure: procedure.Inventory}, &follower{cli: c})
	return out.String(), err
}

func TestInventoryIsNotWhole(t *testing.T) {
	v := midRotation(t, 5, "otel")
	_, err := taken(t, v, "text", inventoryView{sort: "kind"})
	var exit *exitError
	if !errors.As(err, &exit) || exit.code != exitFailed || !strings.Contains(exit.Error(), "cluster5") {
		t.Errorf("one cluster did not answer: %v", err)
	} else {
		endsWithACommand(t, exit.next)
	}
	v.Unreachable, v.Unsearched = nil, []inventory.Unsearched{{What: "Secrets of other namespaces", Clusters: []string{"a", "b", "c", "d"}}}
	text, err := taken(t, v, "text", inventoryView{})
	if err != nil || !strings.Contains(text, "Not looked through for consumers in 4 clusters: Secrets of other namespaces") {
		t.Errorf("%v:\n%s", err, text)
	}
}

func TestInventoryFits(t *testing.T) {
	v := midRotation(t, 50, "otel\x1b[31m")
	for _, width := range []int{40, 80, 130} {
		var out bytes.Buffer
		rows := inventoryView{sort: "kind"}.of(rowsOf(v))
		paper{width: width}.inventory(&out, v, rows, false, false)
		for line := range strings.SplitSeq(out.String(), "\n") {
			if n := len([]rune(line)); n > width {
				t.Errorf("%d columns: a line has %d: %s", width, n, line)
			}
		}
		if strings.Contains(out.String(), "\x1b") {
			t.Errorf("%d columns: a name steers the terminal", width)
		}
		said := strings.Join(strings.Fields(out.String()), " ")
		for _, want := range []string{"RotateRootCA", "relay-intermediate-g2", "g1 at work", "g2 next", "cluster50", "LATEST START", "Certificate gloo-mesh/relay-client-tls: is missing", "do: relaypki setup -f mesh.yaml", "cluster5 could not be looked at"} {
			if !strings.Contains(said, want) {
				t.Errorf("%d columns: lacks %q", width, want)
			}
		}
	}
	var many bytes.Buffer
	paper{width: 130}.inventory(&many, v, rowsOf(v), false, false)
	if n := strings.Count(many.String(), "trust-store"); n != 3 || !strings.Contains(many.String(), "trust-store   49 clusters  Solo.io Root CA G2 in") {
		t.Errorf("what 49 clusters trust alike takes %d lines:\n%s", n, many.String())
	}
	var out bytes.Buffer
	paper{width: 80}.inventory(&out, midRotation(t, 3, "otel"), inventoryView{sort: "kind"}.of(rowsOf(midRotation(t, 3, "otel"))), false, false)
	if !strings.Contains(out.String(), "KIND") || strings.Count(out.String(), "KIND") > 1 {
		t.Errorf("at 80 columns it is no table:\n%s", out.String())
	}
}

func TestInventorySortsAndFilters(t *testing.T) {
	v := midRotation(t, 4, "otel")
	clusters := func(view inventoryView) string {
		var all []string
		for _, r := range view.of(rowsOf(v)) {
			all = append(all, r.place())
		}
		return strings.Join(all, " ")
	}
	for name, test := range map[string]struct {
		view inventoryView
		want string
	}{
		"what ends first":   {inventoryView{sort: "left", filters: []string{"kind=client-leaf"}}, "cluster4 cluster3 cluster2 cluster1"},
		"what ends last":    {inventoryView{sort: "-notAfter", filters: []string{"kind=client-leaf"}}, "cluster1 cluster2 cluster3 cluster4"},
		"either":            {inventoryView{sort: "cluster", filters: []string{"kind=client-leaf", "kind=server-leaf", "cluster=*1", "cluster=MGMT"}}, "cluster1 mgmt"},
		"both":              {inventoryView{sort: "cluster", filters: []string{"kind=client-leaf", "generation=2"}}, "cluster1"},
		"by who issued it":  {inventoryView{sort: "cluster", filters: []string{"kind=*-leaf", "issuer=relay-intermediate-g2"}}, "cluster1 mgmt"},
		"in Vault":          {inventoryView{filters: []string{"cluster=vault", "kind=intermediate"}}, "Vault Vault"},
		"slashes are plain": {inventoryView{filters: []string{"object=*root-tls*", "generation=1"}, sort: "cluster"}, "cluster1 cluster2 cluster3 cluster4"},
	} {
		if got := clusters(test.view); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
	kinds := []inventory.Kind{}
	for _, r := range (inventoryView{sort: "kind"}).of(rowsOf(v)) {
		kinds = append(kinds, r.Kind)
	}
	if !slices.IsSortedFunc(kinds, func(a, b inventory.Kind) int {
		return slices.Index(inventory.Kinds, a) - slices.Index(inventory.Kinds, b)
	}) {
		t.Errorf("kinds %q", kinds)
	}
}

// All that is wrong is said at once, and nothing is started.
func TestInventoryRefusesAllAtOnce(t *testing.T) {
	var out, errOut bytes.Buffer
	code := run(context.Background(), []string{"inventory", "demo", "--sort", "age", "--filter", "kinds=leaf", "--filter", "kind=leaf", "--filter", "cluster", "--filter", "cluster=[", "--cluster-timeout", "1h"}, &out, &errOut)
	said := strings.Join(strings.Fields(errOut.String()), " ")
	for _, want := range []string{`--sort: "age" is none of kind, cluster`, `--filter kinds=leaf: "kinds" is none of`, `--filter kind=leaf: "leaf" is none of [root bridge`, "--filter cluster: has to be KEY=VALUE", `--filter cluster=[: "[" is no pattern`, "timeout: 1h is not between 1s and 5m", "nothing was started"} {
		if !strings.Contains(said, want) {
			t.Errorf("lacks %q: %s", want, said)
		}
	}
	if code != exitBadInput {
		t.Errorf("exit code %d", code)
	}
	endsWithACommand(t, errOut.String())
	for _, args := range [][]string{{"inventory"}, {"inventory", "a_b"}, {"inventory", "demo", "-o", "xml"}, {"verify", "demo", "-o", "csv"}, {"inventory", "prod", "-f", example}} {
		if code := run(context.Background(), args, io.Discard, io.Discard); code != exitBadInput {
			t.Errorf("%q: exit code %d", args, code)
		}
	}
}

// Programs read the same of all formats, and a spreadsheet no formula.
func TestInventoryForPrograms(t *testing.T) {
	name := `=HYPERLINK("http://x"),"y` + "\n"
	v := midRotation(t, 3, name)
	v.Unreachable = nil
	view := inventoryView{sort: "cluster", filters: []string{"kind=consumer"}}
	type document struct {
		Status string
		Result struct {
			Mesh     string
			Items    []row
			Forecast []inventory.Forecast
			Drift    []inventory.Drift
		}
	}
	for format, read := range map[string]func([]byte, any) error{"json": json.Unmarshal, outputYAML: func(data []byte, into any) error { return yaml.Unmarshal(data, into) }} {
		text, err := taken(t, v, format, view)
		if err != nil {
			t.Fatal(err)
		}
		var d document
		if err := read([]byte(text), &d); err != nil {
			t.Fatalf("%s: %v\n%s", format, err, text)
		}
		if len(d.Result.Items) != 1 || d.Result.Items[0].Names[0] != name || d.Result.Items[0].Issuer != "relay-intermediate-g1" || d.Result.Mesh != "demo" || len(d.Result.Forecast) == 0 || len(d.Result.Drift) == 0 || d.Status != "completed" {
			t.Errorf("%s: %+v", format, d)
		}
		if left := d.Result.Items[0].LeftSeconds; left != 23*3600 {
			t.Errorf("%s: %d seconds are left", format, left)
		}
	}
	text, err := taken(t, v, outputCSV, view)
	if err != nil {
		t.Fatal(err)
	}
	records, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if err != nil || len(records) != 2 {
		t.Fatalf("%v:\n%s", err, text)
	}
	of := map[string]string{}
	for n, key := range records[0] {
		of[key] = records[1][n]
	}
	if of["names"] != "'"+name || of["cluster"] != "cluster2" || of["left"] != "23h00m" || of["generation"] != "1" || of["leftSeconds"] != "82800" {
		t.Errorf("%q", of)
	}
}

// What others have chosen comes out as text, wherever in the report it stands, and the
// report needs nothing from elsewhere.
func TestReportEscapes(t *testing.T) {
	const evil = `"><script>alert(1)</script><img src=x onerror=alert(2)>'`
	v := midRotation(t, 3, evil)
	v.Rotation += evil
	v.Unreachable = []inventory.Unlooked{{Name: evil, Reason: evil}}
	v.Unsearched = []inventory.Unsearched{{What: evil, Clusters: []string{evil}}}
	v.Drift = append(v.Drift, inventory.Drift{Cluster: evil, Object: evil, What: evil, Do: evil})
	for n := range v.Items {
		v.Items[n].Note += evil
		if v.Items[n].Kind == inventory.Consumer {
			v.Items[n].Object = evil
		}
		if v.Items[n].Vault != nil {
			v.Items[n].Vault.Name, v.Items[n].Vault.Roles = v.Items[n].Vault.Name+evil, []string{evil}
		}
	}
	for n := range v.Forecast {
		v.Forecast[n].Why, v.Forecast[n].Name, v.Forecast[n].Do = evil, evil, evil
	}
	text := reportOf(t, v)
	root, err := html.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	seen, texts := map[string]int{}, 0
	var walk func(*html.Node)
	walk = func(n *html.Node) {
		if n.Type == html.ElementNode {
			seen[n.Data]++
			for _, a := range n.Attr {
				if strings.HasPrefix(a.Key, "on") || a.Key == "href" || a.Key == "src" || strings.Contains(a.Val, "alert") {
					t.Errorf("<%s> has %s=%q", n.Data, a.Key, a.Val)
				}
			}
		}
		if n.Type == html.TextNode && strings.Contains(n.Data, evil) {
			texts++
		}
		for c := n.FirstChild; c != nil; c = c.NextSibling {
			walk(c)
		}
	}
	walk(root)
	for _, none := range []string{"script", "img", "link", "iframe", "object"} {
		if seen[none] > 0 {
			t.Errorf("there is a <%s>", none)
		}
	}
	if texts < 20 || seen["svg"] < 2 || seen["table"] < 3 {
		t.Errorf("%d texts have what others have chosen; %v", texts, seen)
	}
	if from := regexp.MustCompile(`(?i)url\(|@import|https?://`).FindString(strings.ReplaceAll(text, "10.0.0.7", "")); from != "" {
		t.Errorf("it takes something from elsewhere: %s", from)
	}
}

// The drawings are well-formed, everything is within them, and nothing lies on top of
// anything else.
func TestReportDraws(t *testing.T) {
	for _, clusters := range []int{1, 5, 50, 200} {
		v := midRotation(t, clusters, "otel")
		text := reportOf(t, v)
		for _, svg := range regexp.MustCompile(`(?s)<svg viewBox.*?\n</svg>`).FindAllString(text, -1) {
			decoder := xml.NewDecoder(strings.NewReader(svg))
			for {
				if _, err := decoder.Token(); err == io.EOF {
					break
				} else if err != nil {
					t.Fatalf("%d clusters: %v", clusters, err)
				}
			}
		}
		c := chainOf(v)
		type rectangle struct{ x, y, w, h int }
		var all []rectangle
		for _, b := range c.Boxes {
			all = append(all, rectangle{b.X, b.Y, b.W, b.H})
		}
		leaves := 0
		for _, g := range c.Groups {
			all = append(all, rectangle{g.X, g.Y, g.W, g.H})
			for _, one := range g.Chips {
				if leaves++; one.X < g.X || one.Y < g.Y || one.X+one.W > g.X+g.W || one.Y+one.H > g.Y+g.H {
					t.Errorf("%d clusters: a leaf is outside of its group: %+v, %+v", clusters, one, g)
				}
			}
		}
		for n, a := range all {
			if a.x < 0 || a.y < 0 || a.x+a.w > c.Width || a.y+a.h > c.Height {
				t.Errorf("%d clusters: %+v is outside of %d x %d", clusters, a, c.Width, c.Height)
			}
			for _, b := range all[:n] {
				if a.x < b.x+b.w && b.x < a.x+a.w && a.y < b.y+b.h && b.y < a.y+a.h {
					t.Errorf("%d clusters: %+v and %+v lie on each other", clusters, a, b)
				}
			}
		}
		want := 1 + clusters // the server; one does not answer, and one has a consumer
		if clusters < 5 {
			want = 2 // one that answers, and the server
		}
		if leaves != want || len(c.Bridges) != 1 || len(c.Boxes) != 5 {
			t.Errorf("%d clusters: %d leaves, %d bridges, %d CAs", clusters, leaves, len(c.Bridges), len(c.Boxes))
		}
		if clusters >= 50 && c.Height > 900 {
			t.Errorf("%d clusters: the chain is %d high", clusters, c.Height)
		}
		line := timelineOf(v)
		for _, b := range line.Bars {
			if b.X+b.W > line.Width || b.Start < line.Left || b.Start > b.X+b.W || len(b.Dots) > 0 && b.Dots[len(b.Dots)-1] > line.Right {
				t.Errorf("%d clusters: %+v", clusters, b)
			}
		}
		if len(line.Bars) != 7 {
			t.Errorf("%d clusters: %d bars", clusters, len(line.Bars))
		}
	}
}

// RELAYPKI_TEST_REPORT names a directory for a report to look at, of each size.
func TestReport(t *testing.T) {
	dir := os.Getenv("RELAYPKI_TEST_REPORT")
	if dir == "" {
		t.Skip("RELAYPKI_TEST_REPORT is not set")
	}
	for _, clusters := range []int{5, 50} {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("report-%d.html", clusters)), []byte(reportOf(t, midRotation(t, clusters, "otel-collector"))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func reportOf(t *testing.T, v inventory.Inventory) string {
	t.Helper()
	var out bytes.Buffer
	if err := writeReport(&out, v, inventoryView{sort: "kind"}.of(rowsOf(v))); err != nil {
		t.Fatal(err)
	}
	return out.String()
}
