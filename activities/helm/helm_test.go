package helm

import (
	"slices"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/chart/common"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	status "helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

func TestDecide(t *testing.T) {
	values := map[string]any{"a": 1.0}
	with := func(s status.Status, digest string, change ...func(*release.Release)) *release.Release {
		last := &release.Release{Info: &release.Info{Status: s}, Labels: map[string]string{labelDigest: digest},
			Chart: &chart.Chart{Metadata: &chart.Metadata{Version: "1"}}, Config: values}
		for _, c := range change {
			c(last)
		}
		return last
	}
	want := wanted{chart: &chart.Chart{Metadata: &chart.Metadata{Version: "1"}}, values: map[string]any{"a": 1}, digest: "d"}
	for _, c := range []struct {
		name string
		last *release.Release
		want deed
	}{
		{"no release", nil, install},
		{"deployed and the same", with(status.StatusDeployed, "d"), keep},
		{"deployed with something else", with(status.StatusDeployed, "e"), upgrade},
		{"other values by hand, which inherit the digest", with(status.StatusDeployed, "d", func(r *release.Release) { r.Config = map[string]any{"a": 2.0} }), upgrade},
		{"another version by hand", with(status.StatusDeployed, "d", func(r *release.Release) { r.Chart.Metadata.Version = "2" }), upgrade},
		{"to be adopted", with(status.StatusDeployed, "adopt"), upgrade},
		{"failed with the same", with(status.StatusFailed, "d"), upgrade},
		{"left in an install", with(status.StatusPendingInstall, "d"), heal},
		{"left in an upgrade", with(status.StatusPendingUpgrade, "d"), heal},
		{"left in a rollback", with(status.StatusPendingRollback, "d"), heal},
		{"left in an uninstall", with(status.StatusUninstalling, "d"), heal},
		{"uninstalled, history kept", with(status.StatusUninstalled, "d"), replace},
	} {
		if got := decide(c.last, want); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestFence(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := wanted{chart: &chart.Chart{Metadata: &chart.Metadata{Version: "1"}}, digest: "d"}
	pending := func(ago time.Duration, version string) *release.Release {
		return &release.Release{Info: &release.Info{Status: status.StatusPendingUpgrade, LastDeployed: now.Add(-ago)},
			Labels: map[string]string{labelDigest: "d"}, Chart: &chart.Chart{Metadata: &chart.Metadata{Version: version}}}
	}
	uninstalling := pending(time.Hour, "1")
	uninstalling.Info.Status, uninstalling.Info.Deleted = status.StatusUninstalling, now.Add(-time.Minute)
	for _, c := range []struct {
		name string
		last *release.Release
		want time.Duration
	}{
		{"ours, just begun", pending(0, "1"), 15 * time.Second},
		{"ours, begun a while ago", pending(10*time.Second, "1"), 5 * time.Second},
		{"ours, long ago", pending(time.Minute, "1"), -45 * time.Second},
		{"ours, by a clock that is ahead", pending(-time.Hour, "1"), 15 * time.Second},
		{"somebody else's upgrade", pending(time.Minute, "2"), 5 * time.Minute},
		{"somebody else's uninstall of an old release", uninstalling, 5 * time.Minute},
	} {
		if got := fence(c.last, want, now); got != c.want {
			t.Errorf("%s: fenced for %s, want %s", c.name, got, c.want)
		}
	}
}

func TestDigest(t *testing.T) {
	make := func(version, template string) *chart.Chart {
		return &chart.Chart{
			Metadata: &chart.Metadata{Name: "a", Version: version},
			Raw:      []*common.File{{Name: "templates/x.yaml", Data: []byte(template)}, {Name: "Chart.yaml", Data: []byte("a")}},
		}
	}
	digest := func(c *chart.Chart, values map[string]any) string {
		d, err := digestOf(c, values)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	base := digest(make("1", "x"), map[string]any{"a": 1, "b": map[string]any{"c": true}})
	reordered := make("1", "x")
	reordered.Raw[0], reordered.Raw[1] = reordered.Raw[1], reordered.Raw[0]
	if got := digest(reordered, map[string]any{"b": map[string]any{"c": true}, "a": 1}); got != base {
		t.Error("the order of files or values changes the digest")
	}
	withDependency := make("1", "x")
	withDependency.AddDependency(make("1", "y"))
	for name, other := range map[string]string{
		"version":    digest(make("2", "x"), map[string]any{"a": 1, "b": map[string]any{"c": true}}),
		"template":   digest(make("1", "y"), map[string]any{"a": 1, "b": map[string]any{"c": true}}),
		"value":      digest(make("1", "x"), map[string]any{"a": 1, "b": map[string]any{"c": false}}),
		"dependency": digest(withDependency, map[string]any{"a": 1, "b": map[string]any{"c": true}}),
	} {
		if other == base {
			t.Errorf("a change of %s does not change the digest", name)
		}
		if len(other) > 63 {
			t.Errorf("%d characters are no label value", len(other))
		}
	}
}

func TestObjectsOf(t *testing.T) {
	rel := &release.Release{
		Manifest: "---\n# Source: a\nkind: Deployment\nmetadata:\n  name: one\n---\n# Source: empty\n---\nkind: Service\nmetadata:\n  name: two\n" +
			"---\n{kind: Service, metadata: {name: four}}\n---\nkind: \"Service\"\nmetadata:\n  name: five\nspec:\n  kind: Deployment\n",
		Chart: &chart.Chart{Metadata: &chart.Metadata{Name: "a"}, Files: []*common.File{
			{Name: "crds/c.yaml", Data: []byte("kind: CustomResourceDefinition\nmetadata:\n  name: three\n")},
			{Name: "README.md", Data: []byte("kind: no")},
		}},
	}
	for _, test := range []struct{ kinds, want []string }{
		{nil, []string{"Deployment one", "Service two", "Service four", "Service five", "CustomResourceDefinition three"}},
		{[]string{"Service"}, []string{"Service two", "Service four", "Service five"}},
		{[]string{"CustomResourceDefinition", "Deployment"}, []string{"Deployment one", "CustomResourceDefinition three"}},
	} {
		objects, err := objectsOf(rel, test.kinds...)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, o := range objects {
			got = append(got, o.GetKind()+" "+o.GetName())
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%v: %v, want %v", test.kinds, got, test.want)
		}
	}
}

func TestToldOtherwise(t *testing.T) {
	deployment := func(container string) *unstructured.Unstructured {
		var content map[string]any
		if err := yaml.Unmarshal([]byte("kind: Deployment\nspec: {template: {spec: {containers: ["+container+"]}}}"), &content); err != nil {
			t.Fatal(err)
		}
		return &unstructured.Unstructured{Object: content}
	}
	chart := deployment(`{name: agent, image: a, args: ["--server-address=relay:9900"]}`)
	for _, test := range []struct {
		name, live string
		otherwise  bool
	}{
		{"as it was made", `{name: agent, image: a, args: ["--server-address=relay:9900"], command: []}`, false},
		{"with an image of another registry", `{name: agent, image: mirror/a, args: ["--server-address=relay:9900"]}`, false},
		{"beside another container", `{name: other, image: b}, {name: agent, image: a, args: ["--server-address=relay:9900"]}`, false},
		{"with another address", `{name: agent, image: a, args: ["--server-address=relay:9900:9900"]}`, true},
		{"with another command", `{name: agent, image: a, command: [sh], args: ["--server-address=relay:9900"]}`, true},
		{"without arguments", `{name: agent, image: a}`, true},
		{"without the container", `{name: other, image: a, args: ["--server-address=relay:9900"]}`, true},
	} {
		if got := toldOtherwise(chart, deployment(test.live)); got != test.otherwise {
			t.Errorf("%s: told otherwise is %v, want %v", test.name, got, test.otherwise)
		}
	}
	// A word that a template has left empty is stored as "".
	if toldOtherwise(deployment(`{name: agent, args: [--once, null]}`), deployment(`{name: agent, args: [--once, ""]}`)) {
		t.Error("an empty word is another than none")
	}
}
