package vault_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	vaultapi "github.com/hashicorp/vault/api"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/site"
)

// tokenIssuer signs ServiceAccount tokens as a cluster's API server does.
type tokenIssuer struct {
	issuer    string
	key       *rsa.PrivateKey
	publicPEM string
	// published is the key that can be discovered, if any.
	published *atomic.Pointer[rsa.PrivateKey]
}

func (w *world) tokensOf(context string) *tokenIssuer {
	if w.keys[context] == nil {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			panic(err)
		}
		w.keys[context] = &tokenIssuer{issuer: "https://" + context + ".example:6443", key: key,
			publicPEM: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
			published: &atomic.Pointer[rsa.PrivateKey]{}}
	}
	return w.keys[context]
}

// token is what cert-manager asks the API server for: the second audience is
// the API server's own.
func (i *tokenIssuer) token(subject string, audiences ...string) string {
	part := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return base64.RawURLEncoding.EncodeToString(data)
	}
	now := time.Now()
	text := part(map[string]any{"alg": "RS256", "typ": "JWT"}) + "." + part(map[string]any{
		"iss": i.issuer, "sub": subject, "aud": audiences,
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
	})
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA256, sum[:])
	if err != nil {
		panic(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

const (
	issuerSubject  = "system:serviceaccount:gloo-mesh:relaypki-issuer"
	issuerAudience = "vault://gloo-mesh/vault-issuer"
)

// login logs in as cert-manager does for an Issuer.
func (w *world) login(t *testing.T, access vault.ClusterAccessResult, jwt string) (*vaultapi.Client, error) {
	t.Helper()
	client, err := w.Client("")
	if err != nil {
		t.Fatal(err)
	}
	secret, err := client.Logical().Write(strings.TrimPrefix(access.AuthPath, "/v1/")+"/login", map[string]any{"role": access.AuthRole, "jwt": jwt})
	if err != nil {
		return nil, err
	}
	client.SetToken(secret.Auth.ClientToken)
	return client, nil
}

func (w *world) mustLogin(t *testing.T, d done, context string) *vaultapi.Client {
	t.Helper()
	tokens := w.tokensOf(context)
	client, err := w.login(t, d.access[context], tokens.token(issuerSubject, issuerAudience, tokens.issuer))
	if err != nil {
		t.Fatalf("%s cannot log in: %v", context, err)
	}
	return client
}

// refuses fails the test if one of the tokens, by what it is, gets in as cluster1.
func (w *world) refuses(t *testing.T, d done, tokens map[string]string) {
	t.Helper()
	for name, jwt := range tokens {
		if _, err := w.login(t, d.access["cluster1"], jwt); err == nil {
			t.Errorf("%s logged in as cluster1", name)
		}
	}
}

// claiming signs with its own key as somebody else.
func (i *tokenIssuer) claiming(issuer string) *tokenIssuer {
	other := *i
	other.issuer = issuer
	return &other
}

// request is a CSR for the given names, with an RSA key of the size that the
// guide's Certificates ask for.
func request(t *testing.T, template x509.CertificateRequest) string {
	t.Helper()
	return requestWith(t, template, leafKey)
}

var leafKey = func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
}()

func requestWith(t *testing.T, template x509.CertificateRequest, key crypto.Signer) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func named(common string, dns ...string) x509.CertificateRequest {
	return x509.CertificateRequest{Subject: pkix.Name{CommonName: common}, DNSNames: dns}
}

// sign asks as cert-manager does, and answers with the leaf and its chain.
func sign(client *vaultapi.Client, path, csr string) ([]*x509.Certificate, error) {
	secret, err := client.Logical().Write(path, map[string]any{"csr": csr, "ttl": "24h", "exclude_cn_from_sans": "true"})
	if err != nil {
		return nil, err
	}
	texts := []any{secret.Data["certificate"]}
	if chain, ok := secret.Data["ca_chain"].([]any); ok {
		texts = append(texts, chain...)
	}
	var out []*x509.Certificate
	for _, text := range texts {
		block, _ := pem.Decode([]byte(text.(string)))
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// A cluster's credential obtains that cluster's client certificate, chained to
// the root, and nothing else.
func TestClusterObtainsItsOwnNameOnly(t *testing.T) {
	w := newWorld(t)
	d := w.mustSetup(t)
	client := w.mustLogin(t, d, "cluster1")
	path := d.access["cluster1"].SignPath

	chain, err := sign(client, path, request(t, named("cluster1", "cluster1")))
	if err != nil {
		t.Fatalf("cluster1 cannot obtain its own name: %v", err)
	}
	root := certificate(t, d.root.CertificatePEM)
	if len(chain) != 3 || !chain[2].Equal(root) || chain[0].CheckSignatureFrom(chain[1]) != nil || chain[1].CheckSignatureFrom(root) != nil {
		t.Errorf("the chain is not leaf, intermediate, root: %d certificates", len(chain))
	}
	if !slices.Equal(chain[0].ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("extended key usage is %v, expected client authentication alone", chain[0].ExtKeyUsage)
	}
	if life := time.Until(chain[0].NotAfter); life < 23*time.Hour || life > 24*time.Hour {
		t.Errorf("a leaf asked for 24h lives %s", life)
	}

	uri, _ := url.Parse("spiffe://cluster2")
	serverAuth := named("cluster1", "cluster1")
	serverAuth.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 37}, Value: []byte{0x30, 0x0a, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01}}}
	smallKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, csr := range map[string]string{
		"cluster2's name":                 request(t, named("cluster2", "cluster2")),
		"cluster2's name besides its own": request(t, named("cluster1", "cluster1", "cluster2")),
		"cluster2 as common name":         request(t, named("cluster2", "cluster1")),
		"the server's common name":        request(t, named("gloo-mesh-mgmt-server-ca", "cluster1")),
		"the server's name":               request(t, named("cluster1", "gloo-mesh-mgmt-server-ca.gloo-mesh")),
		"the authority that agents check": request(t, named("cluster1", "gloo-mesh-mgmt-server.gloo-mesh")),
		"a wildcard":                      request(t, named("cluster1", "*")),
		"a wildcard of its own name":      request(t, named("cluster1", "*.cluster1")),
		"the server's wildcard":           request(t, named("cluster1", "*.gloo-mesh")),
		"a name below its own":            request(t, named("cluster1", "x.cluster1")),
		"localhost":                       request(t, named("cluster1", "localhost")),
		"an IP address":                   request(t, x509.CertificateRequest{Subject: pkix.Name{CommonName: "cluster1"}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}}),
		"a URI":                           request(t, x509.CertificateRequest{Subject: pkix.Name{CommonName: "cluster1"}, URIs: []*url.URL{uri}}),
		"no common name":                  request(t, named("", "cluster1")),
		"another kind of key":             requestWith(t, named("cluster1", "cluster1"), smallKey),
	} {
		if chain, err := sign(client, path, csr); err == nil {
			t.Errorf("cluster1 obtained %s: CN %q, %v", name, chain[0].Subject.CommonName, chain[0].DNSNames)
		}
	}
	chain, err = sign(client, path, request(t, serverAuth))
	if err == nil && slices.Contains(chain[0].ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		t.Error("cluster1 obtained a server certificate by asking for one in the CSR")
	}
	for _, other := range []string{
		d.access["cluster2"].SignPath, d.access["mgmt"].SignPath, "pki_relay/sign/relaypki-probe", "pki_relay/sign-verbatim", "pki_relay/sign-verbatim/relay-client-cluster1",
		"pki_relay/issue/relay-client-cluster1", "pki_relay/issuer/default/sign/relay-client-cluster1", "pki/issuer/default/sign-intermediate",
	} {
		if _, err := sign(client, other, request(t, named("cluster1", "cluster1"))); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("cluster1 may write %s: %v", other, err)
		}
	}
}

