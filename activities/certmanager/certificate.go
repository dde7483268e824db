package certmanager

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/shell"
	"github.com/relaypki/relaypki/internal/site"
)

// soon is when most certificates are there; what stands in the way of one, which
// takes two more questions, is asked from then on.
const soon = time.Second

// usages are those of the guide: the server's certificate is a client's too.
func usages(server bool) []cmapi.KeyUsage {
	all := []cmapi.KeyUsage{cmapi.UsageDigitalSignature, cmapi.UsageKeyEncipherment}
	if server {
		all = append(all, cmapi.UsageServerAuth)
	}
	return append(all, cmapi.UsageClientAuth)
}

// certificateFor is the Certificate that the input describes.
func certificateFor(in CertificateInput) *cmapi.Certificate {
	cert := in.Certificate
	return &cmapi.Certificate{
		TypeMeta:   metav1.TypeMeta{APIVersion: cmapi.SchemeGroupVersion.String(), Kind: cmapi.CertificateKind},
		ObjectMeta: ours(in.Mesh, in.Namespace, cert.Name),
		Spec: cmapi.CertificateSpec{
			CommonName:  cert.CommonName,
			DNSNames:    cert.DNSNames,
			SecretName:  cert.SecretName,
			Duration:    &metav1.Duration{Duration: cert.Duration.Duration},
			RenewBefore: &metav1.Duration{Duration: cert.RenewBefore.Duration},
			PrivateKey: &cmapi.CertificatePrivateKey{
				RotationPolicy: cmapi.RotationPolicyAlways,
				Algorithm:      cmapi.PrivateKeyAlgorithm(cert.KeyAlgorithm),
				Size:           cert.KeySize,
			},
			Usages:    usages(in.Server),
			IssuerRef: cmmeta.IssuerReference{Name: mesh.IssuerName, Kind: cmapi.IssuerKind, Group: "cert-manager.io"},
		},
	}
}

// ApplyCertificate applies the Certificate, waits (heartbeating) until it is
// Ready at its generation, and proves that what was asked for was issued:
// names, key, usages, lifetime, signer, and the root as ca.crt. A difference
// is a permanent Mismatch; one that never becomes Ready fails with
// cert-manager's own reasons.
func (a *Activities) ApplyCertificate(ctx context.Context, in CertificateInput) (CertificateResult, error) {
	var result CertificateResult
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return result, err
	}
	want, err := kube.Unstructured(certificateFor(in))
	if err != nil {
		return result, err
	}
	// Requests that had failed before say nothing about now: whoever runs this
	// again has done something about it.
	before, err := failedRequests(ctx, c, in.Namespace, in.Certificate.Name)
	if err != nil {
		return result, err
	}
	if err := foreignSecret(ctx, c, in); err != nil {
		return result, err
	}
	applied, err := kube.Apply(ctx, c, want, in.Mode, &result.Outcome)
	if err != nil {
		return result, err
	}
	if !in.Mode.Writes() && len(result.Changes) > 0 {
		awaitReady(c, &result.Outcome, in.Mode, "certificate", in.Namespace, in.Certificate.Name)
		return result, nil
	}
	name := kube.Name(cmapi.CertificateKind, in.Namespace, in.Certificate.Name)
	var live cmapi.Certificate
	if err := kube.Into(applied, &live); err != nil {
		return result, err
	}
	if inBackOff(&live) && !in.Mode.Writes() {
		result.Changed(procedure.Update, name, "its issuance has failed and has to be triggered")
		result.By(in.Mode, renewCommands(c, in.Namespace, in.Certificate.Name)...)
		awaitReady(c, &result.Outcome, in.Mode, "certificate", in.Namespace, in.Certificate.Name)
		return result, nil
	}
	if inBackOff(&live) {
		// cert-manager waits an hour and more after a failure.
		if err := noTimeFor(ctx, c, &live, ""); err != nil {
			return result, err
		}
		var did bool
		if live, did, err = trigger(ctx, c, live); err != nil {
			return result, err
		}
		if did {
			result.Changed(procedure.Update, name, "issuance triggered, after one that had failed")
		}
	}
	tried := attempt{c: c, failed: before, failures: attempts(&live)}

	began := time.Now()
	var ready *cmapi.Certificate
	err = await(ctx, in.Mode, &result.Outcome, func(ctx context.Context) (bool, string, error) {
		now, err := c.CertManager.CertmanagerV1().Certificates(in.Namespace).Get(ctx, in.Certificate.Name, metav1.GetOptions{})
		if err != nil {
			return false, "", kube.Error(ctx, c, "read "+name, err)
		}
		isReady, state := certificateReady(now)
		if isReady {
			ready = now
			return true, "", nil
		}
		if in.Mode.Writes() && time.Since(began) < soon && attempts(now) == tried.failures {
			return false, fmt.Sprintf("cluster %q: %s", c.Name, state), nil
		}
		state, err = tried.state(ctx, now, state)
		return false, state, err
	})
	if err != nil || ready == nil { // not yet, in a plan
		return result, err
	}
	if in.Mode == procedure.Plan && (in.RootPEM == "" || in.IntermediatePEM == "") {
		result.Detail = "Ready; compared once its CAs are there"
		return result, nil
	}
	stored, err := readIssued(ctx, c, ready)
	if err != nil {
		return result, err
	}
	leaf, problems := compareIssued(in, stored.chainPEM, stored.caPEM)
	if len(problems) > 0 {
		return result, failure.Permanent(failure.Mismatch, "cluster %q: %s was not issued as asked for: %s. %s", c.Name, name, strings.Join(problems, "; "), mismatchRemedy(in))
	}
	result.Leaf = leaf
	result.Detail = "until " + pki.Date(leaf.NotAfter)
	return result, nil
}

