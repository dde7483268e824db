package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/strict"
)

// emergencyCommand has one command for each thing that may be compromised, and one
// that ends what they leave.
func (c *cli) emergencyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "emergency",
		Short: "Replace what is compromised, and have nobody accept it any more",
		Long: `Replace a certificate or CA whose key others know, or may know, and have nobody accept
it any more. Nothing in the relay asks whether a certificate was revoked, and open
connections outlive it: what helps is that nobody's trust leads to it, and that
everybody connects anew.

Which command: the highest key that may be known decides. "root", if it is the root's,
or whoever had it could sign with the root; "intermediate", if it is the
intermediate's, or an unknown certificate of the mesh is about; "leaf", if it is that
of one or a few clusters.

What first: --first availability, while nobody is seen to use the key: no handshake
fails, and what is compromised is accepted until the end. --first containment, once
somebody does: the management server refuses it at once, and with it every agent, until
that has a new certificate. --plan with either changes nothing, and shows phase by phase
what would be done. If somebody is seen while it runs with availability first: abort it,
and give the same command with --first containment, which goes on from there.

It waits for no window, soak or approval, pauses the mesh's schedules until it is over,
and takes over a rotation that runs. The same command again goes on after a failure, or
after the run was lost. It is not taken back.`,
		Example: `  relaypki emergency leaf demo cluster2 --reason "node image published" --incident INC-4711
  relaypki emergency intermediate demo --first containment --reason "unknown agent connected" --incident INC-4711
  relaypki emergency root demo --first availability --reason "HSM backup lost" --incident INC-4711 --plan
  relaypki emergency lift demo --reason "the old intermediate has ended" --incident INC-4711`,
	}
	cmd.AddCommand(c.emergencyLeafCommand(), c.emergencyIntermediateCommand(), c.emergencyRootCommand(), c.emergencyLiftCommand())
	return cmd
}

func (c *cli) emergencyLeafCommand() *cobra.Command {
	in := &procedure.EmergencyInput{Compromised: procedure.CompromisedLeaf}
	cmd := &cobra.Command{
		Use:   "leaf MESH CLUSTER... --reason WHY --incident ID",
		Short: "The key of clusters' certificates is known",
		Long: `Replace the certificates of clusters whose key is known, and the management server's,
with new keys, and restart the server and these agents, which cuts all open connections.

The old certificate is accepted until it ends by itself, and the end says when: a day
at most, by default. If that is too long, --distrust has the intermediate replaced as
well and the new one pinned, so that nobody accepts anything of the old one; this is
"relaypki emergency intermediate" in all but the name, and takes --first. It stays
pinned until "relaypki emergency lift".

While a CA is being rotated or pinned, certificates alone are not issued anew: that is
refused without --distrust.`,
		Example: `  relaypki emergency leaf demo cluster2 --reason "node image published" --incident INC-4711
  # Have it refused, before it ends by itself:
  relaypki emergency leaf demo cluster2 --distrust --first containment --reason "used from elsewhere" --incident INC-4711`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: c.completeClusters(),
	}
	cmd.Flags().BoolVar(&in.Distrust, "distrust", false, "have it refused before it ends: replace the intermediate, and pin the new one")
	firstFlag(cmd, in)
	return c.startsEmergency(cmd, in)
}

func (c *cli) emergencyIntermediateCommand() *cobra.Command {
	in := &procedure.EmergencyInput{Compromised: procedure.CompromisedIntermediate}
	cmd := &cobra.Command{
		Use:   "intermediate MESH --first availability|containment --reason WHY --incident ID",
		Short: "The intermediate's key is known",
		Long: `Replace the intermediate, and pin the new one: it takes the root's place as what
everybody trusts, because what the old one signs leads to the root as well.

--first availability: no handshake fails. The new intermediate is made, everybody gets
a certificate of it, then the agents and at last the server trust it alone; what the
old one signs is accepted until then.

--first containment: the server trusts the new intermediate alone at once. That cuts off
every agent, until it has a certificate and the trust to go with it; all are worked on
at once. One that does not answer stays cut off.

It stays pinned until "relaypki emergency lift", and no other rotation of the mesh's
CAs begins until then.`,
		Example: `  relaypki emergency intermediate demo --first containment --reason "unknown agent connected" --incident INC-4711
  # What would be done?
  relaypki emergency intermediate demo --first containment --reason drill --incident none --plan
  # As commands, for the night when Temporal is down:
  relaypki emergency intermediate demo --first availability --reason drill --incident none --plan -o commands > emergency.sh`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: c.completeMesh,
	}
	firstFlag(cmd, in)
	return c.startsEmergency(cmd, in)
}

