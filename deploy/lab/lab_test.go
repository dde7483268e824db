package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/deploy/lab/internal/world"
)

func TestExportsSurviveTheShell(t *testing.T) {
	odd := `it's "odd" $HOME \ ` + "`x`"
	path := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(path, exports([]string{"PLAIN=https://127.0.0.1:8200", "ODD=" + odd}), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", `. "$0"; printf '%s|%s' "$PLAIN" "$ODD"`, path).Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := "https://127.0.0.1:8200|" + odd; string(out) != want {
		t.Errorf("the shell reads %q, want %q", out, want)
	}
}

func TestAProcessIsToldFromALaterOneOfTheSameNumber(t *testing.T) {
	w := &world.World{Dir: t.TempDir()}
	if _, ok := running(w); ok {
		t.Error("a lab that was never started is running")
	}
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	write := func(p process) {
		t.Helper()
		data := `{"pid":` + strconv.Itoa(p.PID) + `,"start":"` + p.Start + `","boot":"` + p.Boot + `"}`
		if err := os.WriteFile(w.Path("lab.pid"), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(p)
	if _, ok := running(w); !ok {
		t.Error("the recorded process is not seen")
	}
	other := p
	other.Start = "1"
	write(other)
	if _, ok := running(w); ok {
		t.Error("a process that started at another time is taken for the supervisor")
	}
	write(p)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		if _, ok := running(w); !ok { // a zombie counts as ended
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a killed process is still taken for the supervisor")
		}
	}
}

func TestSocketPathFitsTheKernel(t *testing.T) {
	short := socketPath("/srv/lab")
	if short != "/srv/lab/lab.sock" {
		t.Errorf("socket of a short directory is %s", short)
	}
	deep := "/" + strings.Repeat("deep/", 40)
	long, other := socketPath(deep+"a"), socketPath(deep+"b")
	if len(long) > 107 || long == other {
		t.Errorf("sockets of long directories: %s and %s, want short and different ones", long, other)
	}
}

func TestChartCopyHasAVersionAndNothingStale(t *testing.T) {
	source, target := t.TempDir(), t.TempDir()
	for name, content := range map[string]string{
		"Chart.yaml":        "name: x\nversion: v0.0.0\nappVersion: v0.0.0\n",
		"templates/a.yaml":  "kind: A\n",
		"tests/t_test.yaml": "x",
	} {
		if err := world.WriteFile(filepath.Join(source, name), []byte(content), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	if err := world.WriteFile(filepath.Join(target, "templates", "old.yaml"), []byte("kind: Old\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := copyChart(source, target, "v1.21.2"); err != nil {
		t.Fatal(err)
	}
	chart, err := os.ReadFile(filepath.Join(target, "Chart.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "name: x\nversion: v1.21.2\nappVersion: v1.21.2\n"; string(chart) != want {
		t.Errorf("Chart.yaml is %q, want %q", chart, want)
	}
	for name, want := range map[string]bool{"templates/a.yaml": true, "templates/old.yaml": false, "tests/t_test.yaml": false} {
		if _, err := os.Stat(filepath.Join(target, name)); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", name, err == nil, want)
		}
	}
}
