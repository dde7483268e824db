package cluster

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/site"
)

func TestCertificatesIn(t *testing.T) {
	root, next := pkitest.Root(t, "root").Cert, pkitest.Root(t, "next").Cert
	text := string(pki.EncodeChain(root))
	indented := "caCertificates: |\n    " + strings.ReplaceAll(text, "\n", "\n    ")
	escaped, err := json.Marshal(map[string]string{"ca": text})
	if err != nil {
		t.Fatal(err)
	}
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("key")}))
	for name, c := range map[string]struct {
		text string
		want []*x509.Certificate
	}{
		"nothing":                    {"", nil},
		"one":                        {text, []*x509.Certificate{root}},
		"two":                        {text + string(pki.EncodeChain(next)), []*x509.Certificate{root, next}},
		"behind a key":               {key + text, []*x509.Certificate{root}},
		"a key alone":                {key, nil},
		"indented":                   {indented, []*x509.Certificate{root}},
		"in JSON":                    {string(escaped), []*x509.Certificate{root}},
		"with Windows' ends":         {strings.ReplaceAll(text, "\n", "\r\n"), []*x509.Certificate{root}},
		"cut off, and a whole one":   {text[:200] + "\n" + text, []*x509.Certificate{root}},
		"no certificate, and one":    {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + text, []*x509.Certificate{root}},
		"in base64, which is no PEM": {base64.StdEncoding.EncodeToString([]byte(text)), nil},
	} {
		if got := certificatesIn([]byte(c.text)); !sameCertificates(got, c.want) {
			t.Errorf("%s: %s, want %s", name, anchorNames(got), anchorNames(c.want))
		}
	}
}

func TestConsumed(t *testing.T) {
	old, next, theirs := pkitest.Root(t, "root"), pkitest.Root(t, "root G2"), pkitest.Root(t, "root")
	i2, i3, bridge := old.Intermediate(t, "relay"), next.Intermediate(t, "relay G3"), old.Cross(t, next)
	leaf, newer, foreign := i2.Leaf(t, []string{"telemetry"}), i3.Leaf(t, []string{"newer"}), theirs.Leaf(t, []string{"foreign"})
	anew := old.Cross(t, old) // self-signed once more
	type keys map[string][]pkitest.Pair
	for name, c := range map[string]struct {
		held  keys
		want  []string
		holds []string // names, in order
	}{
		"nothing":                           {nil, nil, nil},
		"the root":                          {keys{"ca.crt": {old}}, []string{"ca.crt"}, []string{"the old root " + pki.Name(old.Cert)}},
		"one issued anew for its key":       {keys{"ca.crt": {anew}}, []string{"ca.crt"}, []string{"the old root " + pki.Name(anew.Cert)}},
		"among others":                      {keys{"a": {theirs}, "b": {theirs, old}}, []string{"b"}, []string{"the old root " + pki.Name(old.Cert)}},
		"another root of its name":          {keys{"ca.crt": {theirs}, "tls.crt": {foreign}}, nil, nil},
		"a chain":                           {keys{"tls.crt": {leaf, i2}}, []string{"tls.crt"}, []string{pki.Name(i2.Cert), pki.Name(leaf.Cert)}},
		"its intermediate is another key's": {keys{"a.crt": {leaf}, "ca.crt": {i2}}, []string{"a.crt", "ca.crt"}, []string{pki.Name(i2.Cert), pki.Name(leaf.Cert)}},
		"a leaf whose issuer is not there":  {keys{"tls.crt": {leaf}}, nil, nil},
		"a chain over the bridge":           {keys{"tls.crt": {newer, i3, bridge}}, []string{"tls.crt"}, []string{pki.Name(bridge.Cert), pki.Name(i3.Cert), pki.Name(newer.Cert)}},
		"a chain under the new root":        {keys{"tls.crt": {newer, i3}, "ca.crt": {next}}, nil, nil},
		"the new root beside the bridge":    {keys{"ca.crt": {next}, "other": {bridge}}, []string{"other"}, []string{pki.Name(bridge.Cert)}},
	} {
		held := map[string][]*x509.Certificate{}
		for key, pairs := range c.held {
			for _, p := range pairs {
				held[key] = append(held[key], p.Cert)
			}
		}
		got, holds := consumed(held, old.Cert)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: keys %q, want %q", name, got, c.want)
		}
		if holds != strings.Join(c.holds, ", ") {
			t.Errorf("%s: %s, want %q", name, holds, c.holds)
		}
	}

	// An intermediate whose root is not known is found all the same.
	if of, _ := under(map[string][]*x509.Certificate{"x": {i2.Cert, theirs.Cert}}, []*x509.Certificate{i2.Cert}); len(of["x"]) != 1 || !of["x"][0].Equal(i2.Cert) {
		t.Errorf("an intermediate alone: %v", of)
	}

	many := map[string][]*x509.Certificate{"a": {leaf.Cert, i2.Cert, old.Cert, bridge.Cert}, "b": {old.Cert, i2.Leaf(t, []string{"x"}).Cert, i2.Cert}}
	if _, holds := consumed(many, old.Cert); !strings.HasSuffix(holds, ", 2 more") || strings.Count(holds, "serial") != 3 {
		t.Errorf("five certificates: %s", holds)
	}
}

