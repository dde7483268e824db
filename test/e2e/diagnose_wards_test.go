package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/check"
)

// This file is all that can be wrong, by what is wrong with it.

func (h hospital) wards() []ward {
	return []ward{
		h.secretsThatAreMissing(),
		h.serverSecretIsMissing(),
		h.addresses(),
		h.datesAndNames(),
		h.roles(),
		h.chains(),
		h.trust(),
		h.trustThatIsGone(),
		h.clustersThatDoNotAnswer(),
		h.vaultSealed(),
		h.vaultDenies(),
		h.mountGone(),
		h.configuration(),
		h.serverThatDoesNotReload(),
		h.mounts(),
		h.notes(),
		h.serverAway(),
		h.agentsAndKeys(),
		h.withToken(), // what comes after has its root that stands by
		h.withSecretID(),
	}
}

// kubectl runs kubectl with the operator's environment.
func (h hospital) kubectl(cluster, line string) func(*testing.T) {
	return func(t *testing.T) { t.Helper(); h.sh(t, "kubectl --context "+cluster+" -n gloo-mesh "+line) }
}

func all(do ...func(*testing.T)) func(*testing.T) {
	return func(t *testing.T) {
		t.Helper()
		for _, one := range do {
			one(t)
		}
	}
}

// renamed has cert-manager store a certificate elsewhere, so that the Secret stays away.
func (h hospital) renamed(cluster, certificate, secret string) func(*testing.T) {
	return all(
		h.kubectl(cluster, "patch certificate "+certificate+" --type=merge -p '"+`{"spec":{"secretName":"misnamed"}}`+"'"),
		h.kubectl(cluster, "delete secret "+secret),
	)
}

func (h hospital) secretsThatAreMissing() ward {
	return ward{
		name: "secrets", also: []string{check.AgentTrust, check.Registrations, check.Handshake, check.RelayAgent, check.AgentsConnected, check.CertificateRoot},
		breakages: []breakage{
			{
				name: "the agent's trust", check: check.AgentTrust, cluster: "cluster1", status: check.Fail, mend: check.SetUp,
				says: "Secret gloo-mesh/relay-root-tls-secret is missing", evidence: "relay-root-tls-secret", command: "relaypki setup",
				make: all(h.kubectl("cluster1", "delete secret relay-root-tls-secret"), h.kubectl("cluster1", "rollout restart deploy/gloo-mesh-agent")),
			},
			{
				name: "the guide's line in the agent's log", check: check.PodReady, cluster: "cluster1", status: check.Fail, mend: check.SetUp,
				says: "the agent's trust, relay-root-tls-secret, is missing", evidence: `secrets \"relay-root-tls-secret\" not found`,
				make: func(*testing.T) {},
			},
			{
				name: "the client's certificate", check: check.CertificateSecret, cluster: "cluster2", status: check.Fail, mend: check.SetUp,
				says: "relay-client-tls-secret is missing", evidence: "secretName", command: "relaypki setup",
				make: h.renamed("cluster2", "relay-client-tls", "relay-client-tls-secret"),
			},
			{
				name: "the identity token", check: check.IdentityToken, cluster: "mgmt", status: check.Fail, mend: check.SetUp,
				says: "relay-identity-token-secret", command: "relaypki setup",
				make: h.kubectl("mgmt", "delete secret relay-identity-token-secret"),
			},
			{
				name: "a registration", check: check.RegisteredName, cluster: "cluster2", status: check.Fail, mend: check.SetUp,
				says: "KubernetesCluster gloo-mesh/cluster2 is missing", command: "relaypki setup",
				make: h.kubectl("mgmt", "delete kubernetescluster cluster2"),
			},
			{
				name: "the list of registrations", check: check.Registrations, cluster: "mgmt", status: check.Fail, mend: check.SetUp,
				says: "not registered: cluster2", evidence: "KubernetesClusters of gloo-mesh: ", command: "get kubernetesclusters",
				make: func(*testing.T) {},
			},
			h.backOff(),
			h.cannotMount(),
		},
	}
}

