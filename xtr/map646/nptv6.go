package map646

import (
	"encoding/binary"
	"net/netip"

	"github.com/tabi-lisp/tabi/xtr/checksum"
)

// npt is the configuration of an NPTv6 prefix pair (RFC 6296 section 3.1).
type npt struct {
	out    uint16 // added on the way out, in one's complement
	in     uint16 // added on the way in: its inverse
	subnet bool   // prefixes of at most 48 bits: bits 48 to 63 are adjusted (section 3.4), else a word of the IID
	first  int    // the first word of the IID that may be adjusted: behind the prefix
}

func makeNPT(inside, outside netip.Prefix) npt {
	i, o := inside.Addr().As16(), outside.Addr().As16()
	// One's complement: what the prefix adds to the sum is taken from a word.
	adjust := checksum.Fold(checksum.Sum(0, i[:]) + uint64(checksum.Of(0, o[:])))
	return npt{
		out:    adjust,
		in:     ^adjust,
		subnet: inside.Bits() <= 48,
		// Behind a prefix of more than 64 bits, which the RFC does not speak of, the same rule.
		first: max(4, (inside.Bits()+15)/16),
	}
}

// mapAddr replaces the prefix of an address and adjusts it by add. It reports false for addresses that have no mapping
// (RFC 6296 sections 3.2, 3.5).
func (n npt) mapAddr(a addr6, to netip.Prefix, add uint16) (addr6, bool) {
	at := 3
	if !n.subnet {
		at = n.first
		for at < 8 && binary.BigEndian.Uint16(a[2*at:]) == 0xffff {
			at++
		}
		if at == 8 {
			return a, false
		}
	}
	w := binary.BigEndian.Uint16(a[2*at:])
	if w == 0xffff {
		return a, false
	}
	w = checksum.Fold(uint64(w) + uint64(add))
	if w == 0xffff {
		w = 0
	}
	a = replacePrefix(a, to)
	binary.BigEndian.PutUint16(a[2*at:], w)
	return a, true
}

// replacePrefix puts the bits of a prefix before the host bits of an address.
func replacePrefix(a addr6, p netip.Prefix) addr6 {
	out := p.Addr().As16()
	bits := p.Bits()
	for i := range a {
		switch n := bits - 8*i; {
		case n >= 8:
		case n <= 0:
			out[i] = a[i]
		default:
			out[i] |= a[i] & (0xff >> n)
		}
	}
	return out
}

// zeroIID reports whether bits 64 to 127 are zero.
func zeroIID(a addr6) bool { return binary.BigEndian.Uint64(a[8:]) == 0 }
