package relay

import (
	"context"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// ServerInput asks for what the management server has.
type ServerInput struct {
	Spec mesh.Spec `json:"spec"` // without workloads
	// Loaded waits until every replica serves what is in the Secret.
	Loaded bool `json:"loaded,omitempty"`
}

// ServerResult is what the management server presents and trusts: stored in its
// Secret, and as every replica has loaded it.
type ServerResult struct {
	procedure.Outcome
	Leaf procedure.Leaf `json:"leaf"`
	// Chains and Trusts are PEM texts of chains, leaf first, and of trust stores,
	// the stored one first, each different one once. What is loaded of the trust
	// is known by its CA names alone; AcceptableCAs are those of any replica that
	// are not in the stored trust.
	Chains        []string `json:"chains"`
	Trusts        []string `json:"trusts"`
	AcceptableCAs []string `json:"acceptableCAs,omitempty"`
	// Presents and Trusted are as in CheckPairResult.
	Presents string   `json:"presents"`
	Trusted  []string `json:"trusted"`
}

// ReadServer reads what the management server has stored and loaded.
func (a *Activities) ReadServer(ctx context.Context, in ServerInput) (ServerResult, error) {
	return ServerResult{}, failure.Permanent(failure.InvalidInput, "stub")
}

// CheckPairInput asks whether a cluster's agent and the server shake hands,
// whatever either of them has stored, loaded or in flight.
type CheckPairInput struct {
	Spec    mesh.Spec    `json:"spec"` // with this one workload
	Cluster string       `json:"cluster"`
	Server  ServerResult `json:"server"`
	// InFlight are chains, throwaway leaf first, that Vault may return to either
	// from now on.
	InFlight []string `json:"inFlight,omitempty"`
	// RootsOnly refuses a trust store that holds anything but self-signed roots,
	// the server's included: without it an intermediate is no trust anchor.
	RootsOnly bool `json:"rootsOnly,omitempty"`
}

// CheckPairResult is what the agent has, and every combination that fails.
type CheckPairResult struct {
	procedure.Outcome
	Leaf     procedure.Leaf `json:"leaf"`
	Problems []string       `json:"problems,omitempty"`
	// Presents and Trusts are the names of CAs: of the intermediate that signed
	// the agent's leaf, and of the anchors that it checks the server against.
	Presents string   `json:"presents"`
	Trusts   []string `json:"trusts"`
}

// CheckPair reads the public certificates of a cluster's agent and computes
// whether every handshake would succeed. A failure is a problem in the result;
// an error is a cluster that could not be looked at.
func (a *Activities) CheckPair(ctx context.Context, in CheckPairInput) (CheckPairResult, error) {
	return CheckPairResult{}, failure.Permanent(failure.InvalidInput, "stub")
}

// ShakeHandsInput asks for fresh handshakes in the place of a cluster's agent.
type ShakeHandsInput struct {
	Spec    mesh.Spec `json:"spec"` // with this one workload
	Cluster string    `json:"cluster"`
}

// ShakeHands makes a fresh full mTLS handshake with every replica of the
// management server, with the certificate and trust in the cluster's Secrets.
// Where the worker that reaches the cluster does not reach the management
// cluster, none can be made, and the detail says so.
func (a *Activities) ShakeHands(ctx context.Context, in ShakeHandsInput) (procedure.Outcome, error) {
	return procedure.Outcome{}, failure.Permanent(failure.InvalidInput, "stub")
}
