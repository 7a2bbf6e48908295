// Package table prints JSON arrays of flat objects for people: one line an object, one column a key, in
// the order in which the keys came.
package table

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

type row struct {
	keys []string
	vals map[string]string
}

// Write prints rows, a JSON array of objects, as a table. It prints "(none)" for an empty one.
func Write(w io.Writer, rows json.RawMessage) error {
	var raw []json.RawMessage
	if err := json.Unmarshal(rows, &raw); err != nil {
		return fmt.Errorf("table: %w", err)
	}
	if len(raw) == 0 {
		_, err := fmt.Fprintln(w, "(none)")
		return err
	}
	var columns []string
	seen := map[string]bool{}
	var list []row
	for _, one := range raw {
		r, err := parseRow(one)
		if err != nil {
			return err
		}
		for _, k := range r.keys {
			if !seen[k] {
				seen[k] = true
				columns = append(columns, k)
			}
		}
		list = append(list, r)
	}
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ToUpper(strings.Join(columns, "\t")))
	for _, r := range list {
		cells := make([]string, len(columns))
		for i, c := range columns {
			if cells[i] = r.vals[c]; cells[i] == "" {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	return tw.Flush()
}

func parseRow(b json.RawMessage) (row, error) {
	r := row{vals: map[string]string{}}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return r, fmt.Errorf("table: %.40s is not an object", b)
	}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return r, fmt.Errorf("table: %w", err)
		}
		var v any
		if err := dec.Decode(&v); err != nil {
			return r, fmt.Errorf("table: %w", err)
		}
		k := t.(string)
		r.keys = append(r.keys, k)
		r.vals[k] = cell(v)
	}
	return r, nil
}

// cell is a value as a person reads it: time stamps as a clock, lists with commas, locators in short.
func cell(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		if t, err := time.Parse(time.RFC3339Nano, v); err == nil {
			if t.IsZero() {
				return ""
			}
			if d := time.Until(t); d.Abs() > 12*time.Hour {
				return t.Local().Format("2006-01-02T15:04:05")
			}
			return t.Local().Format("15:04:05.000")
		}
		return strings.Join(strings.Fields(v), " ")
	case json.Number:
		return v.String()
	case bool:
		if v {
			return "yes"
		}
		return "no"
	case []any:
		out := make([]string, len(v))
		for i, e := range v {
			out[i] = cell(e)
		}
		return strings.Join(out, ",")
	case map[string]any:
		if r, ok := v["rloc"].(string); ok {
			return fmt.Sprintf("%s(%v/%v)", r, v["priority"], v["weight"])
		}
		var out []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			out = append(out, k+"="+cell(v[k]))
		}
		return strings.Join(out, " ")
	}
	return fmt.Sprint(v)
}
