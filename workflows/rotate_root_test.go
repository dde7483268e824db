package workflows

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/activities/relay"
	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rotation"
)

// rootWorld is a mesh whose root is rotated: Vault, the server and the agents, with
// real certificates. Whether handshakes succeed is computed from those after
// everything that happens, of what is stored and of what is loaded.
type rootWorld struct {
	t   *testing.T
	mu  sync.Mutex
	o   *outside
	env *testsuite.TestWorkflowEnvironment

	roots, intermediates map[int]*worldCA
	bridges              []pkitest.Pair
	// roles are the generations that they sign with; the server's is "", here and
	// below.
	roles          map[string]int
	stored, loaded map[string]issued
	// trust is that of agents that do not trust their ca.crt.
	trust, loadedTrust map[string][]*x509.Certificate
	own                map[string]bool

	// fails has what the events fail with, happens is called before each.
	fails   map[string]error
	happens func(event string)
	// tries are what it took to set a chain, consumers what else holds the old root,
	// by context.
	tries     map[string]int32
	consumers map[string][]cluster.Consumer
	// ignored are members whose handshakes do not count.
	ignored map[string]bool

	// outside says that the roots are kept outside Vault: those of Vault have no keys.
	// Intermediates are then made of the keys of their CSRs.
	outside bool
	keys    map[int]*ecdsa.PrivateKey

	// procedure is what is started; RotateRootCA if it is empty.
	procedure string
	// until are the ends of the members' certificates, where that matters.
	until map[string]time.Time
	// underway are the rotations that an emergency is told that it has ended.
	underway []string

	events []string
	given  map[string]time.Time // when a chain was set last
	asked  []string             // approvals
	broken []string
}

// worldCA is a CA in Vault.
type worldCA struct {
	pkitest.Pair
	leaf       pkitest.Pair
	signs, key bool
	above      []pkitest.Pair // nil for no chain of its own
}

// issued is what a member holds: by which generation, and the chain as it was then.
type issued struct {
	by    int
	above []pkitest.Pair
}

// newRootWorld is a mesh of three clusters whose rotations wait for nothing; the
// second trusts its ca.crt.
func newRootWorld(t *testing.T) *rootWorld {
	t.Helper()
	record := complete()
	record.Spec.Workloads = []mesh.Workload{{Name: "cluster1"}, {Name: "cluster2", Agent: mesh.Agent{Trust: mesh.TrustOwn}}, {Name: "cluster3"}}
	record.Spec = record.Spec.WithDefaults()
	record.Spec.Rotation.Snapshot, record.Spec.Rotation.Soak = mesh.SnapshotNone, &mesh.Duration{Duration: time.Second}
	record.Generations = procedure.Generations{Root: 1, Intermediate: 1}
	w := &rootWorld{
		t: t, roots: map[int]*worldCA{}, intermediates: map[int]*worldCA{}, roles: map[string]int{}, stored: map[string]issued{}, loaded: map[string]issued{},
		trust: map[string][]*x509.Certificate{}, loadedTrust: map[string][]*x509.Certificate{}, own: map[string]bool{"cluster2": true},
		fails: map[string]error{}, tries: map[string]int32{}, given: map[string]time.Time{}, ignored: map[string]bool{},
	}
	w.roots[1] = &worldCA{Pair: pkitest.Root(t, "relay-root"), signs: true, key: true}
	w.intermediates[1] = &worldCA{Pair: w.roots[1].Intermediate(t, "relay-intermediate"), signs: true, key: true, above: []pkitest.Pair{w.roots[1].Pair}}
	for _, name := range []string{"", "cluster1", "cluster2", "cluster3"} {
		w.roles[name] = 1
		w.renew(name)
		if name != "" {
			w.trust[name] = []*x509.Certificate{w.roots[1].Cert}
		}
		w.reload(name)
	}
	w.o = &outside{record: record, roots: w, fails: map[string]error{}, asked: map[int]mesh.CA{}}
	return w
}

// renew has a member's cert-manager renew its certificate; reload has its process
// start anew.
func (w *rootWorld) renew(name string) {
	ca := w.intermediates[w.roles[name]]
	if ca.signs {
		w.stored[name] = issued{w.roles[name], ca.above}
	}
}

func (w *rootWorld) reload(name string) {
	w.loaded[name], w.loadedTrust[name] = w.stored[name], w.trust[name]
}

// presents is what a member presents but for its leaf, and anchor its ca.crt.
func (w *rootWorld) presents(i issued) []*x509.Certificate {
	chain := []*x509.Certificate{w.intermediates[i.by].Cert}
	for _, p := range i.above {
		if !pki.SelfSigned(p.Cert) {
			chain = append(chain, p.Cert)
		}
	}
	return chain
}

func (w *rootWorld) anchor(i issued) *x509.Certificate {
	if len(i.above) == 0 {
		return w.intermediates[i.by].Cert
	}
	return i.above[len(i.above)-1].Cert
}

// accepted says whether a chain verifies under one of the anchors.
func accepted(chain []*x509.Certificate, anchors ...*x509.Certificate) bool {
	for _, c := range chain {
		for _, a := range anchors {
			if pki.SignedBy(c, a) == nil || pki.SameKey(c, a) {
				return true
			}
		}
	}
	return false
}

// anchors are what an agent trusts, stored and loaded.
func (w *rootWorld) anchors(name string) [][]*x509.Certificate {
	if w.own[name] {
		return [][]*x509.Certificate{{w.anchor(w.stored[name])}, {w.anchor(w.loaded[name])}}
	}
	return [][]*x509.Certificate{w.trust[name], w.loadedTrust[name]}
}

// problems are the handshakes of an agent that would fail.
func (w *rootWorld) problems(name string) []string {
	var out []string
	server := []issued{w.stored[""], w.loaded[""]}
	for i, of := range []string{"stored", "loaded"} {
		for j, by := range []string{"stored", "loaded"} {
			if !accepted(w.presents(server[i]), w.anchors(name)[j]...) {
				out = append(out, fmt.Sprintf("%s does not accept the server: %s, %s", name, of, by))
			}
			if !accepted(w.presents([]issued{w.stored[name], w.loaded[name]}[i]), w.anchor(server[j])) {
				out = append(out, fmt.Sprintf("the server does not accept %s: %s, %s", name, of, by))
			}
		}
	}
	return out
}

// members are the agents.
func (w *rootWorld) members() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(w.roles)), func(name string) bool { return name == "" })
}

