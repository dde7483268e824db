package vault

import (
	"context"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/shell"
	"github.com/relaypki/relaypki/internal/site"
)

// loginTTL is the life of a token that a cluster's cert-manager logs in for:
// it asks for a new one at each signature.
var loginTTL = mesh.Minutes(10)

// policyName is the name of a cluster's policy; Vault writes policies in lower case.
func policyName(spec mesh.Spec, context string) string {
	return strings.ToLower(spec.AuthMount(context))
}

// signingRole is the role with which a cluster's Issuer signs.
func signingRole(spec mesh.Spec, workload string) string {
	if workload == "" {
		return spec.PKI.Role
	}
	return spec.RoleFor(mesh.Workload{Name: workload})
}

// mark names whose an auth mount or a policy is. The names of both are made of
// the mesh's and the cluster's, and mesh a-b with cluster c would give the same
// as mesh a with cluster b-c.
func mark(spec mesh.Spec, context string) string {
	return fmt.Sprintf("relaypki: mesh %s, cluster %s", spec.Mesh, context)
}

// EnableClusterAccess makes the cluster's policy and its auth mount and auth
// role, or, with method token, the token role that bounds what IssueClusterToken
// mints; and last its role in the relay mount, so that what is
// in the way is found first.
func (a *Activities) EnableClusterAccess(ctx context.Context, in ClusterAccessInput) (ClusterAccessResult, error) {
	spec := in.Spec
	s, err := a.sessionFor(ctx, in.Mode, spec.Vault.Name, site.Onboard)
	if err != nil {
		return ClusterAccessResult{}, err
	}
	result, err := a.access(ctx, in)
	if err != nil {
		return ClusterAccessResult{}, err
	}
	out := &result.Outcome
	isolated := in.Workload != "" && spec.PKI.Isolation != mesh.IsolationShared
	if name := spec.ClientCertificate(mesh.Workload{Name: in.Workload}).CommonName; isolated && name != in.Workload {
		return ClusterAccessResult{}, failure.Permanent(failure.InvalidInput, "certificates.client.commonName is %q: with pki.isolation %q a cluster's certificate has its own name, %q, and no other. Leave commonName out, or set pki.isolation to %q",
			name, mesh.IsolationPerCluster, in.Workload, mesh.IsolationShared)
	}
	if err := s.ensurePolicy(ctx, in, result.SignPath, out); err != nil {
		return ClusterAccessResult{}, err
	}
	if spec.Credential.Method == mesh.CredentialToken {
		err = s.ensureTokenRole(ctx, in, out)
	} else {
		err = a.ensureLogin(ctx, s, in, out)
	}
	if err == nil && isolated {
		err = s.ensureRole(ctx, in.Mode, out, spec.Vault.RelayMount, signingRole(spec, in.Workload), in.IssuerID, clientRole(spec, in.Workload, in.IssuerID))
	}
	if err != nil {
		return ClusterAccessResult{}, err
	}
	return result, nil
}

// access is where and as what the cluster logs in and signs.
func (a *Activities) access(ctx context.Context, in ClusterAccessInput) (ClusterAccessResult, error) {
	config, err := a.Clients.VaultConfig(ctx, in.Spec.Vault.Name)
	if in.Mode == procedure.Plan && failure.KindOf(err) == failure.NotReady { // still to be installed
		if config, err = a.Clients.Config.Vault(in.Spec.Vault.Name); err == nil && config.ClusterAddress == "" {
			config.ClusterAddress = fmt.Sprintf("%s://<address of Service %s/%s>:%d", config.Service.Scheme, config.Service.Namespace, config.Service.Name, config.Service.Port)
		}
	}
	if err != nil {
		return ClusterAccessResult{}, err
	}
	result := ClusterAccessResult{
		SignPath:  in.Spec.Vault.RelayMount + "/sign/" + signingRole(in.Spec, in.Workload),
		Server:    config.ClusterAddress,
		Namespace: config.Namespace,
	}
	switch in.Spec.Credential.Method {
	case mesh.CredentialToken:
	case mesh.CredentialAppRole:
		// cert-manager puts /v1/auth/ before it.
		result.AuthPath, result.AuthRole = in.Spec.AuthMount(in.Context), in.Spec.AuthMount(in.Context)
	default:
		result.AuthPath = "/v1/auth/" + in.Spec.AuthMount(in.Context)
		result.AuthRole = mesh.IssuerServiceAccount
	}
	if config.CAFile != "" {
		bundle, err := os.ReadFile(config.CAFile)
		if err != nil {
			return ClusterAccessResult{}, failure.Permanent(failure.Preflight, "Vault %q: its CA file: %v. Correct caFile in the site file", config.Name, err)
		}
		result.CABundlePEM = string(bundle)
	}
	return result, nil
}

