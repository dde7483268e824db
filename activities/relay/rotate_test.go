package relay

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/testsuite"
	"go.uber.org/zap"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/check/observe"
	"github.com/relaypki/relaypki/internal/check/observe/observetest"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// pairing is a management server of two replicas with real TLS, and an agent's
// Secrets, in one cluster.
type pairing struct {
	t       *testing.T
	env     *testsuite.TestActivityEnvironment
	clients *site.Clients
	spec    mesh.Spec

	mu      sync.Mutex
	objects map[string]any
	loaded  [2]*tls.Config
	// onRead, if set, is called with the path of each object that is read.
	onRead func(path string)
}

const (
	serverSecret = "relay-server-tls-secret"
	clientSecret = "relay-client-tls-secret"
)

// lasting makes certificates valid now, by the real clock that crypto/tls uses.
func lasting(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
}

// authority is a root with an intermediate.
type authority struct{ root, intermediate pkitest.Pair }

func newAuthority(t *testing.T, generation string) authority {
	root := pkitest.Root(t, "relay root "+generation, lasting)
	return authority{root, root.Intermediate(t, "relay intermediate "+generation, lasting)}
}

// next is another intermediate under the same root.
func (a authority) next(t *testing.T) authority {
	return authority{a.root, a.root.Intermediate(t, "relay intermediate g2", lasting)}
}

func (a authority) server(t *testing.T) pkitest.Pair {
	return a.intermediate.Leaf(t, []string{"*.gloo-mesh"}, lasting)
}

// ended makes a certificate that was good until an hour ago.
func ended(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
}

func (a authority) client(t *testing.T) pkitest.Pair {
	return a.intermediate.Leaf(t, []string{"cluster1"}, lasting)
}

func newPairing(t *testing.T, a authority) *pairing {
	t.Helper()
	w := &pairing{t: t, objects: map[string]any{}, spec: mesh.Spec{Mesh: "prod", Workloads: []mesh.Workload{{Name: "cluster1"}}}.WithDefaults()}
	labels := map[string]string{"app": "server"}
	w.put("/apis/apps/v1/namespaces/gloo-mesh/deployments/"+mesh.ServerDeployment, appsv1.Deployment{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}, Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}},
	})
	mux := http.NewServeMux()
	for i := range w.loaded {
		name := fmt.Sprintf("server-%d", i)
		address := observetest.Relay(t, &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.loaded[i], nil
		}})
		mux.Handle("/api/v1/namespaces/gloo-mesh/pods/"+name+"/portforward", observetest.PortForward(map[string]string{"9900": address}))
	}
	w.replicas(true, true)
	mux.HandleFunc("/", func(out http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		object, ok := w.objects[r.URL.Path]
		read := w.onRead
		w.mu.Unlock()
		if read != nil {
			read(r.URL.Path)
		}
		out.Header().Set("Content-Type", "application/json")
		if !ok {
			out.WriteHeader(http.StatusNotFound)
			object = metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Reason: metav1.StatusReasonNotFound, Code: 404, Message: "not found"}
		}
		if err := json.NewEncoder(out).Encode(object); err != nil {
			t.Error(err)
		}
	})
	w.put("/version", map[string]string{"gitVersion": "v1.37.2"})
	api := httptest.NewServer(mux)
	t.Cleanup(api.Close)
	w.clients = w.site(api.URL, "mgmt", "cluster1")

	server := a.server(t)
	w.store(serverSecret, a.root, server, a.intermediate)
	w.load(0, a.root, server, a.intermediate)
	w.load(1, a.root, server, a.intermediate)
	w.store(clientSecret, a.root, a.client(t), a.intermediate)
	w.trust(a.root)

	var suite testsuite.WorkflowTestSuite
	w.env = suite.NewTestActivityEnvironment()
	w.env.RegisterActivity(&Activities{Clients: w.clients})
	return w
}

// site are clients of a worker that knows these clusters.
func (w *pairing) site(url string, names ...string) *site.Clients {
	w.t.Helper()
	config := site.Config{Kubeconfig: filepath.Join(w.t.TempDir(), "kubeconfig")}
	text := "apiVersion: v1\nkind: Config\nclusters:\n- {name: up, cluster: {server: %q}}\ncontexts:\n- {name: up, context: {cluster: up}}\n"
	if err := os.WriteFile(config.Kubeconfig, fmt.Appendf(nil, text, url), 0o600); err != nil {
		w.t.Fatal(err)
	}
	for _, name := range names {
		config.Clusters = append(config.Clusters, site.ClusterConfig{Name: name, Context: "up"})
	}
	return site.NewClients(config, zap.NewNop())
}

