package failure

import "regexp"

// secretLooking matches Vault's tokens (hvs., hvb., hvr. and the short ones of
// before Vault 1.10), JWTs, which begin with a JSON object in base64, and
// private keys in PEM, to their end or as far as they go.
var secretLooking = regexp.MustCompile(`\bhv[sbr]\.[A-Za-z0-9_-]{20,}` +
	`|\b[sbr]\.[A-Za-z0-9]{24}\b` +
	`|\beyJ[A-Za-z0-9_-]{10,}(\.[A-Za-z0-9_-]+)*` +
	`|-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(-----END [A-Z ]*PRIVATE KEY-----|\z)`)

// WithoutSecrets is the text with "(withheld)" in place of what looks like a
// token, a JWT or a private key. Errors, findings and heartbeats quote what
// others say (a Pod's last words, a webhook's refusal), and Temporal keeps them.
func WithoutSecrets(text string) string {
	return secretLooking.ReplaceAllString(text, "(withheld)")
}
