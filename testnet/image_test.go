package testnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
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
	p.NICs = []GuestNIC{{Addrs: addrs("10.7.0.10/24", "2001:db8:7::10/64"), Gateway4: guestGW4, Gateway6: netip.MustParseAddr("fe80::1")}}
	g := &bootedGuest{host: h, serial: filepath.Join(h.dir, "serial.log")}
	g.proc, err = startProcess(h.ns, h.Name, Spec{Name: "qemu", Log: filepath.Join(h.dir, "qemu.log"), Args: append([]string{"/usr/bin/qemu-system-x86_64",
		"-accel", "tcg,thread=single,tb-size=64", "-machine", "q35", "-m", fmt.Sprint(GuestMemory), "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "file:" + g.serial, "-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=n0,romfile=,mac=" + guestMAC.String(),
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

// A real guest boots with the addresses that it is given.
func TestGuestBoots(t *testing.T) {
	began := time.Now()
	g := bootGuest(t, GuestParams{Name: "web"})
	g.waitPing(t)
	t.Logf("answers after %v", time.Since(began))
}
