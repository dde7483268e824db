package cluster

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/check/observe"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/inventory"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/site"
)

// InventoryClusterInput asks what certificates there are in one cluster of a mesh.
type InventoryClusterInput struct {
	// Spec has no workload but Cluster. Without one it is the management cluster.
	Spec    mesh.Spec `json:"spec"`
	Cluster string    `json:"cluster,omitempty"`
	// CAsPEM are the mesh's CAs, one certificate each, as Vault has them; none if it
	// could not be asked.
	CAsPEM []string `json:"casPEM,omitempty"`
	// Consumers looks through all Secrets and ConfigMaps for certificates under one of
	// the CAs. Known are objects that are the mesh's, as in FindConsumersInput.
	Consumers bool     `json:"consumers,omitempty"`
	Known     []string `json:"known,omitempty"`
	// Timeout is how long the cluster has to answer everything that it is asked.
	Timeout mesh.Duration `json:"timeout"`
}

// mostListed is how many consumers of a cluster an inventory has. All clusters' go into
// one result.
const mostListed = 50

// InventoryCluster looks at the certificates of the mesh in one cluster: the Secrets of
// server or agent, the agent's trust, what every replica of the management server
// serves and trusts, and, if asked for, whatever else holds a certificate under one of
// the mesh's CAs. What is found wrong, an API server that does not answer included, is
// part of the result, which comes within the timeout. An error means that the worker's
// own configuration does not know the cluster, or that the input cannot be read.
func (a *Activities) InventoryCluster(ctx context.Context, in InventoryClusterInput) (inventory.Look, error) {
	defer kube.Heartbeating(ctx, "looking at certificates")()
	ctx, cancel := context.WithTimeout(ctx, in.Timeout.Duration)
	defer cancel()
	var cas []*x509.Certificate
	for _, text := range in.CAsPEM {
		chain, err := pki.ParseChain([]byte(text))
		if err != nil {
			return inventory.Look{}, failure.Permanent(failure.InvalidInput, "a CA of the mesh cannot be read: %v", err)
		}
		cas = append(cas, chain...)
	}
	spec := in.Spec.WithDefaults()
	l := &stock{Look: inventory.Knowing(cas...)}
	l.Name = in.Cluster
	var err error
	if in.Cluster == "" {
		l.Name = spec.Management.Context
		err = l.management(ctx, a.Clients, spec)
	} else {
		err = l.workload(ctx, a.Clients, spec)
	}
	if err != nil || l.Unreachable != "" || !in.Consumers {
		return l.Look, err
	}
	l.consumers(ctx, cas, in.Known)
	return l.Look, nil
}

// stock is one look at a cluster.
type stock struct {
	inventory.Look
	// c is what the cluster is reached by.
	c *site.Cluster
}

// management looks at what the management server has stored and loaded.
func (l *stock) management(ctx context.Context, clients *site.Clients, spec mesh.Spec) error {
	seen, err := observe.Server(ctx, clients, spec)
	if l.Unreachable = seen.Unreachable; err != nil || l.Unreachable != "" {
		return err
	}
	if l.c, err = clients.Cluster(spec.Management.Context); err != nil {
		return err
	}
	at, asked := spec.Management.Namespace, spec.Certificates.Server
	object := kube.Name("Secret", at, asked.SecretName)
	served, servedNote := l.served(seen, at)
	trusted, trustedNote := trustedBy(seen)
	l.secret(object, seen.Secret, inventory.Item{Kind: inventory.ServerLeaf, Renewal: l.renewal(ctx, at, asked.Name), Served: served, Note: servedNote},
		inventory.Item{Served: trusted, Note: trustedNote})
	return nil
}

