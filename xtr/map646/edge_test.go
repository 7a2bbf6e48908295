package map646

import (
	"net/netip"
	"testing"

	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

// Packets at the edges, and what becomes of them: by the default configuration, if there is no other.
func TestEdges(t *testing.T) {
	type ip4 = vectors.IP4
	type ip6 = vectors.IP6
	cloud := newTranslator(t, cloudConfig(), cloudServices()...)
	wellKnown := cloudConfig()
	wellKnown.Pool, wellKnown.Translatable = WellKnownPrefix, []netip.Prefix{prefix("10.0.0.0/8")}
	global := newTranslator(t, wellKnown, service("198.51.100.10", tVM), service("8.8.4.4", "2001:db8:e1d::b"))
	const client, other = "2001:db8:ffff::1", "2001:db8:5e::a"
	icmp4 := func(src, dst string, typ byte, inner []byte) []byte {
		return ip4{Src: src, Dst: dst, Proto: 1, Data: vectors.ICMPMessage(typ, 0, 0, inner)}.Bytes()
	}
	icmp6 := func(src, dst string, typ byte, inner []byte) []byte {
		return ip6{Src: src, Dst: dst, Next: 58, Data: vectors.ICMP6Message(src, dst, typ, 0, 0, inner)}.Bytes()
	}
	for _, c := range []struct {
		name string
		tr   *Translator
		in   []byte
		want Reason
	}{
		{"nothing", cloud, nil, DropMalformed},
		{"another version", cloud, []byte{0x50, 0, 0, 0}, DropMalformed},
		{"half a header", cloud, udpPacket(tClient, tService, 1)[:19], DropMalformed},
		{"6, half a header", cloud, udpPacket(tVM, tClient6, 1)[:39], DropMalformed},
		{"6, shorter than it says", cloud, udpPacket(tVM, tClient6, 9)[:50], DropMalformed},
		{"6, Fragment Header cut", cloud, ip6{Src: tVM, Dst: tClient6, Next: 44, Data: make([]byte, 7)}.Bytes(), DropMalformed},
		{"header length 4", cloud, func() []byte { b := udpPacket(tClient, tService, 1); b[0] = 0x44; return b }(), DropMalformed},
		{"options beyond themselves", cloud, ip4{Src: tClient, Dst: tService, Options: []byte{131, 77, 4, 0}, Proto: 99}.Bytes(), Translated46},
		{"an option without length", cloud, ip4{Src: tClient, Dst: tService, Options: []byte{1, 1, 1, 131}, Proto: 99}.Bytes(), Translated46},
		{"an option behind the end", cloud, ip4{Src: tClient, Dst: tService, Options: []byte{0, 131, 3, 4}, Proto: 99}.Bytes(), Translated46},
		{"UDP without all of its header", cloud, ip4{Src: tClient, Dst: tService, Proto: 17, Data: []byte{1, 2, 3, 4}}.Bytes(), DropTransport},
		{"no data at all", cloud, ip4{Src: tClient, Dst: tService, Proto: 99}.Bytes(), Translated46},
		{"6, no data at all", cloud, ip6{Src: tVM, Dst: tClient6, Next: 59}.Bytes(), Translated64},
		{"6, options, and nothing behind them", cloud, ip6{Src: tVM, Dst: tClient6, Next: 60, Data: []byte{59, 0, 1, 4, 0, 0, 0, 0}}.Bytes(), Translated64},
		{"6, UDP without all of its header", cloud, ip6{Src: tVM, Dst: tClient6, Next: 17, Data: []byte{1, 2, 3, 4}}.Bytes(), DropTransport},

		{"inside: a request that has no counterpart", cloud, icmp4(tClient, tService, 11, icmp4(tService, tClient, 13, nil)), DropICMPInner},
		{"inside: half a request", cloud, icmp4(tClient, tService, 11, icmp4(tService, tClient, 8, nil)[:21]), Translated46},
		{"inside: half an error", cloud, icmp4(tClient, tService, 11, icmp4(tService, tClient, 3, nil)[:21]), DropICMPNested},
		{"inside: IGMP", cloud, icmp4(tClient, tService, 11, ip4{Src: tService, Dst: tClient, Proto: 2}.Bytes()), DropICMPInner},
		{"6, inside: a solicitation", cloud, icmp6(tVM, tClient6, 3, icmp6(tClient6, tVM, 135, nil)), DropICMPInner},
		{"6, inside: half a request", cloud, icmp6(tVM, tClient6, 3, icmp6(tClient6, tVM, 128, nil)[:41]), Translated64},
		{"6, inside: ICMPv4", cloud, icmp6(tVM, tClient6, 3, ip6{Src: tClient6, Dst: tVM, Next: 1}.Bytes()), DropICMPInner},
		{"6, inside: a routing header", cloud, icmp6(tVM, tClient6, 3, ip6{Src: tClient6, Dst: tVM, Next: 43, Data: []byte{17, 0, 4, 1, 0, 0, 0, 0}}.Bytes()), DropICMPInner},
		{"6, inside: longer than IPv4 can be", cloud, icmp6(tVM, tClient6, 3, ip6{Src: tClient6, Dst: tVM, Next: 99, Length: 65516}.Bytes()), DropICMPInner},
		{"6, inside: shorter than its headers", cloud, icmp6(tVM, tClient6, 3, ip6{Src: tClient6, Dst: tVM, Next: 60, Length: 4, Data: make([]byte, 8)}.Bytes()), DropICMPInner},
		{"6, inside: to a VM without service", cloud, icmp6(tVM, tClient6, 3, udpPacket(tClient6, "2001:db8:e1d::77", 1)), DropICMPInner},

		{"non-global inside", global, icmp4("8.8.8.8", tService, 11, udpPacket(tService, "10.1.1.1", 1)), DropNonGlobal},
		{"non-global source inside", global, icmp4("8.8.8.8", tService, 11, udpPacket("10.1.1.1", "8.8.8.8", 1)), DropNonGlobal},
		{"6, non-global inside", global, icmp6(tVM, "64:ff9b::808:808", 3, udpPacket("64:ff9b::a01:101", tVM, 1)), DropICMPInner},
		{"6, a source that is not of the pool, and would embed 10.1.1.1", global, udpPacket("2001:db8::a01:101", "64:ff9b::808:808", 1), DropUnmappedSource},
		{"6, non-global source of the pool", global, udpPacket("64:ff9b::a01:101", "64:ff9b::808:808", 1), DropNonGlobal},
		{"a non-global IPv4-translatable destination", global, udpPacket("8.8.8.8", "10.1.1.1", 1), DropNonGlobal},
		{"a hairpin whose source is non-global", global, udpPacket(tVM, "64:ff9b::808:404", 1), DropNonGlobal},

		{"66, illegal source", cloud, udpPacket("::1", other, 1), DropIllegalSource},
		{"66, TCP cut", cloud, ip6{Src: client, Dst: other, Next: 6, Data: make([]byte, 17)}.Bytes(), DropTransport},
		{"66, options cut in a fragment", cloud, ip6{Src: client, Dst: other, Next: 44, Data: vectors.FragmentHeader(60, 0, true, 1, []byte{17, 1, 1, 12, 0, 0, 0, 0})}.Bytes(), DropTransport},
		{"66, nothing behind the Fragment Header", cloud, ip6{Src: client, Dst: other, Next: 44, Data: vectors.FragmentHeader(60, 0, true, 1, nil)}.Bytes(), DropTransport},
		{"66, to an IPv4-mapped address", cloud, udpPacket(tVM, "::ffff:192.0.2.1", 1), Unmatched},
		{"66, inside: later fragment", cloud, icmp6(client, other, 3, ip6{Src: other, Dst: client, Next: 44, Data: vectors.FragmentHeader(17, 8, false, 1, make([]byte, 8))}.Bytes()), Translated66},
		{"66, inside: headers cut", cloud, icmp6(client, other, 3, ip6{Src: other, Dst: client, Next: 60, Data: []byte{17, 200}}.Bytes()), Translated66},
		{"66, inside: not IPv6", cloud, icmp6(client, other, 3, make([]byte, 60)), Translated66},
		{"66, inside: what cannot be mapped", cloud, icmp6(client, "2001:db8:5e:100:1::1", 3, udpPacket("2001:db8:5e:100::", client, 1)), DropICMPInner},
		{"66, inside: whose destination cannot be mapped", cloud, icmp6(tVM, client, 3, udpPacket(client, "2001:db8:e1d:100::", 1)), DropICMPInner},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := c.tr.Translate(c.in, Options{})
			if r.Reason != c.want {
				t.Fatalf("%v, want %v", r.Reason, c.want)
			}
			for _, b := range r.Packets {
				if why := invalid(b); why != "" {
					t.Errorf("invalid: %s\n% x", why, b)
				}
				if right, known := checksumOf(b); known && !right {
					t.Errorf("checksum: % x", b)
				}
			}
		})
	}
	// A way that takes less than IPv6 needs.
	refused(t, cloud, udpPacket(client, other, 1000), Options{MTU: 1000}, DropTooBig)
	refused(t, cloud, ip6{Src: tVM, Dst: "2001:db8:64::c633:640b", Next: 44, Data: vectors.FragmentHeader(17, 8, false, 1, make([]byte, 64))}.Bytes(),
		Options{MTU: 52}, DropTooBig)
}

// A UDP checksum that an update makes 0 is sent as 0xffff (RFC 768).
func TestUDPUpdateToZero(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	found := 0
	for n := range 1 << 16 {
		b := vectors.UDPWithoutSum(2)
		b[8], b[9] = byte(n>>8), byte(n)
		sumTransport(b, tClient, 6, 17)
		out := only(t, tr, vectors.IP4{Src: tClient, Dst: tService, Proto: 17, Data: b}.Bytes(), Options{})
		if out[46] == 0 && out[47] == 0 {
			t.Fatalf("%#x: checksum 0", n)
		}
		if out[46] == 0xff && out[47] == 0xff {
			found++
		}
	}
	if found != 1 {
		t.Errorf("%d values with a sum of 0", found)
	}
}
