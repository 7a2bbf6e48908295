package kernel

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

var both = []bool{false, true}

// TestEncapsulate compares every byte of the outer headers.
func TestEncapsulate(t *testing.T) {
	for _, iid := range []uint32{0, 0xabcdef} {
		l := newLab(t, inInstance(iid))
		for _, outer6 := range both {
			for _, inner6 := range both {
				t.Run(name(inner6, outer6), func(t *testing.T) {
					home, far := l.home(vmEID.of(inner6)), to(host(farEID.of(inner6)), farRLOC.of(outer6))
					home.EID.IID, far.EID.IID = iid, iid
					l.set(home, far)
					sent := udp(vmMAC, gatewayMAC, header{vmEID.of(inner6), farEID.of(inner6), 33, 0xb9}, 1000, 2000, []byte("hello"))
					l.vm.send(sent)
					checkEncapsulated(t, l.wire.want(), sent[14:], iid, outer6)
				})
			}
		}
	}
}

// TestStrangersGetPlainLISP: to an RLOC that is not of the cloud every bit but the instance-ID's is zero (RFC 9300
// section 5.1).
func TestStrangersGetPlainLISP(t *testing.T) {
	l := newLab(t, asAnchor)
	l.set(l.home(vmEID.v4), to(host(farEID.v4), outRLOC.v4))
	l.vm.send(udp(vmMAC, gatewayMAC, header{vmEID.v4, farEID.v4, 33, 0}, 1000, 2000, []byte("hello")))
	got := l.wire.want()
	if head := got[14+20+8 : 14+36]; !bytes.Equal(head, make([]byte, 8)) {
		t.Fatalf("LISP header % x, want zeros", head)
	}
}

// TestNextProtocol: what a LISP-GPE header says to be neither IPv4 nor IPv6 is not for us.
func TestNextProtocol(t *testing.T) {
	l := newLab(t)
	l.set(l.home(vmEID.v4))
	for next, passes := range map[byte]bool{1: true, 2: true, 3: false, 0: false, 0x80: false} {
		inner := udp(peerMAC, peerMAC, header{farEID.v4, vmEID.v4, 33, 0}, 1000, 2000, []byte{next})[14:]
		f := lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4, ttl: 64}, 0xc001, 0, inner)
		f[14+28] = 0x04
		f[14+28+3] = next
		l.sendWire(f)
		patience := soon
		if !passes {
			patience = 50 * time.Millisecond
		}
		if got := l.vm.recv(patience); (got != nil) != passes {
			t.Errorf("next protocol %d: passed %v, want %v; drops: %v", next, got != nil, passes, l.d.Drops())
		}
	}
}

func checkEncapsulated(t *testing.T, got, inner []byte, iid uint32, outer6 bool) {
	t.Helper()
	want := []byte{}
	want = append(want, got[:12]...) // the MAC addresses are the neighbour's; checked below
	n := 36
	if outer6 {
		n = 56
	}
	udpAt := 14 + n - 16
	sport := binary.BigEndian.Uint16(got[udpAt:])
	if sport < 0xc000 {
		t.Fatalf("source port %#x, want 0xc000 or higher", sport)
	}
	if !bytes.Equal(got[:6], peerMAC) {
		t.Fatalf("frame to %x, want %v", got[:6], peerMAC)
	}
	if outer6 {
		want = append(want, 0x86, 0xdd)
		label := binary.BigEndian.Uint32(got[14:]) & 0xfffff
		if label == 0 || label&0x3fff != uint32(sport)&0x3fff {
			t.Fatalf("flow label %#x does not come from the hash of source port %#x", label, sport)
		}
		want = binary.BigEndian.AppendUint32(want, 0x60000000|0xb9<<20|label)
		want = binary.BigEndian.AppendUint16(want, uint16(16+len(inner)))
		want = append(want, 17, 32)
		want = append(want, selfRLOC.v6.AsSlice()...)
		want = append(want, farRLOC.v6.AsSlice()...)
	} else {
		want = append(want, 0x08, 0x00, 0x45, 0xb9)
		want = binary.BigEndian.AppendUint16(want, uint16(36+len(inner)))
		want = append(want, 0, 0, 0x40, 0, 32, 17, 0, 0)
		want = append(want, selfRLOC.v4.AsSlice()...)
		want = append(want, farRLOC.v4.AsSlice()...)
		binary.BigEndian.PutUint16(want[24:], sum16(want[14:34]))
	}
	want = binary.BigEndian.AppendUint16(want, sport)
	want = binary.BigEndian.AppendUint16(want, 4341)
	want = binary.BigEndian.AppendUint16(want, uint16(16+len(inner)))
	want = append(want, 0, 0)
	// Inside the cloud the header says what follows (RFC 9305): 1 = IPv4, 2 = IPv6.
	flags, next := byte(0x04), byte(1)
	if inner[0]>>4 == 6 {
		next = 2
	}
	if iid != 0 {
		flags |= 0x08
	}
	want = append(want, flags, 0, 0, next, byte(iid>>16), byte(iid>>8), byte(iid), 0)
	want = append(want, hop(inner)...)
	if !bytes.Equal(got, want) {
		t.Fatalf("got  % x\nwant % x", got, want)
	}
}

