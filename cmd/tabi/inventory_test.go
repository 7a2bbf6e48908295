package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/controller/boltstore"
	"github.com/tabi-lisp/tabi/lisp/control"
)

// noEndpoint is a control plane that nobody hears.
type noEndpoint struct{}

func (noEndpoint) Run(ctx context.Context, _ func(control.Packet)) error {
	<-ctx.Done()
	return nil
}
func (noEndpoint) Send(netip.AddrPort, []byte) error { return nil }
func (noEndpoint) Counters() map[string]uint64       { return nil }

// liveAPI is a controller without Map-Servers, and the URL of an agent that accepts everything.
func liveAPI(t *testing.T) (agent string) {
	a := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			_, _ = io.WriteString(w, "[]")
		}
	}))
	t.Cleanup(a.Close)
	startController(t, controller.Config{})
	return a.URL
}

// startController runs a controller, which the commands of this test talk to.
func startController(t *testing.T, cfg controller.Config) {
	t.Helper()
	cfg.Token = "s3cret"
	store, err := boltstore.Open(filepath.Join(t.TempDir(), "c.db"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := controller.New(cfg, noEndpoint{}, store, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	api := httptest.NewServer(c.Handler())
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		api.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("TABI_CONTROLLER", api.URL)
	t.Setenv("TABI_TOKEN", "s3cret")
}

// The inventory through the command line, with a real controller behind it.
func TestInventory(t *testing.T) {
	agent := liveAPI(t)
	prints(t, "(none)\n", "site", "list")
	prints(t, "site nezu added\n", "site", "set", "nezu", "--description", "Nezu, Tokyo")
	prints(t, "site nezu set\n", "site", "set", "nezu")
	prints(t, "site nara added\n", "site", "set", "nara")
	prints(t, `
NAME  OWNERS  LENDS  SHARED  DESCRIPTION
nara  -       open   -       -
nezu  -       open   -       Nezu, Tokyo
`, "site", "list")
	prints(t, "site         nezu\ndescription  Nezu, Tokyo\nlends        open\n", "site", "show", "nezu")
	prints(t, "{\n  \"name\": \"nara\"\n}\n", "site", "show", "nara", "--json")

	fails(t, "no site \"tokyo\"", "hv", "set", "nezu-hv1", "--site", "tokyo", "--rloc", "192.0.2.1", "--xtr-id", strings.Repeat("1", 32), "--agent", agent)
	fails(t, "rloc must be an address", "hv", "set", "nezu-hv1", "--site", "nezu")
	fails(t, `--rloc "x" is no address`, "hv", "set", "nezu-hv1", "--rloc", "x")
	fails(t, "--xtr-id: xTR-ID \"1\"", "hv", "set", "nezu-hv1", "--xtr-id", "1")
	prints(t, "hypervisor nezu-hv1 added\n", "hv", "set", "nezu-hv1", "--site", "nezu", "--rloc", "192.0.2.1", "--xtr-id", strings.Repeat("1", 32),
		"--agent", agent, "--agent-token", "hidden")
	prints(t, "hypervisor nezu-hv1 set\n", "hv", "set", "nezu-hv1", "--site-id", "7")
	out, err := tabi(t, "hv", "show", "nezu-hv1")
	if err != nil || !strings.HasPrefix(out, "hypervisor  nezu-hv1\nsite        nezu\nrloc        192.0.2.1\nxtr-id      11111111111111111111111111111111\nsite-id     7\nagent       "+agent) {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err = tabi(t, "hypervisor", "show", "nezu-hv1", "--json"); err != nil || strings.Contains(out, "hidden") {
		t.Errorf("%v\n%s", err, out)
	}

	fails(t, "eids is empty", "vm", "set", "web")
	fails(t, "--eid: EID \"x\"", "vm", "set", "web", "--eid", "x")
	prints(t, "vm web added\n", "vm", "set", "web", "--hypervisor", "nezu-hv1", "--mac", "52:54:00:00:00:10", "--eid", "198.51.100.10,2001:db8:e1d:1::10")
	prints(t, "vm web set\n", "vm", "set", "web", "--interface", "tap-web")
	prints(t, `
NAME  STATE  OWNER  HYPERVISOR  CPUS  MEMORY  STORAGE  EIDS
web   -      -      nezu-hv1    -     -       -        198.51.100.10/32,2001:db8:e1d:1::10/128
`, "vm", "list")
	out, err = tabi(t, "vm", "show", "web")
	if err != nil || !strings.HasPrefix(out, "vm          web\nhypervisor  nezu-hv1 (nezu)\nsince       20") || !strings.HasSuffix(out, "interface   tap-web\n") {
		t.Errorf("%v\n%s", err, out)
	}

	fails(t, "has VMs: web", "hv", "delete", "nezu-hv1")
	fails(t, "has hypervisor nezu-hv1", "site", "delete", "nezu")
	fails(t, `no vm "wbe"`, "vm", "delete", "wbe")
	prints(t, "vm web removed\n", "vm", "delete", "web")
	prints(t, "hypervisor nezu-hv1 removed\n", "hv", "delete", "nezu-hv1")
	prints(t, "site nezu removed\nsite nara removed\n", "site", "delete", "nezu", "nara")
	prints(t, "[]\n", "hv", "list", "--json")
	fails(t, "--token or TABI_TOKEN", "vm", "list", "--token", "wrong")
}

func TestHypervisorList(t *testing.T) {
	canned(t, map[string]string{"GET /v1/hypervisors": `200 [
{"name":"hv1","site":"a","rloc":"192.0.2.1","xtr_id":"00000000000000000000000000000001","agent":"http://h1","agent_seen":"2026-01-01T00:00:00Z","vms_to_tell":0,"vms":["v","w"],"node":{"hostname":"h1","version":"QEMU 7.2","cpus":8,"memory":17179869184,"memory_free":1},"used":{"cpus":3,"memory":5368709120}},
{"name":"hv2","site":"b","rloc":"2001:db8::2","xtr_id":"00000000000000000000000000000002","agent":"http://h2","agent_seen":"2026-01-01T00:00:00Z","vms_to_tell":3,"vms":[],"driver":"qemu+tcp://h2/system"},
{"name":"hv3","site":"b","rloc":"192.0.2.3","xtr_id":"00000000000000000000000000000003","agent":"http://h3","agent_error":"connection refused","vms_to_tell":3,"vms":[],"driver":"qemu+tcp://h3/system","driver_error":"no route to host","drained":true,"cpus":4,"memory":1073741824},
{"name":"hv4","site":"b","rloc":"192.0.2.4","xtr_id":"00000000000000000000000000000004","agent":"http://h4","vms_to_tell":3,"vms":[]}]`})
	prints(t, `
NAME  SITE  RLOC         VMS  CPUS  MEMORY      STATE
hv1   a     192.0.2.1    2    3/8   5GiB/16GiB  ok
hv2   b     2001:db8::2  0    -     -           ok, 3 VMs to tell; driver: not seen yet
hv3   b     192.0.2.3    0    0/4   0B/1GiB     drained; connection refused; driver: no route to host
hv4   b     192.0.2.4    0    -     -           not seen yet
`, "hv", "list")
}

// Every command of moves and of the inventory says how it is used.
func TestControllerCommandsHelp(t *testing.T) {
	for _, c := range [][]string{{"move"}, {"move", "prepare"}, {"move", "commit"}, {"move", "abort"}, {"move", "list"}, {"move", "show"},
		{"site"}, {"site", "set"}, {"site", "list"}, {"hv", "set"}, {"hv", "show"}, {"vm", "set"}, {"vm", "delete"}, {"hv", "drain"}, {"hv", "undrain"},
		{"vm", "define"}, {"vm", "start"}, {"vm", "stop"}, {"vm", "hibernate"}, {"vm", "resume"}, {"vm", "chown"}, {"vm", "addresses"},
		{"migrate"}, {"migration"}, {"migration", "list"}, {"migration", "show"}, {"migration", "watch"}, {"migration", "cancel"}, {"migration", "postcopy"}} {
		out, err := tabi(t, append(c, "--help")...)
		if err != nil || !strings.Contains(out, "--controller") || len(c) > 1 && !strings.Contains(out, "Examples:\n  tabi ") {
			t.Errorf("%v: %v\n%s", c, err, out)
		}
	}
	if out, err := tabi(t, "vm"); err != nil || !strings.Contains(out, "Available Commands:") {
		t.Errorf("%v\n%s", err, out)
	}
}
