package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// askingOfRoot are the phases before which a rotation of the root asks; finish ends
// its last wait.
var askingOfRoot = []string{"prepare", "trust", "bridge", "pivot", "commit", "contract", "retire", "finish"}

// standinReloads is how long the stand-ins are given to take up a changed Secret.
// They have no volume that a kubelet would have to synchronise: they watch the
// Secret itself, and took 11 to 34 milliseconds on a busy machine. The rest is that
// API servers write down the time of a write in whole seconds.
const standinReloads = "3s"

// rootSpec is the mesh with all kinds of agents and a server that reloads in one of
// serverReloads.
func rootSpec(serverReload string) string {
	reload := "restart"
	if serverReload == "withCA" {
		reload = "hot"
	}
	return fmt.Sprintf("management: {reload: %s}\ngloo: {serverValues: {standin: {server: {reload: %s}}}}\n"+
		"rotation: {snapshot: none, soak: 1s, maintain: 0s, reloadWithin: %s}\n", reload, serverReload, standinReloads)
}

// reloadOf is the kind of server that the seed gives.
func reloadOf(points uint64) string { return serverReloads[points%uint64(len(serverReloads))] }

// rotatingRoot is a rotation of the root.
func (w *world) rotatingRoot(t *testing.T) rotating {
	t.Helper()
	return rotating{w, w.temporal(t), []string{"rotate", "root", "demo", "--consumers-ok", "--detach"}, procedure.ID(procedure.RotateRootCA, "demo"), askingOfRoot}
}

// watchedRoot is what looks on while roots are rotated.
type watchedRoot struct {
	w        *world
	watched  *handshakes
	failing  *requests
	renewals *renewals
	outages  []outage
	// unjudged is how many handshakes of an agent may have come to no verdict: those
	// under way, or not accepted yet, when a server's process ended.
	unjudged int64
}

func (w *world) watchRoot(t *testing.T, points uint64, reload string) *watchedRoot {
	t.Helper()
	return &watchedRoot{w: w, watched: w.watchHandshakes(t), failing: w.watchRequests(t), renewals: w.renewAtRandom(t, points), unjudged: cutByRestarts(reload)}
}

// cutByRestarts is how many handshakes of an agent a rotation may leave without a verdict
// where the server is restarted to load its Secrets.
func cutByRestarts(reload string) int64 {
	if reload == "withCA" {
		return 0
	}
	return 10
}

// ended fails the test if anybody was refused, or a request failed, but for during
// what was in the way on purpose.
func (s *watchedRoot) ended(t *testing.T) {
	t.Helper()
	s.renewals.await(t, 5)
	s.renewals.ended(t)
	if failed, _ := s.failing.renewalsFailed(s.outages...); len(failed) > 0 {
		t.Errorf("failed: %v", failed)
	}
	none(t, s.watched.ended(t).problems(s.unjudged))
	s.w.noSecrets(t)
}

