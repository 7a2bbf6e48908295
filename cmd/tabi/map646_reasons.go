package main

import "github.com/tabi-lisp/tabi/xtr/map646"

// What else than map646's own reasons may become of a packet of a capture.
const (
	reasonNotIP    = "not-ip"
	reasonCutShort = "cut-short"
	reasonFragment = "icmp-fragment-kept"
)

// reasonOrder is the order in which a summary lists reasons: what passed, what no mapping speaks of, what was dropped.
func reasonOrder() []string {
	var out []string
	for r := range map646.NumReasons {
		if r.Translated() {
			out = append(out, r.String())
		}
	}
	out = append(out, reasonFragment, map646.Unmatched.String(), reasonNotIP, reasonCutShort)
	for r := range map646.NumReasons {
		if r.Dropped() {
			out = append(out, r.String())
		}
	}
	return out
}

// whyNot says of each reason, in a sentence for an operator, what is behind it.
var whyNot = map[string]string{
	reasonNotIP:    "the frame holds no IP packet",
	reasonCutShort: "the capture has not all of the packet: capture with a larger snapshot length (tcpdump -s 0)",
	reasonFragment: "a fragment of an ICMP packet, kept until the rest of it is there",

	map646.Unmatched.String():    "no service, mapping or pool address is its destination, nor does its source have a service address outside",
	map646.Translated46.String(): "from IPv4 to IPv6",
	map646.Translated64.String(): "from IPv6 to IPv4",
	map646.Translated66.String(): "IPv6 addresses for others",
	map646.Hairpinned.String():   "from one VM to the IPv4 service address of another, and back to IPv6",

	map646.DropMalformed.String():          "no IP packet, or its headers contradict themselves",
	map646.DropIllegalSource.String():      "its source is an address that no host can have",
	map646.DropIllegalDestination.String(): "its destination stands for no IPv4 host: loopback, multicast or broadcast",
	map646.DropNonGlobal.String():          "its IPv4 address is not global, and the pool prefix must not embed it (RFC 6052 section 3.1; see the key embed)",
	map646.DropUnmappedSource.String():     "its IPv6 source is the inside of no IPv4 service",
	map646.DropNoPool.String():             "there is no pool prefix to represent its IPv4 address in",
	map646.DropRelay.String():              "it came from outside of the cloud and asks for IPv4",
	map646.DropHopLimit.String():           "its TTL or hop limit is used up",
	map646.DropTooBig.String():             "it does not fit the way on, and must not be fragmented",
	map646.DropSourceRoute.String():        "it has an IPv4 source route that is not at its end (RFC 7915 section 4.1)",
	map646.DropRoutingHeader.String():      "it has a Routing header with segments left (RFC 7915 section 5.1)",
	map646.DropFragment.String():           "its data begin with an extension header behind a Fragment header (RFC 7915 section 5.1.1)",
	map646.DropProtocol.String():           "its protocol does not exist in the other family",
	map646.DropIGMP.String():               "IGMP is for one link (RFC 7915 section 4.2)",
	map646.DropTransport.String():          "it ends before the checksum of its transport header, or contradicts its own length",
	map646.DropZeroUDP.String():            "UDP without a checksum (RFC 7915 section 4.5; see the key udp_without_checksum)",
	map646.DropZeroUDPFragment.String():    "the first fragment of UDP without a checksum, for which none can be computed (RFC 7915 section 4.5)",
	map646.DropICMPFragment.String():       "a fragment of an ICMP packet, which only all fragments together can be translated",
	map646.DropICMPType.String():           "its ICMP type or code has no counterpart (RFC 7915 sections 4.2, 5.2)",
	map646.DropICMPChecksum.String():       "an ICMP error with a wrong checksum",
	map646.DropICMPInner.String():          "an ICMP error about a packet that is malformed, or that did not pass here",
	map646.DropICMPNested.String():         "an ICMP error about an ICMP error (RFC 7915 sections 4.3, 5.3)",
	map646.DropNPT.String():                "an address that NPTv6 cannot map (RFC 6296 section 3)",
	map646.DropNPTZero.String():            "an interface ID of all zeros, which NPTv6 does not map (RFC 6296 section 3.7)",
}
