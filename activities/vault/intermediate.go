package vault

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// identity is the worker's in Vault: the one that sets up may do more than a
// rotation needs.
func (in IntermediateInput) identity() site.Identity {
	if in.Rotation {
		return site.Operate
	}
	return site.Onboard
}

// IntermediateCommonName is the common name of an intermediate of that generation that
// is made in an emergency, where one was asked for by that name: whoever trusts the
// intermediate itself has to tell it from the one that is compromised. One that would be
// too long for a certificate is cut, since an emergency is no time to ask for another.
func IntermediateCommonName(asked string, generation int) string {
	if asked == "" || generation < 2 {
		return asked
	}
	suffix := fmt.Sprintf(" G%d", generation)
	for len(asked)+len(suffix) > maxCommonName {
		_, last := utf8.DecodeLastRuneInString(asked)
		asked = asked[:len(asked)-last]
	}
	return asked + suffix
}

// intermediateAs is the CA that was asked for, with the common name of an emergency if
// it was made in one: either is what was asked for.
func intermediateAs(c *x509.Certificate, asked mesh.CA, generation int) mesh.CA {
	if own := IntermediateCommonName(asked.CommonName, generation); c.Subject.CommonName == own {
		asked.CommonName = own
	}
	return asked
}

// rootAhead says that the root is still to be made: in a look ahead at a rotation of
// the root, or by people, who make it when there is a CSR for it to sign.
func (in IntermediateInput) rootAhead() bool {
	return in.RootPEM == "" && (!in.Mode.Writes() || in.RootMount == "")
}

// GenerateIntermediateCSR finds or makes the intermediate's key and makes its
// CSR. A key that an interrupted run has left is used again, so that there is
// never a second one. In a rotation the root is looked at first: a key that it
// cannot vouch for would be in the way of the next one.
func (a *Activities) GenerateIntermediateCSR(ctx context.Context, in IntermediateInput) (CSRResult, error) {
	s, err := a.sessionFor(ctx, in.Mode, in.Vault, in.identity())
	if err != nil {
		return CSRResult{}, err
	}
	name := IntermediateName(in.Generation)
	found, err := s.authority(ctx, in.RelayMount, name, intermediatePrefix, in.CA)
	if err != nil {
		return CSRResult{}, err
	}
	if found.issuer != nil {
		return CSRResult{Present: true}, nil
	}
	if in.Rotation && !in.rootAhead() {
		if err := s.rootMayIssue(ctx, in, found); err != nil {
			return CSRResult{}, err
		}
	}
	var out procedure.Outcome
	// The subject is taken from the CSR when it is signed.
	data := map[string]any{"common_name": in.CA.CommonName}
	if in.CA.Organization != "" {
		data["organization"] = in.CA.Organization
	}
	path := in.RelayMount + "/intermediate/generate/existing"
	if found.keyID != "" {
		data["key_ref"] = found.keyID
	} else {
		path = in.RelayMount + "/intermediate/generate/internal"
		data["key_name"], data["key_type"], data["key_bits"] = name, in.CA.KeyType, in.CA.KeyBits
		out.Changed(procedure.Create, "vault key "+in.RelayMount+"/"+name, fmt.Sprintf("%s %d", in.CA.KeyType, in.CA.KeyBits))
	}
	if !in.Mode.Writes() {
		if found.keyID != "" {
			out.Changed(procedure.Create, "vault CSR of "+in.RelayMount+"/"+name, "with the key that is there")
		}
		out.By(in.Mode, assign("csr", s.data("write -field=csr", path, data)))
		return CSRResult{Outcome: out}, nil
	}
	var answer struct {
		CSR string `json:"csr"`
	}
	if err := s.write(ctx, path, data, &answer); err != nil {
		return CSRResult{}, err
	}
	if _, err := parseCSR(answer.CSR); err != nil {
		return CSRResult{}, failure.Permanent(failure.Mismatch, "Vault %q: %s answered without a CSR that can be read: %v", in.Vault, path, err)
	}
	return CSRResult{Outcome: out, CSRPEM: strings.TrimSpace(answer.CSR) + "\n"}, nil
}