// The root is replaced while all agents shake hands and certificates are renewed at
// random: nobody is refused, no request fails, and what is left is the new one: in
// every trust store, above every leaf, once, with one bridge. A setup afterwards has
// nothing to do. And back to a third one the same way, with -soak ten times, with
// every kind of server in turn.
func TestRotateRoot(t *testing.T) {
	points := seed(t)
	kinds, times := []string{reloadOf(points)}, 1
	if *everywhere {
		kinds, times = serverReloads, 10
	}
	for _, reload := range kinds {
		t.Run(reload, func(t *testing.T) {
			w, _ := rotationWorld(t, rootSpec(reload))
			none(t, w.rootNotRotated(t, rotatedTo(1)))
			c, looking := w.temporal(t), w.watchRoot(t, points, reload)
			for n := range times {
				began, to := time.Now(), n+2
				w.command(t, 0, "rotate", "root", "demo", "--approval", "none", "--consumers-ok", "--detach")
				eventually(t, 8*time.Minute, func() error {
					if problems := w.rootNotRotated(t, rotatedTo(to)); len(problems) > 0 {
						return errors.New(strings.Join(problems, "\n"))
					}
					return nil
				})
				t.Logf("to generation %d in %s", to, time.Since(began).Round(time.Second))
				w.command(t, 0, "approve", "demo", "finish")
				result := outcome[procedure.RotateResult](t, c, procedure.ID(procedure.RotateRootCA, "demo"))
				if !result.Changed || !strings.HasSuffix(result.To.Name, fmt.Sprintf("-g%d", to)) || result.Verification == nil || !result.Verification.Healthy {
					t.Errorf("%+v", result)
				}
			}
			looking.ended(t)
			sameHistories(t, c, ofRoot)
			path := filepath.Join(t.TempDir(), "mesh.yaml")
			if err := os.WriteFile(path, []byte(rotationSpec(rootSpec(reload))), 0o600); err != nil {
				t.Fatal(err)
			}
			if again := w.setup(t, path); again.Changed {
				t.Errorf("a setup afterwards changes something: %+v", again.Steps)
			}
			none(t, w.rootNotRotated(t, rotatedTo(times+1)))
		})
	}
}

// A rotation of the root is taken back from a phase, with -soak from every one in
// turn, and the next one succeeds; the histories are lost in a phase, with -soak in
// every one, and the same command finishes it with one new root and one bridge. All
// the while agents shake hands and certificates are renewed at random, and nobody is
// refused.
func TestRootRotationsThereAndBack(t *testing.T) {
	points := seed(t)
	takesTurns(t)
	reload := reloadOf(points)
	w, wk := rotationWorld(t, rootSpec(reload))
	looking, r := w.watchRoot(t, points, reload), w.rotatingRoot(t)
	at, next := rotatedTo(1), 2

	for i, phase := range askingOfRoot {
		if !*everywhere && uint64(i) != 3+points%3 {
			continue // from one of pivot, commit and contract, where it goes back over all modes
		}
		t.Logf("rollback before %s", phase)
		r.begin(t)
		r.until(t, phase)
		r.back(t, phase)
		if phase != "prepare" { // by when there are new ones
			at.retiredRoots, at.intermediate.retired = append(at.retiredRoots, next), append(at.intermediate.retired, next)
			next++
		}
		none(t, w.rootNotRotated(t, at))
	}

	for i, phase := range askingOfRoot {
		if !*everywhere && uint64(i) != points%uint64(len(askingOfRoot)) {
			continue // in one phase; make soak tries all
		}
		t.Logf("history lost before %s", phase)
		r.begin(t)
		r.until(t, phase)
		w.loseHistories(t, wk)
		r.c = w.temporal(t)
		r.begin(t)
		if result := r.finish(t); !strings.HasSuffix(result.To.Name, fmt.Sprintf("-g%d", next)) {
			t.Errorf("it went to %s, not to generation %d", result.To.Name, next)
		}
		at.retiredRoots, at.root = append(at.retiredRoots, at.root), next
		at.intermediate.retired, at.intermediate.active = append(at.intermediate.retired, at.intermediate.active), next
		next++
		none(t, w.rootNotRotated(t, at))
	}
	looking.ended(t)
}

