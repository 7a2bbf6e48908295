package map646

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

// icmpWant is what an ICMP message becomes; none of it counts without ok.
type icmpWant struct {
	typ, code byte
	ok        bool
}

// want46 is RFC 7915 section 4.2, with pointers aside.
func want46(typ, code byte) icmpWant {
	switch typ {
	case 8:
		return icmpWant{128, code, true}
	case 0:
		return icmpWant{129, code, true}
	case 11:
		return icmpWant{3, code, true}
	case 12:
		return icmpWant{4, 0, code == 0 || code == 2}
	case 3:
		switch code {
		case 0, 1, 5, 6, 7, 8, 11, 12:
			return icmpWant{1, 0, true}
		case 2:
			return icmpWant{4, 1, true}
		case 3:
			return icmpWant{1, 4, true}
		case 4:
			return icmpWant{2, 0, true}
		case 9, 10, 13, 15:
			return icmpWant{1, 1, true}
		}
	}
	return icmpWant{}
}

// want64 is RFC 7915 section 5.2.
func want64(typ, code byte) icmpWant {
	switch typ {
	case 128:
		return icmpWant{8, code, true}
	case 129:
		return icmpWant{0, code, true}
	case 1:
		to, ok := map[byte]byte{0: 1, 1: 10, 2: 1, 3: 1, 4: 3}[code]
		return icmpWant{3, to, ok}
	case 2:
		return icmpWant{3, 4, true}
	case 3:
		return icmpWant{11, code, true}
	case 4:
		switch code {
		case 0:
			return icmpWant{12, 0, true}
		case 1:
			return icmpWant{3, 2, true}
		}
	}
	return icmpWant{}
}

const (
	tClient, tClient6 = "192.0.2.33", "2001:db8:64::c000:221"
	tService, tVM     = "198.51.100.10", "2001:db8:e1d::a"
)

// Every type and code of ICMPv4.
func TestICMPTypes46(t *testing.T) {
	inner := udpPacket(tService, tClient, 20)
	everyICMP(t, Translated46, 40, want46, func(typ, code byte) []byte {
		return vectors.IP4{Src: tClient, Dst: tService, Proto: 1, Data: vectors.ICMPMessage(typ, code, 0, inner)}.Bytes()
	})
}

// Every type and code of ICMPv6.
func TestICMPTypes64(t *testing.T) {
	inner := udpPacket(tClient6, tVM, 20)
	everyICMP(t, Translated64, 20, want64, func(typ, code byte) []byte {
		return vectors.IP6{Src: tVM, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(tVM, tClient6, typ, code, 0, inner)}.Bytes()
	})
}

// everyICMP translates the packet that each type and code makes; what comes of it has its ICMP header at that offset.
func everyICMP(t *testing.T, as Reason, at int, want func(typ, code byte) icmpWant, packet func(typ, code byte) []byte) {
	t.Helper()
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	s := new(Scratch)
	for typ := range 256 {
		for code := range 256 {
			want := want(byte(typ), byte(code))
			r := tr.Translate(packet(byte(typ), byte(code)), Options{Scratch: s})
			if r.Reply != nil {
				t.Fatalf("type %d code %d: somebody is told", typ, code)
			}
			if !want.ok {
				if r.Reason != DropICMPType {
					t.Fatalf("type %d code %d: %v", typ, code, r.Reason)
				}
				continue
			}
			if r.Reason != as || r.Packets[0][at] != want.typ || r.Packets[0][at+1] != want.code {
				t.Fatalf("type %d code %d: %v, want %v", typ, code, r.Reason, want)
			}
			if right, known := checksumOf(r.Packets[0]); !right || !known {
				t.Fatalf("type %d code %d: checksum", typ, code)
			}
		}
	}
}

// RFC 7915 figure 3, for both codes.
func TestICMPPointer46(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	want := map[int]uint32{0: 0, 1: 1, 2: 4, 3: 4, 8: 7, 9: 6}
	for i := 12; i < 16; i++ {
		want[i], want[i+4] = 8, 24
	}
	for _, code := range []byte{0, 2} {
		for p := range 256 {
			in := vectors.IP4{Src: tClient, Dst: tService, Proto: 1, Data: vectors.ICMPMessage(12, code, uint32(p)<<24, udpPacket(tService, tClient, 20))}.Bytes()
			r := tr.Translate(in, Options{})
			to, ok := want[p]
			if ok != (r.Reason == Translated46) || ok && binary.BigEndian.Uint32(r.Packets[0][44:]) != to {
				t.Errorf("code %d pointer %d: %v, want %d %v", code, p, r.Reason, to, ok)
			}
		}
	}
}

