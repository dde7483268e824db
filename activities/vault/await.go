package vault

import (
	"context"
	"time"

	"go.temporal.io/sdk/activity"

	"github.com/relaypki/relaypki/internal/failure"
)

// awaitVaultEvery is how often a Vault that an operator is preparing is asked.
const awaitVaultEvery = 3 * time.Second

// AwaitVault waits (heartbeating what is still in the way) until CheckVault
// finds nothing in the way any more: the Vault is initialised, unsealed and
// lets the worker's identities in. That may take an operator days.
func (a *Activities) AwaitVault(ctx context.Context, in CheckVaultInput) (CheckVaultResult, error) {
	tick := time.NewTicker(awaitVaultEvery)
	defer tick.Stop()
	for {
		result, err := a.CheckVault(ctx, in)
		if err == nil && len(result.Problems) == 0 {
			return result, nil
		}
		if failure.IsPermanent(err) {
			return CheckVaultResult{}, err // of this worker's own configuration
		}
		if err != nil {
			result.Problems = []string{failure.Message(err)}
		}
		activity.RecordHeartbeat(ctx, result.Problems)
		select {
		case <-ctx.Done():
			return CheckVaultResult{}, ctx.Err()
		case <-tick.C:
		}
	}
}
