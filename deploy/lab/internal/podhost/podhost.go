// Package podhost plays the part of the node in a lab cluster: kwok simulates
// the node and the Pods that need no program, and where a real program exists
// (cert-manager, the relay stand-in, Vault) the Pod is a process of this machine.
//
// Addresses of Pods and Services go nowhere in a lab. What has to be reached
// from outside a cluster is reached as in a real one: LoadBalancer Services
// listen on an address of their own and pass connections to Pods that are
// ready; logs and port-forwards go through the API server and kwok, which
// serves the kubelet's API.
package podhost

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
)

// Config says which cluster is hosted and where its programs are.
type Config struct {
	Cluster         string        // context name
	Admin           *rest.Config  // cluster-admin of this cluster
	AdminKubeconfig string        // path of a kubeconfig file for this cluster alone, for kwok
	StateDir        string        // the cluster's own directory for Pods, for instance .lab/clusters/<name>/pods
	LogDir          string        // where <cluster>-<namespace>-<pod>.log files go
	Kwok            string        // path of the kwok program
	CertManager     string        // path of the lab-cert-manager program
	Relay           string        // path of the relay-standin program
	Vault           string        // path of the vault program
	KwokPort        int           // kubelet API port that kwok serves on 127.0.0.1
	WebhookPort     int           // where this cluster's cert-manager webhook is reached on localhost
	Address         string        // loopback address (127.a.b.c) of this cluster's LoadBalancer Services
	LBDelay         time.Duration // until a LoadBalancer Service gets its address
	LBHostname      bool          // status.loadBalancer.ingress[0].hostname (localhost) instead of ip
	Log             *zap.Logger
}

// host is one running cluster's node.
type host struct {
	Config
	k      kubernetes.Interface
	d      dynamic.Interface
	events record.EventRecorder
	// changed asks for the listeners of Services to be looked at again.
	changed chan struct{}

	mu   sync.Mutex
	pods map[types.UID]*hosted
	wg   sync.WaitGroup // of pods
}

// Run serves until ctx ends; when it returns, every process it started has
// ended. Pods that are left from an earlier run get new processes.
func Run(ctx context.Context, c Config) error {
	for _, dir := range []string{c.StateDir, c.LogDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	k, err := kubernetes.NewForConfig(c.Admin)
	if err != nil {
		return err
	}
	d, err := dynamic.NewForConfig(c.Admin)
	if err != nil {
		return err
	}
	broadcaster := record.NewBroadcaster()
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: k.CoreV1().Events("")})
	h := &host{
		Config:  c,
		k:       k,
		d:       d,
		events:  broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: c.node()}),
		changed: make(chan struct{}, 1),
		pods:    map[types.UID]*hosted{},
	}
	kwok, err := h.prepareNode(ctx)
	if err != nil {
		return fmt.Errorf("node of %s: %w", c.Cluster, err)
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return h.runKwok(ctx, kwok) })
	services, err := h.watch(ctx)
	if err != nil {
		return err
	}
	group.Go(func() error { return h.balance(ctx, services) })
	err = group.Wait()
	h.mu.Lock() // ctx has ended: who gets the lock after us starts no Pod any more
	//lint:ignore SA2001 holding the lock once is the point
	h.mu.Unlock()
	h.wg.Wait()
	return err
}

// node is the name of the cluster's only node.
func (c Config) node() string { return "lab-" + c.Cluster }

// logFile is where a Pod's process logs to, in the format that kubelets use.
func (c Config) logFile(namespace, pod string) string {
	return filepath.Join(c.LogDir, fmt.Sprintf("%s-%s-%s.log", c.Cluster, namespace, pod))
}

// touch says that what Services lead to may have changed.
func (h *host) touch() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// watch follows the node's Pods, which start and end with their objects, and
// the cluster's Services.
func (h *host) watch(ctx context.Context) (services cache.Store, err error) {
	pods := informers.NewSharedInformerFactoryWithOptions(h.k, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", h.node()).String()
	}))
	informer := pods.Core().V1().Pods().Informer()
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { h.observe(ctx, obj.(*corev1.Pod)) },
		UpdateFunc: func(_, obj any) { h.observe(ctx, obj.(*corev1.Pod)) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			h.forget(obj.(*corev1.Pod).UID)
		},
	})
	if err != nil {
		return nil, err
	}
	all := informers.NewSharedInformerFactory(h.k, 0)
	serviceInformer := all.Core().V1().Services().Informer()
	_, err = serviceInformer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { h.touch() },
		UpdateFunc: func(any, any) { h.touch() },
		DeleteFunc: func(any) { h.touch() },
	})
	if err != nil {
		return nil, err
	}
	pods.Start(ctx.Done())
	all.Start(ctx.Done())
	return serviceInformer.GetStore(), nil
}

// observe starts the process of a Pod that has one, or ends that of a Pod
// which is being deleted.
func (h *host) observe(ctx context.Context, pod *corev1.Pod) {
	program, ok := programOf(pod)
	if !ok || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.pods[pod.UID]
	if p == nil {
		if ctx.Err() != nil {
			return
		}
		p = newHosted(h, pod, program)
		h.pods[pod.UID] = p
		h.wg.Go(func() {
			p.run(ctx)
			h.mu.Lock()
			delete(h.pods, pod.UID)
			h.mu.Unlock()
			h.touch()
		})
	}
	if pod.DeletionTimestamp != nil {
		grace := 30 * time.Second
		if s := pod.DeletionGracePeriodSeconds; s != nil {
			grace = time.Duration(*s) * time.Second
		}
		p.end(grace)
		return
	}
	p.restate(ctx, pod)
}

// forget ends the process of a Pod whose object is gone.
func (h *host) forget(uid types.UID) {
	h.mu.Lock()
	p := h.pods[uid]
	h.mu.Unlock()
	if p != nil {
		p.end(0)
	}
}
