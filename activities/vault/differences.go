package vault

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/relaypki/relaypki/internal/mesh"
)

// differences says in which fields what Vault has differs from what is desired.
// Lists are compared as sets: Vault gives no meaning to their order. A field
// that this version of Vault does not know counts as empty.
func differences(desired, have map[string]any) []string {
	var out []string
	for field, want := range desired {
		if !same(want, have[field]) {
			out = append(out, fmt.Sprintf("%s is %s, should be %s", field, text(have[field]), text(want)))
		}
	}
	sort.Strings(out)
	return out
}

func same(want, have any) bool {
	switch want := want.(type) {
	case bool:
		got, _ := have.(bool)
		return got == want
	case string:
		got, _ := have.(string)
		return got == want
	case int64:
		number, _ := have.(json.Number)
		got, _ := number.Int64()
		return got == want
	case []string:
		return slices.Equal(set(want), set(texts(have)))
	}
	panic(fmt.Sprintf("a field of type %T is compared", want))
}

func texts(value any) []string {
	list, _ := value.([]any)
	var out []string
	for _, item := range list {
		if s, ok := item.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

func set(list []string) []string {
	sorted := slices.Clone(list)
	slices.Sort(sorted)
	return slices.Compact(sorted)
}

func text(value any) string {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprint(value)
	}
	return string(data)
}

// lifetimeTolerance is how far an issued lifetime may be from the one asked
// for: Vault dates certificates back by 30 s, and the call takes time. What it
// must catch is a mount that cuts years down to days.
const lifetimeTolerance = 5 * time.Minute

// identityOf says in what a CA certificate is not the CA that was asked for:
// subject, key, CA flag.
func identityOf(c *x509.Certificate, asked mesh.CA) []string {
	var out []string
	differ := func(what, have, want string) {
		if have != want {
			out = append(out, fmt.Sprintf("%s is %s, asked for was %s", what, have, want))
		}
	}
	differ("common name", fmt.Sprintf("%q", c.Subject.CommonName), fmt.Sprintf("%q", asked.CommonName))
	organization := "none"
	if asked.Organization != "" {
		organization = fmt.Sprintf("%q", asked.Organization)
	}
	have := "none"
	if len(c.Subject.Organization) > 0 {
		have = fmt.Sprintf("%q", strings.Join(c.Subject.Organization, ", "))
	}
	differ("organization", have, organization)
	differ("key", keyOf(c), fmt.Sprintf("%s %d", asked.KeyType, asked.KeyBits))
	if !c.IsCA || !c.BasicConstraintsValid {
		out = append(out, "it is no CA certificate")
	}
	return out
}

// lifetimeOf says how a certificate's lifetime differs from the one asked for,
// or nothing.
func lifetimeOf(c *x509.Certificate, asked mesh.Duration) []string {
	if have := c.NotAfter.Sub(c.NotBefore); (have - asked.Duration).Abs() > lifetimeTolerance {
		return []string{fmt.Sprintf("lifetime is %s, asked for was %s", have, asked)}
	}
	return nil
}

// keyOf is a certificate's key in Vault's words: "rsa 2048", "ec 256".
func keyOf(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("rsa %d", key.N.BitLen())
	case *ecdsa.PublicKey:
		return fmt.Sprintf("ec %d", key.Curve.Params().BitSize)
	}
	return c.PublicKeyAlgorithm.String()
}
