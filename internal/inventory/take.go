package inventory

import (
	"cmp"
	"slices"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/rotation"
)

// Record is what a mesh's record says of its CAs.
type Record struct {
	// Root and Intermediate are the generations that the mesh is of.
	Root, Intermediate int
	// ToRoot and ToIntermediate are those that the rotation under way goes to; 0 for
	// none, and of a root that stays.
	ToRoot, ToIntermediate int
	// Emergency says that what is at work is being replaced since it is compromised,
	// Pinned that this is over, and everybody trusts the new intermediate alone.
	Emergency, Pinned bool
}

// Facts are what an inventory is made from.
type Facts struct {
	Mesh string
	// Spec is the mesh's record's, Want what it is compared with: the record's, or a
	// file's. Both have their defaults.
	Spec, Want mesh.Spec
	// File is the name of the file that Want is from; empty if it is the record's.
	File   string
	Record Record
	// RootNames and IntermediateNames are the common names that the CAs at work may
	// have, of which the first was asked for; none to compare none.
	RootNames, IntermediateNames []string
	// State says what is under way; lives and dates are put in by Take. Pace is how
	// a rotation of this mesh goes on.
	State rotation.State
	Pace  rotation.Pace
	// Vault and Clusters are what was found. What could not be looked at is in
	// Unreachable.
	Vault       Look
	Clusters    []Look
	Unreachable []Unlooked
	// Moving are members that are being added or removed: what is not there yet, or no
	// longer, is no drift of theirs.
	Moving []string
}

// Take makes the inventory of what was found.
func Take(f Facts) Inventory {
	v := Inventory{Mesh: f.Mesh, At: f.State.Now, Rotation: f.State.Begun, Clusters: 1 + len(f.Spec.Workloads), Unreachable: f.Unreachable}
	known := map[string]bool{}
	v.add(f.Vault, known)
	for _, l := range f.Clusters {
		v.add(l, known)
	}
	v.name(f.Record)
	slices.SortStableFunc(v.Certificates, func(a, b Certificate) int { return cmp.Compare(a.Fingerprint, b.Fingerprint) })
	v.Forecast = f.forecast(v)
	v.Drift = f.drift(v)
	return v
}

// name finds of each certificate what issued it and of which CAs it is, and what
// kind of CA each one is.
func (v *Inventory) name(r Record) {
	t := newTree(*v)
	generations := map[string]int{} // of keys, by the names of their CAs in Vault
	for _, i := range v.Items {
		if i.Generation > 0 {
			if c := v.Certificate(i.Certificate); generations[c.SubjectKeyID] == 0 {
				generations[c.SubjectKeyID] = i.Generation
			}
		}
	}
	kinds := map[string]Kind{}
	for i := range v.Certificates {
		c := &v.Certificates[i]
		of, layer := c.SubjectKeyID, t.kind(*c)
		issuer := t.byKey[c.AuthorityKeyID]
		switch {
		case c.SelfSigned:
			c.IssuedBy = "itself"
		case issuer != nil && !c.Forged:
			c.IssuedBy = issuer.Name
		}
		if c.CA {
			kinds[c.Fingerprint] = layer
		} else {
			of, layer = c.AuthorityKeyID, Intermediate
			if issuer != nil {
				layer = issuer.Kind
			}
		}
		if !c.Forged {
			c.Generation = generations[of]
		}
		c.Standing = r.standing(layer, c.Generation)
	}
	for i := range v.Items {
		if kind := kinds[v.Items[i].Certificate]; v.Items[i].Kind == "" && kind != "" {
			v.Items[i].Kind = kind
		}
		// Vault alone says so of a CA; what is found elsewhere is known by its certificate.
		if v.Items[i].Vault == nil {
			v.Items[i].Generation = v.Certificate(v.Items[i].Certificate).Generation
		}
	}
}

// standing is that of a CA by its generation.
func (r Record) standing(layer Kind, generation int) Standing {
	at, to := r.Intermediate, r.ToIntermediate
	if layer != Intermediate { // a bridge is of its root's generation
		at, to = r.Root, r.ToRoot
	}
	switch {
	case generation == 0:
		return Unknown
	case generation == to && to != at && r.Pinned:
		return AtWork
	case generation == to && to != at:
		return Next
	case generation == at && to != 0 && to != at && r.Emergency:
		return Previous
	case generation == at:
		return AtWork
	case generation < at:
		return Previous
	case layer == Root:
		return StandingBy
	}
	return LeftOver
}