// attempt is an issuance that is waited for, and what had failed before it: that
// says nothing about it.
type attempt struct {
	c        *site.Cluster
	failed   map[types.UID]bool
	failures int
	// stays says what is in the Secret as long as nothing new is; it may be empty.
	stays string
}

// state says what stands in the way of a Certificate that is not Ready; an error,
// that waiting longer does not help.
func (a attempt) state(ctx context.Context, now *cmapi.Certificate, state string) (string, error) {
	request, err := currentRequest(ctx, a.c, now)
	if err != nil {
		return "", err
	}
	old := request != nil && a.failed[request.UID]
	if old {
		request = nil // about to be replaced, or to end in a back-off
	}
	reasons := fmt.Sprintf("cluster %q: %s", a.c.Name, explain(ctx, a.c, now, request, state))
	if kind, remedy := hopeless(now, request, a.failures); kind != "" && !old {
		return "", failure.Permanent(kind, "%s", sentences(reasons, remedy, a.stays))
	}
	if attempts(now) > a.failures {
		// Not again by itself for an hour: the next try of the activity triggers it.
		return "", kube.Final(failedIssuance(reasons, a.stays))
	}
	return sentences(reasons, a.stays), nil
}

// noTimeFor is the error of the issuance that has failed, where the activity has no
// time left to wait for another one: that, seen under way at the end, would hide it.
func noTimeFor(ctx context.Context, c *site.Cluster, cert *cmapi.Certificate, stays string) error {
	deadline, ok := ctx.Deadline()
	if !ok || time.Until(deadline) >= 3*soon {
		return nil
	}
	_, state := certificateReady(cert)
	request, err := currentRequest(ctx, c, cert)
	if err != nil {
		return err
	}
	return failedIssuance(fmt.Sprintf("cluster %q: %s", c.Name, explain(ctx, c, cert, request, state)), stays)
}

// failedIssuance is the error of an issuance that failed and may be tried again.
func failedIssuance(reasons, stays string) error {
	return failure.Transient(failure.Unavailable, "%s", sentences(reasons, "Put right what it says; each try has cert-manager issue again", stays))
}

// sentences joins what there is to say.
func sentences(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(part string) bool { return part == "" }), ". ")
}

// foreignSecret is a Conflict if a Certificate that is yet to be made names a
// Secret that is there already and holds something else: cert-manager would
// write over it without a word.
func foreignSecret(ctx context.Context, c *site.Cluster, in CertificateInput) error {
	secret, err := kube.Get(ctx, c, "Secret", in.Namespace, in.Certificate.SecretName)
	if err != nil || secret == nil || secret.GetAnnotations()[cmapi.CertificateNameKey] == in.Certificate.Name {
		return err
	}
	certificate, err := kube.Get(ctx, c, cmapi.CertificateKind, in.Namespace, in.Certificate.Name)
	if err != nil || certificate != nil {
		return err
	}
	return failure.Permanent(failure.Conflict, "cluster %q: %s is there and was not issued for %s, and cert-manager would write over it. It is left as it is. Delete or rename it, or give the certificate another secretName in the input; then run this again",
		c.Name, kube.Name("Secret", in.Namespace, in.Certificate.SecretName), kube.Name(cmapi.CertificateKind, in.Namespace, in.Certificate.Name))
}