// act is one thing that happens.
func (w *rootWorld) act(event string, do func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, event)
	if w.happens != nil {
		w.happens(event)
	}
	if err := w.fails[event]; err != nil {
		return err
	}
	err := do()
	for _, name := range w.members() {
		if problems := w.problems(name); len(problems) > 0 && !w.ignored[name] && len(w.broken) < 5 {
			w.broken = append(w.broken, fmt.Sprintf("after %q: %s", event, strings.Join(problems, "; ")))
		}
	}
	return err
}

func (w *rootWorld) count(event string) int {
	n := 0
	for _, e := range w.events {
		if strings.HasPrefix(e, event) {
			n++
		}
	}
	return n
}

// order says which of the events is not in its place.
func (w *rootWorld) order(events ...string) {
	w.t.Helper()
	left := w.events
	for _, event := range events {
		at := slices.Index(left, event)
		if at < 0 {
			w.t.Errorf("no %q in its place in %q", event, w.events)
			return
		}
		left = left[at+1:]
	}
}

// everywhere says that everybody is of one generation in the mode at its end, that
// no other CA may issue, and that no handshake ever failed.
func (w *rootWorld) everywhere(intermediate, root int, but ...string) {
	w.t.Helper()
	for name, have := range w.stored {
		if slices.Contains(but, name) {
			continue
		}
		if have.by != intermediate || w.roles[name] != intermediate || !w.anchor(have).Equal(w.roots[root].Cert) || w.loaded[name].by != intermediate {
			w.t.Errorf("%q has a certificate of generation %d, and a role of %d, with %s as ca.crt", name, have.by, w.roles[name], pki.Name(w.anchor(have)))
		}
		if name == "" {
			continue
		}
		for _, trust := range w.anchors(name) {
			if len(trust) != 1 || !trust[0].Equal(w.roots[root].Cert) {
				w.t.Errorf("%q trusts %d anchors, %s the first", name, len(trust), pki.Name(trust[0]))
			}
		}
	}
	for g, ca := range w.intermediates {
		if ca.signs != (g == intermediate) {
			w.t.Errorf("the intermediate %d may issue: %v", g, ca.signs)
		}
	}
	for g, ca := range w.roots {
		if ca.signs != (g == root && !w.outside) {
			w.t.Errorf("the root %d may issue: %v", g, ca.signs)
		}
	}
	if record := w.o.record; record.Rotation != nil || record.Generations != (procedure.Generations{Root: root, Intermediate: intermediate}) {
		w.t.Errorf("recorded is %+v, %+v", record.Rotation, record.Generations)
	}
	w.unbroken()
}

func (w *rootWorld) unbroken() {
	w.t.Helper()
	for _, b := range w.broken {
		w.t.Error(b)
	}
}

// lineageOf reads what the activities are given.
func lineageOf(of *relay.Lineage) rotation.Lineage {
	var out rotation.Lineage
	if of == nil {
		return out
	}
	for text, into := range map[string]**x509.Certificate{of.OldRootPEM: &out.OldRoot, of.NewRootPEM: &out.NewRoot, of.OldIntermediatePEM: &out.OldIntermediate, of.NewIntermediatePEM: &out.NewIntermediate} {
		if text != "" {
			*into, _ = certificateOf(text)
		}
	}
	return out
}

func (w *rootWorld) chainOf(i issued) []*x509.Certificate {
	return append([]*x509.Certificate{w.intermediates[i.by].leaf.Cert}, w.presents(i)...)
}

func (w *rootWorld) modeOf(i issued, of rotation.Lineage) (rotation.Modes, error) {
	mode, err := rotation.ModeOf(w.chainOf(i), []*x509.Certificate{w.anchor(i)}, of)
	if err != nil {
		return rotation.AnyMode, err
	}
	return rotation.In(mode), nil
}

func (w *rootWorld) byText(text string) (pkitest.Pair, bool) {
	for _, ca := range w.roots {
		if textOf(ca.Pair) == text {
			return ca.Pair, true
		}
	}
	for _, b := range w.bridges {
		if textOf(b) == text {
			return b, true
		}
	}
	return pkitest.Pair{}, false
}

func (w *rootWorld) chainOfTexts(above []string) (chain []pkitest.Pair, err error) {
	for _, text := range above {
		p, ok := w.byText(text)
		if !ok {
			return nil, failure.Permanent(failure.Preflight, "%q is not in the relay mount", text)
		}
		chain = append(chain, p)
	}
	return chain, nil
}

