package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"
	"golang.org/x/sync/errgroup"

	temporalactivities "github.com/relaypki/relaypki/activities/temporal"
	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/procedure"
)

// meshName is what a mesh may be called. Only such a name goes into a query.
var meshName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// recent bounds how many executions are listed of what changes something, and
// as many of the routine, which is started every few minutes.
const recent = 200

// routineShown is how many runs of each routine procedure are shown of a mesh.
const routineShown = 3

// execution is one run of a procedure.
type execution struct {
	WorkflowID string     `json:"workflowId"`
	RunID      string     `json:"runId"`
	Procedure  string     `json:"procedure"`
	Mesh       string     `json:"mesh"`
	State      string     `json:"state"`
	Started    time.Time  `json:"started"`
	Ended      *time.Time `json:"ended,omitempty"`
	// Awaiting is what a running procedure waits for, if it told in time.
	Awaiting string `json:"awaiting,omitempty"`
	// Person says that it waits for a person, who is to act on Parked or Paused.
	Person bool                        `json:"person,omitempty"`
	Paused string                      `json:"paused,omitempty"`
	Parked []procedure.ClusterProgress `json:"parked,omitempty"`
	// Silent: it runs and does not tell how far it is, as without a worker.
	Silent bool `json:"silent,omitempty"`
	// child: a part of another procedure.
	child bool
	// first is the id of the first run of a chain of continued ones.
	first, taskQueue string
	// emergency is what it tells of one while it runs.
	emergency *procedure.Emergency
}

