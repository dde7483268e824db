package relay

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/check/observe"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/rotation"
)

// ServerInput asks for what the management server has.
type ServerInput struct {
	Spec mesh.Spec `json:"spec"` // without workloads
	// Loaded waits until every replica serves what is in the Secret.
	Loaded bool `json:"loaded,omitempty"`
	// Lineage is given in a rotation of the root.
	Lineage *Lineage `json:"lineage,omitempty"`
}

// Lineage are the CAs of a rotation of the root, in PEM, as rotation.Lineage has
// them.
type Lineage struct {
	OldRootPEM         string `json:"oldRootPEM"`
	NewRootPEM         string `json:"newRootPEM"`
	OldIntermediatePEM string `json:"oldIntermediatePEM"`
	NewIntermediatePEM string `json:"newIntermediatePEM"`
}

// Certificates are those of the CAs; what is not there yet is nil. One that cannot be
// read is InvalidInput.
func (l Lineage) Certificates() (rotation.Lineage, error) {
	var of rotation.Lineage
	for _, ca := range []struct {
		text string
		into **x509.Certificate
	}{{l.OldRootPEM, &of.OldRoot}, {l.NewRootPEM, &of.NewRoot}, {l.OldIntermediatePEM, &of.OldIntermediate}, {l.NewIntermediatePEM, &of.NewIntermediate}} {
		if ca.text == "" {
			continue
		}
		chain, err := pki.ParseChain([]byte(ca.text))
		if err == nil && len(chain) != 1 {
			err = fmt.Errorf("there are %d certificates where one is to be", len(chain))
		}
		if err != nil {
			return of, failure.Permanent(failure.InvalidInput, "the CAs of the rotation cannot be read: %v", err)
		}
		*ca.into = chain[0]
	}
	return of, nil
}

// ServerResult is what the management server presents and trusts: stored in its
// Secret, and as every replica has loaded it.
type ServerResult struct {
	procedure.Outcome
	Leaf procedure.Leaf `json:"leaf"`
	// Chains and Trusts are PEM texts of chains, leaf first, and of trust stores,
	// the stored one first, each different one once. What is loaded of the trust
	// is known by its CA names alone; AcceptableCAs are those of any replica that
	// are not in the stored trust.
	Chains        []string `json:"chains"`
	Trusts        []string `json:"trusts"`
	AcceptableCAs []string `json:"acceptableCAs,omitempty"`
	// Ended says that a certificate which it presents has ended, so that no fresh
	// handshake succeeds until it presents another.
	Ended bool `json:"ended,omitempty"`
	// Stored, Loaded and LoadedAnchor are, with a Lineage, what is in the Secret and
	// what any replica may have loaded, as rotation.Member has it. StoredProblem says
	// why what is stored is of no mode of this rotation, and Stored any, if it is not.
	Stored        rotation.Modes  `json:"stored,omitempty"`
	StoredProblem string          `json:"storedProblem,omitempty"`
	Loaded        rotation.Modes  `json:"loaded,omitempty"`
	LoadedAnchor  rotation.Stores `json:"loadedAnchor,omitempty"`
	// Presents and Trusted are as in CheckPairResult.
	Presents string   `json:"presents"`
	Trusted  []string `json:"trusted"`
}

// ReadServer reads what the management server has stored, and what every replica
// that is ready has loaded. Whatever cannot be looked at is an error, and so is a
// server without such a replica: what is not known to be loaded cannot be counted
// on. With Loaded it waits (heartbeating) until every replica is ready, serves
// what is stored and names in its request for a client certificate the CAs of its
// stored ca.crt, and no others.
func (a *Activities) ReadServer(ctx context.Context, in ServerInput) (ServerResult, error) {
	spec := in.Spec.WithDefaults()
	var of *rotation.Lineage
	if in.Lineage != nil {
		lineage, err := in.Lineage.Certificates()
		if err != nil {
			return ServerResult{}, err
		}
		of = &lineage
	}
	var seen check.Management
	look := func(ctx context.Context) (bool, string, error) {
		var err error
		if seen, err = observe.Server(ctx, a.Clients, spec); err != nil {
			return false, "", err
		}
		if err := serverUnseen(seen); err != nil {
			return false, "", err
		}
		state := ""
		if in.Loaded {
			state = notLoaded(seen, of != nil)
		}
		return state == "", state, nil
	}
	var err error
	if in.Loaded {
		err = kube.Await(ctx, look)
	} else {
		defer kube.Heartbeating(ctx, "looking")()
		if _, _, err = look(ctx); ctx.Err() != nil {
			err = ctx.Err()
		}
	}
	if err != nil {
		return ServerResult{}, err
	}
	result := serverResult(seen, time.Now())
	if of != nil {
		result.inRotation(seen, *of)
	}
	return result, nil
}