// script answers in the place of the activities.
func (w *rootWorld) script(env *testsuite.TestWorkflowEnvironment) {
	w.env = env
	w.frozen(env)
	for _, ca := range w.intermediates {
		w.leafOf(ca)
	}
	w.setsUp(env)
	env.OnActivity(vaults.Survey, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.SurveyInput) (out vault.SurveyResult, err error) {
		err = w.act("Survey", func() error { out = w.survey(in.Spec); return nil })
		return out, err
	})
	env.OnActivity(vaults.GenerateRoot, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.GenerateRootInput) (out vault.CAResult, err error) {
		if !in.Mode.Writes() {
			if ca := w.roots[in.Generation]; ca == nil {
				return vault.CAResult{Authority: procedure.Authority{Name: vault.RootName(in.Generation)}}, nil
			}
		}
		err = w.act(fmt.Sprintf("root %d", in.Generation), func() error {
			if w.roots[in.Generation] == nil {
				w.roots[in.Generation] = &worldCA{Pair: pkitest.Root(w.t, fmt.Sprintf("relay-root G%d", in.Generation)), signs: true, key: true}
			}
			state := rootState(in.Generation, w.roots[in.Generation].Pair)
			out = vault.CAResult{Authority: state.Authority, CertificatePEM: state.CertificatePEM}
			return nil
		})
		return out, err
	})
	env.OnActivity(vaults.BridgeRoot, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.BridgeInput) (out vault.CAResult, err error) {
		if !in.Mode.Writes() {
			return vault.CAResult{}, nil
		}
		if w.outside {
			return w.imported(in)
		}
		if in.Unbridged {
			return out, w.act(fmt.Sprintf("unbridged %d", in.Generation), func() error { return nil })
		}
		err = w.act(fmt.Sprintf("bridge %d", in.Generation), func() error {
			r1, _ := w.byText(in.OldRoot.CertificatePEM)
			for _, b := range w.bridges {
				if pki.SameKey(b.Cert, w.roots[in.Generation].Cert) && pki.SignedBy(b.Cert, r1.Cert) == nil {
					out.CertificatePEM = textOf(b)
				}
			}
			if out.CertificatePEM == "" {
				w.bridges = append(w.bridges, r1.Cross(w.t, w.roots[in.Generation].Pair))
				out.CertificatePEM = textOf(w.bridges[len(w.bridges)-1])
			}
			return nil
		})
		return out, err
	})
	env.OnActivity(vaults.GenerateIntermediateCSR, mock.Anything, mock.MatchedBy(func(in vault.IntermediateInput) bool { return in.Rotation })).Return(func(_ context.Context, in vault.IntermediateInput) (out vault.CSRResult, err error) {
		err = w.act("CSR", func() error {
			if out.Present = w.intermediates[in.Generation] != nil; !out.Present && w.outside && in.Mode.Writes() {
				out.CSRPEM = w.csr(in.Generation)
			}
			return nil
		})
		return out, err
	})
	env.OnActivity(vaults.SetSignedIntermediate, mock.Anything, mock.MatchedBy(func(in vault.IntermediateInput) bool { return in.Rotation })).Return(func(_ context.Context, in vault.IntermediateInput) (out vault.CAResult, err error) {
		if !in.Mode.Writes() {
			return vault.CAResult{}, nil
		}
		err = w.act(fmt.Sprintf("intermediate %d", in.Generation), func() error {
			ca := w.intermediates[in.Generation]
			if ca == nil {
				root, _ := w.byText(in.RootPEM)
				ca = &worldCA{signs: true, key: true}
				if w.outside {
					ca.Pair = w.signedOutside(in)
				} else {
					ca.Pair = root.Intermediate(w.t, "relay-intermediate")
				}
				w.leafOf(ca)
				w.intermediates[in.Generation] = ca
			}
			if ca.above == nil { // of one that is there, the chain stays as it is
				above, err := w.chainOfTexts(in.AbovePEM)
				if err != nil {
					return err
				}
				ca.above = above
			}
			state := intermediateState(in.Generation, ca.Pair)
			out = vault.CAResult{Authority: state.Authority, CertificatePEM: state.CertificatePEM}
			return nil
		})
		return out, err
	})
	env.OnActivity(vaults.SetChain, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.SetChainInput) (out vault.SetChainResult, err error) {
		if !in.Mode.Writes() {
			return out, nil
		}
		name := "chain of " + fmt.Sprint(len(in.AbovePEM))
		w.mu.Lock()
		above, err := w.chainOfTexts(in.AbovePEM)
		ca := w.intermediates[generationOf(in.IssuerID)]
		w.mu.Unlock()
		if err != nil {
			return out, err
		}
		switch {
		case len(above) == 2:
			name = "bridged"
		case len(above) == 1 && pki.SelfSigned(above[0].Cert):
			name = "final"
		case len(above) == 1:
			name = "pivot"
		case len(above) == 0:
			name, above = "pinned", []pkitest.Pair{}
		}
		out.Tries = max(w.tries[name], 1)
		err = w.act("give "+name, func() error {
			w.given[name] = w.env.Now()
			ca.above = above
			return nil
		})
		return out, err
	})
	env.OnActivity(vaults.ProveIssuer, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.ProveIssuerInput) (out vault.ProveIssuerResult, err error) {
		if !in.Mode.Writes() {
			return out, nil
		}
		g := generationOf(in.IssuerID)
		err = w.act(fmt.Sprintf("prove %d", g), func() error {
			would := issued{g, w.intermediates[g].above}
			if !w.intermediates[g].signs {
				return failure.Permanent(failure.Mismatch, "the intermediate %d may not issue", g)
			}
			if got := w.anchor(would); textOf(pkitest.Pair{Cert: got}) != in.RootPEM {
				return failure.Permanent(failure.Mismatch, "ca.crt would be %s", pki.Name(got))
			}
			out.ChainPEM, out.CAPEM = string(pki.EncodeChain(w.chainOf(would)...)), in.RootPEM
			return nil
		})
		return out, err
	})
	env.OnActivity(vaults.MoveRole, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.MoveRoleInput) (out procedure.Outcome, err error) {
		if !in.Mode.Writes() {
			return out, nil
		}
		g := generationOf(in.IssuerID)
		return out, w.act(strings.TrimSpace(fmt.Sprintf("role %d %s", g, in.Workload)), func() error {
			if !w.intermediates[g].signs {
				return failure.Permanent(failure.Conflict, "the intermediate %d may not issue", g)
			}
			w.roles[in.Workload] = g
			return nil
		})
	})
	env.OnActivity(vaults.UseIssuer, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.UseIssuerInput) (out procedure.Outcome, err error) {
		if !in.Mode.Writes() {
			return out, nil
		}
		kind, g, all := "intermediate", generationOf(in.IssuerID), w.intermediates
		if in.Root {
			kind, all = "root", w.roots
			_, _ = fmt.Sscanf(in.IssuerID, "root-%d", &g)
		}
		return out, w.act(fmt.Sprintf("use %s %d %v", kind, g, in.Signs), func() error {
			for name, role := range w.roles {
				if kind == "intermediate" && role == g && !in.Signs && !in.Anyway {
					return failure.Permanent(failure.Conflict, "the role of %q signs with it", name)
				}
			}
			if in.Signs && !all[g].key {
				return failure.Permanent(failure.Conflict, "its key is not there")
			}
			all[g].signs = in.Signs
			return nil
		})
	})
	env.OnActivity(vaults.DeleteKey, mock.Anything, mock.Anything).Return(func(_ context.Context, in vault.DeleteKeyInput) (out procedure.Outcome, err error) {
		return out, w.act("delete "+in.Name, func() error { return nil })
	})
	env.OnActivity(certManagers.Reissue, mock.Anything, mock.Anything).Return(func(_ context.Context, in certmanager.ReissueInput) (out certmanager.CertificateResult, err error) {
		if !in.Mode.Writes() {
			return out, nil
		}
		name := in.Context
		if in.Server {
			name = ""
		}
		return out, w.act(strings.TrimSpace("reissue "+name), func() error {
			wanted := func() bool {
				have, above := w.stored[name], w.presents(w.stored[name])[1:]
				bridge := ""
				if len(above) > 0 {
					bridge = textOf(pkitest.Pair{Cert: above[0]})
				}
				return textOf(w.intermediates[have.by].Pair) == in.IntermediatePEM && bridge == in.BridgePEM && textOf(pkitest.Pair{Cert: w.anchor(have)}) == in.RootPEM
			}
			if wanted() {
				return nil
			}
			if w.renew(name); !wanted() {
				return failure.Permanent(failure.Mismatch, "%q was issued something else than what was asked for", name)
			}
			out.Changed(procedure.Update, "certificate", "")
			return nil
		})
	})
	env.OnActivity(kubernetes.ChangeTrust, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.ChangeTrustInput) (out procedure.Outcome, err error) {
		if !in.Mode.Writes() {
			return out, nil
		}
		change := ""
		for i, texts := range [][]string{in.AddPEM, in.DropPEM} {
			for _, text := range texts {
				for g, ca := range w.roots {
					if textOf(ca.Pair) == text {
						change += fmt.Sprintf(" %s%d", []string{"+", "-"}[i], g)
					}
				}
				for g, ca := range w.intermediates {
					if textOf(ca.Pair) == text {
						change += fmt.Sprintf(" %si%d", []string{"+", "-"}[i], g)
					}
				}
			}
		}
		return out, w.act("trust "+in.Context+change, func() error {
			trust := slices.Clone(w.trust[in.Context])
			for _, text := range in.AddPEM {
				if c, _ := certificateOf(text); !slices.ContainsFunc(trust, c.Equal) {
					trust = append(trust, c)
				}
			}
			for _, text := range in.DropPEM {
				c, _ := certificateOf(text)
				trust = slices.DeleteFunc(trust, c.Equal)
			}
			if len(trust) == 0 {
				return failure.Permanent(failure.Mismatch, "no anchor would be left")
			}
			w.trust[in.Context] = trust
			out.Changed(procedure.Update, "trust", "")
			return nil
		})
	})
	env.OnActivity(kubernetes.RestartDeployment, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.RestartInput) (out procedure.Outcome, err error) {
		if !in.Mode.Writes() {
			return out, nil
		}
		return out, w.act("restart "+in.Context, func() error {
			if in.Deployment == mesh.ServerDeployment {
				w.reload("")
				return nil
			}
			w.reload(in.Context)
			return nil
		})
	})
	env.OnActivity(relays.ReadServer, mock.Anything, mock.Anything).Return(func(_ context.Context, in relay.ServerInput) (out relay.ServerResult, err error) {
		err = w.act("ReadServer", func() error {
			if in.Loaded {
				w.reload("")
			}
			of := lineageOf(in.Lineage)
			var problem error
			if out.Stored, problem = w.modeOf(w.stored[""], of); problem != nil {
				out.StoredProblem = problem.Error()
			}
			out.Loaded = rotation.PresentedModes(w.chainOf(w.loaded[""]), of)
			out.LoadedAnchor = rotation.Trusting(rotation.Held([]*x509.Certificate{w.anchor(w.loaded[""])}, of))
			out.Presents, out.Trusted = vault.IntermediateName(w.stored[""].by), []string{w.anchor(w.stored[""]).Subject.CommonName}
			return nil
		})
		return out, err
	})
	env.OnActivity(relays.CheckPair, mock.Anything, mock.Anything).Return(func(_ context.Context, in relay.CheckPairInput) (out relay.CheckPairResult, err error) {
		err = w.act("CheckPair "+in.Cluster, func() error {
			of := lineageOf(in.Lineage)
			name := in.Cluster
			out.Leaf.NotAfter = w.until[name]
			if in.Lineage != nil {
				var problem error
				if out.Stored, problem = w.modeOf(w.stored[name], of); problem != nil {
					out.Problems = append(out.Problems, problem.Error())
				}
			}
			if !w.own[name] {
				out.Bundle = rotation.Trusting(rotation.Held(w.trust[name], of))
			}
			out.Presents, out.Trusts = vault.IntermediateName(w.stored[name].by), []string{w.anchors(name)[0][0].Subject.CommonName}
			out.Problems = append(out.Problems, w.problems(name)...)
			out.Problems = append(out.Problems, w.inFlight(name, in)...)
			return nil
		})
		return out, err
	})
	env.OnActivity(relays.ShakeHands, mock.Anything, mock.Anything).Return(func(_ context.Context, in relay.ShakeHandsInput) (out procedure.Outcome, err error) {
		return out, w.act("shake "+in.Cluster, func() error { return nil })
	})
	env.OnActivity(kubernetes.FindConsumers, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.FindConsumersInput) (out cluster.FindConsumersResult, err error) {
		err = w.act("consumers "+in.Context, func() error {
			out.Looked, out.Consumers = 10, w.consumers[in.Context]
			return nil
		})
		return out, err
	})
	env.OnActivity(kubernetes.RecordRotation, mock.Anything, mock.Anything).Return(func(_ context.Context, in cluster.RecordRotationInput) (out cluster.RecordMemberResult, err error) {
		event := "record the end"
		if now := in.Rotation; now != nil {
			event = strings.TrimSpace(fmt.Sprintf("record %s>%s %s", now.Mode, now.Next, now.Dropped))
		}
		err = w.act(event, func() error {
			noting.Lock()
			defer noting.Unlock()
			w.o.record.Rotation = in.Rotation
			if in.Generations != nil {
				w.o.record.Generations = *in.Generations
			}
			if in.RootPEM != "" {
				w.o.record.Spec.PKI.Root.CertificatePEM = in.RootPEM
			}
			if in.Deletions != nil {
				w.o.record.Deletions = in.Deletions
			}
			if in.Quarantined != nil {
				w.o.record.Quarantined = in.Quarantined
			}
			out.Record = w.o.record
			return nil
		})
		return out, err
	})
}

