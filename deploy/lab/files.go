package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/deploy/lab/internal/kube"
	"github.com/relaypki/relaypki/deploy/lab/internal/vault"
	"github.com/relaypki/relaypki/deploy/lab/internal/world"
	"github.com/relaypki/relaypki/internal/site"
)

const temporalNamespace = "default"

// files writes what people and the worker read.
type files struct {
	w      *world.World
	planes []*kube.Plane
	vault  *vault.Server
}

func (f files) write() error {
	admin, worker := api.NewConfig(), api.NewConfig()
	for _, plane := range f.planes {
		if err := plane.AddAdmin(admin); err != nil {
			return err
		}
		if err := plane.AddWorker(worker); err != nil {
			return err
		}
	}
	if err := kube.WriteKubeconfig(f.w.Path("kubeconfig"), admin, world.Management); err != nil {
		return err
	}
	if err := kube.WriteKubeconfig(f.w.Path("worker", "kubeconfig"), worker, world.Management); err != nil {
		return err
	}
	config := f.site()
	for _, vault := range config.Vaults {
		if vault.SnapshotDir != "" {
			if err := os.MkdirAll(vault.SnapshotDir, 0o700); err != nil {
				return err
			}
		}
	}
	data, err := yaml.Marshal(config)
	if err != nil {
		return err
	}
	if err := world.WriteFile(f.w.Path("worker", "site.yaml"), data, 0o644); err != nil {
		return err
	}
	if err := world.WriteFile(f.w.Path("worker", "env"), exports(workerEnv(f.w)), 0o644); err != nil {
		return err
	}
	token, err := f.vault.RootToken()
	if err != nil {
		return err
	}
	env := exports([]string{
		"KUBECONFIG=" + f.w.Path("kubeconfig"),
		"VAULT_ADDR=" + f.w.URL("vault"),
		"VAULT_CACERT=" + f.vault.CAFile(),
		"VAULT_TOKEN=" + token,
		"TEMPORAL_ADDRESS=" + f.w.Addr("temporal"),
		"TEMPORAL_NAMESPACE=" + temporalNamespace,
		"RELAYPKI_UI=http://" + f.w.Addr("temporal-ui"),
	})
	env = fmt.Appendf(env, "case \":$PATH:\" in *%s*) ;; *) export PATH=%s:\"$PATH\" ;; esac\n",
		quote(":"+f.w.Path("bin")+":"), quote(f.w.Path("bin")))
	return world.WriteFile(f.w.Path("env"), env, 0o600)
}

// site is the worker's configuration in this lab.
func (f files) site() site.Config {
	config := site.Config{
		TaskQueue:  "relaypki",
		Management: world.Management,
		Kubeconfig: f.w.Path("worker", "kubeconfig"),
	}
	for _, cluster := range f.w.Clusters() {
		config.Clusters = append(config.Clusters, site.ClusterConfig{
			Name:    cluster,
			Context: cluster,
			ChartValues: map[string]map[string]any{
				// Addresses of Services lead nowhere here: the API server
				// reaches cert-manager's webhook by URL.
				"cert-manager": {"webhook": map[string]any{"url": map[string]any{
					"host": fmt.Sprintf("localhost:%d", f.w.Ports[cluster+"-webhook"]),
				}}},
			},
		})
	}
	identities := map[site.Identity]site.Login{}
	for _, identity := range vault.Identities {
		identities[site.Identity(identity)] = site.Login{
			Method:       "approle",
			Mount:        "approle",
			RoleIDFile:   f.vault.RoleIDFile(identity),
			SecretIDFile: f.vault.SecretIDFile(identity),
		}
	}
	config.Vaults = []site.VaultConfig{
		{
			Name:        "default",
			Address:     f.w.URL("vault"),
			CAFile:      f.vault.CAFile(),
			SnapshotDir: f.w.Path("worker", "snapshots"),
			Identities:  identities,
		},
		f.inCluster(),
	}
	for _, chart := range charts {
		config.Charts = append(config.Charts, site.ChartConfig{Name: chart, Path: f.w.Path("charts", chart)})
	}
	return config
}

// inCluster is the Vault that a setup with vault.install puts into the
// management cluster. Its operator puts the tokens there.
func (f files) inCluster() site.VaultConfig {
	identities := map[site.Identity]site.Login{}
	for _, identity := range vault.Identities {
		identities[site.Identity(identity)] = site.Login{Method: "token", TokenFile: f.w.Path("worker", "incluster", identity+".token")}
	}
	return site.VaultConfig{
		Name:          "incluster",
		Service:       &site.VaultService{Cluster: world.Management, Namespace: "vault", Name: "vault", Scheme: "http"},
		InsecureVault: true,
		Identities:    identities,
	}
}

// workerEnv is the worker's environment, as NAME=value.
func workerEnv(w *world.World) []string {
	return []string{
		"TEMPORAL_ADDRESS=" + w.Addr("temporal"),
		"TEMPORAL_NAMESPACE=" + temporalNamespace,
		"RELAYPKI_SITE=" + w.Path("worker", "site.yaml"),
		"RELAYPKI_LISTEN=" + w.Addr("worker"),
	}
}

// exports makes a shell file of NAME=value pairs.
func exports(env []string) []byte {
	var out []byte
	for _, pair := range env {
		name, value, _ := strings.Cut(pair, "=")
		out = fmt.Appendf(out, "export %s=%s\n", name, quote(value))
	}
	return out
}

// quote makes one shell word of s.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// charts are the Helm charts that the worker may install; their directories in
// the state directory have the same names.
var charts = []string{"cert-manager", "gloo-platform-crds", "gloo-platform", "vault"}

// chartSource is where the lab's own stand-in charts are.
func chartSource(repo, chart string) string {
	return filepath.Join(repo, "deploy", "lab", "charts", chart)
}
