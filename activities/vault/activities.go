// Package vault has the activities on Vault: the CAs, roles, policies and
// logins of the relay's PKI. Each observes, compares, then acts.
package vault

import (
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// Activities holds what the activities need. Its exported methods are the activities.
type Activities struct{ Clients *site.Clients }

// CheckVaultInput asks whether a Vault is fit for a setup.
type CheckVaultInput struct {
	Spec mesh.Spec
	// Joining: the mesh is there, and one more member joins it. Which CAs it has is
	// then not for its spec to say: a rotation may be about to change them.
	Joining bool
}

// CheckVaultResult lists everything that is in the way; nothing was changed.
type CheckVaultResult struct {
	Version  string   `json:"version"`
	Address  string   `json:"address"`
	Problems []string `json:"problems,omitempty"`
}

// EnablePKIInput names a PKI mount and its longest lease.
type EnablePKIInput struct {
	Mesh        string         `json:"mesh"`
	Vault       string         `json:"vault"`
	Mount       string         `json:"mount"`
	MaxLeaseTTL mesh.Duration  `json:"maxLeaseTTL"`
	Mode        procedure.Mode `json:"mode"`
}

// GenerateRootInput asks for generation Generation of the root.
type GenerateRootInput struct {
	Vault      string         `json:"vault"`
	Mount      string         `json:"mount"`
	Generation int            `json:"generation"`
	CA         mesh.CA        `json:"ca"`
	Mode       procedure.Mode `json:"mode"`
	// Rotation: it is made beside one that is at work, with the identity operate,
	// and does not become the mount's default.
	Rotation bool `json:"rotation,omitempty"`
	// tuned: whether the mount gives it its life is asked when it is made, and not in
	// a look ahead: the setup sees to that before.
	tuned bool
}

// BridgeInput asks for the certificate by which the old root vouches for the new
// one's key, and for all three CAs in the relay mount, without their keys.
type BridgeInput struct {
	// Spec is without workloads. Its root is what the new one was asked to be.
	Spec mesh.Spec `json:"spec"`
	// Generation is the new root's.
	Generation int `json:"generation"`
	// BridgePEM is the bridge that people have signed, of a root that is kept outside
	// Vault; then OldRoot and NewRoot have no ids, and names that they get in the relay
	// mount. In a look ahead at what is still to be signed it is empty.
	BridgePEM string `json:"bridgePEM,omitempty"`
	// OldRoot and NewRoot are as Survey and GenerateRoot gave them, with the ids of
	// their issuers in the root mount. In a look ahead at a new root that is still to
	// be made, NewRoot has its name alone.
	OldRoot CAResult `json:"oldRoot"`
	NewRoot CAResult `json:"newRoot"`
	// Unbridged is for an emergency, whose new root the old one, which is compromised,
	// must not vouch for: no bridge is signed, and the new root alone is imported into
	// the relay mount, without its key. The answer is that root there.
	Unbridged bool           `json:"unbridged,omitempty"`
	Mode      procedure.Mode `json:"mode"`
}

// SetChainInput says which CAs Vault returns above an intermediate from now on.
type SetChainInput struct {
	Spec     mesh.Spec `json:"spec"` // without workloads
	IssuerID string    `json:"issuerId"`
	// AbovePEM are the certificates above it, from below: each is in the relay mount.
	// In a look ahead, one that is still to be made is given by its name there, and so
	// is the intermediate.
	AbovePEM []string       `json:"abovePEM"`
	Mode     procedure.Mode `json:"mode"`
}

// CAResult is a CA in Vault.
type CAResult struct {
	procedure.Outcome
	Authority procedure.Authority `json:"authority"`
	// CertificatePEM is the CA certificate alone.
	CertificatePEM string `json:"certificatePEM"`
	// PrintedBy is, in a look ahead at a CA that is still to be made, the command
	// that prints its certificate once it is there.
	PrintedBy string `json:"printedBy,omitempty"`
}

// IntermediateInput is common to the three steps that make an intermediate. Of
// a root that is kept outside Vault, RootPEM alone is given: there is no
// RootMount then, and people sign in the place of SignIntermediate.
type IntermediateInput struct {
	Vault      string `json:"vault"`
	RootMount  string `json:"rootMount"`
	RelayMount string `json:"relayMount"`
	// RootIssuerID is the issuer in RootMount that signs. In a look ahead at a rotation
	// whose root is still to be made, it is that one's name, and RootPEM is empty. Of a
	// root that is kept outside Vault, RootMount and RootIssuerID are empty, and RootPEM
	// too as long as it is still to be made.
	RootIssuerID string         `json:"rootIssuerId"`
	RootPEM      string         `json:"rootPEM"`
	Generation   int            `json:"generation"`
	CA           mesh.CA        `json:"ca"`
	Mode         procedure.Mode `json:"mode"`
	// Rotation: it is made beside one that is at work, with the identity operate,
	// and does not become the mount's default.
	Rotation bool `json:"rotation,omitempty"`
	// AbovePEM is, in a rotation of the root, the chain above the new intermediate
	// from below, where it has none yet; as in SetChainInput.
	AbovePEM []string `json:"abovePEM,omitempty"`
	// CSRPEM is the answer of GenerateIntermediateCSR, given to SignIntermediate.
	CSRPEM string `json:"csrPEM,omitempty"`
	// ChainPEM is the answer of SignIntermediate, given to SetSignedIntermediate;
	// empty when the intermediate is there already.
	ChainPEM string `json:"chainPEM,omitempty"`
}

// CSRResult has the CSR of a new intermediate, or says that it is there already.
type CSRResult struct {
	procedure.Outcome
	// Present: the intermediate of this generation exists; nothing to sign.
	Present bool   `json:"present"`
	CSRPEM  string `json:"csrPEM,omitempty"`
}

// SignedResult is the intermediate with its chain up to the self-signed root.
type SignedResult struct {
	procedure.Outcome
	ChainPEM string `json:"chainPEM"`
}

// ConfigureRolesInput is for the roles that belong to no single cluster.
type ConfigureRolesInput struct {
	Spec     mesh.Spec      `json:"spec"`
	IssuerID string         `json:"issuerId"`
	Mode     procedure.Mode `json:"mode"`
}

// ClusterAccessInput is for what one cluster's cert-manager needs in Vault.
type ClusterAccessInput struct {
	Spec mesh.Spec `json:"spec"`
	// Context is the cluster's; Workload its registered name, empty for the
	// management cluster.
	Context  string `json:"context"`
	Workload string `json:"workload,omitempty"`
	IssuerID string `json:"issuerId"`
	// Issuer and KeysPEM are the cluster's ServiceAccount token issuer, which is
	// also the address that keys are discovered at, and its public keys (method jwt).
	Issuer  string         `json:"issuer,omitempty"`
	KeysPEM []string       `json:"keysPEM,omitempty"`
	Mode    procedure.Mode `json:"mode"`
}

// ClusterAccessResult says how the cluster's Issuer logs in and signs.
type ClusterAccessResult struct {
	procedure.Outcome
	// AuthPath is for cert-manager's auth stanza: "/v1/auth/<mount>" for kubernetes,
	// the mount alone for appRole, whose role id AuthRole is.
	AuthPath string `json:"authPath,omitempty"`
	AuthRole string `json:"authRole,omitempty"`
	// SignPath is "<relay mount>/sign/<role>".
	SignPath string `json:"signPath"`
	// Server is the address that the cluster uses, Namespace Vault's (Enterprise).
	Server    string `json:"server"`
	Namespace string `json:"namespace,omitempty"`
	// CABundlePEM is the CA of Vault's TLS certificate; public.
	CABundlePEM string `json:"caBundlePEM,omitempty"`
}

// IssueClusterTokenInput is for method token.
type IssueClusterTokenInput struct {
	Spec     mesh.Spec `json:"spec"`
	Context  string    `json:"context"`
	Workload string    `json:"workload,omitempty"`
	// Renewal is as in RefreshCredentialInput.
	Renewal string         `json:"renewal,omitempty"`
	Mode    procedure.Mode `json:"mode"`
}

// RemoveAccessInput names a workload to close Vault to.
type RemoveAccessInput struct {
	Spec mesh.Spec `json:"spec"`
	// Context is the cluster's; Workload its registered name.
	Context  string         `json:"context"`
	Workload string         `json:"workload"`
	Mode     procedure.Mode `json:"mode"`
}