func (w *rootWorld) leafOf(ca *worldCA) {
	if ca.leaf.Cert == nil {
		ca.leaf = ca.Leaf(w.t, []string{"throwaway"})
	}
}

// inFlight are the handshakes that would fail with what Vault may issue.
func (w *rootWorld) inFlight(name string, in relay.CheckPairInput) []string {
	var problems []string
	for i, text := range in.InFlight {
		chain, err := pki.ParseChain([]byte(text))
		if err != nil {
			return []string{err.Error()}
		}
		ca, _ := certificateOf(in.InFlightCAs[i])
		if !accepted(chain[1:], w.anchors(name)[0]...) {
			problems = append(problems, name+" would not accept the server's next chain")
		}
		if !accepted(chain[1:], w.anchor(w.stored[""]), w.anchor(w.loaded[""])) {
			problems = append(problems, "the server would not accept the next chain of "+name)
		}
		if !accepted(w.presents(w.stored[name]), ca) {
			problems = append(problems, "the server would not accept "+name+" with its next ca.crt")
		}
		if w.own[name] && !accepted(w.presents(w.stored[""]), ca) {
			problems = append(problems, name+" would not accept the server with its next ca.crt")
		}
	}
	return problems
}

func (w *rootWorld) survey(spec mesh.Spec) vault.SurveyResult {
	out := vault.SurveyResult{Roles: map[string]string{}}
	for _, g := range slices.Sorted(maps.Keys(w.intermediates)) {
		ca := w.intermediates[g]
		state := intermediateState(g, ca.Pair)
		state.HasKey, state.Signs = ca.key, ca.signs && ca.key
		if ca.above != nil {
			state.AbovePEM = append([]string{}, texts(ca.above...)...)
		}
		out.Intermediates, out.Highest = append(out.Intermediates, state), g
		if g == w.roles[""] {
			out.Active = state
		}
	}
	for _, g := range slices.Sorted(maps.Keys(w.roots)) {
		ca := w.roots[g]
		state := rootState(g, ca.Pair)
		state.HasKey, state.Signs = ca.key, ca.signs && ca.key
		if w.outside {
			state.Authority.IssuerID = ""
		}
		out.Roots, out.HighestRoot = append(out.Roots, state), g
		if pki.SignedBy(w.intermediates[w.roles[""]].Cert, ca.Cert) == nil {
			out.Root = vault.CAResult{Authority: state.Authority, CertificatePEM: state.CertificatePEM}
		}
	}
	for _, b := range w.bridges {
		out.Bridges = append(out.Bridges, vault.CAResult{CertificatePEM: textOf(b)})
	}
	for name, g := range w.roles {
		role := spec.PKI.Role
		if name != "" {
			role = spec.RoleFor(mesh.Workload{Name: name})
		}
		out.Roles[role] = scriptedIssuer(g)
	}
	return out
}

