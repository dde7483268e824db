package procedure

import "github.com/relaypki/relaypki/internal/strict"

// RefreshInput is what RefreshCredentials takes.
type RefreshInput struct {
	Mesh string `json:"mesh"`
	// Management and Namespace say where the mesh's membership is stored;
	// default: the site's management cluster, gloo-mesh.
	Management string           `json:"management,omitempty"`
	Namespace  string           `json:"namespace,omitempty"`
	Problems   []strict.Problem `json:"-"`
}

type refreshInput RefreshInput // without methods, for decoding

// UnmarshalJSON keeps what is wrong in Problems, as SetupInput does.
func (in *RefreshInput) UnmarshalJSON(data []byte) error {
	var r refreshInput
	problems := strict.Decode(data, &r)
	*in = RefreshInput(r)
	in.Problems = problems
	return nil
}

// RefreshResult is the result of RefreshCredentials, and the details of its
// failure.
type RefreshResult struct {
	Mesh string `json:"mesh"`
	// Method is the mesh's credential.method.
	Method string `json:"method"`
	// Changed says whether anything was renewed.
	Changed bool `json:"changed"`
	// Count is the number of clusters in each state.
	Count map[State]int `json:"count"`
	// Clusters are those that were not just found as they should be: the failed
	// ones first, and no more of them than people read.
	Clusters []ClusterProgress `json:"clusters,omitempty"`
	// Told is what people know of the failures of scheduled runs.
	Told *Told `json:"told,omitempty"`
}

// RotateIssuerCredentials is the workflow type that makes the clusters'
// credentials anew.
const RotateIssuerCredentials = "RotateIssuerCredentials"

// RotateCredentialsInput is what RotateIssuerCredentials takes.
type RotateCredentialsInput struct {
	MeshInput
	// Clusters are the workload clusters whose credentials are made anew; all, and
	// the management cluster's, if it is empty.
	Clusters []string `json:"clusters,omitempty"`
}
