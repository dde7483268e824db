package workflows

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
)

// signing has people sign what no Vault of ours can: the root is kept elsewhere,
// offline or in an HSM. The CSR is published by a query, and what was signed
// comes back by an update, days later if need be.
//
// What waits is the run alone. If it is lost, the next one makes a CSR of the
// same key, and what was signed for an earlier one is accepted.
type signing struct {
	report   *report
	standing func() (procedure.Standing, error)
	// asked is what is to be signed; nil before, and if it was given up.
	asked *procedure.Signing
	// judge says at a time what is wrong with certificates that are handed in, and
	// answers those that count, the intermediate first.
	judge func(certificates []*x509.Certificate, at time.Time) ([]*x509.Certificate, []error)
	// accepted are the certificates that have been taken; none before.
	accepted []*x509.Certificate
}

// newSigning takes the query and the update from now on; standing is the answer
// to the update.
func newSigning(ctx workflow.Context, r *report, standing func() (procedure.Standing, error)) (*signing, error) {
	s := &signing{report: r, standing: standing}
	if err := workflow.SetQueryHandlerWithOptions(ctx, procedure.CSRQuery, s.published, workflow.QueryHandlerOptions{
		Description: "The CSR that a root kept outside Vault has to sign, by which root and for how long.",
	}); err != nil {
		return nil, err
	}
	return s, workflow.SetUpdateHandlerWithOptions(ctx, procedure.SubmitSignedUpdate, s.submit, workflow.UpdateHandlerOptions{
		Validator:   s.maySubmit,
		Description: `Hand in the intermediate that the root kept outside Vault has signed, in PEM, without any key; in a rotation of the root the new root and the bridge with it. {"pem":"-----BEGIN CERTIFICATE-----\n..."}`,
	})
}

// sign has the root sign an intermediate's CSR: Vault's, or people.
func (s *signing) sign(ctx workflow.Context, spec mesh.Spec, in vault.IntermediateInput) (vault.SignedResult, error) {
	if !spec.PKI.Root.Offline() {
		return call[vault.SignedResult](ctx, acting, vaults.SignIntermediate, in)
	}
	root, err := offlineRoot(spec)
	if err != nil {
		return vault.SignedResult{}, err
	}
	var out procedure.Outcome
	out.Changed(procedure.Create, "certificate of the intermediate", "signed outside Vault by "+root.Authority.Subject+": the CSR is published, and the run waits for a person to hand it in")
	if !in.Mode.Writes() {
		out.By(in.Mode, signedByHand(root.Authority.Subject)...)
		return vault.SignedResult{Outcome: out}, nil
	}
	chain, err := s.await(ctx, spec, in.CSRPEM)
	return vault.SignedResult{Outcome: out, ChainPEM: chain}, err
}

// signedAhead is how long people have to get the next intermediate signed: a
// signed one must have as much left beyond the longest leaf, and its rotation has
// to begin as much earlier.
const signedAhead = 7 * 24 * time.Hour

// minLife is the least that a signed intermediate must have left to live.
func minLife(spec mesh.Spec) time.Duration {
	return spec.Certificates.LongestLife() + signedAhead
}

// await publishes the CSR of a mesh's intermediate, waits until a person has
// handed in a certificate that is fit, and answers it with its root.
func (s *signing) await(ctx workflow.Context, spec mesh.Spec, csrPEM string) (chainPEM string, err error) {
	root, err := s.publish(ctx, spec, csrPEM)
	if err != nil {
		return "", err
	}
	if err := s.wait(ctx, fmt.Sprintf("the intermediate to be signed by the root %s, which is kept outside Vault. Its CSR: relaypki csr %[2]s > %[2]s.csr; have it signed, then: relaypki submit %[2]s signed.pem",
		s.asked.Root.Subject, spec.Mesh)); err != nil {
		return "", err
	}
	return string(pki.EncodeChain(s.accepted[0], root)), nil
}

// wait waits for a person, until what is fit was handed in.
func (s *signing) wait(ctx workflow.Context, what string) error {
	s.report.Signing = true
	s.report.hold(ctx, what)
	defer s.settled(ctx)
	notice(ctx, s.report, "waits for "+s.report.held)
	if err := workflow.Await(ctx, func() bool { return len(s.accepted) > 0 }); err != nil {
		s.asked = nil // whoever ended the waiting has no use for an answer
		return err
	}
	return nil
}

