package slowpath

import (
	"encoding/binary"

	"github.com/tabi-lisp/tabi/xtr/checksum"
)

// The virtio-net header before each frame of lisp0 (linux/virtio_net.h), in the machine's byte order,
// which is the kernel's default for a TAP.
//
//	0 flags, 1 GSO type, 2 header length, 4 GSO size, 6 checksum start, 8 checksum offset
const (
	vnetMinLen = 10

	vnetNeedsChecksum = 1 // the checksum at start+offset covers only the pseudo-header so far

	gsoNone = 0
	gsoTCP4 = 1
	gsoTCP6 = 4
	gsoUDP  = 5    // VIRTIO_NET_HDR_GSO_UDP_L4: many datagrams
	gsoECN  = 0x80 // with gsoTCP4 and gsoTCP6: CWR is set in the first segment only
)

func gsoType(vnet []byte) byte         { return vnet[1] &^ gsoECN }
func gsoSize(vnet []byte) int          { return int(binary.NativeEndian.Uint16(vnet[4:])) }
func setGSOSize(vnet []byte, n uint16) { binary.NativeEndian.PutUint16(vnet[4:], n) }

// needsChecksum returns where the missing checksum starts and where it goes, in bytes from the
// Ethernet header.
func needsChecksum(vnet []byte) (start, field int, ok bool) {
	if vnet[0]&vnetNeedsChecksum == 0 {
		return 0, 0, false
	}
	start = int(binary.NativeEndian.Uint16(vnet[6:]))
	return start, start + int(binary.NativeEndian.Uint16(vnet[8:])), true
}

// complete computes the checksum that the sender left to the device. It reports false when the header
// points outside the frame.
func complete(f *frame) bool {
	start, field, ok := needsChecksum(f.vnet())
	if !ok {
		return true
	}
	b := f.buf[f.q.vnetLen:]
	if p, ok := parsePacket(f.packet(), gsoType(f.vnet()) != gsoNone); ok {
		b = b[:etherLen+p.length]
	}
	if start < etherLen || start >= len(b) || field < start || field+2 > len(b) {
		return false
	}
	sum := checksum.Of(0, b[start:])
	if sum == 0 {
		sum = 0xffff // RFC 768: an all-zero checksum means none
	}
	binary.BigEndian.PutUint16(b[field:], sum)
	f.vnet()[0] &^= vnetNeedsChecksum
	return true
}

// segments returns how many packets the data plane counts a frame as: a super-packet is counted as
// what it is cut into, ceil(payload / GSO size).
func segments(vnet, ip []byte) uint32 {
	size := gsoSize(vnet)
	if gsoType(vnet) == gsoNone || size == 0 {
		return 1
	}
	p, ok := parsePacket(ip, true)
	if !ok {
		return 1
	}
	payload := p.length - p.payload(ip)
	if payload <= size {
		return 1
	}
	return uint32((payload + size - 1) / size)
}
