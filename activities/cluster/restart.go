package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// RestartInput names a Deployment that reads the Secrets at its start alone.
type RestartInput struct {
	Context    string   `json:"context"`
	Namespace  string   `json:"namespace"`
	Deployment string   `json:"deployment"`
	Secrets    []string `json:"secrets"`
	// Rewritten is, in a look ahead, that the Secrets will be written before this.
	Rewritten bool           `json:"rewritten,omitempty"`
	Mode      procedure.Mode `json:"mode"`
}

// RestartDeployment restarts a Deployment, as "kubectl rollout restart" does,
// unless all its Pods were created after the last write to each of the Secrets,
// and waits until they are. When a container started says nothing: in an old Pod
// it may still be given the old Secret. A restart that is under way since that
// write is waited for, whoever has begun it. A Deployment or Secret that is not
// there is a permanent Preflight error.
func (a *Activities) RestartDeployment(ctx context.Context, in RestartInput) (procedure.Outcome, error) {
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return procedure.Outcome{}, err
	}
	secrets, err := metadata.NewForConfig(c.REST)
	if err != nil {
		return procedure.Outcome{}, failure.Permanent(failure.Preflight, "cluster %q: %v", c.Name, err)
	}
	r := &restart{in: in, c: c, secrets: secrets, name: kube.Name("Deployment", in.Namespace, in.Deployment)}
	if !in.Mode.Writes() {
		return r.would(ctx)
	}
	err = kube.Await(ctx, r.look)
	return r.out, err
}

// restart is one Deployment that is to have loaded its Secrets.
type restart struct {
	in   RestartInput
	c    *site.Cluster
	name string
	// secrets reads of Secrets when they were written, and not what is in them.
	secrets metadata.Interface

	// written is the last write that was seen, by the API server's clock, and seen
	// when that was, by ours.
	written write
	seen    time.Time
	// restarted is the write for which this try has restarted the Deployment.
	restarted write

	out procedure.Outcome
}

// write is the last write to any of the Secrets.
type write struct {
	secret string
	at     time.Time
}

// look is one look, and a restart if that is what it takes.
func (r *restart) look(ctx context.Context) (bool, string, error) {
	d, pods, err := r.read(ctx)
	if err != nil {
		return false, "", err
	}
	before, ending := from(pods, r.written.at)
	rolledOut, state := kube.Available(d)
	switch {
	case len(before)+len(ending) == 0 && rolledOut:
		r.out.Detail = fmt.Sprintf("%d Pods, created after the last write to %s", len(pods), r.written.secret)
		return true, "", nil
	case len(before) == 0 && rolledOut:
		return false, fmt.Sprintf("cluster %q: %s: Pod %s is from before the last write to %s and is still to end", r.c.Name, r.name, ending[0], r.written.secret), nil
	case !rolledOut && (len(before) == 0 || !observed(d) || restartedSince(d, r.written.at)):
		if trouble := kube.PodTrouble(ctx, r.c, d); trouble != "" {
			state += "; " + trouble
		}
		return false, fmt.Sprintf("cluster %q: %s", r.c.Name, state), nil
	case d.Spec.Paused:
		return false, "", failure.Permanent(failure.Preflight, "cluster %q: %s is paused, so that a restart would do nothing. Resume it (kubectl -n %s rollout resume deployment/%s) and run this again",
			r.c.Name, r.name, r.in.Namespace, r.in.Deployment)
	case r.restarted == r.written:
		return false, "", kube.Final(failure.Transient(failure.Unavailable, "cluster %q: %s was restarted, and its Pod %s is dated before that, at the last write to %s or earlier: the clocks of that cluster's API servers differ. It is restarted once more",
			r.c.Name, r.name, before[0], r.written.secret))
	case time.Since(r.seen) < kube.Resolution:
		// What is created within the second of the write could be from before it.
		return false, fmt.Sprintf("cluster %q: %s is restarted in the next second", r.c.Name, r.name), nil
	}
	if err := r.restart(ctx, d); err != nil {
		return false, "", err
	}
	return false, fmt.Sprintf("cluster %q: %s is being restarted", r.c.Name, r.name), nil
}

