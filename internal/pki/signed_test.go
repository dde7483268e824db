package pki_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
)

var relaySubject = pkix.Name{CommonName: "gloo-mesh-mgmt-server-ca", Organization: []string{"mesh.solo.io"}}

const minLife = 8 * 24 * time.Hour

func list(cs ...*x509.Certificate) []*x509.Certificate { return cs }

// Each wrong answer is refused for what is wrong with it and for nothing else.
func TestCheckSigned(t *testing.T) {
	root, twin := pkitest.Root(t, "Example Root"), pkitest.Root(t, "Example Root")
	other := pkitest.Root(t, "Other Root")
	narrow := pkitest.Root(t, "Narrow Root", func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })
	key := pkitest.Key(t)
	csr, _ := pkitest.CSR(t, key, relaySubject)
	foreign, _ := pkitest.CSR(t, pkitest.Key(t), relaySubject)
	renamed, _ := pkitest.CSR(t, key, pkix.Name{CommonName: "gloo-mesh-mgmt-server-ca", Organization: []string{"elsewhere"}})
	twinned := twin
	twinned.Cert = &x509.Certificate{} // the twin's key under this root's identifiers
	*twinned.Cert = *root.Cert
	twinned.Cert.PublicKey = twin.Cert.PublicKey
	good := root.SignCSR(t, csr)
	nameless := *good
	nameless.SubjectKeyId = nil
	change := func(o pkitest.Option) []*x509.Certificate { return list(root.SignCSR(t, csr, o)) }
	for _, test := range []struct {
		name  string
		root  *x509.Certificate
		chain []*x509.Certificate
		want  []string
	}{
		{"good", root.Cert, list(good), nil},
		{"good, with its root", root.Cert, list(good, root.Cert), nil},
		{"good, without a path length", root.Cert, change(func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = -1, false }), nil},
		{"good, shorter than asked", root.Cert, change(pkitest.Valid(-time.Hour, minLife)), nil},
		{"good, for client and server alone", root.Cert, change(pkitest.Usages(x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth)), nil},
		{"good, encoded anew", root.Cert, change(func(c *x509.Certificate) { c.RawSubject = utf8Name(t, csr.RawSubject) }), nil},
		{"nothing", root.Cert, nil, []string{"no certificate"}},
		{"another key", root.Cert, list(root.SignCSR(t, foreign)), []string{"for another key, sha256:"}},
		{"another subject", root.Cert, list(root.SignCSR(t, renamed)), []string{`its subject is "CN=gloo-mesh-mgmt-server-ca,O=elsewhere", the CSR's "CN=gloo-mesh-mgmt-server-ca,O=mesh.solo.io"`}},
		{"the same words in other parts of the subject", root.Cert, change(func(c *x509.Certificate) {
			c.RawSubject, c.Subject = nil, pkix.Name{CommonName: "gloo-mesh-mgmt-server-ca", OrganizationalUnit: []string{"mesh.solo.io"}}
		}), []string{`its subject is "CN=gloo-mesh-mgmt-server-ca,OU=mesh.solo.io"`}},
		{"no key identifier", root.Cert, list(&nameless), []string{"no subject key identifier"}},
		{"a leaf", root.Cert, change(func(c *x509.Certificate) {
			c.IsCA, c.MaxPathLenZero, c.KeyUsage = false, false, x509.KeyUsageDigitalSignature
		}), []string{"no CA certificate"}},
		{"no basic constraints", root.Cert, change(func(c *x509.Certificate) { c.BasicConstraintsValid, c.IsCA, c.MaxPathLenZero = false, false, false }), []string{"no CA certificate"}},
		{"may not sign", root.Cert, change(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), []string{"keyCertSign"}},
		{"no key usage", root.Cert, change(func(c *x509.Certificate) { c.KeyUsage = 0 }), []string{"keyCertSign"}},
		{"servers alone", root.Cert, change(pkitest.Usages(x509.ExtKeyUsageServerAuth)), []string{"extended key usage"}},
		{"name constraints", root.Cert, change(func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.com"} }), []string{"name constraints"}},
		{"an unknown critical extension", root.Cert, change(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}), []string{"critical extensions that TLS in Go does not know (1.2.3.4)"}},
		{"not valid yet", root.Cert, change(pkitest.Valid(time.Hour, 9999*time.Hour)), []string{"valid from 2026-07-01 13:00 UTC on, and now it is 2026-07-01 12:00 UTC"}},
		{"expired", root.Cert, change(pkitest.Valid(-2*time.Hour, -time.Hour)), []string{"it expired at 2026-07-01 11:00 UTC"}},
		{"too short", root.Cert, change(pkitest.Valid(-time.Hour, minLife-time.Minute)), []string{"too short, it has to be until 2026-07-09 12:00 UTC at least"}},
		{"longer than its root", root.Cert, change(pkitest.Valid(-time.Hour, 30*365*24*time.Hour)), []string{"longer than its issuer"}},
		{"signed by another root", root.Cert, list(other.SignCSR(t, csr)), []string{`names "CN=Other Root" as its issuer`}},
		{"signed by another root of that name", root.Cert, list(twin.SignCSR(t, csr)), []string{"was signed by the key"}},
		{"signed by another root with all of its names", root.Cert, list(twinned.SignCSR(t, csr)), []string{"is not signed by"}},
		{"self-signed", root.Cert, list(pkitest.Pair{Cert: selfTemplate(csr), Key: key}.SignCSR(t, csr)), []string{"it is self-signed"}},
		{"the root in its place", root.Cert, list(root.Cert), []string{"it is the root itself"}},
		{"root of path length 0", narrow.Cert, list(narrow.SignCSR(t, csr)), []string{"path length 0"}},
		{"root first", root.Cert, list(root.Cert, good), []string{"the root comes first"}},
		{"another root behind", root.Cert, list(good, other.Cert), []string{"the second certificate"}},
		{"twice", root.Cert, list(good, good), []string{"the second certificate"}},
		{"more than its root", root.Cert, list(good, root.Cert, other.Cert), []string{"there are 3 certificates"}},
		{"all at once", root.Cert, list(other.SignCSR(t, foreign, pkitest.Valid(-2*time.Hour, -time.Hour), func(c *x509.Certificate) { c.RawSubject = renamed.RawSubject; c.KeyUsage = 0 }), root.Cert, root.Cert),
			[]string{"another key", "its subject", "keyCertSign", "it expired", "as its issuer", "3 certificates"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			problems := pki.CheckSigned(csr, test.chain, pki.SignedWant{Root: test.root, At: pkitest.Now, MinLife: minLife})
			said := fmt.Sprint(problems)
			for _, want := range test.want {
				if !strings.Contains(said, want) {
					t.Errorf("does not say %q: %s", want, said)
				}
			}
			if len(problems) != len(test.want) {
				t.Errorf("%d problems, want %d: %s", len(problems), len(test.want), said)
			}
		})
	}
}

