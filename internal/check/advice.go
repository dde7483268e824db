package check

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/secret"
	"github.com/relaypki/relaypki/internal/shell"
)

// setup is the command of runSetup.
const setup = "relaypki setup -f mesh.yaml"

// place is the cluster that findings are of, and what was seen there: what their
// evidence, commands and mends are made of.
type place struct {
	now  time.Time
	spec mesh.Spec // Namespace is this cluster's
	// name is the cluster's in findings, context its own in the site file.
	name, context string
	workload      bool
	// role signs for this cluster.
	role        string
	asked       mesh.Certificate
	certManager []SeenDeployment
	issuer      SeenIssuer
	certificate SeenCertificate
	secret      SeenSecret
	keys        SeenKeys
	token       SeenToken
	// relay is the management server's Deployment, or the agent's.
	relay SeenDeployment
	owned []owned
	looks Looks
	// Only one of the two is there.
	ofManagement Management
	ofWorkload   Workload
}

func (m Management) place(now time.Time) place {
	spec := m.Spec
	spec.Namespace = spec.Management.Namespace
	return place{
		now: now, spec: spec, name: spec.Management.Context, context: spec.Management.Context, role: spec.PKI.Role,
		asked: spec.Certificates.Server, certManager: m.CertManager, issuer: m.Issuer, certificate: m.Certificate, secret: m.Secret, keys: m.Keys, token: m.Token,
		relay: m.Server, looks: m.Looks, ofManagement: m,
		owned: []owned{{spec.Certificates.Server.SecretName, m.Secret.Helm, m.Secret.Gap}, {spec.Gloo.IdentityToken.SecretName, m.Looks.Identity.Helm, m.Looks.Identity.Gap}},
	}
}

func (w Workload) place(now time.Time) place {
	spec := w.Spec
	return place{
		now: now, spec: spec, name: w.Cluster.Name, context: w.Cluster.Context, workload: true, role: spec.RoleFor(w.Cluster),
		asked: spec.ClientCertificate(w.Cluster), certManager: w.CertManager, issuer: w.Issuer, certificate: w.Certificate, secret: w.Secret, keys: w.Keys, token: w.Token,
		relay: w.Agent, looks: w.Looks, ofWorkload: w,
		owned: []owned{{spec.Certificates.Client.SecretName, w.Secret.Helm, w.Secret.Gap}, {mesh.RootSecretName, w.RootSecret.Helm, w.RootSecret.Gap}, {spec.Gloo.IdentityToken.SecretName, w.Looks.Identity.Helm, w.Looks.Identity.Gap}},
	}
}

// Commands.

// contextOf is the cluster's in a kubeconfig.
func (p place) contextOf(cluster string) string {
	if context := p.looks.Contexts[cluster]; context != "" {
		return context
	}
	return cluster
}

func (p place) kubectlOf(cluster string, args ...string) string {
	return shell.Join(append([]string{"kubectl", "--context", p.contextOf(cluster)}, args...)...)
}

// kubectl is a command for this cluster, in the relay's namespace, management one
// for the management cluster.

func (p place) kubectl(args ...string) string { return p.kubectlOf(p.name, args...) }

func (p place) management(args ...string) string {
	return p.kubectlOf(p.spec.Management.Context, args...)
}

// in is kubectl in the relay's namespace of this cluster.
func (p place) in(args ...string) string {
	return p.kubectl(append([]string{"-n", p.spec.Namespace}, args...)...)
}

// vault is a command of an operator who is logged in (VAULT_ADDR, VAULT_TOKEN), as
// those of plans are.
func (p place) vault(verb string, args ...string) string {
	words := append([]string{"vault"}, strings.Fields(verb)...)
	if p.looks.VaultNamespace != "" {
		words = append(words, "-namespace="+p.looks.VaultNamespace)
	}
	return shell.Join(append(words, args...)...)
}

// renew has cert-manager issue this cluster's certificate anew.
func (p place) renew() string {
	return shell.Join("cmctl", "--context", p.contextOf(p.name), "renew", "-n", p.spec.Namespace, p.asked.Name)
}

func (p place) restart() []string {
	deployment := "deployment/" + mesh.ServerDeployment
	if p.workload {
		deployment = "deployment/" + mesh.AgentDeployment
	}
	return []string{p.in("rollout", "restart", deployment), p.in("rollout", "status", "--timeout=5m", deployment)}
}

// show prints what openssl says of a key of a Secret.
func (p place) show(secretName, key string) string {
	return p.in("get", "secret", secretName, "-o", "jsonpath={.data."+strings.ReplaceAll(key, ".", `\.`)+"}") + " | base64 -d | openssl crl2pkcs7 -nocrl -certfile /dev/stdin | openssl pkcs7 -print_certs -text -noout"
}

