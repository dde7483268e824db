package rotation

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
)

// authorities are the CAs of a mesh that goes from one root to the next, and on
// to another intermediate there.
type authorities struct {
	r1, r2, bridge pkitest.Pair
	i2, i3, i4     pkitest.Pair
}

func newAuthorities(t testing.TB) authorities {
	a := authorities{r1: pkitest.Root(t, "relay-root-g1"), r2: pkitest.Root(t, "relay-root-g2")}
	a.bridge = a.r1.Cross(t, a.r2)
	// As in Vault, intermediates have one name for all generations.
	a.i2 = a.r1.Intermediate(t, "relay")
	a.i3 = a.r2.Intermediate(t, "relay")
	a.i4 = a.r2.Intermediate(t, "relay")
	return a
}

func certs(pairs ...pkitest.Pair) []*x509.Certificate {
	out := []*x509.Certificate{}
	for _, p := range pairs {
		out = append(out, p.Cert)
	}
	return out
}

const authority = "gloo-mesh-mgmt-server.gloo-mesh"

// presented are the chains that a member presents in a rotation, leaf first, and
// some that go wrong.
func (a authorities) presented(t testing.TB) (modes, others map[string][]pkitest.Pair) {
	leaf := func(ca pkitest.Pair, options ...pkitest.Option) pkitest.Pair {
		return ca.Leaf(t, []string{authority}, options...)
	}
	short := a.r1.Cross(t, a.r2, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })
	return map[string][]pkitest.Pair{
			"old":              {leaf(a.i2), a.i2},
			"bridged or pivot": {leaf(a.i3), a.i3, a.bridge},
			"final or pinned":  {leaf(a.i3), a.i3},
		}, map[string][]pkitest.Pair{
			"I4 at pivot":                 {leaf(a.i4), a.i4, a.bridge},
			"I4 final or pinned":          {leaf(a.i4), a.i4},
			"a bridge with path length 0": {leaf(a.i3), a.i3, short},
		}
}

// trusted are the trust stores of a rotation, and some that go wrong.
func (a authorities) trusted(t testing.TB) (modes, others map[string][]*x509.Certificate) {
	ended := a.r1.Cross(t, a.r2, pkitest.Valid(-48*time.Hour, -time.Hour))
	return map[string][]*x509.Certificate{
			"R1, as old and bridged": certs(a.r1),
			"the bridge, as pivot":   certs(a.bridge),
			"R2, as final":           certs(a.r2),
			"I3, as pinned":          certs(a.i3),
			"R1 and R2":              certs(a.r1, a.r2),
		}, map[string][]*x509.Certificate{
			"I2":                   certs(a.i2),
			"I3 and I4":            certs(a.i3, a.i4),
			"another of R2's name": certs(pkitest.Root(t, "relay-root-g2")),
			"a bridge that ended":  certs(ended),
			"nothing":              certs(),
		}
}

// The matrix is what crypto/tls does. What members have in the modes of a
// rotation is tried whole, each chain and trust of the server with each chain
// and trust of an agent; what goes wrong besides, once in each direction, with
// all that may be opposite.
func TestBrokenIsWhatTLSDoes(t *testing.T) {
	a := newAuthorities(t)
	chains, otherChains := a.presented(t)
	trusts, otherTrusts := a.trusted(t)
	tried := matrixTest{}
	for serverChain, server := range chains {
		for serverTrusts, serverTrust := range trusts {
			for agentChain, agent := range chains {
				for agentTrusts, agentTrust := range trusts {
					name := fmt.Sprintf("server: %s, trusts %s; agent: %s, trusts %s", serverChain, serverTrusts, agentChain, agentTrusts)
					tried.handshake(t, name, server, serverTrust, agent, agentTrust)
				}
			}
		}
	}
	fits, both := chains["bridged or pivot"], trusts["R1 and R2"]
	direction := func(chainName string, chain []pkitest.Pair, trustName string, trust []*x509.Certificate) {
		tried.handshake(t, fmt.Sprintf("server: %s; agent trusts %s", chainName, trustName), chain, both, fits, trust)
		tried.handshake(t, fmt.Sprintf("agent: %s; server trusts %s", chainName, trustName), fits, trust, chain, both)
	}
	for chainName, chain := range otherChains {
		for trustName, trust := range trusts {
			direction(chainName, chain, trustName, trust)
		}
		for trustName, trust := range otherTrusts {
			direction(chainName, chain, trustName, trust)
		}
	}
	for chainName, chain := range chains {
		for trustName, trust := range otherTrusts {
			direction(chainName, chain, trustName, trust)
		}
	}
	t.Logf("%+v", tried)
	if tried.succeeded == 0 || tried.refused == 0 || tried.notOffered == 0 {
		t.Errorf("%+v: not everything was tried", tried)
	}
}

