package programs

import (
	"regexp"
	"strconv"
	"strings"
)

var versionNumber = regexp.MustCompile(`v?(\d+)\.(\d+)\.(\d+)(\S*)`)

// Version is the first version number in what a program prints about itself,
// with what is glued to its end ("1.21.1+ent"); "" if there is none.
func Version(output string) string {
	return strings.TrimPrefix(strings.TrimRight(versionNumber.FindString(output), ",;)"), "v")
}

// Fits tells whether from <= version < below. Enterprise builds need a licence
// and pre-releases come before their version: neither fits.
func Fits(version, from, below string) bool {
	if strings.ContainsAny(version, "-") || strings.Contains(version, "+ent") {
		return false
	}
	v, ok := number(version)
	low, _ := number(from)
	high, _ := number(below)
	return ok && low <= v && v < high
}

// number makes versions comparable: parts are below 100000 in practice.
func number(version string) (int, bool) {
	m := versionNumber.FindStringSubmatch(version)
	if m == nil {
		return 0, false
	}
	n := 0
	for _, part := range m[1:4] {
		i, err := strconv.Atoi(part)
		if err != nil || i >= 100000 {
			return 0, false
		}
		n = n*100000 + i
	}
	return n, true
}
