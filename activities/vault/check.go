package vault

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/site"
)

// CheckVault looks at reachability, seal, version, the identities' logins and
// capabilities, and whether our mount paths are free or ours. Everything that
// is in the way is in the result; an error means that it could not be asked.
func (a *Activities) CheckVault(ctx context.Context, in CheckVaultInput) (CheckVaultResult, error) {
	name := in.Spec.Vault.Name
	config, err := a.Clients.VaultConfig(ctx, name)
	if err != nil {
		return CheckVaultResult{}, err
	}
	check := vaultCheck{activities: a, spec: in.Spec, joining: in.Joining, result: CheckVaultResult{Address: config.Address}}
	if config.Address == "" {
		check.problem("Vault %q has no address in the site file", name)
		return check.result, nil
	}
	if !config.InsecureVault {
		for _, address := range []string{config.Address, config.ClusterAddress} {
			if address != "" && !strings.HasPrefix(address, "https://") {
				check.problem("Vault %q: %s is not https. Serve Vault over TLS, or set insecureVault: true in the site file", name, address)
			}
		}
	}
	if len(check.result.Problems) > 0 {
		return check.result, nil
	}
	usable, err := check.health(ctx)
	if err != nil || !usable {
		return check.result, err
	}
	sessions, err := check.logins(ctx)
	if err != nil {
		return check.result, err
	}
	if s, ok := sessions[site.Onboard]; ok {
		if err := check.onboard(ctx, s); err != nil {
			return check.result, err
		}
	}
	for identity, needs := range map[site.Identity][]needed{site.Operate: operateNeeds(in.Spec), site.Refresh: refreshNeeds(in.Spec)} {
		if s, ok := sessions[identity]; ok {
			if err := check.capabilities(ctx, s, needs); err != nil {
				return check.result, err
			}
		}
	}
	return check.result, nil
}

type vaultCheck struct {
	activities *Activities
	spec       mesh.Spec
	joining    bool
	result     CheckVaultResult
}

func (c *vaultCheck) problem(format string, args ...any) {
	c.result.Problems = append(c.result.Problems, fmt.Sprintf(format, args...))
}

// found takes an error as a problem if somebody must act on it. A canceled
// activity is none.
func (c *vaultCheck) found(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	c.problem("%s", failure.Message(err))
	return nil
}

func (c *vaultCheck) health(ctx context.Context) (usable bool, err error) {
	name := c.spec.Vault.Name
	client, err := c.activities.Clients.VaultWithToken(ctx, name, "")
	if err != nil {
		return false, c.found(err)
	}
	health, err := client.Sys().HealthWithContext(ctx)
	if err != nil {
		return false, c.found(site.VaultError(err, name, "", "ask for its health"))
	}
	c.result.Version = health.Version
	switch {
	case !health.Initialized:
		c.problem("Vault %q at %s is not initialised: `vault operator init` there, and keep the unseal keys", name, c.result.Address)
		return false, nil
	case health.Sealed:
		c.problem("Vault %q at %s is sealed: `vault operator unseal` there", name, c.result.Address)
		return false, nil
	}
	if !atLeast(health.Version, 1, 11) {
		c.problem("Vault %q has version %s; 1.11 or later is needed, which can hold several issuers in a mount", name, health.Version)
		return false, nil
	}
	return true, nil
}

var versionNumbers = regexp.MustCompile(`^v?(\d+)\.(\d+)`)

func atLeast(version string, major, minor int) bool {
	m := versionNumbers.FindStringSubmatch(version)
	if m == nil {
		return false
	}
	haveMajor, _ := strconv.Atoi(m[1])
	haveMinor, _ := strconv.Atoi(m[2])
	return haveMajor > major || haveMajor == major && haveMinor >= minor
}

// logins logs in as each of the three identities.
func (c *vaultCheck) logins(ctx context.Context) (map[site.Identity]session, error) {
	sessions := map[site.Identity]session{}
	for _, identity := range []site.Identity{site.Onboard, site.Operate, site.Refresh} {
		s, err := c.activities.session(ctx, c.spec.Vault.Name, identity)
		if err == nil {
			// The session may be old: what it was allowed then proves nothing now.
			var self map[string]any
			_, err = s.read(ctx, "auth/token/lookup-self", &self)
		}
		if err != nil {
			if err := c.found(err); err != nil {
				return nil, err
			}
			continue
		}
		sessions[identity] = s
	}
	return sessions, nil
}

// needed is what an identity must be able to do.
type needed struct {
	path       string
	capability string
}

