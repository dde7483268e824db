// Package secrettest has made-up secrets, in the forms that real ones have, for
// tests of what must not keep any.
package secrettest

const (
	VaultToken = "hvs.CAESIJlU9JMYEhOPYv4igdhm9PnZDrabYTobQ4Ymnlq"
	// OldToken is a Vault token of before 1.10, BatchToken a batch token of then.
	OldToken   = "s.iyNUhq8Ov4hIAx6snw5mB2nL"
	BatchToken = "b.AAAAAQJxWwp-2cEgWbOYMVTqVfWqkqZ_pK1l0h5c2lnbmF0dXJl"
	JWT        = "eyJhbGciOiJSUzI1NiIsImtpZCI6IiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl"
	Key        = "-----BEGIN RSA PRIVATE KEY-----\n" + KeyBody + "\n-----END RSA PRIVATE KEY-----"
	KeyBody    = "MIIEowIBAAKCAQEA"
)
