package vault

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/relaypki/relaypki/internal/shell"
)

// A plan says how each change is made by hand. The commands are those of an
// operator who is logged in (VAULT_ADDR, VAULT_TOKEN).

// command is a vault command in the Vault's namespace.
func (s session) command(verb string, args ...string) string {
	words := append([]string{"vault"}, strings.Fields(verb)...)
	if s.namespace != "" {
		words = append(words, "-namespace="+s.namespace)
	}
	return shell.Join(append(words, args...)...)
}

// data is a command with fields: a few plain ones on its line, others as JSON on
// its standard input, in which variables are replaced by their values.
func (s session) data(verb, path string, data map[string]any, variables ...string) string {
	args, short := []string{path}, len(data) <= 3 && len(variables) == 0
	for _, field := range slices.Sorted(maps.Keys(data)) {
		text, ok := scalar(data[field])
		short = short && ok
		args = append(args, field+"="+text)
	}
	if short {
		return s.command(verb, args...)
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(data); err != nil {
		panic(fmt.Sprintf("fields for %s cannot be written as JSON: %v", path, err))
	}
	return shell.Expanded(s.command(verb, path, "-"), text.String(), variables...)
}

// scalar is a value as the vault command takes it on its line, where a leading @
// or - has a meaning of its own.
func scalar(value any) (string, bool) {
	switch value := value.(type) {
	case string:
		return value, !strings.ContainsAny(value, "\n") && !strings.HasPrefix(value, "@") && value != "-"
	case bool:
		return strconv.FormatBool(value), true
	case int64:
		return strconv.FormatInt(value, 10), true
	case int:
		return strconv.Itoa(value), true
	}
	return "", false
}

// assign keeps a command's output in a variable.
func assign(variable, command string) string {
	if strings.Contains(command, "\n") {
		command += "\n"
	}
	return variable + `="$(` + command + `)"`
}

// imported are commands that import something of which Vault makes one issuer,
// and that give this issuer its settings.
func (s session) imported(mount, path, argument string, settings map[string]any) []string {
	return []string{
		assign("imported", s.command("write", "-field=imported_issuers", mount+path)+" "+argument),
		// Vault answers with a list of one.
		assign("imported", `echo "$imported" | tr -d '[]'`),
		strings.Replace(s.data("patch", mount+"/issuer/IMPORTED", settings), "IMPORTED", `"$imported"`, 1),
	}
}

// certificate is the command that prints an issuer's certificate.
func (s session) certificate(mount, issuer string) string {
	return s.command("read", "-field=certificate", mount+"/issuer/"+issuer)
}

// rootCommands bring the root's certificate into the relay mount, and into the
// chain of the intermediate.
func (s session) rootCommands(in IntermediateInput) []string {
	root, intermediate := RootName(in.Generation), IntermediateName(in.Generation)
	certificate := `"$(` + s.certificate(in.RootMount, in.rootRef()) + `)"`
	if in.RootMount == "" {
		certificate = shell.Quote(in.RootPEM)
	}
	return append(
		s.imported(in.RelayMount, "/issuers/import/cert", "pem_bundle="+certificate, map[string]any{"issuer_name": root}),
		s.command("patch", in.RelayMount+"/issuer/"+intermediate, "manual_chain="+intermediate+","+root),
		s.data("write", in.RelayMount+"/config/issuers", map[string]any{"default": intermediate, "default_follows_latest_issuer": false}))
}

// rootRef is the root by its id, or by the name that it will have.
func (in IntermediateInput) rootRef() string {
	if in.RootIssuerID != "" {
		return in.RootIssuerID
	}
	return RootName(in.Generation)
}
