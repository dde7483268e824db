# relaypki's identity "refresh": keeps the clusters' credentials current. It
# pins a cluster's ServiceAccount keys in the auth mount of that cluster, and
# mints tokens by the token roles, and secret ids of the roles, that the setup made.

# A path with a glob covers the mount's roles too; the parameters allowed here
# are those of its configuration, and those that name a secret id to look up or
# destroy, so that no role can be written. Minting a secret id takes none.
path "auth/relaypki-*" {
  capabilities       = ["read", "update"]
  allowed_parameters = {
    "bound_issuer"           = []
    "jwt_validation_pubkeys" = []
    "jwks_url"               = []
    "jwks_ca_pem"            = []
    "oidc_discovery_url"     = []
    "oidc_discovery_ca_pem"  = []
    "secret_id"              = []
    "secret_id_accessor"     = []
  }
}

# A token role gives that cluster's policy and no other.
path "auth/token/create/relaypki-*" {
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
