package map646

import (
	"fmt"
	"net/netip"
	"slices"
)

// MinMTU6 is the least MTU of an IPv6 link in bytes (RFC 8200 section 5), and the default of Config.LowestMTU6.
const MinMTU6 = 1280

// Config is what a Translator translates by, beside the services that come and go. The zero Config translates no IPv4.
type Config struct {
	// Pool is the prefix in which the IPv4 Internet is embedded for the VMs (RFC 6052 section 2.2): of length 32, 40,
	// 48, 56, 64 or 96, with bits 64 to 71 zero. Without it, only what Explicit and the services map has an IPv6 address.
	Pool netip.Prefix
	// Own are the cloud's aggregates: an IPv6 source is given its service address only in packets that leave them.
	Own []netip.Prefix

	// Explicit are explicit address mappings (RFC 7757) beside the services, of any lengths that the RFC allows.
	Explicit []Rule
	// Translatable are the IPv4 addresses of IPv6 nodes whose own address is one of Pool (RFC 6052 section 1.3,
	// "IPv4-translatable"): destinations in it are translated, and sources of Pool that embed one.
	Translatable []netip.Prefix
	// Embed says which IPv4 addresses may be embedded in Pool.
	Embed EmbedPolicy
	// Hairpin is how VMs reach one another by IPv4 service addresses.
	Hairpin Hairpin

	// ICMPSource are the IPv4 addresses from which one is picked at random as the source of ICMP errors of routers that
	// have none (RFC 6791 section 5): an address or a prefix. Without it, that is Addr4; without both, such errors are
	// dropped.
	ICMPSource netip.Prefix
	// NoICMPExtension leaves out the router's IPv6 address, which ICMP errors from ICMPSource carry otherwise (RFC 6791
	// section 4, RFC 5837).
	NoICMPExtension bool

	// Addr4 and Addr6 are the sources of the ICMP errors of the translator itself. Without one, that family gets none.
	Addr4, Addr6 netip.Addr
	// NoErrors sends no ICMP error at all (RFC 7915 sections 4.4, 5.4). To limit their rate is the caller's matter.
	NoErrors bool

	// LowestMTU6 is the least MTU of the cloud's IPv6 paths in bytes (RFC 7915 section 4.1, "lowest-ipv6-mtu"): IPv4
	// packets without DF that become larger are fragmented. At least MinMTU6; 0 = MinMTU6.
	LowestMTU6 int
	// Plateaus are the MTUs in bytes that are assumed for routers that do not tell theirs (RFC 1191 section 7.1). Empty
	// = the table of that RFC.
	Plateaus []int

	// ZeroUDP is what becomes of IPv4 UDP without a checksum.
	ZeroUDP ZeroUDP

	// IgnoreTOS sets the IPv6 traffic class to 0 instead of copying the IPv4 TOS octet (RFC 7915 section 4.1).
	IgnoreTOS bool
	// IgnoreTrafficClass sets the IPv4 TOS octet to TOS instead of copying the IPv6 traffic class (RFC 7915 section 5.1).
	IgnoreTrafficClass bool
	TOS                uint8
}

// Rule is an explicit address mapping (RFC 7757 section 3.2): the bits of an IPv4 address behind V4 follow V6, and what
// is behind them is zero. V4 has at most as many bits behind it as V6.
type Rule struct {
	V4, V6 netip.Prefix
	// Remote: addresses of V6 stand for hosts of the IPv4 world, so that packets to them are translated to IPv4, as
	// those to Pool are. Packets from them need it not.
	Remote bool
}

// EmbedPolicy says which IPv4 addresses may be embedded in the pool prefix.
type EmbedPolicy uint8

const (
	// EmbedRFC: as RFC 6052 section 3.1 has it, only global addresses in the Well-Known Prefix 64:ff9b::/96; any in
	// another prefix.
	EmbedRFC EmbedPolicy = iota
	// EmbedGlobal: only global addresses, in whatever prefix.
	EmbedGlobal
	// EmbedAny: any, in the Well-Known Prefix too.
	EmbedAny
)

