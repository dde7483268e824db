package site

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-cleanhttp"
	vaultapi "github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/api/auth/approle"
	"github.com/hashicorp/vault/api/auth/kubernetes"
	"go.uber.org/zap"

	"github.com/relaypki/relaypki/internal/failure"
)

// vaultTimeout bounds one request. It is above Vault's own limit of 90 s, so
// that a write that we gave up on has ended in Vault as well.
const vaultTimeout = 100 * time.Second

type vaultKey struct {
	name     string
	identity Identity
}

// vaultSession is one identity's login in one Vault. The client that it hands
// out stays the same; its token is replaced in place.
type vaultSession struct {
	vault    VaultConfig
	identity Identity
	login    Login
	log      *zap.Logger

	// transport has the TLS settings and no token.
	transport http.RoundTripper
	client    *vaultapi.Client

	// mu makes logins and renewals one at a time, and guards what follows.
	mu       sync.Mutex
	lifetime time.Duration
	// expires is zero for a token that lives for ever.
	expires time.Time
}

// Vault returns a logged-in client for one of the worker's identities in the
// named Vault. The client is shared and safe for concurrent use; its token is
// renewed when two thirds of its life are gone, and a request that Vault
// refuses because the token has expired or was revoked is sent once more after
// a new login.
//
// The client itself tries nothing twice but what Vault has turned away unread
// (429): whether a write that was cut off may be repeated is for the activity to
// observe.
func (c *Clients) Vault(ctx context.Context, name string, identity Identity) (*vaultapi.Client, error) {
	session, err := c.vaultSession(ctx, name, identity)
	if err != nil {
		return nil, err
	}
	if err := session.keepAlive(ctx); err != nil {
		return nil, err
	}
	return session.client, nil
}

// VaultUnhurried is Vault for an answer that takes as long as it takes to
// arrive, a snapshot: ctx alone bounds it. The client is for one request.
func (c *Clients) VaultUnhurried(ctx context.Context, name string, identity Identity) (*vaultapi.Client, error) {
	session, err := c.vaultSession(ctx, name, identity)
	if err != nil {
		return nil, err
	}
	if err := session.keepAlive(ctx); err != nil {
		return nil, err
	}
	return vaultClientWithin(0, session.vault, reloginTransport{session}, session.client.Token())
}

// VaultWithToken returns a client of the named Vault that uses the given token,
// or none if it is empty, and no login of the worker.
func (c *Clients) VaultWithToken(ctx context.Context, name, token string) (*vaultapi.Client, error) {
	config, err := c.VaultConfig(ctx, name)
	if err != nil {
		return nil, err
	}
	transport, err := c.vaultTransport(config, Login{})
	if err != nil {
		return nil, err
	}
	return vaultClient(config, transport, token)
}

func (c *Clients) vaultSession(ctx context.Context, name string, identity Identity) (*vaultSession, error) {
	config, err := c.VaultConfig(ctx, name)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if session, ok := c.vaults[vaultKey{name, identity}]; ok {
		return session, nil
	}
	login, ok := config.Identities[identity]
	if !ok {
		return nil, failure.Permanent(failure.Preflight, "Vault %q: the worker's site file has no login for the identity %q, and no other identity is used in its place. Add vaults[].identities.%s to the site file (policy: deploy/vault/policies/%s.hcl) and restart the worker",
			name, identity, identity, identity)
	}
	transport, err := c.vaultTransport(config, login)
	if err != nil {
		return nil, err
	}
	session := &vaultSession{vault: config, identity: identity, login: login, transport: transport,
		log: c.Log.With(zap.String("vault", name), zap.String("identity", string(identity)))}
	session.client, err = vaultClient(config, reloginTransport{session}, "")
	if err != nil {
		return nil, err
	}
	c.vaults[vaultKey{name, identity}] = session
	return session, nil
}

// vaultTransport has the Vault's CA and, for method "cert", the login's client
// certificate, which is read again at each handshake since it gets renewed. It
// waits where Vault asks for patience.
func (c *Clients) vaultTransport(config VaultConfig, login Login) (http.RoundTripper, error) {
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if config.CAFile != "" {
		pem, err := os.ReadFile(config.CAFile)
		if err != nil {
			return nil, failure.Permanent(failure.Preflight, "Vault %q: its CA file: %v. Correct caFile in the site file", config.Name, err)
		}
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, failure.Permanent(failure.Preflight, "Vault %q: its CA file %s has no certificate in PEM form", config.Name, config.CAFile)
		}
	}
	if login.Method == "cert" {
		tlsConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(login.CertFile, login.KeyFile)
			return &pair, err
		}
	}
	pooled := cleanhttp.DefaultPooledTransport()
	pooled.TLSClientConfig = tlsConfig
	var transport http.RoundTripper = pooled
	if c.Wrap != nil {
		transport = c.Wrap("vault "+config.Name, transport)
	}
	return limitedTransport{next: transport, log: c.Log.With(zap.String("vault", config.Name))}, nil
}

