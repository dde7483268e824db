package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/api/serviceerror"

	"github.com/relaypki/relaypki/internal/pki"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/shell"
)

func (c *cli) csrCommand() *cobra.Command {
	var workflow string
	cmd := &cobra.Command{
		Use:   "csr MESH",
		Short: "Print the CSR that waits to be signed outside Vault",
		Long: `Print the CSR of the intermediate that a running procedure waits for to be signed,
because the mesh's root is kept outside Vault (pki.root.kept: offline). The CSR
goes to standard output; by whom and how it is to be signed, to standard error.
Hand in the certificate with "relaypki submit". In a rotation of the root people make
the new root, too, and hand in three certificates at once.`,
		Example: `  relaypki csr demo > demo.csr
  # Who has to sign, and for how long?
  relaypki csr demo -o json | jq '{root, ttl, minLife}'`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: c.completeMesh,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !meshName.MatchString(args[0]) {
				return badInput(c.again("status"), "%q is not the name of a mesh", args[0])
			}
			ctx := cmd.Context()
			t, err := c.connect(ctx)
			if err != nil {
				return err
			}
			defer t.Close()
			run, err := c.steered(ctx, t, args[0], workflow)
			if err != nil {
				return t.failed(err, "find the procedure")
			}
			return c.printCSR(ctx, t, run)
		},
	}
	c.workflowFlag(cmd, &workflow)
	return cmd
}

// printCSR asks a procedure for the CSR that it waits for.
func (c *cli) printCSR(ctx context.Context, t *server, run execution) error {
	s, err := c.askForCSR(ctx, t, run)
	var refused *serviceerror.QueryFailed
	switch {
	case ctx.Err() != nil && err != nil:
		return &exitError{code: exitInterrupted, next: c.sameWith(), err: fmt.Errorf("no longer waiting for the answer of workflow %s", run.WorkflowID)}
	case errors.As(err, &refused):
		return badInput(c.again("watch", run.WorkflowID), "workflow %s has no CSR: %s", run.WorkflowID, tidy(refused.Message))
	case err != nil:
		return t.failed(err, "ask "+run.WorkflowID+" for its CSR")
	}
	if c.json() {
		return c.printJSON(struct {
			WorkflowID string `json:"workflowId"`
			procedure.Signing
		}{run.WorkflowID, s})
	}
	fmt.Fprint(c.out, s.CSRPEM)
	by := "root"
	if s.NewRoot {
		by = "root at work, which signs the bridge"
	}
	p := paperOn(c.err)
	for _, line := range []struct{ name, text string }{
		{"subject", s.Subject}, {"key", s.Key}, {by, fmt.Sprintf("%s, serial %s, until %s", s.Root.Subject, s.Root.Serial, pki.Date(s.Root.NotAfter))},
		{"asked for", fmt.Sprintf("%s; %s is the least that it must have left when it is handed in", s.TTL, s.MinLife)}, {"how", s.Advice},
	} {
		p.print(c.err, 2, span{line.name + ": ", dim}, span{tidy(line.text), plain})
	}
	fmt.Fprintf(c.err, "Next: have it signed, then: %s\n", c.again("submit", s.Mesh, "signed.pem"))
	return nil
}

// askForCSR waits for the answer, through a worker or a Temporal that is away.
func (c *cli) askForCSR(ctx context.Context, t *server, run execution) (procedure.Signing, error) {
	f := c.follower(t, run.WorkflowID)
	f.taskQueue = run.taskQueue
	said := ""
	for {
		var s procedure.Signing
		call, cancel := context.WithTimeout(ctx, callTime)
		answer, err := t.QueryWorkflow(call, run.WorkflowID, "", procedure.CSRQuery)
		cancel()
		if err == nil {
			return s, answer.Get(&s)
		}
		if ctx.Err() != nil || !transient(err) || time.Since(f.lastAnswer) > patience {
			return s, err
		}
		if why := f.excuse(ctx, nil); why != said && ctx.Err() == nil {
			paperOn(c.err).print(c.err, 0, span{"relaypki: " + tidy(why) + "; Ctrl-C stops the waiting", plain})
			said = why
		}
		select {
		case <-ctx.Done():
			return s, ctx.Err()
		case <-time.After(lookEvery):
		}
	}
}

func (c *cli) submitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "submit MESH FILE",
		Short: "Hand in the certificate that was signed outside Vault",
		Long: `Hand in the intermediate that the root kept outside Vault has signed: a file in PEM
with the certificate, which the root may follow, and no key; "-" for standard
input. In a rotation of the root it is a file with three, in any order: the
intermediate, the new root and the bridge to it. It is judged before it is taken (key, subject, CA, usages, validity, who
signed it); all that is wrong with it is said at once, and the procedure goes on
waiting. Once it is taken, the procedure goes on.

From DER: openssl x509 -inform DER -in signed.cer | relaypki submit MESH -`,
		Example: `  relaypki submit demo signed.pem
  # From standard input:
  relaypki submit demo -`,
		Args: cobra.ExactArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return []string{"pem", "crt", "cer"}, cobra.ShellCompDirectiveFilterFileExt
			}
			return c.completeMesh(cmd, args, typed)
		},
	}
	return c.steeringCommand(cmd, func(mesh string, rest []string) (order, error) {
		text, err := c.signedFile(cmd.InOrStdin(), mesh, rest[0])
		return order{mesh: mesh, update: procedure.SubmitSignedUpdate, in: procedure.SubmitSignedInput{PEM: text}}, err
	})
}

// signedFile reads certificates to hand in. A private key does not leave this
// machine.
func (c *cli) signedFile(stdin io.Reader, mesh, file string) (string, error) {
	var data []byte
	var err error
	again := c.again("submit", mesh, shell.Quote(file))
	if file == "-" {
		data, err = io.ReadAll(io.LimitReader(stdin, mostPEM+1))
	} else {
		data, err = os.ReadFile(file)
	}
	switch {
	case err != nil:
		return "", badInput(again, "the certificate cannot be read: %w", err)
	case pki.HasPrivateKey(data):
		return "", badInput(again, "there is a private key in %s: nothing was sent. Take it out and hand in the certificate alone", file)
	case len(data) > mostPEM:
		return "", badInput(again, "%s is too long for three certificates", file)
	}
	if _, err := pki.ParseSigned(data); err != nil {
		hint := ""
		if len(data) > 0 && !strings.Contains(string(data), "-----BEGIN") {
			hint = " If it is in DER: openssl x509 -inform DER"
		}
		return "", badInput(again, "%s cannot be handed in: %v; it has to be a certificate in PEM.%s", file, err, hint)
	}
	return string(data), nil
}

// toSign are the commands that have a procedure go on which waits for a
// signature.
func (c *cli) toSign(mesh string) []string {
	return []string{c.again("csr", mesh, ">", mesh+".csr"), c.again("submit", mesh, "signed.pem")}
}

// mostPEM is longer than any three certificates.
const mostPEM = 64 << 10
