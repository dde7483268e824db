// Package certmanager has the activities on cert-manager: its readiness,
// Issuers with their credentials, Certificates.
package certmanager

import (
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// Activities holds what the activities need. Its exported methods are the activities.
type Activities struct{ Clients *site.Clients }

// AwaitInput names a cluster.
type AwaitInput struct {
	Context string `json:"context"`
	// Namespace of the relay, in which the webhook is tried with a dry run.
	Namespace string `json:"namespace"`
	// Mode Plan looks once and waits for nothing.
	Mode procedure.Mode `json:"mode,omitempty"`
}

// IssuerInput describes the Issuer of one cluster and its credential.
type IssuerInput struct {
	Mesh      string `json:"mesh"`
	Context   string `json:"context"`
	Namespace string `json:"namespace"`
	// Method is the credential's: jwt, token, appRole or kubernetes.
	Method string `json:"method"`
	// The rest is from vault.ClusterAccessResult.
	AuthPath string `json:"authPath,omitempty"`
	AuthRole string `json:"authRole,omitempty"`
	// SecretKey is where the secret id is (method appRole).
	SecretKey      string         `json:"secretKey,omitempty"`
	SignPath       string         `json:"signPath"`
	Server         string         `json:"server"`
	VaultNamespace string         `json:"vaultNamespace,omitempty"`
	CABundlePEM    string         `json:"caBundlePEM,omitempty"`
	Mode           procedure.Mode `json:"mode"`
}

// UseSecretIDInput names the key of the secret id that the Issuer of one cluster
// is to use.
type UseSecretIDInput struct {
	Mesh      string `json:"mesh"`
	Context   string `json:"context"`
	Namespace string `json:"namespace"`
	Key       string `json:"key"`
}

// CertificateInput describes a Certificate of one cluster.
type CertificateInput struct {
	Mesh        string           `json:"mesh"`
	Context     string           `json:"context"`
	Namespace   string           `json:"namespace"`
	Certificate mesh.Certificate `json:"certificate"`
	// Server adds the usage server auth. Shared is the guide's one role for all,
	// which grants it to clients too.
	Server bool `json:"server"`
	Shared bool `json:"shared,omitempty"`
	// RootPEM is what ca.crt must be, IntermediatePEM what must have signed, and
	// BridgePEM, in a rotation of the root, what must be above that in the chain;
	// empty for nothing. RootPEM may be that bridge.
	RootPEM         string         `json:"rootPEM"`
	IntermediatePEM string         `json:"intermediatePEM"`
	BridgePEM       string         `json:"bridgePEM,omitempty"`
	Mode            procedure.Mode `json:"mode"`
}

// RemovalInput names a workload cluster to take the mesh's objects out of.
type RemovalInput struct {
	// Spec has this one workload.
	Spec mesh.Spec      `json:"spec"`
	Mode procedure.Mode `json:"mode"`
}

// Expiry is until when a certificate stays valid; zero if there is none.
type Expiry struct {
	NotAfter time.Time `json:"notAfter,omitzero"`
}

// Users are the objects that a cert-manager is used for.
type Users struct {
	Count    int      `json:"count"`
	Examples []string `json:"examples,omitempty"`
}

// CertificateResult is the certificate as issued.
type CertificateResult struct {
	procedure.Outcome
	Leaf procedure.Leaf `json:"leaf"`
}
