package kube

import (
	"context"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// NotOurs says why an object with these labels is not the named mesh's to
// delete, or nothing if it is.
func NotOurs(labels map[string]string, mesh string) string {
	if by := labels[LabelManagedBy]; by != ManagedBy {
		return fmt.Sprintf("it is not relaypki's: its label %s is %q", LabelManagedBy, by)
	}
	if owner := OtherMesh(labels, mesh); owner != "" {
		return fmt.Sprintf("it belongs to the mesh %q", owner)
	}
	return ""
}

// Delete deletes an object of the named mesh's, and waits for it to be gone. One
// that is not ours is kept. What is not there, be it its namespace or its kind,
// needs no deleting.
func Delete(ctx context.Context, c *site.Cluster, kind, namespace, name, mesh string, mode procedure.Mode, out *procedure.Removal) error {
	live, err := Get(ctx, c, kind, namespace, name)
	if err != nil || live == nil {
		return err
	}
	if why := NotOurs(live.GetLabels(), mesh); why != "" {
		out.Keep(Name(kind, namespace, name), why)
		return nil
	}
	return DeleteSeen(ctx, c, live, mode, out)
}

// DeleteSeen deletes an object that the caller has read and found to be ours,
// unless it has changed since, and looks whether it is gone: a finalizer may
// hold it.
func DeleteSeen(ctx context.Context, c *site.Cluster, live *unstructured.Unstructured, mode procedure.Mode, out *procedure.Removal) error {
	name := Name(live.GetKind(), live.GetNamespace(), live.GetName())
	out.Changed(procedure.Delete, name, "")
	if !mode.Writes() {
		out.By(mode, Kubectl(c, "-n", live.GetNamespace(), "delete", strings.ToLower(live.GetKind()), live.GetName()))
		return nil
	}
	if live.GetDeletionTimestamp() == nil {
		uid, version, propagation := live.GetUID(), live.GetResourceVersion(), metav1.DeletePropagationBackground
		err := Resource(c, live.GetKind(), live.GetNamespace()).Delete(ctx, live.GetName(), metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version}, PropagationPolicy: &propagation,
		})
		if err != nil && !apierrors.IsNotFound(err) {
			return Error(ctx, c, "delete "+name, err)
		}
	}
	left, err := Get(ctx, c, live.GetKind(), live.GetNamespace(), live.GetName())
	if err != nil {
		return err
	}
	if left != nil && left.GetUID() == live.GetUID() {
		return failure.Waiting(goneAgain, "cluster %q: %s is being deleted and is still there (finalizers: %v)", c.Name, name, left.GetFinalizers())
	}
	return nil
}
