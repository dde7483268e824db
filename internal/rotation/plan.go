package rotation

import (
	"fmt"
	"slices"
	"strings"
)

// PlanMember is a member as a plan sees it: the names of the CA that issued what
// it presents, and of those that it trusts.
type PlanMember struct {
	Name     string
	Presents string
	Trusts   []string
	// OwnTrust and Chain are for a plan of the root. OwnTrust says that it trusts
	// the ca.crt of its own certificate, as the server always does. Chain is what it
	// may present; none if that is of no mode, and then nobody is sure to accept it.
	OwnTrust bool
	Chain    Modes
}

// PlanPhase is one phase of a plan: who presents and trusts what by its end, and
// which handshakes would fail at any moment of it.
type PlanPhase struct {
	Phase   Phase     `json:"phase"`
	Members []PlanRow `json:"members"`
	Broken  []string  `json:"broken,omitempty"`
}

// PlanRow is the server, or agents that are alike.
type PlanRow struct {
	Member   string `json:"member"`
	Presents string `json:"presents"`
	Trusts   string `json:"trusts"`
}

// mostNamed is how many agents a row names; of more, it says how many they are.
const mostNamed = 5

// IntermediatePlan is who presents and who trusts what in each phase of a
// rotation from one intermediate to another of the same root, beginning with
// how it is. Vault may give a member the new one from the moment that its role
// is moved, so in the phase that moves it the member presents either. With a role
// that all share, everybody's is moved with the canary's; who is broken by that
// is broken in a later phase too, and the plan no more fit to be begun.
func IntermediatePlan(server PlanMember, agents []PlanMember, canary []string, root, from, to string) []PlanPhase {
	moved := map[Phase]func(name string, isServer bool) bool{
		PhaseCanary: func(name string, isServer bool) bool { return !isServer && slices.Contains(canary, name) },
		PhaseServer: func(_ string, isServer bool) bool { return isServer },
		PhaseFleet:  func(_ string, isServer bool) bool { return !isServer },
	}
	issuedBy := func(ca string) presented { return presented{ca, []string{ca, root}} }
	all := holdings(server, agents)
	for i := range all {
		all[i].presents = []presented{issuedBy(all[i].member.Presents)}
	}
	var plan []PlanPhase
	for _, phase := range []Phase{PhasePreflight, PhaseStage, PhaseCanary, PhaseServer, PhaseFleet, PhaseRetire} {
		for i := range all {
			if moves := moved[phase]; moves != nil && moves(all[i].member.Name, i == 0) {
				all[i].present(issuedBy(to))
			}
		}
		plan = append(plan, planPhase(phase, all, root, from))
	}
	return plan
}

// PlanNames are what a plan calls the CAs of a rotation of the root, in the
// members' trust too.
type PlanNames struct {
	OldRoot, NewRoot, Bridge         string
	OldIntermediate, NewIntermediate string
}

// RootPlan is who presents and who trusts what in each phase of a rotation of the
// root, beginning with how it is. In a phase that has Vault return another chain,
// each member presents that or the one before, and trusts the ca.crt of either if
// it has no bundle: who goes first is no matter, since any may be renewed at any
// moment.
func RootPlan(server PlanMember, agents []PlanMember, of PlanNames) []PlanPhase {
	return rootPlan(rootSteps, server, agents, of)
}

// rootStep is what a phase changes of everybody: the mode that Vault is in, or the
// bundles of those agents that have one.
type rootStep struct {
	phase     Phase
	mode      Mode // Old: none is changed
	add, drop Roots
}

var rootSteps = []rootStep{
	{phase: PhasePreflight},
	{phase: PhasePrepare},
	{phase: PhaseTrust, add: NewRoot},
	{phase: PhaseBridge, mode: Bridged},
	{phase: PhasePivot, mode: Pivot},
	{phase: PhaseCommit, mode: Final},
	{phase: PhaseContract, drop: OldRoot},
	{phase: PhaseRetire},
}

func rootPlan(steps []rootStep, server PlanMember, agents []PlanMember, of PlanNames) []PlanPhase {
	server.OwnTrust = true
	all := holdings(server, agents)
	for i, m := range all {
		for mode := range Mode(modes) {
			if m.member.Chain.Has(mode) {
				all[i].presents = append(all[i].presents, of.chain(mode))
			}
		}
		if m.member.Chain == 0 {
			all[i].presents = []presented{{m.member.Presents, nil}}
		}
	}
	var plan []PlanPhase
	for _, step := range steps {
		for i := range all {
			h := &all[i]
			if step.mode != Old && !h.member.Chain.beyond(step.mode) { // one that is resumed may be
				h.present(of.chain(step.mode))
				if h.member.OwnTrust {
					h.trust(of.anchor(step.mode))
				}
			}
			if !h.member.OwnTrust {
				h.trust(of.changed(h.trusts[0], step.add, step.drop))
			}
		}
		plan = append(plan, planPhase(step.phase, all, of.OldRoot, of.OldIntermediate))
	}
	return plan
}

// beyond says that all of them come after a mode.
func (s Modes) beyond(mode Mode) bool { return s != 0 && s&(1<<(mode+1)-1) == 0 }

// chain is what is presented in a mode.
func (n PlanNames) chain(mode Mode) presented {
	words := n.NewIntermediate
	var leads []string
	switch mode {
	case Old, Linked:
		words = n.OldIntermediate
		leads = []string{n.OldIntermediate} // who trusts it itself takes it now
	case Bridged, Pivot:
		words += ", " + n.Bridge
	}
	for _, root := range []Roots{OldRoot, NewRoot, Itself} {
		if mode.LeadsTo()&root != 0 {
			leads = append(leads, n.of(root)...)
		}
	}
	return presented{words, leads}
}

