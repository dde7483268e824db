// Package cluster has the activities on Kubernetes objects that belong to no
// other system: namespaces, locks, membership, trust, registration.
package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// Activities holds what the activities need. Its exported methods are the activities.
type Activities struct {
	Clients *site.Clients

	// running says whether a lock's holder still runs; tests replace it. Nil
	// asks Temporal.
	running func(context.Context, holder) (bool, error)
}

// CheckClustersInput asks whether the spec's workload clusters are fit for a
// setup and, with Management, the management cluster.
type CheckClustersInput struct {
	Spec       mesh.Spec `json:"spec"`
	Management bool      `json:"management,omitempty"`
}

// CheckClustersResult has one entry for each cluster, in the order asked for.
type CheckClustersResult struct {
	Clusters []CheckClusterResult `json:"clusters"`
}

// CheckClusterResult lists everything that is in the way; nothing was changed.
type CheckClusterResult struct {
	Context string `json:"context"`
	// Workload is the registered name; empty for the management cluster.
	Workload string `json:"workload,omitempty"`
	Version  string `json:"version,omitempty"`
	// Unreachable says why the API server does not answer, if it does not.
	Unreachable string `json:"unreachable,omitempty"`
	// CertManager is the version found; empty if there is none.
	CertManager string   `json:"certManager,omitempty"`
	Problems    []string `json:"problems,omitempty"`
}

// NamespaceInput names a namespace.
type NamespaceInput struct {
	Context   string         `json:"context"`
	Namespace string         `json:"namespace"`
	Mode      procedure.Mode `json:"mode"`
}

// LockInput names a lock: a Lease in the management cluster. Names of leases:
// "relaypki-<mesh>-ca" for whatever changes a CA or an issuer,
// "relaypki-<mesh>-cluster-<name>" for one cluster.
type LockInput struct {
	Context   string `json:"context"`
	Namespace string `json:"namespace"`
	Lease     string `json:"lease"`
	// Holder is "<temporal namespace>/<workflow id>/<first run id>".
	Holder string `json:"holder"`
}

// MeshRecord is what is stored of a mesh: ConfigMap "relaypki-mesh-<mesh>" in
// the management cluster.
type MeshRecord struct {
	Spec mesh.Spec `json:"spec"`
	// Complete is set once a setup of exactly this spec has ended well and nobody
	// is being added or removed.
	Complete bool `json:"complete"`
	// Joining are members that are being added; each is in Spec from before its
	// first certificate is issued.
	Joining []string `json:"joining,omitempty"`
	// Leaving are members that are being removed, and some that were, by name.
	Leaving map[string]Departure `json:"leaving,omitempty"`
	// Generations are those of the mesh's CAs.
	Generations procedure.Generations `json:"generations"`
	// Rotation is the rotation of a CA that is under way; nil if there is none.
	Rotation *procedure.Rotation `json:"rotation,omitempty"`
	// Deletions are keys of previous intermediates that are still to be deleted.
	Deletions []procedure.Deletion `json:"deletions,omitempty"`
	// Quarantined are members that a rotation has left out because somebody said
	// so, by name, with the reason; their certificates may be of an earlier CA.
	Quarantined map[string]string `json:"quarantined,omitempty"`
	// Found is false when there is no such record.
	Found bool `json:"found"`
}

// Moving says that a member is just being added or removed, and what finishes
// that if nothing is at it any more; both are empty for a settled one.
func (r MeshRecord) Moving(name string) (what, finish string) {
	departure, leaving := r.Leaving[name]
	switch {
	case leaving && departure.Left.IsZero():
		return "it is being removed since " + departure.Since.UTC().Format(time.DateTime) + "Z", fmt.Sprintf("relaypki remove-cluster %s %s", r.Spec.Mesh, name)
	case slices.Contains(r.Joining, name):
		return "it is being added", fmt.Sprintf("relaypki add-cluster %s %s", r.Spec.Mesh, name)
	}
	return "", ""
}

// RecordMeshInput stores a record.
type RecordMeshInput struct {
	Spec     mesh.Spec      `json:"spec"`
	Complete bool           `json:"complete"`
	Mode     procedure.Mode `json:"mode"`
}

