package capture

import (
	"encoding/binary"
	"fmt"
)

// LinkType says what stands before the IP packets of a capture, by the numbers of pcap (LINKTYPE_).
type LinkType uint16

// The link types from which IP packets can be taken.
const (
	LinkEthernet  LinkType = 1
	LinkRawBSD    LinkType = 12 // LinkRaw in files that bear the number of the machine that wrote them
	LinkRawOld    LinkType = 14
	LinkRaw       LinkType = 101 // IPv4 or IPv6, and nothing before it
	LinkLinuxSLL  LinkType = 113 // Linux cooked, as tcpdump -i any has it
	LinkIPv4      LinkType = 228
	LinkIPv6      LinkType = 229
	LinkLinuxSLL2 LinkType = 276
)

// String is the name by which capture tools know the link type.
func (l LinkType) String() string {
	switch l {
	case LinkEthernet:
		return "ethernet"
	case LinkRaw, LinkRawBSD, LinkRawOld:
		return "raw"
	case LinkLinuxSLL:
		return "linux-sll"
	case LinkLinuxSLL2:
		return "linux-sll2"
	case LinkIPv4:
		return "ipv4"
	case LinkIPv6:
		return "ipv6"
	}
	return fmt.Sprintf("link-type-%d", uint16(l))
}

// Known reports whether packets can be taken out of frames of l.
func (l LinkType) Known() bool {
	switch l {
	case LinkEthernet, LinkRaw, LinkRawBSD, LinkRawOld, LinkLinuxSLL, LinkLinuxSLL2, LinkIPv4, LinkIPv6:
		return true
	}
	return false
}

// Out is the link type of a file that holds what [LinkType.Join] makes: for those that bear one family only,
// or whose numbers depend on the machine, [LinkRaw].
func (l LinkType) Out() LinkType {
	switch l {
	case LinkEthernet, LinkLinuxSLL, LinkLinuxSLL2:
		return l
	}
	return LinkRaw
}

// EtherTypes.
const (
	typeIPv4    = 0x0800
	typeIPv6    = 0x86dd
	typeVLAN    = 0x8100
	typeQinQ    = 0x88a8
	maxVLANTags = 4
)

// Split parts a frame into what stands before the IP packet and the packet, with what padding follows it. It
// reports false for a frame that holds no IP packet, or not all of what stands before it.
func (l LinkType) Split(frame []byte) (head, ip []byte, ok bool) {
	n, at := 0, -1 // bytes before the packet; where its type stands
	switch l {
	case LinkEthernet:
		n, at = 14, 12
		for range maxVLANTags {
			if len(frame) < n {
				return nil, nil, false
			}
			if t := binary.BigEndian.Uint16(frame[at:]); t != typeVLAN && t != typeQinQ {
				break
			}
			n, at = n+4, at+4
		}
	case LinkLinuxSLL:
		n, at = 16, 14
	case LinkLinuxSLL2:
		n, at = 20, 0
	case LinkRaw, LinkRawBSD, LinkRawOld, LinkIPv4, LinkIPv6:
	default:
		return nil, nil, false
	}
	if len(frame) <= n {
		return nil, nil, false
	}
	head, ip = frame[:n], frame[n:]
	version := ip[0] >> 4
	if at < 0 {
		return head, ip, version == 4 || version == 6
	}
	switch binary.BigEndian.Uint16(frame[at:]) {
	case typeIPv4:
		return head, ip, version == 4
	case typeIPv6:
		return head, ip, version == 6
	}
	return nil, nil, false
}

// Join appends to b a frame with the IP packet ip behind head, which Split returned for the same link type:
// the type in it follows the packet's family.
func (l LinkType) Join(b, head, ip []byte) []byte {
	start := len(b)
	b = append(b, head...)
	t := uint16(typeIPv4)
	if len(ip) > 0 && ip[0]>>4 == 6 {
		t = typeIPv6
	}
	switch l {
	case LinkEthernet, LinkLinuxSLL:
		binary.BigEndian.PutUint16(b[len(b)-2:], t)
	case LinkLinuxSLL2:
		binary.BigEndian.PutUint16(b[start:], t)
	}
	return append(b, ip...)
}
