//go:build soak

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/relaypki/relaypki/internal/site"
)

// This file is in the worker of test/e2e/soak_test.go alone. That worker kills
// itself with SIGKILL at every boundary of a run in turn, once: before and after
// an activity's code has run, and before a request that writes is sent and after
// its answer has come. What it has been killed at is a file in a directory.
//
// What runs side by side reaches its boundaries side by side: once one of them
// is due, the others get a moment to come to theirs, where they stop too, and
// one kill is for all of them. A write that is under way is waited for, so that
// none is ever done without a kill after it.

const (
	// gatherFor is that moment.
	gatherFor = 300 * time.Millisecond
	// answersWithin bounds the wait for writes that are under way.
	answersWithin = 20 * time.Second
)

func init() { onTrial = soak }

// boundary is a point at which the worker is killed once. The test reads it.
type boundary struct {
	// Workflow, Activity and ID are empty for what Helm writes.
	Workflow, Activity, ID string
	// Effect is a write, empty for the activity itself; Server where it is, empty
	// for an object of a chart.
	Server, Effect string
	Side           string // before or after
	// Process is the one that was killed there.
	Process int
}

type soaking struct {
	dir, run string
	// only is of which activities; nil for all, and for what Helm writes.
	only *regexp.Regexp
	seed uint64
	// oneIn: of so many boundaries one is due.
	oneIn uint64

	mu       sync.Mutex
	dying    bool
	underWay int
}

func soak(options *worker.Options, clients *site.Clients) {
	s := &soaking{dir: os.Getenv("RELAYPKI_SOAK_DIR"), run: os.Getenv("RELAYPKI_SOAK_RUN")}
	var errSeed, errOneIn error
	s.seed, errSeed = strconv.ParseUint(os.Getenv("RELAYPKI_SEED"), 10, 64)
	s.oneIn, errOneIn = strconv.ParseUint(os.Getenv("RELAYPKI_SOAK_ONE_IN"), 10, 64)
	if err := errors.Join(errSeed, errOneIn); err != nil || s.dir == "" || s.run == "" || s.oneIn == 0 {
		panic(fmt.Sprintf("RELAYPKI_SOAK_DIR, RELAYPKI_SOAK_RUN, RELAYPKI_SOAK_ONE_IN, RELAYPKI_SEED: %v", err))
	}
	if only := os.Getenv("RELAYPKI_SOAK_ONLY"); only != "" {
		s.only = regexp.MustCompile("^(" + only + ")$")
	}
	options.Interceptors = append(options.Interceptors, &soakingActivities{soaking: s})
	clients.Wrap = func(server string, transport http.RoundTripper) http.RoundTripper {
		return &soakingWrites{s, server, transport}
	}
	if s.oneIn == 1 {
		// No budget foresees that a worker dies twenty times in one activity, and
		// hundreds of kills should not wait eight seconds each to be noticed.
		options.Interceptors = append(options.Interceptors, &unhurried{})
		options.MaxHeartbeatThrottleInterval = time.Second
		options.StickyScheduleToStartTimeout = time.Second
	}
}

// reach returns unless the worker is about to be killed; then it never does.
// started is added to the number of writes under way if it returns, ended in
// any case.
func (s *soaking) reach(b boundary, started, ended int) {
	s.mu.Lock()
	s.underWay += ended
	if s.due(b) && s.note(b) && !s.dying {
		s.dying = true
		go s.die()
	}
	if !s.dying {
		s.underWay += started
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	select {}
}

func (b boundary) key() string {
	return strings.Join([]string{b.Workflow, b.Activity, b.ID, b.Server, b.Effect, b.Side}, "|")
}

func (s *soaking) due(b boundary) bool {
	hash := sha256.Sum256([]byte(fmt.Sprintf("%d|%s", s.seed, b.key())))
	return binary.BigEndian.Uint64(hash[:])%s.oneIn == 0
}

// note is true if the worker has not been killed at this boundary before.
func (s *soaking) note(b boundary) bool {
	b.Process = os.Getpid()
	hash := sha256.Sum256([]byte(b.key()))
	file, err := os.OpenFile(filepath.Join(s.dir, hex.EncodeToString(hash[:12])), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return false
	}
	if err != nil {
		panic(err)
	}
	if err := errors.Join(json.NewEncoder(file).Encode(b), file.Sync(), file.Close()); err != nil {
		panic(err)
	}
	return true
}

func (s *soaking) die() {
	time.Sleep(gatherFor)
	for end := time.Now().Add(answersWithin); ; time.Sleep(10 * time.Millisecond) {
		s.mu.Lock() // and with it whoever writes a file
		if s.underWay == 0 || time.Now().After(end) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		s.mu.Unlock()
	}
}

// at is the boundary without its side; false for what is not of the run.
func (s *soaking) at(ctx context.Context) (boundary, bool) {
	if !activity.IsActivity(ctx) {
		return boundary{}, s.only == nil // Helm, which is given no context
	}
	info := activity.GetInfo(ctx)
	id, name := info.WorkflowExecution.ID, info.ActivityType.Name
	ours := (id == s.run || strings.HasPrefix(id, s.run+"/")) && (s.only == nil || s.only.MatchString(name))
	return boundary{Workflow: id, Activity: name, ID: info.ActivityID}, ours
}

type soakingActivities struct {
	interceptor.WorkerInterceptorBase
	*soaking
}

func (s *soakingActivities) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	return &soakingActivity{interceptor.ActivityInboundInterceptorBase{Next: next}, s.soaking}
}

