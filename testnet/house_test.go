package testnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/tabi-lisp/tabi"

// house is the map: every package of the module, which of our packages its non-test files may import, and why not
// more. "x/..." is x and all below it. A package that is not here fails the test: put it on the map, with a reason.
var house = map[string]struct {
	may []string
	why string
}{
	"lisp":                 {nil, "nouns and wire format are everybody's, and nobody's"},
	"lisp/control":         {[]string{"lisp"}, "the endpoint carries messages and knows no role"},
	"lisp/mapcache":        {[]string{"lisp"}, "a table of mappings knows no role"},
	"lisp/lisplayer":       {[]string{"lisp"}, "a second decoder for capture tools shares nouns only"},
	"lisp/sinktest":        {[]string{"lisp"}, "a conformance test must not know who is tested"},
	"mapserver":            {[]string{"lisp/..."}, "it is told and tells by messages and Deltas: no other part"},
	"mapserver/boltstore":  {[]string{"lisp/...", "mapserver"}, "a store of the Map-Server's state"},
	"xtr":                  {[]string{"lisp/...", "xtr/fib"}, "the engine decides; kernel, slow path and gateway are interfaces that it declares"},
	"xtr/fib":              {[]string{"lisp"}, "plain values between the engine and a data plane"},
	"xtr/kernel":           {[]string{"lisp", "xtr/fib"}, "the data plane does what it is told and never calls up"},
	"xtr/checksum":         {nil, "what goes into a checksum field: standard library only"},
	"xtr/slowpath":         {[]string{"lisp", "xtr/checksum", "xtr/fib", "xtr/map646"}, "serves what the kernel hands up, and decides nothing: what a packet becomes, map646 says"},
	"xtr/map646":           {[]string{"lisp", "lisp/mapcache", "xtr/checksum", "xtr/fib"}, "one packet in, packets out: it knows no device and nobody who sends"},
	"xtr/map646/vectors":   {nil, "test vectors for every data plane that translates: plain values, standard library only"},
	"xtr/gateway":          {[]string{"lisp", "xtr/checksum", "xtr/fib"}, "sees VMs and answers for the gateway; decides nothing"},
	"detr":                 {[]string{"lisp/...", "xtr", "xtr/fib"}, "the anchor is an xTR that is fed"},
	"detr/route":           {nil, "routes in the kernel's table, for whatever prefixes"},
	"detr/bgp":             {[]string{"lisp"}, "Mapping <-> path, for whoever speaks BGP"},
	"controller":           {[]string{"lisp/..."}, "it reaches agents and Map-Servers over the network only"},
	"controller/libvirt":   {[]string{"lisp", "controller"}, "a driver: what libvirt knows and does, in the controller's nouns"},
	"controller/qmp":       {nil, "a monitor protocol knows no cloud"},
	"controller/boltstore": {[]string{"lisp/...", "controller"}, "a store of the controller's state"},
	"testnet":              {[]string{"lisp", "controller/qmp", "testnet/stream", "testnet/crowd", "testnet/plot"}, "the demo reaches the daemons as an operator does; it starts QEMU itself, and speaks to it with the one client that there is"},
	"testnet/stream":       {nil, "numbered packets and who counts them, in a real guest too: standard library only"},
	"testnet/crowd":        {nil, "viewers and what they watch: HTTP over connections that others open"},
	"testnet/plot":         {nil, "draws figures, and does not know which"},
	"testnet/guest":        {[]string{"testnet/stream"}, "the program inside a real guest: small, standard library only"},
	"testnet/simnet":       {[]string{"lisp"}, "a network in memory knows no role"},
	"cmd/...":              {[]string{"..."}, "wiring: it joins what the others keep apart"},
}

// only names who alone may import a module, and why: so that it can be replaced in one place.
var only = map[string]struct {
	importers []string
	why       string
}{
	"go.etcd.io/bbolt":                   {[]string{"mapserver/boltstore", "controller/boltstore"}, "durable state has two doors"},
	"github.com/goccy/go-yaml":           {[]string{"cmd/internal/config"}, "role packages take typed, validated values and know no YAML"},
	"github.com/osrg/gobgp":              {[]string{"detr/bgp"}, "GoBGP is a library in one package"},
	"github.com/cilium/ebpf":             {[]string{"xtr/kernel"}, "the kernel's data plane has one owner"},
	"github.com/digitalocean/go-libvirt": {[]string{"controller/libvirt"}, "libvirt's protocol has one client"},
	"github.com/spf13/cobra":             {[]string{"cmd/..."}, "commands are the binary's matter"},
	"github.com/gaissmai/bart":           {[]string{"lisp/mapcache"}, "longest-prefix match is asked of mapcache"},
	"github.com/google/gopacket":         {[]string{"lisp/lisplayer", "testnet"}, "capture tools and tests, never daemons"},
	"github.com/mdlayher/ndp":            {[]string{"xtr/gateway"}, "Neighbor Discovery is the gateway's"},
	"github.com/mdlayher/packet":         {[]string{"xtr/gateway"}, "raw frames of VM interfaces are the gateway's"},
	"github.com/google/go-cmp":           {[]string{"lisp/sinktest"}, "for tests, and for the one that others run"},
	"github.com/vishvananda/netns":       {[]string{"xtr/kernel"}, "namespaces are entered by testnet, with locked threads; the data plane names the one that it is in"},
}

// goPackage is what `go list -json` says.
type goPackage struct {
	ImportPath string
	Imports    []string
	Standard   bool
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,Standard", "./...")
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []goPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// matches reports whether a package is meant by a pattern of the map.
func matches(pattern, pkg string) bool {
	if pattern == "..." {
		return true
	}
	base, below := strings.CutSuffix(pattern, "/...")
	return pkg == base || below && strings.HasPrefix(pkg, base+"/")
}

func anyMatches(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, pkg) })
}

