// Package notify has the activity that tells people what went wrong, by the
// webhooks of the site file.
package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/activity"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/secret"
	"github.com/relaypki/relaypki/internal/site"
)

// sendWithin bounds one message to one webhook.
const sendWithin = 10 * time.Second

// longest is how much of a text is sent: what chat programs take in one message.
const longest = 3000

// Activities holds what the activities need. Its exported methods are the activities.
type Activities struct{ Webhooks []site.Webhook }

// Input is a message for people. It goes to others' servers, so there must be
// no secret in it; what looks like one is withheld all the same.
type Input struct {
	Text string `json:"text"`
}

// Result names the webhooks that took the message; none if the site file has none.
type Result struct {
	Told []string `json:"told,omitempty"`
}

// Notify sends the text to every webhook of the site file, as {"text": ...},
// which Slack and its like take. Each gets it once: an attempt after one that
// reached some of them goes on with the others.
func (a *Activities) Notify(ctx context.Context, in Input) (Result, error) {
	var result Result
	if activity.HasHeartbeatDetails(ctx) {
		_ = activity.GetHeartbeatDetails(ctx, &result.Told) // else all are told again
	}
	body, err := json.Marshal(map[string]string{"text": abridged(secret.Withhold(in.Text))})
	if err != nil {
		return result, failure.Permanent(failure.InvalidInput, "the message cannot be written as JSON: %v", err)
	}
	var problems []string
	lasting := true
	for _, hook := range a.Webhooks {
		if slices.Contains(result.Told, hook.Name) {
			continue
		}
		passing, err := send(ctx, hook, body)
		if err != nil {
			problems = append(problems, fmt.Sprintf("webhook %q: %v", hook.Name, err))
			lasting = lasting && !passing
			continue
		}
		result.Told = append(result.Told, hook.Name)
		activity.RecordHeartbeat(ctx, result.Told)
	}
	switch text := strings.Join(problems, "; "); {
	case len(problems) == 0:
		return result, nil
	case ctx.Err() == context.Canceled: //nolint:errorlint // the context's own value
		return result, ctx.Err()
	case lasting:
		return result, failure.Permanent(failure.Preflight, "%s. Correct notify in the worker's site file", text)
	default:
		return result, failure.Transient(failure.Unavailable, "%s", text)
	}
}

// send posts the body. The address is a credential: it is in no error.
func send(ctx context.Context, hook site.Webhook, body []byte) (passing bool, err error) {
	address := hook.URL
	if hook.URLFile != "" {
		text, err := os.ReadFile(hook.URLFile)
		if err != nil {
			return false, fmt.Errorf("urlFile: %w", err)
		}
		address = strings.TrimSpace(string(text))
	}
	ctx, cancel := context.WithTimeout(ctx, sendWithin)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil || request.URL.Host == "" {
		return false, errors.New("its address is no URL")
	}
	request.Header.Set("Content-Type", "application/json")
	// A redirect would take the message to an address that nobody has configured.
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		return true, errors.New(withoutAddress(err))
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10)) // for the connection's sake
	switch code := response.StatusCode; {
	case code >= 200 && code < 300:
		return false, nil
	default:
		again := code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code >= 500
		return again, fmt.Errorf("it answers %d %s", code, http.StatusText(code))
	}
}

// withoutAddress is the text of a failed request without the request. A host
// that does not resolve is named; the path, which is the secret, is not.
func withoutAddress(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err.Error()
	}
	return err.Error()
}

func abridged(text string) string {
	if runes := []rune(text); len(runes) > longest {
		return string(runes[:longest]) + "..."
	}
	return text
}
