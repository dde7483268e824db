package vault

import (
	"context"
	"fmt"
	"strings"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// EnablePKI enables a PKI mount, or raises the longest lease of the one that is
// there. A fresh mount's is 768 h, and Vault would cut a root down to that with
// no more than a warning. It is never lowered: others may rely on it. A mount
// without a description gets one that says whose it is.
func (a *Activities) EnablePKI(ctx context.Context, in EnablePKIInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	s, err := a.sessionFor(ctx, in.Mode, in.Vault, site.Onboard)
	if err != nil {
		return out, err
	}
	object := "vault mount " + in.Mount
	lease := fmt.Sprintf("%ds", seconds(in.MaxLeaseTTL))
	m, err := s.mountAt(ctx, in.Mount)
	if err != nil {
		return out, err
	}
	if m == nil {
		out.Changed(procedure.Create, object, "type pki, max_lease_ttl "+in.MaxLeaseTTL.String())
		if !in.Mode.Writes() {
			out.By(in.Mode, s.command("secrets enable", "-path="+in.Mount, "-description="+mountMark(in.Mesh), "-max-lease-ttl="+lease, "pki"))
			return out, nil
		}
		return out, s.write(ctx, "sys/mounts/"+in.Mount, map[string]any{
			"type": "pki", "description": mountMark(in.Mesh), "config": map[string]any{"max_lease_ttl": lease},
		}, nil)
	}
	if err := m.unfit(in.Vault, in.Mount, in.Mesh); err != nil {
		return out, err
	}
	longest, err := s.maxLeaseTTL(ctx, in.Mount)
	if err != nil {
		return out, err
	}
	tune := map[string]any{}
	if longest < seconds(in.MaxLeaseTTL) {
		tune["max_lease_ttl"] = lease
		out.Changed(procedure.Update, object, fmt.Sprintf("max_lease_ttl from %ds to %s", longest, lease))
		out.By(in.Mode, s.command("secrets tune", "-max-lease-ttl="+lease, in.Mount))
	}
	if m.Description == "" { // made by hand, and nobody's yet
		tune["description"] = mountMark(in.Mesh)
		out.Changed(procedure.Update, object, "described as the mesh's")
		out.By(in.Mode, s.command("secrets tune", "-description="+mountMark(in.Mesh), in.Mount))
	}
	if !in.Mode.Writes() || len(tune) == 0 {
		return out, nil
	}
	return out, s.write(ctx, "sys/mounts/"+in.Mount+"/tune", tune, nil)
}

// mountMark, a mount's description, says whose it is.
func mountMark(mesh string) string { return "relaypki: mesh " + mesh }

// unfit is a Conflict if the mount is of another type, or another mesh's: a
// rotation of one would pull the trust from under the other.
func (m mount) unfit(vault, path, mesh string) error {
	if m.Type != "pki" {
		return failure.Permanent(failure.Conflict, "Vault %q: the mount %s is there and is of type %q, not pki. Name another mount in the input", vault, path, m.Type)
	}
	if strings.HasPrefix(m.Description, mountMark("")) && m.Description != mountMark(mesh) {
		return failure.Permanent(failure.Conflict, "Vault %q: the mount %s is another mesh's (description %q), and two meshes cannot rotate the CAs of one mount. Name another mount in the input", vault, path, m.Description)
	}
	return nil
}

// RootCommonName is the common name of a root of that generation, where the first
// one was asked for by that name. Each has one of its own: a server says whom it
// trusts by names alone, and whoever asks it must be able to tell the roots apart.
func RootCommonName(asked string, generation int) string {
	if asked == "" || generation < 2 {
		return asked
	}
	return fmt.Sprintf("%s G%d", asked, generation)
}

// rootOf is the CA that was asked for, as the root of that generation.
func rootOf(asked mesh.CA, generation int) mesh.CA {
	asked.CommonName = RootCommonName(asked.CommonName, generation)
	return asked
}

// identity is the worker's in Vault, as for an intermediate.
func (in GenerateRootInput) identity() site.Identity {
	if in.Rotation {
		return site.Operate
	}
	return site.Onboard
}

// GenerateRoot finds or makes the root (issuer and key name relay-root-g<generation>).
// Generating is not idempotent in Vault, but names are unique there: a second
// call with the same names, even one that runs at the same time, is refused. In a
// rotation the default stays what it is, and what speaks against another root is
// said before there is a key of it.
func (a *Activities) GenerateRoot(ctx context.Context, in GenerateRootInput) (CAResult, error) {
	s, err := a.sessionFor(ctx, in.Mode, in.Vault, in.identity())
	if err != nil {
		return CAResult{}, err
	}
	name := RootName(in.Generation)
	in.CA = rootOf(in.CA, in.Generation)
	root, err := s.authority(ctx, in.Mount, name, rootPrefix, in.CA)
	if err != nil {
		return CAResult{}, err
	}
	var out procedure.Outcome
	if root.issuer == nil && in.Rotation {
		if err := s.roomForRoot(ctx, in, root); err != nil {
			return CAResult{}, err
		}
	}
	if in.Rotation {
		if err := s.holdDefault(ctx, in.Mode, &out, in.Mount); err != nil {
			return CAResult{}, err
		}
	}
	if root.issuer == nil {
		out.Changed(procedure.Create, "vault issuer "+in.Mount+"/"+name, fmt.Sprintf("CN=%s for %s", in.CA.CommonName, in.CA.TTL))
		if !in.Mode.Writes() {
			path, data := generateRoot(in, root.keyID)
			out.By(in.Mode, s.data("write", path, data))
			return CAResult{Outcome: out, Authority: procedure.Authority{Name: name}, PrintedBy: s.certificate(in.Mount, name)}, nil
		}
		if err := s.roomFor(ctx, in.Mount, in.CA.TTL); err != nil {
			return CAResult{}, err
		}
		path, data := generateRoot(in, root.keyID)
		if err := s.write(ctx, path, data, nil); err != nil {
			return CAResult{}, err
		}
		if root, err = s.authority(ctx, in.Mount, name, rootPrefix, in.CA); err != nil {
			return CAResult{}, err
		}
		if root.issuer == nil {
			return CAResult{}, failure.Transient(failure.Unavailable, "Vault %q: the root %s was generated in %s and is not listed yet", in.Vault, name, in.Mount)
		}
	}
	var wrong []string
	if !root.adopted {
		wrong = lifetimeOf(root.issuer.certificate, in.CA.TTL)
	}
	if !pki.SelfSigned(root.issuer.certificate) {
		wrong = append(wrong, "it is not self-signed")
	}
	if len(wrong) > 0 {
		return CAResult{}, failure.Permanent(failure.Mismatch, "Vault %q: the root %s/%s is not what was asked for: %s. If nothing relies on it yet, delete the issuer (`vault delete %s/issuer/%s`) and start again; else correct pki.root in the input",
			in.Vault, in.Mount, *root.issuer, strings.Join(wrong, "; "), in.Mount, root.issuer.ID)
	}
	if err := s.settleIssuer(ctx, in.Mode, &out, in.Mount, *root.issuer, map[string]any{"issuer_name": name}); err != nil {
		return CAResult{}, err
	}
	root.issuer.Name = name
	if in.Rotation {
		return caResult(out, *root.issuer), nil
	}
	if err := s.settleDefault(ctx, in.Mode, &out, in.Mount, rootPrefix, *root.issuer, root.all); err != nil {
		return CAResult{}, err
	}
	return caResult(out, *root.issuer), nil
}

// maxCommonName is how long a common name may be in a certificate (RFC 5280, A.1).
const maxCommonName = 64

// roomForRoot is an error if there is no place for another root.
func (s session) roomForRoot(ctx context.Context, in GenerateRootInput, found authority) error {
	if n := len(in.CA.CommonName); n > maxCommonName {
		return failure.Permanent(failure.Preflight, "Vault %q: the new root's common name %q is %d characters long; at most %d fit in a certificate, and each generation has a name of its own. Ask for a shorter one (relaypki rotate root MESH --common-name)",
			in.Vault, in.CA.CommonName, n, maxCommonName)
	}
	for _, i := range found.all {
		if i.certificate.Subject.CommonName == in.CA.CommonName {
			return failure.Permanent(failure.Preflight, "Vault %q, mount %s: the CA %s has the new root's common name already, and by its name alone a server says which root it trusts. Ask for another one (relaypki rotate root MESH --common-name)",
				in.Vault, in.Mount, i)
		}
	}
	if in.tuned {
		return nil
	}
	return s.roomFor(ctx, in.Mount, in.CA.TTL)
}

// generateRoot is the request that makes the root with a new key, or with the one
// of that name if Vault was interrupted between writing the key and the issuer. One
// that is made beside another has a path of its own, which a policy can allow.
func generateRoot(in GenerateRootInput, keyID string) (path string, data map[string]any) {
	data = map[string]any{
		"common_name": in.CA.CommonName,
		"ttl":         fmt.Sprintf("%ds", seconds(in.CA.TTL)),
		"issuer_name": RootName(in.Generation),
	}
	path = in.Mount + "/root/generate/"
	if in.Rotation {
		path = in.Mount + "/root/rotate/"
	}
	if in.CA.Organization != "" {
		data["organization"] = in.CA.Organization
	}
	if keyID != "" {
		data["key_ref"] = keyID
		return path + "existing", data
	}
	data["key_name"] = RootName(in.Generation)
	data["key_type"] = in.CA.KeyType
	data["key_bits"] = in.CA.KeyBits
	return path + "internal", data
}
