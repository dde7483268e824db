// Package observe looks at Vault, at clusters and at the wire for package
// check, and changes nothing. It judges nothing either: what cannot be looked
// at is part of what was seen.
//
// In a cluster it needs get on the namespaced objects that it names
// (Deployments, Secrets, Issuer, Certificate, CertificateRequests,
// KubernetesClusters), list on the relay namespace's Pods and on
// KubernetesClusters, get on pods/log (it does without) and, in the
// management cluster, create on pods/portforward.
package observe

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/site"
)

// lookTimeout bounds one look at something that may not answer.
const lookTimeout = 10 * time.Second

// Ports of the management server.
const (
	relayPort   = 9900
	metricsPort = 9091
)

// Management looks at the management cluster and Vault. The error is one of
// configuration: the cluster is not in the site file or not in the kubeconfig.
func Management(ctx context.Context, clients *site.Clients, spec mesh.Spec) (check.Management, error) {
	cluster, err := clients.Cluster(spec.Management.Context)
	if err != nil {
		return check.Management{}, err
	}
	spec.Namespace = spec.Management.Namespace // what is looked at here is there
	seen := check.Management{Spec: spec, Vault: vault(ctx, clients, spec)}
	if seen.Unreachable = reach(ctx, cluster); seen.Unreachable != "" {
		return seen, nil
	}
	seen.CertManager = certManager(ctx, cluster)
	seen.Issuer = issuer(ctx, cluster, spec.Namespace)
	seen.Certificate = certificate(ctx, cluster, spec.Namespace, spec.Certificates.Server.Name)
	seen.Secret, _ = tlsSecret(ctx, cluster, spec.Namespace, spec.Certificates.Server.SecretName)
	seen.Keys = pinnedKeys(ctx, clients, cluster, spec, spec.Management.Context)
	seen.Token = clusterToken(ctx, clients, cluster, spec)
	seen.Registered, seen.RegisteredGap = registered(ctx, cluster, spec.Namespace)
	seen.Server, seen.Replicas = replicas(ctx, cluster, spec, gauges, inUse)
	return seen, nil
}

// Server looks at what the management server has stored and loaded, and at
// nothing else of the management cluster.
func Server(ctx context.Context, clients *site.Clients, spec mesh.Spec) (check.Management, error) {
	cluster, err := clients.Cluster(spec.Management.Context)
	if err != nil {
		return check.Management{}, err
	}
	spec.Namespace = spec.Management.Namespace
	seen := check.Management{Spec: spec}
	if seen.Unreachable = reach(ctx, cluster); seen.Unreachable != "" {
		return seen, nil
	}
	// Who stores and loads goes in this order, so what is loaded is looked at last.
	seen.Secret, _ = tlsSecret(ctx, cluster, spec.Namespace, spec.Certificates.Server.SecretName)
	seen.Server, seen.Replicas = replicas(ctx, cluster, spec, inUse)
	return seen, nil
}

// Connections looks at as much of the management cluster as check's Settled
// asks about: the server's Pods and gauges.
func Connections(ctx context.Context, clients *site.Clients, spec mesh.Spec) (check.Management, error) {
	cluster, err := clients.Cluster(spec.Management.Context)
	if err != nil {
		return check.Management{}, err
	}
	seen := check.Management{Spec: spec}
	seen.Server, seen.Replicas = replicas(ctx, cluster, spec, gauges)
	return seen, nil
}

// replicas looks at every Pod of the management server, at all of them at once.
func replicas(ctx context.Context, cluster *site.Cluster, spec mesh.Spec, looks ...func(context.Context, *site.Cluster, mesh.Spec, *check.SeenReplica)) (check.SeenDeployment, []check.SeenReplica) {
	server, _ := relayDeployment(ctx, cluster, spec.Management.Namespace, mesh.ServerDeployment)
	seen := make([]check.SeenReplica, len(server.Pods))
	var group errgroup.Group
	for i, pod := range server.Pods {
		one := &seen[i]
		one.Pod = pod.Name
		if !pod.Ready {
			one.MetricsError, one.LoadedError = "the Pod is not ready", "the Pod is not ready"
			continue
		}
		group.Go(func() error {
			for _, look := range looks {
				look(ctx, cluster, spec, one)
			}
			return nil
		})
	}
	_ = group.Wait() // what could not be seen is in what was
	return server, seen
}

