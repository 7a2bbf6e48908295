// Package map646conf reads the configuration file of the original map646, line by line, so that its table can be taken
// over:
//
//	mapping-prefix 2001:db8:64::                      the IPv6 addresses that stand for the rest of IPv4: a /96
//	map-static     198.51.100.10 2001:db8:e1d::a      an IPv4 address, and the IPv6 address that it is translated to
//	map66-static   2001:db8:5::10 2001:db8:e1d::a     the same of an IPv6 address: what clients use comes first
//	include        more.conf                          another file of the same form
//
// A word that begins with "#" begins a comment. What follows the arguments of a line is passed over, as the original does,
// and a note says so. Where the original goes on silently, or does something else than what is written, there is an error:
// addresses that are none, words that are no directives, files that are missing, addresses that have been given away in an
// earlier line, files that include themselves.
package map646conf

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Kind is what a line is.
type Kind string

// The kinds of lines, by the directive that they begin with.
const (
	Prefix   Kind = "mapping-prefix"
	Static   Kind = "map-static"
	Static66 Kind = "map66-static"
	Include  Kind = "include"
	Unknown  Kind = "" // the directive is none
)

// Line is a line that says something: comments and blank lines are none.
type Line struct {
	File   string
	Number int    // from 1
	Text   string // without the comment and the space around it
	Kind   Kind

	Outside, Inside netip.Addr   // of Static and Static66: what clients use, and what it is translated to
	Pool            netip.Prefix // of Prefix: always a /96
	Path            string       // of Include: as it was opened

	Note  string // what is to know of it, though it is no error
	Same  *Line  // an earlier line that says the same
	Error error  // what is wrong with it
}

// At is where a line stands: FILE:NUMBER.
func (l *Line) At() string { return fmt.Sprintf("%s:%d", l.File, l.Number) }

const (
	// maxDepth is how deep files may include each other, as in the original.
	maxDepth = 10
	// maxFile and maxLines bound what is read of one file, in bytes, and of all.
	maxFile  = 64 << 20
	maxLines = 4_000_000
)

// Read reads a file and what it includes. Paths of included files that are not absolute start at the directory of the file
// that names them. The error is about the file itself; what is wrong with a line is in its Error.
func Read(path string) ([]*Line, error) { return read(path, openFile) }

// Bad returns the lines that have an error.
func Bad(lines []*Line) (out []*Line) {
	for _, l := range lines {
		if l.Error != nil {
			out = append(out, l)
		}
	}
	return out
}

// file is a file that was opened: its name in messages, and what it is whatever it is called.
type file struct {
	path string
	real string
	text string
}

func openFile(path string) (file, error) {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return file{}, err
	case st.IsDir():
		return file{}, errors.New("is a directory")
	case st.Size() > maxFile:
		return file{}, fmt.Errorf("has %d bytes: more than %d are not read", st.Size(), maxFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return file{}, err
	}
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	return file{path, real, string(b)}, err
}

// reader reads one file and what it includes.
type reader struct {
	open  func(path string) (file, error)
	lines []*Line
	way   []file // the files that include each other, down to the one that is being read
	pool  *Line
	// Who has an address already: outside of both kinds, inside of each.
	outside, inside4, inside6 map[netip.Addr]*Line
}

func read(path string, open func(string) (file, error)) ([]*Line, error) {
	f, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("map646 configuration %s: %w", path, reason(err))
	}
	r := &reader{open: open, outside: map[netip.Addr]*Line{}, inside4: map[netip.Addr]*Line{}, inside6: map[netip.Addr]*Line{}}
	r.file(f)
	if len(r.lines) > maxLines {
		return nil, fmt.Errorf("map646 configuration %s: more than %d lines", path, maxLines)
	}
	return r.lines, nil
}

