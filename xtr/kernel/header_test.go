package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

// tosTTL reads the two fields of an IP header and checks an IPv4 header's checksum.
func tosTTL(t *testing.T, ip []byte) (tos, ttl uint8) {
	t.Helper()
	if ip[0]>>4 == 4 {
		if sum16(ip[:20]) != 0 {
			t.Fatalf("wrong header checksum: % x", ip[:20])
		}
		return ip[1], ip[8]
	}
	return ip[0]<<4 | ip[1]>>4, ip[7]
}

// TestDecapsulateTOS is the table of RFC 6040 section 4.2 with the outer DSCP (RFC 9300 section 5.3), at both
// places of decapsulation, in all families.
func TestDecapsulateTOS(t *testing.T) {
	const notECT, ect1, ect0, ce, drop = 0, 1, 2, 3, 99
	want := [4][4]int{ // by inner and outer
		notECT: {notECT: notECT, ect0: notECT, ect1: notECT, ce: drop},
		ect0:   {notECT: ect0, ect0: ect0, ect1: ect1, ce: ce},
		ect1:   {notECT: ect1, ect0: ect1, ect1: ect1, ce: ce},
		ce:     {notECT: ce, ect0: ce, ect1: ce, ce: ce},
	}
	for _, how := range []string{"tc", "xdp"} {
		l := newLab(t, withDecap(how))
		dropped := uint64(0)
		for _, outer6 := range both {
			for _, inner6 := range both {
				l.set(l.home(vmEID.of(inner6)))
				for inner, row := range want {
					for outer, ecn := range row {
						what := fmt.Sprintf("%s, %s: inner ECN %d, outer %d", how, name(inner6, outer6), inner, outer)
						p := udp(peerMAC, peerMAC, header{farEID.of(inner6), vmEID.of(inner6), 64, 10<<2 | uint8(inner)}, 1, 2, []byte("x"))[14:]
						l.sendWire(lispFrame(header{farRLOC.of(outer6), selfRLOC.of(outer6), 64, 46<<2 | uint8(outer)}, 0xc001, 0, p))
						if ecn == drop {
							dropped++
							l.wantDrops("ecn", dropped)
							continue
						}
						got := l.vm.want()
						if tos, _ := tosTTL(t, got[14:]); tos != 46<<2|uint8(ecn) {
							t.Errorf("%s: came with DSCP %d and ECN %d, want 46 and %d", what, tos>>2, tos&3, ecn)
						}
					}
				}
			}
		}
		l.vm.none()
	}
}

// TestEncapsulateTOS: the outer header has the inner one's DSCP and ECN (RFC 6040 section 4.1, normal mode).
func TestEncapsulateTOS(t *testing.T) {
	l := newLab(t)
	for _, outer6 := range both {
		l.bothHome(outer6)
		for _, inner6 := range both {
			for tos := range 256 {
				l.vm.send(udp(vmMAC, gatewayMAC, header{vmEID.of(inner6), farEID.of(inner6), 64, uint8(tos)}, 1, 2, nil))
				got := l.wire.want()
				n := map[bool]int{false: 36, true: 56}[outer6]
				outer, _ := tosTTL(t, got[14:])
				inner, _ := tosTTL(t, got[14+n:])
				if int(outer) != tos || int(inner) != tos {
					t.Fatalf("%s: TOS %#x became %#x outside, %#x inside", name(inner6, outer6), tos, outer, inner)
				}
			}
		}
	}
}

