package podhost

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// kwok and this package must agree on whose Pod it is: one that both manage
// would be ready without a process, one that neither manages never starts.
func TestStagesLeaveProgramsAlone(t *testing.T) {
	var want []string
	for _, p := range programs {
		want = append(want, p.container)
	}
	excludedBy := map[string][]string{}
	for doc := range strings.SplitSeq(string(stages), "\n---\n") {
		var stage struct {
			Metadata metav1.ObjectMeta
			Spec     struct {
				Selector struct {
					MatchExpressions []struct {
						Key, Operator string
						Values        []string
					}
				}
			}
		}
		if err := yaml.Unmarshal([]byte(doc), &stage); err != nil {
			t.Fatal(err)
		}
		for _, m := range stage.Spec.Selector.MatchExpressions {
			if m.Key == ".spec.containers.[].name" && m.Operator == "NotIn" {
				excludedBy[stage.Metadata.Name] = m.Values
			}
		}
	}
	for _, stage := range []string{"pod-ready", "pod-delete"} {
		if got := excludedBy[stage]; !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
			t.Errorf("stage %s leaves alone %v, programs are %v", stage, got, want)
		}
	}
}

func TestPodStatus(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "gloo-mesh-agent"}, {Name: "sidecar"}}}}
	started := metav1.Now()
	exit := &corev1.ContainerStateTerminated{ExitCode: 1, Message: "why"}
	for name, test := range map[string]struct {
		steps   func(*containerStatus)
		phase   corev1.PodPhase
		ready   corev1.ConditionStatus
		waiting string
		last    *corev1.ContainerStateTerminated
	}{
		"cannot start":    {func(s *containerStatus) { s.waiting("CreateContainerError", "no token") }, corev1.PodPending, corev1.ConditionFalse, "CreateContainerError", nil},
		"started":         {func(s *containerStatus) { s.running(started) }, corev1.PodRunning, corev1.ConditionFalse, "", nil},
		"ready":           {func(s *containerStatus) { s.running(started); s.setReady(true) }, corev1.PodRunning, corev1.ConditionTrue, "", nil},
		"ready no longer": {func(s *containerStatus) { s.running(started); s.setReady(true); s.setReady(false) }, corev1.PodRunning, corev1.ConditionFalse, "", nil},
		"crashed": {func(s *containerStatus) {
			s.running(started)
			s.setReady(true)
			s.last = exit
			s.waiting("CrashLoopBackOff", "back-off")
		}, corev1.PodRunning, corev1.ConditionFalse, "CrashLoopBackOff", exit},
		"back again": {func(s *containerStatus) {
			s.running(started)
			s.last = exit
			s.waiting("CrashLoopBackOff", "back-off")
			s.running(started)
			s.setReady(true)
		}, corev1.PodRunning, corev1.ConditionTrue, "", exit},
	} {
		t.Run(name, func(t *testing.T) {
			var s containerStatus
			test.steps(&s)
			got := s.pod(pod, "gloo-mesh-agent")
			if got.Phase != test.phase {
				t.Errorf("phase %s, want %s", got.Phase, test.phase)
			}
			for _, c := range got.Conditions {
				if c.Type == corev1.PodReady && c.Status != test.ready {
					t.Errorf("Ready is %s, want %s", c.Status, test.ready)
				}
			}
			c := got.ContainerStatuses[0]
			waiting := ""
			if c.State.Waiting != nil {
				waiting = c.State.Waiting.Reason
			}
			if waiting != test.waiting || (c.State.Running != nil) != (test.waiting == "") {
				t.Errorf("state %v, want waiting for %q", c.State, test.waiting)
			}
			if c.LastTerminationState.Terminated != test.last {
				t.Errorf("last state %v, want %v", c.LastTerminationState, test.last)
			}
			if !got.ContainerStatuses[1].Ready {
				t.Error("a simulated container is not ready")
			}
		})
	}
}

