package site_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"go.temporal.io/sdk/temporal"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/secret/secrettest"
	"github.com/relaypki/relaypki/internal/site"
	"github.com/relaypki/relaypki/internal/vaulttest"
)

func clients(server *vaulttest.Server, login site.Login) *site.Clients {
	return site.NewClients(site.Config{Vaults: []site.VaultConfig{{
		Name: "default", Address: server.Address, CAFile: server.CAFile,
		Identities: map[site.Identity]site.Login{site.Onboard: login},
	}}}, zap.NewNop())
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t *testing.T, server *vaulttest.Server, path string, data map[string]any) {
	t.Helper()
	if _, err := server.Root.Logical().Write(path, data); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func TestLogins(t *testing.T) {
	server := vaulttest.Start(t)
	if err := server.Root.Sys().PutPolicy("probe", `path "auth/token/lookup-self" { capabilities = ["read"] }`); err != nil {
		t.Fatal(err)
	}
	roleID, secretID := server.AppRole(t, "worker", "", map[string]any{"token_policies": "probe"})

	minted, err := server.Root.Auth().Token().Create(&vaultapi.TokenCreateRequest{Policies: []string{"probe"}, TTL: "1h"})
	if err != nil {
		t.Fatal(err)
	}

	certFile, keyFile, ca := clientCertificate(t)
	if err := server.Root.Sys().EnableAuthWithOptions("cert", &vaultapi.EnableAuthOptions{Type: "cert"}); err != nil {
		t.Fatal(err)
	}
	write(t, server, "auth/cert/certs/worker", map[string]any{"certificate": ca, "token_policies": "probe"})

	// A shell's own settings are not the worker's.
	t.Setenv("VAULT_TOKEN", "a-token-of-the-shell")
	t.Setenv("VAULT_NAMESPACE", "elsewhere")
	t.Setenv("VAULT_ADDR", "https://127.0.0.1:1")
	for _, login := range []site.Login{
		{Method: "approle", Mount: "approle", RoleIDFile: roleID, SecretIDFile: secretID},
		{Method: "token", TokenFile: file(t, "token", minted.Auth.ClientToken+"\n")},
		{Method: "cert", Role: "worker", CertFile: certFile, KeyFile: keyFile},
	} {
		t.Run(login.Method, func(t *testing.T) {
			client, err := clients(server, login).Vault(context.Background(), "default", site.Onboard)
			if err != nil {
				t.Fatal(err)
			}
			self, err := client.Auth().Token().LookupSelf()
			if err != nil {
				t.Fatal(err)
			}
			if policies, err := self.TokenPolicies(); err != nil || !strings.Contains(fmt.Sprint(policies), "probe") {
				t.Errorf("policies %v (%v)", policies, err)
			}
		})
	}
}

// The lab's Vault is built without the kubernetes method, so what is sent is
// compared with Vault's API instead.
func TestKubernetesLogin(t *testing.T) {
	var path, body string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		path, body = r.Method+" "+r.URL.Path, string(text)
		fmt.Fprint(w, `{"auth":{"client_token":"the-token","lease_duration":3600}}`)
	}))
	t.Cleanup(server.Close)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	client, err := clients(&vaulttest.Server{Address: server.URL, CAFile: file(t, "ca.pem", ca)},
		site.Login{Method: "kubernetes", Mount: "mgmt", Role: "worker", JWTFile: file(t, "jwt", "the-pod's-token")}).Vault(context.Background(), "default", site.Onboard)
	if err != nil {
		t.Fatal(err)
	}
	if path != "PUT /v1/auth/mgmt/login" || body != `{"jwt":"the-pod's-token","role":"worker"}` || client.Token() != "the-token" {
		t.Errorf("%s %s", path, body)
	}
}

func clientCertificate(t *testing.T) (certFile, keyFile, ca string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "worker"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return file(t, "cert.pem", ca), file(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))), ca
}

