package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/testnet"
)

// The daemons themselves, a Map-Server and a D-ETR, in two namespaces on one link.

const (
	daemonServer, daemonDETR = "100.64.1.9", "100.64.1.2"
	daemonServerFile         = `
role: mapserver
name: ms1
socket: DIR/ms.sock
state_dir: DIR/ms
listen: [100.64.1.9]
sites:
  - name: cloud
    prefixes: [198.51.100.0/24, "2001:db8:e1d::/48", 203.0.113.0/26, "2001:db8:64::/96"]
    keys:
      - {id: 1, secret: site}
      - {id: 2, secret: boss, controller: true}
bgp: {as: 64512, peers: [{address: 100.64.1.2, passive: true}]}
`
	daemonDETRFile = `
role: detr
name: detr1
socket: DIR/detr.sock
state_dir: DIR/detr
xtr_id: "000000000000000000000000000000d1"
rlocs: [{address: 100.64.1.2}]
underlay: [u0]
upstream: [up0]
aggregates: [198.51.100.0/24, "2001:db8:e1d::/48"]
allowed_rlocs: [100.64.1.0/24]
pin_dir: DIR/bpf
bgp: {as: 64512, map_servers: [{address: 100.64.1.9}]}
services:
  prefixes: [203.0.113.0/26]
  pool: "2001:db8:64::/96"
  map_servers: [{address: 100.64.1.9, key: {secret: site}}]
  kernel_routes: {enabled: true}
`
)

// A process with Pdeathsig ends with the thread that started it: so that is one that stays.
var (
	startFromLastingThread sync.Once
	lastingThread          = make(chan func())
)

type daemonLab struct {
	t            *testing.T
	dir          string
	server, detr *testnet.Namespace
}

func newDaemonLab(t *testing.T) *daemonLab {
	l := &daemonLab{t: t}
	var err error
	l.dir, err = os.MkdirTemp("", "tt-detr") // short: unix sockets in it
	l.must(err)
	t.Cleanup(func() { l.must(os.RemoveAll(l.dir)) })
	for name, p := range map[string]**testnet.Namespace{"ms": &l.server, "de": &l.detr} {
		ns, err := testnet.NewNamespace(fmt.Sprintf("tt%ddetr-%s", os.Getpid(), name))
		l.must(err)
		*p = ns
		t.Cleanup(func() { l.must(errors.Join(ns.Close(), testnet.RemoveNamespace(ns.Name()))) })
	}
	end := func(ns *testnet.Namespace, name, addr string) testnet.End {
		return testnet.End{NS: ns, Name: name, Addrs: []netip.Prefix{netip.MustParsePrefix(addr)}}
	}
	l.must(testnet.Connect(end(l.server, "u0", daemonServer+"/24"), end(l.detr, "u0", daemonDETR+"/24")))
	l.must(testnet.Connect(end(l.server, "inet", "192.0.2.1/24"), end(l.detr, "up0", "192.0.2.2/24")))
	for name, text := range map[string]string{"ms.yaml": daemonServerFile, "detr.yaml": daemonDETRFile} {
		l.must(os.WriteFile(filepath.Join(l.dir, name), []byte(strings.ReplaceAll(text, "DIR", l.dir)), 0o600))
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(filepath.Join(l.dir, "bpf"), syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
			t.Error(err)
		}
	})
	return l
}

func (l *daemonLab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// start runs a daemon; stop ends it by a signal, and does nothing the second time.
func (l *daemonLab) start(ns *testnet.Namespace, role, file string) (stop func(os.Signal)) {
	l.t.Helper()
	self, err := os.Executable()
	l.must(err)
	var said bytes.Buffer
	// Not "ip netns exec": that has mounts of its own, and with them the pinned programs would end.
	cmd := exec.Command("nsenter", "--net=/run/netns/"+ns.Name(), self, role, "--config", filepath.Join(l.dir, file))
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	startFromLastingThread.Do(func() {
		go func() {
			runtime.LockOSThread()
			for f := range lastingThread {
				f()
			}
		}()
	})
	started := make(chan error)
	lastingThread <- func() { started <- cmd.Start() }
	l.must(<-started)
	ended := false
	stop = func(sig os.Signal) {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(sig)
		_ = cmd.Wait() // it was told to end
		if l.t.Failed() {
			l.t.Logf("%s said:\n%s", role, said.String())
		}
	}
	l.t.Cleanup(func() { stop(syscall.SIGKILL) })
	return stop
}

func (l *daemonLab) eventually(what string, ok func() bool) {
	l.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("never: %s\nD-ETR: %s\nMap-Server: %s\n%s", what, l.show("services", "detr.sock"), l.show("services", "ms.sock"), l.show("mappings", "ms.sock"))
		}
	}
}

// routes are the kernel's routes of the D-ETR's host that routing daemons redistribute.
func (l *daemonLab) routes() string {
	l.t.Helper()
	var out []string
	for _, family := range []string{"-4", "-6"} {
		b, err := exec.Command("ip", "-n", l.detr.Name(), family, "route", "show", "proto", "76").Output()
		l.must(err)
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			out = append(out, f[0]+" "+f[2])
		}
	}
	return strings.Join(out, ", ")
}

// show is a table of a daemon, in JSON; "" while it does not answer.
func (l *daemonLab) show(table, socket string) string {
	out, err := tabi(l.t, "show", table, "--json", "-s", filepath.Join(l.dir, socket))
	if err != nil {
		return ""
	}
	return out
}

