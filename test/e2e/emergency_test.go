package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
)

// emergencySpec is the mesh of the root's rotations, with a schedule.
func emergencySpec(serverReload string) string {
	return strings.Replace(rootSpec(serverReload), "maintain: 0s", "maintain: 12h", 1)
}

// A mesh of which ever more is compromised. That a leaf was rotated keeps out nobody
// who has a copy of it. An intermediate is replaced with nobody refused, and pinned,
// and that is lifted with nobody refused; a leaf is issued anew; the root is replaced
// at once, and then once more, by one that stood by. Each time the attacker was
// accepted before, and is not afterwards, its stream is cut, and the times are as
// the result says.
func TestEmergencyReissue(t *testing.T) {
	points := seed(t)
	takesTurns(t)
	reload := reloadOf(points)
	w, _ := rotationWorld(t, emergencySpec(reload))
	m := &emergencies{w: w, c: w.temporal(t), points: points, reload: reload}

	w.emergencyIsSeen(t)
	rotated := w.stolenLeaf(t, "cluster1").intrudes(t)
	w.command(t, 0, "rotate", "leaf", "demo")
	if accepted, refusals := rotated.ended(t); len(refusals) > 0 || len(rotated.fools(t)) != len(w.clusters) || !rotated.open {
		t.Errorf("a rotation of leaves alone keeps out %s, last accepted at %s, a stream open: %t, refused: %v; the check of it shows nothing", rotated.attacker, accepted, rotated.open, refusals)
	}

	thief := w.stolenIntermediate(t, 1)
	m.run(t, emergency{compromised: procedure.CompromisedIntermediate, first: procedure.AvailabilityFirst}, thief)
	pinned := contained{issuer: "relay-intermediate-g2", anchor: "relay-intermediate-g2", compromised: []string{"relay-intermediate-g1"}, distrusted: []string{"relay-root-g1"}}
	none(t, w.notContained(t, pinned))
	if _, errOut := w.command(t, exitFailed, "rotate", "intermediate", "demo"); !strings.Contains(errOut, "lift") {
		t.Errorf("a rotation while the intermediate is pinned is refused with:\n%s", errOut)
	}
	none(t, w.notContained(t, pinned))

	if _, err := m.start(t, "lift", "demo"); err == nil || !strings.Contains(err.Error(), "--exposed-ok") {
		t.Errorf("what is pinned is lifted without a word, while a certificate of the old intermediate may be in the wrong hands: %v", err)
	}
	none(t, w.notContained(t, pinned))
	looking := w.watchRoot(t, points, reload)
	looking.unjudged = unjudged
	if _, err := m.start(t, "lift", "demo", "--exposed-ok"); err != nil {
		t.Fatalf("lifting it: %v", err)
	}
	looking.ended(t)
	none(t, w.notContained(t, contained{issuer: "relay-intermediate-g2", anchor: "relay-root-g1", compromised: []string{"relay-intermediate-g1"}}))
	// That is what the word is for, and what the pin was for.
	if err := thief.dials(t.Context(), w.relayAddress(t)); err != nil {
		t.Errorf("once it is lifted, %s is still refused: %v", thief, err)
	}

	m.run(t, emergency{compromised: procedure.CompromisedLeaf, clusters: []string{"cluster1"}}, w.stolenLeaf(t, "cluster1"))

	without := m.run(t, emergency{compromised: procedure.CompromisedRoot, first: procedure.ContainmentFirst},
		w.stolenRoot(t, 1), w.stolenIntermediate(t, 2), w.stolenLeaf(t, "cluster1"))
	none(t, w.notContained(t, contained{issuer: "relay-intermediate-g3", anchor: "relay-root-g2",
		compromised: []string{"relay-intermediate-g1", "relay-intermediate-g2", "relay-root-g1"}}))

	m.standBy(t)
	with := m.run(t, emergency{compromised: procedure.CompromisedRoot, first: procedure.ContainmentFirst}, w.stolenRoot(t, 2))
	none(t, w.notContained(t, contained{issuer: "relay-intermediate-g4", anchor: "relay-root-g3",
		compromised: []string{"relay-intermediate-g3", "relay-root-g1", "relay-root-g2"}}))
	sameHistories(t, m.c, ofEmergency)
	t.Logf("with a root that stood by %s, without one %s", took(with), took(without))
	w.noSecrets(t)
}