// rootMayIssue is an error if the root cannot vouch for the new intermediate and
// what it will issue, or is not the one that ca.crt leads to.
func (s session) rootMayIssue(ctx context.Context, in IntermediateInput, found authority) error {
	root, err := s.rootCertificate(ctx, in)
	if err != nil {
		return err
	}
	life := in.CA.TTL.Duration
	if in.RootMount == "" {
		life = 0 // whoever keeps the root decides how long
	}
	if err := pki.MayIssue(root, life, time.Now()); err != nil {
		return failure.Permanent(failure.Preflight, "Vault %q: the root cannot sign a new intermediate: %v. Rotate the root first; or, if its life alone is too short, ask for a shorter one (relaypki rotate intermediate MESH --ttl DURATION)", in.Vault, err)
	}
	// In a look ahead the new root may still have to be brought there.
	if withCertificate(found.all, root) == nil && (in.Mode.Writes() || len(in.AbovePEM) == 0) {
		return s.rootMissing(in.RelayMount, root)
	}
	if in.RootIssuerID == "" {
		return nil
	}
	return s.roomFor(ctx, in.RootMount, in.CA.TTL)
}

// rootMissing is for a relay mount without the root: what was issued there so far
// leads to the intermediate alone, so that a new one would not be trusted.
func (s session) rootMissing(mount string, root *x509.Certificate) error {
	return failure.Permanent(failure.Preflight, "Vault %q: the root %s is not in the mount %s, so ca.crt is not the root, and members that trust it would refuse another intermediate. Run the setup (relaypki setup -f mesh.yaml), which imports it, have every certificate issued anew, and then start this procedure",
		s.vault, pki.Name(root), mount)
}

// SignIntermediate has the root sign the CSR, once: a certificate that it has
// signed for that key before is found again.
func (a *Activities) SignIntermediate(ctx context.Context, in IntermediateInput) (SignedResult, error) {
	s, err := a.sessionFor(ctx, in.Mode, in.Vault, in.identity())
	if err != nil {
		return SignedResult{}, err
	}
	found, err := s.authority(ctx, in.RelayMount, IntermediateName(in.Generation), intermediatePrefix, in.CA)
	if err != nil || found.issuer != nil {
		return SignedResult{}, err
	}
	var out procedure.Outcome
	out.Changed(procedure.Create, "vault certificate "+in.RootMount+"/"+in.CA.CommonName, fmt.Sprintf("CA certificate for %s", in.CA.TTL))
	if in.CSRPEM == "" || in.RootIssuerID == "" {
		if !in.Mode.Writes() {
			out.By(in.Mode, assign("certificate", s.command("write", "-field=certificate", in.RootMount+"/issuer/"+in.rootRef()+"/sign-intermediate",
				"use_csr_values=true", "format=pem", fmt.Sprintf("ttl=%ds", seconds(in.CA.TTL)), "enforce_leaf_not_after_behavior=true")+` csr="$csr"`))
			return SignedResult{Outcome: out}, nil
		}
		return SignedResult{}, failure.Permanent(failure.InvalidInput, "Vault %q: nothing to sign with: the CSR or the root's issuer is missing. Start the procedure again", in.Vault)
	}
	csr, err := parseCSR(in.CSRPEM)
	if err != nil {
		return SignedResult{}, failure.Permanent(failure.InvalidInput, "Vault %q: the intermediate's CSR cannot be read: %v", in.Vault, err)
	}
	root, err := s.rootCertificate(ctx, in)
	if err != nil {
		return SignedResult{}, err
	}
	// Of this root, for this key, as asked for, and not expired.
	signed, err := s.signedBefore(ctx, in.RootMount, func(c *x509.Certificate) bool {
		return bytes.Equal(c.RawSubjectPublicKeyInfo, csr.RawSubjectPublicKeyInfo) && pki.SignedBy(c, root) == nil &&
			time.Now().Before(c.NotAfter) && len(identityOf(c, in.CA)) == 0 && len(lifetimeOf(c, in.CA.TTL)) == 0
	})
	if err != nil {
		return SignedResult{}, err
	}
	if signed != nil {
		return SignedResult{ChainPEM: string(pki.EncodeChain(signed, root))}, nil
	}
	if !in.Mode.Writes() {
		return SignedResult{Outcome: out}, nil
	}
	if err := s.roomFor(ctx, in.RootMount, in.CA.TTL); err != nil {
		return SignedResult{}, err
	}
	var answer struct {
		Certificate string `json:"certificate"`
	}
	path := in.RootMount + "/issuer/" + in.RootIssuerID + "/sign-intermediate"
	if err := s.write(ctx, path, map[string]any{
		"csr": in.CSRPEM,
		// Without it Vault drops the organization.
		"use_csr_values": true,
		"format":         "pem_bundle",
		"ttl":            fmt.Sprintf("%ds", seconds(in.CA.TTL)),
		// Else Vault cuts a life that would outlast the root's (since 1.17).
		"enforce_leaf_not_after_behavior": true,
	}, &answer); err != nil {
		return SignedResult{}, err
	}
	chain, err := pki.ParseChain([]byte(answer.Certificate))
	if err != nil {
		return SignedResult{}, failure.Permanent(failure.Mismatch, "Vault %q: %s answered without a certificate that can be read: %v", in.Vault, path, err)
	}
	if err := s.asAsked(in, chain[0], root, false); err != nil {
		return SignedResult{}, err
	}
	return SignedResult{Outcome: out, ChainPEM: string(pki.EncodeChain(chain[0], root))}, nil
}