func (h hospital) serverSecretIsMissing() ward {
	return ward{
		name: "server's secret", also: []string{check.Handshake, check.RelayServer, check.AgentsConnected, check.ServedCertificate, check.AcceptableCAs, check.AgentTrust, check.CertificateRoot, check.RelayAgent},
		breakages: []breakage{
			{
				name: "the server's certificate", check: check.CertificateSecret, cluster: "mgmt", status: check.Fail, mend: check.SetUp,
				says: "relay-server-tls-secret is missing", evidence: "secretName", command: "relaypki setup",
				make: all(h.renamed("mgmt", "relay-server-tls", "relay-server-tls-secret"), h.kubectl("mgmt", "rollout restart deploy/gloo-mesh-mgmt-server")),
			},
			{
				name: "the guide's line in the server's log", check: check.PodReady, cluster: "mgmt", status: check.Fail, mend: check.SetUp,
				says: "the server's Secret is missing or misnamed", evidence: `no tls secret found for grpc server`,
				make: func(*testing.T) {},
			},
		},
	}
}

// address has an agent told of another server.
func (h hospital) address(cluster, address string) func(*testing.T) {
	return func(t *testing.T) {
		t.Helper()
		deployments := h.cluster(t, cluster).kube.AppsV1().Deployments("gloo-mesh")
		d, err := deployments.Get(t.Context(), "gloo-mesh-agent", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i, arg := range d.Spec.Template.Spec.Containers[0].Args {
			if strings.HasPrefix(arg, "--server-address=") {
				d.Spec.Template.Spec.Containers[0].Args[i] = "--server-address=" + address
			}
		}
		if _, err := deployments.Update(t.Context(), d, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

func (h hospital) addresses() ward {
	return ward{
		name: "addresses", also: []string{check.RelayAgent, check.AgentsConnected, check.PodReady},
		breakages: []breakage{
			{
				name: "the guide's malformed address", check: check.AgentAddress, cluster: "cluster1", status: check.Fail, mend: check.SetUp,
				says: "malformed", evidence: "34.145.18106:9900:9900", command: "relaypki setup",
				make: h.address("cluster1", "34.145.18106:9900:9900"),
			},
			{
				name: "another address", check: check.AgentAddressWrong, cluster: "cluster2", status: check.Fail, mend: check.SetUp,
				evidence: "127.0.0.1:1", command: "relaypki setup",
				make: h.address("cluster2", "127.0.0.1:1"),
			},
		},
	}
}

// forged stores a certificate that is under the mesh's root, by an intermediate of
// its own, with these names, that begins and ends so long from now. cert-manager is away meanwhile: it would have
// another one issued at once.
func (h hospital) forged(cluster string, begins, ends time.Duration, names ...string) func(*testing.T) {
	return func(t *testing.T) {
		t.Helper()
		caKey, key := newKey(t), newKey(t)
		answer := h.write(t, "pki/issuer/relay-root-g1/sign-intermediate", map[string]any{
			"csr": request(t, caKey), "common_name": "gloo-mesh-mgmt-server-ca", "ttl": "720h", "format": "pem"})
		ca := certificate(t, []byte(answer["certificate"].(string)))
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
			NotBefore: time.Now().Add(begins), NotAfter: time.Now().Add(ends),
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}, ca, &key.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		chain := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})...)
		_, secret := leafOf(cluster)
		h.kubectl(cluster, fmt.Sprintf(`patch secret %s --type=merge -p '{"data":{"tls.crt":%q,"tls.key":%q}}'`, secret,
			base64.StdEncoding.EncodeToString(chain), base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))))(t)
	}
}

// certManagerAway has a cluster's cert-manager scaled to nothing.
func (h hospital) certManagerAway(cluster string) func(*testing.T) {
	return func(t *testing.T) {
		t.Helper()
		h.sh(t, fmt.Sprintf("kubectl --context %s -n cert-manager scale deploy/cert-manager --replicas=0", cluster))
		h.sh(t, fmt.Sprintf("kubectl --context %s -n cert-manager wait --for=delete pod -l app.kubernetes.io/component=controller --timeout=60s", cluster))
	}
}

