package pki_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
)

// Whatever is wrong with what people bring back is said, each thing for what it is,
// and nothing else.
func TestCheckNewRoot(t *testing.T) {
	r1 := pkitest.Root(t, "Example Root")
	r2, other, twin := pkitest.Root(t, "Example Root G2"), pkitest.Root(t, "Other Root"), pkitest.Root(t, "Example Root")
	csr, _ := pkitest.CSR(t, pkitest.Key(t), relaySubject)
	foreign, _ := pkitest.CSR(t, pkitest.Key(t), relaySubject)
	i, bridge := r2.SignCSR(t, csr), r1.Cross(t, r2).Cert
	// of is what follows from a new root that is made so.
	of := func(name string, options ...pkitest.Option) []*x509.Certificate {
		r := pkitest.Root(t, name, options...)
		return list(r.SignCSR(t, csr), r.Cert, r1.Cross(t, r).Cert)
	}
	crossed := func(options ...pkitest.Option) []*x509.Certificate {
		return list(i, r2.Cert, r1.Cross(t, r2, options...).Cert)
	}
	signed := func(options ...pkitest.Option) []*x509.Certificate {
		return list(r2.SignCSR(t, csr, options...), r2.Cert, bridge)
	}
	pathLength := func(n int) pkitest.Option {
		return func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = n, n == 0 }
	}
	unknown := func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
	}
	names := func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.com"} }
	short, ended := pkitest.Valid(-time.Hour, minLife-time.Minute), pkitest.Valid(-2*time.Hour, -time.Hour)
	// The same key under another name is the old one all the same.
	renamed := pkitest.Pair{Key: r1.Key, Cert: r1.Resigned(t, "Example Root G2")}
	nameless := pkitest.Root(t, "Example Root G2")
	brief := pkitest.Root(t, "Example Root G2", short)
	bare := *nameless.Cert
	bare.SubjectKeyId = nil
	for _, test := range []struct {
		name string
		in   []*x509.Certificate
		want []string
	}{
		{"good", list(i, r2.Cert, bridge), nil},
		{"good, the other way round", list(bridge, r2.Cert, i), nil},
		{"good, with path lengths", list(i, r2.Cert, r1.Cross(t, r2, pathLength(1)).Cert), nil},
		{"good, a root of path length 2", of("Example Root G2", pathLength(2)), nil},
		{"nothing", nil, []string{"no new root", "no bridge", "no certificate for the CSR's key"}},
		{"no intermediate", list(r2.Cert, bridge), []string{"there is no certificate for the CSR's key, sha256:"}},
		{"no new root", list(i, bridge), []string{"there is no new root in it"}},
		{"no bridge", list(i, r2.Cert), []string{"there is no bridge in it"}},
		{"the intermediate alone", list(i), []string{"there is no new root in it", "there is no bridge in it"}},
		{"another root too", list(i, r2.Cert, bridge, other.Cert), []string{`"Other Root" (serial ` + pki.Serial(other.Cert) + `) is one too many`}},
		{"twice", list(i, r2.Cert, bridge, i), []string{"is in it twice"}},
		{"the old root too", list(i, r2.Cert, bridge, r1.Cert), []string{"the root at work"}},
		{"the old root as the new", list(r1.SignCSR(t, csr), r1.Cert), []string{"the root at work, ", "there is no new root in it", "there is no bridge in it"}},
		{"the old root's name", of("Example Root"), []string{`the new root: it has the common name of the root at work, "Example Root"`}},
		{"the old root's key", list(renamed.SignCSR(t, csr), renamed.Cert, r1.Cross(t, renamed).Cert), []string{"the new root: it has the key of the root at work"}},
		{"the intermediate's name", of(relaySubject.CommonName), []string{"the new root: it has the common name of the intermediate"}},
		{"no name", of(""), []string{"the new root: it has no common name"}},
		{"a root of path length 0", of("Example Root G2", pathLength(0)), []string{"has path length 0: it allows no intermediate"}},
		{"a root of path length 1", of("Example Root G2", pathLength(1)), []string{"the new root: it has path length 1"}},
		{"a root without a key identifier", list(nameless.SignCSR(t, csr), &bare, r1.Cross(t, nameless).Cert), []string{"the new root: it has no subject key identifier", "has the key identifier"}},
		{"a root for servers alone", of("Example Root G2", pkitest.Usages(x509.ExtKeyUsageServerAuth)), []string{"the new root: the extended key usage"}},
		{"a root that may not sign", of("Example Root G2", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }), []string{"the new root: the key usage of", "the intermediate: "}},
		{"a root for some names", of("Example Root G2", names), []string{"the new root: it has name constraints"}},
		{"a root with an unknown critical extension", of("Example Root G2", unknown), []string{"the new root: "}},
		{"an expired root", of("Example Root G2", ended), []string{"the new root: it expired at", "the intermediate: ", "longer than its issuer"}},
		{"a root that is not valid yet", of("Example Root G2", pkitest.Valid(time.Hour, 30*365*24*time.Hour)), []string{"the new root: it is valid from"}},
		{"a root of too little life", list(brief.SignCSR(t, csr, short), brief.Cert, r1.Cross(t, brief).Cert), []string{"the new root: it is valid until 2026-07-09 11:59 UTC: too short", "the intermediate: it is valid until"}},
		{"another key than the CSR's", list(r2.SignCSR(t, foreign), r2.Cert, bridge), []string{"the intermediate: it is for another key"}},
		{"the intermediate of the old root", list(r1.SignCSR(t, csr), r2.Cert, bridge), []string{`the intermediate: "gloo-mesh-mgmt-server-ca"`, `as its issuer, not "CN=Example Root G2"`}},
		{"the intermediate of a third root", list(other.SignCSR(t, csr), r2.Cert, bridge), []string{`names "CN=Other Root" as its issuer`}},
		{"an intermediate that is a leaf", signed(func(c *x509.Certificate) { c.IsCA, c.MaxPathLenZero = false, false }), []string{"the intermediate: it is no CA certificate"}},
		{"an expired intermediate", signed(ended), []string{"the intermediate: it expired at"}},
		{"a short intermediate", signed(short), []string{"the intermediate: it is valid until 2026-07-09 11:59 UTC: too short"}},
		{"an intermediate that outlives its root", signed(pkitest.Valid(-time.Hour, 30*365*24*time.Hour)), []string{"the intermediate: ", "longer than its issuer"}},
		{"the bridge signed by the new root itself", list(i, r2.Cert, r2.Cross(t, r2).Cert), []string{`the bridge: "Example Root G2"`, `names "CN=Example Root G2" as its issuer, not "CN=Example Root"`}},
		{"the bridge of a root of the old one's name", list(i, r2.Cert, twin.Cross(t, r2).Cert), []string{"the bridge: ", "was signed by the key"}},
		{"the bridge for another key", list(i, r2.Cert, r1.Cross(t, pkitest.Root(t, "Example Root G2")).Cert), []string{"the bridge: ", "is for another key than the new root", "has the key identifier"}},
		{"the bridge for another name", list(i, r2.Cert, r1.Cross(t, pkitest.Pair{Cert: other.Cert, Key: r2.Key}).Cert), []string{"the bridge: ", `has the subject "CN=Other Root"`}},
		{"the bridge to a third root", list(i, r2.Cert, r1.Cross(t, other).Cert), []string{"is for another key", "has the subject", "has the key identifier"}},
		{"the bridge with another key identifier", crossed(func(c *x509.Certificate) { c.SubjectKeyId = []byte{1} }), []string{"has the key identifier 01"}},
		{"a bridge that is no CA", crossed(func(c *x509.Certificate) { c.IsCA = false }), []string{"is no CA certificate"}},
		{"a bridge of path length 0", crossed(pathLength(0)), []string{"path length 0"}},
		{"a bridge that may not sign", crossed(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }), []string{"may not sign certificates"}},
		{"a bridge for servers alone", crossed(pkitest.Usages(x509.ExtKeyUsageServerAuth)), []string{"is limited"}},
		{"a bridge with an unknown critical extension", crossed(unknown), []string{"the bridge: it has critical extensions"}},
		{"a bridge that outlives the old root", crossed(pkitest.Valid(0, 21*365*24*time.Hour)), []string{"the bridge: ", "longer than its issuer"}},
		{"a short bridge", crossed(short), []string{"the bridge: it is valid until 2026-07-09 11:59 UTC: too short"}},
		{"an expired bridge", crossed(ended), []string{"the bridge: it expired at"}},
		{"all at once", list(other.SignCSR(t, csr, ended), r2.Cert, twin.Cross(t, r2, short, pathLength(0)).Cert, r1.Cert, other.Cert),
			[]string{"the root at work", "one too many", "the intermediate: it expired", "as its issuer", "path length 0", "was signed by the key", "the bridge: it is valid until"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			found, problems := pki.CheckNewRoot(csr, test.in, pki.NewRootWant{Old: r1.Cert, At: pkitest.Now, MinLife: minLife})
			said := make([]string, len(problems))
			for n, p := range problems {
				said[n] = p.Error()
				if !slices.ContainsFunc(test.want, func(want string) bool { return strings.Contains(said[n], want) }) {
					t.Errorf("it says %q", said[n])
				}
			}
			for _, want := range test.want {
				if !strings.Contains(fmt.Sprint(said), want) {
					t.Errorf("it does not say %q, but %q", want, said)
				}
			}
			if len(test.want) > 0 {
				return
			}
			if found.Bridge == nil || !slices.ContainsFunc(test.in, found.Bridge.Equal) || pki.SelfSigned(found.Bridge) || !pki.SelfSigned(found.Root) || pki.SelfSigned(found.Intermediate) {
				t.Errorf("which is which: %v", found)
			}
			for _, chain := range [][]*x509.Certificate{{found.Intermediate, found.Root}, {found.Intermediate, found.Bridge, r1.Cert}} {
				if err := pki.Linear(chain); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// In whatever order they come, they are told apart.
func TestNewRootInAnyOrder(t *testing.T) {
	r1, r2 := pkitest.Root(t, "Example Root"), pkitest.Root(t, "Example Root G2")
	csr, _ := pkitest.CSR(t, pkitest.Key(t), relaySubject)
	want := pki.NewRoot{Intermediate: r2.SignCSR(t, csr), Root: r2.Cert, Bridge: r1.Cross(t, r2).Cert}
	in := want.Chain()
	for range 20 {
		rand.Shuffle(len(in), func(i, j int) { in[i], in[j] = in[j], in[i] })
		found, problems := pki.CheckNewRoot(csr, in, pki.NewRootWant{Old: r1.Cert, At: pkitest.Now, MinLife: minLife})
		if found != want || len(problems) > 0 {
			t.Fatalf("found %v, problems %v", found, problems)
		}
	}
}