func (w *pairing) put(path string, object any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if object == nil {
		delete(w.objects, path)
		return
	}
	w.objects[path] = object
}

func (w *pairing) secret(name string, data map[string][]byte) {
	w.put("/api/v1/namespaces/gloo-mesh/secrets/"+name, corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "gloo-mesh"}, Data: data,
	})
}

// store is what cert-manager does: chain, key and ca.crt.
func (w *pairing) store(name string, ca, leaf pkitest.Pair, above ...pkitest.Pair) {
	w.t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(leaf.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	w.secret(name, map[string][]byte{
		"tls.crt": pki.EncodeChain(certs(append([]pkitest.Pair{leaf}, above...)...)...), "ca.crt": pki.EncodeChain(ca.Cert),
		"tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	})
}

func (w *pairing) trust(cas ...pkitest.Pair) {
	w.secret(mesh.RootSecretName, map[string][]byte{"ca.crt": pki.EncodeChain(certs(cas...)...)})
}

func certs(pairs ...pkitest.Pair) []*x509.Certificate {
	var all []*x509.Certificate
	for _, p := range pairs {
		all = append(all, p.Cert)
	}
	return all
}

func text(pairs ...pkitest.Pair) string { return string(pki.EncodeChain(certs(pairs...)...)) }

// load is what a replica does with its Secret.
func (w *pairing) load(replica int, ca, leaf pkitest.Pair, above ...pkitest.Pair) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loaded[replica] = &tls.Config{
		Certificates: []tls.Certificate{leaf.TLS(above...)}, NextProtos: []string{"h2"},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pki.Pool([]*x509.Certificate{ca.Cert}),
	}
}

func (w *pairing) replicas(ready ...bool) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	for i, r := range ready {
		status := corev1.ConditionFalse
		if r {
			status = corev1.ConditionTrue
		}
		list.Items = append(list.Items, corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("server-%d", i), Namespace: "gloo-mesh", Labels: map[string]string{"app": "server"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "server"}}},
			Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}},
		})
	}
	w.put("/api/v1/namespaces/gloo-mesh/pods", list)
}

func call[R any](w *pairing, activity, in any) (R, error) {
	w.t.Helper()
	var result R
	value, err := w.env.ExecuteActivity(activity, in)
	if err == nil {
		err = value.Get(&result)
	}
	return result, err
}

func (w *pairing) read(loaded bool) (ServerResult, error) {
	w.t.Helper()
	var a *Activities
	return call[ServerResult](w, a.ReadServer, ServerInput{Spec: w.spec.Only(""), Loaded: loaded})
}

// fails wants an error of that kind, which another try may cure, with these words.
func fails(t *testing.T, err error, kind failure.Kind, words ...string) {
	t.Helper()
	if failure.KindOf(err) != kind || failure.IsPermanent(err) {
		t.Errorf("%s, permanent %v: %v", failure.KindOf(err), failure.IsPermanent(err), err)
		return
	}
	for _, text := range words {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %q", err, text)
		}
	}
}

