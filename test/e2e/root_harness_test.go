package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	certmanager "github.com/cert-manager/cert-manager/pkg/util/pki"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/rotation"
)

// The witnesses of the tests of the root's rotation see nothing where nothing is
// wrong, and see what is wrong: a root is rotated by hand as PROCEDURES.md says,
// once with each kind of server, and then in every way that this must not be done,
// each of which the gates know.
func TestRootRotationHarness(t *testing.T) {
	takesTurns(t)
	points := seed(t)
	w, _ := rotationWorld(t, "")
	if problems := w.rootNotRotated(t, rotatedTo(1)); len(problems) > 0 {
		t.Fatalf("after the setup: %s", strings.Join(problems, "\n"))
	}
	generation := 1
	kinds := serverReloads
	if !*everywhere { // one of them; make soak tries all
		kinds = []string{reloadOf(points)}
	}
	for _, reload := range kinds {
		t.Run("a rotation as it should be, the server "+reload, func(t *testing.T) { w.rotateRootWell(t, points, generation, reload) })
		generation++
		if t.Failed() {
			t.FailNow() // what follows builds on it
		}
	}
	w.serverReloading(t, "withCA")
	r := w.stageRootByHand(t, generation, "withCA")
	t.Run("what TLS makes of what Vault issues", r.agreesWithTLS)
	t.Run("Vault's documented chain", r.documentedChain)
	t.Run("no bridge", r.noBridge)
	t.Run("contracted on what is stored alone", r.contractedOnStored)
	t.Run("pivot while one is old", r.pivotWhileOneIsOld)
	t.Run("final on what is stored alone", r.finalOnStored)
	t.Run("final straight to bridged", r.finalToBridged)
	t.Run("a late write of a remembered mode", func(t *testing.T) { r.lateWrite(t, points) })

	t.Run("what is not rotated", func(t *testing.T) {
		sees(t, w.rootNotRotated(t, rotatedTo(r.from)), "the previous root",
			"what is stored is not a leaf and relay-intermediate-g", "ca.crt is not relay-root-g", "the agents' trust is not relay-root-g", "the agent has loaded the anchors",
			"the server accepts", "pki/issuers has", "pki/keys has", "pki_relay/issuers has", "pki_relay/keys has", "the role ")
		sees(t, w.rootNotRotated(t, rotatedTo(r.to)), "what is not contracted and not retired",
			"the default issuer of pki is", "the default issuer of pki_relay is", fmt.Sprintf("relay-root-g%d in pki may still issue", r.from),
			fmt.Sprintf("relay-intermediate-g%d in pki_relay may still issue", r.from), "cluster3: the agents' trust is not", "cluster3: the agent has loaded the anchors")
		sees(t, w.rootNotRotated(t, rotatedTo(r.to+1)), "what is not there", "there is no issuer")
		for _, cluster := range w.clusters {
			r.trusts(t, cluster, r.newRoot)
		}
		r.retire(t)
		none(t, w.rootNotRotated(t, rotatedTo(r.to)))

		again := w.write(t, "pki/root/rotate/internal", map[string]any{"common_name": "another", "issuer_name": "relay-root-g99", "key_name": "relay-root-g99"})
		twice := w.write(t, "pki/issuer/"+fmt.Sprintf("relay-root-g%d", r.to)+"/sign-intermediate", map[string]any{"csr": w.write(t, "pki/intermediate/cross-sign",
			map[string]any{"key_ref": fmt.Sprintf("relay-root-g%d", r.to), "common_name": "twice"})["csr"], "ttl": "24h", "format": "pem"})
		w.write(t, "pki_relay/issuers/import/cert", map[string]any{"pem_bundle": twice["certificate"]})
		w.patch(t, "pki_relay/issuer/"+r.newIntermediate.id, map[string]any{"manual_chain": []string{r.newIntermediate.id, r.bridge.id}, "usage": "read-only"})
		w.patch(t, fmt.Sprintf("pki/issuer/relay-root-g%d", r.to), map[string]any{"usage": "read-only"})
		sees(t, w.rootNotRotated(t, rotatedTo(r.to)), "more than there is to be", "pki/issuers has", "pki/keys has", "pki_relay has 1 roots and 2 bridges", "has the manual_chain",
			fmt.Sprintf("relay-root-g%d in pki may not issue", r.to), fmt.Sprintf("relay-intermediate-g%d in pki_relay may not issue", r.to))
		w.delete(t, "pki/issuer/"+again["issuer_id"].(string))
		w.delete(t, "pki/key/"+again["key_id"].(string))
	})
}

