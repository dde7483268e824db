package helm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/internal/failure"
	ours "github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/shell"
	"github.com/relaypki/relaypki/internal/site"
)

// labelRemoving, a label of the release, says that its removal by us has begun.
const labelRemoving = "relaypki.io/removing"

// UninstallChart uninstalls a release of ours and waits (heartbeating) until its
// Pods are gone. A release that is not ours is kept. CustomResourceDefinitions
// are kept too: with them every object of their kinds would go, whoever's it is.
// A removal that was begun by a killed worker is finished.
func (a *Activities) UninstallChart(ctx context.Context, in UninstallInput) (procedure.Removal, error) {
	var out procedure.Removal
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	stop := ours.Heartbeating(ctx, "Helm release "+in.Release)
	defer stop()
	chart := ChartInput{Mesh: in.Mesh, Context: in.Context, Release: in.Release, Namespace: in.Namespace}
	unlock, err := a.lock(ctx, c, chart)
	if err != nil {
		return out, err
	}
	cfg, err := configuration(c, in.Namespace, a.Clients.Log)
	if err != nil {
		unlock()
		return out, failure.Permanent(failure.Preflight, "cluster %q: Helm: %v", c.Name, err)
	}
	last, err := lastRelease(ctx, c, cfg, chart)
	if err != nil || last == nil {
		unlock()
		return out, err
	}
	name := fmt.Sprintf("Helm release %s/%s", in.Namespace, in.Release)
	why, left := notOurs(last, in.Mesh), removalFence(last, time.Now())
	switch {
	case why != "":
		out.Keep(name, why)
	case in.Mode.Writes() && left > 0:
		err = failure.Waiting(left, "cluster %q: %s is %s since a short while; whoever began that may still be at it", c.Name, name, last.Info.Status)
	default:
		keepDefinitions(last, &out)
		out.Changed(procedure.Delete, name, "")
		out.By(in.Mode, removalCommands(c, in, last)...)
	}
	if err != nil || why != "" || !in.Mode.Writes() {
		unlock()
		return out, err
	}
	done := make(chan error, 1)
	go func() {
		defer unlock()
		done <- uninstall(ctx, c, cfg, in, last, &out)
	}()
	select {
	case err := <-done:
		if err != nil {
			return out, removalError(ctx, c, name, err)
		}
		return out, nil
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.Canceled) {
			// As in an installation: Helm cannot be stopped.
			deadline, _ := ctx.Deadline()
			select {
			case <-done:
			case <-time.After(time.Until(deadline)):
			}
			return procedure.Removal{}, ctx.Err()
		}
		return procedure.Removal{}, failure.Transient(failure.Unavailable, "cluster %q: %s: no end in time; Helm is still at work on it", c.Name, name)
	}
}

// notOurs says why a release is not the mesh's to uninstall, or nothing.
func notOurs(last *release.Release, mesh string) string {
	switch digest := last.Labels[labelDigest]; {
	case digest == "":
		return "it was not made by relaypki"
	case digest == "adopt":
		return "it was not made by relaypki; that it may be replaced does not mean that it may be removed"
	case ours.OtherMesh(last.Labels, mesh) != "":
		return fmt.Sprintf("it belongs to the mesh %q", last.Labels[ours.LabelMesh])
	}
	return ""
}

// removalFence is how much longer a release that was left unfinished is left
// alone: our own removal as long as a cut-off worker may take to be done with
// it, anything else as long as a helm command may.
func removalFence(last *release.Release, now time.Time) time.Duration {
	switch status := last.Info.Status; {
	case status == common.StatusUninstalling && last.Labels[labelRemoving] != "":
		return min(last.Info.Deleted.Add(oursFencedFor).Sub(now), oursFencedFor)
	case status == common.StatusUninstalling:
		return min(last.Info.Deleted.Add(othersFencedFor).Sub(now), othersFencedFor)
	case status.IsPending():
		return min(last.Info.LastDeployed.Add(othersFencedFor).Sub(now), othersFencedFor)
	}
	return 0
}

// keepDefinitions has Helm keep the release's CustomResourceDefinitions, by the
// annotation that Helm has for that.
func keepDefinitions(rel *release.Release, out *procedure.Removal) {
	docs := strings.Split("\n"+rel.Manifest, "\n---")
	kept := 0
	for i, doc := range docs {
		var object unstructured.Unstructured
		if err := yaml.Unmarshal([]byte(doc), &object.Object); err != nil || object.GetKind() != "CustomResourceDefinition" {
			continue // Helm says itself what of its manifest cannot be read
		}
		kept++
		annotations := object.GetAnnotations()
		if annotations[kube.ResourcePolicyAnno] == kube.KeepPolicy {
			continue
		}
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[kube.ResourcePolicyAnno] = kube.KeepPolicy
		object.SetAnnotations(annotations)
		if text, err := yaml.Marshal(object.Object); err == nil {
			docs[i] = "\n" + string(text)
		}
	}
	if kept > 0 {
		rel.Manifest = strings.Join(docs, "\n---")
		out.Keep(fmt.Sprintf("%d CustomResourceDefinitions of Helm release %s/%s", kept, rel.Namespace, rel.Name),
			"with them every object of their kinds would be deleted, whoever's it is")
	}
}

