package check

import (
	"crypto/x509"
	"fmt"
	"time"
)

// Gap says why something could not be looked at. The zero Gap means that it
// was there and was read.
type Gap struct {
	Reason GapReason
	// Detail is the API's own text, without bodies.
	Detail string
}

// GapReason is the kind of a Gap.
type GapReason string

const (
	NotFound    GapReason = "not found"
	Denied      GapReason = "denied"
	Unreachable GapReason = "unreachable"
)

// Open is true when something could not be looked at.
func (g Gap) Open() bool { return g.Reason != "" }

// report reports an open gap on an object and says whether it was open.
func (g Gap) report(r *report, check, object, missingRemedy string) bool {
	switch g.Reason {
	case "":
		return false
	case NotFound:
		r.fail(check, object, object+" is missing", missingRemedy)
	case Denied:
		r.fail(check, object, fmt.Sprintf("the worker may not read %s: %s", object, g.Detail),
			"grant the worker what deploy/rbac and deploy/vault/policies list, then verify again")
		r.findings[len(r.findings)-1].Denied = r.diagnosis
		r.unread = append(r.unread, len(r.findings)-1)
	default:
		r.transient(check, object, fmt.Sprintf("%s could not be read: %s", object, g.Detail),
			"see that the worker reaches the server named in the message, then verify again")
		r.unread = append(r.unread, len(r.findings)-1)
	}
	return true
}

// Pin says whether the intermediate at work itself may be trusted in its root's place,
// as an emergency has it. Anywhere else that is a mistake: the next intermediate would
// be refused.
type Pin string

const (
	Unpinned Pin = ""
	// Pinning: some trust the intermediate, some its root.
	Pinning Pin = "pinning"
	// Pinned: the intermediate is all that is trusted.
	Pinned Pin = "pinned"
)

// Condition is a status condition of a cert-manager object; the zero value
// means that there is none of its type.
type Condition struct {
	// Status is "True", "False" or "Unknown".
	Status          string
	Reason, Message string
	Generation      int64
}

func (c Condition) String() string {
	if c.Status == "" {
		return "no condition yet"
	}
	return fmt.Sprintf("%s: %s", c.Reason, c.Message)
}

// SeenIssuer is cert-manager's Issuer.
type SeenIssuer struct {
	Gap Gap
	// Path is where in Vault it signs; empty for an Issuer of another kind.
	Path       string
	Generation int64
	Ready      Condition
}

// SeenCertificate is cert-manager's Certificate.
type SeenCertificate struct {
	Gap            Gap
	Generation     int64
	Ready, Issuing Condition
	// Request is why its current CertificateRequest is not Ready; empty when
	// there is none or it is.
	Request string
	// SecretName, Duration and RenewBefore are as the live object has them; zero
	// where it leaves them to cert-manager.
	SecretName            string
	Duration, RenewBefore time.Duration
	// Failures are the issuances that have failed one after the other, the last of
	// them at LastFailure.
	Failures    int
	LastFailure time.Time
}

// SeenSecret is the public part of a Secret with certificates.
type SeenSecret struct {
	Gap Gap
	// Chain is tls.crt, CA is ca.crt; the errors say why they could not be read.
	Chain, CA           []*x509.Certificate
	ChainError, CAError string
	// Written is when it was last written.
	Written time.Time
	// Helm is the Helm release that owns it; empty if none does.
	Helm string
}

// SeenDeployment is a Deployment with its Pods.
type SeenDeployment struct {
	Gap                Gap
	Namespace, Name    string
	Desired, Available int32
	Pods               []SeenPod
	PodsGap            Gap
}

// SeenPod is one Pod of a Deployment.
type SeenPod struct {
	Name  string
	Ready bool
	// State and LastState are the container's, in words, empty when it has
	// none: "waiting, CrashLoopBackOff: back-off 10s restarting".
	State, LastState string
	// Log has the last lines of the container's log, where it was read.
	Log     string
	Created time.Time
}

// SeenReplica is what one Pod of the management server was seen to do.
type SeenReplica struct {
	Pod string
	// LoadedError is why the handshake without a credential showed nothing.
	LoadedError string
	Loaded      Loaded
	// MetricsError is why its metrics could not be read.
	MetricsError string
	Metrics      Metrics
}

