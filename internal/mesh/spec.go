// Package mesh is the input that people write: which clusters form a mesh,
// which certificates they get and from where. It decodes strictly, fills in
// the defaults (those of the vendor's guide, except where noted) and finds
// every problem at once, before anything is touched.
package mesh

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/strict"
)

// Spec describes one mesh. Everything but Mesh and Workloads has a default.
type Spec struct {
	// Mesh names the mesh; a DNS label. Locks, schedules and the stored
	// membership carry it.
	Mesh string `json:"mesh"`
	// Namespace is where the relay's objects live in every cluster that names no
	// namespace of its own.
	Namespace  string     `json:"namespace,omitempty"`
	Management Management `json:"management,omitempty"`
	Workloads  []Workload `json:"workloads"`
	Vault      Vault      `json:"vault,omitempty"`
	PKI        PKI        `json:"pki,omitempty"`
	// Certificates are the leaves: the management server's and the agents'.
	Certificates Certificates `json:"certificates,omitempty"`
	Credential   Credential   `json:"credential,omitempty"`
	CertManager  CertManager  `json:"certManager,omitempty"`
	Gloo         Gloo         `json:"gloo,omitempty"`
	Verify       Verify       `json:"verify,omitempty"`
	// Rollout is how procedures go over the workload clusters.
	Rollout Rollout `json:"rollout,omitempty"`
	// Rotation is how certificates and CAs are rotated, and when.
	Rotation Rotation `json:"rotation,omitempty"`
}

// Management is the cluster of the management server.
type Management struct {
	// Context is the cluster's name in the worker's site configuration.
	Context string `json:"context,omitempty"`
	// Namespace is where the relay's objects live in this cluster; defaults to
	// the mesh's.
	Namespace string `json:"namespace,omitempty"`
	// Reload is "hot" (the server reads its changed Secret by itself, the guide's)
	// or "restart".
	Reload string `json:"reload,omitempty"`
}

// Workload is one cluster with an agent.
type Workload struct {
	// Name is the registered name: the KubernetesCluster's name and the DNS
	// name in the client certificate, which must be equal.
	Name string `json:"name"`
	// Context is the cluster's name in the worker's site configuration;
	// defaults to Name.
	Context string `json:"context,omitempty"`
	// Namespace is where the relay's objects live in this cluster; defaults to
	// the mesh's. Clusters that share an API server differ in it.
	Namespace string `json:"namespace,omitempty"`
	Agent     Agent  `json:"agent,omitempty"`
	// AgentValues are Helm values for this cluster's agent, over Gloo.AgentValues.
	AgentValues map[string]any `json:"agentValues,omitempty"`
}

// Agent says how an agent treats its Secrets, which decides what a rotation
// must do for it.
type Agent struct {
	// Reload is "hot" (reads changed Secrets by itself) or "restart".
	Reload string `json:"reload,omitempty"`
	// Trust is "rootSecret" (relay-root-tls-secret) or "own" (the ca.crt
	// beside its client certificate).
	Trust string `json:"trust,omitempty"`
}

// Values of Agent.Reload and Agent.Trust.
const (
	ReloadHot       = "hot"
	ReloadRestart   = "restart"
	TrustRootSecret = "rootSecret"
	TrustOwn        = "own"
)

// Vault names the Vault and the mounts of the two CAs.
type Vault struct {
	// Name is the Vault's name in the worker's site configuration.
	Name string `json:"name,omitempty"`
	// Install is "" (an existing Vault), "dev" (by Helm, in memory: it loses
	// every CA at a restart) or "standalone" (by Helm; the run waits until an
	// operator has initialised and unsealed it).
	Install string `json:"install,omitempty"`
	// Values are Helm values for the Vault chart, if it is installed.
	Values     map[string]any `json:"values,omitempty"`
	RootMount  string         `json:"rootMount,omitempty"`
	RelayMount string         `json:"relayMount,omitempty"`
}

// Values of Vault.Install.
const (
	VaultExisting   = ""
	VaultDev        = "dev"
	VaultStandalone = "standalone"
)

