// Package kube makes the lab's Kubernetes control planes: their certificates,
// command lines and kubeconfigs, and what the worker may do in them.
package kube

import (
	"context"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/relaypki/relaypki/deploy/lab/internal/certs"
	"github.com/relaypki/relaypki/deploy/lab/internal/supervise"
	"github.com/relaypki/relaypki/deploy/lab/internal/world"
)

// Etcd is the one etcd that all clusters of a lab share, each with a key prefix
// of its own: it saves 40 MiB a cluster.
type Etcd struct {
	w      *world.World
	ca     certs.Pair
	server certs.Pair
}

// NewEtcd makes etcd's certificates.
func NewEtcd(w *world.World) (*Etcd, error) {
	ca, err := certs.CA(w.Path("etcd", "pki"), "relaypki lab etcd")
	if err != nil {
		return nil, err
	}
	server, err := certs.Leaf(ca, w.Path("etcd", "pki"), "etcd", pkix.Name{CommonName: "etcd"})
	return &Etcd{w: w, ca: ca, server: server}, err
}

// Part is the etcd process.
func (e *Etcd) Part(program []string) supervise.Part {
	client, peer := e.w.URL("etcd"), "http://"+e.w.Addr("etcd-peer")
	return supervise.Part{
		Name:   "etcd",
		Listen: []string{e.w.Addr("etcd"), e.w.Addr("etcd-peer")},
		Log:    e.w.Log("etcd"),
		Command: slices.Concat(program, []string{
			"--name=lab",
			"--data-dir=" + e.w.Path("etcd", "data"),
			"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
			"--initial-cluster=lab=" + peer,
			"--client-cert-auth", "--trusted-ca-file=" + e.ca.Cert,
			"--cert-file=" + e.server.Cert, "--key-file=" + e.server.Key,
			// A lab may lose its last writes when the machine itself dies.
			"--unsafe-no-fsync",
			"--logger=zap", "--log-level=warn",
		}),
		Ready: func(ctx context.Context) error {
			return healthy(ctx, e.w.URL("etcd"), "/health", e.ca.Cert, e.server)
		},
	}
}

// Plane is the control plane of one cluster.
type Plane struct {
	// Cluster is its name and the kubeconfig context.
	Cluster string
	w       *world.World
	etcd    *Etcd
	ca      certs.Pair
	server  certs.Pair
	admin   certs.Pair
	manager certs.Pair
	sched   certs.Pair
	// signing key of ServiceAccount tokens
	tokenKey, tokenPub string
}

