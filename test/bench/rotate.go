package main

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	apiutil "github.com/cert-manager/cert-manager/pkg/api/util"
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	vaultapi "github.com/hashicorp/vault/api"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/client"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
)

// rotated is what the rotations of so many clusters take, by hand and as
// workflows.
type rotated struct {
	place    *place
	clusters int
	took     map[string]time.Duration
	// work is the processor time of everything on the machine, by way.
	work map[string]time.Duration
}

// The ways to rotate.
const (
	byRenewals     = "renewals"
	byLeafRotation = procedure.RotateLeafCertificates
	byMoves        = "renewals with a new intermediate"
	byIntermediate = procedure.RotateIntermediateCA
)

// rotations measures, for every number of clusters, certificates issued anew by
// the intermediate at work and by a new one: in a loop, one after the other, as
// somebody scripts it with cmctl and vault, and by the workflows. The agents read
// their Secrets by themselves, and nothing waits for a person. From far away only
// the most clusters are rotated, whose mesh reruns has left there.
func (b *bench) rotations(ctx context.Context, numbers []int, latency time.Duration) ([]rotated, error) {
	far, err := b.place(latency)
	if err != nil {
		return nil, err
	}
	all := []rotated{{place: far, clusters: slices.Max(numbers)}}
	for _, n := range numbers {
		all = append(all, rotated{place: b.places[0], clusters: n})
	}
	for i := range all {
		p, n := all[i].place, all[i].clusters
		if b.stands != n {
			if err := b.clean(ctx); err != nil {
				return nil, err
			}
		}
		s := b.spec(workloads(n), true)
		if _, err := b.setup(ctx, p, s, true); err != nil {
			return nil, err
		}
		// Its schedules would look at the mesh in the middle of a measurement.
		if err := b.cleanTemporal(ctx); err != nil {
			return nil, err
		}
		if all[i], err = b.rotate(ctx, p, s); err != nil {
			return nil, err
		}
		b.stands = 0 // what was rotated by hand is no mesh of SetupMesh's any more
	}
	return append(all[1:], all[0]), nil
}

func (b *bench) rotate(ctx context.Context, p *place, s mesh.Spec) (rotated, error) {
	r := rotated{place: p, clusters: len(s.Workloads), took: map[string]time.Duration{}, work: map[string]time.Duration{}}
	hand, err := b.byHand(p, s)
	if err != nil {
		return r, err
	}
	w, err := b.startWorker(ctx, filepath.Join(b.repo, "bin", "relaypki-worker"), p)
	if err != nil {
		return r, err
	}
	defer w.stop()
	in := procedure.MeshInput{Mesh: s.Mesh}
	var intermediate client.WorkflowRun
	for _, way := range []struct {
		name string
		run  func() error
	}{
		{byRenewals, func() error { return hand.renewals(ctx) }},
		{byLeafRotation, func() error {
			run, err := b.start(ctx, procedure.RotateLeafCertificates, procedure.RotateLeafInput{MeshInput: in})
			if err != nil {
				return err
			}
			return run.Get(ctx, nil)
		}},
		{byIntermediate, func() error {
			if intermediate, err = b.start(ctx, procedure.RotateIntermediateCA, procedure.RotateIntermediateInput{MeshInput: in}); err != nil {
				return err
			}
			return b.follow(ctx, intermediate, "its wait for the last certificate's end", waitsOut)
		}},
		{byMoves, func() error { return hand.moves(ctx) }},
	} {
		took, work, err := clocked(way.run)
		if err != nil {
			return r, fmt.Errorf("%s, %d clusters, %s: %w", way.name, r.clusters, p, err)
		}
		r.took[way.name], r.work[way.name] = took, work
		say("%s, %d clusters, %s: %s, %s of processor time", way.name, r.clusters, p, r.took[way.name].Round(time.Millisecond), r.work[way.name].Round(time.Second))
		if way.name == byIntermediate {
			if err := b.finish(ctx, intermediate); err != nil {
				return r, err
			}
		}
	}
	return r, hand.prove(ctx)
}

