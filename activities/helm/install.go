package helm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/internal/failure"
	ours "github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

const (
	// labelDigest, a label of the release, says which chart and values it was
	// made of. A release without it is not ours.
	labelDigest = "relaypki.io/digest"
	// historyKept is how many revisions of a release are kept, as many as the
	// helm command keeps.
	historyKept = 10
	// hooksWithin bounds a chart's hooks; nothing else in Helm waits here.
	hooksWithin = 5 * time.Minute
)

func init() {
	// The helm command's name for its server-side apply: so people can go on
	// with that command, and it does not depend on this program's name.
	kube.ManagedFieldsManager = "helm"
}

// InstallChart installs or upgrades the release and waits (heartbeating) until
// its Deployments are available. Chart and values that have not changed make
// no new revision, unless something of the release was deleted, or what its
// Deployments run was changed. A release left
// pending by a killed worker is healed, after a time in which that worker may
// still be at it.
func (a *Activities) InstallChart(ctx context.Context, in ChartInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	if in.Never && in.AcceptDeployment != "" {
		// Whose it is does not matter, and a release of cert-manager's takes a
		// megabyte to read.
		out.Detail, err = theDeployment(ctx, c, in)
		return out, err
	}
	stop := ours.Heartbeating(ctx, "Helm release "+in.Release)
	defer stop()
	unlock := func() {}
	if in.Mode.Writes() {
		if unlock, err = a.lock(ctx, c, in); err != nil {
			return out, err
		}
	}
	ended := false
	defer func() {
		if !ended { // else whoever ends Helm's run unlocks
			unlock()
		}
	}()

	cfg, err := configuration(c, in.Namespace, a.Clients.Log)
	if err != nil {
		return out, failure.Permanent(failure.Preflight, "cluster %q: Helm: %v", c.Name, err)
	}
	last, err := lastRelease(ctx, c, cfg, in)
	if err != nil {
		return out, err
	}
	if last == nil || last.Labels[labelDigest] == "" || ours.OtherMesh(last.Labels, in.Mesh) != "" {
		accepted, err := acceptOrRefuse(ctx, c, in, last)
		if err != nil || accepted != "" {
			out.Detail = accepted
			return out, err
		}
	}
	if in.Never {
		out.Detail = "left as it is"
		return out, nil
	}
	source, err := a.Clients.Config.Chart(in.Chart)
	if err != nil {
		return out, err
	}
	chrt, err := a.charts.load(ctx, source, in.Version)
	if err != nil {
		return out, err
	}
	values := c.Config.Values(in.Chart, in.Values)
	digest, err := digestOf(chrt, values)
	if err != nil {
		return out, failure.Permanent(failure.InvalidInput, "chart %s: the values cannot be written as JSON: %v", in.Chart, err)
	}
	name := fmt.Sprintf("Helm release %s/%s", in.Namespace, in.Release)
	out.Detail = fmt.Sprintf("%s %s", chrt.Metadata.Name, chrt.Metadata.Version)
	want := wanted{chart: chrt, values: values, digest: digest}
	deed, why := decide(last, want), describe(last, chrt)
	if deed == keep {
		wrong, err := amiss(ctx, c, last)
		if err != nil {
			return out, err
		}
		if len(wrong) > 0 { // an upgrade puts it right
			deed, why = upgrade, strings.Join(wrong, "; ")
		}
	}
	switch {
	case deed == keep:
	case !in.Mode.Writes():
		out.Changed(deed.verb(), name, why)
		out.By(in.Mode, a.commands(c, in, source, last, deed, digest)...)
	default:
		if left := fence(last, want, time.Now()); deed == heal && left > 0 {
			return out, failure.Waiting(left, "cluster %q: %s is %s since a short while; whoever began that may still be at it", c.Name, name, last.Info.Status)
		}
		if err := ours.EnsureNamespace(ctx, c, in.Namespace, in.Mode, &out); err != nil {
			return out, err
		}
		done := make(chan error, 1)
		ended = true
		go func() {
			defer unlock()
			var err error
			if want.chart, err = a.charts.fresh(ctx, source, in.Version); err == nil {
				last, err = run(cfg, in, last, deed, want)
			}
			done <- err
		}()
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				// Helm cannot be stopped, and the caller gives back the lock on the
				// cluster once this has returned.
				deadline, _ := ctx.Deadline()
				select {
				case <-done:
				case <-time.After(time.Until(deadline)):
				}
				return out, ctx.Err()
			}
			return out, failure.Transient(failure.Unavailable, "cluster %q: %s: no end in time; Helm is still at work on it", c.Name, name)
		case err := <-done:
			if err != nil {
				return out, helmError(ctx, c, name, err)
			}
		}
		out.Changed(deed.verb(), name, why)
	}
	if !in.Mode.Writes() || last == nil {
		return out, nil
	}
	return out, awaitRelease(ctx, c, last)
}

