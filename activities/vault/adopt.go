package vault

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// AdoptAuthoritiesInput names the mesh whose CAs somebody has made by hand.
type AdoptAuthoritiesInput struct {
	Spec mesh.Spec      `json:"spec"`
	Mode procedure.Mode `json:"mode"`
}

// adoptedPrefix begins the name of a key whose CA we have taken over as it is:
// the input need not describe it, and a rotation brings what the input asks for.
const adoptedPrefix = "adopted-"

// AdoptAuthorities takes over a root and an intermediate that somebody else has
// made: it gives their mounts our description, and issuers and keys our names.
// No certificate is made or changed. In what they differ from the input is in
// the detail of each change.
func (a *Activities) AdoptAuthorities(ctx context.Context, in AdoptAuthoritiesInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	s, err := a.sessionFor(ctx, in.Mode, in.Spec.Vault.Name, site.Onboard)
	if err != nil {
		return out, err
	}
	var root adoption // none, if it is kept outside Vault
	if !in.Spec.PKI.Root.Offline() {
		if root, err = s.adoptable(ctx, in.Spec.Mesh, in.Spec.Vault.RootMount, RootName(1), rootPrefix); err != nil {
			return out, err
		}
	}
	relay, err := s.adoptable(ctx, in.Spec.Mesh, in.Spec.Vault.RelayMount, IntermediateName(1), intermediatePrefix)
	if err != nil {
		return out, err
	}
	if err := s.fitTogether(in.Spec, root, relay); err != nil {
		return out, err
	}
	for _, ca := range []struct {
		found adoption
		asked mesh.CA
	}{{root, in.Spec.PKI.Root.CA}, {relay, in.Spec.PKI.Intermediate}} {
		if err := s.adopt(ctx, in, ca.found, ca.asked, &out); err != nil {
			return out, err
		}
	}
	if out.Detail = "nothing to take over"; len(out.Changes) > 0 {
		out.Detail = ""
	}
	return out, nil
}

// adoption is a CA as it was found: issuer is nil if there is none, ours says
// that it bears our name already.
type adoption struct {
	mount, name string
	described   bool
	issuer      *issuer
	keyName     string
	ours        bool
}

// adoptable finds the CA of a mount that can be taken over, or says why the one
// that is there cannot.
func (s session) adoptable(ctx context.Context, meshName, path, name, prefix string) (adoption, error) {
	found := adoption{mount: path, name: name}
	m, err := s.mountAt(ctx, path)
	if err != nil || m == nil {
		return found, err
	}
	if err := m.unfit(s.vault, path, meshName); err != nil {
		return found, err
	}
	found.described = m.Description != ""
	all, err := s.issuers(ctx, path)
	if err != nil {
		return found, err
	}
	var signing []*issuer
	for i := range all {
		switch issuer := &all[i]; {
		case issuer.Name == name:
			found.issuer, found.ours = issuer, true
		case issuer.KeyID != "" && !strings.HasPrefix(issuer.Name, prefix):
			signing = append(signing, issuer)
		}
	}
	if !found.ours {
		if found.issuer, err = s.chosen(ctx, path, all, signing); err != nil || found.issuer == nil {
			return found, err
		}
	}
	if found.issuer.KeyID == "" {
		return found, s.notAdoptable(path, *found.issuer, "its key is not in this Vault, so it could sign nothing here")
	}
	names, err := s.keyNames(ctx, path)
	found.keyName = names[found.issuer.KeyID]
	return found, err
}

// chosen is the one CA of a mount that can sign: the default one of several.
func (s session) chosen(ctx context.Context, path string, all []issuer, signing []*issuer) (*issuer, error) {
	switch len(signing) {
	case 0:
		for _, i := range all {
			return nil, s.notAdoptable(path, i, "no key of the mount's CAs is in this Vault, so none could sign here")
		}
		return nil, nil
	case 1:
		return signing[0], nil
	}
	config, err := s.issuerConfig(ctx, path)
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, i := range signing {
		if i.ID == config.Default {
			return i, nil
		}
		texts = append(texts, i.String())
	}
	return nil, failure.Permanent(failure.Conflict, "Vault %q: the mount %s has several CAs and none of them is its default: %s. Make the one to take over the default: vault write %s/config/issuers default=<id>",
		s.vault, path, strings.Join(texts, ", "), path)
}

