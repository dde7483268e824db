package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/internal/mesh"
)

var update = flag.Bool("update", false, "write descriptions.json anew")

const example = "../deploy/examples/mesh.yaml"

// TestDescriptions fails when package mesh has other doc comments than
// descriptions.json; go generate ./starter writes it anew.
func TestDescriptions(t *testing.T) {
	files, err := filepath.Glob("../internal/mesh/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no sources of package mesh: %v", err)
	}
	found := map[string]string{}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range parsed.Decls {
			types, ok := decl.(*ast.GenDecl)
			if !ok || types.Tok != token.TYPE {
				continue
			}
			for _, spec := range types.Specs {
				describe(found, types.Doc, spec.(*ast.TypeSpec))
			}
		}
	}
	want, err := json.MarshalIndent(found, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile("descriptions.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(want, descriptionsJSON) {
		t.Error("descriptions.json is not what package mesh's comments say; run: go generate ./starter")
	}
}

func describe(found map[string]string, doc *ast.CommentGroup, spec *ast.TypeSpec) {
	fields, ok := spec.Type.(*ast.StructType)
	if !ok || !spec.Name.IsExported() {
		return
	}
	note := func(name string, comment *ast.CommentGroup) {
		if text := strings.Join(strings.Fields(comment.Text()), " "); text != "" {
			found[name] = text
		}
	}
	note(spec.Name.Name, doc)
	for _, field := range fields.Fields.List {
		for _, name := range field.Names {
			note(spec.Name.Name+"."+name.Name, field.Doc)
		}
	}
}

func compiledSchema(t *testing.T) (map[string]any, *jsonschema.Schema) {
	t.Helper()
	document, err := schema()
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("mesh.json", parsed); err != nil {
		t.Fatal(err)
	}
	compiled, err := compiler.Compile("mesh.json")
	if err != nil {
		t.Fatal(err)
	}
	return parsed.(map[string]any), compiled
}

func TestSchemaAcceptsTheExample(t *testing.T) {
	data, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	_, compiled := compiledSchema(t)
	if err := compiled.Validate(instance(t, data)); err != nil {
		t.Errorf("the example does not pass: %v", err)
	}
	in, problems, err := readInput(example, nil)
	if err != nil || len(problems) > 0 {
		t.Fatalf("the example has problems: %v %v", problems, err)
	}
	if in.spec.Mesh != "demo" || in.spec.Management.Context != "mgmt" || len(in.spec.Workloads) != 2 {
		t.Errorf("the example is not the one that the README speaks of: %+v", in.spec)
	}
}

// TestExampleOptionsAreDefaults reads the commented lines of the example as if
// they were not: they must be right, and what they show must be the default.
func TestExampleOptionsAreDefaults(t *testing.T) {
	data, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	body := false
	for line := range strings.Lines(string(data)) {
		body = body || strings.HasPrefix(line, "mesh:")
		if !body {
			continue
		}
		if indent, rest, ok := strings.Cut(line, "# "); ok && strings.TrimSpace(indent) == "" {
			line = indent + rest
		}
		lines = append(lines, line)
	}
	file := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	all, problems, err := readInput(file, nil)
	if err != nil || len(problems) > 0 {
		t.Fatalf("the commented options are wrong: %v %v", problems, err)
	}
	short, _, err := readInput(example, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(all.spec, short.spec) {
		t.Errorf("the commented options are not the defaults:\n%+v\n%+v", all.spec, short.spec)
	}
	if len(all.json) < 2*len(short.json) {
		t.Error("the commented options were not read")
	}
}

func TestSchemaRefuses(t *testing.T) {
	tests := map[string]string{
		"an unknown field":     `{"mesh":"demo","workloads":[{"name":"a"}],"dryrun":true}`,
		"a nested one":         `{"mesh":"demo","workloads":[{"name":"a","agent":{"relaod":"hot"}}]}`,
		"no workloads":         `{"mesh":"demo"}`,
		"a duration in digits": `{"mesh":"demo","workloads":[{"name":"a"}],"verify":{"every":3600}}`,
		"an unknown choice":    `{"mesh":"demo","workloads":[{"name":"a"}],"pki":{"isolation":"none"}}`,
	}
	_, compiled := compiledSchema(t)
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			if compiled.Validate(instance(t, []byte(text))) == nil {
				t.Errorf("%s passes", text)
			}
		})
	}
}