// shellLine is a command whose output is filtered, and others after it.
func shellLine(command, filter string, then ...string) string {
	return strings.Join(append([]string{command + " 2>&1 | " + filter}, then...), "; ")
}

// Mends.

func (p place) mend(do Doing) *Mend {
	if do == SetUp {
		return &Mend{Do: do} // of the mesh, not of a cluster
	}
	return &Mend{Do: do, Cluster: p.name}
}

// mendOf is what mends what a symptom shows.
func (p place) mendOf(s Symptom) *Mend {
	server := p.spec.Management.Context
	switch s.mend {
	case bySetup:
		return p.mend(SetUp)
	case byReissue:
		return p.mend(Reissue)
	case byReissuingServer:
		return &Mend{Do: Reissue, Cluster: server}
	case byRestartingServer:
		return &Mend{Do: Restart, Cluster: server}
	}
	return nil
}

// handshakeMend is what mends the first handshake that fails. A client whose chain is
// cut off finds no CA of it among those that the server accepts, and sends none: that
// says nothing against the server.
func (p place) handshakeMend(w Workload) *Mend {
	if len(w.Secret.Chain) > 0 && chainProblem(w.Secret, use{usage: x509.ExtKeyUsageClientAuth}, p.now) != nil {
		return p.mend(Reissue)
	}
	for _, h := range w.Handshakes {
		if s, ok := Explain(AtHandshake, h.Error); ok && h.Reached {
			return p.mendOf(s)
		}
	}
	return nil
}

// advice is what a finding has in a diagnosis besides.
type advice struct {
	evidence, commands []string
	mend               *Mend
}

// advise adds to what does not pass what a diagnosis owes: evidence, commands and a
// mend, as the table below has them.
func (p place) advise(r *report) []Finding {
	for i := range r.findings {
		f := &r.findings[i]
		if f.Status == Pass {
			continue
		}
		p.lower(f)
		if f.Status == Pass {
			continue
		}
		of := p
		if f.Cluster != p.name { // the gauges of a workload cluster, read in the management cluster
			of = p.elsewhere(f.Cluster)
		}
		if table, ok := advices[f.Check]; ok {
			a := table(of, *f)
			if f.Evidence == nil {
				f.Evidence = a.evidence
			}
			if f.Commands == nil {
				f.Commands = a.commands
			}
			if f.Mend == nil && !slices.Contains(r.unread, i) {
				f.Mend = a.mend
			}
		}
		if len(f.Evidence) == 0 {
			f.Evidence = []string{f.Message}
		}
		for j, line := range f.Evidence {
			f.Evidence[j] = secret.Withhold(strings.Join(strings.Fields(line), " "))
		}
	}
	return r.findings
}

// lower makes a note of what a verification warns of and a diagnosis knows to be as
// it should be: a worker in a private network does not see the other side, and the
// stand-in is the lab's, which passes.
func (p place) lower(f *Finding) {
	private := p.workload && p.ofWorkload.Private != "" && (f.Check == RegisteredName || f.Check == Handshake)
	unread := f.Check == PinnedKeys && p.keys.VaultGap.Reason == Denied
	switch {
	case f.Check == StandIn:
		f.Status, f.Remedy = Pass, ""
	case private || unread:
		f.Status = Note
	}
	f.Denied = f.Denied || private || unread
}

func (p place) elsewhere(cluster string) place {
	p.name, p.workload = cluster, true
	if w, ok := p.ofManagement.Spec.Workload(cluster); ok {
		p.spec.Namespace, p.context, p.asked = w.Namespace, w.Context, p.spec.ClientCertificate(w)
	}
	return p
}

// Evidence.

// evidence is why something could not be looked at, as evidence.
func (g Gap) evidence(object string) []string {
	if !g.Open() {
		return nil
	}
	return []string{strings.TrimSuffix(fmt.Sprintf("%s: %s: %s", object, g.Reason, g.Detail), ": ")}
}

func (c Condition) evidence(object, kind string) string {
	if c.Status == "" {
		return fmt.Sprintf("%s, condition %s: none", object, kind)
	}
	return fmt.Sprintf("%s, condition %s: %s, %s: %s", object, kind, c.Status, c.Reason, c.Message)
}

func (p place) object(kind, name string) string { return kind + " " + p.spec.Namespace + "/" + name }

// chain are the certificates of the relay's Secret.
func (p place) chain() []string {
	object := p.object("Secret", p.asked.SecretName)
	out := p.secret.Gap.evidence(object)
	for key, problem := range map[string]string{"tls.crt": p.secret.ChainError, "ca.crt": p.secret.CAError} {
		if problem != "" {
			out = append(out, fmt.Sprintf("%s, %s: %s", object, key, problem))
		}
	}
	slices.Sort(out)
	out = append(out, listed(object+", tls.crt", p.secret.Chain)...)
	return append(out, listed(object+", ca.crt", p.secret.CA)...)
}

