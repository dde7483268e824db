package kube

import (
	"context"
	"fmt"
	"strings"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/site"
)

// probeName is of a Certificate that is only ever tried, never stored.
const probeName = "relaypki-webhook-probe"

// WebhookAnswers tries two Certificates by dry run: one that is right, and one
// that nothing but the webhook would refuse. It returns what is wrong yet.
func WebhookAnswers(ctx context.Context, c *site.Cluster, namespace string) (state string, err error) {
	try := func(renewBefore time.Duration) error {
		want, err := Unstructured(&cmapi.Certificate{
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
		_, err = Resource(c, cmapi.CertificateKind, namespace).Apply(ctx, probeName, want,
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
	err = Error(ctx, c, "try a Certificate against cert-manager's webhook", err)
	if failure.KindOf(err) != failure.Unavailable {
		return err
	}
	return failure.Transient(failure.Unavailable, "%s. See whether its Pods run and whether ValidatingWebhookConfiguration cert-manager-webhook leads there", failure.Message(err))
}
