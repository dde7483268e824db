package observe

import (
	"context"
	"fmt"
	"time"

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
	switch spec.Credential.Method {
	case mesh.CredentialToken:
	case mesh.CredentialAppRole:
		return clusterSecretID(ctx, clients, cluster, spec)
	default:
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

// clusterSecretID asks Vault about the secret id that a cluster's Issuer uses,
// with the identity refresh, whose task it is. It stays in this function.
func clusterSecretID(ctx context.Context, clients *site.Clients, cluster *site.Cluster, spec mesh.Spec) check.SeenToken {
	seen := check.SeenToken{Secret: kube.Name("Secret", spec.Namespace, mesh.AppRoleSecretName), SecretID: true, Period: spec.Credential.TokenPeriod.Duration}
	issuer, err := cluster.CertManager.CertmanagerV1().Issuers(spec.Namespace).Get(ctx, mesh.IssuerName, metav1.GetOptions{})
	if seen.Gap = gap(err); seen.Gap.Open() {
		return seen
	}
	if issuer.Spec.Vault == nil || issuer.Spec.Vault.Auth.AppRole == nil {
		seen.Refused = "the Issuer does not log in by a secret id"
		return seen
	}
	role := issuer.Spec.Vault.Auth.AppRole
	secret, err := cluster.Kube.CoreV1().Secrets(spec.Namespace).Get(ctx, mesh.AppRoleSecretName, metav1.GetOptions{})
	if seen.Gap = gap(err); seen.Gap.Open() {
		return seen
	}
	secretID := string(secret.Data[role.SecretRef.Key])
	if secretID == "" {
		seen.Refused = fmt.Sprintf("the Secret holds none under %q, which the Issuer names", role.SecretRef.Key)
		return seen
	}
	client, err := clients.Vault(ctx, spec.Vault.Name, site.Refresh)
	if err != nil {
		seen.Gap = check.Gap{Reason: check.Unreachable, Detail: failure.Message(err)}
		return seen
	}
	look, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	path := "auth/" + role.Path + "/role/" + mesh.IssuerServiceAccount + "/secret-id/lookup"
	answer, err := client.Logical().WriteWithContext(look, path, map[string]any{"secret_id": secretID})
	if err != nil {
		if seen.Gap = vaultGap(err, spec.Vault.Name, site.Refresh, path); seen.Gap.Reason == check.NotFound {
			seen.Gap, seen.Refused = check.Gap{}, "there is no auth mount "+role.Path+" of that type"
		}
		return seen
	}
	if answer == nil || answer.Data == nil {
		seen.Refused = "it has expired or was destroyed"
		return seen
	}
	var state struct {
		Expires time.Time `json:"expiration_time"`
	}
	if seen.Gap = decode(answer.Data, path, &state); seen.Gap.Open() {
		return seen
	}
	seen.Left = seen.Period // one that lives for ever is put right by the next refresh
	if !state.Expires.IsZero() {
		seen.Left = time.Until(state.Expires)
	}
	return seen
}
