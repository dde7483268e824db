package check

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
)

// Management is what was seen of the management cluster and of Vault.
type Management struct {
	Spec mesh.Spec
	// Others are members of the mesh that are not looked at.
	Others []string
	// Pin is as the mesh's record has it.
	Pin Pin
	// Unreachable is why the API server did not answer; nothing of the cluster
	// was then looked at, but Vault was.
	Unreachable string

	Vault         SeenVault
	CertManager   []SeenDeployment
	Issuer        SeenIssuer
	Certificate   SeenCertificate
	Secret        SeenSecret
	Keys          SeenKeys
	Token         SeenToken
	Server        SeenDeployment
	Replicas      []SeenReplica
	Registered    []string
	RegisteredGap Gap

	// What follows is of a diagnosis alone.
	Looks      Looks
	VaultClock SeenClock
	PKI        []SeenPKI
}

// Findings are the verdicts on the management cluster at the given time.
func (m Management) Findings(now time.Time) []Finding {
	r := &report{cluster: m.Spec.Management.Context}
	m.verify(r, now)
	return r.findings
}

// verify makes the checks of a verification.
func (m Management) verify(r *report, now time.Time) {
	spec := m.Spec
	if m.Unreachable != "" {
		r.transient(ClusterReachable, "", "the API server of "+r.cluster+" does not answer: "+m.Unreachable, "see that the worker's kubeconfig is right and the API server up, then verify again")
		r.vault(spec, m.Vault, now)
		return
	}
	r.pass(ClusterReachable, "", "the API server answers")
	r.vault(spec, m.Vault, now)
	r.certManager(m.CertManager)
	r.issuer(spec, spec.PKI.Role, m.Issuer)
	r.certificate(spec.Namespace, spec.Certificates.Server, m.Certificate)
	root := r.secret(spec.Namespace, use{
		asked: spec.Certificates.Server, usage: x509.ExtKeyUsageServerAuth,
		names:  func(leaf *x509.Certificate) error { return coversAuthority(leaf, spec.Gloo.Authority) },
		remedy: "make certificates.server.dnsNames of the input cover gloo.authority (" + spec.Gloo.Authority + "), and run SetupMesh again",
	}, m.Secret, m.Pin, now)
	r.pinnedKeys(m.Keys)
	r.clusterToken(m.Token)
	r.deployment(RelayServer, InServer, m.Server)
	for _, replica := range m.Replicas {
		r.loaded(spec, replica, m.Secret.Chain, root, now)
	}
	r.registrations(spec, m.Others, m.Registered, m.RegisteredGap)
	r.connected(spec, m.Replicas)
}

func coversAuthority(leaf *x509.Certificate, authority string) error {
	if err := leaf.VerifyHostname(authority); err != nil {
		return fmt.Errorf("the certificate is for %s, and agents expect %q", strings.Join(leaf.DNSNames, ", "), authority)
	}
	return nil
}

// loaded judges what one replica has in use against what is stored.
func (r *report) loaded(spec mesh.Spec, seen SeenReplica, stored []*x509.Certificate, root *x509.Certificate, now time.Time) {
	object := "Pod " + spec.Namespace + "/" + seen.Pod
	restart := fmt.Sprintf("`kubectl -n %s rollout restart deploy/%s` in the management cluster", spec.Namespace, mesh.ServerDeployment)
	if seen.LoadedError != "" {
		message, remedy := "no handshake with its relay port: "+seen.LoadedError, "see pod-ready, and the server's log"
		if s, ok := Explain(AtHandshake, seen.LoadedError); ok {
			message, remedy = message+". That means: "+s.Meaning, s.Remedy
		}
		r.fail(ServedCertificate, object, message, remedy)
		return
	}
	served := seen.Loaded.Chain
	switch err := servable(served, root, spec.Gloo.Authority, now); {
	case len(stored) > 0 && !served[0].Equal(stored[0]) && err == nil && spec.Management.Reload == mesh.ReloadRestart && slices.EqualFunc(served[1:], stored[1:], (*x509.Certificate).Equal):
		r.warn(ServedCertificate, object, fmt.Sprintf("serves the certificate from before the last renewal, until %s: it reads its Secret at its start alone", pki.Date(served[0].NotAfter)), "until then, "+restart)
	case len(stored) > 0 && !served[0].Equal(stored[0]):
		// A renewal may have come a moment ago.
		r.transient(ServedCertificate, object, fmt.Sprintf("serves serial %s, and the Secret holds %s: the server has not loaded it", pki.Serial(served[0]), pki.Serial(stored[0])), restart)
	case err != nil:
		r.fail(ServedCertificate, object, "agents refuse what it serves: "+err.Error(), renewServer)
	default:
		r.pass(ServedCertificate, object, "serves serial %s, the Secret's", pki.Serial(served[0]))
	}

	switch {
	case !seen.Loaded.AsksForCertificate:
		r.fail(AcceptableCAs, object, "it asks for no client certificate: anybody may connect", "set glooMgmtServer.relay.disableCa and tlsSecret as SetupMesh does, and restart the server")
	case len(seen.Loaded.AcceptableCAs) == 0:
		r.warn(AcceptableCAs, object, "it asks for a client certificate and names no CA, so that what it trusts cannot be seen", "the handshake of each workload cluster shows whether it is right")
	case root == nil:
		r.warn(AcceptableCAs, object, "there is no root to compare with", "see certificate-root")
	case !contains(seen.Loaded.AcceptableCAs, root.RawSubject):
		r.transient(AcceptableCAs, object, fmt.Sprintf("it accepts clients of other CAs than %s: its ca.crt is an older one", pki.Name(root)), restart)
	default:
		r.pass(AcceptableCAs, object, "accepts clients under %s", pki.Name(root))
	}
}

