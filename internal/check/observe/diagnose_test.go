package observe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	cmfake "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned/fake"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubefake "k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/secret/secrettest"
	"github.com/relaypki/relaypki/internal/site"
)

func at(cluster *site.Cluster, clients *site.Clients) looker {
	spec := mesh.Spec{Mesh: "prod", Workloads: []mesh.Workload{{Name: "cluster1"}}}.WithDefaults()
	return looker{ctx: context.Background(), clients: clients, cluster: cluster, spec: spec, certificate: "relay-client-tls"}
}

func TestRequests(t *testing.T) {
	ago := func(d time.Duration) metav1.Time { return metav1.NewTime(time.Now().Add(-d)) }
	request := func(name, certificate string, made metav1.Time, conditions ...cmapi.CertificateRequestCondition) *cmapi.CertificateRequest {
		return &cmapi.CertificateRequest{
			ObjectMeta: metav1.ObjectMeta{Namespace: "gloo-mesh", Name: name, CreationTimestamp: made, Annotations: map[string]string{cmapi.CertificateNameKey: certificate}},
			Status:     cmapi.CertificateRequestStatus{Conditions: conditions},
		}
	}
	cluster := &site.Cluster{CertManager: cmfake.NewSimpleClientset(
		request("b", "relay-client-tls", ago(time.Minute), cmapi.CertificateRequestCondition{Type: cmapi.CertificateRequestConditionReady, Status: cmmeta.ConditionFalse, Reason: "Failed", Message: "refused"}),
		request("a", "relay-client-tls", ago(time.Hour), cmapi.CertificateRequestCondition{Type: cmapi.CertificateRequestConditionDenied, Status: cmmeta.ConditionTrue, Reason: "policy"}),
		request("of-another", "another", ago(time.Second)),
	)}
	seen := at(cluster, nil).requests(t.Context())
	if len(seen) != 2 || seen[0].Name != "a" || seen[1].Name != "b" {
		t.Fatalf("%+v", seen)
	}
	if seen[0].Denied.Reason != "policy" || seen[1].Ready.Status != "False" || seen[1].Ready.Message != "refused" {
		t.Errorf("%+v", seen)
	}
}

func TestEvents(t *testing.T) {
	event := func(name, kind string, last time.Time) *corev1.Event {
		return &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "gloo-mesh", Name: name}, Type: kind, Reason: name, Message: "one\n two", LastTimestamp: metav1.NewTime(last),
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "gloo-mesh", Name: "agent-0"}}
	}
	now := time.Now()
	cluster := &site.Cluster{Kube: kubefake.NewClientset(event("late", corev1.EventTypeWarning, now), event("early", corev1.EventTypeWarning, now.Add(-time.Hour)), event("normal", corev1.EventTypeNormal, now))}
	seen := at(cluster, nil).events(t.Context())
	if len(seen) != 2 || seen[0].Reason != "early" || seen[1].Reason != "late" || seen[1].Object != "Pod gloo-mesh/agent-0" || seen[1].Message != "one two" || seen[1].Count != 1 {
		t.Errorf("%+v", seen)
	}
}

func TestClock(t *testing.T) {
	for _, test := range []struct {
		ahead time.Duration
		want  time.Duration
	}{{0, 0}, {time.Hour, -time.Hour}, {-2 * time.Minute, 2 * time.Minute}} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(test.ahead).UTC().Format(http.TimeFormat))
		}))
		seen := at(&site.Cluster{REST: &rest.Config{Host: server.URL}}, nil).clock(t.Context())
		server.Close()
		// The header is to the second, and so is the answer.
		if off := seen.Behind - test.want; !seen.Known || off < -2*time.Second || off > 2*time.Second {
			t.Errorf("%s ahead: %+v", test.ahead, seen)
		}
	}
	if seen := at(&site.Cluster{REST: &rest.Config{Host: "http://127.0.0.1:1"}}, nil).clock(t.Context()); seen.Known {
		t.Errorf("a server that is away told the time: %+v", seen)
	}
}