// lock makes attempts on one release follow one another within this process. It
// goes by API server: two of a mesh's clusters may be namespaces of one.
func (a *Activities) lock(ctx context.Context, c *site.Cluster, in ChartInput) (unlock func(), err error) {
	made := make(chan struct{}, 1)
	namespace := in.Namespace
	if in.AcceptCRD != "" {
		namespace = "" // one for all namespaces: the second is to find the first's
	}
	found, _ := a.busy.LoadOrStore(c.REST.Host+"/"+namespace+"/"+in.Release, made)
	lock := found.(chan struct{})
	select {
	case lock <- struct{}{}:
		return func() { <-lock }, nil
	case <-ctx.Done():
		return nil, failure.Transient(failure.Unavailable, "cluster %q: an earlier attempt on Helm release %s/%s has not ended", c.Name, in.Namespace, in.Release)
	}
}

// lastRelease is the release's latest revision, or nil.
func lastRelease(ctx context.Context, c *site.Cluster, cfg *action.Configuration, in ChartInput) (*release.Release, error) {
	last, err := cfg.Releases.Last(in.Release)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, helmError(ctx, c, fmt.Sprintf("Helm release %s/%s", in.Namespace, in.Release), err)
	}
	rel, ok := last.(*release.Release)
	if !ok {
		return nil, failure.Permanent(failure.Conflict, "cluster %q: Helm release %s/%s is of an unknown kind (%T)", c.Name, in.Namespace, in.Release, last)
	}
	return rel, nil
}

// acceptOrRefuse deals with what is there and is not our release: a Deployment
// that may be somebody else's is accepted, a release of somebody else's is not.
func acceptOrRefuse(ctx context.Context, c *site.Cluster, in ChartInput, last *release.Release) (accepted string, err error) {
	if in.AcceptDeployment != "" {
		found, err := ours.FindDeployment(ctx, c, in.Namespace, in.AcceptDeployment, in.AcceptDeployment)
		if err != nil {
			return "", err
		}
		if found != nil {
			return strings.TrimSpace(fmt.Sprintf("%s is there, installed by somebody else %s", ours.Name("Deployment", found.Namespace, found.Name), ours.Version(found))), nil
		}
	}
	if in.AcceptCRD != "" && last == nil {
		by, err := otherRelease(ctx, c, in)
		if err != nil || by != "" {
			return by, err
		}
	}
	if in.Never && last == nil {
		return "", failure.Permanent(failure.Preflight, "cluster %q: there is no %s, and the input says never to install it; install it, or allow it", c.Name, in.Chart)
	}
	if last != nil && ours.OtherMesh(last.Labels, in.Mesh) != "" && last.Info.Status != common.StatusUninstalled {
		return "", failure.Permanent(failure.Conflict, "cluster %q: Helm release %s/%s belongs to the mesh %q. Two meshes cannot share it: give the mesh %q another namespace, or set install to false for it",
			c.Name, in.Namespace, in.Release, last.Labels[ours.LabelMesh], in.Mesh)
	}
	if last != nil && !in.Never && last.Info.Status != common.StatusUninstalled {
		return "", failure.Permanent(failure.Conflict,
			"cluster %q: Helm release %s/%s is there and was not made by relaypki, so its values are not known to be ours to replace. Set install to false for it, or have relaypki take it over, and upgrade it: relaypki adopt -f mesh.yaml",
			c.Name, in.Namespace, in.Release)
	}
	return "", nil
}

