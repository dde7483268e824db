// Package procedure is the contract between whoever starts a procedure and the
// workflows that carry it out: names, inputs, results and progress. It is all
// that the relaypki command links of them.
package procedure

import (
	"encoding/json"
	"time"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/strict"
)

// TaskQueue is the default task queue.
const TaskQueue = "relaypki"

// Workflow types, the menu in the Temporal UI.
const (
	SetupMesh          = "SetupMesh"
	SetupCluster       = "SetupCluster"
	AddCluster         = "AddCluster"
	RemoveCluster      = "RemoveCluster"
	AdoptMesh          = "AdoptMesh"
	RefreshCredentials = "RefreshCredentials"
	VerifyMesh         = "VerifyMesh"
)

// ProgressQuery answers with a Progress on every procedure.
const ProgressQuery = "progress"

// Search attributes (all Keyword) that every procedure sets where the server
// knows them.
const (
	AttributeMesh    = "RelayMesh"
	AttributeCluster = "RelayCluster"
	AttributePhase   = "RelayPhase"
)

// SetupInput is what SetupMesh takes: a mesh.Spec, decoded strictly.
type SetupInput struct {
	mesh.Spec
	// Plan changes nothing: it looks, and says what would be created or changed.
	Plan bool `json:"plan,omitempty"`
	// Problems were found while decoding; validation reports them with its own.
	Problems []strict.Problem `json:"-"`
}

// UnmarshalJSON never fails: an error from the payload converter would come
// out nested and retryable. What is wrong is kept in Problems.
func (in *SetupInput) UnmarshalJSON(data []byte) error {
	var fields setupFields
	problems := strict.Decode(data, &fields)
	*in = SetupInput{Spec: fields.Spec, Plan: fields.Plan, Problems: problems}
	return nil
}

// MarshalJSON writes the fields as people type them.
func (in SetupInput) MarshalJSON() ([]byte, error) {
	return json.Marshal(setupFields{Spec: in.Spec, Plan: in.Plan})
}

// setupFields is SetupInput without methods, for decoding.
type setupFields struct {
	mesh.Spec
	Plan bool `json:"plan,omitempty"`
}

// SetupResult is the result of SetupMesh.
type SetupResult struct {
	Mesh string `json:"mesh"`
	// Changed says whether anything was created or changed, or would be.
	Changed bool `json:"changed"`
	// Plan says that nothing was: the steps have what would be.
	Plan     bool            `json:"plan,omitempty"`
	Root     Authority       `json:"root"`
	Relay    Authority       `json:"intermediate"`
	Server   Leaf            `json:"server"`
	Clusters []ClusterResult `json:"clusters"`
	// Steps are the steps of the management cluster, in order.
	Steps        []Step        `json:"steps"`
	Verification *VerifyResult `json:"verification,omitempty"`
}

// ClusterResult is the result of SetupCluster. Its steps are not in it, or a
// thousand clusters would not fit into one result: Workflow answers them to
// ProgressQuery.
type ClusterResult struct {
	Cluster  string `json:"cluster"`
	Workflow string `json:"workflow"`
	// Phase is, in the plan of a root's rotation, the one that this is of.
	Phase   string `json:"phase,omitempty"`
	Changed bool   `json:"changed"`
	Leaf    Leaf   `json:"leaf"`
}

// Authority is a CA certificate in public terms.
type Authority struct {
	IssuerID     string    `json:"issuerId"`
	Name         string    `json:"name"`
	Subject      string    `json:"subject"`
	Serial       string    `json:"serial"`
	SubjectKeyID string    `json:"subjectKeyId"`
	NotBefore    time.Time `json:"notBefore,omitzero"`
	NotAfter     time.Time `json:"notAfter"`
}

// Leaf is an issued certificate in public terms.
type Leaf struct {
	Serial         string    `json:"serial"`
	DNSNames       []string  `json:"dnsNames"`
	AuthorityKeyID string    `json:"authorityKeyId"`
	NotAfter       time.Time `json:"notAfter"`
}

