package mesh

import (
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/secret"
	"github.com/relaypki/relaypki/internal/strict"
)

// The shortest leaf that cert-manager accepts, and the shortest time before
// expiry at which it renews (Certificate.spec.duration and renewBefore, API
// reference).
const (
	minLeaf        = time.Hour
	minRenewBefore = 5 * time.Minute
)

// MaxParallelism bounds how many clusters one procedure works on at once: more
// would only queue in Vault and in the worker.
const MaxParallelism = 100

// Within these, a step is tried again: at least once, and not for longer than a
// run waits for a person.
const (
	minRetryFor = 5 * time.Second
	maxRetryFor = 7 * 24 * time.Hour
)

// The longest common name (RFC 5280 appendix A.1, ub-common-name).
const maxCommonName = 64

var (
	dnsName   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	dnsLabel  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	secretKey = regexp.MustCompile(`^[-._a-zA-Z0-9]+$`)
	mountPath = regexp.MustCompile(`^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$`)
)

// Validate returns every problem of a spec that has its defaults.
func (s Spec) Validate() []strict.Problem {
	v := &validation{}
	v.name("mesh", s.Mesh, 40)
	v.name("namespace", s.Namespace, 63)
	v.context("management.context", s.Management.Context)
	if s.Management.Namespace != s.Namespace {
		v.name("management.namespace", s.Management.Namespace, 63)
	}
	v.oneOf("management.reload", s.Management.Reload, ReloadHot, ReloadRestart)
	v.workloads(s)
	v.vault(s.Vault, s.PKI.Root.Offline())
	v.pki(s.PKI)
	v.certificate("certificates.server", s.Certificates.Server, s.PKI)
	v.certificate("certificates.client", s.Certificates.Client, s.PKI)
	if !covers(s.Certificates.Server.DNSNames, s.Gloo.Authority) {
		v.bad("certificates.server.dnsNames", "do not cover %q (gloo.authority), the name that the agents expect", s.Gloo.Authority)
	}
	if len(s.Certificates.Client.DNSNames) > 0 {
		v.bad("certificates.client.dnsNames", "cannot be chosen: a client certificate has its cluster's name and no other")
	}
	if s.PKI.Isolation == IsolationPerCluster && s.Certificates.Client.CommonName != "" {
		v.bad("certificates.client.commonName", "cannot be chosen with pki.isolation %q: a cluster's role signs for its own name and no other", IsolationPerCluster)
	}
	v.oneOf("credential.method", s.Credential.Method, CredentialJWT, CredentialToken, CredentialAppRole, CredentialKubernetes)
	v.oneOf("credential.keys", s.Credential.Keys, KeysPinned, KeysDiscovery)
	if s.Credential.TokenPeriod.Duration < time.Hour {
		v.bad("credential.tokenPeriod", "%s is too short to be renewed in time; give at least 1h", s.Credential.TokenPeriod)
	}
	v.values("vault.values", s.Vault.Values)
	v.values("certManager.values", s.CertManager.Values)
	v.values("gloo.serverValues", s.Gloo.ServerValues)
	v.values("gloo.agentValues", s.Gloo.AgentValues)
	for i, w := range s.Workloads {
		v.values(fmt.Sprintf("workloads[%d].agentValues", i), w.AgentValues)
	}
	v.oneOf("certManager.install", s.CertManager.Install, InstallAuto, InstallNever)
	v.relayAddress(s.Gloo.RelayAddress)
	v.oneOf("gloo.identityToken.mode", s.Gloo.IdentityToken.Mode, TokenGenerate, TokenExisting, TokenNone)
	v.identityToken(s)
	if every := s.Verify.Every.Duration; every != 0 && every < time.Minute {
		v.bad("verify.every", "%s is too often; give at least 1m, or 0s for no schedule", s.Verify.Every)
	}
	v.rollout(s)
	v.rotation(s.Rotation)
	return v.problems
}

type validation struct{ problems []strict.Problem }

func (v *validation) bad(path, format string, args ...any) {
	v.problems = append(v.problems, strict.Problem{Path: path, Message: fmt.Sprintf(format, args...)})
}

