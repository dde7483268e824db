package workflows

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rotation"
)

// rootCAs are the CAs of a rotation from the first root to the second.
type rootCAs struct {
	r1, i1, r2, bridge, i2 pkitest.Pair
}

func newRootCAs(t *testing.T) rootCAs {
	t.Helper()
	c := rootCAs{r1: pkitest.Root(t, "relay-root"), r2: pkitest.Root(t, "relay-root G2")}
	c.i1, c.i2 = c.r1.Intermediate(t, "relay-intermediate"), c.r2.Intermediate(t, "relay-intermediate")
	c.bridge = c.r1.Cross(t, c.r2)
	return c
}

// textOf is a pair's certificate as Vault gives it.
func textOf(p pkitest.Pair) string { return string(pki.EncodeChain(p.Cert)) }

func texts(pairs ...pkitest.Pair) []string {
	out := []string{}
	for _, p := range pairs {
		out = append(out, textOf(p))
	}
	return out
}

func rootState(generation int, p pkitest.Pair) vault.RootState {
	return vault.RootState{Authority: procedure.Authority{IssuerID: scriptedRoot(generation), Name: vault.RootName(generation), NotAfter: p.Cert.NotAfter},
		CertificatePEM: textOf(p), Generation: generation, HasKey: true, Signs: true}
}

func intermediateState(generation int, p pkitest.Pair) vault.IntermediateState {
	return vault.IntermediateState{Authority: procedure.Authority{IssuerID: scriptedIssuer(generation), Name: vault.IntermediateName(generation), NotAfter: p.Cert.NotAfter},
		CertificatePEM: textOf(p), Generation: generation, HasKey: true, Signs: true}
}

// seen is what a survey tells once all CAs are made, with that chain above the new
// intermediate; nil for none of its own.
func (c rootCAs) seen(above []string) vault.SurveyResult {
	i1, i2 := intermediateState(1, c.i1), intermediateState(2, c.i2)
	i1.AbovePEM, i2.AbovePEM = texts(c.r1), above
	return vault.SurveyResult{
		Root: vault.CAResult{CertificatePEM: textOf(c.r1), Authority: rootState(1, c.r1).Authority}, Active: i1,
		Intermediates: []vault.IntermediateState{i1, i2}, Highest: 2,
		Roots: []vault.RootState{rootState(1, c.r1), rootState(2, c.r2)}, HighestRoot: 2,
		Bridges: []vault.CAResult{{CertificatePEM: textOf(c.bridge)}},
		Roles:   map[string]string{"server": scriptedIssuer(1), "cluster1": scriptedIssuer(1)},
	}
}

// chains are those above the new intermediate, by mode.
func (c rootCAs) chains() map[rotation.Mode][]string {
	return map[rotation.Mode][]string{rotation.Bridged: texts(c.bridge, c.r1), rotation.Pivot: texts(c.bridge), rotation.Final: texts(c.r2), rotation.Pinned: {}}
}

// found is a rotation that has found all its CAs.
func (c rootCAs) found(t *testing.T, record procedure.Rotation) *rootRotation {
	t.Helper()
	record.From, record.To, record.FromRoot, record.ToRoot = 1, 2, 1, 2
	r := &rootRotation{caRotation: caRotation{rotating: rotating{spec: spec.WithDefaults(), mode: procedure.Apply}, longRotation: longRotation{Record: record}}}
	if err := r.find(c.seen(nil)); err != nil {
		t.Fatal(err)
	}
	return r
}

