package rotation

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

// mayLack says that the member may not trust the root: now, or once it has
// loaded what is stored, or that which is in flight.
func (m Member) mayLack(root Roots) bool {
	if m.OwnTrust {
		return (m.LoadedAnchor | (m.Chain.InFlight | m.Chain.Stored).anchors()).without(root)
	}
	return (m.Bundle.Stored | m.Bundle.Loaded).without(root)
}

// Fleet is a mesh in the midst of a rotation.
type Fleet struct {
	// Mode is which way up the new intermediate's chain has in Vault.
	Mode   Mode
	Server Member
	Agents []Member
}

// JoinsNew says whether Vault is to sign for a member that joins with the new
// intermediate. With a bundle, it begins with both roots.
func (f Fleet) JoinsNew() bool { return len(bridgedOrLate(f, Step{})) == 0 }

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
	// ToBridged, ToPivot and ToFinal give the new intermediate that chain.
	ToBridged
	ToPivot
	ToFinal
	// AddNew and AddOld put a root into a member's bundle; DropOld and DropNew
	// take it out.
	AddNew
	AddOld
	DropOld
	DropNew
	// Rejoin has a quarantined member count again.
	Rejoin
)

func (s Step) String() string {
	switch s.Kind {
	case ToBridged, ToPivot, ToFinal:
		return "the new intermediate's chain becomes " + [...]string{ToBridged: "bridged", ToPivot: "pivot", ToFinal: "final"}[s.Kind]
	case UseNew:
		return "Vault signs for " + s.Member + " with the new intermediate"
	case UseOld:
		return "Vault signs for " + s.Member + " with the previous intermediate"
	case AddNew, AddOld:
		return [...]string{AddNew: "the new root", AddOld: "the old root"}[s.Kind] + " is put into the bundle of " + s.Member
	case DropOld, DropNew:
		return [...]string{DropOld: "the old root", DropNew: "the new root"}[s.Kind] + " is taken out of the bundle of " + s.Member
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
	// MayLack: it may not trust the root, or no more after its next restart.
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
	return r.Member + " may not trust " + r.Root.String()
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

// Standard are the gates of a rotation and of its rollback. Putting a root into a
// bundle has none.
var Standard = Gates{
	UseNew:    {bridgedOrLate},
	UseOld:    {trustingOld},
	ToBridged: {notFinal},
	ToPivot:   {notOld},
	ToFinal:   {trustingNew},
	DropOld:   {serverNotOld},
	DropNew:   {serverNotFinal},
	Rejoin:    {inPresentMode, trustingServer},
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

// notOld: who trusts the new root alone, as everybody does from pivot on, does
// not accept the old chain. On the way back from final nobody has it, and who
// does not answer is in nobody's way.
func notOld(f Fleet, _ Step) []Reason {
	if f.Mode == Final {
		return nil
	}
	return none(f.counting(), Old)
}

// notFinal: who trusts the old root alone, as everybody does again in bridged,
// does not accept the final chain.
func notFinal(f Fleet, _ Step) []Reason { return none(f.counting(), Final) }

// trustingNew: the final chain leads to the new root alone.
func trustingNew(f Fleet, _ Step) []Reason { return trusting(f.counting(), NewRoot) }

// trustingOld: the old chain leads to the old root alone.
func trustingOld(f Fleet, _ Step) []Reason { return trusting(f.counting(), OldRoot) }

// The server presents its chain to the agent whose bundle is cut.

func serverNotOld(f Fleet, _ Step) []Reason   { return none([]Member{f.Server}, Old) }
func serverNotFinal(f Fleet, _ Step) []Reason { return none([]Member{f.Server}, Final) }

// A quarantined member comes back at once to the mode that Vault is in, which is
// one for all, and trusts whatever the server may present by then.

func inPresentMode(f Fleet, step Step) []Reason {
	var reasons []Reason
	for m := Old; m <= Final; m++ {
		if m != f.Mode {
			reasons = append(reasons, none(f.member(step.Member), m)...)
		}
	}
	return reasons
}

func trustingServer(f Fleet, step Step) []Reason {
	var reasons []Reason
	for _, m := range f.member(step.Member) {
		roots := []Roots{OldRoot, NewRoot}
		if m.OwnTrust {
			roots = []Roots{f.Mode.Anchor()}
		}
		for _, root := range roots {
			reasons = append(reasons, trusting([]Member{m}, root)...)
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

// trusting: everybody trusts the root, now and after the next reload.
func trusting(members []Member, root Roots) []Reason {
	var reasons []Reason
	for _, m := range members {
		if m.mayLack(root) {
			reasons = append(reasons, Reason{Member: m.Name, Cause: MayLack, Root: root})
		}
	}
	return reasons
}
