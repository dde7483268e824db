package helm

import (
	"context"
	"fmt"

	"helm.sh/helm/v4/pkg/release/common"

	"github.com/relaypki/relaypki/internal/failure"
	ours "github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/procedure"
)

// adopted, as the digest of a release, says that relaypki may replace it.
const adopted = "adopt"

// AdoptRelease takes over a release that somebody else has made: it is labelled,
// so that the next setup upgrades it. Nothing of what runs is touched.
func (a *Activities) AdoptRelease(ctx context.Context, in ChartInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	cfg, err := configuration(c, in.Namespace, a.Clients.Log)
	if err != nil {
		return out, failure.Permanent(failure.Preflight, "cluster %q: Helm: %v", c.Name, err)
	}
	last, err := lastRelease(ctx, c, cfg, in)
	if err != nil || last == nil || last.Info.Status == common.StatusUninstalled {
		return out, err
	}
	name := fmt.Sprintf("Helm release %s/%s", in.Namespace, in.Release)
	if owner := ours.OtherMesh(last.Labels, in.Mesh); last.Labels[labelDigest] != "" {
		if owner != "" && last.Labels[ours.LabelMesh] != "" {
			return out, failure.Permanent(failure.Conflict, "cluster %q: %s belongs to the mesh %q", c.Name, name, owner)
		}
		return out, nil
	}
	out.Changed(procedure.Update, name, fmt.Sprintf("labelled as relaypki's; it is %s %s, and the next setup upgrades it", last.Chart.Metadata.Name, last.Chart.Metadata.Version))
	if !in.Mode.Writes() {
		out.By(in.Mode, ours.Kubectl(c, "-n", in.Namespace, "label", "secret", fmt.Sprintf("sh.helm.release.v1.%s.v%d", in.Release, last.Version),
			labelDigest+"="+adopted, ours.LabelMesh+"="+in.Mesh))
		return out, nil
	}
	if last.Labels == nil {
		last.Labels = map[string]string{}
	}
	last.Labels[labelDigest], last.Labels[ours.LabelMesh] = adopted, in.Mesh
	if err := cfg.Releases.Update(last); err != nil {
		return out, helmError(ctx, c, name, err)
	}
	return out, nil
}
