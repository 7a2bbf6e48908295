package map646

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

// sections are those that have clauses for a stateless translator; CONFORMANCE.md has at least a row for each.
var sections = map[string]string{
	"7915": "1.2 1.3 1.4 4 4.1 4.2 4.3 4.4 4.5 4.6 5 5.1 5.1.1 5.2 5.3 5.4 5.5 5.6 6 7 8 A",
	"6052": "2.1 2.2 2.3 2.4 3.1 3.3 5.1",
	"7757": "3.1 3.2 3.3.1 3.3.2 4.2 4.2.1 4.2.2 5 6 A B B.1",
	"6791": "3 3.2 4 5",
	"4884": "3 4 4.6 5.4 5.5 7 8 9",
	"6296": "2.1 2.5 2.6 3.1 3.2 3.3 3.4 3.5 3.6 3.7 4.1 4.2 4.3 6 B",
}

var quoted = regexp.MustCompile("`([^`]+)`")

// problems are what is wrong with a conformance table, given the tests and the vectors that there are.
func problems(text string, tests map[string]bool, all []vectors.Vector) (out []string) {
	vector := make(map[string]bool)
	for _, v := range all {
		vector["V/"+v.Name] = false
	}
	rows := make(map[string]bool) // "7915 4.1"
	rfc := ""
	for n, line := range strings.Split(text, "\n") {
		if h, ok := strings.CutPrefix(line, "## "); ok {
			if rfc, ok = strings.CutPrefix(h, "RFC "); ok {
				rfc = rfc[:4]
			} else {
				rfc = ""
			}
			continue
		}
		cells := strings.Split(line, "|")
		if len(cells) < 2 || strings.HasPrefix(line, "| Section") || strings.HasPrefix(line, "|---") {
			continue
		}
		bad := func(why string) { out = append(out, "line "+number(n+1)+": "+why) }
		if len(cells) != 5 {
			bad("a row has three cells")
			continue
		}
		rows[strings.TrimSpace(rfc+" "+strings.TrimSpace(cells[1]))] = true
		named := quoted.FindAllStringSubmatch(cells[3], -1)
		if len(named) == 0 && !strings.Contains(cells[3], "not applicable: ") {
			bad("no test, and no reason")
		}
		for _, m := range named {
			name := m[1]
			if _, ok := vector[name]; ok {
				vector[name] = true
			} else if !tests[name] {
				bad("there is no " + name)
			}
		}
	}
	for _, v := range all {
		if !vector["V/"+v.Name] {
			out = append(out, "vector "+v.Name+" is in no row")
		}
		if !rows[v.Shows] {
			out = append(out, "vector "+v.Name+" shows "+v.Shows+", which has no row")
		}
	}
	for rfc, list := range sections {
		for _, s := range strings.Fields(list) {
			if !rows[rfc+" "+s] {
				out = append(out, "RFC "+rfc+" section "+s+" has no row")
			}
		}
	}
	return out
}

func number(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return number(n/10) + number(n%10)
}

// testNames are the tests and fuzz targets of this package.
func testNames(t *testing.T) map[string]bool {
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && (strings.HasPrefix(fn.Name.Name, "Test") || strings.HasPrefix(fn.Name.Name, "Fuzz")) {
				names[fn.Name.Name] = true
			}
		}
	}
	return names
}

func TestConformance(t *testing.T) {
	text, err := os.ReadFile("CONFORMANCE.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := testNames(t)
	for _, p := range problems(string(text), tests, vectors.All()) {
		t.Error(p)
	}
	// The check itself can fail.
	for _, c := range []struct{ old, new, want string }{
		{"`TestIdentification`", "`TestNothing`", "there is no TestNothing"},
		{"`TestIdentification`", "", "no test, and no reason"},
		{"`V/igmp`", "`TestHop`", "vector igmp is in no row"},
		{"| 5.6 |", "| 5.7 |", "RFC 7915 section 5.6 has no row"},
		{"| inner |", "| outer |", "shows 6296 inner, which has no row"},
	} {
		text := strings.Replace(string(text), c.old, c.new, 1)
		if got := strings.Join(problems(text, tests, vectors.All()), "\n"); !strings.Contains(got, c.want) {
			t.Errorf("%s instead of %s: %q, want %q", c.new, c.old, got, c.want)
		}
	}
}
