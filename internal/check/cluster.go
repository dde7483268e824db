package check

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
)

// certManager judges cert-manager's three Deployments.
func (r *report) certManager(deployments []SeenDeployment) {
	for _, d := range deployments {
		object := "Deployment " + d.Namespace + "/" + d.Name
		if d.Gap.report(r, CertManager, object, "install cert-manager, or let SetupMesh do so (certManager.install: auto)") {
			return
		}
		if d.Available < max(d.Desired, 1) {
			r.fail(CertManager, object, fmt.Sprintf("%s has %d of %d replicas available%s", object, d.Available, d.Desired, podStates(d.Pods)),
				fmt.Sprintf("`kubectl -n %s describe pods` in that cluster says why", d.Namespace))
			return
		}
	}
	r.pass(CertManager, "", "controller, webhook and cainjector are available")
}

func podStates(pods []SeenPod) string {
	var out strings.Builder
	for _, p := range pods {
		if !p.Ready {
			fmt.Fprintf(&out, "; Pod %s: %s", p.Name, p.states())
		}
	}
	return out.String()
}

// issuer judges the Issuer, which has to sign with the given role.
func (r *report) issuer(spec mesh.Spec, role string, i SeenIssuer) {
	object := "Issuer " + spec.Namespace + "/" + mesh.IssuerName
	if i.Gap.report(r, IssuerReady, object, runSetup) {
		return
	}
	if want := spec.Vault.RelayMount + "/sign/" + role; i.Path != want {
		r.fail(IssuerReady, object, fmt.Sprintf("it signs at %q, not at %q", i.Path, want), runSetup+"; if that path is another mesh's or cluster's, two of them share this cluster")
		return
	}
	if i.Ready.Status != "True" {
		r.fail(IssuerReady, object, fmt.Sprintf("not Ready: %s", i.Ready),
			"the reason is cert-manager's: see vault-available for Vault, pinned-keys for a refused login; "+runSetup+" to renew the credential")
		return
	}
	if i.Ready.Generation < i.Generation {
		r.warn(IssuerReady, object, "Ready, but cert-manager has not looked at its last change yet", "verify again in a minute; if it stays so, see cert-manager's log")
		return
	}
	r.pass(IssuerReady, object, "%s", i.Ready)
}

func (r *report) certificate(namespace string, asked mesh.Certificate, c SeenCertificate) {
	object := "Certificate " + namespace + "/" + asked.Name
	if c.Gap.report(r, CertificateReady, object, runSetup) {
		return
	}
	reasons := []string{c.Ready.String()}
	if c.Issuing.Status != "" {
		reasons = append(reasons, "issuing: "+c.Issuing.String())
	}
	if c.Request != "" {
		reasons = append(reasons, "its request: "+c.Request)
	}
	if c.Ready.Status != "True" {
		r.fail(CertificateReady, object, "not Ready: "+strings.Join(reasons, "; "),
			fmt.Sprintf("remove the cause that cert-manager names, then `cmctl renew -n %s %s` to end its back-off", namespace, asked.Name))
		return
	}
	if c.Ready.Generation < c.Generation {
		r.warn(CertificateReady, object, "Ready, but for an earlier generation: "+strings.Join(reasons, "; "), "verify again in a minute; if it stays so, see cert-manager's log")
		return
	}
	if c.Request != "" {
		r.warn(CertificateReady, object, "Ready, but its renewal has not succeeded yet: "+strings.Join(reasons, "; "),
			fmt.Sprintf("remove the cause that cert-manager names, then `cmctl renew -n %s %s`", namespace, asked.Name))
		return
	}
	r.pass(CertificateReady, object, "%s", c.Ready)
}

// use is what a leaf is for.
type use struct {
	asked mesh.Certificate
	usage x509.ExtKeyUsage
	// names judges the leaf's names: nil, or what is wrong.
	names  func(leaf *x509.Certificate) error
	remedy string
}

