# relaypki's identity "operate": verification, and whatever runs day by day.
# It reads the state of the CAs and of the roles, and may have throwaway
# certificates signed that are good for nothing. No policies, no auth mounts.
#
# pki and pki_relay are the default mounts. If the input names others
# (vault.rootMount, vault.relayMount), name them here.

path "pki/issuers" {
  capabilities = ["list"]
}
path "pki/issuer/+" {
  capabilities = ["read"]
}
path "pki/config/issuers" {
  capabilities = ["read"]
}

path "pki_relay/issuers" {
  capabilities = ["list"]
}
path "pki_relay/issuer/+" {
  capabilities = ["read"]
}
path "pki_relay/config/issuers" {
  capabilities = ["read"]
}
path "pki_relay/roles/+" {
  capabilities = ["read"]
}

# Throwaway signatures, to see what an issuer would answer. The role allows a
# name that no host can have, for five minutes, for neither server nor client.
path "pki_relay/sign/relaypki-probe" {
  capabilities = ["update"]
}
path "pki_relay/issuer/+/sign/relaypki-probe" {
  capabilities = ["update"]
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