// PKI describes the certificate authorities.
type PKI struct {
	Root         Root `json:"root,omitempty"`
	Intermediate CA   `json:"intermediate,omitempty"`
	// StandbyRoot has the next root made ahead, in the root mount, and put into every
	// agent's trust beside the one at work, so that it can take the place of a
	// compromised one in minutes. A rotation of the root uses it up, and the next
	// setup makes another. Set to false again, the setup takes it out of agents'
	// trust; in Vault it stays, and the next rotation of the root still goes to it.
	StandbyRoot bool `json:"standbyRoot,omitempty"`
	// Role is the management server's role in the relay mount, and everybody's
	// when Isolation is "shared".
	Role string `json:"role,omitempty"`
	// MaxLeafTTL bounds what any role issues.
	MaxLeafTTL Duration `json:"maxLeafTTL,omitempty"`
	// Isolation is "perCluster" (each cluster's credential obtains that
	// cluster's name and no other) or "shared" (the guide's way: one role that
	// allows any name).
	Isolation string `json:"isolation,omitempty"`
}

// Values of PKI.Isolation.
const (
	IsolationPerCluster = "perCluster"
	IsolationShared     = "shared"
)

// Root is the root CA, and where its key is.
type Root struct {
	CA
	// Kept is "vault" (in vault.rootMount, made there) or "offline" (elsewhere: an
	// intermediate's CSR is published, and a person brings the certificate back).
	Kept string `json:"kept,omitempty"`
	// CertificatePEM is the certificate of a root that is kept offline. What it is
	// called and how long it lives is in it, so nothing else of the root is given.
	CertificatePEM string `json:"certificatePEM,omitempty"`
}

// Values of Root.Kept.
const (
	KeptVault   = "vault"
	KeptOffline = "offline"
)

// Offline says that the root's key is in no Vault of ours.
func (r Root) Offline() bool { return r.Kept == KeptOffline }

// Certificate is that of a root that is kept offline, in a spec without problems.
func (r Root) Certificate() (*x509.Certificate, error) {
	chain, err := pki.ParseSigned([]byte(r.CertificatePEM))
	if err != nil {
		return nil, err
	}
	return chain[0], nil
}

// CA is what to ask for when a CA certificate is made.
type CA struct {
	CommonName   string   `json:"commonName,omitempty"`
	Organization string   `json:"organization,omitempty"`
	TTL          Duration `json:"ttl,omitempty"`
	// KeyType is "rsa" or "ec", in Vault's words.
	KeyType string `json:"keyType,omitempty"`
	KeyBits int    `json:"keyBits,omitempty"`
}

// With is the CA with what is given of another in the place of its own. A key of
// another type is of that type's usual size, if none is given.
func (c CA) With(other CA) CA { return other.withDefaults(c) }

// Certificates are the two kinds of leaf.
type Certificates struct {
	Server Certificate `json:"server,omitempty"`
	Client Certificate `json:"client,omitempty"`
}

// LongestLife is that of the leaf that lives longest.
func (c Certificates) LongestLife() time.Duration {
	return max(c.Server.Duration.Duration, c.Client.Duration.Duration)
}

// Certificate is a cert-manager Certificate to apply.
type Certificate struct {
	Name       string `json:"name,omitempty"`
	SecretName string `json:"secretName,omitempty"`
	// CommonName of a client certificate defaults to its cluster's name, and to
	// the guide's (the server's name) with PKI.Isolation "shared".
	CommonName string `json:"commonName,omitempty"`
	// DNSNames of the server certificate; a client's is its cluster's name.
	DNSNames    []string `json:"dnsNames,omitempty"`
	Duration    Duration `json:"duration,omitempty"`
	RenewBefore Duration `json:"renewBefore,omitempty"`
	// KeyAlgorithm is "RSA" or "ECDSA", in cert-manager's words.
	KeyAlgorithm string `json:"keyAlgorithm,omitempty"`
	KeySize      int    `json:"keySize,omitempty"`
}

