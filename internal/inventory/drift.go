package inventory

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
)

// Drift is something that is not as it was asked for, or not as the mesh's record
// says that it is.
type Drift struct {
	// Cluster is as in Item; empty for Vault and for the input itself.
	Cluster string `json:"cluster,omitempty"`
	Object  string `json:"object"`
	// What says what it is, and what was asked for.
	What string `json:"what"`
	// Do is what is to be done about it: a command, where one does it.
	Do string `json:"do"`
}

// drifts collects them.
type drifts struct {
	f   Facts
	v   Inventory
	of  map[string]Certificate
	all []Drift
}

func (d *drifts) add(cluster, object, do, format string, args ...any) {
	d.all = append(d.all, Drift{Cluster: cluster, Object: object, What: fmt.Sprintf(format, args...), Do: do})
}

func (d *drifts) setup() string { return "relaypki setup -f mesh.yaml" }

// drift compares what was found with what is asked for.
func (f Facts) drift(v Inventory) []Drift {
	d := &drifts{f: f, v: v, of: v.index()}
	if f.File != "" {
		d.input()
	}
	d.authorities()
	for _, l := range append([]Look{f.Vault}, f.Clusters...) {
		for _, m := range l.Missing {
			if !slices.Contains(f.Moving, m.Cluster) {
				d.add(m.Cluster, m.Object, d.setup(), "%s", m.Why)
			}
		}
	}
	for _, i := range v.Items {
		if slices.Contains(f.Moving, i.Cluster) {
			continue
		}
		switch {
		case i.Leaf() && i.Key == tlsCertificate:
			d.leaf(i, d.of[i.Certificate])
		case i.Served == Differs:
			d.add(i.Cluster, i.Object, d.restart(), "the management server has loaded another trust than the one that is stored: %s", i.Note)
		}
	}
	d.trust()
	return d.all
}

// input is what a file asks for otherwise than the mesh's record.
func (d *drifts) input() {
	file := d.f.File
	do := fmt.Sprintf("relaypki setup -f %s --plan", file)
	was, is := fields(d.f.Spec), fields(d.f.Want)
	paths := slices.Concat(sortedKeys(was), sortedKeys(is))
	slices.Sort(paths)
	for _, path := range slices.Compact(paths) {
		if was[path] == is[path] {
			continue
		}
		// A setup leaves the CAs that are there as they are.
		switch {
		case strings.HasPrefix(path, "pki.root."):
			d.add("", file, fmt.Sprintf("relaypki rotate root %s --plan", d.f.Mesh), "%s is %s, and %s in the mesh's record", path, orNone(is[path]), orNone(was[path]))
		case strings.HasPrefix(path, "pki.intermediate."):
			d.add("", file, fmt.Sprintf("relaypki rotate intermediate %s --plan", d.f.Mesh), "%s is %s, and %s in the mesh's record", path, orNone(is[path]), orNone(was[path]))
		default:
			d.add("", file, do, "%s is %s, and %s in the mesh's record", path, orNone(is[path]), orNone(was[path]))
		}
	}
}

// sortedKeys are a map's, in their order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func orNone(text string) string {
	if text == "" {
		return "not there"
	}
	return text
}

// fields are the values of a spec by their paths, as they are written in JSON. Members
// go by their names.
func fields(spec mesh.Spec) map[string]string {
	data, err := json.Marshal(spec.Normal())
	var tree map[string]any
	if err == nil {
		err = json.Unmarshal(data, &tree)
	}
	if err != nil {
		return map[string]string{}
	}
	out := map[string]string{}
	var walk func(path string, value any)
	walk = func(path string, value any) {
		switch value := value.(type) {
		case map[string]any:
			for _, name := range sortedKeys(value) {
				walk(strings.TrimPrefix(path+"."+name, "."), value[name])
			}
			return
		case []any:
			if path == "workloads" {
				for _, one := range value {
					if w, ok := one.(map[string]any); ok {
						walk(fmt.Sprintf("workloads[%v]", w["name"]), w)
					}
				}
				return
			}
		}
		text, _ := json.Marshal(value)
		if path == "pki.root.certificatePEM" {
			text = []byte("another certificate")
			if pem, ok := value.(string); ok {
				if chain, err := pki.ParseSigned([]byte(pem)); err == nil {
					text = []byte(pki.Name(chain[0]))
				}
			}
		}
		out[path] = string(text)
	}
	walk("", tree)
	return out
}

