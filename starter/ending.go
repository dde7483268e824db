package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// ending is how a procedure ended; with -o json it is the document.
type ending struct {
	WorkflowID string `json:"workflowId"`
	RunID      string `json:"runId"`
	Procedure  string `json:"procedure"`
	// Status is completed, failed, cancelled, terminated, timed out or running;
	// waiting, if it runs and waits for a person.
	Status  string          `json:"status"`
	Result  json.RawMessage `json:"result,omitempty"`
	Failure *failureReport  `json:"failure,omitempty"`
	// Progress is that of a procedure which waits for a person.
	Progress *procedure.Progress `json:"progress,omitempty"`
}

// failureReport is why a procedure failed.
type failureReport struct {
	Kind    failure.Kind `json:"kind,omitempty"`
	Message string       `json:"message"`
	// Details is the report of a failed procedure: its progress, or the
	// findings of a verification.
	Details json.RawMessage `json:"details,omitempty"`
}

// endingOf reads the answer of a workflow's Get; false for an error of the
// call itself.
func endingOf(err error) (ending, bool) {
	if err == nil {
		return ending{Status: "completed"}, true
	}
	var failed *temporal.WorkflowExecutionError
	if !errors.As(err, &failed) {
		return ending{}, false
	}
	report := &failureReport{Kind: failure.KindOf(err), Message: failure.Message(err)}
	var app *temporal.ApplicationError
	switch {
	case errors.As(err, &app):
		if app.HasDetails() {
			_ = app.Details(&report.Details) // what is no JSON is no report of ours
		}
		return ending{Status: "failed", Failure: report}, true
	case temporal.IsCanceledError(err):
		return ending{Status: "cancelled", Failure: &failureReport{Message: "somebody cancelled it"}}, true
	case temporal.IsTerminatedError(err):
		return ending{Status: "terminated", Failure: &failureReport{Message: "somebody terminated it"}}, true
	case temporal.IsTimeoutError(err):
		return ending{Status: "timed out", Failure: &failureReport{Message: "it took longer than its run timeout"}}, true
	default:
		report.Message = errors.Unwrap(failed).Error()
		return ending{Status: "failed", Failure: report}, true
	}
}

// of notes which procedure it was. A verification that found something failing
// has its findings in the failure's details; they are its result all the same.
func (e ending) of(name string) ending {
	e.Procedure = name
	if name == procedure.VerifyMesh && e.Failure != nil && e.Failure.Kind == failure.Unhealthy {
		e.Result, e.Failure.Details = e.Failure.Details, nil
	}
	return e
}

// verification is the findings that an ending carries, if any.
func (e ending) verification() (procedure.VerifyResult, bool) {
	var v procedure.VerifyResult
	ok := e.Procedure == procedure.VerifyMesh && json.Unmarshal(e.Result, &v) == nil && len(v.Findings) > 0
	return v, ok
}

// conclude prints how a procedure ended; its error carries the exit code.
func (c *cli) conclude(e ending, f *follower) error {
	if plan, ok := f.planOf(e); ok {
		return c.concludePlan(e, plan, f.again)
	}
	if found, ok := diagnosisResult(e); ok {
		return (&diagnosing{cli: c, mesh: found.Mesh, failOn: informational}).conclude(e, f)
	}
	if e.Procedure == procedure.Inventory && e.Failure == nil {
		return c.concludeInventory(e)
	}
	if c.json() {
		if err := c.printJSON(e); err != nil {
			return err
		}
	} else if e.Procedure == procedure.EmergencyReissue {
		c.paper().left(c.out, e.leftOut())
		c.paper().reissued(c.out, e, f.view.Asked, c)
	} else {
		c.paper().conclude(c.out, e, c)
	}
	verified, isVerification := e.verification()
	mesh := f.view.Progress.Mesh
	switch {
	case isVerification && !verified.Healthy:
		failing := 0
		for _, finding := range verified.Findings {
			if finding.Status == check.Fail {
				failing++
			}
		}
		return &exitError{code: exitUnhealthy, err: fmt.Errorf("mesh %s is not healthy: %d of %d checks fail", verified.Mesh, failing, len(verified.Findings)),
			next: "do what the failing checks say, then: " + c.again("verify", verified.Mesh)}
	case e.Failure != nil:
		return &exitError{code: exitFailed, err: fmt.Errorf("%s %s: %s", e.WorkflowID, e.Status, e.problem()), next: c.cure(e, f.again, mesh)}
	default:
		return nil
	}
}

