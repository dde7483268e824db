package check

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/shell"
)

// What "vault pki health-check" looks at, judged for a relay: nobody fetches a CRL or
// a CA from Vault here, roles store nothing, and rotations are relaypki's. Where that
// command finds something on every mount as SetupMesh makes it, the reason why it is
// no finding here is in the check's message, and what would make it one is looked for.
//
//	its check                   here
//	ca_validity_period          the issuers at work, by Vault's limits, or a share of a life that is short by choice
//	crl_validity_period         a CRL past its end is a note: nothing in the relay asks for one
//	hardware_backed_root        passes: where the root's key is kept is the input's choice (pki.root.kept)
//	root_issued_leaves          as there
//	role_allows_localhost       as there, for every role in the mounts
//	role_allows_glob_wildcards  as there, for every role in the mounts
//	role_no_store_false         as there; a note where CRLs are rebuilt by themselves
//	audit_visibility            what hides too much passes; what shows a private key does not
//	allow_if_modified_since     passes: nobody fetches CRLs or CAs
//	enable_auto_tidy            passes while it is off and little is stored; else its intervals, as there
//	tidy_last_run               passes while auto-tidy is off, or since Vault started; else as there
//	too_many_certs              as there
//	enable_acme_issuance        the other way round: ACME would issue past the roles
//	allow_acme_headers          only where ACME is on

// littleStored is as many certificates as need no tidying: the CAs, and what was
// issued before the roles stored nothing.
const littleStored = 1000

// Limits of "vault pki health-check".
const (
	rootWarning, rootNotice                 = 365 * 24 * time.Hour, 730 * 24 * time.Hour
	intermediateWarning, intermediateNotice = 60 * 24 * time.Hour, 180 * 24 * time.Hour
	tidyLate, tidyTooLate                   = 2 * 24 * time.Hour, 7 * 24 * time.Hour
	pauseLong                               = 200 * time.Millisecond
	manyCerts, tooManyCerts                 = 50_000, 250_000
	// crlUsed is the percentage of a CRL's life after which another should be there.
	crlUsed = 95
)

func (r *report) pki(p place, m Management, now time.Time) {
	r.caValidity(p, m, now)
	r.rootKey(m)
	for _, mount := range m.PKI {
		r.crls(p, mount, now)
		r.rootIssued(p, mount)
		r.roles(p, m, mount)
		r.tuned(p, mount)
		r.tidy(p, mount, now)
		r.certs(p, mount)
		r.acme(p, mount)
	}
}

// caValidity is about the issuers at work: what has been replaced may end.
func (r *report) caValidity(p place, m Management, now time.Time) {
	v := m.Vault
	judge := func(mount string, issuer SeenVaultIssuer, warning, notice time.Duration, what string) {
		c := issuer.Certificate
		if c == nil {
			return
		}
		object := "issuer " + issuer.Name + " of mount " + mount
		// A CA that is to live for a year would be warned of all its life.
		life := c.NotAfter.Sub(c.NotBefore)
		warning, notice = min(warning, life/6), min(notice, life/3)
		left := c.NotAfter.Sub(now)
		f := Finding{Check: PKICAValidity, Object: object, Status: Note, Message: fmt.Sprintf("%s of its life is left, until %s: time to plan its rotation", round(left), pki.Date(c.NotAfter)),
			Remedy:   "rotate it; until it ends nothing fails, so that this is not critical as it is to vault pki health-check",
			Evidence: []string{mount + "/issuer/" + issuer.ID + ": " + describe(c)}, Commands: []string{shell.Join("relaypki", "rotate", what, p.spec.Mesh)}}
		switch {
		case left <= 0: // said by vault-root and vault-intermediate
		case left < warning:
			f.Status = Warn
			r.say(f)
		case left < notice:
			r.say(f)
		default:
			r.pass(PKICAValidity, object, "valid until %s", pki.Date(c.NotAfter))
		}
	}
	if root, ok := v.Root.issuer(v.Root.Default); ok {
		judge(v.Root.Path, root, rootWarning, rootNotice, "root")
	}
	for _, issuer := range v.inUse() {
		judge(v.Relay.Path, issuer, intermediateWarning, intermediateNotice, "intermediate")
	}
}

// rootKey: vault pki health-check does not ask by default either.
func (r *report) rootKey(m Management) {
	if m.Spec.PKI.Root.Offline() {
		r.pass(PKIHardwareBackedRoot, "", "the root's key is kept outside Vault")
		return
	}
	r.pass(PKIHardwareBackedRoot, "mount "+m.Vault.Root.Path, "the root's key is kept in Vault, as pki.root.kept says; \"offline\" keeps it elsewhere, an HSM included")
}

