package vault

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/activity"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/shell"
	"github.com/relaypki/relaypki/internal/site"
)

// bridgeLasts is how long a bridge has to last beyond the longest leaf: for as long
// as a rotation may take from one phase to the next, with people who approve each.
const bridgeLasts = 7 * 24 * time.Hour

// BridgeRoot has the old root sign the new one's key, and brings new root and bridge
// into the relay mount beside the old root, without keys. The bridge ends with the
// old root. One that an interrupted run has had signed, or imported, is found again.
// An old root that cannot be bridged is a Preflight error, also in a look ahead at a
// new one that is still to be made. Unbridged, nothing of the old root is asked. Of a
// root that is kept outside Vault, what people have signed is brought in.
func (a *Activities) BridgeRoot(ctx context.Context, in BridgeInput) (CAResult, error) {
	s, err := a.sessionFor(ctx, in.Mode, in.Spec.Vault.Name, site.Operate)
	if err != nil {
		return CAResult{}, err
	}
	if in.Spec.PKI.Root.Offline() {
		return s.signedOutside(ctx, in)
	}
	relay := in.Spec.Vault.RelayMount
	b := bridging{in: in}
	if !in.Unbridged {
		if b.old, err = s.rootAt(ctx, in.Spec.Vault.RootMount, in.OldRoot); err != nil {
			return CAResult{}, err
		}
	}
	if in.NewRoot.CertificatePEM != "" || in.Mode.Writes() {
		if b.root, err = s.rootAt(ctx, in.Spec.Vault.RootMount, in.NewRoot); err != nil {
			return CAResult{}, err
		}
	}
	var out procedure.Outcome
	var bridge *x509.Certificate
	if !in.Unbridged {
		all, err := s.issuers(ctx, relay)
		if err != nil {
			return CAResult{}, err
		}
		// Without it ca.crt is not the old root, and there is nothing to bridge from.
		if withCertificate(all, b.old.certificate) == nil {
			return CAResult{}, s.rootMissing(relay, b.old.certificate)
		}
		if bridge, err = s.bridge(ctx, b, all, &out); err != nil {
			return CAResult{}, err
		}
	}
	if err := s.holdDefault(ctx, in.Mode, &out, relay); err != nil {
		return CAResult{}, err
	}
	root := `"$(` + s.certificate(in.Spec.Vault.RootMount, RootName(in.Generation)) + `)"`
	name := RootName(in.Generation)
	imported, err := s.importCA(ctx, in.Mode, &out, relay, name, b.root.certificate, root)
	if err == nil && !in.Unbridged {
		name = BridgeName(in.Generation)
		imported, err = s.importCA(ctx, in.Mode, &out, relay, name, bridge, `"$bridge"`)
	}
	if err != nil {
		return CAResult{}, err
	}
	if imported == nil {
		return CAResult{Outcome: out, Authority: procedure.Authority{Name: name}}, nil
	}
	return caResult(out, *imported), nil
}