// workload looks at what an agent presents and trusts. What it has loaded, nobody can
// see from outside.
func (l *stock) workload(ctx context.Context, clients *site.Clients, spec mesh.Spec) error {
	if len(spec.Workloads) != 1 {
		return failure.Permanent(failure.InvalidInput, "the input has %d workloads where one is to be", len(spec.Workloads))
	}
	w := spec.Workloads[0]
	seen, err := observe.Agent(ctx, clients, spec, w)
	if l.Unreachable = seen.Unreachable; err != nil || l.Unreachable != "" {
		return err
	}
	if l.c, err = clients.Cluster(w.Context); err != nil {
		return err
	}
	asked := spec.Certificates.Client
	own, root := inventory.Item{Served: inventory.NotSeen}, inventory.Item{Kind: inventory.TrustStore, Served: inventory.NotSeen}
	if w.Agent.Trust == mesh.TrustOwn {
		root.Note = inventory.Unused
	} else {
		own.Note = inventory.Unused
	}
	l.secret(kube.Name("Secret", w.Namespace, asked.SecretName), seen.Secret,
		inventory.Item{Kind: inventory.ClientLeaf, Renewal: l.renewal(ctx, w.Namespace, asked.Name), Served: inventory.NotSeen}, own)
	if object := kube.Name("Secret", w.Namespace, mesh.RootSecretName); root.Note != inventory.Unused || !seen.RootSecret.Gap.Open() {
		if l.there(object, seen.RootSecret.Gap) {
			l.readable(object, rootKey, seen.RootSecret.CAError)
			root.Object, root.Key = object, rootKey
			l.all(root, seen.RootSecret.CA)
		}
	}
	return nil
}

// secret notes a Secret that cert-manager has written: leaf is the first of its chain,
// trust are those of its ca.crt.
func (l *stock) secret(object string, seen check.SeenSecret, leaf, trust inventory.Item) {
	if !l.there(object, seen.Gap) {
		return
	}
	l.readable(object, "tls.crt", seen.ChainError)
	l.readable(object, rootKey, seen.CAError)
	for n, c := range seen.Chain {
		item := inventory.Item{} // of the kind that the CA is
		if n == 0 {
			item = leaf
		}
		item.Object, item.Key = object, "tls.crt"
		l.all(item, []*x509.Certificate{c})
	}
	trust.Kind, trust.Object, trust.Key = inventory.TrustStore, object, rootKey
	l.all(trust, seen.CA)
}

func (l *stock) all(item inventory.Item, certificates []*x509.Certificate) {
	item.Cluster = l.Name
	for _, c := range certificates {
		l.Add(item, c)
	}
}

// there says whether an object was seen, and notes why it was not.
func (l *stock) there(object string, gap check.Gap) bool {
	switch gap.Reason {
	case "":
		return true
	case check.NotFound:
		l.missing(object, "is missing")
	case check.Denied:
		l.Unseen = append(l.Unseen, object+": the worker may not read it (apply deploy/rbac): "+gap.Detail)
	default:
		l.Unseen = append(l.Unseen, object+": "+gap.Detail)
	}
	return false
}

func (l *stock) missing(object, why string) {
	l.Missing = append(l.Missing, inventory.Missing{Cluster: l.Name, Object: object, Why: why})
}

func (l *stock) readable(object, key, problem string) {
	if problem != "" {
		l.missing(object, fmt.Sprintf("has no readable %s: %s", key, problem))
	}
}

// renewal is when cert-manager issues a certificate anew; zero if it does not say.
func (l *stock) renewal(ctx context.Context, namespace, name string) time.Time {
	c, err := l.c.CertManager.CertmanagerV1().Certificates(namespace).Get(ctx, name, metav1.GetOptions{})
	object := kube.Name("Certificate", namespace, name)
	switch {
	case apierrors.IsNotFound(err):
		l.missing(object, "is missing: nobody renews what is in the Secret")
	case err != nil:
		l.Unseen = append(l.Unseen, object+": "+failure.Message(kube.Error(ctx, l.c, "read "+object, err)))
	case c.Status.RenewalTime != nil:
		return c.Status.RenewalTime.UTC()
	}
	return time.Time{}
}

// served compares what every replica serves with what is stored; one that serves
// something else is an item of its own.
func (l *stock) served(seen check.Management, namespace string) (inventory.Served, string) {
	stored := upToRoot(seen.Secret.Chain)
	return compared(seen, func(r check.SeenReplica) string {
		if slices.EqualFunc(upToRoot(r.Loaded.Chain), stored, (*x509.Certificate).Equal) {
			return ""
		}
		for n, c := range r.Loaded.Chain {
			item := inventory.Item{Object: kube.Name("Pod", namespace, r.Pod), Key: "served", Served: inventory.Differs}
			if n == 0 {
				item.Kind = inventory.ServerLeaf
			}
			l.all(item, []*x509.Certificate{c})
		}
		return "serves " + pki.Name(r.Loaded.Chain[0]) + " in a chain of " + fmt.Sprint(len(r.Loaded.Chain))
	})
}

