package vault

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/shell"
	"github.com/relaypki/relaypki/internal/site"
)

// MoveRoleInput names a role, by whose it is, and the issuer it is to sign with.
type MoveRoleInput struct {
	Spec mesh.Spec `json:"spec"`
	// Workload is the registered name; empty for the management server's role and
	// the probe's.
	Workload string `json:"workload,omitempty"`
	// IssuerID is, in a look ahead at an issuer that is still to be made, its name.
	IssuerID string         `json:"issuerId"`
	Mode     procedure.Mode `json:"mode"`
}

// MoveRole has a role sign with the issuer from now on, and leaves all else of
// it as it is. A role that is not there yet, of a member that is just being
// added, is left to whoever adds it; with isolation "shared" a workload has none
// of its own. An issuer that may not issue is a Conflict: every renewal would
// fail.
func (a *Activities) MoveRole(ctx context.Context, in MoveRoleInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	s, err := a.sessionFor(ctx, in.Mode, in.Spec.Vault.Name, site.Operate)
	if err != nil {
		return out, err
	}
	if in.Workload != "" && in.Spec.PKI.Isolation == mesh.IsolationShared {
		out.Detail = "signs with the management server's role"
		return out, nil
	}
	mount := in.Spec.Vault.RelayMount
	i, err := s.issuerAt(ctx, mount, in.IssuerID)
	planned := err != nil && !in.Mode.Writes() && failure.KindOf(err) == failure.Preflight
	if err != nil && !planned {
		return out, err
	}
	if why := i.cannotSign(); why != "" && !planned {
		return out, failure.Permanent(failure.Conflict, "Vault %q, mount %s: no role is pointed at the issuer %s, because %s. Have it issue again first (vault patch %s/issuer/%s usage=%s), if its key is still there",
			s.vault, mount, i, why, mount, i.ID, strings.Join(i.usage(true), ","))
	}
	names := []string{signingRole(in.Spec, in.Workload)}
	if in.Workload == "" {
		names = append(names, in.Spec.ProbeRole())
	}
	for _, name := range names {
		if err := s.moveRole(ctx, in, mount+"/roles/"+name, i.ID, &out); err != nil {
			return out, err
		}
	}
	return out, nil
}

func (s session) moveRole(ctx context.Context, in MoveRoleInput, path, id string, out *procedure.Outcome) error {
	var have struct {
		Issuer string `json:"issuer_ref"`
	}
	found, err := s.read(ctx, path, &have)
	switch {
	case err != nil:
		return err
	case !found && in.Workload != "":
		out.Detail = "has no role yet: it gets one with this issuer when it is added"
		return nil
	case !found:
		return failure.Permanent(failure.Preflight, "Vault %q: there is no role %s. Run the setup (relaypki setup -f mesh.yaml), and then this procedure", s.vault, path)
	case id != "" && have.Issuer == id:
		return nil
	}
	out.Changed(procedure.Update, "vault role "+path, fmt.Sprintf("issuer_ref is %s, should be %s", have.Issuer, in.IssuerID))
	if !in.Mode.Writes() {
		if id != "" {
			out.By(in.Mode, s.command("patch", path, "issuer_ref="+id))
		} else {
			out.By(in.Mode, assign("issuer", s.command("read", "-field=issuer_id", in.Spec.Vault.RelayMount+"/issuer/"+in.IssuerID)),
				s.command("patch", path)+` issuer_ref="$issuer"`)
		}
		return nil
	}
	return s.patch(ctx, path, map[string]any{"issuer_ref": id})
}

// UseIssuerInput says whether an intermediate, or a root, may issue.
type UseIssuerInput struct {
	Spec mesh.Spec `json:"spec"` // without workloads
	// Root says that the issuer is a root, in the root mount.
	Root     bool   `json:"root,omitempty"`
	IssuerID string `json:"issuerId"`
	// Signs false leaves it what is needed to be read, and for its CRL.
	Signs bool `json:"signs"`
	// Default is the issuer that becomes the mount's default, if given. In a look
	// ahead at one that is still to be made it is its name.
	Default string `json:"default,omitempty"`
	// Anyway takes the usage also from an issuer that roles sign with, whose renewals
	// fail from then on: it is compromised.
	Anyway bool           `json:"anyway,omitempty"`
	Mode   procedure.Mode `json:"mode"`
}

