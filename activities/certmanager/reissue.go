package certmanager

import (
	"context"
	"time"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// ReissueInput asks for a certificate to be issued anew.
type ReissueInput struct {
	Mesh        string           `json:"mesh"`
	Context     string           `json:"context"`
	Namespace   string           `json:"namespace"`
	Certificate mesh.Certificate `json:"certificate"`
	// Server and Shared are as in CertificateInput.
	Server bool `json:"server,omitempty"`
	Shared bool `json:"shared,omitempty"`
	// RootPEM and IntermediatePEM are the CAs that it is to be under.
	RootPEM         string `json:"rootPEM"`
	IntermediatePEM string `json:"intermediatePEM"`
	// Since is, in a rotation of leaves, when it began: a certificate that was
	// requested before is issued anew also if it is of the right CA. Zero: one
	// of the right CA is left alone.
	Since time.Time      `json:"since,omitzero"`
	Mode  procedure.Mode `json:"mode"`
}

// Reissue has cert-manager issue the certificate anew, as "cmctl renew" does, and
// proves it: a later revision, Ready at its generation, another serial and key,
// the same names, the intermediate's key identifier and the root in ca.crt. What
// was done before is found and left.
func (a *Activities) Reissue(ctx context.Context, in ReissueInput) (CertificateResult, error) {
	return CertificateResult{}, failure.Permanent(failure.InvalidInput, "stub")
}
