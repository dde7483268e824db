package podhost

import (
	"fmt"
	"hash/fnv"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// containerStatus is what is known of a Pod's process.
type containerStatus struct {
	podIP    string
	restarts int32
	state    corev1.ContainerState
	last     *corev1.ContainerStateTerminated
	ready    bool
	since    metav1.Time // of the last change of ready
	started  *metav1.Time
}

func (s *containerStatus) setReady(ready bool) {
	if s.ready != ready {
		s.ready, s.since = ready, metav1.Now()
	}
}

func (s *containerStatus) running(since metav1.Time) {
	s.state = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: since}}
	if s.started == nil {
		s.started = &since
	}
	s.setReady(false)
}

func (s *containerStatus) waiting(reason, message string) {
	s.state = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	s.setReady(false)
}

// deniedBy says that a Pod's object says it is not ready, although it is.
func (s *containerStatus) deniedBy(pod *corev1.Pod) bool {
	return s.ready && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status != corev1.ConditionTrue
	})
}

// pod is the status of the Pod. Containers other than the one with the process
// are as simulated ones are: running.
func (s *containerStatus) pod(pod *corev1.Pod, container string) corev1.PodStatus {
	condition := func(kind corev1.PodConditionType, holds bool, since metav1.Time) corev1.PodCondition {
		c := corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: since}
		if !holds {
			c.Status, c.Reason = corev1.ConditionFalse, "ContainersNotReady"
			c.Message = fmt.Sprintf("containers with unready status: [%s]", container)
		}
		return c
	}
	begun := s.since
	if s.started != nil {
		begun = *s.started
	}
	status := corev1.PodStatus{
		Phase:     corev1.PodRunning,
		HostIP:    "127.0.0.1",
		HostIPs:   []corev1.HostIP{{IP: "127.0.0.1"}},
		PodIP:     s.podIP,
		PodIPs:    []corev1.PodIP{{IP: s.podIP}},
		StartTime: &begun,
		Conditions: []corev1.PodCondition{
			condition(corev1.PodInitialized, true, begun),
			condition(corev1.ContainersReady, s.ready, s.since),
			condition(corev1.PodReady, s.ready, s.since),
		},
	}
	if s.started == nil {
		status.Phase = corev1.PodPending
	}
	for _, c := range pod.Spec.Containers {
		cs := corev1.ContainerStatus{Name: c.Name, Image: c.Image, Ready: true, Started: new(true),
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: begun}}}
		if c.Name == container {
			cs.State = s.state
			cs.LastTerminationState.Terminated = s.last
			cs.Ready = s.ready
			cs.RestartCount = s.restarts
			cs.Started = new(s.state.Running != nil)
		}
		status.ContainerStatuses = append(status.ContainerStatuses, cs)
	}
	return status
}

// podIP is an address that is as good as any, since none leads anywhere.
func podIP(uid types.UID) string {
	f := fnv.New32a()
	f.Write([]byte(uid))
	n := f.Sum32()
	return fmt.Sprintf("10.1.%d.%d", n>>8&0xff, 1+n&0xff%254)
}
