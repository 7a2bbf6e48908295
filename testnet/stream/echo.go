package stream

import "encoding/binary"

// echoID marks our echo requests; the stamp inside tells flows apart.
const echoID = 0x7461

// EchoLen is the length in bytes of an echo request of ours: ICMP header, stamp, some ballast.
const EchoLen = 8 + StampLen + 24

// PutEcho writes an echo request to b, which has EchoLen bytes. The kernel computes ICMPv6's checksum.
func PutEcho(b []byte, v4 bool, s Stamp) {
	clear(b[:8])
	b[0] = 128
	binary.BigEndian.PutUint16(b[4:], echoID)
	binary.BigEndian.PutUint16(b[6:], uint16(s.Seq))
	s.Put(b[8:])
	if v4 {
		b[0] = 8
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
}

// ParseEcho reads the stamp of an echo reply of ours from what a raw ICMP socket gives; over IPv4 that has the IP
// header, too.
func ParseEcho(b []byte, v4 bool) (s Stamp, ok bool) {
	if v4 {
		if len(b) < 20 || len(b) < int(b[0]&15)*4 {
			return Stamp{}, false
		}
		b = b[int(b[0]&15)*4:]
	}
	if len(b) < 8 || b[0] != 0 && b[0] != 129 || binary.BigEndian.Uint16(b[4:]) != echoID {
		return Stamp{}, false
	}
	return ParseStamp(b[8:])
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) > 0 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