// A token that is revoked or expires under a running worker is replaced, also
// when many activities notice at once; its value is never logged.
func TestTokenIsReplaced(t *testing.T) {
	ctx := context.Background()
	server := vaulttest.Start(t)
	roleID, secretID := server.AppRole(t, "worker", "", nil)
	core, logs := observer.New(zap.DebugLevel)
	c := clients(server, site.Login{Method: "approle", RoleIDFile: roleID, SecretIDFile: secretID})
	c.Log = zap.New(core)
	client, err := c.Vault(ctx, "default", site.Onboard)
	if err != nil {
		t.Fatal(err)
	}
	first := client.Token()
	if err := server.Root.Auth().Token().RevokeTree(first); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for range 10 {
		wait.Go(func() {
			again, err := c.Vault(ctx, "default", site.Onboard)
			if err == nil {
				_, err = again.Auth().Token().LookupSelf()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if logins := logs.FilterMessage("logged in to Vault").Len(); logins != 2 {
		t.Errorf("%d logins, expected 2: the first, and one after the revocation", logins)
	}
	for _, entry := range logs.All() {
		if text := fmt.Sprint(entry.Message, entry.ContextMap()); strings.Contains(text, first) || strings.Contains(text, client.Token()) {
			t.Errorf("a token is in the log: %s", entry.Message)
		}
	}

	// Denied for lack of permission: the token stays.
	before := client.Token()
	_, err = client.Logical().Write("sys/policies/acl/x", map[string]any{"policy": ""})
	if err == nil || client.Token() != before {
		t.Errorf("a denial led to a new login (%v)", err)
	}
}

// A token is renewed as long as Vault extends its life, and then a new one is
// logged in for, before it expires.
func TestTokenIsRenewedAhead(t *testing.T) {
	ctx := context.Background()
	server := vaulttest.Start(t)
	for _, test := range []struct {
		name, ttl, max string
		// enough says that what is to be seen was seen: so many tokens so far,
		// and whether the present one has been renewed.
		enough func(tokens int, renewed bool) bool
	}{
		{"renewable", "6s", "1h", func(_ int, renewed bool) bool { return renewed }},
		{"not for longer", "6s", "6s", func(tokens int, _ bool) bool { return tokens >= 3 }},
	} {
		roleID, secretID := server.AppRole(t, "worker-"+test.ttl+"-"+test.max, "", map[string]any{"token_ttl": test.ttl, "token_max_ttl": test.max})
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := clients(server, site.Login{Method: "approle", RoleIDFile: roleID, SecretIDFile: secretID})
			tokens := map[string]bool{}
			for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
				client, err := c.Vault(ctx, "default", site.Onboard)
				if err != nil {
					t.Fatal(err)
				}
				self, err := client.Auth().Token().LookupSelf()
				if err != nil {
					t.Fatal(err)
				}
				tokens[client.Token()] = true
				if test.enough(len(tokens), self.Data["last_renewal"] != nil) {
					return
				}
				if time.Now().After(end) {
					t.Fatalf("after a minute: %d tokens, none of them renewed", len(tokens))
				}
			}
		})
	}
}

// Vault's own quota: what it turns away is sent again when Vault says, a write
// once only, and what it would turn away for longer fails with that time.
func TestVaultQuota(t *testing.T) {
	ctx := context.Background()
	server := vaulttest.Start(t)
	policy := `path "secret/*" { capabilities = ["create", "update", "read"] }`
	roleID, secretID := server.AppRole(t, "worker", policy, nil)
	c := clients(server, site.Login{Method: "approle", RoleIDFile: roleID, SecretIDFile: secretID})
	client, err := c.Vault(ctx, "default", site.Onboard)
	if err != nil {
		t.Fatal(err)
	}
	quota := func(interval string) {
		t.Helper()
		write(t, server, "sys/quotas/rate-limit/secret", map[string]any{"path": "secret", "rate": 1, "interval": interval})
	}
	put := func(ctx context.Context) error {
		_, err := client.Logical().WriteWithContext(ctx, "secret/data/x", map[string]any{"data": map[string]any{"a": "b"}})
		return site.VaultError(err, "default", site.Onboard, "write secret/data/x")
	}
	quota("1s")
	began := time.Now()
	for range 3 {
		if err := put(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("three writes at one a second took %s: the quota was not met", took)
	}
	if _, err := server.Root.Logical().Delete("sys/quotas/rate-limit/secret"); err != nil {
		t.Fatal(err)
	}
	read, err := server.Root.Logical().Read("secret/metadata/x")
	if err != nil || read == nil || fmt.Sprint(read.Data["current_version"]) != "3" {
		t.Errorf("three writes made %+v (%v), want version 3", read, err)
	}

	write(t, server, "sys/quotas/config", map[string]any{"enable_rate_limit_response_headers": true})
	quota("1h")
	_ = put(ctx) // may be the one that the hour allows
	bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	began = time.Now()
	err = put(bounded)
	var app *temporal.ApplicationError
	if !errors.As(err, &app) || app.NonRetryable() || app.NextRetryDelay() < time.Minute || !strings.Contains(err.Error(), "429") || time.Since(began) > 5*time.Second {
		t.Errorf("a quota of one an hour, after %s: %v", time.Since(began), err)
	}
}

func TestLoginFailures(t *testing.T) {
	ctx := context.Background()
	server := vaulttest.Start(t)
	roleID, _ := server.AppRole(t, "worker", "", nil)
	const secret = "11111111-2222-3333-4444-555555555555"
	for name, test := range map[string]struct {
		login    site.Login
		identity site.Identity
		kind     failure.Kind
		words    string
	}{
		"no login for the identity": {site.Login{Method: "approle"}, site.Operate, failure.Preflight, `no login for the identity "operate"`},
		"a wrong secret id":         {site.Login{Method: "approle", RoleIDFile: roleID, SecretIDFile: file(t, "secret", secret)}, site.Onboard, failure.Denied, "by approle refused"},
		"no file":                   {site.Login{Method: "token", TokenFile: "/nowhere/token"}, site.Onboard, failure.Preflight, "/nowhere/token"},
		"an empty file":             {site.Login{Method: "token", TokenFile: file(t, "token", "\n")}, site.Onboard, failure.Preflight, "empty"},
		"an unknown token":          {site.Login{Method: "token", TokenFile: file(t, "token", secret)}, site.Onboard, failure.Denied, "by token refused"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := clients(server, test.login).Vault(ctx, "default", test.identity)
			if failure.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.words) || strings.Contains(err.Error(), secret) {
				t.Errorf("got %v", err)
			}
			var app *temporal.ApplicationError
			if !errors.As(err, &app) || !app.NonRetryable() || error(app) != err {
				t.Errorf("it is not a permanent error at top level: %v", err)
			}
		})
	}
}

