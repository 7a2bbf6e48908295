package config

import (
	"fmt"
	"reflect"
	"strings"
)

// Reference prints the file of a role with every key, its meaning, and its default or an example. What
// it prints is a file that [Parse] accepts.
func Reference(role string) (string, error) { return printed(role, false) }

// Example prints the smallest useful file of a role.
func Example(role string) (string, error) { return printed(role, true) }

func printed(role string, minimal bool) (string, error) {
	r := newRaw(role)
	if r == nil {
		return "", fmt.Errorf("no role %q: want one of %s", role, strings.Join(Roles, ", "))
	}
	p := printer{role: role, minimal: minimal}
	p.structure(reflect.TypeOf(r).Elem(), "", "")
	return p.b.String(), nil
}

type printer struct {
	b       strings.Builder
	role    string
	minimal bool
}

// structure prints the keys of t; first replaces the indentation of the first line, for "- ".
func (p *printer) structure(t reflect.Type, indent, first string) {
	lead := indent
	if first != "" {
		lead = first
	}
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			p.structure(f.Type, indent, lead)
			lead = indent
			continue
		}
		key, tag := f.Tag.Get("yaml"), f.Tag
		if p.minimal && tag.Get("req") == "" && tag.Get("min") == "" {
			continue
		}
		if !p.minimal {
			p.comment(indent, tag)
		}
		p.value(f.Type, tag, lead, indent, key)
		lead = indent
	}
}

func (p *printer) comment(indent string, tag reflect.StructTag) {
	text := tag.Get("doc")
	switch {
	case tag.Get("req") != "":
		text += " (required)"
	case tag.Get("def") != "":
		text += " (default: " + strings.ReplaceAll(tag.Get("def"), "ROLE", p.role) + ")"
	}
	fmt.Fprintf(&p.b, "%s# %s\n", indent, text)
}

func (p *printer) value(t reflect.Type, tag reflect.StructTag, lead, indent, key string) {
	ex := tag.Get("ex")
	if ex == "" {
		ex = tag.Get("def")
	}
	switch {
	case key == "role":
		fmt.Fprintf(&p.b, "%s%s: %s\n", lead, key, p.role)
	case t.Kind() == reflect.Struct && isScalar(t):
		if ex == "" || strings.Contains(ex, " ") && tag.Get("ex") == "" {
			fmt.Fprintf(&p.b, "%s# %s:\n", lead, key)
			return
		}
		fmt.Fprintf(&p.b, "%s%s: %s\n", lead, key, quote(ex))
	case t.Kind() == reflect.Struct:
		fmt.Fprintf(&p.b, "%s%s:\n", lead, key)
		p.structure(t, indent+"  ", "")
	case t.Kind() == reflect.Slice && isScalar(t.Elem()):
		if ex == "" {
			fmt.Fprintf(&p.b, "%s# %s: []\n", lead, key)
			return
		}
		var q []string
		for _, one := range strings.Fields(ex) {
			q = append(q, quote(one))
		}
		fmt.Fprintf(&p.b, "%s%s: [%s]\n", lead, key, strings.Join(q, ", "))
	case t.Kind() == reflect.Slice:
		fmt.Fprintf(&p.b, "%s%s:\n", lead, key)
		if elements := tag.Get("example"); p.minimal && elements != "" {
			for e := range strings.SplitSeq(elements, " | ") {
				fmt.Fprintf(&p.b, "%s  - %s\n", indent, e)
			}
			return
		}
		p.list(t.Elem(), indent)
	}
}

// list prints one element; comments of its keys stand above it, where YAML wants none between "- ".
func (p *printer) list(t reflect.Type, indent string) {
	sub := printer{role: p.role, minimal: p.minimal}
	sub.structure(t, indent+"    ", "")
	dash := false
	for line := range strings.Lines(sub.b.String()) {
		if !dash && !strings.HasPrefix(strings.TrimSpace(line), "#") {
			line = indent + "  - " + strings.TrimPrefix(line, indent+"    ")
			dash = true
		}
		p.b.WriteString(line)
	}
}

func isScalar(t reflect.Type) bool { return strings.HasPrefix(t.Name(), "scalar[") }

func quote(s string) string {
	if strings.ContainsAny(s, ":*[]{}#") {
		return `"` + s + `"`
	}
	return s
}
