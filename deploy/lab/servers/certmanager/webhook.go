package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cert-manager/cert-manager/internal/apis/config/shared"
	config "github.com/cert-manager/cert-manager/internal/apis/config/webhook"
	"github.com/cert-manager/cert-manager/internal/webhook"
	logf "github.com/cert-manager/cert-manager/pkg/logs"
	servertls "github.com/cert-manager/cert-manager/pkg/server/tls"
	"github.com/cert-manager/cert-manager/pkg/webhook/admission"
)

// runWebhook serves upstream's admission chain. Upstream's own server listens
// on every interface and cannot be told otherwise, so its parts are served
// here, as its Run does, on loopback.
func runWebhook(ctx context.Context, o options) error {
	log := logf.FromContext(ctx)
	parts, err := webhook.NewCertManagerWebhookServer(log, config.WebhookConfiguration{
		KubeConfig: o.kubeconfig,
		TLSConfig: shared.TLSConfig{Dynamic: shared.DynamicServingConfig{
			SecretNamespace: o.namespace,
			SecretName:      "cert-manager-webhook-ca",
			DNSNames:        []string{"localhost"},
		}},
	})
	if err != nil {
		return err
	}
	// The first attempt at a serving certificate comes before the CA is there;
	// upstream makes the next one a second later.
	if source, ok := parts.CertificateSource.(*servertls.DynamicSource); ok {
		source.RetryInterval = 50 * time.Millisecond
	}
	l, err := listen(ctx, o.securePort)
	if err != nil {
		return fmt.Errorf("webhook port: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/mutate", admission.NewCustomMutationWebhook(parts.MutationWebhook))
	mux.Handle("/validate", admission.NewCustomValidationWebhook(parts.ResourceScheme, parts.ValidationWebhook))

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return parts.CertificateSource.Start(ctx) })
	group.Go(func() error {
		return serve(ctx, &http.Server{
			Handler:   mux,
			TLSConfig: &tls.Config{GetCertificate: parts.CertificateSource.GetCertificate},
		}, l)
	})
	group.Go(func() error { return serveHealth(ctx, o.healthzPort, parts.CertificateSource.Healthy) })
	log.Info("serving", "address", l.Addr().String())
	return group.Wait()
}
