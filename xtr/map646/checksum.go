package map646

import (
	"encoding/binary"

	"github.com/tabi-lisp/tabi/xtr/checksum"
)

// pseudo4 and pseudo6 are what two addresses add to the sums of TCP, UDP and ICMPv6. pseudo6 with the upper-layer
// protocol and length is the whole pseudo-header.
func pseudo4(src, dst addr4) uint64 {
	return uint64(binary.BigEndian.Uint32(src[:])) + uint64(binary.BigEndian.Uint32(dst[:]))
}

func pseudo6(src, dst addr6) uint64 {
	return checksum.Sum(checksum.Sum(0, src[:]), dst[:])
}

// update changes the checksum in b, two bytes, for a sum that was was and is is (RFC 1624 equation 3). A wrong checksum
// stays wrong.
func update(b []byte, was, is uint64) {
	from, to := checksum.Fold(was), checksum.Fold(is)
	if from == to || from^to == 0xffff && (from == 0 || to == 0) {
		return // the same number: the other zero must not creep in
	}
	old := binary.BigEndian.Uint16(b)
	binary.BigEndian.PutUint16(b, ^checksum.Fold(uint64(^old)+uint64(^from)+uint64(to)))
}
