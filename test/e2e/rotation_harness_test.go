package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The witnesses of the rotations' tests see nothing where nothing is wrong, and
// see what is wrong: an intermediate is rotated by hand, well, and then in every
// way that this must not be done.
func TestRotationHarness(t *testing.T) {
	takesTurns(t)
	points := seed(t)
	w, wk := rotationWorld(t, "")
	trust := w.trust(t)
	if problems := w.notRotated(t, generations{active: 1}, trust); len(problems) > 0 {
		t.Fatalf("after the setup: %s", strings.Join(problems, "\n"))
	}

	t.Run("renewals alone", func(t *testing.T) {
		watched, failing, renewals := w.watchHandshakes(t), w.watchRequests(t), w.renewAtRandom(t, points)
		<-time.After(30 * time.Second) // so long it is watched
		asked, issued := renewals.ended(t)
		if asked < 8 || issued < asked {
			t.Errorf("%d renewals, %d certificates issued: that proves little", asked, issued)
		}
		if failed, all := failing.renewalsFailed(); len(failed) > 0 || all != issued {
			t.Errorf("%d requests for %d certificates, failed: %v", all, issued, failed)
		}
		report := watched.ended(t)
		none(t, report.problems(0))
		w.countersAgree(t, watched)
	})

	t.Run("a rotation as it should be", func(t *testing.T) {
		watched, failing, renewals := w.watchHandshakes(t), w.watchRequests(t), w.renewAtRandom(t, points)
		g1, g2 := w.issuer(t, "relay-intermediate-g1"), w.stageByHand(t, 2, true)
		w.moveRoles(t, g2)
		w.reissueByHand(t, g2, w.all()...)
		w.retireByHand(t, g1.id, g2)
		renewals.await(t, 5)
		renewals.ended(t)
		if failed, _ := failing.renewalsFailed(); len(failed) > 0 {
			t.Errorf("failed: %v", failed)
		}
		none(t, w.notRotated(t, generations{active: 2, retired: []int{1}}, trust))
		report := watched.ended(t)
		none(t, report.problems(0))
		for _, k := range kinds {
			if got := report[k.cluster].processes; (got > 1) != (k.reload == "restart") {
				t.Errorf("%s, which is to be %s, was %d processes", k.cluster, k.reload, got)
			}
		}

		// And what looks at it sees what is not so.
		sees(t, w.notRotated(t, generations{active: 1}, nil), "what is not rotated", "stored certificate's issuer has key", "the role relay-client-cluster4 signs with",
			"default issuer", "issuers in pki_relay are", "keys in pki_relay are", "relay-intermediate-g1 may not issue")
		sees(t, w.notRotated(t, generations{active: 1, retired: []int{2}, keyless: []int{2}}, nil), "what is not retired", "relay-intermediate-g2 may still issue", "keys in pki_relay are")
		sees(t, w.notRotated(t, generations{active: 3}, nil), "what is not there", "no issuer relay-intermediate-g3")
		other := maps.Clone(trust)
		other["cluster1 relay-root-tls-secret"] += "\n"
		sees(t, w.notRotated(t, generations{active: 2, retired: []int{1}}, other), "trust that moved", "cluster1 relay-root-tls-secret: ca.crt is not what it was")
	})

	t.Run("the root out of an agent's trust", func(t *testing.T) {
		watched := w.watchHandshakes(t)
		ca := trust["cluster1 relay-root-tls-secret"]
		w.putSecret(t, "relay-root-tls-secret", "ca.crt", strings.TrimSpace(string(w.pem(t, "relay-intermediate-g1"))))
		seen(t, watched, "cluster1", "unknown authority")
		w.putSecret(t, "relay-root-tls-secret", "ca.crt", ca)
		w.heals(t)
		if report := watched.ended(t); report["cluster2"].refused > 0 {
			t.Errorf("cluster2 was refused: %v", report["cluster2"].refusals)
		}
	})

	t.Run("a chain without the root", func(t *testing.T) {
		watched := w.watchHandshakes(t)
		g2, g3 := w.issuer(t, "relay-intermediate-g2"), w.stageByHand(t, 3, false)
		w.moveRoles(t, g3)
		w.reissueByHand(t, g3, "cluster2")
		seen(t, watched, "cluster2", "unknown authority") // it trusts g3 alone, and is shown g2
		w.reissueByHand(t, g3, management)
		for _, cluster := range []string{"cluster1", "cluster3", "cluster4"} {
			seen(t, watched, cluster, "") // the server trusts g3 alone, and is shown g2
		}
		sees(t, w.notRotated(t, generations{active: 3, retired: []int{1, 2}}, trust), "wrong trust", "mgmt relay-server-tls-secret: ca.crt is not the root alone", "mgmt relay-server-tls-secret: ca.crt is not what it was")
		watched.ended(t)

		w.moveRoles(t, g2.id)
		w.reissueByHand(t, g2.id, w.all()...)
		w.heals(t)
	})

	t.Run("the old issuer deleted first", func(t *testing.T) {
		watched, failing, renewals := w.watchHandshakes(t), w.watchRequests(t), w.renewAtRandom(t, points)
		g2, g4 := w.issuer(t, "relay-intermediate-g2"), w.stageByHand(t, 4, true)
		w.delete(t, "pki_relay/issuer/"+g2.id)
		w.delete(t, "pki_relay/key/"+g2.key)
		eventually(t, 30*time.Second, func() error {
			failed, all := failing.renewalsFailed()
			if len(failed) == 0 {
				return fmt.Errorf("of %d requests none has failed", all)
			}
			t.Logf("%d failed requests, the first at %s", len(failed), failed[0])
			return nil
		})
		renewals.ended(t)
		w.moveRoles(t, g4)
		w.reissueByHand(t, g4, w.all()...)
		none(t, watched.ended(t).problems(0)) // the old certificates stay in place
		if failed, _ := failing.renewalsFailed(outage{from: time.Now().Add(-time.Hour), to: time.Now()}); len(failed) > 0 {
			t.Errorf("failed, though that was excused: %v", failed)
		}
	})

	t.Run("an agent that is gone", func(t *testing.T) {
		watched := w.watchHandshakes(t)
		w.sh(t, `kubectl --context cluster1 -n gloo-mesh scale deploy/gloo-mesh-agent --replicas=0 &&
			kubectl --context cluster1 -n gloo-mesh wait --for=delete pod -l app=gloo-mesh-agent --timeout=60s`)
		<-time.After(mostAway) // so long it may be away
		w.sh(t, `kubectl --context cluster1 -n gloo-mesh scale deploy/gloo-mesh-agent --replicas=1 &&
			kubectl --context cluster1 -n gloo-mesh rollout status deploy/gloo-mesh-agent --timeout=60s`)
		sees(t, watched.ended(t).problems(0), "an agent that is gone", "cluster1: there was no agent for")
	})

	t.Run("what may be in the way", func(t *testing.T) { w.inTheWay(t, wk) })
}

