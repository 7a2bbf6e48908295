package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// ProgramTime is what one packet costs in one program.
type ProgramTime struct {
	Program string          `json:"program"`
	Cost    []ProgramCostAt `json:"cost"`
}

// ProgramCostAt is the cost with a table of some size.
type ProgramCostAt struct {
	Mappings    int     `json:"mappings"`
	Nanoseconds float64 `json:"ns_per_packet"`
}

const (
	costActive  = 1000 // destinations that packets go to
	costRounds  = 15   // of measurements: the median counts, as others use the machine too
	costPackets = 1500 // a measurement
	costWarmUp  = 500  // packets before each
	costRLOCs   = 1000
)

// ProgramCost measures, in network namespaces of its own, what a packet costs in each program with tables
// of so many mappings, half of them of each family, while packets go to 1,000 destinations in random
// order. The time is the kernel's own (kernel.bpf_stats) less that of an empty program: it is the clock's.
// A table that has fewer mappings than destinations covers them with prefixes. The sizes are measured in
// turn. It needs root, and some 500 bytes of memory per mapping.
func ProgramCost(ctx context.Context, sizes ...int) (out []ProgramTime, err error) {
	onNewThread(func() { out, err = programCost(ctx, sizes, false) })
	if err != nil {
		return nil, fmt.Errorf("kernel: cost of the programs: %w", err)
	}
	return out, nil
}

// TranslationCost measures, as [ProgramCost] does, the programs that translate (map646): with so many services, and with
// as many mappings of what is behind them.
func TranslationCost(ctx context.Context, sizes ...int) (out []ProgramTime, err error) {
	onNewThread(func() { out, err = programCost(ctx, sizes, true) })
	if err != nil {
		return nil, fmt.Errorf("kernel: cost of translation: %w", err)
	}
	return out, nil
}

// onNewThread runs f on a thread that ends with it, as f changes its namespace and its CPU.
func onNewThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// programCost measures the programs without services, or those that translate.
func programCost(ctx context.Context, sizes []int, services bool) (out []ProgramTime, err error) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return nil, fmt.Errorf("statistics: %w", err)
	}
	defer stats.Close()
	if err := oneCPU(); err != nil {
		return nil, err
	}
	var labs []*costLab
	defer func() {
		for _, l := range labs {
			err = errors.Join(err, l.close())
		}
	}()
	for _, n := range sizes {
		if n < 1 || n > 2_000_000 {
			return nil, fmt.Errorf("%d mappings: not in 1..2000000", n)
		}
		l, err := newCostLab(ctx, n, services)
		if err != nil {
			return nil, fmt.Errorf("with %d mappings: %w", n, err)
		}
		labs = append(labs, l)
	}
	if len(labs) == 0 {
		return nil, nil
	}
	for i := range labs[0].cases {
		times := make([][]float64, len(labs))
		for range costRounds {
			for j, l := range labs {
				ns, err := l.measure(ctx, &l.cases[i])
				if err != nil {
					return nil, fmt.Errorf("with %d mappings: %s: %w", sizes[j], l.cases[i].name, err)
				}
				times[j] = append(times[j], ns)
			}
		}
		p := ProgramTime{Program: labs[0].cases[i].name}
		for j, t := range times {
			slices.Sort(t)
			p.Cost = append(p.Cost, ProgramCostAt{Mappings: sizes[j], Nanoseconds: t[len(t)/2]})
		}
		out = append(out, p)
	}
	// The first case is the empty program.
	for i := range out {
		for j := range out[i].Cost {
			if i > 0 {
				out[i].Cost[j].Nanoseconds -= out[0].Cost[j].Nanoseconds
			}
		}
	}
	return out[1:], nil
}

// oneCPU keeps the thread on one CPU: what a CPU remembers of destinations it remembers for itself.
func oneCPU() error {
	var cpus, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return err
	}
	for i := 0; one.Count() == 0; i++ {
		if cpus.IsSet(i) {
			one.Set(i)
		}
	}
	return unix.SchedSetaffinity(0, &one)
}

