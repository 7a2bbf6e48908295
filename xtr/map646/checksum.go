package map646

import (
	"encoding/binary"
	"math/bits"
)

// sum adds b to a sum of 16-bit words in one's complement (RFC 1071), unfolded. Only the last part of what is summed may
// have an odd length.
func sum(s uint64, b []byte) uint64 {
	var carry uint64
	for len(b) >= 8 {
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b), carry)
		b = b[8:]
	}
	var rest uint64
	for len(b) >= 2 {
		rest += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		rest += uint64(b[0]) << 8
	}
	s, carry = bits.Add64(s, rest, carry)
	s, carry = bits.Add64(s, 0, carry)
	return s + carry
}

// fold makes a sum one word. The result is 0 only when all that was summed was 0.
func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// pseudo4 and pseudo6 are what two addresses add to the sums of TCP, UDP and ICMPv6. pseudo6 with the upper-layer
// protocol and length is the whole pseudo-header.
func pseudo4(src, dst addr4) uint64 {
	return uint64(binary.BigEndian.Uint32(src[:])) + uint64(binary.BigEndian.Uint32(dst[:]))
}

func pseudo6(src, dst addr6) uint64 {
	return sum(sum(0, src[:]), dst[:])
}

// update changes the checksum in b, two bytes, for a sum that was was and is is (RFC 1624 equation 3). A wrong checksum
// stays wrong.
func update(b []byte, was, is uint64) {
	from, to := fold(was), fold(is)
	if from == to || from^to == 0xffff && (from == 0 || to == 0) {
		return // the same number: the other zero must not creep in
	}
	old := binary.BigEndian.Uint16(b)
	binary.BigEndian.PutUint16(b, ^fold(uint64(^old)+uint64(^from)+uint64(to)))
}