// theDeployment names what is there and is to be left as it is.
func theDeployment(ctx context.Context, c *site.Cluster, in ChartInput) (string, error) {
	found, err := ours.FindDeployment(ctx, c, in.Namespace, in.AcceptDeployment, in.AcceptDeployment)
	if err != nil {
		return "", err
	}
	if found == nil {
		return "", failure.Permanent(failure.Preflight, "cluster %q: there is no %s, and the input says never to install it; install it, or allow it", c.Name, in.Chart)
	}
	return strings.TrimSpace("left as it is: " + ours.Name("Deployment", found.Namespace, found.Name) + " " + ours.Version(found)), nil
}

// otherRelease names the release of the same name, in another namespace, that
// the chart's CustomResourceDefinition belongs to. There is one definition for
// all namespaces of an API server, and Helm gives it to one release alone.
func otherRelease(ctx context.Context, c *site.Cluster, in ChartInput) (string, error) {
	live, err := c.Dynamic.Resource(crds).Get(ctx, in.AcceptCRD, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", ours.Error(ctx, c, "read CustomResourceDefinition "+in.AcceptCRD, err)
	}
	namespace := live.GetAnnotations()["meta.helm.sh/release-namespace"]
	if live.GetAnnotations()["meta.helm.sh/release-name"] != in.Release || namespace == "" || namespace == in.Namespace {
		return "", nil
	}
	return fmt.Sprintf("%s is there, by Helm release %s/%s", in.Chart, namespace, in.Release), nil
}

// deed is what is to be done with a release.
type deed int

const (
	keep deed = iota
	install
	upgrade
	heal    // mark what a killed worker left as failed, then upgrade
	replace // install over an uninstalled release whose history was kept
)

func (d deed) verb() procedure.Verb {
	if d == install || d == replace {
		return procedure.Create
	}
	return procedure.Update
}

// wanted is what a release is to be made of.
type wanted struct {
	chart  *chart.Chart
	values map[string]any
	digest string
}

// made says that a revision was made of this, by us: whoever upgrades a release
// by hand inherits its labels, the digest too, so chart and values count as well.
func (w wanted) made(last *release.Release) bool {
	if label := last.Labels[labelDigest]; label != w.digest && label != byHand || last.Chart == nil || last.Chart.Metadata == nil || last.Chart.Metadata.Version != w.chart.Metadata.Version {
		return false
	}
	have, errHave := json.Marshal(orEmpty(last.Config))
	want, errWant := json.Marshal(orEmpty(w.values))
	return errHave == nil && errWant == nil && bytes.Equal(have, want)
}

func orEmpty(values map[string]any) map[string]any {
	if values == nil {
		return map[string]any{}
	}
	return values
}

// decide compares the last revision with what is wanted.
func decide(last *release.Release, want wanted) deed {
	if last == nil {
		return install
	}
	switch status := last.Info.Status; {
	case status.IsPending(), status == common.StatusUninstalling, status == common.StatusUnknown:
		return heal
	case status == common.StatusUninstalled:
		return replace
	case status == common.StatusDeployed && want.made(last):
		return keep
	}
	return upgrade
}

const (
	// oursFencedFor is how long a pending release of ours is left alone: as long
	// as a worker that no longer reaches Temporal may take to be done with it,
	// hooks aside.
	oursFencedFor = 15 * time.Second
	// othersFencedFor is the same for somebody else's helm command: its default
	// time-out, and then some.
	othersFencedFor = hooksWithin + time.Minute
)

