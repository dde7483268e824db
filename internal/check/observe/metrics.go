package observe

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/relaypki/relaypki/internal/check"
)

// metrics reads a management server's gauges over a connection to its metrics
// port.
func metrics(ctx context.Context, conn net.Conn) (check.Metrics, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true,
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://management-server/metrics", nil)
	if err != nil {
		return check.Metrics{}, err
	}
	response, err := client.Do(request)
	if err != nil {
		return check.Metrics{}, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return check.Metrics{}, fmt.Errorf("/metrics answers %s", response.Status)
	}
	return parseMetrics(response.Body)
}

func parseMetrics(text io.Reader) (check.Metrics, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(text)
	if err != nil {
		return check.Metrics{}, fmt.Errorf("/metrics: %w", err)
	}
	seen := check.Metrics{
		Pull: perCluster(families["relay_pull_clients_connected"]),
		Push: perCluster(families["relay_push_clients_connected"]),
	}
	for _, m := range families["relaypki_standin"].GetMetric() {
		seen.StandIn = seen.StandIn || value(m) == 1
	}
	return seen, nil
}

func perCluster(family *dto.MetricFamily) map[string]float64 {
	out := map[string]float64{}
	for _, m := range family.GetMetric() {
		for _, label := range m.GetLabel() {
			if label.GetName() == "cluster" {
				out[label.GetValue()] += value(m)
			}
		}
	}
	return out
}

// value of a gauge, or of a metric without a TYPE line.
func value(m *dto.Metric) float64 {
	if m.Gauge != nil {
		return m.GetGauge().GetValue()
	}
	return m.GetUntyped().GetValue()
}