// policyText allows to sign with the cluster's role and nothing else. A token
// without the default policy needs to be told that it may look after itself.
func policyText(in ClusterAccessInput, signPath string) string {
	rules := fmt.Sprintf("# %s. What its cert-manager needs, and no more.\npath %q {\n  capabilities = [\"update\"]\n}\n", mark(in.Spec, in.Context), signPath)
	if in.Spec.Credential.Method == mesh.CredentialToken {
		rules += `path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}
`
	}
	return rules
}

func (s session) ensurePolicy(ctx context.Context, in ClusterAccessInput, signPath string, out *procedure.Outcome) error {
	name := policyName(in.Spec, in.Context)
	path := "sys/policies/acl/" + name
	var have struct {
		Policy string `json:"policy"`
	}
	found, err := s.read(ctx, path, &have)
	if err != nil {
		return err
	}
	if found && !strings.HasPrefix(have.Policy, "# "+mark(in.Spec, in.Context)+".") {
		return failure.Permanent(failure.Conflict, "Vault %q: the policy %s is there and is not the one of mesh %s, cluster %s: its first line would say so. Rename the mesh or the cluster, or delete that policy if nothing uses it",
			s.vault, name, in.Spec.Mesh, in.Context)
	}
	before := len(out.Changes)
	if err := s.ensure(ctx, in.Mode, out, "vault policy "+name, path, map[string]any{"policy": policyText(in, signPath)}); err != nil {
		return err
	}
	if len(out.Changes) > before {
		out.By(in.Mode, shell.Input(s.command("policy write", name, "-"), policyText(in, signPath)))
	}
	return nil
}

// mountTypes are the types of the auth mounts, by method.
var mountTypes = map[string]string{mesh.CredentialJWT: "jwt", mesh.CredentialAppRole: "approle", mesh.CredentialKubernetes: "kubernetes"}