// TestTTL: a router's hop at the encapsulating side, the smaller of both headers and a hop at the other.
func TestTTL(t *testing.T) {
	for _, how := range []string{"tc", "xdp"} {
		l := newLab(t, withDecap(how))
		for _, outer6 := range both {
			l.bothHome(outer6)
			for _, inner6 := range both {
				what := how + ", " + name(inner6, outer6)
				for _, ttl := range []uint8{2, 3, 64, 255} {
					l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.of(inner6), dst: farEID.of(inner6), ttl: ttl}, 1, 2, nil))
					got := l.wire.want()
					_, outer := tosTTL(t, got[14:])
					_, inner := tosTTL(t, got[14+map[bool]int{false: 36, true: 56}[outer6]:])
					if outer != ttl-1 || inner != ttl-1 {
						t.Errorf("%s: TTL %d became %d outside, %d inside", what, ttl, outer, inner)
					}
				}
				for _, c := range []struct{ inner, outer, want uint8 }{
					{64, 60, 59}, {60, 64, 59}, {255, 2, 1}, {2, 255, 1}, {64, 1, 0}, {1, 64, 0},
				} {
					p := udp(peerMAC, peerMAC, header{src: farEID.of(inner6), dst: vmEID.of(inner6), ttl: c.inner}, 1, 2, nil)[14:]
					l.sendWire(lispFrame(header{src: farRLOC.of(outer6), dst: selfRLOC.of(outer6), ttl: c.outer}, 0xc001, 0, p))
					if c.want == 0 {
						up := l.up.want()
						if u, ok := fib.DecodeUp(up); !ok || u.Reason != fib.UpTTL || u.Flags != fib.UpTransit {
							t.Errorf("%s: TTL %d in %d went up as %+v", what, c.inner, c.outer, u)
						}
						continue
					}
					if _, ttl := tosTTL(t, l.vm.want()[14:]); ttl != c.want {
						t.Errorf("%s: TTL %d in %d came as %d, want %d", what, c.inner, c.outer, ttl, c.want)
					}
				}
				for _, ttl := range []uint8{0, 1} {
					sent := udp(vmMAC, gatewayMAC, header{src: vmEID.of(inner6), dst: farEID.of(inner6), ttl: 1}, 1, 2, nil)
					if ttl == 0 {
						setTTL(sent[14:], 0)
					}
					l.vm.send(sent)
					up := l.up.want()
					if u, ok := fib.DecodeUp(up); !ok || u != (fib.Up{Reason: fib.UpTTL, Port: l.port}) || !bytes.Equal(up[14:], sent[14:]) {
						t.Errorf("%s: TTL %d from the VM went up as %+v: % x", what, ttl, u, up)
					}
				}
			}
		}
	}
}

func setTTL(ip []byte, ttl uint8) {
	if ip[0]>>4 == 4 {
		ip[8] = ttl
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], sum16(ip[:20]))
	} else {
		ip[7] = ttl
	}
}

// TestEntropy: a flow keeps its outer source port; flows have different ones; the fragments of an IPv4
// packet have one.
func TestEntropy(t *testing.T) {
	l := newLab(t)
	for _, v6 := range both {
		l.bothHome(v6)
		ports := map[uint16]int{}
		at := 14 + map[bool]int{false: 20, true: 40}[v6]
		for i := range 200 {
			p := udp(vmMAC, gatewayMAC, header{src: vmEID.of(v6), dst: farEID.of(v6)}, uint16(1000+i/2), 2, nil)
			l.vm.send(p)
			ports[binary.BigEndian.Uint16(l.wire.want()[at:])]++
		}
		if len(ports) < 95 {
			t.Errorf("100 flows have %d source ports", len(ports))
		}
	}
	l.bothHome(false)
	seen := map[uint16]bool{}
	for i := range 3 {
		p := udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: farEID.v4}, uint16(i), 2, make([]byte, 64))
		binary.BigEndian.PutUint16(p[20:], uint16(i*8)|map[bool]uint16{false: 0x2000}[i == 2])
		binary.BigEndian.PutUint16(p[24:], 0)
		binary.BigEndian.PutUint16(p[24:], sum16(p[14:34]))
		l.vm.send(p)
		got := l.wire.want()
		seen[binary.BigEndian.Uint16(got[34:])] = true
		if !bytes.Equal(got[50:], hop(p[14:])) {
			t.Fatalf("a fragment changed: % x, was % x", got[50:], p[14:])
		}
	}
	if len(seen) != 1 {
		t.Errorf("3 fragments of a packet have source ports %v", seen)
	}
}

