# relaypki's identity "onboard": used by the procedures that set up, add and
# remove. It may make the PKI mounts, the roles in them, and, under names that
# begin with "relaypki-", policies, auth mounts and token roles.
#
# Vault cannot bound what is written into a policy, so whoever holds this
# identity can gain more than these rules: treat its credential like an
# operator's, give it a short life, and take it away from the worker between
# setups if you can. Rotations and verification do not use it.
#
# pki and pki_relay are the default mounts. If the input names others
# (vault.rootMount, vault.relayMount), name them here. With a root that is kept
# outside Vault (pki.root.kept: offline) there is no pki: leave its rules out.

# The mounts, and the longest life that they give.
path "sys/mounts/pki" {
  capabilities = ["read", "create", "update"]
}
path "sys/mounts/pki/tune" {
  capabilities = ["read", "update"]
}
path "sys/mounts/pki_relay" {
  capabilities = ["read", "create", "update"]
}
path "sys/mounts/pki_relay/tune" {
  capabilities = ["read", "update"]
}

# The root.
path "pki/issuers" {
  capabilities = ["list"]
}
path "pki/issuer/+" {
  capabilities = ["read", "patch"]
}
path "pki/keys" {
  capabilities = ["list"]
}
# A key that somebody else has made gets a name when its CA is adopted.
path "pki/key/+" {
  capabilities = ["read", "update"]
}
path "pki/config/issuers" {
  capabilities = ["read", "update"]
}
path "pki/root/generate/internal" {
  capabilities = ["update"]
}
path "pki/root/generate/existing" {
  capabilities = ["update"]
}
path "pki/issuer/+/sign-intermediate" {
  capabilities = ["update"]
}
# What an interrupted run has had signed is found again.
path "pki/certs" {
  capabilities = ["list"]
}
path "pki/cert/+" {
  capabilities = ["read"]
}

# The intermediate and the roles.
path "pki_relay/issuers" {
  capabilities = ["list"]
}
path "pki_relay/issuer/+" {
  capabilities = ["read", "patch"]
}
path "pki_relay/keys" {
  capabilities = ["list"]
}
# A key that somebody else has made gets a name when its CA is adopted.
path "pki_relay/key/+" {
  capabilities = ["read", "update"]
}
path "pki_relay/config/issuers" {
  capabilities = ["read", "update"]
}
path "pki_relay/intermediate/generate/internal" {
  capabilities = ["update"]
}
path "pki_relay/intermediate/generate/existing" {
  capabilities = ["update"]
}
path "pki_relay/intermediate/set-signed" {
  capabilities = ["update"]
}
path "pki_relay/issuers/import/cert" {
  capabilities = ["update"]
}
path "pki_relay/roles/+" {
  capabilities = ["read", "create", "update"]
}
# A removal deletes the role of that one cluster; the shared ones stay.
path "pki_relay/roles/relay-client-*" {
  capabilities = ["read", "create", "update", "delete"]
}

# What each cluster's cert-manager may do, and how it logs in.
path "sys/policies/acl/relaypki-*" {
  capabilities = ["read", "create", "update", "delete"]
}
# The worker's own policies are not among them.
path "sys/policies/acl/relaypki-onboard" {
  capabilities = ["deny"]
}
path "sys/policies/acl/relaypki-operate" {
  capabilities = ["deny"]
}
path "sys/policies/acl/relaypki-refresh" {
  capabilities = ["deny"]
}
path "sys/auth/relaypki-*" {
  capabilities = ["read", "create", "update", "delete", "sudo"]
}
path "auth/relaypki-*" {
  capabilities = ["read", "create", "update"]
}
path "auth/token/roles/relaypki-*" {
  capabilities = ["read", "create", "update", "delete"]
}

# Itself.
path "sys/capabilities-self" {
  capabilities = ["update"]
}
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
