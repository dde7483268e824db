package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cmclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned"
	vaultapi "github.com/hashicorp/vault/api"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/log"
	"golang.org/x/sync/errgroup"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/deploy/lab/delay"
	"github.com/relaypki/relaypki/internal/site"
)

// The lab's clusters: the workload clusters of a measurement are namespaces of
// the last two.
const management = "mgmt"

var hosts = []string{"bench1", "bench2"}

func contexts() []string { return append([]string{management}, hosts...) }

// workload is one workload cluster of a measurement: a namespace, of the
// cluster's name, of one of the lab's API servers.
type workload struct{ name, context string }

func workloads(n int) []workload {
	var all []workload
	for i := range n {
		all = append(all, workload{name: fmt.Sprintf("c%d", i+1), context: hosts[i%len(hosts)]})
	}
	return all
}

// bench is the lab of a measurement.
type bench struct {
	repo, dir string
	env       map[string]string // an administrator's, from the lab's env file
	temporal  client.Client
	vault     *vaultapi.Client
	places    []*place
	templates map[string]template // by context
	log       *os.File
	// parallelism of the meshes; 0 for the default.
	parallelism int
	// stands is how many clusters the mesh has that a part has left; 0 for none.
	stands int
}

func (b *bench) path(elem ...string) string {
	return filepath.Join(append([]string{b.dir}, elem...)...)
}

func (b *bench) up(ctx context.Context) error {
	say("lab up in %s", b.dir)
	lab := exec.CommandContext(ctx, filepath.Join(b.repo, "bin", "lab"), "up", "--dir", b.dir, "--clusters", strings.Join(hosts, " "), "--cli=false")
	lab.Stdout, lab.Stderr = os.Stderr, os.Stderr
	if err := lab.Run(); err != nil {
		return fmt.Errorf("lab up: %w", err)
	}
	out, err := exec.CommandContext(ctx, "bash", "-c", `source "$1" && env -0`, "bash", b.path("env")).Output()
	if err != nil {
		return fmt.Errorf("reading %s: %w", b.path("env"), err)
	}
	b.env = map[string]string{}
	for _, line := range strings.Split(string(out), "\x00") {
		if name, value, ok := strings.Cut(line, "="); ok {
			b.env[name] = value
		}
	}
	if b.log, err = os.OpenFile(b.path("logs", "bench.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		return err
	}
	if b.temporal, err = client.Dial(client.Options{HostPort: b.env["TEMPORAL_ADDRESS"], Namespace: b.env["TEMPORAL_NAMESPACE"], Logger: log.NewStructuredLogger(slog.New(slog.DiscardHandler))}); err != nil {
		return err
	}
	near, err := b.place(0)
	if err != nil {
		return err
	}
	if b.vault, err = b.vaultAt(near.vault); err != nil {
		return err
	}
	return b.admit(ctx, near)
}

func (b *bench) close() {
	for _, p := range b.places {
		for _, proxy := range p.proxies {
			_ = proxy.Close()
		}
	}
	if b.temporal != nil {
		b.temporal.Close()
	}
}

func (b *bench) forget() error {
	out, err := exec.Command(filepath.Join(b.repo, "bin", "lab"), "clean", "--dir", b.dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("lab clean: %w\n%s", err, out)
	}
	return nil
}

func (b *bench) vaultAt(address string) (*vaultapi.Client, error) {
	config := vaultapi.DefaultConfig()
	config.Address = address
	if err := config.ConfigureTLS(&vaultapi.TLSConfig{CACert: b.env["VAULT_CACERT"]}); err != nil {
		return nil, err
	}
	c, err := vaultapi.NewClient(config)
	if err != nil {
		return nil, err
	}
	c.SetToken(b.env["VAULT_TOKEN"])
	return c, nil
}

// place is the lab as it is seen over a line of some length.
type place struct {
	latency time.Duration
	// kubeconfig is an administrator's, vault Vault's URL, siteFile the worker's.
	kubeconfig, vault, siteFile string
	proxies                     map[string]*delay.Proxy // by the address behind them
}

func (p *place) String() string {
	if p.latency == 0 {
		return "no added latency"
	}
	return p.latency.String() + " round trip"
}

// place writes the kubeconfigs and the site file with which every API server
// and Vault are that far away, for the worker, the script and, with Vault, the
// clusters' cert-managers.
func (b *bench) place(latency time.Duration) (*place, error) {
	for _, p := range b.places {
		if p.latency == latency {
			return p, nil
		}
	}
	p := &place{latency: latency, proxies: map[string]*delay.Proxy{}}
	dir := b.path("bench", latency.String())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	p.kubeconfig, p.siteFile = filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "site.yaml")
	workerKubeconfig := filepath.Join(dir, "worker.kubeconfig")
	for from, to := range map[string]string{b.env["KUBECONFIG"]: p.kubeconfig, b.path("worker", "kubeconfig"): workerKubeconfig} {
		config, err := clientcmd.LoadFromFile(from)
		if err != nil {
			return nil, err
		}
		for _, cluster := range config.Clusters {
			if cluster.Server, err = p.far(cluster.Server); err != nil {
				return nil, err
			}
		}
		if err := clientcmd.WriteToFile(*config, to); err != nil {
			return nil, err
		}
	}
	var err error
	if p.vault, err = p.far(b.env["VAULT_ADDR"]); err != nil {
		return nil, err
	}
	config, err := site.Load(b.path("worker", "site.yaml"))
	if err != nil {
		return nil, err
	}
	b.describe(&config, workerKubeconfig, p.vault)
	data, err := sigsyaml.Marshal(config)
	if err != nil {
		return nil, err
	}
	b.places = append(b.places, p)
	return p, os.WriteFile(p.siteFile, data, 0o600)
}