// unattended is the input of a rotation that asks nobody.
const unattended = `{"mesh":"demo","approval":"none"}`

// start runs a rotation of the root; people are given the environment before.
func (w *rootWorld) start(input string, people ...func(*testsuite.TestWorkflowEnvironment)) (procedure.RotateResult, error) {
	w.t.Helper()
	return w.startLong(json.RawMessage(input), nil, people...)
}

func (w *rootWorld) startLong(input any, long *longRotation, people ...func(*testsuite.TestWorkflowEnvironment)) (procedure.RotateResult, error) {
	w.t.Helper()
	env := newRun(w.t, w.o)
	for _, do := range people {
		do(env)
	}
	if long != nil {
		env.SetContinuedExecutionRunID("the run before")
	}
	started := procedure.RotateRootCA
	if w.procedure != "" {
		started = w.procedure
	}
	env.ExecuteWorkflow(started, input, long)
	var result procedure.RotateResult
	if !env.IsWorkflowCompleted() {
		w.t.Fatal("it did not come to an end")
	}
	if err := env.GetWorkflowError(); err != nil {
		return result, err
	}
	if err := env.GetWorkflowResult(&result); err != nil {
		w.t.Fatal(err)
	}
	return result, nil
}

// goesOn runs what a run was continued as, again and again until it ends. Each is
// given people.
func (w *rootWorld) goesOn(err error, people ...func(*testsuite.TestWorkflowEnvironment)) (result procedure.RotateResult, runs int, _ error) {
	w.t.Helper()
	for runs = 1; runs < 20; runs++ {
		var again *workflow.ContinueAsNewError
		if !errors.As(err, &again) {
			return result, runs, err
		}
		var in procedure.RotateRootInput
		var long longRotation
		if err := converter.GetDefaultDataConverter().FromPayloads(again.Input, &in, &long); err != nil {
			w.t.Fatal(err)
		}
		w.events = append(w.events, "continued")
		result, err = w.startLong(in, &long, people...)
	}
	w.t.Fatal("it is continued for ever")
	return result, runs, err
}

// rollBack is the input that takes a rotation back.
const rollBack = `{"mesh":"demo","approval":"none","rollback":true,"reason":"changed our mind"}`

func TestRotateRoot(t *testing.T) {
	w := newRootWorld(t)
	result, err := w.start(unattended)
	if err != nil {
		t.Fatal(err)
	}
	w.everywhere(2, 2)
	if !result.Changed || result.From.Name != "relay-root-g1" || result.To.Name != "relay-root-g2" || len(result.Clusters) != 3 {
		t.Errorf("result %+v", result)
	}
	// The CAs; trust before the first new certificate; the canary, the server, the
	// others; no chain before the one before it is everybody's; trust is taken only
	// then, and the right to issue last.
	w.order("Survey", "ReadServer", "record >", "root 2", "bridge 2", "intermediate 2", "record bridged>", "prove 1",
		"trust cluster1 +2", "restart cluster1", "shake cluster1",
		"role 2 cluster1", "reissue cluster1", "restart cluster1", "shake cluster1", "role 2", "reissue", "ReadServer", "role 2 cluster3", "reissue cluster3",
		"record bridged>pivot", "give pivot", "record pivot>", "reissue cluster1", "reissue", "reissue cluster3",
		"record pivot>final", "give final", "record final>", "reissue cluster1", "reissue", "reissue cluster3",
		"consumers mgmt", "consumers cluster1", "record final> the old root", "trust cluster1 -1", "shake cluster1",
		"use intermediate 1 false", "use root 1 false", "record final> the old root", "record the end")
	if w.count("give") != 2 || w.count("root 3") > 0 || w.count("delete") > 0 {
		t.Errorf("%d chains were given: %q", w.count("give"), w.events)
	}

	// And once more, from there; and back and forth again.
	if _, err := w.start(unattended); err != nil {
		t.Fatal(err)
	}
	w.everywhere(3, 3)
}

// Whatever is renewed and whatever starts anew, at whatever moment, no handshake
// fails, forward and back.
func TestRotateRootAmongRenewals(t *testing.T) {
	withoutRaceDetector(t)
	for seed := range uint64(8) {
		w := newRootWorld(t)
		dice := rand.New(rand.NewPCG(seed, 1))
		w.happens = func(string) {
			for _, name := range append(w.members(), "") {
				switch dice.IntN(6) {
				case 0:
					w.renew(name)
				case 1:
					w.reload(name)
				case 2:
					w.renew(name)
					w.reload(name)
				}
			}
		}
		furthest := []string{"give pivot", "give final", "trust cluster3 -1", ""}[seed%4]
		if furthest == "" {
			if _, err := w.start(unattended); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			w.everywhere(2, 2)
			continue
		}
		w.fails[furthest] = failure.Permanent(failure.Unavailable, "as far as this")
		_, _ = w.start(unattended, func(env *testsuite.TestWorkflowEnvironment) {
			env.RegisterDelayedCallback(env.CancelWorkflow, 100*time.Hour)
		})
		delete(w.fails, furthest)
		if _, err := w.start(rollBack); err != nil {
			t.Fatalf("seed %d, back from %q: %v", seed, furthest, err)
		}
		w.everywhere(1, 1)
	}
}