// Only the cluster's own ServiceAccount, with a token for this very Issuer, gets in.
func TestClusterLogin(t *testing.T) {
	w := newWorld(t)
	d := w.mustSetup(t)
	one, two := w.tokensOf("cluster1"), w.tokensOf("cluster2")
	stolen := two.claiming(one.issuer)
	w.refuses(t, d, map[string]string{
		"another cluster's token":         two.token(issuerSubject, issuerAudience),
		"a token by another key":          stolen.token(issuerSubject, issuerAudience),
		"another ServiceAccount":          one.token("system:serviceaccount:gloo-mesh:default", issuerAudience),
		"the namesake elsewhere":          one.token("system:serviceaccount:other:relaypki-issuer", issuerAudience),
		"a token for another Issuer":      one.token(issuerSubject, "vault://other/vault-issuer"),
		"a token for the API server only": one.token(issuerSubject, one.issuer),
	})
	client := w.mustLogin(t, d, "cluster1")
	self, err := w.Root.Auth().Token().Lookup(client.Token())
	if err != nil {
		t.Fatal(err)
	}
	policies, err := self.TokenPolicies()
	if err != nil || !slices.Equal(policies, []string{"relaypki-prod-cluster1"}) {
		t.Errorf("policies of the login are %v (%v)", policies, err)
	}
	if ttl, err := self.TokenTTL(); err != nil || ttl > 10*time.Minute {
		t.Errorf("the login lives %s (%v)", ttl, err)
	}
}