// TestTooBig: what does not fit the path goes up, with the path's MTU.
func TestTooBig(t *testing.T) {
	l := newLab(t)
	for _, outer6 := range both {
		for _, inner6 := range both {
			for _, c := range []struct {
				route uint16
				want  int
			}{
				{0, 1444}, {1400, 1400}, {9000, map[bool]int{false: 1464, true: 1444}[outer6]},
			} {
				l.bothHome(outer6)
				r := to(host(farEID.of(inner6)), farRLOC.of(outer6))
				r.MTU = c.route
				l.set(r)
				headers := map[bool]int{false: 28, true: 48}[inner6]
				for extra := range 2 {
					sent := udp(vmMAC, gatewayMAC, header{src: vmEID.of(inner6), dst: farEID.of(inner6)}, 1, 2, make([]byte, c.want-headers+extra))
					l.vm.send(sent)
					if extra == 0 {
						if got := l.wire.want(); len(got) != 14+c.want+map[bool]int{false: 36, true: 56}[outer6] {
							t.Errorf("%d bytes came", len(got))
						}
						continue
					}
					up := l.up.want()
					u, ok := fib.DecodeUp(up)
					if want := (fib.Up{Reason: fib.UpTooBig, Port: l.port, Seq: uint32(c.want)}); !ok || u != want || !bytes.Equal(up[14:], sent[14:]) {
						t.Errorf("%s, MTU %d: went up as %+v, want %+v", name(inner6, outer6), c.route, u, want)
					}
				}
			}
		}
	}
	l.wire.none()
}

// TestTooBigForVM: neither does the VM get what its interface does not take.
func TestTooBigForVM(t *testing.T) {
	l := newLab(t)
	l.must(l.far.nl.LinkSetMTU(l.far.link("u1"), 9000))
	l.must(l.nl.LinkSetMTU(l.link("u0"), 9000))
	for _, v6 := range both {
		l.set(l.home(vmEID.of(v6)))
		headers := map[bool]int{false: 28, true: 48}[v6]
		for extra := range 2 {
			inner := udp(peerMAC, peerMAC, header{src: farEID.of(v6), dst: vmEID.of(v6)}, 1, 2, make([]byte, 1500-headers+extra))[14:]
			l.sendWire(lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4}, 0xc001, 0, inner))
			if extra == 0 {
				l.vm.want()
				continue
			}
			up := l.up.want()
			if u, ok := fib.DecodeUp(up); !ok || u != (fib.Up{Reason: fib.UpTooBig, Flags: fib.UpTransit, Seq: 1500}) || !bytes.Equal(up[14:], inner) {
				t.Errorf("went up as %+v", u)
			}
		}
	}
	l.vm.none()
}

// syn is a SYN with options.
func syn(h header, options ...layers.TCPOption) []byte {
	tcp := &layers.TCP{SrcPort: 1, DstPort: 2, Seq: 7, SYN: true, Window: 1000, Options: options}
	return frame(vmMAC, gatewayMAC, h, layers.IPProtocolTCP, tcp, gopacket.Payload(nil))
}

func mss(n uint16) layers.TCPOption {
	return layers.TCPOption{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: binary.BigEndian.AppendUint16(nil, n)}
}

