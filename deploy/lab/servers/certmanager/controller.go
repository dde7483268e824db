package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cert-manager/cert-manager/pkg/controller"
	// Controllers and issuers register themselves.
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/vault"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/metrics"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	_ "github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/vault"
	logf "github.com/cert-manager/cert-manager/pkg/logs"
)

// workers is upstream's default of --concurrent-workers, for each controller.
const workers = 5

// runController starts every controller that this file links. The options are
// upstream's defaults (internal/apis/config/controller/v1alpha1) and what the
// chart sets; the defaults cannot be imported, as they link ACME and Venafi.
func runController(ctx context.Context, o options) error {
	group, ctx := errgroup.WithContext(ctx)
	factory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
		Kubeconfig:         o.kubeconfig,
		KubernetesAPIQPS:   o.qps,
		KubernetesAPIBurst: o.burst,
		IssuerOptions: controller.IssuerOptions{
			ClusterResourceNamespace:        o.namespace,
			ClusterIssuerAmbientCredentials: true,
		},
		CertificateOptions: controller.CertificateOptions{
			CopiedAnnotationPrefixes:                 []string{"*", "-kubectl.kubernetes.io/", "-fluxcd.io/", "-argocd.argoproj.io/"},
			CertificateRequestMinimumBackoffDuration: time.Hour,
			CertificateRequestMaximumBackoffDuration: 32 * time.Hour,
		},
	})
	if err != nil {
		return err
	}
	root, err := factory.Build()
	if err != nil {
		return err
	}
	if o.metricsPort != 0 {
		cm := root.SharedInformerFactory.Certmanager().V1()
		root.Metrics.SetupCertificateCollector(cm.Certificates().Lister())
		root.Metrics.SetupIssuerCollector(cm.Issuers().Lister())
		root.Metrics.SetupClusterIssuerCollector(cm.ClusterIssuers().Lister())
		l, err := listen(ctx, o.metricsPort)
		if err != nil {
			return fmt.Errorf("metrics port: %w", err)
		}
		metrics := root.Metrics.NewServer(l)
		group.Go(func() error { return serve(ctx, metrics, l) })
	}
	for name, construct := range controller.Known() {
		c, err := construct(factory)
		if err != nil {
			return fmt.Errorf("controller %s: %w", name, err)
		}
		group.Go(func() error { return c.Run(workers, ctx) })
	}
	// Once every controller has asked for the informers it needs.
	root.SharedInformerFactory.Start(ctx.Done())
	root.KubeSharedInformerFactory.Start(ctx.Done())

	var healthy atomic.Bool
	group.Go(func() error {
		root.SharedInformerFactory.WaitForCacheSync(ctx.Done())
		root.KubeSharedInformerFactory.WaitForCacheSync(ctx.Done())
		healthy.Store(true)
		logf.FromContext(ctx).Info("caches are filled, controllers at work", "controllers", len(controller.Known()))
		return nil
	})
	group.Go(func() error { return serveHealth(ctx, o.healthzPort, healthy.Load) })
	return group.Wait()
}
