package workflows

import (
	"fmt"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/shell"
)

// How the CAs of a root's rotation come about where the root is kept outside Vault.
// There is no root mount; in the relay mount roots are without keys. The intermediate's
// key and CSR are made first, and people bring back all that has to be signed at once.

// outside has people make the new root and sign the bridge and the new intermediate,
// and brings what they have signed into the relay mount. What was accepted is in the
// mesh's record before it is imported, so that it is asked for once.
func (r *rootRotation) outside(ctx workflow.Context) error {
	in := vault.IntermediateInput{
		Vault: r.spec.Vault.Name, RelayMount: r.spec.Vault.RelayMount, Generation: r.Record.To, CA: r.next().PKI.Intermediate, Mode: r.mode, Rotation: true,
	}
	before := r.Record.Signed
	if _, err := r.step(ctx, "new CAs", fmt.Sprintf("Have %s, the bridge to it and %s signed outside Vault", vault.RootName(r.Record.ToRoot), vault.IntermediateName(r.Record.To)),
		func(ctx workflow.Context) (procedure.Outcome, error) { return r.signedOutside(ctx, in) }); err != nil {
		return err
	}
	signed, bridge := r.Record.Signed, r.Bridge.CertificatePEM
	if signed != nil {
		bridge = signed.BridgePEM
	}
	if signed != before {
		if err := r.note(ctx, "record the new CAs", "Record what was signed outside Vault"); err != nil {
			return err
		}
	}
	if _, err := r.step(ctx, "bridge", "Bring the new root and the bridge into the relay mount", func(ctx workflow.Context) (procedure.Outcome, error) {
		var err error
		r.Bridge, err = call[vault.CAResult](ctx, acting, vaults.BridgeRoot, vault.BridgeInput{
			Spec: r.next().Only(""), Generation: r.Record.ToRoot, OldRoot: r.Root, NewRoot: r.NewRoot, BridgePEM: bridge, Mode: r.mode,
		})
		return r.Bridge.Outcome, err
	}); err != nil {
		return err
	}
	in.RootPEM, in.AbovePEM = r.NewRoot.CertificatePEM, r.above(r.first())
	if signed != nil {
		in.ChainPEM = signed.IntermediatePEM + signed.RootPEM
	}
	_, err := r.step(ctx, "new intermediate", "Bring the intermediate "+vault.IntermediateName(r.Record.To)+" into the relay mount", func(ctx workflow.Context) (procedure.Outcome, error) {
		var err error
		r.To, err = call[vault.CAResult](ctx, acting, vaults.SetSignedIntermediate, in)
		return r.To.Outcome, err
	})
	return err
}

// signedOutside has what is still to be signed signed by people. In a plan it says how.
func (r *rootRotation) signedOutside(ctx workflow.Context, in vault.IntermediateInput) (procedure.Outcome, error) {
	made, err := call[vault.CSRResult](ctx, acting, vaults.GenerateIntermediateCSR, in)
	out := made.Outcome
	switch {
	case err != nil:
		return out, err
	case made.Present && r.Record.Signed == nil && (r.NewRoot.CertificatePEM == "" || r.Bridge.CertificatePEM == ""):
		return out, failure.Permanent(failure.Preflight, "Vault %q, mount %s: the intermediate %s is there, and the root that has signed it (%s) or the bridge to that is not. Import what is missing (vault write %[2]s/issuers/import/cert pem_bundle=@FILE) and name the root so (vault patch %[2]s/issuer/ID issuer_name=%[4]s), then start the rotation again; or take the rotation back: relaypki rollback %s --reason WHY",
			r.spec.Vault.Name, in.RelayMount, vault.IntermediateName(in.Generation), vault.RootName(r.Record.ToRoot), r.spec.Mesh)
	case made.Present:
	case !r.mode.Writes() && r.Record.Signed == nil:
		out.Changed(procedure.Create, "root "+vault.RootName(r.Record.ToRoot)+", its bridge and the intermediate below it", "made and signed outside Vault: the CSR is published, and the run waits for a person to hand in all three")
		out.By(r.mode, newRootByHand(r.Root.Authority.Subject, vault.RootName(r.Record.ToRoot))...)
		r.NewRoot = vault.CAResult{Authority: procedure.Authority{Name: vault.RootName(r.Record.ToRoot)}, PrintedBy: newRootPrinted}
		return out, nil
	case r.mode.Writes():
		if r.Record.Signed, err = r.signing.newRoot(ctx, r.next(), made.CSRPEM, r.Record.Signed); err != nil {
			return out, err
		}
		out.Changed(procedure.Create, "root "+vault.RootName(r.Record.ToRoot)+", its bridge and the intermediate below it", "made and signed outside Vault, and handed in")
	default:
		out.By(r.mode, "certificate="+shell.Quote(r.Record.Signed.IntermediatePEM))
	}
	if r.Record.Signed == nil { // made by hand, and found in Vault
		return out, nil
	}
	next := r.next()
	next.PKI.Root.CertificatePEM = r.Record.Signed.RootPEM
	r.NewRoot, err = offlineRoot(next)
	r.NewRoot.Authority.Name = vault.RootName(r.Record.ToRoot)
	return out, err
}