// mostClusters bounds how many names the site file has.
const mostClusters = 200

// describe changes the lab's site file: every cluster of a measurement is one
// of its API servers under another name.
func (b *bench) describe(config *site.Config, kubeconfig, vault string) {
	config.Kubeconfig = kubeconfig
	of := map[string]site.ClusterConfig{}
	for _, c := range config.Clusters {
		of[c.Context] = c
	}
	config.Clusters = []site.ClusterConfig{of[management]}
	for _, w := range append(samples(), workloads(mostClusters)...) {
		c := of[w.context]
		c.Name = w.name
		config.Clusters = append(config.Clusters, c)
	}
	for i := range config.Vaults {
		if config.Vaults[i].Name == "default" {
			config.Vaults[i].Address, config.Vaults[i].ClusterAddress = vault, vault
		}
	}
}

// far is the URL at which what is at the given one is far away.
func (p *place) far(address string) (string, error) {
	if p.latency == 0 {
		return address, nil
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	proxy := p.proxies[u.Host]
	if proxy == nil {
		if proxy, err = delay.Listen(u.Host, p.latency); err != nil {
			return "", err
		}
		p.proxies[u.Host] = proxy
	}
	u.Host = proxy.Addr()
	return u.String(), nil
}

// clients are an administrator's of one of the lab's API servers.
type clients struct {
	kube        kubernetes.Interface
	dynamic     dynamic.Interface
	certManager cmclient.Interface
}

func (p *place) cluster(context string) (clients, error) {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: p.kubeconfig},
		&clientcmd.ConfigOverrides{CurrentContext: context}).ClientConfig()
	if err != nil {
		return clients{}, err
	}
	config.QPS = -1 // no limit of the client's own
	return newClients(config)
}

func newClients(config *rest.Config) (clients, error) {
	k, err := kubernetes.NewForConfig(config)
	if err != nil {
		return clients{}, err
	}
	d, err := dynamic.NewForConfig(config)
	if err != nil {
		return clients{}, err
	}
	c, err := cmclient.NewForConfig(config)
	return clients{kube: k, dynamic: d, certManager: c}, err
}

// admit gives the worker in every namespace what deploy/rbac gives it in one.
func (b *bench) admit(ctx context.Context, p *place) error {
	for _, name := range contexts() {
		manifest := "workload.yaml"
		if name == management {
			manifest = "management.yaml"
		}
		rules, err := rulesOf(filepath.Join(b.repo, "deploy", "rbac", manifest))
		if err != nil {
			return err
		}
		rules = append(rules, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"get", "create", "patch"}})
		c, err := p.cluster(name)
		if err != nil {
			return err
		}
		role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "relaypki-bench"}, Rules: rules}
		binding := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "relaypki-bench"},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "relaypki-bench"},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "relaypki", Name: "relaypki-worker"}},
		}
		if _, err = c.kube.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
			_, err = c.kube.RbacV1().ClusterRoles().Update(ctx, role, metav1.UpdateOptions{})
		}
		if err != nil {
			return err
		}
		if _, err := c.kube.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}

