package map646

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

func TestConfigErrors(t *testing.T) {
	pool := prefix("2001:db8:64::/96")
	for want, cfg := range map[string]Config{
		"own prefix":                    {Own: []netip.Prefix{netip.MustParsePrefix("2001:db8::1/64")}},
		"no pool prefix":                {Translatable: []netip.Prefix{prefix("192.0.2.0/24")}},
		"not a masked IPv4 prefix":      {Pool: pool, Translatable: []netip.Prefix{prefix("2001:db8::/64")}},
		"ICMP source":                   {ICMPSource: prefix("2001:db8::/64")},
		"source of ICMPv4 errors":       {Addr4: addr("::1")},
		"source of ICMPv6 errors":       {Addr6: addr("192.0.2.1")},
		"lowest IPv6 MTU 1279: want":    {LowestMTU6: 1279},
		"lowest IPv6 MTU 65536: want":   {LowestMTU6: 65536},
		"plateau 67":                    {Plateaus: []int{1500, 67}},
		"unknown policy: embed 3":       {Embed: 3},
		"unknown policy: embed 0, hair": {Hairpin: 9},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "map646: ") {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// The zero Config translates nothing that is IPv4.
func TestConfigZero(t *testing.T) {
	tr := newTranslator(t, Config{})
	for _, b := range [][]byte{udpPacket(tClient, tService, 1), udpPacket(tVM, tClient6, 1)} {
		if r := tr.Translate(b, Options{}); r.Reason != Unmatched || r.Packets != nil || r.Reply != nil {
			t.Errorf("%v", r.Reason)
		}
	}
	// With a service, but no pool for the client.
	if err := tr.SetServices(context.Background(), cloudServices()...); err != nil {
		t.Fatal(err)
	}
	refused(t, tr, udpPacket(tClient, tService, 1), Options{}, DropNoPool)
}

// What is set for the type of service (RFC 7915 sections 4.1, 5.1), in the packets inside errors too.
func TestConfigTOS(t *testing.T) {
	for tos := 0; tos < 256; tos += 5 {
		for _, ignore := range []bool{false, true} {
			cfg := cloudConfig()
			cfg.IgnoreTOS, cfg.IgnoreTrafficClass, cfg.TOS = ignore, ignore, 0x28
			tr := newTranslator(t, cfg, cloudServices()...)
			want4, want6 := byte(tos), byte(tos)
			if ignore {
				want4, want6 = 0x28, 0
			}
			out := only(t, tr, vectors.IP4{Src: tClient, Dst: tService, TOS: byte(tos), Proto: 99}.Bytes(), Options{})
			if got := out[0]<<4 | out[1]>>4; got != want6 {
				t.Errorf("TOS %#x: class %#x, want %#x", tos, got, want6)
			}
			out = only(t, tr, vectors.IP6{Src: tVM, Dst: tClient6, Class: byte(tos), Next: 99}.Bytes(), Options{})
			if got := out[1]; got != want4 {
				t.Errorf("class %#x: TOS %#x, want %#x", tos, got, want4)
			}
			inner := vectors.IP4{Src: tService, Dst: tClient, TOS: byte(tos), Proto: 99}.Bytes()
			out = only(t, tr, vectors.IP4{Src: tClient, Dst: tService, Proto: 1, Data: vectors.ICMPMessage(11, 0, 0, inner)}.Bytes(), Options{})
			if got := out[48]<<4 | out[49]>>4; got != want6 {
				t.Errorf("TOS %#x inside: class %#x, want %#x", tos, got, want6)
			}
			inner = vectors.IP6{Src: tClient6, Dst: tVM, Class: byte(tos), Next: 99}.Bytes()
			out = only(t, tr, vectors.IP6{Src: tVM, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(tVM, tClient6, 3, 0, 0, inner)}.Bytes(), Options{})
			if got := out[29]; got != want4 {
				t.Errorf("class %#x inside: TOS %#x, want %#x", tos, got, want4)
			}
		}
	}
}

// UDP without a checksum (RFC 7915 section 4.5), by what is configured.
func TestConfigZeroUDP(t *testing.T) {
	whole := vectors.IP4{Src: tClient, Dst: tService, Proto: 17, Data: vectors.UDPWithoutSum(51)}.Bytes()
	first := vectors.IP4{Src: tClient, Dst: tService, ID: 9, MF: true, Proto: 17, Data: vectors.UDPWithoutSum(88)[:48]}.Bytes()
	later := vectors.IP4{Src: tClient, Dst: tService, ID: 9, Offset: 48, Proto: 17, Data: vectors.UDPWithoutSum(88)[48:]}.Bytes()
	for _, c := range []struct {
		policy       ZeroUDP
		whole, first Reason
	}{
		{ZeroUDPCompute, Translated46, DropZeroUDPFragment},
		{ZeroUDPDrop, DropZeroUDP, DropZeroUDPFragment},
		{ZeroUDPForward, Translated46, Translated46},
	} {
		cfg := cloudConfig()
		cfg.ZeroUDP = c.policy
		tr := newTranslator(t, cfg, cloudServices()...)
		r := tr.Translate(whole, Options{})
		if r.Reason != c.whole {
			t.Errorf("policy %d, whole: %v", c.policy, r.Reason)
		}
		if r.Reason.Translated() {
			if right, known := checksumOf(r.Packets[0]); !right || !known {
				t.Errorf("policy %d: checksum", c.policy)
			}
		} else if r.Reply == nil {
			t.Errorf("policy %d: nobody is told", c.policy)
		}
		r = tr.Translate(first, Options{})
		if r.Reason != c.first || r.Reason.Translated() && (r.Packets[0][48+6] != 0 || r.Packets[0][48+7] != 0) {
			t.Errorf("policy %d, first fragment: %v", c.policy, r.Reason)
		}
		if r := tr.Translate(later, Options{}); r.Reason != Translated46 {
			t.Errorf("policy %d, later fragment: %v", c.policy, r.Reason)
		}
	}
	// What the operator is told: addresses and ports.
	f, ok := FlowOf(first)
	if got, want := f.String(), "192.0.2.33:12345 -> 198.51.100.10:53, protocol 17"; !ok || got != want {
		t.Errorf("%q, want %q", got, want)
	}
	f, ok = FlowOf(later)
	if got, want := f.String(), "192.0.2.33 -> 198.51.100.10, protocol 17"; !ok || got != want {
		t.Errorf("%q, want %q", got, want)
	}
	f, ok = FlowOf(udpPacket(tVM, tClient6, 1))
	if got, want := f.String(), "[2001:db8:e1d::a]:12345 -> [2001:db8:64::c000:221]:53, protocol 17"; !ok || got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if _, ok := FlowOf([]byte{0x45, 0}); ok {
		t.Error("the flow of two bytes")
	}
}

// UDP without a checksum is legal in IPv4: what comes so from IPv6 (RFC 6935) stays so, and a computed 0 becomes 0xffff.
func TestUDPZero(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	in := vectors.IP6{Src: tVM, Dst: tClient6, Next: 17, Data: vectors.UDPWithoutSum(20)}.Bytes()
	if out := only(t, tr, in, Options{}); out[26] != 0 || out[27] != 0 {
		t.Errorf("checksum % x", out[26:28])
	}
	found := 0
	for n := range 1 << 16 {
		// Among all values of two bytes one makes the sum of the IPv4 packet zero.
		d := vectors.UDPWithoutSum(2)
		d[8], d[9] = byte(n>>8), byte(n)
		in := vectors.IP4{Src: tClient, Dst: tService, Proto: 17, Data: d}.Bytes()
		r := tr.Translate(in, Options{})
		b := r.Packets[0]
		if b[46] == 0 && b[47] == 0 {
			t.Fatalf("%#x: a checksum of 0", n)
		}
		if b[46] == 0xff && b[47] == 0xff {
			found++
			back := only(t, tr, vectors.IP6{Src: tVM, Dst: tClient6, Next: 17, Data: vectors.UDPDatagram(tVM, tClient6, 20)}.Bytes(), Options{})
			if right, _ := checksumOf(back); !right {
				t.Error("checksum")
			}
		}
	}
	if found != 1 {
		t.Errorf("%d values with a sum of 0", found)
	}
}

// Who is told, and who is not (RFC 7915 sections 4.4, 5.4; RFC 1812 section 4.3.2.7; RFC 4443 section 2.4).
func TestReply(t *testing.T) {
	quiet := cloudConfig()
	quiet.NoErrors = true
	nameless := cloudConfig()
	nameless.Addr4, nameless.Addr6 = netip.Addr{}, netip.Addr{}
	loud, silent, anonymous := newTranslator(t, cloudConfig(), cloudServices()...), newTranslator(t, quiet, cloudServices()...), newTranslator(t, nameless, cloudServices()...)
	route := []byte{131, 7, 4, 10, 0, 0, 1, 0}
	for _, c := range []struct {
		name string
		in   []byte
		want Reason
		told bool
	}{
		{"UDP", vectors.IP4{Src: tClient, Dst: tService, Options: route, Proto: 17, Data: vectors.UDPDatagram(tClient, tService, 9)}.Bytes(), DropSourceRoute, true},
		{"echo", vectors.IP4{Src: tClient, Dst: tService, Options: route, Proto: 1, Data: vectors.ICMPMessage(8, 0, 0, nil)}.Bytes(), DropSourceRoute, true},
		{"error", vectors.IP4{Src: tClient, Dst: tService, Options: route, Proto: 1, Data: vectors.ICMPMessage(3, 0, 0, udpPacket(tService, tClient, 3))}.Bytes(), DropSourceRoute, false},
		{"redirect", vectors.IP4{Src: tClient, Dst: tService, Options: route, Proto: 1, Data: vectors.ICMPMessage(5, 0, 0, udpPacket(tService, tClient, 3))}.Bytes(), DropSourceRoute, false},
		{"later fragment", vectors.IP4{Src: tClient, Dst: tService, Options: route, Offset: 8, Proto: 17, Data: vectors.Pattern(8)}.Bytes(), DropSourceRoute, false},
		{"6 UDP", udpPacket("2001:db8:e1d::77", tClient6, 9), DropUnmappedSource, true},
		{"6 echo", vectors.IP6{Src: "2001:db8:e1d::77", Dst: tClient6, Next: 58, Data: vectors.ICMP6Message("2001:db8:e1d::77", tClient6, 128, 0, 0, nil)}.Bytes(), DropUnmappedSource, false},
		{"6 later fragment", vectors.IP6{Src: "2001:db8:e1d::77", Dst: tClient6, Next: 44, Data: vectors.FragmentHeader(17, 8, false, 1, vectors.Pattern(8))}.Bytes(), DropUnmappedSource, false},
		{"6 link-local", udpPacket("fe80::1", tClient6, 9), DropIllegalSource, false},
	} {
		if reply := refused(t, loud, c.in, Options{}, c.want); (reply != nil) != c.told {
			t.Errorf("%s: told %v", c.name, reply != nil)
		}
		if refused(t, silent, c.in, Options{}, c.want) != nil || refused(t, anonymous, c.in, Options{}, c.want) != nil {
			t.Errorf("%s: told", c.name)
		}
	}
}

// Errors other than the one of RFC 7915 section 5.4 are sent about ICMPv6 that is no error, and none to who cannot be.
func TestReplyAboutICMP6(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	message := func(typ byte, n int) []byte {
		return vectors.IP6{Src: tVM, Dst: tClient6, Hop: 1, Next: 58, Data: vectors.ICMP6Message(tVM, tClient6, typ, 0, 0, vectors.Pattern(n))}.Bytes()
	}
	if reply := refused(t, tr, message(128, 9), Options{Hop: true}, DropHopLimit); reply == nil || reply[40] != 3 {
		t.Errorf("echo, hop limit used up: told % x", reply)
	}
	if reply := refused(t, tr, message(128, 1400), Options{MTU: 1280}, DropTooBig); reply == nil || reply[40] != 2 {
		t.Errorf("echo, too big: told % x", reply)
	}
	for _, typ := range []byte{1, 127, 137} {
		if reply := refused(t, tr, message(typ, 60), Options{Hop: true}, DropHopLimit); reply != nil {
			t.Errorf("type %d: told % x", typ, reply)
		}
	}
	in := vectors.IP4{Src: "127.0.0.1", Dst: tService, TTL: 1, Proto: 17, Data: vectors.UDPDatagram("127.0.0.1", tService, 9)}.Bytes()
	if reply := refused(t, tr, in, Options{Hop: true}, DropHopLimit); reply != nil {
		t.Errorf("127.0.0.1 is told % x", reply)
	}
}

// TTL and hop limit (RFC 7915 sections 4.1, 5.1).
func TestHop(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	for hop := range 256 {
		for name, in := range map[string][]byte{
			"4": vectors.IP4{Src: tClient, Dst: tService, TTL: byte(hop), Proto: 17, Data: vectors.UDPDatagram(tClient, tService, 9)}.Bytes(),
			"6": vectors.IP6{Src: tVM, Dst: tClient6, Hop: byte(hop), Next: 17, Data: vectors.UDPDatagram(tVM, tClient6, 9)}.Bytes(),
			"66": vectors.IP6{Src: "2001:db8:ffff::1", Dst: "2001:db8:5e::a", Hop: byte(hop), Next: 17,
				Data: vectors.UDPDatagram("2001:db8:ffff::1", "2001:db8:5e::a", 9)}.Bytes(),
		} {
			hop := hop
			if hop == 0 {
				hop = 57 // the vectors' default
			}
			hopOf := func(b []byte) int {
				if version(b) == 4 {
					return int(b[8])
				}
				return int(b[7])
			}
			if got := hopOf(only(t, tr, in, Options{})); got != hop {
				t.Errorf("%s: %d became %d", name, hop, got)
			}
			if hop > 1 {
				if got := hopOf(only(t, tr, in, Options{Hop: true})); got != hop-1 {
					t.Errorf("%s: %d became %d", name, hop, got)
				}
				continue
			}
			reply := refused(t, tr, in, Options{Hop: true}, DropHopLimit)
			if reply == nil || version(reply) == 4 && reply[20] != 11 || version(reply) == 6 && reply[40] != 3 {
				t.Errorf("%s: told % x", name, reply)
			}
		}
	}
}

// The TTL of the packet inside an error is left alone (RFC 7915 sections 4.3, 5.3).
func TestHopInside(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	inner := vectors.IP4{Src: tService, Dst: tClient, TTL: 1, Proto: 17, Data: vectors.UDPDatagram(tService, tClient, 9)}.Bytes()
	out := only(t, tr, vectors.IP4{Src: tClient, Dst: tService, Proto: 1, Data: vectors.ICMPMessage(11, 0, 0, inner)}.Bytes(), Options{Hop: true})
	if out[7] != 56 || out[48+7] != 1 {
		t.Errorf("hop limits %d and %d", out[7], out[48+7])
	}
	inner = vectors.IP6{Src: tClient6, Dst: tVM, Hop: 1, Next: 17, Data: vectors.UDPDatagram(tClient6, tVM, 9)}.Bytes()
	out = only(t, tr, vectors.IP6{Src: tVM, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(tVM, tClient6, 3, 0, 0, inner)}.Bytes(), Options{Hop: true})
	if out[8] != 56 || out[28+8] != 1 {
		t.Errorf("TTLs %d and %d", out[8], out[28+8])
	}
}

// RFC 6791: the source of errors of routers without IPv4 address.
func TestICMPSource(t *testing.T) {
	const hop = "2001:db8:e1d:ffff::1"
	in := vectors.IP6{Src: hop, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(hop, tClient6, 3, 0, 0, udpPacket(tClient6, tVM, 9))}.Bytes()
	source := func(cfg Config) map[string]int {
		tr := newTranslator(t, cfg, cloudServices()...)
		seen := map[string]int{}
		for range 400 {
			seen[endsOf(only(t, tr, in, Options{})).src]++
		}
		return seen
	}
	cfg := cloudConfig()
	cfg.ICMPSource = prefix("198.51.100.128/29")
	seen := source(cfg)
	for a := range seen {
		if !cfg.ICMPSource.Contains(addr(a)) {
			t.Errorf("from %s", a)
		}
	}
	if len(seen) != 8 { // each is missed with a probability of 1e-23
		t.Errorf("of 8 addresses %v", seen)
	}
	// Without a pool, the translator's own address; without that, nothing.
	cfg.ICMPSource = netip.Prefix{}
	if seen := source(cfg); len(seen) != 1 || seen[cfg.Addr4.String()] == 0 {
		t.Errorf("%v, want %v", seen, cfg.Addr4)
	}
	cfg.Addr4 = netip.Addr{}
	refused(t, newTranslator(t, cfg, cloudServices()...), in, Options{}, DropUnmappedSource)
	// Only errors: who sends a request has no address to be answered at.
	echo := vectors.IP6{Src: hop, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(hop, tClient6, 128, 0, 0, nil)}.Bytes()
	refused(t, newTranslator(t, cloudConfig(), cloudServices()...), echo, Options{}, DropUnmappedSource)
	// The extension that tells the IPv6 address can be left out.
	cfg = cloudConfig()
	cfg.NoICMPExtension = true
	if out := only(t, newTranslator(t, cfg, cloudServices()...), in, Options{}); out[25] != 0 || len(out) != 28+37 {
		t.Errorf("length attribute %d, %d bytes", out[25], len(out))
	}
}

// Identifications do not come back to a pair of addresses before all others were used (RFC 7915 section 5.1).
func TestIdentification(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	s := new(Scratch)
	in := udpPacket(tVM, tClient6, 1)
	seen := make(map[uint16]bool)
	for n := range 1 << 16 {
		b := tr.Translate(in, Options{Scratch: s}).Packets[0]
		id := uint16(b[4])<<8 | uint16(b[5])
		if seen[id] {
			t.Fatalf("%#x again after %d packets", id, n)
		}
		seen[id] = true
	}
}

// With a Scratch no memory is allocated.
func TestScratchAllocates(t *testing.T) {
	cfg := cloudConfig()
	tr := newTranslator(t, cfg, cloudServices()...)
	for _, v := range vectors.All() {
		s := new(Scratch)
		o := Options{MTU: v.MTU, Internet: v.Internet, Scratch: s}
		if n := testing.AllocsPerRun(20, func() { tr.Translate(v.In, o) }); n > 0 {
			t.Errorf("%s: %v allocations", v.Name, n)
		}
	}
}

// Every reason has a name of its own, and is reached by a test.
func TestReasons(t *testing.T) {
	names := map[string]bool{}
	for r := range NumReasons {
		if n := r.String(); n == "" || names[n] || strings.ToLower(n) != n || strings.ContainsAny(n, " _") {
			t.Errorf("reason %d is called %q", r, n)
		}
		names[r.String()] = true
		if r.Translated() && r.Dropped() || r == Unmatched && (r.Translated() || r.Dropped()) {
			t.Errorf("%v: translated %v, dropped %v", r, r.Translated(), r.Dropped())
		}
	}
	if got := NumReasons.String(); got == "" || names[got] {
		t.Errorf("beyond the last: %q", got)
	}
}
