package checksum

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// slow is the sum word by word.
func slow(b []byte) uint16 {
	var sum uint32
	for i, x := range b {
		if i%2 == 0 {
			sum += uint32(x) << 8
		} else {
			sum += uint32(x)
		}
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum>>16 + sum&0xffff)
}

func TestSum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
			if n%3 == 0 {
				b[i] = 0xff // carries at every step
			}
		}
		if got, want := Fold(Sum(0, b)), slow(b); got != want {
			t.Fatalf("%d bytes: %#04x, want %#04x", n, got, want)
		}
		at := n / 4 * 2
		if got, want := Fold(Sum(Sum(0, b[:at]), b[at:])), slow(b); got != want {
			t.Fatalf("%d bytes in two parts: %#04x, want %#04x", n, got, want)
		}
	}
	if got := Fold(Sum(^uint64(0), []byte{0xff, 0xff})); got != 0xffff {
		t.Errorf("all ones: %#04x", got)
	}
}

// A header and a datagram with their checksums in place sum to nothing left.
func TestOf(t *testing.T) {
	header := []byte{0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7}
	sum := Of(0, header)
	if sum != 0xb861 {
		t.Errorf("%#04x, want 0xb861", sum)
	}
	binary.BigEndian.PutUint16(header[10:], sum)
	if rest := Of(0, header); rest != 0 {
		t.Errorf("with its checksum %#04x is left", rest)
	}
	for _, a := range [][2]string{{"192.0.2.1", "198.51.100.7"}, {"2001:db8::1", "2001:db8:ffff::2"}} {
		src, dst := netip.MustParseAddr(a[0]), netip.MustParseAddr(a[1])
		datagram := []byte{0x12, 0x34, 0x00, 0x35, 0, 11, 0, 0, 'a', 'b', 'c'}
		pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, 17, 0, byte(len(datagram)))
		if got, want := Of(Pseudo(src, dst, 17, len(datagram)), datagram), ^slow(append(pseudo, datagram...)); got != want {
			t.Errorf("%s: %#04x, want %#04x", src, got, want)
		}
	}
}
