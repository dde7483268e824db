package observe

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/site"
)

const (
	// atOnce is how many reads of Vault a look makes at the same time.
	atOnce = 8
	// certsRead is how many stored certificates are looked at for one that a root
	// has signed itself, as many as "vault pki health-check" does.
	certsRead = 100
)

// mounts looks at what is set of a mesh's PKI mounts besides the issuers, with the
// operate identity. There is nothing to see, and nothing is said here, in a Vault
// that is sealed or does not let it in.
func mounts(ctx context.Context, clients *site.Clients, spec mesh.Spec) []check.SeenPKI {
	client, err := clients.Vault(ctx, spec.Vault.Name, site.Operate)
	if err != nil {
		return nil
	}
	v := vaultReader{client, spec.Vault.Name, site.Operate}
	paths := []string{spec.Vault.RelayMount}
	if root := spec.RootMount(); root != "" {
		paths = append(paths, root)
	}
	out := make([]check.SeenPKI, len(paths))
	var group errgroup.Group
	for i, path := range paths {
		out[i] = check.SeenPKI{Path: path, Root: i > 0}
		group.Go(func() error { v.settings(ctx, spec, &out[i]); return nil })
	}
	_ = group.Wait() // what could not be seen is in what was
	return out
}

// settings fills in one mount.
func (v vaultReader) settings(ctx context.Context, spec mesh.Spec, seen *check.SeenPKI) {
	var group errgroup.Group
	group.SetLimit(atOnce)
	look := func(f func()) { group.Go(func() error { f(); return nil }) }
	look(func() {
		var tune struct {
			Max      int64    `json:"max_lease_ttl"`
			Request  []string `json:"audit_non_hmac_request_keys"`
			Response []string `json:"audit_non_hmac_response_keys"`
			Headers  []string `json:"allowed_response_headers"`
		}
		seen.TuneGap = v.read(ctx, "sys/mounts/"+seen.Path+"/tune", &tune)
		seen.MaxLease = time.Duration(tune.Max) * time.Second
		seen.PlainRequest, seen.PlainResponse, seen.ResponseHeaders = tune.Request, tune.Response, tune.Headers
	})
	look(func() {
		var config struct {
			Disable     bool `json:"disable"`
			AutoRebuild bool `json:"auto_rebuild"`
		}
		seen.CRLConfigGap = v.read(ctx, seen.Path+"/config/crl", &config)
		seen.CRLDisabled, seen.AutoRebuild = config.Disable, config.AutoRebuild
	})
	look(func() {
		var tidy struct {
			Enabled  bool   `json:"enabled"`
			Interval int64  `json:"interval_duration"`
			Pause    string `json:"pause_duration"`
		}
		seen.TidyGap = v.read(ctx, seen.Path+"/config/auto-tidy", &tidy)
		seen.AutoTidy, seen.TidyEvery = tidy.Enabled, time.Duration(tidy.Interval)*time.Second
		seen.TidyStop, _ = time.ParseDuration(tidy.Pause)
	})
	look(func() {
		var status struct {
			Finished time.Time `json:"time_finished"`
		}
		seen.TidyStatusGap = v.read(ctx, seen.Path+"/tidy-status", &status)
		seen.Tidied = status.Finished
	})
	look(func() {
		var acme struct {
			Enabled bool   `json:"enabled"`
			Policy  string `json:"default_directory_policy"`
		}
		seen.ACMEGap = v.read(ctx, seen.Path+"/config/acme", &acme)
		seen.ACME, seen.ACMEPolicy = acme.Enabled, acme.Policy
	})
	look(func() { v.crls(ctx, seen) })
	look(func() { v.stored(ctx, seen) })
	look(func() { v.otherRoles(ctx, spec, seen) })
	_ = group.Wait()
}

// keys is a list of what is at a path.
func (v vaultReader) keys(ctx context.Context, path string) ([]string, check.Gap) {
	list, err := v.client.Logical().ListWithContext(ctx, path)
	if err != nil {
		return nil, vaultGap(err, v.name, v.identity, path)
	}
	if list == nil {
		return nil, check.Gap{}
	}
	var out struct {
		Keys []string `json:"keys"`
	}
	gap := decode(list.Data, path, &out)
	return out.Keys, gap
}

func (v vaultReader) crls(ctx context.Context, seen *check.SeenPKI) {
	ids, gap := v.keys(ctx, seen.Path+"/issuers")
	if seen.CRLGap = gap; gap.Open() {
		return
	}
	for _, id := range ids {
		var answer struct {
			CRL string `json:"crl"`
		}
		gap := v.read(ctx, seen.Path+"/issuer/"+id+"/crl", &answer)
		// An issuer without a key has none, which is an error of Vault's own (500).
		if gap.Reason == check.NotFound || strings.Contains(gap.Detail, "unable to find CRL") {
			continue
		}
		if gap.Open() {
			seen.CRLGap = gap
			return
		}
		block, _ := pem.Decode([]byte(answer.CRL))
		if block == nil {
			continue
		}
		if list, err := x509.ParseRevocationList(block.Bytes); err == nil {
			seen.CRLs = append(seen.CRLs, check.SeenCRL{Issuer: id, This: list.ThisUpdate, Next: list.NextUpdate})
		}
	}
}

// stored counts the certificates of a mount, and looks in the root's for one that is
// no CA.
func (v vaultReader) stored(ctx context.Context, seen *check.SeenPKI) {
	serials, gap := v.keys(ctx, seen.Path+"/certs")
	seen.Certs, seen.CertsGap = len(serials), gap
	if gap.Open() || !seen.Root {
		return
	}
	leaves := make([]string, min(len(serials), certsRead))
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i := range leaves {
		group.Go(func() error {
			var answer struct {
				Certificate string `json:"certificate"`
			}
			if v.read(ctx, seen.Path+"/cert/"+serials[i], &answer).Open() {
				return nil
			}
			if chain, err := pki.ParseChain([]byte(strings.TrimSpace(answer.Certificate))); err == nil && !chain[0].IsCA {
				leaves[i] = serials[i]
			}
			return nil
		})
	}
	_ = group.Wait()
	leaves = slices.DeleteFunc(leaves, func(serial string) bool { return serial == "" })
	if len(leaves) > 0 {
		seen.RootLeaf = leaves[0]
	}
}

// otherRoles are those of the mount that are not the mesh's own.
func (v vaultReader) otherRoles(ctx context.Context, spec mesh.Spec, seen *check.SeenPKI) {
	names, gap := v.keys(ctx, seen.Path+"/roles")
	if seen.RolesGap = gap; gap.Open() {
		return
	}
	var own []string
	if !seen.Root {
		own = append(own, spec.PKI.Role, spec.ProbeRole())
		for _, w := range spec.Workloads {
			own = append(own, spec.RoleFor(w))
		}
	}
	for _, name := range names {
		if !slices.Contains(own, name) {
			seen.Roles = append(seen.Roles, v.role(ctx, seen.Path, name, ""))
		}
	}
}
