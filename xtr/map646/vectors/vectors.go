// Package vectors holds test vectors for translation: packets, and what must become of them. Every data plane that
// translates runs them: package map646 in Go, and the kernel's programs. They are built field by field, with the plainest
// checksum code there is, by nothing that is tested by them.
package vectors

import "net/netip"

// The cloud of the vectors.
var (
	Pool = netip.MustParsePrefix("2001:db8:64::/96")
	// Own are the aggregates.
	Own = []netip.Prefix{netip.MustParsePrefix("2001:db8:e1d::/48")}
	// Services are the service addresses.
	Services = []Service{
		{"198.51.100.10/32", "2001:db8:e1d::a/128"},           // IPv4, a host
		{"198.51.100.11/32", "2001:db8:e1d::b/128"},           // IPv4, a host
		{"203.0.113.16/28", "2001:db8:e1d:28::10/124"},        // IPv4, a prefix
		{"2001:db8:5e::a/128", "2001:db8:e1d::a/128"},         // one-to-one, a host that has an IPv4 service address too
		{"2001:db8:5e::b/128", "2001:db8:e1d::b/128"},         // one-to-one, a host
		{"2001:db8:5e:1::20/123", "2001:db8:e1d:1::40/123"},   // one-to-one, a prefix
		{"2001:db8:5e:100::/64", "2001:db8:e1d:100::/64"},     // NPTv6: a word of the interface ID is adjusted
		{"2001:db8:5e:7::7:0/112", "2001:db8:e1d:7::9:0/112"}, // NPTv6, as long as it may be: the last word is
	}
)

// Service is a service address, in text.
type Service struct{ Outside, Inside string }

// Vector is a packet, and what becomes of it.
type Vector struct {
	Name string
	// Clause is what the vector shows: RFC and section, such as "RFC 7915 4.1".
	Clause []string

	In []byte
	// MTU is the largest packet that the way on takes, in the family that the packet is translated to; 0 = not known.
	MTU int
	// Internet: the packet came from outside of the cloud.
	Internet bool

	// Out is what is forwarded, in order. Neither TTL nor hop limit is decremented.
	Out [][]byte
	// AnyID: the IPv4 identification of what comes out is the translator's choice; in Out it is zero.
	AnyID bool
	// Reply is the ICMP error for the sender, from Addr4 or Addr6, or nil.
	Reply []byte
	// Reason is the name of the counter.
	Reason string

	// Kernel: the kernel's data plane translates the packet itself. Others it may hand up untouched.
	Kernel bool
}

// Addr4 and Addr6 are the sources of the ICMP errors of the translator.
var (
	Addr4 = netip.MustParseAddr("198.51.100.1")
	Addr6 = netip.MustParseAddr("2001:db8:e1d::1")
)

// ICMPSource is where ICMP errors of routers without IPv4 address come from (RFC 6791).
var ICMPSource = netip.MustParsePrefix("198.51.100.2/32")
