package slowpath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

var (
	gateway4 = netip.MustParseAddr("198.51.100.1")
	gateway6 = netip.MustParseAddr("2001:db8:e1d:1::1")
)

func tcp4(t testing.TB, n int, df bool) []byte {
	ip := ip4("198.51.100.10", "203.0.113.5", layers.IPProtocolTCP)
	if df {
		ip.Flags = layers.IPv4DontFragment
	}
	return pkt(t, ip, &layers.TCP{SrcPort: 5, DstPort: 6, Seq: 100, DataOffset: 5, ACK: true}, gopacket.Payload(pattern(n-40)))
}

func udp6(t testing.TB, n int) []byte {
	return pkt(t, ip6("2001:db8:e1d:1::10", "2001:db8:f::5", layers.IPProtocolUDP),
		&layers.UDP{SrcPort: 5, DstPort: 6}, gopacket.Payload(pattern(n-48)))
}

// pattern returns n bytes that differ from their neighbors.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// serveOne runs one frame through a slow path and returns what came down and the counters.
func serveOne(t *testing.T, cfg Config, up fib.Up, vnet, packet []byte) ([]written, map[string]uint64) {
	t.Helper()
	k := newFakeKernel(t, 1)
	s := k.start(cfg)
	k.feed(0, up, vnet, packet)
	synctest.Wait()
	return k.take(), s.Counters()
}

var bothGateways = Config{GatewayAddr4: gateway4, GatewayAddr6: gateway6}

func TestICMPErrors(t *testing.T) {
	for _, tc := range []struct {
		name   string
		up     fib.Up
		packet func(t testing.TB) []byte
		want   fib.DownDo
		check  func(t *testing.T, p gopacket.Packet)
	}{
		{
			name:   "IPv4 too big",
			up:     fib.Up{Reason: fib.UpTooBig, IID: 7, Port: 2, Seq: 1400},
			packet: func(t testing.TB) []byte { return tcp4(t, 1500, true) },
			want:   fib.DownForward,
			check: func(t *testing.T, p gopacket.Packet) {
				m := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
				if m.TypeCode != layers.CreateICMPv4TypeCode(3, 4) || m.Id != 0 || m.Seq != 1400 {
					t.Errorf("%+v", m)
				}
			},
		},
		{
			name:   "IPv6 too big",
			up:     fib.Up{Reason: fib.UpTooBig, IID: 7, Flags: fib.UpTransit, Seq: 1400},
			packet: func(t testing.TB) []byte { return udp6(t, 1500) },
			want:   fib.DownForward,
			check: func(t *testing.T, p gopacket.Packet) {
				m := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
				if m.TypeCode != layers.CreateICMPv6TypeCode(2, 0) || binary.BigEndian.Uint32(m.Payload) != 1400 {
					t.Errorf("%+v", m)
				}
			},
		},
		{
			name:   "MTU of the configuration",
			up:     fib.Up{Reason: fib.UpTooBig, Port: 2},
			packet: func(t testing.TB) []byte { return udp6(t, 1500) },
			want:   fib.DownForward,
			check: func(t *testing.T, p gopacket.Packet) {
				m := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
				if binary.BigEndian.Uint32(m.Payload) != 1444 {
					t.Errorf("%+v", m)
				}
			},
		},
		{
			name:   "IPv4 time exceeded",
			up:     fib.Up{Reason: fib.UpTTL, Port: 2},
			packet: func(t testing.TB) []byte { return tcp4(t, 60, false) },
			want:   fib.DownForward,
			check: func(t *testing.T, p gopacket.Packet) {
				m := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
				if m.TypeCode != layers.CreateICMPv4TypeCode(11, 0) || m.Id != 0 || m.Seq != 0 {
					t.Errorf("%+v", m)
				}
			},
		},
		{
			name:   "IPv6 time exceeded, to a stranger",
			up:     fib.Up{Reason: fib.UpTTL},
			packet: func(t testing.TB) []byte { return udp6(t, 100) },
			want:   fib.DownNative,
			check: func(t *testing.T, p gopacket.Packet) {
				m := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
				if m.TypeCode != layers.CreateICMPv6TypeCode(3, 0) || binary.BigEndian.Uint32(m.Payload) != 0 {
					t.Errorf("%+v", m)
				}
			},
		},
		{
			name: "IPv4 echo request is not an error",
			up:   fib.Up{Reason: fib.UpTTL, Port: 1},
			packet: func(t testing.TB) []byte {
				return pkt(t, ip4("198.51.100.10", "203.0.113.5", layers.IPProtocolICMPv4),
					&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 1}, gopacket.Payload("ping"))
			},
			want:  fib.DownForward,
			check: func(*testing.T, gopacket.Packet) {},
		},
		{
			name: "first fragment",
			up:   fib.Up{Reason: fib.UpTTL, Port: 1},
			packet: func(t testing.TB) []byte {
				ip := ip4("198.51.100.10", "203.0.113.5", layers.IPProtocolUDP)
				ip.Flags = layers.IPv4MoreFragments
				return pkt(t, ip, gopacket.Payload(pattern(64)))
			},
			want:  fib.DownForward,
			check: func(*testing.T, gopacket.Packet) {},
		},
		{
			name: "IPv6 behind extension headers",
			up:   fib.Up{Reason: fib.UpTTL, Port: 1},
			packet: func(t testing.TB) []byte {
				ip := ip6("2001:db8:e1d:1::10", "2001:db8:f::5", layers.IPProtocolIPv6HopByHop)
				return pkt(t, ip, gopacket.Payload(append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, 0, 5, 0, 6, 0, 8, 1, 1)))
			},
			want:  fib.DownForward,
			check: func(*testing.T, gopacket.Packet) {},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := bothGateways
				cfg.Known = func(lisp.EID) bool { return false }
				orig := tc.packet(t)
				got, counters := serveOne(t, cfg, tc.up, nil, orig)
				if len(got) != 1 {
					t.Fatalf("%d packets came down: %v", len(got), counters)
				}
				w := got[0]
				if w.Down != (fib.Down{Do: tc.want, IID: tc.up.IID}) {
					t.Errorf("metadata %+v", w.Down)
				}
				p := decode(t, w.packet)
				tc.check(t, p)
				checkErrorHeader(t, p, orig)
			})
		})
	}
}

