package observe

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/site"
)

var kubernetesClusters = schema.GroupVersionResource{Group: "admin.gloo.solo.io", Version: "v2", Resource: "kubernetesclusters"}

// gap classifies an error of an API server.
func gap(err error) check.Gap {
	switch {
	case err == nil:
		return check.Gap{}
	case apierrors.IsNotFound(err):
		return check.Gap{Reason: check.NotFound, Detail: words(err.Error())}
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return check.Gap{Reason: check.Denied, Detail: words(err.Error())}
	}
	return check.Gap{Reason: check.Unreachable, Detail: words(err.Error())}
}

// reach is why the API server does not answer, or "".
func reach(ctx context.Context, cluster *site.Cluster) string {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if _, err := cluster.Kube.Discovery().RESTClient().Get().AbsPath("/version").DoRaw(ctx); err != nil {
		return words(err.Error())
	}
	return ""
}

// certManager finds cert-manager's three Deployments, wherever they are.
func certManager(ctx context.Context, cluster *site.Cluster) []check.SeenDeployment {
	found, err := kube.FindCertManager(ctx, cluster)
	if err != nil {
		return []check.SeenDeployment{{Namespace: kube.CertManagerNamespace, Name: kube.CertManagerName(0), Gap: failureGap(err)}}
	}
	var seen []check.SeenDeployment
	for i, d := range found {
		if d == nil {
			seen = append(seen, check.SeenDeployment{Namespace: kube.CertManagerNamespace, Name: kube.CertManagerName(i), Gap: check.Gap{Reason: check.NotFound}})
			continue
		}
		seen = append(seen, seenDeployment(d))
	}
	return seen
}

func failureGap(err error) check.Gap {
	if failure.KindOf(err) == failure.Denied {
		return check.Gap{Reason: check.Denied, Detail: failure.Message(err)}
	}
	return check.Gap{Reason: check.Unreachable, Detail: failure.Message(err)}
}

// seenDeployment is a Deployment without its Pods.
func seenDeployment(d *appsv1.Deployment) check.SeenDeployment {
	seen := check.SeenDeployment{Namespace: d.Namespace, Name: d.Name, Desired: 1, Available: d.Status.AvailableReplicas}
	if d.Spec.Replicas != nil {
		seen.Desired = *d.Spec.Replicas
	}
	return seen
}

// relayDeployment reads a Deployment with its Pods, and the logs of those that
// are not ready.
func relayDeployment(ctx context.Context, cluster *site.Cluster, namespace, name string) (check.SeenDeployment, *appsv1.Deployment) {
	d, err := cluster.Kube.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return check.SeenDeployment{Namespace: namespace, Name: name, Gap: gap(err)}, nil
	}
	seen := seenDeployment(d)
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		seen.PodsGap = check.Gap{Reason: check.Unreachable, Detail: err.Error()}
		return seen, d
	}
	pods, err := cluster.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		seen.PodsGap = gap(err)
		return seen, d
	}
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue // on its way out, or, evicted, already replaced by another
		}
		p := seenPod(pod)
		if !p.Ready {
			p.Log = lastLines(ctx, cluster, pod)
		}
		seen.Pods = append(seen.Pods, p)
	}
	return seen, d
}

func seenPod(pod corev1.Pod) check.SeenPod {
	seen := check.SeenPod{Name: pod.Name, Created: pod.CreationTimestamp.Time}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			seen.Ready = c.Status == corev1.ConditionTrue
		}
	}
	var now, last []string
	for _, c := range pod.Status.ContainerStatuses {
		if s := containerState(c.State); s != "" {
			now = append(now, s)
		}
		if s := containerState(c.LastTerminationState); s != "" {
			last = append(last, s)
		}
	}
	if len(now) == 0 {
		for _, c := range pod.Status.Conditions {
			if c.Status == corev1.ConditionFalse && c.Message != "" {
				now = append(now, c.Reason+", "+c.Message)
			}
		}
	}
	seen.State, seen.LastState = strings.Join(now, "; "), strings.Join(last, "; ")
	return seen
}

func containerState(s corev1.ContainerState) string {
	switch {
	case s.Waiting != nil:
		return words("waiting", s.Waiting.Reason, s.Waiting.Message)
	case s.Terminated != nil:
		return words(fmt.Sprintf("terminated with exit code %d", s.Terminated.ExitCode), s.Terminated.Reason, s.Terminated.Message)
	case s.Running != nil:
		return "running"
	}
	return ""
}

// words joins what is there, on one line and not longer than a finding should be.
func words(parts ...string) string {
	var said []string
	for _, p := range parts {
		if p = strings.Join(strings.Fields(p), " "); p != "" {
			said = append(said, p)
		}
	}
	return abridge(strings.Join(said, ", "))
}

func abridge(text string) string {
	if runes := []rune(text); len(runes) > 500 {
		return string(runes[:500]) + "..."
	}
	return text
}

