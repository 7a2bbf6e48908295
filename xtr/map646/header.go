package map646

import (
	"encoding/binary"

	"github.com/tabi-lisp/tabi/xtr/checksum"
)

// Protocols and IPv6 extension headers.
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoIGMP     = 2
	protoTCP      = 6
	protoUDP      = 17
	protoDCCP     = 33
	protoRouting  = 43
	protoFragment = 44
	protoESP      = 50
	protoAH       = 51
	protoICMP6    = 58
	protoDestOpts = 60
	protoSCTP     = 132
	protoMobility = 135
	protoUDPLite  = 136
	protoHIP      = 139
	protoShim6    = 140
)

const (
	header4Len  = 20
	header6Len  = 40
	fragmentLen = 8

	flagDF     = 0x4000
	flagMF     = 0x2000
	offsetMask = 0x1fff
)

// header4 is what an IPv4 header says.
type header4 struct {
	src, dst addr4
	tos, ttl byte
	proto    byte
	id       uint16
	df, mf   bool
	offset   int // in bytes
	length   int // of the header, with options
	total    int // of the packet, as the header says
	data     []byte
}

func (h *header4) fragment() bool { return h.mf || h.offset > 0 }

// parse4 reads the header of a whole IPv4 packet.
func parse4(b []byte) (h header4, ok bool) {
	h, ok = parseInner4(b)
	if !ok || h.total > len(b) {
		return h, false
	}
	h.data = b[h.length:h.total]
	return h, possible(h.offset, len(h.data), h.mf)
}

// possible reports whether there can be a fragment of n bytes at an offset: with more behind it its end is that of a unit
// of 8 bytes, and none goes beyond the largest packet (RFC 791 section 3.2, RFC 8200 section 4.5).
func possible(offset, n int, more bool) bool {
	return offset+n <= 0xffff && (!more || n%8 == 0)
}

// parseInner4 reads the header of an IPv4 packet of which only the beginning may be there: data is what there is.
func parseInner4(b []byte) (h header4, ok bool) {
	if len(b) < header4Len || b[0]>>4 != 4 {
		return h, false
	}
	flags := binary.BigEndian.Uint16(b[6:])
	h = header4{
		src: addr4(b[12:16]), dst: addr4(b[16:20]),
		tos: b[1], ttl: b[8], proto: b[9],
		id: binary.BigEndian.Uint16(b[4:]),
		df: flags&flagDF != 0, mf: flags&flagMF != 0, offset: int(flags&offsetMask) * 8,
		length: int(b[0]&15) * 4,
		total:  int(binary.BigEndian.Uint16(b[2:])),
	}
	if h.length < header4Len || h.length > len(b) || h.total < h.length {
		return h, false
	}
	h.data = b[h.length:min(len(b), h.total)]
	return h, true
}

// header6 is what an IPv6 header and the extension headers behind it say.
type header6 struct {
	src, dst addr6
	class    byte
	hop      byte
	proto    byte // behind the extension headers that have no meaning in IPv4
	payload  int  // length of what is behind the fixed header, as it says
	upper    int  // offset of the upper-layer header in the packet
	total    int  // header6Len + payload
	data     []byte

	fragmented bool // there is a Fragment Header, perhaps an atomic one
	fragmentAt int  // its offset
	next       byte // its Next Header
	id         uint32
	mf         bool
	offset     int // in bytes

	routing  bool // there is a Routing header with segments left
	segments int  // offset of the Segments Left field
}

// fragment reports whether it is part of a packet, and not an atomic fragment.
func (h *header6) fragment() bool { return h.mf || h.offset > 0 }

// parse6 reads the headers of a whole IPv6 packet.
func parse6(b []byte) (h header6, ok bool) {
	if len(b) < header6Len || b[0]>>4 != 6 {
		return h, false
	}
	if n := header6Len + int(binary.BigEndian.Uint16(b[4:])); n <= len(b) {
		h, ok = parseInner6(b[:n])
	}
	return h, ok && possible(h.offset, len(h.data), h.mf)
}

