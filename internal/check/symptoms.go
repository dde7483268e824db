package check

import "strings"

// Where a symptom was seen; the same words mean different things at the two
// ends of a connection.
type Where string

const (
	AtHandshake Where = "handshake" // our own, in the agent's place
	InAgent     Where = "agent"     // the agent's log or last state
	InServer    Where = "server"    // the management server's log or last state
)

// Symptom is a known failure: the words by which it shows, what they mean, and
// what to do.
type Symptom struct {
	where   []Where
	text    string // what the error contains
	Meaning string
	Remedy  string
	mend    mending
}

// mending is what of relaypki's mends what a symptom shows, if anything does.
type mending string

const (
	byNobody           mending = ""
	bySetup            mending = "setup"
	byReissue          mending = "reissue the cluster's certificate"
	byReissuingServer  mending = "reissue the server's certificate"
	byRestartingServer mending = "restart the server"
)

const (
	runSetup     = "run SetupMesh again with the mesh's input"
	setUpStandby = "run the setup again (`relaypki setup -f mesh.yaml`), which makes it and has agents trust it"
	renewServer  = "see certificate-ready and issuer-ready of the management cluster; then `cmctl renew -n <namespace> relay-server-tls`, and restart the server if it does not reload"
	renewClient  = "see certificate-ready and issuer-ready of this cluster; then `cmctl renew -n <namespace> relay-client-tls`, and restart the agent if it does not reload"
	fixAddress   = "give the address as host:port (gloo.relayAddress of the input; IPv6 in brackets, the port once), and run SetupMesh again"
	compareTrust = "compare acceptable-cas of the management cluster with certificate-root of this one: both must be the same root; restart the server if its Secret holds the right ca.crt, else run SetupMesh again"
)

// symptoms, the first that fits wins. The texts are those of Go's crypto/tls
// and of the vendor's guide.
var symptoms = []Symptom{
	{[]Where{AtHandshake, InAgent}, "is before", "the server's certificate is not yet valid", "compare the clocks of the nodes and of Vault's host; " + renewServer, byNobody},
	{[]Where{AtHandshake, InAgent}, "certificate has expired or is not yet valid", "the server's certificate has expired", renewServer, byReissuingServer},
	{[]Where{InServer}, "is before", "a client's certificate is not yet valid", "compare the clocks of the nodes and of Vault's host", byNobody},
	{[]Where{InServer}, "certificate has expired or is not yet valid", "a client's certificate has expired", renewClient, byNobody},
	{[]Where{AtHandshake, InAgent}, "x509: certificate is valid for", "the server's certificate does not have the name that agents expect", "make certificates.server.dnsNames of the input cover gloo.authority, and run SetupMesh again", bySetup},
	{[]Where{AtHandshake, InAgent}, "x509: certificate signed by unknown authority", "the cluster's trust does not hold the root of the server's chain", "see agent-trust and certificate-root; " + runSetup, bySetup},
	{[]Where{AtHandshake, InAgent}, "tls: certificate required", "no client certificate was sent, since the server's acceptable CAs do not include the root of this cluster's chain", compareTrust, byRestartingServer},
	{[]Where{InServer}, "tls: client didn't provide a certificate", "an agent sent no certificate, since this server's acceptable CAs do not include the root of its chain", compareTrust, byRestartingServer},
	{[]Where{AtHandshake, InAgent}, "tls: handshake failure", "the server refused without saying why; without a client certificate it does so below TLS 1.3", compareTrust, byRestartingServer},
	{[]Where{AtHandshake, InAgent}, "tls: unknown certificate authority", "the server does not trust this cluster's chain", compareTrust, byRestartingServer},
	{[]Where{AtHandshake, InAgent}, "tls: expired certificate", "the server holds this cluster's certificate for expired", renewClient, byReissue},
	{[]Where{AtHandshake, InAgent}, "tls: bad certificate", "the server refused this cluster's certificate", "the server's log says why: `kubectl logs -n <namespace> deploy/gloo-mesh-mgmt-server`; see certificate-chain and certificate-lifetime of this cluster", byNobody},
	{[]Where{InServer}, "remote error: tls: bad certificate", "an agent does not trust this server's certificate", "see agent-trust of the clusters that agents-connected names", bySetup},
	{[]Where{InServer}, "no tls secret found for grpc server", "the server's Secret is missing or misnamed", "see certificate-secret; compare glooMgmtServer.relay.tlsSecret.name with certificates.server.secretName, and run SetupMesh again", bySetup},
	{[]Where{InAgent}, `secrets "relay-root-tls-secret" not found`, "the agent's trust, relay-root-tls-secret, is missing", runSetup + ": its step CopyRootSecret writes it", bySetup},
	{[]Where{InAgent}, `secrets "`, "a Secret that the agent needs is missing", "see certificate-secret; compare glooAgent.relay.clientTlsSecret.name with certificates.client.secretName, and run SetupMesh again", bySetup},
	{[]Where{InServer, InAgent}, "could not find forwarding server token", "the relay identity token is missing", "see gloo.identityToken of the input, and run SetupMesh again", bySetup},
	{[]Where{InAgent}, "too many colons in address", "the agent's server address is malformed", fixAddress, bySetup},
	{[]Where{InAgent}, "missing port in address", "the agent's server address is malformed", fixAddress, bySetup},
	{[]Where{InAgent}, "no such host", "the agent's server address does not resolve in its cluster", fixAddress, bySetup},
	{[]Where{InAgent}, "is not registered", "the agent's cluster is not registered", "see registered-name; " + runSetup, bySetup},
	{[]Where{AtHandshake}, "connection refused", "nothing listens on the server's relay port", "see pod-ready of the management cluster and the server's log", byNobody},
	{[]Where{AtHandshake}, "deadline exceeded", "the server did not answer in time", "see pod-ready of the management cluster and the server's log", byNobody},
	{[]Where{InAgent}, "connection refused", "nothing answers at the agent's server address", "see relay-server of the management cluster, and the Service's endpoints", byNobody},
}

// Explain finds the known failure that a text shows, if it is one. The text may
// be of JSON log lines, in which quotes are escaped.
func Explain(where Where, text string) (Symptom, bool) {
	text = strings.ReplaceAll(text, `\"`, `"`)
	for _, s := range symptoms {
		for _, w := range s.where {
			if w == where && strings.Contains(text, s.text) {
				return s, true
			}
		}
	}
	return Symptom{}, false
}
