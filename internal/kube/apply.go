// Package kube applies objects to clusters and sorts the errors of API servers.
package kube

import (
	"context"
	"encoding/json"
	"reflect"
	"sort"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// goneAgain is when something that is being deleted is looked at again.
const goneAgain = 2 * time.Second

// Labels that our objects carry.
const (
	LabelManagedBy = "app.kubernetes.io/managed-by"
	LabelMesh      = "relaypki.io/mesh"
	// AnnotationRenewal is, on a credential's Secret, the run that it was made anew
	// for: a try that is repeated finds that it was.
	AnnotationRenewal = "relaypki.io/renewal"
)

// ManagedBy is the value of LabelManagedBy on our objects. Only these are ever changed.
const ManagedBy = "relaypki"

// Labels are the labels of an object of the named mesh, or of no particular one.
func Labels(mesh string) map[string]string {
	labels := map[string]string{LabelManagedBy: ManagedBy}
	if mesh != "" {
		labels[LabelMesh] = mesh
	}
	return labels
}

// OtherMesh is the mesh that labels name if it is another than the given one;
// else, and where either has none, it is empty.
func OtherMesh(labels map[string]string, mesh string) string {
	if owner := labels[LabelMesh]; mesh != "" && owner != mesh {
		return owner
	}
	return ""
}

// resources of the kinds that are applied or looked for. A table, and not discovery, because
// some kinds are not there yet when they are first asked for.
var resources = map[string]schema.GroupVersionResource{
	"Namespace":          {Version: "v1", Resource: "namespaces"},
	"ServiceAccount":     {Version: "v1", Resource: "serviceaccounts"},
	"Secret":             {Version: "v1", Resource: "secrets"},
	"ConfigMap":          {Version: "v1", Resource: "configmaps"},
	"Service":            {Version: "v1", Resource: "services"},
	"Deployment":         {Group: "apps", Version: "v1", Resource: "deployments"},
	"StatefulSet":        {Group: "apps", Version: "v1", Resource: "statefulsets"},
	"Role":               {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"},
	"ClusterRoleBinding": {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"},
	"RoleBinding":        {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"},
	"Issuer":             {Group: "cert-manager.io", Version: "v1", Resource: "issuers"},
	"ClusterIssuer":      {Group: "cert-manager.io", Version: "v1", Resource: "clusterissuers"},
	"Certificate":        {Group: "cert-manager.io", Version: "v1", Resource: "certificates"},
	"KubernetesCluster":  {Group: "admin.gloo.solo.io", Version: "v2", Resource: "kubernetesclusters"},
}

// Resource is a client for the object's kind in its namespace.
func Resource(c *site.Cluster, kind, namespace string) dynamic.ResourceInterface {
	gvr, ok := resources[kind]
	if !ok {
		panic("no resource known for kind " + kind)
	}
	if namespace == "" {
		return c.Dynamic.Resource(gvr)
	}
	return c.Dynamic.Resource(gvr).Namespace(namespace)
}

// Unstructured is the object as it is applied: without status, and without the
// empty fields that its Go type would write and server-side apply would own.
func Unstructured(object runtime.Object) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{Object: content}
	unstructured.RemoveNestedField(u.Object, "status")
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	return u, nil
}

// Name names an object as people see it: "Certificate gloo-mesh/relay-client-tls".
func Name(kind, namespace, name string) string {
	if namespace == "" {
		return kind + " " + name
	}
	return kind + " " + namespace + "/" + name
}

// Apply brings an object of ours to the wanted state by server-side apply and
// returns it as it then is. What is there is looked at first and a dry run
// says what would differ: when nothing does, nothing is written. Without mode
// Apply nothing is written in any case, and the object returned is the one
// that is there, or nil. A missing namespace or kind then means "would be
// created". An object of that name without our label, or with another mesh's, is
// a permanent Conflict.
//
// A resourceVersion in want guards the write: it fails, to be tried again, if
// the object has changed since.
func Apply(ctx context.Context, c *site.Cluster, want *unstructured.Unstructured, mode procedure.Mode, out *procedure.Outcome) (*unstructured.Unstructured, error) {
	name := Name(want.GetKind(), want.GetNamespace(), want.GetName())
	client := Resource(c, want.GetKind(), want.GetNamespace())
	labels := want.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	labels[LabelManagedBy] = ManagedBy
	want.SetLabels(labels)

	live, err := client.Get(ctx, want.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if !mode.Writes() {
			out.Changed(procedure.Create, name, "")
			plan(c, want, mode, out)
			return nil, nil
		}
		// Not forced: of an object that appears in this moment nothing is taken away.
		applied, err := client.Apply(ctx, want.GetName(), want, metav1.ApplyOptions{FieldManager: site.FieldManager})
		if err != nil {
			return nil, Error(ctx, c, "create "+name, err)
		}
		out.Changed(procedure.Create, name, "")
		return applied, nil
	}
	if err != nil {
		return nil, Error(ctx, c, "read "+name, err)
	}
	if by := live.GetLabels()[LabelManagedBy]; by != ManagedBy {
		return nil, failure.Permanent(failure.Conflict,
			"cluster %q: %s is there and is not relaypki's (label %s is %q). It is left as it is. Delete or rename it and run this again, or have relaypki take it over: relaypki adopt -f mesh.yaml",
			c.Name, name, LabelManagedBy, by)
	}
	if owner := OtherMesh(live.GetLabels(), labels[LabelMesh]); owner != "" {
		return nil, failure.Permanent(failure.Conflict, "cluster %q: %s belongs to the mesh %q (label %s). Two meshes cannot share a namespace: give the mesh %q another one",
			c.Name, name, owner, LabelMesh, labels[LabelMesh])
	}
	if live.GetDeletionTimestamp() != nil {
		return nil, failure.Waiting(goneAgain, "cluster %q: %s is being deleted; waiting until it is gone", c.Name, name)
	}
	// A dry run with the resourceVersion would fail where the write is meant to.
	dry := want.DeepCopy()
	dry.SetResourceVersion("")
	would, err := client.Apply(ctx, want.GetName(), dry, metav1.ApplyOptions{FieldManager: site.FieldManager, Force: true, DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return nil, Error(ctx, c, "compare "+name, err)
	}
	differing := Differing(live.Object, would.Object)
	if len(differing) == 0 {
		return live, nil
	}
	detail := strings.Join(differing, ", ")
	if !mode.Writes() {
		out.Changed(procedure.Update, name, detail)
		plan(c, want, mode, out)
		return live, nil
	}
	applied, err := client.Apply(ctx, want.GetName(), want, metav1.ApplyOptions{FieldManager: site.FieldManager, Force: true})
	if err != nil {
		return nil, Error(ctx, c, "update "+name, err)
	}
	out.Changed(procedure.Update, name, detail)
	return applied, nil
}

// plan says how the last change is made by hand.
func plan(c *site.Cluster, want *unstructured.Unstructured, mode procedure.Mode, out *procedure.Outcome) {
	if mode != procedure.Plan {
		return
	}
	if command := applyCommand(c, want); command != "" {
		out.By(mode, command)
	}
}

// EnsureNamespace creates the namespace where it is missing and leaves any
// that is there as it is.
func EnsureNamespace(ctx context.Context, c *site.Cluster, namespace string, mode procedure.Mode, out *procedure.Outcome) error {
	live, err := Resource(c, "Namespace", "").Get(ctx, namespace, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		want := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": namespace},
		}}
		_, err := Apply(ctx, c, want, mode, out)
		return err
	case err != nil:
		return Error(ctx, c, "read Namespace "+namespace, err)
	case live.GetDeletionTimestamp() != nil:
		return failure.Waiting(goneAgain, "cluster %q: Namespace %s is being deleted; waiting until it is gone", c.Name, namespace)
	}
	return nil
}

// Differing are the paths at which two states of an object differ, without
// their values: those may be secret. Bookkeeping of the API server is ignored.
func Differing(live, would map[string]any) []string {
	var paths []string
	ignored := map[string]bool{"metadata.managedFields": true, "metadata.resourceVersion": true, "metadata.generation": true}
	var walk func(path string, a, b any)
	walk = func(path string, a, b any) {
		if ignored[path] {
			return
		}
		ma, aMap := a.(map[string]any)
		mb, bMap := b.(map[string]any)
		if !aMap || !bMap {
			if !equalJSON(a, b) {
				paths = append(paths, path)
			}
			return
		}
		keys := map[string]bool{}
		for k := range ma {
			keys[k] = true
		}
		for k := range mb {
			keys[k] = true
		}
		for k := range keys {
			below := k
			if path != "" {
				below = path + "." + k
			}
			walk(below, ma[k], mb[k])
		}
	}
	walk("", live, would)
	sort.Strings(paths)
	return paths
}

func equalJSON(a, b any) bool {
	if reflect.DeepEqual(a, b) {
		return true
	}
	// An int64 from one answer and a float64 from another are one number.
	ja, errA := json.Marshal(a)
	jb, errB := json.Marshal(b)
	return errA == nil && errB == nil && string(ja) == string(jb)
}

// Get reads an object by kind; a missing one, or one of a kind or in a
// namespace that is missing, is nil without an error.
func Get(ctx context.Context, c *site.Cluster, kind, namespace, name string) (*unstructured.Unstructured, error) {
	live, err := Resource(c, kind, namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, Error(ctx, c, "read "+Name(kind, namespace, name), err)
	}
	return live, nil
}

// Into converts a read object to its Go type.
func Into[T any](u *unstructured.Unstructured, object *T) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, object); err != nil {
		return failure.Permanent(failure.Conflict, "%s cannot be read as %T: %v", Name(u.GetKind(), u.GetNamespace(), u.GetName()), *object, err)
	}
	return nil
}

// KindMissing says whether the error means that the API server does not know
// the kind, in contrast to an object that is not there.
func KindMissing(err error) bool {
	return apierrors.IsNotFound(err) && apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
}
