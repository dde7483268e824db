package workflows

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/strict"
)

// longestSettle is how long agents may take to connect; one that has not by
// then will not.
const longestSettle = 30 * time.Minute

// VerifyMesh looks at a mesh and says what is not as it should be. It changes
// nothing. A mesh that is not healthy ends it as failed, with all findings in
// the error's details, so that a schedule's failures can be seen.
func VerifyMesh(ctx workflow.Context, in procedure.VerifyInput) (procedure.VerifyResult, error) {
	v := &verification{in: in, result: procedure.VerifyResult{Mesh: in.Mesh}}
	var err error
	if v.report, err = newReport(ctx, procedure.Progress{Procedure: procedure.VerifyMesh, Mesh: in.Mesh, Phase: "verification"}); err != nil {
		return v.result, err
	}
	// Strict for what people type; a schedule's stored input, and a parent's, may
	// be of another release.
	var problems []strict.Problem
	if typed(ctx) {
		problems = in.Problems
	}
	if in.Mesh == "" {
		problems = append(problems, strict.Problem{Path: "mesh", Message: "is missing"})
	}
	if settle := in.Settle.Duration; settle < 0 || settle > longestSettle {
		problems = append(problems, strict.Problem{Path: "settle", Message: fmt.Sprintf("%s is not between 0s and %s", in.Settle, longestSettle)})
	}
	if err := invalid(problems); err != nil {
		return v.result, v.report.finish(ctx, err)
	}
	if err := v.run(ctx); err != nil {
		v.report.Told = tell(ctx, v.report, err, whatFailed(v.report.Progress, err))
		return v.result, v.report.finish(ctx, err)
	}
	if !v.result.Healthy {
		v.result.Told = tell(ctx, v.report, unhealthy(v.result), failing(v.result.Findings))
		err := unhealthy(v.result)
		_ = v.report.finish(ctx, err)
		return v.result, err
	}
	return v.result, v.report.finish(ctx, nil)
}

var scheduledBy = temporal.NewSearchAttributeKeyKeyword("TemporalScheduledById")

// typed says that a person has started the run.
func typed(ctx workflow.Context) bool {
	return !scheduled(ctx) && workflow.GetInfo(ctx).ParentWorkflowExecution == nil
}

// scheduled says that a schedule has started the run.
func scheduled(ctx workflow.Context) bool {
	_, is := workflow.GetTypedSearchAttributes(ctx).GetKeyword(scheduledBy)
	return is
}

// unhealthy is the error of a mesh with failing checks: the findings are its details.
func unhealthy(result procedure.VerifyResult) error {
	var failing []string
	for _, f := range result.Findings {
		if f.Status == check.Fail {
			line := f.Cluster + ", " + f.Check + ": " + f.Message
			if f.Remedy != "" {
				line += ". " + f.Remedy
			}
			failing = append(failing, line)
		}
	}
	return failure.PermanentWithDetails(failure.Unhealthy,
		fmt.Sprintf("%d of %d checks fail:\n- %s", len(failing), result.Checks, strings.Join(failing, "\n- ")), result)
}