// authorities compares the CAs at work with what was asked for, and with the record.
func (d *drifts) authorities() {
	spec, r := d.f.Want, d.f.Record
	var active *Item
	for n := range d.v.Items {
		i := &d.v.Items[n]
		if i.Vault == nil || i.Vault.Mount != spec.Vault.RelayMount {
			continue
		}
		if slices.Contains(i.Vault.Roles, spec.PKI.Role) {
			active = i
		}
	}
	mesh := d.f.Mesh
	if active != nil && r.ToIntermediate == 0 {
		if active.Generation != r.Intermediate {
			d.add("", active.Object, "relaypki verify "+mesh+", and see whether somebody has restored or changed Vault; then: "+d.setup(),
				"the management server's role signs with generation %d, and the mesh's record says %d", active.Generation, r.Intermediate)
		}
		for _, i := range d.v.Items {
			if i.Vault == nil || i.Vault.Mount != spec.Vault.RelayMount || i.Vault.ID == active.Vault.ID {
				continue
			}
			if astray := slices.DeleteFunc(slices.Clone(i.Vault.Roles), func(role string) bool { return !d.ours(role) }); len(astray) > 0 {
				d.add("", i.Object, d.setup(), "roles of the mesh sign with it, and not with %s: %s", active.Object, some(astray))
			}
		}
	}
	for _, i := range d.v.Items {
		c := d.of[i.Certificate]
		if i.Vault == nil || c.Standing != AtWork || r.Emergency {
			continue
		}
		switch {
		case i.Kind == Intermediate && i.Vault.Mount == spec.Vault.RelayMount:
			d.authority(i, c, d.f.IntermediateNames, spec.PKI.Intermediate.TTL.Duration, spec.PKI.Intermediate.KeyType, spec.PKI.Intermediate.KeyBits,
				"relaypki rotate intermediate "+mesh+" --plan", spec.PKI.Root.Offline())
		case i.Kind == Root && i.Vault.Mount == spec.RootMount() && !spec.PKI.Root.Offline():
			root := spec.PKI.Root
			d.authority(i, c, d.f.RootNames, root.TTL.Duration, root.KeyType, root.KeyBits, "relaypki rotate root "+mesh+" --plan", false)
		}
	}
}

// authority compares a CA with what was asked for. How long one lives that people have
// signed is theirs to say.
func (d *drifts) authority(i Item, c Certificate, names []string, ttl time.Duration, keyType string, bits int, do string, signed bool) {
	if len(names) > 0 && !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(c.Subject+",", "CN="+name+",") }) {
		d.add("", i.Object, do, "its subject is %s, asked for was CN=%s", c.Subject, names[0])
	}
	if key := keyName(map[string]string{"rsa": "RSA", "ec": "ECDSA"}[keyType], bits); c.Key != key {
		d.add("", i.Object, do, "its key is %s, asked for was %s", c.Key, key)
	}
	if !signed && !pki.LivesFor(c.NotBefore, c.NotAfter, ttl) {
		d.add("", i.Object, do, "it lives for %s, asked for was %s", span(c.NotAfter.Sub(c.NotBefore)), span(ttl))
	}
}

// ours says that a role is one of the mesh's.
func (d *drifts) ours(role string) bool {
	spec := d.f.Want
	return role == spec.PKI.Role || role == spec.ProbeRole() || slices.ContainsFunc(spec.Workloads, func(w mesh.Workload) bool { return spec.RoleFor(w) == role })
}