// matrixTest counts what handshakes came to.
type matrixTest struct{ succeeded, refused, notOffered int }

// handshake computes one, makes it and compares.
func (tried *matrixTest) handshake(t *testing.T, name string, server []pkitest.Pair, serverTrust []*x509.Certificate, agent []pkitest.Pair, agentTrust []*x509.Certificate) {
	t.Helper()
	broken := Broken(
		Side{"server", [][]*x509.Certificate{certs(server...)}, [][]*x509.Certificate{serverTrust}},
		[]Side{{"agent", [][]*x509.Certificate{certs(agent...)}, [][]*x509.Certificate{agentTrust}}}, pkitest.Now)
	serverErr, agentErr := shakeHands(t, server, serverTrust, agent, agentTrust)
	computed, happened := "", ""
	if len(broken) > 0 { // the agent judges first
		computed = broken[0].Verifier + " refuses"
		if broken[0].Problem == errNotOffered {
			computed = "agent sends nothing"
		}
	}
	switch {
	case agentErr != nil && !strings.Contains(agentErr.Error(), "remote error"):
		happened = "agent refuses"
	case serverErr != nil && strings.Contains(serverErr.Error(), "client didn't provide a certificate"):
		happened = "agent sends nothing"
	case serverErr != nil:
		happened = "server refuses"
	}
	if computed != happened || (agentErr == nil) != (happened == "") {
		t.Errorf("%s: computed %q: %v; crypto/tls: %q, server: %v, agent: %v", name, computed, broken, happened, serverErr, agentErr)
	}
	switch happened {
	case "":
		tried.succeeded++
	case "agent sends nothing":
		tried.notOffered++
	default:
		tried.refused++
	}
}

// shakeHands has a server and an agent make a real handshake over a pipe and
// say a word each: in TLS 1.3 the agent's part is over before the server has
// judged its certificate.
func shakeHands(t testing.TB, server []pkitest.Pair, serverTrust []*x509.Certificate, agent []pkitest.Pair, agentTrust []*x509.Certificate) (serverErr, agentErr error) {
	t.Helper()
	now := func() time.Time { return pkitest.Now }
	here, there := net.Pipe()
	deadline := time.Now().Add(time.Minute) // a test that hangs is to say where
	for _, c := range []net.Conn{here, there} {
		if err := c.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		conn := tls.Server(here, &tls.Config{
			Time: now, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
			Certificates: []tls.Certificate{server[0].TLS(server[1:]...)},
			ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: pki.Pool(serverTrust),
		})
		_, err := conn.Write([]byte{1})
		here.Close()
		done <- err
	}()
	conn := tls.Client(there, &tls.Config{
		Time: now, ServerName: authority,
		Certificates: []tls.Certificate{agent[0].TLS(agent[1:]...)},
		RootCAs:      pki.Pool(agentTrust),
	})
	_, agentErr = io.ReadFull(conn, make([]byte, 1))
	there.Close()
	return <-done, agentErr
}