// Which CAs a rotation goes to: those that are there already and may issue, else
// new ones.
func TestSuccessorsOfARoot(t *testing.T) {
	c := newRootCAs(t)
	r3 := pkitest.Root(t, "relay-root G3")
	i3 := r3.Intermediate(t, "relay-intermediate")
	alone := func(change ...func(*vault.SurveyResult)) vault.SurveyResult {
		s := c.seen(nil)
		s.Roots, s.Intermediates, s.Highest, s.HighestRoot = s.Roots[:1], s.Intermediates[:1], 1, 1
		for _, do := range change {
			do(&s)
		}
		return s
	}
	addRoot := func(generation int, p pkitest.Pair, key, signs bool) func(*vault.SurveyResult) {
		return func(s *vault.SurveyResult) {
			root := rootState(generation, p)
			root.HasKey, root.Signs = key, signs
			s.Roots, s.HighestRoot = append(s.Roots, root), max(s.HighestRoot, generation)
		}
	}
	addIntermediate := func(generation int, p pkitest.Pair, key, signs bool) func(*vault.SurveyResult) {
		return func(s *vault.SurveyResult) {
			i := intermediateState(generation, p)
			i.HasKey, i.Signs = key, signs
			s.Intermediates, s.Highest = append(s.Intermediates, i), max(s.Highest, generation)
		}
	}
	for name, w := range map[string]struct {
		seen               vault.SurveyResult
		root, intermediate int
	}{
		"nothing but those at work": {alone(), 2, 2},
		"names that are taken by leftovers": {alone(func(s *vault.SurveyResult) {
			s.HighestRoot, s.Highest = 4, 7
		}), 5, 8},
		"a root stands by":                    {alone(addRoot(2, c.r2, true, true)), 2, 2},
		"a root stands by, of a rotated mesh": {alone(addRoot(3, r3, true, true), func(s *vault.SurveyResult) { s.Highest = 5 }), 3, 6},
		"begun by hand":                       {alone(addRoot(2, c.r2, true, true), addIntermediate(2, c.i2, true, true)), 2, 2},
		"an intermediate of the old root beside the root that stands by": {alone(addRoot(2, c.r2, true, true),
			addIntermediate(2, c.r1.Intermediate(t, "relay-intermediate"), true, true)), 2, 3},
		"its intermediate has lost its key": {alone(addRoot(2, c.r2, true, true), addIntermediate(2, c.i2, false, false)), 2, 3},
		"its intermediate may not issue":    {alone(addRoot(2, c.r2, true, true), addIntermediate(2, c.i2, true, false)), 2, 3},
		"taken back":                        {alone(addRoot(2, c.r2, true, false), addIntermediate(2, c.i2, true, false)), 3, 3},
		"its root has lost its key":         {alone(addRoot(2, c.r2, false, false), addIntermediate(2, c.i2, true, true)), 3, 3},
		"taken back, and the next begun by hand": {alone(addRoot(2, c.r2, true, false), addIntermediate(2, c.i2, true, false),
			addRoot(3, r3, true, true), addIntermediate(3, i3, true, true)), 3, 3},
	} {
		if root, intermediate := successors(w.seen, 1, 1, false); root != w.root || intermediate != w.intermediate {
			t.Errorf("%s: root %d and intermediate %d, want %d and %d", name, root, intermediate, w.root, w.intermediate)
		}
	}
	// Earlier generations, which may issue for whatever reason, are none to go to.
	s := alone(addRoot(2, c.r2, true, true), addIntermediate(2, c.i2, true, true))
	if root, intermediate := successors(s, 2, 2, false); root != 3 || intermediate != 3 {
		t.Errorf("from the second: root %d and intermediate %d", root, intermediate)
	}
}