func (r *report) crls(p place, mount SeenPKI, now time.Time) {
	object := "mount " + mount.Path
	config := p.vault("read", mount.Path+"/config/crl")
	if r.unseen(PKICRLValidity, object, mount.CRLGap, config) || r.unseen(PKICRLValidity, object, mount.CRLConfigGap, config) || mount.CRLGap.Open() {
		return
	}
	var evidence []string
	for _, crl := range mount.CRLs {
		if used := now.Sub(crl.This); used >= crl.Next.Sub(crl.This)*crlUsed/100 {
			evidence = append(evidence, fmt.Sprintf("%s/issuer/%s/crl: thisUpdate %s, nextUpdate %s", mount.Path, crl.Issuer, stamp(crl.This), stamp(crl.Next)))
		}
	}
	if len(evidence) == 0 || mount.CRLDisabled {
		r.pass(PKICRLValidity, object, "no CRL that is in use is near its end")
		return
	}
	r.say(Finding{Check: PKICRLValidity, Object: object, Status: Note,
		Message: fmt.Sprintf("%d CRLs are near or past their end. Nothing in the relay asks for one, so that this is not critical as it is to vault pki health-check", len(evidence)),
		Remedy:  "have Vault rebuild CRLs before they end, as rotations set it, and these at once",
		// All three, since Vault refuses a life that is shorter than the time in which it rebuilds.
		Evidence: evidence, Commands: []string{p.vault("write", mount.Path+"/config/crl", "auto_rebuild=true", "expiry="+mesh.CRLExpiry, "auto_rebuild_grace_period="+mesh.CRLRebuiltBefore), p.vault("read", mount.Path+"/crl/rotate")}})
}

func (r *report) rootIssued(p place, mount SeenPKI) {
	if !mount.Root {
		return
	}
	object := "mount " + mount.Path
	if r.unseen(PKIRootIssuedLeaves, object, mount.CertsGap, p.vault("list", mount.Path+"/certs")) || mount.CertsGap.Open() {
		return
	}
	if mount.RootLeaf == "" {
		r.pass(PKIRootIssuedLeaves, object, "the root has signed CAs alone")
		return
	}
	read := p.vault("read", mount.Path+"/cert/"+mount.RootLeaf)
	r.say(Finding{Check: PKIRootIssuedLeaves, Object: object, Status: Warn, Message: "the root has signed a certificate that is no CA: whoever holds it is beside every rotation of the intermediate",
		Remedy: "find out who uses it, have it issued by an intermediate, and take the role that issued it away", Evidence: []string{fmt.Sprintf("%s/cert/%s: basic constraints: no CA", mount.Path, mount.RootLeaf)},
		Commands: []string{read, p.vault("list", mount.Path+"/roles")}})
}

// roles judges every role of a mount; vault-role judges the mesh's for what they are
// for, and more strictly.
func (r *report) roles(p place, m Management, mount SeenPKI) {
	object := "mount " + mount.Path
	all := slices.Clone(mount.Roles)
	if !mount.Root {
		all = append(all, m.Vault.Roles...)
	}
	list := p.vault("list", mount.Path+"/roles")
	for _, rule := range []struct {
		check, message, remedy, evidence, change string
		wrong                                    func(SeenRole) bool
		status                                   Status
	}{
		{PKIRoleLocalhost, "it issues localhost besides the names that it is for", "take localhost out of what it issues", "allow_localhost true, allowed_domains %s", "allow_localhost=false",
			func(r SeenRole) bool { return r.AllowLocalhost && len(r.AllowedDomains) > 0 }, Warn},
		{PKIRoleGlobWildcards, "it issues wildcards for names by pattern: a pattern may become a wildcard of any depth", "allow it the one or the other", "allow_wildcard_certificates and allow_glob_domains true, allowed_domains %s", "allow_glob_domains=false",
			func(r SeenRole) bool {
				return r.AllowWildcards && r.AllowGlobDomains && slices.ContainsFunc(r.AllowedDomains, func(name string) bool { return strings.Contains(name, "*") })
			}, Warn},
		{PKIRoleNoStore, "it stores all that it issues: the mount grows with every renewal", "have it store nothing: nobody in the relay asks Vault for a stored certificate", "no_store false, allowed_domains %s", "no_store=true",
			func(r SeenRole) bool { return !r.NoStore }, map[bool]Status{false: Warn, true: Note}[mount.AutoRebuild]},
	} {
		if r.unseen(rule.check, object, mount.RolesGap, list) {
			continue
		}
		sound := true
		for _, role := range all {
			if role.Gap.Open() || !rule.wrong(role) {
				continue
			}
			sound = false
			path := mount.Path + "/roles/" + role.Name
			f := Finding{Check: rule.check, Object: "role " + role.Name + " of mount " + mount.Path, Status: rule.status, Message: rule.message, Remedy: rule.remedy,
				Evidence: []string{fmt.Sprintf("%s: "+rule.evidence, path, strings.Join(role.AllowedDomains, ", "))}, Commands: []string{p.vault("patch", path, rule.change)}}
			if !slices.ContainsFunc(mount.Roles, func(other SeenRole) bool { return other.Name == role.Name }) {
				f.Remedy, f.Commands, f.Mend = runSetup+", which writes the mesh's roles as they should be", []string{p.vault("read", path), setup}, p.mend(SetUp)
			}
			r.say(f)
		}
		if sound {
			r.pass(rule.check, object, "none of its %d roles does", len(all))
		}
	}
}

