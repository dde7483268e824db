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
	Phase   Phase
	Members []PlanRow
	Broken  []string
}

// PlanRow is the server, or agents that are alike.
type PlanRow struct{ Member, Presents, Trusts string }

// mostNamed is how many agents a row names; of more, it says how many they are.
const mostNamed = 5

// IntermediatePlan is who presents and who trusts what in each phase of a
// rotation from one intermediate to another of the same root. Vault may give a
// member the new one from the moment that its role is moved, so in the phase
// that moves it the member presents either.
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
		plan = append(plan, PlanPhase{Phase: phase, Broken: brokenPairs(members, presents, root)})
		for i := range members { // by the end of the phase, each has one
			presents[i] = presents[i][len(presents[i])-1:]
		}
		plan[len(plan)-1].Members = rows(members, presents)
	}
	return plan
}

// brokenPairs are the handshakes between the server and an agent that would
// fail: a chain leads to its intermediate and to the root.
func brokenPairs(members []PlanMember, presents [][]string, root string) []string {
	var broken []string
	judge := func(presenter, verifier int) {
		for _, ca := range presents[presenter] {
			if trusts := members[verifier].Trusts; !slices.Contains(trusts, root) && !slices.Contains(trusts, ca) {
				broken = append(broken, fmt.Sprintf("%s presents a certificate of %s, and %s trusts %s", members[presenter].Name, ca, members[verifier].Name, list(trusts)))
			}
		}
	}
	for agent := 1; agent < len(members); agent++ {
		judge(0, agent)
		judge(agent, 0)
	}
	return broken
}

func list(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, " and ")
}

// rows puts agents that are alike into one row.
func rows(members []PlanMember, presents [][]string) []PlanRow {
	var rows []PlanRow
	var names [][]string
	for i, m := range members {
		row := PlanRow{Member: m.Name, Presents: presents[i][0], Trusts: list(m.Trusts)}
		at := slices.IndexFunc(rows, func(r PlanRow) bool { return r.Presents == row.Presents && r.Trusts == row.Trusts })
		if i <= 1 || at < 1 { // the server has a row of its own
			rows, names = append(rows, row), append(names, []string{m.Name})
			continue
		}
		names[at] = append(names[at], m.Name)
	}
	for i := range rows {
		rows[i].Member = strings.Join(names[i], ", ")
		if len(names[i]) > mostNamed {
			rows[i].Member = fmt.Sprintf("%d agents, %s to %s", len(names[i]), names[i][0], names[i][len(names[i])-1])
		}
	}
	return rows
}
