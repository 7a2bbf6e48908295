package table

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWrite(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"empty": {`[]`, "(none)\n"},
		"columns in the order in which they came": {
			`[{"eid":"10.0.0.1/32","version":3,"up":true},{"eid":"10.0.0.2/32","why":"late","version":4}]`,
			"EID          VERSION  UP   WHY\n10.0.0.1/32  3        yes  -\n10.0.0.2/32  4        -    late\n"},
		"locators in short": {
			`[{"locators":[{"rloc":"192.0.2.1","priority":1,"weight":100,"reachable":true},{"rloc":"192.0.2.2","priority":2,"weight":1,"reachable":true}]}]`,
			"LOCATORS\n192.0.2.1(1/100),192.0.2.2(2/1)\n"},
		"a map by key, lines folded": {
			`[{"dropped":{"b":2,"a":1},"why":"one\ntwo"}]`,
			"DROPPED  WHY\na=1 b=2  one two\n"},
		"no time at all": {`[{"at":"0001-01-01T00:00:00Z"}]`, "AT\n-\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if err := Write(&b, []byte(c.in)); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, b.String()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestWriteRefuses(t *testing.T) {
	for _, in := range []string{``, `{}`, `[1]`, `[{"a":]`} {
		if err := Write(&strings.Builder{}, []byte(in)); err == nil {
			t.Errorf("%q: no error", in)
		}
	}
}