// A rotation of the root whose worker is killed at the boundaries of its activities,
// and one from which Vault, an API server and Temporal are taken away in turn: the same
// result, one new root and one bridge. A sample of one of them, or with -soak both, at
// every boundary, and with each of the three away in every phase.
func TestRootRotationInBadWeather(t *testing.T) {
	points := seed(t)
	takesTurns(t)
	reload := reloadOf(points)
	if *everywhere || points%2 == 0 {
		t.Run("killed", func(t *testing.T) {
			w, wk := rotationWorld(t, rootSpec(reload))
			looking := w.watchRoot(t, points, reload)
			wk.kill()
			s := w.newSoak(t, points, "")
			s.begin(t, procedure.ID(procedure.RotateRootCA, "demo"))
			s.start(t, procedure.RotateRootCA, `{"mesh":"demo","approval":"none","consumers":true}`)
			go w.approveFinish(t, s.c, s.id)
			s.run(t, nil)
			s.covered(t, 60, 30)
			none(t, w.rootNotRotated(t, rotatedTo(2)))
			wk.start()
			looking.ended(t)
		})
	}
	if *everywhere || points%2 == 1 {
		t.Run("away", func(t *testing.T) {
			w, _ := rotationWorld(t, rootSpec(reload))
			looking, r := w.watchRoot(t, points, reload), w.rotatingRoot(t)
			away := []func() outage{
				func() outage { return w.vaultAway(t, 20*time.Second) },
				func() outage { return w.clusterAway(t, kinds[points%uint64(len(kinds))].cluster, 20*time.Second) },
				func() outage { return w.temporalAway(t, 20*time.Second) },
			}
			r.begin(t)
			for i, phase := range askingOfRoot {
				r.until(t, phase)
				w.command(t, 0, "approve", "demo", phase)
				for j, stop := range away {
					// One of each, in every other phase from the second or third on.
					if *everywhere || i == 2*j+1+int(points/2%2) {
						looking.outages = append(looking.outages, stop())
					}
				}
			}
			outcome[procedure.RotateResult](t, r.c, r.id)
			none(t, w.rootNotRotated(t, rotatedTo(2)))
			looking.ended(t)
		})
	}
}

// watchesAgain waits until a hot agent, whose API server has been away, takes up its
// Secrets as fast again as the mesh's spec says (rotation.reloadWithin, here 3 s, for
// which 3 minutes are the default): client-go watches again after up to a minute.
func (w *world) watchesAgain(t *testing.T, cluster string) {
	t.Helper()
	if slices.ContainsFunc(kinds, func(k struct{ cluster, reload, trust string }) bool { return k.cluster == cluster && k.reload != "hot" }) {
		return
	}
	before, _ := w.secret(t, cluster)
	name, _ := leafOf(cluster)
	if _, err := issueAnew(t.Context(), w.cluster(t, cluster), name, "ManuallyTriggered"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Minute, func() error {
		stored, _ := w.secret(t, cluster)
		load, err := w.loaded(cluster)
		if err == nil && (stored[0].Equal(before[0]) || load.Serial != fmt.Sprintf("%x", stored[0].SerialNumber)) {
			err = fmt.Errorf("the agent of %s has loaded the certificate %s, stored is %x, before it was %x", cluster, load.Serial, stored[0].SerialNumber, before[0].SerialNumber)
		}
		return err
	})
}

