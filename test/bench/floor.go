package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/relaypki/relaypki/internal/kube"
)

// The floor is what no setup can go below on these servers: the objects that
// SetupMesh has left for one sample of a cluster, in Kubernetes and in Vault,
// read back and written for every cluster of a measurement, all at once and
// without a look at what is there, and then waited for.

// sampleOf is the name of the sample cluster on a lab's API server. It is no
// part of any other text in the objects, so that it can be replaced.
func sampleOf(context string) string { return "sample-of-" + context }

func samples() []workload {
	var all []workload
	for _, context := range hosts {
		all = append(all, workload{name: sampleOf(context), context: context})
	}
	return all
}

var kinds = []schema.GroupVersionResource{
	{Version: "v1", Resource: "secrets"},
	{Version: "v1", Resource: "serviceaccounts"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"},
	issuers,
	certificates,
}

var (
	namespaces         = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	issuers            = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "issuers"}
	certificates       = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "certificates"}
	kubernetesClusters = schema.GroupVersionResource{Group: "admin.gloo.solo.io", Version: "v2", Resource: "kubernetesclusters"}
)

// template is what a setup leaves for one cluster.
type template struct {
	// name is the cluster's, in the texts.
	name    string
	objects []manifest
	writes  []write
}

type manifest struct {
	gvr  schema.GroupVersionResource
	text string
}

// write is one to Vault. One that waits for the CAs has the intermediate's
// issuer in its text.
type write struct {
	path, text string
	afterCAs   bool
}

// capture reads back what a setup has left for a cluster in a namespace of its
// context; workload is false for the management cluster.
func (b *bench) capture(ctx context.Context, name, context, namespace string, workload bool) (template, error) {
	t := template{name: name}
	c, err := b.places[0].cluster(context)
	if err != nil {
		return t, err
	}
	for _, gvr := range kinds {
		found, err := c.dynamic.Resource(gvr).Namespace(namespace).List(ctx, metav1.ListOptions{LabelSelector: kube.LabelManagedBy + "=" + kube.ManagedBy})
		if err != nil {
			return t, err
		}
		for i := range found.Items {
			text, err := bare(&found.Items[i])
			if err != nil {
				return t, err
			}
			t.objects = append(t.objects, manifest{gvr, text})
		}
	}
	mount := "relaypki-" + meshName + "-" + name
	reads := []write{
		{path: "sys/policies/acl/" + mount},
		{path: "sys/auth/" + mount},
		{path: "auth/" + mount + "/config"},
		{path: "auth/" + mount + "/role/relaypki-issuer"},
	}
	if workload {
		reads = append(reads, write{path: "pki_relay/roles/relay-client-" + name, afterCAs: true})
	} else {
		reads = append(reads, write{path: "pki_relay/roles/gloo-mesh-mgmt-server-ca", afterCAs: true}, write{path: "pki_relay/roles/relaypki-probe", afterCAs: true})
	}
	for _, r := range reads {
		answer, err := b.vault.Logical().ReadWithContext(ctx, r.path)
		if err != nil || answer == nil {
			return t, fmt.Errorf("vault %s: there is nothing, or: %w", r.path, err)
		}
		data := answer.Data
		if strings.HasSuffix(r.path, "/config") { // the rest is empty, and Vault refuses two kinds of keys
			data = map[string]any{"bound_issuer": data["bound_issuer"], "jwt_validation_pubkeys": data["jwt_validation_pubkeys"]}
		}
		if strings.HasPrefix(r.path, "sys/auth/") {
			data = map[string]any{"type": data["type"], "description": data["description"]}
		}
		if r.afterCAs {
			data["issuer_ref"] = issuerPlace
		}
		text, err := json.Marshal(data)
		if err != nil {
			return t, err
		}
		r.text = string(text)
		t.writes = append(t.writes, r)
	}
	return t, nil
}

// Places in the templates' texts.
const (
	issuerPlace = "@issuer@"
	rootPlace   = "@root@"
)