func (c *cli) emergencyRootCommand() *cobra.Command {
	in := &procedure.EmergencyInput{Compromised: procedure.CompromisedRoot}
	cmd := &cobra.Command{
		Use:   "root MESH --first availability|containment --reason WHY --incident ID",
		Short: "The root's key is known",
		Long: `Replace the root, and the intermediate with it. A next root that stands by
(pki.standbyRoot) is taken: the agents trust it already. Nothing stays pinned.

--first availability: no handshake fails. It is "relaypki rotate root" in a hurry, four
passes over the mesh; what the old root signs is accepted until the last.

--first containment: the server presents and trusts the new root alone at once. That
cuts off every agent, until it has a certificate and the trust to go with it; all are
worked on at once. One that does not answer stays cut off.`,
		Example: `  relaypki emergency root demo --first availability --reason "HSM backup lost" --incident INC-4711 --plan
  relaypki emergency root demo --first availability --reason "HSM backup lost" --incident INC-4711
  relaypki emergency root demo --first containment --reason "forged certificates seen" --incident INC-4711`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: c.completeMesh,
	}
	firstFlag(cmd, in)
	return c.startsEmergency(cmd, in)
}

func (c *cli) emergencyLiftCommand() *cobra.Command {
	in := &procedure.EmergencyInput{Lift: true}
	cmd := &cobra.Command{
		Use:   "lift MESH --reason WHY --incident ID",
		Short: "Trust the root again, after an emergency that has left an intermediate pinned",
		Long: `End what an emergency has left pinned: everybody trusts the root again, and the mesh's
CAs can be rotated as before. No handshake fails.

With the root, what the replaced intermediate signs is accepted again, until its own
certificate has ended. As long as that is so the lift is refused, unless --exposed-ok
says that you know. Say so if the intermediate's key is not known to others, because it
was a leaf's that was. Else have the root replaced in its place: "relaypki emergency root
--first containment" may follow at once, and leaves nothing pinned.`,
		Example: `  relaypki emergency lift demo --reason "the old intermediate has ended" --incident INC-4711
  # Only a leaf was known, and it has ended:
  relaypki emergency lift demo --exposed-ok --reason "the leaf has ended" --incident INC-4711`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: c.completeMesh,
	}
	cmd.Flags().BoolVar(&in.Exposed, "exposed-ok", false, "your word that what the replaced intermediate signs may be accepted again")
	return c.startsEmergency(cmd, in)
}

// firstFlag says what comes first, where trust changes.
func firstFlag(cmd *cobra.Command, in *procedure.EmergencyInput) {
	cmd.Flags().StringVar(&in.First, "first", "", "what comes first, where trust changes: availability (no handshake fails) or containment (all are cut off until they have new certificates)")
	_ = cmd.RegisterFlagCompletionFunc("first", cobra.FixedCompletions([]string{
		procedure.AvailabilityFirst + "\tno handshake fails; what is compromised is accepted until the end",
		procedure.ContainmentFirst + "\tit is refused at once, and with it every agent until it is issued anew",
	}, nothingElse)) // fails only if there is no such flag
}

// startsEmergency completes a command of what it takes to start EmergencyReissue.
func (c *cli) startsEmergency(cmd *cobra.Command, in *procedure.EmergencyInput) *cobra.Command {
	var taskQueue string
	var detach, plan, yes bool
	flags := cmd.Flags()
	flags.StringVar(&in.Reason, "reason", "", "what has happened, for whoever looks at this later")
	flags.StringVar(&in.Incident, "incident", "", "the incident's id in your own records")
	yesFlag(cmd, &yes)
	rotateFlags(cmd, &taskQueue, &detach, &plan)
	for _, name := range []string{"reason", "incident"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions) // fails only if there is no such flag
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		in.Mesh, in.Clusters, in.Plan = args[0], args[1:], plan
		problems := in.Validate()
		if !meshName.MatchString(in.Mesh) {
			problems = append(problems, strict.Problem{Path: "mesh", Message: fmt.Sprintf("%q is not the name of a mesh", in.Mesh)})
		}
		if len(problems) == 0 && !plan {
			if err := c.confirm(cmd, yes, dangerOf(*in)); err != nil {
				return err
			}
		}
		return c.launchMember(cmd, problems, in, launch{
			procedure: procedure.EmergencyReissue, id: planID(procedure.ID(procedure.EmergencyReissue, in.Mesh), plan), taskQueue: taskQueue, detach: detach,
			summary: fmt.Sprintf("Emergency %s of mesh %s: %s", tidy(in.Incident), in.Mesh, occasion(*emergencyFor(in))),
			details: tidy(in.Reason),
			again:   c.onceMore(cmd, args, "distrust", "first", "exposed-ok", "reason", "incident", "yes"),
		})
	}
	return cmd
}