// serverUnseen is why it is not known what the server has; nil if it is.
func serverUnseen(seen check.Management) error {
	cluster, spec := seen.Spec.Management.Context, seen.Spec
	if seen.Unreachable != "" {
		return unreachable(cluster, seen.Unreachable)
	}
	secret := kube.Name("Secret", spec.Management.Namespace, spec.Certificates.Server.SecretName)
	for _, err := range []error{
		unread(cluster, secret, seen.Secret.Gap),
		unreadable(cluster, secret, "tls.crt", seen.Secret.ChainError, issueIt),
		unreadable(cluster, secret, "ca.crt", seen.Secret.CAError, issueIt),
		unread(cluster, kube.Name("Deployment", spec.Management.Namespace, mesh.ServerDeployment), seen.Server.Gap),
		unread(cluster, "the management server's Pods", seen.Server.PodsGap),
	} {
		if err != nil {
			return err
		}
	}
	ready := 0
	for i, pod := range seen.Server.Pods {
		if !pod.Ready {
			continue
		}
		ready++
		if problem := seen.Replicas[i].LoadedError; problem != "" {
			return failure.Transient(failure.Unavailable, "cluster %q: what Pod %s of the management server has loaded is not known: no handshake with its relay port: %s. See its log, and that the worker may create pods/portforward there", cluster, pod.Name, problem)
		}
	}
	if ready == 0 {
		return failure.Transient(failure.NotReady, "cluster %q: no Pod of the management server is ready (%s), so what it has loaded is not known. See why: kubectl -n %s describe pods, and the Pods' logs", cluster, states(seen.Server.Pods), spec.Management.Namespace)
	}
	return nil
}

func states(pods []check.SeenPod) string {
	all := make([]string, 0, len(pods))
	for _, pod := range pods {
		all = append(all, strings.TrimSpace(pod.Name+" "+pod.State))
	}
	if len(all) == 0 {
		return "there is none"
	}
	return strings.Join(all, "; ")
}

// The errors of what could not be looked at.

func unreachable(cluster, why string) error {
	return failure.Transient(failure.Unavailable, "cluster %q: its API server does not answer: %s", cluster, why)
}

func unread(cluster, object string, gap check.Gap) error {
	switch gap.Reason {
	case "":
		return nil
	case check.NotFound:
		return failure.Transient(failure.NotReady, "cluster %q: %s is missing. If it does not come by itself, run the setup again", cluster, object)
	case check.Denied:
		return failure.Permanent(failure.Denied, "cluster %q: the worker may not read %s: %s. Apply the manifest of deploy/rbac there and run this again", cluster, object, gap.Detail)
	}
	return failure.Transient(failure.Unavailable, "cluster %q: %s could not be read: %s", cluster, object, gap.Detail)
}

// issueIt is what helps where cert-manager's Secret is not as it should be.
const issueIt = "Have it issued anew: cmctl renew, or delete the Secret"

func unreadable(cluster, secret, key, problem, remedy string) error {
	if problem == "" {
		return nil
	}
	return failure.Transient(failure.Unhealthy, "cluster %q: %s of %s is not as it should be: %s. %s", cluster, key, secret, problem, remedy)
}

