package check

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/shell"
)

// Diagnose are the verdicts of a verification, and those of the checks that are of a
// diagnosis alone. What does not pass has evidence, commands and, where there is
// one, a mend.
func (m Management) Diagnose(now time.Time) []Finding {
	p := m.place(now)
	r := &report{cluster: p.name, diagnosis: true}
	m.verify(r, now)
	if m.Unreachable == "" {
		r.inCluster(p)
	}
	r.clock(p, fmt.Sprintf("Vault %q", m.Vault.Name), m.VaultClock,
		// Whoever is logged in has Vault's CA there, if it has one of its own.
		shellLine(`CURL_CA_BUNDLE="$VAULT_CACERT" `+shell.Join("curl", "-sSI", m.Vault.Address+"/v1/sys/health"), "grep -i ^date", "date -u"))
	if !m.Vault.Gap.Open() && m.Vault.Initialized && !m.Vault.Sealed && m.Vault.LoginError == "" {
		r.vaultChains(p, m.Vault, m.Pin)
		r.nesting(p, m, now)
		r.pki(p, m, now)
	}
	return p.advise(r)
}

// Diagnose is as with Management.
func (w Workload) Diagnose(now time.Time) []Finding {
	p := w.place(now)
	r := &report{cluster: p.name, diagnosis: true}
	w.verify(r, now)
	if w.Unreachable == "" {
		r.inCluster(p)
		r.addressAsItShouldBe(p, w)
		r.stale(p, w)
		r.gaugesLie(p, w)
	}
	return p.advise(r)
}

// Together takes back, of what the looks at single clusters offer, what all of them
// show to be in vain: the management server says that an agent is not connected, and
// its own cluster that none is available. A restart brings back neither one that is to
// have no replicas nor one that does not start; see relay-agent and pod-ready.
func Together(found []Finding) {
	for i, f := range found {
		away := func(other Finding) bool {
			return other.Check == RelayAgent && other.Cluster == f.Cluster && other.Status == Fail && strings.HasPrefix(other.Message, "0 of ")
		}
		if f.Check == AgentsConnected && slices.ContainsFunc(found, away) {
			found[i].Mend = nil
		}
	}
}

// inCluster are the checks of a diagnosis that are the same in every cluster.
func (r *report) inCluster(p place) {
	r.identity(p)
	r.webhook(p)
	r.clock(p, "the API server", p.looks.Clock, shellLine(p.kubectl("get", "--raw", "/version", "-v=8"), "grep -w Date:", "date -u"))
	r.helmOwned(p)
	r.renewWindow(p)
	r.issuedLife(p)
	r.rootToken(p)
}

// say reports a finding of a diagnosis.
func (r *report) say(f Finding) {
	r.add(f.Check, f.Object, f.Status, f.Message, f.Remedy)
	last := &r.findings[len(r.findings)-1]
	last.Evidence, last.Commands, last.Mend, last.Denied = f.Evidence, f.Commands, f.Mend, f.Denied
}

// unseen reports a gap of a look that a diagnosis makes besides, and says whether it
// was open. What only the worker's rights keep from being seen is nothing that is
// known to be wrong. What is missing is the caller's to judge.
func (r *report) unseen(check, object string, gap Gap, commands ...string) bool {
	switch gap.Reason {
	case Denied:
		r.say(Finding{Check: check, Object: object, Status: Note, Denied: true, Message: fmt.Sprintf("not looked at: the worker may not read %s", object),
			Remedy: "grant the worker what deploy/rbac and deploy/vault/policies list, to have this looked at", Evidence: []string{gap.Detail}, Commands: commands})
	case Unreachable:
		r.say(Finding{Check: check, Object: object, Status: Note, Message: fmt.Sprintf("not looked at: %s could not be read", object),
			Remedy: "see that the worker reaches the server that the evidence names, then diagnose again", Evidence: []string{gap.Detail}, Commands: commands})
	}
	return gap.Reason == Denied || gap.Reason == Unreachable
}

// maxSkew is how far clocks may be apart: Vault dates what it signs back by as much
// (a role's not_before_duration), so with more a fresh certificate is not yet valid.
const maxSkew = 30 * time.Second

