package certmanager

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/shell"
	"github.com/relaypki/relaypki/internal/site"
)

// ReissueInput asks for a certificate to be issued anew.
type ReissueInput struct {
	Mesh        string           `json:"mesh"`
	Context     string           `json:"context"`
	Namespace   string           `json:"namespace"`
	Certificate mesh.Certificate `json:"certificate"`
	// Server and Shared are as in CertificateInput.
	Server bool `json:"server,omitempty"`
	Shared bool `json:"shared,omitempty"`
	// RootPEM and IntermediatePEM are the CAs that it is to be under.
	RootPEM         string `json:"rootPEM"`
	IntermediatePEM string `json:"intermediatePEM"`
	// BridgePEM is, in a rotation of the root, what is to be above the intermediate
	// in the chain; empty for none. RootPEM is then what ca.crt is to be: a root, or
	// the bridge itself.
	BridgePEM string `json:"bridgePEM,omitempty"`
	// Since is, in a rotation of leaves, when it began: a certificate that was
	// requested before is issued anew also if it is of the right CA. Zero: one
	// of the right CA is left alone.
	Since time.Time      `json:"since,omitzero"`
	Mode  procedure.Mode `json:"mode"`
}

// Reissue has cert-manager issue the certificate anew, as "cmctl renew" does, and
// proves it: a later revision, Ready at its generation, another serial and key,
// the same names, the intermediate's key identifier, the bridge above it if there
// is to be one and nothing if not, and RootPEM in ca.crt. What
// was done before is found and left: an issuance that is under way, whoever has
// begun it, is waited for, and another triggered only if what comes of it is not
// what is wanted. A difference after an issuance of ours is a permanent Mismatch.
// Until there is a new one, the certificate before it stays in the Secret.
func (a *Activities) Reissue(ctx context.Context, in ReissueInput) (CertificateResult, error) {
	var result CertificateResult
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return result, err
	}
	if in.Mode.Writes() && (in.RootPEM == "" || in.IntermediatePEM == "") {
		return result, failure.Permanent(failure.InvalidInput, "the certificate %s of cluster %q is to be issued anew, and it is not said under which CAs", in.Certificate.Name, c.Name)
	}
	r := &reissue{in: in, c: c, name: kube.Name(cmapi.CertificateKind, in.Namespace, in.Certificate.Name)}
	if !in.Mode.Writes() {
		return r.would(ctx)
	}
	err = kube.Await(ctx, r.look)
	return r.result, err
}

// reissue is one issuance that is wanted. What it knows from one look to the next
// is lost with the worker: the next try looks again.
type reissue struct {
	in   ReissueInput
	c    *site.Cluster
	name string

	looked bool
	// before is what was stored at the first look, or when an issuance was
	// triggered, and its revision.
	before         *x509.Certificate
	beforeRevision int
	// tried is the issuance that this try has triggered, if it has; ours says that
	// it is still under way.
	tried           attempt
	triggered, ours bool
	// manual says that somebody has triggered one, this try or one before it.
	manual bool
	// right is the state at which all was as wanted, to be seen twice.
	right string

	result CertificateResult
}

// asked is what the certificate has to be like.
func (in ReissueInput) asked() CertificateInput {
	return CertificateInput{
		Mesh: in.Mesh, Context: in.Context, Namespace: in.Namespace, Certificate: in.Certificate,
		Server: in.Server, Shared: in.Shared, RootPEM: in.RootPEM, IntermediatePEM: in.IntermediatePEM, BridgePEM: in.BridgePEM, Mode: in.Mode,
	}
}

