package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"

	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/procedure"
)

// meshName is what a mesh may be called. Only such a name goes into a query.
var meshName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// recent bounds how many executions are listed.
const recent = 50

// execution is one run of a procedure.
type execution struct {
	WorkflowID string     `json:"workflowId"`
	RunID      string     `json:"runId"`
	Procedure  string     `json:"procedure"`
	Mesh       string     `json:"mesh"`
	State      string     `json:"state"`
	Started    time.Time  `json:"started"`
	Ended      *time.Time `json:"ended,omitempty"`
	// child: started by another procedure.
	child bool
}

// meshStatus is what there is to say of one mesh.
type meshStatus struct {
	Mesh             string        `json:"mesh"`
	Procedures       []execution   `json:"procedures"`
	LastVerification *verdict      `json:"lastVerification,omitempty"`
	Schedule         *nextSchedule `json:"schedule,omitempty"`
}

// verdict is the outcome of a verification in short.
type verdict struct {
	At      time.Time `json:"at"`
	Healthy bool      `json:"healthy"`
	// Failing are the checks that fail, as "cluster: check".
	Failing []string `json:"failing,omitempty"`
	Checks  int      `json:"checks"`
	// Problem is why there are no findings, if there are none.
	Problem string `json:"problem,omitempty"`
}

// nextSchedule is the schedule of the verification.
type nextSchedule struct {
	ID     string     `json:"id"`
	Paused bool       `json:"paused"`
	Next   *time.Time `json:"next,omitempty"`
}

func (c *cli) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status [mesh]",
		Short: "List the procedures of a mesh, its last verification and the next",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			mesh := ""
			if len(args) == 1 {
				mesh = args[0]
				if !meshName.MatchString(mesh) {
					return badInput(c.again("status"), "%q is not the name of a mesh", mesh)
				}
			}
			ctx := cmd.Context()
			t, err := c.connect(ctx)
			if err != nil {
				return err
			}
			defer t.Close()
			meshes, err := t.status(ctx, mesh)
			if err != nil {
				return t.failed(err, "list the procedures")
			}
			if c.json() {
				return c.printJSON(map[string]any{"meshes": meshes})
			}
			if len(meshes) == 0 {
				of := ""
				if mesh != "" {
					of = " of mesh " + mesh
				}
				c.say("There are no procedures%s in namespace %s.\nNext: %s", of, t.namespace, c.again("setup -f mesh.yaml"))
			}
			for _, m := range meshes {
				c.printStatus(m)
			}
			return nil
		},
	}
}

func (t *server) status(ctx context.Context, mesh string) ([]meshStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, 6*callTime)
	defer cancel()
	all, err := t.procedures(ctx, mesh)
	if err != nil {
		return nil, err
	}
	of := map[string][]execution{}
	for _, e := range all {
		of[e.Mesh] = append(of[e.Mesh], e)
	}
	meshes := []meshStatus{}
	for name, executions := range of {
		status := meshStatus{Mesh: name, Procedures: []execution{}, LastVerification: t.lastVerification(ctx, executions)}
		for _, e := range executions {
			if !e.child {
				status.Procedures = append(status.Procedures, e)
			}
		}
		if name != "" {
			if status.Schedule, err = t.schedule(ctx, name); err != nil {
				return nil, err
			}
		}
		meshes = append(meshes, status)
	}
	sort.Slice(meshes, func(i, j int) bool { return meshes[i].Mesh < meshes[j].Mesh })
	return meshes, nil
}

// procedures lists runs, the latest first, of one mesh or of all. A run is
// known by its search attribute; where that is not registered, or the run has
// not come so far as to set it, by its id.
func (t *server) procedures(ctx context.Context, mesh string) ([]execution, error) {
	types := fmt.Sprintf("WorkflowType IN ('%s','%s')", procedure.SetupMesh, procedure.VerifyMesh)
	if mesh == "" {
		return t.list(ctx, types, mesh)
	}
	byID := fmt.Sprintf("WorkflowId = 'setup-%[1]s' OR WorkflowId STARTS_WITH 'setup-%[1]s/' OR WorkflowId STARTS_WITH 'verify-%[1]s-'", mesh)
	found, err := t.list(ctx, fmt.Sprintf("%s AND (%s = '%s' OR %s)", types, procedure.AttributeMesh, mesh, byID), mesh)
	var invalid *serviceerror.InvalidArgument
	if errors.As(err, &invalid) { // no such search attribute
		return t.list(ctx, fmt.Sprintf("%s AND (%s)", types, byID), mesh)
	}
	return found, err
}

func (t *server) list(ctx context.Context, query, mesh string) ([]execution, error) {
	answer, err := t.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{PageSize: recent, Query: query})
	if err != nil {
		return nil, err
	}
	var list []execution
	for _, info := range answer.GetExecutions() {
		if e := executionOf(info); mesh == "" || e.Mesh == mesh {
			list = append(list, e)
		}
	}
	return list, nil
}

var executionStates = map[enumspb.WorkflowExecutionStatus]string{
	enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING:          "running",
	enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED:        "completed",
	enumspb.WORKFLOW_EXECUTION_STATUS_FAILED:           "failed",
	enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED:         "cancelled",
	enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED:       "terminated",
	enumspb.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW: "continued",
	enumspb.WORKFLOW_EXECUTION_STATUS_TIMED_OUT:        "timed out",
	enumspb.WORKFLOW_EXECUTION_STATUS_PAUSED:           "paused",
}