// UseIssuer sets an intermediate's or a root's usage, and the mount's default issuer
// before that. One that a role signs with is not taken its usage from, which is a
// Conflict: that would stop renewals; unless it is to be taken anyway.
func (a *Activities) UseIssuer(ctx context.Context, in UseIssuerInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	s, err := a.sessionFor(ctx, in.Mode, in.Spec.Vault.Name, site.Operate)
	if err != nil {
		return out, err
	}
	relay, err := s.mountWith(ctx, in.Spec, in.Root)
	if err != nil {
		return out, err
	}
	i := relay.issuer(in.IssuerID)
	if in.IssuerID == "" || i == nil {
		return out, s.noIssuer(relay.mount, in.IssuerID)
	}
	// The default has to be able to issue, at every moment in between.
	if in.Signs {
		if err := s.setUsage(ctx, in, relay, i, &out); err != nil || in.Default == "" {
			return out, err
		}
		return out, s.setDefault(ctx, in, &relay, &out)
	}
	if in.Default != "" {
		if err := s.setDefault(ctx, in, &relay, &out); err != nil {
			return out, err
		}
	}
	return out, s.setUsage(ctx, in, relay, i, &out)
}

// mountWith is the mount that an intermediate, or a root, is in.
func (s session) mountWith(ctx context.Context, spec mesh.Spec, root bool) (caMount, error) {
	switch {
	case !root:
		return s.relayMount(ctx, spec.Vault.RelayMount)
	case spec.RootMount() == "":
		return caMount{}, failure.Permanent(failure.InvalidInput, "Vault %q: the root is kept outside Vault (pki.root.kept: %s), so there is nothing of it to change here", s.vault, mesh.KeptOffline)
	}
	return s.caMount(ctx, spec.RootMount())
}

// setUsage sets an issuer's usage, also in what was read of the mount.
func (s session) setUsage(ctx context.Context, in UseIssuerInput, relay caMount, i *issuer, out *procedure.Outcome) error {
	// In a plan the steps before have moved the roles.
	if users := relay.users(i.ID); !in.Signs && !in.Anyway && len(users) > 0 && in.Mode != procedure.Plan {
		return failure.Permanent(failure.Conflict, "Vault %q, mount %s: the issuer %s is not taken out of use: roles sign with it, %s, and nothing of theirs could be renewed. Point them at another issuer first",
			s.vault, relay.mount, i, strings.Join(users, ", "))
	}
	if in.Signs && i.KeyID == "" {
		return failure.Permanent(failure.Conflict, "Vault %q, mount %s: the issuer %s cannot issue again: its key is not in this mount any more", s.vault, relay.mount, i)
	}
	if i.KeyID == "" {
		return nil // it is there to be read, and issues nothing
	}
	want := i.usage(in.Signs)
	if slices.Equal(set(want), set(i.usages())) {
		return nil
	}
	path := relay.mount + "/issuer/" + i.ID
	out.Changed(procedure.Update, "vault issuer "+path, fmt.Sprintf("usage is %s, should be %s", i.Usage, strings.Join(want, ",")))
	i.Usage = strings.Join(want, ",")
	if !in.Mode.Writes() {
		out.By(in.Mode, s.command("patch", path, "usage="+i.Usage))
		return nil
	}
	return s.patch(ctx, path, map[string]any{"usage": want})
}

// setDefault makes an issuer that can issue the mount's default, also in what
// was read of the mount.
func (s session) setDefault(ctx context.Context, in UseIssuerInput, relay *caMount, out *procedure.Outcome) error {
	id := in.Default
	i := relay.issuer(id)
	switch {
	case i == nil && in.Mode.Writes():
		return s.noIssuer(relay.mount, id)
	case i != nil && i.cannotSign() != "":
		return failure.Permanent(failure.Conflict, "Vault %q, mount %s: the issuer %s does not become the default, because %s", s.vault, relay.mount, i, i.cannotSign())
	case i != nil:
		id = i.ID
	}
	relay.defaultID = id
	path := relay.mount + "/config/issuers"
	return s.ensure(ctx, in.Mode, out, "vault config "+path, path, map[string]any{"default": id, "default_follows_latest_issuer": false})
}

// DeleteKeyInput names an intermediate, or a root, whose key is to be deleted for good.
type DeleteKeyInput struct {
	Spec mesh.Spec `json:"spec"` // without workloads
	// Root says that it is a root, in the root mount.
	Root     bool   `json:"root,omitempty"`
	IssuerID string `json:"issuerId"`
	// Name and CertificatePEM are what stays of it: a call that was interrupted
	// cannot read them in Vault any more.
	Name           string         `json:"name"`
	CertificatePEM string         `json:"certificatePEM"`
	Mode           procedure.Mode `json:"mode"`
}