// The cluster is larger than a page, and not all of it may be listed.
func TestFindConsumers(t *testing.T) {
	old := pkitest.Root(t, "root")
	text := string(pki.EncodeChain(old.Cert))
	var objects []runtime.Object
	for i := range 3*pageSize + 1 {
		objects = append(objects, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: fmt.Sprintf("trust-%03d", i)}, Data: map[string]string{"bundle": text, "other": "x"}})
	}
	secret := func(namespace, name string) {
		objects = append(objects, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: map[string][]byte{"ca.crt": []byte(text), "tls.key": []byte("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")}})
	}
	secret("gloo-mesh", "ours")
	secret("gloo-mesh", "theirs")
	secret("mesh2", "ours")
	secret("mesh2", "telemetry")
	secret("apps", "istio")
	objects = append(objects, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "gloo-mesh", Name: "binary"}, BinaryData: map[string][]byte{"ca": []byte(text)}})
	known := []string{"Secret gloo-mesh/ours", "Secret mesh2/ours"}

	for _, c := range []struct {
		name   string
		denied func(resource, namespace string) bool
		want   []string // of the Secrets, and the ConfigMap of its own
		more   int
		looked int
		unseen []string
	}{
		{
			name: "all may be listed", denied: func(string, string) bool { return false },
			want: []string{"Secret apps/istio", "Secret gloo-mesh/theirs", "Secret mesh2/telemetry"}, more: 3*pageSize + 1 + 1 + 3 - mostConsumers, looked: 3*pageSize + 1 + 1 + 3,
		},
		{
			name: "only namespaces of ours", denied: func(_, namespace string) bool { return namespace != "gloo-mesh" && namespace != "mesh2" },
			want: []string{"ConfigMap gloo-mesh/binary", "Secret gloo-mesh/theirs", "Secret mesh2/telemetry"}, looked: 3,
			unseen: []string{
				"ConfigMaps of other namespaces than gloo-mesh and mesh2: the worker may not list them (apply deploy/rbac/consumers.yaml to have them looked through)",
				"Secrets of other namespaces than gloo-mesh and mesh2: the worker may not list them (apply deploy/rbac/consumers.yaml to have them looked through)",
			},
		},
		{
			name: "no ConfigMap at all", denied: func(resource, namespace string) bool { return resource == "configmaps" },
			want: []string{"Secret apps/istio", "Secret gloo-mesh/theirs", "Secret mesh2/telemetry"}, looked: 3,
			unseen: []string{"ConfigMaps: the worker may not list them (apply deploy/rbac/consumers.yaml to have them looked through)"},
		},
	} {
		client := fake.NewClientset(objects...)
		client.PrependReactor("list", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
			if resource := action.GetResource(); c.denied(resource.Resource, action.GetNamespace()) {
				return true, nil, apierrors.NewForbidden(resource.GroupResource(), "", nil)
			}
			return paged(t, client, action)
		})
		result, err := findConsumers(t.Context(), &site.Cluster{Name: "cluster1", Kube: client}, old.Cert, known)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		var got []string
		for _, consumer := range result.Consumers {
			if !strings.HasPrefix(consumer.Object, "ConfigMap apps/trust-") {
				got = append(got, consumer.Object)
			}
			if len(consumer.Keys) != 1 || consumer.Holds != "the old root "+pki.Name(old.Cert) {
				t.Errorf("%s: %+v", c.name, consumer)
			}
		}
		if c.more > 0 { // the last ones by name are cut off
			c.want = []string{}
			if len(result.Consumers) != mostConsumers || result.Consumers[0].Object != "ConfigMap apps/trust-000" {
				t.Errorf("%s: %d consumers", c.name, len(result.Consumers))
			}
		}
		if !slices.Equal(got, c.want) || result.More != c.more || result.Looked != c.looked || !slices.Equal(result.Unseen, c.unseen) {
			t.Errorf("%s: %q, %d more, of %d, unseen %q", c.name, got, result.More, result.Looked, result.Unseen)
		}
	}
}