func TestVaultError(t *testing.T) {
	const token = secrettest.VaultToken
	for name, test := range map[string]struct {
		err   error
		kind  failure.Kind
		retry bool
		words string
	}{
		"sealed":      {response(503, "Vault is sealed"), failure.Unavailable, true, "is sealed"},
		"busy":        {response(429, "request path rate limit quota exceeded"), failure.Unavailable, true, "rate limit"},
		"broken":      {response(500, "internal error"), failure.Unavailable, true, "500"},
		"denied":      {response(403, "permission denied"), failure.Denied, false, `identity "onboard" on PUT sys/mounts/pki`},
		"no mount":    {response(404), failure.Preflight, false, "sys/mounts/pki"},
		"refused":     {response(400, "unknown role"), failure.InvalidInput, false, "unknown role"},
		"a secret":    {response(400, "bad token "+token), failure.InvalidInput, false, "withheld"},
		"no JSON":     {&vaultapi.ResponseError{StatusCode: 400, RawError: true, Errors: []string{"<html>" + token}}, failure.InvalidInput, false, "400"},
		"unreachable": {dialError(t, "https://127.0.0.1:1"), failure.Unavailable, true, "connection refused"},
		"TLS":         {dialError(t, httpsServer(t)), failure.Preflight, false, "TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			err := site.VaultError(fmt.Errorf("wrapped: %w", test.err), "default", site.Onboard, "enable the mount")
			var app *temporal.ApplicationError
			if !errors.As(err, &app) || failure.KindOf(err) != test.kind || app.NonRetryable() == test.retry {
				t.Fatalf("got %v", err)
			}
			if !strings.Contains(err.Error(), test.words) || strings.Contains(err.Error(), token) || strings.Contains(err.Error(), "<html>") {
				t.Errorf("text is %q", err)
			}
		})
	}
	if err := site.VaultError(context.Canceled, "default", site.Onboard, "x"); !errors.Is(err, context.Canceled) || failure.KindOf(err) != "" {
		t.Errorf("a canceled call became %v", err)
	}
}

func response(code int, reasons ...string) error {
	return &vaultapi.ResponseError{HTTPMethod: "PUT", URL: "https://vault:8200/v1/sys/mounts/pki", StatusCode: code, Errors: reasons}
}

func httpsServer(t *testing.T) string {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	return server.URL
}

func dialError(t *testing.T, address string) error {
	t.Helper()
	_, err := http.Get(address)
	if err == nil {
		t.Fatalf("%s answers", address)
	}
	return err
}
