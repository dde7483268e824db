// Package strict decodes JSON that a person typed. Temporal's converter, like
// encoding/json, drops unknown fields in silence, so that a mistyped "dryrun"
// would start the real thing; and it stops at the first mistake. Decode finds
// every mistake at once and names the field that was probably meant.
package strict

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"sort"
	"strings"
)

// Problem is one mistake in an input: where it is and what to do about it.
type Problem struct {
	// Path is the field as a person would name it, for example
	// "workloads[1].name"; empty for the input as a whole.
	Path string `json:"path"`
	// Message says what is wrong and what would be right.
	Message string `json:"message"`
}

// String is "path: message".
func (p Problem) String() string {
	if p.Path == "" {
		return p.Message
	}
	return p.Path + ": " + p.Message
}

// Decode decodes the JSON object in data into the struct that into points to
// and returns every problem found: bad JSON, unknown fields, values of the
// wrong type. What could be decoded is in into even when there are problems,
// so that the caller's own validation can add its own to the list.
func Decode(data []byte, into any) []Problem {
	if len(bytes.TrimSpace(data)) == 0 || bytes.Equal(bytes.TrimSpace(data), []byte("null")) {
		return []Problem{{Message: "the input is empty; it must be one JSON object"}}
	}
	var raw any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(&raw); err != nil {
		return []Problem{{Message: fmt.Sprintf("the input is not valid JSON: %v", err)}}
	}
	if dec.More() {
		return []Problem{{Message: "the input has something after its JSON object; it must be exactly one object"}}
	}
	d := decoder{}
	d.value("", raw, reflect.ValueOf(into).Elem())
	return d.problems
}

type decoder struct{ problems []Problem }

func (d *decoder) problem(path, format string, args ...any) {
	d.problems = append(d.problems, Problem{Path: path, Message: fmt.Sprintf(format, args...)})
}

func (d *decoder) value(path string, raw any, into reflect.Value) {
	if raw == nil {
		return
	}
	if into.Kind() == reflect.Pointer {
		if into.IsNil() {
			into.Set(reflect.New(into.Type().Elem()))
		}
		d.value(path, raw, into.Elem())
		return
	}
	if into.CanAddr() {
		if u, ok := into.Addr().Interface().(json.Unmarshaler); ok {
			d.custom(path, raw, u)
			return
		}
	}
	switch into.Kind() {
	case reflect.Struct:
		d.object(path, raw, into)
	case reflect.Slice:
		list, ok := raw.([]any)
		if !ok {
			d.problem(path, "must be a list, not %s", kindOf(raw))
			return
		}
		out := reflect.MakeSlice(into.Type(), len(list), len(list))
		for i, item := range list {
			d.value(fmt.Sprintf("%s[%d]", path, i), item, out.Index(i))
		}
		into.Set(out)
	default:
		d.leaf(path, raw, into)
	}
}

// custom hands a value to its own decoder; what that says is the problem.
func (d *decoder) custom(path string, raw any, into json.Unmarshaler) {
	data, err := json.Marshal(raw)
	if err == nil {
		err = into.UnmarshalJSON(data)
	}
	if err != nil {
		d.problem(path, "%v", err)
	}
}

func (d *decoder) leaf(path string, raw any, into reflect.Value) {
	data, err := json.Marshal(raw)
	if err == nil {
		err = json.Unmarshal(data, into.Addr().Interface())
	}
	if err != nil {
		d.problem(path, "must be %s, not %s", kindWanted(into.Type()), kindOf(raw))
	}
}

func (d *decoder) object(path string, raw any, into reflect.Value) {
	object, ok := raw.(map[string]any)
	if !ok {
		d.problem(path, "must be an object, not %s", kindOf(raw))
		return
	}
	fields := Fields(into.Type())
	names := make([]string, 0, len(object))
	for name := range object {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		at := name
		if path != "" {
			at = path + "." + name
		}
		index, known := fields[name]
		if !known {
			d.problem(at, "unknown field%s", suggestion(name, fields))
			continue
		}
		d.value(at, object[name], into.FieldByIndex(index))
	}
}

// Fields are the JSON names of a struct type's fields, embedded ones included,
// with their indexes.
func Fields(t reflect.Type) map[string][]int {
	fields := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.IsExported() && name != "" && name != "-" {
			fields[name] = f.Index
		}
	}
	return fields
}

func suggestion(name string, fields map[string][]int) string {
	best, bestDistance := "", 1+max(2, len(name)/3)
	known := make([]string, 0, len(fields))
	for k := range fields {
		known = append(known, k)
	}
	sort.Strings(known)
	for _, k := range known {
		if dist := distance(strings.ToLower(name), strings.ToLower(k)); dist < bestDistance {
			best, bestDistance = k, dist
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return "; known here: " + strings.Join(known, ", ")
}

// distance is the Levenshtein distance of two short strings.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal, row[j] = row[j], min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

func kindOf(raw any) string {
	switch v := raw.(type) {
	case string:
		return fmt.Sprintf("the text %q", v)
	case json.Number:
		return "the number " + v.String()
	case bool:
		return fmt.Sprintf("%v", v)
	case []any:
		return "a list"
	default:
		return "an object"
	}
}

func kindWanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a text in quotes"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Map:
		return "an object"
	default:
		return "a " + t.Kind().String()
	}
}
