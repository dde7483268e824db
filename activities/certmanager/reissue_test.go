package certmanager

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	cmfake "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned/fake"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubefake "k8s.io/client-go/kubernetes/fake"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// issuances is a cluster with one Certificate, whose cert-manager is the test: it
// issues when it is told to.
type issuances struct {
	t             *testing.T
	root, old, by *authority
	key           *ecdsa.PrivateKey // for the next; nil for a new one
	requested     time.Time         // when the next is requested; now if zero
	cluster       *site.Cluster
	changes       int
}

const relayNamespace = "gloo-mesh"

func newIssuances(t *testing.T) *issuances {
	t.Helper()
	w := &issuances{t: t, root: ca(t, "root", nil)}
	w.old = ca(t, "intermediate g1", w.root)
	w.by = w.old
	w.cluster = &site.Cluster{Name: "cluster1", Kube: kubefake.NewClientset(), CertManager: cmfake.NewClientset()}
	cert := certificateFor(w.in().asked())
	cert.UID, cert.Generation = "uid", 1
	if _, err := w.cluster.CertManager.CertmanagerV1().Certificates(relayNamespace).Create(t.Context(), cert, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.begin("DoesNotExist")
	w.finish()
	return w
}

// in asks for a certificate of the CA that issues now.
func (w *issuances) in() ReissueInput {
	return ReissueInput{
		Mesh: "prod", Context: "cluster1", Namespace: relayNamespace, RootPEM: w.root.pem, IntermediatePEM: w.by.pem, Mode: procedure.Apply,
		Certificate: mesh.Certificate{
			Name: "relay-client-tls", SecretName: "relay-client-tls-secret", CommonName: "cluster1", DNSNames: []string{"cluster1"},
			Duration: mesh.Hours(24), RenewBefore: mesh.Minutes(30), KeyAlgorithm: "ECDSA", KeySize: 256,
		},
	}
}

func (w *issuances) live() *cmapi.Certificate {
	w.t.Helper()
	live, err := w.cluster.CertManager.CertmanagerV1().Certificates(relayNamespace).Get(context.Background(), "relay-client-tls", metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return live
}

func (w *issuances) change(how func(*cmapi.Certificate)) {
	w.t.Helper()
	live := w.live()
	how(live)
	w.changes++
	live.ResourceVersion = strconv.Itoa(w.changes)
	if _, err := w.cluster.CertManager.CertmanagerV1().Certificates(relayNamespace).Update(context.Background(), live, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func set(cert *cmapi.Certificate, conditions ...cmapi.CertificateCondition) {
	for _, c := range conditions {
		kept := []cmapi.CertificateCondition{c}
		for _, old := range cert.Status.Conditions {
			if old.Type != c.Type {
				kept = append(kept, old)
			}
		}
		cert.Status.Conditions = kept
	}
}

// begin is an issuance by itself.
func (w *issuances) begin(reason string) {
	w.t.Helper()
	w.change(func(c *cmapi.Certificate) { set(c, cond("Issuing", "True", 1, reason, "")) })
}

// finish has the issuance that is under way end with a certificate of the CA
// that issues now.
func (w *issuances) finish() {
	w.t.Helper()
	if condition(w.live(), cmapi.CertificateConditionIssuing).Status != cmmeta.ConditionTrue {
		w.t.Fatal("no issuance is under way")
	}
	key := w.key
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			w.t.Fatal(err)
		}
	}
	leaf, leafPEM := sign(w.t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "cluster1"}, DNSNames: []string{"cluster1"},
		NotBefore: time.Now().Add(-backdating), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key.Public(), w.by, nil)
	w.change(func(c *cmapi.Certificate) {
		next := issuedRevision(c) + 1
		requested := w.requested
		if requested.IsZero() {
			requested = time.Now()
		}
		yes := true
		request := &cmapi.CertificateRequest{
			ObjectMeta: metav1.ObjectMeta{
				Name: fmt.Sprintf("relay-client-tls-%d", next), Namespace: relayNamespace, CreationTimestamp: metav1.NewTime(requested.Truncate(time.Second)),
				Annotations:     map[string]string{cmapi.CertificateRequestRevisionAnnotationKey: strconv.Itoa(next), cmapi.CertificateNameKey: c.Name},
				OwnerReferences: []metav1.OwnerReference{{UID: c.UID, Controller: &yes}},
			},
			Status: cmapi.CertificateRequestStatus{Certificate: []byte(leafPEM + w.by.pem), CA: []byte(w.root.pem)},
		}
		if _, err := w.cluster.CertManager.CertmanagerV1().CertificateRequests(relayNamespace).Create(context.Background(), request, metav1.CreateOptions{}); err != nil {
			w.t.Fatal(err)
		}
		until := metav1.NewTime(leaf.NotAfter)
		c.Status = cmapi.CertificateStatus{Revision: &next, NotAfter: &until, Conditions: []cmapi.CertificateCondition{cond("Ready", "True", 1, "Ready", "")}}
	})
}

// fail has the issuance that is under way fail.
func (w *issuances) fail(message string) {
	w.t.Helper()
	w.change(func(c *cmapi.Certificate) {
		failures, now := attempts(c)+1, metav1.Now()
		c.Status.FailedIssuanceAttempts, c.Status.LastFailureTime = &failures, &now
		set(c, cond("Issuing", "False", 1, "Failed", message))
	})
}

// reissue is a try, as a worker that has just started makes it.
func (w *issuances) reissue(in ReissueInput) *reissue {
	return &reissue{in: in, c: w.cluster, name: kube.Name(cmapi.CertificateKind, in.Namespace, in.Certificate.Name)}
}

// waits wants a look that goes on waiting, with these words.
func (w *issuances) waits(r *reissue, words string) {
	w.t.Helper()
	done, state, err := r.look(w.t.Context())
	if done || err != nil || !strings.Contains(state, words) {
		w.t.Fatalf("%v %q %v, want one that waits with %q", done, state, err, words)
	}
}

// ends wants all to be as wanted, without another issuance.
func (w *issuances) ends(r *reissue, changes int) {
	w.t.Helper()
	w.waits(r, "looked at once more")
	done, state, err := r.look(w.t.Context())
	if !done || err != nil || len(r.result.Changes) != changes {
		w.t.Fatalf("%v %q %v %+v, want %d changes", done, state, err, r.result, changes)
	}
	if got := r.result.Leaf.AuthorityKeyID; got != pki.Hex(w.by.cert.SubjectKeyId) {
		w.t.Errorf("authority key id %s", got)
	}
	if w.triggered() {
		w.t.Error("an issuance is under way")
	}
}

func (w *issuances) triggered() bool {
	return condition(w.live(), cmapi.CertificateConditionIssuing).Status == cmmeta.ConditionTrue
}

func (w *issuances) rotate() { w.by = ca(w.t, "intermediate g2", w.root) }

func TestReissueUnderAnotherIntermediate(t *testing.T) {
	w := newIssuances(t)
	first := w.live()
	r := w.reissue(w.in())
	w.ends(r, 0) // it is of this CA

	w.rotate()
	r = w.reissue(w.in())
	w.waits(r, "is triggered")
	w.waits(r, "being issued")
	w.waits(r, "stays in its Secret")
	w.finish()
	w.ends(r, 1)
	if got := issuedRevision(w.live()); got != issuedRevision(first)+1 {
		t.Errorf("revision %d, was %d", got, issuedRevision(first))
	}
	w.ends(w.reissue(w.in()), 0)
}

// TestReissueKilled: a worker dies after the trigger, and another one begins
// anew, before or after the issuance has ended.
func TestReissueKilled(t *testing.T) {
	for _, ended := range []bool{false, true} {
		t.Run(fmt.Sprintf("ended %v", ended), func(t *testing.T) {
			w := newIssuances(t)
			in := w.in()
			in.Since = time.Now().Add(-time.Minute)
			w.requested = in.Since.Add(-time.Hour)
			w.begin("Renewing")
			w.finish()
			w.requested = time.Time{}
			w.waits(w.reissue(in), "is triggered")
			changes := 0
			r := w.reissue(in)
			if !ended {
				w.waits(r, "being issued")
				changes = 1 // which is of the one before, and told by its reason
			}
			w.finish()
			w.ends(r, changes)
			if got := issuedRevision(w.live()); got != 3 {
				t.Errorf("revision %d, want one issuance since the second", got)
			}
		})
	}
}

// TestTriggerLeavesAlone: between a look and the trigger, cert-manager has begun
// to issue by itself, or has issued.
func TestTriggerLeavesAlone(t *testing.T) {
	w := newIssuances(t)
	seen := w.live()
	w.begin("Renewing")
	if now, did, err := trigger(t.Context(), w.cluster, *seen); err != nil || did || condition(&now, cmapi.CertificateConditionIssuing).Reason != "Renewing" {
		t.Errorf("being issued: %v %v %+v", did, err, now.Status)
	}
	w.finish()
	if _, did, err := trigger(t.Context(), w.cluster, *seen); err != nil || did || w.triggered() {
		t.Errorf("issued since: %v %v", did, err)
	}
	if _, did, err := trigger(t.Context(), w.cluster, *w.live()); err != nil || !did || !w.triggered() {
		t.Errorf("%v %v", did, err)
	}
}

// TestReissueDuringRenewal: a renewal is under way that Vault has signed with
// the previous intermediate, or with the new one.
func TestReissueDuringRenewal(t *testing.T) {
	w := newIssuances(t)
	w.begin("Renewing")
	w.rotate()
	in, next := w.in(), w.by
	r := w.reissue(in)
	w.waits(r, "being issued: Renewing")
	w.by = w.old
	w.finish()
	w.by = next
	w.waits(r, "is triggered")
	w.finish()
	w.ends(r, 1)

	w.begin("Renewing")
	r = w.reissue(in)
	w.waits(r, "being issued: Renewing")
	w.finish()
	w.ends(r, 0)
	// It begins between the two looks.
	r = w.reissue(in)
	w.waits(r, "looked at once more")
	w.begin("Renewing")
	w.waits(r, "being issued: Renewing")
	w.by = w.old
	w.finish()
	w.by = next
	w.waits(r, "is triggered")
	w.finish()
	w.ends(r, 1)
}

func TestReissueSince(t *testing.T) {
	began := time.Now().Add(-time.Hour).Truncate(time.Second)
	for _, c := range []struct {
		name      string
		requested time.Time
		gone      bool
		again     bool
	}{
		{name: "requested before", requested: began.Add(-time.Second), again: true},
		{name: "in that second", requested: began},
		{name: "since", requested: began.Add(time.Minute)},
		{name: "the request is gone, and it was signed since", requested: began, gone: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newIssuances(t)
			w.requested = c.requested
			w.begin("Renewing")
			w.finish()
			w.requested = time.Time{}
			live := w.live()
			if c.gone {
				stored, err := readIssued(t.Context(), w.cluster, live)
				if err != nil {
					t.Fatal(err)
				}
				if requestedSince(issued{chainPEM: stored.chainPEM}, began) == c.again {
					t.Errorf("again is not %v", c.again)
				}
				if requestedSince(issued{chainPEM: stored.chainPEM}, time.Now().Add(time.Minute)) {
					t.Error("it was signed before the rotation begins")
				}
				return
			}
			in := w.in()
			in.Since = began
			r := w.reissue(in)
			if c.again {
				w.waits(r, "is triggered")
				w.finish()
				w.ends(r, 1)
			} else {
				w.ends(r, 0)
			}
		})
	}
}