// executionOf reads one entry.
func executionOf(info *workflowpb.WorkflowExecutionInfo) execution {
	e := execution{
		WorkflowID: info.GetExecution().GetWorkflowId(), RunID: info.GetExecution().GetRunId(), Procedure: info.GetType().GetName(),
		State: executionStates[info.GetStatus()], Started: info.GetStartTime().AsTime(), child: info.GetParentExecution() != nil,
	}
	if end := info.GetCloseTime(); end != nil {
		closed := end.AsTime()
		e.Ended = &closed
	}
	payload := info.GetSearchAttributes().GetIndexedFields()[procedure.AttributeMesh]
	if payload == nil || converter.GetDefaultDataConverter().FromPayload(payload, &e.Mesh) != nil || e.Mesh == "" {
		e.Mesh = meshOfID(e.WorkflowID)
	}
	return e
}

// timestamp is what a verification's id ends with: ours or a schedule's.
var timestamp = regexp.MustCompile(`-[0-9]{4}-?[0-9]{2}-?[0-9]{2}T[0-9:.]+Z$`)

// meshOfID is the mesh in an id that this program or a schedule gave.
func meshOfID(id string) string {
	id, _, _ = strings.Cut(id, "/")
	if mesh, ok := strings.CutPrefix(id, "setup-"); ok {
		return mesh
	}
	if mesh, ok := strings.CutPrefix(id, "verify-"); ok {
		return timestamp.ReplaceAllString(mesh, "")
	}
	return ""
}

// lastVerification is that of the latest verification that has ended.
func (t *server) lastVerification(ctx context.Context, executions []execution) *verdict {
	for _, e := range executions {
		if e.Procedure != procedure.VerifyMesh || e.Ended == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, callTime)
		defer cancel()
		end, err := t.await(ctx, e.WorkflowID, e.RunID)
		if err != nil {
			return &verdict{At: *e.Ended, Problem: "its result cannot be read: " + err.Error()}
		}
		return verdictOf(end.of(e.Procedure), *e.Ended)
	}
	return nil
}

func verdictOf(end ending, at time.Time) *verdict {
	result, ok := end.verification()
	if !ok {
		if end.Failure != nil {
			return &verdict{At: at, Problem: tidy(end.Failure.Message)}
		}
		return &verdict{At: at, Problem: "it has no findings"}
	}
	v := &verdict{At: at, Healthy: result.Healthy, Checks: len(result.Findings)}
	for _, f := range result.Findings {
		if f.Status == check.Fail {
			v.Failing = append(v.Failing, f.Cluster+": "+f.Check)
		}
	}
	return v
}

// schedule is nil if the mesh has none.
func (t *server) schedule(ctx context.Context, mesh string) (*nextSchedule, error) {
	id := temporalactivities.VerifyScheduleID(mesh)
	d, err := t.ScheduleClient().GetHandle(ctx, id).Describe(ctx)
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	next := &nextSchedule{ID: id, Paused: d.Schedule.State.Paused}
	if len(d.Info.NextActionTimes) > 0 {
		next.Next = &d.Info.NextActionTimes[0]
	}
	return next, nil
}

func (c *cli) printStatus(m meshStatus) {
	name := m.Mesh
	if name == "" {
		name = "(not known yet)"
	}
	c.say("Mesh %s", name)
	table := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "  PROCEDURE\tWORKFLOW\tSTATE\tSTARTED\tTOOK")
	for _, e := range m.Procedures {
		took := time.Since(e.Started)
		if e.Ended != nil {
			took = e.Ended.Sub(e.Started)
		}
		fmt.Fprintf(table, "  %s\t%s\t%s\t%s\t%s\n", e.Procedure, e.WorkflowID, e.State, e.Started.UTC().Format("2006-01-02 15:04:05Z"), elapsed(took))
	}
	_ = table.Flush() // as for any print
	c.say("  Last verification: %s", m.LastVerification.line(time.Now()))
	c.say("  Next verification: %s\n", m.Schedule.line(time.Now()))
}

func (v *verdict) line(now time.Time) string {
	if v == nil {
		return "none yet"
	}
	ago := elapsed(now.Sub(v.At)) + " ago"
	switch {
	case v.Problem != "":
		return "could not be done, " + ago + ": " + v.Problem
	case v.Healthy:
		return fmt.Sprintf("healthy, %d checks, %s", v.Checks, ago)
	default:
		return fmt.Sprintf("NOT healthy, %d of %d checks fail, %s (%s)", len(v.Failing), v.Checks, ago, strings.Join(v.Failing, ", "))
	}
}

func (s *nextSchedule) line(now time.Time) string {
	switch {
	case s == nil:
		return "not scheduled"
	case s.Paused:
		return "paused (schedule " + s.ID + ")"
	case s.Next == nil:
		return "never (schedule " + s.ID + ")"
	default:
		return fmt.Sprintf("in %s (schedule %s)", elapsed(s.Next.Sub(now)), s.ID)
	}
}
