package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

var routeCmp = cmp.Options{
	cmpopts.EquateEmpty(),
	cmp.Comparer(func(a, b lisp.EID) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

// TestSetDel: longest prefix wins, in each instance by itself; what is deleted is gone at once.
func TestSetDel(t *testing.T) {
	l := newLab(t)
	rloc := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{100, 64, 9, n}) }
	for _, v6 := range both {
		l.set(l.home(vmEID.of(v6)))
		bits := vmEID.of(v6).BitLen()
		prefix := func(n int) lisp.EID { return lisp.MakeEID(0, netip.PrefixFrom(farEID.of(v6), n)) }
		dst := func() byte {
			t.Helper()
			l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.of(v6), dst: farEID.of(v6)}, 1, 2, nil))
			return l.wire.want()[14+19]
		}
		other := to(prefix(bits), rloc(99))
		other.EID.IID = 7
		l.set(to(prefix(0), rloc(1)), other)
		for i, n := range []int{1, bits - 8, bits - 1, bits} {
			if got := dst(); got != byte(i+1) {
				t.Fatalf("with %d routes: to %d", i+1, got)
			}
			l.set(to(prefix(n), rloc(byte(i+2))))
		}
		for i, n := range []int{bits, bits - 1, bits - 8, 1} {
			if got := dst(); got != byte(5-i) {
				t.Fatalf("without %d of the routes: to %d", i, got)
			}
			l.del(prefix(n))
		}
		if got := dst(); got != 1 {
			t.Fatalf("with the default route: to %d", got)
		}
		l.del(prefix(0), prefix(0), host(outEID.v4))
		l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.of(v6), dst: farEID.of(v6)}, 1, 2, nil))
		if u, ok := fib.DecodeUp(l.up.want()); !ok || u.Reason != fib.UpMiss {
			t.Fatalf("went up as %+v", u)
		}
	}
	l.wire.none()
}

// TestActions: drop drops, and the counters of a route live as long as it does, whatever it says.
func TestActions(t *testing.T) {
	l := newLab(t)
	e := host(farEID.v4)
	l.set(l.home(vmEID.v4))
	send := func() {
		l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: farEID.v4}, 1, 2, make([]byte, 100)))
	}
	want := func(n uint64) {
		t.Helper()
		c, ok, err := l.d.RouteCounters(e)
		if err != nil || !ok || c.Packets != n || c.Bytes != n*128 || c.EID != e {
			t.Fatalf("counters %+v %v %v, want %d packets", c, ok, err, n)
		}
		if ago := time.Since(c.Used); n > 0 && (ago < -50*time.Millisecond || ago > 2*time.Second) {
			t.Fatalf("last used %v ago", ago)
		}
		all, err := l.d.AllCounters()
		if err != nil || len(all) != 2 || cmp.Diff(all[1], c, routeCmp, cmpopts.EquateApproxTime(time.Second)) != "" {
			t.Fatalf("all counters: %+v %v", all, err)
		}
	}
	l.set(to(e, farRLOC.v4))
	want(0)
	send()
	l.wire.want()
	want(1)
	l.set(fib.Route{EID: e, Do: fib.Drop})
	send()
	l.wantDrops("route", 1)
	want(2)
	l.set(fib.Route{EID: e, Do: fib.Miss})
	send()
	l.up.want()
	want(3)
	l.set(fib.Route{EID: e, Do: fib.Hold, Hold: 1})
	send()
	l.up.want()
	want(4)
	l.del(e)
	if _, ok, err := l.d.RouteCounters(e); ok || err != nil {
		t.Fatalf("counters of what is not there: %v %v", ok, err)
	}
	l.set(to(e, farRLOC.v4))
	want(0)
	if n := l.d.Ups()["miss"]; n != 1 {
		t.Errorf("%d went up as misses", n)
	}
}