// name checks something that becomes part of Kubernetes object names, Vault
// paths and, for a cluster, a DNS name in a certificate.
func (v *validation) name(path, name string, longest int) {
	switch {
	case name == "":
		v.bad(path, "is missing")
	case strings.Contains(name, "_"):
		v.bad(path, "%q has an underscore, which no DNS name may have; write %q, and rename a kubeconfig context with kubectl config rename-context",
			name, strings.ReplaceAll(name, "_", "-"))
	case !dnsLabel.MatchString(name):
		v.bad(path, "%q is not a DNS label: small letters, digits and dashes, with a letter or digit at both ends", name)
	case len(name) > longest:
		v.bad(path, "%q is %d characters long; at most %d fit", name, len(name), longest)
	}
}

// context checks a name of the worker's site file that goes into Vault paths.
func (v *validation) context(path, name string) {
	switch {
	case name == "":
		v.bad(path, "is missing")
	case strings.Contains(name, "_"):
		v.bad(path, "%q has an underscore; rename the context with kubectl config rename-context", name)
	case !dnsName.MatchString(name) || len(name) > 128:
		v.bad(path, "%q is not usable as a name: small letters, digits, dashes and dots, at most 128", name)
	}
}

func (v *validation) objectName(path, name string) {
	if !dnsName.MatchString(name) || len(name) > 253 {
		v.bad(path, "%q is not a name that Kubernetes accepts", name)
	}
}

func (v *validation) workloads(s Spec) {
	if len(s.Workloads) == 0 {
		v.bad("workloads", "is empty; name at least one workload cluster")
	}
	names, contexts := map[string]int{}, map[string]int{}
	for i, w := range s.Workloads {
		at := fmt.Sprintf("workloads[%d]", i)
		v.name(at+".name", w.Name, 63)
		if w.Context != w.Name {
			v.context(at+".context", w.Context)
		}
		if w.Namespace != s.Namespace {
			v.name(at+".namespace", w.Namespace, 63)
		}
		if first, twice := names[w.Name]; twice && w.Name != "" {
			v.bad(at+".name", "%q is workloads[%d] already", w.Name, first)
		} else {
			names[w.Name] = i
		}
		if first, twice := contexts[w.Context]; twice && w.Context != "" && s.Workloads[first].Name != w.Name {
			v.bad(at+".context", "%q is workloads[%d]'s already; one cluster can have one agent", w.Context, first)
		} else {
			contexts[w.Context] = i
		}
		if w.Context == s.Management.Context && w.Context != "" {
			v.bad(at+".context", "%q is the management cluster; its Issuer may only sign for the server", w.Context)
		}
		v.oneOf(at+".agent.reload", w.Agent.Reload, ReloadHot, ReloadRestart)
		v.oneOf(at+".agent.trust", w.Agent.Trust, TrustRootSecret, TrustOwn)
	}
}

func (v *validation) vault(vault Vault, offline bool) {
	v.oneOf("vault.install", vault.Install, VaultExisting, VaultDev, VaultStandalone)
	for _, m := range []struct{ path, mount string }{{"vault.rootMount", vault.RootMount}, {"vault.relayMount", vault.RelayMount}} {
		if !mountPath.MatchString(m.mount) {
			v.bad(m.path, "%q is not a mount path; write it without slashes at its ends", m.mount)
		}
	}
	switch root, relay := vault.RootMount+"/", vault.RelayMount+"/"; {
	case offline: // there is no root mount
	case root == relay:
		v.bad("vault.relayMount", "is the root mount too; the intermediate needs a mount of its own")
	case strings.HasPrefix(root, relay), strings.HasPrefix(relay, root):
		v.bad("vault.relayMount", "%q and the root mount %q lie within each other, which Vault does not allow", vault.RelayMount, vault.RootMount)
	}
}

// identityToken refuses what would have the worker copy another secret than an
// identity token into every cluster.
func (v *validation) identityToken(s Spec) {
	token := s.Gloo.IdentityToken
	v.objectName("gloo.identityToken.secretName", token.SecretName)
	others := []string{s.Certificates.Server.SecretName, s.Certificates.Client.SecretName, RootSecretName, TokenSecretName, AppRoleSecretName, ReviewerName, CABundleSecretName}
	if slices.Contains(others, token.SecretName) || strings.HasPrefix(token.SecretName, "sh.helm.") {
		v.bad("gloo.identityToken.secretName", "%q holds something else; give the Secret of the identity token", token.SecretName)
	}
	if !secretKey.MatchString(token.Key) || strings.HasPrefix(token.Key, "tls.") {
		v.bad("gloo.identityToken.key", "%q is not the key of an identity token", token.Key)
	}
}

