package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/inventory"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// This file is what else can be wrong: with agents, credentials, what is set of Vault's
// mounts, clocks, and servers that hang.

// backOff is what the lab's stand-in for kubelets says of a container that ends again
// and again: of the agent whose trust is missing.
func (h hospital) backOff() breakage {
	return breakage{
		name: "the guide's back-off", check: check.PodReady, cluster: "cluster1", object: "Pod gloo-mesh/gloo-mesh-agent-", status: check.Fail, mend: check.SetUp,
		says: "not ready", evidence: ", BackOff, ", command: "describe pod gloo-mesh-agent-",
		make: func(*testing.T) {},
	}
}

// cannotMount is an event as a kubelet writes it. The lab's stand-in mounts nothing, so
// that this one is written by the test, about the Pod that is not ready anyhow.
func (h hospital) cannotMount() breakage {
	const text = `MountVolume.SetUp failed for volume "relay-root" : secret "relay-root-tls-secret" not found`
	return breakage{
		name: "the guide's volume", check: check.PodReady, cluster: "cluster1", object: "Pod gloo-mesh/gloo-mesh-agent-", status: check.Fail, mend: check.SetUp,
		says: "not ready", evidence: "FailedMount, 3 times", command: "describe pod gloo-mesh-agent-",
		make: func(t *testing.T) {
			kube := h.cluster(t, "cluster1").kube.CoreV1()
			var pod corev1.Pod
			eventually(t, time.Minute, func() error {
				pods, err := kube.Pods("gloo-mesh").List(t.Context(), metav1.ListOptions{LabelSelector: "app=gloo-mesh-agent"})
				if err != nil {
					return err
				}
				for _, pod = range pods.Items {
					if pod.DeletionTimestamp == nil && !slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue }) {
						return nil
					}
				}
				return fmt.Errorf("all of %d Pods are ready", len(pods.Items))
			})
			now := metav1.Now()
			if _, err := kube.Events("gloo-mesh").Create(t.Context(), &corev1.Event{
				ObjectMeta: metav1.ObjectMeta{GenerateName: pod.Name + "."}, Type: corev1.EventTypeWarning, Reason: "FailedMount", Message: text, Count: 3,
				InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
				FirstTimestamp: now, LastTimestamp: now, Source: corev1.EventSource{Component: "kubelet", Host: pod.Spec.NodeName},
			}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		},
	}
}

// agentsAndKeys has an agent that somebody has stopped, and keys that nobody signs with.
func (h hospital) agentsAndKeys() ward {
	return ward{
		name: "agents and keys", also: []string{check.IssuerReady},
		breakages: []breakage{
			{
				name: "an agent of no replicas", check: check.RelayAgent, cluster: "cluster1", status: check.Fail,
				says: "0 of 0 replicas", evidence: "spec.replicas 0", command: "scale deployment/gloo-mesh-agent --replicas=1",
				make: all(h.kubectl("cluster1", "scale deploy/gloo-mesh-agent --replicas=0"), h.kubectl("cluster1", "wait --for=delete pod -l app=gloo-mesh-agent --timeout=60s")), pasted: true,
			},
			{
				name: "gauges at 0", check: check.AgentsConnected, cluster: "cluster1", status: check.Fail,
				says: "0 pull and 0 push streams are open", evidence: `relay_pull_clients_connected{cluster="cluster1"} 0`, command: "grep clients_connected",
				make: func(*testing.T) {},
			},
			{
				name: "another key is pinned", check: check.PinnedKeys, cluster: "cluster1", object: "auth mount relaypki-demo-cluster1", status: check.Fail, mend: check.SetUp,
				says: "are not pinned in Vault", evidence: "jwt_validation_pubkeys: ", command: "relaypki setup",
				make: func(t *testing.T) { h.pinAnotherKey(t) },
			},
		},
	}
}