// dangerOf says in plain words what an emergency cuts. What cannot be taken back is
// confirmed by the mesh's name.
func dangerOf(in procedure.EmergencyInput) danger {
	const restarts = "The management server and every agent are restarted, which cuts each connection for as long as that takes."
	switch {
	case in.Lift:
		d := danger{question: fmt.Sprintf("Have everybody in mesh %s trust the root again?", in.Mesh), consequence: restarts + " No handshake fails."}
		if in.Exposed {
			d.consequence += " What the replaced intermediate signs is accepted again, until its own certificate has ended."
		}
		return d
	case !in.Pins() && in.Compromised == procedure.CompromisedLeaf:
		return danger{
			question: fmt.Sprintf("Replace the certificates of %s in mesh %s, and the management server's?", some(in.Clusters), in.Mesh),
			consequence: "The management server and these agents are restarted: every agent's connection is cut, and made anew. " +
				"The old certificates are accepted until they end by themselves; with --distrust they are not.",
		}
	}
	d := danger{name: in.Mesh, question: fmt.Sprintf("Replace the intermediate of mesh %s, and trust the new one alone?", in.Mesh)}
	if in.Compromised == procedure.CompromisedRoot {
		d.question = fmt.Sprintf("Replace the root and the intermediate of mesh %s?", in.Mesh)
	}
	if in.First == procedure.ContainmentFirst {
		d.consequence = "EVERY agent of the mesh is cut off at once: the management server accepts new certificates alone, and an agent has none until it is issued one, given the new trust and restarted. " +
			"All clusters are worked on at once; one that does not answer stays cut off until it does."
	} else {
		d.consequence = restarts + " No handshake fails, and what is compromised is accepted until the end."
	}
	d.consequence += " It cannot be taken back."
	if in.Pins() {
		d.consequence += " No other rotation of the mesh's CAs begins until you lift it (relaypki emergency lift)."
	}
	return d
}

// emergencyFor is what an input says of an emergency; nothing is compromised where one
// is lifted.
func emergencyFor(in *procedure.EmergencyInput) *procedure.Emergency {
	if in == nil {
		return nil
	}
	return &procedure.Emergency{Compromised: in.Compromised, Clusters: in.Clusters, Distrust: in.Distrust, First: in.First, Reason: in.Reason, Incident: in.Incident}
}

// emergencyAsked is the input of a run of EmergencyReissue; nil if it cannot be read.
func (t *server) emergencyAsked(ctx context.Context, id, runID string) *procedure.EmergencyInput {
	input, err := t.input(ctx, id, runID)
	var in procedure.EmergencyInput
	if err != nil || json.Unmarshal(input, &in) != nil {
		return nil
	}
	return &in
}

// occasion says in a few words what an emergency is for.
func occasion(e procedure.Emergency) string {
	var what string
	switch e.Compromised {
	case "":
		return "what was pinned is lifted"
	case procedure.CompromisedLeaf:
		what = "leaf of " + some(e.Clusters) + " compromised"
	default:
		what = tidy(e.Compromised) + " compromised"
	}
	if e.First != "" {
		what += ", " + tidy(e.First) + " first"
	}
	return what
}

// someNames is how many names are listed in a sentence.
const someNames = 4

// some names a few, and counts the others.
func some(names []string) string {
	if more := len(names) - someNames; more > 0 {
		return tidy(fmt.Sprintf("%s and %d more", strings.Join(names[:someNames], ", "), more))
	}
	return tidy(strings.Join(names, ", "))
}

// milestone is what an emergency is measured by.
type milestone struct {
	name string
	at   time.Time
}