// ensureLogin makes the cluster's auth mount with its one role: with method jwt
// one whose keys are the cluster's own, and that lets in exactly one
// ServiceAccount with a token for exactly this Issuer. A mount of ours of another
// method is replaced; the cluster logs in again as soon as its Issuer, the next
// step of a setup, has followed.
func (a *Activities) ensureLogin(ctx context.Context, s session, in ClusterAccessInput, out *procedure.Outcome) error {
	name := in.Spec.AuthMount(in.Context)
	path := "sys/auth/" + name
	kind := mountTypes[in.Spec.Credential.Method]
	enable := s.command("auth enable", "-path="+name, "-description="+mark(in.Spec, in.Context), kind)
	var have mount
	found, err := s.read(ctx, path, &have)
	switch {
	case err != nil:
		return err
	case found && have.Description != mark(in.Spec, in.Context):
		return failure.Permanent(failure.Conflict, "Vault %q: the auth mount %s is there and is not the one of mesh %s, cluster %s: type %q, description %q. Rename the mesh or the cluster, or disable that mount if nothing uses it",
			s.vault, name, in.Spec.Mesh, in.Context, have.Type, have.Description)
	case found && have.Type != kind:
		out.Changed(procedure.Update, "vault auth mount "+name, fmt.Sprintf("type %s takes the place of type %s", kind, have.Type))
		out.By(in.Mode, s.command("auth disable", name), enable)
		if !in.Mode.Writes() {
			s.replaced = "auth/" + name + "/"
			break
		}
		if _, err := s.client.Logical().DeleteWithContext(ctx, path); err != nil {
			return s.failed(err, "disable "+path)
		}
		if err := s.write(ctx, path, map[string]any{"type": kind, "description": mark(in.Spec, in.Context)}, nil); err != nil {
			return err
		}
	case !found:
		out.Changed(procedure.Create, "vault auth mount "+name, "type "+kind)
		out.By(in.Mode, enable)
		if in.Mode.Writes() {
			if err := s.write(ctx, path, map[string]any{"type": kind, "description": mark(in.Spec, in.Context)}, nil); err != nil {
				return err
			}
		}
	}
	switch in.Spec.Credential.Method {
	case mesh.CredentialAppRole:
		return s.ensureAppRole(ctx, in, out)
	case mesh.CredentialKubernetes:
		return s.ensureReviewRole(ctx, in, out)
	}
	discoveryCA, err := a.discoveryCA(in)
	if err != nil {
		return err
	}
	if err := s.ensureKeys(ctx, in, discoveryCA, out); err != nil {
		return err
	}
	role := loginRole(in.Spec, in.Context)
	return s.ensure(ctx, in.Mode, out, "vault auth role "+role, role, loggingIn(in, map[string]any{
		"role_type":       "jwt",
		"user_claim":      "sub",
		"bound_subject":   "system:serviceaccount:" + in.Spec.Namespace + ":" + mesh.IssuerServiceAccount,
		"bound_audiences": []string{issuerAudience(in.Spec)},
		"groups_claim":    "",
	}))
}

// loggingIn are the fields of a login's role, whoever it lets in: with those of
// its method, those of the token that it gives.
func loggingIn(in ClusterAccessInput, method map[string]any) map[string]any {
	fields := map[string]any{
		"token_ttl":               seconds(loginTTL),
		"token_max_ttl":           seconds(loginTTL),
		"token_period":            int64(0),
		"token_policies":          []string{policyName(in.Spec, in.Context)},
		"token_no_default_policy": true,
		"token_explicit_max_ttl":  int64(0),
		"token_num_uses":          int64(0),
		"token_bound_cidrs":       []string{},
	}
	maps.Copy(fields, method)
	return fields
}

// discoveryCA is the CA of the cluster's issuer address, if the site file names one.
func (a *Activities) discoveryCA(in ClusterAccessInput) (string, error) {
	config, err := a.Clients.Config.Cluster(in.Context)
	if err != nil || config.IssuerCAFile == "" {
		return "", nil //nolint:nilerr // a cluster of another worker's, in a private network
	}
	ca, err := os.ReadFile(config.IssuerCAFile)
	if err != nil {
		return "", failure.Permanent(failure.Preflight, "cluster %q: the CA file of its token issuer: %v. Correct issuerCAFile in the site file", in.Context, err)
	}
	return string(ca), nil
}

