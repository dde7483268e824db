package podhost

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// program is what stands behind the container of a Pod.
type program struct {
	container string
	// ports are the container's ports that the process serves.
	ports []int32
	// ready is the port and path that say whether it is ready.
	ready int32
	path  string
	// prepare, if there is one, puts files into the Pod's directory.
	prepare func(r runtime) error
	// command makes the command line.
	command func(r runtime) []string
}

// runtime is what a process is started with.
type runtime struct {
	Config
	container      corev1.Container
	namespace      string
	kubeconfig     string
	dir            string // the Pod's own
	terminationLog string
	// local is the port on 127.0.0.1 that stands for a port of the container.
	local map[int32]int
}

func (r runtime) address(port int32) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.local[port]))
}

// programs are known by the container's name. The names are in the selectors of
// kwok's stages too, which leave these Pods alone.
var programs = []program{
	{
		container: "cert-manager-controller", ports: []int32{9402, 9403}, ready: 9403, path: "/healthz",
		command: func(r runtime) []string {
			return append(certManager(r, "controller"), fmt.Sprintf("--metrics-port=%d", r.local[9402]), fmt.Sprintf("--healthz-port=%d", r.local[9403]))
		},
	},
	{
		container: "cert-manager-webhook", ports: []int32{10250, 6080}, ready: 6080, path: "/healthz",
		command: func(r runtime) []string {
			return append(certManager(r, "webhook"), fmt.Sprintf("--secure-port=%d", r.local[10250]), fmt.Sprintf("--healthz-port=%d", r.local[6080]))
		},
	},
	{
		container: "cert-manager-cainjector", ports: []int32{9403}, ready: 9403, path: "/healthz",
		command: func(r runtime) []string {
			return append(certManager(r, "cainjector"), fmt.Sprintf("--healthz-port=%d", r.local[9403]))
		},
	},
	{
		container: "gloo-mesh-mgmt-server", ports: []int32{9900, 9091}, ready: 9091, path: "/readyz",
		command: func(r runtime) []string { return append(relay(r), "--listen="+r.address(9900)) },
	},
	{
		container: "gloo-mesh-agent", ports: []int32{9091}, ready: 9091, path: "/readyz",
		command: relay,
	},
	// The path answers well once Vault is initialised and unsealed, which is what
	// the chart's own probe asks.
	{
		container: "vault", ports: []int32{8200, 8201}, ready: 8200, path: "/v1/sys/health",
		prepare: vaultConfig, command: vault,
	},
}

func certManager(r runtime, component string) []string {
	return []string{r.CertManager, component, "--kubeconfig=" + r.kubeconfig, "--namespace=" + r.namespace}
}

// relay takes the container's own arguments, as the chart made them, and puts
// behind them what differs on this machine.
func relay(r runtime) []string {
	command := append([]string{r.Relay}, r.container.Args...)
	return append(command,
		"--kubeconfig="+r.kubeconfig,
		"--namespace="+r.namespace,
		"--metrics-listen="+r.address(9091),
		"--termination-log="+r.terminationLog)
}

func devMode(c corev1.Container) bool {
	return strings.Contains(strings.Join(c.Args, " "), "vault server -dev")
}

// vault runs in the container's mode. The script in its arguments is for the
// image's file system. The dev mode's root token comes in the environment.
func vault(r runtime) []string {
	if devMode(r.container) {
		return []string{r.Vault, "server", "-dev", "-dev-no-store-token", "-dev-listen-address=" + r.address(8200)}
	}
	return []string{r.Vault, "server", "-config=" + filepath.Join(r.dir, "vault.hcl")}
}

// vaultConfig takes the place of the chart's: the same listener, and a storage
// that lives as long as the Pod does. It is raft, since the lab's build of Vault
// has no storage in plain files.
func vaultConfig(r runtime) error {
	if devMode(r.container) {
		return nil
	}
	data := filepath.Join(r.dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.dir, "vault.hcl"), fmt.Appendf(nil, `disable_mlock = true
listener "tcp" {
  tls_disable     = 1
  address         = %q
  cluster_address = %q
}
storage "raft" {
  path    = %q
  node_id = "lab"
}
`, r.address(8200), r.address(8201), data), 0o600)
}

// programOf is the program behind a Pod, if there is one.
func programOf(pod *corev1.Pod) (program, bool) {
	for _, c := range pod.Spec.Containers {
		for _, p := range programs {
			if c.Name == p.container {
				return p, true
			}
		}
	}
	return program{}, false
}

// containerOf is the container that the program stands behind.
func (p program) containerOf(pod *corev1.Pod) corev1.Container {
	for _, c := range pod.Spec.Containers {
		if c.Name == p.container {
			return c
		}
	}
	return corev1.Container{}
}

// freePorts finds a free port on 127.0.0.1 for each port of a container. Who
// loses the race for one fails to listen and gets others at its next start.
func freePorts(ports []int32) (map[int32]int, error) {
	local := map[int32]int{}
	for _, port := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // after the last one is found, so that no two are the same
		local[port] = l.Addr().(*net.TCPAddr).Port
	}
	return local, nil
}
