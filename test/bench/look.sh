#!/usr/bin/env bash
# What the guide has somebody look at to see whether the relay works (its steps to
# verify, and its troubleshooting), one after the other: Pods, registrations, issuers
# and certificates, and what is in the Secrets. Nobody reads it here.
#
#   look.sh NAME=CONTEXT...
#
# Names are substituted; openssl and jq look into the Secrets, where the guide says to
# check the certificate. The look at the server's gauges, by port-forward, is left out.
set -euo pipefail

MGMT_CONTEXT=mgmt

# certificate CONTEXT NAMESPACE SECRET: is it valid, and under its ca.crt?
certificate() {
  local dir
  dir=$(mktemp -d)
  kubectl --context "$1" -n "$2" get secret "$3" -o json > "$dir/secret"
  jq -r '.data["tls.crt"] | @base64d' "$dir/secret" > "$dir/tls.crt"
  jq -r '.data["ca.crt"] | @base64d' "$dir/secret" > "$dir/ca.crt"
  openssl x509 -in "$dir/tls.crt" -noout -subject -issuer -dates -ext subjectAltName
  openssl verify -CAfile "$dir/ca.crt" -untrusted "$dir/tls.crt" "$dir/tls.crt"
  rm -r "$dir"
}

kubectl --context $MGMT_CONTEXT -n gloo-mesh get pods
kubectl --context $MGMT_CONTEXT -n gloo-mesh get kubernetesclusters
kubectl --context $MGMT_CONTEXT -n gloo-mesh get issuers,certificates
kubectl --context $MGMT_CONTEXT -n gloo-mesh logs deploy/gloo-mesh-mgmt-server --tail=50
certificate $MGMT_CONTEXT gloo-mesh relay-server-tls-secret
vault list pki/issuers
vault list pki_relay/issuers
for arg in "$@"; do
  NAME=${arg%%=*} CONTEXT=${arg#*=}
  kubectl --context "$CONTEXT" -n "$NAME" get pods
  kubectl --context "$CONTEXT" -n "$NAME" get issuers,certificates
  kubectl --context "$CONTEXT" -n "$NAME" logs deploy/gloo-mesh-agent --tail=50
  certificate "$CONTEXT" "$NAME" relay-client-tls-secret
  kubectl --context "$CONTEXT" -n "$NAME" get secret relay-root-tls-secret
done