// RFC 7915 figure 6.
func TestICMPPointer64(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	want := map[uint32]byte{0: 0, 1: 1, 4: 2, 5: 2, 6: 9, 7: 8}
	for i := uint32(8); i < 24; i++ {
		want[i] = 12
	}
	for i := uint32(24); i < 40; i++ {
		want[i] = 16
	}
	pointers := []uint32{256, 1 << 24, math.MaxUint32}
	for p := range uint32(256) {
		pointers = append(pointers, p)
	}
	for _, p := range pointers {
		in := vectors.IP6{Src: tVM, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(tVM, tClient6, 4, 0, p, udpPacket(tClient6, tVM, 20))}.Bytes()
		r := tr.Translate(in, Options{})
		to, ok := want[p]
		if ok != (r.Reason == Translated64) || ok && (r.Packets[0][24] != to || r.Packets[0][25] != 0) {
			t.Errorf("pointer %d: %v, want %d %v", p, r.Reason, to, ok)
		}
	}
}

// The MTU of an ICMPv4 error (RFC 7915 section 4.2), over all that it depends on.
func TestICMPMTU46(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	for _, mtu := range []int{68, 576, 1259, 1260, 1261, 1400, 1500, 9000, 65535} {
		for _, on := range []int{0, 1280, 1444, 1500, 9000} {
			for _, back := range []int{0, 1000, 1400, 1500} {
				want := mtu + 20
				if on > 0 {
					want = min(want, on)
				}
				if back > 0 {
					want = min(want, back+20)
				}
				want = max(1280, want)
				in := vectors.IP4{Src: tClient, Dst: tService, Proto: 1, Data: vectors.ICMPMessage(3, 4, uint32(mtu), udpPacket(tService, tClient, 20))}.Bytes()
				out := only(t, tr, in, Options{MTU: on, BackMTU: back})
				if got := int(binary.BigEndian.Uint32(out[44:])); got != want {
					t.Errorf("MTU %d with %d and %d: %d, want %d", mtu, on, back, got, want)
				}
			}
		}
	}
}

// The MTU of an ICMPv6 error (RFC 7915 section 5.2).
func TestICMPMTU64(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	whole := udpPacket(tClient6, tVM, 20)
	fragment := vectors.IP6{Src: tClient6, Dst: tVM, Next: 44, Data: vectors.FragmentHeader(17, 0, true, 1, vectors.Pattern(32))}.Bytes()
	for _, mtu := range []uint32{0, 60, 68, 1280, 1281, 1500, 65535, 65556, 1 << 31, math.MaxUint32} {
		for _, on := range []int{0, 1280, 1500} {
			for _, back := range []int{0, 1280, 1444} {
				for _, inner := range [][]byte{whole, fragment} {
					want := int(min(mtu, 65555)) - 20
					if back > 0 {
						want = min(want, back-20)
					}
					if inner[6] == 44 {
						want -= 8 // the Fragment Header is no part of the IPv4 packet
					}
					if on > 0 {
						want = min(want, on)
					}
					want = max(68, want)
					in := vectors.IP6{Src: tVM, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(tVM, tClient6, 2, 0, mtu, inner)}.Bytes()
					out := only(t, tr, in, Options{MTU: on, BackMTU: back})
					if got := int(binary.BigEndian.Uint16(out[26:])); got != want || out[24] != 0 || out[25] != 0 {
						t.Errorf("MTU %d with %d and %d: %d, want %d", mtu, on, back, got, want)
					}
				}
			}
		}
	}
}

// Routers that tell no MTU (RFC 7915 section 4.2, RFC 1191 section 7.1).
func TestICMPPlateaus(t *testing.T) {
	for _, c := range []struct {
		plateaus    []int
		total, want int
	}{
		{nil, 65535, 32000},
		{nil, 32000, 17914},
		{nil, 9000, 8166},
		{nil, 8166, 4352},
		{nil, 2003, 2002},
		{nil, 2002, 1492},
		{nil, 1500, 1492},
		{nil, 1492, 1280}, // the next is 1006
		{nil, 1006, 1280},
		{nil, 100, 1280},
		{[]int{1450, 1350}, 1500, 1450},
		{[]int{1350, 1450}, 1450, 1350},
		{[]int{1280}, 1300, 1280},
	} {
		cfg := cloudConfig()
		cfg.Plateaus = c.plateaus
		tr := newTranslator(t, cfg, cloudServices()...)
		inner := vectors.IP4{Src: tService, Dst: tClient, Proto: 17, Total: c.total, Data: vectors.UDPDatagram(tService, tClient, 20)[:8]}.Bytes()
		in := vectors.IP4{Src: tClient, Dst: tService, Proto: 1, Data: vectors.ICMPMessage(3, 4, 0, inner)}.Bytes()
		if got := int(binary.BigEndian.Uint32(only(t, tr, in, Options{})[44:])); got != c.want {
			t.Errorf("%v, a packet of %d bytes: %d, want %d", c.plateaus, c.total, got, c.want)
		}
	}
}

