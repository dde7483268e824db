package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/activity"
	coordination "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// holder is who holds a lock: a chain of runs of one workflow.
type holder struct{ namespace, workflow, firstRun string }

// parseHolder reads "<temporal namespace>/<workflow id>/<first run id>". A
// workflow id may contain slashes, the other two do not.
func parseHolder(text string) (holder, bool) {
	first, last := strings.Index(text, "/"), strings.LastIndex(text, "/")
	if first <= 0 || last <= first+1 || last == len(text)-1 {
		return holder{}, false
	}
	return holder{text[:first], text[first+1 : last], text[last+1:]}, true
}

// lockDecision is what to do about a lock.
type lockDecision int

const (
	lockTake     lockDecision = iota // nobody holds it
	lockHeld                         // we hold it already
	lockAskOwner                     // somebody else does: is that run still there?
	lockForeign                      // its holder is not one of ours to ask about
)

func decideLock(current, ours string) lockDecision {
	switch {
	case current == "":
		return lockTake
	case current == ours:
		return lockHeld
	}
	if _, ok := parseHolder(current); !ok {
		return lockForeign
	}
	return lockAskOwner
}

// AcquireLock takes the lock, also from a holder whose workflow is no longer
// running (asked of Temporal), and then says so in the outcome's detail. One that is
// held is a permanent Locked error that names the other run. The lock itself
// is not a change of the outcome.
func (a *Activities) AcquireLock(ctx context.Context, in LockInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	if _, ok := parseHolder(in.Holder); !ok {
		return out, failure.Permanent(failure.InvalidInput, "lock holder %q is not <temporal namespace>/<workflow id>/<first run id>", in.Holder)
	}
	name := kube.Name("Lease", in.Namespace, in.Lease)
	leases := c.Kube.CoordinationV1().Leases(in.Namespace)
	live, err := leases.Get(ctx, in.Lease, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		lease := &coordination.Lease{ObjectMeta: metav1.ObjectMeta{Name: in.Lease, Namespace: in.Namespace, Labels: kube.Labels("")}}
		take(lease, in.Holder)
		if _, err := leases.Create(ctx, lease, metav1.CreateOptions{FieldManager: site.FieldManager}); err != nil {
			return out, kube.Error(ctx, c, "create "+name, err)
		}
		out.Detail = "lock taken"
		return out, nil
	}
	if err != nil {
		return out, kube.Error(ctx, c, "read "+name, err)
	}
	current := ""
	if live.Spec.HolderIdentity != nil {
		current = *live.Spec.HolderIdentity
	}
	switch decideLock(current, in.Holder) {
	case lockHeld:
		out.Detail = "lock held"
		return out, nil
	case lockForeign:
		return out, failure.Permanent(failure.Locked, "cluster %q: %s is held by %q, which is no run of relaypki. When that is over, delete the Lease and run this again", c.Name, name, current)
	case lockAskOwner:
		other, _ := parseHolder(current)
		running, err := a.isRunning(ctx, other)
		if err != nil {
			return out, failure.Transient(failure.Unavailable, "cannot ask Temporal whether workflow %q, which holds %s, is still running: %v", other.workflow, name, err)
		}
		if running {
			return out, failure.Permanent(failure.Locked, "cluster %q: %s is held by workflow %q (first run %s, Temporal namespace %s), which is running. Wait for it, or end it, and run this again",
				c.Name, name, other.workflow, other.firstRun, other.namespace)
		}
		out.Detail = fmt.Sprintf("lock taken over from workflow %s, which is no longer running", other.workflow)
	case lockTake:
		out.Detail = "lock taken"
	}
	// The object still has the resourceVersion that was read: of two that take
	// over at once, one fails here and asks again.
	take(live, in.Holder)
	if _, err := leases.Update(ctx, live, metav1.UpdateOptions{FieldManager: site.FieldManager}); err != nil {
		return out, kube.Error(ctx, c, "update "+name, err)
	}
	return out, nil
}

// LockHolder is the workflow, still running, that holds the lock; empty if it
// is free. Nothing is changed.
func (a *Activities) LockHolder(ctx context.Context, in LockInput) (string, error) {
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return "", err
	}
	name := kube.Name("Lease", in.Namespace, in.Lease)
	live, err := c.Kube.CoordinationV1().Leases(in.Namespace).Get(ctx, in.Lease, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", kube.Error(ctx, c, "read "+name, err)
	}
	current := ""
	if live.Spec.HolderIdentity != nil {
		current = *live.Spec.HolderIdentity
	}
	other, ok := parseHolder(current)
	if !ok {
		return current, nil // free, or held by what is no run of ours
	}
	running, err := a.isRunning(ctx, other)
	switch {
	case err != nil:
		return "", failure.Transient(failure.Unavailable, "cannot ask Temporal whether workflow %q, which holds %s, is still running: %v", other.workflow, name, err)
	case !running:
		return "", nil
	}
	return other.workflow, nil
}

func take(lease *coordination.Lease, by string) {
	now := metav1.NewMicroTime(time.Now())
	transitions := int32(0)
	if lease.Spec.LeaseTransitions != nil {
		transitions = *lease.Spec.LeaseTransitions + 1
	}
	lease.Spec.HolderIdentity = &by
	lease.Spec.AcquireTime, lease.Spec.RenewTime = &now, &now
	lease.Spec.LeaseTransitions = &transitions
}

// ReleaseLock gives the lock back if it is still ours.
func (a *Activities) ReleaseLock(ctx context.Context, in LockInput) error {
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return err
	}
	name := kube.Name("Lease", in.Namespace, in.Lease)
	leases := c.Kube.CoordinationV1().Leases(in.Namespace)
	live, err := leases.Get(ctx, in.Lease, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return kube.Error(ctx, c, "read "+name, err)
	}
	if live.Spec.HolderIdentity == nil || *live.Spec.HolderIdentity != in.Holder {
		return nil
	}
	err = leases.Delete(ctx, in.Lease, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &live.UID, ResourceVersion: &live.ResourceVersion}})
	if err != nil && !apierrors.IsNotFound(err) {
		return kube.Error(ctx, c, "delete "+name, err)
	}
	return nil
}

func (a *Activities) isRunning(ctx context.Context, h holder) (bool, error) {
	if a.running != nil {
		return a.running(ctx, h)
	}
	// By the service, since the holder's namespace need not be the worker's.
	answer, err := activity.GetClient(ctx).WorkflowService().DescribeWorkflowExecution(ctx, &workflowservice.DescribeWorkflowExecutionRequest{
		Namespace: h.namespace,
		Execution: &commonpb.WorkflowExecution{WorkflowId: h.workflow},
	})
	var notFound *serviceerror.NotFound
	var noNamespace *serviceerror.NamespaceNotFound
	if errors.As(err, &notFound) || errors.As(err, &noNamespace) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	info := answer.GetWorkflowExecutionInfo()
	return alive(info.GetStatus(), info.GetFirstRunId(), h), nil
}

// alive says whether the latest run of a workflow id belongs to the holder and
// has not ended. Another chain under the same id means that the holder's is
// over: one id has at most one open run. An old server does not say which chain
// it is; an open run is then taken for the holder's.
func alive(status enums.WorkflowExecutionStatus, firstRun string, h holder) bool {
	open := status == enums.WORKFLOW_EXECUTION_STATUS_RUNNING || status == enums.WORKFLOW_EXECUTION_STATUS_PAUSED
	return open && (firstRun == h.firstRun || firstRun == "")
}
