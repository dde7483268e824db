package vault

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	certmanager "github.com/cert-manager/cert-manager/pkg/util/pki"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// ProveIssuerInput names a new intermediate that nothing uses yet.
type ProveIssuerInput struct {
	Spec     mesh.Spec `json:"spec"` // without workloads
	IssuerID string    `json:"issuerId"`
	// RootPEM is what ca.crt is to be. BridgePEM is, in a rotation of the root, the
	// certificate that is to be above the intermediate in what members present;
	// empty for none.
	RootPEM   string         `json:"rootPEM"`
	BridgePEM string         `json:"bridgePEM,omitempty"`
	Mode      procedure.Mode `json:"mode"`
}

// ProveIssuerResult has the chain that the issuer would have cert-manager store.
type ProveIssuerResult struct {
	procedure.Outcome
	// ChainPEM is a throwaway leaf and what is above it, without the root; CAPEM
	// is what ca.crt would be.
	ChainPEM string `json:"chainPEM"`
	CAPEM    string `json:"caPEM"`
}

// ProveIssuer has the issuer sign a throwaway certificate and proves that
// cert-manager would take it: one linear chain, that leads to the root, with nothing
// in it but the intermediate and the bridge. The
// certificate is good for nothing and Vault does not keep it; its key never
// leaves this call. If the issuer is not what it has to be, that is a Mismatch.
func (a *Activities) ProveIssuer(ctx context.Context, in ProveIssuerInput) (ProveIssuerResult, error) {
	s, err := a.sessionFor(ctx, in.Mode, in.Spec.Vault.Name, site.Operate)
	if err != nil {
		return ProveIssuerResult{}, err
	}
	if !in.Mode.Writes() {
		return ProveIssuerResult{Outcome: procedure.Outcome{Detail: "by a throwaway signature, before anything uses it"}}, nil
	}
	roots, err := pki.ParseChain([]byte(in.RootPEM))
	if err != nil {
		return ProveIssuerResult{}, failure.Permanent(failure.InvalidInput, "Vault %q: the root that the issuer is to lead to cannot be read: %v. Start the procedure again", s.vault, err)
	}
	var bridge []*x509.Certificate
	if in.BridgePEM != "" {
		if bridge, err = pki.ParseChain([]byte(in.BridgePEM)); err != nil {
			return ProveIssuerResult{}, failure.Permanent(failure.InvalidInput, "Vault %q: the bridge that is to be above the issuer cannot be read: %v. Start the procedure again", s.vault, err)
		}
	}
	i, err := s.issuerAt(ctx, in.Spec.Vault.RelayMount, in.IssuerID)
	if err != nil {
		return ProveIssuerResult{}, err
	}
	wrong := func(format string, args ...any) error {
		return failure.Permanent(failure.Mismatch, "Vault %q, mount %s: the issuer %s would break relay: %s. Point nothing at it, and compare its manual_chain and the mount's issuers (vault read %s/issuer/%s), then start again",
			s.vault, in.Spec.Vault.RelayMount, i, fmt.Sprintf(format, args...), in.Spec.Vault.RelayMount, i.ID)
	}
	// Vault's own choice fits today; it changes with whatever is imported next.
	if len(i.ManualChain) == 0 {
		return ProveIssuerResult{}, wrong("it has no manual_chain, so Vault chooses the chain anew whenever a CA is imported")
	}
	signed, err := s.probe(ctx, in, i.ID)
	if err != nil {
		return ProveIssuerResult{}, err
	}
	bundle, err := certmanager.ParseSingleCertificateChainPEM([]byte(signed.asCertManagerReads()))
	if err != nil {
		return ProveIssuerResult{}, wrong("cert-manager would refuse what it signs: %v", err)
	}
	if err := proven(bundle, signed, append([]*x509.Certificate{i.certificate}, bridge...), roots[0]); err != nil {
		return ProveIssuerResult{}, wrong("%v", err)
	}
	return ProveIssuerResult{Outcome: procedure.Outcome{Detail: "leads to " + pki.Name(roots[0])}, ChainPEM: string(bundle.ChainPEM), CAPEM: string(bundle.CAPEM)}, nil
}

