package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	authentication "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// webhook is where people are told: a real server, whose first answer is 500.
type webhook struct {
	mu    sync.Mutex
	asked int
	texts []string
}

func (h *webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.asked++; h.asked == 1 {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	var message struct{ Text string }
	_ = json.NewDecoder(r.Body).Decode(&message)
	h.texts = append(h.texts, message.Text)
}

func (h *webhook) told() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.texts...)
}

// startTellingWorker starts the worker of the lab's site, which tells a webhook.
func (w *world) startTellingWorker(t *testing.T) (*worker, *webhook) {
	t.Helper()
	hook := &webhook{}
	server := httptest.NewServer(hook)
	t.Cleanup(server.Close)
	config, err := site.Load(filepath.Join(w.dir, "worker", "site.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	config.Notify = []site.Webhook{{Name: "ops", URL: server.URL}}
	return w.startWorkerAt(t, filepath.Join(repository, "bin", "relaypki-worker"), config), hook
}

// A mesh goes through every method of credential, one after the other, and what
// expires of each is spoilt and put right by the schedule's RefreshCredentials,
// which is proven by a renewal of the leaf.
func TestCredentials(t *testing.T) {
	w := labWorld(t, "cluster1")
	hook := &webhook{}
	server := httptest.NewServer(hook)
	t.Cleanup(server.Close)
	config, err := site.Load(filepath.Join(w.dir, "worker", "site.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	urlFile := filepath.Join(t.TempDir(), "webhook")
	if err := os.WriteFile(urlFile, []byte(server.URL+"/T0SECRETPATH\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config.Notify = []site.Webhook{{Name: "ops", URLFile: urlFile}}
	w.startWorkerAt(t, filepath.Join(repository, "bin", "relaypki-worker"), config)
	input := filepath.Join(t.TempDir(), "mesh.yaml")
	setup := func(credential string) {
		t.Helper()
		if err := os.WriteFile(input, []byte("{mesh: demo, workloads: [{name: cluster1}], verify: {every: 0s}, credential: "+credential+"}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if result := w.setup(t, input); !result.Verification.Healthy {
			t.Fatalf("with %s the mesh is not healthy: %+v", credential, result.Verification.Findings)
		}
		if again := w.setup(t, input); again.Changed {
			t.Errorf("with %s a second setup changed something: %+v", credential, again)
		}
	}
	vault, kube := w.vault(t), w.cluster(t, "cluster1").kube

	t.Log("jwt: a key that is not the cluster's is pinned, as after a rotation of its keys")
	setup("{method: jwt}")
	right := w.pinAnotherKey(t)
	revision := w.renewLeaf(t)
	w.requestFails(t, revision+1)
	result := w.refresh(t)
	if !result.Changed || result.Count[procedure.Changed] != 1 || result.Count[procedure.UpToDate] != 1 {
		t.Errorf("%+v", result)
	}
	now, err := vault.Logical().Read(jwtConfig)
	if err != nil || fmt.Sprint(now.Data["jwt_validation_pubkeys"]) != fmt.Sprint(right) {
		t.Errorf("the keys pinned are %v (%v)", now.Data["jwt_validation_pubkeys"], err)
	}
	w.renewed(t, revision+1)
	if result := w.refresh(t); result.Changed {
		t.Errorf("a refresh of what is current: %+v", result)
	}
	out, _, code := w.relaypki(t, "status", "demo")
	if code != 0 || !strings.Contains(out, "relaypki-refresh-demo") {
		t.Errorf("status does not show the schedule:\n%s", out)
	}

	t.Log("the auth mount is gone: people are told once, through a webhook that answers 500 first")
	if err := vault.Sys().DisableAuth("relaypki-demo-cluster1"); err != nil {
		t.Fatal(err)
	}
	if err := w.triggerRefresh(t); err == nil || !strings.Contains(err.Error(), "cluster1") {
		t.Errorf("without the auth mount the run ended with %v", err)
	}
	if told := hook.told(); len(told) != 1 || !strings.Contains(told[0], "RefreshCredentials of mesh demo failed") || !strings.Contains(told[0], "cluster1: ") || !strings.Contains(told[0], "Next: relaypki ") {
		t.Errorf("told %q", told)
	}
	run := w.start(t, w.temporal(t), procedure.RefreshCredentials, `{"mesh":"demo"}`)
	if err := run.Get(t.Context(), nil); err == nil || len(hook.told()) != 1 {
		t.Errorf("a person's own run ended with %v, told %q", err, hook.told())
	}

	t.Log("appRole: a secret id that is about to end is renewed, the old one destroyed")
	setup("{method: appRole, tokenPeriod: 1h}")
	ending := "0c7e7d6e-a-secret-id-of-the-test"
	if _, err := vault.Logical().Write(issuerRole+"/custom-secret-id", map[string]any{"secret_id": ending, "ttl": "20m"}); err != nil {
		t.Fatal(err)
	}
	w.putSecret(t, mesh.AppRoleSecretName, "secretId-1", ending)
	if result := w.refresh(t); result.Count[procedure.Changed] != 1 {
		t.Errorf("%+v", result)
	}
	secretID := w.onlySecretID(t, "secretId-2")
	if found, err := vault.Logical().Write(issuerRole+"/secret-id/lookup", map[string]any{"secret_id": secretID}); err != nil || found == nil {
		t.Errorf("Vault does not know the new secret id: %v", err)
	} else if until, err := time.Parse(time.RFC3339Nano, fmt.Sprint(found.Data["expiration_time"])); err != nil || (time.Until(until)-time.Hour).Abs() > 5*time.Minute {
		t.Errorf("the new secret id ends at %v (%v)", until, err)
	}
	if found, err := vault.Logical().Write(issuerRole+"/secret-id/lookup", map[string]any{"secret_id": ending}); err == nil && found != nil {
		t.Error("the old secret id still lets in")
	}
	issuer, err := w.cluster(t, "cluster1").cm.CertmanagerV1().Issuers("gloo-mesh").Get(t.Context(), mesh.IssuerName, metav1.GetOptions{})
	if err != nil || issuer.Spec.Vault.Auth.AppRole == nil || issuer.Spec.Vault.Auth.AppRole.SecretRef.Key != "secretId-2" || issuer.Spec.Vault.Auth.Kubernetes != nil {
		t.Errorf("the Issuer logs in by %+v (%v)", issuer.Spec.Vault.Auth, err)
	}
	w.renewed(t, w.renewLeaf(t)+1)

	t.Log("appRole: a secret id that is destroyed is made anew")
	w.destroySecretID(t, secretID)
	if failing := w.failing(t); !strings.Contains(failing, check.ClusterSecretID) {
		t.Errorf("verification does not see that it is gone: %s", failing)
	}
	if result := w.refresh(t); !strings.Contains(fmt.Sprint(result.Clusters), "made anew") && !strings.Contains(fmt.Sprint(result.Clusters), "minted anew") {
		t.Errorf("%+v", result)
	}
	w.onlySecretID(t, "secretId-3")
	w.renewed(t, w.renewLeaf(t)+1)

	t.Log("token: one that was revoked is minted anew")
	setup("{method: token, tokenPeriod: 1h}")
	w.revokeToken(t)
	if result := w.refresh(t); !strings.Contains(fmt.Sprint(result.Clusters), "minted anew") {
		t.Errorf("%+v", result)
	}
	w.renewed(t, w.renewLeaf(t)+1)

	t.Log("kubernetes: nothing of it expires, and a setup sees that Vault has another reviewer than the cluster's")
	setup("{method: kubernetes}")
	w.renewed(t, w.renewLeaf(t)+1)
	schedules := w.temporal(t).ScheduleClient()
	if _, err := schedules.GetHandle(t.Context(), temporalactivities.RefreshScheduleID("demo")).Describe(t.Context()); err == nil {
		t.Error("the schedule is still there, with nothing to refresh")
	}
	for _, context := range w.all() {
		if _, err := w.cluster(t, context).kube.RbacV1().ClusterRoleBindings().Get(t.Context(), "relaypki-reviewer-gloo-mesh", metav1.GetOptions{}); err != nil {
			t.Errorf("%s: %v", context, err)
		}
	}
	configured, err := vault.Logical().Read(jwtConfig)
	if err != nil || configured.Data["token_reviewer_jwt_set"] != true {
		t.Fatalf("the mount's configuration is %+v (%v)", configured, err)
	}
	nobody, err := kube.CoreV1().ServiceAccounts("gloo-mesh").CreateToken(t.Context(), mesh.IssuerServiceAccount, &authentication.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vault.Logical().Write(jwtConfig, map[string]any{"kubernetes_host": configured.Data["kubernetes_host"], "kubernetes_ca_cert": configured.Data["kubernetes_ca_cert"],
		"disable_local_ca_jwt": true, "token_reviewer_jwt": nobody.Status.Token}); err != nil {
		t.Fatal(err)
	}
	revision = w.renewLeaf(t)
	w.requestFails(t, revision+1)
	if healed := w.setup(t, input); !healed.Changed {
		t.Errorf("a setup did not see that Vault's reviewer may not review: %+v", healed)
	}
	w.renewed(t, revision+1)

	t.Log("jwt again, with its schedule")
	setup("{method: jwt}")
	w.renewed(t, w.renewLeaf(t)+1)
	if result := w.refresh(t); result.Changed {
		t.Errorf("a refresh of what is current: %+v", result)
	}
	w.noSecrets(t)
}

// jwtConfig is where Vault has the keys of cluster1's tokens, and issuerRole what its
// Issuer logs in by.
const (
	jwtConfig  = "auth/relaypki-demo-cluster1/config"
	issuerRole = "auth/relaypki-demo-cluster1/role/relaypki-issuer"
)

// pinAnotherKey pins a key of nobody's in the place of cluster1's, as after a rotation
// of its keys, and returns what was pinned.
func (w *world) pinAnotherKey(t *testing.T) any {
	t.Helper()
	right, err := w.vault(t).Logical().Read(jwtConfig)
	if err == nil {
		_, err = w.vault(t).Logical().Write(jwtConfig, map[string]any{"bound_issuer": right.Data["bound_issuer"], "jwt_validation_pubkeys": []string{anotherKey(t)}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return right.Data["jwt_validation_pubkeys"]
}

// destroySecretID has Vault forget a secret id of cluster1's.
func (w *world) destroySecretID(t *testing.T, id string) {
	t.Helper()
	if _, err := w.vault(t).Logical().Write(issuerRole+"/secret-id/destroy", map[string]any{"secret_id": id}); err != nil {
		t.Fatal(err)
	}
}

// revokeToken revokes the token of cluster1's Issuer.
func (w *world) revokeToken(t *testing.T) {
	t.Helper()
	secret, err := w.cluster(t, "cluster1").kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), mesh.TokenSecretName, metav1.GetOptions{})
	if err == nil {
		err = w.vault(t).Auth().Token().RevokeTree(string(secret.Data[mesh.TokenSecretKey]))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// anotherKey is a public key of nobody's.
func anotherKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// triggerRefresh has the schedule run now and returns the error of the run.
func (w *world) triggerRefresh(t *testing.T) error {
	t.Helper()
	_, err := w.runRefresh(t)
	return err
}

// refresh has the schedule run now, to its good end.
func (w *world) refresh(t *testing.T) procedure.RefreshResult {
	t.Helper()
	result, err := w.runRefresh(t)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func (w *world) runRefresh(t *testing.T) (result procedure.RefreshResult, err error) {
	t.Helper()
	c := w.temporal(t)
	known := map[string]bool{}
	runs := func() (fresh string) {
		page, err := c.ListWorkflow(t.Context(), &workflowservice.ListWorkflowExecutionsRequest{Query: "WorkflowType = '" + procedure.RefreshCredentials + "' AND TemporalScheduledById IS NOT NULL"})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range page.Executions {
			if !known[x.Execution.RunId] {
				known[x.Execution.RunId], fresh = true, x.Execution.WorkflowId
			}
		}
		return fresh
	}
	runs()
	schedule := c.ScheduleClient().GetHandle(t.Context(), temporalactivities.RefreshScheduleID("demo"))
	if err := schedule.Trigger(t.Context(), client.ScheduleTriggerOptions{Overlap: enums.SCHEDULE_OVERLAP_POLICY_ALLOW_ALL}); err != nil {
		t.Fatal(err)
	}
	id := ""
	eventually(t, time.Minute, func() error {
		if id = runs(); id == "" {
			return errors.New("the schedule has started nothing")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	err = c.GetWorkflow(ctx, id, "").Get(ctx, &result)
	return result, err
}

// renewLeaf asks cert-manager for a new client certificate, as cmctl renew does,
// and returns the revision of the one there is.
func (w *world) renewLeaf(t *testing.T) int {
	t.Helper()
	certificates := w.cluster(t, "cluster1").cm.CertmanagerV1().Certificates("gloo-mesh")
	revision := 0
	eventually(t, time.Minute, func() error {
		cert, err := certificates.Get(t.Context(), "relay-client-tls", metav1.GetOptions{})
		if err != nil {
			return err
		}
		revision = *cert.Status.Revision
		at := metav1.Now()
		condition := cmapi.CertificateCondition{Type: cmapi.CertificateConditionIssuing, Status: cmmeta.ConditionTrue, Reason: "ManuallyTriggered", LastTransitionTime: &at, ObservedGeneration: cert.Generation}
		kept := []cmapi.CertificateCondition{condition}
		for _, c := range cert.Status.Conditions {
			if c.Type != condition.Type {
				kept = append(kept, c)
			}
		}
		cert.Status.Conditions = kept
		_, err = certificates.UpdateStatus(t.Context(), cert, metav1.UpdateOptions{})
		return err
	})
	return revision
}

// requestFails awaits that the request for a revision does not get anywhere: the
// spoilt credential is seen to matter.
func (w *world) requestFails(t *testing.T, revision int) {
	t.Helper()
	requests := w.cluster(t, "cluster1").cm.CertmanagerV1().CertificateRequests("gloo-mesh")
	eventually(t, time.Minute, func() error {
		request, err := requests.Get(t.Context(), fmt.Sprintf("relay-client-tls-%d", revision), metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range request.Status.Conditions {
			if c.Type == cmapi.CertificateRequestConditionReady && c.Status == cmmeta.ConditionFalse && strings.Contains(c.Message, "ault") {
				return nil
			}
		}
		return fmt.Errorf("the request's conditions are %+v", request.Status.Conditions)
	})
}

// renewed awaits the client certificate of a revision.
func (w *world) renewed(t *testing.T, revision int) {
	t.Helper()
	certificates := w.cluster(t, "cluster1").cm.CertmanagerV1().Certificates("gloo-mesh")
	eventually(t, 3*time.Minute, func() error {
		cert, err := certificates.Get(t.Context(), "relay-client-tls", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if *cert.Status.Revision < revision {
			return fmt.Errorf("it is still revision %d: %+v", *cert.Status.Revision, cert.Status.Conditions)
		}
		return nil
	})
}

// putSecret writes one key of a Secret of cluster1.
func (w *world) putSecret(t *testing.T, name, key, value string) {
	t.Helper()
	secrets := w.cluster(t, "cluster1").kube.CoreV1().Secrets("gloo-mesh")
	secret, err := secrets.Get(t.Context(), name, metav1.GetOptions{})
	if err == nil {
		secret.Data[key] = []byte(value)
		_, err = secrets.Update(t.Context(), secret, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// onlySecretID is the one secret id in cluster1's Secret, under that key.
func (w *world) onlySecretID(t *testing.T, key string) string {
	t.Helper()
	secret, err := w.cluster(t, "cluster1").kube.CoreV1().Secrets("gloo-mesh").Get(t.Context(), mesh.AppRoleSecretName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(secret.Data) != 1 || len(secret.Data[key]) == 0 {
		t.Errorf("%s has %d keys, wanted is %s alone", mesh.AppRoleSecretName, len(secret.Data), key)
	}
	return string(secret.Data[key])
}

// failing are the checks that fail.
func (w *world) failing(t *testing.T) string {
	t.Helper()
	out, _, _ := w.relaypki(t, "verify", "demo")
	var failing []string
	for _, line := range strings.Split(out, "\n") {
		if strings.Contains(line, "fail") {
			failing = append(failing, line)
		}
	}
	return strings.Join(failing, "\n")
}
