package helm

import (
	"strings"
	"testing"
	"time"

	status "helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"

	ours "github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/procedure"
)

func TestNotOurs(t *testing.T) {
	for _, c := range []struct {
		name   string
		labels map[string]string
		says   string // nothing: it is ours
	}{
		{"ours", map[string]string{labelDigest: "d", ours.LabelMesh: "demo"}, ""},
		{"ours, from before releases named a mesh", map[string]string{labelDigest: "d"}, ""},
		{"somebody else's", map[string]string{}, "not made by relaypki"},
		{"to be adopted", map[string]string{labelDigest: "adopt"}, "not made by relaypki"},
		{"another mesh's", map[string]string{labelDigest: "d", ours.LabelMesh: "other"}, `the mesh "other"`},
	} {
		got := notOurs(&release.Release{Labels: c.labels}, "demo")
		if (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

func TestRemovalFence(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	rel := func(s status.Status, deployed, deleted time.Duration, removing bool) *release.Release {
		r := &release.Release{Info: &release.Info{Status: s, LastDeployed: now.Add(-deployed), Deleted: now.Add(-deleted)}, Labels: map[string]string{}}
		if removing {
			r.Labels[labelRemoving] = "true"
		}
		return r
	}
	for _, c := range []struct {
		name string
		last *release.Release
		want time.Duration
	}{
		{"deployed", rel(status.StatusDeployed, 0, 0, false), 0},
		{"failed", rel(status.StatusFailed, 0, 0, false), 0},
		{"uninstalled by us, history not yet", rel(status.StatusUninstalled, 0, 0, true), 0},
		{"an upgrade that has just begun", rel(status.StatusPendingUpgrade, time.Minute, 0, false), othersFencedFor - time.Minute},
		{"our removal, cut off a moment ago", rel(status.StatusUninstalling, time.Hour, 5*time.Second, true), oursFencedFor - 5*time.Second},
		{"our removal, by a clock that is ahead", rel(status.StatusUninstalling, time.Hour, -time.Hour, true), oursFencedFor},
		{"somebody else's removal", rel(status.StatusUninstalling, time.Hour, time.Minute, false), othersFencedFor - time.Minute},
	} {
		if got := removalFence(c.last, now); got != c.want {
			t.Errorf("%s: fenced for %s, want %s", c.name, got, c.want)
		}
	}
	if left := removalFence(rel(status.StatusUninstalling, time.Hour, time.Minute, true), now); left > 0 {
		t.Errorf("our removal, cut off a minute ago, is fenced for %s more", left)
	}
}

func TestDefinitionsAreKept(t *testing.T) {
	const manifest = `---
# Source: a/deployment.yaml
kind: Deployment
metadata:
  name: one
---
kind: CustomResourceDefinition
metadata:
  name: two
spec:
  group: example.com
---
kind: CustomResourceDefinition
metadata:
  name: three
  annotations:
    helm.sh/resource-policy: keep
`
	rel := &release.Release{Name: "r", Namespace: "n", Manifest: manifest}
	for range 2 { // an earlier try may have been cut off
		var out procedure.Removal
		keepDefinitions(rel, &out)
		if len(out.Kept) != 1 || !strings.HasPrefix(out.Kept[0].Object, "2 CustomResourceDefinitions") {
			t.Errorf("kept: %+v", out.Kept)
		}
		objects, err := objectsOf(rel)
		if err != nil || len(objects) != 3 {
			t.Fatalf("%d objects, %v:\n%s", len(objects), err, rel.Manifest)
		}
		for _, o := range objects {
			kept := o.GetAnnotations()["helm.sh/resource-policy"] == "keep"
			if kept != (o.GetKind() == "CustomResourceDefinition") {
				t.Errorf("%s %s: kept %v", o.GetKind(), o.GetName(), kept)
			}
		}
		if group := objects[1].Object["spec"].(map[string]any)["group"]; group != "example.com" {
			t.Errorf("the definition is not what it was: %v", objects[1].Object)
		}
	}
	plain := &release.Release{Manifest: "kind: Service\nmetadata: {name: a}\n"}
	var out procedure.Removal
	if keepDefinitions(plain, &out); len(out.Kept) > 0 || plain.Manifest != "kind: Service\nmetadata: {name: a}\n" {
		t.Errorf("a release without definitions: %+v, %q", out.Kept, plain.Manifest)
	}
}