// signedOutside brings a root that is kept outside Vault, and the bridge to it, into
// the relay mount. The old root, which has to be there, gets its name, if whoever
// imported it gave it none or another.
func (s session) signedOutside(ctx context.Context, in BridgeInput) (CAResult, error) {
	relay := in.Spec.Vault.RelayMount
	unreadable := func(what string, err error) error {
		return failure.Permanent(failure.InvalidInput, "Vault %q: %s, which was signed outside, cannot be read: %v. Start the procedure again", s.vault, what, err)
	}
	cas := []struct {
		what, name, text, source string
		certificate              *x509.Certificate
	}{
		{"the old root", in.OldRoot.Authority.Name, in.OldRoot.CertificatePEM, "", nil},
		{"the new root", RootName(in.Generation), in.NewRoot.CertificatePEM, `"$root"`, nil},
		{"the bridge", BridgeName(in.Generation), in.BridgePEM, `"$bridge"`, nil},
	}
	for i := range cas {
		if cas[i].text == "" && !in.Mode.Writes() {
			continue
		}
		chain, err := pki.ParseChain([]byte(cas[i].text))
		if err != nil {
			return CAResult{}, unreadable(cas[i].what, err)
		}
		cas[i].certificate = chain[0]
	}
	old, root, bridge := cas[0].certificate, cas[1].certificate, cas[2].certificate
	if old == nil {
		return CAResult{}, unreadable(cas[0].what, fmt.Errorf("it is missing"))
	}
	if root != nil && bridge != nil {
		if err := pki.CheckBridge(bridge, old, root); err != nil {
			return CAResult{}, failure.Permanent(failure.Mismatch, "Vault %q: the bridge that was signed outside is none between these roots: %v. Nothing was imported", s.vault, err)
		}
	}
	all, err := s.issuers(ctx, relay)
	if err != nil {
		return CAResult{}, err
	}
	// Without it ca.crt is not the old root, and there is nothing to bridge from.
	if withCertificate(all, old) == nil {
		return CAResult{}, s.rootMissing(relay, old)
	}
	var out procedure.Outcome
	if err := s.holdDefault(ctx, in.Mode, &out, relay); err != nil {
		return CAResult{}, err
	}
	var imported *issuer
	for _, ca := range cas {
		if imported, err = s.importCA(ctx, in.Mode, &out, relay, ca.name, ca.certificate, ca.source); err != nil {
			return CAResult{}, err
		}
	}
	if imported == nil {
		return CAResult{Outcome: out, Authority: procedure.Authority{Name: BridgeName(in.Generation)}}, nil
	}
	return caResult(out, *imported), nil
}

// bridging is what a bridge is between, as it is in the root mount. In a look ahead
// the new root may have no certificate yet.
type bridging struct {
	in        BridgeInput
	old, root issuer
}

// rootAt is a root in the root mount, which has to be the one that is meant.
func (s session) rootAt(ctx context.Context, mount string, meant CAResult) (issuer, error) {
	i, err := s.issuerAt(ctx, mount, meant.Authority.IssuerID)
	if err != nil {
		return i, err
	}
	chain, err := pki.ParseChain([]byte(meant.CertificatePEM))
	if err != nil {
		return i, failure.Permanent(failure.InvalidInput, "Vault %q: the certificate of the root %s/issuer/%s cannot be read: %v. Start the procedure again", s.vault, mount, i.ID, err)
	}
	if !chain[0].Equal(i.certificate) {
		return i, failure.Permanent(failure.Mismatch, "Vault %q: the root %s/issuer/%s is %s, and the one that is meant is %s. Start the procedure again", s.vault, mount, i.ID, pki.Name(i.certificate), pki.Name(chain[0]))
	}
	return i, nil
}

