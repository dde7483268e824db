package cluster

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/site"
)

// FindConsumersInput asks who else holds something of an old root.
type FindConsumersInput struct {
	Context string `json:"context"`
	// RootPEM is the old root. Known are objects of ours, as "Secret gloo-mesh/name".
	RootPEM string   `json:"rootPEM"`
	Known   []string `json:"known"`
}

// Consumer is an object that holds the old root, or a certificate under it.
type Consumer struct {
	// Object is as in FindConsumersInput.Known, Keys are those of it in which the
	// certificates are.
	Object string   `json:"object"`
	Keys   []string `json:"keys"`
	// Holds says what was found, in a few words: certificates' names.
	Holds string `json:"holds"`
}

// FindConsumersResult lists them. What could not be looked through is in Unseen,
// with the reason.
type FindConsumersResult struct {
	// Consumers are the first of them, by name, and More is how many others there are.
	Consumers []Consumer `json:"consumers,omitempty"`
	More      int        `json:"more,omitempty"`
	Unseen    []string   `json:"unseen,omitempty"`
	Looked    int        `json:"looked"`
}

const (
	// mostConsumers is how many a person can go through, and a history holds.
	mostConsumers = 200
	// mostNamed are the certificates of one object that are named.
	mostNamed = 3
	// pageSize is how many objects are in memory at once; each may be of a megabyte.
	pageSize = 100
)

// FindConsumers looks through the Secrets and ConfigMaps of a cluster for the old
// root and for certificates that lead to it, within the object that they are in. It
// knows certificates in PEM, also indented or escaped in a longer text; what is in
// Java's key stores or the like it does not see. Of what it reads it keeps
// certificates alone. Where the worker may not list an object's kind in all
// namespaces, it looks through those of the mesh, and says so.
func (a *Activities) FindConsumers(ctx context.Context, in FindConsumersInput) (FindConsumersResult, error) {
	defer kube.Heartbeating(ctx, "looking through Secrets and ConfigMaps")()
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return FindConsumersResult{}, err
	}
	root, err := pki.ParseChain([]byte(in.RootPEM))
	if err != nil || len(root) != 1 {
		return FindConsumersResult{}, failure.Permanent(failure.InvalidInput, "the old root, whose consumers are to be found in cluster %q, is not one certificate in PEM", in.Context)
	}
	return findConsumers(ctx, c, root[0], in.Known)
}

func findConsumers(ctx context.Context, c *site.Cluster, root *x509.Certificate, known []string) (FindConsumersResult, error) {
	var result FindConsumersResult
	s := &search{c: c, anchors: []*x509.Certificate{root}, known: known, found: func(object string, held map[string][]*x509.Certificate) {
		keys, holds := consumed(held, root)
		result.Consumers = append(result.Consumers, Consumer{Object: object, Keys: keys, Holds: holds})
	}}
	if err := s.all(ctx); err != nil {
		return FindConsumersResult{}, err
	}
	result.Looked, result.Unseen = s.looked, s.unseen
	slices.SortFunc(result.Consumers, func(a, b Consumer) int { return strings.Compare(a.Object, b.Object) })
	if more := len(result.Consumers) - mostConsumers; more > 0 {
		result.Consumers, result.More = result.Consumers[:mostConsumers], more
	}
	return result, nil
}

// search is one search through a cluster.
type search struct {
	c       *site.Cluster
	anchors []*x509.Certificate
	known   []string
	// found is called with each object that holds an anchor or a certificate under one,
	// and with what of it does, by key.
	found func(object string, held map[string][]*x509.Certificate)
	// unseen is what could not be looked through, with why, looked how many objects
	// could be.
	unseen []string
	looked int
}

func (s *search) all(ctx context.Context) error {
	for kind, list := range map[string]lister{"Secret": s.secrets, "ConfigMap": s.configMaps} {
		if err := s.kind(ctx, kind, list); err != nil {
			return err
		}
	}
	slices.Sort(s.unseen)
	return nil
}

// lister looks through one page of a namespace's objects, or of all namespaces', and
// returns from where the next one goes on.
type lister func(ctx context.Context, namespace string, options metav1.ListOptions) (next string, err error)

// kind looks through all objects of a kind that the worker may list.
func (s *search) kind(ctx context.Context, kind string, list lister) error {
	err := s.pages(ctx, kind, metav1.NamespaceAll, list)
	if !apierrors.IsForbidden(err) {
		return kube.Error(ctx, s.c, "list the "+kind+"s of all namespaces", err)
	}
	var seen []string
	for _, namespace := range s.namespaces() {
		err := s.pages(ctx, kind, namespace, list)
		switch {
		case err == nil:
			seen = append(seen, namespace)
		case !apierrors.IsForbidden(err):
			return kube.Error(ctx, s.c, "list the "+kind+"s of "+namespace, err)
		}
	}
	of := kind + "s"
	if len(seen) > 0 {
		of += " of other namespaces than " + strings.Join(seen, " and ")
	}
	s.unseen = append(s.unseen, of+": the worker may not list them (apply deploy/rbac/consumers.yaml to have them looked through)")
	return nil
}

