package inventory

import (
	"cmp"
	"slices"
)

// Node is a CA with what it has issued.
type Node struct {
	Certificate Certificate
	Kind        Kind
	// Name is what it is called in Vault, or its subject.
	Name string
	// Unrooted says that who issued it was not found.
	Unrooted bool
	// To is, of a bridge, the root whose key it is for, if that was found.
	To *Node
	// Below are the CAs that it has issued, Leaves the items with leaves, by cluster.
	Below  []*Node
	Leaves []Item
}

// Lineage are the trees of CAs, from the roots. A key that has several certificates,
// as a root that a bridge stands for, has what it issued under one of them: under
// the self-signed one, or else under that which lasts longest. Leaves whose issuer was
// not found come last, under a node without a certificate.
func (v Inventory) Lineage() []*Node {
	t := newTree(v)
	var tops []*Node
	for _, n := range t.nodes {
		if parent := t.parent(n); parent != nil {
			parent.Below = append(parent.Below, n)
		} else {
			n.Unrooted = !n.Certificate.SelfSigned
			tops = append(tops, n)
		}
	}
	orphans := &Node{Name: "issuer not found", Unrooted: true}
	of := v.index()
	for _, i := range v.Items {
		c := of[i.Certificate]
		if c.CA || !i.Leaf() && i.Kind != Consumer {
			continue
		}
		parent := orphans
		if issuer := t.byKey[c.AuthorityKeyID]; issuer != nil && !c.Forged {
			parent = issuer
		}
		parent.Leaves = append(parent.Leaves, i)
	}
	if len(orphans.Leaves) > 0 {
		tops = append(tops, orphans)
	}
	return tops
}

// tree is the CAs of an inventory.
type tree struct {
	nodes []*Node
	// byKey has, by its subject key id, the node under which is what a key has issued.
	byKey map[string]*Node
}

func newTree(v Inventory) tree {
	t := tree{byKey: map[string]*Node{}}
	names := map[string]string{}
	for _, i := range v.Items {
		if i.Vault != nil && i.Vault.Name != "" && names[i.Certificate] == "" {
			names[i.Certificate] = i.Vault.Name
		}
	}
	for _, c := range v.Certificates {
		if !c.CA {
			continue
		}
		n := &Node{Certificate: c, Name: names[c.Fingerprint]}
		if n.Name == "" {
			n.Name = c.Subject
		}
		t.nodes = append(t.nodes, n)
		if c.SubjectKeyID == "" {
			continue
		}
		if have := t.byKey[c.SubjectKeyID]; have == nil || before(n, have) {
			t.byKey[c.SubjectKeyID] = n
		}
	}
	for _, n := range t.nodes {
		n.Kind = t.kind(n.Certificate)
		if root := t.byKey[n.Certificate.SubjectKeyID]; n.Kind == Bridge && root != n {
			n.To = root
		}
	}
	slices.SortStableFunc(t.nodes, func(a, b *Node) int {
		return cmp.Or(cmp.Compare(a.Certificate.Generation, b.Certificate.Generation), a.Certificate.NotBefore.Compare(b.Certificate.NotBefore),
			cmp.Compare(a.Certificate.Fingerprint, b.Certificate.Fingerprint))
	})
	return t
}

// before says which of two certificates of one key stands for it.
func before(a, b *Node) bool {
	if a.Certificate.SelfSigned != b.Certificate.SelfSigned {
		return a.Certificate.SelfSigned
	}
	return a.Certificate.NotAfter.After(b.Certificate.NotAfter)
}

// kind is what a CA is: a bridge is one of a root's key that is not self-signed.
func (t tree) kind(c Certificate) Kind {
	own := t.byKey[c.SubjectKeyID]
	switch {
	case c.SelfSigned:
		return Root
	case own != nil && own.Certificate.SelfSigned:
		return Bridge
	}
	return Intermediate
}

// parent is the node that a CA is under; nil for a root, and for one whose issuer was
// not found.
func (t tree) parent(n *Node) *Node {
	if n.Certificate.SelfSigned || n.Certificate.Forged {
		return nil
	}
	parent := t.byKey[n.Certificate.AuthorityKeyID]
	// Two roots that have signed each other, of which neither is there itself, would
	// be under each other: then neither is.
	for above, left := parent, len(t.nodes); above != nil && !above.Certificate.SelfSigned; above = t.byKey[above.Certificate.AuthorityKeyID] {
		if left--; above == n || left < 0 {
			return nil
		}
	}
	return parent
}