// replaced waits until cert-manager, back again, has issued in the place of a forged
// certificate: a mend that comes sooner and one that comes later have other things to do.
func (h hospital) replaced(cluster string) func(*testing.T) {
	return func(t *testing.T) {
		t.Helper()
		name, secret := leafOf(cluster)
		c := h.cluster(t, cluster)
		eventually(t, time.Minute, func() error {
			stored, err := c.kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), secret, metav1.GetOptions{})
			if err != nil {
				return err
			}
			requests, err := c.cm.CertmanagerV1().CertificateRequests("gloo-mesh").List(t.Context(), metav1.ListOptions{})
			if err != nil {
				return err
			}
			for _, request := range requests.Items {
				if bytes.Equal(request.Status.Certificate, stored.Data["tls.crt"]) {
					return nil
				}
			}
			return fmt.Errorf("%s: no CertificateRequest of %s has what Secret %s holds", cluster, name, secret)
		})
		h.settled(t, cluster)
	}
}

func (h hospital) datesAndNames() ward {
	w := ward{
		name: "dates and names", also: []string{check.Handshake, check.RelayAgent, check.RelayServer, check.AgentsConnected, check.PodReady, check.ServedCertificate, check.AcceptableCAs,
			check.RegisteredName, check.GaugesLie, check.StaleAgent, check.TTLNesting, check.RenewWindow},
		breakages: []breakage{
			{
				name: "an expired server certificate", check: check.CertificateLifetime, cluster: "mgmt", status: check.Fail, mend: check.Reissue,
				says: "expired at", evidence: "tls.crt[0]: subject \"CN=gloo-mesh-mgmt-server-ca\"", command: "cmctl --context mgmt renew -n gloo-mesh relay-server-tls",
				make: h.forged("mgmt", -20*time.Second, -2*time.Second, "gloo-mesh-mgmt-server-ca", "*.gloo-mesh"), undo: h.replaced(management),
			},
			{
				name: "a client certificate from tomorrow", check: check.CertificateLifetime, cluster: "cluster1", status: check.Fail,
				says: "is not valid before", evidence: "the worker's clock", command: "date -u",
				make: h.forged("cluster1", 24*time.Hour, 48*time.Hour, "cluster1"), undo: h.replaced("cluster1"),
			},
			{
				name: "a client certificate of another name", check: check.CertificateNames, cluster: "cluster2", status: check.Fail, mend: check.SetUp,
				says: `the certificate is for elsewhere, and the cluster's registered name is "cluster2"`, evidence: "DNS names elsewhere", command: "spec.dnsNames",
				make: h.forged("cluster2", -20*time.Second, 24*time.Hour, "elsewhere"), undo: h.replaced("cluster2"),
			},
		},
	}
	for _, cluster := range h.all() {
		w.breakages = append([]breakage{{
			name: "cert-manager is away", check: check.CertManager, cluster: cluster, status: check.Fail,
			says: "has 0 of 0 replicas available", evidence: "spec.replicas 0", command: "scale deployment/cert-manager --replicas=1",
			make: h.certManagerAway(cluster), pasted: true,
		}}, w.breakages...)
	}
	return w
}

// renew has cert-manager issue anew, however that ends.
func (h hospital) renew(cluster string) func(*testing.T) {
	return func(t *testing.T) {
		t.Helper()
		name, _ := leafOf(cluster)
		if _, err := issueAnew(t.Context(), h.cluster(t, cluster), name, "ManuallyTriggered"); err != nil {
			t.Fatal(err)
		}
	}
}

