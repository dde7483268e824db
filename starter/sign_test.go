package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/mocks"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/pki/pkitest"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/secret/secrettest"
)

// answered is the answer of a query.
type answered struct{ signing procedure.Signing }

func (a answered) HasValue() bool { return true }
func (a answered) Get(into any) error {
	*into.(*procedure.Signing) = a.signing
	return nil
}

func TestPrintCSR(t *testing.T) {
	signing := procedure.Signing{Mesh: "demo", CSRPEM: "-----BEGIN CERTIFICATE REQUEST-----\nMII\n-----END CERTIFICATE REQUEST-----\n", Subject: "CN=relay", Key: "sha256:00",
		Root: procedure.Authority{Subject: "CN=Example Root", Serial: "0a"}, TTL: mesh.Hours(43800), MinLife: mesh.Hours(192), Advice: "Sign it as a CA."}
	tests := []struct {
		name     string
		output   string
		err      error
		code     int
		out, say []string // on standard output, which has nothing else in text; on standard error
	}{
		{"text", "text", nil, 0, nil, []string{"CN=relay", "sha256:00", "CN=Example Root, serial 0a", "43800h; 192h is the least", "Sign it as a CA.", "relaypki submit demo signed.pem"}},
		{"json", "json", nil, 0, []string{`"workflowId": "setup-demo"`, `"csrPEM": "-----BEGIN`, `"ttl": "43800h"`}, nil},
		{"nothing to sign", "text", serviceerror.NewQueryFailed(`there is nothing to be signed: the run is at "preflight"`), exitBadInput, nil, []string{"has no CSR: there is nothing to be signed", "relaypki watch setup-demo"}},
		{"Temporal refuses", "text", serviceerror.NewPermissionDenied("no", ""), exitUnreachable, nil, []string{"TEMPORAL_API_KEY"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := &mocks.Client{}
			var value converter.EncodedValue = answered{signing}
			if test.err != nil {
				value = nil
			}
			m.On("QueryWorkflow", mock.Anything, "setup-demo", "", procedure.CSRQuery).Return(value, test.err)
			var out, errOut bytes.Buffer
			c := &cli{out: &out, err: &errOut, name: "relaypki", output: test.output}
			if code := c.end(c.printCSR(t.Context(), &server{Client: m, cli: c}, execution{WorkflowID: "setup-demo"})); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			for _, want := range test.out {
				if !strings.Contains(out.String(), want) {
					t.Errorf("standard output lacks %q:\n%s", want, out.String())
				}
			}
			for _, want := range test.say {
				if !strings.Contains(errOut.String(), want) {
					t.Errorf("standard error lacks %q:\n%s", want, errOut.String())
				}
			}
			if test.output == "text" && test.err == nil && out.String() != signing.CSRPEM {
				t.Errorf("standard output is not the CSR alone:\n%s", out.String())
			}
		})
	}
}

// Without a worker the command says so and waits for one; Ctrl-C ends that.
func TestPrintCSRWithoutAWorker(t *testing.T) {
	late := serviceerror.NewDeadlineExceeded("query timed out before a worker could process it")
	for name, comes := range map[string]bool{"one comes": true, "none comes": false} {
		t.Run(name, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			m := &mocks.Client{}
			m.On("QueryWorkflow", mock.Anything, "setup-demo", "", procedure.CSRQuery).Return(nil, late).Once()
			if comes {
				m.On("QueryWorkflow", mock.Anything, "setup-demo", "", procedure.CSRQuery).Return(answered{procedure.Signing{CSRPEM: "PEM"}}, nil)
			} else {
				m.On("QueryWorkflow", mock.Anything, "setup-demo", "", procedure.CSRQuery).Return(nil, late).Run(func(mock.Arguments) { stop() })
			}
			m.On("DescribeTaskQueue", mock.Anything, "relaypki", enumspb.TASK_QUEUE_TYPE_WORKFLOW).Return(&workflowservice.DescribeTaskQueueResponse{}, nil)
			var out, errOut bytes.Buffer
			c := &cli{out: &out, err: &errOut, name: "relaypki", output: "text"}
			code := c.end(c.printCSR(ctx, &server{Client: m, cli: c}, execution{WorkflowID: "setup-demo", taskQueue: "relaypki"}))
			if want := map[bool]int{true: 0, false: exitInterrupted}[comes]; code != want || !strings.Contains(errOut.String(), "none is there; start relaypki-worker") || (out.String() == "PEM") != comes {
				t.Errorf("exit code %d, want %d:\n%s%s", code, want, out.String(), errOut.String())
			}
		})
	}
}

