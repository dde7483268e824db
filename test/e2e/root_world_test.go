package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/rotation"
)

// This file is what the tests of the root's rotation have besides: the rotation
// done by hand with Vault's own commands, what every member has stored and loaded
// meanwhile, and what a rotation of the root is to have left.

// serverReloads are the ways in which the stand-in of the server takes up its
// changed Secret. With the latter two its spec says reload: restart.
var serverReloads = []string{"withCA", "keyPairOnly", "restartOnly"}

// rootByHand is a rotation of the root that is done by hand: the CAs of the
// previous and of the next generation, and which way up the next one's chain has.
type rootByHand struct {
	w            *world
	serverReload string
	// from and to are the generations of the roots.
	from, to int
	// In the relay mount.
	oldRoot, newRoot, bridge         *vaultIssuer
	oldIntermediate, newIntermediate *vaultIssuer
	lineage                          rotation.Lineage
	// mode is that of the new intermediate's chain in Vault, issued all that Vault
	// has issued since it was staged, in order.
	mode   rotation.Mode
	issued []rotation.Mode
	// known are the modes of certificates that were seen stored, by serial.
	known map[string]rotation.Mode
}

// stageRootByHand makes a root beside the one of that generation, the bridge to it,
// and an intermediate under it, with Vault's own commands. Nothing uses them.
func (w *world) stageRootByHand(t *testing.T, generation int, serverReload string) *rootByHand {
	t.Helper()
	r := &rootByHand{w: w, serverReload: serverReload, from: generation, to: generation + 1, mode: rotation.Bridged, issued: []rotation.Mode{rotation.Old}, known: map[string]rotation.Mode{}}
	name := func(what string, generation int) string { return fmt.Sprintf("relay-%s-g%d", what, generation) }
	r.oldRoot, r.oldIntermediate = w.issuer(t, name("root", r.from)), w.issuer(t, name("intermediate", r.from))
	subject := r.oldRoot.certificate.Subject
	common, _, _ := strings.Cut(subject.CommonName, " G")
	named := map[string]any{"common_name": fmt.Sprintf("%s G%d", common, r.to), "organization": subject.Organization, "ttl": "187600h"}
	with := func(more map[string]any) map[string]any {
		all := maps.Clone(named)
		maps.Copy(all, more)
		return all
	}

	root := w.write(t, "pki/root/rotate/internal", with(map[string]any{"issuer_name": name("root", r.to), "key_name": name("root", r.to)}))
	csr := w.write(t, "pki/intermediate/cross-sign", with(map[string]any{"key_ref": root["key_id"]}))
	bridge := w.write(t, "pki/issuer/"+name("root", r.from)+"/sign-intermediate",
		map[string]any{"csr": csr["csr"], "use_csr_values": true, "ttl": "87600h", "format": "pem"})
	imported := func(certificate any, name string) *vaultIssuer {
		answer := w.write(t, "pki_relay/issuers/import/cert", map[string]any{"pem_bundle": certificate})
		ids, _ := answer["imported_issuers"].([]any)
		if len(ids) != 1 {
			t.Fatalf("importing %s gave %v", name, answer)
		}
		w.patch(t, "pki_relay/issuer/"+ids[0].(string), map[string]any{"issuer_name": name})
		return w.issuer(t, name)
	}
	r.newRoot, r.bridge = imported(root["certificate"], name("root", r.to)), imported(bridge["certificate"], name("bridge", r.to))

	csr = w.write(t, "pki_relay/intermediate/generate/internal",
		map[string]any{"common_name": "gloo-mesh-mgmt-server-ca", "organization": "mesh.solo.io", "key_name": name("intermediate", r.to)})
	r.newIntermediate = w.signedBy(t, name("root", r.to), csr["csr"], name("intermediate", r.to))
	r.lineage = rotation.Lineage{OldRoot: r.oldRoot.certificate, NewRoot: r.newRoot.certificate,
		OldIntermediate: r.oldIntermediate.certificate, NewIntermediate: r.newIntermediate.certificate}
	r.chain(t, r.bridge, r.oldRoot)
	return r
}