// leaf compares a leaf with what was asked for.
func (d *drifts) leaf(i Item, c Certificate) {
	asked := d.f.Want.Certificates.Server
	if i.Kind == ClientLeaf {
		w, ok := d.f.Want.Workload(i.Cluster)
		if !ok {
			d.add(i.Cluster, i.Object, "relaypki remove-cluster "+d.f.Mesh+" "+i.Cluster+" --plan", "the cluster is no member by %s", d.f.File)
			return
		}
		asked = d.f.Want.ClientCertificate(w)
	}
	bad := func(do, format string, args ...any) { d.add(i.Cluster, i.Object, do, format, args...) }
	if have, want := sorted(c.DNSNames), sorted(asked.DNSNames); !slices.Equal(have, want) {
		bad(d.setup(), "its names are %s, asked for were %s", some(have), some(want))
	}
	if key := keyName(asked.KeyAlgorithm, asked.KeySize); c.Key != key {
		bad(d.setup(), "its key is %s, asked for was %s", c.Key, key)
	}
	if !pki.LivesFor(c.NotBefore, c.NotAfter, asked.Duration.Duration) {
		bad(d.setup(), "it lives for %s, asked for was %s", span(c.NotAfter.Sub(c.NotBefore)), span(asked.Duration.Duration))
	}
	reissue := strings.TrimSpace("relaypki rotate leaf " + d.f.Mesh + " " + d.f.member(i))
	switch {
	case c.Forged:
		bad("see who has written it (kubectl get -o yaml --show-managed-fields), then: "+reissue, "it names the key of %s as its issuer's, which has not signed it", c.AuthorityKeyID)
	case d.f.Record.ToIntermediate != 0 || len(d.f.Vault.Items) == 0: // the rotation brings it another, or nobody knows better
	case c.Standing != AtWork:
		bad(reissue, "it was issued by %s, which is not the intermediate at work but %s", issuerOf(c), c.Standing)
	}
	if i.Served == Differs {
		bad(d.restart(), "the management server does not serve what is stored: %s", i.Note)
	}
}

func issuerOf(c Certificate) string {
	if c.IssuedBy != "" {
		return c.IssuedBy
	}
	return "a CA that was not found (key " + c.AuthorityKeyID + ")"
}

// restart has the management server load what is stored.
func (d *drifts) restart() string {
	return fmt.Sprintf("relaypki rotate leaf %s, which restarts it where it does not read changed Secrets by itself (management.reload: restart)", d.f.Mesh)
}

// trust looks whether agents and server trust the roots that they are to, and no
// others. In a rotation of the root the rotation decides that.
func (d *drifts) trust() {
	if d.f.Record.ToRoot != 0 || d.f.Record.Emergency || d.f.Record.Pinned || len(d.f.Vault.Items) == 0 {
		return
	}
	type store struct {
		cluster, object string
		holds           map[Standing]bool
	}
	var stores []*store
	standby := false
	for _, i := range d.v.Items {
		c := d.of[i.Certificate]
		standby = standby || i.Vault != nil && i.Kind == Root && c.Standing == StandingBy && i.Vault.Signs
		if i.Kind != TrustStore || i.Note == Unused || slices.Contains(d.f.Moving, i.Cluster) {
			continue
		}
		at := slices.IndexFunc(stores, func(s *store) bool { return s.cluster == i.Cluster && s.object == i.Object })
		if at < 0 {
			at, stores = len(stores), append(stores, &store{i.Cluster, i.Object, map[Standing]bool{}})
		}
		stores[at].holds[c.Standing] = true
		if c.CA && !c.SelfSigned {
			d.add(i.Cluster, i.Object, d.setup(), "%s in it is no root: certificates of the next intermediate would be refused", c.Subject)
		} else if c.Standing == Previous || c.Standing == Unknown {
			d.add(i.Cluster, i.Object, d.setup(), "it trusts %s, serial %s, which is of no CA at work (%s)", c.Subject, c.Serial, c.Standing)
		}
	}
	for _, s := range stores {
		if !s.holds[AtWork] {
			d.add(s.cluster, s.object, d.setup(), "the root at work is not in it")
		}
		if d.f.Want.PKI.StandbyRoot && standby && strings.HasSuffix(s.object, "/"+mesh.RootSecretName) && !s.holds[StandingBy] {
			d.add(s.cluster, s.object, d.setup(), "the root that stands by is not in it (pki.standbyRoot)")
		}
	}
}

// Unused is the note of a trust store that nobody trusts by.
const Unused = "not what the agent trusts by (agent.trust)"

func sorted(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return names
}

// some are the first few, and how many more there are.
func some(names []string) string {
	const few = 6
	if more := len(names) - few; more > 0 {
		names = append(slices.Clone(names[:few]), fmt.Sprintf("%d more", more))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// span is a length of time in words: whole hours, or less if it is less.
func span(d time.Duration) string {
	if d >= time.Hour {
		return mesh.Duration{Duration: d.Round(time.Hour)}.String()
	}
	return d.Round(time.Second).String()
}
