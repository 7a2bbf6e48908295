package map646

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// call is one packet on its way through a Translator.
type call struct {
	t       *Translator
	o       Options
	s       *Scratch
	packet  []byte
	in, out netip.Prefix // Result.In, Result.Out
}

// failure is why a packet is not translated, and what its sender is told.
type failure struct {
	reason Reason // Unmatched = none
	tell   tell
}

func (f failure) failed() bool { return f.reason != Unmatched }

// silently is a failure that the sender is not told of.
func silently(r Reason) failure { return failure{reason: r} }

// prohibited is a failure for which the RFCs name no other error (RFC 7915 sections 4.4, 5.4).
func prohibited(r Reason) failure { return failure{r, tell{kind: tellProhibited}} }

func (c *call) run() Result {
	switch version(c.packet) {
	case 4:
		return c.from4()
	case 6:
		return c.from6()
	}
	return Result{Reason: DropMalformed}
}

// done is the result with the packets that were emitted.
func (c *call) done(r Reason) Result {
	return Result{Packets: c.s.packets, Reason: r, In: c.in, Out: c.out}
}

// grow makes b longer by n bytes, whatever they are.
func grow(b []byte, n int) []byte { return slices.Grow(b, n)[:len(b)+n] }

// checksumAt is where the checksum of a transport is whose pseudo-header has the addresses; ok is false for others.
func checksumAt(proto byte) (at int, ok bool) {
	switch proto {
	case protoTCP:
		return 16, true
	case protoUDP, protoUDPLite, protoDCCP:
		return 6, true
	case protoICMP6:
		return 2, true
	}
	return 0, false
}

// fixTransport updates the checksum in the header of a transport, other than ICMP, for other addresses. It reports false
// when b ends before it. An absent UDP checksum stays absent.
func fixTransport(proto byte, b []byte, was, is uint64) bool {
	at, ok := checksumAt(proto)
	if !ok {
		return true
	}
	if len(b) < at+2 {
		return false
	}
	b = b[at : at+2]
	if proto == protoUDP && b[0] == 0 && b[1] == 0 {
		return true
	}
	update(b, was, is)
	if (proto == protoUDP || proto == protoUDPLite) && b[0] == 0 && b[1] == 0 {
		b[0], b[1] = 0xff, 0xff // RFC 768: zero means none
	}
	return true
}

// emit6 makes a whole IPv6 packet the result, or fragments of it of at most limit bytes, with the identification id. It
// reports false when no fragment is that small.
func (c *call) emit6(whole []byte, limit int, id uint32) bool {
	if len(whole) <= limit {
		c.s.packets = append(c.s.packets, whole)
		return true
	}
	head, next, offset, mf := header6Len, whole[6], 0, false
	if next == protoFragment {
		field := binary.BigEndian.Uint16(whole[header6Len+2:])
		head, next, offset, mf = header6Len+fragmentLen, whole[header6Len], int(field&^7), field&1 != 0
	}
	most := (limit - header6Len - fragmentLen) &^ 7
	if most < 8 {
		return false
	}
	for data := whole[head:]; len(data) > 0; {
		n := min(most, len(data))
		start := len(c.s.buf)
		c.s.buf = grow(c.s.buf, header6Len+fragmentLen+n)
		b := c.s.buf[start:len(c.s.buf):len(c.s.buf)]
		copy(b, whole[:header6Len])
		binary.BigEndian.PutUint16(b[4:], uint16(fragmentLen+n))
		b[6] = protoFragment
		putFragment(b[header6Len:], next, offset, mf || n < len(data), id)
		copy(b[header6Len+fragmentLen:], data[:n])
		c.s.packets = append(c.s.packets, b)
		data, offset = data[n:], offset+n
	}
	return true
}

// emit4 does the same for IPv4, with the identification that the packet has.
func (c *call) emit4(whole []byte, limit int) bool {
	if len(whole) <= limit {
		c.s.packets = append(c.s.packets, whole)
		return true
	}
	most := (limit - header4Len) &^ 7
	if most < 8 {
		return false
	}
	field := binary.BigEndian.Uint16(whole[6:])
	offset, mf := int(field&offsetMask)*8, field&flagMF != 0
	for data := whole[header4Len:]; len(data) > 0; {
		n := min(most, len(data))
		start := len(c.s.buf)
		c.s.buf = grow(c.s.buf, header4Len+n)
		b := c.s.buf[start:len(c.s.buf):len(c.s.buf)]
		copy(b, whole[:header4Len])
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[6:], fragmentField(offset, mf || n < len(data), false))
		sumHeader4(b[:header4Len])
		copy(b[header4Len:], data[:n])
		c.s.packets = append(c.s.packets, b)
		data, offset = data[n:], offset+n
	}
	return true
}

// illegal4 reports whether no host can have an IPv4 address (RFC 1812 section 5.3.7).
func illegal4(a addr4) bool { return a[0] == 0 || a[0] == 127 || a[0] >= 224 }

// illegal6 reports whether no packet that is routed can come from, or go to, an IPv6 address: unspecified, loopback, IPv4-mapped,
// multicast, link-local.
func illegal6(a addr6) bool {
	n := netip.AddrFrom16(a)
	return n.IsUnspecified() || n.IsLoopback() || n.Is4In6() || n.IsMulticast() || n.IsLinkLocalUnicast()
}