// secretParameters of requests and answers of the engine hold private keys.
var secretParameters = []string{"private_key", "pem_bundle"}

func (r *report) tuned(p place, mount SeenPKI) {
	object := "mount " + mount.Path
	tune := p.vault("read", "sys/mounts/"+mount.Path+"/tune")
	if r.unseen(PKIAuditVisibility, object, mount.TuneGap, tune) || mount.TuneGap.Open() {
		return
	}
	var shown []string
	for field, keys := range map[string][]string{"audit_non_hmac_request_keys": mount.PlainRequest, "audit_non_hmac_response_keys": mount.PlainResponse} {
		for _, key := range secretParameters {
			if slices.Contains(keys, key) {
				shown = append(shown, fmt.Sprintf("sys/mounts/%s/tune, %s: %s", mount.Path, field, key))
			}
		}
	}
	slices.Sort(shown)
	if len(shown) > 0 {
		without := func(keys []string) string {
			return strings.Join(slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return slices.Contains(secretParameters, k) }), ",")
		}
		r.say(Finding{Check: PKIAuditVisibility, Object: object, Status: Warn, Message: "Vault's audit log has private keys of this mount as they are", Remedy: "have Vault write them as their HMAC, as it does by default",
			Evidence: shown, Commands: []string{p.vault("secrets tune", "-audit-non-hmac-request-keys="+without(mount.PlainRequest), "-audit-non-hmac-response-keys="+without(mount.PlainResponse), mount.Path)}})
	} else {
		r.pass(PKIAuditVisibility, object, "the audit log shows no private key; what it hides besides can be made visible, which is a matter of taste")
	}
	r.pass(PKIIfModifiedSince, object, "nothing in the relay fetches CRLs or CAs from Vault, so that nothing is saved by If-Modified-Since")
}

func (r *report) tidy(p place, mount SeenPKI, now time.Time) {
	object := "mount " + mount.Path
	config := p.vault("read", mount.Path+"/config/auto-tidy")
	if r.unseen(PKIAutoTidy, object, mount.TidyGap, config) || mount.TidyGap.Open() {
		return
	}
	on := p.vault("write", mount.Path+"/config/auto-tidy", "enabled=true", "interval_duration=12h", "tidy_cert_store=true", "tidy_revoked_certs=true")
	f := Finding{Check: PKIAutoTidy, Object: object, Commands: []string{config, on},
		Evidence: []string{fmt.Sprintf("%s/config/auto-tidy: enabled %t, interval_duration %s, pause_duration %s", mount.Path, mount.AutoTidy, mesh.Duration{Duration: mount.TidyEvery}, mount.TidyStop)}}
	switch {
	case !mount.AutoTidy && mount.Certs <= littleStored:
		r.pass(PKIAutoTidy, object, "off, and not needed: roles store nothing, and %d certificates are stored; a rotation turns it on", mount.Certs)
	case !mount.AutoTidy:
		f.Status, f.Message, f.Remedy = Note, fmt.Sprintf("off, and %d certificates are stored", mount.Certs), "turn it on, as rotations do"
		r.say(f)
	case mount.TidyEvery >= tidyLate || mount.TidyStop >= pauseLong:
		f.Status, f.Message, f.Remedy = Warn, "it runs too seldom or takes too long to keep up", "have it run every 12h, without pauses"
		f.Commands[1] += " pause_duration=0s"
		r.say(f)
	default:
		r.pass(PKIAutoTidy, object, "on, every %s", mesh.Duration{Duration: mount.TidyEvery})
	}

	status := p.vault("read", mount.Path+"/tidy-status")
	if !mount.AutoTidy {
		r.pass(PKITidyLastRun, object, "none is due: auto-tidy is off")
		return
	}
	if r.unseen(PKITidyLastRun, object, mount.TidyStatusGap, status) || mount.TidyStatusGap.Open() {
		return
	}
	late := max(tidyLate, 2*mount.TidyEvery)
	f = Finding{Check: PKITidyLastRun, Object: object, Status: Warn, Message: fmt.Sprintf("the last tidy was more than %s ago", mesh.Duration{Duration: late}), Remedy: "see Vault's log for why auto-tidy does not run, and run it",
		Evidence: []string{fmt.Sprintf("%s/tidy-status, time_finished: %s", mount.Path, stamp(mount.Tidied))}, Commands: []string{status, p.vault("write", mount.Path+"/tidy", "tidy_cert_store=true", "tidy_revoked_certs=true")}}
	switch {
	case mount.Tidied.IsZero():
		r.pass(PKITidyLastRun, object, "none since Vault was started, which keeps its state in memory alone; the next is within %s", mesh.Duration{Duration: mount.TidyEvery})
	case now.Sub(mount.Tidied) > max(tidyTooLate, late):
		f.Message = fmt.Sprintf("the last tidy was more than %s ago", mesh.Duration{Duration: max(tidyTooLate, late)})
		r.say(f)
	case now.Sub(mount.Tidied) > late:
		r.say(f)
	default:
		r.pass(PKITidyLastRun, object, "ended at %s", pki.Date(mount.Tidied))
	}
}

