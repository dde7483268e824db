package check

import (
	"fmt"
	"slices"

	"github.com/relaypki/relaypki/internal/secret"
)

// Status is the verdict of one check.
type Status string

const (
	Pass Status = "pass"
	// Note is worth knowing, and nothing that has to be done. VerifyMesh makes none.
	Note Status = "note"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Finding is the verdict of one check on one thing.
type Finding struct {
	// Check is the stable name of the check: "certificate-ready", "handshake".
	Check string `json:"check"`
	// Cluster is the registered name, or the management cluster's context.
	Cluster string `json:"cluster"`
	// Object is what was looked at, where one check looks at several:
	// "Pod gloo-mesh-agent-7c6f", "role relay-client-cluster1".
	Object string `json:"object,omitempty"`
	Status Status `json:"status"`
	// Message says what was seen.
	Message string `json:"message"`
	// Remedy says what to do, for warn and fail.
	Remedy string `json:"remedy,omitempty"`
	// Evidence is what Message relies on, a line each, as it is found in the object:
	// "Certificate gloo-mesh/relay-client-tls, condition Ready: False, Expired". Of a
	// diagnosis alone.
	Evidence []string `json:"evidence,omitempty"`
	// Commands are the remedy as commands to be pasted; of a diagnosis alone.
	Commands []string `json:"commands,omitempty"`
	// Mend is what relaypki itself can do about it; of a diagnosis alone.
	Mend *Mend `json:"mend,omitempty"`
	// Denied: nothing was seen, since the worker lacks the right to look.
	Denied bool `json:"denied,omitempty"`
	// Transient: it may pass by itself in a moment. A server did not answer, so that
	// nothing was seen, or has not loaded yet what has just been stored.
	Transient bool `json:"transient,omitempty"`
}

// Mend is something that relaypki can do about a finding.
type Mend struct {
	// Do is what: one of the constants below.
	Do Doing `json:"do"`
	// Cluster is where, for those that are of one cluster: as in Finding.Cluster.
	Cluster string `json:"cluster,omitempty"`
}

// Doing is a way to mend. In this order they are made.
type Doing string

const (
	// SetUp runs SetupMesh with the mesh's own spec: whatever it makes is made again
	// where it is missing or differs.
	SetUp Doing = "setup"
	// Reissue has the cluster's certificate issued anew, and what uses it take it up.
	Reissue Doing = "reissue"
	// Restart restarts the cluster's agent, or the management server.
	Restart Doing = "restart"
)

// Healthy is true when nothing failed.
func Healthy(findings []Finding) bool {
	for _, f := range findings {
		if f.Status == Fail {
			return false
		}
	}
	return true
}

// Transient says that something failed that may pass by itself in a moment.
func Transient(findings []Finding) bool {
	return slices.ContainsFunc(findings, func(f Finding) bool { return f.Status == Fail && f.Transient })
}

// report collects the findings of one cluster.
type report struct {
	cluster  string
	findings []Finding
	// diagnosis: what a finding has in a diagnosis alone is filled in.
	diagnosis bool
	// unread are the indices of findings on what could not be read: nothing is known
	// of it that could be mended.
	unread []int
}

func (r *report) pass(check, object, format string, args ...any) {
	r.add(check, object, Pass, fmt.Sprintf(format, args...), "")
}

func (r *report) warn(check, object, message, remedy string) {
	r.add(check, object, Warn, message, remedy)
}

func (r *report) fail(check, object, message, remedy string) {
	r.add(check, object, Fail, message, remedy)
}

// transient is a failure that may pass by itself in a moment.
func (r *report) transient(check, object, message, remedy string) {
	r.fail(check, object, message, remedy)
	r.findings[len(r.findings)-1].Transient = true
}

func (r *report) add(check, object string, status Status, message, remedy string) {
	r.findings = append(r.findings, Finding{Check: check, Cluster: r.cluster, Object: object, Status: status, Message: secret.Withhold(message), Remedy: remedy})
}
