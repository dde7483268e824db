package procedure

import (
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/strict"
)

// AddClusterInput is what AddCluster takes.
type AddClusterInput struct {
	Mesh string `json:"mesh"`
	// Management and Namespace say where the mesh's membership is stored;
	// default: the site's management cluster, gloo-mesh.
	Management string `json:"management,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
	// Workload is the new member, as in a mesh's workloads.
	Workload mesh.Workload `json:"workload"`
	// Plan changes nothing: it looks, and says what would be created or changed.
	Plan bool `json:"plan,omitempty"`
}

// AddClusterResult is the result of AddCluster.
type AddClusterResult struct {
	Mesh    string `json:"mesh"`
	Cluster string `json:"cluster"`
	// Changed says whether anything was created or changed, or would be.
	Changed bool `json:"changed"`
	// Plan says that nothing was: the steps have what would be.
	Plan bool `json:"plan,omitempty"`
	// Setup is what came of the cluster; the steps taken in it and in Vault for it
	// are those of the workflow that it names.
	Setup ClusterResult `json:"setup"`
	// Steps are the other steps, in order.
	Steps        []Step        `json:"steps"`
	Verification *VerifyResult `json:"verification,omitempty"`
}

// RemoveClusterInput is what RemoveCluster takes.
type RemoveClusterInput struct {
	Mesh string `json:"mesh"`
	// Management and Namespace are as in AddClusterInput.
	Management string `json:"management,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
	// Cluster is the registered name of the member to remove.
	Cluster string `json:"cluster"`
	// Gone says that the cluster no longer exists, or cannot be reached: only
	// Vault and the management cluster are then cleaned.
	Gone bool `json:"gone,omitempty"`
	// Plan changes nothing: it looks, and says what would be deleted.
	Plan bool `json:"plan,omitempty"`
}

// RemoveClusterResult is the result of RemoveCluster.
type RemoveClusterResult struct {
	Mesh    string `json:"mesh"`
	Cluster string `json:"cluster"`
	Changed bool   `json:"changed"`
	Plan    bool   `json:"plan,omitempty"`
	// ValidUntil is until when a certificate of the cluster's that is out there
	// stays valid: nothing in the relay asks whether one was revoked. Zero if
	// none is known to have been issued.
	ValidUntil time.Time `json:"validUntil,omitzero"`
	// Advice says what that means and what can be done about it.
	Advice string `json:"advice"`
	// Kept is what was left where it is, and why.
	Kept  []Kept `json:"kept,omitempty"`
	Steps []Step `json:"steps"`
}

// Kept is something that a removal leaves where it is.
type Kept struct {
	Object string `json:"object"`
	Why    string `json:"why"`
}

// Removal is what an activity deleted, or would delete, and what it left.
type Removal struct {
	Outcome
	Kept []Kept `json:"kept,omitempty"`
}

// Keep records something that is left where it is.
func (r *Removal) Keep(object, why string) { r.Kept = append(r.Kept, Kept{Object: object, Why: why}) }

// Validate finds what is wrong with the input by itself, without the mesh that
// the cluster is to be added to.
func (in AddClusterInput) Validate() []strict.Problem {
	w := in.Workload
	alone := mesh.Spec{Mesh: in.Mesh, Workloads: []mesh.Workload{w}}
	if alone.Management.Context = in.Management; in.Management == "" {
		alone.Management.Context = "not-" + w.Context // whichever it is, that is for later
	}
	var problems []strict.Problem
	for _, p := range alone.WithDefaults().Validate() {
		if below, ok := strings.CutPrefix(p.Path, "workloads[0]"); ok {
			problems = append(problems, strict.Problem{Path: "workload" + below, Message: p.Message})
		} else if p.Path == "mesh" || p.Path == "management.context" && in.Management != "" {
			problems = append(problems, p)
		}
	}
	return problems
}

// Validate is as AddClusterInput's.
func (in RemoveClusterInput) Validate() []strict.Problem {
	var problems []strict.Problem
	named := AddClusterInput{Mesh: in.Mesh, Management: in.Management, Workload: mesh.Workload{Name: in.Cluster, Context: "c"}}
	for _, p := range named.Validate() {
		p.Path = strings.Replace(p.Path, "workload.name", "cluster", 1)
		problems = append(problems, p)
	}
	return problems
}
