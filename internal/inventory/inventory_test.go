package inventory

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/rotation"
)

// cas are two generations of CAs, of which all have the same names, and a bridge.
type cas struct {
	r1, r2, bridge, i1, i2 pkitest.Pair
}

func newCAs(t *testing.T) cas {
	var c cas
	c.r1, c.r2 = pkitest.Root(t, "Root"), pkitest.Root(t, "Root")
	c.bridge = c.r1.Cross(t, c.r2)
	c.i1, c.i2 = c.r1.Intermediate(t, "relay"), c.r2.Intermediate(t, "relay")
	return c
}

// vault is what is in Vault of them; the active intermediate is the first whose
// roles are given.
func (c cas) vault(rotating bool, roles ...string) Look {
	l := Knowing(c.r1.Cert, c.r2.Cert, c.bridge.Cert, c.i1.Cert, c.i2.Cert)
	add := func(mount, name string, generation int, p pkitest.Pair, roles ...string) {
		l.Add(Item{Object: mount + "/" + name, Generation: generation,
			Vault: &Issuer{Mount: mount, ID: "id-" + mount + name, Name: name, HasKey: true, Signs: true, Roles: roles}}, p.Cert)
	}
	add("pki", "relay-root-g1", 1, c.r1)
	add("pki_relay", "relay-root-g1", 1, c.r1)
	add("pki_relay", "relay-intermediate-g1", 1, c.i1, roles...)
	if rotating {
		add("pki", "relay-root-g2", 2, c.r2)
		add("pki_relay", "relay-root-g2", 2, c.r2)
		add("pki_relay", "relay-bridge-g2", 2, c.bridge)
		add("pki_relay", "relay-intermediate-g2", 2, c.i2)
	}
	return l
}

const secretName = "Secret gloo-mesh/relay-client-tls-secret"

// member is what is in a cluster.
func member(cluster string, leaf pkitest.Pair, trust ...pkitest.Pair) Look {
	var l Look
	l.Add(Item{Kind: ClientLeaf, Cluster: cluster, Object: secretName, Key: "tls.crt"}, leaf.Cert)
	for _, root := range trust {
		l.Add(Item{Kind: TrustStore, Cluster: cluster, Object: "Secret gloo-mesh/" + mesh.RootSecretName, Key: "ca.crt"}, root.Cert)
	}
	return l
}

// asked is a spec that fits what pkitest makes.
func asked(clusters ...string) mesh.Spec {
	s := mesh.Spec{Mesh: "demo"}
	for _, name := range clusters {
		s.Workloads = append(s.Workloads, mesh.Workload{Name: name})
	}
	s.PKI.Root.CA = mesh.CA{CommonName: "Root", TTL: mesh.Hours((20*365 + 1) * 24), KeyType: "ec"}
	s.PKI.Intermediate = mesh.CA{CommonName: "relay", TTL: mesh.Hours((5*365 + 1) * 24), KeyType: "ec"}
	s.Certificates.Client.KeyAlgorithm, s.Certificates.Server.KeyAlgorithm = "ECDSA", "ECDSA"
	return s.WithDefaults()
}

func facts(c cas, clusters ...Look) Facts {
	spec := asked("cluster1", "cluster2")
	return Facts{Mesh: "demo", Spec: spec, Want: spec, Record: Record{Root: 1, Intermediate: 1}, RootNames: []string{"Root"}, IntermediateNames: []string{"relay"},
		State: rotation.State{Now: pkitest.Now, IntermediateTTL: spec.PKI.Intermediate.TTL.Duration, Opens: pkitest.Now},
		Pace:  rotation.Pace{Clusters: 2, Canaries: 1, Parallelism: 10, PerCluster: 15 * time.Minute, Soak: 10 * time.Minute},
		Vault: c.vault(false, spec.PKI.Role, spec.ProbeRole(), "relay-client-cluster1", "relay-client-cluster2"), Clusters: clusters}
}

