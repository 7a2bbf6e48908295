package slowpath

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tabi-lisp/tabi/xtr/checksum"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

func TestFragmentsMakeTheOriginal(t *testing.T) {
	optioned := ip4("198.51.100.10", "203.0.113.5", layers.IPProtocolUDP)
	optioned.Options = []layers.IPv4Option{
		{OptionType: 0x94, OptionLength: 4, OptionData: []byte{0, 0}},                    // router alert: copied
		{OptionType: 7, OptionLength: 11, OptionData: []byte{4, 0, 0, 0, 0, 0, 0, 0, 0}}, // record route: not
		{OptionType: 1, OptionLength: 1},
	}
	middle := ip4("198.51.100.10", "203.0.113.5", layers.IPProtocolUDP)
	middle.Flags, middle.FragOffset = layers.IPv4MoreFragments, 185
	last := ip4("198.51.100.10", "203.0.113.5", layers.IPProtocolUDP)
	last.FragOffset = 185
	ports := &layers.UDP{SrcPort: 1, DstPort: 2}
	for name, tc := range map[string]struct {
		packet []byte
		mtu    int
		pieces int
	}{
		"two halves":           {udp(t, "198.51.100.10", "203.0.113.5", string(pattern(1472))), 1444, 2},
		"one byte too long":    {udp(t, "198.51.100.10", "203.0.113.5", string(pattern(1417))), 1444, 2},
		"many":                 {udp(t, "198.51.100.10", "203.0.113.5", string(pattern(60000))), 600, 105},
		"smallest":             {udp(t, "198.51.100.10", "203.0.113.5", string(pattern(32))), 28, 5},
		"options":              {pkt(t, optioned, ports, gopacket.Payload(pattern(1400))), 1000, 2},
		"a middle fragment":    {pkt(t, middle, gopacket.Payload(pattern(1480))), 1000, 2},
		"a last fragment":      {pkt(t, last, gopacket.Payload(pattern(1001))), 1000, 2},
		"TCP":                  {tcp4(t, 1500, false), 1444, 2},
		"trailing padding cut": {append(tcp4(t, 1500, false), 1, 2, 3, 4), 1444, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := fib.Up{Reason: fib.UpTooBig, IID: 3, Flags: fib.UpTransit, Seq: uint32(tc.mtu)}
				got, c := serveOne(t, bothGateways, up, nil, tc.packet)
				if len(got) != tc.pieces || int(c["fragments_sent"]) != tc.pieces {
					t.Fatalf("%d fragments, want %d: %v", len(got), tc.pieces, c)
				}
				orig := tc.packet[:binary.BigEndian.Uint16(tc.packet[2:])]
				if d := reassemble(t, got, tc.mtu); !bytes.Equal(d, orig) {
					t.Fatalf("put together:\n% x\nwant\n% x", d, orig)
				}
				for _, w := range got {
					if w.Down != (fib.Down{Do: fib.DownForward, IID: 3, Flags: fib.DownTransit}) || w.vnet[0] != 0 || w.vnet[1] != 0 {
						t.Fatalf("%+v", w)
					}
				}
			})
		})
	}
}

// reassemble puts fragments together, with the header of the first, and checks each.
func reassemble(t testing.TB, ws []written, mtu int) []byte {
	t.Helper()
	first := ws[0].packet
	out := append([]byte(nil), first[:int(first[0]&15)*4]...)
	start := int(binary.BigEndian.Uint16(first[6:])&offsetMask) * 8
	more := false
	for i, w := range ws {
		b := w.packet
		if len(b) > mtu {
			t.Fatalf("fragment %d has %d bytes, MTU %d", i, len(b), mtu)
		}
		verifyChecksums(t, b)
		h := int(b[0]&15) * 4
		if i > 0 {
			for _, o := range options(b[20:h]) {
				if o&0x80 == 0 && o > 1 {
					t.Fatalf("fragment %d bears option %d", i, o)
				}
			}
		}
		off := int(binary.BigEndian.Uint16(b[6:])&offsetMask) * 8
		if off-start != len(out)-int(out[0]&15)*4 {
			t.Fatalf("fragment %d begins at %d", i, off)
		}
		more = binary.BigEndian.Uint16(b[6:])&moreFragments != 0
		if i < len(ws)-1 && !more {
			t.Fatalf("fragment %d of %d says it is the last", i, len(ws))
		}
		out = append(out, b[h:]...)
	}
	field := uint16(start / 8)
	if more {
		field |= moreFragments
	}
	binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
	binary.BigEndian.PutUint16(out[6:], field)
	sumHeader4(out[:int(out[0]&15)*4])
	return out
}

func options(b []byte) []byte {
	var out []byte
	for len(b) > 0 && b[0] != 0 {
		out = append(out, b[0])
		if b[0] == 1 {
			b = b[1:]
			continue
		}
		b = b[b[1]:]
	}
	return out
}

func TestFragmentsOfRandomPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		k := newFakeKernel(t, 1)
		k.start(bothGateways)
		for range 500 {
			n := 100 + r.IntN(9000)
			b := udp(t, "198.51.100.10", "203.0.113.5", string(pattern(n)))
			mtu := 68 + r.IntN(len(b)-68)
			k.feed(0, fib.Up{Reason: fib.UpTooBig, Seq: uint32(mtu)}, nil, b)
			synctest.Wait()
			if d := reassemble(t, k.take(), mtu); !bytes.Equal(d, b) {
				t.Fatalf("%d bytes through MTU %d differ", len(b), mtu)
			}
		}
	})
}

// A checksum that the sender left to the device must be there before the packet is cut.
func TestFragmentsOfAnIncompletePacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		whole := udp(t, "198.51.100.10", "203.0.113.5", string(pattern(1472)))
		b := incomplete(t, whole)
		got, _ := serveOne(t, bothGateways, fib.Up{Reason: fib.UpTooBig, Seq: 1444}, []byte{1, 0, 0, 0, 0, 0, 34, 0, 6, 0}, b)
		if d := reassemble(t, got, 1444); !bytes.Equal(d, whole) {
			t.Fatal("put together differs from the original")
		}
	})
}

func TestChecksumOutsideThePacketIsRefused(t *testing.T) {
	for _, vnet := range [][]byte{
		{1, 0, 0, 0, 0, 0, 0xff, 0xff, 6, 0},
		{1, 0, 0, 0, 0, 0, 2, 0, 6, 0},
		{1, 0, 0, 0, 0, 0, 34, 0, 0xff, 0xff},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := udp(t, "198.51.100.10", "203.0.113.5", string(pattern(1472)))
			got, c := serveOne(t, bothGateways, fib.Up{Reason: fib.UpTooBig, Seq: 1444}, vnet, b)
			if len(got) != 0 || c["bad_offload"] != 1 {
				t.Fatalf("%v %v", got, c)
			}
		})
	}
}

// incomplete returns a copy of a UDP or TCP packet whose checksum covers the pseudo-header only.
func incomplete(t testing.TB, b []byte) []byte {
	t.Helper()
	p, ok := parsePacket(b, true)
	if !ok {
		t.Fatal("not a packet")
	}
	b = bytes.Clone(b)
	at := p.upper + 6
	if p.proto == protoTCP {
		at = p.upper + 16
	}
	binary.BigEndian.PutUint16(b[at:], checksum.Fold(checksum.Pseudo(p.src, p.dst, p.proto, len(b)-p.upper)))
	return b
}