func servable(served []*x509.Certificate, root *x509.Certificate, authority string, now time.Time) error {
	if len(served) == 0 {
		return errors.New("no certificate at all")
	}
	if root == nil {
		return nil // said by certificate-root
	}
	return pki.Peer{Trust: []*x509.Certificate{root}, Name: authority, Usage: x509.ExtKeyUsageServerAuth, At: now}.Verify(served)
}

func (r *report) registrations(spec mesh.Spec, others, registered []string, gap Gap) {
	if gap.report(r, Registrations, "the list of KubernetesClusters", "install the gloo-platform-crds chart, or let SetupMesh do so") {
		return
	}
	var missing, extra []string
	for _, w := range spec.Workloads {
		if !slices.Contains(registered, w.Name) {
			missing = append(missing, w.Name)
		}
	}
	for _, name := range registered {
		if _, ok := spec.Workload(name); !ok && !slices.Contains(others, name) {
			extra = append(extra, name)
		}
	}
	switch {
	case len(missing) > 0:
		r.fail(Registrations, "", "not registered: "+strings.Join(missing, ", "), runSetup+": its step RegisterCluster makes the KubernetesCluster")
	case len(extra) > 0:
		r.warn(Registrations, "", "registered, and not in the mesh's input: "+strings.Join(extra, ", "), "add them to the input, or `kubectl -n "+spec.Namespace+" delete kubernetescluster` them")
	default:
		r.pass(Registrations, "", "%d clusters, those of the mesh", len(registered))
	}
}

// connected judges the gauges, summed over the replicas.
func (r *report) connected(spec mesh.Spec, replicas []SeenReplica) {
	pull, push := map[string]float64{}, map[string]float64{}
	read, standIn := 0, false
	for _, replica := range replicas {
		object := "Pod " + spec.Namespace + "/" + replica.Pod
		if replica.MetricsError != "" {
			r.fail(AgentsConnected, object, "its metrics could not be read: "+replica.MetricsError, "see pod-ready, and that the worker may create pods/portforward")
			continue
		}
		read++
		standIn = standIn || replica.Metrics.StandIn
		for cluster, n := range replica.Metrics.Pull {
			pull[cluster] += n
		}
		for cluster, n := range replica.Metrics.Push {
			push[cluster] += n
		}
	}
	if standIn {
		r.warn(StandIn, "", "the management server is the lab's stand-in, not Gloo Mesh: what is proved here is proved of the certificates and of the stand-in",
			"nothing in the lab; on real clusters install Gloo's own charts")
	}
	if read == 0 {
		if len(replicas) == 0 {
			r.fail(AgentsConnected, "", "there is no Pod of the management server to ask", "see relay-server")
		}
		return
	}
	for _, w := range spec.Workloads {
		of := &report{cluster: w.Name}
		seen := fmt.Sprintf("%g pull and %g push streams are open", pull[w.Name], push[w.Name])
		switch {
		case pull[w.Name] < 1 || push[w.Name] < 1:
			of.fail(AgentsConnected, "", seen+": the agent is not connected", "see handshake, pod-ready and registered-name of this cluster; if all pass, the agent's log and its server address")
		case pull[w.Name] > 1 || push[w.Name] > 1:
			of.warn(AgentsConnected, "", seen+": more than one agent goes by this name, or an old connection has not ended yet", "verify again in a minute; if it stays so, look for a second agent with this cluster name")
		default:
			of.pass(AgentsConnected, "", "%s", seen)
		}
		r.findings = append(r.findings, of.findings...)
	}
}

// Settled is true when every replica is ready and the gauges count every
// cluster: what takes a moment after an installation.
func (m Management) Settled() bool {
	r := &report{cluster: m.Spec.Management.Context}
	r.deployment(RelayServer, InServer, m.Server)
	r.connected(m.Spec, m.Replicas)
	return Healthy(r.findings)
}
