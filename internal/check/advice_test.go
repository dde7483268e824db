package check

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
)

// ownAdvice are the checks that say their evidence and commands where they judge.
var ownAdvice = []string{
	IdentityToken, Webhook, ClockSkew, HelmOwned, RenewWindow, TTLNesting, RootToken, VaultChain, AgentAddressWrong, StaleAgent, StaleTrust, GaugesLie,
}

// TestEveryCheckHasAdvice: a check that is added is added to the table, or says its
// own. Membership is a workflow's.
func TestEveryCheckHasAdvice(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]bool{Membership: true}
	for _, name := range ownAdvice {
		own[name] = true
	}
	names := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		for _, v := range spec.Values {
			name, err := strconv.Unquote(v.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			names++
			passes := name == StandIn // in a diagnosis
			if advices[name] == nil && !own[name] && !passes && !strings.HasPrefix(name, "pki-") {
				t.Errorf("%s has no advice", name)
			}
			if !strings.HasPrefix(name, "pki-") && !strings.Contains(file.Doc.Text(), "\t"+name+" ") {
				t.Errorf("%s is not in the table of the package's documentation", name)
			}
		}
		return true
	})
	if names < 40 {
		t.Errorf("only %d names were found", names)
	}
}
