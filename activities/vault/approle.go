package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
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

// SecretIDInput names one cluster, for method appRole.
type SecretIDInput struct {
	Spec mesh.Spec `json:"spec"`
	// Context is the cluster's.
	Context string `json:"context"`
	// Renewal is as in RefreshCredentialInput.
	Renewal string         `json:"renewal,omitempty"`
	Mode    procedure.Mode `json:"mode"`
}

// SecretIDResult names where the cluster's secret id is, not what it is.
type SecretIDResult struct {
	procedure.Outcome
	// Key in the Secret relaypki-approle, which the Issuer has to name.
	Key string `json:"key"`
	// Superseded is how many older ones are in the Secret beside it.
	Superseded int `json:"superseded,omitempty"`
}

// Each secret id has a key of its own in the Secret, so that one that is renewed
// is used once the Issuer names its key: that cert-manager has taken it up is
// then seen of the Issuer, Ready at its new generation, and until then the old
// one works.
const secretIDPrefix = "secretId-"

// secretIDKeys are the keys of a Secret with secret ids, the latest first.
func secretIDKeys(data map[string][]byte) []string {
	number := func(key string) int {
		n, err := strconv.Atoi(strings.TrimPrefix(key, secretIDPrefix))
		if err != nil || n < 1 || key != secretIDKey(n) {
			return 0
		}
		return n
	}
	keys := slices.DeleteFunc(slices.Collect(maps.Keys(data)), func(key string) bool { return number(key) == 0 })
	slices.SortFunc(keys, func(a, b string) int { return number(b) - number(a) })
	return keys
}

func secretIDKey(n int) string { return secretIDPrefix + strconv.Itoa(n) }

// ensureAppRole makes the role whose secret ids let in the cluster's Issuer. Its
// role id is the mount's name: what has to be kept secret is the secret id.
func (s session) ensureAppRole(ctx context.Context, in ClusterAccessInput, out *procedure.Outcome) error {
	path := loginRole(in.Spec, in.Context)
	if err := s.ensure(ctx, in.Mode, out, "vault auth role "+path, path, loggingIn(in, map[string]any{
		"bind_secret_id":        true,
		"secret_id_bound_cidrs": []string{},
		"secret_id_num_uses":    int64(0),
		"secret_id_ttl":         seconds(in.Spec.Credential.TokenPeriod),
	})); err != nil {
		return err
	}
	return s.ensure(ctx, in.Mode, out, "vault role id of "+path, path+"/role-id", map[string]any{"role_id": in.Spec.AuthMount(in.Context)})
}

// gone: what was asked about is not there, be it the mount or the role.
func gone(err error) bool {
	var response *vaultapi.ResponseError
	return errors.As(err, &response) && (absent(response) ||
		response.StatusCode == http.StatusBadRequest && strings.Contains(strings.Join(response.Errors, " "), "does not exist"))
}

func loginRole(spec mesh.Spec, context string) string {
	return "auth/" + spec.AuthMount(context) + "/role/" + mesh.IssuerServiceAccount
}

// secretIDs is the Secret of one cluster with its secret ids.
type secretIDs struct {
	session
	spec    mesh.Spec
	context string
	cluster *site.Cluster
	secret  *corev1.Secret // nil if there is none
	// keys are the latest first.
	keys []string
}

func (a *Activities) secretIDs(ctx context.Context, spec mesh.Spec, context string, mode procedure.Mode) (*secretIDs, error) {
	s, err := a.sessionFor(ctx, mode, spec.Vault.Name, site.Refresh)
	if err != nil {
		return nil, err
	}
	cluster, err := a.Clients.Cluster(context)
	if err != nil {
		return nil, err
	}
	ids := &secretIDs{session: s, spec: spec, context: context, cluster: cluster}
	secret, err := cluster.Kube.CoreV1().Secrets(spec.Namespace).Get(ctx, mesh.AppRoleSecretName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return ids, nil
	case err != nil:
		return nil, kube.Error(ctx, cluster, "read "+ids.object(), err)
	case secret.Labels[kube.LabelManagedBy] != kube.ManagedBy:
		return nil, failure.Permanent(failure.Conflict, "cluster %s: %s is there and is not ours. Delete it if nothing uses it, or rename it, and start again", context, ids.object())
	}
	ids.secret, ids.keys = secret, secretIDKeys(secret.Data)
	return ids, nil
}

