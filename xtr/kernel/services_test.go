package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

var (
	labPool  = netip.MustParsePrefix("2001:db8:64::/96")
	service4 = netip.MustParseAddr("198.51.100.77") // of the far VM
	service6 = netip.MustParseAddr("2001:db8:e1d:5e::77")
)

func service(outside, inside string) fib.Service {
	prefix := func(s string) netip.Prefix {
		if a, err := netip.ParseAddr(s); err == nil {
			return netip.PrefixFrom(a, a.BitLen())
		}
		return netip.MustParsePrefix(s)
	}
	return fib.Service{Outside: prefix(outside), Inside: prefix(inside)}
}

// labServices are the services of the far VM and of the VM here.
func labServices() []fib.Service {
	return []fib.Service{
		service(service4.String(), farEID.v6.String()), service(service6.String(), farEID.v6.String()),
		service("198.51.100.78", vmEID.v6.String()),
	}
}

// anchorLab is a D-ETR with an upstream, that translates for the far VM.
type anchorLab struct {
	*lab
	inet   *conn
	golang *map646.Translator
}

var upstreamHop = net.HardwareAddr{2, 0, 0, 0, 0, 0x77}

func newAnchorLab(t *testing.T, opts ...option) *anchorLab {
	t.Helper()
	opts = append([]option{asAnchor, func(c *Config, _ *Port) { c.Pool = labPool }}, opts...)
	l := &anchorLab{lab: newLab(t, opts...)}
	inet := newSpace(t)
	veth(l.space, "up0", inet, "inet0")
	l.addr("up0", "100.65.1.2/24")
	l.addr("up0", "2001:db8:165::2/64")
	l.sysctl("ipv4/conf/all/forwarding", "1")
	l.sysctl("ipv6/conf/all/forwarding", "1")
	l.route("192.0.2.0/24", "100.65.1.1", "up0")
	l.route("2001:db8:c::/64", "2001:db8:165::1", "up0")
	l.neigh("up0", "100.65.1.1", upstreamHop)
	l.neigh("up0", "2001:db8:165::1", upstreamHop)
	upIf := l.index("up0")
	var err error
	l.do(func() { err = l.d.AttachUpstream(upIf) })
	l.must(err)
	l.inet = inet.packet("inet0")
	l.setServices(labServices()...)
	l.golang, err = map646.New(map646.Config{
		Pool: labPool, Own: []netip.Prefix{own[0].Prefix, own[1].Prefix}, LowestMTU6: max(l.cfg.LowestMTU6, 1444),
	})
	l.must(err)
	l.must(l.golang.SetServices(context.Background(), labServices()...))
	return l
}

func (l *lab) setServices(s ...fib.Service) {
	l.t.Helper()
	l.must(l.d.SetServices(l.t.Context(), s...))
}

// fromInternet sends a packet to the upstream interface.
func (l *anchorLab) fromInternet(ip []byte) {
	l.inet.send(append(append(append([]byte{}, l.link("up0").Attrs().HardwareAddr...), upstreamHop...), append(etherType(ip[0]>>4 == 6), ip...)...))
}

// fromFar sends a packet as the far xTR does.
func (l *anchorLab) fromFar(outer6 bool, ip []byte) {
	tos := ip[1]
	if ip[0]>>4 == 6 {
		tos = ip[0]<<4 | ip[1]>>4
	}
	l.sendWire(lispFrame(header{src: farRLOC.of(outer6), dst: selfRLOC.of(outer6), ttl: 64, tos: tos}, 0xc001, 0, ip))
}

// golden is what Go makes of a packet, after a hop.
func (l *anchorLab) golden(ip []byte) []byte {
	l.t.Helper()
	r := l.golang.Translate(ip, map646.Options{})
	if len(r.Packets) != 1 {
		l.t.Fatalf("Go says %v of % x", r.Reason, ip)
	}
	return hop(r.Packets[0])
}

func (l *anchorLab) same(what string, from, got, want []byte) {
	l.t.Helper()
	if !bytes.Equal(anyID(from, got), anyID(from, want)) {
		l.t.Fatalf("%s:\nsent % x\ngot  % x\nwant % x", what, from, got, want)
	}
}