// Credential is how the clusters' cert-managers log in to Vault.
type Credential struct {
	// Method is "jwt" (short-lived tokens of a ServiceAccount, checked by Vault
	// with the cluster's own keys), "token" (the guide's vault-token Secret, with
	// a token that may only sign for that cluster), "appRole" (a secret id in a
	// Secret, which lets in for tokens of minutes) or "kubernetes" (as jwt, with
	// the tokens reviewed by the cluster's API server, which Vault has to reach).
	Method string `json:"method,omitempty"`
	// Keys of the jwt method: "pinned" (read by the worker and stored in Vault)
	// or "discovery" (Vault fetches them from the cluster's issuer URL).
	Keys string `json:"keys,omitempty"`
	// TokenPeriod is how long the token method's tokens and the appRole method's
	// secret ids live. They are renewed when half of it is over.
	TokenPeriod Duration `json:"tokenPeriod,omitempty"`
}

// refreshEvery is how often what expires of the credentials is looked at. Keys
// of a cluster change without notice, and what they sign is refused until they
// are pinned; a leaf is renewed every day.
const refreshEvery = time.Hour

// RefreshEvery is the interval of the schedule that keeps the clusters'
// credentials current, zero if nothing of them expires. What lives for a period
// is renewed when half of it is over: four tries are left then.
func (s Spec) RefreshEvery() Duration {
	switch {
	case s.Credential.Method == CredentialToken, s.Credential.Method == CredentialAppRole:
		return Duration{min(refreshEvery, s.Credential.TokenPeriod.Duration/8)}
	case s.Credential.Method == CredentialJWT && s.Credential.Keys == KeysPinned:
		return Duration{refreshEvery}
	}
	return Duration{}
}

// Values of Credential.Method and Credential.Keys.
const (
	CredentialJWT        = "jwt"
	CredentialToken      = "token"
	CredentialAppRole    = "appRole"
	CredentialKubernetes = "kubernetes"
	KeysPinned           = "pinned"
	KeysDiscovery        = "discovery"
)

// CertManager says whether cert-manager is ours to install.
type CertManager struct {
	// Install is "auto" (by Helm where there is none) or "never".
	Install string `json:"install,omitempty"`
	// Version of the chart; empty for the site's.
	Version string         `json:"version,omitempty"`
	Values  map[string]any `json:"values,omitempty"`
}

// Values of CertManager.Install.
const (
	InstallAuto  = "auto"
	InstallNever = "never"
)

// Gloo is the management server and its agents.
type Gloo struct {
	// Install false leaves server and agents to somebody else: certificates,
	// trust and registration are set up, Helm is not run.
	Install *bool  `json:"install,omitempty"`
	Version string `json:"version,omitempty"`
	// RelayAddress is host:port of the management server as the agents reach
	// it; empty to take the LoadBalancer's.
	RelayAddress string `json:"relayAddress,omitempty"`
	// Authority is the name that agents expect in the server's certificate.
	Authority     string         `json:"authority,omitempty"`
	ServerValues  map[string]any `json:"serverValues,omitempty"`
	AgentValues   map[string]any `json:"agentValues,omitempty"`
	IdentityToken IdentityToken  `json:"identityToken,omitempty"`
}

// IdentityToken is the relay identity token, which the guide's agent values
// name and no step of it makes.
type IdentityToken struct {
	// Mode is "generate" (made once in the management cluster and copied),
	// "existing" (copied from the management cluster) or "none" (with client
	// certificates it is not needed).
	Mode       string `json:"mode,omitempty"`
	SecretName string `json:"secretName,omitempty"`
	Key        string `json:"key,omitempty"`
}

// Values of IdentityToken.Mode.
const (
	TokenGenerate = "generate"
	TokenExisting = "existing"
	TokenNone     = "none"
)

// Verify is the recurring verification.
type Verify struct {
	// Every is the interval of the VerifyMesh schedule; "0s" for none.
	Every *Duration `json:"every,omitempty"`
}