func listed(where string, chain []*x509.Certificate) []string {
	var out []string
	for i, c := range chain {
		out = append(out, fmt.Sprintf("%s[%d]: %s", where, i, describe(c)))
	}
	return out
}

// events are the last warnings about objects whose names begin so.
func (p place) events(prefixes ...string) []string {
	var out []string
	for _, e := range p.looks.Events {
		for _, prefix := range prefixes {
			if strings.HasPrefix(e.Object, prefix) {
				out = append(out, fmt.Sprintf("event of %s, %s, %d times, last at %s: %s", e.Object, e.Reason, e.Count, stamp(e.Last), e.Message))
				break
			}
		}
	}
	return out[max(0, len(out)-3):]
}

// issuance is the line from the Certificate over its requests to the Issuer.
func (p place) issuance() []string {
	c, object := p.certificate, p.object("Certificate", p.asked.Name)
	if c.Gap.Open() {
		return c.Gap.evidence(object)
	}
	out := []string{c.Ready.evidence(object, "Ready")}
	if c.Issuing.Status != "" {
		out = append(out, c.Issuing.evidence(object, "Issuing"))
	}
	if !c.LastFailure.IsZero() {
		out = append(out, fmt.Sprintf("%s, status: %d failed issuances, the last at %s; cert-manager asks again at %s, unless it is told to before",
			object, max(c.Failures, 1), stamp(c.LastFailure), stamp(c.LastFailure.Add(backOff(c.Failures)))))
	}
	requests := p.looks.Requests
	for _, request := range requests[max(0, len(requests)-3):] {
		object := p.object("CertificateRequest", request.Name)
		if request.Denied.Status == "True" {
			out = append(out, request.Denied.evidence(object, "Denied"))
		}
		if request.Approved.Status != "True" {
			out = append(out, request.Approved.evidence(object, "Approved"))
		}
		if request.Ready.Status != "True" {
			out = append(out, request.Ready.evidence(object, "Ready"))
		}
	}
	if c.Request != "" && len(requests) == 0 {
		out = append(out, "its CertificateRequest: "+c.Request)
	}
	out = append(out, p.issuing()...)
	return append(out, p.events(p.object("Certificate", p.asked.Name), p.object("CertificateRequest", p.asked.Name))...)
}

func (p place) issuing() []string {
	object := p.object("Issuer", mesh.IssuerName)
	if p.issuer.Gap.Open() {
		return p.issuer.Gap.evidence(object)
	}
	return []string{p.issuer.Ready.evidence(object, "Ready"), fmt.Sprintf("%s, spec.vault.path: %s", object, p.issuer.Path)}
}

// backOff is how long cert-manager waits after that many failures: an hour, twice as
// long each time, at most 32 (its defaults).
func backOff(failures int) time.Duration {
	return time.Hour << min(max(failures, 1)-1, 5)
}

func (p place) deployed(d SeenDeployment) []string {
	object := "Deployment " + d.Namespace + "/" + d.Name
	if d.Gap.Open() {
		return d.Gap.evidence(object)
	}
	out := []string{fmt.Sprintf("%s: spec.replicas %d, status.availableReplicas %d", object, d.Desired, d.Available)}
	for _, pod := range d.Pods {
		if !pod.Ready {
			out = append(out, p.pod(d.Namespace, pod)...)
		}
	}
	return append(out, d.PodsGap.evidence("the Pods of "+object)...)
}

// pod is what is seen of one that is not ready: its states, the line of its log that
// says most, and the warnings about it.
func (p place) pod(namespace string, pod SeenPod) []string {
	object := "Pod " + namespace + "/" + pod.Name
	out := []string{object + ": " + pod.states()}
	where := InServer
	if p.workload {
		where = InAgent
	}
	lines := strings.Split(strings.TrimSpace(pod.Log), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if _, known := Explain(where, lines[i]); known || i == 0 && len(out) == 1 {
			if line := strings.TrimSpace(lines[i]); line != "" {
				out = append(out, fmt.Sprintf("%s, log: %s", object, cut(line)))
			}
			break
		}
	}
	return append(out, p.events(object)...)
}

// cut is as much of a log line as a finding has room for.
func cut(line string) string {
	if runes := []rune(line); len(runes) > 500 {
		return string(runes[:500]) + "..."
	}
	return line
}

// available are the commands for a Deployment that is not available.
func (p place) available(d SeenDeployment) []string {
	deployment := "deployment/" + d.Name
	if d.Desired == 0 && !d.Gap.Open() {
		return []string{p.kubectl("-n", d.Namespace, "scale", deployment, "--replicas=1"), p.kubectl("-n", d.Namespace, "rollout", "status", "--timeout=5m", deployment)}
	}
	return []string{p.kubectl("-n", d.Namespace, "describe", deployment), p.kubectl("-n", d.Namespace, "describe", "pods")}
}

