package lisp

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each line of CONFORMANCE.md is of an RFC and a section, and names tests that are there.
func TestConformance(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	there := map[string]bool{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(\w+ \*testing\.`).FindAllSubmatch(b, -1) {
			there[string(m[1])] = true
		}
	}
	b, err := os.ReadFile("CONFORMANCE.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`^\| (\d{4}) \| (\d[\d., ]*) \| ([^|]+) \| ([^|]*) \|$`)
	rows, seen := 0, map[string]bool{}
	for i, line := range strings.Split(string(b), "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| RFC ") {
			continue
		}
		m := row.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("line %d is no row: %s", i+1, line)
			continue
		}
		rows++
		if clause := strings.Join(m[1:4], " "); seen[clause] {
			t.Errorf("line %d: %s is there twice", i+1, clause)
		} else {
			seen[clause] = true
		}
		for name := range strings.SplitSeq(m[4], ", ") {
			if !there[name] {
				t.Errorf("line %d: there is no test %q", i+1, name)
			}
		}
	}
	if rows < 30 {
		t.Errorf("%d rows", rows)
	}
}
