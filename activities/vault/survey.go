package vault

import (
	"context"
	"crypto/x509"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// SurveyInput asks what CAs a mesh has in Vault.
type SurveyInput struct {
	Spec mesh.Spec `json:"spec"` // without workloads
}

// SurveyResult is what CAs there are, and which is at work.
type SurveyResult struct {
	// Root is the self-signed root that the active intermediate leads to. Its id
	// is the one in the root mount, and empty if its key is not there: such a root
	// is kept outside Vault.
	Root CAResult `json:"root"`
	// Active is the intermediate that the management server's role signs with.
	Active IntermediateState `json:"active"`
	// Intermediates are all that have a name of ours, by generation.
	Intermediates []IntermediateState `json:"intermediates"`
	// Roles are the ids of the issuers that the roles of the relay mount sign
	// with, by the roles' names. What leads to no issuer is as the role has it.
	Roles map[string]string `json:"roles"`
	// Highest is the highest generation of any intermediate's issuer or key.
	Highest int `json:"highest"`
	// Roots are all roots with a name of ours in the root mount, by generation; if the
	// root is kept outside Vault, those in the relay mount, without ids, since nothing
	// of theirs is done in Vault. HighestRoot is the highest generation of any
	// issuer or key there, and of any root or bridge in the relay mount: none of those
	// names is free.
	Roots       []RootState `json:"roots,omitempty"`
	HighestRoot int         `json:"highestRoot,omitempty"`
	// Bridges are certificates in the relay mount of a root's key that another root
	// has signed.
	Bridges []CAResult `json:"bridges,omitempty"`
	// FollowsLatest says that whatever is imported next becomes the default at
	// once, and with it what roles without an issuer of their own sign with.
	FollowsLatest bool `json:"followsLatest,omitempty"`
}

// RootState is a root as it is in the root mount, or, of one that is kept outside
// Vault, in the relay mount.
type RootState struct {
	Authority      procedure.Authority `json:"authority"`
	CertificatePEM string              `json:"certificatePEM"`
	Generation     int                 `json:"generation"`
	// HasKey, Signs and Default are as with an intermediate.
	HasKey  bool `json:"hasKey"`
	Signs   bool `json:"signs"`
	Default bool `json:"default"`
}

// IntermediateState is an intermediate as it is in Vault.
type IntermediateState struct {
	Authority      procedure.Authority `json:"authority"`
	CertificatePEM string              `json:"certificatePEM"`
	Generation     int                 `json:"generation"`
	NotBefore      time.Time           `json:"notBefore"`
	// HasKey says that its key is in the mount, Signs that it can issue: it has its
	// key, and its usage lets it.
	HasKey  bool `json:"hasKey"`
	Signs   bool `json:"signs"`
	Default bool `json:"default"`
	// AbovePEM is the chain above it, from below, that Vault returns by its
	// manual_chain; nil if it has none of its own.
	AbovePEM []string `json:"abovePEM,omitzero"`
}

// Survey reads the CAs of a mesh and the roles that sign with them. A mesh whose
// setup has not come that far, or whose CAs nobody has taken over yet, is a
// Preflight error.
func (a *Activities) Survey(ctx context.Context, in SurveyInput) (SurveyResult, error) {
	s, err := a.session(ctx, in.Spec.Vault.Name, site.Operate)
	if err != nil {
		return SurveyResult{}, err
	}
	relay, err := s.relayMount(ctx, in.Spec.Vault.RelayMount)
	if err != nil {
		return SurveyResult{}, err
	}
	for _, name := range []string{in.Spec.PKI.Role, in.Spec.ProbeRole()} {
		if _, found := relay.roles[name]; !found {
			return SurveyResult{}, failure.Permanent(failure.Preflight, "Vault %q: there is no role %s/roles/%s, so the mesh is not set up. Run the setup (relaypki setup -f mesh.yaml), and then this procedure",
				s.vault, relay.mount, name)
		}
	}
	keys, err := s.keyNames(ctx, relay.mount)
	if err != nil {
		return SurveyResult{}, err
	}
	result := SurveyResult{Roles: map[string]string{}, FollowsLatest: relay.followsLatest}
	for name, ref := range relay.roles {
		result.Roles[name] = ref
		if i := relay.issuer(ref); i != nil {
			result.Roles[name] = i.ID
		}
	}
	for _, name := range keys {
		result.Highest = max(result.Highest, generationOf(intermediatePrefix, strings.TrimPrefix(name, adoptedPrefix)))
	}
	for _, i := range relay.all {
		if g := generationOf(intermediatePrefix, i.Name); g > 0 {
			result.Highest = max(result.Highest, g)
			result.Intermediates = append(result.Intermediates, relay.state(i))
		}
	}
	slices.SortFunc(result.Intermediates, func(a, b IntermediateState) int { return a.Generation - b.Generation })
	active, err := s.active(relay, in.Spec.PKI.Role)
	if err != nil {
		return SurveyResult{}, err
	}
	result.Active = relay.state(*active)
	var roots caMount
	if mount := in.Spec.RootMount(); mount != "" {
		if roots, err = s.rootMount(ctx, mount, &result); err != nil {
			return SurveyResult{}, err
		}
	} else {
		result.Roots = rootsOutside(relay.all)
	}
	result.HighestRoot = max(result.HighestRoot, highestRoot(relay.all))
	result.Bridges = bridges(relay.all, roots.all)
	result.Root, err = s.rootAbove(roots, relay, *active)
	return result, err
}

// rootMount reads the roots. That the mount is not there is for the root that is
// looked for to say.
func (s session) rootMount(ctx context.Context, mount string, result *SurveyResult) (caMount, error) {
	roots, err := s.caMount(ctx, mount)
	if failure.KindOf(err) == failure.Preflight {
		return caMount{mount: mount}, nil
	}
	if err != nil {
		return roots, err
	}
	keys, err := s.keyNames(ctx, mount)
	if err != nil {
		return roots, err
	}
	for _, name := range keys {
		result.HighestRoot = max(result.HighestRoot, generationOf(rootPrefix, strings.TrimPrefix(name, adoptedPrefix)))
	}
	for _, i := range roots.all {
		if g := generationOf(rootPrefix, i.Name); g > 0 {
			result.HighestRoot = max(result.HighestRoot, g)
			ca := caResult(procedure.Outcome{}, i)
			result.Roots = append(result.Roots, RootState{Authority: ca.Authority, CertificatePEM: ca.CertificatePEM, Generation: g,
				HasKey: i.KeyID != "", Signs: i.cannotSign() == "", Default: i.ID == roots.defaultID})
		}
	}
	slices.SortFunc(result.Roots, func(a, b RootState) int { return a.Generation - b.Generation })
	return roots, nil
}

// rootsOutside are the roots that are kept outside Vault, as far as their certificates
// are in the relay mount by a name of ours.
func rootsOutside(relay []issuer) []RootState {
	var roots []RootState
	for _, i := range relay {
		if g := generationOf(rootPrefix, i.Name); g > 0 && i.KeyID == "" && pki.SelfSigned(i.certificate) {
			ca := caResult(procedure.Outcome{}, i)
			ca.Authority.IssuerID = ""
			roots = append(roots, RootState{Authority: ca.Authority, CertificatePEM: ca.CertificatePEM, Generation: g})
		}
	}
	slices.SortFunc(roots, func(a, b RootState) int { return a.Generation - b.Generation })
	return roots
}

// highestRoot is the highest generation of any root or bridge in the relay mount.
func highestRoot(relay []issuer) int {
	highest := 0
	for _, i := range relay {
		highest = max(highest, generationOf(rootPrefix, i.Name), generationOf(bridgePrefix, i.Name))
	}
	return highest
}

// bridges are the certificates of a root's key that another root has signed. Keys
// and signatures say so, and no name.
func bridges(relay, roots []issuer) []CAResult {
	var out []CAResult
	selfSigned := slices.DeleteFunc(slices.Concat(relay, roots), func(i issuer) bool { return !pki.SelfSigned(i.certificate) })
	for _, i := range relay {
		c := i.certificate
		ofRoot := slices.ContainsFunc(selfSigned, func(root issuer) bool { return pki.SameKey(root.certificate, c) })
		byRoot := slices.ContainsFunc(selfSigned, func(root issuer) bool { return pki.SignedBy(c, root.certificate) == nil })
		if c.IsCA && !pki.SelfSigned(c) && ofRoot && byRoot {
			out = append(out, caResult(procedure.Outcome{}, i))
		}
	}
	return out
}

// caMount is what decides who signs with what in a PKI mount.
type caMount struct {
	mount         string
	all           []issuer
	defaultID     string
	followsLatest bool
	// roles are the issuers that the roles name, as they name them.
	roles map[string]string
}

// relayMount reads a PKI mount's issuers and roles. One that has no CA is a
// Preflight error.
func (s session) relayMount(ctx context.Context, mount string) (caMount, error) {
	m, err := s.caMount(ctx, mount)
	if err != nil {
		return m, err
	}
	names, err := s.list(ctx, mount+"/roles", nil)
	if err != nil {
		return m, err
	}
	for _, name := range names {
		var role struct {
			Issuer string `json:"issuer_ref"`
		}
		found, err := s.read(ctx, mount+"/roles/"+name, &role)
		if err != nil {
			return m, err
		}
		if found { // else it has just been deleted
			m.roles[name] = role.Issuer
		}
	}
	return m, nil
}

// caMount is relayMount without the roles: a root mount has none of ours.
func (s session) caMount(ctx context.Context, mount string) (caMount, error) {
	m := caMount{mount: mount, roles: map[string]string{}}
	var err error
	if m.all, err = s.issuers(ctx, mount); err != nil {
		return m, err
	}
	if len(m.all) == 0 {
		return m, failure.Permanent(failure.Preflight, "Vault %q: the mount %s is not there, or has no CA. Run the setup (relaypki setup -f mesh.yaml), and then this procedure", s.vault, mount)
	}
	config, err := s.issuerConfig(ctx, mount)
	if err != nil {
		return m, err
	}
	m.defaultID, m.followsLatest = config.Default, config.FollowsLatest
	return m, nil
}

// issuerConfig is which of a mount's issuers is the default.
type issuerConfig struct {
	Default       string `json:"default"`
	FollowsLatest bool   `json:"default_follows_latest_issuer"`
}

func (s session) issuerConfig(ctx context.Context, mount string) (issuerConfig, error) {
	var config issuerConfig
	_, err := s.read(ctx, mount+"/config/issuers", &config)
	return config, err
}

// issuer is the one that a reference leads to, as Vault resolves it: an id, a
// name, or the default; nil if there is none.
func (m caMount) issuer(ref string) *issuer {
	if ref == "" || ref == "default" {
		ref = m.defaultID
	}
	for i := range m.all {
		if m.all[i].ID == ref || m.all[i].Name != "" && m.all[i].Name == ref {
			return &m.all[i]
		}
	}
	return nil
}

// users are the roles that sign with an issuer.
func (m caMount) users(id string) []string {
	var out []string
	for name, ref := range m.roles {
		if i := m.issuer(ref); i != nil && i.ID == id {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func (m caMount) state(i issuer) IntermediateState {
	ca := caResult(procedure.Outcome{}, i)
	return IntermediateState{Authority: ca.Authority, CertificatePEM: ca.CertificatePEM, Generation: generationOf(intermediatePrefix, i.Name),
		NotBefore: i.certificate.NotBefore.UTC(), HasKey: i.KeyID != "", Signs: i.cannotSign() == "", Default: i.ID == m.defaultID, AbovePEM: m.above(i)}
}

// above is the chain above an issuer by its manual_chain; nil if it has none, and
// not nil if there is nothing but itself in it.
func (m caMount) above(i issuer) []string {
	if len(i.ManualChain) == 0 {
		return nil
	}
	above := []string{}
	for _, id := range i.ManualChain {
		if other := m.issuer(id); other != nil && other.ID != i.ID {
			above = append(above, string(pki.EncodeChain(other.certificate)))
		}
	}
	return above
}

// active is the intermediate that a role signs with.
func (s session) active(m caMount, role string) (*issuer, error) {
	i := m.issuer(m.roles[role])
	switch {
	case i == nil:
		return nil, failure.Permanent(failure.Preflight, "Vault %q: the role %s/roles/%s signs with the issuer %q, which is not there. Run the setup again (relaypki setup -f mesh.yaml), and then this procedure",
			s.vault, m.mount, role, m.roles[role])
	case pki.SelfSigned(i.certificate):
		return nil, failure.Permanent(failure.Preflight, "Vault %q: the role %s/roles/%s signs with %s, which is self-signed: there is no intermediate to rotate", s.vault, m.mount, role, *i)
	case generationOf(intermediatePrefix, i.Name) == 0:
		return nil, failure.Permanent(failure.Preflight, "Vault %q: the role %s/roles/%s signs with %s, which has no name of ours. Take it over (relaypki adopt -f mesh.yaml), run the setup, and then this procedure",
			s.vault, m.mount, role, *i)
	}
	return i, nil
}

// rootAbove is the self-signed root that has signed an intermediate. Which one
// that is, keys and signatures say and no name. The certificate that the
// intermediate's own chain leads to comes first, because it is what members
// trust: a root that was issued anew for the same key would fit as well.
func (s session) rootAbove(roots, relay caMount, below issuer) (CAResult, error) {
	signing := roots.all
	var candidates []issuer
	for _, id := range slices.Backward(below.ManualChain) {
		if i := relay.issuer(id); i != nil {
			candidates = append(candidates, *i)
		}
	}
	for _, i := range slices.Concat(candidates, relay.all, signing) {
		if !pki.SelfSigned(i.certificate) || pki.SignedBy(below.certificate, i.certificate) != nil {
			continue
		}
		root := i
		root.ID, root.Name = "", i.Name
		if signer := withCertificate(signing, i.certificate); signer != nil && signer.KeyID != "" {
			root.ID, root.Name = signer.ID, signer.Name
		}
		return caResult(procedure.Outcome{}, root), nil
	}
	return CAResult{}, failure.Permanent(failure.Preflight, "Vault %q: the root that signed %s is in neither of the mounts %s and %s, so nobody can tell whether it is what members trust. Import its certificate: vault write %s/issuers/import/cert pem_bundle=@root.pem",
		s.vault, below, relay.mount, roots.mount, relay.mount)
}

// withCertificate is the issuer that has exactly this certificate; nil if none has.
func withCertificate(all []issuer, c *x509.Certificate) *issuer {
	for i := range all {
		if all[i].certificate.Equal(c) {
			return &all[i]
		}
	}
	return nil
}