// namespaces are those in which the worker has rights: of the objects that are ours,
// and cert-manager's.
func (s *search) namespaces() []string {
	all := map[string]bool{mesh.Spec{}.WithDefaults().Namespace: true, "cert-manager": true}
	for _, object := range s.known {
		if _, name, ok := strings.Cut(object, " "); ok {
			if namespace, _, ok := strings.Cut(name, "/"); ok {
				all[namespace] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// pages returns the API server's own error.
func (s *search) pages(ctx context.Context, kind, namespace string, list lister) error {
	options := metav1.ListOptions{Limit: pageSize}
	for {
		next, err := list(ctx, namespace, options)
		if err != nil || next == "" {
			return err
		}
		options.Continue = next
	}
}

func (s *search) secrets(ctx context.Context, namespace string, options metav1.ListOptions) (string, error) {
	page, err := s.c.Kube.CoreV1().Secrets(namespace).List(ctx, options)
	if err != nil {
		return "", err
	}
	for _, o := range page.Items {
		s.look(kube.Name("Secret", o.Namespace, o.Name), o.Data)
	}
	return page.Continue, nil
}

func (s *search) configMaps(ctx context.Context, namespace string, options metav1.ListOptions) (string, error) {
	page, err := s.c.Kube.CoreV1().ConfigMaps(namespace).List(ctx, options)
	if err != nil {
		return "", err
	}
	for _, o := range page.Items {
		data := maps.Clone(o.BinaryData)
		if data == nil {
			data = map[string][]byte{}
		}
		for key, text := range o.Data {
			data[key] = []byte(text)
		}
		s.look(kube.Name("ConfigMap", o.Namespace, o.Name), data)
	}
	return page.Continue, nil
}

// look says so if the object is a consumer.
func (s *search) look(object string, data map[string][]byte) {
	if slices.Contains(s.known, object) {
		return
	}
	s.looked++
	held := map[string][]*x509.Certificate{}
	for key, text := range data {
		if certificates := certificatesIn(text); len(certificates) > 0 {
			held[key] = certificates
		}
	}
	if under, _ := under(held, s.anchors); len(under) > 0 {
		s.found(object, under)
	}
}

// certificatesIn are the certificates in a text, wherever in it they are. In YAML
// within it their lines are indented, in JSON their ends are written as \n. No other
// block of the text is decoded.
func certificatesIn(text []byte) []*x509.Certificate {
	var all []*x509.Certificate
	for {
		_, rest, found := bytes.Cut(text, []byte("-----BEGIN CERTIFICATE-----"))
		if !found {
			return all
		}
		body, _, found := bytes.Cut(rest, []byte("-----END CERTIFICATE-----"))
		if !found {
			return all
		}
		text = rest
		der, err := base64.StdEncoding.DecodeString(spaceless.Replace(string(body)))
		if err != nil {
			continue
		}
		if c, err := x509.ParseCertificate(der); err == nil {
			all = append(all, c)
		}
	}
}

var spaceless = strings.NewReplacer(`\r`, "", `\n`, "", "\r", "", "\n", "", "\t", "", " ", "")

// consumed says which keys of an object hold the root, by its key, or certificates
// under it, and which those are; no keys if there is none.
func consumed(held map[string][]*x509.Certificate, root *x509.Certificate) (keys []string, holds string) {
	of, found := under(held, []*x509.Certificate{root})
	return slices.Sorted(maps.Keys(of)), foundNames(found, root)
}

// under are the certificates of an object that are an anchor, a self-signed one by its
// key, or are under one: signed by it, or by another one of the object that is. They
// are given by the object's keys, and each once, in the order in which they were found.
func under(held map[string][]*x509.Certificate, anchors []*x509.Certificate) (of map[string][]*x509.Certificate, found []*x509.Certificate) {
	found = slices.Clone(anchors)
	under := func(c *x509.Certificate) bool {
		if pki.SelfSigned(c) { // a bridge has signed the root that it stands for, as it were
			return slices.ContainsFunc(anchors, func(anchor *x509.Certificate) bool { return pki.SameKey(c, anchor) })
		}
		return slices.ContainsFunc(found, func(above *x509.Certificate) bool { return c.Equal(above) || pki.SignedBy(c, above) == nil })
	}
	var left []*x509.Certificate
	for _, key := range slices.Sorted(maps.Keys(held)) {
		left = append(left, held[key]...)
	}
	for more := true; more; {
		more = false
		left = slices.DeleteFunc(left, func(c *x509.Certificate) bool {
			if !under(c) {
				return false
			}
			if !slices.ContainsFunc(found[len(anchors):], c.Equal) {
				found, more = append(found, c), true
			}
			return true
		})
	}
	of = map[string][]*x509.Certificate{}
	for key, all := range held {
		if some := slices.DeleteFunc(slices.Clone(all), func(c *x509.Certificate) bool { return !under(c) }); len(some) > 0 {
			of[key] = some
		}
	}
	return of, found[len(anchors):]
}

// foundNames are the first of the certificates, and how many more there are.
func foundNames(found []*x509.Certificate, root *x509.Certificate) string {
	var names []string
	for i, c := range found {
		if i == mostNamed {
			names = append(names, fmt.Sprintf("%d more", len(found)-i))
			break
		}
		name := pki.Name(c)
		if pki.SameKey(c, root) {
			name = "the old root " + name
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}