// The node's controller says of Pods that they are not ready while a node is not heard
// of; what says so of a ready one is denied, and nothing else is.
func TestReadyIsDenied(t *testing.T) {
	for name, test := range map[string]struct {
		ready bool
		says  []corev1.PodCondition
		want  bool
	}{
		"it says so":              {true, []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}, true},
		"it does not know":        {true, []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionUnknown}}, true},
		"it says that it is":      {true, []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}, false},
		"nothing is written yet":  {true, nil, false},
		"of something else":       {true, []corev1.PodCondition{{Type: corev1.PodInitialized, Status: corev1.ConditionFalse}}, false},
		"it is not ready, indeed": {false, []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}, false},
	} {
		s := containerStatus{ready: test.ready}
		if got := s.deniedBy(&corev1.Pod{Status: corev1.PodStatus{Conditions: test.says}}); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestTargetPort(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "grpc", ContainerPort: 9900}}}}}}
	for name, test := range map[string]struct {
		port corev1.ServicePort
		want int32
		ok   bool
	}{
		"by name":      {corev1.ServicePort{Port: 1, TargetPort: intstr.FromString("grpc")}, 9900, true},
		"by number":    {corev1.ServicePort{Port: 1, TargetPort: intstr.FromInt32(9091)}, 9091, true},
		"the same":     {corev1.ServicePort{Port: 9900}, 9900, true},
		"unknown name": {corev1.ServicePort{Port: 1, TargetPort: intstr.FromString("http")}, 0, false},
	} {
		if got, ok := targetPort(pod, test.port); got != test.want || ok != test.ok {
			t.Errorf("%s: %d %v, want %d %v", name, got, ok, test.want, test.ok)
		}
	}
}

// A client that has said all it has to say still gets the answer, and one whose
// backend has said its last word still gets to send.
func TestListenerPassesOn(t *testing.T) {
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	received := make(chan string, 1)
	go func() {
		conn, err := backend.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		all, _ := io.ReadAll(conn)
		received <- string(all)
		conn.Write([]byte("alert"))
	}()
	l, err := listen("127.0.0.1:0", func() []string { return []string{backend.Addr().String()} })
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(time.Minute))
	client.Write([]byte("hello"))
	client.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(client)
	if err != nil || string(answer) != "alert" {
		t.Errorf("client got %q, %v", answer, err)
	}
	if got := <-received; got != "hello" {
		t.Errorf("backend got %q", got)
	}
	// Without Pods a Service refuses.
	address := l.Addr().String()
	l.close()
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("a closed listener accepts")
	}
}

func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c-ns-pod.log")
	for _, text := range []string{"first container\n", "one\ntwo"} {
		w, err := openLog(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, byteByByte(text)); err != nil {
			t.Fatal(err)
		}
		if text == "one\ntwo" && w.tail() != "one" {
			t.Errorf("tail is %q", w.tail())
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for file, want := range map[string]string{path: " stderr F one\n", previousLog(path): " stderr F first container\n"} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		stamp, _, _ := bytes.Cut(data, []byte(" "))
		if _, err := time.Parse(time.RFC3339Nano, string(stamp)); err != nil || string(data[len(stamp):]) != want {
			t.Errorf("%s is %q", filepath.Base(file), data)
		}
	}
}

// byteByByte hands out text byte by byte, as a pipe may.
func byteByByte(text string) io.Reader {
	var readers []io.Reader
	for _, b := range []byte(text) {
		readers = append(readers, bytes.NewReader([]byte{b}))
	}
	return io.MultiReader(readers...)
}

// The charts' Deployments are those that programs stand behind, with arguments
// that carry the values.
func TestChartsRunTheStandIn(t *testing.T) {
	for name, test := range map[string]struct {
		values map[string]any
		want   []string
	}{
		"gloo-mesh-mgmt-server": {
			values: map[string]any{
				"glooMgmtServer": map[string]any{"enabled": true, "relay": map[string]any{
					"disableCa": true, "disableCaCertGeneration": true, "disableTokenGeneration": true,
					"tlsSecret": map[string]any{"name": "my-server-tls"}}},
				"standin":   map[string]any{"server": map[string]any{"reload": "keyPairOnly"}},
				"licensing": map[string]any{"glooMeshLicenseKey": "ignored"},
				"telemetry": map[string]any{"unknown": "accepted"},
			},
			want: []string{"server", "--tls-secret=my-server-tls", "--reload=keyPairOnly"},
		},
		"gloo-mesh-agent": {
			values: map[string]any{
				"common": map[string]any{"cluster": "cluster1"},
				"glooAgent": map[string]any{"enabled": true, "relay": map[string]any{
					"serverAddress": "127.1.2.3:9900", "authority": "a.gloo-mesh",
					"clientTlsSecret": map[string]any{"name": "my-client-tls"},
					"tokenSecret":     map[string]any{"key": "t", "name": "my-token", "namespace": ""}}},
				"standin": map[string]any{"agent": map[string]any{"reload": "restartOnly", "trust": "own", "handshakeRate": 20}},
			},
			want: []string{"agent", "--cluster=cluster1", "--server-address=127.1.2.3:9900", "--authority=a.gloo-mesh",
				"--client-tls-secret=my-client-tls", "--root-tls-secret=relay-root-tls-secret",
				"--token-secret=my-token", "--token-key=t", "--token-namespace=gloo-mesh",
				"--reload=restartOnly", "--trust=own", "--handshake-rate=20"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			deployments := renderDeployments(t, test.values)
			if len(deployments) != 1 || deployments[0].Name != name {
				t.Fatalf("%d Deployments: %v", len(deployments), deployments)
			}
			pod := &corev1.Pod{Spec: deployments[0].Spec.Template.Spec}
			program, ok := programOf(pod)
			if !ok {
				t.Fatal("no program stands behind it")
			}
			r := runtime{Config: Config{Relay: "relay-standin"}, container: program.containerOf(pod), namespace: "gloo-mesh", local: map[int32]int{9091: 1, 9900: 2}}
			if !strings.Contains(r.container.Image, "relay-standin") {
				t.Errorf("image %s does not say that it is a stand-in", r.container.Image)
			}
			command := program.command(r)
			if got := command[1 : 1+len(test.want)]; !slices.Equal(got, test.want) {
				t.Errorf("arguments %q\nwant      %q", got, test.want)
			}
		})
	}
}

