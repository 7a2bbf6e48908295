package slowpath

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

// seeds are frames of every reason, good and bad.
func seeds(t testing.TB) [][]byte {
	fragment := ip4("198.51.100.10", "203.0.113.5", layers.IPProtocolUDP)
	fragment.Flags, fragment.FragOffset = layers.IPv4MoreFragments, 20
	_, pings := pingFragments(t, 1000, 600)
	lastPing := pings[1]
	packets := []struct{ vnet, packet []byte }{
		{nil, udp(t, "198.51.100.10", "203.0.113.5", "hello")},
		{nil, udp6(t, 100)},
		{nil, tcp4(t, 600, true)},
		{nil, tcp4(t, 600, false)},
		{superHeader(gsoTCP4, 20, 100), tcp4(t, 600, false)},
		{superHeader(gsoUDP, 40, 100), udp6(t, 600)},
		{superHeader(gsoUDP, 20, 100), udp(t, "198.51.100.10", "203.0.113.5", string(pattern(500)))},
		{superHeader(gsoTCP6, 40, 100), udp6(t, 600)},
		{nil, pkt(t, fragment, gopacket.Payload(pattern(64)))},
		{nil, pkt(t, ip6("2001:db8::1", "2001:db8::2", layers.IPProtocolIPv6HopByHop),
			gopacket.Payload(append([]byte{44, 0, 1, 4, 0, 0, 0, 0, 58, 0, 0, 1, 0, 0, 0, 9}, pattern(30)...)))},
		{nil, pkt(t, ip4("198.51.100.10", "203.0.113.5", layers.IPProtocolICMPv4), gopacket.Payload([]byte{3, 4, 0, 0, 0, 0, 0, 0}))},
		{nil, udp(t, "2001:db8:e1d:1::10", "2001:db8:64::cb00:7109", string(pattern(1300)))},
		{superHeader(gsoTCP6, 40, 1000), incomplete(t, pkt(t, ip6("2001:db8:e1d:1::10", "2001:db8:64::cb00:7109", layers.IPProtocolTCP),
			&layers.TCP{SrcPort: 5, DstPort: 6, ACK: true}, gopacket.Payload(pattern(3000))))},
		{nil, pkt(t, ip4("198.51.100.10", "203.0.113.5", layers.IPProtocolICMPv4),
			gopacket.Payload(append([]byte{3, 4, 0, 0, 0, 0, 1, 44}, udp(t, "203.0.113.5", "198.51.100.10", "inner")...)))},
		{nil, lastPing},
		{nil, nil},
	}
	var out [][]byte
	for r := fib.UpMiss; r <= fib.UpTranslate+1; r++ {
		for i, p := range packets {
			up := fib.Up{Reason: r, IID: 7, Hold: 3, Port: 4, Seq: 300, Flags: fib.UpFlags(i % 4)}
			out = append(out, frameBytes(up, p.vnet, p.packet))
		}
	}
	return append(out, []byte{}, make([]byte, vnetMinLen+etherLen))
}

// fuzzTranslator is map646 for the addresses of the seeds.
func fuzzTranslator(t testing.TB) *map646.Translator {
	x, err := map646.New(map646.Config{Pool: netip.MustParsePrefix("2001:db8:64::/96"), Own: []netip.Prefix{netip.MustParsePrefix("2001:db8:e1d::/48")},
		ICMPSource: netip.MustParsePrefix("192.0.2.254/32"), Addr4: gateway4, Addr6: gateway6})
	if err == nil {
		err = x.SetServices(t.Context(),
			fib.Service{Outside: netip.MustParsePrefix("203.0.113.5/32"), Inside: netip.MustParsePrefix("2001:db8:e1d:1::10/128")},
			fib.Service{Outside: netip.MustParsePrefix("198.51.100.10/32"), Inside: netip.MustParsePrefix("2001:db8:e1d:1::a/128")},
			fib.Service{Outside: netip.MustParsePrefix("2001:db8:f::5/128"), Inside: netip.MustParsePrefix("2001:db8:e1d:1::77/128")})
	}
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// FuzzServe hands frames to a slow path, which must neither crash nor write anything that is not a
// well-formed frame, and then takes everything back.
func FuzzServe(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	translator := fuzzTranslator(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxFrame {
			return
		}
		k := newFakeKernel(t, 1)
		cfg := bothGateways
		cfg.Known = func(lisp.EID) bool { return false }
		cfg.Translator = translator
		s, err := New(cfg, k.queues, k, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		now := time.Unix(1000, 0)
		serve := func() {
			g := newFrame(s.queues[0], len(b))
			copy(g.buf, b)
			batch := &batch{n: 1}
			batch.frames[0] = g
			s.take(batch, now)
		}
		serve()
		made := k.take()
		up, ok := fib.DecodeUp(b[min(len(b), vnetMinLen):])
		if !ok {
			if len(made) > 0 {
				t.Fatalf("made %v of a frame without metadata", made)
			}
			return
		}
		for _, w := range made {
			if up.Reason != fib.UpSegment || gsoType(b) != gsoNone { // else it goes back as it is
				wellFormed(t, w)
			}
		}
		serve()
		k.take()
		for _, q := range s.miss.queues {
			s.releaseMiss(q, now)
		}
		for _, h := range s.holds {
			s.active, h.state = append(s.active, h), holdFlushing
		}
		s.flushSome(now)
		if down := k.take(); (up.Reason == fib.UpHold || up.Reason == fib.UpMiss) && len(down) > 0 {
			if len(down) != 2 || string(down[1].packet) != string(b[vnetMinLen+etherLen:]) {
				t.Fatalf("a packet that waited came back as %d packets, or changed", len(down))
			}
		}
	})
}

// wellFormed checks what can be checked of a frame that was made of anything.
func wellFormed(t *testing.T, w written) {
	t.Helper()
	if w.Do != fib.DownForward && w.Do != fib.DownNative {
		t.Fatalf("metadata %+v", w.Down)
	}
	b := w.packet
	if gsoType(w.vnet) != gsoNone {
		return // only made smaller
	}
	p, ok := parsePacket(b, false)
	if !ok || p.length != len(b) {
		t.Fatalf("not a whole packet: % x", b)
	}
	if !p.v6 && slowSum(b[:int(b[0]&15)*4]) != 0xffff {
		t.Fatalf("header checksum: % x", b[:20])
	}
	if want := map[bool]uint16{false: etherTypeIP4, true: etherTypeIP6}[p.v6]; w.ether != want {
		t.Fatalf("EtherType %x", w.ether)
	}
	if p.proto == protoUDP && !p.fragment && len(b) >= p.upper+8 && int(binary.BigEndian.Uint16(b[p.upper+4:])) > len(b) {
		t.Logf("UDP length beyond the packet, as in the original")
	}
}
