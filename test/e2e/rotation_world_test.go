package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	cminformers "github.com/cert-manager/cert-manager/pkg/client/informers/externalversions"
	vaultapi "github.com/hashicorp/vault/api"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// This file is what the tests of rotations have in common: a mesh with every
// kind of agent, witnesses that no handshake and no renewal fails, what a
// rotation is to have left, and what may go wrong meanwhile. That the witnesses
// see what they look for is in rotation_harness_test.go.

// kinds are the agents of such a mesh: all ways to take up changed Secrets, with
// all that the server may be checked against.
var kinds = []struct{ cluster, reload, trust string }{
	{"cluster1", "hot", "rootSecret"},
	{"cluster2", "hot", "own"},
	{"cluster3", "restart", "rootSecret"},
	{"cluster4", "restart", "own"},
}

// handshakeRate is what each agent is told to make in a second; leastRate is
// what it has to make of them for a rotation to be said to be watched, also while
// the machine does something else.
const (
	handshakeRate = 40
	leastRate     = 20
)

// rotationSpec is the mesh with these agents. extra is YAML for the spec.
func rotationSpec(extra string) string {
	var b strings.Builder
	// With these keys, handshakes cost the machine little, and there can be many.
	b.WriteString("mesh: demo\nverify: {every: 0s}\ncertificates: {server: {keyAlgorithm: ECDSA}, client: {keyAlgorithm: ECDSA}}\nworkloads:\n")
	for _, k := range kinds {
		reload := map[string]string{"hot": "hot", "restart": "restartOnly"}[k.reload] // the stand-in's word
		fmt.Fprintf(&b, "- {name: %s, agent: {reload: %s, trust: %s}, agentValues: {standin: {agent: {reload: %s, trust: %s, handshakeRate: %d, tallyEvery: 1s}}}}\n",
			k.cluster, k.reload, k.trust, reload, k.trust, handshakeRate)
	}
	return b.String() + extra
}

// rotationWorld is a lab with that mesh set up, its worker, and other clusters that
// are no members.
func rotationWorld(t *testing.T, extra string, others ...string) (*world, *worker) {
	t.Helper()
	var clusters []string
	for _, k := range kinds {
		clusters = append(clusters, k.cluster)
	}
	w := labWorld(t, append(clusters, others...)...)
	wk := w.startWorker(t, filepath.Join(repository, "bin", "relaypki-worker"))
	input := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(input, []byte(rotationSpec(extra)), 0o600); err != nil {
		t.Fatal(err)
	}
	if result := w.setup(t, input); result.Verification == nil || !result.Verification.Healthy {
		t.Fatalf("the mesh is not healthy: %+v", result.Verification)
	}
	return w, wk
}

// handshakes watches the fresh full handshakes of all agents. It reads their
// logs, which have every refusal when it happens and the counts every second and
// at a process's end: nothing is lost when an agent is restarted. A log is
// followed from before its Pod's next one begins, so that one that is put away,
// or over which another is written, is read to its end.
type handshakes struct {
	w     *world
	since time.Time
	stop  context.CancelFunc
	done  chan struct{}

	mu   sync.Mutex
	logs map[uint64]*agentLog // by inode
	err  error
}

// agentLog is the log of one process.
type agentLog struct {
	cluster, pod string
	file         *os.File
	rest         []byte // of a line that is not whole yet
	tallies      []tally
	refused      []refusal
}

// tally is what a process has counted so far.
type tally struct {
	at                                             time.Time
	handshakes, failures, dialFailures, interrupts int64
	ended                                          bool
}

// refusal is a handshake that either side refused.
type refusal struct {
	at              time.Time
	cluster, reason string
}

func (r refusal) String() string {
	return fmt.Sprintf("%s %s: %s", r.at.Format("15:04:05.000"), r.cluster, r.reason)
}

// watchHandshakes begins to watch; all agents are at work when it returns.
func (w *world) watchHandshakes(t *testing.T) *handshakes {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	h := &handshakes{w: w, since: time.Now(), stop: cancel, done: make(chan struct{}), logs: map[uint64]*agentLog{}}
	go func() {
		defer close(h.done)
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for ctx.Err() == nil {
			h.read()
			select {
			case <-ctx.Done():
			case <-ticker.C:
			}
		}
	}()
	t.Cleanup(func() {
		h.stop()
		<-h.done
		for _, l := range h.logs {
			l.file.Close()
		}
	})
	h.await(t, h.since)
	return h
}