// rotateRootWell rotates the root of that generation by hand, step by step as the
// gates allow it, while agents shake hands and certificates are renewed at random.
func (w *world) rotateRootWell(t *testing.T, points uint64, generation int, reload string) {
	w.serverReloading(t, reload)
	watched, failing, renewals := w.watchHandshakes(t), w.watchRequests(t), w.renewAtRandom(t, points)
	r := w.stageRootByHand(t, generation, reload)
	for _, cluster := range w.clusters {
		r.safe(t, rotation.Step{Kind: rotation.AddNew, Member: cluster})
		r.trusts(t, cluster, r.oldRoot, r.newRoot)
	}
	for _, member := range w.all() {
		r.safe(t, rotation.Step{Kind: rotation.UseNew, Member: member})
	}
	began := time.Now()
	r.use(t, r.newIntermediate)
	r.reissueAmong(t, rotation.Bridged)
	for _, to := range []struct {
		kind rotation.StepKind
		mode rotation.Mode
	}{{rotation.ToPivot, rotation.Pivot}, {rotation.ToFinal, rotation.Final}} {
		r.allows(t, rotation.Step{Kind: to.kind})
		r.set(t, to.mode)
		r.reissueAmong(t, to.mode)
	}
	for _, cluster := range w.clusters {
		r.allows(t, rotation.Step{Kind: rotation.DropOld, Member: cluster})
		r.trusts(t, cluster, r.newRoot)
	}
	r.retire(t)
	t.Logf("old to final, contracted and retired in %s", time.Since(began).Round(time.Second))
	renewals.await(t, 5)
	renewals.ended(t)
	r.restart(t, w.all()...) // of what was renewed at random
	for _, member := range w.all() {
		r.loads(t, member)
	}
	if failed, _ := failing.renewalsFailed(); len(failed) > 0 {
		t.Errorf("failed: %v", failed)
	}
	none(t, w.rootNotRotated(t, rotatedTo(r.to)))
	none(t, watched.ended(t).problems(cutByRestarts(reload)))
}

// reissueAmong is reissue of everybody while others renew at random: what is loaded
// need not be what was renewed last, but has to be of the mode.
func (r *rootByHand) reissueAmong(t *testing.T, mode rotation.Mode) {
	t.Helper()
	r.issue(t, mode, r.w.all()...)
	r.restart(t, r.w.all()...)
	eventually(t, time.Minute, func() error {
		f := r.fleet(t)
		for _, m := range append([]rotation.Member{f.Server}, f.Agents...) {
			if m.Chain.Loaded != rotation.In(mode) || m.OwnTrust && m.LoadedAnchor != rotation.Trusting(mode.Anchor()) {
				if m.Chain.Loaded == rotation.AnyMode {
					r.restart(t, m.Name) // what it loaded was renewed before it was seen
				}
				return fmt.Errorf("%s has loaded the %s chain and an anchor of %b", m.Name, m.Chain.Loaded, m.LoadedAnchor)
			}
		}
		return nil
	})
}

// allows is safe, once certificates that were just renewed are known.
func (r *rootByHand) allows(t *testing.T, step rotation.Step) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		if reasons := rotation.Standard.Waits(r.fleet(t), step); len(reasons) > 0 {
			return fmt.Errorf("%s: %v", step, reasons)
		}
		return nil
	})
}

