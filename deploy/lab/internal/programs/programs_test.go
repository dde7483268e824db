package programs

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestVersionsThatFit(t *testing.T) {
	tool := func(name string) Tool {
		for _, tool := range Tools {
			if tool.Name == name {
				return tool
			}
		}
		t.Fatalf("no tool %s", name)
		return Tool{}
	}
	for _, c := range []struct {
		tool, output string
		want         bool
	}{
		{"kubectl", "Client Version: v1.37.0\nKustomize Version: v5.8.1", true},
		{"kubectl", "Client Version: v1.36.9", true},
		{"kubectl", "Client Version: v1.38.1", true},
		{"kubectl", "Client Version: v1.39.0", false},
		{"kubectl", "Client Version: v1.32.4-dispatcher", false},
		{"kube-apiserver", "Kubernetes v1.37.2", true},
		{"kube-apiserver", "Kubernetes v1.36.2", false},
		{"kube-apiserver", "Kubernetes v1.37.0-rc.1", false},
		{"etcd", "etcd Version: 3.6.4\nGit SHA: x\nGo Version: go1.24.5", true},
		{"etcd", "etcd Version: 3.5.21", false},
		{"vault", "Vault v1.21.1 (2453aac2638a6ae243341b4e0657fd8aea1cbf18), built 2025-11-18T13:04:32Z", true},
		{"vault", "Vault v1.21.1+ent (abc), built x", false},
		{"vault", "Vault v2.0.0", false},
		{"kwok", "kwok version 0.8.0", true},
		{"temporal", "temporal version 1.5.1 (Server 1.29.1, UI 2.42.1)", true},
		{"temporal", "temporal version 1.4.9", false},
		{"kwok", "no number at all", false},
	} {
		tl := tool(c.tool)
		if got := Fits(Version(c.output), tl.From, tl.Below); got != c.want {
			t.Errorf("%s %q (version %q): fits is %v, want %v", c.tool, c.output, Version(c.output), got, c.want)
		}
	}
}

func TestEveryToolHasAProgram(t *testing.T) {
	for _, tool := range Tools {
		if _, ok := Find(tool.Program); !ok {
			t.Errorf("%s comes from program %q, which nothing builds", tool.Name, tool.Program)
		}
	}
}

func shopWith(t *testing.T, files map[string]string) (*Shop, Program) {
	t.Helper()
	s := &Shop{Repo: t.TempDir(), Cache: t.TempDir(), GoVersion: "go1.26.0"}
	for name, content := range files {
		write(t, filepath.Join(s.Repo, "mod", name), content, 0o644)
	}
	return s, Program{Name: "prog", Module: "mod", Package: "."}
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func target(t *testing.T, s *Shop, p Program) string {
	t.Helper()
	path, err := s.Target(p)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhatABuildDependsOn(t *testing.T) {
	s, p := shopWith(t, map[string]string{"go.mod": "module x\n\ngo 1.26\n", "main.go": "package main\n\nfunc main() {}\n"})
	first := target(t, s, p)
	same := func(why string, want bool) {
		t.Helper()
		if got := target(t, s, p) == first; got != want {
			t.Errorf("%s: same build is %v, want %v", why, got, want)
		}
	}
	same("nothing changed", true)
	write(t, filepath.Join(s.Repo, "mod", "main_test.go"), "package main\n", 0o644)
	write(t, filepath.Join(s.Repo, "mod", "README.md"), "x", 0o644)
	same("a test and a README came", true)
	write(t, filepath.Join(s.Repo, "mod", "embedded.yaml"), "x", 0o644)
	same("a file that may be embedded came", false)
	first = target(t, s, p)
	write(t, filepath.Join(s.Repo, "mod", "main.go"), "package main\n\nfunc main() { println() }\n", 0o644)
	same("a source changed", false)
	first = target(t, s, p)
	p.LDFlags = "-X main.version=2"
	same("other flags", false)
	first = target(t, s, p)
	s.GoVersion = "go1.27.0"
	same("another Go", false)
}

func TestBuildOnceAndTellWhatFailed(t *testing.T) {
	ctx := context.Background()
	s, p := shopWith(t, map[string]string{"go.mod": "module x\n\ngo 1.26\n", "main.go": "package main\n\nfunc main() {}\n"})
	path, err := s.Build(ctx, p, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Build(ctx, p, func(doing string) { t.Errorf("built again: %s", doing) }); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the program is another file: %v", err)
	}
	write(t, filepath.Join(s.Repo, "mod", "main.go"), "package main\n\nfunc main() { undefinedName() }\n", 0o644)
	_, err = s.Build(ctx, p, func(string) {})
	if err == nil {
		t.Fatal("a program that does not compile was built")
	}
	for _, want := range []string{"prog", "module mod", "main.go:3", "undefinedName"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %q: %v", want, err)
		}
	}
}

func TestLookPrefersVariableThenPath(t *testing.T) {
	ctx := context.Background()
	s, p := shopWith(t, map[string]string{"go.mod": "module x\n"})
	saved := Table
	t.Cleanup(func() { Table = saved })
	Table = []Program{p}
	tool := Tool{Name: "some-tool", Program: "prog", Args: []string{"sub"}, VersionArgs: []string{"--version"}, From: "1.2.0", Below: "1.3.0"}
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	look := func() Found {
		t.Helper()
		f, err := s.Look(ctx, tool)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if f := look(); f.Path != "" || f.Source != "cache" {
		t.Errorf("nothing is there, but found %+v", f)
	}
	script := filepath.Join(bin, "some-tool")
	write(t, script, "#!/bin/sh\necho some-tool v1.1.9\n", 0o755)
	if f := look(); f.Path != "" || !strings.Contains(f.Refused, "1.1.9") {
		t.Errorf("an old version on PATH: found %+v, want it refused with its version", f)
	}
	write(t, script, "#!/bin/sh\necho some-tool v1.2.5\n", 0o755)
	if f := look(); f.Path != script || strings.Join(f.Command(), " ") != script {
		t.Errorf("a fitting version on PATH: found %+v", f)
	}
	t.Setenv("RELAYPKI_LAB_SOME_TOOL", "/bin/true")
	if f := look(); f.Path != "/bin/true" || f.Source != "variable" {
		t.Errorf("with the variable set: found %+v", f)
	}
	t.Setenv("RELAYPKI_LAB_SOME_TOOL", filepath.Join(bin, "not-there"))
	if _, err := s.Look(ctx, tool); err == nil || !strings.Contains(err.Error(), "RELAYPKI_LAB_SOME_TOOL") {
		t.Errorf("a variable that names nothing: error %v", err)
	}
	t.Setenv("RELAYPKI_LAB_SOME_TOOL", "")

	// A shell that has read .lab/env has links into the cache on its PATH.
	built := target(t, s, p)
	write(t, built, "#!/bin/sh\necho some-tool v1.2.5\n", 0o755)
	if err := os.Remove(script); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(built, script); err != nil {
		t.Fatal(err)
	}
	if f := look(); f.Source != "cache" || strings.Join(f.Command(), " ") != built+" sub" {
		t.Errorf("our own program on PATH: found %+v, command %v", f, f.Command())
	}
}