// NewPlane makes the certificates, keys and configuration files of a cluster.
// Each cluster has a CA and a token issuer of its own.
func NewPlane(w *world.World, etcd *Etcd, cluster string) (*Plane, error) {
	p := &Plane{Cluster: cluster, w: w, etcd: etcd}
	dir := p.path("pki")
	var err error
	if p.ca, err = certs.CA(dir, "relaypki lab "+cluster); err != nil {
		return nil, err
	}
	for _, leaf := range []struct {
		pair     *certs.Pair
		name     string
		subject  pkix.Name
		dnsNames []string
	}{
		{&p.server, "apiserver", pkix.Name{CommonName: "kube-apiserver"}, []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc"}},
		{&p.admin, "admin", pkix.Name{CommonName: "lab-admin", Organization: []string{"system:masters"}}, nil},
		{&p.manager, "controller-manager", pkix.Name{CommonName: "system:kube-controller-manager"}, nil},
		{&p.sched, "scheduler", pkix.Name{CommonName: "system:kube-scheduler"}, nil},
	} {
		if *leaf.pair, err = certs.Leaf(p.ca, dir, leaf.name, leaf.subject, leaf.dnsNames...); err != nil {
			return nil, err
		}
	}
	if p.tokenKey, p.tokenPub, err = certs.KeyPair(dir, "serviceaccounts"); err != nil {
		return nil, err
	}
	for name, pair := range map[string]certs.Pair{"admin": p.admin, "controller-manager": p.manager, "scheduler": p.sched} {
		config := api.NewConfig()
		if err := p.context(config, name, Credential{Pair: pair}); err != nil {
			return nil, err
		}
		if err := WriteKubeconfig(p.path(name+".kubeconfig"), config, cluster); err != nil {
			return nil, err
		}
	}
	if err := world.WriteFile(p.path("audit-policy.yaml"), []byte(auditPolicy), 0o644); err != nil {
		return nil, err
	}
	return p, world.WriteFile(p.path("authentication.yaml"), []byte(authentication), 0o644)
}

func (p *Plane) path(elem ...string) string {
	return p.w.Path(append([]string{"clusters", p.Cluster}, elem...)...)
}

// AdminKubeconfig is the file with the administrator's access to this cluster alone.
func (p *Plane) AdminKubeconfig() string { return p.path("admin.kubeconfig") }

// Issuer is the issuer of the cluster's ServiceAccount tokens.
func (p *Plane) Issuer() string { return "https://kubernetes.default.svc." + p.Cluster }

// Audit is the cluster's audit log, JSON lines.
func (p *Plane) Audit() string { return p.w.Path("logs", "audit-"+p.Cluster+".log") }

// Parts are the cluster's processes.
func (p *Plane) Parts(apiserver, manager, scheduler []string) []supervise.Part {
	server, url := p.Cluster+"-apiserver", p.w.URL(p.Cluster+"-apiserver")
	parts := []supervise.Part{{
		Name:   server,
		After:  []string{"etcd"},
		Listen: []string{p.w.Addr(server)},
		Command: slices.Concat(apiserver, []string{
			"--etcd-servers=" + p.w.URL("etcd"), "--etcd-prefix=/" + p.Cluster,
			"--etcd-cafile=" + p.etcd.ca.Cert, "--etcd-certfile=" + p.etcd.server.Cert, "--etcd-keyfile=" + p.etcd.server.Key,
			"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
			fmt.Sprintf("--secure-port=%d", p.w.Ports[server]),
			"--tls-cert-file=" + p.server.Cert, "--tls-private-key-file=" + p.server.Key,
			"--client-ca-file=" + p.ca.Cert,
			"--authentication-config=" + p.path("authentication.yaml"),
			"--authorization-mode=Node,RBAC",
			"--service-cluster-ip-range=10.96.0.0/16",
			"--service-account-issuer=" + p.Issuer(),
			"--service-account-signing-key-file=" + p.tokenKey, "--service-account-key-file=" + p.tokenPub,
			// kwok stands where the kubelets would be, on the node's InternalIP.
			"--kubelet-preferred-address-types=InternalIP",
			"--audit-policy-file=" + p.path("audit-policy.yaml"), "--audit-log-path=" + p.Audit(),
		}),
		Ready: func(ctx context.Context) error {
			return healthy(ctx, url, "/readyz", p.ca.Cert, p.admin)
		},
		// It would wait for those who watch, and they for it. What is stored is etcd's.
		Grace: 2 * time.Second,
	}, {
		Name:  p.Cluster + "-controller-manager",
		After: []string{server},
		Command: slices.Concat(manager, []string{
			"--kubeconfig=" + p.path("controller-manager.kubeconfig"),
			"--leader-elect=false", "--secure-port=0",
			"--use-service-account-credentials",
			"--root-ca-file=" + p.ca.Cert,
			"--service-account-private-key-file=" + p.tokenKey,
			"--cluster-signing-cert-file=" + p.ca.Cert, "--cluster-signing-key-file=" + p.ca.Key,
			// With the defaults the first ServiceAccount takes 6 seconds.
			"--kube-api-qps=1000", "--kube-api-burst=1000",
		}),
		Ready: p.defaultServiceAccount,
	}, {
		Name:  p.Cluster + "-scheduler",
		After: []string{server},
		Command: slices.Concat(scheduler, []string{
			"--kubeconfig=" + p.path("scheduler.kubeconfig"),
			"--leader-elect=false", "--secure-port=0",
			"--kube-api-qps=1000", "--kube-api-burst=1000",
		}),
	}}
	for i := range parts {
		parts[i].Log = p.w.Log(parts[i].Name)
	}
	return parts
}

// defaultServiceAccount tells whether the controller manager does its work.
func (p *Plane) defaultServiceAccount(ctx context.Context) error {
	client, err := p.Client()
	if err != nil {
		return err
	}
	if _, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{}); err != nil {
		return fmt.Errorf("ServiceAccount default/default: %w", err)
	}
	return nil
}

