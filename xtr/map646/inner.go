package map646

import (
	"encoding/binary"
	"net/netip"

	"github.com/tabi-lisp/tabi/xtr/checksum"
)

// Sizes of ICMP errors in bytes.
const (
	maxError4 = 576 // RFC 1812 section 4.3.2.3
	maxError6 = MinMTU6
	minMTU4   = 68 // RFC 791 section 3.2
)

// icmpError46 appends the ICMPv6 error that the ICMPv4 error in h becomes, between src and dst (RFC 7915 section 4.3).
func (c *call) icmpError46(out []byte, h *header4, src, dst addr6, simple bool) ([]byte, Reason) {
	m := h.data
	if len(m) < icmpHeaderLen {
		return nil, DropTransport
	}
	if checksum.Fold(checksum.Sum(0, m)) != 0xffff {
		return nil, DropICMPChecksum
	}
	at := len(out)
	out = grow(out, icmpHeaderLen)
	datagram, extension := splitError4(m)
	out, total, r := c.inner46(out, datagram, !simple)
	if r == DropICMPNested {
		return nil, r
	}
	head, ok := c.head46(m, total)
	switch {
	case !ok:
		return nil, DropICMPType
	case r != Unmatched:
		return nil, r
	}
	head.put(out[at:])
	if extension == nil && len(datagram) > total {
		out = append(out, datagram[total:]...) // whatever that is
	}
	room := maxError6
	if c.o.MTU > 0 {
		room = min(room, max(c.o.MTU, maxError4))
	}
	if head.typ != icmp6Unreachable && head.typ != icmp6TimeExceeded {
		extension = nil // RFC 4884 section 4.6: these have no room for a length
	}
	out, words := appendExtension(out, at+icmpHeaderLen, room-header6Len-icmpHeaderLen, 8, extension, netip.Addr{})
	if words > 0 {
		out[at+4] = byte(words)
	}
	n := len(out) - at
	binary.BigEndian.PutUint16(out[at+2:], checksum.Of(pseudo6(src, dst)+protoICMP6+uint64(n), out[at:]))
	return out, Unmatched
}

// inner46 appends what the packet inside an ICMPv4 error becomes, of which q is the beginning: the header translated as
// any header, but its TTL, and the checksum of the transport updated if it is there. It returns the packet's length.
func (c *call) inner46(out, q []byte, eamDestination bool) ([]byte, int, Reason) {
	h, ok := parseInner4(q)
	if !ok || foreign4(h.proto) || h.proto == protoIGMP {
		return out, 0, DropICMPInner
	}
	icmp := h.proto == protoICMP
	if icmp && h.offset == 0 && len(h.data) > 0 && isError4(h.data) {
		return out, 0, DropICMPNested
	}
	src, _, f := c.toSix(h.src, true)
	if f.failed() {
		return out, h.total, f.reason
	}
	dst, _, f := c.toSix(h.dst, eamDestination)
	if f.failed() {
		return out, h.total, f.reason
	}
	class, next, payload := h.tos, h.proto, h.total-h.length
	if c.t.cfg.IgnoreTOS {
		class = 0
	}
	if icmp {
		next = protoICMP6
	}
	at := len(out)
	if h.fragment() {
		out = grow(out, header6Len+fragmentLen)
		put6(out[at:], class, fragmentLen+payload, protoFragment, h.ttl, src, dst)
		putFragment(out[at+header6Len:], next, h.offset, h.mf, uint32(h.id))
	} else {
		out = grow(out, header6Len)
		put6(out[at:], class, payload, next, h.ttl, src, dst)
	}
	upper := len(out)
	out = append(out, h.data...)
	switch b := out[upper:]; {
	case h.offset > 0:
	case !icmp:
		fixTransport(h.proto, b, pseudo4(h.src, h.dst), pseudo6(src, dst))
	case len(b) >= 2 && !icmpInfo46(b, payload, src, dst):
		return out, h.total, DropICMPInner
	case len(b) == 1:
		out = out[:upper] // a type without its code says nothing
	}
	return out, h.total, Unmatched
}