// signedBy has a root sign a request of the relay mount, and takes the answer in
// under that name.
func (w *world) signedBy(t *testing.T, root string, csr any, name string) *vaultIssuer {
	t.Helper()
	signed := w.write(t, "pki/issuer/"+root+"/sign-intermediate", map[string]any{"csr": csr, "use_csr_values": true, "ttl": "43800h", "format": "pem"})
	answer := w.write(t, "pki_relay/intermediate/set-signed", map[string]any{"certificate": signed["certificate"]})
	mapping, _ := answer["mapping"].(map[string]any)
	for issuer, key := range mapping {
		if key != "" {
			w.patch(t, "pki_relay/issuer/"+issuer, map[string]any{"issuer_name": name, "leaf_not_after_behavior": "err"})
		}
	}
	return w.issuer(t, name)
}

func (w *world) write(t *testing.T, path string, data map[string]any) map[string]any {
	t.Helper()
	answer, err := w.vault(t).Logical().Write(path, data)
	if err != nil {
		t.Fatal(err)
	}
	if answer == nil {
		return nil
	}
	return answer.Data
}

// chain has Vault return these above the new intermediate from now on.
func (r *rootByHand) chain(t *testing.T, above ...*vaultIssuer) {
	t.Helper()
	ids := []string{r.newIntermediate.id}
	for _, issuer := range above {
		ids = append(ids, issuer.id)
	}
	r.w.patch(t, "pki_relay/issuer/"+r.newIntermediate.id, map[string]any{"manual_chain": ids})
}

// set has the new intermediate issue in that mode from now on, whatever that
// breaks.
func (r *rootByHand) set(t *testing.T, mode rotation.Mode) {
	t.Helper()
	r.chain(t, map[rotation.Mode][]*vaultIssuer{
		rotation.Bridged: {r.bridge, r.oldRoot}, rotation.Pivot: {r.bridge}, rotation.Final: {r.newRoot}, rotation.Pinned: {},
	}[mode]...)
	if r.mode = mode; len(r.issued) > 1 { // somebody is issued by it
		r.issued = append(r.issued, mode)
	}
}

// use has roles sign with the new intermediate, or with the previous one; all of
// them if no clusters are named.
func (r *rootByHand) use(t *testing.T, issuer *vaultIssuer, clusters ...string) {
	t.Helper()
	for _, role := range list(t, r.w.vault(t), "pki_relay/roles") {
		if len(clusters) == 0 || slices.ContainsFunc(clusters, func(c string) bool { return strings.HasSuffix(role, "-"+c) }) {
			r.w.patch(t, "pki_relay/roles/"+role, map[string]any{"issuer_ref": issuer.id})
		}
	}
	if issuer == r.newIntermediate {
		r.issued = append(r.issued, r.mode)
	} else {
		r.issued = append(r.issued, rotation.Old)
	}
}

// reissue has the certificates of members issued until they are of that mode, and
// whoever does not see it by itself restarted; then all of it is loaded.
func (r *rootByHand) reissue(t *testing.T, mode rotation.Mode, members ...string) {
	t.Helper()
	r.issue(t, mode, members...)
	r.restart(t, members...)
	for _, member := range members {
		r.loads(t, member)
	}
}

// issue is reissue without restarts.
func (r *rootByHand) issue(t *testing.T, mode rotation.Mode, members ...string) {
	t.Helper()
	ask := func(member string) error {
		name, _ := leafOf(member)
		_, err := issueAnew(t.Context(), r.w.cluster(t, member), name, "ManuallyTriggered")
		return err
	}
	for _, member := range members {
		_ = ask(member) // and again below: so they are issued all at once
	}
	for _, member := range members {
		eventually(t, time.Minute, func() error {
			got, err := r.storedMode(t, member)
			if err != nil || got != mode {
				return errors.Join(fmt.Errorf("%s has the %s chain, not the %s one", member, got, mode), err, ask(member))
			}
			return nil
		})
		r.w.settled(t, member)
	}
}

