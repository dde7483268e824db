package podhost

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/cache"
)

// balance gives LoadBalancer Services their address and listens there for as
// long as there are Pods to pass connections to, so that a Service without
// ready Pods refuses connections. cert-manager's webhook is reached in the same
// way, on the port that its URL names: during a rollout two webhooks run, and
// only a ready one may be asked.
//
// With LBHostname the address is the host name localhost, and Services listen
// on 127.0.0.1. Then only one cluster of a machine can have the port: a Service
// that cannot listen gets no address, and the log says why. As with the load
// balancers of clouds, an annotation of one Service may ask for another kind of
// address than the others have.
func (h *host) balance(ctx context.Context, services cache.Store) error {
	b := &balancer{h: h, listening: map[string]*listener{}, complained: map[string]bool{}}
	defer b.close()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		next := b.reconcile(ctx, services.List())
		var due <-chan time.Time
		if next > 0 {
			due = time.After(next)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-h.changed:
		case <-ticker.C:
		case <-due:
		}
	}
}

// kindAnnotation is an annotation of a Service: which kind of address its load
// balancer has.
const kindAnnotation = "relaypki-lab/load-balancer"

const (
	kindPending  = "pending"  // none, and one that it had is taken away
	kindHostname = "hostname" // localhost, as with LBHostname
	kindIPv6     = "ipv6"     // ::1, which too one cluster of a machine can have
)

// place is where a Service listens, and what its status says of that.
type place struct {
	host    string
	ingress []corev1.LoadBalancerIngress
	shared  bool // with other clusters of this machine
}

func (h *host) placeOf(s *corev1.Service) place {
	kind := s.Annotations[kindAnnotation]
	switch {
	case kind == kindPending:
		return place{}
	case kind == kindIPv6:
		return place{host: "::1", ingress: []corev1.LoadBalancerIngress{{IP: "::1"}}, shared: true}
	case kind == kindHostname, h.LBHostname:
		return place{host: "127.0.0.1", ingress: []corev1.LoadBalancerIngress{{Hostname: "localhost"}}, shared: true}
	}
	return place{host: h.Address, ingress: []corev1.LoadBalancerIngress{{IP: h.Address}}}
}

type balancer struct {
	h          *host
	listening  map[string]*listener
	complained map[string]bool
}

// reconcile returns how long until a Service is due for its address; 0 is never.
func (b *balancer) reconcile(ctx context.Context, services []any) (next time.Duration) {
	wanted := map[string]func() []string{
		net.JoinHostPort("127.0.0.1", strconv.Itoa(b.h.WebhookPort)): b.h.webhooks,
	}
	for _, obj := range services {
		s := obj.(*corev1.Service)
		if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.DeletionTimestamp != nil {
			continue
		}
		if wait := b.h.LBDelay - time.Since(s.CreationTimestamp.Time); wait > 0 {
			if next == 0 || wait < next {
				next = wait
			}
			continue
		}
		at, canListen := b.h.placeOf(s), true
		for _, port := range s.Spec.Ports {
			if at.host == "" {
				break
			}
			address := net.JoinHostPort(at.host, strconv.Itoa(int(port.Port)))
			wanted[address] = func() []string { return b.h.backends(s, port) }
			if at.shared && b.listening[address] == nil && !b.free(address) {
				canListen = false
			}
		}
		if canListen {
			b.h.assign(ctx, s, at.ingress)
		}
	}
	for address, l := range b.listening {
		if backends := wanted[address]; backends == nil || len(backends()) == 0 {
			l.close()
			delete(b.listening, address)
		}
	}
	for address, backends := range wanted {
		if l := b.listening[address]; l != nil {
			l.use(backends)
			continue
		}
		if len(backends()) == 0 {
			continue
		}
		l, err := listen(address, backends)
		if err != nil {
			b.complain(address, err)
			continue
		}
		delete(b.complained, address)
		b.listening[address] = l
	}
	return next
}

// free tells whether one could listen.
func (b *balancer) free(address string) bool {
	l, err := net.Listen("tcp", address)
	if err != nil {
		b.complain(address, err)
		return false
	}
	l.Close()
	return true
}

