package map646

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

// The example of RFC 6296 section 3.6, with the values of its text.
func TestNPTExample(t *testing.T) {
	n := makeNPT(prefix("fd01:203:405::/48"), prefix("2001:db8:1::/48"))
	if n.in != 0xd54f && n.out != 0xd54f {
		t.Errorf("adjustments %#x and %#x, want 0xd54f for one", n.out, n.in)
	}
	tr := newTranslator(t, Config{}, service("2001:db8:1::/48", "fd01:203:405::/48"))
	out := only(t, tr, udpPacket("fd01:203:405:1::1234", "2001:db8:ffff::1", 9), Options{})
	if got := endsOf(out).src; got != "2001:db8:1:d550::1234" {
		t.Errorf("out as %s", got)
	}
	in := only(t, tr, udpPacket("2001:db8:ffff::1", "2001:db8:1:d550::1234", 9), Options{})
	if got := endsOf(in).dst; got != "fd01:203:405:1::1234" {
		t.Errorf("in as %s", got)
	}
}

// Prefixes of every length: an address comes back, the sum of its words stays, and so the packet's checksum; the right
// word is adjusted (RFC 6296 sections 2.6, 3.4, 3.5).
func TestNPTLengths(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	random := func(first byte) netip.Addr {
		var b [16]byte
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		b[0] = first
		return netip.AddrFrom16(b)
	}
	for bits := 8; bits <= 112; bits++ {
		for range 20 {
			s := fib.Service{Outside: netip.PrefixFrom(random(0x20), bits).Masked(), Inside: netip.PrefixFrom(random(0xfd), bits).Masked()}
			if s.Valid() != nil {
				continue
			}
			tr := newTranslator(t, Config{}, s)
			host := random(0xfd).As16()
			skip := 0
			if bits > 48 && bits <= 64 && rng.IntN(2) == 0 { // words of all ones are passed over
				skip = rng.IntN(4)
				for i := range skip {
					host[8+2*i], host[9+2*i] = 0xff, 0xff
				}
			}
			inside := netip.AddrFrom16(replacePrefix(host, s.Inside))
			in := udpPacket(inside.String(), "3fff::1", 7)
			r := tr.Translate(in, Options{})
			if r.Reason == DropNPT && (bits <= 48 && inside.As16()[6] == 0xff && inside.As16()[7] == 0xff || bits > 48) {
				continue
			}
			if r.Reason != Translated66 || r.Out != s.Outside {
				t.Fatalf("%v: %v: %v", s, inside, r.Reason)
			}
			out := r.Packets[0]
			if [2]byte(out[46:]) != [2]byte(in[46:]) {
				t.Fatalf("%v: the checksum changed", s)
			}
			if right, known := checksumOf(out); !right || !known {
				t.Fatalf("%v: wrong checksum", s)
			}
			a := addr6(out[8:])
			if !s.Outside.Contains(netip.AddrFrom16(a)) {
				t.Fatalf("%v: %v became %v", s, inside, endsOf(out).src)
			}
			want := 3
			if bits > 48 {
				want = max(4, (bits+15)/16) + skip
			}
			was := inside.As16()
			for w := (bits + 15) / 16; w < 8; w++ {
				if w != want && [2]byte(a[2*w:]) != [2]byte(was[2*w:]) {
					t.Fatalf("%v: %v became %v: word %d changed, not %d", s, inside, endsOf(out).src, w, want)
				}
			}
			back := only(t, tr, udpPacket("3fff::1", endsOf(out).src, 7), Options{})
			if endsOf(back).dst != inside.String() {
				t.Fatalf("%v: %v became %v, which became %v", s, inside, endsOf(out).src, endsOf(back).dst)
			}
		}
	}
}