// drawn is a tree in a line: "relay-root-g1(relay-bridge-g2>relay-root-g2 ...)", with
// the clusters of its leaves.
func drawn(nodes []*Node) string {
	var parts []string
	for _, n := range nodes {
		text := n.Name
		if n.Unrooted {
			text = "?" + text
		}
		if n.To != nil {
			text += ">" + n.To.Name
		}
		var below []string
		if len(n.Below) > 0 {
			below = append(below, drawn(n.Below))
		}
		for _, i := range n.Leaves {
			below = append(below, i.Cluster)
		}
		if len(below) > 0 {
			text += "(" + strings.Join(below, " ") + ")"
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, " ")
}

func TestLineage(t *testing.T) {
	c := newCAs(t)
	l1, l2 := c.i1.Leaf(t, []string{"cluster1"}), c.i2.Leaf(t, []string{"cluster2"})
	theirs := pkitest.Root(t, "Root").Intermediate(t, "relay")
	foreign := theirs.Leaf(t, []string{"cluster1"})
	back := c.r2.Cross(t, c.r1)
	anew := c.r1.Cross(t, c.r1)
	look := func(pairs ...pkitest.Pair) Look {
		l := Knowing(c.r1.Cert, c.r2.Cert)
		for n, p := range pairs {
			l.Add(Item{Object: fmt.Sprint("pki/x", n), Vault: &Issuer{Mount: "pki", Name: map[*x509.Certificate]string{c.r1.Cert: "r1", c.r2.Cert: "r2", c.i1.Cert: "i1", c.i2.Cert: "i2",
				c.bridge.Cert: "bridge", back.Cert: "back", theirs.Cert: "theirs", anew.Cert: "anew"}[p.Cert]}}, p.Cert)
		}
		return l
	}
	forged := member("cluster1", l1)
	forged.Certificates[0].Forged = true
	for name, test := range map[string]struct {
		looks []Look
		want  string
	}{
		"one generation":                        {[]Look{look(c.r1, c.i1), member("cluster1", l1)}, "r1(i1(cluster1))"},
		"two of the same names":                 {[]Look{look(c.r1, c.r2, c.i1, c.i2), member("cluster1", l1), member("cluster2", l2)}, "r1(i1(cluster1)) r2(i2(cluster2))"},
		"with a bridge":                         {[]Look{look(c.bridge, c.r1, c.r2, c.i1, c.i2), member("cluster2", l2)}, "r1(bridge>r2 i1) r2(i2(cluster2))"},
		"a bridge whose root is not there":      {[]Look{look(c.r1, c.bridge, c.i2), member("cluster2", l2)}, "r1(bridge(i2(cluster2)))"},
		"cross-signed":                          {[]Look{look(c.r1, c.r2, c.bridge, back)}, "r1(bridge>r2) r2(back>r1)"},
		"cross-signed, without the roots":       {[]Look{look(c.bridge, back)}, "?bridge ?back"},
		"one root issued anew for its key":      {[]Look{look(c.r1, anew, c.i1)}, "r1(i1) anew"},
		"an intermediate without its root":      {[]Look{look(c.i1), member("cluster1", l1)}, "?i1(cluster1)"},
		"another CA of the same name":           {[]Look{look(c.r1, c.i1), member("cluster1", foreign)}, "r1(i1) ?issuer not found(cluster1)"},
		"a leaf that its CA has not signed":     {[]Look{look(c.r1, c.i1), forged}, "r1(i1) ?issuer not found(cluster1)"},
		"a chain in a cluster, Vault not there": {[]Look{{Certificates: []Certificate{Describe(c.r1.Cert)}}, member("cluster1", l1)}, "CN=Root ?issuer not found(cluster1)"},
	} {
		var v Inventory
		known := map[string]bool{}
		for _, l := range test.looks {
			v.add(l, known)
		}
		got := v.Lineage()
		slices.SortStableFunc(got, func(a, b *Node) int { return strings.Index(test.want, a.Name) - strings.Index(test.want, b.Name) })
		for _, n := range got {
			slices.SortStableFunc(n.Below, func(a, b *Node) int { return strings.Index(test.want, a.Name) - strings.Index(test.want, b.Name) })
		}
		if text := drawn(got); text != test.want {
			t.Errorf("%s: %s, want %s", name, text, test.want)
		}
	}
}

func TestStandings(t *testing.T) {
	for name, test := range map[string]struct {
		record Record
		layer  Kind
		want   []Standing // of generations 0, 1, 2, 3
	}{
		"no rotation":                   {Record{Root: 2, Intermediate: 2}, Intermediate, []Standing{Unknown, Previous, AtWork, LeftOver}},
		"no rotation, of the root":      {Record{Root: 2, Intermediate: 9}, Root, []Standing{Unknown, Previous, AtWork, StandingBy}},
		"a rotation":                    {Record{Root: 1, Intermediate: 1, ToIntermediate: 2}, Intermediate, []Standing{Unknown, AtWork, Next, LeftOver}},
		"of the root":                   {Record{Root: 1, Intermediate: 3, ToRoot: 2, ToIntermediate: 4}, Root, []Standing{Unknown, AtWork, Next, StandingBy}},
		"its bridge":                    {Record{Root: 1, Intermediate: 3, ToRoot: 2, ToIntermediate: 4}, Bridge, []Standing{Unknown, AtWork, Next, LeftOver}},
		"the root stays":                {Record{Root: 1, Intermediate: 1, ToRoot: 1, ToIntermediate: 2}, Root, []Standing{Unknown, AtWork, StandingBy, StandingBy}},
		"an emergency":                  {Record{Root: 1, Intermediate: 1, ToRoot: 1, ToIntermediate: 2, Emergency: true}, Intermediate, []Standing{Unknown, Previous, Next, LeftOver}},
		"an emergency, the root stays":  {Record{Root: 1, Intermediate: 1, ToRoot: 1, ToIntermediate: 2, Emergency: true}, Root, []Standing{Unknown, AtWork, StandingBy, StandingBy}},
		"pinned":                        {Record{Root: 1, Intermediate: 1, ToRoot: 1, ToIntermediate: 2, Emergency: true, Pinned: true}, Intermediate, []Standing{Unknown, Previous, AtWork, LeftOver}},
		"pinned, and recorded as begun": {Record{Root: 1, Intermediate: 2, ToRoot: 1, ToIntermediate: 2, Emergency: true, Pinned: true}, Intermediate, []Standing{Unknown, Previous, AtWork, LeftOver}},
	} {
		var got []Standing
		for generation := range 4 {
			got = append(got, test.record.standing(test.layer, generation))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// In the middle of a root's rotation everything is of one generation or the other.
func TestTakeInARotation(t *testing.T) {
	c := newCAs(t)
	f := facts(c, member("cluster1", c.i1.Leaf(t, []string{"cluster1"}), c.r1, c.r2), member("cluster2", c.i2.Leaf(t, []string{"cluster2"}), c.r1, c.r2))
	f.Vault = c.vault(true, f.Spec.PKI.Role)
	f.Record.ToRoot, f.Record.ToIntermediate = 2, 2
	f.State.Begun = "RotateRootCA from generation 1 to 2 has begun"
	f.Unreachable = []Unlooked{{Name: "cluster9", Reason: "no answer"}}
	for n := range f.Clusters {
		f.Clusters[n].Name, f.Clusters[n].Unsearched, f.Clusters[n].More = fmt.Sprintf("cluster%d", n+1), []string{"Secrets"}, 2
	}
	v := Take(f)
	got := map[string]string{}
	for _, i := range v.Items {
		of := v.Certificate(i.Certificate)
		got[strings.TrimSpace(i.Cluster+" "+i.Object+" "+of.Serial)] = fmt.Sprintf("%s g%d %s by %s", i.Kind, of.Generation, of.Standing, of.IssuedBy)
	}
	serial := func(p pkitest.Pair) string { return Describe(p.Cert).Serial }
	for at, want := range map[string]string{
		"pki/relay-root-g1 " + serial(c.r1):                                                                                 "root g1 at work by itself",
		"pki_relay/relay-root-g2 " + serial(c.r2):                                                                           "root g2 next by itself",
		"pki_relay/relay-bridge-g2 " + serial(c.bridge):                                                                     "bridge g2 next by relay-root-g1",
		"pki_relay/relay-intermediate-g2 " + serial(c.i2):                                                                   "intermediate g2 next by relay-root-g2",
		"cluster1 " + secretName + " " + v.Certificate(f.Clusters[0].Items[0].Certificate).Serial:                           "client-leaf g1 at work by relay-intermediate-g1",
		"cluster2 " + secretName + " " + v.Certificate(f.Clusters[1].Items[0].Certificate).Serial:                           "client-leaf g2 next by relay-intermediate-g2",
		"cluster2 Secret gloo-mesh/" + mesh.RootSecretName + " " + v.Certificate(f.Clusters[1].Items[2].Certificate).Serial: "trust-store g2 next by itself",
	} {
		if got[at] != want {
			t.Errorf("%s: %q, want %q", at, got[at], want)
		}
	}
	if len(v.Drift) > 0 {
		t.Errorf("drift in the midst of a rotation: %+v", v.Drift)
	}
	if len(v.Certificates) != 7 || len(v.Unreachable) != 1 || v.Clusters != 3 {
		t.Errorf("%d certificates, unreachable %+v, %d clusters", len(v.Certificates), v.Unreachable, v.Clusters)
	}
	if want := []Unsearched{{"Secrets", []string{"cluster1", "cluster2"}}}; !reflect.DeepEqual(v.Unsearched, want) || v.MoreConsumers != 4 {
		t.Errorf("unsearched %+v, %d more consumers", v.Unsearched, v.MoreConsumers)
	}
	for _, one := range v.Forecast { // everybody has to be gone over once
		if want := c.bridge.Cert.NotAfter.Add(-24*time.Hour - 55*time.Minute); one.Layer == Bridge && !one.LatestStart.Equal(want) {
			t.Errorf("the bridge: %s, want %s", one.LatestStart, want)
		}
	}
	by := map[string]string{}
	for _, one := range v.Forecast {
		by[string(one.Layer)+" "+one.Name] = one.By
	}
	want := map[string]string{"root relay-root-g1": ByRotation, "root relay-root-g2": ByPerson, "bridge relay-bridge-g2": ByRotation,
		"intermediate relay-intermediate-g1": ByRotation, "intermediate relay-intermediate-g2": ByMaintain, "client-leaf " + secretName: ByCertManager}
	if !reflect.DeepEqual(by, want) {
		t.Errorf("forecast %q, want %q", by, want)
	}
}

func TestForecast(t *testing.T) {
	c := newCAs(t)
	day := 24 * time.Hour
	short := func(left time.Duration) cas {
		c := c
		c.i1 = c.r1.Intermediate(t, "relay", pkitest.Valid(left-1826*day, left))
		return c
	}
	for name, test := range map[string]struct {
		change func(*Facts)
		cas    cas
		leaf   []pkitest.Option
		layer  Kind
		starts time.Time
		due    bool
		late   bool
		by     string
		do     string
		why    string
	}{
		// The intermediate serves its last renewal a leaf's life before its end, and by
		// then everybody has to be off it: canary 15m, soak 10m, server and rest 30m.
		"intermediate": {cas: c, layer: Intermediate, starts: c.i1.Cert.NotAfter.Add(-day - 55*time.Minute), by: ByMaintain, why: "due at 33%"},
		// Four passes for a root.
		"root":                          {cas: c, layer: Root, starts: c.r1.Cert.NotAfter.Add(-day - 4*55*time.Minute), by: ByPerson, why: "has 100% of its life left"},
		"intermediate, due":             {cas: short(400 * day), layer: Intermediate, starts: pkitest.Now.Add(400*day - day - 55*time.Minute), due: true, by: ByMaintain, do: "relaypki rotate intermediate demo --plan", why: "due"},
		"intermediate, too late":        {cas: short(day), layer: Intermediate, starts: pkitest.Now.Add(-55 * time.Minute), due: true, late: true, by: ByMaintain, do: "relaypki rotate intermediate demo --plan"},
		"intermediate, never by itself": {cas: c, change: func(f *Facts) { zero := 0; f.Spec.Rotation.Due.Intermediate = &zero }, layer: Intermediate, starts: c.i1.Cert.NotAfter.Add(-day - 55*time.Minute), by: ByPerson, why: "never rotated by itself"},
		"longer leaves": {cas: c, change: func(f *Facts) { f.Spec.Certificates.Server.Duration = mesh.Hours(240) }, layer: Intermediate,
			starts: c.i1.Cert.NotAfter.Add(-10*day - 55*time.Minute), by: ByMaintain},
		"no window lets it": {cas: c, change: func(f *Facts) {
			f.Pace.Windows, f.Pace.Zone = []mesh.Window{{Days: []string{"Mon"}, From: "10:00", To: "10:00"}}, time.UTC
			f.Pace.PerCluster = 1e6 * time.Hour
		}, layer: Root, late: true, do: "relaypki rotate root demo --plan", by: ByPerson},
		// A leaf by its renewBefore, or when cert-manager says.
		"leaf":                         {cas: c, layer: ClientLeaf, starts: pkitest.Now.Add(23*time.Hour - 30*time.Minute), by: ByCertManager, why: "renewBefore"},
		"leaf, cert-manager says when": {cas: c, change: func(f *Facts) { f.Clusters[0].Items[0].Renewal = pkitest.Now.Add(time.Hour) }, layer: ClientLeaf, starts: pkitest.Now.Add(time.Hour), by: ByCertManager},
		"leaf, not renewed": {cas: c, leaf: []pkitest.Option{pkitest.Valid(-23*time.Hour-50*time.Minute, 10*time.Minute)}, layer: ClientLeaf, starts: pkitest.Now.Add(-20 * time.Minute), due: true, late: true,
			by: ByCertManager, do: "relaypki rotate leaf demo cluster1", why: "cert-manager has not renewed"},
	} {
		f := facts(test.cas, member("cluster1", test.cas.i1.Leaf(t, []string{"cluster1"}, test.leaf...), c.r1))
		if test.change != nil {
			test.change(&f)
		}
		v := Take(f)
		at := slices.IndexFunc(v.Forecast, func(one Forecast) bool { return one.Layer == test.layer })
		if at < 0 {
			t.Errorf("%s: none", name)
			continue
		}
		got := v.Forecast[at]
		if !got.LatestStart.Equal(test.starts) || got.Due != test.due || got.Late != test.late || got.By != test.by || got.Do != test.do || !strings.Contains(got.Why, test.why) {
			t.Errorf("%s: %+v, want start %s, due %v, late %v, by %s, do %q, why %q", name, got, test.starts, test.due, test.late, test.by, test.do, test.why)
		}
	}
}

func TestDrift(t *testing.T) {
	c := newCAs(t)
	theirs := pkitest.Root(t, "Root")
	leaf := func(options ...pkitest.Option) pkitest.Pair { return c.i1.Leaf(t, []string{"cluster1"}, options...) }
	for name, test := range map[string]struct {
		look   Look
		change func(*Facts)
		want   []string // "object: what => do", parts of each
	}{
		"as it is asked for":  {look: member("cluster1", leaf(), c.r1)},
		"names":               {look: member("cluster1", c.i1.Leaf(t, []string{"cluster7"}), c.r1), want: []string{secretName + ": its names are cluster7, asked for were cluster1 => relaypki setup"}},
		"life":                {look: member("cluster1", leaf(pkitest.Valid(-time.Hour, 71*time.Hour)), c.r1), want: []string{": it lives for 72h, asked for was 24h => relaypki setup"}},
		"a little dated back": {look: member("cluster1", leaf(pkitest.Valid(-time.Hour-30*time.Second, 23*time.Hour)), c.r1)},
		"key": {look: member("cluster1", leaf(), c.r1), change: func(f *Facts) {
			f.Want.Certificates.Client.KeyAlgorithm, f.Want.Certificates.Client.KeySize = "RSA", 2048
		}, want: []string{": its key is ECDSA 256, asked for was RSA 2048 => "}},
		"another CA's":                 {look: member("cluster1", c.i2.Leaf(t, []string{"cluster1"}), c.r1), want: []string{"issued by a CA that was not found (key ", "=> relaypki rotate leaf demo cluster1"}},
		"a root is missing":            {look: member("cluster1", leaf(), c.r2), want: []string{"it trusts CN=Root, serial ", "which is of no CA at work (unknown)", "the root at work is not in it => relaypki setup"}},
		"an intermediate in the trust": {look: member("cluster1", leaf(), c.r1, c.i1), want: []string{"CN=relay in it is no root"}},
		"another's root beside":        {look: member("cluster1", leaf(), c.r1, theirs), want: []string{"of no CA at work"}},
		"the root that stands by is not trusted": {look: member("cluster1", leaf(), c.r1), change: func(f *Facts) {
			f.Want.PKI.StandbyRoot = true
			f.Vault.Add(Item{Object: "pki/relay-root-g2", Generation: 2, Vault: &Issuer{Mount: "pki", ID: "2", Name: "relay-root-g2", Signs: true}}, c.r2.Cert)
		}, want: []string{"the root that stands by is not in it"}},
		"missing":                   {look: Look{Missing: []Missing{{Cluster: "cluster1", Object: secretName, Why: "is missing"}}}, want: []string{secretName + ": is missing => relaypki setup"}},
		"missing of one that comes": {look: Look{Missing: []Missing{{Cluster: "cluster1", Object: secretName, Why: "is missing"}}}, change: func(f *Facts) { f.Moving = []string{"cluster1"} }},
		"generation": {look: member("cluster1", leaf(), c.r1), change: func(f *Facts) { f.Record.Intermediate = 2 },
			want: []string{"pki_relay/relay-intermediate-g1: the management server's role signs with generation 1, and the mesh's record says 2 => ", "issued by relay-intermediate-g1, which is not the intermediate at work but previous"}},
		"a role astray": {look: member("cluster1", leaf(), c.r1), change: func(f *Facts) {
			f.Vault = c.vault(true, f.Spec.PKI.Role)
			f.Vault.Items[len(f.Vault.Items)-1].Vault.Roles = []string{"relay-client-cluster1", "theirs"}
		}, want: []string{"relay-intermediate-g2: roles of the mesh sign with it, and not with pki_relay/relay-intermediate-g1: relay-client-cluster1 => relaypki setup"}},
		"the CAs were asked for otherwise": {look: member("cluster1", leaf(), c.r1), change: func(f *Facts) {
			f.Want.PKI.Intermediate.TTL, f.Want.PKI.Root.KeyType, f.Want.PKI.Root.KeyBits = mesh.Hours(100), "rsa", 4096
			f.RootNames = []string{"Other"}
		}, want: []string{"relay-root-g1: its subject is CN=Root, asked for was CN=Other => relaypki rotate root demo --plan", "its key is ECDSA 256, asked for was RSA 4096", "it lives for 43824h, asked for was 100h => relaypki rotate intermediate demo --plan"}},
		"served otherwise": {look: member("cluster1", leaf(), c.r1), change: func(f *Facts) {
			f.Clusters[0].Items[0].Served, f.Clusters[0].Items[0].Note = Differs, "Pod a serves serial 01"
		}, want: []string{"does not serve what is stored: Pod a serves serial 01 => relaypki rotate leaf demo"}},
		"forged": {look: func() Look { l := member("cluster1", leaf(), c.r1); l.Certificates[0].Forged = true; return l }(), want: []string{"which has not signed it"}},
		"a file": {look: member("cluster1", leaf(), c.r1), change: func(f *Facts) {
			f.File, f.Want = "mesh.yaml", asked("cluster1", "cluster3")
			f.Want.Rollout.Parallelism, f.Want.PKI.Intermediate.TTL = 3, mesh.Hours(43824)
		}, want: []string{`mesh.yaml: rollout.parallelism is 3, and 10 in the mesh's record => relaypki setup -f mesh.yaml --plan`,
			`workloads[cluster2].name is not there, and "cluster2" in the mesh's record`, `workloads[cluster3].name is "cluster3", and not there in the mesh's record`}},
		"Vault was not seen": {look: member("cluster1", leaf(), c.r1), change: func(f *Facts) { f.Vault = Look{} }},
	} {
		f := facts(c, test.look)
		if test.change != nil {
			test.change(&f)
		}
		var got []string
		for _, d := range Take(f).Drift {
			got = append(got, d.Object+": "+d.What+" => "+d.Do)
		}
		all := strings.Join(got, "\n")
		for _, want := range test.want {
			if !strings.Contains(all, want) {
				t.Errorf("%s: lacks %q:\n%s", name, want, all)
			}
		}
		if len(test.want) == 0 && len(got) > 0 {
			t.Errorf("%s:\n%s", name, all)
		}
	}
}

// A certificate may name an issuer that has not signed it, or none.
func TestWhoHasSigned(t *testing.T) {
	c := newCAs(t)
	l := Knowing(c.r1.Cert, c.i1.Cert, c.i1.Leaf(t, []string{"x"}).Cert)
	liar := pkitest.Root(t, "Root").Intermediate(t, "relay", func(ca *x509.Certificate) { ca.SubjectKeyId = c.i1.Cert.SubjectKeyId })
	for name, test := range map[string]struct {
		pair   pkitest.Pair
		issuer *x509.Certificate // whose key id it has; nil for none
		forged bool
	}{
		"its own":                         {c.i1.Leaf(t, []string{"a"}), c.i1.Cert, false},
		"it names another's key":          {liar.Leaf(t, []string{"a"}), c.i1.Cert, true},
		"of a CA that is not known":       {c.i2.Leaf(t, []string{"a"}), c.i2.Cert, false},
		"a bridge that names no issuer":   {c.bridge, c.r1.Cert, false},
		"one of a root that is not known": {c.r2.Cross(t, c.r1), nil, false},
		"a root":                          {c.r1, nil, false},
	} {
		got := l.describe(test.pair.Cert)
		want := ""
		if test.issuer != nil {
			want = pki.Hex(test.issuer.SubjectKeyId)
		}
		if got.AuthorityKeyID != want || got.Forged != test.forged {
			t.Errorf("%s: issuer's key %s, forged %v, want %s, %v", name, got.AuthorityKeyID, got.Forged, want, test.forged)
		}
	}
}

// What a cluster takes in a result bounds how many a mesh may have.
func TestSize(t *testing.T) {
	c := newCAs(t)
	f := facts(c)
	f.Vault = c.vault(true, f.Spec.PKI.Role)
	one := sizeOf(t, Take(f))
	const clusters = 100
	for n := range clusters {
		f.Clusters = append(f.Clusters, member(fmt.Sprintf("cluster%d", n), c.i1.Leaf(t, []string{"cluster1"}), c.r1, c.r2))
	}
	per := (sizeOf(t, Take(f)) - one) / clusters
	t.Logf("%d bytes a cluster", per)
	if per > 4000 {
		t.Errorf("%d bytes a cluster: 400 do not fit into a result of 2 MB", per)
	}
}

func sizeOf(t *testing.T, v any) int {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return len(data)
}
