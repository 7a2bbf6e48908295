package slowpath

import (
	"encoding/binary"
	"net/netip"
)

// Upper-layer protocols and IPv6 extension headers that are looked at.
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoAH       = 51
	protoICMP6    = 58
	protoDestOpts = 60
)

// packet is what the headers of an IP packet say.
type packet struct {
	v6       bool
	src, dst netip.Addr
	length   int  // of the whole packet, without what follows it on the wire
	upper    int  // offset of the upper-layer header; the length of the headers before it
	proto    byte // of the upper layer
	dontFrag bool // IPv4 DF, or IPv6
	later    bool // a fragment other than the first
	fragment bool // a fragment
}

// parsePacket reads the headers of an IPv4 or IPv6 packet. In a super-packet the length field may be
// short of what it is, then b is the whole of it. It reports false for what is not an IP packet.
func parsePacket(b []byte, super bool) (packet, bool) {
	if len(b) < 20 {
		return packet{}, false
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b, super)
	case 6:
		return parse6(b, super)
	}
	return packet{}, false
}

func parse4(b []byte, super bool) (packet, bool) {
	frag := binary.BigEndian.Uint16(b[6:])
	p := packet{
		src:      netip.AddrFrom4([4]byte(b[12:16])),
		dst:      netip.AddrFrom4([4]byte(b[16:20])),
		length:   int(binary.BigEndian.Uint16(b[2:])),
		upper:    int(b[0]&15) * 4,
		proto:    b[9],
		dontFrag: frag&0x4000 != 0,
		later:    frag&0x1fff != 0,
		fragment: frag&0x3fff != 0,
	}
	if super {
		p.length = len(b)
	}
	return p, p.upper >= 20 && p.upper <= p.length && p.length <= len(b)
}

func parse6(b []byte, super bool) (packet, bool) {
	if len(b) < 40 {
		return packet{}, false
	}
	p := packet{
		v6:       true,
		src:      netip.AddrFrom16([16]byte(b[8:24])),
		dst:      netip.AddrFrom16([16]byte(b[24:40])),
		length:   40 + int(binary.BigEndian.Uint16(b[4:])),
		upper:    40,
		proto:    b[6],
		dontFrag: true,
	}
	if super {
		p.length = len(b)
	}
	if p.length > len(b) {
		return p, false
	}
	b = b[:p.length]
	for !p.later {
		rest := b[p.upper:]
		n := 0
		switch p.proto {
		case protoHopByHop, protoRouting, protoDestOpts:
			if len(rest) >= 2 {
				n = 8 + 8*int(rest[1])
			}
		case protoAH:
			if len(rest) >= 2 {
				n = 8 + 4*int(rest[1])
			}
		case protoFragment:
			if len(rest) >= 8 {
				n = 8
				off := binary.BigEndian.Uint16(rest[2:])
				p.fragment, p.later = off&^6 != 0, off&^7 != 0
			}
		default:
			return p, true
		}
		if n == 0 || n > len(rest) {
			return p, false
		}
		p.proto = rest[0]
		p.upper += n
	}
	return p, true
}

// payload returns the offset of what TCP or UDP carry: the length of all headers. For other protocols
// it is that of the IP headers. It is never beyond the end of the packet.
func (p packet) payload(b []byte) int {
	n := p.upper
	switch p.proto {
	case protoTCP:
		if len(b) >= p.upper+20 {
			n += int(b[p.upper+12]>>4) * 4
		}
	case protoUDP:
		n += 8
	}
	return min(n, p.length)
}