// An emergency takes over a rotation of the root that waits for a word, and goes on
// with its new root, nobody refused. Of that one an intermediate is compromised, which
// is contained at once; and a leaf, of which nobody is to wait for its end.
func TestEmergencyTakesOver(t *testing.T) {
	points := seed(t)
	takesTurns(t)
	reload := reloadOf(points)
	w, _ := rotationWorld(t, emergencySpec(reload))
	m := &emergencies{w: w, c: w.temporal(t), points: points, reload: reload}

	r := w.rotatingRoot(t)
	r.begin(t)
	r.until(t, askingOfRoot[1+points/3%3]) // trust, bridge or pivot: from then on the server refuses the attacker
	result := m.run(t, emergency{compromised: procedure.CompromisedRoot, first: procedure.AvailabilityFirst}, w.stolenRoot(t, 1))
	if !strings.Contains(result.Emergency.TookOver, r.id) {
		t.Errorf("it took over %q, not %s", result.Emergency.TookOver, r.id)
	}
	if err := r.c.GetWorkflow(t.Context(), r.id, "").Get(t.Context(), nil); err == nil || !strings.Contains(err.Error(), m.incident) {
		t.Errorf("the rotation that was taken over ended with %v", err)
	}
	none(t, w.notContained(t, contained{issuer: "relay-intermediate-g2", anchor: "relay-root-g2", compromised: []string{"relay-intermediate-g1", "relay-root-g1"}}))

	m.run(t, emergency{compromised: procedure.CompromisedIntermediate, first: procedure.ContainmentFirst}, w.stolenIntermediate(t, 2))
	none(t, w.notContained(t, contained{issuer: "relay-intermediate-g3", anchor: "relay-intermediate-g3",
		compromised: []string{"relay-intermediate-g1", "relay-intermediate-g2"}, distrusted: []string{"relay-root-g1", "relay-root-g2"}}))

	m.run(t, emergency{compromised: procedure.CompromisedLeaf, clusters: []string{"cluster1"}, distrust: true, first: procedure.ContainmentFirst}, w.stolenLeaf(t, "cluster1"))
	none(t, w.notContained(t, contained{issuer: "relay-intermediate-g4", anchor: "relay-intermediate-g4",
		compromised: []string{"relay-intermediate-g1", "relay-intermediate-g2", "relay-intermediate-g3"}, distrusted: []string{"relay-root-g1", "relay-root-g2"}}))
	w.noSecrets(t)
}

// unjudged is how many handshakes of an agent may come to no verdict where everybody
// is restarted, the server more than once.
const unjudged = 20

// emergencies are those of one mesh.
type emergencies struct {
	w      *world
	c      client.Client
	points uint64
	reload string
	// incident is the one that the last was for.
	incident string
}

// emergency is what is compromised, and what is to be done first.
type emergency struct {
	compromised, first string
	clusters           []string
	distrust           bool
}

// start runs EmergencyReissue by the command, and returns how it ended.
func (m *emergencies) start(t *testing.T, args ...string) (procedure.RotateResult, error) {
	t.Helper()
	args = append([]string{"emergency"}, append(args, "--reason", "a test of emergencies", "--incident", m.incident, "--yes", "-o", "json")...)
	out, errOut, code := m.w.relaypki(t, args...)
	if code != 0 {
		return procedure.RotateResult{}, fmt.Errorf("relaypki %s: exit code %d\n%s\n%s", strings.Join(args, " "), code, out, errOut)
	}
	return resultOf[procedure.RotateResult](t, out), nil
}

