package relay

import (
	"slices"
	"strings"
	"testing"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/rotation"
)

// generations are the CAs of a rotation of the root.
type generations struct{ r1, i2, r2, bridge, i3 pkitest.Pair }

func newGenerations(t *testing.T) generations {
	g := generations{r1: pkitest.Root(t, "relay root", lasting), r2: pkitest.Root(t, "relay root G2", lasting)}
	g.i2, g.i3 = g.r1.Intermediate(t, "relay", lasting), g.r2.Intermediate(t, "relay", lasting)
	g.bridge = g.r1.Cross(t, g.r2, lasting)
	return g
}

func (g generations) lineage() *Lineage {
	return &Lineage{OldRootPEM: text(g.r1), NewRootPEM: text(g.r2), OldIntermediatePEM: text(g.i2), NewIntermediatePEM: text(g.i3)}
}

// given is what an issuance in that mode gives: ca.crt, and the chain, leaf first.
func (g generations) given(t *testing.T, mode rotation.Mode, name string) (ca pkitest.Pair, chain []pkitest.Pair) {
	leaf := func(by pkitest.Pair) pkitest.Pair { return by.Leaf(t, []string{name}, lasting) }
	switch mode {
	case rotation.Old:
		return g.r1, []pkitest.Pair{leaf(g.i2), g.i2}
	case rotation.Bridged:
		return g.r1, []pkitest.Pair{leaf(g.i3), g.i3, g.bridge}
	case rotation.Pivot:
		return g.bridge, []pkitest.Pair{leaf(g.i3), g.i3, g.bridge}
	}
	return g.r2, []pkitest.Pair{leaf(g.i3), g.i3}
}

var course = []rotation.Mode{rotation.Old, rotation.Bridged, rotation.Pivot, rotation.Final}

// inMode has the server, in its Secret and in both replicas, and the agent, in that
// of its own, in these modes.
func (w *pairing) inMode(g generations, server, agent rotation.Mode) {
	w.t.Helper()
	ca, chain := g.given(w.t, server, "*.gloo-mesh")
	w.store(serverSecret, ca, chain[0], chain[1:]...)
	w.load(0, ca, chain[0], chain[1:]...)
	w.load(1, ca, chain[0], chain[1:]...)
	ca, chain = g.given(w.t, agent, "cluster1")
	w.store(clientSecret, ca, chain[0], chain[1:]...)
}

func (w *pairing) readIn(lineage *Lineage, loaded bool) (ServerResult, error) {
	w.t.Helper()
	var a *Activities
	return call[ServerResult](w, a.ReadServer, ServerInput{Spec: w.spec.Only(""), Loaded: loaded, Lineage: lineage})
}