// inTheWay has everything go wrong that a rotation is to survive.
func (w *world) inTheWay(t *testing.T, wk *worker) {
	watched, v := w.watchHandshakes(t), w.vault(t)
	v.SetMaxRetries(0)
	asked, stop := context.WithCancel(t.Context())
	var refused []time.Time
	var during sync.WaitGroup
	during.Go(func() {
		for asked.Err() == nil {
			if _, err := v.Logical().Read("sys/mounts"); err != nil {
				refused = append(refused, time.Now())
			}
			<-time.After(50 * time.Millisecond) // so often it is asked
		}
	})
	o := w.vaultAway(t, 2*time.Second)
	stop()
	during.Wait()
	if len(refused) < 10 || !o.covers(refused[0]) || o.covers(o.from.Add(-time.Second)) || o.covers(o.to.Add(time.Minute)) {
		t.Errorf("Vault was away from %s to %s, and did not answer %d times", o.from, o.to, len(refused))
	}
	w.clusterAway(t, "cluster1", 2*time.Second)
	w.temporalAway(t, 2*time.Second)
	pid := wk.cmd.Process.Pid
	w.killWorker(t, wk)
	if wk.cmd.Process.Pid == pid {
		t.Error("the worker is the same process")
	}
	if len(executions(t, w.temporal(t))) == 0 {
		t.Fatal("Temporal knows of no run: that its histories are lost cannot be seen")
	}
	w.loseHistories(t, wk)
	if known := executions(t, w.temporal(t)); len(known) > 0 {
		t.Errorf("Temporal still knows of %d runs", len(known))
	}
	out, errOut, code := w.relaypki(t, "verify", "demo")
	if code != 0 && code != exitUnhealthy {
		t.Errorf("with the histories lost: exit code %d\n%s\n%s", code, out, errOut)
	}
	none(t, watched.ended(t).problems(0)) // none of it is the relay
}