// run runs one with attackers at work, agents that shake hands, and certificates that
// are renewed at random. It fails the test unless it ends well, all of the attackers
// are kept out, and nobody else is for longer than is said.
func (m *emergencies) run(t *testing.T, e emergency, attackers ...attacker) procedure.RotateResult {
	t.Helper()
	m.incident = fmt.Sprintf("INC-%d", time.Now().Unix())
	t.Logf("%s, compromised: %s, first: %q", m.incident, e.compromised, e.first)
	looking := m.w.watchRoot(t, m.points, m.reload)
	looking.unjudged = unjudged
	var intrusions []*intrusion
	for _, a := range attackers {
		intrusions = append(intrusions, a.intrudes(t))
	}
	frozen := m.freezing(t)
	args := append([]string{e.compromised, "demo"}, e.clusters...)
	if e.distrust {
		args = append(args, "--distrust")
	}
	if e.first != "" {
		args = append(args, "--first", e.first)
	}
	began := time.Now()
	result, err := m.start(t, args...)
	if err != nil {
		t.Fatalf("the emergency ended with: %v", err)
	}
	got := result.Emergency
	if got == nil || !result.Changed || result.Verification == nil || !result.Verification.Healthy {
		t.Fatalf("%+v", result)
	}
	if got.Incident != m.incident || got.Reason == "" || got.Compromised != e.compromised || got.First != e.first {
		t.Errorf("it was for %+v", got)
	}
	t.Logf("%s: %s", e.compromised, took(result))
	frozen(t)
	m.w.command(t, 0, "verify", "demo")

	distrusts := e.compromised != procedure.CompromisedLeaf || e.distrust
	m.timed(t, got, began, distrusts)
	for _, i := range intrusions {
		i.keptOut(t, got, began, distrusts)
	}
	if e.first != procedure.ContainmentFirst {
		looking.ended(t)
		return result
	}
	looking.renewals.ended(t)
	report := looking.watched.ended(t)
	none(t, report.cutOff(t, got))
	return result
}

// took is how long it took, as the result says.
func took(result procedure.RotateResult) string {
	e := result.Emergency
	var said []string
	for _, at := range []struct {
		what string
		time time.Time
	}{{"to stop issuing", e.IssuingStopped}, {"for the server to distrust", e.ServerDistrusts}, {"for all to distrust", e.Distrusted}, {"to reconnect", e.Reconnected}} {
		if !at.time.IsZero() {
			said = append(said, fmt.Sprintf("%s %s", at.time.Sub(e.Began).Round(time.Millisecond), at.what))
		}
	}
	return strings.Join(said, ", ")
}

// timed fails the test unless the times are there, and in order.
func (m *emergencies) timed(t *testing.T, e *procedure.Emergency, began time.Time, distrusts bool) {
	t.Helper()
	now := time.Now()
	within := func(what string, at, from time.Time) {
		t.Helper()
		if at.Before(from) || at.After(now) {
			t.Errorf("%s is %s, not between %s and %s", what, at, from, now)
		}
	}
	within("began", e.Began, began.Add(-time.Second))
	within("reconnected", e.Reconnected, e.Began)
	if !distrusts {
		if !e.IssuingStopped.IsZero() || !e.ServerDistrusts.IsZero() || !e.Distrusted.IsZero() {
			t.Errorf("nobody's trust changes, and yet: %+v", e)
		}
		return
	}
	within("issuingStopped", e.IssuingStopped, e.Began)
	within("serverDistrusts", e.ServerDistrusts, e.Began)
	within("distrusted", e.Distrusted, e.ServerDistrusts)
	within("reconnected", e.Reconnected, e.ServerDistrusts)
	if !e.AcceptedUntil.IsZero() {
		t.Errorf("it is said to be accepted until %s", e.AcceptedUntil)
	}
}

// keptOut fails the test unless the attacker was accepted by nobody from when the
// result says so, and its streams were cut. Of a leaf for which nobody's trust was
// changed the stream is cut, and it is accepted until it ends: the result says when.
func (i *intrusion) keptOut(t *testing.T, e *procedure.Emergency, began time.Time, distrusts bool) {
	t.Helper()
	accepted, refusals := i.ended(t)
	if i.cut.Before(began) {
		t.Errorf("%s: its stream was not cut, or before anything was done: %s", i.attacker, i.cut)
	}
	fooled := i.fools(t)
	if !distrusts {
		if len(refusals) > 0 || len(fooled) != len(i.w.clusters) || e.AcceptedUntil.Before(i.pair.Leaf.NotAfter) {
			t.Errorf("%s: said to be accepted until %s, but is refused: %v; its certificate ends at %s", i.attacker, e.AcceptedUntil, refusals, i.pair.Leaf.NotAfter)
		}
		return
	}
	if len(refusals) == 0 {
		t.Errorf("%s is still accepted", i.attacker)
		return
	}
	if accepted.After(e.ServerDistrusts) {
		t.Errorf("%s was accepted at %s, and the server is said to refuse it since %s", i.attacker, accepted, e.ServerDistrusts)
	}
	if i.open {
		t.Errorf("%s: its stream is open still", i.attacker)
	}
	if len(fooled) > 0 {
		t.Errorf("%s is taken for the server by the agents of %q", i.attacker, fooled)
	}
	t.Logf("%s: last accepted %s after it began, refused %d times since, the first time %s; its stream was cut last after %s", i.attacker,
		accepted.Sub(e.Began).Round(time.Millisecond), len(refusals), refusals[0].reason, i.cut.Sub(e.Began).Round(time.Millisecond))
}

