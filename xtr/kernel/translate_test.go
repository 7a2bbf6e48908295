package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646"
	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

func vectorServices() (out []fib.Service) {
	for _, s := range vectors.Services {
		out = append(out, fib.Service{Outside: netip.MustParsePrefix(s.Outside), Inside: netip.MustParsePrefix(s.Inside)})
	}
	return out
}

// twins are the two translators: in the kernel, and in Go.
type twins struct {
	kernel   *Tester
	golang   *map646.Translator
	verdicts [VerdictDrop + 1]int
}

func newTwins(t testing.TB, pool netip.Prefix, services []fib.Service) *twins {
	t.Helper()
	k, err := NewTester(pool, services, vectors.Own...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	g, err := map646.New(map646.Config{
		Pool: pool, Own: vectors.Own, ICMPSource: vectors.ICMPSource, Addr4: vectors.Addr4, Addr6: vectors.Addr6,
	})
	if err == nil {
		err = g.SetServices(context.Background(), services...)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &twins{kernel: k, golang: g}
}

// check runs a packet through both. What the kernel translates, Go translates to the same; what the kernel lets pass,
// drops or leaves to Go, Go does not translate, or it is not in the fast part.
func (w *twins) check(t testing.TB, packet []byte, mtu int) {
	t.Helper()
	if err := w.kernel.SetMTU(map[bool]int{true: 65535, false: mtu}[mtu == 0], 1280); err != nil {
		t.Fatal(err)
	}
	was := bytes.Clone(packet)
	got, up, verdict, err := w.kernel.run(packet)
	if err != nil {
		t.Fatal(err)
	}
	r := w.golang.Translate(packet, map646.Options{MTU: mtu})
	if !bytes.Equal(packet, was) {
		t.Fatal("the packet was changed")
	}
	w.verdicts[verdict]++
	switch verdict {
	case VerdictTranslated:
		if len(r.Packets) != 1 || !bytes.Equal(anyID(packet, got), anyID(packet, r.Packets[0])) {
			t.Fatalf("packet % x, MTU %d\nkernel % x\nGo     % x (%v)", packet, mtu, got, r.Packets, r.Reason)
		}
	case VerdictPass:
		if r.Reason != map646.Unmatched && r.Reason != map646.DropMalformed {
			t.Fatalf("packet % x: the kernel lets it pass, Go says %v", packet, r.Reason)
		}
	case VerdictDrop:
		if r.Reason.Translated() {
			t.Fatalf("packet % x: the kernel drops it, Go says %v", packet, r.Reason)
		}
	case VerdictUp:
		if up.Reason != fib.UpTranslate && up.Reason != fib.UpTTL {
			t.Fatalf("packet % x: went up as %+v", packet, up)
		}
		if !bytes.Equal(got[:len(packet)], packet) {
			t.Fatalf("packet % x\nwent up as % x", packet, got)
		}
		if len(r.Packets) == 1 && fast(packet) && !(r.Reason == map646.Hairpinned && packet[6] == 44) {
			t.Fatalf("packet % x: went up as %+v, Go says %v", packet, up, r.Reason)
		}
	}
}

// anyID is a packet with identification 0, where that is the translator's choice.
func anyID(from, to []byte) []byte {
	if len(to) < 20 || to[0]>>4 != 4 || from[6] == 44 {
		return to
	}
	to = bytes.Clone(to)
	to[4], to[5], to[10], to[11] = 0, 0, 0, 0
	binary.BigEndian.PutUint16(to[10:], sum16(to[:20]))
	return to
}

// fast says what the kernel must translate itself, should it be translated at all: TCP, UDP with a checksum and ICMP
// echo without IPv4 options or IPv6 extension headers; fragments, but for ICMP; between addresses that hosts have.
func fast(p []byte) bool {
	if p[0]>>4 == 4 {
		total, field := int(binary.BigEndian.Uint16(p[2:])), binary.BigEndian.Uint16(p[6:])
		if p[0] != 0x45 || p[8] <= 1 || total > len(p) || netip.AddrFrom4([4]byte(p[12:])).IsLinkLocalUnicast() {
			return false
		}
		fragment := field&0x3fff != 0
		if field&0x2000 != 0 && (total-20)%8 != 0 {
			return false
		}
		return fastUpper(p[20:total], p[9], 1, fragment, field&0x1fff == 0)
	}
	total := 40 + int(binary.BigEndian.Uint16(p[4:]))
	if p[7] <= 1 || total > len(p) || binary.BigEndian.Uint64(p[16:]) == 0 || binary.BigEndian.Uint64(p[32:]) == 0 {
		return false
	}
	if e := netip.AddrFrom4([4]byte(p[36:])); e.IsLinkLocalUnicast() {
		return false
	}
	if p[6] != 44 {
		return fastUpper(p[40:total], p[6], 58, false, true)
	}
	if total < 48 {
		return false
	}
	field := binary.BigEndian.Uint16(p[42:])
	if field&1 != 0 && (total-48)%8 != 0 {
		return false
	}
	return fastUpper(p[48:total], p[40], 58, true, field&^7 == 0)
}

func fastUpper(b []byte, proto, icmp byte, fragment, first bool) bool {
	switch proto {
	case 6:
		return !first || len(b) >= 20
	case 17:
		return !first || len(b) >= 8 && (b[6] != 0 || b[7] != 0)
	case icmp:
		return !fragment && len(b) >= 8 && b[1] == 0 && (icmp == 1 && (b[0] == 8 || b[0] == 0) || icmp == 58 && (b[0] == 128 || b[0] == 129))
	}
	return false
}

// TestVectors runs the vectors that all translators have.
func TestVectors(t *testing.T) {
	w := newTwins(t, vectors.Pool, vectorServices())
	kernels := 0
	for _, v := range vectors.All() {
		t.Run(v.Name, func(t *testing.T) {
			if v.Internet || len(v.In) > MaxTestPacket || len(v.In) < 20 {
				return // no matter of the program's, or of a packet's
			}
			if err := w.kernel.SetMTU(map[bool]int{true: 65535, false: v.MTU}[v.MTU == 0], 1280); err != nil {
				t.Fatal(err)
			}
			got, up, verdict, err := w.kernel.run(v.In)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case verdict == VerdictTranslated:
				kernels++
				want := v.Out[0]
				if v.AnyID {
					want, got = anyID(v.In, want), anyID(v.In, got)
				}
				if len(v.Out) != 1 || !bytes.Equal(got, want) {
					t.Fatalf("got  % x\nwant % x", got, v.Out)
				}
			case v.Kernel:
				t.Fatalf("the kernel says %v (%+v): % x", verdict, up, v.In)
			case verdict == VerdictPass && v.Reason != "unmatched":
				t.Fatalf("passed, though %s", v.Reason)
			case verdict == VerdictDrop && len(v.Out) > 0:
				t.Fatalf("dropped, though it should be translated")
			}
			w.check(t, v.In, v.MTU)
		})
	}
	if kernels < 30 {
		t.Errorf("the kernel translated only %d vectors", kernels)
	}
}

// pools are pool prefixes of every length.
var pools = []netip.Prefix{
	netip.MustParsePrefix("2001:dba::/32"), netip.MustParsePrefix("2001:db8:6400::/40"), netip.MustParsePrefix("2001:db8:64::/48"),
	netip.MustParsePrefix("2001:db8:64:aa00::/56"), netip.MustParsePrefix("2001:db8:64:aa::/64"), vectors.Pool,
	netip.MustParsePrefix("64:ff9b::/96"), {},
}

// otherServices differ from those of the vectors in all lengths.
func otherServices() []fib.Service {
	var out []fib.Service
	for _, s := range [][2]string{
		{"198.51.100.10/32", "2001:db9:e1d::a/128"}, {"10.0.0.0/8", "2001:db9:e1d:a::/104"}, {"203.0.113.20/31", "2001:db9:e1d:b::6/127"},
		{"2001:db9:5e::a/128", "2001:db9:e1d::a/128"}, {"2001:db9:5e00::/40", "fd12:3456:7800::/40"}, {"2001:db9:5e:8000::/49", "fd12:3457:78:8000::/49"},
		{"2001:db9:5e:1::/64", "2001:db9:e1d:1::/64"}, {"2001:db9:5e:2:300::/72", "2001:db9:e1d:2:500::/72"}, {"2001:db9:5e:3::8000/113", "2001:db9:e1d:3::/113"},
	} {
		out = append(out, fib.Service{Outside: netip.MustParsePrefix(s[0]), Inside: netip.MustParsePrefix(s[1])})
	}
	return out
}

// TestAgainstGo compares the kernel with Go on packets that chance makes of the vectors, with pool prefixes of every
// length.
func TestAgainstGo(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 46))
	const n = 300 // of each; the fuzzer tries more
	for i, pool := range pools {
		services := vectorServices()
		if i%2 == 1 {
			services = otherServices()
		}
		w := newTwins(t, pool, services)
		for range n {
			packet, mtu := chance(r, pool, services)
			w.check(t, packet, mtu)
		}
		if t.Logf("%v: %v", pool, w.verdicts); w.verdicts[VerdictTranslated] < n/20 {
			t.Errorf("pool %v: the kernel translated only %d packets of %d", pool, w.verdicts[VerdictTranslated], n)
		}
	}
}