func TestReadServerInRotation(t *testing.T) {
	g := newGenerations(t)
	other := newAuthority(t, "g1")
	in := func(mode rotation.Mode) func(*pairing) {
		return func(w *pairing) { w.inMode(g, mode, rotation.Old) }
	}
	// only has one replica in another mode, or with another trust, than the rest.
	only := func(rest, chainOf, caOf rotation.Mode) func(*pairing) {
		return func(w *pairing) {
			w.inMode(g, rest, rotation.Old)
			_, chain := g.given(t, chainOf, "*.gloo-mesh")
			ca, _ := g.given(t, caOf, "*.gloo-mesh")
			w.load(1, ca, chain[0], chain[1:]...)
		}
	}
	r1, r2 := rotation.OldRoot, rotation.NewRoot
	for _, c := range []struct {
		name   string
		change func(*pairing)
		stored rotation.Modes
		loaded rotation.Modes
		anchor rotation.Stores
	}{
		{"old", in(rotation.Old), rotation.In(rotation.Old), rotation.In(rotation.Old), rotation.Trusting(r1)},
		{"bridged", in(rotation.Bridged), rotation.In(rotation.Bridged), rotation.In(rotation.Bridged, rotation.Pivot), rotation.Trusting(r1)},
		{"pivot", in(rotation.Pivot), rotation.In(rotation.Pivot), rotation.In(rotation.Bridged, rotation.Pivot), rotation.Trusting(r2)},
		{"final", in(rotation.Final), rotation.In(rotation.Final), rotation.In(rotation.Final, rotation.Pinned), rotation.Trusting(r2)},
		{"a replica is old", only(rotation.Bridged, rotation.Old, rotation.Old), rotation.In(rotation.Bridged),
			rotation.In(rotation.Old, rotation.Bridged, rotation.Pivot), rotation.Trusting(r1)},
		{"a replica has not loaded its ca.crt", only(rotation.Pivot, rotation.Pivot, rotation.Bridged), rotation.In(rotation.Pivot),
			rotation.In(rotation.Bridged, rotation.Pivot), rotation.Trusting(r1, r2)},
		{"a replica trusts both roots", func(w *pairing) {
			w.inMode(g, rotation.Pivot, rotation.Old)
			w.loaded[1].ClientCAs.AddCert(g.r1.Cert)
		}, rotation.In(rotation.Pivot), rotation.In(rotation.Bridged, rotation.Pivot), rotation.Trusting(r2, r1|r2)},
		{"a replica names nobody", func(w *pairing) {
			w.inMode(g, rotation.Pivot, rotation.Old)
			w.loaded[1].ClientCAs = nil
		}, rotation.In(rotation.Pivot), rotation.In(rotation.Bridged, rotation.Pivot), rotation.AnyStore},
		{"a replica presents another's", func(w *pairing) {
			w.inMode(g, rotation.Pivot, rotation.Old)
			w.load(1, other.root, other.server(t), other.intermediate)
		}, rotation.In(rotation.Pivot), rotation.AnyMode, rotation.AnyStore},
		{"one that is not ready presents another's", func(w *pairing) {
			w.inMode(g, rotation.Pivot, rotation.Old)
			w.load(1, other.root, other.server(t), other.intermediate)
			w.replicas(true, false)
		}, rotation.In(rotation.Pivot), rotation.In(rotation.Bridged, rotation.Pivot), rotation.Trusting(r2)},
		{"another's is stored", func(w *pairing) {
			w.inMode(g, rotation.Old, rotation.Old)
			w.store(serverSecret, other.root, other.server(t), other.intermediate)
		}, rotation.AnyMode, rotation.In(rotation.Old), rotation.Trusting(r1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newPairing(t, other)
			c.change(w)
			seen, err := w.readIn(g.lineage(), false)
			if err != nil {
				t.Fatal(err)
			}
			if seen.Stored != c.stored || seen.Loaded != c.loaded || seen.LoadedAnchor != c.anchor {
				t.Errorf("stored %s, loaded %s, trusting %s", seen.Stored, seen.Loaded, seen.LoadedAnchor)
			}
			if (seen.StoredProblem != "") != (c.stored == rotation.AnyMode) {
				t.Errorf("problem %q", seen.StoredProblem)
			}
		})
	}

	w := newPairing(t, other)
	w.inMode(g, rotation.Pivot, rotation.Pivot)
	if _, err := w.readIn(g.lineage(), true); err != nil { // the bridge, which is no root, is loaded
		t.Error(err)
	}
	if plain, err := w.read(false); err != nil || plain.Stored != 0 || plain.Loaded != 0 || plain.LoadedAnchor != 0 {
		t.Errorf("without a rotation: %+v %v", plain, err)
	}
	if _, err := w.readIn(&Lineage{OldRootPEM: text(g.r1, g.r2)}, false); failure.KindOf(err) != failure.InvalidInput {
		t.Errorf("two old roots: %v", err)
	}
	if _, err := w.readIn(&Lineage{NewRootPEM: "x"}, false); failure.KindOf(err) != failure.InvalidInput {
		t.Errorf("no new root: %v", err)
	}
}

// Members in neighbouring modes shake hands, those further apart do not; and what an
// agent has is seen for what it is.
func TestCheckPairInEachMode(t *testing.T) {
	g := newGenerations(t)
	w := newPairing(t, newAuthority(t, "g1"))
	var act *Activities
	for at, serverIn := range course {
		for of, agentIn := range course {
			w.inMode(g, serverIn, agentIn)
			server, err := w.readIn(g.lineage(), false)
			if err != nil {
				t.Fatal(err)
			}
			in := CheckPairInput{Spec: w.spec.Only("cluster1"), Cluster: "cluster1", Server: server, RootsOnly: true, Lineage: g.lineage()}
			in.Spec.Workloads[0].Agent.Trust = mesh.TrustOwn
			seen, err := call[CheckPairResult](w, act.CheckPair, in)
			if err != nil {
				t.Fatal(err)
			}
			if neighbours := max(at-of, of-at) <= 1; neighbours != (len(seen.Problems) == 0) {
				t.Errorf("server %s, agent %s: %q", serverIn, agentIn, seen.Problems)
			}
			if seen.Stored != rotation.In(agentIn) || seen.Bundle != 0 {
				t.Errorf("agent %s: %+v", agentIn, seen)
			}
		}
	}
}