// bare is the object as somebody would write it.
func bare(u *unstructured.Unstructured) (string, error) {
	object := map[string]any{}
	for field, value := range u.Object {
		if field != "status" {
			object[field] = value
		}
	}
	object["metadata"] = map[string]any{"name": u.GetName(), "namespace": u.GetNamespace(), "labels": u.GetLabels()}
	if u.GetKind() == "Secret" && u.GetName() == "relay-root-tls-secret" {
		object["data"] = map[string]any{"ca.crt": rootPlace}
	}
	text, err := json.Marshal(object)
	return string(text), err
}

// cas are made by calls that wait for each other.
type cas struct {
	issuerID, root string
}

func makeCAs(ctx context.Context, vault *vaultapi.Client) (cas, error) {
	var made cas
	w := writer{vault: vault}
	for mount, ttl := range map[string]string{"pki": "187600h", "pki_relay": "43800h"} {
		w.put(ctx, "sys/mounts/"+mount, map[string]any{"type": "pki", "config": map[string]any{"max_lease_ttl": ttl}})
	}
	root := w.put(ctx, "pki/root/generate/internal", map[string]any{"common_name": "Solo.io Root CA", "organization": "solo.io", "ttl": "187600h"})
	if w.failed != nil {
		return made, w.failed
	}
	made.root, _ = root["certificate"].(string)
	var err error
	if made.issuerID, _, err = signIntermediate(ctx, vault); err != nil {
		return made, err
	}
	if made.root == "" {
		return made, errors.New("vault answers without a root")
	}
	return made, nil
}

// signIntermediate makes an intermediate of the root, and gives its issuer's id
// and its certificate.
func signIntermediate(ctx context.Context, vault *vaultapi.Client) (issuer, certificate string, err error) {
	w := writer{vault: vault}
	csr := w.put(ctx, "pki_relay/intermediate/generate/internal", map[string]any{"common_name": "gloo-mesh-mgmt-server-ca", "organization": "mesh.solo.io"})
	signed := w.put(ctx, "pki/root/sign-intermediate", map[string]any{"csr": csr["csr"], "use_csr_values": true, "format": "pem_bundle", "ttl": "43800h"})
	set := w.put(ctx, "pki_relay/intermediate/set-signed", map[string]any{"certificate": signed["certificate"]})
	if w.failed != nil {
		return "", "", w.failed
	}
	mapping, _ := set["mapping"].(map[string]any)
	for id, key := range mapping {
		if key != "" {
			issuer = id
		}
	}
	// The root follows it in the bundle.
	bundle, _ := signed["certificate"].(string)
	const end = "-----END CERTIFICATE-----"
	own, _, whole := strings.Cut(bundle, end)
	if issuer == "" || !whole {
		return "", "", errors.New("vault answers without an intermediate or its issuer")
	}
	return issuer, own + end, nil
}

// writer makes calls of Vault that wait for each other, up to the first that fails.
type writer struct {
	vault  *vaultapi.Client
	failed error
}

func (w *writer) put(ctx context.Context, path string, data map[string]any) map[string]any {
	if w.failed != nil {
		return map[string]any{}
	}
	answer, err := w.vault.Logical().WriteWithContext(ctx, path, data)
	if err != nil {
		w.failed = fmt.Errorf("vault %s: %w", path, err)
	}
	if answer == nil {
		return map[string]any{}
	}
	return answer.Data
}

