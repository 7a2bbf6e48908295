package testnet

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// announceAt is when a VMM announces a guest that has just begun to run: QEMU's defaults (announce-initial 50 ms,
// announce-step 100 ms, five rounds).
var announceAt = [...]time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, 450 * time.Millisecond, 800 * time.Millisecond}

// announce says on p, for as long as the VM runs there, that the VM runs there.
func (v *VM) announce(p *port) {
	start := time.Now()
	for i, at := range announceAt {
		time.Sleep(time.Until(start.Add(at)))
		v.mu.Lock()
		if v.closed || v.running != p {
			v.mu.Unlock()
			return
		}
		_ = p.tap.write(v.rarp()) // a lost announcement is repeated
		if i > 0 {                // the guest's own come when its driver has been told: some ten milliseconds later
			for _, a := range v.Addrs {
				_ = p.tap.write(v.gratuitous(a.Addr()))
			}
		}
		v.mu.Unlock()
	}
}

// rarp is the broadcast by which QEMU tells switches where the guest's MAC is.
func (v *VM) rarp() []byte {
	b := v.ethernet([6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 0x8035)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 3) // Ethernet, IPv4, request reverse
	b = append(b, v.MAC...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, v.MAC...)
	b = append(b, 0, 0, 0, 0)
	return pad(b)
}

// gratuitous is a gratuitous ARP (RFC 5227 section 3: an announcement), or an unsolicited Neighbor Advertisement
// (RFC 4861 section 7.2.6).
func (v *VM) gratuitous(a netip.Addr) []byte {
	if a.Is4() {
		b := v.ethernet([6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 0x0806)
		b = append(b, 0, 1, 8, 0, 6, 4, 0, 1)
		b = append(b, v.MAC...)
		b = append(b, a.AsSlice()...)
		b = append(b, 0, 0, 0, 0, 0, 0)
		b = append(b, a.AsSlice()...)
		return pad(b)
	}
	allNodes := netip.MustParseAddr("ff02::1")
	icmp := []byte{136, 0, 0, 0, 0x20, 0, 0, 0} // Neighbor Advertisement, Override
	icmp = append(icmp, a.AsSlice()...)
	icmp = append(icmp, 2, 1) // target link-layer address
	icmp = append(icmp, v.MAC...)
	pseudo := append(a.AsSlice(), allNodes.AsSlice()...)
	pseudo = append(pseudo, 0, 0, 0, byte(len(icmp)), 0, 0, 0, 58)
	binary.BigEndian.PutUint16(icmp[2:], checksum(append(pseudo, icmp...)))

	b := v.ethernet([6]byte{0x33, 0x33, 0, 0, 0, 1}, 0x86dd)
	b = append(b, 0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255)
	b = append(b, a.AsSlice()...)
	b = append(b, allNodes.AsSlice()...)
	return append(b, icmp...)
}

// ethernet begins a frame: an empty virtio_net_hdr and the Ethernet header.
func (v *VM) ethernet(dst [6]byte, etherType uint16) []byte {
	b := make([]byte, vnetHdrLen, vnetHdrLen+128)
	b = append(b, dst[:]...)
	b = append(b, v.MAC...)
	return binary.BigEndian.AppendUint16(b, etherType)
}

// pad brings a frame to Ethernet's 60 bytes.
func pad(b []byte) []byte { return append(b, make([]byte, max(0, vnetHdrLen+60-len(b)))...) }

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
