package procedure

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/rotation"
	"github.com/relaypki/relaypki/internal/strict"
)

// Workflow types of the rotations.
const (
	RotateLeafCertificates = "RotateLeafCertificates"
	RotateIntermediateCA   = "RotateIntermediateCA"
	RotateRootCA           = "RotateRootCA"
	// RotateCluster is the part of a rotation that is done in one cluster.
	RotateCluster = "RotateCluster"
)

// Updates of a rotation, beside those of every procedure.
const (
	// ApproveUpdate lets a rotation go on that waits for it.
	ApproveUpdate = "approve"
	// RollbackUpdate has a rotation of a CA go back the way it came.
	RollbackUpdate = "rollback"
	// QuarantineUpdate takes the place of SkipUpdate in a rotation: it takes a
	// SkipInput, and who is left out is in the mesh's record from then on.
	QuarantineUpdate = "quarantine"
)

// ApproveInput names the phase that may begin.
type ApproveInput struct {
	// Phase is the one that the rotation waits to begin: what was read by whoever
	// approves must be what is approved.
	Phase string `json:"phase"`
	// By is who approves, as the client says: Temporal knows no more of it.
	By string `json:"by,omitempty"`
	// Note is for whoever looks at the rotation later.
	Note string `json:"note,omitempty"`
}

// RollbackInput says why; the rotation's end repeats it.
type RollbackInput struct {
	Reason string `json:"reason"`
}

// MeshInput names a mesh that is recorded.
type MeshInput struct {
	Mesh string `json:"mesh"`
	// Management and Namespace say where the mesh's membership is stored;
	// default: the site's management cluster, gloo-mesh.
	Management string `json:"management,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
}

// RotateIntermediateInput is what RotateIntermediateCA takes. What it does not
// say is in the mesh's spec, under rotation and rollout.
type RotateIntermediateInput struct {
	MeshInput
	// Plan changes nothing: it looks, says phase by phase who presents and who
	// trusts what, and what would be done.
	Plan bool `json:"plan,omitempty"`
	// Rollback takes back the rotation that has begun, whose run is gone.
	Rollback bool   `json:"rollback,omitempty"`
	Reason   string `json:"reason,omitempty"`
	// Approval is, if given, taken in place of the spec's rotation.approval.
	Approval string `json:"approval,omitempty"`
	// Snapshot is the operator's word that Vault can be restored to now: where the
	// snapshot is. It is asked for if rotation.snapshot is "word" and none is given.
	Snapshot string `json:"snapshot,omitempty"`
	// Intermediate is what the new intermediate is to be like where it is not to be
	// like the one at work. The mesh's spec says so once the rotation is over.
	Intermediate mesh.CA `json:"intermediate,omitzero"`
	// DeleteOldKey has the previous intermediate's key deleted once the rotation is
	// over, which has to be approved then. Where the mesh is in no rotation, and one
	// before has left a key to be deleted, that is done, and no rotation is begun.
	DeleteOldKey bool `json:"deleteOldKey,omitempty"`
}

// RotateRootInput is what RotateRootCA takes. What it does not say is in the
// mesh's spec, under rotation and rollout.
type RotateRootInput struct {
	MeshInput
	// Plan, Rollback, Reason and Snapshot are as in RotateIntermediateInput.
	Plan     bool   `json:"plan,omitempty"`
	Rollback bool   `json:"rollback,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Snapshot string `json:"snapshot,omitempty"`
	// Approval is, if given, taken in place of "eachPhase", which the rotation of a
	// root asks for whatever the spec says.
	Approval string `json:"approval,omitempty"`
	// Root and Intermediate are what the new CAs are to be like where they are not
	// to be like those at work. The mesh's spec says so once the rotation is over.
	Root         mesh.CA `json:"root,omitzero"`
	Intermediate mesh.CA `json:"intermediate,omitzero"`
	// Consumers is the operator's word that whatever else holds the old root, as the
	// rotation lists it before it is dropped, may lose it. It is asked for then, if
	// there is anything that is not ours.
	Consumers bool `json:"consumers,omitempty"`
	// DeleteOldKeys has the keys of the previous root and intermediate deleted once
	// the rotation is over, which has to be approved then.
	DeleteOldKeys bool `json:"deleteOldKeys,omitempty"`
}

