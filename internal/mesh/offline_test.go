package mesh

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/secret/secrettest"
)

func TestOfflineRoot(t *testing.T) {
	good := pkitest.Root(t, "Example Root")
	pem := func(pairs ...pkitest.Pair) string {
		var text string
		for _, p := range pairs {
			text += string(pki.EncodeChain(p.Cert))
		}
		return text
	}
	for _, test := range []struct {
		name string
		root string // in JSON
		rest string
		want []string
	}{
		{"good", fmt.Sprintf(`{"kept":"offline","certificatePEM":%q}`, pem(good)), "", nil},
		{"the root mount does not count", fmt.Sprintf(`{"kept":"offline","certificatePEM":%q}`, pem(good)), `,"vault":{"relayMount":"pki"}`, nil},
		{"no certificate", `{"kept":"offline"}`, "", []string{"pki.root.certificatePEM: is missing"}},
		{"no PEM", `{"kept":"offline","certificatePEM":"root.pem"}`, "", []string{"pki.root.certificatePEM: cannot be read"}},
		{"a private key", fmt.Sprintf(`{"kept":"offline","certificatePEM":%q}`, pem(good)+secrettest.Key), "", []string{"pki.root.certificatePEM: holds a private key"}},
		{"two", fmt.Sprintf(`{"kept":"offline","certificatePEM":%q}`, pem(good, good)), "", []string{"has 2 certificates"}},
		{"an intermediate", fmt.Sprintf(`{"kept":"offline","certificatePEM":%q}`, pem(good.Intermediate(t, "I1", pkitest.Valid(-time.Hour, 99999*time.Hour)))), "", []string{"not self-signed"}},
		{"what is in the certificate", fmt.Sprintf(`{"kept":"offline","certificatePEM":%q,"commonName":"x","keyBits":4096}`, pem(good)), "", []string{"pki.root: commonName, organization"}},
		{"a certificate of a root in Vault", fmt.Sprintf(`{"certificatePEM":%q}`, pem(good)), "", []string{"is for a root that is kept elsewhere"}},
		{"a root that stands by", fmt.Sprintf(`{"kept":"offline","certificatePEM":%q},"standbyRoot":true`, pem(good)), "", []string{"pki.standbyRoot: is for a root that is made in Vault"}},
		{"elsewhere", `{"kept":"hsm"}`, "", []string{`pki.root.kept: "hsm" is unknown; choose one of "vault", "offline"`}},
		{"lives shorter than its intermediate", fmt.Sprintf(`{"kept":"offline","certificatePEM":%q}`, pem(pkitest.Root(t, "R", pkitest.Valid(-time.Hour, 9000*time.Hour)))), "", []string{"pki.intermediate.ttl: 43800h is not shorter than the root's 9001h"}},
		{"of the intermediate's name", fmt.Sprintf(`{"kept":"offline","certificatePEM":%q}`, pem(pkitest.Root(t, "gloo-mesh-mgmt-server-ca"))), "", []string{"pki.intermediate.commonName: is the root's too"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, problems := decode(t, `{"mesh":"m","workloads":[{"name":"a"}],"pki":{"root":`+test.root+`}`+test.rest+`}`)
			said := fmt.Sprint(problems)
			for _, want := range test.want {
				if !strings.Contains(said, want) {
					t.Errorf("no problem says %q: %s", want, said)
				}
			}
			if len(problems) != len(test.want) || strings.Contains(said, secrettest.KeyBody) {
				t.Errorf("%d problems, want %d: %s", len(problems), len(test.want), said)
			}
		})
	}
}

// A spec with its defaults is recorded, and read again by another release: the
// same once more.
func TestOfflineRootIsRecorded(t *testing.T) {
	s := Spec{Mesh: "m", Workloads: []Workload{{Name: "a"}}}
	s.PKI.Root = Root{Kept: KeptOffline, CertificatePEM: string(pki.EncodeChain(pkitest.Root(t, "R").Cert))}
	s = s.WithDefaults()
	data, err := json.Marshal(s)
	var back Spec
	if err == nil {
		err = json.Unmarshal(data, &back)
	}
	if err != nil || back.WithDefaults().PKI.Root != s.PKI.Root || s.PKI.Root.CA != (CA{}) {
		t.Errorf("%+v, %v", back.PKI.Root, err)
	}
	if problems := back.WithDefaults().Validate(); len(problems) > 0 {
		t.Errorf("what was recorded has problems: %v", problems)
	}
}