func mismatchRemedy(in CertificateInput) string {
	return fmt.Sprintf("Check the role and the issuer in Vault that sign for it; cert-manager does not issue again because a CA has changed, so then renew it (cmctl renew -n %s %s) and run this again", in.Namespace, in.Certificate.Name)
}

func condition(cert *cmapi.Certificate, kind cmapi.CertificateConditionType) cmapi.CertificateCondition {
	for _, cond := range cert.Status.Conditions {
		if cond.Type == kind {
			return cond
		}
	}
	return cmapi.CertificateCondition{Type: kind, Status: cmmeta.ConditionUnknown}
}

func attempts(cert *cmapi.Certificate) int {
	if cert.Status.FailedIssuanceAttempts == nil {
		return 0
	}
	return *cert.Status.FailedIssuanceAttempts
}

// certificateReady reads the conditions of the Certificate's present generation.
func certificateReady(cert *cmapi.Certificate) (bool, string) {
	ready, issuing := condition(cert, cmapi.CertificateConditionReady), condition(cert, cmapi.CertificateConditionIssuing)
	name := kube.Name(cmapi.CertificateKind, cert.Namespace, cert.Name)
	switch {
	case issuing.Status == cmmeta.ConditionTrue:
		return false, fmt.Sprintf("%s is being issued: %s: %s", name, issuing.Reason, oneLine(issuing.Message))
	case ready.Status == cmmeta.ConditionUnknown:
		return false, name + " has no status yet"
	case ready.ObservedGeneration < cert.Generation:
		return false, name + " was changed and cert-manager has not looked at it since"
	case ready.Status != cmmeta.ConditionTrue && issuing.Reason != "":
		return false, fmt.Sprintf("%s is not Ready: %s: %s", name, issuing.Reason, oneLine(issuing.Message))
	case ready.Status != cmmeta.ConditionTrue:
		return false, fmt.Sprintf("%s is not Ready: %s: %s", name, ready.Reason, oneLine(ready.Message))
	}
	return true, ""
}

// inBackOff says that the last issuance failed and none is under way.
func inBackOff(cert *cmapi.Certificate) bool {
	return cert.Status.LastFailureTime != nil &&
		condition(cert, cmapi.CertificateConditionReady).Status != cmmeta.ConditionTrue &&
		condition(cert, cmapi.CertificateConditionIssuing).Status != cmmeta.ConditionTrue
}

// trigger starts an issuance the way "cmctl renew" does, and returns the
// Certificate as it then is. It leaves one alone that is being issued, or has
// been since it was looked at: did is then false.
func trigger(ctx context.Context, c *site.Cluster, seen cmapi.Certificate) (cert cmapi.Certificate, did bool, err error) {
	certificates := c.CertManager.CertmanagerV1().Certificates(seen.Namespace)
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		now, err := certificates.Get(ctx, seen.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if condition(now, cmapi.CertificateConditionIssuing).Status == cmmeta.ConditionTrue || issuedRevision(now) != issuedRevision(&seen) {
			cert = *now
			return nil
		}
		// In whole seconds, and strictly after the failure: cert-manager takes the
		// failed request for this issuance's otherwise, and fails it at once.
		at := metav1.Now()
		if failed := now.Status.LastFailureTime; failed != nil && at.Time.Before(failed.Add(time.Second)) {
			at = metav1.NewTime(failed.Add(time.Second))
		}
		issuing := cmapi.CertificateCondition{
			Type: cmapi.CertificateConditionIssuing, Status: cmmeta.ConditionTrue, Reason: manually,
			Message: "Certificate re-issuance manually triggered", LastTransitionTime: &at, ObservedGeneration: now.Generation,
		}
		conditions := []cmapi.CertificateCondition{issuing}
		for _, cond := range now.Status.Conditions {
			if cond.Type != cmapi.CertificateConditionIssuing {
				conditions = append(conditions, cond)
			}
		}
		now.Status.Conditions = conditions
		updated, err := certificates.UpdateStatus(ctx, now, metav1.UpdateOptions{FieldManager: site.FieldManager})
		if err == nil {
			cert, did = *updated, true
		}
		return err
	})
	return cert, did, kube.Error(ctx, c, "trigger the issuance of "+kube.Name(cmapi.CertificateKind, seen.Namespace, seen.Name), err)
}