// A packet inside, cut at every length: it is translated as far as it goes, and nothing is read behind it.
func TestICMPInnerTruncated(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	full4 := vectors.IP4{Src: tService, Dst: tClient, Proto: 6, Data: vectors.TCPSegment(tService, tClient, 60)}.Bytes()
	full6 := vectors.IP6{Src: tVM, Dst: tClient6, Next: 6, Data: vectors.TCPSegment(tVM, tClient6, 60)}.Bytes()
	for n := range len(full4) + 1 {
		in := vectors.IP4{Src: tClient, Dst: tService, Proto: 1, Data: vectors.ICMPMessage(11, 0, 0, full4[:n])}.Bytes()
		if n < 20 {
			refused(t, tr, in, Options{}, DropICMPInner)
			continue
		}
		out := only(t, tr, in, Options{})
		want := append([]byte(nil), full6[:n+20]...)
		if n < 38 {
			// The checksum is not there to be seen, or half of it: then it is left alone.
			copy(want[40:], full4[20:n])
		}
		if got := out[48:]; string(got) != string(want) {
			t.Errorf("%d bytes:\n% x, want\n% x", n, got, want)
		}
	}
	for n := range len(full6) + 1 {
		inner := vectors.IP6{Src: tClient6, Dst: tVM, Next: 6, Data: vectors.TCPSegment(tClient6, tVM, 60)}.Bytes()[:n]
		in := vectors.IP6{Src: tVM, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(tVM, tClient6, 3, 0, 0, inner)}.Bytes()
		if n < 40 {
			refused(t, tr, in, Options{}, DropICMPInner)
			continue
		}
		out := only(t, tr, in, Options{})
		want := vectors.IP4{Src: tClient, Dst: tService, Proto: 6, Data: vectors.TCPSegment(tClient, tService, 60)}.Bytes()[:n-20]
		if n < 58 {
			copy(want[20:], inner[40:])
		}
		if got := out[28:]; string(got) != string(want) {
			t.Errorf("%d bytes:\n% x, want\n% x", n, got, want)
		}
	}
}

// An ICMP header cut at every length is dropped.
func TestICMPTruncated(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	for n := range 8 {
		for _, typ := range []byte{8, 3} {
			refused(t, tr, vectors.IP4{Src: tClient, Dst: tService, Proto: 1, Data: vectors.ICMPMessage(typ, 0, 0, nil)[:n]}.Bytes(), Options{}, DropTransport)
		}
		for _, typ := range []byte{128, 1} {
			refused(t, tr, vectors.IP6{Src: tVM, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(tVM, tClient6, typ, 0, 0, nil)[:n]}.Bytes(), Options{}, DropTransport)
		}
	}
}

// Destinations that stand for no host (RFC 7915 sections 1.2, 8), by mappings that cover them.
func TestIllegalDestination(t *testing.T) {
	tr := newTranslator(t, Config{Addr4: addr("192.0.2.254"), Addr6: addr("2001:db8::fe"), Pool: prefix("2001:db8:64::/96"),
		Explicit: []Rule{{V4: prefix("0.0.0.0/0"), V6: prefix("2001:db8:ff00::/40"), Remote: true}}})
	for _, a := range []string{"224.0.0.1", "239.1.2.3", "255.255.255.255", "240.0.0.1", "127.0.0.1", "0.0.0.0"} {
		if reply := refused(t, tr, udpPacket("192.0.2.1", a, 1), Options{}, DropIllegalDestination); reply != nil {
			t.Errorf("%s: told % x", a, reply)
		}
		to := Embed(prefix("2001:db8:64::/96"), addr(a)).String()
		if reply := refused(t, tr, udpPacket("2001:db8:ff01:203:400::", to, 1), Options{}, DropIllegalDestination); reply == nil || reply[40] != 1 || reply[41] != 1 {
			t.Errorf("%s: told % x", to, reply)
		}
	}
}

// UDP-Lite has the pseudo-header of UDP, and a checksum over part of the data (RFC 3828): it is updated.
func TestUDPLite(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	datagram := func(src, dst string) []byte {
		b := vectors.UDPDatagram(src, dst, 40)
		b[4], b[5] = 0, 20 // covered
		b[6], b[7] = 0, 0
		pseudo := append(addr(src).AsSlice(), addr(dst).AsSlice()...)
		pseudo = append(binary.BigEndian.AppendUint32(pseudo, uint32(len(b))), 0, 0, 0, 136)
		binary.BigEndian.PutUint16(b[6:], ^vectors.Sum(append(pseudo, b[:20]...)))
		return b
	}
	out := only(t, tr, vectors.IP4{Src: tClient, Dst: tService, Proto: 136, Data: datagram(tClient, tService)}.Bytes(), Options{})
	if want := datagram(tClient6, tVM); string(out[40:]) != string(want) {
		t.Errorf("4 to 6: % x, want % x", out[40:48], want[:8])
	}
	out = only(t, tr, vectors.IP6{Src: tVM, Dst: tClient6, Next: 136, Data: datagram(tVM, tClient6)}.Bytes(), Options{})
	if want := datagram(tService, tClient); string(out[20:]) != string(want) {
		t.Errorf("6 to 4: % x, want % x", out[20:28], want[:8])
	}
}