// newRoot has people make a new root, sign the bridge to it by the one at work, and
// have the new one sign the CSR of the intermediate below it. What was accepted before
// is taken again, as long as it is fit.
func (s *signing) newRoot(ctx workflow.Context, spec mesh.Spec, csrPEM string, before *procedure.SignedRoot) (*procedure.SignedRoot, error) {
	csr, old, err := s.request(spec, csrPEM)
	if err != nil {
		return nil, err
	}
	least := minLife(spec)
	judge := func(certificates []*x509.Certificate, at time.Time) ([]*x509.Certificate, []error) {
		found, problems := pki.CheckNewRoot(csr, certificates, pki.NewRootWant{Old: old, At: at, MinLife: least})
		return found.Chain(), append(problems, unrecordable(spec, found.Root)...)
	}
	if before != nil {
		signed, err := pki.ParseChain([]byte(before.IntermediatePEM + before.RootPEM + before.BridgePEM))
		if err == nil {
			if _, problems := judge(signed, workflow.Now(ctx)); len(problems) == 0 {
				return before, nil
			}
		}
	}
	if err := s.ask(ctx, spec, csr, csrPEM, judge); err != nil {
		return nil, err
	}
	s.asked.NewRoot = true
	s.asked.Advice = fmt.Sprintf("Make the new root: another key and another common name than %s, self-signed, a CA without a path length, subjectKeyIdentifier=hash. Have the root at work sign the new root's key under the new root's subject, "+
		"as a CA, until its own end at the latest: that is the bridge. Have the new root sign the CSR as a CA: basicConstraints=critical,CA:TRUE,pathlen:0; keyUsage=critical,keyCertSign,cRLSign; subjectKeyIdentifier=hash; "+
		"with the CSR's subject as it is. Hand in the three certificates in PEM, in one file, without any key. The commands for openssl are in README.md, \"Rotate a root outside Vault\".", old.Subject.CommonName)
	if err := s.wait(ctx, fmt.Sprintf("a new root, which is kept outside Vault, to be made: with a bridge to it signed by the root %s, and an intermediate signed by the new one. Its CSR, and how: relaypki csr %[2]s > %[2]s.csr; have it done, then: relaypki submit %[2]s signed.pem",
		s.asked.Root.Subject, spec.Mesh)); err != nil {
		return nil, err
	}
	return &procedure.SignedRoot{
		IntermediatePEM: string(pki.EncodeChain(s.accepted[0])), RootPEM: string(pki.EncodeChain(s.accepted[1])), BridgePEM: string(pki.EncodeChain(s.accepted[2])),
	}, nil
}

// settled: nobody is waited for any more.
func (s *signing) settled(ctx workflow.Context) {
	s.report.Signing = false
	s.report.hold(ctx, "")
}

// unrecordable says why a mesh cannot be described with a new root, beyond what is
// wrong with the root itself: the rest of its description is not to be wrong for it.
func unrecordable(spec mesh.Spec, root *x509.Certificate) []error {
	if root == nil {
		return nil
	}
	var problems []error
	spec.PKI.Root.CertificatePEM = string(pki.EncodeChain(root))
	for _, p := range spec.Validate() {
		if p.Path != "pki.root.certificatePEM" {
			problems = append(problems, fmt.Errorf("the new root: the mesh cannot have it: %s", p))
		}
	}
	return problems
}

// publish asks for an intermediate of the root that is at work, and answers that root.
func (s *signing) publish(ctx workflow.Context, spec mesh.Spec, csrPEM string) (*x509.Certificate, error) {
	csr, root, err := s.request(spec, csrPEM)
	if err != nil {
		return nil, err
	}
	if err := lasts(ctx, spec, root); err != nil {
		return nil, err
	}
	least := minLife(spec)
	return root, s.ask(ctx, spec, csr, csrPEM, func(certificates []*x509.Certificate, at time.Time) ([]*x509.Certificate, []error) {
		return certificates[:1], pki.CheckSigned(csr, certificates, pki.SignedWant{Root: root, At: at, MinLife: least})
	})
}

// request reads a CSR of Vault's, and the root that is at work.
func (s *signing) request(spec mesh.Spec, csrPEM string) (*x509.CertificateRequest, *x509.Certificate, error) {
	csr, err := pki.ParseCSR([]byte(csrPEM))
	if err != nil {
		return nil, nil, failure.Permanent(failure.Mismatch, "Vault %q: the intermediate's CSR cannot be used: %v", spec.Vault.Name, err)
	}
	root, err := spec.PKI.Root.Certificate()
	if err != nil {
		return nil, nil, unreadableRoot(err)
	}
	return csr, root, nil
}