// Hairpin is how IPv6 nodes reach one another by their IPv4 addresses (RFC 7757 section 4.2).
type Hairpin uint8

const (
	// HairpinIntrinsic: such a packet is translated twice, here.
	HairpinIntrinsic Hairpin = iota
	// HairpinSimple: it leaves as IPv4, and whoever routes IPv4 sends it back.
	HairpinSimple
	// HairpinOff: it leaves as IPv4 and, if it comes back, the answer will not be recognized.
	HairpinOff
)

// ZeroUDP is what becomes of IPv4 UDP datagrams without a checksum (RFC 7915 section 4.5).
type ZeroUDP uint8

const (
	// ZeroUDPCompute: a checksum is computed. First fragments, for which that is impossible, are dropped.
	ZeroUDPCompute ZeroUDP = iota
	// ZeroUDPDrop: they are dropped.
	ZeroUDPDrop
	// ZeroUDPForward: a checksum is computed, and fragments pass without one (RFC 7915 section 1.2).
	ZeroUDPForward
)

// plateaus are those of RFC 1191 section 7.1, table 7-1.
var plateaus = []int{65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68}

func (c *Config) check() error {
	if c.Pool.IsValid() {
		if err := checkPool(c.Pool); err != nil {
			return err
		}
	}
	for _, p := range c.Own {
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("own prefix %v: not a masked prefix", p)
		}
	}
	for _, p := range c.Translatable {
		if !p.IsValid() || !p.Addr().Is4() || p != p.Masked() {
			return fmt.Errorf("translatable %v: not a masked IPv4 prefix", p)
		}
		if !c.Pool.IsValid() {
			return fmt.Errorf("translatable %v: no pool prefix", p)
		}
	}
	for i, r := range c.Explicit {
		if err := r.Valid(); err != nil {
			return err
		}
		// RFC 7757 section 5: two equal prefixes leave open what is meant.
		for _, o := range c.Explicit[:i] {
			if o.V4 == r.V4 || o.V6 == r.V6 {
				return fmt.Errorf("explicit mappings %v and %v: the same prefix twice", o, r)
			}
		}
	}
	if p := c.ICMPSource; p.IsValid() && (!p.Addr().Is4() || p != p.Masked()) {
		return fmt.Errorf("ICMP source %v: not a masked IPv4 prefix", p)
	}
	if a := c.Addr4; a.IsValid() && !a.Is4() {
		return fmt.Errorf("source of ICMPv4 errors %v: not IPv4", a)
	}
	if a := c.Addr6; a.IsValid() && (!a.Is6() || a.Is4In6()) {
		return fmt.Errorf("source of ICMPv6 errors %v: not IPv6", a)
	}
	if c.LowestMTU6 != 0 && (c.LowestMTU6 < MinMTU6 || c.LowestMTU6 > 65535) {
		return fmt.Errorf("lowest IPv6 MTU %d: want %d to 65535", c.LowestMTU6, MinMTU6)
	}
	for _, m := range c.Plateaus {
		if m < 68 || m > 65535 {
			return fmt.Errorf("plateau %d: want 68 to 65535", m)
		}
	}
	if c.Embed > EmbedAny || c.Hairpin > HairpinOff || c.ZeroUDP > ZeroUDPForward {
		return fmt.Errorf("unknown policy: embed %d, hairpin %d, zero UDP %d", c.Embed, c.Hairpin, c.ZeroUDP)
	}
	return nil
}

// complete fills in what was left to its default, and copies what the caller may change.
func (c Config) complete() Config {
	if c.LowestMTU6 == 0 {
		c.LowestMTU6 = MinMTU6
	}
	if !c.ICMPSource.IsValid() && c.Addr4.IsValid() {
		c.ICMPSource = netip.PrefixFrom(c.Addr4, 32)
	}
	c.Plateaus = slices.Clone(c.Plateaus)
	if len(c.Plateaus) == 0 {
		c.Plateaus = slices.Clone(plateaus)
	}
	c.Own, c.Explicit, c.Translatable = slices.Clone(c.Own), slices.Clone(c.Explicit), slices.Clone(c.Translatable)
	return c
}
