package workflows

import (
	"slices"
	"strings"
	"testing"

	"github.com/relaypki/relaypki/activities/relay"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rollout"
	"github.com/relaypki/relaypki/internal/rotation"
)

func TestWhatMayHaveBeenIssued(t *testing.T) {
	old, fresh := rotation.Trusting(rotation.OldRoot), rotation.Trusting(rotation.NewRoot)
	for mode, want := range map[rotation.Mode]struct {
		modes   rotation.Modes
		anchors rotation.Stores
	}{
		rotation.Old:     {rotation.In(rotation.Old), old},
		rotation.Bridged: {rotation.In(rotation.Old, rotation.Bridged), old},
		rotation.Pivot:   {rotation.In(rotation.Old, rotation.Bridged, rotation.Pivot), old | fresh},
		rotation.Final:   {rotation.In(rotation.Old, rotation.Bridged, rotation.Pivot, rotation.Final), old | fresh},
	} {
		r := &rootRotation{caRotation: caRotation{longRotation: longRotation{Record: procedure.Rotation{Furthest: mode}}}}
		if got := r.ever(); got != want.modes {
			t.Errorf("up to %s: %s", mode, got)
		}
		if got := r.ever().Anchors(); got != want.anchors {
			t.Errorf("the anchors up to %s: %s", mode, got)
		}
	}
	if got := rotation.In(rotation.Final).Anchors(); got != fresh {
		t.Errorf("the anchors of final: %s", got)
	}
}

// What Vault gives in each mode, and in a plan where it is still to be made.
func TestChainsOfEachMode(t *testing.T) {
	c := newRootCAs(t)
	r := c.found(t, procedure.Rotation{})
	plan := c.found(t, procedure.Rotation{})
	plan.NewRoot.CertificatePEM, plan.Bridge.CertificatePEM, plan.To = "", "", plan.Bridge
	for mode, w := range map[rotation.Mode]struct {
		above, planned    []string
		presented, anchor string
	}{
		rotation.Bridged: {texts(c.bridge, c.r1), []string{"relay-bridge-g2", textOf(c.r1)}, textOf(c.bridge), textOf(c.r1)},
		rotation.Pivot:   {texts(c.bridge), []string{"relay-bridge-g2"}, textOf(c.bridge), textOf(c.bridge)},
		rotation.Final:   {texts(c.r2), []string{"relay-root-g2"}, "", textOf(c.r2)},
		rotation.Old:     {nil, nil, "", textOf(c.r1)},
	} {
		if !slices.Equal(r.above(mode), w.above) || r.presented(mode) != w.presented || r.anchor(mode) != w.anchor {
			t.Errorf("%s: the chain %q, presented %q, ca.crt %q", mode, r.above(mode), r.presented(mode), r.anchor(mode))
		}
		if got := plan.above(mode); !slices.Equal(got, w.planned) {
			t.Errorf("%s in a plan: %q", mode, got)
		}
	}
	if got := plan.issuer(plan.To); got != "relay-intermediate-g2" {
		t.Errorf("the intermediate in a plan is %q", got)
	}
	if got := r.issuer(r.To); got != scriptedIssuer(2) {
		t.Errorf("the intermediate is %q", got)
	}
}

