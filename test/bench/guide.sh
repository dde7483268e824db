#!/usr/bin/env bash
# The guide's commands for the relay certificates (its steps 2 to 4, its look at
# the resources, and the copy of ca.crt of its known issues), one after the
# other, as somebody types or scripts them.
#
#   guide.sh NAME=CONTEXT...
#
# Names and addresses are substituted. What else differs: vault speaks to Vault
# itself and not through kubectl exec; jq takes the PEM out of an answer where
# the guide has jq and three seds; the Issuer has Vault's CA, since this Vault
# serves TLS; and the copied Secret loses its type, or the API server would ask
# for the key that the guide leaves out.
set -euo pipefail

MGMT_CONTEXT=mgmt
CA_BUNDLE=$(base64 -w0 "$VAULT_CACERT")

# Step 2: the CAs.
kubectl create namespace gloo-mesh --context $MGMT_CONTEXT
vault secrets enable pki
vault write -format=json pki/root/generate/internal \
  common_name="Solo.io Root CA" organization="solo.io" ttl=187600h
vault secrets enable -path pki_relay pki
CSR=$(vault write -format=json pki_relay/intermediate/generate/internal \
  common_name="gloo-mesh-mgmt-server-ca" organization="mesh.solo.io" ttl=43800h | jq -r .data.csr)
CERT=$(vault write -format=json pki/root/sign-intermediate csr="$CSR" format=pem_bundle ttl=43800h | jq -r .data.certificate)
vault write -format=json pki_relay/intermediate/set-signed certificate="$CERT"
vault write pki_relay/roles/gloo-mesh-mgmt-server-ca allow_any_name=true max_ttl="720h"

# issuer CONTEXT NAMESPACE: the credential and the Issuer, in step 2 and step 4.
issuer() {
  kubectl --context "$1" create secret generic vault-token --from-literal=token="$VAULT_TOKEN" -n "$2"
  kubectl --context "$1" apply -f- <<EOF
apiVersion: cert-manager.io/v1
kind: Issuer
metadata:
  name: vault-issuer
  namespace: $2
spec:
  vault:
    path: pki_relay/sign/gloo-mesh-mgmt-server-ca
    server: $VAULT_ADDR
    caBundle: $CA_BUNDLE
    auth:
      tokenSecretRef:
        name: vault-token
        key: token
EOF
}

issuer $MGMT_CONTEXT gloo-mesh

# Step 3: the server's certificate.
kubectl --context $MGMT_CONTEXT apply -f- <<EOF
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  name: relay-server-tls
  namespace: gloo-mesh
spec:
  commonName: "gloo-mesh-mgmt-server-ca"
  dnsNames:
    - "gloo-mesh-mgmt-server-ca"
    - "gloo-mesh-mgmt-server-ca.gloo-mesh"
    - "gloo-mesh-mgmt-server-ca.gloo-mesh.svc"
    - "*.gloo-mesh"
  secretName: relay-server-tls-secret
  duration: 24h
  renewBefore: 30m
  privateKey:
    rotationPolicy: Always
    algorithm: RSA
    size: 2048
  usages:
    - digital signature
    - key encipherment
    - server auth
    - client auth
  issuerRef:
    name: vault-issuer
    kind: Issuer
    group: cert-manager.io
EOF
kubectl get issuer -n gloo-mesh --context $MGMT_CONTEXT
kubectl wait --for=condition=Ready certificate/relay-server-tls -n gloo-mesh --context $MGMT_CONTEXT --timeout=2m

# Step 4, for each workload cluster.
for pair in "$@"; do
  REMOTE_CLUSTER=${pair%%=*} REMOTE_CONTEXT=${pair#*=}
  kubectl --context "$REMOTE_CONTEXT" create namespace "$REMOTE_CLUSTER"
  issuer "$REMOTE_CONTEXT" "$REMOTE_CLUSTER"
  kubectl apply --context "$REMOTE_CONTEXT" -f- <<EOF
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  name: relay-client-tls
  namespace: $REMOTE_CLUSTER
spec:
  commonName: "gloo-mesh-mgmt-server-ca"
  dnsNames:
    - "$REMOTE_CLUSTER"
  secretName: relay-client-tls-secret
  duration: 24h
  renewBefore: 30m
  privateKey:
    rotationPolicy: Always
    algorithm: RSA
    size: 2048
  issuerRef:
    name: vault-issuer
    kind: Issuer
    group: cert-manager.io
EOF
  kubectl get issuer -n "$REMOTE_CLUSTER" --context "$REMOTE_CONTEXT"
  kubectl wait --for=condition=Ready certificate/relay-client-tls -n "$REMOTE_CLUSTER" --context "$REMOTE_CONTEXT" --timeout=2m
  kubectl get secret relay-client-tls-secret --namespace "$REMOTE_CLUSTER" --output json --context "$REMOTE_CONTEXT" |
    jq 'del(.type,.metadata.creationTimestamp,.metadata.resourceVersion,.metadata.uid,.data."tls.key",.data."tls.crt",.metadata.annotations)' |
    sed 's/relay-client-tls-secret/relay-root-tls-secret/' |
    kubectl apply --context "$REMOTE_CONTEXT" -f -
done