type soakingActivity struct {
	interceptor.ActivityInboundInterceptorBase
	*soaking
}

func (s *soakingActivity) ExecuteActivity(ctx context.Context, in *interceptor.ExecuteActivityInput) (any, error) {
	b, ours := s.at(ctx)
	if !ours {
		return s.Next.ExecuteActivity(ctx, in)
	}
	b.Side = "before"
	s.reach(b, 0, 0)
	result, err := s.Next.ExecuteActivity(ctx, in)
	if err == nil {
		b.Side = "after"
		s.reach(b, 0, 0)
	}
	return result, err
}

// soakingWrites is around the transport to a server.
type soakingWrites struct {
	*soaking
	server string
	next   http.RoundTripper
}

func (s *soakingWrites) RoundTrip(req *http.Request) (*http.Response, error) {
	b, ours := s.at(req.Context())
	effect, err := effectOf(req, b.Activity == "")
	if err != nil {
		return nil, err
	}
	if !ours || effect == "" {
		return s.next.RoundTrip(req)
	}
	b.Server, b.Effect, b.Side = s.server, effect, "before"
	if strings.HasPrefix(effect, "helm ") && !strings.Contains(effect, " release ") {
		b.Server = "" // a chart is the same in each of them
	}
	s.reach(b, 1, 0)
	response, err := s.next.RoundTrip(req)
	if err != nil || response.StatusCode >= http.StatusBadRequest {
		s.mu.Lock()
		s.underWay--
		s.mu.Unlock()
		return response, err
	}
	b.Side = "after"
	s.reach(b, 0, -1)
	return response, nil
}

var (
	// readOnly are requests that are POSTs or PUTs and leave nothing behind, or
	// a login alone.
	readOnly     = regexp.MustCompile(`/(self|local)?subject(access|rules)?reviews$|/portforward$|/serviceaccounts/[^/]+/token$|^/v1/sys/capabilities-self$|^/v1/auth/.*/login$|^/v1/auth/token/renew-self$|/lookup(-self)?$`)
	helmRelease  = regexp.MustCompile(`"meta\.helm\.sh/release-name":\s*"([^"]+)"`)
	helmRevision = regexp.MustCompile(`sh\.helm\.release\.v1\.([a-z0-9-]+)\.v\d+`)
	// Of a label, in JSON as in protobuf.
	helmStatus = regexp.MustCompile(`status[^a-z]{2,5}(deployed|failed|superseded|uninstalled|uninstalling|pending-[a-z]+)`)
)

// effectOf names what a request of ours, or of Helm's, writes; empty if it writes
// nothing. A killed Helm makes a revision more, with the same objects: revisions
// of a release are told apart by their state, and of a chart's objects, which
// Helm writes all in one way, each kind is one effect.
func effectOf(req *http.Request, helm bool) (string, error) {
	path := req.URL.Path
	switch {
	case req.Method != http.MethodPost && req.Method != http.MethodPut && req.Method != http.MethodPatch && req.Method != http.MethodDelete,
		req.URL.Query().Get("dryRun") != "", readOnly.MatchString(path):
		return "", nil
	}
	if !helm {
		return req.Method + " " + path, nil
	}
	var body []byte
	if req.Body != nil {
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return "", err
		}
		_ = req.Body.Close()
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	if release := helmRevision.FindStringSubmatch(path + string(body)); release != nil {
		state := ""
		if status := helmStatus.FindSubmatch(body); status != nil {
			state = " " + string(status[1])
		}
		return fmt.Sprintf("helm %s release %s%s", req.Method, release[1], state), nil
	}
	parts, release := strings.Split(path, "/"), ""
	if found := helmRelease.FindSubmatch(body); found != nil {
		release = " of " + string(found[1])
	}
	kind := parts[len(parts)-1]
	if req.Method != http.MethodPost {
		kind = parts[len(parts)-2]
	}
	return fmt.Sprintf("helm %s %s%s", req.Method, kind, release), nil
}

// unhurried lets activities take as long as it takes, and be missed soon.
type unhurried struct {
	interceptor.WorkerInterceptorBase
}

func (*unhurried) InterceptWorkflow(_ workflow.Context, next interceptor.WorkflowInboundInterceptor) interceptor.WorkflowInboundInterceptor {
	return &unhurriedInbound{interceptor.WorkflowInboundInterceptorBase{Next: next}}
}

type unhurriedInbound struct {
	interceptor.WorkflowInboundInterceptorBase
}

func (i *unhurriedInbound) Init(outbound interceptor.WorkflowOutboundInterceptor) error {
	return i.Next.Init(&unhurriedOutbound{interceptor.WorkflowOutboundInterceptorBase{Next: outbound}})
}

type unhurriedOutbound struct {
	interceptor.WorkflowOutboundInterceptorBase
}

func (o *unhurriedOutbound) ExecuteActivity(ctx workflow.Context, activityType string, args ...any) workflow.Future {
	ctx = workflow.WithHeartbeatTimeout(ctx, 3*time.Second)
	ctx = workflow.WithScheduleToCloseTimeout(ctx, 24*time.Hour)
	ctx = workflow.WithRetryPolicy(ctx, temporal.RetryPolicy{InitialInterval: 200 * time.Millisecond, BackoffCoefficient: 1})
	return o.Next.ExecuteActivity(ctx, activityType, args...)
}
