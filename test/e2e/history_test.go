package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/relaypki/relaypki/internal/procedure"
)

var record = flag.Bool("record", false, "record the histories of the replay tests anew")

// start starts a workflow with the very text of its input, as the UI does.
func (w *world) start(t *testing.T, c client.Client, name, input string) client.WorkflowRun {
	t.Helper()
	run, err := c.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{
		ID:        fmt.Sprintf("typed-by-hand-%d", time.Now().UnixNano()),
		TaskQueue: procedure.TaskQueue,
	}, name, json.RawMessage(input))
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func history(t *testing.T, c client.Client, id, run string) *historypb.History {
	t.Helper()
	events := c.GetWorkflowHistory(context.Background(), id, run, false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	var h historypb.History
	for events.HasNext() {
		e, err := events.Next()
		if err != nil {
			t.Fatal(err)
		}
		h.Events = append(h.Events, e)
	}
	return &h
}

// activities counts the activities that a run has scheduled.
func (w *world) activities(t *testing.T, c client.Client, id, run string) int {
	t.Helper()
	return count(history(t, c, id, run), enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)
}

func count(h *historypb.History, kind enumspb.EventType) int {
	n := 0
	for _, e := range h.Events {
		if e.EventType == kind {
			n++
		}
	}
	return n
}

// executions are all runs that the Temporal server knows.
func executions(t *testing.T, c client.Client) []*workflowpb.WorkflowExecutionInfo {
	t.Helper()
	var out []*workflowpb.WorkflowExecutionInfo
	var next []byte
	for {
		page, err := c.ListWorkflow(context.Background(), &workflowservice.ListWorkflowExecutionsRequest{NextPageToken: next})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, page.Executions...)
		if next = page.NextPageToken; len(next) == 0 {
			return out
		}
	}
}

// TestHistories checks that the histories of the replay tests are of the
// procedures as they are; with -record it records them anew.
func TestHistories(t *testing.T) {
	w := demoWorld(t)
	c := w.temporal(t)
	// A member goes and comes, and somebody's Issuer of our name is taken over:
	// the mesh is as it was then.
	w.sh(t, "relaypki remove-cluster demo cluster2 --yes")
	w.sh(t, "relaypki add-cluster demo cluster2")
	w.sh(t, "kubectl --context cluster1 -n gloo-mesh label issuer/vault-issuer app.kubernetes.io/managed-by-")
	w.sh(t, "relaypki adopt --yes -o json -f "+example)
	if again := w.setup(t, example); again.Changed { // it only looks around
		t.Errorf("after all that a setup changed something: %+v", again.Steps)
	}
	w.sh(t, "relaypki schedule apply demo")
	w.sh(t, "relaypki rotate credentials demo")
	w.sh(t, "relaypki diagnose demo")
	w.sh(t, "relaypki inventory demo")
	for name, procedure := range map[string]string{"refresh": procedure.RefreshCredentials, "maintain": procedure.MaintainMesh} {
		w.sh(t, "relaypki schedule trigger demo "+name)
		eventually(t, time.Minute, func() error {
			for _, x := range executions(t, c) {
				if x.Type.Name == procedure && x.Status == enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED {
					return nil
				}
			}
			return fmt.Errorf("no %s has ended well since its schedule was triggered", procedure)
		})
	}
	sameHistories(t, c, func(name string) bool { return !ofRotation(name) && !ofRoot(name) && !ofEmergency(name) })
}

// ofRotation says that a procedure is run by TestRotateIntermediate, in a world of
// its own.
func ofRotation(name string) bool {
	switch name {
	case procedure.RotateIntermediateCA, procedure.RotateLeafCertificates, procedure.RotateCluster:
		return true
	}
	return false
}

// ofRoot says that a procedure is run by TestRotateRoot, in a world of its own.
func ofRoot(name string) bool { return name == procedure.RotateRootCA }

// ofEmergency says that a procedure is run by TestEmergencyReissue, in a world of its
// own.
func ofEmergency(name string) bool { return name == procedure.EmergencyReissue }