func (b *balancer) complain(address string, err error) {
	if !b.complained[address] {
		b.complained[address] = true
		b.h.Log.Error("a Service cannot listen, trying on", zap.String("address", address), zap.Error(err))
	}
}

func (b *balancer) close() {
	for _, l := range b.listening {
		l.close()
	}
}

// assign writes the Service's address unless it is there; no ingress takes it away.
func (h *host) assign(ctx context.Context, s *corev1.Service, ingress []corev1.LoadBalancerIngress) {
	same := func(a, b corev1.LoadBalancerIngress) bool { return a.IP == b.IP && a.Hostname == b.Hostname }
	if slices.EqualFunc(s.Status.LoadBalancer.Ingress, ingress, same) {
		return
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{
		"loadBalancer": map[string]any{"ingress": ingress},
	}})
	if err == nil {
		_, err = h.k.CoreV1().Services(s.Namespace).Patch(ctx, s.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	}
	if err != nil && ctx.Err() == nil {
		h.Log.Warn("a Service's address is not written yet", zap.String("service", s.Namespace+"/"+s.Name), zap.Error(err))
	}
}

// backends are the processes that a port of a Service leads to. One that
// publishes addresses that are not ready leads to them too: a sealed Vault is
// unsealed through its Service.
func (h *host) backends(s *corev1.Service, port corev1.ServicePort) []string {
	if len(s.Spec.Selector) == 0 {
		return nil
	}
	selector := labels.SelectorFromSet(s.Spec.Selector)
	return h.addresses(s.Spec.PublishNotReadyAddresses, func(p *hosted) (int32, bool) {
		if p.pod.Namespace != s.Namespace || !selector.Matches(labels.Set(p.pod.Labels)) {
			return 0, false
		}
		return targetPort(p.pod, port)
	})
}

// webhooks are the processes of cert-manager's webhook.
func (h *host) webhooks() []string {
	return h.addresses(false, func(p *hosted) (int32, bool) { return 10250, p.program.container == "cert-manager-webhook" })
}

// addresses are those of the ready Pods (of the others too, with notReady) that
// choose picks, with the port it says.
func (h *host) addresses(notReady bool, choose func(*hosted) (int32, bool)) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var addresses []string
	for _, p := range h.pods {
		if port, ok := choose(p); ok {
			if address, ok := p.backend(port, notReady); ok {
				addresses = append(addresses, address)
			}
		}
	}
	return addresses
}

// targetPort is the container's port that a Service's port means.
func targetPort(pod *corev1.Pod, port corev1.ServicePort) (int32, bool) {
	if port.TargetPort.Type == intstr.Int {
		if port.TargetPort.IntVal == 0 {
			return port.Port, true
		}
		return port.TargetPort.IntVal, true
	}
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if p.Name == port.TargetPort.StrVal {
				return p.ContainerPort, true
			}
		}
	}
	return 0, false
}

// listener passes connections on to one of its backends.
type listener struct {
	net.Listener
	mu       sync.Mutex
	backends func() []string
}

func listen(address string, backends func() []string) (*listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	passing := &listener{Listener: l, backends: backends}
	go passing.serve()
	return passing, nil
}

// use takes the newest view of a Service.
func (l *listener) use(backends func() []string) {
	l.mu.Lock()
	l.backends = backends
	l.mu.Unlock()
}

func (l *listener) close() { l.Close() }

func (l *listener) serve() {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of file descriptors, say
			continue
		}
		go l.pass(conn)
	}
}

func (l *listener) pass(client net.Conn) {
	defer client.Close()
	l.mu.Lock()
	addresses := l.backends()
	l.mu.Unlock()
	if len(addresses) == 0 {
		return
	}
	backend, err := net.DialTimeout("tcp", addresses[rand.IntN(len(addresses))], time.Second)
	if err != nil {
		return
	}
	defer backend.Close()
	// Each direction ends on its own, so that a last word (a TLS alert) arrives.
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(backend, client)
		backend.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(client, backend)
	client.(*net.TCPConn).CloseWrite()
	<-done
}
