package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	vaultapi "github.com/hashicorp/vault/api"
	"go.temporal.io/sdk/client"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// oneOfEach fails the test unless a setup has left exactly what it should and
// no second anything: one root, one intermediate, one role and login per
// cluster, one object of each name, one issuance of each certificate, no lock,
// no wedged Helm release.
func (w *world) oneOfEach(t *testing.T) {
	t.Helper()
	v := w.vault(t)
	same := func(what string, got, want []string) {
		t.Helper()
		sort.Strings(got)
		sort.Strings(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	same("keys in pki", names(t, v, "pki/keys"), []string{"relay-root-g1"})
	same("issuers in pki", names(t, v, "pki/issuers"), []string{"relay-root-g1"})
	same("keys in pki_relay", names(t, v, "pki_relay/keys"), []string{"relay-intermediate-g1"})
	same("issuers in pki_relay", names(t, v, "pki_relay/issuers"), []string{"relay-intermediate-g1", "relay-root-g1"})
	if certificates := list(t, v, "pki/certs"); len(certificates) != 2 {
		t.Errorf("pki has issued %d certificates, want 2: the root and one intermediate", len(certificates))
	}
	roles, auths := []string{"gloo-mesh-mgmt-server-ca", "relaypki-probe"}, []string{"approle/", "token/"}
	policies := []string{"default", "root", "relaypki-onboard", "relaypki-operate", "relaypki-refresh"}
	for _, c := range w.clusters {
		roles = append(roles, "relay-client-"+c)
	}
	for _, c := range w.all() {
		auths = append(auths, "relaypki-demo-"+c+"/")
		policies = append(policies, "relaypki-demo-"+c)
		same("roles of the login of "+c, list(t, v, "auth/relaypki-demo-"+c+"/role"), []string{"relaypki-issuer"})
	}
	same("roles", list(t, v, "pki_relay/roles"), roles)
	same("policies", list(t, v, "sys/policies/acl"), policies)
	mounts, err := v.Sys().ListAuth()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for path := range mounts {
		found = append(found, path)
	}
	same("auth mounts", found, auths)
	same("token roles", list(t, v, "auth/token/roles"), nil)
	engines, err := v.Sys().ListMounts()
	if err != nil {
		t.Fatal(err)
	}
	found = nil
	for path, engine := range engines {
		if engine.Type == "pki" {
			found = append(found, path)
		}
	}
	same("PKI mounts", found, []string{"pki/", "pki_relay/"})

	ctx := context.Background()
	for _, name := range w.all() {
		c := w.cluster(t, name)
		certificate := "relay-client-tls"
		releases := []string{"cert-manager", "gloo-platform", "gloo-platform-crds"}
		if name == management {
			certificate = "relay-server-tls"
		}
		certificates, err := c.cm.CertmanagerV1().Certificates("").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, x := range certificates.Items {
			got = append(got, x.Namespace+"/"+x.Name)
		}
		same("certificates in "+name, got, []string{"gloo-mesh/" + certificate})
		issuers, err := c.cm.CertmanagerV1().Issuers("").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got = nil
		for _, x := range issuers.Items {
			got = append(got, x.Namespace+"/"+x.Name)
		}
		same("issuers in "+name, got, []string{"gloo-mesh/vault-issuer"})
		same("Helm releases in "+name, helmReleases(t, c), releases)
		requests, err := c.cm.CertmanagerV1().CertificateRequests("").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got = nil
		for _, x := range requests.Items {
			got = append(got, x.Annotations[cmapi.CertificateNameKey]+" revision "+x.Annotations[cmapi.CertificateRequestRevisionAnnotationKey])
		}
		same("certificate requests in "+name, got, []string{certificate + " revision 1"})
		for kind, want := range ours(name) {
			same(kind+" in "+name, w.objectsIn(t, c, kind), want)
		}
	}
	same("schedules", w.schedules(t), []string{"relaypki-maintain-demo", "relaypki-refresh-demo", "relaypki-verify-demo"})
	registered, err := w.cluster(t, management).dynamic.Resource(schema.GroupVersionResource{Group: "admin.gloo.solo.io", Version: "v2", Resource: "kubernetesclusters"}).
		List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range registered.Items {
		got = append(got, x.GetName())
	}
	same("registrations", got, slices.Clone(w.clusters))
}

// ours are the names of what a setup makes in the relay's namespace of a
// cluster, by kind. cert-manager's keys and Helm's releases are not among them.
func ours(cluster string) map[string][]string {
	want := map[string][]string{
		"secrets":         {"relay-client-tls-secret", "relay-root-tls-secret", "relay-identity-token-secret", "relaypki-vault-ca"},
		"configmaps":      nil,
		"leases":          nil,
		"serviceaccounts": {"relaypki-issuer"},
		"roles":           {"relaypki-issuer"},
		"rolebindings":    {"relaypki-issuer"},
	}
	if cluster == management {
		want["secrets"] = []string{"relay-server-tls-secret", "relay-identity-token-secret", "relaypki-vault-ca"}
		want["configmaps"] = []string{"relaypki-mesh-demo"}
	}
	return want
}

// objectsIn are the objects of a kind in the relay's namespace that a chart did
// not bring: all Secrets, and of the others those that are relaypki's.
func (w *world) objectsIn(t *testing.T, c clients, kind string) []string {
	t.Helper()
	gvr, ok := map[string]schema.GroupVersionResource{
		"leases":       {Group: "coordination.k8s.io", Version: "v1", Resource: kind},
		"roles":        {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: kind},
		"rolebindings": {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: kind},
	}[kind]
	options := metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=relaypki"}
	if !ok {
		gvr = schema.GroupVersionResource{Version: "v1", Resource: kind}
	}
	if kind == "secrets" {
		options.LabelSelector = "owner!=helm"
	}
	items, err := c.dynamic.Resource(gvr).Namespace("gloo-mesh").List(context.Background(), options)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, x := range items.Items {
		names = append(names, x.GetName())
	}
	return names
}

// schedules are the ids of all schedules.
func (w *world) schedules(t *testing.T) []string {
	t.Helper()
	all, err := w.temporal(t).ScheduleClient().List(context.Background(), client.ScheduleListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for all.HasNext() {
		schedule, err := all.Next()
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, schedule.ID)
	}
	return ids
}

// helmReleases are the names of the releases that are deployed; one in any
// other state is an error.
func helmReleases(t *testing.T, c clients) []string {
	t.Helper()
	secrets, err := c.kube.CoreV1().Secrets("").List(context.Background(), metav1.ListOptions{LabelSelector: "owner=helm"})
	if err != nil {
		t.Fatal(err)
	}
	var deployed []string
	newest := map[string]int{}
	revision := func(s corev1.Secret) int {
		n, err := strconv.Atoi(s.Labels["version"])
		if err != nil {
			t.Fatalf("Helm release %s: %v", s.Name, err)
		}
		return n
	}
	for _, s := range secrets.Items {
		newest[s.Labels["name"]] = max(newest[s.Labels["name"]], revision(s))
	}
	for _, s := range secrets.Items {
		if newest[s.Labels["name"]] == revision(s) && s.Labels["status"] != "deployed" {
			t.Errorf("the newest revision of Helm release %s is %s", s.Name, s.Labels["status"])
		}
		switch status := s.Labels["status"]; status {
		case "deployed":
			deployed = append(deployed, s.Labels["name"])
		case "superseded", "failed":
			// An older revision; the newest decides.
		default:
			t.Errorf("Helm release %s is %s", s.Name, status)
		}
	}
	return deployed
}

// list is what Vault lists under a path.
func list(t *testing.T, v *vaultapi.Client, path string) []string {
	t.Helper()
	secret, err := v.Logical().List(path)
	if err != nil {
		t.Fatal(err)
	}
	if secret == nil {
		return nil
	}
	var keys []string
	for _, k := range secret.Data["keys"].([]any) {
		keys = append(keys, k.(string))
	}
	return keys
}

// names are the names of the issuers or keys of a mount.
func names(t *testing.T, v *vaultapi.Client, path string) []string {
	t.Helper()
	secret, err := v.Logical().List(path)
	if err != nil || secret == nil {
		t.Fatalf("list %s: %v, %v", path, secret, err)
	}
	var out []string
	for id, info := range secret.Data["key_info"].(map[string]any) {
		m := info.(map[string]any)
		name, _ := m["issuer_name"].(string)
		if name == "" {
			name, _ = m["key_name"].(string)
		}
		if name == "" {
			name = "unnamed " + id
		}
		out = append(out, name)
	}
	return out
}

// restless are kinds that somebody else writes all the time.
var restless = map[string]bool{"events": true, "leases": true, "nodes": true, "endpoints": true, "endpointslices": true}

// objects are the resource versions of everything that is stored in a cluster.
func (w *world) objects(t *testing.T, context_ string) map[string]string {
	t.Helper()
	c := w.cluster(t, context_)
	lists, err := c.kube.Discovery().ServerPreferredResources()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range l.APIResources {
			if restless[r.Name] || !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "get") {
				continue
			}
			items, err := c.dynamic.Resource(gv.WithResource(r.Name)).List(context.Background(), metav1.ListOptions{})
			if err != nil {
				t.Fatalf("list %s: %v", r.Name, err)
			}
			for _, x := range items.Items {
				out[fmt.Sprintf("%s %s/%s", r.Name, x.GetNamespace(), x.GetName())] = x.GetResourceVersion()
			}
		}
	}
	return out
}

