// Package vault sets up the lab's Vault: one real server on raft storage behind
// TLS, initialised and unsealed by the lab, with the worker's three identities.
package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/relaypki/relaypki/deploy/lab/internal/certs"
	"github.com/relaypki/relaypki/deploy/lab/internal/supervise"
	"github.com/relaypki/relaypki/deploy/lab/internal/world"
)

// Identities are the worker's logins: what it may do as each is in
// deploy/vault/policies.
var Identities = []string{"onboard", "operate", "refresh"}

// Server is the lab's Vault.
type Server struct {
	w    *world.World
	repo string
	// config is what Vault reads at its start.
	config string
	// plugin is the SHA-256 of the kubernetes auth method's program.
	plugin string
}

// pluginName is the kubernetes auth method's program in the plugin directory.
const pluginName = "vault-plugin-auth-kubernetes"

// New makes Vault's certificate and configuration. plugin is the program of the
// kubernetes auth method.
func New(w *world.World, repo, plugin string) (*Server, error) {
	s := &Server{w: w, repo: repo}
	if err := s.installPlugin(plugin); err != nil {
		return nil, err
	}
	ca, err := certs.CA(w.Path("vault"), "relaypki lab Vault")
	if err != nil {
		return nil, err
	}
	server, err := certs.Leaf(ca, w.Path("vault"), "server", pkix.Name{CommonName: "vault"})
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(w.Path("vault", "data"), 0o700); err != nil {
		return nil, err
	}
	config := map[string]any{
		"storage": map[string]any{"raft": map[string]any{
			"path": w.Path("vault", "data"), "node_id": "lab", "performance_multiplier": "1",
		}},
		"listener": map[string]any{"tcp": map[string]any{
			"address": w.Addr("vault"), "cluster_address": w.Addr("vault-cluster"),
			"tls_cert_file": server.Cert, "tls_key_file": server.Key,
		}},
		"api_addr":         w.URL("vault"),
		"plugin_directory": w.Path("vault", "plugins"),
		"cluster_addr":     w.URL("vault-cluster"),
		"disable_mlock":    true,
		"ui":               false,
	}
	data, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return nil, err
	}
	s.config = string(data)
	return s, world.WriteFile(w.Path("vault", "config.json"), data, 0o644)
}

// installPlugin puts the program where Vault runs plugins from: it follows no
// link out of that directory.
func (s *Server) installPlugin(program string) error {
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	s.plugin = hex.EncodeToString(sum[:])
	path := s.w.Path("vault", "plugins", pluginName)
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	_ = os.Remove(path) // a running one is not overwritten
	return os.WriteFile(path, data, 0o700)
}

// registerPlugin tells Vault of the kubernetes auth method.
func (s *Server) registerPlugin(ctx context.Context, client *api.Client) error {
	have, err := client.Sys().GetPluginWithContext(ctx, &api.GetPluginInput{Name: "kubernetes", Type: api.PluginTypeCredential})
	if err == nil && have.SHA256 == s.plugin {
		return nil
	}
	return client.Sys().RegisterPluginWithContext(ctx, &api.RegisterPluginInput{Name: "kubernetes", Type: api.PluginTypeCredential, Command: pluginName, SHA256: s.plugin})
}

// CAFile is the CA of Vault's own TLS certificate.
func (s *Server) CAFile() string { return s.w.Path("vault", "ca.crt") }

// Part is the Vault process. It is ready when it is unsealed, so that a Vault
// that was killed comes back usable.
func (s *Server) Part(program []string) supervise.Part {
	return supervise.Part{
		Name:    "vault",
		Key:     s.config,
		Listen:  []string{s.w.Addr("vault"), s.w.Addr("vault-cluster")},
		Log:     s.w.Log("vault"),
		Command: slices.Concat(program, []string{"server", "-config=" + s.w.Path("vault", "config.json")}),
		Ready:   s.open,
	}
}

func (s *Server) client(token string) (*api.Client, error) {
	config := api.DefaultConfig()
	if config.Error != nil {
		return nil, config.Error
	}
	config.Address = s.w.URL("vault")
	config.MaxRetries = 0
	if err := config.ConfigureTLS(&api.TLSConfig{CACert: s.CAFile()}); err != nil {
		return nil, err
	}
	client, err := api.NewClient(config)
	if err != nil {
		return nil, err
	}
	client.ClearNamespace() // of whoever started the lab, as is the token
	client.SetToken(token)
	return client, nil
}

// keys are what initialisation gave.
type keys struct {
	UnsealKey string `json:"unsealKey"`
	RootToken string `json:"rootToken"`
}

func (s *Server) keysFile() string { return s.w.Path("vault", "init.json") }

func (s *Server) keys() (keys, error) {
	var k keys
	data, err := os.ReadFile(s.keysFile())
	if err != nil {
		return k, err
	}
	return k, json.Unmarshal(data, &k)
}

// RootToken is for the person at the lab, not for the worker.
func (s *Server) RootToken() (string, error) {
	k, err := s.keys()
	return k.RootToken, err
}

