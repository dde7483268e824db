package cluster

import (
	"context"
	"crypto/x509"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/shell"
	"github.com/relaypki/relaypki/internal/site"
)

// ChangeTrustInput says which trust anchors go into an agent's trust and which
// out of it.
type ChangeTrustInput struct {
	Mesh      string `json:"mesh"`
	Context   string `json:"context"`
	Namespace string `json:"namespace"`
	// AddPEM and DropPEM are certificates. What is neither stays as it is.
	AddPEM  []string `json:"addPEM,omitempty"`
	DropPEM []string `json:"dropPEM,omitempty"`
	// Optional: the agent does not read it, so one that is missing may be.
	Optional bool `json:"optional,omitempty"`
	// AddPrintedBy is, in a look ahead at an anchor that is still to be made, the
	// command that prints it once it is there.
	AddPrintedBy string         `json:"addPrintedBy,omitempty"`
	Mode         procedure.Mode `json:"mode"`
}

// ChangeTrust puts anchors into the agents' trust (Secret relay-root-tls-secret,
// key ca.crt) and takes others out; what else is in it stays, in its order. An
// anchor is there if that very certificate is, and dropped with every other of its
// key. The write is guarded by what was read: if somebody else has changed the
// Secret since, it is a Conflict, and to be tried again. A trust that would be left
// without an anchor is a permanent Mismatch, and a missing Secret a permanent
// Preflight error: to make it is the setup's.
func (a *Activities) ChangeTrust(ctx context.Context, in ChangeTrustInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	add, err := givenAnchors(in.AddPEM)
	if err != nil {
		return out, err
	}
	drop, err := givenAnchors(in.DropPEM)
	if err != nil {
		return out, err
	}
	name := kube.Name("Secret", in.Namespace, mesh.RootSecretName)
	live, err := kube.Get(ctx, c, "Secret", in.Namespace, mesh.RootSecretName)
	if err != nil {
		return out, err
	}
	if live == nil && in.Optional {
		out.Detail = name + " is not there, and the agent reads none"
		return out, nil
	}
	if live == nil {
		return out, failure.Permanent(failure.Preflight, "cluster %q: %s is not there, so there is no trust to change. Run the setup again, which makes it", c.Name, name)
	}
	var stored corev1.Secret
	if err := kube.Into(live, &stored); err != nil {
		return out, err
	}
	have, err := pki.ParseChain(stored.Data[rootKey])
	if err != nil {
		return out, failure.Permanent(failure.Mismatch, "cluster %q: %s of %s cannot be read: %v. It is left as it is. Put the roots that the agent is to trust there, and nothing else, and run this again", c.Name, rootKey, name, err)
	}
	want := changedTrust(have, add, drop)
	if in.Mode == procedure.Plan && in.AddPrintedBy != "" {
		out.Changed(procedure.Update, name, strings.TrimPrefix(trustDetail(have, want)+", with the new root, once it is there", ", "))
		out.By(in.Mode, trustCommands(c, in, want)...)
		return out, nil
	}
	switch {
	case len(want) == 0:
		return out, failure.Permanent(failure.Mismatch, "cluster %q: without %s nothing would be left in %s, and the agent would trust no server. It is left as it is. Put the anchor there that is to stay, and run this again", c.Name, anchorNames(have), name)
	case sameCertificates(have, want):
		out.Detail = "holds " + anchorNames(have)
		return out, nil
	}
	object, err := kube.Unstructured(&corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Name: mesh.RootSecretName, Namespace: in.Namespace, Labels: kube.Labels(in.Mesh), ResourceVersion: live.GetResourceVersion()},
		Type:       stored.Type,
		Data:       map[string][]byte{rootKey: pki.EncodeChain(want...)},
	})
	if err != nil {
		return out, err
	}
	if _, err := kube.Apply(ctx, c, object, in.Mode, &out); err != nil {
		return out, err
	}
	for i := range out.Changes {
		out.Changes[i].Detail = trustDetail(have, want)
	}
	out.Detail = "holds " + anchorNames(want)
	if !in.Mode.Writes() {
		out.Detail = "would hold " + anchorNames(want)
	}
	return out, nil
}

// trustCommands make the trust by hand of these anchors and of the one that is still
// to be made.
func trustCommands(c *site.Cluster, in ChangeTrustInput, anchors []*x509.Certificate) []string {
	first := ""
	if len(anchors) > 0 {
		first = "printf %s " + shell.Quote(string(pki.EncodeChain(anchors...)))
	}
	return kube.SecretCommands(c, in.Mesh, in.Namespace, mesh.RootSecretName, rootKey, withPrinted(first, in.AddPrintedBy))
}

// givenAnchors are the certificates of PEM texts.
func givenAnchors(texts []string) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for _, text := range texts {
		certificates, err := pki.ParseChain([]byte(text))
		if err != nil {
			return nil, failure.Permanent(failure.InvalidInput, "a trust anchor to change the agents' trust by cannot be read: %v", err)
		}
		for _, c := range certificates {
			if !c.IsCA {
				return nil, failure.Permanent(failure.InvalidInput, "%s is no CA, and so no trust anchor", pki.Name(c))
			}
		}
		all = append(all, certificates...)
	}
	return all, nil
}

// changedTrust is what a trust becomes.
func changedTrust(have, add, drop []*x509.Certificate) []*x509.Certificate {
	var want []*x509.Certificate
	for _, c := range have {
		dropped := slices.ContainsFunc(drop, func(d *x509.Certificate) bool { return pki.SameKey(c, d) })
		if !dropped || slices.ContainsFunc(add, c.Equal) {
			want = append(want, c)
		}
	}
	for _, c := range add {
		if !slices.ContainsFunc(want, c.Equal) {
			want = append(want, c)
		}
	}
	return want
}

func sameCertificates(a, b []*x509.Certificate) bool {
	return slices.EqualFunc(a, b, (*x509.Certificate).Equal)
}

// trustDetail says what goes into a trust and what out of it.
func trustDetail(have, want []*x509.Certificate) string {
	lacking := func(from, in []*x509.Certificate) []*x509.Certificate {
		return slices.DeleteFunc(slices.Clone(from), func(c *x509.Certificate) bool { return slices.ContainsFunc(in, c.Equal) })
	}
	var parts []string
	if added := lacking(want, have); len(added) > 0 {
		parts = append(parts, "adds "+anchorNames(added))
	}
	if dropped := lacking(have, want); len(dropped) > 0 {
		parts = append(parts, "drops "+anchorNames(dropped))
	}
	return strings.Join(parts, ", ")
}

func anchorNames(anchors []*x509.Certificate) string {
	all := make([]string, len(anchors))
	for i, anchor := range anchors {
		all[i] = pki.Name(anchor)
	}
	return strings.Join(all, " and ")
}