// vaultConfiguration is everything that a setup configures in Vault.
func (w *world) vaultConfiguration(t *testing.T) map[string]any {
	t.Helper()
	v := w.vault(t)
	out := map[string]any{}
	read := func(path string) {
		secret, err := v.Logical().Read(path)
		if err != nil {
			t.Fatalf("read %s: %v", path, err)
		}
		if secret != nil {
			out[path] = secret.Data
		}
	}
	read("sys/mounts")
	read("sys/auth")
	for _, policy := range list(t, v, "sys/policies/acl") {
		read("sys/policies/acl/" + policy)
	}
	for _, mount := range []string{"pki", "pki_relay"} {
		for _, path := range []string{"config/issuers", "config/keys", "config/urls", "config/crl"} {
			read(mount + "/" + path)
		}
		for _, id := range list(t, v, mount+"/issuers") {
			read(mount + "/issuer/" + id)
		}
		for _, id := range list(t, v, mount+"/roles") {
			read(mount + "/roles/" + id)
		}
	}
	for _, c := range w.all() {
		mount := "auth/relaypki-demo-" + c
		read(mount + "/config")
		for _, role := range list(t, v, mount+"/role") {
			read(mount + "/role/" + role)
		}
	}
	return out
}

// differences are the keys whose values differ.
func differences[V any](before, after map[string]V) []string {
	var out []string
	for k, v := range before {
		if now, ok := after[k]; !ok {
			out = append(out, k+" is gone")
		} else if !reflect.DeepEqual(v, now) {
			out = append(out, k+" has changed")
		}
	}
	for k := range after {
		if _, ok := before[k]; !ok {
			out = append(out, k+" is new")
		}
	}
	sort.Strings(out)
	return out
}

// auditLines are the lines of an audit log after an offset, decoded.
func auditLines(t *testing.T, log []byte) []map[string]any {
	t.Helper()
	var out []map[string]any
	for _, line := range strings.Split(string(log), "\n") {
		if strings.TrimSpace(line) == "" {
			continue
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("an audit log has a line that is not JSON: %v\n%s", err, line)
		}
		out = append(out, m)
	}
	return out
}
