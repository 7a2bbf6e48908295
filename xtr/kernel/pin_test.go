package kernel

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

func (l *lab) close() {
	l.t.Helper()
	l.must(l.d.Close())
}

// linkIDs lists the pinned links and the programs in them.
func (l *lab) links() map[string][2]uint32 {
	l.t.Helper()
	all, err := l.d.pinnedLinks()
	l.must(err)
	out := map[string][2]uint32{}
	for _, a := range all {
		k, err := link.LoadPinnedLink(a.path, nil)
		l.must(err)
		info, err := k.Info()
		l.must(err)
		out[filepath.Base(a.path)] = [2]uint32{uint32(info.ID), uint32(info.Program)}
		k.Close()
	}
	return out
}

// manyRoutes is one route of each kind.
func (l *lab) manyRoutes() []fib.Route {
	loc := func(a netip.Addr, p, w uint8) lisp.Locator {
		return lisp.Locator{RLOC: a, Priority: p, Weight: w, Reachable: true}
	}
	return []fib.Route{
		{EID: mustEID("10.0.0.0/8"), Do: fib.Drop},
		{EID: mustEID("198.51.100.10/32"), Do: fib.Deliver, If: l.vmIf, MAC: vmMAC, Hold: 4, Watch: true},
		{EID: mustEID("198.51.100.20/32"), Do: fib.Encap, Locators: []lisp.Locator{loc(farRLOC.v4, 0, 1)}, MTU: 1400, Transit: true, Moved: true, Hold: 17},
		{EID: mustEID("198.51.100.21/32"), Do: fib.Encap, Locators: []lisp.Locator{loc(farRLOC.v4, 0, 1), loc(farRLOC.v6, 0, 1)}},
		{EID: mustEID("203.0.113.0/24"), Do: fib.Native, Transit: true},
		{EID: mustEID("2001:db8:e1d:1::10/128"), Do: fib.Deliver, If: l.vmIf, MAC: vmMAC, Copy: true},
		{EID: mustEID("2001:db8:e1d:1::20/128"), Do: fib.Encap, Locators: []lisp.Locator{loc(farRLOC.v6, 0, 1)}},
		{EID: mustEID("2001:db8:e1d:2::/64"), Do: fib.Hold, Hold: 4095, Watch: true},
		{EID: mustEID("2001:db8:e1d:3::/64"), Do: fib.Hold, Hold: 4094, Watch: true, MTU: 1400, Locators: []lisp.Locator{loc(farRLOC.v4, 0, 1)}},
		{EID: mustEID("2001:db8:ffff::/48"), Do: fib.Miss},
		{EID: mustEID("[7]0.0.0.0/0"), Do: fib.Miss},
		{EID: mustEID("[16777215]::/0"), Do: fib.Drop},
	}
}

// TestPickUp: what a process leaves behind, the next one finds, and nothing is changed by that.
func TestPickUp(t *testing.T) {
	l := newLab(t)
	routes := l.manyRoutes()
	l.set(routes...)
	if d := cmp.Diff(routes, l.d.Routes(), routeCmp); d != "" {
		t.Fatalf("routes (-set +got):\n%s", d)
	}
	l.must(l.d.RLOCState(farRLOC.v6, false))
	port, links, index := l.port, l.links(), l.d.LISP0Index()
	for range 2 {
		l.close()
		l.open()
		if d := cmp.Diff(routes, l.d.Routes(), routeCmp); d != "" {
			t.Fatalf("routes after the restart (-set +got):\n%s", d)
		}
		l.must(l.attach(Port{}))
		if l.port != port || l.d.LISP0Index() != index || l.d.LISP0Name() != "lisp0" {
			t.Errorf("port %d, lisp0 %d; were %d, %d", l.port, l.d.LISP0Index(), port, index)
		}
		var was []mapping
		l.must(readAll(l.d.maps["mappings"], func(_ uint32, m mapping) { was = append(was, m) }))
		l.set(routes...)
		var is []mapping
		l.must(readAll(l.d.maps["mappings"], func(_ uint32, m mapping) { is = append(is, m) }))
		if !slices.Equal(was, is) {
			t.Error("setting the same routes changed mappings")
		}
		if d := cmp.Diff(links, l.links()); d != "" {
			t.Errorf("links or their programs changed:\n%s", d)
		}
	}
	// The RLOC that is down still is.
	l.set(l.home(vmEID.v4), to(host(outEID.v4), farRLOC.v6))
	l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: outEID.v4}, 1, 2, nil))
	l.wantDrops("rloc-down", 1)
	// A new RLOC takes no number that is in use.
	l.set(to(host(outEID.v4), netip.MustParseAddr("100.64.7.7")))
	l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: outEID.v4}, 1, 2, nil))
	l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: netip.MustParseAddr("198.51.100.21")}, 1, 2, nil))
	for _, want := range []netip.Addr{netip.MustParseAddr("100.64.7.7"), farRLOC.v4} {
		if f := l.wire.want(); netip.AddrFrom4([4]byte(f[30:34])) != want {
			t.Errorf("to % x, want %v", f[30:34], want)
		}
	}
}