// restart restarts those of the members that have to be for what is stored.
func (r *rootByHand) restart(t *testing.T, members ...string) {
	t.Helper()
	restarted := func(context, deployment string) {
		r.w.sh(t, fmt.Sprintf(`kubectl --context %[1]s -n gloo-mesh rollout restart deploy/%[2]s &&
			kubectl --context %[1]s -n gloo-mesh rollout status deploy/%[2]s --timeout=60s`, context, deployment))
	}
	for _, member := range members {
		if member == management && r.serverReload != "withCA" {
			restarted(management, "gloo-mesh-mgmt-server")
		}
		for _, k := range kinds {
			if k.cluster == member && k.reload == "restart" {
				restarted(member, "gloo-mesh-agent")
			}
		}
	}
}

// loads waits until a member has loaded what it has stored: the server as a
// handshake shows, an agent as it says itself.
func (r *rootByHand) loads(t *testing.T, member string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		chain, ca := r.w.secret(t, member)
		if member == management {
			served, names := r.w.servedChain(t)
			if !served[0].Equal(chain[0]) || len(names) != 1 || !bytes.Equal(names[0], ca[0].RawSubject) {
				return fmt.Errorf("the server presents %s and accepts %q", pki.Name(served[0]), names)
			}
			return nil
		}
		if ownTrust(member) {
			return r.w.hasLoaded(member, chain[0], ca)
		}
		return r.w.hasLoaded(member, chain[0], r.w.bundle(t, member))
	})
}

// trusts writes the agents' trust in a cluster, which one with a trust of its own
// does not use, and restarts the agent if it has to be.
func (r *rootByHand) trusts(t *testing.T, cluster string, anchors ...*vaultIssuer) {
	t.Helper()
	before := time.Now()
	r.storesTrust(t, cluster, anchors...)
	if ownTrust(cluster) {
		return
	}
	r.restart(t, cluster)
	r.loadsTrust(t, cluster)
	if load, err := r.w.loaded(cluster); err == nil && load.At > float64(before.UnixMicro())/1e6 {
		t.Logf("%s has taken up its trust %s after the write began", cluster, time.UnixMicro(int64(load.At*1e6)).Sub(before).Round(time.Millisecond))
	}
}

// loadsTrust waits until an agent has loaded the trust that is stored, whatever
// certificate it has loaded: others may be renewed meanwhile.
func (r *rootByHand) loadsTrust(t *testing.T, cluster string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		got, err := r.w.loaded(cluster)
		if want := serials(r.w.bundle(t, cluster)); err == nil && !slices.Equal(got.Anchors, want) {
			return fmt.Errorf("the agent of %s has loaded the anchors %s, stored are %s", cluster, got.Anchors, want)
		}
		return err
	})
}

// storesTrust is trusts without a restart.
func (r *rootByHand) storesTrust(t *testing.T, cluster string, anchors ...*vaultIssuer) {
	t.Helper()
	var certificates []*x509.Certificate
	for _, a := range anchors {
		certificates = append(certificates, a.certificate)
	}
	secrets := r.w.cluster(t, cluster).kube.CoreV1().Secrets("gloo-mesh")
	secret, err := secrets.Get(t.Context(), "relay-root-tls-secret", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret.Data["ca.crt"] = pki.EncodeChain(certificates...)
	if _, err := secrets.Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// retire leaves the previous CAs what is needed to be read, and for their CRLs.
func (r *rootByHand) retire(t *testing.T) {
	t.Helper()
	r.w.retireByHand(t, r.oldIntermediate.id, r.newIntermediate.id)
	old, next := fmt.Sprintf("relay-root-g%d", r.from), fmt.Sprintf("relay-root-g%d", r.to)
	r.w.write(t, "pki/config/issuers", map[string]any{"default": next})
	r.w.patch(t, "pki/issuer/"+old, map[string]any{"usage": "read-only,crl-signing,ocsp-signing"})
}

func ownTrust(cluster string) bool {
	for _, k := range kinds {
		if k.cluster == cluster {
			return k.trust == "own"
		}
	}
	return true // the server
}

// secret is the certificate's chain that is stored in a cluster, and the ca.crt
// beside it.
func (w *world) secret(t *testing.T, cluster string) (chain, ca []*x509.Certificate) {
	t.Helper()
	_, name := leafOf(cluster)
	secret, err := w.cluster(t, cluster).kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), name, metav1.GetOptions{})
	if err == nil {
		chain, err = pki.ParseChain(secret.Data["tls.crt"])
	}
	if err == nil {
		ca, err = pki.ParseChain(secret.Data["ca.crt"])
	}
	if err != nil {
		t.Fatal(err)
	}
	return chain, ca
}

