package helm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/cli"
	"helm.sh/helm/v4/pkg/registry"
	repo "helm.sh/helm/v4/pkg/repo/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/site"
)

type commonFile = common.File

// shelf keeps charts that were loaded, since a mesh takes the same few for each
// of its clusters.
type shelf struct{ places sync.Map } // of shelved, by source and version

type shelved struct {
	mu      sync.Mutex
	chart   *chart.Chart
	stamp   string
	path    string
	fetched time.Time
}

// fetchedFor is how long a repository is not asked again whether it has another
// chart for a version: about as long as a procedure takes for its clusters.
const fetchedFor = time.Minute

// load gets the chart from where the site file says; version, if it is not
// empty, overrides the site's. What is returned is for reading alone: Helm
// changes a chart when it installs it.
func (s *shelf) load(ctx context.Context, source site.ChartConfig, version string) (*chart.Chart, error) {
	kept, _, err := s.find(ctx, source, version)
	return kept, err
}

// fresh is the chart for Helm to install.
func (s *shelf) fresh(ctx context.Context, source site.ChartConfig, version string) (*chart.Chart, error) {
	_, path, err := s.find(ctx, source, version)
	if err != nil {
		return nil, err
	}
	return load(source, version, path)
}

func (s *shelf) find(ctx context.Context, source site.ChartConfig, version string) (kept *chart.Chart, path string, err error) {
	if version == "" {
		version = source.Version
	}
	key := strings.Join([]string{source.Name, source.Path, source.OCI, source.Repo, source.Chart, version}, "\x00")
	made, _ := s.places.LoadOrStore(key, &shelved{})
	place := made.(*shelved)
	place.mu.Lock()
	defer place.mu.Unlock()
	switch path = source.Path; {
	case path != "":
	case place.path != "" && time.Since(place.fetched) < fetchedFor:
		path = place.path
	default:
		if path, err = download(source, version); err != nil {
			if ctx.Err() != nil {
				return nil, "", ctx.Err()
			}
			return nil, "", fetchError(source, version, err)
		}
		place.fetched = time.Now()
	}
	stamp := stampOf(path)
	if place.chart == nil || place.path != path || place.stamp != stamp {
		if place.chart, err = load(source, version, path); err != nil {
			return nil, "", err
		}
		place.path, place.stamp = path, stamp
	}
	return place.chart, path, nil
}

// stampOf changes with the files of a chart.
func stampOf(path string) string {
	h := sha256.New()
	_ = filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // loading it says what is wrong
		}
		if info, err := d.Info(); err == nil && !d.IsDir() {
			fmt.Fprintf(h, "%s %d %d\n", name, info.Size(), info.ModTime().UnixNano())
		}
		return nil
	})
	return hex.EncodeToString(h.Sum(nil))
}

func load(source site.ChartConfig, version, path string) (*chart.Chart, error) {
	loaded, err := loader.Load(path)
	if err != nil {
		return nil, failure.Permanent(failure.Preflight, "chart %q cannot be loaded: %v. Correct its place in the worker's site file", source.Name, err)
	}
	if source.Path != "" && version != "" && loaded.Metadata.Version != version {
		return nil, failure.Permanent(failure.Preflight, "chart %q in the worker's site file is version %s, asked for is %s; a chart from a path has one version only", source.Name, loaded.Metadata.Version, version)
	}
	return loaded, nil
}

// fetchError tells a chart that is not where the site file says from a
// repository that cannot be reached now.
func fetchError(source site.ChartConfig, version string, err error) error {
	where := source.OCI
	if source.Repo != "" {
		where = source.Chart + " of " + source.Repo
	}
	if version != "" {
		where += " in version " + version
	}
	if errors.Is(err, repo.ChartNotFoundError{}) || strings.Contains(strings.ToLower(err.Error()), "not found") {
		return failure.Permanent(failure.Preflight, "chart %q: there is no %s: %v. Correct its place or version in the worker's site file, or the version in the input", source.Name, where, err)
	}
	return failure.Transient(failure.Unavailable, "chart %q: %s cannot be fetched: %v. Check that the worker reaches that place, or correct it in the worker's site file", source.Name, where, err)
}

// download fetches a chart into Helm's cache.
func download(source site.ChartConfig, version string) (string, error) {
	settings := cli.New()
	client, err := registry.NewClient(
		registry.ClientOptWriter(io.Discard),
		registry.ClientOptEnableCache(true),
		registry.ClientOptCredentialsFile(settings.RegistryConfig),
	)
	if err != nil {
		return "", err
	}
	options := action.NewInstall(action.NewConfiguration())
	options.SetRegistryClient(client)
	options.Version = version
	name := source.OCI
	if source.Repo != "" {
		options.RepoURL, name = source.Repo, source.Chart
	}
	return options.LocateChart(name, settings)
}

// configuration is Helm's for one cluster and namespace. It is made anew for
// every activity, so that nothing is shared among clusters and what Helm
// discovers is never older than the activity.
func configuration(c *site.Cluster, namespace string, log *zap.Logger) (*action.Configuration, error) {
	config := rest.CopyConfig(c.REST)
	config.WarningHandler = rest.NoWarnings{}
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	cached := memory.NewMemCacheClient(disco)
	g := &getter{config: config, discovery: cached, mapper: restmapper.NewDeferredDiscoveryRESTMapper(cached), namespace: namespace}
	cfg := action.NewConfiguration(action.ConfigurationSetLogger(debugLog{log.With(zap.String("cluster", c.Name)).Named("helm")}))
	return cfg, cfg.Init(g, namespace, "secret")
}

// getter gives Helm the clients of a cluster of the site.
type getter struct {
	config    *rest.Config
	discovery discovery.CachedDiscoveryInterface
	mapper    *restmapper.DeferredDiscoveryRESTMapper
	namespace string
}

func (g *getter) ToRESTConfig() (*rest.Config, error) { return rest.CopyConfig(g.config), nil }

func (g *getter) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return g.discovery, nil
}

func (g *getter) ToRESTMapper() (meta.RESTMapper, error) { return g.mapper, nil }

// ToRawKubeConfigLoader is asked for nothing but the default namespace.
func (g *getter) ToRawKubeConfigLoader() clientcmd.ClientConfig {
	return clientcmd.NewDefaultClientConfig(*clientcmdapi.NewConfig(), &clientcmd.ConfigOverrides{Context: clientcmdapi.Context{Namespace: g.namespace}})
}

// debugLog takes Helm's log, at whatever level, into ours at debug: what
// matters of it comes back as an error.
type debugLog struct{ zap *zap.Logger }

func (l debugLog) Enabled(context.Context, slog.Level) bool {
	return l.zap.Core().Enabled(zap.DebugLevel)
}

func (l debugLog) Handle(_ context.Context, r slog.Record) error {
	fields := make([]zap.Field, 0, r.NumAttrs())
	r.Attrs(func(attr slog.Attr) bool {
		fields = append(fields, field(attr))
		return true
	})
	l.zap.Debug(r.Message, fields...)
	return nil
}

func (l debugLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	fields := make([]zap.Field, 0, len(attrs))
	for _, attr := range attrs {
		fields = append(fields, field(attr))
	}
	return debugLog{l.zap.With(fields...)}
}

func (l debugLog) WithGroup(name string) slog.Handler {
	return debugLog{l.zap.With(zap.Namespace(name))}
}

func field(attr slog.Attr) zap.Field { return zap.Any(attr.Key, attr.Value.Resolve().Any()) }
