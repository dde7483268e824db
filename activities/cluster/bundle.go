package cluster

import (
	"context"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// ChangeTrustInput says which trust anchors go into an agent's trust and which
// out of it.
type ChangeTrustInput struct {
	Mesh      string `json:"mesh"`
	Context   string `json:"context"`
	Namespace string `json:"namespace"`
	// AddPEM and DropPEM are certificates. What is neither stays as it is.
	AddPEM  []string       `json:"addPEM,omitempty"`
	DropPEM []string       `json:"dropPEM,omitempty"`
	Mode    procedure.Mode `json:"mode"`
}

// ChangeTrust puts anchors into the agents' trust (Secret relay-root-tls-secret,
// key ca.crt) and takes others out.
func (a *Activities) ChangeTrust(_ context.Context, _ ChangeTrustInput) (procedure.Outcome, error) {
	return procedure.Outcome{}, failure.Permanent(failure.InvalidInput, "not there yet")
}

// FindConsumersInput asks who else holds something of an old root.
type FindConsumersInput struct {
	Context string `json:"context"`
	// RootPEM is the old root. Known are objects of ours, as "Secret gloo-mesh/name".
	RootPEM string   `json:"rootPEM"`
	Known   []string `json:"known"`
}

// Consumer is an object that holds the old root, or a certificate under it.
type Consumer struct {
	// Object is as in FindConsumersInput.Known, Keys are those of it in which the
	// certificates are.
	Object string   `json:"object"`
	Keys   []string `json:"keys"`
	// Holds says what was found, in a few words: certificates' names.
	Holds string `json:"holds"`
}

// FindConsumersResult lists them. What could not be looked through is in Unseen,
// with the reason.
type FindConsumersResult struct {
	Consumers []Consumer `json:"consumers,omitempty"`
	Unseen    []string   `json:"unseen,omitempty"`
	Looked    int        `json:"looked"`
}

// FindConsumers looks through the Secrets and ConfigMaps of a cluster for the old
// root and for certificates that lead to it.
func (a *Activities) FindConsumers(_ context.Context, _ FindConsumersInput) (FindConsumersResult, error) {
	return FindConsumersResult{}, failure.Permanent(failure.InvalidInput, "not there yet")
}
