package check

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
)

// Workload is what was seen of one workload cluster.
type Workload struct {
	Spec    mesh.Spec
	Cluster mesh.Workload
	// Pin is as the mesh's record has it.
	Pin Pin
	// Unreachable is why the API server did not answer; nothing else was then
	// looked at.
	Unreachable string

	CertManager []SeenDeployment
	Issuer      SeenIssuer
	Certificate SeenCertificate
	Secret      SeenSecret
	// RootSecret is relay-root-tls-secret; only its CA is filled in.
	RootSecret SeenSecret
	// Standby is the root that stands by; nil if there is none.
	Standby *x509.Certificate
	Keys    SeenKeys
	Token   SeenToken
	Agent   SeenDeployment
	// AgentAddress is what the agent's container is told of the server; empty
	// when its arguments do not say.
	AgentAddress string
	// Private is why the management cluster was not looked at: the worker is
	// one inside a private network that serves this cluster alone.
	Private string
	// RegisteredGap is whether there is a KubernetesCluster of this name.
	RegisteredGap Gap
	// HandshakesError is why no handshake could be tried.
	HandshakesError string
	Handshakes      []SeenHandshake

	// What follows is of a diagnosis alone. Gauges are read when a handshake fails.
	Looks  Looks
	Relay  SeenAddress
	Gauges Metrics
}

// Trust is the Secret whose ca.crt the agent checks the server against.
func (w Workload) Trust() (name string, seen SeenSecret) {
	if w.Cluster.Agent.Trust == mesh.TrustOwn {
		return w.Spec.Certificates.Client.SecretName, w.Secret
	}
	return mesh.RootSecretName, w.RootSecret
}

// HandshakeFindings are the verdicts on the handshakes alone.
func (w Workload) HandshakeFindings() []Finding {
	r := &report{cluster: w.Cluster.Name}
	r.handshakes(w.Spec, w)
	return r.findings
}

// Findings are the verdicts on the workload cluster at the given time.
func (w Workload) Findings(now time.Time) []Finding {
	r := &report{cluster: w.Cluster.Name}
	w.verify(r, now)
	return r.findings
}

// verify makes the checks of a verification.
func (w Workload) verify(r *report, now time.Time) {
	if w.Unreachable != "" {
		r.transient(ClusterReachable, "", "the API server of "+w.Cluster.Context+" does not answer: "+w.Unreachable,
			"see that the worker's kubeconfig is right and the API server up, then verify again; its cert-manager may go on renewing by itself meanwhile")
		return
	}
	spec := w.Spec
	asked := spec.ClientCertificate(w.Cluster)
	r.pass(ClusterReachable, "", "the API server answers")
	r.certManager(w.CertManager)
	r.issuer(spec, spec.RoleFor(w.Cluster), w.Issuer)
	r.certificate(spec.Namespace, asked, w.Certificate)
	root := r.secret(spec.Namespace, use{
		asked: asked, usage: x509.ExtKeyUsageClientAuth,
		names:  func(leaf *x509.Certificate) error { return isNamed(leaf, w.Cluster.Name) },
		remedy: "the Certificate's dnsNames must be the registered name: run SetupMesh again, or register the cluster under the certificate's name",
	}, w.Secret, w.Pin, now)
	r.pinnedKeys(w.Keys)
	r.clusterToken(w.Token)
	r.agentTrust(spec, w, root, now)
	r.deployment(RelayAgent, InAgent, w.Agent)
	r.agentAddress(w.AgentAddress)
	if w.Private != "" {
		r.warn(RegisteredName, "", "not compared: "+w.Private, "see registrations of the management cluster")
		r.warn(Handshake, "", "not tried: "+w.Private, "see agents-connected: the agent's own connection is the proof there is")
		return
	}
	r.registered(w)
	r.handshakes(spec, w)
}

func isNamed(leaf *x509.Certificate, name string) error {
	if !slices.Contains(leaf.DNSNames, name) {
		return fmt.Errorf("the certificate is for %s, and the cluster's registered name is %q", strings.Join(leaf.DNSNames, ", "), name)
	}
	return nil
}

