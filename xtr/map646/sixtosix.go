package map646

import (
	"net/netip"

	"github.com/tabi-lisp/tabi/xtr/checksum"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// sixToSix puts service addresses and EIDs in each other's place (one-to-one, and RFC 6296): the destination, if it is a
// service address; the source, if it is behind one and the packet leaves the cloud or goes to a service address (RFC 6296
// section 4.3); and in an ICMP error those of the packet inside, which went the other way.
func (c *call) sixToSix(h *header6) Result {
	t := &c.t.tables
	if illegal6(h.dst) {
		return Result{}
	}
	dst := t.find6(outside6, h.dst)
	leaves := dst != nil || !c.t.cfg.own(netip.AddrFrom16(h.dst))
	if !leaves {
		return Result{}
	}
	var src, innerSrc, innerDst *entry
	if !c.o.Internet { // nobody out there is behind a service
		src = t.find6(inside6, h.src)
	}
	inner := c.packet[h.total:h.total]
	if h.proto == protoICMP6 && h.offset == 0 && isError6(h.data) && len(h.data) >= icmpHeaderLen+header6Len &&
		h.data[icmpHeaderLen]>>4 == 6 {
		inner = c.packet[h.upper+icmpHeaderLen : h.total]
		if dst != nil {
			innerSrc = t.find6(outside6, addr6(inner[8:]))
		}
		if !c.o.Internet {
			innerDst = t.find6(inside6, addr6(inner[24:]))
		}
	}
	switch {
	case dst == nil && src == nil && innerSrc == nil && innerDst == nil:
		return Result{}
	case illegal6(h.src):
		return Result{Reason: DropIllegalSource}
	case c.o.Hop && h.hop <= 1:
		return c.fail(failure{DropHopLimit, tell{kind: tellTimeExceeded}})
	}

	c.s.buf = append(c.s.buf, c.packet[:h.total]...)
	b := c.s.buf
	if c.o.Hop {
		b[7]--
	}
	// was and is are what the changes add to the transport's sum.
	var was, is uint64
	if src != nil {
		r, ok := c.swap66(b[8:24], src, true)
		if !ok {
			return c.fail(failure{r, unmapped66(r, 8, codeSourcePolicy)})
		}
		was, is = checksum.Sum(was, h.src[:]), checksum.Sum(is, b[8:24])
		c.out = src.outside
	}
	if dst != nil {
		r, ok := c.swap66(b[24:40], dst, false)
		if !ok {
			return c.fail(failure{r, unmapped66(r, 24, codeAddress)})
		}
		if !h.routing { // else the checksum has the last segment in it (RFC 8200 section 8.1)
			was, is = checksum.Sum(was, h.dst[:]), checksum.Sum(is, b[24:40])
		}
		c.in = dst.outside
	}
	if innerSrc != nil || innerDst != nil {
		q := b[len(b)-len(inner):]
		was = checksum.Sum(was, inner)
		if !c.inner66(q, inner, innerSrc, innerDst) {
			return c.fail(silently(DropICMPInner))
		}
		is = checksum.Sum(is, q)
	}
	if h.offset == 0 && checksum.Fold(was) != checksum.Fold(is) {
		proto, at, ok := h.transport(b)
		if !ok || !fixTransport(proto, b[at:], was, is) {
			return c.fail(silently(DropTransport))
		}
	}
	if c.o.MTU > 0 && len(b) > c.o.MTU {
		if len(b) <= MinMTU6 {
			return c.fail(silently(DropTooBig)) // nobody may be told to send less (RFC 8201 section 4)
		}
		return c.fail(failure{DropTooBig, tell{kind: tellTooBig, mtu: max(c.o.MTU, MinMTU6)}})
	}
	c.s.packets = append(c.s.packets, b)
	return c.done(Translated66)
}

// inner66 swaps the addresses of a packet inside an ICMP error, q, which is inner until now, and updates the checksum of
// its transport if it is there.
func (c *call) inner66(q, inner []byte, src, dst *entry) bool {
	if src != nil {
		if _, ok := c.swap66(q[8:24], src, false); !ok {
			return false
		}
	}
	if dst != nil {
		if _, ok := c.swap66(q[24:40], dst, true); !ok {
			return false
		}
	}
	h, ok := parseInner6(inner)
	if !ok || h.offset > 0 {
		return true
	}
	was, is := checksum.Sum(0, inner[8:24]), checksum.Sum(0, q[8:24])
	if !h.routing {
		was, is = checksum.Sum(was, inner[24:40]), checksum.Sum(is, q[24:40])
	}
	if proto, at, ok := h.transport(q); ok && checksum.Fold(was) != checksum.Fold(is) {
		fixTransport(proto, q[at:], was, is)
	}
	return true
}

// swap66 replaces the address in a by what it is on the other side of a service: outside, or inside.
func (c *call) swap66(a []byte, e *entry, outside bool) (Reason, bool) {
	to := e.inside
	if outside {
		to = e.outside
	}
	was := addr6(a)
	if e.kind != fib.ServiceNPTv6 {
		is := replacePrefix(was, to)
		copy(a, is[:])
		return Unmatched, true
	}
	add := e.npt.in
	if outside {
		add = e.npt.out
	}
	if !e.npt.subnet && zeroIID(was) {
		return DropNPTZero, false
	}
	is, ok := e.npt.mapAddr(was, to, add)
	copy(a, is[:])
	return DropNPT, ok
}

// unmapped66 is what the sender of an address without mapping is told; pointer is where the address is, code the reason
// for which it is unreachable.
func unmapped66(r Reason, pointer int, code byte) tell {
	if r == DropNPTZero {
		return tell{kind: tellParameter, pointer: pointer} // RFC 6296 section 3.7
	}
	return tell{kind: tellUnreachable, code: code} // RFC 6296 section 3.2
}

// own reports whether an address is in an aggregate of the cloud.
func (c *Config) own(a netip.Addr) bool {
	for _, p := range c.Own {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