// upToRoot is a chain without the self-signed end that it may have: cert-manager leaves
// it out, and nobody misses it.
func upToRoot(chain []*x509.Certificate) []*x509.Certificate {
	if n := len(chain); n > 1 && pki.SelfSigned(chain[n-1]) {
		return chain[:n-1]
	}
	return chain
}

// trustedBy compares whom every replica accepts, by the CA names of its request, with
// the stored trust.
func trustedBy(seen check.Management) (inventory.Served, string) {
	var stored [][]byte
	for _, c := range seen.Secret.CA {
		stored = append(stored, c.RawSubject)
	}
	return compared(seen, func(r check.SeenReplica) string {
		switch {
		case !r.Loaded.AsksForCertificate:
			return "asks for no client certificate"
		case sameSet(r.Loaded.AcceptableCAs, stored):
			return ""
		}
		return "accepts " + subjects(r.Loaded.AcceptableCAs)
	})
}

func sameSet(a, b [][]byte) bool {
	within := func(a, b [][]byte) bool {
		return !slices.ContainsFunc(a, func(one []byte) bool {
			return !slices.ContainsFunc(b, func(other []byte) bool { return bytes.Equal(one, other) })
		})
	}
	return within(a, b) && within(b, a)
}

func subjects(raw [][]byte) string {
	var names []string
	for _, der := range raw {
		var rdn pkix.RDNSequence
		if rest, err := asn1.Unmarshal(der, &rdn); err != nil || len(rest) > 0 {
			names = append(names, "a name that cannot be read")
			continue
		}
		names = append(names, rdn.String())
	}
	if len(names) == 0 {
		return "no CA by name"
	}
	return strings.Join(names, " and ")
}

// compared says of all replicas what differs says of each: empty for nothing.
func compared(seen check.Management, differs func(check.SeenReplica) string) (inventory.Served, string) {
	if seen.Server.Gap.Open() || seen.Server.PodsGap.Open() {
		return inventory.NotSeen, strings.TrimSpace("the management server's Pods: " + string(seen.Server.Gap.Reason) + string(seen.Server.PodsGap.Reason))
	}
	var different, unseen []string
	for _, r := range seen.Replicas {
		if r.LoadedError != "" {
			unseen = append(unseen, fmt.Sprintf("Pod %s: %s", r.Pod, r.LoadedError))
		} else if what := differs(r); what != "" {
			different = append(different, fmt.Sprintf("Pod %s %s", r.Pod, what))
		}
	}
	switch {
	case len(different) > 0:
		return inventory.Differs, strings.Join(append(different, unseen...), "; ")
	case len(unseen) > 0:
		return inventory.NotSeen, strings.Join(unseen, "; ")
	case len(seen.Replicas) == 0:
		return inventory.NotSeen, "the management server has no Pod"
	}
	return inventory.Same, ""
}

// consumers looks for what else holds a certificate under one of the mesh's CAs.
func (l *stock) consumers(ctx context.Context, cas []*x509.Certificate, known []string) {
	if len(cas) == 0 {
		l.Unsearched = []string{"all: the mesh's CAs are not known"}
		return
	}
	type consumer struct {
		object string
		held   map[string][]*x509.Certificate
	}
	var all []consumer
	s := &search{c: l.c, anchors: cas, known: known, found: func(object string, held map[string][]*x509.Certificate) {
		all = append(all, consumer{object, held})
	}}
	err := s.all(ctx)
	l.Unsearched = s.unseen
	if err != nil {
		l.Unsearched = append(l.Unsearched, failure.Message(err))
	}
	slices.SortFunc(all, func(a, b consumer) int { return strings.Compare(a.object, b.object) })
	if l.More = len(all) - mostListed; l.More > 0 {
		all = all[:mostListed]
	}
	l.More = max(l.More, 0)
	for _, one := range all {
		named, more := 0, 0
		for _, key := range slices.Sorted(maps.Keys(one.held)) {
			for _, c := range one.held[key] {
				if named++; named > mostNamed {
					more++
					continue
				}
				l.all(inventory.Item{Kind: inventory.Consumer, Object: one.object, Key: key}, []*x509.Certificate{c})
			}
		}
		if more > 0 {
			l.Items[len(l.Items)-1].Note = fmt.Sprintf("and %d more certificates in it", more)
		}
	}
}