// look is one look, and a trigger if that is what it takes.
func (r *reissue) look(ctx context.Context) (bool, string, error) {
	now, stored, err := r.read(ctx)
	if err != nil {
		return false, "", err
	}
	if issuing := condition(now, cmapi.CertificateConditionIssuing); issuing.Status == cmmeta.ConditionTrue && issuing.Reason == manually {
		r.manual = true
	}
	ready, state := certificateReady(now)
	if r.ours && ready && attempts(now) > r.tried.failures {
		// The certificate before it is still good, so cert-manager calls it Ready.
		issuing := condition(now, cmapi.CertificateConditionIssuing)
		ready, state = false, fmt.Sprintf("%s was not issued anew: %s: %s", r.name, issuing.Reason, oneLine(issuing.Message))
	}
	switch {
	case !ready && r.ours:
		r.right = ""
		state, err := r.tried.state(ctx, now, state)
		return false, state, err
	case !ready && !inBackOff(now):
		r.right = ""
		state, err := r.others(ctx, now, state)
		return false, state, err
	case ready && r.ours && issuedRevision(now) <= r.beforeRevision:
		return false, fmt.Sprintf("cluster %q: %s is Ready and still of revision %d. %s", r.c.Name, r.name, r.beforeRevision, r.tried.stays), nil
	}

	leaf, problems := compareIssued(r.in.asked(), stored.chainPEM, stored.caPEM)
	anew := issuedRevision(now) > r.beforeRevision
	if anew && len(problems) == 0 {
		problems = sameAsBefore(r.before, stored.chainPEM)
	}
	switch {
	case r.ours && len(problems) > 0:
		return false, "", failure.Permanent(failure.Mismatch, "cluster %q: %s was issued anew, but not as it should be: %s. See which issuer the role in Vault names that signs for it (issuer_ref), and run this again",
			r.c.Name, r.name, strings.Join(problems, "; "))
	case !ready, len(problems) > 0, !(anew && r.triggered) && !requestedSince(stored, r.in.Since):
		return r.trigger(ctx, now, stored)
	}
	// An issuance from before may begin to be seen in this very moment, and end
	// with what is not wanted.
	r.ours = false
	if r.right != now.ResourceVersion {
		r.right = now.ResourceVersion
		return false, fmt.Sprintf("cluster %q: %s is as it should be, and is looked at once more", r.c.Name, r.name), nil
	}
	r.result.Leaf = leaf
	r.result.Detail = "until " + pki.Date(leaf.NotAfter)
	if r.manual {
		r.result.Changed(procedure.Update, r.name, "issued anew, serial "+leaf.Serial)
	}
	return true, "", nil
}