// TestReissueInTheFirstSecond: what is requested in the second in which the
// rotation began would be requested again by whoever comes next.
func TestReissueInTheFirstSecond(t *testing.T) {
	w := newIssuances(t)
	in := w.in()
	in.Since = time.Now()
	r := w.reissue(in)
	deadline := time.Now().Add(10 * time.Second)
	for !w.triggered() {
		if _, _, err := r.look(t.Context()); err != nil || time.Now().After(deadline) {
			t.Fatal("not triggered", err)
		}
	}
	if time.Now().Truncate(time.Second).Before(in.Since) {
		t.Error("triggered in the very second")
	}
	w.finish()
	w.ends(r, 1)
	w.ends(w.reissue(in), 0)
}

func TestReissueFails(t *testing.T) {
	for _, c := range []struct {
		name, message, says string
		kind                failure.Kind
		permanent           bool
	}{
		{"Vault refuses", "Vault failed to sign certificate: Code: 403. permission denied", "policy", failure.Denied, true},
		{"Vault is sealed", "Vault failed to sign certificate: Code: 503. Vault is sealed", "Vault is sealed", failure.Unavailable, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newIssuances(t)
			w.rotate()
			stored, err := readIssued(t.Context(), w.cluster, w.live())
			if err != nil {
				t.Fatal(err)
			}
			chain, err := pki.ParseChain(stored.chainPEM)
			if err != nil {
				t.Fatal(err)
			}
			r := w.reissue(w.in())
			w.waits(r, "is triggered")
			w.fail(c.message)
			done, _, err := r.look(t.Context())
			if done || err == nil {
				t.Fatalf("%v %v, want an error", done, err)
			}
			for _, words := range []string{c.says, pki.Serial(chain[0]), "stays in its Secret"} {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("%v, want %q", err, words)
				}
			}
			if failure.IsPermanent(err) != c.permanent || c.permanent && failure.KindOf(err) != c.kind {
				t.Errorf("%s, permanent %v: %v", failure.KindOf(err), failure.IsPermanent(err), err)
			}
			// The cause is gone: the next try triggers out of the back-off.
			r = w.reissue(w.in())
			w.waits(r, "is triggered")
			w.finish()
			w.ends(r, 1)
		})
	}
}

