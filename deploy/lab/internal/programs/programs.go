// Package programs finds the servers that the lab runs, and builds those that
// are not there into a cache outside the repository.
package programs

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/relaypki/relaypki/deploy/lab/internal/world"
)

// Shop finds and builds programs.
type Shop struct {
	// Repo is the root of the repository, Cache the directory of what was built.
	Repo, Cache string
	// GoVersion is part of what a build depends on.
	GoVersion string
}

// Open looks for the Go toolchain and the cache.
func Open(repo string) (*Shop, error) {
	cache := os.Getenv("RELAYPKI_LAB_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("no cache directory: %w; set RELAYPKI_LAB_CACHE to one", err)
		}
		cache = filepath.Join(base, "relaypki-lab")
	}
	cache, err := filepath.Abs(cache)
	if err != nil {
		return nil, err
	}
	out, err := exec.Command("go", "env", "GOVERSION").Output()
	if err != nil {
		return nil, fmt.Errorf("`go env GOVERSION`: %w; the lab builds its servers with Go: install Go 1.26 or later", err)
	}
	return &Shop{Repo: repo, Cache: cache, GoVersion: strings.TrimSpace(string(out))}, nil
}

// Found is where a tool comes from.
type Found struct {
	Tool Tool
	// Path is empty if the program has to be built first.
	Path string
	// Source is "variable", "PATH" or "cache".
	Source string
	// Version of a program on PATH.
	Version string
	// Refused says why a program on PATH was not taken.
	Refused string
}

// Command is the program and the arguments that choose the tool in it.
func (f Found) Command() []string {
	if f.Source == "cache" {
		return append([]string{f.Path}, f.Tool.Args...)
	}
	return []string{f.Path}
}

// Look says where a tool comes from, without building anything.
func (s *Shop) Look(ctx context.Context, tool Tool) (Found, error) {
	found := Found{Tool: tool}
	variable := "RELAYPKI_LAB_" + strings.ToUpper(strings.ReplaceAll(tool.Name, "-", "_"))
	if path := os.Getenv(variable); path != "" {
		abs, err := exec.LookPath(path)
		if err == nil {
			abs, err = filepath.Abs(abs)
		}
		if err != nil {
			return found, fmt.Errorf("%s: %w", variable, err)
		}
		found.Path, found.Source = abs, "variable"
		return found, nil
	}
	if path := s.onPath(tool); path != "" {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, path, tool.VersionArgs...).CombinedOutput()
		found.Version = Version(string(out))
		switch {
		case err != nil:
			found.Refused = fmt.Sprintf("%s does not tell its version: %v", path, err)
		case !Fits(found.Version, tool.From, tool.Below):
			found.Refused = fmt.Sprintf("%s is %s, want %s up to below %s", path, found.Version, tool.From, tool.Below)
		default:
			found.Path, found.Source = path, "PATH"
			return found, nil
		}
	}
	program, _ := Find(tool.Program)
	path, err := s.Target(program)
	if err != nil {
		return found, err
	}
	found.Source = "cache"
	if _, err := os.Stat(path); err == nil {
		found.Path = path
	}
	return found, nil
}

// onPath is the tool on PATH; links into our own cache (a shell that has read
// .lab/env) do not count.
func (s *Shop) onPath(tool Tool) string {
	if tool.VersionArgs == nil {
		return ""
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		path := filepath.Join(dir, tool.Name)
		info, err := os.Stat(path)
		if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			continue
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil || strings.HasPrefix(real, s.Cache+string(filepath.Separator)) {
			continue
		}
		if abs, err := filepath.Abs(path); err == nil {
			return abs
		}
	}
	return ""
}

// Target is the file in the cache that a program has with its present sources.
func (s *Shop) Target(p Program) (string, error) {
	sum, err := s.sum(p)
	if err != nil {
		return "", err
	}
	return filepath.Join(s.Cache, p.Name, sum, p.Name), nil
}