// bundle is what is stored of an agent's trust.
func (w *world) bundle(t *testing.T, cluster string) []*x509.Certificate {
	t.Helper()
	secret, err := w.cluster(t, cluster).kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), "relay-root-tls-secret", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	anchors, err := pki.ParseChain(secret.Data["ca.crt"])
	if err != nil {
		t.Fatal(err)
	}
	return anchors
}

// servedChain is what the management server presents, and the names of the CAs
// that it accepts.
func (w *world) servedChain(t *testing.T) (chain []*x509.Certificate, names [][]byte) {
	t.Helper()
	address := w.relayAddress(t)
	eventually(t, 30*time.Second, func() error {
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"},
			GetClientCertificate: func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
				names = asked.AcceptableCAs
				return &tls.Certificate{}, nil
			}})
		if err != nil {
			return err // one that is just being restarted
		}
		defer conn.Close()
		chain = conn.ConnectionState().PeerCertificates
		return nil
	})
	return chain, names
}

// agentLoad is what the stand-in of an agent says that it has loaded.
type agentLoad struct {
	At      float64 `json:"ts"`
	Text    string  `json:"msg"`
	Serial  string
	Anchors []string
}

// loaded is the latest of it in a cluster. It is the tests' witness alone: a real
// agent says nothing of the kind.
func (w *world) loaded(cluster string) (latest agentLoad, err error) {
	paths, err := filepath.Glob(filepath.Join(w.dir, "logs", cluster+"-gloo-mesh-gloo-mesh-agent-*.log"))
	for _, path := range paths {
		data, readErr := os.ReadFile(path)
		if readErr != nil && !errors.Is(readErr, os.ErrNotExist) {
			err = errors.Join(err, readErr)
		}
		for line := range bytes.Lines(data) {
			var said agentLoad
			_, text, _ := bytes.Cut(line, []byte(" F "))
			if bytes.Contains(text, []byte("loaded Secrets")) && json.Unmarshal(text, &said) == nil && said.Text == "loaded Secrets" && said.At > latest.At {
				latest = said
			}
		}
	}
	if err == nil && latest.Serial == "" {
		err = fmt.Errorf("the agent of %s has not said what it has loaded", cluster)
	}
	return latest, err
}

// hasLoaded is an error as long as an agent has something else loaded.
func (w *world) hasLoaded(cluster string, leaf *x509.Certificate, anchors []*x509.Certificate) error {
	got, err := w.loaded(cluster)
	if err != nil {
		return err
	}
	if want := serials(anchors); got.Serial != fmt.Sprintf("%x", leaf.SerialNumber) || !slices.Equal(got.Anchors, want) {
		return fmt.Errorf("the agent of %s has loaded the certificate %s and the anchors %s, stored are %x and %s", cluster, got.Serial, got.Anchors, leaf.SerialNumber, want)
	}
	return nil
}

// serials are those of certificates, as the stand-in logs them.
func serials(certificates []*x509.Certificate) []string {
	out := make([]string, len(certificates))
	for i, c := range certificates {
		out[i] = fmt.Sprintf("%x", c.SerialNumber)
	}
	return out
}

// storedMode is the mode of what a member has stored, which is known from then on.
func (r *rootByHand) storedMode(t *testing.T, member string) (rotation.Mode, error) {
	t.Helper()
	chain, ca := r.w.secret(t, member)
	mode, err := rotation.ModeOf(chain, ca, r.lineage)
	if err == nil {
		r.known[fmt.Sprintf("%x", chain[0].SerialNumber)] = mode
	}
	return mode, err
}

