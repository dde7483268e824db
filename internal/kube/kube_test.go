package kube

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/site"
)

func TestDiffering(t *testing.T) {
	live := map[string]any{
		"metadata": map[string]any{"name": "a", "resourceVersion": "7", "generation": int64(1), "managedFields": []any{"x"}, "labels": map[string]any{"a": "b"}},
		"spec":     map[string]any{"duration": "24h", "dnsNames": []any{"one"}, "size": int64(2048)},
	}
	for _, c := range []struct {
		name   string
		change func(map[string]any)
		want   []string
	}{
		{"only the API server's bookkeeping", func(o map[string]any) {
			o["metadata"] = map[string]any{"name": "a", "resourceVersion": "8", "generation": int64(2), "managedFields": []any{}, "labels": map[string]any{"a": "b"}}
		}, nil},
		{"the same number in another Go type", func(o map[string]any) {
			o["spec"] = map[string]any{"duration": "24h", "dnsNames": []any{"one"}, "size": float64(2048)}
		}, nil},
		{"a list, a value that goes and one that comes", func(o map[string]any) {
			o["spec"] = map[string]any{"dnsNames": []any{"two"}, "size": int64(2048), "commonName": "x"}
		}, []string{"spec.commonName", "spec.dnsNames", "spec.duration"}},
		{"a label", func(o map[string]any) {
			o["metadata"] = map[string]any{"name": "a", "labels": map[string]any{"a": "c"}}
		}, []string{"metadata.labels.a"}},
	} {
		would := map[string]any{"metadata": live["metadata"], "spec": live["spec"]}
		c.change(would)
		if got := Differing(live, would); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestError(t *testing.T) {
	secrets := schema.GroupResource{Resource: "secrets"}
	c := &site.Cluster{Name: "cluster1"}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	const secret = "hunter2"
	for _, test := range []struct {
		name      string
		err       error
		kind      failure.Kind
		permanent bool
	}{
		{"forbidden", apierrors.NewForbidden(secrets, "s", errors.New("User \"w\" cannot patch")), failure.Denied, true},
		{"unauthorized", apierrors.NewUnauthorized("no"), failure.Denied, false},
		{"invalid", apierrors.NewInvalid(schema.GroupKind{Kind: "secrets"}, "s", field.ErrorList{field.Invalid(field.NewPath("data"), secret, "bad")}), failure.InvalidInput, true},
		{"conflict", apierrors.NewConflict(secrets, "s", errors.New("changed")), failure.Conflict, false},
		{"overloaded", apierrors.NewTooManyRequests("later", 1), failure.Unavailable, false},
		{"webhook not there", apierrors.NewInternalError(errors.New("failed calling webhook")), failure.Unavailable, false},
		{"namespace missing", apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "gloo-mesh"), failure.NotReady, false},
		{"kind missing", apierrors.NewGenericServerResponse(404, "get", schema.GroupResource{}, "", "404 page not found", 0, true), failure.NotReady, false},
		{"no connection", errors.New("dial tcp: connection refused"), failure.Unavailable, false},
		{"with a kind already", failure.Permanent(failure.Mismatch, "differs"), failure.Mismatch, true},
	} {
		got := Error(context.Background(), c, "create Secret a/b", test.err)
		if failure.KindOf(got) != test.kind || nonRetryable(got) != test.permanent {
			t.Errorf("%s: kind %s, permanent %v: %v", test.name, failure.KindOf(got), nonRetryable(got), got)
		}
		if strings.Contains(got.Error(), secret) {
			t.Errorf("%s: the error quotes a Secret's value: %v", test.name, got)
		}
	}
	if got := Error(ended, c, "read", errors.New("x")); !errors.Is(got, context.Canceled) {
		t.Errorf("a cancelled activity ends with %v", got)
	}
	if Error(context.Background(), c, "read", nil) != nil {
		t.Error("no error became one")
	}
}

func nonRetryable(err error) bool {
	var app interface{ NonRetryable() bool }
	return errors.As(err, &app) && app.NonRetryable()
}

func TestVersion(t *testing.T) {
	for _, c := range []struct {
		image, label, want string
		tooOld             bool
	}{
		{"quay.io/jetstack/cert-manager-controller:v1.21.2", "v1.0.0", "v1.21.2", false},
		{"registry:5000/controller", "v1.12.0", "v1.12.0", false},
		{"registry:5000/controller@sha256:abc", "v1.11.4", "v1.11.4", true},
		{"controller:v0.16.1", "", "v0.16.1", true},
		{"controller:v0.0.0", "v0.0.0", "", false},
		{"controller:latest", "", "", false},
	} {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app.kubernetes.io/version": c.label}}}
		d.Spec.Template.Spec.Containers = []corev1.Container{{Image: c.image}}
		if got := Version(d); got != c.want || TooOld(got) != c.tooOld {
			t.Errorf("%s %s: %q, too old %v", c.image, c.label, got, TooOld(got))
		}
	}
}

func TestAvailable(t *testing.T) {
	two := int32(2)
	condition := []appsv1.DeploymentCondition{{Type: appsv1.DeploymentAvailable, Status: corev1.ConditionTrue}}
	for _, c := range []struct {
		name       string
		generation int64
		status     appsv1.DeploymentStatus
		want       bool
	}{
		{"all there", 3, appsv1.DeploymentStatus{ObservedGeneration: 3, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2, Conditions: condition}, true},
		{"an older generation", 4, appsv1.DeploymentStatus{ObservedGeneration: 3, UpdatedReplicas: 2, AvailableReplicas: 2, Conditions: condition}, false},
		{"an old Pod is still there", 3, appsv1.DeploymentStatus{ObservedGeneration: 3, Replicas: 3, UpdatedReplicas: 2, AvailableReplicas: 3, Conditions: condition}, false},
		{"still rolling out", 3, appsv1.DeploymentStatus{ObservedGeneration: 3, UpdatedReplicas: 1, AvailableReplicas: 2, Conditions: condition}, false},
		{"no condition", 3, appsv1.DeploymentStatus{ObservedGeneration: 3, UpdatedReplicas: 2, AvailableReplicas: 2}, false},
	} {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Generation: c.generation}, Spec: appsv1.DeploymentSpec{Replicas: &two}, Status: c.status}
		if got, state := Available(d); got != c.want || (state == "") != c.want {
			t.Errorf("%s: %v %q", c.name, got, state)
		}
	}
}