// TestMSS: a SYN offers no more than fits, at even and odd places, whole and with a checksum that is only
// begun; nothing else is touched.
func TestMSS(t *testing.T) {
	nop := layers.TCPOption{OptionType: layers.TCPOptionKindNop}
	scale := layers.TCPOption{OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3, OptionData: []byte{7}}
	l := newLab(t)
	l.bothHome(false)
	for _, v6 := range both {
		h := header{src: vmEID.of(v6), dst: farEID.of(v6)}
		fits := uint16(1444 - 40)
		if v6 {
			fits = 1444 - 60
		}
		for _, c := range []struct {
			options []layers.TCPOption
			at      int // of the value in the TCP header
			want    uint16
		}{
			{[]layers.TCPOption{mss(1460)}, 22, fits},
			{[]layers.TCPOption{mss(9000), nop, scale}, 22, fits},
			{[]layers.TCPOption{nop, mss(1460)}, 23, fits},
			{[]layers.TCPOption{scale, mss(1460)}, 25, fits},
			{[]layers.TCPOption{scale, nop, nop, nop, mss(65535)}, 28, fits},
			{[]layers.TCPOption{mss(1200)}, 22, 1200},
			{[]layers.TCPOption{mss(fits)}, 22, fits},
		} {
			for _, partial := range []bool{false, true} {
				sent := syn(h, c.options...)
				ip := 20
				if v6 {
					ip = 40
				}
				vnet := make([]byte, 10)
				if partial {
					// As a guest leaves it to the device: only the pseudo-header is in the sum.
					vnet[0] = 1
					binary.NativeEndian.PutUint16(vnet[6:], uint16(14+ip))
					binary.NativeEndian.PutUint16(vnet[8:], 16)
					binary.BigEndian.PutUint16(sent[14+ip+16:], ^pseudoSum(h, 6, len(sent)-14-ip))
				}
				if _, err := l.vm.f.Write(append(vnet, sent...)); err != nil {
					t.Fatal(err)
				}
				got := l.wire.want()[14+36:]
				tcp := got[ip:]
				if v := binary.BigEndian.Uint16(tcp[c.at:]); v != c.want {
					t.Errorf("%v: MSS %d went out, want %d", c.options, v, c.want)
				}
				sum := uint32(pseudoSum(h, 6, len(tcp)) ^ 0xffff)
				if partial {
					// The packet socket sees it before the sum is made, as a card would.
					if b := binary.BigEndian.Uint16(tcp[16:]); b != uint16(sum) {
						t.Errorf("%v: the begun checksum is %#x, want %#x", c.options, b, sum)
					}
					continue
				}
				if s := sum + uint32(^sum16(tcp)); uint16(s)+uint16(s>>16) != 0xffff {
					t.Errorf("%v: wrong TCP checksum after the change", c.options)
				}
				// All but MSS and checksum is as it was.
				was := hop(sent[14:])
				copy(was[ip+c.at:], tcp[c.at:c.at+2])
				copy(was[ip+16:], tcp[16:18])
				if !bytes.Equal(got, was) {
					t.Errorf("got  % x\nwant % x", got, was)
				}
			}
		}
		// No SYN, no change.
		tcp := &layers.TCP{SrcPort: 1, DstPort: 2, ACK: true, Window: 1000, Options: []layers.TCPOption{mss(9000)}}
		sent := frame(vmMAC, gatewayMAC, h, layers.IPProtocolTCP, tcp, gopacket.Payload(nil))
		l.vm.send(sent)
		if got := l.wire.want()[14+36:]; !bytes.Equal(got, hop(sent[14:])) {
			t.Errorf("got  % x\nwant % x", got, hop(sent[14:]))
		}
	}
}

// pseudoSum is the complement of the sum of a pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
func pseudoSum(h header, proto byte, n int) uint16 {
	b := append(h.src.AsSlice(), h.dst.AsSlice()...)
	b = append(b, 0, proto)
	return sum16(binary.BigEndian.AppendUint16(b, uint16(n)))
}