// fleet is the mesh as it is seen: stored as it is in the Secrets, loaded as a
// handshake shows of the server and as agents say, in flight what Vault has issued
// since. Nothing is known of a certificate that was never seen stored.
func (r *rootByHand) fleet(t *testing.T) rotation.Fleet {
	t.Helper()
	f := rotation.Fleet{Mode: r.mode, Previous: rotation.Old}
	for _, member := range r.w.all() {
		mode, err := r.storedMode(t, member)
		if err != nil {
			t.Fatalf("%s: %v", member, err)
		}
		m := rotation.Member{Name: member, OwnTrust: ownTrust(member)}
		m.Chain.Stored, m.Chain.InFlight = rotation.In(mode), r.since(mode)
		if member == management {
			served, names := r.w.servedChain(t)
			m.Chain.Loaded, m.LoadedAnchor = r.modeOf(fmt.Sprintf("%x", served[0].SerialNumber)), rotation.Trusting(r.named(t, names))
			f.Server = m
			continue
		}
		load, err := r.w.loaded(member)
		if err != nil {
			t.Fatal(err)
		}
		m.Chain.Loaded = r.modeOf(load.Serial)
		if m.OwnTrust {
			m.LoadedAnchor = rotation.Trusting(r.anchors(t, load.Anchors))
		} else {
			stored := serials(r.w.bundle(t, member))
			m.Bundle.Stored, m.Bundle.Loaded = rotation.Trusting(r.anchors(t, stored)), rotation.Trusting(r.anchors(t, load.Anchors))
		}
		f.Agents = append(f.Agents, m)
	}
	return f
}

// since is what Vault has issued since it issued that mode last.
func (r *rootByHand) since(mode rotation.Mode) rotation.Modes {
	var since rotation.Modes
	for _, m := range slices.Backward(r.issued) {
		since |= rotation.In(m)
		if m == mode {
			return since
		}
	}
	return since
}

func (r *rootByHand) modeOf(serial string) rotation.Modes {
	if mode, ok := r.known[serial]; ok {
		return rotation.In(mode)
	}
	return rotation.AnyMode
}

func (r *rootByHand) anchors(t *testing.T, serials []string) (roots rotation.Roots) {
	t.Helper()
	for _, serial := range serials {
		switch serial {
		case fmt.Sprintf("%x", r.oldRoot.certificate.SerialNumber):
			roots |= rotation.OldRoot
		case fmt.Sprintf("%x", r.newRoot.certificate.SerialNumber), fmt.Sprintf("%x", r.bridge.certificate.SerialNumber):
			roots |= rotation.NewRoot
		default:
			t.Fatalf("%s is the serial of no root of this rotation", serial)
		}
	}
	return roots
}

// named are the roots of these names.
func (r *rootByHand) named(t *testing.T, names [][]byte) (roots rotation.Roots) {
	t.Helper()
	for _, name := range names {
		switch {
		case bytes.Equal(name, r.oldRoot.certificate.RawSubject):
			roots |= rotation.OldRoot
		case bytes.Equal(name, r.newRoot.certificate.RawSubject):
			roots |= rotation.NewRoot
		default:
			t.Fatalf("the server accepts %q, which is no root of this rotation", name)
		}
	}
	return roots
}

// safe fails the test if the gates would have the step wait.
func (r *rootByHand) safe(t *testing.T, step rotation.Step) {
	t.Helper()
	f := r.fleet(t)
	for _, reason := range rotation.Standard.Waits(f, step) {
		t.Errorf("%s: %s", step, reason)
	}
}

// found fails the test unless the gates have the step wait for a member, with a
// reason that has that word.
func found(t *testing.T, f rotation.Fleet, step rotation.Step, member, word string) {
	t.Helper()
	reasons := rotation.Standard.Waits(f, step)
	if !slices.ContainsFunc(reasons, func(r rotation.Reason) bool { return r.Member == member && strings.Contains(r.String(), word) }) {
		t.Errorf("%s: nothing says of %s %q: %v", step, member, word, reasons)
	}
}

// rootGenerations are the CAs that there are to be after rotations of the root: the
// intermediates, which the relay mount has, and the roots, which both mounts have.
// Of each root but the first there is one bridge.
type rootGenerations struct {
	root         int
	retiredRoots []int
	intermediate generations
}