// renewCommands do by hand what trigger does, as "cmctl renew" would if it were
// there: the API server merges the condition into those that there are.
func renewCommands(c *site.Cluster, namespace, name string) []string {
	return []string{`now="$(date -u +%FT%TZ)"`, shell.Expanded(
		kube.Kubectl(c, "-n", namespace, "apply", "--server-side", "--force-conflicts", "--field-manager="+site.FieldManager, "--subresource=status", "-f", "-"),
		fmt.Sprintf(`apiVersion: %s
kind: %s
metadata: {name: %s}
status:
  conditions:
  - {type: Issuing, status: "True", reason: %s, message: Certificate re-issuance manually triggered, lastTransitionTime: "$now"}
`, cmapi.SchemeGroupVersion, cmapi.CertificateKind, name, manually), "now")}
}

// manually is the reason that cmctl gives for an issuance.
const manually = "ManuallyTriggered"

// currentRequest is the latest CertificateRequest of the Certificate, or nil.
func currentRequest(ctx context.Context, c *site.Cluster, cert *cmapi.Certificate) (*cmapi.CertificateRequest, error) {
	requests, err := requestsOf(ctx, c, cert)
	var latest *cmapi.CertificateRequest
	for _, request := range requests {
		if latest == nil || revision(request) > revision(latest) {
			latest = request
		}
	}
	return latest, err
}

// requestsOf are the Certificate's CertificateRequests.
func requestsOf(ctx context.Context, c *site.Cluster, cert *cmapi.Certificate) ([]*cmapi.CertificateRequest, error) {
	list, err := c.CertManager.CertmanagerV1().CertificateRequests(cert.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, kube.Error(ctx, c, "list CertificateRequests in "+cert.Namespace, err)
	}
	var requests []*cmapi.CertificateRequest
	for i := range list.Items {
		if request := &list.Items[i]; metav1.IsControlledBy(request, cert) {
			requests = append(requests, request)
		}
	}
	return requests, nil
}

// failedRequests are the Certificate's requests that have failed.
func failedRequests(ctx context.Context, c *site.Cluster, namespace, certificate string) (map[types.UID]bool, error) {
	list, err := c.CertManager.CertmanagerV1().CertificateRequests(namespace).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, kube.Error(ctx, c, "list CertificateRequests in "+namespace, err)
	}
	failed := map[types.UID]bool{}
	for i := range list.Items {
		request := &list.Items[i]
		if request.Annotations[cmapi.CertificateNameKey] == certificate && request.Status.FailureTime != nil {
			failed[request.UID] = true
		}
	}
	return failed, nil
}

// issuedRevision is 0 for a Certificate that was never issued.
func issuedRevision(cert *cmapi.Certificate) int {
	if cert.Status.Revision == nil {
		return 0
	}
	return *cert.Status.Revision
}

func revision(request *cmapi.CertificateRequest) int {
	n, err := strconv.Atoi(request.Annotations[cmapi.CertificateRequestRevisionAnnotationKey])
	if err != nil {
		return 0
	}
	return n
}

func requestCondition(request *cmapi.CertificateRequest, kind cmapi.CertificateRequestConditionType) cmapi.CertificateRequestCondition {
	if request != nil {
		for _, cond := range request.Status.Conditions {
			if cond.Type == kind {
				return cond
			}
		}
	}
	return cmapi.CertificateRequestCondition{Type: kind, Status: cmmeta.ConditionUnknown}
}

