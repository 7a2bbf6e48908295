package gateway

import (
	"encoding/binary"
	"net/netip"

	"github.com/mdlayher/ndp"

	"github.com/tabi-lisp/tabi/xtr/checksum"
)

// mac is a MAC address that can be compared.
type mac [6]byte

var (
	broadcastMAC = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodesMAC  = mac{0x33, 0x33, 0, 0, 0, 1}
	allNodes     = netip.MustParseAddr("ff02::1")
)

// unicast reports whether m can be the address of one interface.
func (m mac) unicast() bool { return m != mac{} && m[0]&1 == 0 }

// what is the kind of a message that was heard.
type what uint8

const (
	arpRequest what = iota + 1
	arpReply
	rarp
	neighborSolicitation
	neighborAdvertisement
	routerSolicitation
	routerAdvertisement
	echo4
	echo6
)

// heard is a message from a VM, checked.
type heard struct {
	what     what
	mac      mac        // who sent it
	src, dst netip.Addr // protocol or IP source and, but for RARP, destination; ARP: sender and target
	target   netip.Addr // of Neighbor Discovery
	echo     []byte     // ICMP message of an echo request; part of what was classified
}

const (
	etherLen      = 14
	etherIP4      = 0x0800
	etherARP      = 0x0806
	etherRARP     = 0x8035
	etherIP6      = 0x86dd
	arpLen        = 28
	ip6Len        = 40
	protoICMP     = 1
	protoICMP6    = 58
	icmpEcho      = 8
	icmpEchoReply = 0
	icmp6Echo     = 128
	icmp6EchoRepl = 129
	icmp6RS       = 133
	icmp6NA       = 136
)

// classify reads an Ethernet frame. With a frame that is no good it reports the counter of why.
func classify(b []byte) (h heard, bad counter, ok bool) {
	if len(b) < etherLen {
		return heard{}, badShort, false
	}
	h.mac = mac(b[6:12])
	if !h.mac.unicast() {
		return heard{}, badMAC, false
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherARP:
		return classifyARP(h, b[etherLen:], false)
	case etherRARP:
		return classifyARP(h, b[etherLen:], true)
	case etherIP4:
		return classify4(h, b[etherLen:])
	case etherIP6:
		return classify6(h, b[etherLen:])
	}
	return heard{}, badEther, false
}

// classifyARP reads ARP and RARP (RFC 826, RFC 903) of Ethernet and IPv4.
func classifyARP(h heard, b []byte, reverse bool) (heard, counter, bool) {
	if len(b) < arpLen {
		return heard{}, badShort, false
	}
	if binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != etherIP4 || b[4] != 6 || b[5] != 4 {
		return heard{}, badARP, false
	}
	sender := mac(b[8:14])
	switch op := binary.BigEndian.Uint16(b[6:]); {
	case reverse && op == 3: // request reverse: "who am I", by which VMMs say where a MAC is now
		h.what = rarp
	case !reverse && op == 1:
		h.what = arpRequest
	case !reverse && op == 2:
		h.what = arpReply
	default:
		return heard{}, badARP, false
	}
	if sender != h.mac {
		return heard{}, badMAC, false
	}
	if !reverse {
		h.src, h.dst = netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	}
	return h, 0, true
}

// classify4 reads an ICMP echo request.
func classify4(h heard, b []byte) (heard, counter, bool) {
	if len(b) < 20 {
		return heard{}, badShort, false
	}
	head, n := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if b[0]>>4 != 4 || head < 20 || n > len(b) || n < head+8 {
		return heard{}, badShort, false
	}
	if b[9] != protoICMP || b[head] != icmpEcho || b[head+1] != 0 || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
		return heard{}, badEther, false
	}
	if checksum.Of(0, b[:head]) != 0 || checksum.Of(0, b[head:n]) != 0 {
		return heard{}, badChecksum, false
	}
	h.what, h.echo = echo4, b[head:n]
	h.src, h.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	if !unicast(h.src) {
		return heard{}, badSource, false
	}
	return h, 0, true
}

// classify6 reads Neighbor Discovery and ICMPv6 echo requests, and makes the checks of RFC 4861
// sections 6.1 and 7.1.
func classify6(h heard, b []byte) (heard, counter, bool) {
	if len(b) < ip6Len+4 {
		return heard{}, badShort, false
	}
	n := ip6Len + int(binary.BigEndian.Uint16(b[4:]))
	if b[0]>>4 != 6 || n > len(b) || n < ip6Len+4 {
		return heard{}, badShort, false
	}
	if b[6] != protoICMP6 {
		return heard{}, badEther, false
	}
	h.src, h.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	m := b[ip6Len:n]
	if checksum.Of(checksum.Pseudo(h.src, h.dst, protoICMP6, len(m)), m) != 0 {
		return heard{}, badChecksum, false
	}
	if m[0] == icmp6Echo {
		if len(m) < 8 || m[1] != 0 {
			return heard{}, badShort, false
		}
		if !unicast(h.src) {
			return heard{}, badSource, false
		}
		h.what, h.echo = echo6, m
		return h, 0, true
	}
	if m[0] < icmp6RS || m[0] > icmp6NA {
		return heard{}, badEther, false
	}
	if b[7] != ndp.HopLimit {
		return heard{}, badHopLimit, false
	}
	if m[1] != 0 {
		return heard{}, badND, false
	}
	return classifyND(h, m)
}

func classifyND(h heard, m []byte) (heard, counter, bool) {
	msg, err := ndp.ParseMessage(m)
	if err != nil || h.src.IsMulticast() {
		return heard{}, badND, false
	}
	var opts []ndp.Option
	direction := ndp.Source
	switch v := msg.(type) {
	case *ndp.NeighborSolicitation:
		h.what, h.target, opts = neighborSolicitation, v.TargetAddress, v.Options
	case *ndp.NeighborAdvertisement:
		h.what, h.target, opts, direction = neighborAdvertisement, v.TargetAddress, v.Options, ndp.Target
		if v.Solicited && h.dst.IsMulticast() {
			return heard{}, badND, false
		}
	case *ndp.RouterSolicitation:
		h.what, opts = routerSolicitation, v.Options
	case *ndp.RouterAdvertisement:
		h.what, opts = routerAdvertisement, v.Options
	default:
		return heard{}, badND, false
	}
	if h.target.IsMulticast() || h.target.Is4In6() {
		return heard{}, badND, false
	}
	unspecified := h.src.IsUnspecified()
	for _, o := range opts {
		lla, ok := o.(*ndp.LinkLayerAddress)
		if !ok || lla.Direction != direction {
			continue
		}
		if unspecified && h.what != neighborAdvertisement {
			return heard{}, badND, false
		}
		if len(lla.Addr) != 6 || mac(lla.Addr) != h.mac {
			return heard{}, badMAC, false
		}
	}
	if unspecified {
		switch h.what {
		case neighborAdvertisement, routerAdvertisement:
			return heard{}, badSource, false
		case neighborSolicitation:
			if group, err := ndp.SolicitedNodeMulticast(h.target); err != nil || group != h.dst {
				return heard{}, badND, false
			}
		}
	}
	return h, 0, true
}

// unicast reports whether a names one host.
func unicast(a netip.Addr) bool {
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Is4In6() {
		return false
	}
	if a.Is4() {
		b := a.As4()
		return b[0] != 0 && b[0] < 240
	}
	return true
}