// An agent whose API server does not answer from the second phase on, and which
// works all the while: the others reach bridged, and the rotation waits for it
// there. Back, it is re-issued and the rotation goes on; with -soak also quarantined
// instead: the rotation ends without it, and says so.
func TestRootRotationWaitsForAMember(t *testing.T) {
	points := seed(t)
	takesTurns(t)
	reload := reloadOf(points)
	w, _ := rotationWorld(t, rootSpec(reload)+"rollout: {retryFor: 30s}\n")
	looking := w.watchRoot(t, points, reload)
	gone := kinds[points%uint64(len(kinds))].cluster
	r := w.rotatingRoot(t)
	waits := func(t *testing.T) outage {
		t.Helper()
		r.begin(t)
		r.until(t, "trust")
		o := outage{from: time.Now()}
		w.stopCluster(t, gone)
		approve := func(phase string) {
			t.Helper()
			eventually(t, 5*time.Minute, func() error {
				p := queried(t, r.c, r.id)
				if p.Asked != phase {
					return fmt.Errorf("it does not ask for %s: it is at %q, waits for %q, problem %q, clusters %+v", phase, p.Phase, p.Awaiting, p.Problem, p.Clusters)
				}
				return nil
			})
			w.command(t, 0, "approve", "demo", phase)
		}
		approve("trust")
		approve("bridge")
		bridge := w.issuer(t, fmt.Sprintf("relay-bridge-g%d", len(list(t, w.vault(t), "pki/issuers"))))
		eventually(t, 5*time.Minute, func() error {
			for _, member := range w.all() {
				if member == gone {
					continue
				}
				if chain, _ := w.secret(t, member); len(chain) != 3 || bridge == nil || !chain[2].Equal(bridge.certificate) {
					return fmt.Errorf("%s is not bridged", member)
				}
			}
			if p := queried(t, r.c, r.id); !slices.ContainsFunc(p.Clusters, func(c procedure.ClusterProgress) bool { return c.Cluster == gone && c.State == procedure.Parked }) {
				return fmt.Errorf("it does not say that it waits for %s: %+v", gone, p)
			}
			return nil
		})
		if p := queried(t, r.c, r.id); slices.Contains([]string{"pivot", "commit", "contract"}, p.Phase) && p.Asked == "" {
			t.Errorf("it has gone on to %s", p.Phase)
		}
		return o
	}

	o := waits(t)
	w.startCluster(t, gone)
	o.to = time.Now()
	looking.outages = append(looking.outages, o)
	w.watchesAgain(t, gone)
	if _, errOut, code := w.relaypki(t, "retry", "demo", gone); code != 0 {
		t.Logf("it is not parked any more: %s", errOut)
	}
	r.finish(t)
	none(t, w.rootNotRotated(t, rotatedTo(2)))
	if !*everywhere {
		looking.ended(t)
		return
	}

	o = waits(t)
	w.command(t, 0, "quarantine", "demo", gone, "--reason", "in repair")
	r.until(t, "finish")
	w.command(t, 0, "approve", "demo", "finish")
	err := r.c.GetWorkflow(t.Context(), r.id, "").Get(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), gone) {
		t.Errorf("without %s it ended with %v (%v)", gone, err, failure.KindOf(err))
	}
	// Back, it goes at once to the mode that Vault is in.
	w.startCluster(t, gone)
	o.to = time.Now()
	looking.outages = append(looking.outages, o)
	w.command(t, 0, "rotate", "leaf", "demo", gone)
	looking.renewals.await(t, 5)
	looking.renewals.ended(t)
	// The quarantined one, and nobody else, may have been refused.
	report := looking.watched.ended(t)
	none(t, slices.DeleteFunc(report.problems(looking.unjudged), func(p string) bool { return strings.HasPrefix(p, gone+": ") }))
}

// A cluster that is added while a rotation of the root waits to begin a phase
// connects at once, and ends on the new root with the others. One phase, or with
// -soak each.
func TestRootRotationWithANewMember(t *testing.T) {
	points := seed(t)
	takesTurns(t)
	reload := reloadOf(points)
	w, _ := rotationWorld(t, rootSpec(reload), "cluster5")
	with := *w
	w.clusters = w.clusters[:len(kinds)]
	looking, r := w.watchRoot(t, points, reload), w.rotatingRoot(t)
	generation := 1
	for i, phase := range askingOfRoot {
		if !*everywhere && uint64(i) != points%uint64(len(askingOfRoot)) {
			continue // one phase; make soak tries all
		}
		t.Logf("added before %s", phase)
		r.begin(t)
		r.until(t, phase)
		// Its stand-in is hot; to be said to be restarted does it no harm.
		how := []string{"hot", "restart"}[(points+uint64(i))%2]
		out, _ := w.command(t, 0, "add-cluster", "demo", "cluster5", "--reload", how, "--trust", "rootSecret", "-o", "json")
		if result := resultOf[procedure.AddClusterResult](t, out); !result.Changed || !result.Verification.Healthy {
			t.Errorf("added before %s: %+v", phase, result)
		}
		r.finish(t)
		generation++
		none(t, with.rootNotRotated(t, rotatedTo(generation)))
		with.healthy(t, with.clusters...)
		w.command(t, 0, "remove-cluster", "demo", "cluster5", "--yes")
	}
	looking.ended(t)
}
