package rotation

import (
	"fmt"
)

// The model: a server and agents in every state that they can come into, when
// cert-manager renews whenever it likes, what it has asked for is written
// whenever it is written, processes reload late or never and restart at any
// moment, agents join, are quarantined and come back, and our steps are taken as
// soon as the gates allow them, forward or back. It is walked whole; a state in
// which some handshake fails is a hole in the gates.
//
// A step that may be taken may as well not be. So a procedure that crashes, one
// that cannot see a member and waits for more, and one that goes on after a crash
// from what it observes are in it: they do what any other may, or less.

// noMode is the mode of a certificate that is not there.
const noMode = Mode(modes)

// truth is how it really is with a member.
type truth struct {
	// ownTrust says that it trusts the ca.crt of its own certificate, as the
	// server always does, and not a bundle.
	ownTrust bool
	// newIssuer says that its role signs with the new intermediate.
	newIssuer bool
	// since are the modes that Vault has been in since the stored certificate was
	// signed, that which signed it included.
	since Modes
	// flying is what Vault has signed and nobody has stored yet, sinceFlying the
	// modes from then on.
	flying      Mode
	sinceFlying Modes
	stored      Mode
	// chain and anchor are loaded, the anchor out of ca.crt or the bundle.
	chain  Mode
	anchor Roots
	// bundle is stored; none with a trust of its own.
	bundle      Roots
	quarantined bool
	// out is who is no member yet; nothing else is said of it.
	out bool
}

var nobody = truth{out: true}

// model is the rules. Everybody reloads its chain and its trust, each by itself:
// who reloads both at once, its chain alone or nothing does a part of that.
type model struct {
	gates  Gates
	agents int
	// kinds are those of agents that there are, each by its ownTrust: an agent of
	// any of them is there, or joins.
	kinds []bool
	// previous is what the previous intermediate issues, chains what the new one
	// may be set to.
	previous Mode
	chains   []Mode
	// lean leaves out of a member what no gate and no handshake depends on; see
	// lean_test.go.
	lean bool
	// mistakes is what the gates take a member for, if they are wrong on purpose.
	mistakes func(server bool, m *Member)
	// again: a resumed procedure sets a mode that it remembers.
	again bool
}

// ofRoot is a rotation of the root.
func ofRoot() model {
	return model{gates: Standard, agents: 1, kinds: bothKinds, previous: Old, chains: []Mode{Bridged, Pivot, Final}}
}

// ofIntermediate is a rotation of an intermediate under a root that stays, which
// ends in pinned.
func ofIntermediate() model {
	return model{gates: Standard, agents: 1, kinds: bothKinds, previous: Linked, chains: []Mode{Final, Pinned}}
}

// withAll has all modes that there are, such as pinned out of pivot: an emergency in
// the midst of a rotation of the root.
func (m model) withAll() model {
	m.chains = []Mode{Bridged, Pivot, Final, Pinned}
	return m
}

var bothKinds = []bool{true, false}

// anchors are all that a bundle may hold.
func (m model) anchors() Roots {
	all := m.previous.Anchor()
	for _, mode := range m.chains {
		all |= mode.Anchor()
	}
	return all
}

// before is a member as the rotation finds it: the new intermediate is staged and
// signs for nobody.
func (m model) before(ownTrust bool) truth {
	t := truth{ownTrust: ownTrust, since: In(m.previous), flying: noMode, stored: m.previous, chain: m.previous, anchor: m.previous.Anchor()}
	if !ownTrust {
		t.bundle = m.previous.Anchor()
	}
	return m.shown(t)
}

// joins is a member that is in the inventory, as it is to be before its first
// certificate is issued.
func (m model) joins(ownTrust, newIssuer bool, bundle Roots, mode Mode) truth {
	t := truth{ownTrust: ownTrust, newIssuer: newIssuer, flying: noMode, stored: noMode, chain: noMode}
	t.since = In(m.issues(t, mode))
	if !ownTrust {
		t.bundle = bundle
	}
	return m.shown(t)
}

// shown is the truth as this model has it.
func (m model) shown(t truth) truth {
	if m.lean {
		return leaned(t)
	}
	return t
}

// issues is what Vault signs for a member now.
func (m model) issues(t truth, mode Mode) Mode {
	if t.newIssuer {
		return mode
	}
	return m.previous
}

// seen is the member as our gates see it. What is loaded is the truth: nobody
// can know more, and who knows less waits for more.
func (m model) seen(t truth) Member {
	seen := Member{
		OwnTrust: t.ownTrust, Quarantined: t.quarantined,
		Chain: Copies[Modes]{InFlight: t.since, Stored: only(t.stored), Loaded: m.presents(t)},
	}
	if m.lean {
		seen.Chain.Stored = t.since
	}
	if t.ownTrust {
		seen.LoadedAnchor = m.trusts(t)
	} else {
		seen.Bundle = Copies[Stores]{Stored: Trusting(t.bundle), Loaded: m.trusts(t)}
	}
	return seen
}

