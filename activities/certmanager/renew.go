package certmanager

import (
	"context"
	"fmt"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// LoginInput names one cluster's Issuer.
type LoginInput struct {
	Context   string `json:"context"`
	Namespace string `json:"namespace"`
}

// ProveLogin has cert-manager log in to Vault with what the cluster has now, and
// waits (heartbeating) until the Issuer is Ready. That it is Ready says nothing of
// a credential that has changed since, so its Ready condition is taken back first,
// and cert-manager sets it again once it has logged in; what is requested
// meanwhile waits for that.
func (a *Activities) ProveLogin(ctx context.Context, in LoginInput) (procedure.Outcome, error) {
	out := procedure.Outcome{Detail: "logged in"}
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	name := kube.Name(cmapi.IssuerKind, in.Namespace, mesh.IssuerName)
	issuers := c.CertManager.CertmanagerV1().Issuers(in.Namespace)
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		live, err := issuers.Get(ctx, mesh.IssuerName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		takeBack(live)
		_, err = issuers.UpdateStatus(ctx, live, metav1.UpdateOptions{FieldManager: site.FieldManager})
		return err
	})
	if err != nil {
		return out, kube.Error(ctx, c, "have cert-manager look again at "+name, err)
	}
	return out, kube.Await(ctx, func(ctx context.Context) (bool, string, error) {
		live, err := issuers.Get(ctx, mesh.IssuerName, metav1.GetOptions{})
		if err != nil {
			return false, "", kube.Error(ctx, c, "read "+name, err)
		}
		ready, state := issuerReady(live)
		return ready, fmt.Sprintf("cluster %q: %s", c.Name, state), nil
	})
}

// takeBack makes the Issuer's Ready condition unknown.
func takeBack(issuer *cmapi.Issuer) {
	now := metav1.Now()
	conditions := []cmapi.IssuerCondition{{
		Type: cmapi.IssuerConditionReady, Status: cmmeta.ConditionUnknown, Reason: "CredentialChanged",
		Message: "relaypki has changed the credential; cert-manager has not logged in since", LastTransitionTime: &now, ObservedGeneration: issuer.Generation,
	}}
	for _, cond := range issuer.Status.Conditions {
		if cond.Type != cmapi.IssuerConditionReady {
			conditions = append(conditions, cond)
		}
	}
	issuer.Status.Conditions = conditions
}

// RenewReviewerInput names one cluster, for method kubernetes.
type RenewReviewerInput struct {
	Mesh      string `json:"mesh"`
	Context   string `json:"context"`
	Namespace string `json:"namespace"`
}

// RenewReviewer makes the Secret anew into which the cluster writes the
// reviewer's token. The old token ends with the old Secret: until the new one is
// in Vault, which is the next step, Vault lets nobody of this cluster in, and
// cert-manager tries again what it needs. A try that is repeated makes it once more.
func (a *Activities) RenewReviewer(ctx context.Context, in RenewReviewerInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	object := kube.Name("Secret", in.Namespace, mesh.ReviewerName)
	secrets := c.Kube.CoreV1().Secrets(in.Namespace)
	have, err := secrets.Get(ctx, mesh.ReviewerName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err): // by a try before this one, or by somebody
	case err != nil:
		return out, kube.Error(ctx, c, "read "+object, err)
	case kube.NotOurs(have.Labels, in.Mesh) != "":
		return out, failure.Permanent(failure.Conflict, "cluster %q: %s is not this mesh's: %s. It is left as it is; set the mesh up again", c.Name, object, kube.NotOurs(have.Labels, in.Mesh))
	default:
		err := secrets.Delete(ctx, mesh.ReviewerName, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &have.UID}})
		if err != nil && !apierrors.IsNotFound(err) {
			return out, kube.Error(ctx, c, "delete "+object, err)
		}
	}
	for _, wanted := range reviewer(IssuerInput{Mesh: in.Mesh, Namespace: in.Namespace}) {
		want, err := kube.Unstructured(wanted)
		if err != nil {
			return out, err
		}
		if _, err := kube.Apply(ctx, c, want, procedure.Apply, &out); err != nil {
			return out, err
		}
	}
	return out, nil
}