// SetSignedIntermediate imports the chain up to the self-signed root, so that
// the root becomes ca.crt everywhere, names the issuer, gives it its chain and
// checks what was issued. In a setup it becomes the mount's default; in a
// rotation the default stays what it is, and nothing uses the new one yet.
func (a *Activities) SetSignedIntermediate(ctx context.Context, in IntermediateInput) (CAResult, error) {
	s, err := a.sessionFor(ctx, in.Mode, in.Vault, in.identity())
	if err != nil {
		return CAResult{}, err
	}
	name := IntermediateName(in.Generation)
	object := "vault issuer " + in.RelayMount + "/" + name
	found, err := s.authority(ctx, in.RelayMount, name, intermediatePrefix, in.CA)
	if err != nil {
		return CAResult{}, err
	}
	above, err := s.above(ctx, in.RootMount, in.RelayMount, found.all, in.AbovePEM, in.Mode)
	if err != nil {
		return CAResult{}, err
	}
	var out procedure.Outcome
	if in.Rotation {
		if err := s.holdDefault(ctx, in.Mode, &out, in.RelayMount); err != nil {
			return CAResult{}, err
		}
	}
	if found.issuer == nil {
		out.Changed(procedure.Create, object, fmt.Sprintf("CN=%s for %s", in.CA.CommonName, in.CA.TTL))
		if !in.Mode.Writes() {
			out.By(in.Mode, s.imported(in.RelayMount, "/intermediate/set-signed", `certificate="$certificate"`,
				map[string]any{"issuer_name": name, "leaf_not_after_behavior": "err"})...)
			if in.Rotation {
				err := s.chainByHand(ctx, in, &out, found, above)
				return CAResult{Outcome: out, Authority: procedure.Authority{Name: name}, PrintedBy: s.certificate(in.RelayMount, name)}, err
			}
			out.Changed(procedure.Create, "vault issuer "+in.RelayMount+"/"+RootName(in.Generation), "the root's certificate, without its key")
			out.By(in.Mode, s.rootCommands(in)...)
			return CAResult{Outcome: out, Authority: procedure.Authority{Name: name}}, nil
		}
		if in.ChainPEM == "" {
			return CAResult{}, failure.Permanent(failure.InvalidInput, "Vault %q: the intermediate %s is not in %s and no signed chain was given. Start the procedure again", in.Vault, name, in.RelayMount)
		}
		if err := s.write(ctx, in.RelayMount+"/intermediate/set-signed", map[string]any{"certificate": in.ChainPEM}, nil); err != nil {
			return CAResult{}, err
		}
		// Which of the imported ones is ours is told by the key, not by their order.
		if found, err = s.authority(ctx, in.RelayMount, name, intermediatePrefix, in.CA); err != nil {
			return CAResult{}, err
		}
		if found.issuer == nil {
			return CAResult{}, failure.Permanent(failure.Mismatch, "Vault %q: after the import no issuer of %s has the key %s: the signed certificate is for another key", in.Vault, in.RelayMount, name)
		}
	}
	if in.RootIssuerID == "" && in.RootMount != "" && !in.Rotation && !in.Mode.Writes() {
		// The root is still to be made, so there is nothing to compare with.
		return caResult(out, *found.issuer), nil
	}
	root, err := s.rootCertificate(ctx, in)
	if err != nil {
		return CAResult{}, err
	}
	if err := s.asAsked(in, found.issuer.certificate, root, found.adopted); err != nil {
		return CAResult{}, err
	}
	imported, err := s.importedRoot(ctx, in, &out, &found, root)
	if err != nil {
		return CAResult{}, err
	}
	settings := map[string]any{"issuer_name": name, "leaf_not_after_behavior": "err"}
	if imported != nil {
		settings["manual_chain"] = []string{found.issuer.ID, imported.ID}
		if len(above) > 0 {
			if err := s.inLine(in.RelayMount, *found.issuer, found.all, above); err != nil {
				return CAResult{}, err
			}
			settings["manual_chain"] = append([]string{found.issuer.ID}, above...)
		}
		// A rotation leaves the root the name that it has.
		if imported.Name == "" && !in.Rotation {
			if err := s.settleIssuer(ctx, in.Mode, &out, in.RelayMount, *imported, map[string]any{"issuer_name": RootName(in.Generation)}); err != nil {
				return CAResult{}, err
			}
		}
	}
	if len(found.issuer.ManualChain) > 0 && found.issuer.Name == name && (!in.Rotation || len(above) > 0) {
		// A rotation steers the chain on purpose; neither a setup that is run again
		// undoes that, nor a rotation that goes on from where it was.
		delete(settings, "manual_chain")
	}
	// All in one write, so that there is no moment with a name and no chain.
	if err := s.settleIssuer(ctx, in.Mode, &out, in.RelayMount, *found.issuer, settings); err != nil {
		return CAResult{}, err
	}
	found.issuer.Name = name
	if in.Rotation {
		return caResult(out, *found.issuer), nil
	}
	if err := s.settleDefault(ctx, in.Mode, &out, in.RelayMount, intermediatePrefix, *found.issuer, found.all); err != nil {
		return CAResult{}, err
	}
	return caResult(out, *found.issuer), nil
}