// ensureKeys pins the cluster's keys in its auth mount, or has Vault discover
// them. Writing replaces the mount's whole configuration.
func (s session) ensureKeys(ctx context.Context, in ClusterAccessInput, discoveryCA string, out *procedure.Outcome) error {
	path := "auth/" + in.Spec.AuthMount(in.Context) + "/config"
	object := "vault auth config " + path
	discovery := in.Spec.Credential.Keys == mesh.KeysDiscovery
	if in.Issuer == "" || !discovery && len(in.KeysPEM) == 0 {
		if in.Mode.Writes() {
			return failure.Permanent(failure.InvalidInput, "Vault %q: the ServiceAccount issuer and keys of cluster %s were not given, so no token of it could be checked. Start the procedure again", s.vault, in.Context)
		}
		return nil
	}
	desired := jwtConfig{BoundIssuer: in.Issuer}
	if discovery {
		desired.DiscoveryURL, desired.DiscoveryCAPEM = in.Issuer, discoveryCA
	} else {
		desired.Keys = in.KeysPEM
	}
	desired = desired.normal()
	var have jwtConfig
	found, err := s.read(ctx, path, &have)
	if err != nil {
		return err
	}
	have = have.normal()
	if found && reflect.DeepEqual(have, desired) {
		return nil
	}
	if found {
		out.Changed(procedure.Update, object, desired.changes(have))
	} else {
		out.Changed(procedure.Create, object, desired.String())
	}
	// The kind of keys that is not used is left out: Vault refuses two kinds,
	// even if one is empty.
	data := map[string]any{"bound_issuer": desired.BoundIssuer}
	if discovery {
		data["oidc_discovery_url"], data["oidc_discovery_ca_pem"] = desired.DiscoveryURL, desired.DiscoveryCAPEM
	} else {
		data["jwt_validation_pubkeys"] = desired.Keys
	}
	if !in.Mode.Writes() {
		out.By(in.Mode, s.data("write", path, data))
		return nil
	}
	return s.write(ctx, path, data, nil)
}

// jwtConfig is how a jwt auth mount checks tokens.
type jwtConfig struct {
	BoundIssuer    string   `json:"bound_issuer"`
	Keys           []string `json:"jwt_validation_pubkeys"`
	DiscoveryURL   string   `json:"oidc_discovery_url"`
	DiscoveryCAPEM string   `json:"oidc_discovery_ca_pem"`
	JWKSURL        string   `json:"jwks_url"`
}

// normal is the configuration in a form that can be compared.
func (c jwtConfig) normal() jwtConfig {
	c.DiscoveryCAPEM = strings.TrimSpace(c.DiscoveryCAPEM)
	keys := []string{}
	for _, key := range c.Keys {
		keys = append(keys, strings.TrimSpace(key))
	}
	c.Keys = set(keys)
	return c
}

func (c jwtConfig) String() string {
	if c.DiscoveryURL != "" {
		return "keys from " + c.DiscoveryURL
	}
	return fmt.Sprintf("issuer %s, %d pinned keys", c.BoundIssuer, len(c.Keys))
}

func (c jwtConfig) changes(have jwtConfig) string {
	var out []string
	if c.BoundIssuer != have.BoundIssuer {
		out = append(out, fmt.Sprintf("bound_issuer is %q, should be %q", have.BoundIssuer, c.BoundIssuer))
	}
	if !slices.Equal(c.Keys, have.Keys) {
		out = append(out, fmt.Sprintf("the cluster's keys have changed: %d pinned, %d now", len(have.Keys), len(c.Keys)))
	}
	if c.DiscoveryURL != have.DiscoveryURL || c.DiscoveryCAPEM != have.DiscoveryCAPEM || c.JWKSURL != have.JWKSURL {
		out = append(out, "keys are found in another way")
	}
	return strings.Join(out, "; ")
}

// ensureTokenRole bounds what can be minted for the cluster: whoever may use
// this role gets tokens with the cluster's policy alone.
func (s session) ensureTokenRole(ctx context.Context, in ClusterAccessInput, out *procedure.Outcome) error {
	name := policyName(in.Spec, in.Context)
	path := "auth/token/roles/" + name
	return s.ensure(ctx, in.Mode, out, "vault token role "+name, path, map[string]any{
		"allowed_policies":        []string{name},
		"allowed_policies_glob":   []string{},
		"allowed_entity_aliases":  []string{},
		"token_explicit_max_ttl":  int64(0),
		"token_num_uses":          int64(0),
		"token_bound_cidrs":       []string{},
		"orphan":                  true,
		"renewable":               true,
		"token_period":            seconds(in.Spec.Credential.TokenPeriod),
		"token_no_default_policy": true,
		"token_type":              "service",
	})
}
