package pki

import "time"

const (
	// longerBy: Vault dates a certificate a little back (not_before_duration, 30 s by
	// default), so its whole life is a little longer than the one asked for.
	longerBy = 10 * time.Minute
	// shorterBy is for the rounding of seconds.
	shorterBy = time.Minute
)

// LivesFor says that a certificate lives for as long as was asked for, as far as
// those who issue it keep to that.
func LivesFor(notBefore, notAfter time.Time, asked time.Duration) bool {
	life := notAfter.Sub(notBefore)
	return life >= asked-shorterBy && life <= asked+longerBy
}