// bridge finds the bridge, in the relay mount or among what the old root has signed,
// or has it signed. In a look ahead it may be nil.
func (s session) bridge(ctx context.Context, b bridging, relay []issuer, out *procedure.Outcome) (*x509.Certificate, error) {
	if b.root.certificate != nil {
		for _, i := range relay {
			if b.fits(i.certificate) {
				return i.certificate, nil
			}
		}
		signed, err := s.signedBefore(ctx, b.in.Spec.Vault.RootMount, b.fits)
		if err != nil || signed != nil {
			return signed, err
		}
	}
	if err := s.mayBridge(b); err != nil {
		return nil, err
	}
	mount := b.in.Spec.Vault.RootMount
	ends := b.old.certificate.NotAfter
	out.Changed(procedure.Create, "vault certificate "+mount+"/"+BridgeName(b.in.Generation), fmt.Sprintf("the key of %s, signed by %s; until %s", RootName(b.in.Generation), b.old.certificate.Subject, pki.Date(ends)))
	request := b.request()
	path := mount + "/issuer/" + b.old.ID + "/sign-intermediate"
	fields := map[string]any{
		// Else Vault drops the organization.
		"use_csr_values": true,
		"format":         "pem",
		// As a date it needs no clock, and no longest lease of the mount cuts it.
		"not_after":                       ends.UTC().Format(time.RFC3339),
		"enforce_leaf_not_after_behavior": true,
	}
	if !b.in.Mode.Writes() {
		out.By(b.in.Mode,
			assign("csr", s.data("write -field=csr", mount+"/intermediate/cross-sign", request)),
			assign("bridge", s.command("write", "-field=certificate", path, "use_csr_values=true", "format=pem", fmt.Sprintf("not_after=%s", fields["not_after"]), "enforce_leaf_not_after_behavior=true")+` csr="$csr"`))
		return nil, nil
	}
	csr, err := s.crossCSR(ctx, mount, request, b.root)
	if err != nil {
		return nil, err
	}
	fields["csr"] = csr
	var answer struct {
		Certificate string `json:"certificate"`
	}
	if err := s.write(ctx, path, fields, &answer); err != nil {
		return nil, err
	}
	chain, err := pki.ParseChain([]byte(answer.Certificate))
	if err != nil {
		return nil, failure.Permanent(failure.Mismatch, "Vault %q: %s answered without a certificate that can be read: %v", s.vault, path, err)
	}
	if err := pki.CheckBridge(chain[0], b.old.certificate, b.root.certificate); err != nil {
		return nil, failure.Permanent(failure.Mismatch, "Vault %q: the bridge that %s answered is not what was asked for: %v. Nothing uses it; see what this Vault makes of a CSR", s.vault, path, err)
	}
	return chain[0], nil
}

// fits says that a certificate is the bridge, and has not ended.
func (b bridging) fits(c *x509.Certificate) bool {
	return pki.CheckBridge(c, b.old.certificate, b.root.certificate) == nil && time.Now().Before(c.NotAfter)
}

// request is what makes the CSR of the new root's key and name.
func (b bridging) request() map[string]any {
	asked := rootOf(b.in.Spec.PKI.Root.CA, b.in.Generation)
	request := map[string]any{"common_name": asked.CommonName, "key_ref": RootName(b.in.Generation)}
	organization := asked.Organization
	if c := b.root.certificate; c != nil {
		request["common_name"], request["key_ref"] = c.Subject.CommonName, b.root.KeyID
		organization = strings.Join(c.Subject.Organization, ",")
	}
	if organization != "" {
		request["organization"] = organization
	}
	return request
}

// mayBridge is an error if the old root cannot sign a bridge, or the new root's key
// is not at hand.
func (s session) mayBridge(b bridging) error {
	mount := b.in.Spec.Vault.RootMount
	life := b.in.Spec.Certificates.LongestLife() + bridgeLasts
	if err := pki.MayBridge(b.old.certificate, life, time.Now()); err != nil {
		return failure.Permanent(failure.Preflight, "Vault %q, mount %s: the root cannot vouch for a new one: %v. A rotation over a bridge is not possible. What is: put the new root into every trust by hand, and then issue everything anew under it; or, if some handshakes may fail meanwhile, EmergencyReissue", s.vault, mount, err)
	}
	if why := b.old.cannotSign(); why != "" {
		return failure.Permanent(failure.Preflight, "Vault %q, mount %s: the root %s cannot sign the bridge, because %s. Have it issue again first (vault patch %s/issuer/%s usage=%s), if its key is still there",
			s.vault, mount, b.old, why, mount, b.old.ID, strings.Join(b.old.usage(true), ","))
	}
	if b.root.certificate != nil && b.root.KeyID == "" {
		return failure.Permanent(failure.Preflight, "Vault %q, mount %s: the key of the new root %s is not in this mount, so no CSR of it can be made. Roll the rotation back and begin another", s.vault, mount, b.root)
	}
	return nil
}