func TestReadServer(t *testing.T) {
	a := newAuthority(t, "g1")
	w := newPairing(t, a)
	seen, err := w.read(false)
	if err != nil {
		t.Fatal(err)
	}
	if len(seen.Chains) != 1 || len(seen.Trusts) != 1 || len(seen.AcceptableCAs) != 0 || seen.Leaf.AuthorityKeyID != pki.Hex(a.intermediate.Cert.SubjectKeyId) {
		t.Errorf("all loaded: %+v", seen)
	}
	if seen.Presents != a.intermediate.Cert.Subject.CommonName || !slices.Equal(seen.Trusted, []string{a.root.Cert.Subject.CommonName}) {
		t.Errorf("for a plan, it presents %q and trusts %q", seen.Presents, seen.Trusted)
	}
	if trust, err := pki.ParseChain([]byte(seen.Trusts[0])); err != nil || len(trust) != 1 || !trust[0].Equal(a.root.Cert) {
		t.Errorf("its trust: %v", err)
	}
	if _, err := w.read(true); err != nil {
		t.Error(err)
	}

	if seen.Ended {
		t.Error("a certificate that has not ended has")
	}
	over := a.intermediate.Leaf(t, []string{"*.gloo-mesh"}, ended)
	w.load(1, a.root, over, a.intermediate)
	if seen, err = w.read(false); err != nil || !seen.Ended {
		t.Errorf("what a replica has loaded has ended: %+v, %v", seen, err)
	}
	w.load(1, a.root, a.server(t), a.intermediate)
	w.store(serverSecret, a.root, over, a.intermediate)
	if seen, err = w.read(false); err != nil || !seen.Ended {
		t.Errorf("what is stored has ended: %+v, %v", seen, err)
	}

	// One replica has not loaded what is stored now, and has another trust.
	other := newAuthority(t, "of another mesh")
	stored := a.next(t).server(t)
	w.store(serverSecret, a.root, stored, a.next(t).intermediate)
	w.load(0, a.root, stored, a.intermediate)
	w.load(1, other.root, other.server(t), other.intermediate)
	if seen, err = w.read(false); err != nil {
		t.Fatal(err)
	}
	if len(seen.Chains) != 3 || seen.Leaf.Serial != pki.Serial(stored.Cert) || len(seen.AcceptableCAs) != 1 || seen.AcceptableCAs[0] != "CN=relay root of another mesh" {
		t.Errorf("one is not loaded: %d chains, %+v", len(seen.Chains), seen.AcceptableCAs)
	}
	// One that is not ready says nothing.
	w.replicas(true, false)
	if seen, err = w.read(false); err != nil || len(seen.Chains) != 2 || len(seen.AcceptableCAs) != 0 {
		t.Errorf("one is not ready: %d chains, %+v, %v", len(seen.Chains), seen.AcceptableCAs, err)
	}
	w.replicas(false, false)
	_, err = w.read(false)
	fails(t, err, failure.NotReady, "no Pod of the management server is ready")
	w.replicas(true, true)
	w.put("/api/v1/namespaces/gloo-mesh/secrets/"+serverSecret, nil)
	_, err = w.read(false)
	fails(t, err, failure.NotReady, "Secret gloo-mesh/relay-server-tls-secret is missing")
	w.secret(serverSecret, map[string][]byte{"tls.crt": []byte("-"), "ca.crt": pki.EncodeChain(a.root.Cert)})
	_, err = w.read(false)
	fails(t, err, failure.Unhealthy, "tls.crt of Secret gloo-mesh/relay-server-tls-secret")
}

// TestReadServerWaits: the replicas load what is stored one after the other.
func TestReadServerWaits(t *testing.T) {
	a := newAuthority(t, "g1")
	w := newPairing(t, a)
	stored := a.server(t)
	w.store(serverSecret, a.root, stored, a.intermediate)
	var mu sync.Mutex
	looks := 0
	w.onRead = func(path string) {
		if strings.HasSuffix(path, serverSecret) {
			mu.Lock()
			defer mu.Unlock()
			if looks++; looks > 1 && looks <= 3 {
				w.load(looks-2, a.root, stored, a.intermediate)
			}
		}
	}
	seen, err := w.read(true)
	if err != nil {
		t.Fatal(err)
	}
	if mu.Lock(); looks != 3 {
		t.Errorf("%d looks, want one more than replicas", looks)
	}
	mu.Unlock()
	if len(seen.Chains) != 1 || seen.Leaf.Serial != pki.Serial(stored.Cert) {
		t.Errorf("%d chains, serial %s", len(seen.Chains), seen.Leaf.Serial)
	}
}