// notLoaded says which replica has not loaded what is stored, and what to do; it
// is empty if all have. With chainAlone, what is above the leaf has to be what is
// stored, and the leaf itself may be of an earlier renewal: a server that loads at
// its start alone has none else, however often it is restarted.
func notLoaded(seen check.Management, chainAlone bool) string {
	spec := seen.Spec
	secret := kube.Name("Secret", spec.Management.Namespace, spec.Certificates.Server.SecretName)
	for i, pod := range seen.Server.Pods {
		of := fmt.Sprintf("cluster %q: Pod %s of the management server", spec.Management.Context, pod.Name)
		loaded, stored := seen.Replicas[i].Loaded, seen.Secret
		switch {
		case !pod.Ready:
			return strings.TrimSpace(of + " is not ready: " + pod.State)
		case !loaded.Chain[0].Equal(stored.Chain[0]) && !(chainAlone && slices.EqualFunc(loaded.Chain[1:], stored.Chain[1:], (*x509.Certificate).Equal)):
			return fmt.Sprintf("%s serves serial %s, and %s holds %s: it has not loaded it. %s", of, pki.Serial(loaded.Chain[0]), secret, pki.Serial(stored.Chain[0]), loadIt(spec))
		case !loaded.AsksForCertificate:
			return of + " asks for no client certificate, so that what it trusts is not known and anybody may connect. Set glooMgmtServer.relay.disableCa and tlsSecret as the setup does, and restart it"
		case len(loaded.AcceptableCAs) == 0:
			return of + " names no CA when it asks for a client certificate, so that what it trusts is not known. See its version and its log"
		case !sameNames(loaded.AcceptableCAs, stored.CA):
			return fmt.Sprintf("%s accepts clients of %s, and ca.crt of %s is %s: it has loaded its key pair and not its ca.crt. %s", of, strings.Join(names(loaded.AcceptableCAs), " and "), secret, anchors(stored.CA), loadIt(spec))
		}
	}
	return ""
}

// loadIt is how a server is brought to load its Secret.
func loadIt(spec mesh.Spec) string {
	return fmt.Sprintf("If it does not by itself, restart it (kubectl -n %s rollout restart deployment/%s), and set management.reload to %q in the mesh's spec so that rotations do", spec.Management.Namespace, mesh.ServerDeployment, mesh.ReloadRestart)
}

// sameNames says whether a request names the CAs, each of them and no others.
func sameNames(subjects [][]byte, cas []*x509.Certificate) bool {
	for _, ca := range cas {
		if !slices.ContainsFunc(subjects, func(s []byte) bool { return bytes.Equal(s, ca.RawSubject) }) {
			return false
		}
	}
	return len(others(subjects, cas)) == 0
}

// others are the subjects that none of the CAs has, each once.
func others(subjects [][]byte, cas []*x509.Certificate) [][]byte {
	var rest [][]byte
	for _, s := range subjects {
		has := func(other []byte) bool { return bytes.Equal(s, other) }
		if !slices.ContainsFunc(cas, func(ca *x509.Certificate) bool { return has(ca.RawSubject) }) && !slices.ContainsFunc(rest, has) {
			rest = append(rest, s)
		}
	}
	return rest
}

// names are raw subjects as they are written in certificates' texts.
func names(subjects [][]byte) []string {
	all := make([]string, len(subjects))
	for i, raw := range subjects {
		var sequence pkix.RDNSequence
		if _, err := asn1.Unmarshal(raw, &sequence); err != nil {
			all[i] = "a name that cannot be read"
			continue
		}
		var name pkix.Name
		name.FillFromRDNSequence(&sequence)
		all[i] = name.String()
	}
	return all
}

func serverResult(seen check.Management, at time.Time) ServerResult {
	leaf := seen.Secret.Chain[0]
	result := ServerResult{
		Leaf:     leafOf(leaf),
		Chains:   []string{string(pki.EncodeChain(seen.Secret.Chain...))},
		Trusts:   []string{string(pki.EncodeChain(seen.Secret.CA...))},
		Presents: leaf.Issuer.CommonName,
		Trusted:  commonNames(seen.Secret.CA),
		Ended:    leaf.NotAfter.Before(at),
	}
	ready := 0
	var accepted [][]byte
	for i, pod := range seen.Server.Pods {
		if !pod.Ready {
			continue
		}
		ready++
		loaded := seen.Replicas[i].Loaded
		if chain := string(pki.EncodeChain(loaded.Chain...)); !slices.Contains(result.Chains, chain) {
			result.Chains = append(result.Chains, chain)
		}
		accepted = append(accepted, loaded.AcceptableCAs...)
		result.Ended = result.Ended || loaded.Chain[0].NotAfter.Before(at)
	}
	result.AcceptableCAs = names(others(accepted, seen.Secret.CA))
	result.Detail = fmt.Sprintf("serial %s until %s, %d replicas", result.Leaf.Serial, pki.Date(leaf.NotAfter), ready)
	return result
}