// await waits until every agent has said what it counted until then.
func (h *handshakes) await(t *testing.T, until time.Time) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.err != nil {
			return h.err
		}
		for _, cluster := range h.w.clusters {
			if !slices.ContainsFunc(slices.Collect(maps.Values(h.logs)), func(l *agentLog) bool {
				return l.cluster == cluster && len(l.tallies) > 0 && l.tallies[len(l.tallies)-1].at.After(until)
			}) {
				return fmt.Errorf("the agent of %s has counted nothing since %s", cluster, until.Format("15:04:05"))
			}
		}
		return nil
	})
}

// read takes in what the logs have got.
func (h *handshakes) read() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, cluster := range h.w.clusters {
		prefix := filepath.Join(h.w.dir, "logs", cluster+"-gloo-mesh-")
		paths, err := filepath.Glob(prefix + "gloo-mesh-agent-*.log")
		h.err = errors.Join(h.err, err)
		for _, path := range paths {
			file, err := os.Open(path)
			if errors.Is(err, os.ErrNotExist) {
				continue // put away since; found by its other name
			}
			if err != nil {
				h.err = errors.Join(h.err, err)
				continue
			}
			info, err := file.Stat()
			if err != nil {
				h.err = errors.Join(h.err, err)
				file.Close()
				continue
			}
			inode := info.Sys().(*syscall.Stat_t).Ino
			if h.logs[inode] != nil {
				file.Close()
				continue
			}
			pod := strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(path, prefix), ".log"), ".previous")
			h.logs[inode] = &agentLog{cluster: cluster, pod: pod, file: file}
		}
	}
	for _, l := range h.logs {
		h.err = errors.Join(h.err, l.read())
	}
}

func (l *agentLog) read() error {
	var buffer [32 << 10]byte
	for {
		n, err := l.file.Read(buffer[:])
		l.rest = append(l.rest, buffer[:n]...)
		if n == 0 || err != nil {
			break // its end, for now
		}
	}
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return nil
		}
		l.rest = rest
		if err := l.take(line); err != nil {
			return fmt.Errorf("%s: %w", l.file.Name(), err)
		}
	}
}

// take understands a line as kubelets write it, with the agent's in JSON.
func (l *agentLog) take(line []byte) error {
	_, text, ok := bytes.Cut(line, []byte(" F "))
	if !ok || !bytes.HasPrefix(text, []byte("{")) {
		return nil // of the runtime, or of a panic
	}
	var said struct {
		At    float64 `json:"ts"`
		Text  string  `json:"msg"`
		Error string  `json:"error"`
		// Of a tally.
		Handshakes, Failures, DialFailures, Interrupted int64
		Ended                                           bool
	}
	if err := json.Unmarshal(text, &said); err != nil {
		return fmt.Errorf("%q: %w", text, err)
	}
	at := time.UnixMicro(int64(said.At * 1e6))
	switch said.Text {
	case "handshakes counted":
		l.tallies = append(l.tallies, tally{at, said.Handshakes, said.Failures, said.DialFailures, said.Interrupted, said.Ended})
	case "handshake failed":
		l.refused = append(l.refused, refusal{at, l.cluster, said.Error})
	}
	return nil
}

// handshakeReport is what was seen of each agent, by cluster.
type handshakeReport map[string]*agentHandshakes

type agentHandshakes struct {
	// made reached a verdict, refused are those of them that were refused. Of the
	// others there was no connection, or it broke.
	made, refused, undialled, interrupted int64
	refusals                              []refusal
	processes                             int
	// slowest is the lowest rate over any 5 seconds of a process in which the
	// server was there; negative if there were none.
	slowest float64
	// away is the longest time without a process.
	away time.Duration
}

// seen is what was seen so far, every agent's last second included.
func (h *handshakes) seen(t *testing.T) handshakeReport {
	t.Helper()
	until := time.Now()
	h.await(t, until)
	h.mu.Lock()
	defer h.mu.Unlock()
	report := handshakeReport{}
	for _, cluster := range h.w.clusters {
		var logs []*agentLog
		for _, l := range h.logs {
			if l.cluster == cluster {
				logs = append(logs, l)
			}
		}
		report[cluster] = summed(logs, h.since, until)
	}
	return report
}