// Whatever is changed of an answer, in combination: one that is taken issues
// certificates with which server and client shake hands until its end.
func TestCheckSignedTakesWhatVerifies(t *testing.T) {
	root, other := pkitest.Root(t, "R"), pkitest.Root(t, "R")
	key := pkitest.Key(t)
	csr, _ := pkitest.CSR(t, key, relaySubject)
	foreign, _ := pkitest.CSR(t, pkitest.Key(t), relaySubject)
	options := []pkitest.Option{
		func(c *x509.Certificate) { c.KeyUsage = 0 },
		func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign },
		func(c *x509.Certificate) { c.IsCA, c.MaxPathLenZero = false, false },
		func(c *x509.Certificate) {
			if c.IsCA {
				c.MaxPathLen, c.MaxPathLenZero = 3, false
			}
		},
		func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
		func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} },
		func(c *x509.Certificate) { c.ExcludedDNSDomains = []string{"cluster1"} },
		pkitest.Valid(-time.Hour, time.Hour),
		pkitest.Valid(-time.Hour, 40*365*24*time.Hour),
		pkitest.Valid(2*time.Hour, 9000*time.Hour),
	}
	random := rand.New(rand.NewPCG(1, 2))
	taken := 0
	for range 500 {
		var chosen []pkitest.Option
		for _, o := range options {
			if random.IntN(8) == 0 {
				chosen = append(chosen, o)
			}
		}
		signer, request := root, csr
		if random.IntN(8) == 0 {
			signer = other
		}
		if random.IntN(8) == 0 {
			request = foreign
		}
		c := signer.SignCSR(t, request, chosen...)
		if len(pki.CheckSigned(csr, list(c), pki.SignedWant{Root: root.Cert, At: pkitest.Now, MinLife: minLife})) > 0 {
			continue
		}
		taken++
		end := c.NotAfter.Add(-time.Second)
		leaf := pkitest.Pair{Cert: c, Key: key}.Leaf(t, []string{"cluster1"}, pkitest.Valid(-time.Hour, end.Sub(pkitest.Now)))
		for _, at := range []time.Time{pkitest.Now, end} {
			for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
				if err := (pki.Peer{Trust: list(root.Cert), Name: "cluster1", Usage: usage, At: at}).Verify(list(leaf.Cert, c)); err != nil {
					t.Fatalf("it was taken, and at %s: %v\n%s", at, err, pki.EncodeChain(c))
				}
			}
		}
	}
	if taken < 20 {
		t.Errorf("only %d answers were taken: nothing is learnt", taken)
	}
}