// checkErrorHeader checks what all ICMP errors have in common: from the gateway to the sender, quoting
// as much as fits.
func checkErrorHeader(t *testing.T, p gopacket.Packet, orig []byte) {
	t.Helper()
	from, to := netip.Addr{}, netip.Addr{}
	b := p.Data()
	var quote []byte
	most := 0
	if orig[0]>>4 == 4 {
		from, to, most, quote = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), 576, b[28:]
		if from != gateway4 || to != netip.AddrFrom4([4]byte(orig[12:])) || b[1] != 0xc0 || b[8] != 64 {
			t.Errorf("header % x", b[:20])
		}
	} else {
		from, to, most, quote = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), 1280, b[48:]
		if from != gateway6 || to != netip.AddrFrom16([16]byte(orig[8:])) || b[7] != 64 {
			t.Errorf("header % x", b[:40])
		}
	}
	if want := min(len(orig), most-len(b)+len(quote)); len(quote) != want || !bytes.Equal(quote, orig[:want]) {
		t.Errorf("quotes %d bytes, want %d", len(quote), want)
	}
}

func TestNoICMPErrorAbout(t *testing.T) {
	type row struct {
		name   string
		packet []byte
	}
	ll := func(ls ...gopacket.SerializableLayer) []byte { return pkt(t, ls...) }
	later := ip4("198.51.100.10", "203.0.113.5", layers.IPProtocolUDP)
	later.FragOffset = 10
	rows := []row{
		{"a later fragment", ll(later, gopacket.Payload(pattern(64)))},
		{"IPv4 multicast", udp(t, "198.51.100.10", "224.0.0.9", "x")},
		{"broadcast", udp(t, "198.51.100.10", "255.255.255.255", "x")},
		{"IPv6 multicast", udp(t, "2001:db8::1", "ff02::9", "x")},
		{"no source", udp(t, "0.0.0.0", "203.0.113.5", "x")},
		{"a multicast source", udp(t, "224.0.0.1", "203.0.113.5", "x")},
		{"a loopback source", udp(t, "127.0.0.1", "203.0.113.5", "x")},
		{"class E", udp(t, "240.0.0.1", "203.0.113.5", "x")},
		{"broadcast source", udp(t, "255.255.255.255", "203.0.113.5", "x")},
		{"IPv6 no source", udp(t, "::", "2001:db8::1", "x")},
		{"IPv6 multicast source", udp(t, "ff02::1", "2001:db8::1", "x")},
		{"ICMP cut off", ll(ip4("198.51.100.10", "203.0.113.5", layers.IPProtocolICMPv4))},
		{"ICMPv6 cut off", ll(ip6("2001:db8::1", "2001:db8::2", layers.IPProtocolICMPv6))},
		{"ICMPv6 redirect", ll(ip6("2001:db8::1", "2001:db8::2", layers.IPProtocolICMPv6), gopacket.Payload([]byte{137, 0, 0, 0, 0, 0, 0, 0}))},
		{"an ICMPv6 error behind an extension header", ll(ip6("2001:db8::1", "2001:db8::2", layers.IPProtocolIPv6HopByHop),
			gopacket.Payload([]byte{58, 0, 1, 4, 0, 0, 0, 0, 1, 0, 0, 0}))},
	}
	for _, typ := range []byte{3, 4, 5, 11, 12} {
		rows = append(rows, row{fmt.Sprint("ICMP type ", typ), ll(ip4("198.51.100.10", "203.0.113.5", layers.IPProtocolICMPv4),
			gopacket.Payload([]byte{typ, 0, 0, 0, 0, 0, 0, 0}))})
	}
	for _, typ := range []byte{1, 2, 3, 4, 100, 127} {
		rows = append(rows, row{fmt.Sprint("ICMPv6 type ", typ), ll(ip6("2001:db8::1", "2001:db8::2", layers.IPProtocolICMPv6),
			gopacket.Payload([]byte{typ, 0, 0, 0, 0, 0, 0, 0}))})
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got, c := serveOne(t, bothGateways, fib.Up{Reason: fib.UpTTL, Port: 1}, nil, r.packet)
				if len(got) != 0 || c["icmp_ineligible"] != 1 || c["drop_ttl"] != 1 {
					t.Fatalf("sent %v, counters %v", got, c)
				}
			})
		})
	}
}

func TestNoICMPErrorWithoutSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got, c := serveOne(t, Config{GatewayAddr4: gateway4}, fib.Up{Reason: fib.UpTTL, Port: 1}, nil, udp6(t, 100))
		if len(got) != 0 || c["icmp_no_source"] != 1 {
			t.Fatalf("sent %v, counters %v", got, c)
		}
	})
}

func TestLinkLocalSourceOnlyOnTheLink(t *testing.T) {
	for flags, want := range map[fib.UpFlags]int{0: 1, fib.UpTransit: 0} {
		synctest.Test(t, func(t *testing.T) {
			cfg := Config{GatewayAddr6: netip.MustParseAddr("fe80::1")}
			got, c := serveOne(t, cfg, fib.Up{Reason: fib.UpTTL, Flags: flags}, nil, udp6(t, 100))
			if len(got) != want || c["icmp_no_source"] != uint64(1-want) {
				t.Fatalf("flags %d: sent %v, counters %v", flags, got, c)
			}
		})
	}
}

func TestTooBigThatNobodyMayBeTold(t *testing.T) {
	for name, tc := range map[string]struct {
		mtu    uint32
		packet []byte
	}{
		"below IPv6's minimum": {1279, udp6(t, 1300)},
		"below IPv4's minimum": {60, tcp4(t, 1300, true)},
		"it fits":              {1300, tcp4(t, 1300, true)},
		"no room for a piece":  {24, udp(t, "198.51.100.10", "203.0.113.5", "0123456789")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got, c := serveOne(t, bothGateways, fib.Up{Reason: fib.UpTooBig, Port: 1, Seq: tc.mtu}, nil, tc.packet)
				if len(got) != 0 || c["drop_too_big"] != 1 {
					t.Fatalf("sent %v, counters %v", got, c)
				}
			})
		})
	}
}

func TestICMPErrorsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(bothGateways)
		for i := range 200 {
			k.feed(0, fib.Up{Reason: fib.UpTTL, Port: 1}, nil, udp(t, "198.51.100.10", "203.0.113.5", fmt.Sprint(i)))
		}
		synctest.Wait()
		if n := len(k.take()); n != icmpHostBurst {
			t.Fatalf("%d errors to one sender at once", n)
		}
		for i := range 2000 { // one sender does not take another's share, all together have a limit
			k.feed(0, fib.Up{Reason: fib.UpTTL, Port: 1}, nil, udp(t, fmt.Sprintf("198.51.%d.%d", 101+i/200, 1+i%200), "203.0.113.5", "x"))
		}
		synctest.Wait()
		if n := len(k.take()); n != icmpBurst-icmpHostBurst {
			t.Fatalf("%d errors to all at once", n)
		}
		time.Sleep(time.Second)
		for range 200 {
			k.feed(0, fib.Up{Reason: fib.UpTTL, Port: 1}, nil, udp(t, "198.51.100.10", "203.0.113.5", "x"))
		}
		synctest.Wait()
		if n := len(k.take()); n != icmpHostRate {
			t.Fatalf("%d errors after a second", n)
		}
		if n := s.Counters()["icmp_limited"]; n != 150+2000-450+150 {
			t.Fatalf("%d limited", n)
		}
	})
}

// The sender of a super-packet is told about the first packet in it, as the path would have seen it.
func TestTooBigSuperPacket(t *testing.T) {
	for name, tc := range map[string]struct {
		vnet   []byte
		packet []byte
		size   int // of the packets in it
	}{
		"TCP IPv4": {superHeader(gsoTCP4, 20, 1460), tcp4(t, 20000, true), 1500},
		"UDP IPv6": {superHeader(gsoUDP, 40, 1452), udp6(t, 20000), 1500},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got, c := serveOne(t, bothGateways, fib.Up{Reason: fib.UpTooBig, Port: 1, Seq: 1400}, tc.vnet, tc.packet)
				if len(got) != 1 || c["icmp_too_big"] != 1 {
					t.Fatalf("%d packets: %v", len(got), c)
				}
				decode(t, got[0].packet)
				b := got[0].packet
				if b[0]>>4 == 4 {
					if n := int(binary.BigEndian.Uint16(b[28+2:])); n != tc.size {
						t.Errorf("quotes a packet of %d bytes", n)
					}
				} else if n := int(binary.BigEndian.Uint16(b[48+4:])) + 40; n != tc.size {
					t.Errorf("quotes a packet of %d bytes", n)
				}
			})
		})
	}
}

// superHeader is the vnet header of a super-packet whose IP header has ipLen bytes, as the kernel
// writes it: the checksum is left to the device.
func superHeader(typ byte, ipLen, size int) []byte {
	b := make([]byte, vnetMinLen)
	b[0], b[1] = vnetNeedsChecksum, typ
	at, head := 16, ipLen+etherLen+20
	if typ == gsoUDP {
		at, head = 6, ipLen+etherLen+8
	}
	binary.NativeEndian.PutUint16(b[2:], uint16(head))
	binary.NativeEndian.PutUint16(b[4:], uint16(size))
	binary.NativeEndian.PutUint16(b[6:], uint16(etherLen+ipLen))
	binary.NativeEndian.PutUint16(b[8:], uint16(at))
	return b
}
