// Package relay has the activities that look at the relay itself: what the
// management server serves and trusts, who is connected, and whether a fresh
// handshake would succeed. They change nothing.
package relay

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/check/observe"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/site"
)

// Activities holds what the activities need. Its exported methods are the activities.
type Activities struct{ Clients *site.Clients }

// VerifyManagementInput asks for the checks of the management cluster.
type VerifyManagementInput struct {
	// Spec has the workloads that are looked at; Others are the rest of the
	// mesh's, which may be registered too.
	Spec   mesh.Spec `json:"spec"`
	Others []string  `json:"others,omitempty"`
	// Pin is as the mesh's record has it.
	Pin check.Pin `json:"pin,omitempty"`
	// Settle is how long to wait for the server's Pods to be ready and for its
	// gauges to count every cluster, which takes a moment after an installation,
	// and for servers that do not answer; 0 looks once.
	Settle mesh.Duration `json:"settle,omitzero"`
	// Diagnose looks at more than whether the relay works, and has findings with
	// evidence, commands and mends.
	Diagnose bool `json:"diagnose,omitempty"`
}

// VerifyManagementResult has the findings.
type VerifyManagementResult struct {
	Findings []check.Finding `json:"findings"`
}

// VerifyManagement checks Vault, the Issuer, the server's Certificate and what
// each replica of the server has loaded (its chain and acceptable CAs, by
// handshake), the gauges and the registrations. Whatever is found wrong, an API
// server that does not answer included, is a finding; an error means that the
// worker's own configuration does not know the cluster.
func (a *Activities) VerifyManagement(ctx context.Context, in VerifyManagementInput) (VerifyManagementResult, error) {
	defer kube.Heartbeating(ctx, "looking")()
	spec := in.Spec.WithDefaults()
	end := time.Now().Add(in.Settle.Duration)
	if err := a.settle(ctx, spec, end); err != nil {
		return VerifyManagementResult{}, err
	}
	findings, err := lookUntil(ctx, end, func() ([]check.Finding, error) {
		look, judge := observe.Management, check.Management.Findings
		if in.Diagnose {
			look, judge = observe.DiagnoseManagement, check.Management.Diagnose
		}
		seen, err := look(ctx, a.Clients, spec)
		if err != nil {
			return nil, err
		}
		seen.Others, seen.Pin = in.Others, in.Pin
		return judge(seen, time.Now()), nil
	})
	return VerifyManagementResult{Findings: findings}, err
}

// lookUntil looks until nothing fails that may pass by itself, or until the end:
// what then still fails is what was found.
func lookUntil(ctx context.Context, end time.Time, look func() ([]check.Finding, error)) ([]check.Finding, error) {
	for {
		findings, err := look()
		if err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !check.Transient(findings) || !time.Now().Before(end) {
			return findings, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(settlePoll):
		}
	}
}

// settlePoll is short beside the seconds that an agent takes to connect, or a
// server to restart.
const settlePoll = time.Second

// settle waits until the relay has settled, or until the end.
func (a *Activities) settle(ctx context.Context, spec mesh.Spec, end time.Time) error {
	for time.Now().Before(end) {
		seen, err := observe.Connections(ctx, a.Clients, spec)
		if err != nil {
			return err
		}
		if seen.Settled() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settlePoll):
		}
	}
	return nil
}

// VerifyClusterInput asks for the checks of one workload cluster.
type VerifyClusterInput struct {
	Spec    mesh.Spec `json:"spec"`
	Cluster string    `json:"cluster"`
	// Pin is as the mesh's record has it.
	Pin check.Pin `json:"pin,omitempty"`
	// StandbyPEM is the root that stands by, which agents are to trust too; empty if
	// there is none.
	StandbyPEM string `json:"standbyPEM,omitempty"`
	// Settle is how long to wait for servers that do not answer; 0 looks once.
	Settle mesh.Duration `json:"settle,omitzero"`
	// Diagnose is as in VerifyManagementInput.
	Diagnose bool `json:"diagnose,omitempty"`
}

// VerifyClusterResult has the findings.
type VerifyClusterResult struct {
	Findings []check.Finding `json:"findings"`
}

// VerifyCluster checks one workload: Issuer, Certificate, chain, SAN, trust,
// registration, the pinned keys, and a fresh full mTLS handshake with its real
// certificate and trust against every replica of the server. Findings and
// errors are as with VerifyManagement.
func (a *Activities) VerifyCluster(ctx context.Context, in VerifyClusterInput) (VerifyClusterResult, error) {
	defer kube.Heartbeating(ctx, "looking")()
	spec := in.Spec.WithDefaults()
	w, err := workload(spec, in.Cluster)
	if err != nil {
		return VerifyClusterResult{}, err
	}
	var standby *x509.Certificate
	if in.StandbyPEM != "" {
		chain, err := pki.ParseChain([]byte(in.StandbyPEM))
		if err != nil {
			return VerifyClusterResult{}, failure.Permanent(failure.InvalidInput, "the root that stands by cannot be read: %v", err)
		}
		standby = chain[0]
	}
	findings, err := lookUntil(ctx, time.Now().Add(in.Settle.Duration), func() ([]check.Finding, error) {
		look, judge := observe.Workload, check.Workload.Findings
		if in.Diagnose {
			look, judge = observe.DiagnoseWorkload, check.Workload.Diagnose
		}
		seen, err := look(ctx, a.Clients, spec, w)
		if err != nil {
			return nil, err
		}
		seen.Pin = in.Pin
		seen.Standby = standby
		return judge(seen, time.Now()), nil
	})
	return VerifyClusterResult{Findings: findings}, err
}

// workload is the spec's workload of that name.
func workload(spec mesh.Spec, name string) (mesh.Workload, error) {
	w, ok := spec.Workload(name)
	if !ok {
		return w, failure.Permanent(failure.InvalidInput, "the mesh %q has no workload cluster %q", spec.Mesh, name)
	}
	return w, nil
}
