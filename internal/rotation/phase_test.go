package rotation

import (
	"fmt"
	"strings"
	"testing"

	"github.com/relaypki/relaypki/internal/mesh"
)

// The phases, in the words and the order of the procedures, and what is asked for.
var courses = []struct {
	name   string
	course Course
	phases []Phase
	asks   map[string][]Phase
}{
	{"intermediate", OfIntermediate,
		[]Phase{"preflight", "stage", "prove", "canary", "server", "fleet", "converge", "retire", "delete key"},
		map[string][]Phase{
			mesh.ApprovalNone:        {"delete key"},
			mesh.ApprovalAfterCanary: {"server", "delete key"},
			mesh.ApprovalEachPhase:   {"stage", "canary", "server", "fleet", "retire", "delete key"},
		}},
	{"root", OfRoot,
		[]Phase{"preflight", "prepare", "trust", "bridge", "pivot", "commit", "contract", "retire", "delete keys"},
		map[string][]Phase{
			mesh.ApprovalNone:        {"delete keys"},
			mesh.ApprovalAfterCanary: {"pivot", "contract", "delete keys"},
			mesh.ApprovalEachPhase:   {"prepare", "trust", "bridge", "pivot", "commit", "contract", "retire", "delete keys"},
		}},
}

func TestPhases(t *testing.T) {
	for _, test := range courses {
		t.Run(test.name, func(t *testing.T) {
			c, said := test.course, map[string]bool{}
			for i, p := range test.phases {
				next, more := c.Next(p)
				last := i+1 == len(test.phases)
				if last != !more || !last && next != test.phases[i+1] {
					t.Errorf("after %s comes %q", p, next)
				}
				if does := c.Does(p); does == "" || said[does] {
					t.Errorf("of %s, people are told %q", p, does)
				}
				said[c.Does(p)] = true
				for j, other := range test.phases {
					if c.Before(p, other) != (i < j) {
						t.Errorf("%s before %s: %v", p, other, c.Before(p, other))
					}
				}
				if err := c.MayRollBack(p); (err != nil) != last {
					t.Errorf("from %s: %v", p, err)
				}
			}
			if next, more := c.Next("no such"); more {
				t.Errorf("%s comes after what is no phase", next)
			}
			if c.MayRollBack("no such") == nil {
				t.Error("what is no phase may be taken back")
			}
		})
	}
	for _, p := range []Phase{PhaseStage, PhaseDeleteKey} {
		if OfRoot.MayRollBack(p) == nil || OfRoot.Does(p) != "" {
			t.Errorf("%s is a phase of the rotation of a root", p)
		}
	}
}

// Every phase to every phase.
func TestMayGo(t *testing.T) {
	for _, test := range courses {
		refusal := func(i, j int) string {
			from, to := test.phases[i], test.phases[j]
			switch {
			case j == i, j == i+1:
				return ""
			case j > i+1:
				return fmt.Sprintf("from %s it goes on to %s, not to %s", from, test.phases[i+1], to)
			case j == 0 && i == len(test.phases)-1:
				return "only goes forward"
			case j == 0:
				return ""
			}
			return fmt.Sprintf("from %s it does not go back to %s", from, to)
		}
		for i, from := range test.phases {
			for j, to := range test.phases {
				want := refusal(i, j)
				if err := test.course.MayGo(from, to); (err == nil) != (want == "") || !strings.Contains(fmt.Sprint(err), want) {
					t.Errorf("%s: from %s to %s: got %v, want %q", test.name, from, to, err, want)
				}
			}
			for _, unknown := range [][2]Phase{{"no such", from}, {from, "no such"}} {
				if test.course.MayGo(unknown[0], unknown[1]) == nil {
					t.Errorf("%s: from %s to %s", test.name, unknown[0], unknown[1])
				}
			}
		}
	}
}

func TestAsks(t *testing.T) {
	for _, test := range courses {
		for approval, want := range test.asks {
			var got []Phase
			for _, p := range test.phases {
				if test.course.Asks(approval, p) {
					got = append(got, p)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: %s asks before %v, want %v", test.name, approval, got, want)
			}
		}
		if test.course.Asks(mesh.ApprovalEachPhase, "no such") {
			t.Errorf("%s: asks before what is no phase", test.name)
		}
	}
}