// Rollout is in which order, how many at once, and how long before a cluster
// that fails is parked and the procedure goes on with the others.
type Rollout struct {
	// Canary are the workload clusters that go first. The others wait until all
	// of them are done.
	Canary []string `json:"canary,omitempty"`
	// WaveSize is how many of the others form a wave; the next wave begins when
	// all of one are done. 0 for one wave.
	WaveSize int `json:"waveSize,omitempty"`
	// Parallelism is how many clusters are worked on at once.
	Parallelism int `json:"parallelism,omitempty"`
	// FailureBudget is how many clusters may be parked before no other is begun;
	// none if it is 0. A canary that is parked always holds the rest.
	FailureBudget *int `json:"failureBudget,omitempty"`
	// RetryFor is how long one step of a cluster may take, with all its tries and
	// waits, before the cluster is parked, or, if it is the management cluster,
	// the run fails.
	RetryFor Duration `json:"retryFor,omitempty"`
}

// Rotation is how a rotation of a CA goes on from phase to phase, and at what
// remaining life one begins by itself.
type Rotation struct {
	// Approval is for what a person is asked: "none", "afterCanary" (before
	// anything but the canary is changed) or "eachPhase". What deletes a key is
	// always asked for.
	Approval string `json:"approval,omitempty"`
	// Soak is how long the canary is left to itself, and then looked at again,
	// before the others follow.
	Soak *Duration `json:"soak,omitempty"`
	// ReloadWithin is how long a server or an agent that reads its changed Secrets
	// by itself takes at most to load what was stored: until the kubelet has put it
	// into the Pod, and until it looks. What a rotation of the root may take out of
	// use is known no sooner.
	ReloadWithin *Duration `json:"reloadWithin,omitempty"`
	// Snapshot is what is wanted before the first change of a CA: "word" (a person
	// says where there is a snapshot of Vault), "take" (the worker takes one, of a
	// Vault on integrated storage, into the directory that the site file names) or
	// "none".
	Snapshot string `json:"snapshot,omitempty"`
	// Windows are when a rotation may begin work on a cluster; at any time if
	// there are none.
	Windows []Window `json:"windows,omitempty"`
	// TimeZone is that of the windows, an IANA name.
	TimeZone string `json:"timeZone,omitempty"`
	// Maintain is how often MaintainMesh looks whether a rotation is due; "0s" for
	// never.
	Maintain *Duration `json:"maintain,omitempty"`
	// Due is at what remaining share of their life certificates are rotated.
	Due Due `json:"due,omitempty"`
}

// Values of Rotation.Approval and Rotation.Snapshot.
const (
	ApprovalNone        = "none"
	ApprovalAfterCanary = "afterCanary"
	ApprovalEachPhase   = "eachPhase"
	SnapshotWord        = "word"
	SnapshotTake        = "take"
	SnapshotNone        = "none"
)

// Window is a maintenance window.
type Window struct {
	// Days are those on which the window opens, "Mon" to "Sun"; every day if it
	// is empty.
	Days []string `json:"days,omitempty"`
	// From and To are times of day, "22:00". One that ends before it begins goes
	// over midnight.
	From string `json:"from"`
	To   string `json:"to"`
}

// Due is, for each kind of certificate, the percentage of its life that is left
// when it is to be rotated; 0 for never.
type Due struct {
	// Leaf is below what cert-manager renews at by itself: it is for leaves that
	// it has not renewed.
	Leaf         *int `json:"leaf,omitempty"`
	Intermediate *int `json:"intermediate,omitempty"`
	// Root: its rotation is not begun by itself, people are told.
	Root *int `json:"root,omitempty"`
}

