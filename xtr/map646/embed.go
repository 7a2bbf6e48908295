package map646

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

type (
	addr4 = [4]byte
	addr6 = [16]byte
)

// WellKnownPrefix is that of RFC 6052 section 2.1.
var WellKnownPrefix = netip.MustParsePrefix("64:ff9b::/96")

// checkPool says what keeps p from being a prefix to embed IPv4 addresses in (RFC 6052 section 2.2).
func checkPool(p netip.Prefix) error {
	a := p.Addr()
	if !a.Is6() || a.Is4In6() || p != p.Masked() {
		return fmt.Errorf("pool prefix %v: not a masked IPv6 prefix", p)
	}
	switch p.Bits() {
	case 32, 40, 48, 56, 64:
	case 96:
		if a.As16()[8] != 0 {
			return fmt.Errorf("pool prefix %v: bits 64 to 71 must be zero", p)
		}
	default:
		return fmt.Errorf("pool prefix %v: its length must be 32, 40, 48, 56, 64 or 96", p)
	}
	if a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return fmt.Errorf("pool prefix %v: no addresses of hosts", p)
	}
	return nil
}

// Embed returns the IPv6 address that stands for an IPv4 address under a pool prefix (RFC 6052 section 2.3). The prefix
// must be one that New takes.
func Embed(pool netip.Prefix, a netip.Addr) netip.Addr {
	return netip.AddrFrom16(embed(pool.Addr().As16(), pool.Bits(), a.As4()))
}

// Extract returns the IPv4 address that an IPv6 address under a pool prefix stands for (RFC 6052 section 2.3). It reports
// false for what is not under the prefix. Bits behind the IPv4 address are ignored (section 2.2).
func Extract(pool netip.Prefix, a netip.Addr) (netip.Addr, bool) {
	if !pool.Contains(a) {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4(extract(a.As16(), pool.Bits())), true
}

func embed(pool addr6, bits int, a addr4) addr6 {
	for i, b := range a {
		pool[embedded(bits, i)] = b
	}
	return pool
}

func extract(a addr6, bits int) (out addr4) {
	for i := range out {
		out[i] = a[embedded(bits, i)]
	}
	return out
}

// embedded is where byte i of the IPv4 address is: behind the prefix, but never in bits 64 to 71.
func embedded(bits, i int) int {
	at := bits/8 + i
	if bits < 96 && at >= 8 {
		at++
	}
	return at
}

// nonGlobal are the prefixes of RFC 5735 section 3, among them those of RFC 1918, and that of RFC 6598.
var nonGlobal = func() (out [15]struct{ addr, mask uint32 }) {
	for i, s := range [...]string{"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"} {
		p := netip.MustParsePrefix(s)
		a := p.Addr().As4()
		out[i].addr, out[i].mask = binary.BigEndian.Uint32(a[:]), ^uint32(0)<<(32-p.Bits())
	}
	return out
}()

func isGlobal(a addr4) bool {
	n := binary.BigEndian.Uint32(a[:])
	for _, p := range nonGlobal {
		if n&p.mask == p.addr {
			return false
		}
	}
	return true
}

// mayEmbed reports whether the configuration lets an IPv4 address be embedded in the pool prefix.
func (c *Config) mayEmbed(a addr4) bool {
	switch c.Embed {
	case EmbedAny:
		return true
	case EmbedRFC:
		if c.Pool != WellKnownPrefix {
			return true
		}
	}
	return isGlobal(a)
}