// What is known of the mesh, and for what the next chain waits therefore.
func TestFleetOfARotation(t *testing.T) {
	c := newRootCAs(t)
	const bundle, own = "bundle", "own"
	var (
		oldOnly = rotation.Trusting(rotation.OldRoot)
		both    = rotation.Trusting(rotation.OldRoot | rotation.NewRoot)
		newOnly = rotation.Trusting(rotation.NewRoot)
	)
	// at is a mesh in which everybody has been gone over since Vault gives that mode.
	at := func(mode, furthest rotation.Mode, stores rotation.Stores) (*rootRotation, map[string]relay.CheckPairResult) {
		r := c.found(t, procedure.Rotation{Mode: mode.String(), Furthest: furthest})
		if mode == rotation.Old {
			r.Record.Mode = rotation.Bridged.String()
		}
		r.spec.Workloads = []mesh.Workload{{Name: bundle}, {Name: own, Agent: mesh.Agent{Trust: mesh.TrustOwn}}}
		r.spec = r.spec.WithDefaults()
		r.fleet = &fleet{status: map[string]rollout.Status{bundle: rollout.Done, own: rollout.Done}}
		r.At, r.Reached = mode, map[string]bool{serverReached: true, bundle: true, own: true}
		loaded := rotation.In(mode)
		if mode == rotation.Bridged || mode == rotation.Pivot {
			loaded = rotation.In(rotation.Bridged, rotation.Pivot) // they present the same
		}
		r.Server = relay.ServerResult{Stored: rotation.In(mode), Loaded: loaded, LoadedAnchor: rotation.Trusting(mode.Anchor())}
		return r, map[string]relay.CheckPairResult{bundle: {Stored: rotation.In(mode), Bundle: stores}, own: {Stored: rotation.In(mode)}}
	}
	type mesh struct {
		*rootRotation
		pairs map[string]relay.CheckPairResult
	}
	for name, w := range map[string]struct {
		at, furthest rotation.Mode
		stores       rotation.Stores
		change       func(mesh)
		step         rotation.StepKind
		waitsFor     string // members, with blanks
	}{
		"all bridged":                                   {rotation.Bridged, rotation.Bridged, both, nil, rotation.ToPivot, ""},
		"nobody gone over since":                        {rotation.Bridged, rotation.Bridged, both, func(m mesh) { m.Reached = nil }, rotation.ToPivot, "mgmt bundle own"},
		"one not gone over since":                       {rotation.Bridged, rotation.Bridged, both, func(m mesh) { m.Reached[own] = false }, rotation.ToPivot, "own"},
		"the server not gone over since":                {rotation.Bridged, rotation.Bridged, both, func(m mesh) { m.Reached[serverReached] = false }, rotation.ToPivot, "mgmt"},
		"one was not seen":                              {rotation.Bridged, rotation.Bridged, both, func(m mesh) { delete(m.pairs, bundle) }, rotation.ToPivot, "bundle"},
		"one not seen is quarantined":                   {rotation.Bridged, rotation.Bridged, both, func(m mesh) { delete(m.pairs, bundle); m.fleet.status[bundle] = rollout.Skipped }, rotation.ToPivot, ""},
		"one was written back since":                    {rotation.Bridged, rotation.Bridged, both, func(m mesh) { m.pairs[own] = relay.CheckPairResult{Stored: rotation.In(rotation.Old)} }, rotation.ToPivot, "own"},
		"the server was written back since":             {rotation.Bridged, rotation.Bridged, both, func(m mesh) { m.Server.Stored = rotation.In(rotation.Old) }, rotation.ToPivot, "mgmt"},
		"the server has loaded the old alone":           {rotation.Bridged, rotation.Bridged, both, func(m mesh) { m.Server.Loaded = rotation.In(rotation.Old) }, rotation.ToPivot, "mgmt"},
		"members at pivot":                              {rotation.Pivot, rotation.Pivot, both, nil, rotation.ToFinal, ""},
		"the server's trust is still the old root":      {rotation.Pivot, rotation.Pivot, both, func(m mesh) { m.Server.LoadedAnchor = oldOnly }, rotation.ToFinal, "mgmt"},
		"an agent of its own trust not gone over":       {rotation.Pivot, rotation.Pivot, both, func(m mesh) { m.Reached[own] = false }, rotation.ToFinal, "own"},
		"a bundle without the new root":                 {rotation.Pivot, rotation.Pivot, oldOnly, nil, rotation.ToFinal, "bundle"},
		"a bundle that is stored and may not be loaded": {rotation.Pivot, rotation.Pivot, both, func(m mesh) { m.Reached[bundle] = false }, rotation.ToFinal, "bundle"},
		"a quarantined one without the new root":        {rotation.Pivot, rotation.Pivot, oldOnly, func(m mesh) { m.fleet.status[bundle] = rollout.Skipped }, rotation.ToFinal, ""},
		"all final":                                     {rotation.Final, rotation.Final, both, nil, rotation.DropOld, ""},
		"the server may be old":                         {rotation.Final, rotation.Final, both, func(m mesh) { m.Reached[serverReached] = false }, rotation.DropOld, "mgmt"},
		"back from final":                               {rotation.Final, rotation.Final, both, nil, rotation.ToPivot, ""},
		"back from pivot, in which all are":             {rotation.Pivot, rotation.Final, both, nil, rotation.ToBridged, ""},
		"back from pivot, one may be final":             {rotation.Pivot, rotation.Final, both, func(m mesh) { m.Reached[bundle] = false }, rotation.ToBridged, "bundle"},
		"back from a pivot that was the furthest":       {rotation.Pivot, rotation.Pivot, both, func(m mesh) { m.Reached = nil }, rotation.ToBridged, ""},
		"back from bridged":                             {rotation.Bridged, rotation.Final, both, nil, rotation.UseOld, ""},
		"back from bridged, a bundle lacks the old":     {rotation.Bridged, rotation.Final, newOnly, nil, rotation.UseOld, "bundle"},
		"back from bridged, one may trust the new":      {rotation.Bridged, rotation.Final, both, func(m mesh) { m.Reached[own] = false }, rotation.UseOld, "own"},
		"the old was taken from a bundle, and put back but not loaded": {rotation.Bridged, rotation.Final, both,
			func(m mesh) { m.Record.Lacked, m.Reached[bundle] = true, false }, rotation.UseOld, "bundle"},
		"all old again":           {rotation.Old, rotation.Final, both, nil, rotation.DropNew, ""},
		"the server may be final": {rotation.Old, rotation.Final, both, func(m mesh) { m.Reached[serverReached] = false }, rotation.DropNew, "mgmt"},
	} {
		r, pairs := at(w.at, w.furthest, w.stores)
		if w.change != nil {
			w.change(mesh{r, pairs})
		}
		f := r.fleetOf(pairs)
		if r.Record.Mode != f.Mode.String() {
			t.Errorf("%s: Vault gives %s, and not %s", name, f.Mode, r.Record.Mode)
		}
		var members []string
		for _, reason := range waits(f, w.step) {
			if !slices.Contains(members, reason.Member) {
				members = append(members, reason.Member)
			}
		}
		if got := strings.Join(members, " "); got != w.waitsFor {
			t.Errorf("%s: it waits for %q, want %q: %v", name, got, w.waitsFor, waits(f, w.step))
		}
	}
}

// What a step on every member waits for is said once, and not for who is left out.
func TestWaitsOfAStepOnEveryMember(t *testing.T) {
	agent := func(name string, quarantined bool) rotation.Member {
		return rotation.Member{Name: name, Quarantined: quarantined, Bundle: rotation.Copies[rotation.Stores]{Stored: rotation.Trusting(rotation.OldRoot | rotation.NewRoot)}}
	}
	server := rotation.Member{Name: "mgmt", OwnTrust: true, Chain: rotation.Copies[rotation.Modes]{Stored: rotation.In(rotation.Old)}}
	f := rotation.Fleet{Mode: rotation.Final, Server: server, Agents: []rotation.Member{agent("a", false), agent("b", false)}}
	want := rotation.Reason{Member: "mgmt", Cause: rotation.MayStore, Mode: rotation.Old}
	if got := waits(f, rotation.DropOld); len(got) != 1 || got[0] != want {
		t.Errorf("two agents wait for %v", got)
	}
	f.Agents = []rotation.Member{agent("a", true)}
	f.Server.Bundle.Stored = 0
	if got := waits(f, rotation.DropOld); len(got) != 0 {
		t.Errorf("one that is left out waits for %v", got)
	}
}
