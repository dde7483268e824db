package cluster

import (
	"context"

	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// AdoptObjectsInput names a cluster in which somebody has set up the relay's
// certificates by hand.
type AdoptObjectsInput struct {
	// Spec is the mesh's with this one workload, or none for the management cluster.
	Spec    mesh.Spec      `json:"spec"`
	Context string         `json:"context"`
	Mode    procedure.Mode `json:"mode"`
}

// AdoptObjects takes over the objects of our names in one cluster: Issuer,
// Certificate, the agents' trust and, with method token, the Secret of the
// token. They are labelled, and otherwise stay as they are: no certificate is
// issued, no trust changed.
func (a *Activities) AdoptObjects(ctx context.Context, in AdoptObjectsInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	certificate := in.Spec.Certificates.Server
	if len(in.Spec.Workloads) > 0 {
		certificate = in.Spec.Certificates.Client
	}
	objects := []struct{ kind, name string }{{"Issuer", mesh.IssuerName}, {"Certificate", certificate.Name}}
	if len(in.Spec.Workloads) > 0 {
		objects = append(objects, struct{ kind, name string }{"Secret", mesh.RootSecretName})
	}
	if in.Spec.Credential.Method == mesh.CredentialToken {
		objects = append(objects, struct{ kind, name string }{"Secret", mesh.TokenSecretName})
	}
	for _, o := range objects {
		if err := kube.Adopt(ctx, c, o.kind, in.Spec.Namespace, o.name, in.Spec.Mesh, in.Mode, &out); err != nil {
			return out, err
		}
	}
	if len(out.Changes) == 0 {
		out.Detail = "nothing to take over"
	}
	return out, nil
}