// floor writes everything for n clusters, waits for it, and says how long it took.
func (b *bench) floor(ctx context.Context, p *place, n int) (time.Duration, error) {
	vault, err := b.vaultAt(p.vault)
	if err != nil {
		return 0, err
	}
	cluster := map[string]clients{}
	for _, context := range contexts() {
		if cluster[context], err = p.cluster(context); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	f := floor{vault: vault, near: b.places[0].vault, far: p.vault, made: make(chan struct{}), hub: make(chan struct{})}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		defer close(f.made)
		f.cas, err = makeCAs(ctx, vault)
		return err
	})
	group.Go(func() error {
		return f.write(ctx, cluster[management], b.templates[management], workload{name: management, context: management}, "gloo-mesh")
	})
	perContext := map[string]int{management: 1}
	for _, w := range workloads(n) {
		perContext[w.context]++
		group.Go(func() error { return f.write(ctx, cluster[w.context], b.templates[w.context], w, w.name) })
		group.Go(func() error { return f.register(ctx, cluster[management], w.name) })
	}
	for context, want := range perContext {
		group.Go(func() error { return awaitCertificates(ctx, cluster[context], want) })
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

type floor struct {
	vault     *vaultapi.Client
	near, far string // Vault's address in the templates, and as it is to be
	made      chan struct{}
	cas       cas
	hub       chan struct{} // closed when the management cluster's namespace is there
	hubOnce   sync.Once
}

// write writes everything of one cluster: what cert-manager needs before the
// Issuer, and all else at once.
func (f *floor) write(ctx context.Context, c clients, t template, w workload, namespace string) error {
	text := func(s string) string {
		return strings.NewReplacer(t.name, w.name, f.near, f.far, issuerPlace, f.cas.issuerID,
			rootPlace, base64.StdEncoding.EncodeToString([]byte(f.cas.root))).Replace(s)
	}
	before, beforeCtx := errgroup.WithContext(ctx)
	before.Go(func() error {
		for _, write := range t.writes {
			if write.afterCAs {
				<-f.made
			}
			var data map[string]any
			if err := json.Unmarshal([]byte(text(write.text)), &data); err != nil {
				return err
			}
			path := strings.ReplaceAll(write.path, t.name, w.name)
			if _, err := f.vault.Logical().WriteWithContext(beforeCtx, path, data); err != nil {
				return fmt.Errorf("vault %s: %w", path, err)
			}
		}
		return nil
	})
	before.Go(func() error {
		ns := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": namespace}}}
		if _, err := c.dynamic.Resource(namespaces).Create(beforeCtx, ns, metav1.CreateOptions{}); err != nil {
			return err
		}
		if w.name == management {
			f.hubOnce.Do(func() { close(f.hub) })
		}
		all, allCtx := errgroup.WithContext(beforeCtx)
		for _, m := range t.objects {
			if m.gvr == issuers || m.gvr == certificates {
				continue
			}
			all.Go(func() error {
				if strings.Contains(m.text, rootPlace) {
					<-f.made
				}
				return create(allCtx, c, m.gvr, text(m.text))
			})
		}
		return all.Wait()
	})
	if err := before.Wait(); err != nil {
		return err
	}
	for _, gvr := range []schema.GroupVersionResource{issuers, certificates} {
		for _, m := range t.objects {
			if m.gvr != gvr {
				continue
			}
			if err := create(ctx, c, gvr, text(m.text)); err != nil {
				return err
			}
		}
	}
	return nil
}

func create(ctx context.Context, c clients, gvr schema.GroupVersionResource, text string) error {
	var u unstructured.Unstructured
	if err := json.Unmarshal([]byte(text), &u.Object); err != nil {
		return err
	}
	_, err := c.dynamic.Resource(gvr).Namespace(u.GetNamespace()).Create(ctx, &u, metav1.CreateOptions{})
	return err
}

func (f *floor) register(ctx context.Context, c clients, name string) error {
	select {
	case <-f.hub:
	case <-ctx.Done():
		return ctx.Err()
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "admin.gloo.solo.io/v2", "kind": "KubernetesCluster",
		"metadata": map[string]any{"name": name, "namespace": "gloo-mesh"}, "spec": map[string]any{"clusterDomain": "cluster.local"},
	}}
	_, err := c.dynamic.Resource(kubernetesClusters).Namespace("gloo-mesh").Create(ctx, u, metav1.CreateOptions{})
	return err
}

// awaitCertificates watches until that many Certificates of an API server are Ready.
func awaitCertificates(ctx context.Context, c clients, want int) error {
	w, err := c.dynamic.Resource(certificates).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	defer w.Stop()
	ready := map[string]bool{}
	late := time.After(5 * time.Minute)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			return fmt.Errorf("%d of %d certificates are Ready after five minutes", len(ready), want)
		case event, ok := <-w.ResultChan():
			if !ok {
				return fmt.Errorf("the watch of Certificates has ended")
			}
			u, ok := event.Object.(*unstructured.Unstructured)
			if ok && isReady(u) {
				ready[u.GetNamespace()] = true
			}
			if len(ready) == want {
				return nil
			}
		}
	}
}

func isReady(u *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok && c["type"] == "Ready" && c["status"] == "True" {
			return true
		}
	}
	return false
}