func (h hospital) roles() ward {
	return ward{
		name: "roles", also: []string{check.IssuerReady, check.StaleAgent},
		breakages: []breakage{
			{
				name: "a role that is gone", check: check.VaultRole, cluster: "mgmt", object: "role relay-client-cluster1", status: check.Fail, mend: check.SetUp,
				says: "is missing", command: "relaypki setup",
				make: func(t *testing.T) { h.sh(t, "vault delete pki_relay/roles/relay-client-cluster1") },
			},
			{
				name: "the chain of what cert-manager says", check: check.CertificateReady, cluster: "cluster1", status: check.Warn, mend: check.Reissue,
				evidence: "CertificateRequest", says: "unknown role",
				make: h.renew("cluster1"),
			},
			{
				name: "a role that allows any name", check: check.VaultRole, cluster: "mgmt", object: "role gloo-mesh-mgmt-server-ca", status: check.Fail, mend: check.SetUp,
				says: "allows any name", evidence: "allow_any_name", command: "relaypki setup",
				make: func(t *testing.T) {
					h.sh(t, "vault patch pki_relay/roles/gloo-mesh-mgmt-server-ca allow_any_name=true")
				},
			},
			{
				name: "certificates cut short", check: check.TTLNesting, cluster: "mgmt", status: check.Fail, mend: check.SetUp,
				evidence: "max_ttl", command: "relaypki setup",
				make: func(t *testing.T) { h.sh(t, "vault patch pki_relay/roles/relay-client-cluster2 max_ttl=1h") },
			},
			{
				name: "an Issuer that signs elsewhere", check: check.IssuerReady, cluster: "cluster2", object: "Issuer gloo-mesh/vault-issuer", status: check.Fail, mend: check.SetUp,
				says: `it signs at "pki_relay/sign/elsewhere"`, evidence: "spec.vault.path: pki_relay/sign/elsewhere", command: "describe issuer vault-issuer",
				make: h.kubectl("cluster2", `patch issuer vault-issuer --type=merge -p '{"spec":{"vault":{"path":"pki_relay/sign/elsewhere"}}}'`),
			},
			{
				name: "an issuer that outlives itself", check: check.VaultIntermediate, cluster: "mgmt", status: check.Fail, mend: check.SetUp,
				evidence: "leaf_not_after_behavior", command: "vault patch",
				make: func(t *testing.T) {
					h.sh(t, "vault patch pki_relay/issuer/relay-intermediate-g1 leaf_not_after_behavior=truncate")
				},
			},
		},
	}
}

func (h hospital) chains() ward {
	return ward{
		name: "chains", also: []string{check.Handshake, check.AgentTrust, check.IssuerReady, check.StaleAgent, check.AgentsConnected, check.RelayAgent, check.GaugesLie, check.RegisteredName},
		breakages: []breakage{
			{
				name: "ca.crt is the intermediate", check: check.CertificateRoot, cluster: "cluster1", status: check.Fail, mend: check.Reissue,
				says: "no self-signed root", evidence: "ca.crt",
				make: func(t *testing.T) {
					h.sh(t, "vault patch pki_relay/issuer/relay-intermediate-g1 manual_chain=self")
					h.renew("cluster1")(t)
					h.settled(t, "cluster1")
				},
			},
			{
				name: "what Vault says of it", check: check.VaultChain, cluster: management, status: check.Fail,
				says: "chain", evidence: "ca_chain", command: "vault patch pki_relay/issuer/",
				make: func(t *testing.T) {
					h.write(t, "pki_relay/root/generate/internal", map[string]any{"common_name": "somebody else", "ttl": "720h", "issuer_name": "elsewhere", "key_name": "elsewhere"})
					h.sh(t, "vault patch pki_relay/issuer/relay-intermediate-g1 manual_chain=self,elsewhere,relay-root-g1")
				},
				undo: func(t *testing.T) {
					h.sh(t, "vault patch pki_relay/issuer/relay-intermediate-g1 manual_chain=self,relay-root-g1")
					h.sh(t, "vault delete pki_relay/issuer/elsewhere && vault delete pki_relay/key/elsewhere")
				},
			},
			{
				name: "a chain without its intermediate", check: check.CertificateChain, cluster: "cluster2", object: "Secret gloo-mesh/relay-client-tls-secret", status: check.Fail, mend: check.Reissue,
				says: "does not verify under its own ca.crt", evidence: "tls.crt[0]: ", command: "cmctl --context cluster2 renew",
				make: func(t *testing.T) {
					h.sh(t, `kubectl --context cluster2 -n gloo-mesh get secret relay-client-tls-secret -o json | jq '.data["tls.crt"] |= (@base64d | split("-----END")[0] + "-----END CERTIFICATE-----\n" | @base64)' | kubectl --context cluster2 replace -f -`)
				},
			},
			{
				name: "a chain that is not one line", check: check.CertificateReady, cluster: "cluster2", status: check.Warn, mend: check.Reissue,
				says: "malformed", evidence: "CertificateRequest",
				make: h.renew("cluster2"),
			},
		},
	}
}