func renderDeployments(t *testing.T, values map[string]any) (deployments []appsv1.Deployment) {
	t.Helper()
	chart, err := loader.Load("../../charts/gloo-platform")
	if err != nil {
		t.Fatal(err)
	}
	all, err := util.ToRenderValues(chart, values, common.ReleaseOptions{Name: "gloo-platform", Namespace: "gloo-mesh"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Render(chart, all)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		for doc := range strings.SplitSeq(file, "\n---\n") {
			var d appsv1.Deployment
			if err := yaml.Unmarshal([]byte(doc), &d); err != nil {
				t.Fatalf("%v in\n%s", err, doc)
			}
			if d.Kind == "Deployment" {
				deployments = append(deployments, d)
			}
		}
	}
	return deployments
}

// vaultPod is the chart's, as far as it matters here.
func vaultPod(script string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "vault", Name: "vault-0", UID: "u", Labels: map[string]string{"component": "server"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "vault", Command: []string{"/bin/sh", "-ec"}, Args: []string{script},
			Env: []corev1.EnvVar{
				{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
				{Name: "VAULT_API_ADDR", Value: "http://$(POD_IP):8200"},
				{Name: "VAULT_DEV_ROOT_TOKEN_ID", Value: "root"},
			},
		}}},
	}
}

func TestVaultRunsInTheChartsMode(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		want   string
		config bool
	}{
		"dev":        {"/usr/local/bin/docker-entrypoint.sh vault server -dev ", "-dev", false},
		"standalone": {"/usr/local/bin/docker-entrypoint.sh vault server -config=/tmp/storageconfig.hcl ", "-config=", true},
	} {
		t.Run(name, func(t *testing.T) {
			pod := vaultPod(test.script)
			program, ok := programOf(pod)
			if !ok {
				t.Fatal("no program stands behind it")
			}
			r := runtime{Config: Config{Vault: "vault"}, container: program.containerOf(pod), dir: t.TempDir(), local: map[int32]int{8200: 7, 8201: 8}}
			if err := program.prepare(r); err != nil {
				t.Fatal(err)
			}
			command := program.command(r)
			if command[1] != "server" || !strings.HasPrefix(command[2], test.want) {
				t.Errorf("command %q", command)
			}
			config, err := os.ReadFile(filepath.Join(r.dir, "vault.hcl"))
			if (err == nil) != test.config || test.config && !strings.Contains(string(config), `"127.0.0.1:7"`) {
				t.Errorf("configuration %s, %v", config, err)
			}
			env := environment(pod, r.container)
			if want := "VAULT_API_ADDR=http://" + podIP(pod.UID) + ":8200"; !slices.Contains(env, want) || !slices.Contains(env, "VAULT_DEV_ROOT_TOKEN_ID=root") {
				t.Errorf("environment %q lacks %q", env, want)
			}
		})
	}
}

// A Service leads to Pods that are not ready only if it says so.
func TestUnreadyPodsAreReachedIfPublished(t *testing.T) {
	h := &host{pods: map[types.UID]*hosted{}, changed: make(chan struct{}, 1)}
	pod := vaultPod("vault server -dev")
	p := newHosted(h, pod, program{container: "vault"})
	h.pods[pod.UID] = p
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "vault"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"component": "server"}}}
	for name, test := range map[string]struct {
		published, running, ready bool
		want                      int
	}{
		"ready":                     {false, true, true, 1},
		"not ready":                 {false, true, false, 0},
		"not ready, but published":  {true, true, false, 1},
		"published and not running": {true, false, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p.local, p.ready = nil, test.ready
			if test.running {
				p.local = map[int32]int{8200: 7}
			}
			service.Spec.PublishNotReadyAddresses = test.published
			if got := h.backends(service, corev1.ServicePort{Port: 8200}); len(got) != test.want {
				t.Errorf("leads to %q, want %d", got, test.want)
			}
		})
	}
}