// ended stops watching and returns what was seen. Agents that have just been
// restarted are watched until there is a rate of theirs.
func (h *handshakes) ended(t *testing.T) handshakeReport {
	t.Helper()
	eventually(t, time.Minute, func() error {
		for cluster, a := range h.seen(t) {
			if a.slowest < 0 {
				return fmt.Errorf("%s: %s", cluster, a)
			}
		}
		return nil
	})
	report := h.seen(t)
	h.stop()
	<-h.done
	for _, cluster := range h.w.clusters {
		t.Logf("%s: %s", cluster, report[cluster])
	}
	return report
}

func (a *agentHandshakes) String() string {
	return fmt.Sprintf("%d handshakes, %d refused, %d without a connection, %d interrupted, by %d processes; at least %.1f a second, away for %s at most",
		a.made, a.refused, a.undialled, a.interrupted, a.processes, a.slowest, a.away.Round(time.Millisecond))
}

// rateOver is how long a rate is looked at.
const rateOver = 5 * time.Second

// summed adds up what the processes of one agent have logged of that time.
func summed(logs []*agentLog, since, until time.Time) *agentHandshakes {
	sum := &agentHandshakes{slowest: -1}
	type span struct{ from, to time.Time }
	var there []span
	for _, l := range logs {
		var during []tally
		var before tally
		for _, c := range l.tallies {
			if c.at.Before(since) {
				before = c
				continue
			}
			during = append(during, c)
		}
		if len(during) == 0 {
			continue
		}
		sum.processes++
		first, last := during[0], during[len(during)-1]
		from := first.at
		if !before.at.IsZero() {
			from = since
		}
		there = append(there, span{from, last.at})
		sum.made += last.handshakes - before.handshakes
		sum.refused += last.failures - before.failures
		sum.undialled += last.dialFailures - before.dialFailures
		sum.interrupted += last.interrupts - before.interrupts
		for _, r := range l.refused {
			if !r.at.Before(since) {
				sum.refusals = append(sum.refusals, r)
			}
		}
		for i, a := range during {
			for _, b := range during[i+1:] {
				took := b.at.Sub(a.at)
				if took < rateOver {
					continue
				}
				if b.dialFailures == a.dialFailures && b.interrupts == a.interrupts {
					rate := float64(b.handshakes-a.handshakes) / took.Seconds()
					if sum.slowest < 0 || rate < sum.slowest {
						sum.slowest = rate
					}
				}
				break
			}
		}
	}
	slices.SortFunc(sum.refusals, func(a, b refusal) int { return a.at.Compare(b.at) })
	slices.SortFunc(there, func(a, b span) int { return a.from.Compare(b.from) })
	reached := since
	for _, s := range there {
		sum.away = max(sum.away, s.from.Sub(reached))
		if s.to.After(reached) {
			reached = s.to
		}
	}
	sum.away = max(sum.away, until.Sub(reached))
	return sum
}

// mostAway is how long an agent may be gone when it is restarted: a second of it
// is that it says what it counted every second.
const mostAway = 5 * time.Second

// problems are what is to be none for a rotation to have been without a failed
// handshake, and to have been seen. unjudged is how many handshakes of an agent
// may have come to no verdict, as they do where the server was restarted.
func (r handshakeReport) problems(unjudged int64) []string {
	var problems []string
	for _, cluster := range slices.Sorted(maps.Keys(r)) {
		a := r[cluster]
		if a.refused > 0 || len(a.refusals) > 0 {
			first := "of which the log has none"
			if len(a.refusals) > 0 {
				first = fmt.Sprintf("the first at %s, the last at %s", a.refusals[0], a.refusals[len(a.refusals)-1])
			}
			problems = append(problems, fmt.Sprintf("%s: %d handshakes refused, %d logged, %s", cluster, a.refused, len(a.refusals), first))
		}
		if a.undialled+a.interrupted > unjudged {
			problems = append(problems, fmt.Sprintf("%s: %d handshakes had no connection, %d were interrupted", cluster, a.undialled, a.interrupted))
		}
		switch {
		case a.slowest < 0:
			problems = append(problems, fmt.Sprintf("%s: no agent made handshakes for %s on end: none was watched", cluster, rateOver))
		case a.slowest < leastRate:
			problems = append(problems, fmt.Sprintf("%s: no more than %.1f handshakes a second, over %s; at least %d are wanted", cluster, a.slowest, rateOver, leastRate))
		}
		if a.away > mostAway {
			problems = append(problems, fmt.Sprintf("%s: there was no agent for %s", cluster, a.away.Round(time.Millisecond)))
		}
	}
	return problems
}