func (r *report) certs(p place, mount SeenPKI) {
	object := "mount " + mount.Path
	list := p.vault("list", mount.Path+"/certs")
	if r.unseen(PKITooManyCerts, object, mount.CertsGap, list) || mount.CertsGap.Open() {
		return
	}
	f := Finding{Check: PKITooManyCerts, Object: object, Status: Warn, Message: fmt.Sprintf("%d certificates are stored, which makes Vault slow", mount.Certs), Remedy: "have roles store nothing (no_store), and tidy away what has expired",
		Evidence: []string{fmt.Sprintf("%s/certs: %d keys", mount.Path, mount.Certs)}, Commands: []string{p.vault("write", mount.Path+"/tidy", "tidy_cert_store=true")}}
	switch {
	case mount.Certs >= tooManyCerts:
		f.Status = Fail
		r.say(f)
	case mount.Certs >= manyCerts:
		r.say(f)
	default:
		r.pass(PKITooManyCerts, object, "%d certificates are stored", mount.Certs)
	}
}

// acmeHeaders are what ACME's clients need of Vault's answers.
var acmeHeaders = []string{"Replay-Nonce", "Link", "Location"}

func (r *report) acme(p place, mount SeenPKI) {
	object := "mount " + mount.Path
	config := p.vault("read", mount.Path+"/config/acme")
	// A Vault from before 1.14 has no ACME.
	if r.unseen(PKIACMEIssuance, object, mount.ACMEGap, config) {
		return
	}
	if mount.ACMEGap.Open() || !mount.ACME {
		r.pass(PKIACMEIssuance, object, "off, as it should be: cert-manager renews by itself, by a role for each cluster, past which ACME would issue")
		r.pass(PKIACMEHeaders, object, "ACME is off")
		return
	}
	evidence := []string{fmt.Sprintf("%s/config/acme: enabled true, default_directory_policy %q", mount.Path, mount.ACMEPolicy)}
	off := p.vault("write", mount.Path+"/config/acme", "enabled=false")
	r.say(Finding{Check: PKIACMEIssuance, Object: object, Status: Warn, Message: "ACME is on: who can prove a name gets a certificate under the relay's CA, past the role of its cluster",
		Remedy: "turn it off, or have it issue from a mount of its own", Evidence: evidence, Commands: []string{config, off}})
	if r.unseen(PKIACMEHeaders, object, mount.TuneGap, config) {
		return
	}
	missing := slices.DeleteFunc(slices.Clone(acmeHeaders), func(header string) bool {
		return slices.ContainsFunc(mount.ResponseHeaders, func(allowed string) bool { return strings.EqualFold(allowed, header) })
	})
	if len(missing) == 0 {
		r.pass(PKIACMEHeaders, object, "its clients get the headers that they need")
		return
	}
	r.say(Finding{Check: PKIACMEHeaders, Object: object, Status: Note, Message: "ACME is on, and its clients do not get the headers that they need: " + strings.Join(missing, ", "),
		Remedy: "turn it off, see pki-enable-acme-issuance", Evidence: append(evidence, fmt.Sprintf("sys/mounts/%s/tune, allowed_response_headers: %s", mount.Path, strings.Join(mount.ResponseHeaders, ", "))), Commands: []string{off}})
}