func TestFindTheCAsOfARotation(t *testing.T) {
	c := newRootCAs(t)
	record := procedure.Rotation{From: 1, To: 2, FromRoot: 1, ToRoot: 2}
	for name, w := range map[string]struct {
		change func(*vault.SurveyResult)
		says   string // empty if it is to be found
		check  func(*rootRotation) bool
	}{
		"all are there": {func(*vault.SurveyResult) {}, "", func(r *rootRotation) bool {
			return r.From.Authority.IssuerID == scriptedIssuer(1) && r.To.Authority.IssuerID == scriptedIssuer(2) && r.Root.Authority.IssuerID == scriptedRoot(1) &&
				r.NewRoot.Authority.IssuerID == scriptedRoot(2) && r.Bridge.CertificatePEM == textOf(c.bridge) && !r.Keyless
		}},
		"nothing is made yet": {func(s *vault.SurveyResult) {
			s.Roots, s.Intermediates, s.Bridges = s.Roots[:1], s.Intermediates[:1], nil
		}, "", func(r *rootRotation) bool {
			return r.NewRoot.CertificatePEM == "" && r.To.CertificatePEM == "" && r.Bridge.CertificatePEM == ""
		}},
		"the old intermediate is gone": {func(s *vault.SurveyResult) { s.Intermediates = s.Intermediates[1:] }, "the intermediate relay-intermediate-g1, which", nil},
		"the old root is gone":         {func(s *vault.SurveyResult) { s.Roots = s.Roots[1:] }, "the root relay-root-g1, which", nil},
		"the old intermediate is another root's": {func(s *vault.SurveyResult) { s.Intermediates[0] = intermediateState(1, c.i2) },
			"relay-intermediate-g1 is not of the root relay-root-g1", nil},
		"the old root has no key, and nothing is made": {func(s *vault.SurveyResult) {
			s.Roots[0].HasKey, s.Intermediates = false, s.Intermediates[:1]
		}, "without it there is no bridge", nil},
		"the old root has no key any more, and needs none": {func(s *vault.SurveyResult) { s.Roots[0].HasKey = false }, "", func(r *rootRotation) bool { return !r.Keyless }},
		"the old intermediate has no key":                  {func(s *vault.SurveyResult) { s.Intermediates[0].HasKey = false }, "", func(r *rootRotation) bool { return r.Keyless }},
		"bridges of other roots": {func(s *vault.SurveyResult) {
			other := pkitest.Root(t, "relay-root G9")
			s.Bridges = []vault.CAResult{{CertificatePEM: textOf(other.Cross(t, c.r2))}, {CertificatePEM: textOf(c.r1.Cross(t, other))}}
		}, "", func(r *rootRotation) bool { return r.Bridge.CertificatePEM == "" }},
	} {
		s := c.seen(nil)
		s.Roots, s.Intermediates = slices.Clone(s.Roots), slices.Clone(s.Intermediates)
		w.change(&s)
		r := &rootRotation{caRotation: caRotation{rotating: rotating{spec: spec.WithDefaults()}, longRotation: longRotation{Record: record}}}
		err := r.find(s)
		switch {
		case w.says != "":
			if failure.KindOf(err) != failure.Preflight || !strings.Contains(failure.Message(err), w.says) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil || !w.check(r):
			t.Errorf("%s: %v, found %+v", name, err, r.longRotation)
		}
	}
}

