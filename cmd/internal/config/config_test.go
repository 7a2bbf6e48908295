package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the commands print must be files that we accept: whoever starts from them starts from something good.
func TestPrintedFilesParse(t *testing.T) {
	for _, role := range Roles {
		for kind, print := range map[string]func(string) (string, error){"reference": Reference, "example": Example} {
			t.Run(role+"/"+kind, func(t *testing.T) {
				text, err := print(role)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := Parse(role+".yaml", []byte(text)); err != nil {
					t.Errorf("%v\n%s", err, text)
				}
			})
		}
	}
}

// Every key of every role has a word of documentation.
func TestEveryKeyIsDocumented(t *testing.T) {
	for _, role := range Roles {
		text, err := Reference(role)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(text) {
			if s := strings.TrimSpace(line); strings.HasPrefix(s, "#  (") || s == "#" {
				t.Errorf("%s: a key without documentation: %q", role, line)
			}
		}
	}
}

func TestErrorsNameLineAndColumn(t *testing.T) {
	good, err := Example("xtr")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ old, new, want string }{
		"unknown key":      {"underlay:", "underlya:", `unknown field "underlya"`},
		"bad prefix":       {"198.51.100.0/24", "198.51.100.0/33", "198.51.100.0/33"},
		"bits beyond":      {"198.51.100.0/24, ", "198.51.100.1/24, ", "bits set beyond"},
		"bad xTR-ID":       {"00000000000000000000000000000001", "1234", "32 hexadecimal digits"},
		"missing secret":   {"secret: change-me", "id: 3", "secret is required"},
		"bad role":         {"role: xtr", "role: switch", `no role "switch"`},
		"list for a value": {"role: xtr", "name: [a, b]\nrole: xtr", "single value"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good, c.old, c.new, 1)
			if text == good {
				t.Fatalf("%q is not in the example:\n%s", c.old, good)
			}
			path := filepath.Join(t.TempDir(), "xtr.yaml")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Load(path)
			if err == nil {
				t.Fatalf("accepted:\n%s", text)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
			var line, col int
			if !located2(err.Error(), path, &line, &col) {
				t.Errorf("error %q does not begin with file:line:column", err)
			}
		})
	}
}

// located2 reads "path:line:col:" off the front of an error.
func located2(s, path string, line, col *int) bool {
	rest, ok := strings.CutPrefix(s, path+":")
	if !ok {
		return false
	}
	parts := strings.SplitN(rest, ":", 3)
	return len(parts) == 3 && number(parts[0], line) && number(parts[1], col)
}

func number(s string, n *int) bool {
	*n = 0
	for _, r := range s {
		if r < '0' || r > '9' {
			return false
		}
		*n = *n*10 + int(r-'0')
	}
	return s != "" && *n > 0
}

func FuzzParse(f *testing.F) {
	for _, role := range Roles {
		text, err := Reference(role)
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) { Parse("fuzz.yaml", b) })
}