// rootElsewhere is a root that has nothing to do with the mesh, as a Secret has it.
func (h hospital) rootElsewhere(t *testing.T) string {
	t.Helper()
	h.sh(t, "vault secrets enable -path=elsewhere pki")
	root := h.write(t, "elsewhere/root/generate/internal", map[string]any{"common_name": "somebody else", "ttl": "720h"})
	h.sh(t, "vault secrets disable elsewhere")
	return base64.StdEncoding.EncodeToString([]byte(root["certificate"].(string)))
}

func (h hospital) trust() ward {
	return ward{
		name: "trust",
		breakages: []breakage{
			{
				name: "trust without the root in use", check: check.AgentTrust, cluster: "cluster1", status: check.Fail, mend: check.SetUp,
				says: "not the root", evidence: "somebody else", command: "relaypki setup",
				make: func(t *testing.T) {
					h.kubectl("cluster1", fmt.Sprintf(`patch secret relay-root-tls-secret --type=merge -p '{"data":{"ca.crt":%q}}'`, h.rootElsewhere(t)))(t)
				},
			},
			{
				name: "gauges that count it all the same", check: check.GaugesLie, cluster: "cluster1", status: check.Fail, mend: check.SetUp,
				says: "at the next reconnect the cluster is cut off", evidence: `relay_pull_clients_connected{cluster="cluster1"} 1`,
				make: func(*testing.T) {},
			},
			{
				name: "a fresh handshake", check: check.Handshake, cluster: "cluster1", object: "Pod gloo-mesh/gloo-mesh-mgmt-server-", status: check.Fail, mend: check.SetUp,
				says: "a fresh handshake fails: ", evidence: "port 9900: ", command: "logs deployment/gloo-mesh-agent",
				make: func(*testing.T) {},
			},
			{
				name: "an agent with the trust from before", check: check.StaleTrust, cluster: "cluster2", object: "Secret gloo-mesh/relay-root-tls-secret", status: check.Warn, mend: check.Restart,
				says: "it still holds the trust from before", evidence: "last written", command: "rollout restart",
				make: func(t *testing.T) {
					h.sh(t, "kubectl --context cluster2 -n gloo-mesh get secret relay-root-tls-secret -o json | kubectl --context cluster2 replace --force -f -")
				},
			},
			{
				name: "an agent with what was before", check: check.StaleAgent, cluster: "cluster2", status: check.Warn, mend: check.Restart,
				evidence: "Pod", command: "rollout restart",
				make: func(t *testing.T) { h.renew("cluster2")(t); h.settled(t, "cluster2") },
			},
		},
	}
}

// trustThatIsGone is of the agent that reads it at its start alone: the setup that puts
// it back leaves the agent with what it had, and the restart follows.
func (h hospital) trustThatIsGone() ward {
	return ward{
		name: "trust that is gone", also: []string{check.Handshake},
		breakages: []breakage{{
			name: "the trust of an agent that does not reload", check: check.AgentTrust, cluster: "cluster2", status: check.Fail, mend: check.SetUp,
			says: "Secret gloo-mesh/relay-root-tls-secret is missing", evidence: "relay-root-tls-secret", command: "relaypki setup",
			make: h.kubectl("cluster2", "delete secret relay-root-tls-secret"),
		}},
	}
}

