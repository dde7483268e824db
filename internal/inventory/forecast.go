package inventory

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/rotation"
)

// Who rotates a layer.
const (
	ByCertManager = "cert-manager"
	ByMaintain    = "MaintainMesh"
	ByPerson      = "a person"
	// ByRotation is the rotation that is under way.
	ByRotation = "the rotation"
)

// Forecast is when something has to begin to be rotated at the latest.
type Forecast struct {
	// Layer is root, bridge, intermediate, server-leaf or client-leaf.
	Layer Kind `json:"layer"`
	// Cluster is that of a leaf; Name what the CA is called.
	Cluster     string    `json:"cluster,omitempty"`
	Name        string    `json:"name"`
	Certificate string    `json:"certificate"`
	Standing    Standing  `json:"standing,omitempty"`
	NotBefore   time.Time `json:"notBefore"`
	NotAfter    time.Time `json:"notAfter"`
	// LatestStart is zero if the maintenance windows do not let it be done.
	LatestStart time.Time `json:"latestStart,omitzero"`
	// Due is as rotation.due of the mesh has it, Late that the latest start is over.
	Due  bool   `json:"due,omitempty"`
	Late bool   `json:"late,omitempty"`
	By   string `json:"by"`
	Why  string `json:"why"`
	// Do is the command, where a person has to do it, or may.
	Do string `json:"do,omitempty"`
}

// forecast is by the rules by which MaintainMesh decides what is due.
func (f Facts) forecast(v Inventory) []Forecast {
	all := []Forecast{}
	of := v.index()
	names := v.names()
	life := func(c Certificate) rotation.Life {
		return rotation.Life{Name: names[c.Fingerprint], NotBefore: c.NotBefore, NotAfter: c.NotAfter}
	}
	at := map[rotation.Kind]Certificate{}
	for _, c := range v.authorities(of) {
		layer := v.kindOf(c)
		one := Forecast{Layer: layer, Name: names[c.Fingerprint], Certificate: c.Fingerprint, Standing: c.Standing, NotBefore: c.NotBefore, NotAfter: c.NotAfter}
		kind := rotation.Kind(layer)
		if layer == Bridge {
			kind = rotation.KindIntermediate // to have nobody present it, everybody is gone over once
		}
		one.LatestStart, one.Why = f.latest(kind, c.NotAfter)
		one.Late = one.LatestStart.IsZero() || f.State.Now.After(one.LatestStart)
		switch {
		case layer == Bridge && f.Record.ToRoot == 0:
			continue // it was of use in a rotation that is over
		case layer == Bridge:
			one.By, one.Why = ByRotation, "whatever presents it has to present another by then: "+one.Why
		case c.Standing == AtWork && at[kind].Fingerprint == "":
			at[kind] = c
		case f.rotating(kind) && c.Standing == Previous:
			one.By = ByRotation
		default:
			one.By = f.by(kind)
		}
		all = append(all, one)
	}
	// What is due of the CAs at work is decided as MaintainMesh does.
	state := f.State
	state.Root, state.Intermediate = life(at[rotation.KindRoot]), life(at[rotation.KindIntermediate])
	state.Root.LatestStart, _ = f.latest(rotation.KindRoot, state.Root.NotAfter)
	state.Intermediate.LatestStart, _ = f.latest(rotation.KindIntermediate, state.Intermediate.NotAfter)
	decided := rotation.Decide(state, f.policy())
	for i := range all {
		one := &all[i]
		for _, d := range decided {
			if one.Certificate != at[d.Kind].Fingerprint || string(d.Kind) != string(one.Layer) {
				continue
			}
			one.Due, one.Late = d.Due, one.Late && (d.Late || !f.rotating(d.Kind))
			why := d.Why
			if one.By = f.by(d.Kind); f.rotating(d.Kind) {
				one.By = ByRotation
				if d.Kind == rotation.KindRoot { // it is not begun by itself, and has been
					why = f.State.Begun
				}
			}
			one.Why = why + ". By then, since " + one.Why
			if one.By != ByRotation && (one.Due || one.Late) {
				one.Do = fmt.Sprintf("relaypki rotate %s %s --plan", d.Kind, f.Mesh)
			}
		}
	}
	for _, i := range v.Items {
		if i.Leaf() && i.Vault == nil && i.Key == tlsCertificate {
			all = append(all, f.leaf(i, of[i.Certificate]))
		}
	}
	slices.SortStableFunc(all, func(a, b Forecast) int {
		return cmp.Or(cmp.Compare(slices.Index(Kinds, a.Layer), slices.Index(Kinds, b.Layer)), a.LatestStart.Compare(b.LatestStart), strings.Compare(a.Cluster, b.Cluster))
	})
	return all
}