// Every subnet of a /48 has an address outside but 0xffff, and every one another (RFC 6296 appendix B, section 4.2).
func TestNPTSubnets(t *testing.T) {
	inside, outside := prefix("fd01:203:405::/48"), prefix("2001:db8:1::/48")
	n := makeNPT(inside, outside)
	seen := make(map[uint16]uint16)
	for subnet := range 0x10000 {
		a := inside.Addr().As16()
		binary.BigEndian.PutUint16(a[6:], uint16(subnet))
		out, ok := n.mapAddr(a, outside, n.out)
		if ok != (subnet != 0xffff) {
			t.Fatalf("subnet %#x: %v", subnet, ok)
		}
		if !ok {
			continue
		}
		w := binary.BigEndian.Uint16(out[6:])
		if other, twice := seen[w]; twice {
			t.Fatalf("subnets %#x and %#x are both %#x outside", subnet, other, w)
		}
		seen[w] = uint16(subnet)
		if back, ok := n.mapAddr(out, inside, n.in); !ok || back != a {
			t.Fatalf("subnet %#x came back as %v", subnet, netip.AddrFrom16(back))
		}
	}
	tr := newTranslator(t, Config{Addr6: addr("2001:db8::1")}, service(outside.String(), inside.String()))
	reply := refused(t, tr, udpPacket("fd01:203:405:ffff::1", "3fff::1", 1), Options{}, DropNPT)
	if reply == nil || reply[40] != icmp6Unreachable {
		t.Errorf("the sender is told % x", reply)
	}
	refused(t, tr, udpPacket("3fff::1", "2001:db8:1:ffff::1", 1), Options{}, DropNPT)
	// A /48 leaves the interface ID alone, whatever it is.
	only(t, tr, udpPacket("fd01:203:405:7::", "3fff::1", 1), Options{})
}

// One-to-one: with fewer than 16 host bits the prefix is replaced and checksums follow, of every transport that has them.
func TestOneToOne(t *testing.T) {
	for host := range 16 {
		in, out := netip.PrefixFrom(addr("2001:db8:e1d::abcd:0"), 128-host).Masked(), netip.PrefixFrom(addr("2001:db8:5e::1234:0"), 128-host).Masked()
		tr := newTranslator(t, Config{Own: []netip.Prefix{prefix("2001:db8:e1d::/48")}}, fib.Service{Outside: out, Inside: in})
		for n := range min(1<<host, 40) {
			inside, outside := in.Addr().As16(), out.Addr().As16()
			inside[14] |= byte(n >> 8)
			inside[15] |= byte(n)
			outside[14] |= byte(n >> 8)
			outside[15] |= byte(n)
			a, b := netip.AddrFrom16(inside).String(), netip.AddrFrom16(outside).String()
			for _, p := range [][2][]byte{
				{udpPacket(a, "3fff::1", n), udpPacket(b, "3fff::1", n)},
				{udpPacket("3fff::1", b, n), udpPacket("3fff::1", a, n)},
				{vectors.IP6{Src: a, Dst: "3fff::1", Next: 33, Data: vectors.DCCPPacket(a, "3fff::1", n)}.Bytes(),
					vectors.IP6{Src: b, Dst: "3fff::1", Next: 33, Data: vectors.DCCPPacket(b, "3fff::1", n)}.Bytes()},
			} {
				if got := only(t, tr, p[0], Options{}); string(got) != string(p[1]) {
					t.Fatalf("%s: %v became\n% x, want\n% x", out, endsOf(p[0]), got, p[1])
				}
			}
		}
	}
}

// A packet whose destination is a segment on its way has its last destination in the checksum (RFC 8200 section 8.1).
func TestOneToOneRoutingHeader(t *testing.T) {
	tr := newTranslator(t, Config{}, service("2001:db8:5e::a", "2001:db8:e1d::a"))
	const last = "2001:db8:ffff::9"
	u := vectors.UDPDatagram("3fff::1", last, 20)
	b := append([]byte{17, 2, 4, 1, 0, 0, 0, 0}, addr(last).AsSlice()...)
	in := vectors.IP6{Src: "3fff::1", Dst: "2001:db8:5e::a", Next: 43, Data: append(b, u...)}.Bytes()
	out := only(t, tr, in, Options{})
	if got := endsOf(out).dst; got != "2001:db8:e1d::a" {
		t.Errorf("to %s", got)
	}
	if string(out[40:]) != string(in[40:]) {
		t.Errorf("behind the header it became\n% x, was\n% x", out[40:], in[40:])
	}
}