// TestRestartUnderTraffic: packets go on, in order and without a loss, while the process is gone, while it
// comes back, and when it comes back with other sizes.
func TestRestartUnderTraffic(t *testing.T) {
	l := newLab(t)
	l.bothHome(false)
	packet := func(n uint32) []byte {
		return udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: farEID.v4}, 1, 2, binary.BigEndian.AppendUint32(nil, n))
	}
	stop, end := make(chan struct{}), make(chan struct{})
	var sent, got uint32
	var sender, reader sync.WaitGroup
	sender.Go(func() { sent = stream(l.vm, packet, stop) })
	reader.Go(func() { got = inOrder(t, l.wire, 14+36+28, end) })
	for _, capacity := range []int{0, 0, 70_000, 50_000, 0} {
		time.Sleep(20 * time.Millisecond)
		l.close()
		time.Sleep(20 * time.Millisecond)
		l.cfg.Capacity = capacity
		l.open()
		l.must(l.attach(Port{}))
		if n := len(l.d.Routes()); n != 4 {
			t.Errorf("%d routes after the restart", n)
		}
		// And it goes on working: a change takes effect.
		l.set(to(host(farEID.v4), farRLOC.v4.Next()), to(host(farEID.v4), farRLOC.v4))
	}
	time.Sleep(20 * time.Millisecond)
	close(stop)
	sender.Wait()
	close(end)
	reader.Wait()
	if sent != got {
		t.Fatalf("%d packets were sent, %d came; drops: %v", sent, got, l.d.Drops())
	}
	if c, ok, err := l.d.RouteCounters(host(farEID.v4)); err != nil || !ok || c.Packets != uint64(sent) {
		t.Errorf("counted %+v %v %v, want %d packets", c, ok, err, sent)
	}
}

// TestDoorAfterRestart: as soon as Open returns, what goes up is heard.
func TestDoorAfterRestart(t *testing.T) {
	l := newLab(t)
	l.set(l.home(vmEID.v4))
	for range 3 {
		l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: farEID.v4}, 1, 2, nil))
		l.up.want()
		l.close()
		time.Sleep(20 * time.Millisecond)
		l.open()
	}
}

// TestGone: what is not there any more is forgotten: interfaces of VMs that went while nobody looked.
func TestGone(t *testing.T) {
	l := newLab(t)
	l.tap("tap1", gatewayMAC.String(), tapPlain)
	index := l.index("tap1")
	var port uint16
	var err error
	l.do(func() { port, err = l.d.AttachVM(index, Port{}) })
	l.must(err)
	l.set(l.home(vmEID.v4), fib.Route{EID: host(farEID.v4), Do: fib.Deliver, If: index, MAC: vmMAC})
	l.close()
	l.must(l.nl.LinkDel(l.link("tap1")))
	l.open()
	if _, err := l.d.PortCounters(port); err == nil {
		t.Error("the port is still there")
	}
	for path := range l.links() {
		if path == "vm_in-"+itoa(index) || path == "vm_out-"+itoa(index) {
			t.Errorf("link %s is still there", path)
		}
	}
	// The route that delivered there drops.
	l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: farEID.v4}, 1, 2, nil))
	l.wantDrops("no-path", 1)
	if err := l.d.DetachVM(index); err != nil {
		t.Errorf("detach what is gone: %v", err)
	}
	l.do(func() { _, err = l.d.AttachVM(index, Port{}) })
	if err == nil {
		t.Error("attached an interface that is not there")
	}
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