// serverAway has the management server stopped, so that there is nothing to shake hands
// with.
func (h hospital) serverAway() ward {
	return ward{
		name: "server away", also: []string{check.Handshake, check.AgentsConnected, check.ServedCertificate, check.AcceptableCAs, check.RelayAgent, check.PodReady},
		breakages: []breakage{
			{
				name: "a server of no replicas", check: check.RelayServer, cluster: management, object: "Deployment gloo-mesh/gloo-mesh-mgmt-server", status: check.Fail,
				says: "0 of 0 replicas", evidence: "spec.replicas 0", command: "scale deployment/gloo-mesh-mgmt-server --replicas=1",
				make: all(h.kubectl(management, "scale deploy/gloo-mesh-mgmt-server --replicas=0"), h.kubectl(management, "wait --for=delete pod -l app=gloo-mesh-mgmt-server --timeout=60s")), pasted: true,
			},
			{
				name: "no handshake", check: check.Handshake, cluster: "cluster1", status: check.Fail,
				says: "no handshake was tried", evidence: "the management server has no ready Pod", command: "logs deployment/gloo-mesh-mgmt-server",
				make: func(*testing.T) {},
			},
		},
	}
}

// becomes sets the mesh of the wards up, with more in its input.
func (h hospital) becomes(t *testing.T, more string) {
	t.Helper()
	input := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(input, []byte(wardsMesh+more), 0o600); err != nil {
		t.Fatal(err)
	}
	h.setup(t, input)
}

// withToken has a mesh whose Issuers log in by a token, and a root that stands by.
func (h hospital) withToken() ward {
	return ward{
		name: "token and standby root", also: []string{check.IssuerReady, check.StaleTrust},
		breakages: []breakage{
			{
				name: "trust without the root that stands by", check: check.StandbyRoot, cluster: "cluster1", object: "Secret gloo-mesh/relay-root-tls-secret", status: check.Warn, mend: check.SetUp,
				says: "does not hold", evidence: "the root that stands by: ", command: "relaypki setup",
				make: func(t *testing.T) {
					h.becomes(t, "pki: {standbyRoot: true}\ncredential: {method: token, tokenPeriod: 1h}\n")
					secret, err := h.cluster(t, "cluster1").kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), mesh.RootSecretName, metav1.GetOptions{})
					if err != nil {
						t.Fatal(err)
					}
					first, rest := pem.Decode(secret.Data["ca.crt"])
					if second, _ := pem.Decode(rest); first == nil || second == nil {
						t.Fatalf("%s has not two roots", mesh.RootSecretName)
					}
					h.putSecret(t, mesh.RootSecretName, "ca.crt", string(pem.EncodeToMemory(first)))
				},
			},
			{
				name: "a token that was revoked", check: check.ClusterToken, cluster: "cluster1", status: check.Fail, mend: check.SetUp,
				says: "Vault does not accept its token", evidence: "asked of Vault: ", command: "relaypki setup",
				make: h.revokeToken,
			},
		},
	}
}

// withSecretID has a mesh whose Issuers log in by AppRole.
func (h hospital) withSecretID() ward {
	return ward{
		name: "secret id", also: []string{check.IssuerReady, check.StaleTrust},
		breakages: []breakage{{
			name: "a secret id that was destroyed", check: check.ClusterSecretID, cluster: "cluster1", status: check.Fail, mend: check.SetUp,
			says: "Vault does not accept its secret id", evidence: "asked of Vault: ", command: "relaypki setup",
			make: func(t *testing.T) {
				// Once there is a root that stands by, agents trust it.
				h.becomes(t, "pki: {standbyRoot: true}\ncredential: {method: appRole, tokenPeriod: 1h}\n")
				h.destroySecretID(t, h.onlySecretID(t, "secretId-1"))
			},
		}},
	}
}

// line runs a line, and another when the test is over.
func (h hospital) line(line, afterwards string) func(*testing.T) {
	return func(t *testing.T) {
		t.Helper()
		h.sh(t, line)
		if afterwards != "" {
			t.Cleanup(func() { h.sh(t, afterwards) })
		}
	}
}