// inRotation adds which modes and trusts of a rotation those are.
func (r *ServerResult) inRotation(seen check.Management, of rotation.Lineage) {
	r.Stored, r.StoredProblem = storedMode(seen.Secret, of)
	for i, pod := range seen.Server.Pods {
		if pod.Ready {
			r.Loaded |= rotation.PresentedModes(seen.Replicas[i].Loaded.Chain, of)
			r.LoadedAnchor |= rotation.NamedStores(seen.Replicas[i].Loaded.AcceptableCAs, of)
		}
	}
}

// storedMode is the mode of what is in a Secret, or any, and why it is of none.
func storedMode(secret check.SeenSecret, of rotation.Lineage) (rotation.Modes, string) {
	mode, err := rotation.ModeOf(secret.Chain, secret.CA, of)
	if err != nil {
		return rotation.AnyMode, err.Error()
	}
	return rotation.In(mode), ""
}

func leafOf(c *x509.Certificate) procedure.Leaf {
	return procedure.Leaf{Serial: pki.Serial(c), DNSNames: c.DNSNames, AuthorityKeyID: pki.Hex(c.AuthorityKeyId), NotAfter: c.NotAfter}
}

// CheckPairInput asks whether a cluster's agent and the server shake hands,
// whatever either of them has stored, loaded or in flight.
type CheckPairInput struct {
	Spec    mesh.Spec    `json:"spec"` // with this one workload
	Cluster string       `json:"cluster"`
	Server  ServerResult `json:"server"`
	// InFlight are chains, throwaway leaf first, that Vault may return to either
	// from now on.
	InFlight []string `json:"inFlight,omitempty"`
	// InFlightCAs are what Vault may return as ca.crt with those, in PEM: the
	// server may trust any of them from now on, and an agent with a trust of its own.
	InFlightCAs []string `json:"inFlightCAs,omitempty"`
	// Issuing is the intermediate that is about to issue this agent's certificate anew,
	// in PEM: if it has signed the leaf, the agent's chain is judged as it will be then,
	// whatever has become of it in its Secret.
	Issuing string `json:"issuing,omitempty"`
	// Lineage is given in a rotation of the root.
	Lineage *Lineage `json:"lineage,omitempty"`
	// RootsOnly refuses a trust store that holds anything but self-signed roots, and
	// the bridge of the Lineage, the server's included: without it an intermediate is
	// no trust anchor.
	RootsOnly bool `json:"rootsOnly,omitempty"`
}

// CheckPairResult is what the agent has, and every combination that fails.
type CheckPairResult struct {
	procedure.Outcome
	Leaf     procedure.Leaf `json:"leaf"`
	Problems []string       `json:"problems,omitempty"`
	// Presents and Trusts are the names of CAs: of the intermediate that signed
	// the agent's leaf, and of the anchors that it checks the server against.
	Presents string   `json:"presents"`
	Trusts   []string `json:"trusts"`
	// Stored is, with a Lineage, the mode of what is in the agent's Secret; any, and
	// a problem more, if that is of no mode of this rotation. Bundle is the trust store
	// that is stored for it where it has one of its own.
	Stored rotation.Modes  `json:"stored,omitempty"`
	Bundle rotation.Stores `json:"bundle,omitempty"`
}

// CheckPair reads the public certificates of a cluster's agent and computes
// whether every handshake would succeed, once a leaf that has ended is renewed. A
// failure is a problem in the result; an error is a cluster that could not be
// looked at, and so is a Secret that is missing, as one that joins has none yet,
// or that is not as it should be.
func (a *Activities) CheckPair(ctx context.Context, in CheckPairInput) (CheckPairResult, error) {
	defer kube.Heartbeating(ctx, "looking")()
	spec := in.Spec.WithDefaults()
	w, err := workload(spec, in.Cluster)
	if err != nil {
		return CheckPairResult{}, err
	}
	seen, err := observe.Agent(ctx, a.Clients, spec, w)
	if err != nil {
		return CheckPairResult{}, err
	}
	if ctx.Err() != nil {
		return CheckPairResult{}, ctx.Err()
	}
	return pair(seen, in, time.Now())
}

