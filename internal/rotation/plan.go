package rotation

// PlanMember is a member as a plan sees it.
type PlanMember struct {
	Name     string
	Presents string
	Trusts   []string
}

// PlanPhase is one phase of a plan.
type PlanPhase struct {
	Phase   Phase
	Does    string
	Members []PlanRow
	Broken  []string
}

// PlanRow is the server, or agents that are alike.
type PlanRow struct{ Member, Presents, Trusts string }

// Intermediate names an intermediate.
type Intermediate struct{ Name string }

// IntermediatePlan is who presents and trusts what in each phase.
func IntermediatePlan(server PlanMember, agents []PlanMember, from, to Intermediate) []PlanPhase {
	return nil
}