// ask publishes what is to be signed, and how what comes back is judged.
func (s *signing) ask(ctx workflow.Context, spec mesh.Spec, csr *x509.CertificateRequest, csrPEM string, judge func([]*x509.Certificate, time.Time) ([]*x509.Certificate, []error)) error {
	root, err := offlineRoot(spec)
	if err != nil {
		return err
	}
	s.judge, s.accepted = judge, nil
	s.asked = &procedure.Signing{
		Procedure: s.report.Procedure, Mesh: spec.Mesh, CSRPEM: csrPEM,
		Subject: csr.Subject.String(), Key: pki.KeyFingerprint(csr.RawSubjectPublicKeyInfo), Root: root.Authority,
		TTL: spec.PKI.Intermediate.TTL, MinLife: mesh.Duration{Duration: minLife(spec)}, Since: workflow.Now(ctx),
		Advice: "Sign it as a CA: basicConstraints=critical,CA:TRUE,pathlen:0; keyUsage=critical,keyCertSign,cRLSign; subjectKeyIdentifier=hash; no extended key usage, no name constraints; " +
			"with the CSR's subject as it is. Hand in the certificate in PEM, without any key; the root may follow it.",
	}
	return nil
}

// lasts is an error if the root ends too soon for any new intermediate.
func lasts(ctx workflow.Context, spec mesh.Spec, root *x509.Certificate) error {
	until := workflow.Now(ctx).Add(minLife(spec))
	if !root.NotAfter.Before(until) {
		return nil
	}
	return failure.Permanent(failure.Preflight, "the root %s ends at %s, and an intermediate under it has to live until %s at least: the mesh needs another root (relaypki rotate root %s; for one that is being set up, pki.root.certificatePEM)",
		pki.Name(root), pki.Date(root.NotAfter), pki.Date(until), spec.Mesh)
}

// published is the answer to the query.
func (s *signing) published() (*procedure.Signing, error) {
	if s.asked == nil || len(s.accepted) > 0 {
		return nil, errors.New(s.idle())
	}
	return s.asked, nil
}

// idle says that there is nothing to be signed.
func (s *signing) idle() string {
	if len(s.accepted) > 0 {
		return fmt.Sprintf("there is nothing to be signed any more: %s was accepted, and the run goes on with it", pki.Name(s.accepted[0]))
	}
	return fmt.Sprintf("there is nothing to be signed: the run is at %q", s.report.Phase)
}

// maySubmit says all that is wrong with what was handed in. A refused update
// leaves nothing in the history.
func (s *signing) maySubmit(ctx workflow.Context, in procedure.Typed[procedure.SubmitSignedInput]) error {
	problems := in.Problems
	bad := func(format string, args ...any) { problems = append(problems, problem("pem", format, args...)) }
	certificates, err := pki.ParseSigned([]byte(in.In.PEM))
	switch {
	case s.asked == nil:
		return errors.New(s.idle())
	case strings.TrimSpace(in.In.PEM) == "":
		bad("is missing; give the certificate that the root has signed")
	case err != nil:
		bad("%v", err)
	default:
		counts, wrong := s.judge(certificates, workflow.Now(ctx))
		if len(s.accepted) == 0 {
			for _, p := range wrong {
				bad("%v", p)
			}
			break
		}
		// To say it again does no harm.
		if !slices.EqualFunc(counts, s.accepted, func(a, b *x509.Certificate) bool { return a != nil && a.Equal(b) }) {
			bad("another certificate was accepted already, %s, and the run goes on with it", pki.Name(s.accepted[0]))
		}
	}
	return refuse(problems)
}

func (s *signing) submit(ctx workflow.Context, in procedure.Typed[procedure.SubmitSignedInput]) (procedure.Standing, error) {
	certificates, err := pki.ParseSigned([]byte(in.In.PEM))
	if err != nil {
		return procedure.Standing{}, err // cannot be: it was judged
	}
	s.accepted, _ = s.judge(certificates, workflow.Now(ctx))
	s.settled(ctx)
	standing, err := s.standing()
	taken := make([]string, len(s.accepted))
	for i, c := range s.accepted {
		taken[i] = fmt.Sprintf("%s, valid until %s", pki.Name(c), pki.Date(c.NotAfter))
	}
	if life := s.accepted[0].NotAfter.Sub(s.accepted[0].NotBefore); life < s.asked.TTL.Duration-shorterIsSaid {
		taken[0] += fmt.Sprintf(": it lives %s, and %s was asked for. That is up to the root; the next one is due earlier", mesh.Duration{Duration: life}, s.asked.TTL)
	}
	standing.Note = "accepted " + strings.Join(taken, "; ")
	return standing, err
}