// leafOf is the name of the certificate in a cluster, and of its Secret.
func leafOf(cluster string) (certificate, secret string) {
	if cluster == management {
		return "relay-server-tls", "relay-server-tls-secret"
	}
	return "relay-client-tls", "relay-client-tls-secret"
}

// issueAnew has cert-manager issue a certificate, for a reason of its own or of
// ours. It is false if that is being done already.
func issueAnew(ctx context.Context, c clients, name, reason string) (bool, error) {
	certificates := c.cm.CertmanagerV1().Certificates("gloo-mesh")
	cert, err := certificates.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	at := metav1.Now()
	kept := []cmapi.CertificateCondition{{Type: cmapi.CertificateConditionIssuing, Status: cmmeta.ConditionTrue, Reason: reason,
		Message: "of a test", LastTransitionTime: &at, ObservedGeneration: cert.Generation}}
	for _, c := range cert.Status.Conditions {
		if c.Type != cmapi.CertificateConditionIssuing {
			kept = append(kept, c)
		} else if c.Status == cmmeta.ConditionTrue {
			return false, nil
		}
	}
	cert.Status.Conditions = kept
	_, err = certificates.UpdateStatus(ctx, cert, metav1.UpdateOptions{})
	return err == nil, err
}

// renewals are those that go on by themselves.
type renewals struct {
	w    *world
	stop context.CancelFunc
	done chan struct{}
	// asked is for how many; before are the certificates' revisions then.
	asked  atomic.Int64
	before map[string]int
}

// renewAtRandom has a certificate chosen at random renewed every one to three
// seconds, as cert-manager does when its time has come.
func (w *world) renewAtRandom(t *testing.T, seed uint64) *renewals {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &renewals{w: w, stop: cancel, done: make(chan struct{}), before: w.revisions(t)}
	random, members, all := rand.New(rand.NewPCG(seed, 3)), map[string]clients{}, w.all()
	for _, cluster := range all {
		members[cluster] = w.cluster(t, cluster)
	}
	go func() {
		defer close(r.done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second + time.Duration(random.Int64N(int64(2*time.Second)))):
			}
			cluster := all[random.IntN(len(all))]
			name, _ := leafOf(cluster)
			// An API server that is away has no cert-manager that renews, either.
			if began, err := issueAnew(ctx, members[cluster], name, "Renewing"); err == nil && began {
				r.asked.Add(1)
			}
		}
	}()
	t.Cleanup(func() { r.stop(); <-r.done })
	return r
}

// await waits until there were that many.
func (r *renewals) await(t *testing.T, n int) {
	t.Helper()
	eventually(t, time.Duration(n)*10*time.Second, func() error {
		if asked := int(r.asked.Load()); asked < n {
			return fmt.Errorf("there were %d renewals at random", asked)
		}
		return nil
	})
}

// ended stops them, waits for those that are under way, and returns for how many
// cert-manager was asked and how many certificates were issued meanwhile, those
// of the rotation among them.
func (r *renewals) ended(t *testing.T) (asked, issued int) {
	t.Helper()
	r.stop()
	<-r.done
	for _, cluster := range r.w.all() {
		r.w.settled(t, cluster)
	}
	for cluster, revision := range r.w.revisions(t) {
		issued += revision - r.before[cluster]
	}
	asked = int(r.asked.Load())
	t.Logf("%d renewals at random, %d certificates issued", asked, issued)
	return asked, issued
}

// settled waits until nothing is being issued in a cluster.
func (w *world) settled(t *testing.T, cluster string) {
	t.Helper()
	name, _ := leafOf(cluster)
	certificates := w.cluster(t, cluster).cm.CertmanagerV1().Certificates("gloo-mesh")
	eventually(t, time.Minute, func() error {
		cert, err := certificates.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range cert.Status.Conditions {
			if c.Type == cmapi.CertificateConditionIssuing && c.Status == cmmeta.ConditionTrue {
				return fmt.Errorf("%s: %s is being issued", cluster, name)
			}
		}
		return nil
	})
}