// pair judges what was seen of an agent against a server.
func pair(seen check.Workload, in CheckPairInput, at time.Time) (CheckPairResult, error) {
	var result CheckPairResult
	bad := func(format string, args ...any) {
		result.Problems = append(result.Problems, fmt.Sprintf(format, args...))
	}

	client := kube.Name("Secret", seen.Spec.Namespace, seen.Spec.Certificates.Client.SecretName)
	name, trusted := seen.Trust()
	own := seen.Cluster.Agent.Trust == mesh.TrustOwn
	trustName := kube.Name("Secret", seen.Spec.Namespace, name)
	if seen.Unreachable != "" {
		return result, unreachable(seen.Cluster.Context, seen.Unreachable)
	}
	for _, err := range []error{
		unread(in.Cluster, client, seen.Secret.Gap),
		unread(in.Cluster, trustName, trusted.Gap),
		unreadable(in.Cluster, client, "tls.crt", seen.Secret.ChainError, issueIt),
		unreadable(in.Cluster, trustName, "ca.crt", trusted.CAError, "Run the setup again, which writes it"),
	} {
		if err != nil {
			return result, err
		}
	}
	result.Leaf = leafOf(seen.Secret.Chain[0])
	result.Presents = seen.Secret.Chain[0].Issuer.CommonName
	result.Trusts = commonNames(trusted.CA)

	shown, err := parsed(in.Server.Chains)
	if err != nil {
		return result, err
	}
	trusts, err := parsed(in.Server.Trusts)
	if err != nil {
		return result, err
	}
	trustsInFlight, err := parsed(in.InFlightCAs)
	if err != nil {
		return result, err
	}
	inFlight, err := parsed(in.InFlight)
	if err != nil {
		return result, err
	}
	chain := seen.Secret.Chain
	if in.Issuing != "" {
		issuing, err := parsed([]string{in.Issuing})
		if err != nil {
			return result, err
		}
		chain = reissued(chain, issuing[0][0])
	}
	var of rotation.Lineage
	if in.Lineage != nil {
		if of, err = in.Lineage.Certificates(); err != nil {
			return result, err
		}
	}
	server := rotation.Side{Name: "the management server", Chains: slices.Concat(shown, inFlight), Trusts: eachOnce(trusts, trustsInFlight)}
	agent := rotation.Side{Name: fmt.Sprintf("the agent of cluster %q", in.Cluster),
		Chains: append([][]*x509.Certificate{chain}, inFlight...), Trusts: [][]*x509.Certificate{trusted.CA}}
	if own {
		agent.Trusts = eachOnce(agent.Trusts, trustsInFlight)
	}
	// What a replica has loaded of the trust is a root of the rotation, by its name, or
	// it is not known.
	var unknown []string
	for _, ca := range in.Server.AcceptableCAs {
		known := of.Named(ca)
		for _, root := range known {
			server.Trusts = eachOnce(server.Trusts, [][]*x509.Certificate{{root}})
		}
		if len(known) == 0 {
			unknown = append(unknown, ca)
		}
	}
	for _, p := range rotation.Broken(server, []rotation.Side{agent}, at) {
		bad("%s would refuse %s: it trusts %s, and is shown %s, signed by %q: %v", p.Verifier, p.Presenter, anchors(p.Trust), pki.Name(p.Chain[0]), p.Chain[0].Issuer.CommonName, p.Problem)
	}
	if in.RootsOnly {
		result.Problems = append(result.Problems, notRoots(agent, trustName, of)...)
		result.Problems = append(result.Problems, notRoots(server, "its ca.crt", of)...)
	}
	for _, ca := range unknown {
		elsewhere := func(chain []*x509.Certificate) bool {
			return !slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return c.Issuer.String() == ca })
		}
		if in.RootsOnly || slices.ContainsFunc(agent.Chains, elsewhere) {
			bad("the management server has loaded another trust than its Secret's: it accepts clients of %s. %s", ca, loadIt(seen.Spec))
		}
	}
	if in.Lineage != nil {
		var problem string
		if result.Stored, problem = storedMode(seen.Secret, of); problem != "" {
			bad("cluster %q: %s is of no mode of this rotation: %s. %s", in.Cluster, client, problem, issueIt)
		}
		if !own {
			result.Bundle = rotation.Trusting(rotation.Held(trusted.CA, of))
		}
	}
	return result, nil
}

// reissued is the chain as what issues will give it, if that has signed its leaf.
func reissued(chain []*x509.Certificate, issuing *x509.Certificate) []*x509.Certificate {
	if chain[0].CheckSignatureFrom(issuing) != nil {
		return chain
	}
	return []*x509.Certificate{chain[0], issuing}
}

