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
	members := append([]PlanMember{server}, agents...)
	presents := make([][]string, len(members))
	for i, m := range members {
		presents[i] = []string{m.Presents}
	}
	var plan []PlanPhase
	for _, phase := range []Phase{PhasePreflight, PhaseStage, PhaseCanary, PhaseServer, PhaseFleet, PhaseRetire} {
		for i, m := range members {
			if moves := moved[phase]; moves != nil && moves(m.Name, i == 0) && !slices.Contains(presents[i], to) {
				presents[i] = append(presents[i], to)
			}
		}
		plan = append(plan, PlanPhase{Phase: phase, Broken: brokenPairs(members, presents, root, from)})
		for i := range members { // by the end of the phase, each has one
			presents[i] = presents[i][len(presents[i])-1:]
		}
		plan[len(plan)-1].Members = rows(members, presents)
	}
	return plan
}

// brokenPairs are the handshakes between the server and an agent that would
// fail: a chain leads to its intermediate and to the root.
func brokenPairs(members []PlanMember, presents [][]string, root, from string) []string {
	var alike groups
	judge := func(agent, presenter, verifier int, words func(agent, ca, trust string) string) {
		for _, ca := range presents[presenter] {
			trusts := members[verifier].Trusts
			if slices.Contains(trusts, root) || slices.Contains(trusts, ca) {
				continue
			}
			trust := list(trusts)
			if slices.Contains(trusts, from) {
				trust += " itself and not the root " + root
			}
			alike.add(members[agent].Name, func(agent string) string { return words(agent, ca, trust) })
		}
	}
	server := members[0].Name
	const words = "a certificate of %s from %s does not verify at %s: the trust there is %s"
	for agent := 1; agent < len(members); agent++ {
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
func rows(members []PlanMember, presents [][]string) []PlanRow {
	server := members[0]
	out := []PlanRow{{server.Name, presents[0][0], list(server.Trusts)}}
	var alike [][]string
	for i, m := range members[1:] {
		row := PlanRow{Presents: presents[i+1][0], Trusts: list(m.Trusts)}
		at := slices.IndexFunc(out[1:], func(r PlanRow) bool { return r.Presents == row.Presents && r.Trusts == row.Trusts })
		if at < 0 {
			at = len(alike)
			out, alike = append(out, row), append(alike, nil)
		}
		alike[at] = append(alike[at], m.Name)
	}
	for i, names := range alike {
		out[i+1].Member = named(names)
	}
	return out
}