// lastLines reads the end of a Pod's log, from which known failures are told.
// It is an aid: a worker that may not read logs, or a Pod without one, is no
// finding.
func lastLines(ctx context.Context, cluster *site.Cluster, pod corev1.Pod) string {
	lines := int64(50)
	limit := int64(64 << 10)
	stream, err := cluster.Kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{
		TailLines: &lines, LimitBytes: &limit, Container: pod.Spec.Containers[0].Name,
	}).Stream(ctx)
	if err != nil {
		return ""
	}
	defer stream.Close()
	text, err := io.ReadAll(io.LimitReader(stream, limit))
	if err != nil {
		return ""
	}
	return string(text)
}

// addressFlags are how the agent is told of its server: Gloo's flag, and the
// stand-in's.
var addressFlags = []string{"--relay-address=", "--server-address="}

func agentAddress(d *appsv1.Deployment) string {
	if d == nil {
		return ""
	}
	for _, c := range d.Spec.Template.Spec.Containers {
		for _, arg := range append(c.Command, c.Args...) {
			for _, flag := range addressFlags {
				if address, ok := strings.CutPrefix(arg, flag); ok {
					return address
				}
			}
		}
	}
	return ""
}

func issuer(ctx context.Context, cluster *site.Cluster, namespace string) check.SeenIssuer {
	i, err := cluster.CertManager.CertmanagerV1().Issuers(namespace).Get(ctx, mesh.IssuerName, metav1.GetOptions{})
	if err != nil {
		return check.SeenIssuer{Gap: gap(err)}
	}
	seen := check.SeenIssuer{Generation: i.Generation}
	if i.Spec.Vault != nil {
		seen.Path = i.Spec.Vault.Path
	}
	for _, c := range i.Status.Conditions {
		if c.Type == cmapi.IssuerConditionReady {
			seen.Ready = check.Condition{Status: string(c.Status), Reason: c.Reason, Message: abridge(c.Message), Generation: c.ObservedGeneration}
		}
	}
	return seen
}

func certificate(ctx context.Context, cluster *site.Cluster, namespace, name string) check.SeenCertificate {
	c, err := cluster.CertManager.CertmanagerV1().Certificates(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return check.SeenCertificate{Gap: gap(err)}
	}
	seen := check.SeenCertificate{Generation: c.Generation, SecretName: c.Spec.SecretName}
	if c.Spec.Duration != nil {
		seen.Duration = c.Spec.Duration.Duration
	}
	if c.Spec.RenewBefore != nil {
		seen.RenewBefore = c.Spec.RenewBefore.Duration
	}
	if c.Status.FailedIssuanceAttempts != nil {
		seen.Failures = *c.Status.FailedIssuanceAttempts
	}
	if c.Status.LastFailureTime != nil {
		seen.LastFailure = c.Status.LastFailureTime.Time
	}
	for _, condition := range c.Status.Conditions {
		as := check.Condition{Status: string(condition.Status), Reason: condition.Reason, Message: abridge(condition.Message), Generation: condition.ObservedGeneration}
		switch condition.Type {
		case cmapi.CertificateConditionReady:
			seen.Ready = as
		case cmapi.CertificateConditionIssuing:
			seen.Issuing = as
		}
	}
	// cert-manager names a request after the Certificate and the revision that
	// it is to become.
	next := 1
	if c.Status.Revision != nil {
		next = *c.Status.Revision + 1
	}
	request, err := cluster.CertManager.CertmanagerV1().CertificateRequests(namespace).Get(ctx, fmt.Sprintf("%s-%d", name, next), metav1.GetOptions{})
	if err != nil {
		return seen // usually there is none
	}
	for _, condition := range request.Status.Conditions {
		denied := condition.Type == cmapi.CertificateRequestConditionDenied && condition.Status == cmmeta.ConditionTrue
		if denied || condition.Type == cmapi.CertificateRequestConditionReady && condition.Status != cmmeta.ConditionTrue {
			seen.Request = fmt.Sprintf("%s: %s", condition.Reason, abridge(condition.Message))
		}
	}
	return seen
}

// tlsSecret reads a Secret with certificates. Its private key, if one is
// wanted, goes to the caller alone and is never part of what was seen.
func tlsSecret(ctx context.Context, cluster *site.Cluster, namespace, name string) (check.SeenSecret, *corev1.Secret) {
	s, err := cluster.Kube.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return check.SeenSecret{Gap: gap(err)}, nil
	}
	seen := check.SeenSecret{Written: kube.WrittenAt(s), Helm: helmRelease(s)}
	seen.Chain, err = pki.ParseChain(s.Data[corev1.TLSCertKey])
	seen.ChainError = text(err)
	seen.CA, err = pki.ParseChain(s.Data[cmmeta.TLSCAKey])
	seen.CAError = text(err)
	if len(bytes.TrimSpace(s.Data[corev1.TLSPrivateKeyKey])) == 0 && seen.ChainError == "" && name != mesh.RootSecretName {
		seen.ChainError = "there is no tls.key beside it"
	}
	return seen, s
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// registered lists the KubernetesClusters.
func registered(ctx context.Context, cluster *site.Cluster, namespace string) ([]string, check.Gap) {
	list, err := cluster.Dynamic.Resource(kubernetesClusters).Namespace(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, gap(err)
	}
	var names []string
	for _, item := range list.Items {
		names = append(names, item.GetName())
	}
	return names, check.Gap{}
}