// costCase is one kind of packet at one program.
type costCase struct {
	name    string
	prog    string
	ifindex int
	want    uint32 // verdict
	frame   func(dst netip.Addr) []byte
	to      []netip.Addr
	frames  [][]byte
}

// newCostLab makes a data plane with n mappings, and as many services if need be, in a namespace of its own, in
// which it leaves the thread.
func newCostLab(ctx context.Context, n int, services bool) (l *costLab, err error) {
	l = &costLab{self: netip.MustParseAddr("100.64.0.1"), rand: rand.New(rand.NewPCG(1, 2))}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if l.ns, err = netns.New(); err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	if l.dir, err = os.MkdirTemp("", "tabi-cost"); err != nil {
		return nil, err
	}
	if l.d, err = Open(Config{
		PinDir: filepath.Join(l.dir, "bpf"), Self: []netip.Addr{l.self}, AllowedRLOCs: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")},
		Own: costOwn, Anchor: true, Capacity: max(2*n, 2*costActive), Decap: "tc", Pool: costPool,
	}, slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	if err = l.links(); err != nil {
		return nil, err
	}
	if err = l.routes(ctx, n); err != nil {
		return nil, err
	}
	l.makeCases()
	if services {
		if err = l.services(ctx, n); err != nil {
			return nil, err
		}
	}
	for i := range l.cases {
		for _, a := range l.cases[i].to {
			l.cases[i].frames = append(l.cases[i].frames, l.cases[i].frame(a))
		}
	}
	return l, nil
}

func (l *costLab) close() error {
	var errs []error
	if l.d != nil {
		errs = append(errs, l.d.Remove())
	}
	if l.dir != "" {
		errs = append(errs, os.Remove(l.dir))
	}
	if l.ns.IsOpen() {
		errs = append(errs, l.ns.Close())
	}
	return errors.Join(errs...)
}

var (
	costOwn      = []lisp.EID{costEID("10.0.0.0/8"), costEID("172.16.0.0/12"), costEID("2001:db8::/32"), costEID("2001:dba::/32")}
	costPool     = netip.MustParsePrefix("2001:db8:ffff:64::/96")
	costVM       = [2]netip.Addr{netip.MustParseAddr("10.255.0.1"), netip.MustParseAddr("2001:db8:ffff::1")}
	costStranger = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db9::1")}
)

func costEID(s string) lisp.EID { return lisp.MakeEID(0, netip.MustParsePrefix(s)) }

// costLab is a data plane whose programs are run by hand.
type costLab struct {
	ns         netns.NsHandle
	dir        string
	d          *DataPlane
	cases      []costCase
	rand       *rand.Rand
	self       netip.Addr
	vm, under  int
	vmMAC, mac net.HardwareAddr
	far, local [2][]netip.Addr // active destinations, by family
}

func (l *costLab) links() error {
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "vm"}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI}
	if err := netlink.LinkAdd(tap); err != nil {
		return fmt.Errorf("tap: %w", err)
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "under"}, PeerName: "wire"}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	for _, name := range []string{"vm", "under", "wire"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		switch name {
		case "vm":
			l.vm, l.vmMAC = link.Attrs().Index, link.Attrs().HardwareAddr
		case "under":
			l.under, l.mac = link.Attrs().Index, link.Attrs().HardwareAddr
			a := &netlink.Addr{IPNet: &net.IPNet{IP: l.self.AsSlice(), Mask: net.CIDRMask(10, 32)}}
			if err := netlink.AddrAdd(link, a); err != nil {
				return err
			}
		}
	}
	_, err := l.d.AttachVM(l.vm, Port{})
	return err
}

// nthHost spreads host addresses over the aggregates.
func nthHost(v6, i int) netip.Addr {
	if v6 == 0 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], 10<<24|uint32(i+1)*7)
		return netip.AddrFrom4(b)
	}
	b := netip.MustParseAddr("2001:db8::").As16()
	binary.BigEndian.PutUint32(b[4:], uint32(i+1)*2654435761&0x7fffffff)
	binary.BigEndian.PutUint32(b[12:], uint32(i+1))
	return netip.AddrFrom16(b)
}

