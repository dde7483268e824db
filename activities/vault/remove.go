package vault

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// CheckVaultRemoval asks what CheckVault asks as far as a removal needs it: whether
// Vault answers, and whether the onboard identity may delete what there is of
// the workload. A Vault that lacks a right gets it named.
func (a *Activities) CheckVaultRemoval(ctx context.Context, in RemoveAccessInput) (CheckVaultResult, error) {
	config, err := a.Clients.VaultConfig(ctx, in.Spec.Vault.Name)
	if err != nil {
		return CheckVaultResult{}, err
	}
	check := vaultCheck{activities: a, spec: in.Spec, result: CheckVaultResult{Address: config.Address}}
	usable, err := check.health(ctx)
	if err != nil || !usable {
		return check.result, err
	}
	s, err := a.session(ctx, in.Spec.Vault.Name, site.Onboard)
	if err != nil {
		return check.result, check.found(err)
	}
	return check.result, check.capabilities(ctx, s, removalNeeds(in))
}

// removalNeeds is what the onboard identity must be able to do.
func removalNeeds(in RemoveAccessInput) []needed {
	role := in.Spec.Vault.RelayMount + "/roles/" + clientRoleName(in.Workload)
	policy := "sys/policies/acl/" + policyName(in.Spec, in.Context)
	tokenRole := "auth/token/roles/" + policyName(in.Spec, in.Context)
	login := "sys/auth/" + in.Spec.AuthMount(in.Context)
	var needs []needed
	for _, path := range []string{role, policy, tokenRole, login} {
		needs = append(needs, needed{path, "read"}, needed{path, "delete"})
	}
	return append(needs, needed{login, "sudo"}, needed{"sys/mounts/" + in.Spec.Vault.RelayMount, "read"})
}

// clientRoleName is the role of one workload, also of one that no longer has
// it: the mesh's isolation may have been another.
func clientRoleName(workload string) string {
	isolated := mesh.Spec{PKI: mesh.PKI{Isolation: mesh.IsolationPerCluster}}
	return isolated.RoleFor(mesh.Workload{Name: workload})
}

// RevokeClusterToken revokes the token in the cluster's vault-token Secret, if
// it is one that was minted for this cluster. It comes first: the right to
// revoke itself is in the token's policy.
func (a *Activities) RevokeClusterToken(ctx context.Context, in RemoveAccessInput) (procedure.Removal, error) {
	var out procedure.Removal
	t := clusterToken{spec: in.Spec, context: in.Context, clients: a.Clients}
	cluster, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	object := kube.Name("Secret", in.Spec.Namespace, mesh.TokenSecretName)
	secret, err := cluster.Kube.CoreV1().Secrets(in.Spec.Namespace).Get(ctx, mesh.TokenSecretName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return out, nil
	}
	if err != nil {
		return out, kube.Error(ctx, cluster, "read "+object, err)
	}
	if kube.NotOurs(secret.Labels, in.Spec.Mesh) != "" {
		return out, nil // RemoveIssuer says so
	}
	state, err := t.inspect(ctx, secret)
	if err != nil {
		return out, err
	}
	if !state.fits {
		if state.client != nil {
			out.Keep("vault token in "+object, state.why)
		}
		return out, nil
	}
	out.Changed(procedure.Delete, "vault token in "+object, "revoked")
	if !in.Mode.Writes() {
		out.By(in.Mode, "# The policy that goes next leaves the token without any right, and it ends with its period.")
		return out, nil
	}
	return out, site.VaultError(state.client.Auth().Token().RevokeSelfWithContext(ctx, ""), in.Spec.Vault.Name, site.Onboard, "revoke the token of cluster "+in.Context)
}