func (w *world) revisions(t *testing.T) map[string]int {
	t.Helper()
	revisions := map[string]int{}
	for _, cluster := range w.all() {
		name, _ := leafOf(cluster)
		cert, err := w.cluster(t, cluster).cm.CertmanagerV1().Certificates("gloo-mesh").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || cert.Status.Revision == nil {
			t.Fatalf("%s: the revision of %s: %v", cluster, name, err)
		}
		revisions[cluster] = *cert.Status.Revision
	}
	return revisions
}

// requests watches the requests that cert-manager makes: one that fails leaves
// the old certificate in place, and nothing else shows it before that ends.
type requests struct {
	mu     sync.Mutex
	failed map[types.UID]failedRequest
	seen   map[types.UID]bool
}

// failedRequest is a certificate that cert-manager asked for and did not get.
type failedRequest struct {
	at      time.Time
	cluster string
	text    string
}

func (f failedRequest) String() string {
	return fmt.Sprintf("%s %s: %s", f.at.Format("15:04:05.000"), f.cluster, f.text)
}

// watchRequests begins to watch those that are made from now on.
func (w *world) watchRequests(t *testing.T) *requests {
	t.Helper()
	r := &requests{failed: map[types.UID]failedRequest{}, seen: map[types.UID]bool{}}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	for _, cluster := range w.all() {
		factory := cminformers.NewSharedInformerFactoryWithOptions(w.cluster(t, cluster).cm, 0, cminformers.WithNamespace("gloo-mesh"))
		informer := factory.Certmanager().V1().CertificateRequests().Informer()
		old := map[types.UID]bool{}
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
			AddFunc: func(obj any, initial bool) {
				request := obj.(*cmapi.CertificateRequest)
				if initial {
					old[request.UID] = true
					return
				}
				r.look(cluster, request)
			},
			UpdateFunc: func(_, obj any) {
				if request := obj.(*cmapi.CertificateRequest); !old[request.UID] {
					r.look(cluster, request)
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		factory.Start(ctx.Done())
		if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
			t.Fatalf("%s: the certificate requests cannot be watched", cluster)
		}
	}
	return r
}

// look notes a request, and if it has failed, or waits because of an error.
func (r *requests) look(cluster string, request *cmapi.CertificateRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[request.UID] = true
	for _, c := range request.Status.Conditions {
		failed := c.Type == cmapi.CertificateRequestConditionReady && c.Status == cmmeta.ConditionFalse &&
			(c.Reason == cmapi.CertificateRequestReasonFailed || c.Reason == cmapi.CertificateRequestReasonPending && strings.Contains(c.Message, "ailed"))
		refused := (c.Type == cmapi.CertificateRequestConditionInvalidRequest || c.Type == cmapi.CertificateRequestConditionDenied) && c.Status == cmmeta.ConditionTrue
		if _, known := r.failed[request.UID]; !known && (failed || refused) {
			r.failed[request.UID] = failedRequest{time.Now(), cluster, request.Name + ": " + c.Message}
		}
	}
}

// renewalsFailed are the requests that failed, but for those during what was in
// the way on purpose. The second result is how many there were in all.
func (r *requests) renewalsFailed(except ...outage) ([]failedRequest, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var failed []failedRequest
	for _, f := range r.failed {
		if !slices.ContainsFunc(except, func(o outage) bool { return o.covers(f.at) }) {
			failed = append(failed, f)
		}
	}
	slices.SortFunc(failed, func(a, b failedRequest) int { return a.at.Compare(b.at) })
	return failed, len(r.seen)
}

// generations are the intermediates that there are to be: the one at work, those
// that may no longer issue, and those of them whose key is deleted. Of those that
// nobody has signed there is the key alone.
type generations struct {
	active   int
	retired  []int
	keyless  []int
	unsigned []int
}

// trustStores are the bytes of what everybody trusts, by cluster and Secret.
type trustStores map[string]string

func (w *world) trust(t *testing.T) trustStores {
	t.Helper()
	stores := trustStores{}
	for _, cluster := range w.all() {
		_, leaf := leafOf(cluster)
		secrets := []string{leaf}
		if cluster != management {
			secrets = append(secrets, "relay-root-tls-secret")
		}
		for _, name := range secrets {
			secret, err := w.cluster(t, cluster).kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			stores[cluster+" "+name] = string(secret.Data["ca.crt"])
		}
	}
	return stores
}

// notRotated are what a rotation of the intermediate has not done, or has done
// and should not: what everybody presents, what Vault has and lets be issued,
// and what everybody trusts, which is to be as it was before.
func (w *world) notRotated(t *testing.T, want generations, before trustStores) []string {
	t.Helper()
	var problems []string
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	v := w.vault(t)
	active := w.issuer(t, fmt.Sprintf("relay-intermediate-g%d", want.active))
	if active == nil {
		return []string{fmt.Sprintf("there is no issuer relay-intermediate-g%d", want.active)}
	}
	for _, cluster := range w.all() {
		if leaf := w.leaf(t, cluster); !bytes.Equal(leaf.AuthorityKeyId, active.certificate.SubjectKeyId) {
			problem("%s: the stored certificate's issuer has key %s, not that of %s", cluster, hex.EncodeToString(leaf.AuthorityKeyId), active.name)
		} else if cluster == management {
			if served := w.served(t); served.SerialNumber.Cmp(leaf.SerialNumber) != 0 {
				problem("%s: what is served has serial %x, what is stored %x", cluster, served.SerialNumber, leaf.SerialNumber)
			}
		}
	}

	issuers, keys := []string{active.name, "relay-root-g1"}, []string{active.name}
	for _, g := range want.retired {
		name := fmt.Sprintf("relay-intermediate-g%d", g)
		issuers = append(issuers, name)
		if !slices.Contains(want.keyless, g) {
			keys = append(keys, name)
		}
		if old := w.issuer(t, name); old != nil && strings.Contains(old.usage, "issuing-certificates") {
			problem("%s may still issue: its usage is %s", name, old.usage)
		}
	}
	for _, g := range want.unsigned {
		keys = append(keys, fmt.Sprintf("relay-intermediate-g%d", g))
	}
	if got := names(t, v, "pki_relay/issuers"); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(issuers))) {
		problem("issuers in pki_relay are %q, not %q", got, issuers)
	}
	if got := names(t, v, "pki_relay/keys"); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(keys))) {
		problem("keys in pki_relay are %q, not %q", got, keys)
	}
	if !strings.Contains(active.usage, "issuing-certificates") {
		problem("%s may not issue: its usage is %s", active.name, active.usage)
	}
	for _, role := range list(t, v, "pki_relay/roles") {
		if data := w.read(t, "pki_relay/roles/"+role); data["issuer_ref"] != active.id {
			problem("the role %s signs with %v, not with %s (%s)", role, data["issuer_ref"], active.name, active.id)
		}
	}
	if data := w.read(t, "pki_relay/config/issuers"); data["default"] != active.id {
		problem("the default issuer of pki_relay is %v, not %s (%s)", data["default"], active.name, active.id)
	}

	root := w.issuer(t, "relay-root-g1").certificate
	for store, ca := range w.trust(t) {
		block, rest := pem.Decode([]byte(ca))
		if block == nil || !bytes.Equal(block.Bytes, root.Raw) || len(bytes.TrimSpace(rest)) > 0 {
			problem("%s: ca.crt is not the root alone", store)
		}
		if before != nil && before[store] != ca {
			problem("%s: ca.crt is not what it was", store)
		}
	}
	slices.Sort(problems)
	return problems
}