// RotateLeafInput is what RotateLeafCertificates takes.
type RotateLeafInput struct {
	MeshInput
	// Clusters are the workload clusters whose certificates are issued anew; all,
	// and the management server's, if it is empty.
	Clusters []string `json:"clusters,omitempty"`
	Plan     bool     `json:"plan,omitempty"`
}

// RotateResult is the result of a rotation, and the details of one that failed.
type RotateResult struct {
	Mesh    string `json:"mesh"`
	Changed bool   `json:"changed"`
	Plan    bool   `json:"plan,omitempty"`
	// RolledBack is why the rotation went back; empty if it did not.
	RolledBack string `json:"rolledBack,omitempty"`
	// From and To are the CAs; empty in a rotation of leaves.
	From Authority `json:"from,omitzero"`
	To   Authority `json:"to,omitzero"`
	// RootPEM is, of a new root that is kept outside Vault, what
	// pki.root.certificatePEM of the mesh's file has to be from now on.
	RootPEM string `json:"rootPEM,omitempty"`
	// Consumers are what else holds the old root, in a rotation of it, as it was
	// seen before the root was dropped.
	Consumers []string `json:"consumers,omitempty"`
	// Emergency is, of an EmergencyReissue, what it is for, and how long it took.
	Emergency *Emergency `json:"emergency,omitempty"`
	// Quarantined are the members that were left out, with the reasons.
	Quarantined map[string]string `json:"quarantined,omitempty"`
	// Server is the management server's certificate, Clusters the agents'.
	Server   Leaf            `json:"server,omitzero"`
	Clusters []ClusterResult `json:"clusters,omitempty"`
	// Canary are the clusters that go first.
	Canary []string `json:"canary,omitempty"`
	// Matrix is, in a plan, who presents and who trusts what in each phase.
	Matrix []PhaseView `json:"matrix,omitempty"`
	Steps  []Step      `json:"steps,omitempty"`
	// RetiredUntil is when the last certificate of the previous intermediate ends.
	RetiredUntil time.Time `json:"retiredUntil,omitzero"`
	// Deleted are the intermediates whose keys were deleted.
	Deleted      []string      `json:"deleted,omitempty"`
	Verification *VerifyResult `json:"verification,omitempty"`
}

// PhaseView is one phase of a plan: who presents and who trusts what by its end.
// A plan with a broken pair is refused.
type PhaseView struct {
	rotation.PlanPhase
	// Does is what the phase does, in a few words.
	Does string `json:"does"`
}

// Rotation is a rotation that a mesh is in, as its record says. It is written
// before anything is changed, so that whoever comes next goes on with it.
type Rotation struct {
	Procedure string `json:"procedure"`
	// From and To are generations of the intermediate.
	From int `json:"from"`
	To   int `json:"to"`
	// FromRoot and ToRoot are generations of the root, in a rotation of it.
	FromRoot int `json:"fromRoot,omitempty"`
	ToRoot   int `json:"toRoot,omitempty"`
	// Mode is, in a rotation of the root, the chain that Vault gives by what was done
	// last, and Next the one that it is about to give; empty before there is any.
	// Neither is ever applied again: that Vault gives another is how it is noticed
	// that it has gone back in time.
	Mode string `json:"mode,omitempty"`
	Next string `json:"next,omitempty"`
	// Furthest is the last of the modes that Vault has ever given, or was about to:
	// what a process may still hold is one of those up to it.
	Furthest rotation.Mode `json:"furthest,omitempty"`
	// Dropped is which root agents' trust is, or may be, without; empty for none.
	Dropped string `json:"dropped,omitempty"`
	// Lacked says that agents' trust was ever without the old root: what a process has
	// loaded may be from then.
	Lacked bool `json:"lacked,omitempty"`
	// Leg is how far it has gone back, beyond what Vault tells of it.
	Leg string `json:"leg,omitempty"`
	// Root is what the new root is like, if that is not what the mesh's spec says of
	// the one at work.
	Root *mesh.CA `json:"root,omitempty"`
	// Intermediate is what the new intermediate is like, if that is not what the
	// mesh's spec says of the one at work.
	Intermediate *mesh.CA `json:"intermediate,omitempty"`
	// Signed is what people have signed for a rotation of a root that is kept outside
	// Vault, once it was accepted; nil before.
	Signed *SignedRoot `json:"signed,omitempty"`
	// Workflow is the run that began it, as a lock's holder is written.
	Workflow string    `json:"workflow"`
	Began    time.Time `json:"began"`
	// Emergency is of an EmergencyReissue.
	Emergency *Emergency `json:"emergency,omitempty"`
	// Back is why it goes back; empty as long as it goes forward.
	Back string `json:"back,omitempty"`
	// Snapshot is what was said of a snapshot of Vault, or where it was put.
	Snapshot string `json:"snapshot,omitempty"`
	// Converged is when the last certificate of the previous intermediate was
	// replaced; zero before.
	Converged time.Time `json:"converged,omitzero"`
}