// What Vault gives is read from it; if that is not what was given last, Vault has
// gone back in time, or somebody else is at it.
func TestInTime(t *testing.T) {
	c := newRootCAs(t)
	chains := c.chains()
	elsewhere := pkitest.Root(t, "another").Cross(t, c.r2)
	for name, w := range map[string]struct {
		record   procedure.Rotation
		above    []string
		without  bool // the new intermediate is not there
		moved    bool // a role signs with it
		says     string
		at       rotation.Mode
		mode     string
		furthest rotation.Mode
		next     string // that may still be given
	}{
		"nothing is there":                {without: true, at: rotation.Old},
		"an intermediate without a chain": {at: rotation.Old},
		"begun by hand":                   {above: chains[rotation.Bridged], at: rotation.Old, mode: "bridged", furthest: rotation.Bridged},
		"prepared":                        {record: procedure.Rotation{Mode: "bridged"}, above: chains[rotation.Bridged], at: rotation.Old, mode: "bridged", furthest: rotation.Bridged},
		"members are on their way":        {record: procedure.Rotation{Mode: "bridged"}, above: chains[rotation.Bridged], moved: true, at: rotation.Bridged, mode: "bridged", furthest: rotation.Bridged},
		"at pivot":                        {record: procedure.Rotation{Mode: "pivot", Furthest: rotation.Pivot}, above: chains[rotation.Pivot], moved: true, at: rotation.Pivot, mode: "pivot", furthest: rotation.Pivot},
		"final":                           {record: procedure.Rotation{Mode: "final", Furthest: rotation.Final}, above: chains[rotation.Final], moved: true, at: rotation.Final, mode: "final", furthest: rotation.Final},
		"on the way back":                 {record: procedure.Rotation{Mode: "bridged", Furthest: rotation.Final}, above: chains[rotation.Bridged], moved: true, at: rotation.Bridged, mode: "bridged", furthest: rotation.Final},
		"about to, and has not":           {record: procedure.Rotation{Mode: "bridged", Next: "pivot", Furthest: rotation.Pivot}, above: chains[rotation.Bridged], moved: true, at: rotation.Bridged, mode: "bridged", furthest: rotation.Pivot, next: "pivot"},
		"about to, and has":               {record: procedure.Rotation{Mode: "bridged", Next: "pivot", Furthest: rotation.Pivot}, above: chains[rotation.Pivot], moved: true, at: rotation.Pivot, mode: "pivot", furthest: rotation.Pivot},
		"about to, and gives a third":     {record: procedure.Rotation{Mode: "bridged", Next: "pivot"}, above: chains[rotation.Final], moved: true, says: "it was bridged, and is final"},
		"a snapshot of a mode before":     {record: procedure.Rotation{Mode: "pivot"}, above: chains[rotation.Bridged], moved: true, says: "it was pivot, and is bridged"},
		"a snapshot of before it":         {record: procedure.Rotation{Mode: "final"}, without: true, says: "it was final, and is none of this rotation"},
		"its chain was taken":             {record: procedure.Rotation{Mode: "bridged"}, moved: true, says: "it was bridged, and is none of this rotation"},
		"somebody has pinned it":          {record: procedure.Rotation{Mode: "final"}, above: chains[rotation.Pinned], moved: true, says: "it was final, and is pinned"},
		"a foreign bridge":                {record: procedure.Rotation{Mode: "pivot"}, above: texts(elsewhere), moved: true, says: "is none that this rotation gives it"},
		"Vault's documented chain":        {record: procedure.Rotation{Mode: "bridged"}, above: texts(c.r2, c.bridge, c.r1), moved: true, says: "is none that this rotation gives it"},
		"what cannot be read":             {above: []string{"no certificate"}, says: "cannot be read"},
	} {
		r := c.found(t, w.record)
		s := c.seen(w.above)
		if w.without {
			s.Intermediates = s.Intermediates[:1]
		}
		if w.moved {
			s.Roles["cluster1"] = scriptedIssuer(2)
		}
		err := r.inTime(s)
		switch {
		case w.says != "":
			if kind := failure.KindOf(err); kind != failure.Conflict && kind != failure.Mismatch || !strings.Contains(failure.Message(err), w.says) {
				t.Errorf("%s: %v", name, err)
			}
			if r.Record.Mode != w.record.Mode || r.Record.Next != w.record.Next || r.Record.Furthest != w.record.Furthest {
				t.Errorf("%s: the record has changed: %+v", name, r.Record)
			}
		case err != nil || r.At != w.at || r.Record.Mode != w.mode || r.Record.Next != w.next || r.Record.Furthest != w.furthest:
			t.Errorf("%s: %v, at %s, recorded %+v", name, err, r.At, r.Record)
		}
	}
}

// What is over needs no approval again, and nothing else is.
func TestOverInARotationOfTheRoot(t *testing.T) {
	phases := []rotation.Phase{rotation.PhasePrepare, rotation.PhaseTrust, rotation.PhaseBridge, rotation.PhasePivot, rotation.PhaseCommit, rotation.PhaseContract, rotation.PhaseRetire, rotation.PhaseDeleteKeys}
	for name, w := range map[string]struct {
		at     rotation.Mode
		record procedure.Rotation
		over   int
	}{
		"nothing is done":       {rotation.Old, procedure.Rotation{}, 0},
		"the CAs are there":     {rotation.Old, procedure.Rotation{Mode: "bridged"}, 1},
		"members are bridged":   {rotation.Bridged, procedure.Rotation{Mode: "bridged"}, 3},
		"members are at pivot":  {rotation.Pivot, procedure.Rotation{Mode: "pivot"}, 4},
		"members are final":     {rotation.Final, procedure.Rotation{Mode: "final"}, 5},
		"trust has been taken":  {rotation.Final, procedure.Rotation{Mode: "final", Dropped: procedure.DroppedOld}, 6},
		"the last certificates": {rotation.Final, procedure.Rotation{Mode: "final", Dropped: procedure.DroppedOld, Converged: time.Now()}, 7},
	} {
		r := &rootRotation{caRotation: caRotation{longRotation: longRotation{At: w.at, Record: w.record}}}
		for i, phase := range phases {
			if r.over(phase) != (i < w.over) {
				t.Errorf("%s: %s is over: %v", name, phase, r.over(phase))
			}
		}
	}
}

