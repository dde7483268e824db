# relaypki's identity "operate": verification, rotations, and whatever runs day
# by day. It reads the state of the CAs and of the roles, makes the next
# intermediate, or the next root, beside the one at work, and says which
# intermediate the roles sign with and which chain goes with what they sign. What
# a role issues, and to whom, it cannot change. No policies, no auth mounts.
#
# It can have the root sign an intermediate whose key is elsewhere: whoever may
# rotate can do that, and Vault's audit log shows it.
#
# pki and pki_relay are the default mounts. If the input names others
# (vault.rootMount, vault.relayMount), name them here. With a root that is kept
# outside Vault (pki.root.kept: offline) there is no pki: leave its rules out.

path "pki/issuers" {
  capabilities = ["list"]
}
# A root that has been replaced is taken out of use, and on the way back put into
# use again. "delete" is for the deletion of a key alone: see below.
path "pki/issuer/+" {
  capabilities       = ["read", "patch", "delete"]
  allowed_parameters = {
    "issuer_name" = []
    "usage"       = []
  }
}
path "pki/keys" {
  capabilities = ["list"]
}
# The default may be another issuer, and never whatever is made next.
path "pki/config/issuers" {
  capabilities       = ["read", "update"]
  allowed_parameters = {
    "default"                       = []
    "default_follows_latest_issuer" = [false]
  }
}
# The next root, beside the one at work: its key stays in Vault. "existing" is for
# the key that an interrupted run has left.
path "pki/root/rotate/internal" {
  capabilities       = ["update"]
  allowed_parameters = {
    "common_name"  = []
    "organization" = []
    "ttl"          = []
    "issuer_name"  = []
    "key_name"     = []
    "key_type"     = []
    "key_bits"     = []
  }
}
path "pki/root/rotate/existing" {
  capabilities       = ["update"]
  allowed_parameters = {
    "common_name"  = []
    "organization" = []
    "ttl"          = []
    "issuer_name"  = []
    "key_ref"      = []
  }
}
# The new root's CSR, which the old root signs: the bridge.
path "pki/intermediate/cross-sign" {
  capabilities       = ["update"]
  allowed_parameters = {
    "common_name"  = []
    "organization" = []
    "key_ref"      = []
  }
}
# Whether the mount would cut a life short.
path "sys/mounts/pki/tune" {
  capabilities = ["read"]
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

path "pki_relay/issuers" {
  capabilities = ["list"]
}
# "delete" is for the deletion of a key alone: see below.
path "pki_relay/issuer/+" {
  capabilities       = ["read", "patch", "delete"]
  allowed_parameters = {
    "issuer_name"             = []
    "leaf_not_after_behavior" = ["err"]
    "manual_chain"            = []
    "usage"                   = []
  }
}
path "pki_relay/keys" {
  capabilities = ["list"]
}
# The default may be another issuer, and never whatever is imported next.
path "pki_relay/config/issuers" {
  capabilities       = ["read", "update"]
  allowed_parameters = {
    "default"                       = []
    "default_follows_latest_issuer" = [false]
  }
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
path "pki_relay/roles" {
  capabilities = ["list"]
}
# A role is pointed at another issuer; nothing else of it can be written.
path "pki_relay/roles/+" {
  capabilities       = ["read", "patch"]
  allowed_parameters = {
    "issuer_ref" = []
  }
}

# The new root and the bridge go where chains are made, without their keys.
path "pki_relay/issuers/import/cert" {
  capabilities = ["update"]
}

# The deletion of an intermediate's or a root's key, which people approve each
# time. The certificate comes back without it. Where that is to be an operator's
# alone, take these three out, and "delete" from pki/issuer/+ and
# pki_relay/issuer/+ above: nothing else needs them.
path "pki_relay/key/+" {
  capabilities = ["read", "delete"]
}
path "pki/key/+" {
  capabilities = ["read", "delete"]
}
path "pki/issuers/import/cert" {
  capabilities = ["update"]
}

# CRLs are rebuilt before they end, and what has expired is tidied away.
path "pki/config/crl" {
  capabilities       = ["read", "update"]
  allowed_parameters = {
    "auto_rebuild"              = [true]
    "auto_rebuild_grace_period" = []
    "expiry"                    = []
  }
}
path "pki_relay/config/crl" {
  capabilities       = ["read", "update"]
  allowed_parameters = {
    "auto_rebuild"              = [true]
    "auto_rebuild_grace_period" = []
    "expiry"                    = []
  }
}
path "pki/config/auto-tidy" {
  capabilities       = ["read", "update"]
  allowed_parameters = {
    "enabled"                               = [true]
    "interval_duration"                     = []
    "safety_buffer"                         = []
    "tidy_cert_store"                       = []
    "tidy_revoked_certs"                    = []
    "tidy_revoked_cert_issuer_associations" = []
    "tidy_expired_issuers"                  = [false]
  }
}
path "pki_relay/config/auto-tidy" {
  capabilities       = ["read", "update"]
  allowed_parameters = {
    "enabled"                               = [true]
    "interval_duration"                     = []
    "safety_buffer"                         = []
    "tidy_cert_store"                       = []
    "tidy_revoked_certs"                    = []
    "tidy_revoked_cert_issuer_associations" = []
    "tidy_expired_issuers"                  = [false]
  }
}

# A diagnosis reads what is set of the mounts and what is stored in them. Without
# these it says what it has not looked at.
path "sys/mounts/pki_relay/tune" {
  capabilities = ["read"]
}
path "pki_relay/certs" {
  capabilities = ["list"]
}
path "pki_relay/tidy-status" {
  capabilities = ["read"]
}
path "pki_relay/config/acme" {
  capabilities = ["read"]
}
path "pki/tidy-status" {
  capabilities = ["read"]
}
path "pki/config/acme" {
  capabilities = ["read"]
}
path "pki/roles" {
  capabilities = ["list"]
}
path "pki/roles/+" {
  capabilities = ["read"]
}

# Snapshots (rotation.snapshot take). One holds all that is in Vault, encrypted:
# with the unseal keys it can be read. Take this out where people take them.
path "sys/storage/raft/snapshot" {
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
