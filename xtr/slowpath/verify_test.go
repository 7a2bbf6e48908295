package slowpath

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

func parseIP(s string) net.IP { return net.ParseIP(s) }

// decode decodes an IP packet with gopacket, verifies every checksum in it and that no byte is left
// over.
func decode(t testing.TB, b []byte) gopacket.Packet {
	t.Helper()
	first := gopacket.Decoder(layers.LayerTypeIPv4)
	if b[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	p := gopacket.NewPacket(b, first, gopacket.Default)
	if e := p.ErrorLayer(); e != nil {
		t.Fatalf("gopacket: %v\n% x", e.Error(), b)
	}
	verifyChecksums(t, b)
	return p
}

// verifyChecksums checks the lengths and checksums of an unfragmented IP packet by the plainest code
// there is.
func verifyChecksums(t testing.TB, b []byte) {
	t.Helper()
	var src, dst netip.Addr
	var proto byte
	var upper []byte
	if b[0]>>4 == 4 {
		h := int(b[0]&15) * 4
		if int(binary.BigEndian.Uint16(b[2:])) != len(b) {
			t.Fatalf("IPv4 length %d, packet %d", binary.BigEndian.Uint16(b[2:]), len(b))
		}
		if slowSum(b[:h]) != 0xffff {
			t.Fatalf("IPv4 header checksum wrong: % x", b[:h])
		}
		if binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
			return
		}
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		proto, upper = b[9], b[h:]
	} else {
		if int(binary.BigEndian.Uint16(b[4:]))+40 != len(b) {
			t.Fatalf("IPv6 length %d, packet %d", binary.BigEndian.Uint16(b[4:]), len(b))
		}
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		proto, upper = b[6], b[40:]
		for proto == protoHopByHop || proto == protoDestOpts || proto == protoRouting {
			n := 8 + int(upper[1])*8
			proto, upper = upper[0], upper[n:]
		}
	}
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(upper)))
	pseudo = append(pseudo, 0, 0, 0, proto)
	switch proto {
	case protoICMP:
		pseudo = nil
	case protoTCP, protoICMP6:
	case protoUDP:
		if int(binary.BigEndian.Uint16(upper[4:])) != len(upper) {
			t.Fatalf("UDP length %d, datagram %d", binary.BigEndian.Uint16(upper[4:]), len(upper))
		}
		if upper[6] == 0 && upper[7] == 0 {
			t.Fatal("UDP checksum 0")
		}
	default:
		return
	}
	if slowSum(append(pseudo, upper...)) != 0xffff {
		t.Fatalf("checksum of protocol %d wrong: % x", proto, upper[:min(len(upper), 40)])
	}
}

// slowSum is RFC 1071 by the letter.
func slowSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		sum += w
		if sum > 0xffff {
			sum -= 0xffff
		}
	}
	return uint16(sum)
}