// paged answers as an API server does, which the fake does not: no more than the
// limit, and from where it goes on.
func paged(t *testing.T, client *fake.Clientset, action clienttesting.Action) (bool, runtime.Object, error) {
	options := action.(clienttesting.ListActionImpl).GetListOptions()
	if options.Limit <= 0 {
		t.Error("a list without a limit")
	}
	from, _ := strconv.Atoi(options.Continue)
	resource, namespace := action.GetResource(), action.GetNamespace()
	all, err := client.Tracker().List(resource, resource.GroupVersion().WithKind(map[string]string{"secrets": "Secret", "configmaps": "ConfigMap"}[resource.Resource]), namespace)
	if err != nil {
		return true, nil, err
	}
	next := func(n int) (int, string) {
		if until := from + int(options.Limit); until < n {
			return until, strconv.Itoa(until)
		}
		return n, ""
	}
	switch list := all.(type) {
	case *corev1.SecretList:
		until, more := next(len(list.Items))
		list.Items, list.Continue = list.Items[from:until], more
	case *corev1.ConfigMapList:
		until, more := next(len(list.Items))
		list.Items, list.Continue = list.Items[from:until], more
	}
	return true, all, nil
}

// The lab's worker may list what the charts' part of its rights lets it, and no more.
func TestLabFindConsumers(t *testing.T) {
	a, env, spec := lab(t)
	old := pkitest.Root(t, "an old root")
	c, err := a.Clients.Cluster("cluster1")
	if err != nil {
		t.Fatal(err)
	}
	secrets := c.Kube.CoreV1().Secrets(spec.Namespace)
	for _, name := range []string{"consumer-theirs", "consumer-ours"} {
		_, err := secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{"ca.crt": pki.EncodeChain(old.Cert)}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := secrets.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	in := FindConsumersInput{Context: "cluster1", RootPEM: string(pki.EncodeChain(old.Cert)), Known: []string{"Secret " + spec.Namespace + "/consumer-ours"}}
	result := must[FindConsumersResult](t, env, a.FindConsumers, in)
	want := Consumer{Object: "Secret " + spec.Namespace + "/consumer-theirs", Keys: []string{"ca.crt"}, Holds: "the old root " + pki.Name(old.Cert)}
	if len(result.Consumers) != 1 || !reflect.DeepEqual(result.Consumers[0], want) || result.Looked == 0 {
		t.Errorf("%+v", result)
	}
	if len(result.Unseen) != 2 || !strings.HasPrefix(result.Unseen[0], "ConfigMaps: ") || !strings.HasPrefix(result.Unseen[1], "Secrets of other namespaces than cert-manager and gloo-mesh: ") {
		t.Errorf("unseen: %q", result.Unseen)
	}
	in.RootPEM = "x"
	if _, err := call[FindConsumersResult](t, env, a.FindConsumers, in); failure.KindOf(err) != failure.InvalidInput {
		t.Errorf("no root: %v", err)
	}
}
