package mesh

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// Duration is a length of time that people write as "30m", "72h", "30d" or
// "1d12h".
type Duration struct{ time.Duration }

// Hours and Minutes are Durations in round numbers.
func Hours(n int) Duration   { return Duration{time.Duration(n) * time.Hour} }
func Minutes(n int) Duration { return Duration{time.Duration(n) * time.Minute} }

var days = regexp.MustCompile(`^(\d+)d(.*)$`)

// ParseDuration reads a Duration as people write it. Days are 24 hours.
func ParseDuration(text string) (Duration, error) {
	var total time.Duration
	rest := text
	if m := days.FindStringSubmatch(text); m != nil {
		n, err := strconv.Atoi(m[1])
		if err != nil || n > 100000 {
			return Duration{}, fmt.Errorf("%q is too long", text)
		}
		total, rest = time.Duration(n)*24*time.Hour, m[2]
	}
	if rest != "" || total == 0 {
		d, err := time.ParseDuration(rest)
		if err != nil {
			return Duration{}, fmt.Errorf("%q is not a duration; write it like \"30m\", \"72h\" or \"30d\"", text)
		}
		total += d
	}
	return Duration{total}, nil
}

// UnmarshalJSON reads the text form; a bare number is refused, since nobody
// can tell its unit.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("%s is not a duration; write it in quotes with a unit, like \"30m\", \"72h\" or \"30d\"", data)
	}
	parsed, err := ParseDuration(text)
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}

// MarshalJSON writes the text form.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// String is the shortest text form in whole units: "24h", "30m".
func (d Duration) String() string {
	switch {
	case d.Duration == 0:
		return "0s"
	case d.Duration%time.Hour == 0:
		return fmt.Sprintf("%dh", d.Duration/time.Hour)
	case d.Duration%time.Minute == 0:
		return fmt.Sprintf("%dm", d.Duration/time.Minute)
	default:
		return d.Duration.String()
	}
}
