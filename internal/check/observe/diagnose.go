package observe

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"slices"
	"strings"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/site"
)

// A diagnosis makes the looks of a verification, and at the same time those here.
// Besides the rights named at the package it needs, in a cluster, list on the relay
// namespace's CertificateRequests and events, create and patch on Certificates (by
// dry run alone), get on the Secrets vault-token and of the identity token, and in
// the management cluster get on the server's Service. In Vault it reads what
// deploy/vault/policies/operate.hcl lists. What it may not read is said.

// verifyWithin bounds the looks of a verification within a diagnosis: a server that
// answers /version and nothing else is not waited for.
const verifyWithin = 3 * lookTimeout

// DiagnoseManagement looks at the management cluster and at Vault as Management
// does, and at more. The error is as there.
func DiagnoseManagement(ctx context.Context, clients *site.Clients, spec mesh.Spec) (check.Management, error) {
	cluster, err := clients.Cluster(spec.Management.Context)
	if err != nil {
		return check.Management{}, err
	}
	local := spec
	local.Namespace = spec.Management.Namespace
	var seen, more check.Management
	at := looker{ctx: ctx, clients: clients, cluster: cluster, spec: local, certificate: spec.Certificates.Server.Name}
	err = at.all(&more.Looks, func() error {
		ctx, cancel := context.WithTimeout(ctx, verifyWithin)
		defer cancel()
		var err error
		seen, err = Management(ctx, clients, spec)
		return err
	}, func(ctx context.Context) {
		more.VaultClock = vaultClock(ctx, clients, spec.Vault.Name)
	}, func(ctx context.Context) {
		more.PKI = mounts(ctx, clients, local)
	})
	if err != nil {
		return check.Management{}, err
	}
	seen.Looks, seen.VaultClock, seen.PKI = more.Looks, more.VaultClock, more.PKI
	seen.Looks.Contexts = contexts(clients, spec)
	describeCertManager(ctx, cluster, seen.CertManager)
	return seen, nil
}

// DiagnoseWorkload looks at a workload cluster as Workload does, and at more.
func DiagnoseWorkload(ctx context.Context, clients *site.Clients, spec mesh.Spec, w mesh.Workload) (check.Workload, error) {
	cluster, err := clients.Cluster(w.Context)
	if err != nil {
		return check.Workload{}, err
	}
	local := spec
	local.Namespace = w.Namespace
	var seen, more check.Workload
	at := looker{ctx: ctx, clients: clients, cluster: cluster, spec: local, certificate: spec.Certificates.Client.Name}
	err = at.all(&more.Looks, func() error {
		ctx, cancel := context.WithTimeout(ctx, verifyWithin)
		defer cancel()
		var err error
		seen, err = Workload(ctx, clients, spec, w)
		return err
	}, func(ctx context.Context) {
		more.Relay = relayAddress(ctx, clients, spec)
	})
	if err != nil {
		return check.Workload{}, err
	}
	seen.Looks, seen.Relay = more.Looks, more.Relay
	seen.Looks.Contexts = contexts(clients, mesh.Spec{Management: spec.Management, Workloads: []mesh.Workload{w}})
	describeCertManager(ctx, cluster, seen.CertManager)
	if failed(seen.Handshakes) {
		seen.Gauges = countedStreams(ctx, clients, seen.Spec)
	}
	return seen, nil
}

// looker makes the looks that are the same in every cluster.
type looker struct {
	ctx         context.Context
	clients     *site.Clients
	cluster     *site.Cluster
	spec        mesh.Spec // Namespace is this cluster's
	certificate string
}

// all makes all looks at once: those of a verification, and the others, each of
// which is given up after lookTimeout.
func (l looker) all(out *check.Looks, verify func() error, more ...func(context.Context)) error {
	if config, err := l.clients.Config.Vault(l.spec.Vault.Name); err == nil {
		out.VaultNamespace = config.Namespace
	}
	var group errgroup.Group
	group.Go(verify)
	looks := append(more,
		func(ctx context.Context) { out.Requests = l.requests(ctx) },
		func(ctx context.Context) { out.Events = l.events(ctx) },
		func(ctx context.Context) { out.Webhook = l.webhook(ctx) },
		func(ctx context.Context) { out.Clock = l.clock(ctx) },
		func(ctx context.Context) { out.Identity = l.identity(ctx) },
		func(ctx context.Context) { out.Stored = l.stored(ctx) },
	)
	for _, look := range looks {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(l.ctx, lookTimeout)
			defer cancel()
			look(ctx)
			return nil
		})
	}
	return group.Wait()
}

// contexts are the clusters' in the worker's kubeconfig, as far as it knows them.
func contexts(clients *site.Clients, spec mesh.Spec) map[string]string {
	out := map[string]string{}
	add := func(name, of string) {
		out[name] = of
		if c, err := clients.Cluster(of); err == nil {
			out[name] = kube.Context(c)
		}
	}
	for _, w := range spec.Workloads {
		add(w.Name, w.Context)
	}
	add(spec.Management.Context, spec.Management.Context)
	return out
}