// Vault documents another way: the intermediate itself is signed by both roots, and
// its chain names all four. cert-manager refuses it, and what is stored stays.
func (r *rootByHand) documentedChain(t *testing.T) {
	watched, failing := r.w.watchHandshakes(t), r.w.watchRequests(t)
	name := fmt.Sprintf("relay-intermediate-g%d", r.to)
	csr := r.w.write(t, "pki_relay/intermediate/cross-sign", map[string]any{
		"key_ref": name, "common_name": "gloo-mesh-mgmt-server-ca", "organization": "mesh.solo.io"})
	cross := r.w.signedBy(t, fmt.Sprintf("relay-root-g%d", r.from), csr["csr"], name+"-cross")
	r.chain(t, r.newRoot, cross, r.oldRoot)
	answer := r.signed(t, management)
	if err := pki.Linear(answer); err == nil {
		t.Error("the checker takes it for one line")
	} else {
		t.Logf("the checker: %v", err)
	}
	if _, err := certmanager.ParseSingleCertificateChain(answer); err == nil {
		t.Error("cert-manager takes it for a chain")
	}
	r.use(t, r.newIntermediate)
	name, _ = leafOf("cluster2")
	if _, err := issueAnew(t.Context(), r.w.cluster(t, "cluster2"), name, "ManuallyTriggered"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error {
		failed, all := failing.renewalsFailed()
		if len(failed) == 0 || !strings.Contains(failed[0].text, "malformed or broken") {
			return fmt.Errorf("of %d requests failed: %v", all, failed)
		}
		t.Logf("%d failed requests, the first at %s", len(failed), failed[0])
		return nil
	})
	r.use(t, r.oldIntermediate)
	r.set(t, rotation.Bridged)
	r.w.delete(t, "pki_relay/issuer/"+cross.id)
	r.issued = r.issued[:1] // nothing of it was issued
	r.reissue(t, rotation.Old, "cluster2")
	none(t, watched.ended(t).problems(0)) // the old certificates stayed in place
}

// Straight from old to final: who is final trusts the new root alone, and is shown
// the old chain.
func (r *rootByHand) noBridge(t *testing.T) {
	watched := r.w.watchHandshakes(t)
	r.set(t, rotation.Final)
	found(t, r.fleet(t), rotation.Step{Kind: rotation.UseNew, Member: "cluster2"}, management, "the old chain")
	r.use(t, r.newIntermediate, "cluster2")
	r.reissue(t, rotation.Final, "cluster2")
	seen(t, watched, "cluster2", "unknown authority")
	r.use(t, r.oldIntermediate, "cluster2")
	r.reissue(t, rotation.Old, "cluster2")
	r.set(t, rotation.Bridged)
	r.w.heals(t)
	for _, cluster := range []string{"cluster1", "cluster3", "cluster4"} {
		if report := watched.seen(t); report[cluster].refused > 0 {
			t.Errorf("%s, which nobody touched, was refused: %v", cluster, report[cluster].refusals[0])
		}
	}
}

// The old root out of an agent's trust while the server has the bridged chain in its
// Secret, and still presents the old one.
func (r *rootByHand) contractedOnStored(t *testing.T) {
	for _, cluster := range r.w.clusters {
		r.trusts(t, cluster, r.oldRoot, r.newRoot)
	}
	r.w.serverReloading(t, "restartOnly")
	r.fleet(t) // what is loaded now is known
	r.use(t, r.newIntermediate)
	r.issue(t, rotation.Bridged, management)
	r.reissue(t, rotation.Bridged, r.w.clusters...)
	sees(t, r.w.rootNotRotated(t, rotatedTo(r.to)), "a server that has not loaded", "mgmt: what is served has serial", "mgmt: the server accepts")
	watched := r.w.watchHandshakes(t)
	f, drop := r.fleet(t), rotation.Step{Kind: rotation.DropOld, Member: "cluster1"}
	found(t, f, drop, management, "may still present the old chain")
	onStored := f
	onStored.Server.Chain.Loaded, onStored.Server.Chain.InFlight = f.Server.Chain.Stored, f.Server.Chain.Stored
	if reasons := rotation.Standard.Waits(onStored, drop); len(reasons) > 0 {
		t.Errorf("by what is stored it waits, too: %v", reasons)
	}
	r.storesTrust(t, "cluster1", r.newRoot)
	seen(t, watched, "cluster1", "unknown authority")
	if report := watched.seen(t); report["cluster2"].refused > 0 {
		t.Errorf("cluster2 was refused: %v", report["cluster2"].refusals[0])
	}
	r.w.serverReloading(t, "withCA") // which restarts it
	r.loads(t, management)
	r.safe(t, drop)
}

// Pivot while one agent is old: the server trusts the new root alone then.
func (r *rootByHand) pivotWhileOneIsOld(t *testing.T) {
	r.use(t, r.oldIntermediate, "cluster4")
	r.reissue(t, rotation.Old, "cluster4")
	watched := r.w.watchHandshakes(t)
	found(t, r.fleet(t), rotation.Step{Kind: rotation.ToPivot}, "cluster4", "the old chain")
	r.set(t, rotation.Pivot)
	r.reissue(t, rotation.Pivot, management)
	seen(t, watched, "cluster4", "")
	r.use(t, r.newIntermediate, "cluster4")
	r.reissue(t, rotation.Pivot, r.w.clusters...)
	r.w.heals(t)
	for _, cluster := range []string{"cluster1", "cluster2", "cluster3"} {
		if report := watched.seen(t); report[cluster].refused > 0 {
			t.Errorf("%s, which was bridged, was refused: %v", cluster, report[cluster].refusals[0])
		}
	}
}