// TestSetRefuses: a route that makes no sense is refused, and with it those that were to be set with it.
func TestSetRefuses(t *testing.T) {
	l := newLab(t)
	good := to(host(farEID.v4), farRLOC.v4)
	for what, r := range map[string]fib.Route{
		"nothing":                {},
		"no action":              {EID: host(vmEID.v4)},
		"unknown action":         {EID: host(vmEID.v4), Do: fib.Miss + 1},
		"bits beyond the prefix": {EID: lisp.EID{Prefix: netip.MustParsePrefix("198.51.100.10/24")}, Do: fib.Drop},
		"IPv4-mapped":            {EID: lisp.EID{Prefix: netip.MustParsePrefix("::ffff:198.51.100.10/128")}, Do: fib.Drop},
		"instance":               {EID: lisp.EID{IID: 1 << 24, Prefix: good.EID.Prefix}, Do: fib.Drop},
		"hold":                   {EID: host(vmEID.v4), Do: fib.Hold},
		"hold number":            {EID: host(vmEID.v4), Do: fib.Hold, Hold: fib.MaxHold + 1},
		"no interface":           {EID: host(vmEID.v4), Do: fib.Deliver, If: l.vmIf + 77, MAC: vmMAC},
		"no MAC":                 {EID: host(vmEID.v4), Do: fib.Deliver, If: l.vmIf},
	} {
		if err := l.d.Set(t.Context(), good, r); err == nil {
			t.Errorf("%s: was set", what)
		}
	}
	if r := l.d.Routes(); len(r) != 0 {
		t.Fatalf("routes: %+v", r)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.d.Set(done, good); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// shares sends many flows and says how many went to each RLOC, by its last byte.
func (l *lab) shares(v6 bool) map[byte]int {
	l.t.Helper()
	n := map[byte]int{}
	for i := range 320 {
		l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.of(v6), dst: farEID.of(v6)}, uint16(1000+i*13), 2, nil))
	}
	for {
		f := l.wire.recv(100 * time.Millisecond)
		if f == nil {
			return n
		}
		n[f[14+19]]++
	}
}

// TestWeights: the locators of the best priority that are usable share the flows by weight.
func TestWeights(t *testing.T) {
	l := newLab(t)
	rloc := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{100, 64, 9, n}) }
	set := func(locs ...lisp.Locator) {
		l.set(l.home(vmEID.v4), fib.Route{EID: host(farEID.v4), Do: fib.Encap, Locators: locs})
	}
	loc := func(n byte, priority, weight uint8) lisp.Locator {
		return lisp.Locator{RLOC: rloc(n), Priority: priority, Weight: weight, Reachable: true}
	}
	check := func(what string, want map[byte]int) {
		t.Helper()
		got := l.shares(false)
		for n, w := range want {
			if g := got[n]; g < w*7/10 || g > w*13/10 {
				t.Errorf("%s: %d of 320 to RLOC %d, want some %d; all: %v", what, g, n, w, got)
			}
			delete(got, n)
		}
		if len(got) != 0 {
			t.Errorf("%s: also to %v", what, got)
		}
	}
	gone := loc(4, 0, 100)
	gone.Reachable = false
	set(loc(1, 1, 75), loc(2, 1, 25), loc(3, 2, 100), gone, loc(5, 255, 100))
	check("75 to 25", map[byte]int{1: 240, 2: 80})
	set(loc(1, 1, 0), loc(2, 1, 0))
	check("no weights", map[byte]int{1: 160, 2: 160})
	set(loc(1, 1, 50), loc(2, 1, 0))
	check("one without weight", map[byte]int{1: 320})
	set(loc(1, 1, 1), loc(2, 1, 1), loc(3, 1, 1), loc(4, 1, 1))
	check("four", map[byte]int{1: 80, 2: 80, 3: 80, 4: 80})
	l.must(l.d.RLOCState(rloc(3), false))
	check("one of four down", map[byte]int{1: 107, 2: 107, 4: 107})
	set(loc(1, 1, 60), loc(2, 1, 60), loc(3, 2, 100), loc(5, 3, 1))
	l.must(l.d.RLOCState(rloc(1), false))
	check("one of the best down", map[byte]int{2: 320})
	l.must(l.d.RLOCState(rloc(2), false))
	check("all of the best down, and the next", map[byte]int{5: 320})
	l.must(l.d.RLOCState(rloc(5), false))
	check("all down", map[byte]int{})
	l.wantDrops("rloc-down", 320)
	l.must(l.d.RLOCState(rloc(3), true))
	check("one is back", map[byte]int{3: 320})
	l.must(l.d.RLOCState(rloc(2), true))
	check("a better one is back", map[byte]int{2: 320})
	set()
	check("no locators", map[byte]int{})
	l.must(l.d.RLOCState(rloc(200), false)) // nobody speaks of it yet
	set(loc(200, 1, 1), loc(1, 2, 1), loc(2, 3, 1))
	check("one that was down before it was set", map[byte]int{2: 320})
}

