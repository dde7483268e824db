package vault

import (
	"context"
	"crypto/x509"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/inventory"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/site"
)

// InventoryVaultInput asks what CAs there are in a mesh's mounts.
type InventoryVaultInput struct {
	Spec mesh.Spec `json:"spec"` // without workloads
}

// InventoryVaultResult has them all, whatever they are called and whoever has made them.
type InventoryVaultResult struct {
	inventory.Look
	// CAsPEM are their certificates, each once.
	CAsPEM []string `json:"casPEM"`
}

// InventoryVault reads every issuer of the root mount and the relay mount, and which
// roles sign with it. A mount that is not there, or has no CA, is unseen; a Vault that
// does not answer, or refuses, is an error.
func (a *Activities) InventoryVault(ctx context.Context, in InventoryVaultInput) (InventoryVaultResult, error) {
	s, err := a.session(ctx, in.Spec.Vault.Name, site.Operate)
	if err != nil {
		return InventoryVaultResult{}, err
	}
	var mounts []caMount
	var unseen []string
	for _, mount := range []struct {
		path string
		read func(context.Context, string) (caMount, error)
	}{{in.Spec.RootMount(), s.caMount}, {in.Spec.Vault.RelayMount, s.relayMount}} {
		if mount.path == "" {
			continue // the root is kept outside Vault
		}
		m, err := mount.read(ctx, mount.path)
		if failure.KindOf(err) == failure.Preflight {
			unseen = append(unseen, failure.Message(err))
			continue
		}
		if err != nil {
			return InventoryVaultResult{}, err
		}
		mounts = append(mounts, m)
	}
	var result InventoryVaultResult
	known := map[string]bool{}
	var all []issuer
	for _, m := range mounts {
		for _, i := range m.all {
			if !known[string(i.certificate.Raw)] {
				known[string(i.certificate.Raw)] = true
				all = append(all, i)
				result.CAsPEM = append(result.CAsPEM, string(pki.EncodeChain(i.certificate)))
			}
		}
	}
	result.Look = inventory.Knowing(certificatesOf(all)...)
	result.Unseen = unseen
	for _, m := range mounts {
		for _, i := range m.all {
			result.Add(m.item(i), i.certificate)
		}
	}
	return result, nil
}

// item is an issuer in public terms. It may have any name, or none: then its id stands
// for it.
func (m caMount) item(i issuer) inventory.Item {
	called := i.Name
	if called == "" {
		called = i.ID
	}
	return inventory.Item{
		Object:     m.mount + "/" + called,
		Generation: max(generationOf(rootPrefix, i.Name), generationOf(intermediatePrefix, i.Name), generationOf(bridgePrefix, i.Name)),
		Vault: &inventory.Issuer{Mount: m.mount, ID: i.ID, Name: i.Name, HasKey: i.KeyID != "", Signs: i.cannotSign() == "",
			Default: i.ID == m.defaultID, Roles: m.users(i.ID)},
	}
}

func certificatesOf(issuers []issuer) []*x509.Certificate {
	all := make([]*x509.Certificate, len(issuers))
	for n, i := range issuers {
		all[n] = i.certificate
	}
	return all
}