// fence is how much longer a release that was left unfinished is left alone. The
// clocks of two machines may differ, so it is never longer than the whole.
func fence(last *release.Release, want wanted, now time.Time) time.Duration {
	if last == nil {
		return 0
	}
	began, whole := last.Info.LastDeployed, othersFencedFor
	switch {
	case last.Info.Status == common.StatusUninstalling:
		began = last.Info.Deleted
	case want.made(last):
		whole = oursFencedFor
	}
	return min(began.Add(whole).Sub(now), whole)
}

// describe says what changes, without values.
func describe(last *release.Release, chrt *chart.Chart) string {
	to := chrt.Metadata.Name + " " + chrt.Metadata.Version
	switch {
	case last == nil || last.Chart == nil || last.Chart.Metadata == nil:
		return to
	case last.Info.Status != common.StatusDeployed:
		return fmt.Sprintf("%s, after revision %d was left %s", to, last.Version, last.Info.Status)
	case last.Chart.Metadata.Version != chrt.Metadata.Version:
		return fmt.Sprintf("%s, from %s", to, last.Chart.Metadata.Version)
	}
	return to + ", with other values or chart files"
}

// digestOf is over the chart's files and the values.
func digestOf(chrt *chart.Chart, values map[string]any) (string, error) {
	h := sha256.New()
	var add func(c *chart.Chart)
	add = func(c *chart.Chart) {
		fmt.Fprintf(h, "%s %s\n", c.Metadata.Name, c.Metadata.Version)
		files := slices.Clone(c.Raw)
		slices.SortFunc(files, func(a, b *commonFile) int { return strings.Compare(a.Name, b.Name) })
		for _, f := range files {
			fmt.Fprintf(h, "%s %d\n", f.Name, len(f.Data))
			h.Write(f.Data)
		}
		for _, dependency := range c.Dependencies() {
			add(dependency)
		}
	}
	add(chrt)
	asJSON, err := json.Marshal(values)
	if err != nil {
		return "", err
	}
	h.Write(asJSON)
	return hex.EncodeToString(h.Sum(nil))[:40], nil // a label value holds 63 characters
}

// run has Helm do the deed, to its end.
func run(cfg *action.Configuration, in ChartInput, last *release.Release, what deed, want wanted) (*release.Release, error) {
	labels := map[string]string{labelDigest: want.digest, ours.LabelManagedBy: ours.ManagedBy, ours.LabelMesh: in.Mesh}
	var made any
	var err error
	switch what {
	case install, replace:
		i := action.NewInstall(cfg)
		i.ReleaseName, i.Namespace, i.Labels = in.Release, in.Namespace, labels
		i.Replace = what == replace
		i.WaitStrategy, i.Timeout = kube.HookOnlyStrategy, hooksWithin
		i.DisableOpenAPIValidation = true // the API server validates what is applied, strictly
		made, err = i.Run(want.chart, want.values)
	case heal:
		last.SetStatus(common.StatusFailed, "left unfinished; marked failed by relaypki")
		if err := cfg.Releases.Update(last); err != nil {
			return nil, err
		}
		fallthrough
	default:
		u := action.NewUpgrade(cfg)
		u.Namespace, u.Labels, u.MaxHistory = in.Namespace, labels, historyKept
		u.ResetValues = true // the given values are all there are
		// What others have changed by hand in a release of ours is set back, as
		// everywhere else.
		u.ServerSideApply, u.ForceConflicts = "true", true
		u.WaitStrategy, u.Timeout = kube.HookOnlyStrategy, hooksWithin
		u.DisableOpenAPIValidation = true
		made, err = u.Run(in.Release, want.chart, want.values)
	}
	if err != nil {
		return nil, err
	}
	rel, ok := made.(*release.Release)
	if !ok {
		return nil, fmt.Errorf("unknown kind of release %T", made)
	}
	return rel, nil
}