// Final while an agent has both roots in its Secret, and the old one alone loaded.
func (r *rootByHand) finalOnStored(t *testing.T) {
	r.trusts(t, "cluster3", r.oldRoot)
	r.storesTrust(t, "cluster3", r.oldRoot, r.newRoot)
	watched := r.w.watchHandshakes(t)
	f, final := r.fleet(t), rotation.Step{Kind: rotation.ToFinal}
	found(t, f, final, "cluster3", "may not trust the new root")
	for i := range f.Agents {
		f.Agents[i].Bundle.Loaded = f.Agents[i].Bundle.Stored
	}
	if reasons := rotation.Standard.Waits(f, final); len(reasons) > 0 {
		t.Errorf("by what is stored it waits, too: %v", reasons)
	}
	r.set(t, rotation.Final)
	r.reissue(t, rotation.Final, management)
	seen(t, watched, "cluster3", "unknown authority")
	r.restart(t, "cluster3")
	r.reissue(t, rotation.Final, r.w.clusters...)
	r.w.heals(t)
}

// From final straight back to bridged: the server trusts the old root alone then.
func (r *rootByHand) finalToBridged(t *testing.T) {
	watched := r.w.watchHandshakes(t)
	f := r.fleet(t)
	for _, member := range r.w.all() {
		found(t, f, rotation.Step{Kind: rotation.ToBridged}, member, "the final chain")
	}
	r.set(t, rotation.Bridged)
	r.reissue(t, rotation.Bridged, management)
	for _, cluster := range r.w.clusters {
		seen(t, watched, cluster, "")
	}
	r.set(t, rotation.Final)
	r.reissue(t, rotation.Final, management)
	r.w.heals(t)
}

// A write of a mode that was meant for an earlier time, as of a process that was
// away: nothing is re-issued for it, the renewals that go on by themselves are
// enough.
func (r *rootByHand) lateWrite(t *testing.T, points uint64) {
	watched := r.w.watchHandshakes(t)
	found(t, r.fleet(t), rotation.Step{Kind: rotation.ToBridged}, management, "the final chain")
	renewals := r.w.renewAtRandom(t, points)
	r.set(t, rotation.Bridged)
	eventually(t, time.Minute, func() error {
		report := watched.seen(t)
		for _, cluster := range r.w.clusters {
			if report[cluster].refused > 0 {
				t.Logf("%s: %d refusals, the first at %s", cluster, report[cluster].refused, report[cluster].refusals[0])
				return nil
			}
		}
		return fmt.Errorf("after %d renewals nobody was refused", renewals.asked.Load())
	})
	r.set(t, rotation.Final)
	renewals.ended(t)
	r.reissue(t, rotation.Final, r.w.all()...)
	r.w.heals(t)
}

// signed is what Vault answers with the new intermediate to a member's request now:
// a leaf of a key that nobody has, and what is above it.
func (r *rootByHand) signed(t *testing.T, member string) []*x509.Certificate {
	t.Helper()
	chain, _ := r.signedFor(t, r.newIntermediate, member)
	return chain
}

