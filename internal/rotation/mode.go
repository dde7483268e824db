// Package rotation reasons about the rotation of a mesh's root CA: which chain
// Vault returns, what each member may hold of it, and which step is safe now.
// It is pure; others look and act.
//
// The new intermediate has two ways up: to the new root, and over a bridge (the
// new root's name and key, signed by the old root) to the old one. Its
// manual_chain in Vault decides which of them every next issuance returns, and
// so what a member presents and, as the last of the chain, trusts as its ca.crt.
// A rotation steers the mesh through the modes one by one: members in
// neighbouring modes always shake hands, those two modes apart do not.
//
// Beyond is pinned, in which the intermediate itself is all that is trusted. It
// is a neighbour of pivot and final of that one intermediate: where there is
// another of the same root, linked, all have to be off it first.
package rotation

import (
	"fmt"
	"math/bits"
	"strings"
)

// Mode is what an issuance returns.
type Mode uint8

const (
	// Old is the previous intermediate under the old root.
	Old Mode = iota
	// Bridged is the new intermediate, the bridge and the old root.
	Bridged
	// Pivot is the new intermediate and the bridge.
	Pivot
	// Final is the new intermediate and the new root.
	Final
	// Pinned is the new intermediate alone: all that is trusted, in an emergency,
	// is what it has issued.
	Pinned
	// Linked is the previous intermediate where it is under the new root too: one
	// that is replaced while the root stays. Its root takes it for the new one's
	// equal; who has the new one pinned does not.
	Linked

	modes = iota // how many there are
)

func (m Mode) String() string {
	return [...]string{"old", "bridged", "pivot", "final", "pinned", "linked"}[m]
}

// MarshalText makes what people read say "bridged".
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (m *Mode) UnmarshalText(text []byte) error {
	for mode := range Mode(modes) {
		if mode.String() == string(text) {
			*m = mode
			return nil
		}
	}
	return fmt.Errorf("%q is no mode", text)
}

// Roots are the anchors of a rotation: those that a chain leads to, or that a
// trust store holds. The bridge as an anchor counts as the new root: it has
// its name and key.
type Roots uint8

const (
	OldRoot Roots = 1 << iota
	NewRoot
	// Itself is the new intermediate as an anchor.
	Itself
)

func (r Roots) String() string {
	if r == OldRoot|NewRoot {
		return "both roots"
	}
	var names []string
	for i, name := range []string{"the old root", "the new root", "the new intermediate itself"} {
		if r&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if names == nil {
		return "no root"
	}
	return strings.Join(names, " and ")
}

// LeadsTo are the anchors under each of which a chain of this mode verifies.
func (m Mode) LeadsTo() Roots {
	return [...]Roots{
		Old: OldRoot, Bridged: OldRoot | NewRoot | Itself, Pivot: OldRoot | NewRoot | Itself,
		Final: NewRoot | Itself, Pinned: NewRoot | Itself, Linked: NewRoot,
	}[m]
}

// Anchor is the one in ca.crt of what is issued in this mode.
func (m Mode) Anchor() Roots {
	return [...]Roots{Old: OldRoot, Bridged: OldRoot, Pivot: NewRoot, Final: NewRoot, Pinned: Itself, Linked: NewRoot}[m]
}

// Modes are those that something may be in, where it is not known better.
type Modes uint8

// AnyMode is for what nothing is known of.
const AnyMode = Modes(1<<modes - 1)

// In is the set of the given modes.
func In(modes ...Mode) Modes {
	var set Modes
	for _, m := range modes {
		set |= 1 << m
	}
	return set
}

func (s Modes) Has(m Mode) bool { return s&(1<<m) != 0 }

func (s Modes) String() string {
	var names []string
	for m := range Mode(modes) {
		if s.Has(m) {
			names = append(names, m.String())
		}
	}
	return strings.Join(names, " or ")
}

// anyText is what AnyMode and AnyStore are in a text.
const anyText = "any"

// MarshalText makes results that people read say "bridged or pivot".
func (s Modes) MarshalText() ([]byte, error) {
	if s == AnyMode {
		return []byte(anyText), nil
	}
	return []byte(s.String()), nil
}

// UnmarshalText reads what MarshalText writes.
func (s *Modes) UnmarshalText(text []byte) error {
	*s = 0
	return alternatives(text, func() { *s = AnyMode }, func(name string) bool {
		for m := range Mode(modes) {
			if name == m.String() {
				*s |= In(m)
				return true
			}
		}
		return false
	})
}

// alternatives reads names with "or" between them, or the word for any.
func alternatives(text []byte, whatever func(), one func(name string) bool) error {
	switch string(text) {
	case "":
		return nil
	case anyText:
		whatever()
		return nil
	}
	for name := range strings.SplitSeq(string(text), " or ") {
		if !one(name) {
			return fmt.Errorf("%q is not known in %q", name, text)
		}
	}
	return nil
}

// Anchors are the trust stores that ca.crt may be.
func (s Modes) Anchors() Stores {
	var stores Stores
	for m := range Mode(modes) {
		if s.Has(m) {
			stores |= Trusting(m.Anchor())
		}
	}
	return stores
}

// Stores are the trust stores that something may be, each given by its roots.
type Stores uint8

// AnyStore is for a trust store that nothing is known of; it holds something.
const AnyStore = ^Stores(1)

// Trusting is the set of the given trust stores.
func Trusting(each ...Roots) Stores {
	var set Stores
	for _, r := range each {
		set |= 1 << r
	}
	return set
}

// each are the trust stores of the set, by their roots.
func (s Stores) each() []Roots {
	var all []Roots
	for left := s; left != 0; left &= left - 1 {
		all = append(all, Roots(bits.TrailingZeros8(uint8(left))))
	}
	return all
}

func (s Stores) String() string {
	var names []string
	for _, roots := range s.each() {
		names = append(names, roots.String())
	}
	return strings.Join(names, " or ")
}

// MarshalText is as with Modes: "the old root or both roots".
func (s Stores) MarshalText() ([]byte, error) {
	if s == AnyStore {
		return []byte(anyText), nil
	}
	return []byte(s.String()), nil
}

// UnmarshalText reads what MarshalText writes.
func (s *Stores) UnmarshalText(text []byte) error {
	*s = 0
	return alternatives(text, func() { *s = AnyStore }, func(name string) bool {
		for _, roots := range (^Stores(0)).each() {
			if name == roots.String() {
				*s |= Trusting(roots)
				return true
			}
		}
		return false
	})
}

// holding is what the stores become with one of the anchors more, or with several
// of them where that is not known better.
func (s Stores) holding(anchors Roots) Stores {
	var out Stores
	for _, roots := range s.each() {
		for more := anchors; more != 0; more = (more - 1) & anchors {
			out |= Trusting(roots | more)
		}
	}
	return out
}

// without says that one of the stores may hold none of the roots.
func (s Stores) without(roots Roots) bool {
	for left := s; left != 0; left &= left - 1 {
		if Roots(bits.TrailingZeros8(uint8(left)))&roots == 0 {
			return true
		}
	}
	return false
}

// dropping is what the stores become without an anchor.
func (s Stores) dropping(anchor Roots) Stores {
	var out Stores
	for left := s; left != 0; left &= left - 1 {
		out |= Trusting(Roots(bits.TrailingZeros8(uint8(left))) &^ anchor)
	}
	return out
}