// crossCSR makes the CSR of a root's key. Its subject has to be the root's, byte for
// byte: by those bytes chains are built.
func (s session) crossCSR(ctx context.Context, mount string, request map[string]any, root issuer) (string, error) {
	path := mount + "/intermediate/cross-sign"
	var answer struct {
		CSR string `json:"csr"`
	}
	if err := s.write(ctx, path, request, &answer); err != nil {
		return "", err
	}
	csr, err := parseCSR(answer.CSR)
	switch {
	case err != nil:
		return "", failure.Permanent(failure.Mismatch, "Vault %q: %s answered without a CSR that can be read: %v", s.vault, path, err)
	case !bytes.Equal(csr.RawSubject, root.certificate.RawSubject):
		return "", failure.Permanent(failure.Mismatch, "Vault %q, mount %s: the root %s cannot be bridged to: of its subject more is needed than a common name and an organization, and Vault's CSR says %q. Nothing was signed; begin with a root that has no more (relaypki rotate root MESH)",
			s.vault, mount, root, csr.Subject)
	}
	return strings.TrimSpace(answer.CSR) + "\n", nil
}

// importCA brings a CA certificate into a mount, without its key, and gives it its
// name; source is what a shell has it by if it is still to be made. It is nil if it
// would be imported.
func (s session) importCA(ctx context.Context, mode procedure.Mode, out *procedure.Outcome, mount, name string, c *x509.Certificate, source string) (*issuer, error) {
	all, err := s.issuers(ctx, mount)
	if err != nil {
		return nil, err
	}
	var i *issuer
	if c != nil {
		i, source = withCertificate(all, c), shell.Quote(string(pki.EncodeChain(c)))
	}
	for _, other := range all {
		if other.Name == name && (i == nil || other.ID != i.ID) {
			return nil, failure.Permanent(failure.Conflict, "Vault %q, mount %s: the name %s is another CA's, %s. Give that one another name (vault patch %s/issuer/%s issuer_name=NAME), and start again",
				s.vault, mount, name, other, mount, other.ID)
		}
	}
	settings := map[string]any{"issuer_name": name}
	if i == nil {
		out.Changed(procedure.Create, "vault issuer "+mount+"/"+name, "the certificate, without its key")
		if !mode.Writes() {
			out.By(mode, s.imported(mount, "/issuers/import/cert", "pem_bundle="+source, settings)...)
			return nil, nil
		}
		if err := s.write(ctx, mount+"/issuers/import/cert", map[string]any{"pem_bundle": string(pki.EncodeChain(c))}, nil); err != nil {
			return nil, err
		}
		if all, err = s.issuers(ctx, mount); err != nil {
			return nil, err
		}
		if i = withCertificate(all, c); i == nil {
			return nil, failure.Transient(failure.Unavailable, "Vault %q: %s was imported into %s and is not listed yet", s.vault, name, mount)
		}
		if err := s.patch(ctx, mount+"/issuer/"+i.ID, settings); err != nil {
			return nil, err
		}
	} else if err := s.settleIssuer(ctx, mode, out, mount, *i, settings); err != nil {
		return nil, err
	}
	i.Name = name
	return i, nil
}

// SetChainResult says how often it was tried: what a try that was cut off has asked
// of Vault may still happen.
type SetChainResult struct {
	procedure.Outcome
	Tries int32 `json:"tries"`
}

