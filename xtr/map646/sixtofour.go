package map646

import (
	"encoding/binary"
	"net/netip"
)

// maxFragmentable4 is up to which size IPv4 packets are sent without DF (RFC 7915 section 5.1).
const maxFragmentable4 = MinMTU6 - (header6Len - header4Len)

// from6 translates an IPv6 packet to IPv4 (RFC 7915 section 5), or to other IPv6 addresses.
func (c *call) from6() Result {
	h, ok := parse6(c.packet)
	if !ok {
		return Result{Reason: DropMalformed}
	}
	byPool := c.t.cfg.Pool.IsValid() && c.t.cfg.Pool.Contains(netip.AddrFrom16(h.dst))
	var e *entry
	if byPool || c.t.tables.remote {
		if e = c.t.tables.find6(inside4, h.dst); e != nil && !byPool && !e.remote {
			e = nil // a VM
		}
	}
	if !byPool && e == nil {
		return c.sixToSix(&h)
	}
	if c.o.Internet {
		return c.fail(silently(DropRelay))
	}
	p, f := c.sixToFour(&h, e)
	if f.failed() {
		return c.fail(f)
	}
	if p.hairpin != nil {
		return c.hairpin(p)
	}
	mtu := 0xffff
	if c.o.MTU > 0 {
		mtu = min(mtu, c.o.MTU)
	}
	limit := mtu
	if h.fragmented && c.o.Largest > 0 {
		limit = min(limit, max(c.o.Largest-header6Len-fragmentLen+header4Len, minMTU4))
	}
	if len(p.packet) > limit && !h.fragmented && h.total > MinMTU6 {
		return c.fail(failure{DropTooBig, tell{kind: tellTooBig, mtu: max(mtu+header6Len-header4Len, MinMTU6)}})
	}
	// RFC 7915 section 5.1.1: a packet of at most 1280 bytes must be fragmented; what its sender fragmented may be.
	if len(p.packet) > 0xffff || !c.emit4(p.packet, limit) {
		return c.fail(silently(DropTooBig))
	}
	return c.done(Translated64)
}

// packet4 is an IPv4 packet that was IPv6.
type packet4 struct {
	packet  []byte
	hairpin *entry // RFC 7757 section 4.2.2: it goes to this mapping, and so back to IPv6
}

// sixToFour builds the IPv4 packet that c.packet, whose headers are h, becomes: whole, whatever its length. e is the
// explicit mapping of its destination; without one, that is in the pool.
func (c *call) sixToFour(h *header6, e *entry) (p packet4, f failure) {
	icmp := h.proto == protoICMP6
	icmpError := icmp && h.offset == 0 && isError6(h.data)
	switch {
	case illegal6(h.src):
		return p, silently(DropIllegalSource)
	case c.o.Hop && h.hop <= 1:
		return p, failure{DropHopLimit, tell{kind: tellTimeExceeded}}
	case h.routing:
		return p, failure{DropRoutingHeader, tell{kind: tellParameter, pointer: h.segments}}
	case h.fragmented && isExtension(h.next):
		return p, prohibited(DropFragment)
	case icmp && h.fragment():
		return p, silently(DropICMPFragment)
	case h.proto == protoICMP:
		return p, prohibited(DropProtocol)
	}
	var dst addr4
	if e != nil {
		dst = e.to4(h.dst)
	} else {
		dst = extract(h.dst, c.t.cfg.Pool.Bits())
		if !c.t.cfg.mayEmbed(dst) {
			return p, prohibited(DropNonGlobal)
		}
	}
	if illegal4(dst) {
		return p, prohibited(DropIllegalDestination)
	}
	src, origin, f := c.sourceFour(h, icmpError)
	if f.failed() {
		return p, f
	}
	if c.o.Hop {
		h.hop--
	}

	class, proto := h.class, h.proto
	if c.t.cfg.IgnoreTrafficClass {
		class = c.t.cfg.TOS
	}
	if icmp {
		proto = protoICMP
	}
	out := grow(c.s.buf, header4Len)
	var innerSource addr4
	var innerByPool bool
	switch {
	case icmpError:
		var r Reason
		if out, innerSource, innerByPool, r = c.icmpError64(out, h, origin); r != Unmatched {
			return p, silently(r)
		}
	case icmp:
		if len(h.data) < icmpHeaderLen {
			return p, silently(DropTransport)
		}
		out = append(out, h.data...)
		if !icmpInfo64(out[header4Len:], len(h.data), h.src, h.dst) {
			return p, silently(DropICMPType)
		}
	default:
		out = append(out, h.data...)
		if h.offset == 0 && !fixTransport(h.proto, out[header4Len:], pseudo6(h.src, h.dst), pseudo4(src, dst)) {
			return p, silently(DropTransport)
		}
	}
	c.s.buf = out
	p.packet = out
	id, field := uint16(h.id), fragmentField(h.offset, h.mf, false)
	if !h.fragmented {
		id, field = c.t.ident.next(src, dst), fragmentField(0, false, len(out) > maxFragmentable4)
	}
	put4(out, class, len(out), id, field, h.hop, proto, src, dst)

	if c.t.cfg.Hairpin == HairpinIntrinsic {
		to := c.t.tables.find4(dst)
		switch {
		case to == nil:
		case icmpError && innerByPool && c.t.tables.find4(innerSource) != nil, !icmpError && e == nil:
			p.hairpin = to
		}
	}
	return p, failure{}
}

// sourceFour is the IPv4 source of a packet. origin is valid if it is not the sender's own, but that of an ICMP error
// whose sender has none (RFC 6791).
func (c *call) sourceFour(h *header6, icmpError bool) (src addr4, origin netip.Addr, f failure) {
	if e := c.t.tables.find6(inside4, h.src); e != nil {
		c.out = e.outside
		return e.to4(h.src), origin, failure{}
	}
	from := netip.AddrFrom16(h.src)
	if c.t.cfg.Pool.IsValid() && c.t.cfg.Pool.Contains(from) {
		if src = extract(h.src, c.t.cfg.Pool.Bits()); c.t.cfg.translatable(src) {
			if !c.t.cfg.mayEmbed(src) {
				return src, origin, prohibited(DropNonGlobal)
			}
			return src, origin, failure{}
		}
	}
	if icmpError && c.t.cfg.ICMPSource.IsValid() {
		return c.t.cfg.icmpSource(), from, failure{}
	}
	return src, origin, prohibited(DropUnmappedSource)
}

// toFour translates an address inside an ICMP error: byPool says by which of the two ways.
func (c *call) toFour(a addr6) (out addr4, byPool, ok bool) {
	if e := c.t.tables.find6(inside4, a); e != nil {
		return e.to4(a), false, true
	}
	if c.t.cfg.Pool.IsValid() && c.t.cfg.Pool.Contains(netip.AddrFrom16(a)) {
		out = extract(a, c.t.cfg.Pool.Bits())
		return out, true, c.t.cfg.mayEmbed(out)
	}
	return out, false, false
}

// ipv4Length is the total length of the IPv4 packet that an IPv6 packet with these headers becomes.
func (h *header6) ipv4Length() int { return h.total - h.upper + header4Len }

// word reads two bytes.
func word(b []byte) uint64 { return uint64(binary.BigEndian.Uint16(b)) }
