package vault_test

import (
	"context"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/site"
)

// That the activities get along with the policies, the other tests show: all of
// them run with the shipped ones. Here is what these do not allow.
func TestPoliciesRefuse(t *testing.T) {
	w := newWorld(t)
	w.spec.Credential.Method = mesh.CredentialToken
	w.mustSetup(t)
	w.spec.Credential.Method = mesh.CredentialJWT
	w.mustSetup(t)
	everything := map[string]any{"policy": `path "*" { capabilities = ["sudo"] }`}
	for _, test := range []struct {
		identity site.Identity
		path     string
		data     map[string]any
	}{
		{site.Onboard, "sys/policies/acl/relaypki-onboard", everything},
		{site.Onboard, "sys/policies/acl/relaypki-operate", everything},
		{site.Onboard, "sys/policies/acl/other", everything},
		{site.Onboard, "sys/auth/other", map[string]any{"type": "userpass"}},
		{site.Onboard, "sys/mounts/other", map[string]any{"type": "pki"}},
		{site.Onboard, "auth/approle/role/relaypki-operate", map[string]any{"token_policies": "root"}},
		{site.Onboard, "auth/token/create", map[string]any{}},
		{site.Onboard, "auth/token/create-orphan", map[string]any{}},
		{site.Onboard, "pki/root/sign-self-issued", map[string]any{}},
		{site.Onboard, "pki_relay/sign/gloo-mesh-mgmt-server-ca", map[string]any{}},
		{site.Operate, "sys/policies/acl/relaypki-prod-cluster1", everything},
		{site.Operate, "sys/auth/relaypki-prod-cluster3", map[string]any{"type": "jwt"}},
		{site.Operate, "auth/relaypki-prod-cluster1/config", map[string]any{"bound_issuer": "x"}},
		{site.Operate, "pki_relay/sign/gloo-mesh-mgmt-server-ca", map[string]any{}},
		{site.Operate, "pki_relay/roles/relay-client-cluster1", map[string]any{"allow_any_name": true}},
		{site.Operate, "pki_relay/roles/relay-client-cluster1", map[string]any{"issuer_ref": "default"}},
		{site.Operate, "pki_relay/roles/new", map[string]any{"issuer_ref": "default"}},
		{site.Operate, "pki_relay/root/generate/internal", map[string]any{"common_name": "x"}},
		{site.Operate, "pki_relay/intermediate/generate/exported", map[string]any{"common_name": "x"}},
		{site.Operate, "pki_relay/issuers/import/bundle", map[string]any{"pem_bundle": "x"}},
		{site.Operate, "pki_relay/issuer/default", map[string]any{"issuer_name": "x"}},
		{site.Operate, "pki_relay/config/issuers", map[string]any{"default": "relay-intermediate-g1", "default_follows_latest_issuer": true}},
		{site.Operate, "pki_relay/config/crl", map[string]any{"disable": true}},
		{site.Operate, "pki_relay/config/auto-tidy", map[string]any{"tidy_expired_issuers": true}},
		{site.Operate, "pki_relay/key/any", map[string]any{"key_name": "x"}},
		{site.Operate, "pki_relay/config/urls", map[string]any{"crl_distribution_points": "http://x"}},
		{site.Operate, "pki/root/generate/internal", map[string]any{"common_name": "x"}},
		{site.Operate, "pki/config/issuers", map[string]any{"default": "relay-root-g1", "default_follows_latest_issuer": true}},
		{site.Operate, "pki/root/generate/existing", map[string]any{"common_name": "x"}},
		{site.Operate, "pki/root/rotate/exported", map[string]any{"common_name": "x"}},
		{site.Operate, "pki/root/rotate/internal", map[string]any{"common_name": "x", "max_path_length": 0}},
		{site.Operate, "pki/root/rotate/existing", map[string]any{"common_name": "x", "key_ref": "default", "permitted_dns_domains": "x"}},
		{site.Operate, "pki/intermediate/cross-sign", map[string]any{"common_name": "x", "key_ref": "default", "alt_names": "x"}},
		{site.Operate, "pki/intermediate/generate/internal", map[string]any{"common_name": "x"}},
		{site.Operate, "pki/intermediate/set-signed", map[string]any{"certificate": "x"}},
		{site.Operate, "pki/issuers/import/bundle", map[string]any{"pem_bundle": "x"}},
		{site.Operate, "pki/key/any", map[string]any{"key_name": "x"}},
		{site.Operate, "pki/issuer/default", map[string]any{"issuer_name": "x"}},
		{site.Operate, "pki/root/sign-self-issued", map[string]any{}},
		{site.Operate, "sys/mounts/pki/tune", map[string]any{"max_lease_ttl": "1h"}},
		{site.Operate, "sys/storage/raft/snapshot", map[string]any{}},
		{site.Refresh, "sys/policies/acl/relaypki-prod-cluster1", everything},
		{site.Refresh, "sys/auth/relaypki-prod-cluster3", map[string]any{"type": "jwt"}},
		{site.Refresh, "auth/relaypki-prod-cluster1/role/relaypki-issuer", map[string]any{"token_policies": "root"}},
		{site.Refresh, "auth/relaypki-prod-cluster1/role/relaypki-issuer", map[string]any{"bound_subject": "x"}},
		{site.Refresh, "auth/relaypki-prod-cluster1/role/another", map[string]any{"role_type": "jwt", "user_claim": "sub", "bound_audiences": "x"}},
		{site.Refresh, "auth/token/roles/relaypki-prod-cluster1", map[string]any{"allowed_policies": "root"}},
		{site.Refresh, "auth/token/create", map[string]any{}},
		{site.Refresh, "auth/token/create-orphan", map[string]any{}},
		{site.Refresh, "pki_relay/sign/relay-client-cluster1", map[string]any{}},
	} {
		client, err := w.Clients.Vault(context.Background(), "default", test.identity)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Logical().Write(test.path, test.data); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("%s may write %s %v: %v", test.identity, test.path, test.data, err)
		}
	}

	// A role can be pointed at another issuer, and an issuer be used otherwise, by
	// operate, and nothing else of them changed, not even beside that.
	operate, err := w.Clients.Vault(context.Background(), "default", site.Operate)
	if err != nil {
		t.Fatal(err)
	}
	for path, allowed := range map[string]map[string]any{
		"pki_relay/roles/relay-client-cluster1":  {"issuer_ref": "relay-intermediate-g1"},
		"pki_relay/issuer/relay-intermediate-g1": {"leaf_not_after_behavior": "err", "usage": "read-only,issuing-certificates,crl-signing,ocsp-signing"},
		"pki/issuer/relay-root-g1":               {"usage": "read-only,issuing-certificates,crl-signing,ocsp-signing"},
	} {
		if _, err := operate.Logical().JSONMergePatch(context.Background(), path, allowed); err != nil {
			t.Errorf("operate may not patch %s: %v", path, err)
		}
		for field, value := range map[string]any{"allow_any_name": true, "allowed_domains": "x", "max_ttl": "9999h", "key_bits": 1024, "no_store": false, "server_flag": true,
			"leaf_not_after_behavior": "truncate", "crl_distribution_points": "http://x", "revocation_signature_algorithm": "SHA512WithRSA"} {
			for _, data := range []map[string]any{{field: value}, maps.Clone(allowed)} {
				data[field] = value
				if _, err := operate.Logical().JSONMergePatch(context.Background(), path, data); err == nil || !strings.Contains(err.Error(), "permission denied") {
					t.Errorf("operate may patch %s %v: %v", path, data, err)
				}
			}
		}
	}
	for _, path := range []string{"pki_relay/roles/relay-client-cluster1", "pki/root", "pki_relay/root", "sys/mounts/pki"} {
		if _, err := operate.Logical().Delete(path); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("operate may delete %s: %v", path, err)
		}
	}

	// With method appRole it mints secret ids, and writes no role all the same.
	w.spec.Credential.Method = mesh.CredentialAppRole
	w.mustSetup(t)
	client, err := w.Clients.Vault(context.Background(), "default", site.Refresh)
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string]map[string]any{
		"auth/relaypki-prod-cluster1/role/relaypki-issuer":                {"token_policies": "root"},
		"auth/relaypki-prod-cluster1/role/relaypki-issuer/policies":       {"token_policies": "root"},
		"auth/relaypki-prod-cluster1/role/relaypki-issuer/secret-id-ttl":  {"secret_id_ttl": "0"},
		"auth/relaypki-prod-cluster1/role/relaypki-issuer/bind-secret-id": {"bind_secret_id": false},
		"auth/relaypki-prod-cluster1/role/relaypki-issuer/role-id":        {"role_id": "x"},
		"auth/relaypki-prod-cluster1/role/relaypki-issuer/secret-id":      {"ttl": "9999h"},
		"auth/relaypki-prod-cluster1/role/another":                        {},
		"auth/approle/role/relaypki-onboard/secret-id":                    {},
	} {
		if _, err := client.Logical().Write(path, data); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("refresh may write %s %v: %v", path, data, err)
		}
	}
	w.spec.Credential.Method = mesh.CredentialJWT
	w.mustSetup(t)

	// A token role gives that cluster's policy, whatever else is asked for.
	refresh, err := w.Clients.Vault(context.Background(), "default", site.Refresh)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := refresh.Auth().Token().CreateWithRole(&vaultapi.TokenCreateRequest{Policies: []string{"relaypki-prod-cluster2"}}, "relaypki-prod-cluster1"); err == nil {
		t.Error("cluster1's token role gives cluster2's policy")
	}
	// What it is for: a cluster's keys have changed.
	if _, err := refresh.Logical().Write("auth/relaypki-prod-cluster1/config", map[string]any{
		"bound_issuer": "https://cluster1.example:6443", "jwt_validation_pubkeys": []string{w.tokensOf("mgmt").publicPEM},
	}); err != nil {
		t.Errorf("refresh cannot pin a cluster's new keys: %v", err)
	}
}

