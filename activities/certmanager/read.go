package certmanager

import (
	"context"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
)

// CertificateName names one Certificate of a cluster.
type CertificateName struct {
	Context   string `json:"context"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// CertificateLife is from when until when the issued certificate is valid, and
// when cert-manager is going to renew it.
type CertificateLife struct {
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	Renewal   time.Time `json:"renewal,omitzero"`
}

// ReadCertificateLife reads what cert-manager says of a certificate that it has
// had issued. It reads no Secret. That none was issued yet is a permanent error.
func (a *Activities) ReadCertificateLife(ctx context.Context, in CertificateName) (CertificateLife, error) {
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return CertificateLife{}, err
	}
	name := kube.Name(cmapi.CertificateKind, in.Namespace, in.Name)
	live, err := c.CertManager.CertmanagerV1().Certificates(in.Namespace).Get(ctx, in.Name, metav1.GetOptions{})
	if err != nil {
		return CertificateLife{}, kube.Error(ctx, c, "read "+name, err)
	}
	return lifeOf(live, c.Name)
}

func lifeOf(live *cmapi.Certificate, cluster string) (CertificateLife, error) {
	s := live.Status
	if s.NotBefore == nil || s.NotAfter == nil {
		return CertificateLife{}, failure.Permanent(failure.Preflight, "cluster %q: %s was never issued; relaypki verify says why", cluster, kube.Name(cmapi.CertificateKind, live.Namespace, live.Name))
	}
	life := CertificateLife{NotBefore: s.NotBefore.UTC(), NotAfter: s.NotAfter.UTC()}
	if s.RenewalTime != nil {
		life.Renewal = s.RenewalTime.UTC()
	}
	return life, nil
}
