package site

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"
	"strings"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/secret"
)

// VaultError turns an error of Vault's client into one of package failure:
//
//   - not reachable, sealed, overloaded (5xx): Unavailable, tried again
//   - asked too often (429): Unavailable, tried again when Vault says
//   - a name that is already in use (400): Unavailable, tried again
//   - TLS: Preflight, permanent
//   - 403: Denied, permanent, with path and identity
//   - 404: Preflight, permanent; nothing is mounted there
//   - other 4xx: InvalidInput, permanent, with Vault's reason
//
// doing says what was attempted ("read pki/issuers"). Response bodies never
// come into the text; Vault's own short reasons do, unless they look as if they
// held a secret. A canceled context and errors of package failure are returned
// as they are.
func VaultError(err error, vault string, identity Identity, doing string) error {
	if err == nil || failure.KindOf(err) != "" || errors.Is(err, context.Canceled) {
		return err
	}
	var response *vaultapi.ResponseError
	if errors.As(err, &response) {
		return responseError(response, vault, identity, doing)
	}
	var limited tooManyRequests
	if errors.As(err, &limited) {
		return failure.TransientAfter(limited.after, failure.Unavailable, "Vault %q: %s: Vault turns the request away: %s. A quota there is used up: `vault list sys/quotas/rate-limit` names them; raise it, or wait",
			vault, doing, limited)
	}
	if isTLS(err) {
		return failure.Permanent(failure.Preflight, "Vault %q: %s: TLS: %s. Check caFile and address of this Vault in the site file against the certificate that it serves", vault, doing, innermost(err))
	}
	return failure.Transient(failure.Unavailable, "Vault %q: %s: not reachable: %s. Check that it runs and that the worker reaches the address in the site file", vault, doing, innermost(err))
}

func responseError(r *vaultapi.ResponseError, vault string, identity Identity, doing string) error {
	reason := VaultReason(r)
	switch {
	case r.StatusCode == http.StatusForbidden:
		return failure.Permanent(failure.Denied, "Vault %q: %s: denied (403) to identity %q on %s %s. Its policy must allow this: compare with deploy/vault/policies/%s.hcl",
			vault, doing, identity, r.HTTPMethod, requestPath(r), identity)
	case r.StatusCode == http.StatusNotFound:
		return failure.Permanent(failure.Preflight, "Vault %q: %s: nothing answers at %s (404). The mount is not there, or is not of the expected type", vault, doing, requestPath(r))
	case r.StatusCode == http.StatusServiceUnavailable && strings.Contains(strings.ToLower(reason), "sealed"):
		return failure.Transient(failure.Unavailable, "Vault %q: %s: Vault is sealed. An operator must unseal it; this is tried again", vault, doing)
	case r.StatusCode == http.StatusBadRequest && strings.Contains(reason, "already in use"):
		// It was made between our look and our write, by us or by others: the
		// next look sees what it is.
		return failure.Transient(failure.Unavailable, "Vault %q: %s: %s has just been taken: %s", vault, doing, requestPath(r), reason)
	case r.StatusCode == http.StatusTooManyRequests, r.StatusCode == http.StatusPreconditionFailed, r.StatusCode >= 500:
		return failure.Transient(failure.Unavailable, "Vault %q: %s: Vault cannot answer now (%d: %s)", vault, doing, r.StatusCode, reason)
	default:
		return failure.Permanent(failure.InvalidInput, "Vault %q: %s: Vault refused %s %s (%d): %s", vault, doing, r.HTTPMethod, requestPath(r), r.StatusCode, reason)
	}
}

// loginError is VaultError for a login, where a refusal is about the
// credential and not about a policy.
func loginError(err error, vault string, identity Identity, login Login) error {
	var response *vaultapi.ResponseError
	if errors.As(err, &response) && response.StatusCode >= 400 && response.StatusCode < 500 && response.StatusCode != http.StatusTooManyRequests {
		return failure.Permanent(failure.Denied, "Vault %q: login of identity %q by %s refused (%d: %s). Check the role, the mount and the credential files that the site file names for it",
			vault, identity, login.Method, response.StatusCode, VaultReason(response))
	}
	return VaultError(err, vault, identity, "log in by "+login.Method)
}

// VaultReason is Vault's own list of reasons in one line, or a note in place of
// it if it is no such list, is long, or looks as if it held a secret.
func VaultReason(r *vaultapi.ResponseError) string {
	reason := strings.Join(strings.Fields(strings.Join(r.Errors, "; ")), " ")
	switch {
	case r.RawError:
		return "no reason in Vault's form was given"
	case reason == "":
		return "no reason given"
	case len(reason) > 500 || secret.Withhold(reason) != reason:
		return "the reason is withheld: see Vault's log"
	}
	return reason
}

func requestPath(r *vaultapi.ResponseError) string {
	u, err := url.Parse(r.URL)
	if err != nil {
		return "(unknown path)"
	}
	return strings.TrimPrefix(u.Path, "/v1/")
}

func isForbidden(err error) bool {
	var response *vaultapi.ResponseError
	return errors.As(err, &response) && response.StatusCode == http.StatusForbidden
}

func isTLS(err error) bool {
	var (
		authority    x509.UnknownAuthorityError
		hostname     x509.HostnameError
		invalid      x509.CertificateInvalidError
		verification *tls.CertificateVerificationError
		record       tls.RecordHeaderError
		alert        tls.AlertError
	)
	return errors.As(err, &authority) || errors.As(err, &hostname) || errors.As(err, &invalid) ||
		errors.As(err, &verification) || errors.As(err, &record) || errors.As(err, &alert) ||
		strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

// innermost is the text of what went wrong without the request around it.
func innermost(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err.Error()
	}
	return err.Error()
}
