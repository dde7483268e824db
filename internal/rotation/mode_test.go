package rotation

import (
	"encoding/json"
	"testing"
)

// What people read in results is what programs read back.
func TestText(t *testing.T) {
	type result struct {
		Modes  Modes  `json:"modes,omitempty"`
		Stores Stores `json:"stores,omitempty"`
	}
	for in, want := range map[result]string{
		{}:                                          `{}`,
		{Modes: In(Bridged, Pivot)}:                 `{"modes":"bridged or pivot"}`,
		{Modes: AnyMode, Stores: AnyStore}:          `{"modes":"any","stores":"any"}`,
		{Stores: Trusting(OldRoot)}:                 `{"stores":"the old root"}`,
		{Stores: Trusting(0, OldRoot|NewRoot)}:      `{"stores":"no root or both roots"}`,
		{Stores: Trusting(NewRoot, NewRoot|Itself)}: `{"stores":"the new root or the new root and the new intermediate itself"}`,
	} {
		text, err := json.Marshal(in)
		if err != nil || string(text) != want {
			t.Errorf("%s, %v; want %s", text, err, want)
		}
	}
	for i := range 256 {
		in := result{Modes(i) & AnyMode, Stores(i)}
		text, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		out := result{AnyMode, AnyStore}
		if in.Modes == 0 || in.Stores == 0 {
			out = result{}
		}
		if err := json.Unmarshal(text, &out); err != nil || out != in {
			t.Errorf("%s is read as %+v, %v; want %+v", text, out, err, in)
		}
	}
	for _, text := range []string{`{"modes":"olden"}`, `{"modes":"old or any"}`, `{"stores":"the root"}`, `{"modes":3}`} {
		var out result
		if err := json.Unmarshal([]byte(text), &out); err == nil {
			t.Errorf("%s is read as %+v", text, out)
		}
	}
}
