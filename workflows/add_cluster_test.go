package workflows

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
)

// A member that joins in the midst of an emergency begins with the chain that Vault
// gives, also where that is the intermediate alone, and trusts whatever anybody may
// present; never, once it is pinned, what is compromised.
func TestJoinAnEmergency(t *testing.T) {
	c := newRootCAs(t)
	next := c.r1.Intermediate(t, "relay-intermediate G2") // what replaces an intermediate
	pinning := procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 1, To: 2, FromRoot: 1, ToRoot: 1, Emergency: &procedure.Emergency{}}
	root := procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 1, To: 2, FromRoot: 1, ToRoot: 2, Emergency: &procedure.Emergency{}}
	distrusted, leaf := root, pinning
	distrusted.Dropped = procedure.DroppedOld
	leaf.To = 1
	for name, w := range map[string]struct {
		rotation procedure.Rotation
		// new: the server's role signs with the new intermediate, which is there else
		// too unless it is still to be made.
		new, unmade bool
		above       []string
		root        string
		trust       string
	}{
		"a leaf":                              {leaf, false, true, texts(c.r1), textOf(c.r1), ""},
		"nothing is made yet":                 {pinning, false, true, texts(c.r1), textOf(c.r1), textOf(c.r1)},
		"the new one is there":                {pinning, false, false, texts(c.r1), textOf(c.r1), textOf(c.r1) + textOf(next)},
		"linked":                              {pinning, true, false, texts(c.r1), textOf(c.r1), textOf(c.r1) + textOf(next)},
		"pinned":                              {pinning, true, false, texts(), textOf(next), textOf(next)},
		"a root's new one is there":           {root, false, false, texts(c.r1), textOf(c.r1), textOf(c.r1) + textOf(c.r2)},
		"a root's new one is all":             {distrusted, true, false, texts(c.r2), textOf(c.r2), textOf(c.r2)},
		"a root's, in a mesh that was pinned": {distrusted, false, false, texts(), textOf(c.i1), textOf(c.r2)},
	} {
		s := c.seen(nil)
		if w.rotation.FromRoot == w.rotation.ToRoot {
			s.Intermediates[1] = intermediateState(2, next)
		}
		s.Active = s.Intermediates[0]
		if w.new {
			s.Active = s.Intermediates[1]
		}
		if w.unmade {
			s.Intermediates = s.Intermediates[:1]
		}
		s.Active.AbovePEM = w.above
		a := &addition{rotation: &w.rotation, root: s.Root}
		if err := a.inRotation(s); err != nil || a.root.CertificatePEM != w.root || a.bridgePEM != "" || a.trustPEM != w.trust {
			t.Errorf("%s: %v; the right root: %v, no bridge: %v, the right trust: %v", name, err, a.root.CertificatePEM == w.root, a.bridgePEM == "", a.trustPEM == w.trust)
		}
	}
}

// The root that stands by is trusted in an emergency of an intermediate, too; in one of
// the root it is the one that takes its place.
func TestJoinAnEmergencyWithARootThatStandsBy(t *testing.T) {
	c := newRootCAs(t)
	next := c.r1.Intermediate(t, "relay-intermediate G2")
	for name, w := range map[string]struct {
		rotation *procedure.Rotation
		above    []string
		trust    string
	}{
		"none":    {nil, texts(c.r1), textOf(c.r1) + textOf(c.r2)},
		"a leaf":  {&procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 2, To: 2, FromRoot: 1, ToRoot: 1}, texts(c.r1), textOf(c.r1) + textOf(c.r2)},
		"linked":  {&procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 1, To: 2, FromRoot: 1, ToRoot: 1}, texts(c.r1), textOf(c.r1) + textOf(next) + textOf(c.r2)},
		"pinned":  {&procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 1, To: 2, FromRoot: 1, ToRoot: 1}, texts(), textOf(next) + textOf(c.r2)},
		"a root":  {&procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 1, To: 3, FromRoot: 1, ToRoot: 2}, texts(c.r1), textOf(c.r1) + textOf(c.r2)},
		"dropped": {&procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 1, To: 3, FromRoot: 1, ToRoot: 2, Dropped: procedure.DroppedOld}, texts(c.r1), textOf(c.r2)},
	} {
		s := c.seen(nil)
		s.Intermediates[1] = intermediateState(2, next)
		s.Active = s.Intermediates[1]
		s.Active.AbovePEM = w.above
		a := &addition{rotation: w.rotation, root: s.Root, generation: 1}
		a.spec.PKI.StandbyRoot = true
		err := a.inRotation(s)
		a.withStandby(s)
		if err != nil || a.trustPEM != w.trust {
			t.Errorf("%s: %v, the right trust: %v", name, err, a.trustPEM == w.trust)
		}
	}
}