func (v *validation) rollout(s Spec) {
	r := s.Rollout
	for i, name := range r.Canary {
		at := fmt.Sprintf("rollout.canary[%d]", i)
		switch _, ok := s.Workload(name); {
		case !ok:
			v.bad(at, "%q is not one of the workloads", name)
		case slices.Index(r.Canary, name) < i:
			v.bad(at, "%q is there twice", name)
		}
	}
	if r.WaveSize < 0 {
		v.bad("rollout.waveSize", "%d is no number of clusters; 0 is one wave for all", r.WaveSize)
	}
	if r.Parallelism < 1 || r.Parallelism > MaxParallelism {
		v.bad("rollout.parallelism", "%d is not between 1 and %d", r.Parallelism, MaxParallelism)
	}
	if *r.FailureBudget < 0 {
		v.bad("rollout.failureBudget", "%d is no number of clusters; 0 begins no other once one is parked", *r.FailureBudget)
	}
	if d := r.RetryFor.Duration; d < minRetryFor || d > maxRetryFor {
		v.bad("rollout.retryFor", "%s is not between %s and %s", r.RetryFor, minRetryFor, maxRetryFor)
	}
}

func (v *validation) pki(p PKI) {
	root := v.root(p.Root)
	v.ca("pki.intermediate", p.Intermediate)
	if p.Intermediate.TTL.Duration >= root.TTL.Duration && root.TTL.Duration > 0 {
		v.bad("pki.intermediate.ttl", "%s is not shorter than the root's %s, which would sign for longer than it lives", p.Intermediate.TTL, root.TTL)
	}
	if p.MaxLeafTTL.Duration >= p.Intermediate.TTL.Duration {
		v.bad("pki.maxLeafTTL", "%s is not shorter than the intermediate's %s", p.MaxLeafTTL, p.Intermediate.TTL)
	}
	if root.CommonName == p.Intermediate.CommonName {
		v.bad("pki.intermediate.commonName", "is the root's too; who signed what could not be told apart")
	}
	if !mountPath.MatchString(p.Role) || strings.Contains(p.Role, "/") {
		v.bad("pki.role", "%q is not a role name", p.Role)
	}
	if p.Role == (Spec{}).ProbeRole() || strings.HasPrefix(p.Role, clientRolePrefix) {
		v.bad("pki.role", "%q is the name of another role of the mesh", p.Role)
	}
	v.oneOf("pki.isolation", p.Isolation, IsolationPerCluster, IsolationShared)
	if p.StandbyRoot {
		v.standbyRoot(p.Root)
	}
}

// standbyRoot refuses what the next root cannot be made of.
func (v *validation) standbyRoot(root Root) {
	switch room := maxCommonName - len(" G99"); {
	case root.Offline():
		v.bad("pki.standbyRoot", "is for a root that is made in Vault: where it is kept offline (pki.root.kept), the next one is made and kept by people too; leave it out")
	case len(root.CommonName) > room && len(root.CommonName) <= maxCommonName:
		v.bad("pki.root.commonName", "is %d characters long; at most %d leave room for the generation (\" G2\") in the name of a root that stands by (pki.standbyRoot)", len(root.CommonName), room)
	}
}

// root is the root as it is asked for or, kept offline, as it is.
func (v *validation) root(root Root) CA {
	v.oneOf("pki.root.kept", root.Kept, KeptVault, KeptOffline)
	if !root.Offline() {
		if root.CertificatePEM != "" {
			v.bad("pki.root.certificatePEM", "is for a root that is kept elsewhere: set pki.root.kept to %q, or leave it out", KeptOffline)
		}
		v.ca("pki.root", root.CA)
		return root.CA
	}
	if root.CA != (CA{}) {
		v.bad("pki.root", "commonName, organization, ttl, keyType and keyBits of a root that is kept offline are in its certificate; leave them out")
	}
	if root.CertificatePEM == "" {
		v.bad("pki.root.certificatePEM", "is missing; give the certificate of the root, in PEM, without its key")
		return CA{}
	}
	chain, err := pki.ParseSigned([]byte(root.CertificatePEM))
	switch {
	case pki.HasPrivateKey([]byte(root.CertificatePEM)):
		v.bad("pki.root.certificatePEM", "holds a private key, which would stay in Temporal's histories; give the certificate alone, and judge whether the key is still a secret")
		return CA{}
	case err != nil:
		v.bad("pki.root.certificatePEM", "cannot be read: %v", err)
		return CA{}
	case len(chain) > 1:
		v.bad("pki.root.certificatePEM", "has %d certificates; give the root's alone", len(chain))
		return CA{}
	}
	for _, problem := range pki.CheckRoot(chain[0]) {
		v.bad("pki.root.certificatePEM", "cannot be a mesh's root: %v", problem)
	}
	return CA{CommonName: chain[0].Subject.CommonName, TTL: Duration{chain[0].NotAfter.Sub(chain[0].NotBefore)}}
}

