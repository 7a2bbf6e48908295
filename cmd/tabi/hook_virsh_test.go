package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/testnet"
)

// TestMain is also tabi itself, for libvirt to call and as a daemon: the test binary with a command line of tabi's.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "hook" || os.Args[1] == "detr" || os.Args[1] == "mapserver") {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// virshLab is two libvirt daemons on one link, each with tabi's hook, and a VM whose firmware finds nothing to boot.
type virshLab struct {
	*hookLab
	hv [2]*testnet.Libvirtd
	ns [2]*testnet.Namespace
	ip [2]netip.Addr
	at string // URL of the controller, as the hypervisors reach it
}

func newVirshLab(t *testing.T) *virshLab {
	l := &virshLab{hookLab: &hookLab{controller: &listener{}, agent: &listener{}}}
	dir, err := os.MkdirTemp("", "tt-hook") // short: unix sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	l.dir, l.config = dir, filepath.Join(dir, "hook.yaml")
	var ends [2]testnet.End
	for i := range l.ns {
		l.ip[i] = netip.AddrFrom4([4]byte{10, 9, 1, byte(i + 1)})
		if l.ns[i], err = testnet.NewNamespace(fmt.Sprintf("tt%dhook%d", os.Getpid(), i+1)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := errors.Join(l.ns[i].Close(), testnet.RemoveNamespace(l.ns[i].Name())); err != nil {
				t.Error(err)
			}
		})
		ends[i] = testnet.End{NS: l.ns[i], Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(l.ip[i], 24)}}
	}
	if err := testnet.Connect(ends[0], ends[1]); err != nil {
		t.Fatal(err)
	}

	// The controller is at the first hypervisor's address, the agent's socket is everybody's.
	serve := func(h http.Handler, network, address string) net.Addr {
		var conn net.Listener
		if err := l.ns[0].Do(func() (err error) {
			conn, err = net.Listen(network, address)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(h)
		s.Listener = conn
		s.Start()
		t.Cleanup(s.Close)
		return conn.Addr()
	}
	l.at = "http://" + serve(l.controller, "tcp", l.ip[0].String()+":0").String()
	serve(l.agent, "unix", filepath.Join(dir, "xtr.sock"))

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hosts := map[string]netip.Addr{"hv1": l.ip[0], "hv2": l.ip[1]}
	for i, name := range []string{"hv1", "hv2"} {
		l.install(t, i)
		if l.hv[i], err = testnet.StartLibvirtd(ctx, testnet.LibvirtConfig{NS: l.ns[i], Name: name, Dir: filepath.Join(dir, name), Listen: l.ip[i], Hosts: hosts}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := l.hv[i].Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return l
}

// hooks is a daemon's directory of hooks, from outside.
func (l *virshLab) hooks(i int) string {
	return filepath.Join(l.dir, []string{"hv1", "hv2"}[i], "etc", "hooks")
}

func (l *virshLab) install(t *testing.T, i int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := tabi(t, "hook", "install", "libvirt", "--dir", l.hooks(i), "--config", l.config, "--binary", self); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func (l *virshLab) virsh(t *testing.T, i int, args ...string) string {
	t.Helper()
	out, err := l.hv[i].Virsh(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// move migrates the VM as an operator without tabi does.
func (l *virshLab) move(t *testing.T, from int) {
	t.Helper()
	l.virsh(t, from, "migrate", "--live", "--p2p", "--unsafe", "web", l.hv[1-from].RemoteURI())
	if got := strings.TrimSpace(l.virsh(t, 1-from, "domstate", "web")); got != "running" {
		t.Errorf("after the migration it is %q", got)
	}
}

// A real libvirt calls the hook where a VM arrives, and only there; a migration never fails because of it.
func TestHookUnderLibvirt(t *testing.T) {
	l := newVirshLab(t)
	l.configure(t, "controller: "+l.at+"\ntoken: s3cret", "5s")
	domain := filepath.Join(l.dir, "web.xml")
	writeFile(t, domain, `<domain type='qemu'><name>web</name><uuid>6ba7b810-9dad-11d1-80b4-00c04fd430c8</uuid>
<metadata><tabi:vm xmlns:tabi="https://github.com/tabi-lisp/tabi/vm/1"><tabi:eid>198.51.100.10/32</tabi:eid></tabi:vm></metadata>
<memory unit='MiB'>32</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/><memballoon model='none'/>
<interface type='ethernet'><mac address='52:54:00:00:00:10'/><model type='virtio'/></interface></devices></domain>`)
	l.virsh(t, 0, "create", domain)
	l.controller.was(t) // an ordinary start announces nothing

	controllerHeard := `POST /v1/announcements Bearer s3cret {"vm":"web","uuid":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","macs":["52:54:00:00:00:10"],"to":"nara-hv1"}`
	agentHeard := `POST /v1/announcements  {"vm":"web","uuid":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","macs":["52:54:00:00:00:10"],"eids":["198.51.100.10/32"]}`
	l.move(t, 0)
	l.controller.was(t, controllerHeard)
	l.agent.was(t)

	// The controller is silent, and away: the agent is told.
	l.configure(t, "controller: "+l.at+"\ntoken: s3cret", "1s")
	hang := make(chan struct{})
	l.controller.mu.Lock()
	l.controller.hang = hang
	l.controller.mu.Unlock()
	l.move(t, 1)
	l.agent.was(t, agentHeard)
	close(hang)
	l.configure(t, "controller: http://10.9.1.1:1\n", "1s")
	l.move(t, 0)
	l.agent.was(t, agentHeard)

	// Nobody is there, the configuration is gone, the binary is gone, or it is another hook's directory by now.
	l.configure(t, "controller: http://10.9.1.1:1\n", "300ms")
	l.agent.mu.Lock()
	l.agent.status = http.StatusServiceUnavailable
	l.agent.heard = nil
	l.agent.mu.Unlock()
	l.move(t, 1)
	if _, err := tabi(t, "hook", "install", "libvirt", "--dir", l.hooks(1), "--config", filepath.Join(l.dir, "other.yaml"), "--binary", "/no/such/tabi"); err != nil {
		t.Fatal(err)
	}
	l.move(t, 0)
	if _, err := tabi(t, "hook", "remove", "libvirt", "--dir", l.hooks(0)); err != nil {
		t.Fatal(err)
	}
	l.controller.mu.Lock()
	l.controller.heard, l.controller.hang = nil, nil
	l.controller.mu.Unlock()
	l.move(t, 1)
	l.controller.was(t)
}
