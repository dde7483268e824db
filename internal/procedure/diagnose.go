package procedure

import (
	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/strict"
)

// DiagnoseMesh finds what is wrong with a mesh, and mends of it what it is asked to.
const DiagnoseMesh = "DiagnoseMesh"

// DiagnoseInput is what DiagnoseMesh takes.
type DiagnoseInput struct {
	Mesh string `json:"mesh"`
	// Management and Namespace are as in VerifyInput.
	Management string `json:"management,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
	// Clusters are the workload clusters to look at, besides the management
	// cluster; all if it is empty.
	Clusters []string `json:"clusters,omitempty"`
	// Timeout is how long one cluster is looked at before it is said not to answer.
	Timeout mesh.Duration `json:"timeout,omitzero"`
	// Mend are the mends, of those that a diagnosis has offered, that are to be made.
	// What is not offered any more by then is not made. Empty changes nothing.
	Mend     []check.Mend     `json:"mend,omitempty"`
	Problems []strict.Problem `json:"-"`
}

type diagnoseInput DiagnoseInput // without methods, for decoding

// UnmarshalJSON keeps what is wrong in Problems, as SetupInput does.
func (in *DiagnoseInput) UnmarshalJSON(data []byte) error {
	var v diagnoseInput
	problems := strict.Decode(data, &v)
	*in = DiagnoseInput(v)
	in.Problems = problems
	return nil
}

// DiagnoseResult is the result of DiagnoseMesh: what was found, the gravest first.
type DiagnoseResult struct {
	Mesh string `json:"mesh"`
	// Checks is how many were made, Findings those that do not pass.
	Checks   int             `json:"checks"`
	Findings []check.Finding `json:"findings"`
	// Offered are the mends that would be made if they were asked for, in order.
	Offered []check.Mend `json:"offered,omitempty"`
	// Mended are those that were made; Findings are from after them, and Before from
	// before them.
	Mended []Mended        `json:"mended,omitempty"`
	Before []check.Finding `json:"before,omitempty"`
}

// Mended is a mend that was made, or tried.
type Mended struct {
	check.Mend
	// Detail says what was done; Error why it did not come to its end.
	Detail string `json:"detail,omitempty"`
	Error  string `json:"error,omitempty"`
}