// advices are of the checks that a verification makes too; those of a diagnosis
// alone say theirs where they judge.
var advices = map[string]func(place, Finding) advice{
	ClusterReachable: func(p place, _ Finding) advice {
		why := p.ofManagement.Unreachable + p.ofWorkload.Unreachable
		return advice{
			evidence: []string{"GET /version: " + why},
			commands: []string{p.kubectl("get", "--raw", "/readyz?verbose"), p.kubectl("config", "view", "--minify")},
		}
	},
	VaultAvailable: func(p place, _ Finding) advice {
		v := p.ofManagement.Vault
		object := fmt.Sprintf("Vault %q at %s", v.Name, v.Address)
		address := "-address=" + v.Address
		a := advice{evidence: v.Gap.evidence(object), commands: []string{p.vault("status", address)}}
		if !v.Gap.Open() {
			a.evidence = []string{fmt.Sprintf("%s, sys/health: initialized %t, sealed %t", object, v.Initialized, v.Sealed)}
		}
		switch {
		case v.Gap.Open():
		case !v.Initialized:
			a.commands = append(a.commands, p.vault("operator init", address))
		case v.Sealed:
			a.commands = append(a.commands, p.vault("operator unseal", address))
		default:
			a.evidence = append(a.evidence, "login: "+v.LoginError)
			a.commands = append(a.commands, p.vault("policy read", "relaypki-operate"))
		}
		return a
	},
	VaultRoot: func(p place, _ Finding) advice {
		v, mount := p.ofManagement.Vault, p.spec.Vault.RootMount
		if p.spec.PKI.Root.Offline() {
			a := advice{evidence: []string{"the input, pki.root.certificatePEM: cannot be read"}, commands: []string{shell.Join("relaypki", "status", p.spec.Mesh), setup}}
			if c, err := p.spec.PKI.Root.Certificate(); err == nil {
				a.evidence = []string{"the input, pki.root.certificatePEM: " + describe(c)}
			}
			return a
		}
		a := advice{evidence: v.Root.Gap.evidence("mount " + mount), commands: []string{p.vault("list", "-detailed", mount+"/issuers")}}
		issuer, ok := v.Root.issuer(v.Root.Default)
		switch {
		case v.Root.Gap.Reason == NotFound:
			// A setup would make another root, which nobody trusts: that is for people
			// to decide, once they know that there is no snapshot.
			a.commands = []string{p.vault("secrets list"), p.vault("operator raft snapshot restore", "SNAPSHOT")}
		case v.Root.Gap.Open():
		case !ok || issuer.Certificate == nil:
			a.evidence = append(a.evidence, fmt.Sprintf("%s/config/issuers, default: %q; %d issuers", mount, v.Root.Default, len(v.Root.Issuers)))
			a.commands = append(a.commands, p.defaultRoot()...)
		case !pki.SelfSigned(issuer.Certificate):
			a.evidence = append(a.evidence, p.issuerEvidence(mount, issuer))
			a.commands = append(a.commands, p.defaultRoot()...)
		case issuer.Certificate.NotAfter.Sub(p.now) < rotateAhead:
			a.evidence = append(a.evidence, p.issuerEvidence(mount, issuer))
			a.commands = append(a.commands, shell.Join("relaypki", "rotate", "root", p.spec.Mesh))
		default:
			a.evidence = append(a.evidence, p.issuerEvidence(mount, issuer))
			a.commands = append(a.commands, setup)
		}
		return a
	},
	StandbyRoot: func(p place, f Finding) advice {
		if p.workload {
			object := p.object("Secret", mesh.RootSecretName)
			return advice{evidence: append(listed(object+", ca.crt", p.ofWorkload.RootSecret.CA), "the root that stands by: "+describe(p.ofWorkload.Standby)),
				commands: []string{setup}, mend: p.mend(SetUp)}
		}
		mount := p.spec.Vault.RootMount
		a := advice{commands: []string{p.vault("list", "-detailed", mount+"/issuers"), setup}, mend: p.mend(SetUp)}
		for _, issuer := range p.ofManagement.Vault.Root.Issuers {
			a.evidence = append(a.evidence, p.issuerEvidence(mount, issuer))
			if strings.HasPrefix(f.Message, issuer.Name+", which stands by") {
				a.commands = slices.Insert(a.commands, 1, p.vault("patch", mount+"/issuer/"+issuer.Name, "usage=read-only,crl-signing,ocsp-signing"))
			}
		}
		return a
	},
	VaultIntermediate: func(p place, _ Finding) advice {
		v, mount := p.ofManagement.Vault, p.spec.Vault.RelayMount
		a := advice{evidence: v.Relay.Gap.evidence("mount " + mount), commands: []string{p.vault("list", "-detailed", mount+"/issuers")}}
		if v.Relay.Gap.Open() {
			a.commands = append(a.commands, p.vault("secrets list"), setup)
			return a
		}
		rotate := false
		for _, issuer := range v.inUse() {
			a.evidence = append(a.evidence, p.issuerEvidence(mount, issuer))
			if issuer.LeafNotAfterBehavior != "err" {
				a.commands = append(a.commands, p.vault("patch", mount+"/issuer/"+issuer.ID, "leaf_not_after_behavior=err"))
			}
			rotate = rotate || issuer.Certificate != nil && issuer.Certificate.NotAfter.Sub(p.now) < max(rotateAhead, p.spec.Certificates.LongestLife())
		}
		for _, role := range v.Roles {
			if _, known := v.Relay.issuer(role.IssuerRef); !known && !role.Gap.Open() {
				a.evidence = append(a.evidence, fmt.Sprintf("%s/roles/%s, issuer_ref: %s; there is no such issuer", mount, role.Name, role.IssuerRef))
			}
		}
		if rotate {
			a.commands = append(a.commands, shell.Join("relaypki", "rotate", "intermediate", p.spec.Mesh))
			return a
		}
		a.commands = append(a.commands, setup)
		a.mend = p.mend(SetUp)
		return a
	},
	VaultRole: func(p place, f Finding) advice {
		mount := p.spec.Vault.RelayMount
		var a advice
		for _, role := range p.ofManagement.Vault.Roles {
			if f.Object != "" && f.Object != "role "+role.Name {
				continue
			}
			path := mount + "/roles/" + role.Name
			if role.Gap.Open() {
				a.evidence = append(a.evidence, role.Gap.evidence(path)...)
			} else {
				a.evidence = append(a.evidence, fmt.Sprintf("%s: issuer_ref %s, allow_any_name %t, allowed_domains %s, allow_subdomains %t, allow_glob_domains %t, server_flag %t, client_flag %t",
					path, role.IssuerRef, role.AllowAnyName, strings.Join(role.AllowedDomains, ", "), role.AllowSubdomains, role.AllowGlobDomains, role.ServerFlag, role.ClientFlag))
			}
			if f.Object != "" {
				a.commands = []string{p.vault("read", path), setup}
				a.mend = p.mend(SetUp)
			}
		}
		if f.Object == "" { // two issuers: that is a rotation's to end
			a.commands = []string{p.vault("list", "-detailed", mount+"/issuers"), shell.Join("relaypki", "rotate", "intermediate", p.spec.Mesh, "--plan")}
		}
		return a
	},
	CertManager: func(p place, _ Finding) advice {
		for _, d := range p.certManager {
			if d.Gap.Open() || d.Available < max(d.Desired, 1) {
				a := advice{evidence: p.deployed(d), commands: p.available(d)}
				if d.Gap.Reason == NotFound && p.spec.CertManager.Install == mesh.InstallAuto {
					a.commands, a.mend = []string{p.kubectl("get", "deployments", "-A", "-l", "app.kubernetes.io/name=cert-manager"), setup}, p.mend(SetUp)
				}
				return a
			}
		}
		return advice{}
	},
	IssuerReady: func(p place, _ Finding) advice {
		a := advice{evidence: append(p.issuing(), p.events(p.object("Issuer", mesh.IssuerName))...), commands: []string{p.in("describe", "issuer", mesh.IssuerName), setup}}
		if p.issuer.Ready.Status != "True" || p.issuer.Gap.Open() || p.issuer.Path != p.spec.Vault.RelayMount+"/sign/"+p.role {
			a.mend = p.mend(SetUp)
		}
		return a
	},
	CertificateReady: func(p place, _ Finding) advice {
		a := advice{evidence: p.issuance(), commands: []string{p.in("describe", "certificate", p.asked.Name), p.in("get", "certificaterequests"), p.renew()}, mend: p.mend(Reissue)}
		switch c := p.certificate; {
		case c.Gap.Reason == NotFound:
			a.commands, a.mend = []string{p.in("get", "certificates"), setup}, p.mend(SetUp)
		case c.Gap.Open(), c.Ready.Status == "True" && c.Request == "":
			a.mend = nil // it may be a matter of a moment
		}
		return a
	},
	CertificateSecret: func(p place, _ Finding) advice {
		a := advice{evidence: p.chain(), commands: []string{p.in("describe", "secret", p.asked.SecretName), p.renew()}, mend: p.mend(Reissue)}
		if c := p.certificate; c.Gap.Reason == NotFound || !c.Gap.Open() && c.SecretName != p.asked.SecretName {
			a.evidence = append(a.evidence, fmt.Sprintf("%s, spec.secretName: %q", p.object("Certificate", p.asked.Name), c.SecretName))
			a.commands, a.mend = []string{p.in("get", "certificates,secrets"), setup}, p.mend(SetUp)
		}
		return a
	},
	CertificateChain: func(p place, _ Finding) advice {
		a := advice{evidence: p.chain(), commands: []string{p.show(p.asked.SecretName, "tls.crt"), p.renew()}}
		if p.workload { // with the server's all are issued anew, which begins only where agents accept the server
			a.mend = p.mend(Reissue)
		}
		return a
	},
	CertificateRoot: func(p place, _ Finding) advice {
		return advice{evidence: p.chain(), commands: []string{p.show(p.asked.SecretName, "ca.crt"), setup, p.renew()}, mend: p.mend(Reissue)}
	},
	CertificateNames: func(p place, _ Finding) advice {
		return advice{evidence: p.chain(), commands: []string{p.in("get", "certificate", p.asked.Name, "-o", "jsonpath={.spec.dnsNames}"), setup}, mend: p.mend(SetUp)}
	},
	CertificateLifetime: func(p place, _ Finding) advice {
		a := advice{evidence: append(p.chain(), p.issuance()...), commands: []string{p.in("describe", "certificate", p.asked.Name), p.renew()}, mend: p.mend(Reissue)}
		for i, c := range p.secret.Chain {
			switch {
			case p.now.Before(c.NotBefore): // whatever is issued now would be no better
				a.evidence = append(a.evidence, fmt.Sprintf("the worker's clock: %s; the API server's: %s", stamp(p.now), p.looks.Clock))
				a.commands, a.mend = []string{"date -u", "timedatectl status"}, nil
			case i > 0 && p.now.After(c.NotAfter):
				a.commands, a.mend = []string{p.vault("list", "-detailed", p.spec.Vault.RelayMount+"/issuers"), shell.Join("relaypki", "rotate", "intermediate", p.spec.Mesh)}, nil
			}
		}
		return a
	},
	PinnedKeys: func(p place, _ Finding) advice {
		config := "auth/" + p.keys.Mount + "/config"
		a := advice{evidence: append(p.keys.VaultGap.evidence(config), p.keys.ClusterGap.evidence("/openid/v1/jwks")...),
			commands: []string{p.vault("read", config), p.kubectl("get", "--raw", "/openid/v1/jwks"), setup}, mend: p.mend(SetUp)}
		if len(a.evidence) == 0 {
			a.evidence = []string{fmt.Sprintf("%s, jwt_validation_pubkeys: %s", config, fingerprints(p.keys.Vault)), fmt.Sprintf("/openid/v1/jwks: %s", fingerprints(p.keys.Cluster))}
		}
		return a
	},
	ClusterToken:    tokenAdvice,
	ClusterSecretID: tokenAdvice,
	AgentTrust: func(p place, f Finding) advice {
		w, object := p.ofWorkload, p.object("Secret", mesh.RootSecretName)
		a := advice{evidence: append(w.RootSecret.Gap.evidence(object), listed(object+", ca.crt", w.RootSecret.CA)...), commands: []string{p.show(mesh.RootSecretName, "ca.crt"), setup}, mend: p.mend(SetUp)}
		if w.RootSecret.CAError != "" {
			a.evidence = append(a.evidence, object+", ca.crt: "+w.RootSecret.CAError)
		}
		a.evidence = append(a.evidence, listed(p.object("Secret", p.asked.SecretName)+", ca.crt", p.secret.CA)...)
		switch {
		case w.Pin != Unpinned:
			a.commands, a.mend = []string{a.commands[0], shell.Join("relaypki", "status", p.spec.Mesh)}, nil
		case f.Status == Warn && !w.RootSecret.Gap.Open(): // what it is to be compared with is to be mended first
			a.commands, a.mend = a.commands[:1], nil
		}
		return a
	},
	RelayServer: relayAdvice,
	RelayAgent:  relayAdvice,
	PodReady: func(p place, f Finding) advice {
		a := advice{evidence: p.relay.PodsGap.evidence("the Pods of Deployment " + p.relay.Namespace + "/" + p.relay.Name), commands: []string{p.in("get", "pods")}}
		for _, pod := range p.relay.Pods {
			if f.Object != "Pod "+p.relay.Namespace+"/"+pod.Name {
				continue
			}
			a.evidence = p.pod(p.relay.Namespace, pod)
			a.commands = []string{p.in("describe", "pod", pod.Name), p.in("logs", pod.Name, "--previous")}
			where := InServer
			if p.workload {
				where = InAgent
			}
			if s, ok := Explain(where, pod.State+"\n"+pod.LastState+"\n"+pod.Log); ok {
				if a.mend = p.mendOf(s); a.mend != nil && a.mend.Do == SetUp {
					a.commands = append(a.commands, setup)
				}
			}
		}
		return a
	},
	AgentAddress: func(p place, _ Finding) advice {
		return advice{
			evidence: []string{fmt.Sprintf("%s, spec.template.spec.containers[].args: server address %q", p.object("Deployment", mesh.AgentDeployment), p.ofWorkload.AgentAddress)},
			commands: []string{p.arguments(), setup}, mend: p.mend(SetUp),
		}
	},
	ServedCertificate: func(p place, f Finding) advice {
		a := advice{evidence: p.served(f.Object), commands: p.restart(), mend: p.mend(Restart)}
		for _, replica := range p.ofManagement.Replicas {
			stored := p.secret.Chain
			switch {
			case f.Object != "Pod "+p.spec.Namespace+"/"+replica.Pod:
			case replica.LoadedError != "":
				a.commands, a.mend = []string{p.in("describe", "pod", replica.Pod), p.in("logs", replica.Pod)}, nil
				if s, ok := Explain(AtHandshake, replica.LoadedError); ok {
					a.mend = p.mendOf(s)
				}
			case len(stored) > 0 && len(replica.Loaded.Chain) > 0 && replica.Loaded.Chain[0].Equal(stored[0]):
				a.commands, a.mend = append([]string{p.renew()}, a.commands...), p.mend(Reissue)
			case pki.Peer{Trust: p.secret.CA, Name: p.spec.Gloo.Authority, Usage: x509.ExtKeyUsageServerAuth, At: p.now}.Verify(stored) != nil:
				a.mend = nil // what it would load is worse: first mend what is stored
			}
		}
		return a
	},
	AcceptableCAs: func(p place, f Finding) advice {
		a := advice{evidence: append(p.served(f.Object), p.chain()...), commands: p.restart(), mend: p.mend(Restart)}
		for _, replica := range p.ofManagement.Replicas {
			loaded := replica.Loaded
			switch {
			case f.Object != "Pod "+p.spec.Namespace+"/"+replica.Pod:
			case !loaded.AsksForCertificate:
				a.commands, a.mend = append([]string{setup}, a.commands...), p.mend(SetUp)
			case len(loaded.AcceptableCAs) == 0, len(p.secret.CA) != 1 || !pki.SelfSigned(p.secret.CA[0]):
				a.commands, a.mend = []string{p.in("logs", replica.Pod), p.show(p.asked.SecretName, "ca.crt")}, nil
			}
		}
		return a
	},
	Registrations: func(p place, _ Finding) advice {
		m := p.ofManagement
		a := advice{evidence: m.RegisteredGap.evidence("KubernetesClusters of " + p.spec.Namespace), commands: []string{p.in("get", "kubernetesclusters")}}
		if !m.RegisteredGap.Open() {
			a.evidence = []string{fmt.Sprintf("KubernetesClusters of %s: %s", p.spec.Namespace, strings.Join(m.Registered, ", "))}
		}
		missing := m.RegisteredGap.Open()
		for _, w := range m.Spec.Workloads {
			missing = missing || !slices.Contains(m.Registered, w.Name)
		}
		if missing {
			a.commands, a.mend = append(a.commands, setup), p.mend(SetUp)
			return a
		}
		for _, name := range m.Registered {
			if _, ok := m.Spec.Workload(name); !ok && !slices.Contains(m.Others, name) {
				a.commands = append(a.commands, p.in("delete", "kubernetescluster", name))
			}
		}
		return a
	},
	AgentsConnected: func(p place, f Finding) advice {
		metrics := p.management("-n", p.spec.Management.Namespace, "port-forward", "deployment/"+mesh.ServerDeployment, "9091") + " & sleep 2; curl -s http://localhost:9091/metrics | grep clients_connected; kill %1"
		if !p.workload {
			a := advice{commands: []string{p.in("get", "pods"), metrics}}
			for _, replica := range p.ofManagement.Replicas {
				if replica.MetricsError != "" {
					a.evidence = append(a.evidence, fmt.Sprintf("Pod %s/%s, port 9091: %s", p.spec.Namespace, replica.Pod, replica.MetricsError))
				}
			}
			return a
		}
		a := advice{commands: append([]string{metrics}, p.restart()...)}
		for _, replica := range p.ofManagement.Replicas {
			if replica.MetricsError == "" {
				a.evidence = append(a.evidence, fmt.Sprintf("Pod %s/%s: relay_pull_clients_connected{cluster=%q} %g, relay_push_clients_connected{cluster=%[3]q} %g",
					p.spec.Management.Namespace, replica.Pod, p.name, replica.Metrics.Pull[p.name], replica.Metrics.Push[p.name]))
			}
		}
		if f.Status == Fail {
			a.mend = p.mend(Restart)
		}
		return a
	},
	RegisteredName: func(p place, _ Finding) advice {
		w, object := p.ofWorkload, "KubernetesCluster "+p.spec.Management.Namespace+"/"+p.name
		if w.Private != "" {
			return advice{evidence: []string{w.Private}, commands: []string{p.management("-n", p.spec.Management.Namespace, "get", "kubernetesclusters")}}
		}
		a := advice{evidence: append(w.RegisteredGap.evidence(object), p.chain()...),
			commands: []string{p.management("-n", p.spec.Management.Namespace, "get", "kubernetesclusters"), setup}, mend: p.mend(SetUp)}
		if w.RegisteredGap.Reason == Unreachable {
			a.mend = nil
		}
		return a
	},
	Handshake: func(p place, f Finding) advice {
		w := p.ofWorkload
		a := advice{commands: []string{p.management("-n", p.spec.Management.Namespace, "logs", "deployment/"+mesh.ServerDeployment, "--tail=50"), p.in("logs", "deployment/"+mesh.AgentDeployment, "--tail=50")}}
		if w.Private+w.HandshakesError != "" {
			a.evidence = []string{w.Private + w.HandshakesError}
			return a
		}
		for _, h := range w.Handshakes {
			if f.Object == "Pod "+p.spec.Management.Namespace+"/"+h.Pod {
				a.evidence = append(a.evidence, fmt.Sprintf("%s, port 9900: %s", f.Object, h.Error))
			}
		}
		name, trusted := w.Trust()
		a.evidence = append(append(a.evidence, p.chain()...), listed(p.object("Secret", name)+", ca.crt", trusted.CA)...)
		a.mend = p.handshakeMend(w)
		return a
	},
}

