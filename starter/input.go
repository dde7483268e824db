package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/relaypki/relaypki/internal/mesh"
	"github.com/relaypki/relaypki/internal/procedure"
	"github.com/relaypki/relaypki/internal/strict"
)

// input is a mesh file: what is sent, as the person wrote it, and what it means.
type input struct {
	file string
	json json.RawMessage
	spec mesh.Spec
	// plan: the input itself asks for a plan alone.
	plan bool
}

// readInput reads a mesh file ("-" for standard input), YAML or JSON, and
// returns it with every problem that can be found without the clusters.
func readInput(file string, stdin io.Reader) (input, []strict.Problem, error) {
	var data []byte
	var err error
	if file == "-" {
		data, err = io.ReadAll(stdin)
	} else {
		data, err = os.ReadFile(file)
	}
	if err != nil {
		return input{}, nil, fmt.Errorf("the input cannot be read: %w", err)
	}
	in := input{file: file, json: data}
	if !json.Valid(data) {
		if in.json, err = yaml.YAMLToJSONStrict(data); err != nil {
			return input{}, []strict.Problem{{Message: "not valid YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}}, nil
		}
	}
	var decoded procedure.SetupInput
	if err := decoded.UnmarshalJSON(in.json); err != nil {
		return input{}, nil, err
	}
	in.spec, in.plan = decoded.Spec.WithDefaults(), decoded.Plan
	return in, append(decoded.Problems, in.spec.Validate()...), nil
}

// reject reports an unusable input.
func (c *cli) reject(file string, problems []strict.Problem) error {
	if c.json() {
		if err := c.printJSON(map[string]any{"status": "invalid", "problems": problems}); err != nil {
			return err
		}
	}
	lines := make([]string, len(problems))
	for i, p := range problems {
		lines[i] = "  " + p.String()
	}
	what := "1 problem"
	if len(problems) > 1 {
		what = fmt.Sprintf("%d problems", len(problems))
	}
	return badInput("correct "+file+" ("+c.again("schema")+" says what it may hold), then: "+c.sameWith(),
		"%s has %s; nothing was started:\n%s", file, what, strings.Join(lines, "\n"))
}

func (c *cli) printJSON(document any) error {
	encoder := json.NewEncoder(c.out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(document)
}
