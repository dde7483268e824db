// Nothing is built here: this pins the Helm chart of Vault, whose module has no
// Go package.
module relaypki/deploy/lab/vaultchart

go 1.26

require github.com/hashicorp/vault-helm v0.34.1