// sample is a packet of a kind that the kernel translates.
type sample struct {
	name   string
	packet func(h header) []byte
}

func isV6(h header) bool { return h.src.Is6() }

func samples() []sample {
	tcp := func(h header) []byte {
		return frame(peerMAC, peerMAC, h, layers.IPProtocolTCP, &layers.TCP{SrcPort: 80, DstPort: 3000, Seq: 7, ACK: true, Window: 9}, gopacket.Payload("tcp"))[14:]
	}
	return []sample{
		{"udp", func(h header) []byte { return udp(peerMAC, peerMAC, h, 1, 2, []byte("hello"))[14:] }},
		{"empty udp", func(h header) []byte { return udp(peerMAC, peerMAC, h, 1, 2, nil)[14:] }},
		{"tcp", tcp},
		{"echo", func(h header) []byte { return echo(h, true) }},
		{"echo reply", func(h header) []byte { return echo(h, false) }},
		{"first fragment", func(h header) []byte { return fragmentOf(tcp(h), true) }},
		{"last fragment", func(h header) []byte { return fragmentOf(tcp(h), false) }},
	}
}

func echo(h header, request bool) []byte {
	data := []byte{8, 0, 0, 0, 0, 1, 0, 2, 'd', 'a', 't', 'a', '!'}
	if isV6(h) {
		data[0] = 128
	}
	if !request {
		data[0] = map[bool]byte{false: 0, true: 129}[isV6(h)]
	}
	sum := data
	if isV6(h) {
		sum = append(binary.BigEndian.AppendUint32(append(h.src.AsSlice(), h.dst.AsSlice()...), uint32(len(data))), 0, 0, 0, 58)
		sum = append(sum, data...)
	}
	binary.BigEndian.PutUint16(data[2:], sum16(sum))
	p := udp(peerMAC, peerMAC, h, 0, 0, data[8:])[14:]
	if isV6(h) {
		p[6] = 58
		copy(p[40:], data)
		return p
	}
	p[9] = 1
	mend4(p)
	copy(p[20:], data)
	return p
}

// fragmentOf is the first 24 bytes behind the header, or some that are said to be farther behind.
func fragmentOf(p []byte, first bool) []byte {
	if p[0]>>4 == 4 {
		p = bytes.Clone(p[:20+24])
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[4:], 0xabcd)
		binary.BigEndian.PutUint16(p[6:], 0x2000)
		if !first {
			binary.BigEndian.PutUint16(p[6:], 3)
		}
		mend4(p)
		return p
	}
	f := []byte{p[6], 0, 0, 1, 0, 0, 0xab, 0xcd}
	if !first {
		f[3] = 24
	}
	p = append(append(bytes.Clone(p[:40]), f...), p[40:64]...)
	p[6] = 44
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
	return p
}

// TestServiceIn: what comes from the Internet for a service address is translated, and encapsulated to where the VM is.
func TestServiceIn(t *testing.T) {
	l := newAnchorLab(t)
	for _, outer6 := range both {
		l.set(to(host(farEID.v6), farRLOC.of(outer6)))
		for _, tr := range samples() {
			for _, v6 := range both {
				h := header{src: outEID.of(v6), dst: addrs(service4.String(), service6.String()).of(v6), ttl: 33, tos: 0xb9}
				p := tr.packet(h)
				l.fromInternet(p)
				got := l.wire.want()
				l.same(fmt.Sprintf("%s, %s", tr.name, name(v6, outer6)), p, got[14+map[bool]int{false: 36, true: 56}[outer6]:], l.golden(p))
			}
		}
	}
	l.inet.none()
	l.up.none()
}