func (ids *secretIDs) object() string {
	return kube.Name("Secret", ids.spec.Namespace, mesh.AppRoleSecretName)
}

// secretIDState is what Vault says of a secret id.
type secretIDState struct {
	Accessor string    `json:"secret_id_accessor"`
	Expires  time.Time `json:"expiration_time"`
	known    bool
}

// left is how long it has to live; negative if it lives for ever.
func (s secretIDState) left() time.Duration {
	if s.Expires.IsZero() {
		return -1
	}
	return time.Until(s.Expires).Round(time.Second)
}

// inspect asks Vault about the secret id under a key. Not through the session's
// own read, since it is a write with the secret id in it.
func (ids *secretIDs) inspect(ctx context.Context, key string) (secretIDState, error) {
	var state secretIDState
	if len(ids.secret.Data[key]) == 0 {
		return state, nil
	}
	path := loginRole(ids.spec, ids.context) + "/secret-id/lookup"
	secret, err := ids.client.Logical().WriteWithContext(ctx, path, map[string]any{"secret_id": string(ids.secret.Data[key])})
	if gone(err) {
		return state, nil
	}
	if err != nil {
		return state, ids.failed(err, "look up a secret id at "+path)
	}
	if secret == nil || secret.Data == nil {
		return state, nil
	}
	state.known = true
	return state, ids.decode(secret.Data, path, &state)
}

// lost is why there is no secret id that could be renewed; empty if there is one.
func (ids *secretIDs) lost(ctx context.Context) (string, secretIDState, error) {
	if len(ids.keys) == 0 {
		return ids.object() + " is missing", secretIDState{}, nil
	}
	state, err := ids.inspect(ctx, ids.keys[0])
	if err == nil && !state.known {
		return ids.object() + ": its secret id has expired or was destroyed", state, nil
	}
	return "", state, err
}

// IssueSecretID gives the cluster a secret id unless it has one with half of its
// life to come (and, with a Renewal, minted for that), and writes it to the cluster's Secret in this one activity: it
// is in no result. If the Secret cannot be written, what was minted is
// destroyed; if the worker is killed between the two, it is known to nobody and
// ends with its life.
func (a *Activities) IssueSecretID(ctx context.Context, in SecretIDInput) (SecretIDResult, error) {
	var result SecretIDResult
	ids, err := a.secretIDs(ctx, in.Spec, in.Context, in.Mode)
	if err != nil {
		return result, err
	}
	lost, state, err := ids.lost(ctx)
	if err != nil {
		return result, err
	}
	period := in.Spec.Credential.TokenPeriod.Duration
	left := state.left()
	asked := in.Renewal != "" && (ids.secret == nil || ids.secret.Annotations[kube.AnnotationRenewal] != in.Renewal)
	if lost == "" && left > period/2 && left <= period && !asked {
		result.Key, result.Superseded = ids.keys[0], len(ids.keys)-1
		result.Detail = "secret id has " + left.String() + " left"
		return result, nil
	}
	next := 1
	verb, detail := procedure.Create, lost
	if len(ids.keys) > 0 {
		last, _ := strconv.Atoi(strings.TrimPrefix(ids.keys[0], secretIDPrefix))
		next, verb = last+1, procedure.Update
	}
	if lost == "" {
		detail = "a new secret id: the old one has " + left.String() + " left"
		switch {
		case asked:
			detail = "a new secret id, as was asked for"
		case left < 0:
			detail = "a new secret id: the old one would live for ever"
		}
	}
	if verb == procedure.Create {
		detail = "a secret id that lets in this cluster's Issuer"
	}
	result.Changed(verb, ids.object(), detail)
	result.Key, result.Superseded = secretIDKey(next), len(ids.keys)
	path := loginRole(in.Spec, in.Context) + "/secret-id"
	if !in.Mode.Writes() {
		result.By(in.Mode, kube.SecretCommands(ids.cluster, in.Spec.Mesh, in.Spec.Namespace, mesh.AppRoleSecretName, result.Key,
			kube.Encoded(ids.command("write", "-force", "-field=secret_id", path)))...)
		return result, nil
	}
	// Not through session: what is answered is a secret.
	minted, err := ids.client.Logical().WriteWithContext(ctx, path, nil)
	if err != nil {
		return result, ids.failed(err, "mint a secret id at "+path)
	}
	secretID, accessor := "", ""
	if minted != nil {
		secretID, _ = minted.Data["secret_id"].(string)
		accessor, _ = minted.Data["secret_id_accessor"].(string)
	}
	if secretID == "" || accessor == "" {
		return result, failure.Transient(failure.Unavailable, "Vault %q: no secret id was minted for cluster %s", ids.vault, in.Context)
	}
	data := map[string][]byte{result.Key: []byte(secretID)}
	for _, key := range ids.keys {
		data[key] = ids.secret.Data[key]
	}
	if err := ids.store(ctx, data, in.Renewal); err != nil {
		ids.forget(ctx, accessor)
		return result, err
	}
	return result, nil
}