// RecordRotationInput records how far a rotation of a CA is.
type RecordRotationInput struct {
	Mesh string `json:"mesh"`
	// Management and Namespace are as in ReadMeshInput.
	Management string `json:"management,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
	// Rotation is nil once it has ended.
	Rotation *procedure.Rotation `json:"rotation,omitempty"`
	// Generations, Deletions and Quarantined are left as they are if they are nil.
	Generations *procedure.Generations `json:"generations,omitempty"`
	// RootPEM is, at the end of a rotation of a root that is kept outside Vault, the
	// certificate that becomes the spec's; empty leaves it as it is.
	RootPEM     string               `json:"rootPEM,omitempty"`
	Deletions   []procedure.Deletion `json:"deletions"`
	Quarantined map[string]string    `json:"quarantined"`
	Mode        procedure.Mode       `json:"mode"`
}

// RecordMemberInput records one member.
type RecordMemberInput struct {
	Mesh string `json:"mesh"`
	// Management and Namespace are as in ReadMeshInput.
	Management string        `json:"management,omitempty"`
	Namespace  string        `json:"namespace,omitempty"`
	Workload   mesh.Workload `json:"workload"`
	// Joined: it is set up.
	Joined bool           `json:"joined"`
	Mode   procedure.Mode `json:"mode"`
}

// RecordDepartureInput records that a member is being removed, or was.
type RecordDepartureInput struct {
	Mesh string `json:"mesh"`
	// Management and Namespace are as in ReadMeshInput.
	Management string `json:"management,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
	Cluster    string `json:"cluster"`
	// ValidUntil is until when its certificate stays valid, if that is known.
	ValidUntil time.Time `json:"validUntil,omitzero"`
	// Left: nothing of it is left.
	Left bool           `json:"left"`
	Mode procedure.Mode `json:"mode"`
}

// RecordMemberResult has the record as it then is.
type RecordMemberResult struct {
	procedure.Outcome
	Record MeshRecord `json:"record"`
}

// RemovalInput names a workload cluster to take the mesh's objects out of.
type RemovalInput struct {
	// Spec has this one workload.
	Spec mesh.Spec      `json:"spec"`
	Mode procedure.Mode `json:"mode"`
}

// CheckRemovalInput asks whether a workload can be taken out of its cluster or,
// with Management, out of the management cluster.
type CheckRemovalInput struct {
	// Spec has this one workload.
	Spec       mesh.Spec `json:"spec"`
	Management bool      `json:"management"`
}

// CheckRemovalResult lists everything that is in the way; nothing was changed.
type CheckRemovalResult struct {
	Problems []string `json:"problems,omitempty"`
}

// ReadMeshInput names a mesh; empty Management and Namespace mean the site's
// management cluster and gloo-mesh.
type ReadMeshInput struct {
	Mesh       string `json:"mesh"`
	Management string `json:"management,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
}

// ServiceAccountKeysInput names a cluster.
type ServiceAccountKeysInput struct {
	Context string `json:"context"`
}

// ServiceAccountKeys are the public keys that the cluster's ServiceAccount
// tokens are checked with.
type ServiceAccountKeys struct {
	Issuer  string   `json:"issuer"`
	KeysPEM []string `json:"keysPEM"`
}

// CopyRootSecretInput carries the root certificate, which is public; and after it
// that of the root that stands by, if there is one.
type CopyRootSecretInput struct {
	Mesh      string `json:"mesh"`
	Context   string `json:"context"`
	Namespace string `json:"namespace"`
	RootPEM   string `json:"rootPEM"`
	// ClientSecret is the cluster's own certificate's, whose ca.crt a plan takes
	// the root from as long as there is none.
	ClientSecret string `json:"clientSecret,omitempty"`
	// AddPrintedBy is, in a plan, the command that prints the root that stands by once
	// it is there; empty if it is, or if none is to.
	AddPrintedBy string         `json:"addPrintedBy,omitempty"`
	Mode         procedure.Mode `json:"mode"`
}

// IdentityTokenInput is for the relay identity token.
type IdentityTokenInput struct {
	Spec mesh.Spec `json:"spec"`
	// Context is the cluster to copy to; the management cluster's own to make
	// it (mode "generate") or look for it (mode "existing").
	Context string         `json:"context"`
	Mode    procedure.Mode `json:"mode"`
}

// RegisterClusterInput names the workload to register.
type RegisterClusterInput struct {
	Spec    mesh.Spec      `json:"spec"`
	Cluster string         `json:"cluster"`
	Mode    procedure.Mode `json:"mode"`
}

// RelayAddressInput asks for the management server's address.
type RelayAddressInput struct {
	Spec mesh.Spec `json:"spec"`
	// Mode Plan looks once.
	Mode procedure.Mode `json:"mode,omitempty"`
}

// RelayAddressResult is host:port, IPv6 in brackets; in a plan it may be empty.
type RelayAddressResult struct {
	Address string `json:"address"`
}
