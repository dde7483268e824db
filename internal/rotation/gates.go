package rotation

import "strings"

// Copies are the three states of what a member holds, which differ for as long
// as nobody makes sure that they do not.
type Copies[T any] struct {
	// InFlight is what Vault may have signed since the stored one was signed: an
	// issuance that cert-manager has begun is written whenever it is written. It
	// is the modes that Vault has been in since then, the present one included.
	InFlight T
	// Stored is in the Secret. A member whose first certificate is awaited has
	// none.
	Stored T
	// Loaded is in the process. The server's is read off a handshake, of every
	// replica. An agent's is the stored one if all its Pods were created after
	// the Secret's last write, or if it reloads and has had the time for it;
	// else nothing is known of it.
	Loaded T
}

// Member is the server or an agent, as far as it is known.
type Member struct {
	Name string
	// Chain is what it presents.
	Chain Copies[Modes]
	// OwnTrust says that it trusts the ca.crt of its own certificate, as the
	// server always does, and not a bundle.
	OwnTrust bool
	// Bundle is its trust store, if it has one of its own; nothing is in flight.
	Bundle Copies[Stores]
	// LoadedAnchor is, with OwnTrust, the ca.crt in the process, which may be of
	// another certificate than the chain there.
	LoadedAnchor Stores
	// Quarantined: somebody has said by name that it does not count.
	Quarantined bool
}

// mayLack says that the member may trust none of the roots: now, or once it has
// loaded what is stored, or that which is in flight.
func (m Member) mayLack(roots Roots) bool {
	if m.OwnTrust {
		return (m.LoadedAnchor | (m.Chain.InFlight | m.Chain.Stored).Anchors()).without(roots)
	}
	return (m.Bundle.Stored | m.Bundle.Loaded).without(roots)
}

// mayHold are the modes of the chains that the member may present, now or later.
func (m Member) mayHold() Modes { return m.Chain.InFlight | m.Chain.Stored | m.Chain.Loaded }

// Fleet is a mesh in the midst of a rotation.
type Fleet struct {
	// Mode is which way up the new intermediate's chain has in Vault.
	Mode Mode
	// Previous is what the previous intermediate's chain is: Old, or Linked where
	// the root stays.
	Previous Mode
	Server   Member
	Agents   []Member
}

// JoinsNew says whether Vault is to sign for a member that joins with the new
// intermediate. With a bundle, it begins with JoinsTrusting.
func (f Fleet) JoinsNew() bool { return len(Standard.Waits(f, Step{Kind: UseNew})) == 0 }

// JoinsTrusting is the bundle with which a member joins: whatever the server may
// present by then leads to one of it, and to no more than is needed.
func (f Fleet) JoinsTrusting() Roots {
	switch {
	case f.Previous == Old:
		return OldRoot | NewRoot
	case f.Mode == Pinned && f.JoinsNew():
		return Itself
	}
	return NewRoot
}

// Step is one change.
type Step struct {
	Kind StepKind
	// Member is whose, where it is not everybody's.
	Member string
}

// StepKind is what a step changes.
type StepKind uint8

const (
	// UseNew has a member's role sign with the new intermediate; UseOld with the
	// previous one.
	UseNew StepKind = iota
	UseOld
	// ToBridged, ToPivot, ToFinal and ToPinned give the new intermediate that
	// chain.
	ToBridged
	ToPivot
	ToFinal
	ToPinned
	// AddNew, AddOld and AddItself put an anchor into a member's bundle; DropOld,
	// DropNew and DropItself take it out.
	AddNew
	AddOld
	AddItself
	DropOld
	DropNew
	DropItself
	// Rejoin has a quarantined member count again.
	Rejoin
)

// anchor is what the step adds or drops.
func (k StepKind) anchor() Roots {
	return [Rejoin + 1]Roots{AddNew: NewRoot, DropNew: NewRoot, AddOld: OldRoot, DropOld: OldRoot, AddItself: Itself, DropItself: Itself}[k]
}

func (s Step) String() string {
	switch s.Kind {
	case ToBridged, ToPivot, ToFinal, ToPinned:
		return "the new intermediate's chain becomes " + [...]string{ToBridged: "bridged", ToPivot: "pivot", ToFinal: "final", ToPinned: "pinned"}[s.Kind]
	case UseNew:
		return "Vault signs for " + s.Member + " with the new intermediate"
	case UseOld:
		return "Vault signs for " + s.Member + " with the previous intermediate"
	case AddNew, AddOld, AddItself:
		return s.Kind.anchor().String() + " is put into the bundle of " + s.Member
	case DropOld, DropNew, DropItself:
		return s.Kind.anchor().String() + " is taken out of the bundle of " + s.Member
	}
	return s.Member + " counts again"
}

// Reason is for what a step waits.
type Reason struct {
	Member string
	Cause  Cause
	// Mode is of a cause that is a chain, Root of one that is a trust.
	Mode Mode
	Root Roots
}

// Cause is what is the matter with a member.
type Cause uint8

const (
	// MayGet: such a chain may be in flight; MayStore and MayPresent: it is, or
	// may be, stored or loaded.
	MayGet Cause = iota
	MayStore
	MayPresent
	// MayLack: it may trust none of the roots, or no more after its next restart.
	MayLack
)

func (r Reason) String() string {
	switch r.Cause {
	case MayGet:
		return r.Member + " may still be issued the " + r.Mode.String() + " chain: Vault has signed such a one for it since its certificate was issued, or does so now"
	case MayStore:
		return r.Member + " has the " + r.Mode.String() + " chain in its Secret"
	case MayPresent:
		return r.Member + " may still present the " + r.Mode.String() + " chain"
	}
	return r.Member + " may not trust " + strings.ReplaceAll(r.Root.String(), " and ", " nor ")
}