// secret judges a Secret that cert-manager wrote. The root in its ca.crt is
// returned if it is one, or what stands in its place.
func (r *report) secret(namespace string, u use, s SeenSecret, pin Pin, now time.Time) (root *x509.Certificate) {
	object := "Secret " + namespace + "/" + u.asked.SecretName
	if s.Gap.report(r, CertificateSecret, object, fmt.Sprintf("cert-manager writes it: see certificate-ready; certificates in the input must name it (%s); the relay reads it by that name", u.asked.SecretName)) {
		return nil
	}
	for key, problem := range map[string]string{"tls.crt": s.ChainError, "ca.crt": s.CAError} {
		if problem != "" {
			r.fail(CertificateSecret, object, fmt.Sprintf("%s has no readable %s: %s", object, key, problem),
				fmt.Sprintf("`cmctl renew -n %s %s` has cert-manager write it anew", namespace, u.asked.Name))
		}
	}
	if s.ChainError != "" || s.CAError != "" {
		return nil
	}
	leaf := s.Chain[0]
	r.pass(CertificateSecret, object, "holds serial %s", pki.Serial(leaf))

	root = r.root(object, s, pin, fmt.Sprintf("`cmctl renew -n %s %s`", namespace, u.asked.Name))
	if problem := chainProblem(s, u, now); problem != nil {
		r.fail(CertificateChain, object, problem.Error(),
			"see vault-intermediate: the chain is what Vault returned; after mending it there, "+fmt.Sprintf("`cmctl renew -n %s %s`", namespace, u.asked.Name))
	} else {
		r.pass(CertificateChain, object, "%d certificates in one line, verified under ca.crt", len(s.Chain))
	}
	if err := u.names(leaf); err != nil {
		r.fail(CertificateNames, object, err.Error(), u.remedy)
	} else {
		r.pass(CertificateNames, object, "is for %s", strings.Join(leaf.DNSNames, ", "))
	}
	r.lifetime(namespace, object, u.asked, s.Chain, now)
	return root
}

// chainProblem leaves time to the lifetime check: an expired chain that is
// otherwise right is one finding, not two.
func chainProblem(s SeenSecret, u use, now time.Time) error {
	if err := pki.Linear(s.Chain); err != nil {
		return err
	}
	if err := nested(s); err != nil {
		return err
	}
	at := now
	for _, c := range s.Chain {
		if at.After(c.NotAfter) {
			at = c.NotAfter
		}
	}
	for _, c := range s.Chain {
		if at.Before(c.NotBefore) {
			at = c.NotBefore
		}
	}
	if err := (pki.Peer{Trust: s.CA, Usage: u.usage, At: at}).Verify(s.Chain); err != nil {
		return fmt.Errorf("tls.crt does not verify under its own ca.crt: %w", err)
	}
	return nil
}

// nested is pki.Nested up to ca.crt. A bridge is there for a rotation alone, and may
// end before the intermediate below it, which has another way up; not before a leaf.
func nested(s SeenSecret) error {
	if len(s.Chain) < 3 {
		return pki.Nested(append(slices.Clone(s.Chain), s.CA...))
	}
	if err := pki.Nested(s.Chain[:2]); err != nil {
		return err
	}
	return pki.Nested(append([]*x509.Certificate{s.Chain[0]}, append(slices.Clone(s.Chain[2:]), s.CA...)...))
}

// bridged says that ca.crt is the bridge that is above the intermediate in the chain:
// in the midst of a rotation of the root it stands for the new one.
func (s SeenSecret) bridged() bool {
	return len(s.Chain) == 3 && len(s.CA) == 1 && pki.SameKey(s.Chain[2], s.CA[0])
}

// pinned says that ca.crt is the intermediate that has issued the certificate.
func (s SeenSecret) pinned() bool {
	return len(s.Chain) == 2 && len(s.CA) == 1 && s.Chain[1].Equal(s.CA[0])
}