// TestServiceOut: what a VM sends to the IPv4 Internet, or from behind an IPv6 service address to the Internet, leaves
// by the host's routes.
func TestServiceOut(t *testing.T) {
	for _, how := range []string{"tc", "xdp"} {
		l := newAnchorLab(t, withDecap(how))
		l.set(fib.Route{EID: host(outEID.v4), Do: fib.Native}, fib.Route{EID: host(outEID.v6), Do: fib.Native})
		for _, outer6 := range both {
			for _, tr := range samples() {
				for _, dst := range []netip.Addr{map646.Embed(labPool, outEID.v4), outEID.v6} {
					p := tr.packet(header{src: farEID.v6, dst: dst, ttl: 33, tos: 0xb9})
					l.fromFar(outer6, p)
					got := l.inet.want()
					l.same(fmt.Sprintf("%s: %s to %v", how, tr.name, dst), p, got[14:], l.golden(p))
					if !bytes.Equal(got[12:14], etherType(got[14]>>4 == 6)) || !bytes.Equal(got[:6], upstreamHop) {
						t.Fatalf("frame % x", got[:14])
					}
				}
			}
		}
		l.up.none()
		l.wire.none()
	}
}

// TestServiceReencapsulated: translations between two LISP packets: of a VM to the service address of another, of an
// IPv4 EID or another LISP site to a service address, and of a VM to an IPv4 host of another LISP site.
func TestServiceReencapsulated(t *testing.T) {
	for _, how := range []string{"tc", "xdp"} {
		l := newAnchorLab(t, withDecap(how))
		for _, in6 := range both {
			for _, out6 := range both {
				for _, e := range []netip.Addr{farEID.v6, vmEID.v6, outEID.v4} {
					r := to(host(e), farRLOC.of(out6))
					r.Transit = true
					l.set(r)
				}
				for _, tr := range samples() {
					for _, c := range []struct {
						what string
						h    header
					}{
						{"to another's IPv4 service", header{src: farEID.v6, dst: map646.Embed(labPool, netip.MustParseAddr("198.51.100.78"))}},
						{"to another's IPv6 service", header{src: vmEID.v6, dst: service6}},
						{"from an IPv4 EID", header{src: vmEID.v4, dst: service4}},
						{"from a service to a service", header{src: netip.MustParseAddr("198.51.100.78"), dst: service4}},
						{"to IPv4 elsewhere", header{src: farEID.v6, dst: map646.Embed(labPool, outEID.v4)}},
					} {
						c.h.ttl, c.h.tos = 33, 0xb9
						p := tr.packet(c.h)
						if c.what == "to another's IPv4 service" && p[6] == 44 {
							continue // for Go
						}
						what := fmt.Sprintf("%s: %s %s, %v then %v", how, tr.name, c.what, in6, out6)
						l.sendWire(lispFrame(header{src: farRLOC.of(in6), dst: selfRLOC.of(in6), ttl: 33, tos: 0xb9}, 0xc001, 0, p))
						got := l.wire.recv(soon)
						if got == nil {
							t.Fatalf("%s: nothing came; drops %v, ups %v", what, l.d.Drops(), l.d.Ups())
						}
						n := 14 + map[bool]int{false: 36, true: 56}[out6]
						if !bytes.Equal(got[12:14], etherType(out6)) {
							t.Fatalf("%s: frame % x", what, got)
						}
						l.same(what, p, got[n:], l.golden(p))
						checkOuter(t, what, got[14:], out6)
					}
				}
			}
		}
		l.up.none()
		l.inet.none()
	}
}

// checkOuter checks lengths and checksum of outer headers.
func checkOuter(t *testing.T, what string, got []byte, v6 bool) {
	t.Helper()
	if v6 {
		if int(binary.BigEndian.Uint16(got[4:])) != len(got)-40 || int(binary.BigEndian.Uint16(got[44:])) != len(got)-40 {
			t.Fatalf("%s: outer lengths: % x", what, got[:56])
		}
		return
	}
	if int(binary.BigEndian.Uint16(got[2:])) != len(got) || int(binary.BigEndian.Uint16(got[24:])) != len(got)-20 || sum16(got[:20]) != 0 {
		t.Fatalf("%s: outer lengths and checksum: % x", what, got[:36])
	}
}