// registerService is what a controller does.
func (l *daemonLab) registerService(outside, inside string) {
	l.t.Helper()
	m := &lisp.MapRegister{Nonce: uint64(time.Now().UnixNano()), WantMapNotify: true,
		Records: []lisp.Mapping{lisp.NewService(netip.MustParsePrefix(outside), netip.MustParsePrefix(inside), 1)}}
	b, err := lisp.AppendSigned(nil, m, lisp.Key{ID: 2, Algorithm: lisp.AlgHMACSHA256_128, Format: lisp.FormatDeployed, Secret: "boss"})
	l.must(err)
	l.must(l.server.Do(func() error {
		c, err := net.Dial("udp", daemonServer+":4342")
		if err != nil {
			return err
		}
		_, err = c.Write(b)
		return errors.Join(err, c.Close())
	}))
}

// TestDETRDaemon: a D-ETR from its first start to its death. What it stands for is in the kernel's routing table and
// with the Map-Server exactly while it serves: not before the feed has said everything, not while it is drained, not
// after it was stopped or killed. What it translated goes on after a restart, though no Map-Server is there.
func TestDETRDaemon(t *testing.T) {
	l := newDaemonLab(t)
	const there = "198.51.100.0/24 tabi-routes, 203.0.113.0/26 tabi-routes, 2001:db8:e1d::/48 tabi-routes"
	// pool reports who is registered for the pool.
	pool := func() bool {
		var rows []struct{ EID, RLOCs, State string }
		if json.Unmarshal([]byte(l.show("mappings", "ms.sock")), &rows) != nil {
			return false
		}
		for _, r := range rows {
			if r.EID == "2001:db8:64::/96" {
				return strings.Contains(l.show("mappings", "ms.sock"), daemonDETR)
			}
		}
		return false
	}
	translated := func(state string) func() bool {
		return func() bool {
			var rows []struct{ Outside, Inside, State string }
			return json.Unmarshal([]byte(l.show("services", "detr.sock")), &rows) == nil && len(rows) == 1 &&
				rows[0].Outside == "203.0.113.10/32" && rows[0].Inside == "2001:db8:e1d::a/128" && rows[0].State == state
		}
	}

	stopDETR := l.start(l.detr, "detr", "detr.yaml")
	l.eventually("the D-ETR answers", func() bool { return l.show("counters", "detr.sock") != "" })
	if got := l.routes(); got != "" {
		t.Errorf("before any feed: %s", got)
	}
	stopServer := l.start(l.server, "mapserver", "ms.yaml")
	l.eventually("the routes are there", func() bool { return l.routes() == there })
	l.eventually("the Map-Server knows where the pool is", pool)
	l.registerService("203.0.113.10/32", "2001:db8:e1d::a/128")
	l.eventually("the service is translated", translated("translated"))

	at := []string{"-s", filepath.Join(l.dir, "*.sock")}
	if out, err := tabi(t, append([]string{"detr", "drain"}, at...)...); err != nil || !strings.Contains(out, "withdrawn everywhere") {
		t.Errorf("drain: %v\n%s", err, out)
	}
	if got := l.routes(); got != "" || pool() {
		t.Errorf("drained: %s, pool %t", got, pool())
	}
	// A BGP speaker that was told goodbye takes its time to listen again: it is another one that the D-ETR finds.
	stopDETR(syscall.SIGTERM)
	stopServer(syscall.SIGKILL)
	stopDETR = l.start(l.detr, "detr", "detr.yaml")
	stopServer = l.start(l.server, "mapserver", "ms.yaml")
	var told time.Time
	l.eventually("the service is translated by one that is drained", func() bool {
		if time.Since(told) > time.Second { // the Map-Server may not have written it down; a controller says it again
			told = time.Now()
			l.registerService("203.0.113.10/32", "2001:db8:e1d::a/128")
		}
		return translated("translated")()
	})
	if got := l.routes(); got != "" {
		t.Errorf("drained and restarted: %s", got)
	}
	l.eventually("the Map-Server knows that it is still drained", func() bool { return !pool() })
	if out, err := tabi(t, append([]string{"detr", "undrain"}, at...)...); err != nil || !strings.HasPrefix(out, "serving") {
		t.Errorf("undrain: %v\n%s", err, out)
	}
	l.eventually("the routes are there again", func() bool { return l.routes() == there })

	// Killed, and started again where no Map-Server is: what the kernel goes on with is served.
	stopDETR(syscall.SIGKILL)
	if got := l.routes(); got != "" {
		t.Errorf("killed: %s", got)
	}
	stopServer(syscall.SIGKILL)
	stopDETR = l.start(l.detr, "detr", "detr.yaml")
	l.eventually("the service is translated as before", translated("translated, as before the restart"))
	if got := l.routes(); got != "" { // no host mapping was there: nothing says that it would find a VM
		t.Errorf("without a feed: %s", got)
	}
	l.start(l.server, "mapserver", "ms.yaml")
	l.eventually("the Map-Server says the same", translated("translated"))
	l.eventually("the routes are there at last", func() bool { return l.routes() == there })
	stopDETR(syscall.SIGTERM)
	if got := l.routes(); got != "" {
		t.Errorf("stopped: %s", got)
	}
	l.eventually("the Map-Server knows that it is gone", func() bool { return !pool() })
}