// With keys "discovery" Vault fetches a cluster's keys from its issuer's
// address, also the one that the cluster signs with from tomorrow on.
func TestDiscoveredKeys(t *testing.T) {
	w := newWorld(t)
	w.spec.Credential.Keys = mesh.KeysDiscovery
	for i := range w.site.Clusters {
		w.tokensOf(w.site.Clusters[i].Name).publish(t, &w.site.Clusters[i])
	}
	w.Clients.Config = w.site
	d := w.mustSetup(t)
	w.mustLogin(t, d, "cluster1")

	one, two := w.tokensOf("cluster1"), w.tokensOf("cluster2")
	stolen := two.claiming(one.issuer)
	w.refuses(t, d, map[string]string{
		"another cluster's token": two.token(issuerSubject, issuerAudience),
		"a token by another key":  stolen.token(issuerSubject, issuerAudience),
	})
	if again := w.mustSetup(t); len(again.changes) > 0 {
		t.Errorf("a second setup changed %v", again.changed())
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	one.replace(key)
	w.mustLogin(t, d, "cluster1")
}

// publish serves the issuer's documents (OpenID Connect Discovery 1.0, section
// 4) on a server with a certificate of its own, and names its CA in the site.
func (i *tokenIssuer) publish(t *testing.T, cluster *site.ClusterConfig) {
	mux := http.NewServeMux()
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	answer := func(path string, body func() any) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(body()); err != nil {
				t.Error(err)
			}
		})
	}
	answer("/.well-known/openid-configuration", func() any {
		return map[string]any{"issuer": server.URL, "jwks_uri": server.URL + "/openid/v1/jwks", "response_types_supported": []string{"id_token"},
			"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"RS256"}}
	})
	answer("/openid/v1/jwks", func() any {
		key := i.published.Load()
		return jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, Algorithm: "RS256", Use: "sig"}}}
	})
	i.issuer = server.URL
	i.replace(i.key)
	cluster.IssuerCAFile = filepath.Join(t.TempDir(), "ca.crt")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(cluster.IssuerCAFile, ca, 0o600); err != nil {
		t.Fatal(err)
	}
}

// replace has the cluster sign with another key, and publish it.
func (i *tokenIssuer) replace(key *rsa.PrivateKey) {
	i.key = key
	i.published.Store(key)
}