// shorterIsSaid is by how much a life may be shorter than asked without a word.
const shorterIsSaid = 24 * time.Hour

// offlineRoot is a root that is kept outside Vault, as the spec has it.
func offlineRoot(spec mesh.Spec) (vault.CAResult, error) {
	c, err := spec.PKI.Root.Certificate()
	if err != nil {
		return vault.CAResult{}, unreadableRoot(err)
	}
	return vault.CAResult{
		Outcome:        procedure.Outcome{Detail: "kept outside Vault, until " + pki.Date(c.NotAfter)},
		CertificatePEM: string(pki.EncodeChain(c)),
		Authority: procedure.Authority{
			Name: "root (kept outside Vault)", Subject: c.Subject.String(), Serial: pki.Serial(c), SubjectKeyID: pki.Hex(c.SubjectKeyId), NotAfter: c.NotAfter.UTC(),
		},
	}, nil
}

func unreadableRoot(err error) error {
	return failure.Permanent(failure.InvalidInput, "pki.root.certificatePEM cannot be read: %v", err)
}

// offlineRootProblems are what is in the way of a root that is kept outside
// Vault, at this time.
func offlineRootProblems(ctx workflow.Context, spec mesh.Spec) []string {
	if !spec.PKI.Root.Offline() {
		return nil
	}
	c, err := spec.PKI.Root.Certificate()
	now := workflow.Now(ctx)
	switch {
	case err != nil:
		return []string{fmt.Sprintf("pki.root.certificatePEM cannot be read: %v", err)}
	case now.Before(c.NotBefore):
		return []string{fmt.Sprintf("%s is valid from %s on, and now it is %s", pki.Name(c), pki.Date(c.NotBefore), pki.Date(now))}
	case now.After(c.NotAfter):
		return []string{fmt.Sprintf("%s expired at %s; no chain under it is accepted any more", pki.Name(c), pki.Date(c.NotAfter))}
	}
	return nil
}

// signedByHand is the waiting in a plan's commands.
func signedByHand(root string) []string {
	return []string{
		`printf '%s\n' "$csr" > relay-intermediate.csr`,
		"# Have the root " + strings.Join(strings.Fields(root), " ") + " sign it, as a CA, into relay-intermediate.pem, without any key.",
		`until openssl x509 -noout -in relay-intermediate.pem 2>/dev/null; do echo "waiting for relay-intermediate.pem, signed from relay-intermediate.csr" >&2; sleep 10; done`,
		`certificate="$(openssl x509 -in relay-intermediate.pem)"`,
	}
}

// newRootByHand is the waiting for a new root in a plan's commands.
func newRootByHand(old, name string) []string {
	return []string{
		`printf '%s\n' "$csr" > relay-intermediate.csr`,
		fmt.Sprintf("# Outside Vault: make a new root of another key and name than %[1]s, into relay-root.pem; have %[1]s sign its key and subject, into relay-bridge.pem; have the new root sign relay-intermediate.csr, as a CA, into relay-intermediate.pem. No key leaves the place where it is kept. The commands for openssl: README.md, %[2]q.",
			strings.Join(strings.Fields(old), " "), "Rotate a root outside Vault"),
		`until openssl x509 -noout -in relay-root.pem 2>/dev/null && openssl x509 -noout -in relay-bridge.pem 2>/dev/null && openssl x509 -noout -in relay-intermediate.pem 2>/dev/null; do echo "waiting for relay-root.pem (` + name + `), relay-bridge.pem and relay-intermediate.pem" >&2; sleep 10; done`,
		`certificate="$(openssl x509 -in relay-intermediate.pem)"`,
		`root="$(` + newRootPrinted + `)"`,
		`bridge="$(openssl x509 -in relay-bridge.pem)"`,
	}
}

// newRootPrinted prints, in a plan's commands, the new root that people have made.
const newRootPrinted = "openssl x509 -in relay-root.pem"
