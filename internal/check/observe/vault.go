package observe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	vaultapi "github.com/hashicorp/vault/api"
	"golang.org/x/sync/errgroup"

	"github.com/relaypki/relaypki/internal/check"
	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/site"
)

// vault looks at a mesh's Vault with the operate identity. It reads
// sys/health, and in the two mounts config/issuers, the list of issuers, each
// issuer, and the mesh's roles.
func vault(ctx context.Context, clients *site.Clients, spec mesh.Spec) check.SeenVault {
	seen := check.SeenVault{Name: spec.Vault.Name}
	config, err := clients.VaultConfig(ctx, spec.Vault.Name)
	if err != nil {
		seen.Gap = check.Gap{Reason: check.Unreachable, Detail: failure.Message(err)}
		return seen
	}
	seen.Address = config.Address
	anonymous, err := clients.VaultWithToken(ctx, spec.Vault.Name, "")
	if err != nil {
		seen.Gap = check.Gap{Reason: check.Unreachable, Detail: failure.Message(err)}
		return seen
	}
	look, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	health, err := anonymous.Sys().HealthWithContext(look)
	if err != nil {
		seen.Gap = vaultGap(err, seen.Name, site.Operate, "sys/health")
		return seen
	}
	seen.Initialized, seen.Sealed = health.Initialized, health.Sealed
	if !seen.Initialized || seen.Sealed {
		return seen
	}
	client, err := clients.Vault(ctx, spec.Vault.Name, site.Operate)
	if err != nil {
		seen.LoginError = failure.Message(err)
		return seen
	}
	v := vaultReader{client, seen.Name, site.Operate}
	if !spec.PKI.Root.Offline() {
		seen.Root = v.mount(ctx, spec.Vault.RootMount)
	}
	seen.Relay = v.mount(ctx, spec.Vault.RelayMount)
	seen.Roles = v.roles(ctx, spec)
	return seen
}

// roles are the mesh's, read several at once.
func (v vaultReader) roles(ctx context.Context, spec mesh.Spec) []check.SeenRole {
	asked := []check.SeenRole{{Name: spec.PKI.Role}, {Name: spec.ProbeRole()}}
	if spec.PKI.Isolation != mesh.IsolationShared {
		for _, w := range spec.Workloads {
			asked = append(asked, check.SeenRole{Name: spec.RoleFor(w), Cluster: w.Name})
		}
	}
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i, role := range asked {
		group.Go(func() error {
			asked[i] = v.role(ctx, spec.Vault.RelayMount, role.Name, role.Cluster)
			return nil
		})
	}
	_ = group.Wait() // what could not be seen is in what was
	return asked
}

// vaultGap classifies an error of Vault's client.
func vaultGap(err error, vault string, identity site.Identity, path string) check.Gap {
	var response *vaultapi.ResponseError
	reason := check.Unreachable
	if errors.As(err, &response) {
		switch response.StatusCode {
		case http.StatusForbidden:
			reason = check.Denied
		case http.StatusNotFound:
			reason = check.NotFound
		}
	}
	return check.Gap{Reason: reason, Detail: failure.Message(site.VaultError(err, vault, identity, "read "+path))}
}

type vaultReader struct {
	client   *vaultapi.Client
	name     string
	identity site.Identity
}

// read decodes what is at path into out.
func (v vaultReader) read(ctx context.Context, path string, out any) check.Gap {
	secret, err := v.client.Logical().ReadWithContext(ctx, path)
	if err != nil {
		return vaultGap(err, v.name, v.identity, path)
	}
	if secret == nil {
		return check.Gap{Reason: check.NotFound, Detail: "nothing at " + path}
	}
	return decode(secret.Data, path, out)
}

func decode(data map[string]any, path string, out any) check.Gap {
	text, err := json.Marshal(data)
	if err == nil {
		err = json.Unmarshal(text, out)
	}
	if err != nil {
		return check.Gap{Reason: check.Unreachable, Detail: fmt.Sprintf("%s: the answer is not in the expected form", path)}
	}
	return check.Gap{}
}

func (v vaultReader) mount(ctx context.Context, path string) check.SeenMount {
	seen := check.SeenMount{Path: path}
	var config struct {
		Default string `json:"default"`
	}
	if seen.Gap = v.read(ctx, path+"/config/issuers", &config); seen.Gap.Open() {
		return seen
	}
	seen.Default = config.Default
	list, err := v.client.Logical().ListWithContext(ctx, path+"/issuers")
	if err != nil {
		seen.Gap = vaultGap(err, v.name, v.identity, path+"/issuers")
		return seen
	}
	if list == nil {
		return seen // a mount without issuers
	}
	var ids struct {
		Keys []string `json:"keys"`
	}
	if seen.Gap = decode(list.Data, path+"/issuers", &ids); seen.Gap.Open() {
		return seen
	}
	for _, id := range ids.Keys {
		var issuer struct {
			Name        string `json:"issuer_name"`
			KeyID       string `json:"key_id"`
			Behavior    string `json:"leaf_not_after_behavior"`
			Usage       string `json:"usage"`
			Certificate string `json:"certificate"`
			// CAChain is what goes with what it signs, itself first.
			CAChain     []string `json:"ca_chain"`
			ManualChain []string `json:"manual_chain"`
		}
		if seen.Gap = v.read(ctx, path+"/issuer/"+id, &issuer); seen.Gap.Open() {
			return seen
		}
		one := check.SeenVaultIssuer{ID: id, Name: issuer.Name, LeafNotAfterBehavior: issuer.Behavior, HasKey: issuer.KeyID != "", Signs: slices.Contains(strings.Split(issuer.Usage, ","), "issuing-certificates")}
		if chain, err := pki.ParseChain([]byte(strings.TrimSpace(issuer.Certificate))); err == nil {
			one.Certificate = chain[0]
		}
		one.Manual = len(issuer.ManualChain) > 0
		if chain, err := pki.ParseChain([]byte(strings.Join(issuer.CAChain, "\n"))); err == nil {
			one.Chain = chain
		}
		seen.Issuers = append(seen.Issuers, one)
	}
	return seen
}

func (v vaultReader) role(ctx context.Context, mount, name, cluster string) check.SeenRole {
	var seen check.SeenRole
	gap := v.read(ctx, mount+"/roles/"+name, &seen)
	seen.Name, seen.Cluster, seen.Gap = name, cluster, gap
	return seen
}