// attended answers what the run waits for, as decide says: an update and its input,
// or none.
func (w *rootWorld) attended(decide func(p procedure.Progress) (name, input string)) func(*testsuite.TestWorkflowEnvironment) {
	return func(env *testsuite.TestWorkflowEnvironment) {
		said := ""
		look := func() {
			p := query(w.t, env)
			if p.Asked != "" && (len(w.asked) == 0 || w.asked[len(w.asked)-1] != p.Asked) {
				w.asked = append(w.asked, p.Asked)
			}
			if name, input := decide(p); name != "" && said != name+input {
				said = name + input
				update(w.t, env, name, input)
			}
		}
		everyMinute(env, look)
		for i := range 400 { // beyond the longest leaf; no more than a thousand are taken in
			env.RegisterDelayedCallback(look, time.Duration(i+3)*2*time.Hour)
		}
	}
}

// approving lets every phase begin that is asked for.
func approving(p procedure.Progress) (name, input string) {
	if p.Asked == "" {
		return "", ""
	}
	return procedure.ApproveUpdate, fmt.Sprintf(`{"phase":%q}`, p.Asked)
}

// Each phase is asked for, if nothing else is said; one that is over is not asked for
// again.
func TestApprovalsOfARotationOfTheRoot(t *testing.T) {
	w := newRootWorld(t)
	w.o.record.Spec.Rotation.Approval = mesh.ApprovalNone // of other rotations
	if _, err := w.start(`{"mesh":"demo"}`, w.attended(approving)); err != nil {
		t.Fatal(err)
	}
	w.everywhere(2, 2)
	if want := []string{"prepare", "trust", "bridge", "pivot", "commit", "contract", "retire"}; !slices.Equal(w.asked, want) {
		t.Errorf("asked for were %q", w.asked)
	}

	w = newRootWorld(t)
	w.fails["give final"] = failure.Permanent(failure.Unavailable, "the run is lost here")
	if _, err := w.start(unattended); err == nil {
		t.Fatal("it is not lost")
	}
	w.fails = map[string]error{}
	if _, err := w.start(`{"mesh":"demo"}`, w.attended(approving)); err != nil {
		t.Fatal(err)
	}
	w.everywhere(2, 2)
	if want := []string{"commit", "contract", "retire"}; !slices.Equal(w.asked, want) {
		t.Errorf("one that goes on asked for %q", w.asked)
	}
}

// What else holds the old root needs somebody's word.
func TestConsumersNeedAWord(t *testing.T) {
	other := map[string][]cluster.Consumer{"cluster3": {{Object: "ConfigMap shop/ca", Keys: []string{"ca.pem"}, Holds: "relay-root"}}}
	w := newRootWorld(t)
	w.consumers = other
	told := ""
	result, err := w.start(unattended, w.attended(func(p procedure.Progress) (string, string) {
		if p.Asked == phaseConsumers {
			told = p.Awaiting
			if w.count("trust cluster1 -1") > 0 {
				t.Error("the old root was taken before")
			}
		}
		return approving(p)
	}))
	if err != nil {
		t.Fatal(err)
	}
	w.everywhere(2, 2)
	if !slices.Equal(w.asked, []string{phaseConsumers}) || !strings.Contains(told, "cluster3: ConfigMap shop/ca (ca.pem) holds relay-root") || len(result.Consumers) != 1 {
		t.Errorf("asked for %q: %q; the result has %q", w.asked, told, result.Consumers)
	}

	w = newRootWorld(t)
	w.consumers = other
	result, err = w.start(`{"mesh":"demo","approval":"none","consumers":true}`, w.attended(approving))
	if err != nil {
		t.Fatal(err)
	}
	w.everywhere(2, 2)
	if len(w.asked) > 0 || len(result.Consumers) != 1 {
		t.Errorf("asked for %q, the result has %q", w.asked, result.Consumers)
	}
}

// A gate that does not open ends the run, says whose fault that is, and changes
// nothing more.
func TestAGateThatDoesNotOpen(t *testing.T) {
	w := newRootWorld(t)
	old := w.stored["cluster3"]
	w.happens = func(event string) {
		if event == "CheckPair cluster3" {
			w.stored["cluster3"] = old // somebody restores its Secret, again and again
		}
	}
	_, err := w.start(unattended)
	if failure.KindOf(err) != failure.Conflict || !strings.Contains(failure.Message(err), "cluster3 has the old chain in its Secret") || !strings.Contains(failure.Message(err), "relaypki rollback demo") {
		t.Errorf("it ended with %v", err)
	}
	if w.count("give") > 0 || w.count("record bridged>pivot") > 0 || strings.Contains(failure.Message(err), "cluster1 ") {
		t.Errorf("%v, after %q", err, w.events)
	}
	if record := w.o.record.Rotation; record == nil || record.Mode != "bridged" || record.Next != "" || record.Furthest != rotation.Bridged {
		t.Errorf("recorded is %+v", record)
	}
	w.unbroken()

	// Left alone, it goes on.
	w.happens = nil
	if _, err := w.start(unattended); err != nil {
		t.Fatal(err)
	}
	w.everywhere(2, 2)
}

// One that is in the way of a gate is gone over again.
func TestAGateThatOpensLater(t *testing.T) {
	w := newRootWorld(t)
	old, times := w.stored["cluster3"], 0
	w.happens = func(event string) {
		if event == "Survey" && w.roles["cluster3"] == 2 && times == 0 {
			times++
			w.stored["cluster3"] = old
			w.reload("cluster3")
		}
	}
	if _, err := w.start(unattended); err != nil || times != 1 {
		t.Fatalf("%d times, %v", times, err)
	}
	w.everywhere(2, 2)
}

// A chain that took Vault several tries to set may be set once more by one that was
// cut off: the next waits until that cannot be any more.
func TestTheNextChainWaitsForTheOneBefore(t *testing.T) {
	for tries, waits := range map[int32]bool{1: false, 2: true} {
		w := newRootWorld(t)
		w.tries["pivot"] = tries
		if _, err := w.start(unattended); err != nil {
			t.Fatal(err)
		}
		if after := w.given["final"].Sub(w.given["pivot"]); after >= landing != waits {
			t.Errorf("after %d tries the next was set after %s", tries, after)
		}
		w.everywhere(2, 2)
	}
}