// cutOff logs for how long each agent was refused, and are the agents that were so
// after the result says that all were back.
func (r handshakeReport) cutOff(t *testing.T, e *procedure.Emergency) []string {
	t.Helper()
	var problems []string
	for _, cluster := range slices.Sorted(maps.Keys(r)) {
		a := r[cluster]
		if len(a.refusals) == 0 {
			t.Logf("%s was never refused", cluster)
			continue
		}
		first, last := a.refusals[0], a.refusals[len(a.refusals)-1]
		t.Logf("%s was cut off for %s, %d handshakes", cluster, last.at.Sub(first.at).Round(time.Millisecond), a.refused)
		if last.at.After(e.Reconnected) {
			problems = append(problems, fmt.Sprintf("%s: all are said to be back since %s, and the last refusal is at %s", cluster, e.Reconnected, last))
		}
	}
	return problems
}

// freezing looks at the mesh's schedule meanwhile. What it returns fails the test
// unless it was paused, with a note of the incident, and is no more.
func (m *emergencies) freezing(t *testing.T) func(t *testing.T) {
	t.Helper()
	schedule := m.c.ScheduleClient().GetHandle(t.Context(), temporalactivities.MaintainScheduleID("demo"))
	look := func(ctx context.Context) (paused bool, note string, err error) {
		d, err := schedule.Describe(ctx)
		if err != nil {
			return false, "", err
		}
		return d.Schedule.State.Paused, d.Schedule.State.Note, nil
	}
	if paused, note, err := look(t.Context()); err != nil || paused {
		t.Fatalf("the mesh's schedule is paused before (%q), or not there: %v", note, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	notes := make(chan []string, 1)
	go func() {
		var seen []string
		for ctx.Err() == nil {
			if paused, note, err := look(ctx); err == nil && paused && !slices.Contains(seen, note) {
				seen = append(seen, note)
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond): // so often it is looked at
			}
		}
		notes <- seen
	}()
	return func(t *testing.T) {
		t.Helper()
		cancel()
		if seen := <-notes; len(seen) != 1 || !strings.Contains(seen[0], m.incident) {
			t.Errorf("the mesh's schedule was paused with the notes %q", seen)
		}
		if paused, note, err := look(t.Context()); err != nil || paused {
			t.Errorf("the mesh's schedule is still paused (%q), or not there: %v", note, err)
		}
	}
}

// standBy has the next root made, and put into agents' trust, by a setup.
func (m *emergencies) standBy(t *testing.T) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(path, []byte(rotationSpec(emergencySpec(m.reload)+"pki: {standbyRoot: true}\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if result := m.w.setup(t, path); !result.Changed || !result.Verification.Healthy {
		t.Errorf("a setup with a root that is to stand by: %+v", result)
	}
	for _, cluster := range m.w.clusters {
		if bundle := m.w.bundle(t, cluster); !ownTrust(cluster) && len(bundle) != 2 {
			t.Errorf("%s: the agents' trust has %d roots: none stands by", cluster, len(bundle))
		}
	}
	if again := m.w.setup(t, path); again.Changed {
		t.Errorf("another setup changes something: %+v", again.Steps)
	}
}

// contained is how a mesh is to be after an emergency, by the names of CAs.
type contained struct {
	// issuer has issued every certificate, and is the only intermediate that may.
	issuer string
	// anchor is all that the server trusts, and that agents do besides a root that
	// stands by.
	anchor string
	// compromised may not issue any more. Nobody trusts them, nor those that are
	// distrusted, which may.
	compromised, distrusted []string
}

// notContained is what is not so: stored, loaded, and in Vault.
func (w *world) notContained(t *testing.T, want contained) []string {
	t.Helper()
	var problems []string
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	v := w.vault(t)
	issuers := map[string]*vaultIssuer{} // of both mounts
	for _, mount := range []string{"pki", "pki_relay"} {
		for _, id := range list(t, v, mount+"/issuers") {
			data := w.read(t, mount+"/issuer/"+id)
			name, usage, key := fmt.Sprint(data["issuer_name"]), fmt.Sprint(data["usage"]), fmt.Sprint(data["key_id"])
			issuers[name] = &vaultIssuer{id: id, name: name, usage: usage, certificate: certificate(t, []byte(fmt.Sprint(data["certificate"])))}
			switch may := key != "" && strings.Contains(usage, "issuing-certificates"); {
			case may && slices.Contains(want.compromised, name):
				problem("%s in %s may still issue: its usage is %s", name, mount, usage)
			case may && mount == "pki_relay" && strings.HasPrefix(name, "relay-intermediate-") && name != want.issuer:
				problem("%s in %s may issue, beside %s", name, mount, want.issuer)
			}
		}
	}
	issuer, anchor := issuers[want.issuer], issuers[want.anchor]
	if issuer == nil || anchor == nil {
		return append(problems, fmt.Sprintf("there is no %s or no %s in Vault", want.issuer, want.anchor))
	}
	if !strings.Contains(issuer.usage, "issuing-certificates") {
		problem("%s may not issue: its usage is %s", issuer.name, issuer.usage)
	}
	for _, role := range list(t, v, "pki_relay/roles") {
		if data := w.read(t, "pki_relay/roles/"+role); data["issuer_ref"] != issuer.id {
			problem("the role %s signs with %v, not with %s (%s)", role, data["issuer_ref"], issuer.name, issuer.id)
		}
	}

	bad := map[string]string{} // names, by key
	for _, name := range slices.Concat(want.compromised, want.distrusted) {
		if issuers[name] == nil {
			problem("there is no %s in Vault: whether it is trusted cannot be seen", name)
			continue
		}
		bad[string(issuers[name].certificate.RawSubjectPublicKeyInfo)] = name
	}
	for _, cluster := range w.all() {
		chain, ca := w.secret(t, cluster)
		if err := pki.SignedBy(chain[0], issuer.certificate); err != nil {
			problem("%s: the leaf is not of %s: %v", cluster, issuer.name, err)
		}
		if len(ca) != 1 || !ca[0].Equal(anchor.certificate) {
			problem("%s: ca.crt is not %s alone but %d certificates, the first %s", cluster, anchor.name, len(ca), pki.Name(ca[0]))
		}
		if cluster == management {
			served, names := w.servedChain(t)
			if err := pki.SignedBy(served[0], issuer.certificate); err != nil {
				problem("%s: what is served is not of %s: %v", cluster, issuer.name, err)
			}
			if len(names) != 1 || string(names[0]) != string(anchor.certificate.RawSubject) {
				problem("%s: the server accepts %q, not %s alone", cluster, names, anchor.name)
			}
			continue
		}
		bundle := w.bundle(t, cluster)
		if !slices.ContainsFunc(bundle, anchor.certificate.Equal) {
			problem("%s: the agents' trust is without %s", cluster, anchor.name)
		}
		for _, trusted := range slices.Concat(ca, bundle) {
			if name := bad[string(trusted.RawSubjectPublicKeyInfo)]; name != "" {
				problem("%s trusts %s", cluster, name)
			}
		}
		used := bundle
		if ownTrust(cluster) {
			used = ca
		}
		if load, err := w.loaded(cluster); err != nil {
			problem("%v", err)
		} else if !slices.Equal(load.Anchors, serials(used)) {
			problem("%s: the agent has loaded the anchors %s, not %s", cluster, load.Anchors, serials(used))
		}
	}
	slices.Sort(problems)
	return problems
}

// emergencyIsSeen fails the test unless notContained sees what is not so, in a mesh
// that was just set up, and nothing else.
func (w *world) emergencyIsSeen(t *testing.T) {
	t.Helper()
	sees(t, w.notContained(t, contained{issuer: "relay-intermediate-g1", anchor: "relay-intermediate-g1", compromised: []string{"relay-root-g1"}}), "a root that is trusted",
		"relay-root-g1 in pki may still issue", "cluster1 trusts relay-root-g1", "cluster2 trusts relay-root-g1", "mgmt: ca.crt is not relay-intermediate-g1 alone", "mgmt: the server accepts", "cluster1: the agents' trust is without")
	if problems := w.notContained(t, contained{issuer: "relay-intermediate-g1", anchor: "relay-root-g1"}); len(problems) > 0 {
		t.Errorf("where nothing is compromised: %s", strings.Join(problems, "\n"))
	}
}