// TestServiceDelivered: a D-ETR that has the VM itself gives it what was translated.
func TestServiceDelivered(t *testing.T) {
	l := newAnchorLab(t)
	l.set(l.home(vmEID.v6))
	for _, tr := range samples() {
		p := tr.packet(header{src: outEID.v4, dst: netip.MustParseAddr("198.51.100.78"), ttl: 33})
		l.fromInternet(p)
		l.same(tr.name, p, l.vm.want()[14:], l.golden(p))
		p = tr.packet(header{src: farEID.v4, dst: netip.MustParseAddr("198.51.100.78"), ttl: 33})
		l.fromFar(false, p)
		l.same(tr.name+" in LISP", p, l.vm.want()[14:], l.golden(p))
	}
}

// TestServiceDoor: what Go sends down is translated as if it had just come, what the host's stack sends too; and what Go
// has translated is not translated again.
func TestServiceDoor(t *testing.T) {
	l := newAnchorLab(t)
	l.set(to(host(farEID.v6), farRLOC.v4), fib.Route{EID: host(outEID.v4), Do: fib.Native})
	down := func(flags fib.DownFlags, ip []byte) {
		f := append(make([]byte, 12), append(etherType(ip[0]>>4 == 6), ip...)...)
		fib.Down{Do: fib.DownForward, Flags: flags}.Append(f[:0])
		l.up.send(f)
	}
	for _, tr := range samples() {
		p := tr.packet(header{src: outEID.v4, dst: service4, ttl: 33})
		for range 2 { // and once more what comes out
			down(0, p)
			got := l.wire.want()[14+36:]
			if p[0]>>4 == 4 {
				l.same(tr.name, p, got, l.golden(p))
				p = got
			} else {
				l.same(tr.name+" again", p, got, hop(p))
			}
		}
		p = tr.packet(header{src: farEID.v6, dst: map646.Embed(labPool, outEID.v4), ttl: 33})
		for range 2 {
			down(fib.DownTransit, p)
			got := l.inet.want()[14:]
			if p[0]>>4 == 6 {
				l.same(tr.name, p, got, l.golden(p))
				p = got
			} else {
				l.same(tr.name+" again", p, got, hop(p))
			}
		}
	}
	// An ICMP error of Go's own about what was translated here is for Go to translate.
	down(0, echo(header{src: own[1].Prefix.Addr().Next(), dst: map646.Embed(labPool, outEID.v4)}, true))
	if u, _ := fib.DecodeUp(l.up.want()); u != (fib.Up{Reason: fib.UpTranslate, Flags: fib.UpTransit}) {
		t.Errorf("went up as %+v", u)
	}
	// The host itself is a client.
	c := l.dialFrom(service4)
	if _, err := c.Write([]byte("from the host")); err != nil {
		t.Fatal(err)
	}
	got := l.wire.want()[14+36:]
	if got[0]>>4 != 6 || !bytes.Equal(got[24:40], farEID.v6.AsSlice()) || !bytes.HasSuffix(got, []byte("from the host")) {
		t.Fatalf("% x", got)
	}
	if !bytes.HasPrefix(got[8:], labPool.Addr().AsSlice()[:12]) {
		t.Fatalf("the source is no pool address: % x", got)
	}
}

// dialFrom is a UDP socket of the host.
func (l *lab) dialFrom(dst netip.Addr) net.Conn {
	l.t.Helper()
	var c net.Conn
	var err error
	l.do(func() { c, err = net.Dial("udp", netip.AddrPortFrom(dst, 9).String()) })
	l.must(err)
	l.t.Cleanup(func() { c.Close() })
	return c
}