func (r *report) clock(p place, of string, c SeenClock, command string) {
	if !c.Known {
		return
	}
	behind, way := c.Behind, "behind"
	if behind < 0 {
		behind, way = -behind, "ahead of"
	}
	if behind <= maxSkew {
		r.pass(ClockSkew, of, "its clock is that of the worker, to %s", maxSkew)
		return
	}
	r.say(Finding{Check: ClockSkew, Object: of, Status: Warn,
		Message:  fmt.Sprintf("its clock is %s %s the worker's: certificates are not yet valid, or end early, for whoever is behind or ahead", behind, way),
		Remedy:   "set the clocks of the worker's host, the nodes and Vault's host by one time source (NTP)",
		Evidence: []string{fmt.Sprintf("HTTP header Date of %s: %s %s the worker's %s", of, behind, way, p.now.UTC().Format(time.RFC3339))},
		Commands: []string{command, "timedatectl status"}})
}

// identity judges the Secret with the relay identity token.
func (r *report) identity(p place) {
	token := p.spec.Gloo.IdentityToken
	if token.Mode == mesh.TokenNone {
		return
	}
	seen := p.looks.Identity
	object := "Secret " + p.spec.Namespace + "/" + token.SecretName
	look := p.in("describe", "secret", token.SecretName)
	if r.unseen(IdentityToken, object, seen.Gap, look) {
		return
	}
	f := Finding{Check: IdentityToken, Object: object, Status: Fail, Remedy: runSetup + ", which makes it or copies it from the management cluster, and restart what uses it",
		Commands: []string{look, setup}, Mend: p.mend(SetUp)}
	if !p.workload && token.Mode == mesh.TokenExisting {
		f.Remedy, f.Mend = "gloo.identityToken says that it is there already: create it, or set gloo.identityToken.mode to \"generate\", and "+runSetup, nil
		f.Commands = []string{look, p.in("create", "secret", "generic", token.SecretName, "--from-file="+token.Key+"=/dev/stdin") + " < token", setup}
	}
	switch {
	case seen.Gap.Reason == NotFound:
		f.Message = object + " is missing, which gloo.identityToken names"
		f.Evidence = []string{object + ": not found"}
	case !seen.HasKey:
		f.Message = fmt.Sprintf("%s has no key %q, which gloo.identityToken names", object, token.Key)
		f.Evidence = []string{fmt.Sprintf("%s, data: nothing under %q", object, token.Key)}
	case !seen.Same:
		f.Message = "the token in it is not that of the management cluster"
		f.Evidence = []string{fmt.Sprintf("%s, data.%s: its SHA-256 is another than in the management cluster", object, token.Key)}
	default:
		r.pass(IdentityToken, object, "holds the relay identity token")
		return
	}
	r.say(f)
}

func (r *report) webhook(p place) {
	namespace := "cert-manager"
	for _, d := range p.certManager {
		if d.Gap.Open() {
			return // there is none to answer: said by cert-manager
		}
		namespace = d.Namespace
	}
	const object = "cert-manager's validating webhook"
	seen := p.looks.Webhook
	commands := []string{
		p.kubectl("get", "validatingwebhookconfiguration", "cert-manager-webhook", "-o", "yaml"),
		p.kubectl("-n", namespace, "get", "pods,endpointslices"),
		p.kubectl("-n", namespace, "rollout", "restart", "deployment/cert-manager-webhook"),
	}
	remedy := "see whether its Pods run and whether ValidatingWebhookConfiguration cert-manager-webhook leads to them; nothing of cert-manager's can be written meanwhile"
	switch {
	case seen.Gap.Reason == Denied:
		r.unseen(Webhook, object, seen.Gap, commands[0])
	case seen.Gap.Reason == NotFound:
		r.say(Finding{Check: Webhook, Object: object, Status: Fail, Message: "a Certificate cannot be tried: cert-manager's kinds are not installed", Remedy: runSetup,
			Evidence: []string{seen.Gap.Detail}, Commands: []string{p.kubectl("get", "crd", "certificates.cert-manager.io"), setup}, Mend: p.mend(SetUp)})
	case seen.Gap.Open():
		r.say(Finding{Check: Webhook, Object: object, Status: Fail, Message: "it does not answer, so that nothing of cert-manager's can be written", Remedy: remedy,
			Evidence: []string{"Certificate tried by dry run: " + seen.Gap.Detail}, Commands: commands})
	case seen.State != "":
		r.say(Finding{Check: Webhook, Object: object, Status: Fail, Message: seen.State, Remedy: remedy,
			Evidence: []string{"Certificate with renewBefore longer than its duration, tried by dry run: accepted"}, Commands: commands})
	default:
		r.pass(Webhook, object, "it answers, and refuses what it should")
	}
}