// chainByHand says how the intermediate that is still to be made gets its chain.
func (s session) chainByHand(ctx context.Context, in IntermediateInput, out *procedure.Outcome, found authority, above []string) error {
	name := IntermediateName(in.Generation)
	chained := func(of string, above ...string) {
		out.Changed(procedure.Update, "vault issuer "+in.RelayMount+"/"+name, "manual_chain of "+of)
		out.By(in.Mode, s.command("patch", in.RelayMount+"/issuer/"+name, "manual_chain="+strings.Join(append([]string{name}, above...), ",")))
	}
	if len(above) > 0 {
		chained("itself and what is above it", above...)
		return nil
	}
	root, err := s.rootCertificate(ctx, in)
	if err != nil {
		return err
	}
	imported := withCertificate(found.all, root)
	if imported == nil {
		return s.rootMissing(in.RelayMount, root)
	}
	chained("itself and the root", imported.ID)
	return nil
}

// importedRoot is the root's certificate in the relay mount, without its key.
// It is imported if it is not there; nil if it would be.
func (s session) importedRoot(ctx context.Context, in IntermediateInput, out *procedure.Outcome, found *authority, root *x509.Certificate) (*issuer, error) {
	if i := withCertificate(found.all, root); i != nil {
		return i, nil
	}
	if in.Rotation {
		return nil, s.rootMissing(in.RelayMount, root)
	}
	out.Changed(procedure.Create, "vault issuer "+in.RelayMount+"/"+RootName(in.Generation), "the root's certificate, without its key")
	if !in.Mode.Writes() {
		out.By(in.Mode, s.rootCommands(in)...)
		return nil, nil
	}
	err := s.write(ctx, in.RelayMount+"/issuers/import/cert", map[string]any{"pem_bundle": string(pki.EncodeChain(root))}, nil)
	if err != nil {
		return nil, err
	}
	if found.all, err = s.issuers(ctx, in.RelayMount); err != nil {
		return nil, err
	}
	i := withCertificate(found.all, root)
	if i == nil {
		return nil, failure.Transient(failure.Unavailable, "Vault %q: the root was imported into %s and is not listed yet", in.Vault, in.RelayMount)
	}
	return i, nil
}

