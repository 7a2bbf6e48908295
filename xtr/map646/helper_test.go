package map646

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefix(s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a := netip.MustParseAddr(s)
		p = netip.PrefixFrom(a, a.BitLen())
	}
	return p
}

func service(outside, inside string) fib.Service {
	return fib.Service{Outside: prefix(outside), Inside: prefix(inside)}
}

// ends are the addresses of a packet.
type ends struct{ src, dst string }

func endsOf(b []byte) ends {
	if version(b) == 4 {
		return ends{netip.AddrFrom4(addr4(b[12:])).String(), netip.AddrFrom4(addr4(b[16:])).String()}
	}
	return ends{netip.AddrFrom16(addr6(b[8:])).String(), netip.AddrFrom16(addr6(b[24:])).String()}
}

// udpPacket is a UDP packet of n bytes of data, of the family of its addresses.
func udpPacket(src, dst string, n int) []byte {
	if addr(src).Is4() {
		return vectors.IP4{Src: src, Dst: dst, Proto: vectors.UDP, Data: vectors.UDPDatagram(src, dst, n)}.Bytes()
	}
	return vectors.IP6{Src: src, Dst: dst, Next: vectors.UDP, Data: vectors.UDPDatagram(src, dst, n)}.Bytes()
}

// only translates a packet that must become one other.
func only(t testing.TB, tr *Translator, packet []byte, o Options) []byte {
	t.Helper()
	r := tr.Translate(packet, o)
	if len(r.Packets) != 1 {
		t.Fatalf("%v: %v, %d packets, reply % x", endsOf(packet), r.Reason, len(r.Packets), r.Reply)
	}
	if why := invalid(r.Packets[0]); why != "" {
		t.Fatalf("%v became an invalid packet: %s\n% x", endsOf(packet), why, r.Packets[0])
	}
	return r.Packets[0]
}

// refused translates a packet that must not pass, and returns the reply.
func refused(t testing.TB, tr *Translator, packet []byte, o Options, want Reason) []byte {
	t.Helper()
	r := tr.Translate(packet, o)
	if r.Reason != want || len(r.Packets) > 0 {
		t.Fatalf("%v: %v with %d packets, want %v", endsOf(packet), r.Reason, len(r.Packets), want)
	}
	if r.Reply != nil {
		if why := invalid(r.Reply); why != "" {
			t.Fatalf("invalid reply: %s\n% x", why, r.Reply)
		}
	}
	return r.Reply
}

// invalid says what is wrong with an IP packet by itself, other than its transport checksum.
func invalid(b []byte) string {
	switch {
	case len(b) < 20:
		return "shorter than a header"
	case version(b) == 4:
		n := int(b[0]&15) * 4
		switch {
		case n < 20 || n > len(b):
			return "header length"
		case int(binary.BigEndian.Uint16(b[2:])) != len(b):
			return "total length"
		case vectors.Sum(b[:n]) != 0xffff:
			return "header checksum"
		case b[6]&0x80 != 0:
			return "reserved flag"
		}
	case version(b) == 6:
		if len(b) < 40 {
			return "shorter than a header"
		}
		if int(binary.BigEndian.Uint16(b[4:])) != len(b)-40 {
			return "payload length"
		}
		if b[6] == 44 && len(b) < 48 {
			return "fragment header cut"
		}
	default:
		return "no IP version"
	}
	return ""
}

// checksumOf says of a packet whether the checksum of its transport is right. known is false for fragments, for
// transports that are not checked, and where there is none.
func checksumOf(b []byte) (right, known bool) {
	var pseudo, upper []byte
	var proto byte
	if version(b) == 4 {
		n := int(b[0]&15) * 4
		total := int(binary.BigEndian.Uint16(b[2:]))
		if binary.BigEndian.Uint16(b[6:])&0x3fff != 0 || total < n || total > len(b) {
			return false, false
		}
		proto, upper, pseudo = b[9], b[n:total], b[12:20]
	} else {
		total := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if total > len(b) {
			return false, false
		}
		proto, upper, pseudo = b[6], b[40:total], b[8:40]
		for proto == 0 || proto == 43 || proto == 60 || proto == 44 {
			if len(upper) < 8 || proto == 43 && upper[3] != 0 || proto == 44 && binary.BigEndian.Uint16(upper[2:])&^6 != 0 {
				return false, false
			}
			n := 8
			if proto != 44 {
				n += 8 * int(upper[1])
			}
			if n > len(upper) {
				return false, false
			}
			proto, upper = upper[0], upper[n:]
		}
	}
	pseudo = append([]byte(nil), pseudo...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(upper)))
	pseudo = append(pseudo, 0, 0, 0, proto)
	switch {
	case proto == 1 && version(b) == 4 && len(upper) >= 4:
		pseudo = nil
	case proto == 58 && version(b) == 6 && len(upper) >= 4:
	case proto == 6 && len(upper) >= 20:
	case proto == 33 && len(upper) >= 12:
		if upper[4] > 0 && upper[4]>>4 != 0 || upper[5]>>4 != 0 {
			return false, false // partial coverage
		}
	case proto == 17 && len(upper) >= 8 && int(binary.BigEndian.Uint16(upper[4:])) == len(upper):
		if upper[6] == 0 && upper[7] == 0 {
			return false, false
		}
	default:
		return false, false
	}
	s := vectors.Sum(append(pseudo, upper...))
	return s == 0xffff, true
}
