package map646

// hairpin translates an IPv4 packet, which was IPv6 a moment ago, back to IPv6 (RFC 7757 section 4.2.2). Its hop limit is
// decremented once at most.
func (c *call) hairpin(p packet4) Result {
	out4 := c.out
	c.s.middle = append(c.s.middle[:0], p.packet...)
	c.s.buf = c.s.buf[:0]
	m, ok := parse4(c.s.middle)
	if !ok || m.total != len(c.s.middle) {
		return c.fail(silently(DropTooBig)) // there is no such IPv4 packet
	}
	out, f := c.fourToSix(c.s.buf, c.s.middle, &m, p.hairpin, true)
	if f.failed() {
		c.in = p.hairpin.outside
		return c.fail(f)
	}
	c.s.buf = out
	c.out = out4
	limit := 0xffff + header6Len
	if c.o.MTU > 0 {
		limit = c.o.MTU
	}
	if m.df {
		if len(out) > limit {
			return c.fail(failure{DropTooBig, tell{kind: tellTooBig, mtu: max(limit, MinMTU6)}})
		}
	} else if c.o.Largest > 0 {
		// Otherwise it is no larger than it came: what fits 1280 bytes or so is not the question here.
		limit = min(limit, c.o.Largest)
	}
	if !c.emit6(out, limit, uint32(m.id)) {
		return c.fail(silently(DropTooBig))
	}
	return c.done(Hairpinned)
}