func tokenAdvice(p place, _ Finding) advice {
	t := p.token
	a := advice{evidence: t.Gap.evidence(t.Secret), commands: []string{shell.Join("relaypki", "status", p.spec.Mesh), setup}, mend: p.mend(SetUp)}
	switch {
	case t.Gap.Open():
	case t.Refused != "":
		a.evidence = []string{t.Secret + ", asked of Vault: " + t.Refused}
	default:
		a.evidence = []string{fmt.Sprintf("%s, asked of Vault: %s left of %s", t.Secret, round(t.Left), mesh.Duration{Duration: t.Period})}
	}
	return a
}

func relayAdvice(p place, _ Finding) advice {
	a := advice{evidence: p.deployed(p.relay), commands: p.available(p.relay)}
	if p.relay.Gap.Reason == NotFound {
		a.commands = []string{p.in("get", "deployments"), setup}
		if p.spec.Gloo.Install == nil || *p.spec.Gloo.Install {
			a.mend = p.mend(SetUp)
		}
	}
	return a
}

// arguments prints what the agent is told.
func (p place) arguments() string {
	return p.in("get", "deployment", mesh.AgentDeployment, "-o", "jsonpath={.spec.template.spec.containers[*].args}")
}

// served is what a replica has loaded.
func (p place) served(object string) []string {
	var out []string
	for _, replica := range p.ofManagement.Replicas {
		if object != "Pod "+p.spec.Namespace+"/"+replica.Pod {
			continue
		}
		if replica.LoadedError != "" {
			return []string{object + ", port 9900: " + replica.LoadedError}
		}
		out = append(listed(object+", port 9900, presents", replica.Loaded.Chain),
			fmt.Sprintf("%s, port 9900, asks for a client certificate: %t, under %d CAs", object, replica.Loaded.AsksForCertificate, len(replica.Loaded.AcceptableCAs)))
	}
	for i, c := range p.secret.Chain[:min(1, len(p.secret.Chain))] {
		out = append(out, fmt.Sprintf("%s, tls.crt[%d]: %s", p.object("Secret", p.asked.SecretName), i, describe(c)))
	}
	return out
}

