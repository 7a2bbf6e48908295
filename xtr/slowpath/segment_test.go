package slowpath

import (
	"bytes"
	"encoding/binary"
	"testing"
	"testing/synctest"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tabi-lisp/tabi/xtr/checksum"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

func TestDatagramsOfASuperPacket(t *testing.T) {
	for name, tc := range map[string]struct {
		packet []byte
		ipLen  int
		size   int
		want   int
	}{
		"IPv4":          {udp(t, "198.51.100.10", "203.0.113.5", string(pattern(10000))), 20, 1400, 8},
		"IPv6":          {udp6(t, 48+9000), 40, 1000, 9},
		"one byte more": {udp6(t, 48+9001), 40, 1000, 10},
		"all in one":    {udp6(t, 48+500), 40, 1000, 1},
		"odd lengths":   {udp6(t, 48+5000), 40, 333, 16},
		"checksum of 0": {zeroSum(t), 20, 2, 2},
		"single bytes":  {udp(t, "198.51.100.10", "203.0.113.5", string(pattern(100))), 20, 1, 100},
		"hop-by-hop": {pkt(t, ip6("2001:db8::1", "2001:db8::2", layers.IPProtocolIPv6HopByHop),
			gopacket.Payload(append([]byte{17, 0, 1, 4, 0, 0, 0, 0, 0, 5, 0, 6, 0, 108, 1, 1}, pattern(100)...))), 48, 30, 4},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := fib.Up{Reason: fib.UpSegment, IID: 3, Flags: fib.UpTransit}
				got, c := serveOne(t, Config{}, up, superHeader(gsoUDP, tc.ipLen, tc.size), tc.packet)
				if len(got) != tc.want || int(c["segments_sent"]) != tc.want {
					t.Fatalf("%d datagrams, want %d: %v", len(got), tc.want, c)
				}
				var data []byte
				if name == "checksum of 0" && binary.BigEndian.Uint16(got[0].packet[26:]) != 0xffff {
					t.Fatalf("checksum % x", got[0].packet[26:28])
				}
				for i, w := range got {
					verifyChecksums(t, w.packet)
					p, _ := parsePacket(w.packet, false)
					if n := p.length - p.upper - 8; n != tc.size && i < len(got)-1 {
						t.Fatalf("datagram %d has %d bytes", i, n)
					}
					if !p.v6 && binary.BigEndian.Uint16(w.packet[4:]) != 0x1234+uint16(i) {
						t.Fatalf("datagram %d has IP id %x", i, w.packet[4:6])
					}
					if !bytes.Equal(w.packet[p.upper:p.upper+4], tc.packet[p.upper:p.upper+4]) {
						t.Fatalf("datagram %d has other ports", i)
					}
					if w.Down != (fib.Down{Do: fib.DownForward, IID: 3, Flags: fib.DownTransit}) || !bytes.Equal(w.vnet, make([]byte, vnetMinLen)) {
						t.Fatalf("%+v", w)
					}
					data = append(data, w.packet[p.upper+8:]...)
				}
				if !bytes.Equal(data, tc.packet[tc.ipLen+8:]) {
					t.Fatal("data differ")
				}
			})
		})
	}
}

// zeroSum returns a super-packet of two datagrams, the first of which has the computed checksum 0, which
// must be sent as 0xffff.
func zeroSum(t testing.TB) []byte {
	b := udp(t, "198.51.100.10", "203.0.113.5", "\x00\x00ab")
	p, _ := parsePacket(b, false)
	first := bytes.Clone(b[p.upper : p.upper+10])
	binary.BigEndian.PutUint16(first[4:], 10)
	first[6], first[7] = 0, 0
	need := checksum.Of(checksum.Pseudo(p.src, p.dst, protoUDP, 10), first)
	binary.BigEndian.PutUint16(b[p.upper+8:], need)
	return b
}

// What lisp0 could not carry whole comes up in packets, which may still have their outer headers.
func TestWhatLisp0HasCutGoesBackAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vnet := []byte{1, 0, 0, 0, 0, 0, 84, 0, 6, 0}
		b := incomplete(t, udp(t, "100.64.1.2", "100.64.2.2", string(pattern(1000))))
		got, c := serveOne(t, Config{}, fib.Up{Reason: fib.UpSegment, Flags: fib.UpTransit}, vnet, b)
		if len(got) != 1 || !bytes.Equal(got[0].packet, b) || !bytes.Equal(got[0].vnet, vnet) || got[0].Flags != fib.DownTransit || c["segments_sent"] != 1 {
			t.Fatalf("%+v %v", got, c)
		}
	})
}

