package rotation

import (
	"fmt"
	"strings"
	"testing"

	"github.com/relaypki/relaypki/internal/mesh"
)

// The phases, in the words and the order of the procedure.
var procedure = []Phase{"preflight", "stage", "prove", "canary", "server", "fleet", "converge", "retire", "delete key"}

func TestPhases(t *testing.T) {
	for i, p := range procedure {
		next, more := Next(p)
		if i+1 == len(procedure) {
			if more {
				t.Errorf("%s is the last, but %s comes next", p, next)
			}
		} else if !more || next != procedure[i+1] {
			t.Errorf("after %s comes %q", p, next)
		}
		if Does(p) == "" {
			t.Errorf("nobody is told what %s does", p)
		}
		for j, other := range procedure {
			if Before(p, other) != (i < j) {
				t.Errorf("%s before %s: %v", p, other, Before(p, other))
			}
		}
		err := MayRollBack(p)
		if last := p == "delete key"; (err != nil) != last {
			t.Errorf("from %s: %v", p, err)
		}
	}
	if next, more := Next("no such"); more {
		t.Errorf("%s comes after what is no phase", next)
	}
	if MayRollBack("no such") == nil {
		t.Error("what is no phase may be taken back")
	}
}

// Every phase to every phase.
func TestMayGo(t *testing.T) {
	refusal := func(i, j int) string {
		from, to := procedure[i], procedure[j]
		switch {
		case j == i, j == i+1:
			return ""
		case j > i+1:
			return fmt.Sprintf("from %s it goes on to %s, not to %s", from, procedure[i+1], to)
		case to == "preflight" && from == "delete key":
			return "only goes forward"
		case to == "preflight":
			return ""
		}
		return fmt.Sprintf("from %s it does not go back to %s", from, to)
	}
	for i, from := range procedure {
		for j, to := range procedure {
			want := refusal(i, j)
			if err := MayGo(from, to); (err == nil) != (want == "") || !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("from %s to %s: got %v, want %q", from, to, err, want)
			}
		}
	}
	for _, unknown := range [][2]Phase{{"no such", "stage"}, {"stage", "no such"}, {"no such", "no such"}} {
		if MayGo(unknown[0], unknown[1]) == nil {
			t.Errorf("from %s to %s", unknown[0], unknown[1])
		}
	}
}

func TestAsks(t *testing.T) {
	for approval, asks := range map[string][]Phase{
		mesh.ApprovalNone:        {"delete key"},
		mesh.ApprovalAfterCanary: {"server", "delete key"},
		mesh.ApprovalEachPhase:   {"stage", "canary", "server", "fleet", "retire", "delete key"},
	} {
		var got []Phase
		for _, p := range procedure {
			if Asks(approval, p) {
				got = append(got, p)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(asks) {
			t.Errorf("%s: asks before %v, want %v", approval, got, asks)
		}
	}
}
