package vault

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
)

// Issuers and keys of ours are named by what they are and their generation.
const (
	rootPrefix         = "relay-root-g"
	intermediatePrefix = "relay-intermediate-g"
	bridgePrefix       = "relay-bridge-g"
)

// RootName is the name of a root's issuer and key in Vault.
func RootName(generation int) string { return fmt.Sprintf("%s%d", rootPrefix, generation) }

// BridgeName is the name, in the relay mount, of the bridge to the root of that
// generation.
func BridgeName(generation int) string { return fmt.Sprintf("%s%d", bridgePrefix, generation) }

// IntermediateName is the name of an intermediate's issuer and key in Vault.
func IntermediateName(generation int) string {
	return fmt.Sprintf("%s%d", intermediatePrefix, generation)
}

// generationOf is what a name with that prefix says of its CA, or 0 if that is no
// name of ours.
func generationOf(prefix, name string) int {
	number, ours := strings.CutPrefix(name, prefix)
	g, err := strconv.Atoi(number)
	if !ours || err != nil || g < 1 || fmt.Sprintf("%s%d", prefix, g) != name {
		return 0
	}
	return g
}

// issuer is a CA certificate in a PKI mount, with or without its key.
type issuer struct {
	ID           string   `json:"issuer_id"`
	Name         string   `json:"issuer_name"`
	KeyID        string   `json:"key_id"`
	PEM          string   `json:"certificate"`
	ManualChain  []string `json:"manual_chain"`
	LeafNotAfter string   `json:"leaf_not_after_behavior"`
	// Usage is a list with commas.
	Usage string `json:"usage"`

	certificate *x509.Certificate
}

func (i issuer) String() string {
	name := i.Name
	if name == "" {
		name = "(unnamed)"
	}
	return fmt.Sprintf("%s %s: %q, until %s", name, i.ID, i.certificate.Subject, pki.Date(i.certificate.NotAfter))
}

// atWork is the name of the CA of ours in a mount that is its default, or that
// of the first generation, if there is none yet.
func (s session) atWork(ctx context.Context, mount, prefix string) (string, error) {
	first := prefix + "1"
	config, err := s.issuerConfig(ctx, mount)
	if err != nil || config.Default == "" {
		return first, err
	}
	var i issuer
	if _, err := s.read(ctx, mount+"/issuer/"+config.Default, &i); err != nil || !strings.HasPrefix(i.Name, prefix) {
		return first, err
	}
	return i.Name, nil
}

// issuers reads every issuer of a mount; none if the mount is not there.
func (s session) issuers(ctx context.Context, mount string) ([]issuer, error) {
	ids, err := s.list(ctx, mount+"/issuers", nil)
	if err != nil {
		return nil, err
	}
	var all []issuer
	for _, id := range ids {
		path := mount + "/issuer/" + id
		var i issuer
		found, err := s.read(ctx, path, &i)
		if err != nil {
			return nil, err
		}
		if !found {
			continue
		}
		if err := s.parse(&i, path); err != nil {
			return nil, err
		}
		all = append(all, i)
	}
	return all, nil
}

// parse reads the certificate of an issuer that was read at path.
func (s session) parse(i *issuer, path string) error {
	chain, err := pki.ParseChain([]byte(i.PEM))
	if err != nil {
		return failure.Permanent(failure.Conflict, "Vault %q: the certificate of %s cannot be read: %v", s.vault, path, err)
	}
	i.certificate = chain[0]
	return nil
}

// keyNames are the names of a mount's keys, by their ids.
func (s session) keyNames(ctx context.Context, mount string) (map[string]string, error) {
	var info map[string]struct {
		Name string `json:"key_name"`
	}
	if _, err := s.list(ctx, mount+"/keys", &info); err != nil {
		return nil, err
	}
	names := map[string]string{}
	for id, key := range info {
		names[id] = key.Name
	}
	return names, nil
}

// authority is a CA of ours as far as it is there: its issuer, or at least its key.
type authority struct {
	issuer *issuer
	keyID  string
	all    []issuer
	// adopted: it is as it is, because nothing was asked for, or because somebody else
	// has made it and we have taken it over.
	adopted bool
}

// authority finds the CA of that name: by the issuer's name, then by the key of
// that name. An issuer of that name that is not the CA asked for, and a mount
// in which somebody else's CA is at work, are a Conflict.
func (s session) authority(ctx context.Context, mount, name, prefix string, asked mesh.CA) (authority, error) {
	var found authority
	var err error
	if found.all, err = s.issuers(ctx, mount); err != nil {
		return found, err
	}
	keys, err := s.keyNames(ctx, mount)
	if err != nil {
		return found, err
	}
	for id, key := range keys {
		if key == name {
			found.keyID = id
		}
	}
	for i := range found.all {
		if found.all[i].Name == name {
			found.issuer = &found.all[i]
		}
	}
	for i := range found.all {
		// Named after it was made: an interrupted call has left it without.
		if found.issuer == nil && found.keyID != "" && found.all[i].KeyID == found.keyID && found.all[i].Name == "" {
			found.issuer = &found.all[i]
		}
	}
	if found.issuer == nil {
		return found, s.foreign(mount, prefix, found)
	}
	if prefix == intermediatePrefix {
		asked = intermediateAs(found.issuer.certificate, asked, generationOf(prefix, name))
	}
	var wrong []string
	if found.issuer.KeyID == "" {
		wrong = append(wrong, "its key is not in this mount")
	}
	if found.adopted = asked == (mesh.CA{}) || found.issuer.KeyID != "" && keys[found.issuer.KeyID] == adoptedPrefix+name; !found.adopted {
		wrong = append(wrong, identityOf(found.issuer.certificate, asked)...)
	}
	if len(wrong) > 0 {
		remedy := "give that issuer another name in Vault"
		if prefix == intermediatePrefix {
			remedy = "rotate to one like that (relaypki rotate intermediate MESH --ttl, --key-type)"
		}
		return found, failure.Permanent(failure.Conflict, "Vault %q, mount %s: the issuer %s is there and is not the CA that was asked for: %s. Correct the input, or %s",
			s.vault, mount, *found.issuer, strings.Join(wrong, "; "), remedy)
	}
	return found, nil
}

