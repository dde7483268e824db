// Command lab-cert-manager runs the three programs of cert-manager 1.21.2
// (upstream's code, from its Go module) on the host:
//
//	lab-cert-manager controller|webhook|cainjector --kubeconfig FILE [flags]
//
// Each wants a kubeconfig with the credentials of its own ServiceAccount of the
// chart (cert-manager, cert-manager-webhook, cert-manager-cainjector), so that
// RBAC that the chart lacks is missing here as well. All ports are on
// 127.0.0.1. Left out are ACME, Venafi, ingress shim, CertificateSigningRequest
// controllers and leader election: there is one process of a kind in a cluster.
//
// # How an API server reaches the webhook
//
// Addresses of simulated Pods and Services go nowhere, so the chart is installed
// with the value
//
//	webhook: {url: {host: "localhost:PORT"}}
//
// where PORT is the webhook's --secure-port. The chart writes the value into
// both webhook configurations (https://localhost:PORT/mutate and /validate) in
// place of the Service. The serving certificate is for the DNS name localhost;
// a host of 127.0.0.1 would not verify. Its CA is in the Secret
// cert-manager-webhook-ca that the webhook makes, and the cainjector copies it
// into the configurations' caBundle, as their annotation
// cert-manager.io/inject-ca-from-secret asks.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	logsapi "k8s.io/component-base/logs/api/v1"
	ctrl "sigs.k8s.io/controller-runtime"

	logf "github.com/cert-manager/cert-manager/pkg/logs"
	"github.com/cert-manager/cert-manager/pkg/util"
)

type options struct {
	kubeconfig string
	// namespace is where the chart is installed: of the webhook's CA Secret and
	// of the Secrets that ClusterIssuers refer to. All namespaces are watched.
	namespace   string
	healthzPort int // 0: none
	metricsPort int // 0: none
	securePort  int // webhook only
	qps         float32
	burst       int
}

var programs = map[string]func(context.Context, options) error{
	"controller": runController,
	"webhook":    runWebhook,
	"cainjector": runCAInjector,
}

func main() {
	util.AppVersion = "v1.21.2" // as set by upstream's linker flags; part of the user agent
	logf.InitLogs()
	err := run(os.Args[1:])
	logf.FlushLogs()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab-cert-manager:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 || programs[args[0]] == nil {
		return errors.New("usage: lab-cert-manager controller|webhook|cainjector --kubeconfig FILE [flags]")
	}
	var o options
	logging := logsapi.NewLoggingConfiguration()
	logging.Verbosity = logf.InfoLevel // what the chart asks for (global.logLevel)
	flags := pflag.NewFlagSet("lab-cert-manager "+args[0], pflag.ContinueOnError)
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig with the credentials of this program's ServiceAccount (required)")
	flags.StringVar(&o.namespace, "namespace", "cert-manager", "namespace that cert-manager is installed in")
	flags.IntVar(&o.healthzPort, "healthz-port", 0, "port of /healthz and /livez; 0: none")
	flags.IntVar(&o.metricsPort, "metrics-port", 0, "port of /metrics, plain http; 0: none")
	switch args[0] {
	case "controller":
		flags.Float32Var(&o.qps, "kube-api-qps", 20, "requests a second to an API server without priority and fairness")
		flags.IntVar(&o.burst, "kube-api-burst", 50, "burst of --kube-api-qps")
	case "webhook":
		flags.IntVar(&o.securePort, "secure-port", 10250, "port of the webhook, TLS")
	}
	logf.AddFlagsNonDeprecated(logging, flags)
	if err := flags.Parse(args[1:]); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil
		}
		return err
	}
	if o.kubeconfig == "" {
		return errors.New("--kubeconfig is required: the kubeconfig of this program's ServiceAccount")
	}
	if err := logf.ValidateAndApply(logging); err != nil {
		return err
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctrl.SetLogger(logf.Log)
	return programs[args[0]](logf.NewContext(ctx, logf.Log, args[0]), o)
}

// listen binds a port on loopback.
func listen(ctx context.Context, port int) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}

// serve serves l, with TLS if the server has a TLS configuration, until ctx ends.
func serve(ctx context.Context, server *http.Server, l net.Listener) error {
	server.ReadHeaderTimeout = 10 * time.Second
	stopped := context.AfterFunc(ctx, func() { server.Close() })
	defer stopped()
	serve := server.Serve
	if server.TLSConfig != nil {
		serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
	}
	if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveHealth answers /livez always and /healthz once healthy says so, until
// ctx ends. It does nothing if no port was asked for.
func serveHealth(ctx context.Context, port int, healthy func() bool) error {
	if port == 0 {
		return nil
	}
	l, err := listen(ctx, port)
	if err != nil {
		return fmt.Errorf("health port: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if !healthy() {
			http.Error(w, "not ready yet", http.StatusServiceUnavailable)
		}
	})
	return serve(ctx, &http.Server{Handler: mux}, l)
}