func (v *validation) ca(path string, ca CA) {
	v.commonName(path+".commonName", ca.CommonName)
	if ca.TTL.Duration < time.Hour {
		v.bad(path+".ttl", "%s is too short for a certificate authority; give at least 1h", ca.TTL)
	}
	v.key(path, "keyType", ca.KeyType, "keyBits", ca.KeyBits, keys{"ec", []int{224, 256, 384, 521}}, keys{"rsa", []int{2048, 3072, 4096, 8192}})
}

func (v *validation) certificate(path string, c Certificate, p PKI) {
	v.objectName(path+".name", c.Name)
	v.objectName(path+".secretName", c.SecretName)
	if c.SecretName == RootSecretName {
		v.bad(path+".secretName", "%q is the agents' trust", c.SecretName)
	}
	if c.CommonName != "" {
		v.commonName(path+".commonName", c.CommonName)
	}
	for i, name := range c.DNSNames {
		if !dnsName.MatchString(strings.TrimPrefix(name, "*.")) || len(name) > 253 {
			v.bad(fmt.Sprintf("%s.dnsNames[%d]", path, i), "%q is not a DNS name", name)
		}
	}
	v.key(path, "keyAlgorithm", c.KeyAlgorithm, "keySize", c.KeySize, keys{"ECDSA", []int{256, 384, 521}}, keys{"RSA", []int{2048, 3072, 4096, 8192}})
	switch {
	case c.Duration.Duration < minLeaf:
		v.bad(path+".duration", "%s is too short; cert-manager accepts 1h or more", c.Duration)
	case c.Duration.Duration > p.MaxLeafTTL.Duration:
		v.bad(path+".duration", "%s is longer than pki.maxLeafTTL, %s", c.Duration, p.MaxLeafTTL)
	}
	switch {
	case c.RenewBefore.Duration < minRenewBefore:
		v.bad(path+".renewBefore", "%s is too short; cert-manager accepts 5m or more", c.RenewBefore)
	case c.RenewBefore.Duration >= c.Duration.Duration:
		v.bad(path+".renewBefore", "%s is not shorter than the duration, %s: it would be renewed without end", c.RenewBefore, c.Duration)
	}
}

func (v *validation) commonName(path, name string) {
	switch {
	case name == "":
		v.bad(path, "is missing")
	case len(name) > maxCommonName:
		v.bad(path, "is %d characters long; at most %d fit in a certificate", len(name), maxCommonName)
	}
}

// keys are a type of key and the sizes it comes in.
type keys struct {
	name  string
	sizes []int
}

func (v *validation) key(path, typeField, keyType, sizeField string, size int, allowed ...keys) {
	var names []string
	for _, k := range allowed {
		names = append(names, k.name)
		if k.name == keyType && !slices.Contains(k.sizes, size) {
			v.bad(path+"."+sizeField, "%d is not a size of %s keys; choose one of %v", size, keyType, k.sizes)
		}
	}
	v.oneOf(path+"."+typeField, keyType, names...)
}

func (v *validation) oneOf(path, value string, allowed ...string) {
	if slices.Contains(allowed, value) {
		return
	}
	quoted := make([]string, len(allowed))
	for i, a := range allowed {
		quoted[i] = fmt.Sprintf("%q", a)
	}
	v.bad(path, "%q is unknown; choose one of %s", value, strings.Join(quoted, ", "))
}

// secretName matches the last part of a Helm value that is a secret itself, not
// the name of one.
var secretName = regexp.MustCompile(`(?i)(licen[cs]e_?key|password|passwd|private_?key|secret_?key|access_?key|api_?key|bearer_?token)$`)

// values refuses secrets in Helm values: an input is in Temporal's histories and
// in the mesh's ConfigMap.
func (v *validation) values(path string, value any) {
	switch value := value.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(value)) {
			below := path + "." + key
			if text, ok := value[key].(string); ok && text != "" && secretName.MatchString(key) {
				v.secret(below)
				continue
			}
			v.values(below, value[key])
		}
	case []any:
		for i := range value {
			v.values(fmt.Sprintf("%s[%d]", path, i), value[i])
		}
	case string:
		if secret.Withhold(value) != value {
			v.secret(path)
		}
	}
}