// WithDefaults returns the spec with every default filled in.
func (s Spec) WithDefaults() Spec {
	set(&s.Namespace, "gloo-mesh")
	set(&s.Management.Context, "mgmt")
	set(&s.Management.Namespace, s.Namespace)
	set(&s.Management.Reload, ReloadHot)
	s.Workloads = append([]Workload(nil), s.Workloads...)
	for i := range s.Workloads {
		w := &s.Workloads[i]
		set(&w.Context, w.Name)
		set(&w.Namespace, s.Namespace)
		set(&w.Agent.Reload, ReloadRestart)
		set(&w.Agent.Trust, TrustRootSecret)
	}
	set(&s.Vault.Name, "default")
	set(&s.Vault.RootMount, "pki")
	set(&s.Vault.RelayMount, "pki_relay")
	set(&s.PKI.Role, "gloo-mesh-mgmt-server-ca")
	set(&s.PKI.MaxLeafTTL, Hours(720))
	set(&s.PKI.Isolation, IsolationPerCluster)
	set(&s.PKI.Root.Kept, KeptVault)
	if !s.PKI.Root.Offline() {
		s.PKI.Root.CA = s.PKI.Root.CA.withDefaults(CA{CommonName: "Solo.io Root CA", Organization: "solo.io", TTL: Hours(187600)})
	}
	s.PKI.Intermediate = s.PKI.Intermediate.withDefaults(CA{CommonName: "gloo-mesh-mgmt-server-ca", Organization: "mesh.solo.io", TTL: Hours(43800)})
	s.Certificates.Server = s.Certificates.Server.withDefaults(Certificate{
		Name: "relay-server-tls", SecretName: "relay-server-tls-secret", CommonName: "gloo-mesh-mgmt-server-ca",
		DNSNames: []string{
			"gloo-mesh-mgmt-server-ca",
			"gloo-mesh-mgmt-server-ca." + s.Management.Namespace,
			"gloo-mesh-mgmt-server-ca." + s.Management.Namespace + ".svc",
			"*." + s.Management.Namespace,
		}})
	client := Certificate{Name: "relay-client-tls", SecretName: "relay-client-tls-secret"}
	if s.PKI.Isolation == IsolationShared {
		client.CommonName = "gloo-mesh-mgmt-server-ca"
	}
	s.Certificates.Client = s.Certificates.Client.withDefaults(client)
	set(&s.Credential.Method, CredentialJWT)
	set(&s.Credential.Keys, KeysPinned)
	set(&s.Credential.TokenPeriod, Hours(72))
	set(&s.CertManager.Install, InstallAuto)
	if s.Gloo.Install == nil {
		yes := true
		s.Gloo.Install = &yes
	}
	set(&s.Gloo.Authority, "gloo-mesh-mgmt-server."+s.Management.Namespace)
	set(&s.Gloo.IdentityToken.Mode, TokenGenerate)
	set(&s.Gloo.IdentityToken.SecretName, "relay-identity-token-secret")
	set(&s.Gloo.IdentityToken.Key, "token")
	if s.Verify.Every == nil {
		every := Minutes(15)
		s.Verify.Every = &every
	}
	set(&s.Rollout.Parallelism, 10)
	if s.Rollout.FailureBudget == nil {
		budget := 10
		s.Rollout.FailureBudget = &budget
	}
	set(&s.Rollout.RetryFor, Minutes(15))
	s.Rotation = s.Rotation.withDefaults()
	return s
}

func (r Rotation) withDefaults() Rotation {
	set(&r.Approval, ApprovalAfterCanary)
	set(&r.Snapshot, SnapshotWord)
	set(&r.TimeZone, "UTC")
	for _, d := range []struct {
		field **Duration
		value Duration
	}{{&r.Soak, Minutes(10)}, {&r.ReloadWithin, Minutes(3)}, {&r.Maintain, Hours(1)}} {
		if *d.field == nil {
			*d.field = &d.value
		}
	}
	for _, d := range []struct {
		field **int
		value int
	}{{&r.Due.Leaf, 1}, {&r.Due.Intermediate, 33}, {&r.Due.Root, 33}} {
		if *d.field == nil {
			*d.field = &d.value
		}
	}
	return r
}

func (c CA) withDefaults(d CA) CA {
	set(&c.CommonName, d.CommonName)
	set(&c.Organization, d.Organization)
	set(&c.TTL, d.TTL)
	set(&c.KeyType, d.KeyType)
	set(&c.KeyType, "rsa")
	if c.KeyType == d.KeyType {
		set(&c.KeyBits, d.KeyBits)
	}
	set(&c.KeyBits, map[string]int{"rsa": 2048, "ec": 256}[c.KeyType])
	return c
}