// What may be presented and trusted is judged in every combination, and who
// fails whom is named.
func TestBrokenNamesEveryCombination(t *testing.T) {
	a := newAuthorities(t)
	old, final := a.i2.Leaf(t, []string{"x"}), a.i3.Leaf(t, []string{"x"})
	// What shows what Vault would return has neither name nor usage of ours.
	throwaway := a.i3.Leaf(t, []string{"throwaway"}, pkitest.Usages(x509.ExtKeyUsageCodeSigning))
	// A leaf that has ended is judged as if it had not, under a CA that ended with it
	// too; a CA that has ended is not.
	over := pkitest.Valid(-48*time.Hour, -time.Hour)
	i0 := a.r1.Intermediate(t, "relay", over)
	ended := func(ca pkitest.Pair) []*x509.Certificate { return certs(ca.Leaf(t, []string{"x"}, over), ca) }
	server := Side{"server", [][]*x509.Certificate{certs(old, a.i2)}, [][]*x509.Certificate{certs(a.r1)}}
	for _, test := range []struct {
		name  string
		agent Side
		want  []string
	}{
		{"all fits", Side{"cluster1", [][]*x509.Certificate{certs(old, a.i2)}, [][]*x509.Certificate{certs(a.r1), certs(a.r1, a.r2)}}, nil},
		{"a throwaway in flight over the bridge", Side{"cluster1", [][]*x509.Certificate{certs(old, a.i2), certs(throwaway, a.i3, a.bridge)}, [][]*x509.Certificate{certs(a.r1)}}, nil},
		{"its own in flight", Side{"cluster1", [][]*x509.Certificate{certs(old, a.i2), certs(final, a.i3)}, [][]*x509.Certificate{certs(a.r1)}},
			[]string{"cluster1 to server: none of the chain's issuers"}},
		{"its loaded trust", Side{"cluster1", [][]*x509.Certificate{certs(old, a.i2)}, [][]*x509.Certificate{certs(a.r1), certs(a.r2)}},
			[]string{"server to cluster1: x509: certificate signed by unknown authority"}},
		{"everything", Side{"cluster1", [][]*x509.Certificate{certs(final, a.i3), certs(throwaway, a.i3)}, [][]*x509.Certificate{certs(a.r2), certs(a.i3)}},
			[]string{"server to cluster1", "server to cluster1", "cluster1 to server", "cluster1 to server"}},
		{"a leaf that has ended", Side{"cluster1", [][]*x509.Certificate{ended(a.i2)}, [][]*x509.Certificate{certs(a.r1)}}, nil},
		{"one that has ended with its issuer", Side{"cluster1", [][]*x509.Certificate{ended(i0)}, [][]*x509.Certificate{certs(a.r1)}}, nil},
		{"one that has ended, of another root", Side{"cluster1", [][]*x509.Certificate{ended(a.i3)}, [][]*x509.Certificate{certs(a.r1)}},
			[]string{"cluster1 to server: none of the chain's issuers"}},
		{"an issuer that has ended", Side{"cluster1", [][]*x509.Certificate{certs(i0.Leaf(t, []string{"x"}), i0)}, [][]*x509.Certificate{certs(a.r1)}},
			[]string{"cluster1 to server: x509: certificate has expired"}},
		{"no trust known", Side{"cluster1", [][]*x509.Certificate{certs(old, a.i2)}, nil}, []string{"server to cluster1: it is not known to trust"}},
		{"no chain known", Side{"cluster1", nil, [][]*x509.Certificate{certs(a.r1)}}, []string{"cluster1 to server: it is not known to present"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			well := Side{"cluster2", server.Chains, server.Trusts}
			var got []string
			for _, p := range Broken(server, []Side{well, test.agent}, pkitest.Now) {
				got = append(got, fmt.Sprintf("%s to %s: %v", p.Presenter, p.Verifier, p.Problem))
			}
			if !slices.EqualFunc(got, test.want, strings.HasPrefix) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