// NodeReady tells whether a node of the cluster is ready for Pods: says so, and
// its kubelet port answers (after a restart the former is old news).
func (p *Plane) NodeReady(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.w.Addr(p.Cluster+"-kubelet"))
	if err != nil {
		return fmt.Errorf("kwok of %s: %w", p.Cluster, err)
	}
	conn.Close()
	client, err := p.Client()
	if err != nil {
		return err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("nodes of %s: %w", p.Cluster, err)
	}
	for _, node := range nodes.Items {
		for _, c := range node.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				return nil
			}
		}
	}
	return fmt.Errorf("no node of %s is ready (%d there)", p.Cluster, len(nodes.Items))
}

// Config is the administrator's access.
func (p *Plane) Config() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", p.AdminKubeconfig())
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 200, 400
	return config, nil
}

// Client is the administrator's client.
func (p *Plane) Client() (*kubernetes.Clientset, error) {
	config, err := p.Config()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// Credential is what a kubeconfig user presents: a certificate or a token.
type Credential struct {
	Pair  certs.Pair
	Token string
}

// context adds the cluster under its name, with that user.
func (p *Plane) context(config *api.Config, user string, c Credential) error {
	ca, err := os.ReadFile(p.ca.Cert)
	if err != nil {
		return err
	}
	auth := api.NewAuthInfo()
	if auth.Token = c.Token; c.Token == "" {
		if auth.ClientCertificateData, err = os.ReadFile(c.Pair.Cert); err != nil {
			return err
		}
		if auth.ClientKeyData, err = os.ReadFile(c.Pair.Key); err != nil {
			return err
		}
	}
	name := user + "@" + p.Cluster
	config.Clusters[p.Cluster] = &api.Cluster{Server: p.w.URL(p.Cluster + "-apiserver"), CertificateAuthorityData: ca}
	config.AuthInfos[name] = auth
	config.Contexts[p.Cluster] = &api.Context{Cluster: p.Cluster, AuthInfo: name}
	return nil
}

// AddAdmin adds the administrator's context of this cluster.
func (p *Plane) AddAdmin(config *api.Config) error {
	return p.context(config, "admin", Credential{Pair: p.admin})
}

// WriteKubeconfig writes a kubeconfig file with that current context, unless
// the file has one that is still in it (a person may have switched).
func WriteKubeconfig(path string, config *api.Config, current string) error {
	config.CurrentContext = current
	if old, err := clientcmd.LoadFromFile(path); err == nil && config.Contexts[old.CurrentContext] != nil {
		config.CurrentContext = old.CurrentContext
	}
	data, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	return world.WriteFile(path, data, 0o600)
}

// auditPolicy records who did what, never contents. requestURI in each event
// tells a dry run from a write.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  verbs: [watch]
- level: None
  nonResourceURLs: ["/healthz*", "/readyz*", "/livez*"]
- level: None
  resources:
  - {group: "", resources: [events]}
  - {group: events.k8s.io, resources: [events]}
- level: None
  namespaces: [kube-node-lease]
  resources:
  - {group: coordination.k8s.io, resources: [leases]}
- level: Metadata
`

// authentication lets nobody in without a name, except to ask for health.
const authentication = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
`