// mounts are as "vault pki health-check" warns of them.
func (h hospital) mounts() ward {
	const web = "role web of mount pki"
	before := 0
	return ward{
		name: "mounts",
		breakages: []breakage{
			{
				name: "wildcards by pattern", check: check.PKIRoleGlobWildcards, cluster: management, object: web, status: check.Warn,
				says: "wildcards", evidence: "allowed_domains *.example.com", command: "vault patch pki/roles/web allow_glob_domains=false", pasted: true,
				make: func(t *testing.T) {
					before = len(list(t, h.vault(t), "pki/certs"))
					h.line("vault write pki/roles/web allow_any_name=true allow_glob_domains=true allow_wildcard_certificates=true allowed_domains='*.example.com' no_store=false", "vault delete pki/roles/web")(t)
				},
			},
			{
				name: "localhost", check: check.PKIRoleLocalhost, cluster: management, object: web, status: check.Warn,
				says: "localhost", evidence: "allow_localhost true", command: "vault patch pki/roles/web allow_localhost=false", pasted: true,
				make: func(*testing.T) {},
			},
			{
				name: "all is stored", check: check.PKIRoleNoStore, cluster: management, object: web, status: check.Warn,
				says: "stores all", evidence: "no_store false", command: "vault patch pki/roles/web no_store=true", pasted: true,
				make: func(*testing.T) {},
			},
			{
				name: "a leaf of the root's own", check: check.PKIRootIssuedLeaves, cluster: management, object: "mount pki", status: check.Warn,
				says: "no CA", evidence: "basic constraints: no CA", command: "vault read pki/cert/",
				make: h.line("vault write pki/issue/web common_name=a.example.com ttl=1s", ""),
				// It is found for as long as it is stored.
				undo: func(t *testing.T) {
					eventually(t, 30*time.Second, func() error {
						h.sh(t, "vault write pki/tidy tidy_cert_store=true safety_buffer=1s")
						if now := len(list(t, h.vault(t), "pki/certs")); now > before {
							return fmt.Errorf("%d certificates are stored, and %d were before", now, before)
						}
						return nil
					})
				},
			},
			{
				name: "private keys in the audit log", check: check.PKIAuditVisibility, cluster: management, object: "mount pki_relay", status: check.Warn,
				says: "private keys", evidence: "audit_non_hmac_response_keys: private_key", command: "vault secrets tune", pasted: true,
				make: h.line("vault secrets tune -audit-non-hmac-response-keys=private_key pki_relay", ""),
			},
			{
				name: "tidied too seldom", check: check.PKIAutoTidy, cluster: management, object: "mount pki_relay", status: check.Warn,
				says: "too seldom", evidence: "enabled true, interval_duration 200h", command: "interval_duration=12h", pasted: true,
				make: h.line("vault write pki_relay/config/auto-tidy enabled=true interval_duration=200h tidy_cert_store=true", "vault write pki_relay/config/auto-tidy enabled=false"),
			},
			{
				name: "ACME", check: check.PKIACMEIssuance, cluster: management, object: "mount pki_relay", status: check.Warn,
				says: "ACME is on", evidence: "config/acme: enabled true", command: "vault write pki_relay/config/acme enabled=false", pasted: true,
				make: h.line(`vault write pki_relay/config/cluster path="$VAULT_ADDR/v1/pki_relay" && vault write pki_relay/config/acme enabled=true`, ""),
			},
			{
				name: "ACME's headers", check: check.PKIACMEHeaders, cluster: management, object: "mount pki_relay", status: check.Note,
				says: "Replay-Nonce", evidence: "allowed_response_headers", command: "enabled=false",
				make: func(*testing.T) {},
			},
		},
	}
}