func (c *vaultCheck) onboard(ctx context.Context, s session) error {
	if err := c.capabilities(ctx, s, onboardNeeds(c.spec)); err != nil {
		return err
	}
	for _, m := range []struct {
		path, prefix string
		ca           mesh.CA
	}{
		{c.spec.Vault.RootMount, rootPrefix, c.spec.PKI.Root.CA},
		{c.spec.Vault.RelayMount, intermediatePrefix, c.spec.PKI.Intermediate},
	} {
		if m.prefix == rootPrefix && c.spec.PKI.Root.Offline() {
			continue
		}
		have, err := s.mountAt(ctx, m.path)
		if err == nil && have != nil {
			if err = have.unfit(s.vault, m.path, c.spec.Mesh); err == nil && !c.joining {
				err = c.authority(ctx, s, m.path, m.prefix, m.ca)
			}
		}
		if err := c.found(err); err != nil {
			return err
		}
	}
	return nil
}

// authority looks at the CA that a setup finds in a mount: the one at work, since
// those before it may have lost their keys.
func (c *vaultCheck) authority(ctx context.Context, s session, mount, prefix string, asked mesh.CA) error {
	name, err := s.atWork(ctx, mount, prefix)
	if err != nil {
		return err
	}
	if prefix == rootPrefix {
		asked = rootOf(asked, generationOf(prefix, name))
	}
	found, err := s.authority(ctx, mount, name, prefix, asked)
	if err == nil && mount == c.spec.Vault.RelayMount && found.issuer == nil {
		err = c.foreignRoles(ctx, s)
	}
	return err
}

// foreignRoles names the roles of our names in a mount without our CA, and so
// are somebody else's: ours come after it. Vault keeps no mark of who made a role.
func (c *vaultCheck) foreignRoles(ctx context.Context, s session) error {
	desired := map[string]map[string]any{c.spec.PKI.Role: serverRole(c.spec, ""), c.spec.ProbeRole(): probeRole("")}
	for name, role := range desired {
		path := c.spec.Vault.RelayMount + "/roles/" + name
		var have map[string]any
		found, err := s.read(ctx, path, &have)
		if err != nil {
			return err
		}
		delete(role, "issuer_ref")
		if differing := differences(role, have); found && len(differing) > 0 {
			c.problem("Vault %q: the role %s is there, made by somebody else, and would be written over: %s. Delete it (`vault delete %s`), or name another one in the input (pki.role)", s.vault, path, strings.Join(differing, "; "), path)
		}
	}
	return nil
}

// operateNeeds is one path for each rule of the operate policy that a
// verification or a rotation of this mesh relies on. The deletion of a key is not
// among them: whether the worker may do that is the operator's choice.
func operateNeeds(spec mesh.Spec) []needed {
	root, relay := spec.Vault.RootMount, spec.Vault.RelayMount
	role := relay + "/roles/" + spec.PKI.Role
	needs := []needed{
		{role, "read"}, {role, "patch"}, {relay + "/roles", "list"},
		{relay + "/issuer/any", "patch"}, {relay + "/keys", "list"},
		{relay + "/config/issuers", "update"},
		{relay + "/intermediate/generate/internal", "update"},
		{relay + "/intermediate/generate/existing", "update"},
		{relay + "/intermediate/set-signed", "update"},
		{relay + "/issuers/import/cert", "update"},
		{relay + "/issuer/any/sign/" + spec.ProbeRole(), "update"},
	}
	if !spec.PKI.Root.Offline() {
		needs = append(needs, needed{root + "/issuer/any/sign-intermediate", "update"},
			needed{root + "/root/rotate/internal", "update"}, needed{root + "/root/rotate/existing", "update"},
			needed{root + "/intermediate/cross-sign", "update"},
			needed{root + "/issuer/any", "patch"}, needed{root + "/keys", "list"}, needed{root + "/config/issuers", "update"},
			needed{root + "/certs", "list"}, needed{root + "/cert/any", "read"},
			needed{"sys/mounts/" + root + "/tune", "read"})
	}
	for _, mount := range mountsOf(spec) {
		needs = append(needs, needed{mount + "/issuers", "list"}, needed{mount + "/issuer/any", "read"}, needed{mount + "/config/issuers", "read"},
			needed{mount + "/config/crl", "read"}, needed{mount + "/config/crl", "update"},
			needed{mount + "/config/auto-tidy", "read"}, needed{mount + "/config/auto-tidy", "update"})
	}
	if spec.Rotation.Snapshot == mesh.SnapshotTake {
		needs = append(needs, needed{"sys/storage/raft/snapshot", "read"})
	}
	return needs
}

