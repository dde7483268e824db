package observe

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kubefake "k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/site"
)

func TestParseMetrics(t *testing.T) {
	seen, err := parseMetrics(strings.NewReader(`# HELP relay_pull_clients_connected Current number of connected Relay pull clients (Relay Agents).
# TYPE relay_pull_clients_connected gauge
relay_pull_clients_connected{cluster="cluster1"} 1
relay_pull_clients_connected{cluster="cluster2"} 0
relay_push_clients_connected{cluster="cluster1"} 1
relaypki_standin 1
`))
	if err != nil {
		t.Fatal(err)
	}
	if seen.Pull["cluster1"] != 1 || seen.Pull["cluster2"] != 0 || seen.Push["cluster1"] != 1 || !seen.StandIn {
		t.Errorf("%+v", seen)
	}
	if seen, err = parseMetrics(strings.NewReader("go_goroutines 7\n")); err != nil || seen.StandIn || len(seen.Pull) != 0 {
		t.Errorf("%v, %+v", err, seen)
	}
	if _, err = parseMetrics(strings.NewReader("<html>")); err == nil {
		t.Error("a page that is no metrics was read")
	}
}

func TestSeenPod(t *testing.T) {
	status := func(ready corev1.ConditionStatus, c ...corev1.ContainerStatus) corev1.Pod {
		return corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "p"},
			Status: corev1.PodStatus{
				Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}},
				ContainerStatuses: c,
			},
		}
	}
	crashed := corev1.ContainerStatus{
		State:                corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 10s"}},
		LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", Message: "3 errors occurred:\n\t* no tls secret found"}},
	}
	unscheduled := corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/1 nodes are available"}}}}
	for _, test := range []struct {
		name string
		pod  corev1.Pod
		want check.SeenPod
	}{
		{"running", status(corev1.ConditionTrue, corev1.ContainerStatus{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}),
			check.SeenPod{Name: "p", Ready: true, State: "running"}},
		{"crashed", status(corev1.ConditionFalse, crashed),
			check.SeenPod{Name: "p", State: "waiting, CrashLoopBackOff, back-off 10s", LastState: "terminated with exit code 1, Error, 3 errors occurred: * no tls secret found"}},
		{"unscheduled", unscheduled, check.SeenPod{State: "Unschedulable, 0/1 nodes are available"}},
	} {
		if got := seenPod(test.pod); got != test.want {
			t.Errorf("%s: %+v", test.name, got)
		}
	}
}

func TestGap(t *testing.T) {
	secrets := schema.GroupResource{Resource: "secrets"}
	for _, test := range []struct {
		err  error
		want check.GapReason
	}{
		{nil, ""},
		{apierrors.NewNotFound(secrets, "x"), check.NotFound},
		{apierrors.NewForbidden(secrets, "x", nil), check.Denied},
		{apierrors.NewUnauthorized("x"), check.Denied},
		{fmt.Errorf("connection refused"), check.Unreachable},
	} {
		if got := gap(test.err); got.Reason != test.want {
			t.Errorf("%v: %q", test.err, got.Reason)
		}
	}
}