// root judges ca.crt; renew is the command that has it written anew.
func (r *report) root(object string, s SeenSecret, pin Pin, renew string) *x509.Certificate {
	ca := s.CA
	switch {
	case len(ca) != 1:
		r.fail(CertificateRoot, object, fmt.Sprintf("ca.crt has %d certificates, not one", len(ca)), "see vault-intermediate, then renew the Certificate")
	case pin != Unpinned && s.pinned():
		r.pass(CertificateRoot, object, "ca.crt is the intermediate %s itself, which an emergency has pinned", pki.Name(ca[0]))
		return ca[0]
	case pin == Pinned:
		r.fail(CertificateRoot, object, fmt.Sprintf("ca.crt is %s, and an emergency has pinned the intermediate: whatever else is under that is accepted too, and what is compromised with it", pki.Name(ca[0])),
			"see that manual_chain of the intermediate at work is itself alone, then "+renew+", and restart what uses it unless it reloads")
	case !pki.SelfSigned(ca[0]) && s.bridged():
		r.pass(CertificateRoot, object, "ca.crt is the bridge %s, of a rotation of the root", pki.Name(ca[0]))
		return ca[0]
	case !pki.SelfSigned(ca[0]):
		r.fail(CertificateRoot, object, fmt.Sprintf("ca.crt is %s, which is no self-signed root: every later rotation would change trust", pki.Name(ca[0])),
			"import the chain up to the self-signed root into the relay mount (run SetupMesh again), then renew the Certificate")
	default:
		r.pass(CertificateRoot, object, "ca.crt is the root %s", pki.Name(ca[0]))
		return ca[0]
	}
	return nil
}

// lifetime judges the leaf and whatever is above it in the chain.
func (r *report) lifetime(namespace, object string, asked mesh.Certificate, chain []*x509.Certificate, now time.Time) {
	for i, c := range chain {
		remedy := fmt.Sprintf("`cmctl renew -n %s %s`, then restart what uses it unless it reloads; see certificate-ready for why it was not renewed", namespace, asked.Name)
		if i > 0 {
			remedy = "a CA in the chain: see vault-intermediate"
		}
		switch {
		case now.After(c.NotAfter):
			r.fail(CertificateLifetime, object, fmt.Sprintf("%s expired at %s", pki.Name(c), pki.Date(c.NotAfter)), remedy)
			return
		case now.Before(c.NotBefore):
			r.fail(CertificateLifetime, object, fmt.Sprintf("%s is not valid before %s, and it is %s", pki.Name(c), pki.Date(c.NotBefore), pki.Date(now)),
				"compare the clocks of the worker, the nodes and Vault's host")
			return
		}
	}
	leaf := chain[0]
	left := leaf.NotAfter.Sub(now)
	// cert-manager starts to renew at renewBefore; two minutes are enough for that.
	if left < asked.RenewBefore.Duration-2*time.Minute {
		// Half of that time is what a person has left to act in.
		say := r.warn
		if left < asked.RenewBefore.Duration/2 {
			say = r.fail
		}
		say(CertificateLifetime, object, fmt.Sprintf("expires in %s, and should have been renewed %s before", round(left), asked.RenewBefore),
			"see certificate-ready and issuer-ready for why cert-manager does not renew it")
		return
	}
	r.pass(CertificateLifetime, object, "expires in %s, at %s", round(left), pki.Date(leaf.NotAfter))
}

// round writes a remaining life: in hours where minutes do not matter.
func round(d time.Duration) string {
	unit := time.Minute
	if d >= 2*time.Hour {
		unit = time.Hour
	}
	return mesh.Duration{Duration: d.Round(unit)}.String()
}

// deployment judges one of the relay's Deployments and its Pods.
func (r *report) deployment(check string, where Where, d SeenDeployment) {
	object := "Deployment " + d.Namespace + "/" + d.Name
	if d.Gap.report(r, check, object, "install it (gloo.install of the input, or your own Helm release)") {
		return
	}
	if d.Available < max(d.Desired, 1) {
		r.fail(check, object, fmt.Sprintf("%d of %d replicas are available", d.Available, d.Desired), "see pod-ready; "+fmt.Sprintf("`kubectl -n %s describe deploy %s`", d.Namespace, d.Name))
	} else {
		r.pass(check, object, "%d of %d replicas are available", d.Available, d.Desired)
	}
	if d.PodsGap.report(r, PodReady, "the Pods of "+object, runSetup) {
		return
	}
	for _, p := range d.Pods {
		name := "Pod " + d.Namespace + "/" + p.Name
		if p.Ready {
			r.pass(PodReady, name, "ready")
			continue
		}
		message, remedy := "not ready: "+p.states(), fmt.Sprintf("`kubectl -n %s describe pod %s` and `kubectl -n %s logs %s --previous`", d.Namespace, p.Name, d.Namespace, p.Name)
		if s, ok := Explain(where, p.State+"\n"+p.LastState+"\n"+p.Log); ok {
			message, remedy = message+". That means: "+s.Meaning, s.Remedy
		}
		r.fail(PodReady, name, message, remedy)
	}
}