// anchor is ca.crt in a mode.
func (n PlanNames) anchor(mode Mode) []string {
	if mode == Pivot {
		return []string{n.Bridge}
	}
	return n.of(mode.Anchor())[:1]
}

// of are the certificates that count as a root.
func (n PlanNames) of(root Roots) []string {
	return map[Roots][]string{OldRoot: {n.OldRoot}, NewRoot: {n.NewRoot, n.Bridge}, Itself: {n.NewIntermediate}}[root]
}

// changed is a bundle with a root more, or less.
func (n PlanNames) changed(bundle []string, add, drop Roots) []string {
	bundle = slices.DeleteFunc(slices.Clone(bundle), func(name string) bool { return slices.Contains(n.of(drop), name) })
	if add != 0 && !slices.ContainsFunc(bundle, func(name string) bool { return slices.Contains(n.of(add), name) }) {
		bundle = append(bundle, n.of(add)[0])
	}
	return bundle
}

// holding is what a member presents and trusts in a phase: any of them at some
// moment of it, and the last by its end.
type holding struct {
	member   PlanMember
	presents []presented
	trusts   [][]string
}

// presented is a chain, and the names of those anchors under which it verifies.
type presented struct {
	words string
	leads []string
}

// holdings are those of the server and then of the agents, with what they trust.
func holdings(server PlanMember, agents []PlanMember) []holding {
	all := []holding{{member: server, trusts: [][]string{server.Trusts}}}
	for _, agent := range agents {
		all = append(all, holding{member: agent, trusts: [][]string{agent.Trusts}})
	}
	return all
}

// present and trust say what the member comes to have in the phase.

func (h *holding) present(chain presented) {
	if !slices.ContainsFunc(h.presents, func(p presented) bool { return p.words == chain.words }) {
		h.presents = append(h.presents, chain)
	}
}

func (h *holding) trust(anchors []string) {
	if !slices.ContainsFunc(h.trusts, func(t []string) bool { return slices.Equal(t, anchors) }) {
		h.trusts = append(h.trusts, anchors)
	}
}

// planPhase judges a phase and goes to its end, at which everybody has the last
// of what came.
func planPhase(phase Phase, all []holding, root, from string) PlanPhase {
	p := PlanPhase{Phase: phase, Broken: brokenPairs(all, root, from)}
	for i := range all {
		h := &all[i]
		h.presents, h.trusts = h.presents[len(h.presents)-1:], h.trusts[len(h.trusts)-1:]
	}
	p.Members = rows(all)
	return p
}

// brokenPairs are the handshakes between the server and an agent that would
// fail at some moment.
func brokenPairs(all []holding, root, from string) []string {
	var alike groups
	judge := func(agent, presenter, verifier int, words func(agent, ca, trust string) string) {
		for _, chain := range all[presenter].presents {
			for _, trusts := range all[verifier].trusts {
				if slices.ContainsFunc(trusts, func(name string) bool { return slices.Contains(chain.leads, name) }) {
					continue
				}
				trust := list(trusts)
				if slices.Contains(trusts, from) {
					trust += " itself and not the root " + root
				}
				alike.add(all[agent].member.Name, func(agent string) string { return words(agent, chain.words, trust) })
			}
		}
	}
	server := all[0].member.Name
	const words = "a certificate of %s from %s does not verify at %s: the trust there is %s"
	for agent := 1; agent < len(all); agent++ {
		judge(agent, 0, agent, func(agent, ca, trust string) string { return fmt.Sprintf(words, ca, server, agent, trust) })
		judge(agent, agent, 0, func(agent, ca, trust string) string { return fmt.Sprintf(words, ca, agent, server, trust) })
	}
	var broken []string
	for _, g := range alike {
		broken = append(broken, g.words(named(g.names)))
	}
	return broken
}

// groups are agents of whom the same is to be said, but for the name.
type groups []group

type group struct {
	names []string
	words func(names string) string
}

func (g *groups) add(name string, words func(names string) string) {
	for i := range *g {
		if other := &(*g)[i]; other.words("") == words("") {
			other.names = append(other.names, name)
			return
		}
	}
	*g = append(*g, group{[]string{name}, words})
}

func list(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, " and ")
}

// named is what to call agents that are alike.
func named(names []string) string {
	if len(names) > mostNamed {
		return fmt.Sprintf("%d clusters (%s to %s)", len(names), names[0], names[len(names)-1])
	}
	return strings.Join(names, ", ")
}

// rows puts agents that are alike into one row; the server has one of its own.
func rows(all []holding) []PlanRow {
	row := func(h holding) PlanRow {
		return PlanRow{Presents: h.presents[0].words, Trusts: list(h.trusts[0])}
	}
	out := []PlanRow{row(all[0])}
	out[0].Member = all[0].member.Name
	var alike [][]string
	for _, h := range all[1:] {
		r := row(h)
		at := slices.IndexFunc(out[1:], func(other PlanRow) bool { return other.Presents == r.Presents && other.Trusts == r.Trusts })
		if at < 0 {
			at = len(alike)
			out, alike = append(out, r), append(alike, nil)
		}
		alike[at] = append(alike[at], h.member.Name)
	}
	for i, names := range alike {
		out[i+1].Member = named(names)
	}
	return out
}
