package mesh

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/secret/secrettest"
	"github.com/relaypki/relaypki/internal/strict"
)

// decode is what a person's text goes through.
func decode(t *testing.T, text string) (Spec, []string) {
	t.Helper()
	var s Spec
	problems := strict.Decode([]byte(text), &s)
	s = s.WithDefaults()
	var out []string
	for _, p := range append(problems, s.Validate()...) {
		out = append(out, p.String())
	}
	return s, out
}

func TestDefaultsAreTheGuides(t *testing.T) {
	s, problems := decode(t, `{"mesh":"demo","workloads":[{"name":"cluster1"}]}`)
	if len(problems) > 0 {
		t.Fatalf("the smallest input is refused: %v", problems)
	}
	for what, check := range map[string]struct{ got, want any }{
		"root ttl":          {s.PKI.Root.TTL.Duration, 187600 * time.Hour},
		"root name":         {s.PKI.Root.CommonName, "Solo.io Root CA"},
		"root organization": {s.PKI.Root.Organization, "solo.io"},
		"intermediate ttl":  {s.PKI.Intermediate.TTL.Duration, 43800 * time.Hour},
		"intermediate name": {s.PKI.Intermediate.CommonName, "gloo-mesh-mgmt-server-ca"},
		"organization":      {s.PKI.Intermediate.Organization, "mesh.solo.io"},
		"role":              {s.PKI.Role, "gloo-mesh-mgmt-server-ca"},
		"role max":          {s.PKI.MaxLeafTTL.Duration, 720 * time.Hour},
		"leaf":              {s.Certificates.Server.Duration.Duration, 24 * time.Hour},
		"renewed before":    {s.Certificates.Client.RenewBefore.Duration, 30 * time.Minute},
		"key":               {s.Certificates.Client.KeySize, 2048},
		"names": {s.Certificates.Server.DNSNames, []string{"gloo-mesh-mgmt-server-ca", "gloo-mesh-mgmt-server-ca.gloo-mesh",
			"gloo-mesh-mgmt-server-ca.gloo-mesh.svc", "*.gloo-mesh"}},
		"reload": {s.Rotation.ReloadWithin.Duration, 3 * time.Minute},
		"mounts": {[]string{s.Vault.RootMount, s.Vault.RelayMount}, []string{"pki", "pki_relay"}},
	} {
		if !reflect.DeepEqual(check.got, check.want) {
			t.Errorf("%s: %v, the guide has %v", what, check.got, check.want)
		}
	}
}

func TestClientCommonName(t *testing.T) {
	isolated, _ := decode(t, `{"mesh":"demo","workloads":[{"name":"cluster1"}]}`)
	if got := isolated.ClientCertificate(isolated.Workloads[0]).CommonName; got != "cluster1" {
		t.Errorf("with isolation the client's common name is %q; it must be its own", got)
	}
	shared, _ := decode(t, `{"mesh":"demo","pki":{"isolation":"shared"},"workloads":[{"name":"cluster1"}]}`)
	if got := shared.ClientCertificate(shared.Workloads[0]).CommonName; got != "gloo-mesh-mgmt-server-ca" {
		t.Errorf("the guide's client common name is the server's, not %q", got)
	}
}

