package map646

import (
	"encoding/binary"
	"testing"

	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

// reassembled puts fragments that came in order together, as an IP packet.
func reassembled(t testing.TB, fragments [][]byte) []byte {
	t.Helper()
	if len(fragments) == 1 {
		return fragments[0]
	}
	var b []byte
	next, id := 0, uint32(0)
	for i, f := range fragments {
		if why := invalid(f); why != "" {
			t.Fatalf("fragment %d: %s", i, why)
		}
		var data []byte
		var offset int
		var more bool
		var thisID uint32
		if version(f) == 4 {
			field := binary.BigEndian.Uint16(f[6:])
			offset, more, data, thisID = int(field&0x1fff)*8, field&0x2000 != 0, f[20:], uint32(binary.BigEndian.Uint16(f[4:]))
		} else {
			if f[6] != 44 {
				t.Fatalf("fragment %d: next header %d", i, f[6])
			}
			field := binary.BigEndian.Uint16(f[42:])
			offset, more, data, thisID = int(field&^7), field&1 != 0, f[48:], binary.BigEndian.Uint32(f[44:])
		}
		if i == 0 {
			b = append(b, f[:len(f)-len(data)]...)
			id = thisID
		}
		if offset != next || thisID != id || more != (i < len(fragments)-1) || more && len(data)%8 != 0 || len(data) == 0 {
			t.Fatalf("fragment %d: offset %d, want %d; more %v; %d bytes", i, offset, next, more, len(data))
		}
		next += len(data)
		b = append(b, data...)
	}
	if version(b) == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[6:], 0)
		sumHeader4(b[:20])
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		binary.BigEndian.PutUint16(b[42:], 0)
	}
	return b
}

// IPv4 without DF, of every size around the limits, with every kind of way on: it fits, and nothing is lost.
func TestSizeNoDF(t *testing.T) {
	for _, lowest := range []int{0, 1280, 1400, 1500} {
		cfg := cloudConfig()
		cfg.LowestMTU6 = lowest
		tr := newTranslator(t, cfg, cloudServices()...)
		limit := max(lowest, 1280)
		for _, mtu := range []int{0, 600, 1280, 1444, 1500} {
			for n := 1100; n <= 3000; n += 1 + n%37 {
				in := udpPacket(tClient, tService, n-28)
				r := tr.Translate(in, Options{MTU: mtu})
				fits := limit
				if mtu > 0 {
					fits = min(fits, mtu)
				}
				if r.Reason != Translated46 || (len(r.Packets) > 1) != (n+20 > fits) {
					t.Fatalf("%d bytes, lowest %d, MTU %d: %v, %d packets", n, lowest, mtu, r.Reason, len(r.Packets))
				}
				for _, b := range r.Packets {
					if len(b) > fits {
						t.Fatalf("%d bytes, lowest %d, MTU %d: %d bytes", n, lowest, mtu, len(b))
					}
				}
				if right, known := checksumOf(reassembled(t, r.Packets)); !right || !known {
					t.Fatalf("%d bytes: checksum", n)
				}
			}
		}
	}
}

// IPv4 with DF: it fits whole or its sender is told what does.
func TestSizeDF(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	for _, mtu := range []int{80, 1280, 1444, 1500} {
		for _, n := range []int{40, 60, 61, 1000, 1260, 1261, 1424, 1425, 1480, 1481, 9000} {
			in := vectors.IP4{Src: tClient, Dst: tService, DF: true, Proto: 17, Data: vectors.UDPDatagram(tClient, tService, n-28)}.Bytes()
			if n+20 <= mtu {
				if out := only(t, tr, in, Options{MTU: mtu}); len(out) != n+20 || out[6] != 17 {
					t.Errorf("%d bytes became %d", n, len(out))
				}
				continue
			}
			reply := refused(t, tr, in, Options{MTU: mtu}, DropTooBig)
			if want := max(68, mtu-20); reply == nil || reply[20] != 3 || reply[21] != 4 || int(binary.BigEndian.Uint16(reply[26:])) != want {
				t.Errorf("%d bytes with MTU %d: told % x", n, mtu, reply[:min(len(reply), 28)])
			}
		}
	}
	// A fragment with DF: the Fragment Header counts, too.
	in := vectors.IP4{Src: tClient, Dst: tService, ID: 1, DF: true, MF: true, Proto: 17, Data: vectors.Pattern(1456)}.Bytes()
	only(t, tr, in, Options{MTU: 1504})
	reply := refused(t, tr, in, Options{MTU: 1503}, DropTooBig)
	if got := binary.BigEndian.Uint16(reply[26:]); got != 1475 {
		t.Errorf("told %d, want 1475", got)
	}
}

