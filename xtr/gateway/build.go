package gateway

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/ndp"

	"github.com/tabi-lisp/tabi/xtr/checksum"
)

// Frames that are sent. They are built rarely and each is a slice of its own.

// ether returns a frame with room for n bytes after its Ethernet header.
func ether(dst, src mac, etherType uint16, n int) []byte {
	b := make([]byte, etherLen, etherLen+n)
	copy(b, dst[:])
	copy(b[6:], src[:])
	binary.BigEndian.PutUint16(b[12:], etherType)
	return b
}

// buildARP returns an ARP packet in which sender says that senderAddr is at its MAC.
func buildARP(to mac, op uint16, sender mac, senderAddr netip.Addr, target mac, targetAddr netip.Addr) []byte {
	b := ether(to, sender, etherARP, arpLen)
	b = append(b, 0, 1, etherIP4>>8, etherIP4&0xff, 6, 4, byte(op>>8), byte(op))
	b = append(append(b, sender[:]...), senderAddr.AsSlice()...)
	return append(append(b, target[:]...), targetAddr.AsSlice()...)
}

// buildND returns a Neighbor Discovery message.
func buildND(to, from mac, src, dst netip.Addr, m ndp.Message) ([]byte, error) {
	msg, err := ndp.MarshalMessageChecksum(m, src, dst)
	if err != nil {
		return nil, fmt.Errorf("gateway: build: %w", err)
	}
	return append(ether6(to, from, src, dst, ndp.HopLimit, len(msg)), msg...), nil
}

// ether6 returns a frame with an IPv6 header before n bytes of ICMPv6.
func ether6(to, from mac, src, dst netip.Addr, hopLimit byte, n int) []byte {
	b := ether(to, from, etherIP6, ip6Len+n)
	b = append(b, 0x60, 0, 0, 0, byte(n>>8), byte(n), protoICMP6, hopLimit)
	return append(append(b, src.AsSlice()...), dst.AsSlice()...)
}

// buildAdvertisement returns a Neighbor Advertisement.
func buildAdvertisement(to, from mac, dst, target netip.Addr, router, solicited bool) ([]byte, error) {
	return buildND(to, from, target, dst, &ndp.NeighborAdvertisement{
		Router: router, Solicited: solicited,
		// A proxy should not override (RFC 4861 section 7.2.8), so that the real owner wins. Here no
		// owner can be heard on the link: the answer of the gateway is the only one.
		Override: true, TargetAddress: target,
		Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: net.HardwareAddr(from[:])}},
	})
}

// buildEcho4 returns the answer to an echo request to the address from.
func buildEcho4(to, gateway mac, from, dst netip.Addr, request []byte) []byte {
	b := ether(to, gateway, etherIP4, 20+len(request))
	n := 20 + len(request)
	b = append(b, 0x45, 0, byte(n>>8), byte(n), 0, 0, 0x40, 0, 64, protoICMP, 0, 0)
	b = append(append(b, from.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[etherLen+10:], checksum.Of(0, b[etherLen:]))
	b = append(b, request...)
	m := b[etherLen+20:]
	m[0], m[2], m[3] = icmpEchoReply, 0, 0
	binary.BigEndian.PutUint16(m[2:], checksum.Of(0, m))
	return b
}

// buildEcho6 returns the answer to an echo request to the address from.
func buildEcho6(to, gateway mac, from, dst netip.Addr, request []byte) []byte {
	b := append(ether6(to, gateway, from, dst, 64, len(request)), request...)
	m := b[etherLen+ip6Len:]
	m[0], m[2], m[3] = icmp6EchoRepl, 0, 0
	binary.BigEndian.PutUint16(m[2:], checksum.Of(checksum.Pseudo(from, dst, protoICMP6, len(m)), m))
	return b
}