// The management cluster's credential obtains the server's names as the guide
// writes them, for server and client, and no others.
func TestServerObtainsItsNames(t *testing.T) {
	w := newWorld(t)
	d := w.mustSetup(t)
	client := w.mustLogin(t, d, "mgmt")
	path := d.access["mgmt"].SignPath
	c := w.spec.Certificates.Server
	chain, err := sign(client, path, request(t, named(c.CommonName, c.DNSNames...)))
	if err != nil {
		t.Fatalf("the server cannot obtain its names: %v", err)
	}
	if got := slices.Sorted(slices.Values(chain[0].DNSNames)); !slices.Equal(got, slices.Sorted(slices.Values(c.DNSNames))) {
		t.Errorf("DNS names are %v, asked for were %v", got, c.DNSNames)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if !slices.Contains(chain[0].ExtKeyUsage, usage) {
			t.Errorf("extended key usage %v lacks %v", chain[0].ExtKeyUsage, usage)
		}
	}
	if err := chain[0].VerifyHostname(w.spec.Gloo.Authority); err != nil {
		t.Errorf("agents would not accept it: %v", err)
	}
	for _, name := range []string{"cluster1", "*.other", "*.x.gloo-mesh", "x.gloo-mesh", "*"} {
		if _, err := sign(client, path, request(t, named(c.CommonName, name))); err == nil {
			t.Errorf("the server's credential obtained %q", name)
		}
	}
}

// With isolation "shared" everybody signs with the guide's role.
func TestSharedIsolationIsTheGuidesRole(t *testing.T) {
	w := newWorld(t)
	w.spec.PKI.Isolation = mesh.IsolationShared
	w.spec.Certificates.Client.CommonName = "gloo-mesh-mgmt-server-ca"
	d := w.mustSetup(t)
	if d.access["cluster1"].SignPath != "pki_relay/sign/gloo-mesh-mgmt-server-ca" {
		t.Errorf("cluster1 signs at %s", d.access["cluster1"].SignPath)
	}
	if _, err := sign(w.mustLogin(t, d, "cluster1"), d.access["cluster1"].SignPath, request(t, named("gloo-mesh-mgmt-server-ca", "cluster1"))); err != nil {
		t.Errorf("the guide's client certificate is refused: %v", err)
	}
	role, err := w.Root.Logical().Read("pki_relay/roles/gloo-mesh-mgmt-server-ca")
	if err != nil {
		t.Fatal(err)
	}
	if role.Data["allow_any_name"] != true || role.Data["max_ttl"] != json.Number("2592000") {
		t.Errorf("allow_any_name %v, max_ttl %v: the guide has true and 720h", role.Data["allow_any_name"], role.Data["max_ttl"])
	}
	if list, err := w.Root.Logical().List("pki_relay/roles"); err != nil || len(list.Data["keys"].([]any)) != 2 {
		t.Errorf("roles: %v (%v), expected the guide's and the probe's", list, err)
	}
}

// The probe role signs for the worker what nobody can use.
func TestProbeRole(t *testing.T) {
	w := newWorld(t)
	w.mustSetup(t)
	operate, err := w.Clients.Vault(context.Background(), "default", "operate")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := sign(operate, "pki_relay/sign/relaypki-probe", request(t, named("relaypki-probe.invalid", "relaypki-probe.invalid")))
	if err != nil {
		t.Fatal(err)
	}
	if len(chain[0].ExtKeyUsage) != 0 || time.Until(chain[0].NotAfter) > 5*time.Minute {
		t.Errorf("usage %v, until %s", chain[0].ExtKeyUsage, chain[0].NotAfter)
	}
	if !bytes.Equal(chain[0].AuthorityKeyId, chain[1].SubjectKeyId) {
		t.Error("the probe is not of the intermediate")
	}
	if _, err := sign(operate, "pki_relay/sign/relaypki-probe", request(t, named("cluster1", "cluster1"))); err == nil {
		t.Error("the probe role signs a cluster's name")
	}
}
