package observe

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/site"
)

// clusterToken asks Vault about the token of a cluster's Issuer, with that very
// token. It stays in this function.
func clusterToken(ctx context.Context, clients *site.Clients, cluster *site.Cluster, spec mesh.Spec) check.SeenToken {
	if spec.Credential.Method != mesh.CredentialToken {
		return check.SeenToken{}
	}
	seen := check.SeenToken{Secret: kube.Name("Secret", spec.Namespace, mesh.TokenSecretName), Period: spec.Credential.TokenPeriod.Duration}
	secret, err := cluster.Kube.CoreV1().Secrets(spec.Namespace).Get(ctx, mesh.TokenSecretName, metav1.GetOptions{})
	if seen.Gap = gap(err); seen.Gap.Open() {
		return seen
	}
	token := string(secret.Data[mesh.TokenSecretKey])
	if token == "" {
		seen.Refused = "the Secret holds none"
		return seen
	}
	unreachable := func(err error) check.SeenToken {
		seen.Gap = check.Gap{Reason: check.Unreachable, Detail: failure.Message(err)}
		return seen
	}
	client, err := clients.VaultWithToken(ctx, spec.Vault.Name, token)
	if err != nil {
		return unreachable(err)
	}
	look, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	self, err := client.Auth().Token().LookupSelfWithContext(look)
	if err := site.VaultError(err, spec.Vault.Name, site.Refresh, "look up the cluster's token"); err != nil {
		if failure.KindOf(err) == failure.Denied {
			seen.Refused = "it has expired or was revoked"
			return seen
		}
		return unreachable(err)
	}
	if seen.Left, err = self.TokenTTL(); err != nil {
		return unreachable(err)
	}
	return seen
}