// foreign is a Conflict if a CA that we did not make can sign in this mount.
func (s session) foreign(mount, prefix string, found authority) error {
	var others []string
	for _, i := range found.all {
		if i.KeyID != "" && i.KeyID != found.keyID && !strings.HasPrefix(i.Name, prefix) {
			others = append(others, i.String())
		}
	}
	if len(others) == 0 {
		return nil
	}
	return failure.Permanent(failure.Conflict, "Vault %q: the mount %s has a CA that is not ours: %s. Name another mount in the input (vault.rootMount, vault.relayMount), or take it over: relaypki adopt -f mesh.yaml",
		s.vault, mount, strings.Join(others, ", "))
}

// settleIssuer brings the issuer's own settings to what they should be, and
// leaves the others as they are.
func (s session) settleIssuer(ctx context.Context, mode procedure.Mode, out *procedure.Outcome, mount string, i issuer, desired map[string]any) error {
	have := map[string]any{"issuer_name": i.Name, "leaf_not_after_behavior": i.LeafNotAfter, "usage": i.Usage}
	patch := map[string]any{}
	for field, want := range desired {
		// The order of a manual chain is the order of what is issued.
		if chain, ok := want.([]string); ok {
			if !slices.Equal(chain, i.ManualChain) {
				patch[field] = chain
			}
		} else if want != have[field] {
			patch[field] = want
		}
	}
	if len(patch) == 0 {
		return nil
	}
	fields := make([]string, 0, len(patch))
	for field, want := range patch {
		fields = append(fields, fmt.Sprintf("%s to %s", field, text(want)))
	}
	slices.Sort(fields)
	out.Changed(procedure.Update, "vault issuer "+mount+"/"+i.ID, strings.Join(fields, "; "))
	if !mode.Writes() {
		out.By(mode, s.data("patch", mount+"/issuer/"+i.ID, patch))
		return nil
	}
	return s.patch(ctx, mount+"/issuer/"+i.ID, patch)
}

// settleDefault makes ours the mount's default issuer, unless another
// generation of ours is, and keeps the default from following whatever is
// imported next.
func (s session) settleDefault(ctx context.Context, mode procedure.Mode, out *procedure.Outcome, mount, prefix string, ours issuer, all []issuer) error {
	path := mount + "/config/issuers"
	have, err := s.issuerConfig(ctx, mount)
	if err != nil {
		return err
	}
	want := ours.ID
	for _, i := range all {
		if i.ID == have.Default && strings.HasPrefix(i.Name, prefix) && i.KeyID != "" {
			want = i.ID
		}
	}
	return s.ensure(ctx, mode, out, "vault config "+path, path, map[string]any{"default": want, "default_follows_latest_issuer": false})
}

// holdDefault keeps a mount's default issuer from following whatever is imported
// next. The default itself stays.
func (s session) holdDefault(ctx context.Context, mode procedure.Mode, out *procedure.Outcome, mount string) error {
	config, err := s.issuerConfig(ctx, mount)
	if err != nil || !config.FollowsLatest {
		return err
	}
	path := mount + "/config/issuers"
	return s.ensure(ctx, mode, out, "vault config "+path, path, map[string]any{"default": config.Default, "default_follows_latest_issuer": false})
}

// maxLeaseTTL is the longest life, in seconds, that a mount gives to anything.
func (s session) maxLeaseTTL(ctx context.Context, mount string) (int64, error) {
	var tune struct {
		Max int64 `json:"max_lease_ttl"`
	}
	_, err := s.read(ctx, "sys/mounts/"+mount+"/tune", &tune)
	return tune.Max, err
}

// roomFor is a Mismatch if the mount would cut the lifetime short, which Vault
// does with no more than a warning.
func (s session) roomFor(ctx context.Context, mount string, ttl mesh.Duration) error {
	longest, err := s.maxLeaseTTL(ctx, mount)
	if err != nil {
		return err
	}
	if longest < seconds(ttl) {
		return failure.Permanent(failure.Mismatch, "Vault %q: the mount %s issues nothing that lives longer than %d s, and %s was asked for: `vault secrets tune -max-lease-ttl=%s %s`, then start again",
			s.vault, mount, longest, ttl, ttl, mount)
	}
	return nil
}

func seconds(d mesh.Duration) int64 { return int64(d.Seconds()) }

func caResult(out procedure.Outcome, i issuer) CAResult {
	c := i.certificate
	out.Detail = "until " + pki.Date(c.NotAfter)
	return CAResult{Outcome: out, CertificatePEM: string(pki.EncodeChain(c)), Authority: procedure.Authority{
		IssuerID: i.ID, Name: i.Name, Subject: c.Subject.String(), Serial: pki.Serial(c), SubjectKeyID: pki.Hex(c.SubjectKeyId), NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(),
	}}
}
