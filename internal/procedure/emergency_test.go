package procedure

import (
	"testing"

	"github.com/relaypki/relaypki/internal/check"
)

func TestPin(t *testing.T) {
	pinned := func(change func(*Rotation)) *Rotation {
		r := &Rotation{Procedure: EmergencyReissue, From: 1, To: 2, FromRoot: 1, ToRoot: 1, Mode: "pinned", Emergency: &Emergency{Compromised: CompromisedIntermediate, Pinned: true}}
		change(r)
		return r
	}
	for name, c := range map[string]struct {
		of   *Rotation
		want check.Pin
	}{
		"none":                     {nil, check.Unpinned},
		"a rotation of the root":   {&Rotation{Procedure: RotateRootCA, From: 1, To: 2, FromRoot: 1, ToRoot: 2, Mode: "final"}, check.Unpinned},
		"pinned":                   {pinned(func(*Rotation) {}), check.Pinned},
		"linked":                   {pinned(func(r *Rotation) { r.Mode, r.Emergency.Pinned = "final", false }), check.Pinning},
		"pinned, and not by all":   {pinned(func(r *Rotation) { r.Emergency.Pinned = false }), check.Pinning},
		"about to be lifted":       {pinned(func(r *Rotation) { r.Next = "final" }), check.Pinning},
		"lifted, and not by all":   {pinned(func(r *Rotation) { r.Mode = "final" }), check.Pinning},
		"a leaf, with the CAs":     {pinned(func(r *Rotation) { r.To, r.Mode, r.Emergency.Pinned = 1, "", false }), check.Unpinned},
		"a root takes their place": {pinned(func(r *Rotation) { r.ToRoot, r.Mode, r.Emergency.Pinned = 2, "final", false }), check.Unpinned},
	} {
		if got := c.of.Pin(); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
