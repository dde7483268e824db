package site

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"time"
)

// Expired says in a few words that the credential in the kubeconfig has
// expired, and when; empty if it has not, or does not say.
func (c *Cluster) Expired(now time.Time) string {
	config := c.REST
	if config == nil {
		return ""
	}
	for _, credential := range []struct {
		name, file string
		data       []byte
		expires    func([]byte) time.Time
	}{
		{"token", config.BearerTokenFile, []byte(config.BearerToken), tokenExpires},
		{"client certificate", config.CertFile, config.CertData, certificateExpires},
	} {
		data := credential.data
		if credential.file != "" { // it wins, as it does for client-go's token
			if read, err := os.ReadFile(credential.file); err == nil {
				data = read
			}
		}
		if at := credential.expires(data); !at.IsZero() && at.Before(now) {
			return fmt.Sprintf("its %s expired at %s", credential.name, at.UTC().Format(time.RFC3339))
		}
	}
	return ""
}

// tokenExpires is the time in a JWT, whose signature is the API server's to look
// at; zero for other tokens.
func tokenExpires(token []byte) time.Time {
	parts := strings.Split(strings.TrimSpace(string(token)), ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Expires int64 `json:"exp"`
	}
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Expires == 0 {
		return time.Time{}
	}
	return time.Unix(claims.Expires, 0)
}

func certificateExpires(data []byte) time.Time {
	block, _ := pem.Decode(data)
	if block == nil {
		return time.Time{}
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}
	}
	return certificate.NotAfter
}
