package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// guideByHand are the guide's commands: the CAs, and in every cluster the Issuer with
// root's token, and the Certificate. The lab's Vault has TLS, so its CA is named.
const guideByHand = `
vault secrets enable pki
vault write pki/root/generate/internal common_name="Solo.io Root CA" organization="solo.io" ttl=187600h
vault secrets enable -path pki_relay pki
CSR=$(vault write -field=csr pki_relay/intermediate/generate/internal common_name="gloo-mesh-mgmt-server-ca" organization="mesh.solo.io" ttl=43800h)
CERT=$(vault write -field=certificate pki/root/sign-intermediate csr="$CSR" format=pem_bundle ttl=43800h)
vault write pki_relay/intermediate/set-signed certificate="$CERT"
vault write pki_relay/roles/gloo-mesh-mgmt-server-ca allow_any_name=true max_ttl="720h"
issuer() {
  kubectl --context $1 create secret generic vault-token --from-literal=token=$VAULT_TOKEN -n gloo-mesh
  kubectl --context $1 apply -f- <<EOF
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: vault-issuer, namespace: gloo-mesh}
spec:
  vault:
    path: pki_relay/sign/gloo-mesh-mgmt-server-ca
    server: $VAULT_ADDR
    caBundle: $(base64 < $VAULT_CACERT | tr -d '\n')
    auth: {tokenSecretRef: {name: vault-token, key: token}}
EOF
}
certificate() {
  kubectl --context $1 apply -f- <<EOF
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: $2, namespace: gloo-mesh}
spec:
  commonName: gloo-mesh-mgmt-server-ca
  dnsNames: $3
  secretName: $2-secret
  duration: 24h
  renewBefore: 30m
  privateKey: {rotationPolicy: Always, algorithm: RSA, size: 2048}
  usages: [digital signature, key encipherment, server auth, client auth]
  issuerRef: {name: vault-issuer, kind: Issuer, group: cert-manager.io}
EOF
  kubectl --context $1 -n gloo-mesh wait --for=condition=Ready --timeout=2m certificate/$2
}
for c in mgmt cluster1; do
  helm upgrade --install cert-manager "$LAB/charts/cert-manager" --kube-context $c -n cert-manager --create-namespace --set crds.enabled=true,startupapicheck.enabled=false -f "$LAB/values-$c.yaml" --wait --timeout 3m
  issuer $c
done
certificate mgmt relay-server-tls '["gloo-mesh-mgmt-server-ca","gloo-mesh-mgmt-server-ca.gloo-mesh","gloo-mesh-mgmt-server-ca.gloo-mesh.svc","*.gloo-mesh"]'
certificate cluster1 relay-client-tls '["cluster1"]'
kubectl --context cluster1 -n gloo-mesh create secret generic relay-root-tls-secret --from-literal=ca.crt="$(vault read -field=certificate pki/issuer/default)"
`

// What the guide's commands have made is taken over as it is, and a setup goes
// on from there.
func TestAdopt(t *testing.T) {
	w := labWorld(t, "cluster1")
	helm := w.helm(t)
	w.startWorker(t, filepath.Join(repository, "bin", "relaypki-worker"))
	w.chartValues(t, func(cluster, chart string, values []byte) {
		if chart == "cert-manager" {
			if err := os.WriteFile(filepath.Join(w.dir, "values-"+cluster+".yaml"), values, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	})
	env := map[string]string{"LAB": w.dir}
	for name, value := range w.env {
		env[name] = value
	}
	env["PATH"] = helm + ":" + w.env["PATH"]
	if out, err := run(env, "bash", "-euo", "pipefail", "-c", guideByHand); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	input := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(input, []byte("mesh: adopted\nworkloads: [{name: cluster1}]\npki: {isolation: shared, maxLeafTTL: 720h}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := w.relaypki(t, "setup", "-f", input, "-o", "json"); code == 0 || !strings.Contains(errOut, "relaypki adopt") {
		t.Errorf("a setup of what is not ours: exit code %d, %s", code, errOut)
	}
	if _, errOut, code := w.relaypki(t, "adopt", "-f", input); code != 2 || !strings.Contains(errOut, "--yes") {
		t.Errorf("without a terminal: exit code %d, %s", code, errOut)
	}
	for _, c := range w.all() {
		w.sh(t, "kubectl --context "+c+" -n gloo-mesh label issuer/vault-issuer app.kubernetes.io/managed-by=relaypki relaypki.io/mesh=theirs")
	}
	_, errOut, code := w.relaypki(t, "adopt", "-f", input, "--yes", "-o", "json")
	if code != 1 || strings.Count(errOut, `Issuer gloo-mesh/vault-issuer belongs to the mesh "theirs"`) != len(w.all()) {
		t.Errorf("an adoption of what is another mesh's: exit code %d, %s", code, errOut)
	}
	for _, c := range w.all() {
		w.sh(t, "kubectl --context "+c+" -n gloo-mesh label issuer/vault-issuer app.kubernetes.io/managed-by- relaypki.io/mesh-")
	}
	before := w.issuedByHand(t)
	out, errOut, code := w.relaypki(t, "adopt", "-f", input, "--yes", "-o", "json")
	if code != 0 {
		t.Fatalf("relaypki adopt: exit code %d\n%s\n%s", code, out, errOut)
	}
	if after := w.issuedByHand(t); after != before {
		t.Errorf("the adoption has changed a certificate or a trust:\n%s\n%s", before, after)
	}
	var again struct{ Result struct{ Changed bool } }
	out, _, _ = w.relaypki(t, "adopt", "-f", input, "--plan", "-o", "json")
	if err := json.Unmarshal([]byte(out), &again); err != nil || again.Result.Changed {
		t.Errorf("after the adoption there is still something to take over (%v): %s", err, out)
	}
	root := w.sh(t, "vault read -field=certificate pki/issuer/default")
	result := w.setup(t, input)
	if result.Verification == nil || !result.Verification.Healthy {
		t.Errorf("the mesh is not healthy: %+v", result.Verification)
	}
	if w.sh(t, "vault read -field=certificate pki/issuer/relay-root-g1") != root {
		t.Error("the root is not what it was")
	}
	w.noSecrets(t)
}

// issuedByHand is everything that is issued or trusted.
func (w *world) issuedByHand(t *testing.T) string {
	t.Helper()
	all := w.sh(t, "vault read -field=certificate pki/issuer/default; vault read -field=certificate pki_relay/issuer/default")
	for _, at := range []struct{ cluster, name string }{{management, "relay-server-tls-secret"}, {"cluster1", "relay-client-tls-secret"}, {"cluster1", "relay-root-tls-secret"}} {
		secret, err := w.cluster(t, at.cluster).kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), at.name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		all += at.name + string(secret.Data["tls.crt"]) + string(secret.Data["ca.crt"])
	}
	return all
}