func vaultClient(config VaultConfig, transport http.RoundTripper, token string) (*vaultapi.Client, error) {
	return vaultClientWithin(vaultTimeout, config, transport, token)
}

// vaultClientWithin takes nothing from the environment: a VAULT_TOKEN or
// VAULT_SKIP_VERIFY of the worker's shell is not its configuration.
func vaultClientWithin(timeout time.Duration, config VaultConfig, transport http.RoundTripper, token string) (*vaultapi.Client, error) {
	client, err := vaultapi.NewClient(&vaultapi.Config{
		Address: config.Address,
		HttpClient: &http.Client{
			Transport:     transport,
			Timeout:       timeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		MaxRetries: 0,
	})
	if err != nil {
		return nil, failure.Permanent(failure.Preflight, "Vault %q: no client for the address %q: %v", config.Name, config.Address, err)
	}
	client.SetToken(token)
	client.SetNamespace(config.Namespace)
	return client, nil
}

// keepAlive logs in if there is no token yet, and renews it or logs in again
// when under a third of its life is left.
func (s *vaultSession) keepAlive(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client.Token() == "" {
		return s.logIn(ctx)
	}
	if s.expires.IsZero() || time.Until(s.expires) > s.lifetime/3 {
		return nil
	}
	if s.renew(ctx) {
		return nil
	}
	err := s.logIn(ctx)
	if err != nil && time.Until(s.expires) > 0 {
		s.log.Warn("no new login to Vault; using the old token until it expires", zap.Time("expires", s.expires), zap.String("problem", failure.Message(err)))
		return nil
	}
	return err
}

// renew is false when Vault no longer extends the token's life by much.
func (s *vaultSession) renew(ctx context.Context) bool {
	client, err := vaultClient(s.vault, s.transport, s.client.Token())
	if err != nil {
		return false
	}
	secret, err := client.Auth().Token().RenewSelfWithContext(ctx, 0)
	if err != nil || secret == nil || secret.Auth == nil {
		return false
	}
	ttl := time.Duration(secret.Auth.LeaseDuration) * time.Second
	if ttl <= s.lifetime/3 {
		return false
	}
	s.expires = time.Now().Add(ttl)
	return true
}

// logIn logs in and takes over the new token. The caller holds mu.
func (s *vaultSession) logIn(ctx context.Context) error {
	client, err := vaultClient(s.vault, s.transport, "")
	if err != nil {
		return err
	}
	var secret *vaultapi.Secret
	switch s.login.Method {
	case "token":
		return s.takeToken(ctx, client)
	case "approle":
		var roleID string
		if roleID, err = s.file("roleIDFile", s.login.RoleIDFile); err != nil {
			return err
		}
		if _, err = s.file("secretIDFile", s.login.SecretIDFile); err != nil {
			return err
		}
		var method *approle.AppRoleAuth
		method, err = approle.NewAppRoleAuth(roleID, &approle.SecretID{FromFile: s.login.SecretIDFile}, approle.WithMountPath(s.mount()))
		if err == nil {
			secret, err = client.Auth().Login(ctx, method)
		}
	case "kubernetes":
		options := []kubernetes.LoginOption{kubernetes.WithMountPath(s.mount())}
		if s.login.JWTFile != "" {
			options = append(options, kubernetes.WithServiceAccountTokenPath(s.login.JWTFile))
		}
		var method *kubernetes.KubernetesAuth
		method, err = kubernetes.NewKubernetesAuth(s.login.Role, options...)
		if err != nil {
			return failure.Permanent(failure.Preflight, "Vault %q, identity %q: no login by kubernetes: %v", s.vault.Name, s.identity, err)
		}
		secret, err = client.Auth().Login(ctx, method)
	case "cert":
		data := map[string]any{}
		if s.login.Role != "" {
			data["name"] = s.login.Role
		}
		secret, err = client.Logical().WriteWithContext(ctx, "auth/"+s.mount()+"/login", data)
	default:
		return failure.Permanent(failure.Preflight, "Vault %q, identity %q: login method %q is unknown", s.vault.Name, s.identity, s.login.Method)
	}
	if err != nil {
		return loginError(err, s.vault.Name, s.identity, s.login)
	}
	if secret == nil || secret.Auth == nil || secret.Auth.ClientToken == "" {
		return failure.Permanent(failure.Preflight, "Vault %q, identity %q: the login by %s at auth/%s answered without a token", s.vault.Name, s.identity, s.login.Method, s.mount())
	}
	s.take(secret.Auth.ClientToken, time.Duration(secret.Auth.LeaseDuration)*time.Second)
	return nil
}

// takeToken is the login of method "token": the file's token, if Vault knows it.
func (s *vaultSession) takeToken(ctx context.Context, client *vaultapi.Client) error {
	token, err := s.file("tokenFile", s.login.TokenFile)
	if err != nil {
		return err
	}
	client.SetToken(token)
	self, err := client.Auth().Token().LookupSelfWithContext(ctx)
	if err != nil {
		return loginError(err, s.vault.Name, s.identity, s.login)
	}
	ttl, err := self.TokenTTL()
	if err != nil {
		return failure.Permanent(failure.Preflight, "Vault %q, identity %q: the token's remaining life cannot be read: %v", s.vault.Name, s.identity, err)
	}
	s.take(token, ttl)
	return nil
}

func (s *vaultSession) take(token string, ttl time.Duration) {
	s.client.SetToken(token)
	s.lifetime, s.expires = ttl, time.Time{}
	if ttl > 0 {
		s.expires = time.Now().Add(ttl)
	}
	s.log.Info("logged in to Vault", zap.String("method", s.login.Method), zap.Duration("lifetime", ttl))
}

// file reads a credential file of the login.
func (s *vaultSession) file(field, path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", failure.Permanent(failure.Preflight, "Vault %q, identity %q: %s: %v. Correct the site file or put the file there", s.vault.Name, s.identity, field, err)
	}
	text := strings.TrimSpace(string(data))
	if text == "" {
		return "", failure.Permanent(failure.Preflight, "Vault %q, identity %q: %s %s is empty", s.vault.Name, s.identity, field, path)
	}
	return text, nil
}