// gauges looks at a replica's gauges, inUse at what it has loaded.

func gauges(ctx context.Context, cluster *site.Cluster, spec mesh.Spec, one *check.SeenReplica) {
	seen, err := replicaMetrics(ctx, cluster, spec.Management.Namespace, one.Pod)
	one.Metrics, one.MetricsError = seen, text(err)
}

func inUse(ctx context.Context, cluster *site.Cluster, spec mesh.Spec, one *check.SeenReplica) {
	seen, err := replicaLoaded(ctx, cluster, spec, one.Pod)
	one.Loaded, one.LoadedError = seen, text(err)
}

func replicaMetrics(ctx context.Context, cluster *site.Cluster, namespace, pod string) (check.Metrics, error) {
	conn, err := dialPod(ctx, cluster, namespace, pod, metricsPort)
	if err != nil {
		return check.Metrics{}, err
	}
	defer conn.Close()
	return metrics(ctx, conn)
}

func replicaLoaded(ctx context.Context, cluster *site.Cluster, spec mesh.Spec, pod string) (check.Loaded, error) {
	conn, err := dialPod(ctx, cluster, spec.Management.Namespace, pod, relayPort)
	if err != nil {
		return check.Loaded{}, err
	}
	defer conn.Close()
	return loaded(ctx, conn, spec.Gloo.Authority)
}

// Workload looks at one workload cluster, and shakes hands in its agent's
// place with every replica of the management server. The error is one of
// configuration, as with Management.
func Workload(ctx context.Context, clients *site.Clients, spec mesh.Spec, w mesh.Workload) (check.Workload, error) {
	seen, cluster, client, err := agent(ctx, clients, spec, w)
	if err != nil || seen.Unreachable != "" {
		return seen, err
	}
	spec = seen.Spec
	seen.CertManager = certManager(ctx, cluster)
	seen.Issuer = issuer(ctx, cluster, spec.Namespace)
	seen.Certificate = certificate(ctx, cluster, spec.Namespace, spec.Certificates.Client.Name)
	seen.Keys = pinnedKeys(ctx, clients, cluster, spec, w.Context)
	seen.Token = clusterToken(ctx, clients, cluster, spec)
	deployment, deployed := relayDeployment(ctx, cluster, spec.Namespace, mesh.AgentDeployment)
	seen.Agent, seen.AgentAddress = deployment, agentAddress(deployed)

	management := opposite(ctx, clients, &seen)
	if management == nil {
		return seen, nil
	}
	_, err = management.Dynamic.Resource(kubernetesClusters).Namespace(spec.Management.Namespace).Get(ctx, w.Name, metav1.GetOptions{})
	seen.RegisteredGap = gap(err)
	seen.Handshakes, seen.HandshakesError = handshakes(ctx, management, spec, seen, client)
	return seen, nil
}

// Agent looks at what a cluster's agent presents and trusts, and at nothing else.
func Agent(ctx context.Context, clients *site.Clients, spec mesh.Spec, w mesh.Workload) (check.Workload, error) {
	seen, _, _, err := agent(ctx, clients, spec, w)
	return seen, err
}

// Handshakes shakes hands in the place of a cluster's agent, and looks at
// nothing else.
func Handshakes(ctx context.Context, clients *site.Clients, spec mesh.Spec, w mesh.Workload) (check.Workload, error) {
	seen, _, client, err := agent(ctx, clients, spec, w)
	if err != nil || seen.Unreachable != "" {
		return seen, err
	}
	if management := opposite(ctx, clients, &seen); management != nil {
		seen.Handshakes, seen.HandshakesError = handshakes(ctx, management, seen.Spec, seen, client)
	}
	return seen, nil
}

