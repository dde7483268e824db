package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/spf13/cobra"

	"github.com/relaypki/relaypki/internal/mesh"
)

// descriptionsJSON are the doc comments of package mesh, by "Type" and
// "Type.Field".
//
//go:generate go test -run TestDescriptions -args -update
//go:embed descriptions.json
var descriptionsJSON []byte

// enums are the values of the fields that take one of a few.
var enums = map[string][]any{
	"workloads[].agent.reload":         {mesh.ReloadHot, mesh.ReloadRestart},
	"workloads[].agent.trust":          {mesh.TrustRootSecret, mesh.TrustOwn},
	"vault.install":                    {mesh.VaultExisting, mesh.VaultDev, mesh.VaultStandalone},
	"pki.root.kept":                    {mesh.KeptVault, mesh.KeptOffline},
	"pki.isolation":                    {mesh.IsolationPerCluster, mesh.IsolationShared},
	"pki.root.keyType":                 {"rsa", "ec"},
	"pki.intermediate.keyType":         {"rsa", "ec"},
	"certificates.server.keyAlgorithm": {"RSA", "ECDSA"},
	"certificates.client.keyAlgorithm": {"RSA", "ECDSA"},
	"credential.method":                {mesh.CredentialJWT, mesh.CredentialToken, mesh.CredentialAppRole, mesh.CredentialKubernetes},
	"credential.keys":                  {mesh.KeysPinned, mesh.KeysDiscovery},
	"certManager.install":              {mesh.InstallAuto, mesh.InstallNever},
	"gloo.identityToken.mode":          {mesh.TokenGenerate, mesh.TokenExisting, mesh.TokenNone},
}

// durationPattern is what mesh.ParseDuration takes.
const durationPattern = `^([0-9]+d)?([0-9.]+(h|m|s|ms))*$`

func (c *cli) schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of a mesh file",
		Long: `Print the JSON Schema of a mesh file, with every field's meaning and default.
Editors complete and check YAML by it; with the YAML language server, begin the
file with "# yaml-language-server: $schema=mesh.schema.json".`,
		Example:           `  relaypki schema > mesh.schema.json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			document, err := schema()
			if err != nil {
				return err
			}
			return c.printJSON(document)
		},
	}
}

// schema describes mesh.Spec by its own types, comments and defaults.
func schema() (map[string]any, error) {
	s := schemaWriter{}
	if err := json.Unmarshal(descriptionsJSON, &s.descriptions); err != nil {
		return nil, fmt.Errorf("descriptions: %w", err)
	}
	defaults, err := defaultValues()
	if err != nil {
		return nil, err
	}
	document := s.object("", reflect.TypeFor[mesh.Spec](), defaults)
	document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	document["title"] = "relaypki mesh"
	return document, nil
}

// defaultValues are those of a mesh with one workload. What is made from the
// input's own names is no default to show.
func defaultValues() (map[string]any, error) {
	spec := mesh.Spec{Workloads: []mesh.Workload{{}}}.WithDefaults()
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	var values map[string]any
	return values, json.Unmarshal(data, &values)
}

type schemaWriter struct{ descriptions map[string]string }

func (s schemaWriter) object(path string, t reflect.Type, defaults map[string]any) map[string]any {
	properties, required := map[string]any{}, []string{}
	for _, field := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if !field.IsExported() || name == "" || name == "-" {
			continue
		}
		at := name
		if path != "" {
			at = path + "." + name
		}
		property := s.value(at, field.Type, defaults[name])
		owner := t
		if embedded := field.Index[:len(field.Index)-1]; len(embedded) > 0 {
			owner = t.FieldByIndex(embedded).Type
		}
		if text := s.descriptions[owner.Name()+"."+field.Name]; text != "" {
			property["description"] = text
		}
		properties[name] = property
		if options == "" {
			required = append(required, name)
		}
	}
	out := map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
	if text := s.descriptions[t.Name()]; text != "" {
		out["description"] = text
	}
	if len(required) > 0 {
		out["required"] = required
	}
	return out
}

func (s schemaWriter) value(path string, t reflect.Type, value any) map[string]any {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	out := map[string]any{}
	switch {
	case t == reflect.TypeFor[mesh.Duration]():
		out["type"], out["pattern"] = "string", durationPattern
	case t.Kind() == reflect.Struct:
		below, _ := value.(map[string]any)
		return s.object(path, t, below)
	case t.Kind() == reflect.Slice:
		var first any
		if list, ok := value.([]any); ok && len(list) > 0 && t.Elem().Kind() == reflect.Struct {
			first = list[0]
		}
		out["type"], out["items"] = "array", s.value(path+"[]", t.Elem(), first)
		if first != nil {
			return out
		}
	case t.Kind() == reflect.Map:
		out["type"] = "object"
		return out
	case t.Kind() == reflect.Bool:
		out["type"] = "boolean"
	case t.Kind() == reflect.Int:
		out["type"] = "integer"
	default:
		out["type"] = "string"
	}
	if values := enums[path]; values != nil {
		out["enum"] = values
	}
	if value != nil && value != "" {
		out["default"] = value
	}
	return out
}