// routes fills the table: the VM's own EIDs, mappings for what is far, local EIDs that are delivered.
func (l *costLab) routes(ctx context.Context, n int) error {
	deliver := func(e lisp.EID) fib.Route {
		return fib.Route{EID: e, Do: fib.Deliver, If: l.vm, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	}
	var local []fib.Route
	for f := range 2 {
		local = append(local, deliver(lisp.HostEID(0, costVM[f])))
		for i := range costActive / 2 {
			l.far[f] = append(l.far[f], nthHost(f, i))
			l.local[f] = append(l.local[f], nthHost(f, i+1<<20))
		}
	}
	// Two prefixes hold all that is local, so that it does not count.
	local = append(local, deliver(costEID("10.128.0.0/9")), deliver(costEID("2001:db8:8000::/33")))
	for f := range 2 {
		for i, a := range l.local[f] {
			b := a.AsSlice()
			if f == 0 {
				b[1] |= 0x80
			} else {
				b[4] |= 0x80
			}
			l.local[f][i], _ = netip.AddrFromSlice(b)
		}
	}
	if err := l.d.Set(ctx, local...); err != nil {
		return err
	}
	encap := func(e lisp.EID, i int) fib.Route {
		rloc := netip.AddrFrom4([4]byte{100, 65, byte(i % costRLOCs >> 8), byte(i % costRLOCs)})
		return fib.Route{EID: e, Do: fib.Encap, Transit: true, Locators: []lisp.Locator{{RLOC: rloc, Priority: 1, Weight: 1, Reachable: true}}}
	}
	if n/2 < costActive/2 {
		return l.d.Set(ctx, coverFew(n, encap)...)
	}
	batch := make([]fib.Route, 0, 4096)
	for i := range n {
		batch = append(batch, encap(lisp.HostEID(0, nthHost(i%2, i/2)), i))
		if len(batch) == cap(batch) || i == n-1 {
			if err := l.d.Set(ctx, batch...); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	return nil
}

// coverFew makes n prefixes that cover all far destinations.
func coverFew(n int, encap func(lisp.EID, int) fib.Route) (out []fib.Route) {
	half := max(n/2, 1)
	bits := 0
	for 1<<bits < half {
		bits++
	}
	// The addresses differ in their lower bits in IPv4 and in the second 32 bits in IPv6.
	for i := range 1 << bits {
		b := [4]byte{}
		binary.BigEndian.PutUint32(b[:], 10<<24|uint32(i)<<(12-bits))
		out = append(out, encap(lisp.MakeEID(0, netip.PrefixFrom(netip.AddrFrom4(b), 20+bits)), i))
		w := netip.MustParseAddr("2001:db8::").As16()
		binary.BigEndian.PutUint32(w[4:], uint32(i)<<(31-bits))
		out = append(out, encap(lisp.MakeEID(0, netip.PrefixFrom(netip.AddrFrom16(w), 33+bits)), i))
	}
	return out
}

func (l *costLab) makeCases() {
	const ok, redirect, pass = 0, 7, 2
	family := [2]string{"IPv4", "IPv6"}
	rloc := netip.MustParseAddr("100.66.0.1")
	all := []costCase{{
		name: "none", prog: "clock", want: ok, to: l.far[0],
		frame: func(dst netip.Addr) []byte { return costUDP(l.vmMAC, costVM[0], dst) },
	}}
	for f := range 2 {
		outer := func(inner []byte) []byte { return costLISP(l.mac, rloc, l.self, inner) }
		all = append(all,
			costCase{
				name: "encapsulate " + family[f], prog: "vm_in", ifindex: l.vm, want: redirect, to: l.far[f],
				frame: func(dst netip.Addr) []byte { return costUDP(l.vmMAC, costVM[f], dst) },
			},
			costCase{
				name: "decapsulate " + family[f], prog: "under_in", ifindex: l.under, want: redirect, to: l.local[f],
				frame: func(dst netip.Addr) []byte { return outer(costUDP(l.mac, costVM[f], dst)[14:]) },
			},
			costCase{
				name: "decapsulate " + family[f] + " in XDP", prog: "under_xdp", want: pass, to: l.local[f],
				frame: func(dst netip.Addr) []byte { return outer(costUDP(l.mac, costVM[f], dst)[14:]) },
			},
			costCase{
				name: "re-encapsulate " + family[f], prog: "under_in", ifindex: l.under, want: redirect, to: l.far[f],
				frame: func(dst netip.Addr) []byte { return outer(costUDP(l.mac, costVM[f], dst)[14:]) },
			},
			costCase{
				name: "encapsulate " + family[f] + " from upstream", prog: "up_in", ifindex: l.under, want: redirect, to: l.far[f],
				frame: func(dst netip.Addr) []byte { return costUDP(l.mac, costStranger[f], dst) },
			},
			costCase{
				name: "encapsulate " + family[f] + " from the stack", prog: "door_out", ifindex: l.d.door.index, want: redirect, to: l.far[f],
				frame: func(dst netip.Addr) []byte { return costUDP(l.d.doorMAC(), costVM[f], dst) },
			},
			costCase{
				name: "give " + family[f] + " to a VM", prog: "vm_out", ifindex: l.vm, want: ok, to: l.local[f],
				frame: func(dst netip.Addr) []byte { return costUDP(l.vmMAC, costVM[f], dst) },
			},
		)
	}
	l.cases = all
}

// measure runs a program once per packet, as it changes the packet, and returns nanoseconds per packet.
func (l *costLab) measure(ctx context.Context, c *costCase) (float64, error) {
	if err := netns.Set(l.ns); err != nil { // whose interface the context speaks of
		return 0, err
	}
	p := l.d.progs[c.prog]
	var skb []byte
	if c.ifindex != 0 {
		skb = make([]byte, 192) // struct __sk_buff
		binary.NativeEndian.PutUint32(skb[40:], uint32(c.ifindex))
	}
	out := make([]byte, 512)
	run := func(n int) error {
		for range n {
			if err := ctx.Err(); err != nil {
				return err
			}
			o := &ebpf.RunOptions{Data: c.frames[l.rand.IntN(len(c.frames))], DataOut: out}
			if skb != nil {
				o.Context = skb
			}
			verdict, err := p.Run(o)
			if err != nil {
				return err
			}
			if verdict != c.want && (c.want != 0 || int32(verdict) != -1) { // to go on is as good as to pass
				return fmt.Errorf("the program said %d, not %d; drops: %v", int32(verdict), c.want, l.d.Drops())
			}
		}
		return nil
	}
	if err := run(costWarmUp); err != nil {
		return 0, err
	}
	before, err := p.Stats()
	if err != nil {
		return 0, err
	}
	if err := run(costPackets); err != nil {
		return 0, err
	}
	after, err := p.Stats()
	if err != nil {
		return 0, err
	}
	return float64((after.Runtime - before.Runtime).Nanoseconds()) / float64(after.RunCount-before.RunCount), nil
}

// costUDP is a frame with a UDP packet of 64 bytes of payload.
func costUDP(dstMAC net.HardwareAddr, src, dst netip.Addr) []byte {
	b := append(append([]byte{}, dstMAC...), 2, 0, 0, 0, 0, 1)
	if src.Is4() {
		b = append(b, 8, 0, 0x45, 0, 0, 20+8+64, 0, 0, 0x40, 0, 64, 17, 0, 0)
	} else {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 8+64, 17, 64)
	}
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	b = append(b, 0x10, 0x01, 0x10, 0x02, 0, 8+64, 0, 0)
	return append(b, make([]byte, 64)...)
}

func costLISP(dstMAC net.HardwareAddr, src, dst netip.Addr, inner []byte) []byte {
	b := append(append([]byte{}, dstMAC...), 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(36+len(inner)))
	b = append(b, 0, 0, 0x40, 0, 64, 17, 0, 0)
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, 0xc123)
	b = binary.BigEndian.AppendUint16(b, 4341)
	b = binary.BigEndian.AppendUint16(b, uint16(16+len(inner)))
	b = append(b, make([]byte, 2+8)...)
	return append(b, inner...)
}