// clocked says how long something takes, and how much processor time of everything
// on the machine.
func clocked(run func() error) (took, work time.Duration, err error) {
	before, err := processorTime()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := run(); err != nil {
		return 0, 0, err
	}
	took = time.Since(began)
	after, err := processorTime()
	return took, after - before, err
}

// waitsOut says whether a rotation begins to wait for the last certificate's end
// here. Certificates live for a day; nothing else in it takes as long.
func waitsOut(event *historypb.HistoryEvent) bool {
	return event.GetTimerStartedEventAttributes().GetStartToFireTimeout().AsDuration() > time.Hour
}

// finish ends a rotation that waits for the last certificate's end; it would not
// take the word if it waited for anything else.
func (b *bench) finish(ctx context.Context, run client.WorkflowRun) error {
	update, err := b.temporal.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: run.GetID(), UpdateName: procedure.ApproveUpdate, WaitForStage: client.WorkflowUpdateStageCompleted,
		Args: []any{procedure.ApproveInput{Phase: "finish", By: "bench"}},
	})
	if err != nil {
		return err
	}
	if err := update.Get(ctx, nil); err != nil {
		return err
	}
	return run.Get(ctx, nil)
}

// byHand is a person's script, which does one thing after the other and looks at
// nothing but cert-manager's word. It is a favourable one: it starts no programs,
// and watches.
type byHand struct {
	vault *vaultapi.Client
	// renewed are the server's certificate and the clusters', in this order.
	renewed []renewed
	// intermediate is the one that was made, newRoot the root; the latter is empty if
	// there was none.
	intermediate, newRoot string
}

// renewed is one Certificate, and the role in Vault that signs for it.
type renewed struct {
	clients
	namespace, name, secret, role string
}

func (b *bench) byHand(p *place, s mesh.Spec) (*byHand, error) {
	s = s.WithDefaults()
	vault, err := b.vaultAt(p.vault)
	if err != nil {
		return nil, err
	}
	cluster := map[string]clients{}
	for _, context := range contexts() {
		if cluster[context], err = p.cluster(context); err != nil {
			return nil, err
		}
	}
	server, agent := s.Certificates.Server, s.Certificates.Client
	h := &byHand{vault: vault, renewed: []renewed{{cluster[management], s.Management.Namespace, server.Name, server.SecretName, s.PKI.Role}}}
	for i, w := range workloads(len(s.Workloads)) {
		h.renewed = append(h.renewed, renewed{cluster[w.context], w.name, agent.Name, agent.SecretName, s.RoleFor(s.Workloads[i])})
	}
	return h, nil
}

// renewals has every certificate issued anew.
func (h *byHand) renewals(ctx context.Context) error {
	for _, r := range h.renewed {
		if err := r.renew(ctx); err != nil {
			return err
		}
	}
	return nil
}

// moves makes a new intermediate, moves every role to it and has the certificate
// issued anew, and takes the previous intermediate out of use.
func (h *byHand) moves(ctx context.Context) error {
	role, err := h.vault.Logical().ReadWithContext(ctx, "pki_relay/roles/"+h.renewed[0].role)
	if err != nil || role == nil {
		return fmt.Errorf("vault pki_relay/roles/%s: there is nothing, or: %w", h.renewed[0].role, err)
	}
	before, _ := role.Data["issuer_ref"].(string)
	issuer, certificate, err := signIntermediate(ctx, h.vault)
	if err != nil {
		return err
	}
	h.intermediate = certificate
	for _, r := range h.renewed {
		if err := patch(ctx, h.vault, "pki_relay/roles/"+r.role, map[string]any{"issuer_ref": issuer}); err != nil {
			return err
		}
		if err := r.renew(ctx); err != nil {
			return err
		}
	}
	if _, err := h.vault.Logical().WriteWithContext(ctx, "pki_relay/config/issuers", map[string]any{"default": issuer}); err != nil {
		return err
	}
	return patch(ctx, h.vault, "pki_relay/issuer/"+before, map[string]any{"usage": "read-only,crl-signing,ocsp-signing"})
}

func patch(ctx context.Context, vault *vaultapi.Client, path string, data map[string]any) error {
	if _, err := vault.Logical().JSONMergePatch(ctx, path, data); err != nil {
		return fmt.Errorf("vault %s: %w", path, err)
	}
	return nil
}

