package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// bootedGuest is a real guest behind a tap of a host.
type bootedGuest struct {
	host   *Host
	proc   *process
	serial string // file with what its console said
}

// Addresses of the booted guest's link.
var (
	guest4   = netip.MustParseAddr("10.7.0.10")
	guest6   = netip.MustParseAddr("2001:db8:7::10")
	guestGW4 = netip.MustParseAddr("10.7.0.1")
	guestGW6 = netip.MustParseAddr("2001:db8:7::1")
)

var guestMAC = net.HardwareAddr{0x52, 0x54, 0, 0, 7, 0x10}

// bootGuest boots a guest in the namespace of a new host, whose tap0 is 10.7.0.1 and 2001:db8:7::1.
func bootGuest(t *testing.T, p GuestParams, more ...string) *bootedGuest {
	t.Helper()
	img, err := GuestImage(within(t, 3*time.Minute), func(s string) { t.Log(s) })
	must(t, err)
	h := startHost(t, startRun(t), "hv")
	must(t, h.ns.Do(func() error {
		link := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_VNET_HDR}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		for _, f := range link.Fds {
			_ = f.Close()
		}
		for _, s := range []string{"default", "tap0"} {
			must(t, writeSysctl("net/ipv6/conf/"+s+"/accept_dad", "0"))
		}
		for _, a := range addrs("10.7.0.1/24", "2001:db8:7::1/64", "fe80::1/64") {
			must(t, addAddr(link, a))
		}
		return netlink.LinkSetUp(link)
	}))
	p.NICs = append([]GuestNIC{{Addrs: addrs("10.7.0.10/24", "2001:db8:7::10/64"), Gateway4: guestGW4, Gateway6: netip.MustParseAddr("fe80::1")}}, p.NICs...)
	g := &bootedGuest{host: h, serial: filepath.Join(h.dir, "serial.log")}
	g.proc, err = startProcess(h.ns, h.Name, Spec{Name: "qemu", Log: filepath.Join(h.dir, "qemu.log"), Args: append([]string{"/usr/bin/qemu-system-x86_64",
		"-accel", GuestAccel, "-machine", "q35", "-m", fmt.Sprint(GuestMemory), "-smp", GuestCPUs, "-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "file:" + g.serial, "-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=n0,romfile=," + GuestVirtio + ",mac=" + guestMAC.String(),
		"-kernel", img.Kernel, "-initrd", img.Initrd, "-append", GuestCmdline(p)}, more...)})
	must(t, err)
	t.Cleanup(func() {
		g.proc.end(syscall.SIGKILL, time.Second)
		if b, err := os.ReadFile(g.serial); t.Failed() && err == nil {
			t.Logf("the guest's console:\n%s", b)
		}
	})
	return g
}

// waitPing waits until the guest answers.
func (g *bootedGuest) waitPing(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, a := range [][2]netip.Addr{{guestGW4, guest4}, {guestGW6, guest6}} {
		if _, err := Ping(ctx, g.host.ns, a[0], a[1]); err != nil {
			t.Fatalf("%v\n%s", err, tail(g.serial))
		}
	}
}

// A real guest boots with the addresses that it is given, writes to its memory at the rate that it is told, and to its
// disk what is still there when it looks.
func TestGuestBoots(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk.raw")
	must(t, os.WriteFile(disk, make([]byte, 4<<20), 0o644))
	// Its second interface leads nowhere; that it has its address is seen through the first.
	second := netip.MustParsePrefix("10.7.1.10/24")
	monitor := filepath.Join(t.TempDir(), "qmp")
	g := bootGuest(t, GuestParams{Name: "web", Dirty: 1, NICs: []GuestNIC{{Addrs: []netip.Prefix{second}}}},
		"-qmp", "unix:"+monitor+",server=on,wait=off", "-netdev", "hubport,id=n1,hubid=1", "-device", "virtio-net-pci,netdev=n1,romfile=,"+GuestVirtio+",mac=52:54:00:00:07:11", "-drive", "if=none,id=d0,format=raw,file="+disk, "-device", "virtio-blk-pci,drive=d0,"+GuestVirtio)
	g.waitPing(t)
	must(t, g.host.ns.AddRoute(second.Masked(), guest4, "tap0"))
	if _, err := Ping(within(t, 10*time.Second), g.host.ns, guestGW4, second.Addr()); err != nil {
		t.Error(err)
	}
	guest := NewGuest("web", g.host.ns, guest6)
	t.Cleanup(func() { must(t, guest.Close()) })
	ctx := within(t, time.Minute)
	must(t, guest.Wait(ctx))

	const blocks = 64
	must(t, guest.DiskWrite(ctx, "/dev/vda", blocks, 4000))
	must(t, guest.Dirty(ctx, 0))
	before, err := guest.Machine(ctx)
	must(t, err)
	time.Sleep(time.Second)
	still, err := guest.Machine(ctx)
	must(t, err)
	if still.Dirty != before.Dirty {
		t.Errorf("writes to memory: %d MiB, then %d MiB", before.Dirty, still.Dirty)
	}
	must(t, guest.Dirty(ctx, 8))
	for dirty := still.Dirty; dirty < still.Dirty+8; {
		m, err := guest.Machine(ctx)
		must(t, err)
		dirty = m.Dirty
		time.Sleep(10 * time.Millisecond)
	}
	good, err := guest.DiskVerify(ctx)
	must(t, err)
	if good.Written < blocks || good.Checked != blocks || good.Wrong != 0 || good.Error != "" {
		t.Errorf("%+v", good)
	}
	// Somebody else writes to the disk, and that is seen.
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("other"), 5*4096+100)
	must(t, errors.Join(err, f.Close()))
	bad, err := guest.DiskVerify(ctx)
	must(t, err)
	if bad.Wrong != 1 || !strings.Contains(bad.First, "block 5") {
		t.Errorf("%+v", bad)
	}
	g.checkStoppedQEMU(t, monitor)
	if trouble, ok, err := GuestTroubleIn(g.serial); ok || err != nil {
		t.Error(trouble, err)
	}
	if !strings.Contains(readFile(t, g.serial), "guest: serving") {
		t.Error("the console says nothing")
	}
}