// hopeless says of what kind a failure is that trying again does not cure, and
// what to do about it; "" for any other state.
func hopeless(cert *cmapi.Certificate, request *cmapi.CertificateRequest, failedBefore int) (failure.Kind, string) {
	if denied := requestCondition(request, cmapi.CertificateRequestConditionDenied); denied.Status == cmmeta.ConditionTrue {
		return failure.Denied, "An approver in that cluster has denied the request; change its policy and run this again"
	}
	if invalid := requestCondition(request, cmapi.CertificateRequestConditionInvalidRequest); invalid.Status == cmmeta.ConditionTrue {
		return failure.InvalidInput, "Correct the certificate in the mesh's spec and run this again"
	}
	message := ""
	if ready := requestCondition(request, cmapi.CertificateRequestConditionReady); ready.Reason == cmapi.CertificateRequestReasonFailed {
		message = ready.Message
	} else if issuing := condition(cert, cmapi.CertificateConditionIssuing); issuing.Status == cmmeta.ConditionFalse && attempts(cert) > failedBefore {
		message = issuing.Message
	}
	switch {
	case strings.Contains(message, "by this role"): // "... not allowed by this role"
		return failure.Denied, "Vault's role that signs for it does not allow this; correct the certificate in the mesh's spec, or restore the role by running the setup again"
	case strings.Contains(message, "Code: 403"), strings.Contains(message, "permission denied"):
		return failure.Denied, "Vault's policy for this cluster does not allow it to sign there; run the setup again, which writes the policy"
	case strings.Contains(message, "Code: 400"):
		return failure.Denied, "Vault refuses this request; correct what it says and run this again"
	case strings.Contains(message, "failed to parse certificate chain"), strings.Contains(message, "certificate chain is malformed"):
		return failure.Mismatch, "The chain that Vault returns is not one line up to the root; check manual_chain of the issuer in the relay mount"
	}
	return "", ""
}

// explain puts together what Certificate, CertificateRequest and Issuer say.
func explain(ctx context.Context, c *site.Cluster, cert *cmapi.Certificate, request *cmapi.CertificateRequest, state string) string {
	parts := []string{state}
	if request != nil {
		ready := requestCondition(request, cmapi.CertificateRequestConditionReady)
		approved := requestCondition(request, cmapi.CertificateRequestConditionApproved)
		denied := requestCondition(request, cmapi.CertificateRequestConditionDenied)
		switch {
		case denied.Status == cmmeta.ConditionTrue:
			parts = append(parts, fmt.Sprintf("CertificateRequest %s was denied: %s: %s", request.Name, denied.Reason, oneLine(denied.Message)))
		case ready.Status == cmmeta.ConditionFalse && !strings.Contains(state, oneLine(ready.Message)):
			parts = append(parts, fmt.Sprintf("CertificateRequest %s: %s: %s", request.Name, ready.Reason, oneLine(ready.Message)))
		case approved.Status != cmmeta.ConditionTrue && ready.Status != cmmeta.ConditionTrue:
			parts = append(parts, fmt.Sprintf("CertificateRequest %s is not approved yet", request.Name))
		}
	}
	issuer, err := c.CertManager.CertmanagerV1().Issuers(cert.Namespace).Get(ctx, cert.Spec.IssuerRef.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		parts = append(parts, kube.Name("Issuer", cert.Namespace, cert.Spec.IssuerRef.Name)+" is not there")
	case err == nil:
		if ready, state := issuerReady(issuer); !ready {
			parts = append(parts, state)
		}
	}
	return strings.Join(parts, "; ")
}

// issued is what is stored of a Certificate's present revision.
type issued struct {
	chainPEM, caPEM []byte
	// requested is when it was asked for; zero where that request is gone.
	requested time.Time
}

// readIssued reads the issued chain and its CA: from the CertificateRequest of the
// present revision, so that the Secret, which holds the key too, need not be
// read; from the Secret where that request is gone.
func readIssued(ctx context.Context, c *site.Cluster, cert *cmapi.Certificate) (issued, error) {
	requests, err := requestsOf(ctx, c, cert)
	if err != nil {
		return issued{}, err
	}
	for _, request := range requests {
		if cert.Status.Revision != nil && revision(request) == *cert.Status.Revision && len(request.Status.Certificate) > 0 && len(request.Status.CA) > 0 {
			return issued{chainPEM: request.Status.Certificate, caPEM: request.Status.CA, requested: request.CreationTimestamp.Time}, nil
		}
	}
	secret, err := c.Kube.CoreV1().Secrets(cert.Namespace).Get(ctx, cert.Spec.SecretName, metav1.GetOptions{})
	if err != nil {
		return issued{}, kube.Error(ctx, c, "read "+kube.Name("Secret", cert.Namespace, cert.Spec.SecretName), err)
	}
	return issued{chainPEM: secret.Data[corev1.TLSCertKey], caPEM: secret.Data[cmmeta.TLSCAKey]}, nil
}

func sorted(texts []string) []string {
	out := append([]string(nil), texts...)
	sort.Strings(out)
	return out
}