// owned is a Secret of the relay's, and the Helm release that owns it.
type owned struct {
	name, release string
	gap           Gap
}

// helmOwned: what a Helm release owns, the next upgrade of it may delete or write
// over, as the guide's readers found out with Secrets that an earlier chart had made.
func (r *report) helmOwned(p place) {
	sound := true
	for _, s := range p.owned {
		sound = sound && (!s.gap.Open() || s.gap.Reason == NotFound) // else said by what reads it
		if s.release == "" {
			continue
		}
		sound = false
		object := "Secret " + p.spec.Namespace + "/" + s.name
		r.say(Finding{Check: HelmOwned, Object: object, Status: Warn,
			Message:  fmt.Sprintf("it belongs to the Helm release %s: an upgrade that does not have it any more deletes it, and the relay with it", s.release),
			Remedy:   "take it out of the release: tell Helm to keep it, and take Helm's marks off",
			Evidence: []string{fmt.Sprintf("%s, metadata: annotation meta.helm.sh/release-name or label app.kubernetes.io/managed-by: Helm; release: %s", object, s.release)},
			Commands: []string{
				p.in("annotate", "secret", s.name, "helm.sh/resource-policy=keep", "meta.helm.sh/release-name-", "meta.helm.sh/release-namespace-", "--overwrite"),
				// Ours, as the setup has it: without it, it would be somebody else's.
				p.in("label", "--overwrite", "secret", s.name, "app.kubernetes.io/managed-by=relaypki"),
			}})
	}
	if sound {
		r.pass(HelmOwned, "", "no Secret of the relay belongs to a Helm release")
	}
}

// What cert-manager takes where a Certificate says nothing (Certificate.spec).
const defaultDuration = 90 * 24 * time.Hour

// secondTry is how long before the end a renewal has to begin at least. cert-manager
// waits an hour after a refusal before it asks again, so with the guide's 30 minutes
// its second try would be too late; but a Vault that is away or sealed for a while is
// no refusal (the request waits for it), and MaintainMesh asks again sooner. With less
// than the guide's, even that may be too late.
const secondTry = 30 * time.Minute

// renewWindow judges when the live Certificate is renewed.
func (r *report) renewWindow(p place) {
	c := p.certificate
	if c.Gap.Open() {
		return
	}
	object := "Certificate " + p.spec.Namespace + "/" + p.asked.Name
	life := c.Duration
	if life == 0 {
		life = defaultDuration
	}
	before := c.RenewBefore
	if before == 0 {
		before = life / 3
	}
	evidence := []string{fmt.Sprintf("%s, spec: duration %s, renewBefore %s", object, mesh.Duration{Duration: life}, mesh.Duration{Duration: before})}
	if len(p.secret.Chain) > 0 {
		leaf := p.secret.Chain[0]
		evidence = append(evidence, fmt.Sprintf("Secret %s/%s, tls.crt: valid from %s to %s", p.spec.Namespace, p.asked.SecretName, stamp(leaf.NotBefore), stamp(leaf.NotAfter)))
		life = min(life, leaf.NotAfter.Sub(leaf.NotBefore))
	}
	f := Finding{Check: RenewWindow, Object: object, Evidence: evidence, Mend: p.mend(SetUp),
		Remedy:   "the live object differs from the input: " + runSetup,
		Commands: []string{p.in("get", "certificate", p.asked.Name, "-o", "yaml"), setup}}
	if c.Duration == p.asked.Duration.Duration && c.RenewBefore == p.asked.RenewBefore.Duration {
		f.Remedy, f.Mend = "give certificates.*.duration and renewBefore in the input other values, and "+runSetup, nil
	}
	switch left := life - before; {
	case left <= 0:
		f.Status = Fail
		f.Message = fmt.Sprintf("it is to be renewed %s before its end and lives %s: it is renewed without end", mesh.Duration{Duration: before}, round(life))
	case left < life/10:
		f.Status = Warn
		f.Message = fmt.Sprintf("it is renewed after %s of its %s: renewBefore is close to duration", round(left), round(life))
	case before < secondTry:
		f.Status = Warn
		f.Message = fmt.Sprintf("it is renewed %s before its end: a renewal that is refused has no second try, since cert-manager waits an hour", mesh.Duration{Duration: before})
	default:
		r.pass(RenewWindow, object, "renewed %s before the end of %s", mesh.Duration{Duration: before}, round(life))
		return
	}
	r.say(f)
}

