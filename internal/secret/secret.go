// Package secret knows what a secret looks like, so that none stays in what
// Temporal keeps.
package secret

import "regexp"

// looking matches Vault's tokens (hvs., hvb., hvr. and the s., b., r. of before
// Vault 1.10), JWTs, which begin with a JSON object in base64, and private keys
// in PEM, to their end or as far as they go.
var looking = regexp.MustCompile(`\b(hv[sbr]|[sbr])\.[A-Za-z0-9_-]{20,}` +
	`|eyJ[A-Za-z0-9_-]{10,}(\.[A-Za-z0-9_-]+)*` +
	`|-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(-----END [A-Z ]*PRIVATE KEY-----|\z)` +
	`|PRIVATE KEY`)

// Withhold is the text with "(withheld)" in place of what looks like a
// token, a JWT or a private key. Errors, findings and heartbeats quote what
// others say (a Pod's last words, a webhook's refusal), and Temporal keeps them.
func Withhold(text string) string {
	return looking.ReplaceAllString(text, "(withheld)")
}