// Taken back in any phase, it goes through the chains that it came by, and the roles
// go back to the previous intermediate only then; the new root is dropped last.
func TestRotateRootRollsBack(t *testing.T) {
	withoutRaceDetector(t)
	for phase, chains := range map[string][]string{
		"prepare": nil, "trust": {}, "bridge": {}, "pivot": {}, "commit": {"give bridged"},
		"contract": {"give pivot", "give bridged"}, "retire": {"give pivot", "give bridged"}, "finish": {"give pivot", "give bridged"},
	} {
		t.Run(phase, func(t *testing.T) {
			w := newRootWorld(t)
			turned := -1
			_, err := w.start(`{"mesh":"demo"}`, w.attended(func(p procedure.Progress) (string, string) {
				if turned < 0 && (p.Asked == phase || phase == phaseFinish && strings.Contains(p.Awaiting, "approve demo finish")) {
					turned = len(w.events)
					return procedure.RollbackUpdate, `{"reason":"changed our mind"}`
				}
				return approving(p)
			}))
			if failure.KindOf(err) != failure.RolledBack || !strings.Contains(failure.Message(err), "changed our mind") || turned < 0 {
				t.Fatalf("it ended with %v", err)
			}
			w.everywhere(1, 1)
			w.events = w.events[turned:]
			given := slices.DeleteFunc(slices.Clone(w.events), func(e string) bool { return !strings.HasPrefix(e, "give") })
			if !slices.Equal(given, chains) {
				t.Errorf("given were %q on the way back, want %q", given, chains)
			}
			if chains != nil {
				before := append([]string{"use root 1 true", "use intermediate 1 true"}, chains...)
				w.order(append(before, "role 1 cluster1", "reissue cluster1", "role 1", "reissue", "role 1 cluster3", "reissue cluster3", "trust cluster1 -2", "record the end")...)
				if n := len(chains); n > 0 {
					if last, role := slices.Index(w.events, chains[n-1]), slices.Index(w.events, "role 1 cluster1"); role < last {
						t.Error("a role was moved back before the bridged chain was given")
					}
				}
				if drop, role := slices.Index(w.events, "trust cluster1 -2"), slices.Index(w.events, "reissue cluster3"); drop < role {
					t.Error("the new root was taken from an agent too early")
				}
			}
			if phase == "contract" || phase == "retire" || phase == "finish" {
				if both := slices.Index(w.events, "trust cluster1 +1 +2"); phase != "contract" && (both < 0 || both > slices.Index(w.events, "give pivot")) {
					t.Error("the old root was not put back into agents' trust first")
				}
			}
			// What was made stays, and is not gone to again.
			w.t, w.asked = t, nil
			if _, err := w.start(unattended); err != nil {
				t.Fatal(err)
			}
			next := 3
			if phase == "prepare" {
				next = 2
			}
			w.everywhere(next, next)
		})
	}
}

// Lost at any point of its second half, another run goes on with it.
func TestRotateRootGoesOn(t *testing.T) {
	withoutRaceDetector(t)
	for _, lost := range []string{"root 2", "intermediate 2", "trust cluster3 +2", "role 2 cluster1", "reissue", "give pivot", "record pivot>", "give final", "record final>", "record final> the old root",
		"trust cluster3 -1", "use intermediate 1 false", "use root 1 false", "record the end"} {
		t.Run(lost, func(t *testing.T) {
			w := newRootWorld(t)
			w.fails[lost] = failure.Permanent(failure.Unavailable, "the run is lost here")
			if _, err := w.start(unattended, func(env *testsuite.TestWorkflowEnvironment) {
				env.RegisterDelayedCallback(env.CancelWorkflow, 100*24*time.Hour) // parked for good
			}); err == nil {
				t.Fatal("it is not lost")
			}
			w.fails = map[string]error{}
			if _, err := w.start(unattended); err != nil {
				t.Fatal(err)
			}
			w.everywhere(2, 2)
			if len(w.bridges) != 1 || len(w.intermediates) != 2 {
				t.Errorf("%d bridges and %d intermediates were made", len(w.bridges), len(w.intermediates))
			}
		})
	}
}

// Who cannot be reached while trust is given holds nobody on the way to bridged, and
// everybody on the way to pivot.
func TestAParkedMemberHoldsPivot(t *testing.T) {
	w := newRootWorld(t)
	away := failure.Permanent(failure.Unavailable, "no route to host")
	w.fails["trust cluster3 +2"] = away
	held := false
	if _, err := w.start(unattended, w.attended(func(p procedure.Progress) (string, string) {
		if !held && p.Person && strings.Contains(p.Awaiting, "cluster3 parked") {
			held = true
			if w.stored[""].by != 2 || w.stored["cluster1"].by != 2 || w.stored["cluster2"].by != 2 || w.roles["cluster3"] != 2 {
				t.Errorf("the others are not bridged: %v", w.roles)
			}
			if w.count("give") > 0 {
				t.Error("a chain was given over its head")
			}
			w.mu.Lock()
			delete(w.fails, "trust cluster3 +2")
			w.mu.Unlock()
			return procedure.RetryUpdate, `{}`
		}
		return "", ""
	})); err != nil || !held {
		t.Fatalf("held %v: %v", held, err)
	}
	w.everywhere(2, 2)
}

// Who is left out by name holds nobody, and its role goes with the others', there and
// back.
func TestQuarantineInARotationOfTheRoot(t *testing.T) {
	for _, back := range []bool{false, true} {
		w := newRootWorld(t)
		w.ignored["cluster3"] = true // it is dead
		w.fails["reissue cluster3"] = failure.Permanent(failure.Unavailable, "no route to host")
		w.fails["trust cluster3 -1"] = failure.Permanent(failure.Unavailable, "it is to be left alone")
		turned := false
		_, err := w.start(unattended, w.attended(func(p procedure.Progress) (string, string) {
			switch {
			case p.Person && strings.Contains(p.Awaiting, "relaypki quarantine demo cluster3"):
				return procedure.QuarantineUpdate, `{"clusters":["cluster3"],"reason":"in repair"}`
			case back && !turned && w.count("give final") > 0:
				turned = true
				return procedure.RollbackUpdate, `{"reason":"changed our mind"}`
			}
			return "", ""
		}))
		if back {
			if !turned || w.roles["cluster3"] != 1 || w.o.record.Quarantined["cluster3"] != "in repair" {
				t.Errorf("back: %v, roles %v, recorded %v", err, w.roles, w.o.record.Quarantined)
			}
			w.everywhere(1, 1, "cluster3")
			continue
		}
		if failure.KindOf(err) != failure.Incomplete || !strings.Contains(failure.Message(err), "cluster3") || !strings.Contains(failure.Message(err), "in repair") {
			t.Errorf("it ended with %v", err)
		}
		if w.roles["cluster3"] != 2 || w.stored["cluster3"].by != 1 || w.o.record.Quarantined["cluster3"] != "in repair" {
			t.Errorf("its role is of %d, its certificate of %d, recorded %v", w.roles["cluster3"], w.stored["cluster3"].by, w.o.record.Quarantined)
		}
		w.everywhere(2, 2, "cluster3")
	}
}

