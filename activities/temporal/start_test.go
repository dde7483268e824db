package temporal

import (
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/mocks"
	sdk "go.temporal.io/sdk/temporal"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// What people know of a run's failure is found in its error, whatever else is there.
func TestToldOfLast(t *testing.T) {
	told := &procedure.Told{Of: []string{"step server"}, At: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	const failed = enumspb.WORKFLOW_EXECUTION_STATUS_FAILED
	for name, c := range map[string]struct {
		status enumspb.WorkflowExecutionStatus
		err    error
		want   *procedure.Told
	}{
		"people were told":            {failed, failure.PermanentWithDetails(failure.Unavailable, "no", procedure.Progress{Mesh: "demo", Told: told}), told},
		"nobody was told":             {failed, failure.PermanentWithDetails(failure.Unavailable, "no", procedure.Progress{Mesh: "demo"}), nil},
		"no details":                  {failed, failure.Permanent(failure.Unavailable, "no"), nil},
		"details of another kind":     {failed, failure.PermanentWithDetails(failure.InvalidInput, "no", []string{"told"}), nil},
		"the last run has ended well": {enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED, nil, nil},
		"the last run is at work":     {enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING, nil, nil},
		"there was none":              {0, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m, run := &mocks.Client{}, &mocks.WorkflowRun{}
			if c.status == 0 {
				m.On("DescribeWorkflowExecution", mock.Anything, "rotate-leaf-demo", "").Return(nil, serviceerror.NewNotFound("none"))
			} else {
				m.On("DescribeWorkflowExecution", mock.Anything, "rotate-leaf-demo", "").Return(&workflowservice.DescribeWorkflowExecutionResponse{
					WorkflowExecutionInfo: &workflowpb.WorkflowExecutionInfo{Status: c.status, Execution: &commonpb.WorkflowExecution{RunId: "run"}}}, nil)
			}
			m.On("GetWorkflow", mock.Anything, "rotate-leaf-demo", "run").Return(run)
			if convert := sdk.GetDefaultFailureConverter(); c.err != nil {
				c.err = convert.FailureToError(convert.ErrorToFailure(c.err)) // as it comes from the server
			}
			run.On("Get", mock.Anything, nil).Return(c.err)
			if got := toldOfLast(t.Context(), m, "rotate-leaf-demo"); !reflect.DeepEqual(got, c.want) {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}
