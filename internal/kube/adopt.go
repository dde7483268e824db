package kube

import (
	"context"
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/util/csaupgrade"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// Adopt makes an object of somebody else's the named mesh's: it gets our labels,
// and what others have written in it by kubectl is ours from then on, so that
// Apply can take out what is not wanted. Nothing else in it is changed. A
// missing object is left missing; another mesh's is a permanent Conflict.
func Adopt(ctx context.Context, c *site.Cluster, kind, namespace, name, mesh string, mode procedure.Mode, out *procedure.Outcome) error {
	live, err := Get(ctx, c, kind, namespace, name)
	if err != nil || live == nil {
		return err
	}
	object := Name(kind, namespace, name)
	labels := live.GetLabels()
	switch by := labels[LabelManagedBy]; {
	case by == ManagedBy && OtherMesh(labels, mesh) != "":
		return failure.Permanent(failure.Conflict, "cluster %q: %s belongs to the mesh %q", c.Name, object, OtherMesh(labels, mesh))
	case by == ManagedBy && labels[LabelMesh] != "":
		return nil
	}
	out.Changed(procedure.Update, object, "labelled as relaypki's")
	if !mode.Writes() {
		args := []string{"-n", namespace, "label", "--overwrite", kind + "/" + name}
		for _, label := range []string{LabelManagedBy, LabelMesh} {
			args = append(args, label+"="+Labels(mesh)[label])
		}
		out.By(mode, Kubectl(c, args...))
		return nil
	}
	client := Resource(c, kind, namespace)
	writers := sets.New[string]()
	for _, entry := range live.GetManagedFields() {
		if entry.Operation == metav1.ManagedFieldsOperationUpdate && entry.Subresource == "" && people.Has(entry.Manager) {
			writers.Insert(entry.Manager)
		}
	}
	if len(writers) > 0 {
		patch, err := csaupgrade.UpgradeManagedFieldsPatch(live, writers, site.FieldManager)
		if err != nil {
			return failure.Permanent(failure.Conflict, "cluster %q: who wrote what in %s cannot be read: %v", c.Name, object, err)
		}
		// The patch holds the resourceVersion, so what has changed since is not overwritten.
		if len(patch) == 0 { // all of it is ours already
			patch = []byte("[]")
		}
		if live, err = client.Patch(ctx, name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: site.FieldManager}); err != nil {
			return Error(ctx, c, "adopt "+object, err)
		}
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": Labels(mesh), "resourceVersion": live.GetResourceVersion()}})
	if err != nil {
		return fmt.Errorf("labels: %w", err)
	}
	_, err = client.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: site.FieldManager})
	return Error(ctx, c, "adopt "+object, err)
}

// people are the managers under which people write objects with kubectl.
var people = sets.New("kubectl-client-side-apply", "kubectl-create", "kubectl-edit", "kubectl-patch", "kubectl-replace", "kubectl-label", "kubectl")