// issuedLife: Vault issues what lives shorter than was asked for, with no more than
// a warning, where a role or the mount bounds it.
func (r *report) issuedLife(p place) {
	if p.certificate.Gap.Open() || p.certificate.Ready.Status != "True" || len(p.secret.Chain) == 0 || p.certificate.Duration == 0 {
		return
	}
	object := "Secret " + p.spec.Namespace + "/" + p.asked.SecretName
	leaf := p.secret.Chain[0]
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	if life >= p.certificate.Duration-5*time.Minute {
		r.pass(TTLNesting, object, "lives %s, as asked for", round(life))
		return
	}
	r.say(Finding{Check: TTLNesting, Object: object, Status: Warn,
		Message: fmt.Sprintf("it lives %s, and %s was asked for: Vault has cut it short", round(life), mesh.Duration{Duration: p.certificate.Duration}),
		Remedy:  "see ttl-nesting of the management cluster for what bounds it, mend that, then have it issued anew",
		Evidence: []string{
			fmt.Sprintf("%s, tls.crt: valid from %s to %s", object, stamp(leaf.NotBefore), stamp(leaf.NotAfter)),
			fmt.Sprintf("Certificate %s/%s, spec.duration: %s", p.spec.Namespace, p.asked.Name, mesh.Duration{Duration: p.certificate.Duration}),
		},
		Commands: []string{p.vault("read", p.spec.Vault.RelayMount+"/roles/"+p.role), p.vault("read", "sys/mounts/"+p.spec.Vault.RelayMount+"/tune"), p.renew()},
		Mend:     p.mend(Reissue)})
}

// rootToken judges the token in vault-token by what it may do in Vault.
func (r *report) rootToken(p place) {
	object := "Secret " + p.spec.Namespace + "/" + mesh.TokenSecretName
	seen := p.looks.Stored
	own := strings.ToLower(p.spec.AuthMount(p.context)) // as policies are written in Vault
	inUse := p.spec.Credential.Method == mesh.CredentialToken
	others := slices.DeleteFunc(slices.Clone(seen.Policies), func(policy string) bool { return policy == own })
	look := shellLine("VAULT_TOKEN=\"$("+p.in("get", "secret", mesh.TokenSecretName, "-o", "jsonpath={.data."+mesh.TokenSecretKey+"}")+" | base64 -d)\" "+p.vault("token lookup", "-format=json"), "grep -A3 policies")
	gone := p.in("delete", "secret", mesh.TokenSecretName)
	f := Finding{Check: RootToken, Object: object, Commands: []string{look, gone},
		Evidence: []string{fmt.Sprintf("Vault, auth/token/lookup-self with the token in %s: policies %s", object, strings.Join(seen.Policies, ", "))}}
	if inUse {
		f.Commands, f.Mend = append(f.Commands, setup), p.mend(SetUp)
	}
	switch {
	case seen.Gap.Reason == NotFound || !seen.There && !seen.Gap.Open():
		r.pass(RootToken, object, "there is no token of Vault's")
	case r.unseen(RootToken, object, seen.Gap, look):
	case !seen.Known:
		r.pass(RootToken, object, "Vault does not know the token in it (any more)")
	case slices.Contains(seen.Policies, "root"):
		f.Status, f.Message = Fail, "Vault's root token is in this cluster: whoever reads this Secret can do everything in Vault"
		f.Remedy = "delete the Secret and revoke that token in Vault, if nobody else uses it; credential.method \"jwt\" needs none"
		if inUse {
			f.Remedy = runSetup + ", which puts a token of this cluster's own in its place, and revoke the root token, if nobody else uses it"
		}
		r.say(f)
	case len(others) > 0:
		f.Status, f.Message = Warn, fmt.Sprintf("the token in it may do more than sign for this cluster: it has the policies %s", strings.Join(others, ", "))
		f.Remedy = "delete the Secret, if nothing but the Issuer has used it, and revoke the token"
		if inUse {
			f.Remedy = runSetup + ", which puts a token of this cluster's own in its place"
		}
		r.say(f)
	default:
		r.pass(RootToken, object, "its token may sign for this cluster, and nothing else")
	}
}