// reason takes the path out of an error of the file system: it is said already.
func reason(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func (r *reader) file(f file) {
	r.way = append(r.way, f)
	n := 0
	for text := range strings.Lines(f.text) {
		if n++; len(r.lines) > maxLines {
			break
		}
		words := words(text)
		if len(words) == 0 {
			continue
		}
		l := &Line{File: f.path, Number: n, Text: strings.Join(words, " ")}
		r.lines = append(r.lines, l)
		r.line(l, words)
	}
	r.way = r.way[:len(r.way)-1]
}

// words splits a line at white space, and drops the comment.
func words(text string) []string {
	w := strings.Fields(text)
	if i := slices.IndexFunc(w, func(s string) bool { return strings.HasPrefix(s, "#") }); i >= 0 {
		w = w[:i]
	}
	return w
}

func (r *reader) line(l *Line, words []string) {
	want := map[Kind]int{Prefix: 1, Static: 2, Static66: 2, Include: 1}
	l.Kind = Kind(words[0])
	n, ok := want[l.Kind]
	if !ok {
		l.Kind = Unknown
		l.Error = fmt.Errorf("%q is no directive: want mapping-prefix, map-static, map66-static or include", words[0])
		return
	}
	args := words[1:]
	if len(args) < n {
		l.Error = fmt.Errorf("%s wants %s", l.Kind, map[Kind]string{Prefix: "an IPv6 address", Static: "an IPv4 and an IPv6 address",
			Static66: "two IPv6 addresses", Include: "a file"}[l.Kind])
		return
	}
	if len(args) > n {
		l.Note = fmt.Sprintf("%q is passed over", strings.Join(args[n:], " "))
	}
	switch l.Kind {
	case Prefix:
		r.prefix(l, args[0])
	case Static:
		l.Outside, l.Error = address(args[0], 4)
		r.static(l, args[1], r.inside4)
	case Static66:
		l.Outside, l.Error = address(args[0], 6)
		r.static(l, args[1], r.inside6)
	case Include:
		r.include(l, args[0])
	}
}

func address(s string, family int) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4() != (family == 4) || a.Is4In6() {
		return netip.Addr{}, fmt.Errorf("%q is no IPv%d address", s, family)
	}
	return a, nil
}

// static is for a line that binds two addresses. An address is bound once: the original obeys the first line and warns of
// the others.
func (r *reader) static(l *Line, inside string, insides map[netip.Addr]*Line) {
	if l.Error != nil {
		return
	}
	if l.Inside, l.Error = address(inside, 6); l.Error != nil {
		return
	}
	if old := r.outside[l.Outside]; old != nil {
		if old.Inside == l.Inside {
			l.Same = old
			return
		}
		l.Error = fmt.Errorf("%s is translated to %s already, at %s", l.Outside, old.Inside, old.At())
		return
	}
	if old := insides[l.Inside]; old != nil {
		l.Error = fmt.Errorf("%s has %s already, at %s", l.Inside, old.Outside, old.At())
		return
	}
	r.outside[l.Outside], insides[l.Inside] = l, l
}

// prefix is for the IPv6 addresses that stand for IPv4: the original writes the IPv4 address into the last four bytes of
// what is given here, whatever is there.
func (r *reader) prefix(l *Line, s string) {
	a, err := address(s, 6)
	if err != nil {
		l.Error = err
		if strings.Contains(s, "/") {
			l.Error = fmt.Errorf("%w: the original takes an address, and makes a /96 of it", err)
		}
		return
	}
	l.Pool = netip.PrefixFrom(a, 96).Masked()
	b := a.As16()
	switch {
	case b[8] != 0: // RFC 6052 section 2.2: bits 64 to 71
		l.Error = fmt.Errorf("%s has bits set from 64 to 71, which are zero in a prefix that IPv4 addresses are embedded in (RFC 6052 section 2.2)", a)
	case r.pool != nil && r.pool.Pool != l.Pool:
		l.Error = fmt.Errorf("%s is the prefix already, at %s: a cloud has one", r.pool.Pool, r.pool.At())
	case r.pool != nil:
		l.Same = r.pool
	default:
		r.pool = l
		if l.Pool.Addr() != a {
			l.addNote("its last four bytes are where IPv4 addresses go: they are not kept")
		}
	}
}

func (l *Line) addNote(s string) {
	if l.Note != "" {
		s = l.Note + "; " + s
	}
	l.Note = s
}

func (r *reader) include(l *Line, path string) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(l.File), path)
	}
	l.Path = path
	f, err := r.open(path)
	if err != nil {
		l.Error = fmt.Errorf("%s: %w", path, reason(err))
		return
	}
	if i := slices.IndexFunc(r.way, func(o file) bool { return o.real == f.real }); i >= 0 {
		var way []string
		for _, o := range r.way[i:] {
			way = append(way, o.path)
		}
		l.Error = fmt.Errorf("%s includes itself: %s", path, strings.Join(append(way, path), " -> "))
		return
	}
	if len(r.way) > maxDepth {
		l.Error = fmt.Errorf("%s: files include each other more than %d deep", path, maxDepth)
		return
	}
	r.file(f)
}