func TestCheckVault(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	check := func(w *world) vault.CheckVaultResult {
		t.Helper()
		result, err := w.CheckVault(ctx, vault.CheckVaultInput{Spec: w.spec})
		if err != nil {
			t.Fatal(err)
		}
		return result
	}
	for _, method := range []string{mesh.CredentialJWT, mesh.CredentialToken, mesh.CredentialAppRole} {
		w.spec.Credential.Method = method
		if result := check(w); len(result.Problems) > 0 || !strings.HasPrefix(result.Version, "1.") {
			t.Errorf("an empty Vault, method %s: version %q, problems %q", method, result.Version, result.Problems)
		}
	}
	w.spec.Credential.Method = mesh.CredentialJWT
	w.mustSetup(t)
	if result := check(w); len(result.Problems) > 0 {
		t.Errorf("after a setup: %q", result.Problems)
	}

	want := func(name string, problems []string, words ...string) {
		t.Helper()
		for _, word := range words {
			if !strings.Contains(strings.Join(problems, "\n"), word) {
				t.Errorf("%s: no problem says %q: %q", name, word, problems)
			}
		}
	}
	w.forget(t)
	if err := w.Root.Sys().Mount("pki_relay", &vaultapi.MountInput{Type: "pki"}); err != nil {
		t.Fatal(err)
	}
	role := "pki_relay/roles/gloo-mesh-mgmt-server-ca"
	if _, err := w.Root.Logical().Write(role, map[string]any{"allow_any_name": true}); err != nil {
		t.Fatal(err)
	}
	want("a role by hand", check(w).Problems, "the role "+role+" is there", "allow_any_name is true, should be false")
	w.forget(t)
	for path, kind := range map[string]string{"pki": "kv", "pki_relay": "pki"} {
		if err := w.Root.Sys().Mount(path, &vaultapi.MountInput{Type: kind}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Root.Logical().Write("pki_relay/root/generate/internal", map[string]any{"common_name": "Somebody Else", "key_type": "ec"}); err != nil {
		t.Fatal(err)
	}
	if err := w.Root.Sys().PutPolicy("relaypki-onboard", `path "sys/mounts/*" { capabilities = ["read"] }
path "pki_relay/*" { capabilities = ["read", "list"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "sys/capabilities-self" { capabilities = ["update"] }`); err != nil {
		t.Fatal(err)
	}
	if err := w.Root.Sys().PutPolicy("relaypki-operate", `path "pki_relay/roles/+" { capabilities = ["read"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "sys/capabilities-self" { capabilities = ["update"] }`); err != nil {
		t.Fatal(err)
	}
	want("operate of a version before rotations", check(w).Problems, "may not patch pki_relay/roles/gloo-mesh-mgmt-server-ca", "may not list pki_relay/roles", "policies/operate.hcl")
	if strings.Contains(strings.Join(check(w).Problems, "\n"), "snapshot") {
		t.Error("snapshots are asked for although nobody wants one")
	}
	w.spec.Rotation.Snapshot = mesh.SnapshotTake
	want("snapshots", check(w).Problems, "may not read sys/storage/raft/snapshot")
	w.spec.Rotation.Snapshot = mesh.SnapshotWord
	want("all at once", check(w).Problems, `type "kv"`, "Somebody Else", "may not update pki/root/generate/internal", "sudo sys/auth/relaypki-prod-mgmt", "may not create, update pki_relay/roles/gloo-mesh-mgmt-server-ca")

	broken := *w
	config := w.site.Vaults[0]
	config.Identities = map[site.Identity]site.Login{
		site.Onboard: {Method: "approle", RoleIDFile: config.Identities[site.Onboard].RoleIDFile, SecretIDFile: config.Identities[site.Operate].SecretIDFile},
		site.Refresh: {Method: "token", TokenFile: filepath.Join(t.TempDir(), "none")},
	}
	broken.use(config)
	want("logins", check(&broken).Problems, `login of identity "onboard" by approle refused`, `no login for the identity "operate"`, "tokenFile")

	config.Address = "http://127.0.0.1:1"
	broken.use(config)
	want("http", check(&broken).Problems, "is not https")
	config.Address = "https://127.0.0.1:1"
	broken.use(config)
	want("unreachable", check(&broken).Problems, "not reachable")
	config.Address, config.CAFile = w.proxy.url, w.CAFile
	broken.use(config)
	want("another CA", check(&broken).Problems, "TLS")
	if err := w.Root.Sys().Seal(); err != nil {
		t.Fatal(err)
	}
	want("sealed", check(w).Problems, "is sealed")
}