func TestParseSigned(t *testing.T) {
	root := pkitest.Root(t, "R1")
	der, err := x509.MarshalPKCS8PrivateKey(root.Key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := string(pki.EncodeChain(root.Cert))
	for _, kind := range []string{"PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY"} {
		key := string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
		for _, text := range []string{key, certificate + key, key + certificate, certificate + key[:len(key)/2]} {
			_, err := pki.ParseSigned([]byte(text))
			expect(t, err, "there is a private key in it")
			if err != nil && strings.Contains(err.Error(), strings.Split(key, "\n")[1]) {
				t.Errorf("%s: the error quotes the key", kind)
			}
		}
	}
	if chain, err := pki.ParseSigned([]byte("Certificate:\n    Data: as openssl prints it\n" + certificate)); err != nil || len(chain) != 1 {
		t.Errorf("%d certificates, %v", len(chain), err)
	}
}

func TestParseCSR(t *testing.T) {
	csr, text := pkitest.CSR(t, pkitest.Key(t), relaySubject)
	if got, err := pki.ParseCSR([]byte(text)); err != nil || string(got.Raw) != string(csr.Raw) {
		t.Errorf("%+v, %v", got, err)
	}
	raw := append([]byte{}, csr.Raw...)
	raw[len(raw)-1] ^= 1
	for name, bad := range map[string]string{"none": "", "a certificate": string(pki.EncodeChain(pkitest.Root(t, "R").Cert)),
		"a broken signature": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: raw}))} {
		if _, err := pki.ParseCSR([]byte(bad)); err == nil {
			t.Errorf("%s is taken for a CSR", name)
		}
	}
}

func TestCheckRoot(t *testing.T) {
	good := pkitest.Root(t, "R1")
	for _, test := range []struct {
		name string
		c    *x509.Certificate
		want []string
	}{
		{"good", good.Cert, nil},
		{"room for two", pkitest.Root(t, "R", func(c *x509.Certificate) { c.MaxPathLen = 2 }).Cert, nil},
		{"an old one without key usage", pkitest.Root(t, "R", func(c *x509.Certificate) { c.KeyUsage = 0 }).Cert, nil},
		{"an intermediate", good.Intermediate(t, "I1").Cert, []string{"not self-signed"}},
		{"path length 0", pkitest.Root(t, "R", func(c *x509.Certificate) { c.MaxPathLenZero = true }).Cert, []string{"path length 0"}},
		{"no CA", pkitest.Root(t, "R", func(c *x509.Certificate) { c.IsCA = false }).Cert, []string{"no CA certificate"}},
		{"no basic constraints", pkitest.Root(t, "R", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = false, false }).Cert, []string{"no CA certificate"}},
		{"may not sign", pkitest.Root(t, "R", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }).Cert, []string{"does not let it sign"}},
		{"servers alone", pkitest.Root(t, "R", pkitest.Usages(x509.ExtKeyUsageServerAuth)).Cert, []string{"extended key usage"}},
	} {
		problems := pki.CheckRoot(test.c)
		said := fmt.Sprint(problems)
		for _, want := range test.want {
			if !strings.Contains(said, want) {
				t.Errorf("%s: does not say %q: %s", test.name, want, said)
			}
		}
		if len(problems) != len(test.want) {
			t.Errorf("%s: %d problems, want %d: %s", test.name, len(problems), len(test.want), said)
		}
	}
}

// utf8Name is the same name with every part in UTF-8.
func utf8Name(t *testing.T, raw []byte) []byte {
	t.Helper()
	type part struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	var name pkix.RDNSequence
	if _, err := asn1.Unmarshal(raw, &name); err != nil {
		t.Fatal(err)
	}
	var sequence []asn1.RawValue
	for _, rdn := range name {
		var parts []part
		for _, a := range rdn {
			parts = append(parts, part{a.Type, asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(a.Value.(string))}})
		}
		der, err := asn1.MarshalWithParams(parts, "set")
		if err != nil {
			t.Fatal(err)
		}
		sequence = append(sequence, asn1.RawValue{FullBytes: der})
	}
	der, err := asn1.Marshal(sequence)
	if err != nil {
		t.Fatal(err)
	}
	if string(der) == string(raw) {
		t.Fatal("the name is not encoded anew")
	}
	return der
}

func selfTemplate(csr *x509.CertificateRequest) *x509.Certificate {
	return &x509.Certificate{RawSubject: csr.RawSubject, PublicKey: csr.PublicKey, PublicKeyAlgorithm: csr.PublicKeyAlgorithm}
}
