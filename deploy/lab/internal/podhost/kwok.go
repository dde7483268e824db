package podhost

import (
	"context"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/deploy/lab/internal/certs"
)

// stages is kwok's configuration: its own "fast" stages, but not for Pods that
// have a process.
//
//go:embed stages.yaml
var stages []byte

// Where kwok finds the process behind a Pod: an object for each Pod, since
// names of Pods are not known when kwok starts.
var (
	definitions  = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	portForwards = schema.GroupVersionResource{Group: "kwok.x-k8s.io", Version: "v1alpha1", Resource: "portforwards"}
	podLogs      = schema.GroupVersionResource{Group: "kwok.x-k8s.io", Version: "v1alpha1", Resource: "logs"}
)

const fieldManager = "relaypki-lab"

// prepareNode makes what kwok needs and returns its command line.
func (h *host) prepareNode(ctx context.Context) (command []string, err error) {
	config := filepath.Join(h.StateDir, "kwok.yaml")
	if err := os.WriteFile(config, stages, 0o600); err != nil {
		return nil, err
	}
	pki := filepath.Join(h.StateDir, "kubelet-pki")
	ca, err := certs.CA(pki, "relaypki lab kubelet of "+h.Cluster)
	if err != nil {
		return nil, err
	}
	serving, err := certs.Leaf(ca, pki, "kubelet", pkix.Name{CommonName: h.node()})
	if err != nil {
		return nil, err
	}
	if err := h.defineKwokResources(ctx); err != nil {
		return nil, err
	}
	if err := h.ensureNode(ctx); err != nil {
		return nil, err
	}
	return []string{
		h.Kwok,
		"--config=" + config,
		"--kubeconfig=" + h.AdminKubeconfig,
		"--manage-single-node=" + h.node(),
		"--node-lease-duration-seconds=40",
		"--node-ip=127.0.0.1",
		fmt.Sprintf("--node-port=%d", h.KwokPort),
		fmt.Sprintf("--server-address=127.0.0.1:%d", h.KwokPort),
		"--tls-cert-file=" + serving.Cert,
		"--tls-private-key-file=" + serving.Key,
		"--enable-crds=PortForward,Logs",
	}, nil
}

// defineKwokResources waits until kwok's own kinds are served.
func (h *host) defineKwokResources(ctx context.Context) error {
	for _, kind := range []struct{ kind, plural, singular string }{
		{"PortForward", "portforwards", "portforward"},
		{"Logs", "logs", "logs"},
	} {
		definition := &unstructured.Unstructured{}
		err := yaml.Unmarshal(fmt.Appendf(nil, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[2]s.kwok.x-k8s.io}
spec:
  group: kwok.x-k8s.io
  scope: Namespaced
  names: {kind: %[1]s, listKind: %[1]sList, plural: %[2]s, singular: %[3]s}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`, kind.kind, kind.plural, kind.singular), &definition.Object)
		if err != nil {
			return err
		}
		if _, err := h.d.Resource(definitions).Apply(ctx, definition.GetName(), definition, metav1.ApplyOptions{FieldManager: fieldManager, Force: true}); err != nil {
			return err
		}
	}
	for _, resource := range []schema.GroupVersionResource{portForwards, podLogs} {
		for {
			_, err := h.d.Resource(resource).List(ctx, metav1.ListOptions{Limit: 1})
			if err == nil {
				break
			}
			if !apierrors.IsNotFound(err) {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

// ensureNode makes the node with the address of kwok's kubelet port. It counts
// as ready when kwok says so.
func (h *host) ensureNode(ctx context.Context) error {
	nodes := h.k.CoreV1().Nodes()
	_, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: h.node(),
		Labels: map[string]string{
			corev1.LabelHostname:   h.node(),
			corev1.LabelOSStable:   "linux",
			corev1.LabelArchStable: "amd64",
		},
		Annotations: map[string]string{"kwok.x-k8s.io/node": "fake"},
	}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	capacity := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("64"),
		corev1.ResourceMemory: resource.MustParse("256Gi"),
		corev1.ResourcePods:   resource.MustParse("1000"),
	}
	patch, err := json.Marshal(map[string]any{"status": corev1.NodeStatus{
		// The host name too is an address that the API server can reach, since
		// it prefers host names unless told otherwise.
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: "127.0.0.1"},
			{Type: corev1.NodeHostName, Address: "localhost"},
		},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(h.KwokPort)}},
		Capacity:        capacity,
		Allocatable:     capacity,
	}})
	if err != nil {
		return err
	}
	_, err = nodes.Patch(ctx, h.node(), types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// runKwok keeps kwok running until ctx ends.
func (h *host) runKwok(ctx context.Context, command []string) error {
	path := filepath.Join(h.LogDir, h.Cluster+"-kwok.log")
	for {
		log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = processAttributes()
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = stopGrace
		err = cmd.Start()
		if err != nil {
			log.Close()
			return fmt.Errorf("kwok: %w", err)
		}
		err = cmd.Wait()
		log.Close()
		if ctx.Err() != nil {
			return nil
		}
		h.Log.Warn("kwok ended, starting it again", zap.Error(err), zap.String("log", path))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// expose tells kwok where the logs and ports of a Pod are. Both objects belong
// to the Pod and go with it.
func (h *host) expose(ctx context.Context, pod *corev1.Pod, container string, local map[int32]int) error {
	var forwards []any
	for port, target := range local {
		forwards = append(forwards, map[string]any{
			"ports":  []any{int64(port)},
			"target": map[string]any{"address": "127.0.0.1", "port": int64(target)},
		})
	}
	log := h.logFile(pod.Namespace, pod.Name)
	for _, object := range []struct {
		resource schema.GroupVersionResource
		kind     string
		spec     map[string]any
	}{
		{portForwards, "PortForward", map[string]any{"forwards": forwards}},
		{podLogs, "Logs", map[string]any{"logs": []any{map[string]any{
			"containers":       []any{container},
			"logsFile":         log,
			"previousLogsFile": previousLog(log),
		}}}},
	} {
		u := &unstructured.Unstructured{Object: map[string]any{"spec": object.spec}}
		u.SetAPIVersion(object.resource.GroupVersion().String())
		u.SetKind(object.kind)
		u.SetName(pod.Name)
		u.SetNamespace(pod.Namespace)
		u.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}})
		_, err := h.d.Resource(object.resource).Namespace(pod.Namespace).Apply(ctx, pod.Name, u, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
		if err != nil {
			return fmt.Errorf("telling kwok of the Pod's process: %w", err)
		}
	}
	return nil
}

// processAttributes put a child into a group of its own (a Ctrl-C at the
// terminal is not for it) and end it with this process, whatever happens.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
