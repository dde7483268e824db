package check

import (
	"crypto/x509"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
)

var issuerID = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// Names of the CAs in Vault carry a generation: relay-root-g1, relay-intermediate-g1.
const (
	rootNamePrefix         = "relay-root-g"
	intermediateNamePrefix = "relay-intermediate-g"
)

// rotateAhead is how long before the end of a CA a warning comes: time enough
// for people to plan a rotation.
const rotateAhead = 30 * 24 * time.Hour

func (r *report) vault(spec mesh.Spec, v SeenVault, now time.Time) {
	object := fmt.Sprintf("Vault %q", v.Name)
	switch {
	case v.Gap.report(r, VaultAvailable, object, "correct the Vault's name in the input or the site file"):
		return
	case !v.Initialized:
		r.fail(VaultAvailable, object, fmt.Sprintf("%s at %s is not initialised", object, v.Address), "`vault operator init` there (keep the unseal keys), then run SetupMesh again")
		return
	case v.Sealed:
		r.transient(VaultAvailable, object, fmt.Sprintf("%s at %s is sealed: nothing can be issued or renewed", object, v.Address), "`vault operator unseal` there")
		return
	case v.LoginError != "":
		r.fail(VaultAvailable, object, fmt.Sprintf("%s at %s refuses the worker's operate identity: %s", object, v.Address, v.LoginError), "see the identity's login in the site file and deploy/vault/policies/operate.hcl")
		return
	}
	r.pass(VaultAvailable, object, "%s is unsealed", v.Address)

	root := r.offlineRoot(spec.PKI.Root, now)
	if !spec.PKI.Root.Offline() {
		root = r.vaultRoot(v.Root, now)
	}
	if spec.PKI.StandbyRoot {
		r.standbyRoot(spec, v.Root, now)
	}
	r.vaultIntermediate(spec, v, root, now)
	r.vaultRoles(spec, v.Roles)
}

// offlineRoot is the root that is kept outside Vault; nil if it is not.
func (r *report) offlineRoot(root mesh.Root, now time.Time) *x509.Certificate {
	if !root.Offline() {
		return nil
	}
	const object = "the root kept outside Vault"
	c, err := root.Certificate()
	if err != nil {
		r.fail(VaultRoot, object, "its certificate in the mesh's record cannot be read: "+err.Error(), "correct pki.root.certificatePEM in the input, then "+runSetup)
		return nil
	}
	if !r.expiring(VaultRoot, object, c, now) {
		r.pass(VaultRoot, object, "%s is kept outside Vault, valid until %s", pki.Name(c), pki.Date(c.NotAfter))
	}
	return c
}

func (r *report) vaultRoot(m SeenMount, now time.Time) *x509.Certificate {
	object := "mount " + m.Path
	if m.Gap.report(r, VaultRoot, object, runSetup) {
		return nil
	}
	issuer, ok := m.issuer(m.Default)
	if !ok || issuer.Certificate == nil {
		r.fail(VaultRoot, object, fmt.Sprintf("%s has no default issuer (%d issuers in it)", object, len(m.Issuers)), runSetup)
		return nil
	}
	c := issuer.Certificate
	switch {
	case !pki.SelfSigned(c):
		r.fail(VaultRoot, object, fmt.Sprintf("the default issuer, %s, is not self-signed", pki.Name(c)), "make the root the mount's default issuer again: `vault write "+m.Path+"/config/issuers default=<id of the root>`")
		return nil
	case r.expiring(VaultRoot, object, c, now):
	case !strings.HasPrefix(issuer.Name, rootNamePrefix):
		r.warn(VaultRoot, object, fmt.Sprintf("the default issuer is named %q, not %s<generation>", issuer.Name, rootNamePrefix), "if it was made by hand, say so to whoever rotates the root; else "+runSetup)
	default:
		r.pass(VaultRoot, object, "%s is the default, valid until %s", issuer.Name, pki.Date(c.NotAfter))
	}
	return c
}

