package secret_test

import (
	"testing"

	"github.com/relaypki/relaypki/internal/secret"
	"github.com/relaypki/relaypki/internal/secret/secrettest"
)

func TestWithhold(t *testing.T) {
	for text, want := range map[string]string{
		"login with " + secrettest.VaultToken + " refused":    "login with (withheld) refused",
		"old " + secrettest.OldToken + ".":                    "old (withheld).",
		"batch " + secrettest.BatchToken + ".":                "batch (withheld).",
		"Bearer " + secrettest.JWT:                            "Bearer (withheld)",
		"wrote " + secrettest.Key + " to disk":                "wrote (withheld) to disk",
		"cut off: -----BEGIN PRIVATE KEY----- MIIEvQIBADANBg": "cut off: (withheld)",

		"the end of one: -----END RSA PRIVATE KEY-----": "the end of one: -----END RSA (withheld)-----",

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
