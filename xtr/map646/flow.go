package map646

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Flow is who speaks to whom in a packet, for what a network manager is told of it (RFC 7915 section 4.5).
type Flow struct {
	Src, Dst netip.AddrPort // port 0 where there are none
	Protocol uint8
}

// String is "src -> dst", with ports where there are any.
func (f Flow) String() string {
	if f.Src.Port() == 0 && f.Dst.Port() == 0 {
		return fmt.Sprintf("%v -> %v, protocol %d", f.Src.Addr(), f.Dst.Addr(), f.Protocol)
	}
	return fmt.Sprintf("%v -> %v, protocol %d", f.Src, f.Dst, f.Protocol)
}

// FlowOf reads the flow of an IP packet. It reports false for what is none.
func FlowOf(packet []byte) (f Flow, ok bool) {
	var src, dst netip.Addr
	var upper []byte
	later := false
	switch version(packet) {
	case 4:
		h, ok := parse4(packet)
		if !ok {
			return f, false
		}
		src, dst, f.Protocol = netip.AddrFrom4(h.src), netip.AddrFrom4(h.dst), h.proto
		upper, later = h.data, h.offset > 0
	case 6:
		h, ok := parse6(packet)
		if !ok {
			return f, false
		}
		src, dst, f.Protocol = netip.AddrFrom16(h.src), netip.AddrFrom16(h.dst), h.proto
		upper, later = h.data, h.offset > 0
	default:
		return f, false
	}
	var sport, dport uint16
	switch f.Protocol {
	case protoTCP, protoUDP, protoDCCP, protoUDPLite, protoSCTP:
		if !later && len(upper) >= 4 {
			sport, dport = binary.BigEndian.Uint16(upper), binary.BigEndian.Uint16(upper[2:])
		}
	}
	f.Src, f.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return f, true
}

func version(packet []byte) byte {
	if len(packet) == 0 {
		return 0
	}
	return packet[0] >> 4
}
