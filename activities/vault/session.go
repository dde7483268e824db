package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/site"
)

// session is one of the worker's identities at one Vault. Its errors are of
// package failure.
type session struct {
	// client is nil for a Vault that is still to be installed.
	client    *vaultapi.Client
	vault     string
	identity  site.Identity
	namespace string
	// replaced begins the paths of what a plan replaces: nothing is there then.
	replaced string
}

func (a *Activities) session(ctx context.Context, vault string, identity site.Identity) (session, error) {
	client, err := a.Clients.Vault(ctx, vault, identity)
	if err != nil {
		return session{}, err
	}
	return session{client: client, vault: vault, identity: identity, namespace: client.Namespace()}, nil
}

// sessionFor is session, also for a plan of a Vault that is still to be
// installed: it holds nothing then.
func (a *Activities) sessionFor(ctx context.Context, mode procedure.Mode, vault string, identity site.Identity) (session, error) {
	s, err := a.session(ctx, vault, identity)
	if err == nil || mode != procedure.Plan || failure.KindOf(err) != failure.NotReady {
		return s, err
	}
	config, err := a.Clients.Config.Vault(vault)
	return session{vault: vault, identity: identity, namespace: config.Namespace}, err
}

func (s session) failed(err error, doing string) error {
	return site.VaultError(err, s.vault, s.identity, doing)
}

// read decodes what is at path into a struct or map; false if nothing is there,
// be it the mount that is missing.
func (s session) read(ctx context.Context, path string, into any) (bool, error) {
	if s.client == nil || s.replaced != "" && strings.HasPrefix(path, s.replaced) {
		return false, nil
	}
	secret, err := s.client.Logical().ReadWithContext(ctx, path)
	var response *vaultapi.ResponseError
	if errors.As(err, &response) && absent(response) {
		return false, nil
	}
	if err != nil {
		return false, s.failed(err, "read "+path)
	}
	if secret == nil || secret.Data == nil {
		return false, nil
	}
	return true, s.decode(secret.Data, path, into)
}

// absent: single mounts are answered with a 400 when they are not there, and
// issuers with a 500.
func absent(r *vaultapi.ResponseError) bool {
	reason := strings.Join(r.Errors, " ")
	return r.StatusCode == http.StatusNotFound || r.StatusCode == http.StatusBadRequest &&
		(strings.Contains(reason, "No secret engine mount at") || strings.Contains(reason, "No auth engine at")) ||
		strings.Contains(reason, "unable to find PKI issuer for reference")
}

// list answers the keys at path; none if nothing is there. info, if not nil,
// gets what Vault says of each.
func (s session) list(ctx context.Context, path string, info any) ([]string, error) {
	if s.client == nil {
		return nil, nil
	}
	secret, err := s.client.Logical().ListWithContext(ctx, path)
	if err != nil {
		return nil, s.failed(err, "list "+path)
	}
	if secret == nil {
		return nil, nil
	}
	var data struct {
		Keys []string        `json:"keys"`
		Info json.RawMessage `json:"key_info"`
	}
	if err := s.decode(secret.Data, path, &data); err != nil {
		return nil, err
	}
	if info != nil && len(data.Info) > 0 {
		if err := json.Unmarshal(data.Info, info); err != nil {
			return nil, failure.Permanent(failure.Mismatch, "Vault %q: list %s: the answer has an unknown form", s.vault, path)
		}
	}
	return data.Keys, nil
}

// write writes data to path and decodes the answer, if one is wanted.
func (s session) write(ctx context.Context, path string, data map[string]any, into any) error {
	secret, err := s.client.Logical().WriteWithContext(ctx, path, data)
	if err != nil {
		return s.failed(err, "write "+path)
	}
	if into == nil {
		return nil
	}
	if secret == nil {
		return failure.Transient(failure.Unavailable, "Vault %q: write %s: the answer is empty", s.vault, path)
	}
	return s.decode(secret.Data, path, into)
}

// patch changes the given fields of what is at path and leaves the others.
func (s session) patch(ctx context.Context, path string, data map[string]any) error {
	_, err := s.client.Logical().JSONMergePatch(ctx, path, data)
	return s.failed(err, "patch "+path)
}

// delete deletes what is at path, which the caller has read and found to be
// ours, and records the change.
func (s session) delete(ctx context.Context, mode procedure.Mode, out *procedure.Removal, object, path string) error {
	out.Changed(procedure.Delete, object, "")
	if !mode.Writes() {
		out.By(mode, s.command("delete", path))
		return nil
	}
	_, err := s.client.Logical().DeleteWithContext(ctx, path)
	return s.failed(err, "delete "+path)
}

func (s session) decode(data map[string]any, path string, into any) error {
	text, err := json.Marshal(data)
	if err == nil {
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.UseNumber()
		err = decoder.Decode(into)
	}
	if err != nil {
		// The decoder's own text may quote the answer.
		return failure.Permanent(failure.Mismatch, "Vault %q: %s: the answer has an unknown form", s.vault, path)
	}
	return nil
}

// ensure writes desired to path unless what is there says the same already, and
// records the change. Fields that desired does not name are not looked at.
func (s session) ensure(ctx context.Context, mode procedure.Mode, out *procedure.Outcome, object, path string, desired map[string]any) error {
	var have map[string]any
	found, err := s.read(ctx, path, &have)
	if err != nil {
		return err
	}
	if found {
		differing := differences(desired, have)
		if len(differing) == 0 {
			return nil
		}
		out.Changed(procedure.Update, object, strings.Join(differing, "; "))
	} else {
		out.Changed(procedure.Create, object, "")
	}
	if !mode.Writes() {
		out.By(mode, s.data("write", path, desired))
		return nil
	}
	return s.write(ctx, path, desired, nil)
}

// mount is what Vault says of a secrets engine or auth method.
type mount struct {
	Type        string `json:"type"`
	Description string `json:"description"`
}

// mountAt reads the secrets engine at path; nil if there is none.
func (s session) mountAt(ctx context.Context, path string) (*mount, error) {
	var m mount
	found, err := s.read(ctx, "sys/mounts/"+path, &m)
	if err != nil || !found {
		return nil, err
	}
	return &m, nil
}