// milestones are those that an emergency has, in the order in which they come. Nobody's
// trust changes for a leaf that is accepted until it ends, nor is anything measured of a
// lift.
func milestones(e procedure.Emergency) []milestone {
	reconnected := milestone{"reconnected", e.Reconnected}
	switch {
	case e.Compromised == "":
		return nil
	case e.Compromised == procedure.CompromisedLeaf && !e.Distrust:
		return []milestone{reconnected}
	}
	all := []milestone{{"issuing stopped", e.IssuingStopped}, {"server distrusts", e.ServerDistrusts}, {"distrusted everywhere", e.Distrusted}, reconnected}
	if e.Compromised == procedure.CompromisedLeaf && e.IssuingStopped.IsZero() {
		return all[1:] // a leaf issues nothing
	}
	return all
}

// reached are the milestones that have come, each with the time that it took.
func reached(e procedure.Emergency) []string {
	var done []string
	for _, m := range milestones(e) {
		if !m.at.IsZero() {
			done = append(done, m.name+" after "+elapsed(m.at.Sub(e.Began)))
		}
	}
	return done
}

// times is the table of what an emergency is measured by. What has not come is said so.
func (p paper) times(w io.Writer, e procedure.Emergency) {
	all := milestones(e)
	if e.Began.IsZero() || len(all) == 0 {
		return
	}
	rows := [][]span{{{"MEASURED", dim}, {"AFTER", dim}, {"AT", dim}}, {{"began", plain}, {}, {clock(e.Began), plain}}}
	for _, m := range all {
		if m.at.IsZero() {
			rows = append(rows, []span{{m.name, plain}, {"has not come", yellow}, {}})
			continue
		}
		rows = append(rows, []span{{m.name, plain}, {elapsed(m.at.Sub(e.Began)), bold}, {clock(m.at), plain}})
	}
	p.table(w, 2, rows)
	fmt.Fprintln(w)
}

