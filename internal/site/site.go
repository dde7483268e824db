// Package site is the worker's own configuration: the Vaults, clusters and
// charts that it knows, with the credentials for them. Inputs of procedures
// choose among these by name. Temporal has no authorisation per workflow type,
// so an address in an input would be power for whoever may start a workflow.
package site

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/strict"
)

// Config is the site file.
type Config struct {
	TaskQueue string `json:"taskQueue,omitempty"`
	// Management is the name of the cluster in which procedures that are given
	// a mesh's name alone look up its membership.
	Management string `json:"management,omitempty"`
	// Kubeconfig is the file that the clusters' contexts are in; empty for the
	// usual loading rules.
	Kubeconfig string          `json:"kubeconfig,omitempty"`
	Clusters   []ClusterConfig `json:"clusters"`
	Vaults     []VaultConfig   `json:"vaults"`
	Charts     []ChartConfig   `json:"charts"`
	// Notify is who is told what needs a person, and of failures that nobody sees.
	Notify []Webhook `json:"notify,omitempty"`
}

// Webhook takes messages as {"text": "..."}, as Slack's incoming webhooks do.
// Whoever has its address can write to it, so a file is the better place.
type Webhook struct {
	Name string `json:"name"`
	// URL or URLFile, one of them. The file is read at each message.
	URL     string `json:"url,omitempty"`
	URLFile string `json:"urlFile,omitempty"`
}

// ClusterConfig is a cluster that inputs may name.
type ClusterConfig struct {
	Name string `json:"name"`
	// Context is the kubeconfig context; default: Name.
	Context string `json:"context,omitempty"`
	// TaskQueue is the queue of another worker, inside a private network, that
	// alone reaches this cluster. That worker has a site file of its own.
	TaskQueue string `json:"taskQueue,omitempty"`
	// InCluster uses the worker Pod's own ServiceAccount instead.
	InCluster bool `json:"inCluster,omitempty"`
	// IssuerCAFile is the CA of the address at which Vault finds the keys of the
	// cluster's ServiceAccount tokens (credential.keys discovery); without it
	// Vault uses its system's.
	IssuerCAFile string `json:"issuerCAFile,omitempty"`
	// AddressForVault is the API server's address as Vault reaches it
	// (credential.method kubernetes); default: the kubeconfig's.
	AddressForVault string `json:"addressForVault,omitempty"`
	// ChartValues are Helm values for this cluster, by chart name, over which
	// the input's are laid: registries, node selectors, webhook addresses.
	ChartValues map[string]map[string]any `json:"chartValues,omitempty"`
}

// VaultConfig is a Vault that inputs may name.
type VaultConfig struct {
	Name string `json:"name"`
	// Address is Vault's URL; a Vault has either this or a Service.
	Address string `json:"address,omitempty"`
	// Service is where the address is found when there is none until Vault has
	// been installed.
	Service *VaultService `json:"service,omitempty"`
	// ClusterAddress is the address that cert-manager in the clusters uses;
	// default: Address, or what was found of the Service.
	ClusterAddress string `json:"clusterAddress,omitempty"`
	// CAFile is the CA of Vault's own TLS certificate, also given to the Issuers.
	CAFile    string `json:"caFile,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	// InsecureVault allows http.
	InsecureVault bool `json:"insecureVault,omitempty"`
	// SnapshotDir is where the worker puts snapshots of a Vault on integrated
	// storage before it changes a CA (rotation.snapshot take). It must be there,
	// on a disk that outlives the worker: a snapshot is what is left when Vault is
	// lost. Whoever has one and the unseal keys has all that is in Vault.
	SnapshotDir string `json:"snapshotDir,omitempty"`
	// Identities are the worker's logins: "onboard" (setup), "operate"
	// (rotations, verify), "refresh" (issuer credentials).
	Identities map[Identity]Login `json:"identities"`
}

// VaultService is a Service of type LoadBalancer that leads to a Vault.
type VaultService struct {
	// Cluster is the name of one of this file's clusters.
	Cluster   string `json:"cluster"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Port of the Service; default: 8200.
	Port int `json:"port,omitempty"`
	// Scheme is "https" (the default) or, with InsecureVault, "http".
	Scheme string `json:"scheme,omitempty"`
}

// Identity is one of the worker's three roles in Vault.
type Identity string

const (
	Onboard Identity = "onboard"
	Operate Identity = "operate"
	Refresh Identity = "refresh"
)