// chance makes a packet: often one that is translated.
func chance(r *rand.Rand, pool netip.Prefix, services []fib.Service) (packet []byte, mtu int) {
	all := vectors.All()
	p := bytes.Clone(all[r.IntN(len(all))].In)
	for len(p) < 40 || len(p) > MaxTestPacket-100 {
		p = bytes.Clone(all[r.IntN(len(all))].In)
	}
	within := func(prefix netip.Prefix) netip.Addr {
		b := prefix.Addr().AsSlice()
		for i := prefix.Bits(); i < len(b)*8; i++ {
			if r.IntN(3) == 0 {
				b[i/8] ^= 0x80 >> (i % 8)
			}
		}
		a, _ := netip.AddrFromSlice(b)
		return a
	}
	of := func(v6, inside bool) netip.Addr {
		for {
			s := services[r.IntN(len(services))]
			side := s.Outside
			if inside {
				side = s.Inside
			}
			if side.Addr().Is6() == v6 {
				return within(side)
			}
		}
	}
	if p[0]>>4 == 4 {
		if r.IntN(3) > 0 {
			copy(p[16:], of(false, false).AsSlice())
		}
		switch r.IntN(4) {
		case 0:
			copy(p[12:], of(false, false).AsSlice())
		case 1:
			binary.BigEndian.PutUint32(p[12:], r.Uint32())
		}
	} else {
		switch r.IntN(5) {
		case 0, 1:
			if pool.IsValid() {
				v4 := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, r.Uint32())))
				if r.IntN(3) == 0 {
					v4 = of(false, false)
				}
				copy(p[24:], map646.Embed(pool, v4).AsSlice())
			}
		case 2:
			copy(p[24:], of(true, false).AsSlice())
		}
		if r.IntN(2) == 0 {
			copy(p[8:], of(true, true).AsSlice())
		}
	}
	if r.IntN(3) == 0 { // something that is not in the book
		head := min(len(p), 70)
		for range 1 + r.IntN(3) {
			p[r.IntN(head)] = byte(r.Uint32())
		}
	}
	if r.IntN(8) == 0 {
		p = p[:20+r.IntN(len(p)-19)]
	}
	if p[0]>>4 == 4 && r.IntN(16) > 0 {
		mend4(p)
	}
	if r.IntN(3) == 0 {
		mtu = []int{68, 576, 1260, 1280, 1300, 1500}[r.IntN(6)]
	}
	return p, mtu
}

// mend4 makes an IPv4 header's checksum right.
func mend4(p []byte) {
	if n := int(p[0]&15) * 4; n >= 20 && n <= len(p) {
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], sum16(p[:n]))
	}
}

// FuzzTranslate compares the kernel with Go.
func FuzzTranslate(f *testing.F) {
	for i, v := range vectors.All() {
		f.Add(v.In, uint16(v.MTU), uint8(i), true)
	}
	all := make([]*twins, len(pools))
	for i, pool := range pools {
		services := vectorServices()
		if i%2 == 1 {
			services = otherServices()
		}
		all[i] = newTwins(f, pool, services)
	}
	f.Fuzz(func(t *testing.T, packet []byte, mtu uint16, which uint8, mend bool) {
		if len(packet) < 40 || len(packet) > MaxTestPacket {
			return
		}
		if mend && packet[0]>>4 == 4 {
			packet = bytes.Clone(packet)
			mend4(packet)
		}
		all[int(which)%len(all)].check(t, packet, int(mtu))
	})
}
