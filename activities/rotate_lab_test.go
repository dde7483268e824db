package activities_test

import (
	"context"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/relaypki/relaypki/activities/certmanager"
	"github.com/relaypki/relaypki/activities/cluster"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

func live(t *testing.T, c *site.Cluster, name string) *cmapi.Certificate {
	t.Helper()
	cert, err := c.CertManager.CertmanagerV1().Certificates(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// begin begins an issuance as cert-manager does by itself, or cmctl.
func begin(t *testing.T, c *site.Cluster, name, reason string) {
	t.Helper()
	cert := live(t, c, name)
	now := metav1.Now()
	cert.Status.Conditions = append(cert.Status.Conditions, cmapi.CertificateCondition{
		Type: cmapi.CertificateConditionIssuing, Status: cmmeta.ConditionTrue, Reason: reason, LastTransitionTime: &now, ObservedGeneration: cert.Generation,
	})
	if _, err := c.CertManager.CertmanagerV1().Certificates(namespace).UpdateStatus(t.Context(), cert, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestLabReissue(t *testing.T) {
	w := lab(t)
	vault, c, asked := certified(t, w)
	name := asked.Certificate.Name
	must[certmanager.CertificateResult](t, w, w.certManager.ApplyCertificate, asked)
	in := func() certmanager.ReissueInput {
		return certmanager.ReissueInput{Mesh: asked.Mesh, Context: asked.Context, Namespace: namespace, Certificate: asked.Certificate,
			RootPEM: vault.rootPEM, IntermediatePEM: vault.midPEM, Mode: procedure.Apply}
	}
	// check wants so many issuances since, and a leaf of the intermediate that
	// signs now.
	revision := *live(t, c, name).Status.Revision
	check := func(what string, result certmanager.CertificateResult, issuances, changes int) {
		t.Helper()
		now := *live(t, c, name).Status.Revision
		if now != revision+issuances || len(result.Changes) != changes {
			t.Errorf("%s: %d issuances, want %d; %+v", what, now-revision, issuances, result.Changes)
		}
		revision = now
		if got := result.Leaf.AuthorityKeyID; got != pki.Hex(vault.intermediate.SubjectKeyId) {
			t.Errorf("%s: authority key id %s", what, got)
		}
		secret, err := c.Kube.CoreV1().Secrets(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if chain, err := pki.ParseChain(secret.Data[corev1.TLSCertKey]); err != nil || pki.Serial(chain[0]) != result.Leaf.Serial {
			t.Errorf("%s: the Secret has not what was proven: %v", what, err)
		}
	}
	check("of this intermediate", must[certmanager.CertificateResult](t, w, w.certManager.Reissue, in()), 0, 0)

	vault.next("intermediate g2")
	began := time.Now()
	check("of another", must[certmanager.CertificateResult](t, w, w.certManager.Reissue, in()), 1, 1)
	t.Logf("issued anew in %s", time.Since(began).Round(10*time.Millisecond))
	check("again", must[certmanager.CertificateResult](t, w, w.certManager.Reissue, in()), 0, 0)

	// A worker was killed after it had triggered the issuance.
	vault.next("intermediate g3")
	begin(t, c, name, "ManuallyTriggered")
	check("triggered before", must[certmanager.CertificateResult](t, w, w.certManager.Reissue, in()), 1, 1)

	// A rotation of leaves, of which a worker was killed when it was done.
	leaves := in()
	leaves.Since = time.Now()
	check("since", must[certmanager.CertificateResult](t, w, w.certManager.Reissue, leaves), 1, 1)
	check("since, again", must[certmanager.CertificateResult](t, w, w.certManager.Reissue, leaves), 0, 0)

	// cert-manager renews by itself, and Vault has signed with the previous
	// intermediate when the role moves.
	vault.holding(true)
	begin(t, c, name, "Renewing")
	<-vault.signed
	vault.next("intermediate g4")
	type answer struct {
		result certmanager.CertificateResult
		err    error
	}
	answered := make(chan answer, 1)
	waits := make(chan string, 100)
	go func() {
		result, err := listened[certmanager.CertificateResult](w, w.certManager.Reissue, in(), waits)
		answered <- answer{result, err}
	}()
	select {
	case early := <-answered:
		t.Errorf("ended while a renewal is under way: %+v, %v", early.result, early.err)
	case state := <-waits:
		if !strings.Contains(state, "being issued: Renewing") {
			t.Errorf("waits for %q", state)
		}
	}
	vault.holding(false)
	if end := <-answered; end.err != nil {
		t.Error(end.err)
	} else {
		check("with a renewal in flight", end.result, 2, 1)
	}

	// Vault refuses: the certificate before stays.
	before := live(t, c, name)
	vault.next("intermediate g5")
	vault.allow("cluster2")
	if _, err := settled[certmanager.CertificateResult](t, w, w.certManager.Reissue, in()); failure.KindOf(err) != failure.Denied || !strings.Contains(failure.Message(err), "stays in its Secret") {
		t.Errorf("refused: %v", err)
	}
	if now := live(t, c, name); *now.Status.Revision != *before.Status.Revision {
		t.Error("refused, and yet issued")
	}
	vault.allow("cluster1")
	check("in back-off", must[certmanager.CertificateResult](t, w, w.certManager.Reissue, in()), 1, 1)
}

func TestLabRestart(t *testing.T) {
	w := lab(t)
	c, err := w.clients.Cluster("cluster1")
	if err != nil {
		t.Fatal(err)
	}
	secret := func(value string) {
		t.Helper()
		data := []byte(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"` + mesh.RootSecretName + `","labels":{"app.kubernetes.io/managed-by":"relaypki","relaypki.io/mesh":"labtest"}},"stringData":{"ca.crt":"` + value + `"}}`)
		if _, err := c.Kube.CoreV1().Secrets(namespace).Patch(t.Context(), mesh.RootSecretName, types.ApplyPatchType, data, metav1.PatchOptions{FieldManager: site.FieldManager, Force: new(true)}); err != nil {
			t.Fatal(err)
		}
	}
	secret("one")
	labels := map[string]string{"app": "restarted"}
	two := int32(2)
	deployments := c.Kube.AppsV1().Deployments(namespace)
	made, err := deployments.Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "restarted-"},
		Spec: appsv1.DeploymentSpec{Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "restarted"}}},
		}},
	}, metav1.CreateOptions{FieldManager: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := deployments.Delete(context.Background(), made.Name, metav1.DeleteOptions{}); err != nil {
			t.Log(err)
		}
	})
	in := cluster.RestartInput{Context: "cluster1", Namespace: namespace, Deployment: made.Name, Secrets: []string{mesh.RootSecretName}, Mode: procedure.Apply}
	generation := func() int64 {
		t.Helper()
		d, err := deployments.Get(t.Context(), made.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return d.Generation
	}
	// Its Pods may be of the very second of the Secret.
	must[procedure.Outcome](t, w, w.cluster.RestartDeployment, in)
	first := generation()
	if again := must[procedure.Outcome](t, w, w.cluster.RestartDeployment, in); len(again.Changes) > 0 || generation() != first {
		t.Errorf("again: %+v", again)
	}
	secret("one") // the same is no write
	if again := must[procedure.Outcome](t, w, w.cluster.RestartDeployment, in); len(again.Changes) > 0 || generation() != first {
		t.Errorf("the same written: %+v", again)
	}
	secret("two")
	began := time.Now()
	out := must[procedure.Outcome](t, w, w.cluster.RestartDeployment, in)
	if len(out.Changes) != 1 || generation() != first+1 {
		t.Errorf("written: %+v, %d restarts", out, generation()-first)
	}
	t.Logf("restarted in %s: %s", time.Since(began).Round(10*time.Millisecond), out.Detail)
	if again := must[procedure.Outcome](t, w, w.cluster.RestartDeployment, in); len(again.Changes) > 0 || generation() != first+1 {
		t.Errorf("again: %+v", again)
	}
	in.Deployment = "not-there"
	if _, err := call[procedure.Outcome](w, w.cluster.RestartDeployment, in); failure.KindOf(err) != failure.Preflight {
		t.Error(err)
	}
}
