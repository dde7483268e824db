package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"go.uber.org/zap"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/check/observe/observetest"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/inventory"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/site"
)

// store is an API server with a mesh's objects, and a management server of one replica
// with real TLS.
type store struct {
	Activities
	mu      sync.Mutex
	objects map[string]any
	loaded  *tls.Config
	// slow has it answer nothing but what is asked first.
	slow bool
}

// now makes certificates valid by the real clock, which crypto/tls uses.
func now(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
}

func newStore(t *testing.T) *store {
	t.Helper()
	s := &store{objects: map[string]any{"/version": map[string]string{"gitVersion": "v1.37.2"}}}
	address := observetest.Relay(t, &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.loaded, nil
	}})
	mux := http.NewServeMux()
	mux.Handle("/api/v1/namespaces/gloo-mesh/pods/server-0/portforward", observetest.PortForward(map[string]string{"9900": address}))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		object, ok := s.objects[r.URL.Path]
		slow := s.slow && r.URL.Path != "/version"
		s.mu.Unlock()
		if slow {
			<-r.Context().Done()
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			object = metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Reason: metav1.StatusReasonNotFound, Code: 404, Message: "not found"}
		}
		if status, is := object.(metav1.Status); is && ok {
			w.WriteHeader(int(status.Code))
		}
		if err := json.NewEncoder(w).Encode(object); err != nil {
			t.Error(err)
		}
	})
	api := httptest.NewServer(mux)
	t.Cleanup(api.Close)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- {name: up, cluster: {server: %q}}
