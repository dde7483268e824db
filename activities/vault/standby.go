package vault

import (
	"context"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// StandbyRootInput asks for the root that stands by.
type StandbyRootInput struct {
	Spec mesh.Spec `json:"spec"` // without workloads
	// Generation is that of the root at work.
	Generation int            `json:"generation"`
	Mode       procedure.Mode `json:"mode"`
}

// StandbyRoot finds the root that a rotation would go to, or makes it as a rotation
// does: beside the one at work, which stays the mount's default, with the identity
// operate. Names that were ever taken stay so: what a rotation was taken back from
// may not issue, and is passed over. Errors are GenerateRoot's.
func (a *Activities) StandbyRoot(ctx context.Context, in StandbyRootInput) (CAResult, error) {
	s, err := a.sessionFor(ctx, in.Mode, in.Spec.Vault.Name, site.Operate)
	if err != nil {
		return CAResult{}, err
	}
	var seen SurveyResult
	if _, err := s.rootMount(ctx, in.Spec.RootMount(), &seen); err != nil {
		return CAResult{}, err
	}
	relay, err := s.issuers(ctx, in.Spec.Vault.RelayMount)
	if err != nil {
		return CAResult{}, err
	}
	next := max(in.Generation, seen.HighestRoot, highestRoot(relay)) + 1
	if standby, found := StandingBy(seen.Roots, in.Generation); found {
		next = standby.Generation
	}
	return a.GenerateRoot(ctx, GenerateRootInput{
		Vault: in.Spec.Vault.Name, Mount: in.Spec.RootMount(), Generation: next, CA: in.Spec.PKI.Root.CA, Mode: in.Mode, Rotation: true, tuned: true,
	})
}

// StandingBy is the root that a rotation from one of that generation goes to, of
// roots by generation: the first later one that has its key and may sign.
func StandingBy(roots []RootState, generation int) (RootState, bool) {
	for _, root := range roots {
		if root.StandsBy(generation) {
			return root, true
		}
	}
	return RootState{}, false
}

// StandsBy says that a rotation from a root of that generation may go to this one.
func (r RootState) StandsBy(generation int) bool {
	return r.Generation > generation && r.HasKey && r.Signs
}
