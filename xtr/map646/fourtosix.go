package map646

import (
	"encoding/binary"
	"net/netip"

	"github.com/tabi-lisp/tabi/xtr/checksum"
)

// from4 translates an IPv4 packet to IPv6 (RFC 7915 section 4).
func (c *call) from4() Result {
	h, ok := parse4(c.packet)
	if !ok {
		return Result{Reason: DropMalformed}
	}
	e := c.t.tables.find4(h.dst)
	if e == nil && !c.t.cfg.translatable(h.dst) {
		return Result{}
	}
	if checksum.Fold(checksum.Sum(0, c.packet[:h.length])) != 0xffff {
		return Result{Reason: DropMalformed} // RFC 1812 section 5.2.2
	}
	if c.o.Hop && h.ttl <= 1 {
		return c.fail(failure{DropHopLimit, tell{kind: tellTimeExceeded}})
	}
	if c.o.Hop {
		h.ttl--
	}
	// Nobody out there has an address of ours: that of a VM which came round by IPv4 is to be answered the same way, and
	// that of a liar must not become an EID.
	simple := c.t.cfg.Hairpin == HairpinSimple || c.t.cfg.Hairpin == HairpinIntrinsic && c.o.Internet
	out, f := c.fourToSix(c.s.buf, c.packet, &h, e, simple)
	if f.failed() {
		return c.fail(f)
	}
	c.s.buf = out
	limit := 0xffff + header6Len
	if h.df {
		if c.o.MTU > 0 && len(out) > c.o.MTU {
			// RFC 7915 section 4.1. What the Fragment Header takes is not the sender's either.
			less := header6Len - header4Len
			if h.fragment() {
				less += fragmentLen
			}
			return c.fail(failure{DropTooBig, tell{kind: tellTooBig, mtu: max(c.o.MTU-less, minMTU4)}})
		}
	} else {
		limit = c.t.cfg.LowestMTU6
		if c.o.MTU > 0 {
			limit = min(limit, c.o.MTU)
		}
		if c.o.Largest > 0 {
			limit = min(limit, c.o.Largest+header6Len-header4Len+fragmentLen)
		}
	}
	if !c.emit6(out, limit, uint32(h.id)) {
		return c.fail(silently(DropTooBig))
	}
	return c.done(Translated46)
}

// fourToSix appends the IPv6 packet that p, whose header is h, becomes: whole, whatever its length. e is the mapping of
// its destination; without one, that is IPv4-translatable. simple applies RFC 7757 section 4.2.1.
func (c *call) fourToSix(out, p []byte, h *header4, e *entry, simple bool) ([]byte, failure) {
	icmp := h.proto == protoICMP
	icmpError := icmp && h.offset == 0 && isError4(h.data)
	switch {
	case illegal4(h.src) && !icmpError:
		return nil, silently(DropIllegalSource)
	case illegal4(h.dst):
		return nil, silently(DropIllegalDestination)
	case sourceRouted(p[header4Len:h.length]):
		return nil, failure{DropSourceRoute, tell{kind: tellSourceRoute}}
	case icmp && h.fragment():
		return nil, silently(DropICMPFragment)
	case h.proto == protoIGMP:
		return nil, silently(DropIGMP)
	case foreign4(h.proto):
		return nil, prohibited(DropProtocol)
	}
	eamSource := !simple
	if icmpError && simple && len(h.data) >= icmpHeaderLen+header4Len {
		// Rule 3: the host that sends the error is the one that the packet was for.
		eamSource = addr4(h.data[icmpHeaderLen+16:]) != h.src
	}
	src, se, f := c.toSix(h.src, eamSource)
	if f.failed() {
		return nil, f
	}
	var dst addr6
	if e != nil {
		dst, c.in = e.to6(h.dst), e.outside
	} else if dst, _, f = c.toSix(h.dst, false); f.failed() {
		return nil, f
	}
	if se != nil {
		c.out = se.outside
	}

	class, next := h.tos, h.proto
	if c.t.cfg.IgnoreTOS {
		class = 0
	}
	if icmp {
		next = protoICMP6
	}
	start := len(out)
	if h.fragment() {
		out = grow(out, header6Len+fragmentLen)
		put6(out[start:], class, fragmentLen+len(h.data), protoFragment, h.ttl, src, dst)
		putFragment(out[start+header6Len:], next, h.offset, h.mf, uint32(h.id))
	} else {
		out = grow(out, header6Len)
		put6(out[start:], class, len(h.data), next, h.ttl, src, dst)
	}
	upper := len(out)
	switch {
	case icmpError:
		var r Reason
		if out, r = c.icmpError46(out, h, src, dst, simple); r != Unmatched {
			return nil, silently(r)
		}
		binary.BigEndian.PutUint16(out[start+4:], uint16(len(out)-start-header6Len))
	case icmp:
		if len(h.data) < icmpHeaderLen {
			return nil, silently(DropTransport)
		}
		out = append(out, h.data...)
		if !icmpInfo46(out[upper:], len(h.data), src, dst) {
			return nil, silently(DropICMPType)
		}
	default:
		out = append(out, h.data...)
		if h.offset > 0 {
			break
		}
		if f := c.transport46(h, out[upper:], src, dst); f.failed() {
			return nil, f
		}
	}
	return out[start:], failure{}
}

