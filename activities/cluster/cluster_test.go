package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"slices"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"go.temporal.io/api/enums/v1"
)

func TestHolder(t *testing.T) {
	for text, want := range map[string]holder{
		"default/setup-prod/run1": {"default", "setup-prod", "run1"},
		"ns/a/b/c/run1":           {"ns", "a/b/c", "run1"},
	} {
		if got, ok := parseHolder(text); !ok || got != want {
			t.Errorf("%s: %v %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "x", "a/b", "/b/c", "a//c", "a/b/", "kube-controller-manager_1"} {
		if got, ok := parseHolder(text); ok {
			t.Errorf("%q was taken for a holder: %v", text, got)
		}
	}
}

func TestDecideLock(t *testing.T) {
	const ours = "default/setup-prod/run1"
	for current, want := range map[string]lockDecision{
		"":                        lockTake,
		ours:                      lockHeld,
		"default/setup-prod/run2": lockAskOwner,
		"default/other/run1":      lockAskOwner,
		"somebody":                lockForeign,
	} {
		if got := decideLock(current, ours); got != want {
			t.Errorf("held by %q: %v, want %v", current, got, want)
		}
	}
}

func TestAlive(t *testing.T) {
	h := holder{"default", "w", "first"}
	for _, c := range []struct {
		name   string
		status enums.WorkflowExecutionStatus
		first  string
		want   bool
	}{
		{"running", enums.WORKFLOW_EXECUTION_STATUS_RUNNING, "first", true},
		{"paused", enums.WORKFLOW_EXECUTION_STATUS_PAUSED, "first", true},
		{"another chain of that id", enums.WORKFLOW_EXECUTION_STATUS_RUNNING, "second", false},
		{"an old server that does not say which chain", enums.WORKFLOW_EXECUTION_STATUS_RUNNING, "", true},
		{"failed", enums.WORKFLOW_EXECUTION_STATUS_FAILED, "first", false},
		{"terminated", enums.WORKFLOW_EXECUTION_STATUS_TERMINATED, "first", false},
	} {
		if got := alive(c.status, c.first, h); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestPublicKeys(t *testing.T) {
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set := func(keys ...any) []byte {
		var s jose.JSONWebKeySet
		for _, k := range keys {
			s.Keys = append(s.Keys, jose.JSONWebKey{Key: k, Use: "sig"})
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	one, err := publicKeys(set(&r.PublicKey, &e.PublicKey, &r.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	other, err := publicKeys(set(&e.PublicKey, &r.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	if len(one) != 2 || !slices.Equal(one, other) {
		t.Fatalf("the order of the set, or a double, matters: %d and %d keys", len(one), len(other))
	}
	for _, text := range one {
		block, _ := pem.Decode([]byte(text))
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if !r.PublicKey.Equal(key) && !e.PublicKey.Equal(key) {
			t.Errorf("a key came back that was not given: %v", key)
		}
	}
	for name, text := range map[string][]byte{"private key": set(r), "no key": set(), "no JSON": []byte("<html>")} {
		if keys, err := publicKeys(text); err == nil {
			t.Errorf("%s: accepted, %d keys", name, len(keys))
		}
	}
}

func TestCertificatesOnly(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	private := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	for name, text := range map[string]string{"nothing": "", "a private key": private, "no certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if certificatesOnly(text) == "" {
			t.Errorf("%s was accepted", name)
		}
	}
}