// SetChain has Vault return another chain above an intermediate from now on: all of
// it in one write, in that order. A certificate that is not in the relay mount is a
// Preflight error, and one that has not signed the one below it is a Conflict.
func (a *Activities) SetChain(ctx context.Context, in SetChainInput) (SetChainResult, error) {
	out := SetChainResult{Tries: 1}
	if activity.IsActivity(ctx) {
		out.Tries = activity.GetInfo(ctx).Attempt
	}
	s, err := a.sessionFor(ctx, in.Mode, in.Spec.Vault.Name, site.Operate)
	if err != nil {
		return out, err
	}
	mount := in.Spec.Vault.RelayMount
	i, err := s.issuerAt(ctx, mount, in.IssuerID)
	if err != nil && (in.Mode.Writes() || in.IssuerID == "" || failure.KindOf(err) != failure.Preflight) {
		return out, err
	}
	planned := err != nil
	if planned {
		i.ID = in.IssuerID
	}
	all, err := s.issuers(ctx, mount)
	if err != nil {
		return out, err
	}
	above, err := s.above(ctx, in.Spec.RootMount(), mount, all, in.AbovePEM, in.Mode)
	if err != nil {
		return out, err
	}
	if !planned {
		if err := s.inLine(mount, i, all, above); err != nil {
			return out, err
		}
	}
	chain := append([]string{i.ID}, above...)
	if slices.Equal(chain, i.ManualChain) {
		return out, nil
	}
	path := mount + "/issuer/" + i.ID
	out.Changed(procedure.Update, "vault issuer "+path, "manual_chain is to be "+named(all, chain))
	if !in.Mode.Writes() {
		out.By(in.Mode, s.command("patch", path, "manual_chain="+strings.Join(chain, ",")))
		return out, nil
	}
	return out, s.patch(ctx, path, map[string]any{"manual_chain": chain})
}

// named is a chain in names, where there are any.
func named(all []issuer, chain []string) string {
	names := slices.Clone(chain)
	for n, id := range chain {
		for _, i := range all {
			if i.ID == id && i.Name != "" {
				names[n] = i.Name
			}
		}
	}
	return strings.Join(names, ", ")
}

// above are the ids of the certificates of a chain, or, in a look ahead, the names
// of those that are still to be made.
func (s session) above(ctx context.Context, rootMount, mount string, all []issuer, certificates []string, mode procedure.Mode) ([]string, error) {
	var ids []string
	for _, text := range certificates {
		// A name, which nothing in PEM can be taken for.
		if !mode.Writes() && generationOf(rootPrefix, text)+generationOf(bridgePrefix, text) > 0 {
			ids = append(ids, text)
			continue
		}
		chain, err := pki.ParseChain([]byte(text))
		if err != nil {
			return nil, failure.Permanent(failure.InvalidInput, "Vault %q: a certificate of the chain cannot be read: %v. Start the procedure again", s.vault, err)
		}
		ref, err := s.reference(ctx, rootMount, all, chain[0], mode)
		if err != nil {
			return nil, err
		}
		if ref == "" {
			return nil, failure.Permanent(failure.Preflight, "Vault %q: the certificate %s is not in the mount %s, so that it can be in no chain there. Start the procedure again: it brings in what is missing", s.vault, pki.Name(chain[0]), mount)
		}
		ids = append(ids, ref)
	}
	return ids, nil
}

// reference is the id of a certificate's issuer. A new root that is not there yet has
// in a look ahead the name that it has in the root mount.
func (s session) reference(ctx context.Context, rootMount string, all []issuer, c *x509.Certificate, mode procedure.Mode) (string, error) {
	if i := withCertificate(all, c); i != nil {
		return i.ID, nil
	}
	if mode.Writes() || rootMount == "" {
		return "", nil
	}
	roots, err := s.issuers(ctx, rootMount)
	if err != nil {
		return "", err
	}
	if i := withCertificate(roots, c); i != nil {
		return i.Name, nil
	}
	return "", nil
}

// inLine is a Conflict if an intermediate would get a chain in which one has not
// signed the one below it, as far as they are there: nothing that it issued could be
// used.
func (s session) inLine(mount string, below issuer, all []issuer, above []string) error {
	line := []*x509.Certificate{below.certificate}
	for _, id := range above {
		for _, i := range all {
			if i.ID == id {
				line = append(line, i.certificate)
			}
		}
	}
	if len(line) <= len(above) {
		return nil // not all of it is there yet
	}
	if err := pki.Linear(line); err != nil {
		return failure.Permanent(failure.Conflict, "Vault %q, mount %s: the issuer %s does not get this chain: %v. Nothing was changed", s.vault, mount, below, err)
	}
	return nil
}