// Login is how the worker logs in to Vault.
type Login struct {
	// Method is "token", "approle", "kubernetes" or "cert".
	Method string `json:"method"`
	// Mount of the auth method; default: the method's name.
	Mount string `json:"mount,omitempty"`
	// TokenFile holds the token (method "token").
	TokenFile string `json:"tokenFile,omitempty"`
	// RoleIDFile and SecretIDFile are for method "approle".
	RoleIDFile   string `json:"roleIDFile,omitempty"`
	SecretIDFile string `json:"secretIDFile,omitempty"`
	// Role is for methods "kubernetes" and "cert".
	Role string `json:"role,omitempty"`
	// JWTFile is the ServiceAccount token of method "kubernetes"; default: the
	// mounted one.
	JWTFile string `json:"jwtFile,omitempty"`
	// CertFile and KeyFile are for method "cert".
	CertFile string `json:"certFile,omitempty"`
	KeyFile  string `json:"keyFile,omitempty"`
}

// ChartConfig is where a chart comes from: a local path, an OCI reference, or
// a repository and a chart name in it.
type ChartConfig struct {
	Name    string `json:"name"`
	Path    string `json:"path,omitempty"`
	OCI     string `json:"oci,omitempty"`
	Repo    string `json:"repo,omitempty"`
	Chart   string `json:"chart,omitempty"`
	Version string `json:"version,omitempty"`
}

// Load reads and checks a site file. All problems are reported at once.
func Load(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("site file (RELAYPKI_SITE): %w", err)
	}
	asJSON, err := yaml.YAMLToJSON(data)
	if err != nil {
		return Config{}, fmt.Errorf("site file %s: %w", path, err)
	}
	var c Config
	problems := strict.Decode(asJSON, &c)
	if len(problems) == 0 {
		problems = c.complete(filepath.Dir(path))
	}
	if len(problems) > 0 {
		lines := make([]string, len(problems))
		for i, p := range problems {
			lines[i] = "  " + p.String()
		}
		return Config{}, fmt.Errorf("site file %s:\n%s", path, strings.Join(lines, "\n"))
	}
	return c, nil
}

// complete fills in defaults, makes paths absolute and reports what is missing.
func (c *Config) complete(dir string) []strict.Problem {
	var problems []strict.Problem
	bad := func(path, format string, args ...any) {
		problems = append(problems, strict.Problem{Path: path, Message: fmt.Sprintf(format, args...)})
	}
	absolute := func(paths ...*string) {
		for _, p := range paths {
			if *p != "" && !filepath.IsAbs(*p) {
				*p = filepath.Join(dir, *p)
			}
		}
	}
	if c.TaskQueue == "" {
		c.TaskQueue = procedure.TaskQueue
	}
	absolute(&c.Kubeconfig)
	seen := map[string]bool{}
	for i := range c.Clusters {
		cl := &c.Clusters[i]
		at := fmt.Sprintf("clusters[%d]", i)
		if cl.Name == "" {
			bad(at+".name", "is missing")
		}
		if seen["cluster "+cl.Name] {
			bad(at+".name", "%q is there twice", cl.Name)
		}
		seen["cluster "+cl.Name] = true
		if cl.Context == "" {
			cl.Context = cl.Name
		}
		absolute(&cl.IssuerCAFile)
		if cl.TaskQueue == c.TaskQueue {
			bad(at+".taskQueue", "%q is this worker's own; leave it out", cl.TaskQueue)
		}
		if cl.TaskQueue != "" && cl.Name == c.Management {
			bad(at+".taskQueue", "the management cluster must be reached by this worker")
		}
	}
	if len(c.Clusters) == 0 {
		bad("clusters", "names no cluster; list those that inputs may use")
	}
	if c.Management != "" && !seen["cluster "+c.Management] {
		bad("management", "%q is not one of the clusters", c.Management)
	}
	for i := range c.Vaults {
		v := &c.Vaults[i]
		at := fmt.Sprintf("vaults[%d]", i)
		if v.Name == "" {
			bad(at+".name", "is missing")
		}
		if seen["vault "+v.Name] {
			bad(at+".name", "%q is there twice", v.Name)
		}
		seen["vault "+v.Name] = true
		if (v.Address == "") == (v.Service == nil) {
			bad(at, "needs an address or a service, one of them")
		}
		if v.Service != nil {
			v.Service.complete(at+".service", seen, v.InsecureVault, bad)
		}
		if v.ClusterAddress == "" {
			v.ClusterAddress = v.Address
		}
		for field, address := range map[string]string{"address": v.Address, "clusterAddress": v.ClusterAddress} {
			if address != "" && !strings.HasPrefix(address, "https://") && !v.InsecureVault {
				bad(at+"."+field, "%q is not https; set insecureVault: true to allow that", address)
			}
		}
		absolute(&v.CAFile, &v.SnapshotDir)
		for name, login := range v.Identities {
			if name != Onboard && name != Operate && name != Refresh {
				bad(at+".identities."+string(name), "unknown; known: onboard, operate, refresh")
			}
			absolute(&login.TokenFile, &login.RoleIDFile, &login.SecretIDFile, &login.JWTFile, &login.CertFile, &login.KeyFile)
			if login.Mount == "" {
				login.Mount = login.Method
			}
			switch login.Method {
			case "token", "approle", "kubernetes", "cert":
			default:
				bad(at+".identities."+string(name)+".method", "%q is unknown; known: token, approle, kubernetes, cert", login.Method)
			}
			v.Identities[name] = login
		}
	}
	for i := range c.Charts {
		ch := &c.Charts[i]
		at := fmt.Sprintf("charts[%d]", i)
		sources := 0
		for _, s := range []string{ch.Path, ch.OCI, ch.Repo} {
			if s != "" {
				sources++
			}
		}
		if ch.Name == "" || sources != 1 {
			bad(at, "needs a name and exactly one of path, oci, repo")
		}
		if ch.Repo != "" && ch.Chart == "" {
			ch.Chart = ch.Name
		}
		absolute(&ch.Path)
	}
	for i := range c.Notify {
		w := &c.Notify[i]
		at := fmt.Sprintf("notify[%d]", i)
		if w.Name == "" {
			bad(at+".name", "is missing")
		}
		if seen["webhook "+w.Name] {
			bad(at+".name", "%q is there twice", w.Name)
		}
		seen["webhook "+w.Name] = true
		if (w.URL == "") == (w.URLFile == "") {
			bad(at, "needs a url or a urlFile, one of them")
		}
		// Without its text: whoever has it can write there.
		if u, err := url.Parse(w.URL); w.URL != "" && (err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http") {
			bad(at+".url", "is no http or https address")
		}
		absolute(&w.URLFile)
	}
	return problems
}

