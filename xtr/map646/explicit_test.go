package map646

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

// The table of RFC 7757 figure 1.
var exampleRules = []Rule{
	{V4: prefix("192.0.2.1"), V6: prefix("2001:db8:aaaa::")},
	{V4: prefix("192.0.2.2/32"), V6: prefix("2001:db8:bbbb::b/128")},
	{V4: prefix("192.0.2.16/28"), V6: prefix("2001:db8:cccc::/124")},
	{V4: prefix("192.0.2.128/26"), V6: prefix("2001:db8:dddd::/64")},
	{V4: prefix("192.0.2.192/29"), V6: prefix("2001:db8:eeee:8::/62")},
	{V4: prefix("192.0.2.224/31"), V6: prefix("64:ff9b::/127")},
}

// RFC 7757 appendix B, figure 7: each address as destination 4 to 6, as source 6 to 4.
func TestExplicitExamples(t *testing.T) {
	const peer, peerIn6 = "198.51.100.200", "64:ff9b::c633:64c8"
	tr := newTranslator(t, Config{Pool: WellKnownPrefix, Embed: EmbedAny, Explicit: exampleRules})
	for _, c := range []struct{ v4, v6 string }{
		{"192.0.2.1", "2001:db8:aaaa::"},
		{"192.0.2.2", "2001:db8:bbbb::b"},
		{"192.0.2.16", "2001:db8:cccc::"},
		{"192.0.2.24", "2001:db8:cccc::8"},
		{"192.0.2.31", "2001:db8:cccc::f"},
		{"192.0.2.128", "2001:db8:dddd::"},
		{"192.0.2.152", "2001:db8:dddd:0:6000::"},
		{"192.0.2.183", "2001:db8:dddd:0:dc00::"},
		{"192.0.2.191", "2001:db8:dddd:0:fc00::"},
		{"192.0.2.195", "2001:db8:eeee:9:8000::"},
		{"192.0.2.225", "64:ff9b::1"},
	} {
		if got, want := endsOf(only(t, tr, udpPacket(peer, c.v4, 3), Options{})), (ends{peerIn6, c.v6}); got != want {
			t.Errorf("4 to 6: %v, want %v", got, want)
		}
		if got, want := endsOf(only(t, tr, udpPacket(c.v6, peerIn6, 3), Options{})), (ends{c.v4, peer}); got != want {
			t.Errorf("6 to 4: %v, want %v", got, want)
		}
		// As source 4 to 6 too: each address is translated for itself (section 3.2).
		if got, want := endsOf(only(t, tr, udpPacket(c.v4, "192.0.2.1", 3), Options{})), (ends{c.v6, "2001:db8:aaaa::"}); got != want {
			t.Errorf("4 to 6: %v, want %v", got, want)
		}
	}
	// By RFC 6052, as there is no mapping (section 3.3.1, step 2; 3.3.2, step 2).
	if got, want := endsOf(only(t, tr, udpPacket("192.0.2.248", "192.0.2.1", 3), Options{})), (ends{"64:ff9b::c000:2f8", "2001:db8:aaaa::"}); got != want {
		t.Errorf("4 to 6: %v, want %v", got, want)
	}
	if got, want := endsOf(only(t, tr, udpPacket("2001:db8:aaaa::", "64:ff9b::c000:2f8", 3), Options{})), (ends{"192.0.2.1", "192.0.2.248"}); got != want {
		t.Errorf("6 to 4: %v, want %v", got, want)
	}
	// A mapping within the pool goes before the pool, and its addresses beyond the suffix are cut (section 3.3.2, step 5).
	if got, want := endsOf(only(t, tr, udpPacket("2001:db8:dddd:0:6000::77", "64:ff9b::1", 3), Options{})), (ends{"192.0.2.152", "192.0.2.225"}); got != want {
		t.Errorf("6 to 4: %v, want %v", got, want)
	}
}

// The longest match counts, in each direction for itself (RFC 7757 section 5, figure 2); and figure 5, where all
// addresses are mapped explicitly.
func TestExplicitLongestMatch(t *testing.T) {
	tr := newTranslator(t, Config{Explicit: []Rule{
		{V4: prefix("0.0.0.0/0"), V6: prefix("2001:db8:ff00::/40"), Remote: true},
		{V4: prefix("198.51.100.64/32"), V6: prefix("2001:db8::abcd/128")},
	}})
	const peer, peerIn6 = "203.0.113.5", "2001:db8:ffcb:71:500::"
	for _, c := range []struct{ in, want ends }{
		{ends{peer, "198.51.100.64"}, ends{peerIn6, "2001:db8::abcd"}},
		{ends{peer, "198.51.100.65"}, ends{peerIn6, "2001:db8:ffc6:3364:4100::"}},
		{ends{"2001:db8::abcd", peerIn6}, ends{"198.51.100.64", peer}},
		{ends{"2001:db8:ffc6:3364:4000::", peerIn6}, ends{"198.51.100.64", peer}}, // not symmetric
	} {
		if got := endsOf(only(t, tr, udpPacket(c.in.src, c.in.dst, 4), Options{})); got != c.want {
			t.Errorf("%v became %v, want %v", c.in, got, c.want)
		}
	}
}

