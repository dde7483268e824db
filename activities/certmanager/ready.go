package certmanager

import (
	"context"
	"fmt"
	"strings"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"time"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// AwaitCertManager waits (heartbeating) until cert-manager's three Deployments
// are available and its webhook answers, and says the version. One that is too
// old (serviceAccountRef needs 1.12) is a permanent error.
func (a *Activities) AwaitCertManager(ctx context.Context, in AwaitInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	err = await(ctx, in.Mode, &out, func(ctx context.Context) (bool, string, error) {
		deployments, err := kube.FindCertManager(ctx, c)
		if err != nil {
			return false, "", err
		}
		for i, d := range deployments {
			if d == nil {
				return false, fmt.Sprintf("cluster %q: Deployment %s is not there", c.Name, kube.CertManagerName(i)), nil
			}
			version := kube.Version(d)
			if i == 0 {
				out.Detail = "cert-manager " + version
				if version == "" {
					out.Detail = "cert-manager of unknown version"
				}
			}
			if kube.TooOld(version) {
				return false, "", failure.Permanent(failure.Preflight, "cluster %q: cert-manager %s is too old: Issuers log in with a ServiceAccount from %s on; upgrade it",
					c.Name, version, kube.MinimalCertManager)
			}
			if ready, state := kube.Available(d); !ready {
				if trouble := kube.PodTrouble(ctx, c, d); trouble != "" {
					state += "; " + trouble
				}
				return false, fmt.Sprintf("cluster %q: %s", c.Name, state), nil
			}
		}
		state, err := webhookAnswers(ctx, c, in.Namespace)
		return err == nil && state == "", state, err
	})
	return out, err
}

// await waits until a look says that all is done. In a plan it looks once, and
// what is not ready yet, or cannot be asked, is a detail of the outcome.
func await(ctx context.Context, mode procedure.Mode, out *procedure.Outcome, look func(context.Context) (bool, string, error)) error {
	if mode != procedure.Plan {
		return kube.Await(ctx, look)
	}
	done, state, err := look(ctx)
	if failure.IsPermanent(err) {
		return err
	}
	if err != nil {
		state = failure.Message(err)
	}
	if !done {
		out.Detail = "not ready: " + state
	}
	return nil
}

// probeName is of a Certificate that is only ever tried, never stored.
const probeName = "relaypki-webhook-probe"

// webhookAnswers tries two Certificates by dry run: one that is right, and one
// that nothing but the webhook would refuse. It returns what is wrong yet.
func webhookAnswers(ctx context.Context, c *site.Cluster, namespace string) (state string, err error) {
	try := func(renewBefore time.Duration) error {
		want, err := kube.Unstructured(&cmapi.Certificate{
			TypeMeta:   metav1.TypeMeta{APIVersion: cmapi.SchemeGroupVersion.String(), Kind: cmapi.CertificateKind},
			ObjectMeta: metav1.ObjectMeta{Name: probeName, Namespace: namespace},
			Spec: cmapi.CertificateSpec{
				SecretName: probeName, DNSNames: []string{"probe"},
				Duration: &metav1.Duration{Duration: 2 * time.Hour}, RenewBefore: &metav1.Duration{Duration: renewBefore},
				IssuerRef: cmmeta.IssuerReference{Name: probeName},
			},
		})
		if err != nil {
			return err
		}
		_, err = kube.Resource(c, cmapi.CertificateKind, namespace).Apply(ctx, probeName, want,
			metav1.ApplyOptions{FieldManager: site.FieldManager, DryRun: []string{metav1.DryRunAll}})
		return err
	}
	if err := try(time.Hour); err != nil {
		return "", webhookError(ctx, c, err)
	}
	switch err := try(3 * time.Hour); {
	case err == nil:
		return fmt.Sprintf("cluster %q: cert-manager's webhook lets pass what it should refuse; it is not in place yet", c.Name), nil
	case apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsBadRequest(err), strings.Contains(err.Error(), "denied the request"):
		return "", nil
	default:
		return "", webhookError(ctx, c, err)
	}
}

// webhookError is what an API server says whose webhook does not answer, with
// where to look.
func webhookError(ctx context.Context, c *site.Cluster, err error) error {
	err = kube.Error(ctx, c, "try a Certificate against cert-manager's webhook", err)
	if failure.KindOf(err) != failure.Unavailable {
		return err
	}
	return failure.Transient(failure.Unavailable, "%s. See whether its Pods run and whether ValidatingWebhookConfiguration cert-manager-webhook leads there", failure.Message(err))
}