// TestReissueProves: what comes of an issuance of ours and is not as wanted is
// an error, and no reason to issue without end.
func TestReissueProves(t *testing.T) {
	t.Run("the previous intermediate", func(t *testing.T) {
		w := newIssuances(t)
		w.rotate()
		r := w.reissue(w.in())
		w.waits(r, "is triggered")
		w.by = w.old
		w.finish()
		w.mismatch(r, "not by the intermediate")
	})
	t.Run("the same key", func(t *testing.T) {
		w := newIssuances(t)
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		w.key = key
		w.begin("Renewing")
		w.finish()
		w.rotate()
		r := w.reissue(w.in())
		w.waits(r, "is triggered")
		w.finish()
		w.mismatch(r, "key from before")
	})
	t.Run("a key that is kept", func(t *testing.T) {
		w := newIssuances(t)
		w.change(func(c *cmapi.Certificate) { c.Spec.PrivateKey.RotationPolicy = cmapi.RotationPolicyNever })
		w.rotate()
		w.mismatch(w.reissue(w.in()), "rotationPolicy is Never")
		if w.triggered() {
			t.Error("and yet triggered")
		}
	})
	t.Run("no Certificate", func(t *testing.T) {
		w := newIssuances(t)
		in := w.in()
		in.Certificate.Name = "not-there"
		if _, _, err := w.reissue(in).look(t.Context()); failure.KindOf(err) != failure.Preflight || !failure.IsPermanent(err) {
			t.Error(err)
		}
	})
}