func TestExplicitRules(t *testing.T) {
	for _, c := range []struct {
		v4, v6 string
		err    string
	}{
		{"192.0.2.0/24", "2001:db8::/120", ""},
		{"192.0.2.0/24", "2001:db8::/64", ""},
		{"0.0.0.0/0", "2001:db8::/96", ""},
		{"0.0.0.0/0", "2001:db8::/97", "more bits behind"},
		{"192.0.2.0/24", "2001:db8::/121", "more bits behind"},
		{"192.0.2.1/24", "2001:db8::/64", "not a masked IPv4 prefix"},
		{"192.0.2.0/24", "2001:db8::1/64", "not a masked IPv6 prefix"},
		{"2001:db8::/64", "2001:db8::/64", "not a masked IPv4 prefix"},
		{"192.0.2.0/24", "198.51.100.0/24", "not a masked IPv6 prefix"},
	} {
		_, err := New(Config{Explicit: []Rule{{V4: prefix(c.v4), V6: prefix(c.v6)}}})
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s <-> %s: %v, want %q", c.v4, c.v6, err, c.err)
		}
	}
	// RFC 7757 section 5, figure 3.
	twice := []Rule{{V4: prefix("198.51.100.8"), V6: prefix("2001:db8::1")}, {V4: prefix("198.51.100.9"), V6: prefix("2001:db8::1")}}
	if _, err := New(Config{Explicit: twice}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("the same IPv6 prefix twice: %v", err)
	}
}

// Every pair of lengths, against arithmetic on strings of bits.
func TestExplicitLengths(t *testing.T) {
	bitsOf := func(a netip.Addr) (s string) {
		for _, b := range a.AsSlice() {
			s += fmt.Sprintf("%08b", b)
		}
		return s
	}
	for bits4 := range 33 {
		for bits6 := 1; bits6 <= 128-(32-bits4); bits6++ {
			var r4 [4]byte
			var r6 [16]byte
			for i := range r6 {
				r4[i%4], r6[i] = byte(rand.Uint32()), byte(rand.Uint32())
			}
			r6[0] = 0x20
			e := entry{outside: netip.PrefixFrom(netip.AddrFrom4(r4), bits4).Masked(), inside: netip.PrefixFrom(netip.AddrFrom16(r6), bits6).Masked()}
			got := bitsOf(netip.AddrFrom16(e.to6(r4)))
			want := bitsOf(e.inside.Addr())[:bits6] + bitsOf(netip.AddrFrom4(r4))[bits4:]
			want += strings.Repeat("0", 128-len(want))
			if got != want {
				t.Fatalf("%v <-> %v: %v became\n%s, want\n%s", e.outside, e.inside, r4, got, want)
			}
			got = bitsOf(netip.AddrFrom4(e.to4(r6)))
			want = (bitsOf(e.outside.Addr())[:bits4] + bitsOf(netip.AddrFrom16(r6))[bits6:])[:32]
			if got != want {
				t.Fatalf("%v <-> %v: %v became\n%s, want\n%s", e.outside, e.inside, r6, got, want)
			}
		}
	}
}