func TestProblems(t *testing.T) {
	long := strings.Repeat("a", 64)
	for name, c := range map[string]struct {
		input string
		want  []string // one fragment per problem, in any order; no others
	}{
		"empty":              {``, []string{"the input is empty", "mesh: is missing", "workloads: is empty"}},
		"not json":           {`{"mesh":`, []string{"not valid JSON", "mesh: is missing", "workloads: is empty"}},
		"two documents":      {`{"mesh":"m","workloads":[{"name":"a"}]} {}`, []string{"exactly one object", "mesh: is missing", "workloads: is empty"}},
		"underscore":         {`{"mesh":"m","workloads":[{"name":"my_cluster"}]}`, []string{`workloads[0].name: "my_cluster" has an underscore`}},
		"underscore context": {`{"mesh":"m","workloads":[{"name":"a","context":"a_b"}]}`, []string{`workloads[0].context: "a_b" has an underscore`}},
		"namespaces": {`{"mesh":"m","management":{"namespace":"a_b"},"gloo":{"authority":"x"},"certificates":{"server":{"dnsNames":["x"]}},"workloads":[{"name":"a","namespace":"C"}]}`,
			[]string{`management.namespace: "a_b" has an underscore`, `workloads[0].namespace: "C" is not a DNS label`}},
		"one bad namespace for all": {`{"mesh":"m","namespace":"a_b","gloo":{"authority":"x"},"certificates":{"server":{"dnsNames":["x"]}},"workloads":[{"name":"a"}]}`, []string{`namespace: "a_b" has`}},
		"empty name":                {`{"mesh":"m","workloads":[{"name":""}]}`, []string{"workloads[0].name: is missing"}},
		"over-long name":            {`{"mesh":"m","workloads":[{"name":"` + long + `"}]}`, []string{"64 characters long; at most 63"}},
		"duplicate":                 {`{"mesh":"m","workloads":[{"name":"a"},{"name":"a"}]}`, []string{`workloads[1].name: "a" is workloads[0] already`}},
		"same cluster":              {`{"mesh":"m","workloads":[{"name":"a"},{"name":"b","context":"a"}]}`, []string{`workloads[1].context: "a" is workloads[0]'s already`}},
		"management as agent":       {`{"mesh":"m","workloads":[{"name":"mgmt"}]}`, []string{`"mgmt" is the management cluster`}},
		"unknown field":             {`{"mesh":"m","dryrun":true,"workloads":[{"name":"a"}]}`, []string{"dryrun: unknown field; known here: certManager"}},
		"nearest field":             {`{"mesh":"m","namespce":"x","workloads":[{"name":"a"}]}`, []string{`namespce: unknown field; did you mean "namespace"?`}},
		"nested unknown field":      {`{"mesh":"m","pki":{"root":{"TTL":"1h"}},"workloads":[{"name":"a"}]}`, []string{`pki.root.TTL: unknown field; did you mean "ttl"?`}},
		"wrong types":               {`{"mesh":7,"workloads":"a","pki":{"root":{"keyBits":"x"}}}`, []string{"mesh: must be a text in quotes, not the number 7", "workloads: must be a list", "keyBits: must be a whole number", "mesh: is missing", "workloads: is empty"}},
		"bad durations":             {`{"mesh":"m","workloads":[{"name":"a"}],"pki":{"root":{"ttl":5},"intermediate":{"ttl":"5 years"}}}`, []string{"pki.root.ttl: 5 is not a duration", `"5 years" is not a duration`}},
		"intermediate outlives root": {`{"mesh":"m","workloads":[{"name":"a"}],"pki":{"root":{"ttl":"1000h"},"intermediate":{"ttl":"1001h"}}}`,
			[]string{"pki.intermediate.ttl: 1001h is not shorter than the root's 1000h"}},
		"leaf too long":  {`{"mesh":"m","workloads":[{"name":"a"}],"certificates":{"client":{"duration":"31d"}}}`, []string{"certificates.client.duration: 744h is longer"}},
		"leaf too short": {`{"mesh":"m","workloads":[{"name":"a"}],"certificates":{"client":{"duration":"10m","renewBefore":"5m"}}}`, []string{"10m is too short"}},
		"endless renewal": {`{"mesh":"m","workloads":[{"name":"a"}],"certificates":{"server":{"duration":"1h","renewBefore":"1h"}}}`,
			[]string{"would be renewed without end"}},
		"authority":     {`{"mesh":"m","workloads":[{"name":"a"}],"gloo":{"authority":"relay.example.com"}}`, []string{`do not cover "relay.example.com"`}},
		"key size":      {`{"mesh":"m","workloads":[{"name":"a"}],"pki":{"root":{"keyType":"ec","keyBits":2048}}}`, []string{"2048 is not a size of ec keys"}},
		"key type":      {`{"mesh":"m","workloads":[{"name":"a"}],"pki":{"root":{"keyType":"dsa"}}}`, []string{`pki.root.keyType: "dsa" is unknown; choose one of "ec", "rsa"`}},
		"relay address": {`{"mesh":"m","workloads":[{"name":"a"}],"gloo":{"relayAddress":"34.1.2.3:9900:9900"}}`, []string{"is not host:port"}},
		"a key for a token": {`{"mesh":"m","workloads":[{"name":"a"}],"gloo":{"identityToken":{"mode":"existing","secretName":"relay-server-tls-secret","key":"tls.key"}}}`,
			[]string{`"relay-server-tls-secret" holds something else`, `"tls.key" is not the key of an identity token`}},
		"secrets in values": {`{"mesh":"m","workloads":[{"name":"a","agentValues":{"x":[{"apiKey":"1"}]}}],"gloo":{"serverValues":{"licensing":{"glooMeshLicenseKey":"abc","licenseSecretName":"license"},"args":["--token=` + secrettest.VaultToken + `"]}}}`,
			[]string{"workloads[0].agentValues.x[0].apiKey: holds a secret", "gloo.serverValues.licensing.glooMeshLicenseKey: holds a secret", "gloo.serverValues.args[0]: holds a secret"}},
		"another role": {`{"mesh":"m","workloads":[{"name":"a"}],"pki":{"role":"relay-client-a"}}`, []string{`"relay-client-a" is the name of another role`}},
		"client common name": {`{"mesh":"m","workloads":[{"name":"a"}],"certificates":{"client":{"commonName":"x"}}}`,
			[]string{"certificates.client.commonName: cannot be chosen"}},
		"same mount":       {`{"mesh":"m","workloads":[{"name":"a"}],"vault":{"relayMount":"pki"}}`, []string{"the intermediate needs a mount of its own"}},
		"mount in a mount": {`{"mesh":"m","workloads":[{"name":"a"}],"vault":{"relayMount":"pki/relay"}}`, []string{"lie within each other"}},
		"slash":            {`{"mesh":"m","workloads":[{"name":"a"}],"vault":{"rootMount":"/pki/"}}`, []string{"is not a mount path"}},
		"method":           {`{"mesh":"m","workloads":[{"name":"a"}],"credential":{"method":"root"}}`, []string{`"root" is unknown; choose one of "jwt", "token"`}},
		"rollout": {`{"mesh":"m","workloads":[{"name":"a"},{"name":"b"}],"rollout":{"canary":["a","c","a"],"waveSize":-1,"parallelism":101,"failureBudget":-1,"retryFor":"1s"}}`,
			[]string{`rollout.canary[1]: "c" is not one of the workloads`, `rollout.canary[2]: "a" is there twice`, "rollout.waveSize: -1 is no number",
				"rollout.parallelism: 101 is not between 1 and 100", "rollout.failureBudget: -1 is no number", "rollout.retryFor: 1s is not between"}},
		"reloads late":     {`{"mesh":"m","workloads":[{"name":"a"}],"rotation":{"reloadWithin":"31m"}}`, []string{"rotation.reloadWithin: 31m is not between 0s and 30m"}},
		"reloads before":   {`{"mesh":"m","workloads":[{"name":"a"}],"rotation":{"reloadWithin":"-1s"}}`, []string{"rotation.reloadWithin: -1s is not between"}},
		"reloads at once":  {`{"mesh":"m","workloads":[{"name":"a"}],"rotation":{"reloadWithin":"0s"}}`, nil},
		"a root stands by": {`{"mesh":"m","workloads":[{"name":"a"}],"pki":{"standbyRoot":true,"root":{"commonName":"` + long[:60] + `"}}}`, nil},
		"a root stands by whose name is too long": {`{"mesh":"m","workloads":[{"name":"a"}],"pki":{"standbyRoot":true,"root":{"commonName":"` + long[:61] + `"}}}`,
			[]string{"pki.root.commonName: is 61 characters long; at most 60 leave room for the generation"}},
		"none stands by, and the name is long": {`{"mesh":"m","workloads":[{"name":"a"}],"pki":{"root":{"commonName":"` + long + `"}}}`, nil},
		"a name that is too long for any root": {`{"mesh":"m","workloads":[{"name":"a"}],"pki":{"standbyRoot":true,"root":{"commonName":"` + long + `x"}}}`,
			[]string{"pki.root.commonName: is 65 characters long; at most 64 fit"}},
		"everything at once": {`{"mesh":"M_1","workloads":[{"name":"a_b"},{"name":"a_b"}],"vault":{"install":"prod"}}`,
			[]string{`mesh: "M_1" has an underscore`, `workloads[0].name: "a_b" has`, `workloads[1].name: "a_b" has`, `is workloads[0] already`, `vault.install: "prod" is unknown`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems := decode(t, c.input)
			for _, want := range c.want {
				found := false
				for _, p := range problems {
					found = found || strings.Contains(p, want)
				}
				if !found {
					t.Errorf("no problem says %q; got %q", want, problems)
				}
			}
			if len(problems) != len(c.want) {
				t.Errorf("%d problems, want %d: %q", len(problems), len(c.want), problems)
			}
		})
	}
}