// SignedRoot is a new root that is kept outside Vault, with what goes with it: three
// certificates, as package pki has them in a NewRoot, in PEM.
type SignedRoot struct {
	IntermediatePEM string `json:"intermediatePEM"`
	RootPEM         string `json:"rootPEM"`
	BridgePEM       string `json:"bridgePEM"`
}

// Values of Rotation.Dropped.
const (
	DroppedOld = "the old root"
	DroppedNew = "the new root"
)

// Values of Rotation.Leg.
const (
	// LegOld: the previous intermediate signs again, or is about to.
	LegOld = "roles"
	// LegDrop: nobody has a certificate of the new one; its root is taken out of
	// agents' trust.
	LegDrop = "trust"
)

// Deletion is a previous CA whose key is still to be deleted, as was
// asked for with the rotation that replaced it. The record has it from the end of
// that rotation until it is done: in the midst of it Vault has no certificate that
// could be brought back.
type Deletion struct {
	// Root says that it is a root.
	Root           bool   `json:"root,omitempty"`
	Generation     int    `json:"generation"`
	IssuerID       string `json:"issuerId"`
	CertificatePEM string `json:"certificatePEM"`
}

// Generations are those that a mesh's CAs are of, as its record says. Of a
// mesh that has never been rotated they are 1.
type Generations struct {
	Root         int `json:"root"`
	Intermediate int `json:"intermediate"`
}

// Validate returns every problem of the input.
func (in MeshInput) Validate() []strict.Problem {
	if in.Mesh == "" {
		return []strict.Problem{{Path: "mesh", Message: "is missing"}}
	}
	return nil
}

// Validate returns every problem of the input.
func (in RotateRootInput) Validate() []strict.Problem {
	problems := rotationProblems(in.MeshInput, in.Approval, in.Rollback, in.Plan, in.Reason)
	if in.Rollback && (in.Root != (mesh.CA{}) || in.Intermediate != (mesh.CA{})) {
		problems = append(problems, strict.Problem{Path: "root", Message: "a rollback makes no CA"})
	}
	return problems
}

// Validate returns every problem of the input.
func (in RotateIntermediateInput) Validate() []strict.Problem {
	problems := rotationProblems(in.MeshInput, in.Approval, in.Rollback, in.Plan, in.Reason)
	if in.Rollback && in.Intermediate != (mesh.CA{}) {
		problems = append(problems, strict.Problem{Path: "intermediate", Message: "a rollback makes no intermediate"})
	}
	return problems
}

// rotationProblems are those of what the rotations of CAs have in common.
func rotationProblems(of MeshInput, approval string, rollback, plan bool, reason string) []strict.Problem {
	problems := of.Validate()
	known := []string{"", mesh.ApprovalNone, mesh.ApprovalAfterCanary, mesh.ApprovalEachPhase}
	if !slices.Contains(known, approval) {
		problems = append(problems, strict.Problem{Path: "approval", Message: fmt.Sprintf("%q is none of %s", approval, strings.Join(known[1:], ", "))})
	}
	if rollback && strings.TrimSpace(reason) == "" {
		problems = append(problems, strict.Problem{Path: "reason", Message: "is missing; say why the rotation is taken back, for whoever looks at it later"})
	}
	if rollback && plan {
		problems = append(problems, strict.Problem{Path: "plan", Message: "there is no plan of a rollback: it goes back the way the rotation came"})
	}
	return problems
}