// prove makes sure that moves has done what was measured.
func (h *byHand) prove(ctx context.Context) error {
	for _, r := range h.renewed {
		secret, err := r.kube.CoreV1().Secrets(r.namespace).Get(ctx, r.secret, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !bytes.Contains(secret.Data["tls.crt"], []byte(h.intermediate)) {
			return fmt.Errorf("secret %s/%s is not of the intermediate that was made by hand", r.namespace, r.secret)
		}
	}
	return nil
}

// renew triggers the certificate as "cmctl renew" does, and waits until there is
// another.
func (r renewed) renew(ctx context.Context) error {
	all := r.certManager.CertmanagerV1().Certificates(r.namespace)
	before, err := all.Get(ctx, r.name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	triggered := before.DeepCopy()
	apiutil.SetCertificateCondition(triggered, triggered.Generation, cmapi.CertificateConditionIssuing, cmmeta.ConditionTrue,
		"ManuallyTriggered", "Certificate re-issuance manually triggered")
	if triggered, err = all.UpdateStatus(ctx, triggered, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("triggering certificate %s/%s: %w", r.namespace, r.name, err)
	}
	w, err := all.Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", r.name).String(), ResourceVersion: triggered.ResourceVersion,
	})
	if err != nil {
		return err
	}
	defer w.Stop()
	late := time.After(2 * time.Minute)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			return fmt.Errorf("certificate %s/%s is not issued anew after two minutes", r.namespace, r.name)
		case event, ok := <-w.ResultChan():
			if !ok {
				return fmt.Errorf("the watch of certificate %s/%s has ended", r.namespace, r.name)
			}
			if now, ok := event.Object.(*cmapi.Certificate); ok && issuedAnew(before, now) {
				return nil
			}
		}
	}
}

// issuedAnew says whether a later revision is Ready, and no other under way.
func issuedAnew(before, now *cmapi.Certificate) bool {
	revision := func(c *cmapi.Certificate) int {
		if c.Status.Revision == nil {
			return 0
		}
		return *c.Status.Revision
	}
	is := func(condition cmapi.CertificateConditionType) bool {
		c := apiutil.GetCertificateCondition(now, condition)
		return c != nil && c.Status == cmmeta.ConditionTrue
	}
	return revision(now) > revision(before) && is(cmapi.CertificateConditionReady) && !is(cmapi.CertificateConditionIssuing)
}

func (t tables) rotation(b *strings.Builder) {
	b.WriteString(`
Certificates issued anew. The loops go over the server and then every cluster, one after the other: trigger
as "cmctl renew" does, wait until a new revision is Ready, and look at nothing else; by hand with a new intermediate, it is
made with three calls of Vault first, and each role moved before its trigger. They are in one program, without the starts
of cmctl, kubectl and vault. The workflows include their preflight, all handshakes computed before and after, fresh ones, and the
verification. The rotation of the intermediate is measured until the previous one may no longer issue and only the last
certificate's end is waited for; agents read their Secrets by themselves, and there is neither a soak nor an approval.

| clusters | | loop of renewals | rotate leaf | loop / rotate leaf | loop by hand with a new intermediate | rotate intermediate | loop / rotate intermediate | processors' work: loop, rotate leaf, loop by hand, rotate intermediate |
|---:|---|---:|---:|---:|---:|---:|---:|---|
`)
	for _, r := range t.rotated {
		fmt.Fprintf(b, "| %d | %s | %s | %s | %.1f | %s | %s | %.1f | %.0f s, %.0f s, %.0f s, %.0f s |\n", r.clusters, r.place.in(),
			seconds(r.took[byRenewals]), seconds(r.took[byLeafRotation]), ratio(r.took[byRenewals], r.took[byLeafRotation]),
			seconds(r.took[byMoves]), seconds(r.took[byIntermediate]), ratio(r.took[byMoves], r.took[byIntermediate]),
			r.work[byRenewals].Seconds(), r.work[byLeafRotation].Seconds(), r.work[byMoves].Seconds(), r.work[byIntermediate].Seconds())
	}
}
