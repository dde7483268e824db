package check

import "time"

// Looks are what a diagnosis looks at besides, in one cluster.
type Looks struct {
	// Contexts are those of the worker's kubeconfig, by the name that a cluster has
	// in findings.
	Contexts map[string]string
	// VaultNamespace is the Vault's own; usually empty.
	VaultNamespace string
	// Requests are the Certificate's, the latest last.
	Requests []SeenRequest
	// Events are the warnings of the relay's namespace, the latest last.
	Events  []SeenEvent
	Webhook SeenWebhook
	// Clock is that of the API server.
	Clock    SeenClock
	Identity SeenIdentity
	// Stored is the token in the Secret vault-token, whatever the Issuer logs in
	// with: the guide puts Vault's root token there.
	Stored SeenStored
}

// SeenRequest is a CertificateRequest.
type SeenRequest struct {
	Name                    string
	Created, Failed         time.Time
	Approved, Denied, Ready Condition
}

// SeenEvent is a warning about an object: "Pod gloo-mesh/gloo-mesh-agent-7c6f".
type SeenEvent struct {
	Object, Reason, Message string
	Count                   int32
	Last                    time.Time
}

// SeenWebhook is what came of trying cert-manager's validating webhook.
type SeenWebhook struct {
	Gap Gap
	// State is what is wrong with its answers; empty if nothing is.
	State string
}

// SeenClock is a server's clock.
type SeenClock struct {
	// Known is false when the server told no time.
	Known bool
	// Behind is how far it is behind the worker's, negative if it is ahead.
	Behind time.Duration
}

// SeenIdentity is the Secret with the relay identity token.
type SeenIdentity struct {
	Gap Gap
	// HasKey says that the key is in it, Same that it is what the management
	// cluster has, as far as that could be read.
	HasKey, Same bool
	Helm         string
}

// SeenStored is a token of Vault's in a Secret, as Vault knows it.
type SeenStored struct {
	// There says that the Secret is there and holds one.
	There bool
	Gap   Gap
	// Known says that Vault accepts it; only then Policies are its.
	Known    bool
	Policies []string
}

// SeenAddress is where agents reach the management server.
type SeenAddress struct {
	Gap Gap
	// Address is the Service's; empty while it has none. Problem is why it will
	// never have one.
	Address, Problem string
}

// SeenPKI is what is set of a PKI mount besides its issuers, and what is stored in it.
type SeenPKI struct {
	Path string
	// Root says that it is the root's mount.
	Root bool

	TuneGap  Gap
	MaxLease time.Duration
	// PlainRequest and PlainResponse are what audit devices write as it is,
	// ResponseHeaders what clients get of Vault's.
	PlainRequest, PlainResponse, ResponseHeaders []string

	CRLs   []SeenCRL
	CRLGap Gap
	// CRLConfigGap is of the next two.
	CRLConfigGap             Gap
	CRLDisabled, AutoRebuild bool

	TidyGap             Gap
	AutoTidy            bool
	TidyEvery, TidyStop time.Duration
	TidyStatusGap       Gap
	// Tidied is when a tidy last ended, zero if none has since Vault started.
	Tidied time.Time

	CertsGap Gap
	// Certs is how many certificates are stored; RootLeaf the serial number of one
	// that a root in the mount has signed and that is no CA.
	Certs    int
	RootLeaf string

	// Roles are those that are not the mesh's.
	Roles    []SeenRole
	RolesGap Gap

	ACMEGap Gap
	ACME    bool
	// ACMEPolicy is what its default directory issues by.
	ACMEPolicy string
}

// SeenCRL is the CRL of an issuer.
type SeenCRL struct {
	Issuer     string
	This, Next time.Time
}