// TestPath: RLOCs without a way there, and ways that change.
func TestPath(t *testing.T) {
	l := newLab(t)
	l.bothHome(false)
	send := func() {
		l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: farEID.v4}, 1, 2, make([]byte, 1400-28)))
	}
	send()
	l.wire.want()
	// The underlay's MTU shrinks.
	l.must(l.nl.LinkSetMTU(l.link("u0"), 1400))
	wait := func(what string, ok func() bool) {
		t.Helper()
		for range 200 {
			send()
			if ok() {
				return
			}
		}
		t.Fatal(what)
	}
	wait("the smaller MTU is not noticed", func() bool {
		f := l.up.recv(10 * time.Millisecond)
		u, _ := fib.DecodeUp(f)
		return f != nil && u == fib.Up{Reason: fib.UpTooBig, Port: l.port, Seq: 1364}
	})
	l.must(l.nl.LinkSetMTU(l.link("u0"), 1500))
	// Another way.
	veth(l.space, "w0", l.far, "w1")
	l.addr("w0", "100.64.3.2/24")
	l.neigh("w0", "100.64.3.1", peerMAC)
	l.must(l.far.nl.LinkSetHardwareAddr(l.far.link("w1"), peerMAC))
	other := l.far.packet("w1")
	l.route("100.64.2.0/24", "100.64.3.1", "w0")
	wait("the new route is not noticed", func() bool { return other.recv(10*time.Millisecond) != nil })
	// None.
	l.must(l.nl.LinkSetDown(l.link("w0")))
	l.must(l.nl.LinkSetDown(l.link("u0")))
	wait("that there is no route is not noticed", func() bool {
		time.Sleep(5 * time.Millisecond)
		return l.d.Drops()["no-path"] > 0
	})
}

// TestManyRoutes: a hundred thousand routes in batches, read back, changed, counted, deleted.
func TestManyRoutes(t *testing.T) {
	l := newLab(t, withCapacity(120_000))
	const n = 100_000
	eid := func(i int) lisp.EID {
		if i%2 == 0 {
			return host(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
		}
		b := vmEID.v6.As16()
		binary.BigEndian.PutUint32(b[10:], uint32(i))
		return host(netip.AddrFrom16(b))
	}
	routes := make([]fib.Route, n)
	for i := range routes {
		routes[i] = to(eid(i), netip.AddrFrom4([4]byte{100, 64, byte(i % 1000 >> 8), byte(i % 1000)}))
	}
	start := time.Now()
	l.set(routes...)
	took := time.Since(start)
	start = time.Now()
	l.set(routes...)
	again := time.Since(start)
	t.Logf("%d routes set in %v, set again in %v", n, took, again)
	if took > 20*time.Second {
		t.Errorf("%d routes set in %v", n, took)
	}
	got := l.d.Routes()
	if len(got) != n {
		t.Fatalf("%d routes are set", len(got))
	}
	byEID := map[lisp.EID]fib.Route{}
	for _, r := range got {
		byEID[r.EID] = r
	}
	for _, i := range []int{0, 1, 4095, 4096, 99_998, 99_999} {
		if r := byEID[eid(i)]; r.Do != fib.Encap || len(r.Locators) != 1 || r.Locators[0].RLOC != routes[i].Locators[0].RLOC {
			t.Errorf("route %d: %+v", i, r)
		}
	}
	l.set(l.home(vmEID.v4), fib.Route{EID: eid(70_000), Do: fib.Drop})
	for _, i := range []int{2, 50_000, 70_000, 99_998} {
		l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: eid(i).Prefix.Addr()}, 1, 2, nil))
		if i == 70_000 {
			l.wantDrops("route", 1)
			continue
		}
		if f := l.wire.want(); f[14+18] != byte(i%1000>>8) || f[14+19] != byte(i%1000) {
			t.Errorf("route %d: to % x", i, f[14+16:14+20])
		}
	}
	all, err := l.d.AllCounters()
	if err != nil || len(all) != n+1 {
		t.Fatalf("%d counters, %v", len(all), err)
	}
	packets := uint64(0)
	for _, c := range all {
		packets += c.Packets
	}
	if packets != 4 {
		t.Errorf("%d packets counted", packets)
	}
	eids := make([]lisp.EID, n)
	for i := range eids {
		eids[i] = eid(i)
	}
	l.del(eids...)
	if r := l.d.Routes(); len(r) != 1 {
		t.Errorf("%d routes are left", len(r))
	}
}