func (c Certificate) withDefaults(d Certificate) Certificate {
	set(&c.Name, d.Name)
	set(&c.SecretName, d.SecretName)
	set(&c.CommonName, d.CommonName)
	if len(c.DNSNames) == 0 {
		c.DNSNames = d.DNSNames
	}
	set(&c.Duration, Hours(24))
	set(&c.RenewBefore, Minutes(30))
	set(&c.KeyAlgorithm, "RSA")
	set(&c.KeySize, map[string]int{"RSA": 2048, "ECDSA": 256}[c.KeyAlgorithm])
	return c
}

// ClientCertificate is the client certificate of one workload: the common
// settings with that cluster's name as DNS name.
func (s Spec) ClientCertificate(w Workload) Certificate {
	c := s.Certificates.Client
	c.DNSNames = []string{w.Name}
	set(&c.CommonName, w.Name)
	return c
}

// clientRolePrefix begins the roles that sign for one workload each.
const clientRolePrefix = "relay-client-"

// RoleFor is the role in the relay mount that signs for a workload.
func (s Spec) RoleFor(w Workload) string {
	if s.PKI.Isolation == IsolationShared {
		return s.PKI.Role
	}
	return clientRolePrefix + w.Name
}

// ProbeRole is the role that throwaway signatures use.
func (s Spec) ProbeRole() string { return "relaypki-probe" }

// AuthMount is the Vault auth mount of one cluster of this mesh, by its
// context ("relaypki-<mesh>-<context>").
func (s Spec) AuthMount(context string) string {
	return fmt.Sprintf("relaypki-%s-%s", s.Mesh, context)
}

// CALease is the name of the lock on the mesh's CAs.
func (s Spec) CALease() string { return fmt.Sprintf("relaypki-%s-ca", s.Mesh) }

// RootMount is the mount in which the root signs; empty if it is kept outside
// Vault.
func (s Spec) RootMount() string {
	if s.PKI.Root.Offline() {
		return ""
	}
	return s.Vault.RootMount
}

// ClusterLease is the name of the lock on one workload cluster.
func (s Spec) ClusterLease(workload string) string {
	return fmt.Sprintf("relaypki-%s-cluster-%s", s.Mesh, workload)
}

// ReviewerBinding is the ClusterRoleBinding of ReviewerName; it is of the whole
// cluster, in which a mesh may have several namespaces.
func (s Spec) ReviewerBinding() string { return ReviewerName + "-" + s.Namespace }

// CRLExpiry and CRLRebuiltBefore are how mounts' CRLs are kept, as Vault writes it.
// One that nobody rebuilds ends after three days, Vault's own figure, and then
// whoever asks for one refuses every certificate. It is rebuilt a day before, so
// that a Vault which is sealed over night still comes in time.
const (
	CRLExpiry        = "72h"
	CRLRebuiltBefore = "24h"
)

// Names of objects that the procedures make in every cluster.
const (
	// IssuerName is the cert-manager Issuer, the guide's name.
	IssuerName = "vault-issuer"
	// IssuerServiceAccount is whose tokens the Issuer logs in with.
	IssuerServiceAccount = "relaypki-issuer"
	// TokenSecretName is the guide's Secret of the token method.
	TokenSecretName = "vault-token"
	// TokenSecretKey is the guide's key in it.
	TokenSecretKey = "token"
	// AppRoleSecretName is the Secret of the appRole method.
	AppRoleSecretName = "relaypki-approle"
	// ReviewerName is the ServiceAccount that Vault has tokens reviewed with, and
	// the Secret with its token (method kubernetes).
	ReviewerName = "relaypki-reviewer"
	// CABundleSecretName holds the CA that Vault's own TLS is checked with.
	CABundleSecretName = "relaypki-vault-ca"
	// RootSecretName is the agents' trust, key ca.crt.
	RootSecretName = "relay-root-tls-secret"
	// ServerDeployment and AgentDeployment are Gloo's.
	ServerDeployment = "gloo-mesh-mgmt-server"
	AgentDeployment  = "gloo-mesh-agent"
)

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Workload finds a workload by its registered name.
func (s Spec) Workload(name string) (Workload, bool) {
	for _, w := range s.Workloads {
		if w.Name == name {
			return w, true
		}
	}
	return Workload{}, false
}

