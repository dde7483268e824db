package procedure

import "strings"

// Mode says whether an activity may change anything. Every activity observes,
// compares, then acts; with Observe or Plan it stops before acting and answers
// what it would have done.
type Mode string

const (
	Apply   Mode = "apply"
	Observe Mode = "observe"
	// Plan is Observe for people to read: the look goes on after something that
	// would change, as if it had been, and every change has its Commands.
	Plan Mode = "plan"
)

// Writes says whether anything may be changed.
func (m Mode) Writes() bool { return m == Apply }

// Verb of a Change.
type Verb string

const (
	Create Verb = "create"
	Update Verb = "update"
	Delete Verb = "delete"
)

// Change is one thing outside that a step created, updated or deleted, or
// would.
type Change struct {
	Verb Verb `json:"verb"`
	// Object names it: "Certificate gloo-mesh/relay-client-tls", "vault mount pki".
	Object string `json:"object"`
	// Detail says what differs, without secrets.
	Detail string `json:"detail,omitempty"`
	// Commands do the same by hand, with vault, kubectl or helm, a secret made
	// on the spot in the place of ours; in a plan only.
	Commands []string `json:"commands,omitempty"`
}

// Outcome is what an activity did, or would do.
type Outcome struct {
	Changes []Change `json:"changes,omitempty"`
	// Detail is a few words for the progress table: a version, an address, an expiry.
	Detail string `json:"detail,omitempty"`
}

// Changed records a change.
func (o *Outcome) Changed(verb Verb, object, detail string) {
	o.Changes = append(o.Changes, Change{Verb: verb, Object: object, Detail: detail})
}

// By says, in a plan, how the last change is made by hand. The commands are a
// script's, to be run in a shell after those of the changes before.
func (o *Outcome) By(mode Mode, commands ...string) {
	if mode == Plan {
		o.Changes[len(o.Changes)-1].Commands = commands
	}
}

// Add takes in another outcome's changes.
func (o *Outcome) Add(other Outcome) { o.Changes = append(o.Changes, other.Changes...) }

// State is the outcome in one word: created if anything was there only after
// the step, however much else had to be adjusted for it.
func (o Outcome) State() State {
	state := UpToDate
	for _, c := range o.Changes {
		if c.Verb == Create {
			return Created
		}
		state = Changed
	}
	return state
}

// Summary is the outcome in one line.
func (o Outcome) Summary() string {
	parts := make([]string, 0, len(o.Changes))
	for _, c := range o.Changes {
		parts = append(parts, string(c.Verb)+" "+c.Object)
	}
	if len(parts) == 0 {
		return o.Detail
	}
	return strings.Join(parts, ", ")
}