// Members that were added in another order are the same members.
func TestNormalForgetsTheOrderOfMembers(t *testing.T) {
	one := Spec{Mesh: "m", Workloads: []Workload{{Name: "a"}, {Name: "b", Context: "x"}, {Name: "c"}}}
	other := Spec{Mesh: "m", Workloads: []Workload{{Name: "c"}, {Name: "a"}, {Name: "b", Context: "x"}}}
	if !reflect.DeepEqual(one.Normal(), other.Normal()) {
		t.Errorf("%+v and %+v are not the same", one.Normal(), other.Normal())
	}
	other.Workloads[2].Context = "y"
	if reflect.DeepEqual(one.Normal(), other.Normal()) {
		t.Error("another context is not seen")
	}
	if other.Workloads[0].Name != "c" {
		t.Error("the spec itself was sorted")
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{"30m": 30 * time.Minute, "72h": 72 * time.Hour, "30d": 720 * time.Hour,
		"1d12h": 36 * time.Hour, "0s": 0, "187600h": 187600 * time.Hour} {
		got, err := ParseDuration(text)
		if err != nil || got.Duration != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
		data, _ := json.Marshal(got)
		var back Duration
		if err := json.Unmarshal(data, &back); err != nil || back != got {
			t.Errorf("%s goes to %s and back to %v, %v", text, data, back, err)
		}
	}
	for _, text := range []string{"", "d", "30", "2 days", "-", "1000000d"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

// A workload's context may be another one's name.
func TestOnlyGoesByName(t *testing.T) {
	s := Spec{Workloads: []Workload{{Name: "east", Context: "west"}, {Name: "west", Context: "east"}}}
	for _, name := range []string{"east", "west"} {
		if only := s.Only(name); len(only.Workloads) != 1 || only.Workloads[0].Name != name {
			t.Errorf("only %s: %+v", name, only.Workloads)
		}
	}
}

// Clusters may be namespaces of one API server, and the management cluster may
// use another namespace than the rest.
func TestNamespaces(t *testing.T) {
	s, problems := decode(t, `{"mesh":"demo","namespace":"relay","management":{"namespace":"hub"},"workloads":[{"name":"a"},{"name":"b","namespace":"team-b"}]}`)
	if len(problems) > 0 {
		t.Fatalf("refused: %v", problems)
	}
	for name, want := range map[string]string{"": "hub", "a": "relay", "b": "team-b"} {
		only := s.Only(name)
		if only.Namespace != want || only.Management.Namespace != "hub" {
			t.Errorf("only %q: its objects go to %q, the management cluster's to %q", name, only.Namespace, only.Management.Namespace)
		}
		if again := only.WithDefaults(); !reflect.DeepEqual(again, only) {
			t.Errorf("only %q changes when its defaults are filled in again: %+v", name, again)
		}
	}
	if want := "*.hub"; !slices.Contains(s.Certificates.Server.DNSNames, want) || s.Gloo.Authority != "gloo-mesh-mgmt-server.hub" {
		t.Errorf("the server is known as %v, authority %s; it runs in hub", s.Certificates.Server.DNSNames, s.Gloo.Authority)
	}
	plain, _ := decode(t, `{"mesh":"demo","workloads":[{"name":"a"}]}`)
	if plain.Management.Namespace != "gloo-mesh" || plain.Workloads[0].Namespace != "gloo-mesh" {
		t.Errorf("by default: management %q, workload %q", plain.Management.Namespace, plain.Workloads[0].Namespace)
	}
}

func TestOverlayLeavesItsArguments(t *testing.T) {
	below := map[string]any{"a": map[string]any{"x": 1}}
	above := map[string]any{"b": map[string]any{"y": 2}}
	merged := Overlay(below, above)
	merged["a"].(map[string]any)["x"] = 0
	merged["b"].(map[string]any)["y"] = 0
	if below["a"].(map[string]any)["x"] != 1 || above["b"].(map[string]any)["y"] != 2 {
		t.Errorf("a change of the result reached %v or %v", below, above)
	}
}

func TestOverlay(t *testing.T) {
	got := Overlay(map[string]any{"a": map[string]any{"x": 1, "y": 2}, "b": 1}, map[string]any{"a": map[string]any{"y": 3}, "b": map[string]any{"z": 1}})
	want := map[string]any{"a": map[string]any{"x": 1, "y": 3}, "b": map[string]any{"z": 1}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAddressProblem(t *testing.T) {
	for address, want := range map[string]string{
		"10.0.0.1:9900":                           "",
		"mgmt.example.com:9900":                   "",
		"[2001:db8::1]:9900":                      "",
		"a1.elb.amazonaws.com:9900":               "",
		"34.145.18106:9900:9900":                  "too many colons",
		"2001:db8::1:9900":                        "too many colons",
		"34.145.18106:9900":                       "no IP address",
		"10.0.0.1":                                "missing port",
		"10.0.0.1:grpc-port-of-the-server-please": "no port",
		":9900":                         "no host",
		"https://mgmt.example.com:9900": "too many colons",
		"":                              "missing port",
		"lb.example.com:0":              "no port",
		"lb.example.com:70000":          "no port",
		"a/b:1":                         "no host",
		"user@lb.example.com:9900":      "no host",
	} {
		if got := AddressProblem(address); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", address, got, want)
		}
	}
}

func TestPrivateProblems(t *testing.T) {
	guide := Spec{Credential: Credential{Method: CredentialToken}}.WithDefaults()
	if got := guide.PrivateProblems("q"); len(got) != 2 || !strings.Contains(got[0], "credential.method") || !strings.Contains(got[1], "gloo.identityToken.mode") {
		t.Errorf("the guide's credentials in a private cluster: %q", got)
	}
	for method, reason := range map[string]string{CredentialAppRole: "cannot mint its secret id", CredentialKubernetes: "Vault has to reach the API server"} {
		s := Spec{Credential: Credential{Method: method}}.WithDefaults()
		if got := s.PrivateProblems("q"); len(got) != 2 || !strings.Contains(got[0], reason) {
			t.Errorf("%s in a private cluster: %q", method, got)
		}
	}
	fit := Spec{Gloo: Gloo{IdentityToken: IdentityToken{Mode: TokenNone}}}.WithDefaults()
	if got := fit.PrivateProblems("q"); len(got) > 0 {
		t.Errorf("jwt without an identity token: %q", got)
	}
	if got := guide.PrivateProblems(""); len(got) > 0 {
		t.Errorf("a cluster that is not private: %q", got)
	}
}

func TestRefreshEvery(t *testing.T) {
	for name, test := range map[string]struct {
		credential Credential
		want       Duration
	}{
		"pinned keys":     {Credential{}, Hours(1)},
		"discovered keys": {Credential{Keys: KeysDiscovery}, Duration{}},
		"token":           {Credential{Method: CredentialToken}, Hours(1)},
		"secret id":       {Credential{Method: CredentialAppRole}, Hours(1)},
		"kubernetes":      {Credential{Method: CredentialKubernetes}, Duration{}},
		"short token":     {Credential{Method: CredentialToken, TokenPeriod: Hours(2)}, Minutes(15)},
	} {
		s := Spec{Credential: test.credential}.WithDefaults()
		if got := s.RefreshEvery(); got != test.want {
			t.Errorf("%s: every %s, want %s", name, got, test.want)
		}
		if period := s.Credential.TokenPeriod.Duration; s.Credential.Method == CredentialToken && s.RefreshEvery().Duration > period/4 {
			t.Errorf("%s: fewer than 4 times in %s", name, period)
		}
	}
}