func (v *validation) secret(path string) {
	v.bad(path, "holds a secret, which would stay in Temporal's histories; have the chart read it from a Secret, or put it into chartValues of the worker's site file")
}

func (v *validation) relayAddress(address string) {
	if address == "" {
		return
	}
	if problem := AddressProblem(address); problem != "" {
		v.bad("gloo.relayAddress", "is not host:port, as in relay.example.com:9900 or [2001:db8::1]:9900: %s", problem)
	}
}

// AddressProblem says why text is no host:port of a server, or "".
func AddressProblem(text string) string {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return err.Error()
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return fmt.Sprintf("address %s: %q is no port", text, port)
	}
	if host == "" || strings.ContainsAny(host, " /@") {
		return fmt.Sprintf("address %s: %q is no host", text, host)
	}
	// "34.145.18106" is what a slip makes of an IP address, and no host name
	// ends in a number.
	last := host[strings.LastIndexByte(host, '.')+1:]
	if net.ParseIP(host) == nil && len(last) > 0 && strings.Trim(last, "0123456789") == "" {
		return fmt.Sprintf("address %s: %q is no IP address and no host name", text, host)
	}
	return ""
}

// covers says whether one of the DNS names, wildcards included, matches name
// (RFC 6125 section 6.4.3: a wildcard stands for one whole label).
func covers(dnsNames []string, name string) bool {
	_, parent, _ := strings.Cut(name, ".")
	return slices.Contains(dnsNames, name) || slices.Contains(dnsNames, "*."+parent)
}

var (
	weekdays  = []string{"Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"}
	timeOfDay = regexp.MustCompile(`^([01]\d|2[0-3]):[0-5]\d$`)
)

// minMaintain keeps MaintainMesh from doing little else.
const minMaintain = time.Minute

// maxReload keeps a rotation from waiting for a process that does not read its
// Secrets at all.
const maxReload = 30 * time.Minute

func (v *validation) rotation(r Rotation) {
	v.oneOf("rotation.approval", r.Approval, ApprovalNone, ApprovalAfterCanary, ApprovalEachPhase)
	v.oneOf("rotation.snapshot", r.Snapshot, SnapshotWord, SnapshotTake, SnapshotNone)
	if r.Soak.Duration < 0 {
		v.bad("rotation.soak", "%s is negative", *r.Soak)
	}
	if within := r.ReloadWithin.Duration; within < 0 || within > maxReload {
		v.bad("rotation.reloadWithin", "%s is not between 0s and %s; who takes longer is to be restarted: set its reload to %q", *r.ReloadWithin, Duration{maxReload}, ReloadRestart)
	}
	if every := r.Maintain.Duration; every != 0 && every < minMaintain {
		v.bad("rotation.maintain", "%s is too often; give at least %s, or 0s for never", *r.Maintain, minMaintain)
	}
	if _, err := time.LoadLocation(r.TimeZone); err != nil || r.TimeZone == "Local" {
		v.bad("rotation.timeZone", "%q is no time zone; write it like \"Europe/Berlin\" or \"UTC\"", r.TimeZone)
	}
	for i, w := range r.Windows {
		path := fmt.Sprintf("rotation.windows[%d]", i)
		for _, day := range w.Days {
			if !slices.Contains(weekdays, day) {
				v.bad(path+".days", "%q is none of %s", day, strings.Join(weekdays, ", "))
			}
		}
		for _, t := range []struct{ name, text string }{{"from", w.From}, {"to", w.To}} {
			if !timeOfDay.MatchString(t.text) {
				v.bad(path+"."+t.name, "%q is no time of day; write it like \"22:00\"", t.text)
			}
		}
		if w.From == w.To {
			v.bad(path, "begins and ends at %s; for any time of the day, write no from later than 00:00 and to 23:59, or no windows at all", w.From)
		}
	}
	for _, d := range []struct {
		name    string
		percent *int
	}{{"leaf", r.Due.Leaf}, {"intermediate", r.Due.Intermediate}, {"root", r.Due.Root}} {
		if *d.percent < 0 || *d.percent > 99 {
			v.bad("rotation.due."+d.name, "%d is not between 0 and 99 percent", *d.percent)
		}
	}
}