// TestServiceHandedUp: what the kernel does not translate goes up as it came, but for the outer headers.
func TestServiceHandedUp(t *testing.T) {
	for _, how := range []string{"tc", "xdp"} {
		l := newAnchorLab(t, withDecap(how))
		r := to(host(farEID.v6), farRLOC.v4)
		r.MTU = 1400
		l.set(r, fib.Route{EID: host(outEID.v4), Do: fib.Native})
		in := header{src: outEID.v4, dst: service4, ttl: 33, tos: 0xb9}
		out := header{src: farEID.v6, dst: map646.Embed(labPool, outEID.v4), ttl: 33, tos: 0xb9}
		edit := func(p []byte, f func(p []byte)) []byte {
			p = bytes.Clone(p)
			f(p)
			if p[0]>>4 == 4 {
				mend4(p)
			}
			return p
		}
		big := func(h header, n int, df bool) []byte {
			return edit(udp(peerMAC, peerMAC, h, 1, 2, make([]byte, n-28))[14:], func(p []byte) {
				p[6] = map[bool]byte{true: 0x40}[df]
			})
		}
		plain4, plain6 := udp(peerMAC, peerMAC, in, 1, 2, []byte("hello"))[14:], udp(peerMAC, peerMAC, out, 1, 2, []byte("hello"))[14:]
		for _, c := range []struct {
			what string
			p    []byte
			seq  uint32
		}{
			{"options", append(append(edit(plain4[:20], func(p []byte) {
				p[0] = 0x46
				binary.BigEndian.PutUint16(p[2:], uint16(len(plain4)+4))
			}), 1, 1, 1, 0), plain4[20:]...), 0},
			{"no checksum", edit(plain4, func(p []byte) { p[26], p[27] = 0, 0 }), 0},
			{"ICMP error", edit(echo(in, true), func(p []byte) { p[20] = 3 }), 0},
			{"fragmented ICMP", fragmentOf(append(echo(in, true), make([]byte, 20)...), true), 0},
			{"another protocol", edit(plain4, func(p []byte) { p[9] = 132 }), 0},
			{"too big, DF", big(in, 1381, true), 1400},
			{"too big", big(in, 1381, false), 1400},
			{"source that no host has", edit(plain4, func(p []byte) { p[12] = 127 }), 0},
			{"extension header", edit(append(append(bytes.Clone(plain6[:40]), 17, 0, 1, 4, 0, 0, 0, 0), plain6[40:]...), func(p []byte) {
				p[6] = 60
				binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
			}), 0},
			{"ICMPv6 error", edit(echo(out, true), func(p []byte) { p[40] = 1 }), 0},
			{"no service", edit(plain6, func(p []byte) { copy(p[8:], netip.MustParseAddr("2001:db8:e1d:1::99").AsSlice()) }), 0},
			{"destination that no host has", edit(plain6, func(p []byte) { p[36] = 127 }), 0},
			{"TCP cut short", edit(plain4, func(p []byte) { p[9] = 6 }), 0},
		} {
			if c.what == "options" { // its checksum is not that of its first 20 bytes
				c.p = edit(c.p, func([]byte) {})
			}
			was := l.d.Ups()["translate"]
			fl := fib.UpFlags(0)
			if c.p[0]>>4 == 4 {
				l.fromInternet(c.p)
			} else {
				fl = fib.UpTransit
				l.fromFar(false, c.p)
			}
			f := l.up.recv(soon)
			if f == nil {
				t.Fatalf("%s: %s: nothing came up; drops %v", how, c.what, l.d.Drops())
			}
			if u, ok := fib.DecodeUp(f); !ok || u != (fib.Up{Reason: fib.UpTranslate, Flags: fl, Seq: c.seq}) {
				t.Errorf("%s: %s: went up as %+v", how, c.what, u)
			}
			if !bytes.Equal(f[14:], c.p) || !bytes.Equal(f[12:14], etherType(c.p[0]>>4 == 6)) {
				t.Errorf("%s: %s:\nsent % x\ngot  % x", how, c.what, c.p, f[14:])
			}
			if is := l.d.Ups()["translate"]; is != was+1 {
				t.Errorf("%d more counted", is-was)
			}
		}
		// Too big for the Internet side.
		l.must(l.nl.LinkSetMTU(l.link("up0"), 1300))
		p := udp(peerMAC, peerMAC, out, 1, 2, make([]byte, 1321-48))[14:]
		l.fromFar(true, p)
		f := l.up.want()
		if u, _ := fib.DecodeUp(f); u != (fib.Up{Reason: fib.UpTranslate, Flags: fib.UpTransit, Seq: 1300}) || !bytes.Equal(f[14:], p) {
			t.Errorf("too big for upstream: went up as %+v", u)
		}
		l.fromFar(true, udp(peerMAC, peerMAC, out, 1, 2, make([]byte, 1320-48))[14:])
		if got := l.inet.want(); len(got) != 14+1300 {
			t.Errorf("%d bytes", len(got))
		}
		l.wire.none()
		l.inet.none()
	}
}

