package testnet

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// TestMain is also the program of the processes that tests start: the test binary itself, in a role that the
// environment names.
func TestMain(m *testing.M) {
	switch os.Getenv("TESTNET_ROLE") {
	case "":
	case "daemon":
		fakeDaemon()
	case "victim":
		victim()
	case "unprivileged":
		fmt.Print(MissingPrivilege())
		os.Exit(0)
	case "janitor":
		if err := Janitor(os.Args[1], os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	default:
		panic("no such role")
	}
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	if left := append(leftBehind(fmt.Sprintf("tt%d", os.Getpid())), leftBehind(fmt.Sprintf("tabi-tt%d", os.Getpid()))...); len(left) > 0 && code == 0 {
		fmt.Fprintln(os.Stderr, "left behind:", left)
		code = 1
	}
	if open := openDoors(); len(open) > 0 && code == 0 {
		fmt.Fprintln(os.Stderr, "left open:", open)
		code = 1
	}
	os.Exit(code)
}

// openDoors lists open descriptors of namespaces, taps and sockets.
func openDoors() (open []string) {
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		target, _ := os.Readlink(fd)
		for _, kind := range []string{"net:[", "/dev/net/tun", "socket:", "/run/netns"} {
			if strings.HasPrefix(target, kind) {
				open = append(open, target)
			}
		}
	}
	return open
}

// leftBehind lists namespaces and run directories whose name has the prefix.
func leftBehind(prefix string) []string {
	ns, _ := filepath.Glob(filepath.Join(netnsDir, prefix+"*"))
	dirs, _ := filepath.Glob(filepath.Join(runRoot, runPrefix+prefix+"*"))
	return append(ns, dirs...)
}

// fakeDaemon answers on the unix socket of TESTNET_SOCKET with the names of the interfaces that it sees.
func fakeDaemon() {
	l, err := net.Listen("unix", os.Getenv("TESTNET_SOCKET"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "fake daemon is up")
	asked := 0
	http.HandleFunc("GET /v1/ready", func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked < 3 {
			http.Error(w, "still waking up", http.StatusServiceUnavailable)
		}
	})
	http.HandleFunc("GET /v1/show/links", func(w http.ResponseWriter, _ *http.Request) {
		links, _ := netlink.LinkList()
		var names []string
		for _, l := range links {
			names = append(names, l.Attrs().Name)
		}
		_ = json.NewEncoder(w).Encode(names)
	})
	_ = http.Serve(l, nil)
	os.Exit(0)
}

var runs atomic.Int32

// startRun makes a run that is removed with the test.
func startRun(t *testing.T) *Run {
	t.Helper()
	id := fmt.Sprintf("tt%d-%d", os.Getpid(), runs.Add(1))
	r, err := newRun(id, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Clean(r); err != nil {
			t.Error(err)
		}
	})
	return r
}

func startHost(t *testing.T, r *Run, name string) *Host {
	t.Helper()
	h, err := newHost(r, name, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func addrs(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range s {
		out = append(out, netip.MustParsePrefix(a))
	}
	return out
}

// pair is two hosts on one link: 10.9.0.1 and 10.9.0.2, 2001:db8:9::1 and ::2.
func pair(t *testing.T) (r *Run, a, b *Host) {
	t.Helper()
	r = startRun(t)
	a, b = startHost(t, r, "a"), startHost(t, r, "b")
	must(t, Connect(End{NS: a.ns, Name: "eth0", Addrs: addrs("10.9.0.1/24", "2001:db8:9::1/64")},
		End{NS: b.ns, Name: "eth0", Addrs: addrs("10.9.0.2/24", "2001:db8:9::2/64")}))
	return r, a, b
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return strings.TrimSpace(string(b))
}
