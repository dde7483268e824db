package vault

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// RefreshCredentialInput names one cluster.
type RefreshCredentialInput struct {
	Spec mesh.Spec `json:"spec"`
	// Context is the cluster's; Workload its registered name, empty for the
	// management cluster.
	Context  string `json:"context"`
	Workload string `json:"workload,omitempty"`
	// Issuer and KeysPEM are those of the cluster now (method jwt).
	Issuer  string   `json:"issuer,omitempty"`
	KeysPEM []string `json:"keysPEM,omitempty"`
	// Mint makes a credential anew that is lost; without it, that is only said.
	Mint bool `json:"mint,omitempty"`
	// Renewal is the run that wants the credential made anew, whatever is left of
	// its life; once for each run. Empty: only what is to be renewed is.
	Renewal string `json:"renewal,omitempty"`
}

// RefreshCredentialResult says what was renewed.
type RefreshCredentialResult struct {
	procedure.Outcome
	// Lost is why there is nothing to renew: the credential has ended, or
	// somebody is removing it. Nothing was changed then.
	Lost string `json:"lost,omitempty"`
	// SecretKey and Superseded are as in SecretIDResult (method appRole); of
	// tokens, Superseded is 1 if the one that was replaced is not revoked yet.
	SecretKey  string `json:"secretKey,omitempty"`
	Superseded int    `json:"superseded,omitempty"`
}

// RefreshCredential keeps current what expires of one cluster's credential, as
// the identity refresh: the keys pinned in its auth mount, its token or its secret id. It
// needs no lock: what it writes, a setup that is at work on the same cluster
// would write too, and a Secret that has changed since it was read is left
// alone. A lock that a setup holds for days must not let a credential end.
func (a *Activities) RefreshCredential(ctx context.Context, in RefreshCredentialInput) (RefreshCredentialResult, error) {
	switch credential := in.Spec.Credential; {
	case credential.Method == mesh.CredentialJWT && credential.Keys == mesh.KeysPinned:
		return a.refreshKeys(ctx, in)
	case credential.Method == mesh.CredentialToken:
		return a.refreshToken(ctx, in)
	case credential.Method == mesh.CredentialAppRole:
		return a.refreshSecretID(ctx, in)
	}
	return RefreshCredentialResult{Outcome: procedure.Outcome{Detail: "nothing of it expires"}}, nil
}

// refreshKeys pins the cluster's present keys. It makes no mount, and does not
// change how keys are found: that is a setup's.
func (a *Activities) refreshKeys(ctx context.Context, in RefreshCredentialInput) (RefreshCredentialResult, error) {
	var result RefreshCredentialResult
	s, err := a.session(ctx, in.Spec.Vault.Name, site.Refresh)
	if err != nil {
		return result, err
	}
	path := "auth/" + in.Spec.AuthMount(in.Context) + "/config"
	var have jwtConfig
	found, err := s.read(ctx, path, &have)
	switch {
	case err != nil:
		return result, err
	case !found && in.Mint:
		return result, failure.Permanent(failure.Preflight, "Vault %q: there is no %s: cluster %s cannot log in. Set the mesh up again, which makes it", s.vault, path, in.Context)
	case !found:
		result.Lost = "there is no " + path + " in Vault"
		return result, nil
	case have.DiscoveryURL != "" || have.JWKSURL != "":
		result.Detail = "Vault finds the keys by itself now"
		return result, nil
	}
	err = s.ensureKeys(ctx, ClusterAccessInput{Spec: in.Spec, Context: in.Context, Issuer: in.Issuer, KeysPEM: in.KeysPEM, Mode: procedure.Apply}, "", &result.Outcome)
	result.Detail = fmt.Sprintf("%d keys pinned", len(in.KeysPEM))
	return result, err
}