// TestServiceTTL: a packet that has lived too long is answered in its own family.
func TestServiceTTL(t *testing.T) {
	l := newAnchorLab(t)
	l.set(to(host(farEID.v6), farRLOC.v4), fib.Route{EID: host(outEID.v4), Do: fib.Native})
	for _, c := range []header{
		{src: outEID.v4, dst: service4, ttl: 1}, {src: outEID.v6, dst: service6, ttl: 1}, {src: farEID.v6, dst: map646.Embed(labPool, outEID.v4), ttl: 1},
	} {
		p := udp(peerMAC, peerMAC, c, 1, 2, nil)[14:]
		var flags fib.UpFlags
		if c.src == farEID.v6 {
			l.fromFar(false, p)
			flags = fib.UpTransit
		} else {
			l.fromInternet(p)
		}
		f := l.up.want()
		if u, _ := fib.DecodeUp(f); u != (fib.Up{Reason: fib.UpTTL, Flags: flags}) || !bytes.Equal(f[14:], p) {
			t.Errorf("%+v: went up as %+v: % x", c, u, f)
		}
	}
}

// TestServiceWaits: what waits for a route waits translated, and goes on when it comes back.
func TestServiceWaits(t *testing.T) {
	for _, how := range []string{"tc", "xdp"} {
		l := newAnchorLab(t, withDecap(how))
		for _, c := range []struct {
			h    header
			dst  netip.Addr
			from bool // the far xTR
		}{
			{header{src: outEID.v4, dst: service4, ttl: 33}, farEID.v6, false},
			{header{src: outEID.v6, dst: service6, ttl: 33}, farEID.v6, false},
			{header{src: vmEID.v6, dst: map646.Embed(labPool, service4), ttl: 33}, farEID.v6, true},
			{header{src: farEID.v6, dst: map646.Embed(labPool, outEID.v4), ttl: 33}, outEID.v4, true},
		} {
			for _, r := range []fib.Route{{Do: fib.Miss}, {Do: fib.Hold, Hold: 5}} {
				r.EID = host(c.dst)
				r.Transit = true
				l.set(r)
				p := udp(peerMAC, peerMAC, c.h, 1, 2, []byte("waits"))[14:]
				var flags fib.UpFlags
				if c.from {
					l.fromFar(true, p)
					flags = fib.UpTransit
				} else {
					l.fromInternet(p)
				}
				vnet, f := l.up.recvVnet(soon)
				want := fib.Up{Reason: fib.UpMiss, Flags: flags}
				if r.Do == fib.Hold {
					want = fib.Up{Reason: fib.UpHold, Flags: flags, Hold: 5}
				}
				golden := l.golden(p) // a hop later
				if u, _ := fib.DecodeUp(f); u != want || !bytes.Equal(f[12:14], etherType(f[14]>>4 == 6)) {
					t.Fatalf("%+v: went up as %+v", c.h, u)
				}
				l.same("waiting", p, hop(f[14:]), golden)
				go2 := to(host(c.dst), farRLOC.v6)
				go2.Transit = true
				l.set(go2)
				d := fib.Down{Do: fib.DownForward}
				if c.from {
					d.Flags |= fib.DownTransit
				}
				if r.Do == fib.Hold {
					d.Flags, d.Hold = d.Flags|fib.DownReinjected, 5
				}
				was := bytes.Clone(f[14:])
				d.Append(f[:0])
				if _, err := l.up.f.Write(append(vnet, f...)); err != nil {
					t.Fatal(err)
				}
				got := l.wire.want()
				if !bytes.Equal(got[14+56:], hop(was)) {
					t.Fatalf("came back: got % x, want % x", got[14+56:], hop(was))
				}
			}
		}
	}
}

