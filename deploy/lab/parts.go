package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.temporal.io/api/workflowservice/v1"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/relaypki/relaypki/deploy/lab/internal/kube"
	"github.com/relaypki/relaypki/deploy/lab/internal/podhost"
	"github.com/relaypki/relaypki/deploy/lab/internal/programs"
	"github.com/relaypki/relaypki/deploy/lab/internal/supervise"
	"github.com/relaypki/relaypki/deploy/lab/internal/vault"
	"github.com/relaypki/relaypki/deploy/lab/internal/world"
)

// order is what `lab up` tells the supervisor to run.
type order struct {
	Repo string `json:"repo"`
	// Tools are the commands by name.
	Tools map[string][]string `json:"tools"`
	// Worker is the worker's program; empty leaves a running one alone.
	Worker string `json:"worker,omitempty"`
	// Later are the programs to build when everything runs.
	Later []string `json:"later,omitempty"`
}

// partsOf lists everything that the lab of w runs.
func partsOf(w *world.World, o order, log *zap.Logger) ([]supervise.Part, error) {
	etcd, err := kube.NewEtcd(w)
	if err != nil {
		return nil, err
	}
	server, err := vault.New(w, o.Repo, o.Tools["vault-plugin-auth-kubernetes"][0])
	if err != nil {
		return nil, err
	}
	parts := []supervise.Part{
		etcd.Part(o.Tools["etcd"]),
		server.Part(o.Tools["vault"]),
		temporalPart(w, o.Tools["temporal-server"]),
		{
			Name:  "vault-identities",
			After: []string{"vault"},
			Key:   digest(append(vault.Policies(o.Repo), o.Tools["vault-plugin-auth-kubernetes"][0])...),
			Task:  server.AdmitWorker,
		},
	}
	files := files{w: w, vault: server}
	filesAfter := []string{"vault-identities"}
	for _, cluster := range w.Clusters() {
		plane, err := kube.NewPlane(w, etcd, cluster)
		if err != nil {
			return nil, err
		}
		files.planes = append(files.planes, plane)
		parts = append(parts, plane.Parts(o.Tools["kube-apiserver"], o.Tools["kube-controller-manager"], o.Tools["kube-scheduler"])...)
		pods, err := podsPart(w, plane, o, log)
		if err != nil {
			return nil, err
		}
		rights := supervise.Part{
			Name:  cluster + "-rights",
			After: []string{cluster + "-controller-manager"},
			// Once a month the age of the worker's token is looked at.
			Key:  digest(plane.Manifest(o.Repo)) + time.Now().Format(" 2006-01"),
			Task: func(ctx context.Context) error { return plane.AdmitWorker(ctx, o.Repo) },
		}
		parts = append(parts, pods, rights)
		filesAfter = append(filesAfter, rights.Name)
	}
	parts = append(parts, supervise.Part{
		Name:  "files",
		After: filesAfter,
		// Writing what is there already changes nothing.
		Key:  time.Now().String(),
		Task: func(context.Context) error { return files.write() },
	})
	if o.Worker != "" {
		parts = append(parts, workerPart(w, o.Worker))
	}
	for i, p := range parts {
		if p.Command != nil {
			parts[i].Key += strings.Join(slices.Concat(p.Command, p.Env), "\x00")
		}
	}
	var names []string
	for _, p := range parts {
		names = append(names, p.Name)
	}
	for _, name := range o.Later {
		parts = append(parts, laterPart(w, o.Repo, name, names, log))
	}
	return parts, nil
}