// addressAsItShouldBe compares what the agent is told of the server with where the
// server is.
func (r *report) addressAsItShouldBe(p place, w Workload) {
	told := w.AgentAddress
	if told == "" || mesh.AddressProblem(told) != "" {
		return // said by agent-address, or nothing to compare
	}
	object := "Deployment " + p.spec.Namespace + "/" + mesh.AgentDeployment
	service := p.management("-n", p.spec.Management.Namespace, "get", "service", mesh.ServerDeployment, "-o", "wide")
	if r.unseen(AgentAddressWrong, "Service "+p.spec.Management.Namespace+"/"+mesh.ServerDeployment, w.Relay.Gap, service) {
		return
	}
	right := w.Relay.Address
	if given := givenAddress(w.Spec, w.Cluster); given != "" {
		right = given
	}
	switch {
	case right == "":
		return // there is none: said by relay-server, or it has no address yet
	case told == right:
		r.pass(AgentAddressWrong, object, "the agent is told of %s, where the management server is", told)
		return
	}
	f := Finding{Check: AgentAddressWrong, Object: object, Status: Fail,
		Message: fmt.Sprintf("the agent is told that the management server is at %s, and it is at %s", told, right),
		Remedy:  runSetup + ", which upgrades the agent's release",
		Evidence: []string{fmt.Sprintf("%s, spec.template.spec.containers[].args: server address %s", object, told),
			fmt.Sprintf("Service %s/%s, or the input: %s", p.spec.Management.Namespace, mesh.ServerDeployment, right)},
		Commands: []string{service, p.arguments(), setup}, Mend: p.mend(SetUp)}
	if p.spec.Gloo.Install != nil && !*p.spec.Gloo.Install {
		// Somebody else installs it, and may have put a proxy in between.
		f.Status, f.Mend, f.Commands = Warn, nil, f.Commands[:2]
		f.Remedy = "if there is no proxy in between, correct glooAgent.relay.serverAddress of your own Helm release, or give the address in gloo.relayAddress"
	}
	r.say(f)
}

// givenAddress is an address that Helm values of the input give the agent.
func givenAddress(spec mesh.Spec, w mesh.Workload) string {
	values := mesh.Overlay(nil, spec.Gloo.AgentValues, w.AgentValues)
	agent, _ := values["glooAgent"].(map[string]any)
	relay, _ := agent["relay"].(map[string]any)
	address, _ := relay["serverAddress"].(string)
	return address
}