// DeleteKey deletes an intermediate's or a root's key; its certificate stays, to be
// read, under its name and another id. Of a root it is another one than that in the
// relay mount, where no chain changes. Vault deletes no key that an issuer has, so the
// issuer goes first, then the key, and then the certificate is imported again.
// One that may still issue, or that anything relies on, is a Conflict.
func (a *Activities) DeleteKey(ctx context.Context, in DeleteKeyInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	s, err := a.sessionFor(ctx, in.Mode, in.Spec.Vault.Name, site.Operate)
	if err != nil {
		return out, err
	}
	chain, err := pki.ParseChain([]byte(in.CertificatePEM))
	prefix := intermediatePrefix
	if in.Root {
		prefix = rootPrefix
	}
	if err != nil || generationOf(prefix, in.Name) == 0 {
		return out, failure.Permanent(failure.InvalidInput, "Vault %q: to delete the key of the issuer %s its name (%s<generation>) and its certificate must be given, because they stay. Start the procedure again", s.vault, in.IssuerID, prefix)
	}
	relay, err := s.mountWith(ctx, in.Spec, in.Root)
	if err != nil {
		return out, err
	}
	i := withCertificate(relay.all, chain[0])
	keyID := ""
	if i != nil && i.KeyID != "" {
		keyID = i.KeyID
		if err := s.dispensable(relay, in, *i); err != nil && in.Mode != procedure.Plan { // as for UseIssuer
			return out, err
		}
	} else if keyID, err = s.keyFor(ctx, relay.mount, chain[0]); err != nil {
		return out, err
	}
	if keyID == "" && i != nil {
		return out, s.settleIssuer(ctx, in.Mode, &out, relay.mount, *i, map[string]any{"issuer_name": in.Name, "usage": "read-only"})
	}
	return out, s.deleteKey(ctx, in, &out, relay.mount, i, keyID, chain[0])
}

// dispensable is a Conflict if the CA is at work, or something would
// miss it.
func (s session) dispensable(relay caMount, in DeleteKeyInput, i issuer) error {
	var why []string
	if i.ID != in.IssuerID {
		why = append(why, fmt.Sprintf("the one to be deleted has the id %s", in.IssuerID))
	}
	if i.cannotSign() == "" {
		why = append(why, "it may still issue")
	}
	if users := relay.users(i.ID); len(users) > 0 {
		why = append(why, "roles sign with it: "+strings.Join(users, ", "))
	}
	if i.ID == relay.defaultID {
		why = append(why, "it is the mount's default")
	}
	for _, other := range relay.all {
		if other.ID != i.ID && other.KeyID == i.KeyID {
			why = append(why, fmt.Sprintf("%s has the same key", other))
		}
		if other.ID != i.ID && slices.Contains(other.ManualChain, i.ID) {
			why = append(why, fmt.Sprintf("it is in the manual_chain of %s", other))
		}
	}
	if len(why) == 0 {
		return nil
	}
	return failure.Permanent(failure.Conflict, "Vault %q, mount %s: the key of %s is not deleted: %s", s.vault, relay.mount, i, strings.Join(why, "; "))
}

// keyFor is the id of the key that a certificate is for; empty if it is not in
// the mount.
func (s session) keyFor(ctx context.Context, mount string, c *x509.Certificate) (string, error) {
	keys, err := s.keyNames(ctx, mount)
	if err != nil {
		return "", err
	}
	for id := range keys {
		var key struct {
			SubjectKeyID string `json:"subject_key_id"`
		}
		if _, err := s.read(ctx, mount+"/key/"+id, &key); err != nil {
			return "", err
		}
		if key.SubjectKeyID != "" && key.SubjectKeyID == pki.Hex(c.SubjectKeyId) {
			return id, nil
		}
	}
	return "", nil
}

