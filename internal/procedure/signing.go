package procedure

import (
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
)

// With a root that is kept outside Vault, a procedure that makes an
// intermediate waits until a person has had its CSR signed. A rotation of the root
// waits until people have made the new one too.
const (
	// CSRQuery answers with the Signing that a procedure waits for.
	CSRQuery = "csr"
	// SubmitSignedUpdate hands in the answer. It is judged before it is taken;
	// all that is wrong with it comes back at once.
	SubmitSignedUpdate = "submitSigned"
)

// SubmitSignedInput is the answer.
type SubmitSignedInput struct {
	// PEM is the intermediate's certificate, alone or followed by its root; in a
	// rotation of the root the intermediate, the new root and the bridge, in any order.
	PEM string `json:"pem"`
}

// Signing is what is to be signed, and how.
type Signing struct {
	Procedure string `json:"procedure"`
	Mesh      string `json:"mesh"`
	CSRPEM    string `json:"csrPEM"`
	// Subject and Key are the CSR's; Key is the SHA-256 of its public key.
	Subject string `json:"subject"`
	Key     string `json:"key"`
	// Root is who has to sign; it is in no Vault, so it has no issuer id. In a rotation
	// of the root it is the one at work, which signs the bridge.
	Root Authority `json:"root"`
	// NewRoot says that this is a rotation of the root: a new one is to be made, which
	// signs the CSR.
	NewRoot bool `json:"newRoot,omitempty"`
	// TTL is what was asked for in the mesh's input. Less is accepted, down to
	// MinLife from the day on which it is handed in; more than the root's is not.
	TTL     mesh.Duration `json:"ttl"`
	MinLife mesh.Duration `json:"minLife"`
	// Since is when the waiting began.
	Since time.Time `json:"since"`
	// Advice is for whoever signs.
	Advice string `json:"advice"`
}