// cure is what to do after a failure of that kind. It ends with the command.
func (c *cli) cure(e ending, again, mesh string) string {
	if again == "" && e.Procedure == procedure.SetupMesh {
		again = c.again("setup -f FILE") // which of them, the person knows
	}
	if again == "" {
		again = c.again("status", mesh)
	}
	kept := ""
	if e.Procedure == procedure.SetupMesh {
		kept = " (what is done already is left alone)"
	}
	switch e.Failure.Kind {
	case failure.InvalidInput:
		return "correct the input, then: " + again
	case failure.Locked:
		return "wait until what else runs has ended (" + c.again("status", mesh) + " shows it), then: " + again
	case failure.Unhealthy:
		if e.Procedure != procedure.AddCluster { // it is no member before it works
			again = c.again("verify", mesh)
		}
		return "put it right, then: " + again
	case failure.Incomplete, failure.Aborted:
		return again
	}
	return "put it right" + kept + ", then: " + again
}

// waiting ends a command whose procedure goes on only when a person has it go
// on: with what it waits for, and the commands.
func (c *cli) waiting(f *follower) error {
	p := f.view.Progress
	if c.json() {
		if err := c.printJSON(ending{WorkflowID: f.id, RunID: f.runID, Procedure: f.view.Type, Status: "waiting", Progress: &p}); err != nil {
			return err
		}
	} else if _, drawn := f.display.(*screen); !drawn { // the picture has them
		c.paper().parked(c.out, 2, parkedOf(p))
	}
	next := append(c.remedies(p.Procedure, p.Mesh, p.Paused, parkedOf(p)), c.again("watch", f.id))
	if p.Signing {
		next = append(c.toSign(p.Mesh), next...)
	}
	why := tidy(p.Awaiting)
	switch parked := len(parkedOf(p)); {
	case p.Paused != "":
		why = "paused: " + tidy(p.Paused)
	case parked == 1:
		why = "1 cluster is parked"
	case parked > 1:
		why = fmt.Sprintf("%d clusters are parked", parked)
	}
	return &exitError{code: exitWaiting, err: fmt.Errorf("workflow %s waits for you: %s", f.id, why), next: strings.Join(next, nextLine)}
}

// leftOut are the clusters that a procedure which failed has left out, from its
// report. One that was aborted has also those that it did not come to.
func (e ending) leftOut() []procedure.ClusterProgress {
	var report procedure.Progress
	if e.Failure == nil || json.Unmarshal(e.Failure.Details, &report) != nil {
		return nil
	}
	var left []procedure.ClusterProgress
	for _, cluster := range report.Clusters {
		switch cluster.State {
		case procedure.Parked, procedure.Skipped:
			left = append(left, cluster)
		case procedure.Failed, procedure.Pending, procedure.Running:
			if e.Failure.Kind == failure.Aborted {
				left = append(left, cluster)
			}
		}
	}
	return left
}

// problem is why a procedure failed, without the list of clusters that the
// table of those left out has.
func (e ending) problem() string {
	switch e.Failure.Kind {
	case failure.Incomplete, failure.Aborted:
		first, _, _ := strings.Cut(e.Failure.Message, "\n")
		return strings.TrimSuffix(first, ":")
	}
	return e.Failure.Message
}

// paper for what is printed once: as wide as the terminal, or as it takes where
// there is none.
func (c *cli) paper() paper { return paperOn(c.out) }

func paperOn(w io.Writer) paper {
	p := paper{width: 10000, height: 10000, ascii: asciiOnly(os.Getenv)}
	if file, ok := terminal(w); ok {
		seen := paperFor(file)
		p.width, p.colour = seen.width, seen.colour
	}
	return p
}

func (p paper) conclude(w io.Writer, e ending, c *cli) {
	p.left(w, e.leftOut())
	if v, ok := e.verification(); ok {
		p.findings(w, v.Findings)
	}
	var added procedure.AddClusterResult
	if e.Procedure == procedure.AddCluster && json.Unmarshal(e.Result, &added) == nil && added.Mesh != "" {
		p.added(w, added, c)
		return
	}
	var removed procedure.RemoveClusterResult
	if e.Procedure == procedure.RemoveCluster && json.Unmarshal(e.Result, &removed) == nil && removed.Mesh != "" {
		p.removed(w, removed, c)
		return
	}
	var renewed procedure.RefreshResult
	if e.Procedure == procedure.RotateIssuerCredentials && json.Unmarshal(e.Result, &renewed) == nil && renewed.Mesh != "" {
		p.renewed(w, renewed, c)
		return
	}
	var schedules procedure.SchedulesResult
	if e.Procedure == procedure.ApplySchedules && json.Unmarshal(e.Result, &schedules) == nil && schedules.Mesh != "" {
		p.scheduled(w, schedules, c)
		return
	}
	if rotated, ok := rotationResult(e); ok {
		p.rotated(w, rotated, c)
		return
	}
	var setup procedure.SetupResult
	if e.Procedure != procedure.SetupMesh || json.Unmarshal(e.Result, &setup) != nil || setup.Mesh == "" {
		if e.Failure == nil {
			fmt.Fprintf(w, "%s %s.\n", e.WorkflowID, e.Status)
		}
		return
	}
	if setup.Verification != nil {
		p.exceptions(w, setup.Verification.Findings)
	}
	p.authorities(w, setup)
	word := "is set up"
	if !setup.Changed {
		word = "was up to date: nothing was changed"
	}
	fmt.Fprintf(w, "Mesh %s %s.\nNext: %s\n      %s\n", setup.Mesh, word, c.again("status", setup.Mesh), c.again("verify", setup.Mesh))
}