func TestNotLoaded(t *testing.T) {
	a := newAuthority(t, "g1")
	another := newAuthority(t, "g2")
	stored := a.server(t)
	for _, c := range []struct {
		name   string
		change func(*pairing)
		words  []string
	}{
		{"all loaded", func(*pairing) {}, nil},
		{"one serves another", func(w *pairing) { w.load(1, a.root, a.server(t), a.intermediate) },
			[]string{"Pod server-1", "serves serial", "holds " + pki.Serial(stored.Cert), "management.reload to \"restart\""}},
		{"one has an older trust", func(w *pairing) { w.load(1, another.root, stored, a.intermediate) },
			[]string{"Pod server-1", "accepts clients of CN=relay root g2", "relay root g1", "not its ca.crt"}},
		{"one has a trust too many", func(w *pairing) {
			w.loaded[1].ClientCAs = pki.Pool([]*x509.Certificate{a.root.Cert, another.root.Cert})
		}, []string{"Pod server-1", "CN=relay root g2", "not its ca.crt"}},
		{"one asks nobody", func(w *pairing) { w.loaded[1].ClientAuth = tls.NoClientCert }, []string{"Pod server-1", "asks for no client certificate"}},
		{"one names no CA", func(w *pairing) { w.loaded[1].ClientCAs = nil }, []string{"Pod server-1", "names no CA"}},
		{"one is not ready", func(w *pairing) { w.replicas(true, false) }, []string{"Pod server-1", "is not ready"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newPairing(t, a)
			w.store(serverSecret, a.root, stored, a.intermediate)
			w.load(0, a.root, stored, a.intermediate)
			w.load(1, a.root, stored, a.intermediate)
			c.change(w)
			seen, err := observe.Server(t.Context(), w.clients, w.spec)
			if err == nil {
				err = serverUnseen(seen)
			}
			if err != nil {
				t.Fatal(err)
			}
			state := notLoaded(seen, false)
			if (state == "") != (c.words == nil) {
				t.Errorf("%q", state)
			}
			for _, words := range c.words {
				if !strings.Contains(state, words) {
					t.Errorf("%q, want %q", state, words)
				}
			}
		})
	}
}