- {name: down, cluster: {server: "http://127.0.0.1:1"}}
contexts:
- {name: up, context: {cluster: up}}
- {name: down, context: {cluster: down}}
`, api.URL)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Clients = site.NewClients(site.Config{Kubeconfig: file, Clusters: []site.ClusterConfig{{Name: "mgmt", Context: "up"}, {Name: "cluster1", Context: "up"}, {Name: "cluster2", Context: "down"}}}, zap.NewNop())
	return s
}

func (s *store) put(path string, object any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[path] = object
}

// secret stores one with certificates, and with a key that no result may have.
func (s *store) secret(name string, chain, ca []pkitest.Pair) {
	data := map[string][]byte{"tls.key": []byte("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")}
	for key, pairs := range map[string][]pkitest.Pair{"tls.crt": chain, "ca.crt": ca} {
		for _, p := range pairs {
			data[key] = append(data[key], pki.EncodeChain(p.Cert)...)
		}
	}
	s.put("/api/v1/namespaces/gloo-mesh/secrets/"+name, corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, Data: data})
}

// server has one replica, which has loaded these.
func (s *store) server(chain []pkitest.Pair, trusts pkitest.Pair, asks tls.ClientAuthType) {
	labels := map[string]string{"app": "server"}
	s.put("/apis/apps/v1/namespaces/gloo-mesh/deployments/"+mesh.ServerDeployment, appsv1.Deployment{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}, Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}}})
	s.put("/api/v1/namespaces/gloo-mesh/pods", corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []corev1.Pod{{
		ObjectMeta: metav1.ObjectMeta{Name: "server-0", Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "server"}}},
		Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}}})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loaded = &tls.Config{Certificates: []tls.Certificate{chain[0].TLS(chain[1:]...)}, ClientAuth: asks, ClientCAs: pki.Pool([]*x509.Certificate{trusts.Cert})}
}

func (s *store) look(t *testing.T, in InventoryClusterInput) inventory.Look {
	t.Helper()
	if in.Timeout.Duration == 0 {
		in.Timeout = mesh.Duration{Duration: 20 * time.Second}
	}
	l := must[inventory.Look](t, environment(&s.Activities), s.InventoryCluster, in)
	if data, err := json.Marshal(l); err != nil || strings.Contains(string(data), "BEGIN") || strings.Contains(string(data), "c2VjcmV0") {
		t.Errorf("a result with a key, or with certificates in PEM: %s, %v", data, err)
	}
	return l
}

// lines are a look's items, each in a line.
func lines(l inventory.Look) []string {
	var all []string
	for _, i := range l.Items {
		at := slices.IndexFunc(l.Certificates, func(c inventory.Certificate) bool { return c.Fingerprint == i.Certificate })
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s|%s|%s|%s|%s|%s|%s", i.Kind, i.Cluster, i.Object, i.Key, l.Certificates[at].Subject, i.Served, i.Note)))
	}
	return all
}

func compare(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestInventoryOfTheManagementCluster(t *testing.T) {
	s := newStore(t)
	root, other := pkitest.Root(t, "root", now), pkitest.Root(t, "other", now)
	relay := root.Intermediate(t, "relay", now)
	leaf, newer := relay.Leaf(t, []string{"server"}, now), relay.Leaf(t, []string{"server"}, now)
	renewal := time.Now().Add(30 * time.Minute).UTC().Truncate(time.Second)
	s.put("/apis/cert-manager.io/v1/namespaces/gloo-mesh/certificates/relay-server-tls", cmapi.Certificate{
		TypeMeta: metav1.TypeMeta{APIVersion: "cert-manager.io/v1", Kind: "Certificate"}, Status: cmapi.CertificateStatus{RenewalTime: &metav1.Time{Time: renewal}}})
	stored := []pkitest.Pair{leaf, relay}
	s.secret("relay-server-tls-secret", stored, []pkitest.Pair{root})
	in := InventoryClusterInput{Spec: mesh.Spec{Mesh: "demo"}.WithDefaults(), CAsPEM: []string{string(pki.EncodeChain(root.Cert)), string(pki.EncodeChain(relay.Cert))}}
	const object = "Secret gloo-mesh/relay-server-tls-secret"
	ends := func(leafNote, trustNote string) []string {
		return []string{"server-leaf|mgmt|" + object + "|tls.crt|CN=server|" + leafNote, "|mgmt|" + object + "|tls.crt|CN=relay||", "trust-store|mgmt|" + object + "|ca.crt|CN=root|" + trustNote}
	}

	compare(t, "no server", lines(s.look(t, in)), ends("not seen|the management server's Pods: not found", "not seen|the management server's Pods: not found"))
	s.server(stored, root, tls.RequireAndVerifyClientCert)
	l := s.look(t, in)
	compare(t, "as it is stored", lines(l), ends("same|", "same|"))
	if !l.Items[0].Renewal.Equal(renewal) || len(l.Missing)+len(l.Unseen) > 0 {
		t.Errorf("renewal %s, missing %v, unseen %v", l.Items[0].Renewal, l.Missing, l.Unseen)
	}
	s.server([]pkitest.Pair{leaf, relay, root}, root, tls.RequireAndVerifyClientCert)
	compare(t, "with the root at the end", lines(s.look(t, in)), ends("same|", "same|"))
	s.server([]pkitest.Pair{newer, relay}, other, tls.RequireAndVerifyClientCert)
	compare(t, "something else", lines(s.look(t, in)), append([]string{
		"server-leaf|mgmt|Pod gloo-mesh/server-0|served|CN=server|differs|", "|mgmt|Pod gloo-mesh/server-0|served|CN=relay|differs|"},
		ends(`differs|Pod server-0 serves `+pki.Name(newer.Cert)+` in a chain of 2`, "differs|Pod server-0 accepts CN=other")...))
	s.server(stored, root, tls.NoClientCert)
	compare(t, "nobody is asked for a certificate", lines(s.look(t, in)), ends("same|", "differs|Pod server-0 asks for no client certificate"))
}

func TestInventoryOfAWorkloadCluster(t *testing.T) {
	root, next, theirs := pkitest.Root(t, "root", now), pkitest.Root(t, "next", now), pkitest.Root(t, "theirs", now)
	relay := root.Intermediate(t, "relay", now)
	leaf := relay.Leaf(t, []string{"cluster1"}, now)
	spec := mesh.Spec{Mesh: "demo", Workloads: []mesh.Workload{{Name: "cluster1"}}}.WithDefaults()
	in := InventoryClusterInput{Spec: spec, Cluster: "cluster1", CAsPEM: []string{string(pki.EncodeChain(root.Cert)), string(pki.EncodeChain(relay.Cert)), string(pki.EncodeChain(next.Cert))}}
	const own, trust = "Secret gloo-mesh/relay-client-tls-secret", "Secret gloo-mesh/relay-root-tls-secret"
	s := newStore(t)
	missing := s.look(t, in)
	if len(missing.Items) > 0 || len(missing.Missing) != 3 || missing.Missing[0].Cluster != "cluster1" {
		t.Errorf("nothing is there: %+v", missing)
	}
	s.secret("relay-client-tls-secret", []pkitest.Pair{leaf, relay}, []pkitest.Pair{root})
	s.secret("relay-root-tls-secret", nil, []pkitest.Pair{root, next})
	want := []string{
		"client-leaf|cluster1|" + own + "|tls.crt|CN=cluster1|not seen|", "|cluster1|" + own + "|tls.crt|CN=relay||",
		"trust-store|cluster1|" + own + "|ca.crt|CN=root|not seen|" + inventory.Unused,
		"trust-store|cluster1|" + trust + "|ca.crt|CN=root|not seen|", "trust-store|cluster1|" + trust + "|ca.crt|CN=next|not seen|",
	}
	compare(t, "an agent", lines(s.look(t, in)), want)
	byOwn := in
	byOwn.Spec.Workloads = []mesh.Workload{{Name: "cluster1", Agent: mesh.Agent{Trust: mesh.TrustOwn}}}
	compare(t, "one that trusts by its own", lines(s.look(t, byOwn)), []string{want[0], want[1], strings.TrimSuffix(want[2], inventory.Unused), want[3] + inventory.Unused, want[4] + inventory.Unused})

	// Several CAs at once, and what is the mesh's own is no consumer.
	in.Consumers, in.Known = true, []string{own, trust}
	held := func(name string, pairs ...pkitest.Pair) corev1.Secret {
		one := corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: name}, Data: map[string][]byte{}}
		for _, p := range pairs {
			one.Data["x"] = append(one.Data["x"], pki.EncodeChain(p.Cert)...)
		}
		return one
	}
	list := corev1.SecretList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "SecretList"}, Items: []corev1.Secret{
		held("leaf-alone", leaf), held("theirs", theirs), held("trusts-next", next), held("both", root, next),
		{ObjectMeta: metav1.ObjectMeta{Namespace: "gloo-mesh", Name: "relay-root-tls-secret"}, Data: map[string][]byte{"ca.crt": pki.EncodeChain(root.Cert)}}}}
	s.put("/api/v1/secrets", list)
	s.put("/api/v1/configmaps", corev1.ConfigMapList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMapList"}})
	l := s.look(t, in)
	compare(t, "consumers", lines(l)[5:], []string{
		"consumer|cluster1|Secret apps/both|x|CN=root||", "consumer|cluster1|Secret apps/both|x|CN=next||",
		"consumer|cluster1|Secret apps/leaf-alone|x|CN=cluster1||", "consumer|cluster1|Secret apps/trusts-next|x|CN=next||"})
	blind := in
	blind.CAsPEM = nil
	if l = s.look(t, blind); len(l.Unsearched) != 1 || len(lines(l)) != 5 {
		t.Errorf("without a CA to look for: unsearched %q, %d items", l.Unsearched, len(l.Items))
	}
	for n := range mostListed + 7 {
		list.Items = append(list.Items, held(fmt.Sprintf("many-%d", n), root, next, relay, leaf))
	}
	s.put("/api/v1/secrets", list)
	if l = s.look(t, in); l.More != 10 {
		t.Errorf("%d more, want %d listed and 10 more", l.More, mostListed)
	}
	data, err := json.Marshal(l)
	if err != nil || len(data) > 100<<10 {
		t.Errorf("%d bytes, %v: with as many consumers as are listed it has to be below 100 kB", len(data), err)
	}
	for _, namespace := range []string{"cert-manager", "gloo-mesh"} {
		s.put("/api/v1/namespaces/"+namespace+"/secrets", corev1.SecretList{TypeMeta: list.TypeMeta})
	}
	s.put("/api/v1/secrets", metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Reason: metav1.StatusReasonForbidden, Code: 403})
	if l = s.look(t, in); len(l.Unsearched) != 1 || !strings.Contains(l.Unsearched[0], "deploy/rbac/consumers.yaml") || len(l.Unseen) > 0 {
		t.Errorf("unsearched %q, unseen %q", l.Unsearched, l.Unseen)
	}
}

// One that does not answer is said so within its time, whatever it is that does not.
func TestInventoryWithinItsTime(t *testing.T) {
	spec := mesh.Spec{Mesh: "demo", Workloads: []mesh.Workload{{Name: "cluster1"}, {Name: "cluster2"}}}.WithDefaults()
	s := newStore(t)
	if l := s.look(t, InventoryClusterInput{Spec: spec.Only("cluster2"), Cluster: "cluster2"}); !strings.Contains(l.Unreachable, "connection refused") {
		t.Errorf("unreachable: %q", l.Unreachable)
	}
	s.slow = true
	began := time.Now()
	l := s.look(t, InventoryClusterInput{Spec: spec.Only("cluster1"), Cluster: "cluster1", Consumers: true, Timeout: mesh.Duration{Duration: time.Second}})
	if took := time.Since(began); took > 3*time.Second || len(l.Unseen) == 0 {
		t.Errorf("it took %s, unseen %q", took, l.Unseen)
	}
	nowhere := mesh.Spec{Mesh: "demo", Workloads: []mesh.Workload{{Name: "nowhere"}}}.WithDefaults()
	if _, err := call[inventory.Look](t, environment(&s.Activities), s.InventoryCluster, InventoryClusterInput{Spec: nowhere, Cluster: "nowhere", Timeout: mesh.Duration{Duration: time.Second}}); err == nil {
		t.Error("a cluster that nobody knows was looked at")
	}
	if _, err := call[inventory.Look](t, environment(&s.Activities), s.InventoryCluster, InventoryClusterInput{Spec: spec.Only("cluster1"), Cluster: "cluster1", CAsPEM: []string{"x"}, Timeout: mesh.Duration{Duration: time.Second}}); failure.KindOf(err) != failure.InvalidInput {
		t.Errorf("a CA that is none: %v", err)
	}
}
