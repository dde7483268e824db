package vault

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// IssueClusterToken mints an orphan, periodic token with the cluster's policy
// and writes it to the cluster's vault-token Secret, in this one activity: the
// token is in no result. A valid token with under half of its period left is
// renewed instead, since cert-manager renews none; with a Renewal, one that was
// not minted for it is replaced, and kept beside the new one until
// RetireClusterToken.
//
// If the Secret cannot be written, the minted token is revoked. If the worker
// is killed between the two, the token stays unknown to everybody and ends with
// its period.
func (a *Activities) IssueClusterToken(ctx context.Context, in IssueClusterTokenInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	t := clusterToken{spec: in.Spec, context: in.Context, clients: a.Clients}
	cluster, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	secrets := cluster.Kube.CoreV1().Secrets(in.Spec.Namespace)
	object := kube.Name("Secret", in.Spec.Namespace, mesh.TokenSecretName)

	var previous []byte
	have, err := secrets.Get(ctx, mesh.TokenSecretName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		have, err = nil, nil
	}
	if err != nil {
		return out, kube.Error(ctx, cluster, "read "+object, err)
	}
	switch {
	case have == nil:
		out.Changed(procedure.Create, object, "a token that may sign for this cluster")
	default:
		state, err := t.inspect(ctx, have)
		if err != nil {
			return out, err
		}
		switch {
		case state.fits && (in.Renewal == "" || have.Annotations[kube.AnnotationRenewal] == in.Renewal):
			return t.renew(ctx, in.Mode, state, cluster)
		case state.fits:
			previous = have.Data[mesh.TokenSecretKey]
			state.why = "a new token, as was asked for"
		}
		if have.Labels[kube.LabelManagedBy] != kube.ManagedBy && previous == nil {
			return out, failure.Permanent(failure.Conflict, "cluster %s: %s is there, is not ours, and its token is not this cluster's: %s. If that token is no longer needed, delete the Secret and start again",
				in.Context, object, state.why)
		}
		detail := state.why
		if state.client != nil && previous == nil {
			// Minted by somebody else, it is somebody else's to revoke: it might be
			// the root token.
			detail += "; it is replaced here, and lives on in Vault until it ends or is revoked"
		}
		out.Changed(procedure.Update, object, detail)
	}
	if !in.Mode.Writes() {
		name := policyName(in.Spec, in.Context)
		s := session{namespace: t.namespace()}
		out.By(in.Mode, kube.SecretCommands(cluster, in.Spec.Mesh, in.Spec.Namespace, mesh.TokenSecretName, mesh.TokenSecretKey,
			kube.Encoded(s.command("token create", "-role="+name, "-policy="+name, "-no-default-policy", "-display-name="+name,
				"-metadata=mesh="+in.Spec.Mesh, "-metadata=cluster="+in.Context, "-field=token")))...)
		return out, nil
	}
	minted, err := t.mint(ctx)
	if err != nil {
		return out, err
	}
	apply := applycorev1.Secret(mesh.TokenSecretName, in.Spec.Namespace).
		WithLabels(kube.Labels(in.Spec.Mesh)).
		WithType(corev1.SecretTypeOpaque).
		WithData(map[string][]byte{mesh.TokenSecretKey: []byte(minted.Token())})
	if previous != nil {
		// Kept until the new one has been seen to work; RetireClusterToken ends it.
		apply.WithData(map[string][]byte{previousTokenKey: previous})
	}
	if in.Renewal != "" {
		apply.WithAnnotations(map[string]string{kube.AnnotationRenewal: in.Renewal})
	}
	if have != nil {
		// Of one that somebody else has written meanwhile nothing is taken away.
		apply.WithResourceVersion(have.ResourceVersion)
	}
	if _, err := secrets.Apply(ctx, apply, metav1.ApplyOptions{FieldManager: site.FieldManager, Force: true}); err != nil {
		t.revoke(ctx, minted)
		return out, kube.Error(ctx, cluster, "write "+object, err)
	}
	return out, nil
}

// previousTokenKey is where a cluster's Secret has the token that was replaced,
// until that is revoked.
const previousTokenKey = "previous"

// RetireClusterToken revokes the token that was replaced in the cluster's Secret
// and takes it out.
func (a *Activities) RetireClusterToken(ctx context.Context, in RetireClusterTokenInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	cluster, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	secrets := cluster.Kube.CoreV1().Secrets(in.Spec.Namespace)
	object := kube.Name("Secret", in.Spec.Namespace, mesh.TokenSecretName)
	have, err := secrets.Get(ctx, mesh.TokenSecretName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return out, nil
	}
	if err != nil {
		return out, kube.Error(ctx, cluster, "read "+object, err)
	}
	previous := string(have.Data[previousTokenKey])
	if previous == "" {
		return out, nil
	}
	client, err := a.Clients.VaultWithToken(ctx, in.Spec.Vault.Name, previous)
	if err != nil {
		return out, err
	}
	err = site.VaultError(client.Auth().Token().RevokeSelfWithContext(ctx, ""), in.Spec.Vault.Name, site.Refresh, "revoke the old token of cluster "+in.Context)
	if err != nil && failure.KindOf(err) != failure.Denied { // Denied: it has ended
		return out, err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": have.ResourceVersion}, "data": map[string]any{previousTokenKey: nil}})
	if err == nil {
		_, err = secrets.Patch(ctx, mesh.TokenSecretName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: site.FieldManager})
	}
	if err != nil {
		return out, kube.Error(ctx, cluster, "write "+object, err)
	}
	out.Changed(procedure.Delete, "old vault token in "+object, "revoked")
	return out, nil
}

