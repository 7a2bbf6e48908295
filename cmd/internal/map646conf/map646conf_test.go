package map646conf

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree are files in memory, by path.
type tree map[string]string

func (t tree) open(path string) (file, error) {
	text, ok := t[path]
	if !ok {
		return file{}, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return file{path, path, text}, nil
}

// told is a line as a test compares it.
func told(l *Line) string {
	s := l.At() + " " + string(l.Kind)
	switch {
	case l.Error != nil:
		s += " ERROR " + l.Error.Error()
	case l.Kind == Prefix:
		s += " " + l.Pool.String()
	case l.Kind == Include:
		s += " " + l.Path
	default:
		s += fmt.Sprintf(" %s %s", l.Outside, l.Inside)
	}
	if l.Same != nil {
		s += " as " + l.Same.At()
	}
	if l.Note != "" {
		s += " NOTE " + l.Note
	}
	return s
}

func check(t *testing.T, files tree, want ...string) {
	t.Helper()
	lines, err := read("/etc/map646.conf", files.open)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range lines {
		got = append(got, strings.TrimPrefix(told(l), "/etc/map646.conf"))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestRead(t *testing.T) {
	check(t, tree{"/etc/map646.conf": `# the front ends
mapping-prefix 2001:db8:64::

map-static 198.51.100.10 2001:db8:e1d::a   # web
	map-static	198.51.100.11	2001:DB8:E1D:0::B the mail server
map66-static 2001:db8:5::10 2001:db8:e1d::a
include more.conf
map-static 198.51.100.10 2001:db8:e1d::a
#map-static 198.51.100.12 2001:db8:e1d::c`,
		"/etc/more.conf":     "map-static 198.51.100.20 2001:db8:e1d::14\r\ninclude /srv/most.conf\r\n",
		"/srv/most.conf":     "include sub/deep.conf\nmap66-static 2001:db8:5::15 2001:db8:e1d::15",
		"/srv/sub/deep.conf": "mapping-prefix 2001:db8:64::",
	},
		":2 mapping-prefix 2001:db8:64::/96",
		":4 map-static 198.51.100.10 2001:db8:e1d::a",
		`:5 map-static 198.51.100.11 2001:db8:e1d::b NOTE "the mail server" is passed over`,
		":6 map66-static 2001:db8:5::10 2001:db8:e1d::a",
		":7 include /etc/more.conf",
		"/etc/more.conf:1 map-static 198.51.100.20 2001:db8:e1d::14",
		"/etc/more.conf:2 include /srv/most.conf",
		"/srv/most.conf:1 include /srv/sub/deep.conf",
		"/srv/sub/deep.conf:1 mapping-prefix 2001:db8:64::/96 as /etc/map646.conf:2",
		"/srv/most.conf:2 map66-static 2001:db8:5::15 2001:db8:e1d::15",
		":8 map-static 198.51.100.10 2001:db8:e1d::a as /etc/map646.conf:4",
	)
}

func TestLineErrors(t *testing.T) {
	for text, want := range map[string]string{
		"map-dynamic 1.2.3.4":                        `"map-dynamic" is no directive: want mapping-prefix, map-static, map66-static or include`,
		"MAP-STATIC 198.51.100.1 2001:db8::1":        `"MAP-STATIC" is no directive: want mapping-prefix, map-static, map66-static or include`,
		"map-static":                                 "map-static wants an IPv4 and an IPv6 address",
		"map-static 198.51.100.1 # 2001:db8::1":      "map-static wants an IPv4 and an IPv6 address",
		"map-static 198.51.100.256 2001:db8::1":      `"198.51.100.256" is no IPv4 address`,
		"map-static 2001:db8::1 198.51.100.1":        `"2001:db8::1" is no IPv4 address`,
		"map-static 198.51.100.1 fe80::1%eth0":       `"fe80::1%eth0" is no IPv6 address`,
		"map-static 198.51.100.1 198.51.100.2":       `"198.51.100.2" is no IPv6 address`,
		"map66-static 2001:db8::1":                   "map66-static wants two IPv6 addresses",
		"map66-static 198.51.100.1 2001:db8::1":      `"198.51.100.1" is no IPv6 address`,
		"map66-static 2001:db8::/64 2001:db8:1::/64": `"2001:db8::/64" is no IPv6 address`,
		"map-static 192.0.2.1 ::ffff:192.0.2.2":      `"::ffff:192.0.2.2" is no IPv6 address`,
		"mapping-prefix":                             "mapping-prefix wants an IPv6 address",
		"mapping-prefix 192.0.2.0":                   `"192.0.2.0" is no IPv6 address`,
		"mapping-prefix 64::/96":                     `"64::/96" is no IPv6 address: the original takes an address, and makes a /96 of it`,
		"mapping-prefix 2001:db8:0:0:0100::":         "2001:db8:0:0:100:: has bits set from 64 to 71, which are zero in a prefix that IPv4 addresses are embedded in (RFC 6052 section 2.2)",
		"include":                                    "include wants a file",
		"include none.conf":                          "/etc/none.conf: file does not exist",
		"include map646.conf":                        "/etc/map646.conf includes itself: /etc/map646.conf -> /etc/map646.conf",
	} {
		lines, err := read("/etc/map646.conf", tree{"/etc/map646.conf": "\n" + text + "\n"}.open)
		if err != nil || len(lines) != 1 || lines[0].Error == nil || lines[0].Error.Error() != want || lines[0].Number != 2 || len(Bad(lines)) != 1 {
			t.Errorf("%q: %v %v", text, lines[0].Error, err)
		}
	}
}

// An address is bound once, whichever file says so; within each family an EID has one.
func TestBoundOnce(t *testing.T) {
	check(t, tree{"/etc/map646.conf": `map-static 198.51.100.10 2001:db8:e1d::a
map-static 198.51.100.10 2001:db8:e1d::b
map-static 198.51.100.11 2001:db8:e1d:0:0::a
map66-static 2001:db8:5::1 2001:db8:e1d::a
map66-static 2001:db8:5::2 2001:db8:e1d::a
map66-static 2001:db8:5::1 2001:db8:e1d::a
mapping-prefix 2001:db8:64::
mapping-prefix 2001:db8:64::1.2.3.4
mapping-prefix 2001:db8:65::`},
		":1 map-static 198.51.100.10 2001:db8:e1d::a",
		":2 map-static ERROR 198.51.100.10 is translated to 2001:db8:e1d::a already, at /etc/map646.conf:1",
		":3 map-static ERROR 2001:db8:e1d::a has 198.51.100.10 already, at /etc/map646.conf:1",
		":4 map66-static 2001:db8:5::1 2001:db8:e1d::a",
		":5 map66-static ERROR 2001:db8:e1d::a has 2001:db8:5::1 already, at /etc/map646.conf:4",
		":6 map66-static 2001:db8:5::1 2001:db8:e1d::a as /etc/map646.conf:4",
		":7 mapping-prefix 2001:db8:64::/96",
		":8 mapping-prefix 2001:db8:64::/96 as /etc/map646.conf:7",
		":9 mapping-prefix ERROR 2001:db8:64::/96 is the prefix already, at /etc/map646.conf:7: a cloud has one",
	)
	check(t, tree{"/etc/map646.conf": "mapping-prefix 2001:db8:64::1"},
		":1 mapping-prefix 2001:db8:64::/96 NOTE its last four bytes are where IPv4 addresses go: they are not kept")
}

func TestIncludes(t *testing.T) {
	check(t, tree{"/etc/map646.conf": "include a", "/etc/a": "include b", "/etc/b": "include ../etc/a\ninclude map646.conf"},
		":1 include /etc/a",
		"/etc/a:1 include /etc/b",
		"/etc/b:1 include ERROR /etc/a includes itself: /etc/a -> /etc/b -> /etc/a",
		"/etc/b:2 include ERROR /etc/map646.conf includes itself: /etc/map646.conf -> /etc/a -> /etc/b -> /etc/map646.conf")
	// Twice is no loop.
	check(t, tree{"/etc/map646.conf": "include a\ninclude a", "/etc/a": "map-static 192.0.2.1 2001:db8::1"},
		":1 include /etc/a", "/etc/a:1 map-static 192.0.2.1 2001:db8::1",
		":2 include /etc/a", "/etc/a:1 map-static 192.0.2.1 2001:db8::1 as /etc/a:1")
	deep := tree{"/etc/map646.conf": "include 0"}
	for i := range 20 {
		deep[fmt.Sprintf("/etc/%d", i)] = fmt.Sprintf("include %d", i+1)
	}
	lines, err := read("/etc/map646.conf", deep.open)
	if err != nil {
		t.Fatal(err)
	}
	last := lines[len(lines)-1]
	if len(lines) != maxDepth+1 || last.Error == nil || !strings.Contains(last.Error.Error(), "more than 10 deep") {
		t.Errorf("%d lines, %v", len(lines), last.Error)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	main := write("map646.conf", "map-static 192.0.2.1 2001:db8::1\ninclude loop.conf\ninclude .\n")
	if err := os.Symlink("map646.conf", filepath.Join(dir, "loop.conf")); err != nil {
		t.Fatal(err)
	}
	lines, err := Read(main)
	if err != nil || len(lines) != 3 || lines[0].Error != nil {
		t.Fatalf("%v %v", lines, err)
	}
	if e := lines[1].Error; e == nil || !strings.Contains(e.Error(), "loop.conf includes itself") {
		t.Errorf("a loop by another name: %v", e)
	}
	if e := lines[2].Error; e == nil || !strings.HasSuffix(e.Error(), "is a directory") {
		t.Errorf("%v", e)
	}
	if _, err := Read(main + "x"); err == nil || err.Error() != "map646 configuration "+main+"x: no such file or directory" {
		t.Errorf("%v", err)
	}
}

func FuzzRead(f *testing.F) {
	for _, s := range []string{
		"mapping-prefix 64::\nmap-static 192.0.2.1 2001:db8::100\n",
		"map66-static 2001:db8:5::1 2001:db8::1 # comment\ninclude b\n",
		"include a", "include ../x/./a\x00", "map-static 1.2.3.4", "\r\n\t #\n#map-static", "mapping-prefix ::ffff:1.2.3.4",
		"map-static 198.51.100.1 ::ffff:198.51.100.1",
	} {
		f.Add(s, "include c\nmap-static 192.0.2.1 2001:db8::2")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		files := tree{"/etc/a": a, "/etc/b": b, "/etc/c": a + "\n" + b}
		lines, err := read("/etc/a", files.open)
		if err != nil {
			t.Fatal(err)
		}
		outs, ins := map[string]string{}, map[string]string{}
		for _, l := range lines {
			if l.Error != nil {
				continue
			}
			if src := strings.Split(files[l.File], "\n"); l.Number < 1 || l.Number > len(src) || !strings.Contains(src[l.Number-1], string(l.Kind)) {
				t.Fatalf("%s is not there", told(l))
			}
			switch l.Kind {
			case Prefix:
				if l.Pool.Bits() != 96 || l.Pool != l.Pool.Masked() || !l.Pool.Addr().Is6() {
					t.Fatal(told(l))
				}
			case Static, Static66:
				if l.Outside.Is4() != (l.Kind == Static) || !l.Inside.Is6() {
					t.Fatal(told(l))
				}
				out, in := l.Outside.String(), string(l.Kind)+l.Inside.String()
				if o, ok := outs[out]; ok && o != in || ins[in] != "" && ins[in] != out {
					t.Fatalf("bound twice: %s", told(l))
				}
				if l.Same == nil && outs[out] != "" {
					t.Fatalf("told twice: %s", told(l))
				}
				outs[out], ins[in] = in, out
			}
		}
		// Whatever is well is so without what is not.
		var again strings.Builder
		for _, l := range lines {
			if l.Error == nil && l.Kind != Include {
				again.WriteString(l.Text + "\n")
			}
		}
		second, err := read("/etc/a", tree{"/etc/a": again.String()}.open)
		if err != nil || len(Bad(second)) != 0 {
			t.Fatalf("%v %v", err, maps.Collect(func(yield func(int, string) bool) {
				for i, l := range Bad(second) {
					if !yield(i, told(l)) {
						return
					}
				}
			}))
		}
	})
}