// mountsOf are the PKI mounts of a mesh.
func mountsOf(spec mesh.Spec) []string {
	if spec.PKI.Root.Offline() {
		return []string{spec.Vault.RelayMount}
	}
	return []string{spec.Vault.RootMount, spec.Vault.RelayMount}
}

// refreshNeeds is what keeps a cluster's credential current.
func refreshNeeds(spec mesh.Spec) []needed {
	if spec.Credential.Method == mesh.CredentialToken {
		return []needed{{"auth/token/create/" + policyName(spec, spec.Management.Context), "update"}}
	}
	if spec.Credential.Method == mesh.CredentialAppRole {
		role := loginRole(spec, spec.Management.Context)
		return []needed{{role + "/secret-id", "update"}, {role + "/secret-id/lookup", "update"}, {role + "/secret-id-accessor/destroy", "update"}}
	}
	if spec.Credential.Method == mesh.CredentialKubernetes {
		return nil
	}
	config := "auth/" + spec.AuthMount(spec.Management.Context) + "/config"
	return []needed{{config, "read"}, {config, "update"}}
}

// onboardNeeds is one path for each rule of the onboard policy.
func onboardNeeds(spec mesh.Spec) []needed {
	root, relay := spec.Vault.RootMount, spec.Vault.RelayMount
	access := policyName(spec, spec.Management.Context)
	needs := []needed{
		{relay + "/intermediate/generate/internal", "update"},
		{relay + "/intermediate/generate/existing", "update"},
		{relay + "/intermediate/set-signed", "update"},
		{relay + "/issuers/import/cert", "update"},
		{relay + "/roles/" + spec.PKI.Role, "read"}, {relay + "/roles/" + spec.PKI.Role, "create"}, {relay + "/roles/" + spec.PKI.Role, "update"},
		{"sys/policies/acl/" + access, "read"}, {"sys/policies/acl/" + access, "update"},
	}
	if !spec.PKI.Root.Offline() {
		needs = append(needs,
			needed{root + "/root/generate/internal", "update"}, needed{root + "/issuer/any/sign-intermediate", "update"},
			needed{root + "/certs", "list"}, needed{root + "/cert/any", "read"})
	}
	for _, mount := range mountsOf(spec) {
		needs = append(needs,
			needed{"sys/mounts/" + mount, "read"}, needed{"sys/mounts/" + mount, "update"},
			needed{"sys/mounts/" + mount + "/tune", "read"}, needed{"sys/mounts/" + mount + "/tune", "update"},
			needed{mount + "/issuers", "list"}, needed{mount + "/keys", "list"},
			needed{mount + "/issuer/any", "read"}, needed{mount + "/issuer/any", "patch"},
			needed{mount + "/config/issuers", "read"}, needed{mount + "/config/issuers", "update"})
	}
	if spec.Credential.Method == mesh.CredentialToken {
		return append(needs, needed{"auth/token/roles/" + access, "read"}, needed{"auth/token/roles/" + access, "create"}, needed{"auth/token/roles/" + access, "update"})
	}
	access = spec.AuthMount(spec.Management.Context)
	return append(needs,
		needed{"sys/auth/" + access, "read"}, needed{"sys/auth/" + access, "update"}, needed{"sys/auth/" + access, "delete"}, needed{"sys/auth/" + access, "sudo"},
		needed{"auth/" + access + "/config", "read"}, needed{"auth/" + access + "/config", "update"},
		needed{"auth/" + access + "/role/any", "read"}, needed{"auth/" + access + "/role/any", "create"}, needed{"auth/" + access + "/role/any", "update"})
}

// capabilities asks Vault what the identity may do, all paths at once.
func (c *vaultCheck) capabilities(ctx context.Context, s session, needs []needed) error {
	if len(needs) == 0 {
		return nil // which Vault would take for a mistake
	}
	var paths []string
	for _, n := range needs {
		paths = append(paths, n.path)
	}
	var have map[string]any
	if err := s.write(ctx, "sys/capabilities-self", map[string]any{"paths": set(paths)}, &have); err != nil {
		return c.found(err)
	}
	missing := map[string][]string{}
	for _, n := range needs {
		capabilities := texts(have[n.path])
		if !slices.Contains(capabilities, n.capability) && !slices.Contains(capabilities, "root") {
			missing[n.path] = append(missing[n.path], n.capability)
		}
	}
	for _, path := range set(paths) {
		if len(missing[path]) > 0 {
			c.problem("Vault %q: identity %q may not %s %s: compare its policy with deploy/vault/policies/%s.hcl", s.vault, s.identity, strings.Join(missing[path], ", "), path, s.identity)
		}
	}
	return nil
}