// failing are the checks that fail, by their names alone.
func failing(findings []check.Finding) []string {
	var names []string
	for _, f := range findings {
		if f.Status == check.Fail {
			names = append(names, f.Cluster+", "+f.Check)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

type verification struct {
	in     procedure.VerifyInput
	report *report
	result procedure.VerifyResult
}

func (v *verification) run(ctx workflow.Context) error {
	queues, err := v.report.describe(ctx, "verification")
	if err != nil {
		return err
	}
	record, err := call[cluster.MeshRecord](ctx, summarized(looking, "Read the mesh's record"), kubernetes.ReadMesh,
		cluster.ReadMeshInput{Mesh: v.in.Mesh, Management: v.in.Management, Namespace: v.in.Namespace})
	if err != nil {
		return err
	}
	if !record.Found {
		return failure.Permanent(failure.InvalidInput, "there is no mesh %q in the management cluster; set it up first: relaypki setup -f mesh.yaml", v.in.Mesh)
	}
	spec, err := only(record.Spec.WithDefaults(), v.in.Clusters)
	if err != nil {
		return err
	}
	if len(v.in.Clusters) == 0 {
		spec, v.result.Findings = settledMembers(spec, record)
	}
	v.report.Clusters = pendingChecks(spec)
	v.findings(ctx, looks{
		report: v.report, spec: spec, others: others(record.Spec, spec), pin: record.Rotation.Pin(), standbyPEM: standby(ctx, looking, spec, record), queues: queues,
		each: verifying, summary: "Verify cluster ", settle: v.in.Settle,
		unseen: func(cluster string, err error) check.Finding {
			return check.Finding{Check: "look", Cluster: cluster, Status: check.Fail, Message: failure.Message(err), Remedy: "Put that right and verify again"}
		},
	})
	return ctx.Err()
}

// standby is the root that stands by in Vault, if agents are to trust one: in an
// emergency they trust what that gives them. That there is none, or that Vault does
// not answer, the checks of the management cluster say.
func standby(ctx workflow.Context, within workflow.ActivityOptions, spec mesh.Spec, record cluster.MeshRecord) string {
	if !spec.PKI.StandbyRoot || record.Rotation != nil && record.Rotation.Procedure == procedure.EmergencyReissue {
		return ""
	}
	seen, err := call[vault.SurveyResult](ctx, summarized(within, "Read the roots in Vault"), vaults.Survey, vault.SurveyInput{Spec: spec.Only("")})
	if err != nil {
		workflow.GetLogger(ctx).Warn("whether agents trust the root that stands by is not looked at", "error", err)
		return ""
	}
	root, _ := vault.StandingBy(seen.Roots, max(record.Generations.Root, 1))
	return root.CertificatePEM
}

// only is the spec with the named workloads; with all if none is named.
func only(spec mesh.Spec, names []string) (mesh.Spec, error) {
	if len(names) == 0 {
		return spec, nil
	}
	var problems []strict.Problem
	for i, name := range names {
		if _, ok := spec.Workload(name); !ok {
			problems = append(problems, strict.Problem{Path: fmt.Sprintf("clusters[%d]", i), Message: fmt.Sprintf("%q is no member of mesh %s", name, spec.Mesh)})
		}
	}
	spec.Workloads = slices.DeleteFunc(slices.Clone(spec.Workloads), func(w mesh.Workload) bool { return !slices.Contains(names, w.Name) })
	return spec, invalid(problems)
}

// settledMembers is the spec without the members that are just being added or removed:
// that they do not work is no news, and who is at it proves what has to be
// proved. That they are not checked is said.
func settledMembers(spec mesh.Spec, record cluster.MeshRecord) (mesh.Spec, []check.Finding) {
	var moving []check.Finding
	all := spec.Workloads
	spec.Workloads = nil
	for _, w := range all {
		what, finish := record.Moving(w.Name)
		if what == "" {
			spec.Workloads = append(spec.Workloads, w)
			continue
		}
		moving = append(moving, check.Finding{Check: check.Membership, Cluster: w.Name, Status: check.Warn,
			Message: "not checked: " + what, Remedy: "if nothing is at it any more, go on: " + finish})
	}
	return spec, moving
}

// others are the members of a mesh that a spec of it leaves out.
func others(all, spec mesh.Spec) []string {
	var names []string
	for _, w := range all.Workloads {
		if _, ok := spec.Workload(w.Name); !ok {
			names = append(names, w.Name)
		}
	}
	return names
}

// findings has every cluster checked, and counts what was found.
func (v *verification) findings(ctx workflow.Context, l looks) {
	v.result.Findings = append(v.result.Findings, l.findings(ctx)...)
	sort.SliceStable(v.result.Findings, func(i, j int) bool {
		return rank(l.spec, v.result.Findings[i].Cluster) < rank(l.spec, v.result.Findings[j].Cluster)
	})
	v.result.Healthy, v.result.Checks = check.Healthy(v.result.Findings), len(v.result.Findings)
	if v.result.Checks > procedure.MostFindings {
		v.result.Findings = slices.DeleteFunc(v.result.Findings, func(f check.Finding) bool { return f.Status == check.Pass })
	}
}