// violations checks packages against the map.
func violations(pkgs []goPackage) (out []string) {
	for _, p := range pkgs {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		var rule string
		for pattern := range house {
			if matches(pattern, name) {
				rule = pattern
			}
		}
		if rule == "" {
			out = append(out, fmt.Sprintf("%s is not on the map of testnet/house_test.go: say what it may import, and why", name))
			continue
		}
		for _, i := range p.Imports {
			ours, inside := strings.CutPrefix(i, module+"/")
			switch {
			case inside && ours != name && !anyMatches(house[rule].may, ours):
				out = append(out, fmt.Sprintf("%s must not import %s: %s", name, ours, house[rule].why))
			case inside && strings.HasPrefix(ours, "cmd/") && !strings.HasPrefix(name, "cmd/"):
				out = append(out, fmt.Sprintf("%s must not import %s: nobody imports cmd", name, ours))
			}
			for path, o := range only {
				if (i == path || strings.HasPrefix(i, path+"/")) && !anyMatches(o.importers, name) {
					out = append(out, fmt.Sprintf("%s must not import %s: %s", name, i, o.why))
				}
			}
		}
	}
	return out
}

func TestHouseWhoImportsWhom(t *testing.T) {
	pkgs := listPackages(t)
	if len(pkgs) < 10 {
		t.Fatalf("go list finds %d packages: the test looks in the wrong place", len(pkgs))
	}
	for _, v := range violations(pkgs) {
		t.Error(v)
	}
	for pattern := range house {
		if !slices.ContainsFunc(pkgs, func(p goPackage) bool { return matches(pattern, strings.TrimPrefix(p.ImportPath, module+"/")) }) {
			t.Errorf("%s is on the map and not in the tree", pattern)
		}
	}
}

// The rules themselves can fail.
func TestHouseRulesCatch(t *testing.T) {
	for _, c := range []struct {
		pkg, imports string
		bad          bool
	}{
		{"lisp", "net/netip", false},
		{"lisp", module + "/xtr", true},
		{"lisp/control", module + "/lisp", false},
		{"mapserver", module + "/lisp/mapcache", false},
		{"mapserver", module + "/controller", true},
		{"mapserver", "go.etcd.io/bbolt", true},
		{"mapserver/boltstore", "go.etcd.io/bbolt", false},
		{"xtr", module + "/xtr/fib", false},
		{"xtr", module + "/xtr/kernel", true},
		{"xtr/kernel", "github.com/cilium/ebpf/link", false},
		{"detr", "github.com/cilium/ebpf", true},
		{"detr/bgp", "github.com/osrg/gobgp/v3/api", false},
		{"detr", "github.com/osrg/gobgp/v3/api", true},
		{"testnet", module + "/mapserver", true},
		{"controller", module + "/cmd/internal/config", true},
		{"cmd/tabi", module + "/mapserver", false},
		{"cmd/tabi", "github.com/goccy/go-yaml", true},
		{"cmd/internal/config", "github.com/goccy/go-yaml/token", false},
		{"newthing", "fmt", true},
	} {
		got := violations([]goPackage{{ImportPath: module + "/" + c.pkg, Imports: []string{c.imports}}})
		if (len(got) > 0) != c.bad {
			t.Errorf("%s imports %s: %q", c.pkg, c.imports, got)
		}
	}
}

// Package lisp is nouns and bytes: no socket, goroutine, clock or log.
func TestHouseLispIsPure(t *testing.T) {
	banned := []string{"net", "net/http", "os", "os/exec", "log", "log/slog", "sync", "syscall", "runtime", "math/rand", "math/rand/v2", "crypto/rand"}
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}
	files, err := filepath.Glob("../lisp/*.go")
	must(t, err)
	if len(files) < 5 {
		t.Fatalf("the test looks in the wrong place: %v", files)
	}
	fset := token.NewFileSet()
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, file, nil, 0)
		must(t, err)
		for _, i := range f.Imports {
			path := strings.Trim(i.Path.Value, `"`)
			if strings.Contains(strings.SplitN(path, "/", 2)[0], ".") {
				t.Errorf("%s imports %s: package lisp is the standard library only", fset.Position(i.Pos()), path)
			}
			if slices.Contains(banned, path) {
				t.Errorf("%s imports %s: package lisp has no socket, goroutine, clock or log", fset.Position(i.Pos()), path)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: package lisp starts no goroutine", fset.Position(n.Pos()))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clock, n.Sel.Name) {
					t.Errorf("%s: package lisp reads no clock", fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

// The top level is short and stays so (DESIGN.md section 9).
func TestHouseTopLevel(t *testing.T) {
	want := map[string]bool{"cmd": true, "lisp": true, "mapserver": true, "xtr": true, "detr": true, "controller": true, "testnet": true,
		"go.mod": true, "go.sum": true, "README.md": true, "LICENSE": true, ".ci": true, ".gitignore": true, ".golangci.yml": true}
	entries, err := os.ReadDir("..")
	must(t, err)
	for _, e := range entries {
		if e.Name() == ".git" || e.Name() == "tabi" { // tabi: what go build leaves, ignored by git
			continue
		}
		if !want[e.Name()] {
			t.Errorf("%s at the top level: it has a place below, or none", e.Name())
		}
		delete(want, e.Name())
	}
	for _, missing := range slices.Sorted(maps.Keys(want)) {
		t.Errorf("%s is missing", missing)
	}
}
