package kube

import (
	"context"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/relaypki/relaypki/internal/site"
)

// FindDeployment finds a Deployment by name in its usual namespace, else by
// its label app.kubernetes.io/name in any namespace, where the worker may look
// there. Nil: there is none.
func FindDeployment(ctx context.Context, c *site.Cluster, namespace, name, nameLabel string) (*appsv1.Deployment, error) {
	found, err := c.Kube.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
	if err == nil {
		return found, nil
	}
	if !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
		return nil, Error(ctx, c, "read "+Name("Deployment", namespace, name), err)
	}
	denied := apierrors.IsForbidden(err)
	list, errList := c.Kube.AppsV1().Deployments("").List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + nameLabel})
	switch {
	case errList == nil && len(list.Items) > 0:
		return &list.Items[0], nil
	case apierrors.IsForbidden(errList) && denied:
		return nil, Error(ctx, c, "read "+Name("Deployment", namespace, name), err)
	case errList != nil && !apierrors.IsForbidden(errList):
		return nil, Error(ctx, c, "list Deployments", errList)
	}
	return nil, nil
}

// CertManager's three Deployments, and the values of their name labels in its chart.
var certManagerDeployments = []struct{ name, label string }{
	{"cert-manager", "cert-manager"},
	{"cert-manager-webhook", "webhook"},
	{"cert-manager-cainjector", "cainjector"},
}

// CertManagerNamespace is where cert-manager usually is, and where it is installed.
const CertManagerNamespace = "cert-manager"

// FindCertManager finds cert-manager's controller, webhook and cainjector, in
// this order; nil where one is missing.
func FindCertManager(ctx context.Context, c *site.Cluster) ([]*appsv1.Deployment, error) {
	found := make([]*appsv1.Deployment, len(certManagerDeployments))
	namespace := CertManagerNamespace
	for i, d := range certManagerDeployments {
		deployment, err := FindDeployment(ctx, c, namespace, d.name, d.label)
		if err != nil {
			return nil, err
		}
		// "webhook" is a label that others use too.
		if deployment != nil && i > 0 && deployment.Namespace != namespace {
			deployment = nil
		}
		if deployment != nil && i == 0 {
			namespace = deployment.Namespace
		}
		found[i] = deployment
	}
	return found, nil
}

// CertManagerName is the usual name of the i-th Deployment of FindCertManager.
func CertManagerName(i int) string { return certManagerDeployments[i].name }

// Version is a Deployment's version: its first image's tag, else its label
// app.kubernetes.io/version; empty if neither says, or for a build without a
// version (v0.0.0).
func Version(d *appsv1.Deployment) string {
	candidates := make([]string, 0, 2)
	if containers := d.Spec.Template.Spec.Containers; len(containers) > 0 {
		image, _, _ := strings.Cut(containers[0].Image, "@")
		if i := strings.LastIndex(image, ":"); i > strings.LastIndex(image, "/") {
			candidates = append(candidates, image[i+1:])
		}
	}
	candidates = append(candidates, d.Labels["app.kubernetes.io/version"])
	for _, text := range candidates {
		if v, err := version.ParseGeneric(text); err == nil && v.AtLeast(version.MajorMinor(0, 1)) {
			return text
		}
	}
	return ""
}

// MinimalCertManager is the first version with serviceAccountRef.
var MinimalCertManager = version.MajorMinor(1, 12)

// TooOld says whether cert-manager's version is known and below MinimalCertManager.
func TooOld(text string) bool {
	v, err := version.ParseGeneric(text)
	return err == nil && !v.AtLeast(MinimalCertManager)
}

// Available says whether the Deployment's present generation is rolled out
// and available, and if not, what it lacks in a few words.
func Available(d *appsv1.Deployment) (bool, string) {
	name := Name("Deployment", d.Namespace, d.Name)
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	if d.Status.ObservedGeneration < d.Generation {
		return false, name + " is not yet seen by its controller"
	}
	available := false
	for _, cond := range d.Status.Conditions {
		if cond.Type == appsv1.DeploymentAvailable && cond.Status == corev1.ConditionTrue {
			available = true
		}
		if cond.Type == appsv1.DeploymentReplicaFailure && cond.Status == corev1.ConditionTrue {
			return false, fmt.Sprintf("%s: %s: %s", name, cond.Reason, cond.Message)
		}
	}
	if d.Status.AvailableReplicas >= want && d.Status.UpdatedReplicas < want {
		return false, fmt.Sprintf("%s: %d of %d new Pods made", name, d.Status.UpdatedReplicas, want)
	}
	if !available || d.Status.UpdatedReplicas < want || d.Status.AvailableReplicas < want {
		return false, fmt.Sprintf("%s: %d of %d Pods available", name, d.Status.AvailableReplicas, want)
	}
	if old := d.Status.Replicas - d.Status.UpdatedReplicas; old > 0 { // as kubectl rollout status
		return false, fmt.Sprintf("%s: %d old Pods are still to end", name, old)
	}
	return true, ""
}

// PodTrouble says in a few words why Pods of a Deployment do not run, as far
// as their status says; empty otherwise or if they cannot be read.
func PodTrouble(ctx context.Context, c *site.Cluster, d *appsv1.Deployment) string {
	pods, err := c.Kube.CoreV1().Pods(d.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
	if err != nil {
		return ""
	}
	for _, pod := range pods.Items {
		for _, cond := range pod.Status.Conditions {
			if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse {
				return fmt.Sprintf("Pod %s: %s", pod.Name, cond.Message)
			}
		}
		for _, container := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
			if w := container.State.Waiting; w != nil && w.Reason != "" && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
				return fmt.Sprintf("Pod %s: %s %s", pod.Name, w.Reason, w.Message)
			}
			if t := container.LastTerminationState.Terminated; t != nil && !container.Ready {
				return fmt.Sprintf("Pod %s: last ended with %s (exit %d) %s", pod.Name, t.Reason, t.ExitCode, t.Message)
			}
		}
	}
	return ""
}