// join makes a member that has what AddCluster gives it: the chain of the server's
// intermediate, and both roots.
func (w *rootWorld) join(name string, trust ...int) {
	noting.Lock()
	defer noting.Unlock()
	w.o.record.Spec = w.o.record.Spec.With(mesh.Workload{Name: name})
	w.roles[name] = w.roles[""]
	for _, g := range trust {
		w.trust[name] = append(w.trust[name], w.roots[g].Cert)
	}
	w.renew(name)
	w.reload(name)
}

// Who joins, whenever, is gone over like the others.
func TestMembersJoinARotationOfTheRoot(t *testing.T) {
	withoutRaceDetector(t)
	for at, trust := range map[string][]int{
		"record >": {1}, "trust cluster1 +2": {1}, "role 2 cluster1": {1, 2}, "record bridged>pivot": {1, 2}, "record pivot>": {1, 2}, "reissue": {1, 2}, "give final": {1, 2}, "consumers mgmt": {1, 2},
		"trust cluster1 -1": {1, 2}, "use intermediate 1 false": {2},
	} {
		t.Run(at, func(t *testing.T) {
			w := newRootWorld(t)
			w.happens = func(event string) {
				if event == at && w.roles["cluster4"] == 0 {
					w.join("cluster4", trust...)
				}
			}
			if _, err := w.start(unattended); err != nil {
				t.Fatal(err)
			}
			w.everywhere(2, 2)
			if w.roles["cluster4"] != 2 {
				t.Error("nobody has joined")
			}
			if at == "trust cluster1 +2" {
				w.order("trust cluster4 +2", "role 2 cluster1")
			}
		})
	}
}

// Who leaves is no hindrance.
func TestMembersLeaveARotationOfTheRoot(t *testing.T) {
	w := newRootWorld(t)
	w.happens = func(event string) {
		if event == "give pivot" {
			noting.Lock()
			defer noting.Unlock()
			w.o.record.Spec.Workloads = slices.DeleteFunc(slices.Clone(w.o.record.Spec.Workloads), func(m mesh.Workload) bool { return m.Name == "cluster3" })
			for _, of := range []map[string]issued{w.stored, w.loaded} {
				delete(of, "cluster3")
			}
			delete(w.roles, "cluster3")
			for _, event := range []string{"CheckPair cluster3", "reissue cluster3", "trust cluster3 +2", "role 2 cluster3", "shake cluster3"} {
				w.fails[event] = failure.Permanent(failure.Unavailable, "it is no more")
			}
		}
	}
	if _, err := w.start(unattended); err != nil {
		t.Fatal(err)
	}
	w.everywhere(2, 2)
}

func TestRotateRootRefuses(t *testing.T) {
	another := &procedure.Rotation{Procedure: procedure.RotateIntermediateCA, From: 1, To: 2, Workflow: "default/rotate-intermediate/1"}
	for name, c := range map[string]struct {
		procedure, input string
		prepare          func(*rootWorld)
		kind             failure.Kind
		says             string
	}{
		"a rotation of the intermediate is under way": {procedure.RotateRootCA, unattended, func(w *rootWorld) { w.o.record.Rotation = another }, failure.Conflict, "default/rotate-intermediate/1"},
		"and is not taken back by this":               {procedure.RotateRootCA, rollBack, func(w *rootWorld) { w.o.record.Rotation = another }, failure.Conflict, "default/rotate-intermediate/1"},
		"an intermediate, in a rotation of the root": {procedure.RotateIntermediateCA, `{"mesh":"demo"}`, func(w *rootWorld) {
			w.o.record.Rotation = &procedure.Rotation{Procedure: procedure.RotateRootCA, From: 1, To: 2, FromRoot: 1, ToRoot: 2, Workflow: "default/rotate-root/1"}
		}, failure.Conflict, "default/rotate-root/1"},
		"leaves, in a rotation of the root": {procedure.RotateLeafCertificates, `{"mesh":"demo"}`, func(w *rootWorld) {
			w.o.record.Rotation = &procedure.Rotation{Procedure: procedure.RotateRootCA, From: 1, To: 2, FromRoot: 1, ToRoot: 2, Workflow: "default/rotate-root/1"}
		}, failure.Conflict, "default/rotate-root/1"},
		"there is nothing to take back": {procedure.RotateRootCA, rollBack, func(*rootWorld) {}, failure.InvalidInput, "in no rotation"},
		"a root without its key":        {procedure.RotateRootCA, unattended, func(w *rootWorld) { w.roots[1].key = false }, failure.Preflight, "no bridge"},
		"a mistyped field":              {procedure.RotateRootCA, `{"mesh":"demo","aproval":"none"}`, func(*rootWorld) {}, failure.InvalidInput, "aproval"},
		"a handshake that fails already": {procedure.RotateRootCA, unattended, func(w *rootWorld) {
			w.trust["cluster3"] = []*x509.Certificate{pkitest.Root(w.t, "another").Cert}
		}, failure.Preflight, "cluster3"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newRootWorld(t)
			c.prepare(w)
			was := w.o.record
			env := newRun(t, w.o)
			env.ExecuteWorkflow(c.procedure, json.RawMessage(c.input))
			err := env.GetWorkflowError()
			if failure.KindOf(err) != c.kind || !strings.Contains(failure.Message(err), c.says) {
				t.Errorf("it ended with %v", err)
			}
			for _, event := range w.events {
				if event != "Survey" && event != "ReadServer" && !strings.HasPrefix(event, "CheckPair") {
					t.Errorf("there was %q", event)
				}
			}
			if was.Rotation != w.o.record.Rotation || was.Generations != w.o.record.Generations || w.o.count("AcquireLock") > 0 {
				t.Errorf("something was changed: %q", w.o.calls)
			}
		})
	}
}

// A plan changes nothing, and says what each phase would do.
func TestPlanOfARotationOfTheRoot(t *testing.T) {
	w := newRootWorld(t)
	result, err := w.start(`{"mesh":"demo","plan":true}`)
	if err != nil {
		t.Fatal(err)
	}
	if len(w.roots) != 1 || len(w.intermediates) != 1 || w.o.record.Rotation != nil || len(w.o.writes()) > 0 {
		t.Errorf("a plan has changed something: %q", w.o.writes())
	}
	var phases []string
	for _, p := range result.Matrix {
		phases = append(phases, string(p.Phase))
	}
	for _, phase := range []string{"trust", "bridge", "pivot", "commit", "contract"} {
		if !slices.Contains(phases, phase) {
			t.Errorf("nothing is said of %s, of %q", phase, phases)
		}
	}
}

// withoutRaceDetector leaves a test of many runs to the run of this package that
// test/run.sh makes without the race detector.
func withoutRaceDetector(t *testing.T) {
	t.Helper()
	if raced {
		t.Skip("run without the race detector")
	}
}