func (p SeenPod) states() string {
	state := p.State
	if state == "" {
		state = "no container state yet"
	}
	if p.LastState != "" {
		state += "; last state: " + p.LastState
	}
	return state
}

func (r *report) pinnedKeys(k SeenKeys) {
	if k.Mount == "" {
		return
	}
	object := "auth mount " + k.Mount
	if k.VaultGap.Reason == Denied {
		r.warn(PinnedKeys, object, "not compared: the worker's refresh identity may not read auth/"+k.Mount+"/config: "+k.VaultGap.Detail,
			"give the worker that identity (site file, deploy/vault/policies/refresh.hcl) to have a changed key noticed before logins fail")
		return
	}
	if k.VaultGap.report(r, PinnedKeys, object, runSetup) {
		return
	}
	if k.ClusterGap.report(r, PinnedKeys, "the cluster's /openid/v1/jwks", "see that the API server publishes its token issuer's keys") {
		return
	}
	var unpinned, stale int
	for _, key := range k.Cluster {
		if !slices.Contains(k.Vault, key) {
			unpinned++
		}
	}
	for _, key := range k.Vault {
		if !slices.Contains(k.Cluster, key) {
			stale++
		}
	}
	switch {
	case unpinned > 0:
		r.fail(PinnedKeys, object, fmt.Sprintf("%d of the cluster's %d token keys are not pinned in Vault: cert-manager's login fails as soon as tokens are signed with one of them", unpinned, len(k.Cluster)), runSetup+", which pins the cluster's present keys")
	case stale > 0:
		r.warn(PinnedKeys, object, fmt.Sprintf("Vault still accepts %d keys that the cluster no longer publishes", stale), runSetup+", which pins the cluster's present keys")
	default:
		r.pass(PinnedKeys, object, "%d keys, those of the cluster", len(k.Cluster))
	}
}

// overdue is the part of a credential's life with which it fails: by half of it
// RefreshCredentials renews it, and by a quarter it has failed to several times.
const overdue = 4

// clusterToken warns before cert-manager can sign no more: it renews no token
// (cert-manager, Vault issuer, "Authenticating with a Token") and no secret id.
func (r *report) clusterToken(t SeenToken) {
	check, what := ClusterToken, "token"
	if t.SecretID {
		check, what = ClusterSecretID, "secret id"
	}
	const refresh = "the schedule relaypki-refresh-<mesh> renews it when half of its life is over: see why RefreshCredentials fails or does not run (relaypki status)"
	switch {
	case t.Secret == "":
	case t.Gap.report(r, check, t.Secret, runSetup+", which mints a "+what):
	case t.Refused != "":
		r.fail(check, t.Secret, "Vault does not accept its "+what+", so nothing is renewed any more: "+t.Refused, runSetup+", which mints another")
	case t.Left < t.Period/overdue:
		r.fail(check, t.Secret, fmt.Sprintf("its %s ends in %s, and should have been renewed long before", what, round(t.Left)), refresh)
	case t.Left < t.Period/2-t.Period/8:
		r.warn(check, t.Secret, fmt.Sprintf("its %s ends in %s, and should have been renewed before", what, round(t.Left)), refresh)
	default:
		r.pass(check, t.Secret, "its %s has %s left", what, round(t.Left))
	}
}

func contains(subjects [][]byte, subject []byte) bool {
	return slices.ContainsFunc(subjects, func(s []byte) bool { return bytes.Equal(s, subject) })
}