// read reads the Deployment, those of its Pods in which a process may be, and the
// last write to the Secrets.
func (r *restart) read(ctx context.Context) (*appsv1.Deployment, []corev1.Pod, error) {
	written, err := r.lastWrite(ctx)
	if err != nil {
		return nil, nil, err
	}
	if written != r.written {
		r.written, r.seen = written, time.Now()
	}
	d, err := r.c.Kube.AppsV1().Deployments(r.in.Namespace).Get(ctx, r.in.Deployment, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil, failure.Permanent(failure.Preflight, "cluster %q: %s is not there, which reads its Secrets at its start alone. If something else reads them there (gloo.install is false), it cannot be restarted from here: set its reload to \"hot\" in the mesh's spec if it reads changed Secrets by itself, or if somebody sees to its restarts; then run this again",
			r.c.Name, r.name)
	}
	if err != nil {
		return nil, nil, kube.Error(ctx, r.c, "read "+r.name, err)
	}
	list, err := r.c.Kube.CoreV1().Pods(r.in.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
	if err != nil {
		return nil, nil, kube.Error(ctx, r.c, "list the Pods of "+r.name, err)
	}
	var pods []corev1.Pod
	for _, pod := range list.Items {
		if pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			pods = append(pods, pod)
		}
	}
	return d, pods, nil
}

// lastWrite is the last write to any of the Secrets, as who wrote what in it says.
func (r *restart) lastWrite(ctx context.Context) (write, error) {
	var last write
	for _, secret := range r.in.Secrets {
		name := kube.Name("Secret", r.in.Namespace, secret)
		live, err := r.secrets.Resource(corev1.SchemeGroupVersion.WithResource("secrets")).Namespace(r.in.Namespace).Get(ctx, secret, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return last, failure.Permanent(failure.Preflight, "cluster %q: %s is missing, which %s reads. Run the setup again, which makes it", r.c.Name, name, r.name)
		}
		if err != nil {
			return last, kube.Error(ctx, r.c, "read "+name, err)
		}
		if at := kube.WrittenAt(live); at.After(last.at) {
			last = write{secret: name, at: at}
		}
	}
	return last, nil
}

// from are the Pods that may have been given what was there before the write, by
// name, and apart from them those that are on their way out.
func from(pods []corev1.Pod, written time.Time) (before, ending []string) {
	for _, pod := range pods {
		switch {
		case !pod.CreationTimestamp.Time.Before(written.Add(kube.Resolution)):
		case pod.DeletionTimestamp != nil:
			ending = append(ending, pod.Name)
		default:
			before = append(before, pod.Name)
		}
	}
	return before, ending
}

func observed(d *appsv1.Deployment) bool { return d.Status.ObservedGeneration >= d.Generation }

// restartedAt is the annotation by which "kubectl rollout restart" works.
const restartedAt = "kubectl.kubernetes.io/restartedAt"

// restartedSince says whether somebody has restarted the Deployment since. The time
// is of the clock of whoever did.
func restartedSince(d *appsv1.Deployment, written time.Time) bool {
	at, err := time.Parse(time.RFC3339, d.Spec.Template.Annotations[restartedAt])
	return err == nil && at.After(written)
}

// restart restarts the Deployment, unless it has changed since it was read.
func (r *restart) restart(ctx context.Context, d *appsv1.Deployment) error {
	at := time.Now()
	if next := r.written.at.Add(kube.Resolution); at.Before(next) {
		at = next // our clock is behind, and whoever comes next is to see that it was since
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": d.ResourceVersion},
		"spec":     map[string]any{"template": map[string]any{"metadata": map[string]any{"annotations": map[string]any{restartedAt: at.UTC().Format(time.RFC3339)}}}},
	})
	if err != nil {
		return failure.Permanent(failure.InvalidInput, "cluster %q: the restart of %s: %v", r.c.Name, r.name, err)
	}
	_, err = r.c.Kube.AppsV1().Deployments(d.Namespace).Patch(ctx, d.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: site.FieldManager})
	if err != nil {
		return kube.Error(ctx, r.c, "restart "+r.name, err)
	}
	r.restarted = r.written
	r.out.Changed(procedure.Update, r.name, "restarted, as its Pods were from before the last write to "+r.written.secret)
	return nil
}

// would says what Apply would do, which waits for nothing.
func (r *restart) would(ctx context.Context) (procedure.Outcome, error) {
	d, pods, err := r.read(ctx)
	if err != nil {
		return r.out, err
	}
	before, _ := from(pods, r.written.at)
	rolledOut, _ := kube.Available(d)
	switch {
	case r.in.Rewritten:
		r.out.Changed(procedure.Update, r.name, "to be restarted once its Secrets are written anew")
	case len(before) == 0 || !rolledOut && restartedSince(d, r.written.at):
		r.out.Detail = fmt.Sprintf("%d Pods, none to be restarted", len(pods))
		return r.out, nil
	default:
		r.out.Changed(procedure.Update, r.name, fmt.Sprintf("to be restarted: %s from before the last write to %s", strings.Join(before, ", "), r.written.secret))
	}
	deployment := "deployment/" + r.in.Deployment
	r.out.By(r.in.Mode,
		kube.Kubectl(r.c, "-n", r.in.Namespace, "rollout", "restart", deployment),
		kube.Kubectl(r.c, "-n", r.in.Namespace, "rollout", "status", "--timeout=5m", deployment))
	return r.out, nil
}