// TestRemove leaves nothing behind.
func TestRemove(t *testing.T) {
	l := newLab(t)
	l.bothHome(false)
	l.must(l.d.Remove())
	if _, err := l.nl.LinkByName("lisp0"); !errors.As(err, &netlink.LinkNotFoundError{}) {
		t.Errorf("lisp0: %v", err)
	}
	if _, err := os.Stat(l.cfg.PinDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pin directory: %v", err)
	}
	l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: farEID.v4}, 1, 2, nil))
	l.wire.none()
	routes, err := l.nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil || len(routes) != 0 {
		t.Errorf("routes: %v %v", routes, err)
	}
	// And it can begin anew.
	l.open()
	l.must(l.attach(Port{}))
	l.bothHome(false)
	l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: farEID.v4}, 1, 2, nil))
	l.wire.want()
}

// TestOnSharedBPFFS: a pin directory inside a bpffs that others use is used as it is, and left clean.
func TestOnSharedBPFFS(t *testing.T) {
	above := t.TempDir()
	if err := unix.Mount("bpf", above, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(above, 0); err != nil {
			t.Error(err)
		}
	})
	l := newLab(t, func(c *Config, _ *Port) { c.PinDir = filepath.Join(above, "tabi") })
	l.must(l.d.Remove())
	if _, err := os.Stat(filepath.Join(above, "tabi")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pin directory: %v", err)
	}
}

// TestHostRoutes: our EIDs are routed into lisp0, and only while they are ours.
func TestHostRoutes(t *testing.T) {
	l := newLab(t)
	check := func(want ...lisp.EID) {
		t.Helper()
		routes, err := l.nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: doorProtocol}, netlink.RT_FILTER_PROTOCOL)
		l.must(err)
		got := map[string]bool{}
		for _, r := range routes {
			if r.LinkIndex == l.d.LISP0Index() {
				got[r.Dst.String()] = true
			}
		}
		exp := map[string]bool{}
		for _, e := range want {
			exp[e.Prefix.String()] = true
		}
		if d := cmp.Diff(exp, got); d != "" {
			t.Fatalf("routes (-want +got):\n%s", d)
		}
	}
	check(own...)
	l.close()
	l.cfg.Own = []lisp.EID{own[1], mustEID("192.0.2.0/28"), mustEID("[7]10.0.0.0/8")}
	l.open()
	check(own[1], mustEID("192.0.2.0/28"))
}

// TestChecksAfterRestart: other RLOCs and aggregates replace the old ones.
func TestChecksAfterRestart(t *testing.T) {
	l := newLab(t)
	l.bothHome(false)
	l.close()
	l.cfg.AllowedRLOCs = []netip.Prefix{netip.PrefixFrom(outRLOC.v4, 32)}
	l.cfg.Self = []netip.Addr{selfRLOC.v4.Next()}
	l.open()
	l.sendWire(fromTo(farRLOC.v4, selfRLOC.v4.Next(), farEID.v4, vmEID.v4))
	l.wantDrops("unknown-rloc", 1)
	l.sendWire(fromTo(outRLOC.v4, selfRLOC.v4.Next(), farEID.v4, vmEID.v4))
	l.vm.want()
	l.sendWire(fromTo(outRLOC.v4, selfRLOC.v4, farEID.v4, vmEID.v4))
	l.vm.none()
}
