package secret_test

import (
	"testing"

	"github.com/relaypki/relaypki/internal/secret"
)

// Made up, in the forms that the real ones have.
const (
	vaultToken = "hvs.CAESIJlU9JMYEhOPYv4igdhm9PnZDrabYTobQ4Ymnlq"
	oldToken   = "s.iyNUhq8Ov4hIAx6snw5mB2nL"
	jwt        = "eyJhbGciOiJSUzI1NiIsImtpZCI6IiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl"
	key        = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----"
)

func TestWithhold(t *testing.T) {
	for text, want := range map[string]string{
		"login with " + vaultToken + " refused":               "login with (withheld) refused",
		"old " + oldToken + ".":                               "old (withheld).",
		"Bearer " + jwt:                                       "Bearer (withheld)",
		"wrote " + key + " to disk":                           "wrote (withheld) to disk",
		"cut off: -----BEGIN PRIVATE KEY----- MIIEvQIBADANBg": "cut off: (withheld)",

		"cluster1.eu-central.example-company.com: no such host":                  "",
		"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----":           "",
		"serial 3a:5b:1c, key type rsa, s.example.com, role relay-client-b.prod": "",
	} {
		if want == "" {
			want = text
		}
		if got := secret.Withhold(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}