// RetireClusterTokenInput names one cluster.
type RetireClusterTokenInput struct {
	Spec    mesh.Spec `json:"spec"`
	Context string    `json:"context"`
}

type clusterToken struct {
	spec    mesh.Spec
	context string
	clients *site.Clients
}

// tokenState is what Vault says of the token in the Secret.
type tokenState struct {
	fits bool
	why  string
	ttl  time.Duration
	// client uses the token; nil if Vault does not know it.
	client *vaultapi.Client
}

// inspect asks Vault about the token in the Secret, with that very token.
func (t clusterToken) inspect(ctx context.Context, secret *corev1.Secret) (tokenState, error) {
	token := string(secret.Data[mesh.TokenSecretKey])
	if token == "" {
		return tokenState{why: "it holds no token"}, nil
	}
	client, err := t.clients.VaultWithToken(ctx, t.spec.Vault.Name, token)
	if err != nil {
		return tokenState{}, err
	}
	self, err := client.Auth().Token().LookupSelfWithContext(ctx)
	if err := site.VaultError(err, t.spec.Vault.Name, site.Refresh, "look up the cluster's token"); err != nil {
		if failure.KindOf(err) == failure.Denied {
			return tokenState{why: "its token has expired or was revoked"}, nil
		}
		return tokenState{}, err
	}
	state := tokenState{client: client}
	policies, err := self.TokenPolicies()
	if err == nil {
		state.ttl, err = self.TokenTTL()
	}
	if err != nil {
		return tokenState{}, failure.Permanent(failure.Mismatch, "Vault %q: what it says of the token of cluster %s cannot be read", t.spec.Vault.Name, t.context)
	}
	name := policyName(t.spec, t.context)
	switch role, _ := self.Data["role"].(string); {
	case !slices.Equal(policies, []string{name}):
		state.why = "its token has other policies than " + name
	case role != name:
		state.why = "its token was not minted by the token role " + name
	default:
		state.fits = true
	}
	return state, nil
}

// namespace is the Vault's.
func (t clusterToken) namespace() string {
	config, err := t.clients.Config.Vault(t.spec.Vault.Name)
	if err != nil {
		return ""
	}
	return config.Namespace
}

func (t clusterToken) renew(ctx context.Context, mode procedure.Mode, state tokenState, cluster *site.Cluster) (procedure.Outcome, error) {
	var out procedure.Outcome
	// The token role's period holds from the next renewal on, also a shorter one.
	if period := t.spec.Credential.TokenPeriod.Duration; state.ttl > period/2 && state.ttl <= period {
		return out, nil
	}
	object := kube.Name("Secret", t.spec.Namespace, mesh.TokenSecretName)
	out.Changed(procedure.Update, "vault token in "+object, "renewed: it had "+state.ttl.String()+" left")
	if !mode.Writes() {
		token := kube.Kubectl(cluster, "-n", t.spec.Namespace, "get", "secret", mesh.TokenSecretName, "-o", "jsonpath={.data."+mesh.TokenSecretKey+"}")
		out.By(mode, `VAULT_TOKEN="$(`+token+` | base64 -d)" `+session{namespace: t.namespace()}.command("token renew")+" >/dev/null")
		return out, nil
	}
	_, err := state.client.Auth().Token().RenewSelfWithContext(ctx, 0)
	return out, site.VaultError(err, t.spec.Vault.Name, site.Refresh, "renew the token of cluster "+t.context)
}

// mint makes the token and returns a client that uses it.
func (t clusterToken) mint(ctx context.Context) (*vaultapi.Client, error) {
	// Not through session: what is answered here is the one secret we ever read.
	refresh, err := t.clients.Vault(ctx, t.spec.Vault.Name, site.Refresh)
	if err != nil {
		return nil, err
	}
	name := policyName(t.spec, t.context)
	secret, err := refresh.Auth().Token().CreateWithRoleWithContext(ctx, &vaultapi.TokenCreateRequest{
		Policies:        []string{name},
		NoDefaultPolicy: true,
		DisplayName:     name,
		Metadata:        map[string]string{"mesh": t.spec.Mesh, "cluster": t.context},
	}, name)
	if err != nil {
		return nil, site.VaultError(err, t.spec.Vault.Name, site.Refresh, "mint the token of cluster "+t.context)
	}
	if secret == nil || secret.Auth == nil {
		return nil, failure.Transient(failure.Unavailable, "Vault %q: no token was minted for cluster %s", t.spec.Vault.Name, t.context)
	}
	client, err := t.clients.VaultWithToken(ctx, t.spec.Vault.Name, secret.Auth.ClientToken)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(secret.Auth.TokenPolicies, []string{name}) || !secret.Auth.Orphan || !secret.Auth.Renewable {
		t.revoke(ctx, client)
		return nil, failure.Permanent(failure.Mismatch, "Vault %q: the token minted for cluster %s is not orphan, renewable and of the policy %s alone. Check the token role auth/token/roles/%s", t.spec.Vault.Name, t.context, name, name)
	}
	return client, nil
}

// revoke ends a token that nobody is to use, also when the activity was
// canceled. If it fails, the token ends with its period.
func (t clusterToken) revoke(ctx context.Context, client *vaultapi.Client) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := client.Auth().Token().RevokeSelfWithContext(ctx, ""); err != nil {
		t.clients.Log.Warn("a cluster's token could not be revoked; it ends with its period: " +
			failure.Message(site.VaultError(err, t.spec.Vault.Name, site.Refresh, "revoke a token of cluster "+t.context)))
	}
}