// standbyRoot looks for the root that a rotation would go to: the first one later than
// the one at work, which is the default, that has its key and may sign.
func (r *report) standbyRoot(spec mesh.Spec, m SeenMount, now time.Time) {
	object := "mount " + m.Path
	atWork, ok := m.issuer(m.Default)
	if m.Gap.Open() || !ok {
		return // said by vault-root
	}
	var standby SeenVaultIssuer
	for _, i := range m.Issuers {
		g := rootGeneration(i.Name)
		if g > rootGeneration(atWork.Name) && i.HasKey && i.Signs && i.Certificate != nil && (standby.Certificate == nil || g < rootGeneration(standby.Name)) {
			standby = i
		}
	}
	c := standby.Certificate
	switch {
	case c == nil:
		r.warn(StandbyRoot, object, fmt.Sprintf("no root stands by: there is none after %s that can sign, and pki.standbyRoot asks for one. A rotation of the root has used it up, or none was made yet", atWork.Name), setUpStandby)
	case c.NotAfter.Sub(now) < spec.PKI.Intermediate.TTL.Duration:
		r.warn(StandbyRoot, object, fmt.Sprintf("%s, which stands by, ends at %s, sooner than an intermediate below it that lives %s", standby.Name, pki.Date(c.NotAfter), spec.PKI.Intermediate.TTL),
			fmt.Sprintf("put it out of use (`vault patch %s/issuer/%s usage=read-only,crl-signing,ocsp-signing`) and have another made: ", m.Path, standby.Name)+setUpStandby)
	default:
		r.pass(StandbyRoot, object, "%s stands by, valid until %s", standby.Name, pki.Date(c.NotAfter))
	}
}

// rootGeneration is what a root's name says of it, or 0 if that is no name of ours.
func rootGeneration(name string) int {
	number, _ := strings.CutPrefix(name, rootNamePrefix)
	g, err := strconv.Atoi(number)
	if err != nil || name != rootNamePrefix+strconv.Itoa(g) {
		return 0
	}
	return g
}

// expiring reports a CA near or past its end.
func (r *report) expiring(check, object string, c *x509.Certificate, now time.Time) bool {
	switch left := c.NotAfter.Sub(now); {
	case left <= 0:
		r.fail(check, object, fmt.Sprintf("%s expired at %s", pki.Name(c), pki.Date(c.NotAfter)), "rotate it; no chain under it is accepted any more")
	case left < rotateAhead:
		r.warn(check, object, fmt.Sprintf("%s expires in %s, at %s", pki.Name(c), round(left), pki.Date(c.NotAfter)), "rotate it before then")
	default:
		return false
	}
	return true
}

func (r *report) vaultIntermediate(spec mesh.Spec, v SeenVault, root *x509.Certificate, now time.Time) {
	object := "mount " + v.Relay.Path
	if v.Relay.Gap.report(r, VaultIntermediate, object, runSetup) {
		return
	}
	used := map[string]bool{}
	for _, role := range v.Roles {
		if issuerID.MatchString(role.IssuerRef) {
			used[role.IssuerRef] = true
		}
	}
	if len(used) == 0 {
		used[v.Relay.Default] = true
	}
	for id := range used {
		issuer, ok := v.Relay.issuer(id)
		if !ok || issuer.Certificate == nil {
			r.fail(VaultIntermediate, object, fmt.Sprintf("roles use the issuer %q, which is not in %s", id, object), runSetup)
			continue
		}
		c := issuer.Certificate
		switch {
		case !issuer.HasKey:
			r.fail(VaultIntermediate, object, fmt.Sprintf("%s has no key in Vault and cannot sign", pki.Name(c)), "point the roles at the intermediate that has one: "+runSetup)
		case issuer.LeafNotAfterBehavior != "err":
			r.fail(VaultIntermediate, object, fmt.Sprintf("leaf_not_after_behavior of %s is %q: near its end it would issue ever shorter certificates, renewed without end", pki.Name(c), issuer.LeafNotAfterBehavior),
				fmt.Sprintf("`vault patch %s/issuer/%s leaf_not_after_behavior=err`", v.Relay.Path, id))
		case root != nil && pki.SignedBy(c, root) != nil && !v.Relay.bridges(c, root):
			r.fail(VaultIntermediate, object, pki.SignedBy(c, root).Error(), "the roles use an intermediate of another root; "+runSetup)
		case r.expiring(VaultIntermediate, object, c, now):
		case c.NotAfter.Sub(now) < spec.Certificates.LongestLife():
			r.fail(VaultIntermediate, object, fmt.Sprintf("%s ends at %s, sooner than a leaf asked for now", pki.Name(c), pki.Date(c.NotAfter)), "rotate it now: Vault refuses every renewal")
		case !strings.HasPrefix(issuer.Name, intermediateNamePrefix):
			r.warn(VaultIntermediate, object, fmt.Sprintf("the issuer is named %q, not %s<generation>", issuer.Name, intermediateNamePrefix), "if it was made by hand, say so to whoever rotates it; else "+runSetup)
		case v.Relay.Default != id:
			r.warn(VaultIntermediate, object, fmt.Sprintf("roles use %s, and the mount's default is another issuer", issuer.Name), "expected during a rotation only")
		default:
			r.pass(VaultIntermediate, object, "%s is the default, valid until %s", issuer.Name, pki.Date(c.NotAfter))
		}
	}
}

