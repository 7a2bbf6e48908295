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
	// Addr4 and Addr6 are the sources of the ICMP errors of the translator.
	Addr4 = netip.MustParseAddr("198.51.100.1")
	Addr6 = netip.MustParseAddr("2001:db8:e1d::1")
	// ICMPSource is where ICMP errors of routers without IPv4 address come from (RFC 6791).
	ICMPSource = netip.MustParsePrefix("198.51.100.2/32")
)

// Service is a service address, in text.
type Service struct{ Outside, Inside string }

// Vector is a packet, and what becomes of it.
type Vector struct {
	Name string
	// Shows is the clause: RFC and section, such as "7915 4.1".
	Shows string

	In []byte
	// MTU is the largest packet that the way on takes, in the family that the packet is translated to; 0 = not known.
	MTU int
	// Internet: the packet came from outside of the cloud.
	Internet bool

	// Reason is the name of the counter.
	Reason string
	// Out is what is forwarded, in order. Neither TTL nor hop limit is decremented.
	Out [][]byte
	// AnyID: the IPv4 identification of what comes out is the translator's choice; in Out it is zero.
	AnyID bool
	// Reply is the ICMP error for the sender, from Addr4 or Addr6, or nil. Its IPv4 identification is zero, and any.
	Reply []byte

	// Kernel: the kernel's data plane translates the packet itself. Others it may hand up untouched.
	Kernel bool
}

// All returns the vectors.
func All() []Vector {
	var all []Vector
	for _, group := range []func() []Vector{fourToSix, fourToSixICMP, sixToFour, sixToFourICMP, hairpin, sixToSix} {
		all = append(all, group()...)
	}
	return all
}

// Addresses of the vectors: a and b are VMs.
const (
	client   = "192.0.2.33"             // an IPv4 client
	pClient  = "2001:db8:64::c000:221"  // in the pool
	router   = "192.0.2.1"              // an IPv4 router on the way
	pRouter  = "2001:db8:64::c000:201"  //
	client6  = "2001:db8:ffff::1"       // an IPv6 client
	router6  = "2001:db8:ffff::ffff"    // an IPv6 router on its way
	cloudHop = "2001:db8:e1d:ffff::1"   // a router of the cloud
	a4       = "198.51.100.10"          // service addresses of a, and its EID
	a66      = "2001:db8:5e::a"         //
	a        = "2001:db8:e1d::a"        //
	pa       = "2001:db8:64::c633:640a" // a4 in the pool
	b4       = "198.51.100.11"          // and of b
	b66      = "2001:db8:5e::b"         //
	b        = "2001:db8:e1d::b"        //
	pb       = "2001:db8:64::c633:640b" //
	range4   = "203.0.113.21"           // of a prefix
	range6   = "2001:db8:e1d:28::15"    //
	range66  = "2001:db8:5e:1::33"      //
	rangeIn  = "2001:db8:e1d:1::53"     //
	npt      = "2001:db8:e1d:100::1234" // NPTv6: 0x2001 + 0xdb8 + 0xe1d + 0x100 = 0x2001 + 0xdb8 + 0x5e + 0x100 + 0xdbf
	nptOut   = "2001:db8:5e:100:dbf::1234"
	npt112   = "2001:db8:e1d:7::9:55" // 0xe1d + 9 + 0x55 = 0x5e + 7 + 0xe16
	nptOut12 = "2001:db8:5e:7::7:e16"
	stranger = "2001:db8:e1d::77" // a VM without service address
)

// one is a single packet.
func one(b []byte) [][]byte { return [][]byte{b} }
