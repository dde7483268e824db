package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/procedure"
)

// breakage is one thing that is wrong, made for real, and what a diagnosis has to say
// of it.
type breakage struct {
	name string
	// check, cluster and object are the finding's; status is what it is at least.
	check, cluster, object string
	status                 check.Status
	// says is in its message, evidence in its evidence, command in its commands.
	says, evidence, command string
	// mend is what relaypki offers; empty if that is nothing.
	mend check.Doing
	// make breaks it. undo puts right what relaypki does not mend, or would otherwise.
	make, undo func(t *testing.T)
	// pasted says that the finding's own commands are what puts it right.
	pasted bool
}

// ward is breakages that are made at once.
type ward struct {
	name      string
	breakages []breakage
	// also are checks that find the same from another side, or what comes of it.
	also []string
}

// hospital is where a mesh is broken, diagnosed and mended.
type hospital struct{ *world }

// diagnosis is what `relaypki diagnose` prints, with its exit code.
func (h hospital) diagnosis(t *testing.T, args ...string) (procedure.DiagnoseResult, int) {
	t.Helper()
	out, errOut, code := h.relaypki(t, append([]string{"diagnose", "demo", "-o", "json"}, args...)...)
	if code == exitFailed || code == exitBadInput || code == exitUnreachable {
		t.Fatalf("relaypki diagnose %s: exit code %d\n%s\n%s", strings.Join(args, " "), code, out, errOut)
	}
	return resultOf[procedure.DiagnoseResult](t, out), code
}

// TestDiagnosis: what is wrong with a mesh is found and named, with the evidence and
// the remedy, one thing after the other, each made for real; and what relaypki says
// that it can mend, it mends. A mesh that is well has no finding.
func TestDiagnosis(t *testing.T) {
	w := labWorld(t, "cluster1", "cluster2")
	w.startWorker(t, filepath.Join(repository, "bin", "relaypki-worker"))
	h := hospital{w}
	h.becomes(t, "")
	h.well(t, "a mesh that was just set up")
	for _, ward := range h.wards() {
		if !t.Run(ward.name, func(t *testing.T) { h.treat(t, ward) }) {
			h.well(t, "the mesh, on which what follows builds,")
		}
	}
	t.Run("clocks that differ", h.clocksThatDiffer)
	t.Run("a cluster that hangs", h.clusterThatHangs)
	w.noSecrets(t)
}

// wardsMesh has one agent that reads changed Secrets by itself, and one that does not.
const wardsMesh = `mesh: demo
verify: {every: 0s}
rotation: {maintain: 0s}
rollout: {retryFor: 1m}
certificates: {server: {keyAlgorithm: ECDSA}, client: {keyAlgorithm: ECDSA}}
workloads:
- {name: cluster1, agent: {reload: hot}}
- {name: cluster2, agent: {reload: restart}, agentValues: {standin: {agent: {reload: restartOnly}}}}
`

// well makes sure that nothing is found.
func (h hospital) well(t *testing.T, what string) {
	t.Helper()
	var last procedure.DiagnoseResult
	eventually(t, time.Minute, func() error {
		var code int
		if last, code = h.diagnosis(t); len(last.Findings) > 0 || code != 0 {
			return fmt.Errorf("%s has findings, exit code %d:\n%s", what, code, listed(last.Findings))
		}
		return nil
	})
	if last.Checks < 60 {
		t.Errorf("%s: only %d checks were made", what, last.Checks)
	}
}

func listed(findings []check.Finding) string {
	var b strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&b, "- %s %s %s %s: %s\n", f.Status, f.Cluster, f.Check, f.Object, f.Message)
		for _, e := range f.Evidence {
			fmt.Fprintf(&b, "    | %s\n", e)
		}
		for _, c := range f.Commands {
			fmt.Fprintf(&b, "    $ %s\n", c)
		}
		if f.Mend != nil {
			fmt.Fprintf(&b, "    mend: %s %s\n", f.Mend.Do, f.Mend.Cluster)
		}
	}
	return b.String()
}