// read reads the Certificate and what is stored of it, which is nothing where it
// was never issued.
func (r *reissue) read(ctx context.Context) (*cmapi.Certificate, issued, error) {
	now, err := r.c.CertManager.CertmanagerV1().Certificates(r.in.Namespace).Get(ctx, r.in.Certificate.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && !kube.KindMissing(err) {
		return nil, issued{}, failure.Permanent(failure.Preflight, "cluster %q: %s is not there, so there is nothing to issue anew. Run the setup again, which applies it", r.c.Name, r.name)
	}
	if err != nil {
		return nil, issued{}, kube.Error(ctx, r.c, "read "+r.name, err)
	}
	stored, err := readIssued(ctx, r.c, now)
	if err != nil && failure.KindOf(err) != failure.NotReady {
		return nil, issued{}, err
	}
	if !r.looked {
		r.looked = true
		r.remember(now, stored)
	}
	return now, stored, nil
}

// remember keeps what is stored before an issuance.
func (r *reissue) remember(now *cmapi.Certificate, stored issued) {
	r.before, r.beforeRevision = nil, issuedRevision(now)
	r.tried.stays = "There is no certificate yet"
	if chain, err := pki.ParseChain(stored.chainPEM); err == nil {
		r.before = chain[0]
		r.tried.stays = fmt.Sprintf("The certificate of serial %s, good until %s, stays in its Secret", pki.Serial(r.before), pki.Date(r.before.NotAfter))
	}
}

// others says what an issuance waits for that somebody else has begun, or a try
// before this one. That it fails is no answer yet: ours follows.
func (r *reissue) others(ctx context.Context, now *cmapi.Certificate, state string) (string, error) {
	request, err := currentRequest(ctx, r.c, now)
	if err != nil {
		return "", err
	}
	return sentences(fmt.Sprintf("cluster %q: %s", r.c.Name, explain(ctx, r.c, now, request, state)), r.tried.stays), nil
}

// trigger begins an issuance.
func (r *reissue) trigger(ctx context.Context, now *cmapi.Certificate, stored issued) (bool, string, error) {
	r.right = ""
	if key := now.Spec.PrivateKey; key != nil && key.RotationPolicy == cmapi.RotationPolicyNever {
		return false, "", failure.Permanent(failure.Mismatch, "cluster %q: %s keeps its private key (privateKey.rotationPolicy is %s), so that a new certificate would be for the old key. Nothing was done. Set it to %s, as the setup does, and run this again",
			r.c.Name, r.name, cmapi.RotationPolicyNever, cmapi.RotationPolicyAlways)
	}
	// Kubernetes dates in whole seconds: a request made in the second in which the
	// rotation began would look like one from before.
	if left := time.Until(r.in.Since.Truncate(time.Second).Add(time.Second)); left > 0 && left <= time.Second {
		return false, fmt.Sprintf("cluster %q: %s is issued anew in the next second", r.c.Name, r.name), nil
	}
	failed, err := failedRequests(ctx, r.c, r.in.Namespace, r.in.Certificate.Name)
	if err != nil {
		return false, "", err
	}
	r.tried.c, r.tried.failed, r.tried.failures = r.c, failed, attempts(now)
	r.remember(now, stored)
	if inBackOff(now) {
		if err := noTimeFor(ctx, r.c, now, r.tried.stays); err != nil {
			return false, "", kube.Final(err)
		}
	}
	_, did, err := trigger(ctx, r.c, *now)
	if err != nil {
		return false, "", err
	}
	if did {
		r.ours, r.triggered, r.manual = true, true, true
	}
	return false, fmt.Sprintf("cluster %q: the issuance of %s is triggered. %s", r.c.Name, r.name, r.tried.stays), nil
}

// would says what Apply would do, which waits for nothing.
func (r *reissue) would(ctx context.Context) (CertificateResult, error) {
	_, stored, err := r.read(ctx)
	if err != nil {
		return r.result, err
	}
	var why string
	if r.in.RootPEM == "" || r.in.IntermediatePEM == "" {
		why = "to be issued anew once its CAs are there"
	} else {
		leaf, problems := compareIssued(r.in.asked(), stored.chainPEM, stored.caPEM)
		r.result.Leaf = leaf
		switch {
		case len(problems) > 0:
			why = strings.Join(problems, "; ")
		case !requestedSince(stored, r.in.Since):
			why = "it was requested before " + pki.Date(r.in.Since)
		}
	}
	if why == "" {
		r.result.Detail = "until " + pki.Date(r.result.Leaf.NotAfter)
		return r.result, nil
	}
	r.result.Changed(procedure.Update, r.name, why)
	r.result.By(r.in.Mode, r.commands()...)
	return r.result, nil
}

// commands issue it anew by hand, also more than once in one script. What is under
// way already may be what Vault gave before the script changed that, so it is waited
// for first. Ready says nothing: it is that all the while, with the certificate
// before it; so the revision is looked at.
func (r *reissue) commands() []string {
	certificate := r.in.Certificate.Name
	status := "issued() { " + kube.Kubectl(r.c, "-n", r.in.Namespace, "get", "certificate/"+certificate) + ` -o "jsonpath={.status.$1}"; }`
	wait := func(until, what string) string {
		return fmt.Sprintf(`SECONDS=0; until %s; do sleep 1; [ "$SECONDS" -lt 300 ] || { echo %s >&2; exit 1; }; done`, until, shell.Quote(fmt.Sprintf("cluster %s: %s %s", r.c.Name, r.name, what)))
	}
	commands := []string{status,
		wait(`[ "$(issued 'conditions[?(@.type=="Issuing")].status')" != True ]`, "is still being issued"),
		`revision="$(issued revision)"`}
	commands = append(commands, renewCommands(r.c, r.in.Namespace, certificate)...)
	return append(commands, wait(`[ "$(issued revision)" -gt "$revision" ]`, "was not issued anew"))
}

// backdating is by how much Vault dates a certificate back (not_before_duration).
const backdating = 30 * time.Second

// requestedSince says whether the certificate was requested at that time or
// later; any was since the zero time. Where the request is gone, it is taken to
// be of when Vault signed.
func requestedSince(stored issued, since time.Time) bool {
	requested := stored.requested
	if requested.IsZero() {
		chain, err := pki.ParseChain(stored.chainPEM)
		if err != nil {
			return since.IsZero()
		}
		requested = chain[0].NotBefore.Add(backdating)
	}
	return !requested.Before(since)
}

// sameAsBefore is what a new certificate must not share with the one before it.
func sameAsBefore(before *x509.Certificate, chainPEM []byte) []string {
	chain, err := pki.ParseChain(chainPEM)
	if err != nil || before == nil {
		return nil
	}
	var problems []string
	if chain[0].SerialNumber.Cmp(before.SerialNumber) == 0 {
		problems = append(problems, "it is the certificate from before, serial "+pki.Serial(before))
	}
	if pki.SameKey(chain[0], before) {
		problems = append(problems, "it is for the key from before")
	}
	return problems
}