func TestCheckPairInRotation(t *testing.T) {
	g := newGenerations(t)
	other := newAuthority(t, "of another mesh")
	chain := func(mode rotation.Mode) string {
		_, pairs := g.given(t, mode, "throwaway")
		return text(pairs...)
	}
	own := func(in *CheckPairInput) { in.Spec.Workloads[0].Agent.Trust = mesh.TrustOwn }
	r1, r2 := rotation.OldRoot, rotation.NewRoot
	for _, c := range []struct {
		name          string
		server, agent rotation.Mode
		bundle        []pkitest.Pair
		change        func(*pairing, *CheckPairInput)
		want          []string // parts of the problems, in order
		stores        rotation.Stores
	}{
		{name: "bridged, with a bundle of both", server: rotation.Bridged, agent: rotation.Old, bundle: []pkitest.Pair{g.r1, g.r2}, stores: rotation.Trusting(r1 | r2)},
		{name: "final, with a bundle of both and another's", server: rotation.Final, agent: rotation.Pivot, bundle: []pkitest.Pair{other.root, g.r1, g.r2}, stores: rotation.Trusting(r1 | r2)},
		{name: "a bundle of the bridge", server: rotation.Final, agent: rotation.Final, bundle: []pkitest.Pair{g.bridge}, stores: rotation.Trusting(r2)},
		{name: "a bundle of the old root alone, before final", server: rotation.Pivot, agent: rotation.Pivot, bundle: []pkitest.Pair{g.r1}, stores: rotation.Trusting(r1)},
		{name: "and at final", server: rotation.Final, agent: rotation.Final, bundle: []pkitest.Pair{g.r1}, stores: rotation.Trusting(r1),
			want: []string{"the agent of cluster \"cluster1\" would refuse the management server"}},
		{name: "a bundle of another's root", server: rotation.Final, agent: rotation.Final, bundle: []pkitest.Pair{other.root}, stores: rotation.Trusting(0),
			want: []string{"would refuse the management server"}},
		{name: "a bundle with another's bridge", server: rotation.Bridged, agent: rotation.Bridged, bundle: []pkitest.Pair{g.r1, other.root.Cross(t, g.r2, lasting)}, stores: rotation.Trusting(r1 | r2),
			want: []string{"which is no self-signed root"}},
		{name: "another's certificate", server: rotation.Old, agent: rotation.Old, bundle: []pkitest.Pair{g.r1}, stores: rotation.Trusting(r1),
			change: func(w *pairing, _ *CheckPairInput) {
				w.store(clientSecret, other.root, other.client(t), other.intermediate)
			},
			want: []string{"the management server would refuse the agent", "is of no mode of this rotation"}},

		{name: "pivot is in flight, and all are bridged", server: rotation.Bridged, agent: rotation.Bridged, bundle: []pkitest.Pair{g.r1, g.r2}, stores: rotation.Trusting(r1 | r2),
			change: func(_ *pairing, in *CheckPairInput) {
				in.InFlight, in.InFlightCAs = []string{chain(rotation.Pivot)}, []string{text(g.bridge)}
			}},
		{name: "pivot is in flight, and the agent is old", server: rotation.Bridged, agent: rotation.Old, bundle: []pkitest.Pair{g.r1, g.r2}, stores: rotation.Trusting(r1 | r2),
			change: func(_ *pairing, in *CheckPairInput) {
				in.InFlight, in.InFlightCAs = []string{chain(rotation.Pivot)}, []string{text(g.bridge)}
			},
			want: []string{"the management server would refuse the agent of cluster \"cluster1\": it trusts \"relay root G2\""}},
		{name: "the server may trust the old root still when final is in flight", server: rotation.Bridged, agent: rotation.Pivot, bundle: []pkitest.Pair{g.r1, g.r2}, stores: rotation.Trusting(r1 | r2),
			change: func(_ *pairing, in *CheckPairInput) {
				in.InFlight, in.InFlightCAs = []string{chain(rotation.Final)}, []string{text(g.r2)}
			},
			want: []string{"the management server would refuse the agent of cluster \"cluster1\": it trusts \"relay root\""}},
		{name: "the same of an agent with a trust of its own", server: rotation.Pivot, agent: rotation.Bridged, bundle: []pkitest.Pair{g.r1, g.r2},
			change: func(_ *pairing, in *CheckPairInput) {
				own(in)
				in.InFlight, in.InFlightCAs = []string{chain(rotation.Final)}, []string{text(g.r2)}
			},
			want: []string{"the agent of cluster \"cluster1\" would refuse the management server: it trusts \"relay root\""}},
		{name: "an agent with a trust of its own may trust what is in flight", server: rotation.Old, agent: rotation.Bridged, bundle: []pkitest.Pair{g.r1},
			change: func(_ *pairing, in *CheckPairInput) {
				own(in)
				in.InFlightCAs = []string{text(g.r2)}
			},
			want: []string{"the agent of cluster \"cluster1\" would refuse the management server: it trusts \"relay root G2\""}},
		{name: "what is in flight is what is stored", server: rotation.Final, agent: rotation.Old, bundle: []pkitest.Pair{g.r1, g.r2}, stores: rotation.Trusting(r1 | r2),
			change: func(_ *pairing, in *CheckPairInput) { in.InFlightCAs = []string{text(g.r2)} },
			want:   []string{"the management server would refuse the agent of cluster \"cluster1\""}},

		{name: "a replica has the trust of the mode before", server: rotation.Pivot, agent: rotation.Bridged, bundle: []pkitest.Pair{g.r1, g.r2}, stores: rotation.Trusting(r1 | r2),
			change: func(_ *pairing, in *CheckPairInput) { in.Server.AcceptableCAs = []string{g.r1.Cert.Subject.String()} }},
		{name: "one of the mode after", server: rotation.Bridged, agent: rotation.Pivot, bundle: []pkitest.Pair{g.r1, g.r2}, stores: rotation.Trusting(r1 | r2),
			change: func(_ *pairing, in *CheckPairInput) { in.Server.AcceptableCAs = []string{g.r2.Cert.Subject.String()} }},
		{name: "one of two modes before", server: rotation.Pivot, agent: rotation.Final, bundle: []pkitest.Pair{g.r1, g.r2}, stores: rotation.Trusting(r1 | r2),
			change: func(_ *pairing, in *CheckPairInput) { in.Server.AcceptableCAs = []string{g.r1.Cert.Subject.String()} },
			want:   []string{"the management server would refuse the agent of cluster \"cluster1\": it trusts \"relay root\""}},
		{name: "one that is not known", server: rotation.Pivot, agent: rotation.Pivot, bundle: []pkitest.Pair{g.r1, g.r2}, stores: rotation.Trusting(r1 | r2),
			change: func(_ *pairing, in *CheckPairInput) { in.Server.AcceptableCAs = []string{"CN=another"} },
			want:   []string{"has loaded another trust than its Secret's: it accepts clients of CN=another"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newPairing(t, other)
			w.inMode(g, c.server, c.agent)
			w.trust(c.bundle...)
			server, err := w.readIn(g.lineage(), false)
			if err != nil {
				t.Fatal(err)
			}
			in := CheckPairInput{Spec: w.spec.Only("cluster1"), Cluster: "cluster1", Server: server, RootsOnly: true, Lineage: g.lineage()}
			if c.change != nil {
				c.change(w, &in)
			}
			var act *Activities
			seen, err := call[CheckPairResult](w, act.CheckPair, in)
			if err != nil {
				t.Fatal(err)
			}
			if len(seen.Problems) != len(c.want) {
				t.Fatalf("%d problems, want %d: %q", len(seen.Problems), len(c.want), seen.Problems)
			}
			for i, words := range c.want {
				if !strings.Contains(seen.Problems[i], words) {
					t.Errorf("%q, want %q", seen.Problems[i], words)
				}
			}
			if foreign := slices.ContainsFunc(c.want, func(words string) bool { return strings.Contains(words, "of no mode") }); (seen.Stored == rotation.AnyMode) != foreign || !foreign && seen.Stored != rotation.In(c.agent) {
				t.Errorf("stored: %s", seen.Stored)
			}
			if seen.Bundle != c.stores {
				t.Errorf("bundle: %s", seen.Bundle)
			}
		})
	}
}