// defaultRoot has the root of the intermediate at work be the root mount's default.
func (p place) defaultRoot() []string {
	v := p.ofManagement.Vault
	for _, root := range v.Root.Issuers {
		for _, issuer := range v.inUse() {
			if root.Certificate != nil && issuer.Certificate != nil && pki.SelfSigned(root.Certificate) && pki.SignedBy(issuer.Certificate, root.Certificate) == nil {
				return []string{p.vault("write", v.Root.Path+"/config/issuers", "default="+root.ID)}
			}
		}
	}
	return []string{setup}
}

func (p place) issuerEvidence(mount string, i SeenVaultIssuer) string {
	what := "no certificate that can be read"
	if i.Certificate != nil {
		what = describe(i.Certificate)
	}
	return fmt.Sprintf("%s/issuer/%s, %s: key in Vault %t, leaf_not_after_behavior %s, %s", mount, i.ID, i.Name, i.HasKey, i.LeafNotAfterBehavior, what)
}

// fingerprints are enough of each key's to tell them apart.
func fingerprints(keys []string) string {
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = k[:min(len(k), 16)]
	}
	return strings.Join(out, ", ")
}

// String is a server's clock as evidence.
func (c SeenClock) String() string {
	if !c.Known {
		return "not known"
	}
	return fmt.Sprintf("%s behind", c.Behind)
}
