package vault_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/activities/vault"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// secretServer is as much of an API server as one Secret needs; a real one has
// the same activity in the end-to-end tests.
type secretServer struct {
	url, name string

	mu     sync.Mutex
	secret *corev1.Secret
	refuse bool
	// between happens after the Secret was read.
	between func()
	// version of the Secret, counted up.
	version int
}

func newSecretServer(t *testing.T, name string) *secretServer {
	s := &secretServer{name: name}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *secretServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	status := func(code int, reason string) {
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d,"message":"refused"}`, reason, code)
	}
	switch {
	case r.URL.Path != "/api/v1/namespaces/gloo-mesh/secrets/"+s.name:
		status(http.StatusNotFound, "NotFound")
		return
	case r.Method == http.MethodPatch && s.refuse:
		status(http.StatusForbidden, "Forbidden")
		return
	case r.Method == http.MethodPatch:
		body, err := io.ReadAll(r.Body)
		applied := &corev1.Secret{}
		if r.Header.Get("Content-Type") == string(types.MergePatchType) {
			applied = s.secret.DeepCopy()
		}
		if err == nil {
			err = yaml.Unmarshal(body, applied)
		}
		for key, value := range applied.Data {
			if value == nil { // of a merge patch
				delete(applied.Data, key)
			}
		}
		if version := applied.ResourceVersion; err == nil && version != "" && (s.secret == nil || s.secret.ResourceVersion != version) {
			status(http.StatusConflict, "Conflict")
			return
		}
		s.version++
		s.secret, applied.ResourceVersion = applied, fmt.Sprint(s.version)
		if err != nil {
			status(http.StatusBadRequest, "BadRequest")
			return
		}
	case s.secret == nil:
		status(http.StatusNotFound, "NotFound")
		return
	}
	json.NewEncoder(w).Encode(s.secret)
	if s.between != nil {
		s.between()
	}
}

func (s *secretServer) token() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.secret == nil {
		return ""
	}
	return string(s.secret.Data["token"])
}

func (s *secretServer) set(refuse bool, secret *corev1.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse, s.secret = refuse, secret
}

// newTokenWorld is a world of method token with a cluster1 to write to.
func newTokenWorld(t *testing.T) (*world, *secretServer) {
	return newSecretWorld(t, mesh.CredentialToken, mesh.TokenSecretName)
}

// newSecretWorld is a world of a method that writes a Secret in cluster1.
func newSecretWorld(t *testing.T, method, name string) (*world, *secretServer) {
	w := newWorld(t)
	w.spec.Credential.Method = method
	secrets := newSecretServer(t, name)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q}}]
contexts: [{name: cluster1, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
`, secrets.url), 0o600); err != nil {
		t.Fatal(err)
	}
	w.site.Kubeconfig = kubeconfig
	w.site.Clusters = []site.ClusterConfig{{Name: "cluster1", Context: "cluster1"}}
	w.Activities = vault.Activities{Clients: site.NewClients(w.site, zap.NewNop())}
	w.mustSetup(t)
	return w, secrets
}

func (w *world) issueToken(mode procedure.Mode) (procedure.Outcome, error) {
	return w.IssueClusterToken(context.Background(), vault.IssueClusterTokenInput{Spec: w.spec, Context: "cluster1", Workload: "cluster1", Mode: mode})
}

// clusterTokens counts the tokens that carry cluster1's policy.
func (w *world) clusterTokens(t *testing.T) int {
	t.Helper()
	list, err := w.Root.Logical().List("auth/token/accessors")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, accessor := range list.Data["keys"].([]any) {
		token, err := w.Root.Auth().Token().LookupAccessor(accessor.(string))
		if err != nil {
			continue // it has ended since
		}
		if policies, err := token.TokenPolicies(); err == nil && slices.Contains(policies, "relaypki-prod-cluster1") {
			count++
		}
	}
	return count
}