// agentTrust compares with the root of the cluster's own certificate. In a rotation
// of the root that may be the bridge, which stands for the new root, or the old root,
// with the new one in the trust: then its chain leads to both. In an emergency it may
// be the intermediate itself, which, once it is pinned, is all that may be trusted.
func (r *report) agentTrust(spec mesh.Spec, w Workload, root *x509.Certificate, now time.Time) {
	cluster, s := w.Cluster, w.RootSecret
	object := "Secret " + spec.Namespace + "/" + mesh.RootSecretName
	if cluster.Agent.Trust == mesh.TrustOwn && s.Gap.Reason == NotFound {
		r.warn(AgentTrust, object, object+" is missing; this agent trusts the ca.crt of its own Secret instead", runSetup+", or the agent cannot go back to the usual trust")
		return
	}
	if s.Gap.report(r, AgentTrust, object, runSetup+": its step CopyRootSecret writes it. The agent does not start without it, although the same ca.crt is in its client Secret") {
		return
	}
	holdsRoot := root != nil && (slices.ContainsFunc(s.CA, root.Equal) ||
		(len(w.Secret.Chain) > 2 || w.Pin == Pinning) && chainProblem(SeenSecret{Chain: w.Secret.Chain, CA: s.CA}, use{usage: x509.ExtKeyUsageClientAuth}, now) == nil)
	switch {
	case s.CAError != "":
		r.fail(AgentTrust, object, object+" has no readable ca.crt: "+s.CAError, runSetup)
	case w.Pin == Pinned && root != nil && slices.ContainsFunc(s.CA, besides(root)):
		r.fail(AgentTrust, object, fmt.Sprintf("%s holds %s, and an emergency has pinned the intermediate %s: whatever else is under that is accepted too, and what is compromised with it", object, others(s.CA, root), pki.Name(root)),
			"have the emergency go on (start EmergencyReissue again with its input), then restart the agent unless it reloads")
	case w.Pin == Unpinned && slices.ContainsFunc(s.CA, func(c *x509.Certificate) bool { return !pki.SelfSigned(c) }):
		r.fail(AgentTrust, object, object+" holds a certificate that is no self-signed root", "put roots alone into it: "+runSetup)
	case root == nil:
		r.warn(AgentTrust, object, "there is no root to compare with", "see certificate-root")
	case !holdsRoot:
		r.fail(AgentTrust, object, fmt.Sprintf("%s holds %s, not the root %s of the relay", object, pki.Name(s.CA[0]), pki.Name(root)), runSetup+", then restart the agent unless it reloads")
	default:
		r.pass(AgentTrust, object, "holds the root %s", pki.Name(root))
	}
	switch {
	case w.Standby == nil || s.CAError != "":
	case !slices.ContainsFunc(s.CA, w.Standby.Equal):
		r.warn(StandbyRoot, object, fmt.Sprintf("%s does not hold %s, the root that stands by: it could not take the place of a compromised one at once", object, pki.Name(w.Standby)), setUpStandby)
	default:
		r.pass(StandbyRoot, object, "holds %s, the root that stands by", pki.Name(w.Standby))
	}
}

// besides says of an anchor that what it leads to is beside a pinned intermediate: it
// is another intermediate, or the root above. A root that stands by leads to neither.
func besides(pinned *x509.Certificate) func(*x509.Certificate) bool {
	return func(c *x509.Certificate) bool {
		return !c.Equal(pinned) && (!pki.SelfSigned(c) || pki.SignedBy(pinned, c) == nil)
	}
}

// others names the anchors that are beside the pinned intermediate.
func others(all []*x509.Certificate, pinned *x509.Certificate) string {
	var names []string
	for _, c := range all {
		if besides(pinned)(c) {
			names = append(names, pki.Name(c))
		}
	}
	return strings.Join(names, ", ")
}

func (r *report) agentAddress(address string) {
	if address == "" {
		return
	}
	if problem := mesh.AddressProblem(address); problem != "" {
		r.fail(AgentAddress, "", "the agent's server address is malformed: "+problem, fixAddress)
		return
	}
	r.pass(AgentAddress, "", "%s", address)
}

// registered compares the three names that must be one: the input's, the
// KubernetesCluster's and the client certificate's.
func (r *report) registered(w Workload) {
	object := "KubernetesCluster " + w.Spec.Management.Namespace + "/" + w.Cluster.Name
	if w.RegisteredGap.report(r, RegisteredName, object, runSetup+": its step RegisterCluster makes it") {
		return
	}
	if len(w.Secret.Chain) > 0 {
		if err := isNamed(w.Secret.Chain[0], w.Cluster.Name); err != nil {
			r.fail(RegisteredName, object, err.Error(), "rename the KubernetesCluster to the certificate's name, or re-issue the certificate with the registered one (run SetupMesh again)")
			return
		}
	}
	r.pass(RegisteredName, object, "registered under the name in the client certificate")
}

func (r *report) handshakes(spec mesh.Spec, w Workload) {
	if w.HandshakesError != "" {
		r.fail(Handshake, "", "no handshake was tried: "+w.HandshakesError, "see the findings above it, and relay-server of the management cluster")
		return
	}
	for _, h := range w.Handshakes {
		object := "Pod " + spec.Management.Namespace + "/" + h.Pod
		switch {
		case !h.Reached:
			r.fail(Handshake, object, "no connection to its relay port: "+h.Error, "see pod-ready of the management cluster, and that the worker may create pods/portforward there")
		case h.Error != "":
			message, remedy := "a fresh handshake fails: "+h.Error, "see certificate-chain, certificate-lifetime and agent-trust of this cluster, served-certificate and acceptable-cas of the management cluster"
			if s, ok := Explain(AtHandshake, h.Error); ok {
				message, remedy = message+". That means: "+s.Meaning, s.Remedy
			}
			r.fail(Handshake, object, message, remedy)
		case h.Resumed:
			r.fail(Handshake, object, "the session was resumed, which proves nothing about certificates", "this is a fault of relaypki; report it")
		default:
			r.pass(Handshake, object, "a fresh full mTLS handshake succeeds with the cluster's certificate and trust")
		}
	}
}