// What cannot be a certificate is refused here; a private key is not sent.
func TestSignedFile(t *testing.T) {
	good := string(pki.EncodeChain(pkitest.Root(t, "R").Cert))
	for name, test := range map[string]struct{ text, refusal string }{
		"a certificate":     {good, ""},
		"a key":             {secrettest.Key, "there is a private key in FILE: nothing was sent"},
		"a key behind it":   {good + secrettest.Key, "nothing was sent"},
		"a key cut short":   {good + secrettest.Key[:40], "nothing was sent"},
		"DER":               {"0\x82\x03", "it has to be a certificate in PEM. If it is in DER: openssl"},
		"a CSR":             {"-----BEGIN CERTIFICATE REQUEST-----\nMII=\n-----END CERTIFICATE REQUEST-----\n", "not a CERTIFICATE"},
		"nothing":           {"", "no certificate in it"},
		"something endless": {strings.Repeat("x", mostPEM+1), "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "signed.pem")
			if err := os.WriteFile(file, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			c := &cli{name: "relaypki"}
			for _, from := range []string{file, "-"} {
				text, err := c.signedFile(strings.NewReader(test.text), "demo", from)
				if test.refusal == "" {
					if err != nil || text != test.text {
						t.Errorf("%q, %v", text, err)
					}
					continue
				}
				if want := strings.ReplaceAll(test.refusal, "FILE", from); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secrettest.KeyBody) {
					t.Errorf("got %v, want %q", err, want)
				}
			}
		})
	}
	if _, err := (&cli{name: "relaypki"}).signedFile(nil, "demo", "/does/not/exist"); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("a file that is not there: %v", err)
	}
}

// A key is refused before anything is connected to.
func TestSubmitSendsNoKey(t *testing.T) {
	t.Setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
	file := filepath.Join(t.TempDir(), "all.pem")
	if err := os.WriteFile(file, []byte(secrettest.Key), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	if code := run(t.Context(), []string{"submit", "demo", file}, &out, &errOut); code != exitBadInput || !strings.Contains(errOut.String(), "nothing was sent") {
		t.Errorf("exit code %d:\n%s", code, errOut.String())
	}
	endsWithACommand(t, errOut.String())
}

// A setup that waits for a signature ends the command with what to type, and
// status says so too.
func TestWaitingForASignature(t *testing.T) {
	p := procedure.Progress{Procedure: procedure.SetupMesh, Mesh: "demo", Person: true, Signing: true, Awaiting: "the intermediate to be signed by the root CN=Example Root"}
	for _, output := range []string{"text", "json"} {
		var out, errOut bytes.Buffer
		c := &cli{out: &out, err: &errOut, name: "relaypki", output: output}
		f := &follower{cli: c, id: "setup-demo", display: newDisplay(c), view: view{Type: procedure.SetupMesh, Progress: p}}
		if code := c.end(c.waiting(f)); code != exitWaiting {
			t.Errorf("exit code %d", code)
		}
		if want := "waits for you: the intermediate to be signed by the root CN=Example Root\nNext: relaypki csr demo > demo.csr\n      relaypki submit demo signed.pem\n      relaypki watch setup-demo\n"; !strings.Contains(errOut.String(), want) {
			t.Errorf("lacks %q:\n%s", want, errOut.String())
		}
		var document struct{ Progress procedure.Progress }
		if output == "json" && (json.Unmarshal(out.Bytes(), &document) != nil || !document.Progress.Signing) {
			t.Errorf("the document does not say that it is about a signature:\n%s", out.String())
		}
	}
	var out bytes.Buffer
	c := &cli{out: &out, err: &out, name: "relaypki", output: "text"}
	c.printStatus(meshStatus{Mesh: "demo", Procedures: []execution{{WorkflowID: "setup-demo", Procedure: procedure.SetupMesh, State: "running", Started: time.Now(), Person: true, Awaiting: p.Awaiting}}})
	if !strings.Contains(out.String(), p.Awaiting) {
		t.Errorf("status does not say what is waited for:\n%s", out.String())
	}
}