// agent reads the agent's Secrets; the one with its key goes to the caller alone.
func agent(ctx context.Context, clients *site.Clients, spec mesh.Spec, w mesh.Workload) (check.Workload, *site.Cluster, *corev1.Secret, error) {
	cluster, err := clients.Cluster(w.Context)
	if err != nil {
		return check.Workload{}, nil, nil, err
	}
	spec.Namespace = w.Namespace
	seen := check.Workload{Spec: spec, Cluster: w}
	if seen.Unreachable = reach(ctx, cluster); seen.Unreachable != "" {
		return seen, cluster, nil, nil
	}
	var client *corev1.Secret
	seen.Secret, client = tlsSecret(ctx, cluster, spec.Namespace, spec.Certificates.Client.SecretName)
	seen.RootSecret, _ = tlsSecret(ctx, cluster, spec.Namespace, mesh.RootSecretName)
	return seen, cluster, client, nil
}

// opposite is the management cluster as seen from a workload's; nil, and in what
// was seen why, where it is not to be reached.
func opposite(ctx context.Context, clients *site.Clients, seen *check.Workload) *site.Cluster {
	management, err := clients.Cluster(seen.Spec.Management.Context)
	if err != nil {
		seen.Private = fmt.Sprintf("the worker that reaches this cluster does not know the management cluster %q", seen.Spec.Management.Context)
		return nil
	}
	if problem := reach(ctx, management); problem != "" {
		seen.HandshakesError = "the management cluster's API server does not answer: " + problem
		seen.RegisteredGap = check.Gap{Reason: check.Unreachable, Detail: problem}
		return nil
	}
	return management
}

// handshakes shakes hands with every Pod of the management server. The private
// key stays in this function.
func handshakes(ctx context.Context, management *site.Cluster, spec mesh.Spec, seen check.Workload, client *corev1.Secret) ([]check.SeenHandshake, string) {
	_, trusted := seen.Trust()
	switch {
	case client == nil || seen.Secret.ChainError != "":
		return nil, "there is no readable client certificate"
	case len(trusted.CA) == 0:
		return nil, "there is nothing readable that the agent could check the server against"
	}
	own, err := tls.X509KeyPair(client.Data[corev1.TLSCertKey], client.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		// crypto/tls says what is wrong ("private key does not match public
		// key") and never quotes a key.
		return nil, "the client Secret's tls.crt and tls.key: " + err.Error()
	}
	pods, gap := serverPods(ctx, management, spec.Management.Namespace)
	switch {
	case gap != "":
		return nil, gap
	case len(pods) == 0:
		return nil, "the management server has no ready Pod"
	}
	var made []check.SeenHandshake
	for _, pod := range pods {
		one := check.SeenHandshake{Pod: pod}
		conn, err := dialPod(ctx, management, spec.Management.Namespace, pod, relayPort)
		if err != nil {
			one.Error = err.Error()
			made = append(made, one)
			continue
		}
		one.Reached = true
		one.Resumed, err = handshake(ctx, conn, spec.Gloo.Authority, own, pki.Pool(trusted.CA))
		one.Error = text(err)
		conn.Close()
		made = append(made, one)
	}
	return made, ""
}

// serverPods are the management server's ready Pods.
func serverPods(ctx context.Context, management *site.Cluster, namespace string) (ready []string, problem string) {
	d, err := management.Kube.AppsV1().Deployments(namespace).Get(ctx, mesh.ServerDeployment, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, "there is no Deployment of the management server"
	}
	if err != nil {
		return nil, err.Error()
	}
	pods, err := management.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
	if err != nil {
		return nil, err.Error()
	}
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp == nil && seenPod(pod).Ready {
			ready = append(ready, pod.Name)
		}
	}
	return ready, ""
}
