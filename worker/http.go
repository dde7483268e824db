package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/contrib/opentelemetry"
	"go.uber.org/zap"
)

// newMetrics returns the handler for the SDK's metrics and the page that shows
// them together with those of the process.
func newMetrics(log *zap.Logger) (client.MetricsHandler, http.Handler, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutScopeInfo())
	if err != nil {
		return nil, nil, fmt.Errorf("metrics: %w", err)
	}
	provider := metric.NewMeterProvider(metric.WithReader(exporter))
	handler := opentelemetry.NewMetricsHandler(opentelemetry.MetricsHandlerOptions{
		Meter:                provider.Meter("temporal-sdk-go"),
		UseMonotonicCounters: true,
		OnError:              func(err error) { log.Warn("metrics", zap.Error(err)) },
	})
	return handler, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), nil
}

// status is what /readyz reports.
type status struct {
	mu     sync.Mutex
	client client.Client
}

func (s *status) polling(c client.Client) { s.set(c) }
func (s *status) stopping()               { s.set(nil) }

func (s *status) set(c client.Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client = c
}

// ready is nil while the worker polls and Temporal answers.
func (s *status) ready(ctx context.Context) error {
	s.mu.Lock()
	c := s.client
	s.mu.Unlock()
	if c == nil {
		return fmt.Errorf("not polling: waiting for Temporal, or stopping")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := c.CheckHealth(ctx, &client.CheckHealthRequest{}); err != nil {
		return fmt.Errorf("Temporal does not answer: %w", err)
	}
	return nil
}

// serveHTTP serves health and metrics from the start, so that a worker that
// still waits for Temporal is seen alive. The returned function stops it.
func serveHTTP(listen string, s *status, metrics http.Handler, log *zap.Logger) (func(), error) {
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("RELAYPKI_LISTEN: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := s.ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := server.Serve(listener); err != nil && err != http.ErrServerClosed {
			log.Error("health and metrics are no longer served", zap.Error(err))
		}
	}()
	return func() { _ = server.Close() }, nil
}