// bridges says that a certificate in the mount leads from an intermediate to a root
// that has not signed it: the bridge of a rotation of the root.
func (m SeenMount) bridges(intermediate, root *x509.Certificate) bool {
	return slices.ContainsFunc(m.Issuers, func(i SeenVaultIssuer) bool {
		return i.Certificate != nil && pki.SignedBy(intermediate, i.Certificate) == nil && pki.SignedBy(i.Certificate, root) == nil
	})
}

func (r *report) vaultRoles(spec mesh.Spec, roles []SeenRole) {
	sound := 0
	issuers := map[string]bool{}
	for _, role := range roles {
		object := "role " + role.Name
		if role.Gap.report(r, VaultRole, object, runSetup) {
			continue
		}
		if !issuerID.MatchString(role.IssuerRef) {
			r.fail(VaultRole, object, fmt.Sprintf("%s names its issuer %q, not by id: it changes when the mount's default does", object, role.IssuerRef), runSetup)
			continue
		}
		if wrong := role.unlike(spec); wrong != "" {
			r.fail(VaultRole, object, fmt.Sprintf("%s %s", object, wrong), runSetup+", which writes it as it should be")
			continue
		}
		issuers[role.IssuerRef] = true
		sound++
	}
	if len(issuers) > 1 {
		r.warn(VaultRole, "", fmt.Sprintf("the roles use %d issuers", len(issuers)), "expected during a rotation only")
		return
	}
	if sound > 0 && sound == len(roles) {
		r.pass(VaultRole, "", "%d roles are bound to one issuer by id", sound)
	}
}

// unlike says in what a role differs from what it is for: one cluster's name
// for a client, the server's names for the server, or nothing that anybody can
// use. The guide's shared role may issue anything.
func (r SeenRole) unlike(spec mesh.Spec) string {
	names, server, client := []string{r.Cluster}, false, true
	switch {
	case r.Cluster != "":
	case r.Name == spec.ProbeRole():
		names, client = r.AllowedDomains, false
	case spec.PKI.Isolation == mesh.IsolationShared:
		return ""
	default:
		names, server = append(slices.Clone(spec.Certificates.Server.DNSNames), spec.Certificates.Server.CommonName), true
	}
	foreign := slices.DeleteFunc(slices.Clone(r.AllowedDomains), func(name string) bool { return slices.Contains(names, name) })
	lacking := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(r.AllowedDomains, name) })
	for _, wrong := range []struct {
		is   bool
		what string
	}{
		{r.AllowAnyName, "allows any name"},
		{len(foreign) > 0, fmt.Sprintf("allows other names too: %s", strings.Join(foreign, ", "))},
		{r.AllowSubdomains, "allows subdomains"},
		{r.AllowGlobDomains, "allows patterns"},
		{r.AllowWildcards && !slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, "*") }), "allows wildcards"},
		{r.AllowIPSANs, "allows IP addresses"},
		{r.AllowLocalhost, "allows localhost"},
		{len(r.AllowedURISANs) > 0, "allows URIs"},
		{len(r.AllowedOtherSANs) > 0, "allows other kinds of names"},
		{r.ServerFlag && !server, "allows server certificates"},
		{r.ClientFlag && !client, "allows client certificates"},
		{len(r.ExtKeyUsage) > 0 || len(r.ExtKeyUsageOIDs) > 0, "adds extended key usages"},
		{len(lacking) > 0, fmt.Sprintf("does not allow %s: the next renewal will be refused", strings.Join(lacking, ", "))},
		{!r.AllowBareDomains, "does not allow its names as they are: the next renewal will be refused"},
		{server && !r.ServerFlag || client && !r.ClientFlag, "lacks a usage that its certificates need"},
	} {
		if wrong.is {
			return wrong.what
		}
	}
	return ""
}
