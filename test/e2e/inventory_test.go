package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"

	vaultapi "github.com/hashicorp/vault/api"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// oneOfEach fails the test unless a setup has left exactly what it should and
// no second anything: one root, one intermediate, one role and login per
// cluster, one object of each name, no wedged Helm release.
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
	}
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

// helmReleases are the names of the releases that are deployed; one in any
// other state is an error.
func helmReleases(t *testing.T, c clients) []string {
	t.Helper()
	secrets, err := c.kube.CoreV1().Secrets("").List(context.Background(), metav1.ListOptions{LabelSelector: "owner=helm"})
	if err != nil {
		t.Fatal(err)
	}
	var deployed []string
	for _, s := range secrets.Items {
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