// VerifyInput is what VerifyMesh takes.
type VerifyInput struct {
	Mesh string `json:"mesh"`
	// Management and Namespace say where the mesh's membership is stored;
	// default: the site's management cluster, gloo-mesh.
	Management string `json:"management,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
	// Clusters are the workload clusters to look at, besides the management
	// cluster; all if it is empty.
	Clusters []string `json:"clusters,omitempty"`
	// Settle is how long to wait for agents that have just been installed to
	// connect, and for servers that do not answer; without it, one look decides.
	Settle   mesh.Duration    `json:"settle,omitzero"`
	Problems []strict.Problem `json:"-"`
}

type verifyInput VerifyInput // without methods, for decoding

// UnmarshalJSON keeps what is wrong in Problems, as SetupInput does.
func (in *VerifyInput) UnmarshalJSON(data []byte) error {
	var v verifyInput
	problems := strict.Decode(data, &v)
	*in = VerifyInput(v)
	in.Problems = problems
	return nil
}

// VerifyResult is the result of VerifyMesh.
type VerifyResult struct {
	Mesh    string `json:"mesh"`
	Healthy bool   `json:"healthy"`
	// Checks is how many were made. Of more than MostFindings of them, Findings
	// has those that do not pass alone: a result of Temporal has its limit.
	Checks   int             `json:"checks"`
	Findings []check.Finding `json:"findings"`
	// Told is what people know of what a scheduled run has found.
	Told *Told `json:"told,omitempty"`
}

// MostFindings is how many findings a result has with those that pass.
const MostFindings = 2000

// State is how far a step or a cluster is.
type State string

const (
	Pending  State = "pending"
	Running  State = "running"
	UpToDate State = "up to date"
	Created  State = "created"
	Changed  State = "changed"
	Done     State = "done"
	Failed   State = "failed"
	// Parked: its tries are used up; it waits for retry or skip.
	Parked State = "parked"
	// Skipped: somebody has left it out, for a reason.
	Skipped State = "skipped"
)

// Step is one step of a procedure, in the words an operator would use.
type Step struct {
	Name string `json:"name"`
	// Phase is the one that the step is of, in a rotation.
	Phase  string `json:"phase,omitempty"`
	State  State  `json:"state"`
	Detail string `json:"detail,omitempty"`
	// Changes are in a plan's steps only: what would be done.
	Changes []Change `json:"changes,omitempty"`
	// Started and Ended are workflow times.
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
}

// ClusterProgress is how far one cluster is. Its steps are in the progress of
// the child workflow named here.
type ClusterProgress struct {
	Cluster  string `json:"cluster"`
	State    State  `json:"state"`
	Detail   string `json:"detail,omitempty"`
	Workflow string `json:"workflow,omitempty"`
	// Told says that people were told that it is parked.
	Told bool `json:"told,omitempty"`
}

// Progress is the answer to ProgressQuery.
type Progress struct {
	Procedure string `json:"procedure"`
	Mesh      string `json:"mesh"`
	Cluster   string `json:"cluster,omitempty"`
	Phase     string `json:"phase"`
	// Awaiting says what the procedure waits for and, if it waits for a
	// person, the exact command; empty when it is at work.
	Awaiting string `json:"awaiting,omitempty"`
	// Person says that nothing goes on until somebody sends an update.
	Person bool `json:"person,omitempty"`
	// Signing says that it waits for a certificate from a root that is kept outside
	// Vault; CSRQuery has what is to be signed.
	Signing bool `json:"signing,omitempty"`
	// Paused is the reason of a pause; empty if there is none.
	Paused string `json:"paused,omitempty"`
	// Parallelism is how many clusters are worked on at once; 0 where that
	// cannot be set.
	Parallelism int `json:"parallelism,omitempty"`
	// Asked is the phase that begins when somebody approves it.
	Asked string `json:"asked,omitempty"`
	// Approvals are those that a rotation was given, in order.
	Approvals []ApproveInput `json:"approvals,omitempty"`
	// Emergency is, of an EmergencyReissue, what it is for, and what has come of it.
	Emergency *Emergency        `json:"emergency,omitempty"`
	Steps     []Step            `json:"steps,omitempty"`
	Clusters  []ClusterProgress `json:"clusters,omitempty"`
	// Problem is why the procedure failed, if it did.
	Problem string `json:"problem,omitempty"`
	// Told is what people know of a failure of a run that nobody looks at.
	Told  *Told `json:"told,omitempty"`
	Ended bool  `json:"ended"`
}
