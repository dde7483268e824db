package certmanager

import (
	"context"
	"fmt"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/kube"
	"github.com/relaypki/relaypki/internal/procedure"
)

// AwaitCertManager waits (heartbeating) until cert-manager's three Deployments
// are available and its webhook answers, and says the version. One that is too
// old (serviceAccountRef needs 1.12) is a permanent error.
func (a *Activities) AwaitCertManager(ctx context.Context, in AwaitInput) (procedure.Outcome, error) {
	var out procedure.Outcome
	c, err := a.Clients.Cluster(in.Context)
	if err != nil {
		return out, err
	}
	err = await(ctx, in.Mode, &out, func(ctx context.Context) (bool, string, error) {
		deployments, err := kube.FindCertManager(ctx, c)
		if err != nil {
			return false, "", err
		}
		for i, d := range deployments {
			if d == nil {
				return false, fmt.Sprintf("cluster %q: Deployment %s is not there", c.Name, kube.CertManagerName(i)), nil
			}
			version := kube.Version(d)
			if i == 0 {
				out.Detail = "cert-manager " + version
				if version == "" {
					out.Detail = "cert-manager of unknown version"
				}
			}
			if kube.TooOld(version) {
				return false, "", failure.Permanent(failure.Preflight, "cluster %q: cert-manager %s is too old: Issuers log in with a ServiceAccount from %s on; upgrade it",
					c.Name, version, kube.MinimalCertManager)
			}
			if ready, state := kube.Available(d); !ready {
				if trouble := kube.PodTrouble(ctx, c, d); trouble != "" {
					state += "; " + trouble
				}
				return false, fmt.Sprintf("cluster %q: %s", c.Name, state), nil
			}
		}
		state, err := kube.WebhookAnswers(ctx, c, in.Namespace)
		return err == nil && state == "", state, err
	})
	return out, err
}

// await waits until a look says that all is done. In a plan it looks once, and
// what is not ready yet, or cannot be asked, is a detail of the outcome.
func await(ctx context.Context, mode procedure.Mode, out *procedure.Outcome, look func(context.Context) (bool, string, error)) error {
	if mode != procedure.Plan {
		return kube.Await(ctx, look)
	}
	done, state, err := look(ctx)
	if failure.IsPermanent(err) {
		return err
	}
	if err != nil {
		state = failure.Message(err)
	}
	if !done {
		out.Detail = "not ready: " + state
	}
	return nil
}
