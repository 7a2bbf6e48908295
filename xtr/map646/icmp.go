package map646

import "encoding/binary"

const icmpHeaderLen = 8

// ICMPv4 types.
const (
	icmpEchoReply    = 0
	icmpUnreachable  = 3
	icmpQuench       = 4
	icmpRedirect     = 5
	icmpEcho         = 8
	icmpTimeExceeded = 11
	icmpParameter    = 12

	codeProtocol    = 2 // of icmpUnreachable
	codeFragNeeded  = 4
	codeSourceRoute = 5
	codeProhibited4 = 13
	codeBadLength   = 2 // of icmpParameter
)

// ICMPv6 types.
const (
	icmp6Unreachable  = 1
	icmp6TooBig       = 2
	icmp6TimeExceeded = 3
	icmp6Parameter    = 4
	icmp6Echo         = 128
	icmp6EchoReply    = 129
	icmp6Redirect     = 137

	codeProhibited6   = 1 // of icmp6Unreachable
	codeAddress       = 3
	codeSourcePolicy  = 5
	codeNextHeader    = 1 // of icmp6Parameter
	nextHeaderPointer = 6 // where an IPv6 header has its Next Header
)

// isError4 reports whether an ICMPv4 message is an error, with a packet inside, or too short to tell.
func isError4(m []byte) bool {
	if len(m) == 0 {
		return true
	}
	switch m[0] {
	case icmpUnreachable, icmpQuench, icmpRedirect, icmpTimeExceeded, icmpParameter:
		return true
	}
	return false
}

// isError6 reports whether an ICMPv6 message is an error (RFC 4443 section 2.1), or too short to tell.
func isError6(m []byte) bool { return len(m) == 0 || m[0] < icmp6Echo }

// icmpInfo46 translates an ICMPv4 message that is no error, of n bytes, of which m is what there is: at least two, or
// four with a checksum (RFC 7915 section 4.2). It reports false if it has no counterpart.
func icmpInfo46(m []byte, n int, src, dst addr6) bool {
	was := word(m)
	switch m[0] {
	case icmpEcho:
		m[0] = icmp6Echo
	case icmpEchoReply:
		m[0] = icmp6EchoReply
	default:
		return false
	}
	if len(m) >= 4 {
		update(m[2:4], was, word(m)+pseudo6(src, dst)+protoICMP6+uint64(n))
	}
	return true
}

// icmpInfo64 is the inverse (RFC 7915 section 5.2).
func icmpInfo64(m []byte, n int, src, dst addr6) bool {
	was := word(m)
	switch m[0] {
	case icmp6Echo:
		m[0] = icmpEcho
	case icmp6EchoReply:
		m[0] = icmpEchoReply
	default:
		return false
	}
	if len(m) >= 4 {
		update(m[2:4], was+pseudo6(src, dst)+protoICMP6+uint64(n), word(m))
	}
	return true
}

// none stands in the tables for what has no counterpart.
const none = -1

// unreachable46 are the codes of ICMPv6 type 1 for those of ICMPv4 type 3 (RFC 7915 section 4.2); 2 and 4 become other
// types.
var unreachable46 = [16]int8{0, 0, none, 4, none, 0, 0, 0, 0, 1, 1, 0, 0, 1, none, 1}

// unreachable64 are the codes of ICMPv4 type 3 for those of ICMPv6 type 1 (RFC 7915 section 5.2).
var unreachable64 = [5]int8{1, 10, 1, 1, 3}

// pointer46 is RFC 7915 figure 3.
var pointer46 = [header4Len]int8{0, 1, 4, 4, none, none, none, none, 7, 6, none, none, 8, 8, 8, 8, 24, 24, 24, 24}

// pointer64 is RFC 7915 figure 6.
var pointer64 = func() (p [header6Len]int8) {
	copy(p[:], []int8{0, 1, none, none, 2, 2, 9, 8})
	for i := 8; i < 24; i++ {
		p[i] = 12
	}
	for i := 24; i < 40; i++ {
		p[i] = 16
	}
	return p
}()

