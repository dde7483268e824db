package rollout

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var fleet = []string{"a", "b", "c", "d", "e", "f"}

func TestWaves(t *testing.T) {
	for name, c := range map[string]struct {
		strategy Strategy
		want     [][]string
	}{
		"one wave":               {Strategy{}, [][]string{{"a", "b", "c", "d", "e", "f"}}},
		"canaries first":         {Strategy{Canary: []string{"e", "b"}}, [][]string{{"b", "e"}, {"a", "c", "d", "f"}}},
		"waves, the last is odd": {Strategy{Canary: []string{"a"}, WaveSize: 3}, [][]string{{"a"}, {"b", "c", "d"}, {"e", "f"}}},
		"all are canaries":       {Strategy{Canary: fleet}, [][]string{fleet}},
	} {
		if got := c.strategy.Waves(fleet); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestNext(t *testing.T) {
	cautious := Strategy{Canary: []string{"a"}, WaveSize: 2, Parallelism: 2, FailureBudget: 1}
	for name, c := range map[string]struct {
		strategy Strategy
		status   map[string]Status
		want     Decision
	}{
		"no more than the parallelism":      {Strategy{Parallelism: 4}, nil, Decision{Begin: []string{"a", "b", "c", "d"}}},
		"what runs counts":                  {Strategy{Parallelism: 4}, map[string]Status{"a": Running, "b": Done, "c": Running}, Decision{Begin: []string{"d", "e"}}},
		"a lowered parallelism":             {Strategy{Parallelism: 1}, map[string]Status{"a": Running, "b": Running}, Decision{}},
		"the canary alone":                  {cautious, nil, Decision{Begin: []string{"a"}}},
		"while the canary runs":             {cautious, map[string]Status{"a": Running}, Decision{}},
		"the canary is done":                {cautious, map[string]Status{"a": Done}, Decision{Begin: []string{"b", "c"}}},
		"the canary is parked":              {cautious, map[string]Status{"a": Parked}, Decision{Held: "the canary is parked (a)"}},
		"the canary is skipped":             {cautious, map[string]Status{"a": Skipped}, Decision{Begin: []string{"b", "c"}}},
		"within a wave":                     {cautious, map[string]Status{"a": Done, "b": Done, "c": Running}, Decision{}},
		"one parked is within the budget":   {cautious, map[string]Status{"a": Done, "b": Done, "c": Parked}, Decision{Begin: []string{"d", "e"}}},
		"two are not":                       {cautious, map[string]Status{"a": Done, "b": Parked, "c": Parked}, Decision{Held: "2 parked (b, c), more than the failure budget of 1 allows"}},
		"held while others still run":       {cautious, map[string]Status{"a": Done, "b": Parked, "c": Parked, "d": Waiting, "e": Running}, Decision{Held: "2 parked (b, c), more than the failure budget of 1 allows"}},
		"to be tried again":                 {cautious, map[string]Status{"a": Done, "b": Waiting, "c": Parked, "d": Done, "e": Done, "f": Done}, Decision{Begin: []string{"b"}}},
		"all begun, some parked":            {cautious, map[string]Status{"a": Done, "b": Parked, "c": Done, "d": Done, "e": Done, "f": Done}, Decision{}},
		"over":                              {cautious, map[string]Status{"a": Done, "b": Skipped, "c": Done, "d": Done, "e": Done, "f": Done}, Decision{Over: true}},
		"a parked canary, nobody else left": {Strategy{Canary: []string{"a"}, Parallelism: 1}, map[string]Status{"a": Parked, "b": Done, "c": Done, "d": Done, "e": Done, "f": Done}, Decision{}},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.strategy.Next(fleet, c.status)
			if fmt.Sprint(got.Begin) != fmt.Sprint(c.want.Begin) || got.Over != c.want.Over || got.Held != c.want.Held {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func TestWaveOver(t *testing.T) {
	inTwos := Strategy{Canary: []string{"a"}, WaveSize: 2}
	for name, c := range map[string]struct {
		status  map[string]Status
		cluster string
		stopped bool
		want    bool
	}{
		"the canary alone":                  {map[string]Status{"a": Parked}, "a", false, true},
		"its neighbour waits":               {map[string]Status{"b": Parked}, "b", false, false},
		"its neighbour waits in vain":       {map[string]Status{"b": Parked}, "b", true, true},
		"its neighbour is at work":          {map[string]Status{"b": Parked, "c": Running}, "b", false, false},
		"at work, although none is begun":   {map[string]Status{"b": Parked, "c": Running}, "b", true, false},
		"its neighbour is done":             {map[string]Status{"b": Parked, "c": Done}, "b", false, true},
		"both are parked":                   {map[string]Status{"b": Parked, "c": Parked}, "c", false, true},
		"the next wave is at work":          {map[string]Status{"b": Parked, "c": Done, "d": Running}, "b", false, true},
		"one whose turn it is not just now": {map[string]Status{"a": Running}, "z", false, true},
	} {
		if got := inTwos.WaveOver(fleet, c.status, c.cluster, c.stopped); got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}

// Whatever happens, the rules hold at every step, and if people retry what is
// parked every cluster is done in the end.
func TestRandomRollouts(t *testing.T) {
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 1))
		var fleet []string
		for i := range 1 + random.IntN(12) {
			fleet = append(fleet, fmt.Sprintf("c%d", i))
		}
		s := Strategy{WaveSize: random.IntN(4), Parallelism: 1 + random.IntN(4), FailureBudget: random.IntN(3)}
		for _, cluster := range fleet {
			if random.IntN(5) == 0 {
				s.Canary = append(s.Canary, cluster)
			}
		}
		status := map[string]Status{}
		begun := map[string]bool{}
		trace := []string{fmt.Sprintf("seed %d, %+v, %v", seed, s, fleet)}
		fail := func(format string, args ...any) {
			t.Fatalf(format+"\n%s", append(args, strings.Join(trace, "\n"))...)
		}
		count := func(of Status) (n int) {
			for _, cluster := range fleet {
				if status[cluster] == of {
					n++
				}
			}
			return n
		}
		for step := 0; ; step++ {
			if step > 2000 {
				fail("it does not end")
			}
			d := s.Next(fleet, status)
			trace = append(trace, fmt.Sprintf("%v -> %+v", status, d))
			if d.Over {
				if count(Done)+count(Skipped) != len(fleet) {
					fail("over, and something is not done")
				}
				break
			}
			for _, cluster := range d.Begin {
				if status[cluster] != Waiting {
					fail("%s is begun although it is %v", cluster, status[cluster])
				}
				if count(Parked) > s.FailureBudget {
					fail("%s is begun beyond the failure budget", cluster)
				}
				for _, canary := range s.Canary {
					if !begun[cluster] && !slices.Contains(s.Canary, cluster) && !status[canary].over() {
						fail("%s is begun before the canary %s is done", cluster, canary)
					}
				}
				status[cluster], begun[cluster] = Running, true
			}
			if count(Running) > s.Parallelism {
				fail("%d run at once", count(Running))
			}
			if count(Running) == 0 { // a person
				if count(Parked) == 0 {
					fail("nothing runs, nothing is begun, nothing is parked")
				}
				for _, cluster := range fleet {
					if status[cluster] == Parked {
						status[cluster] = []Status{Waiting, Skipped}[random.IntN(2)]
						break
					}
				}
				continue
			}
			for _, cluster := range fleet {
				if status[cluster] == Running && random.IntN(2) == 0 {
					status[cluster] = []Status{Done, Done, Parked}[random.IntN(3)]
				}
			}
		}
	}
}