// SetServices and DelServices against a plain map, over many random steps; the look-ups are those of the services.
func TestServices(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(1, 2))
	tr := newTranslator(t, Config{Pool: prefix("2001:db8:64::/96")})
	want := map[netip.Prefix]netip.Prefix{}
	last := map[netip.Prefix][]netip.Prefix{} // Inside -> who was given it, the last one last
	drop := func(out netip.Prefix) {
		in, ok := want[out]
		if !ok {
			return
		}
		delete(want, out)
		var rest []netip.Prefix
		for _, o := range last[in] {
			if o != out {
				rest = append(rest, o)
			}
		}
		last[in] = rest
	}
	for range 300 {
		var set []fib.Service
		n := rng.IntN(4)
		if rng.IntN(20) == 0 {
			n = many + 3 // all at once
		}
		for range n {
			s := service(fmt.Sprintf("198.51.100.%d", rng.IntN(12)), fmt.Sprintf("2001:db8:e1d::%x", 1+rng.IntN(12)))
			set = append(set, s)
			if want[s.Outside] != s.Inside {
				drop(s.Outside)
				want[s.Outside] = s.Inside
				last[s.Inside] = append(last[s.Inside], s.Outside)
			}
		}
		if err := tr.SetServices(ctx, set...); err != nil {
			t.Fatal(err)
		}
		out := prefix(fmt.Sprintf("198.51.100.%d", rng.IntN(12)))
		if rng.IntN(2) == 0 {
			drop(out)
			if err := tr.DelServices(ctx, out); err != nil {
				t.Fatal(err)
			}
		}
		got := map[netip.Prefix]netip.Prefix{}
		for _, s := range tr.Services() {
			got[s.Outside] = s.Inside
		}
		if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
			t.Fatalf("services (-want +got):\n%s", d)
		}
		for i := range 12 {
			out := prefix(fmt.Sprintf("198.51.100.%d", i))
			r := tr.Translate(udpPacket("192.0.2.1", out.Addr().String(), 1), Options{})
			if in, ok := want[out]; ok != (r.Reason == Translated46) || ok && (endsOf(r.Packets[0]).dst != in.Addr().String() || r.In != out) {
				t.Fatalf("to %v, which is %v: %v", out, in, r.Reason)
			}
			in := prefix(fmt.Sprintf("2001:db8:e1d::%x", i+1))
			r = tr.Translate(udpPacket(in.Addr().String(), "2001:db8:64::c000:201", 1), Options{})
			h := last[in]
			if (len(h) > 0) != (r.Reason == Translated64) || len(h) > 0 && (r.Out != h[len(h)-1] || endsOf(r.Packets[0]).src != r.Out.Addr().String()) {
				t.Fatalf("from %v, which is %v: %v %v", in, h, r.Reason, r.Out)
			}
		}
	}
}

func TestServicesErrors(t *testing.T) {
	tr := newTranslator(t, Config{})
	good, bad := service("198.51.100.1", "2001:db8::1"), fib.Service{Outside: prefix("198.51.100.0/24"), Inside: prefix("2001:db8::/64")}
	if err := tr.SetServices(context.Background(), good, bad); err == nil || len(tr.Services()) != 0 {
		t.Errorf("an invalid service: %v, and %v are there", err, tr.Services())
	}
	if err := tr.DelServices(context.Background(), good.Outside); err != nil {
		t.Errorf("deleting what is not there: %v", err)
	}
}

// A service goes before a rule with the same prefix, and leaves it behind.
func TestServicesBeforeRules(t *testing.T) {
	ctx := context.Background()
	tr := newTranslator(t, Config{Pool: prefix("2001:db8:64::/96"), Explicit: []Rule{
		{V4: prefix("198.51.100.9"), V6: prefix("2001:db8::9")},
		{V4: prefix("198.51.100.1"), V6: prefix("2001:db8::1")},
	}})
	to := func() string { return endsOf(only(t, tr, udpPacket("192.0.2.1", "198.51.100.1", 1), Options{})).dst }
	if got := to(); got != "2001:db8::1" {
		t.Errorf("by the rule to %s", got)
	}
	if err := tr.SetServices(ctx, service("198.51.100.1", "2001:db8::2")); err != nil {
		t.Fatal(err)
	}
	if got := to(); got != "2001:db8::2" {
		t.Errorf("by the service to %s", got)
	}
	if err := tr.DelServices(ctx, prefix("198.51.100.1")); err != nil {
		t.Fatal(err)
	}
	if got := to(); got != "2001:db8::1" {
		t.Errorf("by the rule again to %s", got)
	}
}

// Packets are translated while services move; each finds one or the other.
func TestServicesConcurrently(t *testing.T) {
	ctx := context.Background()
	tr := newTranslator(t, Config{Pool: prefix("2001:db8:64::/96")}, service("198.51.100.1", "2001:db8::1"))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			s := new(Scratch)
			in := udpPacket("192.0.2.1", "198.51.100.1", 1)
			for {
				select {
				case <-stop:
					return
				default:
				}
				r := tr.Translate(in, Options{Scratch: s})
				if r.Reason != Translated46 {
					t.Errorf("%v", r.Reason)
					return
				}
				if dst := endsOf(r.Packets[0]).dst; dst != "2001:db8::1" && dst != "2001:db8::2" {
					t.Errorf("to %s", dst)
					return
				}
			}
		})
	}
	for i := range 2000 {
		if err := tr.SetServices(ctx, service("198.51.100.1", fmt.Sprintf("2001:db8::%d", 1+i%2))); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
}
