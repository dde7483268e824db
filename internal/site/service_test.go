package site

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/relaypki/relaypki/internal/failure"
)

func balanced(ingress ...corev1.LoadBalancerIngress) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "vault", Name: "vault"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 8201}, {Port: 8200}}},
		Status:     corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: ingress}},
	}
}

func TestServiceURL(t *testing.T) {
	clusterIP := balanced(corev1.LoadBalancerIngress{IP: "192.0.2.1"})
	clusterIP.Spec.Type = corev1.ServiceTypeClusterIP
	for name, test := range map[string]struct {
		service *corev1.Service
		at      VaultService
		url     string
		problem string
	}{
		"by IP":        {balanced(corev1.LoadBalancerIngress{IP: "192.0.2.1"}), VaultService{Port: 8200, Scheme: "https"}, "https://192.0.2.1:8200", ""},
		"by IPv6":      {balanced(corev1.LoadBalancerIngress{IP: "2001:db8::1"}), VaultService{Port: 8200, Scheme: "https"}, "https://[2001:db8::1]:8200", ""},
		"by host name": {balanced(corev1.LoadBalancerIngress{Hostname: "lb.example.com"}), VaultService{Port: 8200, Scheme: "http"}, "http://lb.example.com:8200", ""},
		"first empty":  {balanced(corev1.LoadBalancerIngress{}, corev1.LoadBalancerIngress{IP: "192.0.2.2"}), VaultService{Port: 8200, Scheme: "https"}, "https://192.0.2.2:8200", ""},
		"none yet":     {balanced(), VaultService{Port: 8200, Scheme: "https"}, "", ""},
		"another type": {clusterIP, VaultService{Port: 8200, Scheme: "https"}, "", "is of type ClusterIP"},
		"no such port": {balanced(corev1.LoadBalancerIngress{IP: "192.0.2.1"}), VaultService{Port: 443, Scheme: "https"}, "", "has no port 443"},
		"another port": {balanced(corev1.LoadBalancerIngress{IP: "192.0.2.1"}), VaultService{Port: 8201, Scheme: "https"}, "https://192.0.2.1:8201", ""},
	} {
		t.Run(name, func(t *testing.T) {
			url, problem := serviceURL(test.service, test.at)
			if url != test.url || !strings.Contains(problem, test.problem) || (problem == "") != (test.problem == "") {
				t.Errorf("%q, %q; want %q, %q", url, problem, test.url, test.problem)
			}
		})
	}
}

// A Vault that is not there yet is found once it is, and then at once.
func TestVaultIsDiscovered(t *testing.T) {
	ctx := context.Background()
	kube := fake.NewClientset()
	c := NewClients(Config{Vaults: []VaultConfig{{Name: "v", Service: &VaultService{Cluster: "mgmt", Namespace: "vault", Name: "vault", Port: 8200, Scheme: "https"}}}}, zap.NewNop())
	c.clusters["mgmt"] = &Cluster{Name: "mgmt", Kube: kube}

	notYet := func(words string) {
		t.Helper()
		if _, err := c.VaultConfig(ctx, "v"); failure.KindOf(err) != failure.NotReady || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want NotReady with %q", err, words)
		}
	}
	notYet("is not there yet")
	services := kube.CoreV1().Services("vault")
	if _, err := services.Create(ctx, balanced(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	notYet("has no address yet")
	if _, err := services.UpdateStatus(ctx, balanced(corev1.LoadBalancerIngress{IP: "192.0.2.1"}), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		config, err := c.VaultConfig(ctx, "v")
		if err != nil || config.Address != "https://192.0.2.1:8200" || config.ClusterAddress != config.Address {
			t.Fatalf("%+v, %v", config, err)
		}
		kube.ClearActions()
	}
	client, err := c.VaultWithToken(ctx, "v", "")
	if err != nil || client.Address() != "https://192.0.2.1:8200" {
		t.Errorf("the client's address: %v", err)
	}
	if n := len(kube.Actions()); n != 0 {
		t.Errorf("an address that was found is looked for again: %d requests", n)
	}
}

func TestLoadVaults(t *testing.T) {
	for name, test := range map[string]struct {
		vault string
		want  string // a part of the error; empty for none
	}{
		"an address":          {"{name: v, address: 'https://vault:8200'}", ""},
		"a service":           {"{name: v, service: {cluster: mgmt, namespace: vault, name: vault}}", ""},
		"neither":             {"{name: v}", "vaults[0]: needs an address or a service, one of them"},
		"both":                {"{name: v, address: 'https://vault:8200', service: {cluster: mgmt, namespace: vault, name: vault}}", "one of them"},
		"http":                {"{name: v, service: {cluster: mgmt, namespace: vault, name: vault, scheme: http}}", "vaults[0].service.scheme"},
		"http, allowed":       {"{name: v, insecureVault: true, service: {cluster: mgmt, namespace: vault, name: vault, scheme: http}}", ""},
		"another scheme":      {"{name: v, insecureVault: true, service: {cluster: mgmt, namespace: vault, name: vault, scheme: ftp}}", `"ftp" is unknown`},
		"an unknown cluster":  {"{name: v, service: {cluster: other, namespace: vault, name: vault}}", `vaults[0].service.cluster: "other"`},
		"no name":             {"{name: v, service: {cluster: mgmt, namespace: vault}}", "needs cluster, namespace and name"},
		"no port":             {"{name: v, service: {cluster: mgmt, namespace: vault, name: vault, port: 70000}}", "70000 is no port"},
		"a mistyped field":    {"{name: v, service: {cluster: mgmt, namespce: vault, name: vault}}", "namespce"},
		"http to the cluster": {"{name: v, clusterAddress: 'http://vault:8200', service: {cluster: mgmt, namespace: vault, name: vault}}", "vaults[0].clusterAddress"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "site.yaml")
			if err := os.WriteFile(path, []byte("clusters: [{name: mgmt}]\nvaults: ["+test.vault+"]\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := Load(path)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			if err == nil && c.Vaults[0].Service != nil && c.Vaults[0].Service.Port != 8200 {
				t.Errorf("port %d", c.Vaults[0].Service.Port)
			}
		})
	}
}