// hop is what a router makes of a packet: one less to live.
func hop(p []byte) []byte {
	p = bytes.Clone(p)
	if p[0]>>4 == 4 {
		p[8]--
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], sum16(p[:20]))
	} else {
		p[7]--
	}
	return p
}

// sum16 is the Internet checksum of b (RFC 1071).
func sum16(b []byte) uint16 {
	s := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

func TestDecapsulate(t *testing.T) {
	for _, how := range []string{"tc", "xdp"} {
		for _, iid := range []uint32{0, 7} {
			l := newLab(t, withDecap(how), inInstance(iid))
			for _, outer6 := range both {
				for _, inner6 := range both {
					t.Run(how+" "+name(inner6, outer6), func(t *testing.T) {
						home := l.home(vmEID.of(inner6))
						home.EID.IID = iid
						l.set(home)
						inner := udp(peerMAC, peerMAC, header{farEID.of(inner6), vmEID.of(inner6), 60, 0x28}, 1, 2, []byte("hello"))[14:]
						l.sendWire(lispFrame(header{farRLOC.of(outer6), selfRLOC.of(outer6), 62, 0x28}, 0xc001, iid, inner))
						got := l.vm.want()
						want := append(append(append([]byte{}, vmMAC...), gatewayMAC...), etherType(inner6)...)
						want = append(want, hop(inner)...)
						if !bytes.Equal(got, want) {
							t.Fatalf("got  % x\nwant % x", got, want)
						}
					})
				}
			}
		}
	}
}

func etherType(v6 bool) []byte {
	if v6 {
		return []byte{0x86, 0xdd}
	}
	return []byte{0x08, 0x00}
}

// TestMiss: a packet without a route goes up whole, and what Go gives back then takes the route.
func TestMiss(t *testing.T) {
	l := newLab(t)
	for _, v6 := range both {
		l.set(l.home(vmEID.of(v6)))
		sent := udp(vmMAC, gatewayMAC, header{src: vmEID.of(v6), dst: farEID.of(v6)}, 1, 2, []byte("hello"))
		l.vm.send(sent)
		vnet, got := l.up.recvVnet(soon)
		up, ok := fib.DecodeUp(got)
		if want := (fib.Up{Reason: fib.UpMiss, Port: l.port}); !ok || up != want {
			t.Fatalf("went up as %+v %v, want %+v", up, ok, want)
		}
		if !bytes.Equal(got[12:], sent[12:]) {
			t.Fatalf("got  % x\nwant % x", got[12:], sent[12:])
		}
		l.wire.none()
		l.set(to(host(farEID.of(v6)), farRLOC.v4))
		fib.Down{Do: fib.DownForward}.Append(got[:0])
		if _, err := l.up.f.Write(append(vnet, got...)); err != nil {
			t.Fatal(err)
		}
		out := l.wire.want()
		if !bytes.Equal(out[14+36:], hop(sent[14:])) {
			t.Fatalf("reinjected: got % x\nwant % x", out[14+36:], hop(sent[14:]))
		}
	}
}