func TestIssueClusterToken(t *testing.T) {
	w, secrets := newTokenWorld(t)
	out, err := w.issueToken(procedure.Observe)
	if err != nil || out.State() != procedure.Created || secrets.token() != "" || w.clusterTokens(t) != 0 {
		t.Fatalf("observing: %v (%v), %d tokens", out, err, w.clusterTokens(t))
	}
	if out, err = w.issueToken(procedure.Apply); err != nil || out.State() != procedure.Created {
		t.Fatalf("%v (%v)", out, err)
	}
	token := secrets.token()
	if text := fmt.Sprintf("%+v", out); strings.Contains(text, token) {
		t.Error("the outcome has the token in it")
	}
	self, err := w.Root.Auth().Token().Lookup(token)
	if err != nil {
		t.Fatal(err)
	}
	policies, _ := self.TokenPolicies()
	if self.Data["orphan"] != true || self.Data["renewable"] != true || self.Data["creation_ttl"] != json.Number("259200") || !slices.Equal(policies, []string{"relaypki-prod-cluster1"}) {
		t.Errorf("orphan %v, renewable %v, life %v, policies %v", self.Data["orphan"], self.Data["renewable"], self.Data["creation_ttl"], policies)
	}
	client, err := w.Client(token)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sign(client, "pki_relay/sign/relay-client-cluster1", request(t, named("cluster1", "cluster1"))); err != nil {
		t.Errorf("the token cannot sign: %v", err)
	}
	if _, err := sign(client, "pki_relay/sign/relay-client-cluster2", request(t, named("cluster2", "cluster2"))); err == nil {
		t.Error("cluster1's token signs for cluster2")
	}

	if out, err = w.issueToken(procedure.Apply); err != nil || len(out.Changes) > 0 || secrets.token() != token {
		t.Errorf("a second run: %v (%v)", out, err)
	}

	if err := w.Root.Auth().Token().RevokeTree(token); err != nil {
		t.Fatal(err)
	}
	if out, err = w.issueToken(procedure.Apply); err != nil || out.State() != procedure.Changed || secrets.token() == token || w.clusterTokens(t) != 1 {
		t.Errorf("after a revocation: %v (%v)", out, err)
	}

	// A token with half of its period left is renewed, and so is one whose
	// period has become shorter.
	token = secrets.token()
	for _, period := range []mesh.Duration{mesh.Hours(24), mesh.Hours(96)} {
		w.spec.Credential.TokenPeriod = period
		w.mustSetup(t)
		if out, err = w.issueToken(procedure.Apply); err != nil || out.State() != procedure.Changed || secrets.token() != token {
			t.Errorf("period %s: %v (%v)", period, out, err)
		}
		self, err := w.Root.Auth().Token().Lookup(token)
		if err != nil {
			t.Fatal(err)
		}
		if ttl, err := self.TokenTTL(); err != nil || (ttl-period.Duration).Abs() > time.Minute {
			t.Errorf("period %s: the token has %s left (%v)", period, ttl, err)
		}
		if out, err = w.issueToken(procedure.Apply); err != nil || len(out.Changes) > 0 {
			t.Errorf("period %s, run again: %v (%v)", period, out, err)
		}
	}

	// A token with other powers is replaced. It was not minted by us, so it is
	// not ours to revoke, which is said.
	other, err := w.Root.Auth().Token().Create(&vaultapi.TokenCreateRequest{Policies: []string{"relaypki-prod-cluster1", "relaypki-prod-cluster2"}, NoDefaultPolicy: true})
	if err != nil {
		t.Fatal(err)
	}
	secrets.set(false, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Labels: kube.Labels("prod")}, Data: map[string][]byte{"token": []byte(other.Auth.ClientToken)}})
	if out, err = w.issueToken(procedure.Apply); err != nil || out.State() != procedure.Changed || secrets.token() == other.Auth.ClientToken {
		t.Errorf("a token with other powers: %v (%v)", out, err)
	}
	if _, err := w.Root.Auth().Token().Lookup(other.Auth.ClientToken); err != nil || !strings.Contains(out.Changes[0].Detail, "lives on in Vault") {
		t.Errorf("the token of somebody else: %v, said was %q", err, out.Changes[0].Detail)
	}
}

func TestIssueClusterTokenLeavesNoneBehind(t *testing.T) {
	w, secrets := newTokenWorld(t)
	secrets.set(true, nil)
	_, err := w.issueToken(procedure.Apply)
	wantFailure(t, err, failure.Denied)
	if count := w.clusterTokens(t); count != 0 {
		t.Errorf("the Secret could not be written, and %d tokens are left", count)
	}
}

// The guide's Secret, made by hand with the root token, is not taken over.
func TestIssueClusterTokenConflict(t *testing.T) {
	w, secrets := newTokenWorld(t)
	root := w.Root.Token()
	secrets.set(false, &corev1.Secret{Data: map[string][]byte{"token": []byte(root)}})
	_, err := w.issueToken(procedure.Apply)
	wantFailure(t, err, failure.Conflict, "vault-token", "policies")
	if strings.Contains(err.Error(), root) {
		t.Error("the error has the token in it")
	}
	if _, err := w.Root.Auth().Token().LookupSelf(); err != nil || secrets.token() != root {
		t.Errorf("the root token was touched: %v", err)
	}
}
