// Package vaulttest starts a real Vault for tests.
package vaulttest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
)

// Server is a Vault, in memory unless it says otherwise, served over TLS on 127.0.0.1.
type Server struct {
	// Program is the vault program that it runs, which is the command line too.
	Program string
	Address string
	CAFile  string
	// Root uses the root token.
	Root *vaultapi.Client
}

// Start starts a Vault that ends with the test. Without a Vault program the
// test fails and says how to get one.
func Start(t testing.TB) *Server {
	t.Helper()
	return start(t)
}

// StartRaft is Start with a Vault on integrated storage, which is on disk.
func StartRaft(t testing.TB) *Server {
	t.Helper()
	dir := t.TempDir()
	config := fmt.Sprintf("storage \"raft\" {\n  path = %q\n  node_id = \"test\"\n}\ncluster_addr = \"https://%s\"\ndisable_mlock = true\n", dir, freeAddress(t))
	file := filepath.Join(t.TempDir(), "raft.hcl")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return start(t, "-config="+file)
}

func start(t testing.TB, more ...string) *Server {
	t.Helper()
	program := find(t)
	dir := t.TempDir()
	address := freeAddress(t)
	const rootToken = "vaulttest-root"
	var log bytes.Buffer
	command := exec.Command(program, append([]string{"server", "-dev", "-dev-tls", "-dev-tls-cert-dir=" + dir, "-dev-no-store-token",
		"-dev-listen-address=" + address, "-dev-root-token-id=" + rootToken}, more...)...)
	command.Env = append(os.Environ(), "HOME="+dir)
	command.Stdout, command.Stderr = &log, &log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	ended := make(chan struct{})
	go func() { command.Wait(); close(ended) }()
	t.Cleanup(func() {
		command.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			command.Process.Kill()
			<-ended
		}
	})
	server := &Server{Program: program, Address: "https://" + address, CAFile: filepath.Join(dir, "vault-ca.pem")}
	server.Root = server.await(t, rootToken, ended, &log)
	return server
}

func (s *Server) await(t testing.TB, token string, ended chan struct{}, log *bytes.Buffer) *vaultapi.Client {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		if client, err := s.Client(token); err == nil {
			if _, err := client.Auth().Token().LookupSelfWithContext(context.Background()); err == nil {
				return client
			}
		}
		select {
		case <-ended:
			t.Fatalf("Vault ended before it was ready:\n%s", log.String())
		case <-deadline:
			t.Fatal("Vault was not ready after a minute")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Client is a client with that token.
func (s *Server) Client(token string) (*vaultapi.Client, error) {
	config := vaultapi.DefaultConfig()
	config.Address = s.Address
	config.MaxRetries = 0
	if err := config.ConfigureTLS(&vaultapi.TLSConfig{CACert: s.CAFile}); err != nil {
		return nil, err
	}
	client, err := vaultapi.NewClient(config)
	if err != nil {
		return nil, err
	}
	client.ClearNamespace()
	client.SetToken(token)
	return client, nil
}

// AppRole makes a login of that name, with the given policy or the default one
// alone, and answers with the files of its role id and secret id.
func (s *Server) AppRole(t testing.TB, name, policy string, settings map[string]any) (roleIDFile, secretIDFile string) {
	t.Helper()
	ctx := context.Background()
	auths, err := s.Root.Sys().ListAuthWithContext(ctx)
	if err == nil && auths["approle/"] == nil {
		err = s.Root.Sys().EnableAuthWithOptionsWithContext(ctx, "approle", &vaultapi.EnableAuthOptions{Type: "approle"})
	}
	if err != nil {
		t.Fatalf("enable approle: %v", err)
	}
	role := map[string]any{"token_policies": []string{}}
	if policy != "" {
		if err := s.Root.Sys().PutPolicyWithContext(ctx, name, policy); err != nil {
			t.Fatalf("policy %s: %v", name, err)
		}
		role["token_policies"], role["token_no_default_policy"] = []string{name}, true
	}
	for field, value := range settings {
		role[field] = value
	}
	path := "auth/approle/role/" + name
	if _, err := s.Root.Logical().WriteWithContext(ctx, path, role); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	dir := t.TempDir()
	save := func(file, path, field string, secret *vaultapi.Secret, err error) string {
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		value, _ := secret.Data[field].(string)
		file = filepath.Join(dir, file)
		if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	id, err := s.Root.Logical().ReadWithContext(ctx, path+"/role-id")
	roleIDFile = save("role-id", path, "role_id", id, err)
	secret, err := s.Root.Logical().WriteWithContext(ctx, path+"/secret-id", nil)
	secretIDFile = save("secret-id", path, "secret_id", secret, err)
	return roleIDFile, secretIDFile
}

// find is the Vault program: RELAYPKI_LAB_VAULT, the one that the lab has
// built, or the one on PATH.
func find(t testing.TB) string {
	t.Helper()
	if program := os.Getenv("RELAYPKI_LAB_VAULT"); program != "" {
		return program
	}
	if program := built(); program != "" {
		return program
	}
	if program, err := exec.LookPath("vault"); err == nil {
		return program
	}
	t.Fatal("this test needs a real Vault and there is none: run `make servers` to build the lab's, or name one in RELAYPKI_LAB_VAULT")
	return ""
}

// built is the newest Vault in the lab's cache of programs.
func built() string {
	cache := os.Getenv("RELAYPKI_LAB_CACHE")
	if cache == "" {
		user := os.Getenv("XDG_CACHE_HOME")
		if user == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return ""
			}
			user = filepath.Join(home, ".cache")
		}
		cache = filepath.Join(user, "relaypki-lab")
	}
	// A directory for each state of the sources; the newest one counts.
	programs, _ := filepath.Glob(filepath.Join(cache, "vault", "*", "vault"))
	newest, at := "", time.Time{}
	for _, program := range programs {
		if info, err := os.Stat(program); err == nil && info.ModTime().After(at) {
			newest, at = program, info.ModTime()
		}
	}
	return newest
}

func freeAddress(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}