// sameHistories fails the test unless the recorded histories of these procedures
// are of what ran, all of it; with -record it records them.
func sameHistories(t *testing.T, c client.Client, of func(name string) bool) {
	t.Helper()
	directory := filepath.Join(repository, "workflows", "testdata")
	found := map[string]bool{}
	for _, x := range executions(t, c) {
		if x.Status != enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED || !of(x.Type.Name) {
			continue
		}
		h := history(t, c, x.Execution.WorkflowId, x.Execution.RunId)
		name := x.Type.Name
		switch {
		case name == procedure.EmergencyReissue:
			name += emergencyIn(t, h)
		case name != procedure.SetupMesh && name != procedure.SetupCluster:
		case changed(h):
			name += "-first-run"
		default:
			name += "-changes-nothing"
		}
		name += ".json.gz"
		if found[name] {
			continue
		}
		found[name] = true
		if *record {
			write(t, filepath.Join(directory, name), h)
		}
	}
	recorded, err := filepath.Glob(filepath.Join(directory, "*.json.gz"))
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, path := range recorded {
		name, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(path), ".json.gz"), "-")
		if of(name) {
			have[filepath.Base(path)] = true
		}
	}
	for name := range found {
		if !have[name] {
			t.Errorf("there is no recorded history %s for the replay tests; run make histories", name)
		}
	}
	for name := range have {
		if !found[name] {
			t.Errorf("the recorded history %s is of no procedure that ran; remove it, or run make histories", name)
		}
	}
}

// emergencyIn is what an emergency was for, for the name of its history.
func emergencyIn(t *testing.T, h *historypb.History) string {
	t.Helper()
	var in procedure.EmergencyInput
	for _, p := range h.Events[0].GetWorkflowExecutionStartedEventAttributes().GetInput().GetPayloads() {
		if err := json.Unmarshal(p.Data, &in); err == nil {
			break
		}
	}
	switch {
	case in.Lift:
		return "-lift"
	case in.First == "":
		return "-" + in.Compromised
	}
	return "-" + in.Compromised + "-" + in.First
}

// changed says whether a setup's result says that it changed something.
func changed(h *historypb.History) bool {
	last := h.Events[len(h.Events)-1].GetWorkflowExecutionCompletedEventAttributes()
	for _, p := range last.GetResult().GetPayloads() {
		var result struct{ Changed bool }
		if json.Unmarshal(p.Data, &result) == nil && result.Changed {
			return true
		}
	}
	return false
}