// meshStatus is what there is to say of one mesh.
type meshStatus struct {
	Mesh       string      `json:"mesh"`
	Procedures []execution `json:"procedures"`
	// Emergency is the one that runs, or that was last.
	Emergency        *emergencyStatus `json:"emergency,omitempty"`
	LastVerification *verdict         `json:"lastVerification,omitempty"`
	Schedule         *nextSchedule    `json:"schedule,omitempty"`
	// Refresh is the schedule that keeps the credentials current; none if none expires.
	Refresh *nextSchedule `json:"refreshSchedule,omitempty"`
	// Maintain is the schedule that looks whether a rotation is due.
	Maintain *nextSchedule `json:"maintainSchedule,omitempty"`
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

// nextSchedule is what is done again and again.
type nextSchedule struct {
	ID     string     `json:"id"`
	Paused bool       `json:"paused"`
	Next   *time.Time `json:"next,omitempty"`
}

func (c *cli) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status [MESH]",
		Short: "List the procedures of a mesh, its last verification and the next",
		Long: `List what runs and what has run, by mesh, with what waits for a person and the
command that has it go on; the outcome of the last verification, and when the
next is due.`,
		Example: `  relaypki status
  relaypki status demo
  # Meshes in which something waits for a person:
  relaypki status -o json | jq -r '.meshes[] | select(any(.procedures[]; .person)) | .mesh'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeMesh,
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
	all, err := t.procedures(ctx, mesh, "")
	if err != nil {
		return nil, err
	}
	t.ask(ctx, all)
	of := map[string][]execution{}
	for _, e := range all {
		of[e.Mesh] = append(of[e.Mesh], e)
	}
	meshes := []meshStatus{}
	for name, executions := range of {
		status := meshStatus{Mesh: name, Procedures: shown(executions), LastVerification: t.lastVerification(ctx, executions)}
		if status.Emergency = t.lastEmergency(ctx, executions); name != "" {
			for _, s := range []struct {
				id   string
				next **nextSchedule
			}{
				{temporalactivities.VerifyScheduleID(name), &status.Schedule},
				{temporalactivities.RefreshScheduleID(name), &status.Refresh},
				{temporalactivities.MaintainScheduleID(name), &status.Maintain},
			} {
				if *s.next, err = t.schedule(ctx, s.id); err != nil {
					return nil, err
				}
			}
		}
		meshes = append(meshes, status)
	}
	sort.Slice(meshes, func(i, j int) bool { return meshes[i].Mesh < meshes[j].Mesh })
	return meshes, nil
}

// shown are the runs that a person started or a schedule; of what is routine,
// the last few and those that run.
func shown(executions []execution) []execution {
	list := []execution{}
	seen := map[string]int{}
	for _, e := range executions {
		if e.child {
			continue
		}
		if slices.Contains(routine, e.Procedure) && e.Ended != nil {
			if seen[e.Procedure]++; seen[e.Procedure] > routineShown {
				continue
			}
		}
		list = append(list, e)
	}
	return list
}

// changing are the procedures that are not routine.
var changing = []string{procedure.SetupMesh, procedure.AddCluster, procedure.RemoveCluster, procedure.AdoptMesh,
	procedure.RotateLeafCertificates, procedure.RotateIntermediateCA, procedure.RotateRootCA, procedure.EmergencyReissue, procedure.RotateIssuerCredentials}

// procedures lists runs, the latest first, of one mesh or of all, that fulfil
// also another condition, if one is given. A run is known by its search
// attribute; where that is not registered, or the run has not come so far as to
// set it, by its id or its input.
func (t *server) procedures(ctx context.Context, mesh, condition string) ([]execution, error) {
	var all []execution
	// Apart, since a day of the routine would hide what somebody started yesterday.
	for _, types := range [][]string{changing, routine} {
		found, err := t.list(ctx, types, mesh, condition)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].Started.After(all[j].Started) })
	return all, nil
}

func (t *server) list(ctx context.Context, types []string, mesh, condition string) ([]execution, error) {
	query := fmt.Sprintf("WorkflowType IN ('%s')", strings.Join(types, "','"))
	if condition != "" {
		query += " AND " + condition
	}
	request := &workflowservice.ListWorkflowExecutionsRequest{PageSize: recent, Query: query}
	if mesh != "" {
		request.Query = fmt.Sprintf("%s AND (%s = '%s' OR %s)", query, procedure.AttributeMesh, mesh, idsOf(mesh))
	}
	answer, err := t.ListWorkflow(ctx, request)
	var invalid *serviceerror.InvalidArgument
	if errors.As(err, &invalid) && mesh != "" { // no such search attribute
		request.Query = fmt.Sprintf("%s AND (%s)", query, idsOf(mesh))
		answer, err = t.ListWorkflow(ctx, request)
	}
	if err != nil {
		return nil, err
	}
	list := make([]execution, len(answer.GetExecutions()))
	for i, info := range answer.GetExecutions() {
		list[i] = executionOf(info)
	}
	t.attribute(ctx, list)
	if mesh == "" {
		return list, nil
	}
	return slices.DeleteFunc(list, func(e execution) bool { return e.Mesh != mesh }), nil
}

// idsOf is a condition on workflow ids that those of a mesh fulfil, and some of
// meshes whose names begin with its name.
func idsOf(mesh string) string {
	var conditions []string
	for _, id := range procedure.IDs(mesh) {
		conditions = append(conditions, fmt.Sprintf("WorkflowId = '%s'", id))
	}
	for _, prefix := range []string{"setup-" + mesh + "/", "add-" + mesh + "-", "remove-" + mesh + "-", "verify-" + mesh + "-", "diagnose-" + mesh + "-", "inventory-" + mesh + "-", "refresh-" + mesh + "-", "maintain-" + mesh + "-", "plan-"} {
		conditions = append(conditions, fmt.Sprintf("WorkflowId STARTS_WITH '%s'", prefix))
	}
	return strings.Join(conditions, " OR ")
}

// asksAtOnce bounds what is asked of Temporal at the same time for a list.
const asksAtOnce = 8

// attribute finds the mesh of the runs that neither their search attribute nor
// their id tells: in add-a-b-c, say, it may be a or a-b.
func (t *server) attribute(ctx context.Context, list []execution) {
	var group errgroup.Group
	group.SetLimit(asksAtOnce)
	for i := range list {
		if list[i].Mesh == "" {
			group.Go(func() error {
				list[i].Mesh = t.meshOfInput(ctx, list[i])
				return nil
			})
		}
	}
	_ = group.Wait() // nothing in it returns an error
}

// ask has the procedures that run tell what they wait for. One that does not
// answer soon is listed without.
func (t *server) ask(ctx context.Context, list []execution) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(asksAtOnce)
	for i := range list {
		if e := &list[i]; e.Ended == nil && !e.child {
			group.Go(func() error {
				p, err := t.progress(ctx, e.WorkflowID)
				e.Awaiting, e.Person, e.Paused, e.Parked, e.Silent, e.emergency = p.Awaiting, p.Person, p.Paused, parkedOf(p), err != nil, p.Emergency
				return nil
			})
		}
	}
	_ = group.Wait() // nothing in it returns an error
}

// askTime bounds the answers of the procedures that run, all together.
const askTime = 2 * time.Second

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
		State: executionStates[info.GetStatus()], Started: info.GetStartTime().AsTime(), child: isPart(info),
		first: info.GetFirstRunId(), taskQueue: info.GetTaskQueue(),
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

// isPart says that a run is a part of another procedure. One that a diagnosis has
// started to mend something has the id that it would have alone, and is steered as if
// it were.
func isPart(info *workflowpb.WorkflowExecutionInfo) bool {
	id := info.GetExecution().GetWorkflowId()
	return info.GetParentExecution() != nil && (strings.Contains(id, "/") || procedure.MeshOf(id) == "")
}

// timestamp is what the id of a routine procedure ends with: ours or a schedule's.
var timestamp = regexp.MustCompile(`-[0-9]{4}-?[0-9]{2}-?[0-9]{2}T[0-9:.]+Z$`)

// meshOfID is the mesh in an id that this program or a schedule gave; empty
// where the id alone does not tell, since names may have dashes.
func meshOfID(id string) string {
	id, _, _ = strings.Cut(id, "/")
	if mesh := procedure.MeshOf(id); mesh != "" {
		return mesh
	}
	for _, prefix := range []string{"verify-", "diagnose-", "inventory-", "refresh-", "maintain-"} {
		if mesh, ok := strings.CutPrefix(id, prefix); ok && timestamp.MatchString(mesh) {
			return timestamp.ReplaceAllString(mesh, "")
		}
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

// schedule is nil if there is none of that id.
func (t *server) schedule(ctx context.Context, id string) (*nextSchedule, error) {
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
	p := c.paper()
	p.print(c.out, 0, span{"Mesh " + name, bold})
	rows := [][]span{{{"PROCEDURE", dim}, {"WORKFLOW", dim}, {"STATE", dim}, {"STARTED", dim}, {"TOOK", dim}}}
	for _, e := range m.Procedures {
		took := time.Since(e.Started)
		if e.Ended != nil {
			took = e.Ended.Sub(e.Started)
		}
		rows = append(rows, []span{{e.Procedure, plain}, {tidy(e.WorkflowID), plain}, e.standing(),
			{e.Started.UTC().Format("2006-01-02 15:04:05Z"), plain}, {elapsed(took), plain}})
	}
	p.table(c.out, 2, rows)
	for _, e := range m.Procedures {
		if e.Silent {
			p.print(c.out, 2, span{tidy(e.WorkflowID) + " does not tell how far it is: is there a worker on task queue " + e.taskQueue + "?", yellow})
		}
		if !e.Person && e.Paused == "" && len(e.Parked) == 0 {
			continue
		}
		p.print(c.out, 2, span{tidy(e.WorkflowID) + " " + e.standing().text + ":", yellow})
		if e.Person && e.Paused == "" && len(e.Parked) == 0 {
			p.print(c.out, 4, span{tidy(e.Awaiting), plain})
		}
		if e.Paused != "" {
			p.print(c.out, 4, span{"paused: " + tidy(e.Paused), plain})
		}
		p.parked(c.out, 4, e.Parked)
		for _, command := range c.remedies(e.Procedure, m.Mesh, e.Paused, e.Parked) {
			c.say("    %s", command)
		}
	}
	c.printEmergency(p, m)
	p.print(c.out, 2, span{"Last verification: " + m.LastVerification.line(time.Now()), plain})
	p.print(c.out, 2, span{"Next verification: " + m.Schedule.line(time.Now()), plain})
	p.print(c.out, 2, span{"Next refresh of the credentials: " + m.Refresh.line(time.Now()), plain})
	p.print(c.out, 2, span{"Next look for rotations that are due: " + m.Maintain.line(time.Now()), plain})
	c.say("")
}

// standing is the state of a run in a few words.
func (e execution) standing() span {
	switch {
	case e.Ended != nil && e.State == "completed":
		return span{e.State, green}
	case e.Ended != nil:
		return span{e.State, red}
	case e.Silent:
		return span{e.State + ", no answer", yellow}
	case e.Person:
		return span{"waits for you", yellow}
	case e.Paused != "":
		return span{"paused", yellow}
	case len(e.Parked) > 0:
		return span{fmt.Sprintf("%s, %d parked", e.State, len(e.Parked)), yellow}
	default:
		return span{e.State, cyan}
	}
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