func TestCheckPair(t *testing.T) {
	a, other := newAuthority(t, "g1"), newAuthority(t, "of another mesh")
	next := a.next(t)
	for _, c := range []struct {
		name   string
		change func(*pairing, *CheckPairInput)
		want   []string // parts of the problems, in order
	}{
		{"as set up", func(*pairing, *CheckPairInput) {}, nil},
		{"a new intermediate is in flight, and the server has it already", func(w *pairing, in *CheckPairInput) {
			in.InFlight = []string{text(next.client(t), next.intermediate)}
			in.Server.Chains = append(in.Server.Chains, text(next.server(t), next.intermediate))
		}, nil},
		{"the agent trusts another root", func(w *pairing, _ *CheckPairInput) { w.trust(other.root) },
			[]string{"the agent of cluster \"cluster1\" would refuse the management server: it trusts \"relay root of another mesh\""}},
		{"so does what a replica has loaded", func(_ *pairing, in *CheckPairInput) {
			in.Server.Chains = append(in.Server.Chains, text(other.server(t), other.intermediate))
		}, []string{"would refuse the management server"}},
		{"what is in flight is of another root", func(_ *pairing, in *CheckPairInput) {
			in.InFlight = []string{text(other.client(t), other.intermediate)}
		}, []string{"would refuse the management server", "the management server would refuse the agent"}},
		{"the server trusts another root", func(_ *pairing, in *CheckPairInput) { in.Server.Trusts = []string{text(other.root)} },
			[]string{"the management server would refuse the agent of cluster \"cluster1\""}},
		{"the agent's trust is an intermediate", func(w *pairing, _ *CheckPairInput) { w.trust(a.intermediate) },
			[]string{"which is no self-signed root"}},
		{"the intermediate beside the root", func(w *pairing, _ *CheckPairInput) { w.trust(a.root, a.intermediate) },
			[]string{"which is no self-signed root"}},
		{"the server's trust is an intermediate", func(_ *pairing, in *CheckPairInput) { in.Server.Trusts = []string{text(a.intermediate)} },
			[]string{"the management server trusts \"relay intermediate g1\""}},
		{"which is no matter in a rotation of leaves", func(w *pairing, in *CheckPairInput) {
			w.trust(a.intermediate)
			in.RootsOnly = false
		}, nil},
		{"a replica has loaded another trust", func(_ *pairing, in *CheckPairInput) {
			in.Server.AcceptableCAs = []string{"CN=relay root g1"}
		},
			[]string{"has loaded another trust than its Secret's: it accepts clients of CN=relay root g1"}},
		{"one that this agent's chain leads to", func(_ *pairing, in *CheckPairInput) {
			in.Server.AcceptableCAs, in.RootsOnly = []string{"CN=relay root g1"}, false
		}, nil},
		{"one that it does not lead to", func(_ *pairing, in *CheckPairInput) {
			in.Server.AcceptableCAs, in.RootsOnly = []string{"CN=relay root of another mesh"}, false
		}, []string{"has loaded another trust"}},
		{"an agent of its own trust", func(w *pairing, in *CheckPairInput) {
			in.Spec.Workloads[0].Agent.Trust = mesh.TrustOwn
			w.trust(other.root)
		}, nil},
		{"chains without their intermediate", func(w *pairing, in *CheckPairInput) {
			w.store(clientSecret, a.root, a.client(t))
			in.Server.Chains = []string{text(a.server(t))}
		}, []string{"would refuse the management server", "the management server would refuse the agent"}},
		{"the agent's, which is about to be issued anew", func(w *pairing, in *CheckPairInput) {
			w.store(clientSecret, a.root, a.client(t))
			in.Issuing = text(a.intermediate)
		}, nil},
		{"the server's, which is not", func(_ *pairing, in *CheckPairInput) {
			in.Server.Chains, in.Issuing = []string{text(a.server(t))}, text(a.intermediate)
		}, []string{"would refuse the management server"}},
		{"by an intermediate that the server does not trust", func(w *pairing, in *CheckPairInput) {
			in.Server.Trusts, in.Issuing = []string{text(other.root)}, text(a.intermediate)
		}, []string{"the management server would refuse the agent"}},
		{"and nothing that this intermediate has signed", func(w *pairing, in *CheckPairInput) {
			w.store(clientSecret, a.root, other.client(t), other.intermediate)
			in.Issuing = text(a.intermediate)
		}, []string{"the management server would refuse the agent"}},
		{"certificates that have ended", func(w *pairing, in *CheckPairInput) {
			w.store(clientSecret, a.root, a.intermediate.Leaf(t, []string{"cluster1"}, ended), a.intermediate)
			in.Server.Chains = []string{text(a.intermediate.Leaf(t, []string{"*.gloo-mesh"}, ended), a.intermediate)}
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newPairing(t, a)
			server, err := w.read(false)
			if err != nil {
				t.Fatal(err)
			}
			in := CheckPairInput{Spec: w.spec.Only("cluster1"), Cluster: "cluster1", Server: server, RootsOnly: true}
			c.change(w, &in)
			var act *Activities
			seen, err := call[CheckPairResult](w, act.CheckPair, in)
			if err != nil {
				t.Fatal(err)
			}
			if len(seen.Problems) != len(c.want) {
				t.Fatalf("%d problems, want %d: %q", len(seen.Problems), len(c.want), seen.Problems)
			}
			for i, words := range c.want {
				if !strings.Contains(seen.Problems[i], words) {
					t.Errorf("%q, want %q", seen.Problems[i], words)
				}
			}
			if len(c.want) == 0 && (seen.Presents != "relay intermediate g1" || len(seen.Trusts) != 1 || seen.Leaf.Serial == "") {
				t.Errorf("%+v", seen)
			}
		})
	}
}

// What a member itself has not, or not as it should be, is no handshake that
// would fail.
func TestCheckPairLooksAtNothing(t *testing.T) {
	a := newAuthority(t, "g1")
	for _, c := range []struct {
		name  string
		spoil func(*pairing)
		kind  failure.Kind
		words string
	}{
		{"no certificate", func(w *pairing) { w.put("/api/v1/namespaces/gloo-mesh/secrets/"+clientSecret, nil) },
			failure.NotReady, "Secret gloo-mesh/relay-client-tls-secret is missing"},
		{"an empty one", func(w *pairing) { w.secret(clientSecret, nil) },
			failure.Unhealthy, "tls.crt of Secret gloo-mesh/relay-client-tls-secret"},
		{"no trust", func(w *pairing) { w.put("/api/v1/namespaces/gloo-mesh/secrets/"+mesh.RootSecretName, nil) },
			failure.NotReady, "Secret gloo-mesh/relay-root-tls-secret is missing"},
		{"an empty one", func(w *pairing) { w.secret(mesh.RootSecretName, nil) },
			failure.Unhealthy, "ca.crt of Secret gloo-mesh/relay-root-tls-secret"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newPairing(t, a)
			server, err := w.read(false)
			if err != nil {
				t.Fatal(err)
			}
			c.spoil(w)
			var act *Activities
			_, err = call[CheckPairResult](w, act.CheckPair, CheckPairInput{Spec: w.spec.Only("cluster1"), Cluster: "cluster1", Server: server})
			fails(t, err, c.kind, c.words)
		})
	}
}

