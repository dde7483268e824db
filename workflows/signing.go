package workflows

import (
	"crypto/x509"
	"errors"
	"fmt"
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
// offline or in an HSM. The CSR is published by a query, and the certificate
// comes back by an update, days later if need be.
//
// What waits is the run alone. If it is lost, the next one makes a CSR of the
// same key, and what was signed for an earlier one is accepted.
type signing struct {
	report   *report
	standing func() (procedure.Standing, error)
	// asked is what is to be signed; nil before, and if it was given up.
	asked *procedure.Signing
	csr   *x509.CertificateRequest
	want  pki.SignedWant
	// accepted is the certificate that has been taken; nil before.
	accepted *x509.Certificate
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
		Description: `Hand in the intermediate that the root kept outside Vault has signed, in PEM, without any key. {"pem":"-----BEGIN CERTIFICATE-----\n..."}`,
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
	if err := s.publish(ctx, spec, csrPEM); err != nil {
		return "", err
	}
	s.report.Signing = true
	s.report.hold(ctx, fmt.Sprintf("the intermediate to be signed by the root %s, which is kept outside Vault. Its CSR: relaypki csr %[2]s > %[2]s.csr; have it signed, then: relaypki submit %[2]s signed.pem",
		s.asked.Root.Subject, spec.Mesh))
	defer s.settled(ctx)
	notice(ctx, s.report, "waits for "+s.report.held)
	if err := workflow.Await(ctx, func() bool { return s.accepted != nil }); err != nil {
		s.asked = nil // whoever ended the waiting has no use for an answer
		return "", err
	}
	return string(pki.EncodeChain(s.accepted, s.want.Root)), nil
}

// settled: nobody is waited for any more.
func (s *signing) settled(ctx workflow.Context) {
	s.report.Signing = false
	s.report.hold(ctx, "")
}

func (s *signing) publish(ctx workflow.Context, spec mesh.Spec, csrPEM string) error {
	csr, err := pki.ParseCSR([]byte(csrPEM))
	if err != nil {
		return failure.Permanent(failure.Mismatch, "Vault %q: the intermediate's CSR cannot be used: %v", spec.Vault.Name, err)
	}
	root, err := offlineRoot(spec)
	if err != nil {
		return err
	}
	anchor, err := spec.PKI.Root.Certificate()
	if err != nil {
		return err
	}
	if err := lasts(ctx, spec, anchor); err != nil {
		return err
	}
	now, least := workflow.Now(ctx), minLife(spec)
	s.csr, s.want, s.accepted = csr, pki.SignedWant{Root: anchor, MinLife: least}, nil
	s.asked = &procedure.Signing{
		Procedure: s.report.Procedure, Mesh: spec.Mesh, CSRPEM: csrPEM,
		Subject: csr.Subject.String(), Key: pki.KeyFingerprint(csr.RawSubjectPublicKeyInfo), Root: root.Authority,
		TTL: spec.PKI.Intermediate.TTL, MinLife: mesh.Duration{Duration: least}, Since: now,
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
	return failure.Permanent(failure.Preflight, "the root %s ends at %s, and an intermediate under it has to live until %s at least: the mesh needs another root (pki.root.certificatePEM)",
		pki.Name(root), pki.Date(root.NotAfter), pki.Date(until))
}

// published is the answer to the query.
func (s *signing) published() (*procedure.Signing, error) {
	if s.asked == nil || s.accepted != nil {
		return nil, errors.New(s.idle())
	}
	return s.asked, nil
}

// idle says that there is nothing to be signed.
func (s *signing) idle() string {
	if s.accepted != nil {
		return fmt.Sprintf("there is nothing to be signed any more: %s was accepted, and the run goes on with it", pki.Name(s.accepted))
	}
	return fmt.Sprintf("there is nothing to be signed: the run is at %q", s.report.Phase)
}

// maySubmit says all that is wrong with what was handed in. A refused update
// leaves nothing in the history.
func (s *signing) maySubmit(ctx workflow.Context, in procedure.Typed[procedure.SubmitSignedInput]) error {
	problems := in.Problems
	bad := func(format string, args ...any) { problems = append(problems, problem("pem", format, args...)) }
	chain, err := pki.ParseSigned([]byte(in.In.PEM))
	switch {
	case s.asked == nil:
		return errors.New(s.idle())
	case strings.TrimSpace(in.In.PEM) == "":
		bad("is missing; give the certificate that the root has signed")
	case err != nil:
		bad("%v", err)
	case s.accepted != nil:
		// To say it again does no harm.
		if !chain[0].Equal(s.accepted) {
			bad("another certificate was accepted already, %s, and the run goes on with it", pki.Name(s.accepted))
		}
	default:
		want := s.want
		want.At = workflow.Now(ctx)
		for _, p := range pki.CheckSigned(s.csr, chain, want) {
			bad("%v", p)
		}
	}
	return refuse(problems)
}

func (s *signing) submit(ctx workflow.Context, in procedure.Typed[procedure.SubmitSignedInput]) (procedure.Standing, error) {
	chain, err := pki.ParseSigned([]byte(in.In.PEM))
	if err != nil {
		return procedure.Standing{}, err // cannot be: it was judged
	}
	s.accepted = chain[0]
	s.settled(ctx)
	standing, err := s.standing()
	standing.Note = fmt.Sprintf("accepted %s, valid until %s", pki.Name(s.accepted), pki.Date(s.accepted.NotAfter))
	if life := s.accepted.NotAfter.Sub(s.accepted.NotBefore); life < s.asked.TTL.Duration-shorterIsSaid {
		standing.Note += fmt.Sprintf(": it lives %s, and %s was asked for. That is up to the root; the next one is due earlier", mesh.Duration{Duration: life}, s.asked.TTL)
	}
	return standing, err
}

// shorterIsSaid is by how much a life may be shorter than asked without a word.
const shorterIsSaid = 24 * time.Hour

// offlineRoot is a root that is kept outside Vault, as the spec has it.
func offlineRoot(spec mesh.Spec) (vault.CAResult, error) {
	c, err := spec.PKI.Root.Certificate()
	if err != nil {
		return vault.CAResult{}, failure.Permanent(failure.InvalidInput, "pki.root.certificatePEM cannot be read: %v", err)
	}
	return vault.CAResult{
		Outcome:        procedure.Outcome{Detail: "kept outside Vault, until " + pki.Date(c.NotAfter)},
		CertificatePEM: string(pki.EncodeChain(c)),
		Authority: procedure.Authority{
			Name: "root (kept outside Vault)", Subject: c.Subject.String(), Serial: pki.Serial(c), SubjectKeyID: pki.Hex(c.SubjectKeyId), NotAfter: c.NotAfter.UTC(),
		},
	}, nil
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