func (s *VaultService) complete(at string, seen map[string]bool, insecure bool, bad func(path, format string, args ...any)) {
	if s.Port == 0 {
		s.Port = 8200
	}
	if s.Scheme == "" {
		s.Scheme = "https"
	}
	if s.Namespace == "" || s.Name == "" {
		bad(at, "needs cluster, namespace and name")
	}
	if !seen["cluster "+s.Cluster] {
		bad(at+".cluster", "%q is not one of the clusters", s.Cluster)
	}
	if s.Port < 1 || s.Port > 65535 {
		bad(at+".port", "%d is no port", s.Port)
	}
	switch {
	case s.Scheme == "http" && !insecure:
		bad(at+".scheme", "%q is not https; set insecureVault: true to allow that", s.Scheme)
	case s.Scheme != "http" && s.Scheme != "https":
		bad(at+".scheme", "%q is unknown; known: https, http", s.Scheme)
	}
}

// Cluster is the configuration of the named cluster, or a permanent error that
// names those there are.
func (c Config) Cluster(name string) (ClusterConfig, error) {
	var known []string
	for _, cl := range c.Clusters {
		if cl.Name == name {
			return cl, nil
		}
		known = append(known, cl.Name)
	}
	return ClusterConfig{}, unknown("cluster", name, known)
}

// TaskQueues are the queues of the clusters that other workers serve, by cluster.
func (c Config) TaskQueues() map[string]string {
	queues := map[string]string{}
	for _, cl := range c.Clusters {
		if cl.TaskQueue != "" {
			queues[cl.Name] = cl.TaskQueue
		}
	}
	return queues
}

// Vault is the configuration of the named Vault.
func (c Config) Vault(name string) (VaultConfig, error) {
	var known []string
	for _, v := range c.Vaults {
		if v.Name == name {
			return v, nil
		}
		known = append(known, v.Name)
	}
	return VaultConfig{}, unknown("Vault", name, known)
}

// Chart is the source of the named chart.
func (c Config) Chart(name string) (ChartConfig, error) {
	var known []string
	for _, ch := range c.Charts {
		if ch.Name == name {
			return ch, nil
		}
		known = append(known, ch.Name)
	}
	return ChartConfig{}, unknown("chart", name, known)
}

func unknown(what, name string, known []string) error {
	sort.Strings(known)
	return failure.Permanent(failure.InvalidInput, "%s %q is not in this worker's site file; it has %s. Correct the name, or add it to the site file and restart the worker",
		what, name, strings.Join(known, ", "))
}

// Values are a chart's Helm values: the site's for that cluster, then each of
// the given ones over it.
func (cl ClusterConfig) Values(chart string, over ...map[string]any) map[string]any {
	return mesh.Overlay(cl.ChartValues[chart], over...)
}