// stale: an agent that reads its Secrets at its start alone holds what was in them
// then. Its open streams go on; what it holds counts at its next connection.
func (r *report) stale(p place, w Workload) {
	if w.Cluster.Agent.Reload != mesh.ReloadRestart || w.Agent.Gap.Open() || w.Agent.PodsGap.Open() {
		return
	}
	trust, trusted := w.Trust()
	for _, s := range []struct {
		check, name, what string
		seen              SeenSecret
	}{
		{StaleAgent, w.Spec.Certificates.Client.SecretName, "the certificate", w.Secret},
		{StaleTrust, trust, "the trust", trusted},
	} {
		if s.seen.Gap.Open() {
			continue
		}
		object := "Secret " + p.spec.Namespace + "/" + s.name
		var before []string
		for _, pod := range w.Agent.Pods {
			// Times are to the second. Of one created within that of the write nobody knows;
			// a setup is as fast, and a rotation restarts such a one.
			if pod.Created.Before(s.seen.Written) {
				before = append(before, fmt.Sprintf("Pod %s/%s, created %s", p.spec.Namespace, pod.Name, stamp(pod.Created)))
			}
		}
		if len(before) == 0 {
			r.pass(s.check, object, "the agent was started after its last write")
			continue
		}
		f := Finding{Check: s.check, Object: object, Status: Warn,
			Message: fmt.Sprintf("the agent was started before this was last written and reads it at its start alone: it still holds %s from before. Whether that shakes hands at its next connection cannot be seen from here", s.what),
			Remedy:  "restart the agent; if it does read changed Secrets by itself, say so: agent.reload \"hot\"",
			Evidence: append([]string{fmt.Sprintf("%s, last written %s", object, stamp(s.seen.Written)),
				fmt.Sprintf("the input: agent.reload of %s is %q", w.Cluster.Name, mesh.ReloadRestart)}, before...),
			Commands: p.restart(),
			Mend:     p.mend(Restart)}
		if len(w.refused()) > 0 {
			f.Remedy, f.Mend = "mend first what handshake names: with what is stored now the agent would not connect again. Then restart it", nil
		}
		r.say(f)
	}
}

// refused are the fresh handshakes that a replica has refused, or that have refused it.
func (w Workload) refused() []string {
	var out []string
	for _, h := range w.Handshakes {
		if h.Reached && h.Error != "" {
			out = append(out, fmt.Sprintf("fresh handshake with Pod %s/%s: %s", w.Spec.Management.Namespace, h.Pod, h.Error))
		}
	}
	return out
}

// gaugesLie: the gauges count streams that are open, and an open stream survives
// what would refuse a new one.
func (r *report) gaugesLie(p place, w Workload) {
	refused := w.refused()
	pull, push := w.Gauges.Pull[w.Cluster.Name], w.Gauges.Push[w.Cluster.Name]
	switch {
	case len(w.Handshakes) == 0:
	case len(refused) == 0:
		r.pass(GaugesLie, "", "a fresh handshake says the same as the gauges")
	case pull >= 1 && push >= 1:
		r.say(Finding{Check: GaugesLie, Status: Fail,
			Message: "the server's gauges count the agent as connected, and a fresh handshake of this cluster fails: its open streams survive, and at the next reconnect the cluster is cut off",
			Remedy:  "mend what handshake names before the agent or the server restarts",
			Evidence: append([]string{fmt.Sprintf(`relay_pull_clients_connected{cluster=%q} %g`, w.Cluster.Name, pull),
				fmt.Sprintf(`relay_push_clients_connected{cluster=%q} %g`, w.Cluster.Name, push)}, refused...),
			Commands: []string{p.management("-n", p.spec.Management.Namespace, "port-forward", "deployment/"+mesh.ServerDeployment, "9091") + " & sleep 2; curl -s http://localhost:9091/metrics | grep clients_connected; kill %1"},
			Mend:     p.handshakeMend(w)})
	}
}

