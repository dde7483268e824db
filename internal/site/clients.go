package site

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"

	cmclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned"
	"go.uber.org/zap"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/relaypki/relaypki/internal/failure"
)

// FieldManager is the name under which relaypki applies objects.
const FieldManager = "relaypki"

// Clients hands out clients for the clusters and Vaults of a site, made once
// and shared.
type Clients struct {
	Config Config
	Log    *zap.Logger
	// Wrap, if set before first use, goes around the transport to each server: a
	// cluster, by its name, or a Vault.
	Wrap func(server string, transport http.RoundTripper) http.RoundTripper

	mu       sync.Mutex
	clusters map[string]*Cluster
	// kubeconfig says which state of the kubeconfig clusters were made of.
	kubeconfig string
	vaults     map[vaultKey]*vaultSession
	// discovered are addresses of Vaults by name, found of their Services.
	discovered map[string]string
}

// NewClients makes no connection; that happens at first use.
func NewClients(config Config, log *zap.Logger) *Clients {
	return &Clients{Config: config, Log: log, clusters: map[string]*Cluster{}, vaults: map[vaultKey]*vaultSession{}, discovered: map[string]string{}}
}

// Cluster is one cluster with every kind of client that the activities use.
type Cluster struct {
	Name        string
	Config      ClusterConfig
	REST        *rest.Config
	Kube        kubernetes.Interface
	Dynamic     dynamic.Interface
	CertManager cmclient.Interface
	Mapper      *restmapper.DeferredDiscoveryRESTMapper
}

// Cluster returns the clients of the named cluster. A name that is not in the
// site file is a permanent InvalidInput, a context that is not in the
// kubeconfig a permanent Preflight error. A kubeconfig that has changed, say
// because a credential was renewed in it, is read again.
func (c *Clients) Cluster(name string) (*Cluster, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.stateOfKubeconfig(); now != c.kubeconfig {
		c.clusters, c.kubeconfig = map[string]*Cluster{}, now
	}
	if cluster, ok := c.clusters[name]; ok {
		return cluster, nil
	}
	config, err := c.Config.Cluster(name)
	if err != nil {
		return nil, err
	}
	if config.TaskQueue != "" {
		return nil, failure.Permanent(failure.Preflight, "cluster %q is reached by the worker of task queue %q, not by this one", name, config.TaskQueue)
	}
	restConfig, err := c.restConfig(config)
	if err != nil {
		return nil, failure.Permanent(failure.Preflight, "cluster %q: %v. Correct the worker's kubeconfig, or the context that the site file names for this cluster", name, err)
	}
	server, _, err := rest.DefaultServerUrlFor(restConfig)
	if err != nil {
		return nil, failure.Permanent(failure.Preflight, "cluster %q: the address of its API server in the kubeconfig: %v", name, err)
	}
	restConfig.Wrap(func(transport http.RoundTripper) http.RoundTripper {
		return &startingTransport{next: transport, ready: readyOf(server), within: startsWithin}
	})
	if c.Wrap != nil {
		restConfig.Wrap(func(transport http.RoundTripper) http.RoundTripper { return c.Wrap(name, transport) })
	}
	cluster, err := newCluster(config, restConfig)
	if err != nil {
		return nil, failure.Permanent(failure.Preflight, "cluster %q: %v", name, err)
	}
	c.clusters[name] = cluster
	return cluster, nil
}

func (c *Clients) restConfig(config ClusterConfig) (*rest.Config, error) {
	if config.InCluster {
		return rest.InClusterConfig()
	}
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(c.loadingRules(), &clientcmd.ConfigOverrides{CurrentContext: config.Context}).ClientConfig()
}

func (c *Clients) loadingRules() *clientcmd.ClientConfigLoadingRules {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	if c.Config.Kubeconfig != "" {
		rules.ExplicitPath = c.Config.Kubeconfig
	}
	return rules
}

// stateOfKubeconfig differs when the files have changed.
func (c *Clients) stateOfKubeconfig() string {
	var state strings.Builder
	for _, path := range c.loadingRules().GetLoadingPrecedence() {
		if info, err := os.Stat(path); err == nil {
			fmt.Fprintln(&state, path, info.Size(), info.ModTime().UnixNano())
		}
	}
	return state.String()
}

func newCluster(config ClusterConfig, restConfig *rest.Config) (*Cluster, error) {
	// Without the client's own limit on requests, which would be the slowest part
	// of a setup: a rollout bounds what is worked on at once, and an API server
	// that has too much to do says so (API Priority and Fairness), which
	// client-go heeds.
	restConfig.QPS = -1
	restConfig.UserAgent = FieldManager
	kube, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(restConfig)
	if err != nil {
		return nil, err
	}
	certManager, err := cmclient.NewForConfig(restConfig)
	if err != nil {
		return nil, err
	}
	return &Cluster{
		Name: config.Name, Config: config, REST: restConfig,
		Kube: kube, Dynamic: dyn, CertManager: certManager,
		Mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(kube.Discovery())),
	}, nil
}