// TestNeverForwarded: multicast, broadcast and link-local destinations are the host's, not ours.
func TestNeverForwarded(t *testing.T) {
	l := newLab(t)
	l.bothHome(false)
	l.set(to(mustEID("0.0.0.0/0"), farRLOC.v4), to(mustEID("::/0"), farRLOC.v4))
	for _, dst := range []string{"224.0.0.1", "239.1.2.3", "255.255.255.255", "169.254.1.1", "127.0.0.1", "0.0.0.0", "ff02::1", "ff0e::1", "fe80::1", "::1", "::"} {
		a := netip.MustParseAddr(dst)
		l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.of(a.Is6()), dst: a}, 1, 2, nil))
		inner := udp(vmMAC, gatewayMAC, header{src: farEID.of(a.Is6()), dst: a}, 1, 2, []byte("inner"))[14:]
		l.sendWire(lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4}, 0xc001, 0, inner))
	}
	l.wantDrops("malformed", 11) // those that came decapsulated
	l.wire.none()
	l.up.none()
	if f := l.vm.recv(30 * time.Millisecond); f != nil && bytes.Contains(f, []byte("inner")) {
		t.Fatalf("came: %s", show(f)) // the host's own ICMP errors may come
	}
	l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: netip.MustParseAddr("203.0.113.1")}, 1, 2, nil))
	l.wire.want()
}

// TestMalformed: what is no sound packet is dropped and counted, wherever it comes from.
func TestMalformed(t *testing.T) {
	l := newLab(t)
	l.bothHome(false)
	n := uint64(0)
	bad := func(what string, spoil func(f []byte) []byte, v6 bool) {
		t.Helper()
		f := spoil(udp(vmMAC, gatewayMAC, header{src: vmEID.of(v6), dst: farEID.of(v6)}, 1, 2, []byte("hello")))
		l.vm.send(f)
		n++
		l.wantDrops("malformed", n)
		f = spoil(udp(vmMAC, gatewayMAC, header{src: farEID.of(v6), dst: vmEID.of(v6)}, 1, 2, []byte("hello")))
		l.sendWire(lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4}, 0xc001, 0, f[14:]))
		n++
		l.wantDrops("malformed", n)
	}
	for _, v6 := range both {
		bad("cut short", func(f []byte) []byte { return f[:len(f)-1] }, v6)
		bad("header only in part", func(f []byte) []byte { return f[:14+19] }, v6)
		bad("unknown version", func(f []byte) []byte { f[14] = 0x75; return f }, v6)
	}
	bad("header too short", func(f []byte) []byte { f[14] = 0x44; return f }, false)
	bad("header longer than the packet", func(f []byte) []byte { f[14] = 0x4f; return f }, false)
	bad("shorter than its header", func(f []byte) []byte { f[16], f[17] = 0, 19; return f }, false)
	bad("IPv4-mapped", func(f []byte) []byte {
		copy(f[14+24:], netip.AddrFrom16(farEID.v4.As16()).AsSlice())
		return f
	}, true)
	encrypted := lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4}, 0xc001, 0, udp(vmMAC, gatewayMAC, header{src: farEID.v4, dst: vmEID.v4}, 1, 2, nil)[14:])
	encrypted[14+28] |= 1
	l.sendWire(encrypted)
	l.wantDrops("malformed", n+1)
	l.vm.none()
	l.wire.none()
}

// TestPadding: bytes behind the packet, as short frames have them, do not make it longer.
func TestPadding(t *testing.T) {
	l := newLab(t)
	l.bothHome(false)
	p := udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: farEID.v4}, 1, 2, nil)
	l.vm.send(append(bytes.Clone(p), make([]byte, 18)...))
	got := l.wire.want()
	if n := binary.BigEndian.Uint16(got[16:]); int(n) != 36+len(p)-14 || !bytes.Equal(got[50:50+len(p)-14], hop(p[14:])) {
		t.Fatalf("outer length %d; % x", n, got)
	}
	in := udp(vmMAC, gatewayMAC, header{src: farEID.v4, dst: vmEID.v4}, 1, 2, nil)[14:]
	l.sendWire(append(lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4}, 0xc001, 0, in), make([]byte, 7)...))
	if got := l.vm.want(); !bytes.HasPrefix(got[14:], hop(in)) {
		t.Fatalf("% x", got)
	}
}