// Loaded is what a management server has in use, as a handshake shows it.
type Loaded struct {
	Chain []*x509.Certificate
	// AsksForCertificate is true when it requested a client certificate.
	AsksForCertificate bool
	// AcceptableCAs are the raw subjects that its request named.
	AcceptableCAs [][]byte
}

// Metrics are a management server's gauges.
type Metrics struct {
	// Pull and Push are the streams open per cluster.
	Pull, Push map[string]float64
	// StandIn is true for the lab's stand-in.
	StandIn bool
}

// SeenKeys are the public keys of a cluster's token issuer, as fingerprints:
// those pinned in Vault and those of the cluster itself.
type SeenKeys struct {
	// Mount is Vault's auth mount; empty when no keys are pinned there.
	Mount                string
	VaultGap, ClusterGap Gap
	Vault, Cluster       []string
}

// SeenToken is the token of a cluster's Issuer, credential method token, or its
// secret id, method appRole.
type SeenToken struct {
	// Secret names it; empty with another method.
	Secret string
	// SecretID says that it is a secret id.
	SecretID bool
	Gap      Gap
	// Refused is why Vault does not accept it.
	Refused string
	// Left is how long it has to live, Period how long when it is new.
	Left, Period time.Duration
}

// SeenVault is a Vault with the two CAs.
type SeenVault struct {
	Name, Address       string
	Gap                 Gap
	Initialized, Sealed bool
	// LoginError is why the worker could not log in.
	LoginError  string
	Root, Relay SeenMount
	Roles       []SeenRole
}

// SeenMount is a PKI mount.
type SeenMount struct {
	Path string
	Gap  Gap
	// Default is the id of the default issuer.
	Default string
	Issuers []SeenVaultIssuer
}

func (m SeenMount) issuer(id string) (SeenVaultIssuer, bool) {
	for _, i := range m.Issuers {
		if i.ID == id {
			return i, true
		}
	}
	return SeenVaultIssuer{}, false
}

// SeenVaultIssuer is one issuer of a PKI mount.
type SeenVaultIssuer struct {
	ID, Name, LeafNotAfterBehavior string
	HasKey                         bool
	// Signs says that its usage lets it issue.
	Signs       bool
	Certificate *x509.Certificate
	// Chain is what Vault returns with what it signs, Manual whether that was
	// fixed; else Vault chooses it anew whenever a CA is imported.
	Chain  []*x509.Certificate
	Manual bool
}

// SeenRole is a role of the relay mount.
type SeenRole struct {
	Name string
	// Cluster is the one cluster that the role is for; empty for the server's,
	// the probe's and a shared one.
	Cluster          string
	Gap              Gap
	IssuerRef        string   `json:"issuer_ref"`
	AllowAnyName     bool     `json:"allow_any_name"`
	AllowedDomains   []string `json:"allowed_domains"`
	AllowBareDomains bool     `json:"allow_bare_domains"`
	AllowSubdomains  bool     `json:"allow_subdomains"`
	AllowGlobDomains bool     `json:"allow_glob_domains"`
	AllowWildcards   bool     `json:"allow_wildcard_certificates"`
	AllowIPSANs      bool     `json:"allow_ip_sans"`
	AllowLocalhost   bool     `json:"allow_localhost"`
	AllowedURISANs   []string `json:"allowed_uri_sans"`
	AllowedOtherSANs []string `json:"allowed_other_sans"`
	ServerFlag       bool     `json:"server_flag"`
	ClientFlag       bool     `json:"client_flag"`
	ExtKeyUsage      []string `json:"ext_key_usage"`
	ExtKeyUsageOIDs  []string `json:"ext_key_usage_oids"`
	// MaxTTL is in seconds; 0 is the mount's.
	MaxTTL  int64 `json:"max_ttl"`
	NoStore bool  `json:"no_store"`
}

// SeenHandshake is a fresh full mTLS handshake with one replica.
type SeenHandshake struct {
	Pod string
	// Error is empty when the server accepted.
	Error string
	// Reached is false when there was no connection to shake hands on.
	Reached bool
	// Resumed must not be: a resumed session proves nothing about certificates.
	Resumed bool
}