// A member that joins in the midst of a rotation begins with the chain that Vault
// gives, and trusts whatever anybody may present.
func TestJoinARotationOfTheRoot(t *testing.T) {
	c := newRootCAs(t)
	both := textOf(c.r1) + textOf(c.r2)
	now := procedure.Rotation{Procedure: procedure.RotateRootCA, From: 1, To: 2, FromRoot: 1, ToRoot: 2}
	contracted, back := now, now
	contracted.Dropped, back.Dropped = procedure.DroppedOld, procedure.DroppedNew
	chains := c.chains()
	for name, w := range map[string]struct {
		rotation *procedure.Rotation
		new      bool // the server's role signs with the new intermediate
		above    []string
		root     string
		bridge   string
		trust    string
	}{
		"no rotation":                          {nil, false, texts(c.r1), textOf(c.r1), "", ""},
		"another rotation":                     {&procedure.Rotation{Procedure: procedure.RotateIntermediateCA}, false, texts(c.r1), textOf(c.r1), "", ""},
		"trust is being given":                 {&now, false, texts(c.r1), textOf(c.r1), "", both},
		"an intermediate of Vault's own chain": {&now, false, nil, textOf(c.r1), "", both},
		"bridged":                              {&now, true, chains[rotation.Bridged], textOf(c.r1), textOf(c.bridge), both},
		"pivot":                                {&now, true, chains[rotation.Pivot], textOf(c.bridge), textOf(c.bridge), both},
		"final":                                {&now, true, chains[rotation.Final], textOf(c.r2), "", both},
		"the old root is being dropped":        {&contracted, true, chains[rotation.Final], textOf(c.r2), "", textOf(c.r2)},
		"taken back, the new is being dropped": {&back, false, texts(c.r1), textOf(c.r1), "", textOf(c.r1)},
	} {
		s := c.seen(nil)
		s.Active = intermediateState(1, c.i1)
		if w.new {
			s.Active = intermediateState(2, c.i2)
		}
		s.Active.AbovePEM = w.above
		a := &addition{rotation: w.rotation, root: s.Root}
		if err := a.inRotation(s); err != nil || a.root.CertificatePEM != w.root || a.bridgePEM != w.bridge || a.trustPEM != w.trust {
			t.Errorf("%s: %v; the right root: %v, bridge: %v, trust: %v", name, err, a.root.CertificatePEM == w.root, a.bridgePEM == w.bridge, a.trustPEM == w.trust)
		}
	}
	s := c.seen(nil)
	s.Active.AbovePEM = []string{"no certificate"}
	if err := (&addition{rotation: &now}).inRotation(s); failure.KindOf(err) != failure.Mismatch {
		t.Errorf("what cannot be read: %v", err)
	}
}

// The mesh as it is to be described is of what was asked for, else as it is.
func TestNextOfARoot(t *testing.T) {
	r := &rootRotation{caRotation: caRotation{rotating: rotating{spec: spec.WithDefaults()}}}
	if got := r.next().PKI; got.Root.CA != r.spec.PKI.Root.CA || got.Intermediate != r.spec.PKI.Intermediate {
		t.Errorf("nothing was asked for, and it is %+v", got)
	}
	root, intermediate := mesh.CA{CommonName: "r", KeyType: "ec", KeyBits: 256}, mesh.CA{CommonName: "i", KeyType: "ec", KeyBits: 384}
	was := r.spec.PKI
	r.Record.Root, r.Record.Intermediate = &root, &intermediate
	if got := r.next().PKI; got.Root.CA != root || got.Intermediate != intermediate {
		t.Errorf("it is %+v", got)
	}
	if r.spec.PKI.Root.CA != was.Root.CA || r.spec.PKI.Intermediate != was.Intermediate {
		t.Error("the mesh is described by what is still to come")
	}
}

// scriptedRoot is the id of a root's issuer.
func scriptedRoot(generation int) string { return "root-" + string(rune('0'+generation)) }
