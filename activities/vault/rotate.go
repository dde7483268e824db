package vault

import (
	"context"
	"time"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// SurveyInput asks what CAs a mesh has in Vault.
type SurveyInput struct {
	Spec mesh.Spec `json:"spec"` // without workloads
}

// SurveyResult is what CAs there are, and which is at work.
type SurveyResult struct {
	// Root is the self-signed root that the active intermediate leads to.
	Root CAResult `json:"root"`
	// Active is the intermediate that the management server's role signs with.
	Active IntermediateState `json:"active"`
	// Intermediates are all that have a name of ours, by generation.
	Intermediates []IntermediateState `json:"intermediates"`
	// Roles are the ids of the issuers that the roles of the relay mount sign
	// with, by the roles' names.
	Roles map[string]string `json:"roles"`
	// Highest is the highest generation of any intermediate's issuer or key.
	Highest int `json:"highest"`
	// FollowsLatest says that whatever is imported next becomes the default at
	// once, and with it what roles without an issuer of their own sign with.
	FollowsLatest bool `json:"followsLatest,omitempty"`
}

// IntermediateState is an intermediate as it is in Vault.
type IntermediateState struct {
	Authority      procedure.Authority `json:"authority"`
	CertificatePEM string              `json:"certificatePEM"`
	Generation     int                 `json:"generation"`
	NotBefore      time.Time           `json:"notBefore"`
	// HasKey says that its key is in the mount, Signs that its usage lets it issue.
	HasKey  bool `json:"hasKey"`
	Signs   bool `json:"signs"`
	Default bool `json:"default"`
}

// Survey reads the CAs of a mesh and the roles that sign with them.
func (a *Activities) Survey(ctx context.Context, in SurveyInput) (SurveyResult, error) {
	return SurveyResult{}, failure.Permanent(failure.InvalidInput, "stub")
}

// ProveIssuerInput names a new intermediate that nothing uses yet.
type ProveIssuerInput struct {
	Spec     mesh.Spec `json:"spec"` // without workloads
	IssuerID string    `json:"issuerId"`
	// Generation is the issuer's; in a plan it names one that is still to be made.
	Generation int            `json:"generation"`
	RootPEM    string         `json:"rootPEM"`
	Mode       procedure.Mode `json:"mode"`
}

// ProveIssuerResult has the chain that the issuer would have cert-manager store.
type ProveIssuerResult struct {
	procedure.Outcome
	// ChainPEM is a throwaway leaf and what is above it, without the root; CAPEM
	// is what ca.crt would be.
	ChainPEM string `json:"chainPEM"`
	CAPEM    string `json:"caPEM"`
}

// ProveIssuer has the issuer sign a throwaway certificate and proves that
// cert-manager would take it: one linear chain, that leads to the root.
func (a *Activities) ProveIssuer(ctx context.Context, in ProveIssuerInput) (ProveIssuerResult, error) {
	return ProveIssuerResult{}, failure.Permanent(failure.InvalidInput, "stub")
}

// MoveRoleInput names a role, by whose it is, and the issuer it is to sign with.
type MoveRoleInput struct {
	Spec mesh.Spec `json:"spec"`
	// Workload is the registered name; empty for the management server's role and
	// the probe's.
	Workload string `json:"workload,omitempty"`
	IssuerID string `json:"issuerId"`
	// Generation is the issuer's; in a plan it names one that is still to be made.
	Generation int            `json:"generation"`
	Mode       procedure.Mode `json:"mode"`
}

// MoveRole has a role sign with the issuer from now on. A role that is not there
// yet, of a member that is just being added, is left to whoever adds it.
func (a *Activities) MoveRole(ctx context.Context, in MoveRoleInput) (procedure.Outcome, error) {
	return procedure.Outcome{}, failure.Permanent(failure.InvalidInput, "stub")
}

// UseIssuerInput says whether an intermediate may issue.
type UseIssuerInput struct {
	Spec     mesh.Spec `json:"spec"` // without workloads
	IssuerID string    `json:"issuerId"`
	// Signs false leaves it what is needed to be read, and for its CRL.
	Signs bool `json:"signs"`
	// Default is the issuer that becomes the mount's default, if given.
	Default string         `json:"default,omitempty"`
	Mode    procedure.Mode `json:"mode"`
}

// UseIssuer sets an intermediate's usage. One that a role signs with is not
// taken its usage from: that would stop renewals.
func (a *Activities) UseIssuer(ctx context.Context, in UseIssuerInput) (procedure.Outcome, error) {
	return procedure.Outcome{}, failure.Permanent(failure.InvalidInput, "stub")
}

// DeleteKeyInput names an intermediate whose key is to be deleted for good.
type DeleteKeyInput struct {
	Spec     mesh.Spec      `json:"spec"` // without workloads
	IssuerID string         `json:"issuerId"`
	Mode     procedure.Mode `json:"mode"`
}

// DeleteKey deletes an intermediate's key; its certificate stays, to be read. It
// refuses one that may still issue.
func (a *Activities) DeleteKey(ctx context.Context, in DeleteKeyInput) (procedure.Outcome, error) {
	return procedure.Outcome{}, failure.Permanent(failure.InvalidInput, "stub")
}

// TidyInput is for what Vault does by itself from then on.
type TidyInput struct {
	Spec mesh.Spec      `json:"spec"` // without workloads
	Mode procedure.Mode `json:"mode"`
}

// ConfigureTidy has the mounts rebuild their CRLs before they end, and tidy away
// what has expired.
func (a *Activities) ConfigureTidy(ctx context.Context, in TidyInput) (procedure.Outcome, error) {
	return procedure.Outcome{}, failure.Permanent(failure.InvalidInput, "stub")
}

// SnapshotInput names the Vault, and the file's name without a directory.
type SnapshotInput struct {
	Vault string         `json:"vault"`
	File  string         `json:"file"`
	Mode  procedure.Mode `json:"mode"`
}

// SnapshotResult is where the snapshot is.
type SnapshotResult struct {
	procedure.Outcome
	Path string `json:"path"`
}

// TakeSnapshot takes a snapshot of a Vault on integrated storage, into the
// directory that the site file names; one that is there already is left.
func (a *Activities) TakeSnapshot(ctx context.Context, in SnapshotInput) (SnapshotResult, error) {
	return SnapshotResult{}, failure.Permanent(failure.InvalidInput, "stub")
}