// refreshToken renews the cluster's token when half of its period is over.
func (a *Activities) refreshToken(ctx context.Context, in RefreshCredentialInput) (RefreshCredentialResult, error) {
	var result RefreshCredentialResult
	t := clusterToken{spec: in.Spec, context: in.Context, clients: a.Clients}
	cluster, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return result, err
	}
	object := kube.Name("Secret", in.Spec.Namespace, mesh.TokenSecretName)
	have, err := cluster.Kube.CoreV1().Secrets(in.Spec.Namespace).Get(ctx, mesh.TokenSecretName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		result.Lost = object + " is missing"
	case err != nil:
		return result, kube.Error(ctx, cluster, "read "+object, err)
	default:
		state, err := t.inspect(ctx, have)
		switch {
		case err != nil:
			return result, err
		case state.fits && in.Renewal != "":
			return a.replaceToken(ctx, in, have)
		case state.fits:
			if len(have.Data[previousTokenKey]) > 0 {
				result.Superseded = 1 // a run that was to revoke it has not come so far
			}
			result.Outcome, err = t.renew(ctx, procedure.Apply, state, cluster)
			result.Detail = "token renewed"
			if len(result.Changes) == 0 {
				result.Detail = "token has " + state.ttl.String() + " left"
			}
			return result, err
		case state.client != nil:
			return result, failure.Permanent(failure.Conflict, "cluster %s: %s: %s. It is left as it is; set the mesh up again, which puts it right", in.Context, object, state.why)
		}
		result.Lost = object + ": " + state.why
	}
	if !in.Mint {
		return result, nil
	}
	out, err := a.IssueClusterToken(ctx, IssueClusterTokenInput{Spec: in.Spec, Context: in.Context, Workload: in.Workload, Renewal: in.Renewal, Mode: procedure.Apply})
	out.Detail = "token minted anew: " + result.Lost
	return RefreshCredentialResult{Outcome: out}, err
}

// replaceToken mints a new token in the place of one that works.
func (a *Activities) replaceToken(ctx context.Context, in RefreshCredentialInput, have *corev1.Secret) (RefreshCredentialResult, error) {
	var result RefreshCredentialResult
	superseded := len(have.Data[previousTokenKey]) > 0
	if have.Annotations[kube.AnnotationRenewal] == in.Renewal { // by a try before this one
		if result.Detail = "token minted anew"; superseded {
			result.Superseded = 1
		}
		return result, nil
	}
	if superseded { // by another run, and would be lost sight of
		retired, err := a.RetireClusterToken(ctx, RetireClusterTokenInput{Spec: in.Spec, Context: in.Context})
		if result.Outcome = retired; err != nil {
			return result, err
		}
	}
	minted, err := a.IssueClusterToken(ctx, IssueClusterTokenInput{Spec: in.Spec, Context: in.Context, Workload: in.Workload, Renewal: in.Renewal, Mode: procedure.Apply})
	result.Add(minted)
	result.Detail, result.Superseded = "token minted anew", 1
	return result, err
}

// refreshSecretID mints the cluster's next secret id when half of the life of
// the one it has is over.
func (a *Activities) refreshSecretID(ctx context.Context, in RefreshCredentialInput) (RefreshCredentialResult, error) {
	var result RefreshCredentialResult
	ids, err := a.secretIDs(ctx, in.Spec, in.Context, procedure.Apply)
	if err != nil {
		return result, err
	}
	lost, _, err := ids.lost(ctx)
	if err != nil || lost != "" && !in.Mint {
		result.Lost = lost
		return result, err
	}
	issued, err := a.IssueSecretID(ctx, SecretIDInput{Spec: in.Spec, Context: in.Context, Renewal: in.Renewal, Mode: procedure.Apply})
	result.Outcome, result.SecretKey, result.Superseded = issued.Outcome, issued.Key, issued.Superseded
	if len(issued.Changes) > 0 {
		result.Detail = "secret id renewed"
	}
	if lost != "" {
		result.Detail = "secret id minted anew: " + lost
	}
	return result, err
}