// tlsCertificate is the key of a Secret with a leaf.
const tlsCertificate = "tls.crt"

// leaf is renewed by cert-manager.
func (f Facts) leaf(i Item, c Certificate) Forecast {
	asked := f.Spec.Certificates.Client
	if i.Kind == ServerLeaf {
		asked = f.Spec.Certificates.Server
	}
	one := Forecast{Layer: i.Kind, Cluster: i.Cluster, Name: i.Object, Certificate: c.Fingerprint, Standing: c.Standing, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		LatestStart: c.NotAfter.Add(-asked.RenewBefore.Duration), By: ByCertManager}
	if renewal := i.Renewal; !renewal.IsZero() {
		one.LatestStart = renewal
	}
	state := f.State
	state.Begun, state.Busy = "", ""
	state.Leaves = []rotation.Life{{Name: i.Cluster, NotBefore: c.NotBefore, NotAfter: c.NotAfter, Renewal: one.LatestStart}}
	d := rotation.Decide(state, f.policy())[0]
	one.Due, one.Late = d.Due, d.Warning != ""
	one.Why = fmt.Sprintf("cert-manager renews it %s before its end (renewBefore)", asked.RenewBefore)
	if one.Due || one.Late {
		one.Why = cmp.Or(d.Warning, d.Why)
		one.Do = strings.TrimSpace("relaypki rotate leaf " + f.Mesh + " " + f.member(i))
	}
	return one
}

// member is the name by which a cluster's leaf is asked for; the management server's
// comes with everybody's.
func (f Facts) member(i Item) string {
	if i.Kind == ServerLeaf {
		return ""
	}
	return i.Cluster
}

func (f Facts) policy() rotation.Policy {
	due := f.Spec.Rotation.Due
	return rotation.Policy{Leaf: *due.Leaf, Intermediate: *due.Intermediate, Root: *due.Root}
}

func (f Facts) by(kind rotation.Kind) string {
	if kind == rotation.KindIntermediate && *f.Spec.Rotation.Due.Intermediate > 0 {
		return ByMaintain
	}
	return ByPerson
}

// rotating says that the rotation under way replaces the CA of that kind.
func (f Facts) rotating(kind rotation.Kind) bool {
	if kind == rotation.KindRoot {
		return f.Record.ToRoot != 0
	}
	return f.Record.ToIntermediate != 0
}

func (f Facts) latest(kind rotation.Kind, notAfter time.Time) (time.Time, string) {
	if notAfter.IsZero() {
		return time.Time{}, ""
	}
	start, why := rotation.LatestStart(kind, notAfter, f.Spec.Certificates.LongestLife(), f.Pace)
	return start.UTC(), why
}

// authorities are the CAs that somebody relies on or is about to: not those of a
// generation that is over, unless a rotation is under way.
func (v Inventory) authorities(of map[string]Certificate) []Certificate {
	var all []Certificate
	seen := map[string]bool{}
	for _, i := range v.Items {
		c := of[i.Certificate]
		if !c.CA || seen[c.Fingerprint] || i.Kind == Consumer {
			continue
		}
		seen[c.Fingerprint] = true
		switch c.Standing {
		case AtWork, Next, StandingBy:
			all = append(all, c)
		case Previous:
			if v.Rotation != "" {
				all = append(all, c)
			}
		}
	}
	return all
}

// names are what CAs are called in Vault, or their subjects, by fingerprint.
func (v Inventory) names() map[string]string {
	names := map[string]string{}
	for _, n := range newTree(v).nodes {
		names[n.Certificate.Fingerprint] = n.Name
	}
	return names
}

func (v Inventory) kindOf(c Certificate) Kind { return newTree(v).kind(c) }