func clock(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05Z") }

// emergency is what a run that has ended tells of its emergency: in its result or, if it
// failed, in its report; nil if it does not.
func (e ending) emergency() *procedure.Emergency {
	var told struct{ Emergency *procedure.Emergency }
	from := e.Result
	if e.Failure != nil {
		from = e.Failure.Details
	}
	if e.Procedure != procedure.EmergencyReissue || json.Unmarshal(from, &told) != nil {
		return nil
	}
	return told.Emergency
}

// reissued says how an emergency ended: what it was for, how long it took, and what it
// has left.
func (p paper) reissued(w io.Writer, end ending, asked *procedure.EmergencyInput, c *cli) {
	r, _ := rotationResult(end)
	if r.Verification != nil {
		p.exceptions(w, r.Verification.Findings)
	}
	p.leaves(w, r)
	e, lifted := end.emergency(), asked != nil && asked.Lift
	if lifted || e == nil {
		e = emergencyFor(asked)
	}
	if e == nil {
		if end.Failure == nil {
			fmt.Fprintf(w, "%s %s.\n", end.WorkflowID, end.Status)
		}
		return
	}
	p.print(w, 0, span{"Incident " + tidy(e.Incident), bold}, span{": " + tidy(e.Reason) + " (" + occasion(*e) + ")", plain})
	if e.TookOver != "" {
		p.print(w, 2, span{"It took over " + tidy(e.TookOver) + ".", plain})
	}
	p.times(w, *e)
	if !e.AcceptedUntil.IsZero() {
		p.print(w, 0, span{"Accepted until " + clock(e.AcceptedUntil) + " is what was compromised: nobody's trust was changed.", yellow})
	}
	if e.Pinned {
		for _, line := range p.pinned(r) {
			p.print(w, 0, line)
		}
	}
	if end.Failure != nil {
		return
	}
	switch {
	case e.Pinned: // that has been said
	case lifted:
		p.print(w, 0, span{fmt.Sprintf("Mesh %s: the root is trusted again, and nothing is pinned.", r.Mesh), plain})
	case r.From.Name != "":
		p.print(w, 0, span{fmt.Sprintf("Mesh %s: every certificate is of %s, until %s; nobody accepts what %s signs.", r.Mesh, r.To.Name, r.To.NotAfter.UTC().Format("2006-01-02 15:04Z"), r.From.Name), plain})
	default:
		p.print(w, 0, span{fmt.Sprintf("Mesh %s: the certificates of %s and the management server's are issued anew.", r.Mesh, some(e.Clusters)), plain})
	}
	next := []string{c.again("verify", r.Mesh)}
	if e.Pinned {
		next = append(next, c.lift(r.Mesh))
	}
	fmt.Fprintf(w, "Next: %s\n", strings.Join(next, nextLine))
}

// pinned says what it means that an intermediate stays pinned.
func (p paper) pinned(r procedure.RotateResult) []span {
	to := "the new intermediate"
	if r.To.Name != "" {
		to = r.To.Name
	}
	lines := []span{{"It stays pinned: " + to + " is all that is trusted, and no rotation of the mesh's CAs begins until that is lifted.", yellow}}
	if !r.From.NotAfter.IsZero() {
		lines = append(lines, span{fmt.Sprintf("What %s signs would be accepted again until %s, when it ends.", r.From.Name, r.From.NotAfter.UTC().Format("2006-01-02 15:04Z")), plain})
	}
	return lines
}

// emergencyStatus is the emergency that a mesh is in, or that was last.
type emergencyStatus struct {
	WorkflowID string `json:"workflowId"`
	Running    bool   `json:"running,omitempty"`
	procedure.Emergency
}

// lastEmergency is the emergency that runs, or else the latest of which something came:
// one that was refused has left the mesh as the one before it did. The runs are the
// latest first.
func (t *server) lastEmergency(ctx context.Context, executions []execution) *emergencyStatus {
	var nothing *emergencyStatus
	for _, e := range executions {
		if e.Procedure != procedure.EmergencyReissue || e.child || strings.HasPrefix(e.WorkflowID, planID("", true)) {
			continue
		}
		of, asked := e.emergency, t.emergencyAsked(ctx, e.WorkflowID, e.RunID)
		if e.Ended != nil {
			of = t.emergencyEnded(ctx, e)
		}
		switch lifts := asked != nil && asked.Lift; {
		case lifts && (e.Ended == nil || e.State == "completed"), of == nil && e.Ended == nil:
			of = emergencyFor(asked)
		}
		if of == nil {
			continue
		}
		found := &emergencyStatus{WorkflowID: e.WorkflowID, Running: e.Ended == nil, Emergency: *of}
		if found.Running || e.State == "completed" || of.Pinned || len(reached(*of)) > 0 {
			return found
		}
		if nothing == nil {
			nothing = found
		}
	}
	return nothing
}

// emergencyEnded is what a run that has ended tells of its emergency; nil if it does not.
func (t *server) emergencyEnded(ctx context.Context, e execution) *procedure.Emergency {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	end, err := t.await(ctx, e.WorkflowID, e.RunID)
	if err != nil {
		return nil
	}
	return end.of(e.Procedure).emergency()
}

func (c *cli) printEmergency(p paper, m meshStatus) {
	e := m.Emergency
	if e == nil {
		return
	}
	name, shade := "Last emergency: ", plain
	if e.Running || e.Pinned {
		name, shade = "EMERGENCY: ", red
	}
	p.print(c.out, 2, span{name, shade}, span{tidy(e.Incident), bold}, span{": " + tidy(e.Reason) + " (" + occasion(e.Emergency) + "; workflow " + tidy(e.WorkflowID) + ")", plain})
	if done := reached(e.Emergency); len(done) > 0 {
		p.print(c.out, 4, span{strings.Join(done, "; "), plain})
	}
	if !e.AcceptedUntil.IsZero() {
		p.print(c.out, 4, span{"accepted until " + clock(e.AcceptedUntil), plain})
	}
	if e.Pinned && !e.Running {
		p.print(c.out, 4, span{"its intermediate stays pinned, and no rotation of the mesh's CAs begins, until:", yellow})
		c.say("    %s", c.lift(m.Mesh))
	}
}

// lift is the command that ends what an emergency has left pinned.
func (c *cli) lift(mesh string) string {
	return c.again("emergency", "lift", mesh, "--reason", "WHY", "--incident", "ID")
}

// notTakenBack refuses to take back an emergency, which runs or was last.
func (c *cli) notTakenBack(last execution) error {
	if last.Ended == nil {
		return badInput(c.again("watch", last.WorkflowID), "an emergency is at work on mesh %s (workflow %s), and is not taken back: what was compromised would be trusted again", last.Mesh, last.WorkflowID)
	}
	return badInput(strings.Join([]string{c.lift(last.Mesh), c.again("status", last.Mesh)}, nextLine),
		"what was done last to the CAs of mesh %s is an emergency (workflow %s), which is not taken back: what was compromised would be trusted again. What it has left pinned is lifted", last.Mesh, last.WorkflowID)
}
