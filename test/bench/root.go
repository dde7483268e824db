package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"go.temporal.io/sdk/client"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// rooted is what it takes to replace the root of so many clusters. What has not
// been measured, or not yet, is in none of the maps.
type rooted struct {
	clusters int
	took     map[string]time.Duration
	// work is the processor time of everything on the machine, by way.
	work map[string]time.Duration
	// emergencies say what has come when, by what comes first.
	emergencies map[string]procedure.Emergency
	// histories are of the workflows, by way.
	histories map[string]weight
}

// The ways to replace a root. The emergencies' are by what comes first.
const (
	byRoot      = procedure.RotateRootCA
	byRootMoves = "passes by hand with a new root"
)

// longestWay is for how long one way is waited for, before it is stuck.
const longestWay = 10 * time.Minute

// reloads is how long an agent of the lab takes at most to load what was stored: the
// stand-in looks each second. A real one takes the kubelet's minutes, and a
// rotation waits for them once in each pass.
const reloads = 3 * time.Second

// roots measures, for every number of clusters, how long it takes to replace the
// root: by a rotation, by an emergency of each kind, and by a person's script. What
// there is by then is given to come after each of them. Where one fails, the other
// numbers of clusters are measured nevertheless.
func (b *bench) roots(ctx context.Context, numbers []int, come func([]rooted) error) error {
	var all []rooted
	var failed []error
	for _, n := range numbers {
		all = append(all, rooted{clusters: n, took: map[string]time.Duration{}, work: map[string]time.Duration{}, emergencies: map[string]procedure.Emergency{}, histories: map[string]weight{}})
		err := b.root(ctx, all[len(all)-1], func() error { return come(all) })
		if err != nil {
			err = fmt.Errorf("the root of %d clusters: %w", n, err)
			say("%v", err)
			failed = append(failed, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(failed...)
}

func (b *bench) root(ctx context.Context, r rooted, come func() error) error {
	p, began := b.places[0], time.Now()
	if b.stands != r.clusters {
		if err := b.clean(ctx); err != nil {
			return err
		}
	}
	b.stands = 0 // what was rotated by hand is no mesh of SetupMesh's any more
	s := b.spec(workloads(r.clusters), true)
	s.Rotation.ReloadWithin = &mesh.Duration{Duration: reloads}
	if _, err := b.setup(ctx, p, s, true); err != nil {
		return err
	}
	// Its schedules would look at the mesh in the middle of a measurement.
	if err := b.cleanTemporal(ctx); err != nil {
		return err
	}
	say("set up %d clusters, in %s", r.clusters, time.Since(began).Round(time.Second))
	hand, err := b.byHand(p, s)
	if err != nil {
		return err
	}
	w, err := b.startWorker(ctx, filepath.Join(b.repo, "bin", "relaypki-worker"), p)
	if err != nil {
		return err
	}
	defer w.stop()
	in := procedure.MeshInput{Mesh: s.Mesh}
	for _, way := range []rootWay{
		{
			name: byRoot,
			start: func(ctx context.Context) (client.WorkflowRun, error) {
				return b.start(ctx, procedure.RotateRootCA, procedure.RotateRootInput{MeshInput: in, Approval: mesh.ApprovalNone, Consumers: true})
			},
			ends: func(ctx context.Context, run client.WorkflowRun) error {
				return b.follow(ctx, run, "its wait for the last certificate's end", waitsOut)
			},
			after: b.finish,
		},
		b.emergency(in, procedure.ContainmentFirst, r),
		b.emergency(in, procedure.AvailabilityFirst, r),
		{
			name:  byRootMoves,
			ends:  func(ctx context.Context, _ client.WorkflowRun) error { return hand.replacesRoot(ctx) },
			after: func(ctx context.Context, _ client.WorkflowRun) error { return hand.proveRoot(ctx) },
		},
	} {
		if err := b.goes(ctx, way, r); err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		if err := come(); err != nil {
			return err
		}
	}
	return nil
}

// rootWay is a way to replace a root.
type rootWay struct {
	name string
	// start starts the workflow; nil for none.
	start func(context.Context) (client.WorkflowRun, error)
	// ends returns when what is measured is over; after is not measured.
	ends, after func(context.Context, client.WorkflowRun) error
}

func (b *bench) emergency(in procedure.MeshInput, first string, r rooted) rootWay {
	return rootWay{
		name: first,
		start: func(ctx context.Context) (client.WorkflowRun, error) {
			return b.start(ctx, procedure.EmergencyReissue, procedure.EmergencyInput{
				MeshInput: in, Compromised: procedure.CompromisedRoot, First: first, Reason: "measured", Incident: "bench-" + first,
			})
		},
		ends: func(ctx context.Context, run client.WorkflowRun) error {
			var result procedure.RotateResult
			if err := run.Get(ctx, &result); err != nil {
				return err
			}
			if result.Emergency == nil {
				return errors.New("its result says nothing of the emergency")
			}
			r.emergencies[first] = *result.Emergency
			return nil
		},
	}
}

// goes measures one way.
func (b *bench) goes(ctx context.Context, way rootWay, r rooted) error {
	ctx, cancel := context.WithTimeout(ctx, longestWay)
	defer cancel()
	what := fmt.Sprintf("%s, %d clusters", way.name, r.clusters)
	say("%s: begins", what)
	var run client.WorkflowRun
	first := ""
	took, work, err := clocked(func() (err error) {
		if way.start != nil {
			if run, err = way.start(ctx); err != nil {
				return err
			}
			first = run.GetRunID() // which becomes the last one's, if it continues as new
			told := b.tell(ctx, run.GetID(), what)
			defer told()
		}
		return way.ends(ctx, run)
	})
	if err == nil && way.after != nil {
		err = way.after(ctx, run)
	}
	if err != nil {
		return err
	}
	r.took[way.name], r.work[way.name] = took, work
	line := fmt.Sprintf("%s: %s, %s of processor time", what, took.Round(time.Millisecond), work.Round(time.Second))
	if run != nil {
		if r.histories[way.name], err = b.weigh(ctx, run.GetID(), first); err != nil {
			return err
		}
		line += "; history: " + r.histories[way.name].String()
	}
	if e, ok := r.emergencies[way.name]; ok {
		line += fmt.Sprintf("; issuing stopped after %s, server distrusts %s, distrusted %s, reconnected %s",
			sinceBegan(e, e.IssuingStopped), sinceBegan(e, e.ServerDistrusts), sinceBegan(e, e.Distrusted), sinceBegan(e, e.Reconnected))
	}
	say("%s", line)
	return nil
}

// tell says from time to time where a run is, until the returned function is called.
func (b *bench) tell(ctx context.Context, id, what string) func() {
	ctx, stop := context.WithCancel(ctx)
	began := time.Now()
	go func() {
		for every := time.NewTicker(15 * time.Second); ; {
			select {
			case <-ctx.Done():
				every.Stop()
				return
			case <-every.C:
			}
			var now procedure.Progress
			answer, err := b.temporal.QueryWorkflow(ctx, id, "", procedure.ProgressQuery)
			if err == nil {
				err = answer.Get(&now)
			}
			if err != nil {
				continue // it is asked again
			}
			done := 0
			for _, c := range now.Clusters {
				if c.State == procedure.Done {
					done++
				}
			}
			say("%s: at %s after %s, %d of %d clusters done in it; waits for: %s", what, now.Phase, time.Since(began).Round(time.Second), done, len(now.Clusters), now.Awaiting)
		}
	}()
	return stop
}

// weight is the size of a procedure's histories.
type weight struct {
	// runs, events and bytes are of the procedure's own runs; longest is the most
	// events of one.
	runs, longest, events int
	bytes                 int64
	// all are with those of the workflows that it has started.
	allEvents int
	allBytes  int64
}

func (w weight) String() string {
	return fmt.Sprintf("%d events, %s in %d runs, and with its clusters' %d events, %s", w.events, mebibytes(w.bytes), w.runs, w.allEvents, mebibytes(w.allBytes))
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// weigh weighs a run, those that it continued as, and what they have started.
func (b *bench) weigh(ctx context.Context, id, run string) (weight, error) {
	var w weight
	for run != "" {
		described, err := b.temporal.DescribeWorkflowExecution(ctx, id, run)
		if err != nil {
			return w, fmt.Errorf("history of %s: %w", id, err)
		}
		events, err := b.history(ctx, id, run)
		if err != nil {
			return w, err
		}
		size := described.GetWorkflowExecutionInfo().GetHistorySizeBytes()
		w.runs, w.longest = w.runs+1, max(w.longest, len(events))
		w.events, w.allEvents = w.events+len(events), w.allEvents+len(events)
		w.bytes, w.allBytes = w.bytes+size, w.allBytes+size
		run = ""
		for _, event := range events {
			if next := event.GetWorkflowExecutionContinuedAsNewEventAttributes(); next != nil {
				run = next.GetNewExecutionRunId()
			}
			if child := event.GetChildWorkflowExecutionStartedEventAttributes().GetWorkflowExecution(); child != nil {
				of, err := b.weigh(ctx, child.GetWorkflowId(), child.GetRunId())
				if err != nil {
					return w, err
				}
				w.allEvents, w.allBytes = w.allEvents+of.allEvents, w.allBytes+of.allBytes
			}
		}
	}
	return w, nil
}

// replacesRoot makes a new root, the bridge to it and an intermediate below it, and
// goes from chain to chain: bridged, pivot and final, for each of which every
// certificate is issued anew. Agents trust both roots meanwhile, and the new one alone
// in the end. It does what the rotation's plan has as commands, and looks at nothing.
func (h *byHand) replacesRoot(ctx context.Context) error {
	m, err := h.makeRoot(ctx)
	if err != nil {
		return err
	}
	h.intermediate, h.newRoot = m.intermediatePEM, m.rootPEM
	if err := h.trust(ctx, func(have string) string { return strings.TrimSpace(have) + "\n" + m.rootPEM + "\n" }); err != nil {
		return err
	}
	for i, above := range [][]string{{m.bridge, m.oldRoot}, {m.bridge}, {m.root}} {
		if err := patch(ctx, h.vault, "pki_relay/issuer/"+m.intermediate, map[string]any{"manual_chain": append([]string{m.intermediate}, above...)}); err != nil {
			return err
		}
		for _, r := range h.renewed {
			if i == 0 {
				if err := patch(ctx, h.vault, "pki_relay/roles/"+r.role, map[string]any{"issuer_ref": m.intermediate}); err != nil {
					return err
				}
			}
			if err := r.renew(ctx); err != nil {
				return err
			}
		}
	}
	if err := h.trust(ctx, func(string) string { return m.rootPEM + "\n" }); err != nil {
		return err
	}
	for _, old := range []struct{ mount, issuer, next string }{{"pki_relay", m.oldIntermediate, m.intermediate}, {"pki", m.signedOld, m.signsNew}} {
		if _, err := h.vault.Logical().WriteWithContext(ctx, old.mount+"/config/issuers", map[string]any{"default": old.next}); err != nil {
			return fmt.Errorf("vault %s/config/issuers: %w", old.mount, err)
		}
		if err := patch(ctx, h.vault, old.mount+"/issuer/"+old.issuer, map[string]any{"usage": "read-only,crl-signing,ocsp-signing"}); err != nil {
			return err
		}
	}
	return nil
}

// rootMoved are the issuers' ids, in the mount pki_relay, and the two roots' in pki.
type rootMoved struct {
	oldRoot, oldIntermediate, root, bridge, intermediate string
	signedOld, signsNew                                  string
	rootPEM, intermediatePEM                             string
}

func (h *byHand) makeRoot(ctx context.Context) (m rootMoved, err error) {
	role, err := read(ctx, h.vault, "pki_relay/roles/"+h.renewed[0].role)
	if err != nil {
		return m, err
	}
	m.oldIntermediate = text(role, "issuer_ref")
	at, err := read(ctx, h.vault, "pki_relay/issuer/"+m.oldIntermediate)
	if err != nil {
		return m, err
	}
	if chain, _ := at["manual_chain"].([]any); len(chain) > 1 {
		m.oldRoot, _ = chain[len(chain)-1].(string)
	}
	signs, err := read(ctx, h.vault, "pki/config/issuers")
	if err != nil {
		return m, err
	}
	m.signedOld = text(signs, "default")

	w := writer{vault: h.vault}
	named := map[string]any{"common_name": "relay-root-ca by hand", "organization": "mesh.solo.io", "ttl": "87600h"}
	root := w.put(ctx, "pki/root/rotate/internal", named)
	m.signsNew, m.rootPEM = text(root, "issuer_id"), strings.TrimSpace(text(root, "certificate"))
	crossed := maps.Clone(named)
	crossed["key_ref"] = root["key_id"]
	csr := w.put(ctx, "pki/intermediate/cross-sign", crossed)
	bridge := w.put(ctx, "pki/issuer/"+m.signedOld+"/sign-intermediate", map[string]any{"csr": csr["csr"], "use_csr_values": true, "ttl": "43800h", "format": "pem"})
	for _, c := range []struct {
		certificate any
		id          *string
	}{{root["certificate"], &m.root}, {bridge["certificate"], &m.bridge}} {
		answer := w.put(ctx, "pki_relay/issuers/import/cert", map[string]any{"pem_bundle": c.certificate})
		if ids, _ := answer["imported_issuers"].([]any); len(ids) == 1 {
			*c.id, _ = ids[0].(string)
		}
	}
	csr = w.put(ctx, "pki_relay/intermediate/generate/internal", map[string]any{"common_name": "gloo-mesh-mgmt-server-ca", "organization": "mesh.solo.io"})
	signed := w.put(ctx, "pki/issuer/"+m.signsNew+"/sign-intermediate", map[string]any{"csr": csr["csr"], "use_csr_values": true, "ttl": "43800h", "format": "pem"})
	set := w.put(ctx, "pki_relay/intermediate/set-signed", map[string]any{"certificate": signed["certificate"]})
	mapping, _ := set["mapping"].(map[string]any)
	for id, key := range mapping {
		if key != "" {
			m.intermediate = id
		}
	}
	m.intermediatePEM = strings.TrimSpace(text(signed, "certificate"))
	// Vault tries a chain by the issuer's name, and refuses one for an issuer without.
	if w.failed == nil {
		w.failed = patch(ctx, h.vault, "pki_relay/issuer/"+m.intermediate, map[string]any{"issuer_name": "relay-intermediate-by-hand"})
	}
	if w.failed == nil && slices.Contains([]string{m.oldRoot, m.oldIntermediate, m.root, m.bridge, m.intermediate, m.signedOld, m.signsNew, m.rootPEM, m.intermediatePEM}, "") {
		w.failed = errors.New("vault answers without one of the CAs that were made or their issuers")
	}
	return m, w.failed
}

// trust changes what every agent trusts.
func (h *byHand) trust(ctx context.Context, change func(have string) string) error {
	for _, r := range h.renewed[1:] {
		secrets := r.kube.CoreV1().Secrets(r.namespace)
		secret, err := secrets.Get(ctx, mesh.RootSecretName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		secret.Data["ca.crt"] = []byte(change(string(secret.Data["ca.crt"])))
		if _, err := secrets.Update(ctx, secret, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// proveRoot makes sure that replacesRoot has done what was measured.
func (h *byHand) proveRoot(ctx context.Context) error {
	if err := h.prove(ctx); err != nil {
		return err
	}
	for i, r := range h.renewed {
		names := []string{r.secret}
		if i > 0 {
			names = append(names, mesh.RootSecretName)
		}
		for _, name := range names {
			secret, err := r.kube.CoreV1().Secrets(r.namespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if string(bytes.TrimSpace(secret.Data["ca.crt"])) != h.newRoot {
				return fmt.Errorf("secret %s/%s does not trust the root that was made by hand alone", r.namespace, name)
			}
		}
	}
	return nil
}

func read(ctx context.Context, vault *vaultapi.Client, path string) (map[string]any, error) {
	answer, err := vault.Logical().ReadWithContext(ctx, path)
	if err != nil || answer == nil {
		return nil, fmt.Errorf("vault %s: there is nothing, or: %w", path, err)
	}
	return answer.Data, nil
}

func text(data map[string]any, key string) string {
	value, _ := data[key].(string)
	return value
}

func (t tables) replacedRoots(b *strings.Builder) {
	b.WriteString(`
The root replaced. By hand, in one program without the starts of cmctl, kubectl and vault: new root, bridge and intermediate
are made, the trust of one agent after the other is added to, and every certificate is issued anew, one after the other, for each of the
chains bridged, pivot and final, with no look at anything else; then the old root is taken out of the agents' trust. The rotation has its preflight, gates, fresh
handshakes and verification besides, and is measured until only the last certificate's end is waited for, without a soak or an
approval, and with rotation.reloadWithin at ` + reloads.String() + `, what the lab's agents are given to read their Secrets; each pass waits for that once. An emergency restarts every process and is measured until it has proven every member.

| clusters | passes by hand | rotate root | by hand / rotate root | emergency, availability first | emergency, containment first | processors' work: by hand, rotate root, emergencies |
|---:|---:|---:|---:|---:|---:|---|
`)
	for _, r := range t.roots {
		work := func(way string) string {
			if _, measured := r.took[way]; !measured {
				return noMeasurement
			}
			return fmt.Sprintf("%.0f s", r.work[way].Seconds())
		}
		quotient := noMeasurement
		if r.took[byRootMoves] > 0 && r.took[byRoot] > 0 {
			quotient = fmt.Sprintf("%.1f", ratio(r.took[byRootMoves], r.took[byRoot]))
		}
		fmt.Fprintf(b, "| %d | %s | %s | %s | %s | %s | %s, %s, %s, %s |\n", r.clusters, r.in(byRootMoves), r.in(byRoot), quotient,
			r.in(procedure.AvailabilityFirst), r.in(procedure.ContainmentFirst),
			work(byRootMoves), work(byRoot), work(procedure.AvailabilityFirst), work(procedure.ContainmentFirst))
	}
	b.WriteString(`
What has come when in the emergencies, since the run began, and the histories of all three.

| clusters | | issuing stopped | server distrusts | distrusted everywhere | reconnected | runs | longest history of one | events of all runs | bytes of all runs | with the clusters' workflows |
|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---|
`)
	for _, r := range t.roots {
		for _, way := range []struct{ name, title string }{
			{byRoot, "rotate root"}, {procedure.AvailabilityFirst, "emergency, availability first"}, {procedure.ContainmentFirst, "emergency, containment first"},
		} {
			h, measured := r.histories[way.name]
			if !measured {
				continue
			}
			e := r.emergencies[way.name]
			fmt.Fprintf(b, "| %d | %s | %s | %s | %s | %s | %d | %d | %d | %s | %d events, %s |\n", r.clusters, way.title,
				sinceBegan(e, e.IssuingStopped), sinceBegan(e, e.ServerDistrusts), sinceBegan(e, e.Distrusted), sinceBegan(e, e.Reconnected),
				h.runs, h.longest, h.events, mebibytes(h.bytes), h.allEvents, mebibytes(h.allBytes))
		}
	}
}

// rootsInShort is for who wants to rotate a root.
func (t tables) rootsInShort(b *strings.Builder) {
	b.WriteString(`| clusters | rotate root, until only the last certificate's end is waited for | emergency root, availability first: old root distrusted, all reconnected | emergency root, containment first: server distrusts the old root, all reconnected | events and size of the rotation's history |
|---:|---:|---:|---:|---:|
`)
	for _, r := range t.roots {
		available, contained := r.emergencies[procedure.AvailabilityFirst], r.emergencies[procedure.ContainmentFirst]
		history := noMeasurement
		if h, measured := r.histories[byRoot]; measured {
			history = fmt.Sprintf("%d, %s", h.events, mebibytes(h.bytes))
		}
		fmt.Fprintf(b, "| %d | %s | %s, %s | %s, %s | %s |\n", r.clusters, r.in(byRoot), sinceBegan(available, available.Distrusted), sinceBegan(available, available.Reconnected),
			sinceBegan(contained, contained.ServerDistrusts), sinceBegan(contained, contained.Reconnected), history)
	}
}

// in is how long a way took.
func (r rooted) in(way string) string {
	if took, measured := r.took[way]; measured {
		return seconds(took)
	}
	return noMeasurement
}

// sinceBegan is how long after an emergency began something has come.
func sinceBegan(e procedure.Emergency, at time.Time) string {
	if at.IsZero() {
		return noMeasurement
	}
	return seconds(at.Sub(e.Began))
}