// exitUnhealthy is the command's exit code for a verification that found
// something: what the tests have left in Vault is not what a setup leaves.
const exitUnhealthy = 4

func none(t *testing.T, problems []string) {
	t.Helper()
	for _, p := range problems {
		t.Error(p)
	}
}

// sees fails the test unless each of the words is in one of the problems.
func sees(t *testing.T, problems []string, what string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !slices.ContainsFunc(problems, func(p string) bool { return strings.Contains(p, word) }) {
			t.Errorf("%s is not seen: nothing says %q in:\n%s", what, word, strings.Join(problems, "\n"))
		}
	}
}

// seen waits until refusals of a cluster's handshakes are seen, with that reason.
func seen(t *testing.T, watched *handshakes, cluster, reason string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		report := watched.seen(t)
		for _, r := range report[cluster].refusals {
			if strings.Contains(r.reason, reason) && slices.ContainsFunc(report.problems(0), func(p string) bool { return strings.HasPrefix(p, cluster+": ") && strings.Contains(p, "refused") }) {
				t.Logf("%d refusals, the first at %s", report[cluster].refused, r)
				return nil
			}
		}
		return fmt.Errorf("of %s no refusal %q is seen: %s", cluster, reason, report[cluster])
	})
}

// heals waits until no handshake is refused any more.
func (w *world) heals(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		watched := w.watchHandshakes(t)
		for cluster, a := range watched.seen(t) {
			if a.refused > 0 || a.made == 0 {
				return fmt.Errorf("%s: %s", cluster, a)
			}
		}
		return nil
	})
}

