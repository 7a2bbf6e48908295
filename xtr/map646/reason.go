package map646

import "fmt"

// Reason says what became of a packet, and why. Its String is the name of a counter.
type Reason uint8

const (
	// Unmatched: no mapping speaks of the packet. It is to be forwarded as it is; Result has no packets.
	Unmatched Reason = iota

	// Translated46: from IPv4 to IPv6.
	Translated46
	// Translated64: from IPv6 to IPv4.
	Translated64
	// Translated66: IPv6 addresses for others.
	Translated66
	// Hairpinned: from a VM to the IPv4 service address of another (RFC 7757 section 4.2.2): IPv6 again.
	Hairpinned

	// DropMalformed: not an IP packet, or its headers contradict themselves.
	DropMalformed
	// DropIllegalSource: a source that no host can have (RFC 7915 sections 4.1, 5.1).
	DropIllegalSource
	// DropIllegalDestination: a destination that stands for no IPv4 host: loopback, multicast, broadcast.
	DropIllegalDestination
	// DropNonGlobal: a non-global IPv4 address, which must not be embedded in the pool prefix (RFC 6052 section 3.1).
	DropNonGlobal
	// DropUnmappedSource: the IPv6 source has no IPv4 address.
	DropUnmappedSource
	// DropNoPool: there is no pool prefix to represent an IPv4 address in.
	DropNoPool
	// DropRelay: from outside of the cloud to IPv4: nobody's way out.
	DropRelay
	// DropHopLimit: TTL or hop limit used up.
	DropHopLimit
	// DropTooBig: larger than the way on takes, and not to be fragmented.
	DropTooBig
	// DropSourceRoute: an unexpired IPv4 source route (RFC 7915 section 4.1).
	DropSourceRoute
	// DropRoutingHeader: a Routing header with segments left (RFC 7915 section 5.1).
	DropRoutingHeader
	// DropFragment: a fragment whose data begins with an extension header (RFC 7915 section 5.1.1).
	DropFragment
	// DropProtocol: a protocol that is none of the other family's transports: IPv6 extension headers and ICMPv6 in
	// IPv4, ICMPv4 in IPv6.
	DropProtocol
	// DropIGMP: IGMP (RFC 7915 section 4.2).
	DropIGMP
	// DropTransport: the packet ends before the checksum of its transport header, or contradicts its length field.
	DropTransport
	// DropZeroUDP: UDP without a checksum, which the configuration does not let pass (RFC 7915 section 4.5). An
	// operator wants to know of whom: see Flow.
	DropZeroUDP
	// DropZeroUDPFragment: the first fragment of UDP without a checksum (RFC 7915 section 4.5). See Flow.
	DropZeroUDPFragment
	// DropICMPFragment: fragmented ICMP; a Reassembler makes it whole.
	DropICMPFragment
	// DropICMPType: an ICMP type or code without counterpart (RFC 7915 sections 4.2, 5.2).
	DropICMPType
	// DropICMPChecksum: an ICMP error with a wrong checksum.
	DropICMPChecksum
	// DropICMPInner: the packet inside an ICMP error is malformed, or none that passed here.
	DropICMPInner
	// DropICMPNested: an ICMP error about an ICMP error (RFC 7915 sections 4.3, 5.3).
	DropICMPNested
	// DropNPT: an address that NPTv6 cannot map: subnet 0xffff, or an interface ID of all ones (RFC 6296 section 3).
	DropNPT
	// DropNPTZero: an interface ID of all zeros (RFC 6296 section 3.7).
	DropNPTZero

	// NumReasons is how many there are.
	NumReasons
)

var reasonNames = [NumReasons]string{
	Unmatched:              "unmatched",
	Translated46:           "translated-4to6",
	Translated64:           "translated-6to4",
	Translated66:           "translated-6to6",
	Hairpinned:             "translated-hairpin",
	DropMalformed:          "malformed",
	DropIllegalSource:      "illegal-source",
	DropIllegalDestination: "illegal-destination",
	DropNonGlobal:          "non-global-address",
	DropUnmappedSource:     "unmapped-source",
	DropNoPool:             "no-pool",
	DropRelay:              "relay",
	DropHopLimit:           "hop-limit",
	DropTooBig:             "too-big",
	DropSourceRoute:        "source-route",
	DropRoutingHeader:      "routing-header",
	DropFragment:           "fragment-extension-header",
	DropProtocol:           "protocol",
	DropIGMP:               "igmp",
	DropTransport:          "transport-header",
	DropZeroUDP:            "udp-no-checksum",
	DropZeroUDPFragment:    "udp-no-checksum-fragment",
	DropICMPFragment:       "icmp-fragment",
	DropICMPType:           "icmp-type",
	DropICMPChecksum:       "icmp-checksum",
	DropICMPInner:          "icmp-inner",
	DropICMPNested:         "icmp-nested",
	DropNPT:                "npt-unmappable",
	DropNPTZero:            "npt-interface-id",
}

// String is the name of the counter: lower case, with hyphens.
func (r Reason) String() string {
	if r < NumReasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}

// Translated reports whether the packet was translated: Result.Packets is what it became.
func (r Reason) Translated() bool { return r >= Translated46 && r <= Hairpinned }

// Dropped reports whether the packet ends here.
func (r Reason) Dropped() bool { return r > Hairpinned }