// TestStored: what Vault says of the token is seen, and never the token.
func TestStored(t *testing.T) {
	const known, ended = "the-root-token", "an-old-token"
	vault := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Vault-Token") != known {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"errors":["permission denied"]}`)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"policies": []string{"root"}}})
	}))
	t.Cleanup(vault.Close)
	clients := site.NewClients(site.Config{Vaults: []site.VaultConfig{{Name: "default", Address: vault.URL}}}, zap.NewNop())
	secret := func(token string) *site.Cluster {
		return &site.Cluster{Kube: kubefake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "gloo-mesh", Name: mesh.TokenSecretName}, Data: map[string][]byte{mesh.TokenSecretKey: []byte(token)}})}
	}
	for _, test := range []struct {
		name    string
		cluster *site.Cluster
		clients *site.Clients
		want    check.SeenStored
		gap     check.GapReason
	}{
		{"root", secret(known), clients, check.SeenStored{There: true, Known: true, Policies: []string{"root"}}, ""},
		{"ended", secret(ended), clients, check.SeenStored{There: true}, ""},
		{"empty", secret(""), clients, check.SeenStored{}, ""},
		{"none", &site.Cluster{Kube: kubefake.NewClientset()}, clients, check.SeenStored{}, check.NotFound},
		{"no Vault known", secret(known), site.NewClients(site.Config{}, zap.NewNop()), check.SeenStored{There: true}, check.Denied},
	} {
		seen := at(test.cluster, test.clients).stored(t.Context())
		if seen.Gap.Reason != test.gap || seen.There != test.want.There || seen.Known != test.want.Known || !slices.Equal(seen.Policies, test.want.Policies) {
			t.Errorf("%s: %+v", test.name, seen)
		}
		if strings.Contains(fmt.Sprintf("%+v", seen), known) {
			t.Errorf("%s: the token is in what was seen", test.name)
		}
	}
}

func TestIdentity(t *testing.T) {
	secret := func(key, token string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "gloo-mesh", Name: "relay-identity-token-secret", Annotations: map[string]string{"meta.helm.sh/release-name": "gloo"}}, Data: map[string][]byte{key: []byte(token)}}
	}
	clients := site.NewClients(site.Config{}, zap.NewNop())
	seen := at(&site.Cluster{Kube: kubefake.NewClientset(secret("token", secrettest.JWT))}, clients).identity(t.Context())
	if !seen.HasKey || !seen.Same || seen.Helm != "gloo" {
		t.Errorf("%+v", seen)
	}
	if seen := at(&site.Cluster{Kube: kubefake.NewClientset(secret("another", "x"))}, clients).identity(t.Context()); seen.HasKey {
		t.Errorf("%+v", seen)
	}
	if seen := at(&site.Cluster{Kube: kubefake.NewClientset()}, clients).identity(t.Context()); seen.Gap.Reason != check.NotFound {
		t.Errorf("%+v", seen)
	}
}

func TestHelmRelease(t *testing.T) {
	for _, test := range []struct {
		labels, annotations map[string]string
		want                string
	}{
		{nil, nil, ""},
		{map[string]string{"app.kubernetes.io/managed-by": "relaypki"}, nil, ""},
		{map[string]string{"app.kubernetes.io/managed-by": "Helm"}, nil, "a release that it does not name"},
		{nil, map[string]string{"meta.helm.sh/release-name": "gloo"}, "gloo"},
		{map[string]string{"app.kubernetes.io/managed-by": "Helm"}, map[string]string{"meta.helm.sh/release-name": "gloo", "helm.sh/resource-policy": "keep"}, ""},
	} {
		if got := helmRelease(&metav1.ObjectMeta{Labels: test.labels, Annotations: test.annotations}); got != test.want {
			t.Errorf("%v, %v: %q", test.labels, test.annotations, got)
		}
	}
}
