package slowpath

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// checksum adds b to a sum of 16-bit words in one's complement (RFC 1071), unfolded. Only the last
// part of what is summed may have an odd length.
func checksum(sum uint64, b []byte) uint64 {
	var carry uint64
	for len(b) >= 8 {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b), carry)
		b = b[8:]
	}
	sum, carry = bits.Add64(sum, 0, carry)
	sum += carry
	var rest uint64
	for len(b) >= 2 {
		rest += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		rest += uint64(b[0]) << 8
	}
	sum, carry = bits.Add64(sum, rest, 0)
	return sum + carry
}

// finish folds a sum and returns its complement: what goes into a checksum field.
func finish(sum uint64) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// pseudoHeader sums the pseudo-header of an upper-layer packet of n bytes (RFC 793, RFC 8200 section 8.1).
func pseudoHeader(src, dst netip.Addr, proto byte, n int) uint64 {
	sum := uint64(proto) + uint64(n)
	for _, a := range [2]netip.Addr{src, dst} {
		if a.Is4() {
			b := a.As4()
			sum += uint64(binary.BigEndian.Uint32(b[:]))
			continue
		}
		b := a.As16()
		for i := 0; i < 16; i += 4 {
			sum += uint64(binary.BigEndian.Uint32(b[i:]))
		}
	}
	return sum
}
