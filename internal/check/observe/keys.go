package observe

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/site"
)

// pinnedKeys compares what Vault's auth mount of a cluster is pinned to with
// what the cluster publishes. It reads auth/<mount>/config with the refresh
// identity, whose task these keys are: operate has no access to auth mounts.
func pinnedKeys(ctx context.Context, clients *site.Clients, cluster *site.Cluster, spec mesh.Spec, clusterContext string) check.SeenKeys {
	if spec.Credential.Method != mesh.CredentialJWT || spec.Credential.Keys != mesh.KeysPinned {
		return check.SeenKeys{}
	}
	seen := check.SeenKeys{Mount: spec.AuthMount(clusterContext)}
	if jwks, err := cluster.Kube.Discovery().RESTClient().Get().AbsPath("/openid/v1/jwks").DoRaw(ctx); err != nil {
		seen.ClusterGap = gap(err)
	} else if seen.Cluster, err = jwksFingerprints(jwks); err != nil {
		seen.ClusterGap = check.Gap{Reason: check.Unreachable, Detail: err.Error()}
	}
	client, err := clients.Vault(ctx, spec.Vault.Name, site.Refresh)
	if err != nil {
		seen.VaultGap = check.Gap{Reason: check.Unreachable, Detail: failure.Message(err)}
		// Preflight: the site file has no login for this identity. InvalidInput:
		// it does not know the Vault, as in a private network.
		if kind := failure.KindOf(err); kind == failure.Preflight || kind == failure.Denied || kind == failure.InvalidInput {
			seen.VaultGap.Reason = check.Denied
		}
		return seen
	}
	var config struct {
		Keys []string `json:"jwt_validation_pubkeys"`
	}
	if seen.VaultGap = (vaultReader{client, spec.Vault.Name, site.Refresh}).read(ctx, "auth/"+seen.Mount+"/config", &config); seen.VaultGap.Open() {
		return seen
	}
	for i, text := range config.Keys {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			seen.VaultGap = check.Gap{Reason: check.Unreachable, Detail: fmt.Sprintf("key %d of auth/%s/config is not PEM", i+1, seen.Mount)}
			return seen
		}
		seen.Vault = append(seen.Vault, fingerprint(block.Bytes))
	}
	return seen
}

func jwksFingerprints(text []byte) ([]string, error) {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, fmt.Errorf("/openid/v1/jwks: %w", err)
	}
	var out []string
	for _, key := range set.Keys {
		der, err := x509.MarshalPKIXPublicKey(key.Key)
		if err != nil {
			return nil, fmt.Errorf("/openid/v1/jwks: key %q: %w", key.KeyID, err)
		}
		out = append(out, fingerprint(der))
	}
	return out, nil
}

func fingerprint(publicKey []byte) string {
	sum := sha256.Sum256(publicKey)
	return hex.EncodeToString(sum[:])
}