// vaultChains judges the chain that Vault returns with what an issuer in use signs:
// tls.crt and ca.crt of the next issuance are made of it.
func (r *report) vaultChains(p place, v SeenVault, pin Pin) {
	for _, issuer := range v.inUse() {
		if issuer.Certificate == nil || len(issuer.Chain) == 0 {
			continue
		}
		path := v.Relay.Path + "/issuer/" + issuer.ID
		top := issuer.Chain[len(issuer.Chain)-1]
		var evidence []string
		for i, c := range issuer.Chain {
			evidence = append(evidence, fmt.Sprintf("%s, ca_chain[%d]: %s", path, i, describe(c)))
		}
		f := Finding{Check: VaultChain, Object: "issuer " + issuer.Name, Status: Fail, Evidence: evidence,
			Commands: []string{p.vault("read", path)}}
		if root, ok := v.rootOf(issuer.Certificate); ok {
			f.Commands = append(f.Commands, p.vault("patch", path, "manual_chain="+issuer.ID+","+root.ID))
		} else {
			f.Commands = append(f.Commands, p.vault("list", v.Relay.Path+"/issuers"), setup)
		}
		linear := pki.Linear(issuer.Chain)
		switch {
		case linear != nil:
			f.Message = "the chain that it returns is not one line: " + linear.Error() + ". cert-manager refuses it, or fails at random"
			f.Remedy = "give it a chain of its own, itself and its root (manual_chain), then have certificates issued anew; in a rotation of the root have that go on instead"
		case len(issuer.Chain) == 1 && pin == Unpinned:
			f.Message = "the chain that it returns ends at itself: ca.crt becomes the intermediate at the next issuance, and every later rotation would change trust"
			f.Remedy = "give it a chain of its own, itself and its root (manual_chain), then have certificates issued anew"
		case len(issuer.Chain) == 2 && !pki.SelfSigned(top) && !v.Relay.stands(top):
			f.Message = fmt.Sprintf("the chain that it returns ends at %s, which is no self-signed root", pki.Name(top))
			f.Remedy = "import the chain up to the self-signed root into the relay mount, and give the issuer a chain of its own (manual_chain)"
		case !issuer.Manual:
			f.Status = Warn
			f.Message = "it has no manual_chain: Vault chooses the chain anew whenever a CA is imported"
			f.Remedy = runSetup + ", which sets it"
			f.Commands, f.Mend = append(f.Commands[:1], setup), p.mend(SetUp)
		default:
			r.pass(VaultChain, f.Object, "it returns %d certificates in one line, up to %s", len(issuer.Chain), pki.Name(top))
			continue
		}
		r.say(f)
	}
}

// inUse are the issuers that roles name.
func (v SeenVault) inUse() []SeenVaultIssuer {
	var out []SeenVaultIssuer
	for _, issuer := range v.Relay.Issuers {
		if slices.ContainsFunc(v.Roles, func(role SeenRole) bool { return role.IssuerRef == issuer.ID }) {
			out = append(out, issuer)
		}
	}
	return out
}

// rootOf is the self-signed root in the relay mount that has signed an intermediate.
func (v SeenVault) rootOf(intermediate *x509.Certificate) (SeenVaultIssuer, bool) {
	for _, issuer := range v.Relay.Issuers {
		if issuer.Certificate != nil && pki.SelfSigned(issuer.Certificate) && pki.SignedBy(intermediate, issuer.Certificate) == nil {
			return issuer, true
		}
	}
	return SeenVaultIssuer{}, false
}

// stands says that a certificate is a bridge: a self-signed one for the same key is
// in the mount.
func (m SeenMount) stands(bridge *x509.Certificate) bool {
	return slices.ContainsFunc(m.Issuers, func(i SeenVaultIssuer) bool {
		return i.Certificate != nil && pki.SelfSigned(i.Certificate) && pki.SameKey(i.Certificate, bridge)
	})
}

