package cluster

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
)

// ReadServiceAccountKeys reads /.well-known/openid-configuration and /openid/v1/jwks.
func (a *Activities) ReadServiceAccountKeys(ctx context.Context, in ServiceAccountKeysInput) (ServiceAccountKeys, error) {
	var result ServiceAccountKeys
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return result, err
	}
	read := func(path string) ([]byte, error) {
		raw, err := c.Kube.Discovery().RESTClient().Get().AbsPath(path).Do(ctx).Raw()
		if err != nil {
			return nil, kube.Error(ctx, c, "read "+path, err)
		}
		return raw, nil
	}
	raw, err := read("/.well-known/openid-configuration")
	if err != nil {
		return result, err
	}
	var discovery struct {
		Issuer string `json:"issuer"`
	}
	if err := json.Unmarshal(raw, &discovery); err != nil || discovery.Issuer == "" {
		return result, failure.Permanent(failure.Preflight, "cluster %q: /.well-known/openid-configuration names no issuer; its API server needs --service-account-issuer", c.Name)
	}
	result.Issuer = discovery.Issuer
	if raw, err = read("/openid/v1/jwks"); err != nil {
		return result, err
	}
	if result.KeysPEM, err = publicKeys(raw); err != nil {
		return ServiceAccountKeys{}, failure.Permanent(failure.Preflight, "cluster %q: /openid/v1/jwks: %v", c.Name, err)
	}
	return result, nil
}

// publicKeys are the keys of a JWKS in PEM (PKIX), sorted.
func publicKeys(jwks []byte) ([]string, error) {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(jwks, &set); err != nil {
		return nil, fmt.Errorf("not a key set: %w", err)
	}
	keys := make([]string, 0, len(set.Keys))
	for _, key := range set.Keys {
		if !key.IsPublic() || !key.Valid() {
			return nil, fmt.Errorf("key %q is not a public key", key.KeyID)
		}
		der, err := x509.MarshalPKIXPublicKey(key.Key)
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", key.KeyID, err)
		}
		keys = append(keys, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("it has no keys")
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}