// treat breaks, diagnoses and mends.
func (h hospital) treat(t *testing.T, ward ward) {
	began := time.Now()
	for _, b := range ward.breakages {
		b.make(t)
	}
	var found procedure.DiagnoseResult
	code := 0
	eventually(t, 90*time.Second, func() error {
		found, code = h.diagnosis(t)
		var missing []string
		for _, b := range ward.breakages {
			if problem := b.in(found.Findings); problem != "" {
				missing = append(missing, problem)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("%s\nfound:\n%s", strings.Join(missing, "\n"), listed(found.Findings))
		}
		return nil
	})
	t.Logf("found after %s", time.Since(began).Round(time.Second))
	want := exitNotes
	for _, f := range found.Findings {
		own := slices.ContainsFunc(ward.breakages, func(b breakage) bool { return b.is(f) })
		if !own && !slices.Contains(ward.also, f.Check) {
			t.Errorf("besides it finds:\n%s", listed([]check.Finding{f}))
		}
		switch {
		case f.Status == check.Fail && !f.Denied:
			want = exitUnhealthy
		case f.Denied && want != exitUnhealthy:
			want = exitDenied
		case f.Status == check.Warn && want == exitNotes:
			want = exitWarnings
		}
	}
	if code != want {
		t.Errorf("exit code %d, want %d:\n%s", code, want, listed(found.Findings))
	}

	mends, undone := false, false
	for _, b := range ward.breakages {
		if b.undo != nil {
			b.undo(t)
			undone = true
		}
		if b.pasted {
			h.paste(t, b, found.Findings)
			undone = true
		}
		mends = mends || b.mend != ""
	}
	if mends {
		mended, code := h.diagnosis(t, "--fix", "--yes")
		for _, m := range mended.Mended {
			if m.Error != "" {
				t.Errorf("%s %s: %s", m.Do, m.Cluster, m.Error)
			}
		}
		if code != 0 || len(mended.Findings) > 0 || len(mended.Mended) == 0 && !undone { // else it may have become well by itself
			t.Errorf("after relaypki has mended %v, exit code %d:\n%s", mended.Mended, code, listed(mended.Findings))
		}
	}
	h.well(t, "the mesh after it was mended")
	t.Logf("well again after %s", time.Since(began).Round(time.Second))
}

// is says that a finding is of the breakage.
func (b breakage) is(f check.Finding) bool {
	return f.Check == b.check && f.Cluster == b.cluster && (b.object == "" || strings.HasPrefix(f.Object, b.object))
}

// in says what the findings lack of the breakage.
func (b breakage) in(findings []check.Finding) string {
	lacks := fmt.Sprintf("%s: no finding %s of %s", b.name, b.check, b.cluster)
	for _, f := range findings {
		if !b.is(f) {
			continue
		}
		var problems []string
		if f.Status != b.status {
			problems = append(problems, fmt.Sprintf("it is %s, want %s", f.Status, b.status))
		}
		for what, text := range map[string][2]string{
			"message": {f.Message, b.says}, "evidence": {strings.Join(f.Evidence, "\n"), b.evidence}, "commands": {strings.Join(f.Commands, "\n"), b.command},
		} {
			if !strings.Contains(text[0], text[1]) {
				problems = append(problems, fmt.Sprintf("its %s lacks %q", what, text[1]))
			}
		}
		if len(f.Evidence) == 0 || f.Remedy == "" {
			problems = append(problems, "it has no evidence, or no remedy")
		}
		if has := f.Mend != nil; has != (b.mend != "") || has && f.Mend.Do != b.mend {
			problems = append(problems, fmt.Sprintf("its mend is %v, want %q", f.Mend, b.mend))
		}
		if len(problems) == 0 {
			return ""
		}
		lacks = fmt.Sprintf("%s: %s of %s: %s", b.name, b.check, b.cluster, strings.Join(problems, "; "))
	}
	return lacks
}