// errorHead is the first 8 bytes of an ICMP error, without its checksum.
type errorHead struct {
	typ, code byte
	rest      uint32 // bytes 4 to 7: a pointer, an MTU
}

func (e errorHead) put(m []byte) {
	m[0], m[1], m[2], m[3] = e.typ, e.code, 0, 0
	binary.BigEndian.PutUint32(m[4:], e.rest)
}

// head46 translates the head of an ICMPv4 error. total is the length of the packet inside, as its header says.
func (c *call) head46(m []byte, total int) (e errorHead, ok bool) {
	code := m[1]
	switch m[0] {
	case icmpUnreachable:
		switch {
		case code == codeProtocol:
			return errorHead{icmp6Parameter, codeNextHeader, nextHeaderPointer}, true
		case code == codeFragNeeded:
			return errorHead{typ: icmp6TooBig, rest: uint32(c.mtu46(int(binary.BigEndian.Uint16(m[6:])), total))}, true
		case int(code) < len(unreachable46) && unreachable46[code] != none:
			return errorHead{typ: icmp6Unreachable, code: byte(unreachable46[code])}, true
		}
	case icmpTimeExceeded:
		return errorHead{typ: icmp6TimeExceeded, code: code}, true
	case icmpParameter:
		if (code == 0 || code == codeBadLength) && int(m[4]) < len(pointer46) && pointer46[m[4]] != none {
			return errorHead{typ: icmp6Parameter, rest: uint32(pointer46[m[4]])}, true
		}
	}
	return e, false
}

// head64 translates the head of an ICMPv6 error. fragmented says that the packet inside has a Fragment Header.
func (c *call) head64(m []byte, fragmented bool) (e errorHead, ok bool) {
	code, rest := m[1], binary.BigEndian.Uint32(m[4:])
	switch m[0] {
	case icmp6Unreachable:
		if int(code) < len(unreachable64) {
			return errorHead{typ: icmpUnreachable, code: byte(unreachable64[code])}, true
		}
	case icmp6TooBig:
		return errorHead{icmpUnreachable, codeFragNeeded, uint32(c.mtu64(rest, fragmented))}, true
	case icmp6TimeExceeded:
		return errorHead{typ: icmpTimeExceeded, code: code}, true
	case icmp6Parameter:
		switch {
		case code == 0 && rest < uint32(len(pointer64)) && pointer64[rest] != none:
			return errorHead{typ: icmpParameter, rest: uint32(pointer64[rest]) << 24}, true
		case code == codeNextHeader:
			return errorHead{typ: icmpUnreachable, code: codeProtocol}, true
		}
	}
	return e, false
}

// mtu46 is the MTU of an ICMPv6 Packet Too Big for that of an ICMPv4 Fragmentation Needed (RFC 7915 section 4.2) about a
// packet of total bytes.
func (c *call) mtu46(mtu, total int) int {
	const more = header6Len - header4Len
	if mtu == 0 {
		// The router knows no path MTU discovery: the greatest plateau below the packet's length.
		for _, p := range c.t.cfg.Plateaus {
			if p < total && p >= MinMTU6 {
				mtu = max(mtu, p)
			}
		}
	} else {
		mtu += more
	}
	if c.o.MTU > 0 {
		mtu = min(mtu, c.o.MTU)
	}
	if c.o.BackMTU > 0 {
		mtu = min(mtu, c.o.BackMTU+more)
	}
	return max(mtu, MinMTU6)
}

// mtu64 is the MTU of an ICMPv4 Fragmentation Needed for that of an ICMPv6 Packet Too Big (RFC 7915 section 5.2).
func (c *call) mtu64(mtu uint32, fragmented bool) int {
	less := header6Len - header4Len
	n := int(min(mtu, 0xffff+uint32(less)))
	if c.o.BackMTU > 0 {
		n = min(n, c.o.BackMTU)
	}
	if fragmented {
		less += fragmentLen
	}
	n -= less
	if c.o.MTU > 0 {
		n = min(n, c.o.MTU)
	}
	return max(n, minMTU4)
}