// TestServiceRefused: the pool prefix is no way for the Internet to IPv4, and a service address no source for it.
func TestServiceRefused(t *testing.T) {
	l := newAnchorLab(t, func(c *Config, _ *Port) { c.Own = append(slices.Clone(c.Own), lisp.MakeEID(0, labPool)) })
	l.set(to(host(farEID.v6), farRLOC.v4), fib.Route{EID: host(outEID.v4), Do: fib.Native})
	send := func(h header) { l.fromInternet(udp(peerMAC, peerMAC, h, 1, 2, nil)[14:]) }
	send(header{src: outEID.v6, dst: map646.Embed(labPool, outEID.v4)})
	l.wantDrops("pool", 1)
	send(header{src: farEID.v6, dst: map646.Embed(labPool, outEID.v4)})
	send(header{src: netip.MustParseAddr("198.51.100.78"), dst: service4})
	l.wantDrops("spoofed-source", 2)
	// Another LISP site may not either.
	l.sendWire(fromTo(outRLOC.v4, selfRLOC.v4, outEID.v6, map646.Embed(labPool, outEID.v4)))
	l.wantDrops("pool", 2)
	// It may to a service.
	r := to(host(farEID.v6), farRLOC.v4)
	r.Transit = true
	l.set(r)
	l.sendWire(fromTo(outRLOC.v4, selfRLOC.v4, outEID.v4, service4))
	l.wire.want()
	l.inet.none()
	// In another instance nothing is translated.
	l.sendWire(lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4}, 0xc001, 7, udp(peerMAC, peerMAC, header{src: outEID.v4, dst: service4}, 1, 2, nil)[14:]))
	if u, ok := fib.DecodeUp(l.up.want()); !ok || u.Reason != fib.UpMiss || u.IID != 7 {
		t.Errorf("went up as %+v", u)
	}
	// Floods of what Go would have to translate are bounded.
	p := udp(peerMAC, peerMAC, header{src: netip.MustParseAddr("2001:db8:e1d:1::99"), dst: map646.Embed(labPool, outEID.v4)}, 1, 2, nil)[14:]
	f := lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4, ttl: 64}, 0xc001, 0, p)
	copy(f, l.link("u0").Attrs().HardwareAddr)
	const n = 30_000
	for range n {
		l.wire.send(f)
	}
	l.settled()
	if up, drops := l.d.Ups()["translate"], l.d.Drops()["translate-rate"]; up+drops != n || up < 1000 || drops < 1000 {
		t.Fatalf("%d went up, %d were dropped, of %d", up, drops, n)
	}
}

// settled waits until the programs have nothing to do.
func (l *lab) settled() {
	was := uint64(0)
	for range 100 {
		sum := uint64(0)
		for _, m := range []map[string]uint64{l.d.Drops(), l.d.Ups()} {
			for _, n := range m {
				sum += n
			}
		}
		if sum == was {
			return
		}
		was = sum
		time.Sleep(20 * time.Millisecond)
	}
}

// TestServiceMSS: a SYN that changes family offers what fits the tunnel as IPv6.
func TestServiceMSS(t *testing.T) {
	l := newAnchorLab(t)
	l.set(to(host(farEID.v6), farRLOC.v4))
	for _, dst := range []netip.Addr{service4, netip.MustParseAddr("198.51.100.78")} {
		l.set(to(host(vmEID.v6), farRLOC.v4))
		p := syn(header{src: outEID.v4, dst: dst}, mss(1460))[14:]
		l.fromInternet(p)
		got := l.wire.want()[14+36:]
		if v := binary.BigEndian.Uint16(got[40+22:]); v != 1444-60 {
			t.Errorf("MSS %d, want %d", v, 1444-60)
		}
		sum := uint32(pseudoSum(header{src: netip.AddrFrom16([16]byte(got[8:])), dst: netip.AddrFrom16([16]byte(got[24:]))}, 6, len(got)-40) ^ 0xffff)
		if s := sum + uint32(^sum16(got[40:])); uint16(s)+uint16(s>>16) != 0xffff {
			t.Error("wrong TCP checksum after the change")
		}
	}
}