func TestEveryFieldIsInTheSchema(t *testing.T) {
	document, _ := compiledSchema(t)
	var walk func(path string, value reflect.Type, at map[string]any)
	count := 0
	walk = func(path string, value reflect.Type, at map[string]any) {
		switch {
		case value.Kind() == reflect.Pointer:
			walk(path, value.Elem(), at)
		case value.Kind() == reflect.Slice:
			items, _ := at["items"].(map[string]any)
			walk(path+"[]", value.Elem(), items)
		case value.Kind() == reflect.Struct && value != reflect.TypeFor[mesh.Duration]():
			properties, _ := at["properties"].(map[string]any)
			for _, field := range reflect.VisibleFields(value) {
				if field.Anonymous {
					continue // its own fields come next
				}
				name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
				below, ok := properties[name].(map[string]any)
				if !ok {
					t.Errorf("%s.%s is not in the schema", path, name)
					continue
				}
				count++
				walk(path+"."+name, field.Type, below)
			}
			if at["additionalProperties"] != false {
				t.Errorf("%s takes unknown fields", path)
			}
		}
	}
	walk("", reflect.TypeFor[mesh.Spec](), document)
	if count < 50 {
		t.Errorf("only %d fields were seen", count)
	}
}

// TestChoices holds the schema's choices against the validation.
func TestChoices(t *testing.T) {
	for path, values := range enums {
		for _, value := range append(values, "no-such-choice") {
			document := map[string]any{"mesh": "demo", "workloads": []any{map[string]any{"name": "cluster1"}}}
			set(document, path, value)
			data, err := json.Marshal(document)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "mesh.json")
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			_, problems, err := readInput(file, nil)
			if err != nil {
				t.Fatal(err)
			}
			complained := false
			for _, p := range problems {
				complained = complained || p.Path == strings.ReplaceAll(path, "[]", "[0]")
			}
			if wanted := value == "no-such-choice"; complained != wanted {
				t.Errorf("%s: %q: validation complains: %v, the schema: %v", path, value, complained, wanted)
			}
		}
	}
}

func set(document map[string]any, path string, value any) {
	name, rest, more := strings.Cut(path, ".")
	switch list, isList := strings.CutSuffix(name, "[]"); {
	case isList:
		set(document[list].([]any)[0].(map[string]any), rest, value)
	case more:
		below, ok := document[name].(map[string]any)
		if !ok {
			below = map[string]any{}
			document[name] = below
		}
		set(below, rest, value)
	default:
		document[name] = value
	}
}

func instance(t *testing.T, data []byte) any {
	t.Helper()
	asJSON, err := yaml.YAMLToJSON(data)
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// TestLinksNothingHeavy keeps the command what it is: a client of Temporal.
func TestLinksNothingHeavy(t *testing.T) {
	list, err := exec.Command("go", "list", "-deps", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, list)
	}
	if !strings.Contains(string(list), "go.temporal.io/sdk/client") {
		t.Fatalf("that is no list of packages:\n%s", list)
	}
	for pkg := range strings.Lines(string(list)) {
		for _, heavy := range []string{"helm.sh/helm", "k8s.io/client-go", "github.com/hashicorp/vault", "cert-manager", "deploy/lab", "relaypki/workflows"} {
			if strings.Contains(pkg, heavy) {
				t.Errorf("the command links %s", strings.TrimSpace(pkg))
			}
		}
	}
}