// proven says in what the chain that cert-manager would store is not the one
// wanted: a leaf, then exactly these, and the root as ca.crt.
func proven(bundle certmanager.PEMBundle, signed signature, above []*x509.Certificate, root *x509.Certificate) error {
	chain, err := pki.ParseChain(bundle.ChainPEM)
	if err != nil {
		return fmt.Errorf("tls.crt would not be readable: %w", err)
	}
	top, err := pki.ParseChain(bundle.CAPEM)
	if err != nil {
		return fmt.Errorf("ca.crt would not be readable: %w", err)
	}
	switch {
	case !top[0].Equal(root):
		return fmt.Errorf("ca.crt would be %s, and members trust %s", pki.Name(top[0]), pki.Name(root))
	case len(chain) < 2 || !chain[1].Equal(above[0]):
		return fmt.Errorf("what it signs is not of its own certificate")
	case !slices.EqualFunc(chain[1:], above, (*x509.Certificate).Equal):
		return fmt.Errorf("tls.crt would have %s above the leaf, and not %s", names(chain[1:]), names(above))
	}
	// As Vault answers: others than cert-manager do not put it in order.
	answered, err := pki.ParseChain([]byte(strings.Join(append([]string{signed.Certificate}, signed.Chain...), "\n")))
	if err != nil {
		return fmt.Errorf("Vault's chain is not readable: %w", err)
	}
	whole := chain
	if !chain[len(chain)-1].Equal(root) { // else what is trusted is presented, too
		whole = append(slices.Clip(chain), root)
	}
	for _, line := range [][]*x509.Certificate{answered, whole} {
		if err := pki.Linear(line); err != nil {
			return err
		}
	}
	return pki.Peer{Trust: []*x509.Certificate{root}, Name: probeDomain, Usage: x509.ExtKeyUsageAny, At: time.Now()}.Verify(chain)
}

// names are those of certificates, in their order.
func names(chain []*x509.Certificate) string {
	var out []string
	for _, c := range chain {
		out = append(out, pki.Name(c))
	}
	return strings.Join(out, ", ")
}

// signature is Vault's answer to a CSR.
type signature struct {
	Certificate string   `json:"certificate"`
	IssuingCA   string   `json:"issuing_ca"`
	Chain       []string `json:"ca_chain"`
}

// asCertManagerReads is the text that cert-manager's Vault issuer makes of the
// answer and then parses (extractCertificatesFromVaultCertificateSecret in its
// internal/vault): without a chain, the issuing CA takes its place.
func (s signature) asCertManagerReads() string {
	chain := s.Chain
	if len(chain) == 0 {
		chain = []string{s.IssuingCA}
	}
	return strings.Join(append(append([]string{}, chain...), s.Certificate), "\n")
}

// probe has the issuer sign a throwaway certificate by the probe role, for a key
// that stays in memory.
func (s session) probe(ctx context.Context, in ProveIssuerInput, id string) (signature, error) {
	var answer signature
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return answer, failure.Transient(failure.Unavailable, "a throwaway key could not be made: %v", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: probeDomain}, DNSNames: []string{probeDomain}}, key)
	if err != nil {
		return answer, failure.Transient(failure.Unavailable, "a throwaway CSR could not be made: %v", err)
	}
	path := in.Spec.Vault.RelayMount + "/issuer/" + id + "/sign/" + in.Spec.ProbeRole()
	err = s.write(ctx, path, map[string]any{
		"common_name": probeDomain,
		"csr":         string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
		// As cert-manager asks.
		"exclude_cn_from_sans": true,
	}, &answer)
	return answer, err
}