func (p paper) authorities(w io.Writer, setup procedure.SetupResult) {
	rows := [][]span{{{"CERTIFICATE", dim}, {"SUBJECT", dim}, {"NOT AFTER", dim}}}
	row := func(name, subject string, notAfter time.Time) {
		rows = append(rows, []span{{tidy(name), plain}, {tidy(subject), plain}, {notAfter.UTC().Format("2006-01-02 15:04Z"), plain}})
	}
	row(setup.Root.Name, setup.Root.Subject, setup.Root.NotAfter)
	row(setup.Relay.Name, setup.Relay.Subject, setup.Relay.NotAfter)
	if len(setup.Server.DNSNames) > 0 {
		row("server", setup.Server.DNSNames[0], setup.Server.NotAfter)
	}
	for _, cluster := range setup.Clusters {
		if len(cluster.Leaf.DNSNames) > 0 {
			row("agent "+cluster.Cluster, cluster.Leaf.DNSNames[0], cluster.Leaf.NotAfter)
		}
	}
	p.table(w, 0, rows)
	fmt.Fprintln(w)
}

// left says what became of each cluster that was left out.
func (p paper) left(w io.Writer, clusters []procedure.ClusterProgress) {
	if len(clusters) == 0 {
		return
	}
	rows := [][]span{{{"NOT DONE", dim}, {"STATE", dim}, {"WHY", dim}}}
	for _, cluster := range clusters {
		state := string(cluster.State)
		if cluster.State == procedure.Running || cluster.State == procedure.Pending {
			state = "not finished"
		}
		rows = append(rows, []span{{tidy(cluster.Cluster), bold}, {state, yellow}, {tidy(cluster.Detail), plain}})
	}
	p.table(w, 0, rows)
	fmt.Fprintln(w)
}

// exceptions are the findings that somebody should read; the rest is counted.
func (p paper) exceptions(w io.Writer, findings []check.Finding) {
	var exceptions []check.Finding
	for _, f := range findings {
		if f.Status != check.Pass {
			exceptions = append(exceptions, f)
		}
	}
	p.findings(w, exceptions)
	fmt.Fprintf(w, "%d of %d checks pass; \"verify\" lists them all.\n\n", len(findings)-len(exceptions), len(findings))
}

// findings are printed by cluster, in the order in which clusters come first.
func (p paper) findings(w io.Writer, findings []check.Finding) {
	var clusters []string
	of := map[string][]check.Finding{}
	width := 0
	for _, f := range findings {
		if of[f.Cluster] == nil {
			clusters = append(clusters, f.Cluster)
		}
		of[f.Cluster] = append(of[f.Cluster], f)
		width = max(width, len([]rune(f.Check)))
	}
	// On a narrow terminal, what was found begins on a line of its own.
	at, narrow := 8+width, p.width < 3*width
	if narrow {
		at = 6
	}
	for _, cluster := range clusters {
		p.print(w, 0, span{tidy(cluster), bold})
		for _, f := range of[cluster] {
			verdict, name := p.verdict(f.Status), tidy(f.Check)
			if narrow {
				p.print(w, 2, verdict, span{"  " + name, plain})
				p.print(w, at, span{tidy(f.Message), plain})
			} else {
				for _, line := range p.wrap(2, at, verdict, span{"  " + pad(name, width), plain}, span{"  " + tidy(f.Message), plain}) {
					fmt.Fprintln(w, line)
				}
			}
			if f.Remedy != "" {
				p.print(w, at+2, span{"do: " + tidy(f.Remedy), yellow})
			}
		}
	}
	fmt.Fprintln(w)
}

func (p paper) verdict(s check.Status) span {
	return span{pad(string(s), 4), map[check.Status]style{check.Pass: green, check.Warn: yellow, check.Fail: red}[s]}
}
