//go:build soak

package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestEffectOf(t *testing.T) {
	const api = "/api/v1/namespaces/gloo-mesh/"
	tests := []struct{ method, at, body, want string }{
		{"GET", api + "secrets/a", "", ""},
		{"PATCH", api + "secrets/a?fieldManager=relaypki&force=true", "{}", "PATCH " + api + "secrets/a"},
		{"PATCH", api + "secrets/a?dryRun=All&fieldManager=relaypki", "{}", ""},
		{"POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "{}", ""},
		{"POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", "{}", ""},
		{"POST", api + "pods/server/portforward", "", ""},
		{"POST", api + "serviceaccounts/relaypki-issuer/token", "{}", ""},
		{"PATCH", api + "serviceaccounts/relaypki-issuer", "{}", "PATCH " + api + "serviceaccounts/relaypki-issuer"},
		{"DELETE", "/apis/coordination.k8s.io/v1/namespaces/gloo-mesh/leases/l", "", "DELETE /apis/coordination.k8s.io/v1/namespaces/gloo-mesh/leases/l"},
		// Helm: the release by its state, whatever its revision; objects by kind.
		{"POST", api + "secrets", `{"metadata":{"name":"sh.helm.release.v1.gloo-platform.v3","labels":{"status":"pending-upgrade","version":"3"}}}`, "helm POST release gloo-platform pending-upgrade"},
		{"POST", api + "secrets", "k8s\x00\n\x0c\n\x02v1\n\x22sh.helm.release.v1.cert-manager.v1\x12\n\n\x06status\x12\x0fpending-install", "helm POST release cert-manager pending-install"},
		{"PUT", api + "secrets/sh.helm.release.v1.cert-manager.v12", `{"metadata":{"name":"sh.helm.release.v1.cert-manager.v12","labels":{"status":"deployed"}}}`, "helm PUT release cert-manager deployed"},
		{"PUT", api + "secrets/sh.helm.release.v1.cert-manager.v12", "k8s\x00\n\x0c\n\x02v1\n\x23sh.helm.release.v1.cert-manager.v12\x12\n\n\x06status\x12\x06failed", "helm PUT release cert-manager failed"},
		{"DELETE", api + "secrets/sh.helm.release.v1.cert-manager.v2", "", "helm DELETE release cert-manager"},
		{"PATCH", "/apis/apps/v1/namespaces/gloo-mesh/deployments/d?fieldManager=helm", `{"metadata":{"annotations":{"meta.helm.sh/release-name":"gloo-platform"}}}`, "helm PATCH deployments of gloo-platform"},
		{"DELETE", "/apis/apps/v1/namespaces/gloo-mesh/deployments/d", "{}", "helm DELETE deployments"},
		{"POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles?fieldManager=helm", `{"metadata":{"annotations":{"meta.helm.sh/release-name":"cert-manager"}}}`, "helm POST clusterroles of cert-manager"},
		// Vault.
		{"PUT", "/v1/pki/root/generate/internal", "{}", "PUT /v1/pki/root/generate/internal"},
		{"PATCH", "/v1/pki/issuer/0a1b", "{}", "PATCH /v1/pki/issuer/0a1b"},
		{"POST", "/v1/auth/token/create/relaypki-demo-cluster1", "{}", "POST /v1/auth/token/create/relaypki-demo-cluster1"},
		{"PUT", "/v1/auth/approle/login", "{}", ""},
		{"PUT", "/v1/auth/token/renew-self", "{}", ""},
		{"PUT", "/v1/sys/capabilities-self", "{}", ""},
		{"PUT", "/v1/sys/auth/relaypki-demo-cluster1", "{}", "PUT /v1/sys/auth/relaypki-demo-cluster1"},
	}
	for _, test := range tests {
		req, err := http.NewRequest(test.method, "https://127.0.0.1"+test.at, strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		got, err := effectOf(req, strings.HasPrefix(test.want, "helm "))
		if err != nil || got != test.want {
			t.Errorf("%s %s: %q, %v, want %q", test.method, test.at, got, err, test.want)
		}
		if body, err := io.ReadAll(req.Body); err != nil || string(body) != test.body {
			t.Errorf("%s %s: its body is now %q, %v", test.method, test.at, body, err)
		}
	}
}
