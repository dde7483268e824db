package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/relaypki/relaypki/internal/procedure"
)

// planned is the ending of a plan, and the follower that has seen it: one
// cluster with changes, one without, one that could not be looked at.
func planned(t *testing.T) (ending, *follower) {
	t.Helper()
	result, err := json.Marshal(procedure.SetupResult{Mesh: "demo", Plan: true, Changed: true, Steps: []procedure.Step{
		{Name: "PKI mount pki", State: procedure.Created, Changes: []procedure.Change{{Verb: procedure.Create, Object: "vault mount pki", Detail: "type pki", Commands: []string{"echo pki"}}}},
		{Name: "cert-manager", State: procedure.UpToDate},
		{Name: "schedule", State: procedure.Created, Changes: []procedure.Change{{Verb: procedure.Create, Object: "schedule relaypki-verify-demo"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	f := &follower{again: "relaypki setup -f mesh.yaml --plan"}
	f.view.Progress.Clusters = []procedure.ClusterProgress{
		{Cluster: "cluster1", Workflow: "plan-setup-demo/cluster1", State: procedure.Done},
		{Cluster: "cluster2", Workflow: "plan-setup-demo/cluster2", State: procedure.UpToDate},
		{Cluster: "cluster3", Workflow: "plan-setup-demo/cluster3", State: procedure.Parked, Detail: "no route\nto it"},
	}
	f.view.Children = map[string]procedure.Progress{
		"plan-setup-demo/cluster1": {Ended: true, Steps: []procedure.Step{
			{Name: "issuer", Changes: []procedure.Change{{Verb: procedure.Update, Object: "Issuer gloo-mesh/vault-issuer", Detail: "spec.vault.server\n$(exit 3)", Commands: []string{"cat <<'EOF'\na: 1\nEOF", "echo two"}}}},
			{Name: "certificate", State: procedure.UpToDate, Detail: "not ready: no status yet"},
		}},
		"plan-setup-demo/cluster2": {Ended: true, Steps: []procedure.Step{{Name: "issuer", State: procedure.UpToDate}}},
	}
	return ending{WorkflowID: "plan-setup-demo", Procedure: procedure.SetupMesh, Status: "completed", Result: result}, f
}

func TestPlan(t *testing.T) {
	for output, want := range map[string][]string{
		"text": {
			"Vault and the management cluster: 2 to create; 1 of 3 steps find all as described", "create  vault mount pki", "update  Issuer gloo-mesh/vault-issuer  spec.vault.server $(exit 3)",
			"certificate: not ready: no status yet", "cluster3: could not be looked at", "no route to it", "Nothing to change: cluster2.",
			"Plan of mesh demo: 2 to create, 1 to update. Nothing was changed.", "Next: relaypki setup -f mesh.yaml\n", "relaypki setup -f mesh.yaml --plan -o commands",
		},
		"json":     {`"cluster": "cluster1"`, `"echo two"`, `"problem": "no route\nto it"`},
		"commands": {"#!/usr/bin/env bash", "# issuer: update Issuer", "# ---- cluster3", "relaypki does this itself"},
	} {
		t.Run(output, func(t *testing.T) {
			var out bytes.Buffer
			c := &cli{out: &out, err: &out, name: "relaypki", output: output}
			e, f := planned(t)
			err := c.conclude(e, f)
			exit, ok := err.(*exitError) //nolint:errorlint // conclude's own
			if !ok || exit.code != exitFailed || !strings.Contains(exit.Error(), "1 of 3 clusters could not be looked at") {
				t.Errorf("a plan that has not seen all ends with %v", err)
			}
			for _, words := range want {
				if !strings.Contains(strings.ReplaceAll(out.String(), "  ", " "), strings.ReplaceAll(words, "  ", " ")) {
					t.Errorf("lacks %q:\n%s", words, out.String())
				}
			}
			if output != "commands" {
				return
			}
			// Only the commands do anything, whatever the texts hold.
			said, err := exec.Command("bash", "-c", out.String()).CombinedOutput()
			if err != nil || string(said) != "pki\na: 1\ntwo\n" {
				t.Errorf("the script says %q (%v):\n%s", said, err, out.String())
			}
		})
	}
}

func TestCommandsAreForPlans(t *testing.T) {
	for _, args := range [][]string{{"setup", "-f", example, "-o", "commands"}, {"status", "-o", "commands"}} {
		var out, errOut bytes.Buffer
		if code := run(context.Background(), args, &out, &errOut); code != exitBadInput || !strings.Contains(errOut.String(), "--plan") {
			t.Errorf("%v: exit code %d: %s", args, code, errOut.String())
		}
	}
}

func TestAsPlan(t *testing.T) {
	got, err := asPlan(json.RawMessage(`{"mesh":"demo","workloads":[{"name":"a"}]}`))
	if err != nil || !sameJSON(got, []byte(`{"mesh":"demo","workloads":[{"name":"a"}],"plan":true}`)) {
		t.Errorf("asPlan = %s, %v", got, err)
	}
}