// RemoveClusterAccess closes Vault to one workload: its login, which ends every
// token that came of it; its token role; its role in the relay mount; and its
// policy, without which no token of its is of any use. The policy goes last
// because it carries our mark. What is not ours is kept, and so is in any case
// the role that all clusters share.
func (a *Activities) RemoveClusterAccess(ctx context.Context, in RemoveAccessInput) (procedure.Removal, error) {
	var out procedure.Removal
	s, err := a.session(ctx, in.Spec.Vault.Name, site.Onboard)
	if err != nil {
		return out, err
	}
	policyOwner, err := s.policyOwner(ctx, in)
	if err != nil {
		return out, err
	}
	if err := s.removeLogin(ctx, in, &out); err != nil {
		return out, err
	}
	if err := s.removeTokenRole(ctx, in, policyOwner, &out); err != nil {
		return out, err
	}
	if err := s.removeRole(ctx, in, &out); err != nil {
		return out, err
	}
	name := policyName(in.Spec, in.Context)
	switch policyOwner {
	case us:
		err = s.delete(ctx, in.Mode, &out, "vault policy "+name, "sys/policies/acl/"+name)
	case others:
		out.Keep("vault policy "+name, fmt.Sprintf("its first line does not say that it is the one of mesh %s, cluster %s", in.Spec.Mesh, in.Context))
	case nobody:
	}
	return out, err
}

// owner is whose something is.
type owner int

const (
	nobody owner = iota // it is not there
	us
	others
)

func (s session) policyOwner(ctx context.Context, in RemoveAccessInput) (owner, error) {
	var have struct {
		Policy string `json:"policy"`
	}
	found, err := s.read(ctx, "sys/policies/acl/"+policyName(in.Spec, in.Context), &have)
	switch {
	case err != nil || !found:
		return nobody, err
	case strings.HasPrefix(have.Policy, "# "+mark(in.Spec, in.Context)+"."):
		return us, nil
	}
	return others, nil
}

// removeLogin disables the auth mount, of whatever type it is: a mesh's method
// may have been another.
func (s session) removeLogin(ctx context.Context, in RemoveAccessInput, out *procedure.Removal) error {
	name := in.Spec.AuthMount(in.Context)
	var have mount
	found, err := s.read(ctx, "sys/auth/"+name, &have)
	if err != nil || !found {
		return err
	}
	object := "vault auth mount " + name
	if have.Description != mark(in.Spec, in.Context) {
		out.Keep(object, fmt.Sprintf("it is not the one of mesh %s, cluster %s: its description is %q", in.Spec.Mesh, in.Context, have.Description))
		return nil
	}
	return s.delete(ctx, in.Mode, out, object, "sys/auth/"+name)
}

// removeTokenRole goes by the policy that the role gives: Vault keeps no mark of
// who has made a token role.
func (s session) removeTokenRole(ctx context.Context, in RemoveAccessInput, policyOwner owner, out *procedure.Removal) error {
	name := policyName(in.Spec, in.Context)
	path := "auth/token/roles/" + name
	var have struct {
		AllowedPolicies []string `json:"allowed_policies"`
	}
	found, err := s.read(ctx, path, &have)
	if err != nil || !found {
		return err
	}
	object := "vault token role " + name
	if policyOwner == others || !slices.Equal(have.AllowedPolicies, []string{name}) {
		out.Keep(object, fmt.Sprintf("it does not give the policy of mesh %s, cluster %s, and that alone: it gives %v", in.Spec.Mesh, in.Context, have.AllowedPolicies))
		return nil
	}
	return s.delete(ctx, in.Mode, out, object, path)
}

// removeRole goes by the mount, which is the mesh's, and by the one name that
// the role signs for.
func (s session) removeRole(ctx context.Context, in RemoveAccessInput, out *procedure.Removal) error {
	name := clientRoleName(in.Workload)
	path := in.Spec.Vault.RelayMount + "/roles/" + name
	relay, err := s.mountAt(ctx, in.Spec.Vault.RelayMount)
	if err != nil || relay == nil {
		return err
	}
	var have struct {
		AllowedDomains []string `json:"allowed_domains"`
	}
	found, err := s.read(ctx, path, &have)
	if err != nil || !found {
		return err
	}
	object := "vault role " + path
	switch {
	case relay.unfit(s.vault, in.Spec.Vault.RelayMount, in.Spec.Mesh) != nil:
		out.Keep(object, fmt.Sprintf("its mount is not mesh %s's: its description is %q", in.Spec.Mesh, relay.Description))
		return nil
	case !slices.Equal(have.AllowedDomains, []string{in.Workload}):
		out.Keep(object, fmt.Sprintf("it does not sign for %s alone, as the one that relaypki makes: it signs for %v", in.Workload, have.AllowedDomains))
		return nil
	}
	return s.delete(ctx, in.Mode, out, object, path)
}