// store writes the Secret, unless somebody else has written it since it was read.
func (ids *secretIDs) store(ctx context.Context, data map[string][]byte, renewal string) error {
	apply := applycorev1.Secret(mesh.AppRoleSecretName, ids.spec.Namespace).
		WithLabels(kube.Labels(ids.spec.Mesh)).
		WithType(corev1.SecretTypeOpaque).
		WithData(data)
	if renewal != "" {
		apply.WithAnnotations(map[string]string{kube.AnnotationRenewal: renewal})
	}
	if ids.secret != nil {
		apply.WithResourceVersion(ids.secret.ResourceVersion)
	}
	_, err := ids.cluster.Kube.CoreV1().Secrets(ids.spec.Namespace).Apply(ctx, apply, metav1.ApplyOptions{FieldManager: site.FieldManager, Force: true})
	return kube.Error(ctx, ids.cluster, "write "+ids.object(), err)
}

// drop takes keys out of the Secret, whoever has written them last, unless
// somebody else has written the Secret since it was read.
func (ids *secretIDs) drop(ctx context.Context, keys []string) error {
	data := map[string]any{}
	for _, key := range keys {
		data[key] = nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": ids.secret.ResourceVersion}, "data": data})
	if err == nil {
		_, err = ids.cluster.Kube.CoreV1().Secrets(ids.spec.Namespace).Patch(ctx, mesh.AppRoleSecretName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: site.FieldManager})
	}
	return kube.Error(ctx, ids.cluster, "write "+ids.object(), err)
}

// forget destroys a secret id that nobody is to use, also when the activity was
// canceled. If that fails, it ends with its life.
func (ids *secretIDs) forget(ctx context.Context, accessor string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_ = ids.destroy(ctx, accessor)
}

func (ids *secretIDs) destroy(ctx context.Context, accessor string) error {
	path := loginRole(ids.spec, ids.context) + "/secret-id-accessor/destroy"
	_, err := ids.client.Logical().WriteWithContext(ctx, path, map[string]any{"secret_id_accessor": accessor})
	if gone(err) {
		return nil
	}
	return ids.failed(err, "destroy an old secret id at "+path)
}

// RetireSecretIDs destroys the secret ids that are in the Secret beside the one
// under Key, which the Issuer has been seen to use, and takes them out. Others
// are left alone: another run may have minted one just now.
func (a *Activities) RetireSecretIDs(ctx context.Context, in RetireSecretIDsInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	ids, err := a.secretIDs(ctx, in.Spec, in.Context, procedure.Apply)
	if err != nil || len(ids.keys) == 0 {
		return out, err
	}
	if ids.keys[0] != in.Key {
		return out, failure.Permanent(failure.Conflict, "cluster %s: %s has a newer secret id than %s already: another run has renewed it. Nothing was taken away", in.Context, ids.object(), in.Key)
	}
	old := ids.keys[1:]
	if len(old) == 0 {
		return out, nil
	}
	for _, key := range old {
		state, err := ids.inspect(ctx, key)
		if err != nil {
			return out, err
		}
		if !state.known {
			continue
		}
		if err := ids.destroy(ctx, state.Accessor); err != nil {
			return out, err
		}
	}
	if err := ids.drop(ctx, old); err != nil {
		return out, err
	}
	out.Changed(procedure.Delete, fmt.Sprintf("%d old secret ids in %s", len(old), ids.object()), "")
	return out, nil
}

// RetireSecretIDsInput says which secret id of a cluster is in use.
type RetireSecretIDsInput struct {
	Spec    mesh.Spec `json:"spec"`
	Context string    `json:"context"`
	Key     string    `json:"key"`
}
