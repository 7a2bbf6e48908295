package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/testnet"
)

// lab is two hypervisors on one link, each with a libvirt daemon of its own.
type lab struct {
	dir string
	ns  []*testnet.Namespace
	hv  []*testnet.Libvirtd
	ip  []netip.Addr
}

var theLab = sync.OnceValues(startLab)
var built *lab // what is to be taken down

// TestMain takes the lab down that tests share. It is also the program nc of a test.
func TestMain(m *testing.M) {
	if socket := os.Getenv("PLAY_NC"); socket != "" {
		c, err := net.Dial("unix", socket)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go func() { _, _ = io.Copy(c, os.Stdin) }()
		_, _ = io.Copy(os.Stdout, c)
		os.Exit(0)
	}
	code := m.Run()
	if built != nil {
		if err := built.close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func startLab() (*lab, error) {
	dir, err := os.MkdirTemp("", "tt-lv")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir}
	built = l
	var ends []testnet.End
	for i := range 2 {
		ns, err := testnet.NewNamespace(fmt.Sprintf("tt%dlv%d", os.Getpid(), i+1))
		if err != nil {
			return nil, err
		}
		l.ns, l.ip = append(l.ns, ns), append(l.ip, netip.AddrFrom4([4]byte{10, 9, 0, byte(i + 1)}))
		ends = append(ends, testnet.End{NS: ns, Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(l.ip[i], 24)}})
	}
	if err := testnet.Connect(ends[0], ends[1]); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	hosts := map[string]netip.Addr{"hv1": l.ip[0], "hv2": l.ip[1]}
	for i, name := range []string{"hv1", "hv2"} { // one after the other: the second one knows what the first one found out
		hv, err := testnet.StartLibvirtd(ctx, testnet.LibvirtConfig{NS: l.ns[i], Name: name, Dir: filepath.Join(dir, name), Listen: l.ip[i], Hosts: hosts})
		if err != nil {
			return nil, err
		}
		l.hv = append(l.hv, hv)
	}
	return l, nil
}

func (l *lab) close() error {
	var errs []error
	for _, hv := range l.hv {
		errs = append(errs, hv.Close())
	}
	for _, ns := range l.ns {
		errs = append(errs, ns.Close(), testnet.RemoveNamespace(ns.Name()))
	}
	return errors.Join(append(errs, os.RemoveAll(l.dir))...)
}

// open returns the lab and a driver for each of its hypervisors.
func open(t *testing.T) (*lab, *Driver, *Driver) {
	t.Helper()
	l, err := theLab()
	if err != nil {
		t.Fatal(err)
	}
	var d []*Driver
	for _, hv := range l.hv {
		x, err := New(hv.URI(), slog.New(slog.NewTextHandler(t.Output(), nil)))
		must(t, err)
		t.Cleanup(func() { must(t, x.Close()) })
		d = append(d, x)
	}
	return l, d[0], d[1]
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// vmOptions are what a VM of a test needs beside its name.
type vmOptions struct {
	memory int // MiB, 0 = 32
	disk   string
	tap    string
}

// definition is of a VM whose firmware finds nothing to boot: enough for a VMM.
func definition(name string, o vmOptions) string {
	devices := ""
	if o.disk != "" {
		devices += `<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='` + o.disk + `'/><target dev='vda' bus='virtio'/></disk>`
	}
	if o.tap != "" {
		devices += `<interface type='ethernet'><mac address='52:54:00:00:00:77'/><target dev='` + o.tap + `'/><model type='virtio'/><mtu size='1400'/></interface>`
	}
	if o.memory == 0 {
		o.memory = 32
	}
	return fmt.Sprintf(`<domain type='qemu'><name>%s</name><memory unit='MiB'>%d</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>%s<memballoon model='none'/></devices></domain>`, name, o.memory, devices)
}

// boot defines a VM and starts it; it is gone from both hypervisors after the test.
func boot(t *testing.T, d, other *Driver, name string, o vmOptions) {
	t.Helper()
	t.Cleanup(func() {
		for _, d := range []*Driver{d, other} {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			_ = d.Control(ctx, name, controller.ActionKill)
			_ = d.Undefine(ctx, name)
			cancel()
		}
	})
	_, err := d.Define(t.Context(), definition(name, o))
	must(t, err)
	must(t, d.Control(t.Context(), name, controller.ActionStart))
}

// state is what a VM does, "" if the hypervisor does not know it.
func state(t *testing.T, d *Driver, name string) controller.GuestState {
	t.Helper()
	all, err := d.Guests(t.Context())
	must(t, err)
	for _, g := range all {
		if g.Name == name {
			return g.State
		}
	}
	return ""
}

func wantState(t *testing.T, d *Driver, name string, want controller.GuestState) {
	t.Helper()
	if got := state(t, d, name); got != want {
		t.Errorf("%s is %q at %s, want %q", name, got, d.URI(), want)
	}
}

// witness keeps what a watch tells of a VM.
type witness struct {
	mu     sync.Mutex
	events []controller.GuestEvent
	new    chan struct{}
}

// watch watches until the test ends.
func watch(t *testing.T, d *Driver) *witness {
	t.Helper()
	w := &witness{new: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		first := true
		ended <- d.Watch(ctx, func(e controller.GuestEvent) {
			if first {
				first = false
				close(ready)
			}
			w.mu.Lock()
			w.events = append(w.events, e)
			w.mu.Unlock()
			select {
			case w.new <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatalf("watch: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("watch does not begin")
	}
	return w
}

// told lists what was told of a VM so far, as "kind why".
func (w *witness) told(vm string) (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if e.VM == vm {
			out = append(out, strings.TrimSpace(string(e.Kind)+" "+e.Why))
		}
	}
	return out
}

// until waits until these were told of a VM, in this order, with others in between.
func (w *witness) until(t *testing.T, vm string, want ...string) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		rest := want
		for _, e := range w.told(vm) {
			if len(rest) > 0 && e == rest[0] {
				rest = rest[1:]
			}
		}
		if len(rest) == 0 {
			return
		}
		select {
		case <-w.new:
		case <-timeout:
			t.Fatalf("of %s was told %q, want %q in it", vm, w.told(vm), want)
		}
	}
}
