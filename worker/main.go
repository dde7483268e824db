// Command relaypki-worker carries out the procedures: it polls a Temporal task
// queue and works on the Vaults and clusters of its site file.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
	_ "time/tzdata" // maintenance windows have a zone, and an image may have none

	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/contrib/envconfig"
	"go.temporal.io/sdk/worker"
	"go.uber.org/zap"

	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/internal/site"
)

const usage = `relaypki-worker carries out relaypki's procedures.

It takes no arguments. Everything comes from the environment and from the site
file, which names the Vaults, clusters and charts that inputs may choose from.

  RELAYPKI_SITE      the site file (required)
  RELAYPKI_LISTEN    address of /healthz, /readyz and /metrics (127.0.0.1:8077)
  RELAYPKI_LOG_LEVEL debug, info, warn or error (info)

Temporal, as for the temporal command (its profile file is read too):

  TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE   127.0.0.1:7233, default
  TEMPORAL_PROFILE, TEMPORAL_CONFIG_FILE a profile of ~/.config/temporalio/temporal.toml
  TEMPORAL_API_KEY
  TEMPORAL_TLS, TEMPORAL_TLS_CLIENT_CERT_PATH, TEMPORAL_TLS_CLIENT_KEY_PATH,
  TEMPORAL_TLS_SERVER_CA_CERT_PATH, TEMPORAL_TLS_SERVER_NAME,
  TEMPORAL_TLS_DISABLE_HOST_VERIFICATION (and *_DATA in place of *_PATH)
  TEMPORAL_GRPC_META_<NAME>              a header of every call

Worker Versioning, used only if both are set (make the version Current with
"temporal worker deployment set-current-version", or it runs nothing):

  TEMPORAL_DEPLOYMENT_NAME, TEMPORAL_WORKER_BUILD_ID

SIGTERM or Ctrl-C finishes the activities at hand, for at most ` + "%s" + `; a second
one quits at once, and Temporal has another worker repeat them. Exit code 0
after a signal, 1 after a fatal error, 2 if the configuration is wrong.`

func main() {
	command := &cobra.Command{
		Use:               "relaypki-worker",
		Short:             "Carry out relaypki's procedures",
		Long:              fmt.Sprintf(usage, drainTime),
		Args:              cobra.NoArgs,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		RunE:              func(*cobra.Command, []string) error { return run() },
	}
	if err := command.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "relaypki-worker:", err)
		var wrong configurationError
		if errors.As(err, &wrong) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

func run() error {
	settings, err := loadSettings(os.LookupEnv)
	if err != nil {
		return configurationError{err}
	}
	log, err := newLogger(settings.logLevel)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }() // a terminal cannot be synced

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // from here on a second signal has its default effect: it quits
	}()

	status := &status{}
	metrics, handler, err := newMetrics(log)
	if err != nil {
		return err
	}
	stopHTTP, err := serveHTTP(settings.listen, status, handler, log)
	if err != nil {
		return configurationError{err}
	}
	defer stopHTTP()

	settings.temporal.Logger = temporalLogger{log.Named("temporal")}
	settings.temporal.MetricsHandler = metrics
	c, err := connect(ctx, settings.temporal, log)
	if err != nil {
		return nil // a signal while waiting
	}
	defer c.Close()
	registerAttributes(ctx, c, settings.namespace(), log)

	fatal := make(chan error, 1)
	options, clients := settings.workerOptions(fatal), site.NewClients(settings.site, log)
	if onTrial != nil {
		onTrial(&options, clients)
	}
	w := worker.New(c, settings.site.TaskQueue, options)
	register(w, clients)
	if err := w.Start(); err != nil {
		return fmt.Errorf("start polling task queue %q: %w", settings.site.TaskQueue, err)
	}
	status.polling(c)
	log.Info("polling", zap.String("taskQueue", settings.site.TaskQueue), zap.String("namespace", settings.namespace()),
		zap.String("temporal", settings.temporal.HostPort), zap.String("listen", settings.listen))

	select {
	case err = <-fatal:
		err = fmt.Errorf("the worker stopped: %w", err)
	case <-ctx.Done():
		log.Info("stopping: the activities at hand may finish", zap.Duration("atMost", drainTime))
	}
	status.stopping()
	w.Stop()
	log.Info("stopped")
	return err
}

// onTrial is nil. A build for the tests alone (soak.go) sets it, to end the
// worker at chosen points.
var onTrial func(*worker.Options, *site.Clients)

// registerAttributes never stands in the way: procedures run without them.
func registerAttributes(ctx context.Context, c client.Client, namespace string, log *zap.Logger) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	added, err := temporalactivities.RegisterAttributes(ctx, c, namespace)
	switch {
	case err != nil:
		log.Warn(err.Error())
	case len(added) > 0:
		log.Info("registered search attributes", zap.Strings("names", added))
	}
}

// configurationError is one that only an operator can cure: exit code 2.
type configurationError struct{ error }

func (e configurationError) Unwrap() error { return e.error }

// settings are what the environment says.
type settings struct {
	listen   string
	logLevel string
	site     site.Config
	temporal client.Options
	// deployment and buildID opt in to Worker Versioning.
	deployment, buildID string
}

func (s settings) namespace() string {
	if s.temporal.Namespace == "" {
		return client.DefaultNamespace
	}
	return s.temporal.Namespace
}

func loadSettings(lookup func(string) (string, bool)) (settings, error) {
	value := func(name, otherwise string) string {
		if v, ok := lookup(name); ok && v != "" {
			return v
		}
		return otherwise
	}
	s := settings{
		listen:     value("RELAYPKI_LISTEN", "127.0.0.1:8077"),
		logLevel:   value("RELAYPKI_LOG_LEVEL", "info"),
		deployment: value("TEMPORAL_DEPLOYMENT_NAME", ""),
		buildID:    value("TEMPORAL_WORKER_BUILD_ID", ""),
	}
	if (s.deployment == "") != (s.buildID == "") {
		return settings{}, errors.New("TEMPORAL_DEPLOYMENT_NAME and TEMPORAL_WORKER_BUILD_ID go together: set both for Worker Versioning, or none")
	}
	path := value("RELAYPKI_SITE", "")
	if path == "" {
		return settings{}, errors.New("RELAYPKI_SITE is not set; it names the site file (see relaypki-worker --help)")
	}
	var err error
	if s.site, err = site.Load(path); err != nil {
		return settings{}, err
	}
	if s.temporal, err = envconfig.LoadClientOptions(envconfig.LoadClientOptionsRequest{}); err != nil {
		return settings{}, fmt.Errorf("connection to Temporal (TEMPORAL_* variables and profile): %w", err)
	}
	if s.temporal.HostPort == "" {
		s.temporal.HostPort = client.DefaultHostPort
	}
	return s, nil
}