// removalCommands uninstall the release by hand. The helm command has no way to
// keep what the chart does not say to keep, so of a release with
// CustomResourceDefinitions its history is deleted alone, where it has nothing
// else.
func removalCommands(c *site.Cluster, in UninstallInput, last *release.Release) []string {
	definitions, others := 0, 0
	if objects, err := objectsOf(last); err == nil {
		for _, o := range objects {
			if o.GetKind() == "CustomResourceDefinition" {
				definitions++
			} else {
				others++
			}
		}
	}
	if definitions > 0 && others == 0 {
		return []string{"# Its CustomResourceDefinitions stay; the release is forgotten.",
			ours.Kubectl(c, "-n", in.Namespace, "delete", "secret", "-l", "owner=helm,name="+in.Release)}
	}
	commands := []string{shell.Join("helm", "uninstall", in.Release, "--kube-context", ours.Context(c), "--namespace", in.Namespace, "--wait")}
	for _, secret := range slices.Sorted(maps.Keys(in.Secrets)) {
		commands = append(commands, ours.Kubectl(c, "-n", in.Namespace, "delete", "secret", secret, "--ignore-not-found"))
	}
	return commands
}

// uninstall goes on from wherever an earlier one was killed: the release's
// history is the last to go.
func uninstall(ctx context.Context, c *site.Cluster, cfg *action.Configuration, in UninstallInput, last *release.Release, out *procedure.Removal) error {
	if last.Info.Status != common.StatusUninstalled {
		labelled := map[string]string{labelRemoving: "true"}
		for k, v := range last.Labels {
			labelled[k] = v
		}
		last.Labels = labelled
		if err := cfg.Releases.Update(last); err != nil {
			return err
		}
		u := action.NewUninstall(cfg)
		u.KeepHistory = true
		u.WaitStrategy, u.Timeout = kube.HookOnlyStrategy, hooksWithin
		if _, err := u.Run(in.Release); err != nil {
			return err
		}
	}
	if err := awaitNoPods(ctx, c, last); err != nil {
		return err
	}
	for secret, by := range in.Secrets {
		live, err := ours.Get(ctx, c, "Secret", in.Namespace, secret)
		if err != nil {
			return err
		}
		if live != nil && live.GetLabels()[ours.LabelManagedBy] == by {
			if err := ours.DeleteSeen(ctx, c, live, in.Mode, out); err != nil {
				return err
			}
		}
	}
	history, err := cfg.Releases.History(in.Release)
	if err != nil && !errors.Is(err, driver.ErrReleaseNotFound) {
		return err
	}
	for _, one := range history {
		rel, ok := one.(*release.Release)
		if !ok || rel.Version == last.Version {
			continue
		}
		if _, err := cfg.Releases.Delete(rel.Name, rel.Version); err != nil && !errors.Is(err, driver.ErrReleaseNotFound) {
			return err
		}
	}
	// The revision that says that it is uninstalled, and by whom, goes last.
	_, err = cfg.Releases.Delete(last.Name, last.Version)
	return err
}

// awaitNoPods waits until no Pod of the release's Deployments is left: they may
// still write what the release's removal is to leave behind no trace of.
func awaitNoPods(ctx context.Context, c *site.Cluster, rel *release.Release) error {
	objects, err := objectsOf(rel, "Deployment")
	if err != nil {
		return err
	}
	type owner struct{ namespace, name, selector string }
	var owners []owner
	for _, o := range objects {
		matching, _, _ := unstructured.NestedStringMap(o.Object, "spec", "selector", "matchLabels")
		if len(matching) > 0 {
			owners = append(owners, owner{namespaceOf(o, rel), o.GetName(), labels.SelectorFromSet(matching).String()})
		}
	}
	return ours.Await(ctx, func(ctx context.Context) (bool, string, error) {
		for _, o := range owners {
			pods, err := c.Kube.CoreV1().Pods(o.namespace).List(ctx, metav1.ListOptions{LabelSelector: o.selector})
			if err != nil {
				return false, "", ours.Error(ctx, c, "list Pods in "+o.namespace, err)
			}
			if len(pods.Items) > 0 {
				return false, fmt.Sprintf("cluster %q: %d Pods of %s are still there", c.Name, len(pods.Items), ours.Name("Deployment", o.namespace, o.name)), nil
			}
		}
		return true, "", nil
	})
}

// removalError sorts the errors of a removal: our own are sorted already.
func removalError(ctx context.Context, c *site.Cluster, name string, err error) error {
	var status apierrors.APIStatus
	switch {
	case failure.KindOf(err) != "":
		return failure.Top(err)
	case errors.As(err, &status):
		return ours.Error(ctx, c, "uninstall "+name, err)
	}
	return helmError(ctx, c, name, err)
}