// rotatedTo is what n rotations of the root leave, and nothing else.
func rotatedTo(n int) rootGenerations {
	g := rootGenerations{root: n, intermediate: generations{active: n}}
	for i := 1; i < n; i++ {
		g.retiredRoots, g.intermediate.retired = append(g.retiredRoots, i), append(g.intermediate.retired, i)
	}
	return g
}

// rootNotRotated are what a rotation of the root has not done, or has done and
// should not: what everybody presents and trusts, stored and as the server shows,
// what Vault has and lets be issued, and how often.
func (w *world) rootNotRotated(t *testing.T, want rootGenerations) []string {
	t.Helper()
	var problems []string
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	root, active := w.issuer(t, fmt.Sprintf("relay-root-g%d", want.root)), w.issuer(t, fmt.Sprintf("relay-intermediate-g%d", want.intermediate.active))
	if root == nil || active == nil {
		return []string{fmt.Sprintf("there is no issuer relay-root-g%d or no relay-intermediate-g%d in pki_relay", want.root, want.intermediate.active)}
	}

	alone := func(what string, ca []*x509.Certificate) {
		if len(ca) != 1 || !ca[0].Equal(root.certificate) {
			var names []string
			for _, c := range ca {
				names = append(names, fmt.Sprintf("%s (%x)", pki.Name(c), c.SerialNumber))
			}
			problem("%s is not %s alone but %s", what, root.name, strings.Join(names, ", "))
		}
	}
	for _, cluster := range w.all() {
		chain, ca := w.secret(t, cluster)
		if len(chain) != 2 || !chain[1].Equal(active.certificate) {
			problem("%s: what is stored is not a leaf and %s, but %d certificates, the second %s", cluster, active.name, len(chain), pki.Name(chain[min(1, len(chain)-1)]))
		}
		if err := pki.SignedBy(chain[0], active.certificate); err != nil {
			problem("%s: the leaf is not of %s: %v", cluster, active.name, err)
		}
		alone(cluster+": ca.crt", ca)
		if cluster != management {
			alone(cluster+": the agents' trust", w.bundle(t, cluster))
			if loaded, err := w.loaded(cluster); err != nil {
				problem("%v", err)
			} else if serial := fmt.Sprintf("%x", root.certificate.SerialNumber); !slices.Equal(loaded.Anchors, []string{serial}) {
				problem("%s: the agent has loaded the anchors %s, not %s alone", cluster, loaded.Anchors, serial)
			}
			continue
		}
		served, names := w.servedChain(t)
		// A server that loads at its start alone serves the leaf of then.
		if len(served) != len(chain) || !slices.EqualFunc(served[1:], chain[1:], (*x509.Certificate).Equal) {
			problem("%s: what is served has serial %x, what is stored %x", cluster, served[0].SerialNumber, chain[0].SerialNumber)
		}
		if len(names) != 1 || !bytes.Equal(names[0], root.certificate.RawSubject) {
			problem("%s: the server accepts %q, not %s alone", cluster, names, root.name)
		}
	}

	relay, roots := []string{active.name, root.name}, []string{root.name}
	keys := []string{active.name}
	for _, g := range want.retiredRoots {
		name := fmt.Sprintf("relay-root-g%d", g)
		relay, roots = append(relay, name), append(roots, name)
	}
	for _, name := range roots {
		if generation := strings.TrimPrefix(name, "relay-root-"); generation != "g1" {
			relay = append(relay, "relay-bridge-"+generation)
		}
	}
	for _, g := range want.intermediate.retired {
		name := fmt.Sprintf("relay-intermediate-g%d", g)
		relay = append(relay, name)
		if !slices.Contains(want.intermediate.keyless, g) {
			keys = append(keys, name)
		}
	}
	v := w.vault(t)
	for path, expected := range map[string][]string{"pki/issuers": roots, "pki/keys": roots, "pki_relay/issuers": relay, "pki_relay/keys": keys} {
		got := names(t, v, path)
		slices.Sort(got)
		slices.Sort(expected)
		if !slices.Equal(got, expected) {
			problem("%s has %q, not %q", path, got, expected)
		}
	}
	w.oneOfKey(t, root, problem)

	for mount, at := range map[string]struct{ active, retired string }{"pki": {root.name, "relay-root-"}, "pki_relay": {active.name, "relay-intermediate-"}} {
		ids, usages := map[string]string{}, map[string]string{}
		for _, id := range list(t, v, mount+"/issuers") {
			data := w.read(t, mount+"/issuer/"+id)
			name := fmt.Sprint(data["issuer_name"])
			ids[name], usages[name] = id, fmt.Sprint(data["usage"])
		}
		if data := w.read(t, mount+"/config/issuers"); data["default"] != ids[at.active] {
			problem("the default issuer of %s is %v, not %s (%s)", mount, data["default"], at.active, ids[at.active])
		}
		for name, usage := range usages {
			if !strings.HasPrefix(name, at.retired) {
				continue
			}
			switch may := strings.Contains(usage, "issuing-certificates"); {
			case may && name != at.active:
				problem("%s in %s may still issue: its usage is %s", name, mount, usage)
			case !may && name == at.active:
				problem("%s in %s may not issue: its usage is %s", name, mount, usage)
			}
		}
	}
	if above := fmt.Sprint(w.read(t, "pki_relay/issuer/"+active.id)["manual_chain"]); above != fmt.Sprint([]string{active.id, root.id}) {
		problem("%s has the manual_chain %s, not itself and %s", active.name, above, root.name)
	}
	for _, role := range list(t, v, "pki_relay/roles") {
		if data := w.read(t, "pki_relay/roles/"+role); data["issuer_ref"] != active.id {
			problem("the role %s signs with %v, not with %s (%s)", role, data["issuer_ref"], active.name, active.id)
		}
	}
	slices.Sort(problems)
	return problems
}