// nesting judges that who signs outlives what is signed, and that nothing bounds a
// life to less than is asked for.
func (r *report) nesting(p place, m Management, now time.Time) {
	spec, relay := m.Spec, m.Vault.Relay.Path
	before := len(r.findings)
	for _, role := range m.Vault.Roles {
		asked := spec.Certificates.Server.Duration.Duration
		switch {
		case role.Gap.Open() || role.Name == spec.ProbeRole():
			continue
		case role.Cluster != "":
			asked = spec.Certificates.Client.Duration.Duration
		case spec.PKI.Isolation == mesh.IsolationShared:
			asked = spec.Certificates.LongestLife()
		}
		if longest := time.Duration(role.MaxTTL) * time.Second; role.MaxTTL > 0 && longest < asked {
			r.say(Finding{Check: TTLNesting, Object: "role " + role.Name, Status: Fail,
				Message:  fmt.Sprintf("it issues nothing that lives longer than %s, and certificates of %s are asked for: Vault cuts them short without an error", round(longest), mesh.Duration{Duration: asked}),
				Remedy:   runSetup + ", which writes the role as it should be; then have certificates issued anew",
				Evidence: []string{fmt.Sprintf("%s/roles/%s, max_ttl: %d", relay, role.Name, role.MaxTTL), fmt.Sprintf("the input, certificates: duration %s", mesh.Duration{Duration: asked})},
				Commands: []string{p.vault("read", relay+"/roles/"+role.Name), setup}, Mend: p.mend(SetUp)})
		}
	}
	for _, mount := range m.PKI {
		longest, what, status := spec.Certificates.LongestLife(), "certificates", Fail
		if mount.Root {
			longest, what, status = max(spec.PKI.Root.TTL.Duration, spec.PKI.Intermediate.TTL.Duration), "CAs", Warn
		}
		object := "mount " + mount.Path
		tune := p.vault("read", "sys/mounts/"+mount.Path+"/tune")
		if r.unseen(TTLNesting, object, mount.TuneGap, tune) || mount.TuneGap.Open() {
			continue
		}
		if mount.MaxLease < longest {
			r.say(Finding{Check: TTLNesting, Object: object, Status: status,
				Message:  fmt.Sprintf("it issues nothing that lives longer than %s, and %s of %s are asked for: Vault cuts them short with no more than a warning", round(mount.MaxLease), what, mesh.Duration{Duration: longest}),
				Remedy:   runSetup + ", which raises the mount's max_lease_ttl",
				Evidence: []string{fmt.Sprintf("sys/mounts/%s/tune, max_lease_ttl: %d", mount.Path, int64(mount.MaxLease/time.Second))},
				Commands: []string{tune, p.vault("secrets tune", fmt.Sprintf("-max-lease-ttl=%ds", int64(longest/time.Second)), mount.Path)}, Mend: p.mend(SetUp)})
		}
	}
	for _, issuer := range m.Vault.inUse() {
		if issuer.Certificate == nil {
			continue
		}
		c, object := issuer.Certificate, "issuer "+issuer.Name
		rotate := []string{shell.Join("relaypki", "rotate", "intermediate", spec.Mesh)}
		if root, ok := m.Vault.rootOf(c); ok && c.NotAfter.After(root.Certificate.NotAfter) {
			r.say(Finding{Check: TTLNesting, Object: object, Status: Fail,
				Message:  fmt.Sprintf("it ends at %s, after its root at %s: chains end with the root", pki.Date(c.NotAfter), pki.Date(root.Certificate.NotAfter)),
				Remedy:   "rotate the root in time; the next intermediate is made within its life",
				Evidence: []string{relay + "/issuer/" + issuer.ID + ": " + describe(c), relay + "/issuer/" + root.ID + ": " + describe(root.Certificate)},
				Commands: []string{shell.Join("relaypki", "rotate", "root", spec.Mesh)}})
		}
		need := spec.Certificates.LongestLife() + rolloutTime(spec)
		if left := c.NotAfter.Sub(now); left < need && left >= spec.Certificates.LongestLife() {
			r.say(Finding{Check: TTLNesting, Object: object, Status: Warn,
				Message:  fmt.Sprintf("it has %s left: less than a leaf's life and the time in which a rotation goes over all clusters, %s", round(left), round(need)),
				Remedy:   "rotate the intermediate now",
				Evidence: []string{relay + "/issuer/" + issuer.ID + ": " + describe(c)}, Commands: rotate})
		}
	}
	if len(r.findings) == before {
		r.pass(TTLNesting, "", "every CA outlives what it signs, and no role or mount cuts a life short")
	}
}

// rolloutTime is how long a procedure may take to go over all clusters.
func rolloutTime(spec mesh.Spec) time.Duration {
	rounds := 1
	if at := spec.Rollout.Parallelism; at > 0 {
		rounds += (len(spec.Workloads) + at - 1) / at
	}
	return time.Duration(rounds) * spec.Rollout.RetryFor.Duration
}

// stamp is a time as evidence has it: to the second.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// describe is a certificate as evidence has it.
func describe(c *x509.Certificate) string {
	names := ""
	if len(c.DNSNames) > 0 {
		names = ", DNS names " + strings.Join(c.DNSNames, ", ")
	}
	return fmt.Sprintf("subject %q, issuer %q%s, serial %s, valid from %s to %s, key %s, signed by key %s",
		c.Subject, c.Issuer, names, pki.Serial(c), stamp(c.NotBefore), stamp(c.NotAfter), short(c.SubjectKeyId), short(c.AuthorityKeyId))
}

// short is enough of a key identifier to tell two apart.
func short(id []byte) string {
	if len(id) == 0 {
		return "unnamed"
	}
	return pki.Hex(id[:min(len(id), 6)])
}