// sum identifies what a build depends on: toolchain, flags, sources. Modules
// outside the directory are pinned by go.mod and go.sum.
func (s *Shop) sum(p Program) (string, error) {
	dir := filepath.Join(s.Repo, p.Module)
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".")) {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() && !strings.HasSuffix(path, "_test.go") && !strings.HasSuffix(path, ".md") {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("sources of %s: %w", p.Name, err)
	}
	sort.Strings(files)
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n%s\n", s.GoVersion, p.Package, p.Tags, p.LDFlags)
	for _, path := range files {
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return "", err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n", rel, len(data))
		h.Write(data)
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// Build builds a program unless it is in the cache, and returns its path. Step
// is called with what the compiler is doing. One program is built at a time on
// a machine, at low priority: the linker alone needs gigabytes.
func (s *Shop) Build(ctx context.Context, p Program, step func(doing string)) (string, error) {
	target, err := s.Target(p)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(target); err == nil {
		return target, nil
	}
	step("waiting for another build on this machine")
	unlock, err := world.Lock(filepath.Join(s.Cache, "build.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(target); err == nil {
		return target, nil
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return "", err
	}
	partial := target + ".partial"
	// Not by setpriority(2) on the process: that is for one of its threads alone.
	args := []string{"-n", "10", "go", "build", "-v", "-buildvcs=false", "-tags", p.Tags, "-ldflags", strings.TrimSpace("-s -w " + p.LDFlags), "-o", partial, p.Package}
	cmd := exec.CommandContext(ctx, "nice", args...)
	cmd.Dir = filepath.Join(s.Repo, p.Module)
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=readonly")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	out, err := cmd.StderrPipe()
	if err != nil {
		return "", err
	}
	cmd.Stdout = cmd.Stderr
	step("starting the compiler")
	if err := cmd.Start(); err != nil {
		return "", err
	}
	said := follow(out, step)
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fmt.Errorf("building %s failed: module %s, package %s: %w\n%s\n(run again there: go build -tags %q -ldflags %q %s)",
			p.Name, p.Module, p.Package, err, indent(said), p.Tags, "-s -w "+p.LDFlags, p.Package)
	}
	if err := os.Rename(partial, target); err != nil {
		return "", err
	}
	s.dropOld(filepath.Dir(target))
	return target, nil
}

// follow tells each line of the compiler's output to step and returns the last
// ones that are not about progress.
func follow(r io.Reader, step func(string)) []string {
	var said []string
	packages, downloads := 0, 0
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "go: downloading "):
			downloads++
			step(fmt.Sprintf("downloading module %d: %s", downloads, strings.TrimPrefix(line, "go: downloading ")))
		case line != "" && !strings.ContainsAny(line, " \t#:"):
			packages++
			step(fmt.Sprintf("compiling package %d: %s", packages, line))
		default:
			if said = append(said, line); len(said) > 25 {
				said = said[1:]
			}
		}
	}
	// A line beyond the buffer ends the scan; the compiler must not block on it.
	_, _ = io.Copy(io.Discard, r)
	return said
}

func indent(lines []string) string { return "    " + strings.Join(lines, "\n    ") }

// dropOld keeps the two youngest builds of a program: a lab that still runs the
// one before is not disturbed.
func (s *Shop) dropOld(current string) {
	entries, err := os.ReadDir(filepath.Dir(current))
	if err != nil {
		return
	}
	type build struct {
		path string
		when time.Time
	}
	var builds []build
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.IsDir() {
			builds = append(builds, build{filepath.Join(filepath.Dir(current), e.Name()), info.ModTime()})
		}
	}
	sort.Slice(builds, func(i, j int) bool { return builds[i].when.After(builds[j].when) })
	for i, b := range builds {
		if i >= 2 && b.path != current {
			_ = os.RemoveAll(b.path)
		}
	}
}

// ModuleDir is where the sources of a dependency of a nested module are.
func (s *Shop) ModuleDir(ctx context.Context, nested, module string) (dir, version string, err error) {
	// Unlike `go list`, this fetches what is not there.
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module)
	cmd.Dir = filepath.Join(s.Repo, nested)
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=readonly")
	out, err := cmd.Output()
	var got struct{ Dir, Version, Error string }
	if jsonErr := json.Unmarshal(out, &got); err == nil {
		err = jsonErr
	}
	if got.Error != "" {
		err = errors.New(got.Error)
	}
	if err != nil {
		return "", "", fmt.Errorf("module %s of %s: %w", module, nested, err)
	}
	return got.Dir, got.Version, nil
}