func (r *rootByHand) signedFor(t *testing.T, issuer *vaultIssuer, member string) ([]*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	like := r.w.leaf(t, member)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: like.Subject, DNSNames: like.DNSNames}, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := r.w.cluster(t, member).cm.CertmanagerV1()
	name, _ := leafOf(member)
	cert, err := certificate.Certificates("gloo-mesh").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	from, err := certificate.Issuers("gloo-mesh").Get(t.Context(), cert.Spec.IssuerRef.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	role := from.Spec.Vault.Path[strings.LastIndex(from.Spec.Vault.Path, "/")+1:]
	return r.w.throwaway(t, issuer, "sign/"+role, map[string]any{
		"csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), "common_name": like.Subject.CommonName, "ttl": "1h"}), key
}

// The lab agrees with the model: what Vault issues in every mode, stored as
// cert-manager stores it, shakes hands over TLS if and only if the pure code says so,
// with every trust that either side may have.
func (r *rootByHand) agreesWithTLS(t *testing.T) {
	type end struct {
		mode  rotation.Mode
		chain []*x509.Certificate
		key   *ecdsa.PrivateKey
		ca    []*x509.Certificate
	}
	modes := []rotation.Mode{rotation.Old, rotation.Bridged, rotation.Pivot, rotation.Final, rotation.Pinned}
	ends := map[string][]end{}
	for _, mode := range modes {
		issuer := r.newIntermediate
		if mode == rotation.Old {
			issuer = r.oldIntermediate
		} else {
			r.set(t, mode)
		}
		for _, member := range []string{management, "cluster1"} {
			answer, key := r.signedFor(t, issuer, member)
			bundle, err := certmanager.ParseSingleCertificateChain(answer)
			if err != nil {
				t.Fatalf("%s: %v", mode, err)
			}
			e := end{mode: mode, key: key}
			e.chain, err = pki.ParseChain(bundle.ChainPEM)
			if err == nil {
				e.ca, err = pki.ParseChain(bundle.CAPEM)
			}
			if err != nil {
				t.Fatalf("%s: %v", mode, err)
			}
			if got, err := rotation.ModeOf(e.chain, e.ca, r.lineage); err != nil || got != mode {
				t.Errorf("what is issued in %s is taken for %s: %v", mode, got, err)
			}
			ends[member] = append(ends[member], e)
		}
	}
	r.set(t, rotation.Bridged)

	trusts := map[rotation.Roots][][]*x509.Certificate{}
	for _, e := range ends["cluster1"] {
		trusts[e.mode.Anchor()] = append(trusts[e.mode.Anchor()], e.ca)
	}
	both := append(slices.Clone(trusts[rotation.OldRoot][0]), r.newRoot.certificate)
	trusts[rotation.OldRoot|rotation.NewRoot] = [][]*x509.Certificate{both}
	made, refused := 0, 0
	for _, server := range ends[management] {
		for _, agent := range ends["cluster1"] {
			for roots, stores := range trusts {
				for _, trust := range stores {
					want := server.mode.LeadsTo()&roots != 0 && agent.mode.LeadsTo()&server.mode.Anchor() != 0
					broken := rotation.Broken(
						rotation.Side{Name: management, Chains: [][]*x509.Certificate{server.chain}, Trusts: [][]*x509.Certificate{server.ca}},
						[]rotation.Side{{Name: "cluster1", Chains: [][]*x509.Certificate{agent.chain}, Trusts: [][]*x509.Certificate{trust}}}, time.Now())
					err := overTLS(t, pair(server.chain, server.key), server.ca, pair(agent.chain, agent.key), trust, server.chain[0].DNSNames[0])
					if (err == nil) != want || (len(broken) == 0) != want {
						t.Errorf("server %s, agent %s with a trust of %s: the modes say %v, the certificates %v, TLS %v", server.mode, agent.mode, roots, want, broken, err)
					}
					if err == nil {
						made++
					} else {
						refused++
					}
				}
			}
		}
	}
	t.Logf("%d handshakes made, %d refused", made, refused)
	if made < 20 || refused < 20 {
		t.Error("that is too few of either")
	}
}

func pair(chain []*x509.Certificate, key *ecdsa.PrivateKey) tls.Certificate {
	p := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		p.Certificate = append(p.Certificate, c.Raw)
	}
	return p
}

// overTLS has a server and an agent shake hands over a pipe, as the relay does, and
// the agent wait for the server's verdict.
func overTLS(t *testing.T, server tls.Certificate, serverTrust []*x509.Certificate, agent tls.Certificate, agentTrust []*x509.Certificate, name string) error {
	t.Helper()
	here, there := net.Pipe()
	deadline := time.Now().Add(time.Minute) // a test that hangs is to say where
	for _, c := range []net.Conn{here, there} {
		if err := c.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer here.Close()
		conn := tls.Server(here, &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert,
			ClientCAs: pki.Pool(serverTrust), SessionTicketsDisabled: true})
		_, _ = conn.Write([]byte{1}) // the agent sees it if it fails
	}()
	conn := tls.Client(there, &tls.Config{Certificates: []tls.Certificate{agent}, RootCAs: pki.Pool(agentTrust), ServerName: name})
	got := make([]byte, 1)
	_, err := io.ReadFull(conn, got)
	there.Close()
	<-done
	if err == nil && !bytes.Equal(got, []byte{1}) {
		t.Fatalf("the server said %x", got)
	}
	return err
}
