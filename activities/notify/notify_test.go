package notify

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.temporal.io/sdk/testsuite"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/secret/secrettest"
	"github.com/relaypki/relaypki/internal/site"
)

// receiver is a real server of webhooks. It answers with the given codes in
// turn, and then with 200.
type receiver struct {
	mu    sync.Mutex
	codes []int
	texts []string
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.codes) > 0 {
		code := r.codes[0]
		r.codes = r.codes[1:]
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(code)
		return
	}
	var message map[string]any
	if err := json.NewDecoder(req.Body).Decode(&message); err != nil || req.Method != http.MethodPost || len(message) != 1 || req.Header.Get("Content-Type") != "application/json" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	text, _ := message["text"].(string)
	r.texts = append(r.texts, text)
}

const path = "/services/T0SECRETPATH"

func hook(t *testing.T, name string, codes ...int) (*receiver, site.Webhook) {
	t.Helper()
	r := &receiver{codes: codes}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(file, []byte(server.URL+path+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return r, site.Webhook{Name: name, URLFile: file}
}

// attempt runs the activity once, with what an earlier attempt has said last.
func attempt(t *testing.T, a *Activities, text string, told []string) (result Result, err error) {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	env.RegisterActivity(a)
	if told != nil {
		env.SetHeartbeatDetails(told)
	}
	value, err := env.ExecuteActivity(a.Notify, Input{Text: text})
	if err == nil {
		err = value.Get(&result)
	}
	return result, err
}

func TestNotify(t *testing.T) {
	ops, first := hook(t, "ops")
	dev, second := hook(t, "dev")
	a := &Activities{Webhooks: []site.Webhook{first, second}}
	result, err := attempt(t, a, "VerifyMesh of mesh demo failed with "+secrettest.VaultToken, nil)
	if err != nil || !slices.Equal(result.Told, []string{"ops", "dev"}) {
		t.Fatalf("%+v, %v", result, err)
	}
	for _, r := range []*receiver{ops, dev} {
		if len(r.texts) != 1 || r.texts[0] != "VerifyMesh of mesh demo failed with (withheld)" {
			t.Errorf("received %q", r.texts)
		}
	}
	if result, err := attempt(t, &Activities{}, "x", nil); err != nil || len(result.Told) > 0 {
		t.Errorf("nobody to tell: %+v, %v", result, err)
	}
	if _, err := attempt(t, a, strings.Repeat("ä", 100_000), nil); err != nil || len([]rune(ops.texts[1])) != longest+3 {
		t.Errorf("a long text: %v", err)
	}
}

func TestNotifyOfServersInTrouble(t *testing.T) {
	down, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "http://" + down.Addr().String() + path
	down.Close()
	for name, test := range map[string]struct {
		codes   []int
		webhook site.Webhook
		again   bool
		says    string
	}{
		"500 first": {codes: []int{500}, again: true, says: "500 Internal Server Error"},
		"429 first": {codes: []int{429}, again: true, says: "429"},
		"404":       {codes: []int{404}, says: "404"},
		// A redirect is not followed: nobody has configured that address.
		"redirect":    {codes: []int{302}, says: "302"},
		"down":        {webhook: site.Webhook{Name: "ops", URL: address}, again: true, says: "connection refused"},
		"no file":     {webhook: site.Webhook{Name: "ops", URLFile: filepath.Join(t.TempDir(), "none")}, says: "no such file"},
		"no address":  {webhook: site.Webhook{Name: "ops", URL: "T0SECRETPATH"}, says: "its address is no URL"},
		"bad address": {webhook: site.Webhook{Name: "ops", URL: "http://[::1%T0SECRETPATH"}, says: "its address is no URL"},
	} {
		t.Run(name, func(t *testing.T) {
			r, webhook := hook(t, "ops", test.codes...)
			if test.webhook.Name != "" {
				webhook = test.webhook
			}
			reached, healthy := hook(t, "dev")
			a := &Activities{Webhooks: []site.Webhook{webhook, healthy}}
			_, err := attempt(t, a, "it failed", nil)
			if err == nil || failure.IsPermanent(err) == test.again {
				t.Fatalf("again is %t: %v", test.again, err)
			}
			if !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), `webhook "ops"`) || strings.Contains(err.Error(), "T0SECRETPATH") {
				t.Errorf("the error does not say %q of ops alone: %v", test.says, err)
			}
			if len(reached.texts) != 1 {
				t.Fatalf("one webhook's trouble is another's: %q", reached.texts)
			}
			if len(test.codes) == 0 || !test.again {
				return
			}
			// The next attempt, which has what this one has said, tells the rest.
			result, err := attempt(t, a, "it failed", []string{"dev"})
			if err != nil || !slices.Equal(result.Told, []string{"dev", "ops"}) || len(r.texts) != 1 || len(reached.texts) != 1 {
				t.Errorf("%+v, %v; ops got %q, dev %q", result, err, r.texts, reached.texts)
			}
		})
	}
}