func TestShakeHands(t *testing.T) {
	a, other := newAuthority(t, "g1"), newAuthority(t, "of another mesh")
	shake := func(w *pairing) (procedure.Outcome, error) {
		var act *Activities
		return call[procedure.Outcome](w, act.ShakeHands, ShakeHandsInput{Spec: w.spec.Only("cluster1"), Cluster: "cluster1"})
	}
	w := newPairing(t, a)
	if out, err := shake(w); err != nil || out.Detail != "2 fresh handshakes" {
		t.Errorf("%+v, %v", out, err)
	}
	// Under another intermediate of the same root nothing else is to be seen.
	next := a.next(t)
	w.load(0, a.root, next.server(t), next.intermediate)
	if _, err := shake(w); err != nil {
		t.Error(err)
	}
	w.load(1, other.root, a.server(t), a.intermediate)
	_, err := shake(w)
	fails(t, err, failure.Unhealthy, "cluster \"cluster1\": Pod gloo-mesh/server-1 a fresh handshake fails", "That means: ")
	if strings.Contains(err.Error(), "server-0") {
		t.Errorf("the replica that accepts is blamed: %v", err)
	}
	w.load(1, a.root, other.server(t), other.intermediate)
	_, err = shake(w)
	fails(t, err, failure.Unhealthy, "server-1", "trust does not hold the root")
	w.replicas(false, false)
	_, err = shake(w)
	fails(t, err, failure.Unhealthy, "no ready Pod")
	w.replicas(true, true)
	w.put("/version", nil)
	_, err = shake(w)
	fails(t, err, failure.Unavailable, "API server does not answer")
	w.put("/version", map[string]string{"gitVersion": "v1.37.2"})

	c, err := w.clients.Cluster("cluster1")
	if err != nil {
		t.Fatal(err)
	}
	var suite testsuite.WorkflowTestSuite
	w.env = suite.NewTestActivityEnvironment()
	w.env.RegisterActivity(&Activities{Clients: w.site(c.REST.Host, "cluster1")})
	if out, err := shake(w); err != nil || !strings.Contains(out.Detail, "no handshake: the worker that reaches this cluster") {
		t.Errorf("in a private network: %+v, %v", out, err)
	}
}

func TestRefusedUnreached(t *testing.T) {
	err := refused(check.Workload{Cluster: mesh.Workload{Name: "cluster1"}, Handshakes: []check.SeenHandshake{{Pod: "server-0", Error: "connection refused"}}})
	fails(t, err, failure.Unavailable, "no connection to its relay port: connection refused")
}

// What may pass by itself is waited for, and nothing else that fails.
func TestLookUntil(t *testing.T) {
	away, bad, good := check.Finding{Status: check.Fail, Transient: true}, check.Finding{Status: check.Fail}, check.Finding{Status: check.Pass}
	for _, test := range []struct {
		name  string
		seen  []check.Finding // by look
		after time.Duration
		want  check.Finding
		looks int
	}{
		{"back", []check.Finding{away, away, good, good}, time.Minute, good, 3},
		{"back, and not well", []check.Finding{away, bad, good}, time.Minute, bad, 2},
		{"not well", []check.Finding{bad, good}, time.Minute, bad, 1},
		{"still away", []check.Finding{away, good}, 0, away, 1},
	} {
		looks := 0
		got, err := lookUntil(t.Context(), time.Now().Add(test.after), func() ([]check.Finding, error) {
			looks++
			return []check.Finding{good, test.seen[looks-1]}, nil
		})
		if err != nil || !reflect.DeepEqual(got[1], test.want) || looks != test.looks {
			t.Errorf("%s: %+v after %d looks, %v", test.name, got, looks, err)
		}
	}
}
