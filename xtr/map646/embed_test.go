package map646

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// The tables of RFC 6052 section 2.4.
var embedTable = []struct{ pool, v4, v6 string }{
	{"2001:db8::/32", "192.0.2.33", "2001:db8:c000:221::"},
	{"2001:db8:100::/40", "192.0.2.33", "2001:db8:1c0:2:21::"},
	{"2001:db8:122::/48", "192.0.2.33", "2001:db8:122:c000:2:2100::"},
	{"2001:db8:122:300::/56", "192.0.2.33", "2001:db8:122:3c0:0:221::"},
	{"2001:db8:122:344::/64", "192.0.2.33", "2001:db8:122:344:c0:2:2100::"},
	{"2001:db8:122:344::/96", "192.0.2.33", "2001:db8:122:344::192.0.2.33"},
	{"64:ff9b::/96", "192.0.2.33", "64:ff9b::192.0.2.33"},
}

func TestEmbed(t *testing.T) {
	for _, c := range embedTable {
		pool := prefix(c.pool)
		if got := Embed(pool, addr(c.v4)); got != addr(c.v6) {
			t.Errorf("%v: %v embeds as %v, want %v", pool, c.v4, got, c.v6)
		}
		if got, ok := Extract(pool, addr(c.v6)); !ok || got != addr(c.v4) {
			t.Errorf("%v: %v extracts as %v %v, want %v", pool, c.v6, got, ok, c.v4)
		}
		if _, ok := Extract(pool, addr("2001:db9::1")); ok {
			t.Errorf("%v: extracts of an address elsewhere", pool)
		}
		for range 100 {
			a := netip.AddrFrom4([4]byte{byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32())})
			e := Embed(pool, a)
			if e.As16()[8] != 0 {
				t.Fatalf("%v: %v embeds as %v: bits 64 to 71 are not zero", pool, a, e)
			}
			if back, ok := Extract(pool, e); !ok || back != a {
				t.Fatalf("%v: %v embeds as %v, which extracts as %v", pool, a, e, back)
			}
		}
	}
}

// Packets by a pool prefix of every length, both ways, and with a suffix that is not zero (RFC 6052 section 2.2).
func TestEmbedPackets(t *testing.T) {
	for _, c := range embedTable {
		tr := newTranslator(t, Config{Pool: prefix(c.pool), Embed: EmbedAny}, service("198.51.100.10", "2001:db8:e1d::a"))
		out := only(t, tr, udpPacket(c.v4, "198.51.100.10", 9), Options{})
		if got, want := endsOf(out), (ends{addr(c.v6).String(), "2001:db8:e1d::a"}); got != want {
			t.Errorf("%s: %v, want %v", c.pool, got, want)
		}
		a := addr(c.v6).As16()
		if prefix(c.pool).Bits() < 96 {
			a[15] = 7
		}
		out = only(t, tr, udpPacket("2001:db8:e1d::a", netip.AddrFrom16(a).String(), 9), Options{})
		if got, want := endsOf(out), (ends{"198.51.100.10", c.v4}); got != want {
			t.Errorf("%s: %v, want %v", c.pool, got, want)
		}
	}
}

func TestEmbedPoolPrefix(t *testing.T) {
	for _, p := range []string{"2001:db8::/33", "2001:db8::/95", "2001:db8::/128", "2001:db8:0:0:100::/96", "::/96", "::/32",
		"fe80::/64", "ff00::/32", "192.0.2.0/24", "2001:db8::1/96", "::ffff:0:0/96"} {
		if _, err := New(Config{Pool: prefix(p)}); err == nil {
			t.Errorf("%s is taken for a pool prefix", p)
		}
	}
	for bits := range 129 {
		_, err := New(Config{Pool: netip.PrefixFrom(addr("2001:db8::"), bits).Masked()})
		legal := map[int]bool{32: true, 40: true, 48: true, 56: true, 64: true, 96: true}[bits]
		if legal != (err == nil) {
			t.Errorf("length %d: %v", bits, err)
		}
	}
}

// RFC 6052 section 3.1: non-global addresses.
func TestEmbedNonGlobal(t *testing.T) {
	const vm, outside = "2001:db8:e1d::a", "198.51.100.10"
	local := []string{"10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.7.7", "169.254.1.1", "100.64.0.1", "192.0.0.9",
		"192.0.2.1", "198.18.0.1", "198.19.255.1", "198.51.100.77", "203.0.113.9", "192.88.99.1"}
	global := []string{"8.8.8.8", "172.32.0.1", "192.169.0.1", "100.128.0.1", "198.20.0.1", "11.0.0.1", "223.255.255.255"}
	for _, c := range []struct {
		pool   string
		policy EmbedPolicy
		local  bool // may be embedded
	}{
		{"64:ff9b::/96", EmbedRFC, false},
		{"64:ff9b::/96", EmbedGlobal, false},
		{"64:ff9b::/96", EmbedAny, true},
		{"2001:db8:64::/96", EmbedRFC, true},
		{"2001:db8:64::/96", EmbedGlobal, false},
		{"2001:db8:64::/96", EmbedAny, true},
	} {
		tr := newTranslator(t, Config{Pool: prefix(c.pool), Embed: c.policy, Addr4: addr("192.0.2.254"), Addr6: addr("2001:db8::fe")},
			service(outside, vm))
		for _, a := range global {
			only(t, tr, udpPacket(a, outside, 1), Options{})
			only(t, tr, udpPacket(vm, Embed(prefix(c.pool), addr(a)).String(), 1), Options{})
		}
		for _, a := range local {
			in, out := udpPacket(a, outside, 1), udpPacket(vm, Embed(prefix(c.pool), addr(a)).String(), 1)
			if c.local {
				only(t, tr, in, Options{})
				only(t, tr, out, Options{})
				continue
			}
			if refused(t, tr, in, Options{}, DropNonGlobal) == nil || refused(t, tr, out, Options{}, DropNonGlobal) == nil {
				t.Errorf("%s: nobody is told", a)
			}
		}
	}
}

// RFC 7915 appendix A: both nodes by the pool, with an IPv4-translatable address of the IPv6 node.
func TestEmbedTranslatable(t *testing.T) {
	tr := newTranslator(t, Config{Pool: prefix("2001:db8:100::/40"), Translatable: []netip.Prefix{prefix("192.0.2.0/24")}})
	h6, h4in6 := "2001:db8:1c0:2:21::", "2001:db8:1c6:3364:2::"
	if got, want := endsOf(only(t, tr, udpPacket(h6, h4in6, 5), Options{})), (ends{"192.0.2.33", "198.51.100.2"}); got != want {
		t.Errorf("6 to 4: %v, want %v", got, want)
	}
	if got, want := endsOf(only(t, tr, udpPacket("198.51.100.2", "192.0.2.33", 5), Options{})), (ends{h4in6, h6}); got != want {
		t.Errorf("4 to 6: %v, want %v", got, want)
	}
	// A source that embeds somebody else's address is a forgery (RFC 6052 section 5.1).
	refused(t, tr, udpPacket("2001:db8:1c6:3364:3::", h4in6, 5), Options{}, DropUnmappedSource)
	if r := tr.Translate(udpPacket("192.0.2.33", "198.51.100.2", 5), Options{}); r.Reason != Unmatched {
		t.Errorf("a destination of the IPv4 world: %v", r.Reason)
	}
}
