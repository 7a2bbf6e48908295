// Package checksum computes the Internet checksum (RFC 1071) of the packets that are made or changed in Go: by the
// gateway, by the slow path, by map646.
package checksum

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Sum adds b to a sum of 16-bit words in one's complement, which is not folded yet. Only the last part of what is summed
// may have an odd length.
func Sum(sum uint64, b []byte) uint64 {
	var carry uint64
	for len(b) >= 8 {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b), carry)
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
	sum, carry = bits.Add64(sum, rest, carry)
	sum, carry = bits.Add64(sum, 0, carry)
	return sum + carry
}

// Fold makes a sum one word. The result is 0 only when all that was summed was 0.
func Fold(sum uint64) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// Of is what goes into the checksum field of b, which is 0 there; sum is that of a pseudo-header, or 0. Over a packet
// with a right checksum it is 0.
func Of(sum uint64, b []byte) uint16 { return ^Fold(Sum(sum, b)) }

// Pseudo sums the pseudo-header of an upper-layer packet of n bytes (RFC 9293 section 3.1, RFC 8200 section 8.1). Both
// addresses are of one family.
func Pseudo(src, dst netip.Addr, proto byte, n int) uint64 {
	sum := uint64(proto) + uint64(n)
	for _, a := range [2]netip.Addr{src, dst} {
		if a.Is4() {
			b := a.As4()
			sum = Sum(sum, b[:])
			continue
		}
		b := a.As16()
		sum = Sum(sum, b[:])
	}
	return sum
}