func write(t *testing.T, path string, h *historypb.History) {
	t.Helper()
	data, err := protojson.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, packed.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What a secret looks like, wherever it comes from.
var secretShapes = map[string]*regexp.Regexp{
	"private key": regexp.MustCompile(`-----BEGIN ([A-Z]+ )*PRIVATE KEY-----`),
	"Vault token": regexp.MustCompile(`\bhv[sbr]\.[A-Za-z0-9_-]{20,}`),
	"JWT":         regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}`),
	// A private key or JWT that went through base64 once more (Secrets in JSON).
	"private key in base64": regexp.MustCompile(`LS0tLS1CRUdJTi[A-Za-z0-9+/]{4,40}UFJJVkFURSBLRV`),
	"JWT in base64":         regexp.MustCompile(`\bZXlKaGJHY2lPaUp[A-Za-z0-9+/]{10,}`),
}

// secretsIn names the secrets found in a text, by shape and by value.
func secretsIn(text string, known map[string]string) []string {
	var found []string
	for what, shape := range secretShapes {
		if shape.MatchString(text) {
			found = append(found, "a "+what)
		}
	}
	for what, value := range known {
		if strings.Contains(text, value) {
			found = append(found, what)
		}
	}
	return found
}

// knownSecrets are the values of all secrets that this world has, by what they are.
func (w *world) knownSecrets(t *testing.T) map[string]string {
	t.Helper()
	known := map[string]string{"Vault's root token": w.env["VAULT_TOKEN"]}
	for _, id := range []string{"onboard", "operate", "refresh"} {
		matches, err := filepath.Glob(filepath.Join(w.dir, "worker", "vault", "*"+id+"*secret*"))
		if err != nil || len(matches) == 0 {
			t.Fatalf("no secret id of the worker's identity %s: %v", id, err)
		}
		for _, path := range matches {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			known["the secret id "+filepath.Base(path)] = strings.TrimSpace(string(data))
		}
	}
	for _, name := range w.all() {
		secrets, err := w.cluster(t, name).kube.CoreV1().Secrets("").List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range secrets.Items {
			for key, value := range s.Data {
				if s.Name == "relay-identity-token-secret" || key == "tls.key" || key == "token" || strings.HasPrefix(key, "secretId-") {
					known[fmt.Sprintf("%s of Secret %s in %s", key, s.Name, name)] = strings.TrimSpace(string(value))
				}
			}
		}
	}
	return known
}

// texts are all texts in a message, with payloads as the bytes they carry.
func texts(m protoreflect.Message, add func(string)) {
	if p, ok := m.Interface().(*commonpb.Payload); ok {
		add(string(p.Data))
	}
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		each := func(v protoreflect.Value) {
			switch field.Kind() {
			case protoreflect.MessageKind:
				texts(v.Message(), add)
			case protoreflect.StringKind:
				add(v.String())
			case protoreflect.BytesKind:
				add(string(v.Bytes()))
			}
		}
		switch {
		case field.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				add(k.String())
				if field.MapValue().Kind() == protoreflect.MessageKind {
					texts(v.Message(), add)
				} else {
					add(v.String())
				}
				return true
			})
		case field.IsList():
			for i := range v.List().Len() {
				each(v.List().Get(i))
			}
		default:
			each(v)
		}
		return true
	})
}

func textOf(m proto.Message) string {
	var b strings.Builder
	texts(m.ProtoReflect(), func(s string) { b.WriteString(s); b.WriteByte('\n') })
	return b.String()
}

// noSecrets greps every history, memo, search attribute and log line of a world.
func (w *world) noSecrets(t *testing.T) {
	t.Helper()
	known := w.knownSecrets(t)
	if len(known) < 4+len(w.all()) {
		t.Errorf("only %d secrets are known; the search by value proves little", len(known))
	}
	c := w.temporal(t)
	runs := executions(t, c)
	for _, x := range runs {
		text := textOf(x) + textOf(history(t, c, x.Execution.WorkflowId, x.Execution.RunId))
		for _, secret := range secretsIn(text, known) {
			t.Errorf("workflow %s (%s) has %s", x.Execution.WorkflowId, x.Type.Name, secret)
		}
	}
	logs, err := filepath.Glob(filepath.Join(w.dir, "logs", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range logs {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range secretsIn(string(data), known) {
			t.Errorf("%s has %s", path, secret)
		}
	}
	t.Logf("searched %d histories and %d logs for %d known values and %d shapes", len(runs), len(logs), len(known), len(secretShapes))
	if len(runs) == 0 || len(logs) == 0 {
		t.Error("there was nothing to search")
	}
}

// The search finds what is planted, in a history as in a text.
func TestSecretsAreFound(t *testing.T) {
	// Put together here, so that no text of this repository looks like a secret.
	plants := map[string]string{
		"private key":           "-----BEGIN RSA " + "PRIVATE KEY-----",
		"Vault token":           "hvs." + strings.Repeat("Ab1", 8),
		"JWT":                   "eyJ" + strings.Repeat("hbGc", 4) + ".eyJ" + strings.Repeat("pc3M", 4) + ".c2ln",
		"private key in base64": "LS0tLS1CRUdJTiBSU0Eg" + "UFJJVkFURSBLRVktLS0tLQ",
		"JWT in base64":         "ZXlKaGJHY2lPaUp" + strings.Repeat("TVVp", 4),
	}
	for what := range secretShapes {
		plant, ok := plants[what]
		if !ok {
			t.Errorf("nothing is planted for %s", what)
		}
		data, err := json.Marshal(map[string]string{"value": plant})
		if err != nil {
			t.Fatal(err)
		}
		h := &historypb.History{Events: []*historypb.HistoryEvent{{Attributes: &historypb.HistoryEvent_ActivityTaskCompletedEventAttributes{
			ActivityTaskCompletedEventAttributes: &historypb.ActivityTaskCompletedEventAttributes{
				Result: &commonpb.Payloads{Payloads: []*commonpb.Payload{{Data: data}}}}}}}}
		if found := secretsIn(textOf(h), nil); !strings.Contains(strings.Join(found, ","), "a "+what) {
			t.Errorf("a planted %s is not found: %q", what, found)
		}
	}
	if found := secretsIn("token is 0123abcd", map[string]string{"the identity token": "0123abcd"}); len(found) != 1 {
		t.Errorf("a planted value is not found: %q", found)
	}
	if found := secretsIn("-----BEGIN CERTIFICATE----- serial 4f:aa eyJust.text", map[string]string{"x": "nowhere"}); len(found) != 0 {
		t.Errorf("what is no secret is taken for one: %q", found)
	}
}