// notes are all that is found, so that the exit code is theirs.
func (h hospital) notes() ward {
	return ward{
		name: "notes",
		breakages: []breakage{
			{
				name: "a CRL that has ended", check: check.PKICRLValidity, cluster: management, object: "mount pki", status: check.Note,
				says: "near or past their end", evidence: "/crl: thisUpdate", command: "vault write pki/config/crl auto_rebuild=true", pasted: true,
				make: h.line("vault write pki/config/crl expiry=2s && vault read pki/crl/rotate", "vault write pki/config/crl auto_rebuild=false"),
			},
			{
				name: "all is stored where CRLs are rebuilt", check: check.PKIRoleNoStore, cluster: management, object: "role web of mount pki_relay", status: check.Note,
				says: "stores all", evidence: "no_store false", command: "vault patch pki_relay/roles/web no_store=true", pasted: true,
				make: h.line("vault write pki_relay/config/crl auto_rebuild=true && vault write pki_relay/roles/web allowed_domains=example.com allow_localhost=false",
					"vault delete pki_relay/roles/web && vault write pki_relay/config/crl auto_rebuild=false"),
			},
		},
	}
}

// pidOf is the process of one of the lab's parts.
func (w *world) pidOf(t *testing.T, part string) int {
	t.Helper()
	out, err := w.lab("status", "-o", "json")
	var parts []struct {
		Name string
		PID  int
	}
	// What it says besides comes after.
	if parse := json.NewDecoder(strings.NewReader(out)).Decode(&parts); parse != nil {
		t.Fatalf("lab status: %v, %v\n%s", err, parse, out)
	}
	for _, p := range parts {
		if p.Name == part && p.PID > 0 {
			return p.PID
		}
	}
	t.Fatalf("the lab's %s has no process:\n%s", part, out)
	return 0
}

// clusterThatHangs: an API server that takes connections and says nothing is named
// within its timeout, and holds up nothing that is said of the others.
func (h hospital) clusterThatHangs(t *testing.T) {
	const within = 5 * time.Second
	h.kubectl("cluster1", "annotate --overwrite secret relay-root-tls-secret meta.helm.sh/release-name=gloo-platform helm.sh/resource-policy-")(t)
	pid := h.pidOf(t, "cluster2-apiserver")
	wakes := func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(wakes)

	began := time.Now()
	found, code := h.diagnosis(t, "--cluster-timeout", within.String())
	took := time.Since(began)
	t.Logf("the diagnosis took %s, with a timeout of %s", took.Round(100*time.Millisecond), within)
	// After 10 s something else would end the look.
	if took > 2*within {
		t.Errorf("it took %s, with a timeout of %s", took, within)
	}
	hangs := breakage{name: "it hangs", check: check.ClusterReachable, cluster: "cluster2", status: check.Fail, says: "answer"}
	owned := breakage{name: "a finding of another cluster", check: check.HelmOwned, cluster: "cluster1", status: check.Warn, evidence: "meta.helm.sh/release-name"}
	for _, b := range []breakage{hangs, owned} {
		if problem := b.in(found.Findings); problem != "" {
			t.Error(problem)
		}
	}
	if code != exitUnhealthy || len(found.Findings) != 2 || found.Checks < 40 {
		t.Errorf("exit code %d, %d checks:\n%s", code, found.Checks, listed(found.Findings))
	}

	const answers = 5 * time.Second
	began = time.Now()
	out, errOut, code := h.relaypki(t, "inventory", "demo", "--cluster-timeout", answers.String(), "-o", "json")
	took = time.Since(began)
	t.Logf("the inventory took %s, with a timeout of %s", took.Round(100*time.Millisecond), answers)
	if took > 3*answers {
		t.Errorf("it took %s, with a timeout of %s", took, answers)
	}
	if code != exitFailed || !strings.Contains(errOut, "cluster2") {
		t.Errorf("relaypki inventory: exit code %d\n%s", code, errOut)
	}
	result := resultOf[procedure.InventoryResult](t, out)
	if len(result.Unreachable) != 1 || result.Unreachable[0].Part || !strings.Contains(result.Unreachable[0].Name, "cluster2") {
		t.Errorf("not looked at: %+v", result.Unreachable)
	}
	for cluster, kind := range map[string]inventory.Kind{management: inventory.ServerLeaf, "cluster1": inventory.ClientLeaf} {
		if !slices.ContainsFunc(result.Items, func(i inventory.Item) bool { return i.Cluster == cluster && i.Kind == kind }) {
			t.Errorf("there is no %s of %s", kind, cluster)
		}
	}

	wakes()
	h.paste(t, owned, found.Findings)
	h.well(t, "the mesh whose cluster answers again")
}

