package vectors

import (
	"encoding/binary"
	"net/netip"
)

// Protocols.
const (
	ICMP, IGMP, TCP, UDP, DCCP   = 1, 2, 6, 17, 33
	HopByHop, Routing, Fragment6 = 0, 43, 44
	ESP, AH, ICMP6, DestOpts     = 50, 51, 58, 60
	SCTP, UDPLite                = 132, 136
)

// IP4 is an IPv4 packet. TTL 0 is 57.
type IP4 struct {
	Src, Dst string
	TOS      byte
	ID       uint16
	DF, MF   bool
	Offset   int // in bytes
	TTL      byte
	Proto    byte
	Options  []byte // whole words
	Data     []byte
	Total    int // what the header says; 0 = the truth
}

// Bytes is the packet on the wire.
func (p IP4) Bytes() []byte {
	n := 20 + len(p.Options)
	b := make([]byte, n, n+len(p.Data))
	b[0], b[1] = 0x40|byte(n/4), p.TOS
	total := p.Total
	if total == 0 {
		total = n + len(p.Data)
	}
	binary.BigEndian.PutUint16(b[2:], uint16(total))
	binary.BigEndian.PutUint16(b[4:], p.ID)
	flags := uint16(p.Offset / 8)
	if p.DF {
		flags |= 0x4000
	}
	if p.MF {
		flags |= 0x2000
	}
	binary.BigEndian.PutUint16(b[6:], flags)
	b[8], b[9] = p.TTL, p.Proto
	if p.TTL == 0 {
		b[8] = 57
	}
	copy(b[12:], addr(p.Src))
	copy(b[16:], addr(p.Dst))
	copy(b[20:], p.Options)
	binary.BigEndian.PutUint16(b[10:], ^Sum(b))
	return append(b, p.Data...)
}

// IP6 is an IPv6 packet. Hop 0 is 57.
type IP6 struct {
	Src, Dst string
	Class    byte
	Flow     uint32
	Hop      byte
	Next     byte
	Data     []byte
	Length   int // what the header says is behind it; 0 = the truth
}

// Bytes is the packet on the wire.
func (p IP6) Bytes() []byte {
	b := make([]byte, 40, 40+len(p.Data))
	binary.BigEndian.PutUint32(b, 6<<28|uint32(p.Class)<<20|p.Flow)
	n := p.Length
	if n == 0 {
		n = len(p.Data)
	}
	binary.BigEndian.PutUint16(b[4:], uint16(n))
	b[6], b[7] = p.Next, p.Hop
	if p.Hop == 0 {
		b[7] = 57
	}
	copy(b[8:], addr(p.Src))
	copy(b[24:], addr(p.Dst))
	return append(b, p.Data...)
}

// FragmentHeader is an IPv6 Fragment Header with what is behind it.
func FragmentHeader(next byte, offset int, more bool, id uint32, data []byte) []byte {
	b := []byte{next, 0, byte(offset >> 8), byte(offset)}
	if more {
		b[3] |= 1
	}
	return append(binary.BigEndian.AppendUint32(b, id), data...)
}

func addr(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

// Sum is the sum of RFC 1071, by the letter.
func Sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		if s += w; s > 0xffff {
			s -= 0xffff
		}
	}
	return uint16(s)
}

// pseudo is the pseudo-header of a transport, of either family.
func pseudo(src, dst string, proto byte, n int) []byte {
	b := append(addr(src), addr(dst)...)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	return append(b, 0, 0, 0, proto)
}

// summed sets the checksum at an offset.
func summed(b []byte, at int, pseudo []byte) []byte {
	b[at], b[at+1] = 0, 0
	binary.BigEndian.PutUint16(b[at:], ^Sum(append(pseudo, b...)))
	return b
}

// Pattern is n bytes that differ from their neighbors.
func Pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// TCPSegment is a segment with n bytes of data.
func TCPSegment(src, dst string, n int) []byte {
	b := append([]byte{0x30, 0x39, 0, 80, 0, 0, 1, 0, 0, 0, 2, 0, 0x50, 0x18, 0xff, 0, 0, 0, 0, 0}, Pattern(n)...)
	return summed(b, 16, pseudo(src, dst, TCP, len(b)))
}

// UDPDatagram is a datagram with n bytes of data.
func UDPDatagram(src, dst string, n int) []byte {
	b := UDPWithoutSum(n)
	summed(b, 6, pseudo(src, dst, UDP, len(b)))
	if b[6] == 0 && b[7] == 0 {
		b[6], b[7] = 0xff, 0xff
	}
	return b
}

// UDPWithoutSum is a datagram whose checksum is 0.
func UDPWithoutSum(n int) []byte {
	b := []byte{0x30, 0x39, 0, 53, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(b[4:], uint16(8+n))
	return append(b, Pattern(n)...)
}

// ICMPMessage is an ICMPv4 message; rest are its bytes 4 to 7.
func ICMPMessage(typ, code byte, rest uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{typ, code, 0, 0}, rest)
	return summed(append(b, data...), 2, nil)
}

// ICMP6Message is an ICMPv6 message.
func ICMP6Message(src, dst string, typ, code byte, rest uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{typ, code, 0, 0}, rest)
	b = append(b, data...)
	return summed(b, 2, pseudo(src, dst, ICMP6, len(b)))
}

// DCCPPacket is a packet of another transport with a checksum over the addresses.
func DCCPPacket(src, dst string, n int) []byte {
	b := append([]byte{0x30, 0x39, 0, 80, 3, 0, 0, 0, 0, 0, 0, 1}, Pattern(n)...)
	return summed(b, 6, pseudo(src, dst, DCCP, len(b)))
}