// rootCertificate is the signing root as it is in Vault, or, of one that is
// kept outside, as it was given. In a rotation it must be the one that was given,
// since members trust that one.
func (s session) rootCertificate(ctx context.Context, in IntermediateInput) (*x509.Certificate, error) {
	var given *x509.Certificate
	if in.Rotation || in.RootMount == "" {
		chain, err := pki.ParseChain([]byte(in.RootPEM))
		if err != nil {
			return nil, failure.Permanent(failure.InvalidInput, "Vault %q: the root of the intermediate cannot be read: %v. Start the procedure again", in.Vault, err)
		}
		if given = chain[0]; in.RootIssuerID == "" {
			return given, nil
		}
	}
	path := in.RootMount + "/issuer/" + in.RootIssuerID
	var i issuer
	found, err := s.read(ctx, path, &i)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, failure.Permanent(failure.Preflight, "Vault %q: the root %s is not there", in.Vault, path)
	}
	if err := s.parse(&i, path); err != nil {
		return nil, err
	}
	if given != nil && !given.Equal(i.certificate) {
		return nil, failure.Permanent(failure.Mismatch, "Vault %q: the root %s is %s, and the one that members trust is %s. Start the procedure again", in.Vault, path, pki.Name(i.certificate), pki.Name(given))
	}
	return i.certificate, nil
}

// signedBefore finds a certificate of a mount that an interrupted run has had
// signed: one that fits, and was not revoked.
func (s session) signedBefore(ctx context.Context, mount string, fits func(*x509.Certificate) bool) (*x509.Certificate, error) {
	serials, err := s.list(ctx, mount+"/certs", nil)
	if err != nil {
		return nil, err
	}
	for _, serial := range serials {
		var stored struct {
			PEM     string `json:"certificate"`
			Revoked int64  `json:"revocation_time"`
		}
		found, err := s.read(ctx, mount+"/cert/"+serial, &stored)
		if err != nil {
			return nil, err
		}
		chain, err := pki.ParseChain([]byte(stored.PEM))
		if !found || err != nil || stored.Revoked != 0 {
			continue
		}
		if fits(chain[0]) {
			return chain[0], nil
		}
	}
	return nil, nil
}

// asAsked is a Mismatch if the intermediate's certificate is not what was asked
// for, or the root does not vouch for it. One that was adopted need only be the
// root's.
func (s session) asAsked(in IntermediateInput, c, root *x509.Certificate, adopted bool) error {
	var wrong []string
	if !adopted {
		wrong = identityOf(c, intermediateAs(c, in.CA, in.Generation))
	}
	if !adopted && in.RootMount != "" { // else whoever keeps the root decides how long
		wrong = append(wrong, lifetimeOf(c, in.CA.TTL)...)
	}
	for _, err := range []error{pki.SignedBy(c, root), pki.Linear([]*x509.Certificate{c, root}), pki.Nested([]*x509.Certificate{c, root})} {
		if err != nil {
			wrong = append(wrong, err.Error())
			break
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return failure.Permanent(failure.Mismatch, "Vault %q: the intermediate %s signed by %s is not what was asked for: %s. Correct pki.intermediate in the input; or rotate to one like that (relaypki rotate intermediate MESH --ttl, --key-type); or, if nothing relies on this intermediate yet, delete its issuer and key in %s and start again",
		in.Vault, pki.Name(c), pki.Name(root), strings.Join(wrong, "; "), in.RelayMount)
}

func parseCSR(text string) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("it is not a CERTIFICATE REQUEST in PEM form")
	}
	return x509.ParseCertificateRequest(block.Bytes)
}