// What a member of a pinned mesh is given, to the last activity.
func TestAddClusterToWhatIsPinned(t *testing.T) {
	c := newRootCAs(t)
	pinned := c.r1.Intermediate(t, "relay-intermediate G2")
	record := complete()
	record.Rotation = &procedure.Rotation{Procedure: procedure.EmergencyReissue, From: 1, To: 2, FromRoot: 1, ToRoot: 1, Mode: "pinned", Emergency: &procedure.Emergency{Pinned: true}}
	o := &outside{record: record, survey: func() (vault.SurveyResult, error) {
		s := c.seen(nil)
		s.Intermediates[1] = intermediateState(2, pinned)
		s.Intermediates[1].AbovePEM = []string{}
		s.Active = s.Intermediates[1]
		return s, nil
	}}
	env := newRun(t, o)
	var guard sync.Mutex
	given := map[string]string{}
	env.SetOnActivityStartedListener(func(info *activity.Info, _ context.Context, args converter.EncodedValues) {
		var in struct{ RootPEM, IntermediatePEM, BridgePEM, Pin string }
		if args.Get(&in) != nil {
			return
		}
		guard.Lock()
		defer guard.Unlock()
		switch info.ActivityType.Name {
		case "ApplyCertificate":
			given["ca.crt"], given["issuer"], given["bridge"] = in.RootPEM, in.IntermediatePEM, in.BridgePEM
		case "CopyRootSecret":
			given["trust"] = in.RootPEM
		case "VerifyCluster":
			given["pin"] = in.Pin
		}
	})
	env.ExecuteWorkflow(procedure.AddCluster, json.RawMessage(`{"mesh":"demo","workload":{"name":"cluster3"}}`))
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]string{"ca.crt": textOf(pinned), "issuer": textOf(pinned), "bridge": "", "trust": textOf(pinned), "pin": "pinned"} {
		if given[what] != want {
			t.Errorf("%s is %q, want %q", what, given[what], want)
		}
	}
}

// Whoever joins an emergency, whenever, comes to where the others do.
func TestMembersJoinAnEmergency(t *testing.T) {
	withoutRaceDetector(t)
	for kind, events := range map[string][]string{
		intermediateGone + available: {"record >", "intermediate 2", "trust cluster1 +i2", "role 2 cluster1", "record final>pinned", "record pinned>", "reissue"},
		intermediateGone + contained: {"record >", "intermediate 2", "give pinned", "role 2 cluster1", "use intermediate 1 false", "reissue cluster1"},
		rootGone + available:         {"record >", "trust cluster1 +2", "give pivot", "give final", "trust cluster1 -1"},
		rootGone + contained:         {"record >", "intermediate 2", "role 2 cluster1", "reissue cluster1"},
	} {
		for _, at := range events {
			t.Run(kind+" at "+at, func(t *testing.T) {
				w := newRootWorld(t)
				w.happens = func(event string) {
					if event == at && w.roles["cluster4"] == 0 {
						w.added("cluster4")
					}
				}
				if _, err := w.emergency(kind); err != nil {
					t.Fatal(err)
				}
				if strings.HasSuffix(kind, contained) {
					w.broken = nil // whoever is not issued anew yet is cut off
				}
				w.unbroken()
				if strings.HasPrefix(kind, rootGone) {
					w.everywhere(2, 2)
				} else {
					w.pinned(2)
				}
				if problems := w.problems("cluster4"); w.roles["cluster4"] != 2 || len(problems) > 0 {
					t.Errorf("it has joined: %v, %q", w.roles["cluster4"] == 2, problems)
				}
			})
		}
	}
	// And one that comes when it is over, until that is lifted.
	w := newRootWorld(t)
	if _, err := w.emergency(intermediateGone + available); err != nil {
		t.Fatal(err)
	}
	w.added("cluster4")
	w.pinned(2)
	if problems := w.problems("cluster4"); len(problems) > 0 {
		t.Errorf("in a pinned mesh: %q", problems)
	}
	if _, err := w.emergency(`"lift":true,"exposed":true`); err != nil {
		t.Fatal(err)
	}
	w.everywhere(2, 1)
	w.unbroken()
}

// added makes a member that has what AddCluster gives it.
func (w *rootWorld) added(name string) {
	noting.Lock()
	defer noting.Unlock()
	seen := w.survey(w.o.record.Spec)
	a := &addition{rotation: w.o.record.Rotation, root: seen.Root}
	if err := a.inRotation(seen); err != nil {
		w.t.Error(err)
	}
	trust := a.trustPEM
	if trust == "" {
		trust = a.root.CertificatePEM
	}
	anchors, err := pki.ParseChain([]byte(trust))
	if err != nil {
		w.t.Error(err)
	}
	w.o.record.Spec = w.o.record.Spec.With(mesh.Workload{Name: name})
	w.roles[name], w.trust[name] = w.roles[""], anchors
	w.renew(name)
	w.reload(name)
	if ca := w.anchor(w.stored[name]); !slices.Equal(ca.Raw, certificateIn(w.t, a.root.CertificatePEM)) {
		w.t.Errorf("its ca.crt is %s, and it was to be another", pki.Name(ca))
	}
}

func certificateIn(t *testing.T, text string) []byte {
	c, err := certificateOf(text)
	if err != nil {
		t.Error(err)
		return nil
	}
	return c.Raw
}