// rulesOf are the rules of all Roles of a manifest, the namespaced ones.
func rulesOf(path string) ([]rbacv1.PolicyRule, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var rules []rbacv1.PolicyRule
	for documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096); ; {
		var role rbacv1.Role
		switch err := documents.Decode(&role); {
		case errors.Is(err, io.EOF):
			return rules, nil
		case err != nil:
			return nil, fmt.Errorf("%s: %w", path, err)
		case role.Kind == "Role":
			rules = append(rules, role.Rules...)
		}
	}
}

// clean takes away what a measurement has left, except cert-manager and the
// CustomResourceDefinitions.
func (b *bench) clean(ctx context.Context) error {
	b.stands = 0
	if err := b.cleanTemporal(ctx); err != nil {
		return err
	}
	near := b.places[0]
	group, groupCtx := errgroup.WithContext(ctx) // a namespace with Pods takes a while
	for _, context := range contexts() {
		group.Go(func() error {
			c, err := near.cluster(context)
			if err != nil {
				return err
			}
			if err := deleteNamespaces(groupCtx, c); err != nil {
				return fmt.Errorf("cleaning %s: %w", context, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return b.cleanVault(ctx)
}

// kept are the namespaces that belong to the lab.
var kept = []string{"default", "kube-system", "kube-public", "kube-node-lease", "cert-manager", "relaypki"}

func deleteNamespaces(ctx context.Context, c clients) error {
	for began := time.Now(); ; {
		all, err := c.kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		left := 0
		for _, ns := range all.Items {
			if slices.Contains(kept, ns.Name) {
				continue
			}
			left++
			if ns.DeletionTimestamp == nil {
				if err := c.kube.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
					return err
				}
			}
		}
		if left == 0 {
			return nil
		}
		if time.Since(began) > 3*time.Minute {
			return fmt.Errorf("%d namespaces are still being deleted", left)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (b *bench) cleanVault(ctx context.Context) error {
	for _, mount := range []string{"pki", "pki_relay"} {
		if err := b.vault.Sys().UnmountWithContext(ctx, mount); err != nil {
			return err
		}
	}
	auths, err := b.vault.Sys().ListAuthWithContext(ctx)
	if err != nil {
		return err
	}
	for mount := range auths {
		if strings.HasPrefix(mount, "relaypki-") {
			if err := b.vault.Sys().DisableAuthWithContext(ctx, mount); err != nil {
				return err
			}
		}
	}
	policies, err := b.vault.Sys().ListPoliciesWithContext(ctx)
	if err != nil {
		return err
	}
	for _, policy := range policies {
		if strings.HasPrefix(policy, "relaypki-"+meshName+"-") {
			if err := b.vault.Sys().DeletePolicyWithContext(ctx, policy); err != nil {
				return err
			}
		}
	}
	return nil
}

// cleanTemporal ends the schedules that a setup has made, and what a measurement
// that was broken off has left running: they would look at a mesh that is gone in
// the middle of another measurement.
func (b *bench) cleanTemporal(ctx context.Context) error {
	running, err := b.temporal.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{Query: "ExecutionStatus = 'Running'"})
	if err != nil {
		return err
	}
	for _, run := range running.GetExecutions() {
		err := b.temporal.TerminateWorkflow(ctx, run.GetExecution().GetWorkflowId(), run.GetExecution().GetRunId(), "the lab is cleaned")
		var ended *serviceerror.NotFound
		if err != nil && !errors.As(err, &ended) {
			return err
		}
	}
	schedules, err := b.temporal.ScheduleClient().List(ctx, client.ScheduleListOptions{})
	if err != nil {
		return err
	}
	for schedules.HasNext() {
		s, err := schedules.Next()
		if err != nil {
			return err
		}
		if err := b.temporal.ScheduleClient().GetHandle(ctx, s.ID).Delete(ctx); err != nil {
			return err
		}
	}
	return nil
}