// transport46 updates the checksum of a transport header that became part of an IPv6 packet (RFC 7915 section 4.5).
func (c *call) transport46(h *header4, b []byte, src, dst addr6) failure {
	if h.proto == protoUDP && len(b) >= udpHeaderLen && b[6] == 0 && b[7] == 0 {
		switch {
		case h.fragment() && c.t.cfg.ZeroUDP == ZeroUDPForward:
			return failure{}
		case h.fragment():
			return prohibited(DropZeroUDPFragment)
		case c.t.cfg.ZeroUDP == ZeroUDPDrop:
			return prohibited(DropZeroUDP)
		}
		n := int(binary.BigEndian.Uint16(b[4:]))
		if n < udpHeaderLen || n > len(b) {
			return silently(DropTransport)
		}
		sumUDP(b[:n], src, dst)
		return failure{}
	}
	if !fixTransport(h.proto, b, pseudo4(h.src, h.dst), pseudo6(src, dst)) {
		return silently(DropTransport)
	}
	return failure{}
}

const udpHeaderLen = 8

// sumUDP sets the checksum of a UDP datagram.
func sumUDP(b []byte, src, dst addr6) {
	b[6], b[7] = 0, 0
	s := ^checksum.Fold(checksum.Sum(pseudo6(src, dst)+protoUDP+uint64(len(b)), b))
	if s == 0 {
		s = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], s)
}

// toSix translates an IPv4 address: by an explicit mapping if eam allows that and there is one, else into the pool.
func (c *call) toSix(a addr4, eam bool) (addr6, *entry, failure) {
	if eam {
		if e := c.t.tables.find4(a); e != nil {
			return e.to6(a), e, failure{}
		}
	}
	switch {
	case !c.t.cfg.Pool.IsValid():
		return addr6{}, nil, prohibited(DropNoPool)
	case !c.t.cfg.mayEmbed(a):
		return addr6{}, nil, prohibited(DropNonGlobal)
	}
	return embed(c.t.cfg.Pool.Addr().As16(), c.t.cfg.Pool.Bits(), a), nil, failure{}
}

// translatable reports whether an IPv4 address is that of an IPv6 node whose own address is in the pool.
func (c *Config) translatable(a addr4) bool {
	for _, p := range c.Translatable {
		if p.Contains(netip.AddrFrom4(a)) {
			return true
		}
	}
	return false
}

// foreign4 reports whether a protocol number means in IPv6 something that it does not mean in IPv4: what carries it would
// be read as an extension header, or as ICMPv6 that nobody has looked into.
func foreign4(proto byte) bool {
	switch proto {
	case protoHopByHop, protoRouting, protoFragment, protoDestOpts, protoICMP6:
		return true
	}
	return false
}

// sourceRouted reports whether options hold a source route that is not at its end (RFC 791 section 3.1).
func sourceRouted(options []byte) bool {
	const end, nop, loose, strict = 0, 1, 131, 137
	for len(options) > 0 && options[0] != end {
		if options[0] == nop {
			options = options[1:]
			continue
		}
		if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
			return false // malformed: what follows means nothing, and is not translated anyway
		}
		o := options[:options[1]]
		if (o[0] == loose || o[0] == strict) && len(o) >= 3 && int(o[2]) <= len(o) {
			return true
		}
		options = options[len(o):]
	}
	return false
}
