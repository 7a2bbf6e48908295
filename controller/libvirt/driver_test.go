package libvirt

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/lisp"
)

func TestNodeSaysWhatTheHypervisorIs(t *testing.T) {
	_, d, _ := open(t)
	n, err := d.Node(t.Context())
	must(t, err)
	if n.Hostname != "hv1" || n.CPUs < 1 || n.Memory < 1<<28 || n.MemoryFree == 0 || n.MemoryFree > n.Memory {
		n.HostCPU = ""
		t.Errorf("node: %+v", n)
	}
	if !strings.HasPrefix(n.Version, "libvirt ") || !strings.Contains(n.Version, "QEMU ") {
		t.Errorf("version: %q", n.Version)
	}
	if !strings.Contains(strings.Join(n.Machines, " "), "q35") {
		t.Errorf("machines: %v", n.Machines)
	}
	if !strings.HasPrefix(n.HostCPU, "<cpu>") || !strings.Contains(n.HostCPU, "<arch>") {
		t.Errorf("host CPU: %.100q", n.HostCPU)
	}
}

func TestGuestsAsTheyAreDefinedAndAsTheyRun(t *testing.T) {
	l, d, other := open(t)
	disk := filepath.Join(l.dir, "seen.img")
	must(t, os.WriteFile(disk, make([]byte, 1<<20), 0o600))
	text, err := WithMetadata(definition("seen", vmOptions{disk: disk, tap: "tap-seen"}), "alice & co",
		[]lisp.EID{mustEID(t, "198.51.100.10/32"), mustEID(t, "[7]2001:db8::/64")})
	must(t, err)
	boot(t, d, other, "other", vmOptions{})
	g, err := d.Define(t.Context(), text)
	must(t, err)
	t.Cleanup(func() {
		_ = d.Control(context.Background(), "seen", controller.ActionKill)
		_ = d.Undefine(context.Background(), "seen")
	})
	want := controller.Guest{Name: "seen", UUID: g.UUID, State: controller.GuestOff, VCPUs: 1, Memory: 32 << 20, Machine: g.Machine, CPU: g.CPU, Persistent: true,
		Interfaces: []controller.GuestInterface{{MAC: "52:54:00:00:00:77", MTU: 1400}},
		Disks:      []controller.GuestDisk{{Target: "vda", Source: disk, Format: "raw"}},
		Owner:      "alice & co", EIDs: []lisp.EID{mustEID(t, "198.51.100.10/32"), mustEID(t, "[7]2001:db8::/64")}}
	if diff := cmp.Diff(want, g, eidByString); diff != "" {
		t.Error(diff)
	}
	if len(g.UUID) != 36 || !strings.Contains(g.Machine, "q35") {
		t.Errorf("UUID %q, machine %q", g.UUID, g.Machine)
	}
	must(t, d.Control(t.Context(), g.UUID, controller.ActionStart))
	want.State, want.Interfaces[0].Device, want.Disks[0].Capacity, want.Disks[0].Allocated = controller.GuestRunning, "tap-seen", 1<<20, 1<<20
	all, err := d.Guests(t.Context())
	must(t, err)
	if len(all) != 2 || all[0].Name != "other" {
		t.Fatalf("guests: %+v", all)
	}
	want.CPU = all[1].CPU // libvirt writes what QEMU made of it
	if diff := cmp.Diff(want, all[1], eidByString); diff != "" {
		t.Error(diff)
	}
	if err := d.Undefine(t.Context(), "seen"); err == nil || !strings.Contains(err.Error(), "it runs") {
		t.Errorf("undefine a VM that runs: %v", err)
	}
}

func TestControlAndWhatIsToldOfIt(t *testing.T) {
	_, d, other := open(t)
	w := watch(t, d)
	boot(t, d, other, "life", vmOptions{})
	w.until(t, "life", "changed defined", "resumed booted")
	must(t, d.Control(t.Context(), "life", controller.ActionPause))
	wantState(t, d, "life", controller.GuestPaused)
	must(t, d.Control(t.Context(), "life", controller.ActionUnpause))
	wantState(t, d, "life", controller.GuestRunning)
	w.until(t, "life", "resumed booted", "stopped paused", "resumed unpaused")
	must(t, d.Control(t.Context(), "life", controller.ActionHibernate))
	wantState(t, d, "life", controller.GuestHibernated)
	w.until(t, "life", "resumed unpaused", "gone saved")
	must(t, d.Control(t.Context(), "life", controller.ActionStart))
	wantState(t, d, "life", controller.GuestRunning)
	w.until(t, "life", "gone saved", "changed restored", "resumed restored")
	must(t, d.Control(t.Context(), "life", controller.ActionKill))
	wantState(t, d, "life", controller.GuestOff)
	w.until(t, "life", "gone killed")
	must(t, d.Undefine(t.Context(), "life"))
	wantState(t, d, "life", "")
	w.until(t, "life", "gone killed", "changed undefined")
}

func TestControlSaysWhatLibvirtSays(t *testing.T) {
	_, d, _ := open(t)
	for _, c := range []struct {
		action controller.Action
		want   string
	}{
		{controller.ActionStart, "start nobody: Domain not found"},
		{controller.ActionKill, "kill nobody: Domain not found"},
		{"dance", ": dance nobody: "},
	} {
		err := d.Control(t.Context(), "nobody", c.action)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), d.URI()) {
			t.Errorf("%s: %v", c.action, err)
		}
	}
	if _, err := d.Define(t.Context(), "<domain type='nonsense'><name>x</name></domain>"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("define: %v", err)
	}
}

func TestADriverConnectsAgain(t *testing.T) {
	l, d, other := open(t)
	boot(t, d, other, "stays", vmOptions{})
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		ended <- d.Watch(t.Context(), func(e controller.GuestEvent) {
			if e.VM == "" {
				close(ready)
			}
		})
	}()
	<-ready
	must(t, l.hv[0].Restart(t.Context()))
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "the connection is lost") {
			t.Errorf("a watch whose daemon died: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a watch does not notice that its daemon died")
	}
	wantState(t, d, "stays", controller.GuestRunning)
}

func TestAWedgedDaemonHoldsNobodyUp(t *testing.T) {
	l, d, _ := open(t)
	_, err := d.Guests(t.Context())
	must(t, err)
	must(t, l.hv[0].Freeze())
	defer func() { must(t, l.hv[0].Thaw()) }()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := d.Guests(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("list: %v", err)
	}
	if err := d.Watch(ctx, func(controller.GuestEvent) {}); err != nil {
		t.Errorf("a watch that was to end: %v", err)
	}
	fresh, err := New(l.hv[0].URI(), nil)
	must(t, err)
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := fresh.Guests(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("list by who is not connected: %v", err)
	}
}

func TestCloseEndsWhatWaits(t *testing.T) {
	l, _, _ := open(t)
	d, err := New(l.hv[0].URI(), nil)
	must(t, err)
	ended := make(chan error, 1)
	go func() {
		ended <- d.Watch(t.Context(), func(controller.GuestEvent) { _ = d.Close() })
	}()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a watch on a driver that is closed ends without an error")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a watch goes on after Close")
	}
	if _, err := d.Guests(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("list: %v", err)
	}
}