// paste does what the finding of a breakage says.
func (h hospital) paste(t *testing.T, b breakage, findings []check.Finding) {
	t.Helper()
	for _, f := range findings {
		if b.is(f) {
			h.sh(t, strings.Join(f.Commands, "\n"))
		}
	}
}

// clocksThatDiffer: a worker of its own reaches Vault and a cluster through proxies by
// whose answers their clocks are others, since a machine has but one.
func (h hospital) clocksThatDiffer(t *testing.T) {
	config, err := site.Load(filepath.Join(h.dir, "worker", "site.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	config.TaskQueue = "other-clocks"
	contexts, err := clientcmd.LoadFromFile(config.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	server := contexts.Clusters[contexts.Contexts["cluster1"].Cluster]
	ca := server.CertificateAuthorityData
	if ca == nil {
		ca = contents(t, server.CertificateAuthority)
	}
	server.Server, server.CertificateAuthorityData = h.ahead(t, server.Server, ca, -2*time.Minute)
	server.CertificateAuthority = ""
	config.Kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*contexts, config.Kubeconfig); err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(config.Vaults, func(v site.VaultConfig) bool { return v.Name == "default" })
	vault := &config.Vaults[at]
	vault.Address, ca = h.ahead(t, vault.Address, contents(t, vault.CAFile), 3*time.Minute)
	vault.CAFile = filepath.Join(t.TempDir(), "vault-ca.pem")
	if err := os.WriteFile(vault.CAFile, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	h.startWorkerAt(t, filepath.Join(repository, "bin", "relaypki-worker"), config)

	found, code := h.diagnosis(t, "--task-queue", config.TaskQueue)
	behind := breakage{name: "a cluster's clock", check: check.ClockSkew, cluster: "cluster1", object: "the API server", status: check.Warn,
		says: "behind the worker's", evidence: "HTTP header Date of the API server: ", command: "get --raw /version"}
	for _, b := range []breakage{behind, {name: "Vault's clock", check: check.ClockSkew, cluster: management, object: `Vault "default"`, status: check.Warn,
		says: "ahead of the worker's", evidence: `HTTP header Date of Vault "default": `, command: vault.Address + "/v1/sys/health"}} {
		if problem := b.in(found.Findings); problem != "" {
			t.Error(problem)
		}
	}
	if code != exitWarnings || len(found.Findings) != 2 {
		t.Errorf("exit code %d:\n%s", code, listed(found.Findings))
	}
	// The commands show both clocks, here of the server without a proxy.
	for _, f := range found.Findings {
		if f.Check != check.ClockSkew {
			continue
		}
		command := strings.ReplaceAll(f.Commands[0], vault.Address, h.env["VAULT_ADDR"])
		shown := strings.Split(strings.TrimSpace(h.sh(t, command)), "\n")
		if len(shown) != 2 || !strings.Contains(shown[0], " GMT") {
			t.Errorf("%s prints %q, want the server's time and the machine's", command, shown)
		}
	}
}

func contents(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// ahead is a proxy in front of a server, by whose answers its clock is ahead by so
// much: its address, and its certificate.
func (h hospital) ahead(t *testing.T, of string, ca []byte, by time.Duration) (address string, certificate []byte) {
	t.Helper()
	to, err := url.Parse(of)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bytes.TrimSpace(ca)) {
		t.Fatalf("%s: no CA", of)
	}
	proxy := httptest.NewTLSServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
		ModifyResponse: func(r *http.Response) error {
			r.Header.Set("Date", time.Now().Add(by).UTC().Format(http.TimeFormat))
			return nil
		},
	})
	t.Cleanup(proxy.Close)
	return proxy.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: proxy.Certificate().Raw})
}