// TestServicesSet: services are replaced whole, by Outside; each address has one, whatever the order in which that is
// said; and what is found agrees with what Go finds.
func TestServicesSet(t *testing.T) {
	l := newAnchorLab(t)
	l.must(l.d.DelServices(t.Context(), prefixesOf(labServices())...))
	for _, e := range []string{"2001:db8:e1d:1::/64", "2001:db8:e1d:2::/64"} {
		l.set(to(mustEID(e), farRLOC.v4))
	}
	golang, err := map646.New(map646.Config{Pool: labPool, Own: []netip.Prefix{own[0].Prefix, own[1].Prefix}})
	l.must(err)
	ctx := context.Background()
	set := func(s ...fib.Service) {
		t.Helper()
		l.setServices(s...)
		l.must(golang.SetServices(ctx, s...))
	}
	del := func(p ...string) {
		t.Helper()
		for _, s := range p {
			out := service(s, "::1").Outside
			l.must(l.d.DelServices(ctx, out))
			l.must(golang.DelServices(ctx, out))
		}
	}
	agree := func() {
		t.Helper()
		if d := cmp.Diff(golang.Services(), l.d.Services(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
			t.Fatalf("services (-Go +kernel):\n%s", d)
		}
		for i := range 6 {
			in := udp(peerMAC, peerMAC, header{src: outEID.v4, dst: netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), ttl: 9}, 1, 2, nil)[14:]
			l.fromInternet(in)
			if r := golang.Translate(in, map646.Options{}); len(r.Packets) == 1 {
				l.same("in", in, l.wire.want()[14+36:], hop(r.Packets[0]))
			} else if got := l.wire.recv(5 * time.Millisecond); got != nil {
				t.Fatalf("%d: came out: % x", i, got)
			} else {
				l.up.recv(5 * time.Millisecond) // a miss
			}
			out := udp(peerMAC, peerMAC, header{src: netip.AddrFrom16([16]byte(append(vmEID.v6.AsSlice()[:15:15], byte(i)))), dst: map646.Embed(labPool, outEID.v4), ttl: 9}, 1, 2, nil)[14:]
			l.fromFar(false, out)
			if r := golang.Translate(out, map646.Options{}); len(r.Packets) == 1 {
				l.same("out", out, l.inet.want()[14:], hop(r.Packets[0]))
			} else if u, _ := fib.DecodeUp(l.up.want()); u.Reason != fib.UpTranslate {
				t.Fatalf("%d: went up as %+v", i, u)
			}
		}
	}
	l.set(fib.Route{EID: host(outEID.v4), Do: fib.Native})
	agree()
	const a, b, c = "2001:db8:e1d:1::1", "2001:db8:e1d:1::2", "2001:db8:e1d:1::3"
	set(service("198.51.100.1", a))
	agree()
	set(service("198.51.100.1", a), service("198.51.100.2", b))
	agree()
	set(service("198.51.100.1", b), service("198.51.100.2", a)) // they change places
	agree()
	set(service("198.51.100.3", a)) // two with one Inside: the last one set counts
	agree()
	del("198.51.100.3")
	agree()
	set(service("198.51.100.3", a), service("198.51.100.1", c))
	del("198.51.100.2")
	agree()
	set(service("198.51.100.4/31", "2001:db8:e1d:1::4/127"), service("198.51.100.0/29", "2001:db8:e1d:2::/125"))
	agree()
	set(service("198.51.100.5", "2001:db8:e1d:1::5"))
	agree()
	del("198.51.100.5", "198.51.100.4/31", "198.51.100.99")
	agree()
	// And so they are found after a restart.
	was := l.d.Services()
	l.close()
	l.open()
	if d := cmp.Diff(was, l.d.Services(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" || len(was) != 3 {
		t.Fatalf("services after the restart (-was +is):\n%s", d)
	}
	agree()
	del("198.51.100.0/29", "198.51.100.1", "198.51.100.3")
	agree()
	if c := l.d.conf.Flags & (confServices4 | confServices6 | confRanges); c != 0 {
		t.Errorf("flags %#x without services", c)
	}
}

func prefixesOf(all []fib.Service) (out []netip.Prefix) {
	for _, s := range all {
		out = append(out, s.Outside)
	}
	return out
}
