// Package inventory reasons about what certificates a mesh has: who issued whom, of
// which CAs each is, when each layer has to be rotated, and what differs from what
// was asked for. It is pure: others look, and whoever shows it draws.
//
// Who issued whom is told by key identifiers and by no name: the roots, and the
// intermediates, of all generations may have the same.
package inventory

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/relaypki/relaypki/internal/pki"
)

// Kind is what a certificate is at the place where it was found.
type Kind string

// Kinds of items.
const (
	Root         Kind = "root"
	Bridge       Kind = "bridge"
	Intermediate Kind = "intermediate"
	ServerLeaf   Kind = "server-leaf"
	ClientLeaf   Kind = "client-leaf"
	// TrustStore is a certificate that is there to be trusted.
	TrustStore Kind = "trust-store"
	// Consumer is one in an object that is not the mesh's.
	Consumer Kind = "consumer"
)

// Kinds are all of them, from above.
var Kinds = []Kind{Root, Bridge, Intermediate, ServerLeaf, ClientLeaf, TrustStore, Consumer}

// Standing says of which CAs a certificate is.
type Standing string

const (
	// AtWork: of the generations that the mesh's record has.
	AtWork Standing = "at work"
	// Next: of those that the rotation under way goes to.
	Next Standing = "next"
	// Previous: of an earlier generation, or one that an emergency replaces.
	Previous Standing = "previous"
	// StandingBy: of a root made ahead.
	StandingBy Standing = "standing by"
	// LeftOver: of an intermediate that a rotation has made that was taken back.
	LeftOver Standing = "left over"
	// Unknown: of no CA with a name of ours.
	Unknown Standing = "unknown"
)

// Served compares what is stored with what a process serves or trusts.
type Served string

const (
	// Same: every replica serves what is stored.
	Same Served = "same"
	// Differs: one at least serves something else.
	Differs Served = "differs"
	// NotSeen: there is no way to see it, or it could not be looked at.
	NotSeen Served = "not seen"
)

// Certificate is one in public terms, however often it was found.
type Certificate struct {
	// Fingerprint is the SHA-256 of it, in hex.
	Fingerprint  string   `json:"fingerprint"`
	Subject      string   `json:"subject"`
	DNSNames     []string `json:"dnsNames,omitempty"`
	Serial       string   `json:"serial"`
	SubjectKeyID string   `json:"subjectKeyId,omitempty"`
	// AuthorityKeyID is the key id of its issuer, as the certificate has it, or by its
	// signature if it has none.
	AuthorityKeyID string `json:"authorityKeyId,omitempty"`
	// Issuer is the name of its issuer that the certificate itself has.
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	// Key is its type and size: "RSA 2048".
	Key        string `json:"key"`
	CA         bool   `json:"ca,omitempty"`
	SelfSigned bool   `json:"selfSigned,omitempty"`
	// Forged says that the CA which it names by its key has not signed it.
	Forged bool `json:"forged,omitempty"`

	// The rest is found by Take. IssuedBy is what the CA that has issued it is called
	// in Vault, or its subject; empty if it was not found.
	IssuedBy string `json:"issuedBy,omitempty"`
	// Generation is that of the CA, or of the one that issued a leaf; 0 if it is not
	// known.
	Generation int      `json:"generation,omitempty"`
	Standing   Standing `json:"standing,omitempty"`
}

// Describe is a certificate in public terms.
func Describe(c *x509.Certificate) Certificate {
	sum := sha256.Sum256(c.Raw)
	return Certificate{
		Fingerprint: hex.EncodeToString(sum[:]), Subject: c.Subject.String(), DNSNames: c.DNSNames, Serial: pki.Serial(c),
		SubjectKeyID: pki.Hex(c.SubjectKeyId), AuthorityKeyID: pki.Hex(c.AuthorityKeyId), Issuer: c.Issuer.String(),
		NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), Key: keyOf(c), CA: c.IsCA, SelfSigned: pki.SelfSigned(c),
	}
}

// keyOf is in cert-manager's words, which Vault's are compared with in capitals.
func keyOf(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return keyName("RSA", key.N.BitLen())
	case *ecdsa.PublicKey:
		return keyName("ECDSA", key.Curve.Params().BitSize)
	}
	return c.PublicKeyAlgorithm.String()
}

func keyName(algorithm string, bits int) string { return fmt.Sprintf("%s %d", algorithm, bits) }

// Issuer is what Vault says of a CA of one of its mounts.
type Issuer struct {
	Mount string `json:"mount"`
	ID    string `json:"id"`
	// Name may be empty, or anything that somebody has called it.
	Name string `json:"name,omitempty"`
	// HasKey: its key is in the mount. Signs: it has it, and its usage lets it issue.
	HasKey  bool `json:"hasKey,omitempty"`
	Signs   bool `json:"signs,omitempty"`
	Default bool `json:"default,omitempty"`
	// Roles are those that sign with it.
	Roles []string `json:"roles,omitempty"`
}

// Item is a certificate at a place.
type Item struct {
	Kind Kind `json:"kind"`
	// Cluster is a workload's registered name, or the management cluster's context;
	// empty for Vault.
	Cluster string `json:"cluster,omitempty"`
	// Object is "pki/relay-root-g1" in Vault, "Secret gloo-mesh/name" or "Pod
	// gloo-mesh/name" in a cluster; Key is the key in it: "tls.crt", "served".
	Object string `json:"object"`
	Key    string `json:"key,omitempty"`
	// Certificate is the fingerprint of an entry of Certificates.
	Certificate string `json:"certificate"`
	// Generation is that of the CA by its name in Vault; 0 for another name.
	Generation int     `json:"generation,omitempty"`
	Vault      *Issuer `json:"vault,omitempty"`
	Served     Served  `json:"served,omitempty"`
	// Renewal is when cert-manager issues a leaf anew.
	Renewal time.Time `json:"renewal,omitzero"`
	// Note is what else there is to know, in words.
	Note string `json:"note,omitempty"`
}