// condition says for what a step waits.
type condition func(f Fleet, step Step) []Reason

// Gates are the conditions of every step; each is necessary, and all together
// are enough for every handshake, whatever is renewed, reloaded or restarted
// in between, and however long after.
//
// That only neighbouring modes are gone to needs no condition of its own: what
// Vault issues now is in flight everywhere, so that what is two modes away is
// in the way of itself.
type Gates map[StepKind][]condition

// Standard are the gates of a rotation, of pinning, and of going back. Putting an
// anchor into a bundle has none.
var Standard = Gates{
	UseNew:     {bridgedOrLate, linkedFirst},
	UseOld:     {trustingPrevious},
	ToBridged:  {notFinal, notLinked},
	ToPivot:    {notOld},
	ToFinal:    {trustingNew},
	ToPinned:   {trustingNew, notLinked},
	DropOld:    {serverVerifies},
	DropNew:    {serverVerifies},
	DropItself: {serverVerifies},
	Rejoin:     {inPresentMode, trustingServer},
}

// Waits says for what the step has to wait: nothing if it is safe now.
func (g Gates) Waits(f Fleet, step Step) []Reason {
	var reasons []Reason
	for _, c := range g[step.Kind] {
		reasons = append(reasons, c(f, step)...)
	}
	return reasons
}

// counting are the members that count.
func (f Fleet) counting() []Member {
	all := make([]Member, 0, len(f.Agents)+1)
	for _, m := range append([]Member{f.Server}, f.Agents...) {
		if !m.Quarantined {
			all = append(all, m)
		}
	}
	return all
}

// member is the one of that name; nobody, which holds nothing, if there is none.
func (f Fleet) member(name string) []Member {
	for _, m := range append([]Member{f.Server}, f.Agents...) {
		if m.Name == name {
			return []Member{m}
		}
	}
	return nil
}

// bridgedOrLate: the old chain goes with the bridged one alone. Who comes
// late, new or back from quarantine, goes to the mode that the others are in;
// the server tells, for it is never quarantined.
func bridgedOrLate(f Fleet, _ Step) []Reason {
	if f.Mode == Bridged {
		return nil
	}
	return none([]Member{f.Server}, Old)
}

// linkedFirst: the linked chain goes with the final one, and with pivot. Who has
// the new intermediate pinned, or trusts the old root again, does not accept it.
func linkedFirst(f Fleet, _ Step) []Reason {
	if f.Mode == Pivot || f.Mode == Final {
		return nil
	}
	return none([]Member{f.Server}, Linked)
}

// notLinked: nor may anybody else have it then.
func notLinked(f Fleet, _ Step) []Reason { return none(f.counting(), Linked) }

// notOld: who trusts the new root alone, as everybody does from pivot on, does
// not accept the old chain. On the way back from final nobody has it, and who
// does not answer is in nobody's way.
func notOld(f Fleet, _ Step) []Reason {
	if f.Mode == Final || f.Mode == Pinned {
		return nil
	}
	return none(f.counting(), Old)
}

// notFinal: who trusts the old root alone, as everybody does again in bridged,
// accepts neither the final chain nor the pinned, which is the same but for
// ca.crt.
func notFinal(f Fleet, _ Step) []Reason {
	return append(none(f.counting(), Final), none(f.counting(), Pinned)...)
}

// trustingNew: the final and the pinned chain lead to the new root and to the
// intermediate alone.
func trustingNew(f Fleet, _ Step) []Reason { return trusting(f.counting(), Final.LeadsTo()) }

// trustingPrevious: the previous chain leads to its root alone.
func trustingPrevious(f Fleet, _ Step) []Reason { return trusting(f.counting(), f.Previous.LeadsTo()) }

// serverVerifies: the server's chain leads to what is left in the bundle.
func serverVerifies(f Fleet, step Step) []Reason {
	var reasons []Reason
	for _, m := range f.member(step.Member) {
		left := m.Bundle.Stored.dropping(step.Kind.anchor())
		for mode := range Mode(modes) {
			if left.without(mode.LeadsTo()) {
				reasons = append(reasons, none([]Member{f.Server}, mode)...)
			}
		}
	}
	return reasons
}

// A quarantined member comes back at once to the mode that Vault is in, which is
// one for all, and trusts whatever the server may present by then.

func inPresentMode(f Fleet, step Step) []Reason {
	var reasons []Reason
	for m := range Mode(modes) {
		if m != f.Mode {
			reasons = append(reasons, none(f.member(step.Member), m)...)
		}
	}
	return reasons
}

func trustingServer(f Fleet, step Step) []Reason {
	var reasons []Reason
	for mode := range Mode(modes) {
		if f.Server.mayHold().Has(mode) {
			reasons = append(reasons, trusting(f.member(step.Member), mode.LeadsTo())...)
		}
	}
	return reasons
}

// none: nobody may hold the mode.
func none(members []Member, mode Mode) []Reason {
	var reasons []Reason
	for _, m := range members {
		for cause, modes := range []Modes{MayGet: m.Chain.InFlight, MayStore: m.Chain.Stored, MayPresent: m.Chain.Loaded} {
			if modes.Has(mode) {
				reasons = append(reasons, Reason{Member: m.Name, Cause: Cause(cause), Mode: mode})
			}
		}
	}
	return reasons
}

// trusting: everybody trusts one of the roots, now and after the next reload.
func trusting(members []Member, roots Roots) []Reason {
	var reasons []Reason
	for _, m := range members {
		if m.mayLack(roots) {
			reasons = append(reasons, Reason{Member: m.Name, Cause: MayLack, Root: roots})
		}
	}
	return reasons
}
