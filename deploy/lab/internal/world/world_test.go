package world

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAddRefusesNamesThatCannotBeUsed(t *testing.T) {
	for _, c := range []struct {
		names []string
		want  string // in the error; empty: accepted
	}{
		{[]string{"cluster1", "edge-7"}, ""},
		{[]string{"under_score"}, "under_score"},
		{[]string{"Upper"}, "Upper"},
		{[]string{"-dash"}, "-dash"},
		{[]string{strings.Repeat("a", 41)}, "at most 40"},
		{[]string{Management}, "always there"},
		{[]string{"twice", "twice"}, "given twice"},
	} {
		err := (&World{}).Add(c.names)
		if c.want == "" && err != nil {
			t.Errorf("%v: %v", c.names, err)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%v: error %v, want one with %q", c.names, err, c.want)
		}
	}
}

func TestAddKeepsWhatIsThere(t *testing.T) {
	w := &World{Workloads: []string{"b", "a"}}
	if err := w.Add([]string{"a", "c"}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(w.Clusters()); got != "[mgmt b a c]" {
		t.Errorf("clusters %s: new ones come last, old ones keep their place", got)
	}
}

func newWorld(t *testing.T, registry string, clusters ...string) *World {
	t.Helper()
	w, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(clusters); err != nil {
		t.Fatal(err)
	}
	if err := w.Assign(registry); err != nil {
		t.Fatal(err)
	}
	if err := w.Save(); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestTwoLabsShareNoPortAndNoAddress(t *testing.T) {
	registry := filepath.Join(t.TempDir(), "ports.json")
	one, two := newWorld(t, registry, "c1", "c2"), newWorld(t, registry, "c1", "c2")
	seen := map[string]string{}
	for _, w := range []*World{one, two} {
		for use := range w.Ports {
			if other := seen[w.Addr(use)]; other != "" {
				t.Errorf("%s of one and %s of another use are both on %s", use, other, w.Addr(use))
			}
			seen[w.Addr(use)] = use
		}
		for cluster, ip := range w.Addresses {
			if other := seen[ip]; other != "" {
				t.Errorf("load balancers of %s and %s are both on %s", cluster, other, ip)
			}
			seen[ip] = cluster
			if parsed := net.ParseIP(ip); parsed == nil || !parsed.IsLoopback() || strings.HasPrefix(ip, "127.0.") {
				t.Errorf("address %s of %s: want one of 127.0.0.0/8 outside 127.0.0.0/16", ip, cluster)
			}
		}
	}
	if len(seen) != 2*(8+3*3)+2*3 {
		t.Errorf("%d ports and addresses in use: some are missing or shared", len(seen))
	}
}

func TestPortsAreChosenOnce(t *testing.T) {
	registry := filepath.Join(t.TempDir(), "ports.json")
	w := newWorld(t, registry, "c1")
	before := fmt.Sprint(w.Ports, w.Addresses)

	again, err := Open(w.Dir)
	if err != nil {
		t.Fatal(err)
	}
	// Its own servers run by now.
	l, err := net.Listen("tcp", again.Addr("vault"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := again.Assign(registry); err != nil {
		t.Fatal(err)
	}
	if after := fmt.Sprint(again.Ports, again.Addresses); after != before {
		t.Errorf("ports were %s, now %s", before, after)
	}
	if err := again.Add([]string{"c2"}); err != nil {
		t.Fatal(err)
	}
	if err := again.Assign(registry); err != nil {
		t.Fatal(err)
	}
	for use, port := range w.Ports {
		if again.Ports[use] != port {
			t.Errorf("adding a cluster moved %s from %d to %d", use, port, again.Ports[use])
		}
	}
	if again.Ports["c2-apiserver"] == 0 || again.Addresses["c2"] == "" {
		t.Error("the new cluster has no port or address")
	}
}

func TestATakenPortIsAvoided(t *testing.T) {
	w := &World{Dir: t.TempDir(), Ports: map[string]int{}, Addresses: map[string]string{}}
	l, err := net.Listen("tcp", "127.0.0.1:8200")
	if err == nil { // else somebody else has it, which does as well
		defer l.Close()
	}
	if err := w.Assign(filepath.Join(t.TempDir(), "ports.json")); err != nil {
		t.Fatal(err)
	}
	if port := w.Ports["vault"]; port == 8200 || port < 20000 || port >= 32000 {
		t.Errorf("vault got port %d while 8200 is taken, want one of 20000 to 31999", port)
	}
}

func TestForgottenLabsGiveTheirPortsBack(t *testing.T) {
	registry := filepath.Join(t.TempDir(), "ports.json")
	one := newWorld(t, registry, "c1")
	if err := os.RemoveAll(one.Dir); err != nil {
		t.Fatal(err)
	}
	two := newWorld(t, registry, "c1")
	registered := func(w *World) bool {
		t.Helper()
		data, err := os.ReadFile(registry)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(data), w.Dir+`"`)
	}
	if registered(one) || !registered(two) {
		t.Errorf("the lab that is gone is registered: %v; the one that is there: %v", registered(one), registered(two))
	}
	if err := two.Release(registry); err != nil {
		t.Fatal(err)
	}
	if registered(two) {
		t.Error("released, but still registered")
	}
}

func TestWriteFileLeavesAnEqualFileAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "file")
	if err := WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) || before.ModTime() != after.ModTime() {
		t.Error("the file was written again with the same content")
	}
	if after.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", after.Mode().Perm())
	}
}
