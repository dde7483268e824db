package main

import "testing"

// The figures of a part that is measured alone take the place of its former ones.
func TestPut(t *testing.T) {
	file := func(middle string) string { return "above\n" + beginLine + "\n" + middle + endLine + "\nbelow\n" }
	first, err := put(file("of old\n"), map[string]string{"compare": "\ncompared\n", "many": "\nmany\n"})
	if want := file(measuredOn() + partLine("compare") + "\ncompared\n" + partLine("many") + "\nmany\n"); err != nil || first != want {
		t.Errorf("got %q, %v; want %q", first, err, want)
	}
	second, err := put(first, map[string]string{"rotate": "\nrotated\n", "many": "\nmore\n"})
	if want := file(measuredOn() + partLine("compare") + "\ncompared\n" + partLine("rotate") + "\nrotated\n" + partLine("many") + "\nmore\n"); err != nil || second != want {
		t.Errorf("got %q, %v; want %q", second, err, want)
	}
	if _, err := put("no place", nil); err == nil {
		t.Error("figures go where there is no place for them")
	}
}