func TestSegmentsOfATCPSuperPacket(t *testing.T) {
	header := func(v6 bool) []byte {
		tcp := &layers.TCP{SrcPort: 1, DstPort: 2, Seq: 0xfffffc00, ACK: true, PSH: true, FIN: true, CWR: true, Ack: 9, Window: 500,
			Options: []layers.TCPOption{{OptionType: 8, OptionLength: 10, OptionData: []byte{1, 2, 3, 4, 5, 6, 7, 8}}}}
		if v6 {
			return pkt(t, ip6("2001:db8::1", "2001:db8::2", layers.IPProtocolTCP), tcp, gopacket.Payload(pattern(5000)))
		}
		return pkt(t, ip4("198.51.100.10", "203.0.113.5", layers.IPProtocolTCP), tcp, gopacket.Payload(pattern(5000)))
	}
	for name, tc := range map[string]struct {
		packet []byte
		vnet   []byte
	}{
		"IPv4":         {header(false), superHeader(gsoTCP4|gsoECN, 20, 1400)},
		"IPv6":         {header(true), superHeader(gsoTCP6|gsoECN, 40, 1400)},
		"its length 0": {func() []byte { b := header(true); b[4], b[5] = 0, 0; return b }(), superHeader(gsoTCP6, 40, 1400)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got, c := serveOne(t, Config{}, fib.Up{Reason: fib.UpSegment}, tc.vnet, tc.packet)
				if len(got) != 4 {
					t.Fatalf("%d segments: %v", len(got), c)
				}
				var data []byte
				for i, w := range got {
					p := decode(t, w.packet)
					tcp := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
					last := i == len(got)-1
					if tcp.Seq != uint32(0xfffffc00+i*1400) || tcp.Ack != 9 || !tcp.ACK || tcp.PSH != last || tcp.FIN != last || tcp.CWR != (i == 0) || len(tcp.Options) == 0 {
						t.Fatalf("segment %d: %+v", i, tcp)
					}
					data = append(data, tcp.Payload...)
				}
				if !bytes.Equal(data, pattern(5000)) {
					t.Fatal("data differ")
				}
			})
		})
	}
}

func TestSuperPacketsThatAreNoneAreRefused(t *testing.T) {
	dgram, seg := udp(t, "198.51.100.10", "203.0.113.5", string(pattern(3000))), tcp4(t, 3000, true)
	fragment := bytes.Clone(dgram)
	fragment[6] |= 0x20
	short := bytes.Clone(seg)
	short[20+12] = 0x40
	for name, tc := range map[string]struct{ vnet, packet []byte }{
		"TCP type, UDP packet":   {superHeader(gsoTCP4, 20, 1000), dgram},
		"UDP type, TCP packet":   {superHeader(gsoUDP, 20, 1000), seg},
		"IPv6 type, IPv4 packet": {superHeader(gsoTCP6, 20, 1000), seg},
		"type unknown":           {superHeader(3, 20, 1000), dgram},
		"size 0":                 {superHeader(gsoUDP, 20, 0), dgram},
		"no data":                {superHeader(gsoUDP, 20, 1000), udp(t, "198.51.100.10", "203.0.113.5", "")},
		"a fragment":             {superHeader(gsoUDP, 20, 1000), fragment},
		"TCP header of 16 bytes": {superHeader(gsoTCP4, 20, 1000), short},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got, c := serveOne(t, bothGateways, fib.Up{Reason: fib.UpSegment}, tc.vnet, tc.packet)
				if len(got) != 0 || c["bad_offload"]+c["bad_packet"] != 1 {
					t.Fatalf("%v %v", got, c)
				}
			})
		})
	}
}

// Without DF the sender is not asked to send less: TCP is cut smaller, datagrams are fragmented.
func TestTooBigSuperPacketWithoutDF(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := incomplete(t, tcp4(t, 20000, false))
		got, c := serveOne(t, bothGateways, fib.Up{Reason: fib.UpTooBig, Seq: 1400}, superHeader(gsoTCP4, 20, 1460), b)
		if len(got) != 1 || c["resized"] != 1 || gsoSize(got[0].vnet) != 1360 || gsoType(got[0].vnet) != gsoTCP4 || !bytes.Equal(got[0].packet, b) {
			t.Fatalf("%+v", got)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b := incomplete(t, udp(t, "198.51.100.10", "203.0.113.5", string(pattern(4000))))
		got, c := serveOne(t, bothGateways, fib.Up{Reason: fib.UpTooBig, Seq: 1400}, superHeader(gsoUDP, 20, 1472), b)
		if len(got) != 5 || c["fragments_sent"] != 4 || c["segments_sent"] != 1 {
			t.Fatalf("%d packets: %v", len(got), c)
		}
		var data []byte
		for _, ws := range [][]written{got[:2], got[2:4], got[4:]} {
			d := reassemble(t, ws, 1400)
			verifyChecksums(t, d)
			data = append(data, d[28:]...)
		}
		if !bytes.Equal(data, pattern(4000)) {
			t.Fatal("data differ")
		}
	})
}

func TestSegmentsAreCountedAsTheKernelDoes(t *testing.T) {
	for name, tc := range map[string]struct {
		vnet, packet []byte
		want         uint32
	}{
		"plain":       {make([]byte, vnetMinLen), udp6(t, 1000), 1},
		"datagrams":   {superHeader(gsoUDP, 40, 1000), udp6(t, 48+3001), 4},
		"TCP":         {superHeader(gsoTCP4, 20, 1000), tcp4(t, 40+3000, true), 3},
		"less than 1": {superHeader(gsoTCP4, 20, 1000), tcp4(t, 41, true), 1},
		"no packet":   {superHeader(gsoTCP4, 20, 1000), []byte{1, 2, 3}, 1},
	} {
		if n := segments(tc.vnet, tc.packet); n != tc.want {
			t.Errorf("%s: %d, want %d", name, n, tc.want)
		}
	}
}
