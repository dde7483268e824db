package procedure

import (
	"fmt"
	"time"

	"github.com/relaypki/relaypki/internal/inventory"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/strict"
)

// Inventory finds every certificate, CA and trust store of a mesh. It changes nothing.
const Inventory = "Inventory"

// InventoryInput is what Inventory takes.
type InventoryInput struct {
	Mesh string `json:"mesh"`
	// Management and Namespace are as in VerifyInput.
	Management string `json:"management,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
	// Clusters are the workload clusters to look at, besides the management cluster;
	// all if it is empty.
	Clusters []string `json:"clusters,omitempty"`
	// Timeout is how long a cluster or Vault has to answer; 10s if it is not given.
	Timeout mesh.Duration `json:"timeout,omitzero"`
	// Consumers looks through all Secrets and ConfigMaps that the worker may list for
	// certificates under one of the mesh's CAs.
	Consumers bool `json:"consumers,omitempty"`
	// Spec is, if given, what is compared with in the place of the mesh's record, and
	// File what it is called in what is said of it.
	Spec     *mesh.Spec       `json:"spec,omitempty"`
	File     string           `json:"file,omitempty"`
	Problems []strict.Problem `json:"-"`
}

type inventoryInput InventoryInput // without methods, for decoding

// UnmarshalJSON keeps what is wrong in Problems, as SetupInput does.
func (in *InventoryInput) UnmarshalJSON(data []byte) error {
	var v inventoryInput
	problems := strict.Decode(data, &v)
	*in = InventoryInput(v)
	in.Problems = problems
	return nil
}

// A cluster has this long to answer, and may be given longer.
const (
	InventoryTimeout        = 10 * time.Second
	longestInventoryTimeout = 5 * time.Minute
)

// Validate returns every problem of the input, those of its decoding included.
func (in InventoryInput) Validate() []strict.Problem {
	problems := in.Problems
	if in.Mesh == "" {
		problems = append(problems, strict.Problem{Path: "mesh", Message: "is missing"})
	}
	if t := in.Timeout.Duration; t < 0 || t > longestInventoryTimeout || t > 0 && t < time.Second {
		problems = append(problems, strict.Problem{Path: "timeout", Message: fmt.Sprintf("%s is not between 1s and %s", in.Timeout, mesh.Duration{Duration: longestInventoryTimeout})})
	}
	if in.Spec == nil {
		return problems
	}
	for _, p := range in.Spec.WithDefaults().Validate() {
		p.Path = "spec." + p.Path
		problems = append(problems, p)
	}
	if in.Mesh != "" && in.Spec.Mesh != "" && in.Spec.Mesh != in.Mesh {
		problems = append(problems, strict.Problem{Path: "spec.mesh", Message: fmt.Sprintf("%q is another mesh than %q", in.Spec.Mesh, in.Mesh)})
	}
	return problems
}

// InventoryResult is the result of Inventory.
type InventoryResult struct {
	inventory.Inventory
}