var crds = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// awaitRelease waits until the release's CustomResourceDefinitions are
// established and its Deployments available.
func awaitRelease(ctx context.Context, c *site.Cluster, rel *release.Release) error {
	objects, err := objectsOf(rel, "CustomResourceDefinition", "Deployment")
	if err != nil {
		return failure.Permanent(failure.Conflict, "cluster %q: Helm release %s/%s: its manifest cannot be read: %v", c.Name, rel.Namespace, rel.Name, err)
	}
	return ours.Await(ctx, func(ctx context.Context) (bool, string, error) {
		for _, o := range objects {
			switch o.GetKind() {
			case "CustomResourceDefinition":
				live, err := c.Dynamic.Resource(crds).Get(ctx, o.GetName(), metav1.GetOptions{})
				if err != nil {
					return false, "", ours.Error(ctx, c, "read CustomResourceDefinition "+o.GetName(), err)
				}
				if !established(live) {
					return false, fmt.Sprintf("cluster %q: CustomResourceDefinition %s is not established yet", c.Name, o.GetName()), nil
				}
			case "Deployment":
				namespace := namespaceOf(o, rel)
				live, err := c.Kube.AppsV1().Deployments(namespace).Get(ctx, o.GetName(), metav1.GetOptions{})
				if apierrors.IsNotFound(err) {
					return false, fmt.Sprintf("cluster %q: %s of Helm release %s/%s was deleted just now; the next run makes it again",
						c.Name, ours.Name("Deployment", namespace, o.GetName()), rel.Namespace, rel.Name), nil
				}
				if err != nil {
					return false, "", ours.Error(ctx, c, "read "+ours.Name("Deployment", namespace, o.GetName()), err)
				}
				if ready, state := available(ctx, c, live); !ready {
					return false, state, nil
				}
			}
		}
		return true, "", nil
	})
}

// lasting are the kinds whose objects are looked for although the release has
// not changed: what runs, and what leads to it. A chart's other objects are
// small, or the API server's to keep.
var lasting = []string{"Deployment", "StatefulSet", "Service", "ServiceAccount", "ConfigMap"}

// amiss says which of the release's lasting objects are no longer there, and which
// Deployments' containers are told another command or other arguments. Of a Deployment
// that is all that is compared: replicas and the like are often others' to set.
func amiss(ctx context.Context, c *site.Cluster, rel *release.Release) ([]string, error) {
	objects, err := objectsOf(rel, lasting...)
	if err != nil {
		return nil, failure.Permanent(failure.Conflict, "cluster %q: Helm release %s/%s: its manifest cannot be read: %v", c.Name, rel.Namespace, rel.Name, err)
	}
	var wrong []string
	for _, o := range objects {
		if o.GetAnnotations()[release.HookAnnotation] != "" {
			continue
		}
		live, err := ours.Get(ctx, c, o.GetKind(), namespaceOf(o, rel), o.GetName())
		if err != nil {
			return nil, err
		}
		name := ours.Name(o.GetKind(), namespaceOf(o, rel), o.GetName())
		switch {
		case live == nil:
			wrong = append(wrong, name+" was deleted")
		case o.GetKind() == "Deployment" && toldOtherwise(o, live):
			wrong = append(wrong, name+" was changed: what its containers are told to run")
		}
	}
	return wrong, nil
}

// toldOtherwise says that a container of the chart's is told something else than the
// chart does, or is not there. Others are nobody's business.
func toldOtherwise(chart, live *unstructured.Unstructured) bool {
	have := toldTo(live)
	for name, told := range toldTo(chart) {
		if !reflect.DeepEqual(have[name], told) {
			return true
		}
	}
	return false
}

// toldTo is what a Deployment's containers are told to run, by their names: command
// and arguments. Images are left out: policies that rewrite them to another registry
// would have every run make an upgrade.
func toldTo(deployment *unstructured.Unstructured) map[string][2][]string {
	told := map[string][2][]string{}
	containers, _, _ := unstructured.NestedSlice(deployment.Object, "spec", "template", "spec", "containers")
	for _, container := range containers {
		if c, ok := container.(map[string]any); ok {
			told[fmt.Sprint(c["name"])] = [2][]string{words(c["command"]), words(c["args"])}
		}
	}
	return told
}

