// Package check has the verdicts of verification: what was seen in Vault, in
// the clusters and on the wire (plain data, gathered by package observe) and
// what each finding means, with the remedy. It is pure; VerifyMesh uses it, and
// so does diagnosis.
//
// The checks, in the order in which they are reported. M is the management
// cluster, W a workload cluster.
//
//	check                  where  passes when
//	cluster-reachable      M W    the API server answers
//	vault-available        M      Vault answers, is initialised and unsealed, and the worker can log in
//	vault-root             M      the root mount's default issuer is a self-signed, valid root of ours; or the root kept outside Vault is valid
//	standby-root           M W    if asked for: a later root that can sign is in the root mount (M), and in relay-root-tls-secret (W)
//	vault-intermediate     M      the issuer that roles use has a key, is signed by that root or over a bridge, and refuses to outlive itself
//	vault-role             M      every role is bound to one issuer by id, and allows what it is for and nothing else
//	cert-manager           M W    controller, webhook and cainjector are available
//	issuer-ready           M W    the Issuer is Ready, and signs with the role that is for this cluster
//	certificate-ready      M W    the Certificate is Ready at its generation
//	certificate-secret     M W    the Secret is there and its tls.crt and ca.crt can be read
//	certificate-chain      M W    tls.crt is one line, nested in time, and verifies under ca.crt
//	certificate-root       M W    ca.crt is one self-signed root, or the bridge of a rotation, or what an emergency has pinned, in its place
//	certificate-names      M W    the names cover the authority (server), are the registered name (client)
//	certificate-lifetime   M W    neither expired nor not yet valid, and not overdue for renewal
//	pinned-keys            M W    the keys pinned in Vault are those of the cluster's token issuer
//	cluster-token          M W    the token in vault-token is accepted by Vault and is not about to end (credential token)
//	cluster-secret-id      M W    the secret id that the Issuer uses is accepted by Vault and is not about to end (credential appRole)
//	agent-trust            W      relay-root-tls-secret holds the root, or one that the cluster's chain leads to over a bridge; and nothing else, where an emergency has pinned the intermediate
//	relay-server           M      the management server's Deployment is available
//	relay-agent            W      the agent's Deployment is available
//	pod-ready              M W    each Pod is ready; else with the container's last state
//	agent-address          W      the agent's server address is host:port
//	served-certificate     M      each replica serves the certificate in the Secret
//	acceptable-cas         M      each replica asks for client certificates under the root
//	stand-in               M      says whether the server is the lab's stand-in
//	membership             W      nobody is just adding or removing the cluster (if so, nothing else is checked of it)
//	registrations          M      the KubernetesClusters are those of the mesh
//	agents-connected       M      the server's gauges count one pull and one push stream per cluster
//	registered-name        W      the client certificate's name is registered
//	handshake              W      a fresh full mTLS handshake succeeds with every replica
//
// A diagnosis makes these besides:
//
//	identity-token         M W    the Secret that gloo.identityToken names is there, with its key, and in W as in M
//	webhook                M W    cert-manager's validating webhook answers, and refuses what it should
//	clock-skew             M W    the API server's clock, and Vault's, is the worker's to 30 s
//	helm-owned             M W    no Secret of the relay belongs to a Helm release, whose upgrade may delete it
//	renew-window           M W    the live Certificate is renewed neither without end nor too late for a second try
//	ttl-nesting            M W    every CA outlives what it signs, and no role or mount cuts a life short; W: the certificate lives as long as asked for
//	root-token             M W    there is no token in vault-token, or one that may sign for that cluster and nothing else
//	vault-chain            M      the chain that Vault returns with what it signs is one line, fixed, up to a root
//	agent-address-wrong    W      the agent is told of where the management server is
//	stale-agent            W      an agent that does not reload was started after its certificate was last written
//	stale-trust            W      and after its trust was
//	gauges-lie             W      the gauges do not count an agent whose fresh handshake fails
//
// And what "vault pki health-check" looks at on the same mounts, judged for this use,
// pki- and its name for each: see pki.go.
package check

// Names of the checks.
const (
	ClusterReachable    = "cluster-reachable"
	VaultAvailable      = "vault-available"
	VaultRoot           = "vault-root"
	StandbyRoot         = "standby-root"
	VaultIntermediate   = "vault-intermediate"
	VaultRole           = "vault-role"
	CertManager         = "cert-manager"
	IssuerReady         = "issuer-ready"
	CertificateReady    = "certificate-ready"
	CertificateSecret   = "certificate-secret"
	CertificateChain    = "certificate-chain"
	CertificateRoot     = "certificate-root"
	CertificateNames    = "certificate-names"
	CertificateLifetime = "certificate-lifetime"
	PinnedKeys          = "pinned-keys"
	ClusterToken        = "cluster-token"
	ClusterSecretID     = "cluster-secret-id"
	AgentTrust          = "agent-trust"
	RelayServer         = "relay-server"
	RelayAgent          = "relay-agent"
	PodReady            = "pod-ready"
	AgentAddress        = "agent-address"
	ServedCertificate   = "served-certificate"
	AcceptableCAs       = "acceptable-cas"
	StandIn             = "stand-in"
	Membership          = "membership"
	Registrations       = "registrations"
	AgentsConnected     = "agents-connected"
	RegisteredName      = "registered-name"
	Handshake           = "handshake"

	IdentityToken     = "identity-token"
	Webhook           = "webhook"
	ClockSkew         = "clock-skew"
	HelmOwned         = "helm-owned"
	RenewWindow       = "renew-window"
	TTLNesting        = "ttl-nesting"
	RootToken         = "root-token"
	VaultChain        = "vault-chain"
	AgentAddressWrong = "agent-address-wrong"
	StaleAgent        = "stale-agent"
	StaleTrust        = "stale-trust"
	GaugesLie         = "gauges-lie"

	PKICAValidity         = "pki-ca-validity-period"
	PKICRLValidity        = "pki-crl-validity-period"
	PKIHardwareBackedRoot = "pki-hardware-backed-root"
	PKIRootIssuedLeaves   = "pki-root-issued-leaves"
	PKIRoleLocalhost      = "pki-role-allows-localhost"
	PKIRoleGlobWildcards  = "pki-role-allows-glob-wildcards"
	PKIRoleNoStore        = "pki-role-no-store-false"
	PKIAuditVisibility    = "pki-audit-visibility"
	PKIIfModifiedSince    = "pki-allow-if-modified-since"
	PKIAutoTidy           = "pki-enable-auto-tidy"
	PKITidyLastRun        = "pki-tidy-last-run"
	PKITooManyCerts       = "pki-too-many-certs"
	PKIACMEIssuance       = "pki-enable-acme-issuance"
	PKIACMEHeaders        = "pki-allow-acme-headers"
)