func (s *vaultSession) mount() string {
	if s.login.Mount == "" {
		return s.login.Method
	}
	return s.login.Mount
}

// replace is asked after a 403: if the token that was used is no longer the
// session's, or no longer known to Vault, it answers with the one to use now.
// A 403 for lack of permission leaves the token as it is.
func (s *vaultSession) replace(ctx context.Context, used string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.client.Token(); now != used {
		return now, true
	}
	client, err := vaultClient(s.vault, s.transport, used)
	if err != nil {
		return "", false
	}
	if _, err := client.Auth().Token().LookupSelfWithContext(ctx); !isForbidden(err) {
		return "", false
	}
	if err := s.logIn(ctx); err != nil {
		s.log.Warn("Vault no longer knows the worker's token, and a new login failed", zap.String("problem", failure.Message(err)))
		return "", false
	}
	return s.client.Token(), true
}

// reloginTransport sends a request again, once, with a new token if Vault
// refused it because the token has expired or was revoked. A refused request
// has changed nothing.
type reloginTransport struct{ session *vaultSession }

func (t reloginTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	again, err := repeatable(req)
	if err != nil {
		return nil, err
	}
	send := func(token string) (*http.Response, error) {
		attempt := again()
		attempt.Header.Set(vaultapi.AuthHeaderName, token)
		return t.session.transport.RoundTrip(attempt)
	}
	used := req.Header.Get(vaultapi.AuthHeaderName)
	response, err := send(used)
	if err != nil || response.StatusCode != http.StatusForbidden {
		return response, err
	}
	token, ok := t.session.replace(req.Context(), used)
	if !ok {
		return response, nil
	}
	response.Body.Close()
	return send(token)
}

// repeatable reads a request's body, so that the request can be sent more than
// once, and returns a copy of it at each call.
func repeatable(req *http.Request) (again func() *http.Request, err error) {
	var body []byte
	if req.Body != nil {
		body, err = io.ReadAll(req.Body)
		req.Body.Close()
	}
	return func() *http.Request {
		attempt := req.Clone(req.Context())
		if req.Body != nil {
			attempt.Body = io.NopCloser(bytes.NewReader(body))
		}
		return attempt
	}, err
}