// words are those of a list. A chart's word may be nothing, in its YAML, which the API
// server keeps as an empty one.
func words(list any) []string {
	items, _ := list.([]any)
	out := make([]string, len(items))
	for i, item := range items {
		if item != nil {
			out[i] = fmt.Sprint(item)
		}
	}
	return out
}

// namespaceOf is where an object of the release is; charts need not say.
func namespaceOf(o *unstructured.Unstructured, rel *release.Release) string {
	if namespace := o.GetNamespace(); namespace != "" {
		return namespace
	}
	return rel.Namespace
}

func available(ctx context.Context, c *site.Cluster, d *appsv1.Deployment) (bool, string) {
	ready, state := ours.Available(d)
	if !ready {
		if trouble := ours.PodTrouble(ctx, c, d); trouble != "" {
			state += "; " + trouble
		}
	}
	return ready, fmt.Sprintf("cluster %q: %s", c.Name, state)
}

// kindOf is the kind that a document of a manifest says in a line of its own, as
// all but a few do.
var kindOf = regexp.MustCompile(`(?m)^kind: *["']?(\w+)["']? *$`)

// objectsOf are the objects that a release consists of, those of the chart's
// crds directory too; of the given kinds, or all. cert-manager's definitions are
// a megabyte of YAML: what is of another kind is not read, where that can be seen.
func objectsOf(rel *release.Release, kinds ...string) ([]*unstructured.Unstructured, error) {
	asked := func(kind string) bool { return len(kinds) == 0 || slices.Contains(kinds, kind) }
	texts := []string{rel.Manifest}
	if rel.Chart != nil {
		for _, crd := range rel.Chart.CRDObjects() {
			texts = append(texts, string(crd.File.Data))
		}
	}
	var objects []*unstructured.Unstructured
	for _, text := range texts {
		for _, doc := range strings.Split("\n"+text, "\n---") {
			if m := kindOf.FindStringSubmatch(doc); m != nil && !asked(m[1]) {
				continue
			}
			var content map[string]any
			if err := yaml.Unmarshal([]byte(doc), &content); err != nil {
				return nil, err
			}
			if o := (&unstructured.Unstructured{Object: content}); len(content) > 0 && asked(o.GetKind()) {
				objects = append(objects, o)
			}
		}
	}
	return objects, nil
}

func established(crd *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	for _, c := range conditions {
		if cond, ok := c.(map[string]any); ok && cond["type"] == "Established" && cond["status"] == "True" {
			return true
		}
	}
	return false
}

// helmError sorts Helm's errors, which wrap the API server's.
func helmError(ctx context.Context, c *site.Cluster, name string, err error) error {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return ours.Error(ctx, c, "install "+name, err)
	}
	text := err.Error()
	if len(text) > 800 {
		text = text[:800] + "..."
	}
	switch {
	case strings.Contains(text, "invalid ownership metadata"):
		return failure.Permanent(failure.Conflict, "cluster %q: %s: %s. Delete that object, or leave its installation to whoever has made it", c.Name, name, text)
	case strings.Contains(text, "values don't meet the specifications of the schema"), strings.Contains(text, "execution error at"), strings.Contains(text, "parse error"):
		return failure.Permanent(failure.InvalidInput, "cluster %q: %s: the chart does not accept the values: %s", c.Name, name, text)
	case strings.Contains(text, "is forbidden"):
		return failure.Permanent(failure.Denied, "cluster %q: %s: %s. Apply the manifest of deploy/rbac to that cluster, or grant what is missing", c.Name, name, text)
	default:
		return failure.Transient(failure.Unavailable, "cluster %q: %s: %s", c.Name, name, text)
	}
}