func (s session) notAdoptable(path string, i issuer, why string) error {
	return failure.Permanent(failure.Conflict, "Vault %q, mount %s: the CA %s cannot be taken over: %s", s.vault, path, i, why)
}

// fitTogether refuses a root that is none, an intermediate that this root has
// not signed, and what is no CA or has expired.
func (s session) fitTogether(spec mesh.Spec, root, relay adoption) error {
	for _, ca := range []adoption{root, relay} {
		if ca.issuer == nil {
			continue
		}
		switch c := ca.issuer.certificate; {
		case !c.IsCA || !c.BasicConstraintsValid:
			return s.notAdoptable(ca.mount, *ca.issuer, "it is no CA certificate")
		case time.Now().After(c.NotAfter):
			return s.notAdoptable(ca.mount, *ca.issuer, "it has expired")
		}
	}
	var anchor *x509.Certificate
	if spec.PKI.Root.Offline() {
		var err error
		if anchor, err = spec.PKI.Root.Certificate(); err != nil {
			return failure.Permanent(failure.InvalidInput, "pki.root.certificatePEM cannot be read: %v", err)
		}
	}
	switch {
	case root.issuer != nil && !pki.SelfSigned(root.issuer.certificate):
		return s.notAdoptable(root.mount, *root.issuer, "it is not self-signed, so it is no root")
	case relay.issuer == nil:
		return nil
	case anchor != nil:
	case root.issuer == nil:
		return s.notAdoptable(relay.mount, *relay.issuer, fmt.Sprintf("the root that signed it is not in the mount %s; name its mount in vault.rootMount, or, if it is kept outside Vault, give its certificate (pki.root.kept: %s, pki.root.certificatePEM)", spec.Vault.RootMount, mesh.KeptOffline))
	default:
		anchor = root.issuer.certificate
	}
	chain := []*x509.Certificate{relay.issuer.certificate, anchor}
	for _, err := range []error{pki.SignedBy(chain[0], chain[1]), pki.Linear(chain)} {
		if err != nil {
			return s.notAdoptable(relay.mount, *relay.issuer, err.Error())
		}
	}
	return nil
}

// adopt gives one CA our names. The key is named first: the issuer's name is
// what makes it ours.
func (s session) adopt(ctx context.Context, in AdoptAuthoritiesInput, found adoption, asked mesh.CA, out *procedure.Outcome) error {
	if found.issuer == nil {
		return nil
	}
	act := func(object, detail, command string, change func() error) error {
		out.Changed(procedure.Update, object, detail)
		if !in.Mode.Writes() {
			out.By(in.Mode, command)
			return nil
		}
		return change()
	}
	if !found.described {
		if err := act("vault mount "+found.mount, "described as the mesh's", s.command("secrets tune", "-description="+mountMark(in.Spec.Mesh), found.mount), func() error {
			return s.write(ctx, "sys/mounts/"+found.mount+"/tune", map[string]any{"description": mountMark(in.Spec.Mesh)}, nil)
		}); err != nil {
			return err
		}
	}
	if found.ours {
		return nil
	}
	if name := adoptedPrefix + found.name; found.keyName != name {
		path, data := found.mount+"/key/"+found.issuer.KeyID, map[string]any{"key_name": name}
		if err := act("vault key "+found.mount+"/"+found.issuer.KeyID, "named "+name, s.data("write", path, data), func() error {
			return s.write(ctx, path, data, nil)
		}); err != nil {
			return err
		}
	}
	detail := fmt.Sprintf("named %s; %s", found.name, found.issuer)
	if differs := append(identityOf(found.issuer.certificate, asked), lifetimeOf(found.issuer.certificate, asked.TTL)...); len(differs) > 0 {
		detail += ". It stays as it is until a rotation: " + strings.Join(differs, "; ")
	}
	path, data := found.mount+"/issuer/"+found.issuer.ID, map[string]any{"issuer_name": found.name}
	return act("vault issuer "+found.mount+"/"+found.issuer.ID, detail, s.data("patch", path, data), func() error { return s.patch(ctx, path, data) })
}
