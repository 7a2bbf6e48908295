package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// costServices is up to how many services there are addresses for in 172.16.0.0/12.
const costServices = 1 << 20

// nthService is a service of one VM: v6 says which of its two.
func nthService(v6 bool, i int) fib.Service {
	in := nthHost(1, i)
	var out netip.Addr
	if v6 {
		b := netip.MustParseAddr("2001:dba::").As16()
		binary.BigEndian.PutUint32(b[8:], uint32(i+1)*2654435761)
		binary.BigEndian.PutUint32(b[12:], uint32(i+1))
		out = netip.AddrFrom16(b)
	} else {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], 172<<24|16<<16|uint32(i*2654435761)%costServices)
		out = netip.AddrFrom4(b)
	}
	return fib.Service{Outside: netip.PrefixFrom(out, out.BitLen()), Inside: netip.PrefixFrom(in, 128)}
}

// fewServices are about n prefixes that cover the active VMs, which are made neighbours for it.
func fewServices(v6 bool, n int) (out []fib.Service) {
	bits := 0
	for 1<<bits < n {
		bits++
	}
	for i := range 1 << bits {
		at := uint32(i) << (10 - bits)
		in, o6 := netip.MustParseAddr("2001:db8:7fff::").As16(), netip.MustParseAddr("2001:dba:7fff::").As16()
		binary.BigEndian.PutUint32(in[12:], at)
		binary.BigEndian.PutUint32(o6[12:], at)
		o4 := [4]byte{}
		binary.BigEndian.PutUint32(o4[:], 172<<24|16<<16|at)
		s := fib.Service{Outside: netip.PrefixFrom(netip.AddrFrom4(o4), 22+bits), Inside: netip.PrefixFrom(netip.AddrFrom16(in), 118+bits)}
		if v6 {
			s.Outside = netip.PrefixFrom(netip.AddrFrom16(o6), 118+bits)
		}
		out = append(out, s)
	}
	return out
}

// services makes n services with IPv4 outside and as many with IPv6 outside, and the cases in place of the others: what
// map646 costs alone, and what a packet costs that goes all the way through a D-ETR.
func (l *costLab) services(ctx context.Context, n int) error {
	n = min(n, costServices)
	var out4, out6, in []netip.Addr
	nth := func(s fib.Service, i int) (out, in netip.Addr) {
		add := func(a netip.Addr) netip.Addr {
			b := a.AsSlice()
			binary.BigEndian.PutUint32(b[len(b)-4:], binary.BigEndian.Uint32(b[len(b)-4:])|uint32(i))
			a, _ = netip.AddrFromSlice(b)
			return a
		}
		return add(s.Outside.Addr()), add(s.Inside.Addr())
	}
	for _, v6 := range []bool{false, true} {
		var all []fib.Service
		var outs, ins []netip.Addr
		if n < costActive/2 {
			all = fewServices(v6, n)
			for i := range costActive / 2 {
				size := 1024 / len(all)
				o, a := nth(all[i/size], i%size)
				outs, ins = append(outs, o), append(ins, a)
			}
		} else {
			for i := range n {
				all = append(all, nthService(v6, i))
			}
			for _, s := range all[:costActive/2] {
				outs, ins = append(outs, s.Outside.Addr()), append(ins, s.Inside.Addr())
			}
		}
		if err := l.d.SetServices(ctx, all...); err != nil {
			return err
		}
		if v6 {
			out6 = outs
		} else {
			out4, in = outs, ins
		}
	}
	rloc := []lisp.Locator{{RLOC: netip.MustParseAddr("100.65.9.9"), Priority: 1, Weight: 1, Reachable: true}}
	if err := l.d.Set(ctx,
		fib.Route{EID: costEID("2001:db8:7fff::/48"), Do: fib.Encap, Transit: true, Locators: rloc},
		fib.Route{EID: lisp.HostEID(0, costStranger[0]), Do: fib.Native}, fib.Route{EID: lisp.HostEID(0, costStranger[1]), Do: fib.Native},
	); err != nil {
		return err
	}
	if err := l.upstream(); err != nil {
		return err
	}
	const ok, redirect = 0, 7
	toPool := poolAddr(costPool, costStranger[0])
	plain := func(src, dst netip.Addr) []byte {
		b := costUDP(l.mac, src, dst)
		at := len(b) - 64 - 2
		b[at], b[at+1] = 0x12, 0x34
		if src.Is4() {
			var sum uint16
			for i := 14; i < 34; i += 2 {
				sum = onesSum(sum, binary.BigEndian.Uint16(b[i:]))
			}
			binary.BigEndian.PutUint16(b[24:], ^sum)
		}
		return b
	}
	outer := func(b []byte) []byte { return costLISP(l.mac, netip.MustParseAddr("100.66.0.1"), l.self, b[14:]) }
	l.cases = []costCase{
		l.cases[0],
		{name: "translate 4 to 6", prog: "translate", want: ok, to: out4, frame: func(a netip.Addr) []byte { return plain(costStranger[0], a) }},
		{name: "translate 6 to 4", prog: "translate", want: ok, to: in, frame: func(a netip.Addr) []byte { return plain(a, toPool) }},
		{name: "translate 6 to 6, inwards", prog: "translate", want: ok, to: out6, frame: func(a netip.Addr) []byte { return plain(costStranger[1], a) }},
		{name: "translate 6 to 6, outwards", prog: "translate", want: ok, to: in, frame: func(a netip.Addr) []byte { return plain(a, costStranger[1]) }},
		{
			name: "upstream, 4 to 6, encapsulate", prog: "up_in", ifindex: l.under, want: redirect, to: out4,
			frame: func(a netip.Addr) []byte { return plain(costStranger[0], a) },
		},
		{
			name: "decapsulate, 6 to 4, upstream", prog: "under_in", ifindex: l.under, want: redirect, to: in,
			frame: func(a netip.Addr) []byte { return outer(plain(a, toPool)) },
		},
		{
			name: "upstream, 6 to 6, encapsulate", prog: "up_in", ifindex: l.under, want: redirect, to: out6,
			frame: func(a netip.Addr) []byte { return plain(costStranger[1], a) },
		},
		{
			name: "decapsulate, 6 to 6, upstream", prog: "under_in", ifindex: l.under, want: redirect, to: in,
			frame: func(a netip.Addr) []byte { return outer(plain(a, costStranger[1])) },
		},
	}
	return nil
}

// upstream makes a way to the strangers.
func (l *costLab) upstream() error {
	for _, path := range []string{"ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+path, []byte("1"), 0); err != nil {
			return fmt.Errorf("forwarding: %w", err)
		}
	}
	for _, a := range costStranger {
		r := &netlink.Route{LinkIndex: l.under, Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
		if a.Is4() {
			r.Scope = netlink.SCOPE_LINK
		}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("route to %v: %w", a, err)
		}
	}
	return nil
}

// poolAddr is the address that stands for an IPv4 address behind a pool prefix of 96 bits.
func poolAddr(pool netip.Prefix, a netip.Addr) netip.Addr {
	b := slices.Concat(pool.Addr().AsSlice()[:12], a.AsSlice())
	return netip.AddrFrom16([16]byte(b))
}