func podsPart(w *world.World, plane *kube.Plane, o order, log *zap.Logger) (supervise.Part, error) {
	cluster := plane.Cluster
	admin, err := plane.Config()
	if err != nil {
		return supervise.Part{}, err
	}
	name := cluster + "-pods"
	config := podhost.Config{
		Cluster:         cluster,
		Admin:           admin,
		AdminKubeconfig: plane.AdminKubeconfig(),
		StateDir:        w.Path("clusters", cluster, "pods"),
		LogDir:          w.Path("logs"),
		Kwok:            o.Tools["kwok"][0],
		CertManager:     o.Tools["cert-manager"][0],
		Relay:           o.Tools["relay-standin"][0],
		Vault:           o.Tools["vault"][0],
		KwokPort:        w.Ports[cluster+"-kubelet"],
		WebhookPort:     w.Ports[cluster+"-webhook"],
		Address:         w.Addresses[cluster],
		LBDelay:         w.LBDelay,
		LBHostname:      slices.Contains(w.LBHostname, cluster),
		Log:             log.Named(name),
	}
	return supervise.Part{
		Name:   name,
		After:  []string{cluster + "-controller-manager"},
		Key:    fmt.Sprint(config.Kwok, config.CertManager, config.Relay, config.Vault, config.LBDelay, config.LBHostname),
		Listen: []string{w.Addr(cluster + "-kubelet")},
		Run:    func(ctx context.Context) error { return podhost.Run(ctx, config) },
		Ready:  plane.NodeReady,
	}, nil
}

func temporalPart(w *world.World, program []string) supervise.Part {
	return supervise.Part{
		Name:   "temporal",
		Listen: []string{w.Addr("temporal"), w.Addr("temporal-ui")},
		Log:    w.Log("temporal"),
		Command: slices.Concat(program, []string{
			"--dir", w.Path("temporal"), "--ip", "127.0.0.1",
			"--frontend-port", strconv.Itoa(w.Ports["temporal"]),
			"--http-port", strconv.Itoa(w.Ports["temporal-http"]),
			"--ui-port", strconv.Itoa(w.Ports["temporal-ui"]),
		}),
		Ready: func(ctx context.Context) error {
			conn, err := grpc.NewClient(w.Addr("temporal"), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = workflowservice.NewWorkflowServiceClient(conn).DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: temporalNamespace})
			if err != nil {
				return fmt.Errorf("temporal namespace %s: %w", temporalNamespace, err)
			}
			return get(ctx, "http://"+w.Addr("temporal-ui"))
		},
	}
}

// workerPart runs the worker as the lab's own; it is restarted when its program
// or the set of clusters is another.
func workerPart(w *world.World, program string) supervise.Part {
	return supervise.Part{
		Name:    "worker",
		After:   []string{"files", "temporal"},
		Key:     digest(program) + strings.Join(w.Clusters(), " "),
		Listen:  []string{w.Addr("worker")},
		Log:     w.Log("worker"),
		Dir:     w.Dir,
		Command: []string{program},
		Env:     workerEnv(w),
		Ready: func(ctx context.Context) error {
			return get(ctx, "http://"+w.Addr("worker")+"/readyz")
		},
	}
}

// laterPart builds a program that only people need, after all the others.
func laterPart(w *world.World, repo, name string, after []string, log *zap.Logger) supervise.Part {
	return supervise.Part{
		Name:       name + "-cli",
		After:      after,
		Background: true,
		Task: func(ctx context.Context) error {
			shop, err := programs.Open(repo)
			if err != nil {
				return err
			}
			program, ok := programs.Find(name)
			if !ok {
				return fmt.Errorf("nothing builds %q", name)
			}
			log.Info("building", zap.String("program", name))
			path, err := shop.Build(ctx, program, func(string) {})
			if err != nil {
				return err
			}
			return link(w, name, path)
		},
	}
}

func get(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return nil
}

// digest identifies the contents of files; one that cannot be read counts as empty.
func digest(paths ...string) string {
	h := sha256.New()
	for _, path := range paths {
		data, _ := os.ReadFile(path)
		fmt.Fprintf(h, "%d\n", len(data))
		h.Write(data)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// link makes a program available in the lab's bin directory.
func link(w *world.World, name, target string) error {
	path := w.Path("bin", name)
	if old, err := os.Readlink(path); err == nil && old == target {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Symlink(target, path)
}