// requests are the Certificate's; an aid, so that what cannot be read is none.
func (l looker) requests(ctx context.Context) []check.SeenRequest {
	list, err := l.cluster.CertManager.CertmanagerV1().CertificateRequests(l.spec.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil
	}
	var out []check.SeenRequest
	for _, r := range list.Items {
		if r.Annotations[cmapi.CertificateNameKey] != l.certificate {
			continue
		}
		one := check.SeenRequest{Name: r.Name, Created: r.CreationTimestamp.Time}
		if r.Status.FailureTime != nil {
			one.Failed = r.Status.FailureTime.Time
		}
		for _, c := range r.Status.Conditions {
			as := check.Condition{Status: string(c.Status), Reason: c.Reason, Message: abridge(c.Message)}
			switch c.Type {
			case cmapi.CertificateRequestConditionApproved:
				one.Approved = as
			case cmapi.CertificateRequestConditionDenied:
				one.Denied = as
			case cmapi.CertificateRequestConditionReady:
				one.Ready = as
			}
		}
		out = append(out, one)
	}
	slices.SortStableFunc(out, func(a, b check.SeenRequest) int { return a.Created.Compare(b.Created) })
	return out
}

// events are an aid too. There are more of them than anybody would read.
func (l looker) events(ctx context.Context) []check.SeenEvent {
	list, err := l.cluster.Kube.CoreV1().Events(l.spec.Namespace).List(ctx, metav1.ListOptions{Limit: 500})
	if err != nil {
		return nil
	}
	var out []check.SeenEvent
	for _, e := range list.Items {
		if e.Type != corev1.EventTypeWarning {
			continue
		}
		last := e.LastTimestamp.Time
		if last.IsZero() {
			last = e.EventTime.Time
		}
		out = append(out, check.SeenEvent{
			Object: kube.Name(e.InvolvedObject.Kind, e.InvolvedObject.Namespace, e.InvolvedObject.Name),
			Reason: e.Reason, Message: abridge(strings.Join(strings.Fields(e.Message), " ")), Count: max(e.Count, 1), Last: last,
		})
	}
	slices.SortStableFunc(out, func(a, b check.SeenEvent) int { return a.Last.Compare(b.Last) })
	return out
}

func (l looker) webhook(ctx context.Context) check.SeenWebhook {
	state, err := kube.WebhookAnswers(ctx, l.cluster, l.spec.Namespace)
	if err == nil {
		return check.SeenWebhook{State: state}
	}
	// Neither the kind nor the namespace is there: said by what is to make them.
	if kind := failure.KindOf(err); kind == failure.NotReady {
		return check.SeenWebhook{Gap: check.Gap{Reason: check.NotFound, Detail: failure.Message(err)}}
	}
	return check.SeenWebhook{Gap: failureGap(err)}
}

// clock asks the API server for its time, which is to the second.
func (l looker) clock(ctx context.Context) check.SeenClock {
	client, err := rest.HTTPClientFor(l.cluster.REST)
	if err != nil {
		return check.SeenClock{}
	}
	base, _, err := rest.DefaultServerUrlFor(l.cluster.REST)
	if err != nil {
		return check.SeenClock{}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath("/version").String(), nil)
	if err != nil {
		return check.SeenClock{}
	}
	began := time.Now()
	response, err := client.Do(request)
	if err != nil {
		return check.SeenClock{}
	}
	defer response.Body.Close()
	return clock(response.Header, began, time.Now())
}

func vaultClock(ctx context.Context, clients *site.Clients, name string) check.SeenClock {
	client, err := clients.VaultWithToken(ctx, name, "")
	if err != nil {
		return check.SeenClock{}
	}
	began := time.Now()
	response, err := client.Logical().ReadRawWithContext(ctx, "sys/health")
	if response == nil || err != nil {
		return check.SeenClock{}
	}
	defer response.Body.Close()
	return clock(response.Header, began, time.Now())
}

// clock compares a server's time with that of the worker in the middle of a request.
func clock(header http.Header, began, ended time.Time) check.SeenClock {
	date, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		return check.SeenClock{}
	}
	return check.SeenClock{Known: true, Behind: began.Add(ended.Sub(began) / 2).Sub(date).Truncate(time.Second)}
}

