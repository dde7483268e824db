package procedure

import (
	"fmt"
	"slices"
	"time"

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
	// Timeout is how long one cluster is looked at before it is said not to answer;
	// LookWithin if it is not given.
	Timeout mesh.Duration `json:"timeout,omitzero"`
	// Mend are the mends, of those that a diagnosis has offered, that are to be made.
	// What is not offered any more by then is not made; what a setup or a new certificate
	// leaves to be restarted is. Empty changes nothing.
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

// LookWithin is how long a diagnosis looks at one cluster, and longestLook how long it
// can be told to.
const (
	LookWithin  = 20 * time.Second
	longestLook = 5 * time.Minute
)

// Within is Timeout, or what is taken in its place.
func (in DiagnoseInput) Within() time.Duration {
	if in.Timeout.Duration > 0 {
		return in.Timeout.Duration
	}
	return LookWithin
}

// Validate finds what is wrong with the input by itself, without the mesh.
func (in DiagnoseInput) Validate() []strict.Problem {
	problems := MeshInput{Mesh: in.Mesh}.Validate()
	say := func(path, format string, args ...any) {
		problems = append(problems, strict.Problem{Path: path, Message: fmt.Sprintf(format, args...)})
	}
	if within := in.Timeout.Duration; within != 0 && (within < time.Second || within > longestLook) {
		say("timeout", "%s is not between %s and %s", in.Timeout, time.Second, mesh.Duration{Duration: longestLook})
	}
	for i, m := range in.Mend {
		at := fmt.Sprintf("mend[%d]", i)
		switch {
		case !slices.Contains(Doings, m.Do):
			say(at+".do", "%q is none of %s, %s, %s", m.Do, check.SetUp, check.Reissue, check.Restart)
		case m.Do == check.SetUp && m.Cluster != "":
			say(at+".cluster", "a setup is of the whole mesh, not of %q alone", m.Cluster)
		case m.Do != check.SetUp && m.Cluster == "":
			say(at+".cluster", "is missing; say of which cluster the %s is", m.Do)
		}
	}
	return problems
}

// Doings are all ways to mend, in the order in which they are made: a setup may have
// mended what another is for, and what is issued anew is taken up without a restart.
var Doings = []check.Doing{check.SetUp, check.Reissue, check.Restart}

// Offered is the mend that a finding has, as it can be asked for; false if it has none.
func Offered(f check.Finding) (check.Mend, bool) {
	switch {
	case f.Mend == nil || f.Status == check.Pass || !slices.Contains(Doings, f.Mend.Do):
		return check.Mend{}, false
	case f.Mend.Do == check.SetUp:
		return check.Mend{Do: check.SetUp}, true
	case f.Mend.Cluster == "":
		return check.Mend{Do: f.Mend.Do, Cluster: f.Cluster}, true
	}
	return *f.Mend, true
}

// DiagnoseResult is the result of DiagnoseMesh: what was found, the gravest first.
type DiagnoseResult struct {
	Mesh string `json:"mesh"`
	// Checks is how many were made, Findings those that do not pass.
	Checks   int             `json:"checks"`
	Findings []check.Finding `json:"findings"`
	// StandIn: the management server is the lab's stand-in, not Gloo Mesh.
	StandIn bool `json:"standIn,omitempty"`
	// More is how many findings there are besides, which are no graver: a result of
	// Temporal has its limit.
	More int `json:"more,omitempty"`
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
	// Detail says what was done; Error why it did not come to its end. Made says that
	// all was done even so, and that the verification after it has failed.
	Detail string `json:"detail,omitempty"`
	Error  string `json:"error,omitempty"`
	Made   bool   `json:"made,omitempty"`
}