func (h hospital) clustersThatDoNotAnswer() ward {
	return ward{
		name: "clusters that do not answer", also: []string{check.AgentsConnected},
		breakages: []breakage{{
			name: "an API server that is away", check: check.ClusterReachable, cluster: "cluster2", status: check.Fail,
			says: "does not answer", evidence: "connection refused", command: "kubectl",
			make: func(t *testing.T) {
				if _, err := h.lab("stop", "cluster2-apiserver"); err != nil {
					t.Fatal(err)
				}
			},
			undo: func(t *testing.T) {
				if _, err := h.lab("start", "cluster2-apiserver"); err != nil {
					t.Fatal(err)
				}
			},
		}},
	}
}

// unseal is what the remedy of a sealed Vault has a person do.
func (w *world) unseal(t *testing.T) {
	t.Helper()
	var keys struct{ UnsealKey string }
	data, err := os.ReadFile(filepath.Join(w.dir, "vault", "init.json"))
	if err == nil {
		err = json.Unmarshal(data, &keys)
	}
	if err == nil {
		_, err = w.vault(t).Sys().Unseal(keys.UnsealKey)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (h hospital) vaultSealed() ward {
	return ward{
		name: "Vault sealed", also: []string{check.IssuerReady, check.ClusterToken, check.PinnedKeys},
		breakages: []breakage{{
			name: "Vault is sealed", check: check.VaultAvailable, cluster: management, status: check.Fail,
			says: "is sealed", evidence: "sealed true", command: "vault operator unseal",
			make: func(t *testing.T) {
				if err := h.vault(t).Sys().Seal(); err != nil {
					t.Fatal(err)
				}
			},
			undo: h.unseal,
		}},
	}
}

func (h hospital) vaultDenies() ward {
	const policy = "relaypki-operate"
	was := ""
	return ward{
		name: "Vault denies", also: []string{check.TTLNesting, check.PKICRLValidity, check.PKIRootIssuedLeaves, check.PKIRoleLocalhost, check.PKIRoleGlobWildcards, check.PKIRoleNoStore,
			check.PKIAuditVisibility, check.PKIAutoTidy, check.PKITooManyCerts, check.PKIACMEIssuance},
		breakages: []breakage{{
			name: "the worker's policy lacks a path", check: check.VaultRoot, cluster: management, status: check.Fail,
			says: "may not read mount pki", evidence: `denied (403) to identity "operate"`, command: "vault",
			make: func(t *testing.T) {
				var err error
				if was, err = h.vault(t).Sys().GetPolicy(policy); err == nil {
					err = h.vault(t).Sys().PutPolicy(policy, strings.ReplaceAll(was, "pki/", "elsewhere/"))
				}
				if err != nil {
					t.Fatal(err)
				}
			},
			undo: func(t *testing.T) {
				if err := h.vault(t).Sys().PutPolicy(policy, was); err != nil {
					t.Fatal(err)
				}
			},
		}},
	}
}

// mountGone has the relay mount moved away: what is in it is not lost.
func (h hospital) mountGone() ward {
	return ward{
		name: "mount gone", also: []string{check.VaultRole, check.IssuerReady, check.TTLNesting, check.PKIAuditVisibility},
		breakages: []breakage{{
			name: "the relay mount is not there", check: check.VaultIntermediate, cluster: management, status: check.Fail,
			says: "mount pki_relay is missing", evidence: "pki_relay", command: "vault",
			make: func(t *testing.T) { h.sh(t, "vault secrets move pki_relay pki_moved") },
			undo: func(t *testing.T) { h.sh(t, "vault secrets move pki_moved pki_relay") },
		}},
	}
}

func (h hospital) configuration() ward {
	const webhook, url = "kubectl --context mgmt patch validatingwebhookconfiguration cert-manager-webhook --type=json -p ", "/webhooks/0/clientConfig/url"
	was := ""
	leads := func(t *testing.T, to string) {
		h.sh(t, webhook+fmt.Sprintf(`'[{"op":"replace","path":%q,"value":%q}]'`, url, to))
	}
	return ward{
		name: "configuration", also: []string{check.StaleAgent},
		breakages: []breakage{
			{
				name: "a Secret that belongs to a Helm release", check: check.HelmOwned, cluster: "cluster1", status: check.Warn,
				says: "belongs to the Helm release gloo-platform", evidence: "meta.helm.sh/release-name", command: "helm.sh/resource-policy=keep",
				make: h.kubectl("cluster1", "annotate secret relay-root-tls-secret meta.helm.sh/release-name=gloo-platform"), pasted: true,
			},
			{
				name: "Vault's root token in a cluster", check: check.RootToken, cluster: "cluster2", status: check.Fail,
				says: "Vault's root token is in this cluster", evidence: "policies root", command: "delete secret vault-token",
				make: h.kubectl("cluster2", `create secret generic vault-token --from-literal=token="$VAULT_TOKEN"`), pasted: true,
			},
			{
				name: "renewed again and again", check: check.RenewWindow, cluster: "cluster1", status: check.Warn, mend: check.SetUp,
				says: "renewBefore is close to duration", evidence: "duration 24h, renewBefore 22h", command: "relaypki setup",
				make: h.kubectl("cluster1", "patch certificate relay-client-tls --type=merge -p '"+`{"spec":{"renewBefore":"22h"}}`+"'"),
			},
			{
				name: "cert-manager's webhook leads nowhere", check: check.Webhook, cluster: management, status: check.Fail,
				says: "does not answer", evidence: "connection refused", command: "get validatingwebhookconfiguration cert-manager-webhook",
				make: func(t *testing.T) {
					was = h.sh(t, "kubectl --context mgmt get validatingwebhookconfiguration cert-manager-webhook -o jsonpath='{.webhooks[0].clientConfig.url}'")
					leads(t, "https://127.0.0.1:1/validate")
				},
				undo: func(t *testing.T) { leads(t, was) },
			},
		},
	}
}

// serverThatDoesNotReload is one whose Deployment somebody has told so: it serves what
// it started with.
func (h hospital) serverThatDoesNotReload() ward {
	return ward{
		name: "server that does not reload", also: []string{check.Handshake, check.AgentsConnected, check.GaugesLie},
		breakages: []breakage{{
			name: "it serves the certificate from before", check: check.ServedCertificate, cluster: management, status: check.Fail, mend: check.Restart,
			says: "the server has not loaded it", evidence: "port 9900, presents[0]", command: "rollout restart deployment/gloo-mesh-mgmt-server",
			make: func(t *testing.T) {
				h.kubectl("mgmt", fmt.Sprintf(`patch secret relay-server-tls-secret --type=merge -p '{"data":{"ca.crt":%q}}'`, h.rootElsewhere(t)))(t)
				h.sh(t, `kubectl --context mgmt -n gloo-mesh get deployment gloo-mesh-mgmt-server -o json | jq '(.spec.template.spec.containers[0].args[] | select(startswith("--reload="))) = "--reload=restartOnly"' | kubectl --context mgmt apply -f -`)
				h.sh(t, "kubectl --context mgmt -n gloo-mesh rollout status deployment/gloo-mesh-mgmt-server --timeout=60s")
				h.renew(management)(t)
				h.settled(t, management)
			},
		}, {
			name: "it accepts the CA from before", check: check.AcceptableCAs, cluster: management, object: "Pod gloo-mesh/gloo-mesh-mgmt-server-", status: check.Fail, mend: check.Restart,
			says: "it accepts clients of other CAs", evidence: "asks for a client certificate: true, under 1 CAs", command: "rollout restart deployment/gloo-mesh-mgmt-server",
			make: func(*testing.T) {},
		}},
	}
}