// open initialises Vault if it is new, unseals it, and waits until it serves.
func (s *Server) open(ctx context.Context) error {
	client, err := s.client("")
	if err != nil {
		return err
	}
	health, err := client.Sys().HealthWithContext(ctx)
	if err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	if !health.Initialized {
		answer, err := client.Sys().InitWithContext(ctx, &api.InitRequest{SecretShares: 1, SecretThreshold: 1})
		if err != nil {
			return fmt.Errorf("vault init: %w", err)
		}
		data, err := json.Marshal(keys{UnsealKey: answer.KeysB64[0], RootToken: answer.RootToken})
		if err != nil {
			return err
		}
		if err := world.WriteFile(s.keysFile(), data, 0o600); err != nil {
			return err
		}
	}
	k, err := s.keys()
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("vault is initialised, but its keys are not in %s: `lab clean` starts anew", s.keysFile())
	}
	if err != nil {
		return err
	}
	if !health.Initialized || health.Sealed {
		if _, err := client.Sys().UnsealWithContext(ctx, k.UnsealKey); err != nil {
			return fmt.Errorf("vault unseal: %w", err)
		}
	}
	// Unsealed, it may not be the active node yet.
	leader, err := client.Sys().LeaderWithContext(ctx)
	if err != nil {
		return fmt.Errorf("vault leader: %w", err)
	}
	if !leader.IsSelf {
		return errors.New("vault is not the active node yet")
	}
	client.SetToken(k.RootToken)
	if _, err := client.Logical().ReadWithContext(ctx, "sys/auth"); err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	return nil
}

// Policies are the files with what the worker's identities may do.
func Policies(repo string) []string {
	var files []string
	for _, identity := range Identities {
		files = append(files, filepath.Join(repo, "deploy", "vault", "policies", identity+".hcl"))
	}
	return files
}

// AdmitWorker turns on the audit device and makes the worker's identities.
// What is as it should be is not written again.
func (s *Server) AdmitWorker(ctx context.Context) error {
	token, err := s.RootToken()
	if err != nil {
		return err
	}
	client, err := s.client(token)
	if err != nil {
		return err
	}
	if err := s.registerPlugin(ctx, client); err != nil {
		return fmt.Errorf("vault plugin %s: %w", pluginName, err)
	}
	devices, err := client.Sys().ListAuditWithContext(ctx)
	if err != nil {
		return fmt.Errorf("vault audit: %w", err)
	}
	if devices["file/"] == nil {
		if err := client.Sys().EnableAuditWithOptionsWithContext(ctx, "file", &api.EnableAuditOptions{
			Type: "file", Options: map[string]string{"file_path": s.w.Path("logs", "vault-audit.log")},
		}); err != nil {
			return fmt.Errorf("vault audit: %w", err)
		}
	}
	mounts, err := client.Sys().ListAuthWithContext(ctx)
	if err != nil {
		return fmt.Errorf("vault auth: %w", err)
	}
	if mounts["approle/"] == nil {
		if err := client.Sys().EnableAuthWithOptionsWithContext(ctx, "approle", &api.EnableAuthOptions{Type: "approle"}); err != nil {
			return fmt.Errorf("vault auth: %w", err)
		}
	}
	for i, file := range Policies(s.repo) {
		if err := s.admit(ctx, client, Identities[i], file); err != nil {
			return fmt.Errorf("vault identity %s: %w", Identities[i], err)
		}
	}
	return nil
}

// RoleIDFile and SecretIDFile hold an identity's AppRole credentials.
func (s *Server) RoleIDFile(identity string) string {
	return s.w.Path("worker", "vault", identity+".role-id")
}

// SecretIDFile is the other half.
func (s *Server) SecretIDFile(identity string) string {
	return s.w.Path("worker", "vault", identity+".secret-id")
}

func (s *Server) admit(ctx context.Context, client *api.Client, identity, policyFile string) error {
	name := "relaypki-" + identity
	policy, err := os.ReadFile(policyFile)
	if err != nil {
		return err
	}
	old, err := client.Sys().GetPolicyWithContext(ctx, name)
	if err != nil {
		return err
	}
	if strings.TrimSpace(old) != strings.TrimSpace(string(policy)) {
		if err := client.Sys().PutPolicyWithContext(ctx, name, string(policy)); err != nil {
			return fmt.Errorf("policy %s: %w", policyFile, err)
		}
	}
	role := "auth/approle/role/" + name
	there, err := client.Logical().ReadWithContext(ctx, role)
	if err != nil {
		return err
	}
	if there == nil {
		if _, err := client.Logical().WriteWithContext(ctx, role, map[string]any{
			"token_policies": []string{name},
			"token_ttl":      "1h",
			"token_max_ttl":  "24h",
			"secret_id_ttl":  "0",
		}); err != nil {
			return err
		}
	}
	id, err := client.Logical().ReadWithContext(ctx, role+"/role-id")
	if err != nil {
		return err
	}
	roleID, ok := id.Data["role_id"].(string)
	if !ok {
		return errors.New("no role_id in the answer")
	}
	if err := world.WriteFile(s.RoleIDFile(identity), []byte(roleID), 0o600); err != nil {
		return err
	}
	if secretID, err := os.ReadFile(s.SecretIDFile(identity)); err == nil {
		found, err := client.Logical().WriteWithContext(ctx, role+"/secret-id/lookup", map[string]any{"secret_id": string(secretID)})
		if err != nil {
			return err
		}
		if found != nil {
			return nil
		}
	}
	minted, err := client.Logical().WriteWithContext(ctx, role+"/secret-id", map[string]any{})
	if err != nil {
		return err
	}
	secretID, ok := minted.Data["secret_id"].(string)
	if !ok {
		return errors.New("no secret_id in the answer")
	}
	return world.WriteFile(s.SecretIDFile(identity), []byte(secretID), 0o600)
}