// identity looks at the Secret with the identity token, and compares it with the
// management cluster's. Neither token leaves this function.
func (l looker) identity(ctx context.Context) check.SeenIdentity {
	token := l.spec.Gloo.IdentityToken
	if token.Mode == mesh.TokenNone {
		return check.SeenIdentity{}
	}
	secret, err := l.cluster.Kube.CoreV1().Secrets(l.spec.Namespace).Get(ctx, token.SecretName, metav1.GetOptions{})
	if err != nil {
		return check.SeenIdentity{Gap: gap(err)}
	}
	have := secret.Data[token.Key]
	seen := check.SeenIdentity{HasKey: len(have) > 0, Same: true, Helm: helmRelease(secret)}
	management, err := l.clients.Cluster(l.spec.Management.Context)
	if err != nil || management == l.cluster && l.spec.Namespace == l.spec.Management.Namespace {
		return seen
	}
	original, err := management.Kube.CoreV1().Secrets(l.spec.Management.Namespace).Get(ctx, token.SecretName, metav1.GetOptions{})
	if err == nil {
		a, b := sha256.Sum256(have), sha256.Sum256(original.Data[token.Key])
		seen.Same = subtle.ConstantTimeCompare(a[:], b[:]) == 1
	}
	return seen
}

// stored asks Vault about the token in vault-token, with that very token, which
// stays in this function.
func (l looker) stored(ctx context.Context) check.SeenStored {
	secret, err := l.cluster.Kube.CoreV1().Secrets(l.spec.Namespace).Get(ctx, mesh.TokenSecretName, metav1.GetOptions{})
	if err != nil {
		return check.SeenStored{Gap: gap(err)}
	}
	token := string(secret.Data[mesh.TokenSecretKey])
	if token == "" {
		return check.SeenStored{}
	}
	seen := check.SeenStored{There: true}
	client, err := l.clients.VaultWithToken(ctx, l.spec.Vault.Name, token)
	if err != nil {
		seen.Gap = failureGap(err)
		if kind := failure.KindOf(err); kind == failure.InvalidInput || kind == failure.Preflight {
			seen.Gap.Reason = check.Denied // the worker of a private network knows no Vault
		}
		return seen
	}
	self, err := client.Auth().Token().LookupSelfWithContext(ctx)
	if err := site.VaultError(err, l.spec.Vault.Name, site.Refresh, "look up the token in "+mesh.TokenSecretName); err != nil {
		if failure.KindOf(err) != failure.Denied { // it has ended, or it is of another Vault
			seen.Gap = failureGap(err)
		}
		return seen
	}
	if seen.Policies, err = self.TokenPolicies(); err != nil {
		seen.Gap = check.Gap{Reason: check.Unreachable, Detail: "what Vault says of the token is not in the expected form"}
		return seen
	}
	seen.Known = true
	return seen
}

// helmRelease is the Helm release whose upgrade may delete an object; empty if none.
func helmRelease(object metav1.Object) string {
	if object.GetAnnotations()["helm.sh/resource-policy"] == "keep" {
		return "" // an upgrade leaves it
	}
	if release := object.GetAnnotations()["meta.helm.sh/release-name"]; release != "" {
		return release
	}
	if object.GetLabels()["app.kubernetes.io/managed-by"] == "Helm" {
		return "a release that it does not name"
	}
	return ""
}

// relayAddress is where agents are to reach the management server: the Service's
// address, unless the spec has one.
func relayAddress(ctx context.Context, clients *site.Clients, spec mesh.Spec) check.SeenAddress {
	if spec.Gloo.RelayAddress != "" {
		return check.SeenAddress{Address: spec.Gloo.RelayAddress}
	}
	management, err := clients.Cluster(spec.Management.Context)
	if err != nil {
		return check.SeenAddress{} // said by handshake
	}
	service, err := management.Kube.CoreV1().Services(spec.Management.Namespace).Get(ctx, mesh.ServerDeployment, metav1.GetOptions{})
	if err != nil {
		return check.SeenAddress{Gap: gap(err)}
	}
	address, problem := kube.RelayAddress(service)
	return check.SeenAddress{Address: address, Problem: problem}
}

// describeCertManager adds the Pods of those of cert-manager's Deployments that are
// not available.
func describeCertManager(ctx context.Context, cluster *site.Cluster, deployments []check.SeenDeployment) {
	for i, d := range deployments {
		if d.Gap.Open() || d.Available >= max(d.Desired, 1) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, lookTimeout)
		seen, _ := relayDeployment(ctx, cluster, d.Namespace, d.Name)
		cancel()
		deployments[i].Pods, deployments[i].PodsGap = seen.Pods, seen.PodsGap
	}
}

func failed(handshakes []check.SeenHandshake) bool {
	return slices.ContainsFunc(handshakes, func(h check.SeenHandshake) bool { return h.Reached && h.Error != "" })
}

// countedStreams are the gauges of all replicas of the management server that can be
// read, summed.
func countedStreams(ctx context.Context, clients *site.Clients, spec mesh.Spec) check.Metrics {
	sum := check.Metrics{Pull: map[string]float64{}, Push: map[string]float64{}}
	management, err := clients.Cluster(spec.Management.Context)
	if err != nil {
		return sum
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	_, replicas := replicas(ctx, management, spec, gauges)
	for _, one := range replicas {
		for cluster, n := range one.Metrics.Pull {
			sum.Pull[cluster] += n
		}
		for cluster, n := range one.Metrics.Push {
			sum.Push[cluster] += n
		}
	}
	return sum
}
