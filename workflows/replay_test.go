package workflows

import (
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
	"google.golang.org/protobuf/encoding/protojson"
)

// Histories of real runs replay with the code as it is. When this fails, a run
// that is under way at an upgrade would fail too: make the change under
// workflow.GetVersion, or, if nothing of the kind can be running anywhere,
// record the histories anew with make histories.
func TestReplay(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) == 0 {
		t.Fatal("there are no recorded histories in testdata; run make histories")
	}
	unrecorded := names{}
	Register(unrecorded)
	for _, path := range paths {
		name, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(path), ".json.gz"), "-")
		delete(unrecorded, name)
		t.Run(filepath.Base(path), func(t *testing.T) {
			replayer := worker.NewWorkflowReplayer()
			Register(replayer)
			history := recorded(t, path)
			started := history.Events[0].GetWorkflowExecutionStartedEventAttributes()
			// Children and locks are named after the run, so it has to be the same.
			original := workflow.Execution{ID: started.GetWorkflowId(), RunID: started.GetOriginalExecutionRunId()}
			if err := replayer.ReplayWorkflowHistoryWithOptions(nil, history, worker.ReplayWorkflowHistoryOptions{OriginalExecution: original}); err != nil {
				t.Error(err)
			}
		})
	}
	for name := range unrecorded {
		t.Errorf("there is no recorded history of %s in testdata; have TestHistories run it, and run make histories", name)
	}
}

// names are the names that workflows are registered under.
type names map[string]bool

func (n names) RegisterWorkflowWithOptions(_ any, o workflow.RegisterOptions) { n[o.Name] = true }
func (n names) RegisterWorkflow(any)                                          { panic("a workflow without a name") }
func (n names) RegisterDynamicWorkflow(any, workflow.DynamicRegisterOptions) {
	panic("a workflow without a name")
}

func recorded(t *testing.T, path string) *historypb.History {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	var h historypb.History
	if err := protojson.Unmarshal(data, &h); err != nil {
		t.Fatal(err)
	}
	return &h
}