// Leaf says that it is a certificate of the mesh's server or of an agent.
func (i Item) Leaf() bool { return i.Kind == ServerLeaf || i.Kind == ClientLeaf }

// Look is what was found in one place: in Vault, or in a cluster.
type Look struct {
	// Name is the cluster's, as in Item; empty for Vault.
	Name         string        `json:"name,omitempty"`
	Certificates []Certificate `json:"certificates,omitempty"`
	Items        []Item        `json:"items,omitempty"`
	// Missing are objects of the mesh that are not there, or have nothing readable in
	// them, with why.
	Missing []Missing `json:"missing,omitempty"`
	// Unseen is what could not be looked at, with why; Unreachable why nothing could.
	Unseen      []string `json:"unseen,omitempty"`
	Unreachable string   `json:"unreachable,omitempty"`
	// Unsearched is what was not looked through for consumers, with why.
	Unsearched []string `json:"unsearched,omitempty"`
	// More is how many consumers were found that are not among the items.
	More int `json:"more,omitempty"`

	// cas are those that signatures can be checked with.
	cas []*x509.Certificate
}

// Knowing is a look that can check who has signed what: by these CAs.
func Knowing(cas ...*x509.Certificate) Look {
	return Look{cas: slices.DeleteFunc(slices.Clone(cas), func(c *x509.Certificate) bool { return !c.IsCA })}
}

// Missing is an object that is to be there.
type Missing struct {
	Cluster string `json:"cluster,omitempty"`
	Object  string `json:"object"`
	Why     string `json:"why"`
}

// Add notes a certificate at a place.
func (l *Look) Add(item Item, c *x509.Certificate) {
	described := l.describe(c)
	item.Certificate = described.Fingerprint
	l.Items = append(l.Items, item)
	if !slices.ContainsFunc(l.Certificates, func(known Certificate) bool { return known.Fingerprint == described.Fingerprint }) {
		l.Certificates = append(l.Certificates, described)
	}
}

// describe is Describe with what the CAs that are known tell by their signatures: who
// has issued one that does not say so (as a bridge between roots of one name may not),
// and that one was not issued by whom it names.
func (l *Look) describe(c *x509.Certificate) Certificate {
	described := Describe(c)
	if described.SelfSigned {
		return described
	}
	named, signed := false, false
	for _, ca := range l.cas {
		id := pki.Hex(ca.SubjectKeyId)
		if described.AuthorityKeyID != "" && id != described.AuthorityKeyID {
			continue
		}
		if pki.SignedBy(c, ca) == nil {
			described.AuthorityKeyID, signed = id, true
			break
		}
		named = named || described.AuthorityKeyID != ""
	}
	described.Forged = named && !signed
	return described
}

// Unlooked is a cluster or a Vault that could not be looked at, or not all of it.
type Unlooked struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
	// Part says that the rest of it was looked at.
	Part bool `json:"part,omitempty"`
}

// Unsearched is what was not looked through for consumers, in which clusters.
type Unsearched struct {
	What     string   `json:"what"`
	Clusters []string `json:"clusters"`
}

// Inventory is what certificates a mesh has.
type Inventory struct {
	Mesh string    `json:"mesh"`
	At   time.Time `json:"at"`
	// Rotation says what is under way by the mesh's record; empty if nothing is.
	Rotation     string        `json:"rotation,omitempty"`
	Clusters     int           `json:"clusters"`
	Items        []Item        `json:"items"`
	Certificates []Certificate `json:"certificates"`
	Forecast     []Forecast    `json:"forecast"`
	Drift        []Drift       `json:"drift,omitempty"`
	// Unreachable are the places that could not be looked at, or not wholly.
	Unreachable []Unlooked `json:"unreachable,omitempty"`
	// Unsearched is what the worker could not look through for consumers. It is no
	// object of the mesh, so the inventory is whole without it.
	Unsearched []Unsearched `json:"unsearched,omitempty"`
	// MoreConsumers is how many were found that are not among the items.
	MoreConsumers int `json:"moreConsumers,omitempty"`
}

// Certificate is the one of that fingerprint; the zero one if there is none.
func (v Inventory) Certificate(fingerprint string) Certificate {
	if i := slices.IndexFunc(v.Certificates, func(c Certificate) bool { return c.Fingerprint == fingerprint }); i >= 0 {
		return v.Certificates[i]
	}
	return Certificate{}
}

// index is the certificates by their fingerprints.
func (v Inventory) index() map[string]Certificate {
	of := make(map[string]Certificate, len(v.Certificates))
	for _, c := range v.Certificates {
		of[c.Fingerprint] = c
	}
	return of
}

// add takes in what was found in one place.
func (v *Inventory) add(l Look, known map[string]bool) {
	v.Items = append(v.Items, l.Items...)
	for _, c := range l.Certificates {
		if !known[c.Fingerprint] {
			known[c.Fingerprint] = true
			v.Certificates = append(v.Certificates, c)
		}
	}
	v.MoreConsumers += l.More
	for _, what := range l.Unsearched {
		at := slices.IndexFunc(v.Unsearched, func(u Unsearched) bool { return u.What == what })
		if at < 0 {
			at, v.Unsearched = len(v.Unsearched), append(v.Unsearched, Unsearched{What: what})
		}
		v.Unsearched[at].Clusters = append(v.Unsearched[at].Clusters, l.Name)
	}
}