// TestTLSSecret: what was seen has the certificates and never the key.
func TestTLSSecret(t *testing.T) {
	own := newPKI(t, "R1")
	secret := func(name string, change func(map[string][]byte)) *corev1.Secret {
		data := map[string][]byte{"tls.crt": pki.EncodeChain(own.client.Cert, own.relay.Cert), "tls.key": []byte("the key"), "ca.crt": pki.EncodeChain(own.root.Cert)}
		change(data)
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "gloo-mesh", Name: name}, Data: data}
	}
	kube := kubefake.NewClientset(
		secret("whole", func(map[string][]byte) {}),
		secret("no-ca", func(d map[string][]byte) { delete(d, "ca.crt") }),
		secret("no-key", func(d map[string][]byte) { delete(d, "tls.key") }),
		secret("swapped", func(d map[string][]byte) { d["tls.crt"] = d["tls.key"] }),
		secret(mesh.RootSecretName, func(d map[string][]byte) { delete(d, "tls.key"); delete(d, "tls.crt") }),
	)
	kube.PrependReactor("get", "secrets", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if action.(clienttesting.GetAction).GetName() == "denied" {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "denied", nil)
		}
		return false, nil, nil
	})
	cluster := &site.Cluster{Kube: kube}
	for _, test := range []struct {
		name       string
		gap        check.GapReason
		chain, ca  int
		chainError string
		caError    string
	}{
		{"whole", "", 2, 1, "", ""},
		{"no-ca", "", 2, 0, "", "no certificate"},
		{"no-key", "", 2, 1, "no tls.key", ""},
		{"swapped", "", 0, 1, "not PEM", ""},
		{mesh.RootSecretName, "", 0, 1, "no certificate", ""},
		{"missing", check.NotFound, 0, 0, "", ""},
		{"denied", check.Denied, 0, 0, "", ""},
	} {
		seen, _ := tlsSecret(t.Context(), cluster, "gloo-mesh", test.name)
		if seen.Gap.Reason != test.gap || len(seen.Chain) != test.chain || len(seen.CA) != test.ca ||
			!strings.Contains(seen.ChainError, test.chainError) || (seen.ChainError == "") != (test.chainError == "") ||
			!strings.Contains(seen.CAError, test.caError) || (seen.CAError == "") != (test.caError == "") {
			t.Errorf("%s: %+v", test.name, seen)
		}
		if strings.Contains(fmt.Sprintf("%+v", seen), "the key") {
			t.Errorf("%s: the key is in what was seen", test.name)
		}
	}
}

func TestRelayDeployment(t *testing.T) {
	labels := map[string]string{"app": mesh.AgentDeployment}
	pod := func(name string, change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "gloo-mesh", Name: name, Labels: labels},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "agent"}}},
			Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
		}
		change(p)
		return p
	}
	cluster := &site.Cluster{Kube: kubefake.NewClientset(
		&appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Namespace: "gloo-mesh", Name: mesh.AgentDeployment},
			Spec: appsv1.DeploymentSpec{
				Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "agent", Args: []string{"agent", "--server-address=34.145.18106:9900:9900"}}}}},
			},
			Status: appsv1.DeploymentStatus{AvailableReplicas: 1},
		},
		pod("ready", func(*corev1.Pod) {}),
		pod("unready", func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }),
		pod("of another", func(p *corev1.Pod) { p.Labels = nil }),
		pod("going", func(p *corev1.Pod) {
			p.DeletionTimestamp, p.Finalizers = &metav1.Time{}, []string{"x"}
		}),
	)}
	seen, d := relayDeployment(t.Context(), cluster, "gloo-mesh", mesh.AgentDeployment)
	if seen.Desired != 1 || seen.Available != 1 || seen.Gap.Open() || seen.PodsGap.Open() {
		t.Errorf("%+v", seen)
	}
	var names []string
	for _, p := range seen.Pods {
		names = append(names, fmt.Sprintf("%s %v log %v", p.Name, p.Ready, p.Log != ""))
	}
	slices.Sort(names)
	if got := strings.Join(names, "; "); got != "ready true log false; unready false log true" {
		t.Error(got)
	}
	if got := agentAddress(d); got != "34.145.18106:9900:9900" {
		t.Errorf("address %q", got)
	}
	if seen, d := relayDeployment(t.Context(), cluster, "gloo-mesh", mesh.ServerDeployment); seen.Gap.Reason != check.NotFound || d != nil {
		t.Errorf("%+v", seen)
	}
}

// TestFingerprints: a key of /openid/v1/jwks is the key that Vault holds as PEM.
func TestFingerprints(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: rsaKey.Public(), KeyID: "a", Algorithm: "RS256", Use: "sig"}, {Key: ecKey.Public(), KeyID: "b", Algorithm: "ES256", Use: "sig"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := jwksFingerprints(set)
	if err != nil {
		t.Fatal(err)
	}
	for i, key := range []any{rsaKey.Public(), ecKey.Public()} {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if got[i] != fingerprint(der) {
			t.Errorf("key %d differs", i)
		}
	}
	if _, err := jwksFingerprints([]byte("<html>")); err == nil {
		t.Error("a page that is no key set was read")
	}
}
