package vault

import (
	"context"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// BridgeRoot has the old root sign the new one's key, and brings old root, new root
// and bridge into the relay mount, without keys.
func (a *Activities) BridgeRoot(_ context.Context, _ BridgeInput) (CAResult, error) {
	return CAResult{}, failure.Permanent(failure.InvalidInput, "not there yet")
}

// SetChain has Vault return another chain above an intermediate from now on.
func (a *Activities) SetChain(_ context.Context, _ SetChainInput) (procedure.Outcome, error) {
	return procedure.Outcome{}, failure.Permanent(failure.InvalidInput, "not there yet")
}

// RootName is the name of a root's issuer and key in Vault.
func RootName(generation int) string { return rootName(generation) }
