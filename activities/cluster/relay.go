package cluster

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// clusterDomain is the DNS domain of every registered cluster.
const clusterDomain = "cluster.local"

// RegisterCluster applies the KubernetesCluster in the management cluster. A
// registration that somebody else has made (meshctl does) serves as well, and
// is left as it is.
func (a *Activities) RegisterCluster(ctx context.Context, in RegisterClusterInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	c, err := a.Clients.Cluster(in.Spec.Management.Context)
	if err != nil {
		return out, err
	}
	live, err := kube.Get(ctx, c, "KubernetesCluster", in.Spec.Management.Namespace, in.Cluster)
	if err != nil {
		return out, err
	}
	if live != nil && live.GetLabels()[kube.LabelManagedBy] != kube.ManagedBy {
		domain, _, _ := unstructured.NestedString(live.Object, "spec", "clusterDomain")
		if domain == "" || domain == clusterDomain {
			out.Detail = "registered by somebody else"
			return out, nil
		}
	}
	want := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "admin.gloo.solo.io/v2",
		"kind":       "KubernetesCluster",
		"metadata":   map[string]any{"name": in.Cluster, "namespace": in.Spec.Management.Namespace},
		"spec":       map[string]any{"clusterDomain": clusterDomain},
	}}
	want.SetLabels(kube.Labels(in.Spec.Mesh))
	_, err = kube.Apply(ctx, c, want, in.Mode, &out)
	return out, err
}

// AwaitRelayAddress waits (heartbeating) for the LoadBalancer's address, by IP
// or by hostname; an address in the input wins.
func (a *Activities) AwaitRelayAddress(ctx context.Context, in RelayAddressInput) (RelayAddressResult, error) {
	if given := in.Spec.Gloo.RelayAddress; given != "" {
		return RelayAddressResult{Address: given}, nil
	}
	c, err := a.Clients.Cluster(in.Spec.Management.Context)
	if err != nil {
		return RelayAddressResult{}, err
	}
	var result RelayAddressResult
	look := func(ctx context.Context) (bool, string, error) {
		service, err := c.Kube.CoreV1().Services(in.Spec.Management.Namespace).Get(ctx, mesh.ServerDeployment, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, fmt.Sprintf("cluster %q: %s is not there yet", c.Name, kube.Name("Service", in.Spec.Management.Namespace, mesh.ServerDeployment)), nil
		}
		if err != nil {
			return false, "", kube.Error(ctx, c, "read "+kube.Name("Service", in.Spec.Management.Namespace, mesh.ServerDeployment), err)
		}
		address, problem := kube.RelayAddress(service)
		if problem != "" {
			return false, "", failure.Permanent(failure.Preflight, "cluster %q: %s %s; give the address in gloo.relayAddress", c.Name, kube.Name("Service", service.Namespace, service.Name), problem)
		}
		result.Address = address
		return address != "", fmt.Sprintf("cluster %q: %s has no address yet; its load balancer is still being made (kubectl describe it for why), or give the address in gloo.relayAddress", c.Name, kube.Name("Service", service.Namespace, service.Name)), nil
	}
	if in.Mode == procedure.Plan {
		_, _, err = look(ctx)
	} else {
		err = kube.Await(ctx, look)
	}
	return result, err
}