// vaultIssuer is an issuer of the relay mount.
type vaultIssuer struct {
	id, name, usage, key string
	certificate          *x509.Certificate
}

// issuer is the one of that name or id; nil if there is none.
func (w *world) issuer(t *testing.T, ref string) *vaultIssuer {
	t.Helper()
	answer, err := w.vault(t).Logical().Read("pki_relay/issuer/" + ref)
	if err != nil || answer == nil {
		var refused *vaultapi.ResponseError
		if err == nil || errors.As(err, &refused) && strings.Contains(err.Error(), "unable to find") {
			return nil
		}
		t.Fatal(err)
	}
	text := func(field string) string { s, _ := answer.Data[field].(string); return s }
	return &vaultIssuer{id: text("issuer_id"), name: text("issuer_name"), usage: text("usage"), key: text("key_id"),
		certificate: certificate(t, []byte(text("certificate")))}
}

func (w *world) read(t *testing.T, path string) map[string]any {
	t.Helper()
	answer, err := w.vault(t).Logical().Read(path)
	if err != nil || answer == nil {
		t.Fatalf("vault read %s: %v, %v", path, answer, err)
	}
	return answer.Data
}

// leaf is the certificate that is stored in a cluster.
func (w *world) leaf(t *testing.T, cluster string) *x509.Certificate {
	t.Helper()
	_, name := leafOf(cluster)
	secret, err := w.cluster(t, cluster).kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return certificate(t, secret.Data["tls.crt"])
}

