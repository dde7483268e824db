package certmanager

import (
	"context"
	"fmt"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/cert-manager/cert-manager/pkg/util/pki"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// ReadExpiry reads until when a certificate of the workload's stays valid that
// cert-manager has had issued: the latest of the stored one's and those of the
// requests that are still there. It reads no Secret.
func (a *Activities) ReadExpiry(ctx context.Context, in RemovalInput) (Expiry, error) {
	var latest Expiry
	c, w, err := a.place(in)
	if err != nil {
		return latest, err
	}
	note := func(t time.Time) {
		if t.After(latest.NotAfter) {
			latest.NotAfter = t.UTC()
		}
	}
	name := in.Spec.ClientCertificate(w).Name
	cert, err := c.CertManager.CertmanagerV1().Certificates(w.Namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case err == nil && cert.Status.NotAfter != nil:
		note(cert.Status.NotAfter.Time)
	case err != nil && !apierrors.IsNotFound(err):
		return latest, kube.Error(ctx, c, "read "+kube.Name(cmapi.CertificateKind, w.Namespace, name), err)
	}
	requests, err := c.CertManager.CertmanagerV1().CertificateRequests(w.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return latest, kube.Error(ctx, c, "list CertificateRequests in "+w.Namespace, err)
	}
	if err == nil {
		for _, request := range requests.Items {
			if request.Annotations[cmapi.CertificateNameKey] != name || len(request.Status.Certificate) == 0 {
				continue
			}
			if chain, err := pki.DecodeX509CertificateChainBytes(request.Status.Certificate); err == nil {
				note(chain[0].NotAfter)
			}
		}
	}
	return latest, nil
}

// RemoveCertificate deletes the Certificate and the Secret that cert-manager has
// made for it, in this order: it makes a Secret again whose Certificate is there.
// A Secret of that name which is not of our Certificate is kept.
func (a *Activities) RemoveCertificate(ctx context.Context, in RemovalInput) (procedure.Removal, error) {
	var out procedure.Removal
	c, w, err := a.place(in)
	if err != nil {
		return out, err
	}
	cert := in.Spec.ClientCertificate(w)
	if err := kube.Delete(ctx, c, cmapi.CertificateKind, w.Namespace, cert.Name, in.Spec.Mesh, in.Mode, &out); err != nil {
		return out, err
	}
	secret, err := kube.Get(ctx, c, "Secret", w.Namespace, cert.SecretName)
	if err != nil || secret == nil {
		return out, err
	}
	annotations := secret.GetAnnotations()
	switch of := annotations[cmapi.CertificateNameKey]; {
	case len(out.Kept) > 0:
		out.Keep(kube.Name("Secret", w.Namespace, cert.SecretName), "it may be of the Certificate that is kept")
	case of != cert.Name || annotations[cmapi.IssuerNameAnnotationKey] != mesh.IssuerName:
		out.Keep(kube.Name("Secret", w.Namespace, cert.SecretName), fmt.Sprintf("cert-manager has not made it for %s: its annotation %s is %q",
			kube.Name(cmapi.CertificateKind, w.Namespace, cert.Name), cmapi.CertificateNameKey, of))
	default:
		err = kube.DeleteSeen(ctx, c, secret, in.Mode, &out)
	}
	return out, err
}

// RemoveIssuer deletes the Issuer and what it logs in to Vault with.
func (a *Activities) RemoveIssuer(ctx context.Context, in RemovalInput) (procedure.Removal, error) {
	var out procedure.Removal
	c, w, err := a.place(in)
	if err != nil {
		return out, err
	}
	for _, object := range []struct{ kind, name string }{
		{cmapi.IssuerKind, mesh.IssuerName},
		{"RoleBinding", mesh.IssuerServiceAccount},
		{"Role", mesh.IssuerServiceAccount},
		{"ServiceAccount", mesh.IssuerServiceAccount},
		{"Secret", mesh.TokenSecretName},
		{"Secret", mesh.AppRoleSecretName},
		{"Secret", mesh.ReviewerName},
		{"ServiceAccount", mesh.ReviewerName},
		{"Secret", mesh.CABundleSecretName},
	} {
		if err := kube.Delete(ctx, c, object.kind, w.Namespace, object.name, in.Spec.Mesh, in.Mode, &out); err != nil {
			return out, err
		}
	}
	// Of the whole cluster: a worker that was never to have tokens reviewed need not
	// have rights on it.
	spec := in.Spec
	spec.Namespace = w.Namespace
	err = kube.Delete(ctx, c, "ClusterRoleBinding", "", spec.ReviewerBinding(), spec.Mesh, in.Mode, &out)
	if failure.KindOf(err) == failure.Denied && spec.Credential.Method != mesh.CredentialKubernetes {
		err = nil
	}
	return out, err
}

// examples are as many of what uses a cert-manager as an answer names.
const examples = 3

// FindCertManagerUsers looks for what in the whole cluster cert-manager has to be there
// for: any Issuer, ClusterIssuer or Certificate but those of this workload.
func (a *Activities) FindCertManagerUsers(ctx context.Context, in RemovalInput) (Users, error) {
	var users Users
	c, w, err := a.place(in)
	if err != nil {
		return users, err
	}
	mine := map[string]bool{
		kube.Name(cmapi.IssuerKind, w.Namespace, mesh.IssuerName):                       true,
		kube.Name(cmapi.CertificateKind, w.Namespace, in.Spec.Certificates.Client.Name): true,
	}
	for _, kind := range []string{cmapi.IssuerKind, cmapi.ClusterIssuerKind, cmapi.CertificateKind} {
		list, err := kube.Resource(c, kind, "").List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) { // there is no cert-manager
			continue
		}
		if err != nil {
			return users, kube.Error(ctx, c, "list "+kind+"s", err)
		}
		for _, object := range list.Items {
			name := kube.Name(kind, object.GetNamespace(), object.GetName())
			if mine[name] && kube.NotOurs(object.GetLabels(), in.Spec.Mesh) == "" {
				continue
			}
			if users.Count++; users.Count <= examples {
				users.Examples = append(users.Examples, name)
			}
		}
	}
	return users, nil
}

func (a *Activities) place(in RemovalInput) (*site.Cluster, mesh.Workload, error) {
	if len(in.Spec.Workloads) != 1 {
		return nil, mesh.Workload{}, failure.Permanent(failure.InvalidInput, "the spec to remove a workload of has %d of them", len(in.Spec.Workloads))
	}
	w := in.Spec.Workloads[0]
	c, err := a.Clients.Cluster(w.Context)
	return c, w, err
}