// icmpError64 appends the ICMPv4 error that the ICMPv6 error in h becomes (RFC 7915 section 5.3). It returns the source of
// the packet inside, and whether that was in the pool. A valid origin is who sent it, if its source does not say so.
func (c *call) icmpError64(out []byte, h *header6, origin netip.Addr) (_ []byte, src addr4, byPool bool, r Reason) {
	m := h.data
	if len(m) < icmpHeaderLen {
		return nil, src, false, DropTransport
	}
	if checksum.Fold(checksum.Sum(pseudo6(h.src, h.dst)+protoICMP6+uint64(len(m)), m)) != 0xffff {
		return nil, src, false, DropICMPChecksum
	}
	at := len(out)
	out = grow(out, icmpHeaderLen)
	datagram, extension := splitError6(m)
	out, in, r := c.inner64(out, datagram)
	if r == DropICMPNested {
		return nil, src, false, r
	}
	head, ok := c.head64(m, in.fragmented)
	switch {
	case !ok:
		return nil, src, false, DropICMPType
	case r != Unmatched:
		return nil, src, false, r
	}
	head.put(out[at:])
	if extension == nil && len(datagram) > in.total {
		out = append(out, datagram[in.total:]...)
	}
	if c.t.cfg.NoICMPExtension {
		origin = netip.Addr{}
	}
	out, words := appendExtension(out, at+icmpHeaderLen, maxError4-header4Len-icmpHeaderLen, 4, extension, origin)
	if words > 0 {
		out[at+5] = byte(words)
	}
	binary.BigEndian.PutUint16(out[at+2:], checksum.Of(0, out[at:]))
	return out, in.src, in.byPool, Unmatched
}

// innerPacket is what is of interest of a packet inside an ICMPv6 error.
type innerPacket struct {
	src        addr4
	total      int  // its length in bytes, in IPv6, as its header says
	byPool     bool // its IPv6 source was in the pool
	fragmented bool // it has a Fragment Header
}

// inner64 appends what the packet inside an ICMPv6 error becomes, of which q is the beginning.
func (c *call) inner64(out, q []byte) (_ []byte, in innerPacket, r Reason) {
	h, ok := parseInner6(q)
	in.fragmented, in.total = h.fragmented, h.total
	if !ok || h.total < h.upper || h.routing || h.proto == protoICMP || h.fragmented && isExtension(h.next) {
		return out, in, DropICMPInner
	}
	icmp := h.proto == protoICMP6
	if icmp && h.offset == 0 && len(h.data) > 0 && isError6(h.data) {
		return out, in, DropICMPNested
	}
	var dst addr4
	if in.src, in.byPool, ok = c.toFour(h.src); ok {
		dst, _, ok = c.toFour(h.dst)
	}
	total := h.ipv4Length()
	if !ok || total > 0xffff {
		return out, in, DropICMPInner
	}
	class, proto := h.class, h.proto
	if c.t.cfg.IgnoreTrafficClass {
		class = c.t.cfg.TOS
	}
	if icmp {
		proto = protoICMP
	}
	at := len(out)
	out = grow(out, header4Len)
	field := fragmentField(h.offset, h.mf, false)
	if !h.fragmented {
		field = fragmentField(0, false, total > maxFragmentable4)
	}
	put4(out[at:], class, total, uint16(h.id), field, h.hop, proto, in.src, dst)
	upper := len(out)
	out = append(out, h.data...)
	switch b := out[upper:]; {
	case h.offset > 0:
	case !icmp:
		fixTransport(h.proto, b, pseudo6(h.src, h.dst), pseudo4(in.src, dst))
	case len(b) >= 2 && !icmpInfo64(b, h.total-h.upper, h.src, h.dst):
		return out, in, DropICMPInner
	case len(b) == 1:
		out = out[:upper]
	}
	return out, in, Unmatched
}