// parseInner6 reads the headers of an IPv6 packet of which only the beginning may be there: data is what there is of
// what is behind them.
func parseInner6(b []byte) (h header6, ok bool) {
	if len(b) < header6Len || b[0]>>4 != 6 {
		return h, false
	}
	h = header6{
		src: addr6(b[8:24]), dst: addr6(b[24:40]),
		class: b[0]<<4 | b[1]>>4, hop: b[7], proto: b[6],
		payload: int(binary.BigEndian.Uint16(b[4:])),
		upper:   header6Len,
	}
	h.total = header6Len + h.payload
	b = b[:min(len(b), h.total)]
	for !h.fragmented {
		rest := b[h.upper:]
		switch h.proto {
		case protoHopByHop, protoRouting, protoDestOpts:
			if len(rest) < 2 || len(rest) < 8+8*int(rest[1]) {
				return h, false
			}
			if h.proto == protoRouting && rest[3] != 0 && !h.routing {
				h.routing, h.segments = true, h.upper+3
			}
			h.proto, h.upper = rest[0], h.upper+8+8*int(rest[1])
		case protoFragment:
			if len(rest) < fragmentLen {
				return h, false
			}
			field := binary.BigEndian.Uint16(rest[2:])
			h.fragmented, h.fragmentAt, h.next = true, h.upper, rest[0]
			h.mf, h.offset = field&1 != 0, int(field&^7)
			h.id = binary.BigEndian.Uint32(rest[4:])
			h.proto, h.upper = rest[0], h.upper+fragmentLen
		default:
			h.data = rest
			return h, true
		}
	}
	h.data = b[h.upper:]
	return h, true
}

// transport is what is behind all extension headers of b, which begins with h and is whole, a first fragment, or what is
// left of it: those behind a Fragment Header too. It reports false when b ends before.
func (h *header6) transport(b []byte) (proto byte, at int, ok bool) {
	proto, at = h.proto, h.upper
	for proto == protoHopByHop || proto == protoRouting || proto == protoDestOpts {
		if len(b) < at+2 {
			return proto, at, false
		}
		proto, at = b[at], at+8+8*int(b[at+1])
	}
	return proto, at, at <= len(b)
}

// isExtension reports whether a Next Header value is an IPv6 extension header other than ESP.
func isExtension(proto byte) bool {
	switch proto {
	case protoHopByHop, protoRouting, protoFragment, protoAH, protoDestOpts, protoMobility, protoHIP, protoShim6:
		return true
	}
	return false
}

// put4 writes an IPv4 header without options for a packet of total bytes, with its checksum.
func put4(b []byte, tos byte, total int, id uint16, flags uint16, ttl, proto byte, src, dst addr4) {
	b = b[:header4Len]
	b[0], b[1] = 0x45, tos
	binary.BigEndian.PutUint16(b[2:], uint16(total))
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], flags)
	b[8], b[9], b[10], b[11] = ttl, proto, 0, 0
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	sumHeader4(b)
}

// sumHeader4 sets the checksum of an IPv4 header.
func sumHeader4(b []byte) {
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], checksum.Of(0, b))
}

// put6 writes an IPv6 header for payload bytes behind it.
func put6(b []byte, class byte, payload int, next, hop byte, src, dst addr6) {
	b = b[:header6Len]
	b[0], b[1], b[2], b[3] = 0x60|class>>4, class<<4, 0, 0 // flow label 0
	binary.BigEndian.PutUint16(b[4:], uint16(payload))
	b[6], b[7] = next, hop
	copy(b[8:], src[:])
	copy(b[24:], dst[:])
}

// putFragment writes a Fragment Header.
func putFragment(b []byte, next byte, offset int, mf bool, id uint32) {
	field := uint16(offset)
	if mf {
		field |= 1
	}
	b[0], b[1] = next, 0
	binary.BigEndian.PutUint16(b[2:], field)
	binary.BigEndian.PutUint32(b[4:], id)
}

// fragmentField is the flags and offset field of an IPv4 header.
func fragmentField(offset int, mf, df bool) uint16 {
	field := uint16(offset / 8)
	if mf {
		field |= flagMF
	}
	if df {
		field |= flagDF
	}
	return field
}
