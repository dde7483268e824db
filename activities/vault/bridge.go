package vault

import (
	"context"
	"fmt"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// BridgeRoot has the old root sign the new one's key, and brings old root, new root
// and bridge into the relay mount, without keys.
func (a *Activities) BridgeRoot(_ context.Context, _ BridgeInput) (CAResult, error) {
	return CAResult{}, failure.Permanent(failure.InvalidInput, "not there yet")
}

// SetChainResult says how often it was tried: what a try that was cut off has asked
// of Vault may still happen.
type SetChainResult struct {
	procedure.Outcome
	Tries int32 `json:"tries"`
}

// BridgeName is the name of the bridge to a root of that generation.
func BridgeName(generation int) string { return fmt.Sprintf("relay-bridge-g%d", generation) }

// SetChain has Vault return another chain above an intermediate from now on.
func (a *Activities) SetChain(_ context.Context, _ SetChainInput) (SetChainResult, error) {
	return SetChainResult{}, failure.Permanent(failure.InvalidInput, "not there yet")
}

// RootName is the name of a root's issuer and key in Vault.
func RootName(generation int) string { return rootName(generation) }