// Only is the spec with no workload but the one of that registered name, if
// any: what concerns one cluster need not carry the names of all. A context may
// be the name of another workload, so it does not count. Namespace is then that
// cluster's; the management cluster's if there is no such workload.
func (s Spec) Only(name string) Spec {
	all := s.Workloads
	s.Workloads = nil
	s.Namespace = s.Management.Namespace
	for _, w := range all {
		if w.Name == name {
			s.Workloads = []Workload{w}
			s.Namespace = w.Namespace
		}
	}
	return s
}

// With is the spec with a new workload, or with a member's settings replaced,
// and its defaults.
func (s Spec) With(w Workload) Spec {
	s.Workloads = append([]Workload(nil), s.Workloads...)
	for i := range s.Workloads {
		if s.Workloads[i].Name == w.Name {
			s.Workloads[i] = w
			return s.WithDefaults()
		}
	}
	s.Workloads = append(s.Workloads, w)
	return s.WithDefaults()
}

// MoveProblems are what keeps a member of this mesh from being the given
// workload: it is another cluster, or in another place of the same. What was
// made where it is now would be left behind there.
func (s Spec) MoveProblems(w Workload) []strict.Problem {
	var problems []strict.Problem
	s = s.WithDefaults()
	have, ok := s.Workload(w.Name)
	if !ok {
		return nil
	}
	now, _ := s.With(w).Workload(w.Name)
	if have.Context != now.Context {
		problems = append(problems, strict.Problem{Path: "workload.context", Message: fmt.Sprintf("%q is the cluster %q in the mesh and %q in this input; the first would keep its credential for that name, so give the other a name of its own",
			w.Name, have.Context, now.Context)})
	}
	if have.Namespace != now.Namespace {
		problems = append(problems, strict.Problem{Path: "workload.namespace", Message: fmt.Sprintf("%q is in the namespace %q in the mesh and %q in this input; remove it first", w.Name, have.Namespace, now.Namespace)})
	}
	return problems
}

// PrivateProblems are what keeps a cluster of this mesh from being served by
// the worker of a task queue of its own, inside a private network: that worker
// reaches neither Vault nor the management cluster, and a secret must not pass
// through Temporal from one worker to another. None for the empty queue.
func (s Spec) PrivateProblems(queue string) []string {
	var problems []string
	if secret := map[string]string{CredentialToken: "token", CredentialAppRole: "secret id"}[s.Credential.Method]; queue != "" && secret != "" {
		problems = append(problems, fmt.Sprintf("is served by the worker of task queue %q, which cannot mint its %s: set credential.method to %q", queue, secret, CredentialJWT))
	}
	if queue != "" && s.Credential.Method == CredentialKubernetes {
		problems = append(problems, fmt.Sprintf("is served by the worker of task queue %q, inside a private network: Vault has to reach the API server to have tokens reviewed, and that worker does not reach Vault: set credential.method to %q", queue, CredentialJWT))
	}
	if queue != "" && s.Gloo.IdentityToken.Mode != TokenNone {
		problems = append(problems, fmt.Sprintf("is served by the worker of task queue %q, which does not reach the identity token: with client certificates none is needed, so set gloo.identityToken.mode to %q", queue, TokenNone))
	}
	return problems
}

// Normal is the spec as it is when it has gone through JSON, so that two can
// be compared: numbers in Helm values are alike, empty and missing are one, and
// the order in which members were added does not count.
func (s Spec) Normal() Spec {
	data, err := json.Marshal(s)
	var out Spec
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		panic(fmt.Sprintf("a spec does not survive JSON: %v", err))
	}
	slices.SortStableFunc(out.Workloads, func(a, b Workload) int { return strings.Compare(a.Name, b.Name) })
	return out
}
