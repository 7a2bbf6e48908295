package map646

import (
	"encoding/binary"
	"net/netip"

	"github.com/tabi-lisp/tabi/xtr/checksum"
)

// tellKind is what the sender of a packet is told that was not translated.
type tellKind uint8

const (
	tellNothing      tellKind = iota
	tellProhibited            // RFC 7915 sections 4.4, 5.4
	tellTimeExceeded          // TTL or hop limit used up
	tellTooBig                // with an MTU
	tellSourceRoute           // IPv4: source route failed
	tellParameter             // IPv6: parameter problem, with a pointer
	tellUnreachable           // IPv6: destination unreachable, with a code
)

type tell struct {
	kind    tellKind
	mtu     int // in bytes, in the family of the packet
	pointer int
	code    byte
}

const (
	replyTTL = 64
	replyTOS = 0xc0 // RFC 1812 section 4.3.2.5: precedence 6
)

// fail ends a packet: nothing is forwarded, and its sender may be told.
func (c *call) fail(f failure) Result {
	r := Result{Reason: f.reason, In: c.in, Out: c.out}
	if f.tell.kind == tellNothing || c.t.cfg.NoErrors {
		return r
	}
	c.s.buf, c.s.packets = c.s.buf[:0], c.s.packets[:0]
	if version(c.packet) == 4 {
		r.Reply = c.reply4(f.tell)
	} else {
		r.Reply = c.reply6(f.tell)
	}
	return r
}

func (c *call) reply4(t tell) []byte {
	h, ok := parse4(c.packet)
	from := c.t.cfg.Addr4
	// RFC 1812 section 4.3.2.7, RFC 7915 section 4.4.
	if !ok || !from.IsValid() || h.offset > 0 || illegal4(h.src) || illegal4(h.dst) || h.proto == protoICMP && isError4(h.data) {
		return nil
	}
	var e errorHead
	switch t.kind {
	case tellTimeExceeded:
		e = errorHead{typ: icmpTimeExceeded}
	case tellTooBig:
		e = errorHead{icmpUnreachable, codeFragNeeded, uint32(min(t.mtu, 0xffff))}
	case tellSourceRoute:
		e = errorHead{typ: icmpUnreachable, code: codeSourceRoute}
	default:
		e = errorHead{typ: icmpUnreachable, code: codeProhibited4}
	}
	quote := c.packet[:min(h.total, maxError4-header4Len-icmpHeaderLen)]
	c.s.buf = grow(c.s.buf, header4Len+icmpHeaderLen)
	c.s.buf = append(c.s.buf, quote...)
	b, src := c.s.buf, from.As4()
	put4(b, replyTOS, len(b), c.t.ident.next(src, h.src), 0, replyTTL, protoICMP, src, h.src)
	m := b[header4Len:]
	e.put(m)
	binary.BigEndian.PutUint16(m[2:], checksum.Of(0, m))
	return b
}

func (c *call) reply6(t tell) []byte {
	h, ok := parse6(c.packet)
	from := c.t.cfg.Addr6
	// RFC 4443 section 2.4(e).
	if !ok || !from.IsValid() || h.offset > 0 || illegal6(h.src) || netip.AddrFrom16(h.dst).IsMulticast() {
		return nil
	}
	if h.proto == protoICMP6 && (isError6(h.data) || h.data[0] == icmp6Redirect || t.kind == tellProhibited) {
		return nil // RFC 7915 section 5.4: that error is for no ICMPv6 message at all
	}
	var e errorHead
	switch t.kind {
	case tellTimeExceeded:
		e = errorHead{typ: icmp6TimeExceeded}
	case tellTooBig:
		e = errorHead{typ: icmp6TooBig, rest: uint32(t.mtu)}
	case tellParameter:
		e = errorHead{typ: icmp6Parameter, rest: uint32(t.pointer)}
	case tellUnreachable:
		e = errorHead{typ: icmp6Unreachable, code: t.code}
	default:
		e = errorHead{typ: icmp6Unreachable, code: codeProhibited6}
	}
	quote := c.packet[:min(h.total, maxError6-header6Len-icmpHeaderLen)]
	c.s.buf = grow(c.s.buf, header6Len+icmpHeaderLen)
	c.s.buf = append(c.s.buf, quote...)
	b, src := c.s.buf, from.As16()
	put6(b, 0, len(b)-header6Len, protoICMP6, replyTTL, src, h.src)
	m := b[header6Len:]
	e.put(m)
	binary.BigEndian.PutUint16(m[2:], checksum.Of(pseudo6(src, h.src)+protoICMP6+uint64(len(m)), m))
	return b
}