// TestFull: what does not fit is refused, and what was there stays.
func TestFull(t *testing.T) {
	l := newLab(t, withCapacity(100))
	var routes []fib.Route
	for i := range 101 {
		routes = append(routes, to(host(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})), farRLOC.v4))
	}
	if err := l.d.Set(t.Context(), routes...); err == nil {
		t.Fatal("101 routes fit where 100 do")
	}
	if r := l.d.Routes(); len(r) != 100 {
		t.Fatalf("%d routes", len(r))
	}
	l.del(routes[7].EID)
	l.set(routes[100])
	if r := l.d.Routes(); len(r) != 100 {
		t.Fatalf("%d routes", len(r))
	}
}

// TestNumbersComeBack: numbers of mappings and RLOCs are used again, and not at once.
func TestNumbersComeBack(t *testing.T) {
	l := newLab(t)
	e := host(farEID.v4)
	l.set(l.home(vmEID.v4))
	for i := range 3 * nRLOCs {
		l.set(to(e, netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)})))
	}
	l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: farEID.v4}, 1, 2, nil))
	last := 3*nRLOCs - 1
	if f := l.wire.want(); f[14+18] != byte(last>>8) || f[14+19] != byte(last) {
		t.Fatalf("to % x", f[14+16:14+20])
	}
	// More at once than there are.
	var all []fib.Route
	for i := range nRLOCs {
		all = append(all, to(host(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})), netip.AddrFrom4([4]byte{100, 65, byte(i >> 8), byte(i)})))
	}
	if err := l.d.Set(t.Context(), all...); err == nil {
		t.Fatalf("%d RLOCs fit", nRLOCs)
	}
}

// TestMemory: what an agent with the default capacity takes from the kernel.
func TestMemory(t *testing.T) {
	l := newLab(t)
	total := uint64(0)
	for name, m := range l.d.maps {
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, _ := info.Memlock()
		total += n
		if n > 1<<20 {
			t.Logf("%s: %d KiB", name, n>>10)
		}
	}
	t.Logf("%d KiB in all on %d CPUs", total>>10, runtime.NumCPU())
	if total > 24<<20 {
		t.Errorf("the maps take %d MiB", total>>20)
	}
}

// TestConfig: what a configuration must not say.
func TestConfig(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "no pin directory"},
		{Config{PinDir: "x", LISP0: "a-name-that-is-too-long"}, "longer than 15"},
		{Config{PinDir: "x", MTU: 1000}, "MTU 1000"},
		{Config{PinDir: "x", Decap: "magic"}, "magic"},
		{Config{PinDir: "x", Capacity: -1}, "capacity"},
		{Config{PinDir: "x", Self: []netip.Addr{{}}}, "own RLOC 0"},
		{Config{PinDir: "x", Self: make9()}, "more than 8"},
		{Config{PinDir: "x", AllowedRLOCs: []netip.Prefix{{}}}, "not a prefix"},
		{Config{PinDir: "x", Own: []lisp.EID{{}}}, "own EIDs"},
		{Config{PinDir: "x", Pool: netip.MustParsePrefix("2001:db8:64::/95")}, "length must be"},
		{Config{PinDir: "x", Pool: netip.MustParsePrefix("2001:db8:64::1/96")}, "not a masked"},
		{Config{PinDir: "x", Pool: netip.MustParsePrefix("192.0.2.0/32")}, "not a masked IPv6"},
		{Config{PinDir: "x", Pool: netip.MustParsePrefix("2001:db8:64:0:ff00::/96")}, "must be zero"},
		{Config{PinDir: "x", LowestMTU6: 1000}, "lowest IPv6 MTU"},
	} {
		if _, err := Open(c.cfg, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
		}
	}
}