// countersAgree compares what the logs say of each process that runs with what
// its own metrics say.
func (w *world) countersAgree(t *testing.T, watched *handshakes) {
	t.Helper()
	forwards := schema.GroupVersionResource{Group: "kwok.x-k8s.io", Version: "v1alpha1", Resource: "portforwards"}
	for _, l := range watched.logs {
		last := l.tallies[len(l.tallies)-1]
		if last.ended {
			continue
		}
		object, err := w.cluster(t, l.cluster).dynamic.Resource(forwards).Namespace("gloo-mesh").Get(t.Context(), l.pod, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		forward, _, _ := unstructured.NestedSlice(object.Object, "spec", "forwards")
		port, found, err := unstructured.NestedInt64(forward[0].(map[string]any), "target", "port")
		if err != nil || !found {
			t.Fatalf("%s: no port: %v", l.pod, err)
		}
		metrics := w.sh(t, fmt.Sprintf("curl -fsS http://127.0.0.1:%d/metrics", port))
		value := func(name string) int64 {
			for _, line := range strings.Split(metrics, "\n") {
				var v float64
				if _, err := fmt.Sscanf(line, name+"{cluster=\""+l.cluster+"\"} %g", &v); err == nil {
					return int64(v)
				}
			}
			t.Errorf("%s has no metric %s", l.pod, name)
			return -1
		}
		// Asked later, the metrics are ahead by what was made since.
		if ahead := value("relaypki_handshakes_total") - last.handshakes; ahead < 0 || ahead > 60*handshakeRate {
			t.Errorf("%s: the metrics are %d handshakes ahead of the log's %d", l.pod, ahead, last.handshakes)
		}
		if failures := value("relaypki_handshake_failures_total"); failures != last.failures {
			t.Errorf("%s: the metrics have %d refusals, the log %d", l.pod, failures, last.failures)
		}
	}
}

// stageByHand makes an intermediate beside those that there are, with Vault's own
// commands. Without the root in its chain it is staged wrong: cert-manager takes
// the intermediate for the CA, and writes it into ca.crt.
func (w *world) stageByHand(t *testing.T, generation int, withRoot bool) (id string) {
	t.Helper()
	name, file := fmt.Sprintf("relay-intermediate-g%d", generation), filepath.Join(t.TempDir(), "signed.pem")
	w.sh(t, fmt.Sprintf(`vault write -field=csr pki_relay/intermediate/generate/internal common_name="gloo-mesh-mgmt-server-ca" organization=mesh.solo.io key_name=%[1]s |
		vault write -field=certificate pki/issuer/relay-root-g1/sign-intermediate csr=- use_csr_values=true format=pem ttl=43800h > %[2]s`, name, file))
	signed, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := w.vault(t).Logical().Write("pki_relay/intermediate/set-signed", map[string]any{"certificate": string(signed)})
	if err != nil {
		t.Fatal(err)
	}
	mapping, _ := answer.Data["mapping"].(map[string]any)
	for issuer, key := range mapping {
		if key != "" {
			id = issuer
		}
	}
	chain := []string{id}
	if withRoot {
		chain = append(chain, w.issuer(t, "relay-root-g1").id)
	}
	w.patch(t, "pki_relay/issuer/"+id, map[string]any{"issuer_name": name, "leaf_not_after_behavior": "err", "manual_chain": chain})
	return id
}

func (w *world) patch(t *testing.T, path string, data map[string]any) {
	t.Helper()
	if _, err := w.vault(t).Logical().JSONMergePatch(t.Context(), path, data); err != nil {
		t.Fatal(err)
	}
}

func (w *world) delete(t *testing.T, path string) {
	t.Helper()
	if _, err := w.vault(t).Logical().Delete(path); err != nil {
		t.Fatal(err)
	}
}

// pem is the certificate of an issuer of the relay mount.
func (w *world) pem(t *testing.T, issuer string) []byte {
	t.Helper()
	text, _ := w.read(t, "pki_relay/issuer/"+issuer)["certificate"].(string)
	return []byte(text)
}

// moveRoles has all roles sign with an issuer.
func (w *world) moveRoles(t *testing.T, id string) {
	t.Helper()
	for _, role := range list(t, w.vault(t), "pki_relay/roles") {
		w.patch(t, "pki_relay/roles/"+role, map[string]any{"issuer_ref": id})
	}
}

// reissueByHand has the members' certificates issued by an issuer, one after the
// other, and restarts the agents that do not see it by themselves.
func (w *world) reissueByHand(t *testing.T, id string, clusters ...string) {
	t.Helper()
	issuer := w.issuer(t, id).certificate
	for _, cluster := range clusters {
		c := w.cluster(t, cluster)
		name, _ := leafOf(cluster)
		eventually(t, time.Minute, func() error {
			if leaf := w.leaf(t, cluster); slices.Equal(leaf.AuthorityKeyId, issuer.SubjectKeyId) {
				return nil
			}
			_, err := issueAnew(t.Context(), c, name, "ManuallyTriggered")
			return errors.Join(fmt.Errorf("the certificate of %s is not issued by %s yet", cluster, id), err)
		})
		w.settled(t, cluster)
		for _, k := range kinds {
			if k.cluster == cluster && k.reload == "restart" {
				w.sh(t, fmt.Sprintf(`kubectl --context %[1]s -n gloo-mesh rollout restart deploy/gloo-mesh-agent &&
					kubectl --context %[1]s -n gloo-mesh rollout status deploy/gloo-mesh-agent --timeout=60s`, cluster))
			}
		}
	}
	if slices.Contains(clusters, management) {
		eventually(t, time.Minute, func() error {
			if served := w.served(t); !slices.Equal(served.AuthorityKeyId, issuer.SubjectKeyId) {
				return fmt.Errorf("the server still presents a certificate of %x", served.AuthorityKeyId)
			}
			return nil
		})
	}
}

// retireByHand leaves an issuer what is needed to be read, and for its CRL.
func (w *world) retireByHand(t *testing.T, id, instead string) {
	t.Helper()
	w.patch(t, "pki_relay/issuer/"+id, map[string]any{"usage": "read-only,crl-signing,ocsp-signing"})
	if _, err := w.vault(t).Logical().Write("pki_relay/config/issuers", map[string]any{"default": instead}); err != nil {
		t.Fatal(err)
	}
}
