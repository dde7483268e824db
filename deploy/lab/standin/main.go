// Command relay-standin takes the place of the proprietary
// gloo-mesh-mgmt-server and gloo-mesh-agent in the lab: the same Secrets, the
// same ports, the same gauges and the same error texts, and nothing else of
// what the real programs do. It never claims to be them: its first log line
// and the metric relaypki_standin say what it is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const version = "2.12.0-standin"

// common holds what server and agent have alike.
type common struct {
	kubeconfig     string
	namespace      string
	metricsListen  string
	terminationLog string
}

func (c *common) register(fs *flag.FlagSet) {
	fs.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig of the cluster this Pod runs in; empty means in-cluster")
	fs.StringVar(&c.namespace, "namespace", "gloo-mesh", "namespace of the Secrets")
	fs.StringVar(&c.metricsListen, "metrics-listen", ":9091", "address of /metrics and /readyz")
	fs.StringVar(&c.terminationLog, "termination-log", "", "file that gets the reason when the program gives up, as /dev/termination-log does in a container")
}

// fatal is a failure with the message that the real program ends with.
type fatal struct{ message string }

func (f fatal) Error() string { return f.message }

func main() {
	log := newLogger()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	var c common
	err := run(ctx, log, &c, os.Args[1:])
	if err == nil {
		return
	}
	if c.terminationLog != "" {
		// Best effort, as in a container: the log has the same text.
		_ = os.WriteFile(c.terminationLog, []byte(err.Error()), 0o644)
	}
	log.WithOptions(zap.WithCaller(false)).Fatal(err.Error(), zap.String("version", version))
}

func run(ctx context.Context, log *zap.Logger, c *common, args []string) error {
	usage := errors.New("usage: relay-standin server|agent [flags]")
	if len(args) == 0 {
		return usage
	}
	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	c.register(fs)
	metrics := prometheus.NewRegistry()
	var ready atomic.Bool

	var start func(*kubernetes.Clientset, dynamic.Interface) error
	switch args[0] {
	case "server":
		s := &server{log: log, metrics: newServerMetrics(metrics), ready: &ready}
		s.register(fs)
		start = func(k *kubernetes.Clientset, d dynamic.Interface) error {
			s.namespace = c.namespace
			return s.run(ctx, k, d)
		}
	case "agent":
		a := &agent{log: log, metrics: newAgentMetrics(metrics), ready: &ready}
		a.register(fs)
		start = func(k *kubernetes.Clientset, _ dynamic.Interface) error {
			a.namespace = c.namespace
			return a.run(ctx, k)
		}
	default:
		return usage
	}
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	log.Info("relaypki relay stand-in: this is not Gloo Mesh, it only takes its place in a lab",
		zap.String("role", args[0]), zap.String("version", version))

	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	if err != nil {
		return fmt.Errorf("no access to the cluster's API server: %w", err)
	}
	k, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	d, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	stopHTTP, err := serveMetrics(c.metricsListen, metrics, &ready)
	if err != nil {
		return err
	}
	defer stopHTTP()
	return start(k, d)
}

func serveMetrics(address string, metrics *prometheus.Registry, ready *atomic.Bool) (stop func(), err error) {
	standin := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "relaypki_standin",
		Help: "1: this is the lab's relay stand-in, not Gloo Mesh.",
	})
	standin.Set(1)
	metrics.MustRegister(standin)

	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	h := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go h.Serve(l)
	return func() { h.Close() }, nil
}

// newLogger writes JSON lines to stderr in the shape that the real programs
// use: zap's production encoding.
func newLogger() *zap.Logger {
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.Lock(os.Stderr), zapcore.InfoLevel)
	return zap.New(core, zap.AddCaller(), zap.AddStacktrace(zapcore.FatalLevel))
}