func make9() (out []netip.Addr) {
	for i := range 9 {
		out = append(out, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	return out
}

// TestNextHop: the way to an RLOC may lead over a next hop of the other family (RFC 8950), over a link-local
// one, or over none.
func TestNextHop(t *testing.T) {
	l := newLab(t)
	index := l.index("u0")
	mac := func(n byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, n} }
	l.neigh("u0", "2001:db8:100:1::66", mac(1))
	l.neigh("u0", "fe80::66", mac(2))
	l.neigh("u0", "100.64.8.8", mac(3))
	l.neigh("u0", "2001:db8:100:8::8", mac(4))
	route := func(dst string, r netlink.Route) {
		t.Helper()
		_, r.Dst, _ = net.ParseCIDR(dst)
		r.LinkIndex = index
		l.must(l.nl.RouteReplace(&r))
	}
	route("100.64.6.0/24", netlink.Route{Via: &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.ParseIP("2001:db8:100:1::66")}})
	route("2001:db8:100:7::/64", netlink.Route{Gw: net.ParseIP("fe80::66")})
	route("100.64.8.0/24", netlink.Route{Scope: netlink.SCOPE_LINK})
	route("2001:db8:100:8::/64", netlink.Route{})
	l.set(l.home(vmEID.v4))
	for i, rloc := range []string{"100.64.6.6", "2001:db8:100:7::7", "100.64.8.8", "2001:db8:100:8::8"} {
		l.set(to(host(farEID.v4), netip.MustParseAddr(rloc)))
		l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: farEID.v4}, 1, 2, nil))
		if got := l.wire.want(); net.HardwareAddr(got[:6]).String() != mac(byte(i+1)).String() {
			t.Errorf("to %s: next hop %x, want %v", rloc, got[:6], mac(byte(i+1)))
		}
	}
}

// TestClosed: whoever still asks a data plane that is closed gets an error, and those who ask while it
// closes get one or an answer.
func TestClosed(t *testing.T) {
	l := newLab(t)
	l.bothHome(false)
	calls := map[string]func() error{
		"Set":             func() error { return l.d.Set(context.Background(), to(host(outEID.v4), farRLOC.v4)) },
		"Del":             func() error { return l.d.Del(context.Background(), host(outEID.v4)) },
		"RLOCState":       func() error { return l.d.RLOCState(farRLOC.v4, true) },
		"HoldCounters":    func() error { _, _, err := l.d.HoldCounters(1); return err },
		"HoldDropped":     func() error { return l.d.HoldDropped(1, 0) },
		"HoldReset":       func() error { return l.d.HoldReset(1) },
		"PortCounters":    func() error { _, err := l.d.PortCounters(l.port); return err },
		"RouteCounters":   func() error { _, _, err := l.d.RouteCounters(host(farEID.v4)); return err },
		"AllCounters":     func() error { _, err := l.d.AllCounters(); return err },
		"DetachVM":        func() error { return l.d.DetachVM(l.vmIf + 100) },
		"DelServices":     func() error { return l.d.DelServices(context.Background(), labPool) },
		"ServiceCounters": func() error { _, err := l.d.ServiceCounters(); return err },
	}
	var busy sync.WaitGroup
	for name, call := range calls {
		busy.Go(func() {
			for range 10_000 {
				if err := call(); err != nil {
					if !errors.Is(err, errClosed) {
						t.Errorf("%s: %v", name, err)
					}
					return
				}
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	l.close()
	busy.Wait()
	for name, call := range calls {
		if err := call(); !errors.Is(err, errClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(l.d.Drops()); n != 0 {
		t.Errorf("%d drop counters", n)
	}
	if err := l.d.Remove(); !errors.Is(err, errClosed) {
		t.Errorf("Remove: %v", err)
	}
	l.close()
}
