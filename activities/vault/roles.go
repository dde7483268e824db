package vault

import (
	"context"
	"slices"
	"strings"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// probeDomain is the only name that the probe role issues: no host can have it
// (RFC 2606), and the certificate is good for neither server nor client.
const probeDomain = "relaypki-probe.invalid"

// closedRole is a role that issues no name at all. Every field that widens what
// a role issues is in it, so that one which somebody has opened is found and
// closed again.
//
// no_store: every member gets a certificate a day, and nothing in the relay
// asks Vault for a stored one or for a CRL; the mount would only grow. Who
// signed what is in Vault's audit log.
func closedRole(issuerID string, maxTTL mesh.Duration) map[string]any {
	return map[string]any{
		"issuer_ref": issuerID,
		"ttl":        int64(0),
		"max_ttl":    seconds(maxTTL),
		"not_after":  "",

		"allow_any_name":              false,
		"allowed_domains":             []string{},
		"allowed_domains_template":    false,
		"allow_bare_domains":          false,
		"allow_subdomains":            false,
		"allow_glob_domains":          false,
		"allow_wildcard_certificates": false,
		"allow_localhost":             false,
		"allow_token_displayname":     false,
		"allow_ip_sans":               false,
		"allowed_uri_sans":            []string{},
		"allowed_uri_sans_template":   false,
		"allowed_other_sans":          []string{},
		"allowed_serial_numbers":      []string{},
		"allowed_user_ids":            []string{},
		"enforce_hostnames":           true,
		"cn_validations":              []string{"email", "hostname"},
		"require_cn":                  true,
		"use_csr_common_name":         true,
		"use_csr_sans":                true,

		"key_usage":                          []string{"DigitalSignature", "KeyEncipherment"},
		"server_flag":                        false,
		"client_flag":                        false,
		"code_signing_flag":                  false,
		"email_protection_flag":              false,
		"ext_key_usage":                      []string{},
		"ext_key_usage_oids":                 []string{},
		"policy_identifiers":                 []string{},
		"basic_constraints_valid_for_non_ca": false,

		"key_type":       "any",
		"key_bits":       int64(0),
		"no_store":       true,
		"generate_lease": false,
	}
}

// forKey restricts a role to the key that a Certificate asks for.
func forKey(role map[string]any, c mesh.Certificate) map[string]any {
	role["key_type"] = map[string]string{"RSA": "rsa", "ECDSA": "ec"}[c.KeyAlgorithm]
	role["key_bits"] = int64(c.KeySize)
	return role
}

// serverRole issues the management server's names, literally: the wildcard
// among them is allowed as it is written, so that no other one is. With
// isolation "shared" it is the guide's role, which issues any name to anybody.
func serverRole(spec mesh.Spec, issuerID string) map[string]any {
	role := closedRole(issuerID, spec.PKI.MaxLeafTTL)
	role["server_flag"], role["client_flag"] = true, true
	if spec.PKI.Isolation == mesh.IsolationShared {
		role["allow_any_name"], role["allow_wildcard_certificates"], role["allow_ip_sans"], role["allow_localhost"] = true, true, true, true
		return role
	}
	c := spec.Certificates.Server
	names := set(append(slices.Clone(c.DNSNames), c.CommonName))
	role["allowed_domains"] = names
	role["allow_bare_domains"] = true
	role["allow_wildcard_certificates"] = slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, "*") })
	return forKey(role, c)
}

// clientRole issues one cluster's name, for clients, and no other.
func clientRole(spec mesh.Spec, cluster, issuerID string) map[string]any {
	role := closedRole(issuerID, spec.PKI.MaxLeafTTL)
	role["allowed_domains"] = []string{cluster}
	role["allow_bare_domains"] = true
	role["client_flag"] = true
	return forKey(role, spec.Certificates.Client)
}

func probeRole(issuerID string) map[string]any {
	role := closedRole(issuerID, mesh.Minutes(5))
	role["allowed_domains"] = []string{probeDomain}
	role["allow_bare_domains"] = true
	return role
}

// ConfigureRoles writes the management server's role and the probe role, both
// bound to the issuer by id. Vault keeps no mark of who made a role, so one that
// differs is set right, and the change says in what it differed.
func (a *Activities) ConfigureRoles(ctx context.Context, in ConfigureRolesInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	s, err := a.sessionFor(ctx, in.Mode, in.Spec.Vault.Name, site.Onboard)
	if err != nil {
		return out, err
	}
	for _, role := range []struct {
		name    string
		desired map[string]any
	}{
		{in.Spec.PKI.Role, serverRole(in.Spec, in.IssuerID)},
		{in.Spec.ProbeRole(), probeRole(in.IssuerID)},
	} {
		if err := s.ensureRole(ctx, in.Mode, &out, in.Spec.Vault.RelayMount, role.name, in.IssuerID, role.desired); err != nil {
			return out, err
		}
	}
	return out, nil
}

// ensureRole makes a role what it should be. An issuer that may not issue is a
// Conflict: the role's renewals would fail from then on.
func (s session) ensureRole(ctx context.Context, mode procedure.Mode, out *procedure.Outcome, mount, name, issuerID string, desired map[string]any) error {
	path := mount + "/roles/" + name
	if issuerID == "" {
		if mode.Writes() {
			return failure.Permanent(failure.InvalidInput, "Vault %q: the role %s/roles/%s needs the id of its issuer. Start the procedure again", s.vault, mount, name)
		}
		// The intermediate is still to be made: its id is not known yet.
		delete(desired, "issuer_ref")
		before := len(out.Changes)
		if err := s.ensure(ctx, mode, out, "vault role "+path, path, desired); err != nil || len(out.Changes) == before {
			return err
		}
		desired["issuer_ref"] = "$issuer"
		out.By(mode, assign("issuer", s.command("read", "-field=issuer_id", mount+"/issuer/"+IntermediateName(1))),
			s.data("write", path, desired, "issuer"))
		return nil
	}
	i, err := s.issuerAt(ctx, mount, issuerID)
	if err != nil {
		return err
	}
	var have struct {
		Issuer string `json:"issuer_ref"`
	}
	if _, err := s.read(ctx, path, &have); err != nil {
		return err
	}
	// Of a role that is there already, its cluster says what it cannot have.
	if why := i.cannotSign(); why != "" && have.Issuer != issuerID {
		return failure.Permanent(failure.Conflict, "Vault %q: the role %s is not pointed at the issuer %s, because %s: a rotation has replaced it. If that was done by hand, have it recorded: relaypki rotate intermediate MESH. Then start the procedure again: it finds the one that took its place", s.vault, path, i, why)
	}
	return s.ensure(ctx, mode, out, "vault role "+path, path, desired)
}