// commonNames are the names by which people know CAs.
func commonNames(cas []*x509.Certificate) []string {
	names := make([]string, len(cas))
	for i, ca := range cas {
		names[i] = ca.Subject.CommonName
	}
	return names
}

// eachOnce are the trust stores, and the others that are not among them.
func eachOnce(stores, others [][]*x509.Certificate) [][]*x509.Certificate {
	all := slices.Clone(stores)
	for _, other := range others {
		same := func(store []*x509.Certificate) bool { return slices.EqualFunc(store, other, (*x509.Certificate).Equal) }
		if !slices.ContainsFunc(all, same) {
			all = append(all, other)
		}
	}
	return all
}

// parsed are PEM texts of chains and trust stores.
func parsed(texts []string) ([][]*x509.Certificate, error) {
	all := make([][]*x509.Certificate, len(texts))
	for i, text := range texts {
		var err error
		if all[i], err = pki.ParseChain([]byte(text)); err != nil {
			return nil, failure.Permanent(failure.InvalidInput, "the certificates to compare the agents' with cannot be read: %v", err)
		}
	}
	return all, nil
}

// notRoots are the anchors that are no roots: to rotate the intermediate below
// them is to rotate what they anchor. A bridge of the lineage stands for its root.
func notRoots(side rotation.Side, where string, of rotation.Lineage) []string {
	var problems []string
	for _, trust := range side.Trusts {
		for _, anchor := range trust {
			if (!pki.SelfSigned(anchor) || !anchor.IsCA) && !of.Bridges(anchor) {
				problems = append(problems, fmt.Sprintf("%s trusts %s (%s), which is no self-signed root: what is signed under another intermediate is then refused. Put the root alone there (run the setup again), or rotate the root instead", side.Name, pki.Name(anchor), where))
			}
		}
	}
	return problems
}

// anchors names a trust store.
func anchors(trust []*x509.Certificate) string {
	all := make([]string, len(trust))
	for i, anchor := range trust {
		all[i] = pki.Name(anchor)
	}
	return strings.Join(all, " and ")
}

// ShakeHandsInput asks for fresh handshakes in the place of a cluster's agent.
type ShakeHandsInput struct {
	Spec    mesh.Spec `json:"spec"` // with this one workload
	Cluster string    `json:"cluster"`
}

// ShakeHands makes a fresh full mTLS handshake with every replica of the
// management server, with the certificate and trust in the cluster's Secrets. One
// that fails is an error, which another try may cure: a replica takes a moment to
// load what was just written. Where the worker that reaches the cluster does not
// reach the management cluster, none can be made, and the detail says so.
func (a *Activities) ShakeHands(ctx context.Context, in ShakeHandsInput) (procedure.Outcome, error) {
	defer kube.Heartbeating(ctx, "shaking hands")()
	var out procedure.Outcome
	spec := in.Spec.WithDefaults()
	w, err := workload(spec, in.Cluster)
	if err != nil {
		return out, err
	}
	seen, err := observe.Handshakes(ctx, a.Clients, spec, w)
	switch {
	case err != nil:
		return out, err
	case ctx.Err() != nil:
		return out, ctx.Err()
	case seen.Unreachable != "":
		return out, unreachable(w.Context, seen.Unreachable)
	case seen.Private != "":
		out.Detail = "no handshake: " + seen.Private
		return out, nil
	}
	if err := refused(seen); err != nil {
		return out, err
	}
	out.Detail = fmt.Sprintf("%d fresh handshakes", len(seen.Handshakes))
	return out, nil
}

// refused is what is the matter with the handshakes; nil if nothing is.
func refused(seen check.Workload) error {
	var problems []string
	for _, f := range seen.HandshakeFindings() {
		if f.Status == check.Fail {
			problems = append(problems, strings.TrimSpace(f.Object+" "+f.Message)+"; "+f.Remedy)
		}
	}
	if len(problems) == 0 {
		return nil
	}
	kind := failure.Unhealthy
	if slices.ContainsFunc(seen.Handshakes, func(h check.SeenHandshake) bool { return !h.Reached }) {
		kind = failure.Unavailable
	}
	return failure.Transient(kind, "cluster %q: %s", seen.Cluster.Name, strings.Join(problems, ". "))
}