func (w *issuances) mismatch(r *reissue, words string) {
	w.t.Helper()
	if _, _, err := r.look(w.t.Context()); failure.KindOf(err) != failure.Mismatch || !failure.IsPermanent(err) || !strings.Contains(err.Error(), words) {
		w.t.Errorf("%v, want a Mismatch with %q", err, words)
	}
}

func TestReissuePlan(t *testing.T) {
	w := newIssuances(t)
	before := w.live().ResourceVersion
	plan := func(change func(*ReissueInput)) procedure.Outcome {
		in := w.in()
		in.Mode = procedure.Plan
		change(&in)
		result, err := w.reissue(in).would(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return result.Outcome
	}
	if out := plan(func(*ReissueInput) {}); len(out.Changes) > 0 || !strings.HasPrefix(out.Detail, "until ") {
		t.Errorf("as wanted: %+v", out)
	}
	for name, change := range map[string]func(*ReissueInput){
		"an intermediate that is still to be made": func(in *ReissueInput) { in.IntermediatePEM = "" },
		"another intermediate":                     func(in *ReissueInput) { in.IntermediatePEM = ca(t, "intermediate g2", w.root).pem },
		"requested before":                         func(in *ReissueInput) { in.Since = time.Now().Add(time.Minute) },
	} {
		out := plan(change)
		if len(out.Changes) != 1 || !strings.Contains(strings.Join(out.Changes[0].Commands, "\n"), "lastTransitionTime: \"${now}\"") {
			t.Errorf("%s: %+v", name, out)
			continue
		}
		issuedByHand(t, out.Changes[0].Commands)
	}
	if w.live().ResourceVersion != before || w.triggered() {
		t.Error("a plan has changed something")
	}
}

// issuedByHand runs the commands in a shell, twice in one script, with a kubectl that
// answers as if cert-manager was at work, and each time somebody else's issuance was
// under way at first: each is triggered once, after that one, and waited for.
func issuedByHand(t *testing.T, commands []string) {
	t.Helper()
	const kubectl = `#!/usr/bin/env bash
set -eu
cd "$(dirname "$0")"
case "$*" in
*conditions*) # the first answer is that it is under way
	if [ -s others ]; then rm others; echo 7 > revision; echo "seen" >> log
	elif [ -e others ]; then echo asked > others; echo -n True; fi ;;
*status.revision*) # two answers after the trigger are still the old one
	echo -n "$(cat revision)"
	if [ -s triggered ]; then rm triggered; echo "$(($(cat revision) + 1))" > revision
	elif [ -e triggered ]; then echo asked > triggered; fi ;;
*"apply --server-side"*"--subresource=status"*)
	if [ -e others ]; then echo "early" >> log; fi
	cat > /dev/null; touch triggered; echo "triggered at $(cat revision)" >> log ;;
*) echo "no answer to $*" >&2; exit 1 ;;
esac
`
	dir := t.TempDir()
	for name, text := range map[string]string{"kubectl": kubectl, "sleep": "#!/bin/sh\n", "revision": "3", "others": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	once := strings.Join(commands, "\n") + "\n"
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", "set -euo pipefail\n"+once+"touch "+filepath.Join(dir, "others")+"\necho at \"$(issued revision)\" >> "+filepath.Join(dir, "log")+"\n"+once)
	cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH")}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, once)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if want := "seen\ntriggered at 7\nat 8\nseen\ntriggered at 7\n"; err != nil || string(log) != want {
		t.Errorf("%v, the log is\n%s\nwant\n%s", err, log, want)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "revision")); err != nil || strings.TrimSpace(string(after)) != "8" {
		t.Errorf("the script did not wait for the revision: %s, %v", after, err)
	}
}

// TestFailureIsNotHidden: where there is no time to wait for another issuance, the
// error says how the last one failed, and none is begun.
func TestFailureIsNotHidden(t *testing.T) {
	w := newIssuances(t)
	w.begin("Renewing")
	w.fail("Vault is sealed")
	w.change(func(c *cmapi.Certificate) { set(c, cond("Ready", "False", 1, "Expired", "")) })
	live := w.live()
	for _, c := range []struct {
		name  string
		left  time.Duration
		begun bool
	}{{"no time is left", time.Second, false}, {"time is left", time.Minute, true}} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), c.left)
			defer cancel()
			err := noTimeFor(ctx, w.cluster, live, "")
			if (err == nil) != c.begun {
				t.Fatalf("%v, want another issuance begun: %v", err, c.begun)
			}
			if err != nil && (!strings.Contains(err.Error(), "Vault is sealed") || failure.IsPermanent(err)) {
				t.Errorf("%v, want how it failed, to be tried again", err)
			}
		})
	}
}