// deleteKey deletes the issuer, if it is there, and the key, if it is, and
// brings the certificate back.
func (s session) deleteKey(ctx context.Context, in DeleteKeyInput, out *procedure.Outcome, mount string, i *issuer, keyID string, c *x509.Certificate) error {
	settings := map[string]any{"issuer_name": in.Name, "usage": "read-only"}
	var paths, commands []string
	if i != nil {
		paths = append(paths, mount+"/issuer/"+i.ID)
	}
	if keyID != "" {
		out.Changed(procedure.Delete, "vault key "+mount+"/"+in.Name, "for good; the certificate comes back without it, to be read")
		paths = append(paths, mount+"/key/"+keyID)
	} else {
		out.Changed(procedure.Create, "vault issuer "+mount+"/"+in.Name, "the certificate alone; its key has been deleted")
	}
	certificate := string(pki.EncodeChain(c))
	if !in.Mode.Writes() {
		for _, path := range paths {
			commands = append(commands, s.command("delete", path))
		}
		out.By(in.Mode, append(commands, s.imported(mount, "/issuers/import/cert", shell.Quote("pem_bundle="+certificate), settings)...)...)
		return nil
	}
	for _, path := range paths {
		if _, err := s.client.Logical().DeleteWithContext(ctx, path); err != nil {
			return s.failed(err, "delete "+path)
		}
	}
	if err := s.write(ctx, mount+"/issuers/import/cert", map[string]any{"pem_bundle": certificate}, nil); err != nil {
		return err
	}
	all, err := s.issuers(ctx, mount)
	if err != nil {
		return err
	}
	back := withCertificate(all, c)
	if back == nil {
		return failure.Transient(failure.Unavailable, "Vault %q: the certificate of %s was imported into %s and is not listed yet", s.vault, in.Name, mount)
	}
	return s.patch(ctx, mount+"/issuer/"+back.ID, settings)
}

// TidyInput is for what Vault does by itself from then on.
type TidyInput struct {
	Spec mesh.Spec      `json:"spec"` // without workloads
	Mode procedure.Mode `json:"mode"`
}

var tidyCRL = map[string]any{"auto_rebuild": true, "expiry": mesh.CRLExpiry, "auto_rebuild_grace_period": mesh.CRLRebuiltBefore}

// What has ended 30 days ago is of no use even to whoever looks into an
// incident, and goes. Issuers and keys do not: deleting one is a step of its
// own that people approve.
var tidyAutomatically = map[string]any{
	"enabled":                               true,
	"interval_duration":                     int64(12 * 60 * 60),
	"safety_buffer":                         int64(30 * 24 * 60 * 60),
	"tidy_cert_store":                       true,
	"tidy_revoked_certs":                    true,
	"tidy_revoked_cert_issuer_associations": true,
	"tidy_expired_issuers":                  false,
}

// ConfigureTidy has the mounts rebuild their CRLs before they end, and tidy away
// what has expired.
func (a *Activities) ConfigureTidy(ctx context.Context, in TidyInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	s, err := a.sessionFor(ctx, in.Mode, in.Spec.Vault.Name, site.Operate)
	if err != nil {
		return out, err
	}
	for _, mount := range mountsOf(in.Spec) {
		for _, config := range []struct {
			path    string
			desired map[string]any
		}{{mount + "/config/crl", tidyCRL}, {mount + "/config/auto-tidy", tidyAutomatically}} {
			if err := s.ensure(ctx, in.Mode, &out, "vault config "+config.path, config.path, config.desired); err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

// cannotSign says why an issuer cannot issue, or is empty if it can.
func (i issuer) cannotSign() string {
	switch {
	case i.KeyID == "":
		return "its key is not in this mount"
	case !slices.Contains(i.usages(), issuing):
		return "its usage does not let it issue (" + i.Usage + ")"
	}
	return ""
}

// What an issuer may be used for, in Vault's words.
const (
	issuing = "issuing-certificates"
	reading = "read-only"
)

func (i issuer) usages() []string { return strings.Split(i.Usage, ",") }

// usage is what an issuer at work, or one that has been replaced, is used for.
// Vault lets none sign CRLs whose own certificate does not.
func (i issuer) usage(signs bool) []string {
	out := []string{reading}
	if signs {
		out = append(out, issuing)
	}
	if i.certificate.KeyUsage&x509.KeyUsageCRLSign != 0 {
		out = append(out, "crl-signing")
	}
	return append(out, "ocsp-signing")
}

// issuerAt is one issuer of a mount, by its id or name. That there is none is a
// Preflight error.
func (s session) issuerAt(ctx context.Context, mount, ref string) (issuer, error) {
	var i issuer
	path := mount + "/issuer/" + ref
	if ref == "" {
		return i, s.noIssuer(mount, ref)
	}
	found, err := s.read(ctx, path, &i)
	if err != nil {
		return i, err
	}
	if !found {
		return issuer{}, s.noIssuer(mount, ref)
	}
	return i, s.parse(&i, path)
}

func (s session) noIssuer(mount, ref string) error {
	return failure.Permanent(failure.Preflight, "Vault %q: the mount %s has no issuer %q. Start the procedure again: it looks what there is now", s.vault, mount, ref)
}