// oneOfKey looks in both mounts for certificates of a root's key: in its own there
// is the root, in the relay mount the root and, but for the first, one bridge.
func (w *world) oneOfKey(t *testing.T, root *vaultIssuer, problem func(format string, args ...any)) {
	t.Helper()
	bridges := 1
	if root.name == "relay-root-g1" {
		bridges = 0
	}
	for mount, want := range map[string][2]int{"pki": {1, 0}, "pki_relay": {1, bridges}} {
		var got [2]int
		for _, id := range list(t, w.vault(t), mount+"/issuers") {
			text, _ := w.read(t, mount+"/issuer/"+id)["certificate"].(string)
			if c := certificate(t, []byte(text)); pki.SameKey(c, root.certificate) && pki.SelfSigned(c) {
				got[0]++
			} else if pki.SameKey(c, root.certificate) {
				got[1]++
			}
		}
		if got != want {
			problem("%s has %d roots and %d bridges of the key of %s, not %d and %d", mount, got[0], got[1], root.name, want[0], want[1])
		}
	}
}

// serverReloading has the management server's stand-in take up its Secret in that
// way from now on.
func (w *world) serverReloading(t *testing.T, how string) {
	t.Helper()
	deployments := w.cluster(t, management).kube.AppsV1().Deployments("gloo-mesh")
	deployment, err := deployments.Get(t.Context(), "gloo-mesh-mgmt-server", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	args := deployment.Spec.Template.Spec.Containers[0].Args
	at := slices.IndexFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "--reload=") })
	if at < 0 {
		t.Fatalf("the server's arguments %q do not say how it reloads", args)
	}
	if args[at] == "--reload="+how {
		return
	}
	args[at] = "--reload=" + how
	if _, err := deployments.Update(t.Context(), deployment, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.sh(t, fmt.Sprintf("kubectl --context %s -n gloo-mesh rollout status deploy/gloo-mesh-mgmt-server --timeout=60s", management))
	w.heals(t)
}

// throwaway is what Vault returns with an issuer and a role now, leaf first.
func (w *world) throwaway(t *testing.T, issuer *vaultIssuer, path string, data map[string]any) []*x509.Certificate {
	t.Helper()
	var answer *vaultapi.Secret
	answer, err := w.vault(t).Logical().Write("pki_relay/issuer/"+issuer.id+"/"+path, data)
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{answer.Data["certificate"].(string)}
	chain, _ := answer.Data["ca_chain"].([]any)
	for _, c := range chain {
		texts = append(texts, c.(string))
	}
	certificates, err := pki.ParseChain([]byte(strings.Join(texts, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return certificates
}