// IPv6: up to 1280 bytes it passes any way, beyond that it fits or its sender is told.
func TestSize6(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	for _, mtu := range []int{0, 68, 600, 1000, 1259, 1260, 1400, 1500} {
		for n := 1200; n <= 1600; n += 1 + n%13 {
			in := udpPacket(tVM, tClient6, n-48)
			r := tr.Translate(in, Options{MTU: mtu})
			if mtu > 0 && n > 1280 && n-20 > mtu {
				if want := uint32(max(1280, mtu+20)); r.Reason != DropTooBig || r.Reply == nil || r.Reply[40] != 2 || binary.BigEndian.Uint32(r.Reply[44:]) != want {
					t.Fatalf("%d bytes with MTU %d: %v, told % x, want %d", n, mtu, r.Reason, r.Reply[:min(len(r.Reply), 48)], want)
				}
				continue
			}
			if r.Reason != Translated64 {
				t.Fatalf("%d bytes with MTU %d: %v", n, mtu, r.Reason)
			}
			for _, b := range r.Packets {
				df := binary.BigEndian.Uint16(b[6:])&flagDF != 0
				if mtu > 0 && len(b) > mtu || df != (n-20 > 1260) {
					t.Fatalf("%d bytes with MTU %d became %d bytes, DF %v", n, mtu, len(b), df)
				}
			}
			if right, known := checksumOf(reassembled(t, r.Packets)); !right || !known {
				t.Fatalf("%d bytes with MTU %d: checksum", n, mtu)
			}
		}
	}
}

// The largest packets there are.
func TestSizeLargest(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	in := vectors.IP4{Src: tClient, Dst: tService, DF: true, Proto: 17, Data: vectors.UDPDatagram(tClient, tService, 65535-28)}.Bytes()
	if out := only(t, tr, in, Options{}); len(out) != 65555 {
		t.Errorf("65535 bytes became %d", len(out))
	}
	if out := only(t, tr, udpPacket(tVM, tClient6, 65555-48), Options{}); len(out) != 65535 {
		t.Errorf("65555 bytes became %d", len(out))
	}
	over := vectors.IP6{Src: tVM, Dst: tClient6, Next: 99, Data: vectors.Pattern(65516)}.Bytes()
	if reply := refused(t, tr, over, Options{}, DropTooBig); reply == nil || binary.BigEndian.Uint32(reply[44:]) != 65555 {
		t.Errorf("told % x", reply[:min(len(reply), 48)])
	}
	over = vectors.IP6{Src: tVM, Dst: "2001:db8:64::c633:640b", Next: 99, Data: vectors.Pattern(65535)}.Bytes()
	refused(t, tr, over, Options{}, DropTooBig)
	// As many fragments as it takes, whole again.
	r := tr.Translate(udpPacket(tClient, tService, 65535-28), Options{MTU: 1280})
	if len(r.Packets) != 54 {
		t.Errorf("%d fragments", len(r.Packets))
	}
	reassembled(t, r.Packets)
	// A way that takes next to nothing.
	refused(t, tr, udpPacket(tClient, tService, 100), Options{MTU: 50}, DropTooBig)
	refused(t, tr, udpPacket(tVM, tClient6, 100), Options{MTU: 24}, DropTooBig)
}