// relayAddress is the management server's.
func (w *world) relayAddress(t *testing.T) string {
	t.Helper()
	service, err := w.cluster(t, management).kube.CoreV1().Services("gloo-mesh").Get(t.Context(), "gloo-mesh-mgmt-server", metav1.GetOptions{})
	if err != nil || len(service.Status.LoadBalancer.Ingress) == 0 {
		t.Fatalf("the management server's address: %v", err)
	}
	return net.JoinHostPort(service.Status.LoadBalancer.Ingress[0].IP, "9900")
}

// served is the certificate that the management server presents.
func (w *world) served(t *testing.T) *x509.Certificate {
	t.Helper()
	// Who presents what is all that is asked: no certificate is shown in return,
	// and the server's refusal comes later.
	conn, err := tls.Dial("tcp", w.relayAddress(t), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

// outage is when something was in the way on purpose.
type outage struct{ from, to time.Time }

// covers allows for what was begun before the end and says so after it.
func (o outage) covers(at time.Time) bool {
	return !at.Before(o.from) && at.Before(o.to.Add(10*time.Second))
}

// away stops parts of the lab for so long, and waits until the world is back.
func (w *world) away(t *testing.T, d time.Duration, back func(), parts ...string) outage {
	t.Helper()
	o := outage{from: time.Now()}
	if _, err := w.lab(append([]string{"stop"}, parts...)...); err != nil {
		t.Fatal(err)
	}
	<-time.After(d) // this is the weather, and nothing that is awaited
	if _, err := w.lab(append([]string{"start"}, parts...)...); err != nil {
		t.Fatal(err)
	}
	back()
	o.to = time.Now()
	return o
}

func (w *world) vaultAway(t *testing.T, d time.Duration) outage {
	t.Helper()
	return w.away(t, d, func() {
		eventually(t, time.Minute, func() error {
			_, err := w.vault(t).Logical().Read("sys/auth")
			return err
		})
	}, "vault")
}

// clusterAway takes a cluster's API server away; its agent runs on.
func (w *world) clusterAway(t *testing.T, cluster string, d time.Duration) outage {
	t.Helper()
	return w.away(t, d, func() { w.startCluster(t, cluster) }, cluster+"-apiserver")
}

func (w *world) temporalAway(t *testing.T, d time.Duration) outage {
	t.Helper()
	return w.away(t, d, func() { w.ready(t, "temporal") }, "temporal")
}

// ready waits until a part of the lab is.
func (w *world) ready(t *testing.T, part string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		out, _ := w.lab("status", "-o", "json") // its exit code is for all parts
		var parts []struct{ Name, State string }
		if err := json.NewDecoder(strings.NewReader(out)).Decode(&parts); err != nil {
			return fmt.Errorf("lab status: %w\n%s", err, out)
		}
		for _, p := range parts {
			if p.Name == part && p.State == "ready" {
				return nil
			}
		}
		return fmt.Errorf("%s is not ready:\n%s", part, out)
	})
}

// killWorker is SIGKILL, and a new process at once.
func (w *world) killWorker(t *testing.T, wk *worker) {
	t.Helper()
	wk.kill()
	wk.start()
}

// loseHistories gives Temporal an empty database: nothing is known of any run,
// and whatever ran does not any more. The worker is another process, too.
func (w *world) loseHistories(t *testing.T, wk *worker) {
	t.Helper()
	wk.kill()
	if _, err := w.lab("stop", "temporal"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(w.dir, "temporal")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.lab("start", "temporal"); err != nil {
		t.Fatal(err)
	}
	w.ready(t, "temporal")
	wk.start()
}