func only(m Mode) Modes {
	if m == noMode {
		return 0
	}
	return In(m)
}

// presents are the chains with which its handshakes are, one of them at a time;
// trusts the trust stores.
func (m model) presents(t truth) Modes {
	if m.lean {
		return leanPresents(t)
	}
	return only(t.chain)
}

func (m model) trusts(t truth) Stores {
	switch {
	case m.lean:
		return leanTrusts(t)
	case t.chain == noMode:
		return 0
	}
	return Trusting(t.anchor)
}

// accepts are the modes whose chains verify under all that it may trust.
func (m model) accepts(t truth) Modes {
	accepted := AnyMode
	for store := range Roots(8) {
		for mode := range Mode(modes) {
			if m.trusts(t)&Trusting(store) != 0 && mode.LeadsTo()&store == 0 {
				accepted &^= In(mode)
			}
		}
	}
	return accepted
}

// broken says which handshake of the server and an agent fails, or nothing. It
// has a place for the agent's name.
func (m model) broken(server, agent truth) string {
	switch {
	case agent.out, agent.quarantined:
		return ""
	case m.presents(server)&^m.accepts(agent) != 0:
		return fmt.Sprintf("%%s does not accept the server's %s chain", m.presents(server)&^m.accepts(agent))
	case m.presents(agent)&^m.accepts(server) != 0:
		return fmt.Sprintf("the server does not accept the %s chain of %%s", m.presents(agent)&^m.accepts(server))
	}
	return ""
}

// change is what may become of a member, in words with a place for its name.
type change struct {
	what string
	to   truth
}

type changes []change

// add is for what is a change.
func (c *changes) add(what string, from, to truth) {
	if to != from {
		*c = append(*c, change{"%s " + what, to})
	}
}

// nature is what happens to a member by itself.
func (m model) nature(t truth, mode Mode) changes {
	switch {
	case t.out:
		return nil
	case m.lean:
		return m.leanNature(t, mode)
	}
	var out changes
	to := t
	if t.flying == noMode {
		to.flying = m.issues(t, mode)
		to.sinceFlying = In(to.flying)
		out.add("is issued a certificate, "+to.flying.String(), t, to)
	} else {
		to.stored, to.since, to.flying, to.sinceFlying = t.flying, t.sinceFlying, noMode, 0
		out.add("has it written into its Secret: "+to.stored.String(), t, to)
	}
	if t.stored == noMode {
		return out // no process without a certificate
	}
	trust := t.bundle
	if t.ownTrust {
		trust = t.stored.Anchor()
	}
	to = t
	to.chain, to.anchor = t.stored, trust
	out.add("restarts", t, to)
	if t.chain == noMode {
		return out
	}
	to = t
	to.chain = t.stored
	out.add("reloads its chain", t, to)
	to = t
	to.anchor = trust
	out.add("reloads its trust", t, to)
	return out
}

// ours are our steps on a member, which the gates may forbid.
func (m model) ours(t truth, mode Mode) map[StepKind]truth {
	out := map[StepKind]truth{}
	take := func(kind StepKind, to truth) {
		if to = m.shown(to); to != t {
			out[kind] = to
		}
	}
	if t.out {
		return nil
	}
	role := t
	role.newIssuer = !t.newIssuer
	if role = m.signed(role, mode); role.newIssuer {
		take(UseNew, role)
	} else {
		take(UseOld, role)
	}
	if m.lean && t.quarantined {
		return out // leanReturns
	}
	for kind := AddNew; kind <= DropItself && !t.ownTrust; kind++ {
		to := t
		switch anchor := kind.anchor(); {
		case anchor&m.anchors() == 0:
			continue
		case kind < DropOld:
			to.bundle |= anchor
		default:
			to.bundle &^= anchor
		}
		if m.lean && t.anchor == 0 {
			to.anchor = t.bundle // still loaded
		}
		take(kind, to)
	}
	if t.quarantined {
		to := t
		to.quarantined = false
		take(Rejoin, to)
	}
	return out
}

// signed is a member when Vault begins to sign otherwise for it: there may now be
// the one more in flight.
func (m model) signed(t truth, mode Mode) truth {
	if t.out {
		return t
	}
	t.since |= In(m.issues(t, mode))
	if t.flying != noMode {
		t.sinceFlying |= In(m.issues(t, mode))
	}
	return m.shown(t)
}

// quarantine is a member that does not count any more.
func (m model) quarantine(t truth) truth {
	t.quarantined = true
	return m.shown(t)
}

// toward is the step to a mode.
func toward(mode Mode) StepKind {
	return [...]StepKind{Bridged: ToBridged, Pivot: ToPivot, Final: ToFinal, Pinned: ToPinned}[mode]
}
